"""Features of steps: what policies, distances and other heads see of a token world model."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from tokenwm.imagination.codec import Codec
from tokenwm.imagination.context import as_tensor
from tokenwm.imagination.decode import codes_of_frames
from tokenwm.imagination.rollout import Rollout
from tokenwm.sequence.tokens import Tokens
from tokenwm.shapes import check_shape, check_type
from tokenwm.tokenizer.frames import slices

ROWS_AT_ONCE = 64
"""Rows that are read again at a time."""


class Features(Codec):
    """A world model whose steps have features: codes of the frame, then the state."""

    @torch.inference_mode()
    def features_of(self, rollout: Rollout) -> Tensor:
        """``(B, H, E)`` float32, what :meth:`World.features` gives of the states on the way.

        Raises:
            TokenwmError: It is no rollout.
        """
        check_type("rollout", rollout, Rollout)
        return self.features_of_tokens(rollout.frame_tokens, rollout.state_tokens)

    @torch.inference_mode()
    def expected_codes_of(self, rollout: Rollout) -> Tensor:
        """``(B, H, F)`` float32, the codes that each frame was expected to have.

        Each is the mean of what the model took for possible, given what it had imagined before;
        :meth:`features_of` begins with those of what it drew. One more pass over all steps.

        Raises:
            TokenwmError: It is no rollout.
        """
        check_type("rollout", rollout, Rollout)
        before = rollout.context.tokens
        num_steps = rollout.frame_tokens.shape[1]
        every = torch.arange(self.tokenizer.codebook_size, device=self.device)
        values = self.tokenizer.quantizer.codes_of(every[None])[0].float()
        parts = []
        for part in slices(len(rollout.frame_tokens), ROWS_AT_ONCE):
            rows = rollout.rows(part)
            taken = self.encode_actions(rows.actions)
            after = Tokens(rows.frame_tokens, rows.state_tokens, taken.roll(-1, dims=1))
            seen = before.rows(rows.context_rows)
            action = torch.cat([seen.action[:, :-1], taken[:, :1]], dim=1)
            tokens = Tokens.cat([seen._replace(action=action), after], dim=1)
            following = list(codes_of_frames(self.world_model, tokens))[-num_steps:]
            codes = torch.stack([codes.expected(values) for codes in following], dim=1)
            parts.append(codes.flatten(2))  # (B, H, K * code_dim)
        return torch.cat(parts)

    @torch.inference_mode()
    def with_doubt(
        self,
        rollout: Rollout,
        doubt: Callable[[Tensor, Tensor], Tensor],
        before: Tensor | None = None,
    ) -> Rollout:
        """Fill in an estimate of the doubt at every step of a rollout.

        Args:
            rollout: ``B`` futures of ``H`` steps.
            doubt: From features ``(N, E)`` and actions taken there ``(N, A)`` to ``(N,)``.
            before: ``(B, E)``, features of where the rollout began; None: at its context's end.
        """
        check_type("rollout", rollout, Rollout)
        if before is None:
            tokens = rollout.context.tokens
            state = None if tokens.state is None else tokens.state[:, -1]
            before = self.features_of_tokens(tokens.frame[:, -1], state)[rollout.context_rows]
        after = self.features_of(rollout.steps(slice(-1)))
        features = torch.cat([before[:, None], after], dim=1)
        doubts = doubt(features.flatten(0, 1), rollout.actions.flatten(0, 1))
        return replace(rollout, doubt=doubts.reshape(features.shape[:2]))

    @torch.inference_mode()
    def goal_features(self, goal: NDArray[np.uint8] | Tensor) -> Tensor:
        """Features of pictures of goals: codes, each frame on its own, and NaN for the state.

        Nobody knows the robot's state in a picture, and NaN keeps it from being mistaken for one.
        Heads that take a goal read the codes only.

        Args:
            goal: ``(B, cameras, H, W, 3)`` uint8 in [0, 255]; one goal without ``B``, and one
                camera without its axis.

        Returns:
            ``(B, E)`` float32, as wide as :meth:`World.features`.

        Raises:
            TokenwmError: They are no such pictures.
        """
        picture = as_tensor("goal", goal)
        picture = picture[(None,) * max(0, 5 - picture.ndim)]
        check_shape("goal", picture, ("B", *self.tokenizer.frame_shape))
        codes = self.features_of_tokens(self.tokenizer.encode_frames(picture), None)
        return pad(codes, (0, self.num_features - codes.shape[1]), value=torch.nan)

    def features_of_tokens(self, frame: Tensor, state: Tensor | None) -> Tensor:
        """``(..., K)`` frame and ``(..., P)`` state tokens → ``(..., E)`` float32.

        Codes of the frame; then, if there is one, the state in [-1, 1] within the range of the
        training data.
        """
        codes = self.tokenizer.quantizer.codes_of(frame.reshape(-1, frame.shape[-1]))
        parts = [codes.reshape(*frame.shape[:-1], self.num_codes).float()]
        bins = self.vocabulary.state
        if bins is not None and state is not None:
            margin = getattr(bins, "margin_bins", 0)
            inner = state - margin + 0.5
            parts.append(2.0 * inner / (bins.num_values - 2 * margin) - 1.0)
        return torch.cat(parts, dim=-1)

    @property
    def num_codes(self) -> int:
        """``F``, numbers of :meth:`World.features` that are codes of the frame: the first."""
        return self.vocabulary.tokens_per_frame * self.tokenizer.quantizer.code_dim

    @property
    def num_features(self) -> int:
        """``E`` of :meth:`World.features`."""
        bins = self.vocabulary.state
        return self.num_codes + (0 if bins is None else bins.num_dimensions)

    @property
    def code_grid(self) -> tuple[int, int, int, int]:
        """Cameras, rows, columns and numbers of a code: the shape of those codes."""
        vocabulary = self.vocabulary
        return (vocabulary.num_cameras, *vocabulary.grid, self.tokenizer.quantizer.code_dim)
