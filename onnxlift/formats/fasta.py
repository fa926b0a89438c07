"""FASTA files, plain or compressed by bgzip, of which any stretch is read without an index beside them.

An index (.fai, .gzi) may be older than its file, come from somebody else, or find no place in the folder. Looking
through the file instead takes a second per GB, and memory for the names of the records and two numbers per 16 KB.
"""

from __future__ import annotations

import os
import re
import zlib
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from onnxlift.errors import DataError
from onnxlift.formats.rows import refusing

_BLOCK = 1 << 14  # what is read around a stretch
_LONGEST_NAME = 1000

_BGZF, _BGZF_EXTRA = b"\x1f\x8b\x08\x04", b"\x06\x00BC\x02\x00"  # bytes 0 to 4 and 10 to 16 of every block
_BGZF_HEADER = 18
_BGZF_TEXT = 1 << 16  # what a block may unpack to

_SPACE = b"\r\n\t "
_LETTERS = b"ACGTUNRYSWKMBDHVacgtunryswkmbdhv"
_HEADER = re.compile(rb">[^\n]*")


class Fasta:
    """The records of a FASTA file, and their letters as one long row: those of the first record, of the second, ...

    path: the file. starts: where in the row each record begins, int64 `[R]`. lengths: how many letters each has, int64
    `[R]`.
    Nothing is kept open, so that it can be pickled and read by several threads.

    Raises DataError: unreadable, no FASTA, compressed by something else, damaged, letters that are no nucleotide code.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._blocks = _Blocks(path)
        scan = _Scan()
        with refusing(str(path)):
            for offset, text in self._blocks.all():
                scan.add(offset, text)
            scan.finish()
        self.starts: NDArray[np.int64] = np.array(scan.starts)
        self.lengths: NDArray[np.int64] = np.diff(self.starts, append=scan.total)
        self._names, self._name_ends = bytes(scan.names), scan.name_ends
        self._offsets, self._before = np.array(scan.offsets), np.array(scan.before)
        self._in_header = bytes(scan.in_header)

    def __len__(self) -> int:
        """How many records there are."""
        return len(self.starts)

    def name(self, record: int) -> str:
        """The first word of the line '>...', at most 1000 bytes of it."""
        start, stop = self._name_ends[record : record + 2]
        return self._names[start:stop].decode("utf-8", "replace")

    def read(self, spans: Iterable[tuple[int, int]]) -> bytes:
        """The letters of stretches of the long row, start to stop (exclusive), one behind the other.

        Raises DataError where the file is not what it was.
        """
        with self._blocks.open() as file:
            return b"".join([self._stretch(file, start, stop) for start, stop in spans])

    def _stretch(self, file: IO[bytes], start: int, stop: int) -> bytes:
        first = int(np.searchsorted(self._before, start, "right")) - 1
        last = int(np.searchsorted(self._before, stop, "left"))
        file.seek(int(self._offsets[first]))
        text = b"".join([self._blocks.text(file) for _ in range(first, last)])
        if self._in_header[first]:
            text = text[text.index(b"\n") :]
        if b">" in text:
            text = _HEADER.sub(b"", text)
        begin = int(self._before[first])
        return text.translate(None, _SPACE)[start - begin : stop - begin]


class _Scan:
    """What is known of a FASTA file after some of its blocks.

    starts: letters in front of each record. names, name_ends: their names one behind the other, and where they end,
    from a 0 on. offsets: where each block is in the file; before: the letters in front of it; in_header: whether it
    begins inside of a line '>...'. total: letters so far.
    """

    def __init__(self) -> None:
        self.starts, self.names, self.name_ends = array("q"), bytearray(), array("q", [0])
        self.offsets, self.before, self.in_header = array("q"), array("q"), bytearray()
        self.total = 0
        self._header: bytes | None = None  # what was read of the line '>...' that we are in
        self._previous = b"\n"

    def add(self, offset: int, text: bytes) -> None:
        """One more block. Raises ValueError for what is no FASTA."""
        self.offsets.append(offset)
        self.before.append(self.total)
        self.in_header.append(self._header is not None)
        position = 0
        while position < len(text):
            position = self._letters(text, position) if self._header is None else self._name(text, position)
        self._previous = text[-1:] or self._previous

    def finish(self) -> None:
        """There are no more blocks. Raises ValueError where there were no records."""
        if self._header is not None:
            self._add_name(self._header)
        if not self.starts:
            raise ValueError("it has no records: FASTA has a line '>name' in front of each sequence")

    def _letters(self, text: bytes, position: int) -> int:
        """Counts the letters in front of the next '>'; returns the position behind it."""
        end = text.find(b">", position)
        letters = text[position : None if end < 0 else end].translate(None, _SPACE)
        if letters and not self.starts:
            raise ValueError("it does not begin with '>', as FASTA does")
        other = letters.translate(None, _LETTERS)
        if other or (end >= 0 and (text[end - 1 : end] or self._previous) != b"\n"):
            number = len(self.starts)
            name = self.names[self.name_ends[-2] :].decode("utf-8", "replace")
            letter = (other[:1] or b">").decode("latin-1")
            raise ValueError(f"record {number}, {name!r}, has {letter!r} in its sequence, which is no nucleotide code")
        self.total += len(letters)
        if end < 0:
            return len(text)
        self.starts.append(self.total)
        self._header = b""
        return end + 1

    def _name(self, text: bytes, position: int) -> int:
        """Reads the line '>...', as far as it is there; returns the position behind it."""
        assert self._header is not None
        end = text.find(b"\n", position)
        self._header = (self._header + text[position : None if end < 0 else end])[:_LONGEST_NAME]
        if end < 0:
            return len(text)
        self._add_name(self._header)
        self._header = None
        return end + 1

    def _add_name(self, header: bytes) -> None:
        self.names += b"".join(header.split(None, 1)[:1])
        self.name_ends.append(len(self.names))


class _Blocks:
    """A file as a chain of blocks of text: of 16 KB where it is plain, and those of bgzip, up to 64 KB each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        with self.open() as file:
            start = file.read(_BGZF_HEADER)
            self._stamp = _stamp(file)
        self._packed = _is_bgzf(start)
        if start.startswith(_BGZF[:2]) and not self._packed:
            raise DataError(
                f"{path} is compressed by gzip, which can only be unpacked from its beginning. Gunzip it, and compress "
                "it with bgzip if it should be small."
            )

    def open(self) -> IO[bytes]:
        """The file, to be closed. Raises DataError: unreadable, or changed since it was first opened."""
        with refusing(str(self._path)):
            file = self._path.open("rb")
        if self._stamp not in (None, _stamp(file)):
            file.close()
            raise DataError(f"{self._path} was changed while it was read. Start again.")
        return file

    def all(self) -> Iterator[tuple[int, bytes]]:
        """Where each block begins in the file, and its text. Raises ValueError where the file is damaged."""
        assert self._stamp is not None
        offset, text = 0, b""
        with self.open() as file:
            while offset < self._stamp[0]:
                text = self.text(file)
                yield offset, text
                offset = file.tell()
        if self._packed and text:
            raise ValueError("it is truncated: the empty block that ends a file of bgzip is missing")

    def text(self, file: IO[bytes]) -> bytes:
        """The text of the block at which the file stands, which then stands behind it."""
        if not self._packed:
            return file.read(_BLOCK)
        header = file.read(_BGZF_HEADER)
        size = int.from_bytes(header[16:], "little") + 1
        unpacker = zlib.decompressobj(31)
        text = unpacker.decompress(header + file.read(max(size - _BGZF_HEADER, 0)), _BGZF_TEXT + 1)
        if not _is_bgzf(header) or not unpacker.eof or unpacker.unused_data or len(text) > _BGZF_TEXT:
            raise ValueError("a block of bgzip is damaged or truncated")
        return text


def _is_bgzf(start: bytes) -> bool:
    return start.startswith(_BGZF) and start[10:16] == _BGZF_EXTRA


def _stamp(file: IO[bytes]) -> tuple[int, int]:
    """What changes when a file does: its size in bytes, and the time of its last change in ns."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
