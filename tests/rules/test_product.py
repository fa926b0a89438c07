"""The midpoint rule for products, with one factor or both depending on the input."""

from __future__ import annotations

import laws
import numpy as np
import pytest

import onnxlift

RNG = np.random.default_rng(11)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


# operator -> (body, shapes of a and b; b is attributed too where the body says `b`, a constant where it says `c`)
CASES: dict[str, list[tuple[str, tuple[int, ...], tuple[int, ...]]]] = {
    "Mul": [
        ("y = Mul (a, b)", (3, 4, 5), (3, 4, 5)),
        ("y = Mul (a, b)", (3, 4, 5), (3, 1, 5)),
        ("y = Mul (a, c)", (3, 4, 5), (4, 1)),
        ("y = Mul (c, a)", (3, 4, 5), (1,)),
    ],
    "Div": [
        ("y = Div (a, b)", (3, 4, 5), (3, 4, 1)),
        ("y = Div (a, c)", (3, 4, 5), (5,)),
        ("y = Div (c, a)", (3, 4, 5), (5,)),
    ],
    "MatMul": [
        ("y = MatMul (a, b)", (3, 4, 5), (3, 5, 2)),
        ("y = MatMul (a, b)", (3, 2, 4, 5), (3, 1, 5, 2)),
        ("y = MatMul (a, c)", (3, 4, 5), (5, 2)),
        ("y = MatMul (a, c)", (3, 5), (5, 2)),
        ("y = MatMul (a, c)", (3, 4, 5), (5,)),
        ("y = MatMul (c, a)", (3, 4, 5), (2, 4)),
        ("y = MatMul (c, a)", (3, 4, 5), (4,)),
    ],
    "Gemm": [
        ("y = Gemm <alpha = 0.5, beta = 2.0> (a, c, bias)", (3, 5), (5, 4)),
        ("y = Gemm <transB = 1> (a, c)", (3, 5), (4, 5)),
        ("y = Gemm <transB = 1> (a, b)", (3, 5), (3, 5)),
        ("y = Gemm (a, d, b)", (3, 5), (3, 4)),
    ],
}
FLAT = [case for cases in CASES.values() for case in cases]
OPERATORS = tuple(CASES)


@pytest.mark.parametrize(("body", "a_shape", "b_shape"), FLAT)
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_laws(body: str, a_shape: tuple[int, ...], b_shape: tuple[int, ...], static: bool) -> None:
    x = {"a": normal(*a_shape), "b": normal(*b_shape)}
    r = {"a": normal(*a_shape), "b": normal(*b_shape)}
    if body.startswith("y = Div"):  # stay away from the pole
        for arrays in (x, r):
            for name, value in arrays.items():
                arrays[name] = np.sign(value) * 0 + abs(value) + np.float32(0.3)
    constants = {"c": x["b"], "bias": normal(4), "d": normal(5, 4)}
    used = {
        name: value
        for name, value in constants.items()
        if f"{name})" in body or f" {name}," in body or f"({name}" in body
    }
    if " b)" not in body and " b," not in body:
        del x["b"], r["b"]
    inputs = ", ".join(
        f"float[{', '.join(map(str, value.shape if static else ('N', *value.shape[1:])))}] {name}"
        for name, value in x.items()
    )
    mixes = "Gemm <transB = 1> (a, b)" in body  # y[i, j] multiplies sample i with sample j
    model = laws.model(f"g ({inputs}) => (float y) {{ {body} }}", **used)
    if mixes:
        model = laws.model(f"g ({inputs.replace('N', 'M', 1)}) => (float y) {{ {body} }}", **used)
        if static:
            pytest.skip("samples would mix on the batch axis")
    vector = "MatMul" in body and len(b_shape) == 1  # it becomes a matrix of one column
    laws.check(model, x, r, references=not static, exact=not vector)


def test_square_of_one_tensor() -> None:
    """Mul(x, x) takes x + r, as x^2 does."""
    model = laws.model("g (float[N, 5] x) => (float y) { y = Mul (x, x) }")
    x, r = normal(3, 5), normal(3, 5)
    laws.check(model, {"x": x}, {"x": r})


def test_vectors_without_a_batch_axis() -> None:
    model = laws.model("g (float[5] a, float[5] b) => (float y) { y = MatMul (a, b) }")
    laws.check(model, {"a": normal(5), "b": normal(5)}, {"a": normal(5), "b": normal(5)})


def test_stack_axes_that_are_unknown() -> None:
    model = laws.model("g (float[N, h, 4, 5] a, float[N, k, 5, 2] b) => (float[N, m, 4, 2] y) { y = MatMul (a, b) }")
    x = {"a": normal(3, 2, 4, 5), "b": normal(3, 1, 5, 2)}
    laws.check(model, x, {"a": normal(3, 2, 4, 5), "b": normal(3, 1, 5, 2)})


def test_a_quotient_that_is_selected_away_where_it_is_0_by_0() -> None:
    """div_no_nan as TensorFlow writes it."""
    model = laws.model(
        "g (float[N, 5] a, float[N, 5] b) => (float y) { q = Div (a, b) c = Equal (b, zero) y = Where (c, zero, q) }",
        zero=np.float32(0),
    )
    x = {"a": normal(3, 5), "b": normal(3, 5)}
    r = {"a": np.zeros((3, 5), np.float32), "b": np.zeros((3, 5), np.float32)}
    explainer = onnxlift.rewrite(model, target="weights")
    feed = {**x, **{f"{name}_reference": value for name, value in r.items()}, "target_weights": normal(3, 5)}
    got = laws.run(explainer, feed)
    assert np.isfinite(got["a_contributions"]).all()
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)
