"""The closed-form examples of the papers: models, inputs, and the contributions worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import parser

import onnxlift

Values = Sequence[float]

TITLES = {
    "gradient-x-input": "gradient*input",
    "integrated-gradients:10": "IG-10",
    "rescale": "Rescale",
    "reveal-cancel": "RevealCancel",
    "liftpad": "LIFTPAD",
}


def build(text: str) -> onnx.ModelProto:
    """A model from ONNX text: `(inputs) => (outputs) <constants> { nodes }`."""
    return parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> net {text}')


# min(i1, i2) and the others as the papers write them, i1 and i2 being the columns of x.
SATURATION = build("""(float[N, 2] x) => (float[N, 1] y) <float[2, 1] w = {-1, -1}, float[1] one = {1}>
    { s = MatMul(x, w)  h = Add(one, s)  a = Relu(h)  y = Sub(one, a) }""")
THRESHOLD = build("""(float[N, 1] x) => (float[N, 1] y) <float[1] ten = {10}>
    { h = Sub(x, ten)  y = Relu(h) }""")
MINIMUM = build("""(float[N, 2] x) => (float[N, 1] y) <float[2, 1] first = {1, 0}, float[2, 1] minus = {1, -1}>
    { i1 = MatMul(x, first)  d = MatMul(x, minus)  h = Relu(d)  y = Sub(i1, h) }""")
SIGMOID = build("""(float[N, 2] x) => (float[N, 1] y) <float[2, 1] w = {1, 1}>
    { z = MatMul(x, w)  y = Sigmoid(z) }""")
SOFTMAX = build("""(float[N, 3] x) => (float[N, 3] y) <float[3, 3] w = {2, 0, 0, 3, 3, 3, 0, 1, 2}>
    { z = MatMul(x, w)  y = Softmax<axis = 1>(z) }""")
# Channels are the letters A, C, G, T. The first column of the filter is large for every letter, the second prefers G.
ONE_HOT = build("""(float[N, 4, 2] x) => (float[N, 1, 1] y)
    <float[1, 4, 2] w = {5, 0, 5, 0, 5, 3, 6, -1}, float[1] b = {-4}>
    { y = Conv(x, w, b) }""")
MAXIMUM = build("""(float[N, 3] x) => (float[N, 1] y) <int64[1] axis = {1}>
    { y = ReduceMax(x, axis) }""")


class Case(NamedTuple):
    """One input of one model.

    Attributes:
        title: what the table says.
        model: with an input x `[N, ...]` and one target neuron, or `options` that choose one.
        x: the input, without the batch axis.
        reference: as `x`, or a number for all of it.
        by_hand: the contributions to expect, as `x` flattened, by rule.
        options: further ones of `onnxlift.rewrite`.
    """

    title: str
    model: onnx.ModelProto
    x: list[Any]
    reference: float | Values
    by_hand: dict[str, Values]
    options: dict[str, Any] = {}  # noqa: RUF012 - read only


def everywhere(gradient: Values, ig: Values, rescale: Values, cancel: Values) -> dict[str, Values]:
    """Contributions by hand for the four rules that most tables compare."""
    return dict(zip(TITLES, [gradient, ig, rescale, cancel], strict=False))


def slope(z: float) -> float:
    """The derivative of the sigmoid."""
    return 1 / (math.exp(z) + 2 + math.exp(-z))


# IG-10 after the sigmoid: gradients at 0.05, 0.15 ... of the way to (100, 0) and (100, 100).
IG_ONE = sum(slope(100 * (k + 0.5) / 10) * 100 / 10 for k in range(10))
IG_BOTH = sum(slope(200 * (k + 0.5) / 10) * 100 / 10 for k in range(10))
BEFORE, AFTER = {"pre_activation": True}, {"pre_activation": False}

CASES = {
    "Saturation: y = 1 - relu(1 - i1 - i2)": [
        Case("(1, 1)", SATURATION, [1, 1], 0, everywhere([0, 0], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5])),
        Case("(0.5, 0)", SATURATION, [0.5, 0], 0, everywhere([0.5, 0], [0.5, 0], [0.5, 0], [0.5, 0])),
    ],
    "Thresholding: y = relu(x - 10)": [
        Case("9", THRESHOLD, [9], 0, everywhere([0], [0], [0], [0])),
        Case("10.001", THRESHOLD, [10.001], 0, everywhere([10.001], [0], [0.001], [0.001])),
        Case("12", THRESHOLD, [12], 0, everywhere([12], [2.4], [2], [2])),
    ],
    "Minimum: y = i1 - relu(i1 - i2)": [
        Case("(2, 1)", MINIMUM, [2, 1], 0, everywhere([0, 1], [0, 1], [0, 1], [0.5, 0.5])),
        Case("(1, 2)", MINIMUM, [1, 2], 0, everywhere([1, 0], [1, 0], [1, 0], [0.5, 0.5])),
    ],
    "After a sigmoid, and before it: y = sigmoid(x1 + x2)": [
        Case("(100, 0) after", SIGMOID, [100, 0], 0, everywhere([0, 0], [IG_ONE, 0], [0.5, 0], [0.5, 0]), AFTER),
        Case(
            "(100, 100) after", SIGMOID, [100, 100], 0, everywhere([0, 0], [IG_BOTH] * 2, [0.25] * 2, [0.25] * 2), AFTER
        ),
        Case("(100, 0) before", SIGMOID, [100, 0], 0, everywhere(*[[100, 0]] * 4), BEFORE),
        Case("(100, 100) before", SIGMOID, [100, 100], 0, everywhere(*[[100, 100]] * 4), BEFORE),
    ],
    "Before a softmax: x1, x2, x3 with weights (2, 3, 0) to class 1, (0, 3, 1) to class 2, (0, 3, 2) to class 3": [
        Case(
            f"(1, 1, 1), class {k + 1}",
            SOFTMAX,
            [1, 1, 1],
            0,
            {"rescale": plain, "liftpad": normalised},
            {"target": k},
        )
        for k, plain, normalised in [
            (0, [2, 3, 0], [4 / 3, 0, -1]),
            (1, [0, 3, 1], [-2 / 3, 0, 0]),
            (2, [0, 3, 2], [-2 / 3, 0, 1]),
        ]
    ],
    "One-hot input: a filter with the columns (5, 5, 5, 6) and (0, 0, 3, -1) over A, C, G, T": [
        Case(
            word,
            ONE_HOT,
            [[float(letter == word[0]), float(letter == word[1])] for letter in "ACGT"],
            0,
            {"rescale": plain, "liftpad": normalised},
            {"target": (0, 0)},
        )
        for word, plain, normalised in [
            ("AG", [5, 0, 0, 0, 0, 3, 0, 0], [-0.25, 0, 0, 0, 0, 2.5, 0, 0]),
            ("TT", [0, 0, 0, 0, 0, 0, 6, -1], [0, 0, 0, 0, 0, 0, 0.75, -1.5]),
        ]
    ],
    "Maximum: y = max(x1, x2, x3)": [
        Case(
            "uniform reference (0, 0, 0)",
            MAXIMUM,
            [1, 3, 2],
            0,
            everywhere(*[[0, 3, 0]] * 4) | {"liftpad": [0, 3, 0]},
        ),
        Case(
            "reference (2, 1, 0)",
            MAXIMUM,
            [1, 3, 2],
            [2, 1, 0],
            everywhere([0, 2, 0], [-0.3, 1.4, 0], [0, 1, 0], [0, 1, 0]) | {"liftpad": [0, 1, 0]},
        ),
        Case(
            "reference (5, 1, 0)",
            MAXIMUM,
            [1, 3, 2],
            [5, 1, 0],
            everywhere([0, 2, 0], [-2.8, 0.6, 0], [-2, 0, 0], [-2, 0, 0]) | {"liftpad": [0, -2, 0]},
        ),
    ],
}


def explain(model: onnx.ModelProto, rule: str, x: Any, reference: Any = 0.0, **options: Any) -> onnxlift.Explanation:
    """Explain rows of `x`, `[N, ...]`; those of the gradient family need not add up."""
    rows = np.asarray(x, dtype=np.float32)
    baked = {"x": np.broadcast_to(np.float32(reference), (1, *rows.shape[1:])).copy()}
    if model is ONE_HOT and rule == "liftpad":
        options["one_hot"] = {"x": 1}
    explainer = onnxlift.Explainer(model, rule=rule, reference=baked, progress=False, **options)
    return explainer(rows)
