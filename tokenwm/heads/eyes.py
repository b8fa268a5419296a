"""Eyes: what codes mean, learned once on single frames before heads are trained for their tasks.

Where a thing is lies in codes in a way that takes long to learn from actions or distances, and
little time from small pictures of the same frames and from the robot's state in them. What is
learned so is where a head begins; it goes on learning with the rest of the head.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tokenwm.heads.head import Head, HeadConfig, Meaning
from tokenwm.heads.recorded import Recorded
from tokenwm.heads.training import fit_head

NAME = "eyes"
BATCH, LEARNING_RATE = 256, 3e-3


def fit_eyes(
    recorded: Recorded,
    grid: tuple[int, int, int, int],
    *,
    num_steps: int,
    seconds: float = math.inf,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[int, float], None] | None = None,
) -> Head:
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
    config = HeadConfig(
        inputs="features",
        input_shape=(num_codes,),
        num_outputs=recorded.pictures.shape[1] + num_states,
        grid=(1, *grid),
        hidden=256,
    )

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        sizes = [outputs.shape[1] - num_states, num_states]
        picture, state = torch.split((outputs - targets).square(), sizes, dim=1)
        return picture.mean() + state.sum(1).mean()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head(config, Meaning(names=(), values={"kind": NAME})).to(device)
        fit_head(
            head,
            _batches(recorded, torch.Generator().manual_seed(seed)),
            loss,
            num_steps=num_steps,
            seconds=seconds,
            learning_rate=LEARNING_RATE,
            progress=progress,
        )
    return head


def see_with(head: Head, eyes: Head | None) -> None:
    """Let a head begin with eyes that were trained already, each of its members."""
    if eyes is not None:
        for network in (head, *head.others):
            network.trunk.load_state_dict(eyes.trunk.state_dict())  # type: ignore[union-attr]


def _batches(recorded: Recorded, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Codes; and standardised pictures with states behind them. Without end."""
    some = torch.randint(len(recorded), (4096,), generator=generator)
    known = recorded.pictures[some].float()
    mean = known.mean(0)
    spread = (known - mean).square().mean().sqrt().clamp(min=1e-3)
    num_codes = recorded.goals.shape[1]
    while True:
        rows = torch.randint(len(recorded), (BATCH,), generator=generator)
        pictures = (recorded.pictures[rows].float() - mean) / spread
        yield (
            recorded.goals[rows],
            torch.cat([pictures, recorded.features[rows, num_codes:]], dim=1),
        )
