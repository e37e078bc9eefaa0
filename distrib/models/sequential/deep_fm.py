"""DeepFM over the slots of a history: pairwise products of what a user has met, beside a tower.

Source: Guo, Tang, Ye, Li, He, "DeepFM: A Factorization-Machine based Neural Network for CTR
Prediction", IJCAI 2017. For the next item: as a backbone of DeSoRec (arXiv 2410.06536).
"""

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import PositiveInt
from torch import nn
from typing_extensions import override

from distrib.batch import Batch
from distrib.models.base import Model, ModelSpec
from distrib.models.sequential.config import SequenceConfig, Share
from distrib.models.sequential.layers import SequenceDecoder, SequenceState, Tower, slots
from distrib.objectives import SoftmaxConfig
from distrib.rng import CounterRng
from distrib.sequences import Sequences, sequences_of
from distrib.vocabulary import Catalog

_TOWER = 231  # random stream


class DeepFmConfig(SequenceConfig):
    """Hyper-parameters of DeepFM."""

    name: Literal["deep_fm"] = "deep_fm"

    spec: ClassVar[ModelSpec] = ModelSpec(
        "scores", SoftmaxConfig(), "next_item", reads_repeats=True
    )

    max_length: PositiveInt = 20
    """Slots: the last interactions that it reads. The tower has weights for each of them."""

    targets: Literal["every", "last"] = "last"
    latent_width: PositiveInt = 128
    tied: bool = False

    hidden_widths: tuple[PositiveInt, ...] = (512,)
    """Units of the hidden layers, each with ReLU; a linear layer to ``latent_width`` follows."""

    dropout: Share = 0.1
    """Share of numbers dropped from hidden layers."""

    def build(self, catalog: Catalog) -> "DeepFm":
        """Make an untrained model for the catalog."""
        return DeepFm(self, catalog)


class DeepFm(SequenceDecoder, Model):
    """See the module; a score is the inner product of a user's vector and an item's, plus a bias.

    The user's vector is that of the factorization machine, which holds the products of all pairs of
    slots dimension by dimension, ((sum h)^2 - sum h^2) / 2, plus the output of the tower over the
    concatenated slots. The most recent interaction is always in the last slot.

    Differs from the source: it scores all items at once, by a softmax, instead of one candidate,
    which is no field of the input; a user has no first-order term, an item has its bias.
    """

    config: DeepFmConfig

    def __init__(self, config: DeepFmConfig, catalog: Catalog) -> None:
        super().__init__()
        self.config = config
        self.make_tables(config, catalog)
        inputs = config.max_length * config.latent_width
        self.tower = Tower((inputs, *config.hidden_widths, config.latent_width))
        for table in self.vectors():
            nn.init.normal_(table, std=config.latent_width**-0.5)

    @override
    def encode(self, inputs: Batch | Sequences, rng: CounterRng | None = None) -> SequenceState:
        """Read the slots; see `Model`."""
        config = self.config
        sequences = sequences_of(inputs, config.max_length)
        embedded_NZ = F.embedding(sequences.histories.item_N, self.input_IZ)
        slot_RLZ = slots(embedded_NZ, sequences, config.max_length)
        products_RZ = 0.5 * (slot_RLZ.sum(1).square() - slot_RLZ.square().sum(1))
        deep_RZ = self.tower(slot_RLZ.flatten(1), sequences, config.dropout, rng, _TOWER)
        return self.or_start(products_RZ + deep_RZ, sequences)
