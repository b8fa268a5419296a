"""A recording for the Rerun viewer of what would have been; its package is an optional extra."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.storage.atomic import open_atomically
from tokenwm.errors import TokenwmError
from tokenwm.synthesis.counterfactual import Counterfactual

SECONDS, STEP = "seconds", "step"
"""Timelines: 0 is the last observed step, whose action is the first changed one."""


def check_rerun() -> None:
    """Check that the package is there, before anything is imagined.

    Raises:
        TokenwmError: It is not.
    """
    _rerun()


def write_rerun(
    path: Path, made: Counterfactual, control_rate: float, cameras: Sequence[str]
) -> None:
    """Write pictures and numbers on two timelines, seconds and steps.

    Pictures are those of the first pair of futures, ``truth/CAMERA``, ``imagined/CAMERA`` and
    ``instead/CAMERA``; before step 0 they are what was observed. Of each quantity ``NAME`` there
    are ``NAME/truth`` where it is known, ``NAME/imagined`` and ``NAME/instead`` (means over all
    futures), and ``NAME_difference/mean``, ``low`` and ``high`` (95 %); an angle's mean may jump by
    a full turn.

    Args:
        path: Of the recording, ``.rrd``.
        made: What would have been.
        control_rate: Steps per second.
        cameras: Their names.

    Raises:
        TokenwmError: The package ``rerun-sdk`` is not there, or the file cannot be written.
    """
    rerun = _rerun()
    recording = rerun.RecordingStream(f"tokenwm {', '.join(made.changes)}")
    stream = recording.binary_stream()

    def at(step: int) -> None:
        recording.set_time(SECONDS, duration=step / control_rate)
        recording.set_time(STEP, sequence=step)

    def draw(title: str, frames: NDArray[np.uint8], first: int) -> None:
        for step, pictures in enumerate(frames, start=first):
            at(step)
            for camera, picture in zip(cameras, pictures, strict=True):
                recording.log(f"{title}/{camera}", rerun.Image(picture))

    for title, frames in (
        ("truth", made.truth_frames),
        ("imagined", made.own_frames[0]),
        ("instead", made.instead_frames[0]),
    ):
        draw(title, made.context_frames, 1 - len(made.context_frames))
        draw(title, frames, 1)
    for name, quantity in made.quantities.items():
        curves = {
            f"{name}/truth": quantity.truth,
            f"{name}/imagined": quantity.mean_own,
            f"{name}/instead": quantity.mean_instead,
            f"{name}_difference/mean": quantity.mean,
        }
        if len(quantity.own) > 1:
            curves |= {
                f"{name}_difference/low": quantity.low,
                f"{name}_difference/high": quantity.high,
            }
        for entity, values in curves.items():
            for step, value in enumerate(() if values is None else values, start=1):
                at(step)
                recording.log(entity, rerun.Scalars(float(value)))
    with open_atomically(path) as file:
        file.write(stream.read() or b"")


def _rerun() -> Any:
    try:
        import rerun
    except ImportError as error:
        raise TokenwmError(
            "--rerun needs the package rerun-sdk, 0.24 or newer: pip install 'tokenwm[rerun]'; or "
            f"leave it out ({error})"
        ) from error
    return rerun
