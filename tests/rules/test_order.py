"""TopK: the values at every rank (rules/order.py)."""

from __future__ import annotations

import laws
import numpy as np
import onnx
import pytest

import onnxlift

OPERATORS = ("TopK",)
RNG = np.random.default_rng(19)
X, R = (RNG.standard_normal((4, 5, 6)).astype(np.float32) for _ in range(2))
R[1] = X[1] + RNG.choice([-0.1, 0, 0.1], X[1].shape).astype(np.float32)
R[2] = 0.5
TIED = [np.round(array * 2) / 2 for array in (X, R)]


def top(k: int, sizes: str = "N, 5, 6", **attributes: int) -> onnx.ModelProto:
    given = ", ".join(f"{name} = {value}" for name, value in attributes.items())
    text = f"g (float[{sizes}] x) => (float y) {{ y, i = TopK {f'<{given}>' if given else ''} (x, k) }}"
    return laws.model(text, k=np.int64([k]))


def multipliers(model: onnx.ModelProto, x: np.ndarray, r: np.ndarray, w: np.ndarray) -> np.ndarray:
    explainer = onnxlift.rewrite(model, inputs=["x"], target="weights", emit=("multipliers",))
    return laws.run(explainer, {"x": x, "x_reference": r, "target_weights": w})["x_multipliers"]


@pytest.mark.parametrize("sizes", ["N, 5, 6", "N, C, L", "4, 5, 6"])
@pytest.mark.parametrize("largest", [1, 0])
@pytest.mark.parametrize("axis", [-1, 1])
def test_laws(axis: int, largest: int, sizes: str) -> None:
    model = top(3, sizes, axis=axis, largest=largest)
    laws.check(model, {"x": X}, {"x": R}, references=sizes[0] == "N")


@pytest.mark.parametrize("largest", [1, 0])
def test_an_order_that_is_left_to_the_kernel(largest: int) -> None:
    """What the values are is given, and so is what they add up to; only which comes first is not."""
    model = top(3, largest=largest, sorted=0)
    laws.check_signed(model, {"x": X}, {"x": R})
    w = RNG.standard_normal((4, 5, 3)).astype(np.float32)
    explainer = onnxlift.rewrite(model, target="weights")
    got = laws.run(explainer, {"x": X, "x_reference": R, "target_weights": w})
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)


@pytest.mark.parametrize("k", [0, 1, 2, 6])
def test_any_number_of_ranks(k: int) -> None:
    """None of them, and all: that is sorting."""
    laws.check(top(k), {"x": X}, {"x": R}, signed=k > 0, references=k > 0)
    laws.check(top(k), {"x": TIED[0]}, {"x": TIED[1]}, signed=k > 0, references=k > 0)


def test_the_number_of_ranks_at_run_time() -> None:
    model = laws.model("g (float[N, 5, 6] x, int64[1] k) => (float y) { y, i = TopK (x, k) }")
    laws.check(model, {"x": X}, {"x": R}, others={"k": np.int64([2])}, references=False)


def test_samples_along_the_axis_belong_to_one_row() -> None:
    model = top(2, "4, 5, 6", axis=0)
    laws.check(model, {"x": X}, {"x": R}, references=False)


@pytest.mark.parametrize("largest", [1, 0])
@pytest.mark.parametrize(("x", "r"), [(X, R), TIED, (TIED[0], TIED[0])], ids=["apart", "tied", "same"])
def test_the_first_rank_is_the_maximum(largest: int, x: np.ndarray, r: np.ndarray) -> None:
    """Number for number, ties included."""
    extreme = "ReduceMax" if largest else "ReduceMin"
    reduced = laws.model(f"g (float[N, 5, 6] x) => (float y) {{ y = {extreme} (x, a) }}", a=np.int64([2]))
    w = RNG.standard_normal((4, 5, 1)).astype(np.float32)
    got = [multipliers(model, x, r, w) for model in (top(1, largest=largest), reduced)]
    np.testing.assert_array_equal(*got)


def test_uniform_reference_routes_every_rank_to_its_place() -> None:
    """As DFD's rule for maxima: m = 1 for what was selected."""
    got = multipliers(top(3), X, np.full_like(X, 0.25), np.ones((4, 5, 3), np.float32))
    np.testing.assert_allclose(got, np.sort(X, axis=2)[..., -3:-2] <= X, atol=1e-6)


def test_a_place_that_pushes_others_aside() -> None:
    """At rank 2 neither 3 nor 1 changed: 10 came in front of them."""
    x, r = np.float32([[10, 3, 1]]), np.float32([[0, 3, 1]])
    model = laws.model("g (float[N, 3] x) => (float y) { y, i = TopK (x, k) }", k=np.int64([2]))
    got = multipliers(model, x, r, np.float32([[0, 1]]))
    np.testing.assert_allclose(got, [[0.2, 0, 0]], atol=1e-6)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_no_factor_exceeds_one(k: int) -> None:
    """Every rank by itself, also where differences are tiny."""
    x = (RNG.choice([-1, 0, 1], (300, 6)) * 10.0 ** RNG.uniform(-30, 2, (300, 6))).astype(np.float32)
    r = (RNG.choice([-1, 0, 1], (300, 6)) * 10.0 ** RNG.uniform(-30, 2, (300, 6))).astype(np.float32)
    model = laws.model("g (float[N, 6] x) => (float y) { y, i = TopK (x, k) }", k=np.int64([k]))
    for rank in range(k):
        w = np.zeros((300, k), np.float32)
        w[:, rank] = 1
        explainer = onnxlift.rewrite(model, target="weights", emit=("contributions", "multipliers"))
        got = laws.run(explainer, {"x": x, "x_reference": r, "target_weights": w})
        assert abs(got["x_multipliers"]).max() <= 2  # what is routed to a place, and its share of the rest
        np.testing.assert_allclose(got["completeness_gap"], 0, atol=2e-5)


def test_values_that_are_infinite_in_both_runs() -> None:
    """Masked scores: those that are left count, and the rest is finite."""
    w = RNG.standard_normal((4, 5, 3)).astype(np.float32)
    model = laws.model(
        "g (float[N, 5, 6] x) => (float y) { s = Where (seen, x, never) y, i = TopK (s, k) }",
        k=np.int64([3]),
        seen=np.arange(6) % 3 > 0,
        never=np.float32(-np.inf),
    )
    explainer = onnxlift.rewrite(model, target="weights")
    got = laws.run(explainer, {"x": X, "x_reference": R, "target_weights": w})
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)
    assert np.isfinite(got["x_contributions"]).all()
