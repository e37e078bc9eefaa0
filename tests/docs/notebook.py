"""Runs a notebook without Jupyter.

``python -m tests.docs.notebook docs/tutorial.ipynb`` renews its outputs.
"""

import ast
import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def executed(document: dict[str, Any]) -> dict[str, Any]:
    """Run all cells in one namespace; return the notebook with what they print and show."""
    names: dict[str, Any] = {"__name__": "__main__"}
    number, cells = 0, []
    for cell in document["cells"]:
        if cell["cell_type"] == "code":
            number += 1
            shown = run("".join(cell["source"]), names)
            cell = {**cell, "execution_count": number, "outputs": shown}
        cells.append(cell)
    return {**document, "cells": cells}


def run(source: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a cell; its last expression is its result."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    outputs, printed = [], io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "cell", "exec"), names)
        value = None
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)  # noqa: S307
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": printed.getvalue()})
    if value is not None:
        data = {"text/plain": repr(value)}
        if hasattr(value, "_repr_html_"):
            data["text/html"] = value._repr_html_()
        outputs.append(
            {"output_type": "execute_result", "execution_count": None, "metadata": {}, "data": data}
        )
    return outputs


def main() -> None:
    path = Path(sys.argv[1]).absolute()
    document = json.loads(path.read_text())
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        document = executed(document)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
