"""LeRobot → shards → LeRobot: frames within the codec's error, everything else equal."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small_datasets import write_frame_shards
from tests.unit.data.readers.lerobot_writer import write_lerobot
from tests.unit.data.readers.test_lerobot_versions import FPS, episode, recipe
from tokenwm.cli import main as cli
from tokenwm.data.making.prepare import prepare
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import ShardError
from tokenwm.synthesis.lerobot.export import export_lerobot

CODEC_ERROR = 8


def prepared(folder: Path, out: Path) -> ShardReader:
    prepare(recipe(folder, splits={"val": 0, "test": 0}), out)
    return ShardReader(out, verify=True)


@given(data=st.data())
@settings(max_examples=15)
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
    monkeypatch.setattr("tokenwm.synthesis.lerobot.export.MAX_TABLE_BYTES", 2000)
    monkeypatch.setattr("tokenwm.synthesis.lerobot.export.MAX_VIDEO_BYTES", 1)
    monkeypatch.setattr("tokenwm.synthesis.lerobot.export.FILES_PER_CHUNK", 2)
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


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_statistics_are_those_that_lerobot_reads(tmp_path: Path, version: str) -> None:
    """Keys, shapes and values of lerobot 0.4: quantiles too, of episodes and of the dataset."""
    written = [episode(i, 12 + 5 * i, cameras=("front",), extra=True) for i in range(3)]
    write_lerobot(tmp_path / "source", written, version="v3.0")
    reader = prepared(tmp_path / "source", tmp_path / "shards")
    out = tmp_path / "out"
    export_lerobot(tmp_path / "shards", out, version=version)  # type: ignore[arg-type]
    features = json.loads((out / "meta" / "info.json").read_text())["features"]
    table = pyarrow.concat_tables(
        pyarrow.parquet.read_table(path) for path in sorted((out / "data").glob("**/*.parquet"))
    )
    pictures = {key: reader.arrays(key)["frames.front"] for key in list(reader.keys())}
    quantiles = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}

    def check(stats: dict[str, Any], feature: str, rows: Any, images: Any) -> None:
        assert set(stats) == {"min", "max", "mean", "std", "count", *quantiles}
        assert stats["count"] == [len(images)]
        is_picture = features[feature]["dtype"] == "video"
        values = (
            images.reshape(-1, 3) / 255 if is_picture else rows.reshape(len(rows), -1).astype(float)
        )
        expected = {name: np.quantile(values, part, axis=0) for name, part in quantiles.items()}
        expected |= {"min": values.min(0), "max": values.max(0)}
        expected |= {"mean": values.mean(0), "std": values.std(0)}
        for name, value in expected.items():
            got = np.array(stats[name])
            assert got.shape == ((3, 1, 1) if is_picture else tuple(features[feature]["shape"]))
            np.testing.assert_allclose(got.reshape(-1), value, rtol=1e-6, atol=1e-6)

    start, of_episodes = 0, []
    if version == "v3.0":
        (path,) = (out / "meta" / "episodes").glob("**/*.parquet")
        for row in pyarrow.parquet.read_table(path).to_pylist():
            stats: dict[str, Any] = {name: {} for name in features}
            for name, value in row.items():
                if name.startswith("stats/"):
                    _, feature, figure = name.split("/")
                    stats[feature][figure] = value
            of_episodes.append(stats)
    else:
        lines = (out / "meta" / "episodes_stats.jsonl").read_text().splitlines()
        of_episodes = [json.loads(line)["stats"] for line in lines]
    for stats, images in zip(of_episodes, pictures.values(), strict=True):
        assert stats.keys() == features.keys()
        rows = slice(start, start + len(images))
        for feature in features:
            column = np.array(table[feature][rows].to_pylist()) if feature in numbers(table) else 0
            check(stats[feature], feature, column, images)
        start = rows.stop
    if version == "v3.0":
        whole = json.loads((out / "meta" / "stats.json").read_text())
        assert whole.keys() == features.keys()
        for feature in features:
            column = np.array(table[feature].to_pylist()) if feature in numbers(table) else 0
            check(whole[feature], feature, column, np.concatenate(list(pictures.values())))


def numbers(table: pyarrow.Table) -> set[str]:
    return set(table.column_names)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_splits_and_licence_come_back(tmp_path: Path, version: str) -> None:
    written = [episode(i, 12, cameras=("front",)) for i in range(10)]
    write_lerobot(tmp_path / "source", written, version="v3.0")
    splits = {"val": 0.2, "test": 0.2, "seed": 3}
    prepare(recipe(tmp_path / "source", splits=splits, licence="MIT License"), tmp_path / "shards")
    first = ShardReader(tmp_path / "shards")
    export_lerobot(tmp_path / "shards", tmp_path / "out", version=version)  # type: ignore[arg-type]
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith('---\nlicense: mit\nlicense_name: "MIT License"\n')

    def states(reader: ShardReader) -> dict[str, list[Any]]:
        return {
            split: [reader.arrays(key)["state"].tolist() for key in reader.keys(split)]
            for split in ("train", "val", "test")
        }

    # With a recipe that says nothing of them, and with the one that inspect writes.
    prepare(recipe(tmp_path / "out"), tmp_path / "again")
    file = tmp_path / "recipe.yaml"
    assert cli.main(["inspect", str(tmp_path / "out"), "--recipe", str(file)]) == 0
    assert "splits: {recorded: true}\nlicence: MIT License\n" in file.read_text()
    assert cli.main(["prepare", str(file), "--out", f"{tmp_path}/inspected", "--workers", "0"]) == 0
    for name in ("again", "inspected"):
        again = ShardReader(tmp_path / name)
        assert again.manifest.provenance["licence"] == "MIT License"
        assert again.manifest.extra["source_gaps"] == []
        if name == "again":  # inspect proposes another rate
            assert states(again) == states(first)
        assert [again.manifest.num_episodes(s) for s in ("train", "val", "test")] == [6, 2, 2]
    # A recipe that says otherwise is obeyed.
    prepare(
        recipe(tmp_path / "out", splits={"val": 0, "test": 0}, licence="mine"), tmp_path / "other"
    )
    other = ShardReader(tmp_path / "other")
    assert other.manifest.num_episodes("train") == 10
    assert other.manifest.provenance["licence"] == "mine"


def test_a_dataset_of_before_there_were_recorded_splits_is_kept(tmp_path: Path) -> None:
    write_lerobot(tmp_path / "a", [episode(i, 12) for i in range(5)], version="v3.0")
    for wanted in (recipe(tmp_path / "a"), recipe(tmp_path / "a", splits={"val": 0.2})):
        out = tmp_path / f"{wanted.splits.val}"
        manifest = prepare(wanted, out)
        older = json.loads(json.dumps(manifest.provenance))
        assert older["recipe"]["splits"].pop("recorded") is False
        del older["recipe"]["quality"]["allow_short_video"]
        replace(manifest, provenance=older).save(out)
        assert prepare(wanted, out).provenance == older
        with pytest.raises(ShardError, match="it differs in recipe"):
            prepare(replace(wanted, image_size=(24, 24)), out)


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ({"train": "0:4", "val": "3:6"}, "splits overlap"),
        ({"train": "0:4", "val": "most"}, "split 'val' is 'most'"),
        ({"train": "0:4", "extra": "4:6"}, "split 'extra' is '4:6'"),
    ],
)
def test_splits_that_cannot_be_meant_are_not_used(
    tmp_path: Path, splits: dict[str, str], said: str
) -> None:
    write_lerobot(tmp_path / "a", [episode(i, 12) for i in range(6)], version="v3.0")
    info = tmp_path / "a" / "meta" / "info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "splits": splits}))
    source = recipe(tmp_path / "a").open_source()
    (gap,) = source.gaps()
    assert said in gap.text
    assert {ref.split for ref in source.episodes()} == {""}


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


@pytest.mark.parametrize("discrete", [False, True])
def test_actions_side_by_side_stay_so_and_come_back(tmp_path: Path, discrete: bool) -> None:
    written = [episode(i, 13, cameras=(), discrete=discrete) for i in range(2)]
    write_lerobot(tmp_path / "source", written, version="v2.1")
    options = {"splits": {"val": 0, "test": 0}, "control_rate": FPS / 3}
    chunks = recipe(tmp_path / "source", action_aggregation="stack", **options)
    first = prepare(chunks, tmp_path / "shards")
    export_lerobot(tmp_path / "shards", tmp_path / "out")
    again = prepare(recipe(tmp_path / "out", **options), tmp_path / "again")
    assert again.features == first.features
    assert first.features["action"].shape == (3 if discrete else 9,)
    assert first.actions_per_step == again.actions_per_step == 3
    readers = [ShardReader(tmp_path / name) for name in ("shards", "again")]
    arrays = [reader.arrays(reader.keys()[0], ["action"])["action"] for reader in readers]
    np.testing.assert_array_equal(*arrays)
    expected = np.reshape(written[0].columns["action"][:12], (4, -1))
    np.testing.assert_array_equal(arrays[0][:-1], expected)
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    assert info["fps"] == FPS / 3
    for wrong in (2, 0, "3", [3]):  # what a stranger's folder may say
        info["tokenwm"]["actions_per_step"] = wrong
        (tmp_path / "out/meta/info.json").write_text(json.dumps(info))
        source = recipe(tmp_path / "out", **options).open_source()
        assert source.describe().actions_per_step == 1


def test_what_is_refused(tmp_path: Path) -> None:
    write_frame_shards(tmp_path / "shards")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    with pytest.raises(ShardError, match="is not empty"):
        export_lerobot(tmp_path / "shards", tmp_path / "full")
    with pytest.raises(ShardError, match="is not empty"):  # it is no LeRobot folder
        export_lerobot(tmp_path / "shards", tmp_path / "full", overwrite=True)
    assert (tmp_path / "full" / "mine.txt").read_text() == "kept"
    with pytest.raises(ShardError, match="crf 99"):
        export_lerobot(tmp_path / "shards", tmp_path / "out", crf=99)
    with pytest.raises(ShardError, match="not a finished dataset"):
        export_lerobot(tmp_path / "full", tmp_path / "out")
    for overwrite in (False, True):
        export_lerobot(tmp_path / "shards", tmp_path / "again", overwrite=overwrite)


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_frame_shards(tmp_path / "shards")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tokenwm.synthesis.lerobot.export._write_lines", fail)
    with pytest.raises(ShardError, match="No space left on device; nothing was kept"):
        export_lerobot(tmp_path / "shards", tmp_path / "out", version="v2.1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards"]
