"""Bulk scoring on the cluster: one shard of histories in, one shard of recommendations out."""

import json
from collections import Counter
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import ray.data

from distrib import __version__
from distrib.checkpoint.bundle import BUNDLE, load_bundle
from distrib.checkpoint.manifest import MANIFEST as BUNDLE_MANIFEST
from distrib.data.collate import rows_of, trained_numbers
from distrib.data.prepared import MANIFEST, load_manifest, load_vocabulary, read_part, user_number
from distrib.errors import CheckpointError, ConfigError, DataError
from distrib.events import emit
from distrib.score.lists import recommend_table, require_columns
from distrib.score.new_items import require_extended, with_new_items
from distrib.score.policy import ScoreConfig
from distrib.score.scorer import Scorer
from distrib.storage import Folder
from distrib.vocabulary import Vocabulary

RESULT = "_manifest.json"
"""Written last; readers of Parquet folders pass over names that begin so."""

_BEGUN = "_begun.json"


class Work(NamedTuple):
    """What is to be scored, found out before any actor starts."""

    bundle: str
    histories: str
    output: str
    shards: tuple[dict[str, Any], ...]
    is_prepared: bool
    recipe: dict[str, Any]


def preflight(run: str, prepared: str, config: ScoreConfig) -> Work:
    """Check model, histories and policy against each other.

    Args:
        run: Run folder.
        prepared: The run's prepared data.
        config: The policy.

    Returns:
        What is to be done.

    Raises:
        CheckpointError: There is no complete bundle in the run folder.
        DataError: The histories are absent or lack a column, or the model has no second list.
    """
    bundle = Folder(run) / BUNDLE
    if not bundle.exists(BUNDLE_MANIFEST):
        raise CheckpointError(
            f"{bundle}: no bundle, so nothing to score with; run jobs/train.py first"
        )
    histories = Folder(config.histories or prepared)
    if config.new_items:
        require_extended(bundle.read_json(BUNDLE_MANIFEST), histories)
    output = config.output or str(Folder(run) / "recommendations")
    if Folder(output).url == histories.url:
        raise DataError(f"{output}: score.output is where the histories are; name another folder")
    shards, identity = _shards(histories)
    if bundle.read_json(BUNDLE_MANIFEST).get("data") == identity:
        shards = _numbered(histories, shards)
    recipe = {
        "bundle": bundle.read_json(BUNDLE_MANIFEST)["files"],
        "histories": identity,
        "policy": json.loads(
            config.model_dump_json(exclude={"output", "batch_users", "gpus_per_actor"})
        ),
    }
    _require_ours(Folder(output))
    return Work(str(bundle), str(histories), output, shards, histories.exists(MANIFEST), recipe)


def check_histories(config: ScoreConfig) -> None:
    """Check the histories that a policy names, before there is a model to score them with.

    Args:
        config: The policy.

    Raises:
        DataError: They are absent or lack a column.
    """
    if config.histories:
        _shards(Folder(config.histories))


def _shards(histories: Folder) -> tuple[tuple[dict[str, Any], ...], Any]:
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


def _numbered(histories: Folder, shards: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    """Add what gives the numbers of users, which mean the same to the model."""
    manifest = load_manifest(histories)
    num_shards = manifest["recipe"]["num_shards"]
    return tuple(
        {**shard, "shard": entry["shard"], "num_shards": num_shards}
        for shard, entry in zip(shards, manifest["shards"], strict=True)
    )


def _require_ours(target: Folder) -> None:
    """Refuse a folder with files that scoring did not write; it would have to remove them."""
    if not target.exists(RESULT) and not target.exists(_BEGUN) and target.files():
        raise DataError(
            f"{target}: holds files that scoring did not write ({', '.join(target.files()[:3])}); "
            "set score.output to a new folder"
        )


def score(run: str, prepared: str, config: ScoreConfig) -> dict[str, Any]:
    """Recommend to every user and write the lists as Parquet; the manifest comes last.

    Columns: ``user``, ``items`` (original ids, best first), ``scores``; where the model tells them
    ``probabilities``, ``ratings``, ``deviations`` (of ratings, over the posteriors of user and
    item) and ``rating_distribution`` (one list over levels per item); and the same with prefix
    ``serendipitous_`` where a second list is asked for.

    Args:
        run: Run folder with a bundle.
        prepared: The run's prepared data, scored unless the policy names other histories.
        config: The policy.

    Returns:
        ``output``, and ``counts`` of users and interactions: in = used + rejected by reason.
    """
    work = preflight(run, prepared, config)
    target = Folder(work.output)
    if target.exists(RESULT) and target.read_json(RESULT)["recipe"] == work.recipe:
        emit("already_scored", folder=work.output)
        return {"output": work.output, "counts": target.read_json(RESULT)["counts"]}
    load_bundle(Folder(work.bundle))  # fail here, clearly, rather than in an actor
    _clear(target)
    pieces = [{**shard, "part": _part(order)} for order, shard in enumerate(work.shards)]
    target.write_json(_BEGUN, {"files": [piece["part"] for piece in pieces]})
    scored = ray.data.from_items(pieces, override_num_blocks=len(pieces)).map_batches(
        _ShardScorer,
        fn_constructor_kwargs={"work": work, "config": config},
        batch_size=1,
        batch_format="pyarrow",
        num_gpus=config.gpus_per_actor,
        compute=actor_pool(config.gpus_per_actor),
    )
    entries = [
        json.loads(text)
        for block in scored.iter_batches(batch_size=None, batch_format="pyarrow")
        for text in block["entry"].to_pylist()
    ]
    manifest = _manifest(work, sorted(entries, key=lambda entry: str(entry["name"])))
    target.write_json(RESULT, manifest)
    target.remove(_BEGUN)
    emit("scored", folder=work.output, counts=manifest["counts"])
    return {"output": work.output, "counts": manifest["counts"]}


class _ShardScorer:
    """Holds the model; scores the users of one file at a time."""

    def __init__(self, work: Work, config: ScoreConfig) -> None:
        self.work = work
        self.config = config
        device = "cuda" if config.gpus_per_actor else "cpu"
        self.scorer = Scorer.from_bundle(Folder(work.bundle), device=device)
        if config.new_items:
            self.scorer = with_new_items(self.scorer, Folder(work.histories))
        self.vocabulary: Vocabulary | None = None
        if work.is_prepared:
            self.vocabulary = load_vocabulary(Folder(work.histories))

    def __call__(self, piece: pa.Table) -> pa.Table:
        entry = piece.to_pylist()[0]
        folder = Folder(self.work.histories)
        is_sealed = self.vocabulary is not None
        table = read_part(folder, entry) if is_sealed else folder.read_parquet(entry["name"])
        numbers = None
        if "shard" in entry:
            rows = rows_of(table, *user_number(entry["shard"], entry["num_shards"]))
            numbers = trained_numbers(rows, table["subset"].to_numpy()).number_B
        lists, fates = recommend_table(
            self.scorer, table, self.vocabulary, self.config, number_B=numbers
        )
        content = Folder(self.work.output).write_parquet(entry["part"], lists)
        written = {
            "name": entry["part"],
            "bytes": len(content),
            "users": len(lists),
            "read": len(table),
            "fates": fates,
            "empty": _empty(lists),
        }
        return pa.table({"entry": [json.dumps(written)]})


def _part(order: int) -> str:
    return f"part-{order:05d}.parquet"


def _clear(target: Folder) -> None:
    """Remove what an earlier scoring left, finished or not; nothing else."""
    for mark in (RESULT, _BEGUN):
        if target.exists(mark):
            files = target.read_json(mark)["files"]
            target.remove(mark)
            for entry in files:
                target.remove(entry if isinstance(entry, str) else entry["name"])


def _empty(lists: pa.Table) -> dict[str, int]:
    """Count the users whose list has no item, by list."""
    names = [name for name in lists.column_names if name.endswith("items")]
    lengths = {name: pc.list_value_length(lists[name]) for name in names}
    return {name: int(pc.sum(pc.equal(n, 0)).as_py() or 0) for name, n in lengths.items()}


def actor_pool(gpus_per_actor: float) -> ray.data.ActorPoolStrategy:
    """Return as many actors as fit while a core stays free; all cores taken can hang Ray Data.

    Args:
        gpus_per_actor: GPUs, or the share of one, that each takes.

    Returns:
        One actor at least.

    Raises:
        ConfigError: The cluster has no such GPUs; Ray would wait for ever.
    """
    have = ray.cluster_resources()
    fitting = int(have.get("CPU", 1)) - 1
    if gpus_per_actor:
        fitting = min(fitting, int(have.get("GPU", 0) / gpus_per_actor))
        if fitting == 0:
            raise ConfigError(
                f"gpus_per_actor = {gpus_per_actor}, but the cluster has {have.get('GPU', 0):g} "
                "GPU(s); set it to 0, or add GPU nodes"
            )
    return ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, fitting))


def _manifest(work: Work, entries: list[dict[str, Any]]) -> dict[str, Any]:
    read, scored = (sum(entry[key] for entry in entries) for key in ("read", "users"))
    if read != scored:
        raise DataError(f"{read} users read but {scored} scored; report this as a bug")
    fates, empty = (
        dict(sum((Counter(entry.pop(kind)) for entry in entries), Counter()))
        for kind in ("fates", "empty")
    )
    return {
        "distrib": __version__,
        "recipe": work.recipe,
        "counts": {"users": scored, "interactions": fates, "users_with_empty_lists": empty},
        "files": entries,
    }
