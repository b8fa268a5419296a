"""All that is learned for deciding, in one call: prior, distance and doubt of a model."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tokenwm.data.shards.manifest import manifest_sha256
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import CheckpointError, TokenwmError
from tokenwm.heads import distance, doubt, eyes
from tokenwm.heads.folder import read_head, save_head
from tokenwm.heads.head import Head
from tokenwm.heads.recorded import Recorded, read_recorded
from tokenwm.imagination.starts import choose_split
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.policies import cloning
from tokenwm.shapes import is_number, is_whole, shown

logger = logging.getLogger(__name__)

SHARES = {cloning.NAME: 2.0, distance.NAME: 1.0, doubt.NAME: 1.0}
"""Name of each head and its share of the time."""
EYES_SHARE = 1.0
"""The share of the eyes that all of them begin with."""
CHUNK_SECONDS, REACH_SECONDS = 2.5, 5.0
MOST_EPOCHS = 50.0
"""Passes over the steps of the data after which training ends, however much time is left."""
LEAST_STEPS = 50
"""Steps of an optimizer, however few the steps of the data are."""
Show = Callable[[str, int, int], None]
"""Told what is done, how much of it, and of how much."""


class Sizes(NamedTuple):
    """Steps of the model: of a chunk, and the most from a state to its goal."""

    chunk: int
    reach: int


def sizes_for(model: TokenWorldModel, chunk: int | None, reach: int | None) -> Sizes:
    """The sizes asked for, or those of a model's rate.

    Raises:
        TokenwmError: One is no whole number of at least 1.
    """
    if chunk is None:
        chunk = max(1, round(CHUNK_SECONDS * model.control_rate))
    if reach is None:
        reach = max(chunk, 2, round(REACH_SECONDS * model.control_rate))
    if not (is_whole(chunk) and is_whole(reach)):
        raise TokenwmError(
            f"chunk={shown(chunk)}, reach={shown(reach)}: use whole numbers of steps, at least 1"
        )
    return Sizes(chunk, reach)


def train_heads(
    model: TokenWorldModel,
    reader: ShardReader,
    names: Sequence[str] = tuple(SHARES),
    *,
    mix: Sequence[ShardReader] = (),
    real_fraction: float | None = None,
    seconds: float = 180.0,
    chunk: int | None = None,
    reach: int | None = None,
    epochs: float = MOST_EPOCHS,
    seed: int = 0,
    overwrite: bool = False,
    show: Show | None = None,
) -> dict[str, dict[str, Any]]:
    """Train heads for deciding on recorded frames, measure them on held-out ones, and keep them.

    Args:
        model: As loaded from a folder.
        reader: Frames that fit it.
        names: Of ``prior``, ``distance`` and ``doubt``.
        mix: Further frames to train on, as ``synthesize`` makes them; never to measure on.
        real_fraction: Share of drawn steps that are recorded, not synthetic, in [0, 1]; None draws
            all steps alike.
        seconds: Of training in all; encoding the frames comes on top.
        chunk: Steps of a chunk of the prior; None: 2.5 seconds.
        reach: Most steps to a goal; None: 5 seconds.
        epochs: Passes over all steps after which training ends, however much time is left.
        seed: Of all that is random.
        overwrite: Train again what was trained on the same data with the same options.
        show: Called as it goes on.

    Returns:
        Name → provenance: what it was trained on, and figures of held-out episodes.

    Raises:
        TokenwmError: A name is unknown, a number is out of range, the data does not fit or does not
            allow the real fraction, or the model was not loaded from a folder.
    """
    if not names or not set(names) <= SHARES.keys():
        raise TokenwmError(f"heads are {', '.join(names)!r}; choose of {', '.join(SHARES)}")
    for name, value in (("seconds", seconds), ("epochs", epochs)):
        if not (is_number(value) and 0.0 < value < math.inf):
            raise TokenwmError(f"{name}={shown(value)}; use a finite number above zero")
    if model.folder is None:
        raise CheckpointError("heads are kept beside their model; load it from a folder")
    sizes = sizes_for(model, chunk, reach)
    wanted = {
        "data_manifest_sha256": manifest_sha256(reader.root),
        "mixture": _mixture(mix, real_fraction),
        "options": {"seconds": seconds, **sizes._asdict(), "epochs": epochs, "seed": seed},
    }
    found = {} if overwrite else {name: _kept(model, name, wanted) for name in names}
    results = {name: about for name, about in found.items() if about is not None}
    missing = [name for name in dict.fromkeys(names) if name not in results]
    if not missing:
        return results
    training = _read(model, reader, "train", show)
    if wanted["mixture"] is not None:
        others = [_read(model, each, "train", show) for each in mix]
        training = training.mixed_with(others, real_fraction)
    held_out, split = _held_out(model, reader, show)
    unit = seconds / (EYES_SHARE + sum(SHARES[name] for name in missing))
    num_steps = max(LEAST_STEPS, round(epochs * len(training) / cloning.BATCH))
    common = _common(model, "eyes", num_steps, unit * EYES_SHARE, seed, show)
    seeing = eyes.fit_eyes(training, model.code_grid, **common)
    for name in missing:
        common = _common(model, name, num_steps, unit * SHARES[name], seed, show)
        head, figures = _train(model, name, training, held_out, sizes, {**common, "eyes": seeing})
        results[name] = {**wanted, "split": split, "steps": len(training), **figures}
        save_head(model, name, head, results[name])
    return results


def _mixture(mix: Sequence[ShardReader], real_fraction: float | None) -> dict[str, Any] | None:
    """Provenance of what was mixed in; None if all is as one dataset has it."""
    if not mix and real_fraction is None:
        return None
    return {
        "manifests_sha256": [manifest_sha256(reader.root) for reader in mix],
        "real_fraction": real_fraction,
    }


def _common(
    model: TokenWorldModel,
    name: str,
    num_steps: int,
    seconds: float,
    seed: int,
    show: Show | None,
) -> dict[str, Any]:
    """Arguments that all trainings have."""
    began = time.monotonic()

    def progress(step: int, loss: float) -> None:
        if show is not None:
            show(name, min(int(time.monotonic() - began), int(seconds)), int(seconds))

    return {
        "num_steps": num_steps,
        "seconds": seconds,
        "seed": seed,
        "device": model.device,
        "progress": progress,
    }


def _train(
    model: TokenWorldModel,
    name: str,
    training: Recorded,
    held_out: Recorded | None,
    sizes: Sizes,
    common: dict[str, Any],
) -> tuple[Head, dict[str, Any]]:
    """Train one head; its figures beside it."""
    done, progress = [0, 0.0], common["progress"]

    def count(step: int, loss: float) -> None:
        done[:] = step, loss
        progress(step, loss)

    common = {**common, "progress": count}
    grid, seed, figures = model.code_grid, common["seed"], {}
    made: Any
    if name == cloning.NAME:
        action = model.vocabulary.action
        made = cloning.fit_prior(training, grid, action, **sizes._asdict(), **common)
        figures = {} if held_out is None else cloning.measure_prior(made, held_out, training, seed)
    elif name == distance.NAME:
        made = distance.fit_distance(training, grid, reach=sizes.reach, **common)
        figures = {} if held_out is None else distance.measure_distance(made, held_out, seed)
    else:
        made = doubt.fit_doubt(training, model.vocabulary, grid, **common)
        figures = {} if held_out is None else doubt.measure_doubt(made, held_out, seed)
    about = {"optimizer_steps": done[0], "training_loss": done[1], "held_out": figures}
    return made.head, about


def _kept(model: TokenWorldModel, name: str, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """Provenance of a head that is there already, of the same data and options."""
    try:
        about: dict[str, Any] = read_head(model, name)["provenance"]
    except TokenwmError:
        return None
    return about if {key: about.get(key) for key in wanted} == wanted else None


def _held_out(
    model: TokenWorldModel, reader: ShardReader, show: Show | None
) -> tuple[Recorded | None, str | None]:
    """Held-out steps and their split, if there are any."""
    try:
        split = choose_split(reader.manifest, "test")
        return _read(model, reader, split, show), split
    except TokenwmError as error:
        logger.warning("no figures of held-out episodes: %s", error)
        return None, None


def _read(model: TokenWorldModel, reader: ShardReader, split: str, show: Show | None) -> Recorded:
    def progress(done: int, total: int) -> None:
        if show is not None:
            show(f"encode {split}", done, total)

    return read_recorded(model, reader, split, progress)
