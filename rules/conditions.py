"""Masks and indices that depend on the data: what they contribute goes back to the floats they are made of. Ours.

Where a mask or an index differs between the runs, its consumer says what this contributes (rules/selection.py). From
there it goes back node by node, each output element dividing its contribution c among the input elements that it is
made of, in proportion to the squares of what they changed by:

    c_k = c d_k^2 / sum d_l^2

This is the least-squares solution of sum m_k d_k = c: it adds up, no share has the wrong sign, and where |c| is at most
the largest |d_k|, as with a maximum that is written as a comparison, no |m_k| exceeds 1. An output changes only where
one of its inputs does, so that nothing is divided by 0. At the end m_z = c / dz for the floats z. An element is made of

* what is broadcast to it, for elementwise operators; the shares of And, Or and Xor are their Shapley values;
* its row, for reductions and TopK; the places of both runs' maxima, for ArgMax: where they differ, one of them changed;
* the places up to it, for CumSum;
* the place that it comes from, for movement, Gather and OneHot.

Operators whose output's size varies (NonZero, Compress, Unique) are refused: what the runs return cannot be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np

from onnxlift import registry
from onnxlift.functions import (
    absolute,
    cast,
    gather_elements,
    logical_not,
    maximum,
    minimum,
    reduce_max,
    reduce_sum,
    scatter_add,
    unsqueeze,
    where,
    widen,
)
from onnxlift.graph import Shape
from onnxlift.registry import condition
from onnxlift.rules.linear import reduced_axes
from onnxlift.site import Site, Value, unbroadcast
from onnxlift.tensor import BOOL, INT64, Tensor, limits

Shares = Sequence[Tensor | None]
"""A contribution for each element of a tensor; None where none arrives."""


def to_roots(site: Site, made: Value, c: Tensor, of: Shape) -> list[Tensor]:
    """The multipliers of the roots of the condition `made`, which contributes `c` in all, of a shape it broadcasts to.

    An elementwise function of one root needs no way back: m_z = c / dz, wherever it is broadcast to.
    """
    if not site.masks:
        (z,) = site.roots
        return [unbroadcast(per_change(z, c), of, z)]
    found = {made.name: unbroadcast(widen(c), of, made)}
    roots = {z.name for z in site.roots}
    known = roots.union(value.name for mask in site.masks for value in mask.outputs if value is not None)
    for mask in reversed(site.masks):
        varying = [index for index, value in enumerate(mask.inputs) if value is not None and value.name in known]
        arrived = [None if value is None or value.name in roots else found.get(value.name) for value in mask.outputs]
        how = registry.find_condition(mask.op)
        assert how is not None
        for index, share in zip(varying, how.share(mask, varying, arrived), strict=True):
            name = mask.input(index).name
            if share is not None:
                found[name] = found[name] + share if name in found else share
    return [per_change(z, found[z.name]) for z in site.roots]


def per_change(z: Value, c: Tensor) -> Tensor:
    """m_z = c / dz; 0 where nothing is contributed, also where z is infinite in both runs."""
    dtype = c.dtype if c.dtype.itemsize > z.dtype.itemsize else z.dtype
    return where(c.equals(0), 0.0, cast(cast(c, dtype) / cast(z.d, dtype), z.dtype))


# --- how much tensors changed ----------------------------------------------------------------------------------------


def changes(value: Value, like: Tensor) -> Tensor:
    """|x - r| of floats, integers or truth values in the precision of `like`; finite, and 0 where both are infinite."""
    x, r = value.x, value.r
    if x.dtype == BOOL:
        return absolute(cast(x, like.dtype) - cast(r, like.dtype))
    if np.issubdtype(x.dtype, np.integer):
        return absolute(cast(cast(x, INT64) - cast(r, INT64), like.dtype))  # large ones are apart before the Cast
    d = cast(x, like.dtype) - cast(r, like.dtype)
    return minimum(where(x.equals(r), 0.0, absolute(d)), limits(d).largest)


def differs(value: Value) -> Tensor:
    """Whether an integer or a truth value changed."""
    return logical_not(value.x.equals(value.r))


def proportions(sizes: Sequence[Tensor]) -> list[Tensor]:
    """s_k^2 / sum s_l^2 of sizes >= 0 that broadcast; neither overflow nor underflow, and 0 where all are 0."""
    largest = maximum(reduce(maximum, sizes), limits(sizes[0]).smallest)
    squares = [(size / largest) * (size / largest) for size in sizes]
    total = maximum(reduce(Tensor.__add__, squares), 1)  # the largest is 1 of them
    return [square / total for square in squares]


def squares_in_rows(size: Tensor, axes: Sequence[int]) -> Tensor:
    """The squares of sizes >= 0, scaled so that the largest of a row is 1, or all are 0."""
    scaled = size / maximum(reduce_max(size, axes), limits(size).smallest)
    return scaled * scaled


def total(arrived: Shares) -> Tensor:
    """Of all outputs together, which have one shape."""
    return reduce(Tensor.__add__, [share for share in arrived if share is not None])


# --- the operators ---------------------------------------------------------------------------------------------------


@condition(
    *"Equal Less LessOrEqual Greater GreaterOrEqual IsNaN IsInf And Or Xor Not Cast Identity Sign Abs Neg".split(),
    *"Add Sub Mul Div Mod Pow Min Max Clip BitwiseAnd BitwiseOr BitwiseXor BitwiseNot BitShift".split(),
    inputs=None,
    elementwise=True,
)
def elementwise(site: Site, varying: Sequence[int], arrived: Shares) -> Shares:
    """c_k = c d_k^2 / sum d_l^2 over the operands."""
    c = total(arrived)
    values, of = [site.input(index) for index in varying], site.y.shape
    if len(values) == 1:
        return [unbroadcast(c, of, values[0])]
    weights = proportions([changes(value, c) for value in values])
    return [unbroadcast(c * weight, of, value) for value, weight in zip(values, weights, strict=True)]


@condition("Where", inputs=None, elementwise=True)
def chosen(site: Site, varying: Sequence[int], arrived: Shares) -> Shares:
    """Where the condition changed it gets all, elsewhere the branch that is selected."""
    c = total(arrived)
    test, of = site.input(0), site.y.shape
    switched = differs(test)
    keeps = where(switched, 0.0, c) if 0 in varying else c
    shares = {0: lambda: where(switched, c, 0.0), 1: lambda: where(test.x, keeps, 0.0)}
    shares[2] = lambda: where(test.x, 0.0, keeps)
    return [unbroadcast(shares[index](), of, site.input(index)) for index in varying]


@condition(*"ReduceSum ReduceMax ReduceMin ReduceProd ReduceMean ReduceL1 ReduceL2 ReduceSumSquare".split())
def reduced(site: Site, varying: Sequence[int], arrived: Shares) -> Shares:
    """c_k = c d_k^2 / sum d_l^2 over the reduced row."""
    c = total(arrived)
    axes = reduced_axes(site)
    return [in_rows(site.x, axes, c if site.attribute("keepdims", 1) else unsqueeze(c, axes))]


def in_rows(x: Value, axes: Sequence[int], c: Tensor) -> Tensor:
    """Contributions of the rows of x along `axes`, which they have the extent 1 of, divided within."""
    if not axes:
        return c
    squares = squares_in_rows(changes(x, c), axes)
    return x.spread(c / maximum(reduce_sum(squares, axes), 1) * squares)


@condition("TopK")
def ranked(site: Site, varying: Sequence[int], arrived: Shares) -> Shares:
    """As for reductions: what is at one rank depends on the whole row."""
    axis = site.attribute("axis", -1) % site.x.rank
    return [in_rows(site.x, [axis], reduce_sum(total(arrived), [axis]))]


@condition("ArgMax", "ArgMin")
def first_place(site: Site, varying: Sequence[int], arrived: Shares) -> Shares:
    """Between the places i and j of both runs' maxima, c_i = c d_i^2 / (d_i^2 + d_j^2)."""
    c = total(arrived)
    x, axis = site.x, site.attribute("axis", 0) % site.x.rank
    places = [site.y.x, site.y.full_r]
    if not site.attribute("keepdims", 1):
        c, *places = (unsqueeze(tensor, [axis]) for tensor in (c, *places))
    d = x.spread(changes(x, c))
    weights = proportions([gather_elements(d, place, axis) for place in places])
    share = x.spread(c.emitter.constant(0, c.dtype))
    for place, weight in zip(places, weights, strict=True):
        share = scatter_add(share, place, c * weight, axis)
    return [share]


@condition("CumSum")
def cumulative(site: Site, varying: Sequence[int], arrived: Shares) -> Shares:
    """c_k = d_k^2 sum_i c_i / sum_(l up to i) d_l^2 over the places i that k counts for."""
    c = total(arrived)
    axis, reverse = site.input(1).x, site.attribute("reverse", 0)
    exclusive = site.attribute("exclusive", 0)
    squares = squares_in_rows(site.x.spread(changes(site.x, c)), range(site.x.rank))
    below = site.emitter.op("CumSum", squares, axis, exclusive=exclusive, reverse=reverse)
    each = where(c.equals(0), 0.0, c / below)
    return [squares * site.emitter.op("CumSum", each, axis, exclusive=exclusive, reverse=1 - reverse)]


@condition("Concat", inputs=None)
@condition(
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Split", "Slice", "Tile", "Trilu", "Pad"
)
def moved(site: Site, varying: Sequence[int], arrived: Shares) -> Shares:
    """Back to where the elements came from, by the movement rule, which is for floats."""
    dtype = next(share.dtype for share in arrived if share is not None)

    def as_floats(value: Value | None) -> Value | None:
        if value is None:
            return None
        numbers = value.map(lambda t: cast(t, dtype))
        numbers.active = True
        return numbers

    inputs = [as_floats(value) if index in varying else value for index, value in enumerate(site.inputs)]
    outputs = [as_floats(value) for value in site.outputs]
    how = registry.find(site.op)
    assert how is not None
    shares = how.multipliers(Site(site.emitter, site.op, site.name, site.attributes, inputs, outputs, arrived))
    found: list[Tensor | None] = []
    for index in varying:
        share, value = shares[index], inputs[index]
        assert isinstance(share, Tensor)
        assert value is not None
        found.append(unbroadcast(share, site.y.shape, value) if how.broadcasts else share)
    return found


@condition("Gather", "GatherElements", "GatherND", inputs=(0, 1))
def taken(site: Site, varying: Sequence[int], arrived: Shares) -> Shares:
    """To the index where it changed, elsewhere to the place that it points to."""
    if 1 not in varying:
        return moved(site, varying, arrived)
    c = total(arrived)
    if 0 not in varying:
        return [to_index(site, c)]
    switched = differs(site.input(1))
    if site.op == "Gather":
        first, last = index_axes(site)
        switched = unsqueeze(switched, [axis for axis in range(site.y.rank) if not first <= axis < last])
    elif site.op == "GatherND":
        site.refuse("it is on the way of a condition, and both its inputs vary")
    (stays,) = moved(site, [0], [where(switched, 0.0, c)])
    return [stays, to_index(site, where(switched, c, 0.0))]


@condition("OneHot")
def one_hot(site: Site, varying: Sequence[int], arrived: Shares) -> Shares:
    """To the index."""
    return [to_index(site, total(arrived))]


# --- what an index points to -----------------------------------------------------------------------------------------


def index_axes(site: Site) -> tuple[int, int]:
    """The axes of y that are the index's, first and behind the last, for Gather."""
    first = site.attribute("axis", 0) % site.x.rank
    return first, first + site.input(1).rank


def to_index(site: Site, c: Tensor) -> Tensor:
    """What y's elements, or a scatter's updates, contribute by the index of their place, in its shape."""
    match site.op:
        case "OneHot":
            return reduce_sum(c, [site.attribute("axis", -1) % site.y.rank], keepdims=False)
        case "Gather":
            first, last = index_axes(site)
            return reduce_sum(c, [axis for axis in range(site.y.rank) if not first <= axis < last], keepdims=False)
        case "GatherND" | "ScatterND":
            index, lead = site.input(1), site.input(1).rank - 1
            c = unsqueeze(reduce_sum(c, range(lead, c.rank), keepdims=False), [lead])
            return in_rows(index, [lead], c)
    return c
