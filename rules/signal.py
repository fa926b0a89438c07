"""Fourier transforms and overlapping frames: linear, m_x is the transpose of m_y (LIFTPAD 2.3.1, "Linear rule").

With complex numbers as pairs of real ones, the transpose of y_k = sum_t x_t e^(-i 2 pi k t / L) is the transform that
turns the other way, m_t = sum_k m_k e^(i 2 pi k t / L): L times the inverse one, whose transpose in turn is 1/L times
the forward one. Every value of a spectrum is one cause: no signed parts.
"""

from __future__ import annotations

import math

import numpy as np

from onnxlift.errors import Unsupported
from onnxlift.functions import (
    arange,
    cast,
    concat,
    expand,
    logical_or,
    reduce_sum,
    regroup,
    reshape,
    scatter_add,
    shape_of,
    slice_axis,
    unsqueeze,
    where,
)
from onnxlift.registry import rule
from onnxlift.rules.axes import product
from onnxlift.rules.linear import channelwise
from onnxlift.rules.windows import known
from onnxlift.site import Site, Value
from onnxlift.tensor import INT64, Tensor

# --- Fourier transforms ----------------------------------------------------------------------------------------------


@rule("linear", "DFT")
def fourier(site: Site) -> list[Tensor | None]:
    """m_x = L times the inverse transform of m_y; of the inverse transform, the forward one of m_y / L."""
    site.only_active(0)
    x, inverse = site.x, site.attribute("inverse", 0)
    half = bool(inverse and site.attribute("onesided", 0))  # half a spectrum, for a real signal
    axis = _axis(site)
    places = _extent(x, axis)
    given = site.tensor(1)
    length = (places - 1) * 2 if half else places
    if given is not None:
        length = reshape(cast(given, INT64), [1]) if given.value is None else site.emitter.ints([int(given.value)])
    m = _turned(site, site.m, length, axis, inverse=not inverse, half=half)
    m = m / cast(length, m.dtype) if inverse else m * cast(length, m.dtype)
    if half:
        size, frequencies = known(length), known(places)
        if size is not None and frequencies not in (None, size // 2 + 1):
            site.refuse("it inverts half a spectrum that has not the size of one for its dft_length")
        m = m * _along(site, _seen_twice(places, length, m), axis, places)
    if _is_real(x):
        m = slice_axis(m, x.rank - 1, 0, 1)
    if half or known(places - length) == 0:
        return [x.like(m)]
    borders = concat([site.emitter.ints([0]), places - length], axis=0)  # what the transform did not see gets 0
    return [site.emitter.op("Pad", m, borders, None, axis, shape=x.shape)]


def _axis(site: Site) -> Tensor:
    """The axis of the transform, int64 of shape [1]."""
    axis = site.tensor(2)
    if axis is None:
        return site.emitter.ints([-2])
    if axis.value is not None:
        return site.emitter.ints([int(axis.value)])
    return reshape(cast(axis, INT64), [1])


def _extent(x: Value, axis: Tensor) -> Tensor:
    if axis.value is not None:
        return x.dim(int(axis.value.item()))
    return x.run_shape.emitter.op("Gather", x.run_shape, axis, shape=(1,))


def _turned(site: Site, m: Tensor, length: Tensor, axis: Tensor, *, inverse: bool, half: bool = False) -> Tensor:
    """A transform of so many places along `axis`; ONNX's inverse one divides by their number."""
    scalars = reshape(length, []), reshape(axis, [])
    return site.emitter.op("DFT", m, *scalars, inverse=int(inverse), onesided=int(half), shape=(None,) * m.rank)


def _is_real(x: Value) -> bool:
    """Whether the last axis holds real numbers; else pairs, for complex ones."""
    size = (x.shape or (None,))[-1]
    if size not in (1, 2):
        raise Unsupported(f"whether the numbers of tensor {x.name!r} are real or complex is known at run time only")
    return size == 1


def _seen_twice(places: Tensor, length: Tensor, m: Tensor) -> Tensor:
    """2, and 1 for the frequencies that are their own mirror image."""
    k = arange(places)
    alone = logical_or(k.equals(0), (k * 2).equals(length))
    return where(alone, m.emitter.constant(1, m.dtype), 2.0)


def _along(site: Site, t: Tensor, axis: Tensor, places: Tensor) -> Tensor:
    """A vector of so many places, shaped to broadcast along `axis`."""
    rank = site.x.rank
    here = arange(site.emitter.ints([rank])).equals(where(axis < 0, axis + rank, axis))
    return reshape(t, where(here, places, 1))


# --- frames ----------------------------------------------------------------------------------------------------------


@rule("midpoint", "STFT")
def short_time_fourier(site: Site) -> list[Tensor | None]:
    """With g = L times the inverse transform of m_y, m_x adds up the frames of g w', m_w sums g x' (METHOD 5)."""
    x, window, given = site.x, site.optional(2), site.optional(3)
    if given is not None:
        length = reshape(cast(given.x, INT64), [1])
    elif window is not None:
        length = window.dim(0)
    else:
        site.refuse("it has neither a window nor a frame_length")
    g = _turned(site, site.m, length, site.emitter.ints([2]), inverse=True) * cast(length, site.m.dtype)
    if x.rank == 2 or _is_real(x):
        g = slice_axis(g, 3, 0, 1)  # [samples, frames, L, 1 or 2]
    step = reshape(cast(site.input(1).x, INT64), [1])
    starts = arange(site.y.dim(1)) * step
    places = unsqueeze(starts, [1]) + arange(length)  # [frames, L]
    m_x = m_w = None
    if x.active:
        weighted = g if window is None else g * reshape(window.mid, [-1, 1])
        m_x = _overlap(x, places, weighted)
    if window is not None and window.active:
        signal = x.mid if x.rank == 3 else unsqueeze(x.mid, [2])
        frames = site.emitter.op("Gather", signal, places, axis=1, shape=(None,) * 4)
        m_w = reduce_sum(g * frames, [0, 1, 3], keepdims=False)
    return [m_x, None, m_w]


def _overlap(x: Value, places: Tensor, frames: Tensor) -> Tensor:
    """Frames [samples, frames, L, 1 or 2] added up at their places in x."""
    values = regroup(frames, 1, [-1, 1 if x.rank == 2 or _is_real(x) else 2])
    rows = expand(reshape(places, [1, -1, 1]), shape_of(values))
    onto = x.zeros() if x.rank == 3 else unsqueeze(x.zeros(), [2])
    return x.like(scatter_add(onto, rows, values, axis=1))


@rule("linear", "Col2Im", parts=channelwise)
def columns_to_image(site: Site) -> list[Tensor | None]:
    """Every block of m_y as a column: a convolution with one kernel for each place of a block."""
    site.only_active(0)
    emitter, x, block = site.emitter, site.x, site.input(2).x
    channels = concat([emitter.ints([-1, 1]), *(site.y.dim(axis) for axis in range(2, site.y.rank))], axis=0)
    if block.value is not None:
        size = math.prod(block.value.tolist())
        kernels = emitter.constant(np.eye(size).reshape(size, 1, *block.value.tolist()), x.dtype)
    else:
        number = arange(product(block))
        kernels = cast(unsqueeze(number, [1]).equals(number), x.dtype)
        kernels = reshape(kernels, concat([emitter.ints([-1, 1]), block], axis=0))
    moves = {name: site.attribute(name, None) or None for name in ("strides", "dilations", "pads")}
    columns = emitter.op("Conv", reshape(site.m, channels), kernels, shape=(None,) * site.y.rank, **moves)
    return [x.like(columns)]
