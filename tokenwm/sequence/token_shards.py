"""Frame shards → token shards: every frame is encoded once, before the world model is trained."""

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwm.data.manifest import SPLITS, EpisodeInfo, Feature, Manifest, ShardInfo
from tokenwm.data.shard_writer import ShardWriter, remove_own_files
from tokenwm.data.shards import ShardReader
from tokenwm.errors import TokenwmError
from tokenwm.sequence.vocabulary import Vocabulary
from tokenwm.tokenizer.actions import (
    BinMethod,
    ContinuousTokenizer,
    DiscreteTokenizer,
    ScalarTokenizer,
)
from tokenwm.tokenizer.frames import FrameTokenizer

Progress = Callable[[int, int, str], None]
FRAMES_PER_PASS = 256
MAX_SHIFT = 4
"""Pixels by which shifted copies are moved at most: about half a token of the ``small`` size."""


def fit_scalar_tokenizer(
    manifest: Manifest, name: str, num_bins: int, method: BinMethod
) -> ScalarTokenizer:
    """Choose the bins of ``action`` or ``state`` from the statistics of the train split.

    Raises:
        TokenwmError: The dataset has no such field or no statistics of it.
    """
    feature = manifest.features[name]
    if feature.kind == "discrete":
        assert feature.num_values is not None
        return DiscreteTokenizer(num_values=feature.num_values, num_dimensions=feature.shape[0])
    quantiles = manifest.statistics.get(name, {}).get("quantiles")
    if not quantiles:
        raise TokenwmError(f"the manifest has no quantiles of {name}; prepare the shards again")
    return ContinuousTokenizer.fit(
        np.asarray(quantiles, dtype=np.float64),
        num_bins=num_bins,
        method=method,
        names=feature.names,
        units=feature.units,
    )


def make_vocabulary(
    manifest: Manifest,
    tokenizer: FrameTokenizer,
    tokenizer_hash: str,
    *,
    num_action_bins: int,
    num_state_bins: int,
    method: BinMethod,
    use_state: bool,
) -> Vocabulary:
    """Say what the tokens of a dataset are."""
    state = None
    if use_state and "state" in manifest.features:
        state = fit_scalar_tokenizer(manifest, "state", num_state_bins, method)
    return Vocabulary(
        codebook_size=tokenizer.codebook_size,
        code_levels=tokenizer.config.code_levels,
        num_cameras=tokenizer.num_cameras,
        grid=tokenizer.grid,
        action=fit_scalar_tokenizer(manifest, "action", num_action_bins, method),
        state=state,
        has_reward="reward" in manifest.features,
        tokenizer_hash=tokenizer_hash,
    )


def tokenize_shards(
    frames_folder: Path,
    out_folder: Path,
    tokenizer: FrameTokenizer,
    vocabulary: Vocabulary,
    *,
    num_shifted_copies: int = 0,
    progress: Progress | None = None,
) -> Manifest:
    """Encode every episode of frame shards.

    Few episodes are soon learned by heart. Copies whose frames are moved by a few pixels give a
    world model more of them: it has to look where things are instead of recognising the step.

    Args:
        frames_folder: Dataset folder of kind ``frames``.
        out_folder: Where the token shards go; must not hold a dataset yet.
        tokenizer: Frame tokenizer in eval mode; its device does the work.
        vocabulary: From :func:`make_vocabulary`.
        num_shifted_copies: Copies of every training episode besides itself, each with its frames
            moved by its own shift of up to ``MAX_SHIFT`` pixels.
        progress: Called with (episodes done, episodes in all, key).

    Returns:
        The manifest of the token shards.

    Raises:
        TokenwmError: The frames do not fit the tokenizer.
        ShardError: A shard is damaged, or cannot be written.
    """
    reader = ShardReader(frames_folder, verify=True)
    _check_frames(reader, tokenizer)
    wanted = _episodes_to_write(reader, num_shifted_copies)
    with contextlib.ExitStack() as stack:  # if one writer fails, all remove what they wrote
        writers = {split: stack.enter_context(ShardWriter(out_folder, split)) for split in SPLITS}
        # No manifest is there, or the writers had refused: what lies there a killed run has left.
        remove_own_files(out_folder)
        for done, (split, key, copy) in enumerate(wanted, start=1):
            _write_episode(writers[split], reader, key, copy, tokenizer, vocabulary)
            if progress is not None:
                progress(done, len(wanted), key)
        finished = [writer.finish() for writer in writers.values()]
        tokens = _tokens_manifest(
            reader.manifest,
            vocabulary,
            shards=[shard for shards, _ in finished for shard in shards],
            episodes=[episode for _, episodes in finished for episode in episodes],
        )
        tokens.save(out_folder)
    return tokens


def read_vocabulary(manifest: Manifest, where: str) -> Vocabulary:
    """The vocabulary that token shards carry.

    Raises:
        TokenwmError: The dataset holds frames, or no vocabulary.
    """
    if manifest.kind != "tokens" or "vocabulary" not in manifest.extra:
        raise TokenwmError(
            f"{where} holds {manifest.kind}; the world model is trained on token shards "
            "made by 'tokenwm tokenize'"
        )
    return Vocabulary.from_dict(manifest.extra["vocabulary"])


def shift_of(key: str, copy: int) -> tuple[int, int]:
    """Pixels down and right by which a copy of an episode is moved; copy 0 is the episode itself.

    A function of its arguments only; copies are always moved.
    """
    if copy == 0:
        return 0, 0
    side = range(-MAX_SHIFT, MAX_SHIFT + 1)
    shifts = [shift for shift in product(side, side) if shift != (0, 0)]
    digest = hashlib.sha256(f"{key}/{copy}".encode()).digest()
    return shifts[int.from_bytes(digest[:8], "big") % len(shifts)]


def _check_frames(reader: ShardReader, tokenizer: FrameTokenizer) -> None:
    manifest = reader.manifest
    if manifest.kind != "frames":
        raise TokenwmError(f"{reader.folder} holds {manifest.kind}; only frames can be tokenized")
    if len(manifest.cameras) != tokenizer.num_cameras:
        raise TokenwmError(
            f"{reader.folder} has cameras {', '.join(manifest.cameras)}; the tokenizer was "
            f"trained for {tokenizer.num_cameras} camera(s)"
        )


def _episodes_to_write(reader: ShardReader, num_shifted_copies: int) -> list[tuple[str, str, int]]:
    """(Split, key, copy) in the order they are written."""
    if num_shifted_copies < 0:
        raise TokenwmError(f"num_shifted_copies={num_shifted_copies}; use 0 (none) or more")
    return [
        (split, key, copy)
        for split in SPLITS
        for key in reader.keys(split)
        for copy in range(1 + (num_shifted_copies if split == "train" else 0))
    ]


def _write_episode(
    writer: ShardWriter,
    reader: ShardReader,
    key: str,
    copy: int,
    tokenizer: FrameTokenizer,
    vocabulary: Vocabulary,
) -> None:
    shift = shift_of(key, copy)
    arrays = _tokenize_episode(reader, key, tokenizer, vocabulary, shift)
    metadata = reader.metadata(key)
    if copy > 0:
        metadata = {**metadata, "shifted_down": shift[0], "shifted_right": shift[1]}
    writer.add(f"{key}_shift{copy}" if copy else key, arrays, metadata)


def _tokenize_episode(
    reader: ShardReader,
    key: str,
    tokenizer: FrameTokenizer,
    vocabulary: Vocabulary,
    shift: tuple[int, int],
) -> dict[str, NDArray[Any]]:
    frames = torch.from_numpy(reader.frames(key))  # (T, cameras, H, W, 3)
    rest = [name for name in reader.manifest.features if not name.startswith("frames.")]
    arrays = reader.arrays(key, rest)
    device = tokenizer.mean_frame.device
    encoded: list[Tensor] = [
        tokenizer.encode_frames(part.to(device), shift).cpu()
        for part in torch.split(frames, FRAMES_PER_PASS)
    ]
    out = {"frame_tokens": torch.cat(encoded).numpy().astype(np.uint16)}
    if vocabulary.state is not None:
        out["state_tokens"] = vocabulary.state.encode(arrays["state"])
    out["action_tokens"] = vocabulary.action.encode(arrays["action"])
    return {**out, **arrays}


def _tokens_manifest(
    frames: Manifest, vocabulary: Vocabulary, shards: list[ShardInfo], episodes: list[EpisodeInfo]
) -> Manifest:
    return replace(
        frames,
        kind="tokens",
        features=_token_features(frames, vocabulary),
        statistics={k: v for k, v in frames.statistics.items() if not k.startswith("frames.")},
        shards=shards,
        episodes=episodes,
        extra={
            **frames.extra,
            "cameras": list(frames.cameras),
            "tokenizer_hash": vocabulary.tokenizer_hash,
            "vocabulary": vocabulary.to_dict(),
        },
    )


def _token_features(manifest: Manifest, vocabulary: Vocabulary) -> dict[str, Feature]:
    def tokens(shape: int, num_values: int) -> Feature:
        return Feature(kind="tokens", shape=(shape,), dtype="uint16", num_values=num_values)

    features = {"frame_tokens": tokens(vocabulary.tokens_per_frame, vocabulary.codebook_size)}
    if vocabulary.state is not None:
        state = vocabulary.state
        features["state_tokens"] = tokens(state.num_dimensions, state.num_values)
    action = vocabulary.action
    features["action_tokens"] = tokens(action.num_dimensions, action.num_values)
    rest = {k: v for k, v in manifest.features.items() if not k.startswith("frames.")}
    return {**features, **rest}
