"""The same multiplier for all inputs of a neuron: m = dy / sum(dx') (LIFTPAD eq. 15).

For products of two tensors, and by name for any operator, whatever it computes: completeness is all it needs.
It is singular where differences cancel; there another complete rule takes over.
"""

from __future__ import annotations

from functools import reduce

from onnxlift.functions import absolute, reduce_sum, unsqueeze, where
from onnxlift.registry import ANY, rule
from onnxlift.rules.product import multiply
from onnxlift.site import Site, Value
from onnxlift.tensor import Tensor

CANCELS = 1e-2
"""Differences cancel where |sum dx'| is below so much of sum |dx'|: rounding errors grow by its inverse."""


@rule("proportional", "Mul", default=False, broadcasts=True)
def product(site: Site) -> list[Tensor | None]:
    """m_a = m_b = dy / (da + db) m_y; the midpoint rule where they cancel or one is constant (LIFTPAD eq. 15)."""
    a, b = site.input(0), site.input(1)
    midpoints = multiply(site)
    if not (a.active and b.active):
        return midpoints
    total = a.d + b.d
    cancels = absolute(total) <= (absolute(a.d) + absolute(b.d)) * CANCELS
    m = site.m * (site.y.d / total)
    return [None if midpoint is None else where(cancels, midpoint, m) for midpoint in midpoints]


@rule("proportional", ANY, default=False)
def last_resort(site: Site) -> list[Tensor | None]:
    """m = sum(m_y dy) / sum(dx') per sample; where the dx' cancel, m = sum(m_y dy) dx / sum(dx'^2) (LIFTPAD eq. 15)."""
    values = [*site.inputs, *site.roots]  # what bodies read from outside are inputs too
    active = [value for value in values if value is not None and value.active]
    arrived = [
        per_sample(site, value, m * value.d)
        for value, m in zip(site.outputs, site.multipliers, strict=True)
        if value is not None and m is not None
    ]
    c, total, size, square = (
        reduce(Tensor.__add__, terms)
        for terms in (
            arrived,
            [per_sample(site, x, x.d) for x in active],
            [per_sample(site, x, absolute(x.d)) for x in active],
            [per_sample(site, x, x.d * x.d) for x in active],
        )
    )
    cancels = absolute(total) <= size * CANCELS
    even = where(cancels, 0.0, c / where(cancels, 1.0, total))
    aslant = where(cancels, c / where(square.equals(0), 1.0, square), 0.0)
    return [
        beside(site, x, even) + beside(site, x, aslant) * x.d if x is not None and x.active else None for x in values
    ]


def per_sample(site: Site, value: Value, t: Tensor) -> Tensor:
    """The sum over a sample, [N]; over everything where the model has no batch axis."""
    if site.batched and (site.samples is None or (value.shape or (None,))[0] != site.samples):
        site.refuse(f"it sums over samples, and whether they are the first axis of {value.name!r} cannot be told")
    return reduce_sum(t, range(int(site.batched), value.rank), keepdims=False)


def beside(site: Site, value: Value, s: Tensor) -> Tensor:
    """A number per sample, shaped to broadcast over `value`."""
    return unsqueeze(s, range(int(site.batched), value.rank)) if value.rank > int(site.batched) else s
