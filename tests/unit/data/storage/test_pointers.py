"""Git LFS pointers are named as such, whichever file is one and whatever opens it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.small_datasets import write_frame_shards
from tests.small_models import small_tokenizer
from tests.unit.data.readers import test_minari, test_rlds, test_robomimic
from tests.unit.data.readers.lerobot_writer import write_lerobot
from tests.unit.data.readers.opening import open_source
from tests.unit.data.readers.test_dreamer import write_episodes
from tests.unit.data.readers.test_lerobot_versions import episode
from tests.unit.data.readers.test_videos import grey, make_columns, write_table, write_video
from tokenwm.checkpoint import load_tokenizer, save_tokenizer
from tokenwm.data.recipes.survey import survey
from tokenwm.data.shards.reader import ShardReader
from tokenwm.data.storage.pointers import is_pointer
from tokenwm.errors import CheckpointError, EpisodeError, ShardError, SourceError

MESSAGE = "is a Git LFS pointer, not the file: run git lfs pull"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d' * 32}\nsize 12345\n"


def replace_by_pointer(path: Path) -> None:
    path.write_text(POINTER)


def lerobot(version: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        written = [episode(index, 8, cameras=("front",)) for index in range(3)]
        write_lerobot(folder, written, version=version)

    return write


def videos(folder: Path) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for index in range(3):
        write_video(folder / f"e{index}.mp4", 8, 10, images=grey(rng, 8))
        write_table(folder / f"e{index}.csv", make_columns(rng, 8))


def after(folder: Path) -> None:
    write_episodes(folder, [8, 9, 10], "after")


CASES = [
    ("lerobot", lerobot("v2.1"), "meta/info.json"),
    ("lerobot", lerobot("v2.1"), "meta/episodes.jsonl"),
    ("lerobot", lerobot("v2.1"), "meta/tasks.jsonl"),
    ("lerobot", lerobot("v2.1"), "data/**/*.parquet"),
    ("lerobot", lerobot("v2.1"), "videos/**/*.mp4"),
    ("lerobot", lerobot("v3.0"), "meta/episodes/**/*.parquet"),
    ("lerobot", lerobot("v3.0"), "meta/tasks.parquet"),
    ("lerobot", lerobot("v3.0"), "data/**/*.parquet"),
    ("lerobot", lerobot("v3.0"), "videos/**/*.mp4"),
    ("videos", videos, "*.mp4"),
    ("videos", videos, "*.csv"),
    ("minari", lambda folder: test_minari.write(folder, [8, 9]) and None, "data/*.hdf5"),
    ("rlds", lambda folder: test_rlds.write(folder, [8, 9]) and None, "*.tfrecord-*"),
    ("rlds", lambda folder: test_rlds.write(folder, [8, 9]) and None, "features.json"),
    ("dreamer", after, "*.npz"),
]


@pytest.mark.parametrize(("kind", "write", "pattern"), CASES)
def test_every_file_of_recordings(
    tmp_path: Path, kind: str, write: Callable[[Path], None], pattern: str
) -> None:
    folder = tmp_path / "a"
    write(folder)
    paths = sorted(folder.glob(pattern))
    assert paths
    for path in paths:
        replace_by_pointer(path)
    options = {"action_convention": "after"} if kind == "dreamer" else {}
    said = []
    try:
        source = open_source(kind, folder, source=options)
        said += [gap.text for gap in source.gaps()]
        for ref in source.episodes():
            try:
                source.load(ref)
            except EpisodeError as error:
                said.append(str(error))
    except SourceError as error:
        said.append(str(error))
    assert said
    for text in said:
        assert MESSAGE in text
        assert any(str(path) in text for path in paths)
    # inspect says so, too, whether or not it can tell the format.
    try:
        found = survey(folder)
        texts = [*found.problems.values(), *(gap.text for gap in found.gaps)]
    except SourceError as error:
        texts = [str(error)]
    assert texts and all(MESSAGE in text for text in texts)


def test_one_file_alone(tmp_path: Path) -> None:
    test_robomimic.write(tmp_path / "demo.hdf5", [8, 9])
    replace_by_pointer(tmp_path / "demo.hdf5")
    with pytest.raises(SourceError, match=rf"demo\.hdf5 {MESSAGE}"):
        survey(tmp_path / "demo.hdf5")
    with pytest.raises(SourceError, match=rf"demo\.hdf5 {MESSAGE}"):
        survey(tmp_path)
    with pytest.raises(SourceError, match=rf"demo\.hdf5 {MESSAGE}"):
        open_source("robomimic", tmp_path / "demo.hdf5")


@pytest.mark.parametrize("name", ["manifest.json", "train-000000.tar"])
def test_shards(tmp_path: Path, name: str) -> None:
    write_frame_shards(tmp_path / "shards")
    replace_by_pointer(tmp_path / "shards" / name)
    with pytest.raises(ShardError, match=rf"{name} {MESSAGE}"):
        ShardReader(tmp_path / "shards")


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "provenance.json"])
def test_checkpoints(tmp_path: Path, name: str) -> None:
    save_tokenizer(tmp_path / "a", small_tokenizer(), {})
    assert load_tokenizer(tmp_path / "a") is not None
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    replace_by_pointer(tmp_path / "b" / name)
    with pytest.raises(CheckpointError, match=rf"{name} {MESSAGE}"):
        load_tokenizer(tmp_path / "b")


def test_what_only_looks_like_one(tmp_path: Path) -> None:
    replace_by_pointer(tmp_path / "a")
    assert is_pointer(tmp_path / "a")
    (tmp_path / "b").write_text(POINTER + " " * 2000)
    (tmp_path / "c").write_text("version 1\n")
    for name in ("b", "c", "missing", "."):
        assert not is_pointer(tmp_path / name)
