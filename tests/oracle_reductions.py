"""The oracle's products, norms, functions of several operands and ai.onnx.ml (see oracle.py): players, loops, secants.

Shapley values by their definition, over all coalitions; windows and rows by loops; what is applied to a sum by secants
in longdouble. Importing the module fills the tables of oracle.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import oracle
from oracle import LD, Array, Multipliers, Node, Site, Unary, secant, unbroadcast

# --- products ---------------------------------------------------------------------------------------------------------


def coalitions(xs: Sequence[Any], rs: Sequence[Any]) -> list[Any]:
    """What each factor of a product adds to a coalition of others, divided by its change: Shapley's weighted mean."""
    n = len(xs)
    shares = []
    for j in range(n):
        others = [i for i in range(n) if i != j]
        total = LD(0)
        for size in range(n):
            weight = LD(math.factorial(size) * math.factorial(n - size - 1)) / math.factorial(n)
            for joined in itertools.combinations(others, size):
                total += weight * math.prod((xs[i] if i in joined else rs[i] for i in others), start=LD(1))
        shares.append(total)
    return shares


def product_shares(xs: Sequence[Any], rs: Sequence[Any], m: Any, group: int = 8) -> list[Any]:
    """Up to eight factors share; of more, eight at a time, as their products do among themselves."""
    if len(xs) <= group:
        return [m * share for share in coalitions(xs, rs)]
    starts = range(0, len(xs), group)
    cuts = [(xs[k : k + group], rs[k : k + group]) for k in starts]
    wholes = product_shares([math.prod(a) for a, _ in cuts], [math.prod(b) for _, b in cuts], m)
    return [share for (a, b), whole in zip(cuts, wholes, strict=True) for share in product_shares(a, b, whole)]


def rule_reduce_prod(s: Site) -> Multipliers:
    s.only(0)
    x, r = (v.astype(LD) for v in s.xr())
    axes = oracle.axes_of(s.node, s.x, x.ndim)
    if not axes:
        return [s.m[0], *[None] * (len(s.x) - 1)]
    result = np.zeros(x.shape, dtype=LD)
    kept = [k for k in range(x.ndim) if k not in axes]
    m = s.m[0].reshape([x.shape[k] for k in kept])
    for at in np.ndindex(*m.shape):
        window: list[Any] = [slice(None)] * x.ndim
        for k, i in zip(kept, at, strict=True):
            window[k] = i
        place = tuple(window)
        shares = product_shares(list(x[place].ravel()), list(r[place].ravel()), LD(m[at]))
        result[place] = np.asarray(shares, dtype=LD).reshape(x[place].shape)
    return [result.astype(np.float64), *[None] * (len(s.x) - 1)]


# --- norms ------------------------------------------------------------------------------------------------------------


def magnitude_power(p: int) -> Unary:
    return Unary(lambda z: oracle.magnitude(z) ** p, oracle.broken_at(0))


def p_root(p: int) -> Unary:
    return Unary(oracle.power(LD(1) / p), length=oracle.size)  # type: ignore[arg-type]


def lp_windows(node: Node, shape: Sequence[int]) -> tuple[list[list[int]], list[int]]:
    """The flat spatial places of every window, and the output's spatial extents."""
    if node.op == "GlobalLpPool":
        return [list(range(int(np.prod(shape[2:]))))], [1] * (len(shape) - 2)
    w = oracle.window_of(node, shape[2:], node.attrs["kernel_shape"])
    return [seen for seen, _ in oracle.pool_windows(w, shape[2:])], w.out


def lp_pool(node: Node, values: Sequence[Array | None]) -> list[Array]:
    x, p = cast(Array, values[0]).astype(LD), int(node.attr("p", 2))
    windows, out = lp_windows(node, x.shape)
    flat = np.abs(x.reshape(*x.shape[:2], -1))
    columns = [(flat[:, :, seen] ** p).sum(axis=-1) ** (LD(1) / p) for seen in windows]
    return [np.stack(columns, axis=-1).reshape(*x.shape[:2], *out).astype(np.float64)]


def rule_lp_pool(s: Site) -> Multipliers:
    """Every place of a window: secant of |x|^p times secant of the root of the sum."""
    (x, r), p = (v.astype(LD).reshape(*v.shape[:2], -1) for v in s.xr()), int(s.node.attr("p", 2))
    windows, _ = lp_windows(s.node, s.xr()[0].shape)
    m = s.m[0].reshape(*x.shape[:2], -1)
    g = np.zeros(x.shape, dtype=LD)
    for k, seen in enumerate(windows):
        total, total0 = ((np.abs(v[:, :, seen]) ** p).sum(axis=-1) for v in (x, r))
        outer = np.ones_like(total) if p == 1 else secant(p_root(p), total, total0)
        for place in seen:
            inner = secant(magnitude_power(p), x[:, :, place], r[:, :, place])
            g[:, :, place] += m[:, :, k] * outer * inner
    return [g.reshape(s.xr()[0].shape).astype(np.float64)]


def norm(x: Array, p: int, axis: int) -> Array:
    return np.asarray((np.abs(x) ** p).sum(axis=axis, keepdims=True) ** (LD(1) / p))


def lp_normalization(node: Node, values: Sequence[Array | None]) -> list[Array]:
    x = cast(Array, values[0]).astype(LD)
    n = norm(x, int(node.attr("p", 2)), int(node.attr("axis", -1)))
    return [(x / np.where(n == 0, 1, n)).astype(np.float64)]


def along_rows(x: Array, r: Array, m: Array, p: int, axis: int) -> Array:
    """y n = x by midpoints, solved for dy: n' dy = dx - y' dn, with unit vectors dx along the axis."""
    n, n0 = norm(x, p, axis), norm(r, p, axis)
    total = n + n0
    y, y0 = (v / np.where(k == 0, 1, k) for v, k in ((x, n), (r, n0)))
    size = secant(magnitude_power(p), x, r)
    power_sum, power_sum0 = ((np.abs(v) ** p).sum(axis=axis, keepdims=True) for v in (x, r))
    outer = np.ones_like(total) if p == 1 else secant(p_root(p), power_sum, power_sum0)
    result = np.zeros(x.shape, dtype=LD)
    for j in range(x.shape[axis]):
        unit = np.zeros(x.shape, dtype=LD)
        np.moveaxis(unit, axis, 0)[j] = 1
        dn = (outer * size * unit).sum(axis=axis, keepdims=True)
        dy = (unit - (y + y0) / 2 * dn) / np.where(total == 0, 1, total / 2)
        share = (m * np.where(total == 0, 0, dy)).sum(axis=axis)
        np.moveaxis(result, axis, 0)[j] = share
    return result


def rule_lp_normalization(s: Site) -> Multipliers:
    x, r = (v.astype(LD) for v in s.xr())
    m = along_rows(x, r, s.m[0].astype(LD), int(s.node.attr("p", 2)), int(s.node.attr("axis", -1)))
    return [m.astype(np.float64)]


def hardmax(node: Node, values: Sequence[Array | None]) -> list[Array]:
    x = cast(Array, values[0])
    axis = int(node.attr("axis", -1))
    y = np.zeros(x.shape)
    np.put_along_axis(y, np.expand_dims(np.argmax(x, axis), axis), 1.0, axis)
    return [y]


def rule_hardmax(s: Site) -> Multipliers:
    """Row by row: the maximum moved from j to i, and what rose at i or fell at j shares the change."""
    axis = int(s.node.attr("axis", -1))
    result = np.zeros(s.xr()[0].shape)
    rows = [np.moveaxis(v, axis, -1) for v in (*s.xr(), s.m[0], result)]
    for at in np.ndindex(*rows[0].shape[:-1]):
        x, r, m, g = (v[at] for v in rows)
        i, j = int(np.argmax(x)), int(np.argmax(r))
        if i != j:
            pushes = {i: max(x[i] - r[i], 0.0), j: max(r[j] - x[j], 0.0)}
            for place, push in pushes.items():
                if push:
                    g[place] = (m[i] - m[j]) * push / sum(pushes.values()) / (x[place] - r[place])
    return [result]


# --- several operands -------------------------------------------------------------------------------------------------


def rule_prelu(s: Site) -> Multipliers:
    """Either order of x and slope: secants in x for both slopes, and what the slope multiplies at both x."""
    (x, r), (a, a0) = s.xr(0), s.xr(1)
    shape = s.y[0].shape

    def for_slope(slope: Array) -> Array:
        wide = np.broadcast_to(slope, shape).astype(LD)
        return secant(Unary(lambda z: oracle.relu(z) + wide * oracle.minus_part(z), oracle.broken_at(0)), x, r)

    by_x = (for_slope(a) + for_slope(a0)) / 2
    by_slope = (np.minimum(x, 0) + np.minimum(r, 0)) / 2
    weights = [by_x, by_slope]
    return [
        unbroadcast(s.m[0] * np.asarray(w, np.float64), s.xr(k)[0].shape) if s.active[k] else None
        for k, w in enumerate(weights)
    ]


def rule_clip(s: Site) -> Multipliers:
    """Element by element: the maximum of x and low, then the minimum of that and high, each with one winner."""
    if s.active == [True] + [False] * (len(s.x) - 1):
        return oracle.rule_unary(s)
    shape = s.y[0].shape
    given = {
        k: [np.broadcast_to(cast(Array, v), shape) for v in (x, r)]
        for k, (x, r) in enumerate(zip(s.x, s.r, strict=True))
        if x is not None
    }
    g = [np.zeros(shape) for _ in s.x]
    for at in np.ndindex(*shape):
        values = {k: (float(x[at]), float(r[at])) for k, (x, r) in given.items()}
        m_above = float(s.m[0][at])
        (x, r), above = values[0], values[0]
        if 1 in values:
            above = max(x, values[1][0]), max(r, values[1][1])
        if 2 in values:
            won = operands([above, values[2]], m_above, -1, [s.active[0] or (1 in values and s.active[1]), s.active[2]])
            m_above, g[2][at] = won[0], won[1]
        if 1 in values:
            won = operands([values[0], values[1]], m_above, 1, s.active[:2])
            g[0][at], g[1][at] = won
        else:
            g[0][at] = m_above
    return [
        unbroadcast(g[k], cast(Array, v).shape) if s.active[k] and v is not None else None for k, v in enumerate(s.x)
    ]


def operands(pairs: Sequence[tuple[float, float]], m: float, sign: int, active: Sequence[bool]) -> list[float]:
    """The maximum (sign 1) or minimum (-1) of two; where one is a constant the other takes dy/dx."""
    xs, rs = ([sign * pair[run] for pair in pairs] for run in (0, 1))
    if sum(active) == 1:
        k = list(active).index(True)
        d, wins = xs[k] - rs[k], max(range(2), key=lambda n: (xs[n], -n)) == k
        share = m * (max(xs) - max(rs)) / d if d else m * wins
        return [share if n == k else 0.0 for n in range(2)]
    won = oracle.share_maximum(xs, rs, m, "shared")
    return [won.get(n, 0.0) for n in range(2)]


def rule_mod(s: Site) -> Multipliers:
    """Two players by the values at the four corners, and the limits 1 and -trunc(a / b)."""
    (a, a0), (b, b0) = s.xr(0), s.xr(1)
    pairs: dict[int, Array] = {}
    if s.active[0]:
        corners = [(a, a0, other) for other in (b, b0)]
        pairs[0] = mean_of([ratio(np.fmod(p, o) - np.fmod(q, o), p - q, np.ones_like(p - q)) for p, q, o in corners])
    if s.active[1]:
        corners = [(b, b0, other) for other in (a, a0)]
        pairs[1] = mean_of([ratio(np.fmod(o, p) - np.fmod(o, q), p - q, -np.trunc(o / p)) for p, q, o in corners])
    return [unbroadcast(s.m[0] * pairs[k], s.xr(k)[0].shape) if k in pairs else None for k in range(2)]


def mean_of(pair: Sequence[Array]) -> Array:
    return np.asarray((pair[0] + pair[1]) / 2)


def ratio(dy: Array, dx: Array, limit: Array) -> Array:
    dy, dx, limit = np.broadcast_arrays(dy, dx, limit)
    return np.where(dx == 0, limit, dy / np.where(dx == 0, 1, dx))


# --- ai.onnx.ml -------------------------------------------------------------------------------------------------------


def features(node: Node, rows: int) -> tuple[Array, Array]:
    c = np.asarray(node.attrs["coefficients"], np.float32).astype(np.float64).reshape(rows, -1)
    return c, np.asarray(node.attrs.get("intercepts", [0.0] * rows), np.float32).astype(np.float64)


def transform(name: str, z: Array) -> Array:
    """What ONNX Runtime makes of the scores of a sample."""
    if name == "LOGISTIC":
        return 1 / (1 + np.exp(-z))
    if name in ("SOFTMAX", "SOFTMAX_ZERO"):
        counts = np.abs(z) > (1e-7 if name == "SOFTMAX_ZERO" else -1)
        e = np.where(counts, np.exp(z - z.max(axis=1, keepdims=True)), 0)
        return np.asarray(e / e.sum(axis=1, keepdims=True))
    if name == "PROBIT":
        u = 2 * z - 1
        log = np.log((1 - u) * (1 + u))
        v = 2 / (np.pi * 0.147) + 0.5 * log
        return np.asarray(np.sqrt(2) * np.sign(u) * np.sqrt(-v + np.sqrt(v * v - log / 0.147)))
    return z


def linear_model(node: Node, values: Sequence[Array | None]) -> list[Array]:
    x = np.atleast_2d(cast(Array, values[0]))
    classifies = node.op == "LinearClassifier"
    rows = len(node.attrs["intercepts"]) if classifies else int(node.attr("targets", 1))
    c, b = features(node, rows)
    z, name = x @ c.T + b, str(node.attr("post_transform", "NONE"))
    if rows == 1 and classifies:
        p = transform(name, z) if name == "LOGISTIC" else z
        y = np.concatenate([1 - p, p], axis=1)
        return [(p[:, 0] > 0).astype(np.int64), y]
    y = transform(name, z) if rows > 1 or name == "PROBIT" else z
    return [np.argmax(y, axis=1), y] if classifies else [y]


def rule_linear_model(s: Site) -> Multipliers:
    """Secants of the transform of each score; softmax in log space. A score that SOFTMAX_ZERO leaves out is -100."""
    x, r = (np.atleast_2d(v) for v in s.xr())
    classifies = s.node.op == "LinearClassifier"
    rows = len(s.node.attrs["intercepts"]) if classifies else int(s.node.attr("targets", 1))
    (c, b), name, m = features(s.node, rows), str(s.node.attr("post_transform", "NONE")), s.m[-1]
    z, z0 = ((v @ c.T + b).astype(LD) for v in (x, r))
    if rows == 1 and classifies:
        m = m[:, 1:] - m[:, :1]
        name = name if name == "LOGISTIC" else "NONE"
    if rows == 1 and not classifies and name != "PROBIT":
        name = "NONE"
    if name in ("SOFTMAX", "SOFTMAX_ZERO"):
        w, w0 = z, z0
        if name == "SOFTMAX_ZERO":
            w, w0 = (np.where(np.abs(v) > 1e-7, v, v.max(axis=1, keepdims=True) - 100) for v in (z, z0))
        weight, logs, logs0 = oracle.softmax_weights(w, w0, (1,))
        g = m * np.exp(oracle.log_of_logarithmic_mean(w - logs, w0 - logs0))
        m = (g - weight * g.sum(axis=1, keepdims=True)) * ratio(w - w0, z - z0, np.ones_like(z))
    elif name == "LOGISTIC":
        m = m * secant(oracle.PLAIN_UNARY["Sigmoid"], z, z0)
    elif name == "PROBIT":
        y, y0 = (transform(name, v) for v in (z, z0))
        m = m * ratio(y - y0, z - z0, np.sqrt(2 * np.pi) * np.exp(y * y / 2))
    return [np.asarray(m @ c, dtype=np.float64).reshape(s.xr()[0].shape)]


def kernel_values(node: Node, x: Array) -> tuple[Array, Array, Array]:
    """Kernels [N, V], vectors and coefficients, one vector after the other."""
    a = np.asarray(node.attrs["coefficients"], np.float32).astype(LD)
    if not node.attr("n_supports", 0):
        return x.astype(LD) @ a[:, None], a[None], np.ones(1, dtype=LD)
    v = np.asarray(node.attrs["support_vectors"], np.float32).astype(LD).reshape(len(a), -1)
    return np.stack([kernel(node, x.astype(LD), row) for row in v], axis=1), v, a


def kernel(node: Node, x: Array, v: Array) -> Array:
    gamma, shift, degree = (LD(np.float32(number)) for number in node.attrs.get("kernel_params", [0.0] * 3))
    match node.attr("kernel_type", "LINEAR"):
        case "POLY":
            return np.asarray((gamma * (x @ v) + shift) ** int(degree))
        case "RBF":
            return np.asarray(np.exp(-gamma * ((x - v) ** 2).sum(axis=1)))
        case "SIGMOID":
            return np.asarray(np.tanh(gamma * (x @ v) + shift))
        case _:
            return np.asarray(x @ v)


def svm_regressor(node: Node, values: Sequence[Array | None]) -> list[Array]:
    k, _, a = kernel_values(node, cast(Array, values[0]))
    y = k @ a[:, None] + LD(np.float32(node.attrs["rho"][0]))
    return [np.where(y > 0, 1.0, -1.0) if node.attr("one_class", 0) else y.astype(np.float64)]


def rule_svm_regressor(s: Site) -> Multipliers:
    x, r = (v.astype(LD) for v in s.xr())
    (k, v, a), (k0, _, _) = kernel_values(s.node, x), kernel_values(s.node, r)
    gamma, shift, degree = (LD(np.float32(number)) for number in s.node.attrs.get("kernel_params", [0.0] * 3))
    m = s.m[0].astype(LD)
    if s.node.attr("one_class", 0):
        total = ((k - k0) * a).sum(axis=1, keepdims=True)
        m = m * ratio(s.y[0] - s.y0[0], total, np.zeros_like(total))
    kind = s.node.attr("kernel_type", "LINEAR") if s.node.attr("n_supports", 0) else "LINEAR"
    functions: dict[str, Callable[[Array], Array]] = {
        "LINEAR": lambda u: u,
        "POLY": lambda u: (gamma * u + shift) ** int(degree),
        "SIGMOID": lambda u: np.tanh(gamma * u + shift),
        "RBF": lambda u: np.exp(-gamma * u),
    }
    g = np.zeros(x.shape, dtype=LD)
    for n in range(len(v)):
        if kind == "RBF":
            u, u0, du = ((x - v[n]) ** 2).sum(axis=1), ((r - v[n]) ** 2).sum(axis=1), (x - v[n]) + (r - v[n])
        else:
            u, u0, du = x @ v[n], r @ v[n], v[n] + 0 * x
        slope = secant(Unary(functions[kind], length=oracle.one), u, u0)
        g += m * a[n] * slope[:, None] * du
    return [g.astype(np.float64)]


def binarizer(node: Node, values: Sequence[Array | None]) -> list[Array]:
    return [(cast(Array, values[0]) > node.attr("threshold", 0.0)).astype(np.float64)]


def imputer(node: Node, values: Sequence[Array | None]) -> list[Array]:
    x, instead = cast(Array, values[0]), np.asarray(node.attrs["imputed_value_floats"], np.float32)
    value = np.float32(node.attr("replaced_value_float", 0.0))
    return [np.where(np.isnan(x) if np.isnan(value) else x == value, instead.astype(np.float64), x)]


def rule_step(s: Site) -> Multipliers:
    """Rescale; where nothing changes, 1 for a value that passes and 0 for one that is replaced."""
    x, r = s.xr()
    passes = (s.y[0] == x).astype(np.float64) if s.node.op == "Imputer" else np.zeros(x.shape)
    return [s.m[0] * ratio(s.y[0] - s.y0[0], x - r, passes)]


def divisor(name: str, x: Array) -> Array:
    if name != "MAX":
        return norm(x, int(name[1]), -1)
    top = x.max(axis=-1, keepdims=True)
    return np.asarray(np.where((top == 0) & (np.abs(x).sum(axis=-1, keepdims=True) > 0), 1, top))


def normalizer(node: Node, values: Sequence[Array | None]) -> list[Array]:
    x = cast(Array, values[0]).astype(LD)
    n = divisor(str(node.attr("norm", "MAX")), x)
    return [(x / np.where(n == 0, 1, n)).astype(np.float64)]


def rule_normalizer(s: Site) -> Multipliers:
    """MAX, row by row with unit vectors: the quotient's weights, and the maximum's winner for the divisor."""
    x, r = (v.astype(LD) for v in s.xr())
    name = str(s.node.attr("norm", "MAX"))
    if name != "MAX":
        return [along_rows(x, r, s.m[0].astype(LD), int(name[1]), -1).astype(np.float64)]
    n, n0 = divisor(name, x), divisor(name, r)
    n, n0 = np.where(n == 0, n0, n), np.where(n0 == 0, n, n0)
    g = np.zeros(x.shape, dtype=LD)
    for at in np.ndindex(*x.shape[:-1]):
        a, a0, m, b, b0 = x[at], r[at], s.m[0][at], n[at][0], n0[at][0]
        if b == 0 and b0 == 0:
            continue
        w_a, w_b = oracle.quotient_weights(a, a0, b, b0)
        top, top0 = a.max(), a0.max()
        jump = (b - b0) / (top - top0) if top != top0 else 1.0
        g[at] = m * w_a
        for place, share in oracle.share_maximum(list(a), list(a0), float((m * w_b).sum() * jump), "shared").items():
            g[at][place] += share
    return [g.astype(np.float64)]


oracle.FORWARD.update(
    {
        "Hardmax": hardmax,
        "LpNormalization": lp_normalization,
        **dict.fromkeys(("LpPool", "GlobalLpPool"), lp_pool),
        "Mod": lambda node, values: [np.fmod(cast(Array, values[0]), cast(Array, values[1]))],
        "Binarizer": binarizer,
        "Imputer": imputer,
        **dict.fromkeys(("LinearRegressor", "LinearClassifier"), linear_model),
        "Normalizer": normalizer,
        "SVMRegressor": svm_regressor,
    }
)
oracle.RULES.update(
    {
        "ReduceProd": rule_reduce_prod,
        "Hardmax": rule_hardmax,
        "LpNormalization": rule_lp_normalization,
        **dict.fromkeys(("LpPool", "GlobalLpPool"), rule_lp_pool),
        "Clip": rule_clip,
        "Mod": rule_mod,
        "PRelu": rule_prelu,
        **dict.fromkeys(("Binarizer", "Imputer"), rule_step),
        **dict.fromkeys(("LinearRegressor", "LinearClassifier"), rule_linear_model),
        "Normalizer": rule_normalizer,
        "SVMRegressor": rule_svm_regressor,
    }
)
