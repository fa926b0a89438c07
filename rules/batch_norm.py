"""Batch normalisation (METHOD sections 2, 5 and 6), with any of its inputs depending on the attributed ones.

y = scale n + B with n = a / s, a = x - mean and s = sqrt(var + eps). Both products get the midpoint rule, the quotient
as the normalisations have it (rules/normalize.py), so that dn = (da - n' ds) / s' with ' for midpoints. At inference
all of it is element by element, and with constant statistics linear; in training mode mean and var are those of x over
all samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce

from onnxlift.functions import cast, reduce_sum, reshape, sqrt, widen
from onnxlift.registry import rule
from onnxlift.rules.normalize import Rows, channel_inputs, per_channel
from onnxlift.signed import Parts, scaled
from onnxlift.site import Site
from onnxlift.tensor import FLOAT32, Tensor


def _wide(site: Site, t: Tensor) -> Tensor:
    """In x's precision, float32 at least."""
    return cast(t, site.x.dtype if site.x.dtype.itemsize >= 4 else FLOAT32)


def _over_channels(site: Site, t: Tensor) -> Tensor:
    """One number for each channel, shaped to broadcast over x."""
    return reshape(_wide(site, t), [-1] + [1] * (site.x.rank - 2))


def _weights(site: Site) -> list[Tensor | None]:
    """dy / d(input) for x, scale, B, mean and var, between r and x; None for one that carries no importance."""
    active = [value is not None and value.active for value in site.inputs]
    x = site.x.map(partial(_wide, site))
    scale, _, mean, variance = (site.input(index).map(partial(_over_channels, site)) for index in range(1, 5))
    epsilon = site.attribute("epsilon", 1e-5)
    s = variance.map(lambda t: sqrt(t + epsilon))
    slope = scale.mid / s.mid
    w: list[Tensor | None] = [slope, None, None, -slope, None]
    if active[1] or active[4]:
        n, n0 = (x.x - mean.x) / s.x, (x.r - mean.r) / s.r
        n_mid = n if n is n0 else (n + n0) * 0.5
        w[1], w[4] = n_mid, -(n_mid * slope) / (s.x + s.r)
    w[2] = site.emitter.constant(1, slope.dtype)
    return [weight if here else None for weight, here in zip(w, active, strict=True)]


def _parts(site: Site) -> list[Parts]:
    """What the parts of every input are scaled to."""
    if site.attribute("training_mode", 0):
        site.refuse("in training mode it does not tell positive from negative causes")
    terms = []
    for index, weight in enumerate(_weights(site)):
        if weight is not None:
            fit = _over_channels if index else _wide
            terms.append(scaled(Parts(*(fit(site, part) for part in site.input(index).parts)), weight))
    plus, minus = (reduce(Tensor.__add__, side) for side in zip(*terms, strict=True))
    return [Parts(*(site.y.spread(cast(side, site.y.dtype)) for side in (plus, minus)))]


@rule("linear", "BatchNormalization", parts=_parts)
def batch_normalization(site: Site) -> Sequence[Tensor | None]:
    """m_x = m_y scale / sqrt(var + eps) per channel; with more than x active, and in training, by midpoints."""
    if site.attribute("training_mode", 0):
        return _in_training(site)
    weights = _weights(site)
    result: list[Tensor | None] = [None] * 5
    if weights[0] is not None:
        result[0] = site.m * site.weight(cast(weights[0], site.m.dtype))
    for index, weight in enumerate(weights[1:], 1):
        if weight is not None:
            total = reduce_sum(_wide(site, site.m) * site.weight(weight), [0, *range(2, site.x.rank)], keepdims=False)
            result[index] = cast(total, site.input(index).dtype)
    return result


def _in_training(site: Site) -> list[Tensor | None]:
    """As the normalisations, over all samples and places of a channel. The running statistics carry nothing."""
    if any(m is not None for m in site.multipliers[1:]):
        site.refuse("importance arrives at its running statistics, which ONNX Runtime writes over the old ones")
    rows = Rows.of(site.x, [0, *range(2, site.x.rank)], site.attribute("epsilon", 1e-5))
    m_x = cast(rows.back(widen(per_channel(site))), site.x.dtype)
    return [m_x, *channel_inputs(site, rows.mid)]
