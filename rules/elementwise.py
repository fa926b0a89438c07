"""Rescale on elementwise nonlinearities: m = dy/dx (DFD 2.3.3, LIFTPAD eq. 15, DeepLIFT "Rescale rule").

An operator states its *slope*: the difference quotient (f(x) - f(r)) / (x - r) as a total function, with the limit
f'(x) at x = r. Where algebra gives a closed form without cancellation it is used; the others divide the differences
and fall back on the derivative at the midpoint where the division would be float noise.

With d = x - r, the quotient is off by about eps |y| / |d|, the midpoint derivative by d^2 f''' / 24. The two balance
at |d| = (24 eps)^(1/3) for functions that vary on a scale of one, and at that times |x| for scale-free ones.
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi
from math import sqrt as root
from typing import TypeVar

from onnxlift.functions import absolute, cast, clip, erf, exp, log, maximum, minimum, sigmoid, sqrt, tanh, where
from onnxlift.registry import rule
from onnxlift.signed import Multiplier, Parts
from onnxlift.site import Site, Value
from onnxlift.tensor import Tensor, limits, unary

M = TypeVar("M", Tensor, Multiplier)

Slope = Callable[[Site], Tensor]
SLOPES: dict[str, Slope] = {}


BROADCASTING: set[str] = set()
"""Those of them whose argument may be broadcast."""


def slope(*ops: str, broadcasts: bool = False) -> Callable[[Slope], Slope]:
    """Register the decorated function as the slope of `ops`."""

    def register(function: Slope) -> Slope:
        for op in ops:
            SLOPES[op] = function
            if broadcasts:
                BROADCASTING.add(op)
            rescale("rescale", op, function, "m_x = dy/dx m_y, and f'(x) m_y where dx -> 0.", default=True)
        return function

    return register


def rescale(name: str, op: str, slope: Slope, equation: str, *, default: bool = False) -> None:
    """Register rule `name` of `op`: m_x = s m_y and, whatever the sign of s, dy± = s d± (DeepLIFT 3.5.2)."""

    def multipliers(site: Site) -> list[Tensor | None]:
        return to_argument(site, site.m * slope(site))

    def parts(site: Site) -> list[Parts]:
        s = slope(site)
        return [Parts(*(part * s for part in site.argument.parts))]

    multipliers.__doc__ = equation
    rule(name, op, default=default, elementwise=True, broadcasts=op in BROADCASTING, parts=parts)(multipliers)


def to_argument(site: Site, m: M) -> list[M | None]:
    """The multiplier of the input that the function is of; the others get none."""
    return [m if value is site.argument else None for value in site.inputs]


# --- building blocks: slopes of functions of a pair (x, r) ------------------------------------------------------------


def relu_slope(x: Tensor, r: Tensor) -> Tensor:
    """max(x, r) / |x - r| clipped to [0, 1]: exact for every pair, 0 at x = r = 0."""
    distance = maximum(absolute(x - r), limits(x).smallest)
    return clip(maximum(x, r) / distance, 0, 1)


def tanh_over(d: Tensor, scale: float = 0.5) -> Tensor:
    """tanh(scale d) / d, even in d, with its limit at 0: the cancellation-free part of exp, sigmoid and tanh."""
    distance = maximum(absolute(d), limits(d).tiny)
    return tanh(distance if scale == 1 else distance * scale) / distance


def exp_slope(y: Tensor, y0: Tensor, d: Tensor) -> Tensor:
    """Logarithmic mean of y = e^x and y0 = e^r: (y + y0) tanh(d/2) / d."""
    return (y + y0) * tanh_over(d)


def quotient(dy: Tensor, d: Tensor, near: Tensor, limit: Tensor) -> Tensor:
    """dy / d, and `limit` where `near` holds."""
    return where(near, limit, dy / d)


def smooth(
    site: Site, derivative: Callable[[Tensor], Tensor], *, scale_free: bool = False, singular: bool = False
) -> Tensor:
    """The divided difference, and the derivative at the midpoint where |d| is below the balance of both errors.

    `singular`: the derivative is infinite somewhere in the domain; there the limit is 0, as nothing finite is right.
    """
    x, y = site.x, site.y
    bounds = limits(x.x)
    near = absolute(x.d) <= (absolute(x.mid) * bounds.balance if scale_free else bounds.balance)
    limit = derivative(x.mid)
    if singular:
        limit = where(absolute(limit) <= bounds.largest, limit, 0.0)
    return quotient(y.d, x.d, near, limit)


def exact_steps(site: Site, derivative: Tensor) -> Tensor:
    """For functions whose pieces are constant or the identity: the quotient is exact unless d = 0."""
    return quotient(site.y.d, site.x.d, site.x.d.equals(0), cast(derivative, site.x.dtype))


def _elu_slope(site: Site, alpha: float, width: float) -> Tensor:
    """Of relu(x) + alpha (e^(min(x, 0) / width) - 1)."""
    x, r = site.x.x, site.x.r
    low, low0 = (minimum(value, 0) * (1 / width) for value in (x, r))
    positive = relu_slope(x, r)
    return positive + (1 - positive) * (alpha / width) * exp_slope(exp(low), exp(low0), low - low0)


# --- piecewise linear ------------------------------------------------------------------------------------------------


@slope("Relu")
def relu(site: Site) -> Tensor:
    return relu_slope(site.x.x, site.x.r)


@slope("LeakyRelu")
def leaky_relu(site: Site) -> Tensor:
    alpha: float = site.attribute("alpha", 0.01)
    return alpha + (1 - alpha) * relu_slope(site.x.x, site.x.r)


@slope("PRelu")
def prelu(site: Site) -> Tensor:
    alpha = site.input(1).x
    return alpha + (1 - alpha) * relu_slope(site.x.x, site.x.r)


@slope("ThresholdedRelu")
def thresholded_relu(site: Site) -> Tensor:
    return exact_steps(site, site.x.x > site.attribute("alpha", 1.0))


@slope("Clip")
def clipped(site: Site) -> Tensor:
    return exact_steps(site, site.y.x.equals(site.x.x))


@slope("HardSigmoid")
def hard_sigmoid(site: Site) -> Tensor:
    return _hard_sigmoid_slope(site.x, site.attribute("alpha", 0.2), site.attribute("beta", 0.5))


@slope("HardSwish")
def hard_swish(site: Site) -> Tensor:
    """Of x h(x) with h a hard sigmoid, by the product rule: (h + h0)/2 + (x + r)/2 dh/dx."""
    gate = [clip(value * (1 / 6) + 0.5, 0, 1) for value in (site.x.x, site.x.r)]
    return (gate[0] + gate[1]) * 0.5 + site.x.mid * _hard_sigmoid_slope(site.x, 1 / 6, 0.5)


def _hard_sigmoid_slope(value: Value, alpha: float, beta: float) -> Tensor:
    """With u = alpha x + beta: alpha times the slope of u clipped to [0, 1], which is exact unless u = u0."""
    u, u0 = (tensor * alpha + beta for tensor in (value.x, value.r))
    h, d = clip(u, 0, 1), u - u0
    return quotient(h - clip(u0, 0, 1), d, d.equals(0), cast(h.equals(u), u.dtype)) * alpha


@slope("Abs")
def abs_(site: Site) -> Tensor:
    """(x + r) / (|x| + |r|)."""
    x, r = site.x.x, site.x.r
    return (x + r) / maximum(site.y.x + site.y.r, limits(x).smallest)


@slope("Sign", "Floor", "Ceil", "Round")
def steps(site: Site) -> Tensor:
    return where(site.x.d.equals(0), 0.0, site.y.d / site.x.d)


# --- smooth, in closed form ------------------------------------------------------------------------------------------


@slope("Exp")
def exp_(site: Site) -> Tensor:
    return exp_slope(site.y.x, site.y.r, site.x.d)


@slope("Sigmoid")
def sigmoid_(site: Site) -> Tensor:
    """(y + y0 - 2 y y0) tanh(d/2) / d."""
    y, y0 = site.y.x, site.y.r
    return (y * (1 - y0) + y0 * (1 - y)) * tanh_over(site.x.d)


@slope("Tanh")
def tanh_(site: Site) -> Tensor:
    """(1 - y y0) tanh(d) / d."""
    return (1 - site.y.x * site.y.r) * tanh_over(site.x.d, 1)


@slope("Elu")
def elu(site: Site) -> Tensor:
    return _elu_slope(site, site.attribute("alpha", 1.0), 1.0)


@slope("Celu")
def celu(site: Site) -> Tensor:
    alpha = site.attribute("alpha", 1.0)
    return _elu_slope(site, alpha, alpha)


@slope("Selu")
def selu(site: Site) -> Tensor:
    alpha = site.attribute("alpha", 1.67326319217681884765625)
    gamma: float = site.attribute("gamma", 1.05070102214813232421875)
    return _elu_slope(site, alpha, 1.0) * gamma


@slope("Sqrt")
def sqrt_(site: Site) -> Tensor:
    """1 / (y + y0), and 0 at x = r = 0, where the derivative is infinite."""
    total = site.y.x + site.y.r
    return where(total.equals(0), 0.0, 1 / total)


@slope("Reciprocal")
def reciprocal(site: Site) -> Tensor:
    """-y y0."""
    return -(site.y.x * site.y.r)


@slope("Softsign")
def softsign(site: Site) -> Tensor:
    """(1 + c) / ((1 + |x|) (1 + |r|)), with c = 2 |x r| / |x - r| where the signs differ and 0 elsewhere."""
    x, r = site.x.x, site.x.r
    c = maximum(maximum(x, r), 0) * relu_slope(-x, -r) * 2
    return (1 + c) / (1 + absolute(x)) / (1 + absolute(r))


# --- smooth, by the divided difference -------------------------------------------------------------------------------


@slope("Softplus")
def softplus(site: Site) -> Tensor:
    return smooth(site, sigmoid)


@slope("Erf")
def erf_(site: Site) -> Tensor:
    return smooth(site, lambda x: exp(-(x * x)) * (2 / root(pi)))


@slope("Gelu")
def gelu(site: Site) -> Tensor:
    if site.attribute("approximate", "none") == "tanh":
        return smooth(site, _tanh_gelu_derivative)
    return smooth(site, lambda x: (erf(x * root(0.5)) + 1) * 0.5 + x * exp(x * x * -0.5) * (1 / root(2 * pi)))


def _tanh_gelu_derivative(x: Tensor) -> Tensor:
    c, square = root(2 / pi), x * x
    t = tanh(x * (1 + square * 0.044715) * c)
    return (1 + t) * 0.5 + x * (1 - t * t) * (1 + square * (3 * 0.044715)) * (0.5 * c)


@slope("Mish")
def mish(site: Site) -> Tensor:
    def derivative(x: Tensor) -> Tensor:
        t = tanh(unary("Softplus", x))
        return t + x * sigmoid(x) * (1 - t * t)

    return smooth(site, derivative)


@slope("Log")
def log_(site: Site) -> Tensor:
    return smooth(site, lambda x: 1 / x, scale_free=True)


DERIVATIVES: dict[str, Callable[[Tensor], Tensor]] = {
    "Sin": lambda x: unary("Cos", x),
    "Cos": lambda x: -unary("Sin", x),
    "Tan": lambda x: 1 + unary("Tan", x) * unary("Tan", x),
    "Asin": lambda x: 1 / sqrt(1 - x * x),
    "Acos": lambda x: -1 / sqrt(1 - x * x),
    "Atan": lambda x: 1 / (1 + x * x),
    "Sinh": lambda x: (exp(x) + exp(-x)) * 0.5,
    "Cosh": lambda x: (exp(x) - exp(-x)) * 0.5,
    "Asinh": lambda x: 1 / sqrt(1 + x * x),
    "Acosh": lambda x: 1 / sqrt(x * x - 1),
    "Atanh": lambda x: 1 / (1 - x * x),
}
"""Functions that networks rarely use: the derivative is all they state."""

SINGULAR = ("Asin", "Acos", "Acosh")
"""Those with an infinite derivative at the edge of their domain."""


@slope(*DERIVATIVES)
def by_derivative(site: Site) -> Tensor:
    return smooth(site, DERIVATIVES[site.op], singular=site.op in SINGULAR)


# --- powers ----------------------------------------------------------------------------------------------------------


@slope("Pow", broadcasts=True)
def power(site: Site) -> Tensor:
    """Of x^p for constant p, and of b^x for constant b > 0."""
    base, p = site.input(0), site.input(1)
    if p.active:
        scale = log(base.x)
        return exp_slope(site.y.x, site.y.r, p.d * scale) * scale
    if p.constant is not None and p.constant.size == 1 and p.constant.item() == 2:
        return base.x + base.r
    if p.constant is not None and p.constant.size == 1 and p.constant.item() == 3:
        return base.x * (base.x + base.r) + base.r * base.r
    q = cast(p.x, base.dtype)
    return smooth(site, lambda x: q * x ** (q - 1), scale_free=True, singular=True)
