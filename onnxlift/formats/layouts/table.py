"""Which layouts there are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from onnxlift.arrays import check_writable
from onnxlift.errors import OptionError
from onnxlift.explainer import CONTRIBUTIONS, HYPOTHETICAL
from onnxlift.formats.layouts.bigwig import write_bigwig
from onnxlift.formats.layouts.captum import write_captum
from onnxlift.formats.layouts.hypothetical import ONE_HOT, REGIONS, write_bpnet, write_chrombpnet, write_modisco
from onnxlift.formats.layouts.source import LayoutInput, inputs_of
from onnxlift.formats.layouts.writing import Written
from onnxlift.formats.rows import Rows, Stored, required


@dataclass(frozen=True)
class Layout:
    """What a tool reads.

    write: makes the file of results, data, its path and what else is told. suffixes: by which the tool knows the file.
    scores: how the arrays that it is made of end. library: what writes it, where NumPy does not. letters: it holds the
    data too. regions: it needs to know where in which genome the samples lie. beside: what a second file ends in.
    """

    write: Callable[[Mapping[str, Rows], Stored | None, Path, LayoutInput], Written]
    suffixes: tuple[str, ...]
    scores: str
    library: str = "numpy"
    letters: bool = False
    regions: bool = False
    beside: str = ""

    def files(self, out: Path) -> list[Path]:
        """What may be written for `out`."""
        return [out, out.with_suffix(self.beside)] if self.beside else [out]


LAYOUTS = {
    "modisco": Layout(write_modisco, (".npz",), HYPOTHETICAL, letters=True, beside=ONE_HOT),
    "chrombpnet": Layout(write_chrombpnet, (".h5", ".hdf5"), HYPOTHETICAL, "h5py", letters=True, beside=REGIONS),
    "bpnet": Layout(write_bpnet, (".h5", ".hdf5"), HYPOTHETICAL, "h5py", letters=True),
    "bigwig": Layout(write_bigwig, (".bw", ".bigwig"), CONTRIBUTIONS, "pyBigWig", regions=True),
    "captum": Layout(write_captum, (".npy", ".npz"), CONTRIBUTIONS),
}


def write_layout(
    name: str, results: Mapping[str, Rows], data: Stored | None, out: Path, *, about: LayoutInput
) -> Written:
    """Write results in a layout, some MB at a time; all of its files are complete, or none is there.

    Args:
        name: one of LAYOUTS.
        results: what `onnxlift explain` wrote, by the names of `Explanation.arrays()`.
        data: what was explained; None for layouts without `letters`.
        out: the file to write. Some layouts have a second one beside it.
        about: what else is told.

    Raises:
        OptionError: what `check_layout` raises, or the call does not fit the arrays. DataError: the arrays do not fit.
    """
    check_layout(name, out, results, about)
    return LAYOUTS[name].write(results, data, out, about)


def check_layout(name: str, out: Path, arrays: Collection[str], about: LayoutInput) -> None:
    """Check what can be checked before there are results: `arrays` names those that there will be.

    Raises OptionError: `out` cannot be written or has another suffix, a library is not installed, there will not be the
    scores, or no regions or genome are given.
    """
    layout = LAYOUTS[name]
    if out.suffix.lower() not in layout.suffixes:
        raise OptionError(f"{out} does not end in {' or '.join(layout.suffixes)}, as a file of layout {name} does")
    for path in layout.files(out):
        check_writable(path)
    required(layout.library, f"writing {out.suffix}")
    inputs_of(arrays, layout.scores, about.input)
    if layout.regions and not about.regions:
        raise OptionError(f"layout {name} tells where contributions lie: give the BED file of the samples as the data")
    if layout.regions and about.genome is None:
        raise OptionError(f"layout {name} needs the sizes of chromosomes: give --genome, a FASTA or chrom.sizes file")
