"""The real command line, every verb, on the debug sizes: from a simulator to a report."""

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.documentation import python_blocks
from tokenwm.cli.export import code_revision
from tokenwm.data.shards import ShardReader

pytest.importorskip("gym_pusht", reason="needs the pusht extra: pip install 'tokenwm[pusht]'")

REPOSITORY = Path(__file__).parents[2]


def tokenwm(*arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy"}
    return subprocess.run(
        [sys.executable, "-m", "tokenwm", *arguments],
        cwd=cwd,
        env=environment,
        text=True,
        capture_output=True,
        timeout=170,
        check=False,
    )


def must(*arguments: str) -> str:
    done = tokenwm(*arguments)
    assert done.returncode == 0, f"tokenwm {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


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
    output = must("quickstart", "--size", "debug", "--out", str(run_folder))
    assert "finished before" in output
    assert weights.stat().st_mtime_ns == before
    changed = tokenwm("quickstart", "--size", "small", "--out", str(run_folder))
    assert changed.returncode == 1
    assert "other settings" in changed.stderr


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
    example, environment = python_blocks("README.md")
    assert example.count("runs/quickstart/") == 1
    reader = ShardReader(run_folder / "frames")
    episode = reader.arrays(reader.keys("test")[0])
    names: dict[str, Any] = {
        "frames": episode["frames.top"][None, :4, None],
        "past_actions": episode["action"][None, :3],
        "states": episode["state"][None, :4],
        "candidates": np.random.default_rng(0).uniform(0, 512, (64, 3, 2)).astype(np.float32),
    }
    exec(example.replace("runs/quickstart", str(run_folder)), names)
    assert names["video"].shape == (64, 3, 1, 64, 64, 3)
    assert names["rollout"].reward.shape == (64, 3)
    assert 0 <= int(names["best"]) < 64
    exec(environment, names)
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
def test_ctrl_c_keeps_the_work_and_the_same_command_goes_on(
    run_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "world_model"
    config = REPOSITORY / "configs" / "world_model" / "debug.yaml"
    command = ["world-model", "fit", "--config", str(config)]
    command += ["--data.root", str(run_folder / "tokens"), "--trainer.max_steps", "300"]
    command += ["--trainer.default_root_dir", str(folder), "--checkpoint_every_n_steps", "20"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tokenwm", *command],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 90
    while not (folder / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert not (folder / "model").exists()
    must(*command)
    assert (folder / "model" / "model.safetensors").is_file()
    provenance = json.loads((folder / "model" / "provenance.json").read_text())
    assert provenance["steps"] <= 300
