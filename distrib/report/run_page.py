"""The page of a run: results, curves, ratings, configuration."""

import json
import platform
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from distrib import __version__
from distrib.data.dataset import Dataset
from distrib.evaluation.job import TABLES, Evaluation
from distrib.evaluation.protocol import DISTANCE, is_meant
from distrib.evaluation.ratings import CONFUSION, RELIABILITY
from distrib.evaluation.truth import InteractionRatingMap, interaction_rating_map
from distrib.metrics import Summary
from distrib.models.outputs import OutputKind
from distrib.report.charts import AnyChart, Chart, HeatMap, Series
from distrib.report.page import Cell, Code, Facts, Section, Table, TableRow, page
from distrib.report.plots import likely_and_liked
from distrib.storage import Folder, last_part
from distrib.training.records import EpochRecord, history_of
from distrib.training.run_folder import HISTORY, RUN

PAGE = "report.html"
MAP = "likely_and_liked.png"

_Z95 = 1.96
_MAP_BINS = 40


def draw_run(
    run: str, prepared: str, result: Evaluation, output: OutputKind
) -> dict[str, str | None]:
    """Write the page of an evaluated run, and its map of ratings, into its folder.

    Args:
        run: Run folder.
        prepared: Its prepared data.
        result: What evaluation measured.
        output: What the model predicts.

    Returns:
        Paths: ``page``, and ``map``, None where the model does not predict both.
    """
    folder, dataset = Folder(run), Dataset.open(prepared)
    history = history_of(folder.read_json(HISTORY), folder / HISTORY)
    tables = folder.read_json(TABLES) if folder.exists(TABLES) else {}
    found = interaction_rating_map(run, prepared)
    if found is not None:
        folder.write(MAP, likely_and_liked(found.probability_N, found.rating_N))
    sections = [
        Section("Results", [_results(result, output, len(dataset.manifest.levels))]),
        Section("Learning curves", [*_curves(history, output, len(dataset.manifest.levels))]),
        Section("Ratings", [*_ratings(tables, dataset.manifest.levels)]),
        Section("Likely and liked", [*_map(found)]),
        Section("Run", [_facts(folder, history, result, dataset), *_settings(folder)]),
    ]
    about = f"{result.users['measured']:,} test users, data {result.data[:12]}."
    shown = [section for section in sections if section.parts]
    folder.write(PAGE, page(last_part(run), about, shown).encode())
    return {"page": str(folder / PAGE), "map": None if found is None else str(folder / MAP)}


def _results(result: Evaluation, output: OutputKind, num_levels: int) -> Table:
    models = result.metrics
    rows: list[TableRow] = [
        [metric, *(_cell(models[name].get(metric)) for name in models)]
        for metric in models["model"]
        if is_meant(metric, output, num_levels)
    ]
    truth = result.distance_to_truth
    if truth is not None:
        for kind, far in truth.model.items():
            values = [f"{far:.4f}", f"{truth.popularity.get(kind, float('nan')):.4f}"]
            rows.append([f"{DISTANCE}{kind}", *values, *[""] * (len(models) - 2)])
    note = "Below each mean its 95 % interval over users or pairs."
    return Table("", ["", *models], rows, note)


def _cell(found: Summary | None) -> Cell:
    if found is None:
        return Cell("-")
    reach = _Z95 * found.standard_error
    note = f"{found.mean - reach:.4f} to {found.mean + reach:.4f}" if reach else ""
    return Cell(f"{found.mean:.4f}", note)


def _curves(
    history: Sequence[EpochRecord], output: OutputKind, num_levels: int
) -> Iterator[AnyChart]:
    """Yield losses and validation metrics by epoch; nothing of a model in closed form."""
    if len(history) < 2:
        return
    epochs = [record.epoch for record in history]
    losses = {name: None for record in history for name in record.losses}
    series = [Series(n, epochs, [r.losses.get(n, np.nan) for r in history]) for n in losses]
    yield Chart("losses", "Losses", "epoch", "mean", series)
    for name in [name for name in history[0].valid if is_meant(name, output, num_levels)]:
        drawn = [Series("model", epochs, [r.valid.get(name, np.nan) for r in history])]
        if name in history[0].popularity:
            level = history[0].popularity[name]
            drawn.append(Series("popularity", [epochs[0], epochs[-1]], [level, level]))
        yield Chart(f"valid-{name}", f"Validation {name}", "epoch", name, drawn)


def _ratings(
    tables: Mapping[str, list[list[float]]], levels: Sequence[float]
) -> Iterator[AnyChart]:
    if len(levels) < 2:
        return
    if CONFUSION in tables:
        counts_LL = np.array(tables[CONFUSION])
        share_LL = counts_LL / np.maximum(counts_LL.sum(1, keepdims=True), 1.0)
        yield HeatMap(
            "confusion",
            "Predicted by true rating",
            "predicted: the level nearest to the expected rating",
            "true rating",
            levels,
            levels,
            share_LL.tolist(),
            "share of the row",
        )
    if RELIABILITY in tables:
        bins = np.array(tables[RELIABILITY])
        bins = bins[bins[:, 0] > 0]
        mean, share = bins[:, 1] / bins[:, 0], bins[:, 2] / bins[:, 0]
        series = [
            Series("predicted levels", mean.tolist(), share.tolist()),
            Series("perfect", [0.0, 1.0], [0.0, 1.0]),
        ]
        labels = "probability of a level", "share of pairs that have it"
        yield Chart("reliability", "Reliability of rating levels", *labels, series)


def _map(found: InteractionRatingMap | None) -> Iterator[AnyChart]:
    """Yield where items lie by probability and rating."""
    if found is None:
        return
    log_N = np.log10(np.maximum(found.probability_N, 1e-6))
    counts, x, y = np.histogram2d(log_N, found.rating_N, bins=_MAP_BINS)
    value_YX = [[None if not c else float(np.log10(c)) for c in row] for row in counts.T]
    yield HeatMap(
        "likely-and-liked",
        "All items of some users: probability against expected rating",
        "log10 of the probability of an interaction",
        "expected rating given an interaction",
        ((x[1:] + x[:-1]) / 2).tolist(),
        ((y[1:] + y[:-1]) / 2).tolist(),
        value_YX,
        "log10 of pairs",
        note="Serendipitous items lie at the upper left: improbable, with high expected ratings.",
    )


def _facts(
    folder: Folder, history: Sequence[EpochRecord], result: Evaluation, dataset: Dataset
) -> Facts:
    counts, last = dataset.manifest.counts, history[-1]
    speed = last.speed
    lines = [
        ("folder", str(folder)),
        ("data", f"{result.data}; {counts.users:,} users, {counts.items:,} items"),
        ("epochs", str(last.epoch)),
        ("updates", f"{last.step:,}"),
    ]
    if speed is not None:
        lines.append(("speed", f"{speed.per_s:,.0f} {speed.counted} a second"))
    lines += [("distrib", __version__), ("python", platform.python_version())]
    return Facts("", lines)


def _settings(folder: Folder) -> Iterator[Code]:
    if folder.exists(RUN):
        text = json.dumps(folder.read_json(RUN), indent=1)
        yield Code("Settings that decide the result", text)
