"""Observed steps, as tokens: where imagination starts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenwm.errors import TokenwmError
from tokenwm.sequence.vocabulary import Vocabulary
from tokenwm.transformer.world_model import Tokens, WorldModel


@dataclass(frozen=True, kw_only=True)
class Context:
    """Observed steps that imagination starts from.

    Attributes:
        tokens: ``C`` steps of tokens, ``(B, C, ·)``.
        anchor: ``(B, cameras, H, W, 3)`` uint8, the last observed frame, or None if only its tokens
            are known.
    """

    tokens: Tokens
    anchor: Tensor | None = None

    def repeat(self, num_candidates: int) -> "Context":
        """Every row ``num_candidates`` times: as many action sequences from the same start."""
        anchor = self.anchor
        if anchor is not None:
            anchor = anchor.repeat_interleave(num_candidates, dim=0)
        return Context(tokens=spread(self.tokens, num_candidates), anchor=anchor)


def check_context(model: WorldModel, context: Tokens) -> None:
    """Check a context before it is read.

    Raises:
        TokenwmError: The context is empty, or a token is outside its vocabulary.
    """
    vocabulary = model.vocabulary
    if context.frame.shape[1] < 1:
        raise TokenwmError("the context has no step; at least one observed frame is needed")
    named = [("frame", context.frame, vocabulary.codebook_size)]
    named.append(("action", context.action, vocabulary.action.num_values))
    if vocabulary.state is not None and context.state is not None:
        named.append(("state", context.state, vocabulary.state.num_values))
    for name, tokens, limit in named:
        if tokens.numel() and (int(tokens.min()) < 0 or int(tokens.max()) >= limit):
            raise TokenwmError(
                f"{name} tokens span [{int(tokens.min())}, {int(tokens.max())}]; "
                f"allowed is [0, {limit})"
            )


def spread(tokens: Tokens, num_copies: int) -> Tokens:
    """Every row ``num_copies`` times, next to one another."""
    frame, state, action = tokens
    return Tokens(
        frame.repeat_interleave(num_copies, dim=0),
        None if state is None else state.repeat_interleave(num_copies, dim=0),
        action.repeat_interleave(num_copies, dim=0),
    )


def zero_tokens(
    vocabulary: Vocabulary, batch_size: int, num_steps: int, device: torch.device
) -> tuple[Tokens, Tensor]:
    """A context of one step, and ``(B, num_steps, A)`` actions, that mean nothing: to warm up."""

    def zeros(steps: int, count: int) -> Tensor:
        return torch.zeros(batch_size, steps, count, dtype=torch.int64, device=device)

    state = None
    if vocabulary.state is not None:
        state = zeros(1, vocabulary.state.num_dimensions)
    actions = zeros(num_steps, vocabulary.action.num_dimensions)
    return Tokens(zeros(1, vocabulary.tokens_per_frame), state, actions[:, :1]), actions


def cat_contexts(parts: Sequence[Context]) -> Context:
    """Rows of one below those of another; of as many steps each."""
    states = [part.tokens.state for part in parts if part.tokens.state is not None]
    anchors = [part.anchor for part in parts if part.anchor is not None]
    tokens = Tokens(
        torch.cat([part.tokens.frame for part in parts]),
        torch.cat(states) if states else None,
        torch.cat([part.tokens.action for part in parts]),
    )
    return Context(tokens=tokens, anchor=torch.cat(anchors) if anchors else None)


def rows_of(tokens: Tokens, rows: slice) -> Tokens:
    """Some of the rows."""
    frame, state, action = tokens
    return Tokens(frame[rows], None if state is None else state[rows], action[rows])
