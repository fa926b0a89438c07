"""One door for every format: which one a file or a folder is, and the arrays in it."""

from __future__ import annotations

import gzip
import math
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from onnxlift.arrays import Array, PathLike, size_of
from onnxlift.errors import DataError, listed
from onnxlift.feed import Port
from onnxlift.formats import genome, images
from onnxlift.formats.rows import AS_IT_IS, ZARR_METADATA, Form, Stored, refusing, required, whole

_BOMB_BYTES, _BOMB_RATIO = 4 << 30, 100


def open_data(
    path: PathLike,
    *,
    inputs: Sequence[Port] = (),
    one_hot: Mapping[str, int] = {},
    form: Form = AS_IT_IS,
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
            port = _only(path, inputs)
            return genome.open_sequences(path, port, one_hot.get(port.name), form)
        case "images":
            return images.open_images(path, _only(path, inputs), form)
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
        held = size_of(Path(path))
        if size > _BOMB_BYTES and size > _BOMB_RATIO * held:
            raise DataError(f"The data {path} cannot be used: {held} bytes would unpack to {size}, which is refused.")
        if isinstance(stored, dict):
            return {name: whole(rows) for name, rows in stored.items()}
        return whole(stored)


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
        suffixes = [suffix for suffix in suffixes if suffix not in genome.PACKED]
        with gzip.open(path) as unpacked:
            start = unpacked.read(1)
    last = suffixes[-1] if suffixes else ""
    if last in images.SUFFIXES:
        return "images"
    return "sequences" if start[:1] == b">" or last in (*genome.FASTA, *genome.REGIONS) else None


def _only(path: Path, inputs: Sequence[Port]) -> Port:
    """The input that sequences or images are for."""
    if not inputs:
        raise DataError(f"{path} holds no arrays: give .npy, .npz, Zarr, Parquet or HDF5 here.")
    if len(inputs) != 1:
        names = listed(port.name for port in inputs)
        raise DataError(f"{path} is data for one input, and the model has {names}: give a .npz with an array for each.")
    return inputs[0]
