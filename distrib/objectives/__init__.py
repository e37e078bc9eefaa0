"""Objectives, one file each; the union below is the list of those that a run file can name."""

from typing import Annotated

from pydantic import Field

from distrib.objectives.base import Objective
from distrib.objectives.binary import BinaryConfig
from distrib.objectives.bpr import BprConfig
from distrib.objectives.cosine import CosineConfig
from distrib.objectives.gbce import GbceConfig
from distrib.objectives.imputed_squared_error import ImputedSquaredErrorConfig
from distrib.objectives.inverse_dual import InverseDualConfig
from distrib.objectives.inverse_dual_rows import InverseDualRowsConfig
from distrib.objectives.inverse_gradient import InverseGradientConfig
from distrib.objectives.inverse_gradient_rows import InverseGradientRowsConfig
from distrib.objectives.labeled import LabeledConfig, SampledNegativesConfig
from distrib.objectives.multinomial import MultinomialConfig
from distrib.objectives.positive_unlabeled import PositiveUnlabeledConfig
from distrib.objectives.ranking_max import BprMaxConfig, Top1MaxConfig
from distrib.objectives.rating_classes import RatingClassesConfig
from distrib.objectives.robust_cross_entropy import ReweightedConfig, TruncatedConfig
from distrib.objectives.soft_rating_classes import SoftRatingClassesConfig
from distrib.objectives.soft_target import SoftTargetConfig
from distrib.objectives.softmax import SoftmaxConfig
from distrib.objectives.squared_error import SquaredErrorConfig

ObjectiveConfig = Annotated[
    BinaryConfig
    | BprConfig
    | BprMaxConfig
    | CosineConfig
    | GbceConfig
    | ImputedSquaredErrorConfig
    | InverseDualConfig
    | InverseDualRowsConfig
    | InverseGradientConfig
    | InverseGradientRowsConfig
    | LabeledConfig
    | MultinomialConfig
    | PositiveUnlabeledConfig
    | RatingClassesConfig
    | ReweightedConfig
    | SampledNegativesConfig
    | SoftRatingClassesConfig
    | SoftTargetConfig
    | SoftmaxConfig
    | SquaredErrorConfig
    | Top1MaxConfig
    | TruncatedConfig,
    Field(discriminator="name"),
]

__all__ = [
    "BinaryConfig",
    "BprConfig",
    "BprMaxConfig",
    "CosineConfig",
    "GbceConfig",
    "ImputedSquaredErrorConfig",
    "InverseDualConfig",
    "InverseDualRowsConfig",
    "InverseGradientConfig",
    "InverseGradientRowsConfig",
    "LabeledConfig",
    "MultinomialConfig",
    "Objective",
    "ObjectiveConfig",
    "PositiveUnlabeledConfig",
    "RatingClassesConfig",
    "ReweightedConfig",
    "SampledNegativesConfig",
    "SoftRatingClassesConfig",
    "SoftTargetConfig",
    "SoftmaxConfig",
    "SquaredErrorConfig",
    "Top1MaxConfig",
    "TruncatedConfig",
]
