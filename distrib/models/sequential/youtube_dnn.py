"""YoutubeDNN: the mean of what a user has met lately, through a tower.

Source: Covington, Adams, Sargin, "Deep Neural Networks for YouTube Recommendations", RecSys 2016,
candidate generation.
"""

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import PositiveInt
from torch import nn
from typing_extensions import override

from distrib.batch import Batch
from distrib.models.base import Model, ModelSpec
from distrib.models.sequential.config import SequenceConfig, Share
from distrib.models.sequential.layers import SequenceDecoder, SequenceState, Tower, read_means
from distrib.objectives import SoftmaxConfig
from distrib.rng import CounterRng
from distrib.sequences import Sequences, sequences_of
from distrib.vocabulary import Catalog

_TOWER = 221  # random stream


class YoutubeDnnConfig(SequenceConfig):
    """Hyper-parameters of YoutubeDNN."""

    name: Literal["youtube_dnn"] = "youtube_dnn"

    spec: ClassVar[ModelSpec] = ModelSpec(
        "scores", SoftmaxConfig(), "next_item", reads_repeats=True
    )

    targets: Literal["every", "last"] = "last"
    latent_width: PositiveInt = 128
    tied: bool = False

    hidden_widths: tuple[PositiveInt, ...] = (256,)
    """Units of the hidden layers, each with ReLU; a linear layer to ``latent_width`` follows."""

    dropout: Share = 0.1
    """Share of numbers dropped from hidden layers."""

    def build(self, catalog: Catalog) -> "YoutubeDnn":
        """Make an untrained model for the catalog."""
        return YoutubeDnn(self, catalog)


class YoutubeDnn(SequenceDecoder, Model):
    """See the module; a score is the inner product of the tower's output and an item's vector.

    Differs from the source: histories are all that is known of a user; no age of the example.
    """

    config: YoutubeDnnConfig

    def __init__(self, config: YoutubeDnnConfig, catalog: Catalog) -> None:
        super().__init__()
        self.config = config
        self.make_tables(config, catalog)
        self.tower = Tower((config.latent_width, *config.hidden_widths, config.latent_width))
        for table in self.vectors():
            nn.init.normal_(table, std=config.latent_width**-0.5)

    @override
    def encode(self, inputs: Batch | Sequences, rng: CounterRng | None = None) -> SequenceState:
        """Average the last interactions; see `Model`."""
        config = self.config
        sequences = sequences_of(inputs, config.max_length)
        mean_RZ = read_means(F.embedding(sequences.histories.item_N, self.input_IZ), sequences)
        hidden_RZ = self.tower(mean_RZ, sequences, config.dropout, rng, _TOWER)
        return self.or_start(hidden_RZ, sequences)
