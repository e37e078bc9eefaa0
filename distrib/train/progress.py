"""A bar on the terminal of the person who started the job, drawn from a worker."""

from ray.experimental import tqdm_ray


class Bar:
    """Steps of the whole run; does nothing where nobody watches."""

    def __init__(self, total: int, *, shown: bool) -> None:
        self._bar = tqdm_ray.tqdm(desc="training", total=total, unit="step") if shown else None
        self._step = 0

    def reach(self, step: int) -> None:
        """Show that ``step`` updates are made, those before a resume included."""
        if self._bar is not None:
            self._bar.update(step - self._step)
            self._step = step
