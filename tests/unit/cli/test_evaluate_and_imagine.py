import json
from pathlib import Path

import pytest

from tokenwm.cli.devices import device_from
from tokenwm.cli.main import main
from tokenwm.cli.verbs.evaluate import model_files
from tokenwm.errors import TokenwmError


def test_evaluate_writes_a_report_and_prints_a_table(
    model_folder: Path, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.csv").write_text("step,train/loss\n1,2.0\n2,1.0\n")
    arguments = ["evaluate", str(model_folder), "--data", str(squares), "--out", f"{tmp_path}/out"]
    arguments += ["--horizon", "4", "--context", "2", "--starts", "1", "--examples", "1"]
    arguments += ["--episodes", "2", "--curves", f"tokenizer={tmp_path}/metrics.csv"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "model − persistence" in printed and "codes are in use" not in printed
    assert "on 2 episodes the model" in printed and str(tmp_path / "out" / "index.html") in printed
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["num_episodes"] == 2 and metrics["horizons"] == [1, 2, 3, 4]
    assert metrics["provenance"]["model_folder"] == str(model_folder)
    assert (tmp_path / "out" / "plots" / "training_tokenizer.png").is_file()


def test_a_run_folder_will_do_and_the_report_goes_into_it(
    model_folder: Path, squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = model_folder.parent
    (run / "logs").mkdir(exist_ok=True)
    (run / "logs" / "metrics.csv").write_text("step,train/loss\n1,2.0\n2,1.0\n")
    arguments = ["evaluate", str(run), "--data", str(squares), "--horizon", "2", "--context", "1"]
    assert main([*arguments, "--starts", "1", "--examples", "0", "--temperature", "1"]) == 0
    assert (run / "report" / "index.html").is_file()
    assert (run / "report" / "plots" / "training_world_model.png").is_file()
    page = run / "report" / "index.html"
    written = page.stat().st_mtime_ns
    same = [*arguments, "--starts", "1", "--examples", "0", "--temperature", "1"]
    assert main(same) == 0
    assert page.stat().st_mtime_ns == written
    monkeypatch.setattr("tokenwm.cli.verbs.evaluate.data_of", lambda model: str(squares))
    assert main([argument for argument in same if argument not in ("--data", str(squares))]) == 0
    assert page.stat().st_mtime_ns == written  # the model's own data are the same
    page.write_text("damaged")  # what is not whole is made again, and so is what has other inputs
    assert main(same) == 0
    written = page.stat().st_mtime_ns
    assert page.read_text() != "damaged"
    (run / "logs" / "metrics.csv").write_text("step,train/loss\n1,2.0\n2,0.5\n")
    assert main(same) == 0
    assert page.stat().st_mtime_ns != written


def test_imagine_writes_three_files(
    model_folder: Path, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["imagine", str(model_folder), "--data", str(squares), "--out", str(tmp_path)]
    arguments += ["--episode", "test_1", "--start", "2", "--context", "2", "--horizon", "3"]
    assert main([*arguments, "--samples", "2", "--top-k", "8", "--seed", "7"]) == 0
    assert main([*arguments, "--actions", "random"]) == 0
    printed = capsys.readouterr().out
    assert "PSNR" in printed and "episode test_1 from step 2" in printed
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert files.keys() == {".imagine.json"} | {
        f"test_1_0002_{whose}.{suffix}"
        for whose in ("own", "random")
        for suffix in ("gif", "mp4", "npz")
    }
    assert main([*arguments, "--actions", "random"]) == 0
    assert "made before of the same data and options, and kept" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    assert main([*arguments, "--actions", "random", "--overwrite"]) == 0
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} != files


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--horizon", "0"], "imagination_horizon=0; use at least 1"),
        (["--temperature", "-1"], "temperature=-1"),
        (["--horizon", "40"], "the longest has 20"),
        (["--curves", "no-file"], "expected TITLE=CSV"),
        (["--device", "abacus"], "--device abacus cannot be used"),
    ],
)
def test_mistakes_are_one_line(
    model_folder: Path,
    squares: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["evaluate", str(model_folder), "--data", str(squares), *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(TokenwmError, match="--device cuda:99 cannot be used.*try cpu"):
        device_from("cuda:99")


def test_heads_are_no_part_of_what_results_are_made_of(tmp_path: Path) -> None:
    kept = [tmp_path / "config.yaml", tmp_path / "tokenizer" / "config.yaml"]
    for path in [*kept, tmp_path / "heads" / "readout" / "head.json"]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    assert model_files(tmp_path) == kept
