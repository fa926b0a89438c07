"""How parts lie on the disk, and how OUT is made of them.

Where OUT is a folder, parts are its files, which only move. Else they are .npz files, which are read again one after
the other.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from onnxlift.arrays import Array, check_writable, replacing, write_arrays
from onnxlift.errors import DataError, OptionError, listed
from onnxlift.explainer import TARGET_OUTPUT
from onnxlift.formats import FileRows, Rows, open_data, required, whole
from onnxlift.formats.layouts import LAYOUTS, LayoutInput, check_layout, regions_of, write_layout
from onnxlift.formats.layouts.source import inputs_of
from onnxlift.formats.layouts.writing import member, replacing_hdf5
from onnxlift.jobs.parts import Mark
from onnxlift.jobs.task import CHUNK_BYTES, Task, Work

FILES, FOLDERS = (".npz", ".h5", ".hdf5"), (".zarr", ".parquet")
"""What OUT may end in."""
SHARED = "_shared.npz"
"""In a folder of .parquet files, the arrays without a row for each sample. Who reads such folders skips the name."""


class Store(Protocol):
    """A format of results. `name`: of the format of its parts. `takes_text`: whether an array may be of text."""

    name: str
    takes_text: bool

    def check(self, out: Path, task: Task, work: Work) -> None:
        """Raises OptionError where the results cannot be kept so, a library is missing or `out` cannot be written."""

    def write(self, folder: Path, number: int, start: int, arrays: Mapping[str, Array], split: frozenset[str]) -> None:
        """Write part `number`, of samples from `start` on, into a folder; then it is on the disk, not in a cache.

        `split`: which arrays have a row for each sample; the others are kept with the first part only.
        """

    def finish(self, folder: Path, marks: list[Mark], out: Path, task: Task, work: Work) -> Sequence[str]:
        """Make `out` of the parts in a folder: it is complete or as it was. What the user should know of it."""


class NpzStore:
    """One .npz file, made of those of the parts. It has the bytes that `Explanation.save` would write."""

    name = "npz"
    takes_text = True

    def check(self, out: Path, task: Task, work: Work) -> None:
        check_writable(out)

    def write(self, folder: Path, number: int, start: int, arrays: Mapping[str, Array], split: frozenset[str]) -> None:
        path = _part(folder, number, ".npz")
        write_arrays(path, {name: array for name, array in arrays.items() if name in split or not number})
        _sync([path, folder])

    def finish(self, folder: Path, marks: list[Mark], out: Path, task: Task, work: Work) -> Sequence[str]:
        with replacing(out) as file, zipfile.ZipFile(file, "w") as archive:
            for name, rows in joined(folder, marks).items():
                with member(archive, name, rows.shape, rows.dtype) as stream:
                    for block in _blocks(name, marks):
                        stream.write(rows[block])
        return ()


class Hdf5Store(NpzStore):
    """One HDF5 file with a data set for each array; a single number is an array of one."""

    takes_text = False

    def check(self, out: Path, task: Task, work: Work) -> None:
        check_writable(out)
        required("h5py", f"writing {out.suffix}")
        _check_paths(out, work)

    def finish(self, folder: Path, marks: list[Mark], out: Path, task: Task, work: Work) -> Sequence[str]:
        with replacing_hdf5(out) as file:
            for name, rows in joined(folder, marks).items():
                stored = file.dataset(name.strip("/"), rows.shape or (1,), rows.dtype)
                for block in _blocks(name, marks):
                    stored[block] = rows[block]
        return ()


class LayoutStore(NpzStore):
    """The file of another tool."""

    def __init__(self, layout: str) -> None:
        self._layout = layout

    def check(self, out: Path, task: Task, work: Work) -> None:
        outputs, layout = work.explainer.outputs, LAYOUTS[self._layout]
        check_layout(self._layout, out, outputs, self._about(task, work))
        inputs = inputs_of(outputs, layout.scores, None)
        if len(inputs) > 1 and (self._layout, out.suffix.lower()) != ("captum", ".npz"):
            raise OptionError(
                f"{out} is of one input, and the results are of {listed(inputs)}: explain one (--inputs), or leave out "
                "--layout and choose one with `onnxlift convert --input`"
            )
        if len(outputs[TARGET_OUTPUT].shape) > 1:
            raise OptionError(f"{out} is of one target of each sample: explain each target by itself")

    def finish(self, folder: Path, marks: list[Mark], out: Path, task: Task, work: Work) -> Sequence[str]:
        data = work.stored if LAYOUTS[self._layout].letters else None
        return write_layout(self._layout, joined(folder, marks), data, out, about=self._about(task, work)).notes

    def _about(self, task: Task, work: Work) -> LayoutInput:
        axes = work.explainer.description.get("one_hot") or {}
        layout = LAYOUTS[self._layout]
        sequences = layout.letters or layout.regions  # others have no letters, even where the input has
        axis = next(iter(axes.values())) if sequences and len(axes) == 1 else None
        return LayoutInput(axis=axis, regions=regions_of(task.data), genome=task.form.genome)


class ParquetStore:
    """A folder of .parquet files, one for each part, with a row for each sample and a column for each array."""

    name = "parquet"
    takes_text = True

    def check(self, out: Path, task: Task, work: Work) -> None:
        _check_folder(out)
        required("pyarrow", f"writing {out.suffix}")
        if work.samples is None:
            raise OptionError(f"{out} has a row for each sample, but the model has no batch axis: choose .npz or .h5")

    def write(self, folder: Path, number: int, start: int, arrays: Mapping[str, Array], split: frozenset[str]) -> None:
        from pyarrow import parquet, table

        path = _part(folder, number, ".parquet")
        with replacing(path) as file:
            columns = {name: _column(array) for name, array in arrays.items() if name in split}
            # A dictionary of numbers that hardly repeat takes time and room.
            repeated = [name for name in columns if arrays[name].dtype.kind != "f"]
            parquet.write_table(table(columns), file, use_dictionary=repeated)
        shared = {name: array for name, array in arrays.items() if name not in split}
        if shared and not number:
            write_arrays(folder / SHARED, shared)
            _sync([folder / SHARED])
        _sync([path, folder])

    def finish(self, folder: Path, marks: list[Mark], out: Path, task: Task, work: Work) -> Sequence[str]:
        _move(folder, out)
        return ()


class ZarrStore:
    """A Zarr group, of which a part is some chunks of each array. `samples`: N; `size`: of a part."""

    name = "zarr"
    takes_text = False

    def __init__(self, samples: int | None, size: int) -> None:
        self._samples, self._size = samples, size

    def check(self, out: Path, task: Task, work: Work) -> None:
        _check_folder(out)
        required("zarr", f"writing {out.suffix}")
        _check_paths(out, work)

    def write(self, folder: Path, number: int, start: int, arrays: Mapping[str, Array], split: frozenset[str]) -> None:
        import zarr

        changed: set[Path] = set()
        # Zarr would leave out chunks of zeros, also of negative ones.
        with zarr.config.set({"array.write_empty_chunks": True}):
            group = zarr.open_group(folder, mode="a")
            for name, array in arrays.items():
                place = folder / name.strip("/")
                dtype = np.dtype(array.dtype.str)  # ONNX Runtime's int64 may be a C type that Zarr does not know
                if name in split:
                    rows = self._rows(array)
                    chunks = (rows, *array.shape[1:])
                    stored = _zarr_array(group, name, (self._samples, *array.shape[1:]), chunks, dtype)
                    stored[start : start + len(array)] = array
                    written = [place / "c" / str(i) for i in range(start // rows, -(-(start + len(array)) // rows))]
                elif number:
                    continue
                else:
                    _zarr_array(group, name, array.shape, array.shape, dtype)[...] = array
                    written = [place / "c"]
                above = [place / "c", *(place, *place.parents)[: len(place.relative_to(folder).parts) + 1]]
                changed |= {path for each in written for path in (*each.rglob("*"), each)}
                changed |= {path for each in above for path in (each / "zarr.json", each) if path.exists()}
        _sync(changed)

    def _rows(self, array: Array) -> int:
        """How many samples a chunk has: as many as a part, or if these are many, a number that divides it."""
        each = max(1, array[:1].nbytes)
        return max(rows for rows in _divisors(self._size) if rows == 1 or rows * each <= CHUNK_BYTES)

    def finish(self, folder: Path, marks: list[Mark], out: Path, task: Task, work: Work) -> Sequence[str]:
        for partial in folder.rglob("*.partial"):  # of a process that was killed
            partial.unlink()
        _move(folder, out)
        return ()


def check_out(out: Path, layout: str | None) -> None:
    """What can be checked before there is an explainer. Raises OptionError: a wrong suffix, or it cannot be written."""
    if layout is not None or out.suffix.lower() not in FOLDERS or not out.exists():
        check_writable(out)
    if layout is None and out.suffix.lower() not in (*FILES, *FOLDERS):
        known = ", ".join((*FILES, *FOLDERS))
        raise OptionError(f"--out {out} ends in none of {known}: name the format by the suffix")


def store_of(out: Path, layout: str | None, samples: int | None, size: int) -> Store:
    """What makes `out`, in a layout or by its suffix, for `samples` in parts of `size`."""
    if layout is not None:
        return LayoutStore(layout)
    match out.suffix.lower():
        case ".zarr":
            return ZarrStore(samples, size)
        case ".parquet":
            return ParquetStore()
        case ".npz":
            return NpzStore()
    return Hdf5Store()


def joined(folder: Path, marks: list[Mark]) -> dict[str, Rows]:
    """The arrays of all samples, read from the .npz files of the parts when they are asked for."""
    return {name: _joined(folder, marks, name) for name in marks[0].arrays}


def _joined(folder: Path, marks: list[Mark], name: str) -> Rows:
    facts = marks[0].arrays[name]
    if not facts.split:
        with open_data(_part(folder, 0, ".npz")) as stored:
            assert isinstance(stored, dict)
            array = whole(stored[name])
        return FileRows(str(folder), array.shape, array.dtype, lambda start, stop: np.atleast_1d(array)[start:stop])
    # Text is as wide in each part as its longest one.
    dtype = np.result_type(*(np.dtype(mark.arrays[name].dtype) for mark in marks))
    size = marks[0].stop

    def read(start: int, stop: int) -> Array:
        pieces = []
        for number in range(start // size, -(-stop // size)):
            with open_data(_part(folder, number, ".npz")) as stored:
                assert isinstance(stored, dict)
                pieces.append(stored[name][max(start - number * size, 0) : stop - number * size])
        return np.concatenate(pieces).astype(dtype, copy=False)

    return FileRows(str(folder), (marks[-1].stop, *facts.shape[1:]), dtype, read)


def _blocks(name: str, marks: list[Mark]) -> list[slice]:
    """The rows of an array that are read at once: those of a part, or all where they do not count samples."""
    return [slice(mark.start, mark.stop) for mark in marks] if marks[0].arrays[name].split else [slice(None)]


def _part(folder: Path, number: int, suffix: str) -> Path:
    return folder / f"part-{number:06}{suffix}"


def _move(folder: Path, out: Path) -> None:
    try:
        folder.rename(out)
        _sync([out.resolve().parent])
    except OSError as error:
        raise OptionError(f"Cannot write {out}: {error.strerror}. Choose a writable path.") from error


def _sync(paths: Iterable[Path]) -> None:
    """Have the system write these files and folders to the disk."""
    for path in paths:
        if sys.platform == "win32" and path.is_dir():
            continue  # where folders cannot be opened
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _check_folder(out: Path) -> None:
    """Raises OptionError where there is something at `out`, or nothing can be."""
    if out.exists():
        raise OptionError(f"--out {out} is there already: choose another name, or delete it")
    check_writable(out)


def _check_paths(out: Path, work: Work) -> None:
    """Raises OptionError where an array's name cannot be its path inside of a file, or it holds text."""
    outputs = work.explainer.outputs
    paths = {name: tuple(name.strip("/").split("/")) for name in outputs}
    for name, path in paths.items():
        inside = [other for other in outputs if other != name and paths[other][: len(path)] == path]
        if inside:
            why = f"{inside[0]!r} would be inside of {name!r}"
        elif {"", ".", ".."} & set(path):
            why = f"{name!r} is no path"
        elif outputs[name].type == "tensor(string)":
            why = f"{name!r} holds text (leave it out with --keep)"
        else:
            continue
        raise OptionError(f"the results cannot be kept in {out}: {why}. Choose .npz or .parquet")


def _zarr_array(group: Any, name: str, shape: tuple[int | None, ...], chunks: tuple[int, ...], dtype: Any) -> Any:
    """An array of a group, made where it is not there. Several processes may do so at once: they write the same."""
    import zarr

    with contextlib.suppress(zarr.errors.ContainsArrayError):
        return group.create_array(name.strip("/"), shape=shape, chunks=chunks, dtype=dtype)
    array = group[name.strip("/")]
    if (array.shape, array.dtype) != (shape, dtype):
        raise DataError(f"output {name!r} differs between chunks and cannot be joined: explain all samples at once")
    return array


def _column(array: Array) -> Any:
    """An array as a column: numbers or text, or tensors of the shape that follows the samples."""
    import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(array).reshape(-1))
    shape = array.shape[1:]
    if not shape:
        return flat
    storage = pa.FixedSizeListArray.from_arrays(flat, math.prod(shape))
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(flat.type, shape), storage)


def _divisors(number: int) -> set[int]:
    low = {n for n in range(1, math.isqrt(number) + 1) if number % n == 0}
    return low | {number // n for n in low}
