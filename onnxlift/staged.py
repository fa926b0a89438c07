"""The body of a reversed Scan, from which everything is taken that can be computed for all iterations at once.

What the rules make of the states that the iterations began with (the values at x and at r, slopes, differences) does
not wait for the multipliers that come back. It is computed in front of the Scan, on stacks of all iterations: as a few
large nodes, in memory linear in the number of iterations. Only the recurrence of the multipliers is left inside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxlift.flow import RANDOM
from onnxlift.functions import transpose
from onnxlift.graph import Dim, Graph, Shape
from onnxlift.lifting import Call, Operand, lift
from onnxlift.protobuf import CONTROL
from onnxlift.tensor import Emitter, NewNode, Tensor

_OF_ONE_SIZE = frozenset(("Reshape", "Squeeze", "Transpose", "Unsqueeze"))
"""Operators whose output has as many elements as their input."""


@dataclass(frozen=True)
class Stack:
    """The slices of all iterations along an axis of `whole`; `direction` 1: the last iteration's comes first."""

    whole: Tensor
    axis: int = 0
    direction: int = 0


class Staged(Emitter):
    """Appends to a new body what needs what the body carries, and in front of it, to `front`, what does not.

    `steps`: the number of iterations, int64, [1]. `direction`: the order of the stacks that are made, as a Scan's.
    `scanned` are the inputs of the body behind those that it carries: the slices, and what they are slices of.
    """

    def __init__(self, front: Emitter, steps: Tensor, direction: int) -> None:
        super().__init__(front.graph.new_body(), front)
        self.scanned: list[tuple[Tensor, Stack]] = []
        self._front = front
        self._steps = steps
        self._direction = direction
        # tensors are known by the ids of their handles, which the graph keeps
        self._waiting: set[int] = set()  # what is computed in the body
        self._stacks: dict[int, Stack] = {}  # where a slice is from
        self._made: dict[int, Tensor] = {}  # the slice of a stack that was made here
        self._makers: dict[int, NewNode] = {}  # of what waits
        self._sizes: list[tuple[int, int]] = []  # of the slices that were given

    def carry(self, name: str, dtype: np.dtype[Any], shape: Shape) -> Tensor:
        """An input of the body that an iteration gets from the one before."""
        handle = self.graph.add_body_input(name, dtype, shape)
        self._waiting.add(id(handle))
        return self.wrap(handle)

    def slice(self, stack: Stack) -> Tensor:
        """What an iteration sees of a stack."""
        made = self._slice(stack)
        if made.shape is not None:
            self._sizes.append(_size(made.shape))
        return made

    def _slice(self, stack: Stack) -> Tensor:
        whole = stack.whole
        shape: Shape = None
        if whole.shape is not None:
            axis = stack.axis % whole.rank
            shape = (*whole.shape[:axis], *whole.shape[axis + 1 :])
        made = self.wrap(self.graph.add_body_input("slice", whole.dtype, shape))
        self.scanned.append((made, stack))
        self._stacks[id(made.handle)] = stack
        return made

    def _slice_once(self, whole: Tensor) -> Tensor:
        """The slice of a stack that was made here: always the same tensor."""
        key = id(whole.handle)
        if key not in self._made:
            self._made[key] = self._slice(Stack(whole, 0, self._direction))
        return self._made[key]

    def whole(self, tensor: Tensor) -> Tensor | None:
        """The stack of what all iterations have for this tensor, in front; None where they share it or compute it."""
        stack = self._stacks.get(id(tensor.handle))
        return None if stack is None else restacked(stack, 0, self._direction)

    def scattered(self, tensor: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """What a tensor is that only holds values at places of its own in each iteration; None for any other.

        Zeros of all its elements, in front; the stack of the places, in front; the values, [places], in the body.
        """
        maker = self._makers.get(id(tensor.handle))
        if maker is not None and maker.op in ("Reshape", "Cast") and maker.inputs[0] is not None:
            return self.scattered(maker.inputs[0])
        if maker is None or maker.op != "ScatterElements" or maker.attributes.get("reduction") != "add":
            return None
        onto, places, values = (given for given in maker.inputs if given is not None)
        whole = self.whole(places)
        if whole is None or len(places.shape or ()) != 1 or not _is_zero(onto) or not self._waits(values):
            return None
        return self._front.wrap(onto.handle), whole, values

    def needed_slices(self, idle: Sequence[str]) -> list[Stack]:
        """What a finished body reads slices of: one at least, as a Scan must. Takes its `idle` inputs away."""
        self.graph.drop_unread_inputs(idle)
        slots = [made.name for made, _ in self.scanned]
        gone = set(self.graph.drop_unread_inputs(slots[1:]))
        if len(gone) < len(slots) - 1:
            gone.update(self.graph.drop_unread_inputs(slots[:1]))
        return [stack for made, stack in self.scanned if made.name not in gone]

    def _append(self, node: NewNode) -> tuple[Tensor, ...]:
        waits = any(map(self._waits, node.inputs))
        if not waits and not node.domain and node.op not in CONTROL and node.op not in RANDOM:
            ahead = self._ahead(node)
            if ahead is not None:
                return ahead
        if node.op == "Mul" and waits:
            node = replace(node, inputs=self._reordered(*node.inputs))
        made = super()._append(node)
        self._waiting.update(id(tensor.handle) for tensor in made)
        if waits:
            self._makers.update({id(tensor.handle): node for tensor in made})
        return made

    def _waits(self, tensor: Tensor | None) -> bool:
        return tensor is not None and id(tensor.handle) in self._waiting

    def _ahead(self, node: NewNode) -> tuple[Tensor, ...] | None:
        """The node in front of the body, for all iterations; None where it has to read its slices one at a time."""
        front, inputs = self._front, node.inputs
        wholes = [tensor and self.whole(tensor) for tensor in inputs]
        outside = [t and (whole or front.wrap(t.handle)) for t, whole in zip(inputs, wholes, strict=True)]
        if not any(wholes):
            return tuple(self.adopt(tensor) for tensor in front._append(replace(node, inputs=outside)))
        if node.op == "Shape":  # all slices have one
            behind = {name: place + (place >= 0) for name, place in ({"start": 0} | dict(node.attributes)).items()}
            return (self.adopt(front.op("Shape", *outside, shape=node.shapes[0], **behind)),)
        if any(tensor is not None and tensor.shape is None for tensor in inputs):
            return None
        operands = [
            None if tensor is None or outer is None else Operand(outer, tensor.rank, whole is not None)
            for tensor, outer, whole in zip(inputs, outside, wholes, strict=True)
        ]
        lifted = lift(Call(node.op, operands, node.attributes, self._steps))
        if lifted is None:
            return None
        op, moved, changed = lifted
        longer = [None if shape is None else (None, *shape) for shape in node.shapes]
        made = front.ops(op, *moved, shapes=longer, dtypes=node.dtypes, names=node.names, **changed)
        return tuple(map(self._slice_once, made)) if op in _OF_ONE_SIZE or all(map(self._fits, made)) else None

    def _fits(self, whole: Tensor) -> bool:
        """Whether a slice is no larger than the largest that was given: a table that all iterations read stays one."""
        if whole.shape is None:
            return False
        free, known = _size(whole.shape[1:])
        return any(free <= other and known <= most for other, most in self._sizes)

    def _reordered(self, a: Tensor | None, b: Tensor | None) -> list[Tensor | None]:
        """m (v w) instead of (m v) w where only m waits: the factors are multiplied ahead. Not in half precision."""
        if not self._waits(a):
            a, b = b, a
        assert a is not None
        assert b is not None
        maker = self._makers.get(id(a.handle))
        if maker is None or maker.op != "Mul" or self._waits(b) or b.dtype.itemsize < 4:
            return [a, b]
        m, v = maker.inputs if self._waits(maker.inputs[0]) else reversed(maker.inputs)
        if v is None or self._waits(v):
            return [a, b]
        return [m, v * b]


def _size(shape: Sequence[Dim]) -> tuple[int, int]:
    """How many extents are unknown, and the product of the others."""
    known = [dim for dim in shape if isinstance(dim, int)]
    return len(shape) - len(known), math.prod(known)


def restacked(stack: Stack, axis: int, direction: int) -> Tensor:
    """The stack with its slices along another axis, or in the other order."""
    whole, last = stack.whole, (-1, -(2**63) + 1, -1)
    if stack.direction != direction:
        emitter = whole.emitter
        start, stop, step = (emitter.ints([number]) for number in last)
        whole = emitter.op("Slice", whole, start, stop, emitter.ints([stack.axis]), step, shape=whole.shape)
    if stack.axis == axis:
        return whole
    others = [k for k in range(whole.rank) if k != stack.axis % whole.rank]
    others.insert(axis % whole.rank, stack.axis % whole.rank)
    return transpose(whole, others)


def _is_zero(tensor: Tensor) -> bool:
    """Whether a tensor is a 0 that is expanded."""
    made = tensor.handle.inputs
    value = Graph.value(made[0].inputs[0]) if made and made[0].op == "Expand" else None
    return value is not None and not value.any()
