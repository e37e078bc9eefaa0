"""Training on histories of items; `export` derives the model that scores users."""

from typing_extensions import override

from distrib.data.feeds.base import Reads
from distrib.models import ModelConfig
from distrib.models.base import Model
from distrib.training.config import TrainingRun
from distrib.training.schemes.base import ExportContext, Shape, Sizes, State
from distrib.training.schemes.encoded_rows import RowEncoder, TrainsNetwork, network_of
from distrib.training.schemes.user_rows import UserRows
from distrib.vocabulary import Vocabulary


class ItemRows(UserRows):
    """See `Scheme`; I-AutoRec. The model's configuration `TrainsNetwork`."""

    reads: Reads = "items"
    can_warm_start = False

    @override
    def build(self, config: ModelConfig, vocabulary: Vocabulary) -> Model:
        """Build the network whose columns are users; see `Scheme`."""
        return network_of(config, vocabulary)

    @override
    def export(self, weights: State, context: ExportContext) -> State:
        """Encode all items, each on one rank; see `Scheme`."""
        config = context.run.model
        assert isinstance(config, TrainsNetwork)
        network = network_of(config, context.vocabulary)
        network.load_state_dict(weights)
        network.to(context.device)
        parts, count = context.feed.training_parts(), len(context.vocabulary)
        return config.scoring(weights, RowEncoder(context).encode(network.encode, parts, count))

    @override
    def shape(self, run: TrainingRun, sizes: Sizes) -> Shape:
        """Return items and users; see `Scheme`."""
        del run
        return Shape(sizes.items, sizes.users)
