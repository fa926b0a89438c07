"""The walk back: multipliers from the explained tensor to the attributed ones, node by node.

The only place where multipliers are accumulated over fan-out and summed back over broadcast axes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from onnxlift import registry
from onnxlift.errors import Unsupported
from onnxlift.flow import Flow, Problem, Step
from onnxlift.functions import where, widen
from onnxlift.plan import Plan
from onnxlift.reference import Runs
from onnxlift.site import Site, Value, unbroadcast
from onnxlift.tensor import Emitter, Tensor

Edge = tuple[Value, Tensor]
"""An input of a node and the multiplier that the node's rule gives it."""


class Walk:
    """Values and multipliers of the model's tensors, found from the top down.

    `problems`: the nodes whose rule refused them. `residuals`: what each node's rule fails to conserve, kept where
    `measure` asks for it.
    """

    def __init__(self, emitter: Emitter, flow: Flow, runs: Runs, plan: Plan, *, measure: bool = False) -> None:
        self.emitter = emitter
        self.flow = flow
        self.runs = runs
        self.plan = plan
        self.measure = measure
        self.problems: list[Problem] = []
        self.residuals: dict[str, Tensor] = {}
        self._values: dict[str, Value] = {}
        self._terms: dict[str, list[Tensor]] = {}
        self._totals: dict[str, Tensor] = {}
        self._named: set[int] = set()
        self._guarded = _selected_away(flow, plan)

    def back(self, seed: Tensor) -> None:
        """From the explained tensor, whose multiplier is `seed`, to the attributed ones."""
        self._terms[self.flow.target] = [self.value(self.flow.target).spread(seed)]
        for step in reversed(self.flow.steps):
            self._visit(step)
        for name in self.flow.sources:
            self.multiplier(name)

    def value(self, name: str) -> Value:
        """A tensor of the model at x and at r."""
        if name not in self._values:
            x = self.runs.at_x.get(name) or self.emitter.tensor(name)
            r = self.runs.at_r.get(name, x)
            self._values[name] = Value(name, x, r, name in self.flow.active, self.runs.pairing)
        return self._values[name]

    def multiplier(self, name: str) -> Tensor | None:
        """The multiplier of a tensor: the sum over its consumers (LIFTPAD eq. 4); None where nothing arrives.

        It is called `T/multiplier` after the first tensor T that it belongs to.
        """
        if name not in self._totals and name in self._terms:
            first, *others = self._terms[name]
            total = first
            for other in others:
                total = total + other
            total.shape = total.shape or first.shape
            self._totals[name] = total
            graph, wanted = self.emitter.graph, f"{name}/multiplier"
            if graph.is_computed(total.handle) and not self.is_named(total) and wanted not in graph.tensors:
                self._named.add(id(total))
                graph.rename(total.handle, wanted)
        return self._totals.get(name)

    def is_named(self, tensor: Tensor) -> bool:
        """Whether the tensor is called after one of the model."""
        return id(tensor) in self._named

    def _visit(self, step: Step) -> None:
        """One node: ask its rule, sum back what was broadcast, hand the terms on."""
        node, rule = step.node, self.plan.rule(step.node)
        outputs = [handle.name for handle in node.outputs]
        arrives = [name in self.flow.active and name not in self.flow.sources for name in outputs]
        multipliers = [self.multiplier(name) if here else None for name, here in zip(outputs, arrives, strict=True)]
        if rule is None or all(m is None for m in multipliers):
            return
        inputs = [self.value(handle.name) if handle.name else None for handle in node.inputs]
        site = Site(
            self.emitter,
            node.op,
            node.name,
            node.attrs,
            inputs,
            [self.value(name) if name else None for name in outputs],
            multipliers,
            [self.value(name) for name in step.roots],
        )
        try:
            edges = list(_edges(site, rule, guarded=node.name in self._guarded))
        except Unsupported as refusal:
            self.problems.append(Problem(node, f"rule {rule.name!r}: {refusal}"))
            return
        for value, m in edges:
            self._terms.setdefault(value.name, []).append(m)
        if self.measure:
            self.residuals[node.name] = _residual(site, edges)


def _selected_away(flow: Flow, plan: Plan) -> set[str]:
    """The elementwise nodes between the root of a data-dependent Where and its branches.

    In the branch that is not selected their values may be infinite, where exp(x) stands behind x < 0 say; the
    multiplier 0 must stay 0 there.
    """
    steps = {handle.name: step for step in flow.steps for handle in step.node.outputs}
    found: set[str] = set()
    for chooser in flow.steps:
        stack = [handle.name for handle in chooser.node.inputs[1:]] if chooser.roots else []
        while stack:
            step = steps.get(stack.pop())
            rule = plan.rule(step.node) if step else None
            if step is None or rule is None or step.node.name in found or not _is_elementwise(rule):
                continue
            found.add(step.node.name)
            stack += [handle.name for handle in step.node.inputs if handle.name not in chooser.roots]
    return found


def _is_elementwise(rule: registry.Rule) -> bool:
    return rule.broadcasts or rule.name == "rescale" or rule.op in ("Neg", "Identity", "Cast")


def _edges(site: Site, rule: registry.Rule, *, guarded: bool) -> Iterable[Edge]:
    for value, m in zip((*site.inputs, *site.roots), rule.multipliers(site), strict=False):
        if value is not None and m is not None and value.active:
            m = where(site.m.equals(0), 0.0, m) if guarded else m
            m = unbroadcast(m, site.y.shape, value) if rule.broadcasts else m
            m.shape = m.shape or value.shape
            yield value, m


def _residual(site: Site, edges: Sequence[Edge]) -> Tensor:
    """What a rule fails to conserve: sum(m_y dy) - sum(m_x dx), over all samples."""
    arrived = [
        _everything(m * value.d)
        for value, m in zip(site.outputs, site.multipliers, strict=True)
        if value is not None and m is not None
    ]
    passed_on = [-_everything(m * value.d) for value, m in edges]
    total, *others = arrived + passed_on
    for term in others:
        total = total + term
    return total


def _everything(tensor: Tensor) -> Tensor:
    """Sum over all elements, in float32 at least."""
    wide = widen(tensor)
    return wide.emitter.op("ReduceSum", wide, keepdims=0, shape=())
