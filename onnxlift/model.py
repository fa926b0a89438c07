"""Any ONNX model to one normal form (`normal_form`), read and written safely (`load`, `save`), and a check
that two models compute the same (`equivalence`).

The normal form is what the rest of onnxlift may rely on: one flat, sorted graph at one opset, weights in
initializers, every tensor typed. Weights above `SMALL` elements take no part in protobuf round trips and are
not computed with, so time follows the number of nodes, and models over 2 GB work by reference.
"""

import contextlib
import math
import os
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    ValueInfoProto,
    helper,
    inliner,
    numpy_helper,
    shape_inference,
    version_converter,
)
from onnx.reference import ReferenceEvaluator

from onnxlift.errors import DataError, ModelError

BASE_OPSET = 21  # the last one for which ONNX Runtime's CUDA provider has all kernels
BASE_IR = 10
MAX_OPSET = 26  # what ONNX Runtime 1.31 loads
SMALL = 4096  # elements: constants up to here are computed with, bigger ones are only passed along

Dim = int | str  # str: a symbol, or a product such as "4*batch"
Array = np.ndarray[Any, Any]

_RANDOM = frozenset(
    "RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli Dropout".split()
)
_NO_ADAPTER = frozenset(("GlobalMaxPool",))  # onnx 1.23 lacks the way down from 22, where only types changed
_HIDDEN = "onnxlift.hidden"
_UNKNOWN_DIMS = frozenset(("", "?", "-1", "None"))
_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}  # narrower than what numpy stores


# -------------------------------------------------------------------------------------------- read and write


def load(model: ModelProto | str | os.PathLike[str], *, weights: bool = True) -> ModelProto:
    """Reads a model file (or copies a ModelProto, which is never changed) and checks that it is usable.

    `weights=True` reads external data into the model; `weights=False` leaves it as checked references, for
    models over 2 GB. External data must lie inside the model file's folder; nothing is ever unpickled.
    Raises ModelError: unreadable, empty, truncated or not ONNX; opset above 26; external data that is
    missing, outside of the folder, or too short.
    """
    if isinstance(model, ModelProto):
        result = ModelProto()
        result.CopyFrom(model)
        _check_readable(result, "the given ModelProto")
        if weights and any(_is_external(tensor) for tensor in _tensors(result)):
            raise ModelError(
                "The given ModelProto keeps weights in external files and does not know their folder. Give "
                "the path of the model file instead, or load it with its external data first."
            )
        return result
    path = Path(model)
    try:
        if path.stat().st_size >= 2**31:
            raise ModelError(
                f"{path} is over 2 GB, which no ONNX file can be: big weights belong in external data."
            )
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"Cannot read the model {path}: {error.strerror}. Check the path.") from error
    result = ModelProto()
    try:
        result.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError; its class differs between backends
        raise ModelError(
            f"{path} is not an ONNX model, or is truncated ({len(data)} bytes): protobuf cannot parse it. "
            "Export or download it again."
        ) from error
    _check_readable(result, str(path))
    for tensor in _tensors(result):
        if _is_external(tensor):
            file, offset, length = _external(tensor, path.parent)
            if weights:
                _read_external(tensor, file, offset, length)
    return result


def save(model: ModelProto, path: str | os.PathLike[str]) -> None:
    """Writes the model atomically: the file is complete or not there. External data is referenced, not
    copied, so such a model must be saved into the folder of its weights.

    Raises ModelError: unwritable path, missing folder, over 2 GB, or external data that is not beside `path`.
    """
    path = Path(path)
    if path.parent.is_dir():
        for tensor in _tensors(model):
            if _is_external(tensor):
                _external(tensor, path.parent)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        data = model.SerializeToString()
    except Exception as error:
        raise ModelError(
            f"Cannot write {path}: a model over 2 GB does not fit into one ONNX file. Keep its weights in "
            "external data (load with weights=False) and save beside them."
        ) from error
    try:
        with temporary.open("xb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError as error:
        raise ModelError(f"Cannot write {path}: {error.strerror}. Choose a writable path.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _check_readable(model: ModelProto, where: str) -> None:
    """Protobuf parses some garbage successfully: require what every ONNX model has."""
    if not model.opset_import or not model.graph.output or not (model.graph.node or model.graph.initializer):
        raise ModelError(
            f"{where} is not a complete ONNX model: it lacks a graph with nodes and outputs, or its opset "
            "import. It may be empty, truncated or another kind of file: export or download it again."
        )
    version = _opset(model)
    if version > MAX_OPSET:
        raise ModelError(
            f"{where} uses ai.onnx opset {version}; ONNX Runtime 1.31 loads up to {MAX_OPSET}. "
            f"Export it with an opset of at most {MAX_OPSET}."
        )


def _is_external(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL


def _external(tensor: TensorProto, folder: Path) -> tuple[Path, int, int]:
    """File, offset and length in bytes of an external tensor; refuses hostile and broken references."""
    info = {entry.key: entry.value for entry in tensor.external_data}
    location = info.get("location", "")
    where = f"The external data of tensor '{tensor.name}' in file '{location}'"
    try:
        dtype = TensorProto.DataType.Name(tensor.data_type)
        bits = _BITS.get(dtype) or 8 * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        length = (math.prod(tensor.dims) * bits + 7) // 8
        offset, stated = int(info.get("offset") or 0), int(info.get("length") or length)
        file = (folder / location).resolve()
        inside = file.is_relative_to(folder.resolve())
    except (KeyError, ValueError, OSError, RuntimeError) as error:
        raise ModelError(f"{where} has a malformed reference ({error}). Export the model again.") from error
    if not location or Path(location).is_absolute() or ".." in Path(location).parts or not inside:
        raise ModelError(
            f"{where} lies outside of the model's folder {folder}, which is refused. Put it beside the model."
        )
    if not file.is_file():
        raise ModelError(f"{where} is missing: there is no file {file}. Put it beside the model.")
    if tensor.data_type == TensorProto.STRING or min(offset, length) < 0 or stated != length:
        raise ModelError(
            f"{where} has a malformed reference (offset {offset}, length {stated}). Export the model again."
        )
    if offset + length > file.stat().st_size:
        raise ModelError(
            f"{where} is too short: bytes {offset} to {offset + length} are needed, the file has "
            f"{file.stat().st_size}. Export or download it again."
        )
    return file, offset, length


def _read_external(tensor: TensorProto, file: Path, offset: int, length: int) -> None:
    with file.open("rb") as stream:
        stream.seek(offset)
        tensor.raw_data = stream.read(length)
    del tensor.external_data[:]
    tensor.ClearField("data_location")


# ----------------------------------------------------------------------------------------------- equivalence


def equivalence(original: ModelProto, other: ModelProto, data: Mapping[str, Array]) -> dict[str, float]:
    """Runs both models with ONNX Runtime on the CPU on `data` (input name -> array; names that a model lacks
    are skipped) and returns, per output name of both, how far `other` is from `original`.

    Floats: max |difference| / max |original| over finite values (NaN equals NaN, inf equals inf; 0.0 is
    equal, inf where one is finite and the other is not). Integers and booleans: fraction of differing
    elements. Strings, sequences, maps: 0.0 or 1.0. Another shape or dtype: inf.
    Raises ModelError where ONNX Runtime refuses a model, DataError for bad data.
    """
    first, second = _outputs(original, data), _outputs(other, data)
    return {name: _difference(first[name], second[name]) for name in first if name in second}


def _outputs(model: ModelProto, data: Mapping[str, Array]) -> dict[str, Any]:
    import onnxruntime as ort  # type: ignore[import-untyped]

    options = ort.SessionOptions()
    options.log_severity_level = 4
    if model.ir_version > 13:  # ONNX Runtime 1.31 refuses it, although nothing in the model needs it
        model = load(model, weights=False)
        model.ir_version = 13
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(f"ONNX Runtime cannot load the model: {error}") from error
    required = [value.name for value in session.get_inputs()]
    feed = {name: data[name] for name in required if name in data}
    if len(feed) < len(required):
        raise DataError(f"The data lacks the model's inputs {sorted(set(required) - set(feed))}.")
    names = [value.name for value in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, feed), strict=True))
    except Exception as error:
        raise DataError(f"ONNX Runtime cannot run the model on this data: {error}") from error


def _difference(a: Any, b: Any) -> float:
    if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
        return 0.0 if _same(a, b) else 1.0
    if a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    if a.dtype.kind in "OUS" or a.size == 0:
        return 0.0 if np.array_equal(a, b) else 1.0
    if a.dtype.kind in "iub":
        return float(np.mean(a != b))
    a, b = a.astype(np.float64), b.astype(np.float64)
    differs = ~((a == b) | (np.isnan(a) & np.isnan(b)))
    if not differs.any():
        return 0.0
    if not (np.isfinite(a[differs]).all() and np.isfinite(b[differs]).all()):
        return math.inf
    scale = float(np.abs(a[np.isfinite(a)]).max())
    return float(np.abs(a[differs] - b[differs]).max()) / (scale or 1.0)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return bool(np.array_equal(np.asarray(a), np.asarray(b)))


# ----------------------------------------------------------------------------------------------- normal form


def normal_form(model: ModelProto, *, folder: Path | None = None) -> ModelProto:
    """A new model that computes the same, in this form (`model` is not changed):

     1. no local functions, no unused opset imports;
     2. nodes sorted topologically, captures of subgraphs included;
     3. ai.onnx opset 21, IR version 10; operators newer than that are expanded into their function bodies.
        Metadata, documentation, producer and graph name are kept, and those of nodes that survive;
     4. graph inputs that have an initializer are constants, no longer inputs;
     5. Constant nodes of the main graph and sparse initializers are dense initializers (strings stay nodes);
     6. nodes on small constants (<= 4096 elements in and out), and on statically known shapes, are computed;
        a Reshape to a shape that only the batch makes dynamic gets a constant like [0, 8, -1]. Nothing bigger
        is computed; nodes and weights that no output needs are gone. A small constant graph output is an
        Identity of an initializer, a big one the initializer itself;
     7. every tensor that can be typed has a value_info (stale ones are dropped); dims are ints or symbols.
        Unknown dims of the inputs get symbols: `batch` for leading ones, `<input>_dim<i>` for others.
        Products of symbols are written "4*batch";
     8. every node, those of subgraphs included, has a unique name;
     9. inputs (but 4.) and outputs keep names, order and types, and their values are equal.

    `folder`: where external data lies, for a model loaded with weights=False: small tensors are then read.
    Raises ModelError: cycles, undefined or doubly defined tensors, operators that opset 21 cannot express.
    """
    work, heavy, declared = _skeleton(model, folder)
    if work.functions:
        work = _inline(work)
    _hoist_constants(work.graph)
    _sort(work.graph, top=True)
    if _opset(work) != BASE_OPSET:
        work = _to_base_opset(work)
        _hoist_constants(work.graph)
        _sort(work.graph, top=True)
    walk = _Walk(work, heavy, declared)
    walk.run()
    _finish(work, walk)
    for i in reversed(range(len(work.graph.input))):
        if work.graph.input[i].name in heavy:
            del work.graph.input[i]

    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        if model.HasField(field):
            setattr(work, field, getattr(model, field))
    work.metadata_props.extend(model.metadata_props)
    work.graph.name, work.graph.doc_string = model.graph.name or "graph", model.graph.doc_string
    work.graph.metadata_props.extend(model.graph.metadata_props)
    used = _used(work.graph) | {value.name for value in work.graph.output}
    work.graph.initializer.extend(tensor for name, tensor in heavy.items() if name in used)
    return work


def _skeleton(
    model: ModelProto, folder: Path | None
) -> tuple[ModelProto, dict[str, TensorProto], dict[str, TypeProto]]:
    """A copy of the computation in which big weights are stand-in graph inputs; those weights by name; and
    the declared types by name (only a fallback: exporters write wrong ones)."""
    graph = model.graph
    work = ModelProto(ir_version=BASE_IR, opset_import=model.opset_import, functions=model.functions)
    work.graph.name = graph.name or "graph"
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for sparse in graph.sparse_initializer:
        constants[sparse.values.name] = _dense(sparse, sparse.values.name)
    for node in graph.node:
        tensor = _constant(node)
        if tensor is None:
            work.graph.node.append(node)
        else:
            constants[node.output[0]] = tensor
    work.graph.input.extend(value for value in graph.input if value.name not in constants)
    work.graph.output.extend(graph.output)
    _name_dims(work.graph.input)
    heavy = {}
    for name, tensor in constants.items():
        if _is_external(tensor) and folder and math.prod(tensor.dims) <= SMALL:
            copy = TensorProto()
            copy.CopyFrom(tensor)
            _read_external(copy, *_external(tensor, folder))
            tensor = copy
        if _is_external(tensor) or math.prod(tensor.dims) > SMALL:
            heavy[name] = tensor
            work.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
        else:
            work.graph.initializer.append(tensor)
            work.graph.initializer[-1].name = name
    for nested in _graphs(work.graph):
        del nested.value_info[:]
    for entry in work.opset_import:
        if entry.domain == "ai.onnx":
            entry.domain = ""
    for node in _nodes(work):
        if node.domain == "ai.onnx":
            node.domain = ""
    if not any(entry.domain == "" for entry in work.opset_import):
        work.opset_import.append(helper.make_opsetid("", BASE_OPSET))
    for name, tensor in heavy.items():  # a Constant node's tensor may bear another name
        if tensor.name != name:
            heavy[name] = TensorProto()
            heavy[name].CopyFrom(tensor)
            heavy[name].name = name
    declared = {v.name: v.type for v in (*graph.value_info, *graph.output) if v.HasField("type")}
    return work, heavy, declared


def _name_dims(values: Iterable[ValueInfoProto]) -> None:
    """Guarantee 7 for graph inputs: a symbol for every dim that is not a positive int or a proper name."""
    tensors = [value for value in values if value.type.tensor_type.HasField("shape")]
    dims = [
        (value.name, i, dim) for value in tensors for i, dim in enumerate(value.type.tensor_type.shape.dim)
    ]
    name = _Namer(dim.dim_param for _, i, dim in dims if i)
    batch = name("batch")
    for _, _, dim in dims:
        name.taken.add(dim.dim_param)
    for value, i, dim in dims:
        if _dim(dim) is None:
            dim.dim_param = name(_symbol(value, i)) if i else batch


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim | None:
    if dim.HasField("dim_value") and dim.dim_value > 0:
        return dim.dim_value
    return None if dim.dim_param in _UNKNOWN_DIMS else dim.dim_param


def _symbol(tensor: str, axis: int) -> str:
    return re.sub(r"\W", "_", f"{tensor}_dim{axis}")


# ------------------------------------------------------------------------ constants, functions, order, opset


def _constant(node: NodeProto) -> TensorProto | None:
    """The value of a Constant node; None for other nodes and for strings."""
    if node.op_type != "Constant" or node.domain or not node.attribute:
        return None
    attribute: AttributeProto = node.attribute[0]
    if attribute.name == "value" and attribute.t.data_type != TensorProto.STRING:
        return attribute.t
    if attribute.name == "sparse_value":
        return _dense(attribute.sparse_tensor, node.output[0])
    dtype = {
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
    }
    if attribute.name not in dtype:
        return None
    value = np.array(helper.get_attribute_value(attribute), dtype[attribute.name])
    return numpy_helper.from_array(value, node.output[0])


def _dense(sparse: onnx.SparseTensorProto, name: str) -> TensorProto:
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    result = np.zeros(list(sparse.dims), values.dtype)
    result[tuple(indices.T) if indices.ndim == 2 else np.unravel_index(indices, result.shape)] = values
    return numpy_helper.from_array(result, name)


def _hoist_constants(graph: GraphProto) -> None:
    tensors = [(node.output[0], _constant(node)) for node in graph.node]
    for name, tensor in tensors:
        if tensor is not None:
            graph.initializer.append(tensor)
            graph.initializer[-1].name = name
    _replace_nodes(
        graph, [node for node, (_, tensor) in zip(graph.node, tensors, strict=True) if tensor is None]
    )


def _inline(work: ModelProto) -> ModelProto:
    domains = {entry.domain for entry in work.opset_import}
    for function in work.functions:  # what only a function imports would be lost with it
        for entry in function.opset_import:
            if entry.domain not in domains:
                domains.add(entry.domain)
                work.opset_import.append(entry)
    try:
        _sort(work.graph, top=True)
        result = inliner.inline_local_functions(work, convert_version=True)
    except Exception as error:  # RuntimeError, ValidationError, ConvertError
        raise ModelError(f"The model's local functions cannot be inlined: {error}") from error
    if result.functions:
        names = sorted(f"{function.domain}::{function.name}" for function in result.functions)
        raise ModelError(
            f"The model's local functions {names} cannot be inlined (recursive, or at another opset)."
        )
    return result


def _sort(graph: GraphProto, *, top: bool = False) -> None:
    """Sorts topologically, stably, in linear time, subgraphs first; every name must be defined once."""
    producer: dict[str, int] = {}
    needs: list[list[str]] = []
    for i, node in enumerate(graph.node):
        for nested in _subgraphs(node):
            _sort(nested)
        needs.append([name for name in (*node.input, *_captured(node)) if name])
        for name in filter(None, node.output):
            if name in producer:
                raise ModelError(
                    f"Tensor '{name}' is the output of two nodes, {_where(node)} is one. Export it again."
                )
            producer[name] = i
    given = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    missing = [value.name for value in graph.output if value.name not in producer and value.name not in given]
    if top and missing:
        raise ModelError(
            f"No node computes the graph outputs {missing}. The file is broken: export the model again."
        )
    order: list[int] = []
    state = [0] * len(needs)  # 0 new, 1 open: on the path from the root, 2 done
    for root in range(len(needs)):
        stack = [root]
        while stack:
            i = stack[-1]
            if state[i]:
                stack.pop()
                if state[i] == 1:
                    order.append(i)
                state[i] = 2
                continue
            state[i] = 1
            for name in reversed(needs[i]):
                if name not in producer:
                    if top and name not in given:
                        where = _where(graph.node[i])
                        raise ModelError(
                            f"{where} reads tensor '{name}', which nothing computes. Export the model again."
                        )
                elif state[producer[name]] == 1:
                    raise ModelError(
                        f"The graph has a cycle through tensor '{name}', read by {_where(graph.node[i])}."
                    )
                elif state[producer[name]] == 0:
                    stack.append(producer[name])
    if order != sorted(order):
        _replace_nodes(graph, [graph.node[i] for i in order])


def _to_base_opset(work: ModelProto) -> ModelProto:
    """Converts up or down to BASE_OPSET. onnx's converter needs care: it forgets node names and metadata,
    renames the output of Upsample, and forgets that Resize meant `asymmetric` before opset 11."""
    version = _opset(work)
    if version > BASE_OPSET:
        work = _expand_newer(work)
    before = list(_nodes(work))
    typed = _typed(work)
    skipped = [node for node in _nodes(typed) if node.op_type in _NO_ADAPTER and not node.domain]
    if version > BASE_OPSET and skipped:  # hidden from the converter in a domain of their own
        typed.opset_import.append(helper.make_opsetid(_HIDDEN, 1))
        for node in skipped:
            node.domain = _HIDDEN
    try:
        if version < 9 and any(node.op_type == "Scan" for node in before):
            raise RuntimeError("Scan had a batch axis before opset 9")
        result = version_converter.convert_version(typed, BASE_OPSET)
    except Exception as error:  # ConvertError, RuntimeError of failed assertions
        raise ModelError(
            f"The model cannot be converted from ai.onnx opset {version} to {BASE_OPSET}: {error}. "
            f"Export it at an opset near {BASE_OPSET}."
        ) from error
    for node in _nodes(result):
        if node.domain == _HIDDEN:
            node.domain = ""
    for nested in _graphs(result.graph):
        del nested.value_info[:]
    for field in ("input", "output"):
        result.graph.ClearField(field)
        getattr(result.graph, field).extend(getattr(work.graph, field))
    if version < 11:
        old = [node for node in before if node.op_type in ("Upsample", "Resize") and not node.domain]
        new = [node for node in _nodes(result) if node.op_type == "Resize" and not node.domain]
        renamed = {}
        small = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.graph.initializer}
        for a, b in zip(old, new, strict=True):
            b.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
            scales = small.get(b.input[2], np.ones(1))
            if (scales < 1).any() and (scales > 1).any():
                raise ModelError(
                    f"{_where(a)} of opset {version} scales both up and down. Export it at 11 or later."
                )
            b.attribute.append(
                helper.make_attribute("nearest_mode", "ceil" if (scales < 1).any() else "floor")
            )
            renamed[b.output[0]], b.output[0] = a.output[0], a.output[0]
        for node in _nodes(result):
            node.input[:] = [renamed.get(name, name) for name in node.input]
    origin = {node.output[0]: node for node in before if node.output}
    for node in _nodes(result):
        source = origin.get(node.output[0]) if node.output else None
        if source is not None:
            node.name, node.doc_string = source.name, source.doc_string
            del node.metadata_props[:]
            node.metadata_props.extend(source.metadata_props)
    lost = sorted({node.op_type for node in _nodes(result) if not node.domain and not _in_base(node.op_type)})
    if lost:
        raise ModelError(
            f"Operators {lost} of ai.onnx opset {version} do not exist at opset {BASE_OPSET}. Replace them."
        )
    return result


def _expand_newer(work: ModelProto) -> ModelProto:
    """Replaces operators that came after BASE_OPSET by their function bodies."""
    version = _opset(work)
    while True:
        newer = [node for node in _nodes(work) if not node.domain and not _in_base(node.op_type)]
        if not newer:
            return work
        for node in newer:
            try:
                schema = onnx.defs.get_schema(node.op_type, version, "")
            except onnx.defs.SchemaError:
                schema = None
            bodies = ("has_function", "has_context_dependent_function")  # onnx's stubs lack both
            if schema is None or not any(getattr(schema, name) for name in bodies):
                raise ModelError(
                    f"{_where(node)} of ai.onnx opset {version} does not exist at opset {BASE_OPSET} and has "
                    f"no function body to replace it. Export the model at opset {BASE_OPSET} or without it."
                )
            given = {attribute.name for attribute in node.attribute}
            for name, attribute in schema.attributes.items():  # the inliner leaves out defaults
                if name not in given and attribute.default_value.type != AttributeProto.UNDEFINED:
                    node.attribute.append(attribute.default_value)
        names = sorted({("", node.op_type) for node in newer})
        try:
            work = inliner.inline_selected_functions(_typed(work), names, inline_schema_functions=True)
        except RuntimeError as error:
            raise ModelError(f"Operators {[op for _, op in names]} cannot be expanded: {error}") from error
        for nested in _graphs(work.graph):
            del nested.value_info[:]


def _typed(work: ModelProto) -> ModelProto:
    """With value_info for everything, initializers included, as the inliner and the converter need it."""
    result = shape_inference.infer_shapes(work, data_prop=True)
    for tensor in result.graph.initializer:
        result.graph.value_info.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )
    result.graph.value_info.append(helper.make_tensor_value_info("", TensorProto.UNDEFINED, None))
    return result  # the inliner also wants a type for omitted inputs


# -------------------------------------------------------------------------------- shapes and small constants


class _Walk:
    """One pass over the sorted nodes that infers types and computes what is constant.

    `types`: type of every tensor; `data`: the small constants; `known`: their values, where numpy holds them;
    `partial`: integer tensors whose entries are known in part, as object arrays of Dim (None: unknown);
    `nodes`: what remains to be computed.
    """

    def __init__(
        self, work: ModelProto, heavy: Mapping[str, TensorProto], declared: Mapping[str, TypeProto]
    ) -> None:
        graph = work.graph
        self.graph, self.opsets, self.declared = graph, work.opset_import, declared
        self.outputs = {value.name for value in graph.output}
        self.types = {value.name: value.type for value in graph.input}
        self.name = _Namer(_all_names(graph))
        self.symbol = _Namer(
            dim.dim_param for type_ in self.types.values() for dim in type_.tensor_type.shape.dim
        )
        self.data: dict[str, TensorProto] = {}
        self.known: dict[str, Array] = {}
        self.partial: dict[str, Array] = {}
        self.nodes: list[NodeProto] = []
        for tensor in graph.initializer:
            self.types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
            if math.prod(tensor.dims) <= SMALL:
                self._learn(tensor)

    def run(self) -> None:
        for node in self.graph.node:
            types = self._infer(node)
            self.types.update(types)
            values = self._compute(node, types)
            if values is None:
                self._constant_reshape(node)
                self.nodes.append(node)
            for name, value in (values or {}).items():
                self._learn(numpy_helper.from_array(value, name))

    def _learn(self, tensor: TensorProto) -> None:
        self.data[tensor.name] = tensor
        if tensor.data_type in _FOLDABLE:
            self.known[tensor.name] = numpy_helper.to_array(tensor)

    def dims(self, name: str) -> list[Dim] | None:
        shape = self.types[name].tensor_type if name in self.types else None
        if shape is None or not shape.HasField("shape"):
            return None
        return [dim.dim_param or dim.dim_value for dim in shape.shape.dim]

    def entries(self, name: str) -> Array | None:
        """What is known of a tensor's entries, as an object array."""
        if name in self.known:
            return self.known[name].astype(object)
        return self.partial.get(name)

    def _infer(self, node: NodeProto) -> dict[str, TypeProto]:
        names = [name for name in (*node.input, *_captured(node)) if name]
        version = next((entry.version for entry in self.opsets if entry.domain == node.domain), 1)
        types: dict[str, TypeProto] = {}
        with contextlib.suppress(
            onnx.defs.SchemaError, shape_inference.InferenceError, KeyError, RuntimeError
        ):
            types = shape_inference.infer_node_outputs(
                onnx.defs.get_schema(node.op_type, version, node.domain),
                node,
                {name: self.types[name] for name in names},
                {name: self.data[name] for name in names if name in self.data},
                None,
                list(self.opsets),
                BASE_IR,
            )
        result = {}
        for name in filter(None, node.output):
            inferred = types.get(name, TypeProto())
            declared = self.declared.get(name, TypeProto())
            if inferred.WhichOneof("value") is None:
                if declared.WhichOneof("value") is None:
                    continue
                inferred = declared
            result[name] = TypeProto()
            result[name].CopyFrom(inferred)
            tensor = result[name].tensor_type
            better = self._better_dims(node) if name == node.output[0] else None
            if better is not None and not tensor.HasField("shape"):
                tensor.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in better)
            hints = declared.tensor_type.shape.dim if name in self.outputs else ()
            ranked = name in self.outputs and declared.tensor_type.HasField("shape")
            if not tensor.HasField("shape") and ranked and inferred.HasField("tensor_type"):
                tensor.shape.SetInParent()
                tensor.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in hints)
            for i, dim in enumerate(tensor.shape.dim):
                value = _dim(dim) if not dim.HasField("dim_value") or dim.dim_value < 0 else dim.dim_value
                if isinstance(value, str) and value not in self.symbol.taken and _INVENTED.fullmatch(value):
                    value = None
                if better is not None and better[i] is not None and not isinstance(value, int):
                    value = better[i]
                if value is None and len(hints) == len(tensor.shape.dim):
                    value = _dim(hints[i])
                if value is None:
                    value = self.symbol(_symbol(name, i))
                dim.Clear()
                if isinstance(value, int):
                    dim.dim_value = value
                else:
                    dim.dim_param = value
        return result

    def _better_dims(self, node: NodeProto) -> Sequence[Dim | None] | None:
        """Dims of the first output where onnx's inference loses symbols; None: nothing to add."""
        x = self.dims(node.input[0]) if node.input else None
        if node.domain == "ai.onnx.ml":
            return x if node.op_type in ("Scaler", "Normalizer", "Imputer", "Binarizer") else None
        if node.domain or node.op_type not in _DIMS:
            return None
        with contextlib.suppress(ValueError, TypeError, IndexError, AttributeError):  # an entry is unknown
            return _DIMS[node.op_type](node, x, *(self.entries(name) for name in node.input))
        return None

    def _compute(self, node: NodeProto, types: Mapping[str, TypeProto]) -> dict[str, Array] | None:
        """Values of the node's outputs if they are small and known; notes what is known in part."""
        if node.domain or node.op_type in _RANDOM or any(True for _ in _subgraphs(node)):
            return None
        if node.op_type == "Identity" and node.output[0] in self.outputs:
            return None  # guarantee 6: stands for a constant output
        if not all(
            name in types and types[name].tensor_type.elem_type in _FOLDABLE
            for name in filter(None, node.output)
        ):
            return None
        known = [name for name in node.input if name]
        if not known or not all(name in self.known for name in known):
            return self._compute_partial(node, types)
        for name in filter(None, node.output):
            dims = self.dims(name)
            if dims is None or any(isinstance(dim, str) for dim in dims) or math.prod(map(int, dims)) > SMALL:
                return None
        try:
            with np.errstate(all="ignore"):
                run = ReferenceEvaluator(node, opsets={"": BASE_OPSET})
                values = run.run(None, {name: self.known[name] for name in known})
        except Exception:  # not implemented there, or not for these types: the node simply stays
            return None
        result = {name: np.asarray(value) for name, value in zip(node.output, values, strict=True) if name}
        for name, value in result.items():
            elem_type = helper.np_dtype_to_tensor_dtype(value.dtype) if value.dtype.kind in "biuf" else 0
            if elem_type != types[name].tensor_type.elem_type or list(value.shape) != self.dims(name):
                return None
        return result

    def _compute_partial(self, node: NodeProto, types: Mapping[str, TypeProto]) -> dict[str, Array] | None:
        """Arithmetic on shapes: exact on ints, symbolic on symbols."""
        name = node.output[0]
        entries: Array | None = None
        if node.op_type in ("Shape", "Size"):
            dims = self.dims(node.input[0])
            if dims is not None:
                start, end = _attribute(node, "start", 0), _attribute(node, "end", len(dims))
                entries = _objects(dims[start:end]) if node.op_type == "Shape" else _objects(_times(dims))
        elif node.op_type in _ON_SHAPES:
            inputs = [self.entries(tensor) for tensor in node.input]
            if all(known is not None and known.size <= SMALL for known in inputs):
                with contextlib.suppress(
                    ValueError, TypeError, IndexError
                ):  # an entry needed as a number is unknown
                    entries = _ON_SHAPES[node.op_type](node, *inputs)
        if entries is None or entries.ndim > 1 or types[name].tensor_type.elem_type not in _INTEGERS:
            return None
        elem_type = types[name].tensor_type.elem_type
        if all(isinstance(entry, int) for entry in entries.flat) and name not in self.outputs:
            return {name: entries.astype(helper.tensor_dtype_to_np_dtype(elem_type))}
        self.partial[name] = entries
        return None

    def _constant_reshape(self, node: NodeProto) -> None:
        """Reshape(x, [Shape(x)[0], 8, 32]) -> Reshape(x, [0, 8, 32])."""
        if (
            node.op_type != "Reshape"
            or node.domain
            or node.input[1] in self.known
            or _attribute(node, "allowzero", 0)
        ):
            return
        x, entries = self.dims(node.input[0]), self.partial.get(node.input[1])
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


_FOLDABLE = frozenset(
    helper.np_dtype_to_tensor_dtype(np.dtype(name))
    for name in "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64".split()
)


def _expand_dims(node: NodeProto, x: list[Dim], _: Array, shape: Array) -> list[Dim | None]:
    rank = max(len(x), len(shape))
    pairs = zip([1] * (rank - len(x)) + list(x), [1] * (rank - len(shape)) + list(shape), strict=True)
    return [b if a == 1 else a if b in (1, a) or isinstance(a, int) else None for a, b in pairs]


def _reshape_dims(node: NodeProto, x: list[Dim], _: Array, shape: Array) -> list[Dim | None]:
    result: list[Dim | None] = list(shape)
    if not _attribute(node, "allowzero", 0):
        result = [x[i] if entry == 0 else entry for i, entry in enumerate(result)]
    open_ = [i for i, entry in enumerate(result) if entry in (-1, None)]
    if len(open_) == 1:
        result[open_[0]] = _over(
            _times(x), _times(e for i, e in enumerate(result) if i != open_[0] and e is not None)
        )
    return [None if entry == -1 else entry for entry in result]


def _resize_dims(
    node: NodeProto, x: list[Dim], _: Array, roi: Array, scales: Any = None, sizes: Any = None
) -> list[Dim | None]:
    if any(attribute.name in ("axes", "keep_aspect_ratio_policy") for attribute in node.attribute):
        return [None] * len(x)
    if sizes is not None:
        return list(sizes)
    return [dim if scale == 1 else None for dim, scale in zip(x, scales, strict=True)]


def _slice_dims(
    node: NodeProto, x: list[Dim], _: Array, starts: Array, ends: Array, axes: Any = None, steps: Any = None
) -> list[Dim | None]:
    result: list[Dim | None] = list(x)
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        whole = step == 1 and start == 0 and (end == x[axis] or (isinstance(end, int) and end >= 2**31 - 1))
        result[axis] = x[axis] if whole else None
    return result


# Where onnx's inference loses a symbol: (node, dims of the first input, entries of the inputs) -> dims
_DIMS: dict[str, Callable[..., Sequence[Dim | None]]] = {
    "ConstantOfShape": lambda node, x, shape: list(shape),
    "Expand": _expand_dims,
    "Flatten": lambda node, x, *_: [
        _times(x[: _attribute(node, "axis", 1)]),
        _times(x[_attribute(node, "axis", 1) :]),
    ],
    "GroupNormalization": lambda node, x, *_: x,
    "Range": lambda node, x, start, limit, step: [
        _over(limit.item(), step.item()) if start.item() == 0 else None
    ],
    "Reshape": _reshape_dims,
    "Resize": _resize_dims,
    "Slice": _slice_dims,
}
_INVENTED = re.compile(r"unk__\d+")  # by onnx, anew in every call: the same name need not be the same dim
_INTEGERS = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)


def _factors(dim: Dim) -> tuple[int, Counter[str]]:
    """ "4*batch" -> (4, {batch}); whatever is not such a product is one symbol."""
    if isinstance(dim, int):
        return dim, Counter()
    if not re.fullmatch(r"(\d+\*)?[A-Za-z_]\w*(\*[A-Za-z_]\w*)*", dim):
        return 1, Counter([dim])
    parts = dim.split("*")
    return (int(parts[0]), Counter(parts[1:])) if parts[0].isdigit() else (1, Counter(parts))


def _product(number: int, symbols: Counter[str]) -> Dim:
    if number == 0 or not symbols:
        return number
    return "*".join([*([str(number)] if number != 1 else []), *sorted(symbols.elements())])


def _times(dims: Iterable[Dim]) -> Dim:
    number, symbols = 1, Counter[str]()
    for dim in dims:
        n, s = _factors(dim)
        number, symbols = number * n, symbols + s
    return _product(number, symbols)


def _over(total: Dim, part: Dim) -> Dim | None:
    """total / part where it is exact for every value of the symbols, else None."""
    (n, s), (m, t) = _factors(total), _factors(part)
    return _product(n // m, s - t) if m and n % m == 0 and t <= s else None


def _objects(value: Any) -> Array:
    return np.array(value, dtype=object)


def _pairwise(rule: Callable[[Any, Any], Any]) -> Callable[..., Array]:
    """An elementwise rule on entries; an unknown one makes the result unknown."""

    def apply(node: NodeProto, a: Array, b: Array) -> Array:
        a, b = np.broadcast_arrays(a, b)
        pairs = zip(a.flat, b.flat, strict=True)
        values = [None if x is None or y is None else rule(x, y) for x, y in pairs]
        result = np.empty(a.shape, dtype=object)
        result[...] = _objects(values).reshape(a.shape)
        return result

    return apply


def _plus(sign: int) -> Callable[[Any, Any], Any]:
    def rule(x: Any, y: Any) -> Any:
        if isinstance(x, int) and isinstance(y, int):
            return x + sign * y
        return x if y == 0 else y if x == 0 and sign > 0 else None

    return rule


def _equal(x: Any, y: Any) -> bool | None:
    if x == y or (isinstance(x, int) and isinstance(y, int)):
        return bool(x == y)
    return False if min(v for v in (x, y, 0) if isinstance(v, int)) < 0 else None  # no dim is negative


def _quotient(x: Any, y: Any) -> Any:
    return (int(x / y) if y else None) if isinstance(x, int) and isinstance(y, int) else _over(x, y)


def _scaled(x: Any, y: Any) -> Dim | None:
    return None if any(isinstance(v, int) and v < 0 for v in (x, y)) else _times([x, y])


def _slice(
    node: NodeProto, x: Array, starts: Array, ends: Array, axes: Any = None, steps: Any = None
) -> Array:
    step = int(steps[0]) if steps is not None else 1
    start, end = int(starts[0]), int(ends[0])
    return x[start : None if step < 0 and end < -len(x) else end : step]


def _where_entries(node: NodeProto, c: Array, x: Array, y: Array) -> Array:
    if None in c.flat:
        raise ValueError("condition unknown")
    return np.asarray(np.where(c.astype(bool), x, y))


_ON_SHAPES: dict[str, Callable[..., Array]] = {
    "Gather": lambda node, x, i: _objects(np.take(x, i.astype(np.int64), axis=_attribute(node, "axis", 0))),
    "Slice": _slice,
    "Concat": lambda node, *xs: np.concatenate(xs, axis=_attribute(node, "axis", 0)),
    "Unsqueeze": lambda node, x, axes: np.expand_dims(x, tuple(map(int, axes))),
    "Squeeze": lambda node, x, axes=None: np.squeeze(x, None if axes is None else tuple(map(int, axes))),
    "Reshape": lambda node, x, shape: x.reshape(tuple(map(int, shape))),
    "Cast": lambda node, x: x,
    "Identity": lambda node, x: x,
    "Mul": _pairwise(lambda x, y: x * y if isinstance(x, int) and isinstance(y, int) else _scaled(x, y)),
    "Div": _pairwise(_quotient),
    "Add": _pairwise(_plus(1)),
    "Sub": _pairwise(_plus(-1)),
    "Equal": _pairwise(_equal),
    "Where": _where_entries,
}


# ------------------------------------------------------------------------------------------------ last steps


def _finish(work: ModelProto, walk: _Walk) -> None:
    """Writes the result of the walk back: outputs, dead code, names, value_info, imports."""
    graph, types = work.graph, walk.types
    inputs = {value.name for value in graph.input}
    constants = {tensor.name: tensor for tensor in graph.initializer} | walk.data
    nodes = []
    for name in sorted(walk.outputs & constants.keys()):  # guarantee 6
        renamed = TensorProto()
        renamed.CopyFrom(constants[name])
        renamed.name = walk.name(f"{name}_value")
        constants[renamed.name] = renamed
        nodes.append(helper.make_node("Identity", [renamed.name], [name]))
    needed = {value.name for value in graph.output}
    live = []
    for node in reversed(nodes + walk.nodes):
        if needed.intersection(node.output):
            needed.update(node.input, _captured(node))
            live.append(node)
    _replace_nodes(graph, live[::-1])
    tensors = [constants[name] for name in sorted(constants) if name in needed - inputs - walk.outputs]
    graph.ClearField("initializer")
    graph.initializer.extend(tensors)

    for value in graph.output:
        if value.name in types:
            value.type.CopyFrom(types[value.name])
    made = [name for node in graph.node for name in node.output if name in types and name not in walk.outputs]
    graph.value_info.extend(ValueInfoProto(name=name, type=types[name]) for name in made)
    if any(True for node in graph.node for _ in _subgraphs(node)):  # types inside of subgraphs
        with contextlib.suppress(shape_inference.InferenceError, RuntimeError):
            typed = shape_inference.infer_shapes(work, data_prop=True)
            _replace_nodes(graph, list(typed.graph.node))

    name = _Namer(node.name for node in _nodes(work))
    seen: set[str] = set()
    for k, node in enumerate(_nodes(work)):
        if not node.name or node.name in seen:
            node.name = name(node.name or f"{node.op_type}_{k}")
        seen.add(node.name)
    domains = {node.domain for node in _nodes(work)} | {""}
    versions = {entry.domain: entry.version for entry in work.opset_import if entry.domain in domains}
    work.ClearField("opset_import")
    work.opset_import.extend(helper.make_opsetid(*item) for item in (versions | {"": BASE_OPSET}).items())


# --------------------------------------------------------------------------------------------------- helpers


class _Namer:
    """Makes names that are not taken: `base`, `base_2`, `base_3` ..."""

    def __init__(self, taken: Iterable[str]) -> None:
        self.taken = set(taken)
        self.count: Counter[str] = Counter()

    def __call__(self, base: str) -> str:
        name = base
        while name in self.taken:
            self.count[base] += 1
            name = f"{base}_{self.count[base] + 1}"
        self.taken.add(name)
        return name


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and all that are nested in it."""
    yield graph
    for node in graph.node:
        for nested in _subgraphs(node):
            yield from _graphs(nested)


def _nodes(model: ModelProto) -> Iterator[NodeProto]:
    for graph in _graphs(model.graph):
        yield from graph.node


def _captured(node: NodeProto) -> list[str]:
    """Names that the node's subgraphs use from outside."""
    result = []
    for graph in _subgraphs(node):
        own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        own.update(name for inner in graph.node for name in inner.output)
        used = [name for inner in graph.node for name in (*inner.input, *_captured(inner))]
        result += [
            name for name in (*used, *(value.name for value in graph.output)) if name and name not in own
        ]
    return result


def _used(graph: GraphProto) -> set[str]:
    return {name for node in graph.node for name in (*node.input, *_captured(node))}


def _all_names(graph: GraphProto) -> set[str]:
    names = {
        name for nested in _graphs(graph) for node in nested.node for name in (*node.input, *node.output)
    }
    return names | {
        v.name for nested in _graphs(graph) for v in (*nested.input, *nested.output, *nested.initializer)
    }


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor that may keep its data in a file: of all graphs, functions and attributes."""
    bodies: list[Any] = [model.graph, *model.functions]
    for graph in (nested for body in bodies for nested in _graphs(body)):
        sparse = list(getattr(graph, "sparse_initializer", ()))  # a function has none
        yield from getattr(graph, "initializer", ())
        for attribute in (attribute for node in graph.node for attribute in node.attribute):
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            sparse += [
                *attribute.sparse_tensors,
                *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
            ]
        for item in sparse:
            yield from (item.values, item.indices)


def _replace_nodes(graph: GraphProto, nodes: Sequence[NodeProto]) -> None:
    kept = GraphProto(node=nodes)
    graph.ClearField("node")
    graph.node.extend(kept.node)


def _opset(model: ModelProto) -> int:
    """The version of ai.onnx; BASE_OPSET for a model that uses other domains only."""
    return next(
        (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), BASE_OPSET
    )


def _in_base(op_type: str) -> bool:
    try:
        return not onnx.defs.get_schema(op_type, BASE_OPSET, "").deprecated
    except onnx.defs.SchemaError:
        return False


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def _where(node: NodeProto) -> str:
    return (
        f"Node '{node.name}' ({node.op_type})"
        if node.name
        else f"A node {node.op_type} that makes {list(node.output)}"
    )
