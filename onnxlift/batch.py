"""The batch axis: which one it is, whether samples stay apart along it, and how to free one of fixed size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from onnxlift.flow import Flow, Step, dependents, names
from onnxlift.graph import Dim, Graph, Handle, Node, Shape
from onnxlift.ports import Ports, per_slice, ports
from onnxlift.protobuf import Namer, all_names, integer_attribute


@dataclass(frozen=True)
class Batch:
    """The leading axis shared by the inputs and the explained tensor; `dim` is its extent or symbol.

    `led`: every tensor on the path has this very axis in front, so that a run with another extent is sound and
    values of N samples and of K references can be brought together row by row. `axes`: where the attributed tensors
    have it, which need not be in front of an internal one.
    """

    dim: Dim
    led: bool
    axes: Mapping[str, int]


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
    axes = {name: _axis(graph.shape(graph.tensors[name]), dim) for name in flow.sources}
    known = {name: axis for name, axis in axes.items() if axis is not None}
    if _mixes(graph, flow, dim) or len(known) < len(axes):
        return None
    if last == dim:
        return Batch(dim, isinstance(dim, str) and _is_led(graph, flow, dim), known)
    others = {size for shape in shapes[:-1] for size in (shape or ())[1:]}
    unknown = (
        not _stacks(graph, flow)
        and isinstance(dim, str)
        and not isinstance(last, int)
        and last not in others
        and not _holds(dim, last)
        and not any(_holds(dim, size) for size in (shapes[-1] or ())[1:])  # the batch is behind its lead then
    )
    return Batch(dim, led=False, axes=known) if unknown else None


def _axis(shape: Shape, batch: Dim) -> int | None:
    """The axis of an attributed tensor that counts samples; None where it cannot be told."""
    if shape is None or not shape:
        return None
    if shape[0] == batch or (shape[0] is None and batch not in shape):
        return 0
    return shape.index(batch) if isinstance(batch, str) and shape.count(batch) == 1 else None


def _stacks(graph: Graph, flow: Flow) -> bool:
    """Whether importance passes what a Loop stacks: an extent that cannot be told may count its iterations then."""
    return any(
        leaf.name in inner.targets
        for step in flow.all_steps
        if step.node.op == "Loop"
        for port, inner in zip(ports(graph, step.node), step.flows, strict=True)
        for leaf, _ in port.leaves[len(port.states) :]
    )


def _mixes(graph: Graph, flow: Flow, batch: Dim) -> bool:
    """Whether the path computes along the axis that leads the inputs: it counts tokens or rows then, not samples."""
    for step in flow.steps:
        shapes = [graph.shape(graph.tensors[name]) for name in names(step.node.outputs) if name in flow.active]
        if isinstance(batch, str) and any(shape is not None and shape.count(batch) > 1 for shape in shapes):
            return True
        x = graph.shape(step.node.inputs[0])
        places = [place for place, dim in enumerate(x or ()) if _counts_samples(place, dim, batch)]
        if any(_works_along(step.node, len(x or ()), place) for place in places):
            return True
        if isinstance(batch, str) and _sums_products_over(step.node, batch):
            return True
        if step.node.inputs[0].name in flow.active and x and x[0] == batch != 1 and _picks_rows(step.node, len(x)):
            return True
        for port, inner in zip(ports(graph, step.node), step.flows, strict=False):
            if _runs_along(graph, step, port, inner, batch) or _mixes(port.body, inner, batch):
                return True
    return False


def _runs_along(graph: Graph, step: Step, port: Ports, inner: Flow, batch: Dim) -> bool:
    """Whether the iterations of a Loop or Scan count what leads the inputs, and one of them sees more than its own.

    Iterations that share nothing (no state, nothing read from outside) are samples that stay apart.
    """
    shared = bool(step.roots) or any(taken.name in inner.active for _, taken in port.states)
    if step.node.op == "If" or batch == 1 or not shared:
        return False
    axes = per_slice(step.node, "scan_input_axes", len(port.slices))
    for (outside, taken), axis in zip(port.slices, axes, strict=True):
        shape = graph.shape(outside)
        if taken.name in inner.active and shape and shape[axis] == batch:
            return True
    stacked = port.leaves[len(port.states) :]
    axes = per_slice(step.node, "scan_output_axes", len(stacked))
    return any(
        made.name in inner.targets and _counts(graph.shape(outside), axis, batch)
        for (made, outside), axis in zip(stacked, axes, strict=True)
    )


def _counts(shape: Shape, axis: int, batch: Dim) -> bool:
    """Whether the axis that stacks iterations may be the batch: it is called so, or no other axis is."""
    if not shape:
        return True
    place = axis % len(shape)
    return shape[place] == batch or (
        not isinstance(shape[place], int) and batch not in (*shape[:place], *shape[place + 1 :])
    )


def _counts_samples(place: int, dim: Dim, batch: Dim) -> bool:
    """Whether an axis holds the samples: the first, or wherever they were moved or merged to, if they have a name."""
    return (place == 0 and dim == batch != 1) or (isinstance(batch, str) and _holds(batch, dim))


def _sums_products_over(node: Node, batch: str) -> bool:
    """Whether a product of matrices, or an Einsum, sums over samples."""
    shapes = [Graph.shape(handle) for handle in node.inputs[:2]]
    match node.op:
        case "MatMul":
            a, b = shapes
            rows = b[-2:-1] if b and len(b) > 1 else (b or ())[-1:]
            return any(_holds(batch, dim) for dim in (*(a or ())[-1:], *rows))
        case "Gemm":
            summed = (1 - node.attrs.get("transA", 0), node.attrs.get("transB", 0))
            return any(shape and _holds(batch, shape[axis]) for shape, axis in zip(shapes, summed, strict=True))
        case "Einsum":
            return _sums_over(node, batch)
    return False


def _works_along(node: Node, rank: int, place: int) -> bool:
    if node.op.startswith("Reduce") and (len(node.inputs) > 1 or not node.attrs.get("noop_with_empty_axes", 0)):
        axes = Graph.value(node.inputs[1]) if len(node.inputs) > 1 else np.arange(rank)
        return axes is None or place in axes % rank or not axes.size
    match node.op:
        case "Softmax" | "LogSoftmax" | "Hardmax" | "LpNormalization" | "Normalizer" | "TopK":
            return bool(node.attrs.get("axis", -1) % rank == place)
        case "LayerNormalization":
            return bool(node.attrs.get("axis", -1) % rank <= place)
        case "InstanceNormalization" | "GroupNormalization" | "LRN" | "Conv" | "ConvTranspose":
            return place > 0
        case "MaxPool" | "AveragePool" | "LpPool" | "GlobalMaxPool" | "GlobalAveragePool" | "GlobalLpPool":
            return place > 1
        case "ScatterElements" if _lead(node.inputs[0]) != _lead(node.inputs[1]):
            return True  # it writes to the first rows only
        case "Concat" | "Split" | "GatherElements" | "ScatterElements":
            return bool(node.attrs.get("axis", 0) % rank == place)
        case "Flatten":
            return bool(place == 0 and node.attrs.get("axis", 1) % rank == 0)
        case "ReverseSequence":
            return bool(node.attrs.get("time_axis", 0) % rank == place)
        case "MeanVarianceNormalization":
            return any(axis % rank == place for axis in node.attrs.get("axes", (0, 2, 3)))
        case "CumSum":
            axis = Graph.value(node.inputs[1])
            return axis is None or int(axis.item()) % rank == place
        case "DFT":
            axis = Graph.value(node.inputs[2]) if len(node.inputs) > 2 else np.array(-2)
            return axis is None or int(axis.item()) % rank == place
        case "BatchNormalization":
            return bool(node.attrs.get("training_mode", 0))
        case "ScatterND":
            return place == 0 and not _keeps_its_own_row(node.inputs[1])
        case "OneHot" | "Compress":  # the two values of the one; what the other keeps is not every sample
            return bool((place == 0 and node.op == "OneHot") or node.attrs.get("axis", 0) % rank == place)
        case "RoiAlign" | "MaxRoiPool":
            return place == 0  # its output counts boxes
        case "Trilu":
            return place >= rank - 2
        case "Tile" | "Pad" | "Resize":
            before, after = (Graph.shape(handle) for handle in (node.inputs[0], node.outputs[0]))
            return before is not None and after is not None and before[place] != after[place]
        case "Slice":
            if _cuts(node, rank, place):
                return True
            steps = Graph.value(node.inputs[4]) if len(node.inputs) > 4 else None
            return steps is not None and bool((steps < 0).any())
    return False


def _cuts(node: Node, rank: int, place: int) -> bool:
    """Whether a Slice leaves samples out, or its axes are given at run time."""
    if len(node.inputs) > 3 and node.inputs[3].name:
        axes = Graph.value(node.inputs[3])
        if axes is None or place not in axes % rank:
            return axes is None
    before, after = (Graph.shape(handle) for handle in (node.inputs[0], node.outputs[0]))
    return before is None or after is None or before[place] != after[place]


def _lead(handle: Handle) -> Dim:
    """The first extent, None where it is unknown."""
    return (Graph.shape(handle) or (None,))[0]


def _picks_rows(node: Node, rank: int) -> bool:
    """Whether row n of the output need not be made of row n of the input."""
    if node.op == "Gather":
        return bool(node.attrs.get("axis", 0) % rank == 0)
    return node.op == "GatherND" and not node.attrs.get("batch_dims", 0) and not _keeps_its_own_row(node.inputs[1])


def _keeps_its_own_row(indices: Handle) -> bool:
    """Whether row n of the updates goes to row n, or is taken from it.

    Of indices that are computed, and name a place within the row, this is taken for granted: those that name nothing
    but the row would have no purpose then.
    """
    value = Graph.value(indices)
    if value is None:
        return Graph.is_computed(indices) and (Graph.shape(indices) or (None,))[-1] != 1
    rows = value[..., 0]
    return rows.ndim > 0 and bool((np.moveaxis(rows, 0, -1) == np.arange(len(rows))).all())


def _sums_over(node: Node, batch: str) -> bool:
    """Whether an Einsum sums over an axis of its operands that holds samples."""
    left, arrow, output = str(node.attrs["equation"]).replace(" ", "").partition("->")
    for term, handle in zip(left.split(","), node.inputs, strict=True):
        head, dots, tail = term.partition("...")
        shape = Graph.shape(handle) or ()
        named = [*zip(head, shape, strict=False), *(zip(tail[::-1], shape[::-1], strict=False) if dots else ())]
        for letter, dim in named:
            if _holds(batch, dim) and (letter not in output if arrow else left.count(letter) > 1):
                return True
    return False


def _is_led(graph: Graph, flow: Flow, batch: str) -> bool:
    """Whether samples stay apart on the leading axis of everything that the backward walk will touch."""

    def shape(name: str) -> Shape:
        return graph.shape(graph.tensors[name])

    rerun = dependents(graph, flow.sources, through_shapes=True)
    for step in flow.steps:
        if step.flows or _numbers_rows(step.node):
            return False
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


def _numbers_rows(node: Node) -> bool:
    """Whether its indices tell the samples, which have other numbers in a run with more rows."""
    return node.op == "ScatterND" or (node.op == "GatherND" and not node.attrs.get("batch_dims", 0))


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
    name = Namer(all_names(graph))
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
