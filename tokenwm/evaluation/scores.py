"""Scores of every start at every horizon: a table per figure, and nothing of the pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.evaluation.metrics import FloatArray
from tokenwm.evaluation.planted import OUTCOMES

PICTURES = (
    "model",
    "model_plain",
    "persistence",
    "reconstruction",
    "reconstruction_anchored",
    "shuffled",
)
"""Pictures that are compared with the truth; see ``docs/evaluation.md``."""


@dataclass(kw_only=True)
class RowScores:
    """Scores of every row (start) at every horizon; all arrays ``(rows, H)`` unless said otherwise.

    Attributes:
        mse: Per entry of ``PICTURES``, mean squared error of pixels in [0, 1], over cameras and
            pixels.
        ssim: Structural similarity, per entry of ``PICTURES``.
        mse_changed: Like ``mse``, over the pixels that changed since the last observed frame
            (:data:`~tokenwm.evaluation.pixels.CHANGE_THRESHOLD`); NaN where none did.
        ssim_changed: Mean of the SSIM map over these pixels.
        share_changed: Share of pixels that changed, in [0, 1].
        lpips: LPIPS distance, per entry of ``PICTURES``. Empty unless asked for.
        token_accuracy: ``model``, ``persistence`` and ``shuffled``: share of frame tokens that are
            right.
        token_nll: Nats per token of the true frame, given the imagined past.
        state_error: ``model``, ``persistence`` and ``quantization`` (the true state through its
            bins): ``(rows, H, state_dim)`` absolute error in the units of the data. Empty without
            state.
        reward: ``model`` and ``truth``. Empty without reward.
        termination_probability: That the action before horizon ``h`` ended the task.
        terminated: Whether it did.
        planted: ``(rows, 4)`` counts of planted codes, see
            :data:`~tokenwm.evaluation.planted.OUTCOMES`.
        endings: The same two for starts that were added for endings only (see
            :func:`~tokenwm.evaluation.starts.ending_starts`), in parts of ``(rows, h)`` each.
        ending_keys: Episode of each of these starts.
        passes: Passes through the transformer that each step took.
        step_seconds: Time of each imagined step of a full batch, without scoring and pixels.
        task_state: See :class:`~tokenwm.evaluation.task_state.TaskStateReadings`; empty without.
    """

    mse: dict[str, FloatArray]
    ssim: dict[str, FloatArray]
    mse_changed: dict[str, FloatArray]
    ssim_changed: dict[str, FloatArray]
    share_changed: FloatArray
    lpips: dict[str, FloatArray]
    token_accuracy: dict[str, FloatArray]
    token_nll: FloatArray
    state_error: dict[str, FloatArray]
    reward: dict[str, FloatArray]
    termination_probability: FloatArray
    terminated: NDArray[np.bool_]
    planted: NDArray[np.int64]
    passes: FloatArray
    endings: list[tuple[FloatArray, NDArray[np.bool_]]] = field(default_factory=list)
    ending_keys: list[str] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    task_state: dict[str, FloatArray] = field(default_factory=dict)

    @classmethod
    def empty(
        cls, num_rows: int, horizon: int, *, state_dim: int, has_reward: bool, has_lpips: bool
    ) -> "RowScores":
        """Scores to be filled in; what stays empty is NaN."""

        def table(*extra: int) -> FloatArray:
            return np.full((num_rows, horizon, *extra), np.nan)

        def tables(names: Sequence[str], *extra: int) -> dict[str, FloatArray]:
            return {name: table(*extra) for name in names}

        return cls(
            mse=tables(PICTURES),
            ssim=tables(PICTURES),
            mse_changed=tables(PICTURES),
            ssim_changed=tables(PICTURES),
            share_changed=table(),
            lpips=tables(PICTURES if has_lpips else ()),
            token_accuracy=tables(("model", "persistence", "shuffled")),
            token_nll=table(),
            state_error=tables(
                ("model", "persistence", "quantization") if state_dim else (), state_dim
            ),
            reward=tables(("model", "truth") if has_reward else ()),
            termination_probability=table(),
            terminated=np.zeros((num_rows, horizon), dtype=np.bool_),
            planted=np.zeros((num_rows, len(OUTCOMES)), dtype=np.int64),
            passes=table(),
        )

    @classmethod
    def joined(cls, parts: Sequence["RowScores"]) -> "RowScores":
        """The rows of several measurements of one configuration, one after another."""

        def join(values: list[Any]) -> Any:
            if isinstance(values[0], dict):
                return {name: join([value[name] for value in values]) for name in values[0]}
            if isinstance(values[0], list):
                return [item for value in values for item in value]
            return np.concatenate(values)

        names = [item.name for item in fields(cls)]
        return cls(**{name: join([getattr(part, name) for part in parts]) for name in names})
