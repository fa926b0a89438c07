"""What a file of data holds: arrays of which rows are read when they are asked for. One door for every format."""

from __future__ import annotations

import gzip
import importlib
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from onnxlift.arrays import Array, PathLike
from onnxlift.errors import DataError, OnnxliftError, OptionError, listed
from onnxlift.feed import Port

BLOCK_BYTES = 8 << 20
"""How much is read at once where a format lets us choose."""

PIECE_BYTES = 1 << 30
"""The largest piece, a chunk or what holds one, that is unpacked as a whole; a file with larger ones is refused."""

KEPT_BYTES = 256 << 20
"""How much of what is unpacked already may be kept for the next slice."""

ZARR_METADATA = ("zarr.json", ".zgroup", ".zarray")
"""The files that make a folder, or the root of a zip file, Zarr."""

_BOMB_BYTES, _BOMB_RATIO = 4 << 30, 100

_SEQUENCES = (".fa", ".fasta", ".fna", ".bed", ".narrowpeak", ".broadpeak")
_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")


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


def open_data(
    path: PathLike,
    *,
    inputs: Sequence[Port] = (),
    one_hot: Mapping[str, int] = {},
    form: Form = Form(),
) -> AbstractContextManager[Stored]:
    """A context manager that gives the arrays of a file or folder, until it is left; nothing is read ahead.

    Arrays are in .npy, .npz, Zarr (a folder or a .zip), Parquet (a file, or a folder of files in the order of their
    names) and HDF5. FASTA, BED and images become the array of the model's only input: `inputs` are the explainer's data
    inputs, `one_hot` the channel axes. Which format it is, its first bytes tell, or what is in the folder; the suffix
    where they cannot.
    Raises DataError: unreadable, of no such format, damaged; OptionError: a library is missing. Reading rows raises
    DataError too.
    """
    path = Path(path)
    with refusing(str(path)):
        kind = _format(path)
    match kind:
        case "numpy":
            from onnxlift.formats.numpy_files import open_numpy

            return open_numpy(path)
        case "zarr":
            required("zarr", "reading Zarr")
            from onnxlift.formats.zarr_store import open_zarr

            return open_zarr(path)
        case "hdf5":
            required("h5py", "reading HDF5")
            from onnxlift.formats.hdf5 import open_hdf5

            return open_hdf5(path)
        case "parquet":
            required("pyarrow", "reading Parquet")
            from onnxlift.formats.parquet import open_parquet

            return open_parquet(path)
        case "sequences":
            from onnxlift.formats.genome import open_sequences

            port = _only(path, inputs)
            return open_sequences(path, port, one_hot.get(port.name), form)
        case "images":
            from onnxlift.formats.images import open_images

            return open_images(path, _only(path, inputs), form)
    raise DataError(
        f"The data {path} is of no format that onnxlift reads: give .npy, .npz, Zarr, Parquet, HDF5, FASTA, BED, an "
        "image or a folder of images."
    )


def read_all(path: PathLike) -> Array | dict[str, Array]:
    """The array of a file of arrays, or its arrays by name, in memory. FASTA, BED and images are refused.

    Raises as `open_data`, and DataError where a small file would unpack to several GB.
    """
    with open_data(path) as stored:
        arrays = list(stored.values()) if isinstance(stored, dict) else [stored]
        size = sum(math.prod(rows.shape) * rows.dtype.itemsize for rows in arrays)
        held = _bytes(Path(path))
        if size > _BOMB_BYTES and size > _BOMB_RATIO * held:
            raise DataError(f"The data {path} cannot be used: {held} bytes would unpack to {size}, which is refused.")
        if isinstance(stored, dict):
            return {name: whole(rows) for name, rows in stored.items()}
        return whole(stored)


def whole(rows: Rows) -> Array:
    """All rows, in memory; also of a single number, shape []."""
    return np.asarray(rows[:])


def _format(path: Path) -> str | None:
    """What the content of a file or a folder says, or else its name."""
    if path.is_dir():
        if any((path / name).is_file() for name in ZARR_METADATA):
            return "zarr"
        return "parquet" if any(path.glob("*.parquet")) else "images"
    if path.exists() and not path.is_file():
        raise ValueError("it is neither a file nor a folder")
    with path.open("rb") as file:
        start = file.read(8)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if start[:6] == b"\x93NUMPY":
        return "numpy"
    if start[:2] == b"PK":
        with zipfile.ZipFile(path) as archive:
            return "zarr" if any(name in ZARR_METADATA for name in archive.namelist()) else "numpy"
    if start[:4] == b"PAR1":
        return "parquet"
    if start == b"\x89HDF\r\n\x1a\n" or suffixes[-1:] in ([".h5"], [".hdf5"]):  # a block of the user's may be in front
        return "hdf5"
    if start[:2] == b"\x1f\x8b":
        suffixes = [suffix for suffix in suffixes if suffix not in (".gz", ".bgz")]
        with gzip.open(path) as unpacked:
            start = unpacked.read(1)
    if suffixes[-1:] and suffixes[-1] in _IMAGES:
        return "images"
    return "sequences" if start[:1] == b">" or (suffixes[-1:] and suffixes[-1] in _SEQUENCES) else None


def _only(path: Path, inputs: Sequence[Port]) -> Port:
    """The input that sequences or images are for."""
    if not inputs:
        raise DataError(f"{path} holds no arrays: give .npy, .npz, Zarr, Parquet or HDF5 here.")
    if len(inputs) != 1:
        names = listed(port.name for port in inputs)
        raise DataError(f"{path} is data for one input, and the model has {names}: give a .npz with an array for each.")
    return inputs[0]


def _bytes(path: Path) -> int:
    """The size of a file, or of all in a folder."""
    files = (Path(folder) / name for folder, _, names in os.walk(path) for name in names) if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
