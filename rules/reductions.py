"""Reductions, and what divides or chooses along an axis: sums of elementwise functions, norms, products, one winner.

A sum of elementwise functions is Rescale of each (METHOD section 3), times the slope of what is applied to the sum. The
slopes are closed forms, bounded wherever the function is Lipschitz.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from onnxlift.functions import (
    absolute,
    cast,
    clip,
    concat,
    maximum,
    reduce_sum,
    regroup,
    reshape,
    shape_of,
    slice_axis,
    sqrt,
    unsqueeze,
    where,
    widen,
)
from onnxlift.registry import rule
from onnxlift.rules.axes import Axes, rows_of
from onnxlift.rules.einsum import line_points
from onnxlift.rules.linear import channelwise
from onnxlift.rules.slopes import abs_slope, log_slope
from onnxlift.site import Site, Value
from onnxlift.tensor import Tensor, limits

# --- sums ------------------------------------------------------------------------------------------------------------


@rule("linear", "ReduceSum", "ReduceMean", parts=channelwise)
def sum_or_mean(site: Site) -> list[Tensor]:
    """m_x = m_y over the reduced axes, divided by their extent for a mean."""
    axes = Axes(site)
    m = axes.kept(site.m)
    return [site.x.spread(axes.evenly(m) if site.op == "ReduceMean" else m)]


@rule("rescale", "ReduceL1")
def sum_of_magnitudes(site: Site) -> list[Tensor]:
    """m_x = (x + r) / (|x| + |r|) m_y."""
    return [abs_slope(site.x, site.x.map(absolute)) * Axes(site).kept(site.m)]


@rule("rescale", "ReduceSumSquare")
def sum_of_squares(site: Site) -> list[Tensor]:
    """m_x = (x + r) m_y."""
    return [(site.x.x + site.x.r) * Axes(site).kept(site.m)]


@rule("rescale", "ReduceL2")
def euclidean_norm(site: Site) -> list[Tensor]:
    """m_x = (x + r) / (y + y0) m_y, and 0 where both norms are 0."""
    total = site.y.x + site.y.r
    return [(site.x.x + site.x.r) * Axes(site).kept(where(total.equals(0), 0.0, site.m / total))]


@rule("rescale", "ReduceLogSum")
def logarithm_of_sum(site: Site) -> list[Tensor]:
    """m_x = (y - y0) / (s - s0) m_y for the sums s and s0, and m_y / s where they meet."""
    axes = Axes(site)
    s, y = site.x.map(lambda t: axes.reduce("ReduceSum", t)), site.y.map(axes.kept)
    return [site.x.spread(log_slope(s, y) * axes.kept(site.m))]


# --- products --------------------------------------------------------------------------------------------------------

GROUP = 8
"""Of more factors so many at a time make a product, and their products again."""
LEVELS = 8
"""How often, where the number of factors is known at run time only: GROUP ** LEVELS of them at most."""


@rule("shapley", "ReduceProd")
def product(site: Site) -> list[Tensor]:
    """m_j = m_y integral of prod_(i != j) (r_i + t d_i) over t in [0, 1]: Shapley values, of up to 8 factors at a time.

    A product is multilinear, so that its Shapley values lie on the straight way from r to x (Owen 1972). For two
    factors they are the midpoint rule. No factor is divided by, so that any of them may be 0.
    """
    rows = rows_of(Axes(site), last=True)
    if rows is None:
        return [site.m]
    x, m = rows.value(site.x), rows.output(site.m)
    n = None if x.shape is None else x.shape[-1]
    shares = factor_shares(widen(x.x), widen(x.r), widen(m), n if isinstance(n, int) else None)
    return [cast(rows.back(shares), site.x.dtype)]


def factor_shares(x: Tensor, r: Tensor, m: Tensor, n: int | None, levels: int = LEVELS) -> Tensor:
    """The multipliers of the factors along the last axis from that of their product, [.., 1]. n: how many, if known."""
    if n is not None and n <= GROUP:
        return m * (of_the_others(x, r, n) if n else x)
    if not levels:
        return reshape(m, shape_of(x))  # all have met in one; an error at run time if they were too many
    x_groups, r_groups = grouped(x, n), grouped(r, n)
    whole, whole0 = reduce_product(x_groups), reduce_product(r_groups)
    m = factor_shares(whole, whole0, m, None if n is None else -(-n // GROUP), levels - 1)
    shares = regroup(unsqueeze(m, [m.rank]) * of_the_others(x_groups, r_groups, GROUP), x.rank - 1, [-1])
    return slice_axis(shares, x.rank - 1, 0, shape_of(x, x.rank - 1))


def grouped(t: Tensor, n: int | None) -> Tensor:
    """The last axis in groups, the last of which is filled with ones: [.., groups, GROUP]."""
    last = t.rank - 1
    count = shape_of(t, last)
    missing = maximum((count + (GROUP - 1)) / GROUP, 1) * GROUP - count
    if missing.value is None or missing.value.any():
        pads = concat([t.emitter.ints([0] * (2 * last + 1)), missing], axis=0)
        shape = None if t.shape is None else (*t.shape[:last], None if n is None else -(-n // GROUP) * GROUP)
        t = t.emitter.op("Pad", t, pads, t.emitter.constant(1, t.dtype), shape=shape)
    return regroup(t, last, [-1, GROUP])


def reduce_product(t: Tensor) -> Tensor:
    """The product along the last axis, which goes."""
    last = t.rank - 1
    return t.emitter.op("ReduceProd", t, t.emitter.ints([last]), keepdims=0, shape=(t.shape or ())[:last])


def of_the_others(x: Tensor, r: Tensor, n: int) -> Tensor | float:
    """For each of n places along the last axis: the integral of the product of r + t d at the others.

    It is a polynomial of degree n - 1, for which the quadrature of Gauss and Legendre is exact at n / 2 points.
    """
    if n <= 1:
        return 1.0
    last = x.rank
    t, w = (x.emitter.constant(np.array(values)[:, None], x.dtype) for values in zip(*line_points(n), strict=True))
    way = unsqueeze(r, [last - 1]) * (1 - t) + unsqueeze(x, [last - 1]) * t
    shape = None if way.shape is None else (*way.shape[:last], 1)
    places = x.emitter.ops("Split", way, axis=last, num_outputs=n, shapes=[shape] * n)
    before, behind = ([*accumulate(side, Tensor.__mul__)] for side in (places[:-1], places[:0:-1]))
    others = [behind[-1], *(a * b for a, b in zip(before, behind[-2::-1], strict=False)), before[-1]]
    return reduce_sum(concat(others, last) * w, [last - 1], keepdims=False)


# --- along an axis ---------------------------------------------------------------------------------------------------


@rule("midpoint", "LpNormalization")
def unit_length(site: Site) -> list[Tensor]:
    """m_j = (2 g_j - s_j sum g_i (y_i + y0_i)) / (n + n0), n the norm and s_j its slope: midpoints of x = y n."""
    axes = [site.attribute("axis", -1) % site.x.rank]
    p = site.attribute("p", 2)
    return [length_shares(site.x, site.y, site.m, p, axes)]


def length_shares(x: Value, y: Value, g: Tensor, p: int, axes: Sequence[int]) -> Tensor:
    """Solved for dy, the midpoint rule of x = y n has no term that grows where one of the norms is small."""
    size = x.map(absolute) if p == 1 else x.map(lambda t: t * t)
    n = size.map(lambda t: reduce_sum(t, axes)) if p == 1 else size.map(lambda t: sqrt(reduce_sum(t, axes)))
    total = n.x + n.r
    inverse = where(total < limits(total).smallest, 0.0, 1 / total)
    along = reduce_sum(g * (y.x + y.r), axes) * inverse
    slope = abs_slope(x, size) if p == 1 else (x.x + x.r) * inverse
    return g * (inverse * 2) - slope * along


@rule("rescale", "Hardmax")
def winner_takes_all(site: Site) -> list[Tensor]:
    """m_i = G 1{dx_i > 0} / P at x's maximum, m_j = -G 1{dx_j < 0} / P at r's, G = sum m_y dy, P = dx_i+ + dx_j-.

    The maximum moved from j to i because x_i rose or x_j fell: they share what this changed, in proportion. Ours.
    """
    axes = [site.attribute("axis", -1) % site.x.rank]
    x, y = site.x.map(spanned), site.y.map(widen)
    rises, falls = y.x * cast(x.d > 0, y.dtype), y.r * cast(x.d < 0, y.dtype)
    moved = rises - falls
    causes = maximum(reduce_sum(moved * x.d, axes), limits(x.d).smallest)
    change = reduce_sum(widen(site.m) * y.d, axes)
    return [cast(moved * (change / causes), site.x.dtype)]


def spanned(t: Tensor) -> Tensor:
    """In float32 at least, and such that all differences are finite: a mask may be minus infinity."""
    t = widen(t)
    return clip(t, -limits(t).largest / 4, limits(t).largest / 4)
