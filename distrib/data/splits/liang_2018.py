"""Strong generalization exactly as drawn by Liang et al., from NumPy's legacy generator.

Source: Liang, Krishnan, Hoffman, Jebara, "Variational Autoencoders for Collaborative Filtering",
WWW 2018, and the order of operations in the authors' notebook: users in ascending order of id are
permuted; the last are for testing, those before them for validation; items without training users
are removed; then, with the generator reseeded for each of the two groups, the users' targets are
drawn in ascending order of user id, from items in log order, which for MovieLens-20M is id order.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from distrib.data.arrow import to_numpy
from distrib.data.schema import Subset
from distrib.errors import DataError

IntArray = npt.NDArray[np.int64]

ML20M_ROWS = 20_000_263
PUBLISHED = {
    "users": 136_677,
    "interactions": 9_990_682,
    "items": 20_108,
    "training users": 116_677,
}
"""Published counts on MovieLens-20M; ``items`` are those of training users."""


class Recipe(Protocol):
    """The settings that the draw depends on."""

    @property
    def valid_users(self) -> int:
        """Users held out for validation."""

    @property
    def test_users(self) -> int:
        """Users held out for testing."""

    @property
    def target_share(self) -> float:
        """Share of their interactions that are targets."""

    @property
    def min_items(self) -> int:
        """Shorter histories have no targets."""

    @property
    def seed(self) -> int:
        """Seed of the generator."""


class LiangDraw(NamedTuple):
    """Held-out users and, once the vocabulary is known, their targets."""

    users: pa.Array
    """Held-out users, ascending."""

    subset_B: npt.NDArray[np.int8]
    start_P: IntArray
    """Offsets of each user's flags in ``is_target_N``; all 0 until drawn."""

    is_target_N: npt.NDArray[np.bool_]

    def of(self, users: pa.Array, items: pa.Array) -> tuple[Any, Any]:
        """Return the `Subset` of each interaction, and whether it is a target."""
        row_N = to_numpy(pc.index_in(users, value_set=self.users).fill_null(-1)).astype(np.int64)
        subset_N = np.where(row_N >= 0, self.subset_B[row_N], np.int8(Subset.TRAIN))
        is_target_N = np.zeros(len(users), dtype=bool)
        if len(self.is_target_N):
            held_N = np.flatnonzero(row_N >= 0)
            item_rank = to_numpy(pc.rank(items.take(pa.array(held_N)), tiebreaker="dense"))
            order_N = np.lexsort((item_rank, row_N[held_N]))
            rows, first = np.unique(row_N[held_N][order_N], return_index=True)
            length = np.diff(np.append(first, len(held_N)))
            within = np.arange(len(held_N)) - np.repeat(first, length)
            is_target_N[held_N[order_N]] = self.is_target_N[
                np.repeat(self.start_P[rows], length) + within
            ]
        return subset_N, is_target_N


def held_out(users: pa.Array, recipe: Recipe) -> LiangDraw:
    """Draw the held-out users.

    Args:
        users: All users, ascending.
        recipe: The settings.

    Returns:
        The draw, without targets.
    """
    permuted = np.random.RandomState(recipe.seed).permutation(len(users))
    num_train = len(users) - recipe.valid_users - recipe.test_users
    valid, test = np.split(permuted[num_train:], [recipe.valid_users])
    subset = np.full(len(users), Subset.TRAIN, dtype=np.int8)
    subset[valid], subset[test] = Subset.VALID, Subset.TEST
    held_B = np.flatnonzero(subset != Subset.TRAIN)
    nothing = np.zeros(0, dtype=bool)
    return LiangDraw(
        users.take(pa.array(held_B)), subset[held_B], np.zeros(len(held_B) + 1, np.int64), nothing
    )


def with_targets(draw: LiangDraw, length_B: IntArray, recipe: Recipe) -> LiangDraw:
    """Draw the targets of held-out users.

    Args:
        draw: The held-out users.
        length_B: Number of items of each that training users also have.
        recipe: The settings.

    Returns:
        The draw with targets.
    """
    start_P = np.concatenate([[0], length_B.cumsum()]).astype(np.int64)
    is_target_N = np.zeros(start_P[-1], dtype=bool)
    for subset in (Subset.VALID, Subset.TEST):
        generator = np.random.RandomState(recipe.seed)
        for row in np.flatnonzero(draw.subset_B == subset):
            length = int(length_B[row])
            if length >= recipe.min_items:
                wanted = int(recipe.target_share * length)
                chosen = generator.choice(length, size=wanted, replace=False)
                is_target_N[start_P[row] + chosen] = True
    return draw._replace(start_P=start_P, is_target_N=is_target_N)


def require_published(found: Mapping[str, int]) -> None:
    """Compare the counts on MovieLens-20M with the published ones.

    Args:
        found: Actual counts, with the keys of `PUBLISHED`.

    Raises:
        DataError: A count differs.
    """
    wrong = {name: found[name] for name, number in PUBLISHED.items() if found[name] != number}
    if wrong:
        raise DataError(
            f"the recipe of Liang et al. on MovieLens-20M gives {wrong}, but its authors report "
            f"{ {name: PUBLISHED[name] for name in wrong} }; check the file, data.cleaning "
            "(keep_above = 3.5, min_user_items = 5) and data.split"
        )
