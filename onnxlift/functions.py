"""Functions of symbolic tensors, named as in NumPy where NumPy has them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx.helper import np_dtype_to_tensor_dtype

from onnxlift.graph import Shape
from onnxlift.tensor import FLOAT32, INT64, Operand, Tensor, alike, binary, broadcast_shape, unary

absolute = functools.partial(unary, "Abs")
exp = functools.partial(unary, "Exp")
log = functools.partial(unary, "Log")
sqrt = functools.partial(unary, "Sqrt")
tanh = functools.partial(unary, "Tanh")
sigmoid = functools.partial(unary, "Sigmoid")
erf = functools.partial(unary, "Erf")
sign = functools.partial(unary, "Sign")
maximum = functools.partial(binary, "Max")
minimum = functools.partial(binary, "Min")


def logical_and(a: Tensor, b: Tensor) -> Tensor:
    return binary("And", a, b)


def logical_or(a: Tensor, b: Tensor) -> Tensor:
    return binary("Or", a, b)


def logical_not(a: Tensor) -> Tensor:
    return unary("Not", a)


def where(condition: Tensor, a: Operand, b: Operand) -> Tensor:
    """`a` where the condition holds, `b` elsewhere. Numbers take the other branch's dtype."""
    left, right = alike(a, b)
    return left.emitter.op("Where", condition, left, right, dtype=left.dtype)


def clip(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    emitter = x.emitter
    bounds = [None if bound is None else emitter.constant(bound, x.dtype) for bound in (low, high)]
    return emitter.op("Clip", x, *(bounds if bounds[1] is not None else bounds[:1]))


def cast(x: Tensor, dtype: np.dtype[Any]) -> Tensor:
    """`x` in another element type; itself where it already has it."""
    if x.dtype == dtype:
        return x
    return x.emitter.op("Cast", x, dtype=dtype, to=int(np_dtype_to_tensor_dtype(dtype)))


def widen(x: Tensor) -> Tensor:
    """`x` in float32 where it has half precision: the type that sums are taken in."""
    return cast(x, FLOAT32) if x.dtype.itemsize < 4 else x


def reduce_sum(x: Tensor, axes: Sequence[int], keepdims: bool = True) -> Tensor:
    """Sum over `axes` (non-negative); no axes: `x` itself."""
    return reduce_by("ReduceSum", x, axes, keepdims)


def reduce_mean(x: Tensor, axes: Sequence[int], keepdims: bool = True) -> Tensor:
    """Mean over `axes` (non-negative); no axes: `x` itself."""
    return reduce_by("ReduceMean", x, axes, keepdims)


def reduce_max(x: Tensor, axes: Sequence[int], keepdims: bool = True) -> Tensor:
    """Maximum over `axes` (non-negative); no axes: `x` itself."""
    return reduce_by("ReduceMax", x, axes, keepdims)


def reduce_by(op: str, x: Tensor, axes: Sequence[int], keepdims: bool = True) -> Tensor:
    """The operator `op` over `axes` (non-negative); no axes: `x` itself."""
    if not axes:
        return x
    shape: Shape = None
    if x.shape is not None:
        ones = tuple(1 if axis in axes else dim for axis, dim in enumerate(x.shape))
        shape = ones if keepdims else tuple(dim for axis, dim in enumerate(x.shape) if axis not in axes)
    return x.emitter.op(op, x, x.emitter.ints(axes), keepdims=int(keepdims), shape=shape)


def transpose(x: Tensor, permutation: Sequence[int]) -> Tensor:
    if list(permutation) == list(range(len(permutation))):
        return x
    shape = None if x.shape is None else tuple(x.shape[axis] for axis in permutation)
    return x.emitter.op("Transpose", x, perm=list(permutation), shape=shape)


def swap_last(x: Tensor) -> Tensor:
    """The matrices of a stack transposed."""
    return transpose(x, [*range(x.rank - 2), x.rank - 1, x.rank - 2])


def reshape(x: Tensor, shape: Tensor | Sequence[int]) -> Tensor:
    """Reshape by a list (-1 once) or a run-time shape tensor. Zeros are zeros, never 'copy'."""
    target = shape if isinstance(shape, Tensor) else x.emitter.ints(shape)
    dims: Shape = None
    if target.value is not None:
        dims = tuple(None if dim == -1 else int(dim) for dim in target.value)
    elif target.shape and isinstance(target.shape[0], int):
        dims = (None,) * target.shape[0]
    if dims is not None and dims == x.shape:
        return x
    return x.emitter.op("Reshape", x, target, shape=dims, allowzero=1 if dims and 0 in dims else None)


def regroup(x: Tensor, keep: int, dims: Sequence[int]) -> Tensor:
    """Reshape all axes but the first `keep` to `dims` (-1 once): no shape arithmetic, whatever the kept extents are."""
    shape: Shape = None
    if x.shape is not None:
        rest = [dim for dim in x.shape[keep:] if isinstance(dim, int)]
        known = len(rest) == x.rank - keep and 0 not in rest
        fill = math.prod(rest) // -math.prod(dims) if known and -1 in dims else None
        shape = (*x.shape[:keep], *(fill if dim == -1 else dim for dim in dims))
    return x.emitter.op("Reshape", x, x.emitter.ints([0] * keep + list(dims)), shape=shape)


def unsqueeze(x: Tensor, axes: Sequence[int]) -> Tensor:
    shape: Shape = None
    if x.shape is not None:
        rest = iter(x.shape)
        shape = tuple(1 if axis in axes else next(rest) for axis in range(x.rank + len(axes)))
    return x.emitter.op("Unsqueeze", x, x.emitter.ints(axes), shape=shape)


def squeeze(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Without `axes` (non-negative), of extent 1."""
    shape = None if x.shape is None else tuple(dim for axis, dim in enumerate(x.shape) if axis not in axes)
    return x.emitter.op("Squeeze", x, x.emitter.ints(axes), shape=shape)


def split(x: Tensor, sizes: Sequence[int], axis: int) -> tuple[Tensor, ...]:
    """Pieces of the given extents along one axis (non-negative); one piece is `x` itself."""
    if len(sizes) == 1:
        return (x,)
    shapes = [x.shape and (*x.shape[:axis], size, *x.shape[axis + 1 :]) for size in sizes]
    return x.emitter.ops("Split", x, x.emitter.ints(sizes), axis=axis, shapes=shapes)


def expand(x: Tensor, shape: Tensor | Sequence[int]) -> Tensor:
    """Broadcast to a list of ints or to a run-time shape tensor."""
    target = shape if isinstance(shape, Tensor) else x.emitter.ints(shape)
    dims: Shape = None
    if target.value is not None and x.shape is not None:
        dims = broadcast_shape(x.shape, tuple(int(dim) for dim in target.value))
    if dims is not None and dims == x.shape:
        return x
    return x.emitter.op("Expand", x, target, shape=dims)


def concat(parts: Sequence[Tensor], axis: int) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    values = [part.value for part in parts if part.value is not None]
    if parts[0].dtype == INT64 and len(values) == len(parts):
        return parts[0].emitter.constant(np.concatenate(values, axis), INT64)
    shape: Shape = None
    if all(part.shape is not None for part in parts):
        dims = [part.shape[axis] for part in parts if part.shape is not None]
        total = sum(d for d in dims if isinstance(d, int)) if all(isinstance(d, int) for d in dims) else None
        first = list(parts[0].shape or ())
        first[axis] = total
        shape = tuple(first)
    return parts[0].emitter.op("Concat", *parts, axis=axis, shape=shape)


def arange(count: Tensor) -> Tensor:
    """0, 1, 2 ... as int64; `count` is an int64 tensor of shape [1]."""
    emitter = count.emitter
    if count.value is not None:
        return emitter.ints(range(int(count.value.item())))
    zero, one = (emitter.constant(number, INT64, host=True) for number in (0, 1))
    return emitter.op("Range", zero, reshape(count, []), one, shape=(None,))


def amount(extent: Tensor, dtype: np.dtype[Any]) -> Tensor:
    """An extent (int64, one element) as a scalar of a float type, to compute with.

    Extents are on the CPU also where a graph runs on a GPU, and a Cast would stay there with them, its result copied in
    every run. Range reads on the CPU and writes on the GPU: [extent], the numbers from it up to the next.
    """
    if extent.value is not None:
        return extent.emitter.constant(extent.value.item(), dtype)
    start, one = reshape(extent, []), extent.emitter.constant(1, INT64, host=True)
    stop = extent.emitter.op("Add", start, one, shape=())
    return cast(reshape(extent.emitter.op("Range", start, stop, one, shape=(1,)), []), dtype)


def gather_elements(x: Tensor, places: Tensor, axis: int) -> Tensor:
    """The elements of `x` at `places` along one axis, in the shape of `places`."""
    return x.emitter.op("GatherElements", x, places, axis=axis, shape=places.shape)


def scatter_add(onto: Tensor, places: Tensor, values: Tensor, axis: int) -> Tensor:
    """`onto` with `values` added at `places` along one axis; what meets at one place adds up."""
    return onto.emitter.op("ScatterElements", onto, places, values, axis=axis, reduction="add", shape=onto.shape)


def slice_axis(x: Tensor, axis: int, start: Tensor | int, stop: Tensor | int) -> Tensor:
    """`x[start:stop]` along one axis; bounds are ints or int64 tensors of shape [1]."""
    emitter = x.emitter
    bounds = [emitter.ints([bound]) if isinstance(bound, int) else bound for bound in (start, stop)]
    shape: Shape = None
    if x.shape is not None:
        dims = list(x.shape)
        dims[axis] = stop - start if isinstance(start, int) and isinstance(stop, int) and 0 <= start <= stop else None
        shape = tuple(dims)
    return emitter.op("Slice", x, *bounds, emitter.ints([axis]), shape=shape)


def shape_of(x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
    """The shape (or a slice of it) as an int64 vector: a constant where the dimensions are known."""
    if x.shape is not None:
        dims = x.shape[start:stop]
        if all(isinstance(dim, int) for dim in dims):
            return x.emitter.ints([dim for dim in dims if isinstance(dim, int)])
    length = len(x.shape[start:stop]) if x.shape is not None else None
    return x.emitter.op("Shape", x, start=start or None, end=stop, shape=(length,))
