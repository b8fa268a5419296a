"""``tokenwm quickstart``: every stage in a row, in a given time, from a recipe to a report.

It only calls the other verbs and prints each call, so that what it did can be done by hand.
"""

import argparse
import json
import shlex
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from rich.console import Console

import tokenwm
from tokenwm.cli import evaluate, prepare, tokenize, tokenizer, world_model
from tokenwm.cli.training import TrainingCLI, launch
from tokenwm.data.manifest import MANIFEST_NAME, Manifest
from tokenwm.data.recipe import load_recipe
from tokenwm.errors import TokenwmError
from tokenwm.sequence.token_shards import MAX_SHIFT
from tokenwm.tokenizer.training import FrameTokenizerModule
from tokenwm.transformer.training import WorldModelModule

TOKENIZER_SHARE = 0.22
"""Part of the training time that goes to the tokenizer."""
REPORT_SHARE = 0.18
"""Part of the time after preparation that is kept for tokenizing, evaluation and the report."""
ENOUGH_STEPS = 32_000
"""A small dataset gets as many shifted copies as bring it nearest to this many training steps."""
MOST_COPIES = 7
PROBE_STEPS = 16
"""Steps that are timed to learn how many fit into a stage; the first half warms up."""

STAGES: dict[str, tuple[type[TrainingCLI], type[pl.LightningModule]]] = {
    "tokenizer": (tokenizer.TokenizerCLI, FrameTokenizerModule),
    "world-model": (world_model.WorldModelCLI, WorldModelModule),
}


class StepTimer(Callback):
    """Times the second half of a short run."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def on_train_batch_end(self, *arguments: Any, **named: Any) -> None:
        """Note the time."""
        self._times.append(time.monotonic())

    @property
    def seconds_per_step(self) -> float:
        """Mean over the second half."""
        times = self._times[len(self._times) // 2 :]
        return (times[-1] - times[0]) / (len(times) - 1)


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    arguments = _parser().parse_args(argv)
    return Quickstart(arguments, Console()).run()


class Quickstart:
    """One run of all stages; what is finished is skipped, so a stopped run goes on."""

    def __init__(self, arguments: argparse.Namespace, console: Console) -> None:
        self.arguments = arguments
        self.console = console
        self.out: Path = arguments.out
        self.began = time.monotonic()
        self.plan_path = self.out / "plan.json"
        self.plan: dict[str, Any] = {}

    def run(self) -> int:
        """Run every stage that is not finished yet; returns the exit code."""
        out = self.out
        out.mkdir(parents=True, exist_ok=True)
        self._load_plan()
        frames, tokens = out / "frames", out / "tokens"
        overrides = self.arguments.set
        recipe_file = find_file(self.arguments.recipe)
        if self.arguments.size == "debug" and load_recipe(recipe_file).records:
            overrides = [*_DEBUG_DATA, *overrides]
        recipe = [str(recipe_file), "--out", str(frames)]
        self._do("prepare", prepare.main, [*recipe, *(["--set", *overrides] if overrides else [])])
        copies = shifted_copies(Manifest.load(frames))
        shift = ["--model.max_shift", str(MAX_SHIFT)] if copies else []
        self._train("tokenizer", frames, out / "tokenizer", shift)
        if not (tokens / MANIFEST_NAME).exists():
            source = [str(frames), "--tokenizer", str(out / "tokenizer")]
            source += ["--shifted-copies", str(copies)] if copies else []
            self._do("tokenize", tokenize.main, [*source, "--out", str(tokens)])
        self._train("world-model", tokens, out / "world_model", [])
        report = [str(out / "world_model"), "--data", str(frames), "--out", str(out / "report")]
        curves = out / "tokenizer" / "logs" / "metrics.csv"
        report += ["--curves", f"tokenizer={curves}"] if curves.is_file() else []
        if self.arguments.size == "debug":
            report += ["--horizon", "5", "--context", "2", "--starts", "1"]
        code = self._do("evaluate", evaluate.main, report)
        minutes = (time.monotonic() - self.began) / 60
        self.console.print(
            f"{minutes:.1f} minutes; report: {out / 'report' / 'index.html'}",
            soft_wrap=True,
            highlight=False,
        )
        return code

    def _do(self, verb: str, verb_main: Callable[[list[str]], int], argv: list[str]) -> int:
        self._say(verb, argv)
        code = verb_main(argv)
        if code:
            raise TokenwmError(f"tokenwm {verb} ended with exit code {code}")
        return code

    def _train(self, verb: str, data: Path, folder: Path, options: list[str]) -> None:
        if (folder / "model").is_dir():
            self.console.print(f"{verb}: finished before, kept", highlight=False)
            return
        config = find_file(f"configs/{verb.replace('-', '_')}/{self.arguments.size}.yaml")
        argv = ["fit", "--config", str(config), "--data.root", str(data), *options]
        for setting in self.arguments.model_set:
            stage, _, option = setting.partition(".")
            if stage == verb:
                argv.append(f"--{option}")
        steps = self._steps(verb, argv)
        if steps is not None:
            quarter = str(max(1, steps // 4))
            argv += ["--trainer.max_steps", str(steps), "--trainer.val_check_interval", quarter]
        argv += ["--trainer.default_root_dir", str(folder)]
        self._say(verb, argv)
        cli, module = STAGES[verb]
        launch(cli, module, argv, verb)
        if not (folder / "model").is_dir():
            raise TokenwmError(
                f"{folder} was stopped after its last step, before its model was written; remove "
                "the folder and run the same command again"
            )

    def _steps(self, verb: str, argv: list[str]) -> int | None:
        """Steps that fit into the stage's share of the time; None leaves them to the config."""
        if self.arguments.size == "debug":
            return None
        if verb not in self.plan:
            seconds = self._seconds_for(verb)
            timer = StepTimer()
            with tempfile.TemporaryDirectory() as scratch:
                probe = ["--trainer.max_steps", str(PROBE_STEPS)]
                probe += ["--trainer.limit_val_batches", "0", "--trainer.logger", "false"]
                probe += ["--trainer.val_check_interval", str(PROBE_STEPS)]
                probe += ["--trainer.default_root_dir", scratch]
                cli, module = STAGES[verb]
                launch(cli, module, [*argv, *probe], verb, [timer])
            steps = max(PROBE_STEPS, int(seconds / timer.seconds_per_step))
            self.plan[verb] = steps
            self._save_plan()
            self.console.print(
                f"{verb}: {timer.seconds_per_step * 1e3:.0f} ms a step, so {steps} steps in "
                f"{seconds / 60:.1f} minutes",
                highlight=False,
            )
        return int(self.plan[verb])

    def _seconds_for(self, verb: str) -> float:
        """Time the stage may take: its share, and for the last one what is really left of it."""
        left = 60.0 * float(self.arguments.minutes) - (time.monotonic() - self.began)
        if "seconds" not in self.plan:
            training = max(20.0, left * (1.0 - REPORT_SHARE))
            self.plan["seconds"] = {
                "tokenizer": training * TOKENIZER_SHARE,
                "world-model": training * (1.0 - TOKENIZER_SHARE),
                "rest": left * REPORT_SHARE,
            }
        share = float(self.plan["seconds"][verb])
        if verb == "tokenizer" or "continued" in self.plan:
            return share
        left -= float(self.plan["seconds"]["rest"])
        return min(1.1 * share, max(0.7 * share, left))

    def _load_plan(self) -> None:
        settings = {
            "minutes": self.arguments.minutes,
            "size": self.arguments.size,
            "recipe": str(self.arguments.recipe),
            "set": list(self.arguments.set),
            "model_set": list(self.arguments.model_set),
        }
        if self.plan_path.exists():
            self.plan = json.loads(self.plan_path.read_text())
            if self.plan["settings"] != settings:
                raise TokenwmError(
                    f"{self.out} holds a quick start with other settings: "
                    f"{self.plan['settings']}; give these, another --out, or remove the folder"
                )
            self.plan["continued"] = True
        else:
            self.plan = {"settings": settings, "tokenwm_version": tokenwm.__version__}
        self._save_plan()

    def _save_plan(self) -> None:
        partial = self.plan_path.with_suffix(".partial")
        partial.write_text(json.dumps(self.plan, indent=2) + "\n")
        partial.replace(self.plan_path)

    def _say(self, verb: str, argv: list[str]) -> None:
        spent = (time.monotonic() - self.began) / 60
        self.console.rule(f"[bold]{verb}[/bold]  {spent:.1f} min")
        self.console.print(
            f"$ tokenwm {verb} {shlex.join(argv)}", soft_wrap=True, highlight=False, style="dim"
        )


_DEBUG_DATA = ["source.num_episodes=12", "source.max_steps=30", "splits.test=0.2"]


def shifted_copies(manifest: Manifest) -> int:
    """Shifted copies of each training episode that make a small dataset large enough."""
    steps = sum(episode.num_steps for episode in manifest.episodes if episode.split == "train")
    return min(MOST_COPIES, max(0, round(ENOUGH_STEPS / steps) - 1))


def find_file(path: str | Path) -> Path:
    """A config or recipe by its path, or as shipped with tokenwm.

    Raises:
        TokenwmError: It is in neither place.
    """
    package = Path(tokenwm.__file__).parent
    for root in (Path(), package.parent, package):
        if (root / path).is_file():
            return root / path
    raise TokenwmError(f"{path} is not there, and tokenwm ships no file of that name")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tokenwm quickstart",
        description="Record or read episodes, train a world model, imagine, and report. "
        "Interrupted, the same command continues.",
    )
    parser.add_argument(
        "--recipe",
        default="data_recipes/pusht.yaml",
        help="data recipe; yours works too (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/quickstart"),
        metavar="DIR",
        help="folder of the run (default: %(default)s)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=15.0,
        help="time for everything; training fills what is left (default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        default="small",
        choices=["debug", "small", "base", "large"],
        help="config of that name for both models; debug takes its steps from the config and "
        "little data (default: %(default)s)",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override values of the recipe, for example --set image_size=[128,128]",
    )
    parser.add_argument(
        "--model-set",
        nargs="+",
        action="extend",
        default=[],
        type=_stage_setting,
        metavar="STAGE.KEY=VALUE",
        help="override values of a stage's config, for example "
        "--model-set world-model.model.model.transformer.dropout=0.1",
    )
    return parser


def _stage_setting(text: str) -> str:
    stage, _, option = text.partition(".")
    if stage not in STAGES or "=" not in option:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected STAGE.KEY=VALUE with STAGE one of {', '.join(STAGES)}"
        )
    return text
