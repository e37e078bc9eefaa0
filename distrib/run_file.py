"""The run file: one description of the whole pipeline, read by every job."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from distrib.config import Config, checked
from distrib.data.config import ConvertConfig, DataConfig
from distrib.distill.config import SoftenConfig
from distrib.evaluation.config import EvaluateConfig
from distrib.models import ModelConfig
from distrib.objectives import ObjectiveConfig
from distrib.scoring.forget import ForgetConfig
from distrib.scoring.policy import ScoreConfig
from distrib.scoring.vectors import ExportConfig
from distrib.serve.config import ServeConfig
from distrib.training.config import TrainConfig, TrainingRun
from distrib.training.engines.config import EngineConfig
from distrib.training.optimizer import OptimizerConfig
from distrib.tuning.space import SearchConfig, with_settings


class RunFile(Config):
    """All settings of a run, by job."""

    run: str
    """Path or URL of the run folder, which holds all outputs of training and scoring."""

    seed: int = 0
    """Seeds initial weights, user order and noise; splits have their own seed."""

    data: DataConfig
    model: ModelConfig
    objective: ObjectiveConfig | None = None
    """Training objective; the model's default if not given."""

    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    engine: EngineConfig = Field(default_factory=EngineConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    score: ScoreConfig = Field(default_factory=ScoreConfig)
    export: ExportConfig = Field(default_factory=ExportConfig)
    serve: ServeConfig = Field(default_factory=ServeConfig)
    convert: ConvertConfig = Field(default_factory=ConvertConfig)
    soften: SoftenConfig = Field(default_factory=SoftenConfig)
    forget: ForgetConfig = Field(default_factory=ForgetConfig)
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
                f"score.new_items = true, but model {self.model.name!r} cannot score items "
                "that are not in training; set it to false, or use vae_bmf"
            )
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def training_with(self, settings: Mapping[str, Any]) -> TrainingRun:
        """Return the settings that determine training, with some fields overridden.

        Args:
            settings: Values by dotted field name.

        Returns:
            The validated configuration.

        Raises:
            ConfigError: A field is unknown or its value is invalid.
        """
        document = with_settings(self.model_dump(mode="json", exclude_unset=True), settings)
        return checked(RunFile, document, where="search.space").training()

    def training(self) -> TrainingRun:
        """Return the settings that determine training."""
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
