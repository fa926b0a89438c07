"""The graph under construction. The only module that knows GraphSurgeon.

GraphSurgeon loses model metadata, drops default-valued inputs and re-encodes exotic dtypes when their values are
touched. So: weights stay lazy and are written back as the very protobuf they came from, everything outside of the
graph (metadata, opsets, IR version) is carried over by hand, and nodes are created directly (`gs.Graph.layer` is
quadratic).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

from onnxlift.errors import OptionError
from onnxlift.protobuf import SMALL, copy_documentation, nested

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
    topological as long as a node is added after its inputs. `refused`: why nodes could not be brought to operators that
    have a rule, by their first output.
    """

    def __init__(self, model: onnx.ModelProto, refused: Mapping[str, str] | None = None) -> None:
        self._model = model
        self.refused = refused or {}
        self._graph = gs.import_onnx(model)
        self.nodes: list[Node] = list(self._graph.nodes)
        self.tensors: dict[str, Handle] = {}
        for handle in (*self._graph.inputs, *self._graph.outputs):
            self.tensors[handle.name] = handle
        for node in self.nodes:
            for handle in (*node.inputs, *node.outputs):
                if handle.name:
                    self.tensors[handle.name] = handle
        outside = set(self.tensors)
        for body in self._graph.subgraphs(recursive=True):
            inner = [handle for node in body.nodes for handle in (*node.inputs, *node.outputs)]
            for handle in (*body.inputs, *inner):
                if handle.name:
                    self.tensors.setdefault(handle.name, handle)
        self.own = frozenset(self.tensors)
        """Names of the model's own tensors, those inside of bodies included."""
        self.inside = self.own - outside
        """Names of those inside of bodies: they have a value per iteration, and none outside."""

    @property
    def inputs(self) -> list[str]:
        """Names of the graph inputs."""
        return [tensor.name for tensor in self._graph.inputs]

    @property
    def outputs(self) -> list[str]:
        """Names of the graph outputs."""
        return [tensor.name for tensor in self._graph.outputs]

    @property
    def input_handles(self) -> list[Handle]:
        """The graph inputs."""
        return list(self._graph.inputs)

    @property
    def output_handles(self) -> list[Handle]:
        """The graph outputs."""
        return list(self._graph.outputs)

    def body(self, node: Node, attribute: str) -> Graph:
        """A graph inside of a node, an If's branch or the body of a Loop or Scan."""
        return Body(self, node.attrs[attribute])

    def new_body(self) -> Graph:
        """An empty graph, which may read the tensors of this one."""
        return Body(self, gs.Graph(name="body"))

    @property
    def as_attribute(self) -> object:
        """The graph as the attribute of a node, without what its outputs do not need."""
        self._prune()
        return self._graph

    @staticmethod
    def dtype(handle: Handle) -> np.dtype[Any] | None:
        """The element type, None where it is unknown or not a tensor's (sequence, optional, string)."""
        kind: Any = handle.dtype
        if not Graph.is_tensor(handle) or kind is None:
            return None
        if isinstance(kind, int):  # an ONNX type without a NumPy counterpart
            try:
                kind = onnx.helper.tensor_dtype_to_np_dtype(kind)
            except KeyError:
                return None
        dtype: np.dtype[Any] = np.dtype(kind)
        return dtype

    @staticmethod
    def is_tensor(handle: Handle) -> bool:
        """Whether it is a tensor, and no sequence, map or optional."""
        return bool(getattr(handle, "type", "tensor_type") == "tensor_type")

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

    def variable(self, name: str, dtype: np.dtype[Any] | None, shape: Shape) -> Handle:
        """A new tensor, of a type that is none of a tensor where `dtype` is None; a taken name gets a number."""
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

    @staticmethod
    def unplaced(
        op: str, inputs: Sequence[Handle], attributes: Mapping[str, Any], name: str, outputs: Sequence[Handle] = ()
    ) -> Node:
        """A node for `replace`."""
        return gs.Node(op=op, name=name, attrs=dict(attributes), inputs=list(inputs), outputs=list(outputs))

    def replace(self, pairs: Sequence[tuple[Sequence[Node], Sequence[Node]]]) -> None:
        """Put nodes of `unplaced` where the last of others was, of which they take over the first output."""
        places = {id(gone[-1]): made for gone, made in pairs}
        removed = {id(node) for gone, _ in pairs for node in gone}
        for gone, made in pairs:
            output = gone[-1].outputs[0]
            for node in gone:
                for handle in node.outputs:
                    self.tensors.pop(handle.name, None)
                node.inputs.clear()
                node.outputs.clear()
            made[-1].outputs.append(output)
            self.tensors.update((handle.name, handle) for node in made for handle in node.outputs)
        placed: list[Node] = []
        for node in self._graph.nodes:
            placed += places.get(id(node), ()) if id(node) in removed else [node]
        self._graph.nodes, self.nodes = placed, list(placed)

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

    def add_body_input(self, name: str, dtype: np.dtype[Any] | None, shape: Shape) -> Handle:
        """A new input of a body; a taken name gets a number. No dtype: it is no tensor."""
        handle = self.variable(name, dtype, shape)
        self._graph.inputs.append(handle)
        return handle

    def drop_unread_inputs(self, names: Iterable[str]) -> list[str]:
        """Take away those of a body's inputs that nothing in it needs; returns the names of those that are gone."""
        self._prune()
        read, droppable = self._read(), set(names)
        unread = [handle for handle in self._graph.inputs if id(handle) not in read and handle.name in droppable]
        self._graph.inputs = [handle for handle in self._graph.inputs if handle not in unread]
        return [handle.name for handle in unread]

    def add_output(self, handle: Handle) -> None:
        """One more graph output."""
        self._graph.outputs.append(handle)

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
        self._prune()
        self._drop_unread_stacks()
        self._hide_types()
        proto = gs.export_onnx(self._graph, do_type_check=False)
        self._restore_types(proto.graph)
        _hoist(proto.graph)
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

    def _prune(self) -> None:
        """Drop the nodes that no output needs."""
        needed = {id(handle) for handle in self._graph.outputs}
        kept = []
        for node in reversed(self._graph.nodes):
            if any(id(handle) in needed for handle in node.outputs):
                kept.append(node)
                needed.update(id(handle) for handle in node.inputs)
                for subgraph in node.subgraphs(recursive=True):
                    needed.update(id(handle) for handle in subgraph.outputs)
                    needed.update(id(handle) for inner in subgraph.nodes for handle in inner.inputs)
        self._graph.nodes = kept[::-1]

    def _read(self) -> set[int]:
        """The ids of the handles that a node or an output reads, inside of bodies as well."""
        graphs = [self._graph, *self._graph.subgraphs(recursive=True)]
        read = {id(handle) for graph in graphs for handle in graph.outputs}
        return read.union(id(handle) for graph in graphs for node in graph.nodes for handle in node.inputs)

    def _drop_unread_stacks(self) -> None:
        """Take from Loops and Scans the added outputs that nothing reads: a stacked state may be large."""
        read, graphs = self._read(), [self._graph, *self._graph.subgraphs(recursive=True)]
        for node in (node for graph in graphs for node in graph.nodes if node.op in ("Loop", "Scan")):
            body = node.attrs["body"]
            states = len(node.inputs) - (2 if node.op == "Loop" else int(node.attrs["num_scan_inputs"]))
            for k in reversed(range(states, len(node.outputs))):
                if id(node.outputs[k]) in read or not node.outputs[k].name or node.outputs[k].name in self.own:
                    continue
                del node.outputs[k]
                del body.outputs[k + (node.op == "Loop")]
                for attribute in ("scan_output_axes", "scan_output_directions"):
                    left = [v for i, v in enumerate(node.attrs.pop(attribute, None) or ()) if i != k - states]
                    if left:  # an empty list cannot be written
                        node.attrs[attribute] = left
            Body(self, body)._prune()

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


class Body(Graph):
    """A graph inside of a node. It shares the names of tensors with the one around it."""

    def __init__(self, outer: Graph, body: gs.Graph) -> None:
        self._model = outer._model
        self._graph = body
        self.nodes = list(body.nodes)
        self.tensors = outer.tensors
        self.own = outer.own
        self.inside = outer.inside
        self.refused = outer.refused


def _hoist(graph: onnx.GraphProto) -> None:
    """Move the constants that GraphSurgeon copies into every body to the main graph, each of them once."""
    known = {tensor.name for tensor in graph.initializer}
    for body in nested(graph.node):
        graph.initializer.extend(tensor for tensor in body.initializer if tensor.name not in known)
        known.update(tensor.name for tensor in body.initializer)
        del body.initializer[:]
        del body.value_info[:]


def _exported(shape: Shape) -> list[int | str | None] | None:
    return None if shape is None else list(shape)


def detached(name: str, dtype: np.dtype[Any] | None, shape: Shape, value: np.ndarray[Any, Any] | None) -> Handle:
    """The handle of a tensor that is in no graph: a constant where its value is known."""
    if value is not None:
        return gs.Constant(name, value)
    return gs.Variable(name, dtype=dtype, shape=_exported(shape))
