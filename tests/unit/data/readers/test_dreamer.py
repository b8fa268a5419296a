import io
import pickle
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.data.readers.opening import lengths, load_all, open_source, padded, pictures, seeds
from tokenwm.cli import main as cli
from tokenwm.data.making.prepare import prepare
from tokenwm.data.readers.base import recognise
from tokenwm.data.recipes.recipe import load_recipe
from tokenwm.errors import EpisodeError, RecipeError, SourceError

NOBODY = "0" * 22


def make_rows(rng: np.random.Generator, num_rows: int, terminal: bool) -> dict[str, Any]:
    """Rows as a Dreamer's driver makes them, but for the actions."""
    steps = np.arange(num_rows)
    return {
        "image": pictures(rng, num_rows),
        "vector": rng.normal(size=(num_rows, 3)).astype(np.float32),
        "action": rng.normal(size=(num_rows, 2)).astype(np.float32),
        "reward": rng.normal(size=num_rows).astype(np.float32) * (steps > 0),
        "is_first": steps == 0,
        "is_last": steps == num_rows - 1,
        "is_terminal": (steps == num_rows - 1) & terminal,
    }


def write_chunks(folder: Path, streams: list[list[dict[str, Any]]], size: int) -> list[Path]:
    """Write episodes one after another into chunks of ``size`` rows, as DreamerV3 does."""
    folder.mkdir(exist_ok=True)
    paths = []
    for number, episodes in enumerate(streams):
        rows = {name: np.concatenate([e[name] for e in episodes]) for name in episodes[0]}
        total = len(rows["action"])
        starts = range(0, total, size)
        uuids = [f"u{number}c{start}".ljust(22, "x") for start in starts] + [NOBODY]
        for i, start in enumerate(starts):
            chunk = {name: array[start : start + size] for name, array in rows.items()}
            # The time tells nothing about the order: it is when the chunk was begun, to the second.
            stem = f"20260101T000000F{number:06d}-{uuids[i]}-{uuids[i + 1]}-{len(chunk['action'])}"
            np.savez_compressed(folder / f"{stem}.npz", **chunk)
            paths.append(folder / f"{stem}.npz")
    return paths


@settings(max_examples=15)
@given(
    st.lists(st.lists(lengths, min_size=1, max_size=4), min_size=1, max_size=2),
    st.integers(1, 15),
    seeds,
)
def test_chains_of_chunks(streams: list[list[int]], size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    written = [[make_rows(rng, n, terminal=i % 2 == 0) for i, n in enumerate(s)] for s in streams]
    with tempfile.TemporaryDirectory() as name:
        write_chunks(Path(name), written, size)
        options = {"state": "vector"}
        episodes = load_all(open_source("dreamer", Path(name), source=options))
    flat = [episode for stream in written for episode in stream]
    assert len(episodes) == len(flat)
    for got, rows in zip(episodes, flat, strict=True):
        np.testing.assert_array_equal(got.frames["image"], rows["image"])
        np.testing.assert_array_equal(got.state, rows["vector"])
        # The action of its own row, the reward and the end that came with the next observation.
        np.testing.assert_array_equal(got.action, padded(rows["action"][:-1]))
        np.testing.assert_array_equal(got.reward, padded(rows["reward"][1:]))
        assert got.terminated.tolist() == [*rows["is_terminal"][1:].tolist(), False]
        assert got.truncated[-2] == (not rows["is_terminal"][-1])


def write_episodes(folder: Path, num_rows: list[int], convention: str, **extra: Any) -> Any:
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    written = []
    for index, n in enumerate(num_rows):
        rows = make_rows(rng, n, terminal=True) | {k: f(rng, n) for k, f in extra.items()}
        rows["action"][0 if convention == "before" else -1] = 0
        np.savez_compressed(folder / f"20200101T000{index:03d}-abc-{n}.npz", **rows)
        written.append(rows)
    return written


@pytest.mark.parametrize("convention", ["after", "before"])
def test_the_two_conventions(tmp_path: Path, convention: str) -> None:
    written = write_episodes(tmp_path, [5, 9], convention)
    source = open_source("dreamer", tmp_path, source={"action_convention": convention})
    for got, rows in zip(load_all(pickle.loads(pickle.dumps(source))), written, strict=True):
        action = rows["action"][1:] if convention == "before" else rows["action"][:-1]
        np.testing.assert_array_equal(got.action, padded(action))
        np.testing.assert_array_equal(got.reward, padded(rows["reward"][1:]))
    message = f"say 'after' if .* its actions look like {convention}"
    with pytest.raises(RecipeError, match=message):
        open_source("dreamer", tmp_path)
    (found,) = recognise(tmp_path)
    assert found.config.action_convention == convention  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match="action_convention is 'behind'"):
        open_source("dreamer", tmp_path, source={"action_convention": "behind"})


def one_hot(rng: np.random.Generator, num_rows: int) -> Any:
    return np.eye(4, dtype=np.float32)[rng.integers(0, 4, num_rows)]


def test_inspect_writes_a_recipe_that_prepare_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "replay"
    written = write_episodes(folder, [12, 14, 16, 18], "before", action=one_hot)
    path = tmp_path / "recipe.yaml"
    assert cli.main(["inspect", str(folder), "--recipe", str(path)]) == 0
    out = capsys.readouterr().out
    for part in ("one file per episode", "before the observation of its row", "are discrete"):
        assert part in out
    recipe = load_recipe(path)
    manifest = prepare(recipe, tmp_path / "out")
    assert not manifest.excluded
    (first, *_) = load_all(recipe.open_source())
    assert first.action[:-1, 0].tolist() == written[0]["action"][1:].argmax(axis=1).tolist()
    options = {"action_convention": "after", "one_hot": True}
    with pytest.raises(EpisodeError, match=r"action \[0. 0. 0. 0.\] of row 0 is not one-hot"):
        load_all(open_source("dreamer", folder, source=options))


def test_discount_says_the_end_where_is_terminal_is_missing(tmp_path: Path) -> None:
    rows = make_rows(np.random.default_rng(0), 5, terminal=True)
    rows["discount"] = (~rows.pop("is_terminal")).astype(np.float32)
    np.savez(tmp_path / "a.npz", **rows)
    (episode,) = load_all(open_source("dreamer", tmp_path, source={"action_convention": "before"}))
    assert episode.terminated.tolist() == [False] * 3 + [True, False]


def test_a_damaged_chunk_costs_the_episodes_in_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = write_chunks(tmp_path, [[make_rows(rng, 6, terminal=True) for _ in range(4)]], 8)
    assert len(paths) == 3  # episodes 1 and 2 reach into the middle one
    paths[1].write_bytes(paths[1].read_bytes()[:-300])
    source = open_source("dreamer", tmp_path)
    results = []
    for ref in source.episodes():
        try:
            results.append(source.load(ref).num_steps)
        except EpisodeError as error:
            results.append(str(error))
    assert results[:2] == [6, 2] and results[3:] == [2, 6]
    assert paths[1].name in results[2] and "cannot be read" in results[2]


def test_chains_that_are_none(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = make_rows(rng, 4, terminal=True)

    def save(*stems: str) -> Path:
        folder = tmp_path / "_".join(stems)
        folder.mkdir()
        for stem in stems:
            np.savez(folder / f"{stem}.npz", **rows)
        return folder

    for stems, text in (
        (("t-a-b-4", "t-b-a-4"), "t-a-b-4.npz begins chunks that follow one another in a circle"),
        (("t-a-a-4", "t-b-0-4"), "t-a-a-4.npz begins chunks that follow one another in a circle"),
        (("t-a-c-4", "t-b-c-4", "t-c-0-4"), "t-c-0-4.npz is the successor of two chunks"),
    ):
        source = open_source("dreamer", save(*stems))
        assert [episode.num_steps for episode in load_all(source)] == [4] * len(stems)
        (gap,) = source.gaps()
        assert text in gap.text
    with pytest.raises(SourceError, match="chunks of DreamerV3 and other NPZ files"):
        open_source("dreamer", save("t-a-0-4", "notes"))
    source = open_source("dreamer", save("t-a-0-5"))
    with pytest.raises(EpisodeError, match="differ in length, .*the file's name: 5"):
        source.load(source.episodes()[0])
    with pytest.raises(SourceError, match="holds no NPZ file that can be read"):
        open_source("dreamer", tmp_path)


def npy_bytes(shape: tuple[int, ...], content: bytes = b"") -> bytes:
    header = io.BytesIO()
    about = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, about)
    return header.getvalue() + content


def test_hostile_archives(tmp_path: Path) -> None:
    rows = make_rows(np.random.default_rng(0), 4, terminal=True)
    options = {"action_convention": "before"}

    def load() -> Any:
        return load_all(open_source("dreamer", tmp_path, source=options))

    def save(name: str, content: bytes) -> None:
        np.savez(tmp_path / "b.npz", **{k: v for k, v in rows.items() if k != name})
        with zipfile.ZipFile(tmp_path / "b.npz", "a", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{name}.npy", content)

    np.savez(tmp_path / "a.npz", **rows)
    save("image", npy_bytes((10**6, 8192, 8192, 3), bytes(1000)))
    with pytest.raises(EpisodeError, match="they must be equal, and at most"):
        load()
    save("reward", npy_bytes((4,), bytes(10**6)))  # more than it claims
    with pytest.raises(EpisodeError, match="they must be equal"):
        load()
    np.savez(tmp_path / "b.npz", **{**rows, "reward": np.array([Bomb()] * 4, dtype=object)})
    with pytest.raises(EpisodeError, match="'reward' is pickled, and nothing is unpickled"):
        load()
    (tmp_path / "b.npz").unlink()
    elsewhere = tmp_path.parent / f"{tmp_path.name}_elsewhere.npz"
    np.savez(elsewhere, **rows)
    (tmp_path / "b.npz").symlink_to(elsewhere)
    with pytest.raises(SourceError, match="leads out of the dataset"):
        load()


class Bomb:
    def __reduce__(self) -> Any:
        return pytest.fail, ("was unpickled",)


def test_a_name_that_declares_other_steps(tmp_path: Path) -> None:
    write_episodes(tmp_path, [8, 9, 10], "after")
    for path, length in zip(sorted(tmp_path.glob("*.npz")), (7, 20, 10), strict=True):
        path.rename(path.with_name(f"{path.stem.rpartition('-')[0]}-{length}.npz"))
    source = open_source("dreamer", tmp_path, source={"action_convention": "after"})
    good, bad, same = source.episodes()
    assert [source.load(ref).num_steps for ref in (good, same)] == [8, 10]
    with pytest.raises(EpisodeError, match="name declares 20 steps, and it holds 9 rows"):
        source.load(bad)
