"""The bundle of the best epoch: written by the workers, published by the driver."""

import re

from torch import Tensor

from distrib.checkpoint.bundle import BUNDLE, BundleFacts, copy_bundle, write_bundle
from distrib.evaluation.protocol import is_better
from distrib.events import emit
from distrib.storage import Folder
from distrib.training.config import TrainingRun
from distrib.training.records import EpochRecord, best_record
from distrib.vocabulary import Vocabulary

_OURS = re.compile(r"epoch-\d{6,}")

BEST = "best"
"""Folder of the bundles of the best epochs so far, inside a run."""


def write_best(
    run: TrainingRun,
    vocabulary: Vocabulary,
    weights: dict[str, Tensor],
    record: EpochRecord,
    facts: BundleFacts,
) -> None:
    """Write the bundle of a new best epoch, and remove old ones.

    Args:
        run: The run.
        vocabulary: Items.
        weights: Weights of the model that scores.
        record: Record of the epoch.
        facts: Data and seed of the run.
    """
    best = Folder(run.run) / BEST
    about = facts.model_copy(update={"epoch": record.epoch, "valid": record.valid})
    write_bundle(best / _name(record.epoch), weights, run.model, vocabulary, about)
    ours = [name for name in best.folders() if _OURS.fullmatch(name)]
    for name in ours[: -run.train.checkpoint.keep - 1]:
        (best / name).remove()


def warn_of_popularity(run: TrainingRun, first: EpochRecord, best: EpochRecord) -> None:
    """Report a model that popularity, or the mean rating of each item, beats on validation.

    Args:
        run: The run.
        first: The first epoch.
        best: The best one.
    """
    popular = first.popularity
    behind = [
        f"{name} {best.valid[name]:.4g}, popularity {popular[name]:.4g}"
        for name in run.selection
        if name in popular.keys() & best.valid.keys()
        and is_better(name, popular[name], best.valid[name])
    ]
    if behind:
        advice = "train longer, tune with distrib search, or choose another model"
        emit("worse_than_popularity", on_validation=behind, advice=advice)


def publish_best(folder: Folder, history: list[EpochRecord]) -> EpochRecord:
    """Copy the best epoch's bundle to where other jobs expect it; return its record.

    A run without validation users that is stopped early has none yet.
    """
    best = best_record(history)
    place = folder / BEST / _name(best.epoch)
    if place.exists():
        copy_bundle(place, folder / BUNDLE)
    return best


def _name(epoch: int) -> str:
    """Return the name of the bundle of an epoch; names sort by age."""
    return f"epoch-{epoch:06d}"
