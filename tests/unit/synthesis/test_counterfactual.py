"""What would have been: changes in words, pairs of futures with the same luck, and their files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.moving_square import make_model, save_model, write_squares
from tokenwm.cli.main import main
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import TokenwmError
from tokenwm.heads.readout import readout_for
from tokenwm.imagination.token_world_model import TokenWorldModel, load
from tokenwm.synthesis.changes import changed_actions
from tokenwm.synthesis.counterfactual import (
    Counterfactual,
    CounterfactualConfig,
    Quantity,
    imagine_instead,
)
from tokenwm.synthesis.imagine import ImagineConfig

OWN = np.array([[1.0, 2.0], [3.0, -1.0]], dtype=np.float32)


@pytest.fixture
def reader(squares: Path) -> ShardReader:
    return ShardReader(squares)


def instead(model: TokenWorldModel, reader: ShardReader, **changes: object) -> Counterfactual:
    imagine = ImagineConfig(
        key="test_1", first_step=4, num_context_frames=3, imagination_horizon=5, num_samples=3
    )
    values = {"imagine": imagine, "changes": ("0+=2",), **changes}
    return imagine_instead(model, reader, CounterfactualConfig(**values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["0=0.5"], [[0.5, 2.0], [0.5, -1.0]]),
        (["1+=0.25"], [[1.0, 2.25], [3.0, -0.75]]),
        (["1-=10%"], [[1.0, 1.3], [3.0, -1.7]]),  # the range is 7, from -3.5 to 3.5
        (["0=1e0", "0-=1", "1=-2"], [[0.0, -2.0], [0.0, -2.0]]),
    ],
    ids=["number", "more", "percent", "several"],
)
def test_changes_of_dimensions(
    model: TokenWorldModel, reader: ShardReader, changes: list[str], expected: list[list[float]]
) -> None:
    changed = changed_actions(model, reader, OWN, changes)
    np.testing.assert_allclose(changed, expected, rtol=1e-6)
    assert changed.dtype == np.float32 and OWN[0, 0] == 1.0


def test_names_and_chunks_of_actions(
    model: TokenWorldModel, reader: ShardReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two actions of one dimension in a step: both are changed by the name of the one."""
    monkeypatch.setattr(type(model), "actions_per_step", 2)
    action = reader.manifest.features["action"]
    object.__setattr__(action, "names", ("grip@0", "grip@1"))
    changed = changed_actions(model, reader, OWN, ["grip+=1"])
    np.testing.assert_array_equal(changed, OWN + 1)
    np.testing.assert_array_equal(changed_actions(model, reader, OWN, ["0=4"]), OWN * 0 + 4)
    with pytest.raises(TokenwmError, match="no dimension '1'; it has grip or a number below 1"):
        changed_actions(model, reader, OWN, ["1=4"])


def test_what_was_done_elsewhere(
    model: TokenWorldModel, reader: ShardReader, tmp_path: Path
) -> None:
    taken = changed_actions(model, reader, OWN, ["test_0:11"])  # of 14 steps, 13 have an action
    np.testing.assert_array_equal(taken, reader.arrays("test_0")["action"][11:13])
    np.save(tmp_path / "a.npy", OWN[::-1])
    taken = changed_actions(model, reader, OWN, [str(tmp_path / "a.npy")])
    np.testing.assert_array_equal(taken, OWN[::-1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["0+10%"], "is no other action; use NAME=VALUE"),
        (["0=much"], "is no other action"),
        (["0=nan"], "is no other action"),
        (["2=1"], "no dimension '2'; it has 0, 1"),
        (["0=5%"], r"say by how much; use 0\+=5% or 0-=5%"),
        (["test_0:12"], r"from step 12 on the episode has 1 action\(s\), 2 are needed"),
        (["test_0:99"], r"has 0 action\(s\)"),
        (["test_7:1"], "no episode 'test_7'"),
        (["0=1", "test_0:1"], "the last two alone"),
    ],
)
def test_changes_that_are_none(
    model: TokenWorldModel, reader: ShardReader, changes: list[str], message: str
) -> None:
    with pytest.raises(TokenwmError, match=message):
        changed_actions(model, reader, OWN, changes)


def test_both_have_the_same_luck_and_differ_by_the_actions_alone(
    model: TokenWorldModel, reader: ShardReader
) -> None:
    same = instead(model, reader, changes=("0+=0",))
    np.testing.assert_array_equal(same.own_frames, same.instead_frames)
    assert all((quantity.difference == 0).all() for quantity in same.quantities.values())
    assert len({tokens.numpy().tobytes() for tokens in same.own.frame_tokens}) == 3
    made = instead(model, reader, num_changed=2)
    recorded = reader.arrays("test_1")
    np.testing.assert_array_equal(made.own.actions[0], recorded["action"][6:11])
    difference = (made.instead.actions - made.own.actions)[1]
    np.testing.assert_array_equal(difference, [[2, 0], [2, 0], [0, 0], [0, 0], [0, 0]])
    assert made.step == 6 and (made.own_frames != made.instead_frames).any()
    np.testing.assert_array_equal(made.truth_frames[:, 0], recorded["frames.top"][7:12])
    x, reward = made.quantities["state.x"], made.quantities["reward"]
    assert x.unit == "px" and x.truth is not None and reward.truth is not None
    np.testing.assert_array_equal(x.truth, recorded["state"][7:12, 0])
    np.testing.assert_array_equal(reward.truth, recorded["reward"][6:11])
    assert made.own.state is not None
    np.testing.assert_array_equal(x.own, made.own.state[..., 0].double())
    far = recorded["action"][6:8, 0] + 2 > 3.5
    assert made.beyond_data == far.mean()


def test_how_sure_a_difference_is() -> None:
    own = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    other = np.array([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0], [-2.0, 1.0]])
    found = Quantity(name="x", own=own, instead=other)
    np.testing.assert_allclose(found.mean, [1.0, 0.0])
    np.testing.assert_allclose(found.same_sign, [0.75, 0.0])
    np.testing.assert_allclose(found.std, [np.std([1, 2, 3, -2], ddof=1), 0.0])
    half = 3.1824 * found.std[0] / 2.0  # Student's t of three degrees of freedom
    np.testing.assert_allclose(found.low[0], 1.0 - half, rtol=1e-4)
    np.testing.assert_allclose(found.high[0], 1.0 + half, rtol=1e-4)
    angle = Quantity(name="a", turn=360.0, own=np.array([[350.0]]), instead=np.array([[20.0]]))
    np.testing.assert_allclose(angle.difference, [[30.0]])
    assert np.isnan(angle.low).all() and np.isnan(angle.std).all()
    around = Quantity(name="a", turn=360.0, own=np.array([[350.0], [30.0]]), instead=own[:2, :1])
    np.testing.assert_allclose(around.mean_own, [10.0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_changed": 6}, "num_changed=6; use 1 to 5"),
        ({"num_changed": 0}, "num_changed=0"),
        ({"changes": ()}, "no change is given"),
        ({"imagine": ImagineConfig(actions="random")}, "leave `actions` out"),
    ],
    ids=["beyond", "none", "no-change", "random"],
)
def test_impossible_settings(
    model: TokenWorldModel, reader: ShardReader, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(TokenwmError, match=message):
        instead(model, reader, **changes)


def test_the_verb_writes_film_strip_arrays_and_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, data, out = tmp_path / "model", tmp_path / "squares", tmp_path / "out"
    written = write_squares(data, {"train": (20,), "test": (14,)}, task_state=True)
    save_model(folder, make_model())
    monkeypatch.setattr("tokenwm.heads.readout.MOST_STEPS", 2)
    assert readout_for(load(folder), ShardReader(data)) is not None
    argv = ["imagine", str(folder), "--data", str(data), "--out", str(out), "--context", "2"]
    argv += ["--horizon", "4", "--instead", "0+=5", "1-=10%", "--samples", "2"]
    assert main([*argv, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    stem = "test_0_0000_instead_0-plus-5-1-minus-10-percent"
    names = {f"{stem}.{kind}" for kind in ("gif", "mp4", "png", "npz", "json")}
    assert {path.name for path in out.iterdir()} == names | {".imagine.json"}
    numbers = json.loads((out / f"{stem}.json").read_text())
    assert {**numbers, "files": result["files"]} == result
    assert numbers["step"] == 1 and numbers["seconds"] == [0.1, 0.2, 0.3, 0.4]
    assert numbers["beyond_data"] == 1.0  # at least 2, with 3.5 as the end
    arrays = dict(np.load(out / f"{stem}.npz"))
    assert arrays["own.frames"].shape == arrays["instead.frames"].shape == (2, 4, 1, 32, 32, 3)
    np.testing.assert_allclose(
        arrays["instead.action"] - arrays["own.action"], [[5.0, -0.7]] * 4, rtol=1e-5
    )
    angle = numbers["quantities"]["square_angle"]  # read off the frames
    np.testing.assert_allclose(angle["truth"], written["test_0"]["task_state"][2:6, 2], rtol=1e-6)
    read = arrays["instead.square_angle"] - arrays["own.square_angle"]
    np.testing.assert_allclose(
        angle["mean"], ((read + np.pi) % (2 * np.pi) - np.pi).mean(0), atol=1e-6
    )
    with Image.open(out / f"{stem}.png") as strip:
        pixels = np.asarray(strip.convert("RGB"))
    observed = written["test_0"]["frames.top"][1].repeat(4, axis=0).repeat(4, axis=1)
    row = pixels[27 : 27 + len(observed)]  # below the headings stands the truth
    assert any(np.array_equal(row[:, x : x + 128], observed) for x in range(200))
    assert main([*argv, "--instead", "0=x"]) == 1
    assert "is no other action" in capsys.readouterr().err
    assert main([*argv, "--samples", "0"]) == 1
    assert "num_samples=0; use at least 1" in capsys.readouterr().err


def test_the_models_doubt_is_told_where_it_has_one(
    model: TokenWorldModel, reader: ShardReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_actions(features: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return actions[:, 0]

    monkeypatch.setattr(model, "doubt", of_actions)
    found = instead(model, reader).quantities["doubt"]
    np.testing.assert_allclose(found.difference, 2.0)
    assert found.truth is None
