"""NumPy's own files, .npy and .npz, read row by row; nothing is ever unpickled."""

from __future__ import annotations

import math
import os
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from onnxlift.arrays import Array
from onnxlift.formats.rows import BLOCK_BYTES, FileRows, Rows, Stored, in_order, refusing

Header = tuple[tuple[int, ...], bool, np.dtype[Any]]
"""Shape, Fortran order, dtype."""


@contextmanager
def open_numpy(path: Path) -> Iterator[Stored]:
    """The array of a .npy file; the arrays of a .npz file by name.

    What is not compressed is read where it lies. A compressed member is unpacked from its beginning, and once more for
    rows that lie behind; one in Fortran order is unpacked as a whole.
    """
    with refusing(str(path)):
        file = path.open("rb")
    with file:
        with refusing(str(path)):
            packed = file.read(2) == b"PK"
            size = os.fstat(file.fileno()).st_size
            stored = _members(path, file, size) if packed else _plain(str(path), file, 0, size)
        yield stored


def _members(path: Path, file: IO[bytes], size: int) -> dict[str, Rows]:
    """The arrays of a .npz file of `size` bytes."""
    archive = zipfile.ZipFile(file)
    arrays: dict[str, Rows] = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name == member.filename:
            continue
        where = f"{path}, array {name!r}"
        with refusing(where):
            if member.compress_type != zipfile.ZIP_STORED:
                arrays[name] = _compressed(where, archive, member)
                continue
            with archive.open(member):  # checks that the member is there, and not encrypted
                start = _start(file, member)
            if start + member.file_size > size:
                raise EOFError("the bytes end before it does")
            arrays[name] = _plain(where, file, start, start + member.file_size)
    if not arrays:
        raise ValueError("it is a zip file without arrays")
    return arrays


def _start(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    """Where the data of a member begin: behind its local header, its name and what else is told of it."""
    file.seek(member.header_offset + 26)
    lengths = file.read(4)
    return member.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")


def _plain(where: str, file: IO[bytes], start: int, stop: int) -> FileRows:
    """An array in .npy format that lies in these bytes of a file."""
    file.seek(start)
    shape, fortran, dtype = _header(file, stop - start)
    offset = file.tell()

    row = math.prod(shape[1:])

    def read(first: int, last: int) -> Array:
        count = last - first
        # A run of numbers that lie side by side: all of these rows, or in Fortran order one number of each of them.
        starts = range(first, first + row * shape[0], shape[0]) if fortran else [first * row]
        runs = np.empty((len(starts), count * row // len(starts) * dtype.itemsize), np.uint8)
        for start, run in zip(starts, runs, strict=True):
            file.seek(offset + start * dtype.itemsize)
            if file.readinto(run) != len(run):  # type: ignore[attr-defined]
                raise EOFError("the bytes end before it does")
        values = runs.view(dtype)
        return values.reshape(*shape[:0:-1], count).T if fortran else values.reshape(count, *shape[1:])

    return FileRows(where, shape, dtype, read)


def _compressed(where: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> FileRows:
    with archive.open(member) as stream:
        shape, fortran, dtype = _header(stream, member.file_size)
        offset = stream.tell()
    samples, row = (shape or (1,))[0], math.prod(shape[1:])
    step = samples if fortran else max(1, BLOCK_BYTES // max(row * dtype.itemsize, 1))

    def blocks(first: int) -> Iterator[Array]:
        with archive.open(member) as stream:
            stream.seek(offset + (0 if fortran else first * row * dtype.itemsize))
            for start in range(0 if fortran else first, samples, step):
                count = min(step, samples - start)
                flat = np.frombuffer(stream.read(count * row * dtype.itemsize), dtype)
                if start + count == samples and stream.read(1):  # reading to the end compares the checksum
                    raise ValueError("it is longer than its header says")
                yield flat.reshape(shape, order="F")[first:] if fortran else flat.reshape(count, *shape[1:])

    return FileRows(where, shape, dtype, in_order(blocks, shape, dtype, math.inf))


def _header(stream: IO[bytes], size: int) -> Header:
    """What an array in .npy format is, from a stream of `size` bytes, which then stands at its first number."""
    start = stream.tell()
    major = npy.read_magic(stream)[0]
    with warnings.catch_warnings(action="ignore"):  # of headers that Python 2 wrote
        shape, fortran, dtype = (npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0)(stream)
    if dtype.hasobject:
        raise ValueError("it holds pickled Python objects, which are never loaded")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size - (stream.tell() - start):
        raise ValueError(f"its header promises an array of shape {list(shape)}, but the bytes end before")
    return shape, fortran and len(shape) > 1, dtype
