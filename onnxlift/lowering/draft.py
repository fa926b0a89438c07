"""Symbolic tensors for a model that is being brought to normal form: lowerings are written with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, helper, numpy_helper

from onnxlift.graph import Shape, detached
from onnxlift.integers import Integers
from onnxlift.shapes import TypePass
from onnxlift.tensor import Emitter, NewNode, Tensor


class Draft(Emitter):
    """Hands every node to the type pass at once, which infers its types and computes it where it is a constant.

    `origin`: the tensor that new ones are named after.
    """

    def __init__(self, types: TypePass, origin: str) -> None:
        self._types = types
        self._origin = origin
        self._tensors: dict[str, Tensor] = {}

    @property
    def integers(self) -> Integers:
        """What is known of integers that are kept in floats."""
        return self._types.integers

    def tensor(self, name: str) -> Tensor:
        if name not in self._tensors:
            dtype, shape = self._types.dtype(name), self._types.shape(name)
            self._tensors[name] = Tensor(self, detached(name, dtype, shape, self._types.value(name)))
        return self._tensors[name]

    def constant(self, value: Any, dtype: np.dtype[Any], *, host: bool = False) -> Tensor:
        name = self._types.name(f"{self._origin}/constant")
        self._types.add_constant(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return self.tensor(name)

    def _append(self, node: NewNode) -> tuple[Tensor, ...]:
        """Types are inferred, whatever the node says of them."""
        outputs = [
            self._types.name(f"{self._origin}/{name or node.op}") for name in node.names or [""] * len(node.shapes)
        ]
        inputs = ["" if tensor is None else tensor.name for tensor in node.inputs]
        self._types.visit_as_it_is(
            helper.make_node(node.op, inputs, outputs, outputs[0], domain=node.domain, **node.attributes)
        )
        return tuple(self.tensor(name) for name in outputs)

    def body(
        self,
        inputs: Sequence[tuple[str, np.dtype[Any], Shape]],
        compute: Callable[..., Sequence[Tensor]],
    ) -> GraphProto:
        """The body of a Scan, Loop or If. `inputs`: a name, dtype and shape each; `compute` makes its outputs of them.

        It may read tensors from outside.
        """
        types = self._types
        names = [types.name(f"{self._origin}/{name}") for name, _, _ in inputs]
        values = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), shape and list(shape))
            for name, (_, dtype, shape) in zip(names, inputs, strict=True)
        ]
        with types.inside(values) as inner:
            outputs = [
                self.op("Identity", tensor, names=["out"], shape=tensor.shape)
                for tensor in compute(*map(self.tensor, names))
            ]
        made = [helper.make_tensor_value_info(tensor.name, types.elem_type(tensor.name), None) for tensor in outputs]
        return helper.make_graph(inner, "body", values, made)
