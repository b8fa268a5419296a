"""``tokenwm quickstart``: every stage in a row, in a given time, from a recipe to a report.

With ``--from`` models begin from trained ones and older data are mixed in.

It only calls the other verbs and prints each call, so that what it did can be done by hand.
"""

import argparse
import json
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

import tokenwm
from tokenwm.cli import main as program
from tokenwm.cli.console import console_of, give, keep_stdout, printable, say
from tokenwm.cli.options import parse
from tokenwm.cli.options.training import device_options
from tokenwm.cli.shipped import find_file
from tokenwm.cli.training.lightning_cli import TrainingCLI, launch
from tokenwm.cli.training.run_folder import CONFIG_NAME
from tokenwm.cli.verbs import control, evaluate, prepare, tokenize, tokenizer, world_model
from tokenwm.cli.verbs.second_day import KEPT_LOSS, FirstDay
from tokenwm.control.goal_reaching import tells_goals
from tokenwm.data.recipes.recipe import load_recipe
from tokenwm.data.shards.manifest import MANIFEST_NAME, Manifest
from tokenwm.data.storage.atomic import open_atomically, remove_whole
from tokenwm.errors import TokenwmError
from tokenwm.evaluation.config import EvaluationConfig
from tokenwm.heads.readout import FIELD, steps_for
from tokenwm.sequence.token_shards import MAX_SHIFT

TOKENIZER_SHARE, TOKENIZER_SHARES = 0.18, {"planning": 0.3}
"""Part of the time left after preparation that goes to training the tokenizer; and where another
part does, by the size. Sixteen tokens have to be worth more each."""
EVALUATION_STEPS, EVALUATION_STEPS_PER_START = 60, 1.5
"""Cost of the evaluation in training steps of the world model, whose pace is known by then.

With room: of Push-T's 120 starts it took 150 steps' time, not 240.
"""
EVALUATION_STEPS_PER_READOUT_STEP = 0.15
"""Cost of a step of the readout, which is trained first where the data hold a task state."""
MINUTES, SECOND_DAY_MINUTES = 15.0, 6.0
"""Time for everything, unless it is given; the second with a model to begin from."""
OLD_WEIGHT = 1.0
"""Windows of all older datasets for each window of the new one."""
DEBUG_STEPS = 20
"""Steps of fine-tuning a model of the size ``debug``."""
DECISION_STEPS = 150
"""Cost of trying a few goals, in the same unit."""
LEAST_HORIZON = 5
"""Steps that an evaluation looks ahead, also where a step is many actions."""
LEAST_SECONDS = 10.0
"""A stage trains so long even if no time is left for it."""
ENOUGH_STEPS = 32_000
"""A small dataset gets as many shifted copies as bring it nearest to this many training steps."""
MOST_COPIES = 7

FOLDERS = ("frames", "tokenizer", "tokens", "world_model", "report")
"""Folders of the stages, in the folder of the run."""
GOALS = "goals"
"""Folder of the goals that were tried, where the data tell any."""
OLD_TOKENS = "old_tokens"
"""Folder of older data, encoded again by a fine-tuned tokenizer."""
STAGES: dict[str, type[TrainingCLI]] = {
    cli.verb: cli for cli in (tokenizer.TokenizerCLI, world_model.WorldModelCLI)
}
_OF_STAGES = tuple(f"{stage}." for stage in STAGES)


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    arguments = parse("quickstart", argv)
    console = console_of(arguments)
    with keep_stdout(arguments.json):
        result = Quickstart(arguments, console).run()
    give(arguments, result)
    return 0


class Quickstart:
    """One run of all stages; what is finished is skipped, so a stopped run goes on."""

    def __init__(self, arguments: argparse.Namespace, console: Console) -> None:
        self.arguments = arguments
        self.console = console
        self.out: Path = arguments.out
        self.began = program.verb_began or time.monotonic()
        self.seconds_before = 0.0
        self.stage_settings = [item for item in arguments.set if item.startswith(_OF_STAGES)]
        self.recipe_settings = [item for item in arguments.set if not item.startswith(_OF_STAGES)]
        for setting in self.stage_settings:
            if "=" not in setting:
                raise TokenwmError(f"--set {setting!r}: expected KEY=VALUE")
        start = vars(arguments)["from"]
        self.first_day = None if start is None else FirstDay.find(start)
        self.minutes = arguments.minutes
        if self.minutes is None:
            self.minutes = MINUTES if start is None else SECOND_DAY_MINUTES
        self.plan_path = self.out / "plan.json"
        self.plan: dict[str, Any] = {}

    @property
    def seconds_used(self) -> float:
        """Time used, by finished stages and up to the checkpoint of another one before."""
        return self.seconds_before + time.monotonic() - self.began

    def run(self) -> dict[str, Any]:
        """Run every stage that is not finished yet; returns where everything is."""
        out = self.out
        if self.arguments.overwrite and self.plan_path.exists():
            for name in (*FOLDERS, GOALS, OLD_TOKENS, self.plan_path.name):
                remove_whole(out / name)
        out.mkdir(parents=True, exist_ok=True)
        self._load_plan()
        frames, tokens = out / "frames", out / "tokens"
        trained, mixed = out / "tokenizer", []
        overrides = self.recipe_settings
        recipe_file = find_file(self.arguments.recipe)
        if self.arguments.size == "debug" and load_recipe(recipe_file).records:
            overrides = [*_DEBUG_DATA, *overrides]
        if self.first_day is not None:
            self.first_day.check_recipe(load_recipe(recipe_file, overrides))
        recipe = [str(recipe_file), "--out", str(frames)]
        self._do("prepare", prepare.main, [*recipe, *(["--set", *overrides] if overrides else [])])
        if self.first_day is not None and self._keeps_tokenizer(self.first_day, frames):
            trained, mixed = self.first_day.tokenizer, self.first_day.old_tokens()
        else:
            old = None if self.first_day is None else self.first_day.old_frames()
            shift = ["--model.max_shift", str(MAX_SHIFT)] if _copies(frames) else []
            share = TOKENIZER_SHARES.get(self.arguments.size, TOKENIZER_SHARE)
            self._train("tokenizer", frames, trained, [*shift, *_mixture(old)], share)
            if old is not None:
                mixed = [str(out / OLD_TOKENS)]
                self._tokenize(Path(old), trained, out / OLD_TOKENS)
        self._tokenize(frames, trained, tokens)
        if self.first_day is not None:
            there = ", ".join(mixed) or "nothing: it is not there any more"
            say(self.console, f"mixed in of what {self.first_day.path} was trained on: {there}")
        reserve = ["--reserve_steps", str(evaluation_steps(Manifest.load(frames)))]
        self._train("world-model", tokens, out / "world_model", [*reserve, *_mixture(*mixed)], 1.0)
        self._evaluate(frames)
        self._decide(frames)
        minutes = self.seconds_used / 60
        say(self.console, f"{minutes:.1f} minutes; report: {out / 'report' / 'index.html'}")
        return {"minutes": minutes, **{name: out / name for name in FOLDERS}}

    def _keeps_tokenizer(self, first_day: FirstDay, frames: Path) -> bool:
        """True if the tokenizer reconstructs new frames nearly as well as its own; decided once.

        Raises:
            TokenwmError: The frames are of another kind than the model.
        """
        if "keeps_tokenizer" not in self.plan:
            first_day.check(frames)
            here, home = first_day.reconstruction(frames)
            self.plan["keeps_tokenizer"] = home is not None and here > home - KEPT_LOSS
            self._save_plan()
            does = "kept" if self.plan["keeps_tokenizer"] else "fine-tuned"
            was = "an unknown figure" if home is None else f"{home:.1f} dB"
            say(self.console, f"tokenizer: {here:.1f} dB here, {was} at home: it is {does}")
        return bool(self.plan["keeps_tokenizer"])

    def _tokenize(self, frames: Path, trained: Path, tokens: Path) -> None:
        if (tokens / MANIFEST_NAME).exists():
            return
        copies = _copies(frames)
        source = [str(frames), "--tokenizer", str(trained)]
        source += ["--shifted-copies", str(copies)] if copies else []
        source += ["--device", self.arguments.device]
        if self.first_day is not None:
            source += ["--vocabulary-of", str(self.first_day.path)]
        self._do("tokenize", tokenize.main, [*source, "--out", str(tokens)])

    def _evaluate(self, frames: Path) -> None:
        out, manifest = self.out, Manifest.load(frames)
        if not any(map(manifest.num_episodes, ("test", "val"))):
            say(self.console, f"{frames} has no held-out episodes, so nothing can be measured")
            return
        report = [str(out / "world_model"), "--data", str(frames), "--out", str(out / "report")]
        report += ["--device", self.arguments.device]
        curves = out / "tokenizer" / "logs" / "metrics.csv"
        report += ["--curves", f"tokenizer={curves}"] if curves.is_file() else []
        if self.arguments.size == "debug":
            report += ["--horizon", "5", "--context", "2", "--starts", "1"]
        elif manifest.actions_per_step > 1:
            report += ["--horizon", str(horizon_of(manifest.actions_per_step))]
        self._do("evaluate", evaluate.main, report)
        if self.first_day is not None:
            before = [str(self.first_day.model), "--data", str(frames), "--out"]
            before = ["tokenwm", "evaluate", *before, str(out / "report_before")]
            say(self.console, f"as it was before: {shlex.join(before)}")

    def _decide(self, frames: Path) -> None:
        """Let the model try a few recorded goals, where the data's simulator can tell."""
        manifest = Manifest.load(frames)
        if not tells_goals(manifest):
            return
        horizon = max(5, round(2.0 * manifest.control_rate))
        few = ["--episodes", "5", "--films", "5", "--horizon", str(horizon)]
        few += ["--candidates", "16", "--rounds", "1", "--every", "10", "--dtype", "bfloat16"]
        if self.arguments.size == "debug":
            few = ["--episodes", "1", "--horizon", "2", "--candidates", "4", "--every", "2"]
        argv = [str(self.out / "world_model"), "--goals", str(frames), *few]
        argv += ["--device", self.arguments.device, "--out", str(self.out / GOALS)]
        try:
            self._do("control", control.main, argv)
        except TokenwmError as error:  # all else is done, and stays
            say(self.console, f"no goals were tried: {error}")

    def _do(self, verb: str, verb_main: Callable[[list[str]], int], argv: list[str]) -> None:
        self._say(verb, argv)
        code = verb_main(argv)
        if code:
            raise TokenwmError(f"tokenwm {verb} ended with exit code {code}")
        self._save_plan()

    def _train(self, verb: str, data: Path, folder: Path, options: list[str], share: float) -> None:
        """Train a stage in a share of the time that is left."""
        if (folder / "model").is_dir():
            say(self.console, f"{verb}: finished before, kept")
            return
        argv = ["fit", "--config", str(_config(verb, self.arguments.size))]
        if self.first_day is not None:
            argv = ["fit", "--from", str(self.first_day.path)]
        argv += ["--data.root", str(data), *options]
        if self.arguments.size != "debug":  # whose config has few steps
            argv += ["--minutes", self._minutes(verb, share), "--model.optimizer.schedule", "wsd"]
        elif self.first_day is not None:
            argv += ["--trainer.max_steps", str(DEBUG_STEPS)]
        own = [item for item in self.stage_settings if item.startswith(f"{verb}.")]
        argv += [f"--{setting.removeprefix(f'{verb}.')}" for setting in own]
        argv += device_options(self.arguments.device)
        argv += ["--trainer.default_root_dir", str(folder)]
        self._say(verb, argv)
        self._note_steps(verb, launch(STAGES[verb], argv))

    def _minutes(self, verb: str, share: float) -> str:
        """Minutes for training a stage, as the command line takes them; decided once."""
        minutes: dict[str, str] = self.plan.setdefault("minutes", {})
        if verb not in minutes:
            left = 60.0 * self.minutes - self.seconds_used
            minutes[verb] = f"{max(LEAST_SECONDS, left * share) / 60:.3f}"
            self._save_plan()
        return minutes[verb]

    def _note_steps(self, verb: str, done: TrainingCLI) -> None:
        """Write down the steps that the clock decided on, with which a stage can be repeated."""
        if done.clock is not None:
            self.seconds_before += done.clock.seconds_before
            spans = done.model.optimizer_config.decay_spans
            start, end = spans[0][0], spans[-1][1]
            self.plan[verb] = {"max_steps": end, "decay_start": start, "decay_spans": spans}
            config = done.folder / "logs" / CONFIG_NAME
            say(
                self.console,
                f"{verb}: {end} steps, the decay from step {start} on; without a clock: "
                f"tokenwm {verb} fit --config {config} --trainer.default_root_dir DIR",
            )
        self._save_plan()

    def _load_plan(self) -> None:
        settings = {
            "minutes": self.minutes,
            "size": self.arguments.size,
            "recipe": str(self.arguments.recipe),
            "set": self.recipe_settings,
            "model_set": self.stage_settings,
            **({} if self.first_day is None else {"from": str(self.first_day.path)}),
        }
        if self.plan_path.exists():
            self.plan = json.loads(self.plan_path.read_text())
            if self.plan["settings"] != settings:
                raise TokenwmError(
                    f"{self.out} holds a quick start with other settings: "
                    f"{self.plan['settings']}; give these, another --out, or begin anew with "
                    "--overwrite"
                )
            self.seconds_before = self.plan.get("seconds_used", 0.0)
        else:
            self.plan = {"settings": settings, "tokenwm_version": tokenwm.__version__}
        self._save_plan()

    def _save_plan(self) -> None:
        self.plan["seconds_used"] = self.seconds_used
        with open_atomically(self.plan_path) as file:
            file.write(json.dumps(self.plan, indent=2).encode() + b"\n")

    def _say(self, verb: str, argv: list[str]) -> None:
        self.console.rule(printable(f"{verb}  {self.seconds_used / 60:.1f} min", style="bold"))
        say(self.console, f"$ tokenwm {verb} {shlex.join(argv)}", style="dim")


_DEBUG_DATA = ["source.num_episodes=12", "source.max_steps=30", "splits.test=0.2"]


def _config(verb: str, size: str) -> Path:
    return find_file(f"configs/{verb.replace('-', '_')}/{size}.yaml")


def _mixture(*roots: str | None) -> list[str]:
    """The options that mix older datasets in, alike."""
    known = [root for root in roots if root is not None]
    items = [{"root": root, "weight": OLD_WEIGHT / len(known)} for root in known]
    return [f"--data.mixture={json.dumps(items)}"] if items else []


def _copies(frames: Path) -> int:
    return shifted_copies(Manifest.load(frames))


def shifted_copies(manifest: Manifest) -> int:
    """Shifted copies of each training episode that make a small dataset large enough."""
    steps = sum(episode.num_steps for episode in manifest.episodes if episode.split == "train")
    return min(MOST_COPIES, max(0, round(ENOUGH_STEPS / steps) - 1))


def horizon_of(actions_per_step: int) -> int:
    """Imagined steps of the evaluation: as many actions of the robot, however many are a step."""
    return max(LEAST_HORIZON, EvaluationConfig().imagination_horizon // actions_per_step)


def evaluation_steps(manifest: Manifest) -> int:
    """Training steps of the world model that take about as long as its evaluation."""
    split = "test" if manifest.num_episodes("test") else "val"
    starts = manifest.num_episodes(split) * EvaluationConfig().num_starts
    readout = steps_for(manifest.num_steps("train")) if FIELD in manifest.features else 0
    return (
        EVALUATION_STEPS
        + round(EVALUATION_STEPS_PER_START * starts)
        + round(EVALUATION_STEPS_PER_READOUT_STEP * readout)
        + (DECISION_STEPS if tells_goals(manifest) else 0)
    )
