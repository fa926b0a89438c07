"""Layouts of sequences with the scores of all letters: what TF-MoDISco and the BPNet family of tools read."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from onnxlift.arrays import replacing
from onnxlift.errors import DataError
from onnxlift.formats.genome import Region, centred
from onnxlift.formats.layouts.source import Hypothetical, LayoutInput
from onnxlift.formats.layouts.writing import Written, member, replacing_hdf5
from onnxlift.formats.rows import Rows, Stored

ONE_HOT, REGIONS = ".onehot.npz", ".interpreted_regions.bed"
"""What the second file of a layout ends in, instead of the suffix of the first."""

_FLOAT16 = np.finfo(np.float16)


def write_modisco(results: Mapping[str, Rows], data: Stored | None, out: Path, about: LayoutInput) -> Written:
    """For `modisco motifs -s STEM.onehot.npz -a OUT`: two .npz with the array arr_0, float32 `[N, 4, L]`.

    `out` holds the hypothetical contributions, the file beside it the sequences.
    """
    source, beside = Hypothetical(results, data, about), out.with_suffix(ONE_HOT)
    shape, dtype = source.shape, np.dtype(np.float32)
    with contextlib.ExitStack() as stack:
        # The file that is opened last is complete first, so that there is no `out` without the one beside it.
        files = [stack.enter_context(replacing(path)) for path in (out, beside)]
        archives = [stack.enter_context(zipfile.ZipFile(file, "w")) for file in files]
        scores, letters = (stack.enter_context(member(archive, "arr_0", shape, dtype)) for archive in archives)
        for _, x, h in source:
            letters.write(x)
            scores.write(h)
    return Written((out, beside))


def write_chrombpnet(results: Mapping[str, Rows], data: Stored | None, out: Path, about: LayoutInput) -> Written:
    """The HDF5 file of `chrombpnet contribs_bw`, arrays `[N, 4, L]`, and with regions STEM.interpreted_regions.bed.

    raw/seq: the sequences, int8. shap/seq: hypothetical contributions, float16. projected_shap/seq: those of the
    letters that are there, float16. A note tells where float16 costs precision.

    Raises DataError where float16 cannot hold a contribution.
    """
    source, beside = Hypothetical(results, data, about), out.with_suffix(REGIONS)
    largest = 0.0
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(replacing_hdf5(out))
        raw = file.dataset("raw/seq", source.shape, np.int8)
        shap = file.dataset("shap/seq", source.shape, np.float16)
        projected = file.dataset("projected_shap/seq", source.shape, np.float16)
        for block, x, h in source:
            most = np.abs(h).max(axis=(1, 2))
            if most.max() > _FLOAT16.max:
                raise DataError(
                    f"sample {block.start + int(most.argmax())} has a hypothetical contribution of {most.max():.3g}, "
                    f"and float16, which chrombpnet's files hold, ends at {_FLOAT16.max}: layouts bpnet and modisco "
                    "hold float32"
                )
            largest = max(largest, float(most.max()))
            raw[block], shap[block], projected[block] = x, h, x * h
        if about.regions:
            bed = stack.enter_context(replacing(beside))
            bed.writelines(_peak(region, source.shape[2]).encode() for region in about.regions)
    coarse = 0 < largest < _FLOAT16.smallest_normal
    note = (
        f"no contribution is larger than {largest:.2g}, and float16 loses precision below "
        f"{_FLOAT16.smallest_normal:.2g}: layouts bpnet and modisco hold float32"
    )
    return Written((out, beside) if about.regions else (out,), (note,) if coarse else ())


def write_bpnet(results: Mapping[str, Rows], data: Stored | None, out: Path, about: LayoutInput) -> Written:
    """The HDF5 file of `bpnet-shap`: hyp_scores, float32, and input_seqs, int8, `[N, L, 4]`.

    With regions also coords_chrom, text, coords_start and coords_end, int32, `[N]`.
    """
    source = Hypothetical(results, data, about)
    samples, letters, length = source.shape
    with replacing_hdf5(out) as file:
        scores = file.dataset("hyp_scores", (samples, length, letters), np.float32)
        sequences = file.dataset("input_seqs", (samples, length, letters), np.int8)
        for block, x, h in source:
            sequences[block], scores[block] = x.transpose(0, 2, 1), h.transpose(0, 2, 1)
        if about.regions:
            file.texts("coords_chrom", [region.chrom for region in about.regions])
            spans = np.array([centred(region, length) for region in about.regions])
            for name, positions in zip(("coords_start", "coords_end"), spans.T, strict=True):
                file.dataset(name, (samples,), np.int32)[:] = positions
    return Written((out,))


def _peak(region: Region, length: int) -> str:
    """A line of a narrowPeak file whose summit is the middle of what was explained, as tools count it: length // 2."""
    summit = centred(region, length)[0] + length // 2 - region.start
    fields = (region.chrom, region.start, region.end, region.name or ".", 0, ".", 0, -1, -1, summit)
    return "\t".join(map(str, fields)) + "\n"
