"""Affine operators: m_x = W^T m_y (LIFTPAD 2.3.1, DeepLIFT "Linear rule"). A constant term gets nothing.

Signed parts (METHOD section 2): an operator that scales or adds element by element, and one that averages with weights
>= 0, acts on either part; a factor < 0 exchanges them. One that mixes places with weights of both signs (Gemm, Conv)
splits what it adds up by the sign of weight times difference.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from onnxlift.functions import cast
from onnxlift.registry import AI_ONNX_ML, rule
from onnxlift.signed import Parts, by_sign, scaled
from onnxlift.site import Site, Value
from onnxlift.tensor import Tensor

# --- signed parts ----------------------------------------------------------------------------------------------------


def summed(site: Site, terms: Sequence[Parts]) -> list[Parts]:
    """Parts that add up, in the shape of y."""
    plus, minus = (functools.reduce(Tensor.__add__, side) for side in zip(*terms, strict=True))
    return [Parts(site.y.spread(plus), site.y.spread(minus))]


def active(site: Site) -> list[Value]:
    """The operands that carry importance."""
    return [site.input(index) for index in site.active]


def parts_or_zeros(x: Value) -> Parts:
    """The parts of an operand, zeros where it carries no importance."""
    return x.parts if x.active else Parts(x.zeros(), x.zeros())


def channelwise(site: Site) -> list[Parts]:
    """The operator, which has weights >= 0, applied to either part of its first input."""
    return [Parts(*(site.again(part) for part in site.x.parts))]


def mixed(d: Tensor, weight: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> Parts:
    """dy+ = P(W) P(d) + N(W) N(d), dy- = P(W) N(d) + N(W) P(d), each sum free of cancellation (METHOD 2)."""
    (p, n), (w_p, w_n) = by_sign(d), by_sign(weight)
    return Parts(product(p, w_p) + product(n, w_n), product(n, w_p) + product(p, w_n))


# --- the operators ---------------------------------------------------------------------------------------------------


@rule("linear", "Add", "Sum", broadcasts=True, parts=lambda site: summed(site, [x.parts for x in active(site)]))
def add(site: Site) -> list[Tensor]:
    """m_x = m_y for every operand."""
    return [site.m for _ in site.inputs]


def _differences(site: Site) -> list[Parts]:
    """The parts of a - b."""
    a, b = site.input(0), site.input(1)
    terms = [a.parts] if a.active else []
    return summed(site, [*terms, Parts(-b.parts.minus, -b.parts.plus)] if b.active else terms)


@rule("linear", "Sub", broadcasts=True, parts=_differences)
def subtract(site: Site) -> list[Tensor]:
    """m_a = m_y, m_b = -m_y."""
    return [site.m, site.minus(site.m)]


def _averages(site: Site) -> list[Parts]:
    """The mean of the operands' parts."""
    ((plus, minus),) = summed(site, [x.parts for x in active(site)])
    return [Parts(plus * (1 / len(site.inputs)), minus * (1 / len(site.inputs)))]


@rule("linear", "Mean", broadcasts=True, parts=_averages)
def mean(site: Site) -> list[Tensor]:
    """m_x = m_y / n for n operands."""
    return [site.m * (1 / len(site.inputs)) for _ in site.inputs]


@rule("linear", "Neg", parts=lambda site: [Parts(-site.x.parts.minus, -site.x.parts.plus)])
def negate(site: Site) -> list[Tensor]:
    """m_x = -m_y."""
    return [site.minus(site.m)]


def reduced_axes(site: Site) -> list[int]:
    """The axes of a reduction at opset 18 or later, non-negative and sorted; none given means all of them."""
    axes = site.constant(1, "the list of axes")
    if axes is None or axes.size == 0:
        return [] if site.attribute("noop_with_empty_axes", 0) else list(range(site.x.rank))
    return sorted(int(axis) % site.x.rank for axis in axes.flat)


@rule("linear", "CumSum", parts=channelwise)
def cumulative_sum(site: Site) -> list[Tensor | None]:
    """The cumulative sum from the other end."""
    site.only_active(0)
    backward = 1 - site.attribute("reverse", 0)
    axis = site.input(1).x
    return [site.emitter.op("CumSum", site.m, axis, exclusive=site.attribute("exclusive", 0), reverse=backward)]


def _scaled_inputs(site: Site) -> list[Parts]:
    """The parts of x, which may be an integer or a double, in y's precision and scaled."""
    parts = Parts(*(cast(part, site.y.dtype) for part in site.x.parts))
    return [scaled(parts, site.emitter.constant(site.attribute("scale", [1.0]), site.y.dtype))]


@rule("linear", "Scaler", domain=AI_ONNX_ML, parts=_scaled_inputs)
def scaler(site: Site) -> list[Tensor]:
    """m_x = scale m_y, for y = (x - offset) scale."""
    scale = site.emitter.constant(site.attribute("scale", [1.0]), site.m.dtype)
    return [cast(site.m * site.weight(scale), site.x.dtype)]
