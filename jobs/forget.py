"""Ray job: remove people. ``python jobs/forget.py --config my.toml --set forget.users='"f"'``."""

import sys

from distrib.cli import job
from distrib.forget import forget, preflight


def main() -> int:
    """Check the list of people, remove them, print the receipt."""
    return job(
        "Remove people from prepared data, lists, vectors, soft labels and evaluations.",
        check=preflight,
        run=forget,
    )


if __name__ == "__main__":
    sys.exit(main())
