"""Distance of measured episodes from what a model was trained on: values, and pictures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.shards.reader import ShardReader
from tokenwm.evaluation.metrics import FloatArray
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.parent import widened_range
from tokenwm.tokenizer.actions import BinTokenizer, ScalarTokenizer, beyond_range

NOTABLE_SHARE = 0.01
"""Share of a dimension's values beyond its bins from which on the headline says it."""
FAR_SHARE = 0.25
"""Such a share from which on it is an alarm: these are other data, not only a little further."""
FAR_LOSS = 3.0
"""dB of reconstruction below that at home from which on it is an alarm: twice the error."""
HOME_FIGURE = "val/psnr"
"""Name of the tokenizer's PSNR on its own val split, dB, as its training noted it last."""


@dataclass(frozen=True, kw_only=True)
class ValuesOutside:
    """Recorded actions or states beyond the values or ids that the training data used.

    Attributes:
        name: ``action`` or ``state``.
        share: Share of all values that are outside, 0 to 1.
        clipped_share: Share of all values that are beyond the margin of the bins too: the model
            takes them for the nearest value that has a bin.
        worst_dimension: Name of the dimension with most, or its number.
        worst_share: Share of that dimension's values, 0 to 1.
        worst_excess: How far its furthest value lies beyond, in ranges of the training data; 0 for
            ids, which have no distance.
    """

    name: str
    share: float
    clipped_share: float
    worst_dimension: str
    worst_share: float
    worst_excess: float

    @property
    def is_notable(self) -> bool:
        """True if it is more than single extremes."""
        return self.worst_share >= NOTABLE_SHARE


@dataclass(frozen=True, kw_only=True)
class OutsideTraining:
    """Distance of the measured episodes from what the model was trained on.

    Attributes:
        values: Actions outside, and states if the model has them.
        reconstruction: PSNR of the MSE of all true frames that were imagined, through the
            tokenizer, dB.
        reconstruction_at_home: That PSNR as the tokenizer's training noted it last for its own val
            split, dB; None if it had none.
    """

    DERIVED: ClassVar = ("is_notable", "is_far")

    values: tuple[ValuesOutside, ...]
    reconstruction: float
    reconstruction_at_home: float | None

    @property
    def has_other_pictures(self) -> bool:
        """True if the tokenizer shows these pictures far worse than those of its val split."""
        home = self.reconstruction_at_home
        return home is not None and home - self.reconstruction >= FAR_LOSS

    @property
    def is_far(self) -> bool:
        """True if figures of these data say little about data like those of the training."""
        return self.has_other_pictures or any(item.worst_share >= FAR_SHARE for item in self.values)

    @property
    def is_notable(self) -> bool:
        """True if the headline has to say it."""
        return self.has_other_pictures or any(item.is_notable for item in self.values)


@dataclass(kw_only=True)
class OutsideCounts:
    """Counts of one dataset against the training data of its model; ``(dimensions,)`` each."""

    num_values: int
    num_outside: NDArray[np.int64]
    num_clipped: NDArray[np.int64]
    excess: FloatArray


def count_outside(
    model: TokenWorldModel, reader: ShardReader, keys: Sequence[str]
) -> dict[str, OutsideCounts]:
    """Count values beyond the training data over whole episodes, ``action`` and ``state``.

    The last action of an episode is left out: it leads nowhere.
    """
    tokenizers = {"action": model.vocabulary.action, "state": model.vocabulary.state}
    return {
        name: _count(tokenizer, reader, keys, name, model.provenance)
        for name, tokenizer in tokenizers.items()
        if tokenizer is not None
    }


def _count(
    tokenizer: ScalarTokenizer,
    reader: ShardReader,
    keys: Sequence[str],
    name: str,
    provenance: Mapping[str, Any],
) -> OutsideCounts:
    counts = OutsideCounts(
        num_values=0,
        num_outside=np.zeros(tokenizer.num_dimensions, np.int64),
        num_clipped=np.zeros(tokenizer.num_dimensions, np.int64),
        excess=np.zeros(tokenizer.num_dimensions),
    )
    for key in keys:
        rows = reader.arrays(key, [name])[name]
        rows = rows.reshape(len(rows), -1)[: -1 if name == "action" else None]
        if isinstance(tokenizer, BinTokenizer):
            (low, high), (least, most) = tokenizer.training_range, tokenizer.scale_range
            low, high = widened_range(provenance, name, low, high)
            clipped = tokenizer.clipped(rows)
            outside = clipped | beyond_range(rows, low, high)
            beyond = np.where(outside, np.maximum(low - rows, rows - high), 0.0) / (most - least)
            counts.excess = np.maximum(counts.excess, beyond.max(axis=0, initial=0.0))
            counts.num_clipped += clipped.sum(axis=0)
        else:
            outside = rows >= np.array(tokenizer.used_sizes)
        counts.num_values += len(rows)
        counts.num_outside += outside.sum(axis=0)
    return counts


def summarize_outside(
    models: Sequence[TokenWorldModel],
    counts: Sequence[dict[str, OutsideCounts]],
    reconstruction: float,
) -> OutsideTraining:
    """Counts of each model's own episodes → figures over all of them."""
    values = []
    for name in counts[0]:
        mine = [part[name] for part in counts]
        num_rows = sum(part.num_values for part in mine)
        num_outside = np.sum([part.num_outside for part in mine], axis=0)
        excess = np.max([part.excess for part in mine], axis=0)
        worst = int(np.lexsort((excess, num_outside))[-1])
        names = getattr(getattr(models[0].vocabulary, name), "names", ())
        values.append(
            ValuesOutside(
                name=name,
                share=float(num_outside.mean()) / num_rows,
                clipped_share=float(np.sum([part.num_clipped.mean() for part in mine])) / num_rows,
                worst_dimension=names[worst] if names else f"dimension {worst}",
                worst_share=float(num_outside[worst]) / num_rows,
                worst_excess=float(excess[worst]),
            )
        )
    home = [psnr_at_home(model.tokenizer_provenance) for model in models]
    known = [psnr for psnr in home if psnr is not None]
    return OutsideTraining(
        values=tuple(values),
        reconstruction=reconstruction,
        reconstruction_at_home=float(np.mean(known)) if len(known) == len(home) else None,
    )


def psnr_at_home(tokenizer_provenance: Mapping[str, Any]) -> float | None:
    """PSNR of a tokenizer on its own val split, as its training noted it, dB, if there was one."""
    metrics = tokenizer_provenance.get("metrics")
    psnr = metrics.get(HOME_FIGURE) if isinstance(metrics, dict) else None
    if not isinstance(psnr, int | float) or isinstance(psnr, bool) or not math.isfinite(psnr):
        return None
    return float(psnr)
