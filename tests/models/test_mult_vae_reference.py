"""Mult-VAE through the whole pipeline against a plain PyTorch loop, on real ML-1M."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distrib.config import load
from distrib.data.prepare.job import prepare
from distrib.data.schema import Role, Subset
from distrib.evaluation.job import evaluate
from distrib.run_file import RunFile
from distrib.training.workers.launch import launch

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]


class Plain(nn.Module):
    """The network of the paper as anyone would write it, on multi-hot rows."""

    def __init__(self, num_items):
        super().__init__()
        self.first, self.latent = nn.Linear(num_items, 600), nn.Linear(600, 400)
        self.back, self.last = nn.Linear(200, 600), nn.Linear(600, num_items)
        for layer in (self.first, self.latent, self.back, self.last):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.trunc_normal_(layer.bias, std=0.001, a=-0.002, b=0.002)

    def forward(self, x):
        x = F.dropout(F.normalize(x, dim=1), 0.5, self.training)
        mean, log_variance = self.latent(torch.tanh(self.first(x))).chunk(2, dim=1)
        z = mean
        if self.training:
            z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return self.last(torch.tanh(self.back(z))), mean, log_variance


def multi_hot(rows, num_items):
    x = torch.zeros(len(rows), num_items)
    for place, row in enumerate(rows):
        x[place, row] = 1.0
    return x


def split_of(folder):
    """Training rows, and (input, targets) of validation and test users, from the Parquet files."""
    table = pq.read_table(f"{folder}/histories").to_pylist()
    train = [row["items"] for row in table if row["subset"] == Subset.TRAIN]

    def held_out(subset, target):
        return [
            (
                [
                    i
                    for i, role in zip(row["items"], row["roles"], strict=True)
                    if role == Role.INPUT
                ],
                {i for i, role in zip(row["items"], row["roles"], strict=True) if role == target},
            )
            for row in table
            if row["subset"] == subset and target in row["roles"]
        ]

    valid, test = (Subset.VALID, Role.VALID_TARGET), (Subset.TEST, Role.TEST_TARGET)
    return train, held_out(*valid), held_out(*test)


def ndcg_100(model, users, num_items):
    model.eval()
    x = multi_hot([given for given, _ in users], num_items)
    with torch.no_grad():
        score = model(x)[0].masked_fill(x > 0, -math.inf).numpy()
    found = []
    for row, (_, wanted) in zip(score, users, strict=True):
        top = np.argsort(-row)[:100]
        gained = sum(1 / math.log2(r + 2) for r, item in enumerate(top) if item in wanted)
        found.append(gained / sum(1 / math.log2(r + 2) for r in range(min(100, len(wanted)))))
    return np.mean(found), np.std(found) / len(found) ** 0.5


def plain_result(folder, file):
    torch.manual_seed(0)
    train, valid, test = split_of(folder)
    num_items = pq.read_metadata(f"{folder}/items.parquet").num_rows
    model = Plain(num_items)
    optimizer = torch.optim.Adam(model.parameters(), lr=file.optimizer.learning_rate)
    objective, step, best, weights = file.objective, 0, -1.0, None
    for _ in range(file.train.num_epochs):
        model.train()
        order = np.random.default_rng(step).permutation(len(train))
        for start in range(0, len(order), file.train.batch_users):
            x = multi_hot(
                [train[u] for u in order[start : start + file.train.batch_users]], num_items
            )
            logits, mean, log_variance = model(x)
            likelihood = -(F.log_softmax(logits, dim=1) * x).sum(1).mean()
            kl = (0.5 * (log_variance.exp() + mean**2 - 1 - log_variance)).sum(1).mean()
            beta = min(objective.kl_weight, step / objective.anneal_steps)
            optimizer.zero_grad()
            (likelihood + beta * kl).backward()
            optimizer.step()
            step += 1
        if (now := ndcg_100(model, valid, num_items)[0]) > best:
            best, weights = now, {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(weights)
    return ndcg_100(model, test, num_items)


def test_the_pipeline_is_as_good_as_a_plain_loop(cluster, real_data, tmp_path):
    overrides = [f'run="{tmp_path}/run"', f'data.prepared="{tmp_path}/data"']
    file = load(
        RunFile,
        ROOT / "configs/ml1m_mult_vae.toml",
        overrides=overrides,
        environment={"DISTRIB_DATA": str(real_data)},
    )
    prepare(file.data)
    launch(file.training())
    ours = evaluate(file.run, file.data.prepared, file.evaluate).metrics
    plain, error = plain_result(file.data.prepared, file)
    model, popularity = (ours[name]["ndcg@100"].mean for name in ("model", "popularity"))
    print(json.dumps({"ours": model, "plain": plain, "error": error, "popularity": popularity}))
    assert model >= plain - error
    assert model >= 1.5 * popularity
