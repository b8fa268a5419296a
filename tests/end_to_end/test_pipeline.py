"""The real command line, every verb, on the debug sizes: from a simulator to a report."""

import csv
import hashlib
import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.documentation import python_blocks
from tests.processes import REPOSITORY, must, tokenwm
from tokenwm.cli import main as cli
from tokenwm.cli.training.model_exports import code_revision

pytest.importorskip("gym_pusht", reason="needs the pusht extra: pip install 'tokenwm[pusht]'")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    must("quickstart", "--size", "debug", "--out", str(folder))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_quickstart_leaves_a_report_with_its_baselines(run_folder: Path) -> None:
    metrics = json.loads((run_folder / "report" / "metrics.json").read_text())
    text = json.dumps(metrics)
    for word in ("persistence", "reconstruction", "shuffled", "codebook"):
        assert word in text
    page = (run_folder / "report" / "index.html").read_text()
    assert "data:image/png;base64," in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert (run_folder / "world_model" / "model" / "model.safetensors").is_file()
    assert list((run_folder / "world_model" / "pictures").glob("*.png"))


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_finished_quickstart_is_continued_without_training_again(run_folder: Path) -> None:
    weights = run_folder / "world_model" / "model" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    done = tokenwm("quickstart", "--size", "debug", "--out", str(run_folder), "--json")
    assert done.returncode == 0 and "finished before" in done.stderr
    assert json.loads(done.stdout)["report"] == str(run_folder / "report")
    assert weights.stat().st_mtime_ns == before
    changed = tokenwm("quickstart", "--size", "small", "--out", str(run_folder))
    assert changed.returncode == 1
    assert "other settings" in changed.stderr


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("is_far", [False, True])
def test_a_second_day_in_one_command(run_folder: Path, tmp_path: Path, is_far: bool) -> None:
    """The tokenizer is kept, or fine-tuned and old frames encoded again, where pictures are far."""
    first = tmp_path / "first"
    shutil.copytree(run_folder / "world_model" / "model", first / "model")
    if is_far:
        file = first / "model" / "tokenizer" / "provenance.json"
        origin = json.loads(file.read_text())
        file.write_text(json.dumps({**origin, "metrics": {"val/psnr": 99.0}}))
    settings = ["source.seed=7", "source.num_episodes=6", "source.max_steps=15"]
    arguments = ["--size", "debug", "--from", str(first), "--out", str(tmp_path / "second")]
    said = must("quickstart", *arguments, "--set", *settings)
    assert f"99.0 dB at home: it is {'fine-tuned' if is_far else 'kept'}" in said or not is_far
    second = tmp_path / "second"
    origin = json.loads((second / "world_model" / "model" / "provenance.json").read_text())
    parent = json.loads((first / "model" / "provenance.json").read_text())
    assert origin["parent"]["weights_sha256"] == parent["weights_sha256"]
    assert (origin["tokenizer_hash"] == parent["tokenizer_hash"]) is not is_far
    old = str(second / "old_tokens") if is_far else str(run_folder / "tokens")
    assert [item["data"] for item in origin["data_mixture"]] == [str(second / "tokens"), old]
    assert [item["share"] for item in origin["data_mixture"]] == [0.5, 0.5]
    assert (second / "tokenizer").exists() is is_far
    assert (second / "report" / "index.html").is_file()
    again = tokenwm("quickstart", *arguments[:-1], str(run_folder), "--set", *settings)
    assert again.returncode == 1 and "other settings" in again.stderr


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_imagine_writes_pictures_and_arrays(run_folder: Path, tmp_path: Path) -> None:
    data = ["--data", str(run_folder / "frames"), "--context", "2", "--horizon", "4"]
    must("imagine", str(run_folder / "world_model"), *data, "--out", str(tmp_path))
    names = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert {".gif", ".mp4", ".npz"} <= names
    (archive,) = tmp_path.rglob("*.npz")
    with np.load(archive, allow_pickle=False) as arrays:
        assert arrays["frames"].dtype == np.uint8
        assert np.isfinite(arrays["reward"]).all()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_both_stages_can_be_validated_from_the_command_line(
    run_folder: Path, tmp_path: Path
) -> None:
    for verb, folder, data in (
        ("tokenizer", "tokenizer", "frames"),
        ("world-model", "world_model", "tokens"),
    ):
        config = REPOSITORY / "configs" / folder / "debug.yaml"
        root = ["--trainer.default_root_dir", str(tmp_path / folder)]
        source = ["--config", str(config), "--data.root", str(run_folder / data), *root]
        must(verb, "fit", *source, "--trainer.max_steps", "4", "--checkpoint_every_n_steps", "2")
        checkpoint = tmp_path / folder / "checkpoints" / "last.ckpt"
        for command in ("validate", "test"):
            output = must(verb, command, *source, "--ckpt_path", str(checkpoint))
            stage = "val" if command == "validate" else "test"
            assert f"{stage}/loss" in output
    untrained = tokenwm(verb, "test", *source[:4], "--trainer.default_root_dir", str(tmp_path))
    assert untrained.returncode == 1
    assert "an untrained model has nothing to show" in untrained.stderr


def test_a_model_says_where_it_comes_from(run_folder: Path) -> None:
    def provenance(*parts: str) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(run_folder.joinpath(*parts).read_text())
        return values

    tokenizer = provenance("tokenizer", "model", "provenance.json")
    model = provenance("world_model", "model", "provenance.json")
    assert model["tokenizer_hash"] == tokenizer["tokenizer_hash"]
    for stage, data in ((tokenizer, "frames"), (model, "tokens")):
        manifest = (run_folder / data / "manifest.json").read_bytes()
        assert stage["data_manifest_sha256"] == hashlib.sha256(manifest).hexdigest()
        assert stage["code_revision"] == code_revision()
    inside = provenance("world_model", "model", "tokenizer", "provenance.json")
    assert inside == {**tokenizer, "part_of": "world_model"}


def test_overwriting_tokens_removes_nothing_else(run_folder: Path, tmp_path: Path) -> None:
    tokenizer = ["--tokenizer", str(run_folder / "tokenizer")]
    frames = str(run_folder / "frames")
    done = tokenwm("tokenize", frames, *tokenizer, "--out", frames, "--overwrite")
    assert done.returncode == 1
    assert "would remove" in done.stderr
    assert (run_folder / "frames" / "manifest.json").is_file()
    tokens = tmp_path / "tokens"  # a copy: other tests train on those of the run
    shutil.copytree(run_folder / "tokens", tokens)
    (tokens / "notes.txt").write_text("mine")
    manifests = set()
    for place in (str(tokens / "tokenizer"), str(run_folder / "tokenizer")):  # inside, outside
        must("tokenize", frames, "--tokenizer", place, "--out", str(tokens), "--overwrite")
        assert (tokens / "notes.txt").read_text() == "mine"
        manifests.add((tokens / "manifest.json").read_bytes())
    assert len(manifests) == 1


def test_the_python_in_the_readme_runs(run_folder: Path) -> None:
    """On what its two commands made; short episodes need a shorter horizon than it gives."""
    names: dict[str, Any] = {}
    for block in python_blocks("README.md"):
        assert "runs/quickstart/" in block or "model" in names
        block = block.replace("runs/quickstart", str(run_folder))
        exec(block.replace("horizon=10", "horizon=3").replace("64, 10,", "64, 3,"), names)
    assert names["video"].shape == (8, 3, 1, 64, 64, 3)
    assert names["rollout"].reward.shape == (64, 3)
    assert names["best"].shape == (3, 2) and names["surprise"].isfinite().all()
    assert names["reward"].shape == names["info"]["frame_nll"].shape == (64,)


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize(("verb", "data"), [("tokenizer", "frames"), ("world-model", "tokens")])
def test_a_killed_run_leads_to_the_weights_of_an_uninterrupted_one(
    run_folder: Path, tmp_path: Path, verb: str, data: str
) -> None:
    """The uninterrupted one is that of the quick start. Bit for bit, after a kill -9."""
    stage = verb.replace("-", "_")
    config = REPOSITORY / "configs" / stage / "debug.yaml"
    command = [verb, "fit", "--config", str(config), "--data.root", str(run_folder / data)]
    command += ["--model.max_shift", "4"] if verb == "tokenizer" else []
    command += ["--trainer.default_root_dir", str(tmp_path), "--checkpoint_every_n_steps", "9"]
    # So it goes on from step 27, with other draws of validation behind it than the whole run.
    killed = tokenwm(
        *command, "--trainer.callbacks+=tests.kill.KillAt", "--trainer.callbacks.step=31"
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "model").exists()
    must(*command)
    resumed = load_file(tmp_path / "model" / "model.safetensors")
    whole = load_file(run_folder / stage / "model" / "model.safetensors")
    assert resumed.keys() == whole.keys()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    with (tmp_path / "logs" / "metrics.csv").open() as log:
        logged = [int(row["step"]) for row in csv.DictReader(log)]
    assert min(logged) >= 27, "it began anew"


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("number", "step", "in_validation"),
    [(signal.SIGINT, 7, False), (signal.SIGTERM, 20, True)],
    ids=["ctrl-c", "sigterm in validation"],
)
def test_a_stopped_run_keeps_every_step_and_the_same_command_goes_on(
    run_folder: Path, tmp_path: Path, number: int, step: int, in_validation: bool
) -> None:
    config = REPOSITORY / "configs" / "world_model" / "debug.yaml"
    command = ["world-model", "fit", "--config", str(config)]
    command += ["--data.root", str(run_folder / "tokens")]
    command += ["--trainer.default_root_dir", str(tmp_path)]
    stopping = ["--trainer.callbacks+=tests.kill.KillAt", f"--trainer.callbacks.step={step}"]
    stopping += [f"--trainer.callbacks.number={int(number)}"]
    stopping += [f"--trainer.callbacks.in_validation={in_validation}"]
    stopped = tokenwm(*command, *stopping)
    assert stopped.returncode == 128 + number, stopped.stderr
    assert "interrupted: the last checkpoint" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert not (tmp_path / "model").exists()
    done = step if in_validation else step + 1  # the step at hand is finished
    assert f"resuming at step {done} of 40, after {4 * done} windows" in must(*command)
    resumed = load_file(tmp_path / "model" / "model.safetensors")
    whole = load_file(run_folder / "world_model" / "model" / "model.safetensors")
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


@pytest.mark.filterwarnings("ignore")  # Lightning and jsonargparse warn of each other
def test_a_finished_run_is_left_alone_and_other_options_are_one_line(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_folder / "world_model"
    config = REPOSITORY / "configs" / "world_model" / "debug.yaml"
    command = ["world-model", "fit", "--config", str(config)]
    command += ["--data.root", str(run_folder / "tokens")]
    command += ["--trainer.default_root_dir", str(folder)]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert cli.main(command) == 0
    assert "finished before, at step 40, and kept" in capsys.readouterr().out
    for option, value, message in (
        ("trainer.max_steps", "30", "trainer.max_steps is 30, but the run .* is at step 40"),
        ("trainer.max_steps", "60", "max_steps is 60, but 40 .* learning rate of its step 23"),
        ("model.model.transformer.dim", "64", "transformer.dim is 64, but 32 in the run"),
        ("model.optimizer.learning_rate", "1e-5", "learning_rate is 1e-05, but 0.002 in the run"),
        ("model.optimizer.schedule", "cosine", "schedule is cosine, but wsd"),
        ("seed_everything", "3", "seed_everything is 3, but 0 in the run"),
        ("data.seed", "3", "data.seed is 3, but 0 in the run"),
        (
            "trainer.gradient_clip_algorithm",
            "value",
            "algorithm is value, but norm in the run",
        ),
        (
            "trainer.callbacks+",
            "lightning.pytorch.callbacks.EMAWeightAveraging",
            "averaging of weights .* is EMAWeightAveraging, but none in the run",
        ),
        ("trainer.precision", "bf16-mixed", "precision is bf16-mixed, but 32-true"),
        ("trainer.precision", "bf16-true", "training works with 32-true, bf16-mixed, 16-mixed"),
        ("trainer.precision", "16-mixed", "which needs a GPU"),
    ):
        assert cli.main([*command, f"--{option}={value}"]) == 1
        errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert len(errors) == 1 and re.search(message, errors[0]), errors
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_logs_hold_rate_gradient_tokens_and_epochs(run_folder: Path) -> None:
    with (run_folder / "world_model" / "logs" / "metrics.csv").open() as log:
        rows = [row for row in csv.DictReader(log) if row["train/learning_rate"]]
    assert [int(row["step"]) for row in rows] == [19, 39]
    assert float(rows[0]["train/learning_rate"]) == pytest.approx(2e-3)  # stable until step 22
    assert float(rows[1]["train/learning_rate"]) < 3e-4
    assert all(float(row["train/gradient_norm"]) > 0 for row in rows)
    tokens = [float(row["train/tokens_seen"]) for row in rows]
    assert tokens[1] == 2 * tokens[0] > 0
    epochs = [float(row["data/epochs"]) for row in rows]
    assert epochs[1] == pytest.approx(2 * epochs[0])
