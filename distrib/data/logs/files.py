"""The files of a log, and what their first lines show."""

import re

from distrib.data.logs.columns import Columns
from distrib.data.logs.text import LogFile, archive_members, first_lines
from distrib.data.schema import Origin
from distrib.errors import DataError
from distrib.storage import Folder

SAMPLE_LINES = 5000


def log_files(url: str, wanted: tuple[str, ...] = ()) -> tuple[LogFile, ...]:
    """List the files of a log.

    Args:
        url: A file, archive or folder.
        wanted: Names; of an archive or folder that has some of them, only those are listed.

    Returns:
        At least one file.

    Raises:
        DataError: Nothing is there, or it is empty.
    """
    folder = Folder(url)
    if not folder.exists():
        raise DataError(f"{url}: no such file, folder or bucket; check data.source.path")
    urls = [str(folder)]
    if folder.is_folder():
        urls = [str(folder / name) for name in folder.data_files()]
    elif folder.size() == 0:
        urls = []
    if not urls:
        raise DataError(f"{url}: the log is empty (0 bytes); nothing to prepare")
    files = []
    for file in urls:
        members = archive_members(file) if file.endswith(".zip") else [""]
        files += [LogFile(file, int(Origin.LOG), member) for member in members]
    chosen = [f for f in files if f.name.rsplit("/", 1)[-1] in wanted]
    return tuple(chosen or files)


def require_columns(columns: Columns, present: tuple[str, ...], file: LogFile) -> None:
    """Refuse a mapping of columns that a file does not have.

    Args:
        columns: Which columns hold what.
        present: Columns of the file.
        file: The file.

    Raises:
        DataError: A column is absent, or is there more than once.
    """
    absent = [name for name in columns.names() if name not in present]
    twice = sorted({name for name in columns.names() if present.count(name) > 1})
    if absent:
        looks_like_data = any(re.fullmatch(r"[-+]?[\d.]+", name) for name in present)
        hint = " (is its header missing? then set data.source.header)" if looks_like_data else ""
        raise DataError(
            f"{file.label}: no column(s) {absent}; it has {list(present)}{hint}; correct "
            "data.source.columns"
        )
    if twice:
        raise DataError(
            f"{file.label}: column(s) {twice} are duplicates; rename one in the log or with "
            "data.source.header"
        )


def sample_rows(file: LogFile, separator: str) -> list[list[str]]:
    """Return the fields of the first lines that have as many as the first one."""
    rows = [line.split(separator) for line in first_lines(file, SAMPLE_LINES)]
    return [row for row in rows if len(row) == len(rows[0])]
