"""Operators that look at an image between its places (METHOD section 5).

y = A(g) x is linear in the image x, and a function of the coordinates g. The change splits into (A + A0)/2 dx, of which
x gets the transpose, and (A - A0) (x + r)/2, which goes to the coordinates of the very points that it arises at, as
their Shapley values (rules/taps.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxlift.functions import (
    amount,
    arange,
    cast,
    concat,
    gather_elements,
    maximum,
    reduce_sum,
    regroup,
    reshape,
    scatter_add,
    shape_of,
    slice_axis,
    squeeze,
    swap_last,
    unsqueeze,
    where,
)
from onnxlift.registry import condition, rule
from onnxlift.rules.axes import product
from onnxlift.rules.conditions import Shares, changes, proportions, to_roots
from onnxlift.rules.linear import channelwise, mixed
from onnxlift.rules.taps import (
    KERNELS,
    LINEAR,
    Sampling,
    Taps,
    mirrored_at_edges,
    mirrored_at_places,
    repeated,
)
from onnxlift.rules.windows import numbers
from onnxlift.signed import Parts
from onnxlift.site import Pairing, Site, Value
from onnxlift.tensor import INT64, Tensor


@rule("midpoint", "GridSample")
def grid_sample(site: Site) -> list[Tensor | None]:
    """m_X = (A(g) + A(g0))^T m_Y / 2; m_g: the Shapley values of a point's coordinates at X's midpoint (METHOD 5)."""
    x, grid = site.x, site.input(1)
    extents = [x.dim(axis) for axis in range(2, x.rank)]
    r = _taps(site, grid.full_r, extents) if grid.active else None
    sampling, m = Sampling(x, extents, _taps(site, grid.x, extents), r), regroup(site.m, 2, [-1])
    m_grid = None
    if grid.active:
        differences = [_coordinate(grid.d, axis, len(extents)) for axis in range(len(extents))]
        found = sampling.to_coordinates(m, differences, [_rate(site, extent) for extent in extents])
        m_grid = grid.like(concat([unsqueeze(part, [2]) for part in reversed(found)], axis=2))
    return [sampling.to_image(m) if x.active else None, m_grid]


def _coordinate(grid: Tensor, axis: int, rank: int) -> Tensor:
    """The coordinate of every point along a spatial axis, [samples, points]: the last axis comes first."""
    points = regroup(grid, 1, [-1, rank])
    return squeeze(slice_axis(points, 2, rank - 1 - axis, rank - axis), [2])


def _rate(site: Site, extent: Tensor) -> Tensor:
    """How many places a unit of a coordinate is."""
    span = extent - 1 if site.attribute("align_corners", 0) else extent
    return cast(span, site.input(1).dtype) * 0.5


def _taps(site: Site, grid: Tensor, extents: list[Tensor]) -> list[Taps]:
    """-1 and 1 are the outermost places (align_corners) or the edges behind them."""
    corners = site.attribute("align_corners", 0)
    kernel = KERNELS[site.attribute("mode", "linear")]
    border = {
        "zeros": None,
        "border": repeated,
        "reflection": mirrored_at_places if corners else mirrored_at_edges,
    }[site.attribute("padding_mode", "zeros")]
    found = []
    for axis, extent in enumerate(extents):
        u = _coordinate(grid, axis, len(extents)) + 1
        size = amount(extent, grid.dtype)
        u = u * 0.5 * (size - 1) if corners else (u * size - 1) * 0.5
        found.append(Taps.of(u, extent, kernel, border))
    return found


# --- grids -----------------------------------------------------------------------------------------------------------


def _points(site: Site) -> Tensor:
    """Where the points of the grid are without a transformation, and 1: [points, rank + 1]."""
    emitter, size, rank = site.emitter, site.input(1).x, site.y.rank - 2
    alone = concat([emitter.ints([1]), slice_axis(size, 0, 1, rank + 2)], axis=0)
    if size.value is not None:
        alone = emitter.ints([1, *size.value.tolist()[1:]])
    identity = emitter.constant(np.eye(rank, rank + 1)[None], site.x.dtype)
    corners = site.attribute("align_corners", 0)
    grid = emitter.op("AffineGrid", identity, alone, align_corners=corners, shape=(1, *(site.y.shape or ())[1:]))
    ones = emitter.constant(1, site.x.dtype)
    return emitter.op("Pad", reshape(grid, [-1, rank]), emitter.ints([0, 0, 0, 1]), ones, shape=(None, rank + 1))


def _grid_parts(site: Site) -> list[Parts]:
    parts = mixed(site.x.d, _points(site), lambda theta, points: points @ swap_last(theta))
    return [Parts(*map(site.y.like, parts))]


@rule("linear", "AffineGrid", parts=_grid_parts, mixes=True)
def affine_grid(site: Site) -> list[Tensor | None]:
    """m_theta = m_Y^T P, with P the points that theta is applied to, and 1."""
    m = regroup(site.m, 1, [-1, site.y.rank - 2])
    return [swap_last(m) @ site.weight(_points(site))]


# --- places that a maximum came from ---------------------------------------------------------------------------------

LARGEST = 2**24
"""Numbers up to this one are exact in float32."""


@rule("movement", "MaxUnpool", conditions=True, parts=channelwise)
def unpooled(site: Site) -> list[Tensor | None]:
    """m_x = m_y at x's place; of a place that moves, the mean of both, and (m_y - m_y0) (x + x0)/2 is the place's."""
    site.only_active(0)
    x, places = site.x, site.input(1)
    if not site.roots:
        return [_collected(site, places.x)]
    m, m0 = (_collected(site, at) for at in (places.x, places.full_r))
    contributed = (m - m0) * x.mid
    rest = [None] * (len(site.inputs) - 1)
    return [(m + m0) * 0.5 if x.active else None, *rest, *to_roots(site, places, contributed, places.shape)]


def _collected(site: Site, places: Tensor) -> Tensor:
    """m_y where these places of x are in y. Of several elements at one place, the one that the operator leaves there.

    The operator moves the numbers 1, 2, 3 ... instead of a sample of x; its kernel has no integers.
    """
    emitter, x = site.emitter, site.x
    sizes = concat([x.dim(axis) for axis in range(1, x.rank)], axis=0)
    if sizes.value is not None and sizes.value.prod() > LARGEST:
        site.refuse("a sample has more elements than float32 can count")
    numbers = reshape(cast(arange(product(sizes)) + 1, x.dtype), concat([emitter.ints([1]), sizes], axis=0))
    m = regroup(site.m, 1, [-1])
    area = shape_of(m, 1)
    first = reshape(arange(shape_of(m, 0, 1)) * area, [-1] + [1] * (x.rank - 1))
    within = emitter.op("Mod", places, area, shape=places.shape)  # of one reference: the places in the first sample
    origin = regroup(cast(site.again(x.spread(numbers), within + first), INT64), 1, [-1])  # 0: nobody's
    m = where(origin > 0, m, 0.0)
    return x.like(scatter_add(regroup(x.zeros(), 1, [-1]), maximum(origin - 1, 0), m, axis=1))


@condition("MaxPool")
def pooled_places(site: Site, varying: Sequence[int], arrived: Shares) -> Shares:
    """As for ArgMax: divided between the places of both runs' maxima by the squares of their differences."""
    places, c = site.outputs[1], arrived[1]
    if places is None or c is None or site.attribute("storage_order", 0):
        site.refuse("its indices count columns first")
    c, x = regroup(c, 1, [-1]), site.x
    size = product(concat([x.dim(axis) for axis in range(1, x.rank)], axis=0))
    d = regroup(x.spread(changes(x, c)), 1, [-1])
    both = [regroup(site.emitter.op("Mod", at, size, shape=at.shape), 1, [-1]) for at in (places.x, places.full_r)]
    weights = proportions([gather_elements(d, at, 1) for at in both])
    share = regroup(x.spread(c.emitter.constant(0, c.dtype)), 1, [-1])
    for at, weight in zip(both, weights, strict=True):
        share = scatter_add(share, at, c * weight, axis=1)
    return [x.like(share)]


# --- deformable convolution ------------------------------------------------------------------------------------------


@rule("midpoint", "DeformConv")
def deformable_convolution(site: Site) -> list[Tensor | None]:
    """Y = W S + B and S = mask V by midpoints, V what the points of every tap see, as in GridSample (METHOD 5)."""
    x, weight, bias, mask = site.x, site.input(1), site.optional(3), site.optional(4)
    sizes = [size for size in weight.shape or () if isinstance(size, int)]
    if len(sizes) != 4:
        site.refuse("the shape of its weight is known at run time only")
    group, (outputs, inputs, *kernel) = site.attribute("group", 1), sizes
    columns, area = inputs * math.prod(kernel), site.y.dim(2) * site.y.dim(3)  # of a group, and of the output
    sampling = _points_of_taps(site, inputs * group, kernel)
    v, factor = sampling.values, None if mask is None else _apart(site, mask, [1, area * math.prod(kernel)])

    def by_group(samples: Tensor) -> Tensor:
        return reshape(samples, concat([site.emitter.ints([-1, group, columns]), area], axis=0))

    m = regroup(site.m, 1, [group, outputs // group, -1])
    m_w = m_mask = None
    if weight.active:
        s, s0 = (v.x, v.r) if factor is None else (v.x * factor.x, v.r * factor.r)
        per_sample = m @ swap_last(by_group((s + s0) * 0.5))
        m_w = weight.like(reduce_sum(per_sample, [0], keepdims=False))
    m_v = swap_last(reshape(weight.mid, [group, outputs // group, columns])) @ m
    m_v = reshape(m_v, shape_of(v.x))
    if mask is not None and factor is not None:
        if mask.active:
            m_mask = mask.like(reduce_sum(m_v * v.mid, [1], keepdims=False))
        m_v = m_v * factor.mid
    m_offset = None
    if site.input(2).active:
        shifts = _shifts(site, kernel).d
        d = [regroup(slice_axis(shifts, 2, axis, axis + 1), 1, [-1]) for axis in range(2)]
        found = [regroup(part, 1, [math.prod(kernel), 1, -1]) for part in sampling.to_coordinates(m_v, d, [None, None])]
        m_offset = site.input(2).like(concat(found, axis=2))
    m_b = reduce_sum(site.m, [0, 2, 3], keepdims=False) if bias is not None and bias.active else None
    return [x.like(sampling.to_image(m_v)) if x.active else None, m_w, m_offset, m_b, m_mask]


def _apart(site: Site, value: Value, dims: Sequence[Tensor | int]) -> Value:
    """Samples times groups of offsets in front, then `dims`."""
    sizes = concat([site.emitter.ints([dim]) if isinstance(dim, int) else dim for dim in (-1, *dims)], axis=0)
    r = reshape(value.full_r, sizes) if value.active else reshape(value.x, sizes)
    return Value(value.name, reshape(value.x, sizes), r, value.active, Pairing())


def _shifts(site: Site, kernel: Sequence[int]) -> Value:
    """The offsets: [samples and groups, taps, 2, ...]."""
    return _apart(site, site.input(2), [math.prod(kernel), 2, site.y.dim(2), site.y.dim(3)])


def _points_of_taps(site: Site, channels: int, kernel: Sequence[int]) -> Sampling:
    """Every tap of every window is a point; samples times groups of offsets look at channels of their own."""
    x, shifts = site.x, _shifts(site, kernel)
    extents = [x.dim(2), x.dim(3)]
    strides, dilations, pads = (
        numbers(site, name, [default] * 4) for name, default in (("strides", 1), ("dilations", 1), ("pads", 0))
    )

    def seen(t: Tensor) -> list[Taps]:
        found = []
        for axis, extent in enumerate(extents):
            windows = arange(site.y.dim(axis + 2)) * strides[axis] - pads[axis]
            steps = site.emitter.constant(np.indices(kernel)[axis].reshape(-1, 1, 1) * dilations[axis], INT64)
            start = steps + reshape(windows, [-1] + [1] * (1 - axis))
            u = squeeze(slice_axis(t, 2, axis, axis + 1), [2]) + cast(start, t.dtype)
            found.append(Taps.of(regroup(u, 1, [-1]), extent, LINEAR, None))
        return found

    image = _apart(site, x, [channels // site.attribute("offset_group", 1), *extents])
    return Sampling(image, extents, seen(shifts.x), seen(shifts.r) if shifts.active else None)
