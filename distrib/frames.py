"""Tables of callers: pandas, Polars, Arrow and plain Python, read and returned in the same kind."""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa

from distrib.data.arrow import dense_ids, whole, without_views
from distrib.errors import DataError
from distrib.ids import IdKind, id_column

Id: TypeAlias = int | str
History: TypeAlias = Sequence[Id] | Mapping[Id, float]
"""Items of one user, oldest first; or a rating for each item."""

Frame: TypeAlias = Any
"""A pandas or Polars data frame, an Arrow table, or anything that exports an Arrow stream."""

AnyHistories: TypeAlias = Frame | Mapping[Id, History] | History

_LISTS = {"item": "items", "rating": "ratings", "time": "times"}
_ONE = "user"
_NAMES = ("user", "item", "rating", "time", "items", "ratings", "times", "candidates")


class Given(NamedTuple):
    """What a caller gave, as a table of histories, and how to answer in kind."""

    table: pa.Table
    """``user``, ``items`` and, where they were given, ``ratings``, ``times``, ``candidates``."""

    answer: Callable[[pa.Table], Any]
    """Converts a table with a column ``user``: to a frame, to rows by user, or to rows."""


def read_given(data: AnyHistories, columns: Mapping[str, str]) -> Given:
    """Read histories of any kind.

    Args:
        data: A frame with one row per interaction (``user``, ``item``, optionally ``rating`` and
            ``time``) or per user (``user``, ``items``, optionally ``ratings``, ``times``,
            ``candidates``); a dictionary of histories by user; or the history of one user.
        columns: The caller's name of each of these columns, where it is another.

    Returns:
        The histories.

    Raises:
        DataError: It is none of these, or lacks a column.
    """
    frame = to_arrow(data)
    if frame is not None:
        return Given(_by_user(_renamed(frame, columns)), lambda found: from_arrow(found, data))
    if isinstance(data, Mapping) and not _is_rated(data):
        return Given(_of_users(data), lambda found: _by_key(found, list(data)))
    if isinstance(data, Mapping) or _is_listed(data):
        return Given(_of_users({_ONE: data}), _of_one)
    hint = "; call collect() first" if type(data).__name__ == "LazyFrame" else ""
    raise DataError(
        f"histories are {type(data).__name__}{hint}; give a pandas, Polars or Arrow table, a "
        "dictionary of histories by user, or a list of item ids"
    )


def to_arrow(data: object) -> pa.Table | None:
    """Return a frame as an Arrow table; None if it is not a frame."""
    if isinstance(data, pa.Table):
        return data
    if isinstance(data, pa.RecordBatch):
        return pa.Table.from_batches([data])
    if _library(data) == "pandas" and hasattr(data, "columns"):
        try:
            return pa.Table.from_pandas(data, preserve_index=False)
        except pa.ArrowException as error:
            raise DataError(
                f"a column has values of several types ({error.args[-1]}); convert it"
            ) from error
    has_columns = hasattr(type(data), "columns") or hasattr(type(data), "schema")
    is_frame = hasattr(data, "__arrow_c_stream__") and has_columns
    return _without_views(pa.table(data)) if is_frame else None


def _without_views(table: pa.Table) -> pa.Table:
    """Return a table whose strings Arrow can pick from, which it cannot of Polars' views."""

    def plain(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_string_view(kind):
            return pa.large_string()
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            like = pa.list_ if pa.types.is_list(kind) else pa.large_list
            return like(plain(kind.value_type))
        return kind

    fields = [pa.field(field.name, plain(field.type)) for field in table.schema]
    return table.cast(pa.schema(fields))


def from_arrow(table: pa.Table, like: object) -> Any:
    """Return a table as a frame of the library that ``like`` is from; Arrow for all others."""
    library = _library(like)
    if library == "pandas":
        return table.to_pandas()
    if library == "polars":
        import polars  # its caller has it

        return polars.from_arrow(table)
    return table


def _is_listed(data: object) -> bool:
    """Return whether this is a list of ids: of Python, NumPy, pandas or Polars."""
    if isinstance(data, str | bytes):
        return False
    is_series = _library(data) in {"pandas", "polars"} and hasattr(data, "to_list")
    return is_series or isinstance(data, Sequence | Set | np.ndarray)


def _library(data: object) -> str:
    return type(data).__module__.partition(".")[0]


def _is_rated(data: Mapping[Any, Any]) -> bool:
    """Return whether this is one history with ratings, rather than histories by user."""
    first = next(iter(data.values()), None)
    return isinstance(first, int | float | np.number)


def _renamed(table: pa.Table, columns: Mapping[str, str]) -> pa.Table:
    unknown = [name for name in columns if name not in _NAMES]
    if unknown:
        raise DataError(f"columns: {unknown} is none of {list(_NAMES)}")
    absent = [name for name in columns.values() if name not in table.column_names]
    if absent:
        raise DataError(f"columns: {absent} are not in the table, which has {table.column_names}")
    back = {theirs: ours for ours, theirs in columns.items()}
    taken = {*columns} - {*columns.values()}  # a column of that name means something else
    kept = table.select([name for name in table.column_names if name not in taken])
    return kept.rename_columns([back.get(name, name) for name in kept.column_names])


def _by_user(table: pa.Table) -> pa.Table:
    """Return one row per user, in the order in which users first appear."""
    names = {*table.column_names}
    if "items" in names:
        return table
    absent = sorted({"user", "item"} - names)
    if absent:
        raise DataError(
            f"the table lacks column(s) {absent}; it has {table.column_names}; name yours, such as "
            "columns={'user': 'account', 'item': 'sku'}"
        )
    table = pa.table({name: without_views(table[name]) for name in table.column_names})
    if table["user"].null_count:
        raise DataError(f"column 'user' has {table['user'].null_count} null value(s); remove them")
    rank_N = dense_ids(table["user"])
    first_U = np.full(int(rank_N.max(initial=-1)) + 1, len(rank_N))
    np.minimum.at(first_U, rank_N, np.arange(len(rank_N)))
    order_N = np.argsort(first_U[rank_N], kind="stable")
    row_U = np.sort(first_U)
    lengths_U = np.bincount(rank_N, minlength=len(first_U))[rank_N[row_U]]
    pointer_P = pa.array(np.concatenate([[0], lengths_U.cumsum()]).astype(np.int64))
    ordered = table.take(pa.array(order_N))
    columns = {"user": table["user"].take(pa.array(row_U))}
    for name, plural in _LISTS.items():
        if name in names:
            columns[plural] = pa.LargeListArray.from_arrays(pointer_P, whole(ordered[name]))
    return pa.table(columns)


def _of_users(data: Mapping[Any, Any]) -> pa.Table:
    items, ratings = [], []
    for user, history in data.items():
        if not isinstance(history, Mapping) and not _is_listed(history):
            raise DataError(f"the history of {user!r} is {type(history).__name__}; give a list")
        items.append(list(history))
        ratings.append(list(history.values()) if isinstance(history, Mapping) else None)
    rated = sum(part is not None for part in ratings)
    if rated not in {0, len(ratings)}:
        raise DataError(f"{rated} of {len(ratings)} histories have ratings; give all or none")
    try:
        found = {"user": pa.array(list(data)), "items": _lists(items)}
        if rated:
            found["ratings"] = pa.array(ratings, pa.list_(pa.float64()))
    except pa.ArrowException:
        raise DataError("ids are of several types; give all integers or all strings") from None
    return pa.table(found)


def _lists(items: list[list[Id]]) -> pa.Array:
    flat = pa.array([item for part in items for item in part])
    pointer = np.concatenate([[0], np.cumsum([len(part) for part in items])]).astype(np.int64)
    return pa.LargeListArray.from_arrays(pa.array(pointer), flat)


def _by_key(table: pa.Table, users: list[Any]) -> dict[Any, list[dict[str, Any]]]:
    """Return the rows of each user, without its id."""
    found: dict[Any, list[dict[str, Any]]] = {user: [] for user in users}
    for row in table.to_pylist():
        found.setdefault(row.pop("user"), []).append(row)
    return found


def _of_one(table: pa.Table) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = table.drop_columns(["user"]).to_pylist()
    return found


def pairs_of(users: pa.Array, targets: Any, columns: Mapping[str, str]) -> pa.Table:
    """Return pairs to predict.

    Args:
        users: Whose histories are known.
        targets: A table of pairs, a dictionary of items by user, or items for every user.
        columns: The caller's names of ``user`` and ``item``, if the table has them.

    Returns:
        ``user`` and ``item``.

    Raises:
        DataError: A column is missing.
    """
    frame = to_arrow(targets)
    if frame is None and not isinstance(targets, Mapping):
        items = pa.array(list(targets))
        every = pa.array(np.repeat(np.arange(len(users)), len(items)))
        again = pa.array(np.tile(np.arange(len(items)), len(users)))
        return pa.table({"user": users.take(every), "item": items.take(again)})
    if frame is None:
        flat = [(user, item) for user, items in targets.items() for item in items]
        frame = pa.table({"user": [user for user, _ in flat], "item": [item for _, item in flat]})
    names = {
        ours: columns[ours] if columns.get(ours) in frame.column_names else ours
        for ours in ("user", "item")
    }
    absent = [name for name in names.values() if name not in frame.column_names]
    if absent:
        raise DataError(f"targets lack column(s) {absent}; they have {frame.column_names}")
    kind: IdKind = "int" if pa.types.is_integer(users.type) else "string"
    user = id_column(frame[names["user"]], kind).ids.cast(users.type)
    return pa.table({"user": user, "item": frame[names["item"]]})


def listed(value: Any) -> Any:
    """Return ids of any list as JSON holds them, and all else as it is."""
    if hasattr(value, "to_list"):
        value = value.to_list()
    if isinstance(value, Sequence | Set | np.ndarray) and not isinstance(value, str):
        return [part.item() if isinstance(part, np.generic) else part for part in value]
    return value
