"""A bar on the terminal of the person who started the job, drawn from a worker."""

from ray.experimental import tqdm_ray


class Bar:
    """Steps of the epoch at hand; does nothing where nobody watches."""

    def __init__(self, num_steps: int, *, shown: bool) -> None:
        self.num_steps = num_steps
        self.shown = shown
        self._bar: tqdm_ray.tqdm | None = None
        self._epoch = -1

    def advance(self, epoch: int) -> None:
        """Count one step of an epoch, numbered from 0."""
        if not self.shown:
            return
        if self._bar is None or epoch != self._epoch:
            if self._bar is not None:
                self._bar.close()
            self._bar = tqdm_ray.tqdm(desc=f"epoch {epoch + 1}", total=self.num_steps)
            self._epoch = epoch
        self._bar.update(1)
