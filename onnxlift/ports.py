"""How the tensors inside of an If, Loop or Scan correspond to those outside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from onnxlift.graph import Graph, Handle, Node
from onnxlift.protobuf import CONTROL


@dataclass(frozen=True)
class Ports:
    """One body of a node, and what passes its borders. Pairs are (outside, inside), (inside, outside) for `leaves`.

    `attribute` holds the body. `states`: values that come back in the next iteration, at their start; `carried`: what
    comes back as what, from output to input. `slices`: a Scan's inputs, one slice per iteration. `leaves`: outputs;
    the first `len(states)` of a Loop or Scan are the states at the end, the others are stacked. `conditions`: what
    decides which body runs, or how often.
    """

    attribute: str
    body: Graph
    states: Sequence[tuple[Handle, Handle]]
    carried: Sequence[tuple[Handle, Handle]]
    slices: Sequence[tuple[Handle, Handle]]
    leaves: Sequence[tuple[Handle, Handle]]
    conditions: Sequence[Handle]

    @property
    def enters(self) -> list[tuple[Handle, Handle]]:
        """Whatever comes in by name: states at their start, and slices."""
        return [*self.states, *self.slices]


def is_control(node: Node) -> bool:
    """Whether the node runs other graphs."""
    return node.op in CONTROL and not node.domain


def ports(graph: Graph, node: Node) -> list[Ports]:
    """The bodies of a node: none of most, two of an If."""
    if not is_control(node):
        return []
    if node.op == "If":
        branches = {name: graph.body(node, name) for name in ("then_branch", "else_branch")}
        return [
            Ports(name, branch, [], [], [], _pairs(branch.output_handles, node.outputs), [node.inputs[0]])
            for name, branch in branches.items()
        ]
    body = graph.body(node, "body")
    made, taken = body.output_handles, body.input_handles
    if node.op == "Loop":
        states = _pairs(node.inputs[2:], taken[2:])
        carried = _pairs(made[1:], taken[2:])
        conditions = [handle for handle in node.inputs[:2] if handle.name]
        return [Ports("body", body, states, carried, [], _pairs(made[1:], node.outputs), [*conditions, made[0]])]
    first = len(node.inputs) - int(node.attrs["num_scan_inputs"])
    states, slices = _pairs(node.inputs[:first], taken[:first]), _pairs(node.inputs[first:], taken[first:])
    return [Ports("body", body, states, _pairs(made[:first], taken[:first]), slices, _pairs(made, node.outputs), [])]


def per_slice(node: Node, attribute: str, count: int) -> list[int]:
    """The axes or directions of `count` slices of a Scan: 0 where the attribute is left out."""
    return node.attrs.get(attribute) or [0] * count


def order_of_states(node: Node, port: Ports) -> int:
    """The direction in which states are stacked: that of the slices, which they meet, where outputs have one at all."""
    backwards = all(per_slice(node, "scan_input_directions", len(port.slices)))
    return int(backwards and "scan_output_directions" in node.attrs)


def _pairs(a: Sequence[Handle], b: Sequence[Handle]) -> list[tuple[Handle, Handle]]:
    return list(zip(a, b, strict=False))


def all_nodes(graph: Graph) -> Iterator[Node]:
    """The nodes of a graph, those inside of bodies behind the one that runs them."""
    for node in graph.nodes:
        yield node
        for port in ports(graph, node):
            yield from all_nodes(port.body)
