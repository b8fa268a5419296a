"""The readout: where the task stands, as pixels show it; a measure, not a part of the model.

It is trained on true frames of a dataset that holds the task state. On imagined frames it says
where an object was imagined to be, in the task state's own units. Another readout, of the robot's
state, says where the robot is in the picture of a goal.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d, huber_loss

from tokenwm.data.shards.manifest import Feature, manifest_sha256
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import CheckpointError, TokenwmError
from tokenwm.heads.folder import load_head, read_head, save_head
from tokenwm.heads.head import Head, HeadConfig, Meaning
from tokenwm.heads.training import fit_head
from tokenwm.imagination.token_world_model import TokenWorldModel

logger = logging.getLogger(__name__)

NAME, FIELD = "readout", "task_state"
FULL_TURN = {"rad": 2.0 * math.pi, "deg": 360.0}
"""Units of angles, and what a full turn is in them."""
BATCH = 64
MOST_STEPS, LEAST_STEPS, EPOCHS = 1000, 40, 8
"""The steps are so many epochs, within these ends."""
MOST_BYTES = 256 * 2**20
"""Training frames that are held in memory; of more, every second, third, … step is taken."""
LEARNING_RATE, HUBER_DELTA = 3e-3, 0.3
BLUR, NOISE = 1.0, 0.04
"""Changes to training frames, so that decoded ones are no stranger: half of them are blurred, by up
to this share of a 3 × 3 mean, and all get noise, up to this deviation of pixels in [-1, 1]."""
PATCH, MOST_PATCHES = 8, 0.1
"""Side of squares, px, that half of the training frames take from another frame, and the most that
they take of all: imagined frames hold wrong codes, such as pieces of an object where none is."""


@dataclass(frozen=True, kw_only=True)
class TaskStateCode:
    """Numbers of a task state ↔ outputs of a head: standardised, angles as sine and cosine.

    Attributes:
        names: One per dimension.
        units: One per dimension; those in ``FULL_TURN`` are angles.
        mean: Mean of each dimension over the training data.
        std: Standard deviation of each.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, feature: Feature, statistics: dict[str, Any]) -> "TaskStateCode":
        """The code of a dataset's task state."""
        size = feature.shape[0]
        spread = (float(value) for value in statistics["std"])
        return cls(
            names=feature.names or tuple(f"{FIELD}_{index}" for index in range(size)),
            units=feature.unit_of_each,
            mean=tuple(float(value) for value in statistics["mean"]),
            std=tuple(value if value > 1e-6 else 1.0 for value in spread),
        )

    @property
    def turns(self) -> tuple[float, ...]:
        """A full turn in the units of each dimension; 0 where it is no angle."""
        return tuple(FULL_TURN.get(unit, 0.0) for unit in self.units)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return tuple(
            name + part
            for name, turn in zip(self.names, self.turns, strict=True)
            for part in ((".sin", ".cos") if turn else ("",))
        )

    def encode(self, values: Tensor) -> Tensor:
        """``(B, dimensions)`` → ``(B, outputs)``, both float32."""
        columns = []
        for index, turn in enumerate(self.turns):
            column = values[:, index]
            if turn:
                angle = column * (2.0 * math.pi / turn)
                columns += [angle.sin(), angle.cos()]
            else:
                columns.append((column - self.mean[index]) / self.std[index])
        return torch.stack(columns, dim=1)

    def decode(self, outputs: Tensor) -> Tensor:
        """``(B, outputs)`` → ``(B, dimensions)``, both float32; angles in [0, a full turn)."""
        columns, place = [], 0
        for index, turn in enumerate(self.turns):
            if turn:
                angle = torch.atan2(outputs[:, place], outputs[:, place + 1])
                columns.append((angle * (turn / (2.0 * math.pi))).remainder(turn))
            else:
                columns.append(outputs[:, place] * self.std[index] + self.mean[index])
            place += 2 if turn else 1
        return torch.stack(columns, dim=1)


class Readout:
    """A head that reads the task state off frames.

    Args:
        head: As :func:`fit_readout` or :func:`~tokenwm.heads.folder.load_head` gives it.

    Raises:
        TokenwmError: The head is no readout.
    """

    def __init__(self, head: Head) -> None:
        self.head = head
        try:
            self.code = TaskStateCode(**{k: tuple(v) for k, v in head.meaning.values.items()})
            fits = self.code.outputs == head.meaning.names and head.config.inputs == "frames"
        except (AttributeError, TypeError, ValueError) as error:
            raise TokenwmError(f"this head is no readout: {error}") from error
        if not fits:
            raise TokenwmError("this head is no readout: its outputs are not those of its meaning")

    @torch.inference_mode()
    def read(self, frames: Tensor) -> NDArray[np.float64]:
        """``(B, cameras, H, W, 3)`` uint8 → ``(B, dimensions)`` in the task state's units."""
        device = next(self.head.parameters()).device
        parts = [self.head(part.to(device)) for part in torch.split(frames, 256)]
        read: NDArray[np.float64] = self.code.decode(torch.cat(parts)).double().cpu().numpy()
        return read


def readout_for(model: TokenWorldModel, reader: ShardReader, field: str = FIELD) -> Readout | None:
    """The readout of a model for a dataset: the one beside the model, else trained now and kept.

    One that was trained on other data serves where the dataset has no training episodes.

    Args:
        model: The model; the readout is kept in its folder.
        reader: The dataset.
        field: ``task_state``, or ``state``, the robot's own.

    Returns:
        None where the dataset holds no such field, or nothing to train on.
    """
    if field not in reader.manifest.features:
        return None
    name, words = (NAME if field == FIELD else f"{NAME}_{field}"), field.replace("_", " ")
    if "std" not in reader.manifest.statistics.get(field, {}):
        logger.warning(
            "%s has no statistics of its %s, so no readout is trained", reader.root, words
        )
        return None
    feature = reader.manifest.features[field]
    data = manifest_sha256(reader.root)
    trains = bool(reader.keys("train"))
    try:
        kept = read_head(model, name)
        if not trains or kept["provenance"].get("data_manifest_sha256") == data:
            readout = Readout(load_head(model, name))
            wanted = TaskStateCode.of(feature, reader.manifest.statistics[field])
            if (readout.code.names, readout.code.units) == (wanted.names, wanted.units):
                return readout
    except TokenwmError as error:
        logger.debug("no readout to take: %s", error)
    if not trains:
        logger.warning(
            "%s has no training episodes, so no readout can be trained; no figures of the %s",
            reader.root,
            words,
        )
        return None
    try:
        readout, provenance = fit_readout(reader, field=field, device=model.device)
    except TokenwmError as error:
        logger.warning("no figures of the %s, for want of a readout: %s", words, error)
        return None
    if model.folder is not None:
        try:
            save_head(model, name, readout.head, {**provenance, "data_manifest_sha256": data})
        except CheckpointError as error:
            logger.warning("the readout was trained and is not kept: %s", error)
    return readout


def fit_readout(
    reader: ShardReader,
    *,
    field: str = FIELD,
    device: torch.device | str = "cpu",
    num_steps: int | None = None,
    seed: int = 0,
) -> tuple[Readout, dict[str, Any]]:
    """Train a readout on true frames of the train split; the same data and seed give the same.

    Args:
        reader: Frames with such a field.
        field: What is read off them.
        device: Where.
        num_steps: Optimizer steps; None: so many epochs, see ``EPOCHS``.
        seed: Of weights, order and noise.

    Returns:
        The readout, and what it was trained on.
    """
    manifest = reader.manifest
    code = TaskStateCode.of(manifest.features[field], manifest.statistics[field])
    frames, truth = _training_frames(reader, field)
    num_steps = steps_for(len(frames)) if num_steps is None else num_steps
    logger.info("training the readout: %d steps on %d frames", num_steps, len(frames))
    meaning = Meaning(
        names=code.outputs,
        values={
            "names": list(code.names),
            "units": list(code.units),
            "mean": list(code.mean),
            "std": list(code.std),
        },
    )
    config = HeadConfig(
        inputs="frames", input_shape=tuple(frames.shape[1:]), num_outputs=len(code.outputs)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head(config, meaning).to(device)
    generator = torch.Generator().manual_seed(seed)
    batches = _batches(frames, code.encode(truth), generator)
    loss = fit_head(head, batches, _loss, num_steps=num_steps, learning_rate=LEARNING_RATE)
    return Readout(head), {"steps": num_steps, "frames": len(frames), "seed": seed, "loss": loss}


def _loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over outputs of the root of each one's Huber loss.

    So each counts by how well it can be told: what no picture shows, such as a speed, would
    otherwise drown the rest in its noise. By the logarithm, which does so even more, an output that
    is lost once (a block's x, in one run of many) has no weight to be found again.
    """
    errors = huber_loss(outputs, targets, delta=HUBER_DELTA, reduction="none")
    return (errors.mean(dim=0) + 1e-6).sqrt().mean()


def steps_for(num_frames: int) -> int:
    """Optimizer steps that a readout of so many training frames gets."""
    return min(MOST_STEPS, max(LEAST_STEPS, EPOCHS * num_frames // BATCH))


def _training_frames(reader: ShardReader, field: str) -> tuple[Tensor, Tensor]:
    """Frames ``(N, cameras, H, W, 3)`` uint8 and their field ``(N, D)``, of the train split."""
    keys, manifest = reader.keys("train"), reader.manifest
    shapes = [manifest.features[f"frames.{camera}"].shape for camera in manifest.cameras]
    of_step = sum(math.prod(shape) for shape in shapes)
    every = max(1, -(-manifest.num_steps("train") * of_step // MOST_BYTES))
    frames, truth = [], []
    for number, key in enumerate(keys):
        # From another step in each episode, so that all phases are seen.
        steps = np.arange(number % every, reader.episode(key).num_steps, every)
        if len(steps):
            frames.append(reader.frames(key)[steps])
            truth.append(reader.arrays(key, [field])[field][steps])
    return torch.from_numpy(np.concatenate(frames)), torch.from_numpy(np.concatenate(truth))


def _batches(
    frames: Tensor, targets: Tensor, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end, each epoch in a new order, with blur and noise in the frames."""
    while True:
        for rows in torch.split(torch.randperm(len(frames), generator=generator), BATCH):
            yield _augmented(frames[rows], generator), targets[rows]


def _augmented(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Frames with light blur and noise, real numbers about [0, 255]."""
    num_rows, num_cameras = frames.shape[:2]
    pictures = frames.flatten(0, 1).movedim(-1, 1).float()

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator).repeat_interleave(num_cameras, 0)

    share = BLUR * draw(num_rows, 1, 1, 1) * (draw(num_rows, 1, 1, 1) < 0.5)
    smooth = avg_pool2d(pictures, 3, 1, 1, count_include_pad=False)
    cells = [-(-side // PATCH) for side in pictures.shape[-2:]]
    wrong = torch.rand(len(pictures), 1, *cells, generator=generator) < MOST_PATCHES * (
        draw(num_rows, 1, 1, 1) * (draw(num_rows, 1, 1, 1) < 0.5)
    )
    wrong = wrong.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    wrong = wrong[..., : pictures.shape[-2], : pictures.shape[-1]]
    noise = torch.randn(pictures.shape, generator=generator) * (127.5 * NOISE)
    pictures = torch.where(wrong, pictures.roll(num_cameras, 0), pictures)
    pictures = pictures + share * (smooth - pictures) + draw(num_rows, 1, 1, 1) * noise
    return pictures.movedim(1, -1).reshape(frames.shape)
