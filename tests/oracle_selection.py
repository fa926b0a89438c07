"""The oracle where masks and indices depend on the data, and for TopK: element by element, with Python loops.

What a consumer's values and its selection contribute are the two players' Shapley values, from the operator itself
run at all four mixtures. For every node of the condition it is *listed* which input elements an output element is made
of (by numbering them), and its contribution is divided among those in proportion to their squared changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import oracle
from oracle import Array, Multipliers, Node, Site, difference, unbroadcast

ELEMENTWISE = set(
    "Equal Less LessOrEqual Greater GreaterOrEqual IsNaN IsInf And Or Xor Not Cast Identity Sign Abs Neg Add Sub Mul "
    "Div Mod Pow Sum Min Max Clip BitwiseAnd BitwiseOr BitwiseXor BitwiseNot BitShift Where".split()
)
MOVED = set("Reshape Flatten Squeeze Unsqueeze Transpose Expand Slice Tile Trilu Pad Gather GatherElements".split())
FAR = 100
"""A branch that is not selected counts up to so many times what is."""

Element = tuple[int, int]
"""The number of an input and the flat number of an element of it."""


# --- what an element is made of --------------------------------------------------------------------------------------


def numbers(shape: Sequence[int]) -> Array:
    return np.arange(int(np.prod(shape))).reshape(shape)


def copies(shape: Sequence[int], of: Sequence[int]) -> list[int]:
    """Which element of a broadcast tensor is at every place."""
    return [int(n) for n in np.broadcast_to(numbers(shape), of).ravel()]


def rows(shape: Sequence[int], axes: Sequence[int]) -> list[list[int]]:
    """The elements of every row along `axes`, in the order of the output."""
    found: dict[tuple[int, ...], list[int]] = {}
    for flat, place in enumerate(np.ndindex(*shape)):
        found.setdefault(tuple(0 if axis in axes else at for axis, at in enumerate(place)), []).append(flat)
    return list(found.values())


def made_of(node: Node, output: int, varying: Sequence[int], s: Site) -> Iterator[list[Element]]:
    """For every element of an output, the input elements that it is made of."""
    op, x, y = node.op, s.x, s.y[output]
    if op == "Where":
        places = {k: copies(s.xr(k)[0].shape, y.shape) for k in range(3)}
        test, test0 = (np.broadcast_to(t, y.shape).ravel() for t in s.xr(0))
        for e in range(y.size):
            k = 0 if test[e] != test0[e] else 1 if test[e] else 2
            yield [(k, places[k][e])]
    elif op in ELEMENTWISE:
        places = {k: copies(s.xr(k)[0].shape, y.shape) for k in varying}
        for e in range(y.size):
            yield [(k, places[k][e]) for k in varying]
    elif op in ("ArgMax", "ArgMin"):
        along = rows(s.xr()[0].shape, [node.attr("axis") % s.xr()[0].ndim])
        for e, row in enumerate(along):
            yield [(0, row[at]) for at in {int(s.y[0].flat[e]), int(s.y0[0].flat[e])}]
    elif op.startswith("Reduce"):
        for row in rows(s.xr()[0].shape, oracle.axes_of(node, x, s.xr()[0].ndim)):
            yield [(0, at) for at in row]
    elif op == "TopK":
        axis = node.attr("axis") % s.xr()[0].ndim
        whole = rows(s.xr()[0].shape, [axis])
        row_of = np.broadcast_to(
            np.arange(len(whole)).reshape([1 if a == axis else n for a, n in enumerate(y.shape)]), y.shape
        )
        for e in range(y.size):
            yield [(0, at) for at in whole[int(row_of.flat[e])]]
    elif op == "CumSum":
        axis, shape = int(np.asarray(x[1])) % y.ndim, y.shape
        number = numbers(shape)
        for place in np.ndindex(*shape):
            counted = range(place[axis] + 1) if not node.attr("reverse", 0) else range(place[axis], shape[axis])
            line = [int(number[(*place[:axis], at, *place[axis + 1 :])]) for at in counted]
            yield [(0, n) for n in line if not (node.attr("exclusive", 0) and n == int(number[place]))]
    elif op in ("Gather", "GatherElements", "GatherND", "OneHot") and (0 if op == "OneHot" else 1) in varying:
        origin = None
        if op != "OneHot" and 0 in varying:
            origin = oracle.forward_node(node, [numbers(s.xr()[0].shape), x[1]])[0].ravel()
        k = 0 if op == "OneHot" else 1
        index, index0 = s.xr(k)
        for e, places in enumerate(pointed_by(node, s)):
            if origin is not None and all(index.flat[at] == index0.flat[at] for at in places):
                yield [(0, int(origin[e]))]
            else:
                yield [(k, at) for at in places]
    elif op in (*MOVED, "Concat", "Split"):
        ends = np.cumsum([0, *(s.xr(k)[0].size for k in varying)])
        numbered = list(x)
        for k, begin in zip(varying, ends, strict=False):
            numbered[k] = numbers(s.xr(k)[0].shape) + begin
        for k, value in enumerate(numbered):
            if op == "Concat" and k not in varying and value is not None:
                numbered[k] = np.full(value.shape, -1)
        for n in oracle.forward_node(node, numbered)[output].ravel().astype(int):
            which = int(np.searchsorted(ends, n, side="right")) - 1
            yield [(varying[which], int(n - ends[which]))] if n >= 0 else []
    else:
        raise NotImplementedError(f"the oracle does not know conditions that {node} makes")


def pointed_by(node: Node, s: Site) -> Iterator[list[int]]:
    """For every element of y, the elements of the index that it is taken at."""
    k = 0 if node.op == "OneHot" else 1
    number = numbers(s.xr(k)[0].shape)
    for place in np.ndindex(*s.y[0].shape):
        if node.op == "OneHot":
            axis = node.attr("axis") % len(place)
            yield [int(number[place[:axis] + place[axis + 1 :]])]
        elif node.op == "Gather":
            axis = node.attr("axis") % s.xr()[0].ndim
            yield [int(number[place[axis : axis + number.ndim]])]
        elif node.op == "GatherND":
            yield [int(n) for n in number[place[: number.ndim - 1]]]
        else:
            yield [int(number[place])]


def divided(c: Array, made: Iterator[list[Element]], s: Site) -> dict[int, Array]:
    """The contributions `c` of output elements, handed to the input elements that they are made of."""
    found: dict[int, Array] = {}
    for amount, elements in zip(c.ravel(), made, strict=True):
        if amount == 0:
            continue
        squares = [changed(s, k, at) ** 2 for k, at in elements]
        assert sum(squares) > 0, f"{s.node}: an output changed although none of its inputs did"
        for (k, at), square in zip(elements, squares, strict=True):
            found.setdefault(k, np.zeros(s.xr(k)[0].size))[at] += amount * square / sum(squares)
    return {k: share.reshape(s.xr(k)[0].shape) for k, share in found.items()}


def changed(s: Site, k: int, at: int) -> float:
    x, r = (v.flat[at] for v in s.xr(k))
    return 0.0 if x == r else float(np.clip(float(x) - float(r), -1e30, 1e30))


# --- consumers -------------------------------------------------------------------------------------------------------


def where(s: Site, whole: bool) -> tuple[Multipliers, Array]:
    """Multipliers of the branches, and what every element of the condition contributes.

    `whole`: the change of a switched element is all the condition's doing.
    """
    m_y, shape = s.m[0], s.y[0].shape
    (c, c0), (a, a0), (b, b0) = ([np.broadcast_to(v, shape) for v in s.xr(k)] for k in range(3))
    m_a, m_b, amount = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for e in np.ndindex(*shape):
        if c[e] == c0[e]:
            (m_a if c[e] else m_b)[e] = m_y[e]
            continue
        y, y0 = (a[e], b0[e]) if c[e] else (b[e], a0[e])
        hidden, hidden0 = (b[e], a0[e]) if c[e] else (a[e], b0[e])
        if whole or not abs(hidden) + abs(hidden0) <= FAR * (abs(y) + abs(y0)):
            amount[e] = m_y[e] * (y - y0)
        else:
            m_a[e] = m_b[e] = m_y[e] / 2
            amount[e] = m_y[e] * (y - y0 - (a[e] - a0[e]) / 2 - (b[e] - b0[e]) / 2)
    sent = [None, *(unbroadcast(m, s.xr(k)[0].shape) for k, m in ((1, m_a), (2, m_b)))]
    return sent, unbroadcast(amount, s.xr(0)[0].shape)


def linear(s: Site, k: int) -> tuple[Multipliers, Array]:
    """An operator that is linear in its floats: both players' Shapley values, y by y (`k`: the condition)."""
    floats = [i for i, active in enumerate(s.active) if active]

    def run(values: Sequence[Any], condition: Any) -> Array:
        given = [values[i] if i in floats else condition if i == k else v for i, v in enumerate(s.x)]
        return oracle.forward_node(s.node, given)[0]

    both = s.xr(k)
    sent: Multipliers = [None for _ in s.x]
    for i in floats:
        terms = []
        for condition in both:

            def alone(v: Array, i: int = i, condition: Array = condition) -> list[Array]:
                return [run([v if j == i else np.zeros_like(w) for j, w in enumerate(s.x)], condition)]

            terms.append(oracle.probe(alone, s.xr(i)[0].shape, s.m[:1]))
        sent[i] = (terms[0] + terms[1]) / 2
    mixed = [[run(values, condition) for condition in both] for values in (s.x, s.r)]
    amount = s.m[0] * (mixed[0][0] - mixed[0][1] + mixed[1][0] - mixed[1][1]) / 2
    if s.node.op == "Cast":
        return sent, amount
    if s.node.op.startswith("Scatter"):
        return sent, put_apart(s)
    return sent, divided(amount, ([(k, at) for at in places] for places in pointed_by(s.node, s)), s)[k]


def put_apart(s: Site) -> Array:
    """What every index of a scatter contributes: its update is put alone, to either place, at x and at r."""
    (index, index0), amount = s.xr(1), np.zeros(s.xr(1)[0].shape)
    for values in (s.x, s.r):
        data, updates = oracle.cast(Array, values[0]), oracle.cast(Array, values[2])
        for e in np.ndindex(*updates.shape):
            ys = []
            for places in (index, index0):
                y = data.copy()
                if s.node.op == "ScatterND":
                    place = tuple(places[e[: places.ndim - 1]]) + e[places.ndim - 1 :]
                else:
                    axis = s.node.attr("axis") % y.ndim
                    place = (*e[:axis], places[e], *e[axis + 1 :])
                y[place] = updates[e] + (y[place] if s.node.attr("reduction") == "add" else 0)
                ys.append(y)
            effect = float(np.sum(s.m[0] * (ys[0] - ys[1]))) / 2
            if s.node.op != "ScatterND":
                amount[e] += effect
            else:
                at = e[: index.ndim - 1]
                squares = (index[at] - index0[at]).astype(float) ** 2
                amount[at] += effect * squares / max(squares.sum(), 1e-300)
    return amount


# --- the walk --------------------------------------------------------------------------------------------------------


def walk(
    nodes: Sequence[Node],
    node: Node,
    at_x: Mapping[str, Array],
    at_r: Mapping[str, Array],
    multipliers: Mapping[str, Array],
    active: set[str],
) -> list[tuple[str, Array]]:
    """What a node whose mask or index changed sends to its float inputs, and to the floats that these are made of."""

    def site_of(maker: Node) -> Site:
        values = [[at[n] if n else None for n in maker.inputs] for at in (at_x, at_r)]
        outputs = [[at[n] if n else np.zeros(0) for n in maker.outputs] for at in (at_x, at_r)]
        m = [multipliers[n] if n in multipliers else np.zeros_like(at_x[n], dtype=float) for n in maker.outputs if n]
        return Site(maker, *values, *outputs, m, [n in active for n in maker.inputs], "shared")

    s = site_of(node)
    (k,) = [i for i, n in enumerate(node.inputs) if n and n not in active and not oracle.same(at_x[n], at_r[n])]
    makers = {name: maker for maker in nodes for name in maker.outputs if name}
    behind, stack, roots = set(), [node.inputs[k]], set()
    while stack:
        name = stack.pop()
        if name in active:
            roots.add(name)
        elif name in makers and name not in behind:
            behind.add(name)
            stack += [n for n in makers[name].inputs if n]
    masks = [maker for maker in nodes if behind & set(maker.outputs)]
    lone = len(roots) == 1 and all(maker.op in ELEMENTWISE for maker in masks if roots_reach(maker, roots, masks))
    sent, amount = where(s, lone) if node.op == "Where" else linear(s, k)
    given: dict[str, Array] = {node.inputs[k]: amount}
    for maker in reversed(masks):
        inner = site_of(maker)
        varying = [i for i, n in enumerate(maker.inputs) if n and not oracle.same(at_x[n], at_r[n])]
        for output, name in enumerate(maker.outputs):
            if name in roots or name not in given or not np.any(given[name]):
                continue
            for i, share in divided(given[name], made_of(maker, output, varying, inner), inner).items():
                given[maker.inputs[i]] = given.get(maker.inputs[i], 0) + share
    result = [(n, m) for n, m in zip(node.inputs, sent, strict=True) if n in active and m is not None]
    for root in sorted(roots & set(given)):
        d = difference(at_x[root], at_r[root])
        result.append((root, np.where(given[root] == 0, 0, given[root] / np.where(d == 0, 1, d))))
    oracle.check_node_conservation(
        str(node),
        [(multipliers[node.outputs[0]], at_x[node.outputs[0]], at_r[node.outputs[0]])],
        [(m, at_x[n], at_r[n]) for n, m in result],
    )
    return result


def roots_reach(maker: Node, roots: set[str], masks: Sequence[Node]) -> bool:
    """Whether a node depends on a root: constants are made by nodes too."""
    reached = set(roots)
    for mask in masks:
        if reached & set(mask.inputs):
            reached |= set(mask.outputs)
    return bool(reached & set(maker.inputs))


# --- TopK ------------------------------------------------------------------------------------------------------------


def top_k(s: Site) -> Multipliers:
    """Rank by rank: the first place, the other place, then all places of the row (docstring of rules/order.py)."""
    s.only(0)
    (x, r), axis = s.xr(), s.node.attr("axis") % s.xr()[0].ndim
    sign = 1 if s.node.attr("largest") else -1
    g = np.zeros(x.shape)
    for line in product(*(range(1 if a == axis else n) for a, n in enumerate(x.shape))):
        row = tuple(slice(None) if a == axis else at for a, at in enumerate(line))
        xs, rs = x[row], r[row]
        ds = [difference(a, b).item() for a, b in zip(xs, rs, strict=True)]
        for i, j, m in zip(s.y[1][row], s.y0[1][row], s.m[0][row], strict=True):
            left = xs[i] - rs[j]
            tied = rs[i] == rs[j]
            if left == 0:
                g[row][i] += m * tied
                continue
            for place in (i, j) if tied or sign * left > 0 else (j, i):
                if left * ds[place] > 0:
                    part = np.sign(left) * min(abs(left), abs(ds[place]))
                    g[row][place] += m * part / ds[place]
                    left -= part
            if left:
                for place, d in enumerate(ds):
                    g[row][place] += m * left * d / sum(e * e for e in ds)
    return [g, None]


oracle.RULES["TopK"] = top_k
oracle.SWITCHED.append(walk)
