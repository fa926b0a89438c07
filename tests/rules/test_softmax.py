"""Softmax and its kin: the laws, the limits, masks and huge logits."""

from __future__ import annotations

import re

import laws
import numpy as np
import onnx
import oracle
import pytest

from onnxlift import rewrite

# operator -> bodies of a graph x [3, 4, 2, 5] -> y
CASES = {
    "Softmax": ["y = Softmax (x)", "y = Softmax <axis = 1> (x)", "y = Softmax <axis = -2> (x)"],
    "LogSoftmax": ["y = LogSoftmax (x)", "y = LogSoftmax <axis = 1> (x)"],
    "ReduceLogSumExp": [
        "y = ReduceLogSumExp (x, axes)",
        "y = ReduceLogSumExp <keepdims = 0> (x, axes)",
        "y = ReduceLogSumExp <keepdims = 0> (x, two)",
    ],
}
OPERATORS = tuple(CASES)
ALL = [body for bodies in CASES.values() for body in bodies]
SHAPE = (3, 4, 2, 5)
SIZES = {"known": "N, 4, 2, 5", "unknown": "N, C, H, W", "all known": "3, 4, 2, 5"}
AXES = {"axes": np.array([1]), "two": np.array([1, -1])}


def one(body: str, sizes: str = SIZES["known"], dtype: str = "float", **others: np.ndarray) -> onnx.ModelProto:
    used = {name: value for name, value in AXES.items() if name in re.findall(r"\w+", body)}
    return laws.model(f"g ({dtype}[{sizes}] x) => ({dtype} y) {{ {body} }}", **{**used, **others})


def pair(seed: int, scale: float = 2, dtype: type = np.float32) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": (rng.standard_normal(SHAPE) * scale).astype(dtype)} for _ in range(2)]


@pytest.mark.parametrize("body", ALL)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_laws(body: str, sizes: str) -> None:
    x, r = pair(0)
    laws.check(one(body, sizes), x, r, references=sizes[0] == "N")


@pytest.mark.parametrize("body", ALL)
@pytest.mark.parametrize(("dtype", "rtol"), [("float16", 4e-3), ("double", 1e-12)])
def test_other_precisions(body: str, dtype: str, rtol: float) -> None:
    x, r = pair(1, dtype=np.float16 if dtype == "float16" else np.float64)
    laws.check(one(body, dtype=dtype), x, r, rtol=rtol)


@pytest.mark.parametrize("body", ALL)
@pytest.mark.parametrize("distance", [1e-2, 1e-4, 1e-6])
def test_references_close_by(body: str, distance: float) -> None:
    """No cancellation: the multipliers are as good as those of a reference far away."""
    x, r = pair(2)
    laws.check(one(body), x, {"x": x["x"] + r["x"] * np.float32(distance)}, conserves=False)


EXTREMES = {
    "large and alike": (1e4, 1, 1),
    "large apart": (0, 1e4, 1e4),
    "large against small": (0, 1e4, 1),
    "one certain": (-300, 1, 300),
}


@pytest.mark.parametrize("body", ALL)
@pytest.mark.parametrize(("offset", "scale", "scale0"), EXTREMES.values(), ids=EXTREMES)
def test_large_logits(body: str, offset: float, scale: float, scale0: float) -> None:
    """m_j is a difference of two products with g: it is good to a few roundings of g, however large the logits."""
    x, r = ({"x": pair(3, s)[k]["x"] + np.float32(offset)} for k, s in enumerate((scale, scale0)))
    got, w, expected = explain(one(body), x, r)
    np.testing.assert_allclose(got["x_multipliers"], expected, rtol=0, atol=1e-6 * np.abs(w).max())


def explain(model: onnx.ModelProto, x: dict, r: dict) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """The explainer's outputs, the random upstream multipliers, and the oracle's multipliers of x."""
    explainer = rewrite(model, target="weights", pre_activation=False, emit=("multipliers",))
    w = np.random.default_rng(7).standard_normal(laws.run(model, x)["y"].shape).astype(np.float32)
    got = laws.run(explainer, {**x, "x_reference": r["x"], "target_weights": w})
    return got, w, oracle.explain(model, x, r, inputs=["x"], output="y", seed=w).multipliers["x"]


@pytest.mark.parametrize("body", ALL)
@pytest.mark.parametrize("lowest", [-np.inf, np.finfo(np.float32).min, -1e4])
def test_masked_logits_get_nothing(body: str, lowest: float) -> None:
    keep = np.ones(SHAPE[1:], np.bool_)
    keep[1:3, 1, :3] = False
    masked = f"h = Where (keep, x, low) {body.replace('(x', '(h')}"
    if "LogSoftmax" in body:  # what is minus infinity has no difference
        masked = f"{masked.replace('y =', 'l =')} y = Where (keep, l, zero)"
    constants = {"keep": keep, "low": np.float32(lowest), "zero": np.float32(0)}
    used = {name: value for name, value in constants.items() if name in masked}
    got = laws.check(one(masked, **used), *pair(4), signed=False)  # a masked logit has no difference
    assert not got["x_multipliers"][:, ~keep].any()


@pytest.mark.parametrize("body", ALL)
def test_logits_masked_in_one_run(body: str) -> None:
    """By a finite number, at x, at r, or at both."""
    x, r = pair(5)
    x["x"][:, :2, 0, :3] = r["x"][:, 1:3, 0, 1:4] = np.finfo(np.float32).min
    got, w, expected = explain(one(body), x, r)
    np.testing.assert_allclose(got["x_multipliers"], expected, rtol=0, atol=1e-6 * np.abs(w).max())


@pytest.mark.parametrize("body", ALL)
@pytest.mark.parametrize("lowest", [-np.inf, np.finfo(np.float32).min])
def test_hopeless_masks_give_finite_multipliers(body: str, lowest: float) -> None:
    """Minus infinity in one run, and whole rows of the lowest number in one run or both."""
    x, r = pair(5)
    x["x"][:, :2, 0, :3] = r["x"][:, 1:3, 0, 1:4] = lowest
    if np.isfinite(lowest):
        x["x"][0] = r["x"][0] = r["x"][1] = x["x"][2] = lowest
    explainer = rewrite(one(body), target="weights", pre_activation=False, emit=("multipliers",))
    w = np.ones_like(laws.run(one(body), x)["y"])
    got = laws.run(explainer, {**x, "x_reference": r["x"], "target_weights": w})
    assert np.isfinite(got["x_multipliers"]).all()
    if np.isfinite(lowest) and body.startswith("y = Reduce"):
        size = w[0].size / x["x"][0].size
        np.testing.assert_allclose(got["x_multipliers"][0], size, rtol=1e-6)


def test_softmax_of_two_is_a_sigmoid() -> None:
    """By hand: y_0 goes from 1/2 to 3/4 where x_0 goes from 0 to ln 3, and the other logit stays."""
    model = laws.model("g (float[N, 2] x) => (float[N, 2] y) { y = Softmax (x) }")
    explainer = rewrite(model, target=0, pre_activation=False, emit=("contributions",))
    got = laws.run(
        explainer, {"x": np.array([[np.log(3), 0]], np.float32), "x_reference": np.zeros((1, 2), np.float32)}
    )
    np.testing.assert_allclose(got["x_contributions"], [[0.25, 0]], rtol=1e-6)


def test_a_row_that_is_masked_altogether() -> None:
    """Its softmax is NaN in both runs and is selected away: the other rows get what they get without it."""
    keep = np.ones((4, 2, 5), np.bool_)
    keep[1, 1], keep[2, 0, 1:] = False, False
    body = "h = Where (keep, x, low) s = Softmax (h) n = IsNaN (s) p = Where (n, zero, s) y = MatMul (p, values)"
    values = np.random.default_rng(6).standard_normal((5, 3)).astype(np.float32)
    model = one(body, keep=keep, low=np.float32(-np.inf), zero=np.float32(0), values=values)
    x, r = pair(7)
    explainer = rewrite(model, target="weights", emit=("contributions", "multipliers"))
    w = np.random.default_rng(8).standard_normal((*SHAPE[:3], 3)).astype(np.float32)
    got = laws.run(explainer, {**x, "x_reference": r["x"], "target_weights": w})
    assert not got["x_multipliers"][:, ~keep].any()
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)
    rest = one("y = Softmax (x)")
    expected = oracle.explain(rest, x, r, inputs=["x"], output="y", seed=w.astype(np.float64) @ values.T).multipliers[
        "x"
    ]
    whole = keep.all(axis=-1)
    np.testing.assert_allclose(got["x_multipliers"][:, whole], expected[:, whole], atol=2e-6)
