"""The benchmark of training steps times what training does, and says so in JSON."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import bench_training  # noqa: E402

SIZES = "--size small --rows 1 --num-steps 2 --num-frame-tokens 4 --frames 2 --repetitions 1"


def test_every_step_is_timed_beside_its_floor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_training.py", "--clock", "cpu", *SIZES.split()])
    bench_training.main()
    results = json.loads(capsys.readouterr().out)["results"]
    names = ["world_model", "tokenizer", "world_model_float32", "tokenizer_float32"]
    assert [result["step"] for result in results] == names
    for result in results:
        assert 0.0 < result["s_best"] <= result["s"]
        assert 0.0 < result["floor_s"] < result["s"]


def test_a_step_that_there_is_not_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_training.py", "--steps", "iris_tokenizer"])
    with pytest.raises(SystemExit, match="--steps iris_tokenizer: choose from world_model"):
        bench_training.main()
