"""However an exporter writes a network, its contributions are the same."""

from __future__ import annotations

import laws
import numpy as np
import pytest

import onnxlift

RNG = np.random.default_rng(21)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def f(value: float) -> np.ndarray:
    return np.float32(value)


CONV, BIAS = normal(6, 3, 3, 3), normal(6)
SCALE, SHIFT, MEAN = normal(6), normal(6), normal(6)
VARIANCE = abs(normal(6)) + f(0.1)
FACTOR = SCALE / np.sqrt(VARIANCE + f(1e-5))
IMAGE, ROWS, TOKENS = "float[N, 3, 8, 8] x", "float[N, 8] x", "float[N, 5, 8] x"
HEAD = normal(8, 4)

PAIRS: dict[str, tuple[str, tuple[str, dict[str, np.ndarray]], tuple[str, dict[str, np.ndarray]]]] = {
    "dense": (
        ROWS,
        ("h = Gemm (x, w, b) y = Relu (h)", {"w": HEAD, "b": BIAS[:4]}),
        ("m = MatMul (x, w) h = Add (m, b) z = Identity (h) y = Relu (z)", {"w": HEAD, "b": BIAS[:4]}),
    ),
    "transposed weight": (
        ROWS,
        ("h = Gemm <transB = 1> (x, w) y = Tanh (h)", {"w": HEAD.T.copy()}),
        ("t = Transpose (w) h = MatMul (x, t) y = Tanh (h)", {"w": HEAD.T.copy()}),
    ),
    "batch normalisation": (
        IMAGE,
        (
            "c = Conv (x, w, b) n = BatchNormalization (c, s, o, mean, var) y = Relu (n)",
            {"w": CONV, "b": BIAS, "s": SCALE, "o": SHIFT, "mean": MEAN, "var": VARIANCE},
        ),
        (
            "c = Conv (x, w, b) y = Relu (c)",
            {"w": CONV * FACTOR[:, None, None, None], "b": (BIAS - MEAN) * FACTOR + SHIFT},
        ),
    ),
    "channels last": (
        IMAGE,
        (
            "c = Conv (x, w) r = Relu (c) p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r) y = Flatten (p)",
            {"w": CONV},
        ),
        (
            "a = Transpose <perm = [0, 2, 3, 1]> (x) b = Transpose <perm = [0, 3, 1, 2]> (a) c = Conv (b, w) "
            "d = Transpose <perm = [0, 2, 3, 1]> (c) r = Relu (d) e = Transpose <perm = [0, 3, 1, 2]> (r) "
            "p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (e) s = Shape (p) i = Gather (s, zero) "
            "j = Unsqueeze (i, zero1) k = Concat <axis = 0> (j, rest) y = Reshape (p, k)",
            {"w": CONV, "zero": np.array(0), "zero1": np.array([0]), "rest": np.array([-1])},
        ),
    ),
    "global pooling": (
        IMAGE,
        ("c = Conv (x, w) r = Elu (c) g = GlobalAveragePool (r) y = Flatten (g)", {"w": CONV}),
        ("c = Conv (x, w) r = Elu (c) y = ReduceMean <keepdims = 0> (r, axes)", {"w": CONV, "axes": np.array([2, 3])}),
    ),
    "gelu": (
        ROWS,
        ("y = Gelu (x)", {}),
        (
            "a = Div (x, root) e = Erf (a) b = Add (e, one) c = Mul (x, b) y = Mul (c, half)",
            {"root": f(2**0.5), "one": f(1), "half": f(0.5)},
        ),
    ),
    "hard swish": (
        ROWS,
        ("y = HardSwish (x)", {}),
        ("a = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Mul (x, a)", {}),
    ),
    "softplus with a threshold": (
        ROWS,
        ("y = Softplus (x)", {}),
        ("s = Softplus (x) g = Greater (x, t) y = Where (g, x, s)", {"t": f(20)}),
    ),
    "layer normalisation": (
        TOKENS,
        (
            "y = LayerNormalization <axis = -1, epsilon = 1e-5> (x, g, b)",
            {"g": SCALE[[0, 1, 2, 3, 4, 5, 0, 1]], "b": HEAD[:, 0].copy()},
        ),
        (
            "mu = ReduceMean <keepdims = 1> (x, last) a = Sub (x, mu) sq = Pow (a, two) "
            "v = ReduceMean <keepdims = 1> (sq, last) e = Add (v, eps) s = Sqrt (e) n = Div (a, s) "
            "m = Mul (n, g) y = Add (m, b)",
            {
                "last": np.array([-1]),
                "two": f(2),
                "eps": f(1e-5),
                "g": SCALE[[0, 1, 2, 3, 4, 5, 0, 1]],
                "b": HEAD[:, 0].copy(),
            },
        ),
    ),
    "attention scores": (
        TOKENS,
        ("t = Transpose <perm = [0, 2, 1]> (x) m = MatMul (x, t) s = Mul (m, c) y = Softmax (s)", {"c": f(0.3)}),
        (
            "t = Transpose <perm = [0, 2, 1]> (x) a = Mul (x, c) m = MatMul (a, t) s = Softmax (m) n = IsNaN (s) "
            "y = Where (n, zero, s)",
            {"c": f(0.3), "zero": f(0)},
        ),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_same_contributions(name: str) -> None:
    header, *bodies = PAIRS[name]
    sizes = [int(size) if size.isdigit() else 4 for size in header[6 : header.index("]")].split(", ")]
    x, r = normal(*sizes), normal(*sizes)
    results = []
    for body, constants in bodies:
        model = laws.model(f"g ({header}) => (float y) {{ {body} }}", **constants)
        shape = laws.run(model, {"x": x})["y"].shape
        weights = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        explainer = onnxlift.rewrite(model, target="weights", pre_activation=False)
        results.append(laws.run(explainer, {"x": x, "x_reference": r, "target_weights": weights}))
    one, other = (result["x_contributions"] for result in results)
    np.testing.assert_allclose(one, other, atol=2e-5 * abs(one).max())
    assert abs(results[0]["target_output"] - results[0]["target_reference"]).min() > 1e-3
