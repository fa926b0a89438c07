"""Interpolation between the places of an image: which places a point sees, and with which weights. No rule of its own.

A point has a coordinate u along every spatial axis, in places. Along an axis it sees the taps c + offset around the
cell c that it lies in, with weights that are polynomials of t = u - c. Its value is the sum of the pixels at all
combinations of taps, times the product of the weights. Beyond the borders pixels are 0, or repeated, or mirrored.

The value changes with a coordinate by the *slopes* of the weights, (w - w0) / (u - u0) on the taps of both points.
Within one cell the polynomials divide without a remainder, so that nothing is 0/0 and u = u0 gives the derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np

from onnxlift.functions import (
    arange,
    cast,
    clip,
    concat,
    expand,
    maximum,
    minimum,
    reduce_sum,
    regroup,
    reshape,
    scatter_add,
    shape_of,
    squeeze,
    transpose,
    unsqueeze,
    where,
)
from onnxlift.rules.einsum import line_points, weighted_sum
from onnxlift.site import Pairing, Value
from onnxlift.tensor import INT64, Array, Tensor, unary

INT32 = np.dtype(np.int32)

FAR = 2.0**24
"""Cells are taken to be no further away than this, so that they are int64: what lies there is beyond any border."""


@dataclass(frozen=True)
class Kernel:
    """The taps around a cell. `weights[p]`: the coefficients of t^p, one for each tap."""

    cell: str
    offsets: Sequence[int]
    weights: Array


NEAREST = Kernel("Round", [0], np.ones((1, 1)))
LINEAR = Kernel("Floor", [0, 1], np.array([[1.0, 0], [-1, 1]]))
CUBIC = Kernel(  # Keys' with a = -3/4
    "Floor",
    [-1, 0, 1, 2],
    np.array([[0, 1, 0, 0], [-0.75, 0, 0.75, 0], [1.5, -2.25, 1.5, -0.75], [-0.75, 1.25, -1.25, 0.75]]),
)
KERNELS = {"nearest": NEAREST, "linear": LINEAR, "cubic": CUBIC}

Border = Callable[[Tensor, Tensor], Tensor]
"""Where a place beyond the border is taken from: (places, extent) -> places, int64."""


def repeated(place: Tensor, extent: Tensor) -> Tensor:
    """The nearest place."""
    return maximum(minimum(place, extent - 1), 0)


def mirrored_at_places(place: Tensor, extent: Tensor) -> Tensor:
    """The image continues as its mirror image, from its outermost places."""
    period = maximum((extent - 1) * 2, 1)
    place = place.emitter.op("Mod", place, period, shape=place.shape)
    return minimum(place, period - place)


def mirrored_at_edges(place: Tensor, extent: Tensor) -> Tensor:
    """The image continues as its mirror image, half a place behind its outermost places."""
    place = place.emitter.op("Mod", place, extent * 2, shape=place.shape)
    return minimum(place, extent * 2 - 1 - place)


@dataclass(frozen=True)
class Taps:
    """What points see along one axis: `places` and their `weights`, [samples, points, taps].

    `t`: how far behind their `cell` the points are. `inside`: which places the image has; None: it has them all.
    """

    kernel: Kernel
    cell: Tensor
    t: Tensor
    places: Tensor
    inside: Tensor | None

    @classmethod
    def of(cls, u: Tensor, extent: Tensor, kernel: Kernel, border: Border | None) -> Taps:
        """Of points with coordinates `u`, [samples, points], on so many places (int64, [1]); no border means zeros."""
        u = unsqueeze(u, [2])
        cell = unary(kernel.cell, u, shape=u.shape)
        places = cast(clip(cell, -FAR, FAR), INT64) + u.emitter.ints(kernel.offsets)
        if border is not None:
            return cls(kernel, cell, u - cell, border(places, extent), None)
        nearest = repeated(places, extent)
        return cls(kernel, cell, u - cell, nearest, places.equals(nearest))

    @cached_property
    def weights(self) -> Tensor:
        return self._within(self._polynomial(self.t)[0])

    def slopes(self, t0: Tensor) -> Tensor:
        """(w(t) - w(t0)) / (t - t0)."""
        return self._within(self._polynomial(t0)[1])

    def _polynomial(self, t0: Tensor) -> tuple[Tensor, Tensor]:
        """The weights at t0 and their slopes between t0 and t, by Horner's rule."""
        emitter, dtype = t0.emitter, t0.dtype
        *lower, value = (emitter.constant(row, dtype) for row in self.kernel.weights)
        slope = None
        for coefficients in reversed(lower):
            slope = value if slope is None else slope * self.t + value
            value = value * t0 + coefficients
        return value, value * 0 if slope is None else slope

    def _within(self, weights: Tensor) -> Tensor:
        """0 outside of the image; in the shape of `places`."""
        if self.inside is not None:
            return where(self.inside, weights, 0.0)
        full = expand(weights, shape_of(self.places))
        full.shape = self.places.shape
        return full


@dataclass(frozen=True)
class Axis:
    """One axis of the image for the points of either run."""

    x: Taps
    r: Taps

    @cached_property
    def places(self) -> Tensor:
        """The taps of x, then those of r."""
        return concat([self.x.places, self.r.places], axis=2)

    def between(self, t: float) -> Tensor:
        """t w + (1 - t) w0."""
        return concat([self.x.weights * t, self.r.weights * (1 - t)], axis=2)

    def slopes(self, d: Tensor, rate: Tensor | None) -> Tensor:
        """(w - w0) / d for a variable with the differences `d`, [samples, points], of which u changes by `rate` times.

        In one cell the polynomials divide, and no tap of r is needed beside those of x.
        """
        d, same = unsqueeze(d, [2]), self.x.cell.equals(self.r.cell)
        apart, slopes = where(same, 1.0, d), self.x.slopes(self.r.t)
        return concat(
            [
                where(same, slopes if rate is None else slopes * rate, self.x.weights / apart),
                where(same, 0.0, -(self.r.weights / apart)),
            ],
            axis=2,
        )


def combined(parts: Sequence[Tensor], combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """All combinations of the taps of every axis, [samples, points, taps]."""
    rank = len(parts)
    apart = [unsqueeze(part, [2 + k for k in range(rank) if k != index]) for index, part in enumerate(parts)]
    return regroup(reduce(combine, apart), 2, [-1])


def pixels_of(places: Sequence[Tensor], extents: Sequence[Tensor]) -> Tensor:
    """Places along every axis as numbers of pixels, [samples, points, taps]."""
    steps = [reduce(Tensor.__mul__, extents[axis + 1 :], places[0].emitter.ints([1])) for axis in range(len(extents))]
    return combined([place * step for place, step in zip(places, steps, strict=True)], Tensor.__add__)


def looked_up(image: Tensor, pixels: Tensor) -> Tensor:
    """What is at these numbers in an image [samples, channels, ...]: [samples, points, taps, channels]."""
    planes = regroup(image, 2, [-1])
    size, count, channels = shape_of(planes, 2), shape_of(planes, 0, 1), shape_of(planes, 1, 2)
    rows = reshape(transpose(planes, [0, 2, 1]), concat([image.emitter.ints([-1]), channels], axis=0))
    first = reshape(arange(count) * size, [-1, 1, 1])
    return image.emitter.op(
        "Gather", rows, pixels + first, axis=0, shape=(*(pixels.shape or (None,) * 3), (image.shape or (None,) * 2)[1])
    )


@dataclass(frozen=True)
class Sampling:
    """An image [samples, channels, ...], and points that look at it: their taps along every axis, in either run.

    `r`: None where the points are the same in both runs.
    """

    image: Value
    extents: Sequence[Tensor]
    x: Sequence[Taps]
    r: Sequence[Taps] | None

    def _of_run(self, taps: Sequence[Taps]) -> tuple[Tensor, Tensor]:
        """The pixels that points see and their weights, [samples, points, taps]."""
        pixels = pixels_of([axis.places for axis in taps], self.extents)
        return pixels, combined([axis.weights for axis in taps], Tensor.__mul__)

    @cached_property
    def values(self) -> Value:
        """What the points see, [samples, channels, points]."""

        def value(image: Tensor, taps: Sequence[Taps]) -> Tensor:
            pixels, weights = self._of_run(taps)
            seen = unsqueeze(weights, [2]) @ looked_up(image, pixels)
            return transpose(squeeze(seen, [2]), [0, 2, 1])

        x, r = value(self.image.x, self.x), value(self.image.full_r, self.r or self.x)
        return Value(self.image.name, x, r, self.image.active or self.r is not None, Pairing())

    def to_image(self, m: Tensor) -> Tensor:
        """(A + A0)^T m / 2: m [samples, channels, points] times the weights, added up at the pixels."""
        pixels, weights = self._of_run(self.x)
        if self.r is not None:
            pixels0, weights0 = self._of_run(self.r)
            pixels = concat([pixels, pixels0], axis=2)
            weights = concat([weights, weights0], axis=2) * 0.5
        values = regroup(unsqueeze(m, [3]) * unsqueeze(weights, [1]), 2, [-1])
        index = expand(unsqueeze(regroup(cast(pixels, INT32), 1, [-1]), [1]), shape_of(values))
        return self.image.like(scatter_add(regroup(self.image.zeros(), 2, [-1]), index, values, axis=2))

    def to_coordinates(self, m: Tensor, d: Sequence[Tensor], rates: Sequence[Tensor | None]) -> list[Tensor]:
        """The multipliers of variables with the differences `d`, [samples, points], of which the coordinates change
        by `rates` times: the Shapley values of the axes, at the midpoint of the image.
        """
        assert self.r is not None
        axes = [Axis(*runs) for runs in zip(self.x, self.r, strict=True)]
        seen = looked_up(self.image.mid, pixels_of([axis.places for axis in axes], self.extents))
        q = squeeze(seen @ unsqueeze(transpose(m, [0, 2, 1]), [3]), [3])  # the sum over the channels
        found, points = [], line_points(len(axes))
        for index, axis in enumerate(axes):
            slopes = axis.slopes(d[index], rates[index])
            terms = [
                combined([slopes if other is axis else other.between(t) for other in axes], Tensor.__mul__)
                for t, _ in points
            ]
            found.append(reduce_sum(weighted_sum(terms, points) * q, [2], keepdims=False))
        return found
