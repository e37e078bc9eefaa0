"""Which user trains and which interactions are held out: pure functions of ids and a seed."""

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from distrib.config import Config
from distrib.data.schema import Role, Subset
from distrib.errors import DataError

HashArray = npt.NDArray[np.uint64]
Share = Annotated[float, Field(ge=0.0, le=1.0)]

_SHARD, _USER, _CELL = 1, 2, 3  # separate uses of the same ids


class EntrywiseSplit(Config):
    """Every interaction is drawn for itself, whatever its user or item.

    Source: protocol of Truong, Salah, Lauw, "Bilateral Variational Autoencoder", and of VAE-BMF
    (arXiv 2002.09145), 70/15/15. Differs from the source: each interaction is drawn independently,
    so the shares hold up to chance, and the draw does not depend on the order of the log.
    """

    name: Literal["entrywise"] = "entrywise"

    train_share: Share = 0.7
    """Share of interactions that the model is trained on."""

    valid_share: Share = 0.15
    """Share held out for choosing; the rest is for testing."""

    seed: int = 0
    """Another seed, another draw."""

    @model_validator(mode="after")
    def _shares_leave_some(self) -> "EntrywiseSplit":
        if self.train_share + self.valid_share > 1.0 + 1e-9:
            raise ValueError("train_share + valid_share is over 1; nothing is left for testing")
        return self


class StrongGeneralisationSplit(Config):
    """Held-out users are never trained on; part of their history is given, the rest is asked.

    Source: Liang et al., "Variational Autoencoders for Collaborative Filtering", WWW 2018, 4.1.
    Differs from the source: users and items are drawn by hashing ids, not from NumPy's generator.
    """

    name: Literal["strong_generalisation"] = "strong_generalisation"

    valid_users: PositiveInt = 1000
    """Users held out for choosing."""

    test_users: PositiveInt = 1000
    """Users held out for testing."""

    target_share: Share = 0.2
    """Share of a held-out user's interactions that are asked, rounded down."""

    min_items: NonNegativeInt = 5
    """Held-out users with fewer interactions give all of them and are asked nothing."""

    seed: int = 0
    """Another seed, another draw."""


class NoSplit(Config):
    """Everything is history: for users to be scored, or a final model trained on all there is."""

    name: Literal["none"] = "none"


Split = Annotated[EntrywiseSplit | StrongGeneralisationSplit | NoSplit, Field(discriminator="name")]


def hash_ids(ids: pa.Array, use: int, seed: int = 0) -> HashArray:
    """Hash ids to 64 bits; equal ids of equal kind hash alike on every machine.

    Args:
        ids: Integers or text.
        use: Separates independent uses of the same ids.
        seed: Separates draws.

    Returns:
        One hash for each id.
    """
    if pa.types.is_integer(ids.type):
        base = ids.to_numpy(zero_copy_only=False).astype(np.int64).view(np.uint64)
    else:
        base = pd.util.hash_array(ids.to_numpy(zero_copy_only=False).astype(object))
    return _mix(base + _mix(np.asarray([seed * 1_000_003 + use], dtype=np.int64).view(np.uint64)))


def shard_of(users: pa.Array, num_shards: int) -> npt.NDArray[np.int32]:
    """Return the shard of each user."""
    return np.asarray(hash_ids(users, _SHARD) % np.uint64(num_shards), dtype=np.int32)


def user_hash(users: pa.Array, split: Split) -> HashArray:
    """Return the number that decides a user's subset."""
    return hash_ids(users, _USER, getattr(split, "seed", 0))


def subset_limits(split: Split, hashes: HashArray) -> tuple[int, int]:
    """Return the hashes below which a user is for testing, and below which for choosing.

    Args:
        split: The rule.
        hashes: `user_hash` of every user there is, each once.

    Returns:
        The two limits; 0 where nobody is held out.

    Raises:
        DataError: More users are to be held out than there are.
    """
    if not isinstance(split, StrongGeneralisationSplit):
        return 0, 0
    wanted = split.test_users + split.valid_users
    if wanted >= len(hashes):
        raise DataError(
            f"data.split holds out {wanted} users, but only {len(hashes)} are left after "
            "filtering; lower valid_users and test_users"
        )
    ordered = np.partition(hashes, [split.test_users, wanted])
    return int(ordered[split.test_users]), int(ordered[wanted])


def subsets(hashes: HashArray, limits: tuple[int, int]) -> npt.NDArray[np.int8]:
    """Return each user's subset from `user_hash` and `subset_limits`."""
    test_limit, valid_limit = (np.uint64(limit) for limit in limits)
    held_out = np.where(hashes < test_limit, np.int8(Subset.TEST), np.int8(Subset.VALID))
    return np.where(hashes < valid_limit, held_out, np.int8(Subset.TRAIN)).astype(np.int8)


def roles(
    users: pa.Array, items: pa.Array, subset_N: npt.NDArray[np.int8], split: Split
) -> npt.NDArray[np.int8]:
    """Return what each interaction is for.

    Args:
        users: User id of each interaction; all interactions of a user stand together.
        items: Item id of each interaction; no pair twice.
        subset_N: Subset of each interaction's user.
        split: The rule.

    Returns:
        A `Role` for each interaction.
    """
    if isinstance(split, NoSplit):
        return np.full(len(users), Role.INPUT, dtype=np.int8)
    cell_N = _mix(hash_ids(users, _CELL, split.seed) ^ _mix(hash_ids(items, _CELL, split.seed)))
    if isinstance(split, EntrywiseSplit):
        draw_N = cell_N.astype(np.float64) / 2.0**64
        held_out = np.where(
            draw_N < split.train_share + split.valid_share, Role.VALID_TARGET, Role.TEST_TARGET
        )
        return np.where(draw_N < split.train_share, Role.INPUT, held_out).astype(np.int8)
    return _fold_in_roles(hash_ids(users, _USER), cell_N, subset_N, split)


def _fold_in_roles(
    user_N: HashArray,
    cell_N: HashArray,
    subset_N: npt.NDArray[np.int8],
    split: StrongGeneralisationSplit,
) -> npt.NDArray[np.int8]:
    order_N = np.lexsort((cell_N, user_N))
    _, first, length = np.unique(user_N[order_N], return_index=True, return_counts=True)
    rank_N = np.arange(len(user_N)) - np.repeat(first, length)
    num_targets = np.where(
        length >= split.min_items, (split.target_share * length).astype(np.int64), 0
    )
    is_target_N = np.empty(len(user_N), dtype=bool)
    is_target_N[order_N] = rank_N < np.repeat(num_targets, length)
    asked = np.where(subset_N == Subset.VALID, Role.VALID_TARGET, Role.TEST_TARGET)
    return np.where(is_target_N & (subset_N != Subset.TRAIN), asked, Role.INPUT).astype(np.int8)


def _mix(state: HashArray) -> HashArray:
    """Finalise SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        state = state + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))
