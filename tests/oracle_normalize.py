"""The oracle's normalisations and losses (see oracle.py): by unit vectors and loops, in longdouble.

A normalisation divides by a deviation, y = a / s. The product y s = a is taken by midpoints, s' dy + y' ds = da, and
solved for dy; deviations and powers change by secants. Importing the module fills the tables of oracle.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import oracle
from oracle import LD, Array, Multipliers, Node, Site, Unary


def rows_back(x: Array, r: Array, eps: float, centred: bool, m: Sequence[Array]) -> Array:
    """The multipliers of rows [rows, D] from those of (x - mean) / s, of the mean and of 1/s, by unit vectors."""
    a, a0 = centre(x, centred), centre(r, centred)
    w, w0 = ((v * v).mean(axis=1, keepdims=True) + LD(eps) for v in (a, a0))
    s, s0 = np.sqrt(w), np.sqrt(w0)
    root = oracle.secant(oracle.PLAIN_UNARY["Sqrt"], w, w0)
    inverse = oracle.secant(oracle.inverse_root(), w, w0)
    result = np.zeros(a.shape, dtype=LD)
    for j in range(a.shape[1]):
        unit = np.zeros(a.shape, dtype=LD)
        unit[:, j] = 1
        da = centre(unit, centred)
        dw = ((a + a0) * da).mean(axis=1, keepdims=True)
        dn = (da - (a / s + a0 / s0) / 2 * root * dw) / ((s + s0) / 2)
        changes = (dn, unit.mean(axis=1, keepdims=True), inverse * dw)
        result[:, j] = sum((g * change).sum(axis=1) for g, change in zip(m, changes, strict=False))
    return result


def centre(x: Array, centred: bool) -> Array:
    x = x.astype(LD)
    return np.asarray(x - x.mean(axis=1, keepdims=True) if centred else x)


def rule_normalise(s: Site) -> Multipliers:
    """Layer/Instance/Group/RMS normalisation, y = gamma n + beta: gamma and n by midpoints."""
    x, r = s.xr()
    at_x, at_r = oracle.normal_of(s.node, s.x), oracle.normal_of(s.node, s.r)
    rows, m_y = at_x.rows, s.m[0].astype(LD)
    gamma = np.broadcast_to((at_x.gamma + at_r.gamma) / 2, x.shape)
    statistics = [(m if m.size else np.zeros(rows)).reshape(rows, 1) for m in s.m[1:]]
    m_x = rows_back(
        x.reshape(rows, -1), r.reshape(rows, -1), at_x.eps, at_x.centred, [(m_y * gamma).reshape(rows, -1), *statistics]
    )
    result: Multipliers = [np.asarray(m_x.reshape(x.shape), dtype=np.float64), *[None] * (len(s.x) - 1)]
    (a, _, v), (a0, _, v0) = oracle.normal_stages(at_x, x), oracle.normal_stages(at_r, r)
    for k, per_element in ((1, m_y * ((a * v + a0 * v0) / 2).reshape(x.shape)), (2, m_y)):
        if len(s.x) > k and s.active[k]:
            if s.node.op == "GroupNormalization" and s.node.opset < 21:
                raise NotImplementedError(f"importance through the scale of {s.node}")
            result[k] = oracle.unbroadcast(per_element, at_x.gamma_shape).reshape(s.xr(k)[0].shape)
    return result


# --- MeanVarianceNormalization: as ONNX Runtime computes it, without an epsilon ---------------------------------------


def as_rows(node: Node, x: Array) -> Array:
    """[rows, D], and the axes that are normalised together last."""
    axes = [axis % x.ndim for axis in node.attr("axes")]
    order = [*(axis for axis in range(x.ndim) if axis not in axes), *axes]
    return np.transpose(x, order).reshape(-1, int(np.prod([x.shape[axis] for axis in axes])))


def from_rows(node: Node, rows: Array, shape: tuple[int, ...]) -> Array:
    places = as_rows(node, np.arange(rows.size).reshape(shape))
    result = np.zeros(rows.size)
    result[places.reshape(-1)] = rows.reshape(-1)
    return result.reshape(shape)


def mean_variance(node: Node, values: Sequence[Array | None]) -> list[Array]:
    x = cast(Array, values[0])
    a = centre(as_rows(node, x), True)
    return [from_rows(node, a / np.sqrt((a * a).mean(axis=1, keepdims=True)), x.shape)]


def rule_mean_variance(s: Site) -> Multipliers:
    x, r = s.xr()
    m = rows_back(as_rows(s.node, x), as_rows(s.node, r), 0.0, True, [as_rows(s.node, s.m[0])])
    return [from_rows(s.node, m, x.shape)]


# --- LRN -------------------------------------------------------------------------------------------------------------


def window_sum(node: Node, squares: Array) -> Array:
    """Over the channels around each of [C]."""
    size = int(node.attrs["size"])
    first, last = (size - 1) // 2, size // 2
    return np.array([squares[max(0, c - first) : c + last + 1].sum() for c in range(len(squares))], dtype=LD)


def lrn_power(node: Node, x: Array) -> tuple[Array, Array, Unary]:
    """(q, q^beta, the power) of the channels [C] of one place."""
    power = Unary(oracle.power(LD(node.attr("beta"))), length=np.abs)  # type: ignore[arg-type]
    q = LD(node.attr("bias")) + LD(node.attr("alpha")) / int(node.attrs["size"]) * window_sum(node, x * x)
    return q, np.asarray(power.f(q)), power


def places_of(shape: tuple[int, ...]) -> Iterator[tuple[Any, ...]]:
    """Indices of all channels of a place."""
    for index in np.ndindex(shape[0], *shape[2:]):
        yield (index[0], slice(None), *index[1:])


def lrn(node: Node, values: Sequence[Array | None]) -> list[Array]:
    x = cast(Array, values[0]).astype(LD)
    y = np.zeros(x.shape)
    for place in places_of(x.shape):
        y[place] = x[place] / lrn_power(node, x[place])[1]
    return [y]


def rule_lrn(s: Site) -> Multipliers:
    (x, r), result = (v.astype(LD) for v in s.xr()), np.zeros(s.y[0].shape)
    for place in places_of(x.shape):
        (q, p, power), (q0, p0, _) = lrn_power(s.node, x[place]), lrn_power(s.node, r[place])
        slope, y, y0 = oracle.secant(power, q, q0), x[place] / p, r[place] / p0
        for j in range(x.shape[1]):
            unit = np.zeros(x.shape[1], dtype=LD)
            unit[j] = 1
            dq = LD(s.node.attr("alpha")) / int(s.node.attrs["size"]) * window_sum(s.node, (x[place] + r[place]) * unit)
            dy = (unit - (y + y0) / 2 * slope * dq) / ((p + p0) / 2)
            result[(place[0], j, *place[2:])] = (s.m[0][place] * dy).sum()
    return [result]


# --- losses ----------------------------------------------------------------------------------------------------------


def taken(node: Node, logs: Array, target: Array) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The place of the loss and the index into `logs` of every target that is not ignored."""
    for place in np.ndindex(target.shape):
        if int(target[place]) != node.attrs.get("ignore_index"):
            yield place, (place[0], int(target[place]), *place[1:])


def total_loss(node: Node, logs: Array, target: Array, w: Array) -> tuple[Array, Any, Any]:
    """The loss of every place, their sum, and the sum of weights that a mean divides it by."""
    loss, total, weight = np.zeros(target.shape, dtype=LD), LD(0), LD(0)
    for place, index in taken(node, logs, target):
        loss[place] = -w[index[1]] * logs[index]
        total += loss[place]
        weight += w[index[1]]
    return loss, total, weight


def weights_of(values: Sequence[Array | None], logs: Array) -> Array:
    given = values[2] if len(values) > 2 else None
    return np.ones(logs.shape[1], dtype=LD) if given is None else given.astype(LD)


def reduced(node: Node, values: Sequence[Array | None], logs: Array) -> Array:
    loss, total, weight = total_loss(node, logs, cast(Array, values[1]), weights_of(values, logs))
    result = {"none": loss, "sum": total, "mean": total / weight}[node.attr("reduction")]
    return np.asarray(result, dtype=np.float64)


def log_softmax(x: Array) -> Array:
    x = x.astype(LD)
    return np.asarray(x - oracle.log_sum_exp(x, (1,)))


def nll(node: Node, values: Sequence[Array | None]) -> list[Array]:
    return [reduced(node, values, cast(Array, values[0]).astype(LD))]


def cross_entropy(node: Node, values: Sequence[Array | None]) -> list[Array]:
    logs = log_softmax(cast(Array, values[0]))
    return [reduced(node, values, logs), logs.astype(np.float64)][: len(node.outputs)]


def loss_back(s: Site, logs: Array, logs0: Array) -> tuple[Array, Array]:
    """The multipliers of the logarithms and of the weights: products by midpoints, the mean as a quotient."""
    target, m = cast(Array, s.x[1]), s.m[0]
    w, w0 = weights_of(s.x, logs), weights_of(s.r, logs)
    of_total, of_weight = LD(1), LD(0)
    if s.node.attr("reduction") == "mean":
        (_, a, b), (_, a0, b0) = total_loss(s.node, logs, target, w), total_loss(s.node, logs0, target, w0)
        of_total, of_weight = oracle.quotient_weights(a, a0, b, b0)
    m_logs, m_w = np.zeros(logs.shape), np.zeros(w.shape)
    for place, index in taken(s.node, logs, target):
        g = m[place] if m.ndim else m
        c = index[1]
        m_logs[index] -= g * of_total * (w[c] + w0[c]) / 2
        m_w[c] += g * (of_weight - of_total * (logs[index] + logs0[index]) / 2)
    return m_logs, m_w


def rule_nll(s: Site) -> Multipliers:
    m_x, m_w = loss_back(s, *(v.astype(LD) for v in s.xr()))
    return [m_x, None, m_w][: len(s.x)]


def rule_cross_entropy(s: Site) -> Multipliers:
    x, r = (v.astype(LD) for v in s.xr())
    g, m_w = loss_back(s, log_softmax(x), log_softmax(r))
    for m in s.m[1:]:
        g = g + (m if m.size else 0)
    m_x = g - oracle.softmax_weights(x, r, (1,))[0] * g.sum(axis=1, keepdims=True)
    return [np.asarray(m_x, dtype=np.float64), None, m_w][: len(s.x)]


oracle.FORWARD.update(
    {
        "LRN": lrn,
        "MeanVarianceNormalization": mean_variance,
        "NegativeLogLikelihoodLoss": nll,
        "SoftmaxCrossEntropyLoss": cross_entropy,
    }
)
oracle.RULES.update(
    {
        **dict.fromkeys(oracle.NORMALISATIONS, rule_normalise),
        "LRN": rule_lrn,
        "MeanVarianceNormalization": rule_mean_variance,
        "NegativeLogLikelihoodLoss": rule_nll,
        "SoftmaxCrossEntropyLoss": rule_cross_entropy,
    }
)
