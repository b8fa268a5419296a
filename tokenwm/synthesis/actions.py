"""Actions of imagined episodes: of a policy or planner, of records, perturbed or not, or random."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenwm.control.goals import GoalImage
from tokenwm.control.planners.suited import suited_cem
from tokenwm.control.proposals import ActionSpace, coloured_noise
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import TokenwmError
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.starts import RecordedStarts
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.policies.cloning import GoalPolicy

KINDS = ("records", "other", "policy", "planner", "random")
"""Sources of actions."""
NEED_RECORDS = ("records", "planner")
"""Those that need to know what was recorded behind the start."""
EXPONENT = 2.0
"""Colour of noise on actions: it hangs together over many steps, as what people do does."""


@dataclass(frozen=True, kw_only=True)
class Luck:
    """Sources of randomness of some rows, a function of seed and episode alone.

    Attributes:
        seed: Seed of all of them.
        indices: Number of each row's episode, which is its noise stream, too.
    """

    seed: int
    indices: tuple[int, ...]

    def generator(self, row: int, purpose: int) -> np.random.Generator:
        """Random numbers of a row; those of another purpose are independent."""
        return np.random.default_rng([self.seed, self.indices[row], purpose])

    def torch_generator(self, row: int, purpose: int) -> torch.Generator:
        """Random numbers of torch, on the CPU; see :meth:`generator`."""
        seed = int(self.generator(row, purpose).integers(2**62))
        return torch.Generator().manual_seed(seed)

    @property
    def noise_streams(self) -> Tensor:
        """``(B,)`` int64."""
        return torch.tensor(self.indices)


def perturbed(
    actions: Tensor, space: ActionSpace, noise: float, generator: torch.Generator
) -> Tensor:
    """Actions ``(H, A)`` with coloured noise, or of ids with other ids here and there.

    Args:
        actions: In the units of the data, or ids.
        space: What may be tried; nothing leaves it.
        noise: Standard deviation of the noise in those of the data; of ids the share that is
            replaced.
        generator: On the CPU.
    """
    horizon = len(actions)
    if space.is_discrete:
        others = random_actions(space, horizon, generator)
        is_other = torch.rand(horizon, 1, generator=generator) < noise
        return torch.where(is_other, others, actions)
    drawn = coloured_noise(generator, 1, horizon, space, EXPONENT)[0]
    return space.clamp(actions + noise * space.std * drawn)


def random_actions(space: ActionSpace, horizon: int, generator: torch.Generator) -> Tensor:
    """Actions ``(H, A)`` that wander about the data's mean, or of ids uniform ones."""
    if space.is_discrete:
        uniform = torch.rand(horizon, space.num_dimensions, generator=generator)
        return (uniform * (space.high + 1)).long().clamp(max=space.high)
    drawn = coloured_noise(generator, 1, horizon, space, EXPONENT)[0]
    return space.clamp(space.mean + space.std * drawn)


def other_actions(
    reader: ShardReader, keys: list[str], own: str, horizon: int, generator: np.random.Generator
) -> tuple[Tensor, str]:
    """Actions ``(H, A)`` of a stretch of another episode, and ``KEY:STEP`` of it.

    Raises:
        TokenwmError: No other episode is long enough.
    """
    longer = [key for key in keys if key != own and reader.episode(key).num_steps > horizon]
    if not longer:
        raise TokenwmError(
            f"no episode besides {own} has {horizon} actions; use a smaller --horizon"
        )
    key = longer[int(generator.integers(len(longer)))]
    step = int(generator.integers(reader.episode(key).num_steps - horizon))
    taken = reader.arrays(key, ["action"], step, step + horizon)["action"]
    return torch.from_numpy(taken), f"{key}:{step}"


@torch.inference_mode()
def planned_actions(
    model: TokenWorldModel, starts: RecordedStarts, horizon: int, luck: Luck
) -> list[Tensor]:
    """Actions ``(H, A)`` from each start to the picture that was recorded ``horizon`` steps later.

    What iCEM, or CEM over ids, finds with its default sizes, by the distance of codes.
    """
    state: Any = model.start(
        starts.context(model), seed=luck.seed, noise_streams=luck.noise_streams
    )
    plans = []
    for row, goal in enumerate(starts.future_frames[:, -1]):
        seed = int(luck.generator(row, 3).integers(2**31))
        planner = suited_cem(model.vocabulary)(horizon=horizon, seed=seed)
        wanted = GoalImage(model, goal, reduce="last")
        own = model.select(state, torch.tensor([row], device=model.device))
        plans.append(planner.plan(model, own, wanted).actions.cpu())
    return plans


@torch.inference_mode()
def roll_policy(
    model: TokenWorldModel,
    prior: GoalPolicy,
    starts: RecordedStarts,
    horizon: int,
    luck: Luck,
    sampling: SamplingConfig,
) -> Rollout:
    """Let the action prior act in the imagined world: chunks are drawn, and half of each is taken.

    What comes behind the half has been thought of long ago; who draws anew at every step never
    does what takes several.
    """
    state: Any = model.start(
        starts.context(model), seed=luck.seed, noise_streams=luck.noise_streams
    )
    generators = [luck.torch_generator(row, 2) for row in range(len(luck.indices))]
    taken, parts = max(1, prior.num_steps // 2), []
    for first in range(0, horizon, taken):
        chunks = prior(model.features(state))
        drawn = torch.cat(
            [
                replace(
                    chunks,
                    log_weights=chunks.log_weights[row : row + 1],
                    parameters=chunks.parameters[row : row + 1],
                ).sample(1, generator)[:, 0]
                for row, generator in enumerate(generators)
            ]
        )
        state, rollout = model.roll(state, drawn[:, : min(taken, horizon - first)], sampling)
        parts.append(rollout)
    return Rollout.join(parts)
