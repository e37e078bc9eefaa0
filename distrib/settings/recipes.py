"""Settings that a model begins with on a log of some size.

Constants that were found on one log do not carry over to a sparser or larger one. These follow from
the counts of the log; how they do on several is in docs/benchmarks.md.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from distrib.config import Config, checked
from distrib.models import ModelConfig
from distrib.training.schemes import SCHEMES
from distrib.training.schemes.base import Scheme

_DECAY = 0.3
"""Share of a weight that decays in an epoch."""

_RATE = 1e-3  # the default learning rate

_FEW = 15
"""Interactions of a user, on average, below which a log is sparse."""

_RATING_DECAY = 10.0
"""Of Conv4Rec on a sparse log, where ratings overfit before its lists improve."""

_SPARSE_NEIGHBORS, _SPARSE_SHRINK = 400, 50.0
"""Of item k-nearest neighbors: similarities rest on few users, and few neighbors meet a history."""

_TILE_ITEMS = 512
_DIVERGENCE = 1.5e-3
"""Weight of VAE-BMF's divergences. With its default codes fall to 0 where users have many tiles."""


class Counts(NamedTuple):
    """What recipes depend on."""

    users: int
    items: int
    interactions: int
    batch_users: int

    @property
    def width(self) -> int:
        """Latent dimensions."""
        return 64 if self.items < 2000 else 128 if self.items < 10_000 else 200

    @property
    def is_sparse(self) -> bool:
        """Whether users have few interactions."""
        return self.interactions < _FEW * self.users

    @property
    def decay(self) -> float:
        """Weight decay of `_DECAY` in an epoch, by an optimizer that decays apart (adamw)."""
        num_steps = max(1, self.users // self.batch_users)
        return float(f"{_DECAY / (_RATE * num_steps):.2g}")


Values = Mapping[str, object]
_NONE: Values = MappingProxyType({})


def power_of_two(amount: float, low: int, high: int) -> int:
    """Return the power of two nearest to an amount by its logarithm, within bounds.

    Args:
        amount: At least 0.
        low: The least result, a power of two.
        high: The largest, too.

    Returns:
        The power.
    """
    return min(max(1 << round(math.log2(max(amount, 1.0))), low), high)


class Recipe(NamedTuple):
    """Settings to begin with; the others keep their defaults."""

    about: str = ""
    """What the model predicts, for a comment."""

    model: Values = _NONE
    optimizer: Values = _NONE
    train: Values = _NONE

    patience: int = 10
    """Epochs, where validation chooses one."""


def _conv4rec(counts: Counts) -> Recipe:
    found: dict[str, object] = {
        "latent_width": counts.width,
        "rating_width": counts.width // 2,
    }
    if counts.is_sparse:
        found["rating_decay"] = _RATING_DECAY
    about = "who interacts with what, and how they rate it"
    return Recipe(about, found, {"weight_decay": counts.decay})


def _item_knn(counts: Counts) -> Recipe:
    sparse = {"num_neighbors": _SPARSE_NEIGHBORS, "shrink": _SPARSE_SHRINK}
    return Recipe("who interacts with what", sparse if counts.is_sparse else {})


def _mult_vae(counts: Counts) -> Recipe:
    widths = {"hidden_width": 3 * counts.width, "latent_width": counts.width}
    return Recipe("who interacts with what", widths)


def _sas_rec(_counts: Counts) -> Recipe:
    return Recipe("what comes next", {"max_length": 50})


def _autorec(_counts: Counts) -> Recipe:
    about = "how items are rated"
    return Recipe(about, {"centering": "means"}, {"name": "adam", "weight_decay": 0.2})


def _vae_bmf(counts: Counts) -> Recipe:
    """Return large tiles: both sides of each are encoded for it.

    For the first hundreds of updates it predicts the means of users and items alone, so it needs
    more patience than others.
    """
    users = power_of_two(counts.users / 8, 64, 512)
    tiles = {"batch_users": users, "tiles": {"items": _TILE_ITEMS}}
    about = "how items are rated, and how sure that is"
    model = {
        "latent_width": 50,
        "branch_width": 100,
        "hidden_width": 100,
        "centering": "means",
        "likelihood": "analytic",
        "input_dropout": 0.6,
        "user_kl_weight": _DIVERGENCE,
        "item_kl_weight": _DIVERGENCE,
    }
    rule = {"name": "adam", "learning_rate": 1.5e-3, "weight_decay": 3e-4}
    return Recipe(about, model, rule, tiles, patience=2 * Recipe().patience)


_RECIPES: Mapping[str, Callable[[Counts], Recipe]] = {
    "autorec": _autorec,
    "conv4rec": _conv4rec,
    "item_knn": _item_knn,
    "mult_vae": _mult_vae,
    "sas_rec": _sas_rec,
    "vae_bmf": _vae_bmf,
}
"""Models without one begin with their defaults."""


def recipe(model: str, counts: Counts) -> Recipe:
    """Return what a model begins with.

    Args:
        model: Its name.
        counts: Of the log.

    Returns:
        The settings.
    """
    found = _RECIPES.get(model)
    return Recipe() if found is None else found(counts)


def scheme_of_model(name: str) -> Scheme:
    """Return the scheme that trains a model with its default objective.

    Args:
        name: Of the model.

    Returns:
        The scheme.

    Raises:
        ConfigError: There is no such model.
    """
    found = checked(_Named, {"model": {"name": name}}, where="the model for the log")
    return SCHEMES[found.model.spec.scheme]


class _Named(Config):
    model: ModelConfig
