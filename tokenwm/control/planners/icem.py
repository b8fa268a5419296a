"""iCEM: the cross-entropy method with noise that hangs together and elites that are kept."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenwm.control.planners.cem import CEM
from tokenwm.control.planners.search import Search


@dataclass(frozen=True, kw_only=True)
class ICEM(CEM):
    """iCEM, the improved cross-entropy method.

    Coloured noise; a share of the elites is tried again in the next round and, shifted, in the
    first round of the next plan; rounds grow smaller.

    Source: Pinneri et al. (2020), "Sample-efficient cross-entropy method for real-time planning".
    Deviations: the mean is tried in every round, not in the last one only; the last action of a
    shifted elite is repeated, not drawn anew.

    Attributes:
        kept: Share of the elites that is kept, in [0, 1].
        decay: Candidates of a round by those of the next, at least 1; a round has at least twice as
            many as there are elites.
    """

    exponent: float = 2.0
    smoothing: float = 0.1
    kept: float = 0.3
    decay: float = 1.25

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            TokenwmError: A value is out of range.
        """
        super().__post_init__()
        self.check_range("kept", 0.0, 1.0)
        self.check_range("decay", 1.0, 100.0)

    def size_of_round(self, number: int) -> int:
        """Fewer in every round."""
        fewer = int(self.num_candidates / self.decay**number)
        return min(self.num_candidates, max(fewer, 2 * self.num_elites))

    def carried(self, search: Search, number: int) -> Tensor:
        """Elites of the round before, or of the plan before."""
        count = round(self.kept * self.num_elites)
        if number > 0:
            return search.elites[:count]
        given = super().carried(search, number)
        return (
            given if search.warm_elites is None else torch.cat([given, search.warm_elites[:count]])
        )
