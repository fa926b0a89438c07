"""Where, masks as numbers, values read at an index: what is selected depends on the data."""

from __future__ import annotations

import re

import laws
import numpy as np
import onnx
import pytest

import onnxlift
from onnxlift import registry

OPERATORS = ("Cast", "Gather", "GatherElements", "GatherND", "OneHot", "ScatterElements", "ScatterND", "Where")
RNG = np.random.default_rng(41)
N = 5
FLOATS: dict[str, tuple[int | str, ...]] = {
    "x": ("N", 4, 6),
    "v": ("N", 4, 6),
    "row": ("N", 1, 6),
    "flat": ("N", 6),
    "other": ("N", 6),
}
CONSTANTS = {
    "zero": np.float32(0),
    "one": np.float32(1),
    "slope": np.float32(0.25),
    "table": RNG.standard_normal((6, 5)).astype(np.float32),
    "names": RNG.permutation(6),
    "low": np.int64(0),
    "high": np.int64(5),
    "eight": np.float32(8),
    "three": np.int64(3),
    "six": np.int64(6),
    "ends": np.float32([-1, 2]),
    "pair": np.int64([0, 1]),
    "range": np.arange(6),
    "k": np.int64([3]),
    "axis": np.int64(2),
    "along": np.int64([2]),
    "across": np.int64([1]),
    "both": np.int64([1, 2]),
    "all": np.int64([0, 1, 2]),
    "starts": np.int64([1]),
    "stops": np.int64([3]),
    "sizes": np.int64([-1, 24]),
    "wide": np.int64([1, 2, 1, 1]),
    "copies": np.int64([1, 2, 1]),
    "borders": np.int64([0, 1, 0, 0, 0, 2]),
    "odd": np.arange(6) % 2 == 1,
}

# several roots, and more operators than one
MASKS = [
    "c = Less (x, v) y = Where (c, x, v)",
    "c = Less (x, row) y = Where (c, row, x)",
    "c = GreaterOrEqual (x, v) f = Cast <to = 1> (c) y = Mul (x, f)",
    "c = Less (x, zero) d = Greater (row, zero) e = And (c, d) y = Where (e, x, v)",
    "c = Less (x, zero) d = Greater (v, zero) e = Or (c, d) f = Xor (e, c) y = Where (f, one, v)",
    "i = Cast <to = 7> (x) j = Cast <to = 7> (v) a = Abs (i) m = Mod (a, three) n = Add (m, j) f = Cast <to = 1> (n) "
    "y = Neg (f)",
    "i = Cast <to = 7> (x) j = Cast <to = 7> (v) m = Max (i, j) n = Min (m, three) f = Cast <to = 1> (n) y = Neg (f)",
    "c = Less (x, v) i = Cast <to = 7> (x) j = Cast <to = 7> (v) w = Where (c, i, j) f = Cast <to = 1> (w) y = Neg (f)",
    "c = Greater (x, zero) i = Cast <to = 7> (c) w = Where (odd, i, three) f = Cast <to = 1> (w) y = Mul (f, v)",
]
MASKS += [
    f"i = Cast <to = 7> (x) j = Cast <to = 7> (v) {body} f = Cast <to = 1> (o) y = Neg (f)"
    for body in (
        "o = BitwiseAnd (i, j)",
        "n = BitwiseNot (i) m = BitwiseOr (n, j) o = BitwiseXor (m, i)",
        "s = Sign (i) m = Mul (s, j) o = Sub (m, i)",
        "m = Pow (i, three) s = Mul (m, six) n = Neg (s) d = Div (n, three) e = Identity (d) o = Add (e, j)",
    )
] + [
    "i = Cast <to = 7> (x) a = Abs (i) u = Cast <to = 13> (a) j = Cast <to = 7> (v) b = Abs (j) w = Cast <to = 13> (b) "
    'o = BitShift <direction = "LEFT"> (u, w) f = Cast <to = 1> (o) y = Neg (f)',
    "d = Div (v, row) c = LessOrEqual (x, row) i = IsInf (x) n = IsNaN (v) a = Or (i, n) b = Not (a) o = Equal (b, c) "
    "f = Cast <to = 1> (o) y = Mul (f, v)",
]
# the root moves along
MOVED = [
    "c = Less (flat, zero) u = Unsqueeze (c, across) y = Where (u, x, v)",
    "c = Less (flat, zero) u = Unsqueeze (c, both) w = Expand (u, wide) f = Cast <to = 1> (w) y = Neg (f)",
    "c = Less (x, zero) t = Transpose <perm = [0, 2, 1]> (c) f = Cast <to = 1> (t) y = Neg (f)",
    "c = Less (x, zero) t = Slice (c, starts, stops, along) f = Cast <to = 1> (t) y = Neg (f)",
    "c = Less (x, zero) d = Less (row, zero) t = Concat <axis = 1> (d, c, d) f = Cast <to = 1> (t) y = Neg (f)",
    "c = Less (x, zero) a, b = Split <axis = 1, num_outputs = 2> (c) e = And (a, b) f = Cast <to = 1> (e) y = Neg (f)",
    "c = Less (x, zero) t = Reshape (c, sizes) f = Cast <to = 1> (t) y = Neg (f)",
    "c = Less (x, zero) t = Gather <axis = 2> (c, names) y = Where (t, x, v)",
]
MOVED += [
    f"c = Less (x, zero) i = Cast <to = 7> (c) {body} f = Cast <to = 1> (o) y = Neg (f)"
    for body in (
        "o = Flatten <axis = 1> (i)",
        "u = Unsqueeze (i, along) o = Squeeze (u, along)",
        "o = Tile (i, copies)",
        "o = Trilu (i)",
        "o = Pad (i, borders)",
    )
]
# a mask's element is made of a row
ROWS = [
    "c = Less (x, zero) i = Cast <to = 7> (c) j = CumSum (i, axis) f = Cast <to = 1> (j) y = Mul (f, v)",
    "c = Less (x, zero) i = Cast <to = 7> (c) j = CumSum <exclusive = 1, reverse = 1> (i, axis) f = Cast <to = 1> (j) "
    "y = Mul (f, v)",
    "c = Less (x, zero) i = Cast <to = 7> (c) j = ReduceSum (i, along) e = Greater (j, three) y = Where (e, v, x)",
    "c = Less (x, one) i = Cast <to = 7> (c) j = ReduceMin <keepdims = 0> (i, across) u = Unsqueeze (j, across) "
    "f = Cast <to = 1> (u) y = Mul (f, v)",
]
ROWS += [
    f"w = Mul (x, eight) i = Cast <to = 6> (w) o = {op} (i, {axes}) f = Cast <to = 1> (o) y = Mul (f, v)"
    for op, axes in {
        "ReduceMean": "along",
        "ReduceProd": "across",
        "ReduceMax": "both",
        "ReduceL1": "along",
        "ReduceL2": "along",
        "ReduceSumSquare": "both",
    }.items()
]
# values at an index
INDICES = [
    "i = ArgMax <axis = 2> (x) y = GatherElements <axis = 2> (v, i)",
    "i = ArgMax <axis = 2> (x) y = GatherElements <axis = 2> (x, i)",
    "i = ArgMin <axis = 1, keepdims = 0> (x) y = Gather (table, i)",
    "i = ArgMax <axis = 2, keepdims = 0> (x) n = Gather (names, i) y = Gather (table, n)",
    "i = Cast <to = 7> (x) j = Clip (i, low, high) y = Gather (table, j)",
    "t, i = TopK <axis = 2> (x, k) y = GatherElements <axis = 2> (v, i)",
    "t, i = TopK <axis = 2> (x, k) c = Less (t, one) j = Cast <to = 7> (c) n = Add (i, j) f = Cast <to = 1> (n) "
    "y = Neg (f)",
    "t, i = TopK <axis = 2> (x, k) g = GatherElements <axis = 2> (v, i) y = Mul (t, g)",
    "i = ArgMax <axis = 1> (flat) y = GatherND <batch_dims = 1> (other, i)",
    "i = ArgMax <axis = 1> (flat) f = Cast <to = 1> (i) y = Mul (f, other)",
    "i = ArgMax <axis = 2, keepdims = 0> (x) o = OneHot (i, six, ends) y = Mul (o, v)",
    "i = ArgMax <axis = 2, keepdims = 0> (x) o = OneHot <axis = 1> (i, six, pair) f = Cast <to = 1> (o) y = Neg (f)",
    "i = ArgMax <axis = 2> (x) o = Equal (i, range) y = Where (o, v, zero)",
    "t, i = TopK <axis = 2> (x, k) y = ScatterElements <axis = 2> (v, i, t)",
    "t, i = TopK <axis = 2> (x, k) n = Sub (x, x) s = Softmax (t) y = ScatterElements <axis = 2> (n, i, s)",
    'i = ArgMax <axis = 2> (x) u = ReduceMin (v, along) y = ScatterElements <axis = 2, reduction = "add"> (v, i, u)',
    'i = Cast <to = 7> (x) y = ScatterElements <axis = 2, reduction = "add"> (v, i, x)',
    "i = ArgMax <axis = 2> (x) t, j = TopK <axis = 1> (i, k) n = GatherElements <axis = 1> (i, j) "
    "f = Cast <to = 1> (n) y = Neg (f)",
]


def model_of(body: str, output: str = "float y") -> onnx.ModelProto:
    """The graph with the inputs and constants that it names."""
    words = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    inputs = [f"float[{', '.join(map(str, shape))}] {name}" for name, shape in FLOATS.items() if name in words]
    constants = {name: np.asarray(value) for name, value in CONSTANTS.items() if name in words}
    model = laws.model(f"g ({', '.join(inputs)}) => ({output}) {{ {body} }}", **constants)
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    return model


def data(model: onnx.ModelProto) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """x and r; in some samples they are the same in places, and differences are never tiny."""
    rng = np.random.default_rng(43)
    x, r = {}, {}
    for value in model.graph.input:
        shape = [N, *(dim.dim_value for dim in value.type.tensor_type.shape.dim[1:])]
        x[value.name], far = (rng.uniform(0.2, 2, (2, *shape)) * rng.choice([-1, 1], (2, *shape))).astype(np.float32)
        r[value.name] = np.where(rng.random(shape) < 0.3, x[value.name], far)
        r[value.name][0] = x[value.name][0]
    return x, r


EVERY = [*MASKS, *MOVED, *ROWS, *INDICES]


def test_every_operator_that_makes_conditions_is_here() -> None:
    operators = {*re.findall(r"[A-Z]\w+(?= [<(])", " ".join(EVERY)), "MaxPool"}  # MaxPool: in test_sampling.py
    assert {op for op in operators | set(onnx_operators()) if registry.find_condition(op)} <= operators


def onnx_operators() -> set[str]:
    return {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}


@pytest.mark.parametrize("body", EVERY)
def test_conditions_conserve_and_equal_the_oracle(body: str) -> None:
    model = model_of(body)
    x, r = data(model)
    got = laws.check(model, x, r, rtol=2e-5)
    y, y0 = (laws.run(model, at)["y"] for at in (x, r))
    assert (y != y0).any()
    for name in x:
        assert got[f"{name}_contributions"].any(), name


@pytest.mark.parametrize(
    "body", ["y = GatherND (v, c)", "y = ScatterND (v, c, u)", 'y = ScatterND <reduction = "add"> (v, c, u)']
)
def test_indices_of_two_numbers(body: str) -> None:
    """The number of the sample, and a place that depends on the data: it takes all."""
    inputs = "float[5, 4] x, float[5, 4, 6] v" + (", float[5, 6] u" if "u)" in body else "")
    find = "i = ArgMax <axis = 1> (x) j = Sub (i, four) m = Max (i, j) c = Concat <axis = 1> (n, m)"
    constants = {"four": np.int64(4), "n": np.arange(5)[:, None]}
    model = laws.model(f"g ({inputs}) => (float y) {{ {find} {body} }}", **constants)
    laws.check(model, *data(model), references=False)


@pytest.mark.parametrize(
    "body",
    [
        "c = Greater (x, zero) y = Where (c, x, zero)",
        "c = Greater (x, zero) n = Mul (x, slope) y = Where (c, x, n)",
        "c = Greater (x, zero) f = Cast <to = 1> (c) y = Mul (x, f)",
        "c = Less (x, zero) d = Not (c) f = Cast <to = 1> (d) y = Mul (f, x)",
        "c = Less (x, one) d = Greater (x, zero) e = And (c, d) f = Cast <to = 1> (e) y = Mul (f, x)",
        "c = IsNaN (x) y = Where (c, zero, x)",
    ],
    ids=["relu", "leaky", "gate", "negated", "window", "nan"],
)
def test_a_region_of_one_tensor_has_its_one_multiplier(body: str) -> None:
    """x * (x > 0) is Relu, however it is written: the mask's share goes to x (METHOD section 3)."""
    model = model_of(body)
    x, r = data(model)
    w = RNG.standard_normal(x["x"].shape).astype(np.float32)
    explainer = onnxlift.rewrite(model, target="weights")
    got = laws.run(explainer, {**x, "x_reference": r["x"], "target_weights": w})
    y, y0 = (laws.run(model, at)["y"] for at in (x, r))
    np.testing.assert_allclose(got["x_contributions"], w * (y - y0), atol=1e-6)


REGIONS = {
    "Relu": "c = Greater (x, zero) y = Where (c, x, zero)",
    "LeakyRelu": "c = Less (x, zero) n = Mul (x, slope) y = Where (c, n, x)",
    "Clip": "c = Less (x, zero) a = Where (c, zero, x) d = Greater (a, one) y = Where (d, one, a)",
    "Elu": "e = Exp (x) m = Sub (e, one) c = Greater (x, zero) y = Where (c, x, m)",
    "Gelu": "a = Div (x, root) e = Erf (a) c = Add (e, one) d = Mul (x, c) y = Mul (d, half)",
    "HardSigmoid": "a = Mul (x, slope) b = Add (a, half) c = Max (b, zero) y = Min (c, one)",
    "HardSwish": "a = Add (x, three) b = Clip (a, zero, six) c = Mul (x, b) y = Div (c, six)",
    "Abs": "c = Less (x, zero) n = Neg (x) y = Where (c, n, x)",
}
FUSED = {
    "LeakyRelu": "y = LeakyRelu <alpha = 0.25> (x)",
    "Clip": "y = Clip (x, zero, one)",
    "HardSigmoid": "y = HardSigmoid <alpha = 0.25> (x)",
}


@pytest.mark.parametrize("distance", [3.0, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("op", REGIONS)
def test_a_region_and_the_operator_that_it_is_have_one_multiplier(op: str, distance: float) -> None:
    """Also where x and r are near each other, on either side of a kink: no quotient of a jump blows up."""
    rng, size = np.random.default_rng(3), (400, 6)
    numbers = {"zero": 0, "one": 1, "half": 0.5, "slope": 0.25, "root": 2**0.5, "three": 3, "six": 6}
    r = rng.uniform(-4, 4, size).astype(np.float32)
    r[:, 1:] = (np.float32([0, -2, 1, -3, 3]) + rng.uniform(-distance, distance, (len(r), 5)) / 2).astype(np.float32)
    x = (r + rng.uniform(-distance, distance, size)).astype(np.float32)
    got = []
    for body in (REGIONS[op], FUSED.get(op, f"y = {op} (x)")):
        used = {name: np.float32(v) for name, v in numbers.items() if f"{name})" in body or f"{name}," in body}
        model = laws.model(f"g (float[N, 6] x) => (float[N, 6] y) {{ {body} }}", **used)
        explainer = onnxlift.rewrite(model, target="weights", emit=("multipliers",))
        got.append(laws.run(explainer, {"x": x, "x_reference": r, "target_weights": np.ones_like(x)})["x_multipliers"])
    assert max(abs(m).max() for m in got) < 1.6  # at its steepest HardSwish has 1.5
    contributed = [m * (x.astype(np.float64) - r) for m in got]
    np.testing.assert_allclose(*contributed, atol=3e-7 * 4)  # the rounding of values of up to 4


def test_a_maximum_that_is_written_as_a_comparison_has_small_multipliers() -> None:
    """However near the operands come to each other, or to their references."""
    model = laws.model("g (float[N] a, float[N] b) => (float[N] y) { c = Less (a, b) y = Where (c, b, a) }")
    explainer = onnxlift.rewrite(model, target="weights", emit=("contributions", "multipliers"))
    rng, n = np.random.default_rng(5), 4000
    feed = {}
    for name in ("a", "a_reference", "b", "b_reference"):
        size = 10.0 ** rng.uniform(-30, 1, n)
        feed[name] = (rng.choice([-1, 0, 1], n) * size).astype(np.float32)
    got = laws.run(explainer, {**feed, "target_weights": np.ones(n, np.float32)})
    for name in ("a", "b"):
        assert (got[f"{name}_multipliers"] >= -0.251).all()
        assert (got[f"{name}_multipliers"] <= 1.251).all()
    delta = got["target_output"] - got["target_reference"]
    np.testing.assert_allclose(got["a_contributions"] + got["b_contributions"], delta, atol=1e-6)


def test_a_branch_that_is_not_selected_may_be_infinite_or_huge() -> None:
    """log x where x is above both 0 and v; e^(50 x) where it is below."""
    body = "c = Greater (x, v) d = Greater (x, zero) e = And (c, d) l = Log (x) f = Mul (x, fifty) h = Exp (f)"
    model = laws.model(
        f"g (float[N, 4] x, float[N, 4] v) => (float[N, 4] y) {{ {body} y = Where (e, l, h) }}",
        zero=np.float32(0),
        fifty=np.float32(50),
    )
    x, r = ({k: RNG.uniform(-1.5, 1.5, (40, 4)).astype(np.float32) for k in "xv"} for _ in range(2))
    for at in (x, r):  # where e^(50 x) is selected it is small
        at["x"] = np.where((at["x"] > 0) & (at["x"] <= at["v"]), -at["x"], at["x"])
    explainer = onnxlift.rewrite(model, target="weights")
    references = {f"{k}_reference": v for k, v in r.items()}
    got = laws.run(explainer, {**x, **references, "target_weights": np.ones((40, 4), np.float32)})
    assert np.isfinite(got["x_contributions"]).all()
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=2e-4)


def test_scores_that_are_masked_in_both_runs_stay_masked() -> None:
    """Minus infinity in front of a comparison, at x and at r."""
    model = laws.model(
        "g (float[N, 6] x) => (float[N, 6] y) { s = Where (seen, x, never) t, i = TopK (s, k) "
        "u = Slice (t, two, k, one) c = Less (s, u) m = Where (c, low, x) y = Softmax (m) }",
        seen=np.arange(6) < 5,
        never=np.float32(-np.inf),
        k=np.int64([3]),
        two=np.int64([2]),
        one=np.int64([1]),
        low=np.float32(-20),
    )
    x, r = (RNG.standard_normal((8, 6)).astype(np.float32) for _ in range(2))
    w = RNG.standard_normal((8, 6)).astype(np.float32)
    explainer = onnxlift.rewrite(model, target="weights", pre_activation=False)
    got = laws.run(explainer, {"x": x, "x_reference": r, "target_weights": w})
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)


def test_half_precision_and_large_integers() -> None:
    """Squares of 300 overflow in half precision; 2^24 and 2^24 + 1 are one number in single precision."""
    model = laws.model(
        "g (float16[N, 4] x, float16[N, 4] v) => (float y) { c = Less (x, v) i = Cast <to = 7> (c) j = Add (i, large) "
        "a = Cast <to = 7> (x) m = Max (j, a) k = Sub (m, large) y = Cast <to = 1> (k) }",
        large=np.int64(2**24),
    )
    x, r = ({k: RNG.uniform(-400, 400, (6, 4)).astype(np.float16) for k in "xv"} for _ in range(2))
    y, y0 = (laws.run(model, at)["y"] for at in (x, r))
    got = laws.run(
        onnxlift.rewrite(model, target="weights"),
        {**x, **{f"{k}_reference": v for k, v in r.items()}, "target_weights": np.ones((6, 4), np.float32)},
    )
    assert (y != y0).any()
    np.testing.assert_allclose(got["x_contributions"] + got["v_contributions"], y - y0, rtol=2e-2)


def test_a_float_index_of_one_hot_is_its_own_root() -> None:
    """The same as a Cast to integers in front of it; also the values and a float depth may be given at run time."""
    text = "g (float[N, 4] x, float depth, float[2] values) => (float[N, 4, 5] y) {{ {} }}"
    models = [
        laws.model(text.format(body))
        for body in ("y = OneHot (x, depth, values)", "i = Cast <to = 7> (x) y = OneHot (i, depth, values)")
    ]
    feed = {
        "x": RNG.integers(0, 5, (3, 4)).astype(np.float32),
        "x_reference": RNG.integers(0, 5, (3, 4)).astype(np.float32),
    }
    feed |= {
        "depth": np.array(5, np.float32),
        "target_weights": RNG.standard_normal((3, 4, 5)),
    }
    feed |= {"values": np.float32([1, -2]), "values_reference": np.float32([0.5, 3])}
    feed["target_weights"] = feed["target_weights"].astype(np.float32)
    got = [laws.run(onnxlift.rewrite(model, inputs=["x", "values"], target="weights"), feed) for model in models]
    for one, other in zip(got[0].values(), got[1].values(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(got[0]["completeness_gap"], 0, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("c = NonZero (x) f = Cast <to = 1> (c) y = ReduceSum (f)", "'c': NonZero '.*' is on its way: how many places"),
        ("s = Relu (x) u, i = Unique (s) y = Neg (u)", "how many values it returns varies with the data"),
        (
            "m = ReduceMax <keepdims = 0> (flat, across) c = Greater (m, zero) y = Compress <axis = 0> (v, c)",
            "tensor 'c'",
        ),
        ("i = Cast <to = 7> (x) j = Slice (names, i) y = Cast <to = 1> (j)", "its input 'i', 'i' varies too"),
        (
            "i = Cast <to = 7> (x) d = ReduceMax <keepdims = 0> (i, all) y = OneHot (names, d, ends)",
            "its size .'d'. depends on the attributed inputs",
        ),
        ("c = NonZero (x) s = Shape (c) f = Cast <to = 1> (s) y = Neg (f)", "Shape '.*' is on its way"),
        (
            'i = Cast <to = 7> (x) y = ScatterElements <axis = 2, reduction = "mul"> (v, i, x)',
            "its indices depend on the attributed inputs, and its reduction is 'mul'",
        ),
    ],
)
def test_what_varies_in_size_or_cannot_be_followed_is_refused_by_name(body: str, reason: str) -> None:
    body = body.replace("Slice (names, i)", "Slice (names, i, i)")
    with pytest.raises(onnxlift.RuleError, match=reason):
        onnxlift.rewrite(model_of(body), target="weights")
