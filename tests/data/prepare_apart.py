"""Prepares a log on a Ray of its own: ``python tests/data/prepare_apart.py CONFIG CPUS KILLS``.

Kills as many task workers while they work, each of another kind of task where it can, and prints
what was killed. Not a test by itself; see test_prepare.
"""

import json
import os
import sys
import threading
import time

import psutil
import ray

from distrib.data.config import DataConfig
from distrib.data.prepare.job import prepare

TASKS = ("ray::MapBatches", "ray::HashShuffle", "ray::_write_block", "ray::_item_counts")


def kill_workers(wanted: int, killed: list[str], stop: threading.Event) -> None:
    while len(killed) < wanted and not stop.is_set():
        for process in psutil.Process(os.getpid()).children(recursive=True):
            try:
                title = (process.cmdline() or [""])[0]
            except psutil.Error:
                continue
            if title.startswith(TASKS) and title not in killed and len(killed) < wanted:
                process.kill()
                killed.append(title)
                time.sleep(0.5)
        time.sleep(0.002)


def main() -> None:
    config = DataConfig.model_validate_json(sys.argv[1])
    os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
    ray.init("local", num_cpus=int(sys.argv[2]), include_dashboard=False, logging_level="ERROR")
    killed: list[str] = []
    stop = threading.Event()
    killer = threading.Thread(target=kill_workers, args=(int(sys.argv[3]), killed, stop))
    killer.start()
    prepare(config)
    stop.set()
    killer.join()
    print(json.dumps(killed))


if __name__ == "__main__":
    main()
