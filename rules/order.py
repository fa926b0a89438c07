"""Order statistics: the k largest or smallest values of a row (METHOD section 4). Ours.

At every rank let y = x_i be the value at the input and y0 = r_j the one at the reference. As with the maximum, the
places i and j account for as much of dy as fits between 0 and their own difference, one after the other:

    c_p = dy clipped to [0, dx_p],  c_q = dy - c_p clipped to [0, dx_q],  m = c / dx.

First comes p = i where y > y0 (the smallest: y < y0) or where r_i = y0 too, and p = j elsewhere. This is the winner of
`cross-max` (rules/maximum.py), ties included, and at the first rank it takes all, with the same factor. Further down,
others may have pushed a rank's value aside: what is left goes to all places l of the row by least squares, rest dx_l /
sum dx^2. An order statistic changes by no more than the largest |dx| of its row, and all parts of dy have its sign, so
that none of the three factors exceeds 1. Where the operator leaves the order open (sorted = 0), ranks are those that it
returns; two runs may then return a place at different ones, and the last factor may be larger.
"""

from __future__ import annotations

from onnxlift.functions import (
    absolute,
    cast,
    gather_elements,
    logical_or,
    maximum,
    minimum,
    reduce_max,
    reduce_sum,
    scatter_add,
    where,
    widen,
)
from onnxlift.registry import rule
from onnxlift.rules.maximum import finite
from onnxlift.site import Site, Value
from onnxlift.tensor import Tensor, limits


@rule("cross-rank", "TopK")
def top(site: Site) -> list[Tensor]:
    """m_i = c_i/dx_i m_y, m_j = c_j/dx_j m_y as for a maximum; the rest of dy by dx^2 over the row (METHOD 4)."""
    site.only_active(0)
    x, y, m = site.x.map(finite), site.y.map(finite), site.m
    axis = site.attribute("axis", -1) % x.rank
    places = site.outputs[1]
    assert places is not None
    i, j = places.x, places.full_r
    r_i, x_j = gather_elements(x.full_r, i, axis), gather_elements(x.x, j, axis)
    dy, tied = y.d, r_i.equals(y.r)
    at_i = logical_or(dy > 0 if site.attribute("largest", 1) else dy < 0, tied)
    d_i, d_j = y.x - r_i, x_j - y.r
    d_p, d_q = where(at_i, d_i, d_j), where(at_i, d_j, d_i)
    c_p = _between(dy, d_p)
    c_q = _between(dy - c_p, d_q)
    f_p = where(d_p.equals(0), cast(tied, dy.dtype), c_p / d_p)
    f_q = where(d_q.equals(0), 0.0, c_q / d_q)
    shares = widen(x.zeros())
    for place, factor in ((where(at_i, i, j), f_p), (where(at_i, j, i), f_q)):
        shares = scatter_add(shares, place, cast(m * factor, shares.dtype), axis)
    rest = reduce_sum(widen(m * (dy - c_p - c_q)), [axis])
    return [cast(shares + rest * _least_squares(x, axis, rest), m.dtype)]


def _between(c: Tensor, d: Tensor) -> Tensor:
    """c, clipped to what lies between 0 and d."""
    return maximum(minimum(c, maximum(d, 0)), minimum(d, 0))


def _least_squares(x: Value, axis: int, like: Tensor) -> Tensor:
    """dx_l / sum dx^2 of each row; 0 where nothing changed. Scaled, so that no square overflows or vanishes."""
    d = cast(x.d, like.dtype)
    largest = maximum(reduce_max(absolute(d), [axis]), limits(d).smallest)
    scaled = d / largest
    return scaled / (maximum(reduce_sum(scaled * scaled, [axis]), 1) * largest)
