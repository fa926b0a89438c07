"""RevealCancel: the positive and the negative causes of a change are let act with and without each other.

With r the argument at the reference, p = d+ and n = d- (DeepLIFT 3.5.3, METHOD section 3), the function f gives

    dy+ = ½ [f(r + p) - f(r) + f(x) - f(r + n)],    dy- = ½ [f(r + n) - f(r) + f(x) - f(r + p)],

the Shapley values of the two sides, as x = r + p + n. Divided by p and n they are means of two slopes each, and a slope
is total: where a side is empty it is the derivative, so that no pseudocount is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import pi

from onnxlift.functions import absolute, logical_and, sign, where
from onnxlift.registry import rule
from onnxlift.rules.elementwise import (
    BROADCASTING,
    SEVERAL,
    SLOPES,
    is_of_several,
    slope_between,
    to_argument,
    weighted_parts,
)
from onnxlift.signed import Multiplier, Parts
from onnxlift.site import Site
from onnxlift.tensor import Tensor, limits, unary

PARTIAL = frozenset("Log Sqrt Reciprocal Pow Asin Acos Acosh Atanh Exp Sinh Cosh Tan".split())
"""Functions that r + p or r + n may lead astray, although r and x do not: `within_reach`."""
FAR = 10
"""How much larger than y, y0, p and n together the values at r + p and r + n may be: so much do errors grow."""


Slopes = Callable[[Site], tuple[Tensor, Tensor]]
"""dy+/p and dy-/n."""


def reveal_cancel(name: str, op: str, slopes: Slopes, equation: str) -> None:
    """Register rule `name` of `op`: m+ = (dy+/p) m+_y, m- = (dy-/n) m-_y."""

    def multipliers(site: Site) -> list[Multiplier | None]:
        if is_of_several(site):
            return weighted(site, SEVERAL[op](site))
        s_plus, s_minus = slopes(site)
        mean, half = (s_plus + s_minus) * 0.5, (s_plus - s_minus) * 0.5
        if site.half is None:
            m = Multiplier(mean * site.m, half * site.m)
        else:
            m = Multiplier(mean * site.m + half * site.half, mean * site.half + half * site.m)
        return to_argument(site, m)

    def parts(site: Site) -> list[Parts]:
        if is_of_several(site):
            return weighted_parts(site, SEVERAL[op](site))
        p, n = site.argument.parts
        s_plus, s_minus = slopes(site)
        return [Parts(s_plus * p, s_minus * n)]

    multipliers.__doc__ = equation
    broadcasts = op in BROADCASTING
    rule(name, op, default=False, elementwise=True, broadcasts=broadcasts, parts=parts, signed=True)(multipliers)


def weighted(site: Site, weights: Sequence[Tensor | None]) -> list[Multiplier | None]:
    """m± = w m±_y for y = sum of w x: of several tensors, each counts as one cause."""
    halves = [None if w is None or site.half is None else site.half * w for w in weights]
    return [None if w is None else Multiplier(site.m * w, half) for w, half in zip(weights, halves, strict=True)]


def slopes(site: Site) -> tuple[Tensor, Tensor]:
    """dy+/p and dy-/n: S(a, b) being the slope of f between a and b, ½ [S(r + p, r) + S(x, r + n)] and vice versa.

    Where one side is empty the other one leads to x itself, not to a rounding beside it. Where r + p or r + n are not
    `within_reach`, both are dy/dx.
    """
    x, r = site.argument.x, site.argument.r
    p, n = site.argument.parts
    up, down = where(n.equals(0), x, r + p), where(p.equals(0), x, r + n)
    s_plus = (slope_between(site, up, r) + slope_between(site, x, down)) * 0.5
    s_minus = (slope_between(site, down, r) + slope_between(site, x, up)) * 0.5
    if site.op not in PARTIAL:
        return s_plus, s_minus
    finite = absolute(s_plus + s_minus) <= limits(x).largest
    near = logical_and(finite, within_reach(site, up, down))
    whole = SLOPES[site.op](site)
    return where(near, s_plus, whole), where(near, s_minus, whole)


def within_reach(site: Site, up: Tensor, down: Tensor) -> Tensor:
    """Where f has values at r + p and r + n, on the same side of its poles as at r, and none that drowns y and y0."""
    p, n = site.argument.parts
    y = site.at(up, down).y
    size = absolute(y.x) + absolute(y.r)
    near = size <= (absolute(site.y.x) + absolute(site.y.r) + (p - n)) * FAR
    sides = [_side(site, point) for point in (up, down, site.argument.r)]
    for side in sides[:2]:
        if side is not None and sides[2] is not None:
            near = logical_and(near, side.equals(sides[2]))
    return near


def _side(site: Site, point: Tensor) -> Tensor | None:
    """A number for each interval between two poles; None for a function without poles."""
    if site.op == "Reciprocal":
        return sign(point)
    if site.op == "Tan":
        return unary("Round", point * (1 / pi))
    if site.op == "Pow" and not site.input(1).active:
        return where(site.input(1).x < 0, sign(point), 0.0)
    return None


for op in SLOPES:
    reveal_cancel(
        "reveal-cancel",
        op,
        slopes,
        "m+ = dy+/p m+_y, m- = dy-/n m-_y, with the derivative for an empty side (DeepLIFT 3.5.3).",
    )
