"""Parquet tables whose errors name file and column: columns become numpy arrays of a known shape, or say why not."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from envs.data.files import write_whole
from envs.data.store import EpisodeError

LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError)  # of a file that is cut, changed or something else


def read_table(path: Path, columns: Sequence[str] | None = None, episode: int | None = None) -> pa.Table:
    """The table of a parquet file; only the rows of one episode where `episode` is given."""
    if not path.is_file():
        raise EpisodeError(f"{path} is missing")
    filters = None if episode is None else [("episode_index", "=", episode)]
    try:
        if columns is not None:
            there = pq.read_schema(path).names
            if absent := [name for name in columns if name not in there]:
                raise EpisodeError(f"{path} has no column `{absent[0]}`; it has {', '.join(there)}")
        return pq.read_table(
            path, columns=columns, filters=filters, use_threads=False, page_checksum_verification=True,
            partitioning=None,  # folders are named chunk-000; nothing of a path is a column
        )  # fmt: skip
    except UNREADABLE as error:
        raise EpisodeError(f"{path} is damaged or no parquet file ({_first_line(error)})") from error


def write_table(path: Path, table: pa.Table) -> bytes:
    """Write a table whole or not at all; returns its bytes. Pages carry checksums, so that a flipped bit is found."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="snappy", write_page_checksum=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, buffer.getvalue())
    return buffer.getvalue()


def numbers(table: pa.Table, name: str, shape: tuple[int, ...], dtype: type, where: Path) -> np.ndarray:
    """A column as an array (rows, *shape) of `dtype`, which must hold every value of the column's own type.

    shape: () of a column of single numbers; a list of one number is taken for that number too.
    """
    if name not in table.column_names:
        raise EpisodeError(f"{where} has no column `{name}`; it has {', '.join(table.column_names)}")
    column = table.column(name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # of a table without rows
        column = pa.concat_arrays(column.chunks) if column.chunks else pa.array([], column.type)
    size = int(np.prod(shape, dtype=int))
    nested = False
    while any(is_kind(column.type) for is_kind in LISTS):
        if column.null_count:
            raise EpisodeError(f"{where}: column `{name}` has {column.null_count} rows without a value")
        column, nested = column.flatten(), True
    kind = column.type
    right = {
        np.float32: pa.types.is_floating, np.float64: pa.types.is_floating, np.int64: pa.types.is_integer,
        np.bool_: lambda t: pa.types.is_boolean(t) or pa.types.is_integer(t),
    }[dtype]  # fmt: skip
    if not right(kind):
        wanted = {np.float32: "float32", np.float64: "float64", np.int64: "int64", np.bool_: "bool"}[dtype]
        raise EpisodeError(f"{where}: column `{name}` is of type {table.column(name).type}, and not of {wanted}")
    if column.null_count:
        raise EpisodeError(f"{where}: column `{name}` has {column.null_count} rows without a value")
    flat = column.to_numpy(zero_copy_only=False)
    if flat.size != len(table) * size:
        per_row = flat.size / len(table) if len(table) else 0
        raise EpisodeError(f"{where}: column `{name}` has {per_row:g} numbers a row, and not {size}")
    if nested and len(table) and _ragged(table.column(name), size):
        raise EpisodeError(f"{where}: column `{name}` has rows of different lengths, and not {size} numbers each")
    return flat.astype(dtype).reshape(len(table), *shape)


def _ragged(column: pa.ChunkedArray, size: int) -> bool:
    """Whether the rows of a list column, of one level, have other lengths than `size`."""
    if pa.types.is_fixed_size_list(column.type) or pa.types.is_nested(column.type.value_type):
        return False
    lengths = pa.compute.list_value_length(column).to_numpy()
    return bool((lengths != size).any())


def vectors(values: np.ndarray) -> pa.Array:
    """(rows, n) -> lists of n, or (rows,) -> single numbers, as LeRobot keeps a feature of shape (n,) or (1,)."""
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def with_index(table: pa.Table, index: str) -> pa.Table:
    """A table that pandas reads with the column `index` as its index, as LeRobot's tasks are kept.

    What pandas keeps in a schema: https://pandas.pydata.org/docs/development/developer.html
    """
    columns = [
        {"name": f.name, "field_name": f.name, "pandas_type": "unicode" if pa.types.is_string(f.type) else str(f.type),
         "numpy_type": "object" if pa.types.is_string(f.type) else str(f.type), "metadata": None}
        for f in table.schema
    ]  # fmt: skip
    named = {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object",
             "metadata": {"encoding": "UTF-8"}}  # fmt: skip
    meta = {
        "index_columns": [index], "column_indexes": [named], "columns": columns,
        "creator": {"library": "pyarrow", "version": pa.__version__}, "pandas_version": "2.2.0",
    }  # fmt: skip
    return table.replace_schema_metadata({"pandas": json.dumps(meta)})


def texts(table: pa.Table, name: str, where: Path) -> list[str]:
    """A column of texts."""
    if name not in table.column_names:
        raise EpisodeError(f"{where} has no column `{name}`; it has {', '.join(table.column_names)}")
    values = table.column(name).to_pylist()
    if not all(isinstance(value, str) for value in values):
        raise EpisodeError(f"{where}: column `{name}` is of type {table.column(name).type}, and not of text")
    return values


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON file that holds an object. EpisodeError names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EpisodeError(f"{path} is missing") from error
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise EpisodeError(f"{path} is damaged or no JSON ({_first_line(error)})") from error
    if not isinstance(value, dict):
        raise EpisodeError(f"{path} must hold settings by name, and holds {type(value).__name__}")
    return value


def read_json_lines(path: Path) -> list[Mapping[str, Any]]:
    """A file of one JSON object a line, as LeRobot v2.1 keeps episodes and tasks."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise EpisodeError(f"{path} is missing") from error
    except (OSError, ValueError) as error:
        raise EpisodeError(f"{path} is damaged ({_first_line(error)})") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise EpisodeError(f"{path}: line {number} is damaged or no JSON ({_first_line(error)})") from error
        if not isinstance(value, dict):
            raise EpisodeError(f"{path}: line {number} must hold settings by name, and holds {type(value).__name__}")
        found.append(value)
    return found


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
