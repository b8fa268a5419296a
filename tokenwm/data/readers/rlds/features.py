"""``features.json`` and ``dataset_info.json`` of TFDS: what the steps of an RLDS dataset hold."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tokenwm.data.readers.columns.arrays import column_of
from tokenwm.data.readers.columns.columns import Column
from tokenwm.data.readers.paths import read_object
from tokenwm.data.readers.pictures.pixels import is_called_depth
from tokenwm.errors import SourceError

LAYOUT = (
    "expected (TFDS): NAME/VERSION/features.json, dataset_info.json, "
    "NAME-train.tfrecord-00000-of-00001, …"
)
INSTRUCTION = "instruction"
"""Texts with this in their names say what is to be done."""
MAX_DEPTH = 20


def read_info(folder: Path) -> Mapping[str, Any]:
    """Keys of ``dataset_info.json``; none if there is no such file.

    Raises:
        SourceError: It is damaged.
    """
    if not (folder / "dataset_info.json").is_file():
        return {}
    return read_object(folder, folder / "dataset_info.json", LAYOUT)


def read_step_features(folder: Path) -> tuple[dict[str, Column], tuple[str, ...]]:
    """Read the features of a step.

    Returns:
        Name → column, the parts of a name divided by ``/``; and the names of texts that say what
        is to be done.

    Raises:
        SourceError: ``features.json`` is damaged, or has no steps.
    """
    path = folder / "features.json"
    features = read_object(folder, path, LAYOUT)
    try:
        steps = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]
        columns: dict[str, Column] = {}
        _collect(steps, "", columns, 0)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(
            f"{path} does not describe an RLDS dataset (steps as a sequence): {error!r}; {LAYOUT}"
        ) from error
    texts = [name for name, column in columns.items() if column.dtype == "text"]
    return columns, tuple(name for name in texts if INSTRUCTION in name.rpartition("/")[2])


def _collect(feature: Mapping[str, Any], name: str, columns: dict[str, Column], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError("features are nested too deeply")
    if "featuresDict" in feature:
        for part, inner in feature["featuresDict"]["features"].items():
            _collect(inner, f"{name}/{part}" if name else part, columns, depth + 1)
    else:
        columns[name] = _column(feature, name)


def _column(feature: Mapping[str, Any], name: str) -> Column:
    if "image" in feature:
        about = feature["image"]
        shape, dtype = _shape(about), str(about.get("dtype") or "uint8")
        coding = about.get("encodingFormat") or "png"
        note = "depth, by its name" if is_called_depth(name) else ""
        if dtype != "uint8":
            note = note or f"encoded as {dtype}, as depth is"
        elif shape[2:] not in ((1,), (3,), (4,)) or coding not in ("png", "jpeg"):
            note = note or f"pictures of shape {shape}, encoded as {coding}"
        return Column(kind="other" if note else "pictures", dtype=dtype, shape=shape, note=note)
    if "text" in feature:
        return Column(kind="other", dtype="text")
    if "classLabel" in feature:
        return Column(kind="numbers", dtype="int64", shape=(1,))
    if "tensor" in feature:
        about = feature["tensor"]
        shape, dtype = _shape(about), str(about.get("dtype") or "")
        if dtype == "string":
            return Column(kind="other", dtype="text")
        if about.get("encoding") not in (None, "none"):
            note = f"a tensor encoded as {about['encoding']}"
            return Column(kind="other", dtype=dtype, shape=shape or (1,), note=note)
        if min(shape, default=1) < 0:
            note = f"a tensor of any size, {shape}"
            return Column(kind="other", dtype=dtype, shape=shape, note=note)
        return column_of(np.dtype(dtype), shape, name)
    return Column(kind="other", dtype=str(feature.get("pythonClassName", "")).rpartition(".")[2])


def _shape(about: Mapping[str, Any]) -> tuple[int, ...]:
    """Sizes, written as text; ``-1`` is any."""
    return tuple(int(size) for size in (about.get("shape") or {}).get("dimensions", ()))
