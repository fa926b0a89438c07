"""Multipliers through If, Loop and Scan (METHOD section 10).

A body is rewritten like a graph: it is computed at x and at r, and the rules of its nodes lead back through it. The
states with which the iterations of a Loop or Scan begin are stacked while the model runs, and so are their products;
the way back is one iteration at a time, from the last to the first, and carries the multipliers of the states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onnxlift.flow import Flow, Step, dependents
from onnxlift.graph import Graph, Handle, Node
from onnxlift.ports import Ports, order_of_states, ports
from onnxlift.reversal import Reversal, no_multiplier, walk_inside
from onnxlift.tensor import Tensor

if TYPE_CHECKING:
    from onnxlift.walk import Walk

STACKED = "states"
"""`T/states`: the values of the state T at the start of every iteration, stacked in front; and those of products."""

PRODUCTS = frozenset(("MatMul", "Gemm", "Conv", "ConvTranspose"))
"""What takes longer to compute again than to keep."""


def stack_states(graph: Graph, flow: Flow) -> None:
    """Give every Loop and Scan on the way more outputs: the states, and the products, of all iterations."""
    for step in flow.steps:
        for port in ports(graph, step.node) if step.flows else ():
            for _, taken in port.states:
                _stack(port, step.node, taken)
            for product in _products(port):
                _stack(port, step.node, product)
            if step.node.op == "Loop":
                _stack(port, step.node, port.body.input_handles[0])  # for how often it ran
        for port, inner in zip(ports(graph, step.node), step.flows, strict=False):
            stack_states(port.body, inner)


def _products(port: Ports) -> list[Handle]:
    """What the iterations compute as products, with what is added to each: ONNX Runtime does both in one step.

    A product whose extents may change from one iteration to the next cannot be stacked.
    """
    varying = dependents(port.body, [inner.name for _, inner in port.enters])
    fixed = {dim for _, inner in port.enters for dim in Graph.shape(inner) or ()}
    inside = {id(node) for node in port.body.nodes}
    ends = {handle.name for handle in port.body.output_handles}
    found = {}
    for node in port.body.nodes if port.attribute == "body" else ():
        product = node.outputs[0]
        shape = Graph.shape(product)
        known = shape is not None and all(isinstance(dim, int) or (dim and dim in fixed) for dim in shape)
        if node.op not in PRODUCTS or node.domain or product.name not in varying or not known:
            continue
        while product.name not in ends and len(product.outputs) == 1:
            (reader,) = product.outputs
            if reader.op != "Add" or id(reader) not in inside or Graph.shape(reader.outputs[0]) != shape:
                break
            product = reader.outputs[0]
        found[product.name] = product
    return list(found.values())


def _stack(port: Ports, node: Node, one: Handle) -> None:
    body, dtype, shape = port.body, Graph.dtype(one), Graph.shape(one)
    assert dtype is not None
    copy = body.variable(f"{one.name}/{STACKED}/one", dtype, shape)
    body.node("Identity", [one], [copy], {}, name=copy.name)
    body.add_output(copy)
    node.outputs.append(body.variable(f"{one.name}/{STACKED}", dtype, None if shape is None else (None, *shape)))
    for attribute, added in (("scan_output_axes", 0), ("scan_output_directions", order_of_states(node, port))):
        if attribute in node.attrs:
            node.attrs[attribute] = [*node.attrs[attribute], added]


class Through:
    """The way back through the bodies of one node, whose outputs have these `multipliers`."""

    def __init__(self, walk: Walk, step: Step, multipliers: Sequence[Tensor | None]) -> None:
        self.walk = walk
        self.step = step
        self.node = step.node
        self.multipliers = multipliers
        self.ports = ports(walk.emitter.graph, step.node)

    def branches(self) -> list[Tensor | None]:
        """Of an If: both branches are led back through, and that which x takes is run.

        Returns the multipliers of the inputs, and of what the branches read.
        """
        bodies: dict[str, Any] = {}
        for port, flow in zip(self.ports, self.step.flows, strict=True):
            inner = self.walk.emitter.inside()
            seeds = {
                leaf.name: inner.adopt(m)
                for (leaf, _), m in zip(port.leaves, self.multipliers, strict=True)
                if m is not None and leaf.name in flow.targets
            }
            arrived = walk_inside(self.walk, self.step, port, flow, inner, {}, {}, seeds)
            found = [arrived(name) or no_multiplier(inner, self.walk.value(name)) for name in self.step.roots]
            bodies[port.attribute] = inner.finish(found)
        values = [self.walk.value(name) for name in self.step.roots]
        condition = self.walk.value(self.node.inputs[0].name).x
        made = self.walk.emitter.ops(
            "If", condition, shapes=[v.shape for v in values], dtypes=[v.dtype for v in values], **bodies
        )
        return [None, *made]

    def iterations(self) -> list[Tensor | None]:
        """Of a Loop or Scan: one iteration at a time, from the last to the first.

        Returns the multipliers of the inputs, and of what the body reads from outside.
        """
        return Reversal(self.walk, self.step, self.multipliers).run()
