"""Linear dynamics of a robot's state, found by least squares."""

import torch
from torch import Tensor, nn

from tokenwm.tokenizer.actions import BinTokenizer, ScalarTokenizer
from tokenwm.transformer.embeddings import center_features, one_hot_ids

RIDGE = 1e-4
"""Ridge of linear dynamics, as a share of the mean square of inputs in [-1, 1]."""
RIDGE_TOGETHER = 1e-2
"""Ridge on what a joint and its targets add together; see :meth:`LinearDynamics.fit`."""
TARGET_CORRELATION = 0.5
"""Correlation with a state dimension from which on an action dimension is taken for its target."""


class LinearDynamics(nn.Module):
    """Linear dynamics of a state: ``s' = s + W [s, a] + b``, in scaled units.

    Least squares finds ``W`` from a few hundred steps, which gradients on tokens do not
    (docs/results/quickstart.md). What is not linear is left to the head's other part.
    """

    centers: Tensor
    action_features: Tensor
    dimension: Tensor
    action_dimension: Tensor

    def __init__(self, state: BinTokenizer, action: ScalarTokenizer) -> None:
        super().__init__()
        centers, _ = center_features(state)
        self.register_buffer("centers", centers, persistent=False)
        if isinstance(action, BinTokenizer):
            features = center_features(action)[0].unsqueeze(-1)
        else:
            features = one_hot_ids(action)
        self.register_buffer("action_features", features, persistent=False)
        self.state_names, self.action_names = state.names, getattr(action, "names", ())
        self.register_buffer("dimension", torch.arange(len(centers)), persistent=False)
        self.register_buffer("action_dimension", torch.arange(len(features)), persistent=False)
        self.drift = nn.Linear(len(centers) + features.shape[0] * features.shape[-1], len(centers))
        nn.init.zeros_(self.drift.weight)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """``(..., P)`` and ``(..., A)`` int64 → expected next state, ``(..., P)`` float32.

        In units in which the training data is in [-1, 1].
        """
        with torch.autocast(state.device.type, enabled=False):  # bfloat16 is as coarse as the bins
            value, inputs = self._inputs(state, action)
            out: Tensor = value + self.drift(inputs)
        return out

    @torch.no_grad()
    def fit(self, *, state: Tensor, action: Tensor, next_state: Tensor) -> None:
        """Least squares over ``N`` steps, with a little ridge on what each input adds.

        Where an action is a target, more ridge is on what a joint and its target add together: on
        another day both stand a little elsewhere, and all moves as before. Training data that
        hardly leaves its place does not show that by itself.

        Args:
            state: ``(N, P)`` int64.
            action: ``(N, A)`` int64.
            next_state: ``(N, P)`` int64.
        """
        value, inputs = (part.double() for part in self._inputs(state, action))
        moved = self.centers[self.dimension, next_state].double() - value
        mean, drift = inputs.mean(0), moved.mean(0)
        x, y = inputs - mean, moved - drift
        together = self._moving_together(x)
        ridge = RIDGE * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        ridge += RIDGE_TOGETHER * together.T @ together
        weights = torch.linalg.solve(x.T @ x + len(x) * ridge, x.T @ y).T  # (P, inputs)
        self.drift.weight.copy_(weights)
        self.drift.bias.copy_(drift - weights @ mean)

    def _moving_together(self, x: Tensor) -> Tensor:
        """``(P, inputs)``: a move of each state dimension that has targets, and of those with it.

        Args:
            x: ``(N, inputs)``, of mean zero.
        """
        count = len(self.centers)
        moves = torch.zeros(count, x.shape[1], dtype=x.dtype, device=x.device)
        if self.action_features.shape[-1] > 1:  # ids are no targets
            return moves
        covariance = x.T @ x / len(x)
        deviation = covariance.diagonal().sqrt().clamp(min=1e-9)
        correlation = (covariance / deviation / deviation[:, None])[:count, count:]
        for number, name in enumerate(self.action_names or [""] * (x.shape[1] - count)):
            its_state = int(correlation[:, number].abs().argmax())
            if name in self.state_names:
                its_state = self.state_names.index(name)
            if correlation[its_state, number].abs() >= TARGET_CORRELATION:
                slope = covariance[its_state, count + number] / covariance[its_state, its_state]
                moves[its_state, its_state] = 1.0
                moves[its_state, count + number] = slope
        return moves

    def _inputs(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled state ``(..., P)`` and the inputs of the linear map."""
        value = self.centers[self.dimension, state]
        features = self.action_features[self.action_dimension, action].flatten(-2)
        return value, torch.cat([value, features], dim=-1)
