"""Average pools: every geometry and divisor, against the oracle and against what ONNX Runtime's forward pass does."""

from __future__ import annotations

import itertools

import laws
import numpy as np
import onnx
import pytest

import onnxlift

# input channels and sizes; attributes
Case = tuple[tuple[int, ...], str]
POOLS: list[Case] = [
    # side by side: repeated
    ((2, 6), "kernel_shape = [2], strides = [2]"),
    ((2, 8), "kernel_shape = [3], strides = [3]"),  # places that no window sees
    ((2, 8), "kernel_shape = [3], strides = [3], ceil_mode = 1"),
    ((2, 8), "kernel_shape = [3], strides = [3], pads = [1, 2], count_include_pad = 1"),
    ((2, 7), "kernel_shape = [3], strides = [3], pads = [2, 0]"),
    ((2, 6, 7), "kernel_shape = [2, 3], strides = [2, 3]"),
    ((2, 7, 7), "kernel_shape = [7, 7], strides = [7, 7]"),
    ((2, 5, 4), "kernel_shape = [1, 1]"),
    # at stride 1: an average pool again
    ((2, 7), "kernel_shape = [3]"),
    ((2, 7), "kernel_shape = [4], pads = [1, 3]"),
    ((2, 7), "kernel_shape = [4], pads = [1, 3], count_include_pad = 1"),
    ((2, 6, 5), "kernel_shape = [3, 3], pads = [1, 1, 1, 1]"),
    ((2, 6, 5), "kernel_shape = [3, 2], pads = [2, 0, 1, 1], count_include_pad = 1"),
    ((2, 4, 3, 5), "kernel_shape = [3, 2, 3], pads = [1, 0, 2, 1, 1, 0]"),
    # the rest: scattered
    ((2, 9), "kernel_shape = [3], strides = [2]"),
    ((2, 9), "kernel_shape = [2], strides = [3]"),
    ((2, 9), "kernel_shape = [3], dilations = [2], pads = [2, 1]"),
    ((2, 9), "kernel_shape = [3], strides = [2], dilations = [2], pads = [1, 2], count_include_pad = 1"),
    ((2, 8, 9), "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]"),
    ((2, 8, 9), "kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1"),
    ((2, 8, 9), "kernel_shape = [3, 4], strides = [2, 1], pads = [0, 2, 1, 3], ceil_mode = 1, count_include_pad = 1"),
    ((2, 4, 6, 5), "kernel_shape = [2, 2, 2], strides = [2, 2, 2]"),
    ((2, 5, 4, 4), "kernel_shape = [3, 2, 2], strides = [2, 1, 2], pads = [1, 0, 1, 1, 1, 0], ceil_mode = 1"),
    ((2, 8, 7), 'kernel_shape = [3, 2], auto_pad = "VALID", strides = [2, 1]'),
    *(
        ((2, 8, 7), f'kernel_shape = [{k}, {k}], auto_pad = "SAME_{side}", strides = [{s}, {s}], count_include_pad = {p}')
        for side, k, s, p in itertools.product(("UPPER", "LOWER"), (3, 4), (1, 2, 3), (0, 1))
    ),
]
LETTERS = "CHWD"


def model(op: str, case: Case, sizes: str = "static", dtype: str = "float") -> onnx.ModelProto:
    """`y = op (x)`; sizes: static, dynamic (all of them symbolic, channels too), or all static."""
    shape, attributes = case
    x = [LETTERS[axis] if sizes == "dynamic" else str(size) for axis, size in enumerate(shape)]
    y = [x[0], *(f"Y{axis}" for axis in range(1, len(shape)))]
    batch = "3" if sizes == "all static" else "N"
    text = f"g ({dtype}[{', '.join([batch, *x])}] x) => ({dtype}[{', '.join([batch, *y])}] y)"
    return laws.model(f"{text} {{ y = {op} {f'<{attributes}>' if attributes else ''} (x) }}")


def data(case: Case, dtype: type = np.float32) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(2)
    x, r = rng.standard_normal((2, 3, *case[0])).astype(dtype)
    return {"x": x}, {"x": r}


@pytest.mark.parametrize("sizes", ["static", "dynamic", "all static"])
@pytest.mark.parametrize("case", POOLS, ids=str)
def test_average_pool(case: Case, sizes: str) -> None:
    laws.check(model("AveragePool", case, sizes), *data(case), references=sizes != "all static")
