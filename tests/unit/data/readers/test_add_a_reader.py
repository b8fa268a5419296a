"""A reader is one small file: this one is as docs/formats.md says, and everything works with it.

Its format has one observation more than actions, its state in two arrays, pictures in an array, and
no rate.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from tokenwm.cli import main as cli
from tokenwm.data.making.prepare import prepare
from tokenwm.data.readers import base as sources
from tokenwm.data.readers.base import EpisodeFormat, EpisodeRef, Recognised
from tokenwm.data.readers.columns.columns import Column, RecordedConfig
from tokenwm.data.readers.pictures.frames import ArrayFrames
from tokenwm.data.readers.recorded.recording import RecordedSource, Recording
from tokenwm.data.recipes.recipe import load_recipe
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import EpisodeError


@dataclass(frozen=True, kw_only=True)
class NpzConfig(RecordedConfig):
    """Options of a reader of a folder with one ``.npz`` per episode."""

    type: Literal["npz_test"] = "npz_test"

    @classmethod
    def recognise(cls, path: Path) -> Recognised | None:
        if not path.is_dir() or not sorted(path.glob("*.npz")):
            return None
        return Recognised(config=cls(path=str(path)), rate=None, facts={"format": "NPZ"})

    def open(self, episode_format: EpisodeFormat, folder: Path | None) -> "NpzSource":
        return NpzSource(self, episode_format, self.find(folder, "expected: *.npz"))


class NpzSource(RecordedSource):
    def __init__(self, config: NpzConfig, episode_format: EpisodeFormat, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.npz"))
        with np.load(self.paths[0], allow_pickle=False) as arrays:
            columns = {
                name: Column(
                    kind="pictures" if array.dtype == np.uint8 else "numbers",
                    dtype=array.dtype.name,
                    shape=array.shape[1:] or (1,),
                )
                for name, array in arrays.items()
            }
        super().__init__(config, columns, str(folder), episode_format, rate=None)

    def episodes(self) -> Sequence[EpisodeRef]:
        return [EpisodeRef(key=path.stem, index=i) for i, path in enumerate(self.paths)]

    def read(self, ref: EpisodeRef) -> Recording:
        try:
            with np.load(self.paths[ref.index], allow_pickle=False) as file:
                arrays = dict(file)
        except (OSError, ValueError) as error:
            raise EpisodeError(f"episode {ref.key}: cannot be read: {error}") from error
        return Recording(
            num_rows=len(arrays["action"]) + 1,
            **self.signals(arrays),
            terminated=arrays["ended"],
            frames={
                camera: ArrayFrames(images=arrays[name], name=name)
                for camera, name in self.cameras.items()
            },
            task="stack the blocks",
            metadata={"success": bool(arrays["ended"][-1])},
        )

    def provenance(self) -> dict[str, Any]:
        return {"source": self.config.path, "source_checksum": None, **self.inferred}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sources.SOURCES, "npz_test", f"{__name__}:NpzConfig")
    assert __name__ in sys.modules


def write(path: Path, num_actions: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    arrays = {
        "obs/position": rng.normal(size=(num_actions + 1, 3)),
        "obs/gripper": rng.normal(size=num_actions + 1),
        "action": rng.integers(0, 4, (num_actions, 1)),
        "reward": rng.normal(size=num_actions),
        "ended": np.arange(num_actions) == num_actions - 1,
        "top": rng.integers(0, 256, (num_actions + 1, 64, 64, 3), dtype=np.uint8),
    }
    np.savez(path, **arrays)
    return arrays


def test_inspect_and_prepare_know_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "recordings"
    folder.mkdir()
    written = {f"run_{i}": write(folder / f"run_{i}.npz", 5 + i, seed=i) for i in range(4)}
    (folder / "run_9.npz").write_bytes(b"PK but no archive")
    recipe = tmp_path / "recipe.yaml"
    assert cli.main(["inspect", str(folder), "--recipe", str(recipe)]) == 0
    out = capsys.readouterr().out
    for part in ("NPZ", "not recorded", "stack the blocks", "run_9", "actions are discrete"):
        assert part in out
    assert "the state is a guess among: obs/position, obs/gripper" in out
    manifest = prepare(load_recipe(recipe), tmp_path / "out")
    assert [item.key for item in manifest.excluded] == ["run_9"]
    reader = ShardReader(tmp_path / "out", verify=True)
    for key, arrays in written.items():
        got = reader.arrays(key)
        np.testing.assert_array_equal(got["frames.top"], arrays["top"])
        np.testing.assert_array_equal(got["action"][:-1], arrays["action"])
        state = np.column_stack([arrays["obs/position"], arrays["obs/gripper"]])
        np.testing.assert_array_equal(got["state"], state.astype(np.float32))
        np.testing.assert_array_equal(got["reward"][:-1], arrays["reward"].astype(np.float32))
        assert got["terminated"].tolist() == [*arrays["ended"].tolist(), False]
        assert not got["truncated"].any()
        assert reader.metadata(key)["success"] is True
        assert reader.metadata(key)["task"] == "stack the blocks"
