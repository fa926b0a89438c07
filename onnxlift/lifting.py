"""Operators over all iterations at once: what one does to slices, done to tensors that hold a slice per iteration.

Such a stack has the iterations in front: the axes of an operator move back by one, and stacks are aligned with operands
that all iterations share. The operators that are missing here read their slices one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxlift.functions import concat, expand, shape_of, swap_last, unsqueeze
from onnxlift.tensor import Tensor

Attributes = Mapping[str, Any]
Lifted = tuple[str, Sequence[Tensor | None], Attributes]
"""The node that makes stacks of an operator's outputs: operator, inputs, attributes."""


@dataclass(frozen=True)
class Operand:
    """An input outside of the body: the `stack` of what all iterations see, or a tensor that they share.

    `rank` is that of one slice.
    """

    tensor: Tensor
    rank: int
    stack: bool

    def aligned(self, rank: int) -> Tensor:
        """To be broadcast with slices of `rank` axes: axes of extent 1 go between the iterations and the others."""
        missing = rank - self.rank
        return unsqueeze(self.tensor, range(1, 1 + missing)) if self.stack and missing else self.tensor

    def spread(self, steps: Tensor) -> Tensor:
        """A stack, of `steps` equal slices where all iterations share the tensor."""
        return self.tensor if self.stack else expand(self.tensor, concat([steps, shape_of(self.tensor)], 0))


@dataclass(frozen=True)
class Call:
    """One node of a body. `operands`: its inputs (None: omitted); `steps`: the number of iterations, int64, [1]."""

    op: str
    operands: Sequence[Operand | None]
    attributes: Attributes
    steps: Tensor

    def shared(self, index: int) -> Tensor | None:
        """An input that is the same in all iterations; None where it is omitted, or is a stack."""
        operand = self.operands[index] if index < len(self.operands) else None
        return None if operand is None or operand.stack else operand.tensor

    def share(self, *indices: int) -> bool:
        """Whether no iteration has inputs of its own at these places."""
        present = [self.operands[index] for index in indices if index < len(self.operands)]
        return not any(operand is not None and operand.stack for operand in present)

    def axes(self, index: int) -> list[int] | None:
        """The axes that a constant input names, in the stack."""
        given = self.shared(index)
        return None if given is None or given.value is None else [_moved(int(axis)) for axis in given.value]

    def lifted(self, *inputs: Tensor | None, **changed: Any) -> Lifted:
        return self.op, inputs, {**self.attributes, **changed}

    @property
    def first(self) -> Operand:
        operand = self.operands[0]
        assert operand is not None, f"the first input of {self.op} is missing"
        return operand

    @property
    def others(self) -> list[Tensor | None]:
        """The tensors behind the first one."""
        return [None if operand is None else operand.tensor for operand in self.operands[1:]]


Lift = Callable[[Call], Lifted | None]
_LIFTS: dict[str, Lift] = {}


def lift(call: Call) -> Lifted | None:
    """The node over all iterations at once, with whatever it reads made; None where there is none."""
    function = _LIFTS.get(call.op)
    return None if function is None else function(call)


def _lifts(ops: str) -> Callable[[Lift], Lift]:
    def register(function: Lift) -> Lift:
        _LIFTS.update(dict.fromkeys(ops.split(), function))
        return function

    return register


def _moved(axis: int) -> int:
    """An axis of a slice in the stack: one that counts from the end stays."""
    return axis + 1 if axis >= 0 else axis


@_lifts(
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh Cast Ceil Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu "
    "Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min "
    "Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign "
    "Sqrt Sub Sum Tan Tanh ThresholdedRelu Where Xor"
)
def _elementwise(call: Call) -> Lifted | None:
    if call.op in ("Clip", "PRelu") and not call.share(1, 2):
        return None
    rank = max(operand.rank for operand in call.operands if operand is not None)
    return call.lifted(*(None if operand is None else operand.aligned(rank) for operand in call.operands))


@_lifts("MatMul")
def _matrix_product(call: Call) -> Lifted | None:
    a, b = (operand for operand in call.operands if operand is not None)
    if a.stack and not b.stack and b.rank <= 2:  # vectors become the rows of a matrix
        return call.lifted(a.tensor, b.tensor)
    if a.rank < 2 or b.rank < 2:
        return None
    rank = max(a.rank, b.rank)
    return call.lifted(a.aligned(rank), b.aligned(rank))


@_lifts("Gemm")
def _gemm(call: Call) -> Lifted:
    """alpha A' B' + beta C as MatMul, Mul and Add: Gemm takes no stacks."""
    a, b, *rest = call.operands
    assert a is not None
    assert b is not None
    factors = [
        swap_last(operand.tensor) if call.attributes.get(name, 0) else operand.tensor
        for operand, name in ((a, "transA"), (b, "transB"))
    ]
    alpha, beta = (call.attributes.get(name, 1.0) for name in ("alpha", "beta"))
    c = next((operand.aligned(2) for operand in rest if operand is not None), None)
    if alpha != 1:
        factors[1] = factors[1] * alpha
    if c is None:
        return "MatMul", factors, {}
    return "Add", [factors[0] @ factors[1], c if beta == 1 else c * beta], {}


_AXES = {"Split": 0, "ArgMax": 0, "ArgMin": 0}
"""The axis of operators that have another than the last where none is given."""


@_lifts("ArgMax ArgMin Hardmax LayerNormalization LogSoftmax Softmax Split TopK")
def _along_an_axis(call: Call) -> Lifted | None:
    if not call.share(*range(1, len(call.operands))):
        return None
    axis = _moved(call.attributes.get("axis", _AXES.get(call.op, -1)))
    return call.lifted(call.first.tensor, *call.others, axis=axis)


@_lifts("Concat GatherElements")
def _of_stacks(call: Call) -> Lifted | None:
    if call.op == "GatherElements" and not call.first.stack:
        return None
    spread = [operand.spread(call.steps) for operand in call.operands if operand is not None]
    return call.lifted(*spread, axis=_moved(call.attributes.get("axis", 0)))


@_lifts(
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
)
def _reduction(call: Call) -> Lifted | None:
    x, axes = call.first, call.axes(1)
    if len(call.operands) < 2 or call.operands[1] is None:
        axes = None if call.attributes.get("noop_with_empty_axes", 0) else list(range(1, x.rank + 1))
    return call.lifted(x.tensor, x.tensor.emitter.ints(axes)) if axes else None


@_lifts("CumSum Squeeze Unsqueeze")
def _with_axes(call: Call) -> Lifted | None:
    x, given = call.first, call.shared(1)
    if given is None or given.value is None or not x.stack:
        return None
    moved = [_moved(int(axis)) for axis in given.value.reshape(-1)]
    return call.lifted(x.tensor, x.tensor.emitter.constant(moved if given.value.ndim else moved[0], given.dtype))


@_lifts("Slice")
def _slice(call: Call) -> Lifted | None:
    starts, axes = call.shared(1), call.axes(3)
    if axes is None and call.share(3) and (len(call.operands) < 4 or call.operands[3] is None):
        count = starts.shape[0] if starts is not None and starts.shape else None
        axes = list(range(1, 1 + count)) if isinstance(count, int) else None
    if axes is None or not call.share(1, 2, 4):
        return None
    bounds = call.others
    return call.lifted(call.first.tensor, *bounds[:2], call.first.tensor.emitter.ints(axes), *bounds[3:])


@_lifts("Pad")
def _pad(call: Call) -> Lifted | None:
    pads, x = call.shared(1), call.first
    if pads is None or pads.value is None or not call.share(2) or len(call.operands) > 3:
        return None
    given = [int(pad) for pad in pads.value]
    moved = x.tensor.emitter.ints([0, *given[: x.rank], 0, *given[x.rank :]])
    return call.lifted(x.tensor, moved, *call.others[1:])


@_lifts("Transpose")
def _transpose(call: Call) -> Lifted:
    x = call.first
    given = call.attributes.get("perm") or reversed(range(x.rank))
    return call.lifted(x.tensor, perm=[0, *(axis + 1 for axis in given)])


@_lifts("Reshape")
def _reshape(call: Call) -> Lifted | None:
    """A 0 copies the extent at its place, which moves as well."""
    shape, x = call.shared(1), call.first
    if shape is None or call.attributes.get("allowzero", 0):
        return None
    return call.lifted(x.tensor, concat([shape.emitter.ints([0]), shape], 0))


@_lifts("Expand")
def _expand(call: Call) -> Lifted | None:
    shape, x = call.shared(1), call.first
    rank = shape.shape[0] if shape is not None and shape.shape else None
    if shape is None or not isinstance(rank, int):
        return None
    return call.lifted(x.aligned(max(rank, x.rank)), concat([shape.emitter.ints([1]), shape], 0))


@_lifts("Gather")
def _gather(call: Call) -> Lifted | None:
    """Of a shared tensor at indices of each iteration, or of each iteration's at shared ones."""
    x, indices = call.operands
    assert x is not None
    assert indices is not None
    axis = call.attributes.get("axis", 0)
    if not indices.stack:
        return call.lifted(x.tensor, indices.tensor, axis=_moved(axis))
    if x.stack:
        return None
    axis %= x.rank
    if not axis:
        return call.lifted(x.tensor, indices.tensor)
    found = x.tensor.emitter.op("Gather", x.tensor, indices.tensor, axis=axis, dtype=x.tensor.dtype)
    rank = x.rank + indices.rank
    return "Transpose", [found], {"perm": [axis, *(k for k in range(rank) if k != axis)]}
