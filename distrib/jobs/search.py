"""Ray job: search hyperparameters."""

from distrib.cli import Job
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


JOB = Job(
    check=lambda file: check(file.search, file.training_with),
    run=study,
)
