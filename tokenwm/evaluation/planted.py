"""Wrong codes planted into the last observed frame, and what the model makes of them.

A model that imagines reads its own mistakes. One that copies a wrong code on keeps it for good; one
that repairs it shows that its mistakes need not pile up.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwm.imagination.context import Context
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.token_world_model import TokenWorldModel

PLANTED_PER_START = 2
STILL_STEPS = 3
"""Steps after the context for which the true code of a still slot stays, fewer if fewer follow."""
OUTCOMES = ("repaired", "copied", "other", "right_unplanted")
"""Outcomes that are counted: of planted codes the first three, of the same slots left as they were
the last."""
GREEDY = SamplingConfig(temperature=0.0)


def count_outcomes(
    model: TokenWorldModel,
    context: Context,
    true_tokens: Tensor,
    actions: Tensor,
    unplanted: Tensor,
    *,
    rows: NDArray[np.int64],
    seed: int,
) -> NDArray[np.int64]:
    """Plant single wrong codes in still slots and look at the next imagined step.

    A slot is still if its code is the same in the whole context and ``STILL_STEPS`` beyond. The
    frames before the last stay clean, so the right code is in view. The wrong one is any other of
    the codebook; decoding is greedy.

    Args:
        model: The model.
        context: ``B`` rows of observed steps.
        true_tokens: ``(B, H, K)`` of the frames that followed.
        actions: ``(B, A)`` action tokens of the last observed step.
        unplanted: ``(B, K)`` tokens that the model imagines next if nothing is planted.
        rows: ``(B,)`` numbers of the rows, which with the seed decide what is planted where.
        seed: Seed of slots and codes.

    Returns:
        ``(B, 4)`` how often each of ``OUTCOMES`` came about; zeros where no slot is still.
    """
    before = context.tokens.frame
    frames = torch.cat([before, true_tokens[:, :STILL_STEPS]], dim=1)
    still = (frames == frames[:, :1]).all(dim=1).cpu().numpy()  # (B, K)
    streams = torch.from_numpy(rows).to(before.device)
    counts = np.zeros((len(rows), len(OUTCOMES)), dtype=np.int64)
    for places in _rounds(still, rows, seed, model.vocabulary.codebook_size):
        chosen, slots, offsets = torch.from_numpy(places).to(before.device)
        right = before[chosen, -1, slots]
        wrong = (right + offsets) % model.vocabulary.codebook_size
        planted = context.rows(chosen)
        frame = planted.tokens.frame.clone()
        frame[torch.arange(len(chosen), device=slots.device), -1, slots] = wrong
        planted = replace(planted, tokens=planted.tokens._replace(frame=frame))
        state = model.start(planted, noise_streams=streams[chosen])
        state, _ = model.step_tokens(state, actions[chosen], GREEDY)
        got = state.frame_tokens.gather(1, slots[:, None])[:, 0]
        outcomes = [got == right, got == wrong, (got != right) & (got != wrong)]
        outcomes.append(unplanted[chosen, slots] == right)
        counts[places[0]] += torch.stack(outcomes, dim=1).cpu().numpy()
    return counts


def _rounds(
    still: NDArray[np.bool_], rows: NDArray[np.int64], seed: int, codebook_size: int
) -> Iterator[NDArray[np.int64]]:
    """One code for each row that has a still slot left: rows, slots, offsets from the right code.

    Each is drawn for a row by itself, so that it does not depend on which rows come together.
    """
    drawn = []
    for index, row in enumerate(rows.tolist()):
        generator = np.random.default_rng([seed, row])
        slots = generator.permutation(np.flatnonzero(still[index]))[:PLANTED_PER_START]
        offsets = generator.integers(1, codebook_size, len(slots))
        drawn.append([(index, *pair) for pair in zip(slots, offsets, strict=True)])
    for number in range(PLANTED_PER_START):
        places = [row[number] for row in drawn if len(row) > number]
        if places:
            yield np.array(places, dtype=np.int64).T
