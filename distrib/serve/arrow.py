"""Tables as Arrow streams, and back."""

import io

import pyarrow as pa

ARROW = "application/vnd.apache.arrow.stream"
"""Media type."""


def table_of(content: bytes) -> pa.Table:
    """Read an Arrow stream.

    Args:
        content: The stream.

    Returns:
        The table.

    Raises:
        ValueError: It is none, or damaged.
    """
    try:
        with pa.ipc.open_stream(io.BytesIO(content)) as reader:
            table = reader.read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"the body is no Arrow stream: {error}") from error
    return table


def stream_of(table: pa.Table) -> bytes:
    """Write a table as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
