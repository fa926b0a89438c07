"""References by name: what the argument `reference` and the option --reference can say in words.

`parse` reads the words. A reference that is the same for all samples becomes numbers in the graph; one that is made
of each sample has a `Builder`, which the explainer's metadata record and the runtime calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from onnxlift import references
from onnxlift.arrays import Array
from onnxlift.errors import DataError, ModelError, OptionError, shown
from onnxlift.graph import Shape
from onnxlift.one_hot import BASES, OneHot
from onnxlift.shuffling import check_one_hot

RUN_TIME = ("paired", "shared", "grouped")
"""How the graph takes references as an input."""
OF_FILES = ("mean", "frequencies", "background")
"""What the command line makes of a file of samples; `frequencies` are usually given as numbers."""
FORMS = (
    *RUN_TIME,
    "zeros",
    "constant:NUMBER",
    "frequencies:F,F,...",
    "shuffle:K",
    "dinuc-shuffle:K",
    "blur:SIGMA",
    "token:ID",
)

_SHUFFLES: dict[str, Callable[..., Array]] = {
    "shuffle": references.shuffle,
    "dinuc-shuffle": references.dinuc_shuffle,
}
_MOST_COLOURS = 4
_BUILT_ELEMENTS = 1 << 24  # of references that are made at once: shuffling many sequences together is faster


@dataclass(frozen=True)
class Builder:
    """Makes references of samples: `k` shuffles of each, or each blurred by `sigma` along `axes` (none: the last two),
    or each with `tokens[0]` in place of all ids but `tokens[1:]`.

    `text` is the reference as it was named.
    """

    text: str
    name: str
    k: int = 1
    sigma: float = 0.0
    axes: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()

    def axes_of(self, name: str, shape: Shape, one_hot: OneHot, batched: bool) -> list[int]:
        """The axes of an input that it works along: the channels of a sequence, or those of an image.

        Raises OptionError where the input does not have such axes, or they cannot be told.
        """
        dims = shape or ()
        if self.tokens:
            return []
        if self.name in _SHUFFLES:
            if not batched:
                raise OptionError(f"reference {self.text!r} needs a batch axis in front of input {name!r}")
            axis = channel_axis(name, shape, one_hot, None, batched, self.text)
            places = [extent for i, extent in enumerate(dims) if i not in (0, axis)]
            if not places or sum(isinstance(extent, int) and extent != 1 for extent in places) > 1:
                raise OptionError(
                    f"reference {self.text!r} cannot shuffle input {name!r}, of shape {shown(dims)} with channels on "
                    f"axis {axis}: it has no axis, or several, that could count positions"
                )
            return [axis]
        axes = [axis % len(dims) if -len(dims) <= axis < len(dims) else -1 for axis in self.axes or (-2, -1)]
        if min(axes) < int(batched) or len(set(axes)) < len(axes):
            raise OptionError(f"reference {self.text!r} cannot blur input {name!r}, which has shape {shown(dims)}")
        if not self.axes and len(dims) == 3 + batched and _few(dims[-1]) and not _few(dims[-3]):
            raise OptionError(
                f"the last axis of input {name!r}, of shape {shown(dims)}, looks like colours, which are not to be "
                f"blurred: name the axes of the image, as in '{self.text}:{int(batched)},{1 + batched}'"
            )
        return axes

    def check(self, name: str, x: Array, axes: list[int], first: int = 0) -> None:
        """Raises DataError where samples of input `name`, counted from `first`, cannot be shuffled or are no tokens."""
        if self.tokens and x.dtype.kind not in "iu":
            raise DataError(f"reference {self.text!r} replaces tokens, but input {name!r} holds {x.dtype}")
        if self.name in _SHUFFLES:
            try:
                check_one_hot(x, axes[0], first=first)
            except DataError as error:
                raise DataError(f"input {name!r} cannot be shuffled: {error}") from error

    def build(self, x: Array, axes: list[int], seed: int) -> Array:
        """References of samples `[N, ...]`: `[N, K, ...]` shuffles, or `[N, ...]` blurred or of other tokens."""
        if self.tokens:
            return references.tokens(x, self.tokens[0], keep=self.tokens[1:])
        if self.name in _SHUFFLES:
            return _SHUFFLES[self.name](x, self.k, axis=axes[0], seed=seed)
        return references.blur(x, self.sigma, axes=axes)


class Ahead:
    """The references of samples `x` that a builder makes, made for many samples at a time, but never for all."""

    def __init__(self, builder: Builder, x: Array, axes: list[int], seed: int) -> None:
        self._build = partial(builder.build, axes=axes, seed=seed)
        self._x = x
        self._rows = _BUILT_ELEMENTS * len(x) // (x.size * builder.k)
        self._start = self._stop = 0
        self._built: Array = np.empty(0)

    def __call__(self, start: int, stop: int) -> Array:
        """The references of samples start to stop (exclusive). Made ahead where they are asked for in order."""
        if not self._start <= start <= stop <= self._stop:
            self._built = np.empty(0)  # free before more is taken
            self._start, self._stop = start, min(max(stop, start + self._rows), len(self._x))
            self._built = self._build(self._x[self._start : self._stop])
        return self._built[start - self._start : stop - self._start]


@dataclass(frozen=True)
class Named:
    """A reference in words.

    `kind` is how the graph gets it: "paired", "shared" or "grouped" at run time, "constant" (the only one of `values`
    everywhere) or "frequencies" (`values` along the channels).
    """

    text: str
    kind: str
    values: tuple[float, ...] = ()
    builder: Builder | None = None

    @property
    def is_given(self) -> bool:
        """Whether the graph takes it as an input."""
        return self.kind in RUN_TIME

    def numbers(self, shapes: Mapping[str, Shape], one_hot: OneHot, batched: bool) -> dict[str, Array]:
        """The values by input, of a shape that broadcasts to a sample.

        Raises OptionError where the axis of frequencies cannot be told.
        """
        arrays = {}
        for name, shape in shapes.items():
            extents: list[int] = []
            if self.kind == "frequencies":
                extents = [1] * len(shape or ())
                extents[channel_axis(name, shape, one_hot, len(self.values), batched, self.text)] = -1
            arrays[name] = np.array(self.values).reshape(extents)
        return arrays


def parse(text: str) -> Named:
    """Read a reference. Raises OptionError for one that is not known, or whose numbers are wrong."""
    name, _, rest = text.partition(":")
    if text in RUN_TIME:
        return Named(text, text)
    if text == "zeros":
        return Named(text, "constant", (0.0,))
    match name:
        case "constant":
            values = _numbers(text, rest)
            if len(values) != 1:
                raise OptionError(f"reference {text!r} needs one number, as in 'constant:0.5'")
            return Named(text, name, values)
        case "frequencies":
            values = _numbers(text, rest)
            references.check_frequencies(values)
            return Named(text, name, values)
        case "shuffle" | "dinuc-shuffle":
            if not rest.isdecimal() or len(rest) > 9 or int(rest) < 1:
                raise OptionError(f"reference {text!r} needs a number of shuffles, 1 or more, as in '{name}:20'")
            return Named(text, "grouped", builder=Builder(text, name, k=int(rest)))
        case "blur":
            return Named(text, "paired", builder=_blur(text, rest))
        case "token":
            return Named(text, "paired", builder=Builder(text, name, tokens=_tokens(text, rest)))
        case "mean" | "background":
            raise OptionError(
                f"reference {text!r} is made of a file, and only on the command line: from Python give an array, as in "
                f"{{'x': onnxlift.references.{name}(data)}}"
            )
    raise OptionError(f"unknown reference {text!r}: give {', '.join(FORMS)} or a dict of arrays")


def is_named(text: str) -> bool:
    """Whether a text means to be a reference by name, well or badly written."""
    return text.partition(":")[0] in {form.partition(":")[0] for form in (*FORMS, *OF_FILES)}


def channel_axis(name: str, shape: Shape, one_hot: OneHot, count: int | None, batched: bool, text: str) -> int:
    """The channel axis of input `name`: the one that `one_hot` names, else the only one behind the batch that fits.

    That is the one of `count` channels, or of 4 (bases) where `count` is None. `text` is the reference, for messages.
    Raises OptionError where there is none or several, or what is named has another extent.
    """
    dims = shape or ()
    given = one_hot.get(name) if isinstance(one_hot, Mapping) else one_hot
    if given is None:
        wanted = BASES if count is None else count
        fits = [axis for axis in range(int(batched), len(dims)) if dims[axis] == wanted]
        if len(fits) != 1:
            raise OptionError(
                f"which axis of input {name!r}, of shape {shown(dims)}, holds the channels for reference {text!r} "
                f"cannot be told: {len(fits) or 'none'} of its axes have extent {wanted}. Name it with `one_hot`"
            )
        return fits[0]
    axis = given + len(dims) if given < 0 else given
    if not int(batched) <= axis < len(dims):
        raise OptionError(f"`one_hot` names axis {given} of input {name!r}, which has no channels there: {shown(dims)}")
    if count is not None and isinstance(dims[axis], int) and dims[axis] != count:
        raise OptionError(
            f"reference {text!r} has {count} frequencies, but axis {axis} of input {name!r} has {dims[axis]} channels"
        )
    return axis


def recorded(about: Mapping[str, Any]) -> tuple[Builder, dict[str, list[int]]] | None:
    """The builder in an explainer's metadata, and the axes it works along by input. Raises ModelError: damaged."""
    entry = about.get("builder")
    if entry is None:
        return None
    try:
        builder = parse(entry["spec"]).builder
        axes = {str(name): [int(axis) for axis in entry["axes"][name]] for name in about["references"]}
    except (OptionError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"the explainer's metadata on its reference are damaged: {error}. Rewrite it.") from error
    return None if builder is None else (builder, axes)


def _blur(text: str, rest: str) -> Builder:
    number, colon, axes = rest.partition(":")
    (sigma, *more) = _numbers(text, number)
    if more or sigma <= 0:
        raise OptionError(f"reference {text!r} needs a number of pixels above 0, as in 'blur:5'")
    try:
        along = tuple(int(axis) for axis in axes.split(",")) if colon else ()
    except ValueError as error:
        raise OptionError(f"reference {text!r} names no axes, as in 'blur:5:1,2'") from error
    return Builder(text, "blur", sigma=sigma, axes=along)


def _tokens(text: str, rest: str) -> tuple[int, ...]:
    token, colon, keep = rest.partition(":")
    ids = [token, *(keep.split(",") if colon else ())]
    if not all(number.isdecimal() and len(number) < 10 for number in ids):
        raise OptionError(f"reference {text!r} needs an id, and may name others that stay, as in 'token:0:101,102'")
    return tuple(map(int, ids))


def _numbers(text: str, rest: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in rest.split(","))
    except ValueError as error:
        raise OptionError(
            f"reference {text!r}: {rest!r} is not a number or several with commas between them"
        ) from error
    if not all(map(math.isfinite, values)):
        raise OptionError(f"reference {text!r} needs finite numbers")
    return values


def _few(extent: int | str | None) -> bool:
    return isinstance(extent, int) and extent <= _MOST_COLOURS
