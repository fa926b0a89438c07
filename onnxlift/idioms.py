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
        self._denominators: dict[str, str] = {}  # by the name of their reciprocal

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

    def simplify(self, node: NodeProto) -> None:
        """Drop a ceil_mode without effect; write a product with a reciprocal as a quotient."""
        if not node.domain:
            self._drop_idle_ceiling(node)
            self._divide(node)

    def _drop_idle_ceiling(self, node: NodeProto) -> None:
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

    def _divide(self, node: NodeProto) -> None:
        """a * (1 / b) -> a / b, and a * b^-1/2 -> a / sqrt(b), as the rule of a quotient is the better one where b is
        small: normalisations are often written with a reciprocal."""
        below: str | None = None
        match node.op_type:
            case "Reciprocal":
                below = node.input[0]
            case "Div" if self._is_number(node.input[0], 1):
                below = node.input[1]
            case "Pow" if self._is_number(node.input[1], -1):
                below = node.input[0]
            case "Pow" if self._is_number(node.input[1], -0.5):
                below = self._types.name(f"{node.output[0]}/Sqrt")
                self._types.visit(helper.make_node("Sqrt", [node.input[0]], [below], below))
            case "Mul":
                for a, b in (node.input, node.input[::-1]):
                    if b in self._denominators and a not in self._denominators:
                        node.op_type = "Div"
                        node.input[:] = [a, self._denominators[b]]
                        return
        if below is not None and self._types.varies(node):
            self._denominators[node.output[0]] = below

    def _is_number(self, name: str, number: float) -> bool:
        value = self._types.value(name)
        return value is not None and value.size == 1 and bool((value == number).all())
