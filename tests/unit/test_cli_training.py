from pathlib import Path

from tokenwm.cli.training import keep_earlier_log


def test_logs_of_a_continued_run_are_kept_in_order(tmp_path: Path) -> None:
    log = tmp_path / "metrics.csv"
    keep_earlier_log(log)  # nothing there: nothing happens
    for number in range(3):
        log.write_text(f"run {number}")
        keep_earlier_log(log)
    assert not log.exists()
    kept = sorted(tmp_path.iterdir())
    assert [path.name for path in kept] == [f"metrics.00{n}.csv" for n in range(3)]
    assert [path.read_text() for path in kept] == ["run 0", "run 1", "run 2"]
