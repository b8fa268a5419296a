"""``tokenwm sweep plan TOKENS --budget FLOPS --out SWEEP``: lay out a sweep, show what it costs."""

import argparse
import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from tokenwm.cli.console import console_of, give, keep_stdout, say, show_table
from tokenwm.cli.devices import device_from
from tokenwm.cli.options import parse
from tokenwm.cli.options.training import device_options
from tokenwm.cli.training.lightning_cli import launch
from tokenwm.cli.verbs.sweep_training import StepClock, settings_of
from tokenwm.cli.verbs.world_model import WorldModelCLI
from tokenwm.data.shards.manifest import manifest_sha256
from tokenwm.data.storage.atomic import open_atomically
from tokenwm.engines import threads_for
from tokenwm.errors import TokenwmError
from tokenwm.scaling.quantities import number
from tokenwm.scaling.sweep.plan import Request, RunCost, costs_of, make_plan, warnings_of
from tokenwm.scaling.sweep.sweep import (
    Run,
    Size,
    Sweep,
    TokenData,
    Training,
    sweep_text,
)
from tokenwm.strict import build, dump_yaml, key_values, parse_yaml

PROBE_STEPS = 12
"""Steps that are timed for each size, the first few left out."""


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    arguments = parse("sweep plan", argv)
    console = console_of(arguments)
    data = TokenData.load(arguments.tokens)
    training = _training(arguments.set)
    comment = _comment(argv, arguments.tokens)
    if arguments.out.exists() and not arguments.overwrite:
        if not arguments.out.read_text(encoding="utf-8").startswith(comment):
            raise TokenwmError(
                f"{arguments.out} is there already, and not the plan of this command; give another "
                "--out, or replace it with --overwrite"
            )
        say(console, f"{arguments.out}: planned before, and kept")
        give(arguments, parse_yaml(arguments.out.read_text(encoding="utf-8")))
        return 0
    request = Request(
        budget=arguments.budget,
        num_sizes=arguments.sizes,
        least_parameters=arguments.min_parameters,
        most_parameters=arguments.max_parameters,
        num_budgets=arguments.budgets,
        budget_ratio=arguments.budget_ratio,
        seeds=tuple(arguments.seeds or [0]),
        learning_rate=arguments.learning_rate,
        check_learning_rate=arguments.verify_learning_rate,
    )
    sweep = make_plan(
        request,
        training,
        data,
        name=arguments.out.stem,
        folder=str(arguments.tokens),
        seconds_per_step=_clock(arguments, training, data, console),
    )
    costs = costs_of(sweep, data)
    print_plan(console, sweep, data, costs, arguments.workers)
    for warning in warnings_of(costs, data):
        say(console, f"warning: {warning}", style="yellow")
    with open_atomically(arguments.out) as file:
        file.write((comment + sweep_text(sweep)).encode())
    say(
        console,
        f"next: tokenwm sweep run {arguments.out} --out DIR --workers {arguments.workers}",
    )
    give(arguments, parse_yaml(sweep_text(sweep)))
    return 0


def _comment(argv: Sequence[str], tokens: Path | str) -> str:
    """First lines of a plan's file: the options that the plan follows from."""
    words = [word for word in argv if word not in ("--overwrite", "--json")]
    manifest = manifest_sha256(tokens)
    return f"# tokenwm sweep plan {shlex.join(words)}\n# manifest of the tokens: {manifest}\n"


def print_plan(
    console: Console, sweep: Sweep, data: TokenData, costs: Sequence[RunCost], parallel: int
) -> None:
    """A row for each size (its shape is width/layers/heads), and what all of it takes."""
    headings = ("size", "N", "shape", "rate", "tokens D", "epochs", "FLOPs C", "C/6ND", "hours")
    rows = []
    for size in sweep.sizes:
        own = [cost for cost in costs if cost.run.size.name == size.name]
        laws = [cost for cost in own if not cost.run.is_check]
        count = size.flops(sweep.training, data.vocabulary)
        cells = (
            size.name,
            number(count.num_matmul_parameters),
            f"{size.dim}/{size.num_layers}/{size.num_heads}",
            f"{size.learning_rate:g}",
            _between([cost.num_tokens for cost in laws], number),
            _between([cost.num_epochs for cost in laws], "{:.1f}".format),
            f"{sum(cost.own_flops for cost in own):.2g}",
            f"{count.training / count.six_nd:.2f}",
            f"{sum(cost.own_seconds for cost in own) / 3600:.2f}",
        )
        rows.append(cells)
    show_table(console, rows, *headings, title=f"{sweep.name}: {len(costs)} runs", box=None)
    flops = sum(cost.own_flops for cost in costs)
    alone = sum(cost.flops for cost in costs)
    say(
        console,
        f"{flops:.2e} FLOPs ({alone:.2e} without shared trunks); about "
        f"{hours_of(costs, parallel):.2f} hours with {parallel} run(s) at once if they do not slow "
        f"each other; {number(data.num_train_tokens)} different tokens to train on",
    )


def hours_of(costs: Sequence[RunCost], parallel: int) -> float:
    """Wall-clock: all work evenly divided, but no shorter than the longest chain of runs."""
    seconds: dict[str | None, float] = {cost.run.name: cost.own_seconds for cost in costs}
    chains = [seconds[cost.run.name] + seconds.get(cost.run.trunk, 0.0) for cost in costs]
    return max(sum(seconds.values()) / parallel, *chains) / 3600


def _between(values: Sequence[float], show: Callable[[float], str]) -> str:
    low, high = show(min(values)), show(max(values))
    return low if low == high else f"{low}–{high}"


def _training(overrides: Sequence[str]) -> Training:
    values = key_values("--set", overrides)
    try:
        training: Training = build(Training, values, allow_defaults=True)
    except TokenwmError as error:
        raise TokenwmError(f"--set: {error}") from error
    return training


def _clock(
    arguments: argparse.Namespace, training: Training, data: TokenData, console: Console
) -> Callable[[Size], float]:
    """A function that gives the seconds of a step of a size: measured, or from a known speed."""
    if arguments.no_probe is not None:
        return lambda size: size.flops(training, data.vocabulary).training / arguments.no_probe
    say(console, f"on {device_from(arguments.device)}")
    torch.set_num_threads(threads_for(arguments.workers))

    def measure(size: Size) -> float:
        with keep_stdout(arguments.json):
            seconds = probe(size, training, str(arguments.tokens), arguments.device)
        rate = size.flops(training, data.vocabulary).training / seconds
        say(console, f"{size.name}: {1e3 * seconds:.0f} ms a step, {rate / 1e9:.0f} GFLOP/s")
        return float(f"{seconds:.3g}")

    return measure


def probe(size: Size, training: Training, tokens: str, device: str) -> float:
    """Seconds of a training step, measured over a few.

    Args:
        size: The model.
        training: Options that all runs share.
        tokens: Folder of token shards.
        device: Name of the device, or ``auto``.
    """
    run = Run(
        name="probe", size=size, learning_rate=size.learning_rate, seed=0, max_steps=PROBE_STEPS
    )
    short = replace(training, warmup_steps=1)
    sweep = Sweep(name="probe", data=tokens, training=short, sizes=(size,))
    clock = StepClock()
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / "probe.yaml"
        config.write_text(dump_yaml(settings_of(run, sweep)))
        argv = ["fit", "--config", str(config), "--data.root", tokens, "--data.verify", "false"]
        argv += ["--trainer.default_root_dir", scratch, "--trainer.logger", "false"]
        argv += ["--checkpoint_every_n_steps", str(10 * PROBE_STEPS)]
        argv += device_options(device)
        launch(WorldModelCLI, argv, [clock])
    assert clock.seconds_per_step is not None
    return clock.seconds_per_step
