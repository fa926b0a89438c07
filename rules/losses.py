"""The losses: the negative logarithm of what the targets got, weighted, averaged or not. Products by midpoints.

With w the targets' weights, the loss of a place is -w x and the mean over places A / B, A = -sum(w x), B = sum(w).
Places whose target is `ignore_index` take no part. Half precision is computed in float32.
"""

from __future__ import annotations

from onnxlift.functions import arange, cast, logical_and, logical_not, reduce_sum, reshape, unsqueeze, where, widen
from onnxlift.registry import rule
from onnxlift.rules.product import quotient_weights
from onnxlift.rules.softmax import log_softmax, log_sum_share, logits
from onnxlift.site import Pairing, Site, Value
from onnxlift.tensor import Tensor


@rule("midpoint", "NegativeLogLikelihoodLoss")
def negative_log_likelihood(site: Site) -> list[Tensor | None]:
    """m_x = -w' m_y at the targets, m_w = -sum(x') m_y; a mean A / B passes on as a quotient does (METHOD 5)."""
    m_x, m_w = at_targets(site, site.x.map(widen))
    return [cast(m_x, site.x.dtype), None, m_w]


@rule("log-space", "SoftmaxCrossEntropyLoss")
def softmax_cross_entropy(site: Site) -> list[Tensor | None]:
    """NegativeLogLikelihoodLoss behind LogSoftmax: m_j = g_j - R_j sum(g_i) (METHOD 6)."""
    x = logits(site.x)
    logs = x.map(lambda t: log_softmax(t, 1))
    g, m_w = None, None
    if site.multipliers[0] is not None:
        g, m_w = at_targets(site, logs)
    if len(site.multipliers) > 1 and site.multipliers[1] is not None:
        m_logs = widen(site.multipliers[1])
        g = m_logs if g is None else g + m_logs
    if g is None:
        return []
    return [cast(g - log_sum_share(x, logs, 1, reduce_sum(g, [1])), site.x.dtype), None, m_w]


def at_targets(site: Site, logs: Value) -> tuple[Tensor, Tensor | None]:
    """The multipliers of the logarithms, [N, C, ...], and of the weights, [C], from that of the loss."""
    weights, rank, m = site.optional(2), logs.rank, widen(site.m)
    hot = targets(site, logs)
    reduction = site.attribute("reduction", "mean")
    if weights is None:
        if reduction == "mean":
            m = m / reduce_sum(cast(hot, m.dtype), range(rank), keepdims=False)
        g = unsqueeze(m, [1]) if reduction == "none" else m
        return where(hot, -g, 0.0), None
    w = weights.map(lambda t: reshape(widen(t), [-1] + [1] * (rank - 2)))
    from_total: Tensor | float = 0.0
    if reduction == "mean":
        m, from_total = _of_mean(site, w, hot, m)
    g = unsqueeze(m, [1]) if reduction == "none" else m
    m_w = None
    if weights.active:
        each = where(hot, from_total - g * logs.mid, 0.0)
        m_w = cast(reduce_sum(each, [0, *range(2, rank)], keepdims=False), weights.dtype)
    return where(hot, -(g * w.mid), 0.0), m_w


def _of_mean(site: Site, w: Value, hot: Tensor, m: Tensor) -> tuple[Tensor, Tensor | float]:
    """The multipliers of A and of B, from that of A / B."""
    total, total0 = (reduce_sum(where(hot, t, 0.0), range(hot.rank), keepdims=False) for t in (w.x, w.r))
    y = site.y.map(widen)
    a, b = (
        Value(site.op, t, t0, active, Pairing())
        for t, t0, active in ((y.x * total, y.r * total0, True), (total, total0, w.active))
    )
    m_a, m_b = quotient_weights(a, b, y)
    assert m_a is not None
    return m * m_a, 0.0 if m_b is None else m * m_b


def targets(site: Site, logs: Value) -> Tensor:
    """Whether a class is the target of its place and is not ignored: [N, C, ...]."""
    target = unsqueeze(site.input(1).x, [1])
    classes = reshape(cast(arange(logs.dim(1)), target.dtype), [-1] + [1] * (logs.rank - 2))
    hot = target.equals(classes)
    ignored = site.attribute("ignore_index", None)
    return hot if ignored is None else logical_and(hot, logical_not(target.equals(ignored)))
