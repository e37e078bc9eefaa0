"""Ray job: serve models over HTTP. ``python jobs/serve.py --config configs/demo.toml``."""

import sys

from distrib.cli import job
from distrib.serve.deployment import preflight, run_until_stopped


def main() -> int:
    """Check, deploy, and serve until stopped."""
    return job(
        "Serve recommendations over HTTP.",
        check=lambda file: preflight(file.run, file.data.prepared, file.serve),
        run=lambda file: run_until_stopped(file.run, file.data.prepared, file.serve),
    )


if __name__ == "__main__":
    sys.exit(main())
