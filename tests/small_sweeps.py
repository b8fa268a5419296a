"""Sweeps drawn from a known law: what a fit must find again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from tokenwm.scaling.runs.runs import RunPoint

LAW: Mapping[str, float] = MappingProxyType(
    # Besiroglu et al. 2024, table 1.
    {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
)
SMALL_LAW: Mapping[str, float] = MappingProxyType(
    # Its optimum lies within SIZES × TOKENS.
    {"E": 1.2, "A": 60.0, "B": 200.0, "alpha": 0.35, "beta": 0.37}
)
SIZES = tuple(np.geomspace(3e4, 3e6, 5))
TOKENS = tuple(np.geomspace(2e6, 2e8, 5))


def law_loss(num_parameters: float, num_tokens: float, law: Mapping[str, float]) -> float:
    by_size = law["A"] / num_parameters ** law["alpha"]
    return law["E"] + by_size + law["B"] / num_tokens ** law["beta"]


def grid_points(
    sizes: Sequence[float] = SIZES,
    tokens: Sequence[float] = TOKENS,
    *,
    noise: float = 0.003,
    seed: int = 0,
    law: Mapping[str, float] = SMALL_LAW,
) -> list[RunPoint]:
    """Every size with every number of tokens; noise is the standard deviation of log loss."""
    random = np.random.default_rng(seed)
    return [
        RunPoint(
            path=f"n{row}_d{column}",
            num_parameters=float(size),
            num_tokens=float(count),
            flops=6.0 * float(size) * float(count),
            loss=law_loss(size, count, law) * float(np.exp(noise * random.standard_normal())),
            learning_rate=1e-3,
            seed=0,
            num_epochs=1.0,
            num_steps=float(count) / 1000.0,
            seconds=6.0 * float(size) * float(count) / 1e10,
        )
        for row, size in enumerate(sizes)
        for column, count in enumerate(tokens)
    ]


def level_points(
    levels: Sequence[float] = (1e12, 4e12, 1.6e13, 6.4e13),
    *,
    num_sizes: int = 7,
    noise: float = 0.002,
    seed: int = 0,
    law: Mapping[str, float] = SMALL_LAW,
) -> list[RunPoint]:
    """Sizes around the best one at each level of compute, as IsoFLOP sweeps have them."""
    random = np.random.default_rng(seed)
    points = []
    for row, flops in enumerate(levels):
        best = best_size(flops, law)
        for column, size in enumerate(best * np.geomspace(1 / 6, 6, num_sizes)):
            loss = law_loss(size, flops / 6.0 / size, law)
            points.append(
                RunPoint(
                    path=f"c{row}_n{column}",
                    num_parameters=float(size),
                    num_tokens=float(flops / 6.0 / size),
                    flops=float(flops),
                    loss=loss * float(np.exp(noise * random.standard_normal())),
                )
            )
    return points


def best_size(flops: float, law: Mapping[str, float]) -> float:
    """N* of the law with C = 6 N D, as Hoffmann et al. 2022 have it."""
    ratio = law["alpha"] * law["A"] / (law["beta"] * law["B"])
    power = 1.0 / (law["alpha"] + law["beta"])
    return float(ratio**power * (flops / 6.0) ** (law["beta"] * power))


def with_metrics(points: Sequence[RunPoint]) -> list[RunPoint]:
    """PSNR that falls with the loss, and a figure that has nothing to do with it."""
    random = np.random.default_rng(3)
    return [
        replace(
            point,
            metrics={
                "rollout_psnr@5": 40.0 - 8.0 * point.loss,
                "unrelated": float(random.standard_normal()),
            },
        )
        for point in points
    ]


def at_other_rates(point: RunPoint, losses: Mapping[float, float]) -> list[RunPoint]:
    """Runs that check the learning rate of one: rate → loss as a multiple of its loss."""
    return [
        replace(
            point,
            path=f"learning_rate/{point.path}_lr{rate:g}",
            learning_rate=rate,
            loss=factor * point.loss,
        )
        for rate, factor in losses.items()
    ]


def write_sweep(folder: Path, points: Sequence[RunPoint]) -> Path:
    """A sweep folder as ``tokenwm sweep run`` leaves it; a path with a folder is kept as it is."""
    for point in points:
        run = folder / ("." if "/" in point.path else "runs") / point.path
        run.mkdir(parents=True)
        values = asdict(point)
        del values["path"]
        (run / "result.json").write_text(json.dumps(values))
    return folder
