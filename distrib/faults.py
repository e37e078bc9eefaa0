"""Faults that pydantic finds, in the words of run files and requests: which key, what to do."""

import difflib
import re
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import AliasChoices, BaseModel

from distrib.errors import excerpt
from distrib.redaction import is_secret

_WANTED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "text",
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "a table"),
}
"""What a value of another type should have been, by the names of pydantic's faults."""

_IN_JSON = {"text": "a string", "a table": "an object"}
_SUBJECT = re.compile(r"^(Value error, |(Input|String|List|Tuple|Dictionary|Value) should )")
_MUST_BE = "must be "
_LONGEST_VALUE = 200
_MOST_FAULTS = 50


class _Fault(NamedTuple):
    """A fault at one place of a document."""

    keys: tuple[str, ...]
    value: str
    """How the value is quoted; empty if it is not."""

    message: str
    is_alternative: bool
    """Whether the place may hold values of several kinds, and this is about one of them."""


class _Place(NamedTuple):
    """Where a fault is."""

    keys: tuple[str, ...]
    is_alternative: bool = False
    owner: object = None
    """Name of the model, objective, ... that the last key belongs to, if there are several."""

    near: Sequence[str] = ()
    """Known keys like an unknown one."""


def in_run_file(found: Sequence[Any], kind: type[BaseModel]) -> list[str]:
    """Describe the faults of a run file, each with its value unless that is a secret.

    Args:
        found: Faults, as pydantic lists them.
        kind: The class of the run file.

    Returns:
        One line for each place.
    """
    faults = [_in_run_file(kind, fault) for fault in found[:_MOST_FAULTS]]
    lines = [
        f"{'.'.join(fault.keys) or 'run file'}{fault.value}: {fault.message}"
        for fault in _one_a_place(faults)
    ]
    more = len(found) - _MOST_FAULTS
    return [*lines, f"and {more} more"] if more > 0 else lines


def in_request(found: Sequence[Any], body: Any, most: int = 20) -> list[str]:
    """Describe the faults of an HTTP request, without the values, which are the client's.

    Args:
        found: Faults, as FastAPI lists them: their place begins with ``body``, ``query``...
        body: The class of the body; None where there is no body.
        most: Faults described.

    Returns:
        One line for each place.
    """
    faults = [_in_request(fault, body) for fault in found[:most]]
    return [f"{'.'.join(f.keys)}: {f.message}" for f in _one_a_place(faults)]


def _in_run_file(kind: type[BaseModel], fault: Any) -> _Fault:
    place, value = _place(kind, fault), fault.get("input")
    is_shown = fault["type"] != "missing" and not isinstance(value, dict) and bool(place.keys)
    is_shown = is_shown and not is_secret(".".join(place.keys))
    shown = f" = {excerpt(repr(value), _LONGEST_VALUE)}" if is_shown else ""
    return _Fault(place.keys, shown, _message(fault, place), place.is_alternative)


def _in_request(fault: Any, body: Any) -> _Fault:
    if fault["type"] == "json_invalid":
        return _Fault(("body",), "", f"not valid JSON ({fault['ctx']['error']})", False)
    part, *rest = fault["loc"]
    inside = {**fault, "loc": tuple(rest)}
    place = _place(body if part == "body" else None, inside)
    message = _message(inside, place)
    for word, other in _IN_JSON.items():
        message = message.replace(_MUST_BE + word, _MUST_BE + other)
    return _Fault(place.keys or (str(part),), "", message, place.is_alternative)


def _message(fault: Any, place: _Place) -> str:
    kind = fault["type"]
    if kind == "extra_forbidden":
        owner = "" if place.owner is None else f" of {place.owner!r}"
        remedy = f"did you mean {place.near[0]!r}?" if place.near else "remove it"
        return f"unknown key{owner}; {remedy}"
    if kind == "union_tag_invalid":
        return _unknown_tag(**fault["ctx"])
    if kind in _WANTED:
        return _MUST_BE + _WANTED[kind]
    return "is required; set it" if kind == "missing" else _restated(fault["msg"])


def _restated(message: str) -> str:
    """Return a message of pydantic without its subject: the key stands before it."""
    subject = _SUBJECT.match(message)
    if subject is None:
        return message
    return ("" if subject[2] is None else "must ") + message[subject.end() :]


def _unknown_tag(discriminator: str, tag: str, expected_tags: str) -> str:
    """Say which names there are in place of one that there is not."""
    known = [name.strip("'") for name in expected_tags.split(", ")]
    near = difflib.get_close_matches(tag, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    name = discriminator.strip("'")
    return f"unknown {name} {excerpt(tag)!r}; {hint}there are {', '.join(map(repr, known))}"


def _one_a_place(faults: Sequence[_Fault]) -> list[_Fault]:
    """Join what is said of one place: it may be a number or text, and is neither.

    Where a list may stand and one does, its elements are at fault and not that it is no text.
    """
    found: dict[tuple[str, ...], _Fault] = {}
    for fault in faults:
        size = len(fault.keys)
        if fault.is_alternative and any(
            len(other.keys) > size and other.keys[:size] == fault.keys for other in faults
        ):
            continue
        before = found.get(fault.keys)
        if before is None:
            found[fault.keys] = fault
        elif fault.message not in before.message:
            joined = f"{before.message} or {fault.message.removeprefix(_MUST_BE)}"
            found[fault.keys] = before._replace(message=joined)
    return list(found.values())


def _place(kind: Any, fault: Any) -> _Place:
    """Find the keys that lead to a fault.

    Pydantic's own places hold names of union members, too, which are no keys.
    """
    if kind is None:
        return _Place(tuple(map(str, fault["loc"])))
    location = list(fault["loc"])
    unknown = location.pop() if fault["type"] == "extra_forbidden" else None
    keys, reached, tag = list[str](), _alternatives(kind), None
    for part in location:
        below = _below(reached, part)
        tag = part if below is None else None
        reached = _tagged(reached, part) if below is None else below
        keys += [str(part)] if below is not None else []
    if unknown is None:
        return _Place(tuple(keys), tag is not None)
    known = {name for found in reached if _is_model(found) for name in found.model_fields}
    near = difflib.get_close_matches(str(unknown), known - {unknown}, n=1)
    owner = tag if tag in {value for found in reached for value in _names(found)} else None
    return _Place((*keys, str(unknown)), owner=owner, near=near)


def _alternatives(annotation: Any) -> list[Any]:
    """Return the members of a union, or a type alone."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [found for one in get_args(annotation) for found in _alternatives(one)]
    return [annotation]


def _below(reached: Sequence[Any], part: object) -> list[Any] | None:
    """Return what a key or index leads to; None if it is neither."""
    found = [
        field.annotation
        for one in reached
        if _is_model(one)
        for name, field in one.model_fields.items()
        if part == name or _is_alias(field.validation_alias, part)
    ]
    for one in reached:
        origin, arguments = get_origin(one), get_args(one)
        if not isinstance(origin, type):
            continue
        if isinstance(part, int) and issubclass(origin, Sequence):
            found += [inner for inner in arguments if inner is not ...]
        elif issubclass(origin, Mapping):
            found.append(arguments[1])
    return [inner for one in found for inner in _alternatives(one)] if found else None


def _tagged(reached: list[Any], tag: object) -> list[Any]:
    """Return the members of a union that a tag names; all, if it is no tag."""
    return [one for one in reached if tag in _names(one)] or reached


def _names(found: Any) -> list[Any]:
    """Return the literal values of a model's fields, among them its tag."""
    fields = found.model_fields.values() if _is_model(found) else ()
    literals = [field.annotation for field in fields if get_origin(field.annotation) is Literal]
    return [value for literal in literals for value in get_args(literal)]


def _is_alias(alias: object, part: object) -> bool:
    return isinstance(alias, AliasChoices) and part in alias.choices


def _is_model(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, BaseModel)
