"""Bulk scoring through the HTTP API: Parquet in, Arrow requests, Parquet out."""

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import NamedTuple

import aiohttp
import pyarrow as pa
import pyarrow.parquet as pq

from distrib.errors import ConfigError, DataError
from distrib.events import Interval, emit
from distrib.scoring.bulk.fragments import Fragment, InputFile, Part, fragments_of
from distrib.scoring.commit import PartManifest, Publication, ScoreCounts, ScoreResult
from distrib.scoring.histories import HISTORY_COLUMNS, require_columns
from distrib.serve.arrow_stream import ARROW, stream_of, table_of
from distrib.storage import Folder

_AGAIN = {429, 500, 502, 503, 504}
_LONGEST_WAIT_S = 10.0
_PROGRESS_S = 10.0
_URL = re.compile(r"^https?://[^/@]+(/.*)?$")


class Endpoint(NamedTuple):
    """A served model and the settings of its requests."""

    url: str
    """URL of the server."""

    model: str = "default"
    token: str | None = None
    k: int = 100
    users: int = 1000
    """Users per request."""

    concurrency: int = 4
    """Concurrent requests."""

    retry_s: float = 600.0
    """Seconds for which a request is retried while the server is busy or unavailable."""

    options: Mapping[str, str] = {}
    """Other parameters of the request, e.g. ``exclude_seen``."""

    def require_sense(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: The URL is invalid or holds credentials, or a number is not positive.
        """
        if not _URL.match(self.url):
            raise ConfigError(
                "--url: give http://host:port or https://..., without credentials; set the token "
                "in DISTRIB_TOKEN"
            )
        small = [name for name in ("k", "users", "concurrency") if getattr(self, name) < 1]
        if small:
            raise ConfigError(f"--{small[0]} = {getattr(self, small[0])}: give 1 or more")


def score_through(
    endpoint: Endpoint, histories: str, output: str, fragment_users: int = 50_000
) -> ScoreResult:
    """Recommend to the users of a folder of Parquet files through a server.

    Exactly once, like bulk scoring on the cluster: each fragment of the input has one part, written
    atomically. A restart makes only the missing parts; the previous output stays until all exist.

    Args:
        endpoint: The server and the settings of requests.
        histories: Folder with ``user``, ``items`` and, if the model reads ratings, ``ratings``.
        output: Output folder.
        fragment_users: Approximate users of one output file.

    Returns:
        Output folder and counts.

    Raises:
        ConfigError: The endpoint's settings are invalid.
        DataError: The histories cannot be used, the server refuses, or it was unavailable too long.
    """
    endpoint.require_sense()
    source = Folder(histories)
    names = [name for name in source.data_files() if name.endswith(".parquet")]
    if not names:
        raise DataError(f"{source}: no Parquet files; nothing to score")
    stamps = {name: source.stamp(name) for name in names}
    asked = {"url": endpoint.url, "model": endpoint.model, "k": endpoint.k}
    recipe = {**asked, "options": dict(endpoint.options), "histories": stamps}
    publication = Publication(Folder(output), {**recipe, "fragment_users": fragment_users})
    publication.require_ours()
    done = publication.already()
    if done is not None:
        return done
    fragments = fragments_of(source, [InputFile(name) for name in names], fragment_users)
    return publication.complete(
        {fragment.part for fragment in fragments},
        lambda found: asyncio.run(_made(endpoint, source, publication, fragments, found)),
        _counts,
    )


async def _made(
    endpoint: Endpoint,
    source: Folder,
    publication: Publication,
    fragments: list[Fragment],
    found: Mapping[str, PartManifest],
) -> list[PartManifest]:
    headers = {"content-type": ARROW}
    if endpoint.token:
        headers["authorization"] = f"Bearer {endpoint.token}"
    todo = [fragment for fragment in fragments if fragment.part not in found]
    parts, interval, reached = [], Interval(_PROGRESS_S), 0
    connector = aiohttp.TCPConnector(limit=endpoint.concurrency)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
        for fragment in todo:
            parts.append(await _written(endpoint, session, source, publication, fragment))
            reached += fragment.num_rows
            if interval.due():
                emit("scoring", users=reached, of=sum(f.num_rows for f in todo))
    return parts


async def _written(
    endpoint: Endpoint,
    session: aiohttp.ClientSession,
    source: Folder,
    publication: Publication,
    fragment: Fragment,
) -> PartManifest:
    """Request a fragment's lists and write its part, then the part manifest."""
    found = _Answered(Counter(), Counter(), set())
    with Part(publication.work, fragment.part) as part:
        tables = _tables(source, fragment, endpoint.users)
        async for num_users, lists in _answers(endpoint, session, tables):
            part.write(found.note(num_users, lists))
    if found.users["read"] != found.users["scored"] + found.rejected.total():
        raise DataError(f"{fragment.name}: {found} do not add up; report this as a bug")
    manifest = PartManifest(
        name=fragment.part,
        bytes=part.size,
        sha256=part.digest,
        users=dict(found.users),
        rejected=dict(found.rejected),
        versions=tuple(sorted(found.versions)),
    )
    publication.note(manifest)
    return manifest


class _Answered(NamedTuple):
    """Counts that the server reported for the users of a fragment so far."""

    users: Counter[str]
    rejected: Counter[str]
    versions: set[str]

    def note(self, num_users: int, lists: pa.Table) -> pa.Table:
        """Add the counts of an answer; return its lists without the metadata."""
        metadata = lists.schema.metadata or {}
        about = {key.decode(): value.decode() for key, value in metadata.items()}
        self.users.update(read=num_users, scored=len(lists))
        self.rejected.update(json.loads(about["rejected"]))
        self.versions.update(about["version"].split(","))
        return lists.replace_schema_metadata(None)


def _tables(source: Folder, fragment: Fragment, users: int) -> Iterator[pa.Table]:
    """Yield the fragment's tables, one per request; an empty fragment yields one empty table."""
    with source.open(fragment.name) as stream:
        file = pq.ParquetFile(stream)
        require_columns(file.schema_arrow.names)
        held = [name for name in HISTORY_COLUMNS if name in file.schema_arrow.names]
        groups = list(range(fragment.first_group, fragment.last_group))
        for batch in file.iter_batches(users, row_groups=groups, columns=held):
            yield pa.Table.from_batches([batch])
        if not fragment.num_rows:
            yield file.schema_arrow.empty_table().select(held)


async def _answers(
    endpoint: Endpoint, session: aiohttp.ClientSession, tables: Iterator[pa.Table]
) -> AsyncIterator[tuple[int, pa.Table]]:
    """Yield user counts and lists in order, with up to ``concurrency`` requests in flight."""
    under_way: list[tuple[int, asyncio.Task[pa.Table]]] = []
    try:
        for table in tables:
            task = asyncio.create_task(_requested(endpoint, session, stream_of(table)))
            under_way.append((len(table), task))
            if len(under_way) >= endpoint.concurrency:
                num_users, first = under_way.pop(0)
                yield num_users, await first
        while under_way:
            num_users, first = under_way.pop(0)
            yield num_users, await first
    finally:
        for _, task in under_way:
            task.cancel()


async def _requested(
    endpoint: Endpoint, session: aiohttp.ClientSession, content: bytes
) -> pa.Table:
    """Send a request; retry with exponential backoff while the server is busy or unavailable."""
    path = f"{endpoint.url.rstrip('/')}/v1/models/{endpoint.model}/recommendations.arrow"
    parameters = {"k": str(endpoint.k), **endpoint.options}
    started_s, wait_s = time.monotonic(), 0.2
    while True:
        status, body, pause_s = await _once(session, path, parameters, content)
        if status == 200:
            try:
                return table_of(body)
            except ValueError as error:
                raise DataError(
                    f"{path}: the response is not a table of lists ({error}); check the URL"
                ) from error
        detail = body[:500].decode(errors="replace")
        if status not in _AGAIN:
            raise DataError(f"{path}: refused with {status}: {detail}")
        if time.monotonic() - started_s > endpoint.retry_s:
            raise DataError(
                f"{path}: no answer for {endpoint.retry_s:g} s, last {status}: {detail}; run the "
                "same command to resume"
            )
        if wait_s == _LONGEST_WAIT_S:
            emit("waiting_for_server", status=status, detail=detail)
        await asyncio.sleep(max(wait_s, pause_s))
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


async def _once(
    session: aiohttp.ClientSession, path: str, parameters: dict[str, str], content: bytes
) -> tuple[int, bytes, float]:
    """Return status and body of a response, and the seconds to wait before a retry."""
    try:
        async with session.post(path, data=content, params=parameters) as answer:
            delay = answer.headers.get("retry-after", "")
            pause_s = float(delay) if delay.isdigit() else 0.0
            return answer.status, await answer.read(), min(pause_s, _LONGEST_WAIT_S)
    except (aiohttp.ClientError, TimeoutError) as error:
        return 503, (str(error) or type(error).__name__).encode(), 0.0


def _counts(parts: list[PartManifest]) -> ScoreCounts:
    users = sum((Counter(part.users) for part in parts), Counter())
    rejected = sum((Counter(part.rejected) for part in parts), Counter())
    return ScoreCounts(
        users_read=users["read"],
        users=users["scored"],
        users_rejected=dict(rejected),
        versions=tuple(sorted({version for part in parts for version in part.versions})),
    )
