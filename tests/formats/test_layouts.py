"""Layouts for other tools: what is in the files, that they are complete or not there, and what is refused."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pyBigWig
import pytest

import onnxlift
from onnxlift import DataError, OptionError
from onnxlift.cli_convert import convert_command
from onnxlift.formats.genome import Region, centred
from onnxlift.formats.layouts import LAYOUTS, LayoutInput, check_layout, source, write_layout, writing

Array = np.ndarray[Any, Any]
MODELS = Path(__file__).parents[2] / "models"
N, L = 5, 12
LETTERS = [name for name, layout in LAYOUTS.items() if layout.letters]
SUFFIXES = {name: layout.suffixes[0] for name, layout in LAYOUTS.items()}


def sequences(samples: int = N, length: int = L, seed: int = 0) -> Array:
    """One-hot `[N, 4, L]`; the last base of the first one is unknown."""
    x = np.eye(4, dtype=np.float32)[np.random.default_rng(seed).integers(0, 4, (samples, length))]
    x[0, -1] = 0
    return np.ascontiguousarray(x.swapaxes(1, 2))


def explained(x: Array, seed: int = 1) -> dict[str, Array]:
    """A result as `onnxlift explain` writes it; where the base is unknown, channels have their own contributions."""
    h = np.random.default_rng(seed).normal(size=x.shape).astype(np.float32)
    c = x * h + (1 - x.sum(axis=1, keepdims=True)) * h
    scalars = dict.fromkeys(("target_output", "target_reference", "completeness_gap"), np.zeros(len(x), np.float32))
    return {"y": np.zeros((len(x), 3), np.float32), "x_contributions": c, "x_hypothetical": h, **scalars}


def moved(results: Mapping[str, Array], arrange: Callable[[Array], Array]) -> dict[str, Array]:
    return {name: arrange(array) if name.startswith("x_") else array for name, array in results.items()}


def peaks(*regions: tuple[str, int, str]) -> list[Region]:
    """Regions of 4 bases whose middle is given, with a strand."""
    return [Region(chrom, middle - 2, middle + 2, None, strand, "", 1) for chrom, middle, strand in regions]


def hdf5(path: Path) -> dict[str, Array]:
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
    return found


def contents(path: Path) -> dict[str, Array]:
    """The arrays of a file of any layout but bigwig."""
    if path.suffix == ".npy":
        return {"": np.load(path)}
    return hdf5(path) if path.suffix == ".h5" else dict(np.load(path))


def same(found: Mapping[str, Array], wanted: Mapping[str, Array]) -> None:
    """The same names, dtypes and numbers."""
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


ARRANGED: dict[str, Callable[[Array], Array]] = {
    "[N, 4, L]": lambda a: a,
    "[N, L, 4]": lambda a: a.swapaxes(1, 2),
    "[N, 1, 4, L]": lambda a: a[:, None],
    "[N, 4, 1, L]": lambda a: a[:, :, None],
    "[N, L, 4, 1]": lambda a: a.swapaxes(1, 2)[..., None],
}


@pytest.mark.parametrize("arrange", ARRANGED.values(), ids=ARRANGED)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64], ids=lambda dtype: dtype.__name__)
def test_the_letters_and_their_scores(tmp_path: Path, arrange: Callable[[Array], Array], dtype: type) -> None:
    """Whatever the model's axes and dtype, every tool gets its own; axes of length 1 may be missing in the data."""
    x = sequences()
    results = moved(explained(x), lambda a: arrange(a).astype(dtype))
    h = explained(x)["x_hypothetical"].astype(dtype).astype(np.float32)
    stored = {"x": np.squeeze(arrange(x)), "other": x}
    for name in LETTERS:
        write_layout(name, results, stored, tmp_path / f"{name}{SUFFIXES[name]}", about=LayoutInput())
    same(contents(tmp_path / "modisco.npz"), {"arr_0": h})
    same(contents(tmp_path / "modisco.onehot.npz"), {"arr_0": x})
    f16 = h.astype(np.float16)
    same(
        contents(tmp_path / "chrombpnet.h5"),
        {"raw/seq": x.astype(np.int8), "shap/seq": f16, "projected_shap/seq": x.astype(np.float16) * f16},
    )
    last = {"hyp_scores": h.swapaxes(1, 2), "input_seqs": x.astype(np.int8).swapaxes(1, 2)}
    same(contents(tmp_path / "bpnet.h5"), last)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["modisco.npz", "modisco.onehot.npz", "chrombpnet.h5", "bpnet.h5"]
    )


CONTRIBUTIONS: dict[str, Callable[[Array, Array], Array]] = {
    "of every letter": lambda x, h: h,
    "one of an unknown base": lambda x, h: (x + (1 - x.sum(axis=1, keepdims=True)) * [[0], [0], [1], [0]]) * h,
    "none": lambda x, h: 0 * h,
}


@pytest.mark.parametrize("contributions", CONTRIBUTIONS.values(), ids=CONTRIBUTIONS)
def test_contributions_tell_other_data_only_where_they_lie_on_one_letter(
    tmp_path: Path, contributions: Callable[[Array, Array], Array]
) -> None:
    """Rules without contributions, such as the gradient, give each letter its own."""
    x = sequences()
    results = explained(x)
    results["x_contributions"] = contributions(x, results["x_hypothetical"])
    write_layout("modisco", results, x, tmp_path / "h.npz", about=LayoutInput())
    same(contents(tmp_path / "h.npz"), {"arr_0": results["x_hypothetical"]})


@pytest.mark.parametrize("channels", ["first", "last"])
def test_the_axis_of_the_letters_can_be_named(tmp_path: Path, channels: str) -> None:
    x = sequences(length=4)
    x[0, :, -1] = [1, 0, 0, 0]
    arrange = ARRANGED["[N, 4, L]" if channels == "first" else "[N, L, 4]"]
    results = moved(explained(x), arrange)
    with pytest.raises(OptionError, match="several axes could be the letters: give --channels"):
        write_layout("modisco", results, arrange(x), tmp_path / "h.npz", about=LayoutInput())
    about = LayoutInput(axis=1 if channels == "first" else -1)
    write_layout("modisco", results, arrange(x), tmp_path / "h.npz", about=about)
    same(contents(tmp_path / "h.npz"), {"arr_0": explained(x)["x_hypothetical"]})


def test_regions_lie_on_the_forward_strand(tmp_path: Path) -> None:
    """What was read as its reverse complement is turned back; coordinates and summits say where the rows lie."""
    x = sequences()
    results, back = explained(x), [1, 3]
    x[back] = x[back, ::-1, ::-1]
    results = moved(results, lambda a: np.array([row[::-1, ::-1] if i in back else row for i, row in enumerate(a)]))
    regions = [
        Region("chr2", 100, 130, 9, "+", "peak", 1),
        Region("chr1", 100, 130, 9, "-", "", 2),
        Region("chr1", 7, 8, None, ".", "", 3),
        Region("chr10", 50, 81, None, "-", "", 4),
        Region("chr2", 400, 500, 0, ".", "", 5),
    ]
    about = LayoutInput(regions=regions)
    for name in LETTERS:
        write_layout(name, results, x, tmp_path / f"{name}{SUFFIXES[name]}", about=about)
    forward = sequences()
    np.testing.assert_array_equal(contents(tmp_path / "modisco.onehot.npz")["arr_0"], forward)
    np.testing.assert_array_equal(contents(tmp_path / "modisco.npz")["arr_0"], explained(forward)["x_hypothetical"])
    np.testing.assert_array_equal(contents(tmp_path / "chrombpnet.h5")["raw/seq"], forward)
    found = contents(tmp_path / "bpnet.h5")
    np.testing.assert_array_equal(found["input_seqs"].swapaxes(1, 2), forward)
    starts, ends = zip(*(centred(region, L) for region in regions), strict=True)
    assert [name.decode() for name in found["coords_chrom"]] == ["chr2", "chr1", "chr1", "chr10", "chr2"]
    assert (found["coords_start"].tolist(), found["coords_end"].tolist()) == (list(starts), list(ends))
    assert found["coords_start"].dtype == found["coords_end"].dtype == np.int32
    lines = [line.split("\t") for line in (tmp_path / "chrombpnet.interpreted_regions.bed").read_text().splitlines()]
    assert [int(line[1]) + int(line[9]) - L // 2 for line in lines] == list(starts)
    assert lines[0] == ["chr2", "100", "130", "peak", "0", ".", "0", "-1", "-1", "9"]
    assert lines[2][:3] == ["chr1", "7", "8"]


@pytest.mark.parametrize(("largest", "fits"), [(65504.0, True), (65530.0, False), (1e6, False)])
def test_float16_that_would_overflow_is_refused(tmp_path: Path, largest: float, fits: bool) -> None:
    x = sequences()
    results = explained(x)
    results["x_hypothetical"][3, 0, 0] = -largest
    out = tmp_path / "scores.h5"
    if fits:
        write_layout("chrombpnet", results, x, out, about=LayoutInput())
        assert contents(out)["shap/seq"][3, 0, 0] == -largest
    else:
        with pytest.raises(DataError, match=r"sample 3 has a hypothetical contribution of .* float16"):
            write_layout("chrombpnet", results, x, out, about=LayoutInput(regions=peaks(*[("chr1", 99, ".")] * N)))
        assert list(tmp_path.iterdir()) == []


def test_float16_that_loses_precision_is_told(tmp_path: Path) -> None:
    x = sequences()
    for scale, told in ((1.0, 0), (1e-6, 1)):
        results = moved(explained(x), lambda a, scale=scale: a * np.float32(scale))  # type: ignore[misc]
        written = write_layout("chrombpnet", results, x, tmp_path / "scores.h5", about=LayoutInput())
        assert len(written.notes) == told
        assert all("float16 loses precision" in note for note in written.notes)


# ------------------------------------------------------------------------------------------------ bigWig

SIZES = {"chr1": 300, "chr10": 120, "chr2": 200}


@pytest.fixture
def genome(tmp_path: Path) -> Path:
    path = tmp_path / "genome.sizes"
    path.write_text("".join(f"{name}\t{size}\n" for name, size in reversed(SIZES.items())))
    return path


def track(path: Path, sizes: Mapping[str, int] = SIZES) -> dict[str, Array]:
    """What a bigWig says of every base; NaN where it says nothing."""
    with pyBigWig.open(str(path)) as file:
        assert list(file.chroms().items()) == sorted(sizes.items())
        return {name: file.values(name, 0, size, numpy=True) for name, size in sizes.items()}


def naive_track(results: Mapping[str, Array], regions: list[Region]) -> dict[str, Array]:
    """Base by base: the mean of what the regions that cover it say."""
    said: dict[tuple[str, int], list[float]] = {}
    for region, c in zip(regions, results["x_contributions"], strict=True):
        start, end = centred(region, c.shape[1])
        values = c.sum(axis=0, dtype=np.float64).astype(np.float32)
        for position, value in zip(range(start, end), values[::-1] if region.strand == "-" else values, strict=True):
            said.setdefault((region.chrom, position), []).append(float(value))
    wanted = {name: np.full(size, np.nan, np.float32) for name, size in SIZES.items()}
    for (name, position), values_there in said.items():
        wanted[name][position] = np.mean(values_there)
    return wanted


TRACKS = {
    "apart": [("chr2", 99, "."), ("chr1", 200, "+"), ("chr1", 40, "-"), ("chr10", 60, "."), ("chr1", 294, ".")],
    "side by side": [("chr1", 6, "."), ("chr1", 18, "."), ("chr1", 30, "-"), ("chr2", 6, "."), ("chr2", 194, ".")],
    "overlapping": [("chr1", 50, "."), ("chr1", 51, "."), ("chr1", 45, "-"), ("chr1", 56, "."), ("chr1", 61, ".")],
    "the same": [("chr1", 50, ".")] * 3 + [("chr1", 53, "-"), ("chr2", 50, ".")],
}  # fmt: skip


@pytest.mark.parametrize("places", TRACKS.values(), ids=TRACKS)
def test_bigwig_says_the_contribution_of_every_base(
    tmp_path: Path, genome: Path, places: list[tuple[str, int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "BLOCK_BYTES", 2 * 4 * 4 * L)  # two samples at once
    results, regions = explained(sequences()), peaks(*places)
    about = LayoutInput(regions=regions, genome=genome)
    write_layout("bigwig", results, None, tmp_path / "track.bw", about=about)
    same(track(tmp_path / "track.bw"), naive_track(results, regions))


def test_bigwig_of_long_runs(tmp_path: Path) -> None:
    """Runs are handed over in parts; float32 comes back bit for bit."""
    length, samples = 1000, 200
    rng = np.random.default_rng(0)
    c = np.zeros((samples, 4, length), np.float32)
    c[:, 2] = rng.normal(size=(samples, length)) * np.float32(10.0) ** rng.integers(-30, 30, (samples, length))
    scalars = np.zeros(samples, np.float32)
    results = {"x_contributions": c, "target_output": scalars}
    regions = [Region("chr1", index * length, (index + 1) * length, None, ".", "", 1) for index in range(samples)]
    sizes = {"chr1": samples * length}
    (tmp_path / "sizes").write_text(f"chr1\t{samples * length}")
    write_layout(
        "bigwig", results, None, tmp_path / "track.bw", about=LayoutInput(regions=regions, genome=tmp_path / "sizes")
    )
    assert track(tmp_path / "track.bw", sizes)["chr1"].tobytes() == c[:, 2].tobytes()


GENOMES = {
    "sizes": "chr1\t300\nchr10\t120\nchr2\t200\n",
    "index of FASTA": "chr1\t300\t6\t60\t61\nchr10\t120\t320\t60\t61\nchr2\t200\t450\t60\t61\n",
    "FASTA": "".join(f">{name} of a test\n{'ACGT' * (size // 4)}\n" for name, size in SIZES.items()),
}


@pytest.mark.parametrize("text", GENOMES.values(), ids=GENOMES)
def test_sizes_of_chromosomes(tmp_path: Path, text: str) -> None:
    (tmp_path / "genome").write_text(text)
    about = LayoutInput(regions=peaks(*TRACKS["side by side"]), genome=tmp_path / "genome")
    write_layout("bigwig", explained(sequences()), None, tmp_path / "track.bw", about=about)
    assert np.isfinite(track(tmp_path / "track.bw")["chr2"]).sum() == 2 * L


# ------------------------------------------------------------------------------------------------ captum

IMAGES: dict[str, tuple[tuple[int, ...], int | None, Callable[[Array], Array]]] = {
    "[N, C, H, W]": ((N, 3, 8, 6), None, lambda a: a.transpose(0, 2, 3, 1)),
    "[N, 1, H, W]": ((N, 1, 8, 6), None, lambda a: a.transpose(0, 2, 3, 1)),
    "[N, H, W, C]": ((N, 8, 6, 3), None, lambda a: a),
    "named": ((N, 3, 8, 4), 1, lambda a: a.transpose(0, 2, 3, 1)),
    "many channels": ((N, 8, 6, 12), -1, lambda a: a),
    "a table": ((N, 7), None, lambda a: a),
    "a sequence": ((N, 4, 9), None, lambda a: a),
    "a video": ((N, 3, 2, 8, 6), None, lambda a: a),
}


@pytest.mark.parametrize(("shape", "axis", "arrange"), IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_captum_has_the_channels_last(
    tmp_path: Path, shape: tuple[int, ...], axis: int | None, arrange: Callable[[Array], Array], suffix: str
) -> None:
    c = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    c[0, 0] = np.nan  # is for the reader to see
    results = {"x_contributions": c, "target_output": np.zeros(N, np.float32)}
    out = tmp_path / f"attributions{suffix}"
    write_layout("captum", results, None, out, about=LayoutInput(axis=axis))
    same(contents(out), {"" if suffix == ".npy" else "x": np.ascontiguousarray(arrange(c))})


def test_captum_of_several_inputs(tmp_path: Path) -> None:
    x = sequences()
    c = explained(x)["x_contributions"]
    results = {"a/b_contributions": c, "b_contributions": c[:, 0], "target_output": np.zeros(N, np.float32)}
    write_layout("captum", results, None, tmp_path / "all.npz", about=LayoutInput())
    same(contents(tmp_path / "all.npz"), {"a/b": c, "b": c[:, 0]})
    write_layout("captum", results, None, tmp_path / "one.npy", about=LayoutInput(input="b"))
    same(contents(tmp_path / "one.npy"), {"": c[:, 0]})


# ------------------------------------------------------------------------------------------------ piece by piece


@dataclass
class Watched:
    """Rows in a file: `most` is how many were asked for at once, and reading those from `broken` on fails."""

    array: Array
    broken: int = 1 << 30
    most: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def __getitem__(self, rows: slice, /) -> Array:
        start, stop, _ = rows.indices(len(self.array))
        self.most = max(self.most, stop - start)
        if stop > self.broken:
            raise DataError("the data are damaged")
        return self.array[rows]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_block_is_in_memory_at_a_time(
    tmp_path: Path, genome: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are the same, to the byte, in however many blocks they were written."""
    x = sequences()
    about = LayoutInput(regions=peaks(*TRACKS["overlapping"]), genome=genome)
    whole = write_layout(name, explained(x), x, tmp_path / f"whole{SUFFIXES[name]}", about=about)
    monkeypatch.setattr(source, "BLOCK_BYTES", 2 * 4 * 4 * L)
    results = {key: Watched(array) for key, array in explained(x).items()}
    data = Watched(x)
    parts = write_layout(name, results, data, tmp_path / f"parts{SUFFIXES[name]}", about=about)
    assert max(data.most, *(rows.most for rows in results.values())) == 2
    assert [path.read_bytes() for path in parts.files] == [path.read_bytes() for path in whole.files]


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("before", [None, b"old"])
def test_a_file_is_complete_or_not_there(
    tmp_path: Path, genome: Path, name: str, before: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "BLOCK_BYTES", 2 * 4 * 4 * L)
    x, folder = sequences(), tmp_path / "out"
    folder.mkdir()
    out = folder / f"scores{SUFFIXES[name]}"
    if before is not None:
        out.write_bytes(before)
    results = {key: Watched(array, broken=4) for key, array in explained(x).items()}
    with pytest.raises(DataError, match="the data are damaged"):
        write_layout(name, results, x, out, about=LayoutInput(regions=peaks(*TRACKS["apart"]), genome=genome))
    assert [path.name for path in folder.iterdir()] == ([] if before is None else [out.name])
    assert before is None or out.read_bytes() == before


FULL_DISK = """
import resource, sys
from onnxlift.cli import main
size = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
main(["convert", *sys.argv[1:]])
"""


@pytest.mark.parametrize(
    ("name", "size"), [("modisco", 20000), ("captum", 20000), *itertools.product(["chrombpnet", "bpnet"], [500, 20000])]
)
def test_a_full_disk_is_told(tmp_path: Path, name: str, size: int) -> None:
    """Also by libraries that would crash, and at the end of the process."""
    x = sequences(1000)
    np.savez(tmp_path / "out.npz", **explained(x))
    np.save(tmp_path / "x.npy", x)
    call = [str(size), "out.npz", f"scores{SUFFIXES[name]}", "--layout", name, "--data", "x.npy"]
    run = subprocess.run([sys.executable, "-c", FULL_DISK, *call], cwd=tmp_path, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, ""), run.stderr
    assert re.fullmatch(r"error: Cannot write \S+: File too large. Choose a writable path.\n", run.stderr)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.npz", "x.npy"]


@pytest.mark.parametrize("name", ["chrombpnet", "bpnet"])
def test_nothing_more_is_read_for_a_full_disk(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: writing._Silent, data: bytes) -> int:
        file.error = OSError(28, "No space left on device")
        return len(data)

    monkeypatch.setattr(source, "BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(writing, "_CHUNK_BYTES", 1 << 16)
    monkeypatch.setattr(writing._Silent, "write", full)
    x = sequences(4000)
    results = {key: Watched(array, broken=len(x) - 1) for key, array in explained(x).items()}
    with pytest.raises(OptionError, match="No space left on device"):
        write_layout(name, results, x, tmp_path / "scores.h5", about=LayoutInput())
    assert list(tmp_path.iterdir()) == []


def test_a_bigwig_has_room(tmp_path: Path, genome: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = LayoutInput(regions=peaks(*TRACKS["apart"]), genome=genome)
    results, out = explained(sequences()), tmp_path / "track.bw"
    write_layout("bigwig", results, None, out, about=about)
    room = out.stat().st_size
    out.unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=room))
    with pytest.raises(OptionError, match="may take 1 MB, which its disk has not left"):
        write_layout("bigwig", results, None, out, about=about)
    assert list(tmp_path.iterdir()) == [genome]


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files to convert: results and data of two inputs, regions, a genome."""
    monkeypatch.chdir(tmp_path)
    x = sequences()
    results = explained(x)
    np.savez("out.npz", **results)
    np.savez("data.npz", x=x)
    np.save("x.npy", x)
    np.save("shorter.npy", x[:4])
    np.save("narrower.npy", x[..., :-1])
    np.save("shuffled.npy", x[::-1])
    np.save("soft.npy", np.full_like(x, 0.25))
    np.savez("h.onehot.npz", x=x)
    np.save("twice.npy", np.where(np.arange(L) == 5, 1, x))
    np.savez("both.npz", x_contributions=np.ones((N, 3, 8, 4)), target_output=np.zeros(N))
    np.savez("neither.npz", x_contributions=np.ones((N, 8, 8, 12)), target_output=np.zeros(N))
    np.savez("text.npz", x=np.full(x.shape, "A"))
    np.savez("other.npz", z=x)
    np.savez("projected.npz", **{name: a for name, a in results.items() if name != "x_hypothetical"})
    np.savez("nothing.npz", y=results["y"], target_output=results["target_output"])
    np.savez("foreign.npz", x_hypothetical=x, x_contributions=x)
    np.savez("two.npz", **results, z_contributions=x, z_hypothetical=x)
    np.savez("targets.npz", **moved(results, lambda a: np.stack([a, a], 1)) | {"target_output": np.zeros((N, 2))})
    np.savez("unbatched.npz", **results | {"target_output": np.float32(0)})
    np.savez("integers.npz", **moved(results, lambda a: a.astype(np.int64)))
    np.savez("empty.npz", **{name: a[:0] for name, a in results.items()})
    np.savez("amino.npz", **moved(results, lambda a: np.repeat(a, 5, axis=1)))
    np.savez("image.npz", **moved(results, lambda a: np.stack([a, a], 3)))
    np.savez("nan.npz", **moved(results, lambda a: np.where(np.arange(N)[:, None, None] == 2, np.nan, a)))
    places = TRACKS["apart"]
    Path("peaks.bed").write_text("".join(f"{name}\t{middle - 2}\t{middle + 2}\n" for name, middle, _ in places))
    Path("four.bed").write_text("chr1\t100\t104\n" * 4)
    Path("unknown.bed").write_text("chr1\t100\t104\n" * 4 + "chrX\t100\t104\n")
    Path("beyond.bed").write_text("chr1\t100\t104\n" * 4 + "chr2\t196\t199\n")
    Path("genome.sizes").write_text("".join(f"{name}\t{size}\n" for name, size in SIZES.items()))
    Path("words.sizes").write_text("chr1\t300\nchr2 two\n")
    Path("twice.sizes").write_text("chr1\t300\nchr1\t300\n")
    Path("huge.sizes").write_text("chr1\t99999999999\n")
    return tmp_path


def convert(line: str) -> None:
    convert_command.main(args=line.split(), standalone_mode=False)


REFUSED = {
    # call: what is said
    "out.npz h.npz --layout modisco": "holds the sequences too: give --data",
    "out.npz h.h5 --layout modisco --data x.npy": "h.h5 does not end in .npz, as a file of layout modisco does",
    "out.npz h.npz --layout bpnet --data x.npy": "h.npz does not end in .h5 or .hdf5",
    "out.npz h.txt --layout captum": "h.txt does not end in .npy or .npz",
    "out.npz no/h.npz --layout modisco --data x.npy": "there is no folder no",
    "out.npz out.npz --layout modisco --data x.npy": "out.npz would overwrite what is read",
    "out.npz h.npz --layout modisco --data h.onehot.npz": "h.onehot.npz would overwrite what is read",
    "data.npz data.npz --layout captum": "data.npz would overwrite what is read",
    "out.npz x.npy --layout captum --data x.npy": "x.npy would overwrite what is read",
    "absent.npz h.npz --layout modisco --data x.npy": "Cannot read the data absent.npz",
    "x.npy h.npz --layout modisco --data x.npy": "x.npy is a single array",
    "out.npz h.npz --layout modisco --data absent.npy": "Cannot read the data absent.npy",
    "projected.npz h.npz --layout modisco --data x.npy": "explain with --emit contributions --emit hypothetical",
    "projected.npz h.h5 --layout chrombpnet --data x.npy": "no array 'INPUT_hypothetical': explain with --emit",
    "nothing.npz a.npy --layout captum": "no array 'INPUT_contributions': explain with --emit",
    "out.npz h.npz --layout modisco --data x.npy --input z": "no array 'z_hypothetical': they are of the inputs 'x'",
    "two.npz h.npz --layout modisco --data x.npy": "the inputs 'x', 'z': choose one with --input",
    "two.npz a.npy --layout captum": "the inputs 'x', 'z': choose one with --input",
    "foreign.npz h.npz --layout modisco --data x.npy": "have no array 'target_output'",
    "targets.npz h.npz --layout modisco --data x.npy": "explain 2 targets of each sample",
    "targets.npz a.npz --layout captum": "explain 2 targets of each sample",
    "unbatched.npz a.npz --layout captum": "need a model with the batch axis in front",
    "integers.npz h.npz --layout modisco --data x.npy": "layouts need floating-point numbers of samples",
    "empty.npz a.npz --layout captum": "layouts need floating-point numbers of samples",
    "amino.npz h.npz --layout modisco --data x.npy": "[5, 20, 12]: this layout is for sequences of the letters",
    "image.npz h.npz --layout modisco --data x.npy": "[5, 4, 12, 2]: this layout is for sequences of the letters",
    "out.npz h.npz --layout modisco --data x.npy --channels last": "[5, 4, 12]: this layout is for sequences",
    "image.npz a.npz --layout captum --input y": "no array 'y_contributions': they are of the inputs 'x'",
    "nan.npz h.npz --layout modisco --data x.npy": "'x_hypothetical' are not finite at sample 2",
    "nan.npz t.bw --layout bigwig --data peaks.bed --genome genome.sizes": "_contributions' are not finite at sample 2",
    "out.npz h.npz --layout modisco --data other.npz": "the data have no array 'x', only 'z'",
    "out.npz h.npz --layout modisco --data shorter.npy": "shape [4, 4, 12], and the results [5, 4, 12]",
    "out.npz h.npz --layout modisco --data narrower.npy": "shape [5, 4, 11], and the results [5, 4, 12]",
    "out.npz h.npz --layout modisco --data text.npz": "not numbers",
    "out.npz h.npz --layout modisco --data soft.npy": "sample 0 of the data is not one-hot",
    "out.npz h.npz --layout modisco --data twice.npy": "sample 0 of the data is not one-hot",
    "both.npz a.npy --layout captum": "cannot be told from its shape [5, 3, 8, 4]: give --channels",
    "neither.npz a.npy --layout captum": "cannot be told from its shape [5, 8, 8, 12]: give --channels",
    "out.npz h.npz --layout modisco --data shuffled.npy": "sample 0 of the data is another sequence",
    "out.npz t.bw --layout bigwig": "give the BED file of the samples as the data",
    "out.npz t.bw --layout bigwig --data x.npy": "give the BED file of the samples as the data",
    "out.npz t.bw --layout bigwig --data peaks.bed": "give --genome, a FASTA or chrom.sizes file",
    "out.npz t.bw --layout bigwig --data four.bed --genome genome.sizes": "there are 4 regions",
    "out.npz t.bw --layout bigwig --data unknown.bed --genome genome.sizes": "line 5 of the regions, chrX:96-108",
    "out.npz t.bw --layout bigwig --data beyond.bed --genome genome.sizes": "has 200 bases of that chromosome",
    "out.npz t.bw --layout bigwig --data peaks.bed --genome absent.fa": "Cannot read absent.fa",
    "out.npz t.bw --layout bigwig --data peaks.bed --genome words.sizes": "line 2 of words.sizes is not the name",
    "out.npz t.bw --layout bigwig --data peaks.bed --genome twice.sizes": "line 2 of twice.sizes is not the name",
    "out.npz t.bw --layout bigwig --data peaks.bed --genome huge.sizes": "line 1 of huge.sizes is not the name",
    "out.npz t.bw --layout bigwig --data peaks.bed --genome x.npy": "line 1 of x.npy is not the name",
    "out.npz h.npz --layout modisco --data peaks.bed": "peaks.bed has regions: name the FASTA file",
}  # fmt: skip


@pytest.mark.parametrize("line", REFUSED)
def test_what_does_not_fit_is_refused(folder: Path, line: str) -> None:
    before = sorted(folder.iterdir())
    with pytest.raises((OptionError, DataError)) as refused:
        convert(line)
    assert REFUSED[line] in str(refused.value)
    assert sorted(folder.iterdir()) == before


EARLY = {
    "suffix": ("scores.txt", "does not end in .h5 or .hdf5"),
    "folder": ("no/scores.h5", "there is no folder"),
    "scores": ("scores.h5", "explain with --emit contributions --emit hypothetical"),
}


@pytest.mark.parametrize(("out", "said"), EARLY.values(), ids=EARLY)
def test_what_cannot_work_is_known_before_there_are_results(tmp_path: Path, out: str, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        check_layout("chrombpnet", tmp_path / out, ["x_contributions"], LayoutInput())
    check_layout("chrombpnet", tmp_path / "scores.h5", ["x_contributions", "x_hypothetical"], LayoutInput())


def test_a_missing_library_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyBigWig", None)
    about = LayoutInput(regions=peaks(*TRACKS["apart"]), genome=Path("genome.sizes"))
    with pytest.raises(OptionError, match=r"writing .bw needs pyBigWig: pip install 'onnxlift\[formats\]'"):
        check_layout("bigwig", Path("t.bw"), ["x_contributions"], about)


def test_from_a_genome_to_a_track(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Regions are read from a genome and explained by a network with [N, L, 4]; every file lies where they do."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    genome = {name: "".join(rng.choice(list("ACGT"), size=size)) for name, size in SIZES.items()}
    Path("genome.fa").write_text("".join(f">{name}\n{letters}\n" for name, letters in genome.items()))
    lines = [("chr2", 100, 120, "+"), ("chr1", 100, 121, "-"), ("chr1", 110, 131, "."), ("chr10", 50, 80, "-")]
    Path("peaks.bed").write_text("".join(f"{c}\t{s}\t{e}\tname\t0\t{strand}\n" for c, s, e, strand in lines))
    explainer = onnxlift.Explainer(
        MODELS / "mmsplice_acceptor.onnx",
        reference="frequencies:0.25,0.25,0.25,0.25",
        emit=("contributions", "hypothetical"),
    )
    starts = [(start + end) // 2 - 53 // 2 for _, start, end, _ in lines]
    letters = [genome[line[0]][start : start + 53] for line, start in zip(lines, starts, strict=True)]
    forward = np.array([[[base == letter for letter in "ACGT"] for base in row] for row in letters], np.float32)
    minus = np.array([strand == "-" for *_, strand in lines])[:, None, None]
    explanation = explainer(np.where(minus, forward[:, ::-1, ::-1], forward))
    explanation.save("out.npz")
    convert("out.npz scores.h5 --layout chrombpnet --data peaks.bed --genome genome.fa")
    assert "scores.interpreted_regions.bed" in capsys.readouterr().out
    np.testing.assert_array_equal(contents(Path("scores.h5"))["raw/seq"], forward.swapaxes(1, 2))
    convert("out.npz track.bw --layout bigwig --data peaks.bed --genome genome.fa --json")
    assert '"layout": "bigwig"' in capsys.readouterr().out
    c = explanation.contributions["seq"].sum(axis=2)
    found = track(Path("track.bw"))
    np.testing.assert_array_equal(found["chr2"][starts[0] : starts[0] + 53], c[0])
    np.testing.assert_array_equal(found["chr10"][starts[3] : starts[3] + 53], c[3][::-1])
    np.testing.assert_array_equal(found["chr1"][starts[1] : starts[2]], c[1][::-1][: starts[2] - starts[1]])
