"""Which axis counts samples, wherever it is moved or merged, and what is told where samples depend on each other."""

from __future__ import annotations

import laws
import numpy as np
import onnx
import pytest

from onnxlift import OptionError, rewrite

RNG = np.random.default_rng(21)
CONSTANTS = {
    "one": np.int64(1),
    "first": np.int64([0]),
    "merged": np.int64([-1, 3]),
    "apart": np.int64([-1, 2, 3]),
    "twice": np.int64([2, 1, 1]),
    "border": np.int64([1, 0, 0, 0, 0, 0]),
    "two": np.float32(2),
}

MIXED = {
    "softmax along the batch, moved": "t = Transpose <perm = [1, 0, 2]> (x) s = Softmax <axis = 1> (t) p = Mul (s, t) "
    "y = Transpose <perm = [1, 0, 2]> (p)",
    "sum along the batch, moved": "t = Transpose <perm = [1, 0, 2]> (x) s = CumSum (t, one) "
    "y = Transpose <perm = [1, 0, 2]> (s)",
    "softmax along an axis that holds it": "m = Reshape (x, merged) s = Softmax <axis = 0> (m) y = Reshape (s, apart)",
    "einsum": 'y = Einsum <equation = "abc,dbe->ace"> (x, x)',
    "matrix product": "a = Transpose <perm = [1, 0, 2]> (x) b = Transpose <perm = [1, 2, 0]> (x) p = MatMul (a, b) "
    "q = MatMul (p, a) y = Transpose <perm = [1, 0, 2]> (q)",
    "mean of the batch": "m = ReduceMean (x, first) y = Sub (x, m)",
}
"""Bodies of a graph x [N, 2, 3] -> y [?, ?, ?] that compute across samples."""

GROWN = {
    "tile": "y = Tile (x, twice)",
    "pad": 'y = Pad <mode = "edge"> (x, border)',
}
"""Those that add rows."""

KEPT = {
    "softmax along another axis, moved": "t = Transpose <perm = [1, 0, 2]> (x) s = Softmax <axis = 2> (t) "
    "p = Mul (s, t) y = Transpose <perm = [1, 0, 2]> (p)",
    "merged and parted": "m = Reshape (x, merged) s = Softmax <axis = 1> (m) p = Mul (s, m) y = Reshape (p, apart)",
    "einsum": 'y = Einsum <equation = "abc,abe->ace"> (x, x)',
    "rounded": "u = Mul (x, two) v = Round (u) y = Sin (v)",
}
"""Those that do not."""


def model(body: str, lead: str = "N") -> onnx.ModelProto:
    words = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    used = {name: value for name, value in CONSTANTS.items() if name in words}
    return laws.model(f"g (float[{lead}, 2, 3] x) => (float[A, B, C] y) {{ {body} }}", **used)


def explain(one: onnx.ModelProto, x: np.ndarray, r: np.ndarray, **options: object) -> dict[str, np.ndarray]:
    weights = np.random.default_rng(4).standard_normal(laws.run(one, {"x": x})["y"].shape).astype(np.float32)
    explainer = rewrite(one, target="weights", pre_activation=False, **options)
    return laws.run(explainer, {"x": x, "x_reference": r, "target_weights": weights})


def rows(count: int) -> np.ndarray:
    return RNG.standard_normal((count, 2, 3)).astype(np.float32)


@pytest.mark.parametrize("body", [*MIXED.values(), *GROWN.values()], ids=[*MIXED, *GROWN])
def test_samples_that_depend_on_each_other_are_one(body: str) -> None:
    got = explain(model(body), rows(3), rows(3))
    assert got["completeness_gap"].shape == ()
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-4)
    assert abs(got["target_output"] - got["target_reference"]) > 1e-2
    with pytest.raises(OptionError, match="several references need a batch axis"):
        rewrite(model(body), target="weights", reference="shared", pre_activation=False)


@pytest.mark.parametrize("body", KEPT.values(), ids=KEPT)
def test_samples_that_stay_apart_are_a_batch(body: str) -> None:
    x, r = rows(3), rows(3)
    got = explain(model(body), x, r)
    assert got["completeness_gap"].shape == (3,)
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)
    shared = explain(model(body), x, r[:2], reference="shared")["x_contributions"]
    paired = [explain(model(body), x, np.repeat(one[None], 3, axis=0))["x_contributions"] for one in r[:2]]
    np.testing.assert_allclose(shared, np.mean(paired, axis=0), atol=1e-5)


def test_a_fixed_batch_whose_extent_another_axis_has_too() -> None:
    body = """t = Transpose <perm = [1, 0, 2]> (x) u = Mul (t, two) v = Round (u) p = Sin (v)
        y = Transpose <perm = [1, 0, 2]> (p)"""
    got = explain(model(body, "2"), rows(2), rows(2))
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)


def test_a_mask_of_another_shape_than_what_it_selects() -> None:
    """Where nothing arrives at a masked node its multipliers are 0, but not those of the mask's roots."""
    text = """g (float[N, 2, 2] x) => (float[N, 2] y) {
        i = ArgMax <axis = 2, keepdims = 0> (x) c = Cast <to = 1> (i) m = Mul (c, w) k = Greater (m, low)
        y = Where (k, m, low)
    }"""
    one = laws.model(text, w=np.float32([1, 3]), low=np.float32(0.5))
    for _ in range(5):
        got = explain(one, RNG.standard_normal((2, 2, 2)).astype(np.float32), -rows(2)[:, :, :2])
        np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)
        np.testing.assert_allclose(
            got["x_contributions"].sum(axis=(1, 2)), got["target_output"] - got["target_reference"], atol=1e-5
        )


def test_a_batch_that_only_the_target_has_behind_its_lead() -> None:
    """Time leads what a recurrent network returns: an unknown extent is no batch beside the batch itself."""
    text = """g (float[N, 2, W] x) => (float y) {
        t = Transpose <perm = [2, 0, 1]> (x) d = Slice (t, begin, end, first) y = Tanh (d)
    }"""
    one = laws.model(text, begin=np.int64([1]), end=np.int64([99]), first=np.int64([0]))
    one.graph.output[0].type.tensor_type.ClearField("shape")
    x, r = (RNG.standard_normal((3, 2, 5)).astype(np.float32) for _ in range(2))
    got = explain(one, x, r)
    assert got["completeness_gap"].shape == ()
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)


def test_nodes_of_a_graph_network_are_no_batch() -> None:
    """y[source] as GatherND: rows are taken from other rows."""
    text = """g (float[N, 3] x, int64[E, 1] source) => (float[N, 3] y) {
        m = GatherND (x, source) s = ReduceSum (m, first) y = Mul (x, s)
    }"""
    one = laws.model(text, first=np.int64([0]))
    x, r = (RNG.standard_normal((4, 3)).astype(np.float32) for _ in range(2))
    explainer = rewrite(one, target="weights")
    feed = {"x": x, "x_reference": r, "source": np.int64([[0], [2], [2]]), "target_weights": np.ones_like(x)}
    got = laws.run(explainer, feed)
    assert got["completeness_gap"].shape == ()
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)
