"""The oracle's scatters, resizes and paddings (see oracle.py): loops over places and players, weights by the formula.

Importing the module fills the tables of oracle.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import oracle
from oracle import Array, Multipliers, Node, Site

# --- Resize: the weights of every axis, from the definition of the operator -------------------------------------------


def coordinate(j: int, mode: str, scale: float, before: int, after: int, region: Sequence[float]) -> float:
    """Where place j of an axis lies in the original axis."""
    match mode:
        case "align_corners":
            return j * (before - 1) / (after - 1) if after > 1 else 0.0
        case "asymmetric":
            return j / scale
        case "tf_half_pixel_for_nn":
            return (j + 0.5) / scale
        case "tf_crop_and_resize":
            step = (region[1] - region[0]) / (after - 1) if after > 1 else 0.0
            start = region[0] if after > 1 else (region[0] + region[1]) / 2
            return (before - 1) * (start + j * step)
        case "pytorch_half_pixel" if after == 1:
            return 0.0
        case "half_pixel_symmetric":
            offset = before / 2 * (1 - after / (scale * before))
            return offset + (j + 0.5) / scale - 0.5
    return (j + 0.5) / scale - 0.5


def nearest(at: float, mode: str) -> int:
    """The place chosen, halves up or down."""
    return {
        "round_prefer_floor": math.ceil(at - 0.5),
        "round_prefer_ceil": math.floor(at + 0.5),
        "floor": math.floor(at),
        "ceil": math.ceil(at),
    }[mode]


def triangle(t: float) -> float:
    return max(0.0, 1 - abs(t))


def bicubic(a: float) -> Callable[[float], float]:
    def kernel(t: float) -> float:
        t = abs(t)
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0

    return kernel


def axis_weights(node: Node, scale: float, before: int, after: int, region: Sequence[float]) -> Array:
    """[after, before]: every place as a mean of the original ones, those outside being copies of the border."""
    kind, mode = node.attr("mode"), node.attr("coordinate_transformation_mode")
    kernel = triangle if kind == "linear" else bicubic(node.attr("cubic_coeff_a"))
    narrow = min(scale, 1.0) if node.attr("antialias") else 1.0
    w = np.zeros((after, before))
    for j in range(after):
        at = coordinate(j, mode, scale, before, after, region)
        if mode == "tf_crop_and_resize" and not 0 <= at <= before - 1:
            continue
        if kind == "nearest":
            w[j, np.clip(nearest(at, node.attr("nearest_mode")), 0, before - 1)] = 1
            continue
        reach = math.ceil(2 / narrow) + 1
        taps = {i: kernel(narrow * (i - at)) for i in range(math.floor(at) - reach, math.ceil(at) + reach + 1)}
        if node.attr("exclude_outside"):
            taps = {i: tap for i, tap in taps.items() if 0 <= i < before}
        for i, tap in taps.items():
            w[j, np.clip(i, 0, before - 1)] += tap / sum(taps.values())
    return w


def resize(node: Node, values: Sequence[Array | None]) -> list[Array]:
    x, roi, scales, sizes = (*values, None, None, None)[:4]
    assert x is not None
    axes = [int(axis) % x.ndim for axis in node.attrs.get("axes") or range(x.ndim)]
    before = [x.shape[axis] for axis in axes]
    if sizes is not None and sizes.size:
        after = [int(size) for size in sizes]
        factors = [size / extent for size, extent in zip(after, before, strict=True)]
        policy = node.attr("keep_aspect_ratio_policy")
        if policy != "stretch":
            factors = [min(factors) if policy == "not_larger" else max(factors)] * len(axes)
            after = [math.floor(factor * extent + 0.5) for factor, extent in zip(factors, before, strict=True)]
    else:
        assert scales is not None
        factors = [float(scale) for scale in scales]
        after = [math.floor(factor * extent) for factor, extent in zip(factors, before, strict=True)]
    y, inside = x, np.ones([1] * x.ndim)
    for k, axis in enumerate(axes):
        if factors[k] == 1:  # such an axis is left as it is, whatever the coordinates
            continue
        region = (0.0, 1.0) if roi is None or not roi.size else (float(roi[k]), float(roi[k + len(axes)]))
        w = axis_weights(node, factors[k], before[k], after[k], region)
        y = np.moveaxis(np.tensordot(w, y, (1, axis)), 0, axis)
        shape = [after[k] if other == axis else 1 for other in range(x.ndim)]
        inside = inside * w.any(axis=1).reshape(shape)
    return [np.where(inside, y, node.attr("extrapolation_value"))]


# --- scatters: who writes to which place ------------------------------------------------------------------------------


def writers(node: Node, data: Array, indices: Array, updates: Array) -> dict[tuple[int, ...], list[tuple[int, ...]]]:
    """The updates of every place, in their order."""
    found: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for index, place in targets(node, data, indices, updates):
        found.setdefault(place, []).append(index)
    return found


def targets(
    node: Node, data: Array, indices: Array, updates: Array
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every update with its place."""
    for index in np.ndindex(updates.shape):
        if node.op == "ScatterElements":
            axis = int(node.attr("axis")) % data.ndim
            place = list(index)
            place[axis] = int(indices[index]) % data.shape[axis]
        else:
            lead = indices.ndim - 1
            rows = [int(i) % extent for i, extent in zip(indices[index[:lead]], data.shape, strict=False)]
            place = [*rows, *index[lead:]]
        yield index, tuple(place)


def shapley_of_product(xs: Sequence[float], rs: Sequence[float]) -> list[float]:
    """For every factor, its weight averaged over all orders in which the factors turn from r to x."""
    weights = [0.0] * len(xs)
    orders = list(itertools.permutations(range(len(xs))))
    for order in orders:
        values = list(rs)
        for k in order:
            values[k] = 1.0
            weights[k] += math.prod(values) / len(orders)
            values[k] = xs[k]
    return weights


def rule_scatter(s: Site) -> Multipliers:
    """One place after the other: its value and its updates are the players."""
    s.only(0, 2)
    (data, data_r), (updates, updates_r) = s.xr(0), s.xr(2)
    reduction, m = s.node.attr("reduction"), s.m[0]
    m_data, m_updates = m.copy(), np.zeros(updates.shape)
    for place, indices in writers(s.node, data, cast(Array, s.x[1]), updates).items():
        xs = [float(data[place]), *(float(updates[i]) for i in indices)]
        rs = [float(data_r[place]), *(float(updates_r[i]) for i in indices)]
        match reduction:
            case "none":
                weights = [0.0] * (len(xs) - 1) + [1.0]
            case "add":
                weights = [1.0] * len(xs)
            case "mul":
                weights = shapley_of_product(xs, rs)
            case _:
                sign = 1 if reduction == "max" else -1
                shared = oracle.share_maximum([sign * x for x in xs], [sign * r for r in rs], 1.0, s.ties)
                weights = [shared.get(k, 0.0) for k in range(len(xs))]
        m_data[place] = m[place] * weights[0]
        for i, weight in zip(indices, weights[1:], strict=True):
            m_updates[i] = m[place] * weight
    return [m_data if s.active[0] else None, None, m_updates if s.active[2] else None]


# --- linear in several inputs -----------------------------------------------------------------------------------------


def linear_in(*positions: int) -> Callable[[Site], Multipliers]:
    """An operator that is linear in these inputs together: unit vectors in one, zeros in the others."""

    def rule(s: Site) -> Multipliers:
        s.only(*positions)
        result: Multipliers = [None] * len(s.x)
        zeros = [np.zeros_like(v) if k in positions and v is not None else v for k, v in enumerate(s.x)]
        for k in positions:
            if k < len(s.x) and s.active[k]:

                def f(v: Array, k: int = k) -> list[Array]:
                    return oracle.forward_node(s.node, [*zeros[:k], v, *zeros[k + 1 :]])

                result[k] = oracle.probe(f, s.xr(k)[0].shape, s.m)
        return result

    return rule


def one_hot(node: Node, values: Sequence[Array | None]) -> list[Array]:
    """By loops; an index outside of [-depth, depth) points nowhere."""
    indices, depth, pair = (cast(Array, v) for v in values[:3])
    size = int(depth.item())
    axis = int(node.attr("axis")) % (indices.ndim + 1)
    shape = [*indices.shape[:axis], size, *indices.shape[axis:]]
    y: Any = np.full(shape, pair[0])
    for place in np.ndindex(indices.shape):
        index = int(indices[place])
        if -size <= index < size:
            y[(*place[:axis], index % size, *place[axis:])] = pair[1]
    return [y]


def pad(node: Node, values: Sequence[Array | None]) -> list[Array]:
    """NumPy pads; what is cut off is cut first."""
    x, pads, value, axes = (*values, None, None)[:4]
    assert x is not None
    assert pads is not None
    widths = np.zeros((x.ndim, 2), np.int64)
    widths[slice(None) if axes is None else axes] = pads.reshape(2, -1).T
    cut = [slice(max(-int(a), 0), n - max(-int(b), 0)) for n, (a, b) in zip(x.shape, widths, strict=True)]
    mode = str(node.attr("mode"))
    options: Any = {"constant_values": 0 if value is None else value.item()} if mode == "constant" else {}
    return [np.pad(x[tuple(cut)], np.maximum(widths, 0), mode=cast(Any, mode), **options)]


oracle.FORWARD.update({"Resize": resize, "OneHot": one_hot, "Pad": pad})
oracle.STOPS.discard("OneHot")
oracle.RULES.update(
    {
        **dict.fromkeys(("ScatterElements", "ScatterND"), rule_scatter),
        "OneHot": linear_in(2),
        "Pad": linear_in(0, 2),
    }
)
