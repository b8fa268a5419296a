"""Goal-conditioned cloning by hindsight: which actions came next, given where they led.

What was reached ``h`` steps later was the goal of the actions on the way, so every recording shows
how to get to every frame in it; no reward and no label is needed. Without a goal it is the prior of
what is usually done. It is a policy, and a prior for planners.

A goal is a picture: its codes are read, never the robot's state at the goal. A user who has a
picture does not know that state, and a head that may read it learns to drive the robot there and
leaves the rest of the picture alone.

Source: Ding et al. (2019), goal-conditioned imitation with hindsight relabelling; Ghosh et al.
(2021), GCSL; chunks in one shot after Zhao et al. (2023), ACT. Deviation: the chunk's distribution
is a mixture of whole chunks.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokenwm.errors import TokenwmError
from tokenwm.heads.actions import ActionCode
from tokenwm.heads.eyes import Lessons, see_with
from tokenwm.heads.folder import load_head
from tokenwm.heads.head import Head, Meaning
from tokenwm.heads.pairs import check_pair, pair_config, pair_inputs, whole_numbers
from tokenwm.heads.recorded import Recorded
from tokenwm.heads.training import fit_head
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.policies.chunks import Chunks, num_outputs
from tokenwm.shapes import check_shape, is_whole, shown
from tokenwm.tokenizer.actions import ScalarTokenizer

NAME = "prior"
BATCH, LEARNING_RATE, DROPOUT = 256, 2e-3, 0.1
NO_GOAL, NO_STEPS = 0.1, 0.3
"""Shares of training rows whose goal is hidden, and of others whose steps to go are."""
AFTER = 0.1
"""Weight of actions after the goal was reached: no part of the way, but the chunk goes on."""
NUM_EXTRAS = 4


class GoalPolicy:
    """The action prior: which chunk of actions comes next, given a goal and how far ahead it is.

    ::

        prior = tokenwm.GoalPolicy.load(model)
        chunks = prior(model.features(state), model.goal_features(picture), steps=5)
        chunks.sample(64, generator)  # (B, 64, H, A); also chunks.mode(), chunks.log_prob(actions)

    Args:
        head: As :func:`fit_prior` or :func:`~tokenwm.heads.folder.load_head` gives it.
        action: Tokenizer of the model's actions.

    Attributes:
        num_steps: ``H``, steps of a chunk.
        reach: Most steps to go that it was trained for.

    Raises:
        TokenwmError: The head is no prior, or one for other actions.
    """

    def __init__(self, head: Head, action: ScalarTokenizer) -> None:
        self.num_steps, self.num_chunks, self.reach = whole_numbers(
            head, NAME, "num_steps", "num_chunks", "reach"
        )
        self.head, self.code = head, ActionCode(action, next(head.parameters()).device)
        if head.config.num_outputs != num_outputs(self.code, self.num_steps, self.num_chunks):
            raise TokenwmError(f"this head is no {NAME} for actions of {action.num_dimensions}")

    @classmethod
    def load(cls, model: TokenWorldModel) -> "GoalPolicy":
        """The prior that ``tokenwm heads`` trained for a model.

        Raises:
            CheckpointError: There is none.
        """
        return cls(load_head(model, NAME), model.vocabulary.action)

    @torch.inference_mode()
    def __call__(
        self, features: Tensor, goal: Tensor | None = None, steps: int | Tensor | None = None
    ) -> Chunks:
        """Say which chunks may come next.

        Actions behind the goal's arrival, where ``steps < H``, are what is usual then.

        Args:
            features: ``(B, E)``.
            goal: ``(B, E)`` or ``(1, E)``, features of goals, of which the codes are read; or codes
                only. None: whatever is usual.
            steps: In how many steps of the model the goal is to be reached, one number or ``(B,)``;
                more than ``reach`` counts as ``reach``. None: whenever it is usual.

        Raises:
            TokenwmError: A shape does not fit, or ``steps`` is no whole number of at least 1.
        """
        num_codes = math.prod(self.head.config.grid) // 2
        given = features.new_zeros(1, num_codes) if goal is None else goal
        _, codes = check_pair(self.head, features, given, NUM_EXTRAS)
        if steps is None or goal is None:
            ahead = torch.zeros(len(features), dtype=torch.int64, device=features.device)
        elif isinstance(steps, Tensor):
            check_shape("steps", steps, (len(features),))
            ahead = steps.to(features.device).round().long().clamp(min=1)
        elif is_whole(steps):
            ahead = torch.full((len(features),), int(steps), device=features.device)
        else:
            raise TokenwmError(f"steps={shown(steps)}; use a whole number, at least 1, or None")
        extras = _extras(torch.full_like(ahead, goal is not None), ahead, self.reach)
        outputs = self.head(pair_inputs(features, codes, extras))
        return Chunks.of_outputs(outputs, self.code, self.num_steps, self.num_chunks)


def fit_prior(
    recorded: Recorded,
    grid: tuple[int, int, int, int],
    action: ScalarTokenizer,
    *,
    chunk: int,
    reach: int,
    num_steps: int,
    seconds: float = math.inf,
    num_chunks: int = 8,
    hidden: int = 512,
    seed: int = 0,
    device: torch.device | str = "cpu",
    eyes: Lessons | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> GoalPolicy:
    """Train a prior on recorded steps.

    Args:
        recorded: Steps of training episodes.
        grid: Cameras, rows, columns and numbers of a code, :attr:`TokenWorldModel.code_grid`.
        action: Tokenizer of the actions.
        chunk: ``H``, steps of a chunk.
        reach: Most steps from a state to its goal.
        num_steps: Optimizer steps.
        seconds: See :func:`fit_head`.
        num_chunks: Chunks in the mixture.
        hidden: Width.
        seed: Of weights, and of states and goals.
        device: Where.
        eyes: Of :func:`~tokenwm.heads.eyes.fit_eyes`, to begin with; None learns to see anew.
        progress: See :func:`fit_head`.
    """
    code = ActionCode(action, device)
    config = pair_config(
        grid,
        recorded.features.shape[1],
        NUM_EXTRAS,
        num_outputs=num_outputs(code, chunk, num_chunks),
        hidden=hidden,
        depth=2,
        dropout=DROPOUT,
    )
    values = {"kind": NAME, "num_steps": chunk, "num_chunks": num_chunks, "reach": reach}

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head(config, Meaning(names=(), values=values))
        nn.init.normal_(head.last.bias, std=0.3)  # chunks that differ from the start
        generator = torch.Generator().manual_seed(seed)
        see_with(head, eyes)
        fit_head(
            head.to(device),
            _batches(recorded, chunk, reach, generator),
            partial(_loss, code=code, chunk=chunk, num_chunks=num_chunks),
            num_steps=num_steps,
            seconds=seconds,
            learning_rate=LEARNING_RATE,
            progress=progress,
        )
    return GoalPolicy(head, action)


def _loss(
    outputs: Tensor, targets: Tensor, *, code: ActionCode, chunk: int, num_chunks: int
) -> Tensor:
    """Nats per number of an action, all rows alike, however near their goals are."""
    actions, weights = torch.split(targets, [chunk * code.num_dimensions, chunk], dim=1)
    chunks = Chunks.of_outputs(outputs, code, chunk, num_chunks)
    nats = -chunks.log_prob(actions.reshape(len(actions), chunk, -1), weights)
    return (nats / weights.sum(1).clamp(min=1.0)).mean() / code.num_dimensions


def measure_prior(
    prior: GoalPolicy, recorded: Recorded, training: Recorded, seed: int = 0
) -> dict[str, Any]:
    """Figures of a prior on held-out episodes, of actions up to the goal.

    Returns:
        Nats per number of an action: ``nats`` given goal and steps, ``nats_without_steps``,
        ``nats_without_goal``; ``marginal_nats`` of how often each bin occurs in training,
        ``uniform_nats``; and for real values ``mode_error``, mean absolute difference of the most
        likely actions, as a share of the range of the training data, beside that
        ``without_goal``.
    """
    code, device = prior.code, next(prior.head.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    rows, ahead = recorded.draw_pairs(2000, 1, prior.reach, generator)
    actions, is_there = recorded.chunks(rows, prior.num_steps)
    counts = (is_there & (torch.arange(prior.num_steps) < ahead[:, None])).to(device)
    features, goals = recorded.features[rows].to(device), recorded.goals[rows + ahead].to(device)
    actions, ahead = actions.to(device), ahead.to(device)
    number = int(counts.sum()) * code.num_dimensions
    given = {
        "": prior(features, goals, ahead),
        "_without_steps": prior(features, goals),
        "_without_goal": prior(features),
    }
    figures: dict[str, Any] = {}
    for name, chunks in given.items():
        figures[f"nats{name}"] = float(-chunks.log_prob(actions, counts).sum()) / number
    known = training.actions[training.last > torch.arange(len(training))].to(device)
    figures["marginal_nats"] = float(code.marginal_nats(known, actions[counts]))
    figures["uniform_nats"] = code.uniform_nats
    if code.is_continuous:
        for name in ("", "_without_goal"):
            off = code.inputs(given[name].mode()) - code.inputs(actions)
            figures[f"mode_error{name}"] = float(off[counts].abs().mean()) / 2.0
    return figures


def _batches(
    recorded: Recorded, chunk: int, reach: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs; and actions behind one another with the weight of each step. Without end."""
    while True:
        rows, ahead = recorded.draw_pairs(BATCH, 1, reach, generator)
        hidden = torch.rand(2, BATCH, generator=generator)
        has_goal = hidden[0] >= NO_GOAL
        goals = recorded.goals[rows + ahead] * has_goal[:, None]
        known = torch.where(has_goal & (hidden[1] >= NO_STEPS), ahead, 0)
        extras = _extras(has_goal, known, reach)
        actions, is_there = recorded.chunks(rows, chunk)
        is_before = (torch.arange(chunk) < ahead[:, None]) | ~has_goal[:, None]
        weights = is_there * torch.where(is_before, 1.0, AFTER)
        inputs = pair_inputs(recorded.features[rows], goals, extras)
        yield inputs, torch.cat([actions.float().flatten(1), weights], dim=1)


def _extras(has_goal: Tensor, ahead: Tensor, reach: int) -> Tensor:
    """Marks of a goal and of its distance in steps, 0 if nobody knows it: ``(B, NUM_EXTRAS)``."""
    ahead = ahead.clamp(max=reach).float()
    knows = ahead > 0
    return torch.stack(
        [has_goal.float(), knows.float(), ahead / reach, knows / ahead.clamp(min=1)], 1
    )
