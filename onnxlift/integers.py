"""Integers that are kept in floats, because importance passes them: those of quantised models.

Whatever quantises (onnxlift/lowering/quantised.py) makes float32 tensors that hold the very integers of the model.
Here is told what becomes of the operators that read them: movement, comparison and, of 32 and 64 bits, arithmetic work
on floats as they do on integers; every other operator gets its integers back, and importance ends there. A graph
output keeps its integer type. Integers up to 2^24 are exact in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx
from onnx import NodeProto, TensorProto, TypeProto, helper

from onnxlift.opset import BASE_OPSET
from onnxlift.protobuf import captured, integer_attribute

if TYPE_CHECKING:
    from onnxlift.shapes import TypePass

RANGES: dict[int, tuple[int, int]] = {
    TensorProto.INT4: (-8, 7),
    TensorProto.UINT4: (0, 15),
    TensorProto.INT8: (-(2**7), 2**7 - 1),
    TensorProto.UINT8: (0, 2**8 - 1),
    TensorProto.INT16: (-(2**15), 2**15 - 1),
    TensorProto.UINT16: (0, 2**16 - 1),
    TensorProto.INT32: (-(2**31), 2**31 - 1),
    TensorProto.UINT32: (0, 2**32 - 1),
    TensorProto.INT64: (-(2**63), 2**63 - 1),
    TensorProto.UINT64: (0, 2**64 - 1),
}
"""The least and the greatest integer of a type."""

_FLOATS = frozenset((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE))

_ALIKE = frozenset(
    (
        "Identity Dropout Reshape Flatten Squeeze Unsqueeze Transpose Expand Concat Split Slice Gather GatherElements "
        "GatherND Tile Pad DepthToSpace SpaceToDepth Trilu ReverseSequence Compress Where ScatterElements ScatterND "
        "Resize MaxPool Relu Clip Max Min ReduceMax ReduceMin TopK ArgMax ArgMin Shape Size "
        "Equal Less LessOrEqual Greater GreaterOrEqual"
    ).split()
)
"""Operators that do on floats what they do on integers of any width."""

_INEXACT = frozenset(
    [("reduction", b"add"), ("reduction", b"mul"), ("mode", b"linear"), ("mode", b"cubic")],
)
"""Attributes of Scatter* and Resize with which they compute new numbers, which they round or let overflow."""

_ARITHMETIC = frozenset("Add Sub Mul Neg Abs Sign ReduceSum CumSum MatMul Gemm Sum".split())
"""Those that do unless the integers overflow, which those of 32 and 64 bits are taken not to."""

_WIDE = frozenset((TensorProto.INT32, TensorProto.UINT32, TensorProto.INT64, TensorProto.UINT64))

LOWERED: set[tuple[str, str]] = set()
"""Domain and name of the operators whose lowerings take integers in floats as they are."""


class Integers:
    """The part of the type pass that knows which floats hold integers.

    `types`: the element type that the model gives each of them, by name. `centred`: of some, the tensor less the zero
    point, by name, and that zero point.
    """

    def __init__(self, types: TypePass) -> None:
        self.types: dict[str, int] = {}
        self.centred: dict[str, tuple[str, int]] = {}
        self._pass = types
        self._aliases: dict[str, str] = {}  # of graph outputs, which are integers again
        self._floats: dict[str, str] = {}  # floats made of integers, where importance begins
        self._scope = types.nodes

    def hold(self, name: str, elem_type: int) -> None:
        """The float tensor holds integers of this type."""
        self.types[name] = elem_type

    def elem_type(self, name: str) -> int:
        """The type that a tensor has in the model."""
        return self.types.get(name) or self._pass.elem_type(name)

    def type(self, name: str, node: NodeProto) -> TypeProto:
        """The type of a tensor for a node: the model's for one that is lowered."""
        known: TypeProto = self._pass.types[name]
        if name not in self.types or (node.domain, node.op_type) not in LOWERED:
            return known
        type_ = TypeProto()
        type_.CopyFrom(known)
        type_.tensor_type.elem_type = self.types[name]
        return type_

    def restore(self, node: NodeProto) -> None:
        """Give a node its integers back whose lowering refuses it."""
        if (node.domain, node.op_type) in LOWERED:
            node.input[:] = [self.restored(name) for name in node.input]

    def rename(self, old: str, new: str) -> None:
        """A tensor is called otherwise from now on."""
        if old in self.types:
            self.types[new] = self.types.pop(old)
        if old in self.centred:
            self.centred[new] = self.centred.pop(old)

    def forget(self) -> None:
        """Nodes have been taken back."""
        self._floats.clear()

    def as_float(self, name: str) -> str:
        """The tensor in float32."""
        if self._pass.elem_type(name) == TensorProto.FLOAT:
            return name
        if self._scope is not self._pass.nodes:  # what is made in a body cannot be read outside of it
            self._scope = self._pass.nodes
            self._floats.clear()
        if name not in self._floats:
            self._floats[name] = self._convert(name, "float", TensorProto.FLOAT)
        return self._floats[name]

    def restored(self, name: str) -> str:
        """The tensor in the type that the model gives it."""
        return self._convert(name, "integers", self.types[name]) if name in self.types else name

    def visit(self, node: NodeProto) -> bool:
        """Visit a node that reads integers in floats; False where it reads none, or gets its integers back."""
        node.input[:] = [self._aliases.get(name, name) for name in node.input]
        held = [name for name in node.input if name in self.types]
        if not held or (node.domain, node.op_type) in LOWERED:
            return False
        self._restore_indices(node)
        kinds = {self.types[name] for name in node.input if name in self.types}
        result = self._result(node, min(kinds)) if len(kinds) == 1 else None
        if result is None:
            node.input[:] = [self.restored(name) for name in node.input]
            return False
        self._visit(node, *result)
        return True

    def _visit(self, node: NodeProto, others: list[int], results: dict[int, int]) -> None:
        """Visit the node on floats. `others`: its inputs that must be floats too; `results`: types of its outputs."""
        copy = NodeProto()
        copy.CopyFrom(node)
        for index in others:
            copy.input[index] = self.as_float(copy.input[index])
        returned = {}
        for index, elem_type in results.items():
            name = copy.output[index]
            if name in self._pass.outputs:
                copy.output[index] = self._pass.name(f"{name}/float")
                returned[name] = copy.output[index]
            self.types[copy.output[index]] = elem_type
        self._pass.visit_as_it_is(copy)
        for index in results:  # where types cannot be inferred, the model's were taken
            self._pass.types[copy.output[index]].tensor_type.elem_type = TensorProto.FLOAT
        for name, source in returned.items():
            self._aliases[name] = source
            elem_type = self.types[source]
            self._pass.keep(helper.make_node("Cast", [source], [name], name=name, to=elem_type))

    def _restore_indices(self, node: NodeProto) -> None:
        """Indices, axes and shapes are integers for every operator."""
        if node.domain or node.op_type not in _ALIKE | _ARITHMETIC:
            return
        schema = onnx.defs.get_schema(node.op_type, BASE_OPSET, "")
        for index, name in enumerate(node.input):
            if "tensor(float)" not in _formal(schema.inputs, index).types:
                node.input[index] = self.restored(name)

    def _result(self, node: NodeProto, kind: int) -> tuple[list[int], dict[int, int]] | None:
        """Inputs that must become floats with those of type `kind`, and outputs that hold integers then, by their type.

        None: the operator is to have integers.
        """
        if (node.domain, node.op_type) == ("com.microsoft", "NhwcMaxPool"):
            return [], {0: kind}
        if node.domain or any(captured(node)):
            return None
        if node.op_type in ("Cast", "CastLike"):
            to = integer_attribute(node, "to", 0)
            if to in _FLOATS or to == TensorProto.BOOL:
                return [], {}
            within = to in RANGES and RANGES[to][0] <= RANGES[kind][0] and RANGES[kind][1] <= RANGES[to][1]
            if not within:
                return None
            node.op_type = "Identity"
            node.ClearField("attribute")
            return [], {0: to}
        if node.op_type not in _ALIKE and not (node.op_type in _ARITHMETIC and kind in _WIDE):
            return None
        if any((item.name, item.s) in _INEXACT for item in node.attribute):
            return None
        schema = onnx.defs.get_schema(node.op_type, BASE_OPSET, "")
        first = next(index for index, name in enumerate(node.input) if name in self.types)
        variable = _formal(schema.inputs, first).type_str
        others = [
            index
            for index, name in enumerate(node.input)
            if name and name not in self.types and _formal(schema.inputs, index).type_str == variable
        ]
        results = {
            index: kind
            for index, name in enumerate(node.output)
            if name and _formal(schema.outputs, index).type_str == variable
        }
        return others, results

    def _convert(self, name: str, suffix: str, elem_type: int) -> str:
        made = self._pass.name(f"{name}/{suffix}")
        self._pass.visit_as_it_is(helper.make_node("Cast", [name], [made], name=made, to=elem_type))
        return made


def _formal(parameters: Sequence[onnx.defs.OpSchema.FormalParameter], index: int) -> onnx.defs.OpSchema.FormalParameter:
    """What the schema says of an input or output; the last one may be variadic."""
    return parameters[min(index, len(parameters) - 1)]
