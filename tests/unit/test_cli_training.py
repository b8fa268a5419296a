from pathlib import Path

import pytest

from tokenwm.cli.training import keep_earlier_log, last_checkpoint
from tokenwm.data.atomic import older_of, replace_folder


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
