"""Regions of interest: RoiAlign and MaxRoiPool, functions of an image x and of boxes g (METHOD sections 4 and 5).

Averages are linear in the image and separable: a box looks at the rows with weights A_y and at the columns with A_x, so
that y = A_y x A_x^T and m_x sums A_y^T m_y A_x over the boxes of an image, in products of matrices. Maxima go by the
rule of the maximum over the places that a bin sees. Where boxes change, the image gets the mean of what it gets with
the boxes of either run, and the rest of dy goes to the numbers of the very box that it arises at, in proportion to the
squares of their differences: m_i = d_i sum(m_y dy) / sum(d^2), and 0 where a box does not move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

from onnxlift.functions import (
    absolute,
    arange,
    cast,
    concat,
    expand,
    gather_elements,
    logical_and,
    maximum,
    minimum,
    reduce_sum,
    regroup,
    reshape,
    scatter_add,
    shape_of,
    sign,
    slice_axis,
    squeeze,
    transpose,
    unsqueeze,
    where,
)
from onnxlift.registry import rule
from onnxlift.rules.maximum import first_place, winner
from onnxlift.site import Pairing, Site, Value
from onnxlift.tensor import INT64, Tensor, limits, unary


@rule("midpoint", "RoiAlign")
def region_align(site: Site) -> list[Tensor | None]:
    """m_x = (A(g) + A(g0))^T m_y / 2; maxima: of every bin by the rule of the maximum (METHOD 4 and 5)."""
    if site.attribute("mode", "avg") == "max":
        return _of_maxima(site, _sampled)
    x, boxes = site.x, site.input(1)
    m_boxes = None
    if boxes.active:
        m_boxes = _to_boxes(site, site.again(x.mid, boxes.x) - site.again(x.mid, boxes.full_r))
    runs = [boxes.x, boxes.full_r] if boxes.active else [boxes.x]
    return [_mean([_averages_back(site, run) for run in runs]) if x.active else None, m_boxes]


@rule("cross-max", "MaxRoiPool")
def region_pool(site: Site) -> list[Tensor | None]:
    """The rule of the maximum for every bin; what depends on the boxes goes to their numbers (METHOD 4)."""
    return _of_maxima(site, _binned)


def _mean(terms: Sequence[Tensor]) -> Tensor:
    return terms[0] if len(terms) == 1 else reduce(Tensor.__add__, terms) * (1 / len(terms))


def _to_boxes(site: Site, change: Tensor) -> Tensor:
    """The multipliers of the boxes' numbers, from the change of y that is due to them."""
    d = site.input(1).d
    total = unsqueeze(reduce_sum(site.m * change, [1, 2, 3], keepdims=False), [1])
    square = reduce_sum(d * d, [1])
    return d * (total / where(square.equals(0), 1.0, square))


def _owners(site: Site, boxes: Tensor) -> Tensor:
    """The image that every box lies in, [boxes]."""
    if site.op == "RoiAlign":
        return cast(site.input(2).x, INT64)
    return cast(squeeze(slice_axis(boxes, 1, 0, 1), [1]), INT64)


# --- averages --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Samples:
    """Where the bins of every box look, along one axis: coordinates `u`, [boxes, bins, samples].

    `present`: as many as the box has; `seen`: not too far outside of the image; `count`: their number, [boxes, 1, 1].
    """

    u: Tensor
    present: Tensor
    seen: Tensor
    count: Tensor


def _samples(site: Site, boxes: Tensor, axis: int) -> Samples:
    """Of RoiAlign, along the rows (axis 0) or the columns (axis 1)."""
    bins, extent = _bins(site, axis), cast(site.x.dim(axis + 2), boxes.dtype)
    aligned = site.attribute("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    start, end = (
        slice_axis(boxes, 1, number, number + 1) * site.attribute("spatial_scale", 1.0)
        for number in (1 - axis, 3 - axis)
    )
    size = end - start if aligned else maximum(end - start, 1)
    start, width = unsqueeze(start - 0.5 if aligned else start, [2]), unsqueeze(size / bins, [2])
    ratio = site.attribute("sampling_ratio", 0)
    if ratio > 0:
        count = boxes.emitter.constant([[[ratio]]], boxes.dtype)
        k = cast(arange(boxes.emitter.ints([ratio])), boxes.dtype)
        present = k < count
    else:
        count = unary("Ceil", width, shape=width.shape)
        some = concat([reshape(count, [-1]), boxes.emitter.constant([1], boxes.dtype)], axis=0)  # there may be no boxes
        most = boxes.emitter.op("ReduceMax", some, keepdims=1, shape=(1,))
        k = cast(arange(cast(most, INT64)), boxes.dtype)
        present = k < count
        count = maximum(count, 1)
    first = boxes.emitter.constant([[float(number)] for number in range(bins)], boxes.dtype) * width
    u = start + first + (k + 0.5) * width / count
    seen = logical_and(u >= -1, u <= extent)
    return Samples(minimum(maximum(u, 0), extent - 1), present, seen, count)


def _bins(site: Site, axis: int) -> int:
    """How many bins a box has along an axis."""
    if site.op == "RoiAlign":
        return int(site.attribute(("output_height", "output_width")[axis], 1))
    return int(site.attribute("pooled_shape")[axis])


def _averages_back(site: Site, boxes: Tensor) -> Tensor:
    """A^T m_y for these boxes."""
    x, m, emitter = site.x, site.m, site.emitter
    rows, columns = (_matrix(site, boxes, axis) for axis in range(2))
    samples, channels, height, width = (x.dim(axis) for axis in range(4))
    right = transpose(m @ unsqueeze(columns, [1]), [0, 2, 1, 3])  # [boxes, bins, channels, columns]
    right = reshape(right, concat([emitter.ints([-1]), channels * width], axis=0))
    mine = cast(unsqueeze(arange(samples), [1]).equals(_owners(site, boxes)), m.dtype)
    left = regroup(unsqueeze(mine, [1, 3]) * transpose(rows, [2, 0, 1]), 2, [-1])  # [samples, rows, boxes and bins]
    image = reshape(left @ right, concat([samples, height, channels, width], axis=0))
    return x.like(transpose(image, [0, 2, 1, 3]))


def _matrix(site: Site, boxes: Tensor, axis: int) -> Tensor:
    """The weights of the rows or columns, [boxes, bins, extent]: the mean of a hat function around every sample."""
    samples = _samples(site, boxes, axis)
    places = cast(arange(site.x.dim(axis + 2)), boxes.dtype)
    hats = maximum(1 - absolute(unsqueeze(samples.u, [3]) - places), 0)
    kept = unsqueeze(logical_and(samples.present, samples.seen), [3])
    return reduce_sum(where(kept, hats, 0.0), [2], keepdims=False) / samples.count


# --- maxima ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Taps:
    """The places that the bins of every box see along one axis, and their weights: [boxes, bins, taps].

    `present`: as many as the bin has; others are any place.
    """

    places: Tensor
    weights: Tensor
    present: Tensor


TapsOf = Callable[[Site, Tensor, int], Taps]
"""The taps of these boxes along the rows (axis 0) or the columns (axis 1)."""


def _sampled(site: Site, boxes: Tensor, axis: int) -> Taps:
    """Of RoiAlign: the two neighbours of every sample; one outside of the image has the weight 0."""
    samples = _samples(site, boxes, axis)
    low = unary("Floor", samples.u, shape=samples.u.shape)
    above = samples.u - low
    last = site.x.dim(axis + 2) - 1
    places = [cast(low, INT64), minimum(cast(low, INT64) + 1, last)]
    weights = [where(samples.seen, weight, 0.0) for weight in (1 - above, above)]
    present = expand(samples.present, shape_of(samples.u))
    present.shape = samples.u.shape
    return Taps(concat(places, axis=2), concat(weights, axis=2), concat([present, present], axis=2))


def _binned(site: Site, boxes: Tensor, axis: int) -> Taps:
    """Of MaxRoiPool: the places from the first to the last."""
    bins, extent = _bins(site, axis), site.x.dim(axis + 2)
    start, end = (
        _rounded(slice_axis(boxes, 1, number, number + 1) * site.attribute("spatial_scale", 1.0))
        for number in (2 - axis, 4 - axis)
    )
    width = maximum(end - start + 1, 1) / bins
    number = boxes.emitter.constant([float(number) for number in range(bins + 1)], boxes.dtype)
    edges = number * width  # [boxes, bins + 1]
    low, high = (
        maximum(minimum(cast(unary(op, edge, shape=edge.shape) + start, INT64), extent), 0)
        for op, edge in (("Floor", slice_axis(edges, 1, 0, bins)), ("Ceil", slice_axis(edges, 1, 1, bins + 1)))
    )
    most = concat([reshape(high - low, [-1]), boxes.emitter.ints([1])], axis=0)
    k = arange(boxes.emitter.op("ReduceMax", most, keepdims=1, shape=(1,)))
    places = unsqueeze(low, [2]) + k
    present = places < unsqueeze(high, [2])
    return Taps(minimum(places, extent - 1), cast(present, boxes.dtype), present)


def _rounded(t: Tensor) -> Tensor:
    """To the nearest whole number, halves away from 0."""
    above = absolute(t) + 0.5
    return sign(t) * unary("Floor", above, shape=above.shape)


def _of_maxima(site: Site, taps_of: TapsOf) -> list[Tensor | None]:
    """The multipliers of the image and of the boxes."""
    x, boxes = site.x, site.input(1)
    m_boxes = None
    if boxes.active:
        images = [x.x, x.full_r] if x.active else [x.x]
        m_boxes = _to_boxes(site, _mean([site.again(t, boxes.x) - site.again(t, boxes.full_r) for t in images]))
    runs = [boxes.x, boxes.full_r] if boxes.active else [boxes.x]
    return [_mean([_maxima_back(site, run, taps_of) for run in runs]) if x.active else None, m_boxes]


def _maxima_back(site: Site, boxes: Tensor, taps_of: TapsOf) -> Tensor:
    """What the places p of the maxima get for these boxes: m_y times dz/dx, z = weight x, times dy/dz."""
    x, emitter = site.x, site.emitter
    rows, columns = (taps_of(site, boxes, axis) for axis in range(2))
    samples, channels, height, width = (x.dim(axis) for axis in range(4))
    bins = [_bins(site, axis) for axis in range(2)]

    def combined(row: Tensor, column: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        both, taps = combine(unsqueeze(row, [2, 4]), unsqueeze(column, [1, 3])), shape_of(row, 2) * shape_of(column, 2)
        return reshape(both, concat([shape_of(row, 0, 1), emitter.ints([bins[0] * bins[1]]), taps], axis=0))

    first = unsqueeze(_owners(site, boxes) * (height * width), [1, 2])
    pixels = combined(rows.places * width, columns.places, Tensor.__add__) + first
    weights = combined(rows.weights, columns.weights, Tensor.__mul__)
    present = combined(rows.present, columns.present, logical_and)

    def seen(image: Tensor) -> Tensor:
        planes = transpose(regroup(image, 2, [-1]), [0, 2, 1])
        flat = reshape(planes, concat([emitter.ints([-1]), channels], axis=0))
        found = emitter.op(
            "Gather", flat, pixels, axis=0, shape=(*(pixels.shape or ()), planes.shape and planes.shape[2])
        )
        return where(unsqueeze(present, [3]), found * unsqueeze(weights, [3]), -limits(image).largest)

    z, z0 = seen(x.x), seen(x.full_r)
    i, j = (first_place("ArgMax", 2, t) for t in (z, z0))
    y = Value(site.y.name, gather_elements(z, i, 2), gather_elements(z0, j, 2), True, Pairing())
    found = winner(site, "cross-max", y, i, j, gather_elements(z0, i, 2), gather_elements(z, j, 2))
    place, factor = squeeze(found.place(i, j), [2]), squeeze(found.factor, [2])  # [boxes, bins, channels]
    weight = gather_elements(where(present, weights, 0.0), place, 2)
    m = transpose(regroup(site.m, 2, [bins[0] * bins[1]]), [0, 2, 1]) * factor * weight
    flat = concat([emitter.ints([-1]), channels], axis=0)
    nothing = expand(emitter.constant(0, m.dtype), concat([samples * height * width, channels], axis=0))
    image = scatter_add(nothing, reshape(gather_elements(pixels, place, 2), flat), reshape(m, flat), axis=0)
    image = reshape(image, concat([samples, height * width, channels], axis=0))
    return x.like(transpose(image, [0, 2, 1]))
