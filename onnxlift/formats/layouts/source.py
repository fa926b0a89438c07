"""What layouts are made of: arrays of a result, checked, and read block by block with the axes that tools expect."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxlift.arrays import Array
from onnxlift.errors import DataError, OptionError, listed, shown
from onnxlift.explainer import CONTRIBUTIONS, HYPOTHETICAL, TARGET_OUTPUT
from onnxlift.formats.genome import PACKED, REGIONS, Region, read_regions
from onnxlift.formats.rows import BLOCK_BYTES, Rows, Stored
from onnxlift.one_hot import BASES


@dataclass(frozen=True)
class LayoutInput:
    """What a layout is told beside the arrays.

    input: the attributed input, where there are several. axis: of its channels, where the shape does not tell; the
    samples are axis 0, and negative ones count from the end. regions: of the samples, where the data are a BED file.
    genome: a FASTA file, its index, or a file of chromosome sizes.
    """

    input: str | None = None
    axis: int | None = None
    regions: Sequence[Region] = ()
    genome: Path | None = None


def regions_of(data: Path) -> list[Region]:
    """The regions of a BED file, plain or gzipped; none of data in other formats. Raises as `read_regions`."""
    suffixes = [suffix.lower() for suffix in data.suffixes if suffix.lower() not in PACKED]
    return read_regions(data) if suffixes and suffixes[-1] in REGIONS else []


def inputs_of(names: Collection[str], suffix: str, chosen: str | None) -> list[str]:
    """The inputs that have an array with this suffix among those named, or the chosen one of them.

    Raises OptionError where there is none.
    """
    inputs = [name.removesuffix(suffix) for name in names if name.endswith(suffix)]
    if chosen in inputs:
        return [chosen]
    if chosen is not None or not inputs:
        emit = {CONTRIBUTIONS: "--emit contributions", HYPOTHETICAL: "--emit contributions --emit hypothetical"}[suffix]
        held = f"they are of the inputs {listed(inputs)}" if inputs else f"explain with {emit}"
        raise OptionError(f"the results have no array {(chosen or 'INPUT') + suffix!r}: {held}")
    return inputs


def input_of(names: Collection[str], suffix: str, chosen: str | None) -> str:
    """The only input that `inputs_of` gives. Raises OptionError where there are several."""
    inputs = inputs_of(names, suffix, chosen)
    if len(inputs) > 1:
        raise OptionError(f"the results are of the inputs {listed(inputs)}: choose one with --input")
    return inputs[0]


def scores_of(results: Mapping[str, Rows], array: str) -> Rows:
    """An array of the results with a score for every element of the input, `[N, ...]`.

    Raises DataError: it does not have the samples along axis 0, has several targets of each, or is not of numbers.
    """
    if TARGET_OUTPUT not in results:
        raise DataError(f"the results have no array {TARGET_OUTPUT!r}: give what `onnxlift explain --out` wrote")
    count, rows = results[TARGET_OUTPUT].shape, results[array]
    if len(count) > 1:
        raise DataError(f"the results explain {count[1]} targets of each sample: explain the one to write by itself")
    if not count or rows.shape[:1] != count:
        raise DataError(
            f"{array!r} has shape {shown(rows.shape)} for {count[0] if count else 'no axis of'} samples: layouts need "
            "a model with the batch axis in front"
        )
    if rows.dtype.kind != "f" or 0 in rows.shape:
        raise DataError(
            f"{array!r} is {rows.dtype} {shown(rows.shape)}: layouts need floating-point numbers of samples"
        )
    return rows


def blocks(rows: Rows) -> Iterator[slice]:
    """All samples in their order, as many at once as are some MB."""
    samples, *dims = rows.shape
    step = max(1, BLOCK_BYTES // (math.prod(dims) * rows.dtype.itemsize))
    for start in range(0, samples, step):
        yield slice(start, min(start + step, samples))


def named_axis(shape: tuple[int, ...], axis: int) -> int:
    """The axis of the channels that was named, counted from the front. Raises OptionError where there is none such."""
    if axis not in range(-len(shape), len(shape)) or axis % len(shape) == 0:
        raise OptionError(f"axis {axis} cannot hold the channels of an array of shape {shown(shape)}")
    return axis % len(shape)


class Letters:
    """Scores of sequences, `[N, 4, L]` or with the channels elsewhere, read as `[n, 4, L]`.

    shape: (N, 4, L). With regions, rows are turned to the forward strand, because tools that look into a genome know no
    other: a region on the minus strand is read as its reverse complement.

    Raises:
        DataError: it is no sequence, or there is another number of regions. OptionError: the axis is not clear.
    """

    def __init__(self, scores: Rows, what: str, about: LayoutInput) -> None:
        dims = scores.shape
        if about.axis is not None:
            axes = [named_axis(dims, about.axis)]
        else:
            axes = [axis for axis, extent in enumerate(dims) if axis and extent == BASES]
        if len(axes) > 1:
            raise OptionError(
                f"{what} have shape {shown(dims)}, where several axes could be the letters: give --channels"
            )
        lengths = [extent for axis, extent in enumerate(dims) if axis not in (0, *axes) and extent != 1]
        if not axes or dims[axes[0]] != BASES or len(lengths) > 1:
            raise DataError(
                f"{what} have shape {shown(dims)}: this layout is for sequences of the letters A, C, G and T, "
                "[N, 4, L] or [N, L, 4]"
            )
        if about.regions and len(about.regions) != dims[0]:
            raise DataError(
                f"there are {len(about.regions)} regions, and {what} have shape {shown(dims)}: give the data that were "
                "explained"
            )
        self.scores, self.what, self._axis = scores, what, axes[0]
        self.shape = (dims[0], BASES, math.prod(lengths))
        self._backward = np.array([region.strand == "-" for region in about.regions], bool)

    def blocks(self) -> Iterator[slice]:
        return blocks(self.scores)

    def __getitem__(self, block: slice) -> Array:
        """The scores of some samples, `[n, 4, L]`. Raises DataError where they are not finite."""
        rows = self.arranged(self.scores[block], block)
        bad = ~np.isfinite(rows).all(axis=(1, 2))
        if bad.any():
            raise DataError(f"{self.what} are not finite at sample {block.start + int(bad.argmax())}: look at the data")
        return rows

    def arranged(self, rows: Array, block: slice) -> Array:
        """Rows of any array of these sequences as `[n, 4, L]`; axes of length 1 may be missing."""
        dims = (len(rows), *self.scores.shape[1:])
        arranged = np.moveaxis(np.reshape(rows, dims), self._axis, 1).reshape(-1, *self.shape[1:])
        backward = self._backward[block, None, None]
        return np.where(backward, arranged[:, ::-1, ::-1], arranged) if backward.any() else arranged


class Hypothetical:
    """Sequences and the hypothetical contributions of their letters, to iterate over block by block.

    Raises:
        DataError, OptionError: as `Letters`; one of the two is missing, or they do not fit together.
    """

    def __init__(self, results: Mapping[str, Rows], data: Stored | None, about: LayoutInput) -> None:
        name = input_of(results, HYPOTHETICAL, about.input)
        self._scores = Letters(scores_of(results, name + HYPOTHETICAL), f"{name + HYPOTHETICAL!r}", about)
        self._data = _fitting(data, name, self._scores.scores.shape)
        self._contributions = results.get(name + CONTRIBUTIONS)
        self.shape = self._scores.shape

    def __iter__(self) -> Iterator[tuple[slice, Array, Array]]:
        """Samples, their sequences and their scores, both `[n, 4, L]`.

        Raises DataError: the data are not one-hot, or are not what was explained.
        """
        for block in self._scores.blocks():
            scores = self._scores[block]
            letters = self._scores.arranged(self._data[block], block)
            known = letters.sum(axis=1, keepdims=True)
            bad = (((letters != 0) & (letters != 1)) | (known > 1)).any(axis=(1, 2))
            if bad.any():
                raise DataError(
                    f"sample {block.start + int(bad.argmax())} of the data is not one-hot: every position must have a "
                    "1 for its letter, or none where it is unknown"
                )
            if self._contributions is not None:
                placed = self._scores.arranged(self._contributions[block], block) != 0
                # They lie on one letter where hypothetical ones were asked for too, and that is the one explained.
                alone = placed.sum(axis=1, keepdims=True) == 1
                bad = (alone & placed & (letters == 0) & (known == 1)).any(axis=(1, 2))
                if bad.any():
                    raise DataError(
                        f"sample {block.start + int(bad.argmax())} of the data is another sequence than the one "
                        "explained: its contributions lie on other letters. Give the data that were explained"
                    )
            yield block, letters, scores


def _fitting(data: Stored | None, name: str, shape: tuple[int, ...]) -> Rows:
    """The array of an input.

    Raises DataError where it is missing, or is not of this shape, axes of length 1 aside; OptionError without data.
    """
    if data is None:
        raise OptionError("this layout holds the sequences too: give --data, what was explained")
    if isinstance(data, dict) and name not in data:
        raise DataError(f"the data have no array {name!r}, only {listed(data)}: give the data that were explained")
    rows = data[name] if isinstance(data, dict) else data
    samples, *dims = rows.shape or (1,)
    if (samples, *(n for n in dims if n != 1)) != (shape[0], *(n for n in shape[1:] if n != 1)):
        raise DataError(
            f"the data of {name!r} have shape {shown(rows.shape)}, and the results {shown(shape)}: give the data that "
            "were explained"
        )
    if rows.dtype.kind not in "fiub":
        raise DataError(f"the data of {name!r} are {rows.dtype}, not numbers: give the data that were explained")
    return rows
