"""ONNX files, read without trusting them and written whole or not at all, and the weights that lie beside them."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

from onnx import ModelProto, TensorProto, ValueInfoProto, helper
from onnx.defs import onnx_opset_version

from onnxlift.arrays import PathLike, destination, replacing, temporary
from onnxlift.errors import ModelError
from onnxlift.protobuf import is_external, is_small, nested, nodes, opset

MAX_OPSET = onnx_opset_version()
"""The last opset that the installed onnx knows. Explainers are written at an older one, which ONNX Runtime loads."""

_ALIGNMENT = 4096  # so that ONNX Runtime can map the tensors into memory
_PIECE = 1 << 24

# Narrower than what numpy stores.
_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6, "INT2": 2, "UINT2": 2}


def load(model: ModelProto | PathLike, *, weights: bool = True) -> ModelProto:
    """Reads a model file (or copies a ModelProto, which is never changed) and checks that it is usable.

    `weights=True` reads external data into the model; `weights=False` leaves it as checked references, for
    models over 2 GB. External data must lie inside the model file's folder; nothing is ever unpickled.
    Raises ModelError: unreadable, empty, truncated or not ONNX; an opset that the installed onnx does not know; graph
    inputs without a type or with the same name; tensors whose data are not of their type and shape; external data that
    is missing, outside of the folder, or too short.
    """
    result = ModelProto()
    if isinstance(model, ModelProto):
        result.CopyFrom(model)
        _check_readable(result, "the given ModelProto")
        _check_values(result)
        if weights and any(map(is_external, _tensors(result))):
            raise ModelError(
                "The given ModelProto keeps weights in external files and does not know their folder. Give "
                "the path of the model file instead, or load it with its external data first."
            )
        return result
    path = Path(model)
    try:
        if path.stat().st_size >= 2**31:
            raise ModelError(f"{path} is over 2 GB, which no ONNX file can be: big weights belong in external data.")
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"Cannot read the model {path}: {error.strerror}. Check the path.") from error
    try:
        result.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError; its class differs between backends
        raise ModelError(
            f"{path} is not an ONNX model, or is truncated ({len(data)} bytes): protobuf cannot parse it. "
            "Export or download it again."
        ) from error
    _check_readable(result, str(path))
    _check_values(result)
    for tensor in filter(is_external, _tensors(result)):
        if weights:
            _read(tensor, path.parent)
        else:
            _locate(tensor, path.parent)
    return result


def save(model: ModelProto, path: PathLike) -> None:
    """Writes the model atomically: the file is complete or not there. External data is referenced, not
    copied, so such a model must be saved into the folder of its weights. A link stays: the file behind it is written.

    Raises ModelError: unwritable path, missing folder, a device or pipe, over 2 GB, or external data that is not
    beside `path`.
    """
    try:
        real = destination(path)
        partial = temporary(real)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelError(f"Cannot write {path}: {reason}. Choose a writable path.") from error
    if real.parent.is_dir():  # else the message is that it is not
        for tensor in filter(is_external, _tensors(model)):
            _locate(tensor, real.parent)
    try:
        data = model.SerializeToString()
    except Exception as error:
        raise ModelError(
            f"Cannot write {path}: a model over 2 GB does not fit into one ONNX file. Keep its weights in "
            "external data (load with weights=False) and save beside them."
        ) from error
    try:
        with partial.open("xb") as file:
            file.write(data)
        os.replace(partial, real)
    except OSError as error:
        raise ModelError(f"Cannot write {path}: {error.strerror}. Choose a writable path.") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def weights_elsewhere(model: ModelProto, folder: Path) -> int:
    """How many bytes of the model's tensors lie in other files, in `folder`."""
    return sum(_locate(tensor, folder)[2] for tensor in _tensors(model) if is_external(tensor))


def files_of_weights(model: ModelProto, folder: Path) -> list[Path]:
    """The other files, in `folder`, in which tensors of the model lie."""
    return sorted({_locate(tensor, folder)[0] for tensor in _tensors(model) if is_external(tensor)})


def save_with_weights(model: ModelProto, path: PathLike, folder: Path) -> None:
    """Writes the model and, in one file called after it (`NAME.data`), the external data it refers to in `folder`.

    The data are copied piece by piece, never held. Raises ModelError as `save` does, and OptionError where there is no
    place for the copy.
    """
    data = Path(f"{destination(path)}.data")
    owned = ModelProto()
    owned.CopyFrom(model)
    try:
        with replacing(data) as stream:
            for tensor in filter(is_external, _tensors(owned)):
                file, start, length = _locate(tensor, folder)
                stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
                del tensor.external_data[:]
                for key, value in (("location", data.name), ("offset", stream.tell()), ("length", length)):
                    tensor.external_data.add(key=key, value=str(value))
                with file.open("rb") as source:
                    source.seek(start)
                    while length:
                        piece = source.read(min(length, _PIECE))
                        stream.write(piece)
                        length -= len(piece)
    except OSError as error:
        raise ModelError(f"Cannot copy the weights to {data}: {error.strerror}. Choose another folder.") from error
    try:
        save(owned, path)
    except ModelError:
        data.unlink()
        raise


def with_small_tensors(model: ModelProto, folder: Path) -> ModelProto:
    """The model with every small external tensor read from `folder`, so that it can be computed with: a copy, or
    the model itself where it has none. Big ones stay references."""

    def unread(model: ModelProto) -> list[TensorProto]:
        return [tensor for tensor in _tensors(model) if is_external(tensor) and is_small(tensor)]

    if not unread(model):
        return model
    result = ModelProto()
    result.CopyFrom(model)
    for tensor in unread(result):
        _read(tensor, folder)
    return result


def _check_readable(model: ModelProto, where: str) -> None:
    """Protobuf parses some garbage successfully: require what every ONNX model has."""
    if not model.opset_import or not model.graph.output or not (model.graph.node or model.graph.initializer):
        raise ModelError(
            f"{where} is not a complete ONNX model: it lacks a graph with nodes and outputs, or its opset "
            "import. It may be empty, truncated or another kind of file: export or download it again."
        )
    if opset(model) > MAX_OPSET:
        raise ModelError(
            f"{where} uses ai.onnx opset {opset(model)}; the installed onnx knows those up to {MAX_OPSET}. "
            f"Export it with an opset of at most {MAX_OPSET}, or install a newer onnx."
        )


def _check_values(model: ModelProto) -> None:
    """What every later step relies on: typed graph inputs of different names, tensors that hold what they promise."""
    seen = set()
    for value in model.graph.input:
        if value.name in seen:
            raise ModelError(f"Two graph inputs have the name '{value.name}'. Export the model again.")
        seen.add(value.name)
        if value.type.WhichOneof("value") is None:
            raise ModelError(f"The graph input '{value.name}' has no type. Export the model again.")
    for value in (*model.graph.input, *model.graph.output):
        _check_type(value, optional=value.name not in seen)
    for tensor in _tensors(model):
        _check_tensor(tensor)


def _check_type(value: ValueInfoProto, *, optional: bool) -> None:
    """A tensor's element type must be one that exists, or be left out where it is `optional`."""
    kind = value.type.tensor_type.elem_type
    if not value.type.HasField("tensor_type") or (optional and kind == TensorProto.UNDEFINED):
        return
    if _bits(kind) is None:
        raise ModelError(f"The tensor '{value.name}' has the unknown element type {kind}. Export the model again.")


def _check_tensor(tensor: TensorProto) -> None:
    """The data must be as many as the shape promises; those in other files are checked where they are read."""
    bits = _bits(tensor.data_type)
    problem = None
    if bits is None:
        problem = f"has the unknown element type {tensor.data_type}"
    elif min(tensor.dims, default=0) < 0:
        problem = f"has the negative shape {list(tensor.dims)}"
    elif not is_external(tensor):
        count = math.prod(tensor.dims)
        if tensor.HasField("raw_data"):
            found, needed, unit = len(tensor.raw_data), (count * bits + 7) // 8, "bytes"
        else:
            found, unit = len(getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type))), "values"
            if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
                count *= 2
            needed = (count * bits + 7) // 8 if bits <= 4 else count  # these are packed as in bytes
        if found != needed:
            problem = f"of shape {list(tensor.dims)} needs {needed} {unit}, but has {found}"
    if problem:
        raise ModelError(f"The tensor '{tensor.name}' {problem}. The file is broken: export the model again.")


def _bits(kind: int) -> int | None:
    """The width of an element type; None where it is unknown."""
    try:
        name = TensorProto.DataType.Name(kind)
        return _BITS.get(name) or 8 * helper.tensor_dtype_to_np_dtype(kind).itemsize
    except (KeyError, ValueError):
        return None


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor that may keep its data in a file: of all graphs, functions and attributes."""
    sparse = []
    bodies = (model.graph, *model.functions)
    for graph in (model.graph, *(graph for body in bodies for graph in nested(body.node))):
        yield from graph.initializer
        sparse += graph.sparse_initializer
    for attribute in (attribute for node in nodes(model) for attribute in node.attribute):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("sparse_tensor"):
            sparse.append(attribute.sparse_tensor)
        sparse += attribute.sparse_tensors
    for item in sparse:
        yield from (item.values, item.indices)


def _locate(tensor: TensorProto, folder: Path) -> tuple[Path, int, int]:
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


def _read(tensor: TensorProto, folder: Path) -> None:
    """Turns a reference into data."""
    file, offset, length = _locate(tensor, folder)
    try:
        with file.open("rb") as stream:
            stream.seek(offset)
            tensor.raw_data = stream.read(length)
    except OSError as error:
        raise ModelError(f"Cannot read the external data {file}: {error.strerror}. Make it readable.") from error
    del tensor.external_data[:]
    tensor.ClearField("data_location")
