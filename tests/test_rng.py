import torch

from distrib.rng import CounterRng

USERS, DIMENSIONS = torch.arange(2000)[:, None], torch.arange(50)


def test_noise_belongs_to_the_user_not_to_the_batch():
    noise = CounterRng.of(seed=3, epoch=1)
    together = noise.normal(1, USERS, DIMENSIONS)
    alone = noise.normal(1, USERS[123:124], DIMENSIONS)
    assert torch.equal(together[123:124], alone)


def test_epochs_seeds_and_streams_differ():
    first = CounterRng.of(0, 0).uniform(1, USERS, DIMENSIONS)
    for other in (
        CounterRng.of(0, 1).uniform(1, USERS, DIMENSIONS),
        CounterRng.of(1, 0).uniform(1, USERS, DIMENSIONS),
        CounterRng.of(0, 0).uniform(2, USERS, DIMENSIONS),
    ):
        # 100,000 pairs of independent uniforms: correlation below 5 standard deviations
        assert abs(torch.corrcoef(torch.stack([first.flatten(), other.flatten()]))[0, 1]) < 0.016


def test_uniform_and_normal_have_their_moments():
    noise = CounterRng.of(5, 2)
    uniform, normal = noise.uniform(1, USERS, DIMENSIONS), noise.normal(2, USERS, DIMENSIONS)
    assert uniform.min() >= 0.0
    assert uniform.max() < 1.0
    assert abs(uniform.mean() - 0.5) < 0.005
    assert abs(uniform.var() - 1 / 12) < 0.002
    assert abs(normal.mean()) < 0.016
    assert abs(normal.std() - 1.0) < 0.012
    assert abs((normal**4).mean() - 3.0) < 0.2
    by_user = normal.mean(1)
    assert abs(by_user.std() * 50**0.5 - 1.0) < 0.08  # users are independent of each other
