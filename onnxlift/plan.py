"""Which node gets which rule: an ordered list of matchers in front of every operator's default."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass

from onnxlift import registry
from onnxlift.errors import OptionError, listed
from onnxlift.graph import Node


@dataclass(frozen=True)
class Choice:
    """Use rule `rule` for the nodes whose operator and name match (`*` and `?` as in file names)."""

    rule: str
    op: str = "*"
    name: str = "*"

    def matches(self, node: Node) -> bool:
        return fnmatch.fnmatchcase(node.op, self.op) and fnmatch.fnmatchcase(node.name, self.name)


class Plan:
    """An ordered list of choices; the first that matches a node decides, and else the operator's default rule.

    A choice whose rule does not exist for a matching node's operator is passed over where its operator is a glob,
    and an `OptionError` where the operator is named.
    """

    def __init__(self, choices: Iterable[Choice] = ()) -> None:
        self.choices = tuple(choices)

    def rule(self, node: Node) -> registry.Rule | None:
        """The rule of a node; None where it has none."""
        domain = node.domain or ""
        for choice in self.choices:
            if choice.matches(node):
                found = registry.find(node.op, domain, choice.rule)
                if found is not None:
                    return found
                if choice.op == node.op:
                    known = [rule.name for rule in registry.rules() if (rule.domain, rule.op) == (domain, node.op)]
                    raise OptionError(
                        f"the plan asks for rule {choice.rule!r} for {node.op} (node {node.name!r}), "
                        f"which has {listed(sorted(known)) or 'no rule'}"
                    )
        return registry.find(node.op, domain)


RULES = {"rescale": Plan()}
"""The presets of `rewrite(rule=...)`."""


def resolve(rule: str, plan: Plan | None) -> Plan:
    """The plan that the arguments `rule` and `plan` of `rewrite` stand for."""
    if rule not in RULES:
        raise OptionError(f"unknown rule {rule!r}: one of {listed(sorted(RULES))}")
    if plan is not None and not isinstance(plan, Plan):
        raise OptionError(f"the plan must be an onnxlift.Plan, not {type(plan).__name__}")
    known = {rule.name for rule in registry.rules()}
    for choice in plan.choices if plan else ():
        if choice.rule not in known:
            raise OptionError(f"the plan asks for rule {choice.rule!r}, which no operator has: {listed(sorted(known))}")
    return Plan((*(plan.choices if plan else ()), *RULES[rule].choices))
