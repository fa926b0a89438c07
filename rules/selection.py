"""Selection: Where, masks as numbers, and values that are read at an index, where these depend on the data. Ours.

While the selection is the same in both runs, these operators are movement. Where it differs, there are two causes: what
is selected, and which. Midpoints tell them apart, as for any product (METHOD section 5): with g(values, selection),

    values:     m = (S + S0)^T m_y / 2, S and S0 the movement by the selection of x and of r
    selection:  c = m_y ( g(x, s) - g(x, s0) + g(r, s) - g(r, s0) ) / 2, for each element of s.

What the selection contributes goes to the floats that it is made of (rules/conditions.py).

The branches of a Where are mostly functions of the very tensor that its condition is made of: Relu, Elu and GELU
written out, x * (x > 0). Where the condition is an elementwise function of one tensor z, the whole change goes to z, so
that the region has the one complete multiplier, dy/dz (METHOD section 3), whatever the branch that is not selected may
be, infinite for instance. With other conditions such a branch counts unless it is more than `SINGULAR` times what is
selected; there the condition gets the whole change too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import reduce

from onnxlift.functions import (
    absolute,
    cast,
    clip,
    logical_and,
    logical_not,
    logical_or,
    where,
)
from onnxlift.registry import rule
from onnxlift.rules.conditions import per_change, to_index, to_roots
from onnxlift.rules.linear import summed
from onnxlift.signed import Parts
from onnxlift.site import Pairing, Site, Value, unbroadcast
from onnxlift.tensor import Tensor, limits

SINGULAR = 100
"""How much larger a branch that is not selected may be than what is: rounding errors grow by as much."""


def _cast_parts(site: Site) -> list[Parts]:
    """The parts of x in y's precision."""
    return [Parts(*(cast(part, site.y.dtype) for part in site.x.parts))]


@rule("movement", "Cast", "CastLike", conditions=True, parts=_cast_parts)
def convert(site: Site) -> list[Tensor | None]:
    """m_x = m_y in x's precision; of a mask or an index c(z): m_z = m_y (c - c0) / dz."""
    if site.roots:
        return [*(None for _ in site.inputs), *to_roots(site, site.x, site.m * site.y.d, site.y.shape)]
    return [cast(site.m, site.x.dtype)]


def _selected_parts(site: Site) -> list[Parts]:
    """The parts of the branch that is selected; zeros for one that carries no importance."""
    condition, a, b = site.input(0), site.input(1), site.input(2)
    zeros = a.zeros() if a.active else b.zeros()
    sides = [x.parts if x.active else Parts(zeros, zeros) for x in (a, b)]
    return summed(site, [Parts(*(where(condition.x, *side) for side in zip(*sides, strict=True)))])


@rule("movement", "Where", conditions=True, parts=_selected_parts)
def selected(site: Site) -> list[Tensor | None]:
    """m_a = m_y where c, m_b = m_y elsewhere; where c(z) differs from c0, m_z = m_y dy / dz."""
    condition, a, b = site.input(0), site.input(1), site.input(2)
    m, of, c, c0 = site.m, site.y.shape, condition.x, condition.r
    if not site.roots:
        m_a, m_b, jump = where(c, m, 0.0), where(logical_not(c), m, 0.0), []
    else:
        chosen, rejected = logical_and(c, c0), logical_not(logical_or(c, c0))
        share, dy = _switched(site) if site.masks else (0.0, site.y.d)
        dy = clip(dy, -limits(dy).largest, limits(dy).largest)  # the fill of a mask may be infinite
        contributed = where(logical_or(chosen, rejected), 0.0, m * dy)
        jump = to_roots(site, condition, contributed, of)
        m_a = where(chosen, m, where(rejected, 0.0, m * share) if site.masks else 0.0)
        m_b = where(rejected, m, where(chosen, 0.0, m * share) if site.masks else 0.0)
    branches = [unbroadcast(m_x, of, x) if x.active else None for m_x, x in ((m_a, a), (m_b, b))]
    return [None, *branches, *jump]


def _switched(site: Site) -> tuple[Tensor, Tensor]:
    """Where the condition changed: the factor of either branch, and what of dy is the condition's doing."""
    condition, a, b = site.input(0), site.input(1), site.input(2)
    y, hidden, hidden0 = site.y, where(condition.x, b.x, a.x), where(condition.r, b.r, a.r)
    tame = absolute(hidden) + absolute(hidden0) <= (absolute(y.x) + absolute(y.r)) * SINGULAR
    return where(tame, y.d.emitter.constant(0.5, y.dtype), 0.0), where(tame, (y.d + hidden0 - hidden) * 0.5, y.d)


# --- values at an index ----------------------------------------------------------------------------------------------

MovementRule = Callable[[Site], Sequence[Tensor | None]]


def indexed(movement: MovementRule) -> MovementRule:
    """The rule of Gather, GatherElements, GatherND and OneHot, from that for an index that is the same in both runs.

    OneHot's index may be a float tensor, which is its own root. Its depth contributes nothing and has to be the same.
    """

    @functools.wraps(movement)
    def multipliers(site: Site) -> Sequence[Tensor | None]:
        at, of = (0, 2) if site.op == "OneHot" else (1, 0)
        data, index, y = site.input(of), site.input(at), site.y
        moves = index.active or bool(site.roots)
        rest = [value for value in site.inputs if value is not None and value is not data and value is not index]
        if any(value.varies and not value.active for value in rest):
            site.refuse(f"its size ({rest[0].name!r}) depends on the attributed inputs")
        if not moves and not any(value.active for value in rest):
            return movement(site)
        found: list[Tensor | None] = [None for _ in site.inputs]
        places = [index.x, index.full_r] if moves else [index.x]
        dy = y.d
        if data.active:
            terms = [movement(pointed(site, at, place, [of], 1 / len(places)))[of] for place in places]
            found[of] = reduce(Tensor.__add__, [term for term in terms if term is not None])
            if moves:
                here, there = _read(site, {of: data.x, at: places[1]}), _read(site, {of: data.full_r, at: places[0]})
                dy = (y.x - here + there - y.r) * 0.5
        if not moves:
            return found
        c = to_index(site, site.m * dy)
        if index.active:
            found[at] = per_change(index, c)
            return found
        return [*found, *to_roots(site, index, c, index.shape)]

    return multipliers


def _read(site: Site, given: dict[int, Tensor]) -> Tensor:
    """The operator on other values, or at other places."""
    inputs = [given.get(index, site.tensor(index)) for index in range(len(site.inputs))]
    return site.emitter.op(site.op, *inputs, shape=site.y.shape, dtype=site.y.dtype, **site.attributes)


def pointed(site: Site, at: int, places: Tensor, values: Sequence[int], share: float) -> Site:
    """The node with an index (input `at`) that does not vary, for a share of what arrives; `values` still do."""
    inputs = [
        value if value is None or index in values else Value(value.name, value.x, value.x, False, Pairing())
        for index, value in enumerate(site.inputs)
    ]
    inputs[at] = Value(site.input(at).name, places, places, False, Pairing())
    m = site.m if share == 1 else site.m * share
    return Site(site.emitter, site.op, site.name, site.attributes, inputs, site.outputs, [m])
