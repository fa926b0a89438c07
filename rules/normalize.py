"""The normalisations (METHOD section 6): complete, symmetric in x and r, and bounded by the larger deviation.

Rows of D elements are centred and divided by their deviation: n = a / s, a = x - mean x, s = sqrt(mean a^2 + eps).
Half precision is computed in float32, as ONNX Runtime does inside these operators.

METHOD gives the product a (1/s) the midpoint rule, whose terms (1/s + 1/s0)/2 da and (a + a0)/2 d(1/s) are huge and
cancel where one run has next to no variance: s0 = sqrt(eps) for a reference of zeros. Here it is the product n s that
gets it: da = s' dn + n' ds, with ' for midpoints, is solved for

    dn = (da - n' ds) / s',   ds = mean((a + a0) da) / (s + s0),

in which nothing is larger than what it is made of: |da| / s' is at most 2 |da| / max(s, s0), |n' ds| / s' at most
2 |n'|. Both have the same limit at x = r, and the decomposed operator gives the same by its own rules
(Div, Sqrt, Mul, ReduceMean).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from onnxlift.functions import absolute, cast, reduce_mean, reduce_sum, regroup, reshape, sqrt, unsqueeze, widen
from onnxlift.registry import rule
from onnxlift.rules.axes import evenly
from onnxlift.rules.slopes import quotient
from onnxlift.site import Site, Value, unbroadcast
from onnxlift.tensor import Tensor, limits


@dataclass(frozen=True)
class Rows:
    """What is normalised together, along `axes`: the centred values and the deviation of every row."""

    axes: Sequence[int]
    a: Value
    s: Value

    @classmethod
    def of(cls, x: Value, axes: Sequence[int], eps: float) -> Rows:
        a = x.map(lambda t: widen(t) - reduce_mean(widen(t), axes))
        square = a.map(lambda t: reduce_mean(t * t, axes))
        return cls(axes, a, square.map(lambda t: sqrt(t + eps if eps else t)))

    @property
    def mid(self) -> Tensor:
        """(n + n0) / 2."""
        return (self.a.x / self.s.x + self.a.r / self.s.r) * 0.5

    def back(self, g: Tensor) -> Tensor:
        """From the multiplier g of n to x: (g - mean g - (a + a0) mean(g n') / (s + s0)) / s'."""
        a, s, axes = self.a, self.s, self.axes
        both = s.x + s.r
        along = (reduce_mean(g * a.x, axes) / s.x + reduce_mean(g * a.r, axes) / s.r) * 0.5
        return (g - reduce_mean(g, axes) - (a.x + a.r) * (along / both)) * (2 / both)

    def back_from_mean(self, g: Tensor) -> Tensor:
        """From the multiplier g of mean x: g / D."""
        return self.a.spread(evenly(self.a, cast(g, self.a.dtype), self.axes))

    def back_from_inverse(self, g: Tensor) -> Tensor:
        """From the multiplier g of 1/s: -(a + a0) g / (D s s0 (s + s0))."""
        a, s = self.a, self.s
        return (a.x + a.r) * -evenly(a, cast(g, a.dtype) / s.x / s.r / (s.x + s.r), self.axes)


@rule("midpoint", "LayerNormalization")
def layer_normalization(site: Site) -> list[Tensor | None]:
    """m_x = (g - mean g - (a + a0) mean(g n') / (s + s0)) / s', g = scale' m_y; m_scale = n' m_y; m_bias = m_y."""
    rank, scale = site.x.rank, site.input(1)
    rows = Rows.of(site.x, range(site.attribute("axis", -1) % rank, rank), site.attribute("epsilon", 1e-5))
    m_y, m_mean, m_inverse = (*site.multipliers, None, None)[:3]
    terms, inputs = [], []
    if m_y is not None:
        g = widen(m_y)
        terms.append(rows.back(g * widen(scale.mid)))
        inputs = [
            unbroadcast(cast(factor, value.dtype), site.x.shape, value) if value is not None and value.active else None
            for value, factor in ((scale, g * rows.mid), (site.optional(2), m_y))
        ]
    if m_mean is not None:
        terms.append(rows.back_from_mean(m_mean))
    if m_inverse is not None:
        terms.append(rows.back_from_inverse(m_inverse))
    return [cast(reduce(Tensor.__add__, terms), site.x.dtype), *inputs]


@rule("midpoint", "InstanceNormalization")
def instance_normalization(site: Site) -> list[Tensor | None]:
    """As LayerNormalization, over the places of every channel."""
    rows = Rows.of(site.x, range(2, site.x.rank), site.attribute("epsilon", 1e-5))
    m = rows.back(widen(per_channel(site)))
    return [cast(m, site.x.dtype), *channel_inputs(site, rows.mid)]


@rule("midpoint", "GroupNormalization")
def group_normalization(site: Site) -> list[Tensor | None]:
    """As LayerNormalization, over every group of channels."""
    groups = [site.attribute("num_groups"), -1]
    rows = Rows.of(site.x.map(lambda t: regroup(t, 1, groups)), [2], site.attribute("epsilon", 1e-5))
    m = rows.back(regroup(widen(per_channel(site)), 1, groups))
    return [cast(site.x.like(m), site.x.dtype), *channel_inputs(site, site.x.like(rows.mid))]


def per_channel(site: Site) -> Tensor:
    """γ' g, with one γ for each channel."""
    return site.m * reshape(site.input(1).mid, [-1] + [1] * (site.x.rank - 2))


def channel_inputs(site: Site, mid: Tensor) -> list[Tensor | None]:
    """The multipliers of scale and bias, which there is one of for each channel; `mid`: n'."""
    axes = [0, *range(2, site.x.rank)]
    return [
        cast(reduce_sum(widen(site.m) * factor, axes, keepdims=False), value.dtype) if value.active else None
        for value, factor in ((site.input(1), mid), (site.input(2), 1.0))
    ]


@rule("midpoint", "MeanVarianceNormalization")
def mean_variance_normalization(site: Site) -> list[Tensor]:
    """As LayerNormalization over any axes, without scale, bias and eps."""
    axes = sorted(axis % site.x.rank for axis in site.attribute("axes", [0, 2, 3]))
    return [cast(Rows.of(site.x, axes, 0).back(widen(site.m)), site.x.dtype)]


@rule("midpoint", "LRN")
def local_response_normalization(site: Site) -> list[Tensor]:
    """m_x = g - (x + x0) sum(g y' dp/dq) alpha/size, g = m_y / p', for y = x/p, p = q^beta, q = bias + window sums."""
    size, alpha = site.attribute("size"), site.attribute("alpha", 1e-4)
    beta, bias = site.attribute("beta", 0.75), site.attribute("bias", 1.0)
    x, y = site.x.map(planes), site.y.map(planes)
    q = x.map(lambda t: channel_average(t * t, size) * alpha + bias)
    p = q.map(lambda t: t**beta)
    g = planes(site.m) / p.mid
    near = absolute(q.d) <= absolute(q.mid) * limits(q.d).balance
    slope = quotient(p.d, q.d, near, q.mid ** (beta - 1) * beta)
    m = g - (x.x + x.r) * (channel_average(g * y.mid * slope, size) * alpha)
    return [cast(site.x.like(m), site.x.dtype)]


def planes(x: Tensor) -> Tensor:
    """[N, C, ...] as [N, 1, C, places]: a window of channels is one of rows then."""
    return unsqueeze(regroup(widen(x), 2, [-1]), [1])


def channel_average(x: Tensor, size: int) -> Tensor:
    """The sum over the `size` channels around each, divided by `size`; for an odd size, as it has to be, symmetric."""
    half, window = size // 2, {"kernel_shape": [size, 1], "count_include_pad": 1}
    return x.emitter.op("AveragePool", x, pads=[half, 0, half, 0], shape=x.shape, **window)
