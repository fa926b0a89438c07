"""The rules of other packages: what differs from the default rules differs as it does there, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import laws
import numpy as np
import onnx
import pytest

import onnxlift
from onnxlift import Choice, Plan
from onnxlift.metadata import description
from onnxlift.plan import PROFILES
from onnxlift.rules.peers import PEERS, Peer

FUNCTIONS = {
    "Relu": "Relu (x)",
    "LeakyRelu": "LeakyRelu <alpha = 0.3> (x)",
    "PRelu": "PRelu (x, slopes)",
    "Elu": "Elu (x)",
    "Celu": "Celu <alpha = 2.0> (x)",
    "Selu": "Selu (x)",
    "Sigmoid": "Sigmoid (x)",
    "Tanh": "Tanh (x)",
    "Softplus": "Softplus (x)",
    "Gelu": "Gelu (x)",
    "Mish": "Mish (x)",
    "Clip": "Clip (x, low, high)",
}
CONSTANTS = {"slopes": np.linspace(0.1, 0.9, 20, dtype=np.float32), "low": np.float32(-1), "high": np.float32(0.7)}
MAXIMA = {
    "MaxPool": "MaxPool <kernel_shape = [3], strides = [2]> (x)",
    "GlobalMaxPool": "GlobalMaxPool (x)",
    "ReduceMax": "ReduceMax (x, axis)",
    "ReduceMin": "ReduceMin (x, axis)",
    "Max": "Max (x, z)",
    "Min": "Min (x, z)",
}
OPERATORS = (*FUNCTIONS, *MAXIMA)

RESCALE = [pytest.param(peer, op, id=f"{peer.name}-{op}") for peer in PEERS for op in peer.ops]
NAMES = ("captum", "shap", "tangermeme")


def use(rule: str) -> Plan:
    return Plan([Choice(rule)])


def elementwise(op: str) -> onnx.ModelProto:
    used = {name: value for name, value in CONSTANTS.items() if name in FUNCTIONS[op]}
    return laws.model(f"g (float[N, 20] x) => (float y) {{ y = {FUNCTIONS[op]} }}", **used)


def pairs(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random pairs, equal ones, and pairs at every small distance."""
    rng = np.random.default_rng(seed)
    x, r = rng.uniform(-3, 3, (2, 4, 20))
    r[:, :8] = x[:, :8] + 10.0 ** rng.uniform(-12, -1, (4, 8))
    r[:, 8:10] = x[:, 8:10]
    return x.astype(np.float32), r.astype(np.float32)


def multipliers(model, plan: Plan | str, x: np.ndarray, r: np.ndarray, **options) -> np.ndarray:  # type: ignore[no-untyped-def]
    explainer = onnxlift.rewrite(
        model, target="weights", pre_activation=False, emit=("multipliers",), plan=plan, **options
    )
    weights = np.ones_like(laws.run(model, {"x": x})["y"])
    return laws.run(explainer, {"x": x, "x_reference": r, "target_weights": weights})["x_multipliers"]


# --- Rescale ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("peer", "op"), RESCALE)
def test_laws_of_rescale(peer: Peer, op: str) -> None:
    x, r = pairs()
    laws.check(elementwise(op), {"x": x}, {"x": r}, rtol=1e-4, plan=use(f"{peer.name}-rescale"))


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_the_derivative_below_the_threshold(peer: Peer) -> None:
    """Across Relu's kink the quotient is 1/2, and the derivative is 1 on one side and 0 on the other."""
    distances = np.float32([1e-5, 2e-6, 9e-7, 2e-7, 9e-8, 2e-10, 9e-11])
    x = distances[:, None] * np.float32([0.5, -0.5])
    model = laws.model("g (float[N, 2] x) => (float y) { y = Relu (x) }")
    got = multipliers(model, use(f"{peer.name}-rescale"), x, -x)
    near = distances[:, None] < peer.threshold
    at = -x if peer.at_reference else x
    np.testing.assert_allclose(got, np.where(near, at > 0, 0.5), rtol=1e-6)
    assert 0 < near.sum() < near.size


def test_thresholds_and_sides() -> None:
    """As found in the sources of the releases that docs/profiles.md names."""
    assert {peer.name: (peer.threshold, "r" if peer.at_reference else "x") for peer in PEERS} == {
        "deeplift": (1e-7, "r"),
        "captum": (1e-10, "x"),
        "shap": (1e-6, "r"),
        "tangermeme": (1e-6, "x"),
    }


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_above_the_threshold_the_default_rule(peer: Peer) -> None:
    x, r = pairs(1)
    x, r = (np.where(abs(x - r) > 1e-5, value, 0) for value in (x, r))
    for op in peer.ops:
        model = elementwise(op)
        np.testing.assert_array_equal(
            multipliers(model, use(f"{peer.name}-rescale"), x, r), multipliers(model, Plan(), x, r)
        )


@pytest.mark.parametrize("rule", [f"{peer.name}-rescale" for peer in PEERS])
def test_rescale_in_half_precision_is_finite(rule: str) -> None:
    x, r = (value.astype(np.float16) for value in pairs(2))
    model = laws.model("g (float16[N, 20] x) => (float16 y) { y = Sigmoid (x) }")
    laws.check(model, {"x": x}, {"x": r}, rtol=2e-2, plan=use(rule), references=False)


# --- maxima ----------------------------------------------------------------------------------------------------------


def maximum(op: str) -> onnx.ModelProto:
    used = {"axis": np.array([2])} if op.startswith("Reduce") else {}
    inputs = "float[N, 2, 7] x" + (", float[N, 2, 7] z" if op in ("Max", "Min") else "")
    return laws.model(f"g ({inputs}) => (float y) {{ y = {MAXIMA[op]} }}", **used)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("op", MAXIMA)
def test_laws_of_maxima(op: str, name: str) -> None:
    """Where nothing is equal the rule is cross-max-first, which the oracle knows; at x = r too, but for shap."""
    rng = np.random.default_rng(3)
    names = ("x", "z") if op in ("Max", "Min") else ("x",)
    x, r = ({key: rng.standard_normal((3, 2, 7)).astype(np.float32) for key in names} for _ in range(2))
    model, plan = maximum(op), use(f"{name}-max")
    if name == "shap":
        laws.check_signed(model, x, r, plan=plan)
    else:
        laws.check(model, x, r, plan=plan, ties="first")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("captum", [1, 0.5, 0]), ("tangermeme", [1, 0.5, 0]), ("shap", [0, 0.5, 0])],
)
def test_a_maximum_that_did_not_change(name: str, expected: list[float]) -> None:
    """y falls from 5 to 3: half of it at the place that fell from 5 to 1, and the maximum of x stayed as it was."""
    model = laws.model("g (float[N, 1, 3] x) => (float y) { y = GlobalMaxPool (x) }")
    x, r = np.float32([[[3, 1, 2]]]), np.float32([[[3, 5, 2]]])
    assert multipliers(model, use(f"{name}-max"), x, r).ravel().tolist() == expected
    assert multipliers(model, use("cross-max-first"), x, r).ravel().tolist() == [0, 0.5, 0]
    again = multipliers(model, use(f"{name}-max"), x, x).ravel().tolist()
    assert again == ([0, 0, 0] if name == "shap" else [1, 0, 0])


def test_how_near_is_unchanged() -> None:
    """The maximum of x fell by 2e-7, 9e-8, 9e-11 or 0: what is unchanged has the gradient at x, or nothing."""
    model = laws.model("g (double[N, 1, 2] x) => (double y) { y = ReduceMax (x, last) }", last=np.array([2]))
    x = np.array([[[1.0, 0]], [[1, 0]], [[1, 0]], [[1, 0]]])
    r = x + np.array([2e-7, 9e-8, 9e-11, 0])[:, None, None] * [1, 0] + [0, 2]
    unchanged = {name: multipliers(model, use(f"{name}-max"), x, r)[:, 0, 0].tolist() for name in NAMES}
    assert unchanged == {"captum": [0, 0, 1, 1], "tangermeme": [0, 0, 0, 1], "shap": [0, 0, 0, 0]}
    fell = multipliers(model, use("shap-max"), r - [0, 2], x)[:, 0, 0]
    np.testing.assert_allclose(fell, [1, 0, 0, 0], rtol=1e-6)


# --- RevealCancel of the original ------------------------------------------------------------------------------------

KINDS = {
    "Relu": lambda t: np.maximum(t, 0),
    "LeakyRelu": lambda t: np.where(t > 0, t, 0.3 * t),
    "PRelu": lambda t: np.where(t > 0, t, 0.25 * t),
    "Sigmoid": lambda t: 1 / (1 + np.exp(-t)),
    "Tanh": np.tanh,
}


Array = np.ndarray


def original(f: Callable[[Array], Array], w: Array, v: Array, x: Array, r: Array, count: float = 1e-7) -> Array:
    """Multipliers of x for sum(f(x w) v) in the arithmetic of the original DeepLIFT, in float64."""
    w, v, x, r = (value.astype(np.float64) for value in (w, v, x, r))
    d, z0 = x - r, r @ w
    p = np.maximum(d, 0) @ np.maximum(w, 0) + np.minimum(d, 0) @ np.minimum(w, 0)
    n = np.maximum(d, 0) @ np.minimum(w, 0) + np.minimum(d, 0) @ np.maximum(w, 0)
    p, n = (np.where(abs(t) < count / 2, np.where(t < 0, t - count, t + count), t) for t in (p, n))
    plus = (f(z0 + p) - f(z0) + f(z0 + n + p) - f(z0 + n)) / (2 * p) * v
    minus = (f(z0 + n) - f(z0) + f(z0 + p + n) - f(z0 + p)) / (2 * n) * v
    up, down = np.maximum(w, 0).T, np.minimum(w, 0).T
    return np.where(
        d > 0, plus @ up + minus @ down, np.where(d < 0, plus @ down + minus @ up, (plus + minus) / 2 @ w.T)
    )


@pytest.mark.parametrize("op", KINDS)
@pytest.mark.parametrize("at_zero", [True, False], ids=["r = 0", "r"])
def test_reveal_cancel_is_the_original_without_its_noise(op: str, at_zero: bool) -> None:
    """Also with empty sides, at kinks and where the input did not change."""
    rng = np.random.default_rng(5)
    w, v = rng.integers(-2, 3, (6, 5)), rng.uniform(-1, 1, 5)
    w[:, 0] = abs(w[:, 0])  # for x above r this unit has no negative part
    x, r = rng.uniform(-1, 1, (2, 8, 6)).round(2)
    r, x[:3] = (0 if at_zero else 1) * r, abs(x[:3]) + 1
    x[:, 5] = r[:, 5]
    w, v, x, r = (value.astype(np.float32) for value in (w, v, x, r))
    attributes = "<alpha = 0.3>" if op == "LeakyRelu" else ""
    more, slope = (", s", {"s": np.float32(0.25)}) if op == "PRelu" else ("", {})
    text = f"h = MatMul (x, w) a = {op} {attributes} (h{more}) y = Mul (a, v)"
    model = laws.model(f"g (float[N, 6] x) => (float y) {{ {text} }}", w=w, v=v, **slope)
    got = multipliers(model, use("deeplift-reveal-cancel"), x, r)
    expected = original(KINDS[op], w, v, x, r)
    np.testing.assert_allclose(got, expected, rtol=0, atol=3e-6 * abs(expected).max())
    plain = multipliers(model, use("reveal-cancel"), x, r)
    assert (abs(plain - got).max() > 1e-2) == (at_zero and op in ("Relu", "LeakyRelu", "PRelu"))


def test_reveal_cancel_where_x_is_at_the_kink() -> None:
    """An empty side is moved last: beyond the kink, where Relu's slope is 1. x_1 did not change: m = (m+ + m-) / 2."""
    text = "g (float[N, 2] x) => (float y) { h = MatMul (x, w) y = Relu (h) }"
    model, x, r = laws.model(text, w=np.ones((2, 1), np.float32)), np.float32([[0, 0]]), np.float32([[2, 0]])
    assert multipliers(model, use("deeplift-reveal-cancel"), x, r).tolist() == [[1, 1]]
    assert multipliers(model, use("reveal-cancel"), x, r).tolist() == [[1, 0.75]]


@pytest.mark.parametrize("op", KINDS)
def test_reveal_cancel_conserves(op: str) -> None:
    x, r = pairs(4)
    used = {"slopes": CONSTANTS["slopes"]} if op == "PRelu" else {}
    model = laws.model(f"g (float[N, 20] x) => (float y) {{ y = {FUNCTIONS[op]} }}", **used)
    laws.check_signed(model, {"x": x}, {"x": r}, rtol=1e-4, plan=use("deeplift-reveal-cancel"))


# --- profiles --------------------------------------------------------------------------------------------------------


def chosen(model: onnx.ModelProto, **options: str) -> dict[str, Any]:
    """Operator -> its rule, or node -> rule where they differ."""
    about = description(onnxlift.rewrite(model, target=0, pre_activation=False, **options))
    assert about is not None
    return about["rules"]


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_chooses_the_rules_of_its_package(name: str) -> None:
    model = laws.model(
        "g (float[N, 4] x) => (float y) { h = Gemm (x, w) a = Relu (h) e = Exp (a) y = Max (a, e) }",
        w=np.eye(4, dtype=np.float32),
    )
    rules = chosen(model, plan=name)
    maxima = "argmax" if name == "deeplift" else f"{name}-max"
    assert (rules["Relu"], rules["Max"], rules["Exp"]) == (f"{name}-rescale", maxima, "rescale")


def test_the_deeplift_profile_with_each_of_its_modes() -> None:
    model = laws.model(
        "g (float[N, 1, 4] x) => (float y)\n"
        "{ c = Conv (x, k) a = Relu (c) f = Flatten (a) h = MatMul (f, w) y = Relu (h) }",
        k=np.ones((1, 1, 2), np.float32),
        w=np.ones((3, 2), np.float32),
    )
    for rule, convolved, dense in [
        ("rescale", "deeplift-rescale", "deeplift-rescale"),
        ("reveal-cancel", "deeplift-reveal-cancel", "deeplift-reveal-cancel"),
        ("genomics", "deeplift-rescale", "deeplift-reveal-cancel"),
    ]:
        found = chosen(model, rule=rule, plan="deeplift")["Relu"]
        assert (list(found.values()) if isinstance(found, dict) else [found] * 2) == [convolved, dense]
