"""Frame shards → a robomimic HDF5 file, or NPZ files, one per episode.

Both keep the time alignment: row ``t`` holds ``o_t`` and the action chosen after it. robomimic has
a row for each action, and the last observation is that of ``next_obs``; an NPZ file has a row for
each observation, and its last action is zero. An imagined episode is marked in both.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import tokenwm
from tokenwm.data.quality.checks import AS_IMAGINED
from tokenwm.data.shards.manifest import SPLITS
from tokenwm.data.shards.reader import ShardReader
from tokenwm.data.storage.atomic import make_folder_atomically
from tokenwm.errors import ShardError, TokenwmError
from tokenwm.strict import dump_yaml
from tokenwm.synthesis.lerobot.description import sidecar

Layout = Literal["robomimic", "npz"]
LAYOUTS: tuple[Layout, ...] = ("robomimic", "npz")
HDF5_NAME, EPISODES, RECIPE, SIDECAR = "data.hdf5", "episodes", "recipe.yaml", "tokenwm.json"

Arrays = dict[str, NDArray[Any]]


def export_arrays(
    dataset: Path | str,
    out_dir: Path | str,
    layout: Layout,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write all episodes of a dataset into a folder, with a recipe that reads them again.

    Args:
        dataset: Folder of frame shards.
        out_dir: Folder to make; written whole or not at all. It gets ``recipe.yaml``, for imagined
            episodes ``tokenwm.json`` (where each came from), and ``data.hdf5`` or ``episodes/``.
        layout: ``robomimic`` or ``npz``.
        overwrite: Replace such a folder.
        progress: Called with (episodes done, episodes in all).

    Returns:
        How many episodes were written.

    Raises:
        ShardError: The dataset is damaged or holds no frame shards, or the folder is not empty.
        TokenwmError: h5py is missing.
    """
    out_dir, reader = Path(out_dir), ShardReader(dataset)
    if reader.manifest.kind != "frames":
        raise ShardError(f"{dataset} holds {reader.manifest.kind}; only frame shards are exported")
    if layout not in LAYOUTS:
        raise ShardError(f"layout {layout!r}; use one of {', '.join(LAYOUTS)}")
    written = [out_dir / HDF5_NAME, out_dir / EPISODES]  # others write recipes, too
    is_replaced = (
        overwrite and (out_dir / RECIPE).is_file() and any(path.exists() for path in written)
    )
    if out_dir.exists() and any(out_dir.iterdir()) and not is_replaced:
        raise ShardError(
            f"{out_dir} is not empty; choose another folder, or replace an exported one with "
            "--overwrite"
        )
    write = _write_robomimic if layout == "robomimic" else _write_npz
    keys = [key for split in SPLITS for key in reader.keys(split)]
    try:
        with make_folder_atomically(out_dir) as folder:
            write(folder, reader, keys, progress or (lambda done, total: None))
            (folder / RECIPE).write_text(dump_yaml(_recipe(reader, layout)), encoding="utf-8")
            if any(reader.is_synthetic(key) for key in keys):
                about = sidecar(reader.manifest, {key: reader.metadata(key) for key in keys})
                (folder / SIDECAR).write_text(json.dumps(about, indent=1))
    except OSError as error:
        raise ShardError(f"{out_dir} could not be written: {error}; nothing was kept") from error
    return len(keys)


def _write_robomimic(
    folder: Path, reader: ShardReader, keys: list[str], progress: Callable[[int, int], None]
) -> None:
    try:
        import h5py
    except ImportError as missing:
        raise TokenwmError(
            f"robomimic files need h5py, which cannot be imported ({missing}); pip install "
            "'tokenwm[hdf5]'"
        ) from missing
    manifest, samples = reader.manifest, 0
    with h5py.File(folder / HDF5_NAME, "w") as file:
        data = file.create_group("data")
        for index, key in enumerate(keys):
            arrays, about = reader.arrays(key), reader.metadata(key)
            group = data.create_group(f"demo_{index}")
            group["actions"] = arrays["action"][:-1]
            group["dones"] = arrays["terminated"][:-1].astype(np.int64)
            if "reward" in arrays:
                group["rewards"] = arrays["reward"][:-1]
            observed = {f"{name}_image": f"frames.{name}" for name in manifest.cameras}
            observed |= {"state": "state"} if "state" in arrays else {}
            for name, field in observed.items():
                group[f"obs/{name}"] = arrays[field][:-1]
                group[f"next_obs/{name}"] = arrays[field][1:]
            group.attrs["num_samples"] = len(arrays["action"]) - 1
            group.attrs["ep_meta"] = json.dumps({"lang": about.get("task") or ""})
            group.attrs["tokenwm"] = json.dumps({"key": key, **about})
            samples += len(arrays["action"]) - 1
            progress(index + 1, len(keys))
        data.attrs["total"] = samples
        data.attrs["env_args"] = json.dumps(
            {
                "env_name": manifest.name,
                "type": None,
                "env_kwargs": {"control_freq": manifest.control_rate},
                "tool": f"tokenwm {tokenwm.__version__}",
            }
        )
        numbers = {key: index for index, key in enumerate(keys)}
        for split in SPLITS:
            names = [f"demo_{numbers[key]}" for key in reader.keys(split)]
            if names:
                file[f"mask/{split}"] = np.array(names, dtype="S")


def _write_npz(
    folder: Path, reader: ShardReader, keys: list[str], progress: Callable[[int, int], None]
) -> None:
    (folder / EPISODES).mkdir()
    for index, key in enumerate(keys):
        stored = reader.arrays(key)
        ends = np.roll(stored["terminated"], 1)  # of row t + 1, what action t caused
        arrays: Arrays = {"action": stored["action"], "is_terminal": ends}
        arrays["is_first"] = np.arange(len(ends)) == 0
        arrays["synthetic"] = np.full(len(ends), reader.is_synthetic(key))
        if "reward" in stored:
            arrays["reward"] = np.roll(stored["reward"], 1)
        if "state" in stored:
            arrays["state"] = stored["state"]
        arrays |= {f"image_{name}": stored[f"frames.{name}"] for name in reader.manifest.cameras}
        np.savez_compressed(folder / EPISODES / f"{key}.npz", allow_pickle=False, **arrays)
        progress(index + 1, len(keys))


def _recipe(reader: ShardReader, layout: Layout) -> dict[str, Any]:
    """The recipe that makes the same dataset of the files again, all of it for training."""
    manifest = reader.manifest
    action, state = manifest.features["action"], manifest.features.get("state")
    is_npz = layout == "npz"
    prefix = "" if is_npz else "obs/"
    cameras = {
        name: f"image_{name}" if is_npz else f"obs/{name}_image" for name in manifest.cameras
    }
    source: dict[str, Any] = {
        "type": "dreamer" if is_npz else "robomimic",
        "path": EPISODES if is_npz else HDF5_NAME,
        "rate": manifest.control_rate,
        "cameras": cameras,
        "state": None if state is None else f"{prefix}state",
        "action": "action" if is_npz else "actions",
        "action_kind": "discrete" if action.kind == "discrete" else "continuous",
        "num_actions": action.num_values,
        "action_units": action.units,
        "state_units": "" if state is None else state.units,
    }
    if "reward" in manifest.features:
        source["reward"] = "reward" if is_npz else "rewards"
    source |= {"action_convention": "after"} if is_npz else {}
    height, width = manifest.features[f"frames.{manifest.cameras[0]}"].shape[:2]
    return {
        "name": manifest.name,
        "source": source,
        "control_rate": manifest.control_rate,
        "image_size": [height, width],
        "splits": {"val": 0.0, "test": 0.0},
        "licence": str(manifest.provenance.get("licence", "unknown")),
        "quality": dict(AS_IMAGINED),
    }
