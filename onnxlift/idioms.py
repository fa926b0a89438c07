"""Single nodes said otherwise: what shape inference or the rules understand better, with the same values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import NodeProto, TensorProto, helper

from onnxlift.protobuf import integer_attribute

if TYPE_CHECKING:
    from onnxlift.shapes import TypePass

_DEFAULTS = {("", "STFT"): ("onesided", 1), ("", "MeanVarianceNormalization"): ("axes", [0, 2, 3])}
"""Attributes for which onnx's shape inference has another default than its documentation."""

_HALVES = frozenset((TensorProto.FLOAT16, TensorProto.BFLOAT16))
_INTEGERS = frozenset((TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32))
"""Integers that ArgMax takes and float64 holds exactly."""


class Idioms:
    """The part of the type pass that changes nodes, before their types are inferred."""

    def __init__(self, types: TypePass) -> None:
        self._types = types

    def complete(self, node: NodeProto) -> None:
        """State what the node leaves to others: the type of a CastLike, a default."""
        elem_type = self._types.integers.elem_type(node.input[1]) if node.op_type == "CastLike" else 0
        if elem_type and not node.domain:  # of the example only the type matters
            node.op_type = "Cast"
            del node.input[1]
            node.attribute.append(helper.make_attribute("to", elem_type))
        name, value = _DEFAULTS.get((node.domain, node.op_type), ("", None))
        if name and all(attribute.name != name for attribute in node.attribute):
            node.attribute.append(helper.make_attribute(name, value))

    def drop_idle_ceiling(self, node: NodeProto) -> None:
        """Takes ceil_mode from a pool whose last window would start behind its input. ONNX Runtime leaves that window
        out, onnx's shape inference counts it; without ceil_mode the two agree, and the values are the same."""
        if node.op_type not in ("AveragePool", "MaxPool", "LpPool") or not integer_attribute(node, "ceil_mode", 0):
            return
        lists = {attribute.name: list(attribute.ints) for attribute in node.attribute}
        kernel, extents = lists["kernel_shape"], (self._types.shape(node.input[0]) or ())[2:]
        strides, dilations = (lists.get(name) or [1] * len(kernel) for name in ("strides", "dilations"))
        pads = lists.get("pads") or [0] * (2 * len(kernel))
        for axis, extent in enumerate(extents):
            if not isinstance(extent, int):
                return
            room = extent + pads[axis] + pads[axis + len(kernel)] - (kernel[axis] - 1) * dilations[axis] - 1
            whole = room // strides[axis] + 1
            if room % strides[axis] and whole * strides[axis] < extent + pads[axis]:
                return  # a last, partial window that starts inside
        next(attribute for attribute in node.attribute if attribute.name == "ceil_mode").i = 0

    def replace(self, node: NodeProto) -> bool:
        """Visit others in place of a node that is idle or that the CUDA provider lacks; False where it is neither."""
        kind = "" if node.domain else node.op_type
        if kind == "ReduceSum":
            return self._sum_nothing(node)
        if kind == "Cast":
            return self._cast_first(node)
        if kind in ("ArgMax", "ArgMin") and self._types.elem_type(node.input[0]) in _INTEGERS:
            return self._search_floats(node)
        return False

    def _sum_nothing(self, node: NodeProto) -> bool:
        """A sum over a list of axes that is empty, and means none."""
        axes = self._types.value(node.input[1]) if len(node.input) > 1 else None
        if axes is None or axes.size or not integer_attribute(node, "noop_with_empty_axes", 0):
            return False
        self._types.visit_as_it_is(helper.make_node("Identity", node.input[:1], node.output, node.name))
        return True

    def _cast_first(self, node: NodeProto) -> bool:
        """Cast(Transpose(x)) of half precision -> Transpose(Cast(x)).

        ONNX Runtime 1.31 cannot load a MatMul of the former with its CUDA provider: in trying to fuse the three it
        leaves a Cast behind that has no version.
        """
        types = self._types
        if types.elem_type(node.input[0]) not in _HALVES or not types.varies(node):
            return False
        moved = next((maker for maker in reversed(types.nodes) if node.input[0] in maker.output), NodeProto())
        if moved.op_type != "Transpose" or moved.domain:
            return False
        wide = types.name(f"{node.output[0]}_first")
        for maker, source, name in ((node, moved.input[0], wide), (moved, wide, node.output[0])):
            attributes = NodeProto(attribute=maker.attribute).attribute
            types.visit_as_it_is(
                NodeProto(op_type=maker.op_type, name=name, input=[source], output=[name], attribute=attributes)
            )
        return True

    def _search_floats(self, node: NodeProto) -> bool:
        """ArgMax of integers -> ArgMax of the same numbers in float64."""
        types = self._types
        if not types.varies(node):
            return False
        wide = types.name(f"{node.input[0]}_float64")
        types.visit_as_it_is(helper.make_node("Cast", [node.input[0]], [wide], wide, to=TensorProto.DOUBLE))
        node.input[0] = wide
        return False
