"""Softmax and its kin in log space (METHOD section 6). Complete, and finite for any logits.

Half precision is computed in float32, as ONNX Runtime does inside these operators.

With S = log sum exp x along the axis and the logarithmic mean Λ(a, b) = (a - b) / (ln a - ln b), the changes are
    dS = sum_j R_j dx_j,   R_j = Λ(e^x_j, e^r_j) / Λ(e^S, e^S0),
    d log y_i = dx_i - dS,   dy_i = Λ(y_i, y0_i) d log y_i.
Λ(a, b) = (a + b) tanh(D/2)/D with D = ln a - ln b has no cancellation, and with w = sigmoid(dS)
    R_j = (w y_j + (1 - w) y0_j) (tanh(dx_j/2)/dx_j) / (tanh(dS/2)/dS).
Of y, x and S only differences appear, so that no logit is too large. y is taken from its logarithm and not from the
model, where a row that is masked altogether may be NaN, to be selected away later.
"""

from __future__ import annotations

from onnxlift.functions import (
    absolute,
    cast,
    clip,
    exp,
    maximum,
    reduce_max,
    reduce_sum,
    sigmoid,
    tanh,
    widen,
)
from onnxlift.registry import rule
from onnxlift.rules.axes import Axes, rows_of
from onnxlift.rules.slopes import tanh_over
from onnxlift.site import Site, Value
from onnxlift.tensor import Tensor, limits, unary


@rule("log-space", "Softmax")
def softmax(site: Site) -> list[Tensor]:
    """m_j = g_j L_j - R_j sum(g_i L_i), L_i = Λ(y_i, y0_i), for upstream multipliers g (METHOD 6)."""
    axis = site.attribute("axis", -1) % site.x.rank
    x = logits(site.x)
    logs = x.map(lambda t: log_softmax(t, axis))
    y = logs.map(exp)
    g = widen(site.m) * ((y.x + y.r) * tanh_over(logs.d))
    return [cast(g - log_sum_share(x, logs, axis, reduce_sum(g, [axis])), site.x.dtype)]


@rule("log-space", "LogSoftmax")
def logarithmic_softmax(site: Site) -> list[Tensor]:
    """m_j = g_j - R_j sum(g_i) (METHOD 6)."""
    axis = site.attribute("axis", -1) % site.x.rank
    x, g = logits(site.x), widen(site.m)
    logs = x.map(lambda t: log_softmax(t, axis))
    return [cast(g - log_sum_share(x, logs, axis, reduce_sum(g, [axis])), site.x.dtype)]


@rule("log-space", "ReduceLogSumExp")
def log_sum_exp(site: Site) -> list[Tensor]:
    """m_j = R_j g (METHOD 6)."""
    rows = rows_of(Axes(site))
    if rows is None:
        return [site.m]
    x, g, axis = rows.value(logits(site.x)), widen(rows.output(site.m)), rows.axis
    logs = x.map(lambda t: log_softmax(t, axis))
    return [cast(rows.back(log_sum_share(x, logs, axis, g)), site.x.dtype)]


def logits(x: Value) -> Value:
    """In float32 at least; minus infinity becomes the lowest number, so that masked logits have differences."""

    def finite(t: Tensor) -> Tensor:
        t = widen(t)
        return maximum(t, -limits(t).largest)

    return x.map(finite)


def log_softmax(x: Tensor, axis: int) -> Tensor:
    """x - S."""
    return unary("LogSoftmax", x, axis=axis)


def log_sum_share(x: Value, logs: Value, axis: int, g: Tensor) -> Tensor:
    """R_j g. The largest logit and its logarithm give dS without cancellation: S = max x - max log y."""
    y = logs.map(exp)
    tops, top_logs = (value.map(lambda t: reduce_max(t, [axis])) for value in (x, logs))
    d = tops.d - top_logs.d
    size = maximum(absolute(d), limits(d).tiny)
    g = clip(g * (size / tanh(size * 0.5)), -limits(d).largest, limits(d).largest)
    return (y.x * (g * sigmoid(d)) + y.r * (g * sigmoid(-d))) * tanh_over(x.d)
