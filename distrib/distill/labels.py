"""The soft labels of a cluster of users, and what they are like."""

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array, eye_array

from distrib.distill.config import SoftenConfig
from distrib.distill.embed import Embedded
from distrib.distill.propagation import (
    affinity,
    cosine_affinity,
    heaviest,
    normalized,
    propagated,
)


class LabelSums(NamedTuple):
    """Sums over users, from which means follow."""

    users: float = 0.0
    mass_on_target: float = 0.0
    entropy_of_others: float = 0.0
    """Nats."""

    items: float = 0.0

    @classmethod
    def of(cls, label_BI: csr_array, target_BI: csr_array) -> "LabelSums":
        """Add up some users."""
        is_target_BI = target_BI.sign()
        own_BI = label_BI.multiply(is_target_BI)
        rest_BI = csr_array(label_BI - own_BI)
        rest_BI.data[rest_BI.data < 0] = 0.0
        rest_BI = normalized(rest_BI)
        positive = rest_BI.data[rest_BI.data > 0]
        entropy = float(-(positive * np.log(positive)).sum())
        return cls(label_BI.shape[0], float(own_BI.sum()), entropy, int(label_BI.nnz))

    def means(self) -> dict[str, float]:
        """Return the means over users."""
        users = max(self.users, 1.0)
        return {name: value / users for name, value in self._asdict().items() if name != "users"}

    def __add__(self, other: "LabelSums") -> "LabelSums":  # type: ignore[override]
        return LabelSums(*(one + more for one, more in zip(self, other, strict=True)))


class Labels(NamedTuple):
    """Soft labels of some users."""

    weight_BI: csr_array
    """Rows of sum 1."""

    rating_N: np.ndarray | None = None
    """Of each entry: mean rating by the users that its weight comes from; None without ratings."""


def faults_of(total: LabelSums, config: SoftenConfig, item_count: int) -> list[str]:
    """Return why propagated labels are worthless, if they are.

    Args:
        total: Of all users.
        config: The bounds.
        item_count: Size of the catalog.

    Returns:
        Sentences with figures and remedies.
    """
    found, faults = total.means(), []
    mass, most = found["mass_on_target"], min(config.max_items, item_count)
    evenness = found["entropy_of_others"] / np.log(max(most, 2))
    if mass < config.min_mass_on_target:
        faults.append(
            f"mean mass on the target is {mass:.3f}, below soften.min_mass_on_target = "
            f"{config.min_mass_on_target:g}; train the run for longer"
        )
    if mass > config.max_mass_on_target:
        faults.append(
            f"mean mass on the target is {mass:.3f}, above soften.max_mass_on_target = "
            f"{config.max_mass_on_target:g}; make fewer clusters, or raise soften.temperature"
        )
    if evenness > config.max_evenness:
        faults.append(
            f"the other items are nearly even: {evenness:.2f} of the largest entropy, above "
            f"soften.max_evenness = {config.max_evenness:g}; train the run for longer, or lower "
            "soften.temperature"
        )
    return faults


def labels_of(cluster: Embedded, config: SoftenConfig) -> Labels:
    """Make the soft labels of the users of one cluster.

    Args:
        cluster: All its users.
        config: Settings.

    Returns:
        The labels, users in the same order.

    Source: DeSoRec's code; with histories as targets our extension: what is propagated is then the
    weight of each user, cut to the heaviest, before histories are mixed by it.
    """
    vectors = cluster.points.vector_BZ
    if config.method == "neighbors":
        near_BB = cosine_affinity(vectors, config.num_neighbors)
        found_BI = csr_array(near_BB @ cluster.history_BI)
        return Labels(heaviest(found_BI, config.max_items, csr_array(found_BI.shape)))
    near_BB = affinity(vectors, config.num_neighbors, config.temperature, config.scale)
    settings = config.spread, config.needed_rounds, config.smallest
    target_BI, is_rated = cluster.target_BI, cluster.rated_BI.nnz > 0
    if target_BI.nnz == target_BI.shape[0] and not is_rated:  # one each: equal ones add up early
        found_BI = propagated(near_BB, target_BI, *settings)
        return Labels(heaviest(found_BI, config.max_items, target_BI))
    itself_BB = csr_array(eye_array(len(vectors)))
    weight_BB = propagated(near_BB, itself_BB, *settings)
    weight_BB = heaviest(weight_BB, 2 * config.num_neighbors, itself_BB)
    found_BI = csr_array(weight_BB @ target_BI)
    label_BI = heaviest(found_BI, config.max_items, target_BI)
    if not is_rated:
        return Labels(label_BI)
    rated_BI = csr_array(weight_BB @ cluster.rated_BI)
    row_N = np.repeat(np.arange(len(vectors)), np.diff(label_BI.indptr))
    entries = row_N, label_BI.indices
    return Labels(label_BI, rated_BI[entries] / found_BI[entries])
