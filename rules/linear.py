"""Affine operators: m_x = W^T m_y (LIFTPAD 2.3.1, DeepLIFT "Linear rule"). A constant term gets nothing."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from onnxlift.functions import cast, reshape, sqrt, unsqueeze
from onnxlift.registry import AI_ONNX_ML, rule
from onnxlift.site import Site, Value
from onnxlift.tensor import Tensor


@rule("linear", "Add", "Sum", broadcasts=True)
def add(site: Site) -> list[Tensor]:
    """m_x = m_y for every operand."""
    return [site.m for _ in site.inputs]


@rule("linear", "Sub", broadcasts=True)
def subtract(site: Site) -> list[Tensor]:
    """m_a = m_y, m_b = -m_y."""
    return [site.m, -site.m]


@rule("linear", "Mean", broadcasts=True)
def mean(site: Site) -> list[Tensor]:
    """m_x = m_y / n for n operands."""
    return [site.m * (1 / len(site.inputs)) for _ in site.inputs]


@rule("linear", "Neg")
def negate(site: Site) -> list[Tensor]:
    """m_x = -m_y."""
    return [-site.m]


@rule("linear", "ReduceSum", "ReduceMean")
def reduce(site: Site) -> list[Tensor]:
    """m_x = m_y over the reduced axes, divided by their extent for a mean."""
    site.only_active(0)
    x, m = site.x, site.m
    axes = reduced_axes(site)
    if not site.attribute("keepdims", 1):
        m = unsqueeze(m, axes)
    return [x.spread(evenly(x, m, axes) if site.op == "ReduceMean" else m)]


def evenly(x: Value, m: Tensor, axes: Sequence[int]) -> Tensor:
    """m / n, n the number of places of `x` along `axes`."""
    if not axes:
        return m
    n = functools.reduce(Tensor.__mul__, (x.dim(axis) for axis in axes))
    if n.value is None or not n.value.item():
        return m / cast(reshape(n, []), x.dtype)
    return m * (1 / int(n.value.item()))


def reduced_axes(site: Site) -> list[int]:
    """The axes of a reduction at opset 18 or later, non-negative and sorted; none given means all of them."""
    axes = site.constant(1, "the list of axes")
    if axes is None or axes.size == 0:
        return [] if site.attribute("noop_with_empty_axes", 0) else list(range(site.x.rank))
    return sorted(int(axis) % site.x.rank for axis in axes.flat)


@rule("linear", "BatchNormalization")
def batch_normalization(site: Site) -> list[Tensor | None]:
    """m_x = m_y scale / sqrt(var + eps) per channel, at inference."""
    site.only_active(0)
    if site.attribute("training_mode", 0):
        site.refuse("it runs in training mode, where samples of a batch depend on each other")
    scale, variance = site.input(1).x, site.input(4).x
    s = scale / sqrt(cast(variance, scale.dtype) + site.attribute("epsilon", 1e-5))
    channels = reshape(cast(s, site.x.dtype), [-1] + [1] * (site.x.rank - 2))
    return [site.m * channels]


@rule("linear", "CumSum")
def cumulative_sum(site: Site) -> list[Tensor | None]:
    """The cumulative sum from the other end."""
    site.only_active(0)
    backward = 1 - site.attribute("reverse", 0)
    axis = site.input(1).x
    return [site.emitter.op("CumSum", site.m, axis, exclusive=site.attribute("exclusive", 0), reverse=backward)]


@rule("linear", "Scaler", domain=AI_ONNX_ML)
def scaler(site: Site) -> list[Tensor]:
    """m_x = scale m_y, for y = (x - offset) scale."""
    scale = site.emitter.constant(site.attribute("scale", [1.0]), site.m.dtype)
    return [cast(site.m * scale, site.x.dtype)]
