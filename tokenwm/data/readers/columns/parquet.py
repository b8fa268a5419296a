"""Parquet files that a stranger may have made: what a few bytes claim to hold is not believed.

A column may be compressed, and its values may be numbers of a dictionary, so a file of kilobytes
can hold gigabytes of equal values. Texts and pictures are therefore read a few rows at a time.
"""

from collections.abc import Iterable, Sequence

import pyarrow
import pyarrow.parquet

from tokenwm.data.readers.columns.arrays import FREE_BYTES, check_expansion

WIDTH = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12}
"""Physical type → bytes of a value; of other types values differ in length."""
FREE_NUMBERS = 8 * FREE_BYTES
"""Bytes of numbers that any file may hold: those that never change take next to no room in it."""
MOST_ROWS = 1024
"""Rows with texts or pictures that are read at once."""


def read_groups(
    file: pyarrow.parquet.ParquetFile, groups: Iterable[int], names: Sequence[str], where: str
) -> pyarrow.Table:
    """Read row groups of a file.

    Args:
        file: The file.
        groups: Which.
        names: Columns.
        where: The file, for messages.

    Raises:
        EpisodeError: It claims far more bytes than it holds.
        pyarrow.ArrowException: It is damaged.
        OSError: It cannot be read.
    """
    tables = [_read_group(file, group, names, where) for group in groups]
    return pyarrow.concat_tables(tables) if tables else _schema(file, names).empty_table()


def _read_group(
    file: pyarrow.parquet.ParquetFile, group: int, names: Sequence[str], where: str
) -> pyarrow.Table:
    about = file.metadata.row_group(group)
    columns = [about.column(i) for i in range(about.num_columns)]
    wanted = [c for c in columns if _is_of(c.path_in_schema, names)]
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


def _is_of(path: str, names: Sequence[str]) -> bool:
    """True if a column of the file is one of some columns (names may have dots) or lies in one."""
    return any(path == name or path.startswith(f"{name}.") for name in names)
