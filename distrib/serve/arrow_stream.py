"""Tables as Arrow streams, and back."""

import io
import struct

import pyarrow as pa

ARROW = "application/vnd.apache.arrow.stream"
"""Media type."""

_HEADER_TYPE, _HEADER, _COMPRESSION = 1, 2, 3
_RECORD_BATCH = 3


def table_of(content: bytes) -> pa.Table:
    """Read an Arrow stream.

    A compressed one is refused: a few bytes could stand for more than there is memory.

    Args:
        content: The stream.

    Returns:
        The table.

    Raises:
        ValueError: It is none, damaged, or compressed.
    """
    try:
        _require_plain(content)
        with pa.ipc.open_stream(io.BytesIO(content)) as reader:
            table = reader.read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, struct.error, IndexError) as error:
        raise ValueError(f"the body is no Arrow stream: {error}") from error
    return table


def stream_of(table: pa.Table) -> bytes:
    """Write a table as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _require_plain(content: bytes) -> None:
    """Look at the messages of a stream without taking them in."""
    for message in pa.ipc.MessageReader.open_stream(io.BytesIO(content)):
        if message.type == "record batch" and _is_compressed(message.metadata.to_pybytes()):
            raise ValueError("the body is a compressed Arrow stream; send it uncompressed")
        if message.type == "dictionary":
            raise ValueError("the body holds dictionaries; send plain columns")


def _is_compressed(metadata: bytes) -> bool:
    """Tell whether the flatbuffer of a message describes a record batch with compressed buffers.

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
    """Return where a field of a flatbuffer's table is, None where it is left out."""
    (back,) = struct.unpack_from("<i", buffer, table)
    vtable = table - back
    (size,) = struct.unpack_from("<H", buffer, vtable)
    entry = 4 + 2 * index
    if entry + 2 > size:
        return None
    (offset,) = struct.unpack_from("<H", buffer, vtable + entry)
    return table + offset if offset else None
