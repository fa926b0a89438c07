"""Resize: linear in its data and separable, one matrix W for every axis; multipliers take the transposes.

The matrix of an axis is what the operator itself makes of an identity matrix, so that coordinates, borders and
antialiasing are the kernel's; ONNX Runtime computes it once where extents are known. A place outside of the region of
interest shows the extrapolation value and has no weights. Nearest places of what grows by whole numbers need no
matrix: m_x sums blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxlift.functions import (
    absolute,
    arange,
    cast,
    concat,
    expand,
    reduce_sum,
    reshape,
    scatter_add,
    slice_axis,
    swap_last,
    transpose,
    widen,
)
from onnxlift.registry import rule
from onnxlift.rules.axes import elements
from onnxlift.signed import Parts
from onnxlift.site import Site, Value
from onnxlift.tensor import FLOAT32, INT64, Tensor

INT32 = np.dtype(np.int32)

INTERPOLATION = frozenset(
    "mode coordinate_transformation_mode nearest_mode cubic_coeff_a exclude_outside antialias".split()
)
"""The attributes that say what a place of y is made of; the others say how large y is."""

BLOCKS = frozenset(
    [(mode, f"round_prefer_{side}") for mode in ("half_pixel", "pytorch_half_pixel") for side in ("floor", "ceil")]
    + [("half_pixel_symmetric", f"round_prefer_{side}") for side in ("floor", "ceil")]
    + [("asymmetric", "floor"), ("tf_half_pixel_for_nn", "floor")]
)
"""Where place j of y is place j // f of x, for a whole number f: (coordinate_transformation_mode, nearest_mode)."""


@dataclass(frozen=True)
class Resizing:
    """One node. `axes`: those that roi, scales and sizes are about, in their order; only one of the latter is there.

    `ratio`: sizes are bounds, and all axes have the same scale.
    """

    site: Site
    axes: Sequence[int]
    scales: Value | None
    sizes: Value | None
    mode: str
    coordinates: str
    ratio: bool

    @property
    def x(self) -> Value:
        return self.site.x

    @property
    def y(self) -> Value:
        return self.site.y

    @property
    def crops(self) -> bool:
        return self.coordinates == "tf_crop_and_resize"

    def factor(self, axis: int) -> float | None:
        """How much an axis of x grows; None where it is known at run time only."""
        if axis not in self.axes:
            return 1
        if self.scales is not None:
            scales = self.scales.constant
            return None if scales is None else float(scales[self.axes.index(axis)])
        before, after = ((value.shape or ())[axis] for value in (self.x, self.y))
        if before is not None and before == after:
            return 1
        return after / before if isinstance(before, int) and isinstance(after, int) and before else None

    def again(self, x: Tensor) -> Tensor:
        """The operator applied to other data, with 0 outside of the region of interest."""
        attributes = {**self.site.attributes, "extrapolation_value": 0.0}
        rest = [self.site.tensor(index) for index in range(1, len(self.site.inputs))]
        return self.site.emitter.op("Resize", x, *rest, shape=self.y.shape, **attributes)


def resizing(site: Site) -> Resizing:
    """What the inputs and attributes of a node say."""
    site.only_active(0)
    axes = [int(axis) % site.x.rank for axis in site.attribute("axes", None) or range(site.x.rank)]
    scales, sizes = (
        None if value is None or value.shape == (0,) else value for value in (site.optional(2), site.optional(3))
    )
    bounds = sizes is not None and site.attribute("keep_aspect_ratio_policy", "stretch") != "stretch"
    return Resizing(
        site,
        axes,
        None if sizes is not None else scales,
        sizes,
        site.attribute("mode", "nearest"),
        site.attribute("coordinate_transformation_mode", "half_pixel"),
        bounds and len(axes) > 1,
    )


# --- one matrix for every axis ---------------------------------------------------------------------------------------


def matrices(how: Resizing) -> dict[int, Tensor]:
    """By axis: the weight [before, after] of every place of x in every place of y, unless y is x along the axis."""
    changed = [axis for axis in how.axes if how.factor(axis) != 1 or how.crops or how.ratio]
    make = _matrix_at_a_ratio if how.ratio else _matrix
    return {axis: reshape(make(how, axis), concat([how.x.dim(axis), how.y.dim(axis)], axis=0)) for axis in changed}


def _identity(how: Resizing, axis: int) -> Tensor:
    """As large as the extent of x, in the precision that sums are taken in."""
    emitter, extent = how.site.emitter, how.x.dim(axis)
    zeros = expand(emitter.constant(0, widen(how.x.x).dtype), concat([extent, extent], axis=0))
    return emitter.op("EyeLike", zeros, shape=zeros.shape)


def _interpolation(how: Resizing) -> dict[str, Any]:
    return {name: value for name, value in how.site.attributes.items() if name in INTERPOLATION}


def _matrix(how: Resizing, axis: int) -> Tensor:
    """The rows of an identity matrix as the channels of an image with this one axis."""
    emitter, one, extent = how.site.emitter, how.site.emitter.ints([1]), how.x.dim(axis)
    rows = reshape(_identity(how, axis), concat([one, extent, one, extent], axis=0))
    position = how.axes.index(axis)
    scales = sizes = None
    if how.sizes is not None:
        sizes = concat([one, extent, one, how.y.dim(axis)], axis=0)
    elif how.scales is not None:
        scale = slice_axis(how.scales.x, 0, position, position + 1)
        scales = concat([emitter.constant([1, 1, 1], FLOAT32), scale], axis=0)
    region = None
    if how.crops:
        roi, last = how.site.input(1).x, position + len(how.axes)
        begin, end = (slice_axis(roi, 0, at, at + 1) for at in (position, last))
        whole = [emitter.constant([number] * 3, roi.dtype) for number in (0, 1)]
        region = concat([whole[0], begin, whole[1], end], axis=0)
    return emitter.op("Resize", rows, region, scales, sizes, **_interpolation(how))


def _matrix_at_a_ratio(how: Resizing, axis: int) -> Tensor:
    """As `_matrix`, with the other axes, along which the rows are repeated, because they have a say in the scale."""
    if how.crops or len(how.axes) > 3:
        how.site.refuse("it keeps the aspect ratio of a region of interest, or of more than three axes")
    emitter, one, extent = how.site.emitter, how.site.emitter.ints([1]), how.x.dim(axis)
    rows = reshape(_identity(how, axis), concat([one, extent, *(extent if a == axis else one for a in how.axes)], 0))
    rows = expand(rows, concat([one, extent, *(how.x.dim(other) for other in how.axes)], axis=0))
    attributes = {**_interpolation(how), "keep_aspect_ratio_policy": how.site.attribute("keep_aspect_ratio_policy")}
    axes = range(2, 2 + len(how.axes))
    rows = emitter.op("Resize", rows, None, None, how.site.tensor(3), axes=list(axes), **attributes)
    for other in axes:
        rows = rows if how.axes[other - 2] == axis else slice_axis(rows, other, 0, 1)
    return rows


def along(t: Tensor, matrix: Tensor, axis: int, rank: int) -> Tensor:
    """t, multiplied along one axis with a matrix [out, in]."""
    if axis == rank - 1:
        return t @ swap_last(matrix)
    if axis == rank - 2:
        return matrix @ t
    order = [*range(axis), rank - 2, *range(axis + 1, rank - 2), axis, rank - 1]
    return transpose(matrix @ transpose(t, order), order)


def _forward(how: Resizing, weights: dict[int, Tensor], t: Tensor) -> Tensor:
    """W t."""
    wide = widen(t)
    for axis, matrix in weights.items():
        wide = along(wide, swap_last(matrix), axis, how.x.rank)
    return cast(wide, t.dtype)


# --- nearest places --------------------------------------------------------------------------------------------------


def _block_sums(how: Resizing) -> Tensor | None:
    """The sums over blocks of m_y; None where y is not made of blocks."""
    places = (how.coordinates, how.site.attribute("nearest_mode", "round_prefer_floor"))
    factors = [how.factor(axis) or 0.5 for axis in range(how.x.rank)]
    if how.ratio or places not in BLOCKS or not all(float(factor).is_integer() for factor in factors):
        return None
    sizes, m = [int(factor) for factor in factors], how.site.m
    if math.prod(sizes) == 1:
        return m
    if how.x.rank in (3, 4, 5) and sizes[:2] == [1, 1]:  # faster than a sum, and whatever the extents are
        pooled = how.site.emitter.op("AveragePool", m, kernel_shape=sizes[2:], strides=sizes[2:], shape=how.x.shape)
        return pooled * math.prod(sizes)
    dims = [dim for axis, size in enumerate(sizes) for dim in (how.x.dim(axis), how.site.emitter.ints([size]))]
    return how.x.like(reduce_sum(reshape(m, concat(dims, axis=0)), range(1, len(dims), 2), keepdims=False))


def _by_number(how: Resizing) -> Tensor:
    """The operator moves the numbers 1, 2, 3 ... instead of x, and 0 comes from outside."""
    emitter, x = how.site.emitter, how.x
    size = elements(x)
    numbers = cast(reshape(arange(size) + 1, x.run_shape), INT32)
    origin, m = (reshape(tensor, [-1]) for tensor in (cast(how.again(numbers), INT64), widen(how.site.m)))
    sums = scatter_add(expand(emitter.constant(0, m.dtype), size + 1), origin, m, axis=0)
    return cast(x.like(slice_axis(sums, 0, 1, np.iinfo(np.int64).max)), x.dtype)


# --- the rule --------------------------------------------------------------------------------------------------------


def _resized_parts(site: Site) -> list[Parts]:
    """The operator on either part; weights of cubic that are negative exchange them: (W d ± |W| (d+ - d-)) / 2."""
    how = resizing(site)
    plus, minus = site.x.parts
    if how.mode != "cubic":
        return [Parts(how.again(plus), how.again(minus))]
    weights = matrices(how)
    both = _forward(how, weights, plus + minus) * 0.5
    apart = _forward(how, {axis: absolute(w) for axis, w in weights.items()}, plus - minus) * 0.5
    return [Parts(both + apart, both - apart)]


@rule("linear", "Resize", parts=_resized_parts)
def resize(site: Site) -> list[Tensor | None]:
    """m_x = W^T m_y with the weights W of the interpolation, axis by axis."""
    how = resizing(site)
    if how.mode == "nearest":
        sums = _by_number(how) if how.ratio else _block_sums(how)
        if sums is not None:
            return [sums]
    m = widen(site.m)
    for axis, matrix in matrices(how).items():
        m = along(m, site.weight(matrix), axis, site.x.rank)
    m = cast(m, site.m.dtype)
    m.shape = site.x.shape
    return [m]
