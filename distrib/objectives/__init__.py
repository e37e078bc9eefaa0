"""Objectives, one file each; the union below is the list of those that a run file can name."""

from typing import Annotated

from pydantic import Field

from distrib.objectives.base import Objective
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
    "CosineConfig",
    "MultinomialConfig",
    "Objective",
    "ObjectiveConfig",
    "RatingClassesConfig",
    "SquaredErrorConfig",
]
