"""HDF5 files, whose data sets are arrays by their path in the file. Nothing outside of the file is opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from onnxlift.arrays import Array
from onnxlift.errors import DataError
from onnxlift.formats.rows import FileRows, Rows, in_pieces, named_arrays, refusing


@contextmanager
def open_hdf5(path: Path) -> Iterator[dict[str, Rows]]:
    """The data sets of numbers, or text of a fixed width, by their path, `group/name`; soft links to them by theirs.

    Refused, because they read other files: external links, virtual data sets, external storage.
    """
    with refusing(str(path)):
        file = h5py.File(path, "r")
    with file:
        with refusing(str(path)):
            found = _datasets(path, file)
            arrays: dict[str, Rows | None] = {name: _rows(path, name, dataset) for name, dataset in found.items()}
            stored = named_arrays(arrays)
        yield stored


def _datasets(path: Path, file: h5py.File) -> dict[str, h5py.Dataset]:
    """Every data set of the file by its path. All links are looked at before one of them is followed."""
    found: dict[str, h5py.Dataset] = {}
    soft: list[str] = []
    groups = [("", file["/"])]
    seen = {h5py.h5o.get_info(file.id).addr}  # a group may hold itself
    while groups:
        prefix, group = groups.pop()
        for name in group:
            full = f"{prefix}{name}"
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise DataError(
                    f"The data {path} cannot be used: {full!r} is a link into another file, {link.filename!r}, which "
                    "is refused. Copy what it points to into the file."
                )
            if isinstance(link, h5py.SoftLink):
                soft.append(full)
                continue
            item = group[name]
            if isinstance(item, h5py.Dataset):
                found[full] = item
            elif isinstance(item, h5py.Group):
                address = h5py.h5o.get_info(item.id).addr
                if address not in seen:
                    seen.add(address)
                    groups.append((f"{full}/", item))
    for full in soft:
        with refusing(f"{path}, array {full!r}"):
            item = file[full]
        if isinstance(item, h5py.Dataset):
            found[full] = item
    return found


def _rows(path: Path, name: str, dataset: h5py.Dataset) -> FileRows | None:
    """The rows of a data set; None where it is neither of numbers nor of text of a fixed width.

    Text of any width lies in a heap, and in a damaged one HDF5 searches for ever.
    """
    where = f"{path}, array {name!r}"
    if dataset.is_virtual or dataset.external:
        raise DataError(f"The data {where} cannot be used: it lies in other files, which is refused: copy them.")
    shape, dtype = dataset.shape, dataset.dtype
    if shape is None or dtype.kind not in "fiubS":
        return None
    text = dtype.kind == "S"
    source = dataset.asstr("utf-8") if text else dataset

    def read(start: int, stop: int) -> Array:
        rows = np.asarray(source[start:stop] if shape else source[()]).reshape(stop - start, *shape[1:])
        return rows.astype(str) if text else rows

    with refusing(where):
        pieces = read if text or dataset.chunks is None else in_pieces(read, shape, dtype, dataset.chunks)
    return FileRows(where, shape, np.dtype(str) if text else dtype, pieces)
