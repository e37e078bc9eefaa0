"""The page, tables, pictures and record of a study."""

import csv
import io
import os.path
from collections.abc import Iterator, Sequence

from distrib.events import table
from distrib.report.charts import png_of
from distrib.report.page import Cell, Code, Facts, Section, Table, TableRow, Text, page
from distrib.report.run_page import PAGE as RUN_PAGE
from distrib.storage import Folder
from distrib.studies.analysis import Analysis, Block, best_of
from distrib.studies.config import Figure
from distrib.studies.pictures import charts
from distrib.studies.results import (
    RESULT,
    Row,
    StudyResult,
    label_of,
    measured_folder,
    run_folder,
)
from distrib.studies.statistics import Comparison, Interval, star

PAGE = "report.html"
PICTURES = "pictures"
RESULTS, COMPARISONS, RUNS = "results.csv", "comparisons.csv", "runs.csv"
RANKS = "ranks.csv"
MARKDOWN = "study.md"

_ERRORS = (
    "Mean over seeds; in brackets the standard errors over seeds and over users{interval}. * "
    "differs significantly from {against}: paired t-test over users, level .05, corrected for all "
    "options, for each metric and data set apart (Holm)."
)
_INTERVAL = ", then the 95 % interval over users"
_CHOSEN = " The best option was chosen on the same users, so p-values against it are too small."


def publish(
    output: str, result: StudyResult, analysis: Analysis, figures: Sequence[Figure], text: str
) -> str:
    """Write all that people read of a study into its folder.

    Args:
        output: The folder.
        result: The study.
        analysis: Its analysis.
        figures: Of its file.
        text: The study file.

    Returns:
        Path of the page.
    """
    folder = Folder(output)
    drawn = list(charts(result, analysis, figures))
    for chart in drawn:
        (folder / PICTURES).write(f"{chart.name}.png", png_of(chart))
    folder.write_json(RESULT, result.to_json())
    folder.write(RESULTS, _csv(_result_rows(result, analysis)))
    folder.write(COMPARISONS, _csv(_comparison_rows(analysis)))
    folder.write(RUNS, _csv(_run_rows(result)))
    folder.write(RANKS, _csv(_rank_rows(analysis)))
    folder.write(MARKDOWN, markdown(result, analysis).encode())
    sections = [
        Section("Results", [*_tables(result, analysis), *_fault_notes(result)]),
        Section("Pictures", drawn),
        Section("Differences", [*_differences(analysis)]),
        Section("Ranks", [*_rank_tables(analysis)]),
        Section("Cost", [_costs(result)]),
        Section("Runs", [_runs(result, folder), *_trials(result)]),
        Section("Reproduce", [*_reproduction(result, text)]),
    ]
    about = " ".join(part for part in (result.question, result.source) if part)
    shown = [section for section in sections if section.parts]
    folder.write(PAGE, page(result.title, about, shown).encode())
    return str(folder / PAGE)


def show(result: StudyResult, analysis: Analysis) -> None:
    """Print the tables."""
    for block in analysis.blocks:
        rows = [
            [option, *(_text(block, metric, option) for metric in result.metrics)]
            for option in _options(result, block)
        ]
        table(f"{result.title}: {block.name}", [result.compared, *result.metrics], rows)


def markdown(result: StudyResult, analysis: Analysis) -> str:
    """Return the tables of a study for documentation.

    Args:
        result: The study.
        analysis: Its analysis.

    Returns:
        Markdown; each row names the runs that it is the mean of, and runs that failed come below.
    """
    lines = [f"## {result.title}", ""]
    about = " ".join(part for part in (result.question, result.source) if part)
    commit = result.environment.get("commit", "")
    made = f"{result.finished[:10]}" + (f", commit {commit}" if commit else "")
    lines += [about, "", f"`{result.command}` ({made}; {_machine(result)})."]
    for block in analysis.blocks:
        lines += ["", f"**{block.name}**", ""]
        lines.append(f"| {result.compared} | {' | '.join(result.metrics)} | runs |")
        lines.append("| --- |" + " ---: |" * len(result.metrics) + " --- |")
        for option in _options(result, block):
            cells = [_text(block, metric, option) for metric in result.metrics]
            found = [row for row in _rows(result, block, option) if row.run is not None]
            runs = " ".join(row.address[:8] for row in found)
            lines.append(f"| {option} | {' | '.join(cells)} | {runs} |")
    lines += ["", _note(result, analysis)]
    for row in result.rows:
        if row.run is None:
            name = f"{label_of(row.options)}, seed {row.seed}"
            lines += ["", f"Failed, and in no mean: {name} ({row.address[:8]}): {row.fault}"]
    return "\n".join(lines) + "\n"


def _machine(result: StudyResult) -> str:
    return f"{result.environment['processor']}, {result.environment['memory']}"


def _options(result: StudyResult, block: Block) -> list[str]:
    """Return the options of a block, those whose runs failed, too."""
    return [option for option in result.axes[result.compared] if _rows(result, block, option)]


def _rows(result: StudyResult, block: Block, option: str) -> list[Row]:
    wanted = {**block.options, result.compared: option}
    return [row for row in result.rows if row.options == wanted]


def _errors(one: Interval) -> str:
    errors = [one.error_of_seeds, one.error_of_users]
    shown = ["-" if error is None else f"{error:.4f}" for error in errors]
    return f"({'; '.join(shown)})"


def _text(block: Block, metric: str, option: str) -> str:
    one = block.intervals.get(metric, {}).get(option)
    if one is None:
        return "-"
    return f"{_marked(block, metric, option, one)} {_errors(one)}"


def _marked(block: Block, metric: str, option: str, one: Interval) -> str:
    return f"{one.mean:.4f}{star(block.comparisons.get(metric, ()), option)}"


def _tables(result: StudyResult, analysis: Analysis) -> Iterator[Table | Text]:
    for block in analysis.blocks:
        best = {
            metric: best_of(metric, {name: one.mean for name, one in found.items()})
            for metric, found in block.intervals.items()
            if found
        }
        rows: list[TableRow] = [
            [option, *(_cell(result, block, metric, option, best) for metric in result.metrics)]
            for option in _options(result, block)
        ]
        names = ", ".join(block.unpaired)
        note = f"Not tested, as their users differ: {names}." if names else ""
        yield Table(block.name, [result.compared, *result.metrics], rows, note)
    yield Text(_note(result, analysis, _INTERVAL))


def _against_text(analysis: Analysis) -> str:
    against = {
        one.against
        for block in analysis.blocks
        for found in block.comparisons.values()
        for one in found
    }
    return against.pop() if len(against) == 1 else "the best option"


def _note(result: StudyResult, analysis: Analysis, interval: str = "") -> str:
    found = _ERRORS.format(against=_against_text(analysis), interval=interval)
    return found if result.baseline else found + _CHOSEN


def _cell(
    result: StudyResult, block: Block, metric: str, option: str, best: dict[str, str | None]
) -> Cell:
    one = block.intervals.get(metric, {}).get(option)
    if one is None:
        return Cell("-")
    published = result.published.get(block.name, {}).get(option, {}).get(metric)
    beside = "" if published is None else f" published {published:g}"
    address = next((row.address for row in _rows(result, block, option) if row.address), "")
    within = "" if one.low is None or one.high is None else f"{one.low:.4f} to {one.high:.4f}"
    return Cell(
        _marked(block, metric, option, one),
        note=" ".join(part for part in (_errors(one), within, beside.strip()) if part),
        is_best=best.get(metric) == option,
        link=f"#run-{address}" if address else "",
        title=f"{one.users} users",
    )


def _fault_notes(result: StudyResult) -> Iterator[Text]:
    for row in result.rows:
        if row.fault:
            yield Text(f"{label_of(row.options)}, seed {row.seed} failed: {row.fault}")


DIFFERENCE = ("difference", "95 % interval", "p", "p, corrected")
"""Columns of `difference_cells`."""


def difference_cells(one: Comparison) -> list[Cell | str]:
    """Return a difference with its interval and p-values."""
    return [
        Cell(f"{one.difference:+.4f}", is_best=one.is_significant),
        f"{one.low:+.4f} to {one.high:+.4f}",
        f"{one.p:.2g}",
        f"{one.p_adjusted:.2g}",
    ]


def _differences(analysis: Analysis) -> Iterator[Table]:
    for block in analysis.blocks:
        for metric, found in block.comparisons.items():
            rows: list[TableRow] = [
                [
                    f"{one.option} minus {one.against}",
                    *difference_cells(one),
                    f"{one.p_wilcoxon:.2g}",
                    str(one.seeds_ahead),
                ]
                for one in found
            ]
            columns = ["", *DIFFERENCE, "p, Wilcoxon", "seeds ahead"]
            yield Table(f"{block.name}: {metric}", columns, rows)


def _rank_tables(analysis: Analysis) -> Iterator[Table]:
    for metric, found in analysis.ranks.items():
        names = sorted(found.mean_ranks, key=lambda name: found.mean_ranks[name])
        rows: list[TableRow] = [
            [
                name,
                f"{found.mean_ranks[name]:.2f}",
                *(
                    f"{found.bayesian[name].get(other, 0.5):.2f}"
                    for other in names
                    if found.bayesian
                ),
            ]
            for name in names
        ]
        columns = ["", "mean rank", *(f"larger than {n}" for n in names if found.bayesian)]
        note = (
            f"Over {found.blocks} data sets. Friedman test: p = {found.p_friedman:.3g}; mean ranks "
            f"that differ by less than {found.critical_difference:.2f} do not differ significantly "
            "(Nemenyi). With five data sets or more: probability that the row is larger than the "
            "column, by a Bayesian signed-rank test."
        )
        yield Table(metric, columns, rows, note)


def _costs(result: StudyResult) -> Table:
    columns = ["run", "seed", "training, s", "evaluation, s", "memory, GiB", "speed"]
    rows: list[TableRow] = []
    for row in result.rows:
        if row.run is None:
            continue
        cost = row.run.cost
        speed = ", ".join(
            f"{value:,.0f} {name.replace('_per_s', '/s')}" for name, value in cost.speed.items()
        )
        memory = "-" if cost.memory_gb is None else f"{cost.memory_gb:.2f}"
        figures = [f"{cost.train_s:.1f}", f"{cost.evaluate_s:.1f}", memory, speed]
        epochs = [str(row.run.epochs), str(row.run.best_epoch)]
        rows.append([label_of(row.options), str(row.seed), *figures, *epochs])
    return Table("", [*columns, "epochs", "best epoch"], rows)


def _runs(result: StudyResult, folder: Folder) -> Table:
    rows: list[TableRow] = []
    anchors: list[str] = []
    for row in result.rows:
        tuned = ", ".join(f"{name} = {value}" for name, value in row.tuned.items())
        link = _link(folder, result.runs, row)
        data = row.run.data[:12] if row.run is not None else "-"
        finished = row.run.finished if row.run is not None else row.fault[:80]
        name, address = label_of(row.options), Cell(row.address or "-", link=link)
        rows.append([name, str(row.seed), address, data, tuned, finished])
        place = f"run-{row.address}"
        anchors.append(place if row.address and place not in anchors else f"row-{len(anchors)}")
    note = f"Runs are folders of {result.runs}, named by a hash of settings and data."
    columns = ["run", "seed", "address", "data", "tuned", "finished"]
    return Table("", columns, rows, note, anchors)


def _trials(result: StudyResult) -> Iterator[Table]:
    """Yield what was tried, so that one can see that options were tuned alike."""
    if not result.trials:
        return
    rows: list[TableRow] = [
        [
            label_of(one.options),
            ", ".join(f"{name} = {value}" for name, value in one.settings.items()),
            "-" if one.selection is None else f"{one.selection:.5g}",
            one.address,
            one.fault[:80],
        ]
        for one in result.trials
    ]
    columns = ["run", "settings", "score on validation", "address", "fault"]
    yield Table("Trials", columns, rows, "Each with the first seed; the highest score is chosen.")


def _link(page_folder: Folder, runs: str, row: Row) -> str:
    """Return the address of a run's page, or of its folder where it has none."""
    if not row.address:
        return ""
    place = run_folder(runs, row.address)
    ending = "/"
    if row.run is not None and measured_folder(runs, row).exists(RUN_PAGE):
        place, ending = measured_folder(runs, row) / RUN_PAGE, ""
    if page_folder.is_local and place.is_local:
        return os.path.relpath(place.path, page_folder.path) + ending
    return str(place)


def _reproduction(result: StudyResult, text: str) -> Iterator[Facts | Code]:
    lines = [
        ("command", result.command),
        ("finished", result.finished),
        ("study", result.study),
        ("trials", str(len(result.trials))),
        *result.environment.items(),
    ]
    yield Facts("", lines)
    yield Code("Study file", text)


def _csv(rows: Sequence[Sequence[object]]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer).writerows(rows)
    return buffer.getvalue().encode()


def _result_rows(result: StudyResult, analysis: Analysis) -> list[list[object]]:
    axes = [axis for axis in result.axes if axis != result.compared]
    head = ["metric", "mean", "low", "high", "error_of_users", "error_of_seeds", "users"]
    rows: list[list[object]] = [[*axes, result.compared, *head, "published"]]
    for block in analysis.blocks:
        for metric, found in block.intervals.items():
            for option, one in found.items():
                published = result.published.get(block.name, {}).get(option, {}).get(metric)
                values = [one.mean, one.low, one.high, one.error_of_users, one.error_of_seeds]
                rows.append(
                    [*block.options.values(), option, metric, *values, one.users, published]
                )
    return rows


def _comparison_rows(analysis: Analysis) -> list[list[object]]:
    fields = [*Comparison.model_fields]
    rows: list[list[object]] = [["on", "metric", *fields]]
    for block in analysis.blocks:
        for metric, found in block.comparisons.items():
            rows += [[block.name, metric, *one.model_dump().values()] for one in found]
    return rows


def _run_rows(result: StudyResult) -> list[list[object]]:
    rows: list[list[object]] = [[*result.axes, "seed", "address", "train_s", "memory_gb", "fault"]]
    for row in result.rows:
        cost = None if row.run is None else row.run.cost
        figures = [None, None] if cost is None else [cost.train_s, cost.memory_gb]
        rows.append([*row.options.values(), row.seed, row.address, *figures, row.fault])
    return rows


def _rank_rows(analysis: Analysis) -> list[list[object]]:
    head: list[object] = ["metric", "option", "mean_rank", "data_sets"]
    head += ["p_friedman", "critical_difference"]
    return [
        head,
        *(
            [metric, name, rank, found.blocks, found.p_friedman, found.critical_difference]
            for metric, found in analysis.ranks.items()
            for name, rank in found.mean_ranks.items()
        ),
    ]
