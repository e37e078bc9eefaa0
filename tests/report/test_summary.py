"""Tables and plots of a run, from what other jobs left in folders."""

from types import SimpleNamespace

import pyarrow as pa
import pytest

from distrib.data.dataset import Dataset
from distrib.evaluation.job import Evaluation
from distrib.metrics import Summary
from distrib.report.summary import CURVES, draw_curves, show_evaluation, show_recommendations
from distrib.scoring.commit import PartManifest, ScoreCounts, Success
from distrib.storage import Folder
from distrib.training.best_bundle import warn_of_popularity
from distrib.training.config import TrainingRun
from distrib.training.records import EpochRecord


def entry(epoch):
    return {
        "epoch": epoch,
        "step": 10 * epoch,
        "losses": {"reconstruction": 5.0 / epoch},
        "valid": {"ndcg@10": 0.1 * epoch},
        "selection": 0.1 * epoch,
        "users_per_s": 100.0,
        "data_share": 0.1,
    }


def test_learning_curves_are_drawn_from_the_history(tmp_path):
    Folder(str(tmp_path)).write_json("history.json", [entry(1), entry(2)])
    path = draw_curves(str(tmp_path), best_epoch=2)
    assert path == f"{tmp_path}/{CURVES}"
    assert (tmp_path / CURVES).read_bytes().startswith(b"\x89PNG")


def test_curves_of_other_runs_are_drawn_beside(tmp_path, capfd):
    runs = [str(tmp_path / name) for name in ("mine", "baseline", "untrained")]
    mine, baseline, _ = (Folder(run) for run in runs)
    mine.write_json("history.json", [entry(1), entry(2)])
    baseline.write_json("history.json", [entry(epoch) for epoch in (1, 2, 3)])
    alone = (tmp_path / "mine" / CURVES, draw_curves(runs[0], 2))[0].read_bytes()
    draw_curves(runs[0], 2, runs[1:])
    assert (tmp_path / "mine" / CURVES).read_bytes() != alone
    assert runs[2] in capfd.readouterr().err


def with_levels(levels, monkeypatch):
    """Let all prepared data have some levels."""
    manifest = SimpleNamespace(manifest=SimpleNamespace(levels=levels))
    monkeypatch.setattr(Dataset, "open", lambda _: manifest)


@pytest.mark.parametrize(
    ("output", "levels", "shown"),
    [
        ("rating_classes", (1.0, 2.0), {"ndcg@10", "rmse", "mae"}),
        ("rating_classes", (1.0,), {"ndcg@10"}),
        ("ratings", (1.0, 2.0), {"rmse", "mae"}),
    ],
)
def test_people_see_the_metrics_of_what_a_model_is_for(output, levels, shown, monkeypatch, capfd):
    with_levels(levels, monkeypatch)
    one = Summary(mean=0.5, standard_error=0.01, num_observations=7)
    metrics = {"model": dict.fromkeys(("ndcg@10", "rmse", "mae"), one), "popularity": {}}
    result = Evaluation.model_construct(metrics=metrics, users={"measured": 7, "all": 9})
    show_evaluation(result, output, "prepared")
    printed = capfd.readouterr().err
    assert {name for name in metrics["model"] if name in printed} == shown


def test_popularity_is_drawn_and_a_worse_model_reported(tmp_path, capfd):
    folder = Folder(str(tmp_path))
    drawn = []
    for popularity in ({}, {"ndcg@10": 0.3}):
        folder.write_json("history.json", [entry(1) | {"popularity": popularity}, entry(2)])
        draw_curves(str(tmp_path), best_epoch=2)
        drawn.append((tmp_path / CURVES).read_bytes())
    assert drawn[0] != drawn[1]
    run = TrainingRun.model_construct(
        train=SimpleNamespace(select_by=("ndcg@10", "rmse")), model=None, objective=None
    )
    first, best = (EpochRecord.model_validate(entry(epoch)) for epoch in (1, 2))
    for popularity, message in (
        ({"ndcg@10": 0.3, "rmse": 1.0}, "ndcg@10 0.2, popularity 0.3"),
        ({"ndcg@10": 0.2}, ""),
        ({}, ""),
    ):
        first = first.model_copy(update={"popularity": popularity})
        warn_of_popularity(run, first, best)
        printed = capfd.readouterr().err
        assert message in printed
        assert bool(message) == ("worse_than_popularity" in printed)


def test_metrics_of_model_and_popularity_stand_side_by_side(capfd, monkeypatch):
    def of(mean):
        return Summary(mean=mean, standard_error=0.01, num_observations=7)

    metrics = {"model": {"ndcg@10": of(0.5), "rmse": of(0.9)}, "popularity": {"ndcg@10": of(0.25)}}
    result = Evaluation.model_construct(metrics=metrics, users={"measured": 7, "all": 9})
    with_levels((1.0, 2.0), monkeypatch)
    show_evaluation(result, "rating_classes", "prepared")
    printed = capfd.readouterr().err
    assert "7 users" in printed
    row = next(line for line in printed.splitlines() if "ndcg@10" in line)
    assert "0.5000 (0.0100)" in row
    assert "0.2500 (0.0100)" in row
    row = next(line for line in printed.splitlines() if "rmse" in line)
    assert "0.9000 (0.0100)" in row


@pytest.mark.parametrize(
    ("more", "shown"),
    [
        ({"scores": [[1.5, 0.5]]}, "7 (1.50)"),
        ({"probabilities": [[0.25, 0.125]], "ratings": [[4.0, 3.0]]}, "7 (0.25, 4.0)"),
        ({}, "7"),
    ],
)
def test_first_lists_show_what_there_is(more, shown, tmp_path, capfd):
    table = pa.table({"user": [1], "items": [[7, 9]], **more})
    folder = Folder(str(tmp_path))
    folder.write_parquet("part-0.parquet", table)
    part = PartManifest(name="part-0.parquet", bytes=1, sha256="", users={}, rejected={})
    counts = ScoreCounts(users_read=1, users=1, users_rejected={})
    folder.write_json("_SUCCESS", Success(recipe={}, counts=counts, files=(part,)).to_json())
    show_recommendations(str(tmp_path))
    assert shown in capfd.readouterr().err


def test_an_empty_output_shows_nothing(tmp_path, capfd):
    show_recommendations(str(tmp_path))
    assert capfd.readouterr().err == ""


def test_a_run_without_losses_and_validation_has_a_picture_that_says_so(tmp_path):
    nothing = {**entry(1), "losses": {}, "valid": {}}
    Folder(str(tmp_path)).write_json("history.json", [nothing])
    draw_curves(str(tmp_path), best_epoch=1)
    assert (tmp_path / CURVES).read_bytes().startswith(b"\x89PNG")
