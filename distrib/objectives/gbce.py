"""Binary cross-entropy of the next item against sampled ones, plain or generalized (gBCE)."""

import math
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from distrib.batch import Batch
from distrib.config import Config
from distrib.objectives.base import Defaults, LossContext, ObjectiveSpec
from distrib.objectives.decoder import Decoder, Tensors
from distrib.vocabulary import Catalog

_STREAM = 241  # random stream


class GbceConfig(Config):
    """Settings of the binary cross-entropy; one sample and no calibration are SASRec's."""

    name: Literal["gbce"] = "gbce"

    spec: ClassVar[ObjectiveSpec] = ObjectiveSpec(
        "scores", needs_whole_catalog=True, model_scheme="next_item"
    )

    num_sampled: PositiveInt = 1
    """Items drawn uniformly, k in the source."""

    shared: bool = False
    """Whether the targets of a user share the drawn items, which saves memory with many of them;
    otherwise each target has its own."""

    calibration: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """t in the source: 0 for the plain loss; 1 for scores whose sigmoid is a probability."""

    starts_at_rest: bool = True
    """Whether scores are shifted by b, so that training does not have to find it; see `Gbce`."""

    @model_validator(mode="after")
    def _one_sample_is_not_shared(self) -> "GbceConfig":
        if self.shared and self.num_sampled == 1:
            raise ValueError(
                "shared = true with num_sampled = 1: all targets of a user would have the same "
                "one; set it to false, or draw more"
            )
        return self

    def build(self, catalog: Catalog) -> "Gbce":
        """Make the objective."""
        return Gbce(self, catalog)


class Gbce(Defaults):
    """-beta log sigmoid(s + b) of a target, and -log(1 - sigmoid(s + b)) of each drawn item, nats.

    beta = a (t (1 - 1 / a) + 1 / a), with the sampling rate a = k / (items - 1). Drawn items that
    are targets of the user in the same update do not count. With b = log(beta / k), scores of 0 are
    at rest: a target pulls as much as its samples push. For one sample without calibration b = 0.

    Source: Kang, McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018; generalized:
    Petrov, Macdonald, "gSASRec: Reducing Overconfidence in Sequential Recommendation Trained with
    Negative Sampling", RecSys 2023, eq. 7 and 11. Differs from the sources: b, without which the
    first updates push all states to one direction, and many epochs pass before they part; draws
    depend on the epoch, the user and the target alone; all targets of the user in the update are
    left out, not only the next, and not drawn again.
    """

    terms = ("targets", "sampled")
    decodes_pairs = True

    def __init__(self, config: GbceConfig, catalog: Catalog) -> None:
        self.config, self.item_count = config, catalog.item_count
        rate = config.num_sampled / max(catalog.item_count - 1, 1)
        self.beta = rate * (config.calibration * (1.0 - 1.0 / rate) + 1.0 / rate)
        self.start = math.log(self.beta / config.num_sampled) if config.starts_at_rest else 0.0

    def __call__(
        self, model: Decoder, users: Tensors, target: Batch, context: LossContext
    ) -> Tensor:
        """Compute both parts of the loss; see `Objective`."""
        group_R, place_R = _groups(target)
        if self.config.shared:
            first_G = torch.nonzero(place_R == 0)[:, 0]
            drawn_GK = self._draw(target.chosen(first_G), place_R[first_G], context)
            score_RK = _shared_scores(model, users, drawn_GK, group_R)
            is_known_RK = self._is_known(drawn_GK, group_R[first_G], target, group_R)[group_R]
        else:
            drawn_RK = self._draw(target, place_R, context)
            score_RK = _own_scores(model, users, drawn_RK, target)
            is_known_RK = self._is_known(drawn_RK, group_R, target, group_R)
        score_R = model.score_pairs(users, target).float() + self.start
        sampled_RK = F.softplus(score_RK.float() + self.start).masked_fill(is_known_RK, 0.0)
        return torch.stack([self.beta * F.softplus(-score_R), sampled_RK.sum(1)])

    def _is_known(
        self, drawn_DK: Tensor, group_D: Tensor, target: Batch, group_R: Tensor
    ) -> Tensor:
        """Return which drawn items are targets of the user that they were drawn for."""
        drawn_DK = group_D[:, None] * self.item_count + drawn_DK
        return torch.isin(drawn_DK, group_R * self.item_count + target.item_N)

    def _draw(self, target: Batch, place_R: Tensor, context: LossContext) -> Tensor:
        """Draw items for each target, int64 ``[R, K]``."""
        sample_K = torch.arange(self.config.num_sampled, device=place_R.device)
        keys = target.user_B[:, None], place_R[:, None], sample_K
        return context.rng.below(_STREAM, self.item_count, *keys)


def _groups(target: Batch) -> tuple[Tensor, Tensor]:
    """Return the number of the user of each target, and the target's place among the user's."""
    user_R = target.user_B
    is_new_R = torch.ones_like(user_R, dtype=torch.bool)
    is_new_R[1:] = user_R[1:] != user_R[:-1]
    group_R = is_new_R.cumsum(0) - 1
    first_G = torch.nonzero(is_new_R)[:, 0]
    return group_R, torch.arange(len(user_R), device=user_R.device) - first_G[group_R]


def _own_scores(model: Decoder, users: Tensors, drawn_RK: Tensor, target: Batch) -> Tensor:
    num_rows, num_sampled = drawn_RK.shape
    pointer_P = torch.arange(num_rows + 1, device=drawn_RK.device) * num_sampled
    nothing = torch.zeros(drawn_RK.numel(), device=drawn_RK.device)
    pairs = Batch(target.user_B, pointer_P, drawn_RK.flatten(), nothing)
    return model.score_pairs(users, pairs).view(num_rows, num_sampled)


def _shared_scores(model: Decoder, users: Tensors, drawn_GK: Tensor, group_R: Tensor) -> Tensor:
    """Decode, for the states of each user, the items drawn for that user."""
    sizes = torch.bincount(group_R, minlength=len(drawn_GK)).tolist()
    tables = model.item_tables()
    states = [part.split(sizes) for part in users]
    found = [
        model.decode_rows(tuple(state), tuple(table[item_K] for table in tables))
        for *state, item_K in zip(*states, drawn_GK, strict=True)
    ]
    return torch.cat(found) if found else drawn_GK.new_zeros(0, drawn_GK.shape[1]).float()
