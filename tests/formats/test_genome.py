"""FASTA, BED and narrowPeak as one-hot rows, beside a decoder that reads them letter by letter."""

from __future__ import annotations

import base64
import gzip
import os
import pickle
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

from onnxlift import DataError, Explainer, OnnxliftError, OptionError
from onnxlift.arrays import Array
from onnxlift.feed import Port
from onnxlift.formats import Form, open_data
from onnxlift.formats import fasta as fasta_module
from onnxlift.formats.genome import Region, SequenceRows, centred, open_sequences, read_regions

# What bgzip of htslib writes for the text of GENUINE.
BGZIP = (
    "H4sIBAAAAAAA/wYAQkMCADwAs0tUyM9L5XJ0dg/xS0xOL8kDskKDuOySuEJAwB0EnEGACwCIgZgoKgAAAB+LCAQAAAAAAP8GAEJDAgAbAAMAAAAAAAAA"
    "AAA="
)
GENUINE = b">a one\nACGTNacgtnACGUR\n>b\nTTTTTGGGGGCCCCC\n"

CHROMOSOMES = {"chr1": "ACGTTGCAACNNRYacgtuACGGT", "chr2": "TTTTTGGGGGCCCCCAAAAA", "empty": ""}
GENOME = "".join(f">{name} of a test\n{text[:9]}\n{text[9:18]}\n{text[18:]}\n" for name, text in CHROMOSOMES.items())


def port(*shape: int | str, kind: str = "float") -> Port:
    """An input of N samples of a shape."""
    return Port("seq", f"tensor({kind})", ("N", *shape), "data", "seq", True)


def read(path: Path, port: Port, axis: int | None = None, genome: Path | None = None) -> SequenceRows:
    with open_sequences(path, port, axis, Form(genome)) as rows:
        assert list(rows) == ["seq"]
        found = rows["seq"]
        assert isinstance(found, SequenceRows)
        return found


def naive(sequences: list[str]) -> Array:
    """`[N, 4, L]`, letter by letter."""
    array = np.zeros((len(sequences), 4, len(sequences[0])))
    for row, sequence in enumerate(sequences):
        for place, letter in enumerate(sequence.upper().replace("U", "T")):
            if letter in "ACGT":
                array[row, "ACGT".index(letter), place] = 1
    return array


def naive_records(text: str) -> tuple[list[str], list[str]]:
    """Names and sequences of FASTA, line by line."""
    names: list[str] = []
    sequences: list[str] = []
    for line in text.split("\n"):
        if line.startswith(">"):
            names.append("".join(line[1:].split()[:1]))
            sequences.append("")
        elif line.strip():
            sequences[-1] += "".join(line.split())
    return names, sequences


def reverse_complement(sequence: str) -> str:
    return "".join(
        {"A": "T", "C": "G", "G": "C", "T": "A", "U": "A"}.get(letter, "N") for letter in reversed(sequence.upper())
    )


def packed(text: bytes, block: int = 65280) -> bytes:
    """As bgzip writes it: a gzip member for each block, which knows its own size, and an empty one at the end."""
    members = []
    for piece in [*(text[start : start + block] for start in range(0, len(text), block)), b""]:
        deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
        body = deflate.compress(piece) + deflate.flush()
        size = (len(body) + 25).to_bytes(2, "little")
        check = zlib.crc32(piece).to_bytes(4, "little") + len(piece).to_bytes(4, "little")
        members.append(b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x06\0BC\x02\0" + size + body + check)
    return b"".join(members)


def some_fasta(rng: np.random.Generator, records: int, length: int) -> str:
    """Records of one length in lines of any length, with everything that FASTA may have."""
    text = ""
    for record in range(records):
        end = "\r\n" if rng.random() < 0.3 else "\n"
        text += f">{' ' * (rng.random() < 0.2)}s{record % 5} with > in it{end}"
        letters = "".join(rng.choice(list("ACGTacgtUuNnRYKM"), length))
        while letters:
            cut = int(rng.integers(1, length + 1))
            text += letters[:cut] + end + end * int(rng.random() < 0.1)
            letters = letters[cut:]
    return text if rng.random() < 0.5 else text.rstrip()


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64, 1 << 14])
def test_fasta_in_any_lines_and_blocks_is_what_is_read_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    rng = np.random.default_rng(block)
    monkeypatch.setattr(fasta_module, "_BLOCK", block)
    for _ in range(10):
        records, length = int(rng.integers(1, 9)), int(rng.integers(2, 30))
        text = some_fasta(rng, records, length)
        names, sequences = naive_records(text)
        for name, content in (("x.fa", text.encode()), ("x.fa.gz", packed(text.encode(), max(block, 2)))):
            (tmp_path / name).write_bytes(content)
            rows = read(tmp_path / name, port(4, length), 1)
            assert rows.shape == (records, 4, length)
            assert rows.labels(0, records) == names
            for start in range(records):
                for stop in range(start, records + 1):
                    np.testing.assert_array_equal(rows[start:stop], naive(sequences)[start:stop])


@pytest.mark.parametrize("kind", ["float", "float16", "double", "uint8", "int64", "bool"])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((4, 15), None),
        ((15, 4), None),
        ((1, 4, 15), None),
        ((4, 15, 1), None),
        ((15, 1, 4), None),
        (("c", 15), 1),
        ((15, "c"), -1),
        ((4, "L"), None),
        (("L", 4), None),
    ],
)
def test_rows_have_the_shape_and_the_dtype_of_the_input(
    tmp_path: Path, shape: tuple[int | str, ...], axis: int | None, kind: str
) -> None:
    (tmp_path / "x.fa.gz").write_bytes(base64.b64decode(BGZIP))
    rows = read(tmp_path / "x.fa.gz", port(*shape, kind=kind), axis)
    expected = naive(naive_records(GENUINE.decode())[1])
    if shape[-1] in (4, "c"):
        expected = expected.swapaxes(1, 2)
    assert rows.shape[1:] == tuple({"L": 15, "c": 4}.get(str(extent), extent) for extent in shape)
    assert rows.dtype == rows[:].dtype == port(kind=kind).dtype
    np.testing.assert_array_equal(rows[:], expected.reshape(rows.shape))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(rows))[:], rows[:])


@pytest.mark.parametrize(
    ("region", "length", "expected"),
    [
        # As bpnet-lite, chrombpnet and tangermeme do: from centre - length // 2, so that an odd base is on the right.
        (Region("c", 100, 200), 100, (100, 200)),
        (Region("c", 100, 200), 50, (125, 175)),
        (Region("c", 100, 200), 51, (125, 176)),
        (Region("c", 100, 201), 50, (125, 175)),
        (Region("c", 101, 200), 99, (101, 200)),
        (Region("c", 100, 200, summit=0), 4, (98, 102)),
        (Region("c", 100, 200, summit=99), 3, (198, 201)),
        (Region("c", 100, 200, summit=30, strand="-"), 5, (128, 133)),
        (Region("c", 0, 10), 1, (5, 6)),
        (Region("c", 0, 10), 20, (-5, 15)),
    ],
)
def test_a_region_is_resized_around_its_centre(region: Region, length: int, expected: tuple[int, int]) -> None:
    assert centred(region, length) == expected


BED = """browser position chr1
track name=peaks
#chrom start end
chr1\t2\t8
chr2\t10\t15\tpeak\t0\t-

chr1\t0\t20\t.\t0\t+\t1.5\t-1\t-1\t4
chr1\t16\t22\t.\t0\t-\t.\t.\t.\t-1
chr2\t4\t9\tgene\t0\t.\t4\t9\t0\t1\t5\t0
"""
WINDOWS = [("chr1", 2, 8, "+"), ("chr2", 9, 15, "-"), ("chr1", 1, 7, "+"), ("chr1", 16, 22, "-"), ("chr2", 3, 9, "+")]


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("genome_packed", [False, True])
@pytest.mark.parametrize("bed_packed", [False, True])
def test_regions_are_cut_from_the_genome(tmp_path: Path, ends: str, genome_packed: bool, bed_packed: bool) -> None:
    bed, genome = tmp_path / "x.bed", tmp_path / "genome.fa"
    bed.write_bytes(gzip.compress(BED.encode()) if bed_packed else BED.replace("\n", ends).encode())
    text = GENOME.replace("\n", ends).encode()
    genome.write_bytes(packed(text, 11) if genome_packed else text)
    sequences = [
        reverse_complement(CHROMOSOMES[chrom][start:end]) if strand == "-" else CHROMOSOMES[chrom][start:end]
        for chrom, start, end, strand in WINDOWS
    ]
    rows = read(bed, port(4, 6), genome=genome)
    np.testing.assert_array_equal(rows[:], naive(sequences))
    np.testing.assert_array_equal(rows[1:4], naive(sequences)[1:4])
    labels = [f"{chrom}:{start}-{end}{'(-)' if strand == '-' else ''}" for chrom, start, end, strand in WINDOWS]
    assert rows.labels(0, 5) == labels
    assert read_regions(bed) == [
        Region("chr1", 2, 8, line=4),
        Region("chr2", 10, 15, None, "-", "peak", 5),
        Region("chr1", 0, 20, 4, "+", "", 7),
        Region("chr1", 16, 22, None, "-", "", 8),
        Region("chr2", 4, 9, None, ".", "gene", 9),
    ]


def test_regions_of_one_width_are_taken_as_they_are_where_any_length_fits(tmp_path: Path) -> None:
    (tmp_path / "x.bed").write_text("chr1 0 4\nchr1 4 8\nchr1 8 12\n")
    (tmp_path / "genome.fa").write_text(GENOME)
    rows = read(tmp_path / "x.bed", port(4, "L"), genome=tmp_path / "genome.fa")
    np.testing.assert_array_equal(rows[:], naive(["ACGT", "TGCA", "ACNN"]))


def test_an_index_beside_a_genome_is_neither_trusted_nor_written(tmp_path: Path) -> None:
    (tmp_path / "x.bed").write_text("chr1 0 4\n")
    genome = tmp_path / "genome.fa"
    genome.write_text(GENOME)
    (tmp_path / "genome.fa.fai").write_text("chr1\t24\t33\t9\t10\n")
    os.utime(genome, (0, 0))  # so that the wrong index looks newer
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    np.testing.assert_array_equal(read(tmp_path / "x.bed", port(4, 4), 1, genome)[:], naive(["ACGT"]))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_many_records_are_not_held(tmp_path: Path) -> None:
    line = "ACGTTGCAAC" * 100
    (tmp_path / "x.fa").write_text("".join(f">{record}\n{line}\n" for record in range(5000)))
    tracemalloc.start()
    rows = read(tmp_path / "x.fa", port(4, 1000, kind="uint8"))
    for start in range(0, 5000, 100):
        rows[start : start + 100]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000  # of 5 MB of text, and 20 MB one-hot


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.fa"
    path.write_text(">a\nACGT\n>b\nCCCC\n")
    rows = read(path, port(4, 4), 1)
    path.write_text(">a\nACGTA\n>b\nCCC\n")
    os.utime(path, (1, 1))
    with pytest.raises(DataError, match="changed while it was read"):
        rows[0:1]
    path.unlink()
    with pytest.raises(DataError, match="Cannot read"):
        rows[0:1]


def test_an_explainer_takes_the_rows(tmp_path: Path) -> None:
    explainer = Explainer("models/experiments/deeplift_genomics.onnx", target=0, reference="zeros")
    letters = "".join(np.random.default_rng(0).choice(list("ACGT"), 600))
    (tmp_path / "genome.fa").write_text(f">c\n{letters}\n")
    (tmp_path / "x.bed").write_text("c\t90\t110\nc\t200\t400\t.\t.\t-\n")
    inputs = [Port("x", "tensor(float)", ("N", 4, 200), "data", "x", True)]
    with open_data(tmp_path / "x.bed", inputs=inputs, form=Form(tmp_path / "genome.fa")) as rows:
        assert isinstance(rows, dict)
        found = explainer(rows["x"][0:2])
    expected = explainer(naive([letters[:200], reverse_complement(letters[200:400])]).astype(np.float32))
    np.testing.assert_array_equal(found.contributions["x"], expected.contributions["x"])


BAD_FASTA: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no records"),
    "only space": (b"\n \n", "no records"),
    "no header": (b"ACGT\n>a\nACGT\n", "does not begin with '>'"),
    "too short": (
        b">a\nACGT\n>short\nACG\n>c\nACGT\n",
        r"record 2, 'short', has 3 letters, .* takes 4 \(1 such",
    ),
    "too long": (b">a\nACGTA\n>c\nACGTA\n", r"record 1, 'a', has 5 letters, and 'seq' takes 4 \(2 such records"),
    "no letters": (b">a\nACGT\n>b", "record 2, 'b', has 0 letters"),
    "protein": (b">a\nACGT\n>p\nACEG\n", "record 2, 'p', has 'E' in its sequence"),
    "gap": (b">a\nAC-T\n", "has '-'"),
    "binary": (b">a\nAC\x00T\n", r"has '\\x00'"),
    "'>' in a line": (b">a\nAC>T\n", "has '>' in its sequence"),
    "text of gzip": (gzip.compress(b">a\nACGT\n"), "compressed by gzip, .* bgzip"),
}


@pytest.mark.parametrize("case", BAD_FASTA)
def test_bad_fasta_is_refused_by_name(tmp_path: Path, case: str) -> None:
    content, message = BAD_FASTA[case]
    path = tmp_path / "x.fa"
    path.write_bytes(content)
    inputs = [port(4, 4)]
    with pytest.raises(DataError, match=message) as refused, open_data(path, inputs=inputs, one_hot={"seq": 1}):
        pass
    assert str(path) in str(refused.value)


def members(*texts: bytes) -> bytes:
    """One block of bgzip that has several members of gzip in it."""
    inside = b"".join(gzip.compress(text) for text in texts)
    block = bytearray(packed(texts[0])[:18] + inside[10:])
    block[16:18] = (len(block) - 1).to_bytes(2, "little")
    return bytes(block)


BAD_BGZIP: dict[str, tuple[bytes, str]] = {
    "no end": (packed(GENOME.encode())[:-28], "the empty block .* is missing"),
    "cut in the end": (packed(GENOME.encode())[:-3], "damaged or truncated"),
    "cut in a block": (packed(GENOME.encode(), 50)[:60], "damaged or truncated"),
    "cut in a header": (packed(GENOME.encode())[:-20], "damaged or truncated"),
    "other bytes between": (packed(GENOME.encode()) + b"more", "damaged|incorrect header"),
    "gzip between": (packed(GENOME.encode())[:-28] + gzip.compress(b"ACGT"), "damaged or truncated"),
    "too large a block": (packed(GENOME.encode().ljust((1 << 16) + 1, b"A"), 1 << 17), "damaged or truncated"),
    "two members in a block": (members(GENOME.encode(), b"ACGT") + packed(b""), "damaged or truncated"),
}


@pytest.mark.parametrize("case", BAD_BGZIP)
def test_a_bad_block_of_a_genome_is_refused(tmp_path: Path, case: str) -> None:
    content, message = BAD_BGZIP[case]
    (tmp_path / "x.bed").write_text("chr1 0 6\n")
    (tmp_path / "genome.fa.gz").write_bytes(content)
    with pytest.raises(DataError, match=message) as refused:
        read(tmp_path / "x.bed", port(4, 6), genome=tmp_path / "genome.fa.gz")
    assert "genome.fa.gz" in str(refused.value)


@pytest.mark.parametrize("block", [5, 1 << 16])
def test_files_of_bgzip_may_be_joined_and_have_full_blocks(tmp_path: Path, block: int) -> None:
    lines = "ACGTTGCAAC" * 7000
    (tmp_path / "x.fa.gz").write_bytes(packed(f">a\n{lines}\n".encode(), block) + packed(f">b\n{lines}".encode()))
    rows = read(tmp_path / "x.fa.gz", port(4, 70000, kind="uint8"))
    np.testing.assert_array_equal(rows[:], naive([lines, lines]))
    assert rows.labels(0, 2) == ["a", "b"]


BAD_BED: dict[str, tuple[str, str]] = {
    "no lines": ("", "no regions"),
    "only comments": ("#chr1 0 4\ntrack x\n", "no regions"),
    "two columns": ("chr1\t0\t4\nchr1\t4\n", "line 2 has no chromosome, start and end"),
    "no chromosome": ("\t0\t4\n", "line 1 has no chromosome"),
    "a word": ("chr1\tstart\tend\n", "line 1 has 'start' where a position"),
    "a fraction": ("chr1\t0\t4.0\n", "has '4.0'"),
    "negative": ("chr1\t-1\t4\n", "has '-1'"),
    "no ASCII digits": ("chr1\t\u0660\t4\n", "where a position"),
    "huge": ("chr1\t0\t" + "9" * 5000 + "\n", "where a position"),
    "backwards": ("chr1\t8\t4\n", "ends at 4, which is not behind its start 8"),
    "nothing between": ("chr1\t4\t4\n", "ends at 4"),
    "strand": ("chr1\t4\t8\tx\t0\tplus\n", "strand 'plus'"),
    "summit behind the end": ("chr1\t4\t8\t.\t0\t.\t0\t0\t0\t4\n", "summit at 4 of 4 bases"),
    "summit no number": ("chr1\t4\t8\t.\t0\t.\t0\t0\t0\t-2\n", "has '-2'"),
    "a long line": ("#" * 70000 + "\n", "longer than"),
    "unknown chromosome": (
        "chr9\t4\t8\n",
        "line 1 of .*, chr9:4-8, is on no chromosome of .* with 'chr1', 'chr2'",
    ),
    "over the left end": ("chr1\t4\t8\nchr1\t0\t2\n", "line 2 of .*, chr1:0-2, becomes -1 to 3"),
    "over the right end": ("chr1\t20\t26\n", "line 1 .* becomes 21 to 25 .* chromosome of 24 bases"),
    "the next chromosome": ("chr1\t23\t25\n", "becomes 22 to 26"),
}


@pytest.mark.parametrize("case", BAD_BED)
def test_a_bad_region_is_refused_by_its_line(tmp_path: Path, case: str) -> None:
    text, message = BAD_BED[case]
    (tmp_path / "x.bed").write_text(text, "utf-8")
    (tmp_path / "genome.fa").write_text(GENOME)
    with pytest.raises(DataError, match=message) as refused:
        read(tmp_path / "x.bed", port(4, 4), 1, tmp_path / "genome.fa")
    assert "x.bed" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.bed", b"chr1\t0\t4\nchr1\t4\t9\n", "line 2 .* is not as long as the first, 4"),
        ("x.fa", b">a\nACGT\n>b\nACG\n", "record 2, 'b', has 3 letters, and the longest 4"),
        ("x.fa", b">a\n\n>b\n", "record 1, 'a', has 0 letters"),
    ],
)
def test_where_any_length_fits_all_must_have_one(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "genome.fa").write_text(GENOME)
    genome = tmp_path / "genome.fa" if name == "x.bed" else None
    with pytest.raises(DataError, match=message):
        read(tmp_path / name, port(4, "L"), genome=genome)


@pytest.mark.parametrize(
    ("shape", "axis", "genome", "message"),
    [
        ((4, 4), None, True, "cannot be told: name it with --one-hot"),
        (("c", "L"), None, True, "cannot be told"),
        ((3, 32, 32), None, True, "cannot be told"),
        ((5, 20), 1, True, "takes no sequences"),
        ((4,), None, True, "takes no sequences"),
        ((4, 2, 20), None, True, "takes no sequences"),
        ((4, 20), 0, True, "takes no sequences"),
        ((4, 6), None, False, "name the FASTA file"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    tmp_path: Path, shape: tuple[int | str, ...], axis: int | None, genome: bool, message: str
) -> None:
    (tmp_path / "x.bed").write_text(BED)
    (tmp_path / "genome.fa").write_text(GENOME)
    with pytest.raises(OptionError, match=message):
        read(tmp_path / "x.bed", port(*shape), axis, tmp_path / "genome.fa" if genome else None)


def test_an_input_without_a_batch_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.fa").write_text(">a\nACGTAC\n")
    with pytest.raises(OptionError, match="where N is the batch"):
        read(tmp_path / "x.fa", Port("seq", "tensor(float)", (1, 4, 6), "data", "seq", False))


def test_a_genome_of_two_records_of_one_name_and_one_for_fasta_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.bed").write_text("a 0 4\n")
    (tmp_path / "x.fa").write_text(">a\nACGT\n>a\nACGT\n")
    with pytest.raises(DataError, match="several records of one name"):
        read(tmp_path / "x.bed", port(4, 4), 1, tmp_path / "x.fa")
    with pytest.raises(OptionError, match="leave it out"):
        read(tmp_path / "x.fa", port(4, 4), 1, tmp_path / "x.fa")
    with pytest.raises(DataError, match="Cannot read"):
        read(tmp_path / "x.bed", port(4, 4), 1, tmp_path / "missing.fa")


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxlift.formats.genome._BOMB_BYTES", 1 << 16)
    (tmp_path / "x.bed.gz").write_bytes(gzip.compress(b"c\t0\t4\n" * 500_000))
    with pytest.raises(DataError, match="unpacks to more than 100 times"):
        read_regions(tmp_path / "x.bed.gz")


def test_flipped_bytes_give_an_error_or_what_is_there(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    (tmp_path / "genome.fa").write_text(GENOME)
    text = some_fasta(rng, 6, 20).encode()
    bed = "".join(f"chr1\t{start}\t{start + 20}\tp\t0\t+\t0\t0\t0\t10\n" for start in range(4)).encode()
    files = {"a.fa": text, "b.fa.gz": packed(text, 50), "c.bed": bed, "d.bed.gz": gzip.compress(bed)}
    refused = dict.fromkeys(files, 0)
    for name, content in files.items():
        genome = tmp_path / "genome.fa" if "bed" in name else None
        (tmp_path / name).write_bytes(content)
        whole = read(tmp_path / name, port(4, 20), genome=genome)[:]
        for _ in range(300):
            broken = bytearray(content)
            broken[rng.integers(len(content))] ^= int(rng.integers(1, 256))
            (tmp_path / name).write_bytes(broken)
            try:
                rows = read(tmp_path / name, port(4, 20), genome=genome)
                found = rows[:]
                assert len(rows.labels(0, len(rows))) == len(rows)
            except OnnxliftError:
                refused[name] += 1
                continue
            if name == "a.fa":
                sequences = naive_records(broken.decode("latin-1"))[1]
                np.testing.assert_array_equal(found, naive(sequences))
            elif name == "b.fa.gz":  # its checksums tell
                np.testing.assert_array_equal(found, whole)
    assert min(refused.values()) > 50
