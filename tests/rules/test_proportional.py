"""dy / sum(dx'): one multiplier for all inputs of a neuron (LIFTPAD eq. 15), and for any operator as a last resort."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import laws
import numpy as np
import onnx
import pytest
from signed_laws import Arrays, close, compare

import onnxlift
from onnxlift import Choice, Plan
from onnxlift.metadata import description

OPERATORS = ["*", "Mul"]

GOLDEN = Path(__file__).parent.parent / "golden"
RNG = np.random.default_rng(51)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def everywhere(op: str = "*") -> Plan:
    return Plan([Choice("proportional", op=op)])


# --- products --------------------------------------------------------------------------------------------------------


def product(shape_a: str = "N, 4", shape_b: str = "N, 4") -> onnx.ModelProto:
    return laws.model(f"g (float[{shape_a}] a, float[{shape_b}] b) => (float[N, 4] y) {{ y = Mul (a, b) }}")


@pytest.mark.parametrize("plan", ["rule", "plan"])
def test_products_against_closed_forms(plan: str) -> None:
    case = next(c for c in json.loads((GOLDEN / "cases.json").read_text()) if c["id"] == "e08_mul")
    arrays = np.load(GOLDEN / case["npz"], allow_pickle=False)
    x, r = ({name: arrays[f"{kind}_{name}"].astype(np.float32) for name in "ab"} for kind in ("x", "ref"))
    options = {"rule": "liftpad"} if plan == "rule" else {"plan": everywhere("Mul")}
    explainer = onnxlift.rewrite(onnx.load(GOLDEN / case["onnx"]), **options)
    got = laws.run(explainer, {**x, **{f"{name}_reference": value for name, value in r.items()}})
    for name in "ab":
        expected = arrays[case["expected"]["Product_dy_over_sum_dx"][name]]
        np.testing.assert_allclose(got[f"{name}_contributions"], expected, rtol=1e-5, atol=case["tolerance"]["atol"])


def test_products_against_the_oracle() -> None:
    """Differences that cancel exactly, to less than a hundredth, and not quite; that are 0; and x = r."""
    x = {name: RNG.uniform(-2, 2, (4, 40)).astype(np.float32) for name in "ab"}
    r = {name: RNG.uniform(-2, 2, (4, 40)).astype(np.float32) for name in "ab"}
    step = np.round(RNG.uniform(0.1, 1, (4, 4)) * 64) / 64
    for first, share in ((0, 1), (4, 0.99), (8, 0.9), (12, 1.01)):
        columns = slice(first, first + 4)
        for name in "ab":
            r[name][:, columns] = np.round(r[name][:, columns] * 64) / 64
        x["a"][:, columns], x["b"][:, columns] = r["a"][:, columns] + step, r["b"][:, columns] - share * step
    x["a"][:, 16:20] = r["a"][:, 16:20]
    x["a"][:, 20:24], x["b"][:, 20:24] = r["a"][:, 20:24], r["b"][:, 20:24]
    model = laws.model("g (float[N, 40] a, float[N, 40] b) => (float[N, 40] y) { y = Mul (a, b) }")
    got = compare(model, x, r, "rescale", rule_of="proportional", plan=everywhere("Mul"), rtol=2e-5)
    same = np.isclose(got["a_multipliers"], got["b_multipliers"], rtol=1e-5).all(axis=0)
    assert same[8:12].all()  # one multiplier for both factors
    assert not same[:8].any()  # the midpoint rule, where differences cancel
    assert not same[12:16].any()


def test_products_that_are_broadcast_and_of_a_constant() -> None:
    x, r = ({"a": normal(3, 4), "b": normal(3, 1)} for _ in range(2))
    compare(product(shape_b="N, 1"), x, r, "rescale", rule_of="proportional", plan=everywhere("Mul"))
    scaled = laws.model("g (float[N, 4] x) => (float[N, 4] y) { y = Mul (x, w) }", w=normal(4))
    compare(scaled, {"x": normal(3, 4)}, {"x": normal(3, 4)}, "rescale", rule_of="proportional", plan=everywhere("Mul"))
    square = laws.model("g (float[N, 4] x) => (float[N, 4] y) { y = Mul (x, x) }")
    got = compare(square, {"x": x["a"]}, {"x": r["a"]}, "rescale", rule_of="proportional", plan=everywhere("Mul"))
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)


# --- any operator ----------------------------------------------------------------------------------------------------

# name -> (operator, body that makes u of h, shape of a sample)
LAST_RESORT: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "LpPool": ("LpPool", "u = LpPool <kernel_shape = [2, 2], strides = [2, 2]> (h)", (2, 4, 4)),
    "LRN": ("LRN", "u = LRN <size = 3, alpha = 0.5, bias = 1.0> (h)", (3, 4, 4)),
    "Det": ("Det", "u = Det (h)", (2, 3, 3)),
    "LpNormalization": ("LpNormalization", "u = LpNormalization (h)", (6,)),
    "Hardmax": ("Hardmax", "u = Hardmax (h)", (6,)),
    "Resize": ("Resize", 'u = Resize <mode = "linear"> (h, , double)', (1, 3, 3)),
    "TopK, both outputs there": ("TopK", "u, index = TopK (h, three)", (6,)),
    "Pow of two variables": ("Pow", "e = Exp (h) u = Pow (e, h)", (6,)),
    "Softmax": ("Softmax", "u = Softmax (h)", (6,)),
    "MatMul, of two variables": ("MatMul", "u = MatMul (h, h)", (3, 3)),
    "Split, of two outputs": ("Split", "p, q = Split <axis = 1, num_outputs = 2> (h) u = Mul (p, q)", (6,)),
    "ReduceSum to a number": ("ReduceSum", "u = ReduceSum <keepdims = 0> (h, ones)", (6,)),
}


def last_resort(name: str, batch: int | str = "N") -> onnx.ModelProto:
    _, body, shape = LAST_RESORT[name]
    constants = {"double": np.float32([1, 1, 2, 2]), "three": np.array([3]), "ones": np.array([1])}
    return laws.model(
        f"g (float[{', '.join(map(str, (batch, *shape)))}] x) => (float y) "
        f"{{ t = Tanh (x) h = Add (t, x) {body} y = Sin (u) }}",
        **{key: value for key, value in constants.items() if f"{key})" in body},
    )


def explain(model: onnx.ModelProto, feed: Arrays, **options: Any) -> dict[str, np.ndarray]:
    explainer = onnxlift.rewrite(model, target="weights", pre_activation=False, **options)
    onnx.checker.check_model(explainer, full_check=True)
    return laws.run(explainer, feed)


def one_multiplier(model: onnx.ModelProto, x: np.ndarray, r: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What h contributes with one multiplier a sample, m = t(x) - t(r) over the sum of h's differences."""
    d = np.subtract(*(value + np.tanh(value) for value in (x.astype(np.float64), r.astype(np.float64))))
    change = weights * (laws.run(model, {"x": x})["y"] - laws.run(model, {"x": r})["y"])
    ratio = change.reshape(len(x), -1).sum(axis=1) / d.reshape(len(x), -1).sum(axis=1)
    return np.asarray(d * ratio.reshape(-1, *[1] * (x.ndim - 1)))


def is_complete(got: Arrays) -> None:
    """For every sample, relative to what is summed up."""
    size = np.abs(got["x_contributions"]).reshape(len(got["completeness_gap"]), -1).sum(axis=1)
    assert (np.abs(got["completeness_gap"]) <= 2e-6 * size + 1e-6).all()


@pytest.mark.parametrize("name", LAST_RESORT)
def test_any_operator(name: str) -> None:
    """Complete for every sample, with one multiplier for all places; 0 where nothing changes."""
    op, _, shape = LAST_RESORT[name]
    model = last_resort(name)
    x = normal(4, *shape)
    r = x - 1 - normal(4, *shape) / 2  # the differences do not cancel
    weights = normal(*laws.run(model, {"x": x})["y"].shape)
    feed = {"x": x, "target_weights": weights}
    options: dict[str, Any] = {"plan": everywhere(op), "expose": ["h"]}
    paired = explain(model, {**feed, "x_reference": r}, **options)
    is_complete(paired)
    if op != "Pow":  # there h is used twice
        close(paired["h/contributions"], one_multiplier(model, x, r, weights), 1e-4)
    assert not explain(model, {**feed, "x_reference": x}, **options)["x_contributions"].any()
    fixed = explain(last_resort(name, 4), {**feed, "x_reference": r}, **options)
    close(fixed["x_contributions"], paired["x_contributions"], 1e-4)

    rows = r[:2] + np.float32(3)
    by_hand = [explain(model, {**feed, "x_reference": np.repeat(row[None], 4, axis=0)}, **options) for row in rows]
    mean = np.mean([run["x_contributions"].astype(np.float64) for run in by_hand], axis=0)
    for reference, given in (("shared", rows), ("grouped", np.repeat(rows[None], 4, axis=0))):
        got = explain(model, {**feed, "x_reference": given}, reference=reference, **options)
        close(got["x_contributions"], mean, 1e-4)
        is_complete(got)


def test_differences_that_cancel_in_all() -> None:
    """Where sum(dx) is 0 the multiplier follows dx: contributions c dx^2 / sum(dx^2), complete too."""
    model = laws.model("g (float[N, 4] x) => (float[N, 4] y) { y = LpNormalization (x) }")
    r = np.round(normal(3, 4) * 16) / 16
    d = np.float32([[1, -1, 0.5, -0.5], [2, -1, -1, 0], [1, 1, -2, 0.0005]])
    weights = normal(3, 4)
    got = explain(
        model,
        {"x": r + d, "x_reference": r, "target_weights": weights},
        plan=everywhere(),
        emit=("contributions", "multipliers"),
    )
    change = (weights * (laws.run(model, {"x": r + d})["y"] - laws.run(model, {"x": r})["y"])).sum(axis=1)
    expected = change[:, None] * d * d / (d * d).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(got["x_contributions"], expected, atol=1e-5)
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)
    assert np.abs(got["x_multipliers"]).max() < 10 * np.abs(change).max()


def test_several_inputs_share_one_multiplier() -> None:
    model = laws.model(
        "g (float[N, 4] a, float[N, 2, 3] b) => (float[N, 2] y) "
        "{ f = Flatten (b) c = Concat <axis = 1> (a, f) h = Gemm (c, w) y = LpNormalization (h) }",
        w=normal(10, 2),
    )
    x, r = ({"a": normal(3, 4), "b": normal(3, 2, 3)} for _ in range(2))
    references = {f"{name}_reference": value for name, value in r.items()}
    for op in ("Concat", "Gemm"):
        plan = Plan([Choice("proportional", op=op), Choice("proportional", op="LpNormalization")])
        got = explain(
            model,
            {**x, **references, "target_weights": normal(3, 2)},
            plan=plan,
            emit=("contributions", "multipliers"),
        )
        sizes = sum(np.abs(got[f"{name}_contributions"]).reshape(3, -1).sum(axis=1) for name in "ab")
        np.testing.assert_allclose(got["completeness_gap"] / sizes, 0, atol=1e-5)
        m = np.concatenate([got[f"{name}_multipliers"].reshape(3, -1) for name in "ab"], axis=1)
        if op == "Gemm":
            np.testing.assert_allclose(m, np.broadcast_to(m[:, :1], m.shape), rtol=1e-5)


def test_without_a_batch_axis_everything_is_one_sum() -> None:
    model = laws.model(
        "g (float[2, 3] x) => (float[3] y) { n = LpNormalization (x) y = ReduceSum <keepdims = 0> (n, zero) }",
        zero=np.array([0]),
    )
    x, r, weights = normal(2, 3), normal(2, 3), normal(3)
    got = explain(model, {"x": x, "x_reference": r, "target_weights": weights}, plan=everywhere("LpNormalization"))
    change = float((weights * (laws.run(model, {"x": x})["y"] - laws.run(model, {"x": r})["y"])).sum())
    close(got["x_contributions"], (x - r) * np.float64(change / (x - r).sum()), 1e-4)
    assert got["completeness_gap"].shape == ()


TREE = """g (float[N, 4] x) => (float[N, 1] y) {
    h = Tanh (x)
    y = ai.onnx.ml.TreeEnsembleRegressor <
        n_targets = 1, nodes_treeids = [0, 0, 0], nodes_nodeids = [0, 1, 2], nodes_featureids = [1, 0, 0],
        nodes_modes = ["BRANCH_LEQ", "LEAF", "LEAF"], nodes_values = [0.1, 0.0, 0.0], nodes_truenodeids = [1, 0, 0],
        nodes_falsenodeids = [2, 0, 0], target_treeids = [0, 0], target_nodeids = [1, 2], target_ids = [0, 0],
        target_weights = [1.0, 3.0]
    > (h)
}"""


def test_an_operator_without_a_rule() -> None:
    model = laws.model(TREE)
    model.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 3))
    with pytest.raises(onnxlift.RuleError, match=r"\(TreeEnsembleRegressor\): comparisons decide"):
        onnxlift.rewrite(model, target="weights", pre_activation=False)
    x = np.abs(normal(3, 4))
    r = x - 1
    x[:, 1], r[:, 1] = 1, -1
    feed = {"x": x, "x_reference": r, "target_weights": np.ones((3, 1), np.float32)}
    got = explain(model, feed, plan=everywhere("TreeEnsembleRegressor"), expose=["h"])
    np.testing.assert_allclose(got["target_output"] - got["target_reference"], 2)
    is_complete(got)
    d = np.tanh(x, dtype=np.float64) - np.tanh(r, dtype=np.float64)
    close(got["h/contributions"], 2 * d / d.sum(axis=1, keepdims=True), 1e-4)


def test_the_default_is_not_replaced_unless_it_is_asked_for() -> None:
    model = last_resort("LpPool")
    about = description(onnxlift.rewrite(model, target="weights", plan=everywhere("LpPool")))
    assert (about["rules"]["LpPool"], about["rules"]["Sin"]) == ("proportional", "rescale")
    about = description(onnxlift.rewrite(model, target="weights"))
    assert about["rules"]["LpPool"] != "proportional"


SCAN = """g (float[N, 3, 4] x, float[N, 4] start, float[4] w) => (float[N, 4] y) {
    y, ys = Scan <num_scan_inputs = 1, scan_input_axes = [1],
        body = b (float[N, 4] h, float[N, 4] xi) => (float[N, 4] h1, float[N, 4] yi) {
            a = Mul (xi, w)
            s = Add (a, h)
            h1 = Tanh (s)
            yi = Identity (h1)
        }> (start, x)
}"""


@pytest.mark.parametrize("inputs", [["x", "start"], ["x", "w"], ["w"]])
def test_a_loop_as_a_whole(inputs: list[str]) -> None:
    """One multiplier for states, slices and what the body reads; for all samples where that is one for all of them."""
    model = laws.model(SCAN)
    x, r = ({"x": normal(2, 3, 4), "start": normal(2, 4), "w": normal(4)} for _ in range(2))
    feed = {**x, **{f"{name}_reference": r[name] for name in inputs}, "target_weights": normal(2, 4)}
    options: dict[str, Any] = {"inputs": inputs, "plan": everywhere("Scan"), "emit": ("contributions", "multipliers")}
    got = explain(model, feed, **options)
    batched = "w" not in inputs
    m = np.concatenate([got[f"{name}_multipliers"].reshape(2 if batched else 1, -1) for name in inputs], axis=1)
    np.testing.assert_allclose(m, np.broadcast_to(m[:, :1], m.shape), rtol=1e-5)
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)
    assert got["completeness_gap"].shape == ((2,) if batched else ())


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["paired", "shared"])
def test_samples_that_are_not_in_front_are_refused(reference: str) -> None:
    """Rows that are two for every sample, and an axis behind another one: sums over them would mix up samples."""
    rows = laws.model(
        "g (float[N, 4, 8] x) => (float[N, 4, 8] y) { a = Reshape (x, s) b = LpNormalization (a) y = Reshape (b, t) }",
        s=np.array([-1, 2, 8]),
        t=np.array([-1, 4, 8]),
    )
    behind = laws.model(
        "g (float[N, 4, 8] x) => (float[N, 4, 8] y) { a = Transpose <perm = [1, 0, 2]> (x) b = LpNormalization (a) "
        "y = Transpose <perm = [1, 0, 2]> (b) }"
    )
    for model in (rows, behind):
        with pytest.raises(onnxlift.RuleError, match="whether they are the first axis of 'b' cannot be told"):
            onnxlift.rewrite(model, target="weights", plan=everywhere("LpNormalization"), reference=reference)
