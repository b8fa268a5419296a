"""Overlap and centre of Push-T's block by horizon, as JSON: ``python -m tools.measure_block``.

::

    python -m tools.measure_block runs/quickstart/world_model runs/quickstart/frames --starts 4

The block is known by its colour, so this is about Push-T alone; ``tokenwm evaluate`` measures any
task state. *Coverage* of a pixel by the block: 0 where it is not grey (``|R-G| < 45``, ``|G-B| <
50``, ``R < 235``), else ``(255 - R) / 136``, at most 1.2. *Overlap* of two frames: sum of the
smaller over sum of the larger coverage. *Centre*: mean position weighted by coverage, px of the
512 × 512 table. Starts are those of ``evaluate``; only those count in which persistence's overlap
is below .6 at the last horizon. Intervals are of 1,000 draws of episodes, 95 %.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import tokenwm
from tokenwm.data.shards.reader import ShardReader
from tokenwm.imagination.pixels import anchored
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.starts import Start, choose_split, choose_starts, load_starts
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.tokenizer.frames import to_uint8

MOVED_BELOW = 0.6
TABLE = 512.0
DRAWS = 1000
ROWS_AT_ONCE = 20
Floats = NDArray[np.float64]


def coverage(frames: NDArray[np.uint8]) -> Floats:
    """``(..., H, W, 3)`` → ``(..., H, W)``, how much of each pixel is the block, in [0, 1.2]."""
    red, green, blue = (frames[..., channel].astype(np.float64) for channel in range(3))
    grey = (np.abs(red - green) < 45) & (np.abs(green - blue) < 50) & (red < 235)
    return np.where(grey, np.clip((255.0 - red) / 136.0, 0.0, 1.2), 0.0)


def overlap(one: Floats, other: Floats) -> Floats:
    """Soft intersection over union of two coverages, in [0, 1]."""
    larger = np.maximum(one, other).sum((-1, -2))
    return np.asarray(np.minimum(one, other).sum((-1, -2)) / np.maximum(larger, 1.0))


def centre(covered: Floats) -> Floats:
    """``(..., H, W)`` → ``(..., 2)``, x and y in px of the table."""
    height, width = covered.shape[-2:]
    rows, columns = np.mgrid[0:height, 0:width]
    total = covered.sum((-1, -2)) + 1e-6
    x = (covered * columns).sum((-1, -2)) / total * (TABLE / width)
    y = (covered * rows).sum((-1, -2)) / total * (TABLE / height)
    return np.stack([x, y], axis=-1)


def coverages(
    model: TokenWorldModel,
    reader: ShardReader,
    rows: Sequence[Start],
    num_context: int,
    horizon: int,
) -> dict[str, Floats]:
    """Coverage ``(rows, H, H, W)`` of true, imagined, last observed and reconstructed frames."""
    found: dict[str, list[Floats]] = {}
    for first in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[first : first + ROWS_AT_ONCE]
        starts = load_starts(reader, part, num_context, horizon, with_future_frames=True)
        rollout = model.imagine(
            starts.context(model),
            starts.future_actions,
            sampling=SamplingConfig(temperature=0.0),
            noise_streams=torch.arange(first, first + len(part)),
        )
        truth, observed = starts.future_frames, starts.frames[:, num_context - 1]
        with torch.inference_mode():
            tokens = model.tokenizer.encode_frames(truth.flatten(0, 1))
            decoded = model.tokenizer.decode_to_unit(tokens)
            before = model.tokenizer.decode_to_unit(model.tokenizer.encode_frames(observed))
            kept = anchored(
                decoded,
                before.repeat_interleave(horizon, 0),
                observed.repeat_interleave(horizon, 0).float() / 255.0,
            )
        frames = {
            "truth": truth,
            "model": model.decode_frames(rollout),
            "persistence": observed[:, None].expand_as(truth),
            "reconstruction": to_uint8(decoded).reshape(truth.shape),
            "reconstruction_anchored": to_uint8(kept).reshape(truth.shape),
        }
        for name, pictures in frames.items():
            found.setdefault(name, []).append(coverage(pictures[:, :, 0].cpu().numpy()))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def interval(
    values: Floats, keys: Sequence[str], middle: Callable[..., Floats]
) -> dict[str, list[float]]:
    """A figure over rows at every horizon, with an interval from draws of whole episodes."""
    groups = [np.flatnonzero([k == key for k in keys]) for key in dict.fromkeys(keys)]
    generator = np.random.default_rng(0)
    drawn = [
        middle(values[np.concatenate([groups[i] for i in choice])], axis=0)
        for choice in generator.integers(len(groups), size=(DRAWS, len(groups)))
    ]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    curves = {"value": middle(values, axis=0), "low": low, "high": high}
    return {name: [round(float(value), 4) for value in curve] for name, curve in curves.items()}


def measure(
    model_folder: Path, data: Path, *, num_starts: int, split: str, num_context: int, horizon: int
) -> dict[str, object]:
    """All figures; every list is over horizons 1 to ``horizon``."""
    model, reader = tokenwm.load(model_folder, dtype=torch.bfloat16), ShardReader(data)
    starts = choose_starts(
        reader,
        choose_split(reader.manifest, split),
        num_steps=num_context + horizon,
        num_starts=num_starts,
    )
    covered = coverages(model, reader, starts.rows, num_context, horizon)
    truth = covered.pop("truth")
    moved = overlap(covered["persistence"], truth)[:, -1] < MOVED_BELOW
    keys = [row.key for row, has in zip(starts.rows, moved, strict=True) if has]
    if not keys:
        return {"starts": len(moved), "moved": 0}
    overlaps = {name: overlap(table, truth)[moved] for name, table in covered.items()}
    places = centre(truth)
    off = {
        name: np.linalg.norm(centre(table) - places, axis=-1)[moved]
        for name, table in covered.items()
    }
    gain = overlaps["model"] - overlaps["persistence"]
    return {
        "starts": len(moved),
        "moved": int(moved.sum()),
        "episodes": len(set(keys)),
        "control_rate": model.control_rate,
        "overlap": {name: interval(table, keys, np.mean) for name, table in overlaps.items()},
        "overlap_gain_over_persistence": interval(gain, keys, np.mean),
        "centre_px": {name: interval(table, keys, np.median) for name, table in off.items()},
    }


def main() -> None:
    """Read the command line and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path, help="frames that tokenwm prepare wrote")
    parser.add_argument("--starts", type=int, default=4, help="per episode")
    parser.add_argument("--split", default="test")
    parser.add_argument("--context", type=int, default=4)
    parser.add_argument("--horizon", type=int, default=20)
    given = parser.parse_args()
    found = measure(
        given.model,
        given.data,
        num_starts=given.starts,
        split=given.split,
        num_context=given.context,
        horizon=given.horizon,
    )
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
