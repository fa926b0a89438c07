"""The option --reference: references by name, or made of the arrays in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from onnxlift import references
from onnxlift.arrays import Array
from onnxlift.errors import DataError, OptionError, listed
from onnxlift.formats import read_all
from onnxlift.one_hot import OneHot
from onnxlift.spec import FORMS, OF_FILES, channel_axis, is_named, parse

HELP = (
    "What to compare with. Given at run time: paired, shared, grouped. The same for all samples: zeros, constant:0.5, "
    "frequencies:0.3,0.2,0.2,0.3, mean:FILE, frequencies:FILE, background:FILE, background:FILE:K (K of its rows), or "
    "the FILE (.npy, .npz, Zarr, Parquet, HDF5) of the references themselves. Made of each sample: shuffle:K, "
    "dinuc-shuffle:K, blur:SIGMA, token:ID, token:ID:KEPT,KEPT. [default: paired]"
)

_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def to_store(model: onnx.ModelProto, text: str, options: Mapping[str, Any], seed: int) -> str | dict[str, Array]:
    """The `reference` of `rewrite` for a model: a name, or arrays by graph input. `options`: the others of `rewrite`.

    Raises OptionError: badly named, or the file does not fit the inputs. DataError: the file cannot be read or used.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    free = [value for value in model.graph.input if value.name not in constants]
    inputs = {value.name: value.type.tensor_type.elem_type for value in free}
    if _of_file(text):
        named = list(options.get("inputs") or [name for name, kind in inputs.items() if kind in _FLOATS])
        wanted = named if set(named) <= set(inputs) else list(inputs)  # internal tensors come from any input
        return _made(text, wanted, options.get("one_hot"), seed)
    if is_named(text):
        return parse(text).text
    arrays = _read(text)
    if isinstance(arrays, dict):
        return {name if name in inputs else name.removesuffix("_reference"): array for name, array in arrays.items()}
    return {_only(text, list(inputs)): arrays}


def at_run_time(about: Mapping[str, Any], text: str, seed: int) -> Array | dict[str, Array] | None:
    """The arrays that a call of an explainer takes as reference; None for a name. `about`: its metadata.

    Raises as `to_store`.
    """
    if _of_file(text):
        return _made(text, about["references"], about.get("one_hot"), seed)
    return None if is_named(text) else _read(text)


def _of_file(text: str) -> bool:
    """Whether it is made of a file: frequencies may be numbers instead."""
    name, _, rest = text.partition(":")
    if name not in OF_FILES or not rest:
        return False
    try:
        float(rest.partition(",")[0])
    except ValueError:
        return True
    return name != "frequencies"


def _made(text: str, inputs: Sequence[str], one_hot: OneHot, seed: int) -> dict[str, Array]:
    """References made of the samples in a file, for those of the inputs that it holds."""
    name, _, path = text.partition(":")
    count = None
    front, colon, last = path.rpartition(":")
    if name == "background" and colon and last.lstrip("-").isdecimal() and not Path(path).exists():
        path, count = front, int(last)
    arrays = read_all(path)
    if not isinstance(arrays, dict):
        arrays = {_only(text, inputs): arrays}
    found = {each: arrays[each] for each in inputs if each in arrays}
    if not found:
        raise OptionError(f"--reference {text}: the file has {listed(arrays)}, and no samples of {listed(inputs)}")
    try:
        match name:
            case "mean":
                return {each: references.mean(array) for each, array in found.items()}
            case "background":
                return {each: references.background(array, count, seed=seed) for each, array in found.items()}
        axes = {each: channel_axis(each, array.shape, one_hot, None, True, text) for each, array in found.items()}
        return {each: references.frequencies(array, axis=axes[each]) for each, array in found.items()}
    except DataError as error:
        raise DataError(f"--reference {text}: {error}") from error


def _read(path: str) -> Array | dict[str, Array]:
    if not Path(path).exists():
        forms = ", ".join((*FORMS, *(f"{name}:FILE" for name in OF_FILES)))
        raise OptionError(f"--reference {path} is neither a file nor one of {forms}")
    return read_all(path)


def _only(text: str, inputs: Sequence[str]) -> str:
    """The only input, for a file with one array."""
    if len(inputs) != 1:
        raise OptionError(
            f"--reference {text} has one array for {len(inputs)} inputs: use a .npz with {', '.join(inputs)}"
        )
    return inputs[0]
