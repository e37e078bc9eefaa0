"""Dotted names: fields inside objects of JSON and structs of Parquet."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from distrib.data.arrow import whole, without_views


def part_of(found: Mapping[str, Any], name: str) -> Any:
    """Return a value inside an object; None if there is none.

    Args:
        found: The object.
        name: Of a field; dots reach into objects unless a field has them in its name.

    Returns:
        The value.
    """
    if name in found or "." not in name:
        return found.get(name)
    head, _, rest = name.partition(".")
    inner = found.get(head)
    return part_of(inner, rest) if isinstance(inner, Mapping) else None


def field_of(table: pa.Table, name: str) -> pa.Array | pa.ChunkedArray:
    """Return a column of a table, or a field inside a struct column.

    Args:
        table: With the column.
        name: Of a column; dots reach into structs unless a column has them in its name.

    Returns:
        The values; null where a struct is.
    """
    if name in table.column_names:
        return without_views(table[name])
    head, *rest = name.split(".")
    column = whole(table[head])
    for part in rest:
        column = pc.struct_field(column, part)
    return without_views(column)


def leaf_names(schema: pa.Schema) -> tuple[str, ...]:
    """Return the names of all columns, and the dotted ones of fields inside structs."""
    found = []
    for field in schema:
        found.append(field.name)
        if pa.types.is_struct(field.type):
            found += [f"{field.name}.{name}" for name in leaf_names(pa.schema(list(field.type)))]
    return tuple(found)


def type_of(schema: pa.Schema, name: str) -> pa.DataType:
    """Return the type of a column, or of a field inside a struct column."""
    if name in schema.names:
        return schema.field(name).type
    head, _, rest = name.partition(".")
    return type_of(pa.schema(list(schema.field(head).type)), rest)
