"""What objectives of autoencoders share that also learn from entries outside a history."""

from typing import Annotated, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, model_validator
from torch import Tensor

from distrib.batch import Batch, level_index
from distrib.config import Config
from distrib.objectives.base import LossContext, Objective
from distrib.objectives.binary import BinaryConfig
from distrib.objectives.decoder import Decoder, Tensors
from distrib.objectives.inverse_dual import (
    SHARE_LIKED,
    DualLoss,
    Power,
    class_weights,
    dual_loss,
    record_weights,
)
from distrib.objectives.multinomial import LogNormalizer, MultinomialConfig
from distrib.objectives.rating_classes import RatingClassesConfig
from distrib.objectives.squared_error import SquaredErrorConfig
from distrib.rng import CounterRng
from distrib.vocabulary import Catalog

_STREAM = 131  # random stream
_ATTEMPTS = 8
_LEAST_EXPECTED = 1e-12

BaseConfig = Annotated[
    BinaryConfig | MultinomialConfig | RatingClassesConfig | SquaredErrorConfig,
    Field(discriminator="name"),
]


class LearnsFromUnlabeled(Config):
    """Fields of an objective that adds the inverse dual loss to that of an autoencoder."""

    base: BaseConfig
    """Objective on the histories, as without the inverse dual loss."""

    power: Power = 2.0
    """See the inverse dual loss on pairs."""

    sampled_share: Annotated[float, Field(gt=0.0)] = 1.0
    """Entries drawn outside a history, relative to its length."""

    warmup_steps: NonNegativeInt = 200
    """Updates without the inverse dual loss; over as many more its weight grows to the full one. An
    untrained model would learn random labels."""

    by_class: bool = False
    """With rating classes: weigh each class by its own loss, rather than "observed" against "not
    observed"."""

    collapse_factor: Annotated[float, Field(ge=0.0)] = 20.0
    """Training stops when the share of unlabeled entries that are seen as likes is this many times
    the density of the log; 0 for never."""

    @model_validator(mode="after")
    def _classes_need_classes(self) -> "LearnsFromUnlabeled":
        if self.by_class and not isinstance(self.base, RatingClassesConfig):
            raise ValueError(
                f"by_class = true with base {self.base.name!r}, which has no classes; set it to "
                "false"
            )
        return self

    def schedule(self, step: int) -> float:
        """Return the share of the full weight after ``step`` updates."""
        if not self.warmup_steps:
            return 1.0
        return min(1.0, max(0.0, step / self.warmup_steps - 1.0))

    def limits(self, catalog: Catalog) -> dict[str, float]:
        """Return the largest share of likes at which training continues."""
        if isinstance(self.base, SquaredErrorConfig):
            return {}  # a rating above the middle does not mean an interaction
        pairs = catalog.num_users * catalog.item_count
        density = int(np.sum(catalog.train_count_IL)) / max(pairs, 1)
        limit = self.collapse_factor * density
        return {SHARE_LIKED: limit} if self.collapse_factor and limit < 1.0 else {}


class Sides(NamedTuple):
    """Losses of entries under each label, nats or squared rating units."""

    like_N: Tensor
    dislike_N: Tensor
    given_N: Tensor
    """Loss of the entry as it is in the history."""

    class_NC: Tensor | None = None
    """Losses of all classes, if the model has classes."""


class EntryLosses:
    """The losses that a model's own objective implies for single entries of a user's row.

    Mult-VAE: with n draws from a softmax the number of draws of an item is nearly Poisson with mean
    m = n p, so l- = m and l+ = -log(1 - e^-m). Conv4Rec: l- = -log p("not observed"), l+ = -log of
    the rest. Binary: the log-odds themselves. Ratings: squared distances from the mean rating of
    likes and of dislikes.
    """

    def __init__(self, base: BaseConfig, catalog: Catalog) -> None:
        self.base, self.levels = base, catalog.levels
        plain: Objective = base.build(catalog)
        self.terms, self.kl = plain.terms, plain.kl
        self.parts: Objective = plain
        if isinstance(base, MultinomialConfig):
            self.parts = LogNormalizer(base, catalog)
        self.like, self.dislike = _mean_ratings(catalog)

    def __call__(
        self,
        model: Decoder,
        users: Tensors,
        entries: Batch,
        log_normalizer_B: Tensor,
        length_B: Tensor,
    ) -> Sides:
        """Compute the losses of some entries.

        Args:
            model: The model to train.
            users: From the model's ``encode``.
            entries: The entries; the value of those outside the history is NaN.
            log_normalizer_B: From `of_histories`.
            length_B: Interactions that the base objective reconstructs.

        Returns:
            The losses.
        """
        output = model.score_pairs(users, entries)
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        if isinstance(self.base, MultinomialConfig):
            row_N = entries.row_N
            log_share_N = output - log_normalizer_B[row_N]
            mean_N = (length_B[row_N] * log_share_N.exp()).clamp(min=_LEAST_EXPECTED)
            return Sides(-torch.log(-torch.expm1(-mean_N)), mean_N, -log_share_N)
        if isinstance(self.base, SquaredErrorConfig):
            given_N = (output - entries.value_N).square()
            return Sides((output - self.like).square(), (output - self.dislike).square(), given_N)
        if isinstance(self.base, BinaryConfig):
            return Sides(F.softplus(-output), F.softplus(output), F.softplus(-output))
        log_odds_N = torch.logsumexp(output[:, 1:], dim=1) - output[:, 0]
        class_NC = torch.logsumexp(output, dim=1, keepdim=True) - output
        level_N = level_index(entries.value_N.nan_to_num(self.levels[0]), self.levels) + 1
        like_N = F.softplus(-log_odds_N)
        level_loss_N = class_NC.gather(1, level_N[:, None])[:, 0] - like_N
        given_N = like_N + self.base.rating_weight * level_loss_N
        return Sides(like_N, F.softplus(log_odds_N), given_N, class_NC)

    def of_histories(
        self, model: Decoder, users: Tensors, target: Batch, context: LossContext
    ) -> tuple[Tensor, Tensor]:
        """Return the base loss, and the log-normalizer of each user's softmax, ``[B]``.

        The latter is 0 for an objective without softmax.
        """
        terms_TB = self.parts(model, users, target, context)
        if not isinstance(self.base, MultinomialConfig):
            return terms_TB, terms_TB.new_zeros(target.num_users)
        log_normalizer_B = terms_TB[0]
        return (target.length_B * log_normalizer_B - terms_TB[1])[None], log_normalizer_B


class UnlabeledRows:
    """What objectives have in common that add to the loss of an autoencoder."""

    decodes_pairs = False
    is_by_row = False

    def __init__(self, config: LearnsFromUnlabeled, catalog: Catalog) -> None:
        self.losses = EntryLosses(config.base, catalog)
        self.item_count = catalog.item_count
        self.terms = (*self.losses.terms, "inverse_dual")
        self.kl = self.losses.kl
        self.limits = config.limits(catalog)


def dual_terms(sides: Sides, config: LearnsFromUnlabeled, context: LossContext) -> Tensor:
    """Return the inverse dual loss of entries, and record its weights, ``[N]``."""
    if config.by_class and sides.class_NC is not None:
        weight_NC = class_weights(sides.class_NC, config.power)
        dual = DualLoss((weight_NC * sides.class_NC).sum(1), 1.0 - weight_NC[:, 0])
    else:
        dual = dual_loss(sides.like_N, sides.dislike_N, config.power)
    if config.schedule(context.step) > 0.0:
        record_weights(dual.like_weight_N, context)
    return dual.loss_N


def sum_by_user(value_N: Tensor, entries: Batch) -> Tensor:
    """Sum values of entries by user, ``[B]``."""
    return value_N.new_zeros(entries.num_users).index_add(0, entries.row_N, value_N)


def unlabeled_entries(target: Batch, rng: CounterRng, share: float, item_count: int) -> Batch:
    """Draw items outside each user's history, uniformly and with replacement.

    A user's draw depends on the epoch and the user only.

    Args:
        target: Whole histories.
        rng: The epoch's randomness.
        share: Items to draw, relative to the length of the history.
        item_count: Items of the catalog.

    Returns:
        A row for each user; all values are NaN. Users who know nearly all items have fewer.
    """
    length_B = target.length_B
    wanted_B = (share * length_B).ceil().long().clamp(max=item_count - length_B)
    row_S = torch.arange(target.num_users, device=length_B.device).repeat_interleave(wanted_B)
    start_B = wanted_B.cumsum(0) - wanted_B
    place_S = torch.arange(len(row_S), device=row_S.device) - start_B[row_S]
    known = torch.sort(target.row_N * item_count + target.item_N).values
    item_S = torch.full_like(row_S, -1)
    left = torch.arange(len(row_S), device=row_S.device)
    for attempt in range(_ATTEMPTS):
        keys = target.user_B[row_S[left]], place_S[left]
        drawn = rng.below(_STREAM, item_count, *keys, attempt=attempt)
        pair = row_S[left] * item_count + drawn
        place = torch.searchsorted(known, pair).clamp(max=max(len(known) - 1, 0))
        is_known = known[place] == pair if len(known) else torch.zeros_like(pair, dtype=torch.bool)
        item_S[left[~is_known]] = drawn[~is_known]
        left = left[is_known]
    is_found_S = item_S >= 0
    found_B = torch.bincount(row_S[is_found_S], minlength=target.num_users)
    pointer_P = torch.cat([found_B.new_zeros(1), found_B.cumsum(0)])
    items = item_S[is_found_S]
    nan = torch.full((len(items),), torch.nan, dtype=target.value_N.dtype, device=items.device)
    return Batch(target.user_B, pointer_P, items, nan)


def _mean_ratings(catalog: Catalog) -> tuple[float, float]:
    """Return the mean training rating of likes and of dislikes.

    Without a setting of what these are, ratings above and below the mean.
    """
    count_L = np.asarray(catalog.train_count_IL, dtype=np.float64).sum(0)
    level_L = np.asarray(catalog.levels)
    if catalog.feedback is None:
        sign_L = np.where(level_L > (count_L @ level_L) / max(count_L.sum(), 1.0), 1, -1)
    else:
        sign_L = catalog.feedback.sign(level_L.astype(np.float32))
    sides = []
    for sign in (1, -1):
        weight_L = count_L * (sign_L == sign)
        sides.append(float(weight_L @ level_L / max(weight_L.sum(), 1.0)))
    return sides[0], sides[1]
