"""What ONNX Runtime's CUDA provider can run: the table of its kernels, and what it refuses by attribute.

data/cuda_kernels.json is the provider's registry, as docs/cuda_kernels.py reads it from ONNX Runtime. What kernels read
and write on the CPU is not in the registry, and listed here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from importlib.resources import files
from typing import Any

import onnx
from onnx import NodeProto, TensorProto, TypeProto, helper
from onnx.defs import OpSchema

Types = Mapping[str, frozenset[str]]
"""Type parameter of an operator -> the types that a kernel takes for it, those of tensors by their bare names."""

_REDUCTIONS = tuple(f"Reduce{n}" for n in "Sum Mean Max Min Prod L1 L2 SumSquare LogSum LogSumExp".split())

READ_ON_CPU: Mapping[str, frozenset[int]] = {
    op: frozenset(places)
    for op, places in {
        **dict.fromkeys("Reshape Expand Squeeze Unsqueeze Tile TopK CumSum Trilu Split SequenceAt".split(), (1,)),
        **dict.fromkeys("SequenceErase SplitToSequence".split(), (1,)),
        **dict.fromkeys(_REDUCTIONS, (1,)),
        **dict.fromkeys(("ConstantOfShape", "If"), (0,)),
        **dict.fromkeys(("LSTM", "GRU", "RNN"), (4,)),
        **dict.fromkeys(("Clip", "Dropout", "OneHot"), (1, 2)),
        "Loop": (0, 1),
        "NonMaxSuppression": (2, 3, 4),
        "Pad": (1, 2, 3),
        "Range": (0, 1, 2),
        "Resize": (1, 2, 3),
        "SequenceInsert": (2,),
        "Slice": (1, 2, 3, 4),
    }.items()
}
"""Operator of ai.onnx -> the inputs that its CUDA kernel reads on the CPU."""

WRITTEN_ON_CPU = frozenset(("Shape", "Size", "SequenceLength", "OptionalHasElement"))
"""Operators of ai.onnx whose CUDA kernels write their output on the CPU."""


class Kernels:
    """The table of kernels at one opset of one version of ONNX Runtime."""

    @cached_property
    def _content(self) -> dict[str, Any]:
        return dict(json.loads((files("onnxlift") / "data" / "cuda_kernels.json").read_text()))

    @property
    def onnxruntime(self) -> str:
        """The version of ONNX Runtime that the table was read from."""
        return str(self._content["onnxruntime"])

    @property
    def opset(self) -> int:
        """The opset of ai.onnx that it is for, that of explainers."""
        return int(self._content["opset"])

    def of(self, domain: str, op: str) -> list[Types]:
        """What the kernels of an operator take; none for an operator without a kernel."""
        kernels = self._content["kernels"].get(domain or "ai.onnx", {}).get(op, ())
        return [{name: frozenset(kinds.split()) for name, kinds in kernel.items()} for kernel in kernels]

    def obstacle(self, node: NodeProto, types: Mapping[str, TypeProto]) -> str | None:
        """Why the provider leaves a node to the CPU; None where it takes it. `types`: of the tensors, by name."""
        kernels = self.of(node.domain, node.op_type)
        if not kernels:
            return "no kernel"
        if not node.domain:
            taken = _taken(node, types)
            if not any(all(kinds <= kernel.get(name, kinds) for name, kinds in taken.items()) for kernel in kernels):
                return f"no kernel for {', '.join(sorted(frozenset().union(*taken.values())))}"
        return _refusal(node)


KERNELS = Kernels()


def _taken(node: NodeProto, types: Mapping[str, TypeProto]) -> dict[str, frozenset[str]]:
    """The types that a node has for each of its operator's type parameters, and for each of its parameters by name."""
    schema = onnx.defs.get_schema(node.op_type, KERNELS.opset, "")
    found: dict[str, frozenset[str]] = {}
    for formal, names in ((schema.inputs, node.input), (schema.outputs, node.output)):
        for index, name in enumerate(names):
            kind = _kind(types[name]) if name in types else ""
            if kind and formal:
                parameter: OpSchema.FormalParameter = formal[min(index, len(formal) - 1)]
                for key in (parameter.type_str, parameter.name):
                    found[key] = found.get(key, frozenset()) | {kind}
    return found


def _kind(type_: TypeProto) -> str:
    """The name of a type in the table; empty where it is unknown."""
    if type_.HasField("sequence_type"):
        inner = _kind(type_.sequence_type.elem_type)
        return f"seq(tensor({inner}))" if inner else ""
    elem_type = type_.tensor_type.elem_type
    if elem_type in (TensorProto.FLOAT, TensorProto.UNDEFINED):
        return "float" if elem_type else ""
    return "string" if elem_type == TensorProto.STRING else TensorProto.DataType.Name(elem_type).lower()


def _refusal(node: NodeProto) -> str | None:
    """What of its attributes or optional inputs makes the provider refuse a node that it has a kernel for."""
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    match node.op_type:
        case "ConvTranspose":
            if attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
                return f"auto_pad={attributes['auto_pad'].decode()}"
            pads = attributes.get("pads", [])
            return "asymmetric pads" if pads[: len(pads) // 2] != pads[len(pads) // 2 :] else None
        case "ArgMax" | "ArgMin":
            return "select_last_index=1" if attributes.get("select_last_index", 0) else None
        case "LSTM" | "GRU" | "RNN":
            return _recurrent_refusal(node, attributes)
    return None


def _recurrent_refusal(node: NodeProto, attributes: Mapping[str, Any]) -> str | None:
    """What cuDNN has no recurrent layer for."""
    usual = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}[node.op_type]
    given = [name.decode().lower() for name in attributes.get("activations", [])]
    if any(name != usual[i % len(usual)] for i, name in enumerate(given)):
        return f"activations {', '.join(given)}"
    named = [name for name in ("activation_alpha", "activation_beta", "clip") if name in attributes]
    if node.op_type == "LSTM" and attributes.get("input_forget", 0):
        named.append("input_forget=1")
    if node.op_type == "LSTM" and len(node.input) > 7 and node.input[7]:
        named.append("peepholes")
    if node.op_type == "GRU" and not attributes.get("linear_before_reset", 0):
        named.append("linear_before_reset=0")
    return ", ".join(named) or None
