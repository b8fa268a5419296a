"""Eyes: what codes mean, learned once on single frames before heads are trained for their tasks.

Where a thing is lies in codes in a way that takes long to learn from actions or distances, and
little time from small pictures of the same frames and from the robot's state in them. What is
learned so is where a head begins; it goes on learning with the rest of the head.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from tokenwm.heads.head import CELL_WIDTH, FRAME_WIDTH, Eyes, Head
from tokenwm.heads.recorded import Recorded
from tokenwm.heads.training import fit_head

BATCH, LEARNING_RATE, STATE_WEIGHT = 256, 3e-3, 4.0


class Lessons(nn.Module):
    """Eyes and what they learn from: pictures of each cell, and of the frame with its state.

    Args:
        grid: Cameras, rows, columns and numbers of a code.
        num_pixels: Numbers of a small picture.
        num_states: Numbers of a state.
    """

    def __init__(self, grid: tuple[int, int, int, int], num_pixels: int, num_states: int) -> None:
        super().__init__()
        self.eyes = Eyes((1, *grid), math.prod(grid))
        self.cell = nn.Linear(CELL_WIDTH, num_pixels // math.prod(grid[:3]))
        self.whole = nn.Linear(FRAME_WIDTH, num_pixels + num_states)

    def forward(self, codes: Tensor) -> Tensor:
        """``(B, F)`` → ``(B, num_pixels + num_pixels + num_states)``."""
        cells = self.eyes.see_cells(codes)
        of_frame = self.whole(self.eyes.frame(cells.flatten(1)))
        return torch.cat([self.cell(cells).flatten(1), of_frame], dim=1)


def fit_eyes(
    recorded: Recorded,
    grid: tuple[int, int, int, int],
    *,
    num_steps: int,
    seconds: float = math.inf,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[int, float], None] | None = None,
) -> Lessons:
    """Train eyes to tell pictures and states from codes.

    Args:
        recorded: Steps of training episodes.
        grid: Cameras, rows, columns and numbers of a code, :attr:`TokenWorldModel.code_grid`.
        num_steps: Optimizer steps.
        seconds: See :func:`fit_head`.
        seed: Of weights and order.
        device: Where.
        progress: See :func:`fit_head`.
    """
    num_codes = recorded.goals.shape[1]
    num_states = recorded.features.shape[1] - num_codes
    num_pixels = recorded.pictures.shape[1]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        pictures, states = torch.split(targets, [num_pixels, num_states], dim=1)
        off = (outputs - torch.cat([pictures, pictures, states], dim=1)).square()
        cells, whole, state = torch.split(off, [num_pixels, num_pixels, num_states], dim=1)
        return cells.mean() + whole.mean() + STATE_WEIGHT * state.sum(1).mean()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lessons = Lessons(grid, num_pixels, num_states).to(device)
        fit_head(
            lessons,
            _batches(recorded, torch.Generator().manual_seed(seed)),
            loss,
            num_steps=num_steps,
            seconds=seconds,
            learning_rate=LEARNING_RATE,
            progress=progress,
        )
    return lessons


def see_with(head: Head, lessons: Lessons | None) -> None:
    """Let a head begin with eyes that had their lessons, each of its members."""
    if lessons is not None:
        for network in (head, *head.others):
            network.trunk.load_state_dict(lessons.eyes.state_dict())


def _batches(recorded: Recorded, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Codes; and standardised pictures with states behind them. Without end."""
    some = recorded.draw_rows(4096, generator)
    known = recorded.pictures[some].float()
    mean = known.mean(0)
    spread = (known - mean).square().mean().sqrt().clamp(min=1e-3)
    num_codes = recorded.goals.shape[1]
    while True:
        rows = recorded.draw_rows(BATCH, generator)
        pictures = (recorded.pictures[rows].float() - mean) / spread
        yield (
            recorded.goals[rows],
            torch.cat([pictures, recorded.features[rows, num_codes:]], dim=1),
        )
