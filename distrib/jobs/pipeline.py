"""Ray job: the whole pipeline."""

from distrib.cli import Job
from distrib.config import JsonObject
from distrib.data.prepare.job import preflight, prepare, read_plan
from distrib.errors import run_checks
from distrib.evaluation.job import check_split, evaluate
from distrib.report.run_page import draw_run
from distrib.report.summary import draw_curves, show_evaluation, show_recommendations
from distrib.run_file import RunFile
from distrib.scoring.bulk.job import check_histories, score
from distrib.training.preflight.checks import check_run
from distrib.training.workers.launch import launch


def check(file: RunFile) -> None:
    """Check the settings and the log; report all faults at once. Then try the folder for data."""
    settings = (lambda: check_run(file.training()), lambda: check_split(file.data.split))
    run_checks(*settings, lambda: check_histories(file.score), lambda: read_plan(file.data))
    preflight(file.data)


def pipeline(file: RunFile) -> JsonObject:
    """Prepare, train, evaluate, score."""
    run, prepared = file.run, file.data.prepared
    prepare(file.data)
    trained = launch(file.training())
    evaluated, scored = evaluate(run, prepared, file.evaluate), score(run, prepared, file.score)
    curves = draw_curves(run, trained.best_epoch, file.train.compare_with)
    drawn = draw_run(run, prepared, evaluated, file.model.spec.output)
    show_evaluation(evaluated, file.model.spec.output, prepared)
    show_recommendations(scored.output)
    found = {"trained": trained, "evaluated": evaluated, "scored": scored}
    results = {name: part.to_json() for name, part in found.items()}
    return {**results, "plots": [curves, *drawn.values()]}


JOB = Job(check=check, run=pipeline)
