"""``tokenwm imagine MODEL --out DIR``: a future of a recorded episode, to look at."""

from pathlib import Path
from typing import Any

from rich.console import Console

import tokenwm
from tokenwm.cli.console import console_of, give, say, show_table
from tokenwm.cli.devices import take_device
from tokenwm.cli.made_before import MadeBefore
from tokenwm.cli.options import parse
from tokenwm.cli.verbs.evaluate import known_data, model_files, sampling_from
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
    arguments = parse("imagine", argv)
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
    console = console_of(arguments)
    if arguments.data is None:
        arguments.data = known_data(console, arguments.model)
    inputs = [*model_files(arguments.model), arguments.data]
    inputs += [Path(arguments.actions)] if arguments.actions.endswith(".npy") else []
    made_before = MadeBefore("imagine", arguments.out, arguments, inputs)
    if made_before.is_kept(arguments, console):
        return 0
    reader = ShardReader(arguments.data)
    model = tokenwm.load(arguments.model, take_device(arguments.device, console))
    with console.status("imagining …"):
        imagined = imagine_episode(model, reader, config)
        label = Path(config.actions).stem if config.actions.endswith(".npy") else config.actions
        files = write_imagined(arguments.out, imagined, model.control_rate, label)
    paths = [files.gif, files.mp4, files.npz]
    made_before.save(paths, {"files": [str(path) for path in paths], **figures(imagined)})
    print_summary(console, imagined)
    for path in paths:
        say(console, str(path))
    give(arguments, made_before.result)
    return 0


def figures(imagined: ImaginedEpisode) -> dict[str, Any]:
    """Figures of each future: reward, end, surprise and, where the truth is known, its error."""
    futures, rollout = [], imagined.rollout
    for index, frames in enumerate(imagined.frames):
        psnr = None
        if imagined.truth_frames is not None:
            error = (frames.astype(float) - imagined.truth_frames.astype(float)) / 255.0
            psnr = float(psnr_from_mse((error**2).mean()))
        reward = None if rollout.reward is None else float(rollout.reward[index].sum())
        futures.append(
            {
                "reward": reward,
                "termination_probability": float(
                    imagined.rollout.termination_probability[index].max()
                ),
                "frame_nll": float(rollout.frame_nll[index].mean()),
                "psnr": psnr,
            }
        )
    return {"episode": imagined.key, "first_step": imagined.first_step, "futures": futures}


def print_summary(console: Console, imagined: ImaginedEpisode) -> None:
    """Show what :func:`figures` gives."""
    horizon = imagined.frames.shape[1]
    title = f"episode {imagined.key} from step {imagined.first_step}, {horizon} steps"
    names = ["future", "reward, sum", "ends, at most", "surprise, nats per token"]
    if imagined.truth_frames is not None:
        names.append("PSNR, dB")
    digits = {"reward": 3, "termination_probability": 2, "frame_nll": 3, "psnr": 1}
    rows = []
    for index, future in enumerate(figures(imagined)["futures"], start=1):
        cells = [
            "–" if future[name] is None else f"{future[name]:.{places}f}"
            for name, places in digits.items()
        ]
        rows.append((f"{index}", *cells[: len(names) - 1]))
    show_table(console, rows, *names, title=title, left=0, box=None)
    say(console, f"frame tokens per pass and future: {imagined.rollout.tokens_per_pass:.1f}")
