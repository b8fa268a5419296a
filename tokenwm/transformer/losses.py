"""Losses of the world model and the counts that tell how it learns."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, distributed

from tokenwm.sequence.tokens import Tokens
from tokenwm.transformer.codes import cross_entropy
from tokenwm.transformer.world_model import WorldModel


class Losses(NamedTuple):
    """Losses and counts of a batch; all scalars.

    Attributes:
        total: What is minimised.
        frame_nll: Mean negative log-likelihood of frame tokens, nats per token, unweighted.
        frame_accuracy: Share of frame tokens that greedy decoding gets right.
        changed_accuracy: The same over tokens that differ from the previous frame's.
        persistence_accuracy: Share of tokens that equal the previous frame's.
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
    """
    predictions, config = model(tokens), model.config
    if step_valid is None:
        step_valid = action_valid.roll(1, dims=1)
    follows = step_valid[:, 1:].float()  # (B, T-1)
    target, previous = tokens.frame[:, 1:], tokens.frame[:, :-1]
    changed = (target != previous).float()
    weight = 1.0 + (config.changed_token_weight - 1.0) * changed
    codes = model.frame_codes(predictions.frame_hidden, previous)  # (B, T-1, K)
    valid = follows.unsqueeze(-1)
    total = _mean(codes.point_nll(target), valid * weight)
    with torch.no_grad():
        nll, right = codes.nll(target), (codes.point() == target).float()
    zero = total.new_zeros(())
    state_nll, reward_loss, draft_nll = zero, zero, zero
    if predictions.draft_hidden is not None:
        draft = model.frame_codes(predictions.draft_hidden, previous)
        total = total + config.draft_weight * _mean(draft.point_nll(target), valid * weight)
        with torch.no_grad():
            draft_nll = _mean(draft.nll(target), valid)
    if predictions.state_logits is not None and tokens.state is not None:
        state_nll = _mean(cross_entropy(predictions.state_logits, tokens.state[:, 1:]), valid)
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
