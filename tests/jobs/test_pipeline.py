"""The jobs as a user starts them, on the demo's run file made small."""

import gzip
import json
import runpy
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distrib.checkpoint.bundle import load_bundle
from distrib.config import load
from distrib.data.config import DataConfig
from distrib.data.dataset import Dataset
from distrib.data.logs.config import SyntheticLog
from distrib.data.prepare.job import prepare
from distrib.data.schema import Role
from distrib.data.splits.rules import NoSplit
from distrib.errors import CheckpointError, ConfigError, DataError
from distrib.evaluation.job import evaluate
from distrib.evaluation.job import preflight as evaluate_preflight
from distrib.report.run_page import draw_run
from distrib.report.summary import draw_curves
from distrib.run_file import RunFile
from distrib.scoring.bulk.job import preflight, score
from distrib.scoring.scorer import Scorer
from distrib.scoring.tables import recommend_table
from distrib.storage import Folder
from distrib.training.workers.launch import launch
from tests.forked_workers import running

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("forked_workers")]
ROOT = Path(__file__).parents[2]
SMALL = [
    "data.source.num_users=3000",
    "data.source.num_items=100",
    "data.source.num_interactions=100_000",
    "train.num_epochs=10",
    "train.batch_users=50",
    "score.k=10",
]


def run_file(folder, *more):
    places = [f'run="{folder}/run"', f'data.prepared="{folder}/data"']
    return load(RunFile, ROOT / "configs/demo.toml", overrides=[*places, *SMALL, *more])


@pytest.fixture(scope="module")
def trained(cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    file = run_file(folder)
    prepare(file.data)
    launch(file.training())
    return folder, file


@pytest.fixture(scope="module")
def evaluated(trained):
    _, file = trained
    return evaluate(file.run, file.data.prepared, file.evaluate)


def test_the_model_beats_popularity_and_comes_nearer_to_the_truth(evaluated):
    model, popularity = (evaluated.metrics[name] for name in ("model", "popularity"))
    assert model["recall@20"].mean > 1.15 * popularity["recall@20"].mean
    assert model["rmse"].mean < popularity["rmse"].mean
    distance = evaluated.distance_to_truth
    for kind in ("interactions", "outcomes_per_cell"):
        assert distance.model[kind] < 0.9 * distance.popularity[kind]
    for found in (distance.model, distance.popularity):
        assert found["outcomes_per_cell"] < found["bound"] < 1.0


def test_every_test_user_is_counted(trained, evaluated):
    _, file = trained
    rows = pq.read_table(f"{file.data.prepared}/histories")["roles"].to_pylist()
    asked = sum(Role.TEST_TARGET in roles for roles in rows)
    assert evaluated.users["measured"] == asked
    assert evaluated.users["all"] == len(rows)
    assert evaluated.metrics["model"]["recall@20"].num_observations == asked
    cells = sum(role == Role.TEST_TARGET for roles in rows for role in roles)
    assert evaluated.metrics["model"]["rmse"].num_observations == cells


def test_what_is_evaluated_is_not_evaluated_again_unless_something_differs(
    trained, evaluated, capfd
):
    _, file = trained

    def again(**changes):
        config = file.evaluate.model_copy(update=changes)
        found = evaluate(file.run, file.data.prepared, config)
        return found, "already_evaluated" in capfd.readouterr().err

    assert again() == (evaluated, True)
    more, is_known = again(ndcg_at=(7,))
    assert not is_known
    assert "ndcg@7" in more.metrics["model"]
    assert again() == (evaluated, False)
    Folder(file.run).remove("evaluation_of.json")  # as a job leaves it that is killed halfway
    assert again() == (evaluated, False)


def test_recommendations_of_the_job_equal_the_scorers(trained):
    _, file = trained
    result = score(file.run, file.data.prepared, file.score)
    lists = pq.read_table(result.output)
    scorer = Scorer.from_bundle(Folder(file.run) / "bundle")
    histories = pq.read_table(f"{file.data.prepared}/histories")
    vocabulary = Dataset.open(file.data.prepared).vocabulary
    direct, _ = recommend_table(scorer, histories, vocabulary, file.score)
    assert result.counts.users == len(lists) == len(histories)
    assert_same_lists(lists, direct)
    seen = {row["user"]: set(row["items"]) for row in histories.to_pylist()}
    for row in lists.to_pylist():
        positions = scorer.vocabulary.positions(pa.array(row["items"]))
        assert not seen[row["user"]] & set(positions.tolist())
        assert len(row["items"]) == 10
        assert len(row["serendipitous_items"]) <= 5


def parts(folder):
    return Folder(folder).files(".parquet")


def assert_same_lists(one, other):
    one, other = (table.sort_by("user").to_pydict() for table in (one, other))
    for column, wanted in other.items():
        if "items" in column or column == "user":
            assert one[column] == wanted, column
        else:
            flat = [np.concatenate([np.ravel(v) for v in c[column]]) for c in (one, other)]
            np.testing.assert_allclose(*flat, rtol=1e-5, atol=1e-5)


def test_users_the_training_never_saw_are_scored_from_either_form(trained, tmp_path):
    """A prepared folder with its own vocabulary, and plain Parquet of original ids."""
    _, file = trained
    strangers = DataConfig(
        prepared=str(tmp_path / "strangers"),
        source=SyntheticLog(num_users=90, num_items=130, num_interactions=3000, seed=7),
        split=NoSplit(),
        num_shards=2,
    )
    prepare(strangers)
    vocabulary = Dataset.open(strangers.prepared).vocabulary
    histories = pq.read_table(f"{strangers.prepared}/histories")
    plain = histories.select(["user", "ratings"]).append_column(
        "items",
        pa.array(
            [vocabulary.ids.take(pa.array(i)).to_pylist() for i in histories["items"].to_pylist()]
        ),
    )
    (tmp_path / "plain").mkdir()
    pq.write_table(plain, tmp_path / "plain" / "users.parquet")
    scorer = Scorer.from_bundle(Folder(file.run) / "bundle")
    direct, read = recommend_table(scorer, plain, None, file.score)
    assert read.row_status["item unseen in training"] > 0
    for name in ("strangers", "plain"):
        policy = file.score.model_copy(
            update={"histories": str(tmp_path / name), "output": str(tmp_path / name / "out")}
        )
        result = score(file.run, file.data.prepared, policy)
        assert result.counts.interactions == {k: v for k, v in read.row_status.items() if v}
        files = [f"{result.output}/{part}" for part in parts(result.output)]
        assert_same_lists(pq.read_table(files), direct)


def test_scoring_again_does_nothing_and_another_policy_replaces(trained, tmp_path):
    _, file = trained
    policy = file.score.model_copy(update={"output": str(tmp_path / "out"), "serendipitous_k": 0})
    first = score(file.run, file.data.prepared, policy)
    stamps = {
        name: (tmp_path / "out" / name).stat().st_mtime_ns for name in parts(str(tmp_path / "out"))
    }
    assert score(file.run, file.data.prepared, policy) == first
    assert stamps == {
        n: (tmp_path / "out" / n).stat().st_mtime_ns for n in parts(str(tmp_path / "out"))
    }
    score(file.run, file.data.prepared, policy.model_copy(update={"k": 3}))
    lists = pq.read_table(tmp_path / "out")["items"]
    assert all(len(row) == 3 for row in lists)


def test_pictures_and_a_page_are_in_the_run_folder(trained):
    _, file = trained
    result = evaluate(file.run, file.data.prepared, file.evaluate)
    drawn = draw_run(file.run, file.data.prepared, result, file.model.spec.output)
    for path in (draw_curves(file.run, 1), drawn["map"]):
        content = Path(path).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000
    page = Path(drawn["page"]).read_text()
    for part in ("Results", "Learning curves", "Ratings", "Likely and liked", "recall@20"):
        assert part in page


def test_what_cannot_be_scored_or_measured_is_refused_before_any_actor(trained, tmp_path):
    _, file = trained
    with pytest.raises(CheckpointError, match="no bundle to score with"):
        preflight(str(tmp_path), file.data.prepared, file.score)
    absent = file.score.model_copy(update={"histories": str(tmp_path / "none")})
    with pytest.raises(DataError, match="no such folder or bucket"):
        preflight(file.run, file.data.prepared, absent)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own.parquet").write_bytes(b"precious")
    for output, message in (("mine", "did not write"), ("data", "where the histories are")):
        place = f"{tmp_path}/{output}" if output == "mine" else file.data.prepared
        taken = file.score.model_copy(update={"output": place})
        with pytest.raises(DataError, match=message):
            preflight(file.run, file.data.prepared, taken)
    assert (tmp_path / "mine" / "own.parquet").read_bytes() == b"precious"
    (tmp_path / "lists").mkdir()
    pq.write_table(pa.table({"who": [1]}), tmp_path / "lists" / "a.parquet")
    lacking = file.score.model_copy(update={"histories": f"{tmp_path}/lists"})
    with pytest.raises(DataError, match=r"lack column\(s\) \['user', 'items'\]"):
        preflight(file.run, file.data.prepared, lacking)
    other = run_file(tmp_path, "data.source.seed=5")
    prepare(other.data)
    with pytest.raises(ConfigError, match="was trained on data"):
        evaluate_preflight(file.run, other.data.prepared)


def command(job, *arguments):
    return subprocess.run(
        running(f"jobs/{job}.py", *arguments),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


def test_histories_of_another_kind_are_told_without_a_traceback(trained, tmp_path):
    _, file = trained
    table = pa.table({"user": [1], "items": [["text"]], "ratings": [[1.0]]})
    (tmp_path / "text").mkdir()
    pq.write_table(table, tmp_path / "text" / "a.parquet")
    places = [f'run="{file.run}"', f'data.prepared="{file.data.prepared}"', *SMALL]
    places += [f'score.histories="{tmp_path}/text"', f'score.output="{tmp_path}/out"']
    settings = [part for place in places for part in ("--set", place)]
    failed = command("score", "--config", "configs/demo.toml", *settings)
    assert failed.returncode == 1
    last = failed.stderr.splitlines()[-1]
    assert last.startswith(
        f"DataError: {tmp_path}/text/a.parquet: item ids are string, but the vocabulary holds int64"
    )
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_a_fault_ends_a_job_with_its_message_and_code_before_ray_starts(tmp_path):
    faulty = command("train", "--config", "configs/demo.toml", "--set", "train.epochs=3")
    assert faulty.returncode == 2
    assert "train.epochs = 3: unknown key; did you mean 'num_epochs'?" in faulty.stderr
    absent = command(
        "prepare", "--config", "configs/demo.toml",
        "--set", f'data.prepared="{tmp_path}"',
        "--set", f'data.source={{format="movielens", path="{tmp_path}/none.csv"}}',
    )  # fmt: skip
    assert absent.returncode == 1
    assert "DataError" in absent.stderr
    assert "no such file, folder or bucket" in absent.stderr
    assert "Traceback" not in faulty.stderr + absent.stderr
    assert "Started a local Ray instance" not in absent.stderr


def test_the_pipeline_finds_faults_of_its_last_jobs_first(tmp_path, monkeypatch, capsys):
    places = ["--set", f'run="{tmp_path}/run"', "--set", f'data.prepared="{tmp_path}/data"']
    monkeypatch.setattr("signal.signal", lambda *_: None)  # the job is run in this process
    for setting, message in (
        ('data.split={name="none"}', "holds out nothing to evaluate"),
        (f'score.histories="{tmp_path}/none"', "no such folder or bucket"),
        ('model={name="mult_vae"}', "mult_vae' does not predict both ratings and probabilities"),
        ('objective={name="multinomial"}', "valid objectives for"),
    ):
        arguments = ["--config", str(ROOT / "configs/demo.toml"), *places, "--set", setting]
        monkeypatch.setattr("sys.argv", ["pipeline.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "jobs/pipeline.py"), run_name="__main__")
        assert ended.value.code in {1, 2}
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_last_line_of_a_job_is_its_result_as_json(trained):
    _, file = trained
    places = [f'run="{file.run}"', f'data.prepared="{file.data.prepared}"', *SMALL]
    settings = [part for place in places for part in ("--set", place)]
    done = command("prepare", "--config", "configs/demo.toml", *settings)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (
        result["counts"]["training_users"] == Dataset.open(file.data.prepared).vocabulary.num_users
    )


def test_a_bundle_carries_what_it_needs(trained):
    _, file = trained
    bundle = load_bundle(Folder(file.run) / "bundle")
    assert bundle.vocabulary.fingerprint == Dataset.open(file.data.prepared).vocabulary.fingerprint
    assert (
        bundle.facts.data
        == json.loads(Path(file.data.prepared, "manifest.json").read_text())["hash"]
    )


@pytest.mark.long
def test_the_whole_way_runs_on_an_object_store(object_store):
    """The command of ``make demo`` in a process of its own, from a log on the store to lists."""
    place = f"{object_store}/pipeline"
    log = "\n".join(f"{n % 40},{n % 17},{n % 5 + 1},{n}" for n in range(2000))
    Folder(place).write("log/ratings.csv", f"who,what,stars,when\n{log}\n".encode())
    source = (
        f'data.source={{format="csv", path="{place}/log/", '
        'columns={user="who", item="what", rating="stars", time="when"}}'
    )
    places = [f'run="{place}/run"', f'data.prepared="{place}/data"', "train.num_epochs=2"]
    settings = [*places, source, "data.ratings.levels=[1.0, 2.0, 3.0, 4.0, 5.0]", "score.k=3"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    done = command("pipeline", "--config", "configs/demo.toml", *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    counts = Dataset.open(f"{place}/data").manifest.counts
    assert counts.read == 2000 == counts.kept + counts.rejected["duplicate"]
    assert result["evaluated"]["users"]["all"] == counts.users == 40
    output = f"{place}/run/recommendations"
    assert result["scored"]["output"] == output
    lists = [Folder(output).read_parquet(name) for name in parts(output)]
    assert sum(len(table) for table in lists) == 40
    for name in ("run/bundle/manifest.json", "run/learning_curves.png"):
        assert Folder(place).exists(name)


@pytest.mark.long
def test_a_damaged_log_is_told_in_one_line(tmp_path):
    """The error comes from a task on the cluster; Ray would print it three times over."""
    rng = np.random.default_rng(0)
    text = "".join(f"{n},1,5,1\n" for n in rng.integers(10**9, size=50_000))
    whole = gzip.compress(text.encode())
    (tmp_path / "log.csv.gz").write_bytes(whole[: len(whole) // 2])
    source = (
        f'data.source={{format="csv", path="{tmp_path}/log.csv.gz", header=["u", "i", "r", "t"], '
        'columns={user="u", item="i", rating="r", time="t"}}'
    )
    places = [source, "data.ratings.levels=[1.0, 5.0]", f'data.prepared="{tmp_path}/p"']
    settings = [part for place in places for part in ("--set", place)]
    failed = command("prepare", "--config", "configs/demo.toml", *settings)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1] == (
        f"DataError: {tmp_path}/log.csv.gz: damaged (Truncated compressed stream); fetch it again"
    )
    assert "Traceback" not in failed.stderr
    assert failed.stderr.count("Truncated") == 1
