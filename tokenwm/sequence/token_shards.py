"""Frame shards → token shards: every frame is encoded once, before the world model is trained."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import tokenwm
from tokenwm.data.shards import tasks as shard_tasks
from tokenwm.data.shards.manifest import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    Feature,
    Manifest,
    manifest_sha256,
)
from tokenwm.data.shards.reader import ShardReader, stack_cameras
from tokenwm.data.shards.stream import StreamedEpisode, stream_episodes
from tokenwm.data.shards.tar import ShardFile
from tokenwm.data.shards.tasks import Extra, Record, ShardJob, ShowProgress, run_shard_tasks
from tokenwm.data.storage.folder import Folder, join, open_folder, write_bytes
from tokenwm.errors import ShardError, TokenwmError
from tokenwm.sequence.vocabulary import Vocabulary
from tokenwm.tokenizer.actions import (
    BinMethod,
    BinTokenizer,
    DiscreteTokenizer,
    ScalarTokenizer,
)
from tokenwm.tokenizer.frames import FrameTokenizer

FRAMES_PER_PASS = 256
TOKENIZER_FOLDER = "tokenizer"
"""Folder of a token dataset with the tokenizer's checkpoint: training needs one path only."""
MAX_SHIFT = 4
"""Pixels by which shifted copies are moved at most: about half a token of the ``small`` size."""


def fit_scalar_tokenizer(
    manifest: Manifest, name: str, num_bins: int, method: BinMethod, margin: float = 0.0
) -> ScalarTokenizer:
    """Choose the bins of ``action`` or ``state`` from the statistics of the train split.

    Raises:
        TokenwmError: The dataset has no such field or no statistics of it.
    """
    feature = manifest.features[name]
    if feature.kind == "discrete":
        assert feature.num_values is not None
        num_dimensions = feature.shape[0]
        counts = manifest.statistics.get(name, {}).get("counts", [])
        several = num_dimensions > 1 and len(counts) == num_dimensions
        sizes = tuple(int(np.flatnonzero(of_one).max()) + 1 for of_one in counts if several)
        return DiscreteTokenizer(
            num_values=feature.num_values, num_dimensions=num_dimensions, sizes=sizes
        )
    quantiles = manifest.statistics.get(name, {}).get("quantiles")
    if not quantiles:
        raise TokenwmError(f"the manifest has no quantiles of {name}; prepare the shards again")
    return BinTokenizer.fit(
        np.asarray(quantiles, dtype=np.float64),
        num_bins=num_bins,
        method=method,
        margin=margin,
        names=feature.names,
        units=feature.units,
    )


def reward_range(manifests: Iterable[Manifest]) -> tuple[float, float] | None:
    """Smallest and largest reward of the train splits of datasets that are trained on together.

    None if one of them has no statistics of its rewards.
    """
    figures = [manifest.statistics.get("reward", {}) for manifest in manifests]
    if not all("min" in figure and "max" in figure for figure in figures):
        return None
    low = min(float(np.min(figure["min"])) for figure in figures)
    return low, max(float(np.max(figure["max"])) for figure in figures)


def make_vocabulary(
    manifest: Manifest,
    tokenizer: FrameTokenizer,
    tokenizer_hash: str,
    *,
    num_action_bins: int,
    num_state_bins: int,
    method: BinMethod,
    use_state: bool,
    margin: float = 0.0,
) -> Vocabulary:
    """Make the vocabulary of a dataset: sizes and meanings of its tokens.

    Options are those of :meth:`BinTokenizer.fit`, for actions and states.
    """
    state = None
    if use_state and "state" in manifest.features:
        state = fit_scalar_tokenizer(manifest, "state", num_state_bins, method, margin)
    return Vocabulary(
        codebook_size=tokenizer.codebook_size,
        code_levels=tokenizer.config.code_levels,
        num_cameras=tokenizer.num_cameras,
        grid=tokenizer.grid,
        action=fit_scalar_tokenizer(manifest, "action", num_action_bins, method, margin),
        state=state,
        has_reward="reward" in manifest.features,
        tokenizer_hash=tokenizer_hash,
        actions_per_step=manifest.actions_per_step,
    )


def tokenize_shards(
    frames_folder: Path | str,
    out_folder: Path | str,
    tokenizer: FrameTokenizer,
    vocabulary: Vocabulary,
    *,
    tokenizer_files: Mapping[str, bytes] | None = None,
    num_shifted_copies: int = 0,
    engine: str = "local",
    num_workers: int = 0,
    progress: ShowProgress | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Encode every episode of frame shards, each shard in a task of its own.

    Few episodes are soon learned by heart. Copies whose frames are moved by a few pixels give a
    world model more of them: it has to look where things are instead of recognising the step.

    A run that was stopped is continued; tokens made of the same are kept. On a CPU a task uses one
    thread, so that the tokens do not depend on the number of cores; more workers use more of them.

    Args:
        frames_folder: Dataset of kind ``frames``, a path or a URL.
        out_folder: Where the token shards go, a path or a URL. Nothing in it is changed before it
            is certain that the rest of the arguments go together.
        tokenizer: Frame tokenizer in eval mode; its device does the work.
        vocabulary: From :func:`make_vocabulary`.
        tokenizer_files: Name → content of the files of the tokenizer's checkpoint, which go into
            ``TOKENIZER_FOLDER``; None leaves them away.
        num_shifted_copies: Copies of every training episode besides itself, each with its frames
            moved by its own shift of up to ``MAX_SHIFT`` pixels.
        engine: See :func:`tokenwm.engines.run_tasks`.
        num_workers: See there; a device other than the CPU works in this process.
        progress: Called after each shard.
        overwrite: Replace token shards that lie there, and shards without a manifest, whosoever
            they are.

    Returns:
        The manifest of the token shards.

    Raises:
        TokenwmError: The frames do not fit the tokenizer, or the device not the workers.
        ShardError: A shard is damaged, or cannot be written, or the folder holds a dataset that may
            not be replaced, or another process is writing there.
    """
    frames = Manifest.load(frames_folder)
    # Without a checksum per episode, everything has to be read before the first one is used.
    ShardReader(frames_folder, manifest=frames, verify=frames.schema_version == 1)
    maker = TokenShardMaker(
        root=str(frames_folder),
        manifest=frames,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        num_shifted_copies=num_shifted_copies,
    )
    maker.check()
    device = tokenizer.mean_frame.device.type
    if device != "cpu" and (num_workers > 1 or engine != "local"):
        raise TokenwmError(
            f"device {device} encodes in one process; leave --workers and --engine away"
        )
    folder = open_folder(out_folder)
    plan = {
        "tool": f"tokenwm {tokenwm.__version__}",
        "schema_version": SCHEMA_VERSION,
        "frames": manifest_sha256(frames_folder),
        "vocabulary": vocabulary.to_dict(),
        "num_shifted_copies": num_shifted_copies,
    }
    made_of = {"frames_manifest": plan["frames"], "shifted_copies": num_shifted_copies}
    with folder.lock():
        asked = json.loads(json.dumps({**made_of, "vocabulary": plan["vocabulary"]}))
        tokens = _finished(folder, asked, overwrite)
        if tokens is None:
            folder.remove(MANIFEST_NAME)
            shard_tasks.begin(folder, plan, overwrite=overwrite)
            job = ShardJob[TokenShard](folder=folder, plan=shard_tasks.digest_of(plan), make=maker)
            made = run_shard_tasks(
                job, maker.tasks(), engine=engine, num_workers=num_workers, progress=progress
            )
            files = _write_tokenizer(out_folder, tokenizer_files or {})
            tokens = _tokens_manifest(frames, vocabulary, list(made), files, made_of)
            tokens.save(out_folder)
        shard_tasks.end(folder)  # a run may have been killed right after it wrote the manifest
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


def _finished(folder: Folder, made_of: Mapping[str, Any], overwrite: bool) -> Manifest | None:
    """The manifest of token shards that are there already and are what is asked for.

    Raises:
        ShardError: The folder holds another dataset that may not be replaced.
    """
    if folder.size(MANIFEST_NAME) is None:
        return None
    manifest = Manifest.load(str(folder))
    if manifest.kind != "tokens":
        does = "--overwrite would remove" if overwrite else "tokens would replace"
        raise ShardError(
            f"{does} {folder}, but it holds {manifest.kind}, not tokens; choose another folder"
        )
    if overwrite:
        return None
    differing = [name for name, value in made_of.items() if manifest.extra.get(name) != value]
    if any(folder.size(shard.path) != shard.num_bytes for shard in manifest.shards):
        differing.append("the shards, which are not all there")
    if differing:
        raise ShardError(
            f"{folder} holds a dataset already, of other tokens (they differ in "
            f"{', '.join(differing)}); choose another folder, or replace it with --overwrite"
        )
    return manifest


def _write_tokenizer(out_folder: Path | str, files: Mapping[str, bytes]) -> dict[str, str]:
    """Write the tokenizer beside the shards; returns path → SHA-256, as a manifest has it."""
    folder = open_folder(join(out_folder, TOKENIZER_FOLDER))
    folder.clear_partials()
    return {
        f"{TOKENIZER_FOLDER}/{name}": write_bytes(folder, name, content)
        for name, content in files.items()
    }


@dataclass(frozen=True, kw_only=True)
class TokenShard:
    """A token shard to be made; see :class:`~tokenwm.data.shards.tasks.ShardTask`.

    Attributes:
        name: File name, that of the frame shard.
        num_episodes: Episodes to write, copies included.
    """

    name: str
    num_episodes: int


@dataclass(frozen=True, kw_only=True)
class TokenShardMaker:
    """Encodes the episodes of a shard; a picklable, pure function of the task.

    Attributes:
        root: Dataset of frames, a path or a URL.
        manifest: Its manifest.
        tokenizer: Encodes the frames.
        vocabulary: Encodes states and actions.
        num_shifted_copies: Copies of every training episode besides itself.
    """

    root: str
    manifest: Manifest
    tokenizer: FrameTokenizer
    vocabulary: Vocabulary
    num_shifted_copies: int

    def check(self) -> None:
        """Check that the shards and the tokenizer fit each other.

        Raises:
            TokenwmError: They do not.
        """
        if self.manifest.kind != "frames":
            raise TokenwmError(
                f"{self.root} holds {self.manifest.kind}; only frames can be tokenized"
            )
        if len(self.manifest.cameras) != self.tokenizer.num_cameras:
            raise TokenwmError(
                f"{self.root} has cameras {', '.join(self.manifest.cameras)}; the tokenizer was "
                f"trained for {self.tokenizer.num_cameras} camera(s)"
            )
        if self.num_shifted_copies < 0:
            raise TokenwmError(
                f"num_shifted_copies={self.num_shifted_copies}; use 0 (none) or more"
            )

    def tasks(self) -> list[TokenShard]:
        """A token shard for every frame shard."""
        return [
            TokenShard(name=shard.path, num_episodes=shard.num_episodes * self._copies(shard.split))
            for shard in self.manifest.shards
        ]

    def _copies(self, split: str) -> int:
        """Times that an episode is written: itself and its copies with moved pixels."""
        return 1 + (self.num_shifted_copies if split == "train" else 0)

    def __call__(self, task: TokenShard, shard: ShardFile) -> Extra:
        """Encode and add every episode.

        Raises:
            ShardError: An episode is damaged.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for episode in stream_episodes(self.root, self.manifest, [task.name]):
                for copy in range(self._copies(episode.info.split)):
                    self._add(episode, copy, shard)
        finally:
            torch.set_num_threads(threads)
        return Extra()

    def _add(self, episode: StreamedEpisode, copy: int, shard: ShardFile) -> None:
        key, metadata = episode.info.key, episode.metadata
        down, right = shift_of(key, copy)
        if copy > 0:
            metadata = {**metadata, "shifted_down": down, "shifted_right": right}
        arrays = self._encode(episode.arrays, (down, right))
        shard.add(f"{key}_shift{copy}" if copy else key, arrays, metadata)

    def _encode(
        self, arrays: Mapping[str, NDArray[Any]], shift: tuple[int, int]
    ) -> dict[str, NDArray[Any]]:
        cameras = [arrays[f"frames.{camera}"] for camera in self.manifest.cameras]
        frames = torch.tensor(stack_cameras(cameras))  # (T, cameras, H, W, 3)
        device = self.tokenizer.mean_frame.device
        encoded: list[Tensor] = []
        for part in torch.split(frames, FRAMES_PER_PASS):
            previous = encoded[-1][:, -1] if encoded else None
            tokens = self.tokenizer.encode_sequence(part[None].to(device), previous, shift)
            encoded.append(tokens.cpu())
        out = {"frame_tokens": torch.cat(encoded, dim=1)[0].numpy().astype(np.uint16)}
        if self.vocabulary.state is not None:
            out["state_tokens"] = self.vocabulary.state.encode(arrays["state"])
        out["action_tokens"] = self.vocabulary.action.encode(arrays["action"])
        rest = {name: arrays[name] for name in arrays if not name.startswith("frames.")}
        return {**out, **rest}


def _tokens_manifest(
    frames: Manifest,
    vocabulary: Vocabulary,
    records: Sequence[Record],
    files: dict[str, str],
    made_of: Mapping[str, Any],
) -> Manifest:
    return replace(
        frames,
        kind="tokens",
        features=_token_features(frames, vocabulary),
        statistics={k: v for k, v in frames.statistics.items() if not k.startswith("frames.")},
        shards=[record.shard for record in records if record.shard is not None],
        episodes=[episode for record in records for episode in record.episodes],
        files=files,
        extra={
            **frames.extra,
            "cameras": list(frames.cameras),
            "tokenizer_hash": vocabulary.tokenizer_hash,
            "vocabulary": vocabulary.to_dict(),
            **made_of,
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
