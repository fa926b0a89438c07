"""CumProd (ai.onnx opset 26) has no function body: here is one, of nodes that older opsets have."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper, shape_inference

from onnxlift.errors import ModelError
from onnxlift.protobuf import Namer, all_names, integer_attribute, replace_nodes, where

LONGEST = 24
"""The number of steps where the extent of the axis is unknown: enough for 2**24 places."""


def replace_cumulative_products(work: ModelProto) -> None:
    """Put products in the place of every CumProd of the main graph, under its name.

    With n places along the axis these are log2 n, each of a tensor and itself 1, 2, 4 ... places further on. Raises
    ModelError where the element type is unknown.
    """
    graph = work.graph
    if not any(_is_cumulative_product(node) for node in graph.node):
        return
    typed = shape_inference.infer_shapes(work).graph
    known = {value.name: value for value in (*typed.input, *typed.output, *typed.value_info)}
    for tensor in graph.initializer:
        known[tensor.name] = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
    name = Namer(all_names(graph))
    nodes: list[NodeProto] = []
    for node in graph.node:
        if not _is_cumulative_product(node):
            nodes.append(node)
        elif node.input[0] in known:
            nodes += _by_doubling(graph, node, known[node.input[0]], name)
        else:
            raise ModelError(f"{where(node)} cannot be replaced: the type of its input is unknown. Export its type.")
    replace_nodes(graph, nodes)


def _is_cumulative_product(node: NodeProto) -> bool:
    return node.op_type == "CumProd" and not node.domain


def _steps(x: ValueInfoProto) -> int:
    """How often the reach doubles until it covers any axis of x."""
    kind = x.type.tensor_type
    if not kind.HasField("shape") or not all(dim.HasField("dim_value") for dim in kind.shape.dim):
        return LONGEST
    return max((dim.dim_value - 1).bit_length() if dim.dim_value else 0 for dim in kind.shape.dim)


def _by_doubling(graph: GraphProto, node: NodeProto, x: ValueInfoProto, name: Namer) -> list[NodeProto]:
    """y[i] is a product of 1, 2, 4 ... factors that end at i; before the first place stand ones."""
    reverse, exclusive = (integer_attribute(node, which, 0) for which in ("reverse", "exclusive"))
    made: list[NodeProto] = []

    def add(op: str, *inputs: str, **attributes: Any) -> str:
        output = name(f"{node.output[0]}/{op}")
        made.append(helper.make_node(op, inputs, [output], output, **attributes))
        return output

    def constant(value: Any, kind: int = TensorProto.INT64) -> str:
        tensor = name(f"{node.output[0]}/constant")
        array = np.asarray(value, helper.tensor_dtype_to_np_dtype(kind))
        graph.initializer.append(numpy_helper.from_array(array, tensor))
        return tensor

    zero, one = constant([0]), constant(1, x.type.tensor_type.elem_type)
    axis = add("Reshape", add("Cast", node.input[1], to=TensorProto.INT64), constant([1]))
    shape = add("Shape", node.input[0])
    extent = add("Gather", shape, axis)

    def moved(y: str, places: int) -> str:
        """y[i - places], and ones where there is none."""
        by = add("Min", constant([places]), extent)
        if reverse:
            kept, borders = add("Slice", y, by, extent, axis), add("Concat", zero, by, axis=0)
        else:
            kept = add("Slice", y, zero, add("Sub", extent, by), axis)
            borders = add("Concat", by, zero, axis=0)
        return add("Reshape", add("Pad", kept, borders, one, axis), shape, allowzero=1)  # says that it has x's shape

    y = moved(node.input[0], 1) if exclusive else node.input[0]
    for step in range(_steps(x)):
        y = add("Mul", y, moved(y, 2**step))
    made.append(helper.make_node("Identity", [y], node.output, node.name, doc_string=node.doc_string or None))
    made[-1].metadata_props.extend(node.metadata_props)
    return made
