"""GRU4Rec: a gated recurrent unit over a user's or a session's interactions.

Source: Hidasi, Karatzoglou, "Recurrent Neural Networks with Top-k Gains for Session-based
Recommendations", CIKM 2018, and the authors' code; the faults of other versions: Hidasi, Czapp,
"The Effect of Third Party Implementations on Reproducibility", RecSys 2023.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn
from typing_extensions import override

from distrib.batch import Batch
from distrib.devices import fetched
from distrib.models.base import Model, ModelSpec
from distrib.models.sequential.config import SequenceConfig, Share
from distrib.models.sequential.layers import SequenceDecoder, SequenceState, dropout
from distrib.objectives import SoftmaxConfig
from distrib.parameters import ParameterRole, parameter
from distrib.rng import CounterRng
from distrib.sequences import Sequences, sequences_of
from distrib.vocabulary import Catalog

_EMBEDDED, _HIDDEN = 211, 212  # random streams
_STREAMS = 2  # of a layer
_DECAYED = ParameterRole(decay=1.0)


class Gru4RecConfig(SequenceConfig):
    """Hyper-parameters of GRU4Rec."""

    name: Literal["gru4rec"] = "gru4rec"

    spec: ClassVar[ModelSpec] = ModelSpec(
        "scores", SoftmaxConfig(), "next_item", reads_repeats=True
    )

    num_layers: PositiveInt = 1
    """Recurrent layers, each of ``latent_width`` units."""

    input_dropout: Share = 0.0
    """Share of numbers dropped from the vectors of the items that are read."""

    dropout: Share = 0.0
    """Share of numbers dropped from what each layer returns."""

    def build(self, catalog: Catalog) -> "Gru4Rec":
        """Make an untrained model for the catalog."""
        return Gru4Rec(self, catalog)


class Gru4Rec(SequenceDecoder, Model):
    """See the module; a score is the inner product of the last state and an item's vector, + bias.

    Each history starts from a state of zeros, and all of its interactions are differentiated
    through. Batches are of whole histories, so no state is carried from one to the next.

    Differs from the source: no session-parallel batches, which cut gradients after one interaction;
    a user without interactions has a learned state.
    """

    config: Gru4RecConfig

    def __init__(self, config: Gru4RecConfig, catalog: Catalog) -> None:
        super().__init__()
        self.config = config
        self.make_tables(config, catalog)
        self.layers = nn.ModuleList(
            _Recurrent(config.latent_width) for _ in range(config.num_layers)
        )
        for table in self.vectors():
            nn.init.xavier_uniform_(table)

    @override
    def encode(self, inputs: Batch | Sequences, rng: CounterRng | None = None) -> SequenceState:
        """Read the last interactions one after the other; see `Model`."""
        config = self.config
        sequences = sequences_of(inputs, config.max_length)
        batch = sequences.histories
        hidden_NZ = F.embedding(batch.item_N, self.input_IZ)
        hidden_NZ = dropout(hidden_NZ, config.input_dropout, rng, _EMBEDDED, batch)
        steps = _Steps.of(batch)
        for place, layer in enumerate(self.layers):
            hidden_NZ = layer(hidden_NZ, steps)
            hidden_NZ = dropout(hidden_NZ, config.dropout, rng, _HIDDEN + _STREAMS * place, batch)
        return self.states(hidden_NZ, sequences)


class _Steps:
    """The interactions by their place in the history: all first ones, then all second ones.

    Users are in descending order of length, so those of a step are the first of the step before.
    """

    def __init__(self, order_N: Tensor, place_N: Tensor, sizes: list[int]) -> None:
        self.order_N, self.place_N, self.sizes = order_N, place_N, sizes

    @classmethod
    def of(cls, batch: Batch) -> "_Steps":
        rank_B = torch.argsort(torch.argsort(batch.length_B, descending=True, stable=True))
        row_N = batch.row_N
        step_N = torch.arange(len(row_N), device=row_N.device) - batch.pointer_P[:-1][row_N]
        order_N = torch.argsort(step_N * batch.num_users + rank_B[row_N])
        place_N = torch.empty_like(order_N)
        place_N[order_N] = torch.arange(len(order_N), device=order_N.device)
        num_by_length = torch.bincount(fetched(batch.length_B))
        num_longer = num_by_length.flip(0).cumsum(0).flip(0)[1:]
        return cls(order_N, place_N, num_longer.tolist())


class _Recurrent(nn.Module):
    """A gated recurrent unit whose reset gate applies to the state before its product.

    h' = (1 - z) h + z tanh(x W + (r * h) U + b), as in the authors' code; `torch.nn.GRU` applies r
    after the product with U, and swaps z.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input_ZG = parameter(width, 3 * width, role=_DECAYED)
        self.gates_ZG = parameter(width, 2 * width, role=_DECAYED)
        self.candidate_ZZ = parameter(width, width, role=_DECAYED)
        self.bias_G = parameter(3 * width)
        nn.init.zeros_(self.bias_G)
        for weight in (self.input_ZG, self.gates_ZG, self.candidate_ZZ):
            for part in weight.data.split(width, dim=1):  # each gate has a matrix of its own
                nn.init.xavier_uniform_(part)

    @override
    def forward(self, read_NZ: Tensor, steps: _Steps) -> Tensor:
        width = read_NZ.shape[1]
        input_NG = torch.addmm(self.bias_G, read_NZ.index_select(0, steps.order_N), self.input_ZG)
        sizes = steps.sizes or [0]  # a step without rows keeps the gradient of every parameter
        state, found = read_NZ.new_zeros(sizes[0], width), []
        for input_BG in input_NG.split(sizes):
            gates_BG, candidate_BZ = input_BG.split([2 * width, width], dim=1)
            state = state[: len(input_BG)]
            gates_BG = torch.sigmoid(torch.addmm(gates_BG, state, self.gates_ZG))
            reset_BZ, update_BZ = gates_BG.chunk(2, dim=1)
            read_BZ = torch.addmm(candidate_BZ, reset_BZ * state, self.candidate_ZZ)
            state = torch.lerp(state, torch.tanh(read_BZ), update_BZ)
            found.append(state)
        return torch.cat(found).index_select(0, steps.place_N)
