"""LeRobot v2.1 and v3.0 against a writer of the format: what is written is what is read."""

import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.data.readers.lerobot_writer import WrittenEpisode, write_lerobot
from tokenwm.data.making.prepare import prepare
from tokenwm.data.recipes.recipe import Recipe, parse_recipe
from tokenwm.errors import EpisodeError, RecipeError, SourceError

VERSIONS = ("v2.1", "v3.0")
FPS = 30


def recipe(folder: Path, size: int = 16, **changes: Any) -> Recipe:
    source = {"type": "lerobot", "path": str(folder), **changes.pop("source", {})}
    values = {"name": "a", "source": source, "control_rate": FPS, "image_size": [size, size]}
    return parse_recipe(values | changes)


def episode(
    index: int,
    length: int,
    *,
    cameras: tuple[str, ...] = ("front",),
    discrete: bool = False,
    extra: bool = False,
    task: int = 0,
    seed: int = 0,
) -> WrittenEpisode:
    rng = np.random.default_rng([seed, index])
    action = rng.normal(size=(length, 3)).astype(np.float32)
    columns: dict[str, Any] = {
        "observation.state": rng.normal(size=(length, 2)).astype(np.float32),
        "action": rng.integers(0, 5, length) if discrete else action,
    }
    if extra:
        columns["next.reward"] = rng.normal(size=length).astype(np.float32)
        columns["next.done"] = np.arange(length) == length - 2
        columns["next.success"] = np.arange(length) == length - 2
    # One colour per picture, so that the codec's error is small; even levels survive YUV well.
    levels = rng.integers(20, 235, (len(cameras), length))
    videos = {
        f"observation.images.{camera}": np.broadcast_to(
            levels[i][:, None, None, None], (length, 16, 16, 3)
        ).astype(np.uint8)
        for i, camera in enumerate(cameras)
    }
    return WrittenEpisode(index=index, columns=columns, videos=videos, task=task)


def check_equal(got: Any, written: WrittenEpisode, first: int = 0, step: int = 1) -> None:
    for feature, images in written.videos.items():
        camera = feature.rpartition(".")[2]
        difference = got.frames[camera].astype(int) - images[first::step].astype(int)
        assert np.abs(difference).max() <= 4
    columns = written.columns
    np.testing.assert_array_equal(got.state, columns["observation.state"][first::step])
    kept = np.arange(first, written.length, step)
    action = columns["action"].reshape(written.length, -1)[kept[1:] - 1]
    np.testing.assert_array_equal(got.action[:-1], action)
    assert got.is_discrete == (columns["action"].ndim == 1)
    if "next.reward" in columns:
        np.testing.assert_allclose(
            got.reward[:-1],
            [columns["next.reward"][a:b].sum() for a, b in zip(kept, kept[1:], strict=False)],
            rtol=1e-5,
            atol=1e-5,
        )
        assert got.metadata["success"] is True
        assert got.terminated.any() or got.metadata["terminated_after_end"]


@given(data=st.data())
@settings(max_examples=40)
@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_written_is_read(tmp_path_factory: Any, version: str, data: Any) -> None:
    def draw(strategy: Any) -> Any:
        return data.draw(strategy)

    cameras = ("front", "wrist_left")[: draw(st.integers(0, 2))]
    discrete, extra = draw(st.booleans()), draw(st.booleans())
    step = draw(st.sampled_from([1, 2, 3]))
    tasks = ("wave", "über den Tisch", "")
    indices = sorted(draw(st.sets(st.integers(0, 2000), min_size=1, max_size=5)))
    written = [
        episode(
            index,
            draw(st.integers(step + 1, 12)),
            cameras=cameras,
            discrete=discrete,
            extra=extra,
            task=draw(st.integers(0, 2)),
        )
        for index in indices
    ]
    folder = tmp_path_factory.mktemp("lerobot") / "data"
    write_lerobot(
        folder,
        written,
        version=version,
        fps=FPS,
        tasks=tasks,
        per_data_file=draw(st.integers(1, 3)),
        per_video_file=draw(st.integers(1, 4)),
        per_row_group=draw(st.integers(1, 40)),
        codec_options={"crf": "4", "preset": "ultrafast", "g": str(draw(st.integers(1, 20)))},
    )
    source = recipe(folder, control_rate=FPS / step).open_source()
    refs = source.episodes()
    assert [ref.index for ref in refs] == indices
    for ref, wanted in zip(refs, written, strict=True):
        got = source.load(ref)
        check_equal(got, wanted, step=step)
        assert got.task == tasks[wanted.task]


def test_both_versions_give_the_same_numbers_and_phases(tmp_path: Path) -> None:
    written = [episode(index, 20, extra=True) for index in (3, 4, 9)]
    sources = []
    for version in VERSIONS:
        write_lerobot(tmp_path / version, written, version=version)
        sources.append(recipe(tmp_path / version, control_rate=10).open_source())
    for phase in (0, 1, 2):
        for ref, wanted in zip(sources[0].episodes(), written, strict=True):
            for source in sources:
                got = source.load(replace(ref, phase=phase))
                check_equal(got, wanted, first=phase, step=3)


def test_one_episode_of_a_long_video_does_not_decode_it_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = [episode(index, 30) for index in range(12)]
    options = {"crf": "6", "preset": "ultrafast", "g": "10"}
    write_lerobot(tmp_path / "a", written, version="v3.0", per_video_file=12, codec_options=options)
    source = recipe(tmp_path / "a").open_source()
    decoded = 0
    original = av.container.InputContainer.decode

    class Counting:
        def __init__(self, container: Any) -> None:
            self.container = container

        def __getattr__(self, name: str) -> Any:
            return getattr(self.container, name)

        def __enter__(self) -> "Counting":
            return self

        def __exit__(self, *_: object) -> None:
            self.container.close()

        def decode(self, *arguments: Any) -> Any:
            nonlocal decoded
            for frame in original(self.container, *arguments):
                decoded += 1
                yield frame

    opened = av.open
    monkeypatch.setattr(
        "tokenwm.data.readers.pictures.video.av.open",
        lambda path, **options: Counting(opened(path, **options)),
    )
    check_equal(source.load(source.episodes()[10]), written[10])
    assert 30 <= decoded <= 40  # its own 30, and at most one group of 10 before


def test_images_inside_the_table(tmp_path: Path) -> None:
    written = [episode(0, 6)]
    write_lerobot(tmp_path / "a", written, version="v2.1")
    feature = "observation.images.front"
    images = []
    for image in written[0].videos[feature]:
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="image2pipe") as container:
            stream = container.add_stream("png", rate=1)
            stream.width, stream.height, stream.pix_fmt = 16, 16, "rgb24"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
            container.mux(stream.encode(None))
        images.append({"bytes": buffer.getvalue(), "path": "frame.png"})
    path = next((tmp_path / "a" / "data").glob("**/*.parquet"))
    table = pyarrow.parquet.read_table(path)
    table = table.append_column(feature, pyarrow.array(images))
    pyarrow.parquet.write_table(table, path)
    info = tmp_path / "a" / "meta" / "info.json"
    values = json.loads(info.read_text())
    values["features"][feature]["dtype"] = "image"
    info.write_text(json.dumps(values))
    source = recipe(tmp_path / "a").open_source()
    got = source.load(source.episodes()[0])
    np.testing.assert_array_equal(got.frames["front"], written[0].videos[feature])
    check_equal(got, written[0])
    images[3] = {"bytes": None, "path": "frame.png"}
    place = table.column_names.index(feature)
    table = table.set_column(place, feature, pyarrow.array(images))
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(EpisodeError, match=r"image 3 of .* is not stored in the file"):
        recipe(tmp_path / "a").open_source().load(source.episodes()[0])


@pytest.mark.parametrize("version", VERSIONS)
def test_missing_files_leave_their_episodes_out_and_no_others(tmp_path: Path, version: str) -> None:
    folder = tmp_path / "a"
    written = [episode(index, 20, cameras=("front", "wrist")) for index in range(9)]
    write_lerobot(folder, written, version=version, per_data_file=3)
    videos = sorted((folder / "videos").glob("**/*front*/**/*.mp4"))
    videos[1].unlink()
    tables = sorted((folder / "data").glob("**/*.parquet"))
    tables[-1].unlink()
    manifest = prepare(recipe(folder, splits={"val": 0, "test": 0}), tmp_path / "out")
    excluded = {item.key: item.reason for item in manifest.excluded}
    lost = [1, 8] if version == "v2.1" else [3, 4, 5, 6, 7, 8]
    assert sorted(excluded) == [f"episode_{index:06d}" for index in lost]
    assert str(tables[-1]) in excluded["episode_000008"]
    assert "is missing" in excluded["episode_000008"]
    video = excluded[f"episode_{1 if version == 'v2.1' else 3:06d}"]
    assert str(videos[1]) in video and "is missing" in video


@pytest.mark.parametrize("version", VERSIONS)
def test_folders_that_differ_from_the_template(
    tmp_path: Path, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "a"
    written = [episode(index, 12, cameras=("front", "wrist")) for index in range(4)]
    write_lerobot(folder, written, version=version)
    info = folder / "meta" / "info.json"
    values = json.loads(info.read_text())
    values["video_path"] = values["video_path"].replace("videos/", "somewhere/")
    values["data_path"] = "tables/" + values["data_path"]
    info.write_text(json.dumps(values))
    source = recipe(folder).open_source()
    for ref, wanted in zip(source.episodes(), written, strict=True):
        check_equal(source.load(ref), wanted)
    said = [text for text in caplog.messages if "found by name" in text]
    assert len(said) == 2
    # A second file of the name makes it a guess, and we do not guess.
    some = sorted((folder / "videos").glob("**/*wrist*/**/*.mp4"))[0]
    other = folder / "copy" / some.relative_to(folder / "videos")
    other.parent.mkdir(parents=True)
    shutil.copy(some, other)
    source = recipe(folder).open_source()
    with pytest.raises(EpisodeError, match="several files could be it: .*copy"):
        source.load(source.episodes()[0])


def test_other_names_are_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written = episode(0, 8)
    columns = {"state": written.columns["observation.state"], "actions": written.columns["action"]}
    videos = {"image": written.videos["observation.images.front"]}
    renamed = WrittenEpisode(index=0, columns=columns, videos=videos)
    columns["action"] = columns.pop("actions")  # the writer wants its own name
    write_lerobot(tmp_path / "a", [renamed], version="v2.1")
    path = next((tmp_path / "a" / "data").glob("**/*.parquet"))
    table = pyarrow.parquet.read_table(path)
    names = ["actions" if name == "action" else name for name in table.column_names]
    pyarrow.parquet.write_table(table.rename_columns(names), path)
    info = tmp_path / "a" / "meta" / "info.json"
    info.write_text(info.read_text().replace('"action"', '"actions"'))
    source = recipe(tmp_path / "a").open_source()
    got = source.load(source.episodes()[0])
    np.testing.assert_array_equal(got.action[:-1], columns["action"][:-1])
    np.testing.assert_array_equal(got.state, columns["state"])
    assert list(got.frames) == ["image"]
    (said,) = caplog.messages
    assert "action: actions, state: state, reward: null, cameras: {image: image}" in said
    assert source.provenance()["source_inferred"] == {
        "cameras": {"image": "image"},
        "state": "state",
        "action": "actions",
        "reward": None,
    }
    named = {"cameras": {}, "state": "state", "action": "actions", "reward": None}
    assert "source_inferred" not in recipe(tmp_path / "a", source=named).open_source().provenance()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("key", ["data_path", "video_path"])
@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("../../etc/{video_key}.mp4", "leads out of the dataset"),
        ("a/../../b.mp4", "leads out of the dataset"),
        ("/etc/passwd", "leads out of the dataset"),
        ("{video_key.__class__}", "not usable"),
        ("{video_key!r}", "not usable"),
        ("{video_key:999999999}", "not usable"),
        ("{video_key", "not usable"),
    ],
)
def test_templates_cannot_lead_out(
    tmp_path: Path, version: str, key: str, template: str, message: str
) -> None:
    write_lerobot(tmp_path / "a", [episode(0, 6)], version=version)
    info = tmp_path / "a" / "meta" / "info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), key: template}))
    with pytest.raises(SourceError, match=message):
        recipe(tmp_path / "a").open_source()


def test_a_feature_name_cannot_lead_out(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    write_lerobot(folder, [episode(0, 6)], version="v2.1")
    outside = tmp_path / "private" / "episode_000000.mp4"
    outside.parent.mkdir()
    shutil.copy(next(folder.glob("videos/**/*.mp4")), outside)
    info = folder / "meta" / "info.json"
    name = "../../../private"
    info.write_text(info.read_text().replace("observation.images.front", name))
    source = recipe(folder, source={"cameras": {"a": name}}).open_source()
    with pytest.raises(EpisodeError, match="leads out of the dataset, to .*private"):
        source.load(source.episodes()[0])


@pytest.mark.parametrize("version", VERSIONS)
def test_links_cannot_lead_out_except_into_the_hub_cache(tmp_path: Path, version: str) -> None:
    outside = tmp_path / "hub" / "blobs"
    folder = tmp_path / "hub" / "snapshots" / "a"
    outside.mkdir(parents=True)
    write_lerobot(folder, [episode(0, 6)], version=version)
    files = [path for path in folder.glob("**/*") if path.is_file()]
    for number, path in enumerate(files):
        shutil.move(path, outside / str(number))
        path.symlink_to(os.path.relpath(outside / str(number), path.parent))
    source = recipe(folder).open_source()
    assert source.load(source.episodes()[0]).num_steps == 6
    elsewhere = tmp_path / "hub" / "other" / "a"
    shutil.copytree(folder, elsewhere, symlinks=True)
    with pytest.raises(SourceError, match="leads out of the dataset, to .*blobs"):
        recipe(elsewhere).open_source()
    for path in elsewhere.glob("meta/**/*.*"):
        path.unlink()
    shutil.copytree(folder / "meta", elsewhere / "meta", dirs_exist_ok=True)
    source = recipe(elsewhere).open_source()
    with pytest.raises(EpisodeError, match="leads out of the dataset, to .*blobs"):
        source.load(source.episodes()[0])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "changes",
    [
        {"fps": 1e999},
        {"fps": 1e300},
        {"fps": -1},
        {"fps": None},
        {"features": []},
        {"chunks_size": "x"},
    ],
)
def test_absurd_descriptions(tmp_path: Path, version: str, changes: dict[str, Any]) -> None:
    write_lerobot(tmp_path / "a", [episode(0, 6)], version=version)
    info = tmp_path / "a" / "meta" / "info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), **changes}))
    with pytest.raises(SourceError):
        recipe(tmp_path / "a").open_source()


ODD_FEATURES = [
    ({"dtype": "float32", "shape": [10**12]}, r"its shape is \[1000000000000\]"),
    ({"dtype": "float32", "shape": [-1]}, r"its shape is \[-1\]"),
    ({"dtype": "float32", "shape": [0]}, r"its shape is \[0\]"),
    ({"dtype": "float32", "shape": "long"}, "its shape is long"),
    ({"dtype": "float32", "shape": 3}, "its shape is 3"),
    (3, "described as '3'"),
    (None, "described as 'None'"),
]


@pytest.mark.parametrize(("feature", "message"), ODD_FEATURES)
def test_an_odd_feature_is_refused_only_where_it_is_used(
    tmp_path: Path, feature: Any, message: str
) -> None:
    write_lerobot(tmp_path / "a", [episode(0, 6)], version="v2.1")
    info = tmp_path / "a" / "meta" / "info.json"
    values = json.loads(info.read_text())
    for name in ("extra", "action"):
        values["features"][name] = feature
        info.write_text(json.dumps(values))
        if name == "extra":
            source = recipe(tmp_path / "a").open_source()
            assert source.load(source.episodes()[0]).num_steps == 6
    with pytest.raises(RecipeError, match=message):
        recipe(tmp_path / "a").open_source()
    with pytest.raises(RecipeError, match=message):
        recipe(tmp_path / "a", source={"action": "action"}).open_source()


def test_deep_or_huge_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lerobot(tmp_path / "a", [episode(0, 6)], version="v2.1")
    info = tmp_path / "a" / "meta" / "info.json"
    content = info.read_text()
    info.write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(SourceError, match="cannot be read"):
        recipe(tmp_path / "a").open_source()
    info.write_text(content)
    monkeypatch.setattr("tokenwm.data.readers.paths.MAX_META_BYTES", 100)
    with pytest.raises(SourceError, match="at most 100 are read"):
        recipe(tmp_path / "a").open_source()


def test_declared_counts_are_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of a million equal rows is a few kilobytes; it is refused before it is read."""
    write_lerobot(tmp_path / "a", [episode(0, 6)], version="v2.1")
    path = next((tmp_path / "a" / "data").glob("**/*.parquet"))
    names = pyarrow.parquet.read_schema(path).names
    zeros = pyarrow.array(np.zeros(10**6, np.float32))
    pyarrow.parquet.write_table(pyarrow.table(dict.fromkeys(names, zeros)), path)
    source = recipe(tmp_path / "a").open_source()
    with pytest.raises(EpisodeError, match="has 1000000 rows, meta/ says 6"):
        source.load(source.episodes()[0])
    write_lerobot(tmp_path / "b", [episode(i, 6) for i in range(3)], version="v3.0")
    with monkeypatch.context() as patch:
        patch.setattr("tokenwm.data.readers.lerobot.episodes.MAX_TABLE_ROWS", 2)
        with pytest.raises(SourceError, match="claims 3 rows; at most 2 are read"):
            recipe(tmp_path / "b").open_source()
    monkeypatch.setattr("tokenwm.data.readers.lerobot.files.MAX_NUMBERS", 20)
    source = recipe(tmp_path / "b").open_source()
    with pytest.raises(EpisodeError, match="numbers in one row group; at most 20 are read"):
        source.load(source.episodes()[0])


def test_pictures_too_large_for_a_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lerobot(tmp_path / "a", [episode(0, 6)], version="v2.1")
    monkeypatch.setattr("tokenwm.data.readers.pictures.video.LARGEST_PICTURE", 100)
    source = recipe(tmp_path / "a").open_source()
    with pytest.raises(EpisodeError, match=r"pictures of 16 × 16 pixels; at most 100"):
        source.load(source.episodes()[0])


def test_video_parts_that_do_not_fit_their_rows(tmp_path: Path) -> None:
    write_lerobot(tmp_path / "a", [episode(i, 12) for i in range(3)], version="v3.0")
    path = next((tmp_path / "a" / "meta" / "episodes").glob("**/*.parquet"))
    rows = pyarrow.parquet.read_table(path).to_pylist()
    prefix = "videos/observation.images.front"

    def rewrite(**changes: float) -> Any:
        changed = [dict(row) for row in rows]
        changed[2] |= {f"{prefix}/{name}_timestamp": value for name, value in changes.items()}
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(changed), path)
        return recipe(tmp_path / "a").open_source()

    # What is known is shown in test_lerobot_clips.py; here the reason names file, camera and both.
    for changes, message in (
        (
            {"to": 30 / FPS},
            r"file-000\.mp4 of observation\.images\.front: .*6 frames, .*has 12 rows",
        ),
        ({"from": 30 / FPS, "to": 42 / FPS}, "begins with frame 30, .* in sequence it is 24"),
        ({"from": 1.0, "to": 0.5}, r"its clip is from 1 s to 0\.5 s, which is empty"),
    ):
        source = rewrite(**changes)
        with pytest.raises(EpisodeError, match=message):
            source.load(source.episodes()[2])
        check_equal(source.load(source.episodes()[0]), episode(0, 12))


def test_rows_out_of_order(tmp_path: Path) -> None:
    write_lerobot(tmp_path / "a", [episode(0, 12)], version="v3.0")
    path = next((tmp_path / "a" / "data").glob("**/*.parquet"))
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(table.take([0, 1, 3, 2, *range(4, 12)]), path)
    source = recipe(tmp_path / "a").open_source()
    with pytest.raises(EpisodeError, match="rows are missing or out of order"):
        source.load(source.episodes()[0])
