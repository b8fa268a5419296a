"""The vocabulary: sizes and meanings of all tokens of a dataset.

Written by ``tokenwm tokenize``, obeyed by everything after it.
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.errors import TokenwmError
from tokenwm.sequence.layout import StepLayout
from tokenwm.tokenizer.actions import ScalarTokenizer, scalar_tokenizer_from_dict

logger = logging.getLogger(__name__)

OF_TRAINING_DATA = ("edges", "margin_bins", "still", "sizes")
"""Fields of the tokenizers of actions and states that follow from the training data's values."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Sizes and meanings of all tokens.

    Attributes:
        codebook_size: ``V``, ids of frame tokens are in [0, V).
        code_levels: Number of values of each digit of a code, if codes are numbers in a mixed base
            (FSQ); else empty.
        num_cameras: Cameras per step.
        grid: Rows and columns of tokens of one camera.
        action: Tokenizer of actions.
        state: Tokenizer of proprioception, or None if there is none.
        has_reward: Whether rewards were recorded.
        tokenizer_hash: Content hash of the frame tokenizer that made the tokens.
        reward_range: Smallest and largest reward of the training data, set when a world model is
            made for them. None in token shards, which hold rewards as numbers, and in models that
            were trained before this was known.
        actions_per_step: Actions of the robot that one action holds side by side.
    """

    codebook_size: int
    code_levels: tuple[int, ...]
    num_cameras: int
    grid: tuple[int, int]
    action: ScalarTokenizer
    state: ScalarTokenizer | None
    has_reward: bool
    tokenizer_hash: str
    reward_range: tuple[float, float] | None = None
    actions_per_step: int = 1

    def __post_init__(self) -> None:
        count, size = self.actions_per_step, self.action.num_dimensions
        if count < 1 or size % count:
            raise TokenwmError(
                f"actions_per_step is {count} for actions of {size} dimension(s); expected a "
                "whole part of them"
            )

    @property
    def tokens_per_frame(self) -> int:
        """``K``."""
        return self.num_cameras * self.grid[0] * self.grid[1]

    @property
    def layout(self) -> StepLayout:
        """The layout of a step."""
        return StepLayout(num_frame_tokens=self.tokens_per_frame, has_state=self.state is not None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        values = {
            "codebook_size": self.codebook_size,
            "code_levels": list(self.code_levels),
            "num_cameras": self.num_cameras,
            "grid": list(self.grid),
            "action": self.action.to_dict(),
            "state": None if self.state is None else self.state.to_dict(),
            "has_reward": self.has_reward,
            "tokenizer_hash": self.tokenizer_hash,
        }
        if self.reward_range is not None:
            values["reward_range"] = list(self.reward_range)
        if self.actions_per_step > 1:
            values["actions_per_step"] = self.actions_per_step
        return values

    def differences(
        self, other: "Vocabulary", apart_from: Collection[str] = ()
    ) -> dict[str, tuple[Any, Any]]:
        """Names of what tokens of two vocabularies mean otherwise → its value here and there.

        Args:
            other: The other one.
            apart_from: Names that do not count; ``bins`` are all that follows from the values in
                the training data and not from what they mean.
        """
        here, there = ({**vocabulary.to_dict(), "bins": {}} for vocabulary in (self, other))
        for values in (here, there):
            for name in ("action", "state"):
                scalar = dict(values[name] or {})
                bins = {key: scalar.pop(key) for key in OF_TRAINING_DATA if key in scalar}
                values[name], values["bins"][name] = scalar or None, bins
        return {
            name: (here.get(name), there.get(name))
            for name in {**here, **there}
            if name not in apart_from and here.get(name) != there.get(name)
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Vocabulary":
        """Inverse of :meth:`to_dict`.

        Raises:
            TokenwmError: A field is missing or of the wrong kind.
        """
        try:
            state = data["state"]
            return cls(
                codebook_size=int(data["codebook_size"]),
                code_levels=tuple(int(level) for level in data["code_levels"]),
                num_cameras=int(data["num_cameras"]),
                grid=(int(data["grid"][0]), int(data["grid"][1])),
                action=scalar_tokenizer_from_dict(data["action"]),
                state=None if state is None else scalar_tokenizer_from_dict(state),
                has_reward=bool(data["has_reward"]),
                tokenizer_hash=str(data["tokenizer_hash"]),
                reward_range=_range_of(data.get("reward_range")),
                actions_per_step=int(data.get("actions_per_step", 1)),
            )
        except TokenwmError:
            raise
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise TokenwmError(
                f"not a vocabulary: {error!r}; make token shards with 'tokenwm tokenize'"
            ) from error


def _range_of(ends: Any) -> tuple[float, float] | None:
    """Smallest and largest reward, as a file has them; bins are laid over them, in float32."""
    if ends is None:
        return None
    low, high = (float(end) for end in ends)
    most = float(np.finfo(np.float32).max)
    if not -most <= low <= high <= most:
        raise ValueError(f"reward_range is [{low}, {high}]; expected finite numbers that ascend")
    return low, high


def warn_of_rewards_outside(vocabulary: Vocabulary, reward: NDArray[Any], where: str) -> bool:
    """Warn of rewards outside the range of the training rewards; return True if there were any.

    Args:
        vocabulary: Vocabulary of the world model.
        reward: Recorded rewards, of any shape.
        where: Name of the recording, for the message.
    """
    if vocabulary.reward_range is None or reward.size == 0:
        return False
    low, high = vocabulary.reward_range
    if low <= reward.min() and reward.max() <= high:
        return False
    logger.warning(
        "rewards of %s are from %g to %g; those trained on were from %g to %g, and the world model "
        "expects no others: what lies outside counts as the nearer end in its loss",
        where,
        reward.min(),
        reward.max(),
        low,
        high,
    )
    return True
