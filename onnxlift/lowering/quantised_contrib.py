"""Quantised operators of com.microsoft: what onnxruntime.quantization and ONNX Runtime's optimiser write.

An operator on integers is Q(f(DQ(x))): dequantise, compute in float, quantise. Where ONNX Runtime's kernel multiplies
by a ratio of scales, a number that lies half-way between two integers may come out one off.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from onnx import TensorProto

from onnxlift.functions import cast, reduce_sum, reshape, shape_of, sigmoid, swap_last, unsqueeze, where
from onnxlift.graph import Graph
from onnxlift.lowering.fused import with_channels_first
from onnxlift.lowering.fused_norms import layer_normalization
from onnxlift.lowering.quantised import (
    as_float,
    centred,
    dynamic_range,
    integer_product,
    integer_type,
    lowers_integers,
    number,
    one_number,
    quantised,
    rounded,
    whole_numbers,
)
from onnxlift.lowering.recurrent import Side, Step, layer, lstm_cell
from onnxlift.lowering.table import MICROSOFT, Call, lowering
from onnxlift.tensor import Tensor, unary


def dequantised(call: Call, index: int) -> Tensor:
    """(x - z) s of the input at `index`, whose scale and zero point follow it."""
    return _centred(call, index, index + 2) * one_number(number(call, index + 1))


def _centred(call: Call, index: int, zero: int) -> Tensor:
    return centred(call, call.input(index), call.optional(zero))


def requantised(call: Call, y: Tensor, scale: int) -> Tensor:
    """y as integers, by the scale at that place and the zero point behind it."""
    elem_type = integer_type(call, scale + 1, 0)
    return quantised(call, y / one_number(number(call, scale)), call.optional(scale + 1), elem_type)


@lowers_integers("QLinearAdd", domain=MICROSOFT)
def qlinear_add(call: Call) -> Tensor:
    return requantised(call, dequantised(call, 0) + dequantised(call, 3), 6)


@lowers_integers("QLinearMul", domain=MICROSOFT)
def qlinear_mul(call: Call) -> Tensor:
    a_scale, b_scale, c_scale = (one_number(number(call, index)) for index in (1, 4, 6))
    product = _centred(call, 0, 2) * _centred(call, 3, 5)
    return quantised(call, product * (a_scale * b_scale / c_scale), call.optional(7), integer_type(call, 7, 0))


@lowers_integers("QLinearLeakyRelu", domain=MICROSOFT)
def qlinear_leaky_relu(call: Call) -> Tensor:
    x = dequantised(call, 0)
    return requantised(call, call.emitter.op("LeakyRelu", x, alpha=call.attribute("alpha", 0.01)), 3)


@lowers_integers("QLinearSigmoid", domain=MICROSOFT)
def qlinear_sigmoid(call: Call) -> Tensor:
    return requantised(call, sigmoid(dequantised(call, 0)), 3)


@lowers_integers("QLinearSoftmax", domain=MICROSOFT)
def qlinear_softmax(call: Call) -> Tensor:
    """Before opset 13 all axes from `axis` on are one. The kernel rounds 1 / scale down to a whole number."""
    x, axis = dequantised(call, 0), call.attribute("axis", -1)
    if call.attribute("opset") >= 13 or axis in (-1, x.rank - 1):
        y = call.emitter.op("Softmax", x, axis=axis)
    else:
        flat = call.emitter.op("Softmax", call.emitter.op("Flatten", x, axis=axis % x.rank), axis=-1)
        y = reshape(flat, shape_of(x))
    steps = unary("Floor", 1 / one_number(number(call, 3)))
    return quantised(call, y * steps, call.optional(4), integer_type(call, 4, 0))


@lowers_integers("QLinearAveragePool", domain=MICROSOFT)
def qlinear_average_pool(call: Call) -> Tensor:
    attributes = {name: value for name, value in call.attributes.items() if name != "channels_last"}
    return requantised(call, _pooled(call, "AveragePool", **attributes), 3)


@lowers_integers("QLinearGlobalAveragePool", domain=MICROSOFT)
def qlinear_global_average_pool(call: Call) -> Tensor:
    return requantised(call, _pooled(call, "GlobalAveragePool"), 3)


def _pooled(call: Call, op: str, **attributes: object) -> Tensor:
    def pool(x: Tensor) -> Tensor:
        return call.emitter.op(op, x, **attributes)

    x = dequantised(call, 0)
    return with_channels_first(x, pool) if call.attribute("channels_last", 0) else pool(x)


@lowers_integers("QLinearConcat", domain=MICROSOFT)
def qlinear_concat(call: Call) -> Tensor:
    parts = [dequantised(call, index) for index in range(2, len(call.inputs), 3)]
    return requantised(call, call.emitter.op("Concat", *parts, axis=call.attribute("axis")), 0)


@lowers_integers("QLinearReduceMean", domain=MICROSOFT)
def qlinear_reduce_mean(call: Call) -> Tensor:
    x, axes = dequantised(call, 0), call.attribute("axes", None)
    over = call.emitter.ints(axes) if axes else None
    return requantised(call, call.emitter.op("ReduceMean", x, over, keepdims=call.attribute("keepdims", 1)), 3)


@lowers_integers("QLinearWhere", domain=MICROSOFT)
def qlinear_where(call: Call) -> Tensor:
    return requantised(call, where(call.input(0), dequantised(call, 1), dequantised(call, 4)), 7)


@lowers_integers("QGemm", domain=MICROSOFT)
def qgemm(call: Call) -> Tensor:
    """alpha s_a s_b ((A - z_a)' (B - z_b)' + C), in float where no scale of the output is given."""
    a, b, c = _centred(call, 0, 2), _centred(call, 3, 5), call.optional(6)
    trans = {name: call.attribute(name, 0) for name in ("transA", "transB")}
    factor = one_number(number(call, 1)) * one_number(number(call, 4))
    if call.attribute("alpha", 1.0) != 1.0:
        factor = factor * call.attribute("alpha")
    if trans["transB"] and (zero := call.optional(5)) is not None and zero.shape not in ((), (1,)):
        b = centred(call, call.input(3), unsqueeze(as_float(call, zero), [1]))
    summed = call.emitter.op("Gemm", a, b, c and as_float(call, c), **trans)
    if call.optional(7) is None:
        return summed * factor
    factor = factor / one_number(number(call, 7))
    return quantised(call, summed * factor, call.optional(8), integer_type(call, 8, 0))


# --- integers in, float out ------------------------------------------------------------------------------------------


@lowers_integers("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_integer_to_float(call: Call) -> Tensor:
    summed = integer_product(call, call.input(0), call.input(1), call.optional(4), call.optional(5))
    factor = one_number(number(call, 2)) * one_number(number(call, 3))
    return _biased(call, summed * factor, 6, call.input(2))


@lowers_integers("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_quantize_matmul(call: Call) -> Tensor:
    """The left operand is quantised by the least and the greatest number of all samples."""
    x = number(call, 0)
    scale, zero = dynamic_range(x)
    q = quantised(call, x / scale, zero, TensorProto.UINT8)
    summed = integer_product(call, q, call.input(1), zero, call.optional(3))
    return _biased(call, summed * (scale * one_number(number(call, 2))), 4, call.input(0))


def _biased(call: Call, y: Tensor, bias: int, like: Tensor) -> Tensor:
    given = call.optional(bias)
    return cast(y if given is None else y + as_float(call, given), like.dtype)


@lowers_integers("MatMulInteger16", domain=MICROSOFT)
def matmul_integer_16(call: Call) -> Tensor:
    return whole_numbers(call, number(call, 0) @ number(call, 1))


@lowers_integers("MulInteger", domain=MICROSOFT)
def mul_integer(call: Call) -> Tensor:
    return whole_numbers(call, _centred(call, 0, 1) * _centred(call, 2, 3))


@lowers_integers("ReduceSumInteger", domain=MICROSOFT)
def reduce_sum_integer(call: Call) -> Tensor:
    x, axes = number(call, 0), call.attribute("axes")
    kept = bool(call.attribute("keepdims", 1))
    return whole_numbers(call, reduce_sum(x, [axis % x.rank for axis in axes], kept))


# --- whole layers ----------------------------------------------------------------------------------------------------


@lowers_integers("QAttention", domain=MICROSOFT)
def q_attention(call: Call) -> Sequence[Tensor]:
    """Attention of the dequantised input and weights."""
    x = _centred(call, 0, 6) * one_number(number(call, 3))
    weight = _centred(call, 1, 7) * one_number(number(call, 4))
    handed = (x, weight, call.input(2), call.optional(5), call.optional(8))
    names = ["output", "present"][: len(call.wanted)]
    shapes = [None] * len(names)
    outputs = call.emitter.ops("Attention", *handed, domain=MICROSOFT, shapes=shapes, names=names, **call.attributes)
    if Graph.dtype(outputs[0].handle) is None:
        call.refuse("the attention that it computes of the dequantised tensors cannot be replaced")
    return outputs


@lowers_integers("QEmbedLayerNormalization", domain=MICROSOFT)
def q_embed_layer_normalization(call: Call) -> list[Tensor | None]:
    """The sum of dequantised embeddings, normalised. Rows are looked up first: the tables stay integers."""

    def rows(index: int, scale: int, places: Tensor) -> Tensor:
        looked_up = call.emitter.op("Gather", call.input(index), places, axis=0)
        return centred(call, looked_up, call.optional(scale + 5)) * one_number(number(call, scale))

    ids, segments, mask = call.input(0), call.optional(1), call.optional(7)
    table = call.input(3)
    length = shape_of(ids, 1, 2)
    positions = call.emitter.op("Slice", table, call.emitter.ints([0]), length, call.emitter.ints([0]))
    position = centred(call, positions, call.optional(14)) * one_number(number(call, 9))
    total = rows(2, 8, ids) + position
    if segments is not None:
        total = total + rows(4, 10, segments)
    gamma = centred(call, call.input(5), call.optional(16)) * one_number(number(call, 11))
    beta = centred(call, call.input(6), call.optional(17)) * one_number(number(call, 12))
    normal = layer_normalization(call, total, gamma, beta)
    lengths = None
    if mask is not None and len(call.wanted) > 1 and call.wanted[1]:
        lengths = call.emitter.op("ReduceSum", mask, call.emitter.ints([1]), keepdims=0)
    return [normal, lengths]


@lowers_integers("DynamicQuantizeLSTM", domain=MICROSOFT)
def dynamic_quantize_lstm(call: Call) -> list[Tensor | None]:
    """An LSTM of dequantised weights [directions, inputs, 4 H]; X and, at every step, the hidden state are rounded.

    By the range of all samples: a kernel that shares them out among threads does so with each share by itself.
    """

    def cell(call: Call, side: Side, x: Tensor) -> tuple[list[Tensor], Step]:
        slices, step = lstm_cell(call, side, rounded(call, x))
        return slices, lambda h, *others: step(rounded(call, h), *others)

    def weight(index: int, scale: int) -> Tensor:
        return swap_last(centred(call, call.input(index), per_gate(scale + 1)) * per_gate(scale))

    def per_gate(index: int) -> Tensor:
        """[directions, 1, 4 H or 1]."""
        parameter = number(call, index)
        return unsqueeze(parameter, [1] if parameter.rank == 2 else [1, 2])

    dense = copy.copy(call)
    dense.inputs = [call.input(0), weight(1, 8), weight(2, 10), *call.inputs[3:8]]
    return layer(dense, cell, gates=4, functions=("Sigmoid", "Tanh", "Tanh"), states=2)


# --- what cannot be taken apart --------------------------------------------------------------------------------------


@lowering(
    *"QOrderedAttention QOrderedGelu QOrderedLayerNormalization QOrderedLongformerAttention QOrderedMatMul".split(),
    *"QuantizeWithOrder DequantizeWithOrder".split(),
    domain=MICROSOFT,
)
def ordered(call: Call) -> Tensor:
    call.refuse("its tensors lie in memory as one kind of GPU wants them; rewrite the model before it is optimised")


@lowering(
    *"QuantizeBFP DequantizeBFP MatMulBlockQuantizedFp4Weight MatMulBlockQuantizedFp8Weight".split(),
    *"MatMulNBitsMlp MatMulNBitsQkv".split(),
    domain=MICROSOFT,
)
def of_special_hardware(call: Call) -> Tensor:
    call.refuse("ONNX Runtime has no CPU kernel that says what it computes; export the model without it")
