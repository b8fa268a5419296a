"""Settings of an evaluation."""

from collections.abc import Callable
from dataclasses import dataclass, field

from tokenwm.errors import TokenwmError
from tokenwm.imagination.sampling import SamplingConfig

ProgressCallback = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and what is being done."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Settings of an evaluation.

    Attributes:
        split: ``test``, ``val`` or ``train``; ``val`` is taken where there is no ``test``.
        num_context_frames: ``C``, observed frames before imagining.
        imagination_horizon: ``H``, imagined steps.
        num_starts: Starts per episode, evenly spaced.
        batch_size: Futures imagined at once; bounds the memory.
        sampling: Greedy by default: PSNR rewards one best guess, and a sample adds its own
            variance.
        seed: Seed of noise and of shuffled actions.
        max_episodes: Measure only that many episodes, evenly spread; None for all.
        num_examples: Starts whose pictures are kept for the report.
        readout: Read the task state off frames, where the dataset has one; the first time on a
            model it takes the training of a small network.
        lpips: Also take the LPIPS distance of every picture; it needs the package and its weights.
    """

    split: str = "test"
    num_context_frames: int = 4
    imagination_horizon: int = 20
    num_starts: int = 4
    batch_size: int = 32
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.0))
    seed: int = 0
    max_episodes: int | None = None
    num_examples: int = 4
    readout: bool = True
    lpips: bool = False

    def __post_init__(self) -> None:
        names = ("num_context_frames", "imagination_horizon", "num_starts", "batch_size")
        minimum = dict.fromkeys((*names, "max_episodes"), 1) | {"num_examples": 0, "seed": 0}
        for name, least in minimum.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise TokenwmError(f"{name}={value}; use at least {least}")
