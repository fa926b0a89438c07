"""Nodes of the model emitted again with other tensors in their place, the bodies of control flow included."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from onnxlift.flow import dependents, names, reads
from onnxlift.graph import Dim, Graph, Node, Shape
from onnxlift.ports import ports
from onnxlift.tensor import FLOAT32, Emitter, Tensor


@dataclass(frozen=True)
class Lead:
    """The leading extent of a run that differs from the model's: `batch` becomes `extent`.

    `everywhere`: the batch may be anywhere in the shapes, also inside of other symbols, so that no symbol can be kept.
    """

    batch: Dim
    extent: Dim
    everywhere: bool = False

    def shape(self, shape: Shape) -> Shape:
        if not shape:
            return shape
        if self.everywhere:
            return tuple(dim if isinstance(dim, int) else None for dim in shape)
        return (self.extent if shape[0] == self.batch else shape[0], *shape[1:])


def replay(
    emitter: Emitter,
    start: Mapping[str, Tensor],
    wanted: set[str],
    suffix: str,
    lead: Lead | None,
    base: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Emit again what depends on `start` and leads to `wanted`, with `start` in place of the model's tensors.

    A run with an extent of its own emits what depends on shapes again, unless `base` has it: what does not depend on
    `start` is taken from `base`, or from the model.
    """
    graph = emitter.graph
    moved = dependents(graph, start, through_shapes=lead is not None and base is None)
    nodes = [
        node
        for node in graph.nodes
        if not moved.isdisjoint(names(node.outputs)) and not wanted.isdisjoint(names(node.outputs))
    ]
    return emit_again(emitter, graph, nodes, start, suffix, lead, base)


def emit_again(
    emitter: Emitter,
    graph: Graph,
    nodes: Iterable[Node],
    start: Mapping[str, Tensor],
    suffix: str,
    lead: Lead | None = None,
    base: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Emit nodes of `graph` again, with the tensors of `start`, those emitted here, those of `base`, or the model's."""
    run = dict(start)

    def lookup(name: str) -> Tensor | None:
        if not name:
            return None
        if name in run:
            return run[name]
        return base[name] if base and name in base else emitter.tensor(name)

    for node in nodes:
        if all(name in run for name in names(node.outputs)):
            continue
        shapes: list[Shape] = [
            lead.shape(graph.shape(handle)) if lead else graph.shape(handle) for handle in node.outputs
        ]
        copies = emitter.ops(
            node.op,
            *(lookup(handle.name) for handle in node.inputs),
            shapes=shapes,
            dtypes=[graph.dtype(handle) or FLOAT32 for handle in node.outputs],
            domain=node.domain or "",
            names=[f"{handle.name}/{suffix}" if handle.name else "" for handle in node.outputs],
            **{**node.attrs, **_bodies_again(emitter, graph, node, {**(base or {}), **run}, suffix, lead)},
        )
        for handle, copy in zip(node.outputs, copies, strict=True):
            if handle.name and handle.name not in run:
                run[handle.name] = copy
    return run


def _bodies_again(
    emitter: Emitter, graph: Graph, node: Node, run: Mapping[str, Tensor], suffix: str, lead: Lead | None
) -> dict[str, Any]:
    """The bodies of a node, reading the tensors of `run`: new ones, because they may hold no two of a name."""
    found = {}
    for port in ports(graph, node):
        inner = emitter.inside()
        start = {name: inner.adopt(run[name]) for name in reads(node) if name in run}
        for handle in port.body.input_handles:
            shape = lead.shape(graph.shape(handle)) if lead else graph.shape(handle)
            made = inner.graph.add_body_input(f"{handle.name}/{suffix}", graph.dtype(handle), shape)
            start[handle.name] = inner.wrap(made)
        again = emit_again(inner, port.body, port.body.nodes, start, suffix, lead)
        outputs = [again.get(handle.name) or inner.tensor(handle.name) for handle in port.body.output_handles]
        found[port.attribute] = inner.finish(outputs)
    return found
