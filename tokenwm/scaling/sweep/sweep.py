"""A sweep file: sizes, token budgets, learning rates and seeds, and the runs that follow from them.

The largest budget of a size is its *trunk*: warm-up, stable, decay. Smaller budgets begin from its
checkpoint of the last step that all lengths share
(:func:`~tokenwm.training.last_shared_step`) and only decay, which gives the very weights that a
run of its own would have given.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from tokenwm.data.shards.manifest import Manifest
from tokenwm.errors import SweepError, TokenwmError
from tokenwm.flops import FlopCount, world_model_flops
from tokenwm.scaling.quantities import number
from tokenwm.scaling.runs.runs import CHECKS_FOLDER, RUNS_FOLDER
from tokenwm.sequence.token_shards import read_vocabulary
from tokenwm.sequence.vocabulary import Vocabulary
from tokenwm.strict import build, dump_yaml, parse_yaml
from tokenwm.training import OptimizerConfig, last_shared_step
from tokenwm.transformer.model import TransformerConfig
from tokenwm.transformer.world_model import WorldModelConfig


@dataclass(frozen=True, kw_only=True)
class Training:
    """Training options that all runs of a sweep share.

    Attributes:
        num_steps: Steps of a training window.
        window: Steps that attention reaches back.
        batch_size: Windows per optimizer step, the same for all sizes.
        changed_token_weight: See :class:`~tokenwm.transformer.world_model.WorldModelConfig`. The
            held-out loss is unweighted whatever it is.
        dropout: See :class:`~tokenwm.transformer.model.TransformerConfig`.
        precision: Lightning's; the held-out loss is always measured in float32.
        warmup_steps: Warm-up steps of the schedule.
        decay_fraction: Share of a run that decays. Small shares save compute: that much of every
            budget is not shared.
        weight_decay: Weight decay of AdamW.
        num_val_windows: Windows of the val split that the held-out loss is measured on.
    """

    num_steps: int = 6
    window: int = 4
    batch_size: int = 16
    changed_token_weight: float = 1.0
    dropout: float = 0.0
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true"] = "32-true"
    warmup_steps: int = 50
    decay_fraction: float = 0.2
    weight_decay: float = 0.1
    num_val_windows: int = 1024

    def __post_init__(self) -> None:
        least = {"num_steps": 2, "window": 1, "batch_size": 1, "num_val_windows": 1}
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise SweepError(f"{name}={getattr(self, name)}; use at least {minimum}")
        self.optimizer(1.0)

    def optimizer(self, learning_rate: float) -> OptimizerConfig:
        """Optimizer of a run.

        Raises:
            TokenwmError: A value is out of range.
        """
        return OptimizerConfig(
            learning_rate=learning_rate,
            weight_decay=self.weight_decay,
            warmup_steps=self.warmup_steps,
            schedule="wsd",
            decay_fraction=self.decay_fraction,
        )


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model size and its runs.

    Attributes:
        name: Begins the names of its runs, for example ``n34k``.
        dim: Width.
        num_layers: Layers.
        num_heads: Attention heads.
        learning_rate: Peak learning rate of its runs.
        token_budgets: Predicted tokens of whole windows, ascending; each is a run, rounded to whole
            steps. A run's own count of tokens is lower by what is padding where windows hang over
            the ends of episodes, see :meth:`TokenData.filled`.
        check_learning_rates: Further rates, each a run with the first seed and the second smallest
            budget: much of the smallest is warm-up.
        seconds_per_step: Seconds of a training step, as planned; runs that take long start first,
            and the time that is left follows from it.
    """

    name: str
    dim: int
    num_layers: int
    num_heads: int
    learning_rate: float
    token_budgets: tuple[int, ...]
    check_learning_rates: tuple[float, ...] = ()
    seconds_per_step: float

    def __post_init__(self) -> None:
        if not self.name or not all(c.isalnum() or c in "._" for c in self.name):
            raise SweepError(f"name={self.name!r}; use letters, digits, '.' and '_'")
        budgets = self.token_budgets
        if not budgets or budgets[0] < 1 or list(budgets) != sorted(set(budgets)):
            raise SweepError(
                f"token_budgets={list(budgets)} of {self.name}; give positive numbers, ascending"
            )
        if min(self.learning_rate, self.seconds_per_step, *self.check_learning_rates) <= 0:
            raise SweepError(f"learning rates and seconds_per_step of {self.name} must be above 0")

    def model(self, training: Training) -> WorldModelConfig:
        """Sizes of the world model.

        Raises:
            TokenwmError: They do not fit together.
        """
        transformer = TransformerConfig(
            dim=self.dim,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            window=training.window,
            dropout=training.dropout,
        )
        return WorldModelConfig(
            transformer=transformer, changed_token_weight=training.changed_token_weight
        )

    def flops(self, training: Training, vocabulary: Vocabulary) -> FlopCount:
        """Parameters, and operations of one optimizer step."""
        return world_model_flops(
            self.model(training),
            vocabulary,
            num_steps=training.num_steps,
            batch_size=training.batch_size,
        )


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep file.

    Attributes:
        name: Name of the sweep.
        data: Folder of token shards; relative to where ``tokenwm`` runs.
        training: Options that all runs share.
        sizes: Model sizes.
        seeds: Each repeats all runs but the checks of learning rates, with other weights and
            another order of the data.
    """

    name: str
    data: str
    training: Training = Training()
    sizes: tuple[Size, ...]
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        names = [size.name for size in self.sizes]
        if not names or len(set(names)) < len(names):
            raise SweepError(f"sizes are named {names}; give at least one, each its own name")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise SweepError(f"seeds={list(self.seeds)}; give different numbers from 0")
        for size in self.sizes:
            size.model(self.training)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run of a sweep.

    Attributes:
        name: Its folder, relative to that of the sweep.
        size: The model.
        learning_rate: Peak learning rate.
        seed: Seed of weights, data order and dropout.
        max_steps: Optimizer steps in all, those of the trunk included.
        trunk: Name of the run that it begins from, if any.
        first_step: Step of the trunk that it begins from; 0 without.
        kept_steps: Steps at which other runs begin from this one.
    """

    name: str
    size: Size
    learning_rate: float
    seed: int
    max_steps: int
    trunk: str | None = None
    first_step: int = 0
    kept_steps: tuple[int, ...] = ()

    @property
    def is_check(self) -> bool:
        """True if it only checks the learning rate: no law is fitted to it."""
        return self.name.startswith(f"{CHECKS_FOLDER}/")

    @property
    def own_steps(self) -> int:
        """Optimizer steps that this run itself takes."""
        return self.max_steps - self.first_step


@dataclass(frozen=True, kw_only=True)
class TokenData:
    """Facts about the token shards of a sweep.

    Attributes:
        vocabulary: Their tokens.
        num_train_tokens: Different tokens of the train split that can be predicted. (Windows
            overlap: each is in several of them.)
        num_train_episodes: Episodes of that split.
    """

    vocabulary: Vocabulary
    num_train_tokens: int
    num_train_episodes: int = 0

    @classmethod
    def load(cls, folder: Path | str) -> "TokenData":
        """Read the manifest of token shards.

        Raises:
            TokenwmError: They are not there, hold frames, or have no train or val split.
        """
        manifest = Manifest.load(folder)
        vocabulary = read_vocabulary(manifest, str(folder))
        for split in ("train", "val"):
            if manifest.num_episodes(split) == 0:
                raise SweepError(f"{folder} has no {split} split; a sweep needs train and val")
        # The first step of an episode follows none, so it is not predicted.
        num_episodes = manifest.num_episodes("train")
        steps = manifest.num_steps("train") - num_episodes
        return cls(
            vocabulary=vocabulary,
            num_train_tokens=steps * vocabulary.layout.num_predicted,
            num_train_episodes=num_episodes,
        )

    def filled(self, num_steps: int) -> float:
        """Share of the predicted tokens of training windows that are no padding, in (0, 1].

        Windows of ``num_steps`` steps hang over the ends of their episodes.
        """
        steps = self.num_train_tokens / self.vocabulary.layout.num_predicted
        return steps / (steps + self.num_train_episodes * (num_steps - 1))


def load_sweep(path: Path | str) -> Sweep:
    """Read a sweep file, strictly.

    Raises:
        SweepError: It is not there or no YAML, or has an unknown key or an impossible value.
    """
    path = Path(path)
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
        sweep: Sweep = build(Sweep, values, allow_defaults=True)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SweepError(f"{path} cannot be read as a sweep file: {error}") from error
    except TokenwmError as error:
        raise SweepError(f"{path}: {error}") from error
    return sweep


def sweep_text(sweep: Sweep) -> str:
    """The sweep as YAML that :func:`load_sweep` reads."""
    return dump_yaml(dataclasses.asdict(sweep))


def runs_of(sweep: Sweep, vocabulary: Vocabulary) -> tuple[Run, ...]:
    """All runs of a sweep; a trunk comes before the runs that begin from it.

    Raises:
        SweepError: A budget is too small for the schedule, or two budgets are as many steps.
    """
    runs: list[Run] = []
    for size in sweep.sizes:
        per_step = sweep.training.batch_size * (sweep.training.num_steps - 1)
        per_step *= vocabulary.layout.num_predicted
        steps = [round(tokens / per_step) for tokens in size.token_budgets]
        if len(set(steps)) < len(steps):
            raise SweepError(
                f"token_budgets={list(size.token_budgets)} of {size.name} are {steps} steps of "
                f"{per_step} tokens; leave more than one step between two budgets"
            )
        for seed in sweep.seeds:
            runs += _family(sweep.training, size, steps, seed)
        checked = min(1, len(steps) - 1)
        for rate in size.check_learning_rates:
            name = f"{CHECKS_FOLDER}/{_name(size, checked, sweep.seeds[0])}_lr{rate:.3g}"
            runs.append(
                Run(
                    name=name,
                    size=size,
                    learning_rate=rate,
                    seed=sweep.seeds[0],
                    max_steps=steps[checked],
                )
            )
    names = [run.name for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise SweepError(f"two runs would be named {name}; their numbers are too near")
    return tuple(runs)


def _family(training: Training, size: Size, steps: Sequence[int], seed: int) -> list[Run]:
    """A trunk and the runs that begin from it."""
    optimizer = training.optimizer(size.learning_rate)
    try:
        shared = [last_shared_step(optimizer, count) for count in steps]
    except TokenwmError as error:
        raise SweepError(
            f"token_budgets={list(size.token_budgets)} of {size.name}: {error}; "
            "make them larger, or batch_size or warmup_steps smaller"
        ) from error
    trunk, *rest = (
        Run(
            name=f"{RUNS_FOLDER}/{_name(size, index, seed)}",
            size=size,
            learning_rate=size.learning_rate,
            seed=seed,
            max_steps=steps[index],
        )
        for index in reversed(range(len(steps)))
    )
    branches = [
        dataclasses.replace(run, trunk=trunk.name, first_step=first)
        for run, first in zip(rest, reversed(shared[:-1]), strict=True)
    ]
    return [dataclasses.replace(trunk, kept_steps=tuple(shared[:-1])), *branches]


def _name(size: Size, index: int, seed: int) -> str:
    return f"{size.name}_d{number(size.token_budgets[index])}_s{seed}"
