"""The normalisations: the laws, the limits, scales that are attributed too, statistics, and vanishing variances."""

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
    "LayerNormalization": [
        "y = LayerNormalization (x, last, last_bias)",
        "y = LayerNormalization <epsilon = 0.1> (x, last)",
        "y = LayerNormalization <axis = 2> (x, both, both_bias)",
        "y = LayerNormalization <axis = -3> (x, one)",
        "y = LayerNormalization <axis = -3> (x, column)",
        "n, y = LayerNormalization <axis = 2> (x, both)",
        "n, m, y = LayerNormalization (x, last)",
        "n, m, v = LayerNormalization (x, last) s = Mul (n, v) y = Sub (s, m)",
    ],
    "InstanceNormalization": ["y = InstanceNormalization (x, channel, channel_bias)"],
    "GroupNormalization": [
        "y = GroupNormalization <num_groups = 2> (x, channel, channel_bias)",
        "y = GroupNormalization <num_groups = 1, epsilon = 0.01> (x, channel, channel_bias)",
    ],
    "MeanVarianceNormalization": [
        "y = MeanVarianceNormalization <axes = [2, 3]> (x)",
        "y = MeanVarianceNormalization <axes = [-3]> (x)",
    ],
    "LRN": [
        "y = LRN <size = 3> (x)",
        "y = LRN <size = 5, alpha = 2.0, beta = 0.5, bias = 0.3> (x)",
        "y = LRN <size = 1, alpha = 0.7, beta = 1.3> (x)",
    ],
}
OPERATORS = tuple(CASES)
ALL = [body for bodies in CASES.values() for body in bodies]
WITH_EPSILON = [body for body in ALL if "LRN" not in body and "Mean" not in body]
SHAPE = (3, 4, 2, 5)
SIZES = {"known": "N, 4, 2, 5", "unknown": "N, C, H, W", "all known": "3, 4, 2, 5"}


def constants() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = {"last": 5, "both": (2, 5), "one": 1, "column": (4, 1, 1), "channel": 4}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return {**arrays, **{f"{name}_bias": value[::-1].copy() for name, value in arrays.items()}}


def one(body: str, sizes: str = SIZES["known"], dtype: str = "float") -> onnx.ModelProto:
    read = re.findall(r"\w+", body)
    kind = {"float16": np.float16, "double": np.float64, "float": np.float32}[dtype]
    used = {name: value.astype(kind) for name, value in constants().items() if name in read}
    return laws.model(f"g ({dtype}[{sizes}] x) => ({dtype}{extents(body, sizes)} y) {{ {body} }}", **used)


def extents(body: str, sizes: str) -> str:
    """Of y: as x; nothing where it is something else."""
    return f"[{sizes}]" if body.startswith("y = MeanVariance") else ""


def pair(
    seed: int, scale: float = 2, shape: tuple[int, ...] = SHAPE, dtype: type = np.float32
) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": (rng.standard_normal(shape) * scale).astype(dtype)} for _ in range(2)]


@pytest.mark.parametrize("body", ALL)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_laws(body: str, sizes: str) -> None:
    x, r = pair(0)
    signed = "MeanVariance" not in body  # onnx does not infer its shape, which the laws need behind it
    laws.check(one(body, sizes), x, r, references=sizes[0] == "N", signed=signed)


@pytest.mark.parametrize("body", [body for body in WITH_EPSILON if body.startswith("y")])
@pytest.mark.parametrize(("dtype", "rtol"), [("float16", 4e-3), ("double", 1e-12)])
def test_other_precisions(body: str, dtype: str, rtol: float) -> None:
    if dtype == "double" and ("Instance" in body or "Group" in body):
        pytest.skip("no kernel")
    x, r = pair(1, dtype=np.float16 if dtype == "float16" else np.float64)
    laws.check(one(body, dtype=dtype), x, r, rtol=rtol)


def test_statistics_in_another_precision() -> None:
    """Mean and deviation are float32 where the rest is float16."""
    text = "n, m, v = LayerNormalization (x, last) s = Sub (v, m) y = Cast <to = 10> (s)"
    x, r = pair(1, dtype=np.float16)
    laws.check(one(text, dtype="float16"), x, r, rtol=4e-3)


@pytest.mark.parametrize("body", ALL)
@pytest.mark.parametrize("distance", [1e-2, 1e-4, 1e-6])
def test_references_close_by(body: str, distance: float) -> None:
    """No cancellation: the multipliers are as good as those of a reference far away."""
    x, r = pair(2)
    rtol = 3e-5 if "LRN" in body else 1e-5  # the slope of a power is a quotient of differences
    laws.check(one(body), x, {"x": x["x"] + r["x"] * np.float32(distance)}, rtol=rtol, conserves=False)


@pytest.mark.parametrize("body", WITH_EPSILON)
@pytest.mark.parametrize("scale", [1e-20, 1e-4, 1e3, 1e12])
def test_small_and_large_values(body: str, scale: float) -> None:
    x, r = pair(6, scale)
    conserves = scale > 1e-6 or "bias" not in body  # next to a bias y does not show so small a change
    if body.startswith("n, m"):  # the deviation is that of eps, or one of terms of very different size
        conserves = False
    laws.check(one(body), x, r, rtol=2e-5, conserves=conserves)
    laws.check(one(body), x, {"x": r["x"] * np.float32(1e-3)}, rtol=2e-5, references=False, conserves=conserves)


@pytest.mark.parametrize("sizes", ["N, 4, 2, 5", "3, 4, 2, 5"])
@pytest.mark.parametrize(
    "body", ["y = MeanVarianceNormalization <axes = [0, 2, 3]> (x)", "y = LayerNormalization <axis = 0> (x, one)"]
)
def test_an_axis_that_holds_the_samples(body: str, sizes: str) -> None:
    """There is no batch axis then: one number is explained for all of x."""
    got = laws.check(one(body, sizes), *pair(3), references=False, signed=False)
    assert got["completeness_gap"].shape == ()


# --- inputs that carry importance too --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        ("LayerNormalization", (5,)),
        ("LayerNormalization <axis = 1>", (2, 5)),
        ("LayerNormalization <axis = 1>", (4, 1, 1)),
        ("InstanceNormalization", (4,)),
        ("GroupNormalization <num_groups = 2>", (4,)),
    ],
)
@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_scale_and_bias_that_depend_on_the_input(op: str, shape: tuple[int, ...], dtype: str) -> None:
    sizes = ", ".join(map(str, shape))
    model = laws.model(
        f"g ({dtype}[3, 4, 2, 5] x, {dtype}[{sizes}] s, {dtype}[{sizes}] b) => ({dtype} y) {{ y = {op} (x, s, b) }}"
    )
    kind = np.float16 if dtype == "float16" else np.float32
    x, r = pair(9, dtype=kind)
    for k, arrays in enumerate((x, r)):
        rng = np.random.default_rng(k)
        arrays.update({name: rng.standard_normal(shape).astype(kind) for name in "sb"})
    laws.check(model, x, r, references=False, rtol=4e-3 if dtype == "float16" else 1e-5)


@pytest.mark.parametrize("sizes", ["N, 4, 2, 5", "N, C, H, W"])
def test_scale_that_is_computed_for_every_sample(sizes: str) -> None:
    """A scale of its own for every sample (FiLM) is a product behind the normalisation; one for all is not."""
    model = laws.model(
        f"g (float[{sizes}] x) => (float y) {{ s = ReduceMax <keepdims = 0> (x, axes) y = LayerNormalization (x, s) }}",
        axes=np.array([0, 1, 2]),
    )
    x, r = pair(10)
    explainer = rewrite(model, target="weights", emit=("multipliers",))
    w = np.random.default_rng(7).standard_normal(SHAPE).astype(np.float32)
    got = laws.run(explainer, {**x, "x_reference": r["x"], "target_weights": w})["x_multipliers"]
    expected = oracle.explain(model, x, r, inputs=["x"], output="y", seed=w).multipliers["x"]
    np.testing.assert_allclose(got, expected, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("level", [0, 1])
def test_root_mean_square(level: float) -> None:
    """RMSNormalization is newer than the base opset: its function body takes its place."""
    model = onnx.parser.parse_model(
        '<ir_version: 11, opset_import: ["" : 23]> g (float[3, 2, 5] x, float[5] s) => (float[3, 2, 5] y)'
        "{ y = RMSNormalization <epsilon = 1e-6> (x, s) }"
    )
    x, r = pair(11, shape=(3, 2, 5))
    r["x"] *= np.float32(level)
    x["s"], r["s"] = np.linspace(-1, 2, 5, dtype=np.float32), np.linspace(3, 1, 5, dtype=np.float32)
    explainer = rewrite(model, target="weights", emit=("contributions",))
    w = np.random.default_rng(7).standard_normal((3, 2, 5)).astype(np.float32)
    got = laws.run(explainer, {**x, **{f"{name}_reference": value for name, value in r.items()}, "target_weights": w})
    expected = oracle.explain(model, x, r, inputs=["x", "s"], output="y", seed=w).contributions
    for name, value in expected.items():
        np.testing.assert_allclose(got[f"{name}_contributions"], value, atol=1e-5 * abs(value).max())
    np.testing.assert_allclose(got["y"], laws.run(model, x)["y"], rtol=1e-6)


# --- vanishing variances ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [1e-5, 1e-12])
@pytest.mark.parametrize("level", [0, 3])
def test_constant_rows(eps: float, level: float) -> None:
    """Variance 0 at the reference, at the input, and at both."""
    body = f"y = LayerNormalization <epsilon = {eps:.15f}> (x, last, last_bias)"
    x, r = pair(7)
    flat = {"x": np.full(SHAPE, level, np.float32)}
    for at, against in ((x, flat), (flat, r), (flat, {"x": flat["x"] + 1})):
        laws.check(one(body), at, against, signed=not level)  # a sum of two that is 3 varies by its rounding


FUSED = "y = LayerNormalization <epsilon = 1e-12> (x, scale)"
AS_WRITTEN_BY_EXPORTERS = """
    mean = ReduceMean <keepdims = 1> (x, last) a = Sub (x, mean) square = Pow (a, two)
    variance = ReduceMean <keepdims = 1> (square, last) e = Add (variance, eps) s = Sqrt (e) n = Div (a, s)
    y = Mul (n, scale)
"""
AS_IN_THE_FUNCTION_BODY = """
    mean = ReduceMean (x, last) square = Mul (x, x) squares = ReduceMean (square, last) of_mean = Mul (mean, mean)
    variance = Sub (squares, of_mean) e = Add (variance, eps) s = Sqrt (e) a = Sub (x, mean) n = Div (a, s)
    y = Mul (n, scale)
"""


@pytest.mark.parametrize("body", [FUSED, AS_WRITTEN_BY_EXPORTERS, AS_IN_THE_FUNCTION_BODY])
def test_no_cancellation_at_a_reference_of_zeros(body: str) -> None:
    """By hand, with s0 = 1e-6 next to s: c = n (2 g - 2 mean g - n mean(g n)), however far 1/s0 is from 1/s.

    Midpoints of a (1/s) would give terms of 1/s0 = 1e6 that cancel, to a tenth or so in float32.
    """
    x, _ = pair(12, shape=(4, 64))
    scale = np.linspace(-1, 2, 64, dtype=np.float32)
    values = {"scale": scale, "last": np.array([-1]), "two": np.float32(2), "eps": np.float32(1e-12)}
    used = {name: value for name, value in values.items() if re.search(rf"\b{name}\b", body)}
    model = laws.model(f"g (float[N, 64] x) => (float y) {{ {body} }}", **used)
    explainer = rewrite(model, target="weights", reference="zeros", emit=("contributions",))
    w = np.random.default_rng(13).standard_normal((4, 64))
    got = laws.run(explainer, {**x, "target_weights": w.astype(np.float32)})
    a = x["x"].astype(np.float64)
    a -= a.mean(axis=1, keepdims=True)
    n, g = a / a.std(axis=1, keepdims=True), w * scale
    m = 2 * g - 2 * g.mean(axis=1, keepdims=True) - n * (g * n).mean(axis=1, keepdims=True)
    expected = m * x["x"] / a.std(axis=1, keepdims=True)
    np.testing.assert_allclose(got["x_contributions"], expected, atol=1e-5 * abs(expected).max())
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=3e-6 * abs(expected).sum(axis=1).max())


def test_quotients_by_what_is_small_or_changes_its_sign() -> None:
    """What the decomposed operator rests on, element by element: b of either sign, near 0 in one run, or across it."""
    model = laws.model("g (float[N, 4] a, float[N, 4] b) => (float y) { y = Div (a, b) }")
    a, a0 = (np.random.default_rng(k).standard_normal((3, 4)).astype(np.float32) for k in (14, 15))
    b, b0 = (
        np.float32([[2, -2, 1e-6, -1e-25], [3, -1, 2, 1e-3], [1, 1, -2, 5]]),
        np.float32([[1, -1, 2, -1], [-2, 1, 2, 3]]),
    )
    b0 = np.concatenate([b0, np.float32([[1e-30, 1, -2, 4]])])
    a[0, 3], a0[2, 0] = 1e-25, 0  # quotients that can be told
    explainer = rewrite(model, target="weights", emit=("contributions", "multipliers"))
    w = np.random.default_rng(16).standard_normal((3, 4)).astype(np.float32)
    got = laws.run(explainer, {"a": a, "b": b, "a_reference": a0, "b_reference": b0, "target_weights": w})
    expected = oracle.explain(model, {"a": a, "b": b}, {"a": a0, "b": b0}, inputs=["a", "b"], output="y", seed=w)
    for name in "ab":
        np.testing.assert_allclose(got[f"{name}_multipliers"], expected.multipliers[name], rtol=2e-5)
    sizes = sum(abs(got[f"{name}_contributions"]).sum(axis=1) for name in "ab")
    np.testing.assert_array_less(abs(got["completeness_gap"]), 1e-6 * sizes)
    assert sizes[1] < 1e4
