"""The run file: one description of the whole pipeline, read by every job."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from distrib.config import Config, checked
from distrib.data.config import ConvertConfig, DataConfig
from distrib.evaluate.protocol import EvaluateConfig
from distrib.models import ModelConfig
from distrib.objectives import ObjectiveConfig
from distrib.score.policy import ScoreConfig
from distrib.score.vectors import ExportConfig
from distrib.serve.config import ServeConfig
from distrib.train.config import TrainConfig, TrainingRun
from distrib.train.engines.config import EngineConfig
from distrib.train.optimizer import OptimizerConfig
from distrib.tuning.space import SearchConfig, with_settings


class RunFile(Config):
    """All settings of a run, by job."""

    run: str
    """Path or URL of the run folder, which holds all that training and scoring leave."""

    seed: int = 0
    """Of initial weights, order of users and noise; splits have their own."""

    data: DataConfig
    model: ModelConfig
    objective: ObjectiveConfig | None = None
    """What is minimised; the model's own objective when not given."""

    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    engine: EngineConfig = Field(default_factory=EngineConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    score: ScoreConfig = Field(default_factory=ScoreConfig)
    export: ExportConfig = Field(default_factory=ExportConfig)
    serve: ServeConfig = Field(default_factory=ServeConfig)
    convert: ConvertConfig = Field(default_factory=ConvertConfig)
    search: SearchConfig = Field(default_factory=SearchConfig)

    @model_validator(mode="after")
    def _sections_fit(self) -> "RunFile":
        spec, faults = self.model.spec, []
        if self.score.serendipitous_k and spec.output != "rating_classes":
            faults.append(
                f"score.serendipitous_k = {self.score.serendipitous_k}, but model "
                f"{self.model.name!r} does not predict both ratings and probabilities; set it to "
                "0, or use conv4rec"
            )
        if self.score.new_items and not spec.encodes_items:
            faults.append(
                f"score.new_items = true, but model {self.model.name!r} knows the items of "
                "training only; set it to false, or use vae_bmf"
            )
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def training_with(self, settings: Mapping[str, Any]) -> TrainingRun:
        """Return the part that decides training, with some fields set.

        Args:
            settings: Values by dotted name of the field.

        Returns:
            The checked configuration.

        Raises:
            ConfigError: A field is not known or takes no such value.
        """
        document = with_settings(self.model_dump(mode="json", exclude_unset=True), settings)
        return checked(RunFile, document, where="search.space").training()

    def training(self) -> TrainingRun:
        """Return the part that decides training."""
        return TrainingRun(
            run=self.run,
            prepared=self.data.prepared,
            seed=self.seed,
            model=self.model,
            objective=self.objective or self.model.spec.objective,
            optimizer=self.optimizer,
            engine=self.engine,
            train=self.train,
            evaluate=self.evaluate,
        )
