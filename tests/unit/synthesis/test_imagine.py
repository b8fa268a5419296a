from pathlib import Path

import numpy as np
import pytest
import torch

from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import ShardError, TokenwmError
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.synthesis.imagine import (
    ImagineConfig,
    choose_actions,
    imagine_episode,
    random_actions,
    write_imagined,
)

CONTEXT, HORIZON = 3, 5
CONFIG = ImagineConfig(num_context_frames=CONTEXT, imagination_horizon=HORIZON)


def config(**changes: object) -> ImagineConfig:
    values = {"num_context_frames": CONTEXT, "imagination_horizon": HORIZON, **changes}
    return ImagineConfig(**values)  # type: ignore[arg-type]


@pytest.fixture
def reader(squares: Path) -> ShardReader:
    return ShardReader(squares)


def test_own_actions_lead_from_the_context_into_the_recorded_future(
    model: TokenWorldModel, reader: ShardReader
) -> None:
    imagined = imagine_episode(model, reader, config(key="test_1", first_step=4))
    recorded = reader.arrays("test_1")
    np.testing.assert_array_equal(imagined.context_frames[:, 0], recorded["frames.top"][4:7])
    assert imagined.truth_frames is not None
    np.testing.assert_array_equal(imagined.truth_frames[:, 0], recorded["frames.top"][7:12])
    np.testing.assert_array_equal(
        imagined.rollout.actions[0], recorded["action"][6:11]
    )  # first acts on step 6
    context = model.context(
        recorded["frames.top"][None, 4:7, None],
        recorded["action"][None, 4:6],
        recorded["state"][None, 4:7],
    )
    rollout = model.imagine(context, recorded["action"][None, 6:11])
    np.testing.assert_array_equal(imagined.rollout.frame_tokens, rollout.frame_tokens.numpy())
    np.testing.assert_array_equal(imagined.frames, model.decode_frames(rollout).numpy())
    state = imagined.rollout.state
    assert state is not None and state.shape == (1, HORIZON, 2)


def test_the_first_held_out_episode_is_the_default(
    model: TokenWorldModel, reader: ShardReader
) -> None:
    assert imagine_episode(model, reader, CONFIG).key == "test_0"


def test_samples_differ_and_the_first_stays_the_same(
    model: TokenWorldModel, reader: ShardReader
) -> None:
    one = imagine_episode(model, reader, CONFIG)
    four = imagine_episode(model, reader, config(num_samples=4))
    np.testing.assert_array_equal(four.rollout.frame_tokens[0], one.rollout.frame_tokens[0])
    assert len({tokens.numpy().tobytes() for tokens in four.rollout.frame_tokens}) == 4
    greedy = config(num_samples=2, sampling=SamplingConfig(temperature=0.0))
    first, second = imagine_episode(model, reader, greedy).rollout.frame_tokens
    np.testing.assert_array_equal(first, second)


def test_actions_of_another_episode_at_the_same_steps(
    model: TokenWorldModel, reader: ShardReader
) -> None:
    imagined = imagine_episode(model, reader, config(first_step=2, actions="test_1"))
    assert imagined.key == "test_0" and imagined.truth_frames is None
    np.testing.assert_array_equal(
        imagined.rollout.actions[0], reader.arrays("test_1")["action"][4:9]
    )


def test_random_actions_stay_in_the_range_of_the_training_data(model: TokenWorldModel) -> None:
    actions = random_actions(model, 2000, seed=3)
    assert actions.shape == (2000, 2)
    assert -3.5 <= actions.min() < -3.4 and 3.4 < actions.max() <= 3.5
    np.testing.assert_array_equal(actions, random_actions(model, 2000, seed=3))
    assert (actions != random_actions(model, 2000, seed=4)).any()


def test_random_actions_may_go_on_behind_the_end_of_the_episode(
    model: TokenWorldModel, reader: ShardReader
) -> None:
    imagined = imagine_episode(model, reader, config(key="test_3", first_step=3, actions="random"))
    assert imagined.frames.shape[:2] == (1, HORIZON)


def test_actions_from_a_file(model: TokenWorldModel, reader: ShardReader, tmp_path: Path) -> None:
    actions = np.random.default_rng(0).uniform(-3, 3, (HORIZON + 2, 2))
    np.save(tmp_path / "actions.npy", actions)
    chosen = choose_actions(model, reader, "test_0", config(actions=str(tmp_path / "actions.npy")))
    np.testing.assert_array_equal(chosen, actions[:HORIZON])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((HORIZON, 3)), r"float64\(5, 3\); expected numbers of shape \(5 or more, 2\)"),
        (np.zeros((HORIZON - 1, 2)), r"float64\(4, 2\); expected"),
        (np.zeros(HORIZON), r"float64\(5,\); expected"),
        (np.full((HORIZON, 2), np.nan), "not finite"),
        (np.full((HORIZON, 2), "x"), "expected numbers"),
        (np.array([[{}, {}]] * HORIZON), "cannot be read"),  # pickled, so never loaded
        (None, "cannot be read"),
    ],
)
def test_bad_files_of_actions(
    model: TokenWorldModel,
    reader: ShardReader,
    tmp_path: Path,
    values: np.ndarray | None,
    message: str,
) -> None:
    path = tmp_path / "actions.npy"
    if values is not None:
        np.save(path, values)
    with pytest.raises(TokenwmError, match=message):
        choose_actions(model, reader, "test_0", config(actions=str(path)))


def test_places_that_are_not_there(model: TokenWorldModel, reader: ShardReader) -> None:
    with pytest.raises(TokenwmError, match="test_0 has 14 steps; a context of 3 from step 12"):
        imagine_episode(model, reader, config(first_step=12))
    with pytest.raises(TokenwmError, match="test_0 has 14 steps; from step 11 .* has 2 action"):
        imagine_episode(model, reader, config(first_step=9))
    imagine_episode(model, reader, config(first_step=6))  # just fits
    with pytest.raises(ShardError, match="no episode 'test_9' among 6; nearest: test_"):
        imagine_episode(model, reader, config(key="test_9"))
    with pytest.raises(ShardError, match="no episode 'rnadom'"):
        imagine_episode(model, reader, config(actions="rnadom"))
    with pytest.raises(TokenwmError, match="test_3 has 6 steps; .* has 3 action"):
        imagine_episode(model, reader, config(actions="test_3"))


@pytest.mark.parametrize(
    "change", [{"num_samples": 0}, {"imagination_horizon": 0}, {"first_step": -1}]
)
def test_impossible_settings(change: dict[str, int]) -> None:
    with pytest.raises(TokenwmError, match="use at least"):
        ImagineConfig(**change)  # type: ignore[arg-type]


def test_files_hold_everything(model: TokenWorldModel, reader: ShardReader, tmp_path: Path) -> None:
    imagined = imagine_episode(model, reader, config(num_samples=2, first_step=1))
    files = write_imagined(tmp_path / "new" / "folder", imagined, 10.0, "own")
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {
        "test_0_0001_own.gif",
        "test_0_0001_own.mp4",
        "test_0_0001_own.npz",
    }
    with np.load(files.npz, allow_pickle=False) as stored:
        assert str(stored["key"]) == "test_0" and int(stored["first_step"]) == 1
        np.testing.assert_array_equal(stored["frames"], imagined.frames)
        np.testing.assert_array_equal(stored["action"], imagined.rollout.actions[0])
        shapes = {name: stored[name].shape for name in stored.files}
    assert shapes["frame_tokens"] == (2, HORIZON, 16)
    assert shapes["truth_frames"] == (HORIZON, 1, 32, 32, 3)
    assert shapes["reward"] == shapes["termination_probability"] == (2, HORIZON)
    assert torch.isfinite(imagined.rollout.frame_nll).all()
    assert (imagined.rollout.frame_entropy > 0).all()
