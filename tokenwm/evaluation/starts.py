"""Where in held-out episodes to start imagining, and whose actions to shuffle into a start."""

import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.readers.base import PHASE
from tokenwm.data.shards.manifest import SPLITS, Manifest
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import ShardError, TokenwmError
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.tokenizer.actions import ContinuousTokenizer
from tokenwm.tokenizer.frames import FrameTokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Start:
    """One place to start from.

    Attributes:
        key: Episode.
        first_step: Step of the episode that is the first of the context.
    """

    key: str
    first_step: int


@dataclass(frozen=True, kw_only=True)
class Starts:
    """All places to start from, episode by episode.

    Attributes:
        rows: Every start; those of one episode are neighbours.
        skipped: Key → number of steps of each episode that is too short, and so is not measured.
    """

    rows: tuple[Start, ...]
    skipped: dict[str, int]

    @property
    def keys(self) -> tuple[str, ...]:
        """Episodes that are measured, in order."""
        return tuple(dict.fromkeys(row.key for row in self.rows))


def choose_starts(
    reader: ShardReader,
    split: str,
    *,
    num_steps: int,
    num_starts: int,
    max_episodes: int | None = None,
) -> Starts:
    """Spread starts evenly over every episode of a split; the last ends at the episode's last step.

    Args:
        reader: Dataset.
        split: Which episodes.
        num_steps: Steps that a start needs: context and horizon together.
        num_starts: Starts per episode; fewer where the episode has no more distinct ones.
        max_episodes: Measure only that many, evenly spread over the split; None for all.

    Raises:
        TokenwmError: No episode is long enough.
    """
    lengths = {key: reader.episode(key).num_steps for key in _recordings(reader.keys(split))}
    skipped = {key: length for key, length in lengths.items() if length < num_steps}
    keys = [key for key in lengths if key not in skipped]
    if not keys:
        raise TokenwmError(
            f"no episode of split {split!r} in {reader.root} has {num_steps} steps (context + "
            f"horizon); the longest has {max(lengths.values(), default=0)}; use a shorter context "
            "or horizon"
        )
    if skipped:
        logger.warning(
            "%d of %d episodes of split %s are shorter than %d steps and are not measured: %s",
            len(skipped),
            len(lengths),
            split,
            num_steps,
            ", ".join(list(skipped)[:5]),
        )
    if max_episodes is not None and len(keys) > max_episodes:
        keys = [keys[index] for index in _spread(len(keys), max_episodes)]
    rows = []
    for key in keys:
        for first_step in _spread(lengths[key] - num_steps + 1, num_starts):
            rows.append(Start(key=key, first_step=first_step))
    return Starts(rows=tuple(rows), skipped=skipped)


def ending_starts(
    reader: ShardReader, starts: Starts, *, num_context: int, horizon: int, num_starts: int
) -> dict[int, tuple[Start, ...]]:
    """Further starts for endings: of each episode that ended its task, so that this is foreseen.

    Starts that are spread over an episode see its last action at the last horizon, if at all. These
    see it after 1 to ``horizon`` imagined steps, evenly spread, also in episodes that are too short
    to be measured otherwise. They are for endings only: pictures of them would favour the ends.

    Args:
        reader: Dataset.
        starts: The others; what is among them is left out here.
        num_context: ``C``, observed frames.
        horizon: ``H``, most imagined steps.
        num_starts: Most starts per episode.

    Returns:
        Number of imagined steps, of which the last ends the task → starts.
    """
    found: dict[int, list[Start]] = {}
    known = set(starts.rows)
    for key in (*starts.keys, *starts.skipped):
        ends = np.flatnonzero(reader.arrays(key, ["terminated"])["terminated"])
        # The action of step t is the last of h imagined ones if h - 1 others come before it.
        longest = min(horizon, int(ends[-1]) + 2 - num_context) if len(ends) else 0
        for count in _spread(longest, num_starts) if longest > 0 else ():
            start = Start(key=key, first_step=int(ends[-1]) + 1 - num_context - count)
            if start not in known:
                found.setdefault(count + 1, []).append(start)
    return {count: tuple(rows) for count, rows in sorted(found.items())}


def _recordings(keys: Sequence[str]) -> list[str]:
    """Episodes without the other phases of one (``all_phases``), which are no further evidence."""
    known = set(keys)
    return [key for key in keys if key.rpartition(PHASE)[0] not in known]


def _spread(size: int, count: int) -> list[int]:
    """At most ``count`` distinct numbers evenly spread over [0, size), ends included; 1: middle."""
    if count == 1:
        return [(size - 1) // 2]
    return sorted({round(value) for value in np.linspace(0, size - 1, count)})


def choose_split(manifest: Manifest, split: str) -> str:
    """The split to measure: the one asked for, or ``val`` where there is no ``test``.

    Raises:
        TokenwmError: The split is unknown or has no episodes.
    """
    if split not in SPLITS:
        raise TokenwmError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    if manifest.num_episodes(split):
        return split
    if split == "test" and manifest.num_episodes("val"):
        logger.warning("%s has no test episodes; measuring on val instead", manifest.name)
        return "val"
    counts = {name: manifest.num_episodes(name) for name in SPLITS}
    raise TokenwmError(
        f"{manifest.name} has no episodes in split {split!r} (episodes: {counts}); "
        "choose another split, or prepare the data with another `splits` in the recipe"
    )


def check_episode(reader: ShardReader, key: str) -> None:
    """Check that an episode exists.

    Raises:
        ShardError: It does not; the message names the nearest ones.
    """
    keys = reader.keys()
    if key not in keys:
        close = difflib.get_close_matches(key, keys, n=3, cutoff=0.4) or keys[:3]
        raise ShardError(
            f"{reader.root} has no episode {key!r} among {len(keys)}; nearest: {', '.join(close)}"
        )


def check_data_fits(model: TokenWorldModel, reader: ShardReader) -> None:
    """Check that a dataset is of the kind a model was trained on.

    Raises:
        TokenwmError: Cameras, frame size, actions, state or control rate differ.
    """
    manifest, folder = reader.manifest, reader.root
    if manifest.kind != "frames":
        raise TokenwmError(
            f"{folder} holds {manifest.kind} shards; frames are needed to compare with: give the "
            "folder that 'tokenwm prepare' wrote"
        )
    tokenizer: FrameTokenizer = model.tokenizer
    if manifest.cameras != model.cameras:
        raise TokenwmError(
            f"{folder} has the cameras {_names(manifest.cameras)}; the model was trained on "
            f"{_names(model.cameras)}; prepare the data with the same `cameras` in the recipe"
        )
    height, width = tokenizer.image_size
    for camera in manifest.cameras:
        shape = manifest.features[f"frames.{camera}"].shape
        if shape != (height, width, 3):
            raise TokenwmError(
                f"{folder}: frames of camera {camera} are {shape[0]}×{shape[1]} pixels; the model "
                f"was trained on {height}×{width}; prepare the data with image_size: [{height}, "
                f"{width}]"
            )
    _check_scalars(model, reader)
    if abs(manifest.control_rate - model.control_rate) > 0.01 * model.control_rate:
        raise TokenwmError(
            f"{folder} has {manifest.control_rate:g} steps per second, the model was trained on "
            f"{model.control_rate:g}; prepare the data with control_rate: {model.control_rate:g}"
        )


def _check_scalars(model: TokenWorldModel, reader: ShardReader) -> None:
    vocabulary, features = model.vocabulary, reader.manifest.features
    wanted = {"action": vocabulary.action}
    if vocabulary.state is not None:
        wanted["state"] = vocabulary.state
    for name, scalar_tokenizer in wanted.items():
        if name not in features:
            raise TokenwmError(
                f"{reader.root} has no {name}, which the model needs; name it in the recipe and "
                "prepare again"
            )
        feature = features[name]
        size = feature.shape[0] if feature.shape else 1
        is_continuous = isinstance(scalar_tokenizer, ContinuousTokenizer)
        if size != scalar_tokenizer.num_dimensions or is_continuous == (feature.kind == "discrete"):
            kind = "continuous" if is_continuous else "discrete"
            raise TokenwmError(
                f"{reader.root}: {name} is {feature.kind} with {size} dimension(s); the model "
                f"was trained on {kind} with {scalar_tokenizer.num_dimensions}"
            )


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "(none)"


def shuffled_rows(keys: Sequence[str], seed: int) -> NDArray[np.int64] | None:
    """Whose actions each row gets when actions are shuffled: a derangement, fixed by the seed.

    Rows get the actions of another episode wherever no episode has more than half of the rows.
    Episodes and the starts within them are put in a random order first: the same phase of another
    recording of the same task would hold nearly the same actions.

    Args:
        keys: Episode of each row.
        seed: Of the order.

    Returns:
        ``(rows,)``: row ``i`` gets the actions of row ``result[i] != i``; None if there is one row
            only.
    """
    num_rows = len(keys)
    if num_rows < 2:
        return None
    generator = np.random.default_rng(seed)
    groups: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    members = [generator.permutation(rows) for rows in groups.values()]
    order = np.concatenate([members[index] for index in generator.permutation(len(members))])
    largest = max(map(len, members))
    shift = largest if 2 * largest <= num_rows else num_rows // 2
    result = np.empty(num_rows, dtype=np.int64)
    result[order] = np.roll(order, -shift)
    return result
