"""A head: a small network on what a frozen world model sees, or on what it knows.

What its outputs mean is said beside the weights, so that a loaded head can be used without the
code that trained it.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tokenwm.errors import ShapeError, TokenwmError

MOST_OUTPUTS, MOST_CAMERAS, MOST_FEATURES = 4096, 64, 2**16
MAP_SIDE = 16
"""Pictures are halved until no side of a map is larger."""
NUM_PLACES = 24
"""Places that are looked for in a map: a position each, and what is there."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Shape of a head.

    Attributes:
        inputs: ``frames`` (pixels, real or imagined) or ``features`` (:meth:`World.features`).
        input_shape: Of one row: ``(cameras, H, W, 3)`` of frames, ``(E,)`` of features.
        num_outputs: Numbers that it gives for each row.
        hidden: Width of the layer before the outputs.
    """

    inputs: Literal["frames", "features"]
    input_shape: tuple[int, ...]
    num_outputs: int
    hidden: int = 128

    def __post_init__(self) -> None:
        num_axes = {"frames": 4, "features": 1}[self.inputs]
        if len(self.input_shape) != num_axes or min(self.input_shape) < 1:
            raise TokenwmError(
                f"input_shape is {list(self.input_shape)}; {self.inputs} have {num_axes} axes"
            )
        most = {"frames": MOST_CAMERAS, "features": MOST_FEATURES}[self.inputs]
        if self.input_shape[0] > most:
            raise TokenwmError(
                f"input_shape is {list(self.input_shape)}; expected at most {most:,} first"
            )
        if self.inputs == "frames" and not (
            self.input_shape[-1] == 3 and all(8 <= side <= 1024 for side in self.input_shape[1:3])
        ):
            raise TokenwmError(
                f"input_shape is {list(self.input_shape)}; expected [cameras, H, W, 3] with sides "
                "in [8, 1024]"
            )
        for name in ("num_outputs", "hidden"):
            if not 1 <= getattr(self, name) <= MOST_OUTPUTS:
                raise TokenwmError(
                    f"{name} is {getattr(self, name)}; expected 1 to {MOST_OUTPUTS:,}"
                )


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """The meaning of the outputs of a head.

    Attributes:
        names: One name per output.
        values: Whatever else is needed to read them, JSON values, such as means and units.
    """

    names: tuple[str, ...]
    values: dict[str, Any] = field(default_factory=dict)


class Head(nn.Module):
    """The network of a head, and what its outputs mean.

    Args:
        config: Its shape.
        meaning: What its outputs are.
    """

    def __init__(self, config: HeadConfig, meaning: Meaning) -> None:
        super().__init__()
        if len(meaning.names) != config.num_outputs:
            raise TokenwmError(
                f"{len(meaning.names)} names for {config.num_outputs} outputs of a head"
            )
        self.config, self.meaning = config, meaning
        self.trunk: nn.Module
        if config.inputs == "frames":
            self.trunk = _Places(config.input_shape)
            flat = self.trunk.num_outputs
        else:
            (flat,) = config.input_shape
            self.trunk = nn.LayerNorm(flat)
        self.outputs = nn.Sequential(
            nn.Linear(flat, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.num_outputs)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs of rows.

        Args:
            inputs: ``(B, cameras, H, W, 3)`` uint8 in [0, 255], or the same as real numbers in
                [0, 255]; or ``(B, E)`` features.

        Returns:
            ``(B, num_outputs)`` float32.

        Raises:
            ShapeError: The inputs have another shape.
        """
        if tuple(inputs.shape[1:]) != self.config.input_shape:
            raise ShapeError(
                f"inputs of a head are {tuple(inputs.shape)}; expected "
                f"(B, {', '.join(map(str, self.config.input_shape))})"
            )
        values = inputs.float()
        if self.config.inputs == "frames":
            # Cameras beside the channels: a place is a place in one of the pictures.
            values = values.movedim(-1, 2).flatten(1, 2) / 127.5 - 1.0
        outputs: Tensor = self.outputs(self.trunk(values))
        return outputs.float()


class _Places(nn.Module):
    """Places of things in a picture, and what is there.

    Attention over a small map gives positions between its cells and what is seen around them
    (Levine et al. 2016, spatial softmax), so that one thing looks alike wherever it is.
    """

    grid: Tensor

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        cameras, height, width, _ = input_shape
        layers, channels, number = [], 3 * cameras, 0
        while number < 1 or max(height, width) > MAP_SIDE:
            layers.append(_convolution(channels, 32 if number else 16, 3 if number else 5, 2))
            channels, number = 32 if number else 16, number + 1
            height, width = -(-height // 2), -(-width // 2)
        layers += [_convolution(channels, 32, 3, 1), _convolution(32, 48, 3, 1)]
        self.convolutions = nn.Sequential(*layers)
        for parameter in self.convolutions.parameters():  # faster so on a CPU
            if parameter.ndim == 4:
                parameter.data = parameter.contiguous(memory_format=torch.channels_last)
        self.attention = nn.Conv2d(48, NUM_PLACES, 1)
        rows, columns = torch.linspace(-1.0, 1.0, height), torch.linspace(-1.0, 1.0, width)
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).flatten(1)  # (2, cells)
        self.register_buffer("grid", grid, persistent=False)
        self.num_outputs = NUM_PLACES * (48 + 2)

    def forward(self, pictures: Tensor) -> Tensor:
        """``(B, channels, H, W)`` → ``(B, num_outputs)``."""
        seen = self.convolutions(pictures.contiguous(memory_format=torch.channels_last))
        share = self.attention(seen).flatten(2).softmax(-1)  # (B, places, cells)
        known = torch.cat([seen.flatten(2), self.grid.expand(len(seen), -1, -1)], dim=1)
        return torch.einsum("bpn,bcn->bpc", share, known).flatten(1)


def _convolution(channels: int, wider: int, kernel: int, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, wider, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(wider),
        nn.ReLU(),
    )
