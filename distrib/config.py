"""Typed, strict configuration: reads TOML into a frozen object, reports all faults at once."""

import difflib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from distrib.errors import ConfigError

JsonObject = dict[str, Any]
"""A JSON document without a schema."""


class Config(BaseModel):
    """Base of every configuration: frozen, strict, rejects unknown keys.

    The string literal under a field is its documentation and its entry in the JSON schema.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
    )


class Record(BaseModel):
    """Base of JSON that one job writes and another reads: frozen, ignores unknown keys."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    def to_json(self) -> JsonObject:
        """Return the fields that were set, as JSON."""
        found: JsonObject = self.model_dump(mode="json", exclude_unset=True)
        return found


ConfigT = TypeVar("ConfigT", bound=Config)

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_SECRET = re.compile(r"tok|secret|passw|credential", re.IGNORECASE)
"""Keys (misspelled ones too) whose values never appear in messages."""


def load(
    kind: type[ConfigT],
    path: str | Path,
    *,
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> ConfigT:
    """Read a TOML run file, apply ``a.b=value`` overrides, and validate the result.

    ``${NAME}`` inside a string is replaced by the value in ``environment``.

    Args:
        kind: The configuration to build.
        path: The TOML file.
        overrides: Assignments in TOML syntax; they take precedence over the file.
        environment: Values for ``${NAME}``.

    Returns:
        The validated configuration.

    Raises:
        ConfigError: The file is missing or not valid TOML, or a key or value is invalid; lists all
            faults.
    """
    try:
        raw = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"run file {path} does not exist; pass an existing file, e.g. configs/demo.toml"
        ) from None
    except OSError as error:
        raise ConfigError(f"run file {path} cannot be read: {error}; pass a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"run file {path} is not valid TOML: {error}") from error
    faults: list[str] = []
    for text in overrides:
        _apply(raw, text, faults)
    known = {} if environment is None else environment
    raw = _substitute(raw, known, faults, where="")
    return checked(kind, raw, where=str(path), faults=faults)


def checked(
    kind: type[ConfigT], document: Mapping[str, Any], *, where: str, faults: Sequence[str] = ()
) -> ConfigT:
    """Build a configuration from a nested document.

    Args:
        kind: The configuration to build.
        document: Its fields, as in JSON.
        where: Prefix of the error message.
        faults: Faults found earlier.

    Returns:
        The validated configuration.

    Raises:
        ConfigError: A key or value is invalid; lists all faults.
    """
    found, config = list(faults), None
    try:
        config = kind.model_validate_json(json.dumps(document, default=str))
    except ValidationError as error:
        found += [_describe(kind, fault) for fault in error.errors()]
    if found or config is None:
        listing = "\n".join(f"  {fault}" for fault in found)
        raise ConfigError(f"{where}: {len(found)} fault(s)\n{listing}")
    return config


def _apply(raw: JsonObject, text: str, faults: list[str]) -> None:
    """Set one value; a table replaces the existing table instead of merging into it."""
    try:
        value: Any = tomllib.loads(text)
        place: Any = tomllib.loads(text.partition("=")[0] + "= 0")
    except tomllib.TOMLDecodeError:
        name = text.partition("=")[0]
        shown = f"{name}=..." if _SECRET.search(name) else text
        faults.append(f"--set {shown}: not valid TOML; write section.key=value, quote strings")
        return
    target: Any = raw
    while isinstance(target, dict):
        key = next(iter(place))
        value, place = value[key], place[key]
        if not isinstance(place, dict):
            target[key] = value
            return
        target = target.setdefault(key, {})
    faults.append(f"--set {text}: {target!r} is a value, not a section")


def _substitute(node: Any, environment: Mapping[str, str], faults: list[str], where: str) -> Any:
    if isinstance(node, dict):
        return {
            key: _substitute(value, environment, faults, f"{where}.{key}".lstrip("."))
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [_substitute(value, environment, faults, where) for value in node]
    if not isinstance(node, str):
        return node
    unset = [name for name in _VARIABLE.findall(node) if name not in environment]
    faults += [f"{where} = {node!r}: environment variable {name} is not set" for name in unset]
    return _VARIABLE.sub(lambda match: environment.get(match[1], match[0]), node)


def _describe(kind: type[BaseModel], fault: Any) -> str:
    location = [str(part) for part in fault["loc"]]
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "missing":
        message = "is required; set it"
    if fault["type"] == "extra_forbidden":
        known = [key for key in _keys_beside(kind, location) if key != location[-1]]
        near = difflib.get_close_matches(location[-1], known, n=1)
        message = "unknown key" + (f"; did you mean {near[0]!r}?" if near else "; remove it")
    value = fault.get("input")
    is_shown = fault["type"] != "missing" and not isinstance(value, dict)
    is_shown = is_shown and not _SECRET.search(".".join(location))
    shown = f" = {value!r}" if is_shown else ""
    return f"{'.'.join(location) or 'run file'}{shown}: {message}"


def _keys_beside(kind: type[BaseModel], location: Sequence[str]) -> list[str]:
    """Return the valid keys at the last part of ``location``."""
    candidates: list[type[BaseModel]] = [kind]
    for part in location[:-1]:
        below: list[type[BaseModel]] = []
        for candidate in candidates:
            field = candidate.model_fields.get(part)
            if field is None:
                below.append(candidate)  # the tag of a union, not a key
            else:
                below += _models_in(field.annotation)
        candidates = below
    return [name for candidate in candidates for name in candidate.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
