"""Slopes of functions between two points: difference quotients in closed form, which no rule of its own needs.

A `Value` holds both points; y and y0 are what the function makes of them. All are total, with the derivative at x = r.
"""

from __future__ import annotations

from collections.abc import Callable

from onnxlift.functions import absolute, clip, log, logical_and, maximum, tanh, where
from onnxlift.site import Value
from onnxlift.tensor import Tensor, limits


def relu_slope(x: Value) -> Tensor:
    """max(x, r) / |x - r| clipped to [0, 1]: exact for every pair, 0 at x = r = 0.

    Where pairs share x or r, (max(x, 0) + max(r, 0)) / (|x| + |r|): the same, with fewer operations on pairs. In half
    precision these sums might overflow.
    """
    smallest = limits(x.x).smallest
    if x.is_shared and x.dtype.itemsize >= 4:
        up, size = x.map(lambda t: clip(t, 0)), x.map(absolute)
        return (up.x + up.r) / (size.x + (size.r + smallest))
    return clip(maximum(x.x, x.r) / maximum(absolute(x.d), smallest), 0, 1)


def tanh_over(d: Tensor, scale: float = 0.5) -> Tensor:
    """tanh(scale d) / d, even in d, with its limit at 0: the cancellation-free part of exp, sigmoid and tanh."""
    distance = maximum(absolute(d), limits(d).tiny)
    return tanh(distance if scale == 1 else distance * scale) / distance


def exp_slope(y: Tensor, y0: Tensor, d: Tensor) -> Tensor:
    """Logarithmic mean of y = e^x and y0 = e^r: (y + y0) tanh(d/2) / d."""
    return (y + y0) * tanh_over(d)


def sigmoid_slope(x: Value, y: Value) -> Tensor:
    """(y + y0 - 2 y y0) tanh(d/2) / d."""
    return (y.x * (1 - y.r) + y.r * (1 - y.x)) * tanh_over(x.d)


def tanh_slope(x: Value, y: Value) -> Tensor:
    """(1 - y y0) tanh(d) / d."""
    return (1 - y.x * y.r) * tanh_over(x.d, 1)


def abs_slope(x: Value, y: Value) -> Tensor:
    """(x + r) / (|x| + |r|), y being |x|; 0 at x = r = 0."""
    return (x.x + x.r) / maximum(y.x + y.r, limits(x.x).smallest)


def log_slope(x: Value, y: Value) -> Tensor:
    """Of y = log x."""
    return smooth_slope(x, y, lambda t: 1 / t, scale_free=True)


def quotient(dy: Tensor, d: Tensor, near: Tensor, limit: Tensor) -> Tensor:
    """dy / d, and `limit` where `near` holds."""
    return where(near, limit, dy / d)


def smooth_slope(
    x: Value, y: Value, derivative: Callable[[Tensor], Tensor], *, scale_free: bool = False, singular: bool = False
) -> Tensor:
    """The divided difference, and the derivative at the midpoint where |d| is below the balance of both errors.

    `singular`: the derivative is infinite somewhere in the domain; there the limit is 0, as nothing finite is right.
    """
    bounds = limits(x.x)
    near = absolute(x.d) <= (absolute(x.mid) * bounds.balance if scale_free else bounds.balance)
    limit = derivative(x.mid)
    if singular:
        limit = where(absolute(limit) <= bounds.largest, limit, 0.0)
    return quotient(y.d, x.d, near, limit)


def power_slope(x: Value, y: Value, p: Tensor) -> Tensor:
    """Of y = x^p."""
    return smooth_slope(x, y, lambda t: p * t ** (p - 1), scale_free=True, singular=True)


def exponent_slope(base: Tensor, d: Tensor, y: Tensor, y0: Tensor) -> Tensor:
    """Of b^p as p changes by d: the logarithmic mean times log b; far apart the quotient, and without b > 0 as well,
    where there is no derivative: 0 where p stays."""
    rate = log(where(base > 0, base, 1.0))
    near = logical_and(base > 0, absolute(d * rate) <= 1)
    return where(near, exp_slope(y, y0, d * rate) * rate, where(d.equals(0), 0.0, (y - y0) / d))
