"""The same arrays written in every format that has arrays by name."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numcodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from zarr.codecs import BloscCodec, GzipCodec
from zarr.storage import ZipStore

Arrays = Mapping[str, np.ndarray]
RNG = np.random.default_rng(23)
ARRAYS = {
    "x": RNG.standard_normal((23, 2, 3)).astype(np.float32),
    "half": RNG.standard_normal((23, 4)).astype(np.float16),
    "double": RNG.standard_normal((23, 1, 5)),
    "ids": RNG.integers(-9, 9, (23, 7)),
    "pixels": RNG.integers(0, 255, (23, 2, 2, 3), np.uint8),
    "mask": RNG.standard_normal((23, 3)) > 0,
    "target": np.arange(23),
    "big": np.arange(46, dtype=">f4").reshape(23, 2),
}


def zarr_group(store: Any, arrays: Arrays, version: int = 3, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr's, that version 3 has no such dtype or layout yet
        group = zarr.create_group(store, zarr_format=version)
        for name, array in arrays.items():
            chunks = (4, *array.shape[1:])
            group.create_array(name, data=array, chunks=chunks, **{key: f(array) for key, f in options.items()})


def zarr_zip(path: Path, arrays: Arrays) -> None:
    store = ZipStore(path, mode="w")
    zarr_group(store, arrays)
    store.close()


def hdf5(path: Path, arrays: Arrays, **options: Any) -> None:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, **options)


def tensors(array: np.ndarray) -> pa.Array:
    native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    if array.ndim == 1 or array.dtype == bool:
        return pa.array(native.tolist())
    return pa.FixedShapeTensorArray.from_numpy_ndarray(native)


def lists(array: np.ndarray, fixed: bool = False) -> pa.Array:
    kind = pa.from_numpy_dtype(array.dtype.newbyteorder("="))
    for extent in array.shape[:0:-1]:
        kind = pa.list_(kind, extent) if fixed else pa.large_list(kind)
    return pa.array(array.tolist(), kind)


def ray_field(name: str, array: np.ndarray) -> pa.Field:
    """A column as Ray Data writes it: flat lists, and the shape in the schema."""
    kind = pa.large_list(pa.from_numpy_dtype(array.dtype.newbyteorder("=")))
    shape = json.dumps(array.shape[1:]).encode()
    about = {b"ARROW:extension:name": b"ray.data.arrow_tensor_v2", b"ARROW:extension:metadata": shape}
    return pa.field(name, kind, metadata=about)


def ray(path: Path, arrays: Arrays) -> None:
    schema = pa.schema([ray_field(name, array) for name, array in arrays.items()])
    pq.write_table(pa.table([array.reshape(len(array), -1).tolist() for array in arrays.values()], schema), path)


def parquet(path: Path, arrays: Arrays, column: Callable[[np.ndarray], pa.Array] = tensors, **options: Any) -> None:
    pq.write_table(pa.table({name: column(array) for name, array in arrays.items()}), path, **options)


def parquet_folder(path: Path, arrays: Arrays) -> None:
    path.mkdir()
    for start in range(0, 23, 6):
        rows = {name: array[start : start + 6] for name, array in arrays.items()}
        parquet(path / f"part-{start:03}.parquet", rows, row_group_size=4)
    (path / "_SUCCESS").write_text("")


WRITERS: dict[str, tuple[str, Callable[[Path, Arrays], Any]]] = {
    "npz": ("d.npz", lambda path, arrays: np.savez(path, **arrays)),
    "npz compressed": ("d.npz", lambda path, arrays: np.savez_compressed(path, **arrays)),
    "zarr 2": ("d.zarr", lambda path, arrays: zarr_group(path, arrays, 2, compressors=lambda _: numcodecs.Blosc())),
    "zarr 3": ("d.zarr", zarr_group),
    "zarr blosc": ("d.zarr", lambda path, arrays: zarr_group(path, arrays, compressors=lambda _: BloscCodec())),
    "zarr shards": (
        "d.zarr",
        lambda path, arrays: zarr_group(
            path, arrays, shards=lambda array: (8, *array.shape[1:]), compressors=lambda _: GzipCodec()
        ),
    ),
    "zarr zip": ("d.zarr.zip", zarr_zip),
    "parquet tensors": ("d.parquet", parquet),
    "parquet lists": ("d.parquet", lambda path, arrays: parquet(path, arrays, lists, row_group_size=7)),
    "parquet fixed lists": (
        "d.parquet",
        lambda path, arrays: parquet(path, arrays, lambda array: lists(array, fixed=True), compression="zstd"),
    ),
    "parquet folder": ("d", parquet_folder),
    "parquet ray": ("d.parquet", lambda path, arrays: ray(path, {k: v for k, v in arrays.items() if v.ndim > 1})),
    "hdf5": ("d.h5", hdf5),
    "hdf5 chunks": ("d.h5", lambda path, arrays: hdf5(path, arrays, compression="gzip", chunks=True, fletcher32=True)),
}


def write(writer: str, folder: Path, arrays: Arrays = ARRAYS) -> Path:
    """Writes the arrays into a file or folder in `folder`, and gives its path."""
    name, function = WRITERS[writer]
    function(folder / name, arrays)
    return folder / name
