"""What `info`, `report`, `prepare --dry-run`, `--json` and `-v` say."""

import json
import logging
from pathlib import Path

import pytest

from tests.unit.data.readers.odd_datasets import FORMATS, make_rows
from tokenwm.cli.main import main
from tokenwm.cli.verbs.info import describe
from tokenwm.data.shards.manifest import Manifest
from tokenwm.errors import TokenwmError


def result(argv: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, object]:
    """What a verb prints with ``--json``, and nothing else, on stdout."""
    capsys.readouterr()
    assert main([*argv, "--json"]) == code
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_a_dataset(frame_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(frame_shards)]) == 0
    printed = capsys.readouterr().out
    assert "a dataset of frames" in printed and "next: tokenwm tokenizer fit" in printed
    found, manifest = result(["info", str(frame_shards)], capsys), Manifest.load(frame_shards)
    splits = found["splits"]
    assert isinstance(splits, dict) and splits["train"]["steps"] == manifest.num_steps("train")
    assert splits["train"]["bytes"] == sum(
        shard.num_bytes for shard in manifest.shards if shard.split == "train"
    )
    assert found["rate"] == manifest.control_rate
    assert isinstance(found["manifest_sha256"], str) and len(found["manifest_sha256"]) == 64


def test_a_checkpoint_and_its_run(model_folder: Path, token_shards: Path) -> None:
    found = describe(model_folder)
    assert found["is"] == "a checkpoint of a world model" and found["parameters"] > 1000
    run = describe(model_folder.parent)
    assert run["is"] == "a training run" and run["model"]["parameters"] == found["parameters"]
    assert run["next"] == f"tokenwm evaluate {model_folder.parent}"
    tokens = describe(token_shards)
    assert tokens["is"] == "a dataset of tokens" and tokens["codebook_size"] > 1
    assert tokens["actions_per_step"] == found["actions_per_step"] == 1
    assert found["heads"] == []


@pytest.mark.parametrize("name", ["configs/sweep/debug.yaml", "data_recipes/pusht.yaml"])
def test_files_that_come_with_tokenwm(name: str) -> None:
    found = describe(Path(__file__).parents[3] / name)
    assert found["is"] in ("a plan of a sweep", "a recipe") and found["name"]


def test_what_is_nothing_of_ours(tmp_path: Path) -> None:
    with pytest.raises(TokenwmError, match="tokenwm inspect .* says what they hold"):
        describe(tmp_path)
    with pytest.raises(TokenwmError, match="does not exist"):
        describe(tmp_path / "x")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    rows = [make_rows(seed) for seed in range(6)]
    path = FORMATS["videos_npz"].write(tmp_path / "source", rows)
    assert main(["inspect", str(path), "--recipe", str(tmp_path / "r.yaml")]) == 0
    return tmp_path / "r.yaml"


def test_a_dry_run_says_what_prepare_makes(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    planned = result(["prepare", str(recipe), "--dry-run"], capsys)
    assert sorted(tmp_path.rglob("*")) == before
    argv = ["prepare", str(recipe), "--out", str(tmp_path / "out"), "--workers", "0"]
    made = result(argv, capsys)
    assert isinstance(planned["splits"], dict) and isinstance(made["splits"], dict)
    for split, part in planned["splits"].items():
        really = made["splits"][split]
        assert part["num_episodes"] == really["episodes"]
        assert part["num_shards"] == really["shards"]
        assert abs(part["num_steps"] - really["steps"]) <= 2
    assert main(["prepare", str(recipe)]) == 1
    assert "Give --out DIR, or --dry-run" in capsys.readouterr().err


def test_results_as_json(
    recipe: Path,
    model_folder: Path,
    squares: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "source"
    inspected = result(["inspect", str(next(source.iterdir()).parent)], capsys)
    assert inspected["num_episodes"] == 6 and "recipe" in inspected
    assert result(["verify-shards", str(squares)], capsys)["problems"] == []
    short = ["--data", str(squares), "--horizon", "2", "--context", "1"]
    out = ["--out", str(tmp_path / "evaluated"), "--starts", "1", "--examples", "1"]
    evaluate = ["evaluate", str(model_folder), *short, *out, "--episodes", "2"]
    first = result(evaluate, capsys)
    assert first["num_episodes"] == 2 and result(evaluate, capsys) == first  # made before
    page = tmp_path / "evaluated" / "index.html"
    before = page.read_text()
    page.unlink()
    assert main(["report", str(tmp_path / "evaluated")]) == 0
    assert len(page.read_text()) > 0.5 * len(before)
    assert describe(tmp_path / "evaluated")["is"] == "a report of an evaluation"
    imagine = ["imagine", str(model_folder), *short, "--out", str(tmp_path / "imagined")]
    futures = result(imagine, capsys)["futures"]
    assert isinstance(futures, list) and futures[0]["psnr"] > 0


def test_data_that_is_not_known_is_asked_for(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["imagine", str(model_folder), "--out", str(tmp_path)]) == 1
    assert "--data" in capsys.readouterr().err


def test_more_is_said_on_request_and_warnings_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def practise(argv: list[str]) -> int:
        logger = logging.getLogger("tokenwm.practise")
        for _ in range(2):
            logger.warning("%s is odd", "x\x1b[2J")
            logger.info("a share")
            logger.debug("a detail")
        return 0

    monkeypatch.setattr("tokenwm.cli.verbs.info.main", practise)
    for options, said in (
        ([], ["warning: x\ufffd[2J is odd"]),
        (["-v"], ["warning: x\ufffd[2J is odd", "a share"]),
        (["-vv"], ["warning: x\ufffd[2J is odd", "a share", "a detail"]),
    ):
        assert main(["info", str(tmp_path), *options]) == 0
        assert capsys.readouterr().err.splitlines() == said
    assert main(["-v", "info", str(tmp_path)]) == 0
    assert "a share" in capsys.readouterr().err
