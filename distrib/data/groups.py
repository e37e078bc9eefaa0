"""Groups of items or users, as a Parquet file names them."""

import pyarrow as pa
import pyarrow.compute as pc

from distrib.data.arrow import whole
from distrib.errors import DataError
from distrib.storage import Folder


def read_groups(path: str, of: str, setting: str) -> tuple[pa.Array, pa.Array]:
    """Read which group each one belongs to.

    Args:
        path: Path or URL of the file.
        of: Column of ids, ``item`` or ``user``; the other column is ``group``.
        setting: That names the file, for the error message.

    Returns:
        Ids, and the group of each as text; null for none.

    Raises:
        DataError: A column is missing.
    """
    table = Folder(path).read_parquet("")
    missing = {of, "group"} - {*table.column_names}
    if missing:
        raise DataError(f"{setting} = {path!r}: has no column {sorted(missing)}")
    return whole(table[of]), pc.cast(whole(table["group"]), "string")
