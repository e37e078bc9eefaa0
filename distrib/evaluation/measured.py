"""What is measured of a model on some users, mergeable over batches, ranks and shards."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from distrib.batch import Batch
from distrib.evaluation.config import CALIBRATION
from distrib.evaluation.ratings import RELIABILITY, calibration_error
from distrib.labeled_metrics import AUC, area_under_curve
from distrib.metrics import FloatArray, Summary, Sums, effective_rank, gini, sums_of

SUM = " sum"
"""Ends the names of sums over the pairs of a user."""

SHOWN = "shown@"
"""Begins the names of tables of how often each item is in a list."""

MOMENTS = "moments"
"""Table ``[Z + 1, Z + 1]``: the outer products of user embeddings, each followed by a 1."""

RANK = "effective_rank"

PAIRS = "pairs"
"""Name of the number of a user's pairs."""


class Measured(NamedTuple):
    """Results on some users."""

    sums: Sums
    score_N: npt.NDArray[np.float32]
    """Scores of labeled pairs, if the log has likes and dislikes."""

    is_like_N: npt.NDArray[np.bool_]
    by_user: Mapping[str, FloatArray]
    """Metrics of each user, in the order of the users; NaN where a metric is not defined. Also sums
    of what is a mean over pairs."""

    tables: Mapping[str, FloatArray]
    """Arrays of numbers that add up over users."""

    @classmethod
    def nothing(cls) -> "Measured":
        """Return results on no users."""
        return joined([])

    @classmethod
    def of(
        cls,
        by_user: Mapping[str, Tensor],
        by_pair: Mapping[str, Tensor],
        score_N: npt.NDArray[np.float32],
        is_like_N: npt.NDArray[np.bool_],
        pairs: Batch,
        tables: Mapping[str, FloatArray],
    ) -> "Measured":
        """Collect values of users, and values of pairs, whose means are over pairs.

        Of pairs, users have the sums, from which tests that pair users can be made.
        """
        sums = sums_of({**by_user, **by_pair})
        vectors = {name: value.double().numpy() for name, value in by_user.items()}
        for name, value_N in by_pair.items():
            if len(value_N) == len(pairs.row_N):
                zeros_B = value_N.new_zeros(pairs.num_users)
                summed_B = zeros_B.index_add(0, pairs.row_N, value_N)
                vectors[f"{name}{SUM}"] = summed_B.double().numpy()
        vectors[PAIRS] = pairs.length_B.double().numpy()
        return cls(sums, score_N, is_like_N, vectors, tables)

    def summaries(self) -> dict[str, Summary]:
        """Return means with errors by metric."""
        area = area_under_curve(self.score_N, self.is_like_N)
        found = self.sums.summaries() | ({} if area is None else {AUC: area})
        for name, count_I in self.tables.items():
            cutoff = name.removeprefix(SHOWN)
            if cutoff != name:
                coverage = float((count_I > 0).mean())
                values = {f"coverage@{cutoff}": coverage, f"gini@{cutoff}": gini(count_I)}
                found |= {key: _exactly(value, len(count_I)) for key, value in values.items()}
        if RELIABILITY in self.tables:
            table = self.tables[RELIABILITY]
            found[CALIBRATION] = _exactly(calibration_error(table), int(table[:, 0].sum()))
        if MOMENTS in self.tables:
            moments_ZZ = self.tables[MOMENTS]
            found[RANK] = _exactly(effective_rank(moments_ZZ), int(moments_ZZ[-1, -1]))
        return found

    def means(self) -> dict[str, float]:
        """Return means by metric."""
        return {name: summary.mean for name, summary in self.summaries().items()}


def _exactly(value: float, number: int) -> Summary:
    return Summary(mean=value, standard_error=0.0, num_observations=number)


def joined(parts: Sequence[Measured]) -> Measured:
    """Join results on disjoint users, in order."""
    sums = Sums({})
    for part in parts:
        sums = sums.merged(part.sums)
    names = list(dict.fromkeys(name for part in parts for name in part.by_user))
    tables: dict[str, FloatArray] = {}
    for part in parts:
        tables |= {name: tables.get(name, 0.0) + table for name, table in part.tables.items()}
    return Measured(
        sums,
        np.concatenate([np.zeros(0, np.float32), *(part.score_N for part in parts)]),
        np.concatenate([np.zeros(0, np.bool_), *(part.is_like_N for part in parts)]),
        {name: np.concatenate([part.by_user[name] for part in parts if name in part.by_user])
         for name in names},
        tables,
    )  # fmt: skip
