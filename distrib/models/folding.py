"""Rows of users: looked up, or fitted to the histories of those that training did not see."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat
from torch import Tensor

from distrib.batch import Batch
from distrib.config import Config
from distrib.feedback import Feedback, sign_of
from distrib.models.base import UserState
from distrib.rng import CounterRng

_SAMPLE = 4096


class FoldsIn(Config):
    """Fields of a model that folds new users in by steps of gradient descent."""

    new_user_steps: NonNegativeInt = 30
    """Steps of Adam on the rows of a user that training did not see; all else is fixed."""

    new_user_rate: PositiveFloat = 0.05
    """Size of these steps."""

    new_user_penalty: Annotated[float, Field(ge=0.0)] = 0.1
    """Weight of the squared distance from the mean user."""


def typical_row(table_UZ: Tensor) -> Tensor:
    """Return the mean row of some users, ``[Z]``; users are numbered by a hash of their ids."""
    return table_UZ[:_SAMPLE].float().mean(0)


def signed_entries(batch: Batch, feedback: Feedback | None) -> tuple[Batch, Tensor]:
    """Return the likes and dislikes of histories, and which are which (1 and -1, float32)."""
    sign_N = sign_of(feedback, batch.value_N)
    return batch.keep(sign_N != 0), sign_N[sign_N != 0].float()


class FoldedBySteps:
    """Mixin of models whose state is the rows of the users, and which fold new users in by steps.

    The model's configuration `FoldsIn`.
    """

    config: FoldsIn
    feedback: Feedback | None

    @abstractmethod
    def user_tables(self) -> tuple[Tensor, ...]:
        """Return the tables with a row for each user."""

    @abstractmethod
    def score_pairs(self, users: UserState, pairs: Batch) -> Tensor:
        """See `Model`."""

    def encode(self, batch: Batch, rng: CounterRng | None = None) -> UserState:
        """Look up known users; fold in the others, without gradient."""
        del rng
        return tuple(rows_or_folded(batch, self.user_tables(), self._folded)[0])

    def _folded(self, batch: Batch) -> list[Tensor]:
        known, sign_N = signed_entries(batch, self.feedback)
        start = [typical_row(table) for table in self.user_tables()]
        return fitted_rows(self.score_pairs, start, known, sign_N, self.config)


def fitted_rows(
    score: Callable[[tuple[Tensor, ...], Batch], Tensor],
    start: Sequence[Tensor],
    batch: Batch,
    sign_N: Tensor,
    settings: FoldsIn,
) -> list[Tensor]:
    """Fit the rows of users to their likes and dislikes by some steps of Adam; all else is fixed.

    Each user's rows depend on the own history only.

    Args:
        score: Returns the log-odds of pairs, ``[N]``, given the rows of their users.
        start: Where the rows of every user begin, one tensor ``[Z]`` for each table.
        batch: Likes and dislikes.
        sign_N: Which are which.
        settings: Number and size of the steps, and the penalty.

    Returns:
        Rows ``[B, Z]``, one tensor for each table.
    """
    with torch.inference_mode(mode=False), torch.enable_grad():
        batch, sign_N = Batch(*(part.clone() for part in batch)), sign_N.clone()
        begin = [row_Z.detach().clone()[None] for row_Z in start]
        rows = [row.repeat(batch.num_users, 1).requires_grad_() for row in begin]
        optimizer = torch.optim.Adam(rows, lr=settings.new_user_rate)
        for _ in range(settings.new_user_steps if len(sign_N) else 0):
            logit_N = score(tuple(rows), batch).float()
            loss = F.softplus(-sign_N * logit_N).sum()
            for row, first in zip(rows, begin, strict=True):
                loss = loss + settings.new_user_penalty * (row - first).square().sum()
            found = torch.autograd.grad(loss, rows)
            for row, gradient in zip(rows, found, strict=True):
                row.grad = gradient
            optimizer.step()
    return [row.detach() for row in rows]


def fold_in(
    table_IZ: Tensor, batch: Batch, target_N: Tensor, penalty: float
) -> tuple[Tensor, Tensor]:
    """Fit an embedding and a bias to each user's history by ridge regression.

    Minimizes the sum over the history of (embedding . row + bias - target)^2 plus ``penalty`` times
    the squared norms of embedding and bias, in float64.

    Args:
        table_IZ: One row per item.
        batch: Histories.
        target_N: Target value of each interaction.
        penalty: Above 0.

    Returns:
        Embeddings ``[B, Z]`` and biases ``[B]``, float32; zero for an empty history.
    """
    solution = table_IZ.new_zeros(batch.num_users, table_IZ.shape[1] + 1, dtype=torch.float32)
    bounds = batch.pointer_P.tolist()
    for row, (start, stop) in enumerate(pairwise(bounds)):
        part = table_IZ[batch.item_N[start:stop]].double()
        part = torch.cat([part, torch.ones_like(part[:, :1])], dim=1)
        wanted = target_N[start:stop].double()
        if len(part) < part.shape[1]:  # the smaller of two equivalent systems
            gram = part @ part.T + penalty * torch.eye(len(part), device=part.device).double()
            solution[row] = (part.T @ torch.linalg.solve(gram, wanted)).float()
        else:
            gram = part.T @ part + penalty * torch.eye(part.shape[1], device=part.device).double()
            solution[row] = torch.linalg.solve(gram, part.T @ wanted).float()
    return solution[:, :-1], solution[:, -1]


class FactorState(NamedTuple):
    """User parameters, looked up or folded in."""

    latent_BZ: Tensor
    bias_B: Tensor
    is_new_B: Tensor
    """1 for users that were folded in, else 0; of the dtype of ``bias_B``."""


def known_or_new(
    batch: Batch,
    tables: tuple[Tensor, Tensor],
    fold: Callable[[Batch], tuple[Tensor, Tensor]],
) -> FactorState:
    """Look up users by number; fold in those without one, or with one beyond the tables.

    Args:
        batch: Histories.
        tables: An embedding and a bias for each user number.
        fold: Fits embeddings and biases to histories; called only if a user is not in the tables.

    Returns:
        The user parameters.
    """
    (latent_BZ, bias_B), is_known_B = rows_or_folded(batch, tables, fold)
    return FactorState(latent_BZ, bias_B, (~is_known_B).to(bias_B.dtype))


def rows_or_folded(
    batch: Batch,
    tables: Sequence[Tensor],
    fold: Callable[[Batch], Sequence[Tensor]],
) -> tuple[list[Tensor], Tensor]:
    """Look up rows of users by number; fold in those without one, or with one beyond the tables.

    Args:
        batch: Histories.
        tables: With a row for each user number.
        fold: Fits the same rows to histories; called only if a user is not in the tables.

    Returns:
        The rows, one tensor for each table, and which users are known.
    """
    num_known = len(tables[0])
    is_known_B = (batch.user_B >= 0) & (batch.user_B < num_known)
    if is_known_B.all() and num_known:
        return [_looked_up(table, batch.user_B) for table in tables], is_known_B
    folded = list(fold(batch.keep(~is_known_B[batch.row_N])))
    if is_known_B.any():
        number_B = batch.user_B.clamp(0, num_known - 1)
        for place, table in enumerate(tables):
            shape = (-1, *[1] * (table.dim() - 1))
            folded[place] = torch.where(is_known_B.view(shape), table[number_B], folded[place])
    return folded, is_known_B


def _looked_up(table: Tensor, row_B: Tensor) -> Tensor:
    """Return rows; the gradient of an embedding is faster than that of an index."""
    return F.embedding(row_B, table) if table.dim() > 1 else table[row_B]
