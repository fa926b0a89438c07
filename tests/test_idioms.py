"""Nodes that the normal form says otherwise, because shape inference or the rules understand that better."""

from __future__ import annotations

import laws
import numpy as np
import onnx
import pytest
from onnx_text import floats, parse, same

from onnxlift import rewrite
from onnxlift.model import normal_form

RNG = np.random.default_rng(12)

ROOTS = {
    "reciprocal": "s = Sqrt (e) q = Reciprocal (s) y = Mul (x, q)",
    "one over": "s = Sqrt (e) q = Div (one, s) y = Mul (q, x)",
    "power": "q = Pow (e, half) y = Mul (x, q)",
    "two powers": "s = Sqrt (e) q = Pow (s, minus) y = Mul (x, q)",
    "quotient": "s = Sqrt (e) y = Div (x, s)",
}


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def normalised(case: str) -> onnx.ModelProto:
    """x / sqrt(mean x^2 + eps), as exporters write it."""
    body = f"v = Mul (x, x) m = ReduceMean (v, axes) e = Add (m, eps) {ROOTS[case]}"
    constants = {"one": 1, "half": -0.5, "minus": -1, "eps": 1e-12}
    words = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    used = {name: np.float32(value) for name, value in constants.items() if name in words}
    return laws.model(f"g (float[N, 64] x) => (float[N, 64] y) {{ {body} }}", axes=np.int64([1]), **used)


@pytest.mark.parametrize("case", ROOTS)
def test_a_product_with_a_reciprocal_gets_the_rule_of_a_quotient(case: str) -> None:
    """Also through the power -1/2 of `two powers`: there the root itself is the denominator."""
    model = normalised(case)
    x, r = RNG.standard_normal((2, 3, 64)).astype(np.float32)
    expected = laws.run(rewrite(normalised("quotient"), target=3), {"x": x, "x_reference": r})["x_contributions"]
    for reference in (np.zeros_like(x), r):
        got = laws.run(rewrite(model, target=3), {"x": x, "x_reference": reference})
        np.testing.assert_allclose(got["y"], laws.run(model, {"x": x})["y"], rtol=1e-6)
        np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)
        assert np.abs(got["x_contributions"]).sum() < 100  # with the midpoint rule they were 1e6 times larger
    np.testing.assert_allclose(got["x_contributions"], expected, atol=1e-5)


def test_reciprocals_of_both_signs() -> None:
    product, quotient = (
        laws.model(f"g (float[N, 4] x, float[N, 4] b) => (float[N, 4] y) {{ {body} }}")
        for body in ("q = Reciprocal (b) y = Mul (q, x)", "y = Div (x, b)")
    )
    feed = {name: RNG.standard_normal((3, 4)).astype(np.float32) for name in ("x", "x_reference", "target_weights")}
    feed |= {"b": np.float32([[2, -1, 3, -4]] * 3), "b_reference": np.float32([[1, -2, -3, 4]] * 3)}
    got, expected = (laws.run(rewrite(model, target="weights"), feed) for model in (product, quotient))
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)
    for name in ("x_contributions", "b_contributions"):  # where the signs agree it is the quotient's rule
        np.testing.assert_allclose(got[name][:, :2], expected[name][:, :2], rtol=1e-4)


SQUEEZE = """g (float[N, 4, T] x) => (float[N, 4] y) {
    s = Shape (x)
    d = Gather (s, last)
    c = Equal (d, one)
    q = If (c) <then_branch = a () => (float[N, 4] p) { p = Squeeze (x, axes) },
                else_branch = b () => (float[N, 4, T] r) { r = Identity (x) }>
    y = Tanh (q)
}"""


def squeezed(one: int) -> onnx.ModelProto:
    constants = {"last": np.int64(2), "axes": np.int64([2]), "one": np.int64(one)}
    return laws.model(SQUEEZE, **constants)


def test_squeeze_where_the_extent_is_one_is_squeeze() -> None:
    model = squeezed(1)
    assert "If" not in ops(normal_form(model))
    x, r = (RNG.standard_normal((3, 4, 1)).astype(np.float32) for _ in range(2))
    got = laws.run(rewrite(model, target=1), {"x": x, "x_reference": r})
    np.testing.assert_array_equal(got["y"], laws.run(model, {"x": x})["y"])
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-6)


def test_another_condition_stays_an_if() -> None:
    assert "If" in ops(normal_form(squeezed(2)))


def test_a_slope_before_opset_7_is_of_channels() -> None:
    text = """<ir_version: 3, opset_import: ["" : 6]>
    g (float[2, 3, 4] x) => (float[2, 3, 4] y) <float[3] s = {0.25, 0.5, 0.1}> { y = PRelu (x, s) }"""
    x = RNG.standard_normal((2, 3, 4)).astype(np.float32)
    slope = np.float32([0.25, 0.5, 0.1])[:, None]
    got = laws.run(normal_form(onnx.parser.parse_model(text)), {"x": x})["y"]
    np.testing.assert_allclose(got, np.where(x < 0, slope * x, x), rtol=1e-6)


def test_a_spectrum_is_one_sided_by_default() -> None:
    text = "g (float[N, 16, 1] x) => (float[N, F, K, 2] y) { y = STFT (x, step, , length) }"
    model = laws.model(text, step=np.int64(4), length=np.int64(8))
    x, r = (RNG.standard_normal((2, 16, 1)).astype(np.float32) for _ in range(2))
    assert laws.run(model, {"x": x})["y"].shape == (2, 3, 5, 2)
    got = laws.run(rewrite(model, target=(0, 1, 0)), {"x": x, "x_reference": r})
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_a_transposed_half_is_cast_before_it_is_transposed(kind: str) -> None:
    """ONNX Runtime 1.31 crashes on some of these models, so that only their normal form runs."""
    body = "t = Transpose <perm = [1, 0, 2]> (x)\nc = Cast <to = 1> (t)\ny = MatMul(c, w)\nz = Relu(t)"
    weight = floats(4, 5)
    result = normal_form(parse(body, f"{kind}[N, 3, 4] x", f"float[3, N, 5] y, {kind}[3, N, 4] z", w=weight))
    assert ops(result) == ["Transpose", "Cast", "Transpose", "MatMul", "Relu"]
    assert normal_form(result) == result
    if kind == "float16":
        x = floats(2, 3, 4).astype(np.float16)
        got = laws.run(result, {"x": x})
        np.testing.assert_allclose(got["y"], x.transpose(1, 0, 2).astype(np.float32) @ weight, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(got["z"], np.maximum(x.transpose(1, 0, 2), 0))


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_integers_are_searched_as_floats(op: str) -> None:
    x = RNG.integers(-(2**31), 2**31 - 1, (3, 7)).astype(np.int32)
    x[0, 2:4] = 2**31 - 1, 2**31 - 2  # alike in float32
    x[1, 2:4] = -(2**31), -(2**31) + 1
    result = same(parse(f"y = {op} <axis = 1> (x)", "int32[N, 7] x", "int64[N, 1] y"), x=x)
    assert ops(result) == ["Cast", op]


def test_a_sum_over_no_axes_is_left_out() -> None:
    body = "n = Equal (c, five) i = NonZero (n) a = Reshape (i, minus) y = ReduceSum <noop_with_empty_axes = 1> (x, a)"
    constants = {"c": np.int64([3, 4]), "five": np.int64([5]), "minus": np.int64([-1])}
    assert ops(same(parse(body, **constants))) == ["Identity"]
    constants["five"] = np.int64([4])
    summed = same(parse(body, outputs="float[N, 1] y", **constants))
    assert ops(summed) == ["ReduceSum"]
    assert onnx.numpy_helper.to_array(summed.graph.initializer[0]).tolist() == [1]
