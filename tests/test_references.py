"""References built from data: what each builder promises, and the specs that name them."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from onnxlift import DataError, OptionError, references, shuffling

Array = np.ndarray
BASES = "ACGT"


def one_hot(*sequences: str, axis: int = 1, letters: str = BASES, dtype: type = np.float32) -> Array:
    """Sequences of one length as [N, letters, length], or with the letters on axis 2; what is no letter is all 0."""
    x = np.array([[[base == letter for letter in letters] for base in sequence] for sequence in sequences], dtype)
    return x if axis == 2 else np.swapaxes(x, 1, 2)


def text(x: Array, axis: int = 1, letters: str = BASES) -> list[str]:
    """The inverse of `one_hot`."""
    x = np.moveaxis(x, axis, -1)
    assert set(np.unique(x)) <= {0, 1}
    assert x.sum(axis=-1).max(initial=0) <= 1
    index = np.where(x.any(axis=-1), x.argmax(axis=-1), len(letters))
    return ["".join((letters + "N")[i] for i in row) for row in index]


def dinucleotides(sequence: str) -> Counter[str]:
    return Counter(a + b for a, b in itertools.pairwise(sequence))


def sequences_like(sequence: str) -> Iterator[str]:
    """All sequences with the dinucleotides and the ends of this one: the Euler paths, by trying every way."""

    def grow(path: str, left: Counter[str]) -> Iterator[str]:
        if not left.total():
            yield path
        for pair in sorted(pair for pair in left if pair[0] == path[-1] and left[pair]):
            yield from grow(path + pair[1], left - Counter([pair]))

    return grow(sequence[0], dinucleotides(sequence))


def varied_sequences(count: int) -> list[str]:
    """Random sequences of many lengths and compositions, with repeats, runs and unknown bases."""
    rng = np.random.default_rng(2)
    found = [
        "A",
        "N",
        "AC",
        "NN",
        "ACG",
        "AAA",
        "ANA",
        "A" * 50,
        "AC" * 40,
        "ACG" * 20 + "T",
        "AC" * 20 + "GT" * 20 + "N",
    ]
    while len(found) < count:
        length = int(rng.integers(1, 120))
        composition = rng.dirichlet(np.full(5, rng.choice([0.05, 0.5, 5])))
        found.append("".join(rng.choice(list("ACGTN"), size=length, p=composition)))
    return found


# ------------------------------------------------------------------------------------------------ shuffles


def test_dinucleotide_counts_and_ends_are_kept() -> None:
    by_length: dict[int, list[str]] = {}
    for sequence in varied_sequences(1000):
        by_length.setdefault(len(sequence), []).append(sequence)
    changed = 0
    for group in by_length.values():
        shuffles = references.dinuc_shuffle(one_hot(*group), 3)
        assert shuffles.shape == (len(group), 3, 4, len(group[0]))
        for sequence, rows in zip(group, shuffles, strict=True):
            for other in text(rows):
                assert dinucleotides(other) == dinucleotides(sequence)
                assert other[0] + other[-1] == sequence[0] + sequence[-1]
                changed += other != sequence
    assert changed > 2000


@pytest.mark.parametrize(
    "sequence",
    "ACGACTAGC ACACACGTC ACACAGAGTCT AACAACCA ANCNANGNCN CACACACACAT GATTACAGAT ACGTACGTCATG ACGTNACTGNAC".split(),
)
def test_euler_paths_are_equally_likely(sequence: str) -> None:
    ways = sorted(set(sequences_like(sequence)))
    draws = 2000 * len(ways)
    found = Counter(text(references.dinuc_shuffle(one_hot(sequence), draws)[0]))
    assert set(found) == set(ways)
    check_uniform(np.array([found[way] for way in ways]))


def test_cycles_that_are_hardly_ever_left() -> None:
    """A rejection of the whole tree would accept one in 60,000 here; the way out of a cycle is uniform all the same."""
    sequence = "AC" * 250 + "GT" * 250 + "N"
    start = time.perf_counter()
    shuffles = text(references.dinuc_shuffle(one_hot(sequence), 200)[0])
    assert time.perf_counter() - start < 20
    assert {other[500:] for other in shuffles} == {sequence[500:]}, "A, C, then G, T: there is one path only"
    sequence = "AC" * 20 + "ATA"  # the excursion to T may come after any A but the last
    draws = 40_000
    places = Counter(other.index("T") for other in text(references.dinuc_shuffle(one_hot(sequence), draws)[0]))
    assert sorted(places) == list(range(1, 42, 2))
    check_uniform(np.array(list(places.values())))


def test_all_orders_are_equally_likely() -> None:
    ways = sorted({"".join(way) for way in itertools.permutations("AACNG")})
    found = Counter(text(references.shuffle(one_hot("AACNG"), 2000 * len(ways))[0]))
    assert set(found) == set(ways)
    check_uniform(np.array([found[way] for way in ways]))


def check_uniform(counts: Array) -> None:
    """Chi-square within 4 standard deviations of its mean."""
    freedom, expected = counts.size - 1, counts.mean()
    assert (((counts - expected) ** 2) / expected).sum() <= freedom + 4 * np.sqrt(2 * freedom)


def test_shuffle_keeps_the_composition() -> None:
    group = [sequence[:40] for sequence in varied_sequences(1000) if len(sequence) >= 40]
    shuffles = references.shuffle(one_hot(*group), 2)
    for sequence, rows in zip(group, shuffles, strict=True):
        assert [Counter(other) for other in text(rows)] == [Counter(sequence)] * 2


SHUFFLES = [references.shuffle, references.dinuc_shuffle]
GROUP = [sequence[:60] for sequence in varied_sequences(200) if len(sequence) >= 60]


@pytest.mark.parametrize("build", SHUFFLES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int8, np.int64, bool])
def test_axes_and_dtypes_do_not_matter(build: Callable[..., Array], dtype: type) -> None:
    expected = [text(rows) for rows in build(one_hot(*GROUP), 2)]
    for axis in (1, 2, -2, -1):
        front = 1 if axis in (1, -2) else 2
        x = one_hot(*GROUP, axis=front, dtype=dtype)
        shuffles = build(x, 2, axis=axis)
        assert shuffles.dtype == dtype
        assert shuffles.shape == (len(GROUP), 2, *x.shape[1:])
        assert [text(rows, axis=front) for rows in shuffles] == expected
    wide = build(one_hot(*GROUP, dtype=dtype)[:, :, None, :], 2)
    assert wide.shape == (len(GROUP), 2, 4, 1, 60)
    assert [text(rows[:, :, 0]) for rows in wide] == expected


@pytest.mark.parametrize("build", SHUFFLES)
def test_a_sample_is_shuffled_alike_in_any_company(
    build: Callable[..., Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = one_hot(*GROUP)
    whole = build(x, 5)
    np.testing.assert_array_equal(build(x, 5), whole)
    np.testing.assert_array_equal(build(x, 2), whole[:, :2])
    np.testing.assert_array_equal(build(x[::-1], 5), whole[::-1])
    np.testing.assert_array_equal(build(x[7:8], 5), whole[7:8])
    for chunk in (1, 60 * 7, 60 * 64):
        monkeypatch.setattr(shuffling, "_CHUNK", chunk)
        np.testing.assert_array_equal(build(x, 5), whole)


@pytest.mark.parametrize("build", SHUFFLES)
def test_seeds_and_numbers_give_other_shuffles(build: Callable[..., Array]) -> None:
    rng = np.random.default_rng(0)
    x = one_hot("".join(rng.choice(list(BASES), size=200)))
    found = {
        text(rows)[0] for seed in (0, 1, 2, -1, 2**64 - 2, np.int64(7)) for rows in build(x, 10, seed=seed)[0][:, None]
    }
    assert len(found) == 60
    np.testing.assert_array_equal(build(x, seed=0), build(x))


def test_shuffles_are_the_same_on_every_machine_and_version() -> None:
    x = one_hot("ACGTTGCAACGTNNACGT")
    assert text(references.dinuc_shuffle(x, 2, seed=3)[0]) == ["ACGCACGTGTNNAACGTT", "ACACGTTNNAACGCGTGT"]
    assert text(references.shuffle(x, 2, seed=3)[0]) == ["TNAATGCGACGNTCCGTA", "ATCANTTAGGCCCGAGTN"]


def test_large_alphabets() -> None:
    letters = "ACDEFGHIKLMNPQRSTVWY"
    rng = np.random.default_rng(0)
    protein = "".join(rng.choice(list(letters), size=150))
    for other in text(references.dinuc_shuffle(one_hot(protein, letters=letters), 20)[0], letters=letters):
        assert dinucleotides(other) == dinucleotides(protein)
    x = np.eye(300, dtype=bool)[rng.integers(0, 300, size=(2, 400))]
    shuffles = references.dinuc_shuffle(x, axis=2)[:, 0]
    for before, after in zip(x.argmax(axis=2), shuffles.argmax(axis=2), strict=True):
        assert Counter(itertools.pairwise(before)) == Counter(itertools.pairwise(after))


def test_no_samples() -> None:
    assert references.dinuc_shuffle(np.zeros((0, 4, 9)), 2).shape == (0, 2, 4, 9)
    assert references.shuffle(np.zeros((3, 4, 0)), 2).shape == (3, 2, 4, 0)


def test_ten_thousand_sequences_of_a_thousand_bases() -> None:
    """About a second on one core; the limit leaves room for slow ones."""
    x = np.eye(4, dtype=np.int8)[np.random.default_rng(0).integers(0, 4, size=(10_000, 1000))]
    start = time.perf_counter()
    references.dinuc_shuffle(x, axis=2)
    assert time.perf_counter() - start < 20


def spoilt(sample: int, position: int, column: list[float]) -> Array:
    x = one_hot(*GROUP, axis=2)
    x[sample, position] = column
    return x


@pytest.mark.parametrize("build", SHUFFLES)
@pytest.mark.parametrize("column", [[1, 1, 0, 0], [0.25] * 4, [0, 0, 0, 2], [-1, 0, 0, 0], [0, np.nan, 0, 0]])
def test_what_is_not_one_hot_is_refused(
    build: Callable[..., Array], column: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shuffling, "_CHUNK", 60 * 4)
    with pytest.raises(DataError, match=r"sample 11 is not one-hot along axis 2: position 31 has \[-?(nan|\d)"):
        build(spoilt(11, 31, column), 3, axis=2)


@pytest.mark.parametrize("build", SHUFFLES)
def test_wrong_calls_of_the_shuffles(build: Callable[..., Array]) -> None:
    x = one_hot("ACGT")
    for k in (0, -1):
        with pytest.raises(OptionError, match=f"{k} shuffles are asked for: at least 1"):
            build(x, k)
    for axis in (0, 3, -3):
        with pytest.raises(OptionError, match=f"axis {axis} cannot hold the channels"):
            build(x, axis=axis)
    for shape in ((2, 4), (2, 4, 3, 3), (2, 0, 5)):
        with pytest.raises(OptionError, match="are no sequences"):
            build(np.zeros(shape))
    with pytest.raises(DataError, match="not <U4"):
        build(["ACGT"])


# ------------------------------------------------------------------------------------- rows for all samples


def test_constant() -> None:
    row = references.constant(np.zeros((5, 2, 3), np.float16), 0.5)
    assert row.dtype == np.float16
    np.testing.assert_array_equal(row, np.full((1, 2, 3), 0.5))
    assert references.constant(np.zeros((5, 2), np.uint8), 0.5).dtype == np.float64
    for value in (float("nan"), float("inf")):
        with pytest.raises(OptionError, match="must be a finite number"):
            references.constant(np.zeros((5, 2)), value)


@pytest.mark.parametrize("axis", [1, 2])
def test_frequencies(axis: int) -> None:
    x = one_hot("AACN", "ACGT", axis=axis)
    given = references.frequencies(x, [0.3, 0.2, 0.2, 0.3], axis=axis)
    measured = references.frequencies(x, axis=axis)
    assert given.dtype == measured.dtype == np.float32
    assert given.shape == measured.shape == (1, 4, 4)
    for row, expected in ((given, [0.3, 0.2, 0.2, 0.3]), (measured, np.array([3, 2, 1, 1]) / 7)):
        for column in np.moveaxis(row[0], axis - 1, -1):
            np.testing.assert_allclose(column, expected, rtol=1e-6)
    assert references.frequencies(x.astype(np.int8), axis=axis).dtype == np.float64


def test_wrong_frequencies() -> None:
    x = one_hot("ACGT")
    references.frequencies(x, [0.333, 0.333, 0.333, 0])
    for values, message in {
        (0.5, 0.5): "2 frequencies are given for 4 channels",
        (0.3, 0.3, 0.3, 0.3): "add up to 1, not 1.2",
        (0.5, 0.5, 0.5, -0.5): "must be >= 0",
        (0.5, 0.5, float("nan"), 0): "must be >= 0",
    }.items():
        with pytest.raises(OptionError, match=message):
            references.frequencies(x, values)
    for bad in (np.zeros_like(x), -x, x[:0], np.full_like(x, np.inf), np.full_like(x, np.nan)):
        with pytest.raises(DataError, match="not only zeros"):
            references.frequencies(bad)


def test_mean_is_summed_in_float64() -> None:
    x = np.full((3000, 2), 100, np.float16)
    np.testing.assert_array_equal(references.mean(x), np.full((1, 2), 100, np.float16))
    assert references.mean(x).dtype == np.float16
    np.testing.assert_array_equal(references.mean(np.array([[0], [1]], np.int8)), [[0.5]])
    with pytest.raises(DataError, match="no samples to take the mean of"):
        references.mean(x[:0])


def test_background() -> None:
    x = np.arange(40).reshape(20, 2)
    np.testing.assert_array_equal(references.background(x), x)
    rows = references.background(x, 6)
    assert rows.shape == (6, 2)
    assert rows.dtype == x.dtype
    assert len(np.unique(rows[:, 0])) == 6
    assert np.all(np.diff(rows[:, 0]) > 0)
    np.testing.assert_array_equal(references.background(x, 6, seed=0), rows)
    assert any(not np.array_equal(references.background(x, 6, seed=seed), rows) for seed in (1, -5))
    for k in (0, 21):
        with pytest.raises(OptionError, match=f"{k} background rows are asked for: choose 1 to 20"):
            references.background(x, k)
    with pytest.raises(DataError, match="no samples to choose from"):
        references.background(x[:0])


# ---------------------------------------------------------------------------------------------------- blur


def directly_blurred(image: Array, sigma: float) -> Array:
    """The definition: every pixel is a weighted mean of all that are near, over two axes at once."""
    reach = int(np.ceil(4 * sigma))
    offsets = range(-reach, reach + 1)
    weights = {(i, j): np.exp(-(i * i + j * j) / (2 * sigma**2)) for i in offsets for j in offsets}
    height, width = image.shape
    out = np.zeros(image.shape)
    for row in range(height):
        for column in range(width):
            for (i, j), weight in weights.items():
                out[row, column] += weight * image[np.clip(row + i, 0, height - 1), np.clip(column + j, 0, width - 1)]
    return out / sum(weights.values())


@pytest.mark.parametrize("sigma", [0.4, 1, 2.5])
def test_blur(sigma: float) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 5))
    blurred = references.blur(x, sigma)
    for sample, channel in itertools.product(range(2), range(3)):
        np.testing.assert_allclose(blurred[sample, channel], directly_blurred(x[sample, channel], sigma), atol=1e-12)
    last = references.blur(np.moveaxis(x, 1, -1), sigma, axes=(1, 2))
    np.testing.assert_array_equal(np.moveaxis(last, -1, 1), blurred)
    np.testing.assert_array_equal(references.blur(x[1:], sigma), blurred[1:])
    once = references.blur(x, sigma, axes=(3,))
    np.testing.assert_allclose(references.blur(once, sigma, axes=(-2,)), blurred, atol=1e-12)


def test_blur_keeps_the_dtype_and_constants() -> None:
    image = np.full((1, 5, 5), 200, np.uint8)
    image[0, 2, 2] = 255
    blurred = references.blur(image, 1)
    assert blurred.dtype == np.uint8
    np.testing.assert_array_equal(blurred[0], np.rint(directly_blurred(image[0].astype(float), 1)))
    np.testing.assert_allclose(references.blur(np.full((1, 9, 4), 7.0), 4), 7, rtol=1e-15)
    np.testing.assert_array_equal(references.blur(image, 1e-200), image)


def test_wrong_blurs() -> None:
    x = np.zeros((2, 3, 8, 9))
    for sigma in (0, -1, float("nan"), float("inf"), 9.1):
        with pytest.raises(OptionError, match="above 0 and at most 9"):
            references.blur(x, sigma)
    for axes in ((0, 1), (4,), (-4,), ()):
        with pytest.raises(OptionError, match="cannot blur axes"):
            references.blur(x, 1, axes=axes)
