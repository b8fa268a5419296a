import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.small_runs import assert_resume_is_exact, run
from tokenwm.data.loading.datamodule import EpisodeDataModule
from tokenwm.data.loading.mixture import MixtureItem
from tokenwm.data.shards.manifest import Manifest
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import CorruptSampleError, TokenwmError
from tokenwm.sequence.token_shards import read_vocabulary
from tokenwm.training import OptimizerConfig, last_shared_step
from tokenwm.transformer import training as module_under_test
from tokenwm.transformer.heads import ContinuousHead
from tokenwm.transformer.model import TransformerConfig
from tokenwm.transformer.training import WorldModelModule
from tokenwm.transformer.world_model import WorldModel, WorldModelConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*")


def make_module(**changes: Any) -> WorldModelModule:
    sizes = TransformerConfig(dim=16, num_layers=2, num_heads=2, window=2, dropout=0.2)
    optimizer = OptimizerConfig(learning_rate=3e-3, warmup_steps=2)
    return WorldModelModule(WorldModelConfig(transformer=sizes), optimizer, **changes)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, token_shards: Path) -> None:
    found = assert_resume_is_exact(tmp_path, make_module, token_shards)
    assert any("state_head" in name for name in found)
    assert any(name.startswith("moment") for name in found)


def test_a_resumed_run_with_workers_and_accumulation(tmp_path: Path, token_shards: Path) -> None:
    assert_resume_is_exact(
        tmp_path,
        make_module,
        token_shards,
        data={"num_workers": 1, "batch_size": 2},
        accumulate_grad_batches=2,
    )


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_a_short_run_may_begin_from_a_long_one(tmp_path: Path, token_shards: Path) -> None:
    """Their decays apart, runs of all lengths are one run, bit for bit."""
    shared = last_shared_step(make_module().optimizer_config, 8)
    assert shared == 5
    torch.manual_seed(0)
    run(tmp_path, make_module(), token_shards, max_steps=12, save_at=shared)
    torch.manual_seed(0)
    alone = run(tmp_path / "alone", make_module(), token_shards, max_steps=8)
    torch.manual_seed(99)
    trunk = tmp_path / f"step={shared}.ckpt"
    begun = run(tmp_path / "begun", make_module(), token_shards, max_steps=8, resume_from=trunk)
    assert [name for name in alone if not torch.equal(alone[name], begun[name])] == []


def test_sizes_come_from_the_token_shards(tmp_path: Path, token_shards: Path) -> None:
    module = make_module()
    run(tmp_path, module, token_shards, max_steps=1)
    vocabulary = module.world_model.vocabulary
    assert vocabulary.codebook_size == 64
    assert vocabulary.tokens_per_frame == 4
    assert vocabulary.has_reward
    assert vocabulary.state is not None


def test_training_lowers_the_loss_and_logs_it(tmp_path: Path, token_shards: Path) -> None:
    torch.manual_seed(0)
    module = make_module()
    logged: list[dict[str, float]] = []
    log_all = module.log_all

    def record(stage: str, values: Any, batch_size: int) -> None:
        values = list(values)
        logged.append({f"{stage}/{name}": float(value) for name, value in values})
        log_all(stage, values, batch_size)

    module.log_all = record  # type: ignore[method-assign]
    run(tmp_path, module, token_shards, max_steps=40, validate_every=20)
    losses = [line["train/loss"] for line in logged if "train/loss" in line]
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    validated = [line for line in logged if "val/loss" in line]
    assert validated
    names = {"frame_nll", "frame_accuracy", "changed_accuracy", "persistence_accuracy"}
    names |= {"state_nll", "reward", "termination", "draft_nll", "loss"}
    assert {name.removeprefix("val/") for name in validated[0]} == names


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # no saver is needed
def test_dynamics_are_fitted_for_fitting_only(
    tmp_path: Path, token_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a checkpoint is validated or tested it brings them, whatever the data."""
    from lightning.pytorch import Trainer

    run(tmp_path, make_module(), token_shards, max_steps=2, save_at=2)
    fitted: list[Any] = []
    monkeypatch.setattr(module_under_test, "fit_dynamics", lambda *given: fitted.append(given))
    for verb in ("validate", "test"):
        trainer = Trainer(
            default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_progress_bar=False
        )
        data = EpisodeDataModule(str(token_shards), num_steps=3, batch_size=2, num_val_batches=1)
        options = {"ckpt_path": str(tmp_path / "step=2.ckpt"), "weights_only": True}
        getattr(trainer, verb)(make_module(), datamodule=data, verbose=False, **options)
        assert not fitted
    run(tmp_path, make_module(), token_shards, max_steps=1)
    assert len(fitted) == 1


def with_rewards(root: Path, folder: Path, low: float, high: float) -> Path:
    """A copy of token shards whose manifest says that the training rewards are in a range."""
    shutil.copytree(root, folder)
    manifest = Manifest.load(folder)
    figures = {**manifest.statistics, "reward": {"min": [low], "max": [high]}}
    replace(manifest, statistics=figures).save(folder)
    return folder


def test_bins_span_the_rewards_of_all_that_is_trained_on(
    tmp_path: Path, token_shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    main = with_rewards(token_shards, tmp_path / "main", 0.0, 2.0)
    item = MixtureItem(root=str(with_rewards(token_shards, tmp_path / "more", -3.0, 1.0)))
    module = make_module()
    data = {"mixture": [item]}
    run(tmp_path, module, main, max_steps=2, save_at=2, data=data)
    head = module.world_model.reward_head
    assert module.world_model.vocabulary.reward_range == (-3.0, 2.0)
    assert head is not None and (float(head.bins[0]), float(head.bins[-1])) == (-3.0, 2.0)
    # The recorded rewards of the val split are the square's row, up to 12.
    assert caplog.text.count("those trained on were from -3 to 2") == 1

    # What was trained comes with its bins, also where the data say otherwise.
    checkpoint = torch.load(tmp_path / "step=2.ckpt", weights_only=True)
    resumed = make_module()
    resumed.world_model = WorldModel(make_module().model_config, module.world_model.vocabulary)
    resumed.world_model.set_reward_range((0.0, 1.0))
    resumed.on_load_checkpoint(checkpoint)
    assert resumed.world_model.vocabulary.reward_range == (-3.0, 2.0)
    assert torch.equal(resumed.world_model.reward_head.bins, head.bins)  # type: ignore[union-attr]
    del checkpoint["reward_range"]  # as a run of an earlier version left it
    resumed.on_load_checkpoint(checkpoint)
    assert resumed.world_model.vocabulary.reward_range is None


def test_dynamics_are_fitted_to_the_whole_mixture(token_shards: Path, tmp_path: Path) -> None:
    """By how much of each is drawn; damaged episodes are left to the data module."""
    root = with_rewards(token_shards, tmp_path / "main", 0.0, 2.0)
    items = [
        MixtureItem(root=str(with_rewards(token_shards, tmp_path / "other", 0.0, 1.0)), weight=3),
        MixtureItem(root=str(with_rewards(token_shards, tmp_path / "unused", 0.0, 1.0)), weight=0),
    ]
    data = EpisodeDataModule(str(root), num_steps=3, batch_size=4, mixture=items)
    read: list[tuple[str, str]] = []

    def note(reader: ShardReader, key: str, *arguments: Any, **more: Any) -> Any:
        read.append((Path(reader.root).name, key))
        if read[-1] == ("other", "train_1"):
            raise CorruptSampleError("damaged")
        return arrays(reader, key, *arguments, **more)

    arrays = ShardReader.arrays
    model = WorldModel(make_module().model_config, read_vocabulary(data.manifest, "here"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardReader, "arrays", note)
        patch.setattr(module_under_test, "MAX_DYNAMICS_EPISODES", 4)
        module_under_test.fit_dynamics(model, data.strata)
    keys = ["train_0", "train_1", "train_2"]
    assert read == [("main", "train_0"), *(("other", key) for key in keys)]
    assert isinstance(model.state_head, ContinuousHead)
    assert model.state_head.dynamics.drift.weight.abs().sum() > 0


def test_frames_are_refused(tmp_path: Path, frame_shards: Path) -> None:
    with pytest.raises(TokenwmError, match="holds frames.*tokenwm tokenize"):
        run(tmp_path, make_module(), frame_shards, max_steps=1)


def test_another_data_module_is_refused(tmp_path: Path) -> None:
    from lightning.pytorch import Trainer

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", max_steps=1, logger=False)
    with pytest.raises(TokenwmError, match="EpisodeDataModule over token shards"):
        trainer.fit(make_module(), train_dataloaders=[0], val_dataloaders=[0])
