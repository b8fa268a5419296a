"""One process at a time in a folder."""

import errno
import fcntl
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.lock_holder import locked_by_another_process, start_lock_holder
from tokenwm.data.storage.folder import open_folder
from tokenwm.data.storage.lock import LOCK_NAME, lock_folder
from tokenwm.errors import ShardError


def test_the_lock_says_who_holds_it_and_goes_with_it(tmp_path: Path) -> None:
    with lock_folder(tmp_path):
        holder = (tmp_path / LOCK_NAME).read_text()
        assert holder == f"process {os.getpid()} on {socket.gethostname()}"
    assert list(tmp_path.iterdir()) == []


def test_another_process_is_named(tmp_path: Path) -> None:
    with locked_by_another_process(tmp_path) as process:
        message = f"{tmp_path} is in use by process {process.pid} on .*; wait .* another folder"
        with pytest.raises(ShardError, match=message), lock_folder(tmp_path):
            pass
        assert str(process.pid) in (tmp_path / LOCK_NAME).read_text()
    with lock_folder(tmp_path):
        pass


def test_threads_of_one_process_keep_each_other_out(tmp_path: Path) -> None:
    with lock_folder(tmp_path):
        link = tmp_path.parent / "link"
        link.symlink_to(tmp_path)
        with pytest.raises(ShardError, match="in use by this process"), lock_folder(link):
            pass
        assert (tmp_path / LOCK_NAME).exists()


def test_a_system_that_denies_instead_of_blocking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(*arguments: Any) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(fcntl, "flock", deny)
    with pytest.raises(ShardError, match="in use"), lock_folder(tmp_path):
        pass
    assert (tmp_path / LOCK_NAME).exists()


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    with locked_by_another_process(tmp_path) as process:
        process.kill()
        process.wait()
        assert (tmp_path / LOCK_NAME).exists()
        with lock_folder(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_holds_nothing_through_its_children(tmp_path: Path) -> None:
    with locked_by_another_process(tmp_path, forks=True) as process:
        process.kill()
        process.wait()
        with lock_folder(tmp_path):
            pass


def test_waiting_for_the_lock(tmp_path: Path) -> None:
    """The file that the waiting process has opened is removed by the one that held it."""
    with lock_folder(tmp_path):
        process = start_lock_holder(tmp_path)
        assert process.stdout is not None
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.append(process.stdout.readline()))
        reader.start()
        reader.join(timeout=2)
        assert lines == []
    reader.join(timeout=30)
    assert lines == ["locked\n"]
    assert str(process.pid) in (tmp_path / LOCK_NAME).read_text()
    process.communicate()
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", fail)
    with lock_folder(tmp_path):
        assert f"{tmp_path} cannot be locked: " in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_url_has_no_lock() -> None:
    folder = open_folder("memory://a-folder-without-a-lock")
    with folder.lock(), folder.lock():
        assert folder.names() == []
