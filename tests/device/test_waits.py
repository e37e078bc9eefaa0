"""How often the host may wait for a device: a budget for each model, and mutants it must catch."""

import pytest
import torch

from distrib import batch as batches
from distrib import devices
from distrib.models import Conv4RecConfig, MultVaeConfig
from tests.device.cases import MODELS, TRAINED
from tests.device.waits import waits_of_a_scored_batch, waits_of_an_update

OF_AN_UPDATE = {
    **dict.fromkeys(("biased_mf", "gmf", "mlp", "neumf", "conv_ncf"), 1),  # are all users known?
    "vae_bmf": 2,
    "gru4rec": 1,
    "sas_rec": 1,
}
"""Budgets above 0."""

OF_A_SCORED_BATCH = {
    **dict.fromkeys(("biased_mf", "gmf", "mlp", "neumf", "conv_ncf"), 3),
    "ease": 4,
    "item_knn": 4,
    "popularity": 3,
    "autorec": 3,
    "vae_bmf": 5,
    "youtube_dnn": 4,
    "deep_fm": 4,
    "gru4rec": 5,
    "sas_rec": 5,
}
"""Budgets above 2: ties at the end of a list, and the lists themselves."""


def listed(found):
    return "\n".join(f"{count} x {what} at {where}" for (what, where), count in found.items())


@pytest.mark.parametrize("config", TRAINED, ids=repr)
def test_an_update_keeps_its_budget(config, small):
    found = waits_of_an_update(config, small)
    assert found.total() <= OF_AN_UPDATE.get(config.name, 0), listed(found)


@pytest.mark.parametrize("config", MODELS, ids=repr)
def test_a_scored_batch_keeps_its_budget(config, small):
    found = waits_of_a_scored_batch(config, small)
    assert found.total() <= OF_A_SCORED_BATCH.get(config.name, 2), listed(found)


@pytest.mark.parametrize("config", [MultVaeConfig(hidden_width=16), Conv4RecConfig()], ids=repr)
def test_several_blocks_of_items_cost_one_wait(config, small):
    assert waits_of_an_update(config, small, block_items=17).total() == 1


def test_budgets_are_not_larger_than_they_need_to_be(small):
    for name, budget in OF_AN_UPDATE.items():
        most = max(waits_of_an_update(c, small).total() for c in TRAINED if c.name == name)
        assert most == budget, name
    for name, budget in OF_A_SCORED_BATCH.items():
        most = max(waits_of_a_scored_batch(c, small).total() for c in MODELS if c.name == name)
        assert most == budget, name


class TestMutants:
    """Changes that make the host wait, which the count must see."""

    config = MultVaeConfig(hidden_width=16, latent_width=8, input_dropout=0.5)

    def test_copies_from_memory_that_may_move(self, small, monkeypatch):
        for place in (batches, devices):
            monkeypatch.setattr(place, "sent", lambda part, device: part.to(device))
        assert waits_of_an_update(self.config, small).total() == 4

    def test_copies_that_are_waited_for(self, small, monkeypatch):
        for place in (batches, devices):
            monkeypatch.setattr(place, "sent", lambda part, device: part.pin_memory().to(device))
        assert waits_of_an_update(self.config, small).total() == 4

    def test_constants_that_are_sent_again(self, small, monkeypatch):
        def made(values, dtype, device):
            return torch.tensor(values, dtype=dtype, device=device)

        monkeypatch.setattr(batches, "constant", made)
        config = Conv4RecConfig(latent_width=8)
        assert waits_of_an_update(config, small).total() == 2

    def test_dropout_by_counting_what_is_left(self, small, monkeypatch):
        monkeypatch.setattr(
            "distrib.models.layers.left_out",
            lambda batch, keep_N: (batch.keep(keep_N), keep_N.nonzero().flatten()),
        )
        assert waits_of_an_update(self.config, small).total() == 2

    @pytest.mark.parametrize(
        "reading",
        [
            lambda norm: float(norm),
            lambda norm: norm.tolist(),
            lambda norm: norm.cpu(),
            lambda norm: bool(norm > 0),
            lambda norm: torch.bincount(norm.long()[None]),
            lambda norm: norm[None][norm[None] > 0],
        ],
        ids=["float", "tolist", "cpu", "bool", "bincount", "mask"],
    )
    def test_a_number_that_the_host_reads(self, reading, small):
        def update(engine, *given, **step):
            reading(type(engine).train_batch(engine, *given, **step).gradient_norm)

        assert waits_of_an_update(self.config, small, update=update).total() == 1
