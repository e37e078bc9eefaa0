"""Checks of stored soft labels: are they complete, and of the data that a run trains on?"""

from distrib.data.dataset import Dataset
from distrib.errors import ConfigError, DistribError
from distrib.models.sequential.config import SequenceConfig
from distrib.objectives.label_config import ReadsLabels, StoredLabel
from distrib.soft_labels import label_manifest
from distrib.train.config import TrainingRun


def soft_label_faults(run: TrainingRun, dataset: Dataset) -> list[DistribError]:
    """Return why a run cannot train with its soft labels, if it cannot."""
    objective, model = run.objective, run.model
    if not isinstance(objective, ReadsLabels) or not isinstance(objective.label, StoredLabel):
        return []
    faults: list[DistribError] = []
    if isinstance(model, SequenceConfig) and model.every:
        faults.append(
            ConfigError(
                f"model.targets = 'every' with objective {objective.name!r}: a stored label is of "
                "a user's last target; set it to 'last'"
            )
        )
    path = objective.label.path
    try:
        made_of = label_manifest(path).data
    except DistribError as error:
        return [*faults, error]
    if made_of != dataset.hash:
        faults.append(
            ConfigError(
                f"the soft labels in {path} were made of data {made_of}, but {run.prepared} holds "
                f"{dataset.hash}; run jobs/soften.py with a run on these data"
            )
        )
    return faults
