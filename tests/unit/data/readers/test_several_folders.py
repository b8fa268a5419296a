"""``source.path`` as a list: several folders of one format are one dataset."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.data.conftest import LeRobotFolder, write_video
from tests.unit.data.readers.opening import recipe
from tokenwm.data.making.prepare import prepare
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import EpisodeError, RecipeError, SourceError


def folders(tmp_path: Path, indices: tuple[tuple[int, ...], ...] = ((0, 1), (0, 2))) -> list[str]:
    paths = []
    for number, of_one in enumerate(indices):
        folder = LeRobotFolder(tmp_path / f"part {number}")
        for index in of_one:
            folder.add(index, 12 + number)
        paths.append(str(folder.folder))
    return paths


def several(paths: list[str], **changes: Any) -> Any:
    source = {"path": paths, "state": "observation.state", **changes.pop("source", {})}
    return recipe("lerobot", Path(paths[0]), source=source, **changes)


def test_keys_that_collide_get_the_name_of_their_folder(tmp_path: Path) -> None:
    paths = folders(tmp_path)
    made = several(paths, splits={"val": 0.25, "test": 0})
    manifest = prepare(made, tmp_path / "out")
    keys = {episode.key for episode in manifest.episodes}
    assert keys == {
        "part_0-episode_000000",
        "part_0-episode_000001",
        "part_1-episode_000000",
        "part_1-episode_000002",
    }
    reader = ShardReader(tmp_path / "out", verify=True)
    assert reader.metadata("part_1-episode_000002")["source_folder"] == paths[1]
    action = reader.arrays("part_1-episode_000002", ["action"])["action"]
    np.testing.assert_array_equal(action[0], [2, 4, 2])  # 30 Hz, every third row, the last of each
    assert manifest.provenance["source"] == ", ".join(paths)
    of_each = manifest.provenance["sources"]
    assert [about["source"] for about in of_each] == paths
    alone = several(paths[:1]).open_source().provenance()
    assert of_each[0]["source_checksum"] == alone["source_checksum"]
    # The same again is nothing to do.
    assert prepare(made, tmp_path / "out") == manifest


def test_keys_that_do_not_collide_stay(tmp_path: Path) -> None:
    source = several(folders(tmp_path, ((0, 1), (2, 3)))).open_source()
    copy = pickle.loads(pickle.dumps(source))
    assert [ref.key for ref in copy.episodes()] == [f"episode_{i:06d}" for i in range(4)]
    for ref in source.episodes():
        assert copy.load(ref).key == source.load(ref).key == ref.key


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = []
    for place in ("a", "b"):
        folder = LeRobotFolder(tmp_path / place / "1.0.0")
        folder.add(0, 12)
        paths.append(str(folder.folder))
    keys = [ref.key for ref in several(paths).open_source().episodes()]
    assert keys == ["1_0_0_0-episode_000000", "1_0_0_1-episode_000000"]


def test_what_is_wrong_with_an_episode_names_its_folder(tmp_path: Path) -> None:
    paths = folders(tmp_path)
    LeRobotFolder(Path(paths[1])).parquet(2).unlink()
    source = several(paths).open_source()
    with pytest.raises(EpisodeError, match=r"part 1: episode episode_000002: .* is missing"):
        source.load(source.episodes()[3])


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({}, {"action": np.zeros((12, 2), np.float32)}, "part 0 and .*part 1 do not go.*shapes of"),
        ({"fps": 20}, {}, "rate: 30"),
        ({"cameras": ("front", "wrist")}, {}, "cameras: "),
    ],
)
def test_folders_that_differ_are_refused_by_name(
    tmp_path: Path, options: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    paths = folders(tmp_path, ((0,),))
    other = LeRobotFolder(tmp_path / "part 1", **options)
    other.add(0, 12, **changes)
    with pytest.raises(RecipeError, match=message):
        several([*paths, str(other.folder)]).open_source()


def test_folders_whose_rows_hold_other_numbers_of_actions_are_refused(tmp_path: Path) -> None:
    """Two actions of one joint and one of two have the same shape."""
    paths = folders(tmp_path)
    info = Path(paths[1]) / "meta" / "info.json"
    about = json.loads(info.read_text())
    info.write_text(json.dumps({**about, "tokenwm": {"actions_per_step": 3}}))
    with pytest.raises(RecipeError, match="actions_per_step: 1 there and 3 here"):
        several(paths).open_source()


def test_wrong_lists(tmp_path: Path) -> None:
    paths = folders(tmp_path)
    with pytest.raises(RecipeError, match="several once each"):
        several([paths[0], paths[0]])
    with pytest.raises(RecipeError, match="names one folder twice"):
        several([paths[0], f"{paths[0]}/../{Path(paths[0]).name}"]).open_source()
    with pytest.raises(RecipeError, match="name one path"):
        several(paths, source={"path": []})
    with pytest.raises(RecipeError, match="names episodes by their number in a folder"):
        several(paths, source={"episodes": [0]}).open_source()
    with pytest.raises(SourceError, match="no dataset at"):
        several([paths[0], str(tmp_path / "nothing")]).open_source()
    single = several(paths, source={"path": paths[:1], "episodes": [1]}).open_source()
    assert [ref.key for ref in single.episodes()] == ["episode_000001"]


def test_actions_are_of_one_kind_in_all_folders(tmp_path: Path) -> None:
    for number, rows in enumerate((["0", "1", "2"], ["0.5", "1", "2"])):
        write_video(tmp_path / str(number) / f"ep_{number}.mp4", 6, 10)
        lines = ["action", *(rows * 2)]
        (tmp_path / str(number) / f"ep_{number}.csv").write_text("\n".join(lines) + "\n")
    paths = [str(tmp_path / "0"), str(tmp_path / "1")]
    source = recipe("videos", tmp_path, source={"path": paths}).open_source()
    dtypes = {source.load(ref).action.dtype.name for ref in source.episodes()}
    assert dtypes == {"float32"}
    first = source.provenance()["sources"][0]["source_inferred"]["action_kind"]
    assert first == f"continuous: in {paths[1]}: ep_1 holds real numbers"
