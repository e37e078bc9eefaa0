"""Objectives: pure functions of tensors; the union below is what a run file can name."""

from typing import Annotated

from pydantic import Field

from distrib.objectives.base import CellObjective, CodeObjective, FactoredObjective, Objective
from distrib.objectives.binary import BinaryConfig
from distrib.objectives.cosine import CosineConfig
from distrib.objectives.multinomial import MultinomialConfig
from distrib.objectives.rating_classes import RatingClassesConfig
from distrib.objectives.squared_error import SquaredErrorConfig

ObjectiveConfig = Annotated[
    BinaryConfig | CosineConfig | MultinomialConfig | RatingClassesConfig | SquaredErrorConfig,
    Field(discriminator="name"),
]

__all__ = [
    "BinaryConfig",
    "CellObjective",
    "CodeObjective",
    "CosineConfig",
    "FactoredObjective",
    "MultinomialConfig",
    "Objective",
    "ObjectiveConfig",
    "RatingClassesConfig",
    "SquaredErrorConfig",
]
