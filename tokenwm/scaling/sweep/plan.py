"""The rules by which a sweep is laid out: sizes, token budgets, learning rates.

* **Sizes** are evenly spaced in the logarithm of their matmul parameters. A width of ``dim`` has
  ``dim / 24`` layers (at least 2) and heads as near as possible to 48 wide: one shape at all sizes,
  near that of IRIS (10 layers of 256, 4 heads), so that only size varies.
* **Token budgets** of a size are a factor of 2 apart, and smaller models get more tokens, as
  ``N^-0.25``: between a grid (0), in which few models have a compute budget in common, and IsoFLOP
  lines (1), for which data would have to grow as fast as models shrink.
* **Learning rates** follow a power law of the width (:data:`WIDTH_EXPONENT`). muP (Yang et al.
  2022) would promise as much without a fit, but needs its own initialisation and a learning rate
  for each kind of weight, and then only covers width, not depth or the number of tokens, which vary
  here too. A law that is checked beside every size costs less and shows when it fails.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from tokenwm.errors import SweepError
from tokenwm.flops import FlopCount
from tokenwm.scaling.law.select import MAX_EPOCHS
from tokenwm.scaling.quantities import number
from tokenwm.scaling.sweep.sweep import (
    Run,
    Size,
    Sweep,
    TokenData,
    Training,
    runs_of,
)
from tokenwm.sequence.vocabulary import Vocabulary

MOST_WIDTH = 16384
MOST_TOKENS = 1e18
WIDTH_PER_LAYER = 24
LEAST_LAYERS = 2
HEAD_WIDTH = 48
TOKEN_EXPONENT = 0.25
REFERENCE_WIDTH = 128
WIDTH_EXPONENT = 0.75
CHECK_FACTORS = (0.5, 2.0)
"""Learning rates beside the rule's that check it."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """The request for a plan of a sweep.

    Attributes:
        budget: Training FLOPs of all runs together.
        num_sizes: Model sizes.
        least_parameters: Matmul parameters of the smallest.
        most_parameters: Matmul parameters of the largest.
        num_budgets: Token budgets of each size.
        budget_ratio: Ratio of a token budget to the one before, above 1.
        seeds: Seeds of the runs.
        learning_rate: Peak learning rate at a width of :data:`REFERENCE_WIDTH`.
        check_learning_rate: Whether runs at half and twice the rule's rate are added.
    """

    budget: float
    num_sizes: int = 5
    least_parameters: float = 3e4
    most_parameters: float = 3e6
    num_budgets: int = 4
    budget_ratio: float = 2.0
    seeds: tuple[int, ...] = (0,)
    learning_rate: float = 2.5e-3
    check_learning_rate: bool = False

    def __post_init__(self) -> None:
        for name in ("budget", "least_parameters", "learning_rate"):
            if getattr(self, name) <= 0:
                raise SweepError(f"{name}={getattr(self, name):g}; it must be above 0")
        if min(self.num_sizes, self.num_budgets) < 1 or self.budget_ratio <= 1:
            raise SweepError(
                f"num_sizes={self.num_sizes} and num_budgets={self.num_budgets} must be at least "
                f"1, budget_ratio={self.budget_ratio:g} above 1"
            )
        if self.num_sizes > 1 and self.most_parameters <= self.least_parameters:
            raise SweepError(
                f"most_parameters={self.most_parameters:g} must be above "
                f"least_parameters={self.least_parameters:g}"
            )


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """The cost of a run.

    Attributes:
        run: The run.
        num_parameters: N.
        num_tokens: D, tokens predicted, those of its trunk included.
        flops: C of those tokens.
        own_flops: C of the steps that it takes itself.
        own_seconds: Time of those steps.
        num_epochs: Times that each token of the data is seen.
    """

    run: Run
    num_parameters: int
    num_tokens: int
    flops: float
    own_flops: float
    own_seconds: float
    num_epochs: float


def make_plan(
    request: Request,
    training: Training,
    data: TokenData,
    *,
    name: str,
    folder: str,
    seconds_per_step: Callable[[Size], float],
) -> Sweep:
    """Lay out a sweep that takes the FLOPs asked for.

    Args:
        request: The budget, sizes and rules asked for.
        training: Options that all runs share.
        data: The token shards.
        name: Name of the sweep.
        folder: Folder of the token shards.
        seconds_per_step: Measures a size, or computes it from a known speed.

    Raises:
        SweepError: The budget is too small for the sizes, or two sizes are the same.
    """
    widths = choose_widths(request, training, data.vocabulary)
    sizes = tuple(_size(width, training, data.vocabulary, request) for width in widths)
    shape = Sweep(name=name, data=folder, training=training, sizes=sizes, seeds=request.seeds)
    # First, since measuring takes a minute and a budget may be too small for these sizes.
    planned = _with_budgets(request, shape, data)
    measured = (replace(size, seconds_per_step=seconds_per_step(size)) for size in planned)
    return replace(shape, sizes=tuple(measured))


def choose_widths(request: Request, training: Training, vocabulary: Vocabulary) -> list[int]:
    """Widths whose models are nearest to the parameters asked for.

    Raises:
        SweepError: Two of them are the same, or no model is as small, or as large.
    """
    spread = math.log(request.most_parameters / request.least_parameters)
    shares = [index / max(1, request.num_sizes - 1) for index in range(request.num_sizes)]
    targets = [request.least_parameters * math.exp(spread * share) for share in shares]

    @cache
    def parameters(dim: int) -> int:
        return shape_of(dim).flops(training, vocabulary).num_matmul_parameters

    widths = [_width_for(target, parameters) for target in targets]
    if len(set(widths)) < len(widths):
        raise SweepError(
            f"widths {widths} would be used twice: take fewer sizes or a wider range of parameters"
        )
    return widths


def _width_for(target: float, parameters: Callable[[int], int]) -> int:
    widths = possible_widths()
    if target < 0.5 * parameters(widths[0]):
        raise SweepError(
            f"{target:.3g} matmul parameters are too few: these tokens need at least "
            f"{parameters(widths[0])}"
        )
    low, high = 0, 1
    while parameters(widths[high]) <= target:  # large models take long to build: none in vain
        low, high = high, 2 * high
        if high >= len(widths):
            raise SweepError(f"{target:.3g} matmul parameters need a width above {MOST_WIDTH}")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if parameters(widths[middle]) <= target else (low, middle)
    return min(widths[low : high + 1], key=lambda dim: abs(math.log(parameters(dim) / target)))


@cache
def possible_widths() -> list[int]:
    """Multiples of 8 that can be divided into heads of a sensible width."""
    widths = range(8, MOST_WIDTH + 1, 8)
    return [dim for dim in widths if dim < HEAD_WIDTH or _heads_of(dim) is not None]


def _heads_of(dim: int) -> int | None:
    """The number of heads that makes them nearest to ``HEAD_WIDTH`` wide, within a factor of 2."""
    least, most = math.ceil(dim / (2 * HEAD_WIDTH)), 2 * dim // HEAD_WIDTH
    possible = [heads for heads in range(least, most + 1) if dim % (2 * heads) == 0]
    return min(possible, key=lambda n: abs(math.log(dim / n / HEAD_WIDTH)), default=None)


def shape_of(dim: int) -> Size:
    """Layers and heads of a possible width; without name, budgets and times."""
    return Size(
        name="unnamed",
        dim=dim,
        num_layers=max(LEAST_LAYERS, round(dim / WIDTH_PER_LAYER)),
        num_heads=_heads_of(dim) or 1,
        learning_rate=1.0,
        token_budgets=(1,),
        seconds_per_step=1.0,
    )


def learning_rate_of(dim: int, reference: float) -> float:
    """The rule's learning rate of a width, to three digits.

    Args:
        dim: Width.
        reference: Learning rate at :data:`REFERENCE_WIDTH`.
    """
    return float(f"{reference * (REFERENCE_WIDTH / dim) ** WIDTH_EXPONENT:.3g}")


def _size(dim: int, training: Training, vocabulary: Vocabulary, request: Request) -> Size:
    shape = shape_of(dim)
    parameters = shape.flops(training, vocabulary).num_matmul_parameters
    rate = learning_rate_of(dim, request.learning_rate)
    checks = [float(f"{factor * rate:.3g}") for factor in CHECK_FACTORS]
    return replace(
        shape,
        name=f"n{number(parameters)}",
        learning_rate=rate,
        check_learning_rates=tuple(checks) if request.check_learning_rate else (),
    )


def _with_budgets(request: Request, sweep: Sweep, data: TokenData) -> tuple[Size, ...]:
    """Sizes with token budgets that together take the FLOPs asked for."""
    counts = _counts(sweep, data)
    parameters = [count.num_matmul_parameters for count in counts.values()]

    def sizes(tokens: float) -> tuple[Size, ...]:
        """``tokens`` is the largest budget of the largest size."""
        budgets = []
        for count in parameters:
            top = tokens * (max(parameters) / count) ** TOKEN_EXPONENT
            powers = reversed(range(request.num_budgets))
            budgets.append(tuple(round(top / request.budget_ratio**power) for power in powers))
        return tuple(
            replace(size, token_budgets=budget)
            for size, budget in zip(sweep.sizes, budgets, strict=True)
        )

    def spent(tokens: float) -> float:
        planned = replace(sweep, sizes=sizes(tokens))
        return sum(cost.own_flops for cost in _costs(planned, data, counts))

    # FLOPs are proportional to tokens but for the warm-up and whole steps: two corrections do.
    tokens = 1e9
    for _ in range(3):
        try:
            tokens *= request.budget / spent(tokens)
        except (SweepError, ZeroDivisionError) as error:
            raise SweepError(
                f"budget={request.budget:.3g} FLOPs is too small for these sizes, which take at "
                f"least {_least_possible(spent):.3g}: {error}"
            ) from error
    return sizes(tokens)


def _least_possible(spent: Callable[[float], float]) -> float:
    """FLOPs of the shortest runs that are possible, a little more rather than less.

    Raises:
        SweepError: However long they are, runs are impossible.
    """

    def flops(tokens: float) -> float | None:
        try:
            return spent(tokens)
        except SweepError:
            return None

    low, high = 1.0, 2.0
    while flops(high) is None:
        low, high = high, 2.0 * high
        if high > MOST_TOKENS:
            spent(high)
    while high > 1.02 * low:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if flops(middle) is None else (low, middle)
    return 1.05 * spent(high)


def costs_of(sweep: Sweep, data: TokenData) -> tuple[RunCost, ...]:
    """The cost of each run of a sweep."""
    return _costs(sweep, data, _counts(sweep, data))


def _counts(sweep: Sweep, data: TokenData) -> dict[str, FlopCount]:
    """Parameters and operations of each size by name."""
    return {size.name: size.flops(sweep.training, data.vocabulary) for size in sweep.sizes}


def _costs(sweep: Sweep, data: TokenData, counts: Mapping[str, FlopCount]) -> tuple[RunCost, ...]:
    costs, filled = [], data.filled(sweep.training.num_steps)
    for run in runs_of(sweep, data.vocabulary):
        count = counts[run.size.name]
        num_tokens = round(run.max_steps * count.num_tokens * filled)
        costs.append(
            RunCost(
                run=run,
                num_parameters=count.num_matmul_parameters,
                num_tokens=num_tokens,
                flops=run.max_steps * count.training,
                own_flops=run.own_steps * count.training,
                own_seconds=run.own_steps * run.size.seconds_per_step,
                num_epochs=num_tokens / data.num_train_tokens,
            )
        )
    return tuple(costs)


def warnings_of(costs: Sequence[RunCost], data: TokenData) -> list[str]:
    """Warnings about a plan, in words."""
    found = []
    most = max(cost.num_epochs for cost in costs)
    if most > MAX_EPOCHS:
        repeated = sum(cost.num_epochs > MAX_EPOCHS for cost in costs)
        found.append(
            f"{repeated} of {len(costs)} runs see each token more than {MAX_EPOCHS:g} times (up "
            f"to {most:.1f}), so their loss says little about new data: record "
            f"{most / MAX_EPOCHS:.1f} times as many episodes, or take a smaller budget"
        )
    sizes = {cost.num_parameters for cost in costs}
    if len(sizes) < 4:
        found.append(f"{len(sizes)} sizes: laws are hardly fitted to fewer than 4")
    return found
