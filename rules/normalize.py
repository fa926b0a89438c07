"""Softmax and its kin in log space, and the normalisations by midpoints (METHOD section 6). Complete, never singular.

Half precision is computed in float32, as ONNX Runtime does inside these operators.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnxlift.functions import (
    absolute,
    cast,
    clip,
    exp,
    log,
    maximum,
    reduce_max,
    reduce_mean,
    reduce_sum,
    regroup,
    reshape,
    sigmoid,
    sqrt,
    tanh,
    unsqueeze,
    widen,
)
from onnxlift.registry import rule
from onnxlift.rules.elementwise import tanh_over
from onnxlift.rules.linear import reduced_axes
from onnxlift.site import Site, Value, unbroadcast
from onnxlift.tensor import Tensor, limits, unary

# --- softmax ---------------------------------------------------------------------------------------------------------
#
# With S = log sum exp x along the axis and the logarithmic mean Λ(a, b) = (a - b) / (ln a - ln b), the changes are
#     dS = sum_j R_j dx_j,   R_j = Λ(e^x_j, e^r_j) / Λ(e^S, e^S0),
#     d log y_i = dx_i - dS,   dy_i = Λ(y_i, y0_i) d log y_i.
# Λ(a, b) = (a + b) tanh(D/2)/D with D = ln a - ln b has no cancellation, and with w = sigmoid(dS)
#     R_j = (w y_j + (1 - w) y0_j) (tanh(dx_j/2)/dx_j) / (tanh(dS/2)/dS).
# Of y, x and S only differences appear, so that no logit is too large.


@rule("log-space", "Softmax")
def softmax(site: Site) -> list[Tensor]:
    """m_j = g_j L_j - R_j sum(g_i L_i), L_i = Λ(y_i, y0_i), for upstream multipliers g (METHOD 6)."""
    axes = [site.attribute("axis", -1) % site.x.rank]
    x = logits(site.x)
    logs, y = x.map(lambda t: log_softmax(t, axes)), site.y.map(widen)
    g = widen(site.m) * ((y.x + y.r) * tanh_over(logs.d))
    return [cast(g - log_sum_share(x, logs, y, axes, reduce_sum(g, axes)), site.x.dtype)]


@rule("log-space", "LogSoftmax")
def logarithmic_softmax(site: Site) -> list[Tensor]:
    """m_j = g_j - R_j sum(g_i) (METHOD 6)."""
    axes = [site.attribute("axis", -1) % site.x.rank]
    x, g = logits(site.x), widen(site.m)
    logs = x.map(lambda t: log_softmax(t, axes))
    return [cast(g - log_sum_share(x, logs, logs.map(exp), axes, reduce_sum(g, axes)), site.x.dtype)]


@rule("log-space", "ReduceLogSumExp")
def log_sum_exp(site: Site) -> list[Tensor]:
    """m_j = R_j g (METHOD 6)."""
    site.only_active(0)
    axes = reduced_axes(site)
    if not axes:
        return [site.m]
    x, g = logits(site.x), widen(site.m if site.attribute("keepdims", 1) else unsqueeze(site.m, axes))
    logs = x.map(lambda t: log_softmax(t, axes))
    return [cast(log_sum_share(x, logs, logs.map(exp), axes, g), site.x.dtype)]


def logits(x: Value) -> Value:
    """In float32 at least; minus infinity becomes the lowest number, so that masked logits have differences."""

    def finite(t: Tensor) -> Tensor:
        t = widen(t)
        return maximum(t, -limits(t).largest)

    return x.map(finite)


def log_softmax(x: Tensor, axes: Sequence[int]) -> Tensor:
    """x - S."""
    if len(axes) == 1:
        return unary("LogSoftmax", x, axis=axes[0])
    z = x - reduce_max(x, axes)
    return z - log(reduce_sum(exp(z), axes))


def log_sum_share(x: Value, logs: Value, y: Value, axes: Sequence[int], g: Tensor) -> Tensor:
    """R_j g. The largest logit and its logarithm give dS without cancellation: S = max x - max log y."""
    tops, top_logs = (value.map(lambda t: reduce_max(t, axes)) for value in (x, logs))
    d = tops.d - top_logs.d
    size = maximum(absolute(d), limits(d).tiny)
    g = clip(g * (size / tanh(size * 0.5)), -limits(d).largest, limits(d).largest)
    return (y.x * (g * sigmoid(d)) + y.r * (g * sigmoid(-d))) * tanh_over(x.d)


# --- normalisations --------------------------------------------------------------------------------------------------


@rule("midpoint", "LayerNormalization")
def layer_normalization(site: Site) -> list[Tensor | None]:
    """`normalize` over the last axes; m_bias = m_y (METHOD 6)."""
    site.only_active(0, 2)
    rank, bias = site.x.rank, site.optional(2)
    g = site.m * site.input(1).x
    m = normalize(site, site.x, g, range(site.attribute("axis", -1) % rank, rank))
    return [m, None, unbroadcast(site.m, site.y.shape, bias) if bias is not None and bias.active else None]


@rule("midpoint", "InstanceNormalization")
def instance_normalization(site: Site) -> list[Tensor | None]:
    """`normalize` over the spatial axes of every channel (METHOD 6)."""
    site.only_active(0, 2)
    return [normalize(site, site.x, per_channel(site), range(2, site.x.rank)), None, _bias(site)]


@rule("midpoint", "GroupNormalization")
def group_normalization(site: Site) -> list[Tensor | None]:
    """`normalize` over every group of channels (METHOD 6)."""
    site.only_active(0, 2)
    groups = [site.attribute("num_groups"), -1]
    m = normalize(site, site.x.map(lambda t: regroup(t, 1, groups)), regroup(per_channel(site), 1, groups), [2])
    return [site.x.like(m), None, _bias(site)]


def per_channel(site: Site) -> Tensor:
    """γ g, with one γ for each channel."""
    return site.m * reshape(site.input(1).x, [-1] + [1] * (site.x.rank - 2))


def _bias(site: Site) -> Tensor | None:
    bias = site.optional(2)
    if bias is None or not bias.active:
        return None
    return reduce_sum(site.m, [0, *range(2, site.x.rank)], keepdims=False)


def normalize(site: Site, x: Value, g: Tensor, axes: Sequence[int]) -> Tensor:
    """m = (1/s + 1/s0)/2 (g - mean g - u mean(g u)), u = (a + a0) / (s + s0).

    With a = x - mean x and the deviation s = sqrt(mean a^2 + eps): METHOD's formula for v = 1/s, and the derivative of
    a/s where x = r. u stays below 2 sqrt(D), however small s is. `g` is the upstream multiplier times γ.
    """
    eps = site.attribute("epsilon", 1e-5)
    g = widen(g)
    a = x.map(lambda t: widen(t) - reduce_mean(widen(t), axes))
    s = a.map(lambda t: sqrt(reduce_mean(t * t, axes) + eps))
    u = (a.x + a.r) / (s.x + s.r)
    scale = (1 / s.x + 1 / s.r) * 0.5
    return cast((g - reduce_mean(g, axes) - u * reduce_mean(g * u, axes)) * scale, site.x.dtype)
