"""Keeps secrets out of messages, events, logs and responses.

Secrets are known by their values (of settings and environment variables whose names say so), and
by where they stand: credentials in URLs, signatures in queries, assignments to such names.
"""

import json
import re

_NAME = re.compile(
    r"token(?!iz)|secret|passw|passphrase|credential|api_?key|(access|account|private|storage)_?key"
    r"|signature|(^|[._\-])(auth|sas)([._\-]|$)|(^|[._\-])tok(?!eniz)",
    re.IGNORECASE,
)
_IN_URL = re.compile(r"(://)(?!\*\*\*@)[^\s/@:'\"]{0,200}:(?!\d+/)[^\s@'\"]{0,500}@")
_IN_QUERY = re.compile(
    r"([?&;](?:sig|signature|sv|se|sp|token|access_token|auth|key|api_?key|password|secret|"
    r"x-(?:amz|goog|oss)-(?:signature|credential|security-token))=)[^&\s'\"]+",
    re.IGNORECASE,
)
_ASSIGNED = re.compile(
    r"((?:token(?!iz)|secret|passw(?:or)?d|passphrase|credential|api_?key|access_?key)\w{0,40}"
    r"[\"']?\s*(?:=|(?<=[\"']):)\s*[\"']?)(?!\$\{|\*\*\*|None|null|\.\.\.)[^\s\"',;}\])]+",
    re.IGNORECASE,
)
_SHORTEST = 6
_HIDDEN = "***"
_values: set[str] = set()


def is_secret(name: str) -> bool:
    """Return whether a setting or variable of this name holds a secret."""
    return _NAME.search(name) is not None


def hide(value: object) -> None:
    """Remember a secret, so that `redacted` removes it; shorter ones are too common to replace."""
    if isinstance(value, str) and len(value) >= _SHORTEST:
        _values.add(value)


def has_credentials(url: str) -> bool:
    """Return whether a URL carries a password, a token or a signature."""
    return _IN_URL.search(url) is not None or _IN_QUERY.search(url) is not None


def redacted(text: str) -> str:
    """Return text without secrets.

    Args:
        text: A finished message, event or response.

    Returns:
        The text with marks in place of secrets.
    """
    for value in sorted(_values, key=len, reverse=True):
        for form in (value, json.dumps(value)[1:-1]):
            text = text.replace(form, _HIDDEN)
    text = _IN_URL.sub(rf"\1{_HIDDEN}@", text)
    text = _IN_QUERY.sub(rf"\1{_HIDDEN}", text)
    return _ASSIGNED.sub(rf"\1{_HIDDEN}", text)
