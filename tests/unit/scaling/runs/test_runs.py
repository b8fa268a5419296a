"""Runs are read from folders and CSV files; what cannot be read is listed with its reason."""

import json
from pathlib import Path

import pytest

from tests.small_sweeps import at_other_rates, grid_points, write_sweep
from tokenwm.errors import SweepError
from tokenwm.scaling.runs.runs import read_points
from tokenwm.scaling.law.select import select


def write_csv(folder: Path, text: str) -> Path:
    path = folder / "runs.csv"
    path.write_text(text)
    return path


def test_a_sweep_folder_is_read_back(tmp_path: Path) -> None:
    points = grid_points()
    read = read_points(write_sweep(tmp_path, points))
    assert sorted(read.points, key=lambda point: point.path) == points
    assert not read.left_out
    assert not read.notes


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"loss": float("nan")}, "loss is nan"),
        ({"loss": -1.0}, "loss is -1"),
        ({"loss": None}, "loss is None"),
        ({"loss": "low"}, "loss is 'low'"),
        ({"num_tokens": True}, "num_tokens is True"),
        ({"flops": float("inf")}, "flops is inf"),
        ({"status": "failed"}, "status is 'failed'"),
    ],
)
def test_a_run_without_a_usable_result_is_listed(
    tmp_path: Path, values: dict[str, object], reason: str
) -> None:
    write_sweep(tmp_path, grid_points())
    path = tmp_path / "runs" / "n0_d0" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    read = read_points(tmp_path)
    assert len(read.points) == 24
    (left,) = read.left_out
    assert left.path == "n0_d0"
    assert reason in left.reason


@pytest.mark.parametrize(("text", "reason"), [("{", "not JSON"), ("[]", "holds a list")])
def test_a_damaged_result_is_listed(tmp_path: Path, text: str, reason: str) -> None:
    write_sweep(tmp_path, grid_points())
    (tmp_path / "runs" / "n0_d0" / "result.json").write_text(text)
    (tmp_path / "runs" / "n1_d1" / "result.json").unlink()
    left = {item.path: item.reason for item in read_points(tmp_path).left_out}
    assert reason in left["n0_d0"]
    assert "has not finished" in left["n1_d1"]


def test_checks_of_the_learning_rate_are_read_apart(tmp_path: Path) -> None:
    points = grid_points()
    first, second = at_other_rates(points[0], {5e-4: 1.1, 2e-3: 1.2})
    write_sweep(tmp_path, [*points, first, second])
    (tmp_path / second.path / "result.json").write_text('{"status": "diverged"}')
    read = read_points(tmp_path)
    assert len(read.points) == 25
    assert read.rate_checks == (first,)
    (left,) = read.left_out
    assert (left.path, left.reason) == (second.path, "its status is 'diverged'")


def test_metrics_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    write_sweep(tmp_path, grid_points())
    path = tmp_path / "runs" / "n0_d0" / "result.json"
    values = json.loads(path.read_text()) | {"metrics": {"psnr": 3, "horizon": float("nan")}}
    path.write_text(json.dumps(values))
    point = next(item for item in read_points(tmp_path).points if item.path == "n0_d0")
    assert point.metrics == {"psnr": 3.0}


def test_columns_of_the_published_points_are_found(tmp_path: Path) -> None:
    """Names and order as Besiroglu et al. 2024 published them: tokens follow from FLOPs."""
    path = write_csv(
        tmp_path,
        "x,y,color,Model Size,Training FLOP,hex_color,loss\n1,2,#faebdd,1e9,6e19,#faebdd,2.5\n",
    )
    read = read_points(path)
    (point,) = read.points
    assert (point.num_parameters, point.num_tokens, point.flops, point.loss) == (
        1e9,
        1e10,
        6e19,
        2.5,
    )
    assert any("'Model Size' was taken for N" in note for note in read.notes)
    assert any("D = C / (6 N)" in note for note in read.notes)


@pytest.mark.parametrize(
    "header",
    [
        "loss,Training Tokens,Model Size,Training FLOP",
        "val_loss,train_tokens,num_params,train_flops",
        "Loss,TrainingTokens,ModelSize,TrainingFLOPs",
        "L,D,N,C",
        "validation loss,Training-Tokens,MODEL SIZE,compute",
    ],
)
def test_names_are_known_however_they_are_written(tmp_path: Path, header: str) -> None:
    read = read_points(write_csv(tmp_path, f"{header}\n2.5,1e10,1e9,7e19\n"))
    (point,) = read.points
    assert (point.num_parameters, point.num_tokens, point.flops) == (1e9, 1e10, 7e19)
    assert point.loss == 2.5
    assert len(read.notes) == 4


def test_columns_can_be_mapped(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "a,b,q,psnr,label\n1e9,1e10,2.5,30,best\n")
    columns = {"N": "a", "D": "b", "loss": "q", "name": "label"}
    (point,) = read_points(path, columns, ["psnr"]).points
    assert (point.path, point.flops, point.metrics) == ("best", 6e19, {"psnr": 30.0})


def test_lines_that_cannot_be_used_are_listed(tmp_path: Path) -> None:
    text = "N,D,loss,status\n1e9,1e10,2.5,\n1e9,,2.5,\n1e9,x,2.5,\n1e9,1e10,nan,\n1,1,1,failed\n"
    read = read_points(write_csv(tmp_path, text))
    assert len(read.points) == 1
    assert [item.path for item in read.left_out] == ["line 3", "line 4", "line 5", "line 6"]
    assert "'D' is ''" in read.left_out[0].reason
    assert "'D' is 'x'" in read.left_out[1].reason
    assert "loss is nan" in read.left_out[2].reason
    assert "failed" in read.left_out[3].reason


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    text = "name,N,D,loss\nsmall,1,1,3\nlarge,2,1,2\nsmall,1,2,2.5\n,2,2,1\n"
    points = read_points(write_csv(tmp_path, text)).points
    paths = ["small (line 2)", "large", "small (line 4)", "line 5"]
    assert [point.path for point in points] == paths
    _, left_out = select(points, drop_highest_loss=1, exclude={})
    assert [item.path for item in left_out] == ["small (line 2)"]


def test_cells_that_a_law_can_do_without_are_ignored_with_a_note(tmp_path: Path) -> None:
    text = "N,D,loss,seconds,seed,lr,psnr\n1,1,3,1:20:33,a,,n/a\n1,2,2,60,1,1e-3,30\n"
    read = read_points(write_csv(tmp_path, text), metrics=["psnr"])
    first, second = read.points
    assert (first.seconds, first.seed, first.learning_rate, first.metrics) == (None, None, None, {})
    assert (second.seconds, second.seed, second.metrics) == (60, 1, {"psnr": 30})
    assert sum("1 of 2 cells are no plain numbers" in note for note in read.notes) == 3
    assert any("'seconds'" in note and "'1:20:33' in line 2" in note for note in read.notes)


def test_figures_as_spreadsheets_write_them(tmp_path: Path) -> None:
    text = 'N;D;loss;status;\n"10,000,000";1,000,000,000;2.5;Finished;\n1;1;2,512;FINISHED;\n'
    read = read_points(write_csv(tmp_path, text))
    (point,) = read.points
    assert (point.num_parameters, point.num_tokens) == (1e7, 1e9)
    (left,) = read.left_out
    assert left.path == "line 3"
    assert "'loss' is '2,512', expected a number in plain units" in left.reason


def test_decimal_commas_between_commas_are_an_error_that_says_so(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "N,D,loss\n1e9,1e10,2,5\n1e9,2e10,2,4\n")
    with pytest.raises(SweepError, match=r"line 2: it has 4 cells for 3 .*decimals with a point"):
        read_points(path)


@pytest.mark.parametrize(
    ("columns", "metrics", "message"),
    [
        ({}, [], "no column for loss among 'N', 'D', 'quality'; map it, for example --columns loss="),
        ({"loss": "qualty"}, [], "no column 'qualty'; there are: N, D, quality"),
        ({"lost": "quality"}, [], "unknown key 'lost'"),
        ({"loss": "quality"}, ["psnr"], "no column 'psnr'"),
    ],
)
def test_a_column_that_is_not_there_is_an_error(
    tmp_path: Path, columns: dict[str, str], metrics: list[str], message: str
) -> None:
    path = write_csv(tmp_path, "N,D,quality\n1,2,3\n")
    with pytest.raises(SweepError, match=message.replace("(", r"\(")):
        read_points(path, columns, metrics)


def test_what_is_not_a_sweep_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="does not exist"):
        read_points(tmp_path / "absent.csv")
    with pytest.raises(SweepError, match="no folder 'runs'"):
        read_points(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(SweepError, match="holds no finished run"):
        read_points(tmp_path)
    with pytest.raises(SweepError, match="for a CSV file only"):
        read_points(tmp_path, {"N": "a"})
