"""Rescale: every elementwise operator against the oracle, at the kinks, where x and r nearly meet, and in float16."""

from __future__ import annotations

import laws
import numpy as np
import pytest

import onnxlift

ANY = (-3.0, 3.0)
POSITIVE = (0.05, 4.0)

# operator -> (attributes, where its argument lives)
CASES: dict[str, list[tuple[str, tuple[float, float]]]] = {
    "Relu": [("", ANY)],
    "LeakyRelu": [("", ANY), ("<alpha = 0.3>", ANY), ("<alpha = 1.7>", ANY)],
    "ThresholdedRelu": [("", ANY), ("<alpha = 0.4>", ANY)],
    "Shrink": [
        ("", ANY),
        ("<lambd = 1.1, bias = 1.1>", ANY),
        ("<lambd = 0.7, bias = 0.2>", ANY),
        ("<lambd = 0.0, bias = -1.0>", ANY),
    ],
    "Elu": [("", ANY), ("<alpha = 0.5>", ANY)],
    "Celu": [("", ANY), ("<alpha = 2.0>", ANY)],
    "Selu": [("", ANY), ("<alpha = 1.1, gamma = 0.9>", ANY)],
    "HardSigmoid": [("", ANY), ("<alpha = 0.5, beta = 0.4>", ANY)],
    "HardSwish": [("", (-6.0, 6.0))],
    "Sigmoid": [("", ANY), ("", (-40.0, 40.0))],
    "Tanh": [("", ANY), ("", (-40.0, 40.0))],
    "Softplus": [("", ANY), ("", (-30.0, 30.0))],
    "Softsign": [("", ANY)],
    "Gelu": [("", ANY), ('<approximate = "tanh">', ANY)],
    "Mish": [("", ANY)],
    "Erf": [("", ANY)],
    "Exp": [("", ANY)],
    "Log": [("", POSITIVE), ("", (1e-3, 1e3))],
    "Sqrt": [("", POSITIVE)],
    "Reciprocal": [("", POSITIVE)],
    "Abs": [("", ANY)],
    "Sign": [("", ANY)],
    "Floor": [("", ANY)],
    "Ceil": [("", ANY)],
    "Round": [("", ANY)],
    "Sin": [("", ANY)],
    "Cos": [("", ANY)],
    "Tan": [("", (-1.2, 1.2))],
    "Asin": [("", (-0.9, 0.9))],
    "Acos": [("", (-0.9, 0.9))],
    "Atan": [("", ANY)],
    "Sinh": [("", ANY)],
    "Cosh": [("", ANY)],
    "Asinh": [("", ANY)],
    "Acosh": [("", (1.2, 4.0))],
    "Atanh": [("", (-0.9, 0.9))],
}
FLAT = [(op, attributes, domain) for op, cases in CASES.items() for attributes, domain in cases]

OPERATORS = (*CASES, "PRelu", "Clip", "Pow", "Mod")

NO_FLOAT16 = {"Celu"}
"""ONNX Runtime has no kernel for them."""

JUMPS = {"Sign", "Floor", "Ceil", "Round", "ThresholdedRelu", "Shrink"}
"""Discontinuous functions: their quotient is unbounded where x and r straddle a jump."""


def pairs(domain: tuple[float, float], dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Random pairs, equal ones, and pairs at every small distance."""
    rng = np.random.default_rng(3)
    low, high = domain
    x = rng.uniform(low, high, (4, 30))
    r = rng.uniform(low, high, (4, 30))
    distance = 10.0 ** rng.uniform(-7, -1, (4, 10))
    r[:, :10] = x[:, :10] * (1 - distance) if low > 0 else x[:, :10] - distance
    r[:, 10:12] = x[:, 10:12]
    return x.astype(dtype), np.clip(r, low, high).astype(dtype)


def one_node(op: str, attributes: str = "", dtype: str = "float", more: str = "", **arrays: np.ndarray):
    return laws.model(f"g ({dtype}[N, 30] x) => ({dtype}[N, 30] y) {{ y = {op} {attributes} (x{more}) }}", **arrays)


@pytest.mark.parametrize(("op", "attributes", "domain"), FLAT)
def test_laws(op: str, attributes: str, domain: tuple[float, float]) -> None:
    x, r = pairs(domain)
    # A multiplier from a divided difference is good to (eps / sqrt(24))^(2/3) of the function's scale.
    laws.check(one_node(op, attributes), {"x": x}, {"x": r}, rtol=1e-4)


@pytest.mark.parametrize(("op", "attributes", "domain"), [case for case in FLAT if case[0] not in JUMPS | NO_FLOAT16])
def test_float16_is_finite_and_conserves(op: str, attributes: str, domain: tuple[float, float]) -> None:
    x, r = pairs(domain if domain != (1e-3, 1e3) else POSITIVE, np.float16)
    laws.check(one_node(op, attributes, "float16"), {"x": x}, {"x": r}, rtol=6e-2, references=False)


@pytest.mark.parametrize("op", ["Relu", "Abs", "Sqrt", "HardSwish", "Elu", "Softsign", "LeakyRelu", "Sigmoid", "Tanh"])
def test_finite_at_zero_and_at_the_edge_of_float32(op: str) -> None:
    tiny, huge = np.float32(1e-42), np.float32(1e37)
    values = np.array([0, tiny, 1e-38, 1e-20, 1, 80, 1e4, huge], np.float32)
    x, r = np.meshgrid(np.concatenate([-values, values]), np.concatenate([-values, values]))
    if op == "Sqrt":
        x, r = abs(x), abs(r)
    x, r = (np.resize(value, (9, 30)) for value in (x, r))
    model = onnxlift.rewrite(one_node(op), target="weights", emit=("contributions", "multipliers"))
    got = laws.run(model, {"x": x, "x_reference": r, "target_weights": np.ones_like(x)})
    assert np.isfinite(got["x_multipliers"]).all()


def test_relu_is_exact() -> None:
    """Multipliers in [0, 1], exactly 0 or 1 on either side, f'(0) = 0 at x = r = 0."""
    x = np.array([[2, -2, 1, -1, 0, 3, -3, 1e-45]], np.float32)
    r = np.array([[1, -1, -1, 1, 0, 3, -3, 1e-45]], np.float32)
    model = laws.model("g (float[1, 8] x) => (float[1, 8] y) { y = Relu (x) }")
    explainer = onnxlift.rewrite(model, target="weights", emit=("multipliers",))
    got = laws.run(explainer, {"x": x, "x_reference": r, "target_weights": np.ones_like(x)})
    np.testing.assert_array_equal(got["x_multipliers"][0, :7], np.float32([1, 0, 0.5, 0.5, 0, 1, 0]))


@pytest.mark.parametrize("slope", [np.float32(0.25), np.linspace(-0.5, 1.5, 30, dtype=np.float32)], ids=["one", "each"])
def test_prelu(slope: np.ndarray) -> None:
    x, r = pairs(ANY)
    laws.check(one_node("PRelu", more=", s", s=np.asarray(slope)), {"x": x}, {"x": r})


@pytest.mark.parametrize(
    ("more", "bounds"), [(", low, high", (0, 6)), (", low", (-1, 0)), (", , high", (0, 1)), ("", (0, 0))]
)
def test_clip(more: str, bounds: tuple[float, float]) -> None:
    x, r = pairs((-8.0, 8.0))
    low, high = (np.float32(bound) for bound in bounds)
    laws.check(one_node("Clip", more=more, low=low, high=high), {"x": x}, {"x": r})


@pytest.mark.parametrize(
    ("exponent", "domain"),
    [
        (1.0, ANY),
        (2.0, ANY),
        (3.0, ANY),
        (4.0, ANY),
        (0.5, POSITIVE),
        (-1.0, POSITIVE),
        (-1.5, POSITIVE),
        (2.5, POSITIVE),
    ],
)
def test_power(exponent: float, domain: tuple[float, float]) -> None:
    x, r = pairs(domain)
    laws.check(one_node("Pow", more=", p", p=np.float32(exponent)), {"x": x}, {"x": r}, rtol=1e-4)


def test_power_with_a_vector_of_exponents_and_with_a_base() -> None:
    x, r = pairs(POSITIVE)
    exponents = np.linspace(-1, 2, 30, dtype=np.float32)
    laws.check(one_node("Pow", more=", p", p=exponents), {"x": x}, {"x": r}, rtol=1e-4)
    base = laws.model("g (float[N, 30] x) => (float[N, 30] y) { y = Pow (b, x) }", b=np.float32(2.5))
    laws.check(base, {"x": x}, {"x": r})


@pytest.mark.parametrize("divisor", [1.0, -0.7, 2.5])
def test_remainder(divisor: float) -> None:
    x, r = pairs(ANY)
    model = one_node("Mod", "<fmod = 1>", more=", b", b=np.float32(divisor))
    laws.check(model, {"x": x}, {"x": r}, rtol=1e-4)


@pytest.mark.parametrize(
    "chain",
    [
        "s = Sigmoid (x) y = Mul (x, s)",
        "a = Div (x, root) e = Erf (a) b = Add (e, one) c = Mul (x, b) y = Mul (c, half)",
        "a = Add (x, three) b = Clip (a, zero, six) c = Mul (x, b) y = Div (c, six)",
        "s = Softplus (x) t = Tanh (s) y = Mul (x, t)",
    ],
    ids=["silu", "gelu", "hard-swish", "mish"],
)
def test_a_chain_of_functions_of_one_tensor_has_the_multiplier_of_the_whole(chain: str) -> None:
    """Rules of the parts, midpoint products included, give dy/dx of the composition (METHOD section 3)."""
    constants = {"root": 2**0.5, "one": 1, "half": 0.5, "three": 3, "zero": 0, "six": 6}
    model = laws.model(
        f"g (float[N, 30] x) => (float[N, 30] y) {{ {chain} }}", **{k: np.float32(v) for k, v in constants.items()}
    )
    x, r = pairs((-5.0, 5.0))
    keep = abs(x - r) > 0.05
    explainer = onnxlift.rewrite(model, target="weights", emit=("multipliers",))
    got = laws.run(explainer, {"x": x, "x_reference": r, "target_weights": np.ones_like(x)})["x_multipliers"]
    y, y0 = (laws.run(model, {"x": value})["y"].astype(np.float64) for value in (x, r))
    np.testing.assert_allclose(got[keep], (y - y0)[keep] / (x.astype(np.float64) - r)[keep], atol=2e-5)


@pytest.mark.parametrize(
    ("body", "at"),
    [("Pow (x, half)", 0), ("Pow (x, none)", 0), ("Asin (x)", 1), ("Acos (x)", -1), ("Acosh (x)", 1), ("Sqrt (x)", 0)],
)
def test_an_infinite_derivative_gives_nothing_where_nothing_changes(body: str, at: float) -> None:
    used = {name: np.float32(value) for name, value in (("half", 0.5), ("none", 0)) if name in body}
    model = laws.model(f"g (float[N, 1] x) => (float[N, 1] y) {{ y = {body} }}", **used)
    explainer = onnxlift.rewrite(model, emit=("contributions", "multipliers"))
    x = np.full((1, 1), at, np.float32)
    got = laws.run(explainer, {"x": x, "x_reference": x})
    assert got["x_multipliers"] == got["x_contributions"] == 0


@pytest.mark.parametrize("op", ["HardSigmoid", "HardSwish"])
def test_saturation_far_away_is_exact(op: str) -> None:
    model = laws.model(f"g (float[N, 1] x) => (float[N, 1] y) {{ y = {op} (x) }}")
    x = np.float32([[1e8], [1e6], [3], [1e10]])
    got = laws.run(onnxlift.rewrite(model), {"x": x, "x_reference": -x})
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-6 * abs(got["target_output"]).max())
