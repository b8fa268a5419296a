"""Measure what fine-tuning on a few episodes of another day brings, arm by arm.

::

    python tools/second_day.py --run runs/g1 --new day2 --full day2_full --test day2_test \\
        --out runs/second_day --arms before mixed alone tokenizer whole_day

``--new`` are frame shards of the few episodes, ``--test`` of episodes of that day that are held out
of everything, ``--full`` of all others of that day. Arms: ``before``, the model as it is;
``mixed``, fine-tuned with its old tokens mixed in; ``alone``, without them; ``tokenizer``, with a
fine-tuned tokenizer too; ``whole_day``, trained from nothing on ``--full``. What is there already
is kept. Other options are those of ``world-model fit --from``.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

HORIZONS = (1, 2, 3, 5, 8, 10, 15, 20)
ARMS = ("before", "mixed", "alone", "tokenizer", "whole_day")


def main() -> None:
    """Train and measure the arms asked for; print a table of all that are measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("run", "new", "test", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--full", type=Path)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["before", "mixed"])
    parser.add_argument("--steps", type=int, default=450, help="of the fine-tuned world model")
    parser.add_argument("--tokenizer-steps", type=int, default=300, help="of the fine-tuned one")
    parser.add_argument("--name", default="", help="suffix of the arms, for other options")
    arguments, options = parser.parse_known_args()
    arguments.options = options
    for arm in arguments.arms:
        model = _model(arm, arguments)
        report = arguments.out / f"{arm}{arguments.name}" / "report"
        _tokenwm("evaluate", model, "--data", arguments.test, "--out", report, "--device", "cpu")
    for metrics in sorted(arguments.out.glob("*/report/metrics.json")):
        _show(metrics)


def _model(arm: str, given: argparse.Namespace) -> Path:
    """The folder of the model of an arm, which is trained unless it is there."""
    run: Path = given.run
    if arm == "before":
        return run / "world_model"
    out: Path = given.out / f"{arm}{given.name}"
    if arm == "whole_day":
        small = ["--size", "small", "--device", "cpu"]
        _fit("tokenizer", out, given.full, [*small, "--model.max_shift", 4, *_steps(1350)])
        _tokens(given.full, out / "tokenizer", out / "tokens", ["--shifted-copies", 3])
        _fit("world-model", out, out / "tokens", [*small, *_steps(1250)])
        return out / "world_model"
    bins = ["--vocabulary-of", run]
    trained, old = run / "world_model/model/tokenizer", run / "tokens"
    if arm == "tokenizer":
        trained = out / "tokenizer"
        options = ["--from", run, *_mixed(run / "frames"), "--model.max_shift", 4]
        _fit("tokenizer", out, given.new, [*options, *_steps(given.tokenizer_steps)])
        _tokens(run / "frames", trained, out / "old_tokens", bins)
        old = out / "old_tokens"
    tokens = given.out / "tokens" if arm != "tokenizer" else out / "tokens"
    _tokens(given.new, trained, tokens, [*bins, "--shifted-copies", 7])
    mixture = [] if arm == "alone" else _mixed(old)
    options = ["--from", run, *mixture, *_steps(given.steps), *given.options]
    _fit("world-model", out, tokens, options)
    return out / "world_model"


def _steps(count: int) -> list[object]:
    return ["--trainer.max_steps", count, "--seed_everything", 0]


def _mixed(root: Path) -> list[object]:
    return ["--data.mixture", json.dumps([{"root": str(root), "weight": 1.0}])]


def _fit(verb: str, out: Path, data: Path, options: list[object]) -> None:
    folder = out / verb.replace("-", "_")
    _tokenwm(verb, "fit", "--data", data, "--out", folder, *options)


def _tokens(frames: Path, trained: Path, out: Path, options: list[object]) -> None:
    _tokenwm("tokenize", frames, "--tokenizer", trained, "--out", out, "--workers", 0, *options)


def _tokenwm(*words: object) -> None:
    command = [sys.executable, "-m", "tokenwm", *map(str, words)]
    print("$", *command[2:], flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _show(path: Path) -> None:
    """Print gains over persistence, with their 95 % intervals, and the reconstruction."""
    found = json.loads(path.read_text(encoding="utf-8"))
    horizons = [horizon for horizon in HORIZONS if horizon in found["horizons"]]
    print(f"\n{path.parents[1].name}: {found['num_episodes']} episodes; horizons {horizons}")
    gain = found["psnr_gain_over_persistence"]
    cells = (f"{gain['mean'][h - 1]:+.2f} ({gain['low'][h - 1]:+.2f})" for h in horizons)
    print("  gain over persistence, dB (lower end of its interval):", *cells)
    for name in ("model", "persistence", "reconstruction", "reconstruction_anchored"):
        curve = found["psnr"].get(name)
        if curve is not None:
            print(f"  {name}, dB:", *(f"{curve['mean'][h - 1]:.2f}" for h in horizons))
    nll = found["token_nll"]
    for name, curve in nll.items() if isinstance(nll, dict) else ():
        if isinstance(curve, dict) and "mean" in curve:
            print(f"  nats per token, {name}:", *(f"{curve['mean'][h - 1]:.2f}" for h in horizons))


if __name__ == "__main__":
    main()
