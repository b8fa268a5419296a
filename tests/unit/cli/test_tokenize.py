"""``tokenwm tokenize``: a folder or a URL, with the tokenizer beside the shards."""

import uuid
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.lock_holder import locked_by_another_process
from tests.small_models import small_tokenizer
from tokenwm.checkpoint import load_tokenizer, save_tokenizer, tokenizer_hash
from tokenwm.cli.verbs.tokenize import main
from tokenwm.data.shards.manifest import Manifest
from tokenwm.data.shards.reader import ShardReader
from tokenwm.data.shards.verify import find_problems
from tokenwm.data.storage.folder import join, open_folder, write_bytes
from tokenwm.errors import TokenwmError


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_tokenizer(tmp_path / "checkpoint", small_tokenizer(), {})
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_to_a_folder_or_a_url(
    frame_shards: Path, checkpoint: Path, tmp_path: Path, kind: str
) -> None:
    out = str(tmp_path / "tokens")
    if kind == "memory":
        pytest.importorskip("fsspec", reason="fsspec is not installed (extra 'remote')")
        out = f"memory://{uuid.uuid4().hex}"
    arguments = [str(frame_shards), "--tokenizer", str(checkpoint), "--out", out]
    assert main([*arguments, "--workers", "0"]) == 0
    assert find_problems(out) == []
    beside = open_folder(join(out, "tokenizer"))
    assert beside.names() == sorted(path.name for path in checkpoint.iterdir())
    for name in beside.names():
        content = (checkpoint / name).read_bytes()
        assert beside.read(name) == content
        write_bytes(beside, name, content[:-1] + bytes([content[-1] ^ 1]))
        assert [problem.file for problem in find_problems(out)] == [f"tokenizer/{name}"]
        write_bytes(beside, name, content)
    assert main(arguments) == 0  # the same: nothing is done
    with pytest.raises(TokenwmError, match="other tokens .* differ in shifted_copies.; choose"):
        main([*arguments, "--shifted-copies", "1"])
    with pytest.raises(TokenwmError, match="other tokens .* differ in vocabulary"):
        main([*arguments, "--no-state"])
    assert main([*arguments, "--overwrite", "--no-state", "--shifted-copies", "1"]) == 0
    other = [str(tmp_path / "other"), "--vocabulary-of", out, "--no-state", "--workers", "0"]
    assert main([*arguments[:-1], *other]) == 0  # the bins of tokens behind a URL will do
    manifest = Manifest.load(out)
    assert manifest.extra["vocabulary"] == Manifest.load(tmp_path / "other").extra["vocabulary"]
    assert "state_tokens" not in manifest.features
    assert manifest.num_episodes("train") == 6
    assert find_problems(out) == []


def test_a_refused_run_changes_nothing(
    frame_shards: Path, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tokens"
    arguments = [str(frame_shards), "--tokenizer", str(checkpoint), "--out", str(out)]
    with pytest.raises(TokenwmError, match="num_shifted_copies=-1"):
        main([*arguments, "--shifted-copies", "-1"])
    assert not out.exists()
    main([*arguments, "--workers", "0"])
    before = contents(out)
    with pytest.raises(TokenwmError, match="num_shifted_copies=-1"):
        main([*arguments, "--shifted-copies", "-1", "--overwrite"])
    assert contents(out) == before


def test_a_second_run_at_the_same_time_is_refused(
    frame_shards: Path, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tokens"
    out.mkdir()
    arguments = [str(frame_shards), "--tokenizer", str(checkpoint), "--out", str(out)]
    with locked_by_another_process(out) as process:
        before = contents(out)
        with pytest.raises(TokenwmError, match=f"{out} is in use by process {process.pid} on"):
            main(arguments)
        assert contents(out) == before
    main([*arguments, "--workers", "0"])
    assert find_problems(out) == []


def test_given_twice_nothing_is_done_the_second_time(
    frame_shards: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tokens"
    arguments = [str(frame_shards), "--tokenizer", str(checkpoint), "--out", str(out)]
    main([*arguments, "--workers", "0"])
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert "made before" not in capsys.readouterr().out
    assert main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert "made before of the same data and options, and kept" in capsys.readouterr().out
    (out / "train-000000.tar").unlink()
    with pytest.raises(TokenwmError, match="the shards, which are not all there"):
        main(arguments)
    assert _margins(out) == [256, 256]  # a range on each side
    main([*arguments, "--overwrite", "--bin-margin", "0.25"])
    assert find_problems(out) == [] and _margins(out) == [64, 64]


def _margins(out: Path) -> list[int]:
    vocabulary = Manifest.load(out).extra["vocabulary"]
    return [vocabulary[name]["margin_bins"] for name in ("action", "state")]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_frames_are_not_overwritten(frame_shards: Path, checkpoint: Path) -> None:
    arguments = [str(frame_shards), "--tokenizer", str(checkpoint), "--out", str(frame_shards)]
    with pytest.raises(TokenwmError, match="would remove .*, but it holds frames"):
        main([*arguments, "--overwrite"])
    with pytest.raises(TokenwmError, match="tokens would replace .*, but it holds frames"):
        main(arguments)
    assert Manifest.load(frame_shards).kind == "frames"


def test_a_margin_can_be_chosen_for_a_trained_tokenizer(
    frame_shards: Path, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tokens"
    arguments = [str(frame_shards), "--tokenizer", str(checkpoint), "--out", str(out)]
    with pytest.raises(TokenwmError, match="code_margin=-1"):
        main([*arguments, "--code-margin", "-1"])
    assert main([*arguments, "--code-margin", "1.0", "--workers", "0"]) == 0
    tokenizer, tokens = load_tokenizer(out / "tokenizer"), ShardReader(out)
    assert tokenizer.config.code_margin == 1.0
    assert tokens.manifest.extra["tokenizer_hash"] == tokenizer_hash(tokenizer)
    num_kept = 0
    for key in tokens.keys("train"):  # noqa: SIM118 (not a dict)
        top = torch.from_numpy(ShardReader(frame_shards).arrays(key)["frames.top"])[None, :, None]
        expected = tokenizer.encode_sequence(top)[0].numpy()
        np.testing.assert_array_equal(tokens.arrays(key)["frame_tokens"], expected)
        num_kept += int((expected != tokenizer.encode_frames(top[0]).numpy()).sum())
    assert num_kept > 0
    assert main([*arguments, "--code-margin", "1.0"]) == 0  # the same: nothing is done
    with pytest.raises(TokenwmError, match="differ in vocabulary"):
        main(arguments)
