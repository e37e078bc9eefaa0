"""Evaluation on the cluster: model and popularity on all test users of a prepared folder."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import ray
import ray.data

from distrib import __version__
from distrib.checkpoint.bundle import BUNDLE, BundleFacts, load_bundle
from distrib.checkpoint.manifest import MANIFEST, read_manifest
from distrib.cluster.actors import actor_pool
from distrib.config import JsonObject, Record, read_record
from distrib.data.dataset import Dataset
from distrib.data.history_arrays import users_with
from distrib.data.logs.config import SyntheticLog
from distrib.data.recent import recent_counts
from distrib.data.schema import Role
from distrib.data.splits.rules import GlobalTimeSplit, NoSplit, Split
from distrib.errors import ConfigError, DataError
from distrib.evaluation.baseline import model_and_popularity
from distrib.evaluation.config import EvaluateConfig
from distrib.evaluation.measured import PAIRS, Measured, joined
from distrib.evaluation.protocol import Measurer
from distrib.evaluation.ratings import CONFUSION, RELIABILITY
from distrib.evaluation.truth import TruthDistance, distance_to_truth
from distrib.events import emit, table_text
from distrib.metrics import FloatArray, Summary, Sums
from distrib.storage import Folder
from distrib.vocabulary import IntArray

RESULT = "evaluation.json"
_OF = "evaluation_of.json"
"""What `RESULT` was measured of; written last, so that the result is whole where this is."""

TABLES = "evaluation_tables.json"
"""Of the model's ratings; see `distrib.evaluation.ratings`."""

BY_USER = "evaluation_by_user"
"""Folder of Parquet files inside a run: the metrics of each user, for paired tests."""

HISTORY = "history"
"""Column there: interactions of the user before the targets."""


class Evaluation(Record):
    """Results on the test targets; ``evaluation.json`` in the run folder."""

    data: str
    """Hash of the prepared data."""

    users: dict[str, int]
    """``all`` = ``measured`` + ``without test targets``."""

    metrics: dict[str, dict[str, Summary]]
    """By model and metric: ``model``, ``popularity`` and, where the split is ``global_time``,
    ``recent_popularity``: that of the last days before testing."""

    distance_to_truth: TruthDistance | None = None
    """For a synthetic log only."""

    def __str__(self) -> str:
        """Return the metrics as a table."""
        rows = [
            [name, *(with_error(of_model.get(name)) for of_model in self.metrics.values())]
            for name in self.metrics["model"]
        ]
        return f"{title_of(self)}\n{table_text(['', *self.metrics], rows)}"


def title_of(result: Evaluation) -> str:
    """Return the title of a table of metrics."""
    return f"Test metrics (standard error), {result.users['measured']} users"


def with_error(summary: Summary | None) -> str:
    """Return a metric for people."""
    return "-" if summary is None else f"{summary.mean:.4f} ({summary.standard_error:.4f})"


def preflight(run: str, prepared: str) -> Dataset:
    """Check that there is a model and a matching test set.

    Args:
        run: Run folder.
        prepared: Prepared data.

    Returns:
        The prepared data.

    Raises:
        DataError: The data are not prepared, or hold no test target.
        ConfigError: The model was trained on other data.
    """
    dataset = Dataset.open(prepared)
    if not dataset.manifest.counts.interactions(Role.TEST_TARGET):
        raise DataError(
            f"{prepared}: holds no test targets; choose a data.split other than "
            f"{dataset.manifest.made_from.split!r}"
        )
    bundle = Folder(run) / BUNDLE
    if bundle.exists(MANIFEST):
        trained_on = read_record(BundleFacts, read_manifest(bundle).facts, bundle).data
        if trained_on != dataset.hash:
            raise ConfigError(
                f"{run} was trained on data {trained_on}, but {prepared} holds {dataset.hash}; "
                "use the data that it was trained on, or, if they were extended since, retrain "
                "with train.warm_start"
            )
    return dataset


def check_split(split: Split) -> None:
    """Reject a split without test targets.

    Args:
        split: The rule of the run file.

    Raises:
        ConfigError: There would be nothing to measure.
    """
    if isinstance(split, NoSplit):
        raise ConfigError(
            f"data.split = {split.name!r} holds out nothing to evaluate; run distrib nightly, or "
            "prepare, train and score one by one; to evaluate, choose another split in another "
            "run file"
        )


def evaluate(
    run: str,
    prepared: str,
    config: EvaluateConfig,
    *,
    output: Folder | None = None,
    is_here: bool = False,
) -> Evaluation:
    """Measure a run's best model and popularity on the test targets, unless that is done.

    Args:
        run: Run folder with a bundle.
        prepared: The data it was trained on.
        config: Which metrics.
        output: Where the results are written; the run folder by default.
        is_here: Whether this process measures, where the cluster's take longer to start.

    Returns:
        The results; also written to the folder.
    """
    dataset = preflight(run, prepared)
    load_bundle(Folder(run) / BUNDLE)  # fail here, clearly, rather than in an actor
    folder = Folder(run) if output is None else output
    wanted = _measured_of(run, dataset, config)
    if folder.exists(_OF) and folder.exists(RESULT) and folder.read_json(_OF) == wanted:
        emit("already_evaluated", folder=str(folder / RESULT))
        return read_record(Evaluation, folder.read_json(RESULT), folder / RESULT)
    folder.remove(_OF)
    bundle = str(Folder(run) / BUNDLE)
    measuring = _Measuring(bundle, dataset, config, folder / BY_USER, _recent(dataset, config))
    result = _evaluated(measuring, folder, _here if is_here else _on_cluster)
    folder.write_json(RESULT, result.to_json())
    folder.write_json(_OF, wanted)
    emit("evaluated", users=result.users)
    return result


def _measured_of(run: str, dataset: Dataset, config: EvaluateConfig) -> JsonObject:
    """Return what decides the result."""
    return {
        "bundle": read_manifest(Folder(run) / BUNDLE).digests,
        "data": dataset.hash,
        "distrib": __version__,
        "evaluate": config.model_dump(mode="json"),
    }


def _recent(dataset: Dataset, config: EvaluateConfig) -> IntArray | None:
    """Return interactions of the last days before testing, for a split by time."""
    if dataset.manifest.made_from.split != GlobalTimeSplit.model_fields["name"].default:
        return None
    return recent_counts(dataset, config.recent_days, Role.VALID_TARGET)


def _evaluated(
    measuring: "_Measuring",
    folder: Folder,
    measured: Callable[["_Measuring"], Iterable[pa.Table]],
) -> Evaluation:
    """Measure all test users."""
    dataset = measuring.dataset
    manifest = dataset.manifest
    parts: dict[str, dict[int, Measured]] = {}
    num_users = 0
    for block in measured(measuring):
        for row in range(len(block)):
            num_users += block["num_users"][row].as_py()
            scorer, place = block["scorer"][row].as_py(), block["place"][row].as_py()
            parts.setdefault(scorer, {})[place] = _measured(block, row)
    everyone = manifest.counts.users
    users = {
        "all": everyone,
        "measured": num_users,
        "without test targets": everyone - num_users,
    }
    # In the order of shards, so that sums do not depend on which actor is first.
    whole = {name: joined([found[n] for n in sorted(found)]) for name, found in parts.items()}
    tables = {
        name: t.tolist()
        for name, t in whole["model"].tables.items()
        if name in (CONFUSION, RELIABILITY)
    }
    folder.write_json(TABLES, tables)
    found = partial(
        Evaluation,
        data=dataset.hash,
        users=users,
        metrics={name: one.summaries() for name, one in whole.items()},
    )
    if manifest.made_from.format == SyntheticLog.model_fields["format"].default:
        return found(distance_to_truth=ray.get(distance_to_truth.remote(measuring.bundle, dataset)))
    return found()


class _Measuring(NamedTuple):
    """What a process needs to measure shards."""

    bundle: str
    dataset: Dataset
    config: EvaluateConfig
    folder: Folder
    """For the metrics of each user."""

    recent_IL: IntArray | None


def _on_cluster(measuring: _Measuring) -> Iterator[pa.Table]:
    """Measure the shards in Ray's actors."""
    shards = [{"place": place} for place in range(len(measuring.dataset.manifest.shards))]
    share = measuring.config.gpus_per_actor
    pieces = ray.data.from_items(shards, override_num_blocks=len(shards))
    measured = pieces.map_batches(
        _ShardMeasurer,
        fn_constructor_args=(measuring,),
        batch_size=1,
        batch_format="pyarrow",
        num_gpus=share,
        compute=actor_pool(share, len(shards)),
    )
    yield from measured.iter_batches(batch_size=None, batch_format="pyarrow")


def _here(measuring: _Measuring) -> Iterator[pa.Table]:
    """Measure the shards in this process."""
    measurer = _ShardMeasurer(measuring)
    for place in range(len(measuring.dataset.manifest.shards)):
        yield measurer(pa.table({"place": [place]}))


class _ShardMeasurer:
    """Holds the models; measures the users of one shard at a time."""

    def __init__(self, measuring: _Measuring) -> None:
        self.dataset, self.folder = measuring.dataset, measuring.folder
        config = measuring.config
        device = "cuda" if config.gpus_per_actor else "cpu"
        scorers = model_and_popularity(measuring.bundle, device, measuring.recent_IL)
        is_chronological = self.dataset.manifest.made_from.is_chronological
        self.measurer = Measurer(scorers, Role.TEST_TARGET, config, is_chronological)

    def __call__(self, piece: pa.Table) -> pa.Table:
        place = piece["place"][0].as_py()
        entry = self.dataset.manifest.shards[place]
        table = self.dataset.table(entry)
        rows = self.dataset.held_out_of(entry, table, Role.TEST_TARGET)
        found = self.measurer.added(self.measurer.nothing(), rows, np.arange(rows.num_users))
        # A shard may hold no test users, and then has no vectors.
        asked_B = next(iter(found.values())).by_user.get(PAIRS, np.zeros(rows.num_users))
        known_B = np.diff(rows.pointer_P) - asked_B
        columns = {"user": users_with(table, Role.TEST_TARGET), HISTORY: pa.array(known_B)} | {
            f"{name}_{metric}": pa.array(value_B)
            for name, part in found.items()
            for metric, value_B in part.by_user.items()
        }
        self.folder.write_parquet(f"part-{place:05d}.parquet", pa.table(columns))
        num_users = [rows.num_users] + [0] * (len(found) - 1)  # each user counts once
        return _table(place, found, num_users)


def _table(place: int, found: Mapping[str, Measured], num_users: Sequence[int]) -> pa.Table:
    """Return results as Arrow, a row for each scorer."""
    return pa.table(
        {
            "place": pa.array([place] * len(found), pa.int64()),
            "scorer": list(found),
            "num_users": pa.array(num_users, pa.int64()),
            "sums": [json.dumps(part.sums.totals) for part in found.values()],
            "score": pa.array([part.score_N for part in found.values()], pa.list_(pa.float32())),
            "is_like": pa.array([part.is_like_N for part in found.values()], pa.list_(pa.bool_())),
            **_columns([[*part.tables.items()] for part in found.values()]),
        }
    )


def _columns(tables: list[list[tuple[str, FloatArray]]]) -> dict[str, pa.Array]:
    """Return tables of numbers as columns."""
    names = [[name for name, _ in row] for row in tables]
    shapes = [[[*value.shape] for _, value in row] for row in tables]
    values = [[value.ravel() for _, value in row] for row in tables]
    return {
        "tables": pa.array(names, pa.list_(pa.string())),
        "shapes": pa.array(shapes, pa.list_(pa.list_(pa.int64()))),
        "values": pa.array(values, pa.list_(pa.list_(pa.float64()))),
    }


def _measured(block: pa.Table, row: int) -> Measured:
    """Return a row of `_table`, without the metrics of each user."""
    totals = json.loads(block["sums"][row].as_py())
    sums = Sums({name: tuple(value) for name, value in totals.items()})
    score, is_like = (block[name][row].values for name in ("score", "is_like"))
    names, shapes = (block[name][row].as_py() for name in ("tables", "shapes"))
    arrays = [values.values.to_numpy() for values in block["values"][row]]
    tables = {n: v.reshape(s) for n, v, s in zip(names, arrays, shapes, strict=True)}
    return Measured(sums, score.to_numpy(), is_like.to_numpy(zero_copy_only=False), {}, tables)
