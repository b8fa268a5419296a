"""Time training steps, ours and IRIS's in turn in one process, with the floor of their products.

    python tools/bench_training.py --iris ../iris --json training.json

A step is what a run does between two batches: forward, losses, backward, clipping, AdamW. Random
tokens and frames take as long as real ones. A repetition times all steps one after another, so that
whatever else the machine does hits all alike; the best and the median over repetitions are given,
ratios are of medians. On a machine that is shared, ``--clock cpu`` counts the processor's seconds
of this process instead (give it one thread).

Steps:
    world_model       at the sizes asked for, by default IRIS's: 8 rows of 20 steps of 17 positions
    tokenizer         64 frames of 64×64 pixels, the sizes of configs/tokenizer/tokens16.yaml
    iris_world_model  the same with the network, losses and optimizer of IRIS itself (Micheli et
                      al. 2023); only with --iris, a checkout of github.com/eloialonso/iris
    iris_tokenizer    the same frames through its tokenizer, with a distance of pixels in place of
                      its perceptual loss; only with --iris
    …_float32         the same in float32 throughout, as IRIS itself trains, not in bf16-mixed
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from bench_imagination import SIZES, random_model
from iris_checkout import Checkout, load_checkout
from iris_model import Iris
from torch import Tensor, nn

from tokenwm.allocator import keep_freed_memory
from tokenwm.flops import tokenizer_flops, world_model_flops
from tokenwm.sequence.tokens import Tokens
from tokenwm.tokenizer.frames import FrameTokenizer, FrameTokenizerConfig
from tokenwm.tokenizer.training import FrameTokenizerModule
from tokenwm.training import OptimizerConfig, adamw
from tokenwm.transformer.losses import losses_of
from tokenwm.transformer.world_model import WorldModel

IMAGE_SIZE = (64, 64)
TOKENIZER = FrameTokenizerConfig(channels=(64, 128), num_blocks=1, patch_size=8, codebook_size=512)


@dataclass(kw_only=True)
class Step:
    """A training step.

    Attributes:
        module: What is trained.
        optimizer: By what.
        loss_of: Forward pass over a batch and its loss.
        is_mixed: Whether in bf16-mixed, or else in float32.
        clip: Largest norm of the gradient.
        operations: Operations of the products of forward and backward; None if nobody counted.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    loss_of: Callable[[], Tensor]
    is_mixed: bool
    clip: float
    operations: float | None = None

    def take(self) -> None:
        """Do it once."""
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.is_mixed):
            loss = self.loss_of()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.module.parameters(), self.clip)
        self.optimizer.step()


def ours(module: nn.Module, loss_of: Callable[[], Tensor], is_mixed: bool, flops: float) -> Step:
    return Step(
        module=module,
        optimizer=adamw(module, OptimizerConfig()),
        loss_of=loss_of,
        is_mixed=is_mixed,
        clip=1.0,
        operations=flops,
    )


def theirs(module: nn.Module, loss_of: Callable[[], Any], is_mixed: bool) -> Step:
    """IRIS minimises the sum of its losses; its two optimizers take the same time."""
    return Step(
        module=module,
        optimizer=torch.optim.AdamW(module.parameters(), lr=1e-4),
        loss_of=lambda: loss_of().loss_total,
        is_mixed=is_mixed,
        clip=10.0,
    )


def world_model(args: argparse.Namespace, is_mixed: bool) -> Step:
    model = random_model(args.size, args.num_frame_tokens, torch.device("cpu"))
    tokens, valid, terminated = random_batch(args, model)
    flops = world_model_flops(
        model.config, model.vocabulary, num_steps=args.num_steps, batch_size=args.rows
    )

    def loss_of() -> Tensor:
        reward = terminated.float()
        losses = losses_of(model, tokens, action_valid=valid, reward=reward, terminated=terminated)
        return losses.total

    return ours(model, loss_of, is_mixed, flops.training)


def random_batch(args: argparse.Namespace, model: WorldModel) -> tuple[Tokens, Tensor, Tensor]:
    """Tokens, which steps count, and which end an episode: none."""
    shape, vocabulary = (args.rows, args.num_steps), model.vocabulary
    frame = torch.randint(vocabulary.codebook_size, (*shape, model.layout.num_frame_tokens))
    action = torch.randint(vocabulary.action.num_values, (*shape, vocabulary.action.num_dimensions))
    return (
        Tokens(frame, None, action),
        torch.ones(shape, dtype=torch.bool),
        torch.zeros(shape, dtype=torch.bool),
    )


def iris_world_model(args: argparse.Namespace, checkout: Checkout, is_mixed: bool) -> Step:
    """Of the sizes of ours; its tokenizer, which IRIS runs in every step, is not."""
    model = random_model(args.size, args.num_frame_tokens, torch.device("cpu"))
    tokens, valid, terminated = random_batch(args, model)
    config = model.config.transformer
    sizes = {
        **checkout.settings("world_model/default"),
        "tokens_per_block": model.layout.positions_per_step,
        "max_blocks": args.num_steps,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "embed_dim": config.dim,
    }
    iris = checkout.world_model.WorldModel(
        obs_vocab_size=model.vocabulary.codebook_size,
        act_vocab_size=model.vocabulary.action.num_values,
        config=checkout.transformer.TransformerConfig(**sizes),
    )
    batch = {
        "observations": None,
        "actions": tokens.action[..., 0],
        "rewards": terminated.float(),
        "ends": terminated.long(),
        "mask_padding": valid,
    }
    encoder = SimpleNamespace(encode=lambda *_, **__: SimpleNamespace(tokens=tokens.frame))
    return theirs(iris, lambda: iris.compute_loss(batch, encoder), is_mixed)


def random_frames(args: argparse.Namespace) -> Tensor:
    """Of one camera, each an episode by itself."""
    return torch.randint(256, (args.frames, 1, 1, *IMAGE_SIZE, 3), dtype=torch.uint8)


def tokenizer(args: argparse.Namespace, is_mixed: bool) -> Step:
    module = FrameTokenizerModule(TOKENIZER)
    module.tokenizer = FrameTokenizer(TOKENIZER, IMAGE_SIZE)
    module.tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    flops = tokenizer_flops(module.tokenizer, args.frames).training
    frames = random_frames(args)
    batch: Any = SimpleNamespace(frames=frames, step_valid=torch.ones(frames.shape[:2]) > 0)
    return ours(module, lambda: module._losses(batch)[0], is_mixed, flops)


def iris_tokenizer(args: argparse.Namespace, checkout: Checkout, is_mixed: bool) -> Step:
    """Of its default sizes."""
    iris = Iris(checkout, num_actions=1, device=torch.device("cpu")).tokenizer
    frames = random_frames(args)[:, 0].movedim(-1, 2).float() / 255.0
    return theirs(iris, lambda: iris.compute_loss({"observations": frames}), is_mixed)


def steps_of(args: argparse.Namespace) -> dict[str, Step]:
    """The steps that are asked for, by name."""
    builders: dict[str, Callable[[bool], Step]] = {
        "world_model": partial(world_model, args),
        "tokenizer": partial(tokenizer, args),
    }
    if args.iris is not None:
        checkout = load_checkout(args.iris)
        builders["iris_world_model"] = partial(iris_world_model, args, checkout)
        builders["iris_tokenizer"] = partial(iris_tokenizer, args, checkout)
    every = {name: partial(build, True) for name, build in builders.items()}
    every |= {f"{name}_float32": partial(build, False) for name, build in builders.items()}
    unknown = set(args.steps or ()) - set(every)
    if unknown:
        sys.exit(f"--steps {' '.join(sorted(unknown))}: choose from {', '.join(every)}")
    return {name: every[name]() for name in args.steps or every}


def peak_flops(dtype: torch.dtype, clock: Callable[[], float], side: int = 1024) -> float:
    """Operations per second of a large matrix product, the best of ten."""
    matrix = torch.randn(side, side).to(dtype)
    seconds = []
    for _ in range(10):
        start = clock()
        matrix @ matrix
        seconds.append(clock() - start)
    return 2.0 * side**3 / min(seconds)


def measure(args: argparse.Namespace, steps: dict[str, Step]) -> list[dict[str, Any]]:
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.repetitions + 1):  # the first warms up
        for name, step in steps.items():
            start = clock()
            step.take()
            times[name].append(clock() - start)
    medians = {name: statistics.median(taken[1:]) for name, taken in times.items()}
    results = []
    for name, step in steps.items():
        result = {"step": name, "s": medians[name], "s_best": min(times[name][1:])}
        if step.operations is not None:
            dtype = torch.bfloat16 if step.is_mixed else torch.float32
            floor = step.operations / peak_flops(dtype, clock)
            result |= {"floor_s": floor, "share_of_floor": floor / medians[name]}
        for other in (f"iris_{name}", f"iris_{name.removesuffix('_float32')}_float32"):
            if other in medians:
                result[f"times_{other}"] = medians[other] / medians[name]
        results.append(result)
    return results


def profiled(step: Step) -> list[dict[str, Any]]:
    """Operations of a step, most expensive first."""
    step.take()  # warms up
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        step.take()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    return [
        {"operation": event.key, "calls": event.count, "ms": event.self_cpu_time_total / 1e3}
        for event in events[:30]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iris", type=Path, help="a checkout of IRIS, to time it beside ours")
    parser.add_argument("--steps", nargs="+", help="only these; see the top of this file")
    parser.add_argument("--size", choices=SIZES, default="iris", help="of the world model")
    parser.add_argument("--rows", type=int, default=8, help="windows in a batch")
    parser.add_argument("--num-steps", type=int, default=20, help="steps in a window")
    parser.add_argument("--num-frame-tokens", type=int, default=16)
    parser.add_argument("--frames", type=int, default=64, help="in a batch of the tokenizer")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--profile", action="store_true", help="say where the time goes, too")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    steps = steps_of(args)
    report = {
        "what": "training",
        "date": time.strftime("%Y-%m-%d"),
        "device": platform.processor(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "clock": args.clock,
        "torch": torch.__version__,
        "world_model": [args.size, args.rows, args.num_steps, args.num_frame_tokens],
        "frames": args.frames,
        "results": measure(args, steps),
    }
    if args.profile:
        report["profiles"] = {name: profiled(step) for name, step in steps.items()}
    text = json.dumps(report, indent=2)
    print(text)
    if args.json is not None:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
