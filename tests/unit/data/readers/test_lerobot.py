import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenwm.data.recipes.recipe import load_recipe
from tokenwm.errors import EpisodeError, RecipeError, SourceError

G1_RECIPE = Path(__file__).parents[4] / "data_recipes" / "unitree_g1_bottle.yaml"
G1_DATA = Path(__file__).parents[5] / "shared" / "data" / "unitree_g1_bottle"


def load_first(recipe: Any) -> Any:
    source = recipe.open_source()
    return source.load(source.episodes()[0])


def test_time_alignment_from_30_to_10_hertz(lerobot: Any) -> None:
    lerobot.add(7, 20)
    source = lerobot.recipe().open_source()
    refs = source.episodes()
    assert [(ref.key, ref.index, ref.num_rows) for ref in refs] == [("episode_000007", 7, 20)]
    episode = source.load(refs[0])
    rows = np.arange(0, 20, 3)
    # A picture's brightness tells its row, and so do the state and the action.
    brightness = episode.frames["front"].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(brightness, 10 + 4 * rows, atol=2)
    np.testing.assert_allclose(episode.state[:, 0], 0.1 * rows, rtol=1e-6)
    np.testing.assert_array_equal(episode.action[:, 0], [2, 5, 8, 11, 14, 17, 0])
    np.testing.assert_array_equal(episode.action[:-1, 2], 7)
    np.testing.assert_array_equal(episode.truncated, [False] * 5 + [True, False])
    assert not episode.terminated.any()
    assert episode.reward is None
    assert episode.control_rate == 10.0
    assert episode.task == "push the block"
    assert episode.metadata["source_index"] == 7


def test_source_rate_is_kept_if_asked_for(lerobot: Any) -> None:
    lerobot.add(0, 5)
    episode = load_first(lerobot.recipe(control_rate=30))
    np.testing.assert_array_equal(episode.action[:, 0], [0, 1, 2, 3, 0])


def test_reward_termination_and_names(lerobot: Any) -> None:
    done = np.zeros(10, np.bool_)
    done[4] = True
    lerobot.add(0, 10, next__reward=np.ones(10, np.float32), next__done=done)
    recipe = lerobot.recipe(source={"reward": "next.reward", "state_units": "rad"})
    source = recipe.open_source()
    episode = source.load(source.episodes()[0])
    np.testing.assert_array_equal(episode.reward, [3, 3, 3, 0])
    np.testing.assert_array_equal(episode.terminated, [False, True, False, False])
    assert episode.metadata["terminated_after_end"] is False
    about = source.describe()
    assert about.action_names == ("action_0", "action_1", "action_2")
    assert about.state_units == "rad"


def test_termination_in_the_last_row_is_noted(lerobot: Any) -> None:
    lerobot.add(0, 10, next__done=np.arange(10) == 9)
    episode = load_first(lerobot.recipe())
    assert not episode.terminated.any()
    assert episode.metadata["terminated_after_end"] is True


def test_two_cameras_no_state_and_discrete_actions(make_lerobot: Callable[..., Any]) -> None:
    lerobot = make_lerobot(fps=10, cameras=("front", "wrist"))
    lerobot.add(0, 6, action=np.arange(6))
    episode = load_first(lerobot.recipe(source={"state": None}))
    assert list(episode.frames) == ["front", "wrist"]
    assert episode.state is None
    assert episode.action.dtype == np.int64
    np.testing.assert_array_equal(episode.action[:, 0], [0, 1, 2, 3, 4, 0])


def test_episodes_can_be_chosen(lerobot: Any) -> None:
    for index in (10, 11, 12):
        lerobot.add(index, 6)
    recipe = lerobot.recipe(source={"episodes": [12, 10]})
    assert [ref.index for ref in recipe.open_source().episodes()] == [10, 12]
    with pytest.raises(RecipeError, match=r"source.episodes asks for \[3\]; .* 10 to 12"):
        lerobot.recipe(source={"episodes": [3]}).open_source().episodes()


def test_source_can_be_sent_to_another_process(lerobot: Any) -> None:
    lerobot.add(0, 6)
    source = pickle.loads(pickle.dumps(lerobot.recipe().open_source()))
    assert source.load(source.episodes()[0]).num_steps == 2


def test_names_as_found_in_the_wild(lerobot: Any) -> None:
    lerobot.add(0, 6)
    expected = ("a", "b", "c")
    for names in (
        ["a", "b", "c"],
        [["a", "b", "c"]],
        {"motors": ["a", "b", "c"]},
        dict.fromkeys("abc", 0),
    ):
        lerobot.features["action"]["names"] = names
        lerobot.write_meta()
        assert lerobot.recipe().open_source().describe().action_names == expected
    for unusable in (None, ["a"], "abc"):
        lerobot.features["action"]["names"] = unusable
        lerobot.write_meta()
        assert lerobot.recipe().open_source().describe().action_names == ()


def test_checksum_covers_the_meta_files_and_the_sizes_of_others(lerobot: Any) -> None:
    lerobot.add(0, 6)
    video, before = lerobot.video(0), lerobot.recipe().open_source().provenance()
    content = video.read_bytes()
    video.write_bytes(content + b"0")
    changed = lerobot.recipe().open_source().provenance()
    assert changed["source_checksum"] != before["source_checksum"]
    video.write_bytes(content)
    assert before["source"] == str(lerobot.folder)
    assert before == lerobot.recipe().open_source().provenance()
    lerobot.add(1, 6)
    assert (
        before["source_checksum"] != lerobot.recipe().open_source().provenance()["source_checksum"]
    )


def test_missing_video(lerobot: Any) -> None:
    lerobot.add(0, 6)
    lerobot.video(0).unlink()
    with pytest.raises(EpisodeError, match=r"episode_000000: video .* is missing"):
        load_first(lerobot.recipe())


def test_truncated_video(lerobot: Any, make_video: Callable[..., None]) -> None:
    lerobot.add(0, 30)
    content = lerobot.video(0).read_bytes()
    lerobot.video(0).write_bytes(content[: len(content) // 2])
    with pytest.raises(EpisodeError, match="truncated or damaged"):
        load_first(lerobot.recipe())
    # With the index in front the rest can still be decoded: then the count tells.
    make_video(lerobot.video(0), 30, 30, options={"movflags": "faststart"})
    content = lerobot.video(0).read_bytes()
    lerobot.video(0).write_bytes(content[: int(len(content) * 0.9)])
    with pytest.raises(EpisodeError, match="truncated"):
        load_first(lerobot.recipe())


@pytest.mark.parametrize(
    ("num_frames", "message"), [(18, "truncated or incomplete"), (22, "too long")]
)
def test_video_and_parquet_differ_in_length(
    lerobot: Any, make_video: Callable[..., None], num_frames: int, message: str
) -> None:
    lerobot.add(0, 20)
    make_video(lerobot.video(0), num_frames, 30)
    with pytest.raises(EpisodeError, match=f"{message}.*{num_frames} frames and the table 20 rows"):
        load_first(lerobot.recipe())


def test_video_of_another_rate(lerobot: Any, make_video: Callable[..., None]) -> None:
    lerobot.add(0, 20)
    make_video(lerobot.video(0), 20, 15)
    with pytest.raises(EpisodeError, match="its rate is not 30 Hz"):
        load_first(lerobot.recipe())


def test_parquet_and_meta_differ_in_length(lerobot: Any) -> None:
    lerobot.add(0, 20)
    lerobot.lengths[0] = 21
    lerobot.write_meta()
    with pytest.raises(EpisodeError, match="20 rows, meta/ says 21"):
        load_first(lerobot.recipe())


def test_nan_action_even_between_kept_rows(lerobot: Any) -> None:
    action = np.zeros((20, 3), np.float32)
    action[4, 1] = np.nan
    lerobot.add(0, 20, action=action)
    with pytest.raises(EpisodeError, match="action holds 1 NaN or infinite .* row 4"):
        load_first(lerobot.recipe())


def test_changing_control_rate(lerobot: Any) -> None:
    times = np.arange(20, dtype=np.float32) / 30
    times[12:] += 1 / 30
    lerobot.add(0, 20, timestamp=times)
    with pytest.raises(EpisodeError, match="control rate changes, rows 11 and 12"):
        load_first(lerobot.recipe())


@pytest.mark.parametrize("column", ["action", "observation__state", "timestamp"])
def test_missing_column(lerobot: Any, column: str) -> None:
    lerobot.add(0, 6)
    meta = dict(lerobot.features)
    lerobot.add(0, 6, **{column: None})
    lerobot.features = meta
    lerobot.write_meta()
    with pytest.raises(EpisodeError, match=f"no column '{column.replace('__', '.')}'; it has"):
        load_first(lerobot.recipe())


def test_damaged_or_missing_parquet(lerobot: Any) -> None:
    lerobot.add(0, 6)
    lerobot.parquet(0).write_bytes(lerobot.parquet(0).read_bytes()[:100])
    with pytest.raises(EpisodeError, match=r"episode_000000\.parquet cannot be read"):
        load_first(lerobot.recipe())
    lerobot.parquet(0).unlink()
    with pytest.raises(EpisodeError, match=r"episode_000000\.parquet is missing"):
        load_first(lerobot.recipe())


def test_odd_columns(lerobot: Any) -> None:
    import pyarrow
    import pyarrow.parquet

    lerobot.add(0, 3)
    table = pyarrow.parquet.read_table(lerobot.parquet(0))
    place = table.column_names.index("action")
    for values, message in (
        (pyarrow.array([[1.0], [1.0, 2.0], []]), "rows of different lengths"),
        (pyarrow.array([[1.0], [None], [2.0]]), "what is missing is NaN.* row 1"),
        (pyarrow.array([[1.0], None, [2.0]]), "what is missing is NaN.* row 1"),
        (pyarrow.array(["a", "b", "c"]), "expected numbers"),
    ):
        changed = table.set_column(place, "action", values)
        pyarrow.parquet.write_table(changed, lerobot.parquet(0))
        with pytest.raises(EpisodeError, match=f"action.*{message}"):
            load_first(lerobot.recipe())


def test_too_short_at_the_control_rate(lerobot: Any) -> None:
    lerobot.add(0, 3)
    with pytest.raises(EpisodeError, match=r"too short, 1 step\(s\) at 10 Hz"):
        load_first(lerobot.recipe())


def test_features_are_checked_before_anything_is_loaded(lerobot: Any) -> None:
    lerobot.add(0, 6)
    for source, message in (
        ({"action": "actions"}, "did you mean 'action'.*it has: observation.state, action"),
        ({"state": "observation.images.front"}, "dtype 'video'; numbers are needed"),
        ({"cameras": {"front": "observation.state"}}, "pictures are needed"),
        ({"reward": "next.reward"}, "source.reward is 'next.reward'"),
    ):
        with pytest.raises(RecipeError, match=message):
            lerobot.recipe(source=source).open_source()
    with pytest.raises(RecipeError, match="does not divide the source's 30 Hz"):
        lerobot.recipe(control_rate=20).open_source()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebase_version": "v1.6"}, r"codebase_version is 'v1\.6'; this reader knows v2\.0, "),
        ({"fps": 0}, "above zero"),
        ({"fps": "fast"}, "wrong value"),
        ({"data_path": "{nothing}.parquet"}, "path template .* is not usable"),
    ],
)
def test_wrong_info(lerobot: Any, changes: dict[str, Any], message: str) -> None:
    lerobot.add(0, 6)
    lerobot.write_meta(**changes)
    with pytest.raises(SourceError, match=message):
        load_first(lerobot.recipe())


def test_missing_meta(lerobot: Any) -> None:
    lerobot.add(0, 6)
    meta = lerobot.folder / "meta"
    info = json.loads((meta / "info.json").read_text())
    del info["fps"]
    (meta / "info.json").write_text(json.dumps(info))
    with pytest.raises(
        SourceError, match=r"key 'fps' is missing; expected layout \(LeRobot v2\.1\)"
    ):
        lerobot.recipe().open_source()
    lerobot.write_meta()
    (meta / "episodes.jsonl").write_text('{"episode_index": 0}\n')
    with pytest.raises(SourceError, match=r"episodes\.jsonl, line 1: expected an object with"):
        lerobot.recipe().open_source()
    (meta / "info.json").unlink()
    with pytest.raises(SourceError, match=r"info\.json is missing; expected layout"):
        lerobot.recipe().open_source()


def test_missing_data_says_where_it_comes_from(tmp_path: Path) -> None:
    recipe = load_recipe(G1_RECIPE, [f"source.path={tmp_path}/nothing"])
    with pytest.raises(SourceError) as raised:
        recipe.open_source()
    for part in (
        f"{tmp_path}/nothing",
        "github.com/YifanTian07/G1-policy-train",
        "MIT",
        "meta/info",
    ):
        assert part in str(raised.value)


def test_path_relative_to_the_recipe(
    lerobot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lerobot.add(0, 6)
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text(
        "name: a\ncontrol_rate: 10\n"
        "source: {type: lerobot, path: source, state: observation.state}\n"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert len(load_recipe(recipe_file).open_source().episodes()) == 1


@pytest.mark.skipif(not G1_DATA.is_dir(), reason=f"the G1 recordings are not at {G1_DATA}")
def test_real_robot() -> None:
    recipe = load_recipe(G1_RECIPE, [f"source.path={G1_DATA}"])
    source = recipe.open_source()
    refs = source.episodes()
    assert [ref.index for ref in refs] == list(range(10, 34))
    assert sum(ref.num_rows or 0 for ref in refs) == 7812
    assert source.describe().action_names[0] == "kLeftShoulderPitch"
    shortest = min(refs, key=lambda ref: ref.num_rows or 0)
    episode = source.load(shortest)
    num_steps = -(-(shortest.num_rows or 0) // 3)
    assert episode.frames["high"].shape == (num_steps, 64, 64, 3)
    assert episode.state is not None and episode.state.shape == (num_steps, 26)
    assert episode.action.shape == (num_steps, 26)
    assert episode.frames["high"].std() > 20
