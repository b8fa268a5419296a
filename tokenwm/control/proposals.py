"""Proposals: which actions to try, and the bounds that none of them leaves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from tokenwm.errors import TokenwmError
from tokenwm.imagination.context import as_tensor
from tokenwm.imagination.world import Observation, Policy, World
from tokenwm.sequence.vocabulary import Vocabulary
from tokenwm.shapes import shown
from tokenwm.tokenizer.actions import BinTokenizer


class Proposal(Protocol):
    """A source of action sequences, such as a policy that was cloned from the data."""

    def __call__(
        self, world: World[Any], state: Any, generator: torch.Generator, num: int, horizon: int
    ) -> Tensor:
        """Propose what could be done from a state of one row.

        Args:
            world: The world.
            state: Where; it is read and not used up.
            generator: Of all randomness, on the CPU.
            num: Sequences that are wanted; the first so many of what is given are taken.
            horizon: ``H``, steps that are wanted, see :meth:`ActionSpace.sequences`.

        Returns:
            ``(n, steps, A)`` in the units of the data, or of single actions of the robot.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ActionSpace:
    """The actions that may be tried: those within the range of the training data.

    Beyond it a model extrapolates, and planners look for what it is wrong about.

    Attributes:
        low: ``(A,)``, least value of each dimension, in the units of the data; 0 of ids.
        high: ``(A,)``, the largest; ids that the training data uses end there.
        mean: ``(A,)`` float32, the mean if all bins were equally likely; so it is that of the data,
            about, if bins are quantiles, and else the middle.
        std: ``(A,)`` float32, the standard deviation if they were.
        is_discrete: Whether actions are ids, int64; else they are float32.
        actions_per_step: Actions of the robot that one action holds side by side.
    """

    low: Tensor
    high: Tensor
    mean: Tensor
    std: Tensor
    is_discrete: bool
    actions_per_step: int = 1

    @classmethod
    def of(cls, vocabulary: Vocabulary, device: torch.device | str = "cpu") -> "ActionSpace":
        """The actions of a world."""
        action, count = vocabulary.action, vocabulary.actions_per_step
        if isinstance(action, BinTokenizer):
            inner = slice(action.margin_bins, action.num_values - action.margin_bins)
            centers, edges = action.centers[:, inner], action.edges[:, inner.start : inner.stop + 1]
            within = np.diff(edges, axis=1) ** 2 / 12.0  # variance in a bin
            std = np.sqrt(centers.var(1) + within.mean(1))
            numbers = (*action.training_range, centers.mean(1), std)
        else:
            high = np.asarray(action.used_sizes) - 1
            numbers = (np.zeros_like(high), high, high / 2.0, high / 2.0)
        low, high_, mean, std_ = (torch.from_numpy(np.ascontiguousarray(x)) for x in numbers)
        dtype = torch.float32 if isinstance(action, BinTokenizer) else torch.int64
        return cls(
            low=low.to(device, dtype),
            high=high_.to(device, dtype),
            mean=mean.to(device, torch.float32),
            std=std_.to(device, torch.float32),
            is_discrete=dtype == torch.int64,
            actions_per_step=count,
        )

    @property
    def num_dimensions(self) -> int:
        """``A``."""
        return len(self.low)

    def clamp(self, actions: Tensor) -> Tensor:
        """``(..., A)`` actions, moved to the nearest that may be tried; NaN stays."""
        return torch.minimum(torch.maximum(actions, self.low), self.high)

    def sequences(self, actions: Any, horizon: int) -> Tensor:
        """Sequences of anybody's making as they are tried.

        Those of single actions of the robot are stacked into steps, longer ones cut, shorter ones
        go on with their last action, and all are moved into the bounds.

        Args:
            actions: ``(n, steps, A)``, or ``(n, steps * actions_per_step, A / actions_per_step)``.
            horizon: ``H``.

        Returns:
            ``(n, H, A)`` on the device.

        Raises:
            TokenwmError: They have another shape.
        """
        given = as_tensor("actions", actions).to(self.low.device, self.low.dtype)
        size, count = self.num_dimensions, self.actions_per_step
        steps = given.shape[1] if given.ndim == 3 else 0
        if count > 1 and given.ndim == 3 and given.shape[2] * count == size and steps % count == 0:
            steps //= count
            given = given.reshape(len(given), steps, size)
        if not steps or given.shape[2] != size:
            raise TokenwmError(
                f"proposed actions have shape {tuple(given.shape)}; expected (n, steps, {size})"
                + (f" or (n, steps * {count}, {size // count})" if count > 1 else "")
            )
        rest = given[:, -1:].expand(-1, max(0, horizon - steps), -1)
        return self.clamp(torch.cat([given[:, :horizon], rest], dim=1))


def coloured_noise(
    generator: torch.Generator, num: int, horizon: int, space: ActionSpace, exponent: float
) -> Tensor:
    """Gaussian noise whose power falls with its frequency, as ``frequency^-exponent``.

    It goes over the robot's actions one after another, those within a step too. Each sequence has
    a variance of 1 over all draws.

    Args:
        generator: On the CPU, so that all devices get the same.
        num: Sequences.
        horizon: ``H``.
        space: The actions.
        exponent: 0 is white noise; with more of it, actions hang together for longer.

    Returns:
        ``(num, H, A)`` float32 on the CPU.

    Source: Timmer & König (1995), as in Pinneri et al. (2020), iCEM. The lowest frequency, 0, has
    the power of the next, so that the mean of a sequence varies as well.
    """
    length, size = horizon * space.actions_per_step, space.num_dimensions // space.actions_per_step
    if exponent == 0.0 or length == 1:
        return torch.randn(num, horizon, space.num_dimensions, generator=generator)
    frequency = torch.fft.rfftfreq(length).clamp(min=1.0 / length)
    scale = frequency ** (-exponent / 2.0)  # (F,)
    # Frequency 0, and the highest one of an even length, are real: their power is in one part.
    is_real = torch.zeros(len(scale), dtype=torch.bool)
    is_real[0], is_real[-1] = True, length % 2 == 0
    deviation = torch.stack([scale * torch.where(is_real, 2**0.5, 1.0), scale * ~is_real])  # (2, F)
    drawn = torch.randn(num, size, 2, len(scale), generator=generator) * deviation
    noise = torch.fft.irfft(torch.complex(drawn[:, :, 0], drawn[:, :, 1]), n=length)
    counts = torch.where(is_real, 1.0, 4.0)  # the others have a mirror image: twice the amplitude
    std = (counts * deviation[0] ** 2).sum().sqrt() / length
    steps: Tensor = (noise / std).movedim(1, 2)  # (num, length, size)
    return steps.reshape(num, horizon, space.num_dimensions)


def policy_chunks(policy: Policy[Any], observation: Observation, num: int, seed: int = 0) -> Tensor:
    """Action chunks that a policy proposes for one observation, ``(num, chunk, A)``.

    A policy that draws gives different ones; they can be ranked, or given to a planner as a prior.

    Args:
        policy: Any policy, also one behind a network.
        observation: One row.
        num: Chunks.
        seed: Of the policy.
    """
    frames, state = observation.frames, observation.state
    many = Observation(
        frames=frames.expand(num, *frames.shape[1:]),
        state=None if state is None else state.expand(num, *state.shape[1:]),
    )
    return policy.act(many, policy.begin(num, seed))[0]


class Together:
    """Several proposals as one: each gives what it has, and the last fills up what is left.

    Args:
        proposals: At least one.
    """

    def __init__(self, *proposals: Proposal) -> None:
        if not proposals:
            raise TokenwmError("Together() needs at least one proposal")
        self.proposals = proposals

    def __call__(
        self, world: World[Any], state: Any, generator: torch.Generator, num: int, horizon: int
    ) -> Tensor:
        """Propose ``(n, H, A)``, at most ``num``; shorter sequences are made as long as others."""
        space = ActionSpace.of(world.vocabulary, world.features(state).device)
        parts: list[Tensor] = []
        for proposal in self.proposals:
            left = num - sum(len(part) for part in parts)
            proposed = proposal(world, state, generator, left, horizon)[:left]
            parts.append(space.sequences(proposed, horizon))
        return torch.cat(parts)


class Given:
    """A proposal of sequences that are known already, such as :func:`policy_chunks`.

    Args:
        sequences: ``(n, steps, A)``, best first.
    """

    def __init__(self, sequences: Tensor | Sequence[Any]) -> None:
        self.sequences = as_tensor("sequences", sequences)
        if self.sequences.ndim != 3:
            raise TokenwmError(f"sequences are {shown(self.sequences)}; expected (n, steps, A)")

    def __call__(
        self, world: World[Any], state: Any, generator: torch.Generator, num: int, horizon: int
    ) -> Tensor:
        """The first ``num`` of them."""
        return self.sequences[:num]
