"""Continuing a run with other options: exactly after what was seen, or not at all."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from tests.unit.data.loading.test_datamodule import Recorder
from tests.unit.data.shards.shard_fixtures import write_dataset
from tokenwm.cli.training.checkpoints import ResumingCheckpoint
from tokenwm.data.loading.datamodule import EpisodeDataModule
from tokenwm.data.loading.mixture import MixtureItem
from tokenwm.data.loading.order import GlobalOrderSampler, Leg
from tokenwm.data.shards.manifest import EpisodeInfo
from tokenwm.errors import CheckpointError, ShardError
from tokenwm.resume import check_shapes
from tokenwm.training import OptimizerConfig, learning_rate_factor

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*")


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("datasets")
    write_dataset(folder / "real", lengths={"train": (20, 17, 9)})
    write_dataset(folder / "sim", lengths={"train": (30, 12)})
    return str(folder / "real"), str(folder / "sim")


def train(
    folder: Path, roots: Sequence[str], steps: int, accumulate: int = 1, **options: Any
) -> tuple[Recorder, EpisodeDataModule]:
    """Goes on from the folder's checkpoint; returns what was seen."""
    model, last = Recorder(), folder / "last.ckpt"
    data = EpisodeDataModule(roots[0], **{"num_steps": 4, "batch_size": 4, "seed": 5, **options})
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=accumulate,
        callbacks=[ResumingCheckpoint(last, 100)],
    )
    path = str(last) if last.exists() else None
    trainer.fit(model, data, ckpt_path=path, weights_only=True)
    return model, data


def windows(model: Recorder) -> list[tuple[str, int]]:
    return [window for keys, starts in model.trained for window in zip(keys, starts, strict=True)]


def alike(episodes: Sequence[EpisodeInfo], step: int) -> list[float]:
    return [1.0] * len(episodes)


# Of batches of 4, 2, 4 in two parts, and 6 windows a step; the last step has a checkpoint.
CHANGES = [(3, 4, 1), (8, 2, 1), (10, 2, 2), (13, 6, 1)]


def test_other_batch_sizes_go_on_after_the_windows_already_seen(
    tmp_path: Path, roots: tuple[str, str]
) -> None:
    whole = windows(train(tmp_path / "whole", roots, 15)[0])
    seen = []
    for steps, batch_size, accumulate in CHANGES:
        model, data = train(tmp_path / "parts", roots, steps, accumulate, batch_size=batch_size)
        seen += windows(model)
        assert data.windows_seen == len(seen)
    assert len(seen) == 3 * 4 + 5 * 2 + 2 * 2 * 2 + 3 * 6 == 48
    assert seen == whole[:48]
    assert [(leg.first_step, leg.batch_windows, leg.accumulate) for leg in data.legs] == [
        (0, 4, 1),
        (3, 2, 1),
        (8, 2, 2),
        (10, 6, 1),
    ]


def test_gradients_are_not_accumulated_over_a_part_of_a_step(
    tmp_path: Path, roots: tuple[str, str]
) -> None:
    """Lightning counts batches from the beginning, and would begin with half a step."""
    train(tmp_path, roots, 3)
    message = "accumulate_grad_batches is 2, but 1 .*: its 3 batches are no multiple of 2"
    with pytest.raises(CheckpointError, match=message):
        train(tmp_path, roots, 6, accumulate=2)


def test_in_a_mixture_each_dataset_goes_on_where_it_was() -> None:
    """Which places of a batch are whose depends on its size; the order in each dataset does not."""
    shares = [Fraction(2, 3), Fraction(1, 5), Fraction(2, 15)]
    leg = Leg(drawn=(0, 0, 0), batch_windows=4)
    places: list[list[int]] = [[], [], []]
    step = 0
    for steps, batch_size, ranks in ((7, 4, 1), (5, 3, 2), (9, 5, 1), (30, 1, 3)):
        leg = Leg(
            first_step=step,
            first_batch=step,
            drawn=tuple(leg.drawn_before(shares, step)),
            batch_windows=batch_size * ranks,
        )
        for rank in range(ranks):
            sampler = GlobalOrderSampler(
                [lambda place, step: place] * 3, shares, batch_size, step, rank, ranks, leg
            )
            for batch in islice(iter(sampler), steps):
                for stratum, place in batch:
                    places[stratum].append(place)
        step += steps
    total = 7 * 4 + 5 * 6 + 9 * 5 + 30 * 3
    assert sum(map(len, places)) == total
    for share, found in zip(shares, places, strict=True):
        assert sorted(found) == list(range(len(found)))  # nothing twice, nothing left out
        assert abs(len(found) - share * total) <= 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 6}, "data.seed is 6, but 5 in the run to be continued .step 2."),
        ({"num_steps": 5}, "data.num_steps is 5, but 4 in the run"),
        ({"real_fraction": 0.25}, "the share of .* is 1/4, but 2/3 in the run"),
        (
            {"weighting": lambda episodes, step: [1.0] * len(episodes)},
            "weighting of data is .*None",
        ),
    ],
    ids=["seed", "num_steps", "real_fraction", "weighting"],
)
def test_another_order_is_refused(
    tmp_path: Path, roots: tuple[str, str], change: dict[str, Any], message: str
) -> None:
    options = {"mixture": [MixtureItem(root=roots[1], weight=0.5, synthetic=True)]}
    train(tmp_path, roots, 2, **options)
    with pytest.raises(CheckpointError, match=message) as caught:
        train(tmp_path, roots, 4, **{**options, **change})
    assert "--resume false" in str(caught.value) and "\n" not in str(caught.value)


def test_a_checkpoint_without_an_order_goes_on_as_before_and_says_so(
    tmp_path: Path, roots: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    whole = windows(train(tmp_path / "whole", roots, 6)[0])
    train(tmp_path, roots, 3)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    checkpoint["EpisodeDataModule"] = {"corrupt": {}}
    torch.save(checkpoint, tmp_path / "last.ckpt")
    model, _ = train(tmp_path, roots, 6)
    assert windows(model) == whole[12:]
    assert "does not say which windows were seen" in caplog.text


def test_windows_longer_than_every_episode_are_refused(roots: tuple[str, str]) -> None:
    data = EpisodeDataModule(roots[0], num_steps=2000, batch_size=4)
    with pytest.raises(ShardError, match="num_steps is 2000, but the longest .* 20 steps; use at"):
        _ = data.strata


def test_tensors_of_other_shapes_are_one_line() -> None:
    saved = {"a": torch.zeros(2), "b": torch.zeros(3, 4), "c": torch.zeros(1)}
    check_shapes(saved, saved)
    with pytest.raises(CheckpointError) as caught:
        check_shapes(saved, {"a": torch.zeros(2), "b": torch.zeros(3, 8)})
    text = str(caught.value)
    assert "2 tensors differ, the first one, b, is (3, 4) there and (3, 8) here" in text
    assert "\n" not in text


def test_a_decay_that_is_planned_anew_leaves_earlier_steps_as_they_were() -> None:
    config = OptimizerConfig(warmup_steps=2, decay_spans=((10, 20),), final_fraction=0.0)
    again = OptimizerConfig(warmup_steps=2, decay_spans=((10, 20), (15, 18)), final_fraction=0.0)
    factors = [learning_rate_factor(again, step, 18) for step in range(19)]
    assert factors[:16] == [learning_rate_factor(config, step, 20) for step in range(16)]
    assert factors[15:] == pytest.approx([0.5, 1 / 3, 1 / 6, 0.0])
