"""Imagined episodes: many at once, in torch; nothing that is returned has left the device.

Episodes start from recorded steps, end where the model says they do, and are cut at a length.
"""

from operator import index
from typing import Literal, NamedTuple, SupportsIndex

import torch
from torch import Tensor

from tokenwm.errors import TokenwmError
from tokenwm.imagination.context import Context, check_context
from tokenwm.imagination.decode import prefill
from tokenwm.imagination.rollout import TokenWorldModel
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.transformer.world_model import Tokens

ObservationKind = Literal["tokens", "embeddings", "pixels"]


class Transition(NamedTuple):
    """What one step of every episode led to.

    Attributes:
        reward: ``(B,)`` float32, expected reward.
        terminated: ``(B,)`` bool.
        truncated: ``(B,)`` bool.
        frame_nll: ``(B,)`` float32, nats per token: how surprised the model is by what it drew.
        frame_entropy: ``(B,)`` float32, nats per token: how uncertain it was before it drew.
    """

    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    frame_nll: Tensor
    frame_entropy: Tensor


class ImaginedEpisodes:
    """``B`` imagined episodes that step together and start anew one by one, all on the device.

    Args:
        model: The world model.
        starts: Observed steps to start from; every episode draws one of its rows.
        num_episodes: ``B``.
        max_steps: An episode is truncated after so many steps; None for never.
        sampling: How ids are drawn.
        termination_threshold: An episode terminates where the model's probability of it is at least
            this; None draws with that probability.
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
        seed: int = 0,
    ) -> None:
        if num_episodes < 1 or (max_steps is not None and max_steps < 1):
            raise TokenwmError(
                f"num_episodes={num_episodes}, max_steps={max_steps}: both must be at least 1"
            )
        if len(starts.tokens.frame) < 1:
            raise TokenwmError("starts has no row; at least one is needed to start from")
        check_context(model.world_model, starts.tokens)
        self.model, self.starts, self.num_episodes = model, starts, num_episodes
        self.max_steps, self.termination_threshold = max_steps, termination_threshold
        self.sampling = sampling or SamplingConfig()
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
        tokens, streams = self._draw_starts(self.num_episodes)
        self._state = prefill(self.model.world_model, tokens, seed=seed, noise_streams=streams)
        self._num_context = tokens.frame.shape[1]
        self.num_steps = torch.zeros(self.num_episodes, dtype=torch.int64, device=device)

    @torch.inference_mode()
    def restart(self, episodes: Tensor) -> None:
        """Start some episodes anew, ``(n,)`` int64; the others go on undisturbed."""
        if len(episodes) == 0:
            return
        tokens, streams = self._draw_starts(len(episodes))
        new = prefill(
            self.model.world_model,
            tokens,
            seed=self._seed,
            noise_streams=streams,
            first_step=self._state.step - (self._num_context - 1),
        )
        self._state = self._state.replace_rows(episodes, new)
        self.num_steps[episodes] = 0

    @torch.inference_mode()
    def step(self, action_tokens: Tensor) -> Transition:
        """Take one action in every episode, ``(B, A)`` int64 tokens."""
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
        return Transition(
            outcome.reward, terminated, truncated, outcome.frame_nll, outcome.frame_entropy
        )

    @property
    def frame_tokens(self) -> Tensor:
        """``(B, K)`` int64, of the current step."""
        return self._state.frame_tokens

    @property
    def state_tokens(self) -> Tensor | None:
        """``(B, P)`` int64, of the current step, or None."""
        return self._state.state_tokens

    @torch.inference_mode()
    def observe(self, kind: ObservationKind) -> Tensor:
        """What can be seen of the current step.

        Args:
            kind: ``tokens``: ``(B, K)`` int64. ``embeddings``: ``(B, K * code_dim + P)`` float32,
                the codes of the tokens, then the state scaled to [-1, 1]. ``pixels``:
                ``(B, cameras, H, W, 3)`` uint8.
        """
        if kind == "tokens":
            return self.frame_tokens
        if kind == "pixels":
            return self.model.decode_tokens(self.frame_tokens[:, None])[:, 0]
        tokenizer = self.model.tokenizer
        codes = tokenizer.quantizer.codes_of(
            self.frame_tokens.reshape(-1, tokenizer.tokens_per_camera)
        )
        parts = [codes.reshape(self.num_episodes, -1).float()]
        state = self.model.vocabulary.state
        if state is not None and self.state_tokens is not None:
            parts.append(2.0 * (self.state_tokens + 0.5) / state.num_values - 1.0)
        return torch.cat(parts, dim=1)

    def _draw_starts(self, count: int) -> tuple[Tokens, Tensor]:
        """Rows of the starts, and a noise stream for each that no episode had before."""
        tokens, device = self.starts.tokens, self.model.device
        size = (count,)
        rows = torch.randint(len(tokens.frame), size, generator=self._generator, device=device)
        streams = self._num_started + torch.arange(count, device=device)
        self._num_started += count
        state = None if tokens.state is None else tokens.state[rows]
        return Tokens(tokens.frame[rows], state, tokens.action[rows]), streams


def _checked_seed(seed: object) -> int:
    if not isinstance(seed, SupportsIndex) or not 0 <= index(seed) < 2**63:
        raise TokenwmError(f"seed={seed!r}; use one whole number in [0, 2^63) for all episodes")
    return index(seed)
