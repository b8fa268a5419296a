"""The world model: embeddings, transformer and heads over one vocabulary, and its losses."""

import copy
import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tokenwm.errors import TokenwmError
from tokenwm.sequence.layout import attention_mask, interleave, predictors, shift_to_inputs
from tokenwm.sequence.tokens import Tokens
from tokenwm.sequence.vocabulary import Vocabulary
from tokenwm.tokenizer.actions import ContinuousTokenizer
from tokenwm.transformer.cache import KVCache
from tokenwm.transformer.draft import DraftHead
from tokenwm.transformer.embeddings import (
    CodeEmbedding,
    CodeTable,
    FrameHints,
    ScalarEmbedding,
    apply_in_its_type,
    grid_positions,
)
from tokenwm.transformer.heads import (
    CodeHead,
    ContinuousHead,
    DiscreteHead,
    RewardHead,
)
from tokenwm.transformer.losses import Losses, losses_of
from tokenwm.transformer.model import Attention, Layer, Transformer, TransformerConfig
from tokenwm.transformer.packed import pack_linear_maps


@dataclass(frozen=True, kw_only=True)
class WorldModelConfig:
    """Sizes of the world model and weights of its losses.

    Attributes:
        transformer: Sizes of the transformer.
        changed_token_weight: Weight in the loss of a frame token that differs from the previous
            frame's; tokens that stay have weight 1. Most tokens stay, and what matters to a robot
            is in those that do not. Probabilities stay calibrated all the same, see
            :meth:`WorldModel.frame_logits`.
        state_weight: Weight of the mean cross-entropy of the state tokens.
        reward_weight: Weight of the reward loss.
        termination_weight: Weight of the termination loss.
        draft_layers: Layers of the head that predicts all tokens of the next frame at once (see
            :class:`~tokenwm.transformer.draft.DraftHead`); 0 for none.
        draft_weight: Weight of its loss.
    """

    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    changed_token_weight: float = 1.0
    state_weight: float = 0.1
    reward_weight: float = 0.1
    termination_weight: float = 0.1
    draft_layers: int = 0
    draft_weight: float = 0.3

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


class Predictions(NamedTuple):
    """What a full (teacher-forced) pass predicts.

    Attributes:
        frame_logits: ``(B, T - 1, K, V)`` float32; entry ``[:, t]`` is for the frame of step
            ``t + 1``.
        state_logits: ``(B, T - 1, P, bins)`` float32, or None.
        outcome_hidden: ``(B, T, D)``, the hidden state at each action; reward and termination are
            read from it.
        draft_logits: As ``frame_logits``, without knowing any token of the frame; None without a
            draft head.
    """

    frame_logits: Tensor
    state_logits: Tensor | None
    outcome_hidden: Tensor
    draft_logits: Tensor | None


class WorldModel(nn.Module):
    """Autoregressive model of ``state, frame, action, state, frame, …``.

    Args:
        config: Sizes.
        vocabulary: The tokens of the dataset.

    Attributes:
        records_passes: Whether decoding records its passes as CUDA graphs; so in a frozen model on
            a GPU.
    """

    def __init__(self, config: WorldModelConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        self.layout = vocabulary.layout
        self.records_passes = False
        dim = config.transformer.dim
        codes = (vocabulary.codebook_size, vocabulary.code_levels, dim)
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
        elif isinstance(state, ContinuousTokenizer):
            self.state_head = ContinuousHead(state, vocabulary.action, dim)
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

    # --- embedding --------------------------------------------------------------------------------

    def embed_action(self, action: Tensor) -> Tensor:
        """``(..., A)`` int64 → ``(..., D)``."""
        out: Tensor = self.action_embedding(action)
        return out

    def embed_state(self, state: Tensor | None) -> Tensor | None:
        """``(..., P)`` int64 → ``(..., D)``, or None if there is no state."""
        if self.state_embedding is None or state is None:
            return None
        out: Tensor = self.state_embedding(state)
        return out

    def condition(self, state: Tensor | None, action: Tensor) -> Tensor:
        """What is known before a step: embedded old state and action, ``(..., D)`` each."""
        return action if state is None else action + state

    def frame_hints(
        self, previous_frame: Tensor, condition: Tensor, new_state: Tensor | None
    ) -> Tensor:
        """Hints for the frame slots of a step.

        Args:
            previous_frame: ``(B, T, K)`` int64, tokens of the step before.
            condition: ``(B, T, D)`` from :meth:`condition`.
            new_state: ``(B, T, D)``, the embedded state of the step itself, or None.

        Returns:
            ``(B, T, K, D)``.
        """
        if self.new_state_map is not None and new_state is not None:
            condition = condition + apply_in_its_type(self.new_state_map, new_state)
        layout = self.layout
        place = self.slot_embedding[layout.first_frame_slot : layout.action_slot]
        out: Tensor = self.hints(previous_frame, place, condition)
        return out

    def embed(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Embed whole steps.

        Returns:
            The positions ``(B, T * L, D)``, and the hints ``(B, T, K, D)`` of the frame slots of
            the step after each.
        """
        action = self.embed_action(tokens.action)
        state = self.embed_state(tokens.state)
        sequence = interleave(self.layout, self.frame_embedding(tokens.frame), state, action)
        condition = self.condition(state, action)
        # The last step's hints are for a step that is not there; only its action slot reads one.
        next_state = None if state is None else state.roll(-1, dims=1)
        frame_hints = hints = self.frame_hints(tokens.frame, condition, next_state)
        if state is not None:
            hints = torch.cat([condition.unsqueeze(2), hints], dim=2)  # (B, T, J, D)
        slots = self.slot_embedding.repeat(tokens.frame.shape[1], 1)
        return sequence + slots + shift_to_inputs(self.layout, hints, self.no_hint), frame_hints

    # --- heads ------------------------------------------------------------------------------------

    def frame_logits(self, hidden: Tensor, previous: Tensor) -> Tensor:
        """Logits of frame tokens, with a learned bonus for the slot's token of the previous frame.

        A loss that gives changes the weight ``w`` teaches ``q(x) ∝ w(x) p(x)``. What it added is
        taken off again here, so these are the logits of ``p``, whatever the weight.

        Args:
            hidden: ``(..., D)``.
            previous: ``(...)`` int64, the token of the same slot one step before.

        Returns:
            ``(..., V)`` float32.
        """
        logits: Tensor = self.frame_head(hidden).float()
        bonus = self.copy_head(hidden).float() + math.log(self.config.changed_token_weight)
        return logits.scatter_add(-1, previous.unsqueeze(-1), bonus)

    def point_logits(self, logits: Tensor, previous: Tensor) -> Tensor:
        """What greedy decoding maximises: the ``q`` of :meth:`frame_logits`.

        Where a token will change, but to one of many values, staying is the single most likely
        outcome and mostly wrong; as a point forecast ``q`` is better. On held-out episodes of the
        Unitree G1, training with a weight of 3 and decoding ``q`` gained 1.8 dB over a weight of 1,
        on average over horizons 5 to 20.

        Args:
            logits: ``(..., V)`` from :meth:`frame_logits`.
            previous: ``(...)`` int64, as there.

        Returns:
            ``(..., V)`` float32.
        """
        place = previous.unsqueeze(-1)
        tilt = logits.new_full(place.shape, -math.log(self.config.changed_token_weight))
        return logits.scatter_add(-1, place, tilt)

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
        embedded, hints = self.embed(tokens)
        hidden = self.transformer(embedded.to(self.transformer.dtype), steps, mask)
        hidden = hidden.to(embedded.dtype)  # (B, T * L, D)
        predicting = predictors(self.layout, hidden)  # (B, T-1, J, D)
        first = self.layout.first_frame_slot
        state_logits = None
        if self.state_head is not None and tokens.state is not None:
            state_logits = self.state_head(
                predicting[:, :, 0], tokens.state[:, :-1], tokens.action[:, :-1]
            )
        previous = tokens.frame[:, :-1]
        outcome_hidden = hidden.unflatten(1, (num_steps, -1))[:, :, self.layout.action_slot]
        draft_logits = None
        if self.draft_head is not None:
            drafted = self.draft_head(outcome_hidden[:, :-1], hints[:, :-1])
            draft_logits = self.frame_logits(drafted, previous)
        return Predictions(
            self.frame_logits(predicting[:, :, first:], previous),
            state_logits,
            outcome_hidden,
            draft_logits,
        )

    def losses(
        self,
        tokens: Tokens,
        *,
        action_valid: Tensor,
        reward: Tensor | None,
        terminated: Tensor,
        step_valid: Tensor | None = None,
    ) -> Losses:
        """Losses of a batch.

        Args:
            tokens: Tokens of the batch.
            action_valid: ``(B, T)`` bool; the outcome of step ``t`` is counted where True.
            reward: ``(B, T)`` float32, or None if none was recorded.
            terminated: ``(B, T)`` bool.
            step_valid: ``(B, T)`` bool; step ``t`` is predicted from those before it where True,
                the first never. None: wherever the step before has a valid action.
        """
        if step_valid is None:
            step_valid = action_valid.roll(1, dims=1)
        return losses_of(
            self,
            self(tokens),
            tokens,
            step_valid=step_valid,
            action_valid=action_valid,
            reward=reward,
            terminated=terminated,
        )

    def frozen(self, dtype: torch.dtype = torch.float32) -> "WorldModel":
        """A copy for inference, the transformer in ``dtype``.

        It has no gradients, its tables are added up, its norms folded into linear maps and those
        packed (:mod:`tokenwm.transformer.packed`); on a GPU its passes are recorded. The draft head
        is in ``dtype`` too. Embeddings and the other heads stay in float32, maps of actions and
        everything about states are in float64 (see :func:`apply_in_its_type`).
        """
        model = copy.deepcopy(self).eval()
        for module in model.modules():
            if isinstance(module, (CodeTable, Layer)):
                module.fold()
            elif isinstance(module, ScalarEmbedding):
                module.layers.double()
        if model.new_state_map is not None:
            model.new_state_map.double()
        if model.state_head is not None:
            model.state_head.double()
        model.transformer.to(dtype)
        model.hints.mix.to(dtype)
        if model.draft_head is not None:
            model.draft_head.to(dtype)
        for module in model.modules():
            if isinstance(module, Attention):  # in float32 whatever the type
                module.fold()
        model.requires_grad_(False)
        pack_linear_maps(model)
        model.records_passes = model.slot_embedding.device.type == "cuda"
        return model

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
