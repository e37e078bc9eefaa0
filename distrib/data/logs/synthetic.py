"""A synthetic rating log of any size, drawn from a process with known probabilities."""

from functools import cached_property
from typing import Annotated, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveFloat, PositiveInt

from distrib.config import Config
from distrib.errors import DataError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_CHUNK_USERS = 4096
_PROPOSALS_AT_ONCE = 1 << 20
_MAX_ACTIVITY = 1.0
_MAX_QUALITY = 1.0
_FIRST_SECOND = 1_500_000_000
_YEAR_S = 365 * 24 * 3600


class SyntheticSource(Config):
    """Size and shape of a synthetic log."""

    format: Literal["synthetic"] = "synthetic"

    num_users: PositiveInt = 6000
    """Users of the process; users without interactions do not appear in the log."""

    num_items: PositiveInt = 400
    """Items of the process."""

    num_interactions: PositiveInt = 240_000
    """Expected length of the log; the actual length is random."""

    levels: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0)
    """Rating levels, ascending."""

    rank: PositiveInt = 3
    """Dimension of the latent vectors."""

    interaction_effect: PositiveFloat = 2.5
    """Weight of the dot product u.v in the log-odds of an interaction."""

    rating_effect: PositiveFloat = 0.8
    """Weight of an independent dot product y.w in the log-odds between adjacent rating levels."""

    popularity_exponent: Annotated[float, Field(ge=0.0)] = 0.7
    """Zipf exponent of item popularity; 0 makes all items equally popular."""

    seed: int = 0
    """Random seed."""


class Interactions(NamedTuple):
    """Drawn interactions, ordered by user, then item."""

    user_N: IntArray
    item_N: IntArray
    rating_N: npt.NDArray[np.float32]
    time_N: IntArray


class _Users(NamedTuple):
    first: int
    taste_BZ: FloatArray
    fondness_BZ: FloatArray
    activity_B: FloatArray


class SyntheticWorld:
    """The process: six classes (none, or one of the levels) for each user-item pair.

    The logits are low-rank, so a Conv4Rec with a linear decoder can represent the process exactly:
    0 for "none", and for level k = 1..L

        offset + popularity_j + activity_i + interaction_effect * u_i.v_j
            + base_k + (k - middle) * (quality_j + rating_effect * y_i.w_j)

    with unit vectors u, v, y, w. All terms are bounded, so the interaction probability has a bound
    per item, and drawing a log takes time proportional to its length, not to users x items.
    """

    def __init__(self, source: SyntheticSource) -> None:
        self.source = source
        rng = np.random.default_rng([source.seed, 1])
        count, rank = source.num_items, source.rank
        self.taste_IZ = _unit(rng.standard_normal((count, rank)))
        self.fondness_IZ = _unit(rng.standard_normal((count, rank)))
        self.quality_I = np.clip(0.5 * rng.standard_normal(count), -_MAX_QUALITY, _MAX_QUALITY)
        rank_I = rng.permutation(count) + 1.0
        self.popularity_I = -source.popularity_exponent * np.log(rank_I)
        num_levels = len(source.levels)
        self.step_L = np.arange(1, num_levels + 1) - (num_levels + 1) / 2
        self.base_L = -0.25 * (self.step_L - 0.5) ** 2

    @property
    def num_chunks(self) -> int:
        """Number of chunks of users; each is drawn on its own."""
        return -(-self.source.num_users // _CHUNK_USERS)

    @cached_property
    def offset(self) -> float:
        """Logit offset that gives the configured log length, by bisection on a sample."""
        rng = np.random.default_rng([self.source.seed, 3])
        users = self._users(0)
        items = rng.permutation(self.source.num_items)[:4096]
        wanted = self.source.num_interactions / (self.source.num_users * self.source.num_items)
        if not 0.0 < wanted < 1.0:
            raise DataError(
                f"data.source.num_interactions = {self.source.num_interactions} does not fit "
                f"{self.source.num_users} users x {self.source.num_items} items; lower it"
            )
        sample = slice(0, 1024)
        odds = self._odds(users, sample, items)
        low, high = -40.0, 40.0
        for _ in range(60):
            middle = (low + high) / 2
            scaled = np.exp(middle) * odds
            low, high = (middle, high) if (scaled / (1 + scaled)).mean() < wanted else (low, middle)
        return (low + high) / 2

    def probability(self, users: IntArray, items: IntArray) -> FloatArray:
        """Return the true probabilities of all classes.

        Args:
            users: User ids, 0..num_users-1.
            items: Item ids, 0..num_items-1.

        Returns:
            ``[B, I, C]``; class 0 is "no interaction".
        """
        result = np.empty((len(users), len(items), 1 + len(self.source.levels)))
        for chunk in np.unique(users // _CHUNK_USERS):
            mine = np.flatnonzero(users // _CHUNK_USERS == chunk)
            drawn = self._users(int(chunk))
            rows = users[mine] - drawn.first
            interacts = self._interacts(
                drawn.taste_BZ[rows] @ self.taste_IZ[items].T,
                drawn.activity_B[rows][:, None],
                items,
            )
            liked = drawn.fondness_BZ[rows] @ self.fondness_IZ[items].T
            result[mine] = self._outcomes(interacts, liked, items)
        return result

    def draw(self, chunk: int) -> Interactions:
        """Draw the interactions of one chunk of users, deterministically."""
        users = self._users(chunk)
        rng = np.random.default_rng([self.source.seed, 4, chunk])
        bound_I = self._bound_I
        bucket_I = np.floor(np.log2(bound_I)).astype(np.int64)
        parts = []
        for bucket in np.unique(bucket_I):
            items = np.flatnonzero(bucket_I == bucket)
            bound = float(bound_I[items].max())
            num_pairs = len(users.activity_B) * len(items)
            parts += [
                self._accept(rng, users, pairs // len(items), items[pairs % len(items)], bound)
                for pairs in _proposals(rng, num_pairs, bound)
            ]
        user_N, item_N, level_N = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        order_N = np.lexsort((item_N, user_N))
        rating_N = np.asarray(self.source.levels, dtype=np.float32)[level_N[order_N]]
        time_N = _FIRST_SECOND + rng.integers(_YEAR_S, size=len(order_N))
        return Interactions(users.first + user_N[order_N], item_N[order_N], rating_N, time_N)

    @cached_property
    def _bound_I(self) -> FloatArray:
        """Upper bound of the interaction probability of any pair with this item."""
        steepness = np.abs(self.step_L)[None, :] * self.source.rating_effect
        tilt_IL = self.base_L + self.step_L * self.quality_I[:, None] + steepness
        odds_I = np.exp(
            self.offset + self.popularity_I + _MAX_ACTIVITY + self.source.interaction_effect
        ) * np.exp(tilt_IL).sum(1)
        return np.asarray(odds_I / (1 + odds_I))

    def _users(self, chunk: int) -> _Users:
        first = chunk * _CHUNK_USERS
        count = min(_CHUNK_USERS, self.source.num_users - first)
        rng = np.random.default_rng([self.source.seed, 2, chunk])
        taste, fondness = (_unit(rng.standard_normal((count, self.source.rank))) for _ in range(2))
        activity = np.clip(0.5 * rng.standard_normal(count), -_MAX_ACTIVITY, _MAX_ACTIVITY)
        return _Users(first, taste, fondness, activity)

    def _interacts(self, match: FloatArray, activity: FloatArray, items: IntArray) -> FloatArray:
        return np.asarray(
            self.offset
            + self.popularity_I[items]
            + activity
            + self.source.interaction_effect * match
        )

    def _level_logits(self, liked: FloatArray, items: IntArray) -> FloatArray:
        tilt = self.quality_I[items] + self.source.rating_effect * liked
        return np.asarray(self.base_L + self.step_L * tilt[..., None])

    def _outcomes(self, interacts: FloatArray, liked: FloatArray, items: IntArray) -> FloatArray:
        logits = np.concatenate(
            [
                np.zeros((*interacts.shape, 1)),
                interacts[..., None] + self._level_logits(liked, items),
            ],
            axis=-1,
        )
        exponentials = np.exp(logits - logits.max(-1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(-1, keepdims=True))

    def _odds(self, users: _Users, rows: slice, items: IntArray) -> FloatArray:
        match = users.taste_BZ[rows] @ self.taste_IZ[items].T
        liked = users.fondness_BZ[rows] @ self.fondness_IZ[items].T
        interacts = (
            self.popularity_I[items]
            + users.activity_B[rows][:, None]
            + self.source.interaction_effect * match
        )
        return np.asarray(np.exp(interacts) * np.exp(self._level_logits(liked, items)).sum(-1))

    def _accept(
        self, rng: np.random.Generator, users: _Users, rows: IntArray, items: IntArray, bound: float
    ) -> tuple[IntArray, IntArray, IntArray]:
        """Thin proposals to interactions; return user (within the chunk), item, level."""
        match = np.einsum("nz,nz->n", users.taste_BZ[rows], self.taste_IZ[items])
        liked = np.einsum("nz,nz->n", users.fondness_BZ[rows], self.fondness_IZ[items])
        outcome_NC = self._outcomes(
            self._interacts(match, users.activity_B[rows], items), liked, items
        )
        # One uniform number decides both acceptance and level: accept below P(any) / bound.
        reached_NL = np.cumsum(outcome_NC[:, 1:], axis=1) / bound
        level_N = (rng.random(len(rows))[:, None] >= reached_NL).sum(1)
        kept = level_N < outcome_NC.shape[1] - 1
        return rows[kept], items[kept], level_N[kept]


def _proposals(rng: np.random.Generator, num_pairs: int, bound: float) -> list[IntArray]:
    """Pick each of ``num_pairs`` pairs with probability ``bound``, by geometric gaps, in pieces."""
    pieces, position = [], -1
    while position < num_pairs:
        expected = (num_pairs - position) * bound
        count = int(min(expected + 10 * expected**0.5 + 10, _PROPOSALS_AT_ONCE))
        pairs = position + np.cumsum(rng.geometric(bound, size=count))
        position = int(pairs[-1])
        pieces.append(pairs[pairs < num_pairs])
    return pieces


def _unit(vectors: FloatArray) -> FloatArray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
