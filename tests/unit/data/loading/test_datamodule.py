import itertools
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from tests.unit.data.shards.shard_fixtures import TOKEN_FEATURES, write_dataset
from tokenwm.data.loading.datamodule import EpisodeDataModule
from tokenwm.data.loading.windows import Batch
from tokenwm.data.shards.manifest import Manifest
from tokenwm.errors import ShardError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists and is not empty.*"),
    # torch's own, where Lightning reads the checkpoint or counts parameters
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*"),
]

Seen = tuple[tuple[str, ...], tuple[int, ...]]


class Recorder(pl.LightningModule):
    """A few weights, trained on the mean colours; remembers every batch it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.trained: list[Seen] = []
        self.validated: list[tuple[int, Seen]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.trained.append((batch.keys, tuple(batch.start.tolist())))
        assert batch.frames is not None
        colour = batch.frames.float().mean((2, 3, 4)) / 255.0  # (B, T, 3)
        return ((colour - self.weight) ** 2 * batch.step_valid[..., None]).mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        seen = (batch.keys, tuple(batch.start.tolist()))
        self.validated.append((self.global_step, seen))

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def make_trainer(folder: Path, max_steps: int, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=max_steps,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder / "checkpoints", every_n_train_steps=1, save_top_k=-1)],
        **options,
    )


def make_data(root: Path, **options: Any) -> EpisodeDataModule:
    arguments = {"num_steps": 4, "batch_size": 3, "seed": 5, **options}
    return EpisodeDataModule(str(root), **arguments)


def checkpoint(folder: Path, step: int) -> str:
    (path,) = (folder / "checkpoints").glob(f"*step={step}.ckpt")
    return str(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    write_dataset(folder)
    return folder


# Lightning cannot know that a loader without a state_dict goes on at the right place; it asks only
# where epochs have a length.
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
# 20 windows in batches of 3: ten steps are one and a half epochs of the data.
@pytest.mark.parametrize(
    ("stop", "options"),
    [
        (5, {"val_check_interval": 2}),
        (4, {"val_check_interval": 2}),  # stopped where validation is due
        (5, {"val_check_interval": 4, "accumulate_grad_batches": 2}),
        (4, {"val_check_interval": 4, "accumulate_grad_batches": 2}),
        (5, {"val_check_interval": 3, "limit_train_batches": 4}),  # several Lightning epochs
        (5, {"val_check_interval": 4, "limit_train_batches": 6, "accumulate_grad_batches": 2}),
    ],
)
def test_a_stopped_run_goes_on_with_the_next_batch(
    tmp_path: Path, root: Path, stop: int, options: dict[str, Any]
) -> None:
    whole = Recorder()
    make_trainer(tmp_path / "whole", 10, **options).fit(whole, make_data(root))
    first, second = Recorder(), Recorder()
    make_trainer(tmp_path / "parts", stop, **options).fit(first, make_data(root))
    make_trainer(tmp_path / "parts", 10, **options).fit(
        second, make_data(root), ckpt_path=checkpoint(tmp_path / "parts", stop)
    )
    assert len(whole.trained) == 10 * options.get("accumulate_grad_batches", 1)
    assert first.trained + second.trained == whole.trained
    assert torch.equal(second.weight, whole.weight)
    # Validation runs at the steps asked for, and always on the same windows.
    every = options["val_check_interval"] // options.get("accumulate_grad_batches", 1)
    if "limit_train_batches" not in options:
        assert sorted({step for step, _ in whole.validated}) == list(range(every, 11, every))
    windows = {
        step: [seen for at, seen in whole.validated if at == step] for step, _ in whole.validated
    }
    assert all(seen == next(iter(windows.values())) for seen in windows.values())
    steps_after = {step for step, _ in whole.validated if step > stop}
    assert {step for step, _ in second.validated if step > stop} == steps_after


def test_rounds_that_would_end_within_a_step_are_refused(tmp_path: Path, root: Path) -> None:
    for limit, better in ((5, 4), (1, 2)):
        options = {"limit_train_batches": limit, "accumulate_grad_batches": 2}
        trainer = make_trainer(tmp_path, 6, limit_val_batches=0, **options)
        message = f"limit_train_batches {limit} is no multiple of .* 2: .*; use {better}, or leave"
        with pytest.raises(ShardError, match=message):
            trainer.fit(Recorder(), make_data(root))
    trial = make_trainer(tmp_path, 6, fast_dev_run=True, accumulate_grad_batches=2)
    trial.fit(Recorder(), make_data(root))  # one batch, and no second round
    assert trial.global_step == 1


def test_workers_do_not_change_the_run(tmp_path: Path, root: Path) -> None:
    runs = []
    for num_workers in (0, 2):
        model = Recorder()
        folder = tmp_path / str(num_workers)
        data = make_data(root, num_workers=num_workers)
        make_trainer(folder, 3, limit_val_batches=0).fit(model, data)
        resumed = Recorder()
        data = make_data(root, num_workers=num_workers)
        make_trainer(folder, 6, limit_val_batches=0).fit(
            resumed, data, ckpt_path=checkpoint(folder, 3)
        )
        runs.append(model.trained + resumed.trained)
    assert runs[0] == runs[1]
    assert len(runs[0]) == 6


def test_seed_changes_the_order(root: Path) -> None:
    def first(seed: int) -> list[tuple[str, ...]]:
        batches = itertools.islice(make_data(root, seed=seed).train_dataloader(), 4)
        return [batch.keys for batch in batches]

    assert first(0) == first(0)
    assert first(0) != first(1)


def test_validate_and_test_see_fixed_windows_of_their_split(tmp_path: Path, root: Path) -> None:
    model = Recorder()
    trainer = make_trainer(tmp_path, 1)
    trainer.validate(model, make_data(root, val_batch_size=2), verbose=False)
    # val_0 has 8 + 2 windows of 4 steps, three of which hang over its beginning; val_1 has 6 + 2.
    assert [seen for _, seen in model.validated] == [
        (("val_0", "val_0"), (0, 0)),
        (("val_0", "val_0"), (0, 0)),
        (("val_0", "val_0"), (1, 2)),
        (("val_0", "val_0"), (3, 4)),
        (("val_0", "val_0"), (5, 6)),
        (("val_1", "val_1"), (0, 0)),
        (("val_1", "val_1"), (0, 0)),
        (("val_1", "val_1"), (1, 2)),
        (("val_1", "val_1"), (3, 4)),
    ]
    model.validated.clear()
    trainer.test(model, make_data(root, val_batch_size=1, num_val_batches=1), verbose=False)
    assert [seen for _, seen in model.validated] == [(("test_0",), (0,))]


def places(batch: Batch) -> list[tuple[str, int]]:
    return list(zip(batch.keys, batch.start.tolist(), strict=True))


def test_ranks_share_the_work(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def windows(rank: int, world_size: int, batch_size: int) -> tuple[list[Any], list[Any]]:
        data = make_data(root, batch_size=batch_size, val_batch_size=18 // world_size)
        monkeypatch.setattr(data, "_rank", lambda: (rank, world_size))
        train = itertools.islice(data.train_dataloader(), 3)
        val: Any = data.val_dataloader()
        return [places(batch) for batch in train], [places(batch) for batch in val]

    whole_train, whole_val = windows(0, 1, 4)
    parts = [windows(rank, 2, 2) for rank in (0, 1)]
    for step in range(3):
        assert parts[0][0][step] + parts[1][0][step] == whole_train[step]
    assert sorted(parts[0][1][0] + parts[1][1][0]) == sorted(whole_val[0])


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
def test_fitting_without_a_val_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_dataset(tmp_path / "data", lengths={"train": (9,)})
    model = Recorder()
    make_trainer(tmp_path, 2, val_check_interval=1).fit(model, make_data(tmp_path / "data"))
    assert len(model.trained) == 2
    assert "no val split" in caplog.text
    with pytest.raises(ShardError, match="no episodes in split 'val'"):
        make_trainer(tmp_path, 1).validate(model, make_data(tmp_path / "data"), verbose=False)


def test_fields_follow_the_kind_of_the_dataset(tmp_path: Path, root: Path) -> None:
    frames_only = next(iter(make_data(root).train_dataloader()))
    assert frames_only.frames is not None
    assert frames_only.action is None
    write_dataset(tmp_path, features=TOKEN_FEATURES)
    tokens = next(iter(make_data(tmp_path).train_dataloader()))
    assert tokens.frame_tokens is not None
    assert tokens.action_tokens is not None
    assert tokens.state_tokens is None
    assert tokens.reward is not None
    assert tokens.terminated is not None


def test_manifest_is_known_without_a_trainer(root: Path) -> None:
    assert make_data(root).manifest == Manifest.load(root)


def test_a_folder_without_dataset_says_what_to_run(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    with pytest.raises(ShardError, match="run `tokenwm prepare"):
        _ = data.manifest
    with pytest.raises(ShardError, match="run `tokenwm prepare"):
        make_trainer(tmp_path, 1).fit(Recorder(), data)


def test_damage_is_found_before_training(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data")
    path = tmp_path / "data" / "train-000001.tar"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    model = Recorder()
    with pytest.raises(ShardError, match=r"train-000001\.tar.*is damaged"):
        make_trainer(tmp_path, 2).fit(model, make_data(tmp_path / "data"))
    assert model.trained == []
    make_trainer(tmp_path, 2).fit(model, make_data(tmp_path / "data", verify=False))
    assert len(model.trained) == 2


@pytest.mark.parametrize(
    "options",
    [{"num_steps": 0}, {"batch_size": 0}, {"val_batch_size": 0}, {"num_val_batches": 0}],
)
def test_bad_sizes(root: Path, options: dict[str, int]) -> None:
    with pytest.raises(ShardError, match=f"{next(iter(options))}.* 0.* at least 1"):
        make_data(root, **options)


def test_every_argument_is_a_documented_flag() -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_class_arguments(EpisodeDataModule, "data")
    text = " ".join(parser.format_help().split())
    for flag, words in {
        "root": "Dataset made by",
        "num_steps": "Consecutive steps per window",
        "batch_size": "Windows per batch on each device",
        "val_batch_size": "Windows per validation batch",
        "num_val_batches": "Validation batches, all devices together",
        "num_workers": "Processes that read ahead",
        "seed": "Seed of the order",
        "verify": "Whether to check the SHA-256",
        "weighting": "how often windows of each episode are drawn",
        "mixture": "Datasets to train on besides",
        "real_fraction": "Share of the training windows",
        "on_corrupt": "What an episode with damaged bytes does",
        "max_corrupt": "Episodes that may be skipped",
        "cache": "Folder for copies of shards behind a URL",
        "cache_gigabytes": "What that folder may hold",
        "start_method": "fork or spawn",
    }.items():
        assert f"--data.{flag}" in text
        assert words in text
