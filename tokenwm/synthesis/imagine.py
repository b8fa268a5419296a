"""Imagine from any recorded episode, with its own, other or random actions, and keep all of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.shards.reader import ShardReader
from tokenwm.data.storage.atomic import make_folder, open_atomically
from tokenwm.errors import TokenwmError
from tokenwm.evaluation.report.pictures import (
    Panel,
    absolute_error,
    film,
    side_by_side,
    write_gif,
    write_mp4,
)
from tokenwm.evaluation.starts import check_episode
from tokenwm.imagination.context import Context
from tokenwm.imagination.fits import check_data_fits
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.token_world_model import Rollout, TokenWorldModel
from tokenwm.tokenizer.actions import BinTokenizer

SPLIT_PREFERENCE = ("test", "val", "train")
"""Splits that an episode is taken from if none is named: held-out ones first."""


ROLLOUT_ARRAYS = (
    "frame_tokens",
    "state",
    "reward",
    "termination_probability",
    "frame_nll",
    "frame_entropy",
)
"""Fields of a rollout that are written, under their names."""


@dataclass(frozen=True, kw_only=True)
class ImagineConfig:
    """Settings of an imagined episode.

    Attributes:
        key: Episode to start from; None takes the first held-out one.
        first_step: Step of the episode that is the first of the context.
        num_context_frames: ``C``, observed frames before imagining.
        imagination_horizon: ``H``, imagined steps.
        actions: ``own`` (what was done in the episode), ``random`` (uniform over the range of the
            training data, new at every step), the key of another episode (what was done there at
            the same steps), or the path of an ``.npy`` file of ``(H or more, A)`` in the units of
            the data.
        num_samples: Futures, each with its own noise.
        sampling: Settings for drawing ids.
        seed: Seed of the noise and of random actions.
    """

    key: str | None = None
    first_step: int = 0
    num_context_frames: int = 4
    imagination_horizon: int = 20
    actions: str = "own"
    num_samples: int = 1
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"first_step": 0, "seed": 0}
        names = ("num_context_frames", "imagination_horizon", "num_samples")
        for name, minimum in (least | dict.fromkeys(names, 1)).items():
            if getattr(self, name) < minimum:
                raise TokenwmError(f"{name}={getattr(self, name)}; use at least {minimum}")


@dataclass(frozen=True, kw_only=True)
class ImaginedEpisode:
    """``N`` futures of ``H`` steps from one start.

    Attributes:
        key: Episode.
        first_step: First step of the context.
        context_frames: ``(C, cameras, height, width, 3)`` uint8, what was observed.
        frames: ``(N, H, cameras, height, width, 3)`` uint8, what was imagined.
        truth_frames: ``(H, cameras, height, width, 3)`` uint8, what happened; None unless the
            actions are the episode's own.
        rollout: What the model imagined, on the host: tokens, states, rewards, ends, surprise.
    """

    key: str
    first_step: int
    context_frames: NDArray[np.uint8]
    frames: NDArray[np.uint8]
    truth_frames: NDArray[np.uint8] | None
    rollout: Rollout

    def arrays(self) -> dict[str, Any]:
        """The arrays to write, by name; those that the model does not have are left out.

        ``action`` is ``(H, A)`` and the same in all futures.
        """
        rollout = self.rollout
        values: dict[str, Any] = {
            name: value for name, value in vars(self).items() if name != "rollout"
        }
        for name in ROLLOUT_ARRAYS:
            value = getattr(rollout, name)
            values[name] = None if value is None else value.numpy()
        values |= {"action": rollout.actions[0].numpy(), "tokens_per_pass": rollout.tokens_per_pass}
        return {name: value for name, value in values.items() if value is not None}


def imagine_episode(
    model: TokenWorldModel, reader: ShardReader, config: ImagineConfig
) -> ImaginedEpisode:
    """Imagine from a recorded episode.

    Raises:
        TokenwmError: The data do not fit the model, or episode, start, horizon or actions are not
            there.
    """
    start = read_start(model, reader, config)
    first, num_context = config.first_step, config.num_context_frames
    action = choose_actions(model, reader, start.key, config)
    rollout = model.imagine(
        start.context,
        np.repeat(action[None], config.num_samples, axis=0),
        sampling=config.sampling,
        seed=config.seed,
    )
    truth = None
    if config.actions == "own":
        begin = first + num_context
        truth = reader.frames(start.key, begin, begin + config.imagination_horizon)
    return ImaginedEpisode(
        key=start.key,
        first_step=first,
        context_frames=start.frames,
        frames=model.decode_frames(rollout).cpu().numpy(),
        truth_frames=truth,
        rollout=rollout.to("cpu"),
    )


@dataclass(frozen=True, kw_only=True)
class RecordedStart:
    """The observed steps that imagining begins with.

    Attributes:
        key: Episode.
        frames: ``(C, cameras, height, width, 3)`` uint8, what was observed.
        context: The same and all else that was observed, one row, tokenized.
    """

    key: str
    frames: NDArray[np.uint8]
    context: Context


def read_start(model: TokenWorldModel, reader: ShardReader, config: ImagineConfig) -> RecordedStart:
    """Read where imagining begins.

    Raises:
        TokenwmError: The data do not fit the model, or episode or start are not there.
    """
    check_data_fits(model, reader)
    key = _choose_episode(reader) if config.key is None else config.key
    check_episode(reader, key)
    first, num_context = config.first_step, config.num_context_frames
    length = reader.episode(key).num_steps
    if first + num_context > length:
        raise TokenwmError(
            f"episode {key} has {length} steps; a context of {num_context} from step {first} "
            f"needs {first + num_context}; use an earlier start or a shorter context"
        )
    has_state = model.vocabulary.state is not None
    names = ["action", "state"] if has_state else ["action"]
    observed = reader.arrays(key, names, first, first + num_context)
    frames = reader.frames(key, first, first + num_context)
    context = model.context(
        frames[None],
        observed["action"][None, : num_context - 1],
        observed["state"][None] if has_state else None,
    )
    return RecordedStart(key=key, frames=frames, context=context)


def _choose_episode(reader: ShardReader) -> str:
    for split in SPLIT_PREFERENCE:
        keys = reader.keys(split)
        if keys:
            return keys[0]
    raise TokenwmError(f"{reader.folder} has no episodes")


def choose_actions(
    model: TokenWorldModel, reader: ShardReader, key: str, config: ImagineConfig
) -> NDArray[Any]:
    """The ``(H, A)`` actions that ``config.actions`` stands for.

    Raises:
        TokenwmError: There are too few of them, or they are not there.
    """
    horizon = config.imagination_horizon
    if config.actions == "random":
        return random_actions(model, horizon, config.seed)
    if config.actions.endswith(".npy"):
        return read_actions(Path(config.actions), model, horizon)
    source = key if config.actions == "own" else config.actions
    check_episode(reader, source)
    first = config.first_step + config.num_context_frames - 1
    num_actions = reader.episode(source).num_steps - 1  # the last step has none
    if first + horizon > num_actions:
        left = max(0, num_actions - first)
        raise TokenwmError(
            f"episode {source} has {num_actions + 1} steps; from step {first} on it has {left} "
            f"action(s), but a horizon of {horizon} needs as many; use a start, context or horizon "
            "that fits, or other actions"
        )
    return reader.arrays(source, ["action"], first, first + horizon)["action"]


def random_actions(model: TokenWorldModel, horizon: int, seed: int) -> NDArray[Any]:
    """``(H, A)`` uniform over the range of the training data, or over the ids."""
    tokenizer = model.vocabulary.action
    generator = np.random.default_rng(seed)
    shape = (horizon, tokenizer.num_dimensions)
    if isinstance(tokenizer, BinTokenizer):
        return generator.uniform(*tokenizer.training_range, shape).astype(np.float32)
    return generator.integers(0, tokenizer.used_sizes, shape)


def read_actions(path: Path, model: TokenWorldModel, horizon: int) -> NDArray[Any]:
    """The first ``horizon`` rows of an ``.npy`` file of actions in the units of the data.

    Raises:
        TokenwmError: It cannot be read, is of another shape, or holds what is not a finite number.
    """
    try:
        actions = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise TokenwmError(f"actions {path} cannot be read: {error}") from error
    wanted = model.vocabulary.action.num_dimensions
    is_number = isinstance(actions, np.ndarray) and actions.dtype.kind in "iuf"
    if not is_number or actions.ndim != 2 or actions.shape[1] != wanted or len(actions) < horizon:
        found = f"{actions.dtype}{actions.shape}" if isinstance(actions, np.ndarray) else "no array"
        raise TokenwmError(
            f"actions {path} is {found}; expected numbers of shape ({horizon} or more, {wanted})"
        )
    if not np.isfinite(actions).all():
        raise TokenwmError(f"actions {path} holds values that are not finite")
    rows: NDArray[Any] = actions[:horizon]
    return rows


@dataclass(frozen=True, kw_only=True)
class ImaginedFiles:
    """The files of an imagined episode."""

    gif: Path
    mp4: Path
    npz: Path


def write_imagined(
    out: Path, imagined: ImaginedEpisode, control_rate: float, label: str
) -> ImaginedFiles:
    """Write GIF, MP4 and NPZ.

    Args:
        out: Folder; made if missing.
        imagined: What was imagined.
        control_rate: Steps per second.
        label: Ends the file names: whose actions these are.

    Raises:
        TokenwmError: The folder cannot be made or a file cannot be written.
    """
    make_folder(out)
    stem = f"{imagined.key}_{imagined.first_step:04d}_{label}"
    files = ImaginedFiles(gif=out / f"{stem}.gif", mp4=out / f"{stem}.mp4", npz=out / f"{stem}.npz")
    frames = film(_panels(imagined), num_observed=len(imagined.context_frames))
    write_gif(files.gif, frames, control_rate)
    write_mp4(files.mp4, frames, control_rate)
    with open_atomically(files.npz) as file:
        np.savez_compressed(file, **imagined.arrays())
    return files


def _panels(imagined: ImaginedEpisode) -> list[Panel]:
    """Truth first where there is one; with one future also its error."""
    context = side_by_side(imagined.context_frames)
    num_samples = len(imagined.frames)
    panels = []
    truth = None
    if imagined.truth_frames is not None:
        truth = side_by_side(imagined.truth_frames)
        panels.append(Panel(title="truth", frames=np.concatenate([context, truth])))
    for number, sample in enumerate(imagined.frames, start=1):
        title = "imagined" if num_samples == 1 else f"imagined {number}"
        panels.append(Panel(title=title, frames=np.concatenate([context, side_by_side(sample)])))
    if truth is not None and num_samples == 1:
        error = absolute_error(side_by_side(imagined.frames[0]), truth)
        frames = np.concatenate([np.zeros_like(context), error])
        panels.append(Panel(title="error", frames=frames))
    return panels
