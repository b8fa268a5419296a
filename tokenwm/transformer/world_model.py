"""The world model: embeddings, transformer and heads over one vocabulary, and its losses."""

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tokenwm.errors import TokenwmError
from tokenwm.sequence.layout import attention_mask, interleave, predictors, shift_to_inputs
from tokenwm.sequence.tokens import Tokens
from tokenwm.sequence.vocabulary import Vocabulary
from tokenwm.tokenizer.actions import BinTokenizer
from tokenwm.transformer.cache import KVCache
from tokenwm.transformer.codes import DenseCodes, DigitCodes, FrameCodes
from tokenwm.transformer.draft import DraftHead
from tokenwm.transformer.embeddings import (
    CodeEmbedding,
    FrameHints,
    ScalarEmbedding,
    grid_positions,
)
from tokenwm.transformer.heads import (
    CodeHead,
    ContinuousHead,
    DiscreteHead,
    RewardHead,
)
from tokenwm.transformer.model import Transformer, TransformerConfig


@dataclass(frozen=True, kw_only=True)
class WorldModelConfig:
    """Sizes of the world model and weights of its losses.

    Attributes:
        transformer: Sizes of the transformer.
        changed_token_weight: Weight in the loss of a frame token that differs from the previous
            frame's; tokens that stay have weight 1. Most tokens stay, and what matters to a robot
            is in those that do not. Probabilities stay calibrated all the same, see
            :meth:`WorldModel.frame_logits`.
        code_rows: Whether every code has vectors of its own, besides those of its digits. Without,
            codes that share a digit look alike and are as likely as that digit: fewer weights, for
            many codes and few episodes. Codes of ``vq`` have no digits and need rows.
        state_weight: Weight of the mean cross-entropy of the state tokens.
        reward_weight: Weight of the reward loss.
        termination_weight: Weight of the termination loss.
        draft_layers: Layers of the head that predicts all tokens of the next frame at once (see
            :class:`~tokenwm.transformer.draft.DraftHead`); 0 for none.
        draft_weight: Weight of its loss.
        state_increments: Predict states of real values relative to where linear dynamics lead, so
            that what is learned in one place holds in another; see
            :class:`~tokenwm.transformer.heads.ContinuousHead`. Models from before do not.
    """

    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    changed_token_weight: float = 1.0
    code_rows: bool = True
    state_weight: float = 0.1
    reward_weight: float = 0.1
    termination_weight: float = 0.1
    draft_layers: int = 0
    draft_weight: float = 0.3
    state_increments: bool = False

    def __post_init__(self) -> None:
        weights = (
            self.state_weight,
            self.reward_weight,
            self.termination_weight,
            self.draft_weight,
        )
        if self.draft_layers < 0:
            raise TokenwmError(f"draft_layers={self.draft_layers}; use 0 (no head) or more")
        if min(weights) < 0 or self.changed_token_weight <= 0:
            raise TokenwmError(
                f"loss weights must be non-negative and changed_token_weight positive: {self}"
            )


class Embedded(NamedTuple):
    """Embedded steps.

    Attributes:
        positions: ``(B, T * L, D)``, what enters the transformer.
        around: ``(B, T * L, D)``, the same without what the positions hold: at a frame slot all but
            the embedding of its own token.
        hints: ``(B, T - 1, K, D)``, for the frame slots of every step after the first.
    """

    positions: Tensor
    around: Tensor
    hints: Tensor


class Predictions(NamedTuple):
    """Predictions of a full (teacher-forced) pass.

    Attributes:
        frame_hidden: ``(B, T - 1, K, D)``, hidden states for :meth:`WorldModel.frame_codes`; entry
            ``[:, t]`` is for the frame of step ``t + 1``.
        state_logits: ``(B, T - 1, P, bins)`` float32, or None.
        outcome_hidden: ``(B, T, D)``, the hidden state at each action; reward and termination are
            read from it.
        draft_hidden: As ``frame_hidden``, without knowing any token of the frame; None without a
            draft head.
    """

    frame_hidden: Tensor
    state_logits: Tensor | None
    outcome_hidden: Tensor
    draft_hidden: Tensor | None


class WorldModel(nn.Module):
    """Autoregressive model of ``state, frame, action, state, frame, …``.

    Args:
        config: Sizes.
        vocabulary: The tokens of the dataset.

    Attributes:
        graph_passes: Whether passes of decoding are captured as CUDA graphs; so in a frozen model
            on a GPU.
    """

    def __init__(self, config: WorldModelConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        self.layout = vocabulary.layout
        self.graph_passes = False
        dim = config.transformer.dim
        if not config.code_rows and not vocabulary.code_levels:
            raise TokenwmError(
                "code_rows=False, but the codes of this tokenizer have no digits (vq); use "
                "code_rows=True, or a tokenizer with the quantizer fsq"
            )
        codes = (vocabulary.codebook_size, vocabulary.code_levels, dim, config.code_rows)
        self.frame_embedding = CodeEmbedding(*codes)
        self.action_embedding = ScalarEmbedding(vocabulary.action, dim)
        state = vocabulary.state
        self.state_embedding = None if state is None else ScalarEmbedding(state, dim)
        # The old and the new state share an embedding; this map tells them apart.
        self.new_state_map = None if state is None else nn.Linear(dim, dim)
        self.hints = FrameHints(CodeEmbedding(*codes), vocabulary.num_cameras, vocabulary.grid, dim)
        self.slot_embedding = nn.Parameter(torch.randn(self.layout.positions_per_step, dim) * 0.5)
        self.no_hint = nn.Parameter(torch.zeros(dim))
        with torch.no_grad():
            positions = grid_positions(vocabulary.num_cameras, vocabulary.grid, dim)
            self.slot_embedding[self.layout.first_frame_slot : self.layout.action_slot] += positions
        self.transformer = Transformer(config.transformer)
        self.draft_head: DraftHead | None = None
        if config.draft_layers > 0:
            self.draft_head = DraftHead(config.transformer, config.draft_layers)
        self.frame_head = CodeHead(*codes)
        self.copy_head = nn.Linear(dim, 1)
        nn.init.zeros_(self.copy_head.weight)
        # Copying starts at probability e^8 / (e^8 + V - 1), 0.85 for 512 codes; where changes have
        # the weight w in the loss, frame_logits makes it w e^8 / (w e^8 + V - 1).
        nn.init.constant_(self.copy_head.bias, 8.0)
        self.state_head: ContinuousHead | DiscreteHead | None
        if state is None:
            self.state_head = None
        elif isinstance(state, BinTokenizer):
            self.state_head = ContinuousHead(
                state, vocabulary.action, dim, increments=config.state_increments
            )
        else:
            self.state_head = DiscreteHead(state.num_dimensions, state.num_values, dim)
        self.reward_head: RewardHead | None = None
        if vocabulary.has_reward:
            self.reward_head = RewardHead(dim, vocabulary.reward_range)
        self.termination_head = nn.Linear(dim, 1)
        nn.init.zeros_(self.termination_head.weight)

    def set_reward_range(self, reward_range: tuple[float, float] | None) -> None:
        """Take the bins that a checkpoint's reward head was trained on."""
        self.vocabulary = replace(self.vocabulary, reward_range=reward_range)
        if self.reward_head is not None:
            self.reward_head.set_range(reward_range)

    def widen_reward_range(self, low: float, high: float) -> None:
        """Let rewards from ``low`` to ``high`` be expected too, if the range so far is known."""
        known = self.vocabulary.reward_range
        if self.reward_head is None or known is None or known[0] <= low <= high <= known[1]:
            return
        wider = min(low, known[0]), max(high, known[1])
        self.vocabulary = replace(self.vocabulary, reward_range=wider)
        self.reward_head.widen(wider)

    # --- embedding --------------------------------------------------------------------------------

    def embed(self, tokens: Tokens) -> Embedded:
        """Embed whole steps: the one place that says what enters the transformer at a position.

        That is what the position holds, its slot, and a hint for the slot that it predicts: the
        tokens that the frame before has around it, the action, the state before and the new one.
        """
        frame = self.frame_embedding(tokens.frame)  # (B, T, K, D)
        action = known = self.action_embedding(tokens.action)  # (B, T, D)
        state = None
        if self.state_embedding is not None:
            state = self.state_embedding(tokens.state)
            known = action + state
        place = self.slot_embedding[self.layout.first_frame_slot : self.layout.action_slot]
        # The last step's hints are for a step that is not there; only its action reads one.
        if self.new_state_map is None or state is None:
            hints = self.hints(tokens.frame, place, known)  # (B, T, K, D)
            first, hints = hints[:, :, 0], hints[:, :-1]
            others = hints[:, :, 1:]
        else:
            known_then = known[:, :-1] + self.new_state_map(state[:, 1:])
            first = known
            others = hints = self.hints(tokens.frame[:, :-1], place, known_then)  # (B, T - 1, K, D)
        slots = self.slot_embedding.repeat(tokens.frame.shape[1], 1)
        around = slots + shift_to_inputs(self.layout, first, others, self.no_hint)
        held = interleave(self.layout, frame, state, action)
        return Embedded(held + around, around, hints)

    # --- heads ------------------------------------------------------------------------------------

    def frame_codes(self, hidden: Tensor, previous: Tensor) -> FrameCodes:
        """The distributions of frame codes, with a learned bonus for the one of the frame before.

        A loss that gives changes the weight ``w`` teaches ``q(x) ∝ w(x) p(x)``. Probabilities are
        those of ``p``, whatever the weight. ``q`` is what training fits and greedy decoding
        maximises: where a token will change, but to one of many values, staying is the single most
        likely outcome and mostly wrong; as a point forecast ``q`` is better
        (docs/results/quickstart.md).

        Args:
            hidden: ``(..., D)``.
            previous: ``(...)`` int64, the token of the same slot one step before.
        """
        tilt = math.log(self.config.changed_token_weight)
        bonus = self.copy_head(hidden).float() + tilt
        head = self.frame_head
        if head.table is None:
            digits = (head.log_digits(hidden), head.digits_of, head.places)
            return DigitCodes(*digits, previous, bonus.squeeze(-1), tilt)
        logits = head(hidden).float().scatter_add(-1, previous.unsqueeze(-1), bonus)
        return DenseCodes(logits, previous, tilt)

    def frame_logits(self, hidden: Tensor, previous: Tensor) -> Tensor:
        """``(..., V)`` float32 logits of :meth:`frame_codes`."""
        return self.frame_codes(hidden, previous).logits

    def reward(self, hidden: Tensor) -> Tensor | None:
        """Expected reward ``(...)`` from the hidden state ``(..., D)`` at an action.

        None if none was recorded.
        """
        if self.reward_head is None:
            return None
        out: Tensor = self.reward_head(hidden)
        return out

    def termination_logit(self, hidden: Tensor) -> Tensor:
        """Logit ``(...)`` that the action at ``hidden`` ``(..., D)`` ends the task."""
        out: Tensor = self.termination_head(hidden).float().squeeze(-1)
        return out

    # --- passes -----------------------------------------------------------------------------------

    def forward(self, tokens: Tokens) -> Predictions:
        """Predict every step from the true steps before it (teacher-forced).

        Raises:
            TokenwmError: Fewer than two steps.
        """
        num_steps = tokens.frame.shape[1]
        if num_steps < 2:
            raise TokenwmError(
                f"{num_steps} step(s); at least 2 are needed to predict one from another"
            )
        window = self.config.transformer.window
        device = tokens.frame.device
        steps = torch.arange(num_steps, device=device).repeat_interleave(
            self.layout.positions_per_step
        )
        mask = None
        if num_steps > window:
            mask = attention_mask(self.layout, num_steps, window).to(device)
        embedded, _, hints = self.embed(tokens)
        hidden = self.transformer(embedded.to(self.transformer.dtype), steps, mask)
        hidden = hidden.to(embedded.dtype)  # (B, T * L, D)
        predicting = predictors(self.layout, hidden)  # (B, T-1, J, D)
        first = self.layout.first_frame_slot
        state_logits = None
        if self.state_head is not None and tokens.state is not None:
            state_logits = self.state_head(
                predicting[:, :, 0], tokens.state[:, :-1], tokens.action[:, :-1]
            )
        outcome_hidden = hidden.unflatten(1, (num_steps, -1))[:, :, self.layout.action_slot]
        draft_hidden = None
        if self.draft_head is not None:
            draft_hidden = self.draft_head(outcome_hidden[:, :-1], hints)
        return Predictions(predicting[:, :, first:], state_logits, outcome_hidden, draft_hidden)

    def new_cache(self, batch_size: int, ahead: int = 1, max_steps: int | None = None) -> KVCache:
        """A cache for ``batch_size`` rows on the model's device, of the transformer's type.

        See :class:`KVCache`.
        """
        config = self.config.transformer
        return KVCache(
            num_layers=config.num_layers,
            batch_size=batch_size,
            num_kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            window=config.window,
            positions_per_step=self.layout.positions_per_step,
            ahead=ahead,
            max_steps=max_steps,
            dtype=self.transformer.dtype,
            device=self.slot_embedding.device,
        )
