"""Ray job: train a model. ``python jobs/train.py --config configs/demo.toml``."""

import sys

from distrib.cli import job
from distrib.config import JsonObject
from distrib.report.summary import draw_curves
from distrib.run_file import RunFile
from distrib.train.preflight.checks import preflight
from distrib.train.workers.launch import launch


def train(file: RunFile) -> JsonObject:
    """Train, or resume training, and draw the curves."""
    result = launch(file.training())
    curves = draw_curves(file.run, result.best_epoch, file.train.compare_with)
    return {**result.to_json(), "curves": curves}


def main() -> int:
    """Check, train, print the best epoch."""
    return job(
        "Train a model on prepared histories.",
        check=lambda file: preflight(file.training()),
        run=train,
    )


if __name__ == "__main__":
    sys.exit(main())
