"""Which column of a log holds what, by names and values."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from distrib.data.logs.columns import TimeUnit
from distrib.data.logs.parse_values import parse_numbers, parse_times
from distrib.errors import DataError

Sample = Mapping[str, Sequence[Any]]
"""Some values of each column, as text or typed; None for no value."""

_USER = (
    "user", "customer", "account", "member", "reviewer", "visitor", "client", "profile", "person",
    "player", "buyer", "shopper", "subscriber", "steam", "patient", "student", "author", "session",
    "uid", "guest", "household", "device",
)  # fmt: skip
_ITEM = (
    "item", "product", "article", "sku", "parentasin", "asin", "movie", "book", "isbn", "business",
    "video", "anime", "track", "song", "artist", "game", "app", "venue", "poi", "place",
    "restaurant", "recipe", "beer", "news", "content", "joke", "course", "offer", "listing",
    "location", "page", "film", "show", "episode", "brand", "iid", "url", "title", "name",
)  # fmt: skip
_RATING = (
    "rating", "stars", "star", "score", "overall", "rate", "grade", "isrecommended", "recommend",
    "votedup", "liked", "like", "label", "preference", "feedback",
)  # fmt: skip
_COUNT = ("weight", "count", "plays", "playcount", "listens", "quantity", "qty", "hours", "clicks")
_TIME = (
    "timestamp", "time", "ts", "datetime", "date", "createdat", "created", "eventtime",
    "unixreviewtime", "reviewtime", "tdat", "dt", "day", "at", "when", "timems", "orderdate",
)  # fmt: skip
_CLOCKS = frozenset({"timestamp", "time", "ts"})
_EVENT = ("event", "eventtype", "action", "behavior", "behaviortype", "interaction", "type")
_FORMATS = (
    "%a %b %d %H:%M:%S %z %Y", "%m/%d/%Y", "%d/%m/%Y", "%m/%d/%Y %H:%M", "%d/%m/%Y %H:%M",
    "%m/%d/%Y %H:%M:%S", "%d/%m/%Y %H:%M:%S", "%d.%m.%Y", "%d.%m.%Y %H:%M", "%Y/%m/%d",
    "%Y/%m/%d %H:%M:%S", "%m %d, %Y", "%b %d, %Y", "%B %d, %Y", "%d-%m-%Y", "%d %b %Y", "%Y%m%d",
    "%Y%m%d%H%M%S",
)  # fmt: skip
_UNITS: tuple[tuple[float, TimeUnit], ...] = ((1e17, "ns"), (1e14, "us"), (1e11, "ms"), (1e8, "s"))
_MOST_PARSED = 0.95
_LATEST_NS = 1e19
_MOST_LEVELS = 21
_MOST_EVENTS = 20
_MARKS = frozenset({"\\N", "NULL", "null", "NA", "N/A", "nan", "NaN", "None", "-", "?"})


class Moment(NamedTuple):
    """How a column holds times."""

    unit: TimeUnit = "s"
    form: str | None = None
    is_typed: bool = False
    is_ambiguous: bool = False
    """Whether day and month may be exchanged."""


class Roles(NamedTuple):
    """What the columns of a log hold."""

    user: str
    item: str
    rating: str | None
    time: str | None
    event: str | None
    moment: Moment
    doubts: tuple[str, ...]
    """What to check."""

    has_named_ids: bool = True
    """Whether names show which columns are ids."""


def roles_of(sample: Sample, given: Mapping[str, str], *, is_named: bool) -> Roles | None:
    """Find the columns.

    Args:
        sample: Of the log.
        given: Columns that are known, by what they hold.
        is_named: Whether the names are the log's own, not made up.

    Returns:
        The roles; None if no two columns can be user and item.

    Raises:
        DataError: A given column is not there.
    """
    absent = [name for name in given.values() if name not in sample]
    if absent:
        raise DataError(f"columns {absent} are not in the log, which has {list(sample)}")
    moments = {name: found for name in sample if (found := _moment_in(sample, name, is_named))}
    left, doubts = [name for name in sample if name not in given.values()], list[str]()
    user = given.get("user") or (_named(left, _USER) if is_named else None)
    left = [name for name in left if name != user]
    item = given.get("item") or (_named(left, _ITEM) if is_named else None)
    left = [name for name in left if name != item]
    time = given.get("time") or _time_of(left, moments, is_named=is_named)
    left = [name for name in left if name != time]
    rating = given.get("rating") or _rating_of(sample, left, is_named=is_named)
    left = [name for name in left if name != rating]
    if rating is not None and not is_named:
        doubts.append("a column of few numbers is taken for the rating, since there is no header")
    more: list[str] = []
    if user is None or item is None:
        ids = sorted(left, key=lambda name: not _is_id(sample[name]))
        user, item, more = _filled(user, item, [n for n in sample if n in ids[:2]])
        if more and is_named:
            doubts.append(f"columns {' and '.join(more)} are taken for ids by their values alone")
        elif more:
            doubts.append("the first id column is taken for the user, since there is no header")
    if user is None or item is None or (more and not _repeats(sample, (user, item))):
        return None
    moment = moments.get(time or "", Moment())
    if moment.is_ambiguous:
        doubts.append(f"column {time}: day and month may be exchanged")
    event = _named([n for n in left if _is_event(sample[n])], _EVENT)
    return Roles(user, item, rating, time, event, moment, tuple(doubts), not more)


def _time_of(left: Sequence[str], moments: Mapping[str, Moment], *, is_named: bool) -> str | None:
    """Return the column of times: by its name, else the only one that holds any."""
    found = [name for name in left if name in moments]
    if not is_named:
        return next((name for name in reversed(left[2:]) if name in moments), None)
    return _named(found, _TIME) or (found[0] if len(found) == 1 else None)


def _repeats(sample: Sample, names: Iterable[str]) -> bool:
    """Return whether a user or item occurs twice, as it does in any log."""
    return any(len({*known}) < len(known) for known in (filled(sample[name]) for name in names))


def _filled(
    user: str | None, item: str | None, ids: list[str]
) -> tuple[str | None, str | None, list[str]]:
    ids = [name for name in ids if name not in {user, item}]
    used = []
    if user is None and ids:
        user = ids.pop(0)
        used.append(user)
    if item is None and ids:
        item = ids.pop(0)
        used.append(item)
    return user, item, used


def _named(names: Iterable[str], known: Sequence[str]) -> str | None:
    """Return the column whose name fits best; earlier words, and whole names, fit better."""
    best: tuple[tuple[int, int], str] | None = None
    for name in names:
        words = [re.sub(r"[^a-z0-9]", "", part.lower()) for part in (name, *name.split("."))]
        for rank, word in enumerate(known):
            fit = min((_fit(text, word) for text in words), default=9)
            if fit < 9 and (best is None or (fit, rank) < best[0]):
                best = ((fit, rank), name)
    return None if best is None else best[1]


def _fit(text: str, word: str) -> int:
    """Return how well a name fits a word: 0 is it, 9 is not."""
    if text in {word, f"{word}id", f"{word}s", f"{word}key", f"{word}no", f"{word}hash"}:
        return 0
    if len(word) > 3 and (text.startswith(word) or text.endswith((word, f"{word}id"))):
        return 1
    return 9


def numbers_of(values: Sequence[Any], decimal: str = ".") -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return values as numbers, NaN where they are none."""
    texts = [None if value is None else str(value).replace(decimal, ".") for value in values]
    return np.asarray(parse_numbers(pa.chunked_array([pa.array(texts, pa.string())]), pa.float64()))


def filled(values: Sequence[Any]) -> list[Any]:
    """Return the values that are there."""
    return [v for v in values if v is not None and str(v).strip() and str(v) not in _MARKS]


def marks_in(sample: Sample, roles: Roles) -> tuple[str, ...]:
    """Return what stands for no value in the columns that are read."""
    names = [n for n in (roles.user, roles.item, roles.rating, roles.time) if n is not None]
    return tuple(sorted({str(v) for name in names for v in sample[name] if str(v) in _MARKS}))


def _moment_in(sample: Sample, name: str, is_named: bool) -> Moment | None:
    found = moment_of(sample[name])
    if found is None and is_named and name.lower() in _CLOCKS and _is_number(sample[name]):
        return Moment("s")  # a count of seconds, or of steps
    return found


def moment_of(values: Sequence[Any]) -> Moment | None:
    """Return how a column holds times; None if it holds none."""
    known = filled(values)
    if not known or isinstance(known[0], bool | list | dict):
        return None
    if hasattr(known[0], "isoformat"):
        return Moment(is_typed=True)
    numbers = numbers_of(known)
    if np.isfinite(numbers).mean() >= _MOST_PARSED:
        middle = float(np.nanmedian(numbers))
        units = [unit for least, unit in _UNITS if middle >= least]
        return Moment(units[0]) if units and middle < _LATEST_NS else None
    return _dates_of(pa.chunked_array([pa.array([str(v) for v in known])]))


def _dates_of(texts: pa.ChunkedArray) -> Moment | None:
    if parse_times(texts, "iso8601")[1].mean() >= _MOST_PARSED:
        return Moment("iso8601")
    fitting = [form for form in _FORMATS if _parses(texts, form)]
    swapped = {form.replace("%m/%d", "%d/%m") for form in fitting if form.startswith("%m/%d")}
    return Moment(form=fitting[0], is_ambiguous=bool(swapped & {*fitting})) if fitting else None


def _parses(texts: pa.ChunkedArray, form: str) -> bool:
    series = pd.Series(texts.to_pylist(), dtype=object)
    parsed = pd.to_datetime(series, format=form, errors="coerce", utc=True)
    return bool(parsed.notna().mean() >= _MOST_PARSED)


def _rating_of(sample: Sample, names: Sequence[str], *, is_named: bool) -> str | None:
    numeric = [name for name in names if _is_number(sample[name])]
    if is_named:
        return _named(numeric, _RATING) or _named(numeric, _COUNT)
    few = [n for n in numeric if 2 <= len({*map(str, filled(sample[n]))}) <= _MOST_LEVELS]
    return next((name for name in few if name in names[2:]), None)


def is_count(name: str) -> bool:
    """Return whether a column counts something, by its name."""
    return _named([name], _RATING) is None and _named([name], _COUNT) is not None


def _is_number(values: Sequence[Any]) -> bool:
    known = filled(values)
    if not known or isinstance(known[0], list | dict):
        return False
    both = np.isfinite(numbers_of(known)) | np.isfinite(numbers_of(known, ","))
    return bool(both.mean() >= _MOST_PARSED)


def _is_id(values: Sequence[Any]) -> bool:
    """Return whether values may be ids: not fractions, lists or long text."""
    known = filled(values)
    if not known or isinstance(known[0], list | dict):
        return False
    numbers = numbers_of(known)
    is_fraction = np.isfinite(numbers).all() and bool((numbers % 1).any())
    return not is_fraction and max(len(str(value)) for value in known) < 200


def _is_event(values: Sequence[Any]) -> bool:
    distinct = {*map(str, filled(values))}
    return 1 < len(distinct) <= _MOST_EVENTS and not _is_number(values)
