"""The pass over a sorted graph that infers the type of every tensor and computes what small constants determine."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import (
    ModelProto,
    NodeProto,
    TensorProto,
    TensorShapeProto,
    TypeProto,
    ValueInfoProto,
    helper,
    numpy_helper,
    shape_inference,
)
from onnx.reference import ReferenceEvaluator

from onnxlift.arrays import Array
from onnxlift.bodies import Bodies, is_control
from onnxlift.errors import ModelError
from onnxlift.idioms import Idioms
from onnxlift.integers import Integers
from onnxlift.opset import BASE_IR, BASE_OPSET
from onnxlift.protobuf import (
    SMALL,
    Namer,
    all_names,
    captured,
    integer_attribute,
    is_external,
    is_small,
    subgraphs,
    where,
)
from onnxlift.sequences import Sequences
from onnxlift.symbols import DIMS, ENTRIES, Dim, declared_dim, objects, symbol, times

_RANDOM = frozenset(
    "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli Dropout".split()
)
_INTEGERS = frozenset((TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL))
_FOLDABLE = frozenset(
    helper.np_dtype_to_tensor_dtype(np.dtype(name))
    for name in "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64".split()
)
_INVENTED = re.compile(r"unk__\d+")  # by onnx, anew in every call: the same name need not be the same dim


Replace = Callable[[NodeProto, "TypePass"], bool]
"""Visits other nodes in a node's place, or returns False."""


class TypePass:
    """One pass over the sorted nodes of a model at BASE_OPSET, whose weights are graph inputs.

    `declared`: the model's own types, for what cannot be inferred and for symbols of the outputs; exporters write
    wrong ones. `weights`: the inputs that are weights. `replace`: what may put others in the place of a node that
    depends on an input. After `run`:
    `types`: type of every tensor; `constants`: the small ones, given and computed; `nodes`: what remains to be
    computed; `outputs`: names of the graph's outputs; `name`: makes new names of tensors.
    """

    def __init__(
        self, work: ModelProto, declared: Mapping[str, TypeProto], weights: Iterable[str], replace: Replace
    ) -> None:
        self.outputs = {value.name for value in work.graph.output}
        self.types = {value.name: value.type for value in work.graph.input}
        self.constants: dict[str, TensorProto] = {}
        self.nodes: list[NodeProto] = []
        self.name = Namer(all_names(work.graph))
        self._varying = self.types.keys() - set(weights)
        dims = [dim.dim_param for type_ in self.types.values() for dim in type_.tensor_type.shape.dim]
        self.given_dims = frozenset(filter(None, dims))
        """The symbols in the shapes of the graph inputs."""
        self._replace = replace
        self._bodies = Bodies(self)
        self._sequences = Sequences(self)
        self._idioms = Idioms(self)
        self.integers = Integers(self)
        self._graph, self._opsets, self._declared = work.graph, list(work.opset_import), declared
        self._versions = {entry.domain: entry.version for entry in work.opset_import}
        self._symbol = Namer(dim.dim_param for type_ in self.types.values() for dim in type_.tensor_type.shape.dim)
        self._known: dict[str, Array] = {}  # values of the constants that numpy holds
        self._partial: dict[str, Array] = {}  # entries, as in onnxlift.symbols, of tensors that are known in part
        for tensor in work.graph.initializer:
            self.types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
            if is_small(tensor) and not is_external(tensor):
                self._learn(tensor)

    def run(self) -> None:
        """Visits every node once."""
        for node in self._graph.node:
            self.visit(node)

    def visit(self, node: NodeProto) -> None:
        """Types of the node's outputs; the node is kept, or computed, or others take its place."""
        self._idioms.complete(node)
        if self._sequences.visit(node):
            return
        if node.domain == "com.microsoft" and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.domain = ""  # as they are at opset 21; of these, types can be inferred
        if not self.integers.visit(node):
            self.visit_as_it_is(node)

    def visit_as_it_is(self, node: NodeProto) -> None:
        """As `visit`, with inputs that are of the right type."""
        self._idioms.drop_idle_ceiling(node)
        if self._idioms.replace(node):
            return
        if is_control(node):
            if self._bodies.inline(node):
                return
            self._bodies.run(node)
        self.types.update(self._infer(node))
        values = self._compute(node)
        if values is not None:
            for name, value in values.items():
                self.add_constant(numpy_helper.from_array(value, name))
            return
        if self.varies(node):
            if self._replace(node, self):
                return
            self.integers.restore(node)
            self._varying.update(name for name in node.output if name)
        elif self._stands_for_weights(node) and self._replace(node, self):
            self._varying.difference_update(node.output)
            return
        self._fix_reshape(node)
        self.nodes.append(node)

    def _stands_for_weights(self, node: NodeProto) -> bool:
        """Whether a node on constants is better replaced too: ONNX Runtime folds what stands for a DequantizeLinear,
        and not it itself; and what onnx cannot type would leave everything behind it untyped."""
        return node.op_type == "DequantizeLinear" or bool(node.domain and node.output[0] not in self.types)

    def mark(self) -> int:
        """The place where the next node will stand."""
        return len(self.nodes)

    def forget(self, mark: int) -> None:
        """Take back the nodes visited since the mark."""
        del self.nodes[mark:]
        self.integers.forget()

    def keep(self, node: NodeProto) -> None:
        """Keep a node as it is, though it might be computed."""
        self.types.update(self._infer(node))
        self.nodes.append(node)

    def bind(self, name: str, tensor: str, mark: int) -> None:
        """Call a tensor by the name of one of the model's that it takes the place of."""
        made = self.nodes[mark:]
        own = any(tensor in node.output for node in made) and not any(tensor in captured(node) for node in made)
        if not own or name in self.outputs & self._declared.keys():  # the declared type is to be heard
            self.visit(helper.make_node("Identity", [tensor], [name], name=name))
            return
        for node in made:
            node.input[:] = [name if read == tensor else read for read in node.input]
            node.output[:] = [name if output == tensor else output for output in node.output]
        facts: dict[str, Any]
        for facts in (self.types, self._partial):
            if tensor in facts:
                facts[name] = facts.pop(tensor)
        self.integers.rename(tensor, name)
        self._varying.add(name)

    def known(self) -> set[str]:
        """Names of all that is known; for `unlearn`."""
        return set(self.types)

    def unlearn(self, known: set[str]) -> None:
        """Forget everything that was not known then."""
        facts: dict[str, Any]
        for facts in (self.types, self.constants, self._known, self._partial, self.integers.types):
            for name in facts.keys() - known:
                del facts[name]

    def name_dims(self, value: ValueInfoProto) -> None:
        """Give symbols to the unknown dims of a body's input."""
        for i, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value") and not dim.dim_param:
                dim.dim_param = self._symbol(symbol(value.name, i))

    @contextlib.contextmanager
    def inside(self, inputs: Sequence[ValueInfoProto]) -> Iterator[list[NodeProto]]:
        """Nodes visited inside belong to a body with these inputs, and are collected in the list."""
        outside, self.nodes = self.nodes, []
        for value in inputs:
            self.types[value.name] = value.type
            self._varying.add(value.name)
        try:
            yield self.nodes
        finally:
            self.nodes = outside

    def add_constant(self, tensor: TensorProto) -> None:
        """A constant that the model lacks, under its own name."""
        self.types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
        self._learn(tensor)

    def elem_type(self, name: str) -> int:
        """ONNX's code of the element type; 0 where it is unknown or not a tensor's."""
        return int(self.types[name].tensor_type.elem_type) if name in self.types else 0

    def dtype(self, name: str) -> np.dtype[Any] | None:
        """The element type, None where it is unknown or not a tensor's."""
        code = self.elem_type(name)
        return np.dtype(helper.tensor_dtype_to_np_dtype(code)) if code else None

    def shape(self, name: str) -> tuple[Dim, ...] | None:
        """The dims, None where the rank is unknown."""
        dims = self._dims(name)
        return None if dims is None else tuple(dims)

    def varies(self, node: NodeProto) -> bool:
        """Whether a node depends on an input that is no weight."""
        return not self._varying.isdisjoint((*node.input, *captured(node)))

    def value(self, name: str) -> Array | None:
        """The value of a small constant that may be computed with."""
        return self._known.get(name)

    def _learn(self, tensor: TensorProto) -> None:
        """Notes a constant that may be computed with."""
        self.constants[tensor.name] = tensor
        if tensor.data_type in _FOLDABLE:
            self._known[tensor.name] = numpy_helper.to_array(tensor)

    def _dims(self, name: str) -> list[Dim] | None:
        """The tensor's dims, where its rank is known."""
        shape = self.types[name].tensor_type if name in self.types else None
        if shape is None or not shape.HasField("shape"):
            return None
        return [dim.dim_param or dim.dim_value for dim in shape.shape.dim]

    def _entries(self, name: str) -> Array | None:
        """What is known of a tensor's entries, as an object array."""
        return self._known[name].astype(object) if name in self._known else self._partial.get(name)

    # ------------------------------------------------------------------------------------------------ types

    def _infer(self, node: NodeProto) -> dict[str, TypeProto]:
        """Types of the node's outputs; every dim is a number or a symbol."""
        found = self._onnx_types(node)
        result = {}
        for k, name in enumerate(node.output):
            declared = self._declared.get(name, TypeProto())
            basis = found.get(name, declared)
            if not name or basis.WhichOneof("value") is None:
                continue
            result[name] = TypeProto()
            result[name].CopyFrom(basis)
            if not basis.HasField("tensor_type"):
                continue
            dims = _merge(
                self._inferred_dims(basis),
                self._better_dims(node) if k == 0 else None,
                _declared_dims(declared) if name in self.outputs else None,
            )
            if dims is None:  # as behind a Loop that collects a sequence: the rank, but no extent, is taken on trust
                dims = [None] * len(declared.tensor_type.shape.dim) or None
            if dims is not None:
                named = [self._symbol(symbol(name, i)) if dim is None else dim for i, dim in enumerate(dims)]
                complete = helper.make_tensor_type_proto(TensorProto.UNDEFINED, named)
                result[name].tensor_type.shape.CopyFrom(complete.tensor_type.shape)
        return result

    def _onnx_types(self, node: NodeProto) -> dict[str, TypeProto]:
        """What onnx infers; nothing for operators that it does not know. Bodies are typed here."""
        if is_control(node):
            return self._bodies.outputs
        names = [name for name in (*node.input, *captured(node)) if name]
        try:
            types = shape_inference.infer_node_outputs(
                onnx.defs.get_schema(node.op_type, self._versions.get(node.domain, 1), node.domain),
                node,
                {name: self.integers.type(name, node) for name in names},
                {name: self.constants[name] for name in names if name in self.constants},
                None,
                self._opsets,
                BASE_IR,
            )
        except onnx.checker.ValidationError as error:
            raise ModelError(
                f"{where(node)} does not fit ai.onnx opset {BASE_OPSET}: {error}. Export the model with other types."
            ) from error
        except (onnx.defs.SchemaError, shape_inference.InferenceError, KeyError, RuntimeError):
            return {}
        return {name: type_ for name, type_ in types.items() if type_.WhichOneof("value")}

    def _inferred_dims(self, type_: TypeProto) -> list[Dim | None] | None:
        """Unlike where exporters write it, 0 is a number here."""
        if not type_.tensor_type.HasField("shape"):
            return None
        result: list[Dim | None] = []
        for dim in type_.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value == 0:
                result.append(0)
            elif _INVENTED.fullmatch(dim.dim_param) and dim.dim_param not in self._symbol.taken:
                result.append(None)
            else:
                result.append(declared_dim(dim))
        return result

    def _better_dims(self, node: NodeProto) -> Sequence[Dim | None] | None:
        """Dims of the first output where onnx's inference loses symbols; None: nothing to add."""
        if node.domain in ("", "ai.onnx.ml") and node.op_type in DIMS:
            with contextlib.suppress(ValueError, TypeError, IndexError, AttributeError):  # an entry is unknown
                dims = self._dims(node.input[0])
                return DIMS[node.op_type](node, dims, *map(self._entries, node.input))
        return None

    # ----------------------------------------------------------------------------------------------- values

    def _compute(self, node: NodeProto) -> dict[str, Array] | None:
        """Values of the node's outputs if they are small and known; notes what is known in part."""
        if node.domain or node.op_type in _RANDOM or any(subgraphs(node)):
            return None
        if node.op_type == "Identity" and node.output[0] in self.outputs:
            return None  # it stands for a constant output
        if any(is_external(attribute.t) for attribute in node.attribute):
            return None  # onnx would read it from the current folder
        outputs = [name for name in node.output if name]
        elem_types = {name: self.types[name].tensor_type.elem_type for name in outputs if name in self.types}
        if any(elem_types.get(name) not in _FOLDABLE for name in outputs):
            return None
        inputs = [name for name in node.input if name]
        if not inputs or any(name not in self._known for name in inputs):
            return self._compute_entries(node)
        if node.op_type == "NonZero" and self._known[inputs[0]].ndim:  # as large as the values want it
            return {outputs[0]: np.stack(np.nonzero(self._known[inputs[0]]))}
        for name in outputs:
            dims = self._dims(name)
            if dims is None or any(isinstance(dim, str) for dim in dims) or math.prod(map(int, dims)) > SMALL:
                return None
        try:
            with np.errstate(all="ignore"):
                run = ReferenceEvaluator(node, opsets={"": BASE_OPSET})
                values = run.run(None, {name: self._known[name] for name in inputs})
        except Exception:  # not implemented there, or not for these types: the node simply stays
            return None
        result = {name: np.asarray(value) for name, value in zip(node.output, values, strict=True) if name}
        for name, value in result.items():
            elem_type = helper.np_dtype_to_tensor_dtype(value.dtype) if value.dtype.kind in "biuf" else 0
            if elem_type != elem_types[name] or list(value.shape) != self._dims(name):
                return None
        return result

    def _compute_entries(self, node: NodeProto) -> dict[str, Array] | None:
        """Arithmetic on shapes: exact on ints, symbolic on symbols."""
        entries = self._result_entries(node)
        if entries is None or entries.ndim > 1:
            return None
        name = node.output[0]
        elem_type = self.types[name].tensor_type.elem_type
        if elem_type not in _INTEGERS:
            return None
        if all(isinstance(entry, int) for entry in entries.flat) and name not in self.outputs:
            return {name: entries.astype(helper.tensor_dtype_to_np_dtype(elem_type))}
        self._partial[name] = entries
        return None

    def _result_entries(self, node: NodeProto) -> Array | None:
        """What is known of the entries of the node's output; None: nothing, or not a matter of shapes."""
        if node.op_type in ("Shape", "Size"):
            dims = self._dims(node.input[0])
            if dims is None:
                return None
            if node.op_type == "Size":
                return objects(times(dims))
            return objects(dims[integer_attribute(node, "start", 0) : integer_attribute(node, "end", len(dims))])
        inputs = [
            entries for entries in map(self._entries, node.input) if entries is not None and entries.size <= SMALL
        ]
        if node.op_type in ENTRIES and len(inputs) == len(node.input):
            with contextlib.suppress(ValueError, TypeError, IndexError):  # an entry needed as a number is unknown
                return ENTRIES[node.op_type](node, *inputs)
        return None

    def _fix_reshape(self, node: NodeProto) -> None:
        """Reshape(x, [Shape(x)[0], 8, 32]) -> Reshape(x, [0, 8, 32]): a shape that only one dim makes dynamic."""
        if node.op_type != "Reshape" or node.domain or integer_attribute(node, "allowzero", 0):
            return
        x, entries = self._dims(node.input[0]), self._partial.get(node.input[1])
        if x is None or entries is None:
            return
        shape = [
            entry if isinstance(entry, int) else 0 if entry is not None and x[i : i + 1] == [entry] else -1
            for i, entry in enumerate(entries)
        ]
        if shape.count(-1) <= 1:
            name = self.name(f"{node.output[0]}_shape")
            self._learn(numpy_helper.from_array(np.array(shape, np.int64), name))
            self.types[name] = helper.make_tensor_type_proto(TensorProto.INT64, [len(shape)])
            node.input[1] = name


def _declared_dims(type_: TypeProto) -> list[Dim | None] | None:
    """Dims that the model itself states."""
    shape: TensorShapeProto = type_.tensor_type.shape
    return [declared_dim(dim) for dim in shape.dim] if type_.tensor_type.HasField("shape") else None


def _merge(
    inferred: Sequence[Dim | None] | None, better: Sequence[Dim | None] | None, declared: Sequence[Dim | None] | None
) -> list[Dim | None] | None:
    """Dims from what onnx infers, what DIMS says and what is declared; the first of them that has a rank sets it.

    Numbers that onnx infers are right; its symbols say less than those of DIMS; the declared ones come last.
    """
    sources = [source for source in (inferred, better, declared) if source is not None]
    if not sources:
        return None
    unknown: list[None] = [None] * len(sources[0])
    a, b, c = (s if s is not None and len(s) == len(unknown) else unknown for s in (inferred, better, declared))
    return [
        x if isinstance(x, int) else next((dim for dim in (y, x, z) if dim is not None), None)
        for x, y, z in zip(a, b, c, strict=True)
    ]
