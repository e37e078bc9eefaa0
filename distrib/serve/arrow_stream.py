"""Arrow IPC streams of tables."""

import io
import struct

import pyarrow as pa

ARROW = "application/vnd.apache.arrow.stream"
"""Media type."""

_HEADER_TYPE, _HEADER, _COMPRESSION = 1, 2, 3
_RECORD_BATCH = 3


def table_of(content: bytes) -> pa.Table:
    """Read an Arrow stream.

    Compressed streams are refused: a few bytes could expand to more than the memory.

    Args:
        content: The stream.

    Returns:
        The table.

    Raises:
        ValueError: The content is not a valid Arrow stream, or compressed.
    """
    try:
        _require_plain(content)
        with pa.ipc.open_stream(io.BytesIO(content)) as reader:
            table = reader.read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, struct.error, IndexError) as error:
        raise ValueError(f"the body is not a valid Arrow stream: {error}") from error
    return table


def stream_of(table: pa.Table) -> bytes:
    """Write a table as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _require_plain(content: bytes) -> None:
    """Refuse compressed and dictionary-encoded messages before reading any data."""
    for message in pa.ipc.MessageReader.open_stream(io.BytesIO(content)):
        if message.type == "record batch" and _is_compressed(message.metadata.to_pybytes()):
            raise ValueError("the body is a compressed Arrow stream; send it uncompressed")
        if message.type == "dictionary":
            raise ValueError("the body has dictionary-encoded columns; send plain columns")


def _is_compressed(metadata: bytes) -> bool:
    """Return whether a message's flatbuffer describes a record batch with compressed buffers.

    Source: Arrow columnar format, Message.fbs: field 2 of a message is its header, field 3 of a
    record batch its compression.
    """
    (message,) = struct.unpack_from("<I", metadata, 0)
    header = _field(metadata, message, _HEADER)
    if header is None:
        return False
    (offset,) = struct.unpack_from("<I", metadata, header)
    return _field(metadata, header + offset, _COMPRESSION) is not None


def _field(buffer: bytes, table: int, index: int) -> int | None:
    """Return the offset of a field in a flatbuffer table, None if it is absent."""
    (back,) = struct.unpack_from("<i", buffer, table)
    vtable = table - back
    (size,) = struct.unpack_from("<H", buffer, vtable)
    entry = 4 + 2 * index
    if entry + 2 > size:
        return None
    (offset,) = struct.unpack_from("<H", buffer, vtable + entry)
    return table + offset if offset else None
