"""Rules that split users and interactions: pure functions of ids and a seed."""

from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from distrib.config import Config
from distrib.data.arrow import equals_next, whole
from distrib.data.hashing import HashArray, hash_ids, hash_pairs
from distrib.data.schema import Origin, Role, Subset
from distrib.data.splits.liang_2018 import LiangDraw
from distrib.errors import DataError

Share = Annotated[float, Field(ge=0.0, le=1.0)]

_SHARD, _USER, _PAIR = 1, 2, 3  # separate uses of the same ids


class EntrywiseSplit(Config):
    """Assign every interaction at random, independently of its user and item.

    Source: protocol of Truong, Salah, Lauw, "Bilateral Variational Autoencoder", and of VAE-BMF
    (arXiv 2002.09145), 70/15/15; of its study of sparsity, with ``train_share`` .01 to .1 and half
    of the rest each; and 60/20/20 of Inverse Learning. Differs from the sources: the draw is a hash
    of the ids, so it does not depend on the order of the log, and a smaller training share is a
    subset of a larger one.
    """

    name: Literal["entrywise"] = "entrywise"

    train_share: Share = 0.7
    """Share of interactions for training."""

    valid_share: Share | None = None
    """Share of interactions for validation, the rest is for testing; default: half of what is not
    for training."""

    exact: bool = False
    """Whether shares are exact (cumulative counts rounded down) rather than in expectation."""

    seed: int = 0
    """Random seed."""

    @property
    def seen_share(self) -> float:
        """Share for training and validation."""
        valid_share = self.valid_share
        return self.train_share + (
            (1 - self.train_share) / 2 if valid_share is None else valid_share
        )

    @model_validator(mode="after")
    def _shares_leave_some(self) -> "EntrywiseSplit":
        if self.seen_share > 1.0 + 1e-9:
            raise ValueError("train_share + valid_share must be at most 1")
        return self


class StrongGeneralizationSplit(Config):
    """Held-out users are not trained on; part of their history is input, the rest are targets.

    Source: Liang et al., "Variational Autoencoders for Collaborative Filtering", WWW 2018, 4.1.
    Differs from the source: users and items are drawn by hashing ids, not from NumPy's generator;
    `LiangSplit` uses that generator.
    """

    name: Literal["strong_generalization"] = "strong_generalization"

    valid_users: PositiveInt = 1000
    """Users held out for validation."""

    test_users: PositiveInt = 1000
    """Users held out for testing."""

    target_share: Share = 0.2
    """Share of a held-out user's interactions that are targets, rounded down."""

    min_items: NonNegativeInt = 5
    """Held-out users with fewer interactions have no targets, only input."""

    seed: int = 0
    """Random seed."""


class LiangSplit(Config):
    """Strong generalization with the exact draws of the notebook of Liang et al. (WWW 2018)."""

    name: Literal["liang_2018"] = "liang_2018"

    valid_users: PositiveInt = 10_000
    """Users held out for validation."""

    test_users: PositiveInt = 10_000
    """Users held out for testing."""

    target_share: Share = 0.2
    """Share of a held-out user's interactions that are targets, rounded down."""

    min_items: NonNegativeInt = 5
    """Held-out users with fewer interactions have no targets, only input."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 98765
    """Seed of NumPy's legacy generator."""


class LeaveLastSplit(Config):
    """Hold out the last ``count`` interactions of longer histories; the others only train.

    Source: DeSoRec (three, one training instance per user); with one or two, leave-one-out.
    """

    name: Literal["leave_last"] = "leave_last"

    count: Literal[1, 2, 3] = 3
    """1: the last is for testing. 2: also, the one before is for validation. 3: as 2, and the one
    before that is marked as a training target in the prepared data; training reads both alike,
    and models of sequences with ``targets = "last"`` predict it in either case."""


class GlobalTimeSplit(Config):
    """Split by time: training, then validation, then testing."""

    name: Literal["global_time"] = "global_time"

    train_share: Share = 0.8
    """Share of interactions for training; those of the same second stay together."""

    valid_share: Share = 0.1
    """Share of interactions for validation."""

    valid_from: int | None = None
    """Start of validation in seconds since 1970, instead of shares; requires ``test_from``."""

    test_from: int | None = None
    """Start of testing in seconds since 1970."""

    @model_validator(mode="after")
    def _moments_in_order(self) -> "GlobalTimeSplit":
        if (self.valid_from is None) != (self.test_from is None):
            raise ValueError("set both valid_from and test_from, or neither")
        if self.valid_from is not None and (self.test_from or 0) < self.valid_from:
            raise ValueError("test_from is before valid_from; expected valid_from <= test_from")
        if self.train_share + self.valid_share > 1.0 + 1e-9:
            raise ValueError("train_share + valid_share must be at most 1")
        return self


class GivenSplit(Config):
    """Held-out interactions come from separate files with the same layout as the log."""

    name: Literal["given"] = "given"

    test: str
    """Path or URL of the test file."""

    valid: str | None = None
    """Path or URL of the validation file; None: no validation."""

    chronological: bool = False
    """Whether validation targets precede the test targets, so that a model may read them then."""

    known: Literal["keep", "drop"] = "keep"
    """Whether to keep held-out pairs that the log or the validation file also contains, as in
    Coat. Such a pair remains a target although the model has seen it."""


class NoSplit(Config):
    """Hold out nothing: for users to be scored, or for a final model trained on all data."""

    name: Literal["none"] = "none"


Split = Annotated[
    EntrywiseSplit
    | StrongGeneralizationSplit
    | LiangSplit
    | LeaveLastSplit
    | GlobalTimeSplit
    | GivenSplit
    | NoSplit,
    Field(discriminator="name"),
]

CHRONOLOGICAL = ("leave_last", "global_time")
"""Splits whose test targets follow the validation targets, which may then be model input."""


class SplitState(NamedTuple):
    """Global state that a split needs before it can assign a single user."""

    limits: tuple[int, int] = (0, 0)
    """See `limit_ranks` and `held_out_limits`."""

    draw: LiangDraw | None = None


def shard_of(users: pa.Array, num_shards: int) -> npt.NDArray[np.int32]:
    """Return the shard of each user."""
    return np.asarray(hash_ids(users, _SHARD) % np.uint64(num_shards), dtype=np.int32)


def user_hash(users: pa.Array, split: Split) -> HashArray:
    """Return the hash that decides a user's subset."""
    return hash_ids(users, _USER, getattr(split, "seed", 0))


def pair_hash(users: pa.Array, items: pa.Array, split: Split) -> HashArray:
    """Return the hash that decides the role of a user-item pair."""
    seed = getattr(split, "seed", 0)
    return hash_pairs(users, items, _PAIR, seed)


def removes_unseen(split: Split) -> bool:
    """Return whether to drop items of held-out users only, which cannot be trained."""
    return isinstance(split, StrongGeneralizationSplit | LiangSplit)


def held_out_limits(split: StrongGeneralizationSplit, hashes: HashArray) -> tuple[int, int]:
    """Return the hash limits below which a user is for testing, and for validation.

    Args:
        split: The split.
        hashes: The smallest `user_hash` values, one more than the number of held-out users.

    Returns:
        The two limits.

    Raises:
        DataError: More users are to be held out than there are.
    """
    wanted = split.test_users + split.valid_users
    require_enough_users(wanted, len(hashes))
    ordered = np.sort(hashes)
    return int(ordered[split.test_users]), int(ordered[wanted])


def require_enough_users(wanted: int, present: int) -> None:
    """Refuse to hold out all users.

    Args:
        wanted: Number of users to hold out.
        present: Number of users; may be capped at one more than ``wanted``.

    Raises:
        DataError: No user would be left for training.
    """
    if wanted >= present:
        raise DataError(
            f"data.split holds out {wanted} users, but only {present} are left after "
            "filtering; lower valid_users and test_users"
        )


def limit_ranks(split: Split, num_rows: int) -> list[int] | None:
    """Return the ranks of a split's two limits among the `limit_keys` of all interactions.

    Args:
        split: The split.
        num_rows: Number of interactions.

    Returns:
        Ranks from 0, ``num_rows`` if nothing is beyond the limit; None if the split has no limits.
    """
    if isinstance(split, EntrywiseSplit) and split.exact:
        shares = (split.train_share, split.seen_share)
    elif isinstance(split, GlobalTimeSplit) and split.valid_from is None:
        shares = (split.train_share, split.train_share + split.valid_share)
    else:
        return None
    return [min(int(share * num_rows + 1e-9), num_rows) for share in shares]


def limit_keys(kept: pa.Table, split: Split) -> HashArray:
    """Return each interaction's key, to compare with a split's limits."""
    if isinstance(split, GlobalTimeSplit):
        return time_keys(kept["time"].to_numpy())
    return pair_hash(whole(kept["user"]), whole(kept["item"]), split)


def time_keys(time_N: npt.NDArray[np.int64]) -> HashArray:
    """Map times to unsigned numbers in the same order."""
    return time_N.view(np.uint64) ^ np.uint64(1 << 63)


def assign(kept: pa.Table, split: Split, split_state: SplitState) -> tuple[Any, Any]:
    """Return the subset of each interaction's user, and the interaction's role.

    Args:
        kept: Interactions of complete users, ordered by shard, user, time and item.
        split: The split.
        split_state: Global state of the split.

    Returns:
        A `Subset` and a `Role` for each interaction, int8.
    """
    nothing = np.zeros(len(kept), dtype=np.int8)
    if not len(kept) or isinstance(split, NoSplit):
        return nothing, nothing
    if isinstance(split, StrongGeneralizationSplit | LiangSplit):
        return _by_user(kept, split, split_state)
    return nothing, _roles(kept, split, split_state)


def _by_user(
    kept: pa.Table, split: StrongGeneralizationSplit | LiangSplit, split_state: SplitState
) -> tuple[Any, Any]:
    users, items = whole(kept["user"]), whole(kept["item"])
    if isinstance(split, LiangSplit):
        return _liang(users, items, split_state.draw)
    subset_N = _subsets(user_hash(users, split), split_state.limits)
    order_N = pair_hash(users, items, split)
    return subset_N, _fold_in_roles(user_starts(users), order_N, subset_N, split)


def _roles(kept: pa.Table, split: Split, split_state: SplitState) -> Any:
    """Return roles where every user is a training user."""
    if isinstance(split, LeaveLastSplit):
        return _leave_last_roles(user_starts(whole(kept["user"])), split.count)
    if isinstance(split, GivenSplit):
        return _HELD_OUT[kept["origin"].to_numpy().astype(np.int64)]
    if isinstance(split, EntrywiseSplit) and not split.exact:
        cell_N = pair_hash(whole(kept["user"]), whole(kept["item"]), split)
        return _entrywise_roles(cell_N, split)
    limits = np.asarray(split_state.limits, dtype=np.uint64)
    return _HELD_OUT[np.searchsorted(limits, limit_keys(kept, split), side="right")]


_HELD_OUT = np.array([Role.INPUT, Role.VALID_TARGET, Role.TEST_TARGET], dtype=np.int8)
assert [int(origin) for origin in Origin] == [0, 1, 2]


def moments(split: GlobalTimeSplit) -> tuple[int, int]:
    """Return the limits of a split with explicit times."""
    named = np.array([split.valid_from or 0, split.test_from or 0], dtype=np.int64)
    low, high = time_keys(named)
    return int(low), int(high)


def _entrywise_roles(cell_N: HashArray, split: EntrywiseSplit) -> npt.NDArray[np.int8]:
    draw_N = cell_N.astype(np.float64) / 2.0**64
    held_out = np.where(draw_N < split.seen_share, Role.VALID_TARGET, Role.TEST_TARGET)
    return np.where(draw_N < split.train_share, Role.INPUT, held_out).astype(np.int8)


def user_starts(users: pa.Array) -> npt.NDArray[np.int64]:
    """Return the offsets of each user's interactions, with the end of the last."""
    changes = ~equals_next(pa.chunked_array([users])) if len(users) > 1 else np.zeros(0, bool)
    return np.concatenate([[0], np.flatnonzero(changes) + 1, [len(users)]]).astype(np.int64)


def _subsets(hashes: HashArray, limits: tuple[int, int]) -> npt.NDArray[np.int8]:
    test_limit, valid_limit = (np.uint64(limit) for limit in limits)
    held_out = np.where(hashes < test_limit, np.int8(Subset.TEST), np.int8(Subset.VALID))
    return np.where(hashes < valid_limit, held_out, np.int8(Subset.TRAIN)).astype(np.int8)


def _fold_in_roles(
    start_P: npt.NDArray[np.int64],
    cell_N: HashArray,
    subset_N: npt.NDArray[np.int8],
    split: StrongGeneralizationSplit,
) -> npt.NDArray[np.int8]:
    """Make the held-out users' interactions with the smallest hashes targets."""
    length_B = np.diff(start_P)
    row_N = np.repeat(np.arange(len(length_B)), length_B)
    held_N = np.flatnonzero(subset_N != Subset.TRAIN)
    order_N = held_N[np.lexsort((cell_N[held_N], row_N[held_N]))]
    rank_N = np.zeros(len(cell_N), dtype=np.int64)
    rank_N[order_N] = held_N - start_P[row_N[held_N]]
    targets_B = np.where(
        length_B >= split.min_items, (split.target_share * length_B).astype(np.int64), 0
    )
    tried_N = _HELD_OUT[subset_N.astype(np.int64)]
    return np.where(rank_N < targets_B[row_N], tried_N, np.int8(Role.INPUT)).astype(np.int8)


def _leave_last_roles(start_P: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int8]:
    length_B = np.diff(start_P)
    from_end_N = np.repeat(start_P[1:], length_B) - 1 - np.arange(start_P[-1])
    is_long_N = np.repeat(length_B, length_B) > count
    by_place = (Role.TEST_TARGET, Role.VALID_TARGET, Role.TRAIN_TARGET)[:count]
    role_N = np.full(len(from_end_N), Role.INPUT, dtype=np.int8)
    for place, role in enumerate(by_place):
        role_N[is_long_N & (from_end_N == place)] = role
    return role_N


def _liang(users: pa.Array, items: pa.Array, draw: LiangDraw | None) -> tuple[Any, Any]:
    if draw is None:
        raise DataError("the Liang split was used before it was drawn; report this as a bug")
    subset_N, is_target_N = draw.of(users, items)
    tried_N = _HELD_OUT[subset_N.astype(np.int64)]
    return subset_N, np.where(is_target_N, tried_N, np.int8(Role.INPUT)).astype(np.int8)
