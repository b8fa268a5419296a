"""One odd episode, of every format and in every place, costs itself and no other."""

import importlib.util
import json
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest

from tests.unit.data.readers.odd_datasets import FORMATS, NUM_ROWS, SIZE, Rows, make_rows
from tests.unit.data.readers.opening import recipe
from tokenwm.data.episode import Episode
from tokenwm.data.making.prepare import prepare
from tokenwm.data.readers.base import load_each
from tokenwm.data.readers.columns.parquet import read_groups
from tokenwm.data.readers.paths import MAX_META_BYTES
from tokenwm.data.recipes.survey import survey
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import RecipeError

NUM_EPISODES = 4


def replaced(name: str, change: Callable[[Any], Any]) -> Callable[[Rows], Rows]:
    return lambda rows: {**rows, name: change(rows[name])}


def with_value(value: Any, dtype: type = np.float64) -> Callable[[Any], Any]:
    def change(array: Any) -> Any:
        array = array.astype(dtype)
        array.flat[3] = value
        return array

    return change


ODD: dict[str, Callable[[Rows], Rows]] = {
    "no rows": lambda rows: {name: array[:0] for name, array in rows.items()},
    "one row": lambda rows: {name: array[:1] for name, array in rows.items()},
    "action without width": replaced("action", lambda a: a[:, :0]),
    "state without width": replaced("state", lambda a: a[:, :0]),
    "whole numbers without width": replaced("action", lambda a: a[:, :0].astype(np.int64)),
    "action is a scalar": replaced("action", lambda a: np.float32(1)),
    "reward is a scalar": replaced("reward", lambda a: np.float32(1)),
    "end is a scalar": replaced("done", lambda a: np.bool_(True)),
    "action has an axis less": replaced("action", lambda a: a[:, 0]),
    "action has two axes more": replaced("action", lambda a: a[:, :, None, None]),
    "reward of two numbers": replaced("reward", lambda a: np.stack([a, a], axis=1)),
    "action too short": replaced("action", lambda a: a[:4]),
    "state too long": replaced("state", lambda a: np.concatenate([a, a])),
    "action is text": replaced("action", lambda a: a.astype(str)),
    "action is complex": replaced("action", lambda a: a.astype(np.complex64)),
    "action missing": lambda rows: {n: a for n, a in rows.items() if n != "action"},
    "state missing": lambda rows: {n: a for n, a in rows.items() if n != "state"},
    "not a number": replaced("action", with_value(np.nan)),
    "infinite": replaced("state", with_value(np.inf)),
    "beyond float32": replaced("state", with_value(1e300)),
    "an absurd id": replaced(
        "action", lambda a: with_value(9 * 10**12, np.int64)(np.zeros(len(a)))
    ),
    "a negative id": replaced("action", lambda a: with_value(-5, np.int64)(np.zeros(len(a)))),
    "pictures without height": replaced("image", lambda a: a[:, :0]),
    "pictures are a scalar": replaced("image", lambda a: a[0, 0, 0, 0]),
    "pictures are real numbers": replaced("image", lambda a: a.astype(np.float32)),
    "pictures of two channels": replaced("image", lambda a: a[..., :2]),
    "too many pictures": replaced("image", lambda a: np.concatenate([a, a])),
    "too few pictures": replaced("image", lambda a: a[:4]),
}


def check_others(kind: str, path: Path, odd: Collection[int], options: Any = ()) -> None:
    """All episodes but the odd ones can be used, and their reasons are told; by both verbs."""
    source = recipe(kind, path, source=dict(options)).open_source()
    refs = list(source.episodes())
    results = list(load_each(source, refs))
    for ref, result in zip(refs, results, strict=True):
        assert isinstance(result, Episode) or ref.index in odd, (ref, result)
        assert "cannot be used: " not in str(result) or ".py:" in str(result)
    found = survey(path)
    assert len(found.refs) == len(refs)
    assert set(found.problems) <= {ref.key for ref in refs if ref.index in odd}


def can_hold(name: str, rows: Rows, folder: Path) -> bool:
    folder.mkdir()
    try:
        FORMATS[name].write(folder, [make_rows(0), rows])
    except (TypeError, ValueError, IndexError, KeyError, OSError, Warning, NotImplementedError):
        return False
    return True


BATCH = 3
"""Odd episodes in a dataset of eight: fewer than half, since most say what columns there are."""


@pytest.mark.parametrize("batch", range(len(ODD) // BATCH))
@pytest.mark.parametrize("name", FORMATS)
def test_odd_values(name: str, batch: int, tmp_path: Path) -> None:
    episodes = [make_rows(seed) for seed in range(2 * BATCH + 2)]
    odd = set()
    for number, what in enumerate(list(ODD)[batch :: len(ODD) // BATCH]):
        rows = ODD[what](make_rows(number))
        if can_hold(name, rows, tmp_path / str(number)):
            odd.add(2 * number)  # the first one, too
            episodes[2 * number] = rows
    (tmp_path / "data").mkdir()
    path = FORMATS[name].write(tmp_path / "data", episodes)
    check_others(FORMATS[name].kind, path, odd, FORMATS[name].options)


@pytest.mark.parametrize("name", FORMATS)
def test_prepare_leaves_the_odd_one_out(name: str, tmp_path: Path) -> None:
    episodes = [make_rows(seed) for seed in range(NUM_EPISODES)]
    episodes[3]["action"][2, 0] = np.nan
    (tmp_path / "data").mkdir()
    path = FORMATS[name].write(tmp_path / "data", episodes)
    made = recipe(FORMATS[name].kind, path, source=dict(FORMATS[name].options))
    manifest = prepare(made, tmp_path / "out")
    assert len(manifest.episodes) == 3 and len(manifest.excluded) == 1
    assert {episode.split for episode in manifest.episodes} == {"train", "val", "test"}
    ShardReader(tmp_path / "out", verify=True)


@pytest.mark.parametrize("cut", [0.0, 0.1, 0.5, 0.97])
@pytest.mark.parametrize("name", [name for name, about in FORMATS.items() if about.own_files])
def test_a_file_that_is_cut(name: str, cut: float, tmp_path: Path) -> None:
    path = FORMATS[name].write(tmp_path, [make_rows(seed) for seed in range(NUM_EPISODES)])
    of_episode = sorted(p for p in path.rglob("*") if p.is_file() and "meta" not in p.parts)
    per_episode = len(of_episode) // NUM_EPISODES
    for file in of_episode[per_episode : 2 * per_episode]:
        file.write_bytes(file.read_bytes()[: int(cut * file.stat().st_size)])
    check_others(FORMATS[name].kind, path, [1], FORMATS[name].options)


@pytest.mark.parametrize("target", ["itself", "nowhere", "a folder"])
@pytest.mark.parametrize("name", [name for name, about in FORMATS.items() if about.own_files])
def test_a_link_that_leads_to_no_file(name: str, target: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path = FORMATS[name].write(tmp_path / "data", [make_rows(seed) for seed in range(NUM_EPISODES)])
    of_episode = sorted(p for p in path.rglob("*") if p.is_file() and "meta" not in p.parts)
    file = of_episode[0]
    file.unlink()
    if target == "a folder":
        file.mkdir()
    else:
        file.symlink_to(file.name if target == "itself" else "nowhere")
    made = recipe(FORMATS[name].kind, path, source=dict(FORMATS[name].options))
    manifest = prepare(made, tmp_path / "out")
    assert len(manifest.episodes) == NUM_EPISODES - 1
    assert set(survey(path).problems) == {item.key for item in manifest.excluded}


LONG, UNDECODABLE = "x" * 95, b"caf\xe9".decode(errors="surrogateescape")
ODD_NAMES = [LONG, "take_0_phase1", "take 1", "täke", UNDECODABLE, "take.two", "[red]x[b]"]


@pytest.mark.parametrize("odd", ODD_NAMES, ids=ascii)
@pytest.mark.parametrize("name", ["robomimic", "videos"])
def test_odd_names(name: str, odd: str, tmp_path: Path) -> None:
    episodes = [make_rows(seed) for seed in range(4)]
    (tmp_path / "data").mkdir()
    try:
        path = FORMATS[name].write(tmp_path / "data", episodes, ["take_0", "t1", odd, "t3"])
    except UnicodeEncodeError:
        pytest.skip("this format cannot hold that")
    made = recipe(FORMATS[name].kind, path, source=dict(FORMATS[name].options), all_phases=True)
    manifest = prepare(made, tmp_path / "out")
    assert len(manifest.episodes) == 4 and not manifest.excluded
    assert not survey(path).problems


def test_a_reason_with_a_name_that_is_no_text_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    names = ["a", "b", UNDECODABLE, "d"]
    episodes = [make_rows(seed) for seed in range(NUM_EPISODES)]
    path = FORMATS["videos_npz"].write(tmp_path / "data", episodes, names)
    (path / f"{UNDECODABLE}.mp4").write_bytes(b"no video")
    manifest = prepare(recipe("videos", path), tmp_path / "out")
    (excluded,) = manifest.excluded
    assert r"caf\udce9.mp4" in excluded.reason
    assert (tmp_path / "out" / "quality.html").is_file()


@pytest.mark.parametrize("name", [b"caf\xe9", b"x" * 300, b" ", b"\x1b[2J"])
def test_hdf5_names_that_are_no_text(name: bytes, tmp_path: Path) -> None:
    path = FORMATS["robomimic"].write(tmp_path, [make_rows(seed) for seed in range(NUM_EPISODES)])
    with h5py.File(path, "a") as file:
        file["data"].move(b"demo_2", name)
        file["data/demo_1"]["obs"].create_dataset(name, data=[1])
    source = recipe("robomimic", path).open_source()
    results = list(load_each(source, source.episodes()))
    readable = b"\xe9" not in name  # of other names h5py opens nothing
    assert sum(isinstance(result, Episode) for result in results) == NUM_EPISODES - (not readable)
    assert len(survey(path).problems) == (not readable)


@pytest.mark.parametrize("shape", [(10**12, SIZE, SIZE, 3), (10**8, SIZE, SIZE, 3), (10, 10**5, 9)])
@pytest.mark.parametrize("array", ["obs/image", "obs/state", "actions"])
def test_an_hdf5_array_that_claims_too_much(array: str, shape: Any, tmp_path: Path) -> None:
    path = FORMATS["robomimic"].write(tmp_path, [make_rows(seed) for seed in range(NUM_EPISODES)])
    with h5py.File(path, "a") as file:
        del file[f"data/demo_1/{array}"]
        chunks = (1, *shape[1:])
        file["data/demo_1"].create_dataset(array, shape, "u1", chunks=chunks, compression="gzip")
    check_others("robomimic", path, [1])


def test_an_npz_array_that_claims_too_much(tmp_path: Path) -> None:
    path = FORMATS["npz"].write(tmp_path, [make_rows(seed) for seed in range(NUM_EPISODES)])
    for index, header in enumerate((b"{'descr': (", b"{'descr': '|u1', 'shape': (999999999999,)}")):
        with zipfile.ZipFile(path / f"e{index}.npz", "a") as archive:
            magic = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
            with pytest.warns(UserWarning, match="Duplicate name"):
                archive.writestr("action.npy", magic)
    options = FORMATS["npz"].options
    source = recipe("dreamer", path, source=dict(options)).open_source()
    results = list(load_each(source, list(source.episodes())))
    assert [isinstance(result, Episode) for result in results] == [False, False, True, True]


def test_a_small_npz_that_holds_gigabytes_of_zeros(tmp_path: Path) -> None:
    path = FORMATS["npz"].write(tmp_path, [make_rows(seed) for seed in range(NUM_EPISODES)])
    rows = make_rows(1)
    rows["image"] = np.zeros((NUM_ROWS, 2**12, 2**10, 3), np.uint8)
    np.savez_compressed(path / "e1.npz", **{k: v for k, v in rows.items() if k != "done"})
    check_others("dreamer", path, [1], FORMATS["npz"].options)


@pytest.mark.parametrize("use_dictionary", [False, True])
def test_a_small_parquet_file_that_holds_gigabytes_of_zeros(
    use_dictionary: bool, tmp_path: Path
) -> None:
    path = FORMATS["lerobot2"].write(tmp_path, [make_rows(seed) for seed in range(NUM_EPISODES)])
    file = path / "data" / "chunk-000" / "episode_000001.parquet"
    table = pyarrow.parquet.read_table(file)
    picture = {"bytes": bytes(30 * 2**20), "path": None}
    name = "observation.images.eye"
    column = pyarrow.array([picture] * NUM_ROWS, table.schema.field(name).type)
    table = table.set_column(table.column_names.index(name), name, column)
    pyarrow.parquet.write_table(
        table, file, compression="zstd", use_dictionary=use_dictionary, write_statistics=False
    )
    del table, column
    assert file.stat().st_size < 50_000
    check_others("lerobot", path, [1])
    source = recipe("lerobot", path).open_source()
    _, odd, *_ = load_each(source, source.episodes())
    if use_dictionary:
        assert "claims" in str(odd) or "is neither PNG nor JPEG" in str(odd)
    else:
        assert "claims" in str(odd) and "at most" in str(odd)


def test_what_honest_files_hold_is_believed(tmp_path: Path) -> None:
    """Numbers that never change take no room, and statistics of many episodes are large."""
    table = pyarrow.table({"a": np.zeros(2**20, np.float32)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pyarrow.parquet.ParquetFile(tmp_path / "a.parquet") as file:
        assert len(read_groups(file, range(file.num_row_groups), ["a"], "a.parquet")) == 2**20
    path = FORMATS["lerobot2"].write(tmp_path, [make_rows(seed) for seed in range(NUM_EPISODES)])
    with (path / "meta" / "episodes_stats.jsonl").open("wb") as stats:
        stats.truncate(MAX_META_BYTES + 1)
    checksum = recipe("lerobot", path).open_source().provenance()["source_checksum"]
    assert len(checksum) == 64


@pytest.mark.parametrize("length", [0, -1, 1, NUM_ROWS + 1, 10**12])
@pytest.mark.parametrize("name", ["lerobot2", "lerobot3"])
def test_a_length_that_is_not_so(name: str, length: int, tmp_path: Path) -> None:
    episodes = [make_rows(seed) for seed in range(NUM_EPISODES)]
    episodes[2]["length"] = length
    check_others("lerobot", FORMATS[name].write(tmp_path, episodes), [2])


def test_marks_of_a_chunk_that_are_no_rows(tmp_path: Path) -> None:
    episodes = [make_rows(seed) for seed in range(NUM_EPISODES)]
    for place, marks in ((1, np.bool_(True)), (2, np.array(["a"] * NUM_ROWS))):
        episodes[place]["is_first"] = marks
    path = FORMATS["dreamer"].write(tmp_path, episodes)
    source = recipe("dreamer", path).open_source()
    results = list(load_each(source, list(source.episodes())))
    assert sum(isinstance(result, Episode) for result in results) == 2


def test_a_missing_value_in_a_table_for_all(tmp_path: Path) -> None:
    path = FORMATS["one_table"].write(tmp_path, [make_rows(s) for s in range(NUM_EPISODES)])
    lines = (path / "all.csv").read_text().splitlines()
    row = 1 + 2 * NUM_ROWS + 4
    cells = lines[row].split(",")
    lines[row] = ",".join([cells[0], "", *cells[2:]])
    (path / "all.csv").write_text("\n".join(lines) + "\n")
    check_others("videos", path, [2])


def change_rows(path: Path, change: Callable[[list[list[str]]], Any]) -> None:
    rows = [line.split(",") for line in (path / "all.csv").read_text().splitlines()]
    change(rows)
    (path / "all.csv").write_text("".join(",".join(row) + "\n" for row in rows))


def test_a_slip_in_a_table_for_all_costs_its_episode(tmp_path: Path) -> None:
    path = FORMATS["one_table"].write(tmp_path, [make_rows(s) for s in range(NUM_EPISODES)])
    change_rows(path, lambda rows: rows[1 + 2 * NUM_ROWS + 3].__setitem__(1, "n. a."))
    check_others("videos", path, [2])
    source = recipe("videos", path).open_source()
    assert "NaN" in str(list(load_each(source, source.episodes()))[2])


def test_columns_of_one_name_are_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = FORMATS["one_table"].write(tmp_path, [make_rows(s) for s in range(NUM_EPISODES)])

    def double(rows: list[list[str]]) -> None:
        for number, row in enumerate(rows):
            row += ["", "", "note", "note"] if number == 0 else ["1", "2", "3", "4"]

    change_rows(path, double)
    check_others("videos", path, [])
    assert "columns of the same name are not used: ['', 'note']" in caplog.text


def test_a_column_of_texts_in_lists_is_no_harm(tmp_path: Path) -> None:
    path = FORMATS["one_table"].write(tmp_path, [make_rows(s) for s in range(NUM_EPISODES)])
    table = pyarrow.csv.read_csv(path / "all.csv")
    ragged = pyarrow.array([["a"] * (row % 3) for row in range(len(table))])
    pyarrow.parquet.write_table(table.append_column("tags", ragged), path / "all.parquet")
    (path / "all.csv").unlink()
    check_others("videos", path, [])


def test_how_many_actions_there_are_is_the_recipe_s_to_say(tmp_path: Path) -> None:
    episodes = [make_rows(seed) for seed in range(NUM_EPISODES)]
    for rows in episodes:
        rows["action"] = np.arange(NUM_ROWS)
    episodes[1]["action"][2] = 70_000
    path = FORMATS["robomimic"].write(tmp_path, episodes)
    check_others("robomimic", path, [1])
    for num_actions, message in ((100_000, None), (1000, r"70,000 is no id in [0, 1,000)")):
        source = recipe("robomimic", path, source={"num_actions": num_actions}).open_source()
        assert source.describe().num_actions == num_actions
        result = list(load_each(source, source.episodes()))[1]
        assert isinstance(result, Episode) if message is None else message in str(result)
    with pytest.raises(RecipeError, match="num_actions is 2,000,000; expected 1 to"):
        recipe("robomimic", path, source={"num_actions": 2_000_000})


def test_a_path_that_looks_like_a_protocol_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("concat:x")
    folder.mkdir()
    FORMATS["videos"].write(folder, [make_rows(seed) for seed in range(NUM_EPISODES)])
    assert not survey(folder).problems


@pytest.mark.parametrize("rate", [1e300, 10**400, 1e-300, -5, 1e9, "20", None])
def test_a_rate_that_is_none_is_not_believed(rate: Any, tmp_path: Path) -> None:
    path = FORMATS["robomimic"].write(tmp_path, [make_rows(seed) for seed in range(NUM_EPISODES)])
    with h5py.File(path, "a") as file:
        file["data"].attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": rate}})
    found = survey(path)
    assert found.rate is None and not found.problems


def test_absurd_rates_of_a_recipe_are_refused(tmp_path: Path) -> None:
    path = FORMATS["robomimic"].write(tmp_path, [make_rows(seed) for seed in range(NUM_EPISODES)])
    with pytest.raises(RecipeError, match="rate is 1e\\+300; expected Hz > 0, at most 100,000"):
        recipe("robomimic", path, source={"rate": 1e300})
    with pytest.raises(RecipeError, match="does not divide"):
        recipe("robomimic", path, source={"rate": 100_000.0}, control_rate=1e-3).open_source()
    made = recipe("robomimic", path, source={"rate": 2000.0}, all_phases=True)
    with pytest.raises(RecipeError, match="all_phases: 200 rows make one step"):
        prepare(made, tmp_path / "out")


def test_interrupting_is_no_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = FORMATS["robomimic"].write(tmp_path, [make_rows(seed) for seed in range(2)])
    source = recipe("robomimic", path).open_source()

    def interrupt(self: Any, ref: Any) -> Any:
        raise KeyboardInterrupt

    def no_memory(self: Any, ref: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(type(source), "read", no_memory)
    (result,) = load_each(source, source.episodes()[:1])
    assert (
        "demo_0 cannot be used: MemoryError at tokenwm/data/readers/recorded/recording.py:"
        in str(result)
    )
    monkeypatch.setattr(type(source), "read", interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(load_each(source, source.episodes()[:1]))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_random_damage(name: str) -> None:
    """A little of what tools/fuzz_readers.py does for as long as one likes."""
    place = Path(__file__).parents[4] / "tools" / "fuzz_readers.py"
    spec = importlib.util.spec_from_file_location("fuzz_readers", place)
    assert spec is not None and spec.loader is not None
    fuzz = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz)
    for number in range(1, 6):
        assert fuzz.one_round(name, 0, number, megabytes=2000) is None
