"""Models that were fitted otherwise (ai.onnx.ml): linear ones, kernels, and what prepares their data.

What ONNX Runtime computes decides, where the specification leaves something open: a single score is not transformed by
SOFTMAX, and by LOGISTIC only where a second class is added to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import pi
from math import sqrt as root

import numpy as np

from onnxlift.functions import (
    absolute,
    cast,
    exp,
    reduce_max,
    reduce_sum,
    reshape,
    sign,
    slice_axis,
    tanh,
    where,
)
from onnxlift.registry import AI_ONNX_ML, rule
from onnxlift.rules.maximum import reduction
from onnxlift.rules.product import gemm_product
from onnxlift.rules.reductions import length_shares
from onnxlift.rules.slopes import exp_slope, power_slope, quotient, sigmoid_slope, tanh_slope
from onnxlift.rules.softmax import softmax
from onnxlift.site import Pairing, Site, Value
from onnxlift.tensor import FLOAT32, Tensor, limits, unary

ZERO, FAR = 1e-7, 100.0
"""SOFTMAX_ZERO takes a score up to ZERO for none; exp(-FAR) is nothing beside 1."""

# --- what prepares data ----------------------------------------------------------------------------------------------


@rule("rescale", "Binarizer", domain=AI_ONNX_ML, elementwise=True)
def binarized(site: Site) -> list[Tensor]:
    """m_x = dy/dx m_y, and 0 where x = r."""
    return [site.m * where(site.x.d.equals(0), 0.0, site.y.d / site.x.d)]


@rule("rescale", "Imputer", domain=AI_ONNX_ML, elementwise=True)
def imputed(site: Site) -> list[Tensor]:
    """m_x = dy/dx m_y; where x = r, m_y or 0 if the value is replaced. NaN has no difference and gets 0."""
    x, y = site.x, site.y
    slope = quotient(y.d, x.d, x.x.equals(x.r), cast(y.x.equals(x.x), x.dtype))
    return [site.m * where(absolute(x.d) <= limits(x.d).largest, slope, 0.0)]


@rule("midpoint", "Normalizer", domain=AI_ONNX_ML)
def normalized(site: Site) -> list[Tensor]:
    """Midpoints of x = y n, solved for dy, as LpNormalization; for MAX, dn passes by the rule of the maximum."""
    x, axes = site.x.map(partial(cast, dtype=FLOAT32)), [site.x.rank - 1]
    match site.attribute("norm", "MAX"):
        case "L1" | "L2" as norm:
            m = length_shares(x, site.y, site.m, int(norm[1]), axes)
        case _:
            m = _by_largest(site, x, axes)
    return [cast(m, site.x.dtype)]


def _by_largest(site: Site, x: Value, axes: Sequence[int]) -> Tensor:
    """y = x/n with n = max x, 1 where that is 0. A row of zeros goes along with whatever the other's n is.

    Where n and n0 differ in sign, the midpoint rule of x (1/n): n + n0 may be 0 there.
    """
    top = x.map(lambda t: reduce_max(t, axes))
    n = x.map(lambda t: _divisor(t, axes))
    n_x, n_r = where(n.x.equals(0), n.r, n.x), where(n.r.equals(0), n.x, n.r)
    some = where(n_x.equals(0), 1.0, n_x), where(n_r.equals(0), 1.0, n_r)
    same = n_x * n_r >= 0
    total = where(same, some[0] + some[1], 1.0)
    direct = where(n_x.equals(0), 0.0, where(same, 2 / total, (1 / some[0] + 1 / some[1]) * 0.5))
    along = where(same, (site.y.x + site.y.r) / total, (x.x + x.r) / (some[0] * some[1]) * 0.5)
    jump = where(top.d.equals(0), 1.0, (n_x - n_r) / top.d)
    g = reduce_sum(site.m * along, axes) * -jump
    given = site.emitter.ints(axes)
    maximum_of_row = Site(
        site.emitter, "ReduceMax", site.name, {}, [x, Value("axes", given, given, False, Pairing())], [top], [g]
    )
    (from_top,) = reduction(maximum_of_row, "cross-max")
    assert from_top is not None
    return site.m * direct + from_top


def _divisor(t: Tensor, axes: Sequence[int]) -> Tensor:
    top = reduce_max(t, axes)
    return where(top.equals(0), sign(reduce_max(absolute(t), axes)), top)


# --- linear models ---------------------------------------------------------------------------------------------------


@rule("linear", "LinearRegressor", domain=AI_ONNX_ML)
def regression(site: Site) -> list[Tensor]:
    """m_x = C^T m_z; m_z = m_y behind the transform of the scores z: softmax in log space, Rescale of the others."""
    targets = site.attribute("targets", 1)
    z = _scores(site, targets)
    transform = site.attribute("post_transform", "NONE")
    if targets == 1 and transform != "PROBIT":
        transform = "NONE"
    return [_to_features(site, targets, _behind(site, transform, z, site.y, site.m))]


@rule("linear", "LinearClassifier", domain=AI_ONNX_ML)
def classification(site: Site) -> list[Tensor]:
    """As LinearRegressor, for the scores of the classes; of one score s they are 1 - s and s."""
    y, m = site.outputs[1], site.multipliers[1]
    assert y is not None
    assert m is not None
    classes = len(site.attribute("intercepts", []))
    transform = site.attribute("post_transform", "NONE")
    if classes > 1:
        return [_to_features(site, classes, _behind(site, transform, _scores(site, classes), y, m))]
    if transform == "PROBIT":
        site.refuse("ONNX Runtime mixes up samples where it adds a second class to PROBIT scores")
    m = slice_axis(m, 1, 1, 2) - slice_axis(m, 1, 0, 1)
    y = y.map(lambda t: slice_axis(t, 1, 1, 2))
    transform = transform if transform == "LOGISTIC" else "NONE"
    return [_to_features(site, 1, _behind(site, transform, _scores(site, 1), y, m))]


def _coefficients(site: Site, rows: int) -> Tensor:
    values = np.asarray(site.attribute("coefficients"), np.float32)
    return site.emitter.constant(values.reshape(rows, -1), FLOAT32)


def _scores(site: Site, rows: int) -> Value:
    """z = C x + b, [N, rows]."""
    c = _coefficients(site, rows)
    b = site.emitter.constant(np.asarray(site.attribute("intercepts", [0.0] * rows), np.float32), FLOAT32)
    return _samples(site).map(lambda t: gemm_product(t, c, 0, 1) + b)


def _samples(site: Site) -> Value:
    """x as [N, features] in float32; one sample may come without N."""
    x = site.x.map(partial(cast, dtype=FLOAT32))
    return x if x.rank == 2 else x.map(lambda t: reshape(t, [1, -1]))


def _to_features(site: Site, rows: int, m: Tensor) -> Tensor:
    return cast(site.x.like(gemm_product(m, _coefficients(site, rows), 0, 0)), site.x.dtype)


def _behind(site: Site, transform: str, z: Value, y: Value, m: Tensor) -> Tensor:
    """From the multiplier of the transformed scores y to that of the scores z."""
    match transform:
        case "NONE":
            return m
        case "LOGISTIC":
            return m * sigmoid_slope(z, y)
        case "SOFTMAX":
            return _softmax(site, z, y, m)
        case "SOFTMAX_ZERO":
            return _softmax_of_some(site, z, m)
        case "PROBIT":
            limit = exp(y.mid * y.mid * 0.5) * root(2 * pi)
            return m * quotient(y.d, z.d, z.d.equals(0), limit)
    site.refuse(f"its post_transform {transform!r} is unknown")


def _softmax(site: Site, z: Value, y: Value, m: Tensor) -> Tensor:
    return softmax(Site(site.emitter, "Softmax", site.name, {"axis": 1}, [z], [y], [m]))[0]


def _softmax_of_some(site: Site, z: Value, m: Tensor) -> Tensor:
    """SOFTMAX_ZERO leaves out scores that are 0. Here they are too far below the others to count, and their way there
    and back is divided by the change of the score."""

    def counted(t: Tensor) -> Tensor:
        return where(absolute(t) > ZERO, t, reduce_max(t, [1]) - FAR)

    w = z.map(counted)
    m_w = _softmax(site, w, w.map(lambda t: unary("Softmax", t, axis=1)), m)
    return where(w.d.equals(z.d), m_w, m_w * w.d / where(z.d.equals(0), 1.0, z.d))


# --- kernels ---------------------------------------------------------------------------------------------------------


@rule("rescale", "SVMRegressor", domain=AI_ONNX_ML)
def support_vectors(site: Site) -> list[Tensor]:
    """m_x = sum of a_k dK_k/dx m_y for y = sum of a_k K(x, v_k) + rho: Rescale of the kernel, in closed form."""
    x, count = _samples(site), site.attribute("n_supports", 0)
    a = np.asarray(site.attribute("coefficients"), np.float32)
    vectors = np.asarray(site.attribute("support_vectors"), np.float32).reshape(count, -1) if count else a[None]
    v = site.emitter.constant(vectors, FLOAT32)
    a_k = site.emitter.constant(a[None] if count else [[1.0]], FLOAT32)
    kind = site.attribute("kernel_type", "LINEAR") if count else "LINEAR"
    gamma, shift, degree = (float(number) for number in site.attribute("kernel_params", [0.0] * 3))
    k, slope = _kernel(kind, x, v, gamma, shift, degree)
    m = site.m
    if site.attribute("one_class", 0):
        d = reduce_sum(k.d * a_k, [1])
        m = m * where(d.equals(0), 0.0, site.y.d / d)
    w = m * a_k * slope
    m_x = gemm_product(w, v, 0, 0)
    if kind == "RBF":
        m_x = (x.x + x.r) * reduce_sum(w, [1]) - m_x * 2
    return [cast(site.x.like(m_x), site.x.dtype)]


def _kernel(kind: str, x: Value, v: Tensor, gamma: float, shift: float, degree: float) -> tuple[Value, Tensor | float]:
    """The kernel of every sample with every vector, [N, V], and its slope in x v, or in |x - v|^2 for RBF."""
    u = x.map(lambda t: gemm_product(t, v, 0, 1))
    if kind == "LINEAR":
        return u, 1.0
    if kind == "RBF":
        lengths = reshape(reduce_sum(v * v, [1]), [1, -1])
        z = x.map(lambda t: (reduce_sum(t * t, [1]) + lengths - gemm_product(t, v, 0, 1, 2.0)) * -gamma)
        k = z.map(exp)
        return k, exp_slope(k.x, k.r, z.d) * -gamma
    z = u.map(lambda t: t * gamma + shift)
    if kind == "SIGMOID":
        k = z.map(tanh)
        return k, tanh_slope(z, k) * gamma
    k = z.map(lambda t: t**degree)
    return k, power_slope(z, k, z.x.emitter.constant(degree, FLOAT32)) * gamma
