"""The options of all verbs: told without importing anything heavy, and telling what is true."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tokenwm.cli import main as cli
from tokenwm.cli.made_before import MadeBefore
from tokenwm.cli.options import PARSERS, parse
from tokenwm.cli.options.base import Parser
from tokenwm.cli.options.training import LIGHTNING, OF_STAGE, lightning_arguments, training
from tokenwm.cli.training.lightning_cli import TrainingCLI, launch
from tokenwm.cli.verbs.tokenizer import TokenizerCLI
from tokenwm.cli.verbs.world_model import WorldModelCLI
from tokenwm.errors import TokenwmError
from tokenwm.evaluation.measure import EvaluationConfig
from tokenwm.scaling.sweep.plan import Request
from tokenwm.serving.requests import Limits
from tokenwm.synthesis.actions import KINDS
from tokenwm.synthesis.arrays import LAYOUTS
from tokenwm.synthesis.episodes import SynthesisConfig
from tokenwm.synthesis.imagine import ImagineConfig
from tokenwm.synthesis.lerobot.export import VERSIONS

CLIS: dict[str, type[TrainingCLI]] = {"tokenizer": TokenizerCLI, "world-model": WorldModelCLI}
HEAVY = ("torch", "lightning", "jsonargparse", "numpy", "rich", "pyarrow", "av")
HELPS = sorted({*PARSERS, *(f"{verb} {name}" for verb in CLIS for name in ("fit", "test"))})


def test_no_verb_imports_anything_heavy_for_its_help() -> None:
    lines = ["import contextlib, sys", "from tokenwm.cli.main import main"]
    for words in HELPS:
        lines += [
            "with contextlib.suppress(SystemExit):",
            f"    main({[*words.split(), '--help']})",
        ]
    lines.append(f"print('HEAVY', sorted(set({HEAVY}) & set(sys.modules)))")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "HEAVY []", done.stderr
    for words in HELPS:
        assert f"usage: tokenwm {words}" in done.stdout


class Found(Exception):
    """The real parser."""


@pytest.mark.filterwarnings("ignore")  # Lightning and jsonargparse warn of each other
@pytest.mark.parametrize("verb", CLIS)
def test_what_the_help_of_training_tells_of_lightnings_options_is_true(
    verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli_class = CLIS[verb]

    def stop(self: Any, *arguments: Any) -> None:
        raise Found(self._subcommand_parsers["fit"])

    monkeypatch.setattr(cli_class, "parse_arguments", stop)
    with pytest.raises(Found) as found:
        launch(cli_class, ["fit"])
    real = found.value.args[0]
    defaults = real.get_defaults()
    told = Parser("x", "x", LIGHTNING + OF_STAGE[verb])
    actions = [a for a in told._actions if a.dest not in ("help", "verbose")]
    assert len(actions) > 20
    for action in actions:
        name = action.option_strings[0]
        assert name in real._option_string_actions, name
        if name != "--config":
            assert told.get_default(action.dest) == defaults[name.removeprefix("--")], name
    folder = defaults["trainer.default_root_dir"]
    assert f"default: {folder})" in " ".join(training(verb, "fit").format_help().split())


def test_defaults_are_those_of_what_they_configure() -> None:
    evaluate, imagine = parse("evaluate", []), EvaluationConfig()
    assert evaluate.context == imagine.num_context_frames
    assert evaluate.horizon == imagine.imagination_horizon
    assert (evaluate.starts, evaluate.split) == (imagine.num_starts, imagine.split)
    assert (evaluate.batch_size, evaluate.examples) == (imagine.batch_size, imagine.num_examples)
    one, config = parse("imagine", ["m", "--out", "x"]), ImagineConfig()
    assert (one.context, one.horizon) == (config.num_context_frames, config.imagination_horizon)
    assert (one.actions, one.samples) == (config.actions, None)  # which depends on --instead
    made, settings = parse("synthesize", ["m", "--out", "x"]), SynthesisConfig(model="m", data="")
    assert (made.actions, made.noise) == (settings.actions, settings.noise)
    assert (made.episodes, made.least_steps) == (settings.num_episodes, settings.least_steps)
    assert (made.context, made.horizon) == (settings.num_context, settings.horizon)
    assert (made.split, made.batch_size) == (settings.split, settings.batch_size)
    kinds = next(a.choices for a in PARSERS["synthesize"]()._actions if a.dest == "actions")
    assert kinds is not None and tuple(kinds) == KINDS
    served, limits = parse("serve", ["m"]), Limits()
    for name in ("max_rows", "max_steps", "max_row_steps", "max_queued_rows", "max_connections"):
        assert getattr(served, name) == getattr(limits, name), name
    assert served.max_megabytes * 2**20 == limits.max_body_bytes
    assert served.max_held_megabytes * 2**20 == limits.max_bytes
    assert served.timeout == limits.timeout
    plan = parse("sweep plan", ["t", "--budget", "1e15", "--out", "x"])
    request = Request(budget=1e15)
    assert plan.learning_rate == request.learning_rate
    assert plan.min_parameters == request.least_parameters
    assert plan.max_parameters == request.most_parameters
    assert (plan.sizes, plan.budgets) == (request.num_sizes, request.num_budgets)
    versions = next(a.choices for a in PARSERS["export-lerobot"]()._actions if a.dest == "version")
    assert versions is not None and tuple(versions) == VERSIONS
    layouts = next(a.choices for a in PARSERS["export-arrays"]()._actions if a.dest == "layout")
    assert layouts is not None and tuple(layouts) == LAYOUTS


def test_one_thing_has_one_name() -> None:
    """What several verbs have is spelt and explained alike."""
    parsers = {words: make() for words, make in PARSERS.items()}
    parsers |= {f"{verb} fit": training(verb, "fit", with_lightning=False) for verb in CLIS}

    def having(option: str) -> set[str]:
        return {words for words, p in parsers.items() if option in p._option_string_actions}

    def without(option: str) -> set[str]:
        return parsers.keys() - having(option)

    for option in ("--device", "--json"):
        helps = {parsers[words]._option_string_actions[option].help for words in having(option)}
        assert len(helps) == 1
    computes = {"evaluate", "heads", "imagine", "control", "serve", "tokenize", "quickstart"}
    computes |= {"play", "sweep plan", "sweep run", "synthesize"}
    assert having("--device") == computes | {f"{verb} fit" for verb in CLIS}
    assert all(parsers[words].get_default("device") == "auto" for words in having("--device"))
    assert without("--json") == {"serve", "play", "completion"}  # which have no result
    # These write nothing, or what does not depend on what was there.
    assert without("--overwrite") == {
        *("verify-shards", "info", "report", "completion", "serve", "play", "push")
    }


def test_earlier_spellings_work_and_are_not_shown() -> None:
    plan = ["t", "--budget", "1e15", "--out", "x"]
    assert parse("sweep plan", [*plan, "--parallel", "3"]).workers == 3
    assert parse("sweep run", ["s", "--out", "x", "--parallel", "2"]).workers == 2
    old = parse("quickstart", ["--model-set", "tokenizer.a=1", "--set", "b=2"])
    assert old.set == ["tokenizer.a=1", "b=2"]
    for parser in (PARSERS[words]() for words in ("sweep plan", "sweep run", "quickstart")):
        assert "--parallel" not in parser.format_help()
        assert "--model-set" not in parser.format_help()


@pytest.mark.parametrize("words", sorted(PARSERS))
def test_every_option_is_explained(words: str) -> None:
    parser = PARSERS[words]()
    assert all(action.help for action in parser._actions)
    assert parser.format_help().startswith(f"usage: tokenwm {words} ")


def test_short_options_of_training_stand_for_those_of_lightning() -> None:
    given = ["fit", "--size", "debug", "--data", "s3://b/x", "--out", "runs/a", "--workers", "2"]
    given += ["--set", "model.compile=true", "data.seed=3", "--device", "cuda:1", "--overwrite"]
    config, path, *rest = lightning_arguments("world-model", [*given, "--minutes", "3"])[1:]
    assert config == "--config" and Path(path).parts[-3:] == (
        "configs",
        "world_model",
        "debug.yaml",
    )
    assert rest == [
        *("--minutes", "3", "--data.root=s3://b/x", "--trainer.default_root_dir=runs/a"),
        *("--trainer.accelerator=gpu", "--trainer.devices=[1]", "--data.num_workers=2"),
        *("--resume=false", "--model.compile=true", "--data.seed=3"),
    ]
    same = ["fit", "--config", "x.yaml", "--data.root", "d", "--trainer.max_steps=-1"]
    assert lightning_arguments("tokenizer", same) == same
    assert lightning_arguments("tokenizer", ["fit", "--help-all"]) == ["fit", "--help"]
    assert lightning_arguments("tokenizer", ["fit", "--data", "d.yaml"]) == ["fit", "--data=d.yaml"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fit"], "give --size small"),
        (["fit", "--size", "huge"], "huge.yaml is not there"),
        (["fit", "--size", "debug", "--set", "x"], "expected KEY=VALUE"),
        (["train"], "usage: tokenwm tokenizer fit|validate|test"),
        ([], "usage: tokenwm tokenizer fit|validate|test"),
    ],
)
def test_mistakes_of_training_are_found_early(argv: list[str], message: str) -> None:
    with pytest.raises(TokenwmError, match=message.replace("|", r"\|")):
        lightning_arguments("tokenizer", argv)


def test_a_missing_option_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["imagine", "model"])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1
    assert "--out" in error and "tokenwm imagine --help" in error


@pytest.mark.filterwarnings("ignore")  # Lightning and jsonargparse warn of each other
def test_a_file_is_no_folder_of_a_run(
    tmp_path: Path, frame_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    argv = ["tokenizer", "fit", "--size", "debug", "--data", str(frame_shards)]
    assert cli.main([*argv, "--out", str(tmp_path / "file")]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: trainer.default_root_dir (--out) is ") and "a file" in error


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_every_verb(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab", reason="needs the completion extra")
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for verb in cli.VERBS:
        assert verb in script
    assert "--dry-run" in script and "--model.optimizer.learning_rate" in script


def test_help_of_a_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["help", "sweep", "plan"])
    assert capsys.readouterr().out.startswith("usage: tokenwm sweep plan ")


def test_what_was_found_is_kept_with_the_record(tmp_path: Path) -> None:
    first = argparse.Namespace(data="d", out=tmp_path, json=False, verbose=None)
    (tmp_path / "page").write_text("x")
    record = MadeBefore("practise", tmp_path, first, [])
    assert not record.stands()
    record.save([tmp_path / "page"], {"psnr": 3.5})
    again = MadeBefore(
        "practise", tmp_path, argparse.Namespace(**{**vars(first), "json": True}), []
    )
    assert again.stands() and again.result == {"psnr": 3.5}
    assert json.loads((tmp_path / ".practise.json").read_text())["result"] == {"psnr": 3.5}


def test_the_two_parsers_of_training_agree() -> None:
    """The one that translates knows a part of those that the help tells of."""
    short = training("tokenizer", "fit", with_lightning=False)._option_string_actions
    assert short.keys() < training("tokenizer", "fit")._option_string_actions.keys()
