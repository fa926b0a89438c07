"""Files that are written piece by piece, and are complete or not there."""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import ArrayLike, DTypeLike

from onnxlift.arrays import Array, replacing_path
from onnxlift.formats.rows import required

_CHUNK_BYTES = 1 << 20  # of HDF5, and what of each array waits in memory


@dataclass(frozen=True)
class Written:
    """What a layout became: its `files`, the one that was asked for first, and `notes` for the user."""

    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


class _Silent:
    """A file for HDF5, which crashes the process later on where a write has failed, and so does not hear of it.

    error: the first failure. What is written behind it is dropped.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        return self._kept(self._file.write, data, len(data))

    def truncate(self, size: int) -> int:
        return self._kept(self._file.truncate, size, size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def _kept(self, call: Callable[[Any], int], argument: Any, wanted: int) -> int:
        if self.error is None:
            try:
                return call(argument)
            except OSError as error:
                self.error = error
        return wanted

    def check(self) -> None:
        if self.error is not None:
            raise self.error


class Dataset:
    """An array in HDF5 of which the rows are written. Raises OSError where they cannot be."""

    def __init__(self, dataset: Any, file: _Silent) -> None:
        self._dataset, self._file = dataset, file

    def __setitem__(self, rows: slice, values: ArrayLike, /) -> None:
        self._dataset[rows] = values
        self._file.check()


class Hdf5:
    """A HDF5 file to write."""

    def __init__(self, hdf5: Any, file: _Silent) -> None:
        self._hdf5, self._file = hdf5, file

    def dataset(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Dataset:
        """With the compression that every build of HDF5 has; the BPNet family's own is Blosc, which needs a plugin."""
        options: dict[str, Any] = {}
        if 0 not in shape:
            rows = _CHUNK_BYTES // (math.prod(shape[1:]) * np.dtype(dtype).itemsize)
            options["chunks"] = (min(max(1, rows), shape[0]), *shape[1:])
            options |= {"compression": "gzip", "compression_opts": 1, "shuffle": True}
        return Dataset(self._hdf5.create_dataset(name, shape, dtype, **options), self._file)

    def texts(self, name: str, texts: list[str]) -> None:
        self._hdf5[name] = texts


@contextlib.contextmanager
def replacing_hdf5(path: Path) -> Iterator[Hdf5]:
    """A HDF5 file to write, which becomes `path` once it is complete.

    Raises OptionError where it cannot be written, or h5py is not installed.
    """
    h5py = required("h5py", f"writing {path.suffix}")
    with replacing_path(path) as partial, partial.open("x+b", buffering=0) as file:
        silent = _Silent(file)
        with h5py.File(silent, "w", rdcc_nbytes=_CHUNK_BYTES) as hdf5:
            yield Hdf5(hdf5, silent)
        silent.check()


class Stream:
    """An array in .npy format of which the rows are written in their order, so that it is never in memory."""

    def __init__(self, file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._file = file
        self._dtype = dtype
        header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(file, header)

    def write(self, rows: Array) -> None:
        self._file.write(np.ascontiguousarray(rows, self._dtype).data)


@contextlib.contextmanager
def member(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[Stream]:
    """An array of a .npz, written row by row. It has a fixed date: same arrays, same bytes."""
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
        yield Stream(file, shape, dtype)
