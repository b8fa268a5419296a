"""Fixtures are written by protobuf (the published messages) and TensorBoard's record writer."""

import contextlib
import io
import json
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.summary.writer.record_writer import RecordWriter

from tests.unit.data.readers.opening import (
    lengths,
    load_all,
    open_source,
    padded,
    pictures,
    seeds,
    widths,
)
from tokenwm.cli import main as cli
from tokenwm.data.making.prepare import prepare
from tokenwm.data.readers.rlds.tfrecord import masked_crc, parse_example
from tokenwm.data.recipes.recipe import load_recipe
from tokenwm.errors import EpisodeError, RecipeError, SourceError

REPEATED, OPTIONAL = 3, 1
BYTES, FLOAT, INT64, STRING, MESSAGE = 12, 2, 3, 9, 11


def example_class() -> Any:
    """``tf.train.Example`` as tensorflow/core/example/{example,feature}.proto declare it."""
    file = descriptor_pb2.FileDescriptorProto(name="e.proto", package="tensorflow", syntax="proto3")

    def add(parent: Any, name: str, *fields: tuple[str, int, int, int, str]) -> Any:
        message = parent.add(name=name)
        for field, number, kind, label, type_name in fields:
            about = {"type_name": f".tensorflow.{type_name}"} if type_name else {}
            message.field.add(name=field, number=number, type=kind, label=label, **about)
        return message

    for name, kind in (("BytesList", BYTES), ("FloatList", FLOAT), ("Int64List", INT64)):
        add(file.message_type, name, ("value", 1, kind, REPEATED, ""))
    feature = add(
        file.message_type,
        "Feature",
        ("bytes_list", 1, MESSAGE, OPTIONAL, "BytesList"),
        ("float_list", 2, MESSAGE, OPTIONAL, "FloatList"),
        ("int64_list", 3, MESSAGE, OPTIONAL, "Int64List"),
    )
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    features = add(
        file.message_type,
        "Features",
        ("feature", 1, MESSAGE, REPEATED, "Features.FeatureEntry"),
    )
    entry = add(
        features.nested_type,
        "FeatureEntry",
        ("key", 1, STRING, OPTIONAL, ""),
        ("value", 2, MESSAGE, OPTIONAL, "Feature"),
    )
    entry.options.map_entry = True
    add(file.message_type, "Example", ("features", 1, MESSAGE, OPTIONAL, "Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


Example = example_class()


def serialise(lists: dict[str, Any]) -> bytes:
    message = Example()
    for name, values in lists.items():
        feature = message.features.feature[name]
        if isinstance(values, list):
            feature.bytes_list.value.extend(values)
        elif values.dtype.kind == "f":
            feature.float_list.value.extend(values.reshape(-1).tolist())
        else:
            feature.int64_list.value.extend(values.reshape(-1).astype(np.int64).tolist())
    content: bytes = message.SerializeToString()
    return content


def encode(image: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


def features_json(width: int) -> dict[str, Any]:
    def tensor(dtype: str, *shape: int) -> dict[str, Any]:
        dimensions = {"dimensions": list(map(str, shape))} if shape else {}
        return {"tensor": {"shape": dimensions, "dtype": dtype, "encoding": "none"}}

    def group(**features: Any) -> dict[str, Any]:
        return {"featuresDict": {"features": features}}

    def image(dtype: str, channels: str) -> dict[str, Any]:
        shape = {"dimensions": ["16", "16", channels]}
        return {"image": {"shape": shape, "dtype": dtype, "encodingFormat": "png"}}

    step = group(
        action=tensor("float32", width),
        reward=tensor("float32"),
        is_first=tensor("bool"),
        is_last=tensor("bool"),
        is_terminal=tensor("bool"),
        language_instruction={"text": {}},
        language_embedding=tensor("float32", 512),
        observation=group(
            image=image("uint8", "3"), depth=image("uint16", "1"), state=tensor("float64", 3)
        ),
    )
    return group(steps={"sequence": {"feature": step, "length": "-1"}}, episode_metadata=group())


def write(folder: Path, num_rows: list[int], *, seed: int = 0, width: int = 2) -> list[Any]:
    """Write a dataset in shards of two episodes; returns what was written."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "features.json").write_text(json.dumps(features_json(width)))
    info = {"name": "toy", "version": "1.0.0", "redistributionInfo": {"license": "CC BY 4.0"}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    written = []
    for n in num_rows:
        ends = np.arange(n) == n - 1
        written.append(
            {
                "action": rng.normal(size=(n, width)).astype(np.float32),
                "reward": rng.normal(size=n).astype(np.float32),
                "is_first": np.arange(n) == 0,
                "is_last": ends,
                "is_terminal": ends & bool(rng.integers(2)),
                "observation/state": rng.normal(size=(n, 3)).astype(np.float32),
                "observation/image": pictures(rng, n),
            }
        )
    num_shards = -(-len(written) // 2)
    for shard in range(num_shards):
        path = folder / f"toy-train.tfrecord-{shard:05d}-of-{num_shards:05d}"
        with path.open("wb") as file:
            writer = RecordWriter(file)
            for episode in written[2 * shard : 2 * shard + 2]:
                lists = {f"steps/{name}": values for name, values in episode.items()}
                images = [encode(image) for image in episode["observation/image"]]
                texts = [b"pick up the red block"] * len(images)
                lists |= {"steps/observation/image": images, "steps/language_instruction": texts}
                writer.write(serialise(lists))
    return written


@settings(max_examples=15)
@given(st.lists(lengths, min_size=1, max_size=4), seeds, widths)
def test_what_was_written_is_read(num_rows: list[int], seed: int, width: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        written = write(Path(name) / "toy" / "1.0.0", num_rows, seed=seed, width=width)
        source = pickle.loads(pickle.dumps(open_source("rlds", Path(name) / "toy")))
        episodes = load_all(source)
    for got, rows in zip(episodes, written, strict=True):
        np.testing.assert_array_equal(got.frames["image"], rows["observation/image"])
        np.testing.assert_array_equal(got.state, rows["observation/state"])
        np.testing.assert_array_equal(got.action, padded(rows["action"][:-1]))
        np.testing.assert_array_equal(got.reward, padded(rows["reward"][:-1]))
        assert got.terminated.tolist() == [*rows["is_terminal"][1:].tolist(), False]
        assert got.truncated[-2] == (not rows["is_terminal"][-1])
        assert got.task == "pick up the red block"
        assert got.metadata["last_reward"] == pytest.approx(float(rows["reward"][-1]))


def test_inspect_writes_a_recipe_that_prepare_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "toy" / "1.0.0", [12, 14, 16, 18])
    path = tmp_path / "recipe.yaml"
    assert cli.main(["inspect", str(tmp_path / "toy"), "--recipe", str(path)]) == 0
    out = capsys.readouterr().out
    for part in ("RLDS (TFRecord)", "toy 1.0.0", "CC BY 4.0", "red block", "language_embedding"):
        assert part in out
    assert not prepare(load_recipe(path), tmp_path / "out").excluded


@given(st.binary(max_size=5000))
@example(b"123456789")
@example(bytes(1024))
@example(bytes(1025) + b"\1")
def test_checksums_are_those_of_tensorboard(content: bytes) -> None:
    assert masked_crc(content) == masked_crc32c(content)


@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=30),
    st.lists(st.floats(width=32, allow_nan=False), max_size=30),
    st.lists(st.binary(max_size=300), max_size=5),
)
def test_messages_are_those_of_protobuf(ints: Any, floats: Any, texts: Any) -> None:
    lists = {
        "i": np.array(ints, np.int64),
        "f": np.array(floats, np.float32),
        "b": texts,
        "x": ints,
    }
    content = serialise({**lists, "x": np.zeros(3)})
    found = parse_example(content, ["i", "f", "b"])
    assert set(found) == {"i", "f", "b"}
    np.testing.assert_array_equal(found["i"], ints)
    np.testing.assert_array_equal(found["f"], np.array(floats, np.float32))
    assert list(found["b"]) == texts


GOOD = serialise({"a": [b"text"] * 3, "b": np.arange(5), "c": np.ones(5)})


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=3))
@example([(0, 0x08)])
@example([(GOOD.index(b"text") - 2, 0x08)])
def test_no_content_does_more_than_raise(changes: list[tuple[int, int]]) -> None:
    content = bytearray(GOOD)
    for place, value in changes:
        content[place] = value
    with contextlib.suppress(EpisodeError):
        parse_example(bytes(content), ["a", "b", "c"])


def shard(folder: Path, index: int) -> Path:
    return sorted(folder.glob("*.tfrecord-*"))[index]


def problems_of(folder: Path) -> dict[str, str]:
    source = open_source("rlds", folder)
    problems = {}
    for ref in source.episodes():
        try:
            source.load(ref)
        except EpisodeError as error:
            problems[ref.key] = str(error)
    return problems


@pytest.mark.parametrize("place", [3, 9, 2000, -2])
def test_a_flipped_bit_is_found(tmp_path: Path, place: int) -> None:
    write(tmp_path, [6] * 6)
    path = shard(tmp_path, 1)
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)
    problems = problems_of(tmp_path)
    assert len(problems) == 1
    assert "is damaged" in next(iter(problems.values()))
    assert path.name in next(iter(problems.values()))


def test_cut_and_absurd_files(tmp_path: Path) -> None:
    write(tmp_path, [6] * 6)
    path = shard(tmp_path, 2)
    path.write_bytes(path.read_bytes()[:-7])
    with shard(tmp_path, 1).open("ab") as file:
        header = (2**60).to_bytes(8, "little")
        file.write(header + masked_crc32c(header).to_bytes(4, "little") + bytes(100))
    problems = list(problems_of(tmp_path).values())
    assert len(problems) == 2
    assert "claims 1,152,921,504,606,846,976 bytes" in problems[0]
    assert "bytes; the file has" in problems[1]


def test_what_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "good", [6, 6])
    with pytest.raises(RecipeError, match="source.split is 'test'; .* has: train"):
        open_source("rlds", tmp_path / "good", source={"split": "test"})
    link = tmp_path / "linked"
    link.mkdir()
    (link / "features.json").write_text(json.dumps(features_json(2)))
    (link / "toy-train.tfrecord-00000-of-00001").symlink_to(shard(tmp_path / "good", 0))
    with pytest.raises(SourceError, match="leads out of the dataset"):
        open_source("rlds", link)
    for content, message in (
        ("{", "cannot be read"),
        ("[]", "does not hold keys"),
        ('{"featuresDict": {"features": {"image": {}}}}', "does not describe an RLDS dataset"),
        ("[" * 10**5, "cannot be read"),
    ):
        (tmp_path / "good" / "features.json").write_text(content)
        with pytest.raises(SourceError, match=message):
            open_source("rlds", tmp_path / "good")
    with pytest.raises(SourceError, match="is no RLDS dataset"):
        open_source("rlds", shard(tmp_path / "good", 0))
