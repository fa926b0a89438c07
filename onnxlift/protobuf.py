"""Small helpers on ONNX's protobuf messages that several modules share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

SMALL = 4096
"""Constants up to this many elements (axes, shapes, exponents) may be looked at and computed with; bigger ones are
weights and only passed along, so that time follows the number of nodes."""

CONTROL = ("If", "Loop", "Scan")
"""Operators that run other graphs."""


class Namer:
    """Makes names that are not taken: `base`, `base_2`, `base_3` ..."""

    def __init__(self, taken: Iterable[str]) -> None:
        self.taken = set(taken)
        self._count: Counter[str] = Counter()  # so that the thousandth `base` is found as fast as the first

    def __call__(self, base: str) -> str:
        name = base
        while name in self.taken:
            self._count[base] += 1
            name = f"{base}_{self._count[base] + 1}"
        self.taken.add(name)
        return name


def opset(model: ModelProto) -> int:
    """The version of ai.onnx; 0 for a model that uses other domains only."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Every node of the graph and of local functions, those of subgraphs included."""
    for body in (model.graph, *model.functions):
        yield from body.node
        for graph in nested(body.node):
            yield from graph.node


def nested(parents: Iterable[NodeProto]) -> Iterator[GraphProto]:
    """The subgraphs of these nodes, at any depth."""
    for node in parents:
        for graph in subgraphs(node):
            yield graph
            yield from nested(graph.node)


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The bodies of an If, Loop or Scan."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def captured(node: NodeProto) -> list[str]:
    """Names that the node's subgraphs use from outside: inputs of the node in all but form."""
    result = []
    for graph in subgraphs(node):
        own = {item.name for item in (*graph.input, *graph.initializer)}
        own.update(sparse.values.name for sparse in graph.sparse_initializer)
        own.update(name for inner in graph.node for name in inner.output)
        used = [name for inner in graph.node for name in (*inner.input, *captured(inner))]
        used += [value.name for value in graph.output]
        result += [name for name in used if name and name not in own]
    return result


def all_names(graph: GraphProto) -> set[str]:
    """Names of the tensors of a graph and of those inside of it."""
    graphs = (graph, *nested(graph.node))
    names = {name for each in graphs for node in each.node for name in (*node.input, *node.output)}
    return names | {item.name for each in graphs for item in (*each.input, *each.output, *each.initializer)}


def replace_nodes(graph: GraphProto, kept: Sequence[NodeProto]) -> None:
    """Makes `kept`, which may be nodes of this very graph, its only nodes."""
    copies = GraphProto(node=kept)
    graph.ClearField("node")
    graph.node.extend(copies.node)


def forget_types(model: ModelProto) -> None:
    """Drops every value_info: that of exporters is often wrong, that of onnx's passes stale."""
    for graph in (model.graph, *nested(model.graph.node)):
        del graph.value_info[:]


def add_initializer(graph: GraphProto, name: str, tensor: TensorProto) -> None:
    """Adds a copy of the tensor under this name, which need not be its own."""
    graph.initializer.append(tensor)
    graph.initializer[-1].name = name


def copy_documentation(source: ModelProto, target: ModelProto) -> None:
    """Gives `target` what `source` says of itself, which onnx's passes and GraphSurgeon drop."""
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        if source.HasField(field):
            setattr(target, field, getattr(source, field))
    target.metadata_props.extend(source.metadata_props)
    target.graph.name, target.graph.doc_string = source.graph.name or "graph", source.graph.doc_string
    target.graph.metadata_props.extend(source.graph.metadata_props)


def is_external(tensor: TensorProto) -> bool:
    """Whether the data lies in another file."""
    return tensor.data_location == TensorProto.EXTERNAL


def is_small(tensor: TensorProto) -> bool:
    """Whether it has at most SMALL elements."""
    return bool(math.prod(tensor.dims) <= SMALL)


def integer_attribute(node: NodeProto, name: str, default: int) -> int:
    """The value of an integer attribute that may be left out."""
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def where(node: NodeProto) -> str:
    """The node, for messages."""
    made = f"A node {node.op_type} that makes {list(node.output)}"
    return f"Node '{node.name}' ({node.op_type})" if node.name else made
