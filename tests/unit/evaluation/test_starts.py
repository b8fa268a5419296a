from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.moving_square import make_model, write_squares
from tokenwm.data.shards.manifest import Manifest
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import ShardError, TokenwmError
from tokenwm.evaluation.starts import check_episode, ending_starts, shuffled_rows
from tokenwm.imagination.fits import check_data_fits
from tokenwm.imagination.starts import Start, choose_split, choose_starts
from tokenwm.imagination.token_world_model import TokenWorldModel


def test_starts_are_evenly_spread_and_the_last_ends_with_the_episode(squares: Path) -> None:
    starts = choose_starts(ShardReader(squares), "test", num_steps=10, num_starts=3)
    # Lengths are 14, 20, 11 and 6.
    assert starts.rows == tuple(
        Start(key=key, first_step=step)
        for key, steps in {"test_0": (0, 2, 4), "test_1": (0, 5, 10), "test_2": (0, 1)}.items()
        for step in steps
    )
    assert starts.keys == ("test_0", "test_1", "test_2")
    assert starts.skipped == {"test_3": 6}


def test_endings_are_seen_after_few_and_after_many_steps(squares: Path) -> None:
    reader = ShardReader(squares)
    starts = choose_starts(reader, "test", num_steps=10, num_starts=3)
    found = ending_starts(reader, starts, num_context=4, horizon=6, num_starts=3)
    # The end is after 1, 4 (2.5 rounded, and 1 for the first) or 6 steps; 6 are measured anyway.

    def before(end: int) -> tuple[Start, ...]:
        lengths = {"test_0": 14, "test_1": 20, "test_2": 11}
        return tuple(Start(key=key, first_step=num - end) for key, num in lengths.items())

    assert found == {
        1: (*before(5), Start(key="test_3", first_step=1)),
        2: (Start(key="test_3", first_step=0),),
        3: before(7),
    }
    assert ending_starts(reader, starts, num_context=6, horizon=6, num_starts=3)


def test_other_phases_of_a_recording_are_no_episodes_of_their_own(tmp_path: Path) -> None:
    lengths = {"train": (14, 13, 12)}
    write_squares(tmp_path, lengths, names=("a", "a_phase1", "b_phase1"))
    starts = choose_starts(ShardReader(tmp_path), "train", num_steps=10, num_starts=1)
    assert starts.keys == ("a", "b_phase1")  # the second is somebody's name


def test_a_single_start_is_in_the_middle(squares: Path) -> None:
    starts = choose_starts(ShardReader(squares), "test", num_steps=10, num_starts=1)
    assert [row.first_step for row in starts.rows] == [2, 5, 0]


def test_some_episodes_are_spread_over_the_split(squares: Path) -> None:
    reader = ShardReader(squares)
    starts = choose_starts(reader, "test", num_steps=5, num_starts=1, max_episodes=2)
    assert starts.keys == ("test_0", "test_3")


def test_too_short_episodes_are_named(squares: Path, caplog: pytest.LogCaptureFixture) -> None:
    choose_starts(ShardReader(squares), "test", num_steps=12, num_starts=1)
    assert "2 of 4 episodes of split test are shorter than 12 steps" in caplog.text
    assert "test_2, test_3" in caplog.text
    with pytest.raises(TokenwmError, match="has 30 steps.*the longest has 20; use a shorter"):
        choose_starts(ShardReader(squares), "test", num_steps=30, num_starts=1)


def test_val_stands_in_for_a_missing_test(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_squares(tmp_path, {"train": (8,), "val": (8,)})
    manifest = Manifest.load(tmp_path)
    assert choose_split(manifest, "test") == "val"
    assert "no test episodes; measuring on val" in caplog.text
    assert choose_split(manifest, "train") == "train"
    with pytest.raises(TokenwmError, match="'dev' is not one of train, val, test"):
        choose_split(manifest, "dev")


def test_a_split_without_episodes_is_an_error(tmp_path: Path) -> None:
    write_squares(tmp_path, {"train": (8,)})
    with pytest.raises(TokenwmError, match="no episodes in split 'test'.*'train': 1"):
        choose_split(Manifest.load(tmp_path), "test")


@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=8),
    seed=st.integers(0, 1000),
)
def test_shuffling_leaves_no_row_its_own_actions(counts: list[int], seed: int) -> None:
    keys = [f"episode_{index}" for index, count in enumerate(counts) for _ in range(count)]
    donors = shuffled_rows(keys, seed)
    if len(keys) == 1:
        assert donors is None
        return
    assert donors is not None
    assert sorted(donors.tolist()) == list(range(len(keys)))
    assert all(donor != row for row, donor in enumerate(donors))
    if 2 * max(counts) <= len(keys):
        assert all(keys[donor] != keys[row] for row, donor in enumerate(donors))


def test_shuffling_is_fixed_by_its_seed() -> None:
    keys = [f"episode_{index // 4}" for index in range(40)]
    first, second = shuffled_rows(keys, 0), shuffled_rows(keys, 1)
    assert first is not None and second is not None
    assert first.tolist() == shuffled_rows(keys, 0).tolist()  # type: ignore[union-attr]
    assert first.tolist() != second.tolist()
    # Not the same phase of the next episode every time.
    assert len({(donor % 4 - row % 4) % 4 for row, donor in enumerate(first)}) > 1


def test_an_unknown_episode_is_answered_with_the_nearest(squares: Path) -> None:
    check_episode(ShardReader(squares), "test_2")
    with pytest.raises(ShardError, match="no episode 'tst_2' among 6; nearest: test_2"):
        check_episode(ShardReader(squares), "tst_2")


def test_data_that_fit_are_accepted(squares: Path, model: TokenWorldModel) -> None:
    check_data_fits(model, ShardReader(squares))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cameras": ("wrist",)}, "has the cameras wrist; the model was trained on top"),
        ({"cameras": ("top", "wrist")}, "has the cameras top, wrist; .* trained on top;"),
        ({"size": 16}, "of camera top are 16×16 pixels; .* 32×32; .*image_size: \\[32, 32\\]"),
        ({"control_rate": 5.0}, "5 steps per second, .* trained on 10; .*control_rate: 10"),
    ],
)
def test_data_of_another_kind_are_refused(
    tmp_path: Path, model: TokenWorldModel, options: dict[str, object], message: str
) -> None:
    write_squares(tmp_path, {"test": (8,)}, **options)  # type: ignore[arg-type]
    with pytest.raises(TokenwmError, match=message):
        check_data_fits(model, ShardReader(tmp_path))


def test_another_number_of_actions_in_a_step_is_refused(
    squares: Path, model: TokenWorldModel
) -> None:
    reader = ShardReader(squares)
    reader.manifest = replace(reader.manifest, extra={"actions_per_step": 2})
    with pytest.raises(TokenwmError, match=r"has 2 robot action\(s\) in a step, .* trained on 1;"):
        check_data_fits(model, reader)


def test_tokens_or_missing_or_narrow_scalars_are_refused(
    squares: Path, model: TokenWorldModel
) -> None:
    reader = ShardReader(squares)
    manifest = reader.manifest
    reader.manifest = replace(manifest, kind="tokens")
    with pytest.raises(TokenwmError, match="holds tokens shards; frames are needed"):
        check_data_fits(model, reader)
    features = dict(manifest.features)
    del features["state"]
    reader.manifest = replace(manifest, features=features)
    with pytest.raises(TokenwmError, match="has no state, which the model needs"):
        check_data_fits(model, reader)
    check_data_fits(make_model(has_state=False), reader)  # which does not need it
    features = dict(manifest.features)
    features["action"] = replace(features["action"], shape=(3,))
    reader.manifest = replace(manifest, features=features)
    with pytest.raises(TokenwmError, match="action is continuous with 3 dimension.* with 2"):
        check_data_fits(model, reader)
