"""``fit --from``: the steps of a second day, and what of them is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.small_datasets import moving_square, write_episodes
from tokenwm.cli import main as cli
from tokenwm.cli.verbs.info import describe
from tokenwm.cli.verbs.second_day import FirstDay
from tokenwm.data.shards.manifest import Manifest

CONFIGS = Path(__file__).parents[3] / "configs"
pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning and jsonargparse warn of each other


def fit(verb: str, data: Path, out: Path, *options: str, code: int = 0) -> Path:
    argv = [verb, "fit", f"--data={data}", f"--out={out}", "--trainer.accelerator=cpu"]
    assert cli.main([*argv, "--trainer.max_steps=2", *options]) == code
    return out


def tokens(frames: Path, tokenizer: Path, out: Path, *options: str) -> Path:
    argv = ["tokenize", str(frames), f"--tokenizer={tokenizer}", f"--out={out}", "--workers=0"]
    assert cli.main([*argv, *options]) == 0
    return out


def provenance(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "model" / "provenance.json").read_text())
    return found


@pytest.fixture(scope="module")
def first_day(frame_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all stages, as the quick start leaves it, of the size ``debug``."""
    run = tmp_path_factory.mktemp("first_day")
    size = ["--size=debug", "--data.num_steps=4"]
    fit("tokenizer", frame_shards, run / "tokenizer", *size)
    tokens(frame_shards, run / "tokenizer", run / "tokens")
    fit("world-model", run / "tokens", run / "world_model", *size)
    return run


@pytest.fixture(scope="module")
def new_frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new_frames")
    write_episodes(folder, {"train": [moving_square(9, seed) for seed in (50, 51)]})
    return folder


def test_a_second_day_step_by_step(
    first_day: Path,
    frame_shards: Path,
    new_frames: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trained = fit("tokenizer", new_frames, tmp_path / "tokenizer", f"--from={first_day}")
    bins = f"--vocabulary-of={first_day / 'world_model'}"
    new = tokens(new_frames, trained, tmp_path / "tokens", bins)
    old = tokens(frame_shards, trained, tmp_path / "old_tokens", bins)
    mixture = f'--data.mixture=[{{"root": "{old}", "weight": 2.0}}]'
    options = [f"--from={first_day}", mixture]
    run = fit("world-model", new, tmp_path / "world_model", *options)

    before, now = provenance(first_day / "world_model"), provenance(run)
    for stage, path in (("tokenizer", trained), ("world_model", run)):
        parent, child = provenance(first_day / stage), provenance(path)
        assert child["parent"]["weights_sha256"] == parent["weights_sha256"]
        assert child["learning_rate"] == pytest.approx(0.3 * parent["learning_rate"])
        assert child.get("crop") == parent.get("crop")
        assert child["batch_size"] == parent["batch_size"] and child["num_steps"] == 4
    of_both = [
        load_file(run / "model" / "model.safetensors") for run in (first_day / "tokenizer", trained)
    ]
    assert (of_both[0]["mean_frame"] == of_both[1]["mean_frame"]).all()
    assert now["tokenizer_hash"] != before["tokenizer_hash"] == now["parent"]["tokenizer_hash"]
    assert [item["share"] for item in now["data_mixture"]] == pytest.approx([1 / 3, 2 / 3])
    assert now["parent"]["data"] == str(first_day / "tokens")
    (parent,) = describe(run)["model"]["parents"]
    assert parent.startswith(f"{before['weights_sha256'][:12]}… (2 steps on moving_square, ")
    assert FirstDay.find(run).old_tokens() == [str(new), str(old)]
    vocabularies = [
        json.loads((r / "model" / "vocabulary.json").read_text())
        for r in (first_day / "world_model", run)
    ]
    assert vocabularies[0]["state"] == vocabularies[1]["state"]

    # A third day learns as fast as the second, and remembers both.
    third = fit("world-model", new, tmp_path / "third", f"--from={run}")
    assert provenance(third)["learning_rate"] == pytest.approx(now["learning_rate"])
    assert len(describe(third)["model"]["parents"]) == 2
    # The same again is left alone; with another parent it is another run.
    capsys.readouterr()
    fit("world-model", new, run, *options)
    assert "finished before, at step 2, and kept" in capsys.readouterr().out
    fit("world-model", new, run, f"--from={third}", mixture, code=1)
    assert "the model to begin from (--from) is" in capsys.readouterr().err


def test_an_interrupted_fine_tuning_goes_on_and_does_not_begin_again(
    first_day: Path, tmp_path: Path
) -> None:
    options = [f"--from={first_day}", "--trainer.max_steps=4", "--model.optimizer.schedule=wsd"]
    spans = "--model.optimizer.decay_spans=[[3, 4]]"
    whole = fit("world-model", first_day / "tokens", tmp_path / "whole", *options, spans)
    part = tmp_path / "part"
    fit("world-model", first_day / "tokens", part, *options, spans, "--keep_checkpoints_at=[2]")
    (part / "checkpoints" / "step-2.ckpt").rename(part / "checkpoints" / "last.ckpt")
    fit("world-model", first_day / "tokens", part, *options, spans)
    name = "model/model.safetensors"
    weights, resumed = load_file(whole / name), load_file(part / name)
    assert all((weights[key] == resumed[key]).all() for key in weights)
    assert provenance(part)["steps"] == 4


def test_what_does_not_fit_is_one_line(
    first_day: Path, new_frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_bins = tokens(new_frames, first_day / "tokenizer", tmp_path / "own_bins")

    def refused(verb: str, data: Path, *options: str) -> str:
        capsys.readouterr()
        fit(verb, data, tmp_path / "x", *options, code=1)
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and "Traceback" not in error
        return error

    start = f"--from={first_day}"
    error = refused("world-model", own_bins, start)
    assert "its bins of action and state are others" in error
    assert f"tokenwm tokenize … --vocabulary-of {first_day}" in error
    layers = "--model.model.transformer.num_layers=3"
    error = refused("world-model", first_day / "tokens", start, layers)
    assert "num_layers is 2 there and 3 here; leave it away" in error
    error = refused("tokenizer", new_frames, start, "--model.tokenizer.patch_size=2")
    assert "patch_size is 4 there and 2 here" in error
    error = refused("world-model", own_bins, f"--from={new_frames}")
    assert "holds no world model; give the folder of a checkpoint" in error
    assert (
        Manifest.load(own_bins).extra["tokenizer_hash"]
        == Manifest.load(first_day / "tokens").extra["tokenizer_hash"]
    )
