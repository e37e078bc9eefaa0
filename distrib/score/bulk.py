"""Bulk scoring on the cluster: one shard of histories in, one shard of recommendations out."""

import json
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch

from distrib import __version__
from distrib.batch import Batch
from distrib.checkpoint.bundle import load_bundle
from distrib.data.collate import flat_list
from distrib.data.formats import on_scale
from distrib.data.prepare import MANIFEST, VOCABULARY, load_manifest
from distrib.data.schema import Status
from distrib.errors import CheckpointError, ConfigError, DataError
from distrib.events import emit
from distrib.score.policy import ScoreConfig
from distrib.score.scorer import Recommendations, Scorer
from distrib.storage import Folder
from distrib.vocabulary import Vocabulary

_UNKNOWN_ITEM = Status.ITEM_UNSEEN_IN_TRAINING.reason
_OFF_SCALE = Status.RATING_OUTSIDE_SCALE.reason


class Work(NamedTuple):
    """What is to be scored, found out before any actor starts."""

    bundle: str
    histories: str
    output: str
    files: tuple[str, ...]
    is_prepared: bool
    recipe: dict[str, Any]


def preflight(run: str, prepared: str, config: ScoreConfig) -> Work:
    """Check model, histories and policy against each other.

    Returns:
        What is to be done.

    Args:
        run: Run folder.
        prepared: The run's prepared data.
        config: The policy.

    Raises:
        CheckpointError: There is no complete bundle in the run folder.
        DataError: The histories are absent or lack a column, or the model has no second list.
    """
    bundle = Folder(run) / "bundle"
    if not bundle.exists("manifest.json"):
        raise CheckpointError(
            f"{bundle}: no bundle, so nothing to score with; run jobs/train.py first"
        )
    histories = Folder(config.histories or prepared)
    if not histories.exists():
        raise DataError(f"{histories}: no such folder or bucket; check score.histories")
    is_prepared = histories.exists(MANIFEST)
    if is_prepared:
        manifest = load_manifest(histories)
        files, identity = tuple(shard["name"] for shard in manifest["shards"]), manifest["hash"]
    else:
        files = tuple(histories.files(".parquet"))
        identity = {name: histories.size(name) for name in files}
    if not files:
        raise DataError(f"{histories}: no Parquet files and no {MANIFEST}; nothing to score")
    recipe = {
        "bundle": bundle.read_json("manifest.json")["files"],
        "histories": identity,
        "policy": json.loads(
            config.model_dump_json(exclude={"output", "batch_users", "gpus_per_actor"})
        ),
    }
    output = config.output or str(Folder(run) / "recommendations")
    return Work(str(bundle), str(histories), output, files, is_prepared, recipe)


def score(run: str, prepared: str, config: ScoreConfig) -> dict[str, Any]:
    """Recommend to every user and write the lists as Parquet; the manifest comes last.

    Columns: ``user``, ``items`` (original ids, best first), ``scores``; where the model tells them
    ``probabilities``, ``ratings`` and ``rating_distribution`` (one list over levels per item); and
    the same with prefix ``serendipitous_`` where a second list is asked for.

    Args:
        run: Run folder with a bundle.
        prepared: The run's prepared data, scored unless the policy names other histories.
        config: The policy.

    Returns:
        ``output``, and ``counts`` of users and interactions: in = used + rejected by reason.
    """
    work = preflight(run, prepared, config)
    target = Folder(work.output)
    if target.exists(MANIFEST) and target.read_json(MANIFEST)["recipe"] == work.recipe:
        emit("already_scored", folder=work.output)
        return {"output": work.output, "counts": target.read_json(MANIFEST)["counts"]}
    _check_list(work, config)
    target.remove(MANIFEST)
    for name in target.files(".parquet"):
        target.remove(name)
    pieces = [{"order": order, "name": name} for order, name in enumerate(work.files)]
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
    target.write_json(MANIFEST, manifest)
    emit("scored", folder=work.output, counts=manifest["counts"])
    return {"output": work.output, "counts": manifest["counts"]}


def recommend_table(
    scorer: Scorer, table: pa.Table, source: Vocabulary | None, config: ScoreConfig
) -> tuple[pa.Table, dict[str, int]]:
    """Recommend to the users of a table of histories.

    Args:
        scorer: The model.
        table: ``user``, ``items`` and, where there are any, ``ratings``.
        source: The vocabulary that ``items`` are positions in; None when they are original ids.
        config: The policy.

    Returns:
        The recommendations, in the order of the users, and the number of interactions by what
        became of them (``used``, or a reason).

    Raises:
        DataError: A column is absent, or the model needs ratings and there are none.
    """
    batch, fates = _batch(scorer, table, source)
    parts = []
    for start in range(0, len(table), config.batch_users):
        some = _rows(batch, start, min(start + config.batch_users, batch.num_users))
        seen = some if config.exclude_seen else None
        columns = _columns(scorer, scorer.recommend(some, seen, config.k), "")
        if config.serendipitous_k:
            second = scorer.serendipitous(
                some,
                seen,
                config.serendipitous_k,
                unlikely_share=config.unlikely_share,
                min_support=config.min_support,
            )
            columns |= _columns(scorer, second, "serendipitous_")
        users = table["user"].slice(start, some.num_users).combine_chunks()
        parts.append(pa.table({"user": users, **columns}))
    return pa.concat_tables(parts) if parts else pa.table({"user": table["user"]}), fates


class _ShardScorer:
    """Holds the model; scores the users of one file at a time."""

    def __init__(self, work: Work, config: ScoreConfig) -> None:
        self.work = work
        self.config = config
        device = "cuda" if config.gpus_per_actor else "cpu"
        self.scorer = Scorer.from_bundle(Folder(work.bundle), device=device)
        self.vocabulary: Vocabulary | None = None
        if work.is_prepared:
            self.vocabulary = Vocabulary.from_table(Folder(work.histories).read_parquet(VOCABULARY))

    def __call__(self, piece: pa.Table) -> pa.Table:
        entry = piece.to_pylist()[0]
        table = Folder(self.work.histories).read_parquet(entry["name"])
        lists, fates = recommend_table(self.scorer, table, self.vocabulary, self.config)
        name = f"part-{entry['order']:05d}.parquet"
        content = Folder(self.work.output).write_parquet(name, lists)
        written = {
            "name": name,
            "bytes": len(content),
            "users": len(lists),
            "read": len(table),
            "fates": fates,
        }
        return pa.table({"entry": [json.dumps(written)]})


def _batch(
    scorer: Scorer, table: pa.Table, source: Vocabulary | None
) -> tuple[Batch, dict[str, int]]:
    """Translate histories to the model's positions; what it does not know is left out."""
    absent = [name for name in ("user", "items") if name not in table.column_names]
    if absent:
        raise DataError(f"histories lack column(s) {absent}; they have {table.column_names}")
    levels = scorer.vocabulary.levels
    if "ratings" not in table.column_names and len(levels) > 1:
        raise DataError(
            f"histories lack column 'ratings', which this model reads (levels {list(levels)})"
        )
    pointer_P, item_N = flat_list(table, "items")
    value_N = (
        flat_list(table, "ratings")[1] if "ratings" in table.column_names else np.ones(len(item_N))
    )
    if len(value_N) != len(item_N):
        raise DataError(
            f"histories have {len(item_N)} items but {len(value_N)} ratings; "
            "make the lists equally long"
        )
    ids = pa.array(item_N) if source is None else source.ids.take(pa.array(item_N))
    if source is not None and source.fingerprint == scorer.vocabulary.fingerprint:
        position_N = item_N.astype(np.int64)
    else:
        position_N = scorer.vocabulary.positions(ids)
    known_N = torch.from_numpy(position_N >= 0)
    scaled_N = torch.from_numpy(on_scale(value_N.astype(np.float64), levels))
    user_B = torch.full((len(table),), -1)
    value = torch.from_numpy(value_N.astype(np.float32))
    whole = Batch(user_B, torch.from_numpy(pointer_P), torch.from_numpy(position_N), value)
    fates = {
        "used": int((known_N & scaled_N).sum()),
        _UNKNOWN_ITEM: int((~known_N).sum()),
        _OFF_SCALE: int((known_N & ~scaled_N).sum()),
    }
    return whole.keep(known_N & scaled_N), fates


def _rows(batch: Batch, start: int, stop: int) -> Batch:
    low, high = int(batch.pointer_P[start]), int(batch.pointer_P[stop])
    return Batch(
        batch.user_B[start:stop],
        batch.pointer_P[start : stop + 1] - low,
        batch.item_N[low:high],
        batch.value_N[low:high],
    )


def _columns(scorer: Scorer, lists: Recommendations, prefix: str) -> dict[str, pa.Array]:
    """Lay lists out as Arrow columns, without the places that had no candidate."""
    present_BK = lists.item_BK >= 0
    pointer = np.concatenate([[0], present_BK.sum(1).cumsum(0).numpy()]).astype(np.int32)

    def column(value: torch.Tensor) -> pa.Array:
        return pa.ListArray.from_arrays(pointer, pa.array(value[present_BK].numpy()))

    ids = scorer.vocabulary.ids.take(pa.array(lists.item_BK[present_BK].numpy()))
    columns = {"items": pa.ListArray.from_arrays(pointer, ids), "scores": column(lists.score_BK)}
    if lists.opinion is not None:
        level_ML = lists.opinion.level_BIL[present_BK].contiguous()
        levels = pa.FixedSizeListArray.from_arrays(
            pa.array(level_ML.flatten().numpy()), level_ML.shape[1]
        )
        columns |= {
            "probabilities": column(lists.opinion.probability_BI),
            "ratings": column(lists.opinion.rating_BI),
            "rating_distribution": pa.ListArray.from_arrays(pointer, levels),
        }
    return {prefix + name: value for name, value in columns.items()}


def _check_list(work: Work, config: ScoreConfig) -> None:
    """Fail before any actor starts when the model cannot make the second list."""
    bundle = load_bundle(Folder(work.bundle))
    if config.serendipitous_k:
        nobody = Batch.from_lists([[]])
        Scorer(bundle.model, bundle.vocabulary).serendipitous(
            nobody, None, 1, unlikely_share=config.unlikely_share, min_support=config.min_support
        )


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
    fates = dict(sum((Counter(entry.pop("fates")) for entry in entries), Counter()))
    return {
        "distrib": __version__,
        "recipe": work.recipe,
        "counts": {"users": scored, "interactions": fates},
        "files": entries,
    }
