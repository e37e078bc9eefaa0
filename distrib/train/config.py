"""What a training run is made of."""

from distrib.config import Config
from distrib.evaluate.protocol import EvaluateConfig
from distrib.models import ModelConfig
from distrib.objectives import ObjectiveConfig
from distrib.storage import Folder
from distrib.train.engine import EngineConfig
from distrib.train.loop import LoopConfig
from distrib.train.optimizer import OptimizerConfig


class TrainConfig(Config):
    """All that decides the result of training, and where it goes."""

    run: str
    """Path or URL of the run folder."""

    prepared: str
    """Path or URL of the prepared data."""

    seed: int
    """Of initial weights, order of users and noise."""

    model: ModelConfig
    objective: ObjectiveConfig | None
    """None for a model that is computed at once."""

    optimizer: OptimizerConfig
    engine: EngineConfig
    loop: LoopConfig
    evaluate: EvaluateConfig

    def absolute(self) -> "TrainConfig":
        """Return the same with whole paths: workers stand in folders of their own."""
        earlier = self.loop.warm_start
        loop = self.loop.model_copy(
            update={"warm_start": str(Folder(earlier)) if earlier else None}
        )
        places = {"run": str(Folder(self.run)), "prepared": str(Folder(self.prepared))}
        return self.model_copy(update={**places, "loop": loop})

    @property
    def run_name(self) -> str:
        """Last part of the run folder's URL, which metrics are told apart by."""
        return self.run.rstrip("/").rsplit("/", 1)[-1]

    @property
    def speed_name(self) -> str:
        """Name of the rate of training: what a step counts is users, or in blocks ratings."""
        return "ratings_per_s" if self.model.traits.rows == "both" else "users_per_s"

    @property
    def selection(self) -> tuple[str, ...]:
        """Names of the metrics that choose the best epoch."""
        if self.loop.select_by:
            return self.loop.select_by
        if self.model.traits.gives == "ratings":
            return ("rmse",)
        if self.model.traits.gives == "outcomes":
            return (
                f"recall@{self.evaluate.recall_at[min(1, len(self.evaluate.recall_at) - 1)]}",
                "rmse",
            )
        return (f"ndcg@{self.evaluate.ndcg_at[0]}",)
