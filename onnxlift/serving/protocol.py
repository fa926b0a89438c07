"""The Open Inference Protocol, version 2, as HTTP and gRPC have it in common: metadata, and requests as arrays.

Nothing in a request is trusted: what does not fit is a DataError, and no memory is taken for bytes that are not there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import numpy as np

from onnxlift.arrays import Array
from onnxlift.errors import DataError, listed, shown
from onnxlift.runtime import Explainer
from onnxlift.serving.contract import DATATYPES

VERSION = "1"  # the only one of the model
_MOST_AXES = 32
_NUMBERS = {bool, int, float}


@dataclass(frozen=True)
class Tensor:
    """An input or output: `datatype` as the protocol calls it, and where -1 in `shape` is a size that may vary."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """What a client asks for: the arrays by input, and the outputs that it wants.

    `id`: what the response repeats. `outputs`: by name, whether each comes as bytes.
    """

    id: str
    arrays: Mapping[str, Array]
    outputs: Mapping[str, bool]


class Signature:
    """What an explainer takes and gives, as requests, responses and metadata call it. `name`: of the model.

    Raises DataError where the protocol lacks the type of an input.
    """

    def __init__(self, name: str, explainer: Explainer) -> None:
        self.name = name
        ports = explainer.intake.ports
        self.inputs = {port.name: _tensor(port.name, port.kind, port.shape) for port in ports.values()}
        self.outputs = {
            name: _tensor(name, value.type, value.shape)
            for name, value in explainer.outputs.items()
            if value.type in DATATYPES
        }
        self._dtypes = {name: port.dtype for name, port in ports.items()}

    def metadata(self) -> dict[str, Any]:
        """What the protocol tells of a model."""
        return {
            "name": self.name,
            "versions": [VERSION],
            "platform": "onnxruntime_onnx",
            "inputs": [asdict(tensor) for tensor in self.inputs.values()],
            "outputs": [asdict(tensor) for tensor in self.outputs.values()],
        }

    def fit(self, name: str, datatype: str, shape: Sequence[Any], before: Mapping[str, Array]) -> tuple[int, ...]:
        """The shape of an input in a request, if the explainer takes such a one and has not got it `before`."""
        if name not in self.inputs:
            raise DataError(f"no input {name!r} in the explainer: it takes {listed(self.inputs)}")
        if name in before:
            raise DataError(f"input {name!r} is given twice: leave one out")
        taken = self.inputs[name].datatype
        if datatype != taken:
            raise DataError(f"input {name!r} is {datatype} in the request, and the explainer takes {taken}: convert it")
        if len(shape) > _MOST_AXES or not all(type(size) is int and 0 < size < 2**31 for size in shape):
            raise DataError(f"input {name!r} has shape {shown(shape)}: give at most {_MOST_AXES} sizes of at least 1")
        return tuple(shape)

    def from_bytes(self, name: str, shape: tuple[int, ...], data: bytes | memoryview) -> Array:
        """The array whose elements are given in bytes, row by row. They may start anywhere, so they are aligned."""
        dtype = self._dtypes[name]
        needed = math.prod(shape) * dtype.itemsize
        if len(data) != needed:
            taken = self.inputs[name].datatype
            raise DataError(f"input {name!r} needs {needed} bytes for {taken} {shown(shape)}, and has {len(data)}")
        if dtype.kind == "b":  # any byte but 0 is true; only 1 is a bool to NumPy
            return np.asarray(np.frombuffer(data, np.uint8) != 0).reshape(shape)
        return np.require(np.frombuffer(data, dtype), requirements="A").reshape(shape)

    def wanted(self, outputs: Mapping[str, bool], all_as_bytes: bool) -> Mapping[str, bool]:
        """The outputs that are asked for, which the explainer must have; all where none is named."""
        for name in outputs:
            if name not in self.outputs:
                raise DataError(f"no output {name!r} in the explainer: it gives {listed(self.outputs)}")
        return outputs or dict.fromkeys(self.outputs, all_as_bytes)


def from_numbers(name: str, shape: tuple[int, ...], data: list[Any]) -> Array:
    """The array whose elements are given one by one, flat or nested; it has yet to get the input's dtype."""
    count, flat = math.prod(shape), data
    try:
        while len(flat) <= count and flat and type(flat[0]) is list:
            flat = list(itertools.islice(itertools.chain.from_iterable(flat), count + 1))
        if len(flat) != count or not _NUMBERS.issuperset(map(type, flat)):  # looked at before NumPy takes memory
            raise ValueError("another number of elements, or not only numbers")
        return np.array(data).reshape(shape)
    except (ValueError, TypeError) as error:
        needed = f"{count} numbers, flat or of shape {shown(shape)}"
        raise DataError(f"the data of input {name!r} are not {needed}") from error


def server_metadata() -> dict[str, Any]:
    """What the protocol tells of a server."""
    return {"name": "onnxlift", "version": metadata.version("onnxlift"), "extensions": ["binary_tensor_data"]}


def _tensor(name: str, kind: str, shape: Iterable[int | str | None]) -> Tensor:
    if kind not in DATATYPES:
        raise DataError(f"{name!r} is of type {kind}, which the protocol lacks: cast it in the model")
    return Tensor(name, DATATYPES[kind], tuple(size if isinstance(size, int) else -1 for size in shape))
