"""The frames of a model are found from any folder, and never those of another dataset."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from tokenwm.errors import TokenwmError
from tokenwm.evaluation.data_of import data_of


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of a training that ran in ``project`` on its ``runs/frames``."""
    project = tmp_path / "project"
    digest = write(project / "runs" / "frames" / "manifest.json", "{}")
    folder = project / "runs" / "world_model" / "model"
    write(folder / "provenance.json", "{}")
    known = {"data": "runs/frames", "data_manifest_sha256": digest}
    write(folder / "tokenizer" / "provenance.json", json.dumps(known))
    monkeypatch.chdir(project)
    return folder


def test_from_where_training_ran_and_from_elsewhere(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert data_of(model) == "runs/frames"
    monkeypatch.chdir(tmp_path)
    frames = str(tmp_path / "project" / "runs" / "frames")
    assert data_of(model) == frames
    assert data_of(Path("project/runs/world_model/model")) == frames
    # Here lies another dataset of that name.
    write(tmp_path / "runs" / "frames" / "manifest.json", "{ }")
    assert data_of(model) == frames


def test_above_the_checkpoint_another_dataset_will_not_do(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = tmp_path / "project" / "runs" / "frames"
    write(frames / "manifest.json", "{ }")
    assert data_of(model) == "runs/frames"  # as ever: made anew where training ran
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TokenwmError) as error:
        data_of(model)
    assert "trained on runs/frames, which is not in" in str(error.value)
    assert str(tmp_path) in str(error.value) and "give --data" in str(error.value)
    shutil.rmtree(frames)
    with pytest.raises(TokenwmError, match="nor above .*; give --data"):
        data_of(model)
