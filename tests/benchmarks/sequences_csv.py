"""Sequences, one user and the items in their order on each line, as CSV with times.

``python -m tests.benchmarks.sequences_csv $DISTRIB_DATA/beauty-5core/Beauty.txt runs/beauty``
writes ``log.csv``; times are places in the sequence. With ``--validation-users`` it writes the
split of gSASRec's authors, for ``data.split = "given"``: the last item of each user to
``test.csv``, the last but one of the listed users to ``valid.csv``.
"""

import argparse
import contextlib
import csv
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path, help="a folder")
    parser.add_argument("--validation-users", type=Path, help="a file with their ids")
    given = parser.parse_args()
    validated, names = set[str](), ["log"]
    if given.validation_users:
        validated, names = set(given.validation_users.read_text().split()), ["log", "valid", "test"]
    given.target.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        files = {
            name: stack.enter_context((given.target / f"{name}.csv").open("w", newline=""))
            for name in names
        }
        writers = {name: csv.writer(file) for name, file in files.items()}
        for writer in writers.values():
            writer.writerow(["user", "item", "time"])
        for line in given.source.read_text().splitlines():
            user, *items = line.split()
            for place, item in enumerate(items):
                left = len(items) - 1 - place
                is_test = left == 0 and "test" in names
                is_valid = left == 1 and user in validated
                name = "test" if is_test else "valid" if is_valid else "log"
                writers[name].writerow([user, item, place])


if __name__ == "__main__":
    main()
