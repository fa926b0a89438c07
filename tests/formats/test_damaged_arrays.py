"""Files of arrays that are damaged or mean harm: one DataError that names the file and the reason, and nothing else."""

from __future__ import annotations

import base64
import json
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numcodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from array_files import ARRAYS, WRITERS, hdf5, parquet, write, zarr_group
from zarr.codecs import BloscCodec

from onnxlift.errors import DataError
from onnxlift.formats import open_data, read_all

X = ARRAYS["x"]
SECRET = np.arange(138, dtype=np.float32).reshape(23, 2, 3)


def read_rows(path: Path) -> None:
    """The first and the last rows of every array, and some in between."""
    with open_data(path) as stored:
        for rows in stored.values() if isinstance(stored, dict) else [stored]:
            samples = rows.shape[0] if rows.shape else 1
            for start, stop in [(0, 3), (5, 9), (max(samples - 30, 0), samples)] if rows.shape else [(0, 1)]:
                part = rows[start:stop]
                assert part.shape[1:] == rows.shape[1:]


def npy(shape: str = "(23,)", kind: str = "'<f4'", body: bytes = b"") -> bytes:
    header = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body


def member(path: Path, content: bytes, name: str = "x.npy") -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)


def patched(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


def bad_checksum(path: Path) -> None:
    np.savez_compressed(path, x=X)
    with zipfile.ZipFile(path) as archive:
        checksum = archive.infolist()[0].CRC.to_bytes(4, "little")
    patched(path, checksum, b"\0\0\0\0")


def stored_member_too_long(path: Path) -> None:
    np.savez(path, x=X)
    patched(path, (128 + X.nbytes).to_bytes(4, "little"), (5000 + X.nbytes).to_bytes(4, "little"))


def one_zarr(path: Path, **about: Any) -> None:
    """A Zarr 2 array with other metadata."""
    zarr_group(path, {"x": X}, 2)
    file = path / "x" / ".zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | about))


def pickled_fill_value(path: Path) -> None:
    fill = base64.b64encode(pickle.dumps(print)).decode()
    one_zarr(path, dtype="|O", filters=[{"id": "pickle"}], fill_value=fill)


def codec_inside_of_shards(path: Path) -> None:
    zarr_group(path, {"x": X}, shards=lambda array: (8, *array.shape[1:]))
    patched(path / "x" / "zarr.json", b'"zstd"', b'"onnxlift.unknown"')


def lying_blosc(path: Path) -> None:
    """Blosc would read as many bytes as the header says, behind those that are there."""
    zarr_group(path, {"x": X}, 2, compressors=lambda _: numcodecs.Blosc())
    chunk = path / "x" / "0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:12] + b"\0\0\0\x70" + chunk.read_bytes()[16:])


def lying_blosc_in_shards(path: Path) -> None:
    shards = {"shards": lambda array: (8, *array.shape[1:]), "compressors": lambda _: BloscCodec(cname="lz4")}
    zarr_group(path, {"x": X}, **shards)
    chunk = path / "x" / "c" / "0" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[12:16] = b"\0\0\0\x70"
    chunk.write_bytes(content)


def linked_chunk(path: Path) -> None:
    zarr_group(path, {"x": X})
    chunk = path / "x" / "c" / "0" / "0" / "0"
    chunk.rename(path.parent / "chunk")
    chunk.symlink_to(path.parent / "chunk")


def linked_array(path: Path) -> None:
    zarr_group(path, {})
    zarr_group(path.parent / "other.zarr", {"x": X})
    (path / "x").symlink_to(path.parent / "other.zarr" / "x")


def pipe_for_a_chunk(path: Path) -> None:
    zarr_group(path, {"x": X})
    chunk = path / "x" / "c" / "0" / "0" / "0"
    chunk.unlink()
    os.mkfifo(chunk)


def pipe_for_a_part(path: Path) -> None:
    path.mkdir()
    os.mkfifo(path / "a.parquet")


def short_chunk(path: Path) -> None:
    zarr_group(path, {"x": X}, compressors=lambda _: None)
    chunk = path / "x" / "c" / "1" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-4])


def huge_chunks_zarr(path: Path) -> None:
    zarr.create_group(path).create_array("x", shape=(1 << 29,), chunks=(1 << 29,), dtype="f4")


def huge_chunks_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (1 << 29,), "f4", chunks=(1 << 29,))


def external_link(path: Path) -> None:
    hdf5(path.parent / "other.h5", {"x": SECRET})
    with h5py.File(path, "w") as file:
        file["a/b"] = X
        file["a/x"] = h5py.ExternalLink(str(path.parent / "other.h5"), "x")


def soft_link_through_an_external_one(path: Path) -> None:
    hdf5(path.parent / "other.h5", {"x": SECRET})
    with h5py.File(path, "w") as file:
        file["a"] = h5py.SoftLink("/z/x")
        file["z"] = h5py.ExternalLink(str(path.parent / "other.h5"), "/")


def dangling_link(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = h5py.SoftLink("/nowhere")


def virtual(path: Path) -> None:
    hdf5(path.parent / "other.h5", {"x": SECRET})
    layout = h5py.VirtualLayout(SECRET.shape, "f4")
    layout[:] = h5py.VirtualSource(path.parent / "other.h5", "x", SECRET.shape)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("x", layout)


def external_storage(path: Path) -> None:
    (path.parent / "other").write_bytes(SECRET.tobytes())
    with h5py.File(path, "w") as file:
        file.create_dataset("x", SECRET.shape, "f4", external=[(str(path.parent / "other"), 0, SECRET.nbytes)])


def damaged_checksum(path: Path) -> None:
    hdf5(path, {"x": X}, chunks=X.shape, fletcher32=True)
    patched(path, X.tobytes()[100:120], bytes(20))


def column(values: Any, kind: pa.DataType | None = None) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table({"x": pa.array(values, kind)}), path)


def pickled_shape(path: Path) -> None:
    """As Ray Data 2.49 to 2.54 wrote it."""
    about = {b"ARROW:extension:name": b"ray.data.arrow_tensor_v2", b"ARROW:extension:metadata": pickle.dumps((2, 3))}
    field = pa.field("x", pa.list_(pa.float32()), metadata=about)
    pq.write_table(pa.table([X.reshape(23, -1).tolist()], pa.schema([field])), path)


def different_columns(path: Path) -> None:
    path.mkdir()
    parquet(path / "a.parquet", {"x": X})
    parquet(path / "b.parquet", {"x": X.transpose(0, 2, 1)})


def linked_part(path: Path) -> None:
    path.mkdir()
    parquet(path.parent / "other.parquet", {"x": SECRET})
    (path / "a.parquet").symlink_to(path.parent / "other.parquet")


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "objects": ("d.npy", lambda path: path.write_bytes(npy(kind="'|O'")), "pickled Python objects"),
    "objects in records": ("d.npy", lambda path: path.write_bytes(npy(kind="[('a', '|O')]")), "pickled Python objects"),
    "promise": ("d.npy", lambda path: path.write_bytes(npy("(1000000000000,)")), "promises"),
    "negative": ("d.npy", lambda path: path.write_bytes(npy("(-1,)", body=b"1234")), "promises"),
    "no tuple": ("d.npy", lambda path: path.write_bytes(npy("23", body=bytes(92))), "shape is not valid"),
    "code": ("d.npy", lambda path: path.write_bytes(npy("(print(1),)")), "malformed node"),
    "only magic": ("d.npy", lambda path: path.write_bytes(b"\x93NUMPY\x01\x00"), "EOF"),
    "unknown version": ("d.npy", lambda path: path.write_bytes(b"\x93NUMPY\x09\x00v\0" + bytes(200)), "header"),
    "member of objects": ("d.npz", lambda path: member(path, npy(kind="'|O'")), "pickled Python objects"),
    "promise in a member": ("d.npz", lambda path: member(path, npy("(99999999,)")), "promises"),
    "too long": ("d.npz", lambda path: member(path, npy("(2,)", body=bytes(9))), "longer than its header says"),
    "no arrays": ("d.npz", lambda path: member(path, b"hello", "readme.txt"), "zip file without arrays"),
    "checksum": ("d.npz", bad_checksum, "Bad CRC-32"),
    "stored too long": ("d.npz", stored_member_too_long, "the bytes end before"),
    "no directory": ("d.npz", lambda path: path.write_bytes(b"PK\x03\x04" + bytes(50)), "not a zip file"),
    "zarr codec": ("d.zarr", lambda path: one_zarr(path, filters=[{"id": "pickle"}]), "codec 'pickle' is refused"),
    "zarr compressor": ("d.zarr", lambda path: one_zarr(path, compressor={"id": "json2"}), "codec 'json2' is refused"),
    "zarr fill value": ("d.zarr", pickled_fill_value, "codec 'pickle' is refused"),
    "zarr shards": ("d.zarr", codec_inside_of_shards, "codec 'onnxlift.unknown' is refused"),
    "zarr blosc": ("d.zarr", lying_blosc, "says that it has 1879048192"),
    "zarr blosc in shards": ("d.zarr", lying_blosc_in_shards, "says that it has 1879048192"),
    "zarr shape": ("d.zarr", lambda path: one_zarr(path, shape=[-1, 2, 3]), "x"),
    "zarr dtype": ("d.zarr", lambda path: one_zarr(path, dtype="<f7"), "f7"),
    "zarr objects": ("d.zarr", lambda path: zarr_group(path, {}), "no arrays of numbers"),
    "zarr chunk": ("d.zarr", short_chunk, "x"),
    "zarr chunk link": ("d.zarr", linked_chunk, "a link or a device is refused"),
    "zarr array link": ("d.zarr", linked_array, "a link or a device is refused"),
    "zarr pipe": ("d.zarr", pipe_for_a_chunk, "a link or a device is refused"),
    "parquet pipe": ("d", pipe_for_a_part, "a link or a device is refused"),
    "pipe": ("d", lambda path: os.mkfifo(path), "neither a file nor a folder"),
    "zarr huge chunks": ("d.zarr", huge_chunks_zarr, "chunks of shape .* are too large"),
    "no rows": ("d.parquet", column([], pa.float32()), "no rows"),
    "ragged": ("d.parquet", column([[1.0], [1.0, 2.0]]), "lists have 1 to 2 elements"),
    "ragged later": ("d.parquet", column([[1.0]] * 9 + [[1.0, 2.0]] * 9), "lists have 1 to 2 elements"),
    "ragged inside": ("d.parquet", column([[[1.0], [1.0, 2.0]]]), "lists have 1 to 2 elements"),
    "null": ("d.parquet", column([1.0, None]), r"missing values \(null\)"),
    "null list": ("d.parquet", column([[1.0], None]), r"missing values \(null\)"),
    "null in a list": ("d.parquet", column([[1.0, None]]), r"missing values \(null\)"),
    "no numbers": ("d.parquet", column([{"a": 1}]), "no arrays of numbers, only 'x'"),
    "pickled shape": ("d.parquet", pickled_shape, "column 'x' cannot be used: .*decode"),
    "different columns": ("d", different_columns, "columns differ from those of a.parquet"),
    "link out of the folder": ("d", linked_part, "a link or a device is refused"),
    "external link": ("d.h5", external_link, r"'a/x' is a link into another file, '.*other\.h5'"),
    "soft link": ("d.h5", soft_link_through_an_external_one, "'z' is a link into another file"),
    "dangling link": ("d.h5", dangling_link, "array 'x' cannot be used"),
    "virtual data set": ("d.h5", virtual, "lies in other files, which is refused"),
    "external storage": ("d.h5", external_storage, "lies in other files, which is refused"),
    "huge chunks": ("d.h5", huge_chunks_hdf5, "chunks of shape .* are too large"),
    "fletcher checksum": ("d.h5", damaged_checksum, "array 'x' cannot be used"),
    "empty file": ("d.h5", lambda path: hdf5(path, {}), "no arrays of numbers"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(damage: str, tmp_path: Path) -> None:
    name, make, message = DAMAGES[damage]
    make(tmp_path / name)
    with pytest.raises(DataError, match=rf"(?s)/{name}.*{message}"):
        read_rows(tmp_path / name)


def longest(path: Path) -> Path:
    """The file with most bytes of a folder; a file itself."""
    return max((each for each in [path, *path.rglob("*")] if each.is_file()), key=lambda each: each.stat().st_size)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.97])
@pytest.mark.parametrize("writer", [writer for writer in WRITERS if writer != "zarr zip"])
def test_truncated(writer: str, share: float, tmp_path: Path) -> None:
    path = write(writer, tmp_path, {"x": np.tile(X, (1, 1, 50))} if "ray" not in writer else {"x": X})
    file = longest(path)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=path.name):
        read_rows(path)


@pytest.mark.parametrize("writer", WRITERS)
def test_some_bytes_changed(writer: str, tmp_path: Path) -> None:
    """Arrays of the promised shapes, or one DataError: never another exception, never the end of the process."""
    original = write(writer, tmp_path)
    for seed in range(40):
        rng = random.Random(f"{writer} {seed}")
        path = tmp_path / f"{seed}-{original.name}"
        (shutil.copytree if original.is_dir() else shutil.copy)(original, path)
        file = rng.choice(sorted(each for each in [path, *path.rglob("*")] if each.is_file()))
        content = bytearray(file.read_bytes())
        for _ in range(rng.choice([1, 2, 8]) if content else 0):
            content[rng.randrange(len(content))] = rng.randrange(256)
        file.write_bytes(content)
        try:
            read_rows(path)
        except DataError as error:
            message = str(error)
        else:
            message = path.name
        assert path.name in message


def test_what_is_not_there_is_not_read_into_memory(tmp_path: Path) -> None:
    """A few bytes may stand for a large array: rows of it are read, all of it is refused."""
    zarr.create_group(tmp_path / "a.zarr").create_array("x", shape=(1 << 40, 4), chunks=(1 << 10, 4), dtype="f4")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("x", (1 << 40, 4), "f4", chunks=(1 << 10, 4))
    for name in ("a.zarr", "b.h5"):
        with open_data(tmp_path / name) as stored:
            np.testing.assert_array_equal(stored["x"][1 << 39 : (1 << 39) + 5], np.zeros((5, 4)))
        with pytest.raises(DataError, match="would unpack to 17592186044416, which is refused"):
            read_all(tmp_path / name)


def test_a_link_to_the_folder_itself_is_fine(tmp_path: Path) -> None:
    for writer in ("zarr 3", "parquet folder"):
        path = write(writer, tmp_path)
        link = tmp_path / f"link{path.suffix}"
        link.symlink_to(path)
        np.testing.assert_array_equal(read_all(link)["x"], X)
        link.unlink()
