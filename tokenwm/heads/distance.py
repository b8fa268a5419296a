"""Learned temporal distance: how many steps it takes from here to a picture, as in the records.

Trained by hindsight: two frames of one episode are as many steps apart as they are recorded, those
of different episodes are *far*. Nothing makes the distance symmetric: what falls is not lifted.

Source: Hartikainen et al. (2020), Dynamical Distance Learning; a categorical distribution over
steps with an expectation, in place of a regression, after Eysenbach et al. (2019), SoRB.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tokenwm.errors import TokenwmError
from tokenwm.heads.eyes import Lessons, see_with
from tokenwm.heads.folder import load_head
from tokenwm.heads.head import Head, Meaning
from tokenwm.heads.pairs import check_pair, in_parts, pair_config, pair_inputs, whole_numbers
from tokenwm.heads.recorded import Recorded
from tokenwm.heads.training import fit_head
from tokenwm.imagination.token_world_model import TokenWorldModel

NAME = "distance"
BATCH, LEARNING_RATE, DROPOUT = 256, 2e-3, 0.1
LATER, ELSEWHERE = 0.15, 0.15
"""Shares of training pairs that lie up to three times as far apart as is told apart, and that are
drawn from all steps of all episodes."""


class Distance:
    """Steps of the model from features to a goal; ``reach + 1`` stands for all that is farther.

    ::

        distance = tokenwm.Distance.load(model)
        goal = model.goal_features(picture)
        distance(model.features(state), goal)  # (B,) steps

    Args:
        head: As :func:`fit_distance` or :func:`~tokenwm.heads.folder.load_head` gives it.

    Attributes:
        reach: Most steps that are told apart.

    Raises:
        TokenwmError: The head is no distance.
    """

    def __init__(self, head: Head) -> None:
        (reach,) = whole_numbers(head, NAME, "reach")
        if head.config.num_outputs != reach + 2:
            raise TokenwmError(f"this head is no {NAME}: it has {head.config.num_outputs} outputs")
        self.head, self.reach = head, reach

    @classmethod
    def load(cls, model: TokenWorldModel) -> "Distance":
        """The distance that ``tokenwm heads`` trained for a model.

        Raises:
            CheckpointError: There is none.
        """
        return cls(load_head(model, NAME))

    @torch.inference_mode()
    def __call__(self, here: Tensor, there: Tensor) -> Tensor:
        """Expected steps from here to there, ``(B,)`` float32 in [0, reach + 1].

        Args:
            here: ``(B, E)``, features of states.
            there: ``(B, E)`` or ``(1, E)``, features of goals, of which the codes are read; or
                codes only.

        Raises:
            ShapeError: They have another shape.
        """
        return self.probabilities(here, there) @ torch.arange(self.reach + 2.0, device=here.device)

    @torch.inference_mode()
    def probabilities(self, here: Tensor, there: Tensor) -> Tensor:
        """``(B, reach + 2)`` float32, of being 0, 1, …, reach steps away, and of being farther."""
        _, codes = check_pair(self.head, here, there)
        parts = [self.head(pair_inputs(here[s], codes[s])) for s in in_parts(len(here))]
        return torch.cat(parts).softmax(-1)


def fit_distance(
    recorded: Recorded,
    grid: tuple[int, int, int, int],
    *,
    reach: int,
    num_steps: int,
    seconds: float = math.inf,
    hidden: int = 256,
    seed: int = 0,
    device: torch.device | str = "cpu",
    eyes: Lessons | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Distance:
    """Train a distance on recorded steps.

    Args:
        recorded: Steps of training episodes.
        grid: Cameras, rows, columns and numbers of a code, :attr:`TokenWorldModel.code_grid`.
        reach: Most steps that are told apart.
        num_steps: Optimizer steps.
        seconds: See :func:`fit_head`.
        hidden: Width.
        seed: Of weights and pairs.
        device: Where.
        eyes: Of :func:`~tokenwm.heads.eyes.fit_eyes`, to begin with; None learns to see anew.
        progress: See :func:`fit_head`.
    """
    config = pair_config(
        grid,
        recorded.features.shape[1],
        num_outputs=reach + 2,
        hidden=hidden,
        depth=2,
        dropout=DROPOUT,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head(config, Meaning(names=(), values={"kind": NAME, "reach": reach})).to(device)
        see_with(head, eyes)
        fit_head(
            head,
            _batches(recorded, reach, torch.Generator().manual_seed(seed)),
            cross_entropy,
            num_steps=num_steps,
            seconds=seconds,
            learning_rate=LEARNING_RATE,
            progress=progress,
        )
    return Distance(head)


def measure_distance(distance: Distance, recorded: Recorded, seed: int = 0) -> dict[str, Any]:
    """Figures of a distance on held-out episodes.

    Returns:
        ``error_steps`` of pairs within reach, beside ``guess_error_steps`` of always the same best
        guess; ``nats`` of the steps of such pairs, beside ``uniform_nats``; ``far_steps``, mean of
        frames of different episodes.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(distance.head.parameters()).device
    rows, ahead = recorded.draw_pairs(2000, 0, distance.reach, generator)
    here = recorded.features[rows].to(device)
    known = distance.probabilities(here, recorded.goals[rows + ahead].to(device)).cpu()
    expected = known @ torch.arange(distance.reach + 2.0)
    others = recorded.draw_rows(len(rows), generator)
    is_other = recorded.recording[others] != recorded.recording[rows]
    far = distance(here, recorded.goals[others].to(device)).cpu()[is_other]
    return {
        "error_steps": float((expected - ahead).abs().mean()),
        "guess_error_steps": float((ahead - ahead.median()).abs().float().mean()),
        "nats": float(-known.gather(1, ahead[:, None]).clamp(min=1e-12).log().mean()),
        "uniform_nats": math.log(distance.reach + 2),
        "far_steps": float(far.mean()) if len(far) else None,
    }


def _batches(
    recorded: Recorded, reach: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and classes, without end."""
    num_later, num_elsewhere = round(BATCH * LATER), round(BATCH * ELSEWHERE)
    while True:
        near = recorded.draw_pairs(BATCH - num_later - num_elsewhere, 0, reach, generator)
        later = recorded.draw_pairs(num_later, 0, 3 * reach, generator)
        rows, ahead = (torch.cat(parts) for parts in zip(near, later, strict=True))
        drawn = recorded.draw_rows(2 * num_elsewhere, generator).reshape(2, -1)
        here, there = torch.cat([rows, drawn[0]]), torch.cat([rows + ahead, drawn[1]])
        steps = there - here
        # Frames of two phases of one recording are no example: they are neither near nor far.
        is_same = recorded.last[here] == recorded.last[there]
        keep = is_same | (recorded.recording[here] != recorded.recording[there])
        is_near = is_same & (steps >= 0) & (steps <= reach)
        inputs = pair_inputs(recorded.features[here[keep]], recorded.goals[there[keep]])
        yield inputs, torch.where(is_near, steps, reach + 1)[keep]
