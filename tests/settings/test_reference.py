"""The configuration reference: complete, and not stale."""

import json
import re
from pathlib import Path
from typing import get_args

from click.testing import CliRunner
from pydantic import BaseModel

from distrib.config import load
from distrib.console import cli
from distrib.run_file import RunFile
from distrib.settings.reference import reference, schema

ROOT = Path(__file__).parents[2]


def classes_in(kind, found):
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if kind not in found:
            found.add(kind)
            for field in kind.model_fields.values():
                classes_in(field.annotation, found)
        return found
    for part in get_args(kind):
        classes_in(part, found)
    return found


def test_the_page_is_what_the_command_prints():
    assert (ROOT / "docs/configuration.md").read_text() == reference(), (
        "run: distrib config reference > docs/configuration.md"
    )
    assert CliRunner().invoke(cli, ["config", "reference"]).output == reference()


def test_the_page_holds_every_field_with_what_it_means():
    page = reference()
    tags = {"name", "format", "kind"}
    found = classes_in(RunFile, set())
    assert len(found) > 60
    for kind in found:
        for name, field in kind.model_fields.items():
            if name in tags:
                continue
            rows = [
                line for line in page.split("\n") if f".{name}` |" in line or f"`{name}` |" in line
            ]
            assert rows, f"{kind.__name__}.{name}"
            about = " ".join((field.description or "").replace("``", "`").split())
            assert any(about.replace("|", "\\|") in row for row in rows), f"{kind.__name__}.{name}"


def test_editors_get_a_schema_that_takes_the_run_files():
    found = schema()
    assert found["$schema"].startswith("https://json-schema.org")
    assert set(found["required"]) == {"run", "data", "model"}
    assert json.loads(CliRunner().invoke(cli, ["config", "schema"]).output) == found


def test_show_names_where_each_value_comes_from(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text((ROOT / "configs/demo.toml").read_text())
    settings = ["--set", "train.num_epochs=3", "--set", "serve.port=9000"]
    found = CliRunner().invoke(cli, ["config", "show", "--config", str(path), *settings])
    assert found.exit_code == 0, found.output
    (train,) = re.findall(r"\n\[train\]\n(.*?)\n\n", found.output, re.DOTALL)
    lines = {line.split(" = ")[0]: line for line in train.split("\n")}
    assert lines["num_epochs"].endswith("# --set")
    assert lines["batch_users"].endswith("# run file")
    assert lines["patience"].endswith("# default")
    copy = tmp_path / "shown.toml"
    copy.write_text(found.output)
    asked = load(RunFile, path, overrides=["train.num_epochs=3", "serve.port=9000"])
    assert load(RunFile, copy) == asked
