"""Everything that can be wrong with a dataset is found, named, and does not hide the rest."""

import hashlib
import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.data.shards.shard_fixtures import (
    SIZE,
    update_manifest,
    write_dataset,
    write_older_manifest,
)
from tokenwm.cli.verbs.verify_shards import main
from tokenwm.data.shards.manifest import Manifest
from tokenwm.data.shards.verify import Problem, find_problems

SHARD = "train-000000.tar"
FIRST = "train_0"
MIDDLE = "train_1"
LAST = "train_3"
PICTURE = "mean_frame.top.npy"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Four train episodes in one shard, with a mean picture, and one held-out episode."""
    folder = tmp_path / "data"
    lengths = {"train": (7, 12, 3, 9), "val": (8,)}
    write_dataset(folder, lengths=lengths, max_bytes=2**20)
    buffer = io.BytesIO()
    np.save(buffer, np.full((SIZE, SIZE, 3), 100, np.float32))
    (folder / PICTURE).write_bytes(buffer.getvalue())
    entry = {"file": PICTURE, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
    update_manifest(folder, lambda m: m.update(statistics={"frames.top": {"mean_frame": entry}}))
    assert find_problems(folder) == []
    return folder


def seal(folder: Path) -> None:
    """Make size and checksum in the manifest agree with a changed shard, as a stranger could."""
    content = (folder / SHARD).read_bytes()

    def change(values: dict[str, Any]) -> None:
        digest = hashlib.sha256(content).hexdigest()
        values["shards"][0].update(sha256=digest, num_bytes=len(content))

    update_manifest(folder, change)


def member(folder: Path, name: str) -> tarfile.TarInfo:
    with tarfile.open(folder / SHARD) as tar:
        return tar.getmember(name)


def overwrite(folder: Path, place: int, data: bytes, file: str = SHARD) -> None:
    with open(folder / file, "r+b") as opened:
        opened.seek(place)
        opened.write(data)


def flip(folder: Path, file: str, place: int) -> None:
    content = (folder / file).read_bytes()
    overwrite(folder, place, bytes([content[place] ^ 1]), file)


def rewrite_header(folder: Path, of: str, **changes: Any) -> None:
    """Change the tar header of a member, with a header checksum that is right again."""
    info = member(folder, of)
    start = info.offset
    for key, value in changes.items():
        setattr(info, key, value)
    overwrite(folder, start, info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")[:512])


def found(folder: Path) -> list[tuple[str, str, str]]:
    return [(item.file, item.key, item.message) for item in find_problems(folder)]


# Damage by accident


def test_cut_at_a_member_boundary(dataset: Path) -> None:
    """webdataset takes this for the end of the shard, and says nothing."""
    cut = member(dataset, f"{MIDDLE}.state.npy").offset
    os.truncate(dataset / SHARD, cut)
    problems = found(dataset)
    assert problems[0][:2] == (SHARD, "") and f"has {cut:,} bytes" in problems[0][2]
    assert (SHARD, "", f"ends at byte {cut:,} without the end mark of a tar: it was cut off") in (
        problems
    )
    missing = {key: message for _, key, message in problems if key}
    assert list(missing) == [MIDDLE, "train_2", LAST]
    assert missing[MIDDLE].startswith(f"missing: {MIDDLE}.state.npy, {MIDDLE}.action.npy")
    assert FIRST not in missing


def test_cut_at_an_episode_boundary_with_an_end_mark(dataset: Path) -> None:
    """Looks like a whole tar that has fewer episodes."""
    cut = member(dataset, f"{LAST}.json").offset
    content = (dataset / SHARD).read_bytes()[:cut] + bytes(1024)
    (dataset / SHARD).write_bytes(content)
    seal(dataset)
    ((file, key, message),) = [item for item in found(dataset) if item[1]]
    assert (file, key) == (SHARD, LAST)
    assert f"missing: {LAST}.json" in message


@pytest.mark.parametrize("garbage", [os.urandom(2048), bytes(2048)], ids=["random", "zeros"])
def test_garbage_in_the_middle(dataset: Path, garbage: bytes) -> None:
    """What is behind it is still checked, and found to be whole."""
    start = member(dataset, f"{MIDDLE}.state.npy").offset
    overwrite(dataset, start, garbage)
    problems = found(dataset)
    assert (SHARD, "", f"garbage at byte {start:,}, where a member should begin") in problems
    assert {key for _, key, _ in problems if key} == {MIDDLE}
    assert any("missing" in text and f"{MIDDLE}.state.npy" in text for _, _, text in problems)


@pytest.mark.parametrize(
    "name", [f"{FIRST}.json", f"{MIDDLE}.frames.top.npy", f"{LAST}.terminated.npy"]
)
def test_one_flipped_bit_in_a_shard_names_the_episode(dataset: Path, name: str) -> None:
    info = member(dataset, name)
    flip(dataset, SHARD, info.offset_data + info.size - 1)
    problems = found(dataset)
    key = name.partition(".")[0]
    assert {item for _, item, _ in problems} == {key, ""}
    assert (SHARD, "", "is damaged: its SHA-256 is not the manifest's") in problems
    assert (SHARD, key, "is damaged: its CRC-32 is not the manifest's") in problems


def test_one_flipped_bit_in_padding_and_behind_the_end(dataset: Path) -> None:
    info = member(dataset, f"{FIRST}.json")
    flip(dataset, SHARD, info.offset_data + 511)
    flip(dataset, SHARD, (dataset / SHARD).stat().st_size - 1)
    assert {message for _, _, message in found(dataset)} >= {
        "is damaged: its SHA-256 is not the manifest's",
        "is damaged: its CRC-32 is not the manifest's",
    }
    assert any("data behind its end mark" in message for _, _, message in found(dataset))


@pytest.mark.parametrize("place", [8, 70, 500, -1])
def test_one_flipped_bit_in_a_mean_picture(dataset: Path, place: int) -> None:
    flip(dataset, PICTURE, place % (dataset / PICTURE).stat().st_size)
    assert [file for file, _, _ in found(dataset)] == [PICTURE]


def test_one_flipped_bit_in_the_manifest(dataset: Path) -> None:
    content = (dataset / "manifest.json").read_bytes()
    for place in range(0, len(content), len(content) // 50):
        flip(dataset, "manifest.json", place)
        assert [file for file, _, _ in found(dataset)] == ["manifest.json"]
        (dataset / "manifest.json").write_bytes(content)


@pytest.mark.parametrize("path", ["quality.json", "quality.html", "tokenizer/config.yaml"])
@pytest.mark.parametrize("remote", [False, True])
def test_files_beside_the_shards(dataset: Path, path: str, remote: bool) -> None:
    """A report, or a tokenizer in a folder of its own; behind a URL, too."""
    (dataset / path).parent.mkdir(exist_ok=True)
    (dataset / path).write_bytes(b"what was written")
    digest = hashlib.sha256(b"what was written").hexdigest()
    update_manifest(dataset, lambda m: m.update(files={path: digest}))
    location = f"local://{dataset}" if remote else str(dataset)
    if remote:
        pytest.importorskip("fsspec", reason="fsspec is not installed (extra 'remote')")
    assert find_problems(location) == []
    flip(dataset, path, 3)
    damaged = Problem(file=path, message="is damaged: its SHA-256 is not the manifest's")
    assert find_problems(location) == [damaged]
    (dataset / path).unlink()
    assert find_problems(location) == [Problem(file=path, message="is missing")]
    write_older_manifest(dataset, 2)  # knows of no such file
    assert find_problems(location) == []


def test_missing_and_additional_files(dataset: Path) -> None:
    (dataset / "val-000000.tar").unlink()
    (dataset / PICTURE).unlink()
    for name in ("train-000009.tar", ".val-000000.tar.0a1b2c3d.partial", "evil.pkl"):
        (dataset / name).write_bytes(b"x")
    (dataset / "quality.json").write_text("{}")
    (dataset / "tokenizer").mkdir()
    assert found(dataset) == [
        (".val-000000.tar.0a1b2c3d.partial", "", "is not in manifest.json; remove it"),
        ("evil.pkl", "", "is not in manifest.json; remove it"),
        ("train-000009.tar", "", "is not in manifest.json; remove it"),
        (PICTURE, "", "is missing"),
        ("val-000000.tar", "", "is missing"),
    ]


# Strangers who make the checksums agree


class Bomb:
    """Fails the test if anything ever unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was loaded",)


NAME = f"{MIDDLE}.state.npy"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": f"{MIDDLE}.state.pkl"}, "only npy, json are allowed, not 'pkl'"),
        ({"name": f"../{NAME}"}, "names with folders"),
        ({"name": f"/etc/{NAME}"}, "names with folders"),
        ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "links and folders are not allowed"),
        ({"type": tarfile.LNKTYPE, "linkname": f"{FIRST}.json"}, "links and folders are not"),
        ({"type": tarfile.DIRTYPE}, "links and folders are not allowed"),
        ({"type": tarfile.GNUTYPE_SPARSE}, "not a regular file"),
        ({"type": tarfile.XHDTYPE}, "not a regular file"),
        ({"type": tarfile.FIFOTYPE}, "links and folders are not allowed"),
        ({"size": 7 * 2**30}, "declares 7,516,192,768 bytes where"),
        ({"name": f"{FIRST}.state.npy"}, f"{FIRST}.state.npy is there twice"),
        ({"name": "other.state.npy"}, "other.state.npy is not in the manifest"),
    ],
)
def test_hostile_headers(dataset: Path, changes: dict[str, Any], message: str) -> None:
    rewrite_header(dataset, NAME, **changes)
    seal(dataset)
    problems = found(dataset)
    assert any(message in text for _, _, text in problems), problems
    assert MIDDLE in {key for _, key, _ in problems}
    assert LAST not in {key for _, key, _ in problems}


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def header_of(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(np.array([Bomb()] * 12, dtype=object)), "the array holds pickled objects"),
        (pickle.dumps(Bomb()), "npy header is damaged"),
        (header_of((10**15, 2)), r"float32(1000000000000000, 2) in the shard"),
        (header_of((12, 2)), "bytes do not hold float32(12, 2)"),
        (npy(np.zeros((12, 3), np.float32)), "in the shard"),
    ],
    ids=["objects", "pickle", "absurd", "short", "wide"],
)
def test_hostile_arrays(dataset: Path, data: bytes, message: str) -> None:
    """The member keeps its place; its content, and its declared size, are another one's."""
    info = member(dataset, NAME)
    data = data[: info.size]
    rewrite_header(dataset, NAME, size=len(data))
    overwrite(dataset, info.offset_data, data + bytes(-len(data) % 512))
    seal(dataset)
    problems = found(dataset)
    assert any(key == MIDDLE and message in text for _, key, text in problems), problems


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"{", "metadata is damaged"), (b"[]", "not a JSON object"), (b"[" * 400, "damaged")],
)
def test_hostile_metadata(dataset: Path, data: bytes, message: str) -> None:
    info = member(dataset, f"{LAST}.json")
    rewrite_header(dataset, f"{LAST}.json", size=len(data))
    overwrite(dataset, info.offset_data, data + bytes(-len(data) % 512))
    seal(dataset)
    assert any(key == LAST and message in text for _, key, text in found(dataset))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["episodes"][1]["offsets"].update(state=10**15), "in the manifest at 1,000"),
        (lambda m: m["episodes"][1].update(metadata_offset=0), "in the manifest at 0"),
        (lambda m: m["features"]["state"].update(shape=[10**9]), "in the manifest"),
        (lambda m: m["shards"][0].update(num_bytes=1), "the manifest says 1"),
        (lambda m: m["statistics"]["frames.top"]["mean_frame"].update(file="../x"), "plain file"),
        (lambda m: m["features"]["frames.top"].update(shape=[10**6, 10**6, 3]), "mean picture"),
    ],
)
def test_hostile_manifests(
    dataset: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    update_manifest(dataset, change)
    assert any(message in text for _, _, text in found(dataset)), found(dataset)


# The command


def test_the_command_shows_all_problems(
    dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main([str(dataset)]) == 0
    printed = capsys.readouterr().out
    assert "2 shards of frames, 5 episodes, 39 steps" in printed
    assert "every byte is as the manifest says" in printed
    flip(dataset, PICTURE, 300)
    flip(dataset, SHARD, member(dataset, f"{MIDDLE}.frames.top.npy").offset_data + 300)
    (dataset / "[red]x\x1b[2J").write_bytes(b"")
    assert main([str(dataset), "--workers", "2"]) == 1
    printed = capsys.readouterr().out
    for text in (PICTURE, SHARD, MIDDLE, "CRC-32", "SHA-256", "[red]x\ufffd[2J", "4 problem(s)"):
        assert text in printed
    assert main([str(dataset / "nowhere")]) == 1
    assert "not a finished dataset" in capsys.readouterr().out


def test_the_first_schema_version_can_be_verified(dataset: Path) -> None:
    write_older_manifest(dataset, 1)
    assert Manifest.load(dataset).schema_version == 1
    assert find_problems(dataset) == []
    flip(dataset, SHARD, 5000)
    assert find_problems(dataset) == [
        Problem(file=SHARD, message="is damaged: its SHA-256 is not the manifest's")
    ]
