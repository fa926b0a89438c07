"""Fourier transforms, frames and columns, with lengths, axes and windows of every kind."""

from __future__ import annotations

import laws
import numpy as np
import pytest

import onnxlift

RNG = np.random.default_rng(43)
OPERATORS = ("Col2Im", "DFT", "STFT")


def normal(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype)


# --- DFT -------------------------------------------------------------------------------------------------------------

# shape, attributes, dft_length, axis
DFT: list[tuple[tuple[int, ...], str, int | None, int | None]] = [
    ((3, 6, 1), "inverse = 0", None, None),
    ((3, 8, 2), "inverse = 0", None, 1),
    ((3, 6, 1), "onesided = 1", None, None),
    ((3, 5, 1), "onesided = 1", None, -2),
    ((3, 6, 1), "onesided = 1", 4, None),  # cut off
    ((3, 6, 1), "onesided = 1", 9, None),  # padded
    ((3, 6, 2), "inverse = 0", 4, 1),
    ((3, 6, 2), "inverse = 0", 9, 1),
    ((3, 6, 2), "inverse = 1", None, None),
    ((3, 5, 2), "inverse = 1", 8, 1),
    ((3, 5, 2), "inverse = 1", 3, 1),
    ((3, 5, 1), "inverse = 1", 6, 1),
    ((3, 4, 2), "inverse = 1, onesided = 1", None, None),
    ((3, 4, 2), "inverse = 1, onesided = 1", 6, 1),
    ((3, 4, 2), "inverse = 1, onesided = 1", 7, 1),
    ((3, 4, 5, 1), "onesided = 1", None, 1),
    ((3, 4, 5, 2), "inverse = 0", 6, -3),
    ((3, 4, 5, 2), "inverse = 1, onesided = 1", None, -3),
]


@pytest.mark.parametrize(("shape", "attributes", "length", "axis"), DFT)
@pytest.mark.parametrize("given", ["constants", "inputs", "static"])
def test_fourier(shape: tuple[int, ...], attributes: str, length: int | None, axis: int | None, given: str) -> None:
    values = {"length": length, "axis": axis}
    held = {name: np.array(value, np.int64) for name, value in values.items() if value is not None}
    names = ", ".join(["x", "length" if length is not None else "", "axis" if axis is not None else ""]).rstrip(", ")
    inputs = [f"float[{', '.join(map(str, shape if given == 'static' else ('N', *shape[1:])))}] x"]
    others = {}
    if given == "inputs":
        others, held = held, {}
        inputs += [f"int64 {name}" for name in others]
    model = laws.model(f"g ({', '.join(inputs)}) => (float y) {{ y = DFT <{attributes}> ({names}) }}", **held)
    dynamic = given == "constants"
    x, r = ({"x": normal(*shape)} for _ in range(2))
    laws.check(model, x, r, others=others, references=dynamic, signed=given != "inputs")


def test_fourier_of_sizes_that_are_unknown() -> None:
    model = laws.model("g (float[N, L, 1] x) => (float y) { y = DFT <onesided = 1> (x, length) }", length=np.array(8))
    for size in (5, 8, 11):
        laws.check(model, {"x": normal(3, size, 1)}, {"x": normal(3, size, 1)})


def test_fourier_in_double_precision() -> None:
    model = laws.model("g (double[N, 6, 1] x) => (double y) { y = DFT (x) }")
    laws.check(model, *({"x": normal(3, 6, 1, dtype=np.float64)} for _ in range(2)), rtol=1e-7)  # of the kernel's pi


def test_fourier_along_the_samples_has_one_gap() -> None:
    model = laws.model("g (float[N, 2, 1] x) => (float y) { y = DFT (x, , axis) }", axis=np.array(0))
    x, r = ({"x": normal(4, 2, 1)} for _ in range(2))
    assert laws.check(model, x, r, references=False, signed=False)["completeness_gap"].shape == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float[N, 6, P] x) => (float y) { y = DFT (x) }", "real or complex"),
        (
            "g (float[N, 6, 2] x) => (float y) { y = DFT <inverse = 1, onesided = 1> (x, length) }",
            "half a spectrum",
        ),
    ],
)
def test_refused_fourier(text: str, reason: str) -> None:
    with pytest.raises(onnxlift.RuleError, match=reason):
        onnxlift.rewrite(laws.model(text, length=np.array(6)), target="weights")


# --- STFT ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attributes", ["onesided = 1", "onesided = 0"])
@pytest.mark.parametrize("active", ["sw", "s", "w"])
@pytest.mark.parametrize(
    ("shape", "step", "size", "given"),
    [
        ((2, 10, 1), 2, 4, "window"),
        ((2, 11, 1), 3, 5, "window"),  # the last places are in no frame
        ((2, 11, 1), 5, 3, "both"),  # gaps
        ((2, 10), 2, 4, "window"),
        ((2, 8, 2), 2, 4, "window"),
        ((2, 10, 1), 2, 4, "length"),
    ],
)
def test_short_time_fourier(
    shape: tuple[int, ...], step: int, size: int, given: str, active: str, attributes: str
) -> None:
    if given == "length" and "w" in active:
        pytest.skip("there is no window")
    window = given != "length"
    names = f"s, step, {'w' if window else ''}{'' if given == 'window' else ', length'}"
    dims = ", ".join(["N", *map(str, shape[1:])])
    inputs = f"float[{dims}] s" + (f", float[{size}] w" if window else "")
    frames, bins = (shape[1] - size) // step + 1, size // 2 + 1 if "1" in attributes else size
    model = laws.model(
        f"g ({inputs}) => (float[N, {frames}, {bins}, 2] y) {{ y = STFT <{attributes}> ({names}) }}",
        step=np.array(step),
        length=np.array(size),
    )
    x, r = ({"s": normal(*shape), **({"w": normal(size)} if window else {})} for _ in range(2))
    others = {name: x.pop(name) for name in list(x) if name not in active}
    laws.check(model, x, {name: r[name] for name in x}, others=others, references=active == "s")


def test_frames_given_at_run_time() -> None:
    model = laws.model(
        """g (float[N, L, 1] s, int64 step, float[k] w, int64 length) => (float[N, f, b, 2] y)
           { y = STFT (s, step, w, length) }"""
    )
    others = {"step": np.array(2), "length": np.array(4), "w": normal(4)}
    laws.check(model, *({"s": normal(3, 9, 1)} for _ in range(2)), others=others, references=False, signed=False)


# --- Col2Im ----------------------------------------------------------------------------------------------------------

# channels, image, block, attributes
COLUMNS: list[tuple[int, tuple[int, ...], tuple[int, ...], str]] = [
    (1, (3, 4), (2, 2), ""),
    (2, (3, 4), (2, 2), ""),
    (2, (5, 4), (3, 2), "<strides = [2, 1]>"),
    (1, (4, 4), (2, 3), "<pads = [1, 0, 1, 2]>"),
    (1, (5, 5), (2, 2), "<dilations = [2, 3]>"),
    (2, (6,), (3,), "<strides = [2], pads = [1, 0]>"),
    (2, (3, 2, 4), (2, 1, 2), ""),
]


@pytest.mark.parametrize(("channels", "image", "block", "attributes"), COLUMNS)
@pytest.mark.parametrize("given", ["constants", "inputs", "static"])
def test_columns(channels: int, image: tuple[int, ...], block: tuple[int, ...], attributes: str, given: str) -> None:
    rank = len(image)

    def numbers(name: str, default: int) -> list[int]:
        found = attributes.partition(f"{name} = [")[2].partition("]")[0]
        return [int(number) for number in found.split(",")] if found else [default] * 2 * rank

    strides, dilations, pads = numbers("strides", 1), numbers("dilations", 1), numbers("pads", 0)
    counts = [
        (image[k] + pads[k] + pads[k + rank] - dilations[k] * (block[k] - 1) - 1) // strides[k] + 1 for k in range(rank)
    ]
    shape = (4, channels * int(np.prod(block)), int(np.prod(counts)))
    held = {"image": np.array(image), "block": np.array(block)}
    inputs = [f"float[{'4' if given == 'static' else 'N'}, {shape[1]}, {shape[2]}] x"]
    others = {}
    if given == "inputs":
        others, held = held, {}
        inputs += [f"int64[{rank}] image", f"int64[{rank}] block"]
    y = ", ".join(["N", str(channels), *map(str, image)] if given != "inputs" else ["N", "c", *"hwd"[:rank]])
    model = laws.model(
        f"g ({', '.join(inputs)}) => (float[{y}] y) {{ y = Col2Im {attributes} (x, image, block) }}", **held
    )
    dynamic = given == "constants"
    laws.check(model, *({"x": normal(*shape)} for _ in range(2)), others=others, references=dynamic, signed=dynamic)
