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
    "Dropout": [
        ("y = Dropout (x)", {}),
        ("y = Dropout (x, ratio)", {"ratio": np.float32(0.5)}),
    ],
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
        ('y = Pad <mode = "wrap"> (x, p)', {"p": ints(0, 2, 5, 0, 1, 7)}),
        ('y = Pad <mode = "reflect"> (x, p)', {"p": ints(0, -1, 2, 0, 1, -1)}),
        ('y = Pad <mode = "edge"> (x, p, , a)', {"p": ints(2, -1), "a": ints(-1)}),
    ],
    "Tile": [("y = Tile (x, n)", {"n": ints(1, 2, 3)}), ("y = Tile (x, n)", {"n": ints(1, 1, 1)})],
    "DepthToSpace": [
        ("u = Reshape (x, s) y = DepthToSpace <blocksize = 2> (u)", {"s": ints(-1, 8, 1, 3)}),
        ('u = Reshape (x, s) y = DepthToSpace <blocksize = 2, mode = "CRD"> (u)', {"s": ints(-1, 8, 3, 1)}),
    ],
    "SpaceToDepth": [("u = Reshape (x, s) y = SpaceToDepth <blocksize = 2> (u)", {"s": ints(-1, 1, 4, 6)})],
    "ReverseSequence": [
        ("y = ReverseSequence <batch_axis = 0, time_axis = 1> (x, n)", {"n": ints(3, 1, 4)}),
        ("u = Transpose <perm = [2, 0, 1]> (x) y = ReverseSequence (u, n)", {"n": ints(6, 1, 4)}),
    ],
    "CenterCropPad": [
        ("y = CenterCropPad <axes = [1, 2]> (x, s)", {"s": ints(3, 9)}),
        ("y = CenterCropPad <axes = [-1]> (x, s)", {"s": ints(3)}),
        ("y = CenterCropPad <axes = [2, 1]> (x, s)", {"s": ints(1, 5)}),
    ],
    "Trilu": [("y = Trilu (x)", {}), ("y = Trilu <upper = 0> (x, k)", {"k": np.array(1, np.int64)})],
    "Cast": [("h = Cast <to = 11> (x) y = Cast <to = 1> (h)", {})],
    "CastLike": [("y = CastLike (x, c)", {"c": np.float32(0)})],
    "Where": [
        ("y = Where (m, x, c)", {"m": RNG.random((4, 6)) > 0.5, "c": np.float32(2)}),
        ("u = Neg (x) y = Where (m, u, x)", {"m": RNG.random((4, 1)) > 0.5}),
    ],
}
FLAT = [(body, constants) for cases in CASES.values() for body, constants in cases]
OPERATORS = (*CASES, "FeatureVectorizer")


@pytest.mark.parametrize(("body", "constants"), FLAT, ids=[body for body, _ in FLAT])
@pytest.mark.parametrize("sizes", ["N, 4, 6", "N, C, L", "3, 4, 6"])
def test_laws(body: str, constants: dict[str, np.ndarray], sizes: str) -> None:
    body = body.replace("c3", "c")
    mixed = "perm = [1" in body or "perm = [2" in body  # the batch axis moves
    per_batch = "ReverseSequence" in body or "(x, c, u)" in body  # constants for exactly three samples
    if per_batch and sizes != "3, 4, 6":
        sizes = sizes.replace("N", "3")
    model = laws.model(f"g (float[{sizes}] x) => (float y) {{ {body} }}", **constants)
    laws.check(model, {"x": X}, {"x": R}, references=sizes[0] == "N" and not mixed)


# body -> what its integer inputs are at run time
AT_RUN_TIME: dict[str, dict[str, np.ndarray]] = {
    "y = Tile (x, n)": {"n": ints(1, 2, 3)},
    "y = Reshape (x, n)": {"n": ints(3, -1, 8)},
    "y = Expand (x, n)": {"n": ints(2, 1, 4, 6)},
    "y = Pad (x, n)": {"n": ints(0, 1, -2, 0, 0, 3)},
    'y = Pad <mode = "wrap"> (x, n)': {"n": ints(0, 1, 2, 0, 0, 3)},
    "y = Pad (x, n, , a)": {"n": ints(2, 1), "a": ints(-2)},
    "y = Slice (x, n, e, a)": {"n": ints(-3, 1), "e": ints(9, 3), "a": ints(2, 1)},
    "y, a = Split <axis = 1> (x, n)": {"n": ints(1, 3)},
    "y = Unsqueeze (x, n)": {"n": ints(-1, 1)},
    "u, v = Split (x, n) y = Squeeze (u, e)": {"n": ints(1, 2), "e": ints(0)},
    "y = CenterCropPad <axes = [2, 1]> (x, n)": {"n": ints(9, 3)},
    "y = CenterCropPad (x, n)": {"n": ints(3, 5, 2)},
    "y = Trilu (x, n)": {"n": np.array(-1)},
    "y = ReverseSequence <batch_axis = 0, time_axis = 1> (x, n)": {"n": ints(4, 1, 3)},
}


UNRANKED = ("Unsqueeze", "CenterCropPad", "Split", ", , a")
"""Of these ONNX infers no rank where shapes are known at run time only, and the law of signed parts needs one."""
RANKS = {"Expand": 4, "Unsqueeze": 5, "Squeeze": 2}


@pytest.mark.parametrize("sizes", ["3, 4, 6", "3, C, L"])
@pytest.mark.parametrize(("body", "given"), AT_RUN_TIME.items(), ids=AT_RUN_TIME)
def test_shapes_and_places_that_are_known_at_run_time_only(body: str, given: dict[str, np.ndarray], sizes: str) -> None:
    inputs = ", ".join(
        f"int64[{len(value)}] {name}" if value.ndim else f"int64 {name}" for name, value in given.items()
    )
    rank = next((rank for op, rank in RANKS.items() if op in body), 3)
    model = laws.model(f"g (float[{sizes}] x, {inputs}) => (float[{', '.join('ABCDE'[:rank])}] y) {{ {body} }}")
    ranked = not any(part in body for part in UNRANKED)
    laws.check(model, {"x": X}, {"x": R}, others=given, references=False, signed=ranked)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
@pytest.mark.parametrize("sizes", ["N, C, H, W", "N, 12, H, W", "N, 12, 2, 3"])
def test_depth_to_space_of_unknown_extents(mode: str, sizes: str) -> None:
    model = laws.model(f'g (float[{sizes}] x) => (float y) {{ y = DepthToSpace <blocksize = 2, mode = "{mode}"> (x) }}')
    x, r = RNG.standard_normal((2, 3, 12, 2, 3)).astype(np.float32)
    laws.check(model, {"x": x}, {"x": r})


@pytest.mark.parametrize("sizes", ["N, C, H, W", "N, 3, 4, 6"])
def test_space_to_depth_of_unknown_extents(sizes: str) -> None:
    model = laws.model(f"g (float[{sizes}] x) => (float y) {{ y = SpaceToDepth <blocksize = 2> (x) }}")
    x, r = RNG.standard_normal((2, 3, 3, 4, 6)).astype(np.float32)
    laws.check(model, {"x": x}, {"x": r})


@pytest.mark.parametrize(
    ("body", "given"),
    [
        ("y = Pad (x, p, v)", {"p": ints(0, 1, 2, 0, 0, 3)}),
        ("y = Pad (x, p, v)", {"p": ints(0, 1, -2, 0, -1, 3)}),
        ("y = Pad (x, p, v, a)", {"p": ints(2, 1), "a": ints(-2)}),
        ("y = Pad (x, p, v)", {"p": ints(0, 0, 0, 0, 0, 0)}),
        ('y = Pad <mode = "edge"> (x, p, v) z = Add (y, v)', {"p": ints(0, 1, 2, 0, 0, 3)}),
    ],
)
@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("constant", [True, False])
def test_the_value_that_pads(body: str, given: dict[str, np.ndarray], shape: tuple[int, ...], constant: bool) -> None:
    inputs = ", ".join(f"int64[{len(value)}] {name}" for name, value in given.items())
    output = "z" if "z =" in body else "y"
    text = f"g (float[3, 4, 6] x, float[{', '.join(map(str, shape))}] v{'' if constant else ', ' + inputs})"
    if not shape:
        text = text.replace("float[] v", "float v")
    model = laws.model(f"{text} => (float[A, B, C] {output}) {{ {body} }}", **(given if constant else {}))
    x, r = ({"x": data, "v": np.full(shape, v, np.float32)} for data, v in ((X, 0.5), (R, -2)))
    others = {} if constant else given
    signed = bool(shape) and (constant or len(given) < 2)  # that law needs to know ranks, and has no inputs of rank 0
    laws.check(model, x, r, others=others, signed=signed)
    laws.check(model, {"v": x["v"]}, {"v": r["v"]}, others={"x": X, **others}, signed=signed)


def test_dropout_that_may_be_in_training_at_run_time() -> None:
    """Whether it drops is known then; what it does is one function of x."""
    model = laws.model("g (float[3, 4, 6] x, float ratio, bool on) => (float y) { y = Dropout (x, ratio, on) }")
    explainer = onnxlift.rewrite(model, inputs=["x"], target="weights")
    w = RNG.standard_normal(X.shape).astype(np.float32)
    for ratio, on in ((0, True), (0.5, False)):
        feed = {"x": X, "x_reference": R, "target_weights": w, "ratio": np.array(ratio, np.float32), "on": np.array(on)}
        np.testing.assert_allclose(laws.run(explainer, feed)["x_contributions"], w * (X - R), rtol=1e-6)


def test_dropout_in_training_is_refused() -> None:
    model = laws.model(
        "g (float[3, 4, 6] x) => (float y) { y = Dropout (x, r, on) }", r=np.float32(0.5), on=np.array(1 > 0)
    )
    with pytest.raises(onnxlift.RuleError, match="drops at random"):
        onnxlift.rewrite(model, target="weights")


@pytest.mark.parametrize("counts", [[2, 4, 1], [3, 4, 2], [1, 2, 1]])
@pytest.mark.parametrize("lead", ["N", "3"])
def test_feature_vectorizer(counts: list[int], lead: str) -> None:
    """Columns side by side, cut or filled with zeros to the numbers given."""
    node = onnx.helper.make_node(
        "FeatureVectorizer", ["a", "b", "c"], ["y"], domain="ai.onnx.ml", inputdimensions=counts
    )
    model = laws.model(
        f"g (float[{lead}, 2] a, float[{lead}, 4] b, float[{lead}, C] c) => (float[{lead}, K] y) {{ y = Neg (a) }}"
    )
    model.graph.node[0].CopyFrom(node)
    model.graph.value_info.append(model.graph.output[0])
    model.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 1))
    x, r = (
        {name: RNG.standard_normal((3, n)).astype(np.float32) for name, n in zip("abc", (2, 4, 1), strict=True)}
        for _ in range(2)
    )
    explainer = onnxlift.rewrite(model, target="weights", emit=("multipliers", "contributions"))
    w = RNG.standard_normal((3, sum(counts))).astype(np.float32)
    feed = {**x, **{f"{name}_reference": value for name, value in r.items()}, "target_weights": w}
    got = laws.run(explainer, feed)
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)
    begins = np.cumsum([0, *counts])
    for name, begin, count in zip("abc", begins, counts, strict=False):
        expected = np.zeros_like(x[name])
        kept = min(count, x[name].shape[1])
        expected[:, :kept] = w[:, begin : begin + kept]
        np.testing.assert_array_equal(got[f"{name}_multipliers"], expected)


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
