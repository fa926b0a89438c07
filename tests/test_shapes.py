"""onnxlift.shapes and onnxlift.symbols: what is folded, and what is known of dims."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper
from onnx_text import RNG, floats, ops, parse, same, shapes

from onnxlift.model import normal_form


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
    assert sorted(ops(result)) == sorted(["RandomNormalLike", "Mul", "Add", "Dropout", "Identity", "Add", "Identity"])
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
def test_unknown_dims_of_inputs_get_symbols(dims: dict[str, list[Any]], expected: dict[str, list[Any]]) -> None:
    result = normal_form(inputs_with(**dims))
    assert {name: shapes(result)[name] for name in expected} == expected
    assert {name: shapes(result)[f"{name}_out"] for name in expected} == expected


def test_dims_that_onnx_invents_for_different_loops_are_not_the_same() -> None:
    loop = """ = Loop(m, t, x) <
        body = b{0} (int64 i{0}, bool c{0}, float[A, B] s{0}) => (bool d{0}, float[C, D] e{0}) {{
        d{0} = Identity(c{0})
        e{0} = Concat <axis = {1}> (s{0}, s{0}) }}>"""
    sums = "y = ReduceSum <keepdims = 0> (p)\nz = ReduceSum <keepdims = 0> (q)"
    body = f"p{loop.format(1, 0)}\nq{loop.format(2, 1)}\n{sums}"
    model = parse(body, outputs="float y, float z", m=np.int64(2), t=np.True_)
    dims = [dim for name, shape in shapes(same(model, tolerance=1e-5)).items() for dim in shape if name in ("p", "q")]
    assert len(set(dims)) == len(dims)


def test_half_precision_and_unknown_operators_keep_their_declared_types() -> None:
    model = parse("t = my.Op(x)\ny = Relu(t)", "float16[N, 4] x", "float16[N, 4] y", imports=', "my": 1')
    model.graph.value_info.append(helper.make_tensor_value_info("t", TensorProto.FLOAT16, ["N", 4]))
    result = normal_form(model)
    assert shapes(result)["t"] == shapes(result)["y"] == ["N", 4]
