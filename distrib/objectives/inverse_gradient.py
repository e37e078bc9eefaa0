"""Inverse gradient on pairs: which way to follow unlabeled pairs, decided on held-out labels."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, model_validator

from distrib.config import Config
from distrib.objectives.base import ObjectiveSpec
from distrib.objectives.inverse_dual import InverseDual, Power
from distrib.objectives.signed_pairs import SamplesUnlabeled
from distrib.vocabulary import Catalog


class DecidesByGradient(Config):
    """Fields of an objective that decides by the gradients of two losses."""

    hold_out: Annotated[float, Field(ge=0.001, le=0.9)] = 0.1
    """Share of the labels that decide; fixed for the whole run."""

    hold_out_seed: int = 0
    """Which labels: drawn by a hash of this seed, the user and the item."""

    ratio: Annotated[float, Field(ge=0.0)] = 0.1
    """Weight of the unlabeled loss relative to the supervised one, alpha / gamma in the source;
    for the forms of first order."""

    dead_zone: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.01
    """Absolute cosine of the two gradients below which the unlabeled loss is left out; for the
    forms of first order. Sketches raise it to 2 / sqrt(sketch_size) at least."""

    sketch_size: Annotated[int, Field(ge=64)] = 4096
    """Numbers that a gradient is sketched to before ranks exchange it."""


class InverseGradientConfig(SamplesUnlabeled, DecidesByGradient):
    """Settings of the inverse gradient on pairs."""

    name: Literal["inverse_gradient"] = "inverse_gradient"

    spec: ClassVar[ObjectiveSpec] = ObjectiveSpec(
        "log_odds", needs_feedback=True, needs_whole_catalog=True, scheme="meta"
    )

    power: Power = 2.0
    """See the inverse dual loss."""

    form: Literal["exact", "first_order", "sketched"] = "exact"
    """``exact`` tries both directions on the held-out pairs, in fp32 without ZeRO. ``first_order``
    compares the two gradients; ``sketched`` does so with little communication; ZeRO 0 to 2."""

    alternate: Literal["batches", "epochs"] = "batches"
    """``batches`` spreads the batches of held-out labels evenly over an epoch; ``epochs`` puts them
    at its end as the source does, so that the model remembers those best."""

    look_ahead: Literal["sgd", "sign"] = "sgd"
    """What the exact form tries: a step along the gradient, or along its signs as the released code
    does."""

    look_ahead_rate: PositiveFloat = 0.01
    """Size of that step, alpha in the source."""

    @model_validator(mode="after")
    def _settings_are_used(self) -> "InverseGradientConfig":
        of_exact = ("look_ahead", "look_ahead_rate")
        unused = ("ratio", "dead_zone", "sketch_size") if self.form == "exact" else of_exact
        fields = type(self).model_fields
        named = [name for name in unused if getattr(self, name) != fields[name].default]
        if named:
            raise ValueError(
                f"{', '.join(named)} has no effect with form = {self.form!r}; remove it, or change "
                "the form"
            )
        return self

    def build(self, catalog: Catalog) -> "InverseGradient":
        """Make the objective."""
        return InverseGradient(self, catalog)


class InverseGradient(InverseDual):
    """The two losses of the inverse dual loss; the scheme ``meta`` decides how they are combined.

    Source: "Inverse Learning with Extremely Sparse Feedback for Recommendation" (arXiv 2311.08302),
    inverse gradient.
    Differs from the source: by default batches of both kinds alternate within an epoch. An epoch
    that ends with the held-out labels costs NeuMF .007 AUC on MovieLens-1M, whatever is decided.
    """

    def __init__(self, config: InverseGradientConfig, catalog: Catalog) -> None:
        super().__init__(config.power, catalog.feedback)
        self.config = config
