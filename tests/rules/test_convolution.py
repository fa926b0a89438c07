"""Convolutions: every geometry, static and dynamic sizes, and what the explainer's file contains."""

from __future__ import annotations

import itertools

import laws
import numpy as np
import onnx
import pytest

import onnxlift
from onnxlift.rules.convolution import FEW_CHANNELS

MANY = FEW_CHANNELS  # input channels from which on stride 1 becomes a convolution

# input channels and sizes; shape of the weight; attributes
Case = tuple[tuple[int, ...], tuple[int, ...], str]
CONV: list[Case] = [
    ((2, 7), (3, 2, 3), "group = 1"),
    ((2, 7), (3, 2, 3), "pads = [2, 0]"),
    ((2, 7), (3, 2, 1), "pads = [1, 2]"),  # padding that only the bias sees
    ((2, 8), (3, 2, 3), "strides = [3], dilations = [2]"),
    ((2, 11), (4, 1, 3), "strides = [4], pads = [2, 1], group = 2"),
    ((2, 9), (3, 2, 1), "strides = [3]"),  # most places unseen
    ((2, 9), (3, 2, 9), "group = 1"),
    ((2, 7, 6), (3, 2, 3, 2), "kernel_shape = [3, 2], pads = [0, 1, 2, 0]"),
    ((2, 8, 9), (3, 2, 3, 3), "strides = [2, 2], pads = [1, 1, 1, 1]"),
    ((2, 8, 9), (3, 2, 3, 4), "strides = [3, 2], pads = [0, 2, 1, 0]"),
    ((2, 8, 9), (3, 2, 2, 2), "strides = [2, 2]"),
    ((2, 9, 8), (3, 2, 2, 3), "strides = [1, 2], dilations = [2, 1], pads = [1, 0, 0, 2]"),
    ((6, 5, 4), (9, 2, 2, 3), "group = 3, pads = [0, 1, 1, 1]"),
    ((4, 7, 5), (4, 1, 3, 3), "group = 4, strides = [2, 2], pads = [1, 1, 1, 1]"),
    ((2, 4, 5, 3), (3, 2, 2, 3, 1), "strides = [1, 2, 1], pads = [1, 0, 0, 0, 1, 1]"),
    ((2, 8, 7), (3, 2, 3, 3), 'auto_pad = "VALID", strides = [2, 1]'),
    *(
        ((2, 8, 7), (3, 2, 3, kernel), f'auto_pad = "SAME_{side}", strides = [{stride}, {stride}]')
        for side, kernel, stride in itertools.product(("UPPER", "LOWER"), (1, 2, 4), (1, 2, 3))
    ),
    # the transpose is a convolution
    ((MANY, 7), (2, MANY, 3), "pads = [0, 1]"),
    ((MANY, 5, 6), (2, MANY, 3, 1), "pads = [1, 0, 2, 0]"),
    ((MANY, 5, 6), (2, MANY, 1, 1), "group = 1"),
    ((MANY, 5, 6), (2, MANY, 1, 1), "pads = [1, 0, 0, 1]"),  # ... but not here
    ((MANY, 7, 6), (3, MANY, 2, 3), "dilations = [3, 2], pads = [1, 2, 3, 4]"),
    ((2 * MANY, 5, 4), (6, MANY, 2, 3), "group = 2, pads = [0, 1, 1, 1]"),
    ((3, 6, 5), (3, 1, 3, 3), "group = 3, pads = [1, 1, 1, 1]"),
    ((3, 6, 5), (3, 1, 1, 1), "group = 3"),
    ((MANY, 6, 5), (2, MANY, 3, 4), 'auto_pad = "SAME_LOWER"'),
    ((MANY, 4, 3, 3), (2, MANY, 2, 2, 2), "pads = [0, 0, 1, 1, 0, 0]"),
]
TRANSPOSE: list[Case] = [
    ((2, 5), (2, 3, 3), "group = 1"),
    ((2, 5), (2, 3, 3), "pads = [2, 1]"),
    ((2, 5), (2, 3, 2), "strides = [3]"),  # gaps
    ((2, 5), (2, 3, 3), "strides = [2], output_padding = [1]"),
    ((2, 5), (2, 3, 3), "strides = [3], dilations = [4], output_padding = [2], pads = [1, 0]"),
    ((2, 5), (2, 3, 3), "strides = [2], dilations = [2], pads = [0, 6]"),
    ((4, 5), (4, 2, 3), "strides = [2], group = 2"),
    ((3, 4, 5), (3, 1, 3, 2), "strides = [2, 1], group = 3, pads = [0, 1, 1, 0]"),
    ((2, 4, 5), (2, 3, 3, 3), "strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]"),
    ((2, 3, 4, 2), (2, 2, 2, 3, 2), "strides = [2, 1, 2], dilations = [1, 2, 1]"),
    *(
        ((2, 4, 5), (2, 3, 3, kernel), f'auto_pad = "SAME_{side}", strides = [{stride}, {stride}]')
        for side, kernel, stride in itertools.product(("UPPER", "LOWER"), (1, 2, 4), (1, 2, 3))
        if kernel >= stride
    ),
    ((2, 4, 5), (2, 3, 3, 3), 'auto_pad = "VALID", strides = [2, 1]'),
]
OUTPUT_SHAPE: list[Case] = [  # sizes that ONNX cannot tell for a dynamic input
    ((2, 4, 5), (2, 3, 3, 2), f"strides = [2, 3], output_shape = [{height}, {width}]{same}")
    for height, width in ((8, 13), (9, 14), (7, 15), (10, 16))
    for same in ("", ', auto_pad = "SAME_UPPER"', ', auto_pad = "SAME_LOWER"')
]
LETTERS = "CHWD"


def model(op: str, case: Case, sizes: str = "static", dtype: str = "float") -> onnx.ModelProto:
    """`y = op (x, w, b)`; sizes: static, all static (the batch too), or dynamic."""
    shape, weight, attributes = case
    kind = np.float16 if dtype == "float16" else np.float32
    rng = np.random.default_rng(1)
    group = int(attributes.split("group = ")[1].split(",")[0]) if "group" in attributes else 1
    outputs = weight[0] if op == "Conv" else weight[1] * group
    x = ", ".join([
        "3" if sizes == "all static" else "N",
        str(shape[0]),
        *(LETTERS[axis] if sizes == "dynamic" else str(size) for axis, size in enumerate(shape) if axis),
    ])
    y = ", ".join(["N", str(outputs), *(f"Y{axis}" for axis in range(1, len(shape)))])
    return laws.model(
        f"g ({dtype}[{x}] x) => ({dtype}[{y}] y) {{ y = {op} <{attributes}> (x, w, b) }}",
        w=rng.standard_normal(weight).astype(kind),
        b=rng.standard_normal(outputs).astype(kind),
    )


def data(case: Case, dtype: type = np.float32) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(2)
    x, r = rng.standard_normal((2, 3, *case[0])).astype(dtype)
    return {"x": x}, {"x": r}


@pytest.mark.parametrize("sizes", ["static", "dynamic"])
@pytest.mark.parametrize("case", CONV, ids=str)
def test_conv(case: Case, sizes: str) -> None:
    laws.check(model("Conv", case, sizes), *data(case))


@pytest.mark.parametrize("sizes", ["static", "dynamic"])
@pytest.mark.parametrize("case", TRANSPOSE, ids=str)
def test_conv_transpose(case: Case, sizes: str) -> None:
    laws.check(model("ConvTranspose", case, sizes), *data(case))


@pytest.mark.parametrize("case", OUTPUT_SHAPE, ids=str)
def test_conv_transpose_with_output_shape(case: Case) -> None:
    laws.check(model("ConvTranspose", case), *data(case))


def test_every_one_dimensional_geometry() -> None:
    """m_x = W^T m_y for all small kernels, strides, dilations, paddings and sizes, in one convolution each."""
