"""onnxlift.opset: functions, order, and operators of every opset."""

from __future__ import annotations

import laws
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_text import floats, ops, parse, same, shapes

from onnxlift.equivalence import equivalence
from onnxlift.errors import ModelError
from onnxlift.model import normal_form

FUNCTIONS = """
<domain: "f", opset_import: ["": 11, "g": 1, "com.microsoft": 1]> A (x) => (y) {
    t = Dropout <ratio = 0.5> (x)
    u = com.microsoft.FastGelu(t)
    y = g.B(u)
}
<domain: "g", opset_import: ["": 18]> B (x) => (y) { h = Constant <value_float = 2.0> ()
    y = Mul(x, h) }
"""


def test_nested_functions_of_other_opsets_are_inlined_and_their_imports_follow() -> None:
    model = parse("y = f.A(x)", opset=18, imports=', "f": 1, "unused": 1', tail=FUNCTIONS)
    result = normal_form(model)
    assert not result.functions
    assert ops(result) == ["Dropout", "FastGelu", "Mul"]
    plain = parse("t = com.microsoft.FastGelu(x)\ny = Mul(t, two)", imports=', "com.microsoft": 1', two=np.float32(2))
    assert equivalence(plain, result, {"x": floats(3, 4)}) == {"y": 0.0}
    assert {entry.domain for entry in result.opset_import} == {"", "com.microsoft"}


def test_recursive_or_unknown_functions_are_refused() -> None:
    tail = '<domain: "f", opset_import: ["": 21, "f": 1]> A (x) => (y) { y = f.A(x) }'
    with pytest.raises(ModelError, match="inlined"):
        normal_form(parse("y = f.A(x)", imports=', "f": 1', tail=tail))


def test_unsorted_nodes_are_sorted_with_captures_of_subgraphs() -> None:
    model = parse(
        """y = If(c) <then_branch = a () => (float[N, 4] p) { q = Add(late, x)
            p = Neg(q) }, else_branch = b () => (float[N, 4] r) { r = Identity(x) }>
        c = Greater(s, zero)
        s = ReduceSum <keepdims = 0> (late)
        late = Exp(x)""",
        zero=np.float32(0),
    )
    assert ops(same(model)) == ["Exp", "ReduceSum", "Greater", "If"]


def test_sorting_is_stable() -> None:
    model = parse("b = Exp(x)\na = Neg(x)\nc = Abs(x)\ny = Sum(a, b, c)")
    assert ops(same(model)) == ["Exp", "Neg", "Abs", "Sum"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("y = Add(x, b)\nb = Neg(y)", "cycle through tensor"),
        ("y = Add(x, nowhere)", "'nowhere', which nothing computes"),
        ("z = Neg(x)", r"No node computes the graph outputs \['y'\]"),
        ("y = Neg(x)\ny = Exp(x)", "'y' is the output of two nodes"),
    ],
)
def test_broken_graphs(body: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        normal_form(parse(body))


def test_opset_9_upsample_keeps_its_meaning_and_its_name() -> None:
    model = parse(
        """d = Dropout <ratio = 0.5> (x)
        up = Upsample <mode = "linear"> (d, scales)
        near = Upsample <mode = "nearest"> (x, scales)
        z = Add(up, near)
        y = Clip <min = -0.5, max = 0.5> (z)""",
        "float[N, 1, 3, 4] x",
        "float[N, 1, 6, 8] y, float[N, 1, 6, 8] up",
        opset=9,
        ir=4,
        scales=np.float32([1, 1, 2, 2]),
    )
    result = same(model, x=floats(2, 1, 3, 4))
    assert ops(result) == ["Dropout", "Resize", "Resize", "Add", "Clip"]
    assert shapes(result)["near"] == ["N", 1, 6, 8]


@pytest.mark.parametrize("opset", [7, 9, 11, 12, 13, 17, 20, 21, 22, 23, 24, 26])
def test_every_opset_converts_with_equal_results(opset: int) -> None:
    axes = "<axes = [0]>" if opset < 13 else ""
    more = "" if opset < 13 else ", zero"
    body = f"""a = Unsqueeze {axes} (x{more})
        b = Softmax <axis = 1> (a)
        c = Squeeze {axes} (b{more})
        d = Conv <kernel_shape = [3], pads = [1, 1]> (c, w)
        e = GlobalMaxPool(d)
        y = Sub(d, e)"""
    model = parse(
        body, "float[N, 2, 4] x", "float[N, 2, 4] y", opset=opset, ir=8, w=floats(2, 2, 3), zero=np.int64([0])
    )
    same(model, x=floats(3, 2, 4))


def test_operators_newer_than_the_base_are_expanded() -> None:
    body = """a = Attention(q, q, q)
        b = RMSNormalization(a, w)
        y = Swish(b)"""
    model = parse(body, "float[N, 2, 5, 8] q", "float[N, 2, 5, 8] y", opset=24, w=floats(8))
    result = same(model, q=floats(3, 2, 5, 8))
    assert not {"Attention", "RMSNormalization", "Swish"} & set(ops(result))
    assert shapes(result)["y"] == ["N", 2, 5, 8]


@pytest.mark.parametrize(
    ("body", "opset", "named"),
    [
        ("y = BitCast <to = 6> (x)", 26, "BitCast"),
        ("y = Scan(x)", 8, "Scan"),
        ("y = Upsample(x, axis)", 10, "Upsample"),
    ],
)
def test_operators_that_cannot_be_converted_are_named(body: str, opset: int, named: str) -> None:
    with pytest.raises(ModelError, match=named):
        normal_form(parse(body, opset=opset, ir=8, axis=np.int64(1)))


def test_other_domains_survive_conversion() -> None:
    body = """a = ai.onnx.ml.Scaler <offset = [0.1], scale = [2.0]> (x)
        y = com.microsoft.FastGelu(a)"""
    model = parse(body, opset=11, ir=8, imports=', "ai.onnx.ml": 2, "com.microsoft": 1')
    result = same(model)
    assert {e.domain: e.version for e in result.opset_import} == {"": 21, "ai.onnx.ml": 2, "com.microsoft": 1}
    assert shapes(result)["a"] == ["N", 4]


def test_conversion_reaches_into_subgraphs() -> None:
    body = """s = ReduceSum <keepdims = 0> (x)
        c = Greater(s, zero)
        y = If(c) <then_branch = a () => (float[N, 4] p) { t = Unsqueeze <axes = [0]> (x)
            p = Squeeze <axes = [0]> (t) }, else_branch = b () => (float[N, 4] r) {
            r = Dropout <ratio = 0.1> (x) }>"""
    model = parse(body, opset=11, ir=8, zero=np.float32(0))
    result = same(model)
    branch = next(a.g for a in result.graph.node[-1].attribute if a.name == "then_branch")
    assert shapes(result)["y"] == ["N", 4]
    assert {v.name for v in branch.value_info} >= {"t"}


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scale", [0.5, 0.75, 1.5, 2.0])
def test_resize_of_opset_10_keeps_its_meaning(mode: str, scale: float) -> None:
    model = parse(
        f'y = Resize <mode = "{mode}"> (x, scales)',
        "float[N, 1, 8, 8] x",
        "float[N, 1, P, Q] y",
        opset=10,
        ir=5,
        scales=np.float32([1, 1, scale, scale]),
    )
    assert shapes(same(model, x=floats(2, 1, 8, 8)))["y"][0] == "N"


def test_the_standard_domain_may_be_called_ai_onnx_in_functions_too() -> None:
    tail = '<domain: "f", opset_import: ["ai.onnx": 21]> A (x) => (y) { y = ai.onnx.Neg(x) }'
    model = parse("t = f.A(x)\ny = ai.onnx.Exp(t)", imports=', "f": 1', tail=tail)
    result = normal_form(model)
    assert [(node.domain, node.op_type) for node in result.graph.node] == [("", "Neg"), ("", "Exp")]
    assert [entry.domain for entry in result.opset_import] == [""]


def test_types_that_the_base_does_not_have_are_refused() -> None:
    model = parse('y = BitShift <direction = "LEFT"> (x, x)', "int8[N, 4] x", "int8[N, 4] y", opset=18)
    with pytest.raises(ModelError, match=r"BitShift.* does not fit ai.onnx opset 21"):
        normal_form(model)


def test_sparse_initializers_of_subgraphs_are_not_captures() -> None:
    body = """low = ReduceMin <keepdims = 0> (x)
        c = Less(low, one)
        y = If(c) <then_branch = a () => (float[N, 4] p) { p = Add(x, i) },
            else_branch = b () => (float[N, 4] r) { r = Identity(x) }>"""
    model = parse(body, one=np.float32(1))
    branch = model.graph.node[2].attribute[0].g
    item = branch.sparse_initializer.add(dims=[4])
    item.values.CopyFrom(numpy_helper.from_array(np.float32([5, 7]), "i"))
    item.indices.CopyFrom(numpy_helper.from_array(np.int64([1, 3])))
    assert ops(normal_form(model)) == ["ReduceMin", "Less", "If"]


@pytest.mark.parametrize("channels", ["4", "C"])
def test_group_normalization_before_opset_21_has_one_scale_per_group(channels: str) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 18]>
    g (float[N, {channels}, 3] x, float[2] b) => (float[N, {channels}, 3] y) {{
        h = GroupNormalization <num_groups = 2> (x, s, b)
        y = GroupNormalization <num_groups = 2> (h, s, b)
    }}"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 2], np.float32), "s"))
    feed = {
        "x": np.random.default_rng(3).standard_normal((2, 4, 3)).astype(np.float32),
        "b": np.array([0.5, -1], np.float32),
    }
    np.testing.assert_allclose(laws.run(normal_form(model), feed)["y"], laws.run(model, feed)["y"], atol=1e-6)


def test_scan_before_opset_9_has_a_batch_axis() -> None:
    text = """<ir_version: 3, opset_import: ["" : 8]>
    g (float[N, 2] h, float[N, T, 2] x) => (float[N, 2] y, float[N, T, 2] z) {
        y, z = Scan <num_scan_inputs = 1, directions = [1],
            body = b (float[2] a, float[2] e) => (float[2] c, float[2] d) { c = Add (a, e) d = Mul (c, e) }> (, h, x)
    }"""
    model = onnx.parser.parse_model(text)
    h, x = floats(3, 2), floats(3, 5, 2)
    got = laws.run(normal_form(model), {"h": h, "x": x})
    expected = laws.run(model, {"h": h, "x": x})
    for name in ("y", "z"):
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-6)
    model.graph.node[0].input[0] = "lengths"
    model.graph.input.append(onnx.helper.make_tensor_value_info("lengths", onnx.TensorProto.INT64, ["N"]))
    with pytest.raises(ModelError, match="sequence lengths of its own"):
        normal_form(model)
