"""The console command ``distrib``: one subcommand for each job.

Nothing of Ray or torch is imported before a job runs, so that ``--help`` answers at once.
"""

import importlib
import json
import re
from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from distrib import __version__

JOBS = {
    "prepare": "Convert a rating log to sharded user histories.",
    "train": "Train a model on prepared histories.",
    "evaluate": "Measure a trained model on held-out interactions.",
    "score": "Write every user's recommendations as Parquet, or to a table.",
    "serve": "Serve recommendations over HTTP.",
    "pipeline": "Prepare, train, evaluate and score.",
    "nightly": "Add new log rows, train from the night before, score all users, publish.",
    "search": "Tune fields of a run file on validation metrics.",
    "study": "Run every combination of a study file that is missing, and compare.",
    "soften": "Write a soft label for each training user.",
    "export": "Write the embeddings of all items, with an index, and of all users.",
    "convert": "Write a log, or prepared histories, as RecBole, CSV or Parquet files.",
    "forget": "Remove people from all that was made of their rows.",
    "doctor": "Check every node, and estimate memory and time of training.",
}
"""Jobs of a run file, each a module of `distrib.jobs`, and what they do."""

OTHERS = {
    "init": "Look at a log and write a run file for it.",
    "plan": "Estimate memory and time of a run, without cluster or data.",
    "compare": "Compare evaluated runs on the same data, user by user.",
    "submit": "Submit a job to a Ray cluster, or to Kubernetes.",
    "score-through": "Score users through a server.",
}
"""Commands with arguments of their own; functions of `distrib.jobs.others`."""

_FILE = click.Path()
"""Completed in shells; whether it can be read is for the job to say."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the console command; ends the process with the exit code of the job.

    Args:
        arguments: Replace ``sys.argv``.
    """
    cli.main(args=None if arguments is None else list(arguments), prog_name="distrib")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="distrib")
def cli() -> None:
    """Train autoencoder recommenders on clusters, and score everyone with the same checkpoints.

    A run file in TOML describes a run for all jobs. Exit codes: 0 done, 1 a known error, 2 a wrong
    run file or command, 70 an error that nothing foresaw (its log is named), 75 stopped on request
    with progress saved.
    """


def _library(name: str) -> Any:
    """Import a module of the jobs, or say what is not installed."""
    from distrib.events import own_standard_output

    try:
        with own_standard_output():  # some libraries print when they are imported
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in {"distrib", ""}:
            raise
        raise click.ClickException(
            f"{error.name} is not installed; pip install 'distrib[ray,deepspeed]' for the jobs"
        ) from error


def _keys(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Complete the key of a setting."""
    page = _library("distrib.settings.reference").reference()
    keys = dict.fromkeys(re.findall(r"^\| `([^`]+)`", page, re.MULTILINE))
    return [CompletionItem(f"{key}=") for key in keys if key.startswith(begun)]


def _job_command(name: str, about: str) -> click.Command:
    def run(
        config: str,
        settings: tuple[str, ...],
        dry_run: bool,
        quiet: bool,
        log_file: str | None,
        **more: str | None,
    ) -> None:
        job = _library("distrib.cli").job  # imports Ray, which takes seconds

        section = "" if name == "study" else f"{name}."
        chosen = [f"{section}{key}={json.dumps(value)}" for key, value in more.items() if value]
        given = ["--config", config]
        for text in (*settings, *chosen):
            given += ["--set", text]
        given += ["--dry-run"] * dry_run + ["--quiet"] * quiet
        given += ["--log-file", log_file] if log_file else []
        found = _library(f"distrib.jobs.{name}").JOB
        plans = _library("distrib.jobs.dry_run").PLANS
        click.get_current_context().exit(job(name, found, plans[name], given))

    options: list[click.Parameter] = [
        click.Option(
            ["--config"], required=True, metavar="FILE", type=_FILE, help="Run file in TOML."
        ),
        click.Option(
            ["--set", "settings"],
            multiple=True,
            metavar="SECTION.KEY=VALUE",
            shell_complete=None if name == "study" else _keys,
            help="Override a setting, in TOML; strings in quotes. May be repeated.",
        ),
        click.Option(
            ["--dry-run"],
            is_flag=True,
            help="Print what would be read, written and needed, and what is not ready; do nothing.",
        ),
        click.Option(["--quiet"], is_flag=True, help="Print the result and errors only."),
        click.Option(
            ["--log-file"],
            metavar="FILE",
            type=_FILE,
            help="Append progress to a file, not standard error.",
        ),
    ]
    if name == "forget":
        about_it = "One user id per line."
        options.append(click.Option(["--users"], metavar="FILE", type=_FILE, help=about_it))
    if name == "study":
        about_it = "Write splits and lists for recbole, lenskit or csv, too."
        options.append(
            click.Option(
                ["--export"], type=click.Choice(["recbole", "lenskit", "csv"]), help=about_it
            )
        )
    return click.Command(name, callback=run, params=options, help=about, short_help=about)


def _other_command(name: str, about: str) -> click.Command:
    def run(given: tuple[str, ...]) -> None:
        others = _library("distrib.jobs.others")
        code = getattr(others, name.replace("-", "_"))(about, list(given))
        click.get_current_context().exit(code)

    everything = click.Argument(
        ["given"],
        nargs=-1,
        type=click.UNPROCESSED,
        shell_complete=lambda *_: [CompletionItem("", type="file")],
    )
    return click.Command(
        name,
        callback=run,
        params=[everything],
        help=about,
        short_help=about,
        add_help_option=False,
        context_settings={"ignore_unknown_options": True},
    )


for _name, _about in JOBS.items():
    cli.add_command(_job_command(_name, _about))
for _name, _about in OTHERS.items():
    cli.add_command(_other_command(_name, _about))


@cli.group("config", short_help="Show, describe and migrate run files.")
def config_group() -> None:
    """Show, describe and migrate run files."""


@config_group.command("show")
@click.option("--config", required=True, metavar="FILE", type=_FILE, help="Run file in TOML.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    shell_complete=_keys,
    help="Override.",
)
def show(config: str, settings: tuple[str, ...]) -> None:
    """Print all settings of a run file, each with where its value comes from."""
    _settings_command("show", config, settings)


@config_group.command("reference")
def reference() -> None:
    """Print the page of all settings, as Markdown."""
    _settings_command("reference")


@config_group.command("schema")
def schema() -> None:
    """Print the JSON Schema of run files, for editors."""
    _settings_command("schema")


@config_group.command("migrate")
@click.argument("files", nargs=-1, required=True, type=_FILE)
def migrate(files: tuple[str, ...]) -> None:
    """Rewrite run files with the present names of settings; comments stay."""
    _settings_command("migrate", files)


def _settings_command(name: str, *given: object) -> None:
    commands = _library("distrib.settings.commands")
    click.get_current_context().exit(getattr(commands, name)(*given))


if __name__ == "__main__":
    main()
