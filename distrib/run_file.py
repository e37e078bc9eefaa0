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
from distrib.train.config import LoopConfig, TrainConfig
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
    train: LoopConfig = Field(default_factory=LoopConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    score: ScoreConfig = Field(default_factory=ScoreConfig)
    export: ExportConfig = Field(default_factory=ExportConfig)
    serve: ServeConfig = Field(default_factory=ServeConfig)
    convert: ConvertConfig = Field(default_factory=ConvertConfig)
    search: SearchConfig = Field(default_factory=SearchConfig)

    @model_validator(mode="after")
    def _second_list_needs_a_model_that_tells(self) -> "RunFile":
        if self.score.serendipitous_k and self.model.traits.gives != "outcomes":
            raise ValueError(
                f"score.serendipitous_k = {self.score.serendipitous_k}, but model "
                f"{self.model.name!r} tells not both ratings and probabilities; set it to 0, "
                "or use conv4rec"
            )
        return self

    @model_validator(mode="after")
    def _new_items_need_a_model_that_encodes_them(self) -> "RunFile":
        if self.score.new_items and not self.model.traits.encodes_items:
            raise ValueError(
                f"score.new_items = true, but model {self.model.name!r} knows the items of "
                "training only; set it to false, or use vae_bmf"
            )
        return self

    def training_with(self, settings: Mapping[str, Any]) -> TrainConfig:
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

    def training(self) -> TrainConfig:
        """Return the part that decides training."""
        return TrainConfig(
            run=self.run,
            prepared=self.data.prepared,
            seed=self.seed,
            model=self.model,
            objective=self.objective or self.model.traits.objective,
            optimizer=self.optimizer,
            engine=self.engine,
            loop=self.train,
            evaluate=self.evaluate,
        )
