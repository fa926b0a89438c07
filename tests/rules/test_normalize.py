"""Softmax and the normalisations: the laws, the limits, masks, huge logits and vanishing variances."""

from __future__ import annotations

import re

import laws
import numpy as np
import onnx
import oracle
import pytest

from onnxlift import RuleError, rewrite

# operator -> bodies of a graph x [3, 4, 2, 5] -> y
CASES = {
    "Softmax": ["y = Softmax (x)", "y = Softmax <axis = 1> (x)", "y = Softmax <axis = -2> (x)"],
    "LogSoftmax": ["y = LogSoftmax (x)", "y = LogSoftmax <axis = 1> (x)"],
    "ReduceLogSumExp": [
        "y = ReduceLogSumExp (x, axes)",
        "y = ReduceLogSumExp <keepdims = 0> (x, axes)",
        "y = ReduceLogSumExp <keepdims = 0> (x, two)",
    ],
    "LayerNormalization": [
        "y = LayerNormalization (x, last, last_bias)",
        "y = LayerNormalization <epsilon = 0.1> (x, last)",
        "y = LayerNormalization <axis = 2> (x, both, both_bias)",
        "y = LayerNormalization <axis = -3> (x, one)",
    ],
    "InstanceNormalization": ["y = InstanceNormalization (x, channel, channel_bias)"],
    "GroupNormalization": [
        "y = GroupNormalization <num_groups = 2> (x, channel, channel_bias)",
        "y = GroupNormalization <num_groups = 1, epsilon = 0.01> (x, channel, channel_bias)",
    ],
}
OPERATORS = tuple(CASES)
ALL = [body for bodies in CASES.values() for body in bodies]
SOFTMAX = [body for body in ALL if "Normalization" not in body]
NORMALIZATIONS = [body for body in ALL if "Normalization" in body]
SHAPE = (3, 4, 2, 5)
SIZES = {"known": "N, 4, 2, 5", "unknown": "N, C, H, W", "all known": "3, 4, 2, 5"}


def constants() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = {"last": 5, "both": (2, 5), "one": 1, "channel": 4}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    biases = {f"{name}_bias": value[::-1].copy() for name, value in arrays.items()}
    return {**arrays, **biases, "axes": np.array([1]), "two": np.array([1, -1])}


def one(body: str, sizes: str = SIZES["known"], dtype: str = "float", **others: np.ndarray) -> onnx.ModelProto:
    read = re.findall(r"\w+", body)
    kind = np.float16 if dtype == "float16" else np.float64 if dtype == "double" else np.float32
    used = {
        name: value.astype(kind) if value.dtype.kind == "f" else value
        for name, value in constants().items()
        if name in read
    }
    return laws.model(f"g ({dtype}[{sizes}] x) => ({dtype} y) {{ {body} }}", **{**used, **others})


def pair(
    seed: int, scale: float = 2, shape: tuple[int, ...] = SHAPE, dtype: type = np.float32
) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": (rng.standard_normal(shape) * scale).astype(dtype)} for _ in range(2)]


@pytest.mark.parametrize("body", ALL)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_laws(body: str, sizes: str) -> None:
    x, r = pair(0)
    laws.check(one(body, sizes), x, r, references=sizes[0] == "N")


@pytest.mark.parametrize("body", ALL)
@pytest.mark.parametrize(("dtype", "rtol"), [("float16", 4e-3), ("double", 1e-12)])
def test_other_precisions(body: str, dtype: str, rtol: float) -> None:
    if dtype == "double" and ("Instance" in body or "Group" in body):
        pytest.skip("no kernel")
    x, r = pair(1, dtype=np.float16 if dtype == "float16" else np.float64)
    laws.check(one(body, dtype=dtype), x, r, rtol=rtol)


@pytest.mark.parametrize("body", ALL)
@pytest.mark.parametrize("distance", [1e-2, 1e-4, 1e-6])
def test_references_close_by(body: str, distance: float) -> None:
    """No cancellation: the multipliers are as good as those of a reference far away."""
    x, r = pair(2)
    laws.check(one(body), x, {"x": x["x"] + r["x"] * np.float32(distance)}, conserves=False)


# --- softmax ---------------------------------------------------------------------------------------------------------

EXTREMES = {
    "large and alike": (1e4, 1, 1),
    "large apart": (0, 1e4, 1e4),
    "large against small": (0, 1e4, 1),
    "one certain": (-300, 1, 300),
}


@pytest.mark.parametrize("body", SOFTMAX)
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


@pytest.mark.parametrize("body", SOFTMAX)
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


@pytest.mark.parametrize("body", SOFTMAX)
def test_logits_masked_in_one_run(body: str) -> None:
    """By a finite number, at x, at r, or at both."""
    x, r = pair(5)
    x["x"][:, :2, 0, :3] = r["x"][:, 1:3, 0, 1:4] = np.finfo(np.float32).min
    got, w, expected = explain(one(body), x, r)
    np.testing.assert_allclose(got["x_multipliers"], expected, rtol=0, atol=1e-6 * np.abs(w).max())


@pytest.mark.parametrize("body", SOFTMAX)
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


# --- normalisations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", NORMALIZATIONS)
@pytest.mark.parametrize("scale", [1e-20, 1e-4, 1e3, 1e12])
def test_small_and_large_values(body: str, scale: float) -> None:
    x, r = pair(6, scale)
    conserves = scale > 1e-6 or "bias" not in body  # next to a bias y does not show so small a change
    laws.check(one(body), x, r, rtol=2e-5, conserves=conserves)
    laws.check(one(body), x, {"x": r["x"] * np.float32(1e-3)}, rtol=2e-5, references=False, conserves=conserves)


@pytest.mark.parametrize("eps", [1e-5, 1e-12])
@pytest.mark.parametrize("level", [0, 3])
def test_constant_rows(eps: float, level: float) -> None:
    """Variance 0 at the reference, at the input, and at both."""
    body = f"y = LayerNormalization <epsilon = {eps:.15f}> (x, last, last_bias)"
    x, r = pair(7)
    flat = {"x": np.full(SHAPE, level, np.float32)}
    laws.check(one(body), x, flat)
    laws.check(one(body), flat, r)
    laws.check(one(body), flat, {"x": flat["x"] + 1})


def test_unused_statistics() -> None:
    model = laws.model("g (float[N, 4] x, float[4] s) => (float y) { y, mean, deviation = LayerNormalization (x, s) }")
    x, r = pair(8, shape=(3, 4))
    laws.check(model, x, r, others={"s": np.array([1, 2, -1, 0], np.float32)})


@pytest.mark.parametrize(
    ("op", "size"),
    [("LayerNormalization", 5), ("InstanceNormalization", 4), ("GroupNormalization <num_groups = 2>", 4)],
)
def test_bias_that_depends_on_the_input(op: str, size: int) -> None:
    model = laws.model(
        f"g (float[3, 4, 2, 5] x, float[{size}] b) => (float y) {{ y = {op} (x, s, b) }}",
        s=np.linspace(-1, 2, size, dtype=np.float32),
    )
    x, r = pair(9)
    x["b"], r["b"] = (np.random.default_rng(k).standard_normal(size).astype(np.float32) for k in range(2))
    laws.check(model, x, r, references=False)


def test_scale_that_depends_on_the_input_is_refused() -> None:
    model = laws.model(
        "g (float[N, 4] x) => (float y) { s = ReduceMax (x, a) y = LayerNormalization (x, s) }", a=np.array([0])
    )
    with pytest.raises(RuleError, match="depends on the attributed inputs"):
        rewrite(model, target="weights")
