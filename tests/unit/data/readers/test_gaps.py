"""What a dataset declares is compared with what is there, in every format, and said everywhere."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from tests.unit.data.conftest import write_video
from tests.unit.data.readers import odd_datasets, test_minari, test_rlds, test_robomimic
from tests.unit.data.readers.lerobot_writer import write_lerobot
from tests.unit.data.readers.opening import open_source, recipe
from tests.unit.data.readers.test_dreamer import make_rows, write_chunks
from tests.unit.data.readers.test_lerobot_versions import VERSIONS, episode
from tests.unit.data.readers.test_videos import make_columns, write_table
from tokenwm.cli import main as cli
from tokenwm.data import quality_report
from tokenwm.data.making.prepare import prepare
from tokenwm.data.readers.gaps import compare
from tokenwm.data.recipes.survey import survey
from tokenwm.errors import SourceError


def write_folder(folder: Path, version: str, count: int = 6, **info: Any) -> None:
    written = [episode(index, 12, cameras=("front",)) for index in range(count)]
    write_lerobot(folder, written, version=version, tasks=("wave",))
    path = folder / "meta" / "info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **info}))


def lerobot(folder: Path) -> str:
    write_folder(folder, "v3.0", count=4, total_episodes=6)
    return "info.json declares 6 episodes, and 4 are there: 2 of 6 are missing (4, 5)"


def lerobot_frames(folder: Path) -> str:
    write_folder(folder, "v2.1", total_frames=100)
    return "info.json declares 100 frames, and 72 are there: 28 of 100 are missing"


def robomimic(folder: Path) -> str:
    folder.mkdir()
    test_robomimic.write(folder / "demo.hdf5", [12, 14, 16, 18])
    with h5py.File(folder / "demo.hdf5", "a") as file:
        del file["data/demo_2"]
    return "data declares 60 samples, and 44 are there: 16 of 60 are missing"


def robomimic_of_one(folder: Path) -> str:
    folder.mkdir()
    test_robomimic.write(folder / "demo.hdf5", [12, 14, 16, 18])
    with h5py.File(folder / "demo.hdf5", "a") as file:
        file["data/demo_2"].attrs["num_samples"] = 20
    return "data/demo_2 declares 20 samples, and 16 are there: 4 of 20 are missing"


def minari(folder: Path) -> str:
    test_minari.write(folder, [12, 14, 16, 18])
    (metadata,) = folder.rglob("metadata.json")
    values = json.loads(metadata.read_text())
    metadata.write_text(json.dumps({**values, "total_episodes": 6, "total_steps": 100}))
    return "metadata.json declares 6 episodes, and 4 are there: 2 of 6 are missing"


def rlds(folder: Path) -> str:
    test_rlds.write(folder, [12, 14, 16, 18, 12, 12])
    (folder / "toy-train.tfrecord-00001-of-00003").unlink()
    return "shards of split 'train' declares 3 shards, and 2 are there: 1 of 3 is missing (1)"


def rlds_lengths(folder: Path) -> str:
    test_rlds.write(folder, [12, 14, 16, 18])
    path = folder / "dataset_info.json"
    splits = [{"name": "train", "shardLengths": ["2", "4"]}]
    path.write_text(json.dumps({**json.loads(path.read_text()), "splits": splits}))
    return "dataset_info.json, split 'train', declares 6 episodes, and 4 are there: 2 of 6"


def dreamer(folder: Path) -> str:
    rng = np.random.default_rng(0)
    rows = [make_rows(rng, 12, terminal=True) for _ in range(4)]
    paths = write_chunks(folder, [rows], 12)
    paths[-1].unlink()
    return "1 chunk(s) name a successor that is not in"


def videos(folder: Path) -> str:
    rng = np.random.default_rng(0)
    for index in range(5):
        folder.mkdir(exist_ok=True)
        write_table(folder / f"e{index}.csv", make_columns(rng, 12))
        if index < 4:
            write_video(folder / f"e{index}.mp4", 12, 10)
    return "has tables of 1 episode(s) without a video: e4.csv"


def one_table(folder: Path) -> str:
    rng = np.random.default_rng(0)
    folder.mkdir()
    columns = make_columns(rng, 60) | {"episode": np.repeat(np.arange(5), 12)}
    write_table(folder / "all.csv", columns)
    for index in range(3):
        write_video(folder / f"e{index}.mp4", 12, 10)
    return "all.csv of 2 episode(s) without a video: 3, 4"


FORMATS: list[Callable[[Path], str]] = [
    lerobot, lerobot_frames, robomimic, robomimic_of_one, minari, rlds, rlds_lengths, dreamer,
    videos, one_table,
]  # fmt: skip
MISSING = {lerobot: 2, minari: 2, rlds_lengths: 2, videos: 1, one_table: 2}


@pytest.mark.parametrize("write", FORMATS)
def test_it_is_said_by_inspect_prepare_the_report_and_the_page(
    tmp_path: Path, write: Callable[[Path], str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a"
    said = write(folder)
    path = folder / "demo.hdf5" if "robomimic" in write.__name__ else folder
    found = survey(path)
    assert any(said in gap.text for gap in found.gaps), found.gaps
    file = tmp_path / "recipe.yaml"
    assert cli.main(["inspect", str(path), "--recipe", str(file)]) == 0
    out = capsys.readouterr().out
    assert f"declared and found differ: {found.gaps[0].text}" in out
    assert "no problem found" not in out
    allow = [
        "--workers",
        "0",
        "--set",
        "quality.allow_frozen=true",
        "quality.max_frozen_seconds=null",
    ]
    assert cli.main(["prepare", str(file), "--out", str(tmp_path / "out"), *allow]) == 0
    assert f"declared and found differ: {found.gaps[0].text}" in capsys.readouterr().out
    report = quality_report.read(tmp_path / "out")
    finding = next(item for item in report["findings"] if said in item["text"])
    assert (finding["rule"], finding["level"]) == ("declared", "wrong")
    count = len(found.refs)
    total = count + MISSING.get(write, 0)
    expected = f"{count} of {total} episodes are in" if total > count else f"All {count} episodes"
    assert report["verdict"].startswith(expected)
    page = (tmp_path / "out" / "quality.html").read_text()
    assert found.gaps[0].text[-40:].replace("'", "&#x27;") in page


@pytest.mark.parametrize("version", VERSIONS)
def test_where_all_is_there_nothing_is_said(tmp_path: Path, version: str) -> None:
    write_folder(tmp_path / "a", version)
    manifest = prepare(recipe("lerobot", tmp_path / "a", control_rate=30), tmp_path / "out")
    assert manifest.extra["source_gaps"] == []
    assert quality_report.read(tmp_path / "out")["verdict"].startswith("All 6 episodes are in")


def test_a_broken_line_costs_its_episode(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", "v2.1")
    path = tmp_path / "a" / "meta" / "episodes.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = lines[1][:20]
    lines[3] = json.dumps({"episode_index": 3, "length": None})
    lines[4] = json.dumps({"episode_index": 5, "length": 12})
    path.write_text("\n".join(lines))
    source = open_source("lerobot", tmp_path / "a", control_rate=30)
    assert [ref.index for ref in source.episodes()] == [0, 2, 3, 5]
    texts = [gap.text for gap in source.gaps()]
    assert re.search(r"episodes\.jsonl, line 2: cannot be read", texts[0])
    assert "2 of 6 are missing (1, 4)" in texts[1]
    all_train = recipe("lerobot", tmp_path / "a", control_rate=30, splits={"val": 0, "test": 0})
    manifest = prepare(all_train, tmp_path / "out")
    reasons = {item.key: item.reason for item in manifest.excluded}
    assert set(reasons) == {"episode_000003", "episode_000005"}
    assert "line 4: length is None; expected a whole number" in reasons["episode_000003"]
    assert "line 6: episode_index 5 appears twice" in reasons["episode_000005"]


def test_a_broken_part_of_meta_costs_its_episodes(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    write_folder(folder, "v3.0")
    path = next((folder / "meta" / "episodes").rglob("*.parquet"))
    rows = pyarrow.parquet.read_table(path).to_pylist()
    parts = [path, *(path.with_name(f"file-{i:03d}.parquet") for i in (1, 2))]
    for number, part in enumerate(parts):
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(rows[2 * number : 2 * number + 2]), part
        )
    parts[1].write_bytes(parts[1].read_bytes()[:-9])
    (folder / "meta" / "tasks.parquet").write_bytes(b"broken")
    source = open_source("lerobot", folder, control_rate=30)
    assert [ref.index for ref in source.episodes()] == [0, 1, 4, 5]
    texts = "\n".join(gap.text for gap in source.gaps())
    for said in (
        "file-001.parquet cannot be read",
        "tasks in words are lost",
        "are missing (2, 3)",
    ):
        assert said in texts
    assert [source.load(ref).num_steps for ref in source.episodes()] == [12] * 4
    for part in parts:
        part.write_bytes(b"broken")
    with pytest.raises(SourceError, match=r"file-000\.parquet cannot be read"):
        open_source("lerobot", folder)


@pytest.mark.parametrize("tasks", ["pick up the cup", ["pick up the cup"]])
def test_a_task_may_be_one_text(tmp_path: Path, tasks: Any) -> None:
    write_folder(tmp_path / "a", "v2.1", count=1)
    path = tmp_path / "a" / "meta" / "episodes.jsonl"
    path.write_text(json.dumps({"episode_index": 0, "length": 12, "tasks": tasks}))
    (ref,) = open_source("lerobot", tmp_path / "a").episodes()
    assert ref.task == "pick up the cup"


def test_a_folder_above_a_dataset_says_where_it_lies(tmp_path: Path) -> None:
    write_folder(tmp_path / "arm", "v3.0", count=2)
    with pytest.raises(SourceError, match=r"holds 1: arm \(LeRobot v3\.0\); name one .*/arm$"):
        survey(tmp_path)
    for part in ("meta", "data", "videos", "videos/observation.images.front/chunk-001"):
        with pytest.raises(SourceError, match=r"a part of the LeRobot folder .*/arm; name that"):
            survey(tmp_path / "arm" / part)
    test_robomimic.write(tmp_path / "demo.hdf5", [12, 14])
    with pytest.raises(SourceError, match=r"holds 2: arm .*, demo\.hdf5 \(robomimic HDF5\)"):
        survey(tmp_path)
    # A folder of videos is one, also with other folders in it.
    videos(tmp_path / "clips")
    assert survey(tmp_path / "clips").facts["format"] == "videos"


@pytest.mark.parametrize(
    ("declared", "missing"),
    [(6, 2), ("6", 2), (6.0, 2), (4, None), (3, 0), ("many", None), (True, None), (None, None),
     ([6], None), (float("nan"), None), (10**400, None), (4.5, None)],
)  # fmt: skip
def test_what_declares_a_number(declared: Any, missing: int | None) -> None:
    gaps = compare("a", "episodes", declared, 4)
    assert [gap.num_missing for gap in gaps] == ([] if missing is None else [missing])


def test_groups_of_minari_that_are_called_like_no_episode(tmp_path: Path) -> None:
    path = odd_datasets.write_minari(tmp_path, [odd_datasets.make_rows(seed) for seed in range(4)])
    with h5py.File(path / "data" / "main_data.hdf5", "a") as file:
        file.move("episode_1", "episode_-1")
        file.copy("episode_2", "episode_02")
    found = survey(path)
    assert [ref.key for ref in found.refs] == ["episode_000000", "episode_000002", "episode_000003"]
    (gap,) = found.gaps
    assert "like no episode and not read: episode_-1, episode_02" in gap.text
