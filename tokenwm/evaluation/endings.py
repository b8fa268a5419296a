"""Imagine up to the end of recorded tasks: is it foreseen, and when?"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.shards.reader import ShardReader
from tokenwm.evaluation.config import EvaluationConfig
from tokenwm.evaluation.metrics import FloatArray
from tokenwm.imagination.starts import Start, load_starts
from tokenwm.imagination.token_world_model import TokenWorldModel


def measure_endings(
    model: TokenWorldModel,
    reader: ShardReader,
    rows: Sequence[Start],
    num_steps: int,
    config: EvaluationConfig,
    after_step: Callable[[], None],
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Probability of an end at each imagined step, and whether it came; ``(rows, num_steps)``."""
    first = config.num_context_frames - 1
    batch = load_starts(reader, rows, config.num_context_frames, num_steps)
    tokens = model.encode_actions(batch.future_actions)
    state = model.start(batch.context(model), seed=config.seed)
    probability = []
    for index in range(num_steps):
        state, rollout = model.step_tokens(state, tokens[:, index], config.sampling)
        probability.append(rollout.termination_probability.float().cpu().numpy())
        after_step()
    return (
        np.concatenate(probability, axis=1).astype(np.float64),
        batch.terminated[:, first : first + num_steps],
    )
