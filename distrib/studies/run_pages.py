"""Pages of the runs of a study."""

from collections.abc import Mapping

from distrib.config import read_record
from distrib.evaluation.job import RESULT, Evaluation
from distrib.models.outputs import OutputKind
from distrib.report.run_page import PAGE, draw_run
from distrib.studies.plan import key_of
from distrib.studies.results import StudyResult, data_folder, measured_folder, run_folder


def draw_runs(result: StudyResult, outputs: Mapping[str, OutputKind]) -> None:
    """Write a page for each run that has none, into the folder of what was measured of it.

    Args:
        result: The study.
        outputs: What models predict, by the key of their options.
    """
    for row in result.rows:
        if row.run is None:
            continue
        place = measured_folder(result.runs, row)
        if place.exists(PAGE):
            continue
        draw_run(
            str(run_folder(result.runs, row.address)),
            str(data_folder(result.runs, row.run.prepared)),
            read_record(Evaluation, place.read_json(RESULT), place / RESULT),
            outputs[key_of(row.options)],
            place,
        )
