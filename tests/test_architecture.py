"""Rules of the house that no linter offers."""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIBRARY = sorted((ROOT / "distrib").rglob("*.py"))
JOBS = sorted((ROOT / "jobs").glob("*.py"))
RAY_MODULES = {  # the rim; grows only on purpose
    "cli.py",
    "cluster/actors.py",
    "cluster/prometheus.py",
    "cluster/resources.py",
    "data/export.py",
    "data/feeds/loader.py",
    "data/prepare/append.py",
    "data/prepare/job.py",
    "data/prepare/stages.py",
    "data/prepare/write.py",
    "evaluate/job.py",
    "evaluate/truth.py",
    "score/bulk/job.py",
    "serve/deployment.py",
    "submit/ray_jobs.py",
    "train/preflight/doctor.py",
    "train/workers/checkpoints.py",
    "train/workers/control.py",
    "train/workers/launch.py",
    "train/workers/monitor.py",
    "train/workers/signals.py",
    "train/workers/solve.py",
    "train/workers/watchdog.py",
    "train/workers/worker.py",
    "tuning/job.py",
}
DEEPSPEED_MODULES = {"train/engines/deepspeed.py"}
DISTRIBUTED_MODULES = {
    "train/build.py",
    "train/engines/deepspeed.py",
    "train/engines/deepspeed_state.py",
    "train/engines/item_parallel.py",
    "train/preflight/doctor.py",
    "train/workers/checkpoints.py",
    "train/workers/collectives.py",
    "train/workers/loss_reducer.py",
    "train/workers/watchdog.py",
}
DUMPING_GROUNDS = {"utils", "common", "helpers", "misc"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT / "distrib").as_posix()


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def importers(prefix: str) -> set[str]:
    return {
        relative(path)
        for path in LIBRARY
        if any(name == prefix or name.startswith(prefix + ".") for name in imported(path))
    }


def test_only_the_rim_imports_ray_deepspeed_and_collectives():
    assert importers("ray") == RAY_MODULES
    assert importers("deepspeed") == DEEPSPEED_MODULES
    assert importers("torch.distributed") == DISTRIBUTED_MODULES


def test_models_and_scorer_import_without_ray_and_deepspeed():
    code = (
        "import sys, distrib.models, distrib.run_file;"
        "import distrib.score.scorer, distrib.train.engines.local;"
        "sys.exit(int(bool({'ray', 'deepspeed'} & set(sys.modules))))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_workers_that_prepare_do_not_wait_for_torch():
    code = "import sys, distrib.data.prepare.job; sys.exit(int('torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_jobs_are_thin():
    for path in JOBS:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        assert len(path.read_text().splitlines()) < 40, path
        assert not any(isinstance(node, ast.For | ast.While | ast.ClassDef) for node in nodes), path


def test_no_dumping_grounds_and_no_long_functions():
    for path in LIBRARY:
        assert path.stem not in DUMPING_GROUNDS, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, (path, node.name)


def test_open_ends_name_an_issue():
    for path in [*LIBRARY, *JOBS]:
        for found in re.finditer(r"TODO(?!\(#\d+\))|FIXME|XXX", path.read_text()):
            raise AssertionError(f"{path}: {found.group()}")


def is_config(node: ast.AST) -> bool:
    bases = node.bases if isinstance(node, ast.ClassDef) else []
    return any(isinstance(base, ast.Name) and base.id == "Config" for base in bases)


def test_every_configuration_field_has_a_reader():
    source = "".join(path.read_text() for path in [*LIBRARY, *JOBS])
    for path in LIBRARY:
        kinds = [node for node in ast.walk(ast.parse(path.read_text())) if is_config(node)]
        fields = [f.target.id for kind in kinds for f in kind.body if isinstance(f, ast.AnnAssign)]
        for name in fields:
            assert re.search(rf"\.{name}\b|\"{name}\"", source), (path, name)


def test_what_the_readme_names_is_there():
    text = (ROOT / "README.md").read_text()
    for path in set(re.findall(r"\b(?:jobs|configs|distrib|tests)/[\w/]+\.(?:py|toml)\b", text)):
        assert (ROOT / path).exists(), path
    makefile = (ROOT / "Makefile").read_text()
    for targets in re.findall(r"`?make ([a-z-]+(?: [a-z-]+)*)`?", text):
        for target in targets.split():
            assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target
