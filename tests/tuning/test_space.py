"""What is drawn, and where it goes."""

import pytest

from distrib.tuning.space import Choice, Range, SearchConfig, settings_of, with_settings

SPACE = {
    "model.width": Choice(values=(10, 20, 30)),
    "optimizer.learning_rate": Range(low=1e-4, high=1e-1, scale="log"),
    "train.num_epochs": Range(low=2, high=5),
    "seed": Range(low=-2, high=2),
    "model.dropout": Range(low=0.0, high=0.5),
}


def test_draws_lie_in_the_space_and_fill_it():
    config = SearchConfig(space=SPACE)
    drawn = [settings_of(config, trial) for trial in range(300)]
    assert {d["model.width"] for d in drawn} == {10, 20, 30}
    assert {d["train.num_epochs"] for d in drawn} == {2, 3, 4, 5}
    assert {d["seed"] for d in drawn} == {-2, -1, 0, 1, 2}
    rates = [d["optimizer.learning_rate"] for d in drawn]
    assert all(1e-4 <= rate <= 1e-1 for rate in rates)
    assert 0.25 < sum(rate < 1e-3 for rate in rates) / 300 < 0.42  # a third of three decades
    assert 0.4 < sum(d["model.dropout"] < 0.25 for d in drawn) / 300 < 0.6


def test_a_draw_depends_on_seed_trial_and_field_alone():
    config = SearchConfig(space=SPACE, num_trials=5)
    more = SearchConfig(space={**SPACE, "model.depth": Choice(values=(1, 2))}, num_trials=50)
    for trial in range(5):
        drawn = settings_of(more, trial)
        assert settings_of(config, trial) == {name: drawn[name] for name in SPACE}
    other = SearchConfig(space=SPACE, seed=1)
    assert settings_of(config, 0) != settings_of(other, 0)


def test_trials_try_every_value_of_a_choice_before_any_again():
    config = SearchConfig(space={name: Choice(values=(1, 2, 3, 4, 5)) for name in "ab"})
    drawn = [settings_of(config, trial) for trial in range(20)]
    turns = [drawn[first : first + 5] for first in range(0, 20, 5)]
    for name in "ab":
        assert all(sorted(d[name] for d in turn) == [1, 2, 3, 4, 5] for turn in turns)
        assert len({tuple(d[name] for d in turn) for turn in turns}) > 1
    assert [d["a"] for d in drawn] != [d["b"] for d in drawn]


def test_settings_go_into_sections_that_are_there_and_that_are_not():
    document = {"seed": 0, "model": {"name": "elsa", "width": 3}}
    settings = {"model.width": 5, "train.checkpoint.keep": 1, "seed": 2}
    assert with_settings(document, settings) == {
        "seed": 2,
        "model": {"name": "elsa", "width": 5},
        "train": {"checkpoint": {"keep": 1}},
    }
    assert document["model"]["width"] == 3


@pytest.mark.parametrize(
    "wrong", [{"low": 2, "high": 2}, {"low": 0.0, "high": 1.0, "scale": "log"}]
)
def test_an_empty_range_is_refused(wrong):
    with pytest.raises(ValueError, match="low must be below"):
        Range(**wrong)
