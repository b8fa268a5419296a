"""The imagined world as an environment for reinforcement learning: many episodes at once.

:class:`ImaginedEpisodes` is the engine in torch; nothing it returns has left the device.
:class:`WorldModelVectorEnv` is a ``gymnasium.vector.VectorEnv`` over it, for stock algorithms.
Episodes start from recorded steps, end where the model says they do, and are cut at a length.
"""

from typing import Any, Literal, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from torch import Tensor

from tokenwm.errors import TokenwmError
from tokenwm.imagination.context import Context, check_context
from tokenwm.imagination.decode import prefill
from tokenwm.imagination.rollout import TokenWorldModel
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.shapes import check_shape
from tokenwm.tokenizer.actions import ContinuousTokenizer, ScalarTokenizer
from tokenwm.transformer.world_model import Tokens

ObservationKind = Literal["tokens", "embeddings", "pixels"]


class Transition(NamedTuple):
    """What one step of every episode led to.

    Attributes:
        reward: ``(B,)`` float32, expected reward.
        terminated: ``(B,)`` bool.
        truncated: ``(B,)`` bool.
        frame_nll: ``(B,)`` float32, nats per token: how surprised the model is by what it drew.
    """

    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    frame_nll: Tensor


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
        """Start all episodes anew; what follows is a function of the seed and the actions."""
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
        return Transition(outcome.reward, terminated, truncated, outcome.frame_nll)

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


class WorldModelVectorEnv(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """Imagined episodes behind Gymnasium's interface for vectorised environments.

    ``info`` holds ``frame_nll``, the model's surprise at what it imagined in nats per token, by
    which an agent can be kept from where the model does not know; and ``state`` in the units of the
    data, if the model has one.

    Args:
        model: The world model.
        starts: Observed steps to start from, see :meth:`TokenWorldModel.context`.
        num_envs: ``B``.
        observation: ``pixels``: ``(H, W, 3)`` uint8, ``(cameras, H, W, 3)`` if there are several;
            ``tokens``: ``(K,)`` int64; ``embeddings``: ``(K * code_dim + P,)`` float32 about
            [-1, 1], the codes and the state.
        max_episode_steps: An episode is truncated after so many steps.
        autoreset_mode: When episodes that ended start anew, see Gymnasium.
        sampling: How ids are drawn.
        termination_threshold: See :class:`ImaginedEpisodes`.
        seed: Until :meth:`reset` is given another.
    """

    def __init__(
        self,
        model: TokenWorldModel,
        starts: Context,
        num_envs: int,
        *,
        observation: ObservationKind = "pixels",
        max_episode_steps: int = 50,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        sampling: SamplingConfig | None = None,
        termination_threshold: float | None = None,
        seed: int = 0,
    ) -> None:
        if observation not in ("pixels", "tokens", "embeddings"):
            raise TokenwmError(f"observation={observation!r}; choose pixels, tokens or embeddings")
        self.episodes = ImaginedEpisodes(
            model,
            starts,
            num_envs,
            max_steps=max_episode_steps,
            sampling=sampling,
            termination_threshold=termination_threshold,
            seed=seed,
        )
        self.num_envs, self.observation = num_envs, observation
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {"autoreset_mode": self.autoreset_mode, "render_modes": ["rgb_array"]}
        self.render_mode = "rgb_array"
        self.single_action_space = _action_space(model.vocabulary.action)
        self.single_observation_space = self._observation_space()
        batch = gymnasium.vector.utils.batch_space
        self.action_space = batch(self.single_action_space, num_envs)
        self.observation_space = batch(self.single_observation_space, num_envs)
        self._ended = np.zeros(num_envs, dtype=np.bool_)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start all episodes, or those of ``options["reset_mask"]``, anew.

        Args:
            seed: One for all environments (a list's first counts); None goes on drawing. Not
                together with a mask.
            options: ``reset_mask``: ``(B,)`` bool.

        Raises:
            TokenwmError: The mask has another shape or type, names no environment, or comes with a
                seed.
        """
        mask = (options or {}).get("reset_mask")
        first = seed[0] if isinstance(seed, list) else seed
        if mask is None:
            mask = np.ones(self.num_envs, dtype=np.bool_)
            if first is not None:
                self.episodes.seed(int(first))
                self._ended[:] = False
                return self._observe(), self._info()
        elif first is not None:
            raise TokenwmError("a seed starts all episodes anew; give no reset_mask with it")
        elif mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise TokenwmError(
                f"reset_mask has shape {mask.shape} and dtype {mask.dtype}; use ({self.num_envs},) "
                "bool with at least one True"
            )
        self._restart(mask)
        self._ended[mask] = False
        return self._observe(), self._info()

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[
        NDArray[Any], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]
    ]:
        """Take one action, in the units of the data, in every environment.

        Raises:
            TokenwmError: An episode has ended and autoreset is disabled, or actions do not fit.
        """
        if self.autoreset_mode == AutoresetMode.DISABLED and self._ended.any():
            raise TokenwmError(
                f"episodes {np.flatnonzero(self._ended).tolist()} have ended; call "
                "reset(options={'reset_mask': ...}) before stepping on"
            )
        values = np.asarray(actions).reshape(self.num_envs, 1, -1)
        num_actions = self.episodes.model.vocabulary.action.num_dimensions
        check_shape("actions", values, (self.num_envs, 1, num_actions))
        tokens = self.episodes.model.encode_actions(values)[:, 0]
        moved = self.episodes.step(tokens)
        reward, terminated, truncated, nll = (part.cpu().numpy() for part in moved)
        reward, info = reward.astype(np.float64), {"frame_nll": nll}
        if self.autoreset_mode == AutoresetMode.NEXT_STEP:
            anew = self._ended.copy()
            self._restart(anew)
            reward[anew], terminated[anew], truncated[anew], nll[anew] = 0.0, False, False, 0.0
        ended = terminated | truncated
        if self.autoreset_mode == AutoresetMode.SAME_STEP and ended.any():
            info |= self._final(ended, nll)
            self._restart(ended)
        self._ended = ended.copy()
        return self._observe(), reward, terminated, truncated, self._info() | info

    def render(self) -> tuple[NDArray[np.uint8], ...]:
        """A picture of every environment, ``(H, cameras * W, 3)`` uint8."""
        pixels = self.episodes.observe("pixels").cpu().numpy()
        return tuple(np.concatenate(list(cameras), axis=1) for cameras in pixels)

    def close_extras(self, **kwargs: Any) -> None:
        """Nothing is held that would have to be closed."""

    def _restart(self, mask: NDArray[np.bool_]) -> None:
        rows = torch.from_numpy(np.flatnonzero(mask)).to(self.episodes.model.device)
        self.episodes.restart(rows)

    def _observe(self) -> NDArray[Any]:
        array: NDArray[Any] = self.episodes.observe(self.observation).cpu().numpy()
        if self.observation == "pixels" and array.shape[1] == 1:
            array = array[:, 0]
        return array.astype(self.single_observation_space.dtype)

    def _info(self) -> dict[str, Any]:
        tokens = self.episodes.state_tokens
        return {} if tokens is None else {"state": self.episodes.model.decode_states(tokens)}

    def _final(self, ended: NDArray[np.bool_], nll: NDArray[np.float32]) -> dict[str, Any]:
        """What Gymnasium passes on of the last step of episodes that start anew in the same one."""
        final_obs = np.full(self.num_envs, None, dtype=object)
        observation = self._observe()
        for row in np.flatnonzero(ended):
            final_obs[row] = observation[row]
        final_info: dict[str, Any] = {"frame_nll": nll, "_frame_nll": ended}
        for name, value in self._info().items():
            final_info |= {name: value, f"_{name}": ended}
        return {
            "final_obs": final_obs,
            "_final_obs": ended,
            "final_info": final_info,
            "_final_info": ended,
        }

    def _observation_space(self) -> spaces.Space[Any]:
        model = self.episodes.model
        tokenizer = model.tokenizer
        if self.observation == "pixels":
            cameras = () if tokenizer.num_cameras == 1 else (tokenizer.num_cameras,)
            return spaces.Box(0, 255, (*cameras, *tokenizer.image_size, 3), np.uint8)
        if self.observation == "tokens":
            size = (tokenizer.tokens_per_frame,)
            return spaces.Box(0, tokenizer.codebook_size - 1, size, np.int64)
        num_states = 0 if model.vocabulary.state is None else model.vocabulary.state.num_dimensions
        size = (tokenizer.tokens_per_frame * tokenizer.quantizer.code_dim + num_states,)
        return spaces.Box(-np.inf, np.inf, size, np.float32)


def _action_space(tokenizer: ScalarTokenizer) -> spaces.Space[Any]:
    """Actions in the units of the data."""
    if isinstance(tokenizer, ContinuousTokenizer):
        low, high = tokenizer.edges[:, 0], tokenizer.edges[:, -1]
        return spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
    if tokenizer.num_dimensions == 1:
        return spaces.Discrete(tokenizer.num_values)
    return spaces.MultiDiscrete([tokenizer.num_values] * tokenizer.num_dimensions)
