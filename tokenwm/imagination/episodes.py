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
from tokenwm.imagination.decode import prefill
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.state import DecodeState, StepOutcome
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.shapes import check_shape, check_type, is_number, is_whole, shown

ObservationKind = Literal["pixels", "tokens", "embeddings"]

RewardFunction = Callable[[Rollout], Tensor]
"""Function from one step of every episode, a rollout with ``H = 1``, to rewards ``(B,)`` float32.

``action_tokens[:, 0]`` were taken, ``frame_tokens[:, 0]`` and ``state[:, 0]`` (in the units of the
data) are what they led to, ``context`` and ``context_rows`` are the starts, and ``reward`` is what
the model predicts, if its data had rewards. All is on the model's device.
"""


class Transition(NamedTuple):
    """What one step of every episode led to.

    Attributes:
        reward: ``(B,)`` float32: what ``reward_fn`` says, or the model's expected reward; None
            where there is neither.
        terminated: ``(B,)`` bool.
        truncated: ``(B,)`` bool.
        frame_nll: ``(B,)`` float32, nats per token: how surprised the model is by what it drew.
        frame_entropy: ``(B,)`` float32, nats per token: how uncertain it was before it drew.
    """

    reward: Tensor | None
    terminated: Tensor
    truncated: Tensor
    frame_nll: Tensor
    frame_entropy: Tensor


class ImaginedEpisodes:
    """``B`` imagined episodes that step together and start anew one by one, all on the device.

    Args:
        model: The world model.
        starts: Observed steps to start from; every episode draws one of its rows. Pixels are
            anchored at the last of them (:mod:`tokenwm.imagination.pixels`), if ``starts`` has its
            anchor; without it they cost half as much.
        num_episodes: ``B``.
        max_steps: An episode is truncated after so many steps; None for never.
        sampling: How ids are drawn.
        termination_threshold: An episode terminates where the model's probability of it is at least
            this; None draws with that probability.
        reward_fn: What a step is worth, in place of the reward that the model predicts; needed to
            have any where its data had none. See :data:`RewardFunction`.
        seed: Of starts, terminations and all noise.

    Raises:
        TokenwmError: A value is out of range, or the starts do not fit the model.
    """

    def __init__(
        self,
        model: TokenWorldModel,
        starts: Context,
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
        self.model, self.starts, self.num_episodes = model, model.checked(starts), num_episodes
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
        self._state, self._start_rows = self._begin(self.num_episodes)
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
        new, rows = self._begin(len(episodes), first_step)
        self._state = self._state.replace_rows(episodes, new)
        self.num_steps[episodes] = 0
        self._start_rows[episodes] = rows

    def step(self, actions: Tensor | NDArray[Any]) -> Transition:
        """Take one action in every episode, ``(B, A)`` in the units of the data.

        Tensors on a GPU never leave it, see :meth:`TokenWorldModel.encode_actions`.

        Raises:
            TokenwmError: Another shape; a value that is not finite, or no id (not on a GPU).
        """
        actions = as_tensor("actions", actions)
        num_actions = self.model.vocabulary.action.num_dimensions
        check_shape("actions", actions, (self.num_episodes, num_actions))
        return self.step_tokens(self.model.encode_actions(actions))

    @torch.inference_mode()
    def step_tokens(self, action_tokens: Tensor) -> Transition:
        """Take one action in every episode, ``(B, A)`` int64 tokens.

        Raises:
            TokenwmError: Another shape or type; an id out of range (not on a GPU).
        """
        self._state, outcome = self.model.step(self._state, action_tokens, self.sampling)
        self.num_steps += 1
        probability = outcome.termination_probability
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
        reward = outcome.reward
        if self.reward_fn is not None:
            reward = self._rewarded(self.reward_fn, action_tokens, outcome)
        return Transition(reward, terminated, truncated, outcome.frame_nll, outcome.frame_entropy)

    def _rewarded(
        self, reward_fn: RewardFunction, action_tokens: Tensor, outcome: StepOutcome
    ) -> Tensor:
        """Rewards of the step that was just taken, by the reward function, ``(B,)`` float32."""
        state, predicted = self.state, outcome.reward
        rollout = Rollout(
            action_tokens=action_tokens[:, None].to(self.model.device),
            frame_tokens=self.frame_tokens[:, None],
            state_tokens=None if self.state_tokens is None else self.state_tokens[:, None],
            state=None if state is None else state[:, None],
            reward=None if predicted is None else predicted[:, None],
            termination_probability=outcome.termination_probability[:, None],
            frame_nll=outcome.frame_nll[:, None],
            frame_entropy=outcome.frame_entropy[:, None],
            context=self.starts,
            context_rows=self._start_rows.clone(),  # restarts overwrite it
            row_passes=outcome.row_passes,
            num_passes=1,
        )
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
        return self.model.state_in_units(self._state.state_tokens, self._state.state_values)

    @torch.inference_mode()
    def observe(self, kind: ObservationKind) -> Tensor:
        """What can be seen of the current step.

        Args:
            kind: ``tokens``: ``(B, K)`` int64. ``embeddings``: ``(B, K * code_dim + P)`` float32,
                the codes of the tokens, then the state scaled to [-1, 1]. ``pixels``:
                ``(B, cameras, H, W, 3)`` uint8.

        Raises:
            TokenwmError: There is no such kind.
        """
        check_observation(kind)
        if kind == "tokens":
            return self.frame_tokens
        if kind == "pixels":
            starts, tokens = self.starts, self.frame_tokens[:, None]
            last = starts.tokens.frame[:, -1]
            return self.model.decode_tokens(tokens, last, starts.anchor, self._start_rows)[:, 0]
        tokenizer = self.model.tokenizer
        codes = tokenizer.quantizer.codes_of(
            self.frame_tokens.reshape(-1, tokenizer.tokens_per_camera)
        )
        parts = [codes.reshape(self.num_episodes, -1).float()]
        state = self.model.vocabulary.state
        if state is not None and self.state_tokens is not None:
            parts.append(2.0 * (self.state_tokens + 0.5) / state.num_values - 1.0)
        return torch.cat(parts, dim=1)

    def _begin(self, count: int, first_step: Tensor | None = None) -> tuple[DecodeState, Tensor]:
        """Episodes at starts drawn for them, with noise streams that no episode had before.

        Returns:
            Their state, and the rows of the starts, ``(count,)`` int64.
        """
        device, num_starts = self.model.device, len(self.starts.tokens.frame)
        rows = torch.randint(num_starts, (count,), generator=self._generator, device=device)
        streams = self._num_started + torch.arange(count, device=device)
        self._num_started += count
        # All but the anchor, which is not read.
        drawn = replace(self.starts, anchor=None).rows(rows)
        state = prefill(
            self.model.world_model,
            drawn.tokens,
            state_values=self.model.state_values(drawn),
            seed=self._seed,
            noise_streams=streams,
            first_step=first_step,
        )
        return state, rows


def check_observation(kind: object) -> None:
    """Check that there is such a kind of observation.

    Raises:
        TokenwmError: There is not.
    """
    kinds = get_args(ObservationKind)
    if not isinstance(kind, str) or kind not in kinds:
        raise TokenwmError(
            f"observation={shown(kind)}; choose {', '.join(kinds[:-1])} or {kinds[-1]}"
        )


def _checked_seed(seed: Any) -> int:
    is_integer = type(seed) is not bool and isinstance(seed, Integral)
    if not is_integer or not 0 <= int(seed) < 2**63:
        raise TokenwmError(
            f"seed={shown(seed)}; use one whole number in [0, 2^63) for all episodes"
        )
    return int(seed)
