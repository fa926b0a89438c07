"""Movement operators: values change place, multipliers move back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxlift.functions import (
    arange,
    cast,
    concat,
    expand,
    logical_and,
    logical_not,
    logical_or,
    maximum,
    minimum,
    reshape,
    scatter_add,
    shape_of,
    transpose,
    unsqueeze,
    where,
)
from onnxlift.registry import rule
from onnxlift.rules.linear import channelwise, summed
from onnxlift.signed import Parts
from onnxlift.site import Site, Value, unbroadcast
from onnxlift.tensor import INT64, Tensor


def _alike(site: Site) -> list[Parts]:
    """The parts of x in y's shape and precision."""
    return [Parts(*(site.y.like(cast(part, site.y.dtype)) for part in site.x.parts))]


@rule("movement", "Identity", "Dropout", parts=lambda site: [site.x.parts])
def identity(site: Site) -> list[Tensor]:
    """m_x = m_y."""
    training = site.constant(2, "training_mode") if site.op == "Dropout" else None
    if training is not None and training.item():
        site.refuse("it drops at random (training mode)")
    return [site.m]


@rule("movement", "Cast", "CastLike", conditions=True, parts=_alike)
def convert(site: Site) -> list[Tensor | None]:
    """m_x = m_y in x's precision; of an indicator c(z): m_z = m_y (c - c0) / dz."""
    if site.roots:
        return [*(None for _ in site.inputs), _jump(site, site.m * site.y.d)]
    return [cast(site.m, site.x.dtype)]


def _jump(site: Site, contribution: Tensor) -> Tensor:
    """The multiplier of the condition's root that turns a change of the condition into `contribution`."""
    z = site.roots[0]
    m = where(z.d.equals(0), 0.0, cast(contribution, z.dtype) / z.d)
    return unbroadcast(m, site.y.shape, z)


@rule("movement", "Reshape", "Flatten", "Squeeze", "Unsqueeze", parts=_alike)
def reshaped(site: Site) -> list[Tensor]:
    """m_x is m_y in x's shape."""
    return [site.x.like(site.m)]


@rule("movement", "Transpose", parts=channelwise)
def transposed(site: Site) -> list[Tensor]:
    """The inverse permutation."""
    permutation = site.attribute("perm", list(range(site.x.rank))[::-1])
    return [transpose(site.m, [int(axis) for axis in np.argsort(permutation)])]


@rule("movement", "Expand", broadcasts=True, parts=lambda site: summed(site, [site.x.parts]))
def expanded(site: Site) -> list[Tensor]:
    """m_x sums m_y over the axes along which x was repeated."""
    return [site.m]


def _side_by_side(site: Site) -> list[Parts]:
    """The parts of every operand, zeros for one that carries no importance."""
    axis = site.attribute("axis") % site.y.rank
    values = [site.input(index) for index in range(len(site.inputs))]
    parts = [x.parts if x.active else Parts(x.zeros(), x.zeros()) for x in values]
    return [Parts(*(concat(side, axis) for side in zip(*parts, strict=True)))]


@rule("movement", "Concat", parts=_side_by_side)
def concatenated(site: Site) -> list[Tensor | None]:
    """Every part gets its piece of m_y."""
    axis = site.attribute("axis") % site.y.rank
    parts = [site.input(index) for index in range(len(site.inputs))]
    if len(parts) == 1:
        return [site.m]
    sizes = concat([part.dim(axis) for part in parts], axis=0)
    return list(site.emitter.ops("Split", site.m, sizes, axis=axis, shapes=[part.shape for part in parts]))


def _pieces(site: Site) -> list[Parts | None]:
    """Either part split as x is."""
    shapes = [None if value is None else value.shape for value in site.outputs]
    sides = [site.emitter.ops(site.op, part, site.tensor(1), shapes=shapes, **site.attributes) for part in site.x.parts]
    return [Parts(*pieces) for pieces in zip(*sides, strict=True)]


@rule("movement", "Split", parts=_pieces)
def split(site: Site) -> list[Tensor]:
    """The pieces of m_y side by side; zeros for an output that does not reach the target."""
    axis = site.attribute("axis", 0) % site.x.rank
    pieces = [
        value.zeros() if m is None else m
        for value, m in zip(site.outputs, site.multipliers, strict=True)
        if value is not None
    ]
    return [concat(pieces, axis)]


def _selected_parts(site: Site) -> list[Parts]:
    """The parts of the branch that is selected; zeros for one that carries no importance."""
    condition, a, b = site.input(0), site.input(1), site.input(2)
    zeros = a.zeros() if a.active else b.zeros()
    sides = [x.parts if x.active else Parts(zeros, zeros) for x in (a, b)]
    return summed(site, [Parts(*(where(condition.x, *side) for side in zip(*sides, strict=True)))])


@rule("movement", "Where", conditions=True, parts=_selected_parts)
def selected(site: Site) -> list[Tensor | None]:
    """m_a = m_y where c, m_b = m_y elsewhere; where c(z) differs from c0, m_z = m_y dy / dz."""
    condition, a, b = site.input(0), site.input(1), site.input(2)
    m, of = site.m, site.y.shape
    chosen, rejected = condition.x, logical_not(condition.x)
    jump = None
    if site.roots:
        c, c0 = condition.x, condition.r
        chosen, rejected = logical_and(c, c0), logical_not(logical_or(c, c0))
        jump = _jump(site, where(logical_or(chosen, rejected), 0.0, m * site.y.d))
    m_a = unbroadcast(where(chosen, m, 0.0), of, a) if a.active else None
    m_b = unbroadcast(where(rejected, m, 0.0), of, b) if b.active else None
    return [None, m_a, m_b, jump]


@rule("movement", "Trilu", parts=channelwise)
def triangle(site: Site) -> list[Tensor | None]:
    """The same triangle of m_y."""
    site.only_active(0)
    return [site.emitter.op("Trilu", site.m, site.tensor(1), upper=site.attribute("upper", 1))]


def _padded_parts(site: Site) -> list[Parts]:
    """Either part padded, a constant border being 0."""
    return [Parts(*(site.again(part, site.tensor(1), *[None][: len(site.inputs) - 2]) for part in site.x.parts))]


@rule("movement", "Pad", parts=_padded_parts)
def padded(site: Site) -> Sequence[Tensor | None]:
    """Cut the padding off m_y; add it back to where it was copied from in the modes that copy."""
    site.only_active(0)
    if site.attribute("mode", "constant") != "constant":
        return by_index(site)
    pads, axes = site.input(1), site.optional(3)
    if pads.constant is None or (pads.constant < 0).any() or (axes is not None and axes.constant is None):
        return [site.emitter.op("Pad", site.m, -pads.x, None, site.tensor(3))]
    begins, ends = np.split(pads.constant, 2)
    along = range(site.x.rank) if axes is None or axes.constant is None else [int(a) for a in axes.constant]
    stops = [-int(end) if end else np.iinfo(np.int64).max for end in ends]
    return [site.emitter.op("Slice", site.m, *map(site.emitter.ints, (begins.tolist(), stops, along)))]


@rule("movement", "Slice", parts=channelwise)
def sliced(site: Site) -> Sequence[Tensor | None]:
    """m_y surrounded by zeros."""
    site.only_active(0)
    given = [site.optional(index) for index in (1, 3, 4)]
    starts, axes, steps = (None if value is None else value.constant for value in given)
    known = all(value is None or value.constant is not None for value in given)
    if starts is None or not known or (steps is not None and (steps != 1).any()):
        return by_index(site)
    begins = [int(start) for start in starts]
    along = range(len(begins)) if axes is None else [int(axis) % site.x.rank for axis in axes]
    return [_zero_pad(site.m, site.x, dict(zip(along, begins, strict=True)))]


def _zero_pad(m: Tensor, x: Value, begins: dict[int, int]) -> Tensor:
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


@rule("movement", "Gather", parts=channelwise)
def gathered(site: Site) -> Sequence[Tensor | None]:
    """Every multiplier goes back to the place that its value came from; places taken twice add up."""
    site.only_active(0)
    x, indices = site.x, site.input(1)
    axis = site.attribute("axis", 0) % x.rank
    if indices.constant is not None and indices.constant.size == 1:
        at = {axis: int(indices.constant.item())}
        one = site.m if indices.rank == 1 else unsqueeze(site.m, [axis])
        if indices.rank <= 1:
            return [_zero_pad(one, x, at)]
    return by_index(site)


@rule("movement", "GatherElements", "GatherND", "Tile", parts=channelwise)
def by_index(site: Site) -> Sequence[Tensor | None]:
    """The operator moves the numbers 0, 1, 2 ... instead of x; scatter m_y to where they came from, adding up."""
    site.only_active(0)
    emitter, x = site.emitter, site.x
    size = emitter.op("ReduceProd", x.run_shape, keepdims=1, shape=(1,))
    numbers = reshape(arange(size), x.run_shape)
    rest = [site.tensor(index) for index in range(1, len(site.inputs))]
    origin = emitter.op(site.op, numbers, *rest, dtype=INT64, shape=site.y.shape, **site.attributes)
    nothing = expand(emitter.constant(0, x.dtype), size)
    places, m = (reshape(tensor, [-1]) for tensor in (origin, site.m))
    return [x.like(scatter_add(nothing, places, m, axis=0))]
