"""Models of sequences: what they read, in which order, and how; faults that others have had."""

import math

import pytest
import torch
import torch.nn.functional as F

from distrib.batch import Batch
from distrib.models import DeepFmConfig, Gru4RecConfig, SasRecConfig, YoutubeDnnConfig
from distrib.models.sequential.layers import Ragged, causal_attention, dropout
from distrib.rng import CounterRng
from distrib.sequences import with_targets
from distrib.vocabulary import Catalog

LENGTH = 6
MODELS = [
    SasRecConfig(max_length=LENGTH, latent_width=8, heads=2),
    SasRecConfig(max_length=LENGTH, latent_width=8, block="gated", tied=False),
    Gru4RecConfig(max_length=LENGTH, latent_width=8, num_layers=2),
    YoutubeDnnConfig(max_length=LENGTH, latent_width=8, hidden_widths=(16,)),
    DeepFmConfig(max_length=LENGTH, latent_width=8, hidden_widths=(16,)),
]
every_model = pytest.mark.parametrize("config", MODELS, ids=lambda config: config.name)
HISTORIES = [[3, 1, 4, 1, 5], [9, 2], [], [6], [5, 3, 5, 8, 9, 7]]
USERS = [10, 11, 12, 13, 14]


def built(config, small):
    torch.manual_seed(0)
    return config.build(small.catalog).double()


def last_state(model, items):
    return model.encode(Batch.from_lists([items])).latent_RZ[0]


@every_model
def test_no_state_depends_on_what_comes_later(config, small):
    model = built(config, small)
    inputs, _ = with_targets(Batch.from_lists([HISTORIES[0]], users=[7]), LENGTH, every=True)
    other = inputs.histories.item_N.clone()
    other[2] = 40
    changed = inputs._replace(histories=inputs.histories._replace(item_N=other))
    one, two = (model.encode(read).latent_RZ for read in (inputs, changed))
    is_same_R = torch.isclose(one, two).all(1)
    assert is_same_R.tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("config", MODELS[2:], ids=lambda config: config.name)
def test_a_state_is_that_of_the_history_so_far(config, small):
    """But of SASRec, whose positions count from the end of what is read."""
    model = built(config, small)
    batch = Batch.from_lists(HISTORIES, users=USERS)
    inputs, _ = with_targets(batch, LENGTH, every=True)
    alone = [last_state(model, items[:n]) for items in HISTORIES for n in range(len(items))]
    torch.testing.assert_close(model.encode(inputs).latent_RZ, torch.stack(alone))


@every_model
def test_only_the_last_interactions_count_and_their_order_does(config, small):
    model = built(config, small)
    long, late = list(range(12)), list(range(6, 12))
    torch.testing.assert_close(last_state(model, long), last_state(model, late))
    is_ordered = not torch.allclose(last_state(model, late), last_state(model, late[::-1]))
    assert is_ordered == (config.name != "youtube_dnn")  # which averages


@every_model
def test_someone_without_history_has_the_learned_state(config, small):
    model = built(config, small)
    model.start_1Z.data.fill_(0.5)
    assert last_state(model, []).tolist() == [0.5] * 8
    scores = model.decode(model.encode(Batch.from_lists([[]])), slice(None))
    assert scores.shape == (1, small.catalog.item_count)  # there is no item that stands for padding


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_is_that_of_each_user_alone(heads):
    torch.manual_seed(0)
    batch = Batch.from_lists([[0] * n for n in (3, 0, 9, 1, 17, 8)])
    parts = [torch.randn(38, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    found = causal_attention(parts, Ragged.of(batch), heads)
    wanted = []
    for start, stop in zip(batch.pointer_P[:-1], batch.pointer_P[1:], strict=True):
        query, key, value = (
            part[start:stop].view(-1, heads, 8 // heads).transpose(0, 1) for part in parts
        )
        score = query @ key.transpose(1, 2) / math.sqrt(8 / heads)
        later = torch.ones(score.shape[1:], dtype=torch.bool).triu(1)
        mixed = score.masked_fill(later, -torch.inf).softmax(-1) @ value
        wanted.append(mixed.transpose(0, 1).reshape(-1, 8))
    torch.testing.assert_close(found, torch.cat(wanted))
    weight = torch.randn_like(found)
    one = torch.autograd.grad((found * weight).sum(), parts, retain_graph=True)
    two = torch.autograd.grad((torch.cat(wanted) * weight).sum(), parts)
    torch.testing.assert_close(one, two)


def test_short_histories_are_not_padded_to_the_longest():
    batch = Batch.from_lists([[0] * 3] * 100 + [[0] * 200])
    cells = sum(len(block.place_M) for block in Ragged.of(batch).blocks)
    assert cells == 100 * 3 + 200


def test_the_recurrent_unit_is_that_of_the_paper_step_by_step(small):
    """Reset before the product, own matrices for each gate, a state of zeros at each start."""
    model = built(Gru4RecConfig(max_length=LENGTH, latent_width=8), small)
    layer = model.layers[0]
    w_r, w_z, w_h = layer.input_ZG.split(8, dim=1)
    u_r, u_z = layer.gates_ZG.split(8, dim=1)
    layer.bias_G.data.normal_()
    b_r, b_z, b_h = layer.bias_G.split(8)
    for items in HISTORIES:
        state = torch.zeros(8, dtype=torch.float64)
        for item in items:
            read = model.input_IZ[item]
            reset = torch.sigmoid(read @ w_r + state @ u_r + b_r)
            update = torch.sigmoid(read @ w_z + state @ u_z + b_z)
            candidate = torch.tanh(read @ w_h + (reset * state) @ layer.candidate_ZZ + b_h)
            state = (1 - update) * state + update * candidate
        if items:
            torch.testing.assert_close(last_state(model, items), state)


def test_users_of_any_length_share_the_steps_and_keep_no_state(small):
    model = built(Gru4RecConfig(max_length=LENGTH, latent_width=8), small)
    together = model.encode(Batch.from_lists(HISTORIES)).latent_RZ
    torch.testing.assert_close(together, torch.stack([last_state(model, h) for h in HISTORIES]))
    assert torch.equal(model.encode(Batch.from_lists(HISTORIES)).latent_RZ, together)


def test_weights_of_the_recurrent_unit_are_glorot_uniform():
    catalog = Catalog(3000, (1.0,), torch.ones(3000, 1).long().numpy(), 10, 10)
    model = Gru4RecConfig(latent_width=64).build(catalog)
    layer = model.layers[0]
    squares = [*layer.input_ZG.split(64, dim=1), *layer.gates_ZG.split(64, dim=1)]
    for weight, bound in [(model.input_IZ, (6 / 3064) ** 0.5)] + [
        (w, (6 / 128) ** 0.5) for w in squares
    ]:
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


@every_model
def test_items_are_read_and_decoded_by_one_table_where_that_is_set(config, small):
    for is_tied in (True, False):
        model = built(config.model_copy(update={"tied": is_tied}), small)
        assert (model.item_tables()[0] is model.input_IZ) == is_tied


def test_dropout_drops_the_share_that_is_set_and_keeps_the_mean():
    batch = Batch.from_lists([[0] * 50] * 40, users=list(range(40)))
    ones = torch.ones(2000, 64)
    kept = dropout(ones, 0.25, CounterRng.of(0, 0), 1, batch)
    assert (kept == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert kept.max().item() == pytest.approx(1 / 0.75)
    assert torch.equal(dropout(ones, 0.25, None, 1, batch), ones)
    alone = dropout(ones[:50], 0.25, CounterRng.of(0, 0), 1, batch.slice(7, 8))
    assert torch.equal(alone, kept[350:400])
    again = dropout(ones, 0.25, CounterRng.of(0, 1), 1, batch)
    assert not torch.equal(again, kept)


@pytest.mark.parametrize("name", ["input_dropout", "dropout"])
def test_dropout_of_the_recurrent_model_reaches_what_it_should(name, small):
    config = Gru4RecConfig(max_length=LENGTH, latent_width=8, **{name: 0.5})
    model = built(config, small)
    batch = Batch.from_lists(HISTORIES, users=USERS)
    trained = model.encode(batch, CounterRng.of(0, 0)).latent_RZ
    plain = model.encode(batch).latent_RZ
    assert not torch.allclose(trained, plain)
    if name == "dropout":  # of what the layer returns: a number is dropped, or scaled up
        ratio = (trained / plain)[plain != 0]
        assert set(ratio.round(decimals=9).tolist()) == {0.0, 2.0}


def test_positions_of_the_last_interaction_are_those_of_every_length(small):
    model = built(SasRecConfig(max_length=LENGTH, latent_width=8), small)
    model.position_LZ.data[: LENGTH - 1] += 100.0
    before = last_state(model, [4])
    model.position_LZ.data[: LENGTH - 1] -= 50.0
    assert torch.equal(last_state(model, [4]), before)
    assert not torch.allclose(F.relu(before), torch.zeros(8, dtype=torch.float64))
