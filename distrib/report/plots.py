"""Pictures of a run, as PNG bytes: learning curves, and what is likely against what is liked."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")  # job pods have no display

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def learning_curves(history: Sequence[dict[str, Any]], best_epoch: int) -> bytes:
    """Draw losses and validation metrics by epoch.

    Args:
        history: Entries of a run's ``history.json``.
        best_epoch: Marked by a vertical line.

    Returns:
        A PNG.
    """
    epochs = [entry["epoch"] for entry in history]
    losses = _series(history, "losses")
    metrics = _series(history, "valid")
    panels = [*((f"loss: {name}", values) for name, values in losses.items()), *metrics.items()]
    columns = 3
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * rows), layout="constrained")
    for place, (name, values) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.plot(epochs, values, marker="." if len(epochs) < 40 else None, color="tab:blue")
        axes.axvline(best_epoch, color="tab:orange", linewidth=1, linestyle="--")
        axes.set_title(name if name.startswith("loss") else f"valid: {name}", fontsize=10)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=True, alpha=0.3)
    return _png(figure)


def likely_and_liked(probability_N: np.ndarray, rating_N: np.ndarray) -> bytes:
    """Draw pairs of user and item by probability of interaction and expected rating.

    The upper left corner holds the serendipitous ones: unlikely to be met, likely to be loved.

    Args:
        probability_N: 0..1.
        rating_N: In units of the levels.

    Returns:
        A PNG.
    """
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    cells = axes.hexbin(
        np.maximum(probability_N, 1e-6), rating_N, xscale="log", bins="log", gridsize=50, mincnt=1
    )
    axes.set_xlabel("probability of interaction")
    axes.set_ylabel("expected rating if so")
    axes.set_title("All items of some users; serendipitous ones lie at the upper left")
    figure.colorbar(cells, label="pairs of user and item")
    return _png(figure)


def _series(history: Sequence[dict[str, Any]], kind: str) -> dict[str, list[float]]:
    names = history[0][kind] if history else {}
    return {name: [entry[kind][name] for entry in history] for name in names}


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
