"""A head: a small network on what a frozen world model sees, or on what it knows.

What its outputs mean is said beside the weights, so that a loaded head can be used without the
code that trained it.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tokenwm.errors import ShapeError, TokenwmError

MOST_OUTPUTS, MOST_WIDTH, MOST_CAMERAS, MOST_FEATURES = 2**16, 4096, 64, 2**16
MOST_DEPTH, MOST_MEMBERS = 8, 16
MAP_SIDE = 16
"""Pictures are halved until no side of a map is larger."""
NUM_HATS = 9
"""Values of a number of a code, evenly in [-1, 1], around which there are hats."""
CELL_WIDTH, FRAME_WIDTH = 64, 256
"""Numbers that a cell and a frame are seen as."""
NUM_PLACES = 24
"""Places that are looked for in a map: a position each, and what is there."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Shape of a head.

    Attributes:
        inputs: ``frames`` (pixels, real or imagined) or ``features`` (:meth:`World.features`).
        input_shape: Of one row: ``(cameras, H, W, 3)`` of frames, ``(E,)`` of features.
        num_outputs: Numbers that it gives for each row, of all members together.
        hidden: Width of the layers before the outputs.
        depth: How many of these there are.
        grid: ``(frames, cameras, rows, columns, code_dim)``: the first of the features are the
            codes of that many frames, see :class:`Eyes`; empty if features are just numbers.
        members: Networks of the same shape side by side, each with its own outputs.
        dropout: Share of numbers that are left out behind each hidden layer in training.
    """

    inputs: Literal["frames", "features"]
    input_shape: tuple[int, ...]
    num_outputs: int
    hidden: int = 128
    depth: int = 1
    grid: tuple[int, ...] = ()
    members: int = 1
    dropout: float = 0.0

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
        limits = {
            "num_outputs": MOST_OUTPUTS,
            "hidden": MOST_WIDTH,
            "depth": MOST_DEPTH,
            "members": MOST_MEMBERS,
        }
        for name, most in limits.items():
            if not 1 <= getattr(self, name) <= most:
                raise TokenwmError(f"{name} is {getattr(self, name)}; expected 1 to {most:,}")
        if self.num_outputs % self.members:
            raise TokenwmError(
                f"num_outputs is {self.num_outputs}; expected a multiple of {self.members} members"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise TokenwmError(f"dropout is {self.dropout}; expected 0 or more, below 1")
        if self.grid and not (
            self.inputs == "features"
            and len(self.grid) == 5
            and min(self.grid) >= 1
            and math.prod(self.grid) <= self.input_shape[0]
        ):
            raise TokenwmError(
                f"grid is {list(self.grid)}; expected [frames, cameras, rows, columns, code_dim], "
                "codes that are the first of the features, or nothing"
            )


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """The meaning of the outputs of a head.

    Attributes:
        names: One name per output; none where they are too many to have one.
        values: Whatever else is needed to read them, JSON values, such as means and units.
    """

    names: tuple[str, ...]
    values: dict[str, Any] = field(default_factory=dict)


class _Network(nn.Module):
    """One member of a head: a trunk that looks at the inputs, and layers that end in outputs."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.trunk: nn.Module
        if config.inputs == "frames":
            self.trunk = _Places(config.input_shape)
            width = self.trunk.num_outputs
        elif config.grid:
            self.trunk = Eyes(config.grid, config.input_shape[0])
            width = self.trunk.num_outputs
        else:
            (width,) = config.input_shape
            self.trunk = nn.LayerNorm(width)
        num_outputs = config.num_outputs // config.members
        # What is asked for is often nearly linear in what was seen.
        self.skip: nn.Linear | None = None
        if config.grid:
            self.skip = nn.Linear(width, num_outputs, bias=False)
        layers: list[nn.Module] = []
        for _ in range(config.depth):
            layers += [nn.Linear(width, config.hidden), nn.ReLU()]
            layers += [nn.Dropout(config.dropout)] if config.dropout else []
            width = config.hidden
        layers.append(nn.Linear(width, num_outputs))
        self.outputs = nn.Sequential(*layers)

    @property
    def last(self) -> nn.Linear:
        """The last layer, whose outputs are those of this member."""
        layer = self.outputs[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, values: Tensor) -> Tensor:
        """Inputs of the right shape → ``(B, num_outputs / members)``."""
        seen = self.trunk(values)
        outputs: Tensor = self.outputs(seen)
        if self.skip is not None:
            outputs = outputs + self.skip(seen)
        return outputs.float()


class Head(_Network):
    """The networks of a head, and what their outputs mean.

    Args:
        config: Its shape.
        meaning: What its outputs are.
    """

    def __init__(self, config: HeadConfig, meaning: Meaning) -> None:
        super().__init__(config)
        if len(meaning.names) not in (0, config.num_outputs):
            raise TokenwmError(
                f"{len(meaning.names)} names for {config.num_outputs} outputs of a head"
            )
        self.config, self.meaning = config, meaning
        self.others = nn.ModuleList(_Network(config) for _ in range(config.members - 1))

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs of rows.

        Args:
            inputs: ``(B, cameras, H, W, 3)`` uint8 in [0, 255], or the same as real numbers in
                [0, 255]; or ``(B, E)`` features.

        Returns:
            ``(B, num_outputs)`` float32, those of each member behind one another.

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
        return torch.cat(
            [super().forward(values), *(other(values) for other in self.others)], dim=1
        )


class Eyes(nn.Module):
    """A trunk that sees frames by their codes: a vector for each, and what is no code beside them.

    A code says what is in its cell and where in it, in its tokenizer's own language. Each of its
    numbers enters as it is and as hats around some values (one-hot for FSQ of 8 levels); one
    network translates the codes of all cells, and one layer puts a frame's cells together. All
    frames are seen alike, so what was learned on single frames serves heads that compare two.
    """

    hats: Tensor

    def __init__(self, grid: tuple[int, ...], num_inputs: int) -> None:
        super().__init__()
        self.num_codes, (self.num_frames, *cells, self.code_dim) = math.prod(grid), grid
        self.register_buffer("hats", torch.linspace(-1.0, 1.0, NUM_HATS), persistent=False)
        self.cells = nn.Sequential(
            nn.Linear(self.code_dim * (NUM_HATS + 1), 2 * CELL_WIDTH),
            nn.ReLU(),
            nn.Linear(2 * CELL_WIDTH, CELL_WIDTH),
            nn.ReLU(),
        )
        self.frame = nn.Sequential(nn.Linear(math.prod(cells) * CELL_WIDTH, FRAME_WIDTH), nn.ReLU())
        self.num_outputs = self.num_frames * FRAME_WIDTH + num_inputs - self.num_codes

    def forward(self, values: Tensor) -> Tensor:
        """``(B, E)`` → ``(B, num_outputs)``."""
        others = values[:, self.num_codes :]
        seen: Tensor = self.frame(self.see_cells(values).flatten(1))
        return torch.cat([seen.reshape(len(values), -1), others], dim=1)

    def see_cells(self, values: Tensor) -> Tensor:
        """``(B, E)`` → ``(B * frames, cells, CELL_WIDTH)``."""
        codes = values[:, : self.num_codes]
        near = (codes.unsqueeze(-1) - self.hats).abs() * ((NUM_HATS - 1) / 2.0)
        numbers = torch.cat([(1.0 - near).relu(), codes.unsqueeze(-1)], dim=-1)
        width = self.code_dim * (NUM_HATS + 1)
        cells: Tensor = self.cells(numbers.reshape(len(values) * self.num_frames, -1, width))
        return cells


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
