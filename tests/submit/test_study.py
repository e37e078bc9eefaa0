"""A study that is submitted: whole, and with places that outlast the job."""

import tomllib

import pytest

from distrib.config import checked, load
from distrib.errors import ConfigError
from distrib.studies import plan
from distrib.studies.config import StudyFile
from distrib.submit.study import require_shared_study, whole_text
from tests.k8s.test_manifests import ROOT

STUDIES = sorted((ROOT / "configs" / "studies").glob("*.toml"))
VARIABLES = {"DISTRIB_DATA": "/data"}


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_with_its_run_files_inside_has_the_same_runs(path, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    text = whole_text(path.read_text())
    copy = tmp_path / "study.toml"
    copy.write_text(text)
    monkeypatch.chdir(tmp_path)  # where there are no run files
    whole = plan.cells(load(StudyFile, copy, environment=VARIABLES), VARIABLES)
    monkeypatch.chdir(ROOT)
    apart = plan.cells(load(StudyFile, path, environment=VARIABLES), VARIABLES)
    assert [cell.document for cell in whole] == [cell.document for cell in apart]
    assert "configs/ml1m" not in text


def test_a_run_file_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"base = 'gone\.toml'"):
        whole_text('[axes.a]\nb.base = "gone.toml"\n')


def test_relative_places_are_refused():
    document = tomllib.loads((ROOT / "configs/studies/demo.toml").read_text())
    with pytest.raises(ConfigError, match=r"output = .*; runs = "):
        require_shared_study(checked(StudyFile, document, where="study"))
    document |= {"output": "s3://bucket/study", "runs": "/shared/runs"}
    require_shared_study(checked(StudyFile, document, where="study"))
