"""The multi-layer perceptron over user and item embeddings."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn
from typing_extensions import override

from distrib.batch import Batch
from distrib.models.base import ItemRows, Model, ModelSpec, UserState
from distrib.models.folding import FoldedBySteps, FoldsIn
from distrib.models.ncf.gmf import EMBEDDING_STD
from distrib.models.ncf.tower import Tower, shared
from distrib.models.outputs import LogOddsOutput
from distrib.objectives import LabeledConfig
from distrib.parameters import ParameterRole, parameter
from distrib.vocabulary import Catalog

Widths = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]


class MlpConfig(FoldsIn):
    """Hyper-parameters of the multi-layer perceptron."""

    name: Literal["mlp"] = "mlp"

    spec: ClassVar[ModelSpec] = ModelSpec("log_odds", LabeledConfig(), "pairs", has_user_rows=True)

    latent_width: PositiveInt = 128
    """Dimensions of each embedding."""

    hidden_widths: Widths = (128, 64, 32)
    """Widths of the layers over the concatenated embeddings."""

    def build(self, catalog: Catalog) -> "Mlp":
        """Make an untrained model for the catalog."""
        return Mlp(self, catalog)


class Mlp(FoldedBySteps, Model):
    """Log-odds h . tower([p_u; q_i]) + b.

    Source: He et al., "Neural Collaborative Filtering", WWW 2017, eq. 10. Differs from the source:
    new users are folded in.
    """

    def __init__(self, config: MlpConfig, catalog: Catalog) -> None:
        super().__init__()
        self.config, self.feedback = config, catalog.feedback
        self.output = LogOddsOutput()
        width = config.latent_width
        self.user_UZ = parameter(catalog.user_index_size, width, role=ParameterRole(decay=1.0))
        self.item_IZ = parameter(
            catalog.item_count, width, role=ParameterRole(decoder=True, decay=1.0)
        )
        for table in (self.user_UZ, self.item_IZ):
            nn.init.normal_(table, std=EMBEDDING_STD)
        self.tower = Tower(width, config.hidden_widths)
        self.head = shared(nn.Linear(config.hidden_widths[-1], 1))
        nn.init.kaiming_uniform_(self.head.weight, a=1)
        nn.init.zeros_(self.head.bias)

    @override
    def user_tables(self) -> tuple[Tensor, ...]:
        return (self.user_UZ,)

    @override
    def item_tables(self) -> ItemRows:
        return (self.item_IZ,)

    @override
    def decode_rows(self, users: UserState, rows: ItemRows) -> Tensor:
        return self.tower.grid(users[0], rows[0], self.head.weight[0]) + self.head.bias

    @override
    def score_pairs(self, users: UserState, pairs: Batch) -> Tensor:
        hidden_NH = self.tower.pairs(users[0][pairs.row_N], self.item_IZ[pairs.item_N])
        return hidden_NH @ self.head.weight[0] + self.head.bias
