import json
import os
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl
import pytest

from tokenwm.cli import main as cli
from tokenwm.cli.training.lightning_cli import launch
from tokenwm.cli.training.run_folder import keep_earlier, last_checkpoint
from tokenwm.cli.verbs.tokenizer import TokenizerCLI
from tokenwm.data.storage.atomic import older_of, replace_folder
from tokenwm.errors import TokenwmError
from tokenwm.evaluation.data_of import data_of

CONFIGS = Path(__file__).parents[3] / "configs"


def test_logs_of_a_continued_run_are_kept_in_order(tmp_path: Path) -> None:
    log = tmp_path / "metrics.csv"
    keep_earlier(log)  # nothing there: nothing happens
    for number in range(3):
        log.write_text(f"run {number}")
        keep_earlier(log)
    assert not log.exists()
    kept = sorted(tmp_path.iterdir())
    assert [path.name for path in kept] == [f"metrics.00{n}.csv" for n in range(3)]
    assert [path.read_text() for path in kept] == ["run 0", "run 1", "run 2"]


@pytest.mark.parametrize("is_folder", [False, True])
def test_the_checkpoint_to_resume_from_is_never_lost(tmp_path: Path, is_folder: bool) -> None:
    """Also where a kill came between moving the earlier one away and the new one to its place."""
    last, partial = tmp_path / "checkpoints" / "last.ckpt", tmp_path / "checkpoints" / "new"
    assert last_checkpoint(tmp_path) is None

    def write(text: str) -> None:
        partial.parent.mkdir(exist_ok=True)
        if is_folder:
            partial.mkdir()
        (partial / "part" if is_folder else partial).write_text(text)

    def read() -> str:
        path = last_checkpoint(tmp_path)
        assert path is not None
        return (path / "part" if is_folder else path).read_text()

    write("1")
    replace_folder(partial, last)
    assert read() == "1"
    last.rename(older_of(last))  # the kill
    assert read() == "1"
    for text in ("2", "3"):
        write(text)
        replace_folder(partial, last)
        assert read() == text
        assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.filterwarnings("ignore")  # Lightning and jsonargparse warn of each other
def test_a_finished_training_names_the_next_command(
    tmp_path: Path, frame_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def options(stage: str, data: Path) -> list[str]:
        argv = ["fit", "--config", f"{CONFIGS / stage / 'debug.yaml'}", f"--data.root={data}"]
        argv += [f"--trainer.default_root_dir={tmp_path / stage}", "--data.num_steps=2"]
        return [*argv, "--trainer.max_steps=1", "--trainer.accelerator=cpu"]

    def fit(verb: str, data: Path) -> tuple[str, str]:
        stage = verb.replace("-", "_")
        assert cli.main([verb, *options(stage, data)]) == 0
        folder = str(tmp_path / stage)
        last = capsys.readouterr().out.strip().splitlines()[-1]
        start = f"model: {folder}/model; next: "
        assert last.startswith(start), last
        return folder, last.removeprefix(start)

    folder, command = fit("tokenizer", frame_shards)
    assert command == f"tokenwm tokenize {frame_shards} --tokenizer {folder} --out DIR"
    assert cli.main(["tokenizer", *options("tokenizer", frame_shards), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)  # and nothing else is on stdout
    assert found["model"] == f"{folder}/model" and found["next"] == command
    assert found["steps"] == 1 and found["metrics"]["train/loss"] > 0
    tokens = tmp_path / "my tokens"
    argv = shlex.split(command)[1:-1]
    assert cli.main([*argv, str(tokens)]) == 0
    capsys.readouterr()
    launch(TokenizerCLI, options("tokenizer", frame_shards))
    assert "next:" not in capsys.readouterr().out  # the quick start and sweeps train this way
    folder, command = fit("world-model", tokens)
    assert command == f"tokenwm evaluate {folder} --data {frame_shards}"
    assert data_of(Path(folder) / "model") == str(frame_shards)
    # A URL in a checkpoint is not followed: a stranger may have written it.
    path = Path(folder) / "model" / "tokenizer" / "provenance.json"
    known = path.read_text()
    path.write_text(json.dumps({**json.loads(known), "data": "https://example.com/frames"}))
    with pytest.raises(TokenwmError, match="was trained on https:.*; give --data"):
        data_of(Path(folder) / "model")
    path.write_text(known)
    # Of a tokenizer that was trained on other recordings, nothing is known about the frames.
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "data_provenance": {"source": "other"}})
    )
    with pytest.raises(TokenwmError, match="give --data"):
        data_of(Path(folder) / "model")


class TerminateBeforeTheFirstStep(pl.Callback):
    """Sends SIGTERM once Lightning listens, before training takes the signals over."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def default_sigterm() -> Iterator[None]:
    """SIGTERM as a new process has it: Ray, which other tests use, leaves a handler that exits."""
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.filterwarnings("ignore")  # Lightning and jsonargparse warn of each other
@pytest.mark.usefixtures("default_sigterm")
def test_sigterm_before_the_first_step_is_said(
    tmp_path: Path, frame_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["tokenizer", "fit", "--config", f"{CONFIGS / 'tokenizer' / 'debug.yaml'}"]
    argv += [f"--data.root={frame_shards}", f"--trainer.default_root_dir={tmp_path}"]
    argv += ["--data.num_steps=2", "--trainer.max_steps=3", "--trainer.accelerator=cpu"]
    assert cli.main([*argv, f"--trainer.callbacks+={__name__}.TerminateBeforeTheFirstStep"]) == 143
    assert "run the same command again" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
    assert cli.main(argv) == 0


@pytest.mark.filterwarnings("ignore")  # Lightning and jsonargparse warn of each other
def test_a_finished_run_whose_model_is_damaged_writes_it_again(
    tmp_path: Path, frame_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["tokenizer", "fit", "--config", f"{CONFIGS / 'tokenizer' / 'debug.yaml'}"]
    argv += [f"--data.root={frame_shards}", f"--trainer.default_root_dir={tmp_path}"]
    argv += ["--data.num_steps=2", "--trainer.max_steps=1", "--trainer.accelerator=cpu"]
    assert cli.main(argv) == 0
    weights = tmp_path / "model" / "model.safetensors"
    whole = weights.read_bytes()
    for damage in (weights.unlink, lambda: os.truncate(weights, len(whole) - 8)):
        damage()
        capsys.readouterr()
        assert cli.main(argv) == 0
        assert "finished before" not in capsys.readouterr().out
        assert weights.read_bytes() == whole
    assert cli.main(argv) == 0
    assert "finished before, at step 1, and kept" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")  # Lightning and jsonargparse warn of each other
def test_numbers_that_are_too_small_are_one_line(
    tmp_path: Path, frame_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["tokenizer", "fit", "--config", f"{CONFIGS / 'tokenizer' / 'debug.yaml'}"]
    argv += [f"--data.root={frame_shards}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    for option, value, least in (
        ("checkpoint_every_n_steps", "0", "must be at least 1"),
        ("seed_everything", "-1", "must be at least 0"),
        ("trainer.accumulate_grad_batches", "0", "must be at least 1"),
        ("trainer.gradient_clip_val", "-1", "must be at least 0"),
        ("trainer.log_every_n_steps", "0", "must be at least 1"),
        ("trainer.val_check_interval", "0", "must be at least 1"),
        ("data.num_workers", "-1", "must be at least 0"),
        ("model.optimizer.betas", "[1.5,0.9]", "must be in"),
    ):
        assert cli.main([*argv, f"--{option}={value}"]) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and least in error, error
        assert option.split(".")[-1] in error
    assert not (tmp_path / "run").exists()
