"""Heads: one trainer, one folder, one line to use; and the readout that is built on them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn.functional import mse_loss

import tokenwm
from tests.moving_square import make_model, save_model, write_squares
from tokenwm.checkpoint import file_hash
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import CheckpointError, ShapeError, TokenwmError
from tokenwm.heads.folder import HEAD, WEIGHTS, load_head, save_head
from tokenwm.heads.head import Head, HeadConfig, Meaning
from tokenwm.heads.readout import Readout, TaskStateCode, fit_readout, readout_for
from tokenwm.heads.training import fit_head
from tokenwm.imagination.token_world_model import TokenWorldModel

CODE = TaskStateCode(
    names=("lid_x", "lid_angle", "arm", "turn"),
    units=("m", "rad", "", "deg"),
    mean=(1.0, 3.0, -2.0, 0.0),
    std=(2.0, 1.0, 0.5, 90.0),
)
values = st.floats(-20, 20, width=32)


@settings(max_examples=30)
@given(st.lists(st.tuples(values, values, values, values), min_size=1, max_size=4))
def test_what_is_encoded_is_decoded(rows: list[tuple[float, float, float, float]]) -> None:
    truth = torch.tensor(rows)
    encoded = CODE.encode(truth)
    assert CODE.outputs == (
        "lid_x",
        "lid_angle.sin",
        "lid_angle.cos",
        "arm",
        "turn.sin",
        "turn.cos",
    )
    assert encoded.shape == (len(rows), len(CODE.outputs))
    decoded = CODE.decode(encoded)
    np.testing.assert_allclose(decoded[:, [0, 2]], truth[:, [0, 2]], atol=1e-4)
    for column, turn in ((1, 2 * np.pi), (3, 360.0)):
        off = (decoded[:, column] - truth[:, column]).numpy() / turn
        np.testing.assert_allclose(off, np.round(off), atol=1e-5)
        assert (decoded[:, column] >= 0).all() and (decoded[:, column] <= turn).all()


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    """Squares whose place, and an angle that follows from it, are hidden truth."""
    folder = tmp_path_factory.mktemp("truth")
    write_squares(folder, {"train": (40, 40), "val": (16,), "test": (14, 20)}, task_state=True)
    return ShardReader(folder)


@pytest.fixture
def model(tmp_path: Path) -> TokenWorldModel:
    return tokenwm.load(save_model(tmp_path / "model", make_model()))


def test_a_readout_learns_where_the_square_is(truth: ShardReader) -> None:
    readout, about = fit_readout(truth, num_steps=120)
    assert about["frames"] == 80 and about["steps"] == 120
    key = truth.keys("train")[0]
    read = readout.read(torch.from_numpy(truth.frames(key)))
    true = truth.arrays(key, ["task_state"])["task_state"]
    assert np.abs(read - true)[:, :2].mean() < 1.5  # px; of a guess of the mean 6
    off = np.abs((read - true)[:, 2] + np.pi) % (2 * np.pi) - np.pi
    assert np.abs(off).mean() < 0.5  # rad; of a guess 1.6


def test_a_readout_is_kept_beside_its_model(model: TokenWorldModel, truth: ShardReader) -> None:
    first = readout_for(model, truth)
    assert first is not None and model.folder is not None
    folder = model.folder / "heads" / "readout"
    assert sorted(path.name for path in folder.iterdir()) == [HEAD, WEIGHTS]
    written = (folder / WEIGHTS).stat().st_mtime_ns
    frames = torch.from_numpy(truth.frames(truth.keys("test")[0]))
    again = readout_for(model, truth)
    assert again is not None
    assert (folder / WEIGHTS).stat().st_mtime_ns == written  # read, not trained again
    np.testing.assert_array_equal(again.read(frames), first.read(frames))
    np.testing.assert_array_equal(
        Readout(tokenwm.load_head(model, "readout")).read(frames), first.read(frames)
    )


def test_a_readout_of_other_data_is_trained_anew_if_it_can_be(
    model: TokenWorldModel, truth: ShardReader, tmp_path: Path
) -> None:
    assert readout_for(model, truth) is not None and model.folder is not None
    about = model.folder / "heads" / "readout" / HEAD
    first = json.loads(about.read_text())["provenance"]
    write_squares(tmp_path / "day", {"test": (14,)}, task_state=True)
    assert readout_for(model, ShardReader(tmp_path / "day")) is not None
    assert json.loads(about.read_text())["provenance"] == first
    write_squares(tmp_path / "more", {"train": (14,), "test": (14,)}, task_state=True)
    assert readout_for(model, ShardReader(tmp_path / "more")) is not None
    assert json.loads(about.read_text())["provenance"]["frames"] == 14


def test_data_without_hidden_truth_has_no_readout(
    model: TokenWorldModel, squares: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert readout_for(model, ShardReader(squares)) is None
    write_squares(tmp_path / "day", {"test": (14,)}, task_state=True)
    assert readout_for(model, ShardReader(tmp_path / "day")) is None
    assert "has no training episodes, so no readout can be trained" in caplog.text


OLD_CONFIG = ("inputs", "input_shape", "num_outputs", "hidden")


def feature_head(width: int = 5) -> Head:
    config = HeadConfig(inputs="features", input_shape=(width,), num_outputs=2, hidden=16)
    return Head(config, Meaning(names=("doubt", "value"), values={"horizon": 5}))


def test_a_head_on_features_learns_by_any_loss() -> None:
    torch.manual_seed(0)
    head, inputs = feature_head(16), torch.randn(64, 16)
    targets = torch.stack([inputs[:, 0], inputs[:, 1] - inputs[:, 2]], dim=1)
    seen: list[int] = []
    batches = ((inputs, targets) for _ in range(200))
    loss = fit_head(
        head,
        batches,
        mse_loss,
        num_steps=150,
        learning_rate=1e-2,
        progress=lambda done, value: seen.append(done),
    )
    assert loss < 0.2 and seen == list(range(1, 151)) and not head.training
    with pytest.raises(TokenwmError, match="trained for 3 of 10 steps"):
        fit_head(head, [(inputs, targets)] * 3, mse_loss, num_steps=10)
    with pytest.raises(TokenwmError, match="ended at a loss of nan"):
        fit_head(head, [(inputs, targets * torch.nan)] * 3, mse_loss, num_steps=3)


def test_heads_of_models_are_saved_and_loaded(model: TokenWorldModel) -> None:
    head = feature_head()
    save_head(model, "doubt", head, {"episodes": 3})
    loaded = load_head(model, "doubt")
    assert loaded.meaning == head.meaning and loaded.config == head.config
    inputs = torch.randn(4, 5)
    torch.testing.assert_close(loaded(inputs), head.eval()(inputs), rtol=0, atol=0)
    with pytest.raises(ShapeError, match=r"inputs of a head are \(4, 6\); expected \(B, 5\)"):
        loaded(torch.randn(4, 6))


def test_a_head_of_before_there_were_maps_is_loaded(model: TokenWorldModel) -> None:
    head = feature_head()
    folder = save_head(model, "doubt", head, {})
    config = json.loads((folder / HEAD).read_text())["config"]
    change(folder, config={name: config[name] for name in OLD_CONFIG})
    inputs = torch.randn(4, 5)
    torch.testing.assert_close(load_head(model, "doubt")(inputs), head.eval()(inputs))


@pytest.mark.parametrize("inputs", ["features", "frames"])
def test_members_of_a_head_are_networks_of_their_own(inputs: str) -> None:
    """Side by side; a change of what one sees of a map changes its own outputs as well."""
    shape = (22,) if inputs == "features" else (1, 16, 16, 3)
    grid = (2, 1, 2, 2, 2) if inputs == "features" else ()
    config = HeadConfig(
        inputs=inputs,  # type: ignore[arg-type]
        input_shape=shape,
        num_outputs=6,
        hidden=8,
        depth=2,
        grid=grid,
        members=3,
    )
    head = Head(config, Meaning(names=())).eval()
    one, other = torch.rand(2, *shape), torch.rand(2, *shape)
    first = head(one).reshape(2, 3, 2)
    assert not torch.allclose(first[:, 0], first[:, 1])
    assert (head(other).reshape(2, 3, 2) != first).all()
    same = Head(replace(config, members=1, num_outputs=2), Meaning(names=())).eval()
    same.load_state_dict({k: v for k, v in head.state_dict().items() if "others" not in k})
    torch.testing.assert_close(same(one), first[:, 0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"members": 5}, "num_outputs is 2; expected a multiple of 5 members"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"grid": (2, 1, 2, 2, 1)}, r"grid is \[2, 1, 2, 2, 1\]; expected"),
        ({"depth": 99}, "depth is 99; expected 1 to 8"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_shapes_that_cannot_be_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenwmError, match=message):
        HeadConfig(inputs="features", input_shape=(5,), **{"num_outputs": 2, **values})


def test_a_head_of_another_model_is_refused(model: TokenWorldModel, tmp_path: Path) -> None:
    folder = save_head(model, "doubt", feature_head(), {})
    other = tokenwm.load(save_model(tmp_path / "other", make_model(seed=1)))
    assert other.folder is not None
    shutil.copytree(folder.parent, other.folder / "heads")
    with pytest.raises(CheckpointError, match="was made for the world model with weights"):
        load_head(other, "doubt")
    with pytest.raises(CheckpointError, match="no head 'value'"):
        load_head(model, "value")
    with pytest.raises(CheckpointError, match="not loaded from a folder"):
        load_head(make_model(), "doubt")
    with pytest.raises(TokenwmError, match="a head is called '../x'"):
        load_head(model, "../x")


def change(folder: Path, **values: object) -> None:
    about = json.loads((folder / HEAD).read_text())
    (folder / HEAD).write_text(json.dumps({**about, **values}))


def test_damaged_heads_are_refused(model: TokenWorldModel) -> None:
    folder = save_head(model, "doubt", feature_head(), {})
    whole = (folder / HEAD).read_text()
    for values, message in (
        ({"head_version": 9}, "head_version 9; this tokenwm reads 1"),
        ({"weights_sha256": "0"}, "changed or damaged"),
        ({"config": {"inputs": "frames"}}, "does not describe a head"),
        ({"config": {**json.loads(whole)["config"], "hidden": 10**9}}, "hidden is 1000000000"),
        ({"config": {**json.loads(whole)["config"], "hidden": 8}}, "does not describe a head"),
    ):
        change(folder, **values)
        with pytest.raises(CheckpointError, match=message):
            load_head(model, "doubt")
        (folder / HEAD).write_text(whole)
    weights = load_file(folder / WEIGHTS)
    weights["outputs.0.bias"][0] = torch.nan
    save_file(weights, folder / WEIGHTS)
    change(folder, weights_sha256=file_hash(folder / WEIGHTS))
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        load_head(model, "doubt")
    (folder / HEAD).write_text("[1]")
    with pytest.raises(CheckpointError, match="head_version None"):
        load_head(model, "doubt")


def test_another_head_is_no_readout(model: TokenWorldModel) -> None:
    with pytest.raises(TokenwmError, match="this head is no readout"):
        Readout(feature_head())
