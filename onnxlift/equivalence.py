"""Whether two models compute the same, found out by running both."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxlift.arrays import Array
from onnxlift.errors import DataError, ModelError
from onnxlift.session import CPU, runtime

_MAX_IR = 13  # ONNX Runtime 1.31 refuses later ones, although nothing in the models needs them
_SILENT = 4


def equivalence(original: ModelProto, other: ModelProto, data: Mapping[str, Array]) -> dict[str, float]:
    """Runs both models with ONNX Runtime on the CPU on `data` (input name -> array; names that a model lacks
    are skipped) and returns, per output name of both, how far `other` is from `original`.

    Floats: max |difference| / max |original| over finite values (NaN equals NaN, inf equals inf; 0.0 is
    equal, inf where one is finite and the other is not). Integers and booleans: fraction of differing
    elements. Strings, sequences, maps: 0.0 or 1.0. Another shape or dtype: inf.
    Raises ModelError where ONNX Runtime refuses a model, DataError for bad data.
    """
    first, second = _outputs(original, data), _outputs(other, data)
    return {name: difference(first[name], second[name]) for name in first if name in second}


def _outputs(model: ModelProto, data: Mapping[str, Array]) -> dict[str, Any]:
    ort = runtime()
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT  # what goes wrong is raised
    if model.ir_version > _MAX_IR:
        model = copy.deepcopy(model)
        model.ir_version = _MAX_IR
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=[CPU])
    except Exception as error:  # ONNX Runtime's exceptions have no common class
        raise ModelError(f"ONNX Runtime cannot load the model: {error}") from error
    required = [value.name for value in session.get_inputs()]
    missing = sorted(set(required) - data.keys())
    if missing:
        raise DataError(f"The data lacks the model's inputs {missing}.")
    names = [value.name for value in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, {name: data[name] for name in required}), strict=True))
    except Exception as error:
        raise DataError(f"ONNX Runtime cannot run the model on this data: {error}") from error


def difference(a: Any, b: Any) -> float:
    """How far b is from a, in the measure of their kind, as `equivalence` has it."""
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
    """Equality of sequences and maps, in which arrays are nested."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return bool(np.array_equal(np.asarray(a), np.asarray(b)))
