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
    seeds,
    widths,
)
from tokenwm.cli import main as cli
from tokenwm.data.making.prepare import prepare
from tokenwm.data.recipes.recipe import load_recipe
from tokenwm.errors import EpisodeError, RecipeError, SourceError

h5py = pytest.importorskip("h5py", reason="h5py is not installed (extra 'hdf5')")


def write(folder: Path, num_steps: list[int], *, seed: int = 0, **options: Any) -> dict[str, Any]:
    """Write a dataset as Minari 0.5 does; returns key → arrays."""
    rng = np.random.default_rng(seed)
    width = options.get("width", 2)
    path = folder / "data" / "main_data.hdf5"
    path.parent.mkdir(parents=True, exist_ok=True)
    spec = json.dumps({"id": "Reach-v3"})
    about = {"dataset_id": "reach/human-v0", "env_spec": spec, "data_format": "hdf5"}
    (path.parent / "metadata.json").write_text(json.dumps({**about, **options.get("about", {})}))
    written: dict[str, Any] = {}
    with h5py.File(path, "w", track_order=True) as file:
        for index, steps in enumerate(num_steps):
            ends = np.arange(steps) == steps - 1
            arrays: dict[str, Any] = {
                "actions": rng.integers(0, 5, steps)
                if options.get("discrete")
                else rng.normal(size=(steps, width)).astype(np.float32),
                "rewards": rng.normal(size=steps),
                "terminations": ends & (index % 2 == 0),
                "truncations": ends & (index % 2 == 1),
                "infos/success": np.arange(steps + 1) == steps,
            }
            if options.get("plain"):
                arrays["observations"] = rng.normal(size=(steps + 1, width))
            else:
                arrays["observations/pose"] = rng.normal(size=(steps + 1, width))
                arrays["observations/pixels"] = pictures(rng, steps + 1)
            group = file.create_group(f"episode_{index}")
            group.attrs["total_steps"] = steps
            for name, array in arrays.items():
                maximum = (None, *array.shape[1:])
                group.create_dataset(name, data=array, chunks=True, maxshape=maximum)
            if "mission" in options:
                texts = [options["mission"]] * (steps + 1)
                group.create_dataset("observations/mission", data=texts, dtype=h5py.string_dtype())
            written[f"episode_{index:06d}"] = arrays
    return written


@settings(max_examples=15)
@given(st.lists(lengths, min_size=1, max_size=3), seeds, widths, st.booleans(), st.booleans())
def test_what_was_written_is_read(
    num_steps: list[int], seed: int, width: int, plain: bool, discrete: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        written = write(
            Path(folder), num_steps, seed=seed, width=width, plain=plain, discrete=discrete
        )
        episodes = load_all(open_source("minari", Path(folder)))
    assert [episode.key for episode in episodes] == list(written)
    for episode in episodes:
        arrays = written[episode.key]
        state = arrays["observations" if plain else "observations/pose"]
        np.testing.assert_array_equal(episode.state, state.astype(np.float32))
        if not plain:
            np.testing.assert_array_equal(episode.frames["pixels"], arrays["observations/pixels"])
        actions = arrays["actions"].reshape(len(arrays["actions"]), -1)
        kind = np.int64 if discrete else np.float32
        np.testing.assert_array_equal(episode.action, padded(actions, kind))
        assert episode.is_discrete == discrete
        np.testing.assert_array_equal(episode.reward, padded(arrays["rewards"]))
        assert episode.terminated.tolist() == [*arrays["terminations"].tolist(), False]
        assert episode.truncated.tolist() == [*arrays["truncations"].tolist(), False]
        assert episode.metadata["success"] is True


def test_inspect_writes_a_recipe_that_prepare_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "reach", [12, 14, 16, 18], mission="reach the red ball")
    path = tmp_path / "recipe.yaml"
    assert cli.main(["inspect", str(tmp_path / "reach"), "--recipe", str(path)]) == 0
    out = capsys.readouterr().out
    for part in ("Minari HDF5", "reach/human-v0", "Reach-v3", "not recorded", "red ball"):
        assert part in out
    manifest = prepare(load_recipe(path), tmp_path / "out")
    assert not manifest.excluded
    assert json.loads(manifest.provenance["source_environment"])["id"] == "Reach-v3"


def test_the_rate_is_the_recipe_s_to_say(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written = write(tmp_path, [12])
    (episode,) = load_all(open_source("minari", tmp_path))
    assert episode.num_steps == 13
    assert "every row becomes one step at control_rate" in caplog.text
    source = pickle.loads(pickle.dumps(open_source("minari", tmp_path, source={"rate": 40})))
    (episode,) = load_all(source)
    np.testing.assert_array_equal(
        episode.action, padded(written["episode_000000"]["actions"][3::4])
    )
    with pytest.raises(RecipeError, match="control_rate 10 Hz does not divide the source's 25 Hz"):
        open_source("minari", tmp_path, source={"rate": 25})


def test_the_file_itself_and_older_versions(tmp_path: Path) -> None:
    write(tmp_path, [4])
    file_path = tmp_path / "data" / "main_data.hdf5"
    for path in (tmp_path, tmp_path / "data", file_path):
        assert len(load_all(open_source("minari", path))) == 1
    (tmp_path / "data" / "metadata.json").unlink()
    with h5py.File(file_path, "a") as file:
        file.attrs["env_spec"] = "an older place"
    assert open_source("minari", tmp_path).provenance()["source_environment"] == "an older place"


def test_a_damaged_episode_costs_no_other(tmp_path: Path) -> None:
    write(tmp_path, [6, 6, 6])
    with h5py.File(tmp_path / "data" / "main_data.hdf5", "a") as file:
        file["episode_1/observations/pose"].resize((6, 2))
        del file["episode_2/terminations"]
    source = open_source("minari", tmp_path)
    refs = source.episodes()
    assert source.load(refs[0]).num_steps == 7
    with pytest.raises(EpisodeError, match="pose has 6 rows; expected 7"):
        source.load(refs[1])
    with pytest.raises(EpisodeError, match="no array 'terminations'"):
        source.load(refs[2])


def test_what_is_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    write(outside, [6])
    inner = outside / "data" / "main_data.hdf5"
    combined = tmp_path / "combined"
    write(combined, [6])
    with h5py.File(combined / "data" / "main_data.hdf5", "a") as file:
        file["episode_1"] = h5py.ExternalLink(str(inner), "/episode_0")
    source = open_source("minari", combined)
    refs = source.episodes()
    assert source.load(refs[0]).num_steps == 7
    with pytest.raises(EpisodeError, match="episode_1 is a link"):
        source.load(refs[1])
    linked = tmp_path / "linked" / "data"
    linked.mkdir(parents=True)
    (linked / "main_data.hdf5").symlink_to(inner)
    with pytest.raises(SourceError, match="leads out of the dataset"):
        open_source("minari", tmp_path / "linked")
    write(tmp_path / "arrow", [6], about={"data_format": "arrow"})
    (tmp_path / "arrow" / "data" / "main_data.hdf5").unlink()
    with pytest.raises(SourceError, match="stored as 'arrow'; only hdf5 is read"):
        open_source("minari", tmp_path / "arrow")
    with pytest.raises(SourceError, match="is no Minari dataset"):
        open_source("minari", tmp_path)
    with h5py.File(inner, "a") as file:
        del file["episode_0/rewards"]
        file["episode_0"].create_dataset("rewards", (10**10,), "f8", chunks=(100,))
    source = open_source("minari", outside)
    with pytest.raises(EpisodeError, match="claims the shape"):
        source.load(source.episodes()[0])
