"""Share of intervals of `tokenwm sweep fit` that hold the truth, in simulated sweeps, as JSON.

    python tools/scaling_coverage.py --sweeps 1000

Each sweep is a grid of 5 sizes × 5 token budgets whose losses follow a known law, but for noise of
log loss from run to run. docs/results/scaling.md has the figures. 1,000 sweeps at three noises take
a few minutes on one core.
"""

import argparse
import json
from collections.abc import Mapping

import numpy as np

from tokenwm.scaling.law.fit import FitConfig
from tokenwm.scaling.law.law import Laws, TrainingCost, best_log_n
from tokenwm.scaling.law.parametric import DELTA, resample
from tokenwm.scaling.law.solve import Array, Problem, solve

LAW: Mapping[str, float] = {"E": 1.2, "A": 60.0, "B": 200.0, "alpha": 0.35, "beta": 0.37}
"""The best size lies within the grid."""
SIZES = np.geomspace(3e4, 3e6, 5)
TOKENS = np.geomspace(2e6, 2e8, 5)
QUANTITIES = ("E", "log A", "log B", "alpha", "beta", "log N*", "loss at N*")
AT_ONCE = 50
"""Sweeps fitted at once, which bounds the memory."""


def quantities(law: Laws, log_budget: float) -> Array:
    """``QUANTITIES`` of R laws, (R, 7)."""
    cost = TrainingCost(log_factor=float(np.log(6.0)), bend=0.0, largest_error=0.0)
    log_n = best_log_n(law, cost, log_budget)
    loss = law.loss(log_n, log_budget - np.log(6.0) - log_n)
    found = [law.irreducible, law.log_a, law.log_b, law.alpha, law.beta, log_n, loss]
    return np.stack(found, axis=-1)


def coverage(
    *, num_sweeps: int, num_replicates: int, noise: float, heavy_tails: bool = False, seed: int = 1
) -> dict[str, float]:
    """Share of the sweeps whose interval holds the truth, by quantity, 0 to 1.

    Args:
        num_sweeps: Simulated sweeps.
        num_replicates: Fits with random weights for each.
        noise: Of log loss, from run to run; its standard deviation if normal.
        heavy_tails: Whether it is Student's with 4 degrees of freedom instead.
        seed: Of noise and weights.
    """
    truth = Laws(
        irreducible=np.array([LAW["E"]]),
        log_a=np.log([LAW["A"]]),
        log_b=np.log([LAW["B"]]),
        alpha=np.array([LAW["alpha"]]),
        beta=np.array([LAW["beta"]]),
    )
    log_n, log_d = (grid.ravel() for grid in np.meshgrid(np.log(SIZES), np.log(TOKENS)))
    log_budget = float((np.log(6.0) + log_n + log_d).max() + np.log(10.0))
    expected = quantities(truth, log_budget)
    random = np.random.default_rng(seed)
    tail = 50.0 * (1.0 - FitConfig.confidence)
    num_held = np.zeros(len(QUANTITIES))
    for first in range(0, num_sweeps, AT_ONCE):
        shape = (min(AT_ONCE, num_sweeps - first), len(log_n))
        draws = random.standard_t(4, shape) if heavy_tails else random.standard_normal(shape)
        problem = Problem(
            x=log_n - log_n.mean(),
            y=log_d - log_d.mean(),
            log_loss=np.log(truth.loss(log_n, log_d)) + noise * draws,
            weights=np.ones((1, len(log_n))),
            delta=DELTA,
        )
        replicates = resample(solve(problem), problem, num_replicates, seed=seed + 1 + first)
        laws = Laws.from_centred(replicates.reshape(-1, 5), log_n.mean(), log_d.mean())
        found = quantities(laws, log_budget).reshape(*replicates.shape[:2], -1)
        low, high = np.percentile(found, [tail, 100.0 - tail], axis=1)
        num_held += ((low <= expected) & (expected <= high)).sum(axis=0)
    return dict(zip(QUANTITIES, (num_held / num_sweeps).tolist(), strict=True))


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sweeps", type=int, default=1000, help="default: %(default)s")
    parser.add_argument(
        "--replicates",
        type=int,
        default=200,
        help="fits with random weights of each sweep (default: %(default)s; sweep fit has "
        f"{FitConfig.num_replicates})",
    )
    parser.add_argument(
        "--noise",
        type=float,
        nargs="+",
        default=[0.002, 0.004, 0.01],
        help="of log loss (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    arguments = parser.parse_args()
    results = [
        {
            "noise": noise,
            "heavy_tails": heavy_tails,
            "coverage": coverage(
                num_sweeps=arguments.sweeps,
                num_replicates=arguments.replicates,
                noise=noise,
                heavy_tails=heavy_tails,
                seed=arguments.seed,
            ),
        }
        for noise in arguments.noise
        for heavy_tails in (False, True)
    ]
    settings = {
        "confidence": FitConfig.confidence,
        "runs": len(SIZES) * len(TOKENS),
        "sweeps": arguments.sweeps,
        "replicates": arguments.replicates,
        "seed": arguments.seed,
        "law": dict(LAW),
    }
    print(json.dumps({**settings, "results": results}, indent=1))


if __name__ == "__main__":
    main()
