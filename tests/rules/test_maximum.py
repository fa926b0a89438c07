"""Maximum: the laws, ties, overlap, the hand examples, and every way in which batches meet."""

from __future__ import annotations

import laws
import numpy as np
import onnx
import pytest

from onnxlift import Choice, Plan, rewrite

POOLS = {
    "tiles": ([4, 6], "kernel_shape = [2, 2], strides = [2, 2]"),
    "tiles with a remainder": ([5, 7], "kernel_shape = [2, 3], strides = [2, 3]"),
    "tiles, ceil": ([5, 7], "kernel_shape = [2, 3], strides = [2, 3], ceil_mode = 1"),
    "tiles, padded": ([5, 7], "kernel_shape = [2, 2], strides = [2, 2], pads = [1, 1, 0, 0]"),
    "tiles, same": ([5, 7], 'kernel_shape = [2, 2], strides = [2, 2], auto_pad = "SAME_UPPER"'),
    "tiles, valid": ([5, 7], 'kernel_shape = [2, 2], strides = [2, 2], auto_pad = "VALID"'),
    "tiles, 1-D": ([9], "kernel_shape = [4], strides = [4]"),
    "tiles, 3-D": ([4, 3, 5], "kernel_shape = [2, 3, 2], strides = [2, 3, 2]"),
    "overlap": ([5, 6], "kernel_shape = [3, 3], strides = [2, 1]"),
    "overlap, same": ([5, 6], 'kernel_shape = [3, 2], auto_pad = "SAME_LOWER"'),
    "overlap, 1-D": ([9], "kernel_shape = [4], strides = [3], pads = [2, 1]"),
    "overlap, 3-D": ([3, 4, 3], "kernel_shape = [2, 2, 2], pads = [1, 0, 0, 0, 1, 1]"),
    "default strides": ([5], "kernel_shape = [2]"),
    "dilated": ([7, 6], "kernel_shape = [2, 3], strides = [2, 1], dilations = [3, 2], pads = [1, 1, 0, 2]"),
    "dilated, no overlap": ([8], "kernel_shape = [2], strides = [2], dilations = [2]"),
    "ceil": ([6, 6], "kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1, pads = [0, 1, 0, 1]"),
    "storage order": ([5, 4], "kernel_shape = [2, 2], storage_order = 1"),
    "gaps": ([8], "kernel_shape = [2], strides = [3]"),
    "one place": ([5, 4], "kernel_shape = [1, 1], strides = [2, 2], ceil_mode = 1"),
}
REDUCTIONS = {
    "one axis": ([2], 1),
    "one axis, dropped": ([-1], 0),
    "two trailing axes": ([2, 3], 1),
    "two trailing axes, dropped": ([3, -2], 0),
    "two axes apart": ([1, 3], 1),
    "two axes apart, dropped": ([3, 1], 0),
    "leading axes of a sample": ([1, 2], 1),
}
OPERANDS = {
    "two": ("x, z", {"x": "N, 2, 3", "z": "N, 2, 3"}),
    "three": ("x, z, u", {"x": "N, 2, 3", "z": "N, 2, 3", "u": "N, 2, 3"}),
    "two and a constant": ("x, c, z", {"x": "N, 2, 3", "z": "N, 2, 3"}),
    "broadcasting": ("x, z", {"x": "N, 2, 3", "z": "N, 1, 3"}),
    "more axes": ("x, z", {"x": "N, 1, 2, 3", "z": "N, 2, 1, 1"}),
    "unknown extents": ("x, z", {"x": "N, A, 3", "z": "N, B, 3"}),
    "the same one twice": ("x, z, x", {"x": "N, 2, 3", "z": "N, 2, 3"}),
    "alone": ("x", {"x": "N, 2, 3"}),
    "in front of a constant": ("x, c", {"x": "N, 2, 3"}),
    "behind a constant": ("c, x", {"x": "N, 2, 3"}),
    "between constants": ("c, x, e", {"x": "N, 2, 3"}),
    "narrower than a constant": ("x, c", {"x": "N, 2, 1"}),
}
CASES = {"MaxPool": POOLS, "ReduceMax": REDUCTIONS, "ReduceMin": REDUCTIONS, "Max": OPERANDS, "Min": OPERANDS}
OPERATORS = (*CASES, "GlobalMaxPool")
EXTENTS = {"N": 3, "A": 2, "B": 1}
VARIANTS = {"cross-max": "shared", "cross-max-first": "first", "argmax": "argmax_x"}
"""Rule -> what the oracle calls it."""


def pair(seed: int, *shape: int, levels: int = 0, dtype: type = np.float32) -> list[np.ndarray]:
    """x and r; with `levels`, of so few values that ties abound."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, levels, (2, *shape)) if levels else rng.standard_normal((2, *shape)) * 2
    return list(values.astype(dtype))


def check(
    model: onnx.ModelProto, x: dict | np.ndarray, r: dict | np.ndarray, rule: str = "cross-max", **options
) -> dict:  # type: ignore[no-untyped-def, type-arg]
    plan = Plan([Choice(rule=rule)])
    x, r = (value if isinstance(value, dict) else {"x": value} for value in (x, r))
    return laws.check(model, x, r, plan=plan, ties=VARIANTS[rule], conserves=rule != "argmax", **options)


def pool(dims: str, attributes: str, dtype: str = "float") -> onnx.ModelProto:
    return laws.model(f"g ({dtype}[{dims}] x) => ({dtype} y) {{ y = MaxPool <{attributes}> (x) }}")


@pytest.mark.parametrize("rule", VARIANTS)
@pytest.mark.parametrize("levels", [0, 3], ids=["random", "ties"])
@pytest.mark.parametrize(("spatial", "attributes"), POOLS.values(), ids=POOLS)
def test_max_pool(spatial: list[int], attributes: str, levels: int, rule: str) -> None:
    x, r = pair(0, 3, 2, *spatial, levels=levels)
    dims = ", ".join(map(str, ["N", 2, *spatial]))
    check(pool(dims, attributes), x, r, rule, references=levels > 0 and rule == "cross-max")


@pytest.mark.parametrize("dims", ["N, C, H, W", "3, 2, 4, 6", "N, C, 4, 6", "N, 2, H, 6"])
@pytest.mark.parametrize("kind", ["tiles", "overlap"])
def test_max_pool_of_any_known_and_unknown_extents(dims: str, kind: str) -> None:
    x, r = pair(1, 3, 2, 4, 6, levels=4)
    check(pool(dims, POOLS[kind][1]), x, r, references="N" in dims)


def test_max_pool_whose_indices_the_model_reads() -> None:
    model = laws.model(
        "g (float[N, 2, 6] x) => (float y) { p, i = MaxPool <kernel_shape = [3], strides = [2]> (x)\n"
        "j = Mul (i, z) f = Cast <to = 1> (j) y = Add (p, f) }",
        z=np.int64(0),
    )
    x, r = pair(2, 3, 2, 6)
    weights = np.ones_like(laws.run(model, {"x": x})["y"])
    got = laws.run(rewrite(model, target="weights"), {"x": x, "x_reference": r, "target_weights": weights})
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)
    model.graph.node[3].input[1] = "p"
    check(model, *pair(2, 3, 2, 6))


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize(("axes", "keepdims"), REDUCTIONS.values(), ids=REDUCTIONS)
@pytest.mark.parametrize("dims", ["N, 2, 3, 4", "N, A, B, C"])
def test_reduction(op: str, axes: list[int], keepdims: int, dims: str) -> None:
    text = f"g (float[{dims}] x) => (float y) {{ y = {op} <keepdims = {keepdims}> (x, axes) }}"
    model = laws.model(text, axes=np.array(axes))
    for levels in (0, 3):
        check(model, *pair(3, 3, 2, 3, 4, levels=levels), references=levels > 0)
    for rule in VARIANTS:
        check(model, *pair(4, 3, 2, 3, 4, levels=2), rule)


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reduction_to_one_number(op: str, keepdims: int) -> None:
    model = laws.model(f"g (float[A, 4] x) => (float y) {{ y = {op} <keepdims = {keepdims}> (x) }}")
    check(model, *pair(5, 3, 4, levels=3), references=False)


def test_reduction_over_no_axes_is_the_identity() -> None:
    model = laws.model("g (float[N, 4] x) => (float y) { y = ReduceMax <noop_with_empty_axes = 1> (x) }")
    got = check(model, *pair(6, 3, 4))
    assert np.ptp(got["x_contributions"]) > 0


@pytest.mark.parametrize("dims", ["N, 2, 5", "N, 2, 3, 4", "N, C, H, W"])
def test_global_max_pool(dims: str) -> None:
    model = laws.model(f"g (float[{dims}] x) => (float y) {{ y = GlobalMaxPool (x) }}")
    shape = (3, 2, 5) if "5" in dims else (3, 2, 3, 4)
    for levels in (0, 3):
        check(model, *pair(7, *shape, levels=levels))


@pytest.mark.parametrize("rule", VARIANTS)
@pytest.mark.parametrize("op", ["Max", "Min"])
@pytest.mark.parametrize(("names", "inputs"), OPERANDS.values(), ids=OPERANDS)
def test_operands(op: str, names: str, inputs: dict[str, str], rule: str) -> None:
    listed = ", ".join(f"float[{dims}] {name}" for name, dims in inputs.items())
    constants = {"c": np.array([0, 2, 1], np.float32), "e": np.array(1, np.float32)}
    used = {name: value for name, value in constants.items() if name in names}
    model = laws.model(f"g ({listed}) => (float y) {{ y = {op} ({names}) }}", **used)
    for levels in (0, 3):
        x, r = {}, {}
        for seed, (name, dims) in enumerate(inputs.items()):
            shape = [EXTENTS.get(dim) or int(dim) for dim in dims.split(", ")]
            x[name], r[name] = pair(seed, *shape, levels=levels)
        check(model, x, r, rule, references=levels > 0 and rule == "cross-max")


@pytest.mark.parametrize("dtype", ["float16", "double"])
@pytest.mark.parametrize(
    "body",
    [
        "y = MaxPool <kernel_shape = [2], strides = [2]> (x)",
        "y = MaxPool <kernel_shape = [3], pads = [1, 1]> (x)",
        "y = ReduceMax (x, axes)",
        "y = ReduceMin (x, axes)",
        "n = Neg (x) y = Max (n, x)",
    ],
)
def test_other_precisions(body: str, dtype: str) -> None:
    constants = {"axes": np.array([1])} if "axes" in body else {}
    model = laws.model(f"g ({dtype}[N, 2, 6] x) => ({dtype} y) {{ {body} }}", **constants)
    kind, rtol = (np.float16, 2e-3) if dtype == "float16" else (np.float64, 1e-12)
    check(model, *pair(9, 3, 2, 6, dtype=kind), rtol=rtol)


# --- by hand ---------------------------------------------------------------------------------------------------------


def contributions(model: onnx.ModelProto, x: list, r: list, rule: str = "cross-max") -> list:  # type: ignore[type-arg]
    """Of the sum of all outputs."""
    shape = laws.run(model, {"x": np.array(x, np.float32)})["y"].shape
    explainer = rewrite(model, target="weights", plan=Plan([Choice(rule=rule)]))
    feed = {"x": x, "x_reference": r, "target_weights": np.ones(shape)}
    got = laws.run(explainer, {name: np.asarray(value, np.float32) for name, value in feed.items()})
    return got["x_contributions"].tolist()


@pytest.mark.parametrize(
    "model",
    [
        laws.model("g (float[N, 1, L] x) => (float y) { y = GlobalMaxPool (x) }"),
        laws.model("g (float[N, 1, 2] x) => (float y) { y = MaxPool <kernel_shape = [2]> (x) }"),
        laws.model("g (float[N, 1, 2] x) => (float y) { y = MaxPool <kernel_shape = [2], strides = [2]> (x) }"),
        laws.model("g (float[N, 1, 2] x) => (float y) { y = ReduceMax (x, a) }", a=np.array([2])),
        laws.model("g (float[N, 1, 2] x) => (float y) { a, b = Split <axis = 2, num_outputs = 2> (x) y = Max (a, b) }"),
    ],
    ids=["GlobalMaxPool", "MaxPool", "tile", "ReduceMax", "Max"],
)
def test_two_places(model: onnx.ModelProto) -> None:
    """x's maximum gains what exceeds y0, or r's maximum loses what y falls short of."""
    assert contributions(model, [[[3, 1]]], [[[0, 2]]]) == [[[1, 0]]]
    assert contributions(model, [[[1, 0]]], [[[0, 2]]]) == [[[0, -1]]]
    assert contributions(model, [[[2, 0]]], [[[0, 2]]]) == [[[0, 0]]]
    assert contributions(model, [[[1, 3]]], [[[2, 2]]]) == [[[0, 1]]]
    assert contributions(model, [[[1, 1.5]]], [[[2, 2]]]) == [[[0, -0.5]]]
    assert contributions(model, [[[1, 1.5]]], [[[2, 2]]], "cross-max-first") == [[[-0.5, 0]]]
    assert contributions(model, [[[1, 0]]], [[[0, 2]]], "argmax") == [[[1, 0]]]


def test_an_element_that_wins_two_windows_collects_both_shares() -> None:
    model = pool("N, 1, 3", "kernel_shape = [2]")
    assert contributions(model, [[[0, 5, 0]]], [[[0, 0, 1]]]) == [[[0, 9, 0]]]
    assert contributions(model, [[[0, 0, 0]]], [[[0, 5, 0]]]) == [[[0, -10, 0]]]


@pytest.mark.parametrize("kind", POOLS)
def test_a_uniform_reference_gives_everything_to_the_maximum_of_x(kind: str) -> None:
    """DFD's m = 1{x = y}: every window's multiplier arrives whole, whatever the sign of the change."""
    spatial, attributes = POOLS[kind]
    x = pair(10, 3, 2, *spatial)[0]
    r = np.full_like(x, 0.3)
    got = check(pool(", ".join(map(str, ["N", 2, *spatial])), attributes), x, r)
    weights = np.random.default_rng(7).standard_normal(got["y"].shape).astype(np.float32)
    expected = np.zeros_like(x)
    for plane in np.ndindex(x.shape[:2]):
        for y, w in zip(got["y"][plane].flat, weights[plane].flat, strict=True):
            expected[plane][x[plane] == y] += w
    np.testing.assert_allclose(got["x_multipliers"], expected, rtol=1e-6)


def test_extreme_values_stay_finite() -> None:
    x = np.array([[[3e38, -3e38, 1e-38, 1e-45, 0, 6e4]]], np.float32)
    for model in (pool("N, 1, 6", "kernel_shape = [2]"), pool("N, 1, 6", "kernel_shape = [2], strides = [2]")):
        for r in (np.zeros_like(x), x[:, :, ::-1].copy() / 2, x):
            check(model, x, r)


@pytest.mark.parametrize("kernel", ["kernel_shape = [2]", "kernel_shape = [2], strides = [2]"])
def test_windows_of_minus_infinity_get_finite_multipliers(kernel: str) -> None:
    """As a mask in front of the pool makes them."""
    keep = np.array([True, False, False, False, True, True])
    model = laws.model(
        f"g (float[N, 2, 6] x) => (float y) {{ h = Where (keep, x, low) y = MaxPool <{kernel}> (h) }}",
        keep=keep,
        low=np.float32(-np.inf),
    )
    x, r = pair(11, 3, 2, 6)
    explainer = rewrite(model, target="weights", emit=("multipliers",), expose=("h",))
    w = np.ones_like(laws.run(model, {"x": x})["y"])
    got = laws.run(explainer, {"x": x, "x_reference": r, "target_weights": w})
    assert np.isfinite(got["h/multiplier"]).all()
    np.testing.assert_array_equal(got["x_multipliers"], np.where(keep, got["h/multiplier"], 0))
