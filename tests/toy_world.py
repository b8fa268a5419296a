"""A world whose answers are known: a point on a line, for tests of whoever acts in a world.

``x' = x + action + slip``, kept on the line; a slip of one cell to either side has a known
probability. The reward of an action is minus the distance from the goal that it leads to, and being
at the far end of the line ends the episode. Pictures show the cell; nothing is learned.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenwm.errors import TokenwmError
from tokenwm.imagination.context import Context, noise_of
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.sampling import SamplingConfig, gumbel_noise
from tokenwm.imagination.world import Observation
from tokenwm.sequence.tokens import Tokens
from tokenwm.sequence.vocabulary import Vocabulary
from tokenwm.shapes import check_shape
from tokenwm.tokenizer.actions import BinTokenizer

CELLS = 16
SLIPS = torch.tensor([0.0, -1.0, 1.0])


@dataclass
class Use:
    """Whether a state was used, and whether it still may be."""

    is_used: bool = False


@dataclass(frozen=True, kw_only=True)
class ToyState:
    """``position`` ``(B,)`` float32 and whatever its noise depends on."""

    position: Tensor
    step: int
    seeds: Tensor
    streams: Tensor
    context: Context
    context_rows: Tensor
    steps_left: int | None = None
    use: Use = field(default_factory=Use)

    def rows(self, rows: Tensor) -> "ToyState":
        names = ("position", "seeds", "streams", "context_rows")
        parts: dict[str, Any] = {name: getattr(self, name)[rows] for name in names}
        return replace(self, **parts, use=Use())


class ToyWorld:
    """A :class:`~tokenwm.imagination.world.World`.

    Args:
        slip: Probability that a step slips, to one side or the other.
        goal: Where the reward is 0, its highest.
    """

    def __init__(self, slip: float = 0.2, goal: float = 12.0) -> None:
        self.goal, self.control_rate = goal, 10.0
        self.log_probability = torch.tensor([1.0 - slip, slip / 2, slip / 2]).log()
        edges = np.linspace(-2.0, 2.0, 9)[None], np.linspace(0.0, CELLS, CELLS + 1)[None]
        self.vocabulary = Vocabulary(
            codebook_size=CELLS,
            code_levels=(),
            num_cameras=1,
            grid=(1, 1),
            action=BinTokenizer(edges=edges[0]),
            state=BinTokenizer(edges=edges[1]),
            has_reward=True,
            reward_range=(-float(CELLS), 0.0),
            tokenizer_hash="toy",
        )

    def context(self, positions: Tensor) -> Context:
        """``(B, C)`` float32 observed positions."""
        cells = positions[..., None].long()
        tokens = Tokens(cells, cells, torch.zeros_like(cells))
        return Context(tokens=tokens, state=positions[:, -1:])

    def start(
        self,
        context: Context,
        *,
        seed: int | Tensor = 0,
        noise_streams: int | Tensor | None = None,
    ) -> ToyState:
        assert context.state is not None
        num_rows, num_steps = context.tokens.frame.shape[:2]
        seeds, streams = noise_of(seed, noise_streams, num_rows, context.state.device)
        return ToyState(
            position=context.state[:, 0],
            step=num_steps - 1,
            seeds=seeds,
            streams=streams,
            context=context,
            context_rows=torch.arange(num_rows),
        )

    def observe(
        self, state: ToyState, actions: Tensor, observed: Observation
    ) -> tuple[ToyState, Tensor]:
        assert observed.state is not None
        position = observed.state[:, 0].float()
        target = state.position + actions[:, 0]
        # The likelihood of all slips that lead there: at the ends of the line several do.
        leads = (self._moved(target[:, None], SLIPS) - position[:, None]).abs() < 1e-4
        known = self.log_probability.masked_fill(~leads, -torch.inf).logsumexp(1)
        self._consume(state, 1)
        context = self.context(position[:, None])
        rows = torch.arange(len(position))
        following = replace(
            state,
            position=position,
            step=state.step + 1,
            context=context,
            context_rows=rows,
            use=Use(),
        )
        return following, -known

    def fork(
        self,
        state: ToyState,
        num_copies: int,
        num_steps: int,
        *,
        noise_streams: int | Tensor | None = None,
    ) -> ToyState:
        self._check(state)
        rows = torch.arange(len(state.position)).repeat_interleave(num_copies)
        _, streams = noise_of(0, noise_streams, len(rows), rows.device)
        return replace(state.rows(rows), streams=streams, steps_left=num_steps)

    def roll(
        self, state: ToyState, actions: Tensor, sampling: SamplingConfig | None = None
    ) -> tuple[ToyState, Rollout]:
        check_shape("actions", actions, (len(state.position), "H", 1))
        num_steps = actions.shape[1]
        self._consume(state, num_steps)
        is_greedy = sampling is not None and sampling.is_greedy
        position, positions, slips = state.position, [], []
        for number, action in enumerate(actions[..., 0].float().unbind(1)):
            step = torch.tensor(state.step + number + 1)
            noise = gumbel_noise(state.seeds, state.streams, step, 0, len(SLIPS))
            slip = (self.log_probability + (0.0 if is_greedy else 1.0) * noise).argmax(-1)
            position = self._moved(position + action, SLIPS[slip])
            positions.append(position)
            slips.append(slip)
        path = torch.stack(positions, dim=1)
        cells = path.long().clamp(max=CELLS - 1)[..., None]
        probability = self.log_probability.exp()
        entropy = -(probability * self.log_probability.clamp(min=-50.0)).sum()
        rollout = Rollout(
            actions=actions.float(),
            frame_tokens=cells,
            state_tokens=cells,
            state=path[..., None],
            reward=-(path - self.goal).abs(),
            termination_probability=(path >= CELLS - 0.5).float(),
            frame_nll=-self.log_probability[torch.stack(slips, dim=1)],
            frame_entropy=entropy.expand(path.shape),
            context=state.context,
            context_rows=state.context_rows,
        )
        following = replace(
            state,
            position=position,
            step=state.step + num_steps,
            steps_left=None if state.steps_left is None else state.steps_left - num_steps,
            use=Use(),
        )
        return following, rollout

    def select(self, state: ToyState, rows: Tensor) -> ToyState:
        self._check(state)
        return state.rows(rows)

    def snapshot(self, state: ToyState) -> ToyState:
        self._check(state)
        return replace(state, use=Use())

    def features(self, state: ToyState) -> Tensor:
        return state.position[:, None] / CELLS

    def features_of(self, rollout: Rollout) -> Tensor:
        assert rollout.state is not None
        return rollout.state / CELLS

    @staticmethod
    def _moved(target: Tensor, slip: Tensor) -> Tensor:
        return (target + slip).clamp(0.0, CELLS - 0.5)

    @staticmethod
    def _check(state: ToyState) -> None:
        if state.use.is_used:
            raise TokenwmError("this state was used already")

    def _consume(self, state: ToyState, num_steps: int) -> None:
        self._check(state)
        if state.steps_left is not None and num_steps > state.steps_left:
            raise TokenwmError(f"a fork with room for {state.steps_left} steps")
        state.use.is_used = True
