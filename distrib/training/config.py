"""Configuration of a training run."""

from typing import Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from distrib.config import Config
from distrib.data.feeds.tiles import TileConfig
from distrib.evaluation.config import EvaluateConfig
from distrib.labeled_metrics import AUC
from distrib.models import ModelConfig
from distrib.objectives import ObjectiveConfig
from distrib.storage import Folder, last_part
from distrib.training.engines.config import EngineConfig
from distrib.training.optimizer import OptimizerConfig


class CheckpointConfig(Config):
    """When checkpoints are written, and how many are kept.

    One is also written after every new best epoch, and after the last epoch. After an epoch that is
    not the last, training does not wait for a store that is still writing the one before: the next
    checkpoint then has the best weights, too.
    """

    every_epochs: NonNegativeInt = 1
    """Epochs between checkpoints; 0 for never. Raise it where an epoch takes only seconds."""

    every_steps: NonNegativeInt = 0
    """Global batches between checkpoints within an epoch; 0 for never."""

    every_s: NonNegativeFloat = 600.0
    """Seconds between checkpoints within an epoch; 0 for never."""

    keep: PositiveInt = 2
    """How many of the newest are kept; the best epoch's weights are always kept."""

    in_background: bool = True
    """Whether training continues while one is written; costs a copy of the state in memory."""

    retry_s: NonNegativeFloat = 120.0
    """Seconds for which failing storage is retried before training stops."""


class TrainConfig(Config):
    """Length of training, batch size, workers, checkpoints and tracking."""

    num_epochs: PositiveInt = 20
    """Epochs over all training users. May be raised to train a finished run further."""

    patience: NonNegativeInt = 0
    """Epochs without improvement after which training ends early; 0 for never."""

    validate_every_epochs: PositiveInt = 1
    """Epochs between validations, and records; the last epoch is validated, too. Raise it where a
    validation takes longer than an epoch."""

    valid_users: NonNegativeInt = 0
    """About how many users each validation measures, the same sample every epoch; 0 for all. Lists
    from a large catalog cost more than an epoch of training."""

    batch_users: PositiveInt = 256
    """Users (of models trained on pairs: labeled pairs) of a global batch, over all workers; the
    result does not depend on the workers."""

    num_workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 1
    """Ray Train workers; on GPUs one each. ``[min, max]``: as many as the cluster has room for,
    while it shrinks and grows."""

    cpus_per_worker: PositiveInt = 1
    """CPU cores, and threads, of a worker."""

    use_gpu: bool = False
    """Whether each worker takes a GPU."""

    resource_timeout_s: NonNegativeFloat = 1200.0
    """Seconds to wait for an autoscaling cluster to make room for the workers."""

    feed: Literal["auto", "resident", "streaming"] = "auto"
    """``resident``: all histories in the memory of each node; ``streaming``: read from the prepared
    folder, window by window. ``auto`` takes resident where it fits. Neither depends on the number
    of workers, but their orders of users differ."""

    window_users: PositiveInt = 1_000_000
    """Users that a streaming feed shuffles at a time."""

    tiles: TileConfig = Field(default_factory=TileConfig)

    histories_on_gpu: bool = False
    """Whether a resident feed keeps the histories in each GPU's memory."""

    max_failures: NonNegativeInt = 8
    """Worker losses to survive; each costs the time since the last checkpoint."""

    resize_s: PositiveFloat = 60.0
    """Seconds between checks for room for more workers, where ``num_workers`` is a range."""

    collective_timeout_s: PositiveFloat = 600.0
    """Seconds without progress after which a worker reports the missing ranks and exits."""

    check_steps: PositiveInt = 10
    """Global batches between agreements of the ranks on finite losses, stopping, checkpoints."""

    max_skipped_updates: NonNegativeInt = 0
    """Consecutive non-finite losses allowed under fp16; their updates are skipped and counted."""

    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)

    select_by: tuple[str, ...] = ()
    """Metrics that choose the best epoch (geometric mean; errors inverted). Without it: the first
    NDCG for scores, RMSE for ratings, the second Recall and RMSE together for rating classes;
    the AUC of objectives on likes and dislikes, and where validation makes no lists."""

    pretrained: tuple[str, ...] = ()
    """Run folders of models of other kinds, trained on the same data, to start from: of ``gmf`` and
    ``mlp`` for NeuMF, of ``gmf`` for ConvNCF."""

    warm_start: str | None = None
    """Run folder of an earlier model of the same kind to start from, e.g. on older data."""

    compare_with: tuple[str, ...] = ()
    """Run folders whose validation curves are drawn beside this run's, e.g. of training on the
    labels alone."""

    log_every_s: PositiveFloat = 10.0
    """Seconds between lines of progress in a job log."""

    tensorboard: bool = False
    """Whether TensorBoard curves are written to the run folder; needs distrib[tensorboard]."""

    mlflow: str | None = None
    """Tracking URI of the MLflow server that logs every epoch; needs distrib[mlflow]."""

    @model_validator(mode="after")
    def _settings_go_together(self) -> "TrainConfig":
        if self.min_workers > self.max_workers:
            raise ValueError(
                f"num_workers = {list(self.worker_range)}: expected [min, max] with min <= max"
            )
        if self.histories_on_gpu and self.feed == "streaming":
            raise ValueError(
                "histories_on_gpu = true with feed = 'streaming', which reads them from storage; "
                "set feed = 'resident', or histories_on_gpu = false"
            )
        return self

    @property
    def worker_range(self) -> tuple[int, int]:
        """Minimum and maximum number of workers."""
        found = self.num_workers
        return (found, found) if isinstance(found, int) else found

    @property
    def min_workers(self) -> int:
        """Workers without which training does not begin."""
        return self.worker_range[0]

    @property
    def max_workers(self) -> int:
        """Workers that are requested."""
        return self.worker_range[1]


class TrainingRun(Config):
    """Everything that decides the result of training, and where it is written."""

    run: str
    """Path or URL of the run folder."""

    prepared: str
    """Path or URL of the prepared data."""

    seed: int
    """Seed of initial weights, order of users and noise."""

    model: ModelConfig
    objective: ObjectiveConfig | None
    """None for a closed-form model."""

    optimizer: OptimizerConfig
    engine: EngineConfig
    train: TrainConfig
    evaluate: EvaluateConfig

    def absolute(self) -> "TrainingRun":
        """Return the same with absolute paths: workers have their own working directories."""
        earlier = self.train.warm_start
        earlier_runs = {
            "warm_start": str(Folder(earlier)) if earlier else None,
            "pretrained": tuple(str(Folder(run)) for run in self.train.pretrained),
        }
        train = self.train.model_copy(update=earlier_runs)
        places = {"run": str(Folder(self.run)), "prepared": str(Folder(self.prepared))}
        return self.model_copy(update={**places, "train": train})

    @property
    def run_name(self) -> str:
        """Last part of the run folder's URL, a label of the metrics."""
        return last_part(self.run)

    @property
    def selection(self) -> tuple[str, ...]:
        """Names of the metrics that choose the best epoch."""
        if self.train.select_by:
            return self.train.select_by
        if self.model.spec.output == "ratings":
            return ("rmse",)
        needs_feedback = self.objective is not None and self.objective.spec.needs_feedback
        if needs_feedback or self.evaluate.lists != "always":
            return (AUC,)
        if self.model.spec.output == "rating_classes":
            return (
                f"recall@{self.evaluate.recall_at[min(1, len(self.evaluate.recall_at) - 1)]}",
                "rmse",
            )
        return (f"ndcg@{self.evaluate.ndcg_at[0]}",)
