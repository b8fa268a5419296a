"""Parquet files that a stranger may have made: what a few bytes claim to hold is not believed.

A column may be compressed, and its values may be numbers of a dictionary, so a file of kilobytes
can hold gigabytes of equal values. Texts and pictures are therefore read a few rows at a time.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow
import pyarrow.parquet

from tokenwm.data.readers.columns.arrays import FREE_BYTES, check_expansion
from tokenwm.errors import EpisodeError

WIDTH = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12}
"""Physical type → bytes of a value; of other types values differ in length."""
FREE_NUMBERS = 8 * FREE_BYTES
"""Bytes of numbers that any file may hold: those that never change take next to no room in it."""
MAX_VALUES = 2**30
"""Values read at once: a small file can claim any number of rows."""
MOST_ROWS = 1024
"""Rows with texts or pictures that are read at once."""


def read_groups(
    file: pyarrow.parquet.ParquetFile,
    groups: Sequence[int],
    names: Sequence[str],
    where: str,
    most: int = MAX_VALUES,
) -> pyarrow.Table:
    """Read row groups of a file.

    Args:
        file: The file.
        groups: Which.
        names: Columns.
        where: The file, for messages.
        most: Most values of these columns in these groups.

    Raises:
        EpisodeError: It claims far more bytes than it holds, or too many values.
        pyarrow.ArrowException: It is damaged.
        OSError: It cannot be read.
    """
    claimed = sum(c.num_values for group in groups for c in _columns(file, group, names))
    if claimed > most:
        place = "one row group" if len(groups) == 1 else f"{len(groups)} row groups"
        raise EpisodeError(
            f"{where} claims {claimed:,} numbers in {place}; at most {most:,} are read"
        )
    tables = [_read_group(file, group, names, where) for group in groups]
    return pyarrow.concat_tables(tables) if tables else _schema(file, names).empty_table()


def _read_group(
    file: pyarrow.parquet.ParquetFile, group: int, names: Sequence[str], where: str
) -> pyarrow.Table:
    wanted = _columns(file, group, names)
    stored = sum(c.total_compressed_size for c in wanted)
    numbers = sum(WIDTH.get(c.physical_type, 0) * c.num_values for c in wanted)
    check_expansion(numbers, stored, f"{where}: its numbers", free=FREE_NUMBERS)
    others = [c.total_uncompressed_size for c in wanted if c.physical_type not in WIDTH]
    if not others:
        return file.read_row_group(group, columns=list(names), use_threads=False)
    check_expansion(sum(others), stored, where)
    # No value of a dictionary is longer than all of it.
    num_rows = max(1, min(MOST_ROWS, FREE_BYTES // max(1, sum(others))))
    batches, size = [], 0
    for batch in file.iter_batches(
        num_rows, row_groups=[group], columns=list(names), use_threads=False
    ):
        size += batch.nbytes
        check_expansion(size, stored, where, free=FREE_NUMBERS)
        batches.append(batch)
    return pyarrow.Table.from_batches(
        batches, batches[0].schema if batches else _schema(file, names)
    )


def _schema(file: pyarrow.parquet.ParquetFile, names: Sequence[str]) -> pyarrow.Schema:
    return pyarrow.schema([file.schema_arrow.field(name) for name in names])


def _columns(file: pyarrow.parquet.ParquetFile, group: int, names: Sequence[str]) -> list[Any]:
    """Metadata of a group's columns that have one of the names, or lie in a column that has."""
    about = file.metadata.row_group(group)
    columns = [about.column(i) for i in range(about.num_columns)]
    return [
        c for c in columns if any(f"{c.path_in_schema}.".startswith(f"{name}.") for name in names)
    ]
