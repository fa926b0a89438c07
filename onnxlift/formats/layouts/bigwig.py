"""bigWig: a track of contributions along a genome, as genome browsers show it."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np

from onnxlift.arrays import Array, replacing_path
from onnxlift.errors import DataError, OptionError
from onnxlift.explainer import CONTRIBUTIONS
from onnxlift.formats.fasta import Fasta
from onnxlift.formats.genome import Region, centred
from onnxlift.formats.layouts.source import LayoutInput, Letters, input_of, scores_of
from onnxlift.formats.layouts.writing import Written
from onnxlift.formats.rows import Rows, Stored, required

_RUN = 1 << 16  # bases that are handed over at once
_LONGEST_LINE = 1 << 16
# bytes, of what was measured 5.4 with all zoom levels, 92 for a region of one base
_MOST_PER_BASE, _MOST_PER_REGION, _MOST_BESIDE = 6, 128, 1 << 20
_LARGEST = (1 << 32) - 1  # positions are 32 bits wide

Place = tuple[str, int]


def write_bigwig(results: Mapping[str, Rows], data: Stored | None, out: Path, about: LayoutInput) -> Written:
    """One float32 for every base of the regions: its contributions, summed over the letters.

    What was explained is as long as the model's input, around the summit of a region or its middle. A base that several
    cover gets their mean. (Tools of the BPNet family give it to the nearer summit, which makes a step half way.)

    Raises DataError where a region is not in the genome, and as `Letters` does; OptionError without room for the file.
    The data are not read.
    """
    assert about.genome is not None  # table.check_layout
    name = input_of(results, CONTRIBUTIONS, about.input) + CONTRIBUTIONS
    letters = Letters(scores_of(results, name), repr(name), about)
    samples, _, length = letters.shape
    sizes = chromosome_sizes(about.genome)
    places = [_place(region, length, sizes, about.genome) for region in about.regions]
    order = sorted(range(samples), key=places.__getitem__)
    # Results are read in their own order, for which they are stored; what is sorted is a quarter of them, or less.
    with replacing_path(out) as partial, tempfile.TemporaryFile(dir=out.parent) as scratch:
        for block in letters.blocks():
            scratch.write(letters[block].sum(axis=1, dtype=np.float64).astype(np.float32).tobytes())
        # pyBigWig crashes the process where it cannot write.
        partial.touch()
        needed = _MOST_PER_BASE * samples * length + _MOST_PER_REGION * samples + _MOST_BESIDE
        if shutil.disk_usage(out.parent).free < needed:
            raise OptionError(
                f"{out} may take {needed / 1e6:.0f} MB, which its disk has not left: choose another folder"
            )
        # libBigWig writes the chromosomes in the order it is told; readers look for names in a sorted tree.
        with required("pyBigWig", f"writing {out.suffix}").open(str(partial), "w") as file:
            file.addHeader(sorted(sizes.items()))
            for chromosome, group in itertools.groupby(order, lambda sample: places[sample][0]):
                regions = ((places[sample][1], _row(scratch, sample, length)) for sample in group)
                for position, values in _runs(_averaged(regions, length)):
                    file.addEntries(chromosome, position, values=values, span=1, step=1)
    return Written((out,))


def chromosome_sizes(genome: Path) -> dict[str, int]:
    """Bases by chromosome: of a FASTA file, or of a table whose first columns are name and size, such as a .fai index.

    Raises DataError where it is neither.
    """
    try:
        with genome.open("rb") as file:
            start = file.read(2)
            file.seek(0)
            if start[:1] == b">" or start == b"\x1f\x8b":
                fasta = Fasta(genome)
                return {fasta.name(record): int(size) for record, size in enumerate(fasta.lengths) if size}
            sizes = {}
            while line := file.readline(_LONGEST_LINE):
                name, size = line.decode().split()[:2]
                if name in sizes or not 0 < int(size) <= _LARGEST:
                    raise ValueError("it has no place in a bigWig")
                sizes[name] = int(size)
    except OSError as error:
        raise DataError(f"Cannot read {genome}: {error.strerror or error}. Check the path.") from error
    except ValueError as error:
        raise DataError(
            f"line {len(sizes) + 1} of {genome} is not the name and the size of a chromosome: give a FASTA file or one "
            "of chromosome sizes"
        ) from error
    return sizes


def _place(region: Region, length: int, sizes: Mapping[str, int], genome: Path) -> Place:
    """Where a region begins. Raises DataError where the genome does not hold it."""
    start, end = centred(region, length)
    size = sizes.get(region.chrom, 0)
    if not 0 <= start < end <= size:
        has = f"{size} bases of that chromosome" if size else "no such chromosome"
        raise DataError(
            f"line {region.line} of the regions, {region.chrom}:{start}-{end} around its centre, is not in the genome: "
            f"{genome} has {has}. Give the genome that the regions are of"
        )
    return region.chrom, start


def _row(scratch: IO[bytes], sample: int, length: int) -> Array:
    scratch.seek(sample * length * 4)
    return np.frombuffer(scratch.read(length * 4), np.float32)


def _averaged(regions: Iterator[tuple[int, Array]], length: int) -> Iterator[tuple[int, Array]]:
    """Stretches of values, float32, each base once, of regions of one length in the order of their starts."""
    total, count, begin = np.zeros(length), np.zeros(length), 0
    for start, values in regions:
        done = min(start - begin, length) if count[0] else 0
        if done:
            yield begin, (total[:done] / count[:done]).astype(np.float32)
        for window in (total, count):
            window[: length - done] = window[done:].copy()
            window[length - done :] = 0
        begin = start
        total += values
        count += 1
    yield begin, (total / count).astype(np.float32)


def _runs(stretches: Iterator[tuple[int, Array]]) -> Iterator[tuple[int, Array]]:
    """Stretches that touch, joined up to a length that is worth a call."""
    run: list[Array] = []
    first = end = 0
    for begin, values in stretches:
        if run and (begin != end or end - first >= _RUN):
            yield first, np.concatenate(run)
            run = []
        if not run:
            first = begin
        run.append(values)
        end = begin + len(values)
    yield first, np.concatenate(run)
