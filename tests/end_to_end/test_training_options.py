"""Training with what Lightning brings: several processes (gloo on a CPU), averaged weights."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import REPOSITORY, tokenwm
from tests.small_models import small_tokenizer
from tokenwm.checkpoint import save_tokenizer

SHARDED = [
    "--trainer.strategy.class_path=lightning.pytorch.strategies.ModelParallelStrategy",
    "--trainer.strategy.init_args.data_parallel_size=2",
    "--trainer.strategy.init_args.tensor_parallel_size=1",
]
# Windows that hang over an end give ranks unequal numbers of steps.
SAME = ["--data.num_steps=3", "--trainer.val_check_interval=3"]
ONE_FILE = "--trainer.strategy.init_args.save_distributed_checkpoint=false"


@pytest.fixture(scope="module")
def tokens(token_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token shards with their tokenizer beside them, as ``tokenwm tokenize`` leaves them."""
    folder = tmp_path_factory.mktemp("options") / "tokens"
    shutil.copytree(token_shards, folder)
    save_tokenizer(folder / "tokenizer", small_tokenizer().eval(), {})
    return folder


def world_model(
    verb: str, tokens: Path, folder: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    config = REPOSITORY / "configs" / "world_model" / "debug.yaml"
    command = ["world-model", verb, "--config", str(config)]
    command += ["--data.root", str(tokens), "--trainer.default_root_dir", str(folder)]
    return tokenwm(*command, "--trainer.accelerator=cpu", "--trainer.max_steps=6", *options)


def fit(tokens: Path, folder: Path, *options: str) -> Path:
    is_there = (folder / "checkpoints" / "last.ckpt").exists()
    done = world_model("fit", tokens, folder, *options)
    assert ("resuming at step 6 of 8, after 24 windows" in done.stdout) == is_there
    assert done.returncode == 0, f"{' '.join(done.args)}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr  # of another rank
    return folder / "model" / "model.safetensors"


@pytest.fixture(scope="module")
def alone(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Weights that one process leaves."""
    folder = tmp_path_factory.mktemp("alone")
    return load_file(fit(tokens, folder, "--data.batch_size=4", *SAME))


@pytest.mark.slow
@pytest.mark.timeout(170)
@pytest.mark.parametrize(
    "strategy",
    [["--trainer.strategy=ddp"], [*SHARDED, ONE_FILE], SHARDED],
    ids=["ddp", "fsdp", "fsdp, a part for each rank"],
)
def test_two_processes_train_the_model_of_one(
    tokens: Path, alone: dict[str, torch.Tensor], tmp_path: Path, strategy: list[str]
) -> None:
    options = ["--data.batch_size=2", "--trainer.devices=2", *strategy, *SAME]
    options += ["--checkpoint_every_n_steps=3"]
    two = fit(tokens, tmp_path / "two", *options)
    checkpoint = tmp_path / "two" / "checkpoints" / "last.ckpt"
    assert checkpoint.is_dir() == (strategy is SHARDED)
    assert [path.name for path in checkpoint.parent.iterdir()] == ["last.ckpt"]
    together = load_file(two)
    assert alone.keys() == together.keys()
    for name, weight in alone.items():
        torch.testing.assert_close(together[name], weight, atol=2e-4, rtol=0, msg=name)
    # A sharded run can be continued, too.
    more = [*options, "--trainer.max_steps=8"]
    assert fit(tokens, tmp_path / "two", *more) == two
    moved = load_file(two)
    assert any(not torch.equal(moved[name], weight) for name, weight in together.items())
    assert max((moved[name] - weight).abs().max() for name, weight in together.items()) < 0.02
    if checkpoint.is_dir():
        other = world_model("validate", tokens, tmp_path / "two", *SAME)
        assert other.returncode == 1
        assert "last.ckpt is a folder with a part for each rank" in other.stderr
        assert "Traceback" not in other.stderr


@pytest.mark.slow
@pytest.mark.timeout(170)
def test_averaged_weights_are_what_a_run_leaves(tokens: Path, tmp_path: Path) -> None:
    """With a decay of 1 the average stays where it began; without it weights move."""
    small = ["--data.num_steps=3", "--data.batch_size=4"]
    callback = "--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging"
    plain = load_file(fit(tokens, tmp_path / "plain", *small))
    options = [*small, callback, "--trainer.callbacks.decay=1.0"]
    kept = load_file(fit(tokens, tmp_path / "ema", *options))
    once = load_file(fit(tokens, tmp_path / "once", *options, "--trainer.max_steps=1"))
    assert plain.keys() == kept.keys()
    moved = [name for name in kept if not torch.allclose(plain[name], kept[name])]
    assert moved
    for name, weight in once.items():
        torch.testing.assert_close(kept[name], weight, msg=name)
