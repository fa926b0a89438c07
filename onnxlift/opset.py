"""A model of any opset, with functions, sparse or unsorted, to one flat, sorted graph at BASE_OPSET."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    helper,
    inliner,
    numpy_helper,
    shape_inference,
    version_converter,
)

from onnxlift.cumprod import replace_cumulative_products
from onnxlift.errors import ModelError
from onnxlift.protobuf import (
    Namer,
    add_initializer,
    all_names,
    captured,
    forget_types,
    integer_attribute,
    is_external,
    nested,
    nodes,
    opset,
    replace_nodes,
    subgraphs,
    where,
)
from onnxlift.tensor_scatter import replace_tensor_scatters

BASE_OPSET = 21
"""The last opset for which ONNX Runtime's CUDA provider has all kernels."""
BASE_IR = 10
"""The IR version that came with BASE_OPSET."""

_NO_ADAPTER = frozenset(("GlobalMaxPool",))  # onnx 1.23 lacks the way down from 22, where only types changed
_HIDDEN = "onnxlift.hidden"  # a domain of which the converter knows nothing


def constant(node: NodeProto) -> TensorProto | None:
    """The value of a Constant node; None for other nodes and for strings."""
    if node.op_type != "Constant" or node.domain or not node.attribute:
        return None
    attribute: AttributeProto = node.attribute[0]
    if attribute.name == "value":
        return None if attribute.t.data_type == TensorProto.STRING else attribute.t
    if attribute.name == "sparse_value":
        return dense(attribute.sparse_tensor, node.output[0])
    if attribute.name in ("value_float", "value_floats", "value_int", "value_ints"):
        dtype = np.float32 if "float" in attribute.name else np.int64
        return numpy_helper.from_array(np.array(helper.get_attribute_value(attribute), dtype), node.output[0])
    return None


def dense(sparse: SparseTensorProto, name: str) -> TensorProto:
    """The sparse tensor as an ordinary one. Indices are of elements (a list) or of axes (a matrix)."""
    if is_external(sparse.values) or is_external(sparse.indices):
        raise ModelError(f"The sparse tensor '{name}' lies in an external file. Load the model with its weights.")
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    result = np.zeros(list(sparse.dims), values.dtype)
    result[tuple(indices.T) if indices.ndim == 2 else np.unravel_index(indices, result.shape)] = values
    return numpy_helper.from_array(result, name)


def hoist_constants(graph: GraphProto) -> None:
    """Makes initializers of the Constant nodes, those of bodies included; names must be unique over all of them."""
    rest = []
    for node in graph.node:
        tensor = constant(node)
        if tensor is None:
            rest.append(node)
        else:
            add_initializer(graph, node.output[0], tensor)
    replace_nodes(graph, rest)
    for name, tensor in take_constants(graph).items():
        add_initializer(graph, name, tensor)


def take_constants(graph: GraphProto) -> dict[str, TensorProto]:
    """Takes the constants out of the bodies of the graph's nodes."""
    found = {}
    for body in nested(graph.node):
        found.update({tensor.name: copy_of(tensor) for tensor in body.initializer})
        found.update({sparse.values.name: dense(sparse, sparse.values.name) for sparse in body.sparse_initializer})
        found.update({node.output[0]: copy_of(tensor) for node in body.node if (tensor := constant(node)) is not None})
        body.ClearField("initializer")
        body.ClearField("sparse_initializer")
        replace_nodes(body, [node for node in body.node if constant(node) is None])
    return found


def copy_of(tensor: TensorProto) -> TensorProto:
    """A copy that outlives the message that holds the tensor."""
    copy = TensorProto()
    copy.CopyFrom(tensor)
    return copy


def sort(graph: GraphProto) -> None:
    """Sorts the nodes topologically, subgraphs first; every tensor must be computed, and only once."""
    producer = _sort(graph)
    given = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    missing = [value.name for value in graph.output if value.name not in producer and value.name not in given]
    if missing:
        raise ModelError(f"No node computes the graph outputs {missing}. The file is broken: export the model again.")
    for node in graph.node:
        for name in _reads(node):
            if name not in producer and name not in given:
                raise ModelError(
                    f"{where(node)} reads tensor '{name}', which nothing computes. Export the model again."
                )


def inline(work: ModelProto) -> ModelProto:
    """Puts the bodies of local functions where they are called."""
    domains = {entry.domain for entry in work.opset_import}
    for function in work.functions:  # what only a function imports would be lost with it
        for entry in function.opset_import:
            if entry.domain not in domains:
                domains.add(entry.domain)
                work.opset_import.append(entry)
    sort(work.graph)
    try:
        result = inliner.inline_local_functions(work, convert_version=True)
    except Exception as error:  # RuntimeError, ValidationError, ConvertError
        raise ModelError(f"The model's local functions cannot be inlined: {error}") from error
    if result.functions:
        names = sorted(f"{function.domain}::{function.name}" for function in result.functions)
        raise ModelError(f"The model's local functions {names} cannot be inlined (recursive, or at another opset).")
    return result


def to_base_opset(work: ModelProto) -> ModelProto:
    """Converts up or down to BASE_OPSET. onnx's converter needs care: it forgets node names and metadata,
    renames the output of Upsample, and forgets that Resize meant `asymmetric` before opset 11."""
    version = opset(work)
    if version > BASE_OPSET:
        work = _expand_newer(work, version)
    result = _convert(work, version)
    lost = sorted({node.op_type for node in nodes(result) if not _in_base(node)})
    if lost:
        raise ModelError(
            f"Operators {lost} of ai.onnx opset {version} do not exist at opset {BASE_OPSET}. Replace them."
        )
    if version < 7:
        _mend_prelu(result)
    if version < 11:
        _mend_resize(work, result, version)
    if 18 <= version < 21:
        pairs = zip(_all_of(work, "GroupNormalization"), _all_of(result, "GroupNormalization"), strict=True)
        unchanged = [after.output[0] for before, after in pairs if before.input[1:] == after.input[1:]]
        for output in unchanged:
            _per_channel(result.graph, output)
    origin = {node.output[0]: node for node in nodes(work) if node.output}
    for node in nodes(result):
        source = origin.get(node.output[0]) if node.output else None
        if source is not None:
            node.name, node.doc_string = source.name, source.doc_string
            del node.metadata_props[:]
            node.metadata_props.extend(source.metadata_props)
    return result


def _sort(graph: GraphProto) -> dict[str, int]:
    """Sorts stably and in linear time; returns, by name, which node computed it before."""
    producer: dict[str, int] = {}
    for i, node in enumerate(graph.node):
        for body in subgraphs(node):
            _sort(body)
        for name in filter(None, node.output):
            if name in producer:
                raise ModelError(f"Tensor '{name}' is the output of two nodes, {where(node)} is one. Export it again.")
            producer[name] = i
    needs = [[name for name in _reads(node) if name in producer] for node in graph.node]
    order: list[int] = []
    state = [0] * len(needs)  # 0 new, 1 open: on the path from the root, 2 done
    for root in range(len(needs)):
        stack = [root]
        while stack:
            i = stack[-1]
            if state[i]:  # back here, after all that it needs
                stack.pop()
                if state[i] == 1:
                    order.append(i)
                state[i] = 2
                continue
            state[i] = 1
            for name in reversed(needs[i]):
                if state[producer[name]] == 1:
                    raise ModelError(f"The graph has a cycle through tensor '{name}', read by {where(graph.node[i])}.")
                if state[producer[name]] == 0:
                    stack.append(producer[name])
    if order != sorted(order):
        replace_nodes(graph, [graph.node[i] for i in order])
    return producer


def _reads(node: NodeProto) -> list[str]:
    """What must be computed before the node."""
    return [name for name in (*node.input, *captured(node)) if name]


def _expand_newer(work: ModelProto, version: int) -> ModelProto:
    """Replaces operators that came after BASE_OPSET by their function bodies, which may hold others of that kind."""
    replace_tensor_scatters(work)
    replace_cumulative_products(work)
    while newer := [node for node in nodes(work) if not _in_base(node)]:
        for node in newer:
            _write_defaults(node, version)
        names = sorted({("", node.op_type) for node in newer})
        try:
            work = inliner.inline_selected_functions(_typed(work), names, inline_schema_functions=True)
        except RuntimeError as error:
            raise ModelError(f"Operators {[op for _, op in names]} cannot be expanded: {error}") from error
        forget_types(work)
    return work


def _write_defaults(node: NodeProto, version: int) -> None:
    """Adds the attributes that are left out, of which the inliner knows nothing. There must be a function body."""
    try:
        schema = onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError:
        schema = None
    bodies = ("has_function", "has_context_dependent_function")  # onnx's stubs lack both
    if schema is None or not any(getattr(schema, name) for name in bodies):
        raise ModelError(
            f"{where(node)} of ai.onnx opset {version} does not exist at opset {BASE_OPSET} and has "
            f"no function body to replace it. Export the model at opset {BASE_OPSET} or without it."
        )
    add_defaults(node, schema)


def add_defaults(node: NodeProto, schema: onnx.defs.OpSchema) -> None:
    """Adds the attributes that the node leaves out and that have a default."""
    given = {attribute.name for attribute in node.attribute}
    for name, attribute in schema.attributes.items():
        if name not in given and attribute.default_value.type != AttributeProto.UNDEFINED:
            node.attribute.append(attribute.default_value)


def _convert(work: ModelProto, version: int) -> ModelProto:
    """onnx's conversion, with inputs and outputs as they were."""
    try:
        typed = _typed(work)
        hidden = _NO_ADAPTER if version > BASE_OPSET else frozenset()
        if version < 9 and _unroll_batches(typed):
            hidden = frozenset(("Scan",))
        hidden |= frozenset(node.op_type for node in nodes(typed) if not node.domain and _is_foreign(node, version))
        if hidden:
            typed.opset_import.append(helper.make_opsetid(_HIDDEN, 1))
            _rename_domain(typed, "", _HIDDEN, hidden)
        result = version_converter.convert_version(typed, BASE_OPSET)
    except Exception as error:  # ConvertError, RuntimeError of failed assertions
        raise ModelError(
            f"The model cannot be converted from ai.onnx opset {version} to {BASE_OPSET}: {error}. "
            f"Export it at an opset near {BASE_OPSET}."
        ) from error
    _rename_domain(result, _HIDDEN, "", hidden)
    forget_types(result)
    for field in ("input", "output"):
        result.graph.ClearField(field)
        getattr(result.graph, field).extend(getattr(work.graph, field))
    return result


def _unroll_batches(model: ModelProto) -> bool:
    """Scan had a batch axis before opset 9: it becomes a Scan over the batch whose body is a Scan over the sequence.

    Returns whether there was one.
    """
    found = [node for node in nodes(model) if node.op_type == "Scan" and not node.domain]
    name = Namer(all_names(model.graph))
    for node in found:
        if node.input[0]:
            raise RuntimeError("Scan with sequence lengths of its own has no counterpart after opset 8")
        body = next(attribute.g for attribute in node.attribute if attribute.name == "body")
        many = integer_attribute(node, "num_scan_inputs", 0)
        directions = next((list(item.ints) for item in node.attribute if item.name == "directions"), [0] * many)
        types = [value.type.tensor_type.elem_type for value in (*body.input, *body.output)]
        inputs, outputs = ([name(f"{value.name}/sample") for value in values] for values in (body.input, body.output))
        inner = helper.make_node(
            "Scan", inputs, outputs, name(node.name), body=body, num_scan_inputs=many, scan_input_directions=directions
        )
        infos = [
            helper.make_tensor_value_info(one, kind, None) for one, kind in zip((*inputs, *outputs), types, strict=True)
        ]
        each = helper.make_graph([inner], "sample", infos[: len(inputs)], infos[len(inputs) :])
        whole = helper.make_node("Scan", node.input[1:], node.output, node.name, body=each, num_scan_inputs=len(inputs))
        node.CopyFrom(whole)
    return bool(found)


def _typed(work: ModelProto) -> ModelProto:
    """With value_info for everything, as the inliner and the converter need it: for initializers, and one without a
    type for omitted inputs."""
    result = shape_inference.infer_shapes(work, data_prop=True)
    for tensor in result.graph.initializer:
        result.graph.value_info.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    result.graph.value_info.append(helper.make_tensor_value_info("", TensorProto.UNDEFINED, None))
    return result


def _rename_domain(model: ModelProto, old: str, new: str, op_types: frozenset[str]) -> None:
    """Hides operators from the converter, and shows them again."""
    for node in nodes(model):
        if node.domain == old and node.op_type in op_types:
            node.domain = new


def _mend_resize(before: ModelProto, after: ModelProto, version: int) -> None:
    """Says what Upsample and Resize meant before opset 11, and gives the results of Upsample their names back."""
    old = _all_of(before, "Upsample", "Resize")
    new = _all_of(after, "Resize")
    constants = {tensor.name: tensor for tensor in after.graph.initializer}
    renamed = {}
    for a, b in zip(old, new, strict=True):
        scales = numpy_helper.to_array(constants[b.input[2]]) if b.input[2] in constants else np.ones(1)
        shrinks, grows = (scales < 1).any(), (scales > 1).any()
        if shrinks and grows:
            raise ModelError(f"{where(a)} of opset {version} scales both up and down. Export it at 11 or later.")
        b.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
        b.attribute.append(helper.make_attribute("nearest_mode", "ceil" if shrinks else "floor"))
        renamed[b.output[0]], b.output[0] = a.output[0], a.output[0]
    for node in nodes(after):
        node.input[:] = [renamed.get(name, name) for name in node.input]


def _mend_prelu(model: ModelProto) -> None:
    """Before opset 7 a slope with one axis is of channels; now it would be of the last axis: it gets trailing ones."""
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*_typed(model).graph.value_info, *model.graph.input)
        if value.type.tensor_type.HasField("shape")
    }
    name = Namer(all_names(model.graph))
    mended: list[NodeProto] = []
    for node in model.graph.node:
        is_prelu = node.op_type == "PRelu" and not node.domain
        if is_prelu and ranks.get(node.input[1]) == 1 and ranks.get(node.input[0], 0) > 2:
            shape, slope = name(f"{node.input[1]}/shape"), name(f"{node.input[1]}/channels")
            ones = np.array([-1, *[1] * (ranks[node.input[0]] - 2)], np.int64)
            model.graph.initializer.append(numpy_helper.from_array(ones, shape))
            mended.append(helper.make_node("Reshape", [node.input[1], shape], [slope], slope))
            node.input[1] = slope
        mended.append(node)
    replace_nodes(model.graph, mended)


def _per_channel(graph: GraphProto, output: str) -> None:
    """Repeats scale and bias, which GroupNormalization had one of per group before opset 21, for every channel."""
    position = next((index for index, node in enumerate(graph.node) if output in node.output), None)
    if position is None:
        raise ModelError(f"GroupNormalization in a subgraph has a scale per group. Export it at opset {BASE_OPSET}.")
    node = graph.node[position]
    name = Namer({name for other in graph.node for name in (*other.input, *other.output)})
    groups = integer_attribute(node, "num_groups", 1)
    mended: list[NodeProto] = []

    def add(op: str, inputs: Sequence[str], **attributes: Any) -> str:
        made = name(f"{output}/{op}")
        mended.append(helper.make_node(op, inputs, [made], made, **attributes))
        return made

    def ints(*values: int) -> str:
        constant = name(f"{output}/ints")
        graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), constant))
        return constant

    channels = add("Shape", [node.input[0]], start=1, end=2)
    each = add("Concat", [ints(1), add("Div", [channels, ints(groups)])], axis=0)
    for index in (1, 2):
        wide = add("Expand", [add("Unsqueeze", [node.input[index], ints(1)]), each])
        node.input[index] = add("Reshape", [wide, ints(-1)])
    replace_nodes(graph, [*graph.node[:position], *mended, *graph.node[position:]])


def _all_of(model: ModelProto, *op_types: str) -> Sequence[NodeProto]:
    """Nodes of these standard operators, in the order that the converter keeps."""
    return [node for node in nodes(model) if node.op_type in op_types and not node.domain]


def _in_base(node: NodeProto) -> bool:
    """Whether BASE_OPSET has the operator; other domains have versions of their own."""
    try:
        return bool(node.domain) or not onnx.defs.get_schema(node.op_type, BASE_OPSET, "").deprecated
    except onnx.defs.SchemaError:
        return not onnx.defs.has(node.op_type, "")


def _is_foreign(node: NodeProto, version: int) -> bool:
    """Whether ONNX Runtime alone has the operator at this opset: SimplifiedLayerNormalization, early
    LayerNormalization."""
    try:
        onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError:
        return True
    return False
