"""Movement: what goes one way comes back the other, at static and at dynamic sizes."""

from __future__ import annotations

import laws
import numpy as np
import onnx
import pytest

import onnxlift

RNG = np.random.default_rng(13)
X, R = (RNG.standard_normal((3, 4, 6)).astype(np.float32) for _ in range(2))


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


# operator -> (body of a graph x [N, 4, 6] -> y, its constants)
CASES: dict[str, list[tuple[str, dict[str, np.ndarray]]]] = {
    "Identity": [("y = Identity (x)", {})],
    "Dropout": [("y = Dropout (x)", {}), ("y = Dropout (x, ratio)", {"ratio": np.float32(0.5)})],
    "Reshape": [
        ("y = Reshape (x, shape)", {"shape": ints(0, -1)}),
        ("y = Reshape (x, shape)", {"shape": ints(-1, 2, 12)}),
    ],
    "Flatten": [("y = Flatten (x)", {})],
    "Squeeze": [("u = Unsqueeze (x, a) v = Neg (u) y = Squeeze (v, a)", {"a": ints(2)})],
    "Unsqueeze": [("y = Unsqueeze (x, a)", {"a": ints(1, -1)})],
    "Transpose": [("y = Transpose <perm = [0, 2, 1]> (x)", {}), ("y = Transpose <perm = [1, 0, 2]> (x)", {})],
    "Expand": [
        ("u = Unsqueeze (x, a) y = Expand (u, shape)", {"a": ints(1), "shape": ints(1, 5, 4, 6)}),
        ("u = Shape (x) y = Expand (x, u)", {}),
    ],
    "Concat": [
        ("u = Neg (x) y = Concat <axis = 1> (x, c3, u)", {"c": X}),
        ("u = Neg (x) y = Concat <axis = -1> (x, u)", {}),
        ("y = Concat <axis = 1> (x)", {}),
    ],
    "Split": [
        ("y, b = Split <axis = 1, num_outputs = 2> (x)", {}),
        ("a, b, c = Split <axis = -1> (x, sizes) y = Mul (a, c)", {"sizes": ints(2, 2, 2)}),
    ],
    "Slice": [
        ("y = Slice (x, s, e, a)", {"s": ints(1), "e": ints(3), "a": ints(1)}),
        ("y = Slice (x, s, e, a)", {"s": ints(-3, 0), "e": ints(-1, 99), "a": ints(2, 1)}),
        ("y = Slice (x, s, e, a, t)", {"s": ints(5), "e": ints(0), "a": ints(2), "t": ints(-2)}),
        ("y = Slice (x, s, e, a, t)", {"s": ints(0), "e": ints(9), "a": ints(2), "t": ints(3)}),
    ],
    "Pad": [
        ("y = Pad (x, p)", {"p": ints(0, 1, 2, 0, 0, 3)}),
        ("y = Pad (x, p, v, a)", {"p": ints(2, 1), "v": np.float32(7), "a": ints(1)}),
        ('y = Pad <mode = "reflect"> (x, p)', {"p": ints(0, 1, 2, 0, 1, 1)}),
        ('y = Pad <mode = "edge"> (x, p)', {"p": ints(0, 0, 2, 0, 0, 3)}),
    ],
    "Gather": [
        ("y = Gather <axis = 1> (x, i)", {"i": np.array(0, np.int64)}),
        ("y = Gather <axis = 2> (x, i)", {"i": np.array(-1, np.int64)}),
        ("y = Gather <axis = 1> (x, i)", {"i": ints(2)}),
        ("y = Gather <axis = 2> (x, i)", {"i": ints(0, 3, 3, -1)}),
        ("y = Gather <axis = 1> (x, i)", {"i": np.array([[0, 1], [1, 3]], np.int64)}),
    ],
    "GatherElements": [("y = GatherElements <axis = 2> (x, i)", {"i": RNG.integers(0, 6, (3, 4, 2))})],
    "Tile": [("y = Tile (x, n)", {"n": ints(1, 2, 3)})],
    "Trilu": [("y = Trilu (x)", {}), ("y = Trilu <upper = 0> (x, k)", {"k": np.array(1, np.int64)})],
    "Cast": [("h = Cast <to = 11> (x) y = Cast <to = 1> (h)", {})],
    "CastLike": [("y = CastLike (x, c)", {"c": np.float32(0)})],
    "Where": [
        ("y = Where (m, x, c)", {"m": RNG.random((4, 6)) > 0.5, "c": np.float32(2)}),
        ("u = Neg (x) y = Where (m, u, x)", {"m": RNG.random((4, 1)) > 0.5}),
    ],
}
FLAT = [(body, constants) for cases in CASES.values() for body, constants in cases]
OPERATORS = (*CASES, "GatherND")


@pytest.mark.parametrize(("body", "constants"), FLAT, ids=[body for body, _ in FLAT])
@pytest.mark.parametrize("sizes", ["N, 4, 6", "N, C, L", "3, 4, 6"])
def test_laws(body: str, constants: dict[str, np.ndarray], sizes: str) -> None:
    body = body.replace("c3", "c")
    mixed = "perm = [1" in body  # the batch axis moves
    per_batch = "GatherElements" in body or "(x, c, u)" in body  # constants for exactly three samples
    if per_batch and sizes != "3, 4, 6":
        sizes = sizes.replace("N", "3")
    model = laws.model(f"g (float[{sizes}] x) => (float y) {{ {body} }}", **constants)
    laws.check(model, {"x": X}, {"x": R}, references=sizes[0] == "N" and not mixed)


def test_gather_nd_at_positions_that_another_input_gives() -> None:
    """The last token of a sequence, as text encoders pick it."""
    model = laws.model("g (float[N, 4, 6] x, int64[N, 1] at) => (float y) { y = GatherND <batch_dims = 1> (x, at) }")
    laws.check(model, {"x": X}, {"x": R}, others={"at": np.array([[0], [2], [2]])})


def test_negative_pads_crop() -> None:
    """The same as Slice and then Pad."""
    crop = laws.model("g (float[N, 4, 6] x) => (float y) { y = Pad (x, p) }", p=ints(0, -1, 2, 0, 1, -2))
    two = laws.model(
        "g (float[N, 4, 6] x) => (float y) { s = Slice (x, a, b, axes) y = Pad (s, p) }",
        **{"a": ints(1, 0), "b": ints(4, 4), "axes": ints(1, 2), "p": ints(0, 0, 2, 0, 1, 0)},
    )
    w = RNG.standard_normal((3, 4, 6)).astype(np.float32)
    one, other = (
        laws.run(onnxlift.rewrite(m, target="weights"), {"x": X, "x_reference": R, "target_weights": w})
        for m in (crop, two)
    )
    np.testing.assert_array_equal(one["y"], other["y"])
    np.testing.assert_array_equal(one["x_contributions"], other["x_contributions"])


def test_an_unused_output_of_split_gets_zeros() -> None:
    model = laws.model("g (float[N, 4, 6] x) => (float y) { a, y = Split <axis = 1, num_outputs = 2> (x) }")
    got = laws.check(model, {"x": X}, {"x": R})
    assert not got["x_multipliers"][:, :2].any()


@pytest.mark.parametrize(
    "body",
    [
        "c = Greater (x, zero) y = Where (c, x, zero)",
        "c = Greater (x, zero) n = Mul (x, slope) y = Where (c, x, n)",
        "c = Greater (x, zero) f = Cast <to = 1> (c) y = Mul (x, f)",
        "c = Less (x, zero) d = Not (c) f = Cast <to = 1> (d) y = Mul (f, x)",
        "c = IsNaN (x) y = Where (c, zero, x)",
    ],
    ids=["relu", "leaky", "gate", "negated", "nan"],
)
def test_masks_made_from_the_tensor_that_they_select_conserve(body: str) -> None:
    """x * (x > 0) is Relu, however it is written: the mask's share goes to x (METHOD section 3)."""
    constants = {"zero": np.float32(0), "slope": np.float32(0.25)}
    used = {name: value for name, value in constants.items() if name in body}
    model = laws.model(f"g (float[N, 4, 6] x) => (float y) {{ {body} }}", **used)
    explainer = onnxlift.rewrite(model, target="weights", emit=("contributions", "multipliers"))
    onnx.checker.check_model(explainer, full_check=True)
    w = RNG.standard_normal(X.shape).astype(np.float32)
    got = laws.run(explainer, {"x": X, "x_reference": R, "target_weights": w})
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)
    y, y0 = (laws.run(model, {"x": value})["y"] for value in (X, R))
    np.testing.assert_allclose(got["x_contributions"], w * (y - y0), atol=1e-5)


def test_a_mask_of_another_tensor_is_refused_by_name() -> None:
    model = laws.model(
        "g (float[N, 4] x) => (float y) { s = ReduceMean <keepdims = 1> (x, a) t = ArgMax <axis = 1> (x) "
        "u = Cast <to = 1> (t) y = Mul (s, u) }",
        a=ints(1),
    )
    with pytest.raises(onnxlift.RuleError, match="leak through the integer or boolean tensor 't'"):
        onnxlift.rewrite(model, target="weights")
