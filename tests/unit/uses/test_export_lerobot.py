"""LeRobot → shards → LeRobot: frames within the codec's error, everything else equal."""

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small_datasets import write_frame_shards
from tests.unit.data.lerobot_writer import write_lerobot
from tests.unit.data.test_lerobot_versions import FPS, episode, recipe
from tokenwm.cli import main as cli
from tokenwm.data.prepare import prepare
from tokenwm.data.shards import ShardReader
from tokenwm.errors import ShardError
from tokenwm.uses.export_lerobot import export_lerobot

CODEC_ERROR = 8


def prepared(folder: Path, out: Path) -> ShardReader:
    prepare(recipe(folder, splits={"val": 0, "test": 0}), out)
    return ShardReader(out, verify=True)


@given(data=st.data())
@settings(max_examples=15, deadline=None)
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_round_trip(tmp_path_factory: Any, version: str, data: Any) -> None:
    folder = tmp_path_factory.mktemp("lerobot")
    cameras = ("front", "wrist")[: data.draw(st.integers(0, 2))]
    discrete, extra = data.draw(st.booleans()), data.draw(st.booleans())
    lengths = data.draw(st.lists(st.integers(2, 12), min_size=1, max_size=4))
    tasks = ("wave", "über den Tisch")
    written = [
        episode(
            3 * index,
            length,
            cameras=cameras,
            discrete=discrete,
            extra=extra,
            task=data.draw(st.integers(0, 1)),
        )
        for index, length in enumerate(lengths)
    ]
    write_lerobot(folder / "source", written, version="v3.0", fps=FPS, tasks=tasks)
    first = prepared(folder / "source", folder / "shards")
    assert export_lerobot(folder / "shards", folder / "export", version=version) == len(lengths)  # type: ignore[arg-type]
    again = prepared(folder / "export", folder / "shards_again")

    assert again.manifest.features == first.manifest.features
    for old_key, new_key in zip(first.keys(), again.keys(), strict=True):
        old, new = first.arrays(old_key), again.arrays(new_key)
        for name in old:
            if name.startswith("frames."):
                difference = np.abs(old[name].astype(int) - new[name].astype(int))
                assert difference.max() <= CODEC_ERROR
            else:
                np.testing.assert_array_equal(old[name], new[name], err_msg=name)
        ignored = {"source_index"}  # LeRobot counts episodes from 0 without gaps
        old_metadata, new_metadata = first.metadata(old_key), again.metadata(new_key)
        assert {k: v for k, v in old_metadata.items() if k not in ignored} == {
            k: v for k, v in new_metadata.items() if k not in ignored
        }


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_what_is_written_is_the_format(tmp_path: Path, version: str) -> None:
    write_frame_shards(tmp_path / "shards")
    reader = ShardReader(tmp_path / "shards")
    assert cli.main(
        ["export-lerobot", str(tmp_path / "shards"), "--out", str(tmp_path / "out"),
         "--version", version]
    ) == 0  # fmt: skip
    out = tmp_path / "out"
    info = json.loads((out / "meta" / "info.json").read_text())
    keys = [key for split in ("train", "val", "test") for key in reader.keys(split)]
    steps = sum(reader.episode(key).num_steps for key in keys)
    assert (info["codebase_version"], info["fps"]) == (version, 10)
    assert (info["total_episodes"], info["total_frames"]) == (len(keys), steps)
    assert info["splits"] == {"train": "0:3", "val": "3:4", "test": "4:5"}
    assert info["features"]["observation.state"]["names"] == ["y", "x"]
    assert info["tokenwm"]["units"]["state"] == "px"
    tables = sorted((out / "data").glob("**/*.parquet"))
    assert len(tables) == (1 if version == "v3.0" else len(keys))
    table = pyarrow.concat_tables([pyarrow.parquet.read_table(path) for path in tables])
    numbers = {name for name, about in info["features"].items() if about["dtype"] != "video"}
    assert set(table.column_names) == numbers
    assert table["index"].to_pylist() == list(range(steps))
    # Row for row against the shards; the last row repeats the action before it.
    action = np.array(table["action"].to_pylist(), np.float32)
    start = 0
    for index, key in enumerate(keys):
        arrays = reader.arrays(key)
        rows = slice(start, start + len(arrays["action"]))
        np.testing.assert_array_equal(action[rows][:-1], arrays["action"][:-1])
        np.testing.assert_array_equal(action[rows][-1], arrays["action"][-2])
        assert set(table["episode_index"][rows].to_pylist()) == {index}
        start = rows.stop
    if version == "v3.0":
        (path,) = (out / "meta" / "episodes").glob("**/*.parquet")
        rows_ = pyarrow.parquet.read_table(path).to_pylist()
        feature = "videos/observation.images.top"
        assert [row["dataset_from_index"] for row in rows_][1:] == [
            row["dataset_to_index"] for row in rows_
        ][:-1]
        assert rows_[-1][f"{feature}/to_timestamp"] == pytest.approx(steps / 10)
        assert rows_[0]["tokenwm/key"] == keys[0]
        stats = json.loads((out / "meta" / "stats.json").read_text())
    else:
        lines = (out / "meta" / "episodes_stats.jsonl").read_text().splitlines()
        stats = json.loads(lines[0])["stats"]
        action = action[: reader.episode(keys[0]).num_steps]
    np.testing.assert_allclose(stats["action"]["mean"], action.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats["action"]["std"], action.std(axis=0), rtol=1e-4)
    np.testing.assert_allclose(stats["action"]["max"], action.max(axis=0))
    assert np.array(stats["observation.images.top"]["mean"]).shape == (3, 1, 1)
    assert 0 < stats["observation.images.top"]["mean"][0][0][0] < 1
    assert stats["action"]["count"] == [len(action)]
    # Every episode begins with a key frame, so that one is read without decoding another.
    starts = {0.0} if version == "v2.1" else {row[f"{feature}/from_timestamp"] for row in rows_}
    for path in (out / "videos").glob("**/*.mp4"):
        with av.open(str(path)) as container:
            shown = [float(p.pts * p.time_base) for p in container.demux(video=0) if p.is_keyframe]
        assert {round(start, 6) for start in starts} <= {round(time, 6) for time in shown}


def test_files_are_not_larger_than_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenwm.uses.export_lerobot.MAX_TABLE_BYTES", 2000)
    monkeypatch.setattr("tokenwm.uses.export_lerobot.MAX_VIDEO_BYTES", 1)
    monkeypatch.setattr("tokenwm.uses.export_lerobot.FILES_PER_CHUNK", 2)
    written = [episode(i, 12, cameras=("front",)) for i in range(6)]
    write_lerobot(tmp_path / "source", written, version="v3.0")
    first = prepared(tmp_path / "source", tmp_path / "shards")
    export_lerobot(tmp_path / "shards", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("data/chunk-*/*.parquet"))) > 1
    assert len(list((tmp_path / "out" / "videos").glob("*/chunk-001/file-00*.mp4"))) > 0
    again = prepared(tmp_path / "out", tmp_path / "again")
    for old_key, new_key in zip(first.keys(), again.keys(), strict=True):
        np.testing.assert_array_equal(
            first.arrays(old_key)["state"], again.arrays(new_key)["state"]
        )


def test_odd_sizes(tmp_path: Path) -> None:
    write_lerobot(tmp_path / "source", [episode(i, 12) for i in range(2)], version="v2.1")
    whole = recipe(tmp_path / "source", image_size=[15, 17], splits={"val": 0, "test": 0})
    prepare(whole, tmp_path / "shards")
    export_lerobot(tmp_path / "shards", tmp_path / "out")
    got = recipe(tmp_path / "out", image_size=[15, 17]).open_source()
    frames = got.load(got.episodes()[0]).frames["front"].astype(int)
    reader = ShardReader(tmp_path / "shards")
    expected = reader.frames(reader.keys()[0])[:, 0].astype(int)
    assert np.abs(frames - expected).max() <= CODEC_ERROR


def test_what_is_refused(tmp_path: Path) -> None:
    write_frame_shards(tmp_path / "shards")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    with pytest.raises(ShardError, match="is not empty"):
        export_lerobot(tmp_path / "shards", tmp_path / "full")
    assert (tmp_path / "full" / "mine.txt").read_text() == "kept"
    with pytest.raises(ShardError, match="crf 99"):
        export_lerobot(tmp_path / "shards", tmp_path / "out", crf=99)
    with pytest.raises(ShardError, match="not a finished dataset"):
        export_lerobot(tmp_path / "full", tmp_path / "out")


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_frame_shards(tmp_path / "shards")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tokenwm.uses.export_lerobot._write_lines", fail)
    with pytest.raises(ShardError, match="No space left on device; nothing was kept"):
        export_lerobot(tmp_path / "shards", tmp_path / "out", version="v2.1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards"]
