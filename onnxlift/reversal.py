"""The way back through the iterations of a Loop or Scan, and through one body.

Both become a Scan from the last iteration to the first, which carries the multipliers of the states. All that does not
wait for these is computed in front of it (`staged.py`); what only adds up, behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxlift.flow import Flow, Step, dependents, names, reads
from onnxlift.functions import (
    arange,
    cast,
    expand,
    minimum,
    reduce_sum,
    reshape,
    scatter_add,
    shape_of,
    slice_axis,
    squeeze,
    widen,
)
from onnxlift.graph import Graph, Handle
from onnxlift.ports import Ports, order_of_states, per_slice, ports
from onnxlift.reference import Runs
from onnxlift.replay import emit_again
from onnxlift.site import Pairing, Value
from onnxlift.staged import Stack, Staged, restacked
from onnxlift.tensor import BOOL, Emitter, Tensor

if TYPE_CHECKING:
    from onnxlift.walk import Walk


def walk_inside(
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


def no_multiplier(emitter: Emitter, of: Value) -> Tensor:
    """No multiplier, in the shape of a tensor from outside."""
    nothing = expand(emitter.constant(0, of.dtype), shape_of(emitter.adopt(of.x)))
    nothing.shape = of.shape
    return nothing


@dataclass(eq=False)
class Carried:
    """A multiplier that an iteration hands to the one before.

    `of`: the value that it belongs to; `start`: what it is behind the last iteration; `inside`: the input of the body;
    `after`: what the iteration makes of it; None where it need not be carried.
    """

    of: Value
    start: Tensor
    inside: Tensor
    after: Tensor | None = None


class Reversal:
    """A Loop or Scan turned around; `multipliers` are those of its outputs.

    ONNX Runtime's Scan needs an iteration, and the stacks of a Loop that has none have no shapes, so that the way back
    through a Loop is the branch of an If.
    """

    def __init__(self, walk: Walk, step: Step, multipliers: Sequence[Tensor | None]) -> None:
        self.walk, self.node, self.step = walk, step.node, step
        self.multipliers = multipliers
        (self.port,), (self.flow,) = ports(walk.emitter.graph, step.node), step.flows
        self.loop = self.node.op == "Loop"
        self.axes = per_slice(self.node, "scan_input_axes", len(self.port.slices))
        self.directions = per_slice(self.node, "scan_input_directions", len(self.port.slices))
        self.order = order_of_states(self.node, self.port)
        self.outer = walk.emitter.inside() if self.loop else walk.emitter
        self.steps = self._steps()
        self.emitter = Staged(self.outer, self.outer.adopt(self.steps), self.order)
        self.carried: list[Carried] = []
        self.stacked: list[tuple[Tensor, int, int]] = []  # what the Scan stacks, along which axis, in which direction
        self.made: list[Tensor] = []  # its outputs

    def run(self) -> list[Tensor | None]:
        """The multipliers of the inputs, and of what the body reads from outside."""
        port, value = self.port, self.walk.value
        count = len(port.states)
        seeds: dict[str, Tensor] = {}
        states: dict[int, Carried] = {}
        for k, ((outside, taken), (made, _)) in enumerate(zip(port.states, port.carried, strict=True)):
            if made.name in self.flow.targets or taken.name in self.flow.active:
                states[k] = self._carry(value(outside.name), self.multipliers[k])
                if made.name in self.flow.targets:
                    seeds[made.name] = states[k].inside
        totals = [self._carry(value(name), None) for name in self.step.roots]
        at_x, at_r = self._body_inputs()
        for k, (leaf, _) in enumerate(port.leaves[count:], start=count):
            stacked = self.multipliers[k]
            if stacked is not None and leaf.name in self.flow.targets:
                one = self._slice(stacked, *self._scan_output(k - count))
                seeds[leaf.name] = seeds[leaf.name] + one if leaf.name in seeds else one
        arrived = walk_inside(self.walk, self.step, port, self.flow, self.emitter, at_x, at_r, seeds)

        for k, state in states.items():
            state.after = arrived(port.states[k][1].name) or no_multiplier(self.emitter, state.of)
        sums = [self._sum(total, arrived(total.of.name)) for total in totals]
        slices = {
            k: self._whole(m, self.axes[k], self.directions[k])
            for k, (_, taken) in enumerate(port.slices)
            if (m := arrived(taken.name)) is not None
        }
        self._emit()
        ends = [*(self._end(state) for state in states.values()), *(total() for total in sums)]
        if self.loop:
            ends = self._if_it_ran(ends, [*states.values(), *totals])
        results: list[Tensor | None] = [None] * len(self.node.inputs)
        first = len(results) - len(port.slices) - count
        for (k, state), m in zip(states.items(), ends, strict=False):
            if state.of.active:
                results[first + k] = state.of.like(m)
        for k, whole in slices.items():
            m = whole()
            m.shape = value(port.slices[k][0].name).shape
            results[first + count + k] = m
        return [*results, *ends[len(states) :]]

    def _steps(self) -> Tensor:
        """How many iterations x and r have in common, int64, [1]."""
        if self.loop:
            value = self.walk.value(self.node.outputs[-1].name)
            steps = shape_of(value.x, 0, 1)
            return minimum(steps, shape_of(value.r, 0, 1)) if self._may_differ() else steps
        whole = self.walk.value(self.port.slices[0][0].name).x
        axis = self.axes[0] % whole.rank
        return shape_of(whole, axis, axis + 1)

    def _may_differ(self) -> bool:
        """Whether x and r may take different numbers of iterations."""
        return not self.walk.flow.dependent.isdisjoint(names(self.port.conditions))

    # --- what comes in ------------------------------------------------------------------------------------------------

    def _carry(self, of: Value, start: Tensor | None) -> Carried:
        """The multiplier of a tensor, which begins at `start` or at 0."""
        inside = self.emitter.carry("multiplier", of.dtype, of.shape)
        self.carried.append(Carried(of, of.zeros() if start is None else start, inside))
        return self.carried[-1]

    def _body_inputs(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The inputs of the forward body in the iteration that the way back is at, at x and at r, and its products."""
        port = self.port
        at_x: dict[str, Tensor] = {}
        at_r: dict[str, Tensor] = {}
        for copy, stacked in port.leaves[: len(port.leaves) - self.loop]:
            if stacked.name not in self.outer.graph.own:
                self._both(at_x, at_r, copy.inputs[0].inputs[0], stacked.name, 0, self.order)
        for (outside, taken), axis, direction in zip(port.slices, self.axes, self.directions, strict=True):
            self._both(at_x, at_r, taken, outside.name, axis, direction)
        if self.loop:
            number, condition = port.body.input_handles[:2]
            index = self._slice(arange(self.steps), 0, 0)
            at_x[number.name] = reshape(index, [1] * len(Graph.shape(number) or ()))
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
        inside = self.outer.adopt(whole)
        if self.loop and self._may_differ():
            inside = slice_axis(inside, 0, 0, self.outer.adopt(self.steps))
        return self.emitter.slice(Stack(inside, axis, direction))

    def _scan_output(self, index: int) -> tuple[int, int]:
        attributes = [self.node.attrs.get(name) for name in ("scan_output_axes", "scan_output_directions")]
        axis, direction = (values[index] if values else 0 for values in attributes)
        return axis, direction

    # --- what comes out: functions, because most of it waits for the Scan ---------------------------------------------

    def _end(self, carried: Carried) -> Tensor:
        """What has been carried through all iterations."""
        return self.made[[one for one in self.carried if one.after is not None].index(carried)]

    def _sum(self, total: Carried, more: Tensor | None) -> Callable[[], Tensor]:
        """The multiplier of what the body reads from outside: the sum of `more` over the iterations."""
        if more is None:
            return lambda: total.start
        whole = self.emitter.whole(more)
        if whole is not None:
            return lambda: cast(reduce_sum(widen(whole), [0], keepdims=False), total.of.dtype)
        scattered = self.emitter.scattered(more)
        if scattered is None:
            total.after = total.inside + more
            return lambda: self._end(total)
        onto, places, values = scattered
        stacked = self._stacked(values, 0, self.order)

        def add_up() -> Tensor:
            found = scatter_add(onto, reshape(places, [-1]), reshape(stacked(), [-1]), axis=0)
            return cast(total.of.like(found), total.of.dtype)

        return add_up

    def _whole(self, m: Tensor, axis: int, direction: int) -> Callable[[], Tensor]:
        """The multiplier of what is sliced, of whose slices `m` is that."""
        whole = self.emitter.whole(m)
        if whole is None:
            return self._stacked(m, axis, direction)
        return lambda: restacked(Stack(whole, 0, self.order), axis, direction)

    def _stacked(self, tensor: Tensor, axis: int, direction: int) -> Callable[[], Tensor]:
        """One more output of the Scan, the `tensor` of all iterations."""
        self.stacked.append((tensor, axis, 1 - direction))
        behind = len(self.stacked)
        return lambda: self.made[len(self.made) - len(self.stacked) + behind - 1]

    def _emit(self) -> None:
        """Write the Scan."""
        carried = [one for one in self.carried if one.after is not None]
        idle = [one.inside.name for one in self.carried if one.after is None]
        outputs = [*(one.after for one in carried if one.after is not None), *(tensor for tensor, _, _ in self.stacked)]
        if not outputs:
            return
        body = self.emitter.finish(outputs)
        scanned = self.emitter.needed_slices(idle)
        self.made = list(
            self.outer.ops(
                "Scan",
                *(one.start for one in carried),
                *(stack.whole for stack in scanned),
                shapes=[*(one.start.shape for one in carried), *(None for _ in self.stacked)],
                dtypes=[tensor.dtype for tensor in outputs],
                body=body,
                num_scan_inputs=len(scanned),
                scan_input_axes=[stack.axis for stack in scanned],
                scan_input_directions=[1 - stack.direction for stack in scanned],
                scan_output_axes=[axis for _, axis, _ in self.stacked] or None,
                scan_output_directions=[direction for _, _, direction in self.stacked] or None,
            )
        )

    def _if_it_ran(self, ends: Sequence[Tensor], carried: Sequence[Carried]) -> list[Tensor]:
        """What the way back through a Loop ends with: what it began with, if there was no iteration."""
        emitter = self.walk.emitter
        idle = emitter.inside()
        made = emitter.ops(
            "If",
            squeeze(self.steps, [0]) > 0,
            shapes=[one.start.shape for one in carried],
            dtypes=[tensor.dtype for tensor in ends],
            then_branch=self.outer.finish(ends),
            else_branch=idle.finish([idle.adopt(one.start) for one in carried]),
        )
        return list(made)
