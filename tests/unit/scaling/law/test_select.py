"""What is fitted, what is left out, and which designs are refused."""

from dataclasses import replace

import pytest

from tests.small_sweeps import SIZES, TOKENS, grid_points
from tokenwm.errors import SweepError
from tokenwm.scaling.law.select import check_design, select


def test_nothing_is_left_out_unless_asked_for() -> None:
    kept, left_out = select(grid_points(), exclude={})
    assert len(kept) == 25
    assert not left_out


def test_the_highest_losses_go_when_asked_for_and_are_listed() -> None:
    points = grid_points()
    kept, left_out = select(points, drop_highest_loss=5, exclude={})
    assert len(kept) == 20
    worst = sorted(points, key=lambda point: -point.loss)[:5]
    assert {item.path for item in left_out} == {point.path for point in worst}
    assert all("5 highest losses" in item.reason for item in left_out)


def test_the_shortest_runs_of_every_size_go_when_asked_for_and_are_listed() -> None:
    points = grid_points()
    points.append(replace(points[0], path="seed", seed=1))
    kept, left_out = select(points, drop_shortest=2, exclude={})
    assert {item.path for item in left_out} == {
        "seed",
        *(f"n{row}_d{column}" for row in range(5) for column in range(2)),
    }
    assert all("one of the 2 least tokens of its size" in item.reason for item in left_out)
    with pytest.raises(SweepError, match="all 26 runs are dropped"):
        select(points, drop_shortest=5, exclude={})


def test_runs_are_excluded_by_name_with_the_users_reason() -> None:
    kept, (left,) = select(grid_points(), exclude={"n0_d1": "its node failed"})
    assert len(kept) == 24
    assert (left.path, left.reason) == ("n0_d1", "excluded by the user: its node failed")
    with pytest.raises(SweepError, match="no run 'n9_d9' to exclude; runs: n0_d0"):
        select(grid_points(), exclude={"n9_d9": "unknown"})


@pytest.mark.parametrize("number", [-1, 25])
def test_not_every_run_can_be_dropped(number: int) -> None:
    with pytest.raises(SweepError, match="of 25 runs cannot be dropped"):
        select(grid_points(), drop_highest_loss=number, exclude={})


def test_a_worse_learning_rate_is_left_out_but_another_seed_is_not() -> None:
    first = grid_points()[0]
    worse = replace(first, path="slow", learning_rate=1e-5, loss=first.loss + 1)
    seed = replace(first, path="seed", seed=1, loss=first.loss + 1)
    again = replace(first, path="again", loss=first.loss + 1)
    kept, (left,) = select([first, worse, seed, again], exclude={})
    assert {point.path for point in kept} == {first.path, "seed", "again"}
    assert left.path == "slow"
    assert "1e-05 is beaten by 0.001" in left.reason


def test_order_of_the_source_does_not_matter() -> None:
    points = grid_points()
    assert select(points[::-1], exclude={})[0] == select(points, exclude={})[0]


@pytest.mark.parametrize(
    ("sizes", "tokens", "message"),
    [
        ((1e6,), TOKENS * 2, "have 1 sizes"),
        (SIZES[:2], TOKENS, "have 2 sizes"),
        (SIZES, TOKENS[:2], "have 2 token budgets"),
        (SIZES[:3], TOKENS[:2], "6 runs for the five numbers"),
        ((1e6, 1.001e6, 1.002e6), TOKENS, "have 1 sizes"),
    ],
)
def test_designs_that_cannot_answer_are_refused(
    sizes: tuple[float, ...], tokens: tuple[float, ...], message: str
) -> None:
    with pytest.raises(SweepError, match=message):
        check_design(grid_points(sizes, tokens))


def test_size_and_data_that_go_together_are_refused() -> None:
    """Twenty tokens a parameter for all: A/N^α and B/D^β are one curve."""
    points = [
        replace(point, num_tokens=20.0 * point.num_parameters)
        for point in grid_points(tuple(1e4 * 1.7**step for step in range(8)), TOKENS[:1])
    ]
    with pytest.raises(SweepError, match="cannot be told apart"):
        check_design(points)


def test_repeated_data_and_narrow_grids_are_warned_about() -> None:
    assert check_design(grid_points()) == []
    repeated = [replace(point, num_epochs=6.0) for point in grid_points()[:3]]
    (warning,) = check_design([*repeated, *grid_points()[3:]])
    assert "3 of 25 runs saw their data more than 4 times (up to 6.0)" in warning
    (few,) = check_design(grid_points(SIZES[::2], TOKENS[::2]))
    assert "9 runs for five numbers: the intervals are too short" in few
    narrow = check_design(grid_points((1e6, 2e6, 3e6, 4e6), TOKENS))
    assert any("size spans a factor of 4.0 only" in warning for warning in narrow)
