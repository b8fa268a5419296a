"""``tokenwm imagine MODEL --out DIR``: a future of a recorded episode, or two, to look at."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

import tokenwm
from tokenwm.checkpoint import model_folder
from tokenwm.cli.console import console_of, give, say, show_table
from tokenwm.cli.devices import take_device
from tokenwm.cli.made_before import MadeBefore
from tokenwm.cli.options import parse
from tokenwm.cli.verbs.evaluate import known_data, model_files, sampling_from
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import TokenwmError
from tokenwm.evaluation.metrics import psnr_from_mse
from tokenwm.heads.folder import HEADS
from tokenwm.synthesis.comparison import numbers_of, write_comparison
from tokenwm.synthesis.counterfactual import (
    INSTEAD_SAMPLES,
    Counterfactual,
    CounterfactualConfig,
    imagine_instead,
)
from tokenwm.synthesis.imagine import (
    ImagineConfig,
    ImaginedEpisode,
    imagine_episode,
    write_imagined,
)
from tokenwm.synthesis.rerun_file import check_rerun, write_rerun


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    arguments = parse("imagine", argv)
    config = ImagineConfig(
        key=arguments.episode,
        first_step=arguments.start,
        num_context_frames=arguments.context,
        imagination_horizon=arguments.horizon,
        actions=arguments.actions,
        num_samples=_num_samples(arguments),
        sampling=sampling_from(arguments),
        seed=arguments.seed,
    )
    console = console_of(arguments)
    if arguments.rerun:
        if not arguments.instead:
            raise TokenwmError("--rerun shows what would have been; give --instead too")
        check_rerun()
    if arguments.data is None:
        arguments.data = known_data(console, arguments.model)
    inputs = [*model_files(arguments.model), arguments.data]
    given = [arguments.actions, *arguments.instead]
    inputs += [Path(text) for text in given if text.endswith(".npy")]
    if arguments.instead:  # which reads the task state and doubts, where there are heads for it
        inputs.append(model_folder(arguments.model) / HEADS)
    made_before = MadeBefore("imagine", arguments.out, arguments, inputs)
    if made_before.is_kept(arguments, console):
        return 0
    reader = ShardReader(arguments.data)
    model = tokenwm.load(arguments.model, take_device(arguments.device, console))
    if arguments.instead:
        changed = CounterfactualConfig(
            imagine=config,
            changes=tuple(arguments.instead),
            num_changed=arguments.instead_steps,
        )
        with console.status("imagining …"):
            made = imagine_instead(model, reader, changed)
            paths = write_comparison(arguments.out, made, model.control_rate).paths
            if arguments.rerun:
                paths.append(paths[0].with_suffix(".rrd"))
                cameras = reader.manifest.cameras
                write_rerun(paths[-1], made, model.control_rate, cameras)
        numbers = numbers_of(made, model.control_rate)
        made_before.save(paths, {"files": [str(path) for path in paths], **numbers})
        print_comparison(console, made, model.control_rate)
        return _finish(arguments, console, paths, made_before)
    with console.status("imagining …"):
        imagined = imagine_episode(model, reader, config)
        label = Path(config.actions).stem if config.actions.endswith(".npy") else config.actions
        files = write_imagined(arguments.out, imagined, model.control_rate, label)
    paths = [files.gif, files.mp4, files.npz]
    made_before.save(paths, {"files": [str(path) for path in paths], **figures(imagined)})
    print_summary(console, imagined)
    return _finish(arguments, console, paths, made_before)


def _num_samples(arguments: argparse.Namespace) -> int:
    if arguments.samples is not None:
        return int(arguments.samples)
    return INSTEAD_SAMPLES if arguments.instead else ImagineConfig.num_samples


def _finish(
    arguments: argparse.Namespace, console: Console, paths: list[Path], made_before: MadeBefore
) -> int:
    for path in paths:
        say(console, str(path))
    give(arguments, made_before.result)
    return 0


def print_comparison(console: Console, made: Counterfactual, control_rate: float) -> None:
    """Show how the two differ at the last step, and in how many pairs of futures alike."""
    horizon, count = len(made.truth_frames), len(made.own_frames)
    rows = []
    for name, quantity in made.quantities.items():
        truth = "–" if quantity.truth is None else f"{quantity.truth[-1]:.3g}"
        own, instead = (f"{x[-1]:.3g}" for x in (quantity.mean_own, quantity.mean_instead))
        mean = f"{quantity.mean[-1]:+.2g}"
        if count > 1:
            mean += f" ({quantity.low[-1]:+.2g} to {quantity.high[-1]:+.2g})"
        alike = f"{round(float(quantity.same_sign[-1]) * count)}/{count}"
        rows.append((name, truth, own, instead, mean, alike, quantity.unit))
    seconds = horizon / control_rate
    title = (
        f"episode {made.key}, from step {made.step} on {', '.join(made.changes)}; after "
        f"{horizon} steps ({seconds:.3g} s)"
    )
    headings = ("truth", "imagined", "instead", "difference (95 %)", "same sign", "unit")
    show_table(console, rows, "", *headings, title=title, left=2, box=None)
    if made.beyond_data:
        say(
            console,
            f"{made.beyond_data:.0%} of the changed actions are beyond the range of the training "
            "data: the model has never seen what they do",
        )


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
