"""The files of a log, and what their first lines show."""

import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Literal

from distrib.data.logs.text import LogFile, archive_members, first_lines, sniffed
from distrib.data.schema import Origin
from distrib.errors import DataError, listed
from distrib.events import emit
from distrib.storage import Folder

SAMPLE_LINES = 5000

Path = str | tuple[str, ...]
"""A file, a folder, a pattern, a member of an archive (``log.zip:a.csv``), or several of them."""

TEXT = frozenset({".parquet", ".orc", ".avro", ".json", ".jsonl", ".ndjson"})
"""Suffixes of files that are no delimited text."""

JSON = frozenset({".parquet", ".orc", ".avro", ".csv", ".tsv"})
"""Suffixes of files that are no JSON lines."""

_NEVER = frozenset(
    {".md", ".rst", ".crc", ".pdf", ".png", ".jpg", ".jpeg", ".html", ".htm", ".xml", ".yaml",
     ".yml", ".toml", ".py", ".ipynb", ".sql", ".xls", ".xlsx", ".doc", ".docx", ".sha256", ".md5"}
)  # fmt: skip
_TALK = re.compile(r"(read_?me|licen[cs]e|copying|notice|changelog|changes)\b", re.IGNORECASE)
_MEMBER = re.compile(r"(?P<archive>.+\.zip):(?P<member>[^/\\:].*)", re.IGNORECASE)
_PATTERN = re.compile(r"[*?\[]")
_REQUESTS = 16
_HEADERS = 64
"""Files whose columns are checked before any work starts; the others are when they are read."""


def log_files(
    path: Path,
    wanted: tuple[str, ...] = (),
    *,
    unlike: frozenset[str] = TEXT,
    is_text: bool = True,
    encoding: str = "utf-8",
) -> tuple[LogFile, ...]:
    """List the files of a log.

    Args:
        path: Of the log.
        wanted: Names; of an archive or folder that has some of them, only those are listed.
        unlike: Suffixes of files that a folder or pattern may hold beside the log; passed over.
        is_text: Whether they are text, which may be compressed.
        encoding: Of text.

    Returns:
        At least one file.

    Raises:
        DataError: Nothing is there, it is empty, or a file is of another kind.
    """
    paths = (path,) if isinstance(path, str) else path
    found = [file for one in paths for file in _files_of(one, unlike)]
    if not found:
        raise DataError(f"{listed(paths)}: the log is empty (0 bytes); nothing to prepare")
    chosen = [file for file in found if file.name.rsplit("/", 1)[-1] in wanted] or found
    twice = [label for label, n in Counter(file.label for file in chosen).items() if n > 1]
    if twice:
        raise DataError(f"{listed(twice)}: named twice in data.source.path; name each file once")

    def looked_at(file: LogFile) -> LogFile:
        file = file._replace(stamp=Folder(file.url).stamp(), encoding=encoding)
        return sniffed(file) if is_text else file

    with ThreadPoolExecutor(_REQUESTS) as pool:
        return tuple(pool.map(looked_at, chosen))


def _files_of(path: str, unlike: frozenset[str]) -> list[LogFile]:
    member = _MEMBER.fullmatch(path)
    if member and not Folder(path).exists():
        names = archive_members(member["archive"])
        chosen = [n for n in names if fnmatch.fnmatchcase(n, member["member"])]
        if not chosen:
            raise DataError(
                f"{member['archive']}: holds no {member['member']!r}; it holds {listed(names)}"
            )
        return [LogFile(member["archive"], int(Origin.LOG), name) for name in chosen]
    folder = Folder(path)
    if not folder.exists():
        urls = folder.matching() if is_pattern(path) else []
        if not urls:
            raise DataError(
                f"{path}: no such file, folder or bucket; check the path of the log, which is "
                "data.source.path in a run file"
            )
        deep = [Folder(url) for url in urls]
        tables = {url.rsplit("/", 1)[0] for url in urls} | {*urls}
        for table in sorted(tables):
            _refuse_tables(Folder(table))
        inside = [str(one / n) for one in deep if one.is_folder() for n in one.data_files()]
        single = [str(one) for one in deep if not one.is_folder() and one.size()]
        return _members(_alike(sorted([*single, *inside]), unlike, path), unlike)
    if folder.is_folder():
        _refuse_tables(folder)
        urls = [str(folder / name) for name in folder.data_files()]
        return _members(_alike(urls, unlike, path), unlike)
    return _members([str(folder)] if folder.size() else [], unlike)


def _members(urls: Iterable[str], unlike: frozenset[str]) -> list[LogFile]:
    files = []
    for url in urls:
        is_archive = url.lower().endswith(".zip")
        names = _alike(archive_members(url), unlike, url) if is_archive else [""]
        files += [LogFile(url, int(Origin.LOG), name) for name in names]
    return files


def _alike(urls: list[str], unlike: frozenset[str], path: str) -> list[str]:
    """Pass over the files that cannot be part of the log, and name them."""

    def is_beside(url: str) -> bool:
        name = PurePosixPath(url)
        is_talk = name.suffix in ("", ".txt") and _TALK.match(name.name) is not None
        return is_talk or name.suffix.lower() in unlike | _NEVER

    beside = [url for url in urls if is_beside(url)]
    if beside and len(beside) < len(urls):
        emit("passed_over", path=path, files=[url.rsplit("/", 1)[-1] for url in beside[:20]],
             number=len(beside))  # fmt: skip
        return [url for url in urls if not is_beside(url)]
    return urls


def is_pattern(path: str) -> bool:
    """Return whether a path stands for all paths that match it."""
    return _PATTERN.search(path) is not None


def table_kind(folder: Folder) -> Literal["delta", "iceberg"] | None:
    """Return the format of a table whose folder also holds removed rows; None for plain files."""
    if folder.exists("_delta_log"):
        return "delta"
    return "iceberg" if (folder / "metadata").files(".metadata.json") else None


def _refuse_tables(folder: Folder) -> None:
    """Refuse the folder of a table whose files are not all of the table."""
    kind = table_kind(folder)
    if kind is not None:
        name = {"delta": "a Delta Lake", "iceberg": "an Iceberg"}[kind]
        raise DataError(
            f"{folder}: is {name} table, whose folder also holds removed rows; read it with "
            f"data.source.format = {kind!r}"
        )


def require_columns(names: Sequence[str], present: Sequence[str], file: LogFile) -> None:
    """Refuse a mapping of columns that a file does not have.

    Args:
        names: The columns that are read.
        present: Columns of the file; those in its path count, too.
        file: The file.

    Raises:
        DataError: A column is absent, or is there more than once.
    """
    absent = [n for n in names if n not in present and n not in file.partition]
    twice = sorted({name for name in names if list(present).count(name) > 1})
    if absent:
        looks_like_data = any(re.fullmatch(r"[-+]?[\d.]+", name) for name in present)
        hint = " (is its header missing? then set data.source.header)" if looks_like_data else ""
        raise DataError(
            f"{file.label}: no column(s) {absent}; it has {listed(present)}{hint}; correct "
            "data.source.columns"
        )
    if twice:
        raise DataError(
            f"{file.label}: column(s) {twice} are duplicates; rename one in the log or with "
            "data.source.header"
        )


def of_path(names: Sequence[str], present: Sequence[str], file: LogFile) -> tuple[str, ...]:
    """Return the columns that stand in the path of a file and not in the file."""
    return tuple(n for n in names if n not in present and n in file.partition)


def hold_columns(
    names: Sequence[str], files: Sequence[LogFile], header: Callable[[LogFile], tuple[str, ...]]
) -> None:
    """Refuse a mapping of columns that one of the first files does not have.

    Args:
        names: The columns that are read.
        files: Of the log.
        header: Reads the names of a file's columns.

    Raises:
        DataError: See `require_columns`; names the files that have the columns.
    """
    headers = {file: header(file) for file in files[:_HEADERS]}
    fitting = [file for file, found in headers.items() if {*names} <= {*found, *file.partition}]
    for file, found in headers.items():
        try:
            require_columns(names, found, file)
        except DataError as error:
            if not fitting:
                raise
            others = ", ".join(file.label for file in fitting[:5])
            raise DataError(
                f"{error}; these do have them: {others}; name them in data.source.path"
            ) from None


def sample_rows(file: LogFile, separator: str) -> list[list[str]]:
    """Return the fields of the first lines that have as many as the first one."""
    rows = [line.split(separator) for line in first_lines(file, SAMPLE_LINES)]
    return [row for row in rows if len(row) == len(rows[0])]
