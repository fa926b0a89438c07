"""The options that several commands share, named as the Python arguments, and how their texts become values."""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import onnx

from onnxlift import cli_reference
from onnxlift.errors import OptionError
from onnxlift.explainer import EMITS
from onnxlift.one_hot import OneHot
from onnxlift.plan import PROFILES, RULES
from onnxlift.session import CPU, Provider, cuda_without_tf32
from onnxlift.target import TargetSpec

Command = Callable[..., Any]

_TARGETS = ("argmax", "input", "weights")


def _target(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> TargetSpec:
    """A word, an index, or a list of those that were given; None where none was."""
    if not values or (values[0] in _TARGETS and len(values) == 1):
        return values[0] if values else None
    indices = [_index(value) for value in values]
    return indices if len(indices) > 1 else indices[0]


def _index(value: str) -> int | tuple[int, ...]:
    if value in _TARGETS:
        raise click.BadParameter(f"{value!r} stands alone: several targets are indices")
    try:
        index = tuple(int(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is no index such as 3 or 3,4 and none of {', '.join(_TARGETS)}") from error
    return index[0] if len(index) == 1 else index


def _keep(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[str] | None:
    """The names, none of them where the only one is empty; None where the option is not given."""
    return [value for value in values if value] if values else None


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


def _shapes(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, tuple[int, ...]] | None:
    """NAME=SIZE,SIZE, repeated; None where none is given."""
    found = {}
    for value in values:
        name, _, sizes = value.rpartition("=")
        try:
            found[name] = tuple(int(size) for size in sizes.split(",") if sizes)
        except ValueError as error:
            raise click.BadParameter(f"{value!r} is not like x=8,3,224,224") from error
        if not name:
            raise click.BadParameter(f"{value!r} is not like x=8,3,224,224")
    return found or None


def numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...]:
    """NUMBER,NUMBER,...; none of them where none is given."""
    try:
        found = tuple(float(part) for part in value.split(",")) if value else ()
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not like 0.485,0.456,0.406") from error
    if not all(map(math.isfinite, found)):
        raise click.BadParameter(f"{value!r} has a number that is not finite")
    return found


def chosen(model: onnx.ModelProto | None, options: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """The options of `rewrite` that were given; a reference that is made of a file is made.

    `model`: the one to rewrite, None where it is an explainer.
    """
    given = {name: value for name, value in options.items() if value not in (None, ())}
    if model is not None and "reference" in given:
        given["reference"] = cli_reference.to_store(model, given["reference"], given, seed)
    return given


def providers(names: tuple[str, ...]) -> list[Provider] | None:
    """The providers of ONNX Runtime that were named; None where none is."""
    short: dict[str, Provider] = {"cpu": CPU, "cuda": cuda_without_tf32()}
    return [short.get(name, name) for name in names] or None


def check_kept(written: Iterable[Path], read: Iterable[str | Path | None]) -> None:
    """Raises OptionError where a file that is to be written is one that is read."""
    given = [source for source in read if source is not None]
    for out, source in itertools.product(written, given):
        if out.exists() and os.path.exists(source) and out.samefile(source):
            raise OptionError(f"{out} would overwrite what is read: choose another name")


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
    click.option(
        "--shape",
        "--shapes",
        "shapes",
        multiple=True,
        callback=_shapes,
        metavar="NAME=SIZE,...",
        help="Fix the dynamic axes of this graph input, of its reference too, as in x=8,3,224,224; repeatable.",
    ),
)
TARGET = click.option(
    "--target",
    multiple=True,
    callback=_target,
    metavar="INDEX|argmax|input|weights",
    help="Which neuron: an index after the batch axis (3, or 3,4), the largest, or one given at run time. Repeat an "
    "index for several neurons in one run.",
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
    click.option(
        "--keep",
        multiple=True,
        callback=_keep,
        metavar="NAME",
        help="Return this output of the model, and of its others only those that are named as well; '' for none of "
        "them: what only they need is not computed. [default: all]",
    ),
)
FORM = _options(
    click.option(
        "--genome", type=click.Path(path_type=Path), metavar="FASTA", help="What the regions of a BED file are of."
    ),
    click.option(
        "--image-scale",
        type=float,
        default=255.0,
        show_default=True,
        metavar="NUMBER",
        help="A pixel of an image becomes (pixel / scale - mean) / std.",
    ),
    click.option("--image-mean", callback=numbers, metavar="NUMBER,...", help="One for each channel. [default: 0]"),
    click.option("--image-std", callback=numbers, metavar="NUMBER,...", help="One for each channel. [default: 1]"),
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
