"""An exported LeRobot folder, read by LeRobot's own library beside its frames, as JSON.

::

    pip install lerobot                      # 0.4 or newer reads v3.0
    python tools/read_by_lerobot.py EXPORT FRAMES

Every row of every episode is read as ``LeRobotDataset`` gives it, pictures included, and compared
with the frame shards: largest difference of actions (the last row of an episode repeats the action
before it) and states, and the largest mean difference of a picture, of 255 levels. LeRobot reads a
folder of v2.1 after its own ``convert_dataset_v21_to_v30``.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokenwm.data.shards.manifest import SPLITS
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import TokenwmError


def compare(export: Path, frames: Path) -> dict[str, Any]:
    """Read both side by side."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("local/export", root=export, video_backend="pyav")
    reader = ShardReader(str(frames))
    worst = {"action": 0.0, "state": 0.0, "picture": 0.0}
    row = 0
    for number, key in enumerate(key for split in SPLITS for key in reader.keys(split)):
        arrays, pictures = reader.arrays(key, ["action", "state"]), reader.frames(key)
        actions = np.concatenate([arrays["action"][:-1], arrays["action"][-2:-1]])
        for step in range(len(pictures)):
            item = dataset[row]
            row += 1
            if (int(item["episode_index"]), int(item["frame_index"])) != (number, step):
                raise TokenwmError(f"row {row - 1} of {export} is not step {step} of {key}")
            seen = np.stack(
                [
                    item[f"observation.images.{camera}"].permute(1, 2, 0).numpy()
                    for camera in reader.manifest.cameras
                ]
            )
            for name, off in (
                ("action", np.abs(item["action"].numpy() - actions[step]).max()),
                ("state", np.abs(item["observation.state"].numpy() - arrays["state"][step]).max()),
                ("picture", np.abs(255.0 * seen - pictures[step]).mean((1, 2, 3)).max()),
            ):
                worst[name] = max(worst[name], float(off))
    if row != len(dataset):
        raise TokenwmError(f"{export} has {len(dataset)} rows, {frames} {row}")
    return {"rows": row, "episodes": dataset.num_episodes, "largest_difference": worst}


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("export", type=Path, help="folder that `tokenwm export-lerobot` wrote")
    parser.add_argument("frames", type=Path, help="frame shards that it was made of")
    args = parser.parse_args(argv)
    print(json.dumps(compare(args.export, args.frames), indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
