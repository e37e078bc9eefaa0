"""A run file as it is used: every value, with where it comes from."""

import tomllib
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, SecretStr

from distrib.renamed import present, renamed
from distrib.run_file import RunFile
from distrib.toml_text import inline

_INDENT = 44


def shown(file: RunFile, text: str, overrides: Sequence[str]) -> str:
    """Return all settings of a run file in TOML, each with its origin as a comment.

    Args:
        file: The run file, read.
        text: The file as it was written.
        overrides: Assignments from the command line.

    Returns:
        TOML that reads as the same settings; secrets are left out.
    """
    origins = dict.fromkeys(_paths(renamed(tomllib.loads(text))[0]), "run file")
    for override in overrides:
        name = present(override.partition("=")[0].strip())
        inside = [p for p in _paths(renamed(tomllib.loads(override))[0]) if p.startswith(name)]
        origins = {p: o for p, o in origins.items() if not p.startswith(f"{name}.")}
        origins |= dict.fromkeys(inside, "--set")
    lines = ["# Settings that are none are left out."]
    sections = []
    for path, value in _values(file):
        section, _, key = path.rpartition(".")
        line = f"{key} = {inline(value)}"
        origin = origins.get(path, "default")
        sections.append((section, f"{line:<{_INDENT}} # {origin}"))
    for place, (section, line) in enumerate(sections):
        if section and (place == 0 or sections[place - 1][0] != section):
            lines += ["", f"[{section}]"]
        lines.append(line)
    return "\n".join(lines) + "\n"


def _values(node: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield plain values before sections, as TOML wants them."""
    inside = []
    for name in type(node).model_fields:
        value = getattr(node, name)
        if isinstance(value, BaseModel):
            inside.append((name, value))
        elif value is not None and not isinstance(value, SecretStr):
            yield prefix + name, node.model_dump(mode="json", include={name})[name]
    for name, value in inside:
        yield from _values(value, f"{prefix}{name}.")


def _paths(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all values of a document."""
    for key, value in node.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{key}.")
