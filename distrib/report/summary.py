"""The summary tables of a run, and its plots in the run folder."""

from collections.abc import Sequence
from typing import Any

from distrib.data.dataset import Dataset
from distrib.evaluation.job import Evaluation, title_of, with_error
from distrib.evaluation.protocol import DISTANCE, is_meant
from distrib.events import emit, table
from distrib.models.outputs import OutputKind
from distrib.report.plots import learning_curves, study, unlabeled_weights
from distrib.scoring.commit import success_of
from distrib.storage import Folder, last_part
from distrib.training.records import EpochRecord, history_of
from distrib.training.run_folder import HISTORY
from distrib.tuning.job import SearchResult

STUDY = "search.png"
CURVES = "learning_curves.png"
WEIGHTS = "unlabeled_weights.png"


def draw_curves(run: str, best_epoch: int, compare_with: Sequence[str] = ()) -> str:
    """Draw the learning curves of a run into its folder and return their path.

    Args:
        run: Run folder.
        best_epoch: From 1.
        compare_with: Folders of other runs; those without a finished epoch are left out.

    Returns:
        The path.
    """
    folder = Folder(run)
    history = _history(folder)
    others = {other: Folder(other) for other in compare_with}
    last_parts = [last_part(other) for other in others]
    are_apart = len(set(last_parts)) == len(last_parts)
    drawn = {
        short if are_apart else other: _history(held)
        for short, (other, held) in zip(last_parts, others.items(), strict=True)
        if held.exists(HISTORY)
    }
    missing = [other for other, held in others.items() if not held.exists(HISTORY)]
    if missing:
        emit("runs_to_compare_with_missing", runs=missing)
    title = last_part(str(folder))
    folder.write(CURVES, learning_curves(title, history, best_epoch, drawn))
    weights = unlabeled_weights(history)
    if weights is not None:
        folder.write(WEIGHTS, weights)
    return str(folder / CURVES)


def _history(folder: Folder) -> list[EpochRecord]:
    return history_of(folder.read_json(HISTORY), folder / HISTORY)


def draw_search(run: str, result: SearchResult) -> str:
    """Draw a study into its folder and return the path."""
    Folder(run).write(STUDY, study(result.trials))
    return str(Folder(run) / STUDY)


def show_search(result: SearchResult, num_trials: int = 15) -> None:
    """Print the best trials of a study."""
    trials = result.trials[:num_trials]
    fields, metrics = list(trials[0].settings), list(trials[0].valid)
    rows = [
        [
            trial.trial,
            *trial.settings.values(),
            trial.epochs,
            *(f"{trial.valid[name]:.4f}" if trial.valid else "-" for name in metrics),
            trial.fault[:30],
        ]
        for trial in trials
    ]
    columns = ["trial", *(name.partition(".")[2] or name for name in fields), "epochs", *metrics]
    chosen_by = ", ".join(result.selection)
    title = f"Trials by {chosen_by} on validation; --set {' --set '.join(result.best)}"
    table(title, [*columns, "fault"], rows)


def show_evaluation(result: Evaluation, output: OutputKind, prepared: str) -> None:
    """Print the metrics of model and popularity with standard errors.

    Args:
        result: What was measured.
        output: What the model predicts.
        prepared: The data that it was measured on.
    """
    models, num_levels = result.metrics, len(Dataset.open(prepared).manifest.levels)
    rows = [
        [metric, *(with_error(models[name].get(metric)) for name in models)]
        for metric in models["model"]
        if is_meant(metric, output, num_levels)
    ]
    truth = result.distance_to_truth
    if truth is not None:
        rest = [""] * (len(models) - 2)
        rows += [
            [f"{DISTANCE}{kind}", f"{far:.4f}", f"{truth.popularity[kind]:.4f}", *rest]
            for kind, far in truth.model.items()
            if kind in truth.popularity
        ]
    table(title_of(result), ["", *models], rows)


def show_recommendations(output: str, num_users: int = 3, num_items: int = 5) -> None:
    """Print the first recommendation lists that bulk scoring wrote, if any."""
    folder = Folder(output)
    published = success_of(folder)
    first = published.files[0].name if published is not None and published.files else None
    lists = folder.read_parquet(first).slice(0, num_users).to_pylist() if first else []
    if not lists or "items" not in lists[0]:
        return
    rows = [[row["user"], *_listed(row, "", num_items)] for row in lists]
    if "serendipitous_items" in lists[0]:
        rows += [
            [f"{row['user']}, serendipitous", *_listed(row, "serendipitous_", num_items)]
            for row in lists
        ]
    is_predicted = _is_predicted(lists[0], "")
    what = "item (probability, expected rating)" if is_predicted else "item (score)"
    columns = ["user", *(str(rank) for rank in range(1, num_items + 1))]
    table(f"First recommendations: {what}; all in {output}", columns, rows)


def _is_predicted(row: dict[str, Any], prefix: str) -> bool:
    return {prefix + "probabilities", prefix + "ratings"} <= set(row)


def _listed(row: dict[str, Any], prefix: str, num_items: int) -> list[str]:
    items = row[prefix + "items"][:num_items]
    if _is_predicted(row, prefix):
        predicted = zip(row[prefix + "probabilities"], row[prefix + "ratings"], strict=True)
        texts = [
            f"{item} ({probability:.2f}, {rating:.1f})"
            for item, (probability, rating) in zip(items, predicted, strict=False)
        ]
    else:
        scores = row.get(prefix + "scores", [])
        texts = [f"{item} ({score:.2f})" for item, score in zip(items, scores, strict=False)]
        texts = texts or [str(item) for item in items]
    return texts + [""] * (num_items - len(texts))
