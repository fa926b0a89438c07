"""Parquet, a file or a folder of files, read batch by batch. Its columns are arrays, one row a sample."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from onnxlift.arrays import Array
from onnxlift.errors import DataError
from onnxlift.formats.rows import BLOCK_BYTES, FileRows, Rows, Stored, in_order, named_arrays, refusing

_RAY_TENSORS = ("ray.data.arrow_tensor", "ray.data.arrow_tensor_v2")
_BUFFER_BYTES = 1 << 20  # without a buffer the whole column of a row group is read at once


@dataclass(frozen=True)
class _File:
    """A file, and how many rows each of its row groups has."""

    path: Path
    groups: list[int]

    @property
    def rows(self) -> int:
        return sum(self.groups)


@dataclass(frozen=True)
class _Tensor:
    """What an extension type adds to lists: the shape of a row as it is stored, and the order of its axes."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]


@contextmanager
def open_parquet(path: Path) -> Iterator[Stored]:
    """The columns by name: tensors of a fixed shape, lists of equal lengths (also nested), numbers as [N], and text.

    Of a folder, the files `*.parquet` one after the other in the order of their names. Columns of other types are left
    out.
    """
    with refusing(str(path)):
        files, schema = _files(path)
        stored = named_arrays({field.name: _column(path, files, field) for field in schema})
    yield stored


def _files(path: Path) -> tuple[list[_File], pa.Schema]:
    """The files that have rows, all with the same columns."""
    files: list[_File] = []
    schema = None
    for each in sorted(path.glob("[!._]*.parquet")) if path.is_dir() else [path]:
        if not each.is_file() or (path.is_dir() and each.resolve().parent != path.resolve()):
            raise DataError(f"The data {each} cannot be used: a link or a device is refused. Copy the file.")
        with refusing(str(each)), _opened(each) as file:
            found = file.schema_arrow.remove_metadata()  # not that of columns, which tells the shape of a tensor
            if files and not found.equals(schema, check_metadata=True):
                raise ValueError(f"its columns differ from those of {files[0].path.name}")
            schema = found
            groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            files.append(_File(each, groups))
    files = [file for file in files if file.rows]
    if schema is None or not files:
        raise ValueError("it has no rows")
    if len(set(schema.names)) != len(schema.names):
        raise ValueError("several of its columns have the same name")
    return files, schema


def _opened(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(pa.OSFile(str(path)), buffer_size=_BUFFER_BYTES, page_checksum_verification=True)


def _column(path: Path, files: list[_File], field: pa.Field) -> Rows | None:
    """The rows of a column; None where it is neither of numbers nor of text."""
    where = f"{path}, column {field.name!r}"
    stored = field.type.storage_type if isinstance(field.type, pa.BaseExtensionType) else field.type
    value = stored
    while pa.types.is_list(value) or pa.types.is_large_list(value) or pa.types.is_fixed_size_list(value):
        value = value.value_type
    text = stored is value and (pa.types.is_string(value) or pa.types.is_large_string(value))
    if not (text or pa.types.is_integer(value) or pa.types.is_floating(value) or pa.types.is_boolean(value)):
        return None
    samples = sum(file.rows for file in files)
    with refusing(where):
        tensor = _tensor(field)
        first = next(_batches(files, field.name, tensor, 0, 1))
    dtype = np.dtype(str) if text else first.dtype
    step = max(1, BLOCK_BYTES // max(math.prod(first.shape[1:]) * dtype.itemsize, 1))
    shape = (samples, *first.shape[1:])

    def blocks(start: int) -> Iterator[Array]:
        return _batches(files, field.name, tensor, start, step)

    far = max(max(file.groups) for file in files)
    return FileRows(where, shape, dtype, in_order(blocks, shape, dtype, far))


def _tensor(field: pa.Field) -> _Tensor | None:
    """What the type of a column says of the shape of its rows; None where lists say all."""
    kind = field.type
    if isinstance(kind, pa.FixedShapeTensorType):
        return _Tensor(tuple(kind.shape), tuple(kind.permutation or range(len(kind.shape))))
    about: dict[bytes, bytes] = field.metadata or {}
    if isinstance(kind, pa.BaseExtensionType) and kind.extension_name in _RAY_TENSORS:  # where Ray is imported
        shape = tuple(kind.shape)
    elif about.get(b"ARROW:extension:name", b"").decode() in _RAY_TENSORS:
        shape = tuple(json.loads(about[b"ARROW:extension:metadata"]))
    else:
        return None
    return _Tensor(shape, tuple(range(len(shape))))


def _batches(files: list[_File], name: str, tensor: _Tensor | None, first: int, step: int) -> Iterator[Array]:
    """The rows of a column from `first` on, at most `step` at once."""
    for each in files:
        if first >= each.rows:
            first -= each.rows
            continue
        groups = list(range(len(each.groups)))
        while first >= each.groups[groups[0]]:
            first -= each.groups[groups.pop(0)]
        with _opened(each.path) as file:
            for batch in file.iter_batches(step, row_groups=groups, columns=[name], use_threads=False):
                column = batch.column(batch.schema.get_field_index(name))[first:]
                first = max(first - batch.num_rows, 0)
                if len(column):
                    yield _array(column, tensor)


def _array(column: Any, tensor: _Tensor | None) -> Array:
    """The rows of a column as one array. Raises ValueError for what is missing or of unequal length."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    shape = [len(column)]
    while True:
        if column.null_count:
            raise ValueError("it has missing values (null): leave these rows out, or fill them")
        if isinstance(column, pa.FixedSizeListArray):
            shape.append(column.type.list_size)
        elif isinstance(column, pa.ListArray | pa.LargeListArray):
            shortest, longest = pc.min_max(pc.list_value_length(column)).as_py().values()
            if shortest != longest:
                raise ValueError(f"its lists have {shortest} to {longest} elements: samples are of one shape")
            shape.append(shortest)
        else:
            break
        column = column.flatten()
    values: Array = column.to_numpy(zero_copy_only=False)
    if tensor is None:
        return values.reshape(shape)
    return values.reshape(shape[0], *tensor.shape).transpose(0, *(axis + 1 for axis in tensor.axes))
