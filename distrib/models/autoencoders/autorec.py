"""AutoRec: an autoencoder of ratings with one hidden layer, on histories of users or of items.

Source: Sedhain, Menon, Sanner, Xie, "AutoRec: Autoencoders Meet Collaborative Filtering", WWW 2015
(U-AutoRec, I-AutoRec), and its authors' code.
"""

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from typing_extensions import override

from distrib.batch import Batch
from distrib.config import Config
from distrib.models.base import ItemRows, Model, ModelSpec, UserState
from distrib.models.capabilities import ItemVectors
from distrib.models.folding import FactorState, fold_in, known_or_new
from distrib.models.layers import LinearDecoder, history_sum, item_mean
from distrib.models.outputs import RatingOutput
from distrib.objectives import SquaredErrorConfig
from distrib.parameters import ParameterRole, parameter
from distrib.rng import CounterRng
from distrib.vocabulary import Catalog

_WEIGHT_SCALE = 0.01
_EDGE = 1e-3  # margin at either end of the sigmoid's range where its inverse is clipped

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
}


class AutoRecConfig(Config):
    """Hyper-parameters of AutoRec; the defaults are the paper's best."""

    name: Literal["autorec"] = "autorec"

    side: Literal["users", "items"] = "items"
    """Whose histories are encoded: ``users`` is U-AutoRec, ``items`` I-AutoRec, which needs
    ``data.item_histories``."""

    hidden_width: PositiveInt = 500
    """Units of the hidden layer, k in the paper."""

    hidden: Literal["sigmoid", "relu", "identity"] = "sigmoid"
    """Activation of the hidden layer, g in the paper."""

    output: Literal["identity", "sigmoid"] = "identity"
    """Activation of the output, f in the paper; the sigmoid's range is that of the levels."""

    centering: Literal["none", "means"] = "none"
    """``means``: the network reads and predicts deviations from the items' mean ratings; ours, for
    logs in which many users or items have few ratings."""

    new_user_penalty: Annotated[float, Field(gt=0.0)] = 30.0
    """I-AutoRec: ridge penalty for folding in users that training did not see."""

    @model_validator(mode="after")
    def _deviations_have_no_bounds(self) -> "AutoRecConfig":
        if self.centering == "means" and self.output == "sigmoid":
            raise ValueError(
                "centering = 'means' with output = 'sigmoid', whose range is that of the levels; "
                "set output = 'identity'"
            )
        return self

    @property
    def spec(self) -> ModelSpec:
        """Properties that the pipeline needs."""
        by_items = self.side == "items"
        scheme = "item_rows" if by_items else "user_rows"
        return ModelSpec("ratings", SquaredErrorConfig(), scheme, has_user_rows=by_items)

    def build(self, catalog: Catalog) -> "AutoRec | ItemAutoRec":
        """Make the untrained model that predicts for users."""
        kind = AutoRec if self.side == "users" else ItemAutoRec
        return kind(self, catalog)

    def network(self, items: Catalog, users: Catalog) -> "AutoRec":
        """Make the network that I-AutoRec trains; its columns are users."""
        del items
        return AutoRec(self, users)

    def scoring(
        self, network: dict[str, Tensor], items: tuple[Tensor, ...] | None = None
    ) -> dict[str, Tensor]:
        """Return the state of `ItemAutoRec` from that of its network and the item embeddings."""
        assert items is not None  # the network holds none
        latent_IZ, offset_I = items
        users = {"weight_UZ": network["output_IZ"], "bias_U": network["output_bias_I"]}
        offset = {"offset_I": offset_I} if self.centering == "means" else {}
        return {"code_IZ": latent_IZ, **users, **offset}


class AutoRecState(NamedTuple):
    """Encoded rows, users or items."""

    latent_BZ: Tensor
    offset_B: Tensor
    """Added to all predictions of the row: with centering, the mean rating of an item's row."""


class AutoRec(LinearDecoder, Model):
    """f(W g(V r + mu) + b), where r holds a row's ratings, and 0 where there are none.

    The paper's penalty, lambda / 2 times the squared weights in each update, is
    ``optimizer.name = "adam"`` with ``weight_decay`` = lambda / batch_users: the engine's loss is
    the mean over the batch. Biases are not decayed.

    Differs from the source: trained in batches by the optimizer of the run file, theirs by L-BFGS
    or Rprop on all rows at once; output biases start at the items' mean ratings, or, if columns are
    users, at the global mean; a sigmoid at the output is scaled to the range of the levels;
    ``centering`` is ours.
    """

    def __init__(self, config: AutoRecConfig, columns: Catalog) -> None:
        super().__init__()
        self.config = config
        self.output = RatingOutput()
        self.levels = columns.levels
        width = config.hidden_width
        self.input_IZ = parameter(
            columns.item_count, width, role=ParameterRole(encoder=True, decay=1.0)
        )
        self.input_bias_Z = parameter(width)
        self.output_IZ = parameter(
            columns.item_count, width, role=ParameterRole(decoder=True, decay=1.0)
        )
        of_users = config.side == "items"
        is_centered = config.centering == "means"
        bias = ParameterRole(decoder=True, decay=float(is_centered and of_users))
        self.output_bias_I = parameter(columns.item_count, role=bias)
        for weight in (self.input_IZ, self.output_IZ):
            nn.init.normal_(weight, std=_WEIGHT_SCALE)
        nn.init.zeros_(self.input_bias_Z)
        mean_I = item_mean(columns)  # that of all ratings, where columns are users
        self.register_buffer("mean_I", mean_I, persistent=is_centered)
        self.mean_I: Tensor
        start_I = torch.zeros_like(mean_I) if is_centered and of_users else mean_I
        self.output_bias_I.data.copy_(_logit(start_I, config, self.levels))

    @override
    def encode(self, batch: Batch, rng: CounterRng | None = None) -> AutoRecState:
        """Sum the input rows of the rated columns, weighted by rating."""
        value_N, offset_B = self._deviations(batch)
        sum_BZ = history_sum(self.input_IZ, batch.item_N, value_N, batch.pointer_P)
        latent_BZ = _ACTIVATIONS[self.config.hidden](sum_BZ + self.input_bias_Z)
        return AutoRecState(latent_BZ, offset_B)

    def _deviations(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return what the network reads of each rating, and what is added to a row's output."""
        none_B = batch.value_N.new_zeros(batch.num_users)
        if self.config.centering == "none":
            return batch.value_N, none_B
        mean_N = self.mean_I[batch.item_N]
        if self.config.side == "users":
            return batch.value_N - mean_N, none_B
        # Rows are items: the same mean as `item_mean`, whose prior is one rating.
        length_B = batch.length_B.to(batch.value_N.dtype)
        above_B = none_B.index_add(0, batch.row_N, batch.value_N - mean_N) / (length_B + 1.0)
        return batch.value_N - mean_N - above_B[batch.row_N], self.mean_I[0] + above_B

    @override
    def item_tables(self) -> ItemRows:
        return self.output_IZ, self.output_bias_I

    @override
    def decode_rows(self, users: UserState, rows: ItemRows) -> Tensor:
        output_BI = super().decode_rows(users, rows)
        return self._rating(output_BI, users[1][:, None])

    @override
    def score_pairs(self, users: UserState, pairs: Batch) -> Tensor:
        output_N = super().score_pairs(users, pairs)
        return self._rating(output_N, users[1][pairs.row_N])

    def _rating(self, output: Tensor, offset: Tensor) -> Tensor:
        if self.config.centering == "means":
            output = output + offset
        return _scaled(output, self.config, self.levels)


class ItemAutoRec(Model):
    """I-AutoRec for prediction: item embeddings from training, and weights and a bias per user.

    Items are encoded once, from their training histories, so users are scored against a chunk of
    items by one matrix product.

    Differs from the source: a user that training did not see gets the items' mean ratings, plus
    weights that are fit to the user's own ratings (`fold_in`); the authors predict a constant 3.
    """

    def __init__(self, config: AutoRecConfig, catalog: Catalog) -> None:
        super().__init__()
        self.config = config
        self.output = RatingOutput()
        self.levels = catalog.levels
        width, num_users = config.hidden_width, catalog.user_index_size
        self.register_buffer("code_IZ", torch.zeros(catalog.item_count, width))
        self.register_buffer("weight_UZ", torch.zeros(num_users, width))
        self.register_buffer("bias_U", torch.zeros(num_users))
        offset_I = _logit(item_mean(catalog), config, self.levels)
        self.register_buffer("offset_I", offset_I, persistent=config.centering == "means")
        self.code_IZ: Tensor
        self.weight_UZ: Tensor
        self.bias_U: Tensor
        self.offset_I: Tensor

    @override
    def encode(self, batch: Batch, rng: CounterRng | None = None) -> FactorState:
        """Look up known users; fold in the others."""
        return known_or_new(batch, (self.weight_UZ, self.bias_U), self._folded)

    def _folded(self, batch: Batch) -> tuple[Tensor, Tensor]:
        rating_N = _logit(batch.value_N, self.config, self.levels)
        wanted_N = rating_N - self.offset_I[batch.item_N]
        return fold_in(self.code_IZ, batch, wanted_N, self.config.new_user_penalty)

    @override
    def item_tables(self) -> ItemRows:
        return self.code_IZ, self.offset_I

    def user_embedding(self, users: UserState) -> Tensor:
        """Return the weights, and in the last column 1 if item means are added; see `_share`."""
        return torch.cat([users[0], self._share(users[2])], dim=1)

    def _share(self, is_new_B: Tensor) -> Tensor:
        """Return 1 where item means are added: to all with centering, else to new users alone."""
        share_B = torch.ones_like(is_new_B) if self.config.centering == "means" else is_new_B
        return share_B[:, None]

    def item_vectors(self) -> ItemVectors:
        return ItemVectors(torch.cat([self.code_IZ, self.offset_I[:, None]], dim=1))

    @override
    def decode_rows(self, users: UserState, rows: ItemRows) -> Tensor:
        (weight_BZ, bias_B, is_new_B), (latent_IZ, offset_I) = users, rows
        output = weight_BZ @ latent_IZ.T + bias_B[:, None] + self._share(is_new_B) * offset_I
        return _scaled(output, self.config, self.levels)


def _scaled(output: Tensor, config: AutoRecConfig, levels: tuple[float, ...]) -> Tensor:
    """Apply the output activation; a sigmoid is scaled to the range of the levels."""
    if config.output == "identity":
        return output
    return levels[0] + (levels[-1] - levels[0]) * torch.sigmoid(output)


def _logit(rating: Tensor, config: AutoRecConfig, levels: tuple[float, ...]) -> Tensor:
    """Invert `_scaled`; the ends of the scale are clipped to keep the result finite."""
    if config.output == "identity":
        return rating
    share = (rating - levels[0]) / max(levels[-1] - levels[0], 1e-9)
    return torch.logit(share, eps=_EDGE)
