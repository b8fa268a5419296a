"""Which column is what, where a recipe leaves it open."""

import logging
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenwm.data.episode import NAME_PATTERN
from tokenwm.data.readers.columns.columns import (
    AmbiguousColumnsError,
    Column,
    NoPlainColumnError,
    RecordedConfig,
    camera_names,
    concatenate,
    dimension_names,
    resolve,
)
from tokenwm.errors import RecipeError

PICTURES = Column(kind="pictures", dtype="video", shape=(48, 64, 3))
NUMBERS = Column(kind="numbers", dtype="float32", shape=(3,))
NUMBER = Column(kind="numbers", dtype="float32", shape=(1,))
OTHER = Column(kind="other", dtype="string")
BOOKKEEPING = dict.fromkeys(("timestamp", "frame_index", "episode_index", "index", "task_index"))


def find(*names: str, **options: Any) -> RecordedConfig:
    columns = {name: NUMBER for name in BOOKKEEPING}
    for name in names:
        columns[name.removeprefix("*").removeprefix("?")] = (
            PICTURES if name.startswith("*") else OTHER if name.startswith("?") else NUMBERS
        )
        if name.endswith("reward") or name.endswith("rewards"):
            columns[name] = NUMBER
    return resolve(RecordedConfig(path="x", **options), columns, "the source")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        # LeRobot, as it should be, with the columns that often stand beside
        (
            ["observation.state", "action", "next.reward", "next.done", "*observation.images.top"],
            ("action", "observation.state", "next.reward", {"top": "observation.images.top"}),
        ),
        (
            ["observation.state", "observation.effort", "observation.environment_state", "action"],
            ("action", "observation.state", None, {}),
        ),
        (["state", "actions", "*image"], ("actions", "state", None, {"image": "image"})),
        (["action", "action.delta", "*a"], ("action", None, None, {"a": "a"})),
        (["action.joints", "*a"], ("action.joints", None, None, {"a": "a"})),
        (["observation.joints", "action"], ("action", "observation.joints", None, {})),
        # HDF5: Minari, robomimic
        (
            ["observations", "actions", "rewards"],
            ("actions", "observations", "rewards", {}),
        ),
        (
            ["obs/proprio", "obs/object", "actions", "*obs/agentview_image"],
            ("actions", "obs/proprio", None, {"agentview_image": "obs/agentview_image"}),
        ),
        (["next.state", "action.state", "state", "action"], ("action", "state", None, {})),
        (["action", "*a", "?language", "?depth"], ("action", None, None, {"a": "a"})),
    ],
)
def test_what_is_unambiguous_is_taken_and_said(
    names: list[str], expected: tuple[Any, ...], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        config = find(*names)
    assert (config.action, config.state, config.reward, config.cameras) == expected
    (said,) = caplog.messages
    assert f"action: {expected[0]}" in said


def test_what_is_named_is_taken_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    names = ["a", "b", "action", "*image"]
    config = find(*names, action=("a", "b"), state=None, reward=None, cameras={"x": "image"})
    assert (config.action, config.state, config.cameras) == (("a", "b"), None, {"x": "image"})
    assert not caplog.messages


@pytest.mark.parametrize(
    ("names", "option", "candidates"),
    [
        (["action", "actions", "state"], "action", ("action", "actions")),
        (["action.left", "action.right", "state"], "action", ("action.left", "action.right")),
        (["obs/pos", "obs/quat", "action"], "state", ("obs/pos", "obs/quat")),
        (["state", "action", "next.reward", "reward"], "reward", ("next.reward", "reward")),
    ],
)
def test_what_is_ambiguous_lists_the_candidates(
    names: list[str], option: str, candidates: tuple[str, ...]
) -> None:
    with pytest.raises(AmbiguousColumnsError, match=", ".join(candidates)) as raised:
        find(*names)
    assert (raised.value.option, raised.value.candidates) == (option, candidates)
    assert f"set source.{option}" in str(raised.value)


def test_what_is_not_plain_lists_all_that_it_could_be() -> None:
    for names, option, candidates in (
        (["state", "vx", "reward", "*a"], "action", ("state", "vx")),
        (["action", "vx", "next.vx", "reward"], "state", ("vx",)),
        (["reward", "*a"], "action", ()),
    ):
        with pytest.raises(NoPlainColumnError) as raised:
            find(*names)
        assert (raised.value.option, raised.value.candidates) == (option, candidates)


def test_what_is_missing_or_of_the_wrong_kind() -> None:
    for names, options, message in (
        (["state"], {}, "no column called action; its numbers: state"),
        (["action"], {}, "neither pictures nor a column that is plainly the state"),
        (["action", "state"], {"state": "sate"}, "did you mean 'state'"),
        (["action", "state"], {"cameras": {"a": "state"}}, "pictures are needed"),
        (["action", "state", "?text"], {"action": "text"}, "numbers are needed"),
        (["action", "state"], {"reward": "action"}, r"shape \(3,\); one number is needed"),
    ):
        with pytest.raises(RecipeError, match=message):
            find(*names, **options)


@given(st.lists(st.text(min_size=1), max_size=6, unique=True))
def test_every_camera_gets_a_name_of_its_own(columns: list[str]) -> None:
    names = camera_names(columns)
    assert sorted(names.values()) == sorted(columns)
    assert all(NAME_PATTERN.fullmatch(name) for name in names)


def test_columns_side_by_side() -> None:
    arrays = {"a": np.ones((4, 2), np.float32), "b": np.zeros((4, 2, 3)), "c": np.arange(4)}
    assert concatenate(arrays, ["a", "b", "c"]).shape == (4, 9)
    assert concatenate(arrays, ["c"]).dtype == np.arange(4).dtype
    named = Column(kind="numbers", shape=(2,), names=("x", "y"))
    assert dimension_names({"a": named, "b": named}, ["a", "b"]) == ("x", "y", "x", "y")
    assert dimension_names({"a": named, "b": NUMBERS}, ["a", "b"]) == ()
