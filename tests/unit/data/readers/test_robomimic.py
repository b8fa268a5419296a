import json
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.data.readers.opening import (
    lengths,
    load_all,
    open_source,
    padded,
    pictures,
    recipe,
    seeds,
    widths,
)
from tokenwm.cli import main as cli
from tokenwm.data.making.prepare import prepare
from tokenwm.data.recipes.recipe import load_recipe
from tokenwm.errors import EpisodeError, RecipeError, SourceError

h5py = pytest.importorskip("h5py", reason="h5py is not installed (extra 'hdf5')")


def write(path: Path, lengths: list[int], *, seed: int = 0, **options: Any) -> dict[str, Any]:
    """Write a file as robomimic does; returns demonstration → arrays."""
    rng = np.random.default_rng(seed)
    width, with_next = options.get("width", 2), options.get("with_next", False)
    written: dict[str, Any] = {}
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        arguments = {"control_freq": options["rate"]} if "rate" in options else {}
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "env_kwargs": arguments})
        data.attrs["total"] = sum(lengths)
        for index, num_rows in enumerate(lengths):
            position = rng.normal(size=(num_rows + 1, width))
            joints = rng.normal(size=(num_rows + 1, 3)).astype(np.float32)
            eye = pictures(rng, num_rows + 1)
            arrays = {
                "actions": rng.normal(size=(num_rows, width)),
                "rewards": rng.normal(size=num_rows),
                "dones": np.arange(num_rows) == num_rows - 1,
                "states": rng.normal(size=(num_rows, 9)),
                "obs/position": position[:-1],
                "obs/joints": joints[:-1],
                "obs/eye_image": eye[:-1],
                "obs/hand_image": 255 - eye[:-1],
                "obs/eye_depth": rng.normal(size=(num_rows, 64, 80, 1)).astype(np.float32),
            }
            if with_next:
                arrays |= {
                    "next_obs/position": position[1:],
                    "next_obs/joints": joints[1:],
                    "next_obs/eye_image": eye[1:],
                    "next_obs/hand_image": 255 - eye[1:],
                }
            group = data.create_group(f"demo_{index}")
            group.attrs["num_samples"] = num_rows
            for name, array in arrays.items():
                group.create_dataset(name, data=array, compression=options.get("compression"))
            written[f"demo_{index}"] = {**arrays, "all": (position, joints, eye)}
        file["mask/train"] = np.array([b"demo_1"])
    return written


STATE = {"state": ["obs/position", "obs/joints"]}


@settings(max_examples=15)
@given(st.lists(lengths, min_size=1, max_size=3), seeds, widths, st.booleans())
def test_what_was_written_is_read(
    num_rows: list[int], seed: int, width: int, with_next: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "demo.hdf5"
        written = write(path, num_rows, seed=seed, width=width, with_next=with_next, rate=10)
        episodes = load_all(open_source("robomimic", path, source=STATE))
    assert [episode.key for episode in episodes] == list(written)
    for episode in episodes:
        arrays = written[episode.key]
        position, joints, eye = (array[: episode.num_steps] for array in arrays["all"])
        known = episode.num_steps - 1  # without next_obs the last action led nowhere recorded
        assert known == len(arrays["actions"]) - (not with_next)
        assert set(episode.frames) == {"eye_image", "hand_image"}
        np.testing.assert_array_equal(episode.frames["eye_image"], eye)
        np.testing.assert_array_equal(episode.frames["hand_image"], 255 - eye)
        state = np.concatenate([position, joints], axis=1).astype(np.float32)
        np.testing.assert_array_equal(episode.state, state)
        np.testing.assert_array_equal(episode.action, padded(arrays["actions"][:known]))
        np.testing.assert_array_equal(episode.reward, padded(arrays["rewards"][:known]))
        assert episode.terminated.tolist() == [*arrays["dones"][:known].tolist(), False]
        assert episode.truncated[-2] == (not with_next)


def test_inspect_writes_a_recipe_that_prepare_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "lift.hdf5", [12, 14, 16, 18], rate=20, compression="gzip")
    path = tmp_path / "recipe.yaml"
    assert cli.main(["inspect", str(tmp_path / "lift.hdf5"), "--recipe", str(path)]) == 0
    out = capsys.readouterr().out
    for part in ("robomimic HDF5", "Lift", "20 Hz", "eye_image", "obs/eye_depth"):
        assert part in out
    assert "the state is a guess among: obs/joints, obs/position" in out
    manifest = prepare(load_recipe(path), tmp_path / "out")
    assert not manifest.excluded
    assert json.loads(manifest.provenance["source_environment"])["env_name"] == "Lift"
    assert len(manifest.provenance["source_checksum"]) == 64


def test_options(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "demo.hdf5"
    written = write(path, [6, 7, 8])
    source = open_source("robomimic", path, source={**STATE, "mask": "train", "terminated": None})
    assert "does not record how many rows a second has" in caplog.text
    (episode,) = load_all(pickle.loads(pickle.dumps(source)))
    assert episode.key == "demo_1" and not episode.terminated.any()
    simulated = open_source("robomimic", path, source={"state": "states", "rate": 20})
    states = load_all(simulated)[0].state
    np.testing.assert_array_equal(states, written["demo_0"]["states"][::2].astype(np.float32))
    hidden = open_source("robomimic", path, source={**STATE, "task_state": "states", "rate": 20})
    np.testing.assert_array_equal(load_all(hidden)[0].task_state, states)
    for options, message in (
        ({"mask": "val"}, "source.mask is 'val'; .* has the masks: train"),
        ({"terminated": "done"}, "source.terminated is 'done'"),
        ({"rate": -1}, "rate is -1"),
    ):
        with pytest.raises(RecipeError, match=message):
            open_source("robomimic", path, source={**STATE, **options})
    write(path, [6], rate=20)
    with pytest.raises(RecipeError, match=r"source.rate is 50 Hz, and .* says 20 Hz"):
        open_source("robomimic", path, source={**STATE, "rate": 50})


def test_the_last_hidden_truth_is_that_of_next_obs(tmp_path: Path) -> None:
    path = tmp_path / "demo.hdf5"
    written = write(path, [6], with_next=True, rate=10)
    source = {"state": "obs/position", "task_state": "obs/joints"}
    (episode,) = load_all(open_source("robomimic", path, source=source))
    np.testing.assert_array_equal(episode.task_state, written["demo_0"]["all"][1])


def test_the_task_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "demo.hdf5"
    write(path, [6, 6])
    with h5py.File(path, "a") as file:
        file["data"].attrs["problem_info"] = json.dumps({"language_instruction": ["lift it"]})
        file["data/demo_1"].attrs["ep_meta"] = json.dumps({"lang": "open the drawer"})
    tasks = [e.task for e in load_all(open_source("robomimic", path, source=STATE))]
    assert tasks == ["lift it", "open the drawer"]


def test_a_damaged_demonstration_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "demo.hdf5"
    write(path, [6, 6, 6, 6, 6])
    with h5py.File(path, "a") as file:
        del file["data/demo_1/obs/eye_image"]
        del file["data/demo_2/rewards"]
        file["data/demo_2/rewards"] = np.zeros(5)
        del file["data/demo_3/actions"]
        file["data/demo_3/actions"] = np.array([b"text"] * 6)
    source = open_source("robomimic", path, source=STATE)
    messages = {}
    for ref in source.episodes():
        try:
            source.load(ref)
        except EpisodeError as error:
            messages[ref.key] = str(error)
    assert list(messages) == ["demo_1", "demo_2", "demo_3"]
    assert "no array 'obs/eye_image'" in messages["demo_1"]
    assert "rewards has 5 rows; expected 6" in messages["demo_2"]
    assert "actions holds |S4; expected numbers" in messages["demo_3"]


def test_nothing_outside_the_file_is_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret.hdf5"
    write(secret, [6])
    path = tmp_path / "demo.hdf5"
    hostile = {
        "external link": lambda file: h5py.ExternalLink(str(secret), "/data/demo_0/obs/position"),
        "soft link": lambda file: h5py.SoftLink("/data/demo_0/obs/joints"),
    }
    for make in hostile.values():
        for place in ("data/demo_0/obs/position", "data/demo_0/actions", "data/demo_0"):
            write(path, [6])
            with h5py.File(path, "a") as file:
                del file[place]
                file[place] = make(file)
            with pytest.raises(SourceError, match="is a link; only what lies in the file itself"):
                open_source("robomimic", path, source=STATE)
    write(path, [6, 6])
    (tmp_path / "raw").write_bytes(bytes(8 * 12))
    with h5py.File(path, "a") as file:
        del file["data/demo_1/obs/position"]
        outside = [(str(tmp_path / "raw"), 0, 96)]
        file["data/demo_1/obs"].create_dataset("position", (6, 2), "f8", external=outside)
        layout = h5py.VirtualLayout((6, 3), "f4")
        layout[:] = h5py.VirtualSource(secret, "data/demo_0/obs/joints", (6, 3))
        del file["data/demo_1/obs/joints"]
        file.create_virtual_dataset("data/demo_1/obs/joints", layout)
    for state in ("obs/position", "obs/joints"):
        source = open_source("robomimic", path, source={"state": state})
        with pytest.raises(EpisodeError, match="its values lie in other files"):
            source.load(source.episodes()[1])


@pytest.mark.parametrize("shape", [(10**9,), (10**9, 3), (6, 10**9)])
def test_absurd_claims_take_no_memory(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "demo.hdf5"
    write(path, [6])
    with h5py.File(path, "a") as file:
        del file["data/demo_0/actions"]
        file["data/demo_0"].create_dataset("actions", shape, "f8", chunks=(1,) * len(shape))
    assert path.stat().st_size < 10**6
    source = open_source("robomimic", path, source=STATE)
    with pytest.raises(EpisodeError, match="claims the shape"):
        source.load(source.episodes()[0])


def test_groups_without_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "demo.hdf5"
    write(path, [6])
    with h5py.File(path, "a") as file:
        file["data/demo_0/obs/again"] = file["data/demo_0"]  # a hard link to what holds it
    with pytest.raises(SourceError, match="holds more than"):
        open_source("robomimic", path, source=STATE)


def test_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "demo.hdf5"
    path.write_bytes(b"no HDF5")
    with pytest.raises(SourceError, match="cannot be read"):
        open_source("robomimic", path)
    with h5py.File(path, "w") as file:
        file["other"] = 3
    with pytest.raises(SourceError, match="has no demonstrations; expected"):
        open_source("robomimic", path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(SourceError, match="cannot be read"):
        open_source("robomimic", path)
    import sys

    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(SourceError, match=r"pip install 'tokenwm\[hdf5\]'"):
        recipe("robomimic", path).open_source()
