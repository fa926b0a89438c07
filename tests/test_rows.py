"""Rows of samples, references and targets: what is computed before they are repeated equals what is computed after."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import laws
import numpy as np
import onnx
import pytest

from onnxlift import rewrite
from onnxlift.functions import absolute, clip, concat, maximum, reduce_mean, reduce_sum, shape_of, where
from onnxlift.graph import Graph
from onnxlift.rows import REFERENCES, SAMPLES, TARGETS, Factor, RowEmitter, Rows
from onnxlift.tensor import Tensor

RNG = np.random.default_rng(5)
N, K, T = 3, 2, 4
TEXT = """g (float[N, 5, W] x, float[references, 5, W] r, float[4, 5, 1] t, float[rows, 5, W] m)
    => (float[N, 5, W] y) { y = Abs (x) }"""


def numbers(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


FEED = {"x": numbers(N, 5, 6), "r": numbers(K, 5, 6), "t": numbers(T, 5, 1), "m": numbers(N * K * T, 5, 6)}
X, R, TT, M = (
    FEED["x"][:, None, None],
    FEED["r"][None, :, None],
    FEED["t"][None, None],
    FEED["m"].reshape(N, K, T, 5, 6),
)
ONE, SMALL = numbers(1, 5, 1), numbers(6)

CASES: dict[str, tuple[Callable[[SimpleNamespace], Tensor], np.ndarray, set[str]]] = {
    "two runs": (lambda v: absolute(v.x) + absolute(v.r), abs(X) + abs(R), {"Expand"}),
    "with a multiplier": (
        lambda v: maximum(v.x, v.r) / (absolute(v.x - v.r) + 1) * v.m,
        np.maximum(X, R) / (abs(X - R) + 1) * M,
        set(),
    ),
    "with one row": (lambda v: (v.x - v.one) * v.m, (X - ONE) * M, set()),
    "with fewer axes": (lambda v: clip(v.r * v.small, 0, 1) * v.m, np.clip(R * SMALL, 0, 1) * M, set()),
    "a choice": (lambda v: where(v.x > v.r, v.t, 0.0) * v.m, np.where(X > R, TT, 0) * M, set()),
    "sums": (lambda v: reduce_sum(v.x * v.r, [1]) * v.m, (X * R).sum(3, keepdims=True) * M, set()),
    "sums without their axis": (
        lambda v: reduce_sum(v.x * v.t, [2], keepdims=False),
        (X * TT).sum(4),
        {"Expand"},
    ),
    "a mean of rows": (lambda v: reduce_mean(v.x, [0]) * v.m, X.mean(0, keepdims=True) * M, {"Expand"}),
    "another operator": (
        lambda v: concat([v.x, v.r], axis=1),
        np.concatenate(np.broadcast_arrays(X, R), axis=3),
        {"Expand"},
    ),
}
"""What is computed of the values, and the operators that repeat rows for it."""


@pytest.mark.parametrize("name", CASES)
def test_what_is_computed_before_rows_are_repeated(name: str) -> None:
    compute, expected, repeats = CASES[name]
    graph = Graph(laws.model(TEXT))
    emitter = RowEmitter(graph)
    x, r, t, m = (emitter.tensor(name) for name in FEED)
    factors = {SAMPLES: Factor("N", shape_of(x, 0, 1)), REFERENCES: Factor("references", shape_of(r, 0, 1))}
    rows = Rows(emitter, "rows", factors | {TARGETS: Factor(T, emitter.ints([T]))})
    placed = {"x": rows.place(x, SAMPLES), "r": rows.place(r, REFERENCES), "t": rows.place(t, TARGETS)}
    constants = {"one": emitter.constant(ONE, x.dtype), "small": emitter.constant(SMALL, x.dtype)}
    result = compute(SimpleNamespace(m=rows.place(m, *factors, TARGETS), **placed, **constants))
    mean = rows.mean(result)
    graph.set_outputs([result.handle, mean.handle])
    made = graph.export({})
    got = laws.run(made, FEED)
    whole = np.broadcast_to(expected, (N, K, T, *expected.shape[3:]))
    np.testing.assert_allclose(got[result.name].reshape(whole.shape), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got[mean.name], whole.mean(axis=1), rtol=1e-5, atol=1e-6)
    graph.set_outputs([result.handle])
    assert {node.op_type for node in graph.export({}).graph.node} & {"Expand", "Tile"} == repeats


@pytest.mark.parametrize("targets", [None, T])
def test_tensors_of_many_axes_are_repeated(targets: int | None) -> None:
    """Kernels of CUDA broadcast up to 8 axes: 7 and one for references, but none for targets as well."""
    shape = (2, 1, 2, 1, 2, 1)
    dims = ", ".join(map(str, shape))
    text = f"g (float[N, {dims}] x, float[references, {dims}] r) => (float[N, {dims}] y) {{ y = Abs (x) }}"
    graph = Graph(laws.model(text))
    emitter = RowEmitter(graph)
    x, r = emitter.tensor("x"), emitter.tensor("r")
    factors = {SAMPLES: Factor("N", shape_of(x, 0, 1)), REFERENCES: Factor("references", shape_of(r, 0, 1))}
    factors |= {TARGETS: Factor(T, emitter.ints([T]))} if targets else {}
    rows = Rows(emitter, "rows", factors)
    product = rows.place(x, SAMPLES) * rows.place(r, REFERENCES)
    graph.set_outputs([product.handle])
    made = graph.export({})
    assert ("Expand" in {node.op_type for node in made.graph.node}) == bool(targets)
    feed = {"x": numbers(N, *shape), "r": numbers(K, *shape)}
    expected = (feed["x"][:, None] * feed["r"]).reshape(N * K, *shape)
    np.testing.assert_array_equal(laws.run(made, feed)[product.name], np.repeat(expected, targets or 1, axis=0))


def test_references_do_not_repeat_activations() -> None:
    """K shared references: nothing of the size of an activation is written for them but what differs per pair."""
    text = """g (float[N, 2, 9] x) => (float[N, 3] y) {
        a = Conv (x, w) h = Relu (a) s = Sigmoid (h) p = GlobalAveragePool (s) f = Flatten (p) y = Gemm (f, v)
    }"""
    model = laws.model(text, w=numbers(4, 2, 3), v=numbers(4, 3))
    made = {kind: rewrite(model, target=1, reference=kind) for kind in ("paired", "shared", "grouped")}
    ops = {kind: [node.op_type for node in explainer.graph.node] for kind, explainer in made.items()}
    assert "Tile" not in [*ops["shared"], *ops["grouped"]]
    expands = {kind: found.count("Expand") for kind, found in ops.items()}
    assert expands["grouped"] == expands["paired"]
    assert expands["shared"] == expands["paired"] + 1, "target_reference, a number for each sample"


def test_the_mean_over_a_path_is_taken_before_the_operators_behind_the_input() -> None:
    text = """g (float[N, 2, 9] x) => (float[N, 3] y) {
        n = Mul (x, scale) a = Conv (n, w) h = Relu (a) p = GlobalAveragePool (h) f = Flatten (p) b = Gemm (f, v)
        z = ReduceMean (x, places) c = Flatten (z) d = Tanh (c) e = Gemm (d, u) y = Add (b, e)
    }"""
    places, scale = np.int64([2]), np.float32([[[2.0], [3.0]]])
    model = laws.model(text, w=numbers(4, 2, 3), v=numbers(4, 3), u=numbers(2, 3), places=places, scale=scale)
    feed = {"x": numbers(N, 2, 9), "x_reference": numbers(K, 2, 9)}
    steps = 7
    explainer = rewrite(model, target=[1, 2], reference="shared", rule=f"integrated-gradients:{steps}")
    contributions = laws.run(explainer, feed)["x_contributions"]
    names = ("a/multiplier", "n/multiplier")
    explainer.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in names)
    got = laws.run(explainer, feed)
    assert len(got["a/multiplier"]) == N * K * steps * 2, "behind the nonlinearity"
    assert len(got["n/multiplier"]) == N * K * 2, "in front of the convolution"
    for index, target in enumerate((1, 2)):
        expected = np.zeros_like(feed["x"], dtype=np.float64)
        for r in feed["x_reference"]:
            for k in range(steps):
                point = r + (k + 0.5) / steps * (feed["x"] - r)
                gradient = rewrite(model, target=target, rule="gradient", reference="zeros")
                m = laws.run(gradient, {"x": point.astype(np.float32)})["x_contributions"]
                expected += m * (feed["x"] - r) / steps / K
        np.testing.assert_allclose(contributions[:, index], expected, rtol=1e-4, atol=1e-5)
