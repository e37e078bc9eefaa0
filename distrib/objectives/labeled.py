"""Binary cross-entropy on likes and dislikes, alone or with sampled items as dislikes."""

from typing import ClassVar, Literal

from torch import Tensor

from distrib.batch import Batch
from distrib.config import Config
from distrib.feedback import Feedback
from distrib.objectives.base import Defaults, LossContext, ObjectiveSpec
from distrib.objectives.decoder import Decoder, Tensors
from distrib.objectives.signed_pairs import SamplesUnlabeled, signed_pairs
from distrib.vocabulary import Catalog


class LabeledConfig(Config):
    """The cross-entropy of labeled pairs has no settings."""

    name: Literal["labeled"] = "labeled"

    spec: ClassVar[ObjectiveSpec] = ObjectiveSpec(
        "log_odds", needs_feedback=True, needs_whole_catalog=True
    )

    def build(self, catalog: Catalog) -> "CrossEntropy":
        """Make the objective."""
        return CrossEntropy(catalog.feedback)


class SampledNegativesConfig(SamplesUnlabeled):
    """Settings of the cross-entropy with sampled negatives."""

    name: Literal["sampled_negatives"] = "sampled_negatives"

    spec: ClassVar[ObjectiveSpec] = ObjectiveSpec("log_odds", needs_whole_catalog=True)

    def build(self, catalog: Catalog) -> "CrossEntropy":
        """Make the objective."""
        return CrossEntropy(catalog.feedback)


class CrossEntropy(Defaults):
    """Sum over pairs of softplus(s) - s [like], nats, where s are log-odds of a like.

    Sampled pairs, if the feed draws any, count as dislikes.

    Source: He et al., "Neural Collaborative Filtering", WWW 2017, eq. 7.
    """

    terms = ("labeled", "unlabeled")
    decodes_pairs = True

    def __init__(self, feedback: Feedback | None) -> None:
        self.feedback = feedback

    def __call__(
        self, model: Decoder, users: Tensors, target: Batch, context: LossContext
    ) -> Tensor:
        """Compute the loss; see `Objective`."""
        del context
        pairs = signed_pairs(model, users, target, self.feedback)
        loss_N = pairs.cross_entropy()
        return pairs.split_by_user(loss_N, loss_N)
