"""A plan applied to the nodes of one graph: which rule each of them gets, and what a plan cannot mean."""

from __future__ import annotations

import fnmatch

from onnxlift import registry
from onnxlift.errors import OptionError, listed
from onnxlift.flow import Flow, names, producers
from onnxlift.graph import Graph, Node
from onnxlift.plan import RULES, Choice, Plan, Preset

CONVOLUTIONS = ("Conv", "ConvTranspose")
LOOKED_THROUGH = frozenset(
    "BatchNormalization Identity Dropout Cast Reshape Flatten Squeeze Unsqueeze Transpose Add Sub Mul Div".split()
)
"""Between a layer and its nonlinearity. Arithmetic counts only with a constant: a bias, or a scale."""


class Chooser:
    """A plan in front of a preset's, for the nodes of one graph."""

    def __init__(self, graph: Graph, plan: Plan, preset: Preset) -> None:
        self.graph = graph
        self.plan = plan
        self.preset = preset
        self.normalize_softmax = plan.normalize_softmax or preset.plan.normalize_softmax
        self.normalize_one_hot = plan.normalize_one_hot or preset.plan.normalize_one_hot
        self._instead = plan.instead if preset.conserves else {}
        self._producers = producers(graph)
        self._chosen: dict[str, registry.Rule | None] = {}
        self._fed_by: dict[str, str] = {}
        _check_known(plan)

    def rule(self, node: Node) -> registry.Rule | None:
        """The rule of a node; None where it has none."""
        if node.name not in self._chosen:
            found = self._choose(node)
            variant = found and registry.find(node.op, node.domain or "", self._instead.get(found.name, found.name))
            self._chosen[node.name] = variant or found
        return self._chosen[node.name]

    def _choose(self, node: Node) -> registry.Rule | None:
        domain = node.domain or ""
        for choice in (*self.plan.choices, *self.preset.plan.choices):
            if self._matches(choice, node):
                found = registry.find(node.op, domain, choice.rule)
                if found is not None and found.op == registry.ANY and not self.preset.conserves:
                    raise OptionError(
                        f"the plan asks for {choice.rule!r} for {node.op} (node {node.name!r}), where it is a last "
                        "resort and no derivative, which the gradient family needs"
                    )
                if found is not None:
                    return found
                if node.op == choice.op or node.name == choice.name:
                    known = [rule.name for rule in registry.rules() if (rule.domain, rule.op) == (domain, node.op)]
                    raise OptionError(
                        f"the plan asks for rule {choice.rule!r} for {node.op} (node {node.name!r}), "
                        f"which has {listed(sorted(known)) or 'no rule'}"
                    )
        return registry.find(node.op, domain)

    def _matches(self, choice: Choice, node: Node) -> bool:
        match = fnmatch.fnmatchcase
        return (
            match(node.op, choice.op)
            and match(node.name, choice.name)
            and (choice.fed_by == "*" or match(self.fed_by(node), choice.fed_by))
        )

    def is_named(self, node: Node) -> bool:
        """Whether a choice of the plan is about this node, not about every node that has the rule."""
        return any(choice.is_specific and self._matches(choice, node) for choice in self.plan.choices)

    def fed_by(self, node: Node) -> str:
        """The operator that feeds a node's first input, behind biases, scales and reshapes; empty for an input."""
        passed = []
        while node.name not in self._fed_by:
            passed.append(node.name)
            varying = self._varying(node)
            producer = self._producers.get(varying[0]) if varying else None
            if producer is None or not self._is_looked_through(producer):
                self._fed_by[node.name] = str(producer.op) if producer else ""
            else:
                node = producer
        self._fed_by.update(dict.fromkeys(passed, self._fed_by[node.name]))
        return self._fed_by[node.name]

    def _is_looked_through(self, node: Node) -> bool:
        varying = self._varying(node)
        reciprocal = node.op == "Div" and varying != [node.inputs[0].name]
        return node.op in LOOKED_THROUGH and len(varying) <= 1 and not reciprocal

    def _varying(self, node: Node) -> list[str]:
        """The inputs that are not constants."""
        return [handle.name for handle in node.inputs if handle.name and not self.graph.is_constant(handle)]

    def check(self, flow: Flow) -> None:
        """Refuse a plan with a choice that names nodes where there are none, or none that it can mean."""
        for choice in self.plan.choices:
            if not choice.is_specific:
                continue
            matched = [step.node for step in flow.all_steps if self._matches(choice, step.node)]
            if not matched:
                raise OptionError(
                    f"the plan's choice ({choice}) matches no node between {listed(flow.sources)} and {flow.target!r}"
                )
            if not any(registry.find(node.op, node.domain or "", choice.rule) for node in matched):
                ops = sorted({node.op for node in matched})
                raise OptionError(
                    f"the plan's choice ({choice}) matches only nodes of {listed(ops)}, which lack that rule"
                )
            chosen = [(node, rule) for node in matched if (rule := self.rule(node)) and rule.name == choice.rule]
            whole = {node.name: self._whole(flow, node) for node, rule in chosen if rule.signed}
            if whole and all(whole.values()):
                name, source = next(iter(whole.items()))
                raise OptionError(
                    f"the plan's choice ({choice}) asks for signed parts, but node {name!r} is fed by {source}, behind "
                    "which a difference has none: Rescale is the same there, leave the node to it"
                )

    def _whole(self, flow: Flow, node: Node) -> str | None:
        """The operator without signed parts that all active inputs of a node come from; None where some have parts."""
        found, stack, seen = None, [node], set()
        while stack:
            for name in names(stack.pop().inputs):
                if name not in flow.active or name in seen:
                    continue
                seen.add(name)
                producer = self._producers.get(name)
                rule = None if producer is None or name in flow.sources else self.rule(producer)
                if producer is None or rule is None or rule.mixes:
                    return None
                if rule.parts is None:
                    found = f"{producer.op} {producer.name!r}"
                else:
                    stack.append(producer)
        return found

    def notes(self, flow: Flow) -> list[str]:
        """What cannot be told before the graph runs, and what a preset that goes by layers could not place."""
        if self.preset is not RULES["genomics"]:
            return flow.notes
        return flow.notes + [
            f"{step.node.op} {step.node.name!r} is fed by neither a dense layer nor a convolution and takes {rule.name}"
            for step in flow.all_steps
            if (rule := self.rule(step.node)) is not None
            and rule.elementwise
            and not rule.signed
            and self.fed_by(step.node) not in CONVOLUTIONS
        ]


def _check_known(plan: Plan) -> None:
    known = {rule.name for rule in registry.rules()}
    asked = [choice.rule for choice in plan.choices] + [*plan.instead, *plan.instead.values()]
    for rule in asked:
        if rule not in known:
            raise OptionError(f"the plan asks for rule {rule!r}, which no operator has: {listed(sorted(known))}")
