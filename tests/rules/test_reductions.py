"""Reductions, norms and what chooses along an axis: every form of the axes, against the oracle."""

from __future__ import annotations

import itertools

import laws
import numpy as np
import onnx
import pytest

import onnxlift

OPERATORS = (
    *("ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"),
    *("ReduceProd", "ReduceMax", "ReduceMin", "Hardmax", "LpNormalization"),
)
REDUCTIONS = [op for op in OPERATORS if op.startswith("Reduce")]
POSITIVE = ("ReduceLogSum",)
SUMS = ("ReduceSum", "ReduceL1", "ReduceSumSquare")

# axes (None: absent), keepdims, noop_with_empty_axes
AXES: list[tuple[list[int] | None, int, int]] = [
    ([1], 1, 0),
    ([-1], 0, 0),
    ([1, -1], 0, 0),
    ([2, 1], 1, 0),
    ([], 1, 1),
    ([], 0, 1),
]


def pair(op: str, shape: tuple[int, ...], seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Values of which some stay and some are next to each other; zeros where the domain has them."""
    rng = np.random.default_rng(seed)
    high = 0.5 if op in SUMS else 2.0  # what is behind them in laws.check_signed saturates
    x, r = rng.uniform(0.2 if op in POSITIVE else -high, high, (2, *shape)).astype(np.float32)
    kind = rng.choice(4, shape, p=[0.5, 0.2, 0.2, 0.1])
    r = np.choose(kind, (r, x, x + np.float32(1e-3), r if op in POSITIVE else 0 * r)).astype(np.float32)
    return x, r


def reducer(
    op: str, axes: list[int] | None, keepdims: int, noop: int, how: str, dims: str = "N, 3, 4"
) -> onnx.ModelProto:
    """y = op(x), with the axes as a constant, as a run-time input, or absent."""
    given = axes is not None
    more = {"input": ", int64[k] axes", "sized input": f", int64[{len(axes or [])}] axes"}.get(how, "") if given else ""
    body = f"y = {op} <keepdims = {keepdims}, noop_with_empty_axes = {noop}> (x{', axes' if given else ''})"
    constants = {"axes": np.int64(axes)} if given and how == "constant" else {}
    model = laws.model(f"g (float[{dims}] x{more}) => (float y) {{ {body} }}", **constants)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    if given and how != "constant":  # ONNX's inference cannot tell the rank
        rank = dims.count(",") + 1
        kept = rank if keepdims or (noop and not axes) else rank - len(axes or range(rank))
        model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", 1, ["N", "out1", "out2"][:kept]))
    return model


def axes_input(axes: list[int] | None, how: str) -> dict[str, np.ndarray]:
    return {"axes": np.int64(axes)} if how != "constant" and axes is not None else {}


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize(("axes", "keepdims", "noop"), AXES)
@pytest.mark.parametrize("how", ["constant", "input", "sized input"])
def test_axes(op: str, axes: list[int], keepdims: int, noop: int, how: str) -> None:
    x, r = pair(op, (4, 3, 4))
    laws.check(
        reducer(op, axes, keepdims, noop, how),
        {"x": x},
        {"x": r},
        others=axes_input(axes, how),
        rtol=2e-5,
        references=how == "constant",
        signed=how == "constant" or bool(keepdims),  # the composite does not declare the rank
    )


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("how", ["absent", "constant", "input"])
def test_all_axes(op: str, keepdims: int, how: str) -> None:
    x, r = pair(op, (2, 3, 2))
    axes = None if how == "absent" else []
    model = reducer(op, axes, keepdims, 0, how, "2, 3, 2")
    signed = how != "input" or bool(keepdims)
    laws.check(model, {"x": x}, {"x": r}, others=axes_input(axes, how), rtol=2e-5, signed=signed)


@pytest.mark.parametrize("op", REDUCTIONS)
def test_rank_0(op: str) -> None:
    model = laws.model(f"g (float x) => (float y) {{ y = {op} (x) }}")
    laws.check(model, {"x": np.asarray(1.5, np.float32)}, {"x": np.asarray(0.5, np.float32)}, signed=False)


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize("how", ["constant", "input"])
def test_nothing_to_reduce(op: str, how: str) -> None:
    """An axis of extent 0, where the operator has a value for it."""
    model = reducer(op, [1], 1, 0, how, "2, 0, 4")
    if op in ("ReduceMax", "ReduceMin", "ReduceMean", "ReduceLogSum", "ReduceLogSumExp"):
        pytest.skip("without a finite value")
    explainer = onnxlift.rewrite(model, inputs=["x"], target="weights", emit=("contributions", "multipliers"))
    x = np.zeros((2, 0, 4), np.float32)
    got = laws.run(
        explainer,
        {"x": x, "x_reference": x, "target_weights": np.ones((2, 1, 4), np.float32), **axes_input([1], how)},
    )
    assert got["x_multipliers"].shape == x.shape
    np.testing.assert_array_equal(got["completeness_gap"], 0)


@pytest.mark.parametrize("op", ["ReduceL2", "ReduceProd", "ReduceMean", "ReduceMax"])
def test_double(op: str) -> None:
    x, r = pair(op, (4, 3, 4))
    model = laws.model(
        f"g (double[N, 3, 4] x) => (double[N, 4] y) {{ y = {op} <keepdims = 0> (x, a) }}", a=np.int64([1])
    )
    laws.check(model, {"x": x.astype(np.float64)}, {"x": r.astype(np.float64)}, rtol=1e-12, signed=False)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 9, 17, 70])
@pytest.mark.parametrize("how", ["constant", "input"])
def test_products_of_many_factors(n: int, how: str) -> None:
    """The Shapley values of up to 8 factors; of more, of groups of 8 and of the groups' products."""
    rng = np.random.default_rng(n + 100)
    x, r = rng.uniform(-1.3, 1.3, (2, 2, n)).astype(np.float32)
    r[0, : n // 3] = x[0, : n // 3]
    model = reducer("ReduceProd", [1], 1, 0, how, "N, n" if how == "input" else f"N, {n}")
    laws.check(model, {"x": x}, {"x": r}, others=axes_input([1], how), references=False, signed=False)


def test_products_with_zeros() -> None:
    """Equal factors share equally, from zeros too; a factor beside another zero gets what it would bring alone."""
    model = reducer("ReduceProd", [1], 0, 0, "constant", "N, 4")
    explainer = onnxlift.rewrite(model, target=None, emit=("contributions", "multipliers"))
    x = np.float32([[1, 1, 1, 1], [2, 0, 3, 1], [0, 0, 0, 0]])
    got = laws.run(explainer, {"x": x, "x_reference": np.zeros_like(x)})
    np.testing.assert_allclose(got["x_contributions"][0], 0.25, rtol=1e-6)
    np.testing.assert_allclose(got["x_contributions"][1:].sum(axis=1), 0, atol=1e-6)
    assert np.isfinite(got["x_multipliers"]).all()


def test_norms_at_the_extremes() -> None:
    """Factors of magnitudes and of the Euclidean norm stay within [-1, 1]."""
    values = np.float32([0, 1e-42, 1e-30, 1e-15, 1, 1e15])
    x, r = (np.float32(v).reshape(-1, 1) for v in zip(*itertools.product([*-values, *values], repeat=2), strict=True))
    for op in ("ReduceL1", "ReduceL2"):
        explainer = onnxlift.rewrite(reducer(op, [1], 0, 0, "constant", "N, 1"), emit=("multipliers",))
        got = laws.run(explainer, {"x": x, "x_reference": r})["x_multipliers"]
        assert (abs(got) <= 1 + 1e-6).all()


# --- along an axis ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [1, 2, -1, -2])
@pytest.mark.parametrize("p", [1, 2])
def test_unit_length(p: int, axis: int) -> None:
    model = laws.model(
        f"g (float[N, 3, 4] x) => (float[N, 3, 4] y) {{ y = LpNormalization <p = {p}, axis = {axis}> (x) }}"
    )
    x, r = pair("LpNormalization", (4, 3, 4))
    r[1], x[2], r[2] = 0, 0, 0
    laws.check(model, {"x": x}, {"x": r}, signed=False)
    laws.check_signed(model, {"x": x[:1]}, {"x": r[:1]})


@pytest.mark.parametrize("p", [1, 2])
def test_unit_length_near_nothing(p: int) -> None:
    """No multiplier exceeds what the larger norm makes of it, however small the other."""
    model = laws.model(f"g (float[N, 4] x) => (float[N, 4] y) {{ y = LpNormalization <p = {p}> (x) }}")
    x = np.float32([[1, -2, 3, 0.5]] * 3)
    r = np.float32([[1e-3, -1e-3, 2e-3, 0], [1e-15, 2e-15, 0, -1e-15], [0, 0, 0, 0]])
    explainer = onnxlift.rewrite(model, target="weights", emit=("contributions", "multipliers"))
    got = laws.run(explainer, {"x": x, "x_reference": r, "target_weights": np.float32([[1, 2, -1, 0.5]] * 3)})
    assert (abs(got["x_multipliers"]) < 5).all()
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-6)


def test_unit_length_along_the_first_axis() -> None:
    """The leading axis is no batch then."""
    model = laws.model("g (float[N, 4] x) => (float[N, 4] y) { y = LpNormalization <axis = 0> (x) }")
    x, r = pair("LpNormalization", (3, 4))
    got = laws.check(model, {"x": x}, {"x": r}, references=False)
    assert got["completeness_gap"].shape == ()


@pytest.mark.parametrize("axis", [1, 2, -1, -2])
def test_winner(axis: int) -> None:
    model = laws.model(f"g (float[N, 3, 4] x) => (float[N, 3, 4] y) {{ y = Hardmax <axis = {axis}> (x) }}")
    rng = np.random.default_rng(3)
    x, r = np.round(rng.uniform(-2, 2, (2, 6, 3, 4)) * 2).astype(np.float32) / 2  # with ties
    laws.check(model, {"x": x}, {"x": r}, signed=False)
    laws.check_signed(model, {"x": x[:2]}, {"x": r[:2]})


def test_winner_shares_are_bounded() -> None:
    """x_i and x_j both rise, by nearly as much: what rose at i takes it all. And a mask of minus infinity."""
    model = laws.model("g (float[N, 3] x) => (float[N, 3] y) { y = Hardmax (x) }")
    x = np.float32([[5.0001, 5, 0], [1, -np.inf, -np.inf], [0, 1, -np.inf]])
    r = np.float32([[0, 1e-4, 0], [0, -np.inf, -np.inf], [2, 0, -np.inf]])
    explainer = onnxlift.rewrite(model, target=0, emit=("multipliers",))
    got = laws.run(explainer, {"x": x, "x_reference": r})["x_multipliers"]
    np.testing.assert_allclose(got[0], [1 / 5.0001, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(got[1], 0)
    np.testing.assert_allclose(got[2] * [-2, 1, 0], [-2 / 3, -1 / 3, 0], rtol=1e-6)
