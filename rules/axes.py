"""The axes that a node reduces, known or given at run time, and its windows as rows. No rule of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, reduce

import numpy as np

from onnxlift.functions import (
    amount,
    arange,
    cast,
    concat,
    expand,
    maximum,
    reduce_by,
    regroup,
    reshape,
    shape_of,
    transpose,
    unsqueeze,
    where,
)
from onnxlift.site import Pairing, Site, Value
from onnxlift.tensor import INT64, Tensor


def evenly(x: Value, m: Tensor, axes: Sequence[int]) -> Tensor:
    """m / n, n the number of places of `x` along `axes`."""
    if not axes:
        return m
    n = reduce(Tensor.__mul__, (x.dim(axis) for axis in axes))
    if n.value is None or not n.value.item():
        return m / amount(n, x.dtype)
    return m * (1 / int(n.value.item()))


class Axes:
    """The axes of a reduction at opset 18 or later: the second input. None given means all of them, or none if
    noop_with_empty_axes; what the operator does element by element it does then, too.

    `known`: non-negative and sorted; None where they are given at run time.
    """

    def __init__(self, site: Site) -> None:
        site.only_active(0)
        self.x = site.x
        self.keepdims = bool(site.attribute("keepdims", 1))
        self._noop = int(site.attribute("noop_with_empty_axes", 0))
        given = site.optional(1)
        length = given.shape[0] if given is not None and given.shape else None
        self.known: list[int] | None = None
        if given is None or given.constant is not None or length == 0:
            axes = [] if given is None or given.constant is None else given.constant.flatten().tolist()
            every = [] if self._noop else list(range(site.x.rank))
            self.known = sorted(int(axis) % site.x.rank for axis in axes) or every
        self._given = given
        self._is_empty_possible = not isinstance(length, int)

    @property
    def given(self) -> Tensor:
        """The axes at run time."""
        assert self._given is not None
        return self._given.x

    def reduce(self, op: str, t: Tensor) -> Tensor:
        """`op` (ReduceSum, ReduceMax) over the axes of a tensor of x's rank; they are kept with extent 1."""
        if self.known is None:
            rank = self.x.rank
            return t.emitter.op(op, t, self.given, keepdims=1, noop_with_empty_axes=self._noop, shape=(None,) * rank)
        return reduce_by(op, t, self.known)

    def kept(self, t: Tensor) -> Tensor:
        """A tensor of the output's shape with the reduced axes, of extent 1."""
        if self.keepdims or self.known == []:
            return t
        return exactly(t, self.kept_shape) if self.known is None else unsqueeze(t, self.known)

    def evenly(self, m: Tensor) -> Tensor:
        """m / n, n the number of places that are reduced to one."""
        if self.known is not None:
            return evenly(self.x, m, self.known)
        return m / amount(self.count, m.dtype)

    @cached_property
    def kept_shape(self) -> Tensor:
        """The shape of the output with the reduced axes, where these are given at run time."""
        shape, axes = self.x.run_shape, self.given
        emitter = axes.emitter
        ones = expand(emitter.ints([1]), shape_of(axes))
        kept = emitter.op("ScatterElements", shape, cast(axes, INT64), ones, axis=0, shape=shape.shape)
        if not self._is_empty_possible or self._noop:
            return kept
        return where(shape_of(axes).equals(emitter.ints([0])), emitter.ints([1] * self.x.rank), kept)

    @cached_property
    def size(self) -> Tensor:
        """The number of elements of x, [1]."""
        return elements(self.x)

    @cached_property
    def outputs(self) -> Tensor:
        """The number of elements of y, [1], where the axes are given at run time."""
        return product(self.kept_shape)

    @cached_property
    def count(self) -> Tensor:
        """The number of places that are reduced to one, [1]."""
        return self.size / maximum(self.outputs, 1)


def elements(x: Value) -> Tensor:
    """The number of elements of x, [1]."""
    dims = [x.dim(axis) for axis in range(x.rank)]
    factors = [dim for dim in dims if dim.value is None]
    known = math.prod(int(dim.value.item()) for dim in dims if dim.value is not None)
    if known != 1 or not factors:
        factors.append(x.x.emitter.ints([known]))
    return reduce(Tensor.__mul__, factors)


def product(sizes: Tensor) -> Tensor:
    """The product of a vector of int64, [1]: factor by factor, because ReduceProd of int64 would stay on the CPU."""
    emitter = sizes.emitter
    if sizes.value is not None:
        return emitter.ints([int(sizes.value.prod())])
    count = sizes.shape[0] if sizes.shape else None
    if not isinstance(count, int):
        return emitter.op("ReduceProd", sizes, keepdims=1, shape=(1,))
    return reduce(Tensor.__mul__, (emitter.op("Gather", sizes, emitter.ints([i]), shape=(1,)) for i in range(count)))


def exactly(t: Tensor, shape: Tensor) -> Tensor:
    """Reshape to a run-time shape in which a 0 is an extent."""
    return t.emitter.op("Reshape", t, shape, allowzero=1, shape=(None,) * int((shape.shape or (0,))[0] or 0))


class Rows:
    """The windows of a reduction side by side along `axis`: one row for every output element.

    Here the axes are known. `keepdims`: the output has the reduced axes, of extent 1. `last`: `axis` is the last one.
    """

    def __init__(self, x: Value, axes: Sequence[int], keepdims: bool, *, last: bool = False) -> None:
        self.x = x
        self.axes = axes
        self.keepdims = keepdims
        self.order = [*(axis for axis in range(x.rank) if axis not in axes), *axes]
        self.moves = len(axes) > 1 or last
        self.axis = x.rank - len(axes) if self.moves else axes[0]

    def rows(self, t: Tensor) -> Tensor:
        """A tensor of x's shape."""
        if not self.moves:
            return t
        ordered = transpose(t, self.order)
        return regroup(ordered, self.axis, [-1]) if len(self.axes) > 1 else ordered

    def output(self, t: Tensor) -> Tensor:
        """A tensor of the output's shape: rows of one place."""
        return self.rows(t if self.keepdims else unsqueeze(t, self.axes))

    def back(self, t: Tensor) -> Tensor:
        """Rows in x's shape."""
        if not self.moves:
            return t
        ordered = self.x.map(lambda value: transpose(value, self.order)).like(t)
        return transpose(ordered, [int(axis) for axis in np.argsort(self.order)])

    def value(self, x: Value) -> Value:
        """x, or a value of its shape, in rows in either run."""
        return x.map(self.rows)

    def reduced(self, y: Value) -> Value:
        """The output as rows of one place."""
        return y.map(self.output)


class RowsAtRunTime(Rows):
    """As `Rows` of two axes, for axes that are given at run time: elements are gathered from where they are."""

    def __init__(self, axes: Axes) -> None:
        super().__init__(axes.x, [0, 1], axes.keepdims)
        self.axis = 1
        emitter = axes.given.emitter
        row = expand(exactly(arange(axes.outputs), axes.kept_shape), axes.x.run_shape)
        key = reshape(row, [-1]) * axes.size + arange(axes.size)
        shapes, dtypes = [(None,), (None,)], [INT64, INT64]
        _, self._places = emitter.ops("TopK", key, axes.size, largest=0, shapes=shapes, dtypes=dtypes)
        self._many = concat([axes.outputs, axes.count], axis=0)
        self._one = concat([axes.outputs, emitter.ints([1])], axis=0)

    def rows(self, t: Tensor) -> Tensor:
        flat = t.emitter.op("Gather", reshape(t, [-1]), self._places, axis=0, shape=(None,))
        return exactly(flat, self._many)

    def output(self, t: Tensor) -> Tensor:
        return exactly(t, self._one)

    def back(self, t: Tensor) -> Tensor:
        flat = reshape(t, [-1])
        return self.x.like(t.emitter.op("ScatterElements", flat, self._places, flat, axis=0, shape=(None,)))

    def value(self, x: Value) -> Value:
        return Value(x.name, self.rows(x.x), self.rows(x.full_r), x.active, Pairing())

    def reduced(self, y: Value) -> Value:
        return Value(y.name, self.output(y.x), self.output(y.full_r), y.active, Pairing())


def rows_of(axes: Axes, *, last: bool = False) -> Rows | None:
    """The windows of a reduction as rows, along the last axis if `last`; None where nothing is reduced."""
    if axes.known is None:
        return RowsAtRunTime(axes)
    return Rows(axes.x, axes.known, axes.keepdims, last=last) if axes.known else None
