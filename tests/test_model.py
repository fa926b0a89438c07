"""onnxlift.model: the guarantees of the normal form as a whole."""

from __future__ import annotations

import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_text import constants, floats, ops, parse, same

from onnxlift.model import normal_form


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
    model = parse('y = Constant <value_strings = ["a", "b"]> ()\nz = Neg(x)', outputs="string[2] y, float[N, 4] z")
    assert ops(same(model)) == ["Constant", "Neg"]


@pytest.mark.parametrize("size", [4, 5000])
def test_constant_graph_outputs(size: int) -> None:
    body = "c = Constant <value_floats = [1.0, 2.0]> ()\ny = Add(x, w)"
    model = parse(body, f"float[N, {size}] x", f"float[N, {size}] y, float[{size}] w, float[2] c", w=floats(size))
    result = same(model, x=floats(2, size))
    assert [value.name for value in result.graph.output] == ["y", "w", "c"]


def test_nodes_and_weights_that_nothing_needs_are_dropped() -> None:
    model = parse("y = Neg(x)\ndead = Mul(x, w)", w=floats(1, 4), v=floats(5000))
    result = same(model)
    assert ops(result) == ["Neg"]
    assert not result.graph.initializer


def test_names_are_unique_kept_and_deterministic() -> None:
    model = parse("a = Neg(x)\nb = Neg(a)\nc = Exp(b)\ny = Abs(c)")
    for node, name in zip(model.graph.node, ["n", "n", "", "Exp_2"], strict=True):
        node.name = name
    result = normal_form(model)  # ONNX Runtime refuses the original
    assert [node.name for node in result.graph.node] == ["n", "n_2", "Exp_2_2", "Exp_2"]
    assert normal_form(result) == result


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
