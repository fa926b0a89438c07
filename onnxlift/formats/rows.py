"""Arrays of which rows are read when they are asked for, and what every format needs to give them."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from onnxlift.arrays import Array
from onnxlift.errors import DataError, OnnxliftError, OptionError, listed

BLOCK_BYTES = 8 << 20
"""How much is read at once where a format lets us choose."""

PIECE_BYTES = 1 << 30
"""The largest piece, a chunk or what holds one, that is unpacked as a whole; a file with larger ones is refused."""

KEPT_BYTES = 256 << 20
"""How much of what is unpacked already may be kept for the next slice."""

ZARR_METADATA = ("zarr.json", ".zgroup", ".zarray")
"""The files that make a folder, or the root of a zip file, Zarr."""


class Rows(Protocol):
    """An array of which only consecutive rows are read, `rows[start:stop]`: those of the samples start to stop."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __getitem__(self, rows: slice, /) -> Any: ...


Stored = Rows | dict[str, Rows]
"""One unnamed array, or arrays by name."""


@dataclass(frozen=True)
class Form:
    """How what is not an array becomes one.

    `genome`: the FASTA file that the regions of a BED file are of. A pixel becomes (pixel / scale - mean) / std; `mean`
    and `std` have a number for each channel, or are empty for 0 and 1.
    """

    genome: Path | None = None
    scale: float = 255.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


AS_IT_IS = Form()
"""Without a genome, and pixels between 0 and 1."""


class FileRows:
    """Rows in a file. Reading them raises DataError, which names the file, where the file turns out to be damaged.

    `where`: the file, and the array in it, for messages. `read(start, stop)`, 0 <= start < stop <= N, gives these rows.
    Text of any width has dtype `str_`, width 0. A single number, of shape [], is `rows[:]`; for `read` it is one row.
    """

    def __init__(
        self,
        where: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        read: Callable[[int, int], Array],
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self._where = where
        self._read = read

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice, /) -> Array:
        start, stop, step = rows.indices(self.shape[0] if self.shape else 1)
        if step != 1:
            raise IndexError(f"rows are read in their order, not in steps of {step}")
        wanted = (max(stop - start, 0), *self.shape[1:])
        if 0 in wanted:
            return np.empty(wanted, self.dtype)
        with refusing(self._where):
            array = self._read(start, stop)
            if array.shape != wanted or (array.dtype != self.dtype and self.dtype.kind != "U"):
                found = f"{array.dtype} {list(array.shape)}"
                raise ValueError(f"rows {start} to {stop} are {found}, expected {self.dtype} {list(wanted)}")
            return array if self.shape else array.reshape(())


def in_order(
    blocks: Callable[[int], Iterator[Array]], shape: tuple[int, ...], dtype: np.dtype[Any], far: float
) -> Callable[[int, int], Array]:
    """The `read` of FileRows for what is read block by block, a slice best where the last one ended.

    `blocks(first)`: the rows from `first` on in arrays of any length. They are asked for anew for rows behind us, and
    for those that lie more than `far` rows ahead; what lies between is read and dropped.
    """
    stream: Iterator[Array] = iter(())
    left: Array = np.empty((0, *shape[1:]), dtype)  # what is read already, from row `at` on
    at = -1

    def read(start: int, stop: int) -> Array:
        nonlocal stream, left, at
        if at < 0 or not at <= start <= at + len(left) + far:
            stream, left, at = blocks(start), left[:0], start
        rows = np.empty((stop - start, *shape[1:]), object if dtype.kind == "U" else dtype)
        filled = 0
        try:
            while filled < len(rows):
                if not len(left):
                    left = next(stream, left)
                    if not len(left):
                        raise EOFError(f"it ends before row {start + filled}")
                dropped = min(start + filled - at, len(left))
                taken = left[dropped : dropped + len(rows) - filled]
                rows[filled : filled + len(taken)] = taken
                filled += len(taken)
                at += dropped + len(taken)
                left = left[dropped + len(taken) :]
        except BaseException:
            at = -1  # where the stream stands is not known
            raise
        if not len(left):
            left = left.copy()  # lets go of the block
        return rows.astype(str) if dtype.kind == "U" else rows

    return read


def in_pieces(
    read: Callable[[int, int], Array], shape: tuple[int, ...], dtype: np.dtype[Any], chunks: tuple[int, ...]
) -> Callable[[int, int], Array]:
    """`read` for what is stored in chunks: where they are wide enough, every chunk is unpacked once, not in each slice.

    Raises ValueError where a chunk is too large to be unpacked.
    """
    if math.prod(chunks) * dtype.itemsize > PIECE_BYTES:
        raise ValueError(f"its chunks of shape {list(chunks)} are too large: save it with smaller ones")
    if not shape:
        return read
    row = max(math.prod(shape[1:]) * dtype.itemsize, 1)
    step = chunks[0] * max(1, BLOCK_BYTES // (chunks[0] * row))
    if step * row > KEPT_BYTES:
        return read

    def blocks(first: int) -> Iterator[Array]:
        while first < shape[0]:
            last = min(first - first % step + step, shape[0])
            yield read(first, last)
            first = last

    return in_order(blocks, shape, dtype, step)


def named_arrays(arrays: Mapping[str, Rows | None]) -> dict[str, Rows]:
    """The arrays of a file, without what is none. Raises ValueError where nothing is left."""
    found = {name: rows for name, rows in arrays.items() if rows is not None}
    if not found:
        raise ValueError(f"it has no arrays of numbers{f', only {listed(arrays)}' if arrays else ''}")
    return found


@contextmanager
def refusing(where: str) -> Iterator[None]:
    """Makes DataError of whatever goes wrong inside: what reads damaged files for us raises any class of exception."""
    try:
        yield
    except OnnxliftError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise DataError(f"Cannot read the data {where}: {error.strerror}. Check the path.") from error
        reason = " ".join(str(error).split()).rstrip(".") or f"it is truncated ({type(error).__name__})"
        raise DataError(f"The data {where} cannot be used: {reason}. Save it again.") from error


def required(module: str, doing: str) -> Any:
    """A library that only some formats need, for "reading Zarr". Raises OptionError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise OptionError(f"{doing} needs {name}: pip install 'onnxlift[formats]' ({error})") from error


def whole(rows: Rows) -> Array:
    """All rows, in memory; also of a single number, shape []."""
    return np.asarray(rows[:])
