"""A recording for the Rerun viewer, by a double of its package and by the real one."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.moving_square import CAMERAS
from tokenwm.cli.main import main
from tokenwm.data.shards.reader import ShardReader
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.synthesis.counterfactual import (
    Counterfactual,
    CounterfactualConfig,
    imagine_instead,
)
from tokenwm.synthesis.imagine import ImagineConfig
from tokenwm.synthesis.rerun_file import write_rerun


class Recording:
    """Keeps what it is told, under the time of each."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.now: dict[str, float] = {}
        self.logged: dict[str, dict[float, Any]] = {}
        self.seconds: dict[float, float] = {}

    def binary_stream(self) -> "Recording":
        return self

    def read(self) -> bytes:
        return b"recording"

    def set_time(self, timeline: str, **value: float) -> None:
        self.now[timeline] = next(iter(value.values()))

    def log(self, entity: str, value: Any) -> None:
        self.logged.setdefault(entity, {})[self.now["step"]] = value
        self.seconds[self.now["step"]] = self.now["seconds"]


@pytest.fixture
def made(model: TokenWorldModel, squares: Path) -> Counterfactual:
    imagine = ImagineConfig(
        key="test_1", first_step=4, num_context_frames=3, imagination_horizon=5, num_samples=3
    )
    config = CounterfactualConfig(imagine=imagine, changes=("0+=2",))
    return imagine_instead(model, ShardReader(squares), config)


def test_pictures_and_curves_stand_at_their_steps(
    made: Counterfactual, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recordings: list[Recording] = []

    def open_recording(name: str) -> Recording:
        recordings.append(Recording(name))
        return recordings[-1]

    double = SimpleNamespace(
        RecordingStream=open_recording, Image=lambda image: image, Scalars=lambda value: value
    )
    monkeypatch.setitem(sys.modules, "rerun", double)
    write_rerun(tmp_path / "made.rrd", made, 10.0, CAMERAS)
    assert (tmp_path / "made.rrd").read_bytes() == b"recording"
    (recording,) = recordings
    logged = recording.logged
    assert "0+=2" in recording.name
    assert recording.seconds == {step: step / 10.0 for step in range(-2, 6)}
    camera = CAMERAS[0]
    for title in ("truth", "imagined", "instead"):
        pictures = logged[f"{title}/{camera}"]
        assert list(pictures) == [-2, -1, 0, 1, 2, 3, 4, 5]
        np.testing.assert_array_equal(pictures[0], made.context_frames[-1, 0])
    np.testing.assert_array_equal(logged[f"truth/{camera}"][1], made.truth_frames[0, 0])
    np.testing.assert_array_equal(logged[f"imagined/{camera}"][5], made.own_frames[0, 4, 0])
    np.testing.assert_array_equal(logged[f"instead/{camera}"][5], made.instead_frames[0, 4, 0])
    for name, quantity in made.quantities.items():
        for curve, values in {
            f"{name}/imagined": quantity.mean_own,
            f"{name}/instead": quantity.mean_instead,
            f"{name}_difference/low": quantity.low,
        }.items():
            assert logged[curve] == dict(enumerate(values.tolist(), start=1))
        assert (f"{name}/truth" in logged) == (quantity.truth is not None)


def test_the_real_package_reads_it_back(made: Counterfactual, tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="the extra rerun is not installed")
    from rerun.chunk import RrdReader

    write_rerun(tmp_path / "made.rrd", made, 10.0, CAMERAS)
    found: dict[str, int] = {}
    for chunk in RrdReader(str(tmp_path / "made.rrd")).stream():
        found[chunk.entity_path] = found.get(chunk.entity_path, 0) + chunk.num_rows
    assert found[f"/truth/{CAMERAS[0]}"] == found[f"/instead/{CAMERAS[0]}"] == 8
    assert found["/reward/imagined"] == found["/reward_difference/mean"] == 5


def test_it_says_what_it_needs_before_it_imagines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    argv = ["imagine", str(tmp_path / "none"), "--data", str(tmp_path), "--out", str(tmp_path)]
    assert main([*argv, "--instead", "0+=1", "--rerun"]) == 1
    assert "pip install 'tokenwm[rerun]'" in capsys.readouterr().err
    assert main([*argv, "--rerun"]) == 1
    assert "give --instead too" in capsys.readouterr().err
