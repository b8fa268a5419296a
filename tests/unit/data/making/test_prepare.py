import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenwm.cli.verbs.prepare import main
from tokenwm.data.making.prepare import prepare
from tokenwm.data.recipes.recipe import load_recipe
from tokenwm.data.shards.manifest import Manifest
from tokenwm.data.shards.reader import ShardReader
from tokenwm.data.shards.tar import ShardFile
from tokenwm.data.shards.tasks import Progress
from tokenwm.data.shards.verify import find_problems
from tokenwm.data.storage.atomic import partials_of
from tokenwm.errors import EpisodeError, RecipeError, ShardError, SourceError, TokenwmError

RECIPES = Path(__file__).parents[4] / "data_recipes"


@pytest.fixture
def dataset(lerobot: Any) -> Any:
    """Six good episodes of 20 to 25 rows."""
    for index in range(6):
        lerobot.add(index, 20 + index)
    return lerobot


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_from_recordings_to_shards(dataset: Any, tmp_path: Path) -> None:
    messages: list[Progress] = []
    out = tmp_path / "out"
    recipe = dataset.recipe(source={"state_units": "rad"})
    manifest = prepare(recipe, out, progress=messages.append)
    assert manifest == Manifest.load(out)
    assert [manifest.num_episodes(split) for split in ("train", "val", "test")] == [4, 1, 1]
    assert manifest.control_rate == 10.0
    assert manifest.cameras == ("front",)
    assert list(manifest.features) == ["frames.front", "state", "action", "terminated", "truncated"]
    assert manifest.features["state"].units == "rad"
    assert manifest.features["action"].names == ("action_0", "action_1", "action_2")
    made = [message for message in messages if message.stage == "shards"]
    assert [message.done for message in made] == [0, 4, 5, 6]  # one shard a split
    assert {message.total for message in made} == {6}
    assert made[-1].new_steps == sum(episode.num_steps for episode in manifest.episodes)
    assert [message.done for message in messages if message.stage == "merge"] == [1, 2, 3]
    reader = ShardReader(out, verify=True)
    source = recipe.open_source()
    for ref in source.episodes():
        episode = source.load(ref)
        arrays = reader.arrays(ref.key)
        np.testing.assert_array_equal(arrays["frames.front"], episode.frames["front"])
        np.testing.assert_array_equal(arrays["action"], episode.action)
        assert reader.metadata(ref.key)["task"] == "push the block"


def test_all_phases_of_training_episodes_only(dataset: Any, tmp_path: Path) -> None:
    """Row ``p + 3t`` is step ``t`` of phase ``p``; what is held out stays as it is."""
    manifest = prepare(dataset.recipe(all_phases=True), tmp_path / "all")
    once = prepare(dataset.recipe(), tmp_path / "once")
    reader, plain = ShardReader(tmp_path / "all", verify=True), ShardReader(tmp_path / "once")
    assert [manifest.num_episodes(split) for split in ("train", "val", "test")] == [12, 1, 1]
    for split in ("val", "test"):
        assert reader.keys(split) == plain.keys(split)
    for key in plain.keys("train"):
        rows = dataset.lengths[int(key.removeprefix("episode_"))]
        for phase in (0, 1, 2):
            name = f"{key}_phase{phase}" if phase else key
            arrays = reader.arrays(name)
            kept = np.arange(phase, rows, 3)
            np.testing.assert_allclose(arrays["state"][:, 0], 0.1 * kept, rtol=1e-6)
            # The synthetic action is its row; "last" takes the one before the next kept row.
            np.testing.assert_array_equal(arrays["action"][:-1, 0], kept[1:] - 1)
            brightness = arrays["frames.front"].mean((1, 2, 3))
            np.testing.assert_allclose(brightness, 10 + 4 * kept, atol=3)
            assert reader.metadata(name).get("phase", 0) == phase
    assert once.provenance["recipe"]["all_phases"] is False


@pytest.mark.parametrize("rule", ["not finite", "spike", "uneven", "video"])
def test_what_is_wrong_with_a_recording_leaves_out_all_its_phases(
    dataset: Any, tmp_path: Path, rule: str
) -> None:
    """Also where only one phase keeps the row in question."""
    rows = np.arange(40)
    state = np.stack([0.1 * rows, -0.1 * rows], axis=1).astype(np.float32)
    times = rows / 30
    if rule == "not finite":
        state[10, 0] = np.nan
    elif rule == "spike":
        state[10, 0] += 100
    elif rule == "uneven":
        times[10:] += 0.01
    dataset.add(6, 40, observation__state=state, timestamp=times.astype(np.float32))
    if rule == "video":
        shutil.copy(dataset.video(0), dataset.video(6))  # only 20 frames
    recipe = dataset.recipe(all_phases=True, splits={"val": 0.0, "test": 0.0})
    excluded = [item.key for item in prepare(recipe, tmp_path / "out").excluded]
    assert excluded == ["episode_000006", "episode_000006_phase1", "episode_000006_phase2"]


def test_a_phase_that_is_too_short_is_left_out_alone(dataset: Any, tmp_path: Path) -> None:
    limits = {"min_steps": 7}  # 20 rows are 7 steps from row 0 or 1, and 6 from row 2
    splits = {"val": 0.0, "test": 0.0}
    recipe = dataset.recipe(all_phases=True, splits=splits, quality=limits)
    excluded = [item.key for item in prepare(recipe, tmp_path / "out").excluded]
    assert excluded == ["episode_000000_phase2"]


def test_provenance_and_statistics_travel_with_the_dataset(dataset: Any, tmp_path: Path) -> None:
    recipe = dataset.recipe()
    manifest = prepare(recipe, tmp_path / "out")
    assert manifest.provenance["licence"] == "MIT"
    assert manifest.provenance["source"] == str(dataset.folder)
    assert len(manifest.provenance["source_checksum"]) == 64
    assert manifest.provenance["tool"].startswith("tokenwm ")
    assert manifest.provenance["recipe"] == recipe.to_dict()
    reader = ShardReader(tmp_path / "out")
    train = [reader.arrays(key) for key in reader.keys("train")]
    # The last step of an episode has no action: its zeros must not count.
    action = np.concatenate([arrays["action"][:-1] for arrays in train])
    state = np.concatenate([arrays["state"] for arrays in train])
    frames = np.concatenate([arrays["frames.front"] for arrays in train])
    for name, values in (("action", action), ("state", state)):
        figures = manifest.statistics[name]
        assert figures["count"] == len(values)
        np.testing.assert_allclose(figures["min"], values.min(axis=0))
        np.testing.assert_allclose(figures["max"], values.max(axis=0))
        np.testing.assert_allclose(figures["mean"], values.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(figures["std"], values.std(axis=0), rtol=1e-4, atol=1e-7)
        quantiles = np.array(figures["quantiles"])
        assert quantiles.shape == (values.shape[1], 1001)
        np.testing.assert_allclose(quantiles[:, 500], np.median(values, axis=0), rtol=1e-5)
    mean = np.load(tmp_path / "out" / manifest.statistics["frames.front"]["mean_frame"]["file"])
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, frames.mean(axis=0), rtol=1e-5)


def test_every_file_has_a_checksum(dataset: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = prepare(dataset.recipe(), out)
    assert sorted(manifest.files) == ["quality.html", "quality.json"]
    assert find_problems(out) == []
    for name, content in contents(out).items():
        (out / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert name in {problem.file for problem in find_problems(out)}
        (out / name).write_bytes(content)


def test_bytes_do_not_depend_on_the_number_of_workers(dataset: Any, tmp_path: Path) -> None:
    dataset.video(3).unlink()  # what is left out must not depend on it either
    prepare(dataset.recipe(), tmp_path / "none", num_workers=0)
    prepare(dataset.recipe(), tmp_path / "two", num_workers=2)
    assert contents(tmp_path / "none") == contents(tmp_path / "two")


def test_bad_episodes_are_left_out_and_listed(dataset: Any, tmp_path: Path) -> None:
    action = np.zeros((20, 3), np.float32)
    action[3] = np.nan
    dataset.add(6, 20, action=action)
    dataset.add(7, 20, observation__state=np.zeros((20, 5), np.float32) + np.arange(20)[:, None])
    dataset.video(2).unlink()
    manifest = prepare(dataset.recipe(splits={"val": 0.0, "test": 0.0}), tmp_path / "out")
    assert manifest.num_episodes("train") == 5
    reasons = {item.key: item.reason for item in manifest.excluded}
    assert list(reasons) == ["episode_000002", "episode_000006", "episode_000007"]
    assert "is missing" in reasons["episode_000002"]
    assert "NaN" in reasons["episode_000006"]
    assert "state differs in shape" in reasons["episode_000007"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_strict_recipe_stops(dataset: Any, tmp_path: Path, num_workers: int) -> None:
    dataset.video(2).unlink()
    with pytest.raises(EpisodeError, match="episode_000002: video .* is missing"):
        prepare(dataset.recipe(quality={"strict": True}), tmp_path / "out", num_workers)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_split_that_loses_all_its_episodes_is_an_error(dataset: Any, tmp_path: Path) -> None:
    videos = {dataset.video(index): dataset.video(index).read_bytes() for index in range(6)}
    for path in videos:
        path.unlink()
    with pytest.raises(SourceError, match="no episode is left, 6 of 6 were left out"):
        prepare(dataset.recipe(), tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()
    for path, content in videos.items():
        path.write_bytes(content)
    assert (
        prepare(dataset.recipe(), tmp_path / "out").excluded == []
    )  # mended, it is looked at anew


def test_too_few_episodes(lerobot: Any, tmp_path: Path) -> None:
    lerobot.add(0, 20)
    with pytest.raises(RecipeError, match="cannot be divided"):
        prepare(lerobot.recipe(), tmp_path / "out")


class FullDisk:
    """A file on a disk with room for ``room`` bytes."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: Any) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(self.file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Any:
        self.file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.__exit__(*error)


@pytest.mark.parametrize(
    "file_that_fails",
    ["unfinished", "train-000000.tar", "test-000000.tar", "record", "mean_frame", "manifest"],
)
def test_disk_full_leaves_nothing_half_written(
    dataset: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file_that_fails: str,
) -> None:
    import builtins

    real_open = builtins.open

    def open_on_full_disk(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = real_open(path, mode, *args, **kwargs)
        name = str(path) if isinstance(path, str | Path) else ""
        if "w" in mode and file_that_fails in name:
            return FullDisk(file, room=100)
        return file

    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    monkeypatch.setattr(builtins, "open", open_on_full_disk)
    with pytest.raises(
        ShardError, match="could not be written.*No space left on device.*free space"
    ):
        prepare(dataset.recipe(), out)
    monkeypatch.undo()
    assert partials_of(out) == []
    with pytest.raises(ShardError, match="not a finished dataset"):
        ShardReader(out)
    prepare(dataset.recipe(), out)  # and with room again it simply goes on
    prepare(dataset.recipe(), tmp_path / "clean")
    assert contents(out) == {**contents(tmp_path / "clean"), "notes.txt": b"mine"}


def test_an_interrupted_run_is_continued(dataset: Any, tmp_path: Path) -> None:
    def interrupt(now: Progress) -> None:
        if now.done == 5:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        prepare(dataset.recipe(), out, progress=interrupt)
    assert not (out / "manifest.json").exists()
    # After a kill there was no time to clean up.
    (out / ".test-000000.tar.01234567.partial").write_bytes(b"half")
    written = (out / "train-000000.tar").stat().st_mtime_ns
    seen: list[Progress] = []
    prepare(dataset.recipe(), out, progress=seen.append)
    kept = [now.message for now in seen if "kept" in now.message]
    assert kept == ["train-000000.tar kept", "val-000000.tar kept"]
    assert (out / "train-000000.tar").stat().st_mtime_ns == written
    prepare(dataset.recipe(), tmp_path / "clean")
    assert contents(out) == contents(tmp_path / "clean")
    assert not [name for name in contents(out) if name.startswith(".")]


def stop_after(done: int) -> Callable[[Progress], None]:
    def stop(now: Progress) -> None:
        if now.stage == "shards" and now.done >= done:
            raise KeyboardInterrupt

    return stop


def test_a_source_that_changed_in_between_is_noticed(
    dataset: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        prepare(dataset.recipe(), out, progress=stop_after(4))
    dataset.add(6, 20)
    prepare(dataset.recipe(), out)
    assert "source_checksum, shards changed since" in caplog.text
    prepare(dataset.recipe(), tmp_path / "clean")
    assert contents(out) == contents(tmp_path / "clean")


def test_a_source_that_changes_while_it_is_read_is_an_error(dataset: Any, tmp_path: Path) -> None:
    def change(now: Progress) -> None:
        if now.done == 4:
            dataset.write_meta(robot_type="other")

    with pytest.raises(SourceError, match=r"changed while it was read \(source_checksum\)"):
        prepare(dataset.recipe(), tmp_path / "out", progress=change)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("damage", ["shard", "record", "cut", "missing"])
def test_what_is_not_whole_is_made_again(dataset: Any, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        prepare(dataset.recipe(), out, progress=stop_after(5))
    path = out / (".train-000000.record" if damage == "record" else "train-000000.tar")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:3000] if damage == "cut" else content)
    seen: list[Progress] = []
    prepare(dataset.recipe(), out, progress=seen.append)
    assert [now.message for now in seen if "kept" in now.message] == ["val-000000.tar kept"]
    prepare(dataset.recipe(), tmp_path / "clean")
    assert contents(out) == contents(tmp_path / "clean")


def test_finished_dataset_is_kept_if_nothing_changed(
    dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = prepare(dataset.recipe(), out)
    before = contents(out)
    with monkeypatch.context() as patch:
        patch.setattr(ShardFile, "add", None)  # nothing may be written
        assert prepare(dataset.recipe(), out) == first
    with pytest.raises(
        ShardError, match=r"differs in recipe\); choose another folder, or .*overwrite"
    ):
        prepare(dataset.recipe(image_size=[24, 24]), out)
    assert contents(out) == before
    dataset.add(6, 20)
    with pytest.raises(ShardError, match="differs in source_checksum"):
        prepare(dataset.recipe(), out)
    manifest = prepare(dataset.recipe(image_size=[24, 24]), out, overwrite=True)
    assert manifest.features["frames.front"].shape == (24, 24, 3)
    ShardReader(out, verify=True)


def test_incomplete_or_damaged_dataset_is_not_kept(dataset: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(dataset.recipe(), out)
    before = contents(out)
    (out / "val-000000.tar").unlink()
    with pytest.raises(ShardError, match="the shards, which are not all there"):
        prepare(dataset.recipe(), out)
    (out / "manifest.json").write_text("{")
    with pytest.raises(ShardError, match="the manifest, which is damaged"):
        prepare(dataset.recipe(), out)
    prepare(dataset.recipe(), out, overwrite=True)
    assert contents(out) == before


@pytest.mark.parametrize("name", ["train-000000.tar", "mean_frame.front.npy", "quality.html"])
def test_a_damaged_dataset_is_made_again(dataset: Any, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    prepare(dataset.recipe(), out)
    before = contents(out)
    damaged = bytearray(before[name])
    damaged[len(damaged) // 2] ^= 4
    (out / name).write_bytes(damaged)
    prepare(dataset.recipe(), out, overwrite=True)
    assert contents(out) == before


def test_source_is_never_written_to(dataset: Any, tmp_path: Path) -> None:
    before = {path: path.stat() for path in dataset.folder.rglob("*")}
    prepare(dataset.recipe(), tmp_path / "out", num_workers=2)
    after = {path: path.stat() for path in dataset.folder.rglob("*")}
    assert {p: (s.st_mtime_ns, s.st_size) for p, s in before.items()} == {
        p: (s.st_mtime_ns, s.st_size) for p, s in after.items()
    }


def test_discrete_actions_and_metadata_from_a_simulator(tmp_path: Path) -> None:
    pytest.importorskip("gym_pusht", reason="gym-pusht is not installed (extra 'pusht')")
    overrides = ["source.num_episodes=4", "source.max_steps=12", "image_size=[16,16]"]
    recipe = load_recipe(RECIPES / "pusht.yaml", overrides)
    manifest = prepare(recipe, tmp_path / "out", num_workers=2)
    assert manifest.num_steps("train") == 2 * 13
    assert list(manifest.features)[-3:] == ["reward", "terminated", "truncated"]
    assert 0.0 <= manifest.extra["train_metadata_mean"]["contact_fraction"] <= 1.0
    assert manifest.provenance["source_packages"]["gym-pusht"]
    reader = ShardReader(tmp_path / "out")
    assert "contact_fraction" in reader.metadata(reader.keys()[0])


def test_discrete_action_feature_counts_its_ids(make_lerobot: Any, tmp_path: Path) -> None:
    lerobot = make_lerobot(fps=10)
    for index in range(3):
        lerobot.add(index, 8, action=np.arange(8) % 5)
    manifest = prepare(lerobot.recipe(), tmp_path / "out")
    assert manifest.features["action"].kind == "discrete"
    assert manifest.features["action"].num_values == 5
    assert manifest.statistics["action"] == {"count": 7, "counts": [2, 2, 1, 1, 1]}


def test_command_line(dataset: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset.video(5).unlink()
    recipe = tmp_path / "my.yaml"
    recipe.write_text(json.dumps(dataset.recipe().to_dict()))  # JSON is YAML
    out = tmp_path / "out"
    arguments = [str(recipe), "--out", str(out), "--workers", "0"]
    assert main([*arguments, "--set", "name=other", "splits.test=0"]) == 0
    printed = capsys.readouterr().out
    for text in (
        "other, 10 Hz",
        "steps/s",
        "train",
        "left out: 1 episode",
        "episode_000005",
        "is missing",
    ):
        assert text in printed
    assert Manifest.load(out).num_episodes("test") == 0
    with pytest.raises(ShardError, match="--overwrite"):
        main(arguments)
    assert main([*arguments, "--overwrite"]) == 0
    with pytest.raises(EpisodeError, match="episode_000005: video .* is missing"):
        main([*arguments, "--strict", "--overwrite"])
    with pytest.raises(RecipeError, match="unknown key 'nome'"):
        main([*arguments, "--set", "nome=x"])
    with pytest.raises(TokenwmError, match="Give --out DIR"):
        main([str(recipe)])
