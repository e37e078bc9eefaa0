"""Ray job: search hyperparameters. ``python jobs/search.py --config my.toml``."""

import sys

from distrib.cli import job
from distrib.config import JsonObject
from distrib.report.summary import draw_search, show_search
from distrib.run_file import RunFile
from distrib.tuning.job import check, search


def study(file: RunFile) -> JsonObject:
    """Run the trials, print the table, draw the plot."""
    result = search(file.search, file.run, file.training_with)
    show_search(result)
    trials = [trial.model_dump(exclude={"curve"}) for trial in result.trials]
    picture = draw_search(file.run, result)
    return {**result.to_json(), "trials": trials, "picture": picture}


def main() -> int:
    """Check the search space, search, print the trials."""
    return job(
        "Tune fields of a run file on validation metrics.",
        check=lambda file: check(file.search, file.training_with),
        run=study,
    )


if __name__ == "__main__":
    sys.exit(main())
