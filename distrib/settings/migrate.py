"""Rewrites run files with the present names of settings; all else of the text stays."""

import re
import tomllib

from distrib.errors import ConfigError
from distrib.renamed import Change, renamed


def migrated(text: str) -> tuple[str, list[Change]]:
    """Rewrite a run file.

    Args:
        text: TOML.

    Returns:
        The text with the present names, and what was changed.

    Raises:
        ConfigError: A name cannot be replaced in the text, such as one that is written with escapes
            or is given by its present name, too.
        ValueError: The text is not TOML.
    """
    wanted, changes = renamed(tomllib.loads(text))
    for change in changes:
        text = _replaced(text, change, wanted)
    return text, changes


def _replaced(text: str, change: Change, wanted: object) -> str:
    """Replace the one occurrence of a name that leaves the settings as they are."""
    left = len(renamed(tomllib.loads(text))[1])
    for found in re.finditer(rf"(?<![\w-]){re.escape(change.old)}(?![\w-])", text):
        tried = text[: found.start()] + change.new + text[found.end() :]
        try:
            document, rest = renamed(tomllib.loads(tried))
        except ValueError:
            continue
        if document == wanted and len(rest) == left - 1:
            return tried
    raise ConfigError(
        f"{change.path}: {change.old!r} is now {change.new!r}, but cannot be replaced in the text; "
        "edit it by hand"
    )
