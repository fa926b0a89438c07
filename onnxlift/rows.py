"""Rows of the walk back: pairs of a sample and a reference, or of a target too, without repeating what they share.

A tensor of the walk has a row for every combination of several factors (N samples, K references, T targets), the last
of which varies fastest. A value of the model at the input has a row per sample only, one at the reference a row per
reference. Such a tensor is *placed*: kept apart as [N, 1, 1, ...] or [1, K, 1, ...], beside its repetition to N * K * T
rows. Elementwise operators and reductions compute with what is kept apart, so that they broadcast where one operand
has a factor that another lacks: relu(x) and relu(r) are N and K rows of arithmetic, their sum N * K, and what it is
multiplied with N * K * T. Every other operator reads the repetition, and pruning drops those that nobody reads.

On the CPU broadcasting costs ONNX Runtime as much as an operator on operands of the full size, and Reshape nothing;
Expand and Tile are passes over the activations of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

from onnxlift.functions import concat, expand, reduce_mean, reshape, shape_of, squeeze, unsqueeze
from onnxlift.graph import Dim, Shape
from onnxlift.site import Pairing
from onnxlift.tensor import Emitter, Tensor, broadcast_shape

ELEMENTWISE = frozenset(
    (
        "Add Sub Mul Div Pow Max Min Where Equal Less Greater LessOrEqual GreaterOrEqual And Or Not Neg Abs Exp Log "
        "Sqrt Tanh Sigmoid Erf Sin Cos Tan Sinh Cosh Asin Acos Atan Relu Sign Cast Reciprocal Clip Floor Ceil Round "
        "IsNaN IsInf LeakyRelu Elu Selu Celu Softplus Softsign HardSigmoid HardSwish Gelu Mish ThresholdedRelu Shrink"
    ).split()
)
"""Operators that broadcast, or have one operand of the output's shape; their other operands are single numbers."""
REDUCTIONS = frozenset("ReduceSum ReduceMean ReduceMax ReduceMin".split())
MOST_AXES = 8
"""Tensors of more axes cannot be broadcast on CUDA: ONNX Runtime's kernels refuse them."""

SAMPLES, REFERENCES, TARGETS = "samples", "references", "targets"
"""The factors that rows are made of, in their order."""


class Factor(NamedTuple):
    """How many there are: a number or a symbol, and as an int64 tensor of shape [1]."""

    dim: Dim
    extent: Tensor


class Rows:
    """All combinations of some factors, by name and in order; `symbol` is what shapes call their number."""

    def __init__(self, emitter: RowEmitter, symbol: str, factors: Mapping[str, Factor]) -> None:
        self.emitter = emitter
        self.symbol = symbol
        self.factors = dict(factors)

    @property
    def count(self) -> Tensor:
        """Their number, int64, shape [1]."""
        return reduce(Tensor.__mul__, (factor.extent for factor in self.factors.values()))

    def place(self, tensor: Tensor, *over: str) -> Tensor:
        """A tensor that has a row for every combination of the factors `over`, repeated to all rows."""
        others = [axis for axis, name in enumerate(self.factors) if name not in over]
        if not others:
            tensor.shape = (self.symbol, *rest_of(tensor))
            return tensor
        split = self._split(tensor, over) if len(over) > 1 else tensor
        return self._placed(unsqueeze(split, others))

    def apart(self, tensor: Tensor) -> Tensor:
        """A tensor of all rows by its factors, [N, K, T, ...]; the extent is 1 where a factor makes no difference."""
        known = self.emitter.placed.get(id(tensor.handle))
        return known[1] if known is not None and known[0] is self else self._split(tensor, list(self.factors))

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over references of a tensor of all rows: [N, ...], or [N, T, ...] where there are targets."""
        apart, names = self.apart(tensor), list(self.factors)
        if REFERENCES in names:
            axis = names.index(REFERENCES)
            names.remove(REFERENCES)
            alike = apart.shape is not None and apart.shape[axis] == 1
            apart = squeeze(apart, [axis]) if alike else reduce_mean(apart, [axis], keepdims=False)
        return self._filled(apart, names)

    def widened(self, tensor: Tensor, rank: int) -> Tensor | None:
        """An operand as it broadcasts with placed tensors whose repetitions have `rank` axes; None: it does not."""
        known = self.emitter.placed.get(id(tensor.handle))
        if known is not None:
            return known[1] if known[0] is self and tensor.rank == rank else None
        if tensor.shape is None or tensor.rank > rank:
            return None
        if tensor.rank < rank:
            return tensor
        if tensor.shape[0] == 1:
            return unsqueeze(tensor, range(len(self.factors) - 1))
        return self.apart(tensor) if tensor.shape[0] == self.symbol else None

    def merged(self, apart: Tensor) -> Tensor:
        """All rows of a tensor that is kept apart; beside it, where a factor makes no difference."""
        full = all(dim == factor.dim for dim, factor in zip(apart.shape or (), self.factors.values(), strict=False))
        return self._joined(apart) if full else self._placed(apart)

    def _placed(self, apart: Tensor) -> Tensor:
        whole = self._joined(self._filled(apart, list(self.factors)))
        self.emitter.placed[id(whole.handle)] = (self, apart)
        return whole

    def _filled(self, apart: Tensor, names: Sequence[str]) -> Tensor:
        """A tensor with an axis for each of these factors, repeated along those of extent 1."""
        dims = [self.factors[name].dim for name in names]
        lacking = [dim != 1 and have == 1 for dim, have in zip(dims, apart.shape or (), strict=False)]
        if not any(lacking):
            return apart
        one = self.emitter.ints([1])
        extents = [self.factors[name].extent if lacks else one for name, lacks in zip(names, lacking, strict=True)]
        ones = [self.emitter.ints([1] * (apart.rank - len(names)))] if apart.rank > len(names) else []
        filled = expand(apart, concat([*extents, *ones], axis=0))
        filled.shape = (*dims, *(apart.shape or ())[len(names) :])
        return filled

    def _joined(self, apart: Tensor) -> Tensor:
        """[N, K, T, ...] -> [N * K * T, ...]."""
        joined = reshape(apart, _with_rest([self.emitter.ints([-1])], apart, len(self.factors)))
        joined.shape = (self.symbol, *(apart.shape or ())[len(self.factors) :])
        return joined

    def _split(self, tensor: Tensor, names: Sequence[str]) -> Tensor:
        """The rows of a tensor by these factors, all that they are made of."""
        extents = [self.factors[name].extent for name in names]
        split = reshape(tensor, _with_rest([self.emitter.ints([-1]), *extents[1:]], tensor, 1))
        split.shape = (*(self.factors[name].dim for name in names), *rest_of(tensor))
        return split


class RowEmitter(Emitter):
    """An emitter that computes with placed tensors before they are repeated, wherever the operator allows it.

    `placed`: the rows that a tensor is a repetition to, and what it repeats, by the identity of its handle.
    """

    placed: dict[int, tuple[Rows, Tensor]]

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.placed = {}

    def ops(self, op: str, *inputs: Tensor | None, shapes: Sequence[Shape], **keywords: Any) -> tuple[Tensor, ...]:
        """As of any emitter."""
        found = None
        if keywords.get("domain") or keywords.get("names"):  # the model's own operators, run as they are
            return super().ops(op, *inputs, shapes=shapes, **keywords)
        if op in ELEMENTWISE:
            found = self._elementwise(op, inputs, keywords)
        elif op in REDUCTIONS:
            found = self._reduction(op, inputs, keywords)
        elif op == "Shape" and keywords.get("start"):
            found = self._extents(inputs, shapes, keywords)
        return super().ops(op, *inputs, shapes=shapes, **keywords) if found is None else (found,)

    def _elementwise(self, op: str, inputs: Sequence[Tensor | None], keywords: Mapping[str, Any]) -> Tensor | None:
        here = [tensor for tensor in inputs if tensor is not None]
        placed = [tensor for tensor in here if id(tensor.handle) in self.placed]
        if not placed:
            return None
        rows, _ = self.placed[id(placed[0].handle)]
        rank = max(tensor.rank for tensor in placed)
        apart = {id(tensor): rows.widened(tensor, rank) for tensor in here}
        forms = [form for form in apart.values() if form is not None]
        if len(forms) < len(apart) or rank + len(rows.factors) - 1 > MOST_AXES:
            return None
        shape = reduce(broadcast_shape, (form.shape for form in forms))
        operands = [None if tensor is None else apart[id(tensor)] for tensor in inputs]
        (result,) = super().ops(op, *operands, shapes=[shape], **keywords)
        return rows.merged(result)

    def _reduction(self, op: str, inputs: Sequence[Tensor | None], keywords: Mapping[str, Any]) -> Tensor | None:
        x, axes = inputs if len(inputs) == 2 else (None, None)
        if x is None or axes is None or id(x.handle) not in self.placed or axes.value is None:
            return None
        rows, apart = self.placed[id(x.handle)]
        shift = len(rows.factors) - 1
        moved = [int(axis) % x.rank + shift for axis in axes.value]
        if not moved or shift in moved:
            return None
        keep = bool(keywords.get("keepdims", 1))
        shape = [1 if axis in moved else dim for axis, dim in enumerate(apart.shape or ()) if keep or axis not in moved]
        (result,) = super().ops(op, apart, self.ints(moved), shapes=[tuple(shape)], **keywords)
        return rows.merged(result)

    def _extents(
        self, inputs: Sequence[Tensor | None], shapes: Sequence[Shape], keywords: Mapping[str, Any]
    ) -> Tensor | None:
        """Of the axes behind the rows: those of what is repeated, which need not be repeated for it."""
        (x,) = inputs
        if x is None or id(x.handle) not in self.placed or keywords["start"] < 0 or (keywords.get("end") or 0) < 0:
            return None
        rows, apart = self.placed[id(x.handle)]
        shift, end = len(rows.factors) - 1, keywords.get("end")
        bounds = {"start": keywords["start"] + shift, "end": None if end is None else end + shift}
        return super().ops("Shape", apart, shapes=shapes, **bounds)[0]


class Crossed(Pairing):
    """Samples, references and targets: every value is placed among all rows of the walk back, where a rule asks for it.

    `leads`: what the rows of a value count, by the symbol in front of its shape. `thin`: values at the reference have
    one row, which broadcasts.
    """

    repeats = True

    def __init__(self, rows: Rows, leads: Mapping[Dim, Sequence[str]], *, thin: bool = False) -> None:
        self.rows = rows
        self.leads = leads
        self.thin = thin

    def x(self, tensor: Tensor) -> Tensor:
        return self.rows.place(tensor, *self.leads[lead_of(tensor)]) if lead_of(tensor) in self.leads else tensor

    r = x

    def shape(self, tensor: Tensor) -> Shape:
        return (self.rows.symbol, *rest_of(tensor)) if lead_of(tensor) in self.leads else tensor.shape

    def run_shape(self, tensor: Tensor) -> Tensor:
        if lead_of(tensor) not in self.leads:
            return shape_of(tensor)
        return concat([self.rows.count, shape_of(tensor, 1)], axis=0) if tensor.rank > 1 else self.rows.count


def lead_of(tensor: Tensor) -> Dim:
    """What is in front of the shape, None where that is unknown."""
    return (tensor.shape or (None,))[0]


def rest_of(x: Tensor) -> Sequence[Dim]:
    """The extents behind the rows."""
    return (x.shape or ())[1:]


def _with_rest(lead: Sequence[Tensor], tensor: Tensor, start: int) -> Tensor:
    """A shape: these extents, and those of `tensor` from axis `start` on."""
    rest = [shape_of(tensor, start)] if tensor.rank > start else []
    return concat([*lead, *rest], axis=0)
