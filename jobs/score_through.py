"""Bulk scoring through the HTTP API; needs no run folder and no Ray.

``python jobs/score_through.py --url http://localhost:8000 --histories in/ --output out/``
"""

import sys

from distrib.cli import through_endpoint


def main() -> int:
    """Request lists for all users, print the counts."""
    return through_endpoint("Score users through a server and write the lists as Parquet.")


if __name__ == "__main__":
    sys.exit(main())
