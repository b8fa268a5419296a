"""Film, strip, arrays and numbers of what would have been, as files."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenwm.data.storage.atomic import make_folder, open_atomically
from tokenwm.evaluation.report.pictures import (
    Panel,
    Pictures,
    absolute_error,
    enlarge,
    film,
    film_strip,
    scale_for,
    side_by_side,
    write_gif,
    write_mp4,
    write_png,
)
from tokenwm.imagination.starts import spread
from tokenwm.strict import plain
from tokenwm.synthesis.counterfactual import Counterfactual
from tokenwm.synthesis.imagine import ROLLOUT_ARRAYS

COLUMNS, STRIP_HEIGHT, STRIP_WIDTH = 7, 128, 1600
"""Most imagined steps that a strip shows, about how high they are drawn, and most of its width."""
IN_WORDS = {"+=": "-plus-", "-=": "-minus-", "=": "-is-", "%": "-percent"}


@dataclass(frozen=True, kw_only=True)
class ComparisonFiles:
    """The files of what would have been."""

    gif: Path
    mp4: Path
    png: Path
    npz: Path
    json: Path

    @property
    def paths(self) -> list[Path]:
        """All of them."""
        return list(vars(self).values())


def write_comparison(out: Path, made: Counterfactual, control_rate: float) -> ComparisonFiles:
    """Write film (GIF and MP4), strip (PNG), arrays (NPZ) and numbers (JSON).

    Films and strip show the first pair of futures.

    Args:
        out: Folder; made if missing.
        made: What would have been.
        control_rate: Steps per second.

    Raises:
        TokenwmError: The folder cannot be made or a file cannot be written.
    """
    make_folder(out)
    stem = f"{made.key}_{made.first_step:04d}_instead_{label_of(made)}"
    files = ComparisonFiles(
        **{kind: out / f"{stem}.{kind}" for kind in ("gif", "mp4", "png", "npz", "json")}
    )
    context, rows = side_by_side(made.context_frames), pictures(made)
    panels = [
        Panel(
            title=title,
            frames=np.concatenate([np.zeros_like(context) if title == LAST else context, frames]),
        )
        for title, frames in rows.items()
    ]
    frames = film(panels, num_observed=len(context))
    write_gif(files.gif, frames, control_rate)
    write_mp4(files.mp4, frames, control_rate)
    columns = spread(len(made.truth_frames), COLUMNS)
    scale = scale_for(context, STRIP_HEIGHT, len(columns) + 1, STRIP_WIDTH)
    now = context[-1:]
    strip = film_strip(
        {
            title: enlarge(
                np.concatenate([np.zeros_like(now) if title == LAST else now, row[columns]]), scale
            )
            for title, row in rows.items()
        },
        ["observed", *(f"{(step + 1) / control_rate:.3g} s" for step in columns)],
        first_imagined=1,
    )
    write_png(files.png, strip)
    with open_atomically(files.npz) as file:
        np.savez_compressed(file, **arrays_of(made))
    with open_atomically(files.json) as file:
        file.write(json.dumps(numbers_of(made, control_rate), indent=1).encode() + b"\n")
    return files


LAST = "difference"


def pictures(made: Counterfactual) -> dict[str, Pictures]:
    """Title → ``(H, height, width, 3)``: truth, the first pair of futures, and their difference."""
    own, instead = (side_by_side(made.own_frames[0]), side_by_side(made.instead_frames[0]))
    return {
        "truth": side_by_side(made.truth_frames),
        "imagined": own,
        "instead": instead,
        LAST: absolute_error(instead, own),
    }


def label_of(made: Counterfactual) -> str:
    """The changes as part of a file name."""
    text = ",".join(Path(change).stem if "/" in change else change for change in made.changes)
    for sign, word in IN_WORDS.items():
        text = text.replace(sign, word)
    text += "" if made.num_changed == len(made.truth_frames) else f"-for-{made.num_changed}"
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.")[:80]


def arrays_of(made: Counterfactual) -> dict[str, Any]:
    """The arrays to write, by name; those that the model does not have are left out.

    ``own.NAME`` and ``instead.NAME`` are ``(N, H, …)``, ``own.action`` and ``instead.action``
    ``(H, A)``.
    """
    arrays: dict[str, Any] = {
        "context_frames": made.context_frames,
        "truth_frames": made.truth_frames,
    }
    whose = {
        "own": (made.own, made.own_frames),
        "instead": (made.instead, made.instead_frames),
    }
    for name, (rollout, frames) in whose.items():
        known = {field: getattr(rollout, field) for field in (*ROLLOUT_ARRAYS, "doubt")}
        arrays |= {f"{name}.{k}": v.numpy() for k, v in known.items() if v is not None}
        arrays |= {f"{name}.frames": frames, f"{name}.action": rollout.actions[0].numpy()}
        arrays |= {
            f"{name}.{quantity.name}": getattr(quantity, name)
            for quantity in made.quantities.values()
            if f"{name}.{quantity.name}" not in arrays
        }
    return arrays


def numbers_of(made: Counterfactual, control_rate: float) -> dict[str, Any]:
    """All numbers of a comparison, as JSON values; entry ``h - 1`` belongs to horizon ``h``."""
    horizon = len(made.truth_frames)
    quantities = {
        name: plain(quantity, without=("own", "instead", "name"))
        for name, quantity in made.quantities.items()
    }
    return {
        "episode": made.key,
        "step": made.step,
        "instead": list(made.changes),
        "num_changed": made.num_changed,
        "beyond_data": made.beyond_data,
        "num_futures": len(made.own_frames),
        "seconds": [(step + 1) / control_rate for step in range(horizon)],
        "quantities": quantities,
    }
