import math

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from tokenwm.errors import TokenwmError
from tokenwm.evaluation.pixels import (
    CHANGE_THRESHOLD,
    Comparison,
    changed_pixels,
    squared_error,
    ssim_map,
    windowed,
)


def test_squared_error_is_taken_per_row() -> None:
    truth = torch.zeros(2, 1, 4, 4, 3, dtype=torch.uint8)
    frames = truth.clone()
    frames[1, 0, 0, 0] = 255  # one pixel of sixteen is wrong in all channels
    assert squared_error(frames, truth).tolist() == [0.0, pytest.approx(1 / 16)]
    assert squared_error(truth, frames)[1] == pytest.approx(1 / 16)  # uint8 must not wrap around


@pytest.mark.parametrize("size", [(11, 11), (32, 24), (64, 64)])
def test_ssim_equals_torchmetrics(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (3, 2, *size, 3)  # rows, cameras
    truth = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    noise = torch.randint(-40, 41, shape, generator=generator)
    frames = (truth.int() + noise).clamp(0, 255).to(torch.uint8)
    frames[1] = truth[1]
    frames[2] = 128

    def images(x: torch.Tensor) -> torch.Tensor:
        return x.movedim(-1, -3).flatten(0, 1).float() / 255

    theirs = structural_similarity_index_measure(
        images(frames), images(truth), data_range=1.0, reduction="none"
    )
    assert isinstance(theirs, torch.Tensor)
    ours = ssim_map(windowed(frames), windowed(truth)).flatten(1).mean(1)
    torch.testing.assert_close(ours, theirs.view(3, 2).mean(1), atol=2e-5, rtol=0)
    assert ours[1] == pytest.approx(1.0)
    assert ours[0] > ours[2]


def test_ssim_needs_frames_as_large_as_its_window() -> None:
    frames = torch.zeros(1, 1, 10, 64, 3, dtype=torch.uint8)
    with pytest.raises(TokenwmError, match="10×64 pixels; SSIM needs sides of at least 11"):
        windowed(frames)


def test_changed_pixels_by_hand() -> None:
    observed = torch.full((1, 1, 1, 4, 3), 100, dtype=torch.uint8)
    truth = observed.clone()
    truth[..., 1, 0] += CHANGE_THRESHOLD  # not more than the threshold
    truth[..., 2, 1] -= CHANGE_THRESHOLD + 1  # in one channel only, and downwards
    truth[..., 3, :] = 255
    assert changed_pixels(truth, observed).tolist() == [[[[False, False, True, True]]]]
    # uint8 must not wrap around: from 250 to 2 is far, not 8.
    assert changed_pixels(torch.tensor([250, 0, 0]).byte(), torch.tensor([2, 0, 0]).byte())


def test_scores_over_changed_pixels_by_hand() -> None:
    """A square of 2 x 2 pixels appears in the first row, nothing in the second."""
    observed = torch.zeros(2, 1, 16, 16, 3, dtype=torch.uint8)
    truth = observed.clone()
    truth[0, 0, 4:6, 4:6] = 255
    frames = truth.clone()
    frames[:, 0, 4, 4] = 0  # one of the four is missed, in the second row nothing
    frames[:, 0, 12, 12] = 255  # and one is invented in both
    scores = Comparison(truth, observed).scores(frames)
    assert scores.mse.tolist() == pytest.approx([2 / 256, 1 / 256])
    assert scores.mse_changed[0] == pytest.approx(1 / 4)
    similarity = ssim_map(windowed(frames), windowed(truth))
    assert scores.ssim_changed[0] == pytest.approx(float(similarity[0, 0, 4:6, 4:6].mean()))
    assert scores.ssim.tolist() == pytest.approx(similarity.flatten(1).mean(1).tolist())
    assert math.isnan(scores.mse_changed[1]) and math.isnan(scores.ssim_changed[1])


def test_persistence_is_wrong_where_pixels_change_and_nowhere_else() -> None:
    generator = torch.Generator().manual_seed(0)
    observed = torch.randint(0, 200, (3, 2, 16, 16, 3), generator=generator, dtype=torch.uint8)
    truth = observed.clone()
    truth[:, 1, 3:7, 5:9] += 51  # a fifth of the range
    scores = Comparison(truth, observed).scores(observed)
    assert scores.mse_changed.tolist() == pytest.approx([0.2**2] * 3)
    assert scores.mse.tolist() == pytest.approx([0.2**2 * 16 / 512] * 3)
    perfect = Comparison(truth, observed).scores(truth)
    assert perfect.mse_changed.tolist() == [0.0] * 3
    assert perfect.ssim_changed.tolist() == pytest.approx([1.0] * 3)
