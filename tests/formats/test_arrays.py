"""Arrays from every format that has them: the same numbers, whichever rows are asked for, in little memory."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from array_files import ARRAYS, WRITERS, tensors, write, zarr_group

from onnxlift.cli_reference import at_run_time
from onnxlift.errors import DataError, OptionError
from onnxlift.feed import Port
from onnxlift.formats import Rows, numpy_files, open_data, parquet, read_all, whole
from onnxlift.formats import rows as rows_module
from onnxlift.formats.rows import in_order

X = ARRAYS["x"]


def equal(rows: Rows, array: np.ndarray) -> None:
    """Reads everything, then slices in every order."""
    assert rows.shape == array.shape
    assert rows.dtype.newbyteorder("=") == array.dtype.newbyteorder("=")
    read = whole(rows)
    assert read.dtype == rows.dtype
    np.testing.assert_array_equal(read, array)
    rng = np.random.default_rng(5)
    for start, stop in rng.integers(0, len(array) + 2, (25, 2)):
        part = rows[start:stop]
        assert part.shape == array[start:stop].shape
        np.testing.assert_array_equal(part, array[start:stop])


@pytest.mark.parametrize("block", [8 << 20, 40])
@pytest.mark.parametrize("writer", WRITERS)
def test_every_format_gives_back_its_arrays(
    writer: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (rows_module, numpy_files, parquet):
        monkeypatch.setattr(module, "BLOCK_BYTES", block)
    with open_data(write(writer, tmp_path)) as stored:
        assert isinstance(stored, dict)
        assert stored.keys() == ARRAYS.keys() - ({"target"} if writer == "parquet ray" else set())
        for name, rows in stored.items():
            equal(rows, ARRAYS[name])


@pytest.mark.parametrize("array", [X, np.asfortranarray(X), X.astype(">f2"), X[:0], np.asfortranarray(X)[:, :, :1]])
def test_numpy_files_of_one_array(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "d", array)
    with open_data(tmp_path / "d.npy") as rows:
        assert not isinstance(rows, dict)
        equal(rows, array)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "d", x=array)
        with open_data(tmp_path / "d.npz") as stored:
            equal(stored["x"], array)


def test_an_array_without_a_name_has_none(tmp_path: Path) -> None:
    zarr.save_array(tmp_path / "d.zarr", X)
    with open_data(tmp_path / "d.zarr") as rows:
        assert not isinstance(rows, dict)
        equal(rows, X)


@pytest.mark.parametrize("writer", ["npz", "npz compressed", "zarr 2", "zarr 3", "zarr zip", "hdf5", "parquet lists"])
def test_a_name_is_a_path_where_the_format_has_groups(writer: str, tmp_path: Path) -> None:
    arrays = {"a/b/c": X, "a/d": X + 1, "e.f": X + 2, "ä b:0": X + 3, "a.b": X[:, 0, 0]}
    with open_data(write(writer, tmp_path, arrays)) as stored:
        assert stored.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(stored[name][3:9], array[3:9])


def test_single_numbers(tmp_path: Path) -> None:
    number = np.float32(1.5)
    np.savez(tmp_path / "a.npz", n=number)
    np.savez_compressed(tmp_path / "b.npz", n=number)
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["n"] = number
    zarr.create_group(tmp_path / "d.zarr").create_array("n", data=np.array(number))
    for name in ("a.npz", "b.npz", "c.h5", "d.zarr"):
        read = read_all(tmp_path / name)["n"]
        assert read.shape == ()
        assert read.dtype == np.float32
        assert read == number


def test_text(tmp_path: Path) -> None:
    names = np.array([f"chr{i}:ä" for i in range(23)])
    np.savez_compressed(tmp_path / "a.npz", n=names)
    zarr_group(tmp_path / "b.zarr", {"n": names}, 2)
    pq.write_table(pa.table({"n": names.tolist()}), tmp_path / "c.parquet")
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file.create_dataset("n", data=np.char.encode(names, "utf-8"))
    for name in ("a.npz", "b.zarr", "c.parquet", "d.h5"):
        with open_data(tmp_path / name) as stored:
            assert stored["n"].dtype.kind == "U"
            assert stored["n"][4:7].tolist() == names[4:7].tolist(), name


def test_what_is_no_array_is_left_out(tmp_path: Path) -> None:
    columns = {"x": tensors(X), "when": pa.array([None] * 23, pa.timestamp("s")), "about": pa.array([{"a": 1}] * 23)}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["x"], file["names"], file["empty"] = X, ["any", "width"], h5py.Empty("f")
        file["records"] = np.zeros(3, [("a", "f4"), ("b", "i4")])
        file["again"] = h5py.SoftLink("/x")
        file["loop"] = file["/"]
    zarr_group(tmp_path / "c.zarr", {"x": X})
    (tmp_path / "c.zarr" / "notes").mkdir()
    for name, found in {"a.parquet": ["x"], "b.h5": ["x", "again"], "c.zarr": ["x"]}.items():
        arrays = read_all(tmp_path / name)
        assert list(arrays) == found
        for array in arrays.values():
            np.testing.assert_array_equal(array, X)


def test_axes_of_a_tensor_column_in_another_order(tmp_path: Path) -> None:
    kind = pa.fixed_shape_tensor(pa.float32(), [3, 2], permutation=[1, 0])
    flat = pa.array(np.ascontiguousarray(X.transpose(0, 2, 1)).ravel())
    column = pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(flat, 6))
    np.testing.assert_array_equal(column.to_numpy_ndarray(), X)
    pq.write_table(pa.table({"x": column}), tmp_path / "d.parquet")
    np.testing.assert_array_equal(read_all(tmp_path / "d.parquet")["x"], X)


def test_rows_one_slice_after_the_other_are_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    original = zipfile.ZipFile.open

    def counting(archive: zipfile.ZipFile, member: zipfile.ZipInfo, *args: str) -> object:
        opened.append(member.filename)
        return original(archive, member, *args)

    np.savez_compressed(tmp_path / "d", x=X)
    monkeypatch.setattr(zipfile.ZipFile, "open", counting)
    with open_data(tmp_path / "d.npz") as stored:
        opened.clear()
        for start in range(0, 20, 4):
            stored["x"][start : start + 4]
        assert len(opened) == 1
        stored["x"][2:3]
        assert len(opened) == 2


def test_reading_on_or_anew() -> None:
    asked: list[int] = []
    array = np.arange(48).reshape(24, 2)

    def blocks(first: int) -> Iterator[np.ndarray]:
        asked.append(first)
        for start in range(first, 24, 3):
            yield array[start : start + 3]

    read = in_order(blocks, (24, 2), array.dtype, far=4)
    slices = [(0, 2, 1), (2, 7, 1), (8, 9, 1), (13, 14, 1), (20, 21, 2), (0, 24, 3), (5, 6, 4), (6, 8, 4)]
    for start, stop, begun in slices:
        np.testing.assert_array_equal(read(start, stop), array[start:stop])
        assert len(asked) == begun, (start, stop)
    with pytest.raises(EOFError, match="before row 24"):
        read(18, 25)


def test_an_error_in_between_is_not_the_end() -> None:
    array = np.arange(6)
    errors = [OSError(5, "Input/output error"), None]

    def blocks(first: int) -> Iterator[np.ndarray]:
        error = errors.pop(0)
        if error:
            raise error
        yield array[first:]

    read = in_order(blocks, (6,), array.dtype, far=4)
    with pytest.raises(OSError, match="Input/output error"):
        read(0, 2)
    np.testing.assert_array_equal(read(0, 2), array[:2])


MEMORY = """
import re, sys
from pathlib import Path
import h5py, pyarrow.parquet, zarr
from onnxlift.formats import open_data
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10
before = peak()
for path in sys.argv[1:]:
    with open_data(path) as stored:
        rows = stored["x"] if isinstance(stored, dict) else stored
        assert sum(int(rows[start : start + 256].sum()) for start in range(0, len(rows), 256)) == len(rows)
    print(peak() - before, path, flush=True)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
def test_memory_is_that_of_the_rows(tmp_path: Path) -> None:
    """Files of 128 MB, Parquet of 512 (Arrow takes 100 MB for itself), read 256 rows, 4 MB, at a time."""
    array = np.zeros((1 << 13, 1 << 12), np.float32)
    array[:, 9] = 1
    np.save(tmp_path / "a.npy", np.lib.stride_tricks.as_strided(array))
    np.save(tmp_path / "f.npy", array.T.copy().T)
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.write(tmp_path / "a.npy", "x.npy")
    zarr.create_group(tmp_path / "c.zarr").create_array("x", data=array, chunks=(64, 1 << 12))
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file.create_dataset("x", data=array, chunks=(64, 1 << 12), compression="lzf")
    table = pa.table({"x": tensors(array)})
    pq.write_table(pa.concat_tables([table] * 4), tmp_path / "z.parquet", row_group_size=1 << 15)
    files = sorted(map(str, tmp_path.iterdir()))
    run = subprocess.run([sys.executable, "-c", MEMORY, *files], capture_output=True, text=True, check=True)
    peaks = [int(line.split()[0]) for line in run.stdout.splitlines()]
    assert max(peaks[:-1]) < 110, peaks
    assert peaks[-1] < 300, peaks


def test_references_come_from_every_format(tmp_path: Path) -> None:
    about = {"references": ["x"], "one_hot": None}
    for writer in ("npz", "zarr 3", "parquet tensors", "hdf5"):
        (folder := tmp_path / writer).mkdir()
        path = str(write(writer, folder, {"x": X}))
        given = at_run_time(about, path, 0)
        assert isinstance(given, dict)
        np.testing.assert_array_equal(given["x"], X)
        mean = at_run_time(about, f"mean:{path}", 0)
        assert isinstance(mean, dict)
        np.testing.assert_allclose(mean["x"], X.mean(axis=0, keepdims=True), rtol=1e-6)


@pytest.mark.parametrize(("library", "writer"), [("zarr", "zarr 3"), ("h5py", "hdf5"), ("pyarrow", "parquet lists")])
def test_a_library_that_is_missing_is_named(
    library: str, writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(writer, tmp_path)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(OptionError, match=rf"needs {library}: pip install 'onnxlift\[formats\]'"):
        open_data(path)


def test_what_is_for_one_input(tmp_path: Path) -> None:
    (tmp_path / "d.fa").write_text(">a\nACGT\n")
    ports = [Port(name, "tensor(float)", ("N", 4, 4), "data", name, True) for name in "xy"]
    with pytest.raises(DataError, match=r"one input, and the model has 'x', 'y': give a \.npz"):
        open_data(tmp_path / "d.fa", inputs=ports)
    with pytest.raises(DataError, match="holds no arrays"):
        read_all(tmp_path / "d.fa")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match="no format that onnxlift reads"):
        read_all(tmp_path / "notes.txt")
    with pytest.raises(DataError, match=r"Cannot read the data .*nowhere\.npz: No such file"):
        read_all(tmp_path / "nowhere.npz")
