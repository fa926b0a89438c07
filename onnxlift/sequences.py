"""Sequences and optionals whose members are known by name: what takes a member out reads the member itself.

PyTorch writes unbind, chunk and lists of tensors this way. The nodes that make a sequence stay where something else
reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import NodeProto, helper, numpy_helper

from onnxlift.protobuf import integer_attribute

if TYPE_CHECKING:
    from onnxlift.shapes import TypePass


class Sequences:
    """The part of the type pass that knows the members of sequences."""

    def __init__(self, types: TypePass) -> None:
        self._types = types
        self._members: dict[str, list[str]] = {}
        self._held: dict[str, str] = {}  # what an optional holds

    def visit(self, node: NodeProto) -> bool:
        """Note what a node puts into a sequence; whether others, visited already, take out what it takes out."""
        if node.domain:
            return False
        match node.op_type:
            case "SequenceEmpty":
                self._members[node.output[0]] = []
            case "SequenceConstruct":
                self._members[node.output[0]] = list(node.input)
            case "SequenceInsert" | "SequenceErase":
                self._change(node)
            case "SplitToSequence":
                self._split(node)
            case "Identity" if node.input[0] in self._members:
                self._members[node.output[0]] = self._members[node.input[0]]
            case "Optional" if node.input:
                self._held[node.output[0]] = node.input[0]
            case "OptionalGetElement":
                return self._take(node, self._held.get(node.input[0]) or self._tensor(node.input[0]))
            case "SequenceAt":
                return self._at(node)
            case "ConcatFromSequence":
                return self._join(node)
            case "SequenceLength" if node.input[0] in self._members:
                return self._take(node, self._constant(node, len(self._members[node.input[0]])))
        return False

    def _take(self, node: NodeProto, member: str | None) -> bool:
        """Give a tensor the name of what the node takes out."""
        if member is None:
            return False
        self._types.visit(helper.make_node("Identity", [member], [node.output[0]], node.name))
        return True

    def _tensor(self, name: str) -> str | None:
        type_ = self._types.types.get(name)
        return name if type_ is not None and type_.HasField("tensor_type") else None

    def _position(self, node: NodeProto, index: int, count: int) -> int | None:
        """A place in a sequence of so many members that an input names; the last where it is left out."""
        if len(node.input) <= index or not node.input[index]:
            return count
        value = self._types.value(node.input[index])
        if value is None or not -count <= value.item() <= count:
            return None
        place = int(value.item())
        return place + count if place < 0 else place

    def _at(self, node: NodeProto) -> bool:
        members = self._members.get(node.input[0], [])
        place = self._position(node, 1, len(members))
        return self._take(node, members[place]) if place is not None and place < len(members) else False

    def _change(self, node: NodeProto) -> None:
        members = self._members.get(node.input[0])
        inserts = node.op_type == "SequenceInsert"
        place = None if members is None else self._position(node, 2 if inserts else 1, len(members))
        if members is None or place is None:
            return
        if inserts:
            self._members[node.output[0]] = [*members[:place], node.input[1], *members[place:]]
        else:
            place = min(place, len(members) - 1)
            self._members[node.output[0]] = [*members[:place], *members[place + 1 :]]

    def _split(self, node: NodeProto) -> None:
        """Split, and Squeeze where single slices lose their axis."""
        dims = self._types.shape(node.input[0])
        axis = integer_attribute(node, "axis", 0)
        extent = dims[axis] if dims is not None else None
        given = len(node.input) > 1 and bool(node.input[1])
        pieces = self._types.value(node.input[1]) if given else np.array(1)
        if not isinstance(extent, int) or pieces is None or not extent:
            return
        size = int(pieces.flat[0]) if pieces.size else 0
        equal = [size] * (extent // size) + [extent % size] * bool(extent % size) if not pieces.ndim else []
        whole = equal or pieces.tolist()
        names = [self._types.name(f"{node.output[0]}/{index}") for index in range(len(whole))]
        self._node("Split", [node.input[0], self._constant(node, whole)], names, axis=axis)
        if not given and not integer_attribute(node, "keepdims", 1):
            kept, names = names, [self._types.name(f"{name}/one") for name in names]
            axes = self._constant(node, [axis])
            for wide, name in zip(kept, names, strict=True):
                self._node("Squeeze", [wide, axes], [name])
        self._members[node.output[0]] = names

    def _join(self, node: NodeProto) -> bool:
        members, axis = self._members.get(node.input[0]), integer_attribute(node, "axis", 0)
        if not members:
            return False
        if integer_attribute(node, "new_axis", 0):
            axes = self._constant(node, [axis])
            wide = [self._types.name(f"{node.output[0]}/{index}") for index in range(len(members))]
            for member, name in zip(members, wide, strict=True):
                self._node("Unsqueeze", [member, axes], [name])
            members = wide
        self._node("Concat", members, node.output, axis=axis)
        return True

    def _node(self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        self._types.visit(helper.make_node(op, inputs, outputs, outputs[0], **attributes))

    def _constant(self, node: NodeProto, value: object) -> str:
        name = self._types.name(f"{node.output[0]}/constant")
        self._types.add_constant(numpy_helper.from_array(np.asarray(value, np.int64), name))
        return name
