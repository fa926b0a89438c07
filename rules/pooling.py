"""Average pools: affine, every place of a window receives m_y / n, n the number of places that the window counts.

And pools of the p-norm, y^p = sum |x|^p. With h(a, b) = (a^p - b^p) / (a - b), a sum of products, they have the slope
h(|x|, |r|) / h(y, y0) times that of |x|, within [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxlift.functions import absolute, arange, cast, concat, maximum, minimum, reshape, where
from onnxlift.registry import rule
from onnxlift.rules.axes import evenly
from onnxlift.rules.linear import channelwise
from onnxlift.rules.slopes import abs_slope
from onnxlift.rules.windows import (
    Window,
    are_tiles,
    cut,
    known,
    mirrored_pads,
    numbers,
    repeated,
    transposed,
    windows,
)
from onnxlift.site import Site, Value
from onnxlift.tensor import Tensor


@rule("linear", "GlobalAveragePool", parts=channelwise)
def global_average_pool(site: Site) -> list[Tensor]:
    """m_x = m_y / (number of places) everywhere."""
    return [site.x.spread(evenly(site.x, site.m, range(2, site.x.rank)))]


@rule("linear", "AveragePool", parts=channelwise)
def average_pool(site: Site) -> list[Tensor]:
    """m_x = sum over the windows that see x of m_y / n."""
    spans = windows(site, numbers(site, "kernel_shape", []))
    factor = _factor(site, spans)
    return [_spread(site, site.m if factor is None else site.m * factor, spans)]


@rule("rescale", "GlobalLpPool")
def global_lp_pool(site: Site) -> list[Tensor]:
    """m_x = (|x|^p - |r|^p) / (x - r) * (y - y0) / (y^p - y0^p) m_y, with the limits."""
    p = site.attribute("p", 2)
    return [norm_slope(site.x, p) * over_norms(site, p)]


@rule("rescale", "LpPool")
def lp_pool(site: Site) -> list[Tensor]:
    """As GlobalLpPool, summed over the windows that see x."""
    p, spans = site.attribute("p", 2), windows(site, numbers(site, "kernel_shape", []))
    places = math.prod(span.kernel for span in spans)
    return [norm_slope(site.x, p) * (_spread(site, over_norms(site, p), spans) * places)]


def norm_slope(x: Value, p: int) -> Tensor:
    """(|x|^p - |r|^p) / (x - r)."""
    if p % 2 == 0:
        return (x.x + x.r) * power_difference(x.x * x.x, x.r * x.r, p // 2)
    size = x.map(absolute)
    return abs_slope(x, size) * power_difference(size.x, size.r, p)


def over_norms(site: Site, p: int) -> Tensor:
    """m_y (y - y0) / (y^p - y0^p), and 0 where both norms are 0."""
    total = power_difference(site.y.x, site.y.r, p)
    return site.m if isinstance(total, float) else where(total.equals(0), 0.0, site.m / total)


def power_difference(a: Tensor, b: Tensor, p: int) -> Tensor | float:
    """(a^p - b^p) / (a - b) for a, b >= 0: a^(p-1) + a^(p-2) b + ... + b^(p-1)."""
    if p == 1:
        return 1.0
    if p % 2:
        return a * power_difference(a, b, p - 1) + _power(b, p - 1)
    return (_power(a, p // 2) + _power(b, p // 2)) * power_difference(a, b, p // 2)


def _power(a: Tensor, p: int) -> Tensor:
    return a if p == 1 else a * a if p == 2 else a**p


def _spread(site: Site, m: Tensor, spans: Sequence[Window]) -> Tensor:
    """Every place of a window receives m / (places of the kernel)."""
    places = math.prod(span.kernel for span in spans)
    if are_tiles(spans):
        return cut(repeated(m * (1 / places), spans), spans)
    if all(span.stride == span.dilation == 1 for span in spans):
        return _pooled(site, m, spans)
    return _scattered(site, m, spans, 1 / places)


def _factor(site: Site, spans: Sequence[Window]) -> Tensor | None:
    """Places of the kernel / places that a window counts, shaped to broadcast over m; None where it is 1."""
    factor: Tensor | None = None
    for index, span in enumerate(spans):
        inside = site.attribute("count_include_pad", 0) or (known(span.begin) == 0 and known(span.end) == 0)
        if inside and not site.attribute("ceil_mode", 0):
            continue
        counts = _counts(site, span)
        shape = [-1] + [1] * (len(spans) - 1 - index)
        if counts.value is None:
            ratio = reshape(span.kernel / cast(counts, site.m.dtype), shape)
        elif (counts.value == span.kernel).all():
            continue
        else:
            ratio = site.emitter.constant((span.kernel / counts.value).reshape(shape), site.m.dtype)
        factor = ratio if factor is None else factor * ratio
    return factor


def _counts(site: Site, span: Window) -> Tensor:
    """How many places each window counts along one axis, [positions].

    The padding counts if count_include_pad, but never what lies behind it (ceil_mode).
    """
    include = site.attribute("count_include_pad", 0)
    first = arange(span.positions) * span.stride - span.begin
    limit = span.extent + span.end if include else span.extent
    stop = minimum((limit - first + (span.dilation - 1)) / span.dilation, span.kernel)
    skipped = 0 if include else (maximum(0 - first, 0) + (span.dilation - 1)) / span.dilation
    return maximum(stop - skipped, 1)


def _pooled(site: Site, m: Tensor, spans: Sequence[Window]) -> Tensor:
    """Stride 1: the transpose of an average pool is the average pool with the padding that mirrors it."""
    kernel = [span.kernel for span in spans]
    pads = mirrored_pads(spans)
    return site.emitter.op("AveragePool", m, kernel_shape=kernel, pads=pads, count_include_pad=1)


def _scattered(site: Site, m: Tensor, spans: Sequence[Window], share: float) -> Tensor:
    """Any windows: a transposed convolution of every channel on its own, with a constant kernel."""
    channels = site.emitter.ints([-1, 1])
    apart = reshape(m, concat([channels, *(span.positions for span in spans)], axis=0))
    weight = site.emitter.constant(np.full((1, 1, *(span.kernel for span in spans)), share), m.dtype)
    return site.x.like(transposed(site, apart, weight, spans))
