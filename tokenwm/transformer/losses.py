"""Losses of the world model and the counts that tell how it learns."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, distributed

from tokenwm.sequence.tokens import Tokens
from tokenwm.transformer.world_model import WorldModel


class Losses(NamedTuple):
    """Losses and counts of a batch; all scalars.

    Attributes:
        total: What is minimised.
        frame_nll: Mean negative log-likelihood of frame tokens, nats per token, unweighted.
        frame_accuracy: Share of frame tokens that greedy decoding gets right.
        changed_accuracy: The same over tokens that differ from the previous frame's, as shown.
        persistence_accuracy: Share of tokens that equal the previous frame's, as shown.
        state_nll: Nats per state token; zero without state.
        reward: Two-hot cross-entropy; zero without reward.
        termination: Binary cross-entropy.
        draft_nll: As ``frame_nll``, of the draft head; zero without.
    """

    total: Tensor
    frame_nll: Tensor
    frame_accuracy: Tensor
    changed_accuracy: Tensor
    persistence_accuracy: Tensor
    state_nll: Tensor
    reward: Tensor
    termination: Tensor
    draft_nll: Tensor


def losses_of(
    model: WorldModel,
    tokens: Tokens,
    *,
    action_valid: Tensor,
    reward: Tensor | None,
    terminated: Tensor,
    step_valid: Tensor | None = None,
    shown: Tokens | None = None,
) -> Losses:
    """Losses of a batch.

    Args:
        model: The world model; its configuration weighs the losses.
        tokens: Tokens of the batch.
        action_valid: ``(B, T)`` bool; the outcome of step ``t`` is counted where True.
        reward: ``(B, T)`` float32, or None if none was recorded.
        terminated: ``(B, T)`` bool.
        step_valid: ``(B, T)`` bool; step ``t`` is predicted from those before it where True,
            the first never. None: wherever the step before has a valid action.
        shown: Tokens that the model reads instead, some of them wrong; targets stay ``tokens``.
            Putting a wrong one right is a change.
    """
    shown = tokens if shown is None else shown
    predictions, config = model(shown), model.config
    if step_valid is None:
        step_valid = action_valid.roll(1, dims=1)
    follows = step_valid[:, 1:].float()  # (B, T-1)
    target, previous = tokens.frame[:, 1:], shown.frame[:, :-1]
    changed = (target != previous).float()
    point = model.point_logits(predictions.frame_logits, previous)
    right = (point.argmax(-1) == target).float()
    valid = follows.unsqueeze(-1)
    total = _frame_loss(model, point, target, previous, valid)
    with torch.no_grad():
        nll = _cross_entropy(predictions.frame_logits, target)  # (B, T-1, K)
    zero = total.new_zeros(())
    state_nll, reward_loss, draft_nll = zero, zero, zero
    if predictions.draft_logits is not None:
        draft = model.point_logits(predictions.draft_logits, previous)
        total = total + config.draft_weight * _frame_loss(model, draft, target, previous, valid)
        with torch.no_grad():
            draft_nll = _mean(_cross_entropy(predictions.draft_logits, target), valid)
    if predictions.state_logits is not None and tokens.state is not None:
        state_nll = _mean(_cross_entropy(predictions.state_logits, tokens.state[:, 1:]), valid)
    valid_outcome = action_valid.float()
    if model.reward_head is not None and reward is not None:
        reward = reward.masked_fill(~action_valid, 0.0)  # where none is meant, it may be NaN
        reward_loss = _mean(
            model.reward_head.loss(predictions.outcome_hidden, reward), valid_outcome
        )
    logit = model.termination_logit(predictions.outcome_hidden)
    termination = _mean(
        F.binary_cross_entropy_with_logits(logit, terminated.float(), reduction="none"),
        valid_outcome,
    )
    total = total + config.state_weight * state_nll + config.reward_weight * reward_loss
    return Losses(
        total=total + config.termination_weight * termination,
        frame_nll=_mean(nll, valid),
        frame_accuracy=_mean(right, valid),
        changed_accuracy=_mean(right, valid * changed),
        persistence_accuracy=_mean(1.0 - changed, valid),
        state_nll=state_nll.detach(),
        reward=reward_loss.detach(),
        termination=termination.detach(),
        draft_nll=draft_nll,
    )


def _frame_loss(
    model: WorldModel, point: Tensor, target: Tensor, previous: Tensor, valid: Tensor
) -> Tensor:
    """Mean loss of frame tokens, by the weights and targets of the model's configuration.

    Args:
        model: The world model.
        point: ``(B, T-1, K, V)`` of :meth:`WorldModel.point_logits`.
        target: ``(B, T-1, K)`` int64.
        previous: ``(B, T-1, K)`` int64, what was shown there one step before.
        valid: ``(B, T-1, 1)`` float32; what does not count is 0.
    """
    config, changed = model.config, (target != previous).float()
    loss = _cross_entropy(point, target)
    if config.near_code_share > 0.0:
        moved = _moved_to_near(point, target, previous, model.near_codes)
        loss = loss + config.near_code_share * changed * moved
    return _mean(loss, valid * (1.0 + (config.changed_token_weight - 1.0) * changed))


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """``(..., V)`` logits and ``(...)`` targets → ``(...)`` nats."""
    loss = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none")
    return loss.view_as(target)


def _moved_to_near(logits: Tensor, target: Tensor, previous: Tensor, near: Tensor) -> Tensor:
    """Cross-entropy that a target gains when all of its mass goes to the codes near it.

    Staying is no near code: how likely a token is to change is not to be blurred.

    Args:
        logits: ``(..., V)``.
        target: ``(...)`` int64.
        previous: ``(...)`` int64, the slot's token one step before.
        near: ``(V, N)`` int64.

    Returns:
        ``(...)`` nats; 0 where nothing is near.
    """
    codes = near[target]  # (..., N)
    is_other = (codes != previous.unsqueeze(-1)).float()
    gained = logits.gather(-1, target.unsqueeze(-1)) - logits.gather(-1, codes)
    return (gained * is_other).sum(-1) / is_other.sum(-1).clamp(min=1.0)


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean, in training over the batch of all ranks.

    Ranks have windows of other lengths, and their gradients are averaged: divided by the mean of
    their weights, not by each rank's own, every step counts the same on however many ranks.
    """
    weights = weights.expand_as(values)
    total = weights.sum()
    if torch.is_grad_enabled() and distributed.is_available() and distributed.is_initialized():
        total = total.detach().clone()
        distributed.all_reduce(total)
        total = total / distributed.get_world_size()
    return (values * weights).sum() / total.clamp(min=1e-8)
