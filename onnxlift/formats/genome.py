"""Sequences as one-hot rows: the records of a FASTA file, or regions (BED, narrowPeak) of a genome in FASTA.

Channels are A, C, G, T. Lower case (soft-masked) is read as upper case and U as T; N and the other IUPAC codes stand
for several letters, and their column is 0.
"""

from __future__ import annotations

import contextlib
import gzip
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from onnxlift.arrays import Array
from onnxlift.errors import DataError, OptionError, listed, shown
from onnxlift.feed import Port
from onnxlift.formats.fasta import Fasta
from onnxlift.formats.rows import FileRows, Form, Rows, refusing
from onnxlift.one_hot import BASES

FASTA = (".fa", ".fasta", ".fna")
REGIONS = (".bed", ".narrowpeak", ".broadpeak")
"""What the names of such files end in, also in front of PACKED."""
PACKED = (".gz", ".bgz")

_LONGEST_LINE = 1 << 16
_BOMB_BYTES, _BOMB_RATIO = 1 << 30, 100
_NARROW_PEAK = 10  # columns; the last one is the summit

_CODES = np.full(256, BASES, np.uint8)  # letter -> channel, or BASES for none
for _channel, _letters in enumerate((b"Aa", b"Cc", b"Gg", b"TtUu")):
    _CODES[list(_letters)] = _channel


@dataclass(frozen=True, slots=True)
class Region:
    """A line of a BED file: `start` to `end` (exclusive), from 0, of a chromosome.

    summit: bases from `start` to the summit, where narrowPeak tells it. strand: "+", "-" or ".". name: "" where there
    is none. line: its number in the file, from 1.
    """

    chrom: str
    start: int
    end: int
    summit: int | None = None
    strand: str = "."
    name: str = ""
    line: int = 0


class SequenceRows(FileRows):
    """N stretches of L letters, one-hot: `[N, 4, L]` or `[N, L, 4]`, with axes of length 1 where the input has them.

    starts: in the long row of `fasta`, int64 `[N]`. minus: which are reverse-complemented, bool `[N]`. axes: of the
    input, that of the channels and that of the letters. named: rows are records with names of their own; else regions.
    """

    def __init__(
        self,
        fasta: Fasta,
        starts: NDArray[np.int64],
        minus: NDArray[np.bool_],
        length: int,
        port: Port,
        axes: tuple[int, int],
        *,
        named: bool,
    ) -> None:
        shape = [1] * len(port.shape)
        shape[0], shape[axes[0]], shape[axes[1]] = len(starts), BASES, length
        super().__init__(str(fasta.path), tuple(shape), port.dtype, self._encoded)
        self._fasta, self._starts, self._minus, self._length = fasta, starts, minus, length
        self._channels_first = axes[0] < axes[1]
        self._named = named

    def labels(self, start: int, stop: int) -> list[str]:
        """What the rows are called: names of records, or regions as chr1:100-200, with (-) if reverse-complemented."""
        if self._named:
            return [self._fasta.name(row) for row in range(start, stop)]
        labels = []
        for begin, minus in zip(self._starts[start:stop].tolist(), self._minus[start:stop].tolist(), strict=True):
            record = int(np.searchsorted(self._fasta.starts, begin, "right")) - 1
            first = begin - int(self._fasta.starts[record])
            labels.append(f"{self._fasta.name(record)}:{first}-{first + self._length}{'(-)' if minus else ''}")
        return labels

    def _encoded(self, start: int, stop: int) -> Array:
        letters = np.frombuffer(self._fasta.read(self._spans(start, stop)), np.uint8)
        codes = _CODES[letters].reshape(-1, self._length)
        minus = self._minus[start:stop]
        codes[minus] = (BASES - 1 - codes[minus])[:, ::-1]  # of no letter: 255, which is no channel either
        shape = (len(codes), BASES, self._length) if self._channels_first else (*codes.shape, BASES)
        rows = np.empty(shape, self.dtype)
        channels = rows if self._channels_first else rows.transpose(0, 2, 1)
        for channel in range(BASES):
            np.equal(codes, channel, out=channels[:, channel])
        return rows.reshape(-1, *self.shape[1:])

    def _spans(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """What to read for these rows: rows that follow each other in the file at once."""
        starts = self._starts[start:stop]
        breaks = np.flatnonzero(np.diff(starts) != self._length) + 1
        for run in np.split(starts, breaks):
            yield int(run[0]), int(run[-1]) + self._length


@contextlib.contextmanager
def open_sequences(path: Path, port: Port, axis: int | None, form: Form) -> Iterator[dict[str, Rows]]:
    """The rows of a FASTA file, or of the regions of a BED or narrowPeak file (also gzipped) in `form.genome`.

    `port`: the input that they are for, which says how long they are and of which dtype; where its length is dynamic,
    all are of one length. `axis`: that of its channels; None where its shape tells.
    Raises DataError: unreadable, damaged, a record of another length, a region outside of its chromosome. OptionError:
    the input takes no sequences, or there is no genome.
    """
    axes, length = _axes(port, axis)
    if _is_fasta(path):
        if form.genome is not None:
            raise OptionError(f"{path} is FASTA, and a genome is for the regions of a BED file: leave it out")
        rows = _records(path, port, axes, length)
    else:
        if form.genome is None:
            raise OptionError(f"{path} has regions: name the FASTA file that they are of with --genome")
        rows = _regions(path, form.genome, port, axes, length)
    yield {port.name: rows}


def read_regions(path: Path) -> list[Region]:
    """The lines of a BED or narrowPeak file (10 columns), plain or gzipped; comments and track lines are left out.

    Raises DataError: unreadable, a line that is none of BED, no regions.
    """
    regions = []
    with refusing(str(path)):
        for number, line in _lines(path):
            if line.strip() and not line.startswith(("#", "track ", "track\t", "browser ", "browser\t")):
                try:
                    regions.append(_region(line.rstrip("\r\n"), number))
                except ValueError as error:
                    raise ValueError(f"line {number} {error}") from error
        if not regions:
            raise ValueError("it has no regions")
    return regions


def centred(region: Region, length: int) -> tuple[int, int]:
    """Start and end (exclusive) of `length` bases around the summit, or the middle where there is none.

    That base is number `length // 2` of them, from 0. They may leave the chromosome.
    """
    middle = (region.start + region.end) // 2 if region.summit is None else region.start + region.summit
    start = middle - length // 2
    return start, start + length


def _axes(port: Port, axis: int | None) -> tuple[tuple[int, int], int | None]:
    """The axes of an input that hold channels and letters, and how many letters; None where any number fits."""
    shape = port.shape
    takes_none = f"input {port.name!r} of shape {shown(shape)} takes no sequences"
    if axis is None:
        found = [place for place, extent in enumerate(shape) if place and extent == BASES]
        if len(found) != 1:
            raise OptionError(f"{takes_none}, or which axis holds A, C, G, T cannot be told: name it with --one-hot")
        axis = found[0]
    axis %= len(shape)
    letters = [place for place, extent in enumerate(shape) if place not in (0, axis) and extent != 1]
    if not port.split or not axis or len(letters) != 1 or (isinstance(shape[axis], int) and shape[axis] != BASES):
        raise OptionError(f"{takes_none}: their shape is [N, {BASES}, L] or [N, L, {BASES}], where N is the batch")
    length = shape[letters[0]]
    return (axis, letters[0]), length if isinstance(length, int) else None


def _records(path: Path, port: Port, axes: tuple[int, int], length: int | None) -> SequenceRows:
    """A row for each record."""
    fasta = Fasta(path)
    wanted = int(fasta.lengths.max()) if length is None else length
    wrong = np.flatnonzero((fasta.lengths != wanted) | (fasta.lengths == 0))
    if wrong.size:
        record = int(wrong[0])
        expected = f"{port.name!r} takes {wanted}" if length else f"the longest {wanted}: all must be of one length"
        raise DataError(
            f"{path}: record {record + 1}, {fasta.name(record)!r}, has {fasta.lengths[record]} letters, and {expected} "
            f"({wrong.size} such record{'s' * (wrong.size != 1)} in all). Cut the sequences to size."
        )
    return SequenceRows(fasta, fasta.starts, np.zeros(len(fasta), bool), wanted, port, axes, named=True)


def _regions(path: Path, genome: Path, port: Port, axes: tuple[int, int], length: int | None) -> SequenceRows:
    """A row for each region, resized around its centre."""
    regions = read_regions(path)
    wanted = regions[0].end - regions[0].start if length is None else length
    fasta = Fasta(genome)
    records = {fasta.name(record): record for record in range(len(fasta))}
    if len(records) < len(fasta):
        raise DataError(f"{genome} has several records of one name, so that regions have no one place in it.")
    starts, minus = np.empty(len(regions), np.int64), np.empty(len(regions), bool)
    for row, region in enumerate(regions):
        record = records.get(region.chrom)
        if record is None:
            raise _refused(path, region, f"is on no chromosome of {genome}, which begins with {listed([*records][:3])}")
        start, end = centred(region, wanted)
        if length is None and region.end - region.start != wanted:
            raise _refused(path, region, f"is not as long as the first, {wanted}: all must be of one length")
        if start < 0 or end > fasta.lengths[record]:
            problem = f"becomes {start} to {end} around its centre, of a chromosome of {fasta.lengths[record]} bases"
            raise _refused(path, region, problem)
        starts[row], minus[row] = fasta.starts[record] + start, region.strand == "-"
    return SequenceRows(fasta, starts, minus, wanted, port, axes, named=False)


def _refused(path: Path, region: Region, problem: str) -> DataError:
    place = f"{region.chrom}:{region.start}-{region.end}"
    return DataError(f"line {region.line} of {path}, {place}, {problem}. Correct the region or leave it out.")


def _region(line: str, number: int) -> Region:
    """Raises ValueError for what is no line of BED."""
    fields = line.split("\t") if "\t" in line else line.split()
    if len(fields) < 3 or not fields[0]:
        raise ValueError("has no chromosome, start and end, separated by tabs")
    start, end = _position(fields[1]), _position(fields[2])
    if start >= end:
        raise ValueError(f"ends at {end}, which is not behind its start {start}")
    name, strand = (fields[column] if len(fields) > column else "." for column in (3, 5))
    if strand not in ("+", "-", "."):
        raise ValueError(f"has the strand {strand!r}, which is none of + - .")
    summit = None
    if len(fields) == _NARROW_PEAK and fields[-1] != "-1":
        summit = _position(fields[-1])
        if summit >= end - start:
            raise ValueError(f"has its summit at {summit} of {end - start} bases, behind its end")
    return Region(sys.intern(fields[0]), start, end, summit, sys.intern(strand), "" if name == "." else name, number)


def _position(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise ValueError(f"has {text[:20]!r} where a position should be")
    return int(text)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file of text, plain or gzipped, numbered from 1. Raises ValueError for what is no such file."""
    with _unpacked(path) as file:
        size, number = 0, 0
        while line := file.readline(_LONGEST_LINE):
            number, size = number + 1, size + len(line)
            if len(line) == _LONGEST_LINE:
                raise ValueError(f"line {number} is longer than {_LONGEST_LINE} bytes, as none of BED is")
            if size > _BOMB_BYTES and size > _BOMB_RATIO * path.stat().st_size:
                raise ValueError(f"it unpacks to more than {_BOMB_RATIO} times its size, which is refused")
            yield number, line.decode("utf-8")


def _is_fasta(path: Path) -> bool:
    """Whether a file begins with '>', behind empty lines, or else is called so."""
    with refusing(str(path)), _unpacked(path) as file:
        begins = file.read(_LONGEST_LINE).lstrip()[:1] == b">"
    return begins or not set(FASTA).isdisjoint(suffix.lower() for suffix in path.suffixes[-2:])


def _unpacked(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path)) if packed else path.open("rb")
