"""Folders that appear whole, also where several processes write one; and sizes that fit nowhere."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tokenwm.data.episode import Episode
from tokenwm.data.shards.tar import ShardFile
from tokenwm.data.storage.atomic import STALE_SECONDS, make_folder_atomically
from tokenwm.errors import EpisodeError, ShardError

NUM_FILES = 20


def fill(folder: Path, text: str, barrier: threading.Barrier) -> None:
    for _ in range(5):
        with make_folder_atomically(folder) as partial:
            barrier.wait()
            for index in range(NUM_FILES):
                (partial / f"{index}").write_text(text)
            barrier.wait()


def test_two_that_write_one_folder_do_not_disturb_each_other(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    barrier, failed = threading.Barrier(3), []

    def run(text: str) -> None:
        try:
            fill(folder, text, barrier)
        except BaseException as error:
            failed.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(text,)) for text in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    (text,) = {path.read_text() for path in folder.iterdir()}
    assert text in "abc" and len(list(folder.iterdir())) == NUM_FILES
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_kill_left_goes_when_it_is_old(tmp_path: Path) -> None:
    names = ["model.partial", "model.01234567.partial", "model.89abcdef.partial", "other.partial"]
    for name in names:
        (tmp_path / name).mkdir()
    old = time.time() - STALE_SECONDS - 60
    for name in (names[0], names[1], names[3]):
        os.utime(tmp_path / name, (old, old))
    with make_folder_atomically(tmp_path / "model") as partial:
        (partial / "a").write_text("")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"model", "model.89abcdef.partial", "other.partial"}


def test_a_camera_of_more_than_8_gib_is_refused_before_it_is_written(tmp_path: Path) -> None:
    steps = 700_000  # of 64 x 64 pixels
    frames = np.broadcast_to(np.uint8(0), (steps, 64, 64, 3))
    episode = Episode(
        key="long",
        frames={"eye": frames},
        action=np.zeros((steps, 1), np.float32),
        terminated=np.zeros(steps, np.bool_),
        truncated=np.zeros(steps, np.bool_),
        control_rate=10.0,
    )
    with pytest.raises(EpisodeError, match="eye of 700,000 steps takes 8,601,600,000 bytes, at m"):
        episode.check()
    with (
        pytest.raises(ShardError, match="frames.eye takes 8,601,600,000 bytes, at most"),
        ShardFile(tmp_path, "train-000000.tar") as shard,
    ):
        shard.add("long", {"frames.eye": frames}, {})
    assert not list(tmp_path.iterdir())
