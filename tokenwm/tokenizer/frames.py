"""The frame tokenizer: a convolutional VQ-VAE that turns camera frames into ``K`` tokens and back.

Pixels are centred on the mean frame of the training data. With a fixed camera the codes then carry
only what moves, and the static background costs neither capacity nor training time.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn

from tokenwm.errors import ShapeError, TokenwmError
from tokenwm.shapes import check_shape
from tokenwm.tokenizer.augmentation import cut, draw_squares, shifted
from tokenwm.tokenizer.networks import Decoder, Encoder
from tokenwm.tokenizer.quantizer import FSQ_LEVELS, Quantized, QuantizerKind, build_quantizer

PIXEL_SCALE = 0.25
"""Pixels in [0, 1] minus the mean frame are divided by this.

About unit variance where something moves.
"""
PIXEL_MEMORY = 256 * 2**20
"""Bytes that encoding or decoding many frames may take at a time, unless told otherwise."""
LIVE_FEATURES = 6
"""Feature maps of the finest stage that a pass of a network holds at the same time."""
DEAD_CODEBOOK_SHARE, FAITHFUL_PSNR = 0.05, 40.0
"""Share of codes in use below which a tokenizer has collapsed, and dB at which it has not.

A world of few distinct pictures, as a grid's cells, needs few codes; a frame of 40 dB has them all.
"""


@dataclass(frozen=True, kw_only=True)
class FrameTokenizerConfig:
    """Sizes of the frame tokenizer.

    Attributes:
        channels: Width of each stage; every stage after the first halves the resolution.
        num_blocks: Residual blocks per stage, in the encoder and in the decoder.
        patch_size: Pixels per side that the stem folds into channels.
        encoder_kernel_size: Side of the encoder's convolution kernels. With 1 a token depends on
            its own pixels only, so it changes only when they do, which makes frames far easier to
            predict; the decoder's kernels are 3.
        attention_stages: Stages with spatial attention (index 0 is the finest).
        quantizer: ``fsq`` (behind a BatchNorm) or ``vq`` (k-means init, dead-code revival, rotation
            trick).
        codebook_size: Number of codes. FSQ knows 64, 240, 256, 512, 1000, 1024, 2048 and 4096.
        code_dim: Width of a ``vq`` code; FSQ derives its own.
        commitment_weight: Weight of the ``vq`` commitment loss.
        code_margin: How much farther than the border of its bin the latent of a token has to go
            until the token changes, in bins, where frames are encoded in order; for ``vq`` a share
            of the distance to the nearest code. 0 takes the nearest code always.
    """

    channels: tuple[int, ...] = (64, 128)
    num_blocks: int = 1
    patch_size: int = 4
    encoder_kernel_size: int = 1
    attention_stages: tuple[int, ...] = ()
    quantizer: QuantizerKind = "fsq"
    codebook_size: int = 512
    code_dim: int = 32
    commitment_weight: float = 0.25
    code_margin: float = 0.0

    def __post_init__(self) -> None:
        if self.quantizer not in get_args(QuantizerKind):
            raise TokenwmError(f"quantizer={self.quantizer!r}; choose fsq or vq")
        if self.encoder_kernel_size < 1 or self.encoder_kernel_size % 2 == 0:
            raise TokenwmError(
                f"encoder_kernel_size={self.encoder_kernel_size}; use an odd number, 1 or 3"
            )
        if self.quantizer == "fsq" and self.codebook_size not in FSQ_LEVELS:
            sizes = ", ".join(map(str, sorted(FSQ_LEVELS)))
            raise TokenwmError(
                f"codebook_size={self.codebook_size} is not available for fsq; choose one of "
                f"{sizes}, or quantizer=vq for any size"
            )
        if not 2 <= self.codebook_size <= 65536:
            raise TokenwmError(
                f"codebook_size={self.codebook_size}; tokens are stored as uint16, so use 2 to "
                "65536"
            )
        if not self.channels or min(*self.channels, self.num_blocks, self.patch_size) < 1:
            raise TokenwmError(
                f"channels={self.channels}, num_blocks={self.num_blocks}, "
                f"patch_size={self.patch_size}: all must be at least 1"
            )
        if not 0.0 <= self.code_margin < math.inf:
            raise TokenwmError(
                f"code_margin={self.code_margin}; use a number of bins, 0 (none) or more"
            )

    @property
    def code_levels(self) -> tuple[int, ...]:
        """Levels of each FSQ dimension, of which a code's index is made; empty for ``vq``."""
        return tuple(FSQ_LEVELS[self.codebook_size]) if self.quantizer == "fsq" else ()

    @property
    def downsampling(self) -> int:
        """Pixels per token and side, ``f``."""
        return int(self.patch_size * 2 ** (len(self.channels) - 1))

    def token_grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of tokens for an image of ``(H, W)``.

        Raises:
            TokenwmError: The image cannot be divided into tokens.
        """
        factor = self.downsampling
        if image_size[0] % factor or image_size[1] % factor:
            raise TokenwmError(
                f"frames of {image_size[0]}×{image_size[1]} pixels cannot be divided into tokens "
                f"of {factor}×{factor} pixels (patch_size {self.patch_size} × "
                f"2^{len(self.channels) - 1}); prepare frames whose sides are multiples of "
                f"{factor}, or change patch_size or channels"
            )
        return image_size[0] // factor, image_size[1] // factor


class TokenizerOutput(NamedTuple):
    """Results of a training pass of the tokenizer.

    Attributes:
        reconstruction: ``(B * cameras, 3, H, W)`` float32, about [0, 1]; of a square only, if it
            was asked for.
        target: The same shape, what it should have been.
        indices: ``(B * cameras, h * w)`` int64.
        commitment_loss: Scalar, weighted.
        inconsistency: Scalar, mean squared distance in bins between the latents of noisy and of
            clean frames; zero unless it was asked for.
    """

    reconstruction: Tensor
    target: Tensor
    indices: Tensor
    commitment_loss: Tensor
    inconsistency: Tensor


class FrameTokenizer(nn.Module):
    """VQ-VAE over single camera frames; all cameras of a step share its weights and codebook.

    Args:
        config: Sizes.
        image_size: ``(H, W)`` of every camera, pixels.
        num_cameras: Cameras per step.

    Attributes:
        pixel_memory: Bytes that encoding or decoding may take at a time; more frames go through in
            parts. Not saved.
    """

    mean_frame: Tensor

    def __init__(
        self, config: FrameTokenizerConfig, image_size: tuple[int, int], num_cameras: int = 1
    ) -> None:
        super().__init__()
        self.config = config
        self.image_size = image_size
        self.num_cameras = num_cameras
        self.grid = config.token_grid(image_size)
        self.pixel_memory = PIXEL_MEMORY
        self.quantizer = build_quantizer(
            config.quantizer, config.codebook_size, config.code_dim, config.commitment_weight
        )
        sizes = (config.channels, config.num_blocks, config.patch_size, self.quantizer.code_dim)
        self.encoder = Encoder(
            *sizes,
            attention_stages=config.attention_stages,
            kernel_size=config.encoder_kernel_size,
        )
        self.decoder = Decoder(*sizes, attention_stages=config.attention_stages)
        self.register_buffer("mean_frame", torch.full((num_cameras, 3, *image_size), 0.5))

    @property
    def codebook_size(self) -> int:
        """``V``, number of codes."""
        return self.config.codebook_size

    @property
    def tokens_per_camera(self) -> int:
        """Tokens of one camera frame."""
        return math.prod(self.grid)

    @property
    def tokens_per_frame(self) -> int:
        """``K``, tokens of all cameras of a step."""
        return self.num_cameras * self.tokens_per_camera

    @property
    def frame_shape(self) -> tuple[int, int, int, int]:
        """``(cameras, H, W, 3)``."""
        return (self.num_cameras, *self.image_size, 3)

    @property
    def frames_at_once(self) -> int:
        """Number of steps whose frames are encoded or decoded at once, by ``pixel_memory``."""
        per_pixel = max(3.0, self.config.channels[0] / self.config.patch_size**2)  # finest features
        num_bytes = LIVE_FEATURES * 4 * per_pixel * math.prod(self.frame_shape[:3])
        return max(1, int(self.pixel_memory / num_bytes))

    def normalize(self, frames: Tensor) -> Tensor:
        """``(..., cameras, H, W, 3)`` uint8 → ``(B * cameras, 3, H, W)``, centred and scaled."""
        pixels = frames.flatten(0, -5) if frames.ndim > 4 else frames[None]
        pixels = pixels.movedim(-1, -3).float() / 255.0 - self.mean_frame  # (B, cameras, 3, H, W)
        return (pixels / PIXEL_SCALE).flatten(0, 1).contiguous(memory_format=torch.channels_last)

    def _to_unit(self, output: Tensor, mean: Tensor | None = None) -> Tensor:
        """``(B * cameras, 3, H, W)`` network output → pixels, about [0, 1]."""
        pixels = output.float() * PIXEL_SCALE
        if mean is not None:  # of parts of frames, each its own
            return pixels + mean
        return (torch.unflatten(pixels, 0, (-1, self.num_cameras)) + self.mean_frame).flatten(0, 1)

    def forward(
        self,
        frames: Tensor,
        max_shift: int = 0,
        noise: int = 0,
        consistency: bool = False,
        crop: int = 0,
    ) -> TokenizerOutput:
        """Encode, quantize and decode ``(..., cameras, H, W, 3)`` uint8 frames.

        Args:
            frames: The frames.
            max_shift: Every camera frame is moved at random by up to so many pixels first, see
                :func:`shifted`.
            noise: Whole levels in [-noise, noise], drawn for every value of every pixel, are added
                to what is encoded, not to what is to be reconstructed.
            consistency: Encode the clean frames too, and compare.
            crop: Of every camera frame only a square with sides of so many pixels is taken, see
                :func:`~tokenwm.tokenizer.augmentation.draw_squares`; 0 takes all of it, as do
                frames that are no larger.

        Raises:
            ShapeError: The frames do not have the tokenizer's cameras and size.
        """
        self._check_frames(frames)
        pixels = self.normalize(frames)
        mean = None
        if max_shift > 0:
            size = (pixels.shape[0], 2)
            pixels = shifted(
                pixels, torch.randint(-max_shift, max_shift + 1, size, device=pixels.device)
            )
        if 0 < crop < min(self.image_size):
            corner = draw_squares(pixels, crop, self.config.downsampling)
            means = self.mean_frame.expand(len(pixels) // self.num_cameras, -1, -1, -1, -1)
            pixels, mean = cut(pixels, corner, crop), cut(means.flatten(0, 1), corner, crop)
        seen = pixels
        if noise > 0:
            levels = torch.randint(-noise, noise + 1, pixels.shape, device=pixels.device)
            seen = pixels + levels / (255.0 * PIXEL_SCALE)
        quantized = self._quantized(torch.cat([seen, pixels]) if consistency else seen)
        count, places = len(pixels), quantized.places
        grid = [side // self.config.downsampling for side in pixels.shape[-2:]]
        codes = torch.unflatten(quantized.codes[:count].transpose(1, 2), 2, grid)
        distance = places[:count] - places[count:] if consistency else places.new_zeros(1)
        return TokenizerOutput(
            self._to_unit(self.decoder(codes), mean),
            self._to_unit(pixels, mean),
            quantized.indices[:count],
            quantized.commitment_loss,
            distance.square().mean(),
        )

    @torch.no_grad()
    def encode_frames(self, frames: Tensor, shift: tuple[int, int] = (0, 0)) -> Tensor:
        """Turn frames into tokens, each on its own, as many at a time as ``pixel_memory`` allows.

        Args:
            frames: ``(..., cameras, H, W, 3)`` uint8 in [0, 255], on any device.
            shift: Pixels by which all frames are moved down and right first, see :func:`shifted`.

        Returns:
            ``(..., K)`` int64 in [0, codebook_size), on the tokenizer's device; cameras in order,
            each row by row.

        Raises:
            ShapeError: The frames do not have the tokenizer's cameras and size.
        """
        indices = [part.indices for part in self._encoded(frames, shift)]
        shape = (*frames.shape[:-4], self.tokens_per_frame)
        if not indices:
            return torch.zeros(shape, dtype=torch.int64, device=self.mean_frame.device)
        return torch.cat(indices).reshape(shape)

    @torch.no_grad()
    def encode_sequence(
        self, frames: Tensor, previous: Tensor | None = None, shift: tuple[int, int] = (0, 0)
    ) -> Tensor:
        """Turn frames that follow one another into tokens that change only when pictures do.

        A token stays as it is until its latent is more than ``0.5 + code_margin`` bins away from
        the token's in some digit; then it becomes the nearest. A camera's noise thus does not flip
        a token whose latent lies near a border. What a frame's tokens are depends on where encoding
        began, as in any video codec. With ``code_margin=0`` it does not, and they are those of
        :meth:`encode_frames`.

        Args:
            frames: ``(B, T, cameras, H, W, 3)`` uint8 in [0, 255], on any device.
            previous: ``(B, K)`` int64, tokens of the frames before; None begins here.
            shift: As in :meth:`encode_frames`.

        Returns:
            ``(B, T, K)`` int64 in [0, codebook_size), on the tokenizer's device.

        Raises:
            ShapeError: The frames do not have the tokenizer's cameras and size, or the previous
                tokens another shape.
        """
        return self.encode_both(frames, previous, shift)[0]

    @torch.no_grad()
    def encode_both(
        self, frames: Tensor, previous: Tensor | None = None, shift: tuple[int, int] = (0, 0)
    ) -> tuple[Tensor, Tensor]:
        """:meth:`encode_sequence` and :meth:`encode_frames` at the price of one."""
        self._check_frames(frames)
        size = check_shape("frames", frames, ("B", "T", *self.frame_shape))
        if previous is not None:
            check_shape("previous", previous, (size["B"], self.tokens_per_frame))
            previous = previous.to(self.mean_frame.device)
        if self.config.code_margin == 0.0 or 0 in frames.shape[:2]:
            alone = self.encode_frames(frames, shift)
            return alone, alone
        encoded = [(part.indices, part.places) for part in self._encoded(frames, shift)]
        nearest, places = (
            torch.cat(parts).reshape(*frames.shape[:2], self.tokens_per_frame, *parts[0].shape[2:])
            for parts in zip(*encoded, strict=True)
        )
        tokens = []
        for place, token in zip(places.unbind(1), nearest.unbind(1), strict=True):
            if previous is not None:
                token = self.quantizer.kept(place, token, previous, self.config.code_margin)
            tokens.append(token)
            previous = token
        return torch.stack(tokens, dim=1), nearest

    def _encoded(self, frames: Tensor, shift: tuple[int, int]) -> Iterator[Quantized]:
        """Camera frames quantized, in parts that fit into ``pixel_memory``; none of no frame."""
        self._check_frames(frames)
        flat = frames.reshape(-1, *self.frame_shape)
        for part in slices(len(flat), self.frames_at_once) if len(flat) else ():
            pixels = self.normalize(flat[part].to(self.mean_frame.device))
            if shift != (0, 0):
                moved = torch.tensor(shift, device=pixels.device).expand(pixels.shape[0], 2)
                pixels = shifted(pixels, moved)
            yield self._quantized(pixels)

    def _quantized(self, pixels: Tensor) -> Quantized:
        """``(B, 3, H, W)`` of :meth:`normalize` → tokens and what they stand for."""
        latents = self.encoder(pixels)  # (B, code_dim, h, w)
        quantized: Quantized = self.quantizer(latents.flatten(2).transpose(1, 2))
        return quantized

    @torch.no_grad()
    def decode_to_unit(self, tokens: Tensor, decoder: nn.Module | None = None) -> Tensor:
        """Turn tokens into pixels, all at once.

        Args:
            tokens: ``(..., K)`` int64 in [0, codebook_size).
            decoder: In place of the tokenizer's own, a copy of it in any type.

        Returns:
            ``(..., cameras, H, W, 3)`` float32, about [0, 1].

        Raises:
            ShapeError: The last axis is not ``K``.
        """
        if tokens.shape[-1] != self.tokens_per_frame:
            raise ShapeError(
                f"tokens have shape {tuple(tokens.shape)}; expected (..., {self.tokens_per_frame})"
            )
        decoder = self.decoder if decoder is None else decoder
        codes = self.quantizer.codes_of(tokens.reshape(-1, self.tokens_per_camera))
        codes = torch.unflatten(codes.transpose(1, 2), 2, self.grid).to(
            next(decoder.parameters()).dtype
        )
        codes = codes.contiguous(memory_format=torch.channels_last)
        pixels = self._to_unit(decoder(codes)).movedim(1, -1)  # (B * cameras, H, W, 3)
        return pixels.reshape(*tokens.shape[:-1], self.num_cameras, *self.image_size, 3)

    def decode_frames(self, tokens: Tensor) -> Tensor:
        """Turn tokens into frames, as many at a time as ``pixel_memory`` allows.

        Args:
            tokens: ``(..., K)`` int64 in [0, codebook_size).

        Returns:
            ``(..., cameras, H, W, 3)`` uint8 in [0, 255].

        Raises:
            ShapeError: The last axis is not ``K``.
        """
        flat = tokens.reshape(-1, tokens.shape[-1])
        frames = tokens.new_empty((len(flat), *self.frame_shape), dtype=torch.uint8)
        for part in slices(len(flat), self.frames_at_once):
            frames[part] = to_uint8(self.decode_to_unit(flat[part]))
        return frames.reshape(*tokens.shape[:-1], *self.frame_shape)

    def _check_frames(self, frames: Tensor) -> None:
        if frames.dtype != torch.uint8:
            raise ShapeError(f"frames have dtype {frames.dtype}; expected uint8 in [0, 255]")
        tail = torch.empty(frames.shape[-4:], device="meta")  # there may be no frame at all
        check_shape("frames (..., cameras, H, W, 3)", tail, (self.num_cameras, *self.image_size, 3))


def slices(count: int, at_once: int) -> list[slice]:
    """Consecutive parts of ``[0, count)``; one empty part of nothing."""
    firsts = range(0, max(count, 1), at_once)
    return [slice(first, min(first + at_once, count)) for first in firsts]


def to_uint8(pixels: Tensor) -> Tensor:
    """Pixels about [0, 1] → uint8 in [0, 255], rounded and clipped."""
    return (pixels.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)


def has_collapsed(usage: float, psnr: float) -> bool:
    """True if a share of codes in use is that of a tokenizer that has collapsed, at this PSNR."""
    return usage < DEAD_CODEBOOK_SHARE and psnr < FAITHFUL_PSNR


def codebook_usage(counts: Tensor) -> tuple[float, float]:
    """Share of codes in use and codebook perplexity.

    Args:
        counts: ``(V,)`` how often each code occurred.

    Returns:
        Share of codes that occurred, in [0, 1], and ``exp`` of the entropy of their distribution,
        in [1, V].
    """
    probabilities = counts.double() / counts.sum().clamp(min=1)
    entropy = -(probabilities * probabilities.clamp(min=1e-30).log()).sum()
    return float((counts > 0).double().mean()), float(entropy.exp())
