"""Typed, strict configuration: reads TOML into a frozen object, reports all faults at once."""

import hashlib
import json
import re
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from distrib.errors import ConfigError, DataError, excerpt
from distrib.faults import in_run_file
from distrib.redaction import hide, is_secret
from distrib.renamed import Change, RenamedWarning, renamed
from distrib.terminal import result_lines

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
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class Record(BaseModel):
    """Base of JSON that one job writes and another reads: frozen, ignores unknown keys."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    def __str__(self) -> str:
        """Return the fields as lines for people, without what is nested deep."""
        return result_lines(self.to_json())

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        """Show in a notebook what `print` shows."""
        printer.text(str(self))

    def to_json(self) -> JsonObject:
        """Return the fields that were set, as JSON."""
        found: JsonObject = self.model_dump(mode="json", exclude_unset=True)
        return found


def _plain(name: str) -> str:
    parts = name.split("/")
    is_inside = all(part not in ("", ".", "..") for part in parts)
    if not is_inside or {"\\", "\0", ":"} & {*name}:
        raise ValueError(f"{excerpt(name)!r} is not the name of a file inside its folder")
    return name


PlainName = Annotated[str, AfterValidator(_plain)]
"""Name of a file or folder inside the folder whose manifest names it; never leads outside."""

ConfigT = TypeVar("ConfigT", bound=Config)
RecordT = TypeVar("RecordT", bound=Record)


_DIGEST = "digest"


def sealed(document: JsonObject) -> JsonObject:
    """Add a digest of its own to a document, so that any later change shows when it is read.

    Args:
        document: JSON.

    Returns:
        The document with one more key.
    """
    return {**document, _DIGEST: _digest_of(document)}


def unsealed(content: Any, where: object) -> Any:
    """Check a document against its digest, if it has one; those of earlier versions do not.

    Args:
        content: The JSON document.
        where: Path or URL of the file.

    Returns:
        The document without the digest.

    Raises:
        DataError: It was changed after it was written.
    """
    if not isinstance(content, dict) or _DIGEST not in content:
        return content
    document = {key: value for key, value in content.items() if key != _DIGEST}
    if content[_DIGEST] != _digest_of(document):
        raise DataError(
            f"{where}: its content differs from its digest; the file was damaged or changed; "
            "restore it, or start in a new folder"
        )
    return document


def _digest_of(document: JsonObject) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def read_record(kind: type[RecordT], content: Any, where: object) -> RecordT:
    """Read what another job wrote; see `unsealed`.

    Args:
        kind: What it is.
        content: The JSON document.
        where: Path or URL of the file.

    Returns:
        The record.

    Raises:
        DataError: The document is of another shape, or differs from its digest.
    """
    try:
        return kind.model_validate(unsealed(content, where))
    except ValidationError as error:
        fault = error.errors(include_input=False)[0]
        place = ".".join(map(str, fault["loc"]))
        raise DataError(
            f"{where}: {f'{place}: ' if place else ''}{fault['msg']}; the file was damaged or "
            "changed; restore it, or start in a new folder"
        ) from error


_VARIABLE = re.compile(r"\$\{(\w+)\}")
_LONGEST_VALUE = 200
_WRITE_ONE = "write one with distrib init LOG"


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
            f"run file {path} does not exist; pass an existing file, or {_WRITE_ONE}"
        ) from None
    except OSError as error:
        raise ConfigError(f"run file {path} cannot be read: {error}; pass a TOML file") from error
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, or numbers without an end
        raise ConfigError(
            f"run file {excerpt(str(path), _LONGEST_VALUE)} is not valid TOML: "
            f"{excerpt(str(error), _LONGEST_VALUE)}; {_WRITE_ONE}"
        ) from error
    if not raw and not overrides:
        raise ConfigError(f"run file {path} is empty; {_WRITE_ONE}")
    faults: list[str] = []
    raw = _with_overrides(raw, overrides, faults, where=str(path))
    known = {} if environment is None else environment
    for name, value in known.items():
        if is_secret(name) and not value.startswith("/"):  # a path such as SSH_AUTH_SOCK
            hide(value)
    try:
        _hide_secrets(raw)
        raw = _substitute(raw, known, faults, where="")
        _hide_secrets(raw)
    except RecursionError:
        raise ConfigError(f"run file {path}: nested too deep; it has few levels") from None
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
    except RecursionError:
        found.append("nested too deep; a run file has few levels")
    except ValidationError as error:
        found += in_run_file(error.errors(), kind)
    if found or config is None:
        listing = "\n".join(f"  {fault}" for fault in found)
        raise ConfigError(f"{where}: {len(found)} fault(s)\n{listing}")
    return config


def _hide_secrets(node: Any, *, is_inside: bool = False) -> None:
    """Remember the values of keys that hold secrets, at any depth."""
    if isinstance(node, dict):
        for key, value in node.items():
            _hide_secrets(value, is_inside=is_inside or is_secret(key))
    elif isinstance(node, list):
        for value in node:
            _hide_secrets(value, is_inside=is_inside)
    elif is_inside and not (isinstance(node, str) and _VARIABLE.search(node)):
        hide(node)


def _with_overrides(
    raw: JsonObject, overrides: Sequence[str], faults: list[str], where: str
) -> JsonObject:
    """Apply overrides; earlier names become the present ones, with a warning."""
    raw, changes = renamed(raw)
    for text in overrides:
        changes += _apply(raw, text, faults)
    for change in dict.fromkeys(changes):
        hint = "distrib config migrate rewrites run files"
        warnings.warn(f"{where}: {change.sentence}; {hint}", RenamedWarning, stacklevel=3)
    return raw


def _apply(raw: JsonObject, text: str, faults: list[str]) -> list[Change]:
    """Set one value; a table replaces the existing table instead of merging into it."""
    name, changes = text.partition("=")[0], list[Change]()
    try:
        value, changes = renamed(tomllib.loads(text))
        place, _ = renamed(tomllib.loads(f"{name}= 0"))
    except (ValueError, RecursionError):
        value = place = {}
    if not value or not place:
        shown = f"{name}=..." if "=" in text else text
        faults.append(
            f"--set {excerpt(shown)}: not valid TOML; write section.key=value with the whole in "
            "single quotes and text in double ones, as --set 'data.source.path=\"events/\"'"
        )
        return []
    target: Any = raw
    while isinstance(target, dict):
        key = next(iter(place))
        value, place = value[key], place[key]
        if not isinstance(place, dict):
            target[key] = value
            return changes
        target = target.setdefault(key, {})
    faults.append(f"--set {excerpt(name)}: {excerpt(repr(target))} is a value, not a section")
    return []


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
    wanted = _VARIABLE.findall(node)
    shown = "" if is_secret(where) else f" = {excerpt(node)!r}"
    for name in wanted:
        value = environment.get(name, "")
        if name not in environment:
            faults.append(f"{where}{shown}: environment variable {name} is not set")
        elif any("\ud800" <= character <= "\udfff" for character in value):
            faults.append(f"{where}: environment variable {name} is not valid UTF-8; correct it")
            return ""
    return _VARIABLE.sub(lambda match: environment.get(match[1], match[0]), node)
