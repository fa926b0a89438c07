"""Multilinear functions of many factors: Einsum and the determinant (METHOD section 5).

On the straight line from r to x, z(t) = r + t d, such a function changes by the integral over t of its derivative,
in which a factor's multiplier is the product of all others. That is a polynomial in t, so that a Gauss-Legendre sum
over a few points is exact: one point, the midpoint rule, for two factors. For any number of factors it is the Shapley
value, because the integral of t^s (1 - t)^(n-1-s) is s! (n-1-s)! / n!.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from string import ascii_letters

import numpy as np

from onnxlift.functions import absolute, arange, expand, reshape, transpose, unsqueeze, where
from onnxlift.graph import Dim, Shape
from onnxlift.registry import rule
from onnxlift.signed import Parts
from onnxlift.site import Site, Value, unbroadcast
from onnxlift.tensor import INT64, Tensor, broadcast_shape

Point = tuple[float, float]


def line_points(factors: int) -> list[Point]:
    """t and weight of the points between r and x that make the sum exact for so many factors that change."""
    nodes, weights = np.polynomial.legendre.leggauss(max(1, (factors + 1) // 2))
    return [(float(t + 1) / 2, float(w) / 2) for t, w in zip(nodes, weights, strict=True)]


def between(value: Value, t: float) -> Tensor:
    """r + t (x - r); x of a value that does not change."""
    if not value.active:
        return value.x
    return value.mid if t == 0.5 else value.r + value.d * t


def weighted_sum(terms: Sequence[Tensor], points: Sequence[Point]) -> Tensor:
    """What the points add up to."""
    weighted = [term if w == 1 else term * w for term, (_, w) in zip(terms, points, strict=True)]
    return reduce(Tensor.__add__, weighted)


# --- Einsum ----------------------------------------------------------------------------------------------------------


def subscripts(site: Site) -> tuple[list[str], str]:
    """The subscripts of every operand and of the output; the axes that an ellipsis stands for have letters too."""
    left, arrow, output = str(site.attribute("equation")).replace(" ", "").partition("->")
    terms = left.split(",")
    free = iter([letter for letter in reversed(ascii_letters) if letter not in left])
    hidden = [
        site.input(index).rank - len(term.replace("...", "")) if "..." in term else 0
        for index, term in enumerate(terms)
    ]
    extra = "".join(next(free) for _ in range(max(hidden)))
    if not arrow:  # an ellipsis, then the letters that appear once
        once = [letter for letter in sorted(set(left) - set(",.")) if left.count(letter) == 1]
        if "".join(once) not in ("".join(once).lower(), "".join(once).upper()):
            site.refuse("its equation has no '->', and what the order of small and capital letters is then is not told")
        output = ("..." if extra else "") + "".join(once)
    full = [term.replace("...", extra[len(extra) - count :]) for term, count in zip(terms, hidden, strict=True)]
    return full, output.replace("...", extra)


def _parts(site: Site) -> list[Parts]:
    """Every product of one difference and the other factors counts on the side of its sign.

    Their sum is W d, the sum of their sizes |W| |d|: dy+ and dy- are half the sum and half the difference of these.
    """
    points = line_points(len(site.active))
    whole, size = [], []
    for index in site.active:
        for t, w in points:
            factors = [between(value, t) for value in site.operands]
            factors[index] = site.input(index).d * (w / 2)
            whole.append(site.again(*factors))
            size.append(site.again(*map(absolute, factors)))
    total, span = (reduce(Tensor.__add__, terms) for terms in (whole, size))
    return [Parts(total + span, total - span)]


@rule("midpoint", "Einsum", parts=_parts, mixes=True)
def einsum(site: Site) -> list[Tensor | None]:
    """m_A = Einsum(m_Y, the other operands at their midpoints); of three and more the Shapley value."""
    terms, output = subscripts(site)
    points = line_points(len(site.active))
    result: list[Tensor | None] = [None] * len(terms)
    for index in site.active:
        term, others = terms[index], [term for other, term in enumerate(terms) if other != index]
        kept = "".join(letter for letter in dict.fromkeys(term) if letter in set(output).union(*others))
        products = []
        for t, _ in points:
            factors = [site.weight(between(v, t)) for other, v in enumerate(site.operands) if other != index]
            shapes = [(output, site.y.shape), *((o, f.shape) for o, f in zip(others, factors, strict=True))]
            products.append(
                site.emitter.op(
                    "Einsum",
                    site.m,
                    *factors,
                    equation=f"{','.join([output, *others])}->{kept}",
                    shape=tuple(_extent(letter, shapes) for letter in kept),
                )
            )
        result[index] = _spread(site.input(index), term, kept, weighted_sum(products, points))
    return result


def _extent(letter: str, shapes: Sequence[tuple[str, Shape]]) -> Dim:
    """The extent of a letter where terms with these shapes meet."""
    found = [shape and (shape[term.index(letter)],) for term, shape in shapes if letter in term]
    shape = reduce(broadcast_shape, found)
    return shape[0] if shape else None


def _spread(value: Value, term: str, kept: str, m: Tensor) -> Tensor:
    """`m`, which has the letters `kept`, in the operand's shape.

    A letter that stood in no other term was summed: its places all get m. One that stands in the term twice leaves
    all but the diagonal out. An axis that was broadcast is summed.
    """
    first = [term.index(letter) for letter in term]
    m = unsqueeze(m, [axis for axis, letter in enumerate(term) if letter not in kept or first[axis] != axis])
    for axis in range(len(term)):
        if first[axis] != axis:
            places = [arange(value.dim(axis)) for axis in (first[axis], axis)]
            row, column = (
                reshape(n, [-1] + [1] * (len(term) - 1 - at)) for n, at in zip(places, (first[axis], axis), strict=True)
            )
            m = where(row.equals(column), m, 0.0)
    if m.shape is None or value.shape is None:
        return unbroadcast(expand(m, value.run_shape), m.shape, value)
    wide = tuple(dim if known == 1 else known for dim, known in zip(value.shape, m.shape, strict=True))
    if any(dim != known and dim != 1 for dim, known in zip(value.shape, m.shape, strict=True)):
        m = expand(m, value.run_shape)  # of extents that are unknown, either may be 1
    return unbroadcast(m, wide, value)


# --- the determinant -------------------------------------------------------------------------------------------------


@rule("midpoint", "Det")
def determinant(site: Site) -> list[Tensor | None]:
    """m_X = m_y times the cofactors of X at its midpoint for 2 x 2; of larger matrices at Gauss-Legendre points."""
    x = site.x
    size = (x.shape or (None,))[-1]
    if not isinstance(size, int):
        site.refuse("the size of its matrices is known at run time only")
    points = line_points(size)
    m = unsqueeze(site.m, [x.rank - 2, x.rank - 1])
    if size < 2:
        return [x.spread(m)]
    return [m * weighted_sum([_cofactors(site, between(x, t), size) for t, _ in points], points)]


def _cofactors(site: Site, x: Tensor, size: int) -> Tensor:
    """The determinant without row i and column j, times (-1)^(i + j), for all i and j."""
    emitter, rank = site.emitter, x.rank
    rest = emitter.constant([[k for k in range(size) if k != i] for i in range(size)], INT64)
    stack, others = (x.shape or (None,) * rank)[:-2], (size, size - 1)
    rows = emitter.op("Gather", x, rest, axis=rank - 2, shape=(*stack, *others, size))
    both = emitter.op("Gather", rows, rest, axis=rank, shape=(*stack, *others, *others))
    minors = transpose(both, [*range(rank - 2), rank - 2, rank, rank - 1, rank + 1])
    signs = emitter.constant((-1.0) ** np.add.outer(range(size), range(size)), x.dtype)
    return emitter.op("Det", minors, shape=(*stack, size, size)) * signs
