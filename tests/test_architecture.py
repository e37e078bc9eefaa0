"""Rules of the house that no linter offers."""

import ast
import re
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIBRARY = sorted((ROOT / "distrib").rglob("*.py"))
JOBS = sorted((ROOT / "jobs").glob("*.py"))
RAY_PACKAGES = (  # the rim; grows only on purpose
    "api",
    "cli",
    "cluster",
    "data.export",
    "data.feeds.loader",
    "data.prepare",
    "data.recent",
    "distill.job",
    "evaluation",
    "scoring.bulk",
    "serve.deployment",
    "studies.run",
    "studies.session",
    "submit.ray_jobs",
    "training.preflight.doctor",
    "training.workers",
    "tuning",
)
LONG_CLASSES = {"Folder": 40}  # a file system, as fsspec has it
DUMPING_GROUNDS = {"utils", "common", "helpers", "misc"}


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "distrib").with_suffix("").parts)


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
        module(path)
        for path in LIBRARY
        if any(name == prefix or name.startswith(prefix + ".") for name in imported(path))
    }


def test_only_the_rim_imports_ray_deepspeed_and_collectives():
    inside = {name for name in importers("ray") if not name.startswith(RAY_PACKAGES)}
    assert not inside
    assert importers("deepspeed") == {"training.engines.deepspeed"}
    assert {name.partition(".")[0] for name in importers("torch.distributed")} == {"training"}


def test_models_and_scorer_import_without_ray_and_deepspeed():
    code = (
        "import sys, distrib.models, distrib.run_file;"
        "import distrib.scoring.scorer, distrib.training.engines.local;"
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


def test_files_functions_and_classes_are_short():
    lengths = []
    for path in LIBRARY:
        assert path.stem not in DUMPING_GROUNDS, path
        assert len(path.read_text().splitlines()) <= 400, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lengths.append(node.end_lineno - node.lineno + 1)
                assert lengths[-1] <= 60, (path, node.name)
            if isinstance(node, ast.ClassDef):
                assert len(methods_of(node)) <= LONG_CLASSES.get(node.name, 15), (path, node.name)
    assert statistics.median(lengths) <= 8


def methods_of(node: ast.ClassDef) -> list[ast.stmt]:
    return [part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_untyped_dictionaries_are_few_and_traits_are_gone():
    text = "".join(path.read_text() for path in LIBRARY)
    assert text.count("dict[str, Any]") < 40
    assert not re.search(r'manifest\["|\btraits\.', text)


def test_open_ends_name_an_issue():
    for path in [*LIBRARY, *JOBS]:
        for found in re.finditer(r"TODO(?!\(#\d+\))|FIXME|XXX", path.read_text()):
            raise AssertionError(f"{path}: {found.group()}")


def test_benchmarks_name_what_is_there():
    names = [path.stem for path in sorted((ROOT / "tests/benchmarks").glob("*.py"))]
    own = [name for name in names if not name.startswith(("recbole", "__"))]
    code = "".join(f"import tests.benchmarks.{name}\n" for name in own)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-1000:]


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


DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_links_of_the_documentation_lead_to_files():
    for page in DOCS:
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_what_the_documentation_names_is_there():
    text = "".join(page.read_text() for page in DOCS)
    named = re.findall(r"\b(?:jobs|configs|distrib|tests)/[a-z\d_/]+\.(?:py|toml)\b", text)
    for path in set(named):
        assert (ROOT / path).exists(), path
    makefile = (ROOT / "Makefile").read_text()
    for targets in re.findall(r"(?:`|^)make ([a-z-]+(?: [a-z-]+)*)", text, re.MULTILINE):
        for target in targets.split():
            assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target
