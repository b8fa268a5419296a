"""A distance on a chain, and doubt that is larger where nothing was seen: known answers."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.chains import GRID, STEP, digits_vocabulary, episode, walks
from tests.small_models import small_tokenizer
from tokenwm.errors import ShapeError, ShardError, TokenwmError
from tokenwm.heads.distance import Distance, fit_distance, measure_distance
from tokenwm.heads.doubt import Doubt, digits_of, fit_doubt, measure_doubt
from tokenwm.heads.eyes import fit_eyes
from tokenwm.heads.recorded import Recorded, small_pictures

REACH = 5


@pytest.fixture(scope="module")
def distance() -> Distance:
    return fit_distance(walks([1.0] * 60), GRID, reach=REACH, num_steps=300, hidden=128)


def test_pairs_are_drawn_within_episodes_and_evenly() -> None:
    recorded = walks([1.0, -1.0, 0.5], num_steps=4)
    generator = torch.Generator().manual_seed(0)
    rows, ahead = recorded.draw_pairs(4000, 0, 6, generator)
    assert (rows >= 0).all() and (recorded.last[rows] == recorded.last[rows + ahead]).all()
    assert set(ahead.tolist()) == {0, 1, 2, 3}  # as far as an episode of 4 goes
    places = rows[ahead == 2] - recorded.first[rows[ahead == 2]]
    assert set(places.tolist()) == {0, 1} and abs(float(places.float().mean()) - 0.5) < 0.08
    actions, is_there = recorded.chunks(torch.tensor([1, 3]), 3)
    assert is_there.tolist() == [[True, True, False], [False, False, False]]
    assert actions.shape == (2, 3, 1) and (actions == 1.0).all()


def test_mixed_steps_are_drawn_by_their_share_whatever_their_numbers() -> None:
    real, imagined = walks([1.0, -1.0], num_steps=5), walks([0.5] * 40, num_steps=5)
    imagined = replace(imagined, is_synthetic=torch.ones(len(imagined), dtype=torch.bool))
    whole = real.mixed_with([imagined], 0.75)
    assert len(whole) == 42 * 5 and len(whole.recording.unique()) == 42
    assert whole.recording[10:].min() == 2
    rows, ahead = whole.draw_pairs(4000, 1, 3, torch.Generator().manual_seed(0))
    share = (~whole.is_synthetic[rows]).float().mean()
    assert abs(float(share) - 0.75) < 0.03
    assert set(rows[~whole.is_synthetic[rows]].tolist()) == {*range(4), *range(5, 9)}
    assert (whole.last[rows] == whole.last[rows + ahead]).all()
    only = real.mixed_with([imagined], 0.0).draw_rows(100, torch.Generator().manual_seed(0))
    assert (only >= 10).all()
    alike = real.mixed_with([imagined], None).draw_rows(4000, torch.Generator().manual_seed(0))
    assert abs(float((alike < 10).float().mean()) - 10 / 210) < 0.02
    with pytest.raises(ShardError, match="real_fraction 0.5 cannot be met: no synthetic episodes"):
        real.mixed_with([], 0.5)


def test_a_distance_counts_the_steps_of_a_chain(distance: Distance) -> None:
    here = torch.linspace(0.0, 0.3, 16)[:, None]
    for steps in range(REACH + 1):
        off = distance(here, here + STEP * steps) - steps
        assert off.abs().mean() < 0.7, steps
    assert (distance(here, here - 2 * STEP) > distance(here, here + 2 * STEP) + 1.0).all()
    assert distance(here, here + 7 * STEP).mean() > REACH  # far
    known = distance.probabilities(here, here[:1])
    torch.testing.assert_close(known.sum(1), torch.ones(16))
    figures = measure_distance(distance, walks([1.0] * 4, seed=5))
    assert figures["error_steps"] < 0.7 < figures["guess_error_steps"]
    assert figures["nats"] < figures["uniform_nats"]


def test_what_does_not_fit_a_distance_is_said(distance: Distance) -> None:
    with pytest.raises(ShapeError, match=r"features are \(3, 2\); expected \(B, 1\)"):
        distance(torch.zeros(3, 2), torch.zeros(1, 1))
    with pytest.raises(ShapeError, match="one row for all"):
        distance(torch.zeros(3, 1), torch.zeros(2, 1))
    with pytest.raises(TokenwmError, match="this head is no doubt: it is of kind 'distance'"):
        Doubt(distance.head, digits_vocabulary())


def code_of(digits: Tensor) -> Tensor:
    return (digits - 4) / 4.0


def steps_of_digits(num_episodes: int, seed: int = 0) -> Recorded:
    """Digits 0 to 3 go on by one, round; at 3 luck decides between 0 and 2. 4 to 7 never occur."""
    generator = torch.Generator().manual_seed(seed)
    episodes = []
    for number in range(num_episodes):
        digits, action = [number % 4], torch.rand(10, generator=generator) * 2.0 - 1.0
        for _ in range(9):
            luck = int(torch.randint(2, (1,), generator=generator))
            digits.append(2 * luck if digits[-1] == 3 else digits[-1] + 1)
        tokens = torch.tensor(digits)
        episodes.append(episode(code_of(tokens), action, tokens))
    return Recorded.cat(episodes)


def test_doubt_is_of_what_was_not_seen_and_not_of_luck() -> None:
    doubt = fit_doubt(steps_of_digits(40), digits_vocabulary(), GRID, num_steps=250, hidden=32)
    action = torch.linspace(-1.0, 1.0, 8)[:, None]

    def at(digit: int) -> Tensor:
        return doubt(code_of(torch.full((8, 1), digit)), action)

    seen, lucky, unseen = at(1), at(3), at(7)
    assert seen.shape == (8,) and (seen >= 0).all()
    assert seen.mean() < 0.02
    assert lucky.mean() < 0.04  # whose entropy is 0.69
    assert unseen.mean() > 3 * max(seen.mean(), lucky.mean())
    figures = measure_doubt(doubt, steps_of_digits(6, seed=1))
    assert figures["nats"] < 0.5 and figures["stay_nats"] < 0.5  # one in four is luck, .17


def test_members_are_trained_on_different_episodes() -> None:
    doubt = fit_doubt(steps_of_digits(8), digits_vocabulary(), GRID, num_steps=5, members=3)
    (known,) = doubt.log_probabilities(torch.zeros(2, 1), torch.zeros(2, 1))
    assert known.shape == (2, 3, 1, 8)
    torch.testing.assert_close(known.exp().sum(-1), torch.ones(2, 3, 1))
    assert not torch.allclose(known[:, 0], known[:, 1])
    with pytest.raises(ShapeError, match=r"features has shape \(2, 4\); expected \(2, 1\)"):
        doubt(torch.zeros(2, 4), torch.zeros(2, 1))


def test_heads_begin_with_eyes_that_had_their_lessons() -> None:
    """A picture that is a known function of the code is learned, and every member sees so."""
    recorded = steps_of_digits(20)
    pictures = (recorded.frame_tokens * 40).to(torch.uint8).expand(-1, 48).contiguous()
    lessons = fit_eyes(replace(recorded, pictures=pictures), GRID, num_steps=60)
    seen = lessons(code_of(torch.tensor([[0.0], [1.0], [2.0], [3.0]])))
    assert seen.shape == (4, 96)  # of the cell and of the frame; no state
    assert (seen.diff(dim=0) > 0.5).all()  # brighter from digit to digit
    doubt = fit_doubt(
        recorded, digits_vocabulary(), GRID, num_steps=1, seconds=1e-9, members=2, eyes=lessons
    )
    for network in (doubt.head, *doubt.head.others):
        for name, value in lessons.eyes.state_dict().items():
            learned = network.trunk.state_dict()[name]  # after a step at next to no rate
            torch.testing.assert_close(learned, value, atol=3e-3, rtol=0)


def test_small_pictures_are_cell_by_cell() -> None:
    frames = torch.zeros(2, 1, 16, 32, 3, dtype=torch.uint8)
    frames[1, 0, 8:, 24:, 2] = 90  # blue in the last of 2 × 4 cells
    cells = small_pictures(frames, (2, 4)).reshape(2, 8, 3, 16)
    assert (cells[1, 7, 2] == 90).all()
    cells[1, 7, 2] = 0
    assert not cells.any()


def test_codes_of_the_tokenizer_are_its_digits() -> None:
    tokenizer = small_tokenizer()
    levels = tokenizer.config.code_levels
    tokens = torch.arange(tokenizer.codebook_size)
    digits, codes = digits_of(tokens, levels), tokenizer.quantizer.codes_of(tokens[:, None])[:, 0]
    half = torch.tensor(levels) // 2
    torch.testing.assert_close((codes * half + half).round().long(), digits)
