"""Values read at an index, and OneHot; every multiplier goes back to the place that its value came from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxlift.functions import (
    arange,
    cast,
    concat,
    expand,
    maximum,
    minimum,
    reshape,
    scatter_add,
    shape_of,
    unsqueeze,
    widen,
)
from onnxlift.registry import rule
from onnxlift.rules.axes import elements
from onnxlift.rules.linear import channelwise
from onnxlift.rules.selection import indexed
from onnxlift.signed import Parts
from onnxlift.site import Site, Value
from onnxlift.tensor import INT64, Tensor

FLOAT64 = np.dtype(np.float64)

# --- the way back ----------------------------------------------------------------------------------------------------


def by_index(site: Site) -> Sequence[Tensor | None]:
    """The operator moves the numbers 0, 1, 2 ... instead of x; scatter m_y to where they came from, adding up."""
    site.only_active(0)
    return [places_by_index(site)]


def places_by_index(site: Site) -> Tensor:
    """The multiplier of the first input, whatever else is active."""
    rest, numbers = [site.tensor(index) for index in range(1, len(site.inputs))], numbered(site.x)
    if site.op == "Pad":
        rest[1:2] = [None]  # the value of a border, in modes that copy
        numbers = cast(numbers, FLOAT64)  # Pad of integers would stay on the CPU
    origin = site.emitter.op(site.op, numbers, *rest, shape=site.y.shape, **site.attributes)
    return to_origin(site.x, cast(origin, INT64), site.m)


def numbered(x: Value) -> Tensor:
    """0, 1, 2 ... in the shape of x, as int64."""
    return reshape(arange(elements(x)), x.run_shape)


def to_origin(x: Value, origin: Tensor, m: Tensor) -> Tensor:
    """m, whose elements belong to the places of x that `origin` numbers; what meets at one place adds up."""
    wide = widen(reshape(m, [-1]))
    nothing = expand(m.emitter.constant(0, wide.dtype), elements(x))
    return cast(x.like(scatter_add(nothing, reshape(origin, [-1]), wide, axis=0)), x.dtype)


def zero_pad(m: Tensor, x: Value, begins: dict[int, int]) -> Tensor:
    """Zeros around m up to x's extents; `begins` gives the position of m along each axis (from the end if < 0)."""
    emitter = m.emitter
    zero = emitter.ints([0])
    before, after = [zero] * x.rank, [zero] * x.rank
    for axis, begin in begins.items():
        extent = x.dim(axis)
        start = emitter.ints([begin]) if begin >= 0 else maximum(extent + begin, 0)
        start = minimum(start, extent)
        before[axis], after[axis] = start, extent - start - shape_of(m, axis, axis + 1)
    return emitter.op("Pad", m, concat([*before, *after], axis=0), shape=x.shape)


# --- the operators ---------------------------------------------------------------------------------------------------


@rule("movement", "Gather", conditions=True, parts=channelwise)
@indexed
def gathered(site: Site) -> Sequence[Tensor | None]:
    """Every multiplier goes back to the place that its value came from; places taken twice add up."""
    site.only_active(0)
    x, indices = site.x, site.input(1)
    axis = site.attribute("axis", 0) % x.rank
    if indices.constant is not None and indices.constant.size == 1:
        at = {axis: int(indices.constant.item())}
        one = site.m if indices.rank == 1 else unsqueeze(site.m, [axis])
        if indices.rank <= 1:
            return [zero_pad(one, x, at)]
    return by_index(site)


rule("movement", "GatherElements", "GatherND", conditions=True, parts=channelwise)(indexed(by_index))
rule("movement", "Compress", parts=channelwise)(by_index)


def _encoded_parts(site: Site) -> list[Parts]:
    return [Parts(*(_encoded(site, part) for part in site.input(2).parts))]


@rule("movement", "OneHot", conditions=True, parts=_encoded_parts)
@indexed
def encoded(site: Site) -> list[Tensor | None]:
    """The value for places that an index points to gets the sum of m_y there, the other one the sum elsewhere."""
    site.only_active(2)
    values, m = site.input(2), widen(site.m)
    sums = []
    for pair in ([1, 0], [0, 1]):
        counted = cast(_encoded(site, site.emitter.constant(pair, values.dtype)), m.dtype)
        sums.append(site.emitter.op("ReduceSum", m * counted, keepdims=0, shape=()))
    return [None, None, cast(concat([reshape(total, [1]) for total in sums], axis=0), values.dtype)]


def _encoded(site: Site, values: Tensor) -> Tensor:
    return site.again(site.tensor(0), site.tensor(1), values)
