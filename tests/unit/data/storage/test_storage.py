"""Datasets behind URLs: ``memory://``, and an S3 server that runs on this machine."""

import uuid
from pathlib import Path

import pytest

from tests.unit.data.making.prepare_child import prepare_small
from tokenwm.data.shards.manifest import Manifest
from tokenwm.data.storage.folder import Folder, open_folder, sha256_of, write_bytes
from tokenwm.errors import ShardError


@pytest.fixture(params=["local", "file", "memory", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder of each kind that does not exist yet."""
    if request.param == "local":
        return str(tmp_path / "data")
    if request.param == "file":
        return f"file://{tmp_path}/data"
    if request.param == "s3":
        request.getfixturevalue("s3")
        return f"s3://bucket/{uuid.uuid4().hex}"
    return f"memory://{uuid.uuid4().hex}"


def contents(folder: Folder) -> dict[str, bytes]:
    return {name: folder.read(name) for name in folder.names()}


def test_files_of_a_folder(location: str) -> None:
    folder = open_folder(location)
    assert folder.names() == []
    assert folder.size("a") is None
    with pytest.raises(FileNotFoundError):
        folder.read("a")
    write_bytes(folder, "b", b"old")
    write_bytes(folder, "b", b"hello")
    write_bytes(folder, ".a", b"")
    assert folder.names() == [".a", "b"]
    assert (folder.size("b"), folder.read("b")) == (5, b"hello")
    assert sha256_of(folder, "b").startswith("2cf24dba5fb0a30e")
    folder.remove("b")
    folder.remove("b")
    assert folder.names() == [".a"]


def test_a_file_that_fails_does_not_appear(location: str) -> None:
    folder = open_folder(location)
    write_bytes(folder, "a", b"old")
    for name in ("a", "b"):
        with pytest.raises(KeyError), folder.write(name) as file:
            file.write(b"half")
            raise KeyError
    assert contents(folder) == {"a": b"old"}


def test_a_dataset_anywhere_is_the_same(location: str, tmp_path: Path) -> None:
    """Also after an interruption; nothing but the place differs."""

    def interrupt(now: object) -> None:
        if getattr(now, "done", 0) > 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_small(location, progress=interrupt)
    manifest = prepare_small(location)
    prepare_small(tmp_path / "expected")
    assert contents(open_folder(location)) == contents(open_folder(tmp_path / "expected"))
    assert Manifest.load(location) == manifest
    assert prepare_small(location) == manifest  # finished, so nothing is done


@pytest.mark.parametrize("url", ["nonsense://place", "s4://bucket/data"])
def test_a_url_of_no_known_storage(url: str) -> None:
    with pytest.raises(ShardError, match=rf"{url} cannot be opened.*this kind of storage"):
        open_folder(url)


def test_whatever_a_storage_raises_on_opening_is_an_os_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no credentials")  # botocore's own is no OSError

    monkeypatch.setattr(MemoryFileSystem, "cat_file", fail)
    with pytest.raises(ShardError, match="manifest.json cannot be read: RuntimeError: no cred"):
        Manifest.load("memory://somewhere")
