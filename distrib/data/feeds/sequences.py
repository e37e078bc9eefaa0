"""A feed of histories as sequences, each state with the item that comes next."""

from collections.abc import Iterator

from distrib.data.feeds.base import Feed, RankBatch
from distrib.data.history_arrays import HistoryArrays, IntArray
from distrib.events import emit
from distrib.sequences import with_targets


def split_off_targets(whole: RankBatch, max_length: int, *, every: bool) -> RankBatch:
    """Turn a batch of histories into what is read and what comes next; see `with_targets`."""
    return RankBatch(*with_targets(whole.target, max_length, every=every), whole.size)


class SequenceFeed:
    """See `Feed`; cuts the batches of a feed of histories, and splits off what is to come.

    Args:
        feed: Whole histories.
        max_length: Interactions that a state reads at most.
        every: See `with_targets`.
        rank: Named in the event, since each rank counts its own users.
    """

    def __init__(self, feed: Feed, max_length: int, *, every: bool, rank: int = 0) -> None:
        self.feed, self.max_length, self.every, self.rank = feed, max_length, every, rank
        self.num_users = feed.num_users

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[RankBatch]:
        """Yield input and target of each batch; see `Feed`.

        The first epoch ends with an event where this rank has cut histories.
        """
        cut_users = cut = 0
        for whole in self.feed.batches(epoch, first_step):
            beyond_B = (whole.target.length_B - self.max_length - 1).clamp(min=0)
            if not epoch:
                cut_users += int((beyond_B > 0).sum())
                cut += int(beyond_B.sum())
            yield split_off_targets(whole, self.max_length, every=self.every)
        if cut_users:
            emit(
                "histories_cut",
                rank=self.rank,
                max_length=self.max_length,
                users=cut_users,
                oldest_interactions_not_read=cut,
            )

    def num_steps(self, epoch: int) -> int:
        """Return the batches of histories; see `Feed`."""
        return self.feed.num_steps(epoch)

    def training_parts(self) -> Iterator[tuple[HistoryArrays, IntArray]]:
        """Yield whole histories; see `Feed`."""
        return self.feed.training_parts()

    def valid_parts(self) -> Iterator[tuple[HistoryArrays, IntArray]]:
        """Yield whole histories; see `Feed`."""
        return self.feed.valid_parts()
