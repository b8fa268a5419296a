import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.small_models import small_tokenizer
from tokenwm.imagination.pixels import (
    CHANGE_SCALE,
    NEIGHBOURHOOD,
    anchored,
    decode_pixels,
    frozen_decoder,
)
from tokenwm.tokenizer.frames import FrameTokenizer, to_uint8

SHAPE = (2, 3, 1, 8, 8, 3)  # (B, H, cameras, height, width, 3)


def random_frames(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_where_nothing_changed_the_observed_frame_is_kept() -> None:
    decoded, anchor = random_frames(0), random_frames(1)
    torch.testing.assert_close(anchored(decoded, decoded, anchor), anchor)


def test_where_all_changed_the_decoded_frame_stands() -> None:
    decoded = torch.zeros(SHAPE)
    torch.testing.assert_close(
        anchored(decoded, decoded + 0.9, random_frames(1)), decoded, atol=1e-6, rtol=0
    )


def test_a_tokenizer_without_loss_leaves_nothing_to_keep() -> None:
    decoded, observed = random_frames(0), random_frames(1)
    torch.testing.assert_close(anchored(decoded, observed, observed), decoded)


def test_a_change_of_the_scale_keeps_one_part_in_e() -> None:
    before = torch.full(SHAPE, 0.5)
    decoded = before + CHANGE_SCALE
    kept = anchored(decoded, before, before + 0.1) - decoded
    torch.testing.assert_close(kept, torch.full(SHAPE, 0.1 / math.e), atol=1e-6, rtol=0)


def test_a_change_reaches_its_neighbours_only() -> None:
    before = torch.full(SHAPE, 0.5)
    decoded = before.clone()
    decoded[0, 1, 0, 4, 4, 2] = 1.0  # one channel of one pixel of one frame
    changed = (anchored(decoded, before, before + 0.1) - decoded - 0.1).abs() > 1e-6
    expected = torch.zeros(SHAPE, dtype=torch.bool)
    reach = NEIGHBOURHOOD // 2
    expected[0, 1, 0, 4 - reach : 5 + reach, 4 - reach : 5 + reach] = True
    assert torch.equal(changed, expected)


def test_one_anchor_serves_all_steps() -> None:
    decoded = random_frames(0)
    before, observed = random_frames(1)[:, :1], random_frames(2)[:, :1]
    together = anchored(decoded, before, observed)
    for step in range(SHAPE[1]):
        alone = anchored(decoded[:, step], before[:, 0], observed[:, 0])
        torch.testing.assert_close(together[:, step], alone)


@given(seed=st.integers(0, 10_000), scale=st.floats(0.0, 1.0))
def test_the_residual_is_never_more_than_added(seed: int, scale: float) -> None:
    decoded = random_frames(seed, (1, 1, 2, 6, 6, 3))
    before = decoded + scale * (random_frames(seed + 1, decoded.shape) - 0.5)
    residual = random_frames(seed + 2, decoded.shape) - 0.5
    added = anchored(decoded, before, before + residual) - decoded
    assert (added.abs() <= residual.abs() + 1e-5).all()
    assert (added * residual >= -1e-5).all()


@pytest.mark.parametrize("at_once", [1000, 7, 3, 1])  # all; a row; parts of a row; a frame
def test_an_anchor_is_decoded_once_whatever_the_memory(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = small_tokenizer(num_cameras=2).eval()
    tokens = torch.randint(64, (3, 5, 8), generator=torch.Generator().manual_seed(0))
    observed = to_uint8(random_frames(1, (3, 2, 16, 16, 3)))
    anchor_tokens = tokenizer.encode_frames(observed)
    decoded = tokenizer.decode_to_unit(tokens)
    before = tokenizer.decode_to_unit(anchor_tokens)
    expected = torch.stack(
        [
            to_uint8(anchored(decoded[:, step], before, observed.float() / 255.0))
            for step in range(5)
        ],
        dim=1,
    )
    assert not torch.equal(expected, to_uint8(decoded))
    sizes: list[int] = []
    decode = tokenizer.decode_to_unit

    def counted(tokens: Tensor, decoder: nn.Module | None = None) -> Tensor:
        sizes.append(tokens[..., 0].numel())
        return decode(tokens, decoder)

    monkeypatch.setattr(tokenizer, "decode_to_unit", counted)
    monkeypatch.setattr(FrameTokenizer, "frames_at_once", at_once)
    pixels = decode_pixels(tokenizer, tokens, anchor_tokens, observed)
    assert (pixels.int() - expected.int()).abs().max() <= 1  # rounding of another batch size
    assert sum(sizes) == tokens[..., 0].numel() + len(tokens)
    assert max(sizes) <= at_once


def test_pixels_of_bfloat16_are_the_same_but_for_rounding() -> None:
    tokenizer = small_tokenizer(num_cameras=2).eval()
    decoder = frozen_decoder(tokenizer, torch.bfloat16)
    assert frozen_decoder(tokenizer, torch.float32) is tokenizer.decoder
    assert {p.dtype for p in decoder.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in tokenizer.parameters()} == {torch.float32}
    tokens = torch.randint(64, (3, 5, 8), generator=torch.Generator().manual_seed(0))
    exact = decode_pixels(tokenizer, tokens).int()
    rounded = decode_pixels(tokenizer, tokens, decoder=decoder).int()
    assert 0 < (rounded - exact).abs().max() <= 3
    assert (rounded - exact).float().abs().mean() < 0.3


def test_nothing_to_decode_gives_nothing() -> None:
    tokenizer = small_tokenizer().eval()
    for shape in ((0, 5, 4), (3, 0, 4)):
        none = decode_pixels(tokenizer, torch.zeros(shape, dtype=torch.int64))
        assert none.shape == (*shape[:2], 1, 16, 16, 3)
