"""The soft labels of a cluster of users, and what they are like."""

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array, eye_array

from distrib.distill.config import SoftenConfig
from distrib.distill.embed import Embedded
from distrib.distill.propagation import affinity, cosine_affinity, heaviest, normalized, propagated


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


def labels_of(cluster: Embedded, config: SoftenConfig) -> csr_array:
    """Make the soft labels of the users of one cluster.

    Args:
        cluster: All its users.
        config: Settings.

    Returns:
        ``[B, I]``, rows of sum 1.

    Source: DeSoRec's code; with histories as targets our extension: what is propagated is then the
    weight of each user, cut to the heaviest, before histories are mixed by it.
    """
    vectors = cluster.points.vector_BZ
    if config.method == "neighbors":
        near_BB = cosine_affinity(vectors, config.num_neighbors)
        return heaviest(csr_array(near_BB @ cluster.history_BI), config.max_items, _no(cluster))
    near_BB = affinity(vectors, config.num_neighbors, config.temperature, config.scale)
    settings = config.spread, config.needed_rounds, config.smallest
    target_BI = cluster.target_BI
    if target_BI.nnz == target_BI.shape[0]:  # one each: what is equal adds up on the way
        found_BI = propagated(near_BB, target_BI, *settings)
    else:
        itself_BB = csr_array(eye_array(len(vectors)))
        weight_BB = propagated(near_BB, itself_BB, *settings)
        weight_BB = heaviest(weight_BB, 2 * config.num_neighbors, itself_BB)
        found_BI = csr_array(weight_BB @ target_BI)
    return heaviest(found_BI, config.max_items, target_BI)


def _no(cluster: Embedded) -> csr_array:
    return csr_array(cluster.target_BI.shape)
