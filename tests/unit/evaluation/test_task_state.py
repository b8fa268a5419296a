"""Errors in the units of the task: quantities, moved starts, and a whole evaluation."""

import json
from pathlib import Path

import numpy as np
import pytest

import tokenwm
from tests.moving_square import make_model, save_model, write_squares
from tokenwm.cli import main as cli
from tokenwm.data.shards.manifest import Feature, Manifest
from tokenwm.evaluation.evaluate import evaluate
from tokenwm.evaluation.measure import EvaluationConfig
from tokenwm.evaluation.report.headline import headline
from tokenwm.evaluation.results import Evaluation
from tokenwm.evaluation.task_state import (
    KINDS,
    median_curve,
    quantities_of,
    summarize_task_state,
)

NAMES = ("block_x", "block_y", "block_angle", "speed_x", "lid")
UNITS = ("px", "px", "rad", "px/s", "m")


def test_places_angles_and_numbers() -> None:
    place, angle, speed, lid = quantities_of(NAMES, UNITS)
    assert (place.name, place.unit, place.dimensions) == ("block", "px", (0, 1))
    assert (angle.name, angle.unit, angle.dimensions) == ("block_angle", "deg", (2,))
    assert (speed.name, lid.name) == ("speed_x", "lid")  # no speed_y: no place
    guess = np.array([[3.0, 4.0, 0.1, -2.0, 1.0]])
    truth = np.array([[0.0, 0.0, 2 * np.pi - 0.1, 1.0, 1.5]])
    assert place.error(guess, truth) == 5.0
    np.testing.assert_allclose(angle.error(guess, truth), np.rad2deg(0.2))  # not 349 degrees
    assert (speed.error(guess, truth), lid.error(guess, truth)) == (3.0, 0.5)


def test_degrees_wrap_too() -> None:
    (angle,) = quantities_of(("turn",), ("deg",))
    np.testing.assert_allclose(angle.error(np.array([[359.0]]), np.array([[2.0]])), 3.0)


def manifest() -> Manifest:
    feature = Feature(
        kind="continuous",
        shape=(5,),
        dtype="float32",
        units=", ".join(UNITS),
        names=NAMES,
    )
    statistics = {"mean": [0.0] * 5, "std": [30.0, 40.0, 1.0, 1.0, 1.0]}
    return Manifest(
        kind="frames",
        name="a",
        control_rate=10.0,
        features={"task_state": feature},
        statistics={"task_state": statistics},
        shards=[],
        episodes=[],
    )


def tables(truth: np.ndarray, **off: float) -> dict[str, np.ndarray]:
    found = {"truth": truth}
    for kind in KINDS:
        guess = truth.copy()
        guess[..., 0] += off.get(kind, 0.0)
        found[kind] = guess
    found["persistence"] = np.repeat(truth[:, :1] * 0.0, truth.shape[1], axis=1)
    return found


def test_only_starts_in_which_the_object_moves_count() -> None:
    """By a tenth of its deviation of 50 px, or by 15 degrees; what is no block does not count."""
    truth = np.zeros((6, 2, 5))
    truth[0, :, 0] = 100.0  # moves at once
    truth[1, 1, 1] = -5.1  # only at the last horizon
    truth[2, 0, 0] = 100.0  # and back
    truth[3, :, 2] = np.deg2rad(16.0)
    truth[4, :, 0] = 4.9
    truth[5, :, 3:] = 1000.0  # something else moves
    found = summarize_task_state(
        [manifest()] * 6, tables(truth, model=2.0, floor=1.0), ["a", "b", "a", "b", "a", "a"]
    )
    assert found is not None
    assert found.moved_beyond == {"block": 5.0, "block_angle": 15.0}
    assert (found.num_moved, found.num_moved_episodes) == (3, 2)
    np.testing.assert_allclose(found.median["block"]["model"].mean, [2.0, 2.0])
    np.testing.assert_allclose(found.median["block"]["persistence"].mean, [0.0, 5.1])
    np.testing.assert_allclose(found.mean["block"]["persistence"].mean, [50.0, (100 + 2.55) / 2])
    np.testing.assert_allclose(found.mean["block"]["floor"].mean, [1.0, 1.0])
    # The claim is about all starts, so it costs to let an object move that does not: in a 98, 98,
    # 2.9, -2 px and 98, -2, 2.9, -2 px, in b -2, -2 px and 3.1, -2 px.
    np.testing.assert_allclose(found.gain.mean, [(49.225 - 2) / 2, (24.225 + 0.55) / 2])
    assert found.units == {"block": "px", "block_angle": "deg", "speed_x": "px/s", "lid": "m"}


def test_nothing_moves() -> None:
    found = summarize_task_state([manifest()] * 2, tables(np.zeros((2, 3, 5))), ["a", "b"])
    assert found is not None
    assert found.num_moved == 0 and found.median == {} and (found.gain.mean == 0).all()
    assert summarize_task_state([manifest()], {}, ["a"]) is None


def test_the_interval_of_a_median_is_over_episodes() -> None:
    """Rows of one episode are alike: the interval is that of few episodes, not of many rows."""
    generator = np.random.default_rng(0)
    of_episode = generator.normal(size=(8, 1))
    values = np.repeat(of_episode, 50, axis=0) + 1e-3 * generator.normal(size=(400, 1))
    groups = list(np.arange(400).reshape(8, 50))
    curve = median_curve(values, groups)
    ordered = np.sort(of_episode[:, 0])
    assert curve.low[0] < ordered[2] and curve.high[0] > ordered[5]
    assert curve.low[0] <= curve.mean[0] <= curve.high[0]
    assert np.isnan(median_curve(values, groups[:1]).low).all()


CONFIG = EvaluationConfig(num_context_frames=3, imagination_horizon=4, num_starts=2, num_examples=0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Model and data."""
    root = tmp_path_factory.mktemp("run")
    write_squares(root / "data", {"train": (40,), "test": (14, 12)}, task_state=True)
    return save_model(root / "model", make_model()), root / "data"


def test_an_evaluation_says_where_the_object_was_imagined(folders: tuple[Path, Path]) -> None:
    model, data = folders
    evaluation = evaluate(tokenwm.load(model), data, CONFIG)
    errors = evaluation.task_state
    assert errors is not None and errors.num_moved > 0
    assert errors.units == {"square": "px", "square_angle": "deg"}
    np.testing.assert_allclose(errors.moved_beyond["square"], 0.1 * np.hypot(7, 7))
    persistence = errors.mean["square"]["persistence"].mean
    assert (np.diff(persistence) > 0).all()  # the square moves away from where it was
    for kind in KINDS:
        assert np.isfinite(errors.median["square"][kind].mean).all()
    again = Evaluation.from_dict(json.loads(json.dumps(evaluation.to_dict())))
    assert again.to_dict() == evaluation.to_dict()
    assert "The object (square): median error" in headline(evaluation)[0]
    before = {k: v for k, v in evaluation.to_dict().items() if k != "task_state"}
    older = Evaluation.from_dict({**before, "metrics_version": 2})
    assert older.task_state is None and headline(older) != headline(evaluation)


def test_a_second_evaluation_does_nothing(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also after the first has put a readout beside the model."""
    model, data = folders
    argv = ["evaluate", str(model), "--data", str(data), "--out", str(tmp_path / "report")]
    argv += ["--context", "3", "--horizon", "3", "--starts", "1", "--examples", "0"]
    assert cli.main(argv) == 0
    assert "The object (square)" in capsys.readouterr().out
    assert (model / "heads" / "readout").is_dir()
    assert (tmp_path / "report" / "plots" / "task_state_square.png").is_file()
    assert cli.main(argv) == 0
    assert "made before of the same data and options" in " ".join(capsys.readouterr().out.split())


def test_angles_about_three_axes_are_no_place() -> None:
    """Each wraps: read as a little less than a full turn, a little below zero is right."""
    names = ("tilt_x", "tilt_y", "tilt_z")
    found = quantities_of(names, ("rad",) * 3)
    assert [quantity.name for quantity in found] == list(names)
    off = found[0].error(np.array([2 * np.pi - 0.1, 0.0, 0.0]), np.array([-0.1, 0.0, 0.0]))
    np.testing.assert_allclose(off, 0.0, atol=1e-9)
