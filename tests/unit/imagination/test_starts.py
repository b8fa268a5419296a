"""Recorded starts: contexts with what was done and seen from there on, in one call."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tokenwm
from tests.moving_square import make_model, write_squares
from tokenwm.errors import TokenwmError

LENGTHS = {"train": (9,), "test": (14, 20, 11, 6)}


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, Any]]:
    folder = tmp_path_factory.mktemp("squares")
    return folder, write_squares(folder, LENGTHS)


def test_they_are_recorded_steps_and_what_followed(
    squares: tuple[Path, Mapping[str, Any]],
) -> None:
    folder, written = squares
    starts = tokenwm.starts(folder, split="test", count=5, context=4, horizon=6)
    assert len(starts) == 5
    assert set(starts.keys) == {"test_0", "test_1", "test_2"}  # the last is too short
    for row, (key, first) in enumerate(zip(starts.keys, starts.first_steps, strict=True)):
        episode = written[key]
        frames = episode["frames.top"][:, None]
        np.testing.assert_array_equal(starts.frames[row], frames[first : first + 4])
        np.testing.assert_array_equal(starts.future_frames[row], frames[first + 4 : first + 10])
        # The first of them is chosen at the last observed step.
        expected = episode["action"][first + 3 : first + 9]
        np.testing.assert_array_equal(starts.future_actions[row], expected)
    model = make_model()
    context = starts.context(model)
    key, first = starts.keys[0], starts.first_steps[0]
    alone = model.context(
        written[key]["frames.top"][None, first : first + 4, None],
        written[key]["action"][None, first : first + 3],
        written[key]["state"][None, first : first + 4],
    )
    assert torch.equal(context.tokens.frame[:1], alone.tokens.frame)
    assert context.anchor is not None and torch.equal(context.anchor, starts.frames[:, -1])
    rollout = model.imagine(context, starts.future_actions)
    assert rollout.frame_tokens.shape == (5, 6, 16)
    assert repr(starts).startswith("RecordedStarts(5 row(s) of 4 step(s) and 6 that followed, from")
    assert len(repr(starts)) < 250
    assert starts.context(make_model(has_state=False)).state is None


def test_only_the_context_is_read_if_nothing_else_is_wanted(
    squares: tuple[Path, Mapping[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    starts = tokenwm.starts(squares[0], "train", 3, 4, horizon=0)
    assert starts.future_actions.shape == (3, 0, 2) and starts.future_frames.shape[1] == 0
    assert len(set(starts.first_steps)) == 3 and not caplog.text
    all_there_are = tokenwm.starts(squares[0], "train", 64, 4, horizon=2)
    assert len(all_there_are) == 4
    assert "has 4 places to start from, not 64" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count=0, context=4, horizon=20: use whole numbers"),
        ({"context": 1.5}, "context=1.5"),
        ({"horizon": -1}, "horizon=-1"),
        ({"split": "dev"}, "'dev' is not one of"),
        ({"horizon": 40}, "the longest has 20; use a shorter context or horizon"),
    ],
)
def test_what_is_not_there_is_said(
    squares: tuple[Path, Mapping[str, Any]], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TokenwmError, match=message):
        tokenwm.starts(squares[0], **options)


def test_data_of_another_kind_are_refused(tmp_path: Path) -> None:
    write_squares(tmp_path, {"test": (8,)}, cameras=("wrist",))
    starts = tokenwm.starts(tmp_path, count=1, horizon=2)
    with pytest.raises(TokenwmError, match="has the cameras wrist"):
        starts.context(make_model())


def test_token_shards_hold_no_starts(token_shards: Path) -> None:
    with pytest.raises(TokenwmError, match="holds tokens shards; give the folder of frames"):
        tokenwm.starts(token_shards)
