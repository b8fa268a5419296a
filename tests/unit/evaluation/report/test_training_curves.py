from pathlib import Path

from tokenwm.evaluation.report.training_curves import read_losses


def test_a_continued_run_is_read_as_one(tmp_path: Path) -> None:
    (tmp_path / "metrics.000.csv").write_text("step,train/loss\n0,4.0\n10,3.0\n20,2.5\n")
    (tmp_path / "metrics.csv").write_text("step,train/loss\n20,2.0\n30,1.0\n")
    points = read_losses(tmp_path / "metrics.csv")["train/loss"]
    assert points == [(0, 4.0), (10, 3.0), (20, 2.0), (30, 1.0)]
