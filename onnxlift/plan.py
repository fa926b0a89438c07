"""Which node gets which rule: an ordered list of matchers in front of every operator's default, and the presets."""

from __future__ import annotations

import fnmatch
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from onnxlift import registry
from onnxlift.errors import OptionError, listed
from onnxlift.flow import Flow, names
from onnxlift.graph import Graph, Node

DENSE = ("Gemm", "MatMul")
CONVOLUTIONS = ("Conv", "ConvTranspose")
LOOKED_THROUGH = frozenset(
    "BatchNormalization Identity Dropout Cast Reshape Flatten Squeeze Unsqueeze Transpose Add Sub Mul Div".split()
)
"""Between a layer and its nonlinearity. Arithmetic counts only with a constant: a bias, or a scale."""


@dataclass(frozen=True)
class Choice:
    """Use rule `rule` for the nodes that match: operator, node name, and the operator that feeds the node.

    The patterns are those of file names (`*`, `?`). The operator that feeds a node is found by looking back through
    normalisation, biases, scales and reshapes.
    """

    rule: str
    op: str = "*"
    name: str = "*"
    fed_by: str = "*"

    @property
    def is_specific(self) -> bool:
        """Whether it names nodes, rather than asking for a rule wherever it exists."""
        return (self.op, self.name, self.fed_by) != ("*", "*", "*")

    def __str__(self) -> str:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return ", ".join(f"{name} = {value!r}" for name, value in given.items() if value != "*")


@dataclass(frozen=True, init=False)
class Plan:
    """An ordered list of choices; the first that matches a node decides, and else the operator's default rule.

    Attributes:
        choices: a choice whose rule does not exist for a matching node is passed over, unless it names that operator
            or that node exactly.
        instead: rule name -> the variant to use in its place wherever an operator has that variant; not in the
            gradient family, where multipliers are derivatives.
        normalize_softmax: subtract the mean over the classes from the target's weights where a Softmax is stepped over
            (LIFTPAD eq. 19).
        normalize_one_hot: the normalised weights of one-hot inputs (LIFTPAD eq. 20), for the inputs named by `one_hot`.
    """

    choices: tuple[Choice, ...]
    instead: Mapping[str, str] = field(hash=False)
    normalize_softmax: bool
    normalize_one_hot: bool

    def __init__(
        self,
        choices: Iterable[Choice] = (),
        *,
        instead: Mapping[str, str] = MappingProxyType({}),
        normalize_softmax: bool = False,
        normalize_one_hot: bool = False,
    ) -> None:
        object.__setattr__(self, "choices", tuple(choices))
        for choice in self.choices:
            if not isinstance(choice, Choice):
                raise OptionError(f"a plan consists of onnxlift.Choice, not {choice!r}")
        object.__setattr__(self, "instead", MappingProxyType(dict(instead)))
        object.__setattr__(self, "normalize_softmax", normalize_softmax)
        object.__setattr__(self, "normalize_one_hot", normalize_one_hot)


@dataclass(frozen=True)
class Preset:
    """What `rewrite(rule=...)` stands for.

    `at`: where the multipliers are taken: between the input and the reference, at the input (a gradient), or averaged
    along the path from one to the other. `contributes`: contributions are m * d; else they are m itself. `steps`: how
    many points the path has.
    """

    plan: Plan = Plan()
    at: Literal["reference", "input", "path"] = "reference"
    contributes: bool = True
    steps: int = 1

    @property
    def conserves(self) -> bool:
        """Whether contributions sum to the difference of the target by construction."""
        return self.at == "reference"


RULES: Mapping[str, Preset] = {
    "rescale": Preset(),
    "reveal-cancel": Preset(Plan([Choice("reveal-cancel")])),
    "genomics": Preset(Plan([Choice("reveal-cancel", fed_by=op) for op in DENSE])),
    "liftpad": Preset(
        Plan(
            [Choice("indicator"), Choice("proportional", op="Mul")],
            normalize_softmax=True,
            normalize_one_hot=True,
        )
    ),
    "lifft": Preset(),
    "dfd": Preset(Plan([Choice("argmax")])),
    "gradient": Preset(at="input", contributes=False),
    "gradient-x-input": Preset(at="input"),
    "integrated-gradients": Preset(at="path", steps=50),
    "guided-backprop": Preset(Plan([Choice("guided-backprop")]), at="input", contributes=False),
    "deconvnet": Preset(Plan([Choice("deconvnet")]), at="input", contributes=False),
}
"""The presets of `rewrite(rule=...)`. LIFFT states the linear rule and completeness, which is Rescale's."""

PROFILES: Mapping[str, Plan] = {
    "deeplift": Plan(
        instead={
            "rescale": "deeplift-rescale",
            "reveal-cancel": "deeplift-reveal-cancel",
            "cross-max": "argmax",
        }
    ),
    "captum": Plan(instead={"rescale": "captum-rescale", "cross-max": "captum-max"}),
    "shap": Plan(instead={"rescale": "shap-rescale", "cross-max": "shap-max"}),
    "tangermeme": Plan(instead={"rescale": "tangermeme-rescale", "cross-max": "tangermeme-max"}),
}
"""How other packages compute, by name, for `rewrite(plan=...)`: docs/profiles.md."""

MOST_STEPS = 10_000
"""So many intervals integrated gradients may have."""
_MOST_CHARACTERS, _LONGEST_LINE = 1 << 20, 1000
"""Of a plan file: nobody writes more, and a parser takes long over them."""

PlanSpec = Plan | str | os.PathLike[str]


def preset(rule: str) -> Preset:
    """The preset of a rule name; `integrated-gradients:20` has 20 intervals."""
    name, _, suffix = str(rule).partition(":")
    if name not in RULES:
        raise OptionError(f"unknown rule {rule!r}: one of {listed(sorted(RULES))}")
    found = RULES[name]
    if not suffix and name == rule:
        return found
    number = suffix.isascii() and suffix.isdecimal() and len(suffix) <= len(str(MOST_STEPS))
    if found.at != "path" or not number or not 1 <= int(suffix) <= MOST_STEPS:
        raise OptionError(
            f"rule {rule!r}: only integrated-gradients takes a number, 1 to {MOST_STEPS} intervals, as in ':20'"
        )
    return replace(found, steps=int(suffix))


def as_plan(spec: PlanSpec | None) -> Plan:
    """A plan, a TOML file that holds one, or the name of a profile."""
    if spec is None or isinstance(spec, Plan):
        return spec or Plan()
    if not isinstance(spec, str | os.PathLike):
        raise OptionError(f"the plan must be an onnxlift.Plan, a TOML file or a profile, not {type(spec).__name__}")
    if isinstance(spec, str) and spec in PROFILES:
        return PROFILES[spec]
    path = Path(spec)
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MOST_CHARACTERS + 1)
        if len(text) > _MOST_CHARACTERS or any(len(line) > _LONGEST_LINE for line in text.splitlines()):
            raise ValueError(f"it has over {_MOST_CHARACTERS} characters, or over {_LONGEST_LINE} in a line")
        content = tomllib.loads(text)
    except FileNotFoundError as error:
        raise OptionError(f"plan {os.fspath(spec)!r} is neither a file nor a profile ({listed(PROFILES)})") from error
    except (OSError, ValueError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise OptionError(f"the plan {os.fspath(spec)!r} cannot be read: {error}") from error
    return _from_toml(content, os.fspath(spec))


def _from_toml(content: Mapping[str, object], path: str) -> Plan:
    """The tables of a plan file: `[[choice]]` with the fields of `Choice`, and the options of `Plan`."""
    flags = {name: content.get(name, False) for name in ("normalize_softmax", "normalize_one_hot")}
    entries, instead = content.get("choice", []), content.get("instead", {})
    known = {field.name for field in fields(Choice)}
    problem = None
    if unknown := set(content) - {*flags, "choice", "instead"}:
        problem = f"it has no option {listed(sorted(unknown))}; it knows choice, instead, {', '.join(flags)}"
    elif not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        problem = "`choice` must be an array of tables, written [[choice]]"
    elif not isinstance(instead, dict) or not all(isinstance(name, str) for name in instead.values()):
        problem = "`instead` must be a table of rule names"
    elif wrong := [name for name, value in flags.items() if not isinstance(value, bool)]:
        problem = f"`{wrong[0]}` must be true or false"
    else:
        for entry in entries:
            if "rule" not in entry or set(entry) - known or not all(isinstance(value, str) for value in entry.values()):
                problem = f"a choice has a rule and may have {listed(sorted(known - {'rule'}))}, all strings: {entry}"
    if problem or not isinstance(entries, list) or not isinstance(instead, dict):
        raise OptionError(f"the plan {path!r} is not valid: {problem}")
    choices = [Choice(**entry) for entry in entries]
    return Plan(choices, instead=instead, **{name: bool(value) for name, value in flags.items()})


class Chooser:
    """A plan in front of a preset's, for the nodes of one graph."""

    def __init__(self, graph: Graph, plan: Plan, preset: Preset) -> None:
        self.graph = graph
        self.plan = plan
        self.preset = preset
        self.normalize_softmax = plan.normalize_softmax or preset.plan.normalize_softmax
        self.normalize_one_hot = plan.normalize_one_hot or preset.plan.normalize_one_hot
        self._instead = plan.instead if preset.conserves else {}
        self._producers = {name: node for node in graph.nodes for name in names(node.outputs)}
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
            matched = [step.node for step in flow.steps if self._matches(choice, step.node)]
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
        """What a preset that goes by layers could not place: it takes Rescale."""
        if self.preset is not RULES["genomics"]:
            return []
        return [
            f"{step.node.op} {step.node.name!r} is fed by neither a dense layer nor a convolution and takes {rule.name}"
            for step in flow.steps
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
