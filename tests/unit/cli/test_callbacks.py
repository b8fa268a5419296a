"""What the command line adds to training must not change it, and must say what is true."""

import csv
import errno
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from tests.small_models import small_tokenizer
from tests.small_runs import run
from tokenwm.cli.training import callbacks as callbacks_module
from tokenwm.cli.training.callbacks import RolloutPictures, Throughput
from tokenwm.cli.training.checkpoints import ResumingCheckpoint
from tokenwm.tokenizer.frames import FrameTokenizerConfig
from tokenwm.tokenizer.training import FrameTokenizerModule
from tokenwm.training import OptimizerConfig
from tokenwm.transformer.model import TransformerConfig
from tokenwm.transformer.training import WorldModelModule
from tokenwm.transformer.world_model import WorldModelConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*")


def make_module(quantizer: str = "vq") -> FrameTokenizerModule:
    config = FrameTokenizerConfig(
        channels=(8, 8),
        patch_size=4,
        codebook_size=64,
        quantizer=quantizer,  # type: ignore[arg-type]
        code_dim=4,
    )
    return FrameTokenizerModule(config, optimizer=OptimizerConfig(warmup_steps=2), max_shift=1)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_measuring_throughput_does_not_change_training(
    tmp_path: Path, frame_shards: Path, accumulate: int
) -> None:
    """``vq`` takes its codebook from the first batch it sees, with random numbers."""
    found = []
    for callbacks in ([], [Throughput()]):
        torch.manual_seed(0)
        found.append(
            run(
                tmp_path,
                make_module(),
                frame_shards,
                max_steps=3,
                callbacks=callbacks,
                accumulate_grad_batches=accumulate,
            )
        )
    assert [name for name in found[0] if not torch.equal(found[0][name], found[1][name])] == []


def test_a_full_disk_leaves_the_earlier_checkpoint(
    tmp_path: Path, frame_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    save = pl.Trainer.save_checkpoint

    def save_twice(trainer: pl.Trainer, file: str, *arguments: Any) -> None:
        if trainer.global_step == 3:
            Path(file).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "disk full")
        save(trainer, file, *arguments)

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", save_twice)
    with pytest.raises(OSError, match="disk full"):
        run(
            tmp_path,
            make_module(),
            frame_shards,
            max_steps=4,
            callbacks=[ResumingCheckpoint(path, 1)],
            enable_checkpointing=True,
        )
    assert torch.load(path, weights_only=True)["global_step"] == 2
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


class Rates(pl.Callback):
    """Keeps what was logged, and is the clock: .1 s a step and .5 s a batch of validation."""

    def __init__(self) -> None:
        self.found: list[float] = []
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def on_train_batch_start(self, *arguments: Any) -> None:
        self.now += 0.1

    def on_validation_batch_start(self, *arguments: Any) -> None:
        self.now += 0.5

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        logged = trainer.callback_metrics.get("train/windows_per_second")
        if logged is not None:
            self.found.append(float(logged))


def test_validation_is_no_training_time(
    tmp_path: Path, frame_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, module = Rates(), make_module("fsq")
    monkeypatch.setattr(callbacks_module, "time", rates)  # for time.monotonic
    throughput = Throughput()
    run(
        tmp_path,
        module,
        frame_shards,
        max_steps=5,
        validate_every=1,
        data={"num_val_batches": 1},
        callbacks=[throughput, rates],
    )
    # 8 windows in each step; the first batch is for measuring.
    assert rates.found == pytest.approx(4 * [80.0])
    assert all(part.training for part in module.modules())
    assert module._counts is None


def test_imagining_in_training_draws_and_logs_how_well_drafts_are_accepted(
    tmp_path: Path, token_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks_module, "tokenizer_of", lambda trainer: small_tokenizer().eval())
    sizes = TransformerConfig(dim=16, num_layers=1, num_heads=2, window=2)
    run(
        tmp_path,
        WorldModelModule(WorldModelConfig(transformer=sizes), OptimizerConfig(warmup_steps=2)),
        token_shards,
        max_steps=4,
        data={"num_steps": 4},
        callbacks=[RolloutPictures(tmp_path / "pictures")],
        logger=pl.loggers.CSVLogger(tmp_path, name=None, version="logs"),
    )
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 2
    with open(tmp_path / "logs" / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["val/tokens_per_pass"]]
    assert [int(row["step"]) for row in rows] == [2, 4]
    assert all(0.5 < float(row["val/tokens_per_pass"]) <= 8 for row in rows)
