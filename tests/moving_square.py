"""A square that its actions move over a still background: small datasets and models."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.small_models import shake
from tokenwm.checkpoint import LoadedWorldModel, save_world_model, tokenizer_hash
from tokenwm.data.shards.manifest import Feature, Manifest
from tokenwm.data.shards.writer import ShardWriter
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.sequence.vocabulary import Vocabulary
from tokenwm.tokenizer.actions import BinTokenizer
from tokenwm.tokenizer.frames import FrameTokenizer, FrameTokenizerConfig
from tokenwm.transformer.model import TransformerConfig
from tokenwm.transformer.world_model import WorldModel, WorldModelConfig

SIZE = 32  # pixels
SQUARE = 8
CAMERAS = ("top",)
STATE_STD = (4.0, 8.0)
MEAN_REWARD = 0.25


def features(cameras: Sequence[str] = CAMERAS, size: int = SIZE) -> dict[str, Feature]:
    frames = {
        f"frames.{camera}": Feature(kind="frames", shape=(size, size, 3), dtype="uint8")
        for camera in cameras
    }
    return frames | {
        "state": Feature(
            kind="continuous", shape=(2,), dtype="float32", units="px", names=("x", "y")
        ),
        "action": Feature(kind="continuous", shape=(2,), dtype="float32", units="px per step"),
        "reward": Feature(kind="continuous", shape=(), dtype="float32"),
        "terminated": Feature(kind="flag", shape=(), dtype="bool"),
        "truncated": Feature(kind="flag", shape=(), dtype="bool"),
    }


def make_episode(
    num_steps: int, seed: int, cameras: Sequence[str] = CAMERAS, size: int = SIZE
) -> dict[str, NDArray[Any]]:
    """Actions are whole pixels; the reward is 1 in the left half; the last action ends the task."""
    generator = np.random.default_rng(seed)
    action = np.repeat(generator.integers(-3, 4, (num_steps // 3 + 1, 2)), 3, axis=0)[:num_steps]
    action[-1] = 0
    state = np.zeros((num_steps, 2), dtype=np.float32)
    state[0] = generator.integers(0, size - SQUARE, 2)
    frames = np.zeros((num_steps, size, size, 3), dtype=np.uint8)
    frames[:] = np.linspace(40, 110, size, dtype=np.uint8)[:, None, None]
    for step in range(num_steps):
        if step > 0:
            state[step] = np.clip(state[step - 1] + action[step - 1], 0, size - SQUARE)
        x, y = state[step].astype(int)
        frames[step, y : y + SQUARE, x : x + SQUARE] = (230, 90, 40)
    terminated = np.zeros(num_steps, dtype=bool)
    terminated[-2] = True
    reward = (state[:, 0] < size / 2 - SQUARE).astype(np.float32)
    reward[-1] = 0
    arrays = {f"frames.{camera}": frames for camera in cameras}
    return arrays | {
        "state": state,
        "action": action.astype(np.float32),
        "reward": reward,
        "terminated": terminated,
        "truncated": np.zeros(num_steps, dtype=bool),
    }


def write_squares(
    folder: Path,
    lengths: Mapping[str, Sequence[int]],
    *,
    cameras: Sequence[str] = CAMERAS,
    size: int = SIZE,
    control_rate: float = 10.0,
    still: bool = False,
    ends: bool = True,
    prefix: str = "",
    names: Sequence[str] = (),
    task_state: bool = False,
    synthetic: bool = False,
    provenance: Mapping[str, Any] = MappingProxyType({"source": "moving_square.py"}),
) -> dict[str, dict[str, NDArray[Any]]]:
    """Write a dataset; its episodes are ``{prefix}{split}_{i}``.

    ``still``: nothing moves. ``ends``: whether the last action ends the task. ``task_state``: the
    square's place and an angle that grows to the right are hidden truth. ``synthetic``: marked as
    imagined.
    """
    written: dict[str, dict[str, NDArray[Any]]] = {}
    shards, episodes = [], []
    for split, split_lengths in lengths.items():
        with ShardWriter(folder, split) as writer:
            for index, num_steps in enumerate(split_lengths):
                arrays = make_episode(num_steps, len(written), cameras, size)
                if still:
                    arrays = arrays | {
                        name: np.repeat(array[:1], num_steps, axis=0)
                        for name, array in arrays.items()
                        if name.startswith("frames.")
                    }
                arrays["terminated"] &= ends
                if task_state:
                    angle = 2.0 * np.pi * arrays["state"][:, :1] / (size - SQUARE)
                    arrays["task_state"] = np.concatenate([arrays["state"], angle], axis=1)
                key = names[index] if names else f"{prefix}{split}_{index}"
                written[key] = arrays
                writer.add(key, arrays, {"task": "move"})
            new_shards, new_episodes = writer.finish()
        shards += new_shards
        episodes += new_episodes
    truth: dict[str, Feature] = {}
    of_truth: dict[str, dict[str, Any]] = {}
    if task_state:
        truth["task_state"] = Feature(
            kind="continuous",
            shape=(3,),
            dtype="float32",
            units="px, px, rad",
            names=("square_x", "square_y", "square_angle"),
        )
        of_truth["task_state"] = {"mean": [12.0, 12.0, 3.0], "std": [7.0, 7.0, 2.0]}
    Manifest(
        kind="frames",
        name="squares",
        control_rate=control_rate,
        features=features(cameras, size) | truth,
        statistics=of_truth
        | {
            "state": {"std": list(STATE_STD)},
            "action": {"min": [-3.0, -3.0], "max": [3.0, 3.0]},
            "reward": {"mean": [MEAN_REWARD]},
        },
        shards=shards,
        episodes=episodes,
        provenance=dict(provenance),
        extra={"synthetic": True} if synthetic else {},
    ).save(folder)
    return written


def bins(low: float, high: float, num_bins: int, dimensions: int = 2) -> BinTokenizer:
    quantiles = np.repeat([[low, high]], dimensions, axis=0)
    return BinTokenizer.fit(quantiles, num_bins=num_bins, method="uniform")


def make_tokenizer(cameras: Sequence[str] = CAMERAS, code_margin: float = 0.0) -> FrameTokenizer:
    config = FrameTokenizerConfig(
        channels=(16, 16), patch_size=4, codebook_size=64, code_margin=code_margin
    )
    return FrameTokenizer(config, (SIZE, SIZE), len(cameras))


def make_world_model(
    tokenizer: FrameTokenizer,
    *,
    has_state: bool = True,
    has_reward: bool = True,
    window: int = 6,
) -> WorldModel:
    vocabulary = Vocabulary(
        codebook_size=tokenizer.codebook_size,
        code_levels=tokenizer.config.code_levels,
        num_cameras=tokenizer.num_cameras,
        grid=tokenizer.grid,
        action=bins(-3.5, 3.5, 7),
        state=bins(0.0, float(SIZE - SQUARE), 48) if has_state else None,
        has_reward=has_reward,
        reward_range=(0.0, 1.0) if has_reward else None,
        tokenizer_hash=tokenizer_hash(tokenizer),
    )
    transformer = TransformerConfig(dim=32, num_layers=2, num_heads=2, window=window)
    return WorldModel(WorldModelConfig(transformer=transformer), vocabulary)


def make_model(
    *,
    has_state: bool = True,
    has_reward: bool = True,
    cameras: Sequence[str] = CAMERAS,
    window: int = 6,
    seed: int = 0,
    code_margin: float = 0.0,
    provenance: Mapping[str, Any] | None = None,
    tokenizer_provenance: Mapping[str, Any] = MappingProxyType({}),
) -> TokenWorldModel:
    """A random model whose outputs depend on all of its inputs (heads start at zero otherwise)."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(cameras, code_margin).eval()
    world_model = make_world_model(
        tokenizer, has_state=has_state, has_reward=has_reward, window=window
    ).eval()
    shake(world_model, 0.2)
    torch.nn.init.constant_(world_model.copy_head.bias, 2.0)
    return TokenWorldModel(
        LoadedWorldModel(
            world_model=world_model,
            tokenizer=tokenizer,
            control_rate=10.0,
            cameras=tuple(cameras),
            provenance={"seed": seed} if provenance is None else provenance,
            tokenizer_provenance=tokenizer_provenance,
        )
    )


def save_model(folder: Path, model: TokenWorldModel) -> Path:
    save_world_model(
        folder,
        model.world_model,
        model.tokenizer,
        model.provenance,
        control_rate=model.control_rate,
        cameras=model.cameras,
    )
    return folder


class OracleModel(TokenWorldModel):
    """Knows the future: every step returns the true tokens of the recorded episode.

    Args:
        model: Whose tokenizers and network to use.
        true_tokens: ``(rows, H, K)`` tokens of the frames after each row's context.
        true_state: ``(rows, H, P)`` tokens of the states.
        num_context_frames: Steps before the first imagined one.
    """

    def __init__(
        self,
        model: TokenWorldModel,
        true_tokens: torch.Tensor,
        true_state: torch.Tensor,
        num_context_frames: int,
    ) -> None:
        self.__dict__.update(model.__dict__)
        self.true_tokens, self.true_state = true_tokens, true_state
        self.num_context_frames = num_context_frames

    def step_tokens(self, state, action_tokens, sampling=None):  # type: ignore[no-untyped-def]
        following, rollout = super().step_tokens(state, action_tokens, sampling)
        horizon = int(following.step) - self.num_context_frames
        frame, known = (
            true[state.noise_streams, horizon] for true in (self.true_tokens, self.true_state)
        )
        head = self.world_model.state_head
        assert head is not None
        values = head.values_of(known)
        decoding = replace(
            following.decoding, frame_tokens=frame, state_tokens=known, state_values=values
        )
        imagined = replace(
            rollout,
            frame_tokens=frame[:, None],
            state_tokens=known[:, None],
            state=self.units.state_of(known, values)[:, None],
        )
        return replace(following, decoding=decoding), imagined
