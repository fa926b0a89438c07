"""TensorScatter (ai.onnx opset 24) has no function body: here is one, of nodes that older opsets have."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper, shape_inference

from onnxlift.errors import ModelError
from onnxlift.protobuf import Namer, all_names, integer_attribute, replace_nodes, where


def replace_tensor_scatters(work: ModelProto) -> None:
    """Put ScatterElements in the place of every TensorScatter of the main graph, under its name.

    Raises ModelError where the rank of the cache is unknown.
    """
    graph = work.graph
    if not any(_is_tensor_scatter(node) for node in graph.node):
        return
    typed = shape_inference.infer_shapes(work).graph
    values = (*typed.input, *typed.output, *typed.value_info)
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in values if v.type.tensor_type.HasField("shape")}
    ranks |= {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    name = Namer(all_names(graph))
    nodes: list[NodeProto] = []
    for node in graph.node:
        if not _is_tensor_scatter(node):
            nodes.append(node)
        elif rank := next((ranks[read] for read in node.input[:2] if read in ranks), None):
            nodes += _by_elements(graph, node, rank, name)
        else:
            raise ModelError(f"{where(node)} cannot be replaced: the rank of its cache is unknown. Export its shape.")
    replace_nodes(graph, nodes)


def _is_tensor_scatter(node: NodeProto) -> bool:
    return node.op_type == "TensorScatter" and not node.domain


def _by_elements(graph: GraphProto, node: NodeProto, rank: int, name: Namer) -> list[NodeProto]:
    """update[b, ..., i, ...] goes to cache[b, ..., begin[b] + i, ...]; behind the end, or round to the start again."""
    past, update, *rest = node.input
    axis = integer_attribute(node, "axis", -2) % rank
    made: list[NodeProto] = []

    def add(op: str, *inputs: str, **attributes: Any) -> str:
        output = name(f"{node.output[0]}/{op}")
        made.append(helper.make_node(op, inputs, [output], output, **attributes))
        return output

    def ints(value: Any) -> str:
        constant = name(f"{node.output[0]}/ints")
        graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.int64), constant))
        return constant

    count = add("Squeeze", add("Shape", update, start=axis, end=axis + 1), ints([0]))
    at = add("Unsqueeze", add("Range", ints(0), count, ints(1)), ints([0]))  # [1, places]
    if rest and rest[0]:
        at = add("Add", add("Unsqueeze", rest[0], ints([1])), at)  # [batch, places]
    if any(attribute.name == "mode" and attribute.s == b"circular" for attribute in node.attribute):
        at = add("Mod", at, add("Shape", past, start=axis, end=axis + 1))
    others = [other for other in range(rank) if other not in (0, axis)]
    if others:
        at = add("Unsqueeze", at, ints(others))
    at = add("Expand", at, add("Shape", update))
    made.append(helper.make_node("ScatterElements", [past, at, update], node.output, node.name, axis=axis))
    made[-1].doc_string = node.doc_string
    made[-1].metadata_props.extend(node.metadata_props)
    return made
