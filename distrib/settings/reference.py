"""The configuration reference, from the classes: Markdown for people, JSON Schema for editors."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from distrib.config import JsonObject
from distrib.run_file import RunFile

_HEAD = """# Configuration

A run file is TOML. `distrib init LOG` writes one, `distrib config show --config FILE` prints every
value with where it comes from, and `--set section.key=value` overrides a value on the command line.
Unknown keys are errors. In a string, `${NAME}` is replaced by the environment variable.

Editors that read JSON Schema (Taplo, Even Better TOML) complete and check a run file that begins
with `#:schema distrib.schema.json`; `distrib config schema > distrib.schema.json` writes that file.

`distrib config reference` writes this page; do not edit it.
"""
_SCHEMA = "https://json-schema.org/draft/2020-12/schema"
_TAGS = ("name", "format", "kind")
_WORDS = {"boolean": "true or false", "null": "none"}
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
_COLUMNS = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]


def schema() -> JsonObject:
    """Return the JSON Schema of a run file."""
    return {"$schema": _SCHEMA, **RunFile.model_json_schema()}


def reference() -> str:
    """Return the page of all settings, as Markdown."""
    whole = RunFile.model_json_schema()
    page = _Page(whole["$defs"])
    fields, required = whole["properties"], whole.get("required", ())
    lines = [_HEAD, "## Top level", "", *page.rows("", fields, required)]
    for name, field in fields.items():
        lines += page.section(name, field)
    return "\n".join(lines).rstrip() + "\n"


class _Page:
    """Turns the parts of a schema into sections; a part that occurs twice is described once.

    Args:
        definitions: The ``$defs`` of the schema.
    """

    def __init__(self, definitions: Mapping[str, JsonObject]) -> None:
        self.definitions = definitions
        self.places: dict[str, str] = {}
        self.named: set[str] = set()

    def tables(self, field: JsonObject) -> dict[str, JsonObject]:
        """Return the tables that a field may hold, by name of their class."""
        choices = field.get("oneOf") or field.get("anyOf")
        if choices:
            return {name: part for choice in choices for name, part in self.tables(choice).items()}
        if isinstance(field.get("additionalProperties"), dict):
            return self.tables(field["additionalProperties"])
        name = field.get("$ref", "").rpartition("/")[2]
        if not name:
            return {}
        found = self.definitions[name]
        return {name: found} if "properties" in found else self.tables(found)

    def section(self, name: str, field: JsonObject) -> Iterator[str]:
        """Yield the lines of a section and of the sections inside."""
        tables = self.tables(field)
        if not tables:
            return
        if "additionalProperties" in field:
            name = f"{name}.*"
        new = {part: found for part, found in tables.items() if part not in self.places}
        if name in self.named and not new:
            return  # the same part of several formats
        self.named.add(name)
        yield from ("", f"## `{name}`", "")
        if field.get("description"):
            yield from (_plain(field["description"]), "")
        yield from self._known(tables)
        self.places |= dict.fromkeys(new, name)
        for found in new.values():
            yield from self._table(name, found)
        for found in new.values():
            for key, inner in found["properties"].items():
                yield from self.section(f"{name}.{key}", inner)

    def _known(self, tables: Mapping[str, JsonObject]) -> Iterator[str]:
        """Refer to where tables have been described."""
        known = sorted({self.places[part] for part in tables if part in self.places})
        if known:
            yield from (f"As {', '.join(f'`{place}`' for place in known)}.", "")

    def _table(self, name: str, found: JsonObject) -> Iterator[str]:
        fields = dict(found["properties"])
        tag = next((key for key in _TAGS if "const" in fields.get(key, {})), None)
        if tag is not None:
            yield from (f'### `{name}.{tag} = "{fields.pop(tag)["const"]}"`', "")
        if found.get("description"):
            yield from (_plain(found["description"]), "")
        yield from self.rows(f"{name}.", fields, found.get("required", ()))

    def rows(
        self, prefix: str, fields: Mapping[str, JsonObject], required: Sequence[str]
    ) -> list[str]:
        """Return a Markdown table of fields; empty for none."""
        lines = []
        for name, field in fields.items():
            default = "required" if name in required else _default(field.get("default", ...))
            about = _plain(field.get("description", ""))
            kind = self.kind(field)
            lines.append(f"| `{prefix}{name}` | {kind} | {default} | {about} |".replace("  ", " "))
        return [*_COLUMNS, *lines, ""] if lines else []

    def kind(self, field: JsonObject) -> str:
        """Return the type of a field in words."""
        if self.tables(field):
            nullable = any(part.get("type") == "null" for part in field.get("anyOf", ()))
            return "section or none" if nullable else "section"
        if "$ref" in field:
            return self.kind(self.definitions[field["$ref"].rpartition("/")[2]])
        choices = field.get("oneOf") or field.get("anyOf")
        if choices:
            return " or ".join(dict.fromkeys(self.kind(choice) for choice in choices))
        if "const" in field or "enum" in field:
            return ", ".join(_default(value) for value in field.get("enum", [field.get("const")]))
        return self._plain_kind(field)

    def _plain_kind(self, field: JsonObject) -> str:
        name = str(field.get("type", "any"))
        if name == "array":
            return f"list of {self.kind(field['items'])}" if "items" in field else "list"
        if name == "object":
            inner = field.get("additionalProperties")
            return f"table of {self.kind(inner)}" if isinstance(inner, dict) else "table"
        bounds = [f"{sign} {field[key]}" for key, sign in _BOUNDS.items() if key in field]
        return " ".join([_WORDS.get(name, name), *bounds[:1], *(f"and {b}" for b in bounds[1:])])


def _default(value: Any) -> str:
    """Return a value in TOML; nothing for a section, whose own fields have defaults."""
    if value is ... or isinstance(value, dict):
        return "" if value is ... or value else "`{}`"
    return "none" if value is None else f"`{json.dumps(value)}`"


def _plain(text: str) -> str:
    """Return a docstring as one line of Markdown."""
    return " ".join(text.replace("``", "`").replace("|", "\\|").split())
