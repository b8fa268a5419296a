"""Starts to show, chosen by rank and not by eye, and their pictures."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tokenwm.data.shards.reader import ShardReader
from tokenwm.evaluation.config import EvaluationConfig
from tokenwm.evaluation.figures import Example
from tokenwm.evaluation.metrics import FloatArray, psnr_from_mse
from tokenwm.evaluation.rows import load_future_actions
from tokenwm.imagination.starts import Starts, load_starts
from tokenwm.imagination.token_world_model import Rollout, TokenWorldModel


def choose_examples(
    starts: Starts, mse: Mapping[str, FloatArray], num_examples: int
) -> list[tuple[int, str]]:
    """Rows evenly spread over the ranking of all starts by gain over persistence, best first.

    Args:
        starts: All starts.
        mse: ``model`` and ``persistence``, ``(rows, H)``.
        num_examples: How many rows to choose.

    Returns:
        Row and rank in words, the best first.
    """
    gain = (psnr_from_mse(mse["model"]) - psnr_from_mse(mse["persistence"])).mean(axis=1)
    order = np.argsort(-gain, kind="stable")
    num_rows = len(starts.rows)
    count = min(num_examples, num_rows)
    places = sorted({round(place) for place in np.linspace(0, num_rows - 1, count)})
    return [(int(order[place]), rank_in_words(place, num_rows)) for place in places]


def rank_in_words(place: int, count: int) -> str:
    """Place 0 of 80 → "best of 80 starts"."""
    if count == 1:
        return "the only start"
    if place == 0:
        return f"best of {count} starts"
    if place == count - 1:
        return f"worst of {count} starts"
    return f"rank {place + 1} of {count} starts"


@torch.inference_mode()
def imagine_examples(
    model: TokenWorldModel,
    reader: ShardReader,
    starts: Starts,
    donors: NDArray[np.int64] | None,
    chosen: Sequence[tuple[int, str]],
    config: EvaluationConfig,
) -> tuple[Example, ...]:
    """Imagine some rows again, under the same noise, and keep their pictures."""
    if not chosen:
        return ()
    numbers = np.array([row for row, _ in chosen])
    rows = [starts.rows[int(row)] for row in numbers]
    num_context, horizon = config.num_context_frames, config.imagination_horizon
    batch = load_starts(reader, rows, num_context, horizon, with_future_frames=True)
    context = batch.context(model)

    def imagine(actions: NDArray[np.generic]) -> Rollout:
        streams = torch.from_numpy(numbers).to(model.device)
        return model.imagine(
            context, actions, sampling=config.sampling, seed=config.seed, noise_streams=streams
        )

    prediction = model.decode_frames(imagine(batch.future_actions))
    shuffled = None
    if donors is not None:
        others = [starts.rows[int(row)] for row in donors[numbers]]
        shuffled = model.decode_frames(
            imagine(load_future_actions(reader, others, num_context, horizon))
        )
    frames = batch.frames.numpy()
    return tuple(
        Example(
            key=rows[index].key,
            first_step=rows[index].first_step,
            rank=rank,
            context=frames[index, :num_context],
            truth=frames[index, num_context:],
            prediction=prediction[index].cpu().numpy(),
            shuffled=None if shuffled is None else shuffled[index].cpu().numpy(),
        )
        for index, (_, rank) in enumerate(chosen)
    )
