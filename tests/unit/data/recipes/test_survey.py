"""``tokenwm inspect``: what is said about a folder, and a recipe that works as it is."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.unit.data.conftest import write_video
from tests.unit.data.readers.lerobot_writer import WrittenEpisode, write_lerobot
from tests.unit.data.readers.test_lerobot import G1_DATA
from tests.unit.data.readers.test_lerobot_versions import episode
from tests.unit.data.readers.test_videos import write_table
from tokenwm.cli import main as cli
from tokenwm.data.making.prepare import prepare
from tokenwm.data.recipes.recipe import load_recipe, parse_recipe, split_keys
from tokenwm.data.recipes.starter import TEST_EPISODES, starter_recipe
from tokenwm.data.recipes.survey import propose_control_rate, survey
from tokenwm.errors import RecipeError, SourceError
from tokenwm.evaluation.metrics import MIN_EPISODES


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_what_is_said_is_so_and_the_recipe_works(
    tmp_path: Path, version: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my arm (2)"
    written = [
        episode(index, 20, cameras=("front", "wrist"), extra=True, task=index % 2)
        for index in (4, 5, 6, 8, 9, 10, 11)
    ]
    tasks = ("wave", "[red]stop\x1b[2J")
    write_lerobot(folder, written, version=version, tasks=tasks, per_video_file=1)
    (folder / "LICENSE").write_text("\nApache License\nVersion 2.0\n")
    lost = sorted((folder / "videos").glob("**/*wrist*/**/*.mp4"))[2]
    lost.unlink()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("**/*")}

    found = survey(folder)
    assert len(found.refs) == 7
    assert found.num_rows == 6 * 20
    assert (found.rate, found.control_rate) == (30, 10)
    assert found.facts["indices"] == "4 to 11, 1 missing"
    assert found.licence == "Apache License"
    assert found.tasks == {tasks[0]: 3, tasks[1]: 3}
    assert list(found.problems) == ["episode_000006"]
    good = [item for item in written if item.index != 6]
    actions = np.concatenate([item.columns["action"][:-1] for item in good])  # the last is dropped
    np.testing.assert_allclose(found.ranges["action"], [actions.min(0), actions.max(0)])
    assert found.source.action_kind.kind == "continuous" and not found.ambiguous

    recipe_file = tmp_path / "recipe.yaml"
    assert cli.main(["inspect", str(folder), "--recipe", str(recipe_file)]) == 0
    out = capsys.readouterr().out
    for part in (
        "camera front",
        "observation.images.wrist",
        "30 Hz",
        "Apache License",
        "is missing",
    ):
        assert part in out
    assert "task, 3 episode(s): [red]stop\N{REPLACEMENT CHARACTER}[2J" in out
    assert "\x1b[2J" not in out
    manifest = prepare(load_recipe(recipe_file), tmp_path / "out")
    assert len(manifest.episodes) == 6
    assert [item.key for item in manifest.excluded] == ["episode_000006"]
    assert manifest.cameras == ("front", "wrist")
    assert manifest.provenance["licence"] == "Apache License"
    assert {path: path.stat().st_mtime_ns for path in folder.glob("**/*")} == before
    assert cli.main(["inspect", str(folder), "--recipe", str(recipe_file)]) == 0
    assert "the same as before" in capsys.readouterr().out.replace("\n", " ")
    # What a user changed is not lost.
    recipe_file.write_text(recipe_file.read_text() + "# mine\n")
    assert cli.main(["inspect", str(folder), "--recipe", str(recipe_file)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["inspect", str(folder), "--recipe", str(recipe_file), "--overwrite"]) == 0
    assert "# mine" not in recipe_file.read_text()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_episodes_are_divided_so_that_prepare_takes_them(tmp_path: Path, count: int) -> None:
    write_lerobot(tmp_path / "a", [episode(i, 12) for i in range(count)], version="v3.0")
    recipe = parse_recipe(yaml.safe_load(starter_recipe(survey(tmp_path / "a"))))
    assert len(prepare(recipe, tmp_path / "out").episodes) == count


@pytest.mark.parametrize(
    ("count", "num_test", "num_folds"),
    [(5, 1, 0), (6, None, 5), (23, None, 5), (24, 6, 0), (30, 6, 0), (54, 6, 0), (55, 6, 0)],
)
def test_a_recipe_holds_out_enough_to_claim_something(
    tmp_path: Path, count: int, num_test: int | None, num_folds: int
) -> None:
    """Six test episodes where two thirds stay for training, else every episode in turn."""
    write_lerobot(tmp_path / "a", [episode(i, 12) for i in range(2)], version="v3.0")
    few = survey(tmp_path / "a")
    refs = [dataclasses.replace(few.refs[0], key=f"episode_{i:06d}") for i in range(count)]
    text = starter_recipe(dataclasses.replace(few, refs=refs))
    splits = parse_recipe(yaml.safe_load(text)).splits
    assert splits.folds == num_folds
    names = list(split_keys([ref.key for ref in refs], splits).values())
    assert names.count("val") >= 1
    if num_test is not None:
        assert names.count("test") == num_test
        assert count <= 5 or names.count("train") >= 2 / 3 * count
    assert ("--set splits.fold=0 … 4" in text) == (num_folds == 5)
    assert ("too few to show anything" in text) == (count < 6)
    assert TEST_EPISODES == MIN_EPISODES


def test_a_recipe_of_damaged_recordings_holds_out_enough_good_ones(tmp_path: Path) -> None:
    write_lerobot(tmp_path / "a", [episode(i, 12) for i in range(2)], version="v3.0")
    few = survey(tmp_path / "a")
    for good in (7, 30):
        refs = [dataclasses.replace(few.refs[0], key=f"e{i}") for i in range(good + 5)]
        problems = {f"e{i}": "damaged" for i in range(5)}
        found = dataclasses.replace(few, refs=refs, problems=problems)
        splits = parse_recipe(yaml.safe_load(starter_recipe(found))).splits
        for fold in range(max(1, splits.folds)):
            chosen = dataclasses.replace(splits, fold=fold)
            left = split_keys([ref.key for ref in refs], chosen)
            held_out = [key for key, split in left.items() if split == "test"]
            assert len(set(held_out) - set(problems)) >= (6 if good == 30 else 1)


def test_ambiguous_columns_are_listed_and_guessed_without_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = dict(episode(0, 12).columns)
    columns["observation.gripper"] = np.arange(12, dtype=np.float32)
    columns["observation.arm\nlicence: MIT"] = columns.pop("observation.state")
    written = [WrittenEpisode(index=i, columns=columns) for i in range(3)]
    write_lerobot(tmp_path / "a", written, version="v2.1")
    recipe = {"name": "a", "control_rate": 30}
    source = {"type": "lerobot", "path": str(tmp_path / "a")}
    with pytest.raises(RecipeError, match=r"source.state is not given .*: observation.gripper, ob"):
        parse_recipe({**recipe, "source": source}).open_source()
    found = survey(tmp_path / "a")
    assert set(found.ambiguous) == {"state"}
    values = yaml.safe_load(starter_recipe(found))
    assert values["source"]["state"] == list(found.ambiguous["state"])
    assert values["licence"] == "unknown"
    opened = parse_recipe(values).open_source()
    assert opened.load(opened.episodes()[0]).state.shape == (4, 3)
    assert cli.main(["inspect", str(tmp_path / "a")]) == 0
    out = capsys.readouterr().out
    assert "the state is a guess among: observation.gripper, observation.arm" in out
    assert "a recipe to begin with" in out


def test_an_unclear_action_is_left_to_choose_in_the_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for index in range(4):
        write_video(tmp_path / "a" / f"run{index}.mp4", 12, 10)
        # Whole numbers, some below 0: side by side they are no ids; the last row leads nowhere.
        columns = {"vx": rng.integers(-3, 3, 12), "vy": np.arange(12), "reward": np.ones(12)}
        write_table(tmp_path / "a" / f"run{index}.csv", columns)
    path = tmp_path / "recipe.yaml"
    assert cli.main(["inspect", str(tmp_path / "a"), "--recipe", str(path)]) == 0
    out = capsys.readouterr().out
    assert "no column is plainly the action; candidates: vx, vy" in out
    assert "next: choose the action in it, then tokenwm prepare" in out
    assert re.search(r"action\[1\] vy +│ +0 │ +10", out)
    assert "actions are continuous, quantities if all of these columns are the action" in out

    assert cli.main(["prepare", str(path), "--out", str(tmp_path / "out")]) == 1
    assert "source.action is not given" in capsys.readouterr().err
    text = path.read_text()
    assert "  state: null  # or some of [vx, vy]\n" in text
    path.write_text(text.replace("# action: [vx, vy]", "action: [vy]"))
    manifest = prepare(load_recipe(path), tmp_path / "out")
    assert len(manifest.episodes) == 4 and not manifest.excluded
    assert manifest.features["action"].num_values == 11  # the last row leads nowhere


def test_an_unclear_state_without_pictures_is_left_to_choose(tmp_path: Path) -> None:
    columns = {"action": np.ones((12, 2)), "joints": np.ones((12, 3)), "next.reward": np.ones(12)}
    columns = {name: array.astype(np.float32) for name, array in columns.items()}
    written = [WrittenEpisode(index=i, columns=columns) for i in range(3)]
    write_lerobot(tmp_path / "a", written, version="v2.1")
    found = survey(tmp_path / "a")
    assert found.unclear == {"state": ("joints",)} and not found.problems
    recipe = starter_recipe(found)
    assert "  # state: [joints]\n  action: action\n" in recipe
    values = yaml.safe_load(recipe.replace("# state:", "state:"))
    assert parse_recipe(values).open_source().describe().state_units == ""


def test_the_column_that_names_the_episode_is_guessed_from_its_values(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(3):
        write_video(tmp_path / "a" / f"run{index}.mp4", 12, 10)
    columns = {"row": np.tile(np.arange(12), 3), "take": np.repeat(np.arange(3), 12)}
    write_table(tmp_path / "a" / "all.csv", {**columns, "action": rng.normal(size=(36, 2))})
    found = survey(tmp_path / "a")
    assert found.ambiguous == {"episode_column": ("take", "row")}
    recipe = starter_recipe(found)
    assert "  episode_column: take  # a guess among [take, row]\n" in recipe
    opened = parse_recipe(yaml.safe_load(recipe)).open_source()
    assert opened.load(opened.episodes()[1]).num_steps == 12


def test_only_some_episodes_of_many_are_read(tmp_path: Path) -> None:
    write_lerobot(tmp_path / "a", [episode(i, 12) for i in range(9)], version="v3.0")
    found = survey(tmp_path / "a", num_episodes=3)
    assert list(found.looked_into) == ["episode_000000", "episode_000004", "episode_000008"]
    assert len(survey(tmp_path / "a", num_episodes=0).looked_into) == 9


def test_what_cannot_be_inspected(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        survey(tmp_path / "nothing")
    with pytest.raises(SourceError, match="of no format that a reader knows: lerobot"):
        survey(tmp_path)
    write_lerobot(tmp_path / "a", [episode(0, 12)], version="v2.1")
    next((tmp_path / "a").glob("videos/**/*.mp4")).unlink()
    with pytest.raises(RecipeError, match=r"no episode of .* can be used: .*is missing"):
        starter_recipe(survey(tmp_path / "a"))
    info = tmp_path / "a" / "meta" / "info.json"
    values = json.loads(info.read_text())
    del values["features"]["action"]
    info.write_text(json.dumps(values))
    del values["features"]["observation.state"]
    info.write_text(json.dumps(values))
    with pytest.raises(RecipeError, match="no column called action; its numbers: none"):
        survey(tmp_path / "a")


def test_control_rates_near_ten() -> None:
    wanted = {30: 10, 20: 10, 50: 10, 10: 10, 3: 3, 25: 12.5, 60: 10, 15: 7.5, 7: 7, None: 10}
    assert {rate: propose_control_rate(rate) for rate in wanted} == wanted


def test_licence_in_the_header_of_a_readme(tmp_path: Path) -> None:
    write_lerobot(tmp_path / "a", [episode(0, 12)], version="v2.1")
    readme = tmp_path / "a" / "README.md"
    readme.write_text("---\ntags: [LeRobot]\nlicense: cc-by-4.0\n---\n# Data\n")
    assert survey(tmp_path / "a").licence == "cc-by-4.0"
    readme.write_text("license: none of a header\n")
    assert survey(tmp_path / "a").licence == ""


@pytest.mark.skipif(not G1_DATA.is_dir(), reason=f"the G1 recordings are not at {G1_DATA}")
def test_real_robot_with_the_shortest_recipe() -> None:
    source: dict[str, Any] = {"type": "lerobot", "path": str(G1_DATA)}
    recipe = parse_recipe({"name": "g1", "source": source, "control_rate": 10})
    opened = recipe.open_source()
    refs = opened.episodes()
    got = opened.load(min(refs, key=lambda ref: ref.num_rows or 0))
    assert list(got.frames) == ["cam_high"]
    assert got.state is not None and got.state.shape[1] == got.action.shape[1] == 26
    found = survey(G1_DATA)
    assert found.num_rows == 7812 and not found.problems
    assert found.licence == "MIT License"
    assert found.facts["indices"] == "10 to 33"
