"""VAE-BMF: variational autoencoders of users and items that read each other's latent vectors.

Source: Zhang and others, "VAE-BMF: Variational Autoencoders for Bayesian Matrix Factorization",
arXiv 2002.09145 v3, 2022. No implementation by its authors is known.
"""

from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeInt, model_validator
from torch import Tensor
from typing_extensions import override

from distrib.batch import Batch, TrainInput
from distrib.config import Config
from distrib.models.autoencoders.vae_bmf_encoder import (
    PRIOR_RATINGS,
    Encoder,
    EncoderShape,
    LatentFactors,
    Posterior,
    dropout_weight,
)
from distrib.models.base import ItemRows, Model, ModelSpec, UserState
from distrib.models.capabilities import ItemVectors
from distrib.models.layers import item_mean, pair_products
from distrib.models.outputs import RatingOutput
from distrib.objectives import SquaredErrorConfig
from distrib.rng import CounterRng
from distrib.tiles import Side, Tile, Transposed
from distrib.vocabulary import Catalog

_SAMPLE_USERS, _SAMPLE_ITEMS, _FEED_USERS, _FEED_ITEMS = 1, 2, 3, 4  # random streams
_DROP_USERS, _DROP_ITEMS = 5, 6
_DIVERGENCE_ADVICE = (
    "set model.attention_norm to softmax or linear_safe: linear is the normalization as printed, "
    "whose denominators sum numbers of either sign and so can cross 0"
)

Width = Annotated[int, Field(gt=0)]


class VaeBmfConfig(Config):
    """Hyper-parameters of VAE-BMF; the paper's grids are in brackets."""

    name: Literal["vae_bmf"] = "vae_bmf"

    latent_width: Width = 25
    """Latent dimensions, K [10, 15, 25, 50]."""

    branch_width: Width = 50
    """Width at the end of each branch, K' [10, 15, 25, 50]; at least K."""

    hidden_width: Width = 50
    """Width of all other hidden layers [10, 25, 50, 100]; at least K'."""

    branch_layers: NonNegativeInt = 1
    """Layers of a branch after its first, L' [0, 1, 2]."""

    fused_layers: NonNegativeInt = 0
    """Hidden layers after the branches are joined, L [0, 1, 2]."""

    data: bool = True
    """Whether encoders read ratings; false is the paper's "no data input"."""

    latent: Literal["full", "average", "gated", "none"] = "full"
    """How encoders read the other side's latent vectors: ``full`` (the paper) by a matrix per
    column; ``average`` (its cheap variant) by their mean; ``gated`` (ours, for large catalogs) by a
    sum with a learned weight per column and one matrix for all."""

    attention: Literal["local", "global", "none"] = "local"
    """Whether rows attend to the latent vectors of their rated columns, or of all columns."""

    attention_norm: Literal["softmax", "linear", "linear_safe"] = "softmax"
    """``linear`` is eq. 9 as printed, which diverges since its denominators cross 0;
    ``linear_safe`` keeps them away from 0."""

    likelihood: Literal["sampled", "analytic"] = "sampled"
    """Expected squared error from one sample of the latent vectors, or in closed form."""

    input_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the interactions that a row's branches do not read, drawn again for each tile, so
    that a rating is often predicted without being read. Ours."""

    user_kl_weight: Annotated[float, Field(ge=0.0)] = 0.01
    """Weight of the users' KL term, beta_u, relative to a squared error of weight 1."""

    item_kl_weight: Annotated[float, Field(ge=0.0)] = 0.01
    """Weight of the items' KL term, beta_v."""

    kl_count: Literal["literal", "unbiased"] = "literal"
    """``literal``: a row's KL term counts in each of its tiles; ``unbiased``: once per epoch."""

    centering: Literal["none", "means"] = "none"
    """``means``: latent vectors model deviations from the means of user and item; ours."""

    biases: bool = False
    """Whether encoders also give each row a bias, which is added to its ratings; ours."""

    @property
    def spec(self) -> ModelSpec:
        """Properties that the pipeline needs."""
        objective = SquaredErrorConfig(kl_weight=1.0)
        is_literal = self.attention != "none" and self.attention_norm == "linear"
        advice = _DIVERGENCE_ADVICE if is_literal else ""
        return ModelSpec(
            "ratings", objective, "two_sided", encodes_items=True, divergence_advice=advice
        )

    @model_validator(mode="after")
    def _parts_fit(self) -> "VaeBmfConfig":
        faults = []
        if not self.data and self.latent == "none":
            faults.append("data = false with latent = 'none' leaves nothing to read; enable one")
        if not self.data and self.centering != "none":
            faults.append(
                f"data = false with centering = {self.centering!r}, which reads ratings; set "
                "centering = 'none'"
            )
        widths = (self.latent_width, self.branch_width, self.hidden_width)
        if list(widths) != sorted(widths):
            faults.append(
                f"latent_width, branch_width, hidden_width = {widths}: must not decrease in this "
                "order (paper, section 5)"
            )
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def build(self, catalog: Catalog) -> "VaeBmf":
        """Make a model for scoring, to load weights into."""
        return VaeBmf(self, catalog, is_trained=False)

    def network(self, items: Catalog, users: Catalog) -> "VaeBmf":
        """Make an untrained model, including what only training needs."""
        del users  # the items' catalog describes both sides
        return VaeBmf(self, items, is_trained=True)

    def scoring(
        self, network: dict[str, Tensor], items: tuple[Tensor, ...] | None = None
    ) -> dict[str, Tensor]:
        """Return the state of a scoring model from that of the trained one.

        Args:
            network: State of the trained model, after `end_epoch`.
            items: A `Posterior` of all items; None keeps that in ``network``.

        Returns:
            The state.
        """
        state = {name: value for name, value in network.items() if "delta" not in name}
        if items is not None:
            mean_IZ, log_variance_IZ, state["offset_I"] = items
            state["mean_IZ"], state["variance_IZ"] = mean_IZ, log_variance_IZ.exp()
        return state


class VaeBmfState(NamedTuple):
    """Users; in training also the items of the tile, and samples in place of means."""

    users: LatentFactors
    items: Any = None
    """Items of a tile; None for those of `VaeBmf.item_tables`."""

    kl_B: Tensor | None = None
    """Weighted, nats, of users and items; only in training."""

    transposed: Transposed | None = None
    """The ratings of a tile, sorted by item."""


class VaeBmf(Model):
    """Ratings are products of user and item latent vectors; each side's encoder reads the other's.

    A row's encoder reads its ratings, and the latent vectors of the columns it rated, through two
    branches; joined, they give a normal posterior, refined by attention to those vectors. Mean and
    variance have separate networks. The latent vectors read from the other side are samples of its
    posteriors, drawn once per epoch (`feed_latents`), and constants for the gradient.

    The latent branch multiplies all latent vectors of the other side, masked, with one matrix: here
    a sum of ``v_j Phi_j`` over the rated columns, whose table ``[columns, hidden]`` is computed
    once per epoch. Within an epoch v_j is constant, so an update of Phi_j is ``d_j (outer)
    delta_j``, and optimizers see delta alone: with ``d_j = sign(v_j)``, Adam's update of delta is
    that of Phi (up to its epsilon), at 1 / K of its memory and time; `end_epoch` adds delta to Phi.

    Differs from the source: what the paper leaves open is a setting (`VaeBmfConfig`) or stated
    here. The variance goes through a sigmoid before attention and again at the end, so it stays
    between 0 and 1. Weights start as those of torch's linear layers, latent vectors as N(0, I).
    Adam's moments of Phi are kept across epochs as if the latent vectors had not changed. With
    plain gradient descent in place of Adam, the latent branch's step grows with |v|_1^2, not
    |v|_2^2; and clipping sees the gradient of delta, |v|_1 / |v|_2 times as large as that of Phi.
    """

    def __init__(self, config: VaeBmfConfig, catalog: Catalog, *, is_trained: bool) -> None:
        super().__init__()
        self.config = config
        self.output = RatingOutput()
        width, num_items = config.latent_width, catalog.item_count
        means_I = item_mean(catalog, PRIOR_RATINGS)
        if config.centering == "none":
            means_I = torch.zeros_like(means_I)
        count_L = torch.from_numpy(catalog.train_count_IL.sum(0)).double()
        mean = float(count_L @ torch.tensor(catalog.levels).double() / count_L.sum().clamp(min=1))
        numbers = catalog.user_index_size
        is_rated_I = torch.from_numpy(catalog.train_count_IL.sum(1) > 0)
        everyone = torch.zeros(numbers), torch.ones(numbers)
        shape = EncoderShape.of(config)
        self.users = Encoder(shape, means_I, is_rated_I, 0.0, is_trained=is_trained)
        self.items = Encoder(shape, *everyone, mean, is_trained=is_trained)
        self.register_buffer("mean_IZ", torch.zeros(num_items, width))
        self.register_buffer("variance_IZ", torch.ones(num_items, width))
        self.register_buffer("offset_I", means_I.clone())
        self.mean_IZ: Tensor
        self.variance_IZ: Tensor
        self.offset_I: Tensor

    @override
    def encode(self, batch: TrainInput, rng: CounterRng | None = None) -> Any:
        """Encode users; for a tile, in training, also its items."""
        if isinstance(batch, Tile):
            assert rng is not None  # tiles are for training only
            return self._tile_state(batch, rng)
        assert isinstance(batch, Batch)
        found = self.encode_users(batch)
        return VaeBmfState(
            LatentFactors(found.mean_BZ, found.log_variance_BZ.exp(), found.offset_B)
        )

    def encode_users(self, batch: Batch) -> Posterior:
        """Return the posteriors of users, known or new, from their ratings alone.

        Ratings of items that training did not see are ignored.
        """
        found: Posterior = self.users(Side.whole(self.users.readable(batch)))
        return found

    def encode_items(self, batch: Batch) -> Posterior:
        """Return the posteriors of items, known or new, from their ratings by known users.

        Args:
            batch: One row per item; ``item_N`` holds user numbers.

        Returns:
            One row per item.
        """
        found: Posterior = self.items(Side.whole(self.items.readable(batch)))
        return found

    @torch.no_grad()
    def append_items(self, batch: Batch) -> None:
        """Add items to score; see `EncodesItems`."""
        found = self.encode_items(batch.to(self.mean_IZ.device))
        self.mean_IZ = torch.cat([self.mean_IZ, found.mean_BZ])
        self.variance_IZ = torch.cat([self.variance_IZ, found.log_variance_BZ.exp()])
        self.offset_I = torch.cat([self.offset_I, found.offset_B])

    def _tile_state(self, tile: Tile, rng: CounterRng) -> VaeBmfState:
        config, step_1 = self.config, tile.step_1
        sides = (
            (self.users, tile.users, (_SAMPLE_USERS, _DROP_USERS), config.user_kl_weight),
            (self.items, tile.items, (_SAMPLE_ITEMS, _DROP_ITEMS), config.item_kl_weight),
        )
        is_unbiased = config.kl_count == "unbiased"
        found: list[Any] = []
        kls = []
        for encoder, side, (sample, drop), weight in sides:
            if side is None:
                found.append(None)
                continue
            posterior = encoder(
                side, dropout_weight(self.config.input_dropout, side.batch, rng, drop, step_1)
            )
            shown = _sampled_or_moments(
                self.config.likelihood, posterior, side.batch, rng, sample, step_1
            )
            found.append(LatentFactors(*shown, posterior.offset_B))
            scale_B = weight * side.share_1 / (side.repeats_B if is_unbiased else 1.0)
            kls.append(scale_B * _kl(posterior))
        users, items = found
        if users is None:  # a tile of items only, against the last latent vectors of users
            users, items = items, self.items.last_latents()
        elif items is None:
            items = self.users.last_latents()
        return VaeBmfState(users, items, torch.cat(kls), tile.transposed)

    def kl(self, users: UserState) -> Tensor | None:
        """Return the KL term that `encode` computed for a tile; see `Variational`."""
        return _of(users).kl_B

    @override
    def item_tables(self) -> ItemRows:
        return self.mean_IZ, self.variance_IZ, self.offset_I

    def user_embedding(self, users: UserState) -> Tensor:
        return _of(users).users.latent_BZ

    def item_vectors(self) -> ItemVectors:
        return ItemVectors(self.mean_IZ, self.offset_I)

    @override
    def decode_rows(self, users: UserState, rows: ItemRows) -> Tensor:
        known = _of(users).users
        return known.latent_BZ @ rows[0].T + known.offset_B[:, None] + rows[2]

    @override
    def score_pairs(self, users: UserState, pairs: Batch) -> Tensor:
        known, items, *_, transposed = _with_items(self, users)
        product_N = pair_products(
            known.latent_BZ, items.latent_BZ, pairs.item_N, pairs.pointer_P, transposed
        )
        offset_N: Tensor = known.offset_B[pairs.row_N] + items.offset_B[pairs.item_N]
        return product_N + offset_N

    def pair_variance(self, users: UserState, pairs: Batch) -> Tensor | None:
        """Return the variance of products of independent normal latents; see `Uncertain`.

        Var(u v) = Var(u) (Var(v) + E(v)^2) + E(u)^2 Var(v) in each dimension.
        """
        known, items, *_, transposed = _with_items(self, users)
        if known.variance_BZ is None:
            return None
        left_BZ, right_JZ = known.variance_BZ, items.latent_BZ.square()
        if items.variance_BZ is not None:
            left_BZ = torch.cat([left_BZ + known.latent_BZ.square(), left_BZ], dim=1)
            right_JZ = torch.cat([items.variance_BZ, right_JZ], dim=1)
        return pair_products(left_BZ, right_JZ, pairs.item_N, pairs.pointer_P, transposed)

    def end_epoch(self, epoch: int) -> None:
        """Add this epoch's deltas to the matrices of the latent branches."""
        del epoch
        self.users.fold()
        self.items.fold()

    def feed_latents(
        self, users: tuple[Tensor, ...], items: tuple[Tensor, ...], rng: CounterRng
    ) -> None:
        """Draw latent vectors of all rows, which both sides read from now on.

        Args:
            users: A `Posterior` by user number, NaN for users without a training rating.
            items: A `Posterior` by position, NaN for items without a training rating.
            rng: The epoch's randomness.
        """
        for encoder, rows, stream in (
            (self.users, items, _FEED_ITEMS),
            (self.items, users, _FEED_USERS),
        ):
            posterior = Posterior(*rows)
            number_I = torch.arange(len(posterior.offset_B), device=posterior.mean_BZ.device)
            encoder.read(drawn(posterior, number_I, rng, stream), posterior.offset_B)


def _of(users: UserState) -> VaeBmfState:
    assert isinstance(users, VaeBmfState)
    return users


def drawn(
    posterior: Posterior,
    number_B: Tensor,
    rng: CounterRng,
    stream: int,
    step_1: Tensor | None = None,
) -> Tensor:
    """Draw each row's latent vector by the reparameterization trick, ``[B, Z]``."""
    mean_BZ, log_variance_BZ, _ = posterior
    counters = [number_B[:, None], torch.arange(mean_BZ.shape[1], device=mean_BZ.device)]
    draw_BZ = rng.normal(stream, *counters, *([] if step_1 is None else [step_1]))
    return mean_BZ + torch.exp(0.5 * log_variance_BZ) * draw_BZ.to(mean_BZ.dtype)


def _kl(posterior: Posterior) -> Tensor:
    """Return KL(posterior || N(0, I)) of each row, nats."""
    mean_BZ, log_variance_BZ, _ = posterior
    terms_BZ = log_variance_BZ.exp() + mean_BZ.square() - 1.0 - log_variance_BZ
    return 0.5 * terms_BZ.sum(1)


def _sampled_or_moments(
    likelihood: str,
    posterior: Posterior,
    batch: Batch,
    rng: CounterRng,
    stream: int,
    step_1: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """Return latent vectors and, unless they are samples, variances."""
    if likelihood == "analytic":
        return posterior.mean_BZ, posterior.log_variance_BZ.exp()
    return drawn(posterior, batch.user_B, rng, stream, step_1), None


def _with_items(model: VaeBmf, users: UserState) -> VaeBmfState:
    """Return the state with its items."""
    found = _of(users)
    return found if found.items else found._replace(items=LatentFactors(*model.item_tables()))
