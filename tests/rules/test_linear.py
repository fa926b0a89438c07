"""The linear rule: sums, reductions, batch normalisation and their relatives."""

from __future__ import annotations

import laws
import numpy as np
import onnx
import pytest

import onnxlift

RNG = np.random.default_rng(5)
X, R = (RNG.standard_normal((3, 4, 5)).astype(np.float32) for _ in range(2))
C = RNG.standard_normal((4, 1)).astype(np.float32)

# operator -> bodies of a graph `x [N, 4, 5] -> y`
CASES: dict[str, list[str]] = {
    "Add": ["y = Add (x, c)", "y = Add (c, x)", "y = Add (x, x)"],
    "Sub": ["y = Sub (x, c)", "y = Sub (c, x)"],
    "Sum": ["y = Sum (x, c, x)", "y = Sum (x)"],
    "Mean": ["y = Mean (x, c, x)"],
    "Neg": ["y = Neg (x)"],
    "ReduceSum": [
        "y = ReduceSum <keepdims = 1> (x, last)",
        "y = ReduceSum <keepdims = 0> (x, both)",
        "y = ReduceSum <keepdims = 0, noop_with_empty_axes = 1> (x)",
    ],
    "ReduceMean": ["y = ReduceMean <keepdims = 1> (x, last)", "y = ReduceMean <keepdims = 0> (x, both)"],
    "BatchNormalization": ["y = BatchNormalization <epsilon = 0.01> (x, s, b, mean, var)"],
    "CumSum": ["y = CumSum (x, one)", "y = CumSum <exclusive = 1, reverse = 1> (x, one)"],
}
ONES = {
    "c": C,
    "last": np.array([-1], np.int64),
    "both": np.array([1, 2], np.int64),
    "one": np.array(1, np.int64),
    "s": np.array([1, -2, 0.5, 3], np.float32),
    "b": np.array([1, 2, 3, 4], np.float32),
    "mean": np.array([0, 1, 0.5, -1], np.float32),
    "var": np.array([1, 0.1, 2, 1e-3], np.float32),
}
OPERATORS = (*CASES, "Scaler")


def model(body: str, sizes: str = "N, 4, 5", dtype: str = "float") -> onnx.ModelProto:
    used = {name: value for name, value in ONES.items() if f" {name}" in body or f"({name}" in body}
    return laws.model(f"g ({dtype}[{sizes}] x) => ({dtype} y) {{ {body} }}", **used)


@pytest.mark.parametrize("body", [body for bodies in CASES.values() for body in bodies])
@pytest.mark.parametrize("sizes", ["N, 4, 5", "N, C, L", "3, 4, 5"])
def test_laws(body: str, sizes: str) -> None:
    laws.check(model(body, sizes), {"x": X}, {"x": R}, references=sizes != "3, 4, 5")


def test_two_inputs_that_broadcast_in_both_directions() -> None:
    add = laws.model("g (float[N, 4, 1] a, float[N, 1, 5] b) => (float y) { y = Add (a, b) }")
    rng = np.random.default_rng(0)
    x, r = (
        {"a": rng.standard_normal((3, 4, 1)).astype(np.float32), "b": rng.standard_normal((3, 1, 5)).astype(np.float32)}
        for _ in range(2)
    )
    laws.check(add, x, r)
    unknown = laws.model("g (float[N, p, q] a, float[N, s, t] b) => (float[N, u, v] y) { y = Add (a, b) }")
    laws.check(unknown, x, r)


def test_a_lower_rank_is_summed_back() -> None:
    """Without a common batch axis there is one gap for everything."""
    add = laws.model("g (float[4, 5] a, float[5] b) => (float y) { y = Sub (a, b) }")
    rng = np.random.default_rng(0)
    x, r = (
        {"a": rng.standard_normal((4, 5)).astype(np.float32), "b": rng.standard_normal(5).astype(np.float32)}
        for _ in range(2)
    )
    assert laws.check(add, x, r)["completeness_gap"].shape == ()


def test_reduction_over_everything() -> None:
    total = laws.model("g (float[4, 5] x) => (float y) { y = ReduceMean <keepdims = 0> (x) }")
    laws.check(total, {"x": X[0]}, {"x": R[0]})


@pytest.mark.parametrize(("scale", "offset"), [([2.0], [1.0]), ([1.0, 2.0, -3.0], [0.0, 1.0, 2.0])])
def test_scaler_of_scikit_learn(scale: list[float], offset: list[float]) -> None:
    node = onnx.helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", scale=scale, offset=offset)
    info = [onnx.helper.make_tensor_value_info(name, 1, ["N", 3]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", info[:1], info[1:])
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("ai.onnx.ml", 1)]
    scaler = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    explainer = onnxlift.rewrite(scaler, target="weights", emit=("multipliers",))
    x, r, w = (RNG.standard_normal((4, 3)).astype(np.float32) for _ in range(3))
    got = laws.run(explainer, {"x": x, "x_reference": r, "target_weights": w})
    np.testing.assert_allclose(got["x_multipliers"], w * np.float32(scale), rtol=1e-6)
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)
