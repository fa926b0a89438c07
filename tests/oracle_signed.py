"""The independent oracle of the rules with signed parts and of the gradient family, in plain float64 NumPy.

It is written from the papers and docs/method.md, from no implementation. It adds to `oracle` (forward values, secants,
window geometry, the rules of one multiplier) what the papers say of two channels:

* a tensor's difference has two parts, d+ and d-, with d+ + d- = d, and a multiplier for each (DeepLIFT, RevealCancel);
* affine operators are explicit matrices, column by column, whose positive and negative entries are used apart;
* a maximum is a list of (output, place, factor), an elementwise function a pair of secants.

A rule is a function `Site, parts of the inputs -> parts of the outputs, and the step backward`. The conservation law
with signed parts, <m+_y, dy+> + <m-_y, dy-> = sum over inputs (<m+_x, dx+> + <m-_x, dx->), holds for every rule but
"argmax" and the gradient family; `conservation` measures it.

Rules by name (`rule_of`): a node that a name does not fit takes its operator's default.

| name | serves |
|---|---|
| rescale | everything: the default rules, maxima by "cross-max" |
| reveal-cancel | elementwise nonlinearities (DeepLIFT, RevealCancel) |
| cross-max, cross-max-first | maxima (METHOD 4), "cross-max" with the `ties` of the call |
| indicator, argmax | maxima: dy/dx_i (LIFTPAD eq. 13), 1 (DFD eq. 13), both at the first maximum i of x |
| proportional | elementwise products: dy / (da + db) for both (LIFTPAD eq. 15) |
| liftpad, dfd | "indicator" and "proportional"; "argmax" |
| gradient, guided-backprop, deconvnet | everything: the derivative at x, with the two variants for Relu |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import oracle
from onnx import helper, numpy_helper
from oracle import LD, Array, Graph, Node, Seed, Site, Ties, Unary, difference, secant, unbroadcast

Pair = tuple[Array, Array]
Pairs = Sequence[Pair | None]
Back = Callable[[Sequence[Pair]], Pairs]
Step = tuple[list[Pair], Back]
RuleOf = Callable[[onnx.NodeProto], str] | str

GRADIENTS = {"gradient", "guided-backprop", "deconvnet"}
NAMES = GRADIENTS | {
    *("rescale", "reveal-cancel", "cross-max", "cross-max-first", "indicator", "argmax"),
    *("proportional", "liftpad", "dfd"),
}
MIXING = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"}
SCALES = {"Add", "Sub", "Sum", "Mean", "Mul", "Div", "Neg", "BatchNormalization", "Scaler"}
AVERAGES = {"ReduceSum", "ReduceMean", "CumSum", "AveragePool", "GlobalAveragePool"}
SHAPE_ONLY = {"Shape", "Size", "EyeLike", "RandomNormalLike", "RandomUniformLike"}


def positive(v: Array) -> Array:
    """P(v)"""
    return np.maximum(v, 0.0)


def negative(v: Array) -> Array:
    """N(v)"""
    return np.minimum(v, 0.0)


def split(d: Array) -> Pair:
    """The parts of a difference that nothing more is known of: d+ = P(d), d- = N(d)."""
    return positive(d), negative(d)


def fold(m: Pair, d: Array) -> Array:
    """One multiplier for parts that are P(d) and N(d): m+ where d > 0, m- where d < 0, the mean where d = 0."""
    return np.where(d > 0, m[0], np.where(d < 0, m[1], (m[0] + m[1]) / 2))


def add(a: Pair, b: Pair) -> Pair:
    return a[0] + b[0], a[1] + b[1]


def nothing(shape: Sequence[int]) -> Pair:
    return np.zeros(tuple(shape)), np.zeros(tuple(shape))


def times(m: Pair, d: Pair) -> Array:
    """m+ d+ + m- d-, and 0 where a part is 0, whatever its multiplier."""
    with np.errstate(invalid="ignore"):
        return np.asarray(sum(np.where(part == 0, 0.0, one * part) for one, part in zip(m, d, strict=True)))


# ------------------------------------------------------------------------------------------------------------
# Rules
# ------------------------------------------------------------------------------------------------------------
def matrix(f: Callable[[Array], Array], shape: tuple[int, ...]) -> Array:
    """The matrix [outputs, inputs] of a linear f, column by column: f(e_i)."""
    n = int(np.prod(shape))
    columns = []
    for i in range(n):
        unit = np.zeros(n)
        unit[i] = 1
        columns.append(np.ravel(f(unit.reshape(shape))))
        if n * columns[0].size > 100_000_000:
            raise NotImplementedError(f"a matrix of {columns[0].size} x {n} is too large for the oracle")
    return np.stack(columns, axis=1)


def linear_maps(s: Site) -> list[Callable[[Array], Array]]:
    """What a mixing operator does to each operand, the other ones at their midpoints (METHOD 2 and 5)."""
    node, op, shape = s.node, s.node.op, s.y[0].shape
    if op == "Einsum":
        if len(s.x) > 2:
            raise NotImplementedError(f"Einsum of {len(s.x)} operands")
        equation = oracle.einsum_equation(node)
        if len(s.x) == 1:
            return [lambda v: np.asarray(np.einsum(equation, v))]
        return [
            lambda v: np.asarray(np.einsum(equation, v, s.middle(1))),
            lambda v: np.asarray(np.einsum(equation, s.middle(0), v)),
        ]
    product: Callable[[Array, Array], Array] = {
        "Conv": lambda a, b: oracle.conv(node, a, b),
        "ConvTranspose": lambda a, b: oracle.conv_transpose(node, a, b),
        "Gemm": lambda a, b: oracle.gemm(node, a, b),
        "MatMul": lambda a, b: np.asarray(a @ b),
    }[op]
    maps: list[Callable[[Array], Array]] = [lambda v: product(v, s.middle(1)), lambda v: product(s.middle(0), v)]
    if op == "Gemm":
        maps.append(lambda v: np.broadcast_to(node.attr("beta") * v, shape))
    if op.startswith("Conv"):
        maps.append(lambda v: np.broadcast_to(oracle.per_channel(v, len(shape)), shape))
    return maps


def mixing(s: Site, parts: Pairs) -> Step:
    """Affine operators that mix elements, by the sign of the total difference d (METHOD 2; DeepLIFT "Linear rule").

    dy+ = P(W)P(d) + N(W)N(d), dy- = P(W)N(d) + N(W)P(d). An element that rises adds to dy+ by its positive weights
    and to dy- by its negative ones: m = P(W)^T m+ + N(W)^T m-. One that falls the other way round. One that stays:
    W^T (m+ + m-)/2. Whatever the parts of x are, they get the same m.
    """
    maps = linear_maps(s)
    operands = {k: matrix(maps[k], s.xr(k)[0].shape) for k in range(len(parts)) if parts[k] is not None}
    moved = {k: difference(*s.xr(k)).ravel() for k in operands}
    up = sum(positive(w) @ positive(moved[k]) + negative(w) @ negative(moved[k]) for k, w in operands.items())
    down = sum(positive(w) @ negative(moved[k]) + negative(w) @ positive(moved[k]) for k, w in operands.items())
    shape = s.y[0].shape

    def back(m: Sequence[Pair]) -> Pairs:
        m_up, m_down = (v.ravel() for v in m[0])
        result: list[Pair | None] = [None] * len(parts)
        for k, w in operands.items():
            rising = positive(w).T @ m_up + negative(w).T @ m_down
            falling = positive(w).T @ m_down + negative(w).T @ m_up
            one = np.where(moved[k] > 0, rising, np.where(moved[k] < 0, falling, w.T @ (m_up + m_down) / 2))
            one = one.reshape(s.xr(k)[0].shape)
            result[k] = (one, one)
        return result

    return [(np.reshape(up, shape), np.reshape(down, shape))], back


def scale_of(s: Site, k: int) -> Array:
    """The factor by which an elementwise affine operator takes operand k, broadcastable to y (METHOD 2 and 5)."""
    op = s.node.op
    if op in ("Add", "Sum"):
        return np.ones(())
    if op == "Mean":
        return np.asarray(1 / len(s.x))
    if op == "Sub":
        return np.asarray(1.0 if k == 0 else -1.0)
    if op == "Neg":
        return np.asarray(-1.0)
    if op == "Mul":
        return s.middle(1 - k)
    if op == "Div":
        (a, a0), (b, b0) = s.xr(0), s.xr(1)
        return np.asarray(oracle.quotient_weights(a, a0, b, b0)[k])
    s.only(0)
    x, rest = s.xr()[0], s.x[1:]
    return (
        oracle.forward_node(s.node, [np.ones(x.shape), *rest])[0]
        - oracle.forward_node(s.node, [np.zeros(x.shape), *rest])[0]
    )


def scaling(s: Site, parts: Pairs) -> Step:
    """Elementwise scales: s > 0 keeps the channels, s < 0 swaps them (METHOD 2)."""
    scales = {k: scale_of(s, k) for k in range(len(parts)) if parts[k] is not None}
    total = nothing(s.y[0].shape)
    for k, scale in scales.items():
        plus, minus = parts[k]  # type: ignore[misc]
        scaled = (positive(scale) * plus + negative(scale) * minus, positive(scale) * minus + negative(scale) * plus)
        total = add(total, scaled)

    def back(m: Sequence[Pair]) -> Pairs:
        result: list[Pair | None] = [None] * len(parts)
        for k, scale in scales.items():
            shape = s.xr(k)[0].shape
            plus = positive(scale) * m[0][0] + negative(scale) * m[0][1]
            minus = positive(scale) * m[0][1] + negative(scale) * m[0][0]
            result[k] = (unbroadcast(plus, shape), unbroadcast(minus, shape))
        return result

    return [total], back


def proportional(s: Site, parts: Pairs) -> Step:
    """A product of two that change: m_a = m_b = dy / (da + db) (LIFTPAD eq. 15), that is Rescale of the sum a + b.

    Where da and db cancel to a hundredth of their size, the midpoint rule. A constant factor: the plain linear rule.
    """
    if any(p is None for p in parts):
        return scaling(s, parts)
    shape = s.y[0].shape
    da, db = (np.broadcast_to(difference(*s.xr(k)), shape) for k in (0, 1))
    cancels = np.abs(da + db) <= 1e-2 * (np.abs(da) + np.abs(db))
    factor = np.where(cancels, 0.0, difference(s.y[0], s.y0[0]) / np.where(cancels, 1.0, da + db))
    (middle,), middle_back = scaling(s, parts)
    a, b = (p for p in parts if p is not None)
    sums = (factor * (a[0] + b[0]), factor * (a[1] + b[1]))
    out = (np.where(cancels, middle[0], sums[0]), np.where(cancels, middle[1], sums[1]))

    def back(m: Sequence[Pair]) -> Pairs:
        by_middle = middle_back([(cancels * m[0][0], cancels * m[0][1])])
        result = []
        for pair in by_middle:
            assert pair is not None
            plus, minus = (unbroadcast(factor * v, pair[0].shape) for v in m[0])
            result.append(add(pair, (plus, minus)))
        return result

    return [out], back


def own_channels(s: Site, parts: Pairs) -> Step:
    """Movement, sums and averages: a linear operator with weights >= 0 acts on each channel on its own (METHOD 2)."""
    op = s.node.op
    data = oracle.MOVEMENT.get(op, (0,))
    positions = range(len(parts)) if data is None else data

    def channel(c: int) -> list[Array]:
        blank = [np.zeros(v.shape) if k in positions and v is not None else v for k, v in enumerate(s.x)]
        filled = [p[c] if (p := parts[k]) is not None and k in positions else v for k, v in enumerate(blank)]
        pairs = zip(oracle.forward_node(s.node, filled), oracle.forward_node(s.node, blank), strict=True)
        return [difference(y, y0) if oracle.is_float(y) else np.zeros(y.shape) for y, y0 in pairs]

    def back(m: Sequence[Pair]) -> Pairs:
        plus, minus = (oracle.RULES[op](replace(s, m=[pair[c] for pair in m])) for c in (0, 1))
        return [None if p is None or n is None else (p, n) for p, n in zip(plus, minus, strict=True)]

    return list(zip(channel(0), channel(1), strict=True)), back


def windows_of(s: Site) -> list[list[tuple[int, int]]]:
    """Per output element of a maximum or minimum: the (operand, flat index) of all places that it looks at."""
    op, x = s.node.op, s.xr()[0]
    if op in ("Max", "Min"):
        shape = s.y[0].shape
        numbers = [np.arange(v.size).reshape(v.shape) for v in s.x if v is not None]
        flat = [np.broadcast_to(number, shape).ravel().tolist() for number in numbers]
        return [list(enumerate(places)) for places in zip(*flat, strict=True)]
    index = np.arange(x.size).reshape(x.shape)
    if op == "MaxPool":
        spatial = x.shape[2:]
        seen = oracle.pool_windows(oracle.window_of(s.node, spatial, s.node.attrs["kernel_shape"]), spatial)
        planes = index.reshape(x.shape[0] * x.shape[1], -1)
        return [[(0, int(plane[k])) for k in places] for plane in planes for places, _ in seen]
    axes = tuple(range(2, x.ndim)) if op == "GlobalMaxPool" else oracle.axes_of(s.node, s.x, x.ndim)
    rest = [k for k in range(x.ndim) if k not in axes]
    outputs = int(np.prod([x.shape[k] for k in rest]))
    return [[(0, int(k)) for k in row] for row in index.transpose(*rest, *axes).reshape(outputs, -1)]


def share(xs: Sequence[float], rs: Sequence[float], variant: str, ties: Ties) -> dict[int, float]:
    """{place: factor} of one window (METHOD 4).

    "indicator" (LIFTPAD eq. 13): dy/dx_i at the first maximum i of x, unless it is 100 or more in size. "argmax" (DFD
    eq. 13): 1. Else one place of the maxima of x and r, in [0, 1].
    """
    i = xs.index(max(xs))
    dy, dx = xs[i] - max(rs), xs[i] - rs[i]
    if variant == "argmax":
        return {i: 1.0}
    if variant == "indicator" and abs(dy) < 100 * abs(dx):
        return {i: dy / dx}
    return oracle.share_maximum(xs, rs, 1.0, ties)


def maximum(s: Site, parts: Pairs, variant: str) -> Step:
    """Maxima: each channel on its own, times the factor at the winning place (METHOD 4). A minimum: -max(-x)."""
    sign = -1.0 if "Min" in s.node.op else 1.0
    at_x = [sign * v.ravel() if v is not None else np.zeros(0) for v in s.x]
    at_r = [sign * v.ravel() if v is not None else np.zeros(0) for v in s.r]
    links = []  # (output, operand, place, factor)
    for o, window in enumerate(windows_of(s)):
        won = share([float(at_x[k][p]) for k, p in window], [float(at_r[k][p]) for k, p in window], variant, s.ties)
        links += [(o, *window[place], factor) for place, factor in won.items()]
    out = nothing([s.y[0].size])
    for o, k, place, factor in links:
        pair = parts[k]
        for c in (0, 1):
            if pair is not None:
                out[c][o] += factor * pair[c].ravel()[place]

    def back(m: Sequence[Pair]) -> Pairs:
        result = [None if p is None else nothing(p[0].shape) for p in parts]
        for o, k, place, factor in links:
            pair = result[k]
            for c in (0, 1):
                if pair is not None:
                    pair[c].ravel()[place] += factor * m[0][c].ravel()[o]
        return result

    indices = [nothing(y.shape) for y in s.y[1:]]
    return [(out[0].reshape(s.y[0].shape), out[1].reshape(s.y[0].shape)), *indices], back


def function_of(s: Site) -> tuple[int, Unary] | None:
    """(operand, f) where the node is an elementwise function of one operand of its own shape (METHOD 3)."""
    if s.node.op in oracle.UNARY_OPS:
        s.only(0)
        f = oracle.unary_of(s.node, s.x)
        return None if f is None else (0, f)
    if s.node.op == "Pow" and sum(s.active) == 1:
        k = s.active.index(True)
        constant = s.xr(1 - k)[0].astype(LD)
        if s.xr(k)[0].shape == s.y[0].shape:
            power = Unary(oracle.power(constant), length=oracle.size)
            return k, power if k == 0 else oracle.exponential(np.log(constant))
    return None


def elementwise(s: Site, parts: Pairs, k: int, f: Unary, reveal_cancel: bool) -> Step:
    """Rescale: m+- = dy/dx m+-_y, in each channel (METHOD 3).

    RevealCancel, with p = d+ and n = d- : dy+ = 1/2 [f(r+p) - f(r) + f(r+n+p) - f(r+n)], m+ = dy+/p m+_y, and dy-, m-
    likewise. A difference quotient over an empty side is the derivative where it stands.
    """
    pair = parts[k]
    assert pair is not None
    if reveal_cancel:
        r, p, n = (v.astype(LD) for v in (s.xr(k)[1], *pair))
        slopes = [
            np.asarray((secant(f, r + a, r) + secant(f, r + b + a, r + b)) / 2, dtype=np.float64)
            for a, b in ((p, n), (n, p))
        ]
    else:
        slopes = [np.asarray(secant(f, *s.xr(k)), dtype=np.float64)] * 2

    def back(m: Sequence[Pair]) -> Pairs:
        mine = (slopes[0] * m[0][0], slopes[1] * m[0][1])
        return [mine if j == k else None for j in range(len(parts))]

    return [(slopes[0] * pair[0], slopes[1] * pair[1])], back


def totals(s: Site) -> list[Pair]:
    """The outputs' parts by the sign of the total."""
    return [
        split(difference(y, y0)) if oracle.is_float(y) else nothing(y.shape) for y, y0 in zip(s.y, s.y0, strict=True)
    ]


def folded(s: Site, m: Sequence[Pair]) -> list[Array]:
    """One multiplier per output element, for outputs that were split by the sign of the total."""
    return [
        fold(pair, difference(y, y0)) if oracle.is_float(y) else pair[0]
        for pair, y, y0 in zip(m, s.y, s.y0, strict=True)
    ]


def other(s: Site) -> Step:
    """Softmax, normalisations and the like: split the output by the sign of the total; backwards one multiplier."""

    def back(m: Sequence[Pair]) -> Pairs:
        sent = oracle.RULES[s.node.op](replace(s, m=folded(s, m)))
        return [None if one is None else (one, one) for one in sent]

    return totals(s), back


def gradient(s: Site, name: str) -> Step:
    """The derivative at x, in each channel; Relu by guided backpropagation or the deconvolution network.

    Any rule of one multiplier is the derivative where r = x.
    """
    at_x = replace(s, r=s.x, y0=s.y)

    def channel(m: list[Array]) -> Sequence[Array | None]:
        if s.node.op == "Relu" and name != "gradient":
            gate = (m[0] > 0) & ((s.xr()[0] > 0) | (name == "deconvnet"))
            return [np.where(gate, m[0], 0.0)]
        if s.node.op == "Scaler":
            return [m[0] * scale_of(s, 0)]
        return oracle.RULES[s.node.op](replace(at_x, m=m))

    def back(m: Sequence[Pair]) -> Pairs:
        plus, minus = (channel([pair[c] for pair in m]) for c in (0, 1))
        return [None if p is None or n is None else (p, n) for p, n in zip(plus, minus, strict=True)]

    return totals(s), back


def step_of(s: Site, parts: Pairs, rule: str) -> Step:
    """The rule of one node."""
    op = s.node.op
    if rule in GRADIENTS:
        return gradient(s, rule)
    if op in MIXING:
        return mixing(s, parts)
    if op == "Mul" and rule in ("proportional", "liftpad"):
        return proportional(s, parts)
    if op in SCALES:
        return scaling(s, parts)
    if op in AVERAGES or (op in oracle.MOVEMENT and s.node.attrs.get("reduction", "none") in ("none", "add")):
        return own_channels(s, parts)
    if op in oracle.MAXIMA:
        variant = {"liftpad": "indicator", "dfd": "argmax"}.get(rule, rule)
        return maximum(replace(s, ties="first") if rule == "cross-max-first" else s, parts, variant)
    function = function_of(s)
    if function is not None:
        return elementwise(s, parts, *function, reveal_cancel=rule == "reveal-cancel")
    if op not in oracle.RULES:
        raise NotImplementedError(f"the oracle has no rule for {s.node}")
    return other(s)


# ------------------------------------------------------------------------------------------------------------
# The walks
# ------------------------------------------------------------------------------------------------------------
Sent = list[tuple[str, Pair]]


@dataclass
class Explanation:
    """All tensors by name.

    `multipliers` is (m+ + m-)/2 and `halves` (m+ - m-)/2, `parts` is (d+, d-). `contributions`, of the attributed
    tensors only, is m+ d+ + m- d-. `gap`: <m+, dy+> + <m-, dy-> at the output minus all contributions. `sent`: what
    each node (by its first output) was given for its outputs and has given to its inputs, as (tensor, (m+, m-)).
    """

    contributions: dict[str, Array] = field(default_factory=dict)
    multipliers: dict[str, Array] = field(default_factory=dict)
    halves: dict[str, Array] = field(default_factory=dict)
    parts: dict[str, Pair] = field(default_factory=dict)
    values_x: dict[str, Array] = field(default_factory=dict)
    values_r: dict[str, Array] = field(default_factory=dict)
    gap: float = 0.0
    sent: dict[str, tuple[Sent, Sent]] = field(default_factory=dict)

    def pair(self, name: str) -> Pair:
        """(m+, m-)"""
        return self.multipliers[name] + self.halves[name], self.multipliers[name] - self.halves[name]

    def folded(self, name: str) -> Array:
        """The one multiplier of an attributed tensor, whose parts are P(d) and N(d): contributions = it times d."""
        return fold(self.pair(name), difference(self.values_x[name], self.values_r[name]))


@dataclass
class Net:
    """The nodes that the output needs, the values at x, and who carries importance."""

    graph: Graph
    nodes: list[Node]
    values_x: dict[str, Array]
    shared: dict[str, Array]  # what does not depend on the attributed tensors
    depends: set[str]  # whose values (not just shapes) come from the attributed tensors
    active: set[str]  # float tensors on a way from the attributed tensors to the output
    inputs: Sequence[str]

    def at(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """All values where the attributed tensors have these."""
        return oracle.run(self.nodes, {**self.shared, **{name: oracle.widen(values[name]) for name in self.inputs}})


def prepare(model: onnx.ModelProto, x: Mapping[str, Array], inputs: Sequence[str], output: str) -> Net:
    graph = oracle.load(model)
    nodes = graph.ancestors(output)
    values_x = oracle.run(nodes, {**graph.constants, **{name: oracle.widen(value) for name, value in x.items()}})
    changing, depends, active = set(inputs), set(inputs), set(inputs)
    for node in nodes:
        outs = {name for name in node.outputs if name}
        ins = set(node.inputs)
        changing |= outs if changing & ins else set()
        depends |= outs if depends & ins and node.op not in SHAPE_ONLY else set()
        if active & ins and node.op not in oracle.STOPS:
            active |= {name for name in outs if oracle.is_float(values_x[name])}
    wanted = {output}
    for node in reversed(nodes):
        if wanted & active & (set(node.outputs) - set(inputs)):
            wanted |= set(node.inputs) & active
    shared = {name: value for name, value in values_x.items() if name not in changing}
    return Net(graph, nodes, values_x, shared, depends, active & wanted, inputs)


def walk(
    net: Net,
    at_r: Mapping[str, Array],
    output: str,
    seed: Pair,
    rule_of: RuleOf,
    ties: Ties,
) -> Explanation:
    """Parts forward, then pairs of multipliers backward, one node after the other."""
    at_x = net.values_x
    parts = {name: split(difference(at_x[name], at_r[name])) for name in net.inputs if name in at_x}
    backs: list[tuple[Node, Callable[[Mapping[str, Pair]], Sent]]] = []
    for node in net.nodes:
        outs = [name for name in node.outputs if name in net.active and name not in net.inputs]
        if not outs:
            continue
        rule = rule_of if isinstance(rule_of, str) else rule_of(node.proto)
        if rule not in NAMES:
            raise ValueError(f"{rule!r} is none of {sorted(NAMES)}")
        made, back = step_at(net, at_r, node, rule, ties, parts)
        parts.update({name: pair for name, pair in zip(node.outputs, made, strict=False) if name in outs})
        backs.append((node, back))

    pairs = {output: seed}
    sent = {}
    for node, back in reversed(backs):
        given = [(name, pairs[name]) for name in node.outputs if name in pairs and name not in net.inputs]
        if given:
            sent[node.outputs[0]] = (given, back(pairs))
            for name, pair in sent[node.outputs[0]][1]:
                pairs[name] = add(pairs[name], pair) if name in pairs else pair

    result = Explanation(parts=parts, values_x=at_x, values_r=dict(at_r), sent=sent)
    for name in net.inputs:
        if name not in at_x or not oracle.is_float(at_x[name]):
            raise ValueError(f"{name} is not a float tensor that {output} depends on")
        pairs.setdefault(name, nothing(at_x[name].shape))
        result.contributions[name] = times(pairs[name], parts[name])
    result.multipliers = {name: (plus + minus) / 2 for name, (plus, minus) in pairs.items()}
    result.halves = {name: (plus - minus) / 2 for name, (plus, minus) in pairs.items()}
    result.gap = float(times(seed, parts[output]).sum() - sum(c.sum() for c in result.contributions.values()))
    return result


def step_at(
    net: Net,
    at_r: Mapping[str, Array],
    node: Node,
    rule: str,
    ties: Ties,
    parts: Mapping[str, Pair],
) -> tuple[list[Pair], Callable[[Mapping[str, Pair]], Sent]]:
    """The rule of a node in its place: the parts of its outputs, and what it sends back, by tensor name."""
    at_x = net.values_x
    s = Site(
        node,
        [at_x[n] if n else None for n in node.inputs],
        [at_r[n] if n else None for n in node.inputs],
        [at_x[n] if n else np.zeros(0) for n in node.outputs],
        [at_r[n] if n else np.zeros(0) for n in node.outputs],
        [],
        [n in net.active for n in node.inputs],
        ties,
    )

    def pairs_of(pairs: Mapping[str, Pair]) -> list[Pair]:
        return [pairs.get(n, nothing(y.shape)) for n, y in zip(node.outputs, s.y, strict=True)]

    values = [n for k, n in enumerate(node.inputs) if n and k not in oracle.TYPE_ONLY.get(node.op, ())]
    conditions = [n for n in values if n in net.depends and n not in net.active]
    if rule in GRADIENTS or not conditions:
        with np.errstate(all="ignore"):
            made, back = step_of(s, [parts[n] if n in net.active else None for n in node.inputs], rule)
    elif any(not oracle.same(at_x[n], at_r[n]) for n in conditions):

        def by_region(pairs: Mapping[str, Pair]) -> Sent:
            m = folded(s, pairs_of(pairs))[0]
            sent = oracle.walk_region(net.graph, net.nodes, node, at_x, at_r, m, net.active, net.inputs)
            return [(name, (one, one)) for name, one in sent]

        return totals(s), by_region
    else:
        made, back = other(s)

    def named(pairs: Mapping[str, Pair]) -> Sent:
        with np.errstate(all="ignore"):
            sent = back(pairs_of(pairs))
        return [(n, pair) for n, pair, a in zip(node.inputs, sent, s.active, strict=False) if a and pair is not None]

    return made, named


def explain(
    model: onnx.ModelProto,
    x: Mapping[str, Array],
    r: Mapping[str, Array],
    *,
    inputs: Sequence[str],
    output: str,
    seed: Seed,
    rule_of: RuleOf = "rescale",
    half: Array | None = None,
    ties: Ties = "shared",
) -> Explanation:
    """Contributions to `output` (any tensor, its multipliers are m+ = seed + half, m- = seed - half) of `inputs`.

    `x` feeds the graph inputs, `r` gives the reference of each of `inputs`, as in `oracle.explain`. `rule_of` is the
    name of a rule, or says which one a node gets.
    """
    if set(r) != set(inputs):
        raise ValueError(f"references are needed for exactly {sorted(inputs)}, got {sorted(r)}")
    net = prepare(model, x, inputs, output)
    m = seed_of(seed, net.values_x[output])
    h = np.zeros(m.shape) if half is None else np.broadcast_to(half, m.shape)
    return walk(net, net.at(r), output, (m + h, m - h), rule_of, ties)


def seed_of(seed: Seed, y: Array) -> Array:
    start = np.asarray(seed(y) if callable(seed) else seed, dtype=np.float64)
    return np.broadcast_to(start, y.shape) + 0.0


def conservation(e: Explanation) -> dict[str, float]:
    """Per node, by its first output: <m+_y, dy+> + <m-_y, dy-> - sum over inputs (<m+_x, dx+> + <m-_x, dx->)."""

    def total(sent: Sent) -> float:
        return float(sum(times(pair, e.parts[name]).sum() for name, pair in sent))

    return {node: total(given) - total(passed) for node, (given, passed) in e.sent.items()}


def integrated_gradients(
    model: onnx.ModelProto,
    x: Mapping[str, Array],
    r: Mapping[str, Array],
    *,
    inputs: Sequence[str],
    output: str,
    seed: Seed,
    intervals: int,
) -> Explanation:
    """(x - r) times the mean gradient at r + (k - 1/2)/n (x - r), k = 1 ... n: the midpoint rule (METHOD 9)."""
    net = prepare(model, x, inputs, output)
    at_r, m = net.at(r), seed_of(seed, net.values_x[output])
    result = walk(net, at_r, output, (m, m), "gradient", "shared")
    slopes = {name: np.zeros(result.multipliers[name].shape) for name in inputs}
    for k in range(1, intervals + 1):
        share_of_x = (k - 0.5) / intervals
        point = {name: at_r[name] + share_of_x * (net.values_x[name] - at_r[name]) for name in inputs}
        values = net.at(point)
        here = walk(replace(net, values_x=values), values, output, (m, m), "gradient", "shared")
        slopes = {name: slope + here.multipliers[name] / intervals for name, slope in slopes.items()}
    result.multipliers, result.halves, result.sent = slopes, {name: 0 * v for name, v in slopes.items()}, {}
    result.contributions = {name: times((m, m), result.parts[name]) for name, m in slopes.items()}
    change = times((m, m), split(difference(net.values_x[output], at_r[output])))
    result.gap = float(change.sum() - sum(c.sum() for c in result.contributions.values()))
    return result


# ------------------------------------------------------------------------------------------------------------
# Choices around the walk
# ------------------------------------------------------------------------------------------------------------
def without_common(seed: Array, axis: int = -1) -> Array:
    """The seed without what all K classes share: of a one-hot seed onehot - 1/K (LIFTPAD eq. 19, DeepLIFT 3.6)."""
    return np.asarray(seed - np.mean(seed, axis=axis, keepdims=True))


def genomics(model: onnx.ModelProto) -> Callable[[onnx.NodeProto], str]:
    """RevealCancel for a nonlinearity that a dense layer feeds, Rescale for all others (METHOD 3).

    The look back passes BatchNormalization, Identity, Dropout, and the addition of a constant.
    """
    graph = oracle.load(model)
    maker = {name: node for node in graph.nodes for name in node.outputs}
    data = {entry.name for entry in model.graph.input} - set(graph.constants)
    for node in graph.nodes:
        data |= set(node.outputs) if data & set(node.inputs) else set()

    def dense(name: str) -> bool:
        node = maker.get(name)
        if node is None:
            return False
        if node.op in ("Gemm", "MatMul"):
            return len(data & set(node.inputs[:2])) == 1
        if node.op in ("BatchNormalization", "Identity", "Dropout"):
            return dense(node.inputs[0])
        moving = data & set(node.inputs)
        return node.op == "Add" and len(moving) == 1 and dense(moving.pop())

    return lambda proto: "reveal-cancel" if dense(proto.input[0]) else "rescale"


def normalise_weights(model: onnx.ModelProto, name: str, axis: int, total: float = 1.0) -> onnx.ModelProto:
    """The model with mean-normalised weights in the layers that read input `name` (LIFTPAD 2.6, eq. 20).

    `axis` is the input's axis along which the values of every position sum to `total`. For each filter and position,
    mu = mean of W along it; W - mu, b + total * sum of mu. Conv needs all of the axis in each window, and no padding.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    arrays = {t.name: oracle.widen(numpy_helper.to_array(t)) for t in graph.initializer}
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if name not in node.input or node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        weight = arrays[node.input[1]]
        factor = 1.0
        if node.op_type == "Conv":
            at = axis % weight.ndim
            if any(attributes.get("pads", ())) or attributes.get("group", 1) != 1 or "auto_pad" in attributes:
                raise NotImplementedError("a padded or grouped Conv does not see the whole sum")
            mean = weight.mean(axis=at, keepdims=True)
            shift = mean.sum(axis=tuple(range(1, weight.ndim)))
        else:
            at = weight.ndim - (1 if attributes.get("transB") else 2)
            mean = weight.mean(axis=at, keepdims=True)
            shift = mean.sum(axis=at)
            factor = attributes.get("alpha", 1.0) / attributes.get("beta", 1.0)
        bias = total * factor * shift
        give_array(graph, node, 1, f"{node.output[0]}/weights", weight - mean)
        if node.op_type == "MatMul":
            added = helper.make_node("Add", [f"{node.output[0]}/normalised", ""], [node.output[0]])
            node.output[0] = added.input[0]
            give_array(graph, added, 1, f"{added.output[0]}/bias", bias)
            nodes.append(added)
        else:
            old = arrays[node.input[2]] if len(node.input) > 2 else 0.0
            del node.input[2:]
            node.input.append("")
            give_array(graph, node, 2, f"{node.output[0]}/bias", old + bias)
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def give_array(graph: onnx.GraphProto, node: onnx.NodeProto, position: int, name: str, value: Array) -> None:
    """A new float64 initializer as an input of `node`."""
    node.input[position] = name
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
