"""How often the host waits for a device, by model: one table; no GPU is needed.

``python -m tests.benchmarks.waits``. Counted by a stand-in device, which sees every operation, in
the second update and in the second scored batch, with all items in one block.
"""

from distrib.events import table
from tests.conftest import Small
from tests.device.cases import MODELS, TRAINED
from tests.device.waits import waits_of_a_scored_batch, waits_of_an_update


def main() -> None:
    small, most = Small(), dict[str, list[int]]()
    for config in MODELS:
        scored = waits_of_a_scored_batch(config, small).total()
        update = waits_of_an_update(config, small).total() if config in TRAINED else 0
        known = most.setdefault(config.name, [0, 0])
        most[config.name] = [max(known[0], update), max(known[1], scored)]
    rows = [[name, *counts] for name, counts in sorted(most.items())]
    table("Waits for the device", ["model", "an update", "a scored batch"], rows)


if __name__ == "__main__":
    main()
