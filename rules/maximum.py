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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from onnxlift.functions import (
    absolute,
    cast,
    clip,
    gather_elements,
    logical_and,
    logical_or,
    scatter_add,
    where,
    widen,
)
from onnxlift.registry import rule
from onnxlift.rules.axes import Axes, Rows, rows_of
from onnxlift.rules.linear import summed
from onnxlift.rules.slopes import quotient
from onnxlift.signed import Parts
from onnxlift.site import Site, Value
from onnxlift.tensor import BOOL, Tensor, limits

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


@dataclass(frozen=True)
class Winner:
    """The place p, of the place i of x's maximum and the place j of r's: i where `at_i` (None: everywhere); dy/dx_p."""

    at_i: Tensor | None
    factor: Tensor

    def place(self, i: Tensor, j: Tensor) -> Tensor:
        """What belongs to p, of what belongs to i and to j."""
        return i if self.at_i is None else where(self.at_i, i, j)


def winner(site: Site, variant: str, y: Value, i: Tensor, j: Tensor, r_i: Tensor, x_j: Tensor) -> Winner:
    """From the places of both maxima and what the other run has there."""
    dy = y.d
    if variant == "argmax":
        return Winner(None, dy.emitter.constant(1, dy.dtype))
    tied = i.equals(j) if variant == "cross-max-first" else r_i.equals(y.r)
    at_i = logical_or(dy < 0 if site.op in MINIMA else dy > 0, tied)
    if variant == "indicator":
        at_i = logical_or(at_i, absolute(dy) < absolute(y.x - r_i) * SINGULAR)
    dx = where(at_i, y.x - r_i, x_j - y.r)
    return Winner(at_i, quotient(dy, dx, y.x.equals(y.r), cast(tied, dy.dtype)))


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


def winner_of_rows(site: Site, variant: str, rows: Value, y: Value, places: Value, axis: int) -> Winner:
    """From the places of both runs' maxima in `rows`."""
    i, j = places.x, places.full_r
    r_i, x_j = gather_elements(rows.full_r, i, axis), gather_elements(rows.x, j, axis)
    return winner(site, variant, y.map(finite), i, j, r_i, x_j)


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
    found = winner_of_rows(site, variant, x, rows.reduced(site.y), places, rows.axis)
    return Routes(x, rows.axis, found.place(places.x, places.full_r), found.factor)


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


def first_place(op: str, axis: int, x: Tensor) -> Tensor:
    """Where the first maximum (or minimum) lies along `axis`."""
    assert x.shape is not None
    return x.emitter.op(op, x, axis=axis, keepdims=1, shape=(*x.shape[:axis], 1, *x.shape[axis + 1 :]))


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
    found = winner(site, variant, y, i, j, r_i, x_j)
    p = found.place(i, j)
    return [where(p.equals(index), found.factor, 0.0) if index in active else None for index in range(len(values))]


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
