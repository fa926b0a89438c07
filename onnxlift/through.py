"""Multipliers through If, Loop and Scan (METHOD section 10).

A body is rewritten like a graph: it is computed at x and at r, and the rules of its nodes lead back through it. The
states with which the iterations of a Loop or Scan begin are stacked while the model runs; the way back is one iteration
at a time, from the last to the first, and carries the multipliers of the states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onnxlift.flow import Flow, Step, dependents, names, reads
from onnxlift.functions import expand, minimum, reshape, shape_of
from onnxlift.graph import Graph, Handle, Node
from onnxlift.ports import Ports, per_slice, ports
from onnxlift.reference import Runs
from onnxlift.replay import emit_again
from onnxlift.site import Pairing, Value
from onnxlift.tensor import BOOL, INT64, Emitter, Tensor

if TYPE_CHECKING:
    from onnxlift.walk import Walk

STACKED = "states"
"""`T/states`: the values of the state T at the start of every iteration, stacked in front."""


def stack_states(graph: Graph, flow: Flow) -> None:
    """Give every Loop and Scan on the way one more output for each of its states, the states of all iterations."""
    for step in flow.steps:
        for port in ports(graph, step.node) if step.flows else ():
            for _, taken in port.states:
                _stack(port, step.node, taken)
            if step.node.op == "Loop":
                _stack(port, step.node, port.body.input_handles[0])  # for how often it ran
        for port, inner in zip(ports(graph, step.node), step.flows, strict=False):
            stack_states(port.body, inner)


def _stack(port: Ports, node: Node, state: Handle) -> None:
    body, dtype, shape = port.body, Graph.dtype(state), Graph.shape(state)
    assert dtype is not None
    copy = body.variable(f"{state.name}/{STACKED}/one", dtype, shape)
    body.node("Identity", [state], [copy], {}, name=copy.name)
    body.add_output(copy)
    node.outputs.append(body.variable(f"{state.name}/{STACKED}", dtype, None if shape is None else (None, *shape)))
    for attribute in ("scan_output_axes", "scan_output_directions"):
        if attribute in node.attrs:
            node.attrs[attribute] = [*node.attrs[attribute], 0]


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
            arrived = _walk_inside(self.walk, self.step, port, flow, inner, {}, {}, seeds)
            found = [arrived(name) or _zeros(inner, self.walk.value(name)) for name in self.step.roots]
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
        return _Reversed(self).run()


def _walk_inside(
    walk: Walk,
    step: Step,
    port: Ports,
    flow: Flow,
    emitter: Emitter,
    at_x: Mapping[str, Tensor],
    at_r: Mapping[str, Tensor],
    seeds: Mapping[str, Tensor],
) -> Callable[[str], Tensor | None]:
    """Compute a body at x and at r, in a body of the explainer, and walk back through it.

    `at_x`, `at_r`: the inputs of the body; `seeds`: the multipliers of its outputs. Returns the multipliers of what it
    reads, by name; None where nothing arrives.
    """
    # a mask that is made outside leads back to a tensor that the body itself need not read
    outside = [walk.value(name) for name in dict.fromkeys((*reads(step.node), *step.roots))]
    start_x = {value.name: emitter.adopt(value.x) for value in outside} | dict(at_x)
    start_r = {value.name: emitter.adopt(value.r) for value in outside if value.r is not value.x} | dict(at_r)
    run_x = emit_again(emitter, port.body, port.body.nodes, start_x, "x")
    moved = dependents(port.body, start_r)
    nodes = [inner for inner in port.body.nodes if not moved.isdisjoint(names(inner.outputs))]
    run_r = emit_again(emitter, port.body, nodes, start_r, "r", base=run_x)
    inner = walk.inside(emitter, flow, Runs(run_x, run_r, Pairing()))
    inner.back(seeds)
    walk.problems += inner.problems

    def multiplier(name: str) -> Tensor | None:
        m = inner.multiplier(name) if name in flow.sources else None
        return None if m is None else m.mean

    return multiplier


def _zeros(emitter: Emitter, of: Value) -> Tensor:
    """No multiplier, in the shape of a tensor from outside."""
    nothing = expand(emitter.constant(0, of.dtype), shape_of(emitter.adopt(of.x)))
    nothing.shape = of.shape
    return nothing


class _Reversed:
    """A Loop or Scan turned around."""

    def __init__(self, through: Through) -> None:
        self.walk, self.node, self.step = through.walk, through.node, through.step
        self.multipliers = through.multipliers
        (self.port,), (self.flow,) = through.ports, through.step.flows
        self.outer = through.walk.emitter
        self.emitter = self.outer.inside()
        self.initial: list[Tensor] = []  # of what the way back carries
        self.scanned: list[tuple[Tensor, Tensor, int, int]] = []  # whole, slice, axis, direction

    def run(self) -> list[Tensor | None]:
        port, value = self.port, self.walk.value
        count = len(port.states)
        loop = self.node.op == "Loop"
        steps = self._steps() if loop else None
        index = None
        if steps is not None:
            scalar = self.emitter.graph.add_body_input("iteration", INT64, ())
            self.emitter.graph.add_body_input("go_on", BOOL, ())
            forward = self.emitter.wrap(scalar)
            last = self.emitter.adopt(steps) - 1
            index = last - forward
        self.index = index

        seeds: dict[str, Tensor] = {}
        states = []
        for k, (outside, taken) in enumerate(port.states):
            made = port.carried[k][0]
            if made.name in self.flow.targets or taken.name in self.flow.active:
                start = value(outside.name)
                m = self._carry(self.multipliers[k], start)
                states.append((k, m, start))
                if made.name in self.flow.targets:
                    seeds[made.name] = m
        captured = [value(name) for name in self.step.roots]
        sums = [self._carry(None, of) for of in captured]

        at_x, at_r = self._body_inputs()
        for k, (leaf, _) in enumerate(port.leaves[count:], start=count):
            stacked = self.multipliers[k]
            if stacked is not None and leaf.name in self.flow.targets:
                axis, direction = self._scan_output(k - count)
                one = self._slice(stacked, axis, 1 - direction)
                seeds[leaf.name] = seeds[leaf.name] + one if leaf.name in seeds else one
        arrived = _walk_inside(self.walk, self.step, port, self.flow, self.emitter, at_x, at_r, seeds)

        outputs = [arrived(port.states[k][1].name) or _zeros(self.emitter, start) for k, _, start in states]
        for total, of in zip(sums, captured, strict=True):
            more = arrived(of.name)
            outputs.append(total if more is None else total + more)
        slices = []
        for k, (outside, taken) in enumerate(port.slices):
            if (m_slice := arrived(taken.name)) is not None:
                slices.append((k, outside, m_slice))
        results = self._emit(outputs, [m for _, _, m in slices], [k for k, _, _ in slices], steps)
        found: list[Tensor | None] = [None] * len(self.node.inputs)
        first = len(self.node.inputs) - len(port.slices) - count
        for (k, _, start), m in zip(states, results, strict=False):
            if start.active:
                found[first + k] = start.like(m)
        rest = results[len(states) :]
        for (k, outside, _), m in zip(slices, rest[len(captured) :], strict=True):
            m.shape = value(outside.name).shape
            found[first + count + k] = m
        return [*found, *rest[: len(captured)]]

    def _steps(self) -> Tensor:
        """How many iterations x and r have in common, an int64 scalar."""
        value = self.walk.value(self.node.outputs[-1].name)
        steps = reshape(shape_of(value.x, 0, 1), [])
        return steps if value.r is value.x else minimum(steps, reshape(shape_of(value.r, 0, 1), []))

    def _carry(self, start: Tensor | None, of: Value) -> Tensor:
        """A state of the way back: the multiplier of a tensor, which begins at `start` or at 0."""
        first = start if start is not None else of.zeros()
        self.initial.append(first)
        made = self.emitter.graph.add_body_input("multiplier", of.dtype, of.shape)
        return self.emitter.wrap(made)

    def _body_inputs(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The inputs of the forward body in the iteration that the way back is at, at x and at r."""
        node, port = self.node, self.port
        at_x: dict[str, Tensor] = {}
        at_r: dict[str, Tensor] = {}
        behind = len(node.outputs) - (node.op == "Loop")
        stacked = node.outputs[behind - len(port.states) : behind]
        for handle, (_, taken) in zip(stacked, port.states, strict=True):
            self._both(at_x, at_r, taken, handle.name, 0, 1)
        axes = per_slice(node, "scan_input_axes", len(port.slices))
        directions = per_slice(node, "scan_input_directions", len(port.slices))
        for (outside, taken), axis, direction in zip(port.slices, axes, directions, strict=True):
            self._both(at_x, at_r, taken, outside.name, axis, 1 - direction)
        if self.index is not None:
            number, condition = port.body.input_handles[:2]
            at_x[number.name] = reshape(self.index, [1] * len(Graph.shape(number) or ()))
            at_x[condition.name] = self.emitter.constant([True] if Graph.shape(condition) else True, BOOL)
        return at_x, at_r

    def _both(
        self, at_x: dict[str, Tensor], at_r: dict[str, Tensor], taken: Handle, name: str, axis: int, direction: int
    ) -> None:
        value = self.walk.value(name)
        at_x[taken.name] = self._slice(value.x, axis, direction)
        if value.r is not value.x:
            at_r[taken.name] = self._slice(value.full_r, axis, direction)

    def _slice(self, whole: Tensor, axis: int, direction: int) -> Tensor:
        """What the iteration sees of a stacked tensor."""
        one = None if whole.shape is None else tuple(d for k, d in enumerate(whole.shape) if k != axis % whole.rank)
        if self.index is not None:
            stack = self.emitter.adopt(whole)
            return self.emitter.op("Gather", stack, self.index, axis=0, shape=one, dtype=whole.dtype)
        made = self.emitter.wrap(self.emitter.graph.add_body_input("slice", whole.dtype, one))
        self.scanned.append((whole, made, axis, direction))
        return made

    def _scan_output(self, index: int) -> tuple[int, int]:
        attributes = [self.node.attrs.get(name) for name in ("scan_output_axes", "scan_output_directions")]
        axis, direction = (values[index] if values else 0 for values in attributes)
        return axis, direction

    def _emit(
        self, carried: Sequence[Tensor], slices: Sequence[Tensor], places: Sequence[int], steps: Tensor | None
    ) -> list[Tensor]:
        shapes = [tensor.shape for tensor in self.initial]
        dtypes = [tensor.dtype for tensor in (*self.initial, *slices)]
        if steps is not None:
            body = self.emitter.finish([self.emitter.constant(True, BOOL), *carried, *slices])
            always = self.outer.constant(True, BOOL)
            return list(self.outer.ops("Loop", steps, always, *self.initial, shapes=shapes, dtypes=dtypes, body=body))
        body = self.emitter.finish([*carried, *slices])
        slots = [made.name for _, made, _, _ in self.scanned]
        gone = set(self.emitter.graph.drop_unread_inputs(slots[1:]))  # a Scan needs one
        scanned = [item for item in self.scanned if item[1].name not in gone]
        axes = per_slice(self.node, "scan_input_axes", len(self.port.slices))
        directions = per_slice(self.node, "scan_input_directions", len(self.port.slices))
        return list(
            self.outer.ops(
                "Scan",
                *self.initial,
                *(whole for whole, _, _, _ in scanned),
                shapes=[*shapes, *(None for _ in slices)],
                dtypes=dtypes,
                body=body,
                num_scan_inputs=len(scanned),
                scan_input_axes=[axis for _, _, axis, _ in scanned],
                scan_input_directions=[direction for _, _, _, direction in scanned],
                scan_output_axes=[axes[k] for k in places] or None,
                scan_output_directions=[1 - directions[k] for k in places] or None,
            )
        )
