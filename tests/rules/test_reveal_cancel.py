"""RevealCancel: every elementwise operator against the oracle, empty sides, and points where there is no value."""

from __future__ import annotations

import re

import laws
import numpy as np
import onnx
import pytest
from signed_laws import compare

import onnxlift
from onnxlift import Choice, Plan, registry
from onnxlift.rules.reveal_cancel import PARTIAL

ANY = (-3.0, 3.0)
POSITIVE = (0.05, 4.0)
INSIDE = (-0.8, 0.8)
COLUMNS = 30
Domain = tuple[float, float]

CONSTANTS = {
    "slopes": np.linspace(-0.5, 1.5, COLUMNS),
    "low": np.array(-1.03),
    "high": np.array(0.71),
    "two": np.array(2),
    "three": np.array(3),
    "half": np.array(0.5),
    "minus": np.array(-1.0),
    "powers": np.linspace(-1, 2.5, COLUMNS),
    "base": np.array(2.5),
    "bases": np.linspace(0.3, 3, COLUMNS),
}
"""In the precision of the model, where its text has the name."""

# operator -> functions of h, and where h lives
CASES: dict[str, list[tuple[str, Domain]]] = {
    "Relu": [("Relu (h)", ANY)],
    "LeakyRelu": [("LeakyRelu <alpha = 0.3> (h)", ANY), ("LeakyRelu <alpha = -0.5> (h)", ANY)],
    "PRelu": [("PRelu (h, slopes)", ANY)],
    "ThresholdedRelu": [("ThresholdedRelu <alpha = 0.4> (h)", ANY)],
    "Clip": [("Clip (h, low, high)", ANY), ("Clip (h, low)", ANY), ("Clip (h, , high)", ANY)],
    "Elu": [("Elu <alpha = 0.5> (h)", ANY)],
    "Celu": [("Celu <alpha = 2.0> (h)", ANY)],
    "Selu": [("Selu (h)", ANY)],
    "HardSigmoid": [("HardSigmoid (h)", ANY)],
    "HardSwish": [("HardSwish (h)", (-6.0, 6.0))],
    "Sigmoid": [("Sigmoid (h)", ANY), ("Sigmoid (h)", (-40.0, 40.0))],
    "Tanh": [("Tanh (h)", ANY), ("Tanh (h)", (-40.0, 40.0))],
    "Softplus": [("Softplus (h)", ANY)],
    "Softsign": [("Softsign (h)", ANY)],
    "Gelu": [("Gelu (h)", ANY), ('Gelu <approximate = "tanh"> (h)', ANY)],
    "Mish": [("Mish (h)", ANY)],
    "Erf": [("Erf (h)", ANY)],
    "Abs": [("Abs (h)", ANY)],
    "Sign": [("Sign (h)", ANY)],
    "Floor": [("Floor (h)", ANY)],
    "Ceil": [("Ceil (h)", ANY)],
    "Round": [("Round (h)", ANY)],
    "Shrink": [("Shrink <lambd = 0.7, bias = 0.2> (h)", ANY)],
    "Mod": [("Mod <fmod = 1> (h, base)", ANY)],
    "Sin": [("Sin (h)", ANY)],
    "Cos": [("Cos (h)", ANY)],
    "Tan": [("Tan (h)", INSIDE)],
    "Atan": [("Atan (h)", ANY)],
    "Sinh": [("Sinh (h)", ANY)],
    "Cosh": [("Cosh (h)", ANY)],
    "Asinh": [("Asinh (h)", ANY)],
    "Exp": [("Exp (h)", ANY)],
    "Log": [("Log (h)", POSITIVE)],
    "Sqrt": [("Sqrt (h)", POSITIVE)],
    "Reciprocal": [("Reciprocal (h)", POSITIVE)],
    "Asin": [("Asin (h)", INSIDE)],
    "Acos": [("Acos (h)", INSIDE)],
    "Acosh": [("Acosh (h)", (1.5, 4.0))],
    "Atanh": [("Atanh (h)", INSIDE)],
    "Pow": [
        ("Pow (h, two)", ANY),
        ("Pow (h, three)", ANY),
        ("Pow (h, half)", POSITIVE),
        ("Pow (h, minus)", POSITIVE),
        ("Pow (h, powers)", POSITIVE),
        ("Pow (base, h)", ANY),
        ("Pow (bases, h)", ANY),
    ],
}
FLAT = [case for cases in CASES.values() for case in cases]

OPERATORS = tuple(CASES)

DOUBLE = "Relu Clip Sigmoid Tanh Abs Sign Floor Ceil Round Sin Cos Exp Log Sqrt Reciprocal Pow".split()
"""Operators that ONNX Runtime runs in double precision (some of them only)."""

JUMPS = ("Sign", "Floor", "Ceil", "Round", "ThresholdedRelu", "Shrink", "Mod")
"""Discontinuous functions: in half precision a point beside a jump may be on its other side."""


def operator(function: str) -> str:
    return function.split()[0]


def constants(function: str, dtype: str = "float") -> dict[str, np.ndarray]:
    """Those of `CONSTANTS` that the function reads."""
    kind = {"float": np.float32, "double": np.float64, "float16": np.float16}[dtype]
    return {name: CONSTANTS[name].astype(kind) for name in re.findall(r"\w+", function) if name in CONSTANTS}


def of_a_sum(function: str, dtype: str = "float") -> onnx.ModelProto:
    """f(a + b): `h` has a part of either sign where a rises and b falls."""
    return laws.model(
        f"g ({dtype}[N, {COLUMNS}] a, {dtype}[N, {COLUMNS}] b) => ({dtype}[N, {COLUMNS}] y) "
        f"{{ h = Add (a, b) y = {function} }}",
        **constants(function, dtype),
    )


def sides(domain: Domain, dtype: type) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """a rises and b falls, and all of r, r + p, r + n, r + p + n are in the domain.

    Columns 0-3 have no p, columns 2-5 no n (x = r in two of them), in 6-8 one side is tiny, and in 9 x returns to r.
    """
    rng = np.random.default_rng(5)
    low, high = domain
    r = rng.uniform(low, high, (4, COLUMNS))
    up, down = rng.uniform(r, high), rng.uniform(low, r)
    up[:, :4], down[:, 2:6] = r[:, :4], r[:, 2:6]
    up[:, 6:8], down[:, 8] = r[:, 6:8] + 1e-5 * (high - r[:, 6:8]), r[:, 8] - 1e-5 * (r[:, 8] - low)
    span = 0.9 * np.minimum(high - r[:, 9], r[:, 9] - low)
    up[:, 9], down[:, 9] = r[:, 9] + span, r[:, 9] - span
    at_r = {"a": (r / 2).astype(dtype), "b": (r / 2).astype(dtype)}
    at_x = {"a": at_r["a"] + (up - r).astype(dtype), "b": at_r["b"] + (down - r).astype(dtype)}
    return at_x, at_r


def test_every_operator_has_a_case() -> None:
    assert {rule.op for rule in registry.rules() if rule.name == "reveal-cancel"} == set(CASES)
    assert [operator(function) for function, _ in FLAT] == [op for op, cases in CASES.items() for _ in cases]


@pytest.mark.parametrize(("function", "domain"), FLAT)
def test_against_the_oracle(function: str, domain: Domain) -> None:
    """To 1e-5; 1e-4 where the derivative varies on a scale far below one, as near the edge of a domain."""
    steep = operator(function) in ("Asin", "Acos", "Atanh", "Tan", "Acosh", "Pow")
    compare(of_a_sum(function), *sides(domain, np.float32), rtol=1e-4 if steep else 1e-5)


@pytest.mark.parametrize(("function", "domain"), [case for case in FLAT if operator(case[0]) in DOUBLE])
def test_in_double_precision(function: str, domain: Domain) -> None:
    compare(of_a_sum(function, "double"), *sides(domain, np.float64), rtol=2e-10)


HALVES = [cases[0] for op, cases in CASES.items() if op not in ("Celu", *JUMPS)]  # there is no Celu in float16


@pytest.mark.parametrize(("function", "domain"), HALVES)
def test_in_half_precision(function: str, domain: Domain) -> None:
    compare(of_a_sum(function, "float16"), *sides(domain, np.float16), rtol=2e-2)


@pytest.mark.parametrize("function", ["Relu (h)", "Sin (h)", *(CASES[op][0][0] for op in sorted(PARTIAL))])
def test_conservation(function: str) -> None:
    """With random parts, also where r + p or r + n is outside of the domain, and random m+ != m-."""
    domain = CASES[operator(function)][0][1]
    rng = np.random.default_rng(2)
    model = laws.model(
        f"g (float[N, {COLUMNS}] h) => (float[N, {COLUMNS}] y) {{ y = {function} }}", **constants(function)
    )
    x, r = (rng.uniform(*domain, (4, COLUMNS)).astype(np.float32) for _ in range(2))
    laws.check_signed(model, {"h": x}, {"h": r}, rtol=1e-5, plan=Plan([Choice("reveal-cancel")]))


# --- behind layers that mix ------------------------------------------------------------------------------------------

EVERYWHERE = [
    function for function, domain in FLAT if domain == ANY and operator(function) not in ("Exp", "Sinh", "Cosh", "Pow")
]


@pytest.mark.parametrize("function", EVERYWHERE)
def test_behind_a_dense_layer(function: str) -> None:
    rng = np.random.default_rng(3)
    shapes = {"w": (7, COLUMNS), "c": (COLUMNS,), "v": (COLUMNS, 3)}
    model = laws.model(
        f"g (float[N, 7] x) => (float[N, 3] y) {{ h = Gemm (x, w, c) f = {function} z = Gemm (f, v) y = Tanh (z) }}",
        **constants(function),
        **{name: np.float32(rng.normal(size=shape) / 3) for name, shape in shapes.items()},
    )
    x, r = (rng.normal(size=(3, 7)).astype(np.float32) for _ in range(2))
    r[0, 2:5] = x[0, 2:5]
    compare(model, {"x": x}, {"x": r}, rtol=2e-5)


@pytest.mark.parametrize("function", ["Relu (h)", "Elu <alpha = 0.5> (h)", "Sigmoid (h)", "Softplus (h)", "Abs (h)"])
def test_behind_a_convolution(function: str) -> None:
    rng = np.random.default_rng(4)
    shapes = {"k": (5, 2, 3, 3), "c": (5,), "v": (45, 2)}
    model = laws.model(
        "g (float[N, 2, 5, 5] x) => (float[N, 2] y) "
        f"{{ h = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, k, c) f = {function} q = Flatten (f) "
        "z = Gemm (q, v) y = Tanh (z) }",
        **{name: np.float32(rng.normal(size=shape) / 2) for name, shape in shapes.items()},
    )
    x, r = (rng.normal(size=(3, 2, 5, 5)).astype(np.float32) for _ in range(2))
    compare(model, {"x": x}, {"x": r})


# --- by hand ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["zeros", "paired"])
def test_the_smaller_of_two(reference: str) -> None:
    """min(a, b) = a - relu(a - b) from (0, 0): half of it each, where Rescale gives all to the smaller (METHOD 3)."""
    model = laws.model("g (float[N] a, float[N] b) => (float[N] y) { d = Sub (a, b) h = Relu (d) y = Sub (a, h) }")
    rng = np.random.default_rng(6)
    a, b = (np.append(first, rng.uniform(0.01, 9, 200)).astype(np.float32) for first in (2, 1))
    feed = {"a": a, "b": b}
    if reference == "paired":
        feed |= {"a_reference": 0 * a, "b_reference": 0 * b}
    got = laws.run(onnxlift.rewrite(model, rule="reveal-cancel", reference=reference), feed)
    scale = np.maximum(a, b)
    for name in "ab":
        np.testing.assert_allclose(got[f"{name}_contributions"] / scale, np.minimum(a, b) / 2 / scale, atol=1e-6)
    rescale = laws.run(onnxlift.rewrite(model, reference=reference), feed)
    np.testing.assert_allclose(rescale["a_contributions"] / scale, np.where(a < b, a, 0) / scale, atol=1e-6)


def multipliers(function: str, a: float, b: float, r: float) -> tuple[float, float]:
    """m+ and m- of h = a + b, from h = r."""
    explainer = onnxlift.rewrite(of_a_sum(function), rule="reveal-cancel", expose=["h"], target=0, pre_activation=False)
    one = np.ones((1, COLUMNS), np.float32)
    got = laws.run(explainer, {"a": a * one, "b": b * one, "a_reference": r * one, "b_reference": 0 * one})
    return got["h/multiplier/plus"][0, 0], got["h/multiplier/minus"][0, 0]


def test_an_empty_side_takes_the_limit() -> None:
    """n = 0: m+ = dy/dx, m- = (f'(r) + f'(x))/2, which is where n -> 0 leads too; and vice versa."""

    def f(v: float) -> float:
        return float(1 / (1 + np.exp(-v)))

    def slope(v: float) -> float:
        return f(v) * (1 - f(v))

    for b in (0, -1e-4):
        plus, minus = multipliers("Sigmoid (h)", 1.3, b, 0.3)
        np.testing.assert_allclose([plus, minus], [f(1.3) - f(0.3), (slope(0.3) + slope(1.3)) / 2], rtol=1e-4)
    for a in (0.3, 0.3001):
        plus, minus = multipliers("Sigmoid (h)", a, -1, 0.3)
        np.testing.assert_allclose([plus, minus], [(slope(0.3) + slope(-0.7)) / 2, f(0.3) - f(-0.7)], rtol=1e-4)
    np.testing.assert_allclose(multipliers("Sigmoid (h)", 0.3, 0, 0.3), slope(0.3), rtol=1e-6)


def test_an_empty_side_at_a_kink() -> None:
    """relu'(0) = 0. From 0 to 2: m- is the mean of 0 and 1; from 0 to -2 and from 0 to 0: 0. From 2 to 0: m+ = 1/2."""
    assert multipliers("Relu (h)", 2, 0, 0) == (1, 0.5)
    assert multipliers("Relu (h)", 0, -2, 0) == (0, 0)
    assert multipliers("Relu (h)", 0, 0, 0) == (0, 0)
    assert multipliers("Relu (h)", 2, -2, 2) == (0.5, 1)


def test_what_rounding_leaves_of_an_empty_side_decides_nothing() -> None:
    """h moves to 0, the kink, and r + n or r + p misses it by a rounding.

    From above m+ is the mean of relu'(r) = 1 and relu'(0) = 0, from below m- is the mean of two zeros.
    """
    rng = np.random.default_rng(8)
    w = rng.integers(1, 9, (9, 40)) / 8
    model = laws.model(
        "g (float[N, 9] x) => (float[N, 40] y) { h = Gemm (x, w, c) y = Relu (h) }",
        w=w.astype(np.float32),
        c=-w.sum(axis=0).astype(np.float32),
    )
    explainer = onnxlift.rewrite(model, rule="reveal-cancel", expose=["h"], target="weights")
    x = np.ones((20, 9), np.float32)
    for direction, plus, minus in ((1, 0.5, 1), (-1, 0, 0)):
        r = x + direction * rng.uniform(0.1, 1, x.shape).astype(np.float32)
        feed = {"x": x, "x_reference": r, "target_weights": np.ones((20, 40), np.float32)}
        got = laws.run(explainer, feed)
        np.testing.assert_array_equal(got["h"], 0)
        np.testing.assert_allclose(got["h/multiplier/plus"], plus, atol=1e-6)
        np.testing.assert_allclose(got["h/multiplier/minus"], minus, atol=1e-6)


@pytest.mark.parametrize(("function", "jump"), [("Sign (h)", 0), ("Floor (h)", 1), ("ThresholdedRelu (h)", 1)])
@pytest.mark.parametrize("direction", [1, -1])
def test_a_jump_where_one_side_is_empty_is_complete(function: str, jump: int, direction: int) -> None:
    """r is on the jump, and x - p, which is r but for a rounding, would be on either side of it."""
    rng = np.random.default_rng(9)
    a, step = rng.uniform(0.1, 1, (2, 50, COLUMNS)).astype(np.float32)
    explainer = onnxlift.rewrite(of_a_sum(function), rule="reveal-cancel", target=3, expose=["h"])
    at_x = {"a": a + direction * step, "b": jump - a + direction * step}
    got = laws.run(explainer, {**at_x, "a_reference": a, "b_reference": jump - a})
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)


# --- where f has no value, or one out of reach -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "a", "b", "r"),
    [
        ("Sqrt (h)", 4, -2, 1),
        ("Log (h)", 4, -2, 1),
        ("Log (h)", 4, -1, 1),  # log 0
        ("Reciprocal (h)", 4, -1, 1),  # 1 / 0
        ("Pow (h, half)", 4, -2, 1),
        ("Pow (h, minus)", 4, -1, 1),  # 1 / 0
        ("Pow (h, minus)", 4, -2, 1),  # behind the pole
        ("Reciprocal (h)", 4, -2, 1),
        ("Tan (h)", 2, -1.9, 0.2),
        ("Asin (h)", 1.4, -1, 0.5),
        ("Acos (h)", 1.4, -1, 0.5),
        ("Acosh (h)", 3.5, -1, 1.5),
        ("Atanh (h)", 1.4, -0.8, 0.5),
        ("Exp (h)", 40, -39, 0.5),  # so large that its rounding drowns dy
        ("Exp (h)", 150, -150, 1),  # infinite in float32
        ("Cosh (h)", 150, -150, 1),
        ("Sinh (h)", 150, -150, 1),
    ],
)
def test_rescale_where_a_side_alone_is_out_of_reach(function: str, a: float, b: float, r: float) -> None:
    """r and x = a + b have one, r + p = a or r + n = r + b does not: m+ = m- = dy/dx, finite and complete."""
    explainer = onnxlift.rewrite(of_a_sum(function), rule="reveal-cancel", target=0, expose=["h"])
    one = np.ones((1, COLUMNS), np.float32)
    got = laws.run(explainer, {"a": a * one, "b": b * one, "a_reference": r * one, "b_reference": 0 * one})
    values = laws.run(of_a_sum(function), {"a": np.vstack([a * one, r * one]), "b": np.vstack([b * one, 0 * one])})
    whole = (np.float64(values["y"][0, 0]) - values["y"][1, 0]) / (a + b - r)
    for side in ("plus", "minus"):
        np.testing.assert_allclose(got[f"h/multiplier/{side}"][0, 0], whole, rtol=1e-5)
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-6 * abs(whole) * (a - r - b))


def test_a_layer_normalization_of_many_nodes() -> None:
    """Its square root is fed by the parts of the variance, which leave its domain."""
    rng = np.random.default_rng(0)
    model = laws.model(
        "g (float[N, 6] x) => (float[N, 3] y) { h = Gemm (x, w) mu = ReduceMean <keepdims = 1> (h, last) "
        "c = Sub (h, mu) q = Mul (c, c) v = ReduceMean <keepdims = 1> (q, last) e = Add (v, eps) s = Sqrt (e) "
        "o = Div (c, s) a = Relu (o) y = Gemm (a, w2) }",
        w=rng.normal(size=(6, 8)).astype(np.float32),
        w2=rng.normal(size=(8, 3)).astype(np.float32),
        last=np.array([1]),
        eps=np.float32(1e-5),
    )
    x, r = rng.normal(size=(50, 6)).astype(np.float32), 2 * rng.normal(size=(50, 6)).astype(np.float32)
    got = laws.run(onnxlift.rewrite(model, rule="reveal-cancel", target=1), {"x": x, "x_reference": r})
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)


@pytest.mark.parametrize("op", ["Relu", "LeakyRelu", "Abs", "HardSwish", "Elu", "Softsign", "Sigmoid", "Tanh", "Erf"])
def test_finite_at_zero_and_at_the_edge_of_float32(op: str) -> None:
    sizes = np.array([0, 1e-42, 1e-38, 1e-20, 1e-6, 1, 80, 1e4, 1e37], np.float32)
    p, n, r = (grid.reshape(-1, 1) for grid in np.meshgrid(sizes, -sizes, np.append(-sizes, sizes)))
    model = laws.model(f"g (float[N, 1] a, float[N, 1] b) => (float[N, 1] y) {{ h = Add (a, b) y = {op} (h) }}")
    explainer = onnxlift.rewrite(model, rule="reveal-cancel", expose=["h"], pre_activation=False)
    got = laws.run(explainer, {"a": r + p, "b": n, "a_reference": r, "b_reference": 0 * n})
    for name in ("a_contributions", "b_contributions", "h/multiplier/plus", "h/multiplier/minus"):
        assert np.isfinite(got[name]).all(), name


# --- shapes ----------------------------------------------------------------------------------------------------------


def test_an_argument_that_is_broadcast() -> None:
    """One h raised to three powers: conservation, as the oracle looks at arguments of y's shape only."""
    rng = np.random.default_rng(1)
    model = laws.model(
        "g (float[N, 2, 1] a, float[N, 2, 1] b) => (float[N, 2, 3] y) { h = Add (a, b) y = Pow (h, powers) }",
        powers=np.float32([0.5, 1.5, 2]),
    )
    single = laws.model(
        "g (float[N, 2, 1] a, float[N, 2, 1] b) => (float[N, 2, 1] y) { h = Add (a, b) y = Pow (h, p) }",
        p=np.float32(1.5),
    )
    r = {name: rng.uniform(1, 2, (4, 2, 1)).astype(np.float32) for name in "ab"}
    x = {"a": r["a"] + 1, "b": r["b"] - np.float32(0.5)}
    feed = {**x, **{f"{name}_reference": value for name, value in r.items()}}
    each = laws.run(onnxlift.rewrite(model, rule="reveal-cancel", target=(1, 1)), feed)
    alone = laws.run(onnxlift.rewrite(single, rule="reveal-cancel", target=(1, 0)), feed)
    for name in "ab":
        np.testing.assert_allclose(each[f"{name}_contributions"], alone[f"{name}_contributions"], rtol=1e-5)
    weights = np.ones((4, 2, 3), np.float32)
    explainer = onnxlift.rewrite(model, rule="reveal-cancel", target="weights")
    got = laws.run(explainer, {**feed, "target_weights": weights})
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)


def test_operands_of_a_node_of_two_variables_are_one_cause_each() -> None:
    """There are no sides to tell apart: the multipliers are those of the default rule."""
    model = laws.model("g (float[N, 3] a, float[N, 3] b) => (float[N, 3] y) { y = Pow (a, b) }")
    rng = np.random.default_rng(1)
    feed = {name: rng.uniform(0.5, 2, (4, 3)).astype(np.float32) for name in ("a", "b", "a_reference", "b_reference")}
    default, other = (
        laws.run(onnxlift.rewrite(model, target=0, rule=rule), feed) for rule in ("rescale", "reveal-cancel")
    )
    for name in ("a_contributions", "b_contributions"):
        np.testing.assert_array_equal(default[name], other[name])
