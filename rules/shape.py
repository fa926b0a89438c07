"""Movement operators: values change place, multipliers move back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from onnxlift.functions import (
    cast,
    concat,
    reduce_sum,
    reshape,
    slice_axis,
    transpose,
    unsqueeze,
    where,
    widen,
)
from onnxlift.registry import AI_ONNX_ML, rule
from onnxlift.rules.gather import by_index, places_by_index, zero_pad
from onnxlift.rules.linear import channelwise, parts_or_zeros, summed
from onnxlift.signed import Parts
from onnxlift.site import Site
from onnxlift.tensor import Tensor


def _alike(site: Site) -> list[Parts]:
    """The parts of x in y's shape and precision."""
    return [Parts(*(site.y.like(cast(part, site.y.dtype)) for part in site.x.parts))]


@rule("movement", "Identity", parts=lambda site: [site.x.parts])
def identity(site: Site) -> list[Tensor]:
    """m_x = m_y."""
    return [site.m]


def _undropped(site: Site) -> list[Parts]:
    """The parts of x, as far as they are kept."""
    kept = _kept(site)
    return [site.x.parts if kept is None else Parts(*(part * kept for part in site.x.parts))]


@rule("movement", "Dropout", parts=_undropped)
def undropped(site: Site) -> list[Tensor]:
    """m_x = m_y; dy/dx m_y where whether it drops anything is known at run time only."""
    kept = _kept(site)
    return [site.m if kept is None else site.m * kept]


def _kept(site: Site) -> Tensor | None:
    """dy/dx, None where nothing is dropped."""
    ratio, training = site.optional(1), site.optional(2)
    if training is None or (ratio is not None and ratio.constant is not None and not ratio.constant.any()):
        return None
    if training.constant is None:
        d = site.x.d
        return where(d.equals(0), 1.0, site.y.d / where(d.equals(0), 1.0, d))
    if training.constant.any():
        site.refuse("it drops at random (training mode)")
    return None


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
    values = site.operands
    parts = [parts_or_zeros(x) for x in values]
    return [Parts(*(concat(side, axis) for side in zip(*parts, strict=True)))]


@rule("movement", "Concat", parts=_side_by_side)
def concatenated(site: Site) -> list[Tensor | None]:
    """Every part gets its piece of m_y."""
    axis = site.attribute("axis") % site.y.rank
    parts = site.operands
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


@rule("movement", "Trilu", parts=channelwise)
def triangle(site: Site) -> list[Tensor | None]:
    """The same triangle of m_y."""
    site.only_active(0)
    return [site.emitter.op("Trilu", site.m, site.tensor(1), upper=site.attribute("upper", 1))]


def _padded_parts(site: Site) -> list[Parts]:
    """Either part padded with that of the border's value, which is 0 where the value carries no importance."""
    x, value = site.x, site.optional(2)
    inside = parts_or_zeros(x)
    border = value.parts if value is not None and value.active else (None, None)
    axes = [site.tensor(3)] if site.optional(3) else []
    sides = zip(inside, border, strict=True)
    return [Parts(*(site.again(part, site.tensor(1), edge, *axes) for part, edge in sides))]


@rule("movement", "Pad", parts=_padded_parts)
def padded(site: Site) -> Sequence[Tensor | None]:
    """Cut the padding off m_y, and sum it for the border's value; in the modes that copy, add it to what it copies."""
    site.only_active(0, 2)
    if site.attribute("mode", "constant") != "constant":
        return [places_by_index(site)]
    value = site.optional(2)
    m_x = _without_border(site) if site.x.active else None
    if value is None or not value.active:
        return [m_x]
    one, m = site.emitter.constant(1, value.dtype), widen(site.m)
    outside = site.emitter.op("Pad", site.x.zeros(), site.tensor(1), one, site.tensor(3), shape=site.y.shape)
    total = site.emitter.op("ReduceSum", m * cast(outside, m.dtype), keepdims=0, shape=())
    return [m_x, None, value.like(cast(total, value.dtype))]


def _without_border(site: Site) -> Tensor:
    """m_y where y is x."""
    pads, axes = site.input(1), site.optional(3)
    if pads.constant is None or (pads.constant < 0).any() or (axes is not None and axes.constant is None):
        return site.emitter.op("Pad", site.m, -pads.x, None, site.tensor(3))
    begins, ends = np.split(pads.constant, 2)
    along = range(site.x.rank) if axes is None or axes.constant is None else [int(a) for a in axes.constant]
    stops = [-int(end) if end else np.iinfo(np.int64).max for end in ends]
    return site.emitter.op("Slice", site.m, *map(site.emitter.ints, (begins.tolist(), stops, along)))


@rule("movement", "CenterCropPad", parts=channelwise)
def centered(site: Site) -> list[Tensor | None]:
    """The same operator, back to x's extents: what is cut off returns as zeros, what was added is cut off."""
    site.only_active(0)
    axes = site.attribute("axes", None)
    extents = [site.x.dim(axis) for axis in (range(site.x.rank) if axes is None else axes)]
    return [site.emitter.op("CenterCropPad", site.m, concat(extents, axis=0), axes=axes, shape=site.x.shape)]


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
    ends = site.input(2).constant
    cut = {
        axis: begin
        for index, (axis, begin) in enumerate(zip(along, begins, strict=True))
        if begin or not _is_whole(site, axis, None if ends is None else int(ends[index]))
    }
    return [zero_pad(site.m, site.x, cut) if cut else site.m]


def _is_whole(site: Site, axis: int, end: int | None) -> bool:
    """Whether a Slice that begins at the first place of an axis ends at the last one."""
    before, after = (None if value.shape is None else value.shape[axis] for value in (site.x, site.y))
    return (end is not None and end >= 2**31 - 1) or (before is not None and before == after)


@rule("movement", "Tile", parts=channelwise)
def tiled(site: Site) -> list[Tensor | None]:
    """m_x sums m_y over the copies."""
    site.only_active(0)
    x, repeats = site.x, site.input(1)
    dims: list[Tensor] = []
    copies = []
    for axis in range(x.rank):
        times = slice_axis(repeats.x, 0, axis, axis + 1)
        if repeats.constant is not None:
            times = site.emitter.ints([int(repeats.constant[axis])])
        if times.value is None or times.value.item() != 1:
            copies.append(len(dims))
            dims.append(times)
        dims.append(x.dim(axis))
    return [x.like(reduce_sum(grouped(site.m, dims), copies, keepdims=False))]


def grouped(m: Tensor, dims: Sequence[Tensor]) -> Tensor:
    """m reshaped to these extents, int64 of shape [1] each: a constant shape where at most one of them is unknown."""
    known = [None if dim.value is None else int(dim.value.item()) for dim in dims]
    if known.count(None) == 1 and 0 not in known:
        return reshape(m, [-1 if dim is None else dim for dim in known])
    return reshape(m, concat(dims, axis=0))


@rule("movement", "DepthToSpace", parts=channelwise)
def depth_to_space(site: Site) -> list[Tensor]:
    """SpaceToDepth of m_y; in CRD mode the places of a block are the last part of x's channels, not the first."""
    x, block = site.x, int(site.attribute("blocksize"))
    m = site.emitter.op("SpaceToDepth", site.m, blocksize=block, shape=x.shape)
    if site.attribute("mode", "DCR") == "DCR":
        return [m]
    extents = [x.dim(0), site.emitter.ints([block * block]), site.y.dim(1), x.dim(2), x.dim(3)]
    return [x.like(transpose(grouped(m, extents), [0, 2, 1, 3, 4]))]


@rule("movement", "SpaceToDepth", parts=channelwise)
def space_to_depth(site: Site) -> list[Tensor]:
    """DepthToSpace of m_y."""
    return [site.emitter.op("DepthToSpace", site.m, blocksize=site.attribute("blocksize"), shape=site.x.shape)]


@rule("movement", "ReverseSequence", parts=channelwise)
def reversed_(site: Site) -> list[Tensor | None]:
    """The same operator on m_y."""
    site.only_active(0)
    return [site.again(site.m)]


def _vector_parts(site: Site) -> list[Parts]:
    """The parts of every operand's features, zeros for one that carries no importance."""
    values = site.operands
    parts = [parts_or_zeros(x) for x in values]
    sides = zip(*(map(partial(_features, site, index), x) for index, x in enumerate(parts)), strict=True)
    return [Parts(*(site.y.like(concat(list(side), axis=1)) for side in sides))]


def _features(site: Site, index: int, t: Tensor) -> Tensor:
    """An operand of FeatureVectorizer as it takes it: [N, count], cut or filled with zeros."""
    x, count = site.input(index), site.attribute("inputdimensions")[index]
    rows = cast(unsqueeze(t, [0]) if x.rank == 1 else t, site.y.dtype)
    return _fit_columns(rows, x.dim(-1), site.emitter.ints([count]))


def _fit_columns(t: Tensor, extent: Tensor, wanted: Tensor) -> Tensor:
    """[N, extent] cut or filled with zeros to [N, wanted]."""
    more = wanted - extent
    if more.value is not None and not more.value.any():
        return t
    return t.emitter.op(
        "Pad", t, concat([t.emitter.ints([0, 0, 0]), more], axis=0), shape=(*(t.shape or (None,))[:1], None)
    )


@rule("movement", "FeatureVectorizer", domain=AI_ONNX_ML, parts=_vector_parts)
def vectorized(site: Site) -> list[Tensor | None]:
    """As Concat of the operands' first features."""
    counts = site.attribute("inputdimensions")
    found: list[Tensor | None] = []
    for index, value in enumerate(site.inputs):
        if value is None or not value.active:
            found.append(None)
            continue
        if value.rank > 2:
            site.refuse(f"its input {value.name!r} is neither a vector nor a matrix")
        begin = sum(counts[:index])
        piece = slice_axis(site.m, 1, begin, begin + counts[index])
        found.append(
            cast(value.like(_fit_columns(piece, site.emitter.ints([counts[index]]), value.dim(-1))), value.dtype)
        )
    return found
