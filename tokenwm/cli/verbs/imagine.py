"""``tokenwm imagine MODEL --data SHARDS --out DIR``: a future of a recorded episode, to look at."""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

import tokenwm
from tokenwm.allocator import keep_freed_memory
from tokenwm.checkpoint import model_folder
from tokenwm.cli.console import printable, say
from tokenwm.cli.made_before import MadeBefore, add_overwrite_option
from tokenwm.cli.verbs.evaluate import (
    add_model_arguments,
    add_sampling_arguments,
    device_from,
    sampling_from,
)
from tokenwm.data.shards.reader import ShardReader
from tokenwm.evaluation.metrics import psnr_from_mse
from tokenwm.synthesis.imagine import (
    ImagineConfig,
    ImaginedEpisode,
    imagine_episode,
    write_imagined,
)


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    arguments = parser().parse_args(argv)
    config = ImagineConfig(
        key=arguments.episode,
        first_step=arguments.start,
        num_context_frames=arguments.context,
        imagination_horizon=arguments.horizon,
        actions=arguments.actions,
        num_samples=arguments.samples,
        sampling=sampling_from(arguments),
        seed=arguments.seed,
    )
    console = Console()
    inputs = [model_folder(arguments.model), arguments.data]
    inputs += [Path(arguments.actions)] if arguments.actions.endswith(".npy") else []
    made_before = MadeBefore("imagine", arguments.out, arguments, inputs)
    if made_before.stands() and not arguments.overwrite:
        say(console, str(made_before))
        return 0
    keep_freed_memory()
    reader = ShardReader(arguments.data)
    model = tokenwm.load(arguments.model, device_from(arguments.device))
    with console.status("imagining …"):
        imagined = imagine_episode(model, reader, config)
        label = Path(config.actions).stem if config.actions.endswith(".npy") else config.actions
        files = write_imagined(arguments.out, imagined, model.control_rate, label)
    made_before.save([files.gif, files.mp4, files.npz])
    print_summary(console, imagined)
    for path in (files.gif, files.mp4, files.npz):
        say(console, str(path))
    return 0


def print_summary(console: Console, imagined: ImaginedEpisode) -> None:
    """Show what each future says about itself and, where the truth is known, how near it came."""
    horizon = imagined.frames.shape[1]
    table = Table(
        title=printable(f"episode {imagined.key} from step {imagined.first_step}, {horizon} steps"),
        box=None,
    )
    names = ["future", "reward, sum", "ends, at most", "surprise, nats per token"]
    if imagined.truth_frames is not None:
        names.append("PSNR, dB")
    for name in names:
        table.add_column(name, justify="right")
    rollout = imagined.rollout
    for index, frames in enumerate(imagined.frames):
        cells = [
            f"{index + 1}",
            "–" if rollout.reward is None else f"{rollout.reward[index].sum():.3f}",
            f"{rollout.termination_probability[index].max():.2f}",
            f"{rollout.frame_nll[index].mean():.3f}",
        ]
        if imagined.truth_frames is not None:
            error = (frames.astype(float) - imagined.truth_frames.astype(float)) / 255.0
            cells.append(f"{float(psnr_from_mse((error**2).mean())):.1f}")
        table.add_row(*cells)
    console.print(table)
    say(console, f"frame tokens per pass and future: {rollout.tokens_per_pass:.1f}")


def parser() -> argparse.ArgumentParser:
    """The verb's arguments."""
    result = argparse.ArgumentParser(
        prog="tokenwm imagine",
        description="Imagine from any recorded episode with its own, other or random actions; "
        "writes a GIF, an MP4 and an NPZ (see docs/evaluation.md).",
    )
    add_model_arguments(result)
    result.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write into"
    )
    result.add_argument(
        "--episode", metavar="KEY", help="episode to start from (default: the first held-out one)"
    )
    result.add_argument(
        "--start",
        type=int,
        default=0,
        metavar="STEP",
        help="step of the episode at which the observed context begins (default: %(default)s)",
    )
    result.add_argument(
        "--actions",
        default="own",
        metavar="WHOSE",
        help="own: those of the episode; random: uniform over the range of the training data; KEY: "
        "those of another episode at the same steps; FILE.npy: an array of at least H rows of "
        "actions in the units of the data (default: %(default)s)",
    )
    result.add_argument(
        "--samples",
        type=int,
        default=1,
        metavar="N",
        help="futures to draw, each with its own noise (default: %(default)s)",
    )
    add_sampling_arguments(result, temperature=1.0)
    add_overwrite_option(result)
    return result
