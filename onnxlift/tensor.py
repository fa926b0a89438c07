"""Symbolic tensors: what the rules compute with.

A `Tensor` names a value of the graph under construction. Operators are overloaded and the functions below mirror
NumPy, so that a rule reads like its equation; each of them appends ONNX nodes through the `Emitter`, which writes a
repeated subexpression only once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx.helper import np_dtype_to_tensor_dtype

from onnxlift.graph import Dim, Graph, Handle, Shape

Array = np.ndarray[Any, Any]
INT64 = np.dtype(np.int64)
BOOL = np.dtype(np.bool_)
FLOAT32 = np.dtype(np.float32)

_BROADCASTING = frozenset(
    ("Add Sub Mul Div Pow Max Min Where Equal Less Greater LessOrEqual GreaterOrEqual And Or Mod").split()
)
_SAME_SHAPE = frozenset(
    (
        "Neg Abs Exp Log Sqrt Tanh Sigmoid Erf Sin Cos Tan Sinh Cosh Asin Acos Atan Relu Sign Not Identity Cast "
        "Reciprocal Clip LogSoftmax Softmax CumSum"
    ).split()
)
_TO_INT64 = frozenset(("Shape", "Size", "ArgMax", "ArgMin", "NonZero"))
_TO_BOOL = frozenset(("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Not"))


class Tensor:
    """A value of the graph: name, dtype, shape (ints, symbols, None) and, for a known small constant, the value."""

    __slots__ = ("_shape", "emitter", "handle", "value")

    def __init__(self, emitter: Emitter, handle: Handle) -> None:
        self.emitter = emitter
        self.handle = handle
        self.value = Graph.value(handle)
        self._shape = Graph.shape(handle)

    @property
    def shape(self) -> Shape:
        return self._shape

    @shape.setter
    def shape(self, shape: Shape) -> None:
        """For what is known better than it was inferred."""
        self._shape = shape
        if self.value is None:
            Graph.set_shape(self.handle, shape)

    @property
    def name(self) -> str:
        return str(self.handle.name)

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype = Graph.dtype(self.handle)
        assert dtype is not None, f"tensor {self.name!r} has no element type"
        return dtype

    @property
    def rank(self) -> int:
        """Number of axes; the shape must be known to that extent."""
        assert self.shape is not None, f"tensor {self.name!r} has no rank"
        return len(self.shape)

    def __repr__(self) -> str:
        return f"Tensor({self.name!r}, {self.dtype}, {self.shape})"

    def __add__(self, other: Operand) -> Tensor:
        return binary("Add", self, other)

    def __radd__(self, other: Operand) -> Tensor:
        return binary("Add", other, self)

    def __sub__(self, other: Operand) -> Tensor:
        return binary("Sub", self, other)

    def __rsub__(self, other: Operand) -> Tensor:
        return binary("Sub", other, self)

    def __mul__(self, other: Operand) -> Tensor:
        return binary("Mul", self, other)

    def __rmul__(self, other: Operand) -> Tensor:
        return binary("Mul", other, self)

    def __truediv__(self, other: Operand) -> Tensor:
        return binary("Div", self, other)

    def __rtruediv__(self, other: Operand) -> Tensor:
        return binary("Div", other, self)

    def __pow__(self, other: Operand) -> Tensor:
        return binary("Pow", self, other)

    def __neg__(self) -> Tensor:
        return unary("Neg", self)

    def __matmul__(self, other: Tensor) -> Tensor:
        return self.emitter.op("MatMul", self, other, shape=_matmul_shape(self.shape, other.shape))

    def __lt__(self, other: Operand) -> Tensor:
        return binary("Less", self, other)

    def __le__(self, other: Operand) -> Tensor:
        return binary("LessOrEqual", self, other)

    def __gt__(self, other: Operand) -> Tensor:
        return binary("Greater", self, other)

    def __ge__(self, other: Operand) -> Tensor:
        return binary("GreaterOrEqual", self, other)

    def equals(self, other: Operand) -> Tensor:
        """Elementwise equality (`==` stays Python's identity, so that tensors can be keys)."""
        return binary("Equal", self, other)


Operand = Tensor | float | int


@dataclass(frozen=True)
class Limits:
    """What a dtype can hold, for the numerics of the rules.

    `smallest` normal number: guards a division whose numerator is then 0 or clipped. `tiny`: small enough to stand for
    0 in an even function, large enough that half of it is exact. `balance`: (24 eps)^(1/3), see rules/elementwise.py.
    `largest` finite number.
    """

    smallest: float
    tiny: float
    balance: float
    largest: float


_LIMITS = {
    "float64": Limits(2.0**-1022, 2.0**-500, (24 * 2.0**-53) ** (1 / 3), (2 - 2.0**-52) * 2.0**1023),
    "float32": Limits(2.0**-126, 2.0**-100, (24 * 2.0**-24) ** (1 / 3), (2 - 2.0**-23) * 2.0**127),
    "float16": Limits(2.0**-14, 2.0**-12, (24 * 2.0**-11) ** (1 / 3), 65504.0),
    "bfloat16": Limits(2.0**-126, 2.0**-100, (24 * 2.0**-8) ** (1 / 3), (2 - 2.0**-7) * 2.0**127),
}


def limits(x: Tensor) -> Limits:
    return _LIMITS[x.dtype.name]


class Emitter:
    """Appends nodes to a `Graph`; equal nodes and equal constants are written once."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._nodes: dict[Any, tuple[Tensor, ...]] = {}
        self._constants: dict[Any, Tensor] = {}
        self._of_handle: dict[int, Tensor] = {}
        self._count = 0

    def tensor(self, name: str) -> Tensor:
        """The tensor of that name."""
        return self.wrap(self.graph.tensors[name])

    def wrap(self, handle: Handle) -> Tensor:
        """The `Tensor` of a graph handle; one object per handle."""
        known = self._of_handle.get(id(handle))
        if known is None:
            known = Tensor(self, handle)
            self._of_handle[id(handle)] = known
        return known

    def constant(self, value: Any, dtype: np.dtype[Any]) -> Tensor:
        """A constant array, deduplicated by content."""
        array = np.asarray(value, dtype=dtype)
        key = (dtype, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"onnxlift/{array.item()}" if array.ndim == 0 else "onnxlift/constant"
            self._constants[key] = self.wrap(self.graph.constant(name, array))
        return self._constants[key]

    def ints(self, values: Sequence[int]) -> Tensor:
        """A one-dimensional int64 constant: axes, shapes, pads."""
        return self.constant(list(values), INT64)

    def op(self, op: str, *inputs: Tensor | None, **attributes: Any) -> Tensor:
        """One node with one output. Keywords `shape` and `dtype` describe the output where the defaults do not."""
        return self.ops(op, *inputs, shapes=[attributes.pop("shape", None)], **attributes)[0]

    def ops(
        self,
        op: str,
        *inputs: Tensor | None,
        shapes: Sequence[Shape],
        dtypes: Sequence[np.dtype[Any]] | None = None,
        dtype: np.dtype[Any] | None = None,
        domain: str = "",
        names: Sequence[str] | None = None,
        **attributes: Any,
    ) -> tuple[Tensor, ...]:
        """One node with `len(shapes)` outputs. An attribute that is None is left out.

        `names` names the outputs (an empty one is omitted) and the node; others get a short name, for an explainer
        has several such nodes for every node of the model.
        """
        attributes = {key: value for key, value in attributes.items() if value is not None}
        key = (
            op,
            domain,
            len(shapes),
            tuple(None if tensor is None else id(tensor.handle) for tensor in inputs),
            tuple(sorted((name, _frozen(value)) for name, value in attributes.items())),
        )
        if key in self._nodes:
            return self._nodes[key]
        handles = []
        for index, shape in enumerate(shapes):
            inferred = shape if shape is not None else _inferred_shape(op, inputs)
            kind = dtypes[index] if dtypes else dtype or _inferred_dtype(op, inputs)
            output = names[index] if names else self._fresh(op)
            handles.append(self.graph.variable(output, kind, inferred) if output else self.graph.omitted())
        name = next(filter(None, names), "") if names else ""
        self.graph.node(op, [t and t.handle for t in inputs], handles, attributes, name=name, domain=domain)
        self._nodes[key] = tuple(self.wrap(handle) for handle in handles)
        return self._nodes[key]

    def _fresh(self, op: str) -> str:
        self._count += 1
        return f"{op}.{self._count}"


def unary(op: str, x: Tensor, **attributes: Any) -> Tensor:
    """Any elementwise operator of one tensor."""
    return x.emitter.op(op, x, **attributes)


def binary(op: str, a: Operand, b: Operand) -> Tensor:
    """Any broadcasting operator of two tensors; a number takes the dtype of the other side."""
    tensor = a if isinstance(a, Tensor) else b
    assert isinstance(tensor, Tensor)
    emitter = tensor.emitter
    left = a if isinstance(a, Tensor) else emitter.constant(a, tensor.dtype)
    right = b if isinstance(b, Tensor) else emitter.constant(b, tensor.dtype)
    if op in _FOLDED and tensor.dtype == INT64 and left.value is not None and right.value is not None:
        return emitter.constant(_FOLDED[op](left.value, right.value), INT64)
    return emitter.op(op, left, right)


_FOLDED: dict[str, Callable[[Array, Array], Array]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": lambda a, b: np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b)),  # ONNX's: towards zero
    "Max": np.maximum,
    "Min": np.minimum,
}
"""Shape arithmetic that is done here where the shapes are known."""


absolute = functools.partial(unary, "Abs")
exp = functools.partial(unary, "Exp")
log = functools.partial(unary, "Log")
sqrt = functools.partial(unary, "Sqrt")
tanh = functools.partial(unary, "Tanh")
sigmoid = functools.partial(unary, "Sigmoid")
erf = functools.partial(unary, "Erf")
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
    tensor = a if isinstance(a, Tensor) else b
    assert isinstance(tensor, Tensor)
    emitter = tensor.emitter
    left = a if isinstance(a, Tensor) else emitter.constant(a, tensor.dtype)
    right = b if isinstance(b, Tensor) else emitter.constant(b, tensor.dtype)
    return emitter.op("Where", condition, left, right, dtype=tensor.dtype)


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
    return _reduce("ReduceSum", x, axes, keepdims)


def reduce_mean(x: Tensor, axes: Sequence[int], keepdims: bool = True) -> Tensor:
    """Mean over `axes` (non-negative); no axes: `x` itself."""
    return _reduce("ReduceMean", x, axes, keepdims)


def reduce_max(x: Tensor, axes: Sequence[int], keepdims: bool = True) -> Tensor:
    """Maximum over `axes` (non-negative); no axes: `x` itself."""
    return _reduce("ReduceMax", x, axes, keepdims)


def _reduce(op: str, x: Tensor, axes: Sequence[int], keepdims: bool) -> Tensor:
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
    zero, one = (emitter.constant(number, INT64) for number in (0, 1))
    return emitter.op("Range", zero, reshape(count, []), one, shape=(None,))


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
        known = isinstance(start, int) and isinstance(stop, int) and 0 <= start <= stop
        dims[axis] = stop - start if known and isinstance(start, int) and isinstance(stop, int) else None
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


def broadcast_shape(a: Shape, b: Shape) -> Shape:
    """NumPy broadcasting on symbolic dimensions; None where it cannot be told."""
    if a is None or b is None:
        return None
    rank = max(len(a), len(b))
    padded_a, padded_b = ((1,) * (rank - len(shape)) + tuple(shape) for shape in (a, b))
    return tuple(_broadcast_dim(i, j) for i, j in zip(padded_a, padded_b, strict=True))


def _broadcast_dim(a: Dim, b: Dim) -> Dim:
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    if isinstance(a, int):
        return a
    return b if isinstance(b, int) else None


def _matmul_shape(a: Shape, b: Shape) -> Shape:
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return None
    stack = broadcast_shape(a[:-2], b[:-2])
    return None if stack is None else (*stack, a[-2], b[-1])


def _inferred_shape(op: str, inputs: Sequence[Tensor | None]) -> Shape:
    present = [tensor for tensor in inputs if tensor is not None]
    if op in _SAME_SHAPE:
        return present[0].shape
    if op in _BROADCASTING:
        return functools.reduce(broadcast_shape, (tensor.shape for tensor in present))
    return None


def _inferred_dtype(op: str, inputs: Sequence[Tensor | None]) -> np.dtype[Any]:
    if op in _TO_INT64:
        return INT64
    if op in _TO_BOOL:
        return BOOL
    return next(tensor for tensor in inputs if tensor is not None).dtype


def _frozen(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, np.ndarray):
        return (value.dtype, value.shape, value.tobytes())
    return value if isinstance(value, int | float | str | bytes) else id(value)
