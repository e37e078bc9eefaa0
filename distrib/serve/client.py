"""Bulk scoring for those who have only the endpoint: Parquet in, requests, Parquet out."""

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

import aiohttp
import pyarrow as pa
import pyarrow.parquet as pq

from distrib.errors import DataError
from distrib.events import Interval, emit
from distrib.score.fragments import RECEIPTS, Fragment, Part, fragments_of
from distrib.score.lists import require_columns
from distrib.serve.arrow import ARROW, stream_of, table_of
from distrib.storage import Folder

SUCCESS = "_SUCCESS"
_BEGUN = "_begun.json"
_AGAIN = {429, 500, 502, 503, 504}
_LONGEST_WAIT_S = 10.0
_PROGRESS_S = 10.0


class Endpoint(NamedTuple):
    """Where the lists come from."""

    url: str
    """Of the server."""

    model: str = "default"
    token: str | None = None
    k: int = 100
    users: int = 1000
    """Of one request."""

    concurrency: int = 4
    """Requests under way at once."""

    retry_s: float = 600.0
    """How long a request is tried again while the server is busy or away."""


def score_through(
    endpoint: Endpoint, histories: str, output: str, fragment_users: int = 50_000
) -> dict[str, Any]:
    """Recommend to the users of a folder of Parquet files through a server.

    Exactly once, as bulk scoring on the cluster: each fragment of the input has one part, written
    whole or not at all, and a second start goes on with those that are not there.

    Args:
        endpoint: The server, and what is asked of it.
        histories: Folder with ``user``, ``items`` and, where the model reads ratings, ``ratings``.
        output: Folder of the lists.
        fragment_users: Users of one output file, about.

    Returns:
        ``output``, and ``counts`` of users: read = scored + rejected by reason.

    Raises:
        DataError: The histories cannot be used, the server refuses, or it was away too long.
    """
    source, target = Folder(histories), Folder(output)
    names = [name for name in source.files(".parquet") if name[0] not in "._"]
    if not names:
        raise DataError(f"{source}: no Parquet files; nothing to score")
    recipe = _recipe(endpoint, source, names, fragment_users)
    if target.exists(SUCCESS) and target.read_json(SUCCESS)["recipe"] == recipe:
        emit("already_scored", folder=output)
        return {"output": output, "counts": target.read_json(SUCCESS)["counts"]}
    _begin(target, recipe)
    fragments = fragments_of(source, [{"name": name} for name in names], fragment_users)
    receipts = asyncio.run(_all(endpoint, source, target, fragments))
    counts = _counts(receipts)
    target.write_json(SUCCESS, {"recipe": recipe, "counts": counts, "files": receipts})
    target.remove(_BEGUN)
    target.remove(RECEIPTS)
    emit("scored", folder=output, counts=counts)
    return {"output": output, "counts": counts}


def _recipe(
    endpoint: Endpoint, source: Folder, names: list[str], fragment_users: int
) -> dict[str, Any]:
    stamps = {name: source.stamp(name) for name in names}
    asked = {"url": endpoint.url, "model": endpoint.model, "k": endpoint.k}
    return {**asked, "histories": stamps, "fragment_users": fragment_users}


def _begin(target: Folder, recipe: dict[str, Any]) -> None:
    """Keep what an earlier start with the same recipe left; refuse what is not ours."""
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    if target.exists(_BEGUN) and target.read_json(_BEGUN)["recipe"] == digest:
        return
    if target.files():
        raise DataError(
            f"{target}: holds files of something else ({', '.join(target.files()[:3])}); name a "
            "new folder"
        )
    target.write_json(_BEGUN, {"recipe": digest})


async def _all(
    endpoint: Endpoint, source: Folder, target: Folder, fragments: list[Fragment]
) -> list[dict[str, Any]]:
    headers = {"content-type": ARROW}
    if endpoint.token:
        headers["authorization"] = f"Bearer {endpoint.token}"
    receipts, interval, reached = [], Interval(_PROGRESS_S), 0
    connector = aiohttp.TCPConnector(limit=endpoint.concurrency)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
        for fragment in fragments:
            if target.exists(fragment.receipt) and target.exists(fragment.part):
                receipts.append(target.read_json(fragment.receipt))
                continue
            receipts.append(await _written(endpoint, session, source, target, fragment))
            reached += fragment.num_rows
            if interval.due():
                emit("scoring", users=reached, of=sum(f.num_rows for f in fragments))
    return receipts


async def _written(
    endpoint: Endpoint,
    session: aiohttp.ClientSession,
    source: Folder,
    target: Folder,
    fragment: Fragment,
) -> dict[str, Any]:
    """Ask for a fragment's lists and write its part whole, then its receipt."""
    receipt: dict[str, Any] = {"users": Counter(), "rejected": Counter(), "versions": []}
    with Part(target, fragment.part) as part:
        tables = _tables(source, fragment, endpoint.users)
        async for num_users, lists in _answers(endpoint, session, tables):
            part.write(_noted(receipt, num_users, lists))
    receipt |= {"name": fragment.part, **part.entry}
    users = receipt["users"]
    if users["read"] != users["scored"] + receipt["rejected"].total():
        raise DataError(f"{fragment.name}: {receipt} does not add up; report this as a bug")
    target.write_json(fragment.receipt, receipt)
    return receipt


def _noted(receipt: dict[str, Any], num_users: int, lists: pa.Table) -> pa.Table:
    """Enter into the receipt what the server says of some lists; return them without it."""
    about = {key.decode(): value.decode() for key, value in (lists.schema.metadata or {}).items()}
    receipt["users"].update(read=num_users, scored=len(lists))
    receipt["rejected"].update(json.loads(about["rejected"]))
    receipt["versions"] = sorted({*receipt["versions"], about["version"]})
    return lists.replace_schema_metadata(None)


def _tables(source: Folder, fragment: Fragment, users: int) -> Iterator[pa.Table]:
    """Yield the fragment in requests, one without users where it has none."""
    with source.open(fragment.name) as stream:
        file = pq.ParquetFile(stream)
        require_columns(file.schema_arrow.names)
        columns = ["user", "items", "ratings", "candidates"]
        held = [name for name in columns if name in file.schema_arrow.names]
        groups = list(range(fragment.first_group, fragment.last_group))
        for batch in file.iter_batches(users, row_groups=groups, columns=held):
            yield pa.Table.from_batches([batch])
        if not fragment.num_rows:
            yield file.schema_arrow.empty_table().select(held)


async def _answers(
    endpoint: Endpoint, session: aiohttp.ClientSession, tables: Iterator[pa.Table]
) -> AsyncIterator[tuple[int, pa.Table]]:
    """Yield users and lists in order, so many requests under way."""
    under_way: list[tuple[int, asyncio.Task[pa.Table]]] = []
    try:
        for table in tables:
            task = asyncio.create_task(_asked(endpoint, session, stream_of(table)))
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


async def _asked(endpoint: Endpoint, session: aiohttp.ClientSession, content: bytes) -> pa.Table:
    """Ask until there is an answer; wait longer each time the server is busy or away."""
    path = f"{endpoint.url.rstrip('/')}/v1/models/{endpoint.model}/recommendations.arrow"
    started_s, wait_s = time.monotonic(), 0.2
    while True:
        try:
            async with session.post(path, data=content, params={"k": endpoint.k}) as answer:
                body, status = await answer.read(), answer.status
        except aiohttp.ClientError as error:
            body, status = str(error).encode(), 503
        if status == 200:
            return table_of(body)
        detail = body[:500].decode(errors="replace")
        if status not in _AGAIN:
            raise DataError(f"{path}: refused with {status}: {detail}")
        if time.monotonic() - started_s > endpoint.retry_s:
            raise DataError(
                f"{path}: no answer for {endpoint.retry_s:g} s, last {status}: {detail}; the same "
                "command goes on"
            )
        await asyncio.sleep(wait_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def _counts(receipts: list[dict[str, Any]]) -> dict[str, Any]:
    users, rejected = (
        sum((Counter(receipt[kind]) for receipt in receipts), Counter())
        for kind in ("users", "rejected")
    )
    return {
        "users_read": users["read"],
        "users": users["scored"],
        "users_rejected": dict(rejected),
        "versions": sorted({version for receipt in receipts for version in receipt["versions"]}),
    }
