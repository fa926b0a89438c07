"""Files that are written whole or not at all, and arrays in .npz files. Reading is in `onnxlift.formats`."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from onnxlift.errors import DataError, OptionError

Array = np.ndarray[Any, Any]
PathLike = str | os.PathLike[str]


def write_arrays(path: PathLike, arrays: Mapping[str, Array]) -> None:
    """Write a .npz of plain arrays to exactly `path`, atomically: it is complete or not there.

    Any name round-trips: it is only the name of a zip member. Text is stored as fixed-width unicode.
    Raises OptionError where `path` cannot be written, DataError for arrays of Python objects.
    """
    try:
        with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
            for name, array in arrays.items():
                plain = array.astype(str) if array.dtype == object and _all_text(array) else array
                member = zipfile.ZipInfo(f"{name}.npy")  # with a fixed date: same arrays, same bytes
                with archive.open(member, "w", force_zip64=True) as stream:
                    npy.write_array(stream, plain, allow_pickle=False)
    except ValueError as error:
        raise DataError(f"Cannot write {path}: {error}.") from error


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[IO[bytes]]:
    """A file to write, which becomes exactly `path` once it is complete; until then, `path` is as it was.

    Raises OptionError where `path` cannot be written.
    """
    with replacing_path(path) as partial, partial.open("xb") as file:
        yield file


@contextlib.contextmanager
def replacing_path(path: PathLike) -> Iterator[Path]:
    """A name to write to, for libraries that open files themselves; what is there becomes `path` once it is complete.

    Raises OptionError where it cannot be written.
    """
    target = check_writable(path)
    partial = temporary(target)
    try:
        yield partial
        os.replace(partial, target)
    except OSError as error:
        remedy = "Make room for it" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Choose a writable path"
        raise OptionError(f"Cannot write {target}: {error.strerror or error}. {remedy}.") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def check_writable(path: PathLike) -> Path:
    """The file to write for `path`, checked before the work. Raises OptionError where it cannot be written."""
    target = Path(path)
    if target.is_dir():
        raise OptionError(f"Cannot write {target}: it is a folder. Give the name of a file.")
    if not target.parent.is_dir():
        raise OptionError(f"Cannot write {target}: there is no folder {target.parent}. Make it first.")
    try:
        real = destination(target)
        probe = temporary(real)
        probe.touch(exist_ok=False)
        probe.unlink()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise OptionError(f"Cannot write {target}: {reason}. Choose a writable path.") from error
    return real


def destination(path: PathLike) -> Path:
    """The file that is made or replaced in order to write to `path`: where a link points to, so that it stays a link.

    Raises OSError where something is there that is neither a file nor a folder, such as a device or a pipe.
    """
    real = Path(os.path.realpath(path))
    if real.exists() and not (real.is_file() or real.is_dir()):
        raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))
    return real


def temporary(path: Path) -> Path:
    """A free name beside `path`, for what replaces it once it is complete."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def leftovers(path: PathLike) -> list[Path]:
    """What processes that were killed while they wrote `path` have left beside it."""
    real = Path(os.path.realpath(path))
    return list(real.parent.glob(f".{glob.escape(real.name)}.{'[0-9a-f]' * 32}.tmp"))


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files in a folder."""
    files = (Path(folder) / name for folder, _, names in os.walk(path) for name in names) if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def _all_text(array: Array) -> bool:
    return all(isinstance(element, str) for element in array.flat)
