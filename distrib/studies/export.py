"""A study for other tools: how its data are split, and the lists of its runs."""

import json
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa

from distrib.checkpoint.bundle import BUNDLE
from distrib.data.arrow import flat_list
from distrib.data.config import LogFormat
from distrib.data.dataset import Dataset
from distrib.data.export import columns_of, encoded
from distrib.data.history_arrays import users_with
from distrib.data.prepare.histories import interactions_of
from distrib.data.schema import Role, Subset
from distrib.evaluation.config import EvaluateConfig
from distrib.evaluation.protocol import Measurer
from distrib.scoring.results import Recommendations
from distrib.scoring.scorer import Scorer
from distrib.storage import Folder
from distrib.studies.config import Export
from distrib.studies.results import Row, StudyResult, data_folder, run_folder
from distrib.vocabulary import Vocabulary

FOLDER = "export"

_FORMATS: Mapping[Export, LogFormat] = {"recbole": "inter", "lenskit": "parquet", "csv": "csv"}


def export(output: Folder, result: StudyResult, form: Export) -> list[str]:
    """Write the parts of each data set, and the lists of each run, so that others can measure them.

    In ``export/<data>`` are ``train``, ``known`` (what models read of users that are not in
    training), ``valid`` and ``test``, with the endings of the format, and ``lists-<address>`` of
    each run: user, item, rank and score of the test users' lists, as long as the longest cutoff.

    Args:
        output: Folder of the study.
        result: The study.
        form: ``recbole`` (atomic files, named as benchmark files), ``lenskit`` (Parquet with its
            columns) or ``csv``.

    Returns:
        Paths of what was written.
    """
    written: list[str] = []
    by_data: dict[str, list[Row]] = {}
    for row in result.rows:
        if row.run is not None:
            by_data.setdefault(row.run.prepared, []).append(row)
    for name, rows in by_data.items():
        folder = output / FOLDER / name
        dataset = Dataset.open(data_folder(result.runs, name))
        for part, table in _parts(dataset):
            written.append(_write(folder, f"{name}.{part}", table, form))
        runs = {row.address: row for row in rows}
        for address in runs:
            table = _lists(run_folder(result.runs, address), dataset, runs[address])
            written.append(_write(folder, f"lists-{address}", table, form))
    return written


def _write(folder: Folder, name: str, table: pa.Table, form: Export) -> str:
    is_list = "rank" in table.column_names
    ending: LogFormat = _FORMATS[form]
    if is_list and ending == "inter":
        ending = "csv"  # RecBole reads no lists
    file = f"{name}.{ending}"
    folder.write(file, encoded(table, ending, str(folder / file)))
    return str(folder / file)


def _parts(dataset: Dataset) -> Iterator[tuple[str, pa.Table]]:
    """Yield the parts of a split over all shards."""
    found: dict[str, list[pa.Table]] = {}
    has_time = dataset.manifest.times.last is not None
    has_rating = len(dataset.vocabulary.levels) > 1
    for entry in dataset.manifest.shards:
        table = dataset.table(entry)
        pointer_P, role_N = flat_list(table, "roles")
        is_training_B = table["subset"].to_numpy() == Subset.TRAIN
        is_training_N = np.repeat(is_training_B, np.diff(pointer_P))
        is_read_N = role_N <= Role.TRAIN_TARGET
        rows = columns_of(interactions_of(table, dataset.vocabulary, 0), has_rating, has_time)
        for part, is_in_N in (
            ("train", is_read_N & is_training_N),
            ("known", is_read_N & ~is_training_N),
            ("valid", role_N == Role.VALID_TARGET),
            ("test", role_N == Role.TEST_TARGET),
        ):
            found.setdefault(part, []).append(rows.filter(pa.array(is_in_N)))
    for part, tables in found.items():
        whole = pa.concat_tables(tables)
        if len(whole):
            yield part, whole


def _lists(run: Folder, dataset: Dataset, row: Row) -> pa.Table:
    """Return the lists that evaluation measured."""
    assert row.run is not None  # the caller selects
    scorer = Scorer.from_bundle(run / BUNDLE)
    config = EvaluateConfig.model_validate_json(json.dumps(row.run.settings.get("evaluate", {})))
    longest = max(n for at in config.ranking_metrics.values() for n in at)
    is_chronological = dataset.manifest.made_from.is_chronological
    measurer = Measurer({"model": scorer}, Role.TEST_TARGET, config, is_chronological)
    parts = []
    for entry in dataset.manifest.shards:
        table = dataset.table(entry)
        rows = dataset.held_out_of(entry, table, Role.TEST_TARGET)
        users = users_with(table, Role.TEST_TARGET)
        for asked in measurer.examples(rows, np.arange(rows.num_users)):
            seen = asked.seen if config.exclude_seen else None
            found = scorer.recommend(asked.source, seen, longest, with_predictions=False)
            own, users = users[: len(found.item_BK)], users[len(found.item_BK) :]
            parts.append(_listed(found, own, scorer.vocabulary))
    return pa.concat_tables(parts)


def _listed(found: Recommendations, users: pa.Array, vocabulary: Vocabulary) -> pa.Table:
    item_BK = found.item_BK.numpy()
    row_N, place_N = np.nonzero(item_BK >= 0)
    return pa.table(
        {
            "user_id": users.take(pa.array(row_N)),
            "item_id": vocabulary.ids.take(pa.array(item_BK[row_N, place_N])),
            "rank": pa.array(place_N + 1),
            "score": pa.array(found.score_BK.numpy()[row_N, place_N]),
        }
    )
