import csv
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from tests.unit.data.shards.shard_fixtures import (
    FRAME_FEATURES,
    TOKEN_FEATURES,
    write_dataset,
    write_older_manifest,
)
from tokenwm.cli.training.data_counts import DataCounts
from tokenwm.data.episode import Scalar
from tokenwm.data.loading.datamodule import EpisodeDataModule
from tokenwm.data.loading.mixture import MixtureItem, shares_of
from tokenwm.data.loading.windows import Batch, WindowDataset
from tokenwm.data.shards.manifest import EpisodeInfo, Manifest
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import ShardError

Seen = tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...]]


def seen(batch: Batch) -> Seen:
    return batch.sources, batch.keys, tuple(batch.start.tolist())


def change_manifest(folder: Path, **changes: Any) -> None:
    manifest = replace(Manifest.load(folder), **changes)
    (folder / "manifest.json").unlink()
    manifest.save(folder)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``real`` (31 windows of 4 steps), ``sim`` (27, marked), ``both`` (one of three marked)."""
    folder = tmp_path_factory.mktemp("mixture")
    write_dataset(folder / "real", lengths={"train": (20, 17), "val": (9,)})
    change_manifest(folder / "real", name="real")
    write_dataset(folder / "sim", lengths={"train": (30,), "val": (5,)})
    change_manifest(folder / "sim", name="sim", extra={"synthetic": True})
    write_dataset(
        folder / "both",
        lengths={"train": (10, 13, 10)},
        metadata=lambda key: {"synthetic": True} if key == "train_1" else {},
    )
    change_manifest(folder / "both", name="both")
    return {path.name: path for path in folder.iterdir()}


def make_data(roots: dict[str, Path], *others: str, **options: Any) -> EpisodeDataModule:
    """Over ``real`` and others, each ``NAME`` or ``NAME*WEIGHT``."""
    items = []
    for other in others:
        name, _, weight = other.partition("*")
        items.append(MixtureItem(root=str(roots[name]), weight=float(weight or 1)))
    arguments: dict[str, Any] = {"num_steps": 4, "batch_size": 8, "seed": 5, **options}
    return EpisodeDataModule(str(roots["real"]), mixture=items, **arguments)


def first_batches(data: EpisodeDataModule, number: int) -> list[Batch]:
    return list(islice(data.train_dataloader(), number))


# Shares


def test_batches_hold_the_weights(roots: dict[str, Path]) -> None:
    data = make_data(roots, "sim*2", "both*0.5", batch_size=7)
    assert {part.name: part.share for part in data.strata} == {
        "real": Fraction(2, 7),
        "sim": Fraction(4, 7),
        "both_real": Fraction(1, 7) * Fraction(24, 39),  # windows of 4 steps: 12 + 15 + 12
        "both_synthetic": Fraction(1, 7) * Fraction(15, 39),
    }
    for batch in first_batches(data, 10):
        found = Counter(batch.sources)
        assert found["real"] == 2
        assert found["sim"] == 4
        assert found["both_real"] + found["both_synthetic"] == 1


def test_a_window_comes_from_the_dataset_it_names(roots: dict[str, Path]) -> None:
    windows = {name: WindowDataset(root, "train", 4, ["frames"]) for name, root in roots.items()}
    for batch in first_batches(make_data(roots, "sim"), 3):
        assert batch.frames is not None
        for row, source in enumerate(batch.sources):
            key, start = batch.keys[row], int(batch.start[row])
            reader = windows[source].reader
            stop = start + int(batch.step_valid[row].sum())
            expected = torch.from_numpy(reader.frames(key, start, stop))
            assert torch.equal(batch.frames[row, : stop - start], expected)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 1.0])
def test_the_real_fraction_is_held_by_every_batch(roots: dict[str, Path], fraction: float) -> None:
    data = make_data(roots, "sim*3", "both", real_fraction=fraction, batch_size=10)
    synthetic = {part.name for part in data.strata if part.is_synthetic}
    for batch in first_batches(data, 12):
        real = sum(source not in synthetic for source in batch.sources)
        assert real == round(10 * fraction)
    # Among themselves, real datasets and synthetic ones keep their weights.
    shares = {part.name: part.share for part in data.strata}
    if fraction == 0.5:
        assert shares["real"] / shares["both_real"] == Fraction(39, 24)
        assert shares["sim"] / shares["both_synthetic"] == Fraction(3 * 39, 15)


def test_one_dataset_of_both_kinds_is_divided(roots: dict[str, Path]) -> None:
    data = EpisodeDataModule(
        str(roots["both"]), num_steps=4, batch_size=4, seed=1, real_fraction=0.25
    )
    for batch in first_batches(data, 6):
        kinds = [source == "both_synthetic" for source in batch.sources]
        assert kinds == [key == "train_1" for key in batch.keys]
        assert sum(kinds) == 3
    # Without a fraction it is one stream of windows, in the order that it always had.
    plain = EpisodeDataModule(str(roots["both"]), num_steps=4, batch_size=4, seed=1)
    assert [part.name for part in plain.strata] == ["both"]


def test_an_entry_may_say_what_its_dataset_does_not(roots: dict[str, Path]) -> None:
    item = MixtureItem(root=str(roots["real"]), synthetic=True)
    data = EpisodeDataModule(
        str(roots["real"]), num_steps=4, batch_size=4, mixture=[item], real_fraction=0.5
    )
    assert [(part.name, part.is_synthetic) for part in data.strata] == [
        ("real_1", False),
        ("real_2", True),
    ]


@given(
    parts=st.lists(
        st.tuples(st.integers(0, 1000).map(lambda n: n / 10), st.booleans()), min_size=1, max_size=6
    ),
    fraction=st.none() | st.integers(0, 100).map(lambda n: n / 100),
)
def test_shares(parts: Sequence[tuple[float, bool]], fraction: float | None) -> None:
    real = sum(weight for weight, synthetic in parts if not synthetic)
    imagined = sum(weight for weight, synthetic in parts if synthetic)
    cannot = (
        real + imagined == 0
        if fraction is None
        else ((fraction > 0 and real == 0) or (fraction < 1 and imagined == 0))
    )
    if cannot:
        with pytest.raises(ShardError):
            shares_of(parts, fraction)
        return
    shares = shares_of(parts, fraction)
    assert sum(shares) == 1
    of_real = sum(
        (share for share, (_, kind) in zip(shares, parts, strict=True) if not kind), Fraction(0)
    )
    if fraction is not None:
        assert of_real == Fraction(str(fraction))
    for (share, (weight, kind)), (other, (more, same)) in zip(
        zip(shares, parts, strict=True), zip(shares[1:], parts[1:], strict=True), strict=False
    ):
        if kind == same or fraction is None:
            assert share * Fraction(str(more)) == other * Fraction(str(weight))


@pytest.mark.parametrize(
    ("others", "options", "message"),
    [
        ([], {"real_fraction": 0.5}, "0.5 cannot be met: no synthetic episodes.*`synthetic: true`"),
        (["sim*0"], {"real_fraction": 0.5}, "cannot be met: no synthetic episodes with a weight"),
        (["sim"], {"real_fraction": 1.5}, r"real_fraction is 1.5; it must be in \[0, 1\]"),
        (["sim*-1"], {}, "weight of .*sim is -1.0; use a number >= 0"),
        (["sim*nan"], {}, "weight of .*sim is nan"),
    ],
)
def test_impossible_mixtures(
    roots: dict[str, Path], others: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ShardError, match=message):
        make_data(roots, *others, **options).train_dataloader()


@pytest.mark.parametrize("version", [2, 3])
def test_marks_are_in_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    """Reading the metadata of every episode would be two requests each where it is behind a URL."""
    marks = {"train_0": {"synthetic": True}, "train_1": {"synthetic": False}, "train_2": {}}
    write_dataset(tmp_path, lengths={"train": (7, 12, 9)}, metadata=marks.__getitem__)
    if version == 2:
        write_older_manifest(tmp_path, version)
    read: list[str] = []
    metadata = ShardReader.metadata

    def note(reader: ShardReader, key: str) -> dict[str, Scalar]:
        read.append(key)
        return metadata(reader, key)

    monkeypatch.setattr(ShardReader, "metadata", note)
    reader = ShardReader(tmp_path)
    assert [reader.is_synthetic(key) for key in marks] == [True, False, False]
    assert read == (list(marks) if version == 2 else [])


def test_a_mark_that_is_no_mark(tmp_path: Path, roots: dict[str, Path]) -> None:
    write_dataset(tmp_path, metadata=lambda key: {"synthetic": "yes"})
    data = make_data({**roots, "odd": tmp_path}, "odd")
    with pytest.raises(ShardError, match="episode train_0: synthetic is 'yes', not true or false"):
        data.train_dataloader()


# Compatibility


def test_another_rate_is_refused(roots: dict[str, Path], tmp_path: Path) -> None:
    write_dataset(tmp_path)
    change_manifest(tmp_path, control_rate=20.0)
    message = f"{tmp_path} cannot be mixed with {roots['real']}: control_rate is 20.0 there and 10"
    with pytest.raises(ShardError, match=re.escape(message)):
        make_data({**roots, "other": tmp_path}, "other").train_dataloader()


def test_other_cameras_are_refused(roots: dict[str, Path], tmp_path: Path) -> None:
    features = {name: value for name, value in FRAME_FEATURES.items() if name != "frames.wrist"}
    write_dataset(tmp_path, features=features)
    with pytest.raises(ShardError, match=r"cameras is \['top'\] there and \['top', 'wrist'\] here"):
        make_data({**roots, "other": tmp_path}, "other").train_dataloader()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"tokenizer_hash": "b"}, "tokenizer_hash is 'b' there and 'a' here; make the tokens"),
        ({"vocabulary": {"grid": [4, 4]}}, r"vocabulary: grid is \[4, 4\] there and \[2, 2\] here"),
        ({"units": "m"}, "units of reward is 'm' there and '' here"),
    ],
)
def test_tokens_of_another_meaning_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str | None
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    extra = {"tokenizer_hash": "a", "vocabulary": {"grid": [2, 2]}}
    for folder in (here, there):
        write_dataset(folder, features=TOKEN_FEATURES)
        change_manifest(folder, extra=extra)
    if "units" in change:
        reward = replace(TOKEN_FEATURES["reward"], **change)
        change_manifest(there, features={**TOKEN_FEATURES, "reward": reward})
    else:
        change_manifest(there, extra={**extra, **change})
    item = MixtureItem(root=str(there))
    data = EpisodeDataModule(str(here), num_steps=4, batch_size=4, mixture=[item])
    if message is None:
        assert len(set(first_batches(data, 1)[0].sources)) == 2
    else:
        with pytest.raises(ShardError, match=f"there cannot be mixed with .*here: {message}"):
            data.train_dataloader()


# Through Lightning


class Recorder(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.trained: list[Seen] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.trained.append(seen(batch))
        assert batch.frames is not None
        return (batch.frames.float().mean((0, 1, 2, 3, 4)) / 255.0 - self.weight).square().sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def fit(
    folder: Path,
    data: EpisodeDataModule,
    max_steps: int,
    model: Recorder | None = None,
    **options: Any,
) -> list[Seen]:
    """Train from the last checkpoint in ``folder``, if there is one, and write one at the end."""
    model = model or Recorder()
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=max_steps,
        limit_val_batches=0,
        log_every_n_steps=2,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **{"logger": False, **options},
    )
    checkpoint = folder / "last.ckpt"
    resume = str(checkpoint) if checkpoint.exists() else None
    trainer.fit(model, data, ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(checkpoint)
    return model.trained


def curriculum(episodes: Sequence[EpisodeInfo], step: int) -> list[float]:
    """Short episodes first."""
    return [1.0 if info.num_steps < 18 + step else 0.01 for info in episodes]


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stopped_mixture_goes_on_with_the_next_batch(
    tmp_path: Path, roots: dict[str, Path], num_workers: int
) -> None:
    def data() -> EpisodeDataModule:
        return make_data(
            roots,
            "sim",
            "both*0.7",
            real_fraction=0.4,
            weighting=curriculum,
            num_workers=num_workers,
        )

    whole = fit(tmp_path / "whole", data(), 9)
    parts = fit(tmp_path / "parts", data(), 4) + fit(tmp_path / "parts", data(), 9)
    assert len(whole) == 9
    assert parts == whole


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize("num_workers", [0, 1, 2, 4])
def test_workers_and_ranks_do_not_change_the_global_sequence(
    roots: dict[str, Path], num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(rank: int, world_size: int) -> list[list[tuple[str, str, int]]]:
        data = make_data(
            roots,
            "sim",
            batch_size=8 // world_size,
            num_workers=num_workers,
            weighting=curriculum,
        )
        monkeypatch.setattr(data, "_rank", lambda: (rank, world_size))
        monkeypatch.setattr(data, "_step", lambda: 3)
        return [list(zip(*seen(batch), strict=True)) for batch in first_batches(data, 4)]

    sequences = []
    for world_size in (1, 2, 4):
        ranks = [rows(rank, world_size) for rank in range(world_size)]
        assert {len(batch) for rank in ranks for batch in rank} == {8 // world_size}
        sequences.append([sum(parts, []) for parts in zip(*ranks, strict=True)])
    alone = make_data(roots, "sim", weighting=curriculum)
    expected = [list(zip(*seen(batch), strict=True)) for batch in first_batches(alone, 7)[3:]]
    assert sequences == [expected] * 3


def test_the_ratio_is_logged(tmp_path: Path, roots: dict[str, Path]) -> None:
    logger = CSVLogger(tmp_path, name=None, version="logs")
    data = make_data(roots, "sim*3", real_fraction=0.25)
    trained = fit(tmp_path, data, 6, logger=logger, callbacks=[DataCounts()])
    with open(tmp_path / "logs" / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["data/real_fraction"]]
    assert [int(row["step"]) for row in rows] == [1, 3, 5]
    for row in rows:
        sources = Counter(trained[int(row["step"])][0])
        assert float(row["data/real_fraction"]) == sources["real"] / 8 == 0.25
        assert float(row["data/windows/real"]) == sources["real"]
        assert float(row["data/windows/sim"]) == sources["sim"]


def test_a_mixture_can_be_given_on_the_command_line(roots: dict[str, Path]) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(EpisodeDataModule, "data", fail_untyped=False)
    mixture = [{"root": str(roots["sim"]), "weight": 0.5, "weighting": f"{__name__}.curriculum"}]
    values = parser.parse_args(
        ["--data.root", str(roots["real"]), "--data.num_steps=4", "--data.batch_size=4"]
        + ["--data.mixture", json.dumps(mixture), f"--data.weighting={__name__}.curriculum"]
    )
    data = parser.instantiate(values).data
    assert data.items[0].weighting is curriculum
    assert data.items[1] == MixtureItem(root=str(roots["sim"]), weight=0.5, weighting=curriculum)
