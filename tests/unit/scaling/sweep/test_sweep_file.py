"""Sweep files are read strictly, and the runs that follow from them share their trunks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.scaling.sweeps import (
    TOKENS_PER_STEP,
    TRAINING,
    small_data,
    small_size,
    small_sweep,
)
from tokenwm.data.loading.windows import WindowDataset
from tokenwm.errors import SweepError, TokenwmError
from tokenwm.scaling.quantities import number
from tokenwm.scaling.sweep.plan import costs_of
from tokenwm.scaling.sweep.sweep import (
    TokenData,
    load_sweep,
    runs_of,
    sweep_text,
)

REPOSITORY = Path(__file__).parents[4]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    sweep = small_sweep(sizes=(small_size(check_learning_rates=(0.005, 0.02)),), seeds=(0, 3))
    path = tmp_path / "sweep.yaml"
    path.write_text(sweep_text(sweep))
    assert load_sweep(path) == sweep


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seedz": [0]}, "unknown key 'seedz'; did you mean 'seeds'"),
        ({"sizes": None}, "sizes is 'None'"),
        ({"sizes": []}, "give at least one"),
        ({"seeds": [0, 0]}, "different numbers"),
        ({"name": ...}, "'name' is missing"),
        ({"training": {"num_steps": 1}}, "training.num_steps=1; use at least 2"),
        ({"training": {"precision": "fp8"}}, "training.precision is 'fp8'.*one of 32-true"),
        ({"training": {"decay_fraction": 0.0}}, "training.decay_fraction=0.0 must be in"),
    ],
    ids=str,
)
def test_bad_sweep_files_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    values = yaml.safe_load(sweep_text(small_sweep())) | change
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({key: v for key, v in values.items() if v is not ...}))
    with pytest.raises(SweepError, match=f"sweep.yaml: .*{message}"):
        load_sweep(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_budgets": [200, 100]}, r"sizes\[0\].token_budgets=\[200, 100\].*ascending"),
        ({"token_budgets": []}, "give positive numbers"),
        ({"token_budgets": ["many"]}, r"token_budgets\[0\] is 'many'.*a whole number"),
        ({"name": "../up"}, "letters, digits"),
        ({"learning_rate": 0.0}, "must be above 0"),
        ({"dim": 15}, "must be a multiple of 2"),
        ({"name": "n44k"}, "each its own name"),
    ],
    ids=str,
)
def test_bad_sizes_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    values = yaml.safe_load(sweep_text(small_sweep()))
    values["sizes"][0] |= change
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(SweepError, match=message):
        load_sweep(path)


@pytest.mark.parametrize("text", [None, "a: [", "- 1\n", "\x00"])
def test_what_is_no_sweep_file_is_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "sweep.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SweepError, match="sweep.yaml"):
        load_sweep(path)


def test_budgets_of_a_size_and_seed_share_a_trunk() -> None:
    size = small_size(
        token_budgets=tuple(count * TOKENS_PER_STEP for count in (20, 40, 80)),
        check_learning_rates=(0.005,),
    )
    runs = runs_of(small_sweep(sizes=(size,), seeds=(0, 1)), small_data().vocabulary)
    assert [run.name for run in runs] == [
        *(
            f"runs/n16k_d{tokens}_s{seed}"
            for seed in (0, 1)
            for tokens in ("5.76k", "2.88k", "1.44k")
        ),
        "learning_rate/n16k_d2.88k_s0_lr0.005",
    ]
    trunk, middle, least = runs[:3]
    assert (trunk.trunk, trunk.first_step, trunk.max_steps) == (None, 0, 80)
    # 2 steps of warm-up, then 80 % of the rest are stable.
    assert trunk.kept_steps == (2 + 14, 2 + 30)
    assert (middle.trunk, middle.first_step, middle.max_steps) == (trunk.name, 32, 40)
    assert (least.trunk, least.first_step, least.own_steps) == (trunk.name, 16, 4)
    check = runs[-1]
    assert (check.learning_rate, check.seed, check.own_steps) == (0.005, 0, 40)
    assert {run.seed for run in runs[3:6]} == {1}


@pytest.mark.parametrize(
    ("budgets", "message"),
    [((3, 40), "3 steps are too few for warmup_steps=2"), ((20, 20.3), "leave more than one step")],
)
def test_budgets_that_no_schedule_fits_are_refused(
    budgets: tuple[float, ...], message: str
) -> None:
    size = small_size(token_budgets=tuple(int(steps * TOKENS_PER_STEP) for steps in budgets))
    with pytest.raises(SweepError, match=message):
        runs_of(small_sweep(sizes=(size,)), small_data().vocabulary)


def test_runs_of_one_name_are_refused() -> None:
    size = small_size(check_learning_rates=(0.005, 0.0050001))
    with pytest.raises(SweepError, match="two runs would be named learning_rate/"):
        runs_of(small_sweep(sizes=(size,)), small_data().vocabulary)


def test_different_tokens_are_counted_once_though_windows_overlap(token_shards: Path) -> None:
    data = TokenData.load(token_shards)
    # Episodes of 9, 7 and 12 steps, of which the first are not predicted; 4 tokens and a state.
    assert data.num_train_tokens == (8 + 6 + 11) * 5


def test_frame_shards_are_refused(frame_shards: Path) -> None:
    with pytest.raises(TokenwmError, match="token shards"):
        TokenData.load(frame_shards)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (999, "999"),
        (33_984, "34k"),
        (1.25e6, "1.25M"),
        (999_600, "1M"),
        (2.5e9, "2.5G"),
        (0.5, "0.5"),
    ],
)
def test_short_numbers(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs" / "sweep").glob("*.yaml")))
def test_the_sweeps_that_are_shipped_can_be_read(path: Path) -> None:
    sweep = load_sweep(path)
    assert sweep.training.optimizer(1.0).schedule == "wsd"
    assert len(sweep.sizes) >= 2


def test_the_model_of_a_size_has_what_is_shared() -> None:
    model = small_size().model(TRAINING)
    assert (model.transformer.dim, model.transformer.window) == (16, 2)


def test_padding_is_not_counted_as_tokens(token_shards: Path) -> None:
    """Windows hang over the ends of their episodes; counted window by window."""
    data = TokenData.load(token_shards)
    for num_steps in (2, 4, 11):
        windows = WindowDataset(token_shards, "train", num_steps, ["frame_tokens"])
        valid = sum(int(windows[i].arrays["step_valid"][1:].sum()) for i in range(len(windows)))
        assert data.filled(num_steps) == pytest.approx(windows.filled)
        assert data.filled(num_steps) == pytest.approx(valid / (len(windows) * (num_steps - 1)))
        training = replace(TRAINING, num_steps=num_steps)
        sweep = small_sweep(training=training, sizes=(small_size(token_budgets=(20_000, 40_000)),))
        for cost in costs_of(sweep, data):
            nominal = cost.run.max_steps * sweep.training.batch_size * (num_steps - 1)
            nominal *= data.vocabulary.layout.num_predicted
            assert cost.num_tokens == round(nominal * data.filled(num_steps))
