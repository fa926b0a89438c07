"""RevealCancel: the positive and the negative causes of a change are let act with and without each other.

With r the argument at the reference, p = d+ and n = d- (DeepLIFT 3.5.3, METHOD section 3), the function f gives

    dy+ = ½ [f(r + p) - f(r) + f(x) - f(r + n)],    dy- = ½ [f(r + n) - f(r) + f(x) - f(r + p)],

the Shapley values of the two sides, as x = r + p + n. Divided by p and n they are means of two slopes each, and a slope
is total: where a side is empty it is the derivative, so that no pseudocount is needed.
"""

from __future__ import annotations

from onnxlift.registry import rule
from onnxlift.rules.elementwise import BROADCASTING, SLOPES, to_argument
from onnxlift.signed import Multiplier, Parts
from onnxlift.site import Site
from onnxlift.tensor import Tensor


def reveal_cancel(site: Site) -> list[Multiplier | None]:
    """m+ = dy+/p m+_y, m- = dy-/n m-_y, with the derivative for an empty side (DeepLIFT 3.5.3)."""
    s_plus, s_minus = slopes(site)
    mean, half = (s_plus + s_minus) * 0.5, (s_plus - s_minus) * 0.5
    if site.half is None:
        m = Multiplier(mean * site.m, half * site.m)
    else:
        m = Multiplier(mean * site.m + half * site.half, mean * site.half + half * site.m)
    return to_argument(site, m)


def parts(site: Site) -> list[Parts]:
    """dy+ and dy-."""
    p, n = site.argument.parts
    s_plus, s_minus = slopes(site)
    return [Parts(s_plus * p, s_minus * n)]


def slopes(site: Site) -> tuple[Tensor, Tensor]:
    """dy+/p and dy-/n: S(a, b) being the slope of f between a and b, ½ [S(r + p, r) + S(x, r + n)] and vice versa."""
    x, r = site.argument.x, site.argument.r
    p, n = site.argument.parts

    def between(a: Tensor, b: Tensor) -> Tensor:
        return SLOPES[site.op](site.at(a, b))

    s_plus = between(r + p, r) + between(x, r + n)
    s_minus = between(r + n, r) + between(x, r + p)
    return s_plus * 0.5, s_minus * 0.5


for op in SLOPES:
    rule(
        "reveal-cancel",
        op,
        default=False,
        elementwise=True,
        broadcasts=op in BROADCASTING,
        parts=parts,
        signed=True,
    )(reveal_cancel)
