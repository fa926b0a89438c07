"""onnxlift.model: every guarantee of the normal form, every error of reading and writing."""

import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from onnxlift.errors import DataError, ModelError
from onnxlift.equivalence import equivalence
from onnxlift.files import load, save
from onnxlift.model import normal_form
from onnxlift.opset import BASE_IR, BASE_OPSET

RNG = np.random.default_rng(0)


def parse(
    body: str,
    inputs: str = "float[N, 4] x",
    outputs: str = "float[N, 4] y",
    *,
    opset: int = BASE_OPSET,
    ir: int = BASE_IR,
    imports: str = "",
    tail: str = "",
    **weights: Any,
) -> ModelProto:
    """A model from ONNX text; `weights` become initializers."""
    head = f'<ir_version: {ir}, opset_import: ["": {opset}{imports}]> net ({inputs}) => ({outputs})'
    model = parser.parse_model(f"{head} {{ {body} }} {tail}")
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items())
    return model


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def same(model: ModelProto, tolerance: float = 1e-6, **data: np.ndarray) -> ModelProto:
    """The normal form, checked: valid, idempotent, of the right version, uniquely named, equal on data."""
    original = model.SerializeToString(deterministic=True)
    result = normal_form(model)
    assert model.SerializeToString(deterministic=True) == original, "the argument was changed"
    onnx.checker.check_model(result, full_check=True)
    assert normal_form(result) == result
    assert result.ir_version == BASE_IR
    assert {entry.domain: entry.version for entry in result.opset_import}[""] == BASE_OPSET
    names = [node.name for node in all_nodes(result.graph)]
    assert all(names)
    assert len(set(names)) == len(names)
    differences = equivalence(model, result, data or {"x": floats(3, 4)})
    assert list(differences) == [value.name for value in model.graph.output]
    assert max(differences.values()) <= tolerance
    return result


def all_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    nested = [a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return [*graph.node, *(node for inner in nested for node in all_nodes(inner))]


def ops(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def constants(model: ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def shapes(model: ModelProto) -> dict[str, list[int | str]]:
    graph = model.graph
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
    }


# ----------------------------------------------------------------------------------------------- normal form


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
    plain = parse(
        "t = com.microsoft.FastGelu(x)\ny = Mul(t, two)", imports=', "com.microsoft": 1', two=np.float32(2)
    )
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
    [("y = CumProd(x, axis)", 26, "CumProd"), ("y = Affine(x)", 6, "Affine"), ("y = Scan(x)", 8, "Scan")],
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


def test_metadata_documentation_and_names_survive_conversion() -> None:
    model = parse("y = Dropout <ratio = 0.5> (x)", opset=9, ir=8)
    model.doc_string, model.producer_name, model.producer_version, model.domain = "doc", "tool", "1", "d"
    model.model_version = 7
    model.graph.doc_string = "graph doc"
    model.metadata_props.add(key="k", value="v")
    node = model.graph.node[0]
    node.name, node.doc_string = "drop", "node doc"
    node.metadata_props.add(key="module", value="m")
    result = same(model)
    for field in (
        "doc_string",
        "producer_name",
        "producer_version",
        "domain",
        "model_version",
        "metadata_props",
    ):
        assert getattr(result, field) == getattr(model, field)
    assert (result.graph.name, result.graph.doc_string) == ("net", "graph doc")
    kept = result.graph.node[0]
    assert (kept.name, kept.doc_string, kept.metadata_props[0].value) == ("drop", "node doc", "m")


def test_ir_3_initializers_are_constants_not_inputs() -> None:
    model = parse("y = Add(x, w)", "float[N, 4] x, float[4] w", opset=9, ir=3, w=floats(4))
    result = same(model)
    assert [value.name for value in result.graph.input] == ["x"]
    assert "w" in constants(result)


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("value_float = 2.0", np.float32(2)),
        ("value_floats = [1.0, 2.0, 3.0, 4.0]", np.float32([1, 2, 3, 4])),
        ("value_int = 2", np.int64(2)),
        ("value_ints = [1, 2, 3, 4]", np.int64([1, 2, 3, 4])),
        ("value = float[4] {1, 2, 3, 4}", np.float32([1, 2, 3, 4])),
    ],
)
def test_constant_nodes_become_initializers(attribute: str, value: np.ndarray) -> None:
    cast = "Cast <to = 7>" if value.dtype == np.int64 else "Identity"
    model = parse(f"c = Constant <{attribute}> ()\nz = {cast} (x)\ny = Mul(z, c)", outputs="y")
    model.graph.output[0].type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(value.dtype)
    result = same(model)
    assert "Constant" not in ops(result)
    np.testing.assert_array_equal(constants(result)["c"], value)
    assert constants(result)["c"].dtype == value.dtype


def sparse(name: str) -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.float32([5, 7]), name)
    return onnx.SparseTensorProto(values=values, indices=numpy_helper.from_array(np.int64([1, 3])), dims=[4])


def test_sparse_constants_become_dense() -> None:
    model = parse("t = Add(x, i)\ny = Mul(t, c)")
    model.graph.sparse_initializer.append(sparse("i"))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], sparse_value=sparse("")))
    result = same(model)
    values = {name: value.tolist() for name, value in constants(result).items()}
    assert values == {"i": [0, 5, 0, 7], "c": [0, 5, 0, 7]}


def test_string_constants_stay_nodes() -> None:
    model = parse(
        'y = Constant <value_strings = ["a", "b"]> ()\nz = Neg(x)', outputs="string[2] y, float[N, 4] z"
    )
    assert ops(same(model)) == ["Constant", "Neg"]


def test_small_constants_fold_but_random_nodes_and_identity_outputs_stay() -> None:
    body = """a = Add(w, w)
        b = Transpose(a)
        r = RandomNormalLike <seed = 1.0> (w)
        z = Mul(r, zero)
        t = Add(x, b)
        d = Dropout(t)
        i = Identity(d)
        y = Add(i, z)
        k = Exp(w)"""
    model = parse(body, outputs="float[N, 4] y, float[4] k", w=floats(4), zero=np.float32(0))
    result = same(model)
    assert sorted(ops(result)) == sorted(
        ["RandomNormalLike", "Mul", "Add", "Dropout", "Identity", "Add", "Identity"]
    )
    assert result.graph.node[0].output[0] == "k"


@pytest.mark.parametrize(
    "body",
    [
        "big = Transpose(w)",
        "f = Cast <to = 1> (q)\nbig = Mul(f, scale)",
        "big = ConstantOfShape <value = float[1] {0.5}> (shape)",
        "big = Expand(scale, shape)",
        "big = Gemm(column, row)",
    ],
)
def test_big_constants_are_not_materialised(body: str) -> None:
    weights = {
        "w": floats(80, 80),
        "q": RNG.integers(-9, 9, (80, 80)).astype(np.int8),
        "scale": np.float32(0.1),
    }
    weights |= {"shape": np.int64([80, 80]), "column": floats(80, 1), "row": floats(1, 80)}
    weights = {name: value for name, value in weights.items() if name in body}
    model = parse(f"{body}\ny = MatMul(x, big)", "float[N, 80] x", "float[N, 80] y", **weights)
    result = same(model, x=floats(2, 80))
    assert ops(result)[-2:] == [model.graph.node[-2].op_type, "MatMul"]
    assert result.ByteSize() < model.ByteSize() + 1000
    assert shapes(result)["big"] == [80, 80]


@pytest.mark.parametrize("size", [4, 5000])
def test_constant_graph_outputs(size: int) -> None:
    body = "c = Constant <value_floats = [1.0, 2.0]> ()\ny = Add(x, w)"
    model = parse(
        body, f"float[N, {size}] x", f"float[N, {size}] y, float[{size}] w, float[2] c", w=floats(size)
    )
    result = same(model, x=floats(2, size))
    assert [value.name for value in result.graph.output] == ["y", "w", "c"]


def test_nodes_and_weights_that_nothing_needs_are_dropped() -> None:
    model = parse("y = Neg(x)\ndead = Mul(x, w)", w=floats(1, 4), v=floats(5000))
    result = same(model)
    assert ops(result) == ["Neg"]
    assert not result.graph.initializer


def test_shape_of_known_dims_is_constant_although_others_are_unknown() -> None:
    body = """s = Shape(x)
        c = Gather(s, one)
        f = Cast <to = 1> (c)
        t = Slice(s, one1, two1)
        n = Size(w)
        m = Cast <to = 1> (n)
        g = Cast <to = 1> (t)
        y = Sum(x, f, m, g)"""
    one = {"one": np.int64(1), "one1": np.int64([1]), "two1": np.int64([2]), "w": floats(4)}
    assert ops(same(parse(body, **one))) == ["Sum"]


CHAINS = {
    "torch view": """s = Shape(x)
        n = Gather(s, zero)
        u = Unsqueeze(n, zero1)
        shape = Concat <axis = 0> (u, two, minus)
        y = Reshape(x, shape)""",
    "minus one first": "y = Reshape(x, minus22)",
    "there and back": "a = Reshape(x, minus2)\nb = Relu(a)\ny = Reshape(b, minus22)",
    "flatten": "a = Flatten(x)\ny = Reshape(a, minus22)",
    "heads": """a = Transpose <perm = [1, 0]> (x)
        b = Reshape(a, two_minus_two)
        c = Transpose <perm = [2, 0, 1]> (b)
        s = Shape(x)
        n = Slice(s, zero1, one1)
        shape = Concat <axis = 0> (n, two, two)
        y = Reshape(c, shape)""",
    "expand with where": """s = Shape(x)
        n = Slice(s, zero1, one1)
        shape = Concat <axis = 0> (n, two, two)
        k = Shape(shape)
        ones = ConstantOfShape <value = int64[1] {1}> (k)
        m = Mul(ones, minus)
        e = Equal(shape, m)
        target = Where(e, ones, shape)
        z = Expand(token, target)
        v = Reshape(x, minus22)
        y = Add(v, z)""",
    "slice of another axis": """a = Reshape(x, minus22)
        y = Slice(a, starts, ends)""",
    "range": """s = Shape(x)
        n = Gather(s, zero)
        r = Range(zero, n, one)
        f = Cast <to = 1> (r)
        g = Reshape(f, minus11)
        a = Reshape(x, minus22)
        y = Add(g, a)""",
}


@pytest.mark.parametrize("name", CHAINS)
def test_the_batch_symbol_survives_on_the_leading_axis(name: str) -> None:
    weights = {
        **{"zero": np.int64(0), "one": np.int64(1), "zero1": np.int64([0]), "one1": np.int64([1])},
        **{"two": np.int64([2]), "minus": np.int64([-1]), "minus22": np.int64([-1, 2, 2])},
        **{
            "minus2": np.int64([-1, 2]),
            "minus11": np.int64([-1, 1, 1]),
            "two_minus_two": np.int64([4, -1, 1]),
        },
        **{"token": floats(1, 1, 2), "starts": np.int64([0, 1]), "ends": np.int64([2**63 - 1, 2])},
    }
    result = same(parse(CHAINS[name], outputs="float[P, Q, R] y", **weights))
    leading = {shape[0] for tensor, shape in shapes(result).items() if len(shape) == 3}
    assert leading == ({"N", 4, 1} if name == "heads" else {"N"})
    assert shapes(result)["y"][0] == "N"
    if name == "there and back":
        assert shapes(result)["a"] == ["2*N", 2]


def test_stale_value_info_and_contradicting_output_shapes_are_replaced() -> None:
    model = parse("a = MatMul(x, w)\ny = Relu(a)", outputs="float[N, 9] y", w=floats(4, 3))
    model.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, [7, 7]))
    model.graph.value_info.append(helper.make_tensor_value_info("ghost", TensorProto.FLOAT, [1]))
    result = normal_form(model)
    assert shapes(result) == {"x": ["N", 4], "a": ["N", 3], "y": ["N", 3]}


def inputs_with(**dims: list[Any]) -> ModelProto:
    names = list(dims)
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Abs", [name], [f"{name}_out"]) for name in names],
            "net",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims[name]) for name in names],
            [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None) for name in names],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    return model


@pytest.mark.parametrize(
    ("dims", "expected"),
    [
        ({"x": [0, 3]}, {"x": ["batch", 3]}),
        ({"x": [-1, 3, "?", "?"]}, {"x": ["batch", 3, "x_dim2", "x_dim3"]}),
        ({"a": [None, None], "b": ["", 5]}, {"a": ["batch", "a_dim1"], "b": ["batch", 5]}),
        ({"a": [None, "batch"]}, {"a": ["batch_2", "batch"]}),
        ({"a": [None, 2], "b": ["batch", 2]}, {"a": ["batch", 2], "b": ["batch", 2]}),
        ({"a": ["N", None], "b": ["a_dim1", 2]}, {"a": ["N", "a_dim1_2"], "b": ["a_dim1", 2]}),
        ({"in:0": [None, None]}, {"in:0": ["batch", "in_0_dim1"]}),
    ],
)
def test_unknown_dims_of_inputs_get_symbols(
    dims: dict[str, list[Any]], expected: dict[str, list[Any]]
) -> None:
    result = normal_form(inputs_with(**dims))
    assert {name: shapes(result)[name] for name in expected} == expected
    assert {name: shapes(result)[f"{name}_out"] for name in expected} == expected


def test_names_are_unique_kept_and_deterministic() -> None:
    model = parse("a = Neg(x)\nb = Neg(a)\nc = Exp(b)\ny = Abs(c)")
    for node, name in zip(model.graph.node, ["n", "n", "", "Exp_2"], strict=True):
        node.name = name
    result = normal_form(model)  # ONNX Runtime refuses the original
    assert [node.name for node in result.graph.node] == ["n", "n_2", "Exp_2_2", "Exp_2"]
    assert normal_form(result) == result


def test_dims_that_onnx_invents_for_different_loops_are_not_the_same() -> None:
    loop = """ = Loop(m, t, x) <
        body = b{0} (int64 i{0}, bool c{0}, float[A, B] s{0}) => (bool d{0}, float[C, D] e{0}) {{
        d{0} = Identity(c{0})
        e{0} = Concat <axis = {1}> (s{0}, s{0}) }}>"""
    sums = "y = ReduceSum <keepdims = 0> (p)\nz = ReduceSum <keepdims = 0> (q)"
    body = f"p{loop.format(1, 0)}\nq{loop.format(2, 1)}\n{sums}"
    model = parse(body, outputs="float y, float z", m=np.int64(2), t=np.True_)
    dims = [
        dim
        for name, shape in shapes(same(model, tolerance=1e-5)).items()
        for dim in shape
        if name in ("p", "q")
    ]
    assert len(set(dims)) == len(dims)


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


def test_half_precision_and_unknown_operators_keep_their_declared_types() -> None:
    model = parse("t = my.Op(x)\ny = Relu(t)", "float16[N, 4] x", "float16[N, 4] y", imports=', "my": 1')
    model.graph.value_info.append(helper.make_tensor_value_info("t", TensorProto.FLOAT16, ["N", 4]))
    result = normal_form(model)
    assert shapes(result)["t"] == shapes(result)["y"] == ["N", 4]


def test_sequences_maps_and_optional_outputs_pass_through() -> None:
    body = "s = SequenceConstruct(x, x)\nout, last = LSTM <hidden_size = 2> (z, w, r)\nz = Unsqueeze(x, zero)"
    outputs = "seq(float[N, 4]) s, float[P, Q, R, S] out, float[P, Q, R] last"
    weights = {"w": floats(1, 8, 4), "r": floats(1, 8, 2), "zero": np.int64([0])}
    same(parse(body, outputs=outputs, opset=20, **weights))


def test_a_5000_node_graph_takes_seconds() -> None:
    nodes = [helper.make_node(("Relu", "Neg", "Tanh")[i % 3], [f"t{i}"], [f"t{i + 1}"]) for i in range(5000)]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "net",
            [helper.make_tensor_value_info("t0", TensorProto.FLOAT, ["N", 4])],
            [helper.make_tensor_value_info("t5000", TensorProto.FLOAT, None)],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    start = time.perf_counter()
    assert len(normal_form(model).graph.node) == 5000
    assert time.perf_counter() - start < 3


# ------------------------------------------------------------------------------------------ reading, writing


def net(weight: int = 6000) -> ModelProto:
    big = numpy_helper.from_array(floats(4, weight), "w")
    model = parse(
        "t = MatMul(x, w)\nu = Reshape(t, shape)\ny = ReduceSum <keepdims = 0> (u, one)", outputs="float[N] y"
    )
    model.graph.initializer.extend(
        [big, *(numpy_helper.from_array(np.int64(v), n) for n, v in CONSTANTS.items())]
    )
    return model


CONSTANTS = {"shape": [0, -1], "one": [1]}


def external(folder: Path, **changes: str) -> Path:
    """A model whose weights lie beside it in w.bin; `changes` overwrite entries of the reference of `w`."""
    model = net()
    for tensor in model.graph.initializer:
        with (folder / "w.bin").open("ab") as file:
            onnx.external_data_helper.set_external_data(tensor, "w.bin", file.tell(), len(tensor.raw_data))
            file.write(tensor.raw_data)
        tensor.ClearField("raw_data")
    for entry in model.graph.initializer[0].external_data:
        entry.value = changes.get(entry.key, entry.value)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_is_read_or_referenced(tmp_path: Path) -> None:
    path = external(tmp_path)
    full, light = load(path), load(str(path), weights=False)
    assert not full.graph.initializer[0].external_data
    assert light.graph.initializer[0].external_data
    assert not light.graph.initializer[0].raw_data
    result = normal_form(light, folder=tmp_path)
    assert shapes(result)["u"] == ["N", 6000], "the small shape tensor was read"
    assert [t.name for t in result.graph.initializer if t.external_data] == ["w"]
    save(result, tmp_path / "copy.onnx")
    data = {"x": floats(3, 4)}
    assert equivalence(full, load(tmp_path / "copy.onnx"), data) == {"y": 0.0}
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(ModelError, match=r"w\.bin.* is missing"):
        save(result, tmp_path / "elsewhere" / "copy.onnx")
    assert not list((tmp_path / "elsewhere").iterdir())
    assert {t.name for t in normal_form(light).graph.initializer if t.external_data} == {"w", "one", "shape"}
    with pytest.raises(ModelError, match="does not know"):
        load(light)
    assert load(light, weights=False) == light


def test_a_model_over_2_gb_works_by_reference(tmp_path: Path) -> None:
    model = net()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.dims[:] = [4, 200_000_000]
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="w.bin")
    with (tmp_path / "w.bin").open("wb") as file:
        os.truncate(file.fileno(), 3_200_000_000)  # sparse: takes no space
    save(model, tmp_path / "model.onnx")
    result = normal_form(load(tmp_path / "model.onnx", weights=False), folder=tmp_path)
    save(result, tmp_path / "normal.onnx")
    assert shapes(result)["u"] == ["N", 200_000_000]


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"location": "missing.bin"}, "is missing"),
        ({"location": "../w.bin"}, "outside of the model's folder"),
        ({"location": "sub/../../w.bin"}, "outside of the model's folder"),
        ({"location": "/etc/hostname"}, "outside of the model's folder"),
        ({"location": "link.bin"}, "outside of the model's folder"),
        ({"location": "linked/hostname"}, "outside of the model's folder"),
        ({"location": ""}, "outside of the model's folder"),
        ({"location": "sub"}, "is missing"),
        ({"location": "a\0b"}, "malformed"),
        ({"offset": "-8"}, "malformed"),
        ({"offset": "many"}, "malformed"),
        ({"offset": "100"}, "too short"),
        ({"length": "99999999"}, "malformed"),
        ({"length": "4"}, "malformed"),
    ],
)
def test_hostile_and_broken_external_data(
    tmp_path: Path, changes: dict[str, str], message: str, weights: bool
) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "w.bin").write_bytes(b"secret" * 99999)
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    (folder / "linked").symlink_to("/etc")
    with pytest.raises(ModelError, match=message) as error:
        load(external(folder, **changes), weights=weights)
    assert "tensor 'w'" in str(error.value)
    assert "\n" not in str(error.value)


def truncated(data: bytes, fraction: float) -> bytes:
    return data[: int(len(data) * fraction)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a complete ONNX model"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00", "ONNX model"),
        (b"The quick brown fox jumps over the lazy dog.\n", "ONNX model"),
        (b'{"irVersion": "8"}', "ONNX model"),
        (b"\x08\x08", "not a complete ONNX model"),
        (b"\x80\x04\x95cos\nsystem\n(S'true'\ntR.", "ONNX model"),
        *[(truncated(net(20).SerializeToString(), f / 10), "ONNX model") for f in range(1, 10)],
    ],
)
def test_files_that_are_no_models(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("where", ["nothing.onnx", ".", "file/model.onnx"])
def test_unreadable_paths(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="Cannot read"):
        load(tmp_path / where)


def test_opsets_that_onnx_runtime_does_not_load_are_refused() -> None:
    with pytest.raises(ModelError, match=r"opset 27.*up to 26"):
        load(parse("y = Neg(x)", opset=27))


def test_a_model_proto_is_copied() -> None:
    model = net(3)
    copy = load(model)
    copy.graph.name = "other"
    assert model.graph.name == "net"


@pytest.mark.parametrize("where", [".", "missing/model.onnx", "file/model.onnx"])
def test_unwritable_paths_leave_nothing(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="Cannot write"):
        save(net(3), tmp_path / where)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_save_replaces_atomically(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    save(net(3), path)
    assert load(path).graph.name == "net"
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


# ----------------------------------------------------------------------------------------------- equivalence


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("y = Identity(x)", "y = Identity(x)", 0.0),
        ("y = Mul(x, two)", "y = Identity(x)", 0.5),
        ("y = Log(x)", "y = Log(x)", 0.0),  # NaN and -inf
        ("y = Log(x)", "y = Identity(x)", math.inf),
        ("y = Sub(x, x)", "y = Sub(x, x)", 0.0),
        ("y = Greater(x, zero)", "y = Less(x, zero)", 0.75),
        ("y = Cast <to = 8> (x)", "y = Cast <to = 8> (x)", 0.0),
        ("y = Cast <to = 8> (x)", "z = Neg(x)\ny = Cast <to = 8> (z)", 1.0),
        ("y = SequenceConstruct(x, x)", "y = SequenceConstruct(x, x)", 0.0),
        ("y = SequenceConstruct(x, x)", "y = SequenceConstruct(x)", 1.0),
        ("y = Identity(x)", "y = Transpose(x)", math.inf),
    ],
)
def test_equivalence(first: str, second: str, expected: float) -> None:
    kind = "bool" if "Greater" in first else "string" if "to = 8" in first else "float"
    output = "seq(float[N, 4]) y" if "Seq" in first else f"{kind}[P, Q] y"
    weights = {"two": np.float32(2), "zero": np.float32(0)}
    models = [parse(body, outputs=output, **weights) for body in (first, second)]
    models[0].ir_version = 14
    assert equivalence(*models, {"x": np.float32([[-1, 0, 3, 5]]), "other": floats(1)}) == {"y": expected}


def test_equivalence_refuses_bad_data_and_bad_models() -> None:
    model = parse("y = Neg(x)")
    with pytest.raises(DataError, match=r"lacks the model's inputs \['x'\]"):
        equivalence(model, model, {})
    with pytest.raises(DataError, match="cannot run"):
        equivalence(model, model, {"x": np.zeros((3, 4))})
    with pytest.raises(ModelError, match="cannot load"):
        equivalence(parse("y = my.Op(x)", imports=', "my": 1'), model, {})
