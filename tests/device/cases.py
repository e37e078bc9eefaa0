"""Every model with every objective, and what they compute on some device."""

import torch

from distrib.models import Conv4RecConfig, MultVaeConfig, VaeBmfConfig
from distrib.models.capabilities import item_vectors
from distrib.objectives import (
    BinaryConfig,
    InverseDualConfig,
    InverseDualRowsConfig,
    InverseGradientConfig,
    InverseGradientRowsConfig,
    MultinomialConfig,
    PositiveUnlabeledConfig,
    RatingClassesConfig,
    TruncatedConfig,
)
from distrib.rng import CounterRng
from distrib.training.engines.config import EngineConfig
from distrib.training.engines.local import LocalEngine
from distrib.training.optimizer import OptimizerConfig
from distrib.training.schemes import iterative_scheme_of
from distrib.training.step import total
from tests.conftest import Small
from tests.device.stand_in import CudaTensor
from tests.in_process import filled, network_of, run_of, whole_batch
from tests.models.test_contract import CASES

OPTIMIZER = OptimizerConfig(weight_decay=0.01, gradient_clipping=1.0)
WIDTHS = {"latent_width": 8, "branch_width": 8, "hidden_width": 8}
VAE_BMF = [
    VaeBmfConfig(
        **WIDTHS, latent="average", attention="none", biases=True, input_dropout=0.3,
        kl_count="unbiased",
    ),
    VaeBmfConfig(**WIDTHS, latent="full", attention="global", likelihood="analytic",
                 centering="means"),
    VaeBmfConfig(**WIDTHS, latent="full", attention="local", attention_norm="linear_safe"),
    VaeBmfConfig(**WIDTHS, latent="gated", attention="global", attention_norm="linear",
                 biases=True, data=False),
    VaeBmfConfig(**WIDTHS, latent="none", attention="local", attention_norm="linear",
                 input_dropout=0.2, centering="means", kl_count="unbiased"),
]  # fmt: skip
MODELS = [*CASES, *VAE_BMF]
TRAINED = [case for case in MODELS if case.spec.scheme != "closed_form"]
EMBEDDED = [case for case in MODELS if item_vectors(filled(case, Small())) is not None]


def objectives_of(config):
    found = [config.spec.objective]
    if config.spec.objective.name == "multinomial":
        found += [MultinomialConfig(num_sampled=20), BinaryConfig(), BinaryConfig(num_sampled=20)]
    if config.spec.objective.name == "rating_classes":
        found.append(RatingClassesConfig(num_sampled=20))
    if config.spec.output == "log_odds":
        found += [PositiveUnlabeledConfig(), TruncatedConfig(gradual_steps=1)]
        found += [InverseDualConfig(), InverseGradientConfig(form="sketched")]
    if config.spec.scheme == "user_rows" and isinstance(config, MultVaeConfig | Conv4RecConfig):
        base = {"base": config.spec.objective, "warmup_steps": 1}
        found += [InverseDualRowsConfig(**base), InverseGradientRowsConfig(**base)]
    return found


PAIRS = [(model, objective) for model in TRAINED for objective in objectives_of(model)]


def step_of(config, objective, small, *, dtype=torch.float32, keep_output_mb=0):
    run, loss = run_of(config, objective), objective.build(small.catalog)
    engine = EngineConfig(block_items=17, keep_output_mb=keep_output_mb)
    step = iterative_scheme_of(run).step(network_of(run, small), loss, engine)
    return step.to(dtype), whole_batch(run, small)


def engine_of(config, objective, small, device, *, dtype=torch.float32):
    step, batch = step_of(config, objective, small)
    return LocalEngine(step.to(device), OPTIMIZER, dtype=dtype), batch


def update(engine, batch, step):
    engine.train_batch(batch, CounterRng.of(0, 0), step=step)


def losses_and_gradients(step, batch, device):
    inputs, target, _ = batch.to(device)
    terms = step(inputs, target, CounterRng.of(0, 0), 3)
    total(terms).backward()
    gradients = {n: p.grad for n, p in step.named_parameters() if p.grad is not None}
    return {name: term.detach() for name, term in terms.items()}, gradients


def assert_equal(expected, found, tolerance=1e-4):
    """Compare results, which have to be on the CPU, at any depth of tuples."""
    if expected is None:
        assert found is None
    elif isinstance(expected, tuple):
        for one, other in zip(expected, found, strict=True):
            assert_equal(one, other, tolerance)
    else:
        assert not isinstance(found, CudaTensor)
        torch.testing.assert_close(expected, found, rtol=tolerance, atol=tolerance, equal_nan=True)
