"""Scores of pictures that several models imagined from the same starts, with paired differences.

Used by ``tools/compare_iris.py``, which says what the pictures are called.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from measure_block import MOVED_BELOW, centre, coverage, interval, overlap
from torch import Tensor

from tokenwm.data.shards.reader import ShardReader
from tokenwm.evaluation.metrics import (
    Curve,
    FloatArray,
    gain_curve,
    interval_curve,
    psnr_from_mse,
)
from tokenwm.evaluation.pixels import Comparison
from tokenwm.evaluation.summarize import over_episodes
from tokenwm.evaluation.task_state import TaskStateReadings, quantities_of, summarize_task_state
from tokenwm.heads.readout import FIELD, Readout
from tokenwm.imagination.starts import Start
from tokenwm.strict import plain

NO_CONTENDERS = ("iris_reconstruction", "persistence")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Starts of a dataset to measure from, and the head that reads the task state off pictures."""

    reader: ShardReader
    split: str
    rows: tuple[Start, ...]
    num_context: int
    horizon: int
    readout: Readout | None

    @property
    def keys(self) -> list[str]:
        """Episode of each row."""
        return [row.key for row in self.rows]

    @property
    def has_block(self) -> bool:
        """Whether the object is Push-T's block, which is known by its colour."""
        feature = self.reader.manifest.features.get(FIELD)
        return feature is not None and "block_angle" in feature.names


class Scores:
    """Scores of every start, by name of the picture.

    Attributes:
        mse_changed: ``(rows, H)`` over changed pixels.
        read: ``(rows, H, D)`` task states read off pictures, with ``truth`` and ``persistence``.
        overlap: ``(rows, H)`` of Push-T's block.
        off: ``(rows, H)`` distance of its centre, px of the table.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.mse_changed: dict[str, FloatArray] = {}
        self.read: dict[str, FloatArray] = {}
        self.overlap: dict[str, FloatArray] = {}
        self.off: dict[str, FloatArray] = {}
        if setting.readout is not None:
            true = TaskStateReadings(
                setting.readout,
                setting.reader,
                setting.rows,
                setting.num_context,
                setting.horizon,
            )
            self.read = {name: true.tables[name] for name in ("truth", "persistence")}

    def add(
        self, numbers: slice, pictures: Mapping[str, Tensor], truth: Tensor, observed: Tensor
    ) -> None:
        """Score pictures ``(B, H, 1, height, width, 3)`` uint8 of some rows, by name.

        Args:
            numbers: Which rows these are.
            pictures: What is scored.
            truth: The same shape.
            observed: ``(B, 1, height, width, 3)``, the last observed frames.
        """
        readout, has_block = self.setting.readout, self.setting.has_block
        compared = [Comparison(frames, observed) for frames in truth.unbind(1)]
        covered = coverage(truth[:, :, 0].numpy()) if has_block else None
        for name, frames in pictures.items():
            steps = zip(compared, frames.unbind(1), strict=True)
            errors = [one.scores(imagined).mse_changed for one, imagined in steps]
            self._put(self.mse_changed, name, numbers, torch.stack(errors, 1).double().numpy())
            if covered is not None:
                mine = coverage(frames[:, :, 0].numpy())
                off = np.linalg.norm(centre(mine) - centre(covered), axis=-1)
                self._put(self.overlap, name, numbers, overlap(mine, covered))
                self._put(self.off, name, numbers, off)
            if readout is not None:
                values = readout.read(frames.flatten(0, 1)).reshape(*frames.shape[:2], -1)
                name = "persistence_read" if name == "persistence" else name
                self._put(self.read, name, numbers, values)
        if readout is not None:
            values = readout.read(truth.flatten(0, 1)).reshape(*truth.shape[:2], -1)
            self._put(self.read, "floor", numbers, values)

    def _put(
        self, tables: dict[str, FloatArray], name: str, numbers: slice, values: FloatArray
    ) -> None:
        shape = (len(self.setting.rows), *values.shape[1:])
        tables.setdefault(name, np.full(shape, np.nan))[numbers] = values


def summarize(scores: Scores, horizons: Sequence[int]) -> dict[str, Any]:
    """Figures over episodes at some horizons; every list has one entry for each of them."""
    keys = scores.setting.keys

    def at(curve: Curve) -> dict[str, list[float | None]]:
        figures = plain(curve)
        figures = {"value": figures.pop("mean"), **figures}
        return {
            name: [None if values[h - 1] is None else round(values[h - 1], 4) for h in horizons]
            for name, values in figures.items()
        }

    psnr = {n: psnr_from_mse(over_episodes(t, keys)) for n, t in scores.mse_changed.items()}
    means = {n: np.nanmean(psnr[n][:, [h - 1 for h in horizons]]) for n in psnr}
    better = max(("iris_greedy", "iris_sampled"), key=lambda name: means[name])
    gains = {n: psnr[n] - psnr["persistence"] for n in psnr if n not in NO_CONTENDERS}
    found: dict[str, Any] = {
        "horizons": list(horizons),
        "better": better,
        "psnr_changed": {n: at(interval_curve(values)) for n, values in psnr.items()},
        "psnr_changed_gain": {n: at(gain_curve(values)) for n, values in gains.items()},
    }
    if "ours" in psnr:
        found["psnr_changed_ours_minus"] = {
            name: at(gain_curve(psnr["ours"] - psnr[name])) for name in psnr if name != "ours"
        }
    if scores.read:
        found["task_state"] = _task_state(scores, at)
    if scores.overlap:
        found["block"] = _block(scores, horizons)
    return found


def _task_state(scores: Scores, at: Callable[[Curve], Any]) -> dict[str, Any]:
    """Errors of what is read off pictures, and by how much ours are smaller."""
    setting, read = scores.setting, scores.read
    assert setting.readout is not None
    contenders = [name for name in scores.mse_changed if name not in NO_CONTENDERS]
    found: dict[str, Any] = {"median": {}, "mean": {}}
    for name in contenders:
        tables = {**read, "model": read[name], "reconstruction": read["iris_reconstruction"]}
        errors = summarize_task_state([setting.reader.manifest], tables, setting.keys)
        assert errors is not None
        found |= {
            "starts": len(setting.rows),
            "moved": errors.num_moved,
            "moved_episodes": errors.num_moved_episodes,
            "units": dict(errors.units),
        }
        for figure in ("median", "mean"):
            for quantity, kinds in getattr(errors, figure).items():
                of_all = found[figure].setdefault(quantity, {})
                of_all[name] = at(kinds["model"])
                for kind in ("persistence", "persistence_read", "floor"):
                    of_all[kind] = at(kinds[kind])
                of_all["iris_reconstruction"] = at(kinds["reconstruction"])
    if "ours" in read:
        code, others = setting.readout.code, [name for name in contenders if name != "ours"]
        for quantity in quantities_of(code.names, code.units):
            errors_of = {n: quantity.error(read[n], read["truth"]) for n in read if n != "truth"}
            found.setdefault("smaller_by_ours_than", {})[quantity.name] = {
                name: at(
                    gain_curve(over_episodes(errors_of[name] - errors_of["ours"], setting.keys))
                )
                for name in (*others, "persistence")
            }
    return found


def _block(scores: Scores, horizons: Sequence[int]) -> dict[str, Any]:
    """Overlap and centre of Push-T's block over starts in which it moves."""
    moved = scores.overlap["persistence"][:, -1] < MOVED_BELOW
    keys = [key for key, has in zip(scores.setting.keys, moved, strict=True) if has]
    found: dict[str, Any] = {"starts": len(moved), "moved": len(keys), "episodes": len(set(keys))}
    if not keys:
        return found

    def at(values: FloatArray, middle: Callable[..., FloatArray]) -> dict[str, list[float]]:
        picked = values[moved][:, [h - 1 for h in horizons]]
        return interval(picked, keys, middle)

    tables = scores.overlap
    found["overlap"] = {name: at(values, np.mean) for name, values in tables.items()}
    found["centre_px"] = {name: at(values, np.median) for name, values in scores.off.items()}
    if "ours" in tables:
        found["overlap_ours_minus"] = {
            name: at(tables["ours"] - values, np.mean)
            for name, values in tables.items()
            if name != "ours"
        }
    return found
