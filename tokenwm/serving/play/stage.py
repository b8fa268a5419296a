"""The stage that all players share: a model, its thread, and recorded episodes to begin from."""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import TokenwmError
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.starts import RecordedStarts, Start, load_starts
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.serving.play.beginnings import Beginning, Recordings, evenly, png
from tokenwm.serving.play.controls import Controls, Dimension, dimensions_of
from tokenwm.serving.play.trust import measured, take_doubt
from tokenwm.tokenizer.actions import BinTokenizer

logger = logging.getLogger(__name__)

SPLITS = ("test", "val", "train")
"""Splits to begin from, held-out episodes first."""
GALLERY = 18
"""Beginnings that a page offers as pictures."""
MOST_KEYS = 2000
"""Episodes that a page lists."""
MEASURED_ROWS, MEASURED_STEPS = 8, 10
"""Recorded futures that tell how much surprise and doubt is usual, and how long they are."""


@dataclass(frozen=True, kw_only=True)
class PlayLimits:
    """The limits of a server to play on.

    Attributes:
        max_players: At a time; each holds its state and snapshots.
        max_connections: Open at a time.
        max_steps: Imagined steps of an episode.
        max_upload_bytes: Size of a picture that is sent.
        idle_seconds: Time without a word from a page after which its world pauses.
    """

    max_players: int = 32
    max_connections: int = 256
    max_steps: int = 2000
    max_upload_bytes: int = 8 * 2**20
    idle_seconds: float = 120.0

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 1:
            raise TokenwmError(f"limits must be at least 1: {self}")


class Stage:
    """A model that several people play in.

    Args:
        model: The model; nobody else may use it meanwhile.
        reader: Recorded episodes; None if there are none, and pictures are uploaded.
        num_context: Observed steps to begin with.
        sampling: Settings for drawing outcomes.
        out: Where played episodes are saved; None saves none.
        limits: Limits.

    Attributes:
        worker: The model's thread, in which everything that uses it is called.
        saver: The thread in which episodes are written, one after another.
        is_closed: Whether nothing more is computed.
        starts: Episode and step of the beginnings that the page offers.
        trust: How much surprise and doubt is usual.
        welcome: Header and pictures of the first message to a page.
    """

    def __init__(
        self,
        model: TokenWorldModel,
        reader: ShardReader | None,
        *,
        num_context: int = 4,
        sampling: SamplingConfig | None = None,
        out: Path | None = None,
        limits: PlayLimits | None = None,
    ) -> None:
        self.model, self.out = model, out
        self.limits = limits or PlayLimits()
        self.sampling = sampling or SamplingConfig()
        self.controls = Controls(model.vocabulary)
        self.recordings = None if reader is None else Recordings(reader, model, num_context)
        self.worker = ThreadPoolExecutor(1, "model")
        self.saver = ThreadPoolExecutor(1, "saver")
        self.is_closed = False
        self.trust = take_doubt(model)
        self.starts: list[tuple[str, int]] = []
        if reader is not None:
            self.starts = _starts(reader, num_context)
            known = _behind(reader, self.starts, num_context)
            if known is not None:
                self.trust = measured(self.trust, model, known, self.sampling)
        self.blank: NDArray[np.uint8] = np.full(model.tokenizer.frame_shape, 128, dtype=np.uint8)
        self.welcome = self._welcome()

    def begin(self, key: str, step: int) -> Beginning:
        """See :meth:`Recordings.begin`.

        Raises:
            TokenwmError: There are no recordings, or no such step.
        """
        return self._known.begin(key, step)

    def looked_at(self, key: str, step: int) -> NDArray[np.uint8]:
        """``(cameras, H, W, 3)`` uint8, a recorded step.

        Raises:
            TokenwmError: There is none.
        """
        frames = self._known.frames(key, step)
        if frames is None:
            raise TokenwmError(f"episode {key} has no step {step}")
        return frames

    def truth(self, beginning: Beginning, step: int) -> bytes | None:
        """A PNG of what really happened ``step`` steps after a beginning, if it is known."""
        if beginning.key is None:
            return None
        frames = self._known.frames(beginning.key, beginning.step + step)
        return None if frames is None else png(frames)

    @property
    def _known(self) -> Recordings:
        if self.recordings is None:
            raise TokenwmError("there are no recordings; start with --data DIR, or send a picture")
        return self.recordings

    def _welcome(self) -> tuple[dict[str, Any], list[bytes]]:
        """The first message to a page: the model, its controls, and where to begin."""
        model, controls = self.model, self.controls
        state = model.vocabulary.state
        approximation = model.approximation
        header = {
            "type": "welcome",
            "name": _name_of(model),
            "rate": model.control_rate,
            "decoding": "exact" if approximation is None else f"{approximation.num_passes} passes",
            "cameras": list(model.cameras),
            "size": list(model.tokenizer.image_size),
            "controls": {
                "dimensions": [asdict(dimension) for dimension in controls.dimensions],
                "units": controls.units,
                "repeats": controls.repeats,
                "discrete": controls.is_discrete,
                "place": controls.is_place,
                "table": controls.is_table,
                "down": controls.points_down,
            },
            "state": None if state is None else _state(model),
            "trust": asdict(self.trust),
            "starts": [{"episode": key, "step": step} for key, step in self.starts],
            "episodes": self._episodes(),
            "saves": self.out is not None,
            "most_bytes": self.limits.max_upload_bytes,
        }
        return header, [png(self.looked_at(*start)) for start in self.starts]

    def _episodes(self) -> Mapping[str, int]:
        if self.recordings is None:
            return {}
        reader = self.recordings.reader
        keys = [key for split in SPLITS for key in reader.keys(split)][:MOST_KEYS]
        return {key: reader.episode(key).num_steps for key in keys}

    def close(self, grace: float = 0.0) -> None:
        """Stop computing; what has begun is left to itself, whatever ``grace`` is."""
        self.is_closed = True
        for thread in (self.worker, self.saver):
            thread.shutdown(wait=False, cancel_futures=True)


def _state(model: TokenWorldModel) -> dict[str, Any]:
    state = model.vocabulary.state
    assert state is not None
    known: tuple[Dimension, ...] = dimensions_of("state", state, state.num_dimensions)
    units = state.units if isinstance(state, BinTokenizer) else ""
    return {"dimensions": [asdict(dimension) for dimension in known], "units": units}


def _starts(reader: ShardReader, num_context: int) -> list[tuple[str, int]]:
    """One beginning in each of some held-out episodes, a quarter into it."""
    split = next((name for name in SPLITS if reader.keys(name)), None)
    if split is None:
        raise TokenwmError(f"{reader.root} has no episodes to begin from")
    if split == "train":
        logger.warning(
            "%s has no held-out episodes: what surprise and doubt are usual is measured on those "
            "of the training",
            reader.root,
        )
    found = []
    for key in evenly(reader.keys(split), GALLERY):
        length = reader.episode(key).num_steps
        found.append((key, min(length - 1, max(num_context - 1, length // 4))))
    return found


def _behind(
    reader: ShardReader, starts: list[tuple[str, int]], num_context: int
) -> RecordedStarts | None:
    """The recorded steps behind some of the beginnings; None where there are too few."""
    needed = num_context + MEASURED_STEPS
    rows = [
        Start(key=key, first_step=min(step, reader.episode(key).num_steps - needed))
        for key, step in starts
        if reader.episode(key).num_steps >= needed
    ][:MEASURED_ROWS]
    if not rows:
        logger.warning("no episode is long enough to say how much surprise is usual")
        return None
    return load_starts(reader, rows, num_context, MEASURED_STEPS)


def _name_of(model: TokenWorldModel) -> str:
    """The folders that say which model it is: those of its run."""
    if model.folder is None:
        return "world model"
    generic = ("model", "world_model", "checkpoints")
    names = [part for part in model.folder.absolute().parts if part not in generic]
    return names[-1] if names else "world model"
