"""Single nodes said otherwise: what shape inference or the rules understand better, with the same values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import NodeProto, helper

from onnxlift.protobuf import integer_attribute

if TYPE_CHECKING:
    from onnxlift.shapes import TypePass

_DEFAULTS = {("", "STFT"): ("onesided", 1), ("", "MeanVarianceNormalization"): ("axes", [0, 2, 3])}
"""Attributes for which onnx's shape inference has another default than its documentation."""


class Idioms:
    """The part of the type pass that changes nodes in place, before their types are inferred."""

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
