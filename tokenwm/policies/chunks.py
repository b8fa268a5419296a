"""Distributions over action chunks: several chunks that may be meant, each with its spread."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenwm.heads.actions import ActionCode
from tokenwm.shapes import check_shape

LEAST_UNIFORM = 1e-6


@dataclass(frozen=True, kw_only=True)
class Chunks:
    """A distribution over chunks of ``H`` actions for each of ``B`` rows.

    A mixture of ``M`` chunks. Given one of them, every number of every action has a categorical
    distribution over bins or ids of its own. Which one it is holds for the whole chunk: who begins
    to go around an object on its left does not go on on its right.

    Attributes:
        code: How numbers of actions are described.
        log_weights: ``(B, M)`` float32, log-probability of each.
        parameters: ``(B, M, H, A, num_parameters)`` float32, see :class:`ActionCode`.
    """

    code: ActionCode
    log_weights: Tensor
    parameters: Tensor

    @classmethod
    def of_outputs(
        cls, outputs: Tensor, code: ActionCode, num_steps: int, num_chunks: int
    ) -> "Chunks":
        """The distribution that the outputs of a head describe, ``(B, num_outputs)``.

        Args:
            outputs: As many as :func:`num_outputs` says.
            code: How numbers of actions are described.
            num_steps: ``H``.
            num_chunks: ``M``.
        """
        logits, rest = torch.split(outputs, [num_chunks, outputs.shape[1] - num_chunks], dim=1)
        shape = (len(outputs), num_chunks, num_steps, code.num_dimensions, code.num_parameters)
        return cls(code=code, log_weights=logits.log_softmax(1), parameters=rest.reshape(shape))

    def log_prob(self, actions: Tensor, weights: Tensor | None = None) -> Tensor:
        """Log-probability of the bins or ids of chunks, ``(B,)`` float32, nats.

        Args:
            actions: ``(B, H, A)`` in the units of the data, or ids.
            weights: ``(B, H)``, how much each action counts; 1 by default.

        Raises:
            ShapeError: They have another shape.
        """
        num_rows, _, num_steps, num_dimensions, _ = self.parameters.shape
        check_shape("actions", actions, (num_rows, num_steps, num_dimensions))
        each = self.code.log_probability(self.parameters, actions[:, None]).sum(-1)  # (B, M, H)
        if weights is not None:
            weighed = each * weights[:, None]
            each = weighed.masked_fill(weights[:, None] == 0.0, 0.0)  # whatever those actions are
        return (self.log_weights + each.sum(-1)).logsumexp(1)

    def mode(self) -> Tensor:
        """The likeliest of the chunks that are the centres of the mixture, ``(B, H, A)``.

        By the whole mixture: a chunk that is often meant and vague gives way to a sharp one.
        """
        centres = self.code.mode(self.parameters)  # (B, M, H, A)
        known = torch.stack([self.log_prob(centre) for centre in centres.unbind(1)], dim=1)
        return centres[torch.arange(len(centres), device=centres.device), known.argmax(1)]

    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        """Draw chunks, within the range of the training data.

        Args:
            num: ``n``, of each row.
            generator: On the CPU, so that all devices get the same.

        Returns:
            ``(B, n, H, A)`` in the units of the data, or ids.
        """
        shape, device = self.parameters.shape, self.parameters.device
        which = torch.rand(shape[0], num, generator=generator).to(device)
        ends = self.log_weights.exp().cumsum(1)
        chosen = torch.searchsorted(ends, which * ends[:, -1:]).clamp(max=shape[1] - 1)
        rows = torch.arange(shape[0], device=device)[:, None]
        size = shape[2:4] if self.code.is_continuous else shape[2:]
        luck = torch.rand(shape[0], num, *size, generator=generator).to(device)
        luck = luck.clamp(LEAST_UNIFORM, 1.0 - LEAST_UNIFORM)
        return self.code.draw(self.parameters[rows, chosen], luck)


def num_outputs(code: ActionCode, num_steps: int, num_chunks: int) -> int:
    """Outputs of a head that describes a mixture of ``num_chunks`` chunks of ``num_steps``."""
    return num_chunks * (1 + num_steps * code.num_dimensions * code.num_parameters)
