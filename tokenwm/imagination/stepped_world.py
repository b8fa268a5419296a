"""A world model as a :class:`~tokenwm.imagination.world.World`: what can be done to its states.

From :meth:`SteppedWorld.start` on everything stays on the device.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwm.checkpoint import LoadedWorldModel
from tokenwm.errors import TokenwmError
from tokenwm.imagination.context import Context, as_tensor, check_ids, noise_of
from tokenwm.imagination.decode import observe_step, prefill
from tokenwm.imagination.features import Features
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.sampling import SamplingConfig, check_sampling
from tokenwm.imagination.state import DecodedSteps
from tokenwm.imagination.world import Observation
from tokenwm.imagination.world_state import WorldState
from tokenwm.sequence.tokens import Tokens
from tokenwm.shapes import check_shape, check_type
from tokenwm.transformer.world_model import WorldModel


class SteppedWorld(Features):
    """A world model whose states can be rolled on, observed on, forked, selected and kept.

    Args:
        loaded: Contents of a checkpoint folder.
        dtype: In which the transformer and the decoder of frames compute.

    Attributes:
        fingerprint: Tells its states from those of other models.
        doubt: Estimates how little the model knows, from features ``(N, E)`` and the actions taken
            there ``(N, A)`` to ``(N,)``; every rollout then has it. None by default; see
            :class:`~tokenwm.heads.doubt.Doubt`.
    """

    doubt: Callable[[Tensor, Tensor], Tensor] | None = None

    def __init__(self, loaded: LoadedWorldModel, dtype: torch.dtype) -> None:
        super().__init__(loaded, dtype)
        self.fingerprint = _fingerprint(self.world_model, dtype)

    @torch.inference_mode()
    def start(
        self,
        context: Context,
        *,
        seed: int | Tensor = 0,
        noise_streams: int | Tensor | None = None,
    ) -> WorldState:
        """Read a context; the result waits for the first action. See :func:`decode.prefill`.

        Args:
            context: Observed steps to start from.
            seed: As in :meth:`imagine`.
            noise_streams: The same.

        Raises:
            TokenwmError: The context does not fit the model, or seed or streams are no whole
                numbers or not as many as rows.
        """
        return self.start_rows(self.checked(context), seed=seed, noise_streams=noise_streams)

    def start_rows(
        self,
        context: Context,
        rows: Tensor | None = None,
        *,
        seed: int | Tensor = 0,
        noise_streams: int | Tensor | None = None,
        first_step: Tensor | None = None,
    ) -> WorldState:
        """:meth:`start` from some rows of a checked context, ``(n,)`` int64, at a numbered step.

        Predictions do not depend on ``first_step``, the number of the first observed step; noise
        does.
        """
        if rows is None:
            rows = torch.arange(len(context.tokens.frame), device=self.device)
        seeds, streams = noise_of(seed, noise_streams, len(rows), self.device)
        known = None if context.state is None else context.state[rows]
        values = self.units.state_values(known)
        tokens = context.tokens.rows(rows)
        decoding = prefill(self.world_model, tokens, state_values=values, first_step=first_step)
        decoding = replace(decoding, seeds=seeds, noise_streams=streams)
        return WorldState(
            decoding=decoding, context=context, context_rows=rows, model=self.fingerprint
        )

    @torch.inference_mode()
    def observe(
        self, state: WorldState, actions: NDArray[Any] | Tensor, observed: Observation
    ) -> tuple[WorldState, Tensor]:
        """Append what really happened, see :meth:`World.observe`.

        The result is what :meth:`start` makes of the whole history, also past the window. Frames
        and states that are on a GPU stay there and are not looked at.

        Args:
            state: The state before; it is used up.
            actions: ``(B, A)`` in the units of the data, what was done.
            observed: The step that followed; anchor of the pixels from now on.

        Returns:
            The state after, and how surprised the model is by the frames, ``(B,)`` float32, nats
            per token; :meth:`score` of the last step.

        Raises:
            TokenwmError: The state was used, or of another model; a shape or type does not fit, or
                the state of the observation is missing.
        """
        self.check_state(state)
        check_type("observed", observed, Observation)
        action = self.encode_actions(actions)
        check_shape("actions", action, (state.num_rows, self.vocabulary.action.num_dimensions))
        states = None if observed.state is None else as_tensor("observed.state", observed.state)
        frames = as_tensor("observed.frames", observed.frames)
        check_shape("observed.frames", frames, (state.num_rows, *self.tokenizer.frame_shape))
        before = state.context.rows(state.context_rows)
        step = self.context(
            frames[:, None],
            action.new_zeros((len(action), 0, action.shape[1])),
            None if states is None else states[:, None],
            previous=before.tokens.frame[:, -1],
        )
        new = step.tokens
        decoding, surprise = observe_step(
            self.world_model,
            state.decoding,
            action,
            new.frame[:, 0],
            None if new.state is None else new.state[:, 0],
            self.units.state_values(step.state),
        )
        taken = torch.cat([before.tokens.action[:, :-1], action[:, None]], dim=1)
        tokens = Tokens.cat([before.tokens._replace(action=taken), new], dim=1)
        window = self.world_model.config.transformer.window
        context = replace(
            before,
            tokens=tokens.steps(slice(-window, None)),
            anchor=step.anchor,
            state=step.state,
        )
        rows = torch.arange(state.num_rows, device=self.device)
        return replace(state, decoding=decoding, context=context, context_rows=rows), surprise

    @torch.inference_mode()
    def fork(
        self,
        state: WorldState,
        num_copies: int,
        num_steps: int,
        *,
        noise_streams: int | Tensor | None = None,
    ) -> WorldState:
        """Continue every row in several ways, see :meth:`World.fork`; the past is read once.

        ``noise_streams=0`` gives all of them the same luck.

        Raises:
            TokenwmError: The state was used, is of another model or a fork itself (select rows of
                it instead), or a number is none.
        """
        self.check_state(state)
        forked = state.fork(num_copies, num_steps)
        _, streams = noise_of(0, noise_streams, forked.num_rows, self.device)
        return replace(forked, decoding=replace(forked.decoding, noise_streams=streams))

    @torch.inference_mode()
    def try_out(
        self,
        state: WorldState,
        actions: NDArray[Any] | Tensor,
        sampling: SamplingConfig | None = None,
        *,
        noise_streams: int | Tensor | None = None,
    ) -> Rollout:
        """Take ``H`` actions in every copy of a state, and let go of the copies.

        The rollout is that of :meth:`fork` and :meth:`roll`. The memory of the copies, and the CUDA
        graphs on it, serve the next call of the same sizes.

        Args:
            state: ``B`` rows; it is not used up.
            actions: ``(B * n, H, A)`` in the units of the data, ``n`` of every row, neighbours.
            sampling: Settings for drawing outcomes.
            noise_streams: As in :meth:`start`, of the ``B * n`` rows.

        Raises:
            TokenwmError: See :meth:`fork` and :meth:`roll`.
        """
        self.check_state(state)
        given = check_shape("actions", as_tensor("actions", actions), ("B", "H", "A"))
        num_rows, num_steps = given["B"], given["H"]
        sizes, past = (num_rows, num_steps), state.decoding.cache
        spare = self._spare_caches.pop(sizes, None)
        decoding = state.decoding.fork(
            max(1, num_rows // state.num_rows),
            num_steps,
            spare if spare is not None and spare.past is past else None,
        )
        _, streams = noise_of(0, noise_streams, len(decoding.frame_tokens), self.device)
        rows = state.context_rows.repeat_interleave(num_rows // state.num_rows)
        copies = replace(
            state, decoding=replace(decoding, noise_streams=streams), context_rows=rows
        )
        _, rollout = self.roll(copies, actions, sampling)
        decoding.cache.let_go()
        self._keep_spare(sizes, decoding.cache)
        return rollout

    def select(self, state: WorldState, rows: Tensor) -> WorldState:
        """Copy some rows, also of a fork, repeats allowed; see :meth:`World.select`.

        Rows of a fork share the past as long as it began at one row; else each row takes a copy of
        its past along, of as much memory as a context of its own.

        Raises:
            TokenwmError: The state was used or is of another model; rows are no numbers or, not on
                a GPU, out of range.
        """
        self.check_state(state)
        return state.take_rows(rows)

    def snapshot(self, state: WorldState) -> WorldState:
        """Copy a state to go back to, see :meth:`World.snapshot`.

        Raises:
            TokenwmError: The state was used or is of another model.
        """
        self.check_state(state)
        return state.snapshot()

    @torch.inference_mode()
    def features(self, state: WorldState) -> Tensor:
        """``(B, K * code_dim + P)`` float32: codes of the frame, then the state.

        States are in [-1, 1] within the range of the training data.

        Raises:
            TokenwmError: The state is of another model.
        """
        self.check_state(state, may_be_used=True)
        return self.features_of_tokens(state.frame_tokens, state.state_tokens)

    def state_of(self, state: WorldState) -> Tensor | None:
        """``(B, state_dim)`` float32, the robot's state at a step, in the units of the data."""
        decoding = state.decoding
        return self.units.state_of(decoding.state_tokens, decoding.state_values)

    @torch.inference_mode()
    def roll(
        self,
        state: WorldState,
        actions: NDArray[Any] | Tensor,
        sampling: SamplingConfig | None = None,
    ) -> tuple[WorldState, Rollout]:
        """Take ``H`` actions, see :meth:`World.roll`. Tensors on a GPU never leave it.

        Raises:
            TokenwmError: The state was used, is of another model or has room for fewer steps, or
                the actions do not fit.
        """
        self.check_state(state)
        tokens = self.encode_actions(actions)
        return self._roll(state, tokens, sampling, self.units.as_actions(actions))

    def step(
        self,
        state: WorldState,
        actions: NDArray[Any] | Tensor,
        sampling: SamplingConfig | None = None,
    ) -> tuple[WorldState, Rollout]:
        """Take one action, ``(B, A)`` in the units of the data: a rollout of one step.

        Raises:
            TokenwmError: See :meth:`roll`.
        """
        actions = as_tensor("actions", actions)
        num_actions = self.vocabulary.action.num_dimensions
        check_type("state", state, WorldState)
        check_shape("actions", actions, (state.num_rows, num_actions))
        return self.roll(state, actions[:, None], sampling)

    @torch.inference_mode()
    def step_tokens(
        self, state: WorldState, action_tokens: Tensor, sampling: SamplingConfig | None = None
    ) -> tuple[WorldState, Rollout]:
        """Take one action, ``(B, A)`` int64 tokens: a rollout of one step.

        Raises:
            TokenwmError: The state was used or is of another model, or the tokens are not
                ``(B, A)`` int64 or, on a CPU, out of range; on a GPU nobody waits to look.
        """
        self.check_state(state)
        action = self.vocabulary.action
        check_ids("action_tokens", action_tokens, action.num_values)
        check_shape("action_tokens", action_tokens, (state.num_rows, action.num_dimensions))
        tokens = action_tokens.to(self.device)[:, None]
        return self._roll(state, tokens, sampling, self.units.actions_of(tokens))

    def _roll(
        self, state: WorldState, tokens: Tensor, sampling: SamplingConfig | None, actions: Tensor
    ) -> tuple[WorldState, Rollout]:
        check_sampling(sampling)
        shape = (state.num_rows, "H", self.vocabulary.action.num_dimensions)
        if check_shape("actions", tokens, shape)["H"] < 1:
            raise TokenwmError("actions has no step; at least one action is needed to imagine")
        before = None if self.doubt is None else self.features(state)
        decoding, decoded = self._decode(state.decoding, tokens, sampling)
        rollout = self._rollout(state.context, state.context_rows, actions, decoded, before)
        return replace(state, decoding=decoding), rollout

    def check_state(self, state: WorldState, *, may_be_used: bool = False) -> None:
        """Check that a state is of this model and can be gone on from. Waits for no device.

        Raises:
            TokenwmError: It is not.
        """
        check_type("state", state, WorldState)
        if state.model != self.fingerprint:
            raise TokenwmError(
                "this state is of another model, whose numbers mean something else; start one with "
                "the model that is to go on from it: model.start(context)"
            )
        if not may_be_used:
            state.decoding.check_current()

    def _rollout(
        self,
        context: Context,
        rows: Tensor,
        actions: Tensor,
        decoded: DecodedSteps,
        before: Tensor | None = None,
    ) -> Rollout:
        """The record of decoded steps; ``before`` are features of where they began, ``(B, E)``."""
        named = decoded._asdict()
        state = self.units.state_of(decoded.state_tokens, named.pop("state_values"))
        rollout = Rollout(state=state, **named, actions=actions, context=context, context_rows=rows)
        return rollout if self.doubt is None else self.with_doubt(rollout, self.doubt, before)


def _fingerprint(world_model: WorldModel, dtype: torch.dtype) -> str:
    """A mark of a trained model: its tokenizer, its type, and some of its weights."""
    weights = world_model.slot_embedding.detach().float().cpu().numpy().tobytes()
    marks = f"{world_model.vocabulary.tokenizer_hash} {dtype}".encode()
    return hashlib.sha256(marks + weights).hexdigest()[:16]
