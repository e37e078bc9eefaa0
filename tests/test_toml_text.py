"""JSON as TOML reads as the same JSON."""

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from distrib.toml_text import toml_text

TEXT = st.text(st.characters(blacklist_categories=("Cs",)), max_size=8)
PLAIN = st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | TEXT
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
)


@given(st.dictionaries(TEXT, VALUES, max_size=4))
def test_a_document_reads_as_itself(document):
    finite = str(document).find("inf") < 0
    if finite:
        assert tomllib.loads(toml_text(document)) == document


def test_what_has_no_value_is_left_out():
    document = {"a": None, "b": {"c": None, "d": 1}}
    assert tomllib.loads(toml_text(document)) == {"b": {"d": 1}}
