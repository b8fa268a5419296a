"""Imagined episodes: many at once, in torch; nothing that is returned has left the device.

Episodes start from recorded steps, end where the model says they do, and are cut at a length::

    moved = episodes.step(policy(episodes.observe("embeddings")))
    episodes.restart(moved.terminated | moved.truncated)

Without speculation (``model.speculative = False``) a step never waits for the device. With it, it
asks now and then how far the rows are. A restart waits once, for how many episodes ended: to read
anew the starts of those few costs far less than to read one for every episode at every step, which
is what not to wait would take.
"""

from collections.abc import Callable
from dataclasses import replace
from numbers import Integral
from typing import Any, Literal, NamedTuple, get_args

import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwm.errors import TokenwmError
from tokenwm.imagination.context import Context, as_tensor, check_ids
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.starts import RecordedStarts
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.imagination.world_state import WorldState
from tokenwm.shapes import check_shape, check_type, is_number, is_whole, shown

ObservationKind = Literal["pixels", "tokens", "embeddings", "state"]

RewardFunction = Callable[[Rollout], Tensor]
"""Function from one step of every episode, a rollout with ``H = 1``, to rewards ``(B,)`` float32.

``actions[:, 0]`` were taken, ``frame_tokens[:, 0]`` and ``state[:, 0]`` (in the units of the data)
are what they led to, ``context`` and ``context_rows`` are the starts, and ``reward`` is what the
model predicts, if its data had rewards. All is on the model's device.
"""


class Transition(NamedTuple):
    """One step of every episode.

    Attributes:
        rollout: ``H = 1``. Its reward is what ``reward_fn`` says, if there is one.
        terminated: ``(B,)`` bool.
        truncated: ``(B,)`` bool.
    """

    rollout: Rollout
    terminated: Tensor
    truncated: Tensor

    @property
    def reward(self) -> Tensor | None:
        """``(B,)`` float32; None if there is neither a reward function nor the model's reward."""
        return None if self.rollout.reward is None else self.rollout.reward[:, 0]


class ImaginedEpisodes:
    """``B`` imagined episodes that step together and start anew one by one, all on the device.

    Args:
        model: The world model.
        starts: Observed steps to start from; every episode draws one of its rows. Pixels are
            anchored at the last of them (:mod:`tokenwm.imagination.pixels`), if ``starts`` has its
            anchor; without it they cost half as much.
        num_episodes: ``B``.
        max_steps: An episode is truncated after so many steps; None for never.
        sampling: Settings for drawing ids.
        termination_threshold: An episode terminates where the model's probability of it is at least
            this, never with a threshold above 1. None, the default, draws with that probability, so
            that episodes end as often as the model expects: now and then also where an end is
            unlikely, which a model that hardly saw ends may often think.
        reward_fn: Reward of a step, in place of the reward that the model predicts; needed to
            have any where its data had none. See :data:`RewardFunction`.
        seed: Seed of starts, terminations and all noise.

    Raises:
        TokenwmError: A value is out of range, or the starts do not fit the model.
    """

    def __init__(
        self,
        model: TokenWorldModel,
        starts: Context | RecordedStarts,
        num_episodes: int,
        *,
        max_steps: int | None = None,
        sampling: SamplingConfig | None = None,
        termination_threshold: float | None = None,
        reward_fn: RewardFunction | None = None,
        seed: int = 0,
    ) -> None:
        if not is_whole(num_episodes) or not (max_steps is None or is_whole(max_steps)):
            raise TokenwmError(
                f"num_episodes={shown(num_episodes)}, max_steps={shown(max_steps)}: both must be "
                "whole numbers, at least 1"
            )
        threshold = termination_threshold
        if threshold is not None and not (is_number(threshold) and threshold >= 0.0):
            raise TokenwmError(
                f"termination_threshold={shown(threshold)}; use a probability, above 1 for never, "
                "or None"
            )
        if reward_fn is not None and not callable(reward_fn):
            raise TokenwmError(f"reward_fn is {shown(reward_fn)}; expected a function")
        if sampling is not None:
            check_type("sampling", sampling, SamplingConfig)
        context = starts.context(model) if isinstance(starts, RecordedStarts) else starts
        self.model, self.starts, self.num_episodes = model, model.checked(context), num_episodes
        self.max_steps, self.termination_threshold = max_steps, termination_threshold
        self.sampling, self.reward_fn = sampling, reward_fn
        self.seed(seed)

    @torch.inference_mode()
    def seed(self, seed: int) -> None:
        """Start all episodes anew; what follows is a function of the seed and the actions.

        Raises:
            TokenwmError: The seed is not a whole number in [0, 2^63).
        """
        seed = _checked_seed(seed)
        device = self.model.device
        self._generator = torch.Generator(device).manual_seed(seed)
        self._seed, self._num_started = seed, 0
        self._num_context = self.starts.tokens.frame.shape[1]
        self._state = self._begin(self.num_episodes)
        self.num_steps = torch.zeros(self.num_episodes, dtype=torch.int64, device=device)

    @torch.inference_mode()
    def restart(self, episodes: Tensor) -> None:
        """Start some episodes anew; the others go on undisturbed.

        Args:
            episodes: Which: ``(B,)`` bool, or their numbers, ``(n,)`` int64.

        Raises:
            TokenwmError: A mask has another shape, or (not on a GPU) a number is out of range or
                there twice.
        """
        episodes = as_tensor("episodes", episodes)
        if episodes.dtype == torch.bool:
            check_shape("episodes", episodes, (self.num_episodes,))
            episodes = episodes.nonzero()[:, 0]
        check_shape("episodes", episodes, ("n",))
        check_ids("episodes", episodes, self.num_episodes)
        if episodes.device.type == "cpu" and len(set(episodes.tolist())) < len(episodes):
            raise TokenwmError(f"episodes {episodes.tolist()} name one twice; name each once")
        if len(episodes) == 0:
            return
        first_step = self._state.step - (self._num_context - 1)
        new = self._begin(len(episodes), first_step)
        self._state = self._state.replace_rows(episodes, new)
        self.num_steps[episodes] = 0

    @torch.inference_mode()
    def step(self, actions: Tensor | NDArray[Any]) -> Transition:
        """Take one action in every episode, ``(B, A)`` in the units of the data.

        Tensors on a GPU never leave it, see :meth:`TokenWorldModel.encode_actions`.

        Raises:
            TokenwmError: Another shape; a value that is not finite, or no id (not on a GPU).
        """
        return self._moved(*self.model.step(self._state, actions, self.sampling))

    @torch.inference_mode()
    def step_tokens(self, action_tokens: Tensor) -> Transition:
        """Take one action in every episode, ``(B, A)`` int64 tokens.

        Raises:
            TokenwmError: Another shape or type; an id out of range (not on a GPU).
        """
        return self._moved(*self.model.step_tokens(self._state, action_tokens, self.sampling))

    def _moved(self, state: WorldState, rollout: Rollout) -> Transition:
        self._state = state
        self.num_steps += 1
        probability = rollout.termination_probability[:, 0]
        if self.termination_threshold is None:
            luck = torch.rand(
                probability.shape, generator=self._generator, device=probability.device
            )
            terminated = luck < probability
        else:
            terminated = probability >= self.termination_threshold
        truncated = torch.zeros_like(terminated)
        if self.max_steps is not None:
            truncated = self.num_steps >= self.max_steps
        if self.reward_fn is not None:
            rollout = replace(rollout, reward=self._rewarded(self.reward_fn, rollout)[:, None])
        return Transition(rollout, terminated, truncated)

    def _rewarded(self, reward_fn: RewardFunction, rollout: Rollout) -> Tensor:
        """Rewards by the reward function, ``(B,)`` float32."""
        reward = reward_fn(rollout)
        if not isinstance(reward, Tensor):
            raise TokenwmError(
                f"reward_fn returned {type(reward).__name__}; expected a "
                f"({self.num_episodes},) tensor"
            )
        check_shape("what reward_fn returned", reward, (self.num_episodes,))
        return reward.float()

    @property
    def frame_tokens(self) -> Tensor:
        """``(B, K)`` int64, of the current step."""
        return self._state.frame_tokens

    @property
    def state_tokens(self) -> Tensor | None:
        """``(B, P)`` int64, of the current step, or None."""
        return self._state.state_tokens

    @property
    def state(self) -> Tensor | None:
        """``(B, state_dim)`` float32, of the current step in the units of the data, or None."""
        return self.model.state_of(self._state)

    @torch.inference_mode()
    def observe(self, kind: ObservationKind) -> Tensor:
        """The observation of the current step.

        Args:
            kind: ``tokens``: ``(B, K)`` int64. ``embeddings``: ``(B, K * code_dim + P)`` float32,
                :meth:`TokenWorldModel.features`. ``state``: ``(B, state_dim)`` float32 in the units
                of the data. ``pixels``: ``(B, cameras, H, W, 3)`` uint8.

        Raises:
            TokenwmError: There is no such kind, or the model has no state.
        """
        check_observation(kind, self.model)
        if kind == "tokens":
            return self.frame_tokens
        if kind == "pixels":
            starts, tokens, rows = self.starts, self.frame_tokens[:, None], self._state.context_rows
            last = starts.tokens.frame[:, -1]
            return self.model.decode_tokens(tokens, last, starts.anchor, rows)[:, 0]
        state = self.state
        return self.model.features(self._state) if kind == "embeddings" or state is None else state

    def _begin(self, count: int, first_step: Tensor | None = None) -> WorldState:
        """Episodes at starts drawn for them, with noise streams that no episode had before."""
        device, num_starts = self.model.device, len(self.starts.tokens.frame)
        rows = torch.randint(num_starts, (count,), generator=self._generator, device=device)
        streams = self._num_started + torch.arange(count, device=device)
        self._num_started += count
        return self.model.start_rows(
            self.starts, rows, seed=self._seed, noise_streams=streams, first_step=first_step
        )


def check_observation(kind: object, model: TokenWorldModel) -> None:
    """Check that a model's episodes can be observed in a kind.

    Raises:
        TokenwmError: There is no such kind, or the model has no state.
    """
    kinds = get_args(ObservationKind)
    if not isinstance(kind, str) or kind not in kinds:
        raise TokenwmError(
            f"observation={shown(kind)}; choose {', '.join(kinds[:-1])} or {kinds[-1]}"
        )
    if kind == "state" and model.vocabulary.state is None:
        raise TokenwmError(
            "observation='state', but the model has no state; choose pixels, tokens or embeddings"
        )


def _checked_seed(seed: Any) -> int:
    is_integer = type(seed) is not bool and isinstance(seed, Integral)
    if not is_integer or not 0 <= int(seed) < 2**63:
        raise TokenwmError(
            f"seed={shown(seed)}; use one whole number in [0, 2^63) for all episodes"
        )
    return int(seed)
