"""Data, losses, weights, lists and answers are what they were when they were recorded.

They depend on the processor and on torch, so others skip. What is new since is not compared. After
a change that is meant to change them, record again:
``python -m tests.golden.record tests/golden/golden.json``.
"""

import json
from pathlib import Path

import pytest

from tests.golden import record

STORED = json.loads(Path(__file__).with_name("golden.json").read_text())

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1200)]


@pytest.mark.skipif(STORED["machine"] != record.machine(), reason="recorded on another machine")
def test_everything_is_as_recorded(tmp_path):
    found = record.recorded(tmp_path)
    assert list(differences({key: STORED[key] for key in ("demo", "models")}, found)) == []


def differences(stored, found, path=""):
    """Paths of what was recorded and is missing or another now."""
    if isinstance(stored, dict) and isinstance(found, dict):
        for key, value in stored.items():
            yield from differences(value, found.get(key), f"{path}/{key}")
    elif isinstance(stored, list) and isinstance(found, list) and len(stored) == len(found):
        for place, pair in enumerate(zip(stored, found, strict=True)):
            yield from differences(*pair, f"{path}/{place}")
    elif stored != found:
        yield f"{path}: {stored!r} -> {found!r}"
