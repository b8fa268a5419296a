"""Hard limits: what breaks one is found, whatever a model thinks of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.moving_square import write_squares
from tokenwm.control.limits import Limits, limits_from, load_limits
from tokenwm.control.proposed_limits import propose_limits
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import TokenwmError
from tokenwm.strict import dump_yaml

LIMITS = Limits(
    rate=10.0,
    position=((-1.0, 1.0), (-2.0, 2.0)),
    speed=(12.0, None),
    acceleration=(None, 400.0),
    workspace={"1": (-1.5, 3.0)},
    actions_per_step=5,
    predicate=lambda actions, state: actions[:, -1, 0] + state[:, 0] > -0.9,
)


def is_within(commands: np.ndarray, state: np.ndarray, past: np.ndarray) -> bool:
    """The same limits, said again one action at a time."""
    known = [*past, *commands]
    for index in range(len(past), len(known)):
        x, y = known[index]
        if not (abs(x) <= 1.0 and abs(y) <= 2.0 and -1.5 <= y <= 3.0):
            return False
        if abs((x - known[index - 1][0]) * 10.0) > 12.0:
            return False
        speeds = [(known[i][1] - known[i - 1][1]) * 10.0 for i in (index - 1, index)]
        if abs((speeds[1] - speeds[0]) * 10.0) > 400.0:
            return False
    return bool(commands[-1][0] + state[0] > -0.9)


def test_ten_thousand_random_chunks() -> None:
    generator = np.random.default_rng(0)
    chunks = generator.normal(0.0, 0.55, (10_000, 2, 10)).astype(np.float32)
    state = generator.normal(0.0, 0.3, (10_000, 2)).astype(np.float32)
    past = generator.normal(0.0, 0.4, (10_000, 2, 2)).astype(np.float32)
    found = LIMITS.check(torch.from_numpy(chunks), torch.from_numpy(state), past)
    expected = [
        is_within(chunk.reshape(10, 2), where, before)
        for chunk, where, before in zip(chunks, state, past, strict=True)
    ]
    assert [breach is None for breach in found] == expected
    assert 500 < sum(expected) < 9_500  # both occur
    names = {breach.limit for breach in found if breach is not None}
    assert names == {"position", "workspace", "speed", "acceleration", "predicate"}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_what_is_no_number_breaks_even_no_limits(value: float) -> None:
    chunk = np.zeros((2, 1, 4), dtype=np.float32)
    chunk[1, 0, 2] = value
    first, second = Limits(rate=1.0, actions_per_step=2).check(chunk)
    assert first is None
    assert second is not None and (second.limit, second.step, second.dimension) == ("finite", 1, 0)


def test_a_breach_says_where_and_what_is_allowed() -> None:
    chunk = np.zeros((1, 2, 10), dtype=np.float32)
    chunk[0, 1, 2] = 2.5
    (breach,) = LIMITS.check(chunk, np.zeros((1, 2)))
    assert str(breach) == "position of dimension 0 is 2.5 at action 6; allowed is [-1, 1]"


def test_speed_counts_from_the_last_action_and_not_from_nothing() -> None:
    limits = Limits(rate=10.0, speed=(5.0,))
    chunk = np.array([[[1.0], [1.2]]])
    assert limits.check(chunk) == [None]
    (breach,) = limits.check(chunk, previous=np.zeros((1, 1, 1)))
    assert breach is not None and (breach.limit, breach.step, breach.value) == ("speed", 0, 10.0)
    assert limits.allows(chunk, previous=np.full((1, 1, 1), 0.9)).all()


def test_increments_are_added_to_where_the_robot_is() -> None:
    limits = Limits(rate=2.0, position=((0.0, 1.0),), speed=(0.9,), increments=True)
    chunk = np.array([[[0.3], [0.3], [0.3]]])
    assert limits.check(chunk, np.array([[0.0]])) == [None]
    (breach,) = limits.check(chunk, np.array([[0.2]]))
    assert breach is not None and (breach.limit, breach.step) == ("position", 2)
    (breach,) = limits.check(chunk + 0.2, np.array([[-0.5]]))
    assert breach is not None and (breach.limit, breach.step, breach.value) == ("speed", 0, 1.0)
    with pytest.raises(TokenwmError, match="needs the state"):
        limits.check(chunk)
    (breach,) = limits.check(chunk, np.array([[np.nan]]))
    assert breach is not None and breach.limit == "finite"


def test_a_value_at_a_limit_is_within_it() -> None:
    limits = Limits(rate=1.0, position=((-0.1, 0.1),))
    assert limits.allows(np.array([[[0.1]]], dtype=np.float32)).all()
    assert not limits.allows(np.array([[[0.100001]]], dtype=np.float32)).any()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": 0}, "rate=0.0; use actions per second"),
        ({"rate": 10, "sped": [1]}, "did you mean 'speed'"),
        ({"rate": 10, "speed": [-1]}, r"speed holds -1.0; use numbers above 0"),
        ({"rate": 10, "position": [[1, 0]]}, r"position is \[1.0, 0.0\]"),
        ({"rate": 10, "workspace": {"x": [0, 1]}}, "workspace names x"),
        ({"rate": 10, "speed": [1], "acceleration": [1, 2]}, r"\[1, 2\] dimensions"),
        ({"speed": [1]}, "'rate' is missing"),
    ],
    ids=["rate", "misspelt", "negative", "reversed", "no number", "sizes", "missing"],
)
def test_impossible_limits_are_refused(
    values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "limits.yaml").write_text(dump_yaml(values))
    with pytest.raises(TokenwmError, match=message):
        load_limits(tmp_path / "limits.yaml")


def test_chunks_of_another_robot_are_refused() -> None:
    with pytest.raises(TokenwmError, match=r"5 action\(s\) of 2 dimension"):
        LIMITS.check(np.zeros((1, 1, 6)))
    with pytest.raises(TokenwmError, match="names dimension 3; actions have 0 to 1"):
        Limits(rate=1.0, workspace={"3": (0.0, 1.0)}).check(np.zeros((1, 1, 2)))
    with pytest.raises(TokenwmError, match="previous holds values that are not finite"):
        Limits(rate=1.0, speed=(1.0,)).check(np.zeros((1, 1, 1)), previous=[[[np.nan]]])


def test_limits_proposed_from_data_hold_the_data_and_can_be_given_back(tmp_path: Path) -> None:
    write_squares(tmp_path / "data", {"train": (20, 30)})
    reader = ShardReader(tmp_path / "data")
    limits = propose_limits(reader)
    (tmp_path / "limits.yaml").write_text(dump_yaml(limits.to_dict()))
    assert load_limits(tmp_path / "limits.yaml") == limits == limits_from(limits.to_dict())
    assert limits.rate == 10.0 and limits.position == ((-3.6, 3.6), (-3.6, 3.6))
    for key in reader.keys("train"):
        assert limits.allows(reader.arrays(key, ["action"])["action"][None, :-1]).all()
    assert limits.speed is not None and all(each is not None for each in limits.speed)
    jump = np.array([[[-3.5, 0.0], [3.5, 0.0], [-3.5, 0.0]]])
    (breach,) = limits.check(jump)
    assert breach is not None and breach.limit == "speed"


def test_a_dimension_that_never_moved_gets_some_room(tmp_path: Path) -> None:
    write_squares(tmp_path / "data", {"train": (20, 30)})
    reader = ShardReader(tmp_path / "data")

    class Still(ShardReader):
        def arrays(self, *arguments: Any, **options: Any) -> dict[str, Any]:
            arrays = super().arrays(*arguments, **options)
            arrays["action"] = arrays["action"].copy()
            arrays["action"][:, 1] = np.float32(np.pi)
            return arrays

    limits = propose_limits(Still(tmp_path / "data"))
    assert limits.position is not None and limits.position[0] == (-3.6, 3.6)
    low, high = limits.position[1]
    assert low < np.pi - 0.05 and np.pi + 0.05 < high < 3.3
    assert limits.allows(Still(tmp_path / "data").arrays(reader.keys("train")[0])["action"][None])
