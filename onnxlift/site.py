"""What a rule sees of one node: values at the input and at the reference, attributes, upstream multipliers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from onnxlift.errors import Unsupported
from onnxlift.functions import absolute, concat, expand, reduce_sum, reshape, shape_of, slice_axis
from onnxlift.graph import Dim, Shape
from onnxlift.signed import Parts, by_sign
from onnxlift.tensor import Array, Emitter, Tensor

if TYPE_CHECKING:
    from onnxlift.through import Through

_NO_DEFAULT = object()


class Pairing:
    """How samples and references meet. This base class: one reference per sample, or one that broadcasts.

    `Crossed` (in rows.py) brings N samples and K references to a common batch of N * K, tensor by tensor and
    only where a rule asks for one, so that the forward passes cost N + K.
    """

    thin = False
    """Whether values at the reference have a leading extent of 1 where those at the input have N."""
    repeats = False
    """Whether values of either run have fewer rows than the walk back."""

    def x(self, tensor: Tensor) -> Tensor:
        """A value of the input run, with the batch of the backward walk."""
        return tensor

    def r(self, tensor: Tensor) -> Tensor:
        """A value of the reference run, with the batch of the backward walk, or one row that broadcasts to it."""
        return tensor

    def shape(self, tensor: Tensor) -> Shape:
        """The shape of `self.x(tensor)`."""
        return tensor.shape

    def run_shape(self, tensor: Tensor) -> Tensor:
        """The run-time shape of `self.x(tensor)`."""
        return shape_of(tensor)


class Value:
    """One tensor of the model: `x` at the input, `r` at the reference.

    `name` is the model's. `active` says whether importance flows through it. In `r` the leading axis may be 1 where it
    is N in `x`.
    """

    def __init__(self, name: str, x: Tensor, r: Tensor, active: bool, pairing: Pairing) -> None:
        self.name = name
        self._x = x
        self._r = r
        self.active = active
        self._pairing = pairing

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._x.dtype

    @property
    def shape(self) -> Shape:
        """Symbolic shape of `x`."""
        return self._pairing.shape(self._x)

    @property
    def rank(self) -> int:
        if self._x.shape is None:
            raise Unsupported(f"the rank of tensor {self.name!r} is unknown")
        return len(self._x.shape)

    @property
    def constant(self) -> Array | None:
        """The value of a small constant (axes, pads, exponents); None for everything else."""
        return self._x.value

    @property
    def varies(self) -> bool:
        """Whether it is computed once for each run: the attributed inputs lead to it."""
        return self._r is not self._x

    @property
    def is_shared(self) -> bool:
        """Whether rows of the walk back share a row of a run: what is made of that run alone is computed less often."""
        return self.varies and (self._pairing.thin or self._pairing.repeats)

    @cached_property
    def x(self) -> Tensor:
        return self._pairing.x(self._x)

    @cached_property
    def r(self) -> Tensor:
        return self.x if self._r is self._x else self._pairing.r(self._r)

    def map(self, f: Callable[..., Tensor], *others: Value) -> Value:
        """`f` of the value (and of others) in either run, before samples meet references: once for N + K rows.

        `f` must leave the leading axis as it is.
        """
        values = (self, *others)
        x = f(*(value._x for value in values))
        r = f(*(value._r for value in values)) if any(value.varies for value in values) else x
        return Value(self.name, x, r, self.active, self._pairing)

    @cached_property
    def d(self) -> Tensor:
        """Difference-from-reference, x - r."""
        return self.x - self.r

    @cached_property
    def parts(self) -> Parts:
        """The signed parts of `d`. The walk sets them where the operator behind tells causes apart."""
        return by_sign(self.d)

    @cached_property
    def mid(self) -> Tensor:
        """Midpoint, (x + r) / 2."""
        return (self.x + self.r) * 0.5 if self.active else self.x

    @cached_property
    def full_r(self) -> Tensor:
        """`r` with the leading extent of `x`, for operators that cannot broadcast (indices, scatter)."""
        return self.spread(self.r) if self.varies and self._pairing.thin else self.r

    @cached_property
    def run_shape(self) -> Tensor:
        """Shape in the backward walk, int64: a constant where every dimension is known."""
        return self._pairing.run_shape(self._x)

    def like(self, m: Tensor) -> Tensor:
        """`m` reshaped to the shape of `x`: a constant shape where at most one dimension is unknown."""
        if self.shape is not None and sum(not isinstance(dim, int) for dim in self.shape) <= 1:
            result = reshape(m, [dim if isinstance(dim, int) else -1 for dim in self.shape])
        else:
            result = reshape(m, self.run_shape)
        result.shape = self.shape
        return result

    def spread(self, m: Tensor) -> Tensor:
        """`m` broadcast to the shape of `x`."""
        result = expand(m, self.run_shape)
        result.shape = self.shape
        return result

    def zeros(self) -> Tensor:
        """Zeros of the shape of `x`."""
        return self.spread(self._x.emitter.constant(0, self.dtype))

    def dim(self, axis: int) -> Tensor:
        """One extent as an int64 tensor of shape [1]."""
        axis %= self.rank
        assert self.shape is not None
        known = self.shape[axis]
        if isinstance(known, int):
            return self._x.emitter.ints([known])
        if axis:
            return shape_of(self._x, axis, axis + 1)
        return slice_axis(self.run_shape, 0, 0, 1)


class Site:
    """One node of the model on the path of importance.

    `inputs` and `outputs` are `Value`s (None: omitted); `multipliers` are the upstream multipliers, one per output,
    in the output's shape (None: the output does not reach the target). `roots`: the float tensors that the node's
    data-dependent condition is made of, by way of the nodes `masks`, in their order; there are none where it is an
    elementwise function of one root. `half`: (m+ - m-)/2 of the first output, for rules that
    treat the two apart; `absolute`: `multipliers` are such halves, which pass the absolute values of all weights.
    `batched`: the model has a batch axis, in front; `samples`: its extent or symbol in the backward walk, if known.
    `inverses`: which inputs are computed as 1 / b or b^-1/2.
    """

    def __init__(
        self,
        emitter: Emitter,
        op: str,
        name: str,
        attributes: Mapping[str, Any],
        inputs: Sequence[Value | None],
        outputs: Sequence[Value | None],
        multipliers: Sequence[Tensor | None],
        roots: Sequence[Value] = (),
        masks: Sequence[Site] = (),
        *,
        batched: bool = False,
        samples: Dim = None,
        half: Tensor | None = None,
        absolute: bool = False,
        through: Through | None = None,
        inverses: Sequence[bool] = (),
    ) -> None:
        self.emitter = emitter
        self.op = op
        self.name = name
        self.attributes = attributes
        self.inputs = inputs
        self.outputs = outputs
        self.multipliers = multipliers
        self.roots = roots
        self.masks = masks
        self.batched = batched
        self.samples = samples
        self.half = half
        self.absolute = absolute
        self._through = through
        self.inverses = inverses

    @property
    def through(self) -> Through:
        """The way back through the bodies of an If, Loop or Scan."""
        assert self._through is not None, f"{self.op} {self.name!r} has no bodies"
        return self._through

    def weight(self, w: Tensor) -> Tensor:
        """A factor that multipliers are multiplied with: its absolute value where halves pass (METHOD section 2)."""
        return absolute(w) if self.absolute else w

    def minus(self, m: Tensor) -> Tensor:
        """-m, the factor -1 being a weight."""
        return m if self.absolute else -m

    def again(self, *inputs: Tensor | None) -> Tensor:
        """The operator applied to other tensors; inputs that are not given are taken at x."""
        rest = [self.tensor(index) for index in range(len(inputs), len(self.inputs))]
        y = self.y
        return self.emitter.op(self.op, *inputs, *rest, shape=y.shape, dtype=y.dtype, **self.attributes)

    @property
    def operands(self) -> list[Value]:
        """The inputs, all of which must be there."""
        return [self.input(index) for index in range(len(self.inputs))]

    @property
    def active(self) -> list[int]:
        """Which inputs carry importance."""
        return [index for index, value in enumerate(self.inputs) if value is not None and value.active]

    @property
    def argument(self) -> Value:
        """The input that an elementwise function is of, all others being constants."""
        active = [self.input(index) for index in self.active]
        if len(active) != 1 or (active[0] is not self.x and self.op != "Pow"):
            found = " and ".join(repr(value.name) for value in active)
            self.refuse(f"it has to be a function of one tensor, but {found} depend on the attributed inputs")
        return active[0]

    def at(self, x: Tensor, r: Tensor) -> Site:
        """The same elementwise function between two other points of its argument."""
        before = self.inputs.index(self.argument)
        rest = [self.tensor(index) for index in range(before)]
        y, y0 = (self.again(*rest, point) for point in (x, r))
        points, values = (Value(self.op, *pair, True, Pairing()) for pair in ((x, r), (y, y0)))
        inputs = [*self.inputs[:before], points, *self.inputs[before + 1 :]]
        return Site(self.emitter, self.op, self.name, self.attributes, inputs, [values], self.multipliers)

    def attribute(self, name: str, default: Any = _NO_DEFAULT) -> Any:
        """An attribute's value, or its default."""
        if name in self.attributes:
            return self.attributes[name]
        if default is _NO_DEFAULT:
            raise Unsupported(f"attribute {name!r} is missing")
        return default

    def input(self, index: int) -> Value:
        """An input that must be there."""
        value = self.optional(index)
        if value is None:
            raise Unsupported(f"input {index} is missing")
        return value

    def optional(self, index: int) -> Value | None:
        """An input, or None where it is omitted."""
        return self.inputs[index] if index < len(self.inputs) else None

    def tensor(self, index: int) -> Tensor | None:
        """The value at x of an input, None where it is omitted."""
        value = self.optional(index)
        return None if value is None else value.x

    def constant(self, index: int, what: str) -> Array | None:
        """The value of a constant input; None where the input is omitted. `what` names it for the error."""
        value = self.optional(index)
        if value is None:
            return None
        if value.constant is None:
            raise Unsupported(f"{what} is not a constant (tensor {value.name!r})")
        return value.constant

    def refuse(self, reason: str) -> NoReturn:
        """The rule does not hold for this node."""
        raise Unsupported(reason)

    def only_active(self, *indices: int) -> None:
        """Refuse the node if importance reaches an input other than these."""
        for index, value in enumerate(self.inputs):
            if value is not None and value.active and index not in indices:
                self.refuse(f"input {index} ({value.name!r}) depends on the attributed inputs")

    @property
    def x(self) -> Value:
        """The first input."""
        return self.input(0)

    @property
    def y(self) -> Value:
        """The first output."""
        value = self.outputs[0]
        assert value is not None
        return value

    @property
    def m(self) -> Tensor:
        """The multiplier of the first output."""
        if self.multipliers[0] is None:
            raise Unsupported("importance arrives at a secondary output only")
        return self.multipliers[0]


def unbroadcast(m: Tensor, of: Shape, value: Value) -> Tensor:
    """Sum `m`, which has shape `of`, over the axes along which `value` was broadcast to it."""
    to = value.shape
    if of is None or to is None:
        raise Unsupported(f"the rank of tensor {value.name!r} or of what it is broadcast to is unknown")
    lead = len(of) - len(to)
    padded = (1,) * lead + tuple(to)
    pairs = list(zip(padded, of, strict=True))
    summed = [axis for axis, (dim, wide) in enumerate(pairs) if dim == 1 and wide != 1]
    unsure = [axis for axis, (dim, wide) in enumerate(pairs) if axis and _may_be_broadcast(dim, wide)]
    if unsure:
        return _unbroadcast_at_run_time(m, len(of), value, lead)
    m = reduce_sum(m, summed)
    return value.like(m) if lead else m


def _may_be_broadcast(dim: int | str | None, wide: int | str | None) -> bool:
    return not isinstance(dim, int) and (dim is None or dim != wide)


def _unbroadcast_at_run_time(m: Tensor, rank: int, value: Value, lead: int) -> Tensor:
    """As `unbroadcast`, for extents that are known only at run time: axes of extent 1 are summed."""
    emitter = m.emitter
    shape = value.run_shape
    if lead:
        shape = concat([emitter.ints([1] * lead), shape], axis=0)
    axes = emitter.op("NonZero", shape.equals(emitter.ints([1])), shape=(1, None))
    axes = reshape(axes, [-1])
    summed = emitter.op("ReduceSum", m, axes, keepdims=1, noop_with_empty_axes=1, shape=(None,) * rank)
    return value.like(summed)
