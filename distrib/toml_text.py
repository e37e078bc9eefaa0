"""JSON as TOML; Python reads TOML, and does not write it."""

import json
from collections.abc import Mapping
from typing import Any

_DELETE = "\x7f"
"""TOML wants it escaped, JSON does not."""


def toml_text(document: Mapping[str, Any]) -> str:
    """Return a document as TOML, a line for each key.

    Args:
        document: JSON; keys without a value are left out.

    Returns:
        The text.
    """
    known = {key: value for key, value in document.items() if value is not None}
    return "".join(f"{_key(key)} = {inline(value)}\n" for key, value in known.items())


def inline(value: Any) -> str:
    """Return a value in TOML, on one line.

    Args:
        value: JSON; keys without a value are left out, lists have none.

    Returns:
        The text after the equals sign.
    """
    if isinstance(value, Mapping):
        inner = ", ".join(
            f"{_key(key)} = {inline(part)}" for key, part in value.items() if part is not None
        )
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(inline(part) for part in value)}]"
    return json.dumps(value, ensure_ascii=False).replace(_DELETE, "\\u007f")


def _key(key: str) -> str:
    is_bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if is_bare else inline(key)
