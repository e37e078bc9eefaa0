"""Ray job: export embeddings. ``python jobs/export.py --config configs/demo.toml``."""

import sys

from distrib.cli import job
from distrib.score.export import export, preflight


def main() -> int:
    """Check, export, print the outputs."""
    return job(
        "Write the embeddings of all items, with an index, and of all users.",
        check=lambda file: preflight(file.run, file.data.prepared, file.export, file.score),
        run=lambda file: export(file.run, file.data.prepared, file.export, file.score),
    )


if __name__ == "__main__":
    sys.exit(main())
