import pytest
import torch
from torch import Tensor

from tokenwm.transformer import input_errors
from tokenwm.transformer.embeddings import near_codes
from tokenwm.transformer.input_errors import with_errors

LEVELS = (8, 4, 2)
NEAR = near_codes(64, LEVELS)
ROWS, STEPS, SLOTS = 400, 6, 64


def frames(change: float = 0.2) -> Tensor:
    """Codes that stay from step to step except for a share; the same at every call."""
    generator = torch.Generator().manual_seed(1)
    shape = (ROWS, STEPS, SLOTS)
    new = torch.randint(64, shape, generator=generator)
    stays = torch.rand(shape, generator=generator) >= change
    steps = [new[:, 0]]
    for step in range(1, STEPS):
        steps.append(torch.where(stays[:, step], steps[-1], new[:, step]))
    return torch.stack(steps, dim=1)


def shown(frame: Tensor, max_share: float = 0.2, near: Tensor = NEAR, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return with_errors(frame, near, max_share)


def test_errors_follow_from_torchs_seed_alone() -> None:
    """Training sets it from the number of the step, so a resumed run sees the same errors."""
    frame = frames()
    kept = frame.clone()
    assert torch.equal(shown(frame), shown(frame))
    assert not torch.equal(shown(frame), shown(frame, seed=1))
    assert torch.equal(frame, kept)  # these are the targets
    assert torch.equal(shown(frame, max_share=0.0), frame)


def test_the_share_is_even_over_rows_and_the_same_at_every_step() -> None:
    frame = frames()
    wrong = (shown(frame, max_share=0.4) != frame).float()
    # One in 64 or so of the wrong ones drawn from batch and codebook is the right one.
    torch.testing.assert_close(wrong.mean((0, 2)), torch.full((STEPS,), 0.2), atol=0.015, rtol=0)
    by_row = wrong.mean((1, 2)).sort().values
    torch.testing.assert_close(by_row, torch.linspace(0.0, 0.4, ROWS), atol=0.04, rtol=0)


def test_an_error_is_held_until_it_is_repaired_or_the_token_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frame = frames()
    is_still = frame[:, 1:] == frame[:, :-1]

    def held(share: float) -> Tensor:
        got = shown(frame, max_share=share)
        was_wrong = (got != frame)[:, :-1] & is_still
        return (got[:, 1:] == got[:, :-1])[was_wrong].float().mean()

    assert float(held(0.1)) == pytest.approx(0.5, abs=0.02)
    monkeypatch.setattr(input_errors, "END_PROBABILITY", 0.0)
    assert float(held(0.1)) == 1.0
    changed_right = (shown(frame, max_share=0.1) == frame)[:, 1:][~is_still].float().mean()
    assert 0.94 < float(changed_right) < 0.97  # in a slot that changes the error is forgotten


def test_half_of_the_wrong_codes_are_near() -> None:
    frame = frames(change=1.0)
    got = shown(frame, max_share=0.5)
    wrong = got != frame
    is_near = (NEAR[frame[wrong]] == got[wrong, None]).any(-1)
    assert float(is_near.float().mean()) == pytest.approx(0.5 + 0.5 * 3.7 / 64, abs=0.02)
    assert int(got.min()) >= 0 and int(got.max()) < 64


def test_codes_without_digits_have_no_near_ones() -> None:
    near = near_codes(64, ())
    assert near.shape == (64, 0)
    rare = torch.randint(4, (ROWS, STEPS, SLOTS), generator=torch.Generator().manual_seed(0))
    got = shown(rare, max_share=0.5, near=near)
    wrong = got[got != rare]
    # Of the batch, which has four codes, three quarters; one of the four is the right one.
    share = float((wrong < 4).float().mean())
    assert share == pytest.approx(
        (0.75 * 0.75 + 0.25 * 3 / 64) / (0.75 * 0.75 + 0.25 * 63 / 64), abs=0.02
    )
