"""The walk back: multipliers from the explained tensor to the attributed ones, node by node.

The only place where multipliers are accumulated over fan-out and summed back over broadcast axes, and where signed
parts are carried forward to the rules that ask for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce

from onnxlift import registry
from onnxlift.chooser import Chooser
from onnxlift.errors import Unsupported
from onnxlift.flow import Flow, Problem, Step, names
from onnxlift.functions import cast, logical_and, where, widen
from onnxlift.graph import Graph, Handle
from onnxlift.reference import Runs
from onnxlift.signed import Multiplier
from onnxlift.site import Site, Value, unbroadcast
from onnxlift.tensor import Emitter, Tensor
from onnxlift.through import Through

Edge = tuple[Value, Multiplier]
"""An input of a node and the multiplier that the node's rule gives it."""


class Values:
    """The tensors of the model by name, at x and at r, made when they are asked for."""

    def __init__(self, emitter: Emitter, flow: Flow, runs: Runs) -> None:
        self.emitter = emitter
        self.runs = runs
        self._active = flow.active
        self._known: dict[str, Value] = {}

    def __call__(self, name: str) -> Value:
        if name not in self._known:
            x = self.runs.at_x.get(name) or self.emitter.tensor(name)
            r = self.runs.at_r.get(name, x)
            self._known[name] = Value(name, x, r, name in self._active, self.runs.pairing)
        return self._known[name]


class Walk:
    """Values and multipliers of the model's tensors, found from the top down.

    `problems`: the nodes whose rule refused them. `residuals`: what each node's rule fails to conserve, kept where
    `measure` asks for it. `exposed`: tensors whose signed parts are wanted besides those that rules ask for.
    """

    def __init__(
        self,
        emitter: Emitter,
        flow: Flow,
        value: Values,
        chooser: Chooser,
        *,
        batched: bool,
        measure: bool = False,
        exposed: Sequence[str] = (),
    ) -> None:
        self.emitter = emitter
        self.flow = flow
        self.value = value
        self.chooser = chooser
        self.batched = batched
        self.measure = measure
        self.problems: list[Problem] = []
        self.residuals: dict[str, Tensor] = {}
        self._rules = {step.node.name: chooser.rule(step.node) for step in flow.steps}
        self._terms: dict[str, list[Multiplier]] = {}
        self._totals: dict[str, Multiplier] = {}
        self._named: set[int] = set()
        self._foreign: frozenset[str] = frozenset()  # tensors from outside of a body: their multipliers are made there
        self._guarded = _selected_away(flow, self._rules)
        self._carry_parts(exposed)

    def inside(self, emitter: Emitter, flow: Flow, runs: Runs) -> Walk:
        """A walk through a body of one of the nodes."""
        walk = Walk(emitter, flow, Values(emitter, flow, runs), self.chooser, batched=self.batched)
        walk._foreign = frozenset(flow.sources)
        return walk

    def back(self, seeds: Mapping[str, Tensor]) -> None:
        """From the explained tensors, whose multipliers are `seeds`, to the attributed ones."""
        for name, seed in seeds.items():
            self._terms[name] = [Multiplier(seed)]
        for step in reversed(self.flow.steps):
            self._visit(step)
        for name in self.flow.sources:
            self.multiplier(name)

    def multiplier(self, name: str) -> Multiplier | None:
        """The multiplier of a tensor: the sum over its consumers (LIFTPAD eq. 4); None where nothing arrives.

        It is called `T/multiplier` after the first tensor T that it belongs to. The parts of an attributed tensor are
        its difference by its sign, so that it has one multiplier.
        """
        if name not in self._totals and name in self._terms:
            first, *others = self._terms[name]
            total = reduce(Multiplier.__add__, others, first)
            if name in self.flow.sources:
                total = Multiplier(total.folded(self.value(name).d))
            mean = total.mean
            mean.shape = mean.shape or first.mean.shape
            self._totals[name] = total
            graph, wanted = self.emitter.graph, f"{name}/multiplier"
            free = name not in self._foreign and wanted not in graph.tensors
            if free and graph.is_computed(mean.handle) and not self.is_named(mean):
                self._named.add(id(mean))
                graph.rename(mean.handle, wanted)
        return self._totals.get(name)

    def is_named(self, tensor: Tensor) -> bool:
        """Whether the tensor is called after one of the model."""
        return id(tensor) in self._named

    def _carry_parts(self, exposed: Sequence[str]) -> None:
        """Forward: the signed parts of the tensors from which a rule or an output needs them, and of no others."""
        if not any(rule is not None and rule.signed for rule in self._rules.values()):
            return
        needed = set(self.flow.active) if self.measure else set(exposed)
        for step in reversed(self.flow.steps):
            rule = self._rules[step.node.name]
            wanted = needed.intersection(names(step.node.outputs)).difference(self.flow.sources)
            if rule is not None and (rule.signed or (wanted and _carries(rule, step) and not rule.mixes)):
                needed.update(name for name in names(step.node.inputs) if name in self.flow.active)
        for step in self.flow.steps:
            rule = self._rules[step.node.name]
            outputs = [handle.name for handle in step.node.outputs]
            if rule is None or rule.parts is None or not _carries(rule, step) or needed.isdisjoint(outputs):
                continue
            try:
                found = rule.parts(self._site(step, [None for _ in outputs]))
            except Unsupported as refusal:
                self.problems.append(Problem(step.node, f"rule {rule.name!r}: {refusal}"))
                continue
            for name, parts in zip(outputs, found, strict=False):
                if name and parts is not None and name not in self.flow.sources:
                    self.value(name).parts = parts

    def _values(self, handles: Iterable[Handle]) -> list[Value | None]:
        return [self.value(handle.name) if handle.name else None for handle in handles]

    def _site(
        self,
        step: Step,
        multipliers: Sequence[Tensor | None],
        *,
        half: Tensor | None = None,
        absolute: bool = False,
    ) -> Site:
        node = step.node
        return Site(
            self.emitter,
            node.op,
            node.name,
            node.attrs,
            self._values(node.inputs),
            self._values(node.outputs),
            multipliers,
            [self.value(name) for name in step.roots],
            [self._site(Step(mask), ()) for mask in step.masks],
            batched=self.batched,
            samples=(self.value(self.flow.target).shape or (None,))[0],
            half=half,
            absolute=absolute,
            through=Through(self, step, multipliers) if step.flows else None,
            inverses=[_is_inverse(handle) for handle in node.inputs] if node.op == "Mul" else (),
        )

    def _visit(self, step: Step) -> None:
        """One node: ask its rule, sum back what was broadcast, hand the terms on."""
        node, rule = step.node, self._rules[step.node.name]
        outputs = [handle.name for handle in node.outputs]
        arrives = [name in self.flow.active and name not in self.flow.sources for name in outputs]
        multipliers = [self.multiplier(name) if here else None for name, here in zip(outputs, arrives, strict=True)]
        if rule is None or all(m is None for m in multipliers):
            return
        try:
            edges = list(self._edges(step, rule, multipliers))
        except Unsupported as refusal:
            self.problems.append(Problem(node, f"rule {rule.name!r}: {refusal}"))
            return
        for value, m in edges:
            self._terms.setdefault(value.name, []).append(m)
        if self.measure:
            self.residuals[node.name] = self._residual(step, multipliers, edges)

    def _edges(self, step: Step, rule: registry.Rule, multipliers: Sequence[Multiplier | None]) -> Iterable[Edge]:
        """The node's inputs with their multipliers; how m+ and m- pass is told at `registry.Rule`."""
        guarded = step.node.name in self._guarded
        means = [None if m is None else m.mean for m in multipliers]
        halves = [None if m is None else m.half for m in multipliers]
        if rule.signed:
            yield from _apply(rule, self._site(step, means, half=halves[0]), guarded=guarded)
            return
        if all(half is None for half in halves):
            yield from _apply(rule, self._site(step, means), guarded=guarded)
            return
        if not _carries(rule, step):
            values = self._values(step.node.outputs)
            folded = [
                None if m is None or value is None else m.folded(value.d)
                for m, value in zip(multipliers, values, strict=True)
            ]
            yield from _apply(rule, self._site(step, folded), guarded=guarded)
            return
        plain = _apply(rule, self._site(step, means), guarded=guarded)
        absolute = _apply(rule, self._site(step, halves, absolute=True), guarded=guarded)
        for (value, m), (_, h) in zip(plain, absolute, strict=True):
            both = Multiplier(m.mean, h.mean)
            yield value, Multiplier(both.folded(value.d)) if rule.mixes else both

    def _residual(self, step: Step, multipliers: Sequence[Multiplier | None], edges: Sequence[Edge]) -> Tensor:
        """What a rule fails to conserve: sum(m_y dy) - sum(m_x dx) over all samples, part by part."""
        values = self._values(step.node.outputs)
        arrived = [
            _everything(m.contribution(value.d, value.parts))
            for value, m in zip(values, multipliers, strict=True)
            if value is not None and m is not None
        ]
        passed_on = [-_everything(m.contribution(value.d, value.parts)) for value, m in edges]
        first, *others = arrived + passed_on
        return reduce(Tensor.__add__, (cast(term, first.dtype) for term in others), first)


def _is_inverse(handle: Handle) -> bool:
    """Whether a tensor is computed as 1 / b or b^-1/2: normalisations are often written with a reciprocal."""
    if not handle.inputs:
        return False
    (node, *_) = handle.inputs
    match node.op:
        case "Reciprocal":
            return True
        case "Div":
            return _is_number(node.inputs[0], 1)
        case "Pow":
            return _is_number(node.inputs[1], -1, -0.5)
    return False


def _is_number(handle: Handle, *numbers: float) -> bool:
    value = Graph.value(handle)
    return value is not None and value.size == 1 and value.item() in numbers


def _carries(rule: registry.Rule, step: Step) -> bool:
    """Whether a node tells positive from negative causes. Where a condition depends on the data it does not."""
    return rule.parts is not None and not step.roots


def _selected_away(flow: Flow, rules: Mapping[str, registry.Rule | None]) -> set[str]:
    """The elementwise nodes between the root of a data-dependent Where and its branches.

    In the branch that is not selected their values may be infinite, where exp(x) stands behind x < 0 say; the
    multiplier 0 must stay 0 there.
    """
    steps = {handle.name: step for step in flow.steps for handle in step.node.outputs}
    found: set[str] = set()
    for chooser in flow.steps:
        masked = chooser.roots and not chooser.flows
        stack = [handle.name for handle in chooser.node.inputs[1:]] if masked else []
        while stack:
            step = steps.get(stack.pop())
            rule = rules[step.node.name] if step else None
            if step is None or rule is None or step.node.name in found or not _is_elementwise(rule):
                continue
            found.add(step.node.name)
            stack += [handle.name for handle in step.node.inputs if handle.name not in chooser.roots]
    return found


def _is_elementwise(rule: registry.Rule) -> bool:
    return rule.broadcasts or rule.elementwise or rule.op in ("Neg", "Identity", "Cast")


def _apply(rule: registry.Rule, site: Site, *, guarded: bool) -> Iterable[Edge]:
    """What a rule gives the active inputs and roots of a node, in their shapes."""
    arrives_nothing = None
    if guarded:
        arrives_nothing = site.m.equals(0)
        if site.half is not None:
            arrives_nothing = logical_and(arrives_nothing, site.half.equals(0))
    for index, (value, given) in enumerate(zip((*site.inputs, *site.roots), rule.multipliers(site), strict=False)):
        if value is None or given is None or not value.active:
            continue
        m = given if isinstance(given, Multiplier) else Multiplier(given)
        guard = arrives_nothing if index < len(site.inputs) else None  # roots have other places

        def fit(m: Tensor, value: Value = value, guard: Tensor | None = guard) -> Tensor:
            m = where(guard, 0.0, m) if guard else m
            m = unbroadcast(m, site.y.shape, value) if rule.broadcasts else m
            m.shape = m.shape or value.shape
            return m

        yield value, Multiplier(fit(m.mean), None if m.half is None else fit(m.half))


def _everything(tensor: Tensor) -> Tensor:
    """Sum over all elements, in float32 at least."""
    wide = widen(tensor)
    return wide.emitter.op("ReduceSum", wide, keepdims=0, shape=())
