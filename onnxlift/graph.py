"""The graph under construction. The only module that knows GraphSurgeon.

GraphSurgeon loses model metadata, drops default-valued inputs and re-encodes exotic dtypes when their values are
touched. So: weights stay lazy and are written back as the very protobuf they came from, everything outside of the
graph (metadata, opsets, IR version) is carried over by hand, and nodes are created directly (`gs.Graph.layer` is
quadratic).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

from onnxlift.errors import OptionError
from onnxlift.protobuf import SMALL, copy_documentation

G_LOGGER.severity = G_LOGGER.ERROR

Dim = int | str | None
Shape = tuple[Dim, ...] | None
Handle: TypeAlias = gs.Tensor
"""A tensor of the graph, opaque to every other module: it has a name, that can still change."""
Node: TypeAlias = gs.Node
"""A node: op, domain, name, attrs, inputs and outputs (handles; an omitted one has an empty name)."""


class Graph:
    """A model in normal form, open for new nodes.

    `nodes` are the model's own, in topological order; whatever is added is appended, so that the order stays
    topological as long as a node is added after its inputs.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._graph = gs.import_onnx(model)
        self.nodes: list[Node] = list(self._graph.nodes)
        self.tensors: dict[str, Handle] = {}
        for handle in (*self._graph.inputs, *self._graph.outputs):
            self.tensors[handle.name] = handle
        for node in self.nodes:
            for handle in (*node.inputs, *node.outputs):
                if handle.name:
                    self.tensors[handle.name] = handle
        self.own = frozenset(self.tensors)
        """Names of the model's own tensors."""

    @property
    def inputs(self) -> list[str]:
        """Names of the graph inputs."""
        return [tensor.name for tensor in self._graph.inputs]

    @property
    def outputs(self) -> list[str]:
        """Names of the graph outputs."""
        return [tensor.name for tensor in self._graph.outputs]

    @staticmethod
    def dtype(handle: Handle) -> np.dtype[Any] | None:
        """The element type, None where it is unknown or not a tensor's (sequence, optional, string)."""
        kind: Any = handle.dtype
        if getattr(handle, "type", "tensor_type") != "tensor_type" or kind is None:
            return None
        if isinstance(kind, int):  # an ONNX type without a NumPy counterpart
            try:
                kind = onnx.helper.tensor_dtype_to_np_dtype(kind)
            except KeyError:
                return None
        dtype: np.dtype[Any] = np.dtype(kind)
        return dtype

    @staticmethod
    def shape(handle: Handle) -> Shape:
        """Dimensions: an int, a symbol, or None for unknown; None instead of a tuple where the rank is unknown."""
        if handle.shape is None:
            return None
        return tuple(dim if dim != "" else None for dim in handle.shape)

    @staticmethod
    def set_shape(handle: Handle, shape: Shape) -> None:
        """Replace what is known of a computed tensor's shape; a constant has its own."""
        if not isinstance(handle, gs.Constant):
            handle.shape = _exported(shape)

    @staticmethod
    def value(handle: Handle) -> np.ndarray[Any, Any] | None:
        """The value of a small constant; None for every other tensor."""
        if not isinstance(handle, gs.Constant) or int(np.prod(handle.shape, dtype=np.int64)) > SMALL:
            return None
        values = handle._values
        if isinstance(values, LazyValues):
            if values.tensor.data_location == onnx.TensorProto.EXTERNAL:
                return None
            return np.asarray(onnx.numpy_helper.to_array(values.tensor))
        return np.asarray(values)

    @staticmethod
    def is_constant(handle: Handle) -> bool:
        """Whether the tensor is an initializer."""
        return isinstance(handle, gs.Constant)

    @staticmethod
    def is_computed(handle: Handle) -> bool:
        """Whether a node computes the tensor (it is no graph input and no initializer)."""
        return bool(handle.inputs)

    def variable(self, name: str, dtype: np.dtype[Any], shape: Shape) -> Handle:
        """A new tensor; a taken name gets a number."""
        handle = gs.Variable(self.unused(name), dtype=dtype, shape=_exported(shape))
        self.tensors[handle.name] = handle
        return handle

    @staticmethod
    def omitted() -> Handle:
        """The place of an optional input or output that is left out."""
        return gs.Variable.empty()

    def constant(self, name: str, value: np.ndarray[Any, Any]) -> Handle:
        """A new initializer."""
        handle = gs.Constant(self.unused(name), np.ascontiguousarray(value).reshape(value.shape))
        self.tensors[handle.name] = handle
        return handle

    def node(
        self,
        op: str,
        inputs: Sequence[Handle | None],
        outputs: Sequence[Handle],
        attributes: Mapping[str, Any],
        *,
        name: str,
        domain: str = "",
    ) -> None:
        """Append a node. None among the inputs is an omitted optional one."""
        self._graph.nodes.append(
            gs.Node(
                op=op,
                name=name,
                attrs=dict(attributes),
                inputs=[self.omitted() if handle is None else handle for handle in inputs],
                outputs=list(outputs),
                domain=domain or None,
            )
        )

    def add_input(self, name: str, dtype: np.dtype[Any], shape: Shape) -> Handle:
        """A new graph input of that very name. Raises OptionError where the model has a tensor of that name."""
        self.check_free(name, "input")
        handle = self.variable(name, dtype, shape)
        self._graph.inputs.append(handle)
        return handle

    def set_outputs(self, handles: Sequence[Handle]) -> None:
        """The graph outputs from now on."""
        self._graph.outputs = list(handles)

    def check_free(self, name: str, role: str) -> None:
        """Raise OptionError where `name`, which an explainer's input or output must have, is taken."""
        if name in self.tensors:
            raise OptionError(f"the model already has a tensor {name!r}, the name of an explainer {role}: rename it")

    def rename(self, handle: Handle, name: str) -> None:
        """Give a tensor another name; it must be free."""
        del self.tensors[handle.name]
        handle.name = name
        self.tensors[name] = handle

    def unused(self, name: str) -> str:
        """`name`, or the first of name_2, name_3 ... that no tensor has."""
        if name not in self.tensors:
            return name
        number = 2
        while f"{name}_{number}" in self.tensors:
            number += 1
        return f"{name}_{number}"

    def export(self, metadata: Mapping[str, str]) -> onnx.ModelProto:
        """Drop what no output needs and write the model, with `metadata` added to its metadata_props.

        Shapes are written for the model's own tensors only: ONNX Runtime infers the others, and they would make up a
        third of the file.
        """
        needed = {id(handle) for handle in self._graph.outputs}
        kept = []
        for node in reversed(self._graph.nodes):
            if any(id(handle) in needed for handle in node.outputs):
                kept.append(node)
                needed.update(id(handle) for handle in node.inputs)
                for subgraph in node.subgraphs(recursive=True):
                    needed.update(id(handle) for inner in subgraph.nodes for handle in inner.inputs)
        self._graph.nodes = kept[::-1]
        self._hide_types()
        proto = gs.export_onnx(self._graph, do_type_check=False)
        self._restore_types(proto.graph)
        model = onnx.ModelProto(ir_version=self._model.ir_version, opset_import=self._model.opset_import)
        model.graph.CopyFrom(proto.graph)
        described = [value for value in proto.graph.value_info if value.name in self.own]
        del model.graph.value_info[:]
        model.graph.value_info.extend(described)
        copy_documentation(self._model, model)
        for key, value in metadata.items():
            entry = model.metadata_props.add()
            entry.key, entry.value = key, value
        return model

    def _hide_types(self) -> None:
        """GraphSurgeon can write the types of tensors and of sequences of them only; ONNX Runtime infers the others."""
        for graph in (self._graph, *self._graph.subgraphs(recursive=True)):
            for handle in (*graph.inputs, *graph.outputs, *graph.tensors().values()):
                if getattr(handle, "type", "tensor_type") not in ("tensor_type", "sequence_type"):
                    handle.dtype = handle.shape = None

    def _restore_types(self, graph: onnx.GraphProto) -> None:
        """Of the model's own tensors that are something else (sequence, map, optional), the types as they were."""
        own = self._model.graph
        types = {value.name: value.type for value in (*own.input, *own.output, *own.value_info)}
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.name in types and not types[value.name].HasField("tensor_type"):
                value.type.CopyFrom(types[value.name])


def _exported(shape: Shape) -> list[int | str | None] | None:
    return None if shape is None else list(shape)
