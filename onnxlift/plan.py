"""Plans: an ordered list of matchers in front of every operator's default rule; presets, profiles, plan files."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from onnxlift.errors import OptionError, listed

DENSE = ("Gemm", "MatMul")


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
