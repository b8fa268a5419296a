"""Real Trainers in processes of their own: killed at random, and two ranks at a time."""

import contextlib
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from tests.processes import PROCESSES
from tests.unit.data.shards.shard_fixtures import write_dataset
from tests.unit.data.shards.test_corrupt import flip_bit
from tokenwm.cli.training.checkpoints import ResumingCheckpoint
from tokenwm.cli.training.run_folder import last_checkpoint
from tokenwm.data.loading.datamodule import EpisodeDataModule
from tokenwm.data.loading.mixture import MixtureItem
from tokenwm.data.loading.windows import Batch

NUM_KILLS = 20
NUM_STEPS = 300


class Diary(pl.LightningModule):
    """Trains three weights and writes down every window, whole lines, whatever may happen."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.path = path

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        windows = zip(batch.sources, batch.keys, batch.start.tolist(), strict=True)
        names = ",".join(f"{source}/{key}/{start}" for source, key, start in windows)
        line = f"{os.getpid()} {self.global_step} {names}\n"
        path = self.path.with_suffix(f".rank{self.global_rank}")
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, line.encode())
        os.close(descriptor)
        assert batch.frames is not None
        return (batch.frames.float().mean((0, 1, 2, 3, 4)) / 255 - self.weight).square().sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def train(folder: Path, data: dict[str, Any], max_steps: int, **options: Any) -> None:
    folder.mkdir(exist_ok=True)
    model = Diary(folder / "diary")
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=max_steps,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        use_distributed_sampler=False,
        callbacks=[ResumingCheckpoint(folder / "checkpoints" / "last.ckpt", 7)],
        **options,
    )
    last = last_checkpoint(folder)
    path = None if last is None else str(last)
    trainer.fit(model, EpisodeDataModule(**data), ckpt_path=path, weights_only=True)
    if trainer.is_global_zero:
        torch.save(model.weight.detach(), folder / "weight.pt")


def read_diary(folder: Path, rank: int = 0) -> list[tuple[int, int, str]]:
    """(Process, step, windows) of every training step that began."""
    path = (folder / "diary").with_suffix(f".rank{rank}")
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(p), int(step), names) for p, step, names in (line.split() for line in lines)]


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    write_dataset(tmp_path / "real", lengths={"train": (20, 17, 9)})
    write_dataset(tmp_path / "sim", lengths={"train": (30, 12)})
    mixture = [MixtureItem(root=str(tmp_path / "sim"), synthetic=True)]
    root = str(tmp_path / "real")
    return {"root": root, "num_steps": 4, "batch_size": 5, "mixture": mixture, "seed": 3}


@pytest.mark.timeout(120)
def test_a_run_that_is_killed_twenty_times_is_the_run_that_is_not(
    tmp_path: Path, data: dict[str, Any]
) -> None:
    data |= {"real_fraction": 0.3, "verify": False}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = PROCESSES.Process(target=train, args=(whole, data, NUM_STEPS))
    process.start()
    process.join()
    assert process.exitcode == 0
    chance = random.Random(0)
    num_kills, before = 0, 0.0
    while num_kills < NUM_KILLS:
        workers = num_kills % 2  # who reads ahead must not matter
        process = PROCESSES.Process(
            target=train, args=(killed, {**data, "num_workers": workers}, NUM_STEPS)
        )
        process.start()
        assert process.pid is not None
        # Anywhere: while it starts, reads, trains, or writes a checkpoint.
        while len(read_diary(killed)) == before and chance.random() < 0.995:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.06))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL, "finished before it was killed"
        num_kills, before = num_kills + 1, len(read_diary(killed))
    process = PROCESSES.Process(target=train, args=(killed, data, NUM_STEPS))
    process.start()
    process.join()
    assert process.exitcode == 0
    expected = {step: names for _, step, names in read_diary(whole)}
    assert len(expected) == NUM_STEPS
    found = read_diary(killed)
    assert {step for _, step, _ in found} == set(expected)
    for _, step, names in found:
        assert names == expected[step]
    # Each start went on at the last checkpoint: at most 7 steps were done again.
    starts = [b for a, b in zip(found, found[1:], strict=False) if a[0] != b[0]]
    reached = [a[1] for a, b in zip(found, found[1:], strict=False) if a[0] != b[0]]
    assert len(starts) > NUM_KILLS // 2
    for (_, step, _), last in zip(starts, reached, strict=True):
        assert step % 7 == 0
        assert last - 7 <= step <= last + 1
    weights = [torch.load(folder / "weight.pt", weights_only=True) for folder in (whole, killed)]
    assert torch.equal(*weights)


@pytest.mark.timeout(120)
def test_two_ranks_train_on_the_sequence_of_one_and_skip_together(
    tmp_path: Path, data: dict[str, Any]
) -> None:
    """Only one of them meets the damaged episode at first; both know, and both stop."""
    flip_bit(Path(data["root"]), "train_2")
    data |= {"on_corrupt": "skip"}
    one, two, stopped = (tmp_path / name for name in ("one", "two", "stopped"))
    ranks = {"devices": 2, "strategy": "ddp_fork"}
    runs: list[tuple[Path, dict[str, Any], dict[str, Any]]] = [
        (one, {**data, "batch_size": 8}, {}),
        (two, {**data, "batch_size": 4}, ranks),
        (stopped, {**data, "batch_size": 4, "max_corrupt": 0}, ranks),
    ]
    codes = []
    for folder, values, options in runs:
        process = PROCESSES.Process(target=train, args=(folder, values, 12), kwargs=options)
        process.start()
        process.join()
        codes.append(process.exitcode)
    assert codes[:2] == [0, 0]
    assert codes[2] != 0
    whole = [names for _, _, names in read_diary(one)]
    parts = [[names for _, _, names in read_diary(two, rank)] for rank in (0, 1)]
    assert [f"{a},{b}" for a, b in zip(*parts, strict=True)] == whole
    assert "train_2" not in "".join(name for name in whole if name.startswith("fixture_1"))
    lengths = {len(read_diary(stopped, rank)) for rank in (0, 1)}
    assert len(lengths) == 1
    assert lengths.pop() < 12
    with contextlib.suppress(FileNotFoundError):
        (stopped / "weight.pt").unlink()
        pytest.fail("a run above its limit finished")
