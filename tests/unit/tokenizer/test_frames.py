import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.small_models import small_tokenizer
from tokenwm.errors import ShapeError, TokenwmError
from tokenwm.tokenizer.augmentation import shifted
from tokenwm.tokenizer.frames import (
    FrameTokenizer,
    FrameTokenizerConfig,
    codebook_usage,
    to_uint8,
)
from tokenwm.tokenizer.training import FrameTokenizerModule


def random_frames(*shape: int) -> Tensor:
    return torch.randint(256, (*shape, 16, 16, 3), dtype=torch.uint8)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)], ids=str)
def test_any_leading_axes_come_back(leading: tuple[int, ...]) -> None:
    tokenizer = small_tokenizer(num_cameras=2).eval()
    frames = random_frames(*leading, 2)
    tokens = tokenizer.encode_frames(frames)
    assert tokens.shape == (*leading, tokenizer.tokens_per_frame)
    assert tokens.dtype == torch.int64
    decoded = tokenizer.decode_frames(tokens)
    assert decoded.shape == frames.shape
    assert decoded.dtype == torch.uint8
    flat = tokenizer.encode_frames(frames.reshape(-1, 2, 16, 16, 3))
    assert torch.equal(tokens.reshape(-1, 8), flat)


def test_many_frames_go_through_in_parts() -> None:
    tokenizer = small_tokenizer(num_cameras=2).eval()
    frames = random_frames(3, 5, 2)
    tokens = tokenizer.encode_frames(frames)
    decoded = tokenizer.decode_frames(tokens)
    sizes: list[int] = []
    for network in (tokenizer.encoder, tokenizer.decoder):
        network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    tokenizer.pixel_memory = 4 * tokenizer.pixel_memory // tokenizer.frames_at_once
    assert tokenizer.frames_at_once == 4
    assert torch.equal(tokenizer.encode_frames(frames), tokens)
    assert torch.equal(tokenizer.decode_frames(tokens), decoded)
    assert sizes == [8, 8, 8, 6] * 2  # two cameras


def test_tokens_lie_camera_by_camera_and_row_by_row() -> None:
    """With kernel 1 a token changes only when its own 8 × 8 pixels do."""
    tokenizer = small_tokenizer(num_cameras=2).eval()
    frames = random_frames(1, 2)
    tokens = tokenizer.encode_frames(frames)[0]
    for camera in range(2):
        for row in range(2):
            for column in range(2):
                other = frames.clone()
                patch = other[0, camera, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
                patch.copy_(255 - patch)
                changed = (tokenizer.encode_frames(other)[0] != tokens).nonzero().flatten()
                assert changed.tolist() == [camera * 4 + row * 2 + column]


def test_training_and_decoding_give_the_same_picture() -> None:
    for quantizer in ("fsq", "vq"):
        tokenizer = small_tokenizer(quantizer, num_cameras=2)
        frames = random_frames(3, 2)
        tokenizer(frames)  # initialises a vq codebook
        output = tokenizer.eval()(frames)
        tokens = tokenizer.encode_frames(frames)
        assert torch.equal(output.indices.reshape(3, 8), tokens)
        assert output.reconstruction.shape == (6, 3, 16, 16)
        decoded = tokenizer.decode_to_unit(tokens).flatten(0, 1).movedim(-1, 1)
        torch.testing.assert_close(decoded, output.reconstruction, atol=1e-5, rtol=0)
        expected = to_uint8(tokenizer.decode_to_unit(tokens))
        assert torch.equal(tokenizer.decode_frames(tokens), expected)


def drifting_frames(num_rows: int, num_steps: int, num_cameras: int = 1) -> Tensor:
    """Pictures that wander by some levels from step to step, so that some tokens change."""
    generator = torch.Generator().manual_seed(0)
    size = (num_rows, num_steps, num_cameras, 16, 16, 3)
    changes = torch.randint(-12, 13, size, generator=generator)
    changes[:, 0] = torch.randint(60, 200, size, generator=generator)[:, 0]
    return changes.cumsum(1).clamp(0, 255).to(torch.uint8)


def share_changed(tokens: Tensor) -> float:
    return float((tokens[:, 1:] != tokens[:, :-1]).float().mean())


@pytest.mark.parametrize("quantizer", ["fsq", "vq"])
def test_without_a_margin_the_order_of_frames_does_not_matter(quantizer: str) -> None:
    tokenizer = small_tokenizer(quantizer, num_cameras=2)
    frames = drifting_frames(3, 5, 2)
    tokenizer(frames)  # initialises a vq codebook
    tokens = tokenizer.eval().encode_frames(frames)
    assert torch.equal(tokenizer.encode_sequence(frames), tokens)
    assert torch.equal(tokenizer.encode_sequence(frames, torch.zeros(3, 8).long()), tokens)


@pytest.mark.parametrize("quantizer", ["fsq", "vq"])
def test_a_token_changes_only_where_its_latent_goes_far(quantizer: str) -> None:
    margin = 0.3
    tokenizer = small_tokenizer(quantizer, num_cameras=2, code_margin=margin)
    frames = drifting_frames(3, 8, 2)
    tokenizer(frames)
    tokens = tokenizer.eval().encode_sequence(frames)
    nearest = tokenizer.encode_frames(frames)
    latents = tokenizer.encoder(tokenizer.normalize(frames)).flatten(2).transpose(1, 2)
    places = tokenizer.quantizer(latents).places.reshape(3, 8, 8, -1)
    scale = 4.0 if quantizer == "fsq" else 1.0  # codes of 8 levels are bins divided by 4
    codes, best = (
        tokenizer.quantizer.codes_of(part.flatten(0, 1)).reshape(3, 8, 8, -1) * scale
        for part in (tokens, nearest)
    )
    num_kept = 0
    for step in range(1, 8):
        if quantizer == "fsq":
            holds = ((places[:, step] - codes[:, step - 1]).abs() <= 0.5 + margin).all(-1)
        else:
            before, least = places[:, step] - codes[:, step - 1], places[:, step] - best[:, step]
            holds = before.norm(dim=-1) <= (1.0 + margin) * least.norm(dim=-1)
        expected = torch.where(holds, tokens[:, step - 1], nearest[:, step])
        assert torch.equal(tokens[:, step], expected)
        num_kept += int((holds & (nearest[:, step] != tokens[:, step - 1])).sum())
        assert not holds.all()
    assert num_kept > 0
    assert torch.equal(tokens[:, 0], nearest[:, 0])
    assert 0.0 < share_changed(tokens) < share_changed(nearest)


def test_a_sequence_can_be_encoded_in_parts() -> None:
    tokenizer = small_tokenizer(num_cameras=2, code_margin=0.4).eval()
    frames = drifting_frames(3, 9, 2)
    tokens = tokenizer.encode_sequence(frames)
    first = tokenizer.encode_sequence(frames[:, :4])
    rest = tokenizer.encode_sequence(frames[:, 4:], first[:, -1])
    assert torch.equal(torch.cat([first, rest], dim=1), tokens)
    assert not torch.equal(tokenizer.encode_sequence(frames[:, 4:]), rest)
    tokenizer.pixel_memory = 4 * tokenizer.pixel_memory // tokenizer.frames_at_once
    assert torch.equal(tokenizer.encode_sequence(frames), tokens)
    none = tokenizer.encode_sequence(frames[:, :0], first[:, -1])
    assert none.shape == (3, 0, 8) and none.dtype == torch.int64


def test_previous_tokens_of_another_shape_are_refused() -> None:
    tokenizer = small_tokenizer(num_cameras=2, code_margin=0.4).eval()
    with pytest.raises(ShapeError, match="previous"):
        tokenizer.encode_sequence(drifting_frames(3, 2, 2), torch.zeros(3, 4).long())
    with pytest.raises(ShapeError, match="frames"):
        tokenizer.encode_sequence(drifting_frames(3, 2, 2)[0])


@pytest.mark.parametrize("margin", [-0.1, float("nan"), float("inf")], ids=str)
def test_an_impossible_margin_is_refused(margin: float) -> None:
    with pytest.raises(TokenwmError, match="code_margin"):
        FrameTokenizerConfig(code_margin=margin)


def test_noise_is_encoded_but_not_reconstructed() -> None:
    tokenizer = small_tokenizer().eval()
    frames = random_frames(4, 1)
    clean, noisy = tokenizer(frames), tokenizer(frames, noise=40, consistency=True)
    assert torch.equal(noisy.target, clean.target)
    assert noisy.indices.shape == clean.indices.shape
    assert not torch.equal(noisy.indices, clean.indices)
    assert clean.inconsistency == 0
    assert tokenizer(frames, consistency=True).inconsistency == 0
    less = tokenizer(frames, noise=4, consistency=True).inconsistency
    assert 0 < less < noisy.inconsistency < 49
    noisy.inconsistency.backward()
    stem = next(tokenizer.encoder.parameters()).grad
    assert stem is not None and stem.abs().max() > 0


@given(down=st.integers(-5, 5), right=st.integers(-5, 5))
def test_shifted_pictures_repeat_their_border(down: int, right: int) -> None:
    pixels = torch.arange(2 * 3 * 6 * 4).view(2, 3, 6, 4)
    moved = shifted(pixels, torch.tensor([[down, right], [0, 0]]))
    assert torch.equal(moved[1], pixels[1])
    for row in range(6):
        for column in range(4):
            source = pixels[0, :, min(max(row - down, 0), 5), min(max(column - right, 0), 3)]
            assert torch.equal(moved[0, :, row, column], source)


def test_a_shifted_frame_has_the_tokens_of_its_shifted_residual() -> None:
    """With mean frame 0.5 everywhere, shifting the residual is shifting the frame."""
    tokenizer = small_tokenizer(num_cameras=2).eval()
    frames = random_frames(3, 2)
    pictures = frames.flatten(0, 1).movedim(-1, 1)
    moved = shifted(pictures, torch.tensor([[2, -3]]).expand(6, 2)).movedim(1, -1)
    expected = tokenizer.encode_frames(moved.reshape(frames.shape))
    assert torch.equal(tokenizer.encode_frames(frames, shift=(2, -3)), expected)
    assert not torch.equal(tokenizer.encode_frames(frames), expected)


def test_training_shifts_what_is_to_be_reconstructed_too() -> None:
    tokenizer = small_tokenizer().eval()
    frames = random_frames(20, 1)
    still = tokenizer(frames).target
    expected = frames[:, 0].movedim(-1, 1) / 255.0
    torch.testing.assert_close(still, expected)
    torch.manual_seed(0)
    output = tokenizer(frames, max_shift=2)
    shifts = torch.cartesian_prod(torch.arange(-2, 3), torch.arange(-2, 3))
    every = torch.stack([shifted(expected, shift.expand(20, 2)) for shift in shifts])
    distance = (every - output.target).abs().amax((2, 3, 4))  # (shifts, frames)
    assert (distance.min(0).values < 1e-5).all()
    assert len(distance.argmin(0).unique()) > 5
    assert (output.reconstruction - output.target).square().mean() < 1.0


def test_training_on_squares_sees_what_differs_from_the_mean_frame() -> None:
    tokenizer = FrameTokenizer(FrameTokenizerConfig(channels=(8, 8), patch_size=4), (32, 48), 2)
    tokenizer.mean_frame.copy_(torch.rand(2, 3, 32, 48))
    frames = to_uint8(tokenizer.mean_frame.movedim(1, -1))[None].repeat(200, 1, 1, 1, 1)
    frames[:, 0, 8:16, 40:48] = 0
    frames[:, 1, 24:30, 1:5] = 255
    torch.manual_seed(0)
    output = tokenizer(frames, crop=16)
    assert output.target.shape == output.reconstruction.shape == (400, 3, 16, 16)
    assert output.indices.shape == (400, 4)
    whole = (frames.movedim(-1, 2).flatten(0, 1) / 255.0).unfold(2, 16, 8).unfold(3, 16, 8)
    places = whole.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)  # (400, places, 3, 16, 16)
    distance = (places - output.target[:, None]).abs().amax((2, 3, 4))
    assert (distance.min(1).values < 1e-5).all()
    found = distance.argmin(1).view(200, 2)  # 3 rows of 5 places
    assert {4, 9} <= set(found[:, 0].tolist()) and {5, 10} & set(found[:, 1].tolist())
    seen = [torch.isin(found[:, 0], torch.tensor([4, 9])), found[:, 1] == 10]
    assert all(0.8 < of_camera.float().mean() < 1.0 for of_camera in seen)


def test_frames_no_larger_than_a_square_are_taken_whole() -> None:
    tokenizer = small_tokenizer().eval()
    frames = random_frames(3, 1)
    assert torch.equal(tokenizer(frames, crop=16).target, tokenizer(frames).target)


def test_squares_that_do_not_fit_the_tokens_are_refused() -> None:
    for crop in (-32, 16, 36):
        with pytest.raises(TokenwmError, match=rf"crop={crop}; use 0 .* multiple of 8.* from 32"):
            FrameTokenizerModule(FrameTokenizerConfig(), crop=crop)
    with pytest.raises(TokenwmError, match="attention_stages"):
        FrameTokenizerModule(FrameTokenizerConfig(attention_stages=(1,)), crop=32)


def test_every_camera_is_centred_on_its_own_mean_frame() -> None:
    tokenizer = small_tokenizer(num_cameras=2)
    mean = torch.rand(2, 3, 16, 16)
    tokenizer.mean_frame.copy_(mean)
    frames = to_uint8(mean.movedim(1, -1))[None].repeat(4, 1, 1, 1, 1)
    assert tokenizer.normalize(frames).abs().max() < 1 / 255 / 0.25
    off = tokenizer.normalize(frames.flip(1))
    assert off.abs().max() > 0.5
    # An output of zero means: nothing but the mean frame.
    torch.testing.assert_close(tokenizer._to_unit(torch.zeros(4, 3, 16, 16))[:2], mean)


def test_pixels_and_normalized_pixels_are_inverse() -> None:
    tokenizer = small_tokenizer(num_cameras=2)
    frames = random_frames(3, 2)
    back = tokenizer._to_unit(tokenizer.normalize(frames))
    assert torch.equal(to_uint8(back.movedim(1, -1)).view_as(frames), frames)


@pytest.mark.parametrize("size", [(16, 20), (12, 16), (8, 4)])
def test_a_frame_size_that_cannot_be_divided_is_refused(size: tuple[int, int]) -> None:
    config = FrameTokenizerConfig(channels=(8, 8), patch_size=4)
    message = rf"{size[0]}×{size[1]} pixels.*8×8 pixels \(patch_size 4 × 2\^1\).*multiples of 8"
    with pytest.raises(TokenwmError, match=message):
        FrameTokenizer(config, size)


@given(
    num_stages=st.integers(1, 4),
    patch_size=st.integers(1, 8),
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
)
def test_the_grid_counts_the_tokens(
    num_stages: int, patch_size: int, rows: int, columns: int
) -> None:
    config = FrameTokenizerConfig(channels=(8,) * num_stages, patch_size=patch_size)
    factor = config.downsampling
    assert config.token_grid((rows * factor, columns * factor)) == (rows, columns)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.zeros(2, 1, 16, 16, 3), "float32; expected uint8"),
        (torch.zeros(2, 2, 16, 16, 3, dtype=torch.uint8), r"\(2, 16, 16, 3\).*\(1, 16, 16, 3\)"),
        (torch.zeros(1, 16, 24, 3, dtype=torch.uint8), r"\(1, 16, 24, 3\).*\(1, 16, 16, 3\)"),
        (torch.zeros(2, 1, 3, 16, 16, dtype=torch.uint8), r"\(1, 3, 16, 16\)"),
    ],
    ids=["dtype", "cameras", "size", "channels first"],
)
def test_frames_that_do_not_fit_are_refused(frames: Tensor, message: str) -> None:
    tokenizer = small_tokenizer().eval()
    for method in (tokenizer.encode_frames, tokenizer):
        with pytest.raises(ShapeError, match=message):
            method(frames)


def test_tokens_of_another_grid_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 5\); expected \(..., 4\)"):
        small_tokenizer().decode_frames(torch.zeros(2, 5, dtype=torch.int64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebook_size": 100}, "codebook_size=100 is not available for fsq.*64, 240.*vq"),
        ({"codebook_size": 1, "quantizer": "vq"}, "codebook_size=1; .*2 to 65536"),
        ({"codebook_size": 70000, "quantizer": "vq"}, "uint16"),
        ({"channels": ()}, "channels"),
        ({"channels": (8, 0)}, "at least 1"),
        ({"num_blocks": 0}, "num_blocks=0"),
        ({"patch_size": 0}, "patch_size=0"),
        ({"encoder_kernel_size": 2}, "encoder_kernel_size=2.*odd"),
        ({"quantizer": "pq"}, "quantizer.*pq.*fsq.*vq"),
    ],
    ids=str,
)
def test_impossible_sizes_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(TokenwmError, match=message):
        FrameTokenizerConfig(**change)  # type: ignore[arg-type]


def test_to_uint8_rounds_and_clips() -> None:
    pixels = torch.tensor([-0.5, 0.0, 0.4 / 255, 0.6 / 255, 1.0, 7.0])
    assert to_uint8(pixels).tolist() == [0, 0, 0, 1, 255, 255]


def test_codebook_usage_of_known_distributions() -> None:
    assert codebook_usage(torch.tensor([5, 5, 5, 5])) == pytest.approx((1.0, 4.0))
    assert codebook_usage(torch.tensor([0, 9, 0, 0])) == pytest.approx((0.25, 1.0))
    assert codebook_usage(torch.tensor([3, 1, 0, 0])) == pytest.approx((0.5, 1.754765))
    assert codebook_usage(torch.tensor([0, 0]))[0] == 0.0
