"""The page of a run: results, curves, ratings, configuration."""

import json
import platform
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from distrib import __version__
from distrib.data.dataset import Dataset
from distrib.evaluation.job import Evaluation
from distrib.evaluation.protocol import DISTANCE, is_meant
from distrib.evaluation.ratings import CONFUSION, RELIABILITY
from distrib.evaluation.truth import interaction_rating_map
from distrib.metrics import Summary
from distrib.models.outputs import OutputKind
from distrib.report.charts import AnyChart, Chart, Series
from distrib.report.page import Cell, Code, Facts, Section, Table, TableRow, page
from distrib.report.plots import likely_and_liked
from distrib.report.rating_charts import (
    confusion_chart,
    map_chart,
    rating_tables_of,
    reliability_chart,
)
from distrib.storage import Folder, last_part
from distrib.training.records import EpochRecord, history_of
from distrib.training.run_folder import HISTORY, RUN

PAGE = "report.html"
MAP = "likely_and_liked.png"

_Z95 = 1.96


def draw_run(
    run: str,
    prepared: str,
    result: Evaluation,
    output: OutputKind,
    place: Folder | None = None,
) -> dict[str, str | None]:
    """Write the page of an evaluated run, and its map of ratings.

    Args:
        run: Run folder.
        prepared: Its prepared data.
        result: What evaluation measured.
        output: What the model predicts.
        place: Folder that evaluation wrote to, which gets the page; the run folder by default.

    Returns:
        Paths: ``page``, and ``map``, None where the model does not predict both.
    """
    folder, dataset = Folder(run), Dataset.open(prepared)
    place = folder if place is None else place
    history = history_of(folder.read_json(HISTORY), folder / HISTORY)
    tables = rating_tables_of(place)
    found = interaction_rating_map(run, prepared)
    if found is not None:
        place.write(MAP, likely_and_liked(found.probability_N, found.rating_N))
    sections = [
        Section("Results", [_results(result, output, len(dataset.manifest.levels))]),
        Section("Learning curves", [*_curves(history, output, len(dataset.manifest.levels))]),
        Section("Ratings", [*_ratings(tables, dataset.manifest.levels)]),
        Section("Likely and liked", [map_chart(found)] if found is not None else []),
        Section("Run", [_facts(folder, history, result, dataset), *_settings(folder)]),
    ]
    about = f"{result.users['measured']:,} test users, data {result.data[:12]}."
    shown = [section for section in sections if section.parts]
    place.write(PAGE, page(last_part(run), about, shown).encode())
    return {"page": str(place / PAGE), "map": None if found is None else str(place / MAP)}


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
        yield confusion_chart(tables[CONFUSION], levels)
    if RELIABILITY in tables:
        yield reliability_chart({"predicted levels": tables[RELIABILITY]})


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
