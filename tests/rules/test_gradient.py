"""The gradient family: against finite differences, the oracle, and a loop over the points of the path."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import laws
import numpy as np
import onnx
import oracle_signed
import pytest
from signed_laws import Arrays, close, compare

import onnxlift

OPERATORS = ["Relu"]

RNG = np.random.default_rng(41)


def normal(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype)


def explain(model: onnx.ModelProto, feed: Arrays, rule: str, **options: Any) -> dict[str, np.ndarray]:
    explainer = onnxlift.rewrite(
        model,
        rule=rule,
        pre_activation=False,
        **{"target": "weights", "emit": ("contributions", "multipliers"), **options},
    )
    onnx.checker.check_model(explainer, full_check=True)
    return laws.run(explainer, feed)


# --- the gradient ----------------------------------------------------------------------------------------------------

DOUBLES = {
    "dense": "f = Flatten (x) h = Gemm (f, w2) a = Sigmoid (h) b = Tanh (h) m = Mul (a, b) y = MatMul (m, w3)",
    "products": "a = MatMul (x, w1) q = MatMul (x, w1) d = Exp (q) e = Div (a, d) "
    "s = ReduceSum <keepdims = 0> (e, last) y = Tanh (s)",
    "maxima": "f = Flatten (x) h = Gemm (f, w2) r = Relu (h) n = Neg (h) a = Max (r, n) t = ReduceMax (a, last) "
    "y = Mul (t, a)",
    "softmax": "f = Flatten (x) h = Gemm (f, w2) y = Softmax (h)",
    "masks": "c = Greater (x, zero) q = Mul (x, x) w = Where (c, q, x) s = ReduceMean <keepdims = 0> (w, last) "
    "y = Sin (s)",
}
CONSTANTS = {
    "w1": normal(2, 2, dtype=np.float64),
    "w2": normal(8, 5, dtype=np.float64),
    "w3": normal(5, 2, dtype=np.float64),
    "last": np.array([1]),
    "zero": np.array(0.0),
}


@pytest.mark.parametrize("body", DOUBLES.values(), ids=list(DOUBLES))
@pytest.mark.parametrize("rule", ["gradient", "gradient-x-input"])
def test_the_gradient_by_finite_differences(body: str, rule: str) -> None:
    used = {name: CONSTANTS[name] for name in re.findall(r"\w+", body) if name in CONSTANTS}
    model = laws.model(f"g (double[N, 4, 2] x) => (double y) {{ {body} }}", **used)
    x, r, h = normal(3, 4, 2, dtype=np.float64), normal(3, 4, 2, dtype=np.float64), 1e-6
    weights = normal(*laws.run(model, {"x": x})["y"].shape, dtype=np.float64)
    got = explain(model, {"x": x, "x_reference": r, "target_weights": weights}, rule)
    steps = h * np.eye(8).reshape(8, 1, 4, 2)
    ends = [laws.run(model, {"x": (x + sign * steps).reshape(24, 4, 2)})["y"] for sign in (1, -1)]
    slopes = ((ends[0] - ends[1]).reshape(8, *weights.shape) * weights).reshape(8, 3, -1).sum(axis=2) / (2 * h)
    expected = slopes.T.reshape(x.shape)
    np.testing.assert_allclose(got["x_multipliers"], expected, rtol=1e-6, atol=1e-8)
    times = 1 if rule == "gradient" else x - r
    np.testing.assert_allclose(got["x_contributions"], expected * times, rtol=1e-6, atol=1e-8)


CONVOLUTIONAL = (
    "g (float[{batch}, 2, 6, 6] x) => (float[{batch}, 3] y) {{ c = Conv <pads = [1, 1, 1, 1]> (x, k) "
    "n = BatchNormalization (c, scale, shift, mean, variance) a = Relu (n) "
    "p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a) d = Conv (p, k2) b = Relu (d) s = Add (b, d) "
    "q = AveragePool <kernel_shape = [2, 2], strides = [1, 1]> (s) f = Flatten (q) z = Gemm (f, w) e = Relu (z) "
    "y = Gemm (e, v) }}"
)


def convolutional(batch: int | str = "N") -> onnx.ModelProto:
    rng = np.random.default_rng(42)
    shapes = {"k": (4, 2, 3, 3), "shift": (4,), "mean": (4,), "k2": (5, 4, 2, 2), "w": (5, 6), "v": (6, 3)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    weights["scale"], weights["variance"] = np.float32([1, -0.5, 2, -1]), np.float32([0.5, 1, 2, 1])
    return laws.model(CONVOLUTIONAL.format(batch=batch), **weights)


@pytest.mark.parametrize("batch", ["N", "3"])
@pytest.mark.parametrize("rule", ["gradient", "guided-backprop", "deconvnet"])
def test_a_network_against_the_oracle(rule: str, batch: str) -> None:
    """Their contributions are the multipliers, of internal tensors too, and the reference has no say."""
    model = convolutional(batch)
    x, r, weights = normal(3, 2, 6, 6), normal(3, 2, 6, 6), normal(3, 3)
    expected = oracle_signed.explain(
        model, {"x": x}, {"x": r}, inputs=["x"], output="y", seed=weights, rule_of=rule
    ).multipliers
    feed = {"x": x, "x_reference": r, "target_weights": weights}
    got = explain(model, feed, rule, expose=["n", "s"])
    for name, kind in (("x", "_multipliers"), ("x", "_contributions"), ("n", "/multiplier"), ("s", "/contributions")):
        close(got[name + kind], expected[name], 1e-5, name + kind)
    other = explain(model, {**feed, "x_reference": r + 1}, rule)
    np.testing.assert_array_equal(other["x_contributions"], got["x_contributions"])


def test_the_rules_differ() -> None:
    """x = (2, -2, 2, -2, 0), m = (3, 3, -3, -3, 3): gradient 1{x>0} m, guided 1{x>0} P(m), deconvnet P(m)."""
    model = laws.model("g (float[1, 5] x) => (float[1, 5] y) { y = Relu (x) }")
    feed = {"x": np.float32([[2, -2, 2, -2, 0]]), "target_weights": np.float32([[3, 3, -3, -3, 3]])}
    expected = {"gradient": [3, 0, -3, 0, 0], "guided-backprop": [3, 0, 0, 0, 0], "deconvnet": [3, 3, 0, 0, 3]}
    for rule, m in expected.items():
        got = explain(model, feed, rule, reference="zeros")
        np.testing.assert_array_equal(got["x_multipliers"], [m])
        np.testing.assert_array_equal(got["x_contributions"], [m])
    got = explain(model, feed, "gradient-x-input", reference={"x": np.ones((1, 5), np.float32)})
    np.testing.assert_array_equal(got["x_contributions"], [[3, 0, -3, 0, 0]])


@pytest.mark.parametrize("rule", ["gradient", "gradient-x-input"])
def test_references_of_a_gradient(rule: str) -> None:
    """It is that of the input whatever it is compared with; times x - r it is averaged over references."""
    model = convolutional()
    x, r, weights = normal(3, 2, 6, 6), normal(2, 2, 6, 6), normal(3, 3)
    feed = {"x": x, "target_weights": weights}
    m = explain(model, feed, rule, reference="zeros")["x_multipliers"]
    grouped = np.stack([r, r + 1, r - 2])
    means = {"shared": r.mean(axis=0), "grouped": grouped.mean(axis=1)}
    for reference, rows in (("shared", r), ("grouped", grouped)):
        got = explain(model, {**feed, "x_reference": rows}, rule, reference=reference)
        np.testing.assert_array_equal(got["x_multipliers"], m)
        close(got["x_contributions"], m if rule == "gradient" else m * (x - means[reference]), 1e-6)
        at_r = np.stack([laws.run(model, {"x": row[None]})["y"][0] for row in rows.reshape(-1, 2, 6, 6)])
        at_r = np.broadcast_to(at_r.reshape(-1, 2, 3), (3, 2, 3)).mean(axis=1)
        close(got["target_reference"], (weights * at_r).sum(axis=1), 1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[4] x) => (float[3] y) { h = MatMul (x, w) y = Tanh (h) }",
        "g (float[1, 4] x) => (float[3] y) { h = MatMul (x, w) t = Tanh (h) y = Squeeze (t) }",
        "g (float[T, 4] x) => (float[T, 4] y) "
        "{ t = Transpose <perm = [1, 0]> (x) s = MatMul (x, t) p = Softmax (s) y = MatMul (p, x) }",
    ],
)
def test_a_gradient_needs_no_batch_axis(text: str) -> None:
    used = {"w": normal(4, 3)} if "w)" in text else {}
    model = laws.model(text, **used)
    shape = [dim.dim_value or 3 for dim in model.graph.input[0].type.tensor_type.shape.dim]
    x, r = normal(*shape), normal(*shape)
    compare(model, {"x": x}, {"x": r}, "gradient-x-input", rule_of="gradient", expose=[])
    with pytest.raises(onnxlift.OptionError, match="need a batch axis of unknown"):
        onnxlift.rewrite(model, target="weights", rule="integrated-gradients", reference="zeros")


# --- integrated gradients --------------------------------------------------------------------------------------------


def path(
    model: onnx.ModelProto, x: Arrays, r: Arrays, weights: np.ndarray, n: int, others: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """(x - r) times the mean gradient at r + (k - 1/2)/n (x - r), by a loop."""
    wide = ({name: value.astype(np.float64) for name, value in arrays.items()} for arrays in (x, r))
    x, r = wide
    total = {name: np.zeros(value.shape) for name, value in x.items()}
    for k in range(n):
        point = {name: r[name] + (k + 0.5) / n * (x[name] - r[name]) for name in x}
        gradient = oracle_signed.explain(
            model, {**point, **others}, point, inputs=list(x), output="y", seed=weights, rule_of="gradient"
        )
        for name in x:
            total[name] += gradient.multipliers[name] / n
    return {name: m * (x[name] - r[name]) for name, m in total.items()}


MIXING = {
    "led": (
        "a = MatMul (x, w) b = Tanh (a) t = Transpose <perm = [0, 2, 1]> (b) y = MatMul (t, a)",
        {"w": normal(3, 3)},
    ),
    "rows": (
        "a = Reshape (x, into) b = MatMul (a, w) c = Sigmoid (b) y = Reshape (c, back)",
        {"into": np.array([-1, 3]), "back": np.array([-1, 8, 3]), "w": normal(3, 3)},
    ),
    "windows": (
        "a = Reshape (x, into) t = Transpose <perm = [0, 2, 1]> (a) s = MatMul (a, t) p = Softmax (s) "
        "v = MatMul (p, a) y = Reshape (v, back)",
        {"into": np.array([-1, 4, 3]), "back": np.array([-1, 8, 3])},
    ),
    "behind": (
        "a = Transpose <perm = [1, 0, 2]> (x) b = MatMul (a, w) c = Tanh (b) y = Transpose <perm = [1, 0, 2]> (c)",
        {"w": normal(8, 3, 3)},
    ),
}
"""Models with the batch in front of everything, folded into other axes (twice), and behind another axis."""


def references_of(r: np.ndarray, samples: int) -> dict[str, tuple[Any, dict[str, np.ndarray], list[np.ndarray]]]:
    """name -> (the option, what is fed, which references to average over, each for all samples)."""
    each = [np.repeat(r[k : k + 1], samples, axis=0) for k in range(2)]
    return {
        "zeros": ("zeros", {}, [np.zeros_like(each[0])]),
        "paired": ("paired", {"x_reference": each[0]}, each[:1]),
        "shared": ("shared", {"x_reference": r}, each),
        "grouped": ("grouped", {"x_reference": np.stack(each, axis=1)}, each),
        "baked": ({"x": r[1:2]}, {}, each[1:]),
    }


@pytest.mark.parametrize("steps", [1, 5, 20])
@pytest.mark.parametrize("name", MIXING)
def test_the_path_by_a_loop(name: str, steps: int) -> None:
    body, constants = MIXING[name]
    model = laws.model(
        f"g (float[N, 8, 3] x) => (float[N, {3 if name == 'led' else 8}, 3] y) {{ {body} }}", **constants
    )
    x, r = normal(3, 8, 3), normal(2, 8, 3)
    weights = normal(*laws.run(model, {"x": x})["y"].shape)
    feed, rule = {"x": x, "target_weights": weights}, f"integrated-gradients:{steps}"
    loops: dict[bytes, np.ndarray] = {}
    for reference, more, rows in references_of(r, 3).values():
        for row in rows:
            if row.tobytes() not in loops:
                loops[row.tobytes()] = path(model, {"x": x}, {"x": row}, weights, steps, {})["x"]
        expected = np.mean([loops[row.tobytes()] for row in rows], axis=0)
        got = explain(model, {**feed, **more}, rule, reference=reference)
        close(got["x_contributions"], expected, 1e-5)
        total = (got["target_output"] - got["target_reference"]).astype(np.float64)
        np.testing.assert_allclose(got["completeness_gap"], total - expected.sum(axis=(1, 2)), atol=1e-4)
        if len(rows) == 1:
            close(got["x_multipliers"] * (x - rows[0]), expected, 1e-5)


def test_fifty_intervals_are_nearly_complete_and_five_are_not() -> None:
    model = laws.model(
        "g (float[N, 5] x) => (float[N, 1] y) { h = Gemm (x, w) a = Sigmoid (h) y = Gemm (a, v) }",
        w=3 * normal(5, 8),
        v=normal(8, 1),
    )
    x = normal(20, 5)
    few, many, default = (
        explain(model, {"x": x}, rule, reference="zeros", target=None)
        for rule in ("integrated-gradients:5", "integrated-gradients:50", "integrated-gradients")
    )
    np.testing.assert_array_equal(default["x_contributions"], many["x_contributions"])
    gaps = [np.abs(run["completeness_gap"]).max() for run in (few, many)]
    assert gaps[1] < 0.02 < gaps[0]


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_is_freed_for_the_path(batch: int) -> None:
    x, r, weights = normal(batch, 2, 6, 6), normal(2, 2, 6, 6), normal(batch, 3)
    for reference, more, _ in references_of(r, batch).values():
        feed = {"x": x, "target_weights": weights, **more}
        fixed = explain(convolutional(batch), feed, "integrated-gradients:3", reference=reference)
        free = explain(convolutional(), feed, "integrated-gradients:3", reference=reference)
        close(fixed["x_contributions"], free["x_contributions"], 1e-5)
        assert fixed["completeness_gap"].shape == (batch,)


@pytest.mark.parametrize("reference", ["paired", "shared", "grouped", "zeros"])
def test_several_inputs_one_of_them_not_attributed(reference: str) -> None:
    """a and b move along the path together, the scale stays at the sample's; b has another rank."""
    model = laws.model(
        "g (float[N, 4, 3] a, float[N, 5] b, float[N, 1] scale) => (float[N, 2] y) "
        "{ f = Flatten (a) c = Concat <axis = 1> (f, b) s = Mul (c, scale) h = Tanh (s) y = MatMul (h, w) }",
        w=normal(17, 2),
    )
    x = {"a": normal(3, 4, 3), "b": normal(3, 5)}
    r = {"a": normal(2, 4, 3), "b": normal(2, 5)}
    scale, weights = normal(3, 1), normal(3, 2)
    each = [{name: np.repeat(value[k : k + 1], 3, axis=0) for name, value in r.items()} for k in range(2)]
    rows = {
        "paired": each[0],
        "shared": r,
        "grouped": {name: np.stack([row[name] for row in each], axis=1) for name in r},
        "zeros": {},
    }[reference]
    used = {"paired": each[:1], "zeros": [{name: 0 * value for name, value in x.items()}]}.get(reference, each)
    loops = [path(model, x, row, weights, 5, {"scale": scale}) for row in used]
    feed = {**x, "scale": scale, "target_weights": weights, **{f"{k}_reference": v for k, v in rows.items()}}
    got = explain(model, feed, "integrated-gradients:5", reference=reference, inputs=["a", "b"])
    for name in "ab":
        close(got[f"{name}_contributions"], np.mean([loop[name] for loop in loops], axis=0), 1e-5, name)
    assert "scale_contributions" not in got


MASKED = (
    "g (int64[N, 6] ids, float[N, 6] mask) => (float[N, 3] y) { e = Gather (table, ids) t = Tanh (e) "
    "u = Unsqueeze (mask, last) v = Mul (t, u) s = ReduceSum <keepdims = 0> (v, one) y = MatMul (s, w) }"
)
PLAIN = (
    "g (int64[N, 6] ids) => (float[N, 3] y) { e = Gather (table, ids) t = Tanh (e) "
    "v = Mul (t, t) s = ReduceSum <keepdims = 0> (v, one) y = MatMul (s, w) }"
)


@pytest.mark.parametrize("masked", [True, False])
def test_an_internal_tensor_as_the_input(masked: bool) -> None:
    """An embedding's output; a mask that both runs share asks for a run on tiled inputs."""
    table, w = normal(10, 8), normal(8, 3)
    used = {"table": table, "one": np.array([1]), "w": w} | ({"last": np.array([2])} if masked else {})
    model = laws.model(MASKED if masked else PLAIN, **used)
    ids, others, weights = RNG.integers(0, 10, (4, 6)), RNG.integers(0, 10, (2, 6)), normal(4, 3)
    given = {"mask": RNG.random((4, 6)).astype(np.float32)} if masked else {}
    each = []
    for k in range(2):
        rows = np.repeat(others[k : k + 1], 4, axis=0)
        start = table.astype(np.float64)[rows]
        total = np.zeros(start.shape)
        for step in range(5):
            point = start + (step + 0.5) / 5 * (table[ids] - start)
            t = np.tanh(point)
            slope = (1 - t * t) * (given["mask"][:, :, None] if masked else 2 * t)
            total += slope * (weights @ w.T)[:, None] / 5
        each.append(total * (table[ids] - start))
    cases = {
        "paired": (np.repeat(others[:1], 4, axis=0), each[0]),
        "shared": (others, np.mean(each, axis=0)),
        "grouped": (np.repeat(others[None], 4, axis=0), np.mean(each, axis=0)),
    }
    feed = {"ids": ids, **given, "target_weights": weights}
    for reference, (rows, expected) in cases.items():
        got = explain(
            model, {**feed, "ids_reference": rows}, "integrated-gradients:5", inputs=["e"], reference=reference
        )
        close(got["e_contributions"], expected, 1e-5, reference)
    got = explain(model, feed, "integrated-gradients:5", inputs=["e"], reference={"ids": others})
    close(got["e_contributions"], cases["shared"][1], 1e-5)


def test_a_batch_is_its_samples() -> None:
    model = convolutional()
    x, r, weights = normal(4, 2, 6, 6), normal(4, 2, 6, 6), normal(4, 3)
    for rule in ("gradient-x-input", "integrated-gradients:3", "guided-backprop"):
        together = explain(model, {"x": x, "x_reference": r, "target_weights": weights}, rule)
        for i in range(4):
            row = slice(i, i + 1)
            alone = explain(model, {"x": x[row], "x_reference": r[row], "target_weights": weights[row]}, rule)
            close(alone["x_contributions"], together["x_contributions"][row], 1e-5)


def test_an_explainer_runs_the_path_in_chunks() -> None:
    model = convolutional()
    x = normal(7, 2, 6, 6)
    whole = onnxlift.Explainer(
        model, target=1, reference="zeros", rule="integrated-gradients:4", providers=["CPUExecutionProvider"]
    )
    parts = onnxlift.Explainer(
        model,
        target=1,
        reference="zeros",
        rule="integrated-gradients:4",
        providers=["CPUExecutionProvider"],
        batch_size=2,
    )
    close(parts(x).contributions["x"], whole(x).contributions["x"], 1e-5)


def test_what_is_refused() -> None:
    model = convolutional()
    with pytest.raises(onnxlift.OptionError, match="`expose` has no meaning"):
        onnxlift.rewrite(model, target=0, rule="integrated-gradients", expose=["n"])
    for rule in ("gradient", "guided-backprop", "deconvnet"):
        with pytest.raises(onnxlift.OptionError, match="has multipliers only"):
            onnxlift.rewrite(model, target=0, rule=rule, emit=("hypothetical",), one_hot=1)
    for rule in ("integrated-gradients:0", "integrated-gradients:x", "integrated-gradients:10001", "gradient:5"):
        with pytest.raises(onnxlift.OptionError, match="only integrated-gradients takes a number"):
            onnxlift.rewrite(model, target=0, rule=rule)
    scalar = laws.model("g (float[N, 4] x) => (float y) { t = Tanh (x) y = ReduceSum <keepdims = 0> (t) }")
    with pytest.raises(onnxlift.OptionError, match="export the model with a dynamic batch axis"):
        onnxlift.rewrite(scalar, target="weights", rule="integrated-gradients", reference="zeros")
