"""Symbolic tensors: what the rules compute with.

A `Tensor` names a value of the graph under construction. Operators are overloaded and onnxlift/functions.py mirrors
NumPy, so that a rule reads like its equation; each of them appends ONNX nodes through the `Emitter`, which writes a
repeated subexpression only once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxlift.errors import Unsupported
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

    __slots__ = ("_shape", "emitter", "handle", "multiple", "value")

    def __init__(self, emitter: Emitter, handle: Handle) -> None:
        self.emitter = emitter
        self.handle = handle
        self.value = Graph.value(handle)
        self.multiple: tuple[Tensor, float] = (self, 1.0)
        """What it is a multiple of, and which."""
        self._shape = Graph.shape(handle)

    @property
    def shape(self) -> Shape:
        return self._shape

    @shape.setter
    def shape(self, shape: Shape) -> None:
        """For what is known better than it was inferred."""
        self._shape = shape
        Graph.set_shape(self.handle, shape)

    @property
    def name(self) -> str:
        return str(self.handle.name)

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype = Graph.dtype(self.handle)
        if dtype is None:
            raise Unsupported(f"the element type of tensor {self.name!r} is unknown")
        return dtype

    @property
    def rank(self) -> int:
        """Number of axes; the shape must be known to that extent."""
        if self.shape is None:
            raise Unsupported(f"the rank of tensor {self.name!r} is unknown")
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


@dataclass(frozen=True)
class NewNode:
    """A node to be written. `shapes`, `dtypes` and `names` are those of its outputs: None where they are to be told
    from the inputs, or made."""

    op: str
    inputs: Sequence[Tensor | None]
    shapes: Sequence[Shape]
    dtypes: Sequence[np.dtype[Any] | None]
    attributes: Mapping[str, Any]
    domain: str = ""
    names: Sequence[str] | None = None


class Emitter:
    """Appends nodes to a `Graph`; equal nodes and equal constants are written once."""

    def __init__(self, graph: Graph, outer: Emitter | None = None) -> None:
        self.graph = graph
        self._outer = outer
        self._nodes: dict[Any, tuple[Tensor, ...]] = {}
        self._constants: dict[Any, Tensor] = {}
        self._of_handle: dict[int, Tensor] = {}
        self._count = 0

    def inside(self) -> Emitter:
        """An emitter of a new body, which may read the tensors of this one through `adopt`."""
        return Emitter(self.graph.new_body(), self)

    def adopt(self, tensor: Tensor) -> Tensor:
        """A tensor from outside, to be computed with in this body."""
        adopted = self.wrap(tensor.handle)
        adopted._shape = tensor.shape
        return adopted

    def finish(self, outputs: Sequence[Tensor]) -> object:
        """Close a body; returns it as the attribute of a node. Every output gets a name of its own."""
        handles = []
        for tensor in outputs:
            handles.append(self.graph.variable(self._fresh("output"), tensor.dtype, tensor.shape))
            self.graph.node("Identity", [tensor.handle], [handles[-1]], {}, name=handles[-1].name)
        self.graph.set_outputs(handles)
        return self.graph.as_attribute

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

    def constant(self, value: Any, dtype: np.dtype[Any], *, host: bool = False) -> Tensor:
        """A constant array, deduplicated by content. Those of bodies belong to the main graph.

        `host`: it is read on the CPU wherever the graph runs. Where something on a GPU reads it too, ONNX Runtime would
        copy it in every iteration of a body.
        """
        if self._outer is not None:
            return self.adopt(self._outer.constant(value, dtype, host=host))
        array = np.asarray(value, dtype=dtype)
        key = (dtype, array.shape, array.tobytes(), host)
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
        dtypes: Sequence[np.dtype[Any] | None] | None = None,
        dtype: np.dtype[Any] | None = None,
        domain: str = "",
        names: Sequence[str] | None = None,
        **attributes: Any,
    ) -> tuple[Tensor, ...]:
        """One node with `len(shapes)` outputs. An attribute that is None is left out.

        `names` names the outputs (an empty one is omitted) and the node; others get a short name, for an explainer
        has several such nodes for every node of the model.
        """
        while inputs and inputs[-1] is None:  # an omitted last input is not there at all
            inputs = inputs[:-1]
        attributes = {key: value for key, value in attributes.items() if value is not None}
        kinds = dtypes or [dtype] * len(shapes)
        return self._append(NewNode(op, inputs, shapes, kinds, attributes, domain, names))

    def _append(self, node: NewNode) -> tuple[Tensor, ...]:
        """Write a node, or find the one that is equal; its outputs."""
        key = (
            node.op,
            node.domain,
            len(node.shapes),
            tuple(None if tensor is None else id(tensor.handle) for tensor in node.inputs),
            tuple(sorted((name, _frozen(value)) for name, value in node.attributes.items())),
        )
        if key in self._nodes:
            return self._nodes[key]
        handles = []
        for index, shape in enumerate(node.shapes):
            inferred = shape if shape is not None else _inferred_shape(node.op, node.inputs)
            kind = node.dtypes[index] or _inferred_dtype(node.op, node.inputs)
            output = node.names[index] if node.names else self._fresh(node.op)
            handles.append(self.graph.variable(output, kind, inferred) if output else self.graph.omitted())
        name = next((handle.name for handle in handles if handle.name), "") if node.names else ""
        inputs = [tensor and tensor.handle for tensor in node.inputs]
        self.graph.node(node.op, inputs, handles, node.attributes, name=name, domain=node.domain)
        self._nodes[key] = tuple(self.wrap(handle) for handle in handles)
        return self._nodes[key]

    def _fresh(self, op: str) -> str:
        if self._outer is not None:
            return self._outer._fresh(op)
        self._count += 1
        return f"{op}.{self._count}"


def unary(op: str, x: Tensor, **attributes: Any) -> Tensor:
    """Any elementwise operator of one tensor."""
    return x.emitter.op(op, x, **attributes)


def alike(a: Operand, b: Operand) -> tuple[Tensor, Tensor]:
    """Two operands as tensors: a number becomes a constant of the other's dtype."""
    tensor = a if isinstance(a, Tensor) else b
    assert isinstance(tensor, Tensor)
    left, right = (
        operand if isinstance(operand, Tensor) else tensor.emitter.constant(operand, tensor.dtype) for operand in (a, b)
    )
    return left, right


def scaled(x: Tensor, factor: float) -> Tensor:
    """factor * x, one multiplication also where x is a multiple already."""
    base, before = x.multiple
    result = x.emitter.op("Mul", base, x.emitter.constant(before * factor, x.dtype))
    result.multiple = base, before * factor
    return result


def binary(op: str, a: Operand, b: Operand) -> Tensor:
    """Any broadcasting operator of two tensors; a number takes the dtype of the other side."""
    left, right = alike(a, b)
    emitter = left.emitter
    if op in _FOLDED and left.dtype == INT64 and left.value is not None and right.value is not None:
        return emitter.constant(_FOLDED[op](left.value, right.value), INT64)
    if op == "Mul" and left.dtype.kind == "f" and not isinstance(b, Tensor):
        return scaled(left, float(b))
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
