"""The options that several commands share, named as the Python arguments, and how their texts become values."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from onnxlift import cli_reference
from onnxlift.explainer import EMITS
from onnxlift.one_hot import OneHot
from onnxlift.plan import PROFILES, RULES

Command = Callable[..., Any]

_TARGETS = ("argmax", "input", "weights")


def _target(ctx: click.Context, param: click.Parameter, value: str | None) -> int | tuple[int, ...] | str | None:
    if value is None or value in _TARGETS:
        return value
    try:
        index = tuple(int(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is no index such as 3 or 3,4 and none of {', '.join(_TARGETS)}") from error
    return index[0] if len(index) == 1 else index


def _one_hot(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> OneHot:
    axes: dict[str, int] = {}
    for value in values:
        name, _, axis = value.rpartition("=")
        try:
            axes[name] = int(axis)
        except ValueError as error:
            raise click.BadParameter(f"{value!r} is not like 1 or sequence=1") from error
    if "" in axes and len(values) > 1:
        raise click.BadParameter("one axis for all inputs, or NAME=AXIS for each, but not both")
    return axes.get("", axes or None)


def sizes(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    """NAME=SIZE, repeated."""
    found = {}
    for value in values:
        name, _, size = value.rpartition("=")
        if not name or not size.isdecimal() or int(size) < 1:
            raise click.BadParameter(f"{value!r} is not like batch=4")
        found[name] = int(size)
    return found


def _options(*options: Command) -> Callable[[Command], Command]:
    """Several options as one decorator, in this order in the help."""
    return lambda command: functools.reduce(lambda decorated, option: option(decorated), reversed(options), command)


def _rules(*, conserve: bool) -> str:
    return ", ".join(name for name, preset in RULES.items() if preset.conserves == conserve)


PLANNING = _options(
    click.option(
        "--inputs",
        multiple=True,
        metavar="NAME",
        help="Attribute to this graph input or internal tensor; repeatable. [default: every float graph input]",
    ),
    click.option("--output", metavar="NAME", help="Explain this tensor. [default: the first float output]"),
    click.option(
        "--rule",
        metavar="NAME",
        help=f"The preset of rules: {_rules(conserve=True)}; or of the gradient family, which does not conserve: "
        f"{_rules(conserve=False)}. integrated-gradients:20 has 20 intervals, not 50. [default: rescale]",
    ),
    click.option(
        "--plan",
        metavar=f"FILE|{'|'.join(PROFILES)}",
        help="Choices that go before the preset: a TOML file with a table [[choice]] for each (rule, and what it is "
        "for: op, name, fed_by), or the profile of another package, to compute as it does.",
    ),
    click.option(
        "--one-hot",
        multiple=True,
        callback=_one_hot,
        metavar="AXIS|NAME=AXIS",
        help="The channel axis of one-hot inputs, the batch counting as 0; for one input: NAME=AXIS, repeatable. "
        "[default: none; for hypothetical contributions and shuffles the only axis of 4 channels]",
    ),
    click.option(
        "--pre-activation/--no-pre-activation",
        default=None,
        help="Step over a final Softmax or Sigmoid to its logits, or keep it. [default: step over]",
    ),
)
TARGET = click.option(
    "--target",
    callback=_target,
    metavar="INDEX|argmax|input|weights",
    help="Which neuron: an index after the batch axis (3, or 3,4), the largest, or one given at run time.",
)
REFERENCE = click.option("--reference", metavar="NAME|FILE", help=cli_reference.HELP)
SEED = click.option(
    "--seed", type=int, default=0, show_default=True, help="Of shuffles, and of the K rows of background:FILE:K."
)
EMITTING = _options(
    click.option(
        "--expose",
        multiple=True,
        metavar="NAME",
        help="Give this internal tensor too, with its multiplier and contributions; repeatable.",
    ),
    click.option(
        "--emit",
        multiple=True,
        type=click.Choice(EMITS),
        help="What to give for each input; hypothetical: what every letter of a one-hot input would contribute; "
        "repeatable. [default: contributions]",
    ),
)
RUNNING = _options(
    click.option(
        "--tolerance",
        type=click.FloatRange(0),
        default=1e-3,
        show_default=True,
        help="How far contributions may miss t(x) - t(r), relative to it.",
    ),
    click.option(
        "--providers",
        multiple=True,
        metavar="cpu|cuda|NAME",
        help="Run on this provider of ONNX Runtime; repeat for more. [default: cuda where it can run, then cpu]",
    ),
)
PRINTING = _options(
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    click.option("-v", "--verbose", is_flag=True, help="Print more."),
    click.option("-q", "--quiet", is_flag=True, help="Print less."),
)
