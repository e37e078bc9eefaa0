"""Items sampled in place of the whole catalog, the same for all users of an update."""

import numpy as np
import torch

from distrib.batch import Batch
from distrib.objectives.base import Candidates
from distrib.rng import CounterRng
from distrib.vocabulary import Catalog

_NEGATIVES = 101  # random stream


class ItemSampler:
    """Draws items with replacement, in proportion to a power of 1 + their interactions.

    Each item is weighted by its number of draws over the expected number, so that the weighted sum
    over drawn items is an unbiased estimate of the sum over all, for any power.
    """

    def __init__(self, num_sampled: int, power: float, catalog: Catalog) -> None:
        self.num_sampled = num_sampled
        count_I = np.asarray(catalog.train_count_IL, dtype=np.float64).sum(1)
        mass_I = (1.0 + count_I) ** power
        share_I = mass_I / mass_I.sum()
        self._below_I = torch.from_numpy(share_I.cumsum())
        self._log_share_I = torch.from_numpy(np.log(share_I)).to(torch.float32)

    def draw(self, target: Batch, rng: CounterRng, step: int) -> Candidates:
        """Draw items for an update, and add the observed ones; the latter may have weight 0.

        Args:
            target: What to decode.
            rng: The epoch's randomness; ranks of one step draw the same.
            step: Updates made so far.

        Returns:
            Items and their weights.
        """
        drawn_S = self.drawn(rng, step, target.item_N.device)
        return self.weighted(drawn_S, torch.unique(torch.cat([drawn_S, target.item_N])))

    def weighted(self, drawn_S: torch.Tensor, item_J: torch.Tensor) -> Candidates:
        """Return items with their weights, as if those drawn had been drawn here.

        Args:
            drawn_S: Items, some several times.
            item_J: Ascending; those drawn are among them, and the others have weight 0.

        Returns:
            Items and their weights.
        """
        device = drawn_S.device
        times_J = torch.zeros(len(item_J), device=device)
        times_J.index_add_(
            0, torch.searchsorted(item_J, drawn_S), torch.ones_like(drawn_S, dtype=torch.float32)
        )
        log_share_J = self._log_share_I.to(device)[item_J]
        return Candidates(item_J, torch.log(times_J / max(len(drawn_S), 1)) - log_share_J)

    def items(
        self, rng: CounterRng, step: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw items for an update, whatever is observed.

        Args:
            rng: The epoch's randomness; ranks of one step draw the same.
            step: Updates made so far.
            device: Where to return them.

        Returns:
            Items in ascending order, and how often each was drawn.
        """
        item_J, times_J = torch.unique(self.drawn(rng, step, device), return_counts=True)
        return item_J, times_J.to(torch.float32)

    def drawn(self, rng: CounterRng, step: int, device: torch.device) -> torch.Tensor:
        """Draw items for an update, int64 ``[S]``, some several times; see `items`."""
        num_drawn = self.num_sampled
        # 24 bits are too few to reach the rare ones of a million items; two draws give 48 bits.
        counter_S = torch.arange(2 * num_drawn, device=device) + 2 * num_drawn * step
        high_S, low_S = rng.uniform(_NEGATIVES, counter_S).to(torch.float64).chunk(2)
        below_I = self._below_I.to(device)
        drawn_S = torch.searchsorted(below_I, high_S + low_S / (1 << 24), right=True)
        return drawn_S.clamp(max=len(below_I) - 1)
