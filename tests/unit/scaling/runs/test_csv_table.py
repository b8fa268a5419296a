"""A CSV file is read as it was meant, or refused with what is wrong and what to do."""

from pathlib import Path

import pytest

from tokenwm.errors import SweepError
from tokenwm.scaling.runs.csv_table import Table, read_number, read_table


def table_of(folder: Path, content: str | bytes) -> Table:
    path = folder / "runs.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_table(path)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_delimiters_and_ends_of_lines(tmp_path: Path, delimiter: str, end: str) -> None:
    rows = [["N", '"loss, in nats"', "tokens"], ["1e9", '"2.5"', "3"]]
    table = table_of(tmp_path, end.join(delimiter.join(row) for row in rows))
    assert table.header == ("N", "loss, in nats", "tokens")
    (line,) = table.lines
    assert line.cells == {"N": "1e9", "loss, in nats": "2.5", "tokens": "3"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_that_say_what_they_are(tmp_path: Path, encoding: str) -> None:
    assert table_of(tmp_path, "größe,D\n1,2\n".encode(encoding)).header == ("größe", "D")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("größe,D\n1,2\n".encode("latin-1"), r"runs\.csv is not UTF-8 \(byte 2.*iconv"),
        ("N,D\n1,2\n".encode("utf-16-le"), "holds zero bytes.*UTF-8"),
        (b"\xff\xfeN", "is not UTF-16, as its first bytes say"),
        ("", "is empty; expected names of columns"),
        ("# a comment\n\n", "is empty; expected names of columns"),
        ("# N,D\n1e9,2\n", "line 2: expected names of columns, found numbers"),
        ("N,D,loss\n\n,,\n", "has no runs: nothing stands below its header in line 1"),
        ("N,D, loss,loss\n1,2,3,4\n", "has 4 columns, several named 'loss'; rename one"),
        ('N,D\n1,2\n"3,4\n5,6\n', "from line 3: .*close each quote"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(SweepError, match=message):
        table_of(tmp_path, content)


def test_line_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    text = '# from a cluster, 2024\n"# quoted"\n\nN,D\n1,2\n\n , \n3,4\n"5\n",6\n7,8\n'
    lines = table_of(tmp_path, text).lines
    assert [(line.number, line.cells["N"]) for line in lines] == [
        (5, "1"),
        (8, "3"),
        (10, "5"),
        (11, "7"),
    ]


def test_only_cells_with_text_are_surplus(tmp_path: Path) -> None:
    empty, surplus, short = table_of(tmp_path, "N,D,,\n1,2,,,,\n1,2,3\n1\n").lines
    assert not empty.fault
    assert "it has 3 cells for 2 named columns" in surplus.fault
    assert (short.cells, short.fault) == ({"N": "1", "D": ""}, "")


@pytest.mark.parametrize(
    ("text", "whole", "value"),
    [
        ("1e9", False, 1e9),
        ("10,000,000", True, 1e7),
        ("1,234.5", True, 1234.5),
        ("2,512", False, None),
        ("1,00", True, None),
        ("0,512", True, None),
        ("1000,000", True, None),
        ("70M", True, None),
        ("", False, None),
    ],
)
def test_numbers_are_read_where_there_is_one_way(
    text: str, whole: bool, value: float | None
) -> None:
    assert read_number(text, whole=whole) == value
