"""Average pools: affine, every place of a window receives m_y / n, n the number of places that the window counts."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence

from onnxlift.registry import rule
from onnxlift.rules.windows import Window, fit, known, numbers, transposed, windows
from onnxlift.site import Site
from onnxlift.tensor import INT64, Tensor, cast, concat, expand, maximum, minimum, reshape


@rule("linear", "GlobalAveragePool")
def global_average_pool(site: Site) -> list[Tensor]:
    """m_x = m_y / (number of places) everywhere."""
    x = site.x
    places = functools.reduce(operator.mul, (x.dim(axis) for axis in range(2, x.rank)))
    size = known(places)
    share = site.m * (1 / size) if size else site.m / cast(reshape(places, []), x.dtype)
    return [x.spread(share)]


@rule("linear", "AveragePool")
def average_pool(site: Site) -> list[Tensor]:
    """m_x = sum over the windows that see x of m_y / n."""
    spans = windows(site, numbers(site, "kernel_shape", []))
    places = math.prod(span.kernel for span in spans)
    m = site.m
    factor = _factor(site, spans)
    if factor is not None:
        m = m * factor
    if all(span.kernel == span.stride and span.dilation == 1 for span in spans) and len(spans) <= 2:
        return [_repeated(site, m * (1 / places), spans)]
    if all(span.stride == span.dilation == 1 for span in spans):
        return [_pooled(site, m, spans)]
    return [_scattered(site, m, spans, 1 / places)]


def _factor(site: Site, spans: Sequence[Window]) -> Tensor | None:
    """Places of the kernel / places that a window counts, shaped to broadcast over m; None where it is 1."""
    factor: Tensor | None = None
    for index, span in enumerate(spans):
        counts = _counts(site, span)
        if counts.value is not None and (counts.value == span.kernel).all():
            continue
        if counts.value is not None:
            ratio = site.emitter.constant(span.kernel / counts.value, site.m.dtype)
        else:
            ratio = span.kernel / cast(counts, site.m.dtype)
        ratio = reshape(ratio, [-1] + [1] * (len(spans) - 1 - index))
        factor = ratio if factor is None else factor * ratio
    return factor


def _counts(site: Site, span: Window) -> Tensor:
    """How many places each window counts along one axis, [positions].

    The padding counts if count_include_pad, but never what lies behind it (ceil_mode).
    """
    emitter = site.emitter
    include = site.attribute("count_include_pad", 0)
    size = known(span.positions)
    if size is not None:
        number = emitter.ints(range(size))
    else:
        zero, one = (emitter.constant(value, INT64) for value in (0, 1))
        number = emitter.op("Range", zero, reshape(span.positions, []), one, shape=(None,))
    first = number * span.stride - span.begin
    limit = span.extent + span.end if include else span.extent
    stop = minimum((limit - first + (span.dilation - 1)) / span.dilation, span.kernel)
    skipped = 0 if include else (maximum(0 - first, 0) + (span.dilation - 1)) / span.dilation
    return maximum(stop - skipped, 1)


def _repeated(site: Site, share: Tensor, spans: Sequence[Window]) -> Tensor:
    """Windows side by side: every share is repeated over its window."""
    scales = site.emitter.constant([1, 1, *(span.kernel for span in spans)], np.dtype(np.float32))
    full = site.emitter.op(
        "Resize",
        share,
        None,
        scales,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    before = [0 - span.begin for span in spans]
    after = [0 - span.excess for span in spans]
    return fit(full, before, after, site.x)


def _pooled(site: Site, m: Tensor, spans: Sequence[Window]) -> Tensor:
    """Stride 1: the transpose of an average pool is an average pool, with the padding that mirrors the first."""
    ...
