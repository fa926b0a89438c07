"""Standard operators that another one says better."""

from __future__ import annotations

from onnxlift.functions import reshape, squeeze, unsqueeze
from onnxlift.lowering.table import Call, lowering
from onnxlift.registry import AI_ONNX_ML
from onnxlift.tensor import Tensor


@lowering("MatMul")
def product_with_a_vector(call: Call) -> Tensor | None:
    """A b with b as a matrix of one column; every other product stays as it is.

    ONNX Runtime (1.31 at least) fuses a Transpose of A into the product (MatmulTransposeFusion), and its kernel reads A
    in the wrong order if b is a vector. An explainer turns such transpositions up where the model had none.
    """
    a, b = call.input(0), call.input(1)
    if b.shape is None or len(b.shape) != 1 or a.shape is None or len(a.shape) < 2:
        return None
    return squeeze(a @ unsqueeze(b, [1]), [len(a.shape) - 1])


@lowering("ArrayFeatureExtractor", domain=AI_ONNX_ML)
def extracted(call: Call) -> Tensor | None:
    """Gather along the last axis, which also knows what to do with an index that depends on the data."""
    x, index = call.input(0), call.input(1)
    if x.shape is None:
        return None
    rows = x if len(x.shape) > 1 else unsqueeze(x, [0])
    return call.emitter.op("Gather", rows, reshape(index, [-1]), axis=rows.rank - 1)
