"""Models from ONNX text, and the checks that every normal form must pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper, parser

from onnxlift.equivalence import equivalence
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
