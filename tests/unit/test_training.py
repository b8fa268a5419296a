"""What both stages share: schedule, parameter groups, exact resumption."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from tests.small_models import VOCABULARIES, small_tokenizer, small_world_model
from tokenwm.errors import CheckpointError, TokenwmError
from tokenwm.training import (
    OptimizerConfig,
    TrainingModule,
    last_shared_step,
    learning_rate_factor,
    parameter_groups,
)

configs = st.builds(
    OptimizerConfig,
    warmup_steps=st.integers(0, 50),
    schedule=st.sampled_from(["cosine", "wsd"]),
    decay_fraction=st.floats(0.01, 1.0),
    final_fraction=st.floats(0.0, 1.0),
)


@given(config=configs, num_steps=st.integers(1, 200))
def test_the_factor_rises_then_falls_and_stays_between_0_and_1(
    config: OptimizerConfig, num_steps: int
) -> None:
    factors = [learning_rate_factor(config, step, num_steps) for step in range(num_steps + 20)]
    assert 0.0 <= min(factors) <= max(factors) <= 1.0 + 1e-12
    warmup, rest = factors[: config.warmup_steps], factors[config.warmup_steps :]
    assert all(a < b for a, b in zip(warmup, warmup[1:], strict=False))
    assert all(a >= b - 1e-12 for a, b in zip(rest, rest[1:], strict=False))
    if num_steps > config.warmup_steps:
        assert factors[num_steps:] == [pytest.approx(config.final_fraction)] * 20
        assert factors[config.warmup_steps] == pytest.approx(1.0)


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_the_factor_at_its_landmarks(schedule: Any) -> None:
    config = OptimizerConfig(
        warmup_steps=10, schedule=schedule, decay_fraction=0.25, final_fraction=0.1
    )
    at = {step: learning_rate_factor(config, step, 110) for step in range(130)}
    assert at[0] == pytest.approx(0.1)
    assert at[4] == pytest.approx(0.5)
    assert at[9] == at[10] == pytest.approx(1.0)
    assert at[110] == at[129] == pytest.approx(0.1)
    middle, late = (0.55, 0.1 + 0.9 * 0.5 * (1 + 2**-0.5 * -1)) if schedule == "cosine" else (1, 1)
    assert at[60] == pytest.approx(middle)
    assert at[85] == pytest.approx(late)
    if schedule == "wsd":
        assert at[97] == pytest.approx(0.1 + 0.9 * 13 / 25)


@given(
    warmup=st.integers(0, 30),
    share=st.floats(0.01, 0.95),
    num_steps=st.integers(40, 5000),
    longer=st.integers(0, 3000),
)
def test_up_to_the_last_shared_step_runs_of_all_lengths_are_the_same(
    warmup: int, share: float, num_steps: int, longer: int
) -> None:
    config = OptimizerConfig(warmup_steps=warmup, schedule="wsd", decay_fraction=share)
    try:
        shared = last_shared_step(config, num_steps)
    except TokenwmError:
        assert (1 - share) * (num_steps - warmup) < 2
        return
    for step in range(shared + 1):
        factor = learning_rate_factor(config, step, num_steps)
        assert factor == learning_rate_factor(config, step, num_steps + longer)
    assert learning_rate_factor(config, shared + 2, num_steps) < 1.0


@pytest.mark.parametrize(
    ("change", "num_steps", "message"),
    [
        ({"schedule": "cosine"}, 100, "depends on the run's length"),
        ({"warmup_steps": 50}, 40, "40 steps are too few for warmup_steps=50"),
        ({"warmup_steps": 5, "decay_fraction": 1.0}, 40, "decay_fraction=1.0"),
    ],
)
def test_lengths_that_share_nothing_are_refused(
    change: dict[str, Any], num_steps: int, message: str
) -> None:
    with pytest.raises(TokenwmError, match=message):
        last_shared_step(OptimizerConfig(**change), num_steps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be positive"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"decay_fraction": 0.0}, r"decay_fraction=0.0 must be in \(0, 1\]"),
        ({"final_fraction": 1.5}, "final_fraction=1.5"),
    ],
    ids=str,
)
def test_impossible_optimizers_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(TokenwmError, match=message):
        OptimizerConfig(**change)  # type: ignore[arg-type]


MODULES = {
    **{kind: lambda kind=kind: small_world_model(kind) for kind in VOCABULARIES},
    "fsq": lambda: small_tokenizer("fsq", attention_stages=(0,)),  # type: ignore[arg-type]
    "vq": lambda: small_tokenizer("vq"),
}


@pytest.mark.parametrize("name", MODULES)
def test_every_parameter_is_in_exactly_one_group(name: str) -> None:
    module: nn.Module = MODULES[name]()
    groups = parameter_groups(module, 0.3)
    every = [id(p) for group in groups for p in group["params"]]
    assert sorted(every) == sorted(id(p) for p in module.parameters() if p.requires_grad)
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert all(p.ndim >= 2 for p in groups[0]["params"])
    kept = {id(p) for p in groups[1]["params"]}
    assert {id(p) for name, p in module.named_parameters() if name.endswith("table")} <= kept
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            assert id(part.weight) not in kept


def test_frozen_parameters_are_left_out() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    groups = parameter_groups(module, 0.1)
    assert sum(len(group["params"]) for group in groups) == 2


class OneWeight(TrainingModule):
    """Its loss draws random numbers, and remembers them."""

    def __init__(self) -> None:
        super().__init__(OptimizerConfig(warmup_steps=2, learning_rate=0.1))
        self.weight = nn.Parameter(torch.ones(3))
        self.drawn: list[float] = []

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        factor = torch.rand(3)
        self.drawn.append(float(factor[0]))
        return (self.weight * factor).sum()

    def train_dataloader(self) -> Any:
        return DataLoader(range(100))  # type: ignore[arg-type]


def make_trainer(folder: Path, max_steps: int, **options: int) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=max_steps,
        max_epochs=-1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,  # type: ignore[arg-type]
    )


def test_the_schedule_runs_over_max_steps(tmp_path: Path) -> None:
    module = OneWeight()
    trainer = make_trainer(tmp_path, 6)
    trainer.fit(module)
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    assert rate == 0.1 * learning_rate_factor(module.optimizer_config, 5, 6)  # of the last step
    assert rate < 0.06


def test_training_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenwmError, match="trainer.max_steps is -1; set it"):
        make_trainer(tmp_path, -1).fit(OneWeight())


def test_random_numbers_follow_from_the_seed_and_the_step(tmp_path: Path) -> None:
    def draws(seed: int, num_steps: int) -> list[float]:
        module = OneWeight()
        torch.manual_seed(seed)
        make_trainer(tmp_path, num_steps).fit(module)
        return module.drawn

    accumulating = OneWeight()
    make_trainer(tmp_path, 3, accumulate_grad_batches=2).fit(accumulating)
    assert len(set(accumulating.drawn)) == 6

    four = draws(1, 4)
    assert len(set(four)) == 4
    assert draws(1, 3) == four[:3]
    assert draws(2, 4) != four
    checkpoint: dict[str, Any] = {}
    module = OneWeight()
    torch.manual_seed(1)
    make_trainer(tmp_path, 2).fit(module)
    module.on_save_checkpoint(checkpoint)
    resumed = OneWeight()
    resumed.on_load_checkpoint(checkpoint)
    torch.manual_seed(5)
    make_trainer(tmp_path, 2).fit(resumed)
    assert resumed.drawn == four[:2]


def test_other_shards_than_those_trained_on_are_refused() -> None:
    from types import SimpleNamespace

    def module_over(sha256: str, fn: str = "fit") -> TrainingModule:
        module = TrainingModule(OptimizerConfig())
        module._trainer = SimpleNamespace(  # type: ignore[assignment]
            datamodule=SimpleNamespace(shard_digests=[sha256]),
            state=SimpleNamespace(fn=fn),
            max_steps=9,
            precision="32-true",
            gradient_clip_val=None,
            gradient_clip_algorithm=None,
            callbacks=[],
        )
        return module

    checkpoint: dict[str, Any] = {"global_step": 0}
    module_over("a").on_save_checkpoint(checkpoint)
    module_over("a").on_load_checkpoint(checkpoint)
    with pytest.raises(CheckpointError, match="other shards"):
        module_over("b").on_load_checkpoint(checkpoint)
    module_over("b", "test").on_load_checkpoint(checkpoint)  # a model may be tested on any data
