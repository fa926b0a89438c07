"""Reversed Loops and Scans: what is computed for all iterations at once, and what has to stay inside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import laws
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxlift
from onnxlift.graph import Graph
from onnxlift.lifting import _LIFTS
from onnxlift.staged import Stack, Staged
from onnxlift.tensor import INT64, Emitter

RNG = np.random.default_rng(3)
STEPS = 3
Arrays = dict[str, np.ndarray]


def numbers(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


# --- one operator over all iterations at once -------------------------------------------------------------------------


def stacks(*shape: int) -> tuple[np.ndarray, bool]:
    """An input of which every iteration has its own."""
    return numbers(STEPS, *shape), True


def shared(value: Any) -> tuple[np.ndarray, bool]:
    """An input that all iterations read."""
    return np.asarray(value), False


def places(*shape: int, below: int) -> np.ndarray:
    return RNG.integers(0, below, shape)


Case = tuple[Sequence[tuple[np.ndarray, bool]], dict[str, Any]]

UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity "
    "IsInf IsNaN LeakyRelu Log Mish Neg Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt "
    "Tan Tanh ThresholdedRelu"
).split()
BINARY = "Add Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mul Pow Sub Sum".split()
LOGICAL = ("And", "Or", "Xor")
REDUCTIONS = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
).split()
ALIGNED: list[list[tuple[np.ndarray, bool]]] = [
    [stacks(2, 3), stacks(2, 3)],
    [stacks(2, 3), shared(numbers(3))],
    [stacks(3), shared(numbers(2, 3))],
    [stacks(), stacks(2, 1)],
    [shared(numbers(4, 1, 3)), stacks(2, 1)],
]
PAIRS: list[list[tuple[np.ndarray, bool]]] = [
    [stacks(2, 3), shared(numbers(3, 4))],
    [stacks(3), shared(numbers(3, 4))],
    [stacks(2, 3), shared(numbers(3))],
    [shared(numbers(2, 3)), stacks(3, 4)],
    [stacks(5, 2, 3), stacks(3, 4)],
    [stacks(2, 3), shared(numbers(5, 3, 4))],
]
BOUNDS = shared(np.float32(-0.3)), shared(np.float32(0.4))


def axes(*values: int) -> tuple[np.ndarray, bool]:
    return shared(np.int64(values))


CASES: dict[str, list[Case]] = {
    **{op: [([stacks(2, 3)], {})] for op in UNARY},
    **{op: [(pair, {}) for pair in ALIGNED] for op in BINARY},
    **{op: [([(a > 0, s), (b > 0, t)], {}) for (a, s), (b, t) in ALIGNED] for op in LOGICAL},
    **{
        op: [
            ([stacks(2, 3, 2), axes(1)], {"keepdims": 0}),
            ([stacks(2, 3, 2), axes(-1, 0)], {}),
            ([stacks(2, 3)], {"keepdims": 0}),
        ]
        for op in REDUCTIONS
    },
    "Not": [([(numbers(STEPS, 2) > 0, True)], {})],
    "Mod": [([stacks(2, 3), shared(numbers(3))], {"fmod": 1})],
    "Cast": [([stacks(2, 3)], {"to": onnx.TensorProto.DOUBLE})],
    "Clip": [([stacks(2, 3), *BOUNDS], {})],
    "PRelu": [([stacks(2, 3), shared(numbers(3))], {})],
    "Where": [([(numbers(STEPS, 2, 1) > 0, True), shared(numbers(3)), stacks(2, 3)], {})],
    "MatMul": [(pair, {}) for pair in PAIRS],
    "Gemm": [
        ([stacks(2, 3), shared(numbers(4, 3))], {"transB": 1}),
        ([stacks(3, 2), shared(numbers(3, 4)), shared(numbers(4))], {"transA": 1, "alpha": 0.5, "beta": 2.0}),
        ([shared(numbers(2, 3)), stacks(3, 4), stacks(4)], {}),
    ],
    "Softmax": [([stacks(2, 3)], {}), ([stacks(2, 3)], {"axis": 0})],
    "LogSoftmax": [([stacks(2, 3)], {"axis": 1})],
    "Hardmax": [([stacks(2, 3)], {"axis": -2})],
    "LayerNormalization": [([stacks(2, 3), shared(numbers(3)), shared(numbers(3))], {})],
    "ArgMax": [([stacks(2, 3)], {}), ([stacks(2, 3)], {"axis": -1, "keepdims": 0})],
    "ArgMin": [([stacks(2, 3)], {"axis": 1})],
    "TopK": [([stacks(2, 3), axes(2)], {}), ([stacks(3, 2), axes(2)], {"axis": 0})],
    "Split": [([stacks(3, 2), axes(1, 2)], {}), ([stacks(2, 4), axes(3, 1)], {"axis": -1})],
    "Concat": [
        ([stacks(2, 3), stacks(1, 3)], {"axis": 0}),
        ([stacks(2, 1), shared(numbers(2, 3))], {"axis": -1}),
    ],
    "Gather": [
        ([stacks(3, 2), shared(places(4, below=3))], {}),
        ([stacks(2, 3), shared(places(2, 2, below=3))], {"axis": -1}),
        ([shared(numbers(5, 2)), (places(STEPS, below=5), True)], {}),
        ([shared(numbers(2, 5, 3)), (places(STEPS, 2, below=5), True)], {"axis": 1}),
    ],
    "GatherElements": [
        ([stacks(2, 3), (places(STEPS, 2, 2, below=3), True)], {"axis": 1}),
        ([stacks(2, 3), shared(places(2, 3, below=2))], {}),
    ],
    "CumSum": [([stacks(2, 3), shared(np.int64(1))], {}), ([stacks(2, 3), axes(-2)], {"reverse": 1})],
    "Squeeze": [([stacks(1, 3, 1), axes(0)], {}), ([stacks(1, 3, 1), axes(-1)], {})],
    "Unsqueeze": [([stacks(2, 3), axes(0, 2)], {}), ([stacks(2, 3), axes(-1)], {})],
    "Slice": [
        ([stacks(2, 3), axes(1), axes(3), axes(1)], {}),
        ([stacks(4, 3), axes(-1, 0), axes(-9, 2), axes(0, -1), axes(-1, 1)], {}),
        ([stacks(4, 3), axes(1, 0), axes(3, 2)], {}),
    ],
    "Pad": [([stacks(2, 3), axes(1, 0, 0, 2), shared(np.float32(0.5))], {}), ([stacks(2, 3), axes(0, -1, 0, 0)], {})],
    "Transpose": [([stacks(2, 3, 4)], {}), ([stacks(2, 3, 4)], {"perm": [1, 0, 2]})],
    "Reshape": [([stacks(2, 3), axes(-1)], {}), ([stacks(2, 3, 4), axes(0, 2, -1)], {})],
    "Expand": [([stacks(3), axes(2, 1)], {}), ([stacks(2, 1), axes(4)], {})],
}


def test_every_operator_that_is_lifted_has_a_case() -> None:
    assert CASES.keys() == _LIFTS.keys()


@pytest.mark.parametrize(("op", "case"), [(op, case) for op, cases in CASES.items() for case in cases])
def test_an_operator_over_all_iterations_is_that_of_each(op: str, case: Case) -> None:
    given, attributes = case
    count = 2 if op in ("Split", "TopK") else 1
    names = [f"i{k}" for k in range(len(given))]
    constant = {
        name for name, (value, stack) in zip(names, given, strict=True) if not stack and value.dtype == np.int64
    }
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, (value, _) in zip(names, given, strict=True)
        if name not in constant
    ]
    values = [
        numpy_helper.from_array(value, name) for name, (value, _) in zip(names, given, strict=True) if name in constant
    ]
    keeps = [helper.make_node("Identity", [name], [f"kept_{name}"]) for name in names]
    output = helper.make_tensor_value_info("kept_i0", inputs[0].type.tensor_type.elem_type, None)
    model = helper.make_model(
        helper.make_graph(keeps, "g", inputs, [output], values),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    graph = Graph(model)
    emitter = Emitter(graph)
    staged = Staged(emitter, emitter.constant([STEPS], INT64), 0)
    large = staged.slice(Stack(emitter.constant(np.zeros((STEPS, 999)), np.dtype(np.float32))))
    assert large.shape == (999,)
    tensors = [
        staged.slice(Stack(emitter.tensor(name))) if stack else staged.adopt(emitter.tensor(name))
        for name, (_, stack) in zip(names, given, strict=True)
    ]
    rows = [[np.asarray(value[k] if stack else value) for value, stack in given] for k in range(STEPS)]
    expected = [alone(op, row, attributes, count) for row in rows]
    made = staged.ops(
        op,
        *tensors,
        shapes=[one.shape for one in expected[0]],
        dtypes=[one.dtype for one in expected[0]],
        **attributes,
    )
    wholes = [staged.whole(tensor) for tensor in made]
    assert None not in wholes
    for whole in wholes:
        assert whole is not None
        graph.add_output(whole.handle)
    feed = {name: value for name, (value, _) in zip(names, given, strict=True) if name not in constant}
    got = list(laws.run(graph.export({}), feed).values())[1:]
    for k, whole in enumerate(got):
        np.testing.assert_allclose(whole, np.stack([one[k] for one in expected]), rtol=1e-5, atol=1e-6)


def alone(op: str, inputs: Sequence[np.ndarray], attributes: dict[str, Any], count: int) -> list[np.ndarray]:
    """What ONNX Runtime computes for one iteration."""
    names, outputs = [f"i{k}" for k in range(len(inputs))], [f"o{k}" for k in range(count)]
    kinds = [helper.np_dtype_to_tensor_dtype(value.dtype) for value in inputs]
    graph = helper.make_graph(
        [helper.make_node(op, names, outputs, **attributes)],
        "g",
        [helper.make_tensor_value_info(*one) for one in zip(names, kinds, [v.shape for v in inputs], strict=True)],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model)
    return list(laws.run(model, dict(zip(names, inputs, strict=True))).values())


# --- whole models -----------------------------------------------------------------------------------------------------


def bodies(graph: onnx.GraphProto, inside: str = "") -> Iterator[tuple[str, onnx.NodeProto]]:
    """Every node, with the operator that runs it last: Loop and Scan count, an If does not."""
    for node in graph.node:
        yield inside, node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from bodies(attribute.g, inside if node.op_type == "If" else node.output[0])


def operators(graph: onnx.GraphProto) -> dict[str, Counter[str]]:
    """How often each operator is found in each Loop and Scan, by its first output; "" is outside."""
    found: dict[str, Counter[str]] = {}
    for inside, node in bodies(graph):
        found.setdefault(inside, Counter())[node.op_type] += 1
    return found


def way_back(explainer: onnx.ModelProto, *forward: str) -> Counter[str]:
    """The operators of the only Scan that is not one of the model's, or its run at the reference."""
    known = {name for first in forward for name in (first, f"{first}/reference")}
    (found,) = [count for name, count in operators(explainer.graph).items() if name and name not in known]
    return found


def explain(model: onnx.ModelProto, x: Arrays, r: Arrays, **options: object) -> dict[str, np.ndarray]:
    explainer = onnxlift.rewrite(model, target="weights", **options)
    onnx.checker.check_model(explainer, full_check=True)
    y = laws.run(model, x)[model.graph.output[0].name]
    weights = np.random.default_rng(1).standard_normal(y.shape).astype(y.dtype)
    got = laws.run(explainer, {**x, **{f"{k}_reference": v for k, v in r.items()}, "target_weights": weights})
    assert np.abs(got["target_output"] - got["target_reference"]).max() > 1e-2
    return got


@pytest.mark.parametrize(("op", "gates", "most"), [("LSTM", 4, 15), ("GRU", 3, 16), ("RNN", 1, 6)])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_only_the_recurrence_of_the_multipliers_is_left_inside(op: str, gates: int, most: int, direction: str) -> None:
    text = f"""g (float[T, N, 4] x) => (float[T, 1, N, 8] y) {{
        y = {op} <hidden_size = 8, direction = "{direction}"> (x, w, r, b)
    }}"""
    model = laws.model(text, w=numbers(1, 8 * gates, 4), r=numbers(1, 8 * gates, 8), b=numbers(1, 16 * gates))
    explainer = onnxlift.rewrite(model, target="weights")
    names = [name for name in operators(explainer.graph) if name and not name.startswith("y/")]
    inside = operators(explainer.graph)[names[0]]
    assert len(names) == 1
    assert inside.keys() <= {"Add", "Concat", "Gemm", "Identity", "Mul", "Neg", "Sub"}
    assert inside.total() <= most
    outside = operators(explainer.graph)[""]
    assert outside["Tanh"] >= 2
    assert outside["Slice"] == 0  # nothing is turned around


@pytest.mark.parametrize("way", ["", "scan_input_directions = [1], scan_output_directions = [1],"])
def test_a_scan_that_carries_nothing_needs_none_on_the_way_back(way: str) -> None:
    text = f"""g (float[N, T, 3] x, float[N, 3] c) => (float[T, N, 3] y) {{
        h, y = Scan <num_scan_inputs = 1, scan_input_axes = [1], {way}
            body = b (float[N, 3] h0, float[N, 3] xi) => (float[N, 3] h1, float[N, 3] yi) {{
                h1 = Identity (h0) p = Mul (xi, c) q = MatMul (p, w) yi = Tanh (q)
            }}> (c, x)
    }}"""
    w = numbers(3, 3)
    model = laws.model(text, w=w)
    explainer = onnxlift.rewrite(model, target="weights")
    assert sum(node.op_type == "Scan" for _, node in bodies(explainer.graph)) == 2
    straight = """g (float[N, T, 3] x, float[N, 3] c) => (float[T, N, 3] y) {
        xt = Transpose <perm = [1, 0, 2]> (x) p = Mul (xt, c) q = MatMul (p, w) y = Tanh (q)
    }"""
    x, r = ({"x": numbers(2, 5, 3), "c": numbers(2, 3)} for _ in range(2))
    got, expected = explain(model, x, r), explain(laws.model(straight, w=w), x, r)
    for name in ("x_contributions", "c_contributions"):
        np.testing.assert_allclose(got[name], expected[name], atol=1e-5)


def test_slices_that_meet_from_both_ends_and_along_other_axes() -> None:
    steps = 4
    text = f"""g (float[{steps}, N, 3] a, float[N, 3, {steps}] b) => (float[{steps}, N, 3] y) {{
        last, y = Scan <num_scan_inputs = 2, scan_input_axes = [0, -1], scan_input_directions = [0, 1],
            scan_output_directions = [1],
            body = body (float[N, 3] h, float[N, 3] ai, float[N, 3] bi) => (float[N, 3] h1, float[N, 3] yi) {{
                p = Mul (ai, bi) t = Tanh (p) s = Mul (t, h) h1 = Add (s, ai) yi = Mul (h1, t)
            }}> (start, a, b)
    }}"""
    start = numbers(2, 3)
    lines = ["h0 = Identity (start) bt = Transpose <perm = [2, 0, 1]> (b)"]
    for k in range(steps):
        lines.append(
            f"a{k} = Gather (a, i{k}) b{k} = Gather (bt, i{steps - 1 - k}) p{k} = Mul (a{k}, b{k}) t{k} = Tanh (p{k}) "
            f"s{k} = Mul (t{k}, h{k}) h{k + 1} = Add (s{k}, a{k}) y{k} = Mul (h{k + 1}, t{k}) "
            f"u{k} = Unsqueeze (y{k}, axis)"
        )
    lines.append(f"y = Concat <axis = 0> ({', '.join(f'u{k}' for k in reversed(range(steps)))})")
    shapes = f"float[{steps}, N, 3] a, float[N, 3, {steps}] b"
    straight = laws.model(
        f"g ({shapes}) => (float[{steps}, N, 3] y) {{ {' '.join(lines)} }}",
        start=start,
        axis=np.int64([0]),
        **{f"i{k}": np.int64(k) for k in range(steps)},
    )
    x, r = ({"a": numbers(steps, 2, 3), "b": numbers(2, 3, steps)} for _ in range(2))
    got, expected = explain(laws.model(text, start=start), x, r), explain(straight, x, r)
    for name in ("a_contributions", "b_contributions"):
        np.testing.assert_allclose(got[name], expected[name], atol=1e-5)


BY_NUMBER = """g (float[N, T, 3] x) => (float[N, 3] y) {
    shape = Shape <start = 1, end = 2> (x)
    n = Squeeze (shape)
    first = Gather <axis = 1> (x, zero)
    start = Mul (first, half)
    y = Loop <body = b (int64 i, bool c, float[N, 3] h) => (bool c1, float[N, 3] h1) {
        xi = Gather <axis = 1> (x, i)
        hw = MatMul (h, w) s = Add (hw, xi) h1 = Tanh (s) c1 = Identity (c)
    }> (n, go, start)
}"""


def test_slices_that_a_loop_takes_by_number_are_put_together_behind_it() -> None:
    w = numbers(3, 3)
    constants = {"w": w, "zero": np.int64(0), "half": np.float32(0.5)}
    model = laws.model(BY_NUMBER, go=np.array(True), **constants)
    explainer = onnxlift.rewrite(model, target="weights")
    inside = way_back(explainer, "y")
    assert inside.total() <= 9
    assert not {"ScatterElements", "Gather", "ReduceProd", "Shape"} & inside.keys()
    assert "Loop" not in [node.op_type for where, node in bodies(explainer.graph) if where]
    text = """g (float[N, T, 3] x) => (float[N, 3] y) {
        first = Gather <axis = 1> (x, zero)
        start = Mul (first, half)
        y = Scan <num_scan_inputs = 1, scan_input_axes = [1],
            body = b (float[N, 3] h, float[N, 3] xi) => (float[N, 3] h1) {
                hw = MatMul (h, w) s = Add (hw, xi) h1 = Tanh (s)
            }> (start, x)
    }"""
    x, r = {"x": numbers(2, 6, 3)}, {"x": numbers(2, 6, 3)}
    got, expected = explain(model, x, r), explain(laws.model(text, **constants), x, r)
    np.testing.assert_allclose(got["x_contributions"], expected["x_contributions"], atol=1e-5)
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)


def test_a_table_that_all_iterations_read_is_not_stacked() -> None:
    """What is computed of all its elements in every iteration stays inside, in the memory of one iteration."""
    text = """g (float[N, 3] x, float[N, 50, 3] table) => (float[N, 3] y) {
        y = Loop <body = b (int64 i, bool c, float[N, 3] h) => (bool c1, float[N, 3] h1) {
            wide = Unsqueeze (h, one) s = Add (wide, table) t = Tanh (s)
            m = ReduceMean <keepdims = 0> (t, one) h1 = Add (h, m) c1 = Identity (c)
        }> (n, go, x)
    }"""
    model = laws.model(text, one=np.int64([1]), n=np.int64(4), go=np.array(True))
    explainer = onnxlift.rewrite(model, target="weights", inputs=["x"])
    assert way_back(explainer, "y")["Tanh"] >= 2
    x, r, table = numbers(2, 3), numbers(2, 3), numbers(2, 50, 3)
    feed = {"x": x, "x_reference": r, "table": table, "target_weights": numbers(2, 3)}
    np.testing.assert_allclose(laws.run(explainer, feed)["completeness_gap"], 0, atol=1e-5)


def test_products_whose_extents_change_are_computed_again() -> None:
    text = """g (float[N, 5, 3] x) => (float[N, 3] y) {
        start = ReduceSum <keepdims = 0> (x, one)
        y = Loop <body = b (int64 i, bool c, float[N, 3] h) => (bool c1, float[N, 3] h1) {
            i1 = Add (i, unit) end = Reshape (i1, one)
            seen = Slice (x, zero, end, one)
            p = MatMul (seen, w) q = Tanh (p) m = ReduceMean <keepdims = 0> (q, one)
            h1 = Add (h, m) c1 = Identity (c)
        }> (n, go, start)
    }"""
    ints = {"one": [1], "zero": [0], "unit": 1, "n": 4}
    model = laws.model(text, w=numbers(3, 3), go=np.array(True), **{k: np.int64(v) for k, v in ints.items()})
    lines = ["start = ReduceSum <keepdims = 0> (x, one)", "h0 = Identity (start)"]
    for k in range(4):
        lines.append(
            f"s{k} = Slice (x, zero, e{k}, one) p{k} = MatMul (s{k}, w) q{k} = Tanh (p{k}) "
            f"m{k} = ReduceMean <keepdims = 0> (q{k}, one) h{k + 1} = Add (h{k}, m{k})"
        )
    straight = laws.model(
        f"g (float[N, 5, 3] x) => (float[N, 3] y) {{ {' '.join(lines)} y = Identity (h4) }}",
        w=numpy_helper.to_array(model.graph.initializer[0]),
        one=np.int64([1]),
        zero=np.int64([0]),
        **{f"e{k}": np.int64([k + 1]) for k in range(4)},
    )
    x, r = {"x": numbers(2, 5, 3)}, {"x": numbers(2, 5, 3)}
    got, expected = explain(model, x, r), explain(straight, x, r)
    np.testing.assert_allclose(got["x_contributions"], expected["x_contributions"], atol=1e-5)


def test_random_numbers_are_drawn_in_every_iteration() -> None:
    text = """g (float[T, N, 3] x) => (float[N, 3] y) {
        y = Scan <num_scan_inputs = 1, body = b (float[N, 3] h, float[N, 3] xi) => (float[N, 3] h1)
            { p = Mul (h, xi) e = RandomNormal <shape = [2, 3]> () q = Mul (p, e) h1 = Add (q, xi) }> (start, x)
    }"""
    explainer = onnxlift.rewrite(laws.model(text, start=numbers(2, 3)), target="weights")
    found = operators(explainer.graph)
    assert found[""]["RandomNormal"] == 0


def test_half_precision_keeps_the_order_of_its_products() -> None:
    text = """g (float16[T, N, 3] x) => (float16[N, 3] y) {
        y = Scan <num_scan_inputs = 1, body = b (float16[N, 3] h, float16[N, 3] xi) => (float16[N, 3] h1)
            { p = Mul (h, xi) t = Tanh (p) h1 = Add (t, xi) }> (start, x)
    }"""
    explainer = onnxlift.rewrite(laws.model(text, start=np.float16(numbers(2, 3))), target="weights")
    assert way_back(explainer, "y")["Mul"] == 3
    single = onnxlift.rewrite(laws.model(text.replace("float16", "float"), start=numbers(2, 3)), target="weights")
    assert way_back(single, "y")["Mul"] == 2


def test_convolutions_are_kept_so_that_the_gates_behind_them_need_not_wait() -> None:
    shape = "float[N, 2, 5]"
    text = f"""g (float[N, T, 3, 5] x, {shape} h0) => ({shape} h) {{
        xt = Transpose <perm = [1, 0, 2, 3]> (x)
        h = Scan <num_scan_inputs = 1, body = b ({shape} hi, float[N, 3, 5] xi) => ({shape} ho) {{
            p = Conv <pads = [1, 1]> (xi, wx) q = Conv <pads = [1, 1]> (hi, wh) a = Add (p, q)
            z0, g0 = Split <axis = 1, num_outputs = 2> (a)
            z = Sigmoid (z0) g = Tanh (g0) d = Sub (g, hi) s = Mul (z, d) ho = Add (hi, s)
        }}> (h0, xt)
    }}"""
    model = laws.model(text, wx=numbers(4, 3, 3), wh=numbers(4, 2, 3))
    inside = way_back(onnxlift.rewrite(model, target="weights"), "h")
    assert not {"Conv", "Sigmoid", "Tanh", "Split", "Div"} & inside.keys()
    x, r = ({"x": numbers(2, 4, 3, 5), "h0": numbers(2, 2, 5)} for _ in range(2))
    np.testing.assert_allclose(explain(model, x, r)["completeness_gap"], 0, atol=1e-4)
