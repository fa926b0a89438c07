"""Maximum: the stable cross-max rule (LIFTPAD 2.3.2, DFD 2.3.2, METHOD section 4).

Among the places of one window let y = x_i be the maximum at the input and y0 = r_j the one at the reference. With
k = max(y, y0), the part (k - y0) goes to i and the part (y - k) to j. One of them is 0, so that one place p takes all:

    p = i where y > y0 or where r reaches y0 at i too, and j elsewhere;  m_p = dy/dx_p m_y, within [0, 1] m_y.

Where dy = 0 the factor is 1 if r reaches y0 at i, which is the limit x = r, and 0 if not. On a uniform reference this
is DFD's m = 1{x_i = y}. What a place wins in overlapping windows adds up. A minimum is the same with dy < 0.

`cross-max-first` (captum, shap, tangermeme) takes the first maximum of r for j even where r reaches y0 at i too.
The papers give all to i: `indicator` with the factor dy/dx_i (LIFTPAD eq. 13), which may have the wrong sign and is
singular where r does not peak at i, so that beyond `SINGULAR` the default rule takes over; and `argmax` with the
factor 1 (DFD eq. 13, the original DeepLIFT), which adds up only where r peaks at i.

Signed parts follow their place: dy± = dx±_p dy/dx_p.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce

import numpy as np

from onnxlift.functions import (
    absolute,
    arange,
    cast,
    clip,
    gather_elements,
    logical_and,
    logical_or,
    maximum,
    regroup,
    scatter_add,
    shape_of,
    transpose,
    unsqueeze,
    where,
    widen,
)
from onnxlift.registry import rule
from onnxlift.rules.axes import Axes, Rows, rows_of
from onnxlift.rules.linear import summed
from onnxlift.rules.slopes import quotient
from onnxlift.signed import Parts
from onnxlift.site import Site, Value
from onnxlift.tensor import BOOL, INT64, Array, Tensor, limits

INT32 = np.dtype(np.int32)
MINIMA = ("Min", "ReduceMin")
SINGULAR = 100
"""The largest factor dy/dx_i of LIFTPAD's rule: rounding errors grow by as much."""

EQUATIONS = {
    "cross-max": "m_p = dy/dx_p m_y for one place p: i where y > y0, else j (LIFTPAD 2.3.2, METHOD 4).",
    "cross-max-first": "As cross-max, with j the first maximum of r wherever r ties (captum, shap, tangermeme).",
    "indicator": "m_i = dy/dx_i m_y for the maximum i of x, where |dy| < 100 |dx_i|; else cross-max (LIFTPAD eq. 13).",
    "argmax": "m_i = m_y for the maximum i of x (DFD eq. 13, original DeepLIFT); complete where r peaks there too.",
}

VariantRule = Callable[[Site, str], Sequence[Tensor | None]]
VariantParts = Callable[[Site, str], Sequence[Parts | None]]


def maxima(*ops: str, parts: VariantParts, broadcasts: bool = False) -> Callable[[VariantRule], VariantRule]:
    """Register a rule of `site` and a key of `EQUATIONS` under every one of them."""

    def register(function: VariantRule) -> VariantRule:
        for name, equation in EQUATIONS.items():

            def multipliers(site: Site, variant: str = name) -> Sequence[Tensor | None]:
                return function(site, variant)

            def forward(site: Site, variant: str = name) -> Sequence[Parts | None]:
                return parts(site, variant)

            multipliers.__doc__ = equation
            rule(
                name,
                *ops,
                default=name == "cross-max",
                broadcasts=broadcasts,
                conserves=name != "argmax",
                parts=forward,
            )(multipliers)
        return function

    return register


def winner(site: Site, variant: str, y: Value, i: Tensor, j: Tensor, r_i: Tensor, x_j: Tensor) -> tuple[Tensor, Tensor]:
    """The place p and the factor dy/dx_p, from the places of both maxima and what the other run has there."""
    dy = y.d
    if variant == "argmax":
        return i, dy.emitter.constant(1, dy.dtype)
    tied = i.equals(j) if variant == "cross-max-first" else r_i.equals(y.r)
    at_i = logical_or(dy < 0 if site.op in MINIMA else dy > 0, tied)
    if variant == "indicator":
        at_i = logical_or(at_i, absolute(dy) < absolute(y.x - r_i) * SINGULAR)
    dx = where(at_i, y.x - r_i, x_j - y.r)
    return where(at_i, i, j), quotient(dy, dx, y.x.equals(y.r), cast(tied, dy.dtype))


# --- windows of one tensor -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Routes:
    """Where the windows of a tensor send what they receive: `place` along `axis` of `rows`, times `factor`."""

    rows: Value
    axis: int
    place: Tensor
    factor: Tensor

    def back(self, m: Tensor) -> Tensor:
        """The multipliers of `rows`: what every window's winner gets; what a place wins in several adds up."""
        nothing = widen(self.rows.zeros())
        return cast(scatter_add(nothing, self.place, cast(m * self.factor, nothing.dtype), self.axis), m.dtype)

    def forward(self, part: Tensor) -> Tensor:
        """A part of the windows' differences, from that of `rows`."""
        return gather_elements(part, self.place, self.axis) * self.factor


def routes(site: Site, variant: str, rows: Value, y: Value, places: Value, axis: int) -> Routes:
    """From the places of both runs' maxima in `rows`."""
    i, j, y = places.x, places.full_r, y.map(finite)
    r_i, x_j = gather_elements(rows.full_r, i, axis), gather_elements(rows.x, j, axis)
    return Routes(rows, axis, *winner(site, variant, y, i, j, r_i, x_j))


def finite(y: Tensor) -> Tensor:
    """Of a window of infinities (a mask) the kernels return an infinity or the last number; here it is the latter."""
    return clip(y, -limits(y).largest, limits(y).largest)


def rows_of_maxima(site: Site) -> Rows | None:
    """None where nothing is reduced."""
    if site.op == "GlobalMaxPool":
        return Rows(site.x, list(range(2, site.x.rank)), keepdims=True) if site.x.rank > 2 else None
    return rows_of(Axes(site))


def reduction_routes(site: Site, variant: str, rows: Rows) -> Routes:
    x = rows.value(site.x)
    places = x.map(partial(first_place, "ArgMin" if site.op in MINIMA else "ArgMax", rows.axis))
    return routes(site, variant, x, rows.reduced(site.y), places, rows.axis)


def reduced_parts(site: Site, variant: str) -> list[Parts]:
    rows = rows_of_maxima(site)
    if rows is None:
        return [site.x.parts]
    found = reduction_routes(site, variant, rows)
    return [Parts(*(site.y.like(found.forward(rows.rows(part))) for part in site.x.parts))]


@maxima("ReduceMax", "ReduceMin", "GlobalMaxPool", parts=reduced_parts)
def reduction(site: Site, variant: str) -> list[Tensor]:
    """One window for every output element: the reduced axes."""
    rows = rows_of_maxima(site)
    if rows is None:
        return [site.m]
    return [rows.back(reduction_routes(site, variant, rows).back(rows.output(site.m)))]


def first_place(op: str, axis: int, x: Tensor, keepdims: bool = True) -> Tensor:
    """Where the first maximum (or minimum) lies along `axis`."""
    assert x.shape is not None
    shape = (*x.shape[:axis], *([1] if keepdims else []), *x.shape[axis + 1 :])
    return x.emitter.op(op, x, axis=axis, keepdims=int(keepdims), shape=shape)


def as_planes(t: Tensor) -> Tensor:
    return regroup(t, 2, [-1])


def pool_routes(site: Site, variant: str) -> Routes:
    """Windows of any shape, in planes: a channel of a sample each."""
    tiles = tiling(site)
    places = site.x.map(partial(pooled_places, site) if tiles is None else partial(tiled_places, tiles))
    return routes(site, variant, site.x.map(as_planes), site.y.map(as_planes), places, 2)


def pooled_parts(site: Site, variant: str) -> list[Parts]:
    found = pool_routes(site, variant)
    return [Parts(*(site.y.like(found.forward(as_planes(part))) for part in site.x.parts))]


@maxima("MaxPool", parts=pooled_parts)
def max_pool(site: Site, variant: str) -> list[Tensor]:
    """Windows of any shape; what a place wins in several of them adds up."""
    return [site.x.like(pool_routes(site, variant).back(as_planes(site.m)))]


def pooled_places(site: Site, x: Tensor) -> Tensor:
    """The first maximum of every window as an index into its plane (a channel of a sample): [N, C, windows]."""
    attributes = {name: value for name, value in site.attributes.items() if name != "storage_order"}
    outputs = x.emitter.ops("MaxPool", x, shapes=[None, None], dtypes=[x.dtype, INT64], **attributes)
    n, c, area = shape_of(x, 0, 1), shape_of(x, 1, 2), shape_of(x, 2)
    if area.value is not None:
        area = x.emitter.constant(area.value.prod(), INT64)
    else:
        area = x.emitter.op("ReduceProd", area, keepdims=0, shape=())
    plane = unsqueeze(arange(n), [1]) * c + arange(c)
    assert x.shape is not None
    index = x.emitter.op("Reshape", outputs[1], x.emitter.ints([0, 0, -1]), shape=(*x.shape[:2], None))
    index = x.emitter.op("Sub", index, unsqueeze(plane * area, [2]), shape=index.shape)
    return maximum(index, 0)  # a kernel may call it -1 in a window of minus infinity


@dataclass(frozen=True)
class Tiles:
    """Windows side by side along one axis: `count` of `size` places each, of `extent` in all."""

    count: int
    size: int
    extent: int


def tiling(site: Site) -> list[Tiles] | None:
    """The windows per spatial axis where they are tiles of a known number; None where they are not."""
    sizes = [int(size) for size in site.attribute("kernel_shape")]
    ones = [1] * len(sizes)
    x, y = ((value.shape or ())[2:] for value in (site.x, site.y))
    apart = list(site.attribute("strides", ones)) == sizes and list(site.attribute("dilations", ones)) == ones
    if not apart or any(site.attribute("pads", [])) or not len(x) == len(y) == len(sizes):
        return None
    tiles = [Tiles(n // k, k, n) for n, k in zip(x, sizes, strict=True) if isinstance(n, int)]
    return tiles if tuple(tile.count for tile in tiles) == y else None


def tiled_places(tiles: Sequence[Tiles], x: Tensor) -> Tensor:
    """As `pooled_places`, for tiles: the index within a tile, moved to where the tile begins."""
    emitter, axes = x.emitter, range(2, 2 + len(tiles))
    counts, covered = [tile.count for tile in tiles], [tile.count * tile.size for tile in tiles]
    if any(tile.count * tile.size < tile.extent for tile in tiles):
        bounds = map(emitter.ints, ([0] * len(tiles), covered, axes))
        x = emitter.op("Slice", x, *bounds, shape=(*(x.shape or ())[:2], *covered))
    split = regroup(x, 2, [extent for tile in tiles for extent in (tile.count, tile.size)])
    order = [0, 1, *range(2, split.rank, 2), *range(3, split.rank, 2)]
    windows = regroup(transpose(split, order), 2, [*counts, math.prod(tile.size for tile in tiles)])
    within = first_place("ArgMax", axes.stop, windows, keepdims=False)
    steps = [math.prod(tile.extent for tile in tiles[axis + 1 :]) for axis in range(len(tiles))]
    if len(tiles) > 1:
        table = _grid([tile.size for tile in tiles], steps)
        within = emitter.op("Gather", emitter.ints(table.ravel().tolist()), within, axis=0, shape=within.shape)
    starts = _grid(counts, [tile.size * step for tile, step in zip(tiles, steps, strict=True)])
    return regroup(within + emitter.constant(starts, INT64), 2, [-1])


def _grid(counts: Sequence[int], steps: Sequence[int]) -> Array:
    """The flat index of every point of a grid with these `steps` between its points."""
    return np.asarray(reduce(np.add.outer, [np.arange(n) * step for n, step in zip(counts, steps, strict=True)]))


# --- several tensors -------------------------------------------------------------------------------------------------


def shares(site: Site, variant: str) -> list[Tensor | None]:
    """dy/dx_p where an operand is the place p, 0 elsewhere; None for an operand that carries no importance."""
    values, active = site.operands, site.active
    if len(active) == 1:
        return [lone_operand(site, variant, values, n) if n in active else None for n in range(len(values))]
    y = site.y
    xs, rs = [value.x for value in values], [value.r for value in values]
    i, r_i = first_operand(xs, y.x, rs)
    j, x_j = first_operand(rs, y.r, xs)
    p, factor = winner(site, variant, y, i, j, r_i, x_j)
    return [where(p.equals(index), factor, 0.0) if index in active else None for index in range(len(values))]


def operand_parts(site: Site, variant: str) -> list[Parts]:
    terms = [
        Parts(*(part * share for part in site.input(index).parts))
        for index, share in enumerate(shares(site, variant))
        if share is not None
    ]
    return summed(site, terms)


@maxima("Max", "Min", parts=operand_parts, broadcasts=True)
def operands(site: Site, variant: str) -> list[Tensor | None]:
    """One window for every output element: the operands."""
    return [None if share is None else site.m * share for share in shares(site, variant)]


def first_operand(tensors: Sequence[Tensor], top: Tensor, others: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The number of the first tensor that reaches `top`, and what `others` have there."""
    last = len(tensors) - 1
    number, there = top.emitter.constant(last, INT32), others[last]
    for index in reversed(range(last)):
        hit = tensors[index].equals(top)
        number, there = where(hit, index, number), where(hit, others[index], there)
    return number, there


def lone_operand(site: Site, variant: str, values: Sequence[Value], index: int) -> Tensor:
    """Among constants: dy/dx, and at x = r: 1 where the operand is the first to reach the maximum."""
    x, y, emitter = values[index], site.y, site.emitter
    wins = emitter.constant(True, BOOL)
    for number, other in enumerate(values):
        if number != index:
            low, high = (x.x, other.x) if site.op == "Min" else (other.x, x.x)
            wins = logical_and(wins, low < high if number < index else low <= high)
    at_x = cast(wins, x.dtype)
    if variant == "argmax":
        return at_x
    return quotient(y.d, x.d, x.x.equals(x.r), at_x)
