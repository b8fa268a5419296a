"""Bins of another dataset or of a model for the frames at hand: for mixing and for fine-tuning."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from tokenwm.data.shards.manifest import Manifest
from tokenwm.errors import TokenwmError
from tokenwm.sequence.vocabulary import Vocabulary
from tokenwm.tokenizer.actions import BinTokenizer

logger = logging.getLogger(__name__)


def borrow_vocabulary(
    other: Vocabulary, own: Vocabulary, where: Path | str, *, same_tokenizer: bool = True
) -> Vocabulary:
    """The vocabulary of the frames at hand with the bins of another.

    Args:
        other: Of token shards, to be mixed with in training, or of a model, to be trained on.
        own: What :func:`make_vocabulary` gives for the frames at hand.
        where: Where the other one was found, for messages.
        same_tokenizer: Whether the frame tokenizers must be one, too.

    Raises:
        TokenwmError: The tokens there mean something else than bins of the same quantities.
    """
    apart_from = ("bins", "reward_range", *(() if same_tokenizer else ("tokenizer_hash",)))
    for name, (ours, theirs) in own.differences(other, apart_from).items():
        raise TokenwmError(
            f"the vocabulary of {where} does not fit: {name} is {theirs} there and {ours} here"
        )
    return replace(own, action=other.action, state=other.state)


def warn_of_values_outside(vocabulary: Vocabulary, frames: Manifest, where: Path | str) -> None:
    """Warn of training values beyond borrowed bins, which count as the nearest bin.

    Args:
        vocabulary: With the bins of ``where``.
        frames: The frames that are encoded with them.
        where: Where the bins come from.
    """
    for name, tokenizer in (("action", vocabulary.action), ("state", vocabulary.state)):
        figures = frames.statistics.get(name, {})
        if not isinstance(tokenizer, BinTokenizer) or not {"min", "max"} <= figures.keys():
            continue
        low, high = tokenizer.edges[:, 0], tokenizer.edges[:, -1]
        beyond = np.maximum(low - figures["min"], figures["max"] - high) / (high - low)
        worst = int(beyond.argmax())
        if beyond[worst] > 1e-6:  # the data are float32, edges are not
            called = tokenizer.names[worst] if tokenizer.names else f"dimension {worst}"
            logger.warning(
                "%d of %d dimensions of %s leave the bins of %s, %s by %.2g of their range: such "
                "values count as the nearest bin",
                *((beyond > 1e-6).sum(), tokenizer.num_dimensions, name, where, called),
                beyond[worst],
            )
