"""MovieLens-1M as the authors of gSASRec split it, as files that ``data.split = "given"`` takes.

``python -m tests.benchmarks.gsasrec_split $DISTRIB_DATA/ml1m-gsasrec runs/gsasrec``. Reads
``sequences.txt`` (a user and the items in their order on each line) and ``validation_users.txt``;
the last item of each user is for testing, the last but one of those users for validation. Times are
places in the sequence.
"""

import argparse
import csv
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    given = parser.parse_args()
    validated = set((given.source / "validation_users.txt").read_text().split())
    given.target.mkdir(parents=True, exist_ok=True)
    names = ("log", "valid", "test")
    files = {name: (given.target / f"{name}.csv").open("w", newline="") for name in names}
    writers = {name: csv.writer(file) for name, file in files.items()}
    for writer in writers.values():
        writer.writerow(["user", "item", "time"])
    for line in (given.source / "sequences.txt").read_text().splitlines():
        user, *items = line.split()
        for place, item in enumerate(items):
            left = len(items) - 1 - place
            held_out = {0: "test", 1: "valid"} if user in validated else {0: "test"}
            writers[held_out.get(left, "log")].writerow([user, item, place])
    for file in files.values():
        file.close()


if __name__ == "__main__":
    main()
