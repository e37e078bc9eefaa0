"""Score a folder of Parquet through a server; needs no run folder and no Ray.

``python jobs/score_through.py --url http://localhost:8000 --histories in/ --output out/``
"""

import sys

from distrib.cli import through_endpoint


def main() -> int:
    """Ask the server for everyone's lists, print the counts."""
    return through_endpoint("Write the lists that a server makes as Parquet.")


if __name__ == "__main__":
    sys.exit(main())
