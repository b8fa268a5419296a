import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.data.shards.shard_fixtures import (
    update_manifest,
    write_dataset,
    write_older_manifest,
)
from tokenwm.data.shards.manifest import Excluded, Manifest
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import CorruptSampleError, ShardError


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    manifest = replace(
        Manifest.load(tmp_path),
        statistics={"action": {"mean": np.zeros(2).tolist(), "count": 3}},
        excluded=[Excluded(key="bad", reason="NaN in action at step 3")],
        provenance={"source": "fixture", "recipe": {"image_size": [8, 8], "reward": None}},
        extra={"note": "ümlaut"},
    )
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest
    assert manifest.cameras == ("top", "wrist")
    assert manifest.num_episodes("train") == 4
    assert manifest.num_steps("train") == 7 + 12 + 3 + 9
    assert manifest.num_steps("val") == 14


def test_numpy_values_become_plain_ones(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    manifest = Manifest.load(tmp_path)
    numbers: dict[str, Any] = {"mean": np.arange(2, dtype=np.float32), "count": np.int64(3)}
    replace(manifest, statistics={"action": numbers}).save(tmp_path)
    assert Manifest.load(tmp_path).statistics == {"action": {"mean": [0.0, 1.0], "count": 3}}


def test_nan_is_refused_and_the_old_manifest_stays(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    manifest = Manifest.load(tmp_path)
    with pytest.raises(ShardError, match="JSON"):
        replace(manifest, statistics={"action": {"mean": float("nan")}}).save(tmp_path)
    assert Manifest.load(tmp_path) == manifest


def test_an_inconsistent_manifest_is_not_saved(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    manifest = Manifest.load(tmp_path)
    with pytest.raises(ShardError, match="add up to"):
        replace(manifest, episodes=manifest.episodes[1:]).save(tmp_path)
    assert Manifest.load(tmp_path) == manifest


def test_a_folder_without_manifest_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"no manifest\.json.*tokenwm prepare"):
        Manifest.load(tmp_path)


Damage = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: m.update(schema_version=4), r"schema_version is 4, this tokenwm reads 1"),
        (lambda m: m.pop("schema_version"), r"schema_version is None"),
        (lambda m: m.update(schema_version=True), r"schema_version is True"),
        (lambda m: m.update(statistcs={}), r"unknown key 'statistcs'.*statistics"),
        (lambda m: m["shards"][0].update(sha=""), r"unknown key 'shards\[0\]\.sha'.*sha256"),
        (lambda m: m.pop("features"), r"'features' is missing"),
        (lambda m: m.update(kind="pixels"), r"kind is 'pixels' \(str\); expected one of frames, t"),
        (lambda m: m.update(control_rate=0), r"control_rate is 0"),
        (lambda m: m.update(control_rate="10"), r"control_rate is '10' \(str\); expected a number"),
        (lambda m: m.update(shards={}), r"shards is '\{\}' \(dict\); expected a list"),
        (lambda m: m["episodes"][0].update(num_steps=-1), r"train_0 has -1 steps"),
        (lambda m: m["episodes"][0].update(num_steps=True), r"num_steps is 'True'"),
        (lambda m: m["episodes"][0].update(num_steps=0), r"train_0 has 0 steps"),
        (lambda m: m["episodes"][0].update(num_steps=8), r"add up to"),
        (lambda m: m["episodes"][0].update(key="../up"), r"key '../up' is not allowed"),
        (lambda m: m["episodes"][1].update(key="train_0"), r"train_0 is listed twice"),
        (lambda m: m["episodes"][0].update(shard="train-000009.tar"), r"unlisted shard"),
        (lambda m: m["episodes"][0]["offsets"].pop("state"), r"train_0: fields differ"),
        (lambda m: m["episodes"][0]["offsets"].update(state=-1), r"starts at offset -1"),
        (lambda m: m["features"]["state"].update(num_values=0), r"state has 0 values"),
        (lambda m: m["shards"][0].update(path="../train-000000.tar"), r"shard path '\.\./train"),
        (lambda m: m["shards"][0].update(path="/etc/passwd"), r"shard path '/etc/passwd'"),
        (lambda m: m["shards"][0].update(split="val"), r"has split 'val'"),
        (lambda m: m["shards"].append(m["shards"][0]), r"listed twice"),
        (lambda m: m.update(files={"../x": "0"}), r"file path '\.\./x' is not allowed"),
        (lambda m: m.update(files={"a/b/c": "0"}), r"file path 'a/b/c' is not allowed"),
        (lambda m: m.update(files={"/etc/passwd": "0"}), r"file path '/etc/passwd'"),
        (lambda m: m["features"]["state"].update(dtype="object"), r"dtype 'object', allowed are"),
        (lambda m: m["features"]["state"].update(shape=[0]), r"state has shape \(0,\)"),
        (lambda m: m["features"].update({"a/b": m["features"]["state"]}), r"'a/b' is not allowed"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Damage, message: str) -> None:
    write_dataset(tmp_path)
    update_manifest(tmp_path, damage)
    with pytest.raises(ShardError, match=message):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "\udcff"])
def test_what_is_not_a_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ShardError, match=r"manifest\.json"):
        Manifest.load(tmp_path)


def test_a_changed_manifest_is_refused(tmp_path: Path) -> None:
    """Also where it still makes sense: one flipped bit anywhere."""
    write_dataset(tmp_path)
    path = tmp_path / "manifest.json"
    content = path.read_bytes()
    for place in [2, 40, len(content) // 2, len(content) - 30]:
        for bit in (1, 4):
            changed = bytearray(content)
            changed[place] ^= bit
            path.write_bytes(changed)
            with pytest.raises(ShardError, match=r"manifest\.json"):
                Manifest.load(tmp_path)
    path.write_bytes(content.replace(b"10.0", b"20.0", 1))
    with pytest.raises(ShardError, match="damaged or was changed after it was written"):
        Manifest.load(tmp_path)
    path.write_text(json.dumps(json.loads(content)))
    with pytest.raises(ShardError, match="damaged or was changed after it was written"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("version", [1, 2])
def test_older_schema_versions_are_still_read(tmp_path: Path, version: int) -> None:
    write_dataset(tmp_path)
    newest = Manifest.load(tmp_path)
    write_older_manifest(tmp_path, version)
    manifest = Manifest.load(tmp_path)
    assert manifest.schema_version == version
    assert {episode.synthetic for episode in manifest.episodes} == {None}
    has_checksums = [episode.crc32 is not None for episode in manifest.episodes]
    assert has_checksums == [version > 1] * len(has_checksums)
    assert manifest.files == {}
    ShardReader(tmp_path, verify=True)
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path).schema_version == newest.schema_version


def test_a_manifest_in_parts_is_that_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(tmp_path)
    expected = Manifest.load(tmp_path)
    for size in (1, 300, 10_000):
        monkeypatch.setattr("tokenwm.data.shards.manifest.PART_BYTES", size)
        found = Manifest.load(tmp_path)
        assert found == expected
        assert list(found.episodes) == [found.episodes[n] for n in range(len(found.episodes))]
    # Other layouts of the same, as version 1 may have, are read in one.
    write_older_manifest(tmp_path, 1)
    ours = Manifest.load(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes())))
    assert Manifest.load(tmp_path) == ours
    path.write_text(json.dumps(json.loads(path.read_bytes()), indent=2))
    assert Manifest.load(tmp_path) == ours


def test_the_table_of_episodes(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    read = Manifest.load(tmp_path)
    rows = list(read.episodes)
    given = replace(read, episodes=rows)
    for table in (read.table, given.table, pickle.loads(pickle.dumps(read.table))):
        assert list(table) == rows == table[:] and table[-1] == rows[-1]
        assert table.of_split("val") == [row.key for row in rows if row.split == "val"]
        for shard in read.shards:
            assert table.of_shard(shard.path) == [row for row in rows if row.shard == shard.path]
        keys = [row.key for row in rows[::-2]]
        assert table.lengths(keys).tolist() == [row.num_steps for row in rows[::-2]]
        assert table.shards(keys) == [row.shard for row in rows[::-2]]
    assert replace(read, shards=[], episodes=[]).table == []
    with pytest.raises(IndexError):
        read.table[len(rows)]


def test_few_episodes_are_kept_as_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenwm.data.shards.reader.MAX_KNOWN", 2)
    write_dataset(tmp_path)
    reader = ShardReader(tmp_path)
    before = [reader.arrays(key)["action"].tolist() for key in reader.keys()]  # noqa: SIM118
    assert [reader.arrays(key)["action"].tolist() for key in reader.keys()] == before  # noqa: SIM118
    assert len(reader._known) <= 2 < len(before)


def test_a_list_of_episodes_within_another_value_is_not_taken_for_theirs(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    manifest = replace(Manifest.load(tmp_path), extra={"x": {"episodes": [{"key": "a"}]}})
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest


def test_the_order_of_fields_and_a_mark_of_none(tmp_path: Path) -> None:
    """Rows may name fields in any order; a checksum below zero is no missing one."""
    write_dataset(tmp_path)
    expected = Manifest.load(tmp_path)

    def change(values: dict[str, Any]) -> None:
        row = values["episodes"][0]
        row["offsets"] = dict(reversed(row["offsets"].items()))
        values["episodes"][1]["crc32"] = -1

    update_manifest(tmp_path, change)
    found = Manifest.load(tmp_path)
    assert found.episodes[0] == expected.episodes[0]
    assert found.episodes[1].crc32 is not None
    with pytest.raises(CorruptSampleError, match="CRC-32"):
        ShardReader(tmp_path).check_episode(found.episodes[1].key)
