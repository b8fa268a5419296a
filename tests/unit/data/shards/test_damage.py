"""Damage anywhere in a dataset: it is named, skipped where that is asked for, and nothing else."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from tests.unit.data.shards.shard_fixtures import write_dataset
from tokenwm.data import quality_report
from tokenwm.data.loading.datamodule import EpisodeDataModule
from tokenwm.data.shards.manifest import Manifest
from tokenwm.data.shards.reader import ShardReader
from tokenwm.data.shards.verify import find_problems
from tokenwm.errors import CorruptSampleError, ShardError, TokenwmError

LENGTHS = {"train": (9, 12, 8, 10), "val": (8,)}
CHANGES: dict[str, Callable[[bytes, int], bytes]] = {
    "zero": lambda content, place: content[:place] + b"\0" + content[place + 1 :],
    "byte": lambda content, place: content[:place] + b"(" + content[place + 1 :],
    "high": lambda content, place: content[:place] + b"\xff" + content[place + 1 :],
    "open": lambda content, place: content[:place] + b"'''{([" + content[place + 6 :],
    "block": lambda content, place: content[:place] + bytes(512) + content[place + 512 :],
    "cut": lambda content, place: content[:place],
    "inserted": lambda content, place: content[:place] + b"x" + content[place:],
    "twice": lambda content, place: content + content[place:],
}


def places_of(root: Path, shard: str) -> list[int]:
    """Offsets in a shard: in the tar header, the npy header and the body of members."""
    places = [0, 511]
    for episode in Manifest.load(root).episodes:
        if episode.shard == shard:
            for offset in [episode.metadata_offset, *episode.offsets.values()]:
                places += [offset + more for more in (-512, -400, -380, -356, -255)]
                places += [offset + more for more in (0, 6, 8, 9, 10, 12, 22, 40, 70, 127, 128)]
    return sorted(set(places))


def touch_all(reader: ShardReader) -> set[str]:
    """Read everything; the keys of episodes that are damaged."""
    damaged = set()
    for key in [*reader.keys("train"), *reader.keys("val")]:
        try:
            reader.arrays(key)
            reader.metadata(key)
        except CorruptSampleError:
            damaged.add(key)
    return damaged


@pytest.mark.parametrize("change", CHANGES)
def test_any_damage_of_a_shard_is_named_and_can_be_skipped(change: str, tmp_path: Path) -> None:
    write_dataset(tmp_path, lengths=LENGTHS)
    path = tmp_path / "train-000000.tar"
    whole = path.read_bytes()
    places = places_of(tmp_path, path.name)
    for place in places[:: len(places) // 24]:
        damaged = CHANGES[change](whole, place)
        if damaged == whole:
            continue
        path.write_bytes(damaged)
        problems = find_problems(tmp_path, num_workers=0)
        assert problems and {problem.file for problem in problems} == {path.name}, place
        keys = touch_all(ShardReader(tmp_path, check_episodes=True))
        assert not any(key.startswith("val") for key in keys)
        told = {problem.key for problem in problems}
        assert keys <= told or len(damaged) != len(whole), (place, keys, told)


def test_verify_names_every_damaged_episode(tmp_path: Path) -> None:
    """Of a member whose npy header is no Python any more, too; not only the first one."""
    write_dataset(tmp_path, lengths=LENGTHS)
    content = {}
    for episode in Manifest.load(tmp_path).episodes:
        path = tmp_path / episode.shard
        data = content.setdefault(path, bytearray(path.read_bytes()))
        place = episode.offsets["action"] + 10
        data[place : place + 30] = b"{'descr': (".ljust(30, b"(")
    for path, data in content.items():
        path.write_bytes(data)
    keys = {problem.key for problem in find_problems(tmp_path, num_workers=0)}
    assert keys >= set(ShardReader(tmp_path).keys())


@pytest.mark.parametrize("change", ["open", "cut", "twice"])
def test_training_skips_what_is_damaged(change: str, tmp_path: Path) -> None:
    write_dataset(tmp_path, lengths=LENGTHS)
    path = tmp_path / "train-000000.tar"
    places = sorted(
        place
        for episode in Manifest.load(tmp_path).episodes
        if episode.shard == path.name
        for place in episode.offsets.values()
    )
    path.write_bytes(CHANGES[change](path.read_bytes(), places[-1] + 10))
    data = EpisodeDataModule(
        str(tmp_path), num_steps=4, batch_size=6, seed=5, on_corrupt="skip", verify=False
    )
    batches = list(islice(data.train_dataloader(), 6))
    skipped = {sample.key for batch in batches for sample in batch.skipped}
    assert len(skipped) == (change != "twice")
    assert not skipped & {key for batch in batches for key in batch.keys}


@pytest.mark.parametrize("name", ["manifest.json", "quality.json", "tokenizer/config.yaml"])
def test_any_damage_beside_the_shards_is_a_message(name: str, tmp_path: Path) -> None:
    write_dataset(tmp_path, lengths=LENGTHS)
    path, folder = tmp_path / name, tmp_path
    if name != "manifest.json":
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"schema_version": 1, "verdict": "fine", "list": [1, 2, 3]}')
        manifest = Manifest.load(tmp_path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        replace(manifest, files={name: digest}).save(tmp_path)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    hostile = [b"", b"[" * 100_000, b"{" * 50_000, b"\xff\xfe", b"null", b"[]", b'"x"', b"1e999"]
    for change in CHANGES.values():
        for place in generator.integers(0, len(whole), 4).tolist():
            hostile.append(change(whole, place))
    for content in hostile:
        path.write_bytes(content)
        problems = find_problems(folder, num_workers=0)
        assert problems or content == whole
        try:
            ShardReader(folder)
            if name == "quality.json":
                assert isinstance(quality_report.read(folder), dict)
        except TokenwmError as error:
            assert isinstance(error, ShardError)
