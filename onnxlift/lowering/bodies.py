"""The function bodies of standard operators, in place of nodes for which there is no rule."""

from __future__ import annotations

import onnx
from onnx import AttributeProto, FunctionProto, NodeProto

from onnxlift.opset import BASE_OPSET, add_defaults
from onnxlift.protobuf import nested
from onnxlift.shapes import TypePass


def expand(node: NodeProto, types: TypePass) -> bool:
    """Visit the nodes of the operator's function body instead of the node; False where it has none."""
    function = _function(node, types)
    if function is None:
        return False
    given = {attribute.name: attribute for attribute in function.attribute_proto}
    given |= {attribute.name: attribute for attribute in node.attribute}
    names = dict(zip(function.input, node.input, strict=False))
    names |= dict.fromkeys(function.input[len(node.input) :], "")
    names |= dict(zip(function.output, node.output, strict=False))
    for inner in function.node:
        copy = NodeProto()
        copy.CopyFrom(inner)
        _rename(copy, names, node.output[0], types)
        _give(copy, given)
        types.visit(copy)
    return True


def _function(node: NodeProto, types: TypePass) -> FunctionProto | None:
    """The body, with the defaults of the attributes that the node leaves out."""
    try:
        schema = onnx.defs.get_schema(node.op_type, BASE_OPSET, "")
    except onnx.defs.SchemaError:
        return None
    complete = NodeProto()
    complete.CopyFrom(node)
    add_defaults(complete, schema)
    body = FunctionProto()
    if schema.has_context_dependent_function:  # type: ignore[attr-defined]
        inputs = [types.types.get(name, onnx.TypeProto()).SerializeToString() for name in node.input]
        version = max(v for v in schema.context_dependent_function_opset_versions if v <= BASE_OPSET)  # type: ignore[attr-defined]
        body.ParseFromString(
            schema.get_context_dependent_function_with_opset_version(version, complete.SerializeToString(), inputs)  # type: ignore[attr-defined]
        )
    elif schema.has_function:  # type: ignore[attr-defined]
        version = max(v for v in schema.function_opset_versions if v <= BASE_OPSET)  # type: ignore[attr-defined]
        body.ParseFromString(schema.get_function_with_opset_version(version))  # type: ignore[attr-defined]
    else:
        return None
    if not body.node:
        return None
    body.attribute_proto.extend(complete.attribute)
    return body


def _rename(node: NodeProto, names: dict[str, str], origin: str, types: TypePass) -> None:
    """Tensors of the body get names of their own, its inputs and outputs those of the node."""
    for graph in nested([node]):
        for inner in graph.node:
            inner.input[:] = [names.get(name, name) for name in inner.input]
    node.input[:] = [names[name] if name else "" for name in node.input]
    for name in node.output:
        if name and name not in names:
            names[name] = types.name(f"{origin}/{name}")
    node.output[:] = [names[name] if name else "" for name in node.output]
    node.name = node.output[0]


def _give(node: NodeProto, given: dict[str, AttributeProto]) -> None:
    """Attributes that refer to those of the function get their values, or vanish where it has none."""
    kept = []
    for attribute in node.attribute:
        source = attribute.ref_attr_name
        if not source:
            kept.append(attribute)
        elif source in given:
            value = AttributeProto()
            value.CopyFrom(given[source])
            value.name = attribute.name
            kept.append(value)
    copies = [AttributeProto() for _ in kept]
    for copy, attribute in zip(copies, kept, strict=True):
        copy.CopyFrom(attribute)
    node.ClearField("attribute")
    node.attribute.extend(copies)
