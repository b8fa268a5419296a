"""Verbs that take a dataset take the URL of one, here of an S3 server on this machine."""

import json
from pathlib import Path
from typing import Any

import pytest

from tokenwm.cli.main import main
from tokenwm.cli.verbs import sweep_run
from tokenwm.scaling.sweep.sweep import load_sweep


def upload(folder: Path, name: str) -> str:
    import s3fs

    s3fs.S3FileSystem().put(f"{folder}/", f"bucket/{name}/", recursive=True)
    return f"s3://bucket/{name}"


def test_evaluate(s3: None, model_folder: Path, squares: Path, tmp_path: Path) -> None:
    data = upload(squares, "evaluated")
    arguments = ["evaluate", str(model_folder), "--data", data, "--out", f"{tmp_path}/out"]
    arguments += ["--horizon", "2", "--context", "1", "--starts", "1", "--examples", "0"]
    assert main([*arguments, "--episodes", "2"]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["provenance"]["data_folder"] == data
    made_of = json.loads((tmp_path / "out" / ".evaluate.json").read_text())
    assert made_of["inputs"][data] == metrics["provenance"]["data_manifest_sha256"]


def test_imagine(s3: None, model_folder: Path, squares: Path, tmp_path: Path) -> None:
    data = upload(squares, "imagined")
    arguments = ["imagine", str(model_folder), "--data", data, "--out", str(tmp_path)]
    assert main([*arguments, "--context", "2", "--horizon", "2"]) == 0
    assert len(list(tmp_path.glob("*.npz"))) == 1


def test_export_lerobot(s3: None, squares: Path, tmp_path: Path) -> None:
    for data, out in ((upload(squares, "exported"), "there"), (str(squares), "here")):
        assert main(["export-lerobot", data, "--out", str(tmp_path / out)]) == 0
    here, there = (
        {str(p.relative_to(tmp_path / out)) for p in (tmp_path / out).rglob("*")}
        for out in ("here", "there")
    )
    assert here == there


def test_sweep(
    s3: None,
    token_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens, path = upload(token_shards, "swept"), tmp_path / "sweep.yaml"
    arguments = ["plan", tokens, "--budget", "1e9", "--out", str(path), "--no-probe", "1e9"]
    arguments += ["--sizes", "1", "--min-parameters", "2e4", "--max-parameters", "3e4"]
    arguments += ["--set", "num_steps=3", "window=2", "batch_size=2", "warmup_steps=2"]
    assert main(["sweep", *arguments]) == 0
    assert load_sweep(path).data == tokens
    commands: list[list[str]] = []

    def drive(runs: list[Any], *_: object, command: Any, **__: object) -> list[Any]:
        commands.extend(map(command, runs))
        return []

    monkeypatch.setattr(sweep_run, "drive", drive)
    arguments = ["run", str(path), "--out", str(tmp_path / "runs"), "--evaluate", tokens]
    assert main(["sweep", *arguments]) == 0
    assert {command[-1] for command in commands} == {tokens}
    assert load_sweep(tmp_path / "runs" / "sweep.yaml").data == tokens


def test_tokenize_and_verify(s3: None, frame_shards: Path, tmp_path: Path) -> None:
    from tests.small_models import small_tokenizer
    from tokenwm.checkpoint import save_tokenizer

    frames = upload(frame_shards, "tokenized")
    save_tokenizer(tmp_path / "tokenizer", small_tokenizer(), {})
    arguments = ["tokenize", frames, "--tokenizer", str(tmp_path / "tokenizer"), "--workers", "0"]
    assert main([*arguments, "--out", "s3://bucket/tokens"]) == 0
    assert main(["verify-shards", "s3://bucket/tokens", "--workers", "0"]) == 0
