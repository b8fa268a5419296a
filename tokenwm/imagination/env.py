"""The imagined world as a Gymnasium environment, for stock algorithms of reinforcement learning."""

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from tokenwm.errors import TokenwmError
from tokenwm.imagination.context import Context, as_array
from tokenwm.imagination.episodes import (
    ImaginedEpisodes,
    ObservationKind,
    RewardFunction,
    check_observation,
)
from tokenwm.imagination.rollout import NO_REWARD
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.starts import RecordedStarts
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.shapes import check_type, shown
from tokenwm.tokenizer.actions import BinTokenizer, ScalarTokenizer


class WorldModelVectorEnv(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """Imagined episodes behind Gymnasium's interface for vectorised environments.

    ``info`` holds ``frame_nll``, the model's surprise at what it imagined, and ``frame_entropy``,
    how uncertain it was before, both ``(B,)`` in nats per token and zero at a start: by them an
    agent can be kept from where the model does not know. And ``state`` in the units of the data, if
    the model has one. Where an episode starts anew in the step that ended the one before, what
    belongs to that step is in ``final_info``.

    A step is one of the model and so is its action: of a model of action chunks, those of a robot
    side by side, see :meth:`TokenWorldModel.stack_actions`.

    Args:
        model: The world model.
        starts: Observed steps to start from: ``tokenwm.starts(root, horizon=0)``, or a context.
        num_envs: ``B``.
        observation: ``pixels``: ``(H, W, 3)`` uint8, ``(cameras, H, W, 3)`` if there are several;
            ``tokens``: ``(K,)`` int64; ``embeddings``: ``(E,)`` float32,
            :meth:`TokenWorldModel.features`; ``state``: ``(state_dim,)`` float32 in the units of
            the data.
        normalize_actions: Take actions in [-1, 1] for the range of the training data, as many
            libraries expect, instead of in the units of the data.
        max_episode_steps: An episode is truncated after so many steps; None for never.
        autoreset_mode: When episodes that ended start anew, see Gymnasium.
        sampling: Settings for drawing ids.
        termination_threshold: An episode terminates where the model's probability of it is at least
            this. By default episodes end with that probability; 0.5 ends them where an end is
            likelier than not, and anything above 1 never. See :class:`ImaginedEpisodes`.
        reward_fn: See :class:`ImaginedEpisodes`; needed if the model predicts no reward.
        render_mode: ``rgb_array``, the only one, or None.
        seed: Until :meth:`reset` is given another.

    Raises:
        TokenwmError: An option or the seed is out of range, the starts do not fit the model, or
            there is no reward.
    """

    def __init__(
        self,
        model: TokenWorldModel,
        starts: Context | RecordedStarts,
        num_envs: int,
        *,
        observation: ObservationKind = "pixels",
        normalize_actions: bool = False,
        max_episode_steps: int | None = 50,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        sampling: SamplingConfig | None = None,
        termination_threshold: float | None = None,
        reward_fn: RewardFunction | None = None,
        render_mode: str | None = "rgb_array",
        seed: int = 0,
    ) -> None:
        check_observation(observation, model)
        modes = {mode.value: mode for mode in AutoresetMode}
        mode = modes.get(getattr(autoreset_mode, "value", str(autoreset_mode)))
        if mode is None:
            raise TokenwmError(f"autoreset_mode={shown(autoreset_mode)}; choose {', '.join(modes)}")
        if reward_fn is None and not model.vocabulary.has_reward:
            raise TokenwmError(
                NO_REWARD + "give the environment a reward_fn, from a rollout of one step to (B,)"
            )
        self.episodes = ImaginedEpisodes(
            model,
            starts,
            num_envs,
            max_steps=max_episode_steps,
            sampling=sampling,
            termination_threshold=termination_threshold,
            reward_fn=reward_fn,
            seed=seed,
        )
        self.num_envs, self.observation = num_envs, observation
        self.autoreset_mode = mode
        self.metadata = {
            "autoreset_mode": self.autoreset_mode,
            "render_modes": ["rgb_array"],
            "render_fps": model.control_rate,
        }
        if render_mode not in ("rgb_array", None):
            raise TokenwmError(f"render_mode={shown(render_mode)}; choose rgb_array, or None")
        self.render_mode = render_mode
        self.single_action_space = _action_space(model.vocabulary.action)
        self._raw_actions: spaces.Box | None = None  # those of actions in [-1, 1]
        if normalize_actions:
            if not isinstance(self.single_action_space, spaces.Box):
                raise TokenwmError(
                    "normalize_actions=True, but actions are ids, which have no scale"
                )
            self._raw_actions = self.single_action_space
            self.single_action_space = spaces.Box(-1.0, 1.0, self._raw_actions.shape, np.float32)
        self.single_observation_space = self._observation_space()
        batch = gymnasium.vector.utils.batch_space
        self.action_space = batch(self.single_action_space, num_envs)
        self.observation_space = batch(self.single_observation_space, num_envs)
        self._ended = np.zeros(num_envs, dtype=np.bool_)
        super().reset(seed=seed)  # ``np_random_seed`` tells it

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start all episodes, or those of ``options["reset_mask"]``, anew.

        Args:
            seed: One in [0, 2^63) for all environments, whose noise differs nevertheless; None goes
                on drawing. Not together with a mask.
            options: ``reset_mask``: ``(B,)`` bool.

        Raises:
            TokenwmError: The seed is none, or the mask has another shape or type, names no
                environment, or comes with a seed.
        """
        mask = _reset_mask(options, self.num_envs)
        if seed is None:
            self._restart(mask)
        elif options and "reset_mask" in options:
            raise TokenwmError("a seed starts all episodes anew; give no reset_mask with it")
        else:
            self.episodes.seed(seed)
            super().reset(seed=int(seed))
        self._ended[mask] = False
        return self._observe(), self._info(np.zeros((2, self.num_envs), dtype=np.float32))

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[
        NDArray[Any], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]
    ]:
        """Take one action of the action space in every environment.

        Raises:
            TokenwmError: An episode has ended and autoreset is disabled, actions do not fit, or
                what came of them is not finite.
        """
        if self.autoreset_mode == AutoresetMode.DISABLED and self._ended.any():
            raise TokenwmError(
                f"episodes {np.flatnonzero(self._ended).tolist()} have ended; call "
                "reset(options={'reset_mask': ...}) before stepping on"
            )
        values = as_array("actions", actions)
        if values.ndim == 1 and self.single_action_space.shape == ():  # discrete: without an axis
            values = values[:, None]
        if self._raw_actions is not None:
            low, high = self._raw_actions.low, self._raw_actions.high
            values = low + (values + 1.0) / 2.0 * (high - low)
        moved = self.episodes.step(values)
        assert moved.reward is not None  # checked at the start
        parts = (moved.reward, moved.terminated, moved.truncated)
        reward, terminated, truncated = (part.cpu().numpy() for part in parts)
        rollout = moved.rollout
        surprise, uncertainty = rollout.frame_nll[:, 0], rollout.frame_entropy[:, 0]
        reward, doubt = (
            reward.astype(np.float64),
            torch.stack([surprise, uncertainty]).cpu().numpy(),
        )
        broken = np.flatnonzero(~np.isfinite(reward) | ~np.isfinite(doubt).all(0))
        if len(broken):  # no agent should learn from it
            raise TokenwmError(
                f"the step of episodes {broken.tolist()} is not finite: reward "
                f"{reward[broken[0]]}, frame_nll {doubt[0, broken[0]]}; look at reward_fn, or at "
                "the model's weights"
            )
        if self.autoreset_mode == AutoresetMode.NEXT_STEP:
            anew = self._ended.copy()
            self._restart(anew)
            reward[anew], terminated[anew], truncated[anew], doubt[:, anew] = 0.0, False, False, 0.0
        ended, final = terminated | truncated, {}
        if self.autoreset_mode == AutoresetMode.SAME_STEP and ended.any():
            final = self._final(ended, doubt)
            self._restart(ended)
            doubt[:, ended] = 0.0
        self._ended = ended.copy()
        return self._observe(), reward, terminated, truncated, self._info(doubt) | final

    def render(self) -> tuple[NDArray[np.uint8], ...]:
        """A picture of every environment, ``(H, cameras * W, 3)`` uint8."""
        pixels = self.episodes.observe("pixels").cpu().numpy()
        return tuple(np.concatenate(list(cameras), axis=1) for cameras in pixels)

    def close_extras(self, **kwargs: Any) -> None:
        """Do nothing: there is nothing to close."""

    def _restart(self, mask: NDArray[np.bool_]) -> None:
        numbers = torch.from_numpy(np.flatnonzero(mask))  # known here: nothing waits for them
        self.episodes.restart(numbers.to(self.episodes.model.device))

    def _observe(self) -> NDArray[Any]:
        array: NDArray[Any] = self.episodes.observe(self.observation).cpu().numpy()
        if self.observation == "pixels" and array.shape[1] == 1:
            array = array[:, 0]
        space = self.single_observation_space
        if self.observation == "state":  # which may be a rounding beyond its range
            assert isinstance(space, spaces.Box)
            array = array.clip(space.low, space.high)
        return array.astype(space.dtype)

    def _info(self, doubt: NDArray[np.float32]) -> dict[str, Any]:
        """``doubt``: ``(2, B)``, negative log-likelihood and entropy."""
        info: dict[str, Any] = {"frame_nll": doubt[0].copy(), "frame_entropy": doubt[1].copy()}
        state = self.episodes.state
        if state is not None:
            info["state"] = state.cpu().numpy()
        return info

    def _final(self, ended: NDArray[np.bool_], doubt: NDArray[np.float32]) -> dict[str, Any]:
        """``final_obs`` and ``final_info`` of episodes that just restarted, as in Gymnasium."""
        final_obs = np.full(self.num_envs, None, dtype=object)
        observation = self._observe()
        for row in np.flatnonzero(ended):
            final_obs[row] = observation[row]
        final_info: dict[str, Any] = {}
        for name, value in self._info(doubt).items():
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
        bins = model.vocabulary.state
        if self.observation == "state" and bins is not None:
            low, high = _range_of(bins, with_margin=True)  # imagined states may go on into it
            return spaces.Box(low, high, dtype=np.float32)
        return spaces.Box(-np.inf, np.inf, (model.num_features,), np.float32)


class WorldModelEnv(gymnasium.Env[Any, Any]):
    """One imagined episode behind Gymnasium's interface for single environments.

    For libraries that want one; :class:`WorldModelVectorEnv` imagines many in hardly more time.

    Args:
        model: The world model.
        starts: Observed steps to start from.
        options: Those of :class:`WorldModelVectorEnv`, but for ``autoreset_mode``.
    """

    def __init__(
        self, model: TokenWorldModel, starts: Context | RecordedStarts, **options: Any
    ) -> None:
        self.row = WorldModelVectorEnv(
            model, starts, 1, autoreset_mode=AutoresetMode.DISABLED, **options
        )
        self.action_space = self.row.single_action_space
        self.observation_space = self.row.single_observation_space
        self.metadata, self.render_mode = self.row.metadata, self.row.render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start the episode anew; see :meth:`WorldModelVectorEnv.reset`."""
        observation, info = self.row.reset(seed=seed)
        super().reset(seed=seed)
        return observation[0], {name: value[0] for name, value in info.items()}

    def step(self, action: Any) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        """Take one action, ``(A,)``; see :meth:`WorldModelVectorEnv.step`."""
        observation, reward, terminated, truncated, info = self.row.step(np.asarray(action)[None])
        of_row = {name: value[0] for name, value in info.items()}
        return observation[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), of_row

    def render(self) -> NDArray[np.uint8]:
        """A picture, ``(H, cameras * W, 3)`` uint8."""
        return self.row.render()[0]


def _reset_mask(options: dict[str, Any] | None, num_envs: int) -> NDArray[np.bool_]:
    """``(B,)`` bool, which episodes to start anew."""
    if options is None:
        return np.ones(num_envs, dtype=np.bool_)
    check_type("options", options, dict)
    mask = as_array("reset_mask", options.get("reset_mask", np.ones(num_envs, dtype=np.bool_)))
    if mask.shape != (num_envs,) or mask.dtype != np.bool_ or not mask.any():
        raise TokenwmError(
            f"reset_mask has shape {mask.shape} and dtype {mask.dtype}; use ({num_envs},) bool "
            "with at least one True"
        )
    return mask


def _range_of(
    tokenizer: ScalarTokenizer, *, with_margin: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Least and largest values of the training data, in its units, ``(A,)`` each.

    With the margin, of all bins.
    """
    if isinstance(tokenizer, BinTokenizer):
        low, high = tokenizer.training_range
        if with_margin:
            low, high = tokenizer.edges[:, 0], tokenizer.edges[:, -1]
    else:
        low, high = np.zeros(tokenizer.num_dimensions), np.array(tokenizer.used_sizes) - 1.0
    return low.astype(np.float32), high.astype(np.float32)


def _action_space(tokenizer: ScalarTokenizer) -> spaces.Space[Any]:
    """Actions in the units of the data."""
    if isinstance(tokenizer, BinTokenizer):
        low, high = _range_of(tokenizer)
        return spaces.Box(low, high, dtype=np.float32)
    if tokenizer.num_dimensions == 1:
        return spaces.Discrete(tokenizer.num_values)
    return spaces.MultiDiscrete(list(tokenizer.used_sizes))
