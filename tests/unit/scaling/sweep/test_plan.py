"""Rules of a plan: sizes, budgets, learning rates, costs."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from tests.unit.scaling.sweeps import TRAINING, small_data
from tokenwm.errors import SweepError
from tokenwm.scaling.sweep.plan import (
    Request,
    choose_widths,
    costs_of,
    learning_rate_of,
    make_plan,
    possible_widths,
    shape_of,
    warnings_of,
)
from tokenwm.scaling.sweep.sweep import Sweep, Training

DATA = small_data()
RANGE = {"least_parameters": 2e4, "most_parameters": 4e5}


def plan(request: Request, training: Training = TRAINING) -> Sweep:
    return make_plan(
        request,
        training,
        DATA,
        name="plan",
        folder="tokens",
        seconds_per_step=lambda size: 1e-4 * size.dim,
    )


@pytest.mark.parametrize("budget", [1e11, 3e12])
@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_a_plan_spends_its_budget(budget: float, check: bool, seeds: tuple[int, ...]) -> None:
    request = Request(budget=budget, num_sizes=2, check_learning_rate=check, seeds=seeds, **RANGE)
    costs = costs_of(plan(request), DATA)
    assert sum(cost.own_flops for cost in costs) == pytest.approx(budget, rel=0.02)
    assert len(costs) == 2 * (4 * len(seeds) + 2 * check)
    assert sum(cost.run.is_check for cost in costs) == 4 * check


def test_sizes_are_evenly_spaced_in_their_logarithm() -> None:
    sweep = plan(Request(budget=1e12, **RANGE))
    counts = [size.flops(TRAINING, DATA.vocabulary).num_matmul_parameters for size in sweep.sizes]
    steps = [math.log(b / a) for a, b in pairwise(counts)]
    assert counts[0] == pytest.approx(2e4, rel=0.4)
    assert counts[-1] == pytest.approx(4e5, rel=0.2)
    assert max(steps) < 2 * min(steps)
    assert [size.name for size in sweep.sizes] == sorted(
        (size.name for size in sweep.sizes), key=lambda name: float(name[1:-1])
    )


def test_smaller_models_get_more_tokens_and_budgets_double() -> None:
    sweep = plan(Request(budget=1e12, **RANGE))
    for size in sweep.sizes:
        assert [b / a for a, b in pairwise(size.token_budgets)] == pytest.approx([2] * 3, rel=1e-3)
    most = [size.token_budgets[-1] for size in sweep.sizes]
    counts = [size.flops(TRAINING, DATA.vocabulary).num_matmul_parameters for size in sweep.sizes]
    assert most[0] / most[-1] == pytest.approx((counts[-1] / counts[0]) ** 0.25, rel=1e-3)


def test_shared_trunks_save_compute() -> None:
    costs = costs_of(plan(Request(budget=1e12, **RANGE)), DATA)
    alone, shared = sum(c.flops for c in costs), sum(c.own_flops for c in costs)
    # 15/8 of the largest budget, against 1 + 7/8 of a fifth of it.
    assert alone / shared == pytest.approx(1.875 / 1.175, rel=0.02)


@pytest.mark.parametrize(
    ("dim", "layers", "heads"), [(16, 2, 1), (64, 3, 1), (96, 4, 2), (192, 8, 4), (256, 11, 4)]
)
def test_one_shape_at_all_widths(dim: int, layers: int, heads: int) -> None:
    size = shape_of(dim)
    assert (size.num_layers, size.num_heads) == (layers, heads)


def test_every_possible_width_has_sensible_heads() -> None:
    widths = [dim for dim in possible_widths() if dim <= 2048]
    assert 8 in widths and 424 not in widths and len(widths) > 200
    for dim in widths:
        size = shape_of(dim)
        head_dim = size.model(TRAINING).transformer.head_dim  # refuses what does not divide
        assert dim < 48 or 24 <= head_dim <= 96


def test_learning_rates_fall_with_the_width() -> None:
    assert learning_rate_of(128, 5e-3) == 5e-3
    assert learning_rate_of(8, 5e-3) == 4e-2  # a sixteenth of the width, to the power of 3/4
    size = plan(Request(budget=1e12, check_learning_rate=True, **RANGE)).sizes[0]
    assert size.check_learning_rates == pytest.approx(
        (0.5 * size.learning_rate, 2 * size.learning_rate), rel=0.01
    )


def test_repeated_data_and_few_sizes_are_warned_about() -> None:
    costs = costs_of(plan(Request(budget=1e12, **RANGE)), DATA)
    most = max(cost.num_epochs for cost in costs)
    assert most > 4
    assert most == max(cost.num_tokens for cost in costs) / DATA.num_train_tokens
    (warning,) = warnings_of(costs, DATA)
    assert f"up to {most:.1f}" in warning and f"record {most / 4:.1f} times" in warning
    few = [cost for cost in costs if cost.run.size == costs[0].run.size]
    assert any("1 sizes" in text for text in warnings_of(few, DATA))
    plenty = replace(DATA, num_train_tokens=10**9)
    assert warnings_of(costs_of(plan(Request(budget=1e12, **RANGE)), plenty), plenty) == []


def test_the_least_budget_that_is_named_works() -> None:
    with pytest.raises(SweepError, match="take at least") as caught:
        plan(Request(budget=1e6, **RANGE))
    least = float(str(caught.value).split("at least ")[1].split(":")[0])
    plan(Request(budget=least, **RANGE))
    with pytest.raises(SweepError, match="too small"):
        plan(Request(budget=0.8 * least, **RANGE))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 0.0}, "budget=0"),
        ({"budget": 1e6}, "budget=1e\\+06 FLOPs is too small"),
        ({"num_sizes": 0}, "num_sizes=0"),
        ({"budget_ratio": 1.0}, "budget_ratio=1"),
        ({"budget_ratio": 1.0001}, "their numbers are too near"),
        ({"most_parameters": 1e4}, "most_parameters=10000 must be above"),
        ({"num_sizes": 20, "most_parameters": 4e4}, "would be used twice"),
        ({"least_parameters": 100.0}, "100 matmul parameters are too few"),
    ],
)
def test_impossible_plans_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(SweepError, match=message):
        plan(Request(**{"budget": 1e12, **RANGE, **change}))  # type: ignore[arg-type]


def test_widths_follow_the_vocabulary() -> None:
    request = Request(budget=1e12, least_parameters=1e5, most_parameters=1e6)
    few = choose_widths(request, TRAINING, DATA.vocabulary)
    many = choose_widths(
        request, TRAINING, small_data(codebook_size=1024, code_levels=(8, 8, 4, 4)).vocabulary
    )
    assert many[0] < few[0]
