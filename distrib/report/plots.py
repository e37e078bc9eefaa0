"""Plots of a run, as PNG bytes: learning curves, searches, and probability against rating."""

import io
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np

mpl.use("Agg")  # job pods have no display

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from distrib.training.records import EpochRecord
from distrib.tuning.job import Trial

_NOTHING: Mapping[str, Sequence[EpochRecord]] = {}
_VALID = "valid: "
_DECADE = 10.0  # ratio of values above which an axis is logarithmic


def learning_curves(
    title: str,
    history: Sequence[EpochRecord],
    best_epoch: int,
    others: Mapping[str, Sequence[EpochRecord]] = _NOTHING,
) -> bytes:
    """Draw losses, what the objective recorded, and validation metrics by epoch.

    Args:
        title: Of the picture.
        history: Epochs of a run.
        best_epoch: Marked by a vertical line.
        others: Epochs of other runs by name, whose validation metrics are drawn beside.

    Returns:
        A PNG.
    """
    epochs = [record.epoch for record in history]
    losses = _series([record.losses for record in history])
    curves = _series([record.curves for record in history])
    metrics = _series([record.valid for record in history])
    panels = [(f"loss: {name}", values) for name, values in losses.items()]
    panels += curves.items()
    panels += [(f"{_VALID}{name}", values) for name, values in metrics.items()]
    if not panels:  # of a model in closed form, trained on all there is
        figure = Figure(figsize=(6, 1.5), layout="constrained")
        figure.text(0.5, 0.5, "no losses and no validation to draw", ha="center", va="center")
        return _png(figure)
    columns = 3
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * rows + 0.4), layout="constrained")
    figure.suptitle(f"{title}; the best epoch is {best_epoch}")
    popularity = {f"{_VALID}{name}": value for name, value in history[0].popularity.items()}
    for place, (name, values) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, place + 1)
        marker = "." if len(epochs) < 40 else None
        axes.plot(epochs, values, marker=marker, color="tab:blue", label="this run")
        for number, (other, records) in enumerate(others.items()):
            metric = name.removeprefix(_VALID)
            found = [(r.epoch, r.valid[metric]) for r in records if metric in r.valid]
            if found and name.startswith(_VALID):
                color = f"C{2 + number % 8}"  # after those of this run and of the best epoch
                axes.plot(*zip(*found, strict=True), label=other, linestyle="--", color=color)
        axes.axvline(best_epoch, color="tab:orange", linewidth=1, linestyle="--")
        if name in popularity:
            axes.axhline(popularity[name], color="tab:gray", linestyle=":", label="popularity")
        if len(axes.get_legend_handles_labels()[1]) > 1:
            axes.legend(fontsize=7)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=True, alpha=0.3)
    return _png(figure)


def unlabeled_weights(history: Sequence[EpochRecord]) -> bytes | None:
    """Draw how the weights of unlabeled pairs are distributed, by epoch.

    Args:
        history: Epochs of a run.

    Returns:
        A PNG; None if the objective records no such weights.
    """
    found = [(record.epoch, record.histogram) for record in history if record.histogram]
    if not found:
        return None
    epochs, histograms = zip(*found, strict=True)
    share_BE = np.array([list(histogram.values()) for histogram in histograms]).T
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    extent = (epochs[0] - 0.5, epochs[-1] + 0.5, 0.0, 1.0)
    image = axes.imshow(share_BE, origin="lower", aspect="auto", extent=extent, vmin=0.0, vmax=1.0)
    axes.set_xlabel("epoch")
    axes.set_ylabel('weight of the label "like"')
    axes.set_title("Weights of unlabeled pairs")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(image, label="share of unlabeled pairs")
    return _png(figure)


def likely_and_liked(probability_N: np.ndarray, rating_N: np.ndarray) -> bytes:
    """Draw user-item pairs by probability of interaction and expected rating.

    The upper left corner holds the serendipitous ones: improbable, but with high expected ratings.

    Args:
        probability_N: 0..1.
        rating_N: In units of the levels.

    Returns:
        A PNG.
    """
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    bins = axes.hexbin(
        np.maximum(probability_N, 1e-6), rating_N, xscale="log", bins="log", gridsize=50, mincnt=1
    )
    axes.set_xlabel("probability of interaction")
    axes.set_ylabel("expected rating given an interaction")
    axes.set_title("All items of some users; serendipitous ones lie at the upper left")
    figure.colorbar(bins, label="user-item pairs")
    return _png(figure)


def study(trials: Sequence[Trial]) -> bytes:
    """Draw a study: the selection score of each trial by epoch, and by value of each field.

    Args:
        trials: From ``search.json``.

    Returns:
        A PNG.
    """
    done = [trial for trial in trials if trial.selection is not None]
    fields = list(trials[0].settings)
    columns = 3
    rows = -(-(len(fields) + 1) // columns)
    figure = Figure(figsize=(4 * columns, 2.8 * rows + 0.4), layout="constrained")
    figure.suptitle(f"{len(done)} trials; higher is better")
    axes = figure.add_subplot(rows, columns, 1)
    for place, trial in enumerate(done):
        color = "tab:orange" if place == 0 else "tab:gray"
        places = range(1, len(trial.curve) + 1)
        axes.plot(places, trial.curve, color=color, alpha=1.0 if place == 0 else 0.4, marker=".")
    axes.set_title("selection by validation", fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True, alpha=0.3)
    for place, name in enumerate(fields):
        axes = figure.add_subplot(rows, columns, place + 2)
        values = [trial.settings[name] for trial in done]
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        is_number = len(numbers) == len(values)
        shown = numbers if is_number else [str(value) for value in values]
        axes.scatter(shown, [trial.selection or 0.0 for trial in done], color="tab:blue")
        if is_number and min(numbers) > 0 and max(numbers) > _DECADE * min(numbers):
            axes.set_xscale("log")
        elif not is_number:
            axes.tick_params(axis="x", labelrotation=30, labelsize=8)
        axes.set_title(f"selection by {name}", fontsize=10)
        axes.grid(visible=True, alpha=0.3)
    return _png(figure)


def _series(values: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    names = dict.fromkeys(name for found in values for name in found)
    return {name: [found.get(name, np.nan) for found in values] for name in names}


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
