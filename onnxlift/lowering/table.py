"""Which operator is replaced by what: the table that the modules beside it fill, and the one that uses it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from onnx import NodeProto, helper

from onnxlift.errors import Unsupported
from onnxlift.lowering.bodies import expand
from onnxlift.lowering.draft import Draft
from onnxlift.shapes import TypePass
from onnxlift.tensor import Tensor

MICROSOFT = "com.microsoft"

_NO_DEFAULT = object()


class Call:
    """One node that is to be replaced.

    `inputs`: its inputs, None where one is omitted; `wanted`: which of its outputs are used; `emitter` writes nodes.
    """

    def __init__(self, node: NodeProto, draft: Draft) -> None:
        self.op = node.op_type
        self.emitter = draft
        self.attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        self.inputs = [draft.tensor(name) if name else None for name in node.input]
        self.wanted = [bool(name) for name in node.output]

    def input(self, index: int) -> Tensor:
        """An input that must be there."""
        tensor = self.optional(index)
        if tensor is None:
            self.refuse(f"input {index} is missing")
        return tensor

    def optional(self, index: int) -> Tensor | None:
        """An input, or None where it is omitted."""
        return self.inputs[index] if index < len(self.inputs) else None

    def attribute(self, name: str, default: Any = _NO_DEFAULT) -> Any:
        """An attribute's value (text as str), or its default."""
        value = self.attributes.get(name, default)
        if value is _NO_DEFAULT:
            self.refuse(f"attribute {name!r} is missing")
        return value.decode() if isinstance(value, bytes) else value

    def refuse(self, reason: str) -> NoReturn:
        """The node cannot be replaced; the reason is told where importance would have to pass it."""
        raise Unsupported(reason)


Lowering = Callable[[Call], "Tensor | Sequence[Tensor | None] | None"]
"""None: the node stays as it is."""

_LOWERINGS: dict[tuple[str, str], Lowering] = {}


def lowering(*ops: str, domain: str = "") -> Callable[[Lowering], Lowering]:
    """Register the decorated function as what replaces `ops`."""

    def register(function: Lowering) -> Lowering:
        for op in ops:
            if (domain, op) in _LOWERINGS:
                raise ValueError(f"operator {op} already has a lowering")
            _LOWERINGS[(domain, op)] = function
        return function

    return register


def lowerings() -> list[tuple[str, str]]:
    """Domain and name of every operator that is replaced."""
    return sorted(_LOWERINGS)


def written(domain: str, op: str) -> Lowering | None:
    """What replaces an operator; None where nobody wrote it."""
    return _LOWERINGS.get((domain, op))


class Lowerer:
    """Replaces nodes during the type pass.

    `is_known(op, domain)`: the operator needs no replacement. `refused`: why nodes could not be replaced, by the name
    of their first output.
    """

    def __init__(self, is_known: Callable[[str, str], bool]) -> None:
        self.is_known = is_known
        self.refused: dict[str, str] = {}

    def __call__(self, node: NodeProto, types: TypePass) -> bool:
        """Whether the node was replaced: nodes that compute its outputs have been visited then."""
        lower = written(node.domain, node.op_type)
        if lower is None:
            needed = not node.domain and not self.is_known(node.op_type, "") and _may_carry_importance(node, types)
            return needed and expand(node, types)
        mark = types.mark()
        try:
            results = lower(Call(node, Draft(types, node.output[0])))
        except Unsupported as refusal:
            types.forget(mark)
            self.refused[node.output[0]] = str(refusal)
            return False
        if results is None:
            types.forget(mark)
            return False
        outputs = [results] if isinstance(results, Tensor) else list(results)
        for name, tensor in zip(node.output, outputs, strict=False):
            if name and tensor is not None:
                types.bind(name, tensor.name, mark)
        return True


def _may_carry_importance(node: NodeProto, types: TypePass) -> bool:
    """Whether an output is anything but a tensor of integers or truth values, as a Range of positions is."""
    dtypes = [types.dtype(name) for name in node.output if name]
    return any(dtype is None or dtype.kind not in "biu" for dtype in dtypes)
