"""The console command ``distrib``: one subcommand for each job.

Nothing of Ray or torch is imported before a job runs, so that ``--help`` answers at once.
"""

import importlib
import json
from collections.abc import Sequence
from typing import Any

import click

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
    "soften": "Write a soft label for each training user.",
    "export": "Write the embeddings of all items, with an index, and of all users.",
    "convert": "Write a log, or prepared histories, as RecBole, CSV or Parquet files.",
    "forget": "Remove people from all that was made of their rows.",
    "doctor": "Check every node, and estimate memory and time of training.",
}
"""Jobs of a run file, each a module of `distrib.jobs`, and what they do."""

OTHERS = {
    "plan": "Estimate memory and time of a run, without cluster or data.",
    "submit": "Submit a job to a Ray cluster, or to Kubernetes.",
    "score-through": "Score users through a server.",
}
"""Commands with arguments of their own; functions of `distrib.jobs.others`."""


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
    run file or command, 75 stopped on request with progress saved.
    """


def _job_command(name: str, about: str) -> click.Command:
    def run(config: str, settings: tuple[str, ...], **more: str | None) -> None:
        from distrib.cli import job  # imports Ray, which takes seconds

        chosen = [f"{name}.{key}={json.dumps(value)}" for key, value in more.items() if value]
        given = ["--config", config]
        for text in (*settings, *chosen):
            given += ["--set", text]
        found = importlib.import_module(f"distrib.jobs.{name}").JOB
        code = job(about, found.check, found.run, given)
        click.get_current_context().exit(code)

    options: list[click.Parameter] = [
        click.Option(["--config"], required=True, metavar="FILE", help="Run file in TOML."),
        click.Option(
            ["--set", "settings"],
            multiple=True,
            metavar="SECTION.KEY=VALUE",
            help="Override a setting, in TOML; strings in quotes. May be repeated.",
        ),
    ]
    if name == "forget":
        options.append(click.Option(["--users"], metavar="FILE", help="One user id per line."))
    return click.Command(name, callback=run, params=options, help=about, short_help=about)


def _other_command(name: str, about: str) -> click.Command:
    def run(given: tuple[str, ...]) -> None:
        others: Any = importlib.import_module("distrib.jobs.others")
        code = getattr(others, name.replace("-", "_"))(about, list(given))
        click.get_current_context().exit(code)

    everything = click.Argument(["given"], nargs=-1, type=click.UNPROCESSED)
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
