"""Rescale on elementwise nonlinearities: m = dy/dx (DFD 2.3.3, LIFTPAD eq. 15, DeepLIFT "Rescale rule").

An operator states its *slope*: the difference quotient (f(x) - f(r)) / (x - r) as a total function, with the limit
f'(x) at x = r. Where algebra gives a closed form without cancellation it is used; the others divide the differences
and fall back on the derivative at the midpoint where the division would be float noise.

With d = x - r, the quotient is off by about eps |y| / |d|, the midpoint derivative by d^2 f''' / 24. The two balance
at |d| = (24 eps)^(1/3) for functions that vary on a scale of one, and at that times |x| for scale-free ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import pi
from math import sqrt as root
from typing import TypeVar

from onnxlift.functions import absolute, cast, clip, erf, exp, maximum, minimum, sigmoid, sqrt, tanh, where
from onnxlift.registry import rule
from onnxlift.rules.linear import summed
from onnxlift.rules.slopes import (
    abs_slope,
    exp_slope,
    exponent_slope,
    log_slope,
    power_slope,
    quotient,
    relu_slope,
    sigmoid_slope,
    smooth_slope,
    tanh_slope,
)
from onnxlift.signed import Multiplier, Parts
from onnxlift.site import Site, Value
from onnxlift.tensor import Tensor, unary

M = TypeVar("M", Tensor, Multiplier)

Slope = Callable[[Site], Tensor]
SLOPES: dict[str, Slope] = {}


BROADCASTING: set[str] = set()
"""Those of them whose argument may be broadcast."""

Weights = Callable[[Site], list[Tensor | None]]
SEVERAL: dict[str, Weights] = {}
"""Of operators with further inputs: dy = sum over the inputs of w dx where more than the argument depends on the
attributed inputs (rules/operands.py fills it); None for an input that carries no importance."""


def slope_between(site: Site, a: Tensor, b: Tensor) -> Tensor:
    """The slope of the node's function between two other points of its argument."""
    return SLOPES[site.op](site.at(a, b))


def slope(*ops: str, broadcasts: bool = False, default: bool = True) -> Callable[[Slope], Slope]:
    """Register the decorated function as the slope of `ops`, and Rescale with it, as their default or by name."""

    def register(function: Slope) -> Slope:
        for op in ops:
            SLOPES[op] = function
            if broadcasts:
                BROADCASTING.add(op)
            rescale("rescale", op, function, "m_x = dy/dx m_y, and f'(x) m_y where dx -> 0.", default=default)
        return function

    return register


def rescale(name: str, op: str, slope: Slope, equation: str, *, default: bool = False) -> None:
    """Register rule `name` of `op`: m_x = s m_y and, whatever the sign of s, dy± = s d± (DeepLIFT 3.5.2)."""

    def multipliers(site: Site) -> list[Tensor | None]:
        return [
            None if value is None or w is None else cast(site.m * w, value.dtype)
            for value, w in zip(site.inputs, weights(site), strict=True)
        ]

    def weights(site: Site) -> list[Tensor | None]:
        return SEVERAL[op](site) if is_of_several(site) else to_argument(site, slope(site))

    def parts(site: Site) -> list[Parts]:
        return weighted_parts(site, weights(site))

    multipliers.__doc__ = equation
    rule(name, op, default=default, elementwise=True, broadcasts=op in BROADCASTING, parts=parts)(multipliers)


def is_of_several(site: Site) -> bool:
    """Whether more depends on the attributed inputs than the argument that a slope is of."""
    return site.op in SEVERAL and site.active != [0] and (site.op != "Pow" or len(site.active) > 1)


def weighted_parts(site: Site, weights: Sequence[Tensor | None]) -> list[Parts]:
    """The parts of y = sum of w x."""
    terms = [
        Parts(*(cast(part, site.y.dtype) * w for part in value.parts))
        for value, w in zip(site.inputs, weights, strict=True)
        if value is not None and w is not None
    ]
    return summed(site, terms) if len(terms) > 1 or site.op in BROADCASTING else terms


def to_argument(site: Site, m: M) -> list[M | None]:
    """The multiplier of the input that the function is of; the others get none."""
    return [m if value is site.argument else None for value in site.inputs]


# --- building blocks --------------------------------------------------------------------------------------------------


def smooth(
    site: Site, derivative: Callable[[Tensor], Tensor], *, scale_free: bool = False, singular: bool = False
) -> Tensor:
    """`smooth_slope` of the operator."""
    return smooth_slope(site.x, site.y, derivative, scale_free=scale_free, singular=singular)


def exact_steps(site: Site, derivative: Tensor) -> Tensor:
    """For functions whose pieces are constant or the identity: the quotient is exact unless d = 0."""
    return quotient(site.y.d, site.x.d, site.x.d.equals(0), cast(derivative, site.x.dtype))


def _elu_slope(site: Site, alpha: float, width: float) -> Tensor:
    """Of relu(x) + alpha (e^(min(x, 0) / width) - 1)."""
    low, low0 = (minimum(value, 0) * (1 / width) for value in (site.x.x, site.x.r))
    positive = relu_slope(site.x)
    return positive + (1 - positive) * (alpha / width) * exp_slope(exp(low), exp(low0), low - low0)


# --- piecewise linear ------------------------------------------------------------------------------------------------


@slope("Relu")
def relu(site: Site) -> Tensor:
    return relu_slope(site.x)


@slope("LeakyRelu")
def leaky_relu(site: Site) -> Tensor:
    alpha: float = site.attribute("alpha", 0.01)
    return alpha + (1 - alpha) * relu_slope(site.x)


@slope("PRelu", broadcasts=True)
def prelu(site: Site) -> Tensor:
    alpha = site.input(1).x
    return alpha + (1 - alpha) * relu_slope(site.x)


@slope("ThresholdedRelu")
def thresholded_relu(site: Site) -> Tensor:
    return exact_steps(site, site.x.x > site.attribute("alpha", 1.0))


@slope("Clip", broadcasts=True)
def clipped(site: Site) -> Tensor:
    return exact_steps(site, site.y.x.equals(site.x.x))


@slope("Mod", broadcasts=True)
def remainder(site: Site) -> Tensor:
    """Of x - b trunc(x / b), which is exact: 1 where the quotient stays."""
    return where(site.x.d.equals(0), 1.0, site.y.d / site.x.d)


@slope("Shrink")
def shrink(site: Site) -> Tensor:
    """Pieces that are 0, or the identity shifted, which is rounded: exactly 0 or 1 where x and r are on the same."""
    lambd: float = site.attribute("lambd", 0.5)
    piece, piece0 = (where(x < -lambd, -1.0, cast(x > lambd, x.dtype)) for x in (site.x.x, site.x.r))
    return quotient(site.y.d, site.x.d, piece.equals(piece0), absolute(piece))


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
    return abs_slope(site.x, site.y)


@slope("Round", default=False)
@slope("Sign", "Floor", "Ceil")
def steps(site: Site) -> Tensor:
    return where(site.x.d.equals(0), 0.0, site.y.d / site.x.d)


# --- smooth, in closed form ------------------------------------------------------------------------------------------


@slope("Exp")
def exp_(site: Site) -> Tensor:
    return exp_slope(site.y.x, site.y.r, site.x.d)


@slope("Sigmoid")
def sigmoid_(site: Site) -> Tensor:
    return sigmoid_slope(site.x, site.y)


@slope("Tanh")
def tanh_(site: Site) -> Tensor:
    return tanh_slope(site.x, site.y)


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
    opposite, size = site.x.map(lambda t: -t), site.x.map(absolute)
    c = maximum(maximum(site.x.x, site.x.r), 0) * relu_slope(opposite) * 2
    return (1 + c) / (1 + size.x) / (1 + size.r)


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
    return smooth(site, _gelu_derivative)


def _gelu_derivative(x: Tensor) -> Tensor:
    """With u = x / sqrt 2: (1 + erf(u)) / 2 + u exp(-u^2) / sqrt(pi)."""
    u = x * root(0.5)
    return (erf(u) + u * exp(-(u * u)) * (2 / root(pi)) + 1) * 0.5


def _tanh_gelu_derivative(x: Tensor) -> Tensor:
    x = clip(x, -10, 10)  # 0 and 1 from there on
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
    return log_slope(site.x, site.y)


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
    """Of x^p for constant p, and of b^x for constant b."""
    base, p = site.input(0), site.input(1)
    if p.active:
        return exponent_slope(base.x, cast(p.d, base.dtype), site.y.x, site.y.r)
    if p.constant is not None and p.constant.size == 1 and p.constant.item() == 2:
        return base.x + base.r
    if p.constant is not None and p.constant.size == 1 and p.constant.item() == 3:
        return base.x * (base.x + base.r) + base.r * base.r
    return power_slope(base, site.y, cast(p.x, base.dtype))
