"""Training by updates of a few shapes, or without."""

import torch

from distrib.rng import CounterRng
from distrib.training.engines.graphs import why_not
from distrib.training.engines.local import LocalEngine
from distrib.training.optimizer import OptimizerConfig
from distrib.training.schemes import iterative_scheme_of
from tests.device.stand_in import values_of
from tests.in_process import CPU, feed_of, run_of, step_of

ADAM = OptimizerConfig(learning_rate=1e-3, weight_decay=0.01, gradient_clipping=0.5)
ALL = 1_000  # items in one block


def reason_against(config, objective, small, *, num_parts=1, rule="adamw", on_gpu=False, items=ALL):
    run = run_of(config, objective)
    decodes = iterative_scheme_of(run).decodes_inputs
    step = step_of(run, small, items)
    return why_not(
        step,
        rule,
        decodes_inputs=decodes,
        has_user_rows=config.spec.has_user_rows,
        num_parts=num_parts,
        on_gpu=on_gpu,
    )


def trained(config, objective, small, runner, rule=ADAM, *, device=CPU, dtype=torch.float32):
    """Losses, norms and weights of updates over three epochs, in batches of 10 rows and a rest."""
    run = run_of(config, objective, batch_users=10)
    step = step_of(run, small, ALL).to(device)
    engine = LocalEngine(step, rule, dtype=dtype, runner=runner)
    feed, updates, number = feed_of(iterative_scheme_of(run), run, small), [], 0
    for epoch in range(3):
        engine.begin_epoch(epoch)
        for batch in feed.batches(epoch):
            done = engine.train_batch(batch, CounterRng.of(1, epoch), step=number)
            updates.append(values_of({**done.terms, "norm": done.gradient_norm}))
            number += 1
    return updates, engine.weights()
