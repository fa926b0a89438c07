"""Elementwise functions of several tensors that depend on the attributed inputs.

A function of two is given the Shapley values of its operands (METHOD section 4): the mean of both orders in which one
may change after the other,

    c_a = 1/2 [f(a, b) - f(a0, b) + f(a, b0) - f(a0, b0)] = 1/2 [S_a(b) + S_a(b0)] da,

with S_a(b) the slope of f in a between a0 and a: the closed forms of rules/elementwise.py and their limits serve here,
too. Where f has no value at one of the corners (a, b0) and (a0, b), which neither run sees, or one whose rounding
drowns dy, the order that passes it is left out; without both the operands share dy evenly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnxlift.functions import absolute, cast, maximum, minimum, where
from onnxlift.rules.elementwise import SEVERAL, Weights
from onnxlift.rules.maximum import shares
from onnxlift.rules.slopes import exponent_slope, power_slope, relu_slope
from onnxlift.site import Pairing, Site, Value
from onnxlift.tensor import Tensor, limits


def of_several(op: str) -> Callable[[Weights], Weights]:
    """Register the decorated function for nodes of `op` with several operands that depend on the attributed inputs."""

    def register(function: Weights) -> Weights:
        SEVERAL[op] = function
        return function

    return register


@of_several("PRelu")
def prelu(site: Site) -> list[Tensor | None]:
    """Of relu(x) + s min(x, 0): w_x = S + s' (1 - S) with S the slope of Relu, w_s = min(x, 0)'; ' for midpoints."""
    x, s = site.input(0), site.input(1)
    w_x = None
    if x.active:
        positive = relu_slope(x)
        w_x = positive + s.mid * (1 - positive)
    return [w_x, x.map(lambda t: minimum(t, 0)).mid]


@of_several("Clip")
def clipped(site: Site) -> list[Tensor | None]:
    """Of min(max(x, low), high): the rule of the maximum, then that of the minimum."""
    x, low, high = site.input(0), site.optional(1), site.optional(2)
    above, w_x, w_low, w_high = x, None, None, None
    if low is not None:
        active = x.active or low.active
        above = Value(site.op, maximum(x.x, low.x), maximum(x.r, low.r), active, Pairing())
        w_x, w_low = operand_shares(site, "Max", [x, low], site.y if high is None else above)
    if high is not None:
        w_above, w_high = operand_shares(site, "Min", [above, high], site.y)
        w_x, w_low = w_above if low is None else product(w_x, w_above), product(w_low, w_above)
    return [w_x, w_low, w_high][: len(site.inputs)]


def operand_shares(site: Site, op: str, values: Sequence[Value], y: Value) -> list[Tensor | None]:
    """The weights of the operands of y = op(values), Max or Min; None for those that carry no importance."""
    if not any(value.active for value in values):
        return [None for _ in values]
    return shares(Site(site.emitter, op, site.name, {}, values, [y], []), "cross-max")


def product(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else a * b


@of_several("Pow")
def power(site: Site) -> list[Tensor | None]:
    """Of a^p: the slopes of powers and of exponential functions."""
    a, p = site.input(0), site.input(1)
    q, q0, d = cast(p.x, a.dtype), cast(p.r, a.dtype), cast(p.d, a.dtype)
    return shapley(
        site,
        (q, q0),
        lambda e, y, y0: power_slope(a, Value(site.op, y, y0, True, Pairing()), e),
        lambda base, y, y0: exponent_slope(base, d, y, y0),
    )


@of_several("Mod")
def remainder(site: Site) -> list[Tensor | None]:
    """Of a - b trunc(a / b): quotients, and at da = 0 and db = 0 the limits 1 and -trunc(a / b)."""
    a, b = site.input(0), site.input(1)
    return shapley(
        site,
        (b.x, b.r),
        lambda _, y, y0: where(a.d.equals(0), 1.0, (y - y0) / a.d),
        lambda of, y, y0: where(b.d.equals(0), (y - of) / b.x, (y - y0) / b.d),
    )


DROWNED = 1000
"""How much larger the function may be at a corner than in both runs: rounding errors grow by as much."""

Partial = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The slope of a function of two in one of them: from the other's value, and the function's values at both ends."""


def shapley(site: Site, other: tuple[Tensor, Tensor], slope_a: Partial, slope_b: Partial) -> list[Tensor | None]:
    """The weights of two operands, 1/2 [S_a(b) + S_a(b0)] and 1/2 [S_b(a) + S_b(a0)]; `other`: b and b0 for S_a."""
    a, b = site.input(0), site.input(1)
    y, y0 = site.y.x, site.y.r
    if not a.active:
        return [None, slope_b(a.x, y, y0)]
    only_a, only_b = (site.emitter.op(site.op, *pair, **site.attributes) for pair in ((a.x, b.r), (a.r, b.x)))
    scale = minimum((absolute(y) + absolute(y0)) * DROWNED, limits(y).largest)
    has_a, has_b = (absolute(value) <= scale for value in (only_a, only_b))
    even, both = (y + y0) * 0.5, y + y0
    only_a, only_b = (
        where(has_a, only_a, where(has_b, both - only_b, even)),
        where(has_b, only_b, where(has_a, both - only_a, even)),
    )
    w_a = slope_a(other[0], y, only_b) + slope_a(other[1], only_a, y0)
    w_b = slope_b(a.x, y, only_a) + slope_b(a.r, only_b, y0)
    return [w_a * 0.5, w_b * 0.5]
