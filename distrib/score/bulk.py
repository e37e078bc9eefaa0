"""Bulk scoring on the cluster: every fragment of the histories to one part, exactly once."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from distrib import __version__
from distrib.checkpoint.bundle import BUNDLE, load_bundle
from distrib.checkpoint.manifest import MANIFEST as BUNDLE_MANIFEST
from distrib.data import prepare as preparation
from distrib.data.config import DataConfig
from distrib.data.hashing import HashArray
from distrib.data.prepared import MANIFEST, load_manifest, load_vocabulary
from distrib.data.splits import NoSplit
from distrib.errors import CheckpointError, ConfigError, DataError
from distrib.events import Interval, emit
from distrib.score.fragments import RECEIPTS, Fragment, FragmentScorer, fragments_of
from distrib.score.lists import DIGEST, require_columns
from distrib.score.new_items import require_extended, with_new_items
from distrib.score.policy import PolicyConfig, ScoreConfig
from distrib.score.rules import Rules
from distrib.score.scorer import Scorer
from distrib.storage import Folder

SUCCESS = "_SUCCESS"
"""Manifest, written last; readers of Parquet folders pass over names that begin so."""

_BEGUN = "_begun.json"
_PROGRESS_S = 10.0
_NOT_OF_LISTS = {
    *("output", "batch_users", "fragment_users", "gpus_per_actor", "since", "events", "histories")
}


class Work(NamedTuple):
    """What is to be scored, found out before any actor starts."""

    bundle: str
    histories: str
    output: str
    files: tuple[dict[str, Any], ...]
    is_prepared: bool
    recipe: dict[str, Any]

    @property
    def digest(self) -> str:
        """Of the recipe: equal where all lists are."""
        return hashlib.sha256(json.dumps(self.recipe, sort_keys=True).encode()).hexdigest()


def preflight(run: str, prepared: str, config: ScoreConfig) -> None:
    """Check model, histories and policy against each other.

    Args:
        run: Run folder.
        prepared: The run's prepared data.
        config: What is wanted.

    Raises:
        CheckpointError: There is no complete bundle in the run folder.
        ConfigError: Settings clash.
        DataError: The histories are absent or lack a column, the model has no second list, or a
            former run is not of the same model and policy.
    """
    check_histories(config)
    if config.events is None:
        plan(run, prepared, config)
    else:
        _bundle_facts(run)


def check_histories(config: ScoreConfig) -> None:
    """Check the histories that are named, before there is a model to score them with.

    Args:
        config: What is wanted.

    Raises:
        ConfigError: Settings clash.
        DataError: They are absent or lack a column.
    """
    if config.histories:
        _files(Folder(config.histories))
    if config.events is not None:
        preparation.preflight(_unsplit(config.events))


def score(run: str, prepared: str, config: ScoreConfig) -> dict[str, Any]:
    """Recommend to every user and write the lists as Parquet; ``_SUCCESS`` comes last.

    Columns of the nested form: ``user``, ``history_digest``, ``items`` (original ids, best first),
    ``scores``; where the model tells them ``probabilities``, ``ratings``, ``deviations`` (of
    ratings, over the posteriors of user and item) and ``rating_distribution`` (one list over levels
    per item); and the same with prefix ``serendipitous_`` where a second list is asked for. The
    long form has a row for each recommendation: ``item``, ``rank`` from 1, ``score`` and so on.

    Each fragment of the input has one part, written whole or not at all; a second start goes on
    with those that are not there, and the union is byte for byte what one start would have written.

    Args:
        run: Run folder with a bundle.
        prepared: The run's prepared data, scored unless other histories are named.
        config: What is wanted.

    Returns:
        ``output``, and ``counts``: users read = scored + unchanged + rejected by reason, and
        interactions by what became of them.
    """
    if config.events is not None:
        events = _unsplit(config.events)
        preparation.prepare(events)
        config = config.model_copy(update={"events": None, "histories": events.prepared})
    work = plan(run, prepared, config)
    target = Folder(work.output)
    if target.exists(SUCCESS) and target.read_json(SUCCESS)["recipe"] == work.recipe:
        emit("already_scored", folder=work.output)
        return {"output": work.output, "counts": target.read_json(SUCCESS)["counts"]}
    _check_model(work, config)
    fragments = fragments_of(Folder(work.histories), work.files, config.fragment_users)
    done = _resumed(target, work, fragments)
    if not done:
        _clear(target)
        target.write_json(_BEGUN, {"recipe": work.digest, "parts": len(fragments)})
    receipts = [*done.values(), *_scored(work, config, fragments, done)]
    manifest = _manifest(work, sorted(receipts, key=lambda receipt: str(receipt["name"])))
    if target.read_json(_BEGUN)["recipe"] != work.digest:
        raise DataError(
            f"{target}: another scoring with other settings has begun in this folder; give each "
            "its own score.output"
        )
    target.write_json(SUCCESS, manifest)
    target.remove(_BEGUN)
    target.remove(RECEIPTS)
    emit("scored", folder=work.output, counts=manifest["counts"])
    return {"output": work.output, "counts": manifest["counts"]}


def plan(run: str, prepared: str, config: ScoreConfig) -> Work:
    """Find out what is to be scored, and what its lists depend on.

    Args:
        run: Run folder.
        prepared: The run's prepared data.
        config: What is wanted; without events.

    Returns:
        What is to be done.

    Raises:
        CheckpointError: There is no complete bundle in the run folder.
        DataError: Histories or files of the policy are absent, the output folder is taken, or a
            former run is not of the same model and policy.
    """
    bundle = Folder(run) / BUNDLE
    facts = _bundle_facts(run)
    histories = Folder(config.histories or prepared)
    if config.new_items:
        require_extended(facts, histories)
    output = config.output or str(Folder(run) / "recommendations")
    if Folder(output).url == histories.url:
        raise DataError(f"{output}: score.output is where the histories are; name another folder")
    files, identity = _files(histories)
    if facts.get("data") == identity:
        files = _numbered(histories, files)
    policy = json.loads(config.model_dump_json(exclude=_NOT_OF_LISTS))
    made_by = {"bundle": facts["files"], "policy": policy, "lists": _stamps(config.policy)}
    recipe = {**made_by, "vocabulary": facts["vocabulary"], "histories": identity}
    recipe["fragment_users"] = config.fragment_users
    if config.since:
        recipe["since"] = _require_same(Folder(config.since), made_by)
    _require_ours(Folder(output))
    return Work(str(bundle), str(histories), output, files, histories.exists(MANIFEST), recipe)


def _bundle_facts(run: str) -> dict[str, Any]:
    bundle = Folder(run) / BUNDLE
    if not bundle.exists(BUNDLE_MANIFEST):
        raise CheckpointError(
            f"{bundle}: no bundle, so nothing to score with; run jobs/train.py first"
        )
    facts: dict[str, Any] = bundle.read_json(BUNDLE_MANIFEST)
    return facts


def _unsplit(events: DataConfig) -> DataConfig:
    """Hold nothing out of raw events that are to be scored."""
    if "split" in events.model_fields_set and not isinstance(events.split, NoSplit):
        raise ConfigError(
            f"score.events.split = {events.split.name!r}: events to score are not split; remove it"
        )
    return events.model_copy(update={"split": NoSplit()})


def _files(histories: Folder) -> tuple[tuple[dict[str, Any], ...], Any]:
    """Return the files to score, and what their content is known by."""
    if not histories.exists():
        raise DataError(f"{histories}: no such folder or bucket; check score.histories")
    if histories.exists(MANIFEST):
        manifest = load_manifest(histories)
        shards = [{"name": s["name"], "sha256": s["sha256"]} for s in manifest["shards"]]
        return tuple(shards), manifest["hash"]
    names = [name for name in histories.files(".parquet") if name[0] not in "._"]
    if not names:
        raise DataError(f"{histories}: no Parquet files and no {MANIFEST}; nothing to score")
    with histories.open(names[0]) as file:
        try:
            columns = pq.read_schema(file).names
        except pa.ArrowException as error:
            raise DataError(f"{histories / names[0]}: is no Parquet file ({error})") from error
    require_columns(columns)
    return tuple({"name": name} for name in names), {n: histories.stamp(n) for n in names}


def _numbered(histories: Folder, files: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    """Add what gives the numbers of users, which mean the same to the model."""
    manifest = load_manifest(histories)
    num_shards = manifest["recipe"]["num_shards"]
    return tuple(
        {**file, "shard": entry["shard"], "num_shards": num_shards}
        for file, entry in zip(files, manifest["shards"], strict=True)
    )


def _stamps(policy: PolicyConfig) -> dict[str, str]:
    """Return what the files of a policy are known by."""
    urls = [url for url in (policy.allow, policy.deny, policy.groups) if isinstance(url, str)]
    return {url: Folder(url).stamp() for url in urls}


def _require_same(former: Folder, made_by: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a former run is known by, where its lists would be the same today."""
    if not former.exists(SUCCESS):
        raise DataError(
            f"{former}: no {SUCCESS}, so nothing complete was scored; check score.since"
        )
    found = former.read_json(SUCCESS)["recipe"]
    for what in made_by:
        if found.get(what) != made_by[what]:
            raise DataError(
                f"{former}: was scored with another {what}, so every list may differ, not only "
                "those of users who changed; unset score.since"
            )
    return {"folder": former.url, "stamp": former.stamp(SUCCESS)}


def _require_ours(target: Folder) -> None:
    """Refuse a folder with files that scoring did not write; it would have to remove them."""
    if not target.exists(SUCCESS) and not target.exists(_BEGUN) and target.files():
        raise DataError(
            f"{target}: holds files that scoring did not write ({', '.join(target.files()[:3])}); "
            "set score.output to a new folder"
        )


def _check_model(work: Work, config: ScoreConfig) -> None:
    """Fail here, clearly, rather than in an actor."""
    bundle = load_bundle(Folder(work.bundle))
    Rules.of(config.policy, bundle.model, bundle.vocabulary)
    if work.recipe["bundle"] != bundle.facts["files"]:
        raise CheckpointError(f"{work.bundle}: was written anew meanwhile; start again")


def _resumed(target: Folder, work: Work, fragments: list[Fragment]) -> dict[str, dict[str, Any]]:
    """Return the receipts of the parts that an earlier start finished, by part."""
    if not target.exists(_BEGUN) or target.read_json(_BEGUN)["recipe"] != work.digest:
        return {}
    wanted = {fragment.part for fragment in fragments}
    receipts = ((target / RECEIPTS).read_json(name) for name in (target / RECEIPTS).files(".json"))
    return {
        receipt["name"]: receipt
        for receipt in receipts
        if receipt["name"] in wanted
        and receipt["recipe"] == work.digest
        and target.exists(receipt["name"])
        and target.size(receipt["name"]) == receipt["bytes"]
    }


def _clear(target: Folder) -> None:
    """Remove what an earlier scoring left, finished or not; nothing else."""
    target.remove(SUCCESS)
    target.remove(RECEIPTS)
    for name in target.files(".parquet"):
        if name.startswith("part-"):
            target.remove(name)


def _scored(
    work: Work, config: ScoreConfig, fragments: list[Fragment], done: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Score what is not done yet, on as many actors as fit."""
    todo = [fragment for fragment in fragments if fragment.part not in done]
    if done:
        emit("resumed", done=len(done), left=len(todo))
    if not todo:
        return []
    unchanged = _known_digests(Folder(config.since)) if config.since else None
    pieces = [{"fragment": json.dumps(fragment)} for fragment in todo]
    blocks = ray.data.from_items(pieces, override_num_blocks=len(pieces)).map_batches(
        _FragmentActor,
        fn_constructor_kwargs={
            "work": work,
            "config": config,
            "unchanged": None if unchanged is None else ray.put(unchanged),
        },
        batch_size=1,
        batch_format="pyarrow",
        num_gpus=config.gpus_per_actor,
        compute=actor_pool(config.gpus_per_actor),
    )
    tables = blocks.iter_batches(batch_size=None, batch_format="pyarrow")
    receipts = (json.loads(text) for table in tables for text in table["receipt"].to_pylist())
    return list(_watched(receipts, sum(fragment.num_rows for fragment in todo)))


def _watched(receipts: Iterable[dict[str, Any]], num_users: int) -> Iterable[dict[str, Any]]:
    """Tell how far scoring has come, now and then."""
    interval, started_s, reached = Interval(_PROGRESS_S), time.monotonic(), 0
    for receipt in receipts:
        reached += receipt["users"]["read"]
        if interval.due():
            rate = reached / (time.monotonic() - started_s)
            left_s = (num_users - reached) / max(rate, 1e-9)
            emit(
                "scoring",
                users=reached,
                of=num_users,
                users_per_s=round(rate),
                left_s=round(left_s),
            )
        yield receipt


class _FragmentActor:
    """Holds the model; scores one fragment at a time."""

    def __init__(self, work: Work, config: ScoreConfig, unchanged: Any) -> None:
        self.digest = work.digest
        histories = Folder(work.histories)
        device = "cuda" if config.gpus_per_actor else "cpu"
        scorer = Scorer.from_bundle(Folder(work.bundle), device=device, precision=config.precision)
        if config.new_items:
            scorer = with_new_items(scorer, histories)
        source = load_vocabulary(histories) if work.is_prepared else None
        known: HashArray | None = None if unchanged is None else ray.get(unchanged)
        self.fragments = FragmentScorer(
            scorer, histories, source, Folder(work.output), config, known
        )

    def __call__(self, piece: pa.Table) -> pa.Table:
        fields = json.loads(piece["fragment"][0].as_py())
        fields[-1] = tuple(fields[-1]) if fields[-1] else None
        receipt = self.fragments.write(Fragment(*fields), self.digest)
        return pa.table({"receipt": [json.dumps(receipt)]})


def _known_digests(former: Folder) -> HashArray:
    """Return the digests of all histories that a former run scored, ascending.

    One copy for each node, 8 bytes a user.
    """
    parts = [entry["name"] for entry in former.read_json(SUCCESS)["files"]]
    found = [former.read_parquet(name, [DIGEST])[DIGEST].to_numpy() for name in parts]
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *found]))


def actor_pool(gpus_per_actor: float) -> ray.data.ActorPoolStrategy:
    """Return as many actors as fit; nothing is left to read tasks, since work comes from memory.

    Args:
        gpus_per_actor: GPUs, or the share of one, that each takes.

    Returns:
        One actor at least.

    Raises:
        ConfigError: The cluster has no such GPUs; Ray would wait for ever.
    """
    have = ray.cluster_resources()
    fitting = int(have.get("CPU", 1))
    if gpus_per_actor:
        fitting = min(fitting, int(have.get("GPU", 0) / gpus_per_actor))
        if fitting == 0:
            raise ConfigError(
                f"gpus_per_actor = {gpus_per_actor}, but the cluster has {have.get('GPU', 0):g} "
                "GPU(s); set it to 0, or add GPU nodes"
            )
    size = max(1, fitting)
    return ray.data.ActorPoolStrategy(min_size=1, max_size=size, initial_size=size)


def _manifest(work: Work, receipts: list[dict[str, Any]]) -> dict[str, Any]:
    users, rejected, interactions, empty = (
        dict(sum((Counter(receipt.pop(kind)) for receipt in receipts), Counter()))
        for kind in ("users", "rejected", "interactions", "empty")
    )
    read, scored = users.get("read", 0), users.get("scored", 0)
    unchanged = users.get("unchanged", 0)
    if read != scored + unchanged + sum(rejected.values()):
        raise DataError(
            f"{read} users read, but {scored} scored, {unchanged} unchanged and {rejected} "
            "rejected; report this as a bug"
        )
    for receipt in receipts:
        receipt.pop("recipe")
    return {
        "distrib": __version__,
        "recipe": work.recipe,
        "counts": {
            "users_read": read,
            "users": scored,
            "users_unchanged": unchanged,
            "users_rejected": rejected,
            "users_with_empty_lists": empty,
            "interactions": interactions,
        },
        "files": receipts,
    }
