"""Pictures stored as numbers are cameras or refused by name; depth is named and not used."""

import io
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image
import pyarrow
import pyarrow.parquet
import pytest
from numpy.typing import NDArray
from tensorboard.summary.writer.record_writer import RecordWriter

from tests.unit.data.conftest import LeRobotFolder, write_video
from tests.unit.data.readers.odd_datasets import FORMATS, make_rows
from tests.unit.data.readers.opening import load_all, open_source
from tests.unit.data.readers.test_rlds import features_json, serialise
from tokenwm.cli import main as cli
from tokenwm.data.episode import Episode
from tokenwm.data.readers.base import load_each
from tokenwm.data.readers.columns.arrays import column_of
from tokenwm.data.readers.pictures.frames import ArrayFrames
from tokenwm.data.readers.pictures.video import FrameResizer
from tokenwm.errors import EpisodeError, RecipeError

ROWS, SIZE = 12, 16
RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (ROWS, SIZE, SIZE, 3), dtype=np.uint8)
FIRST = PICTURES.transpose(0, 3, 1, 2)
ALPHA = np.full((ROWS, SIZE, SIZE, 1), 255, np.uint8)


def read(images: Any, name: str = "rgb", row_shape: tuple[int, ...] | None = None) -> Any:
    frames = ArrayFrames(images=images, name=name, row_shape=row_shape)
    resizer = FrameResizer(SIZE, SIZE, "crop")
    return frames.read(first=0, step=1, num_rows=len(images), resizer=resizer, episode="e").kept


@pytest.mark.parametrize(
    ("images", "row_shape"),
    [
        (PICTURES, None),
        (FIRST, None),
        (PICTURES.reshape(ROWS, -1), (SIZE, SIZE, 3)),
        (np.ascontiguousarray(FIRST).reshape(ROWS, -1), (3, SIZE, SIZE)),
        (PICTURES.astype(np.int64), None),
        (PICTURES.astype(np.float32), None),
        (FIRST.astype(np.float64) / 255, None),
        (PICTURES.astype(np.float32) / 255, None),
        (np.concatenate([PICTURES, ALPHA], axis=-1), None),
    ],
)
def test_layouts_and_types(images: Any, row_shape: tuple[int, ...] | None) -> None:
    np.testing.assert_array_equal(read(images, row_shape=row_shape), PICTURES)


def test_grey_is_repeated() -> None:
    grey = PICTURES[..., :1]
    for images in (grey, grey[..., 0], grey.transpose(0, 3, 1, 2)):
        np.testing.assert_array_equal(read(images), grey.repeat(3, axis=-1))


@pytest.mark.parametrize("step", [1, 5])
def test_the_range_is_that_of_the_whole_episode(step: int) -> None:
    """A dark first picture does not make the others dark, whichever are kept."""
    images = np.zeros((40, SIZE, SIZE, 3), np.float32)
    images[33] = 200.0
    images[5] = 3.0
    frames = ArrayFrames(images=images, name="rgb")
    resizer = FrameResizer(SIZE, SIZE, "crop")
    kept = frames.read(first=0, step=step, num_rows=40, resizer=resizer, episode="e").kept
    assert kept[5 // step].max() == 3


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (PICTURES.astype(np.float32) - 128, "from -128 to 127"),
        (PICTURES.astype(np.float32) / 127.5 - 1, "from -1 to 1"),
        (PICTURES.astype(np.float32) * (1.5 / 255), r"could be in \[0, 1\] or dark ones"),
        (PICTURES.astype(np.float32) * 257, "from 0 to 65535"),
        (PICTURES.astype(np.uint16) * 257, "from 0 to 65535"),
        ((PICTURES > 128).astype(np.float32), "could be in"),
        (np.where(PICTURES == 7, np.nan, PICTURES), "nan"),
        (np.concatenate([PICTURES, ALPHA // 2], axis=-1), "stack of four grey ones"),
        (np.concatenate([FIRST, FIRST[:, :1]], axis=1), "four planes"),
        (PICTURES[..., 0].astype(np.uint16), "as depth is"),
        (PICTURES[..., :1].astype(np.float32), "as depth is"),
    ],
)
def test_what_is_not_sure_is_refused(images: Any, message: str) -> None:
    with pytest.raises(EpisodeError, match=f"episode e: rgb.*{message}"):
        read(images)


def test_a_declared_shape_that_does_not_fit() -> None:
    with pytest.raises(EpisodeError, match="768 numbers a row; the shape .* means 3072"):
        read(PICTURES.reshape(ROWS, -1), row_shape=(32, 32, 3))


@pytest.mark.parametrize(
    ("dtype", "shape", "name", "kind"),
    [
        ("uint8", (32, 32, 3), "obs/view", "pictures"),
        ("float32", (3, 32, 32), "obs/view", "pictures"),
        ("uint8", (32, 32), "obs/view", "pictures"),
        ("uint16", (32, 32), "obs/view", "other"),
        ("float32", (32, 32, 1), "obs/view", "other"),
        ("uint8", (32, 32, 3), "obs/agentview_depth", "other"),
        ("uint8", (2, 32, 32, 3), "obs/views", "other"),
        ("uint8", (3072,), "obs/view", "other"),
        ("int64", (3072,), "obs/view", "other"),
        ("float32", (3072,), "obs/view_image", "other"),
        ("uint8", (128,), "ram", "numbers"),
        ("float32", (26,), "depth_of_tool", "numbers"),
        ("float32", (4, 4), "camera_pose", "numbers"),
        ("int64", (1,), "action", "numbers"),
        ("bool", (32, 32), "mask", "other"),
    ],
)
def test_no_picture_is_a_state(dtype: str, shape: tuple[int, ...], name: str, kind: str) -> None:
    column = column_of(np.dtype(dtype), shape, name)
    assert column.kind == kind
    assert bool(column.note) == (kind == "other")  # never without a word


def arrays(extra: dict[str, Any]) -> dict[str, Any]:
    return {
        "vector": RNG.normal(size=(ROWS, 3)).astype(np.float32),
        "action": RNG.normal(size=(ROWS, 2)).astype(np.float32),
        "reward": np.zeros(ROWS, np.float32),
        "is_first": np.arange(ROWS) == 0,
        "is_terminal": np.zeros(ROWS, bool),
        **extra,
    }


def test_dreamer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    depth = RNG.normal(size=(ROWS, SIZE, SIZE)).astype(np.float32)
    rows = arrays({"image": FIRST.astype(np.float32) / 255, "depth": depth})
    np.savez(tmp_path / "a.npz", **rows)
    options = {"action_convention": "after", "state": "vector"}
    source = open_source("dreamer", tmp_path, source=options)
    (episode,) = load_all(source)
    np.testing.assert_array_equal(episode.frames["image"], PICTURES)
    assert episode.state is not None and episode.state.shape == (ROWS, 3)
    assert "depth is not used: depth, by its name" in caplog.text
    for option in ({"cameras": {"d": "depth"}}, {"state": "depth"}):
        with pytest.raises(RecipeError, match=r"'depth' has shape \(16, 16\) .*depth, by its name"):
            open_source("dreamer", tmp_path, source={"action_convention": "after", **option})


def test_hdf5(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed (extra 'hdf5')")
    path = tmp_path / "demo.hdf5"
    with h5py.File(path, "w") as file:
        group = file.create_group("data/demo_0")
        group["actions"] = RNG.normal(size=(ROWS, 2))
        group["obs/joints"] = RNG.normal(size=(ROWS, 3))
        group["obs/eye"] = FIRST
        group["obs/near"] = PICTURES[..., :1].astype(np.uint16)
        coded = group.create_dataset("obs/coded", (ROWS,), dtype=h5py.vlen_dtype(np.uint8))
        coded[0] = np.frombuffer(png(PICTURES[0]), np.uint8)
    source = open_source("robomimic", path)
    assert "encoded pictures?" in source.columns["obs/coded"].note  # type: ignore[attr-defined]
    (episode,) = load_all(source)
    assert list(episode.frames) == ["eye"]
    np.testing.assert_array_equal(episode.frames["eye"], PICTURES)
    with pytest.raises(RecipeError, match="as depth is.*; pictures are needed"):
        open_source("robomimic", path, source={"cameras": {"d": "obs/near"}})


def test_tables_with_nested_lists(tmp_path: Path) -> None:
    write_video(tmp_path / "run.mp4", ROWS, 10)
    columns = {"action": RNG.normal(size=ROWS).tolist(), "view": PICTURES.tolist()}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "run.parquet")
    (episode,) = load_all(open_source("videos", tmp_path))
    assert sorted(episode.frames) == ["video", "view"]
    np.testing.assert_array_equal(episode.frames["view"], PICTURES)


def test_rlds_tensors(tmp_path: Path) -> None:
    about = features_json(2)
    step = about["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]
    observation = step["features"]["observation"]["featuresDict"]["features"]
    dimensions = {"dimensions": ["16", "16", "3"]}
    observation["image"] = {"tensor": {"shape": dimensions, "dtype": "uint8", "encoding": "none"}}
    (tmp_path / "features.json").write_text(json.dumps(about))
    lists = {
        "action": RNG.normal(size=(ROWS, 2)).astype(np.float32),
        "reward": np.zeros(ROWS, np.float32),
        "is_terminal": np.zeros(ROWS, bool),
        "observation/state": RNG.normal(size=(ROWS, 3)).astype(np.float32),
        "observation/image": PICTURES,
        "language_embedding": np.zeros((ROWS, 512), np.float32),
    }
    with (tmp_path / "toy-train.tfrecord-00000-of-00001").open("wb") as file:
        RecordWriter(file).write(serialise({f"steps/{name}": v for name, v in lists.items()}))
    (episode,) = load_all(open_source("rlds", tmp_path))
    np.testing.assert_array_equal(episode.frames["image"], PICTURES)
    with pytest.raises(RecipeError, match="depth, by its name"):
        open_source("rlds", tmp_path, source={"cameras": {"d": "observation/depth"}})


def lerobot(folder: Path, features: dict[str, Any], columns: dict[str, Any]) -> LeRobotFolder:
    """A LeRobot folder whose table and ``info.json`` hold more."""
    made = LeRobotFolder(folder)
    made.add(0, ROWS)
    table = pyarrow.parquet.read_table(made.parquet(0))
    for name, values in columns.items():
        table = table.append_column(name, values)
    pyarrow.parquet.write_table(table, made.parquet(0))
    path = folder / "meta" / "info.json"
    info = json.loads(path.read_text())
    info["features"] |= features
    path.write_text(json.dumps(info))
    return made


def png(image: NDArray[Any]) -> bytes:
    content = io.BytesIO()
    PIL.Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_lerobot_arrays(tmp_path: Path, first: bool, dtype: str) -> None:
    images = np.ascontiguousarray(FIRST if first else PICTURES)
    scaled = images if dtype == "uint8" else images.astype(np.float32) / 255
    flat = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(scaled.reshape(-1)), 768)
    nested = pyarrow.array(scaled.tolist())
    feature = {"dtype": dtype, "shape": list(images.shape[1:])}
    features = {"obs.a": feature, "obs.b": feature}
    lerobot(tmp_path, features, {"obs.a": flat, "obs.b": nested})
    (episode,) = load_all(open_source("lerobot", tmp_path, control_rate=30))
    assert sorted(episode.frames) == ["a", "b", "front"]
    np.testing.assert_array_equal(episode.frames["a"], PICTURES)
    np.testing.assert_array_equal(episode.frames["b"], PICTURES)
    assert episode.state is not None and episode.state.shape == (ROWS, 2)


@pytest.mark.parametrize("dtype", ["S10", "U10", "O"])
def test_encoded_pictures_in_an_array_are_named(dtype: str) -> None:
    assert "encoded pictures" in column_of(np.dtype(dtype), (), "obs/images/top").note
    assert column_of(np.dtype(dtype), (), "obs/instruction").note == ""


def test_lists_in_lists_have_a_shape_of_their_own(tmp_path: Path) -> None:
    """``info.json`` may give the channels first and the table last, or the other way round."""
    last, first = {"dtype": "uint8", "shape": [16, 16, 3]}, {"dtype": "uint8", "shape": [3, 16, 16]}
    large = pyarrow.large_list(pyarrow.large_list(pyarrow.large_list(pyarrow.uint8())))
    columns = {
        "obs.a": pyarrow.array(PICTURES.tolist()),
        "obs.b": pyarrow.array(FIRST.tolist()),
        "obs.c": pyarrow.array(PICTURES.tolist(), large),
    }
    lerobot(tmp_path, {"obs.a": first, "obs.b": last, "obs.c": last}, columns)
    (episode,) = load_all(open_source("lerobot", tmp_path, control_rate=30))
    for camera in "abc":
        np.testing.assert_array_equal(episode.frames[camera], PICTURES)
    half = pyarrow.array(PICTURES[:, :8].tolist())
    lerobot(tmp_path / "half", {"obs.a": last}, {"obs.a": half})
    source = open_source("lerobot", tmp_path / "half", control_rate=30)
    with pytest.raises(EpisodeError, match=r"rows of shape \(8, 16, 3\); meta/info.json says"):
        source.load(source.episodes()[0])


FLAGS: list[tuple[str, dict[str, Any]]] = [
    ("observation.images.d", {"info": {"is_depth_map": True}}),
    ("observation.images.d", {"info": {"video.is_depth_map": True}}),
    ("observation.images.d", {"video_info": {"video.is_depth_map": True}}),
    ("observation.images.d", {"is_depth_map": "true"}),
    ("observation.images.d", {"info": {"depth_unit": "m"}}),
    ("observation.images.d", {"info": {"video.pix_fmt": "gray12le"}}),
    ("observation.images.d", {"info": {"pix_fmt": "gray16be"}}),
    ("observation.images.d", {"info": {"pix_fmt": "GRAY16LE"}}),
    ("observation.images.d", {"info": {"video": {"is_depth_map": True}}}),
    ("observation.images.d", {"info": {"Is_Depth_Map": [True]}}),
    ("observation.images.d", {"isDepthMap": "yes"}),
    ("observation.images.d", {"info": {"is_depth": 1}}),
    ("observation.images.d", {"info": {"depth_units": "mm"}}),
    ("observation.images.d", {"info": {"type": "depth"}}),
    ("observation.images.top_depth", {}),
    ("observation.images.DepthCamera", {}),
]


@pytest.mark.parametrize(("name", "about"), FLAGS)
def test_depth_that_is_flagged_or_called_so(
    tmp_path: Path, name: str, about: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    feature = {"dtype": "video", "shape": [48, 64, 1], **about}
    lerobot(tmp_path / "a", {name: feature}, {})
    assert list(open_source("lerobot", tmp_path / "a", control_rate=30).cameras) == ["front"]  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match=f"{name}.*depth.*; pictures are needed"):
        open_source("lerobot", tmp_path / "a", source={"cameras": {"d": name}}, control_rate=30)
    cli.main(["inspect", str(tmp_path / "a")])
    assert f"{name} (depth" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_depth_that_nobody_flagged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Videos and images of one channel above 8 bits are seen for what they are."""
    deep = (RNG.integers(0, 2**16, (SIZE, SIZE))).astype(np.uint16)
    images = pyarrow.array([{"bytes": png(deep), "path": None}] * ROWS)
    feature = {"dtype": "image", "shape": [SIZE, SIZE, 1]}
    video = {"dtype": "video", "shape": [48, 64, 1]}
    made = lerobot(tmp_path, {"obs.near": feature, "obs.far": video}, {"obs.near": images})
    path = made.video(0).parent.parent / "obs.far" / made.video(0).name
    path.parent.mkdir()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "gray16le"
        for _ in range(ROWS):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(deep, "gray16le")))
        container.mux(stream.encode(None))
    (episode,) = load_all(open_source("lerobot", tmp_path, control_rate=30))
    assert list(episode.frames) == ["front"]
    assert "obs.near is not used: depth, of the pixel format gray16be" in caplog.text
    assert "obs.far is not used: depth, of the pixel format gray16le" in caplog.text


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_the_odd_pictures_of_one_episode_decide_for_no_other(tmp_path: Path, version: str) -> None:
    """Depth in the first episode does not make a camera one of depth; nor the other way round."""
    write = FORMATS["lerobot2" if version == "v2.1" else "lerobot3"].write
    for odd, usual in ((np.uint16, np.uint8), (np.uint8, np.uint16)):
        folder = tmp_path / np.dtype(usual).name
        folder.mkdir()
        episodes = [make_rows(seed) for seed in range(4)]
        for index, rows in enumerate(episodes):
            dtype = usual if index else odd
            rows["image"] = rows["image"][..., 0].astype(dtype) * (257 if dtype == np.uint16 else 1)
        source = open_source("lerobot", write(folder, episodes))
        results = list(load_each(source, source.episodes()))
        if usual == np.uint16:
            assert all(isinstance(item, Episode) and not item.frames for item in results)
        else:
            assert "depth" in str(results[0])
            assert all(isinstance(item, Episode) and "eye" in item.frames for item in results[1:])


def test_a_tiff_is_named_and_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = io.BytesIO()
    PIL.Image.fromarray(np.zeros((SIZE, SIZE), np.uint16)).save(content, "TIFF")
    images = pyarrow.array([{"bytes": content.getvalue(), "path": None}] * ROWS)
    feature = {"dtype": "image", "shape": [SIZE, SIZE, 1]}
    lerobot(tmp_path, {"obs.near": feature}, {"obs.near": images})
    (episode,) = load_all(open_source("lerobot", tmp_path, control_rate=30))
    assert list(episode.frames) == ["front"]
    assert "obs.near is not used: TIFF, as depth maps are" in caplog.text


def test_images_of_sixteen_bits_within_a_camera(tmp_path: Path) -> None:
    """Were the first picture of 8 bits, a later one of 16 still is no picture."""
    usual = pyarrow.array(
        [{"bytes": png(PICTURES[i]), "path": None} for i in range(ROWS - 1)]
        + [{"bytes": png(np.zeros((SIZE, SIZE), np.uint16)), "path": None}]
    )
    lerobot(tmp_path, {"obs.a": {"dtype": "image", "shape": [SIZE, SIZE, 3]}}, {"obs.a": usual})
    source = open_source("lerobot", tmp_path, control_rate=30)
    with pytest.raises(EpisodeError, match="image 11 of obs.a has pixels of format gray16be"):
        source.load(source.episodes()[0])


def test_videos_of_depth_in_a_folder(tmp_path: Path) -> None:
    for camera in ("top", "top_depth"):
        write_video(tmp_path / camera / "run.mp4", ROWS, 10)
    (tmp_path / "run.csv").write_text("action\n" + "0.5\n" * ROWS)
    (episode,) = load_all(open_source("videos", tmp_path))
    assert list(episode.frames) == ["top"]
