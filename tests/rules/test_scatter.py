"""Scatters: what a place gets is shared by the values that meet there."""

from __future__ import annotations

import laws
import numpy as np
import onnx
import pytest

import onnxlift

RNG = np.random.default_rng(19)
X, R = (RNG.standard_normal((3, 4, 6)).astype(np.float32) for _ in range(2))
REDUCTIONS = ("none", "add", "mul", "max", "min")
OPERATORS = ("ScatterElements", "ScatterND")

Arrays = dict[str, np.ndarray]


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def pair(seed: int, levels: int, *shape: int) -> list[np.ndarray]:
    """x and r; with `levels`, of so few values that ties and zeros abound."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, levels, (2, *shape)) - levels // 2 if levels else rng.standard_normal((2, *shape))
    return list(values.astype(np.float32))


# name -> (axis, shape of data, indices)
ELEMENTS: dict[str, tuple[int, tuple[int, ...], np.ndarray]] = {
    "apart": (2, (3, 4, 6), np.tile(ints(4, 0), (3, 4, 1))),
    "meeting": (2, (3, 4, 6), RNG.integers(0, 3, (3, 4, 3))),
    "from the end": (1, (3, 4, 2), RNG.integers(-4, 4, (3, 5, 2))),
    "in a corner": (2, (3, 4, 6), RNG.integers(0, 6, (3, 2, 2))),
    "one place": (1, (3, 5), np.full((3, 4), 2)),
}
# name -> (shape of data, indices)
ROWS: dict[str, tuple[tuple[int, ...], np.ndarray]] = {
    "rows": ((5, 2), np.array([[1], [4], [0]])),
    "meeting rows": ((4, 2), np.array([[1], [1], [-1], [1], [0]])),
    "elements": ((4, 3), RNG.integers(0, 3, (6, 2))),
    "a table of elements": ((3, 3, 4), RNG.integers(-2, 2, (2, 3, 3))),
    "a table of rows": ((3, 2, 2), RNG.integers(-2, 2, (2, 2, 2))),
}


def scatter(
    op: str, axis: int | None, shape: tuple[int, ...], places: np.ndarray, reduction: str, constant: bool = True
) -> tuple[onnx.ModelProto, tuple[int, ...]]:
    """The model with data d and updates u, and the shape of the updates."""
    lead = "N" if axis is not None and not constant else str(shape[0])
    updates = places.shape if axis is not None else (*places.shape[:-1], *shape[places.shape[-1] :])

    def dims(sizes: tuple[int, ...]) -> str:
        return ", ".join(map(str, (lead if axis is not None else sizes[0], *sizes[1:])))

    attributes = f'reduction = "{reduction}"' + (f", axis = {axis}" if axis is not None else "")
    given = "" if constant else f", int64[{dims(places.shape)}] i"
    inputs = f"float[{dims(shape)}] d, float[{dims(updates)}] u{given}"
    text = f"g ({inputs}) => (float y) {{ y = {op} <{attributes}> (d, i, u) }}"
    return laws.model(text, **({"i": places} if constant else {})), updates


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ELEMENTS)
def test_scatter_elements(kind: str, reduction: str) -> None:
    axis, shape, places = ELEMENTS[kind]
    for levels in (0, 3):
        model, updates = scatter("ScatterElements", axis, shape, places, reduction, constant=levels == 0)
        others = {} if levels == 0 else {"i": places}
        (d, d0), (u, u0) = pair(3, levels, *shape), pair(4, levels, *updates)
        several = kind == "meeting" and reduction in ("none", "max")
        laws.check(model, {"d": d, "u": u}, {"d": d0, "u": u0}, others=others, references=several, rtol=5e-5)
    alone(model, d, d0, u, u0, others)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ROWS)
def test_scatter_nd(kind: str, reduction: str) -> None:
    shape, places = ROWS[kind]
    for levels in (0, 3):
        model, updates = scatter("ScatterND", None, shape, places, reduction, constant=levels == 0)
        others = {} if levels == 0 else {"i": places}
        (d, d0), (u, u0) = pair(5, levels, *shape), pair(8, levels, *updates)
        laws.check(model, {"d": d, "u": u}, {"d": d0, "u": u0}, others=others, rtol=5e-5)
    alone(model, d, d0, u, u0, others)


def alone(model: onnx.ModelProto, d: np.ndarray, d0: np.ndarray, u: np.ndarray, u0: np.ndarray, others: Arrays) -> None:
    """Only the data are attributed to, or only the updates."""
    laws.check(model, {"d": d}, {"d": d0}, others={"u": u, **others}, references=False, rtol=5e-5)
    laws.check(model, {"u": u}, {"u": u0}, others={"d": d, **others}, references=False, rtol=5e-5)


@pytest.mark.parametrize("reduction", ["none", "max", "min"])  # ONNX Runtime has these alone
def test_scatter_of_half_precision(reduction: str) -> None:
    axis, shape, places = ELEMENTS["meeting"]
    text = f'y = ScatterElements <axis = {axis}, reduction = "{reduction}"> (d, i, u)'
    model = laws.model(f"g (float16[3, 4, 6] d, float16[3, 4, 3] u) => (float16 y) {{ {text} }}", i=places)
    (d, d0), (u, u0) = (
        [value.astype(np.float16) for value in pair(seed, 0, *dims)] for seed, dims in ((7, shape), (8, places.shape))
    )
    laws.check(model, {"d": d, "u": u}, {"d": d0, "u": u0}, rtol=5e-3)


def test_scatter_of_opset_9() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 9]> g (float[2, 3] d, int64[2, 1] i, float[2, 1] u) => (float[2, 3] y) '
        "{ y = Scatter <axis = 1> (d, i, u) }"
    )
    (d, d0), (u, u0) = pair(9, 0, 2, 3), pair(10, 0, 2, 1)
    explainer = onnxlift.rewrite(model, target="weights", emit=("multipliers",))
    w, places = pair(11, 0, 2, 3)[0], np.array([[2], [0]])
    feed = {"d": d, "u": u, "d_reference": d0, "u_reference": u0, "i": places, "target_weights": w}
    got = laws.run(explainer, feed)
    np.testing.assert_array_equal(got["u_multipliers"], np.take_along_axis(w, places, 1))
    np.put_along_axis(w, places, 0, 1)
    np.testing.assert_array_equal(got["d_multipliers"], w)


@pytest.mark.parametrize("count", [7, 8, 12])
def test_products_of_many_are_complete_and_nearly_shapley_values(count: int) -> None:
    """More updates of one place than Gauss' points are exact for."""
    text = 'y = ScatterElements <axis = 0, reduction = "mul"> (d, i, u)'
    model = laws.model(f"g (float[2] d, float[{count}] u, int64[{count}] i) => (float[2] y) {{ {text} }}")
    rng = np.random.default_rng(count)
    d, d0, u, u0 = (rng.uniform(0.5, 1.5, n).astype(np.float32) for n in (2, 2, count, count))
    w = np.float32([2, -3])
    explainer = onnxlift.rewrite(model, target="weights", emit=("multipliers", "contributions"))
    feed = {"d": d, "u": u, "d_reference": d0, "u_reference": u0, "i": np.ones(count, np.int64), "target_weights": w}
    got = laws.run(explainer, feed)
    factors, others = np.array([d[1], *u], np.float64), np.array([d0[1], *u0], np.float64)
    np.testing.assert_allclose(np.sum(got["completeness_gap"]), 0, atol=1e-5 * factors.prod())
    for k in range(count + 1):
        rest = [
            np.polynomial.Polynomial([r, x - r]) for j, (x, r) in enumerate(zip(factors, others, strict=True)) if j != k
        ]
        expected = w[1] * np.prod(rest).integ()(1)
        found = got["d_multipliers"][1] if k == 0 else got["u_multipliers"][k - 1]
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(got["d_multipliers"][0], w[0])


def test_a_row_of_a_cache_that_the_model_writes() -> None:
    """As exporters write x[:, 1] = u, with the rows counted at run time."""
    body = """n = Shape <start = 0, end = 1> (x) k = Squeeze (n) rows = Range (zero, k, one) r = Unsqueeze (rows, a)
        c = Expand (b, n) t = Unsqueeze (c, a) i = Concat <axis = 1> (r, t) u = ReduceSum <keepdims = 0> (x, b)
        y = ScatterND (x, i, u)"""
    constants = {"zero": np.array(0), "one": np.array(1), "a": ints(1), "b": ints(1)}
    model = laws.model(f"g (float[N, 4, 6] x) => (float[N, 4, 6] y) {{ {body} }}", **constants)
    laws.check(model, {"x": X}, {"x": R})
