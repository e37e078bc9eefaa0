"""Popularity and item mean, from counts alone; the baseline of every report."""

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import PositiveFloat
from torch import Tensor
from typing_extensions import override

from distrib.batch import Batch
from distrib.config import Config
from distrib.models.base import ItemRows, Model, ModelSpec, UserState
from distrib.models.capabilities import InteractionHead
from distrib.models.outputs import ClassOutput
from distrib.rng import CounterRng
from distrib.vocabulary import Catalog

_PRIOR_RATINGS = 1e-3


class PopularityConfig(Config):
    """Settings of popularity."""

    name: Literal["popularity"] = "popularity"

    spec: ClassVar[ModelSpec] = ModelSpec("rating_classes", None, "closed_form", reads_repeats=True)

    window_days: PositiveFloat | None = None
    """Count only this many days before the last training interaction; by default all. Of a split
    by time, the last days often beat models of sequences."""

    def build(self, catalog: Catalog) -> "Popularity":
        """Make the model from the counts."""
        return Popularity(catalog)


class Popularity(Model):
    """The same prediction for all users: item frequency, mean rating and rating distribution.

    It ranks items by popularity and predicts their mean ratings. An item without ratings takes the
    mean and distribution of all ratings.
    """

    def __init__(self, catalog: Catalog) -> None:
        super().__init__()
        self.output = ClassOutput(catalog.levels)
        count_IL = torch.from_numpy(np.asarray(catalog.train_count_IL, dtype=np.float64))
        all_L = (count_IL.sum(0) + _PRIOR_RATINGS) / (
            count_IL.sum() + _PRIOR_RATINGS * len(catalog.levels)
        )
        prior_IL = count_IL + _PRIOR_RATINGS * all_L
        met_I1 = prior_IL.sum(1, keepdim=True) / (catalog.num_users + 2 * _PRIOR_RATINGS)
        level_IL = prior_IL / prior_IL.sum(1, keepdim=True)
        outcome_IC = torch.cat([1.0 - met_I1, met_I1 * level_IL], dim=1)
        self.register_buffer("logit_IC", outcome_IC.clamp(min=1e-12).log().to(torch.float32))
        self.logit_IC: Tensor

    @override
    def encode(self, batch: Batch, rng: CounterRng | None = None) -> UserState:
        return (batch.user_B,)

    @override
    def item_tables(self) -> ItemRows:
        return (self.logit_IC,)

    @override
    def decode_rows(self, users: UserState, rows: ItemRows) -> Tensor:
        return _for_each_user(users, rows)

    def interaction_head(self) -> InteractionHead:
        """Return the log-odds of an interaction, made once for all users."""
        odds_I = self.output.ranking_score(self.logit_IC)
        return InteractionHead((odds_I,), _for_each_user, self._rating_logits)

    def _rating_logits(self, users: UserState, pairs: Batch) -> Tensor:
        del users
        return self.logit_IC[pairs.item_N, 1:]


def _for_each_user(users: UserState, rows: ItemRows) -> Tensor:
    return rows[0].expand(users[0].shape[0], *rows[0].shape)
