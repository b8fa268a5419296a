import pickle
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.data.conftest import write_video
from tests.unit.data.readers.opening import lengths, load_all, open_source, padded, seeds, widths
from tokenwm.cli import main as cli
from tokenwm.data.making.prepare import prepare
from tokenwm.data.recipes.recipe import load_recipe
from tokenwm.errors import EpisodeError, RecipeError, SourceError

LOSSLESS = {"crf": "0", "preset": "ultrafast"}


def grey(rng: np.random.Generator, num_frames: int) -> Any:
    """Pictures of one brightness each, which a lossless video keeps to within the colour space."""
    levels = rng.integers(20, 230, num_frames)
    return np.broadcast_to(levels[:, None, None, None], (num_frames, 32, 32, 3)).astype(np.uint8)


def write_table(path: Path, columns: dict[str, Any]) -> None:
    if path.suffix == ".npz":
        np.savez(path, **columns)
        return
    flat: dict[str, Any] = {}
    for name, array in columns.items():
        parts = {name: array} if array.ndim == 1 else {}
        parts |= {f"{name}_{i}": array[:, i] for i in range(array.shape[1] if not parts else 0)}
        flat |= parts
    table = pyarrow.table(flat)
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pyarrow.parquet.write_table(table, path)


def make_columns(rng: np.random.Generator, num_rows: int, width: int = 2) -> dict[str, Any]:
    return {
        "action": rng.normal(size=(num_rows, width)),
        "state": rng.normal(size=(num_rows, 3)),
        "reward": rng.normal(size=num_rows),
        "done": np.arange(num_rows) == num_rows - 2,
    }


def check(episode: Any, images: Any, columns: dict[str, Any], camera: str = "video") -> None:
    brightness = images[:, 0, 0, 0].astype(float)
    np.testing.assert_allclose(episode.frames[camera].mean(axis=(1, 2, 3)), brightness, atol=2)
    np.testing.assert_allclose(episode.state, columns["state"], rtol=1e-6)
    np.testing.assert_allclose(episode.action, padded(columns["action"][:-1]), rtol=1e-6)
    np.testing.assert_allclose(episode.reward, padded(columns["reward"][:-1]), rtol=1e-6)
    assert episode.terminated.tolist() == [*columns["done"][:-1].tolist(), False]


@settings(max_examples=8)
@given(
    st.lists(lengths, min_size=1, max_size=3),
    st.sampled_from(["csv", "parquet", "npz"]),
    widths.filter(lambda width: width > 1),
    seeds,
)
def test_a_table_for_each_episode(num_rows: list[int], kind: str, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        written = []
        for index, n in enumerate(num_rows):
            images, columns = grey(rng, n), make_columns(rng, n, width)
            path = Path(name) / f"run {index + 8}.mp4"  # 10 comes behind 9
            write_video(path, n, 10, images=images, codec_options=LOSSLESS)
            write_table(path.with_suffix(f".{kind}"), columns)
            written.append((images, columns))
        source = pickle.loads(pickle.dumps(open_source("videos", Path(name))))
        episodes = load_all(source)
    for episode, (images, columns) in zip(episodes, written, strict=True):
        check(episode, images, columns)


def test_one_table_for_all_and_two_cameras(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    written, rows = {}, []
    for index in (2, 10):
        images, columns = grey(rng, 6), make_columns(rng, 6)
        for camera in ("front", "wrist"):
            path = tmp_path / camera / f"take_{index:03d}.mp4"
            write_video(path, 6, 10, images=images, codec_options=LOSSLESS)
        written[f"take_{index:03d}"] = (images, columns)
        rows.append(columns)
    both = {name: np.concatenate([columns[name] for columns in rows]) for name in rows[0]}
    text = np.array(["pour"] * 12)
    for labels in (
        np.repeat(list(written), 6),
        np.repeat([f"{name}.mp4" for name in written], 6),
        np.repeat([2, 10], 6),
    ):
        write_table(tmp_path / "all.csv", {"episode": labels, "task": text, **both})
        episodes = load_all(open_source("videos", tmp_path))
        assert [e.key for e in episodes] == list(written)
        for episode in episodes:
            assert list(episode.frames) == ["front", "wrist"] and episode.task == "pour"
            check(episode, *written[episode.key], camera="wrist")
    write_table(tmp_path / "all.csv", {"number": labels, **both})
    with pytest.raises(RecipeError, match="source.episode_column is not given and .*csv: number;"):
        open_source("videos", tmp_path)
    write_table(tmp_path / "all.csv", {"number": labels + 1, **both})
    with pytest.raises(RecipeError, match="no column of .* plainly names the episode"):
        open_source("videos", tmp_path)
    write_table(tmp_path / "all.csv", {"number": labels, **both})
    options = {"episode_column": "number", "table": "all.csv", "terminated": None}
    assert not load_all(open_source("videos", tmp_path, source=options))[0].terminated.any()
    for wrong, message in (
        ({"episode_column": "take"}, "source.episode_column is 'take'; the tables have: number"),
        ({"table": "none.csv"}, "source.table: there is no"),
        ({"table": "../all.csv"}, "leads out of the dataset"),
    ):
        with pytest.raises((RecipeError, SourceError), match=message):
            open_source("videos", tmp_path, source=options | wrong)
    write_table(tmp_path / "more.csv", both)
    with pytest.raises(SourceError, match="several tables and none is named as an episode"):
        open_source("videos", tmp_path)


def test_videos_alone_have_one_action(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    for index in range(4):
        path = tmp_path / "clips" / f"clip{index}.mkv"
        write_video(path, 12, 30, images=grey(rng, 12), codec_options=LOSSLESS)
    path = tmp_path / "recipe.yaml"
    assert cli.main(["inspect", str(tmp_path / "clips"), "--recipe", str(path)]) == 0
    out = capsys.readouterr().out
    for part in ("videos", "none: every step has the action 0", "30 Hz", "are discrete"):
        assert part in out
    assert "every step gets the one discrete action 0" in caplog.text
    manifest = prepare(load_recipe(path), tmp_path / "out")
    assert not manifest.excluded
    assert manifest.features["action"].num_values == 1
    (episode, *_) = load_all(load_recipe(path).open_source())
    assert episode.num_steps == 4 and not episode.action.any()


def test_what_costs_an_episode(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(7):
        write_video(tmp_path / f"e{index}.mp4", 8, 10, images=grey(rng, 8))
        write_table(tmp_path / f"e{index}.csv", make_columns(rng, 8))
    content = (tmp_path / "e1.mp4").read_bytes()
    (tmp_path / "e1.mp4").write_bytes(content[: len(content) // 2])
    (tmp_path / "e2.csv").unlink()
    write_table(tmp_path / "e3.csv", make_columns(rng, 5))
    write_table(tmp_path / "e4.csv", {"action": np.zeros((8, 2))})
    (tmp_path / "e5.csv").write_text("action_0,action_1\n1,2\n3\n")
    playlist = "ffconcat version 1.0\nfile e0.mp4\n"
    (tmp_path / "e6.mp4").write_text(playlist)
    source = open_source("videos", tmp_path)
    problems = {}
    for ref in source.episodes():
        try:
            source.load(ref)
        except EpisodeError as error:
            problems[ref.key] = str(error)
    assert list(problems) == ["e1", "e2", "e3", "e4", "e5", "e6"]
    for key, message in (
        ("e1", "e1.mp4 cannot be read"),
        ("e2", "e2 has no table, and others have"),
        ("e3", r"video of video \(.*e3\.mp4\) is too long, it holds 8 frames and the table 5 rows"),
        ("e4", "no column 'state'"),
        ("e5", "e5.csv cannot be read"),
        ("e6", "is no video file"),
    ):
        assert re.search(message, problems[key]), problems[key]


def test_folders_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no video that can be read"):
        open_source("videos", tmp_path)
    elsewhere = tmp_path / "elsewhere.mp4"
    write_video(elsewhere, 8, 10)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.mp4").symlink_to(elsewhere)
    with pytest.raises(SourceError, match="leads out of the dataset"):
        open_source("videos", folder)
    (folder / "a.mp4").unlink()
    for suffix in ("mp4", "mkv"):
        write_video(folder / f"a.{suffix}", 8, 10)
    source = open_source("videos", folder)
    with pytest.raises(EpisodeError, match="several videos are of this episode and of video"):
        source.load(source.episodes()[0])
    (folder / "a.mkv").unlink()
    huge = pyarrow.table({"action": pyarrow.array(np.zeros(2**26 + 1, np.int8))})
    pyarrow.parquet.write_table(huge, folder / "a.parquet")
    with pytest.raises(SourceError, match="claims 67,108,865 numbers"):
        open_source("videos", folder)
