"""Scatters: values put to places, where several may meet.

Every update u of a scatter has one multiplier, w_u times that of its place, and every place of the data d one:

    none   w_u = 1 for the update that is left, w_d = 1 where there is none
    add    w = 1
    mul    the Shapley value of a product of many: the integral over t from 0 to 1 of the product of all other factors
           at r + t (x - r), which is a polynomial, so that Gauss' points are exact; of two factors, the midpoint
    max    w = dy/dx for one place or update, 0 for the others (METHOD section 4)

Signed parts: dy± = w_d d± + the sum of w_u u± at a place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxlift.functions import (
    absolute,
    cast,
    clip,
    concat,
    expand,
    gather_elements,
    logical_or,
    reshape,
    where,
    widen,
)
from onnxlift.registry import rule
from onnxlift.rules.conditions import to_index, to_roots
from onnxlift.rules.einsum import line_points
from onnxlift.rules.gather import numbered
from onnxlift.rules.selection import pointed
from onnxlift.rules.slopes import quotient
from onnxlift.signed import Parts, scaled
from onnxlift.site import Site, Value
from onnxlift.tensor import FLOAT32, INT64, Tensor


@dataclass(frozen=True)
class Places:
    """Where a scatter puts its updates."""

    site: Site

    @property
    def data(self) -> Value:
        return self.site.x

    @property
    def updates(self) -> Value:
        return self.site.input(2)

    @property
    def reduction(self) -> str:
        return str(self.site.attribute("reduction", "none"))

    @property
    def numbers(self) -> Tensor:
        """1, 2, 3 ... in the shape of the updates, as int64."""
        return numbered(self.updates) + 1

    def take(self, t: Tensor) -> Tensor:
        """What `t`, in the data's shape, has at the place of every update."""
        indices, shape = self.site.input(1).x, self.updates.shape
        if self.site.op == "ScatterND":
            return t.emitter.op("GatherND", t, indices, shape=shape)
        return gather_elements(t, indices, self.site.attribute("axis", 0))

    def put(self, onto: Tensor, values: Tensor, reduction: str = "none") -> Tensor:
        """The operator on other data and updates."""
        attributes = {**self.site.attributes, "reduction": reduction}
        indices = self.site.input(1).x
        return onto.emitter.op(self.site.op, onto, indices, values, shape=self.data.shape, **attributes)

    def most(self) -> int | None:
        """How many updates one place can have; None where that is known at run time only."""
        indices = self.site.input(1)
        shape = indices.shape or (None,)
        dims = shape[:-1]
        if self.site.op == "ScatterElements":
            axis = self.site.attribute("axis", 0) % len(shape)
            dims = shape[axis : axis + 1]
        count = 1
        for dim in dims:
            if not isinstance(dim, int):
                return None
            count *= dim
        if indices.constant is None or (indices.constant < 0).any() or not indices.constant.size:
            return count
        if self.site.op == "ScatterND":
            rows = indices.constant.reshape(-1, indices.constant.shape[-1])
            return int(np.unique(rows, axis=0, return_counts=True)[1].max())
        lines = np.moveaxis(indices.constant, axis, -1).reshape(-1, count)
        return max(int(np.unique(line, return_counts=True)[1].max()) for line in lines)


Weights = tuple[Tensor | None, Tensor | None]
"""w_d and w_u in the shapes of data and updates; None for 1, and for what carries no importance."""


def _weights(places: Places) -> Weights:
    match places.reduction:
        case "none":
            return _left(places)
        case "add":
            return None, None
        case "mul":
            return _other_factors(places)
        case _:
            return _of_extremes(places)


def _left(places: Places) -> Weights:
    """1 for what is left: the operator itself says which of the updates of a place is, by putting their numbers."""
    data, updates = places.data, places.updates
    w_d = places.put(_filled(data, 1), updates.zeros()) if data.active else None
    if not updates.active:
        return w_d, None
    nobody = expand(places.site.emitter.constant(0, INT64), data.run_shape)
    last = places.take(places.put(nobody, places.numbers))
    return w_d, cast(last.equals(places.numbers), updates.dtype)


POINTS = 4
"""Gauss' points at most: exact for eight factors. What they miss of more is shared in proportion to dx²."""


def _other_factors(places: Places) -> Weights:
    """The integral of the product of all factors but one."""
    data, updates, most = places.data, places.updates, places.most()
    if not updates.active:
        return places.put(_filled(data, 1), updates.x, "mul"), None
    degree = POINTS * 2 if most is None else most - (not data.active)
    w_d, w_u = None, None
    for point, area in line_points(min(degree + 1, 2 * POINTS)):
        d, u = (value.r + value.d * point if value.active else value.x for value in (data, updates))
        product, others = _products(places, u, repeats=most != 1)
        terms = product * area, places.take(data.spread(d)) * area
        w_d = terms[0] if w_d is None else w_d + terms[0]
        term = terms[1] if others is None else terms[1] * others
        w_u = term if w_u is None else w_u + term
    assert w_d is not None
    assert w_u is not None
    if degree > 2 * POINTS - 1:
        return _completed(places, w_d if data.active else None, w_u)
    return w_d if data.active else None, w_u


def _products(places: Places, u: Tensor, *, repeats: bool) -> tuple[Tensor, Tensor | None]:
    """Of every place, the product of its updates; of every update, that of the others (None: there are none).

    Division takes a factor out of a product, where it is not 0; zeros are counted.
    """
    ones = _filled(places.data, 1)
    if not repeats:
        return places.put(ones, u, "mul"), None
    none = cast(u.equals(0), u.dtype)
    nonzero = u + none
    product, zeros = places.put(ones, nonzero, "mul"), places.put(places.data.zeros(), none, "add")
    others = where(places.take(zeros).equals(none), places.take(product) / nonzero, 0.0)
    return where(zeros.equals(0), product, 0.0), others


def _completed(places: Places, w_d: Tensor | None, w_u: Tensor) -> Weights:
    """What is missing of dy at a place, shared in proportion to dx²."""
    data, updates = places.data, places.updates
    share, square = w_u * updates.d, updates.d * updates.d
    start = data.zeros()
    found = places.put(start if w_d is None else w_d * data.d, share, "add")
    squares = places.put(start if w_d is None else data.d * data.d, square, "add")
    rate = where(squares.equals(0), 0.0, (places.site.y.d - found) / where(squares.equals(0), 1.0, squares))
    return None if w_d is None else w_d + rate * data.d, w_u + places.take(rate) * updates.d


def _of_extremes(places: Places) -> Weights:
    """dy/dx for the number p of the data (0) or of an update; as at rules/maximum.py, the data come first."""
    data, updates, y = places.data, places.updates, places.site.y
    i, j = _first(places, data.x, updates.x, y.x), _first(places, data.full_r, updates.full_r, y.full_r)
    r_i, x_j = _of_number(i, data.full_r, updates.full_r), _of_number(j, data.x, updates.x)
    dy, tied = y.d, r_i.equals(y.r)
    at_i = logical_or(dy < 0 if places.reduction == "min" else dy > 0, tied)
    p, dx = where(at_i, i, j), where(at_i, y.x - r_i, x_j - y.r)
    factor = clip(quotient(dy, dx, y.x.equals(y.r), cast(tied, dy.dtype)), 0, 1)
    w_d = where(p.equals(0), factor, 0.0) if data.active else None
    w_u = where(places.take(p).equals(places.numbers), places.take(factor), 0.0) if updates.active else None
    return w_d, w_u


def _first(places: Places, data: Tensor, updates: Tensor, y: Tensor) -> Tensor:
    """The number of the first that is y: 0 for the data, 1, 2, 3 ... for the updates.

    Found by the operator's own reduction, which a kernel has for floats if the model runs.
    """
    if y.dtype.itemsize < 4:  # ONNX Runtime may hold the others in float32, and y only is rounded
        data, updates = widen(data), widen(updates)
        y = places.put(data, updates, places.reduction)
    sign = 1.0 if places.reduction == "min" else -1.0
    nobody = sign * float("inf")
    numbers = cast(places.numbers, FLOAT32) * sign
    own = where(data.equals(y), data.emitter.constant(0, FLOAT32), nobody)
    first = places.put(own, where(updates.equals(places.take(y)), numbers, nobody), places.reduction)
    return cast(where(first.equals(nobody), 0.0, absolute(first)), INT64)


def _of_number(number: Tensor, data: Tensor, updates: Tensor) -> Tensor:
    """The value that has this number, at every place."""
    flat = concat([reshape(data.emitter.constant(0, data.dtype), [1]), reshape(updates, [-1])], axis=0)
    found = data.emitter.op("Gather", flat, number, axis=0, shape=number.shape)
    return where(number.equals(0), data, found)


def _filled(value: Value, number: float) -> Tensor:
    return value.spread(value.x.emitter.constant(number, value.dtype))


def _scattered_parts(site: Site) -> list[Parts]:
    """The weighted parts of the data, and those of the updates added to them."""
    places = Places(site)
    w_d, w_u = _weights(places)
    data, updates = (
        (scaled(value.parts, w) if w is not None else value.parts) if value.active else None
        for value, w in ((places.data, w_d), (places.updates, w_u))
    )
    onto = data or Parts(site.x.zeros(), site.x.zeros())
    if updates is None:
        return [onto]
    sums = (places.put(widen(part), widen(more), "add") for part, more in zip(onto, updates, strict=True))
    return [Parts(*(cast(part, site.y.dtype) for part in sums))]


@rule("movement", "ScatterElements", "ScatterND", conditions=True, parts=_scattered_parts)
def scattered(site: Site) -> list[Tensor | None]:
    """m_d = w_d m_y, and m_u = w_u m_y at the place of the update; w by the reduction (METHOD sections 2, 4, 5)."""
    site.only_active(0, 2)
    if site.roots:
        return _displaced(site)
    places = Places(site)
    w_d, w_u = _weights(places)
    m_d = site.m if w_d is None else site.m * site.weight(w_d)
    if not places.updates.active:
        return [m_d]
    m_u = places.take(site.m)
    return [m_d, None, m_u if w_u is None else m_u * site.weight(w_u)]


def _displaced(site: Site) -> list[Tensor | None]:
    """Places that depend on the data: values at midpoints, and what an update does by being where it is (selection.py).

    In place of d, an update u contributes m (u - d) at its place at x and takes away as much from its place at r; added
    to d, m u. Of u and d the midpoints count. Updates have a place each, as ONNX asks for where they are not added.
    """
    index, of_x = site.input(1), Places(site)
    if of_x.reduction not in ("none", "add"):
        site.refuse(f"its indices depend on the attributed inputs, and its reduction is {of_x.reduction!r}")
    runs = [pointed(site, 1, places, [0, 2], 0.5) for places in (index.x, index.full_r)]
    first, second = (scattered(run) for run in runs)
    found = [None if a is None or b is None else a + b for a, b in zip(first, second, strict=True)]
    updates, data = (value.mid for value in (of_x.updates, of_x.data))
    terms = []
    for run in runs:
        places = Places(run)
        terms.append(places.take(site.m) * (updates if places.reduction == "add" else updates - places.take(data)))
    c = to_index(site, terms[0] - terms[1])
    return [*found, *[None] * (3 - len(found)), *to_roots(site, index, c, index.shape)]
