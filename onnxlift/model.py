"""Any ONNX model to one normal form, on which the rest of onnxlift relies.

Weights take no part in protobuf round trips and are not computed with, so time follows the number of nodes, and
models over 2 GB work by reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from onnx import (
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    ValueInfoProto,
    checker,
    helper,
    shape_inference,
    version_converter,
)

from onnxlift.bodies import separate_names
from onnxlift.errors import ModelError
from onnxlift.files import with_small_tensors
from onnxlift.opset import (
    BASE_IR,
    BASE_OPSET,
    constant,
    dense,
    hoist_constants,
    inline,
    sort,
    take_constants,
    to_base_opset,
)
from onnxlift.protobuf import (
    Namer,
    add_initializer,
    captured,
    copy_documentation,
    forget_types,
    is_external,
    is_small,
    nodes,
    opset,
    replace_nodes,
)
from onnxlift.shapes import Replace, TypePass
from onnxlift.symbols import name_dims

_BROKEN = (
    ValueError,
    RuntimeError,
    TypeError,
    LookupError,
    checker.ValidationError,
    shape_inference.InferenceError,
    version_converter.ConvertError,
)
"""What onnx raises on a broken model, as do the passes that rely on its being whole."""


def _nothing(node: NodeProto, types: TypePass) -> bool:
    return False


def normal_form(
    model: ModelProto,
    *,
    folder: Path | None = None,
    replace: Replace = _nothing,
    sizes: Mapping[str, int] | None = None,
    own_axes: bool = False,
) -> ModelProto:
    """A new model that computes the same, in this form (`model` is not changed):

     1. no local functions, no unused opset imports;
     2. nodes sorted topologically, captures of subgraphs included;
     3. ai.onnx opset 21, IR version 10; operators newer than that are expanded into their function bodies.
        Metadata, documentation, producer and graph name are kept, and those of nodes that survive;
     4. graph inputs that have an initializer are constants, no longer inputs;
     5. Constant nodes of the main graph and sparse initializers are dense initializers (strings stay nodes);
     6. nodes on small constants (<= 4096 elements in and out), and on statically known shapes, are computed;
        a Reshape to a shape that only the batch makes dynamic gets a constant like [0, 8, -1]. Nothing bigger
        is computed; nodes and weights that no output needs are gone. A small constant graph output is an
        Identity of an initializer, a big one the initializer itself;
     7. every tensor that can be typed has a value_info (stale ones are dropped); dims are ints or symbols.
        Unknown dims of the inputs get symbols: `batch` for leading ones, `<input>_dim<i>` for others.
        Products of symbols are written "4*batch";
     8. every node, those of subgraphs included, has a unique name;
     9. inputs (but 4.) and outputs keep names, order and types, and their values are equal.

     10. tensors inside of If, Loop and Scan have names that no other tensor has, and constants none of them holds;
        an If with a constant condition is its branch.

    `folder`: where external data lies, for a model loaded with weights=False: small tensors are then read.
    `replace`: may put other nodes in the place of one that depends on an input (onnxlift/lowering).
    `sizes`: numbers for symbols in the shapes of the inputs, as 7. names them. `own_axes`: the model is an explainer,
    whose own axes keep their symbols.
    Raises ModelError: cycles, undefined or doubly defined tensors, operators or types that opset 21 cannot
    express, and whatever else onnx finds broken.
    """
    try:
        return _normal_form(model, folder, replace, sizes or {}, own_axes=own_axes)
    except _BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"The model cannot be brought to normal form: {reason}. Export it again.") from error


def _normal_form(
    model: ModelProto, folder: Path | None, replace: Replace, sizes: Mapping[str, int], *, own_axes: bool
) -> ModelProto:
    if folder is not None:
        model = with_small_tensors(model, folder)
    work, weights = _skeleton(model, sizes, own_axes=own_axes)
    if work.functions:
        work = inline(work)
        separate_names(work)
    hoist_constants(work.graph)
    sort(work.graph)
    if opset(work) != BASE_OPSET:
        work = to_base_opset(work)
        separate_names(work)
        hoist_constants(work.graph)
        sort(work.graph)
    values = (*model.graph.value_info, *model.graph.output)
    declared = {value.name: _sized(value.type, sizes) for value in values if value.HasField("type")}
    walk = TypePass(work, declared, weights, replace)
    walk.run()
    _write_computation(work, walk)
    _write_types(work, walk)
    _write_names_and_imports(work)
    _write_weights(work, weights)
    copy_documentation(model, work)
    return work


def _sized(type_: TypeProto, sizes: Mapping[str, int]) -> TypeProto:
    """A type in which these symbols are numbers."""
    result = TypeProto()
    result.CopyFrom(type_)
    for dim in result.tensor_type.shape.dim if result.HasField("tensor_type") else ():
        if dim.dim_param in sizes:
            dim.dim_value = sizes[dim.dim_param]
    return result


def _skeleton(
    model: ModelProto, sizes: Mapping[str, int], *, own_axes: bool
) -> tuple[ModelProto, dict[str, TensorProto]]:
    """A copy of the computation in which weights are stand-in graph inputs, and those weights by name."""
    graph = model.graph
    work = ModelProto(ir_version=BASE_IR, opset_import=model.opset_import, functions=model.functions)
    work.graph.name = "graph"  # for now; onnx's passes want one
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for sparse in graph.sparse_initializer:
        constants[sparse.values.name] = dense(sparse, sparse.values.name)
    for node in graph.node:
        tensor = constant(node)
        if tensor is None:
            work.graph.node.append(node)
        else:
            constants[node.output[0]] = tensor
    separate_names(work)
    constants |= take_constants(work.graph)
    work.graph.input.extend(value for value in graph.input if value.name not in constants)
    work.graph.output.extend(graph.output)
    if not own_axes:
        name_dims(work.graph.input)
    for value in work.graph.input:
        value.type.CopyFrom(_sized(value.type, sizes))
    weights = {}
    for name, tensor in constants.items():
        if is_small(tensor) and not is_external(tensor):
            add_initializer(work.graph, name, tensor)
        else:
            weights[name] = tensor
            work.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
    forget_types(work)
    _unify_standard_domain(work)
    return work, weights


def _unify_standard_domain(work: ModelProto) -> None:
    """The domain "" may be written "ai.onnx". It is always imported, because the normal form may add its operators."""
    entries = (*work.opset_import, *(entry for function in work.functions for entry in function.opset_import))
    for item in (*entries, *nodes(work)):
        if item.domain == "ai.onnx":
            item.domain = ""
    if not opset(work):
        work.opset_import.append(helper.make_opsetid("", BASE_OPSET))


def _write_computation(work: ModelProto, walk: TypePass) -> None:
    """Nodes and constants that an output needs."""
    graph = work.graph
    constants = {tensor.name: tensor for tensor in graph.initializer} | walk.constants
    identities = []
    for name in sorted(walk.outputs & constants.keys()):
        source = walk.name(f"{name}_value")
        constants[source] = constants.pop(name)
        identities.append(helper.make_node("Identity", [source], [name]))
    needed = set(walk.outputs)
    live: list[NodeProto] = []
    for node in reversed(identities + walk.nodes):
        if needed.intersection(node.output):
            needed.update(node.input, captured(node))
            live.append(node)
    replace_nodes(graph, live[::-1])
    graph.ClearField("initializer")
    for name in sorted(needed & constants.keys()):
        add_initializer(graph, name, constants[name])


def _write_types(work: ModelProto, walk: TypePass) -> None:
    """Types of everything that nodes of the main graph make."""
    graph = work.graph
    for value in graph.output:
        if value.name in walk.types:
            value.type.CopyFrom(walk.types[value.name])
    made = [name for node in graph.node for name in node.output if name in walk.types and name not in walk.outputs]
    graph.value_info.extend(ValueInfoProto(name=name, type=walk.types[name]) for name in made)


def _write_names_and_imports(work: ModelProto) -> None:
    """Unique names of nodes, and the domains that they use."""
    name = Namer(node.name for node in nodes(work))
    seen: set[str] = set()
    for k, node in enumerate(nodes(work)):
        if not node.name or node.name in seen:
            node.name = name(node.name or f"{node.op_type}_{k}")
        seen.add(node.name)
    versions = {entry.domain: entry.version for entry in work.opset_import} | {"": BASE_OPSET}
    used = {node.domain for node in nodes(work)} | {""}
    work.ClearField("opset_import")
    work.opset_import.extend(helper.make_opsetid(*item) for item in versions.items() if item[0] in used)


def _write_weights(work: ModelProto, weights: Mapping[str, TensorProto]) -> None:
    """The weights that are used, in place of their stand-ins, which are the last inputs."""
    graph = work.graph
    used = {name for node in graph.node for name in (*node.input, *captured(node))}
    used.update(value.name for value in graph.output)
    del graph.input[len(graph.input) - len(weights) :]
    for name, tensor in weights.items():
        if name in used:
            add_initializer(graph, name, tensor)


def tensor_types(model: ModelProto, folder: Path | None = None) -> dict[str, TypeProto]:
    """The type of every tensor of an explainer, those inside of bodies included.

    `folder`: where external data lies, for a model loaded without weights. Raises ModelError as `normal_form`.
    """
    try:
        if folder is not None:
            model = with_small_tensors(model, folder)
        work, weights = _skeleton(model, {}, own_axes=True)
        hoist_constants(work.graph)
        sort(work.graph)
        walk = TypePass(work, {}, weights, _nothing)
        walk.run()
    except _BROKEN as error:
        raise ModelError(f"The model cannot be typed: {' '.join(str(error).split())}.") from error
    return walk.types
