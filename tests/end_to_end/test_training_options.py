"""Training with what Lightning brings: several processes (gloo on a CPU), averaged weights."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.small_models import small_tokenizer
from tokenwm.checkpoint import save_tokenizer

REPOSITORY = Path(__file__).parents[2]
SHARDED = [
    "--trainer.strategy.class_path=lightning.pytorch.strategies.ModelParallelStrategy",
    "--trainer.strategy.init_args.data_parallel_size=2",
    "--trainer.strategy.init_args.tensor_parallel_size=1",
    "--trainer.strategy.init_args.save_distributed_checkpoint=false",
]


@pytest.fixture
def tokens(token_shards: Path, tmp_path: Path) -> Path:
    """Token shards with their tokenizer beside them, as ``tokenwm tokenize`` leaves them."""
    folder = tmp_path / "tokens"
    shutil.copytree(token_shards, folder)
    save_tokenizer(folder / "tokenizer", small_tokenizer().eval(), {})
    return folder


def fit(tokens: Path, folder: Path, *options: str) -> Path:
    config = REPOSITORY / "configs" / "world_model" / "debug.yaml"
    command = [sys.executable, "-m", "tokenwm", "world-model", "fit", "--config", str(config)]
    command += ["--data.root", str(tokens), "--trainer.default_root_dir", str(folder)]
    command += ["--trainer.accelerator=cpu", "--trainer.max_steps=6", *options]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return folder / "model" / "model.safetensors"


@pytest.mark.slow
@pytest.mark.timeout(170)
@pytest.mark.parametrize("strategy", [["--trainer.strategy=ddp"], SHARDED], ids=["ddp", "fsdp"])
def test_two_processes_train_the_model_of_one(
    tokens: Path, tmp_path: Path, strategy: list[str]
) -> None:
    # What is averaged over valid steps would weigh the windows of a rank by its own count.
    same = ["--data.num_steps=3", "--trainer.val_check_interval=3"]
    same += ["--model.model.reward_weight=0", "--model.model.termination_weight=0"]
    one = fit(tokens, tmp_path / "one", "--data.batch_size=4", *same)
    options = ["--data.batch_size=2", "--trainer.devices=2", *strategy, *same]
    two = fit(tokens, tmp_path / "two", *options)
    alone, together = load_file(one), load_file(two)
    assert alone.keys() == together.keys()
    for name, weight in alone.items():
        torch.testing.assert_close(together[name], weight, atol=2e-4, rtol=0, msg=name)
    # A sharded run can be continued, too.
    more = [*options, "--trainer.max_steps=8"]
    assert fit(tokens, tmp_path / "two", *more) == two
    moved = load_file(two)
    assert any(not torch.equal(moved[name], weight) for name, weight in together.items())


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
