"""Small datasets of every format that is read, of which any episode may be odd.

An episode is a dictionary of arrays; each writer stores what it is given, however odd, and raises
if its format cannot hold it.
"""

import functools
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
from PIL import Image

from tests.unit.data.conftest import write_video
from tokenwm.data.readers.rlds.tfrecord import masked_crc

Rows = dict[str, Any]
SIZE = 16
NUM_ROWS = 6
NOBODY = "0" * 22


def make_rows(seed: int, num_rows: int = NUM_ROWS) -> Rows:
    """A plain episode: action, state, reward, end, pictures."""
    rng = np.random.default_rng(seed)
    return {
        "action": rng.normal(size=(num_rows, 2)).astype(np.float32),
        "state": rng.normal(size=(num_rows, 3)).astype(np.float32),
        "reward": rng.normal(size=num_rows).astype(np.float32),
        "done": np.arange(num_rows) == num_rows - 2,
        "image": rng.integers(0, 256, (num_rows, SIZE, SIZE, 3), dtype=np.uint8),
    }


def _store(group: Any, name: str, array: Any) -> None:
    array = np.asarray(array)
    if array.dtype.kind == "U":
        array = array.astype("S")
    group.create_dataset(name, data=array)


def write_robomimic(folder: Path, episodes: Sequence[Rows], names: Sequence[str] = ()) -> Path:
    path = folder / "demo.hdf5"
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps({"env_kwargs": {}})
        for index, rows in enumerate(episodes):
            group = file.create_group(f"data/{names[index] if names else f'demo_{index}'}")
            for name, stored in (
                ("action", "actions"),
                ("reward", "rewards"),
                ("done", "dones"),
                ("state", "obs/state"),
                ("image", "obs/image"),
            ):
                if name in rows:
                    _store(group, stored, rows[name])
    return path


def write_minari(folder: Path, episodes: Sequence[Rows], names: Sequence[str] = ()) -> Path:
    (folder / "data").mkdir()
    with h5py.File(folder / "data" / "main_data.hdf5", "w") as file:
        for index, rows in enumerate(episodes):
            group = file.create_group(f"episode_{index}")
            for name, stored, per_action in (
                ("action", "actions", True),
                ("reward", "rewards", True),
                ("done", "terminations", True),
                ("done", "truncations", True),
                ("state", "observations/state", False),
                ("image", "observations/image", False),
            ):
                if name in rows:
                    array = np.asarray(rows[name])
                    _store(group, stored, array[:-1] if per_action and array.ndim else array)
    return folder


def _npz_rows(rows: Rows) -> Rows:
    names = {"action": "action", "state": "vector", "reward": "reward", "image": "image"}
    arrays = {stored: rows[name] for name, stored in names.items() if name in rows}
    shape = np.shape(rows.get("action", ()))
    num_rows = shape[0] if shape else 1
    arrays["is_first"] = rows.get("is_first", np.arange(num_rows) == 0)
    arrays["is_last"] = np.arange(num_rows) == num_rows - 1
    arrays["is_terminal"] = rows.get("done", np.zeros(num_rows, bool))
    return arrays


def write_dreamer(folder: Path, episodes: Sequence[Rows], names: Sequence[str] = ()) -> Path:
    """DreamerV3's chunks, one for each episode."""
    uuids = [f"u{index}".ljust(22, "x") for index in range(len(episodes))]
    for index, rows in enumerate(episodes):
        arrays = _npz_rows(rows)
        following = uuids[index + 1] if index + 1 < len(episodes) else NOBODY
        length = len(arrays["is_last"])
        np.savez_compressed(folder / f"T{index:03d}-{uuids[index]}-{following}-{length}", **arrays)
    return folder


def write_npz(folder: Path, episodes: Sequence[Rows], names: Sequence[str] = ()) -> Path:
    """Dreamer, one file per episode, the action before its row's observation."""
    for index, rows in enumerate(episodes):
        np.savez_compressed(folder / f"{names[index] if names else f'e{index}'}", **_npz_rows(rows))
    return folder


def _video(path: Path, rows: Rows) -> None:
    images = rows["image"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3:] != (3,):
        raise ValueError("a video cannot hold that")
    path.write_bytes(_encoded_video(images.tobytes(), images.shape))


@functools.cache
def _encoded_video(content: bytes, shape: tuple[int, ...]) -> bytes:
    images = np.frombuffer(content, np.uint8).reshape(shape)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mp4"
        write_video(path, shape[0], 10, images=images, codec_options={"preset": "ultrafast"})
        return path.read_bytes()


def _flat(rows: Rows, names: Sequence[str]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name in names:
        array = np.asarray(rows[name]) if name in rows else None
        if array is None:
            continue
        if array.ndim > 2 or array.ndim == 0:
            raise ValueError("a table of plain columns cannot hold that")
        columns = [array] if array.ndim == 1 else list(array.T)
        flat |= {name if array.ndim == 1 else f"{name}_{i}": c for i, c in enumerate(columns)}
    return flat


def write_videos(
    folder: Path, episodes: Sequence[Rows], names: Sequence[str] = (), kind: str = "csv"
) -> Path:
    for index, rows in enumerate(episodes):
        name = names[index] if names else f"take_{index}"
        _video(folder / f"{name}.mp4", rows)
        if kind == "npz":
            tables = {n: rows[n] for n in ("action", "state", "reward", "done") if n in rows}
            np.savez(folder / f"{name}.npz", **tables)
            continue
        table = pyarrow.table(_flat(rows, ("action", "state", "reward", "done")))
        if kind == "csv":
            pyarrow.csv.write_csv(table, folder / f"{name}.csv")
        else:
            pyarrow.parquet.write_table(table, folder / f"{name}.parquet")
    return folder


def write_videos_npz(folder: Path, episodes: Sequence[Rows], names: Sequence[str] = ()) -> Path:
    return write_videos(folder, episodes, names, "npz")


def write_one_table(folder: Path, episodes: Sequence[Rows], names: Sequence[str] = ()) -> Path:
    tables = []
    for index, rows in enumerate(episodes):
        name = names[index] if names else f"take_{index}"
        _video(folder / f"{name}.mp4", rows)
        flat = _flat(rows, ("action", "state", "reward", "done"))
        label = [name] * len(rows["action"])
        tables.append(pyarrow.table({"episode": pyarrow.array(label, pyarrow.string()), **flat}))
    table = pyarrow.concat_tables(tables)
    pyarrow.csv.write_csv(table, folder / "all.csv")
    return folder


def to_arrow(values: Any) -> Any:
    """A column of a parquet file; rows of several numbers are lists."""
    array = np.asarray(values)
    if array.ndim == 0:
        return pyarrow.array([array.item()])
    if array.ndim == 2 and array.shape[1] == 0:
        return pyarrow.array([[] for _ in array], pyarrow.list_(pyarrow.float32()))
    return pyarrow.array(array.tolist() if array.ndim > 1 else array)


def _encoded(image: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


def _lerobot_tables(episodes: Sequence[Rows]) -> list[Any]:
    tables = []
    for index, rows in enumerate(episodes):
        stored = {
            "action": "action",
            "state": "observation.state",
            "reward": "next.reward",
            "done": "next.done",
        }
        columns = {stored[n]: to_arrow(rows[n]) for n in stored if n in rows}
        shape = np.shape(rows.get("action", ()))
        num_rows = len(columns["action"]) if shape else len(next(iter(columns.values())))
        columns["timestamp"] = pyarrow.array((np.arange(num_rows) / 10).astype(np.float32))
        columns["frame_index"] = pyarrow.array(np.arange(num_rows))
        columns["episode_index"] = pyarrow.array(np.full(num_rows, index))
        columns["task_index"] = pyarrow.array(np.zeros(num_rows, np.int64))
        pictures = [_encoded(image) for image in rows.get("image", ())]
        kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        values = [{"bytes": picture, "path": None} for picture in pictures]
        columns["observation.images.eye"] = pyarrow.array(values, kind)
        tables.append(pyarrow.table(columns))
    return tables


def _lerobot_info(version: str) -> dict[str, Any]:
    def numbers(*shape: int) -> dict[str, Any]:
        return {"dtype": "float32", "shape": list(shape), "names": None}

    return {
        "codebase_version": version,
        "fps": 10,
        "chunks_size": 1000,
        "features": {
            "action": numbers(2),
            "observation.state": numbers(3),
            "next.reward": numbers(1),
            "next.done": {"dtype": "bool", "shape": [1]},
            "timestamp": numbers(1),
            "frame_index": {"dtype": "int64", "shape": [1]},
            "task_index": {"dtype": "int64", "shape": [1]},
            "observation.images.eye": {"dtype": "image", "shape": [SIZE, SIZE, 3]},
        },
    }


def write_lerobot2(folder: Path, episodes: Sequence[Rows], names: Sequence[str] = ()) -> Path:
    (folder / "meta").mkdir()
    (folder / "meta" / "info.json").write_text(json.dumps(_lerobot_info("v2.1")))
    lines = []
    for index, table in enumerate(_lerobot_tables(episodes)):
        path = folder / "data" / "chunk-000" / f"episode_{index:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(table, path)
        length = episodes[index].get("length", table.num_rows)
        lines.append({"episode_index": index, "length": length, "tasks": ["wave"]})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "meta" / "episodes.jsonl").write_text(text)
    (folder / "meta" / "tasks.jsonl").write_text('{"task_index": 0, "task": "wave"}\n')
    return folder


def write_lerobot3(folder: Path, episodes: Sequence[Rows], names: Sequence[str] = ()) -> Path:
    (folder / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps(_lerobot_info("v3.0")))
    tables = _lerobot_tables(episodes)
    rows: list[dict[str, Any]] = []
    for index, table in enumerate(tables):
        path = folder / "data" / "chunk-000" / f"file-{index // 2:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        if index % 2 == 0:
            both = pyarrow.concat_tables(tables[index : index + 2])
            pyarrow.parquet.write_table(both, path, row_group_size=7)
        length = episodes[index].get("length", table.num_rows)
        rows.append({"episode_index": index, "length": length, "tasks": ["wave"]})
        rows[-1] |= {"data/chunk_index": 0, "data/file_index": index // 2}
    where = folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), where)
    tasks = pyarrow.table({"task_index": [0], "task": ["wave"]})
    pyarrow.parquet.write_table(tasks, folder / "meta" / "tasks.parquet")
    return folder


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _example(lists: dict[str, Any]) -> bytes:
    """A ``tf.train.Example``, see tensorflow/core/example/{example,feature}.proto."""
    entries = b""
    for name, values in lists.items():
        if isinstance(values, list):
            feature = _field(1, b"".join(_field(1, value) for value in values))
        elif values.dtype.kind == "f":
            feature = _field(2, _field(1, values.astype("<f4").tobytes()))
        else:
            numbers = values.astype(np.int64).astype(np.uint64).reshape(-1).tolist()
            feature = _field(3, _field(1, b"".join(map(_varint, numbers))))
        entries += _field(1, _field(1, name.encode()) + _field(2, feature))
    return _field(1, entries)


def write_rlds(folder: Path, episodes: Sequence[Rows], names: Sequence[str] = ()) -> Path:
    def tensor(dtype: str, *shape: int) -> dict[str, Any]:
        dimensions = {"dimensions": list(map(str, shape))} if shape else {}
        return {"tensor": {"shape": dimensions, "dtype": dtype, "encoding": "none"}}

    def group(**features: Any) -> dict[str, Any]:
        return {"featuresDict": {"features": features}}

    shape = {"dimensions": [str(SIZE), str(SIZE), "3"]}
    image = {"image": {"shape": shape, "dtype": "uint8", "encodingFormat": "png"}}
    step = group(
        action=tensor("float32", 2),
        reward=tensor("float32"),
        is_terminal=tensor("bool"),
        observation=group(image=image, state=tensor("float32", 3)),
    )
    features = group(steps={"sequence": {"feature": step, "length": "-1"}})
    (folder / "features.json").write_text(json.dumps(features))
    content = b""
    for rows in episodes:
        stored = {
            "action": "action",
            "reward": "reward",
            "done": "is_terminal",
            "state": "observation/state",
        }
        lists: dict[str, Any] = {}
        for name, place in stored.items():
            if name in rows:
                array = np.asarray(rows[name])
                text = array.dtype.kind in "US"
                lists[f"steps/{place}"] = (
                    [str(v).encode() for v in array.reshape(-1)] if text else array
                )
        lists["steps/observation/image"] = [_encoded(image) for image in rows["image"]]
        record = _example(lists)
        length = len(record).to_bytes(8, "little")
        sums = [masked_crc(part).to_bytes(4, "little") for part in (length, record)]
        content += length + sums[0] + record + sums[1]
    (folder / "toy-train.tfrecord-00000-of-00001").write_bytes(content)
    return folder


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        kind: ``source.type`` of its reader.
        write: Writes a dataset into an empty folder; gives the path that a recipe names.
        own_files: Whether every episode has files of its own, named with its number.
        named: Whether the names of episodes are the user's.
        options: Options of the source that a recipe needs.
    """

    kind: str
    write: Callable[..., Path]
    own_files: bool = False
    named: bool = False
    options: tuple[tuple[str, Any], ...] = ()


FORMATS = {
    "robomimic": Format("robomimic", write_robomimic, named=True),
    "minari": Format("minari", write_minari),
    "dreamer": Format("dreamer", write_dreamer, own_files=True),
    "npz": Format(
        "dreamer", write_npz, True, named=True, options=(("action_convention", "before"),)
    ),
    "videos": Format("videos", write_videos, own_files=True, named=True),
    "videos_npz": Format("videos", write_videos_npz, own_files=True, named=True),
    "one_table": Format("videos", write_one_table, named=True),
    "lerobot2": Format("lerobot", write_lerobot2, own_files=True),
    "lerobot3": Format("lerobot", write_lerobot3),
    "rlds": Format("rlds", write_rlds),
}
