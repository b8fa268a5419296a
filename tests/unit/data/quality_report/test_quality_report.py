import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.unit.data.shards.shard_fixtures import make_arrays
from tokenwm.data import quality_report
from tokenwm.data.making.prepare import prepare
from tokenwm.data.quality.measures import measure_recording
from tokenwm.data.quality_report import page, summary
from tokenwm.data.readers.lerobot.reader import LeRobotConfig
from tokenwm.data.recipes.recipe import load_recipe
from tokenwm.data.shards.manifest import Excluded, Feature, Manifest
from tokenwm.data.shards.verify import find_problems
from tokenwm.data.shards.writer import ShardWriter
from tokenwm.errors import ShardError

G1_RECIPE = Path(__file__).parents[4] / "data_recipes" / "unitree_g1_bottle.yaml"
G1_DATA = Path(__file__).parents[5] / "shared" / "data" / "unitree_g1_bottle"
FEATURES = {
    "frames.top": Feature(kind="frames", shape=(8, 8, 3), dtype="uint8"),
    "state": Feature(kind="continuous", shape=(2,), dtype="float32"),
    "action": Feature(kind="continuous", shape=(2,), dtype="float32", names=("left", "right")),
    "terminated": Feature(kind="flag", shape=(), dtype="bool"),
    "truncated": Feature(kind="flag", shape=(), dtype="bool"),
}
Episodes = dict[str, dict[str, NDArray[Any]]]


def robot(seed: int, num_steps: int = 40) -> dict[str, NDArray[Any]]:
    """An episode of a robot whose state follows the action by two steps."""
    way = np.cumsum(np.random.default_rng(seed).normal(size=(num_steps + 2, 2)), axis=0)
    arrays = make_arrays(FEATURES, num_steps, seed)
    return arrays | {"action": way[2:].astype(np.float32), "state": way[:-2].astype(np.float32)}


def write_dataset(
    folder: Path,
    episodes: Mapping[str, Mapping[str, NDArray[Any]]],
    *,
    split_of: Mapping[str, str] | None = None,
    task: str = "push",
    features: Mapping[str, Feature] = FEATURES,
    **changes: Any,
) -> tuple[Manifest, dict[str, dict[str, Any]]]:
    """Shards without a manifest, the manifest, and what is measured."""
    split_of = {key: "train" for key in episodes} | dict(split_of or {})
    shards, infos = [], []
    for split in ("train", "val", "test"):
        with ShardWriter(folder, split) as writer:
            for key, arrays in episodes.items():
                if split_of[key] == split:
                    writer.add(key, {name: arrays[name] for name in features}, {"task": task})
            new_shards, new_episodes = writer.finish()
        shards += new_shards
        infos += new_episodes
    measured = {
        key: measure_recording(
            rate=10.0,
            action=arrays["action"][:-1],
            state=arrays.get("state"),
            timestamps=np.arange(len(arrays["action"])) / 10,
            frames={name[7:]: arrays[name] for name in features if name.startswith("frames.")},
            frame_rate=10.0,
        )
        for key, arrays in episodes.items()
    }
    values: dict[str, Any] = {"kind": "frames", "name": "fixture", "control_rate": 10.0}
    values |= {"features": dict(features), "shards": shards, "episodes": infos}
    return Manifest(**values | changes), measured


@pytest.fixture(scope="module")
def good() -> Episodes:
    return {f"episode_{index:06d}": robot(index) for index in range(6)}


def texts(report: Mapping[str, Any], rule: str) -> list[str]:
    return [found["text"] for found in report["findings"] if found["rule"] == rule]


def test_good_data(tmp_path: Path, good: Episodes) -> None:
    manifest, measured = write_dataset(tmp_path, good)
    report = quality_report.write(tmp_path, manifest, measured)
    assert report["verdict"] == "All 6 episodes are in, and nothing looks wrong."
    assert report["findings"] == []
    figures = report["summary"]
    assert figures["lag"]["rows"] == pytest.approx(2, abs=0.3)
    assert figures["starts"] == {
        "episodes": 6,
        "distinct": 6,
        "spread": figures["starts"]["spread"],
    }
    assert figures["duplicates"] == {"equal": [], "near": []}
    assert 1 < figures["actions"]["effective_dimensions"] <= 2
    assert figures["actions"]["steps"] == 6 * 39
    for about in figures["actions"]["dimensions"]:
        assert sum(about["counts"]) == 6 * 39
    on_disk = json.loads((tmp_path / "quality.json").read_text())
    assert on_disk == json.loads(json.dumps(report))
    assert on_disk["schema_version"] == 1
    assert quality_report.read(tmp_path) == on_disk


def test_the_page_needs_no_network_and_no_script(tmp_path: Path, good: Episodes) -> None:
    manifest, measured = write_dataset(tmp_path, good)
    quality_report.write(tmp_path, manifest, measured)
    text = (tmp_path / "quality.html").read_text()
    assert not re.search(r"<script|<link|<iframe|@import|url\(", text)
    for address in re.findall(r"(?:src|href)\s*=\s*[\"']([^\"']*)", text):
        assert address.startswith("data:image/jpeg;base64,")
    assert "http" not in text
    assert text.count("data:image/jpeg") == 3 * 6
    assert "is the data fine?" in text and "nothing looks wrong" in text
    assert "$" not in text  # every place of the template was filled


def test_texts_of_strangers_are_escaped(tmp_path: Path, good: Episodes) -> None:
    evil = "<script>alert('x')</script>"
    features = dict(FEATURES, action=replace(FEATURES["action"], names=(evil, "b"), units=evil))
    manifest, measured = write_dataset(
        tmp_path,
        good,
        task=evil,
        features=features,
        excluded=[Excluded(key="episode_7", reason=f"video {evil} is missing")],
        provenance={"source": evil, "licence": evil},
    )
    quality_report.write(tmp_path, manifest, measured)
    text = (tmp_path / "quality.html").read_text()
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 5


def test_the_order_of_what_was_measured_changes_nothing(tmp_path: Path, good: Episodes) -> None:
    manifest, measured = write_dataset(tmp_path, good)
    quality_report.write(tmp_path, manifest, measured)
    files = [(tmp_path / name).read_bytes() for name in ("quality.json", "quality.html")]
    backwards = dict(reversed(measured.items()))
    quality_report.write(tmp_path, manifest, backwards)
    assert [(tmp_path / n).read_bytes() for n in ("quality.json", "quality.html")] == files
    manifest.save(tmp_path)
    quality_report.rewrite(tmp_path)
    assert [(tmp_path / n).read_bytes() for n in ("quality.json", "quality.html")] == files


def test_what_was_left_out_is_listed_once(tmp_path: Path, good: Episodes) -> None:
    keys = ("episode_000009", "episode_000009_phase1", "episode_000009_phase2", "other_phase1")
    excluded = [Excluded(key=key, reason=f"episode {key}: video is truncated") for key in keys]
    manifest, measured = write_dataset(tmp_path, good, excluded=excluded)
    report = quality_report.write(tmp_path, manifest, measured)
    assert [item["key"] for item in report["excluded"]] == ["episode_000009", "other_phase1"]
    assert report["verdict"] == "6 of 8 episodes are in; 1 thing should be mended."
    assert report["findings"][0]["level"] == "wrong"
    assert "<td>video is truncated</td>" in (tmp_path / "quality.html").read_text()


def test_phases_of_a_recording_are_no_duplicates(tmp_path: Path, good: Episodes) -> None:
    episodes = {**good, "episode_000000_phase1": good["episode_000000"]}
    manifest, measured = write_dataset(tmp_path, episodes)
    measured["episode_000000_phase1"] = {}
    report = quality_report.write(tmp_path, manifest, measured)
    assert report["summary"]["recordings"] == 6
    assert report["findings"] == []


def test_duplicates(tmp_path: Path, good: Episodes) -> None:
    near = dict(good["episode_000002"])
    noise = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    near["state"] = near["state"] + 0.01 * noise
    episodes = {**good, "x_copy": good["episode_000001"], "y_near": near}
    manifest, measured = write_dataset(tmp_path / "one", episodes)
    report = quality_report.write(tmp_path / "one", manifest, measured)
    assert report["summary"]["duplicates"]["equal"] == [["episode_000001", "x_copy"]]
    (equal,) = texts(report, "duplicates")
    assert "episode_000001, x_copy" in equal and "splits" not in equal
    (nearly,) = texts(report, "near duplicates")
    assert "2 episodes hold almost the same motion as another: episode_000002, y_near" in nearly
    assert {found["level"] for found in report["findings"]} == {"look"}
    manifest, measured = write_dataset(tmp_path / "two", episodes, split_of={"x_copy": "val"})
    report = quality_report.write(tmp_path / "two", manifest, measured)
    assert "held-out figures are too good" in texts(report, "duplicates")[0]
    assert report["findings"][0]["level"] == "wrong"


@settings(max_examples=30)
@given(
    groups=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    order=st.randoms(use_true_random=False),
)
def test_finding_equal_recordings_knows_no_order(groups: list[int], order: Any) -> None:
    measured = {f"e{index}": {"digest": str(group)} for index, group in enumerate(groups)}
    expected = {
        frozenset(key for key, about in measured.items() if about["digest"] == digest)
        for digest in {str(group) for group in groups if groups.count(group) > 1}
    }
    shuffled = list(measured.items())
    order.shuffle(shuffled)
    found = summary.equal_recordings(dict(shuffled))
    assert found == summary.equal_recordings(measured) == sorted(found)
    assert {frozenset(group) for group in found} == expected


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.01, 100), order=st.permutations(range(5)))
def test_near_duplicates_know_neither_order_nor_units(
    seed: int, scale: float, order: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    way = rng.normal(size=(5, summary.NUM_POINTS, 3))
    way[3] = way[1] + 0.001

    def sampled(views: NDArray[Any], indices: list[int]) -> summary.Sampled:
        return summary.Sampled(
            keys=[f"e{index}" for index in indices],
            lengths=np.full(5, 50),
            views=summary._in_deviations(views[indices]),
            actions=np.zeros((5, summary.NUM_POINTS, 0), np.float32),
            rows=np.zeros((1, 1), np.float32),
        )

    pairs = summary.near_duplicates(sampled(way, list(range(5))), 0.05)
    assert [(pair["first"], pair["second"]) for pair in pairs] == [("e1", "e3")]
    again = summary.near_duplicates(sampled(scale * way + 5000, order), 0.05)
    assert [(pair["first"], pair["second"]) for pair in again] == [("e1", "e3")]
    far_longer = replace(sampled(way, list(range(5))), lengths=np.array([50, 50, 50, 70, 50]))
    assert summary.near_duplicates(far_longer, 0.05) == []


def test_a_state_that_does_not_follow(tmp_path: Path, good: Episodes) -> None:
    ahead = {
        key: {**arrays, "action": np.roll(arrays["state"], 1, axis=0)}
        for key, arrays in good.items()
    }
    manifest, measured = write_dataset(tmp_path, ahead)
    report = quality_report.write(tmp_path, manifest, measured)
    (text,) = texts(report, "lag")
    assert "it is there 0.1" in text and "before the action that should have caused it" in text
    assert report["findings"][0]["level"] == "wrong"


def test_sensors_and_actions_that_deserve_a_look(tmp_path: Path, good: Episodes) -> None:
    episodes = {key: {name: array.copy() for name, array in a.items()} for key, a in good.items()}
    episodes["episode_000002"]["state"][:, 1] = 5.0
    episodes["episode_000003"]["frames.top"][10:20] = 7
    episodes["episode_000004"]["state"][10:20] = 1.0
    for arrays in episodes.values():
        arrays["action"][:, 0] = np.clip(arrays["action"][:, 0], -1, 1)
    manifest, measured = write_dataset(tmp_path, episodes)
    for values in measured.values():
        values["cameras"]["top"]["source_repeated"] = 0.4
    report = quality_report.write(tmp_path, manifest, measured)
    assert texts(report, "constant state") == [
        "state[1] never changes in episode_000002, but does elsewhere."
    ]
    assert texts(report, "frozen") == [
        "Camera top stands still for a while in 1 episode: episode_000003.",
        "The state stands still for a while in 1 episode: episode_000004.",
    ]
    assert "40 % of the source's frames equal" in texts(report, "repeated frames")[0]
    assert texts(report, "saturation")[0].startswith("Actions stand at their smallest or largest")
    assert "left in" in texts(report, "saturation")[0]
    text = (tmp_path / "quality.html").read_text()
    assert "camera top: 1.00 to 2.00 s" in text and "state: 1.00 to 2.00 s" in text
    assert text.count("episode flagged") == 3


def test_limits_of_the_recipe_are_used(tmp_path: Path, good: Episodes) -> None:
    same_start = {key: dict(arrays) for key, arrays in good.items()}
    for arrays in same_start.values():
        arrays["state"] = arrays["state"] - arrays["state"][0]
    manifest, measured = write_dataset(tmp_path, same_start)
    report = quality_report.write(tmp_path, manifest, measured)
    assert texts(report, "starts") == ["Episodes start from 1 distinct place only (6 looked at)."]
    limits = {"min_distinct_starts": 0.1, "min_action_coverage": 0.99, "near_duplicate": 100.0}
    manifest = replace(manifest, provenance={"recipe": {"quality": limits}})
    report = quality_report.write(tmp_path, manifest, measured)
    assert texts(report, "starts") == []
    assert "left (" in texts(report, "coverage")[0]
    assert len(report["summary"]["duplicates"]["near"]) == 15
    rule = next(rule for rule in report["rules"] if rule["key"] == "min_action_coverage")
    assert rule["limit"] == 0.99


def test_discrete_actions_and_no_state(tmp_path: Path) -> None:
    features = {name: FEATURES[name] for name in ("frames.top", "terminated", "truncated")}
    features["action"] = Feature(kind="discrete", shape=(1,), dtype="int64", num_values=4)
    episodes = {f"e{index}": make_arrays(features, 20, index) for index in range(3)}
    episodes["e9"] = episodes["e0"]
    manifest, measured = write_dataset(tmp_path, episodes, features=features)
    report = quality_report.write(tmp_path, manifest, measured)
    assert report["summary"]["lag"] is None
    assert report["summary"]["duplicates"]["equal"] == [["e0", "e9"]]
    assert report["summary"]["starts"]["distinct"] == 3
    (about,) = report["summary"]["actions"]["dimensions"]
    assert len(about["counts"]) == 4 and about["at_low"] is None
    assert "That cannot be told here" in (tmp_path / "quality.html").read_text()


def test_no_camera(tmp_path: Path, good: Episodes) -> None:
    features = {name: feature for name, feature in FEATURES.items() if name != "frames.top"}
    manifest, measured = write_dataset(tmp_path, good, features=features)
    report = quality_report.write(tmp_path, manifest, measured)
    assert report["findings"] == []
    assert "No camera." in (tmp_path / "quality.html").read_text()


def test_many_episodes_make_no_long_page(
    tmp_path: Path, good: Episodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    episodes = {f"e{index:05d}": good["episode_000000"] for index in range(300)}
    manifest, measured = write_dataset(tmp_path, episodes)
    monkeypatch.setattr(summary, "MAX_EPISODES", 100)
    excluded = [Excluded(key=f"x{index}", reason="r" * 200) for index in range(900)]
    report = quality_report.write(tmp_path, replace(manifest, excluded=excluded), measured)
    assert report["summary"]["sampled"] == 100
    text = (tmp_path / "quality.html").read_text()
    assert text.count("data:image/jpeg") == page.MAX_PICTURES
    assert "Shown are 24 of 300; the others are in quality.json." in text
    assert "Shown are 40 of 300" in text and "Shown are 200 of 900" in text
    assert len(text) < 400_000
    assert len(json.loads((tmp_path / "quality.json").read_text())["excluded"]) == 900


def test_those_named_are_shown_first() -> None:
    keys = [f"e{index}" for index in range(10)]
    assert page.choose(keys, set(), 10) == keys
    assert page.choose(keys, {"e7"}, 3) == ["e0", "e7", "e9"]
    assert page.choose(keys, {"e3", "e4", "e5"}, 2) == ["e3", "e4"]


def test_a_stuck_camera_in_a_real_video(lerobot: Any, make_video: Any, tmp_path: Path) -> None:
    """End to end: encoded, decoded, found, left out, listed; the others are in."""
    for index in range(4):
        lerobot.add(index, 150)
    images = np.random.default_rng(0).integers(0, 255, (150, 6, 8, 3), np.uint8)
    images = images.repeat(8, axis=1).repeat(8, axis=2)
    for index in range(4):
        shown = images.copy()
        if index == 2:
            shown[60:100] = shown[60]
        make_video(lerobot.video(index), 150, 30, images=shown)
    recipe = lerobot.recipe()
    manifest = prepare(recipe, tmp_path / "out")
    source = recipe.open_source()
    measured = {ref.key: source.load(ref).measured for ref in source.episodes() if ref.index != 2}
    report = quality_report.write(tmp_path / "out", manifest, measured)
    assert report["verdict"].startswith("3 of 4 episodes are in; ")
    (item,) = report["excluded"]
    assert item["key"] == "episode_000002"
    assert re.search(r"camera front is frozen from 2\.\d+ to 3\.\d+ s while the", item["reason"])
    cameras = measured["episode_000000"]["cameras"]
    assert cameras["front"]["source_repeated"] == 0.0


def test_a_report_that_is_written_again_has_checksums(tmp_path: Path, good: Episodes) -> None:
    manifest, measured = write_dataset(tmp_path, good)
    quality_report.write(tmp_path, manifest, measured)
    manifest.save(tmp_path)  # as older versions did
    quality_report.rewrite(tmp_path)
    assert find_problems(tmp_path) == []
    (tmp_path / "quality.html").write_text("an older page")
    assert [problem.file for problem in find_problems(tmp_path)] == ["quality.html"]
    quality_report.rewrite(tmp_path)
    assert find_problems(tmp_path) == []


def test_a_report_that_cannot_be_written_again(tmp_path: Path, good: Episodes) -> None:
    manifest, _ = write_dataset(tmp_path, good)
    manifest.save(tmp_path)
    with pytest.raises(ShardError, match=r"quality.json cannot be read .*prepare the dataset"):
        quality_report.rewrite(tmp_path)
    (tmp_path / "quality.json").write_text('{"schema_version": 99, "measured": {}}')
    with pytest.raises(ShardError, match="schema version 99, this is version 1"):
        quality_report.rewrite(tmp_path)


@pytest.mark.skipif(not G1_DATA.is_dir(), reason=f"the G1 recordings are not at {G1_DATA}")
def test_the_real_robot(tmp_path: Path) -> None:
    """All 24 episodes are fine; the arms follow after 0.1 s, the hands after 0.3 s."""
    recipe = load_recipe(G1_RECIPE, ["all_phases=false", f"source.path={G1_DATA}"])
    assert isinstance(recipe.source, LeRobotConfig)
    recipe = replace(recipe, source=replace(recipe.source, cameras={}))  # videos take long
    manifest = prepare(recipe, tmp_path)
    assert manifest.excluded == []
    source = recipe.open_source()
    measured = {ref.key: source.load(ref).measured for ref in source.episodes()}
    report = quality_report.write(tmp_path, manifest, measured)
    assert report["summary"]["recordings"] == 24
    assert [found["rule"] for found in report["findings"]] == ["saturation"]
    lag = report["summary"]["lag"]
    assert lag["rows"] == pytest.approx(3.7, abs=0.1)
    arms, hands = lag["dimensions"][7:14], lag["dimensions"][20:26]
    assert all(0.09 < seconds < 0.16 for seconds in arms)
    assert all(0.3 < seconds < 0.45 for seconds in hands)
    assert report["summary"]["worst"]["spike"]["value"] < 3
    assert report["summary"]["actions"]["effective_dimensions"] == pytest.approx(4.1, abs=0.1)
