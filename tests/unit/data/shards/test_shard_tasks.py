"""Records and notes of an unfinished run: damaged ones are told from whole ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenwm.data.shards.tasks import UNFINISHED_NAME, Record, begin, note, record_name
from tokenwm.data.storage.folder import open_folder
from tokenwm.errors import ShardError

SHARD = "train-000000.tar"


def flip(content: bytes, bit: int) -> bytes:
    flipped = bytearray(content)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


def test_every_flipped_bit_of_a_record_is_found(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    values: dict[str, Any] = {"excluded": {"key": "reason"}}
    arrays = {"action:count": np.arange(3), "state:rows": np.ones((2, 2))}
    Record(plan="p" * 64, shard=None, episodes=[], values=values, arrays=arrays).save(folder, SHARD)
    read = Record.load(folder, SHARD)
    assert read is not None and read.values == values
    np.testing.assert_equal(read.arrays, arrays)
    path = tmp_path / record_name(SHARD)
    content = path.read_bytes()
    for bit in range(0, 8 * len(content), 5):  # 5 and 8 have no common factor: all kinds of bits
        path.write_bytes(flip(content, bit))
        assert Record.load(folder, SHARD) is None
    path.write_bytes(b"")
    assert Record.load(folder, SHARD) is None


def test_damaged_notes_are_not_believed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, plan = open_folder(tmp_path), {"recipe": {"name": "x"}}
    notes = {"layout": {"frames.front": [[8, 8, 3], "uint8"]}}
    assert begin(folder, plan) == {}
    note(folder, plan, notes)
    assert begin(folder, plan) == notes
    path = tmp_path / UNFINISHED_NAME
    content = path.read_bytes()
    damaged = [content.replace(b"front", b"frond"), content.replace(b"notes", b"motes"), b"[]", b""]
    for part in damaged:
        path.write_bytes(part)
        assert begin(folder, plan) == {}
        assert "damaged" in caplog.text
        caplog.clear()


def test_shards_of_somebody_else_are_left_alone(tmp_path: Path) -> None:
    folder, plan = open_folder(tmp_path), {"recipe": {"name": "x"}}
    for name in ("train-000000.tar", "train-000001.tar"):
        (tmp_path / name).write_bytes(b"somebody's webdataset")
    with pytest.raises(ShardError, match=r"train-000000\.tar and 1 more .* somebody else's"):
        begin(folder, plan)
    assert folder.names() == ["train-000000.tar", "train-000001.tar"]
    begin(folder, plan, overwrite=True)
    assert folder.names() == [UNFINISHED_NAME]
    (tmp_path / "train-000000.tar").write_bytes(b"ours, of a run that was stopped")
    begin(folder, {"recipe": {"name": "y"}})
    assert folder.names() == [UNFINISHED_NAME]
