"""VAE-BMF against its equations taken literally, in float64, and its fast forms one by one."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from distrib.batch import Batch
from distrib.models import VaeBmfConfig
from distrib.models.autoencoders.vae_bmf import drawn
from distrib.models.autoencoders.vae_bmf_encoder import Posterior
from distrib.rng import CounterRng
from distrib.training.step import TrainStep, total
from tests.conftest import Small

WIDTHS = {"latent_width": 4, "branch_width": 6, "hidden_width": 8}
EXACT = {"rtol": 1e-10, "atol": 1e-10}
VARIANTS = {
    "full": {},
    "deep": {"branch_layers": 2, "fused_layers": 2},
    "A": {"latent": "none", "attention": "none", "branch_layers": 0},
    "B": {"attention": "none", "branch_layers": 0},
    "C": {"latent": "none", "attention": "none"},
    "D": {"attention": "none"},
    "no data": {"data": False},
    "biases": {"biases": True},
    "average": {"latent": "average"},
    "gated": {"latent": "gated"},
    "global": {"attention": "global"},
    "linear": {"attention_norm": "linear"},
    "linear safe": {"attention_norm": "linear_safe"},
    "global linear": {"attention": "global", "attention_norm": "linear"},
    "global linear safe": {"attention": "global", "attention_norm": "linear_safe"},
    "analytic": {"likelihood": "analytic"},
    "unbiased": {"kl_count": "unbiased"},
    "centered": {"centering": "means"},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


def doubled(part):
    """All floating tensors of a block in float64."""
    if isinstance(part, tuple):
        return type(part)(*map(doubled, part))
    is_floating = isinstance(part, torch.Tensor) and part.is_floating_point()
    return part.double() if is_floating else part


def model_of(small, variant):
    torch.manual_seed(1)
    model = VaeBmfConfig(**WIDTHS, **variant).network(small.catalog, None).double()
    for encoder in (model.users, model.items):
        for name, held in encoder.named_parameters():
            if "bias" in name:
                torch.nn.init.normal_(held, std=0.1)
        if hasattr(encoder, "delta_IH"):
            torch.nn.init.normal_(encoder.delta_IH, std=0.01)
        encoder._sum_up()
        encoder._tabulate()
    return model


@dataclasses.dataclass
class Literal:
    """One side as the paper writes it: dense ratings, the wide latent input, one net at a time."""

    encoder: torch.nn.Module
    config: VaeBmfConfig
    matrices: torch.Tensor | None

    @classmethod
    def of(cls, encoder, config):
        if config.latent != "full":
            return cls(encoder, config, None)
        step = encoder.code_IZ.sign()[:, :, None] * encoder.delta_IH.detach()[:, None]
        return cls(encoder, config, (encoder.matrix_IZH + step).requires_grad_())

    def __call__(self, batch):
        is_rated = torch.zeros(batch.num_users, len(self.encoder.code_IZ)).double()
        is_rated[batch.row_N, batch.item_N] = 1.0
        rating = torch.zeros_like(is_rated)
        rating[batch.row_N, batch.item_N] = batch.value_N
        offset = torch.zeros(batch.num_users).double()
        if self.config.centering == "means":
            rating = (rating - self.encoder.offset_I - self.encoder.mean) * is_rated
            mean = rating.sum(1) / (is_rated.sum(1) + 5.0)
            rating, offset = (rating - mean[:, None]) * is_rated, mean + self.encoder.mean
        (mean, bias), (variance, _) = (self._network(net, rating, is_rated) for net in range(2))
        return mean, F.logsigmoid(variance), offset + bias

    def _network(self, net, rating, is_rated):
        encoder, config, latent = self.encoder, self.config, self.encoder.code_IZ
        branches = []
        if config.data:
            weight = encoder.rating_IH.chunk(2, 1)[net]
            hidden = torch.relu(rating @ weight + encoder.rating_first.bias_W1H[net])
            branches.append(layers(encoder.rating_layers, net, hidden))
        if config.latent == "full":
            wide = (is_rated[:, :, None] * latent).flatten(1)  # [v_1 m_1, ..., v_J m_J]
            sums = wide @ self.matrices.chunk(2, 2)[net].flatten(0, 1)
        elif config.latent == "average":
            mean = is_rated @ latent / is_rated.sum(1, keepdim=True).clamp(min=1)
            sums = mean @ encoder.latent_WZH[net]
        elif config.latent == "gated":
            sums = (is_rated * encoder.gate_IW[:, net]) @ latent @ encoder.latent_WZH[net]
        if config.latent != "none":
            hidden = torch.relu(sums + encoder.latent_first.bias_W1H[net])
            branches.append(layers(encoder.latent_layers, net, hidden))
        fused = layers(encoder.fused_layers, net, torch.cat(branches, 1))
        output = fused @ encoder.output.weight_WHO[net] + encoder.output.bias_W1O[net]
        bias = (fused @ encoder.bias_H1)[:, 0] if config.biases else 0.0
        if config.attention == "none":
            return output, bias
        shown = torch.sigmoid(output) if net == 1 else output
        met = self._attended(shown @ encoder.query_WZZ[net], is_rated)
        both = torch.cat([shown, met], 1)
        return both @ encoder.refined.weight_WHO[net] + encoder.refined.bias_W1O[net], bias

    def _attended(self, query, is_rated):
        latent = self.encoder.code_IZ
        reach = is_rated if self.config.attention == "local" else torch.ones_like(is_rated)
        product = query @ latent.T
        if self.config.attention_norm == "softmax":
            score = (product / 4**0.5).masked_fill(reach == 0, -torch.inf)
            return torch.softmax(score, 1) @ latent
        product = product * reach
        denominator = product.sum(1, keepdim=True)
        if self.config.attention_norm == "linear_safe":
            floor = 0.1 * product.detach().abs().sum(1, keepdim=True)
            is_small = denominator.abs() < floor
            denominator = torch.where(is_small, floor * denominator.sign(), denominator)
        return product / denominator @ latent


def layers(stack, net, hidden):
    for layer in stack:
        hidden = torch.relu(hidden @ layer.weight_WHO[net] + layer.bias_W1O[net])
    return hidden


def literal_loss(model, block, noise):
    """Eq. 5 on a block: dense products, KL by torch.distributions."""
    config = model.config
    sides, latents, loss = [], [], 0.0
    for encoder, side, stream, weight in (
        (model.users, block.users, 1, config.user_kl_weight),
        (model.items, block.items, 2, config.item_kl_weight),
    ):
        literal = Literal.of(encoder, config)
        mean, log_variance, offset = literal(side.batch)
        posterior = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance))
        prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
        divergence = torch.distributions.kl_divergence(posterior, prior).sum()
        times = side.repeats_B[0] if config.kl_count == "unbiased" else 1.0
        loss = loss + weight * divergence / times
        found = Posterior(mean, log_variance, offset)
        sides.append((literal, found))
        latents.append(drawn(found, side.batch.user_B, noise, stream, block.step_1))
    (_, users), (_, items) = sides
    cells = block.pairs
    if config.likelihood == "analytic":
        square = (users.mean_BZ**2, items.mean_BZ**2)
        variance = (users.log_variance_BZ.exp(), items.log_variance_BZ.exp())
        spread = variance[0] @ variance[1].T + square[0] @ variance[1].T + variance[0] @ square[1].T
        latents = [users.mean_BZ, items.mean_BZ]
        loss = loss + spread[cells.row_N, cells.item_N].sum()
    rating = latents[0] @ latents[1].T + users.offset_B[:, None] + items.offset_B
    error = rating[cells.row_N, cells.item_N] - cells.value_N
    return loss + (error**2).sum(), [literal for literal, _ in sides]


def step_of(model):
    return TrainStep(model, model.config.spec.objective.build(None), block_items=7)


@every_variant
def test_loss_and_gradient_are_those_of_the_equations(variant, small):
    model = model_of(small, variant)
    block = doubled(next(small.tile_feed().batches(0)).inputs)
    noise = CounterRng.of(0, 0)
    loss = total(step_of(model)(block, block.pairs, noise, 0))
    wanted, sides = literal_loss(model, block, noise)
    torch.testing.assert_close(loss, wanted, **EXACT)
    named = [(n, p) for n, p in model.named_parameters() if "delta" not in n]
    ours = torch.autograd.grad(loss, [p for _, p in named], retain_graph=True)
    theirs = torch.autograd.grad(wanted, [p for _, p in named], retain_graph=True)
    for (name, _), one, other in zip(named, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, **EXACT, msg=name)
        assert other.abs().sum() > 0, name
    for literal in sides:
        if literal.matrices is None:
            continue
        encoder = literal.encoder
        (by_delta,) = torch.autograd.grad(loss, encoder.delta_IH, retain_graph=True)
        (by_matrix,) = torch.autograd.grad(wanted, literal.matrices, retain_graph=True)
        # The gradient of a matrix is of rank one, along the code of its column.
        by_table = by_delta / encoder.size_I[:, None]
        torch.testing.assert_close(
            encoder.code_IZ[:, :, None] * by_table[:, None], by_matrix, **EXACT
        )


def test_adam_on_the_small_table_is_adam_on_the_matrices(small):
    """Within a pass; to rounding, as epsilon is next to nothing."""
    model = model_of(small, {"attention": "none"})
    for encoder in (model.users, model.items):
        torch.nn.init.zeros_(encoder.delta_IH)
    sides = [Literal.of(side, model.config) for side in (model.users, model.items)]
    deltas = [side.encoder.delta_IH for side in sides]
    settings = {"lr": 1e-3, "eps": 1e-300}
    small_adam = torch.optim.Adam(deltas, **settings)
    large_adam = torch.optim.Adam([side.matrices for side in sides], **settings)
    gradients = []
    for batch, *_ in small.tile_feed().batches(0):
        block = doubled(batch)
        loss = total(step_of(model)(block, block.pairs, CounterRng.of(0, 0), 0))
        gradients.append(torch.autograd.grad(loss, deltas))
        for side, gradient in zip(sides, gradients[-1], strict=True):
            by_table = gradient / side.encoder.size_I[:, None]
            side.encoder.delta_IH.grad = gradient
            side.matrices.grad = side.encoder.code_IZ[:, :, None] * by_table[:, None]
        small_adam.step()
        large_adam.step()
    before = [side.encoder.base_IH.clone() for side in sides]
    model.end_epoch(0)
    for side, was in zip(sides, before, strict=True):
        torch.testing.assert_close(side.encoder.matrix_IZH, side.matrices, **EXACT)
        table = torch.einsum("ik,ikh->ih", side.encoder.code_IZ, side.matrices)
        torch.testing.assert_close(side.encoder.base_IH, table, **EXACT)
        assert (side.encoder.base_IH - was).abs().max() > 1e-3
        assert not side.encoder.delta_IH.any()


def test_folding_changes_nothing_that_is_computed(small):
    model = model_of(small, {})
    before = model.encode_users(doubled(small.batch))
    model.end_epoch(0)
    for one, other in zip(model.encode_users(doubled(small.batch)), before, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_what_is_read_of_the_other_side_is_what_was_fed(small):
    model = model_of(small, {})
    users, items = (
        Posterior(*(torch.randn(count, 4).double() for _ in range(2)), torch.randn(count).double())
        for count in (37, 50)
    )
    users.mean_BZ[5] = torch.nan
    matrices = model.users.matrix_IZH.clone()
    model.feed_latents(users, items, CounterRng.of(0, 0))
    wanted = drawn(items, torch.arange(50), CounterRng.of(0, 0), 4)
    torch.testing.assert_close(model.users.code_IZ, wanted)
    table = torch.einsum("ik,ikh->ih", wanted, matrices)
    torch.testing.assert_close(model.users.base_IH, table, **EXACT)
    assert model.items.is_there_I.tolist() == [float(n != 5) for n in range(37)]
    assert not model.items.code_IZ[5].any()


def test_the_variance_is_that_of_products_of_samples(small):
    """Closed form against two million draws: a percent is four standard errors."""
    model = model_of(small, {})
    state = model.encode(doubled(small.users([0])))
    cells = small.users([0])
    model.mean_IZ.normal_()
    model.variance_IZ.uniform_(0.1, 0.9)
    found = model.pair_variance(state, doubled(cells))
    draws = 2_000_000
    user = state.users.latent_BZ + state.users.variance_BZ.sqrt() * torch.randn(draws, 4).double()
    item = cells.item_N[0]
    other = model.mean_IZ[item] + model.variance_IZ[item].sqrt() * torch.randn(draws, 4).double()
    torch.testing.assert_close(found[0], (user * other).sum(1).var(), rtol=0.01, atol=0.0)


@pytest.mark.parametrize("order", ["nested", "shuffled", "edges"])
def test_a_pass_meets_every_rating_once_on_any_number_of_ranks(order, small):
    found = []
    for rank in range(3):
        feed = small.tile_feed(rank=rank, world_size=3, order=order, ratings=40)
        batches = list(feed.batches(2))
        assert len(batches) == feed.num_steps(2)
        for block, *_ in batches:
            numbers = block.pairs.user_B[block.pairs.row_N]
            items = block.items.batch.user_B[block.pairs.item_N]
            found += zip(
                numbers.tolist(), items.tolist(), block.pairs.value_N.tolist(), strict=True
            )
    batch = small.batch
    users = batch.user_B[batch.row_N]
    wanted = zip(users.tolist(), batch.item_N.tolist(), batch.value_N.tolist(), strict=True)
    assert sorted(found) == sorted(wanted)


@pytest.mark.parametrize("order", ["nested", "sequential", "edges"])
@pytest.mark.parametrize("count", ["literal", "unbiased"])
def test_ranks_together_have_the_loss_and_gradient_of_one(order, count):
    """One user has most of the ratings, so that some of four ranks have no users."""
    rows = [list(range(50)), *[[n % 50, (7 * n + 1) % 50] for n in range(11)]]
    small = Small.of(rows, [[float(1 + n % 5) for n in row] for row in rows], 50)
    model = model_of(small, {"kl_count": count, "input_dropout": 0.3})
    step = step_of(model)
    settings = {"order": order, "items": 25, "ratings": 40, "max_history": 20}
    for epoch in range(2):
        found = []
        for world_size in (1, 4):
            parts = [
                doubled(next(small.tile_feed(12, rank, world_size, **settings).batches(epoch)))
                for rank in range(world_size)
            ]
            model.zero_grad()
            assert len({part.size for part in parts}) == 1
            terms = [step(block, block.pairs, CounterRng.of(0, epoch), 0) for block, *_ in parts]
            sum(total(term) for term in terms).backward()
            gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            found.append(
                [sum(term[name] for term in terms) for name in sorted(terms[0])] + gradients
            )
        assert found[0][0] > 0
        torch.testing.assert_close(found[1], found[0], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("order", ["nested", "edges"])
def test_unbiased_divergences_add_up_to_one_for_each_row_of_a_pass(order, small):
    """Also where blocks are so small that some pairs hold no rating, and are passed over."""
    feed = small.tile_feed(4, order=order, items=5, ratings=40)
    parts = [{}, {}]
    for block, *_ in feed.batches(0):
        for part, side in zip(parts, (block.users, block.items), strict=True):
            for number, times in zip(side.batch.user_B.tolist(), side.repeats_B, strict=True):
                part[number] = part.get(number, 0.0) + 1.0 / float(times)
    assert order == "edges" or feed.num_steps(0) < 10 * 10
    for part in parts:
        assert list(part.values()) == pytest.approx([1.0] * len(part))


def test_blocks_are_even_and_depend_on_the_epoch(small):
    feed = small.tile_feed(users=10, items=10, order="shuffled")
    blocks = [[block for block, *_ in feed.batches(epoch)] for epoch in range(2)]
    users = {tuple(block.users.batch.user_B.tolist()) for block in blocks[0]}
    lengths = [sum(len(small.items[user]) for user in part) for part in users]
    assert sorted(map(len, users)) == [9, 9, 9, 10]
    assert max(lengths) < 1.3 * min(lengths)
    assert users != {tuple(block.users.batch.user_B.tolist()) for block in blocks[1]}


def test_a_feed_goes_on_from_any_step(small):
    whole = [block for block, *_ in small.tile_feed().batches(1)]
    rest = [block for block, *_ in small.tile_feed().batches(1, first_step=5)]
    assert len(rest) == len(whole) - 5
    for one, other in zip(rest, whole[5:], strict=True):
        assert torch.equal(one.pairs.value_N, other.pairs.value_N)
        assert torch.equal(one.step_1, other.step_1)


def test_turns_meet_all_ratings_of_one_side_against_last_latents(small):
    model = model_of(small, {"likelihood": "sampled"})
    feed = small.tile_feed(order="sequential")
    for epoch, (encoder, other) in enumerate(
        [(model.users, model.items), (model.items, model.users)]
    ):
        batches = list(feed.batches(epoch))
        assert sum(batch.size for batch in batches) == len(small.batch.item_N)
        block = doubled(batches[0].inputs)
        side = (block.users, block.items)[epoch]
        loss = step_of(model)(block, block.pairs, CounterRng.of(0, 0), 0)["squared_error"]
        latent = drawn(
            encoder(side), side.batch.user_B, CounterRng.of(0, 0), epoch + 1, block.step_1
        )
        rating = latent @ encoder.code_IZ.T
        error = rating[side.batch.row_N, side.batch.item_N] - side.batch.value_N
        torch.testing.assert_close(loss, (error**2).sum(), rtol=1e-6, atol=1e-6)
        model.zero_grad()
        loss.backward()
        assert all(p.grad is None for p in other.parameters())


def test_a_sampled_history_stands_for_the_whole(small):
    feed = small.tile_feed(max_history=3, order="edges", ratings=40)
    block = next(feed.batches(0)).inputs
    for side, whole in ((block.users, small.items), (block.items, None)):
        lengths = side.batch.length_B
        assert int(lengths.max()) == 3
        if whole is not None:
            full = torch.tensor([len(whole[number]) for number in side.batch.user_B.tolist()])
            torch.testing.assert_close(lengths * side.scale_B, full.float())
    again = next(small.tile_feed(max_history=3, order="edges", ratings=40).batches(0)).inputs
    assert torch.equal(again.items.batch.item_N, block.items.batch.item_N)


def test_an_item_that_training_never_saw_is_encoded_from_its_ratings(small):
    model = model_of(small, {})
    alone = model.encode_items(Batch.from_lists([[1, 2]], [[5.0, 4.0]]))
    pair = model.encode_items(Batch.from_lists([[3], [1, 2]], [[1.0], [5.0, 4.0]]))
    torch.testing.assert_close(alone.mean_BZ[0], pair.mean_BZ[1])
    assert (pair.mean_BZ[0] - pair.mean_BZ[1]).abs().max() > 1e-3


def test_settings_that_leave_nothing_to_read_are_refused():
    with pytest.raises(ValueError, match="leaves nothing to read"):
        VaeBmfConfig(data=False, latent="none")
    with pytest.raises(ValueError, match=r"\(25, 10, 50\)"):
        VaeBmfConfig(branch_width=10)
