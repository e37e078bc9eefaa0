"""The most frequent items of a file with one sequence per line, as a file of the same kind.

``python -m tests.benchmarks.frequent_items $DISTRIB_DATA/diginetica/Diginetica.csv
runs/diginetica_4000.csv`` keeps 4,000 items, and the lines that still have 5 of them: a small data
set on which many settings can be compared in minutes.
"""

import argparse
from collections import Counter
from pathlib import Path

PADDING = "0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--items", type=int, default=4000)
    parser.add_argument("--shortest", type=int, default=5, help="items left in a line")
    given = parser.parse_args()
    lines = [
        [item for item in line.split(",") if item != PADDING]
        for line in given.source.read_text().splitlines()
    ]
    counts = Counter(item for line in lines for item in line)
    kept = {item for item, _ in counts.most_common(given.items)}
    left = ([item for item in line if item in kept] for line in lines)
    rows = [line for line in left if len(line) >= given.shortest]
    given.target.parent.mkdir(parents=True, exist_ok=True)
    given.target.write_text("".join(",".join(row) + "\n" for row in rows))
    print(f"{len(rows)} lines, {sum(map(len, rows))} items of {len(kept)}")


if __name__ == "__main__":
    main()
