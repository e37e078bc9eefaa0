"""Training on histories of items; `export` derives the model that scores users."""

from typing import Any

from torch import Tensor
from typing_extensions import override

from distrib.data.feeds.base import Reads
from distrib.models.base import Model
from distrib.train.config import TrainingRun
from distrib.train.schemes.base import ExportContext, Sizes, State
from distrib.train.schemes.encoded_rows import RowEncoder
from distrib.train.schemes.user_rows import UserRows
from distrib.vocabulary import Vocabulary


class ItemRows(UserRows):
    """See `Scheme`; I-AutoRec. The model's configuration has ``network`` and ``scoring``."""

    reads: Reads = "items"
    can_warm_start = False

    @override
    def build(self, config: Any, vocabulary: Vocabulary) -> Model:
        """Build the network whose columns are users; see `Scheme`."""
        network: Model = config.network(vocabulary.catalog, vocabulary.users)
        return network

    @override
    def export(self, weights: State, context: ExportContext) -> State:
        """Encode all items, each on one rank; see `Scheme`."""
        config: Any = context.run.model
        network = self.build(config, context.vocabulary)
        network.load_state_dict(weights)
        network.to(context.device)
        encoder = RowEncoder(context)
        parts, count = context.feed.training_parts(), len(context.vocabulary)
        (latent_IZ,) = encoder.encode(network.encode, parts, count)
        found: dict[str, Tensor] = config.scoring(weights, latent_IZ)
        return found

    @override
    def shape(self, run: TrainingRun, sizes: Sizes) -> tuple[int, int]:
        """Return items and users; see `Scheme`."""
        del run
        return sizes.items, sizes.users
