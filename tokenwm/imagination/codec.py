"""Frames, actions and states to the tokens of a world model, and back."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwm.checkpoint import LoadedWorldModel
from tokenwm.errors import TokenwmError
from tokenwm.imagination.context import Context, as_tensor, check_context, check_ids
from tokenwm.imagination.engine import Engine
from tokenwm.imagination.memory import within_pixel_memory
from tokenwm.imagination.pixels import chosen, decode_pixels, frozen_decoder
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.units import Units
from tokenwm.sequence.tokens import Tokens
from tokenwm.sequence.vocabulary import Vocabulary
from tokenwm.shapes import check_shape, check_type
from tokenwm.tokenizer.actions import BinTokenizer
from tokenwm.tokenizer.frames import FrameTokenizer
from tokenwm.transformer.frozen import freeze

Array = TypeVar("Array", NDArray[Any], Tensor)


class Codec(Engine):
    """A world model with its tokenizers: what is observed becomes tokens, and tokens pictures.

    Args:
        loaded: Contents of a checkpoint folder.
        dtype: In which the transformer and the decoder of frames compute.

    Attributes:
        tokenizer: Frame tokenizer.
        units: Encodes and decodes actions and states.
        vocabulary: Sizes and meanings of all tokens.
        control_rate: Steps per second, Hz.
        cameras: Names of the cameras, in order.
        provenance: Origin of model and data.
        tokenizer_provenance: Origin of the tokenizer, with its last figures.
        folder: The checkpoint folder; None if it was not loaded from one.
    """

    def __init__(self, loaded: LoadedWorldModel, dtype: torch.dtype) -> None:
        super().__init__(freeze(loaded.world_model, dtype))
        self.tokenizer: FrameTokenizer = loaded.tokenizer
        self._decoder = frozen_decoder(loaded.tokenizer, dtype)
        self.units = Units(self.world_model)
        self.vocabulary: Vocabulary = loaded.world_model.vocabulary
        self.control_rate = loaded.control_rate
        self.cameras = loaded.cameras
        self.provenance: Mapping[str, Any] = loaded.provenance
        self.tokenizer_provenance: Mapping[str, Any] = loaded.tokenizer_provenance
        self.folder = loaded.folder

    @torch.inference_mode()
    def context(
        self,
        frames: NDArray[np.uint8] | Tensor,
        actions: NDArray[Any] | Tensor,
        states: NDArray[Any] | Tensor | None = None,
        *,
        previous: Tensor | None = None,
    ) -> Context:
        """Tokenize observed steps.

        Encoding begins at the first of them, so keep what was observed as tokens while an episode
        goes on (:meth:`observe`, or ``previous``): see :meth:`FrameTokenizer.encode_sequence`.

        Args:
            frames: ``(B, C, cameras, H, W, 3)`` uint8 in [0, 255].
            actions: ``(B, C - 1, A)`` or ``(B, C, A)`` in the units of the data; the action at the
                last step, which is still to be chosen, is not read.
            states: ``(B, C, state_dim)`` in the units of the data; needed if the model has a state.
            previous: ``(B, K)`` int64, frame tokens of the step before the first; None if there is
                none, or if it is not known.

        Raises:
            TokenwmError: There is no row or no step, a shape or type does not fit, the state is
                missing, or a value is not finite.
        """
        frames = as_tensor("frames", frames)
        tokenizer, vocabulary = self.tokenizer, self.vocabulary
        sizes = check_shape(
            "frames", frames, ("B", "C", tokenizer.num_cameras, *tokenizer.image_size, 3)
        )
        num_steps = sizes["C"]
        if sizes["B"] < 1 or num_steps < 1:
            raise TokenwmError(
                f"frames has shape {tuple(frames.shape)}; at least one row of one step is needed"
            )
        if (states is None) != (vocabulary.state is None):
            wanted = "needs" if vocabulary.state is not None else "does not take"
            raise TokenwmError(
                f"the model {wanted} a state; give "
                f"states={'(B, C, state_dim)' if states is None else None}"
            )
        action_tokens = torch.zeros(
            (sizes["B"], num_steps, vocabulary.action.num_dimensions),
            dtype=torch.int64,
            device=self.device,
        )
        past = as_tensor("actions", actions)
        if past.ndim == 3 and past.shape[1] == num_steps:
            past = past[:, :-1]
        check_shape("actions", past, (sizes["B"], num_steps - 1, vocabulary.action.num_dimensions))
        action_tokens[:, :-1] = self.encode_actions(past)
        state_tokens = last_state = None
        if states is not None and vocabulary.state is not None:
            known = as_tensor("states", states)
            check_shape("states", known, (sizes["B"], num_steps, vocabulary.state.num_dimensions))
            state_tokens = self.units.encode_states(known)
            if isinstance(vocabulary.state, BinTokenizer):
                last_state = known[:, -1].detach().to(self.device, torch.float32, copy=True)
        if previous is not None:
            check_ids("previous", previous, vocabulary.codebook_size)
        encoded = within_pixel_memory(
            tokenizer, self.free_memory, lambda: tokenizer.encode_sequence(frames, previous)
        )
        tokens = Tokens(encoded, state_tokens, action_tokens)
        # Copies: a part of it would keep all frames, and change with what the caller does to them.
        anchor = frames[:, -1].to(self.device, copy=True)
        return Context(tokens=tokens, anchor=anchor, state=last_state)

    def checked(self, context: Context) -> Context:
        """A context, perhaps made by hand, on the model's device.

        Raises:
            TokenwmError: It does not fit the model, see :func:`check_context`.
        """
        check_context(self.vocabulary, context, self.tokenizer.frame_shape)
        return context.to(self.device)

    def encode_actions(self, actions: NDArray[Any] | Tensor) -> Tensor:
        """``(B, H, A)`` in the units of the data → the same shape, int64 tokens on the device.

        Values beyond all bins count as the nearest; the first time that one lies outside the range
        of the training data it is logged as a warning. A tensor on a GPU is binned there, to the
        same tokens but without warning, and unchecked, see :class:`DeviceEncoder`: nothing waits
        for the device.

        Raises:
            TokenwmError: A value is not finite, or a discrete id is out of range, or actions of the
                robot are given to a model of action chunks, see :meth:`stack_actions`.
        """
        count, shape = self.actions_per_step, tuple(getattr(actions, "shape", ()))
        if count > 1 and shape[-1:] == (self.vocabulary.action.num_dimensions // count,):
            raise TokenwmError(
                f"actions has shape {shape}, and one step of the model holds {count} of them; "
                "give model.stack_actions(actions)"
            )
        return self.units.encode_actions(actions)

    @property
    def actions_per_step(self) -> int:
        """``n``, actions of the robot that one action of the model holds; see docs/data.md."""
        return self.vocabulary.actions_per_step

    def stack_actions(self, actions: Array) -> Array:
        """``(..., H * n, dims)`` actions of the robot → ``(..., H, n * dims)``, one for each step.

        Raises:
            TokenwmError: They are not those of whole steps, or of another robot.
        """
        count, size = self.actions_per_step, self.vocabulary.action.num_dimensions
        rows, width = actions.shape[-2:] if actions.ndim > 1 else (0, 0)
        if width * count != size or rows % count:
            raise TokenwmError(
                f"actions has shape {tuple(actions.shape)}; expected (..., H * {count}, "
                f"{size // count}): {count} action(s) of the robot for each step"
            )
        return actions.reshape(*actions.shape[:-2], rows // count, size)

    def unstack_actions(self, actions: Array) -> Array:
        """``(..., H, A)`` actions of the model → ``(..., H * n, dims)``, inverse of stacking.

        Raises:
            TokenwmError: They have another number of dimensions.
        """
        count, size = self.actions_per_step, self.vocabulary.action.num_dimensions
        if actions.ndim < 2 or actions.shape[-1] != size:
            raise TokenwmError(
                f"actions has shape {tuple(actions.shape)}; expected (..., H, {size})"
            )
        rows = actions.shape[-2] * count
        return actions.reshape(*actions.shape[:-2], rows, size // count)

    def decode_actions(self, tokens: Tensor) -> NDArray[Any]:
        """``(..., A)`` tokens → the units of the data, see :meth:`Units.decode_actions`."""
        return self.units.decode_actions(tokens)

    def decode_states(self, tokens: Tensor) -> NDArray[Any]:
        """``(..., P)`` tokens → the units of the data, see :meth:`Units.decode_states`."""
        return self.units.decode_states(tokens)

    @torch.inference_mode()
    def decode_frames(
        self,
        rollout: Rollout,
        *,
        rows: Sequence[int] | None = None,
        steps: Sequence[int] | None = None,
        use_anchor: bool = True,
    ) -> Tensor:
        """Pixels of a rollout, only when somebody looks.

        As many frames are decoded at a time as fit into ``tokenizer.pixel_memory``, bytes.

        Args:
            rollout: From :meth:`imagine`.
            rows: Numbers of its rows, in [0, B) or from the end; None for all.
            steps: Numbers of their steps, in [0, H) or from the end; None for all.
            use_anchor: Keep what the tokenizer lost from the last observed frame wherever the
                decoded picture has not changed since (see :mod:`tokenwm.imagination.pixels`).

        Returns:
            ``(B, H, cameras, height, width, 3)`` uint8 in [0, 255], ``B`` and ``H`` as many as were
            chosen, in that order.

        Raises:
            TokenwmError: There is no such row or step.
        """
        check_type("rollout", rollout, Rollout)
        num_rows, num_steps = rollout.frame_tokens.shape[:2]
        row = chosen("rows", rows, num_rows)
        tokens = rollout.frame_tokens[row][:, chosen("steps", steps, num_steps)]
        context = rollout.context
        anchor = context.anchor if use_anchor else None
        starts = rollout.context_rows[row]
        return self.decode_tokens(tokens, context.tokens.frame[:, -1], anchor, starts)

    @torch.inference_mode()
    def decode_tokens(
        self,
        tokens: Tensor,
        anchor_tokens: Tensor | None = None,
        anchor: Tensor | None = None,
        anchor_rows: Tensor | None = None,
    ) -> Tensor:
        """Pixels of ``(B, H, K)`` tokens; see :func:`tokenwm.imagination.pixels.decode_pixels`."""
        check_ids("tokens", tokens, self.vocabulary.codebook_size)
        check_shape("tokens", tokens, ("B", "H", self.vocabulary.tokens_per_frame))
        return within_pixel_memory(
            self.tokenizer,
            self.free_memory,
            lambda: decode_pixels(
                self.tokenizer, tokens, anchor_tokens, anchor, self._decoder, anchor_rows
            ),
        )
