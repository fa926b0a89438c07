"""Products with a vector, and ArrayFeatureExtractor: said by operators that ONNX Runtime and the rules know better."""

from __future__ import annotations

import laws
import numpy as np
import onnx
import pytest

from onnxlift import rewrite

RNG = np.random.default_rng(6)


def test_a_vector_behind_a_transposition_that_others_read_too() -> None:
    """ONNX Runtime takes the Transpose into the product, and gets it wrong where b is a vector."""
    text = """g (float[N, 5, 4] x) => (float[N, 4] y) {
        t = Transpose <perm = [0, 2, 1]> (x) k = Tanh (t) v = MatMul (k, b) s = ReduceSum <keepdims = 0> (k, axes)
        y = Mul (v, s)
    }"""
    b = RNG.standard_normal(5).astype(np.float32)
    model = laws.model(text, b=b, axes=np.int64([2]))
    x, r = (RNG.standard_normal((3, 5, 4)).astype(np.float32) for _ in range(2))
    got = laws.run(rewrite(model, target=2), {"x": x, "x_reference": r})
    k = np.tanh(x.transpose(0, 2, 1).astype(np.float64))
    np.testing.assert_allclose(got["y"], (k @ b) * k.sum(axis=2), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)


@pytest.mark.parametrize("shape", [(4,), (3, 4)])
def test_the_product_is_that_of_a_matrix(shape: tuple[int, ...]) -> None:
    """Of a vector with a vector nothing is changed."""
    sizes = ", ".join(map(str, shape))
    model = laws.model(f"g (float[{sizes}] x, float[4] b) => (float y) {{ y = MatMul (x, b) }}")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    x, r = ({"x": RNG.standard_normal(shape).astype("f"), "b": RNG.standard_normal(4).astype("f")} for _ in range(2))
    y = laws.run(model, x)["y"]
    weights = RNG.standard_normal(y.shape).astype(np.float32)
    feed = {**x, **{f"{name}_reference": value for name, value in r.items()}, "target_weights": weights}
    got = laws.run(rewrite(model, target="weights"), feed)
    np.testing.assert_allclose(got["y"], y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)
    middle = (x["b"] + r["b"]) / 2
    np.testing.assert_allclose(got["x_contributions"], weights[..., None] * middle * (x["x"] - r["x"]), atol=1e-5)


def test_features_at_places_that_the_data_decide() -> None:
    """The values of the nearest neighbours, as scikit-learn's models are exported."""
    text = """g (float[N, 4] x) => (float y) {
        v, i = TopK <axis = 1> (x, two) f = Flatten <axis = 0> (i) y = Relu (x)
    }"""
    model = laws.model(text, two=np.int64([2]), table=RNG.standard_normal((1, 4)).astype(np.float32))
    extract = onnx.helper.make_node("ArrayFeatureExtractor", ["table", "f"], ["y"], domain="ai.onnx.ml")
    model.graph.node[2].CopyFrom(extract)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 3))
    x, r = (RNG.standard_normal((1, 4)).astype(np.float32) for _ in range(2))
    y, y0 = (laws.run(model, {"x": value})["y"] for value in (x, r))
    weights = np.ones_like(y)
    explainer = rewrite(model, target="weights", inputs=["x"])
    got = laws.run(explainer, {"x": x, "x_reference": r, "target_weights": weights})
    np.testing.assert_allclose(got["x_contributions"].sum(), (y - y0).sum(), atol=1e-5)
