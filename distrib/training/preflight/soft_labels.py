"""Checks of stored soft labels: are they complete, and of the data that a run trains on?"""

from distrib.data.dataset import Dataset
from distrib.errors import ConfigError, DistribError
from distrib.models.sequential.config import SequenceConfig, targets_of
from distrib.objectives.label_config import stored_path
from distrib.soft_labels import label_manifest
from distrib.training.config import TrainingRun


def soft_label_faults(run: TrainingRun, dataset: Dataset) -> list[DistribError]:
    """Return why a run cannot train with its soft labels, if it cannot."""
    path, model = stored_path(run.objective), run.model
    if path is None:
        return []
    faults: list[DistribError] = []
    if isinstance(model, SequenceConfig) and model.every:
        faults.append(
            ConfigError(
                "model.targets = 'every' with stored soft labels, which are of a user's last "
                "target; set it to 'last'"
            )
        )
    try:
        manifest = label_manifest(path)
    except DistribError as error:
        return [*faults, error]
    if manifest.data != dataset.hash:
        faults.append(
            ConfigError(
                f"the soft labels in {path} were made of data {manifest.data}, but {run.prepared} "
                f"holds {dataset.hash}; run distrib soften with a run on these data"
            )
        )
    if manifest.targets != targets_of(model):
        faults.append(
            ConfigError(
                f"the soft labels in {path} are of targets {manifest.targets!r}, but "
                f"{model.name} is trained on {targets_of(model)!r}; run distrib soften with a run "
                "of the same kind of model"
            )
        )
    imputes = run.objective is not None and run.objective.spec.accepts == "ratings"
    if imputes and not manifest.has_ratings:
        faults.append(
            ConfigError(
                f"the soft labels in {path} have no ratings to impute; run distrib soften with "
                "soften.method = 'propagation' and an autoencoder on a log with ratings"
            )
        )
    return faults
