"""Checks of likes and dislikes: does the prepared log hold what a run learns from?"""

from collections.abc import Iterator

from distrib.data.dataset import Dataset
from distrib.labeled_metrics import LABELED_METRICS
from distrib.objectives import SquaredErrorConfig
from distrib.objectives.inverse_gradient import DecidesByGradient
from distrib.objectives.unlabeled_entries import LearnsFromUnlabeled
from distrib.training.config import TrainingRun

_SET = "set data.feedback, and prepare into a new folder"
_CHANGE = "change data.feedback, and prepare into a new folder"


def feedback_faults(run: TrainingRun, dataset: Dataset) -> Iterator[str]:
    """Refuse data without the likes or dislikes that a run needs.

    Args:
        run: The run to train.
        dataset: Its prepared data.

    Yields:
        Each fault with its remedy.
    """
    feedback, needs = dataset.manifest.made_from.feedback, " and ".join(_needs(run))
    if feedback is None:
        if needs:
            yield (
                f"{needs}, but {run.prepared} does not say which interactions they are; "
                f"{_SET}{_without_dislikes(run)}"
            )
        return
    counts = dataset.vocabulary.sign_counts
    of_one = f"model {run.model.name!r} learns from likes" if _learns_from_pairs(run) else ""
    means = isinstance(run.objective, LearnsFromUnlabeled) and isinstance(
        run.objective.base, SquaredErrorConfig
    )
    of_both = needs or ("the objective compares with the mean of each" if means else "")
    for name, why in (("likes", of_both or of_one), ("dislikes", of_both)):
        if why and not counts[name]:
            instead = _without_dislikes(run) if name == "dislikes" else ""
            yield f"{run.prepared} has no {name} in training, but {why}; {_CHANGE}{instead}"
    yield from _hold_out_faults(run, counts["likes"] + counts["dislikes"])


def _needs(run: TrainingRun) -> Iterator[str]:
    """Yield why a run needs likes and dislikes."""
    if run.objective is not None and run.objective.spec.needs_feedback:
        yield f"objective {run.objective.name!r} learns from likes and dislikes"
    selecting = [name for name in run.selection if name in LABELED_METRICS]
    if selecting:
        yield f"the best epoch is selected by {', '.join(selecting)} on likes and dislikes"


def _learns_from_pairs(run: TrainingRun) -> bool:
    return run.model.spec.output == "log_odds"


def _without_dislikes(run: TrainingRun) -> str:
    """Return what to do about a log that has no dislikes, for a message."""
    if not _learns_from_pairs(run):
        return ""
    return (
        "; for a log without dislikes, choose objective 'sampled_negatives' or 'bpr', and "
        "train.select_by among lists"
    )


def _hold_out_faults(run: TrainingRun, num_labels: int) -> Iterator[str]:
    """Refuse a share of labels that holds out none."""
    objective = run.objective
    if isinstance(objective, DecidesByGradient) and objective.hold_out * num_labels < 1:
        yield (
            f"objective.hold_out = {objective.hold_out:g} of {num_labels} labels holds out none, "
            "so nothing would be decided; raise it"
        )
