"""What each dial of soft targets does, drawn: both weights, the clusters, and either half.

``python -m tests.benchmarks.soft_target_dials configs/diginetica_youtube_dnn.toml docs`` writes
two PNGs. Everything is measured on validation; `tests.benchmarks.frequent_items` makes a data set
on which it takes an hour. The curve in the first picture is what a coupled label can reach: with
lambda as its share and z its mean mass on the target, lambda_2 = 1 / (1 + lambda (1 - z)).
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from distrib.cli import connected
from tests.benchmarks.quality import Spread, measured, spread
from tests.benchmarks.soft_target import inline, softened
from tests.world import ANY_LABEL

METRIC, LABEL = "ndcg@10", "validation NDCG@10"
SHARES, WEIGHTS = (0.1, 0.3, 0.5, 0.7, 0.9), (0.3, 0.5, 0.7, 0.8, 0.9)
CLUSTERS, SHUFFLED = (1, 4, 16, 64, 256), (0.0, 0.25, 0.5, 0.75, 1.0)


class Dials:
    """Runs of one run file; what is done already is not done again."""

    def __init__(self, path: str, given: argparse.Namespace) -> None:
        self.path, self.given = path, given
        self.masses: list[float] = []
        """Mean mass of the soft labels on the target, of each seed."""

        for seed in given.seeds:
            self._run(seed, "base", [])
            found = softened(path, given.set, self._base(seed), "soft_labels")
            self.masses.append(found["mass_on_target"])

    def _base(self, seed: int) -> str:
        return f"{self.given.runs}/base/{Path(self.path).stem}-{seed}"

    def _run(self, seed: int, place: str, settings: list[str]) -> float:
        found = measured(
            self.path, [*self.given.set, *settings], seed, f"{self.given.runs}/{place}"
        )
        return float(found["valid"][METRIC])

    def base(self) -> Spread:
        """Measure the cross-entropy."""
        return spread([self._run(seed, "base", []) for seed in self.given.seeds])

    def at(
        self, share: float, weight: float, seeds: list[int] | None = None, **labels: Any
    ) -> Spread:
        """Measure one setting of the weights, with labels made in another way."""
        name = "-".join(f"{key}-{value}" for key, value in labels.items()) or "soft_labels"
        found = []
        for seed in self.given.seeds if seeds is None else seeds:
            run = self._base(seed)
            if labels:
                softened(self.path, self.given.set, run, name, **labels, **ANY_LABEL)
            label = {"kind": "stored", "path": f"{run}/{name}"}
            objective = {"name": "soft_target", "label": label}
            objective |= {"label_share": share, "target_weight": weight}
            place = f"dials-{share}-{weight}-{name}"
            found.append(self._run(seed, place, [f"objective={inline(objective)}"]))
        return spread(found)


def surface(dials: Dials, path: Path) -> None:
    """Draw both weights, and what coupled labels can reach."""
    first = dials.given.seeds[:1]
    value_WS = np.array([[dials.at(s, w, first)[0] for s in SHARES] for w in WEIGHTS])
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.add_subplot()
    image = axes.contourf(SHARES, WEIGHTS, value_WS, levels=12)
    places_WS = np.meshgrid(SHARES, WEIGHTS)
    axes.scatter(*places_WS, color="white", s=8)
    best = np.unravel_index(value_WS.argmax(), value_WS.shape)
    axes.scatter(SHARES[best[1]], WEIGHTS[best[0]], marker="*", s=160, color="white")
    share_S = np.linspace(SHARES[0], SHARES[-1], 100)
    coupled_S = 1.0 / (1.0 + share_S * (1.0 - dials.masses[0]))
    axes.plot(share_S, coupled_S, color="tab:red", linewidth=2, label="reach of coupled labels")
    axes.set_ylim(WEIGHTS[0], 1.0)
    axes.set_xlabel(r"$\lambda_1$ (label_share)")
    axes.set_ylabel(r"$\lambda_2$ (target_weight)")
    axes.legend(loc="lower left")
    figure.colorbar(image, label=LABEL)
    figure.savefig(path, dpi=110)


def lines(dials: Dials, path: Path, share: float, weight: float) -> None:
    """Draw the number of clusters, either half of the loss, and clusters made worse."""
    base = dials.base()
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    by_clusters = [dials.at(share, weight, num_clusters=n) for n in CLUSTERS]
    _line(axes[0], CLUSTERS, by_clusters, "clusters")
    axes[0].set_xscale("log")
    halves = {
        "cross-\nentropy": base,
        "confidence\nonly": dials.at(share, 1.0),
        "others\nonly": dials.at(0.0, weight),
        "both": dials.at(share, weight),
    }
    means, errors = zip(*halves.values(), strict=True)
    axes[1].errorbar(range(len(halves)), means, errors, fmt="o", capsize=4)
    axes[1].set_xticks(range(len(halves)), halves)
    axes[1].set_xlabel("half of the loss that is softened")
    worse = [dials.at(share, weight, shuffled_share=s) for s in SHUFFLED]
    _line(axes[2], SHUFFLED, worse, "share of users in a cluster at random")
    axes[0].set_ylabel(LABEL)
    for place in (0, 2):
        axes[place].axhline(base[0], color="tab:gray", linestyle="--", label="cross-entropy")
        axes[place].legend()
    for panel in axes:
        panel.grid(visible=True, alpha=0.3)
    figure.savefig(path, dpi=110)


def _line(axes: Any, places: tuple[float, ...], found: list[Spread], name: str) -> None:
    means, errors = zip(*found, strict=True)
    axes.errorbar(places, means, errors, marker="o", capsize=4, label="decoupled")
    axes.set_xlabel(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("target", type=Path, help="folder for the pictures")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=["train.num_workers=1"])
    parser.add_argument("--runs", default="runs/soft_target", help="folder for the runs")
    parser.add_argument("--share", type=float, default=0.3, help="label_share of the lines")
    parser.add_argument("--weight", type=float, default=0.7, help="target_weight of the lines")
    given = parser.parse_args()
    with connected():
        dials = Dials(given.config, given)
        lines(dials, given.target / "soft_target_lines.png", given.share, given.weight)
        surface(dials, given.target / "soft_target_weights.png")


if __name__ == "__main__":
    main()
