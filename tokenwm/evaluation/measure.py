"""Imagine from every start and score each step against what really happened.

Memory is bounded by the batch size; only figures are kept.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tokenwm.data.shards.reader import ShardReader
from tokenwm.evaluation.batch import BatchMeasurement
from tokenwm.evaluation.config import EvaluationConfig as EvaluationConfig
from tokenwm.evaluation.config import ProgressCallback
from tokenwm.evaluation.endings import measure_endings
from tokenwm.evaluation.rows import load_future_actions
from tokenwm.evaluation.scores import RowScores
from tokenwm.evaluation.task_state import TaskStateReadings
from tokenwm.heads.readout import Readout
from tokenwm.imagination.starts import Start, load_starts
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.tokenizer.actions import BinTokenizer
from tokenwm.tokenizer.perceptual import PerceptualLoss


@torch.inference_mode()
def measure(
    model: TokenWorldModel,
    reader: ShardReader,
    rows: Sequence[Start],
    donors: NDArray[np.int64] | None,
    config: EvaluationConfig,
    progress: ProgressCallback,
    endings: Mapping[int, Sequence[Start]] | None = None,
    readout: Readout | None = None,
) -> RowScores:
    """Score every row.

    Args:
        model: The model.
        reader: Where the rows were recorded.
        rows: Starts.
        donors: The row whose actions each row gets when shuffled; None leaves that out.
        config: How to imagine, and how many rows at a time.
        progress: Called after every step.
        endings: Further starts for endings: number of imagined steps → starts.
        readout: Reads the task state off pictures, where the dataset holds it.
    """
    perceptual = None
    if config.lpips:
        perceptual = PerceptualLoss("lpips", may_download=False).to(model.device)
    scores = _empty_scores(model, reader, len(rows), config)
    readings = None
    if readout is not None:
        num_context, horizon = config.num_context_frames, config.imagination_horizon
        readings = TaskStateReadings(readout, reader, rows, num_context, horizon)
        scores.task_state = readings.tables
    batch_size = config.batch_size
    num_batches = -(-len(rows) // batch_size)
    total = num_batches * config.imagination_horizon * (1 if donors is None else 2)
    before_ends = [
        (num_steps, part[first : first + batch_size])
        for num_steps, part in (endings or {}).items()
        for first in range(0, len(part), batch_size)
    ]
    total += sum(num_steps for num_steps, _ in before_ends)
    done = 0

    def after_step() -> None:
        nonlocal done
        done += 1
        progress(done, total, what)

    for number in range(num_batches):
        what = f"batch {number + 1} of {num_batches}"
        numbers = np.arange(number * batch_size, min((number + 1) * batch_size, len(rows)))
        chosen = [rows[int(row)] for row in numbers]
        batch = load_starts(
            reader,
            chosen,
            config.num_context_frames,
            config.imagination_horizon,
            with_future_frames=True,
        )
        measurement = BatchMeasurement(model, batch, numbers, config, scores, perceptual, readings)
        measurement.measure_true(after_step)
        if donors is not None:
            others = [rows[int(row)] for row in donors[numbers]]
            actions = load_future_actions(
                reader, others, config.num_context_frames, config.imagination_horizon
            )
            measurement.measure_shuffled(actions, after_step)
    what = "endings"
    for num_steps, part in before_ends:
        scores.endings.append(measure_endings(model, reader, part, num_steps, config, after_step))
        scores.ending_keys += [start.key for start in part]
    return scores


def _empty_scores(
    model: TokenWorldModel, reader: ShardReader, num_rows: int, config: EvaluationConfig
) -> RowScores:
    """Scores to be filled in, of what the model predicts and the dataset records."""
    state = model.vocabulary.state
    return RowScores.empty(
        num_rows,
        config.imagination_horizon,
        # Ids have no distance that an error could be measured in.
        state_dim=state.num_dimensions if isinstance(state, BinTokenizer) else 0,
        has_reward=model.vocabulary.has_reward and "reward" in reader.manifest.features,
        has_lpips=config.lpips,
    )
