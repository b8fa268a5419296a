from pathlib import Path

import pytest

from tests.documentation import python_blocks
from tests.small_datasets import LENGTHS, SIZE, write_frame_shards


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its streams to the GC
def test_shards_can_be_read_with_plain_webdataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = write_frame_shards(tmp_path / "data" / "pusht")
    monkeypatch.chdir(tmp_path)
    (example,) = (block for block in python_blocks("docs/data.md") if "webdataset" in block)
    names: dict[str, object] = {}
    exec(example, names)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"train_{index} ({length}, {SIZE}, {SIZE}, 3) ({length}, 2) move"
        for index, length in enumerate(LENGTHS["train"])
    ]
    last = f"train_{len(LENGTHS['train']) - 1}"
    assert (names["action"] == written[last]["action"]).all()  # type: ignore[attr-defined]
