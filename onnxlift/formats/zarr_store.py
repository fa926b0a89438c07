"""Zarr, versions 2 and 3, in a folder or a .zip; nothing is unpickled, and no link leads out of the folder."""

from __future__ import annotations

import json
import os
import struct
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numcodecs
import numpy as np
import zarr
from zarr.abc.store import ByteRequest
from zarr.codecs import BloscCodec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.registry import register_codec
from zarr.storage import LocalStore, ZipStore

from onnxlift.arrays import Array
from onnxlift.errors import DataError
from onnxlift.formats.rows import PIECE_BYTES, ZARR_METADATA, FileRows, Rows, Stored, in_pieces, named_arrays, refusing

# Codecs that compute on bytes and numbers. The others that Zarr knows make Python objects, or come from a plugin.
_CODECS = frozenset(
    "adler32 astype base64 bitround blosc bytes bz2 crc32 crc32c delta fixedscaleoffset fletcher32 gzip "
    "jenkins_lookup3 lz4 lzma packbits pcodec quantize sharding_indexed shuffle transpose vlen-utf8 zfpy zlib "
    "zstd".split()
)
_BLOSC = "onnxlift.blosc"


@contextmanager
def open_zarr(path: Path) -> Iterator[Stored]:
    """The array, or the arrays of a group by their path in it, `group/name`."""
    store = _Folder(path, read_only=True) if path.is_dir() else _Zip(path)
    try:
        with refusing(str(path)), warnings.catch_warnings(action="ignore"):  # of what may change in Zarr
            root = zarr.open(store, mode="r", use_consolidated=False)
            if isinstance(root, zarr.Array):
                rows = _rows(str(path), root)
                if rows is None:
                    raise ValueError("it holds Python objects or records, not numbers")
                stored: Stored = rows
            else:
                stored = named_arrays(_arrays(path, root))
        yield stored
    finally:
        store.close()


def _arrays(path: Path, root: zarr.Group) -> dict[str, Rows | None]:
    """The arrays of a group and of the groups in it. What else lies in the folder is passed over."""
    found: dict[str, Rows | None] = {}
    groups: list[tuple[zarr.Group, Any]] = [(root, path if path.is_dir() else zipfile.Path(path))]
    while groups:
        group, folder = groups.pop()
        for each in sorted(folder.iterdir(), key=lambda child: child.name):
            if not any((each / name).is_file() for name in ZARR_METADATA):
                continue
            item = group[each.name]
            if isinstance(item, zarr.Group):
                groups.append((item, each))
            else:
                found[item.path] = _rows(f"{path}, array {item.path!r}", item)
    return found


def _rows(where: str, array: zarr.Array[Any]) -> FileRows | None:
    """The rows of an array; None where it is neither of numbers nor of text."""
    shape, dtype = array.shape, array.dtype
    text = dtype.kind in "TU"
    if not text and dtype.kind not in "fiub":
        return None

    def read(start: int, stop: int) -> Array:
        rows = np.asarray(array[start:stop] if shape else array[...], dtype).reshape(stop - start, *shape[1:])
        return rows.astype(str) if text else rows

    with refusing(where):
        pieces = read if text else in_pieces(read, shape, dtype, array.shards or array.chunks)
    return FileRows(where, shape, np.dtype(str) if text else dtype, pieces)


class _Folder(LocalStore):
    """A folder of files that are where they seem to be, no larger than what is unpacked as a whole."""

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        file = self.root / key
        if os.path.lexists(file) and not file.is_dir():
            if not file.is_file() or file.resolve() != self.root.resolve() / key:
                raise DataError(f"The data {file} cannot be used: a link or a device is refused. Copy the file.")
            if byte_range is None:
                _check_size(file, file.stat().st_size)
        return _checked(file, await super().get(key, prototype, byte_range))


class _Zip(ZipStore):
    """The same of the members of a zip file."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        member = self._zf.NameToInfo.get(key) if self._is_open else None
        if member is not None and byte_range is None:
            _check_size(self.path / key, member.file_size)
        return _checked(self.path / key, await super().get(key, prototype, byte_range))


def _check_size(file: Path, size: int) -> None:
    if size > PIECE_BYTES:
        raise DataError(f"The data {file} cannot be used: {size} bytes in one chunk. Save it with smaller chunks.")


def _checked(file: Path, content: Buffer | None) -> Buffer | None:
    """The content of a file; that of metadata with codecs that are safe, before Zarr makes anything of it."""
    if content is None or file.name not in ZARR_METADATA:
        return content
    with refusing(str(file)):
        about = json.loads(content.to_bytes())
        _make_safe(about)
        return type(content).from_bytes(json.dumps(about).encode())


def _make_safe(about: Any) -> None:
    """Refuses unknown codecs in the metadata of an array, also those inside of shards, and takes our Blosc."""
    if not isinstance(about, dict):
        return
    for key in ("codecs", "index_codecs", "compressor", "filters"):
        codecs = about.get(key)
        for codec in codecs if isinstance(codecs, list) else [codecs] if codecs else []:
            label = "id" if key in ("compressor", "filters") else "name"
            name = str(codec[label] if isinstance(codec, dict) else codec)
            if name == "blosc" and isinstance(codec, dict):
                codec[label] = _BLOSC
            elif name == "blosc" or name.removeprefix("numcodecs.") not in _CODECS - {"blosc"}:
                raise ValueError(f"its codec {name!r} is refused: let Zarr choose the compression")
            if isinstance(codec, dict):
                _make_safe(codec.get("configuration"))


class _Blosc(numcodecs.Blosc):  # type: ignore[misc]
    """Blosc that believes its header only as far as there are bytes: it would read behind them, and end the process."""

    codec_id = _BLOSC

    def decode(self, buf: Any, out: Any = None) -> Any:
        held = memoryview(buf).cast("B")
        unpacked, _, packed = struct.unpack("<III", held[4:16])
        if packed != len(held) or unpacked > PIECE_BYTES:
            raise ValueError(f"a chunk of {len(held)} bytes says that it has {packed}, and {unpacked} unpacked")
        return super().decode(buf, out)


class _BloscCodec(BloscCodec):
    """The same in Zarr 3."""

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        return super().from_dict({**data, "name": "blosc"})

    @cached_property
    def _blosc_codec(self) -> Any:
        config = super()._blosc_codec.get_config()
        return _Blosc(**{key: value for key, value in config.items() if key != "id"})


numcodecs.register_codec(_Blosc)
register_codec(_BLOSC, _BloscCodec)
