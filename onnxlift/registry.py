"""Which rule serves which operator: the table that `rules/` fills and everything else reads.

An operator has one default rule and any number of alternatives, chosen by name in a plan. An operator whose output
carries no importance although its input does is a *stop*, with the reason; whatever is in neither table is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from onnxlift.signed import Multiplier, Parts
    from onnxlift.site import Site
    from onnxlift.tensor import Tensor

RuleFunction = Callable[["Site"], "Sequence[Tensor | Multiplier | None]"]
"""Site in; out come the multipliers of its inputs (then of its condition roots), None where nothing flows."""

F = TypeVar("F", bound="RuleFunction")

PartsFunction = Callable[["Site"], "Sequence[Parts | None]"]
"""Site in; out come the signed parts of its outputs, None for an omitted one."""

ANY = "*"
"""In place of an operator: the rule serves every operator, where a plan asks for it by name."""

AI_ONNX_ML = "ai.onnx.ml"


@dataclass(frozen=True)
class Rule:
    """How the multipliers of one operator's inputs follow from those of its outputs.

    `broadcasts`: the operator broadcasts its inputs, so that the multipliers come in the output's shape and the walk
    sums them back. `conditions`: the rule knows what to do when an integer or boolean input depends on the data.
    `elementwise`: it is a function of one tensor, element by element. `conserves`: what arrives at the outputs is what
    the inputs get.

    How signed parts pass (onnxlift/signed.py): `parts` gives those of the outputs. Without it they are the output's
    difference by its sign, and m+ and m- are folded into one multiplier before the rule is asked. With it m+ and m-
    pass the rule side by side, unless the operator `mixes` the places of its input: then the parts of y follow from
    the sign of x's whole difference, and m+ and m- are folded behind the rule. `signed`: the rule reads the parts of
    its input and m+ and m- itself.
    """

    name: str
    op: str
    domain: str
    multipliers: RuleFunction
    broadcasts: bool
    conditions: bool
    elementwise: bool
    conserves: bool
    parts: PartsFunction | None
    mixes: bool
    signed: bool

    @property
    def equation(self) -> str:
        """The first line of the rule's docstring."""
        return (self.multipliers.__doc__ or "").strip().split("\n")[0]


ShareFunction = Callable[["Site", "Sequence[int]", "Sequence[Tensor | None]"], "Sequence[Tensor | None]"]
"""A node that makes a mask or an index, which of its inputs vary with the data, and what each element of its outputs
contributes; out comes what each element of its inputs does."""


@dataclass(frozen=True)
class Condition:
    """How an operator hands on what its integer or boolean output contributes (rules/conditions.py).

    `inputs`: which inputs may vary with the data; None: all. `elementwise`: it broadcasts, element by element.
    """

    op: str
    share: ShareFunction
    inputs: frozenset[int] | None
    elementwise: bool


_CONDITIONS: dict[str, Condition] = {}
_RULES: dict[tuple[str, str], dict[str, Rule]] = {}
_DEFAULT: dict[tuple[str, str], str] = {}
_STOPS: dict[tuple[str, str], str] = {}


def rule(
    name: str,
    *ops: str,
    domain: str = "",
    default: bool = True,
    broadcasts: bool = False,
    conditions: bool = False,
    elementwise: bool = False,
    conserves: bool = True,
    parts: PartsFunction | None = None,
    mixes: bool = False,
    signed: bool = False,
) -> Callable[[F], F]:
    """Register the decorated function as rule `name` of `ops`, as their default unless told otherwise."""

    def register(function: F) -> F:
        for op in ops:
            named = _RULES.setdefault((domain, op), {})
            if name in named or (domain, op) in _STOPS or (default and (domain, op) in _DEFAULT):
                raise ValueError(f"operator {op} already has a rule {name!r}, a default rule or a stop")
            named[name] = Rule(
                name, op, domain, function, broadcasts, conditions, elementwise, conserves, parts, mixes, signed
            )
            if default:
                _DEFAULT[(domain, op)] = name
        return function

    return register


def condition(
    *ops: str, inputs: Sequence[int] | None = (0,), elementwise: bool = False
) -> Callable[[ShareFunction], ShareFunction]:
    """Register the decorated function for masks and indices that `ops` make."""

    def register(function: ShareFunction) -> ShareFunction:
        for op in ops:
            if op in _CONDITIONS:
                raise ValueError(f"operator {op} already makes conditions")
            varying = None if inputs is None else frozenset(inputs)
            _CONDITIONS[op] = Condition(op, function, varying, elementwise)
        return function

    return register


def find_condition(op: str) -> Condition | None:
    """How masks and indices pass an operator on their way; None where they do not."""
    return _CONDITIONS.get(op)


def stop(reason: str, *ops: str, domain: str = "") -> None:
    """Declare that importance ends at `ops`."""
    for op in ops:
        if (domain, op) in _STOPS or (domain, op) in _RULES:
            raise ValueError(f"operator {op} is registered twice")
        _STOPS[(domain, op)] = reason


def find(op: str, domain: str = "", name: str | None = None) -> Rule | None:
    """The rule `name` of an operator, or its default; None where there is none."""
    key = (domain, op)
    chosen = name if name is not None else _DEFAULT.get(key)
    return None if chosen is None else _RULES.get(key, {}).get(chosen) or _RULES.get(("", ANY), {}).get(chosen)


def is_known(op: str, domain: str = "") -> bool:
    """Whether an operator has a default rule or is a stop."""
    return (domain, op) in _DEFAULT or (domain, op) in _STOPS


def stop_reason(op: str, domain: str = "") -> str | None:
    """Why importance ends at an operator; None where it does not."""
    return _STOPS.get((domain, op))


def rules() -> list[Rule]:
    """Every rule, ordered by domain and operator; an operator's default first."""
    return [
        rule
        for key in sorted(_RULES)
        for rule in sorted(_RULES[key].values(), key=lambda rule: rule.name != _DEFAULT.get(key))
    ]


def stops() -> list[tuple[str, str]]:
    """Every operator where importance ends, and why."""
    return [(op, reason) for (_, op), reason in sorted(_STOPS.items())]
