"""Which runs a study is made of, and their addresses."""

import pytest

from distrib.config import checked
from distrib.errors import ConfigError
from distrib.storage import Folder
from distrib.studies import plan
from distrib.studies.config import StudyFile

LOG = {"format": "synthetic", "num_users": 100, "num_items": 20, "num_interactions": 900}


def study_of(**fields):
    document = {
        "title": "t",
        "output": "out",
        "metrics": ["ndcg@100"],
        "common": {"settings": {"data": {"source": LOG}}},
        "axes": {
            "model": {
                "EASE": {"settings": {"model": {"name": "ease"}}},
                "VAE": {"settings": {"model": {"name": "mult_vae"}, "train": {"num_epochs": 3}}},
            }
        },
        **fields,
    }
    return checked(StudyFile, document, where="study")


def cells_of(**fields):
    return plan.cells(study_of(**fields), {})


def test_merging_replaces_a_table_of_another_kind_and_keeps_the_rest():
    one = {"model": {"name": "a", "x": 1, "deep": {"y": 2}}, "seed": 1}
    same = plan.merged(one, {"model": {"name": "a", "deep": {"z": 3}}})
    assert same == {"model": {"name": "a", "x": 1, "deep": {"y": 2, "z": 3}}, "seed": 1}
    assert plan.merged(one, {"model": {"name": "b"}}) == {"model": {"name": "b"}, "seed": 1}
    assert one["model"]["x"] == 1


def test_cells_are_all_combinations_less_those_left_out():
    axes = {
        "data": {"few": {}, "many": {"settings": {"data": {"source": {"num_users": 500}}}}},
        **study_of().model_dump()["axes"],
    }
    left_out = [{"where": {"data": ["many"], "model": ["EASE"]}, "is_left_out": True}]
    found = cells_of(axes=axes, overrides=left_out)
    assert [tuple(cell.options.values()) for cell in found] == [
        ("few", "EASE"),
        ("few", "VAE"),
        ("many", "VAE"),
    ]
    assert found[-1].file(3, {}).data.source.num_users == 500
    assert found[-1].file(3, {}).seed == 3


def test_overrides_come_last_and_only_where_they_are_meant():
    overrides = [{"where": {"model": ["VAE"]}, "settings": {"train": {"num_epochs": 9}}}]
    ease, vae = cells_of(overrides=overrides)
    assert vae.file(0, {}).train.num_epochs == 9
    assert ease.file(0, {}).train.num_epochs != 9


def test_bases_come_first_whether_a_path_or_a_table(tmp_path):
    path = tmp_path / "base.toml"
    path.write_text(
        'run = "r"\n[data]\nprepared = "d"\nsource = { format = "synthetic" }\n'
        '[model]\nname = "mult_vae"\n[train]\nnum_epochs = 7\nbatch_users = 32\n'
    )
    table = {"run": "r", "data": {"prepared": "d"}, "model": {"name": "mult_vae"}}
    table["train"] = {"num_epochs": 7, "batch_users": 32}
    common = {"settings": {"data": {"source": LOG}, "train": {"num_epochs": 2}}}
    for base in (str(path), table):
        (cell,) = cells_of(axes={"model": {"VAE": {"base": base}}}, common=common)
        file = cell.file(0, {})
        assert (file.train.num_epochs, file.train.batch_users) == (2, 32)
        assert file.data.prepared == file.run == "nowhere"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"compared": "mode"}, "no axis"),
        ({"baseline": "EASY"}, "no option"),
        ({"axes": {"model": {}}}, "has no options"),
        ({"overrides": [{"where": {"model": ["X"]}}]}, "overrides"),
        ({"figures": [{"kind": "lines", "x": "model"}]}, "numbers"),
        ({"figures": [{"kind": "likely_and_liked", "option": "no"}]}, "no option of"),
        ({"axes": {"model": {"A": {"labels_of": "B"}}}}, "no option of this axis"),
        ({"seeds": []}, "at least 1"),
    ],
)
def test_what_does_not_fit_is_one_message(fields, message):
    with pytest.raises(ConfigError, match=message):
        study_of(**fields)


def test_faults_of_all_run_files_come_at_once():
    axes = {"model": {"A": {"settings": {"model": {"name": "eas"}}}, "B": {}}}
    with pytest.raises(ConfigError) as raised:
        cells_of(axes=axes)
    assert "did you mean 'ease'" in str(raised.value)
    assert '"B"' in str(raised.value)


def test_only_fields_of_training_are_tuned():
    space = {"data.num_shards": {"values": [1, 2]}}
    axes = {"model": {"A": {"settings": {"model": {"name": "ease"}}, "space": space}}}
    with pytest.raises(ConfigError, match="do not affect training"):
        cells_of(axes=axes)


def test_an_address_depends_on_what_decides_the_result_and_on_nothing_else():
    _, vae = cells_of()

    def address(seed=0, data="d", root="/a", **changes):
        changes = {name.replace("__", "."): value for name, value in changes.items()}
        return plan.run_address(vae.file(seed, changes).training(), data, Folder(root))

    first = address()
    assert first == address()
    same = {"train__num_workers": 4, "run": "elsewhere", "evaluate__recall_at": [5]}
    assert all(address(**{name: value}) == first for name, value in same.items())
    other = {
        "train__num_epochs": 4, "train__patience": 2, "model__latent_width": 8, "seed": 1,
        "data": "e", "optimizer__learning_rate": 0.1, "evaluate__ndcg_at": [5],
    }  # fmt: skip
    found = {address(**{name: value}) for name, value in other.items()}
    assert len(found | {first}) == len(other) + 1


def test_an_address_does_not_depend_on_where_the_runs_are():
    axes = {
        "model": {
            "base": {"settings": {"model": {"name": "mult_vae"}}},
            "soft": {
                "settings": {
                    "model": {"name": "mult_vae"},
                    "objective": {"name": "soft_target", "label": {"kind": "stored"}},
                },
                "labels_of": "base",
            },
        }
    }
    _, soft = cells_of(axes=axes)
    assert soft.parents == ({"model": "base"},)
    assert [len(level) for level in plan.levels([*cells_of(axes=axes)])] == [1, 1]
    found = set()
    for root in ("/a", "/b/c"):
        file = soft.file(0, {"objective.label.path": f"{root}/labels/0123"})
        found.add(plan.run_address(file.training(), "d", Folder(root)))
    assert len(found) == 1


def test_a_parent_that_is_left_out_is_refused():
    axes = {"model": {"a": {"settings": {"model": {"name": "ease"}}}}}
    axes["model"]["b"] = {**axes["model"]["a"], "pretrained_by": ["a"]}
    left_out = [{"where": {"model": ["a"]}, "is_left_out": True}]
    with pytest.raises(ConfigError, match="left out"):
        plan.levels(cells_of(axes=axes, overrides=left_out))
