"""The batch axis: which one it is, whether samples stay apart along it, and how to free one of fixed size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnxlift.flow import Flow, dependents, names
from onnxlift.graph import Dim, Graph, Node, Shape
from onnxlift.protobuf import Namer, integer_attribute


@dataclass(frozen=True)
class Batch:
    """The leading axis shared by the inputs and the explained tensor; `dim` is its extent or symbol.

    `led`: every tensor on the path has this very axis in front, so that a run with another extent is sound and
    values of N samples and of K references can be brought together row by row.
    """

    dim: Dim
    led: bool


def find_batch(graph: Graph, flow: Flow, given: Sequence[str]) -> Batch | None:
    """The batch axis, or None where inputs and explained tensor share no leading axis.

    A leading extent of the explained tensor that shape inference could not tell is taken for the batch.
    """
    shapes = [graph.shape(graph.tensors[name]) for name in (*given, flow.target)]
    if any(shape is not None and not shape for shape in shapes):
        return None
    *leads, last = [shape[0] if shape else None for shape in shapes]
    if len(set(leads)) != 1 or leads[0] is None:
        return None
    dim = leads[0]
    if isinstance(dim, str) and _mixes(graph, flow, dim):
        return None
    if last == dim:
        return Batch(dim, isinstance(dim, str) and _is_led(graph, flow, dim))
    others = {size for shape in shapes[:-1] for size in (shape or ())[1:]}
    unknown = isinstance(dim, str) and not isinstance(last, int) and last not in others and not _holds(dim, last)
    return Batch(dim, led=False) if unknown else None


def _mixes(graph: Graph, flow: Flow, batch: str) -> bool:
    """Whether the path computes along the axis that leads the inputs: it counts tokens or rows then, not samples."""
    for step in flow.steps:
        shapes = [graph.shape(graph.tensors[name]) for name in names(step.node.outputs) if name in flow.active]
        if any(shape is not None and shape.count(batch) > 1 for shape in shapes):
            return True
        x = graph.shape(step.node.inputs[0])
        if x and x[0] == batch and _works_along_the_first_axis(step.node, len(x)):
            return True
    return False


def _works_along_the_first_axis(node: Node, rank: int) -> bool:
    match node.op:
        case "Softmax" | "LogSoftmax" | "LayerNormalization":
            return bool(node.attrs.get("axis", -1) % rank == 0)
        case "CumSum":
            axis = Graph.value(node.inputs[1])
            return axis is None or int(axis.item()) % rank == 0
        case "Trilu":
            return rank == 2
        case "Slice":
            steps = Graph.value(node.inputs[4]) if len(node.inputs) > 4 else None
            return steps is not None and bool((steps < 0).any())
    return False


def _is_led(graph: Graph, flow: Flow, batch: str) -> bool:
    """Whether samples stay apart on the leading axis of everything that the backward walk will touch."""

    def shape(name: str) -> Shape:
        return graph.shape(graph.tensors[name])

    rerun = dependents(graph, flow.sources, through_shapes=True)
    for step in flow.steps:
        for name in (*names(step.node.inputs), *names(step.node.outputs)):
            dims = shape(name)
            leads = dims is not None and dims[:1] == (batch,) and not _mentions(batch, dims[1:])
            if (name in flow.active or (name in rerun and _mentions(batch, dims))) and not leads:
                return False
    others = other_leads(graph, batch)
    for node in graph.nodes:  # what the reference run shares with the input run must not hold samples
        if not rerun.isdisjoint(names(node.outputs)):
            shared = [name for name in names(node.inputs) if name not in rerun]
            shapes = [shape(name) for name in shared if not graph.is_constant(graph.tensors[name])]
            if any(_mentions(batch, held) or (held and held[0] in others) for held in shapes):
                return False
    return True


def other_leads(graph: Graph, batch: Dim) -> dict[Dim, str]:
    """Symbols that lead other graph inputs and may be the batch by another name, with one of these inputs."""
    leads = {shape[0]: name for name in graph.inputs if (shape := graph.shape(graph.tensors[name]))}
    return {dim: name for dim, name in leads.items() if isinstance(dim, str) and dim != batch}


def _mentions(batch: str, shape: Shape) -> bool:
    """Whether an extent depends on the batch, as "batch" or in a product such as "4*batch", or may do so."""
    return shape is None or any(dim is None or _holds(batch, dim) for dim in shape)


def _holds(batch: str, dim: Dim) -> bool:
    return isinstance(dim, str) and batch in dim.split("*")


def free_batch(model: ModelProto, size: int) -> ModelProto:
    """A model in normal form whose inputs have lost the leading extent `size`; to be brought to normal form again.

    Exporters that trace with a fixed batch also leave it in the shapes of Reshape nodes, where it says the same as
    "copy the extent of the input". Whether the batch is free everywhere then, `Batch.led` has to tell.
    """
    free = ModelProto()
    free.CopyFrom(model)
    graph = free.graph
    types = {value.name: value.type.tensor_type for value in (*graph.input, *graph.value_info)}
    leads = {name: kind.shape.dim[0].dim_value for name, kind in types.items() if kind.shape.dim}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    name = Namer({*constants, *(output for node in graph.node for output in node.output)})
    for node in graph.node:
        if _repeats_batch(node, size, leads) and node.input[1] in constants:
            shape = numpy_helper.to_array(constants[node.input[1]])
            if shape.size and shape[0] == size:
                copied = np.concatenate([[0], shape[1:]])
                node.input[1] = name(f"{node.output[0]}_shape")
                graph.initializer.append(numpy_helper.from_array(copied, node.input[1]))
    for value in graph.input:
        if leads.get(value.name) == size:
            value.type.tensor_type.shape.dim[0].Clear()
    del graph.value_info[:]
    for value in graph.output:
        value.CopyFrom(helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, None))
    return free


def _repeats_batch(node: NodeProto, size: int, leads: dict[str, int]) -> bool:
    """Whether a Reshape of something with the batch in front copies extents that are given as 0."""
    return (
        node.op_type == "Reshape"
        and not node.domain
        and leads.get(node.input[0]) == size
        and not integer_attribute(node, "allowzero", 0)
    )


def fix_batch(model: ModelProto, symbol: Dim, size: int) -> None:
    """Give the freed axis of inputs and outputs its size back, in place."""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == symbol:
                dim.dim_value = size
