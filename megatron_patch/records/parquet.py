"""Parquet files as chunks of rows, by the library pyarrow, which is an extra: `pip install 'megatron-patch[parquet]'`.

Only the columns that are asked for are read, some rows at a time. A row becomes an object, as a line of JSON Lines
would: its columns without those that are null.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_patch.errors import UserError

SUFFIX = ".parquet"
_ROWS = 128  # rows decoded at a time
_BUFFER = 1 << 20  # bytes of a column read at a time
_NOT_UTF8 = b"\xff"  # stands for a row whose text is no UTF-8, as such a line does


def rows(path: Path, first: int, columns: Sequence[str] | None) -> Iterator[list[Any]]:
    """The rows from number `first` on, counted from 0, some at a time: objects of the columns that a row has.

    Args:
        columns: those of them that the file has are read; None reads all.

    Raises:
        UserError: pyarrow is not installed, the file is no whole Parquet file, or it has none of the columns.
    """
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{path}: Parquet files need pyarrow: pip install 'megatron-patch[parquet]'.") from None
    try:
        with ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            wanted = names if columns is None else [name for name in dict.fromkeys(columns) if name in names]
            if not wanted:
                asked, has = " or ".join(map(repr, columns or ())), ", ".join(names)
                raise UserError(f"{path} has no column {asked}; it has {has}: name one by --json-key.")
            groups, skip = _groups_from(file, first)
            for batch in file.iter_batches(_ROWS, row_groups=groups, columns=wanted, use_threads=False):
                kept = batch.slice(min(skip, len(batch)))
                skip = max(0, skip - len(batch))
                yield [_row(kept, i, wanted) for i in range(len(kept))]
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read to its end ({_first_line(error)}); fetch or pack it again.") from None


def _groups_from(file: Any, first: int) -> tuple[list[int], int]:
    """The row groups from the one that holds row `first` on, and how many of its rows lie before that."""
    before = 0
    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        if first < before + size:
            return list(range(group, file.num_row_groups)), first - before
        before += size
    return [], 0


def _row(batch: Any, i: int, columns: Sequence[str]) -> Any:
    """One row as an object; of a row without any value the first column is an empty text."""
    try:
        values = {name: value for name in columns if (value := batch.column(name)[i].as_py()) is not None}
    except UnicodeDecodeError:
        return _NOT_UTF8
    return values or {columns[0]: ""}


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
