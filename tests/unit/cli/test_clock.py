"""Training by the clock: in time whatever happens, and repeatable without one."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tokenwm.cli.main import main
from tokenwm.cli.training import lightning_cli
from tokenwm.cli.training.clock import Clock
from tokenwm.errors import TokenwmError
from tokenwm.training import OptimizerConfig, TrainingModule, learning_rate_factor


class Pace:
    """A clock on which a step takes as long as a function of its number says."""

    def __init__(self, seconds_of: Callable[[int], float]) -> None:
        self.seconds_of = seconds_of
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class PacedClock(Clock):
    """Lets every training batch take the time that the pace says."""

    def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
        self._now.now += self._now.seconds_of(trainer.global_step - 1)  # type: ignore[attr-defined]
        super().on_train_batch_end(trainer, *arguments)


class Steps:
    """A trainer and its module for which a step is a number."""

    def __init__(self, **optimizer: Any) -> None:
        self.module = TrainingModule(OptimizerConfig(warmup_steps=5, **optimizer))
        self.trainer: Any = SimpleNamespace(
            global_step=0,
            should_stop=False,
            num_val_batches=[],
            strategy=SimpleNamespace(broadcast=lambda value: value),
        )

    def go_on(self, clock: Clock) -> OptimizerConfig:
        """To the end, one whole step after the other."""
        clock.setup(self.trainer, self.module, "fit")
        clock.on_train_start(self.trainer, self.module)
        while not self.trainer.should_stop:
            self.trainer.global_step += 1
            assert self.trainer.global_step < 10_000
            clock.on_train_batch_end(self.trainer, self.module, None, None, 0)
        return self.module.optimizer_config


@pytest.mark.parametrize(
    "pace",
    [
        pytest.param(lambda step: 1.0, id="even"),
        pytest.param(lambda step: 1.0 if step < 900 else 3.0, id="slower within the decay"),
        pytest.param(lambda step: 1.0 if step < 400 else 2.0, id="slower before the decay"),
        pytest.param(lambda step: 0.5 + step / 400, id="slower and slower"),
        pytest.param(lambda step: 2.0 if step < 300 else 0.5, id="faster"),
        pytest.param(lambda step: 1.0 + (step % 50 == 0) * 20, id="with hitches"),
    ],
)
def test_it_ends_in_time_at_whatever_pace(pace: Callable[[int], float]) -> None:
    steps, clock = Steps(), PacedClock(1200.0, now=Pace(pace))
    config = steps.go_on(clock)
    start, end = config.decay_spans[0][0], config.decay_spans[-1][1]
    assert steps.trainer.global_step == end
    slowest = max(pace(step) for step in range(end))
    assert 1140.0 < clock.seconds_used <= 1200.0 + slowest
    begun = sum(pace(step) for step in range(start))
    assert 600.0 <= begun <= 600.0 + slowest
    rates = [learning_rate_factor(config, step, end) for step in range(start, end)]
    assert all(a > b for a, b in zip(rates, rates[1:], strict=False))
    assert rates[0] == 1.0 and config.final_fraction <= rates[-1] < config.final_fraction + 0.01


def test_a_part_of_the_time_is_kept_for_what_follows() -> None:
    """At the pace of the machine as it is at the end; at most half of the time."""
    clock = PacedClock(1000.0, 200, now=Pace(lambda step: 1.0 if step < 200 else 2.0))
    Steps().go_on(clock)
    assert clock.seconds_used == pytest.approx(1000.0 - 200 * 2.0, abs=10)
    clock = PacedClock(1000.0, 5000, now=Pace(lambda step: 1.0))
    Steps().go_on(clock)
    assert clock.seconds_used == pytest.approx(500.0, abs=2)


def test_time_before_a_checkpoint_counts_and_the_decay_goes_on() -> None:
    whole = Steps()
    expected = whole.go_on(PacedClock(1000.0, now=Pace(lambda step: 1.0)))
    for stopped_at in (300, 700):
        steps, clock = Steps(), PacedClock(1000.0, now=Pace(lambda step: 1.0))
        steps.trainer.global_step = stopped_at
        if stopped_at > 500:
            steps.module.optimizer_config = expected
        clock.load_state_dict({"seconds_used": float(stopped_at)})
        config = steps.go_on(clock)
        assert config.decay_spans[-1][1] == pytest.approx(1000, abs=2)
        assert clock.seconds_before == stopped_at
        assert clock.seconds_used == pytest.approx(1000.0, abs=2)
        if stopped_at > 500:
            assert config == expected


def test_the_time_of_validation_is_kept_for_the_last_one() -> None:
    steps, clock = Steps(), PacedClock(100.0, now=Pace(lambda step: 1.0))
    clock.on_validation_start(steps.trainer, steps.module)
    clock._now.now += 20.0  # type: ignore[attr-defined]
    clock.on_validation_end(steps.trainer, steps.module)
    steps.go_on(clock)
    assert clock.seconds_used == pytest.approx(80.0, abs=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 0.0}, "minutes=0 must be above 0"),
        ({"seconds": float("nan")}, "minutes=nan must be above 0"),
        ({"seconds": 1.0, "reserve_steps": -1}, "reserve_steps=-1 at least 0"),
    ],
)
def test_impossible_times_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenwmError, match=message):
        Clock(**options)


def test_a_schedule_that_must_know_its_end_is_refused() -> None:
    with pytest.raises(TokenwmError, match="schedule is cosine, but only wsd can end by the clock"):
        Steps(schedule="cosine").go_on(Clock(1.0))


@pytest.mark.filterwarnings("ignore")  # Lightning and jsonargparse warn of each other
def test_the_steps_that_it_decides_on_repeat_the_run_without_it(
    tmp_path: Path,
    frame_shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Bit for bit, from the config that the run has written; its pace changed in the middle."""

    def clock(seconds: float, reserve_steps: int) -> Clock:
        return PacedClock(seconds, reserve_steps, Pace(lambda step: 1.0 if step < 7 else 1.7))

    monkeypatch.setattr(lightning_cli, "Clock", clock)
    config = Path(__file__).parents[3] / "configs" / "tokenizer" / "debug.yaml"
    command = ["tokenizer", "fit", "--config", str(config), f"--data.root={frame_shards}"]
    command += ["--trainer.accelerator=cpu", "--data.batch_size=2", "--data.num_val_batches=1"]
    command += ["--trainer.val_check_interval=4", "--minutes=0.25", "--trainer.default_root_dir"]
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    assert main([*command, one]) == 0
    record = tmp_path / "one" / "logs" / "training.yaml"
    values = yaml.safe_load(record.read_text())
    spans = values["model"]["optimizer"]["decay_spans"]
    assert values["minutes"] is None
    assert values["trainer"]["max_steps"] == spans[-1][1] > spans[0][0] > 3
    assert len(spans) > 1
    again = ["--config", str(record), "--trainer.val_check_interval=3"]
    assert main(["tokenizer", "fit", *again, "--trainer.default_root_dir", other]) == 0
    weights = [(tmp_path / n / "model" / "model.safetensors").read_bytes() for n in (one, other)]
    assert weights[0] == weights[1]
    capsys.readouterr()
    assert main([*command, one]) == 0
    assert f"finished before, at step {spans[-1][1]}, and kept" in capsys.readouterr().out
