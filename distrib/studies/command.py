"""Command line of ``compare``."""

import argparse

from distrib.cli import run_and_report
from distrib.config import JsonObject
from distrib.storage import Folder
from distrib.studies.compare import compare, page_of, show

PAGE = "comparison.html"


def comparison(about: str, arguments: list[str] | None = None) -> int:
    """Compare evaluated runs, from the command line.

    Args:
        about: For ``--help``.
        arguments: Instead of ``sys.argv``.

    Returns:
        The exit code, as of `job`.
    """
    parser = argparse.ArgumentParser(prog="distrib compare", description=about)
    parser.add_argument("runs", nargs="+", help="run folders; the others are tested on the first")
    parser.add_argument("--metric", action="append", default=[], help="a test metric; may repeat")
    parser.add_argument("--output", help="folder for a page; none by default")
    given = parser.parse_args(arguments)

    def work() -> JsonObject:
        found = compare(given.runs, given.metric)
        show(found)
        if given.output is None:
            return found.to_json()
        folder = Folder(given.output)
        folder.write(PAGE, page_of(found).encode())
        return {**found.to_json(), "page": str(folder / PAGE)}

    return run_and_report(work)
