"""What models of sequences share: item tables, dropout, and causal attention without padding."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from distrib.batch import Batch
from distrib.devices import fetched, sent
from distrib.models.base import ItemRows
from distrib.models.layers import LinearDecoder
from distrib.models.sequential.config import SequenceConfig
from distrib.parameters import ParameterRole, parameter, with_role
from distrib.rng import CounterRng
from distrib.sequences import NOTHING_READ, Sequences
from distrib.vocabulary import Catalog

_LEVELS = 256  # of a byte
_SHORTEST = 8


class SequenceState(NamedTuple):
    """State of users after some interactions."""

    latent_RZ: Tensor


class SequenceDecoder(LinearDecoder):
    """Mixin of models of sequences: tables of items, and what a user without history is."""

    config: SequenceConfig
    has_bias = True
    """Whether a score includes a bias of the item."""

    @property
    def max_length(self) -> int:
        """Interactions that a state depends on at most; see `ReadsLatest`."""
        return self.config.max_length

    def make_tables(self, config: SequenceConfig, catalog: Catalog) -> None:
        """Make the tables of vectors, not initialized; biases are 0."""
        size = (catalog.item_count, config.latent_width)
        role = ParameterRole(encoder=True, decoder=config.tied, decay=1.0)
        self.input_IZ = parameter(*size, role=role)
        if not config.tied:
            self.output_IZ = parameter(*size, role=ParameterRole(decoder=True, decay=1.0))
        if self.has_bias:
            self.output_bias_I = parameter(size[0], role=ParameterRole(decoder=True))
            nn.init.zeros_(self.output_bias_I)
        self.start_1Z = parameter(1, size[1])
        """State of a user without interactions."""
        nn.init.zeros_(self.start_1Z)

    def vectors(self) -> list[nn.Parameter]:
        """Return the tables of vectors: one, or one to read and one to decode by."""
        return [self.input_IZ] if self.config.tied else [self.input_IZ, self.output_IZ]

    def item_tables(self) -> ItemRows:
        """Return what is decoded by: vectors, and biases where there are some; see `Model`."""
        weight_IZ = self.vectors()[-1]
        return (weight_IZ, self.output_bias_I) if self.has_bias else (weight_IZ,)

    def states(self, latent_NZ: Tensor, sequences: Sequences) -> SequenceState:
        """Select the states from what was computed after each interaction."""
        both = torch.cat([self.start_1Z.to(latent_NZ.dtype), latent_NZ])
        return SequenceState(both.index_select(0, sequences.place_R + 1))

    def or_start(self, latent_RZ: Tensor, sequences: Sequences) -> SequenceState:
        """Replace what was computed for states that have read nothing."""
        is_nothing_R1 = (sequences.place_R == NOTHING_READ)[:, None]
        return SequenceState(torch.where(is_nothing_R1, self.start_1Z, latent_RZ))


def dropout(
    hidden_NZ: Tensor, share: float, rng: CounterRng | None, stream: int, batch: Batch
) -> Tensor:
    """Set a share of the numbers to 0 in training, and scale up the rest.

    Which ones depends on the epoch, the user, and the place counted from the end of the history,
    so not on how users are assigned to workers. The share is rounded to 1 / 256.

    Args:
        hidden_NZ: Numbers of each interaction.
        share: Of numbers to drop.
        rng: The epoch's randomness; None for inference.
        stream: Random stream.
        batch: The histories.

    Returns:
        The remaining numbers.
    """
    if rng is None or not share:
        return hidden_NZ
    return masked(hidden_NZ, share, rng, stream, (batch.user_B[batch.row_N], from_end(batch)))


def masked(
    hidden_NZ: Tensor, share: float, rng: CounterRng | None, stream: int, keys: tuple[Tensor, ...]
) -> Tensor:
    """Drop numbers as `dropout` does, by other keys of the rows."""
    dropped = round(share * _LEVELS)
    if rng is None or not dropped:
        return hidden_NZ
    draw_NZ = rng.bytes(stream, hidden_NZ.shape[1], *keys)
    scale = _LEVELS / (_LEVELS - dropped)
    return hidden_NZ * (draw_NZ >= dropped).to(hidden_NZ.dtype).mul_(scale)


def from_end(batch: Batch) -> Tensor:
    """Return how many interactions of the same user follow, int64 ``[N]``."""
    places = torch.arange(len(batch.item_N), device=batch.item_N.device)
    return batch.pointer_P[1:][batch.row_N] - 1 - places


class Padded(NamedTuple):
    """Some histories of similar length as one padded block of ``users`` x ``length``."""

    place_M: Tensor
    """int64; place of each cell among the N interactions; padding repeats a user's last one."""

    users: int
    length: int


class Ragged(NamedTuple):
    """Histories as a few padded blocks, so that short ones are not padded to the longest."""

    blocks: tuple[Padded, ...]
    cell_N: Tensor
    """int64; cell of each interaction among those of all blocks."""

    @classmethod
    def of(cls, batch: Batch) -> "Ragged":
        """Sort histories into blocks by their length, whose bounds are powers of two.

        On the host, which needs the sizes: so it waits for a device once.
        """
        device, pointer_P = batch.item_N.device, fetched(batch.pointer_P)
        length_B = pointer_P.diff()
        blocks, cells = [], 0
        cell_N = torch.empty(batch.item_N.shape[0], dtype=torch.int64)
        longest, low = int(length_B.max()) if len(length_B) else 0, 0
        while low < longest:
            high = max(_SHORTEST, 2 * low)
            user_U = torch.nonzero((length_B > low) & (length_B <= high))[:, 0]
            low = high
            if not len(user_U):
                continue
            taken_U = length_B[user_U]
            length = int(taken_U.max())
            column_L = torch.arange(length)
            place_UL = pointer_P[user_U][:, None] + column_L.clamp(max=(taken_U - 1)[:, None])
            is_there_UL = column_L < taken_U[:, None]
            cell_UL = torch.arange(place_UL.numel()).view_as(place_UL) + cells
            cell_N[place_UL[is_there_UL]] = cell_UL[is_there_UL]
            cells += place_UL.numel()
            blocks.append(Padded(sent(place_UL.flatten(), device), len(user_U), length))
        return cls(tuple(blocks), sent(cell_N, device))


def causal_attention(query_key_value_NZ: Sequence[Tensor], ragged: Ragged, heads: int) -> Tensor:
    """Attend to the earlier interactions of the same user, and to the current one.

    Padding is at the end of a history, where no other interaction attends to it.

    Args:
        query_key_value_NZ: Queries, keys and values.
        ragged: The histories.
        heads: Number of heads; divides the width.

    Returns:
        ``[N, Z]``.
    """
    joined_NZ = torch.cat(list(query_key_value_NZ), dim=1)
    found = []
    for block in ragged.blocks:
        cells = joined_NZ.index_select(0, block.place_M)
        split = cells.view(block.users, block.length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind()
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        found.append(mixed.transpose(1, 2).reshape(block.users * block.length, -1))
    if not found:
        query, key, value = query_key_value_NZ
        return query + key + value  # of no rows, but every parameter keeps a gradient
    return torch.cat(found).index_select(0, ragged.cell_N)


def state_rows(sequences: Sequences) -> Tensor:
    """Return the row of the history of each state, int64 ``[R]``."""
    rows = torch.arange(sequences.histories.num_users, device=sequences.place_R.device)
    return rows.repeat_interleave(sequences.state_P.diff(), output_size=sequences.num_rows)


def read_bounds(sequences: Sequences) -> tuple[Tensor, Tensor]:
    """Return where the interactions that each state has read begin and end among the N."""
    start_R = sequences.histories.pointer_P[state_rows(sequences)]
    is_nothing_R = sequences.place_R == NOTHING_READ
    return start_R, torch.where(is_nothing_R, start_R, sequences.place_R + 1)


def read_means(hidden_NZ: Tensor, sequences: Sequences) -> Tensor:
    """Return the mean of what each state has read, ``[R, Z]``; 0 where it has read nothing."""
    start_R, stop_R = read_bounds(sequences)
    before = torch.zeros(1, hidden_NZ.shape[1], dtype=torch.float64, device=hidden_NZ.device)
    # In float64, since sums over a whole batch are subtracted from each other.
    sums = torch.cat([before, hidden_NZ.cumsum(0, dtype=torch.float64)])
    total_RZ = sums.index_select(0, stop_R) - sums.index_select(0, start_R)
    return (total_RZ / (stop_R - start_R).clamp(min=1)[:, None]).to(hidden_NZ.dtype)


def slots(hidden_NZ: Tensor, sequences: Sequences, length: int) -> Tensor:
    """Return the last interactions that each state has read, the latest at the end.

    Args:
        hidden_NZ: Numbers of each interaction.
        sequences: What is read.
        length: Slots, L.

    Returns:
        ``[R, L, Z]``, 0 where there is no interaction.
    """
    start_R, stop_R = read_bounds(sequences)
    place_RL = stop_R[:, None] - torch.arange(length, 0, -1, device=stop_R.device)
    is_there_RL = place_RL >= start_R[:, None]
    padded = torch.cat([hidden_NZ.new_zeros(1, hidden_NZ.shape[1]), hidden_NZ])
    found = padded.index_select(0, torch.where(is_there_RL, place_RL + 1, 0).flatten())
    return found.view(*place_RL.shape, hidden_NZ.shape[1])


class Tower(nn.Module):
    """Linear layers with ReLU and dropout between them.

    Args:
        widths: Of the input, of hidden layers, and of the output.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(linear_layer(*pair) for pair in pairwise(widths))

    @override
    def forward(
        self,
        hidden_RZ: Tensor,
        sequences: Sequences,
        share: float,
        rng: CounterRng | None,
        stream: int,
    ) -> Tensor:
        """Apply the layers to each state.

        Args:
            hidden_RZ: Input.
            sequences: Whose states these are.
            share: Of numbers to drop.
            rng: The epoch's randomness; None for inference.
            stream: Random stream of the first layer; those that follow are taken by the others.

        Returns:
            The output.
        """
        start_R, stop_R = read_bounds(sequences)
        keys = sequences.histories.user_B[state_rows(sequences)], stop_R - start_R
        *hidden, last = self.layers
        for place, layer in enumerate(hidden):
            hidden_RZ = masked(F.relu(layer(hidden_RZ)), share, rng, stream + place, keys)
        found: Tensor = last(hidden_RZ)
        return found


def linear_layer(inputs: int, outputs: int) -> nn.Linear:
    """Make a linear layer with Glorot-uniform weights, which decay, and biases of 0."""
    layer = nn.Linear(inputs, outputs)
    with_role(cast("nn.Parameter", layer.weight), ParameterRole(decay=1.0))
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
