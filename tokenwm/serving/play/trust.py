"""Scales of surprise and doubt, measured where recorded actions are imagined."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tokenwm.heads.doubt import NAME, Doubt
from tokenwm.heads.folder import has_head
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.starts import RecordedStarts
from tokenwm.imagination.token_world_model import TokenWorldModel

USUAL, RARE = 0.5, 0.95
"""Quantiles of held-out steps: below the first all is well, above the second is unknown ground."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A scale of a number that tells how far a model can be trusted.

    Attributes:
        name: Its name on the page.
        usual: Its median over held-out steps, nats per token; None if there were none.
        rare: What only one of twenty of these is above.
    """

    name: str
    usual: float | None = None
    rare: float | None = None

    def measured(self, values: Tensor) -> "Scale":
        """The scale of some values."""
        usual, rare = np.quantile(values.cpu().numpy(), (USUAL, RARE)).tolist()
        return Scale(name=self.name, usual=usual, rare=max(rare, usual + 1e-6))


@dataclass(frozen=True, kw_only=True)
class Trust:
    """Scales of one model.

    Attributes:
        surprise: Of ``frame_nll``, how unlikely what was drawn is to the model itself.
        doubt: Of the learned doubt, or of ``frame_entropy`` where there is none.
    """

    surprise: Scale
    doubt: Scale


def doubt_of(rollout: Rollout) -> Tensor:
    """``(B, H)``, the learned doubt, or how uncertain the model was, nats per token."""
    return rollout.frame_entropy if rollout.doubt is None else rollout.doubt


def take_doubt(model: TokenWorldModel) -> Trust:
    """Let every rollout of a model have its learned doubt, if it was trained; scales without ends.

    Raises:
        CheckpointError: The head is there, and damaged.
    """
    if has_head(model, NAME):
        model.doubt = Doubt.load(model)
    name = "Uncertainty" if model.doubt is None else "Doubt"
    return Trust(surprise=Scale(name="Surprise"), doubt=Scale(name=name))


@torch.inference_mode()
def measured(
    trust: Trust, model: TokenWorldModel, starts: RecordedStarts, sampling: SamplingConfig
) -> Trust:
    """The scales over what was recorded: its own actions, imagined with the same settings."""
    rollout = model.imagine(starts.context(model), starts.future_actions, sampling=sampling)
    return Trust(
        surprise=trust.surprise.measured(rollout.frame_nll),
        doubt=trust.doubt.measured(doubt_of(rollout)),
    )
