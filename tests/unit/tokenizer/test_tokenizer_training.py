import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from tests.small_datasets import SIZE, write_frame_shards
from tests.small_models import small_tokenizer
from tests.small_runs import assert_resume_is_exact, run
from tokenwm.data.loading.datamodule import EpisodeDataModule
from tokenwm.data.loading.windows import Batch
from tokenwm.data.shards.manifest import Manifest
from tokenwm.errors import TokenwmError
from tokenwm.tokenizer.frames import FrameTokenizerConfig, has_collapsed
from tokenwm.tokenizer.training import FrameTokenizerModule, TokenizerLossConfig, mean_frames
from tokenwm.training import OptimizerConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*")


def make_module(quantizer: str = "fsq", **changes: Any) -> FrameTokenizerModule:
    sizes: dict[str, Any] = {"channels": (8, 8), "patch_size": 4, "codebook_size": 64}
    config = FrameTokenizerConfig(**sizes, quantizer=quantizer, code_dim=4)  # type: ignore[arg-type]
    optimizer = OptimizerConfig(learning_rate=3e-3, warmup_steps=2)
    return FrameTokenizerModule(config, **{"optimizer": optimizer, **changes})


def ready(module: FrameTokenizerModule, **tokenizer: Any) -> FrameTokenizerModule:
    """With a tokenizer, without a trainer."""
    module.tokenizer = small_tokenizer(**tokenizer)
    return module


def make_batch(frames: Tensor, step_valid: Tensor | None = None) -> Batch:
    """``(B, T, H, W, 3)`` frames of one camera."""
    batch, num_steps = frames.shape[:2]
    valid = torch.ones(batch, num_steps, dtype=torch.bool) if step_valid is None else step_valid
    return Batch(
        keys=("a",) * batch,
        start=torch.zeros(batch, dtype=torch.int64),
        step_valid=valid,
        action_valid=valid,
        frames=frames[:, :, None],
    )


def random_frames(*shape: int) -> Tensor:
    return torch.randint(256, (*shape, SIZE, SIZE, 3), dtype=torch.uint8)


@pytest.mark.parametrize("quantizer", ["fsq", "vq"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    quantizer: str, tmp_path: Path, frame_shards: Path
) -> None:
    """Also with ``vq``, which draws random numbers for k-means and to revive dead codes."""
    # 12 frames a step for 64 codes: most codes are dead and revived at every step.
    found = assert_resume_is_exact(tmp_path, lambda: make_module(quantizer), frame_shards)
    assert any("mean_frame" in name for name in found)


@pytest.mark.parametrize(("validate_every", "num_workers"), [(1, 0), (3, 0), (2, 1)])
def test_validation_does_not_disturb_the_random_numbers(
    validate_every: int, num_workers: int, tmp_path: Path, frame_shards: Path
) -> None:
    """Before the checkpoint, right after it, and with workers, whose loaders draw other numbers."""
    assert_resume_is_exact(
        tmp_path,
        lambda: make_module("vq"),
        frame_shards,
        validate_every=validate_every,
        data={"num_workers": num_workers},
    )


def test_the_mean_frame_and_sizes_come_from_the_data(tmp_path: Path, frame_shards: Path) -> None:
    module = make_module()
    run(tmp_path, module, frame_shards, max_steps=1)
    assert module.tokenizer.image_size == (SIZE, SIZE)
    assert module.tokenizer.num_cameras == 1
    mean = np.load(frame_shards / "mean_frame.top.npy")
    expected = torch.from_numpy(mean).movedim(-1, 0)[None] / 255
    torch.testing.assert_close(module.tokenizer.mean_frame, expected)
    torch.testing.assert_close(mean_frames(frame_shards, Manifest.load(frame_shards)), expected)
    assert expected.std() > 0.01


@torch.no_grad()
def error_of(module: FrameTokenizerModule, batch: Batch) -> float:
    return float(module.eval()._losses(batch)[0])


def test_training_lowers_the_error(tmp_path: Path, frame_shards: Path) -> None:
    torch.manual_seed(0)
    module = make_module()
    run(tmp_path, module, frame_shards, max_steps=1)
    batch = make_batch(
        torch.from_numpy(write_frame_shards(tmp_path / "x")["val_0"]["frames.top"])[None]
    )
    before = error_of(module, batch)
    module.train()
    run(tmp_path, module, frame_shards, max_steps=60, validate_every=60)
    assert error_of(module, batch) < 0.7 * before


@pytest.mark.parametrize(
    "config",
    [
        TokenizerLossConfig(),
        TokenizerLossConfig(l2_weight=0.0, l1_weight=2.0),
        TokenizerLossConfig(l1_weight=0.5),
    ],
    ids=str,
)
@torch.no_grad()
def test_the_loss_equals_its_formula(config: TokenizerLossConfig) -> None:
    module = ready(make_module(loss=config)).eval()
    module.tokenizer.mean_frame.copy_(torch.rand(1, 3, SIZE, SIZE))
    frames = random_frames(2, 3)
    loss, values = module._losses(make_batch(frames))
    target = frames.flatten(0, 1).movedim(-1, 1) / 255.0
    error = module.tokenizer(frames.flatten(0, 1)[:, None]).reconstruction - target
    expected = (4 * config.l2_weight * error**2 + config.l1_weight * error.abs()).mean()
    torch.testing.assert_close(loss, expected)
    named = dict(values)
    torch.testing.assert_close(named["loss"], expected)
    torch.testing.assert_close(named["psnr"], -10 * error.square().mean().log10())


@torch.no_grad()
def test_noise_is_for_training_only() -> None:
    loss = TokenizerLossConfig(consistency_weight=2.0)
    module = ready(make_module(loss=loss, noise=30)).train()
    batch = make_batch(random_frames(3, 4))
    seen: list[float] = []
    module.tokenizer.register_forward_hook(
        lambda _, __, output: seen.append(float(output.inconsistency))
    )
    loss_of_noisy = float(module._losses(batch)[0])
    assert loss_of_noisy > 2.0 * seen[0] > 0.0
    module.eval()._losses(batch)
    assert seen[1] == 0.0


@pytest.mark.parametrize(
    "change",
    [{"noise": 0}, {"noise": 1, "quantizer": "vq"}],
    ids=["without noise", "vq"],
)
def test_consistency_that_cannot_be_measured_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(TokenwmError, match="consistency_weight"):
        make_module(loss=TokenizerLossConfig(consistency_weight=1.0), **change)
    with pytest.raises(TokenwmError, match="noise=-1"):
        make_module(noise=-1)


@torch.no_grad()
def test_padding_counts_for_nothing() -> None:
    module = ready(make_module()).eval()
    frames = random_frames(2, 4)
    valid = torch.tensor([[True] * 4, [True, True, False, False]])
    loss, _ = module._losses(make_batch(frames, valid))
    other = frames.clone()
    other[1, 2:] = 0
    assert float(module._losses(make_batch(other, valid))[0]) == float(loss)
    assert float(module._losses(make_batch(other))[0]) != float(loss)


def test_a_dead_codebook_is_warned_of(
    tmp_path: Path, frame_shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = make_module()

    def collapse(*_: Any) -> None:
        with torch.no_grad():
            module.tokenizer.encoder.layers[-1].weight.zero_()
            module.tokenizer.encoder.layers[-1].bias.zero_()

    module.on_train_batch_end = collapse  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING, logger="tokenwm.tokenizer.training"):
        run(tmp_path, module, frame_shards, max_steps=2)
    (message,) = [r.getMessage() for r in caplog.records if "dead codebook" in r.getMessage()]
    assert "1.6 % of 64 codes" in message
    assert "perplexity 1.0" in message
    assert "learning rate" in message


def test_a_living_codebook_is_not(
    tmp_path: Path, frame_shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="tokenwm.tokenizer.training"):
        run(tmp_path, make_module(), frame_shards, max_steps=2)
    assert "dead codebook" not in caplog.text


def test_few_codes_are_enough_for_few_pictures() -> None:
    assert has_collapsed(usage=0.04, psnr=30.0)
    assert not has_collapsed(usage=0.04, psnr=44.0)
    assert not has_collapsed(usage=0.3, psnr=20.0)


def test_usage_is_counted_over_the_whole_validation() -> None:
    module = ready(make_module()).eval()
    logged: dict[str, float] = {}
    module.log = lambda name, value, **_: logged.update({name: value})  # type: ignore[method-assign,assignment]
    module.log_all = lambda *_: None  # type: ignore[method-assign,assignment]
    module._trainer = type("Sanity", (), {"sanity_checking": True})()  # type: ignore[assignment]
    batches = [make_batch(random_frames(1, 2)) for _ in range(6)]
    for index, batch in enumerate(batches):
        module.validation_step(batch, index)
    module.on_validation_epoch_end()
    together = torch.cat([b.frames.flatten(0, 1) for b in batches if b.frames is not None])
    seen = module.tokenizer.encode_frames(together).unique()
    assert logged["val/codebook_usage"] == pytest.approx(len(seen) / 64)
    module.validation_step(batches[0], 0)
    module.on_validation_epoch_end()  # starts anew
    assert logged["val/codebook_usage"] < len(seen) / 64


def test_tokens_are_refused(tmp_path: Path, token_shards: Path) -> None:
    with pytest.raises(TokenwmError, match="holds tokens.*frame shards.*tokenwm prepare"):
        run(tmp_path, make_module(), token_shards, max_steps=1)


def test_a_frame_size_that_cannot_be_divided_is_refused(tmp_path: Path, frame_shards: Path) -> None:
    module = FrameTokenizerModule(FrameTokenizerConfig(channels=(8, 8, 8, 8), patch_size=4))
    with pytest.raises(TokenwmError, match="16×16 pixels cannot be divided.*32×32"):
        run(tmp_path, module, frame_shards, max_steps=1)


def test_another_data_module_is_refused(tmp_path: Path) -> None:
    trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", max_steps=1, logger=False)
    with pytest.raises(TokenwmError, match="EpisodeDataModule over frame shards"):
        trainer.fit(make_module(), train_dataloaders=[0], val_dataloaders=[0])


def test_compiling_revival_is_refused() -> None:
    with pytest.raises(TokenwmError, match="compile=true does not work with quantizer=vq"):
        make_module("vq", compile=True)


@pytest.mark.parametrize(
    "change", [{"l2_weight": -1.0}, {"l2_weight": 0.0}, {"l1_weight": -0.1}], ids=str
)
def test_impossible_weights_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(TokenwmError, match="loss weights"):
        TokenizerLossConfig(**change)  # type: ignore[arg-type]


def test_validate_and_test_log_the_usage(tmp_path: Path, frame_shards: Path) -> None:
    module = make_module()
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    data = EpisodeDataModule(str(frame_shards), num_steps=2, batch_size=4, num_val_batches=1)
    (validated,) = trainer.validate(module, data, verbose=False)
    (tested,) = trainer.test(module, data, verbose=False)
    for stage, values in (("val", validated), ("test", tested)):
        assert 0 < values[f"{stage}/codebook_usage"] <= 1
        assert {f"{stage}/loss", f"{stage}/psnr", f"{stage}/codebook_perplexity"} <= values.keys()
