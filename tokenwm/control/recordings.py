"""Episodes that were acted, as recordings that ``tokenwm prepare`` reads: they can be trained on.

::

    <out>/recipe.yaml                      tokenwm prepare <out>/recipe.yaml --out DIR
          control_recordings/*.npz         one per episode, a row per step of the simulator
"""

from pathlib import Path
from typing import Any

import numpy as np

from tokenwm.control.simulator import Simulator
from tokenwm.data.readers.pictures.frames import ArrayFrames
from tokenwm.data.readers.simulator.recorder import EpisodeRecorder
from tokenwm.data.readers.simulator.task_states import get_task_state
from tokenwm.data.storage.atomic import open_atomically
from tokenwm.strict import dump_yaml

FOLDER, RECIPE = "control_recordings", "recipe.yaml"


def clear_recordings(out: Path) -> None:
    """Take away what an earlier run left in a folder: the recipe takes all that are there."""
    for earlier in (out / FOLDER).glob("episode_*.npz"):
        earlier.unlink()
    (out / RECIPE).unlink(missing_ok=True)


def write_recording(out: Path, index: int, recorder: EpisodeRecorder, simulator: Simulator) -> Path:
    """Write one episode; rows as the ``dreamer`` reader has them, actions ``after``.

    Args:
        out: Folder; :data:`FOLDER` in it must be there.
        index: Number of the episode.
        recorder: What was recorded.
        simulator: What it was recorded from.
    """
    rows = recorder.recording(0, simulator.factor, {})
    assert rows.reward is not None
    is_first, is_terminal = np.zeros((2, rows.num_rows), dtype=np.bool_)
    is_first[0] = True
    if rows.terminated is not None:
        is_terminal[1:] = rows.terminated
    arrays: dict[str, Any] = {
        "action": np.concatenate([rows.action, np.zeros_like(rows.action[:1])]),
        "reward": np.concatenate([np.zeros(1, np.float32), rows.reward]),
        "is_first": is_first,
        "is_terminal": is_terminal,
        "state": rows.state,
        "task_state": rows.task_state,
    }
    for camera, frames in rows.frames.items():
        assert isinstance(frames, ArrayFrames)
        arrays[f"image_{camera}"] = frames.images
    arrays = {name: array for name, array in arrays.items() if array is not None}
    path = out / FOLDER / f"episode_{index:06d}.npz"
    with open_atomically(path) as file:
        np.savez_compressed(file, **arrays)
    return path


def write_recipe(out: Path, simulator: Simulator, num_actions: int | None) -> Path:
    """Write the recipe that makes a dataset of the recordings.

    Args:
        out: Folder.
        simulator: What they were recorded from.
        num_actions: Number of discrete actions; None where they are quantities.
    """
    options, wanted = simulator.options, simulator.format
    source: dict[str, Any] = {
        "type": "dreamer",
        "path": FOLDER,
        "rate": simulator.rate,
        "action_convention": "after",
        "cameras": {camera: f"image_{camera}" for camera in options.cameras},
        "state": "state" if options.state else None,
        "action": "action",
        "action_kind": "continuous" if num_actions is None else "discrete",
        "num_actions": num_actions,
        "reward": "reward",
        "state_units": options.state_units,
        "action_units": options.action_units,
    }
    if options.task_state is not None:
        truth = get_task_state(options.task_state, options.env_id)
        source |= {"task_state": "task_state", "task_state_units": ", ".join(truth.units)}
    values = {
        "name": "acted",
        "source": source,
        "control_rate": wanted.control_rate,
        "action_aggregation": wanted.action_aggregation,
        "image_size": list(wanted.image_size),
        "resize": wanted.resize,
        "splits": {"val": 0.0, "test": 0.0},
        # A simulator drops no frames: stillness and jumps are real.
        "quality": {"max_frozen_seconds": None, "max_spike": None},
    }
    path = out / RECIPE
    with open_atomically(path) as file:
        file.write(dump_yaml(values).encode())
    return path
