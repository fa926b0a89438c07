"""Quantised operators of ai.onnx, on floats that hold the same integers (onnxlift/integers.py).

QuantizeLinear is clip(round(x / s) + z, low, high), to the last bit what ONNX Runtime computes; sums of products of
integers are exact in float32 below 2^24, 518 terms of the largest 8-bit numbers, and rounded like any float beyond.
Constant weights stay integers in the file; a Cast stands in front of them, which ONNX Runtime folds.
"""

from __future__ import annotations

from collections.abc import Callable

from onnx import TensorProto

from onnxlift.functions import arange, cast, clip, maximum, minimum, reshape, shape_of, unsqueeze, where
from onnxlift.integers import LOWERED, RANGES
from onnxlift.lowering.fused import CONV, given, with_channels_first
from onnxlift.lowering.table import MICROSOFT, Call, Lowering, lowering
from onnxlift.tensor import Tensor, unary

FLOAT8 = (TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2, TensorProto.FLOAT8E5M2FNUZ)


def lowers_integers(*ops: str, domain: str = "") -> Callable[[Lowering], Lowering]:
    """As `lowering`, for operators that are handed integers in floats."""
    LOWERED.update((domain, op) for op in ops)
    return lowering(*ops, domain=domain)


# --- pieces ----------------------------------------------------------------------------------------------------------


def number(call: Call, index: int) -> Tensor:
    """An input in float32: integers in floats as they are, all others converted."""
    return as_float(call, call.input(index))


def as_float(call: Call, x: Tensor) -> Tensor:
    """A tensor in float32."""
    return call.emitter.tensor(call.emitter.integers.as_float(x.name))


def integer_type(call: Call, *indices: int, default: int = 0) -> int:
    """The type of integers that the first of these inputs that is there has in the model."""
    for index in indices:
        given = call.optional(index)
        if given is not None:
            return call.emitter.integers.elem_type(given.name)
    return default


def centred(call: Call, x: Tensor, zero: Tensor | None, *, axis: int | None = None) -> Tensor:
    """x - zero point, in float32; `axis`: the one that a zero point of rank 1 belongs to, if not the last."""
    x = as_float(call, x)
    if zero is None or (zero.value is not None and not zero.value.any()):
        return x
    known = call.emitter.integers.centred.get(x.name)
    if known is not None and zero.value is not None and zero.value.size == 1 and int(zero.value.item()) == known[1]:
        return call.emitter.tensor(known[0])
    zero = as_float(call, zero)
    return x - (zero if axis is None else along(call, zero, x, axis))


def along(call: Call, parameter: Tensor, x: Tensor, axis: int, block: int = 0) -> Tensor:
    """A scale or zero point, shaped to broadcast over `x`: one number, one per place of `axis`, or one per block."""
    if parameter.shape is None:
        call.refuse(f"the rank of {parameter.name!r} is unknown")
    if not parameter.shape:
        return parameter
    if parameter.shape == (1,):
        return reshape(parameter, [])
    if x.shape is None:
        call.refuse(f"the rank of {x.name!r} is unknown, along an axis of which it is quantised")
    axis %= x.rank
    if block:
        extent = shape_of(x, axis, axis + 1)
        places = arange(extent) / block
        return call.emitter.op("Gather", parameter, places, axis=axis)
    return reshape(parameter, [-1] + [1] * (x.rank - 1 - axis))


def quantised(call: Call, u: Tensor, zero: Tensor | None, elem_type: int) -> Tensor:
    """clip(round(u) + z, low, high) as an output that the model has as integers of this type."""
    q = steps(call, u, zero, elem_type)
    call.emitter.integers.hold(q.name, elem_type)
    return q


def steps(call: Call, u: Tensor, zero: Tensor | None, elem_type: int) -> Tensor:
    """clip(round(u) + z, low, high) for the range of integers of this type, in float32. Ties go to the even number."""
    low, high = _range(call, elem_type)
    whole = unary("Round", u)
    if zero is None or (zero.value is not None and not zero.value.any()):
        return clip(whole, low, high)
    if zero.value is not None and zero.value.size == 1:
        shift = int(zero.value.item())
        near = clip(whole, low - shift, high - shift)
        q = near + float(shift)
        call.emitter.integers.centred[q.name] = near.name, shift
        return q
    return clip(whole + as_float(call, zero), low, high)


def _range(call: Call, elem_type: int) -> tuple[int, int]:
    if elem_type not in RANGES:
        name = TensorProto.DataType.Name(elem_type).lower()
        call.refuse(f"it quantises to {name}, which has no even steps" if "FLOAT" in name.upper() else f"type {name}")
    return RANGES[elem_type]


def whole_numbers(call: Call, accumulated: Tensor) -> Tensor:
    """Sums of integers, as an output that the model has as int32."""
    call.emitter.integers.hold(accumulated.name, TensorProto.INT32)
    return accumulated


# --- the operators ---------------------------------------------------------------------------------------------------


@lowers_integers("QuantizeLinear")
def quantize_linear(call: Call) -> Tensor:
    x, scale = number(call, 0), number(call, 1)
    axis, block = call.attribute("axis", 1), call.attribute("block_size", 0)
    given = call.attribute("output_dtype", 0) or TensorProto.UINT8
    zero = call.optional(2)
    elem_type = integer_type(call, 2, default=given)
    _range(call, elem_type)
    u = x / along(call, scale, x, axis, block)
    if zero is not None and zero.shape and zero.shape != (1,):
        zero = along(call, as_float(call, zero), x, axis, block)
    return quantised(call, u, zero, elem_type)


@lowers_integers("DequantizeLinear")
def dequantize_linear(call: Call) -> Tensor:
    q, scale, zero = call.input(0), call.input(1), call.optional(2)
    elem_type = integer_type(call, 0)
    axis, block = call.attribute("axis", 1), call.attribute("block_size", 0)
    if elem_type in FLOAT8:  # given as they are: their zero point is 0, and only the scale carries importance
        eighths = call.emitter.op("Cast", q, to=TensorProto.FLOAT, shape=q.shape)
        return cast(eighths * along(call, as_float(call, scale), q, axis, block), scale.dtype)
    _range(call, elem_type)
    if zero is not None and zero.shape and zero.shape != (1,):
        zero = along(call, as_float(call, zero), q, axis, block)
    factor = along(call, as_float(call, scale), q, axis, block)
    return cast(centred(call, q, zero) * factor, scale.dtype)


@lowers_integers("DynamicQuantizeLinear")
def dynamic_quantize_linear(call: Call) -> list[Tensor | None]:
    """The scale and zero point depend on the data: on the least and the greatest number of all samples."""
    x = number(call, 0)
    scale, zero = dynamic_range(x)
    q = quantised(call, x / scale, zero, TensorProto.UINT8)
    call.emitter.integers.hold(zero.name, TensorProto.UINT8)
    return [q, scale, zero]


def rounded(call: Call, x: Tensor) -> Tensor:
    """x in steps of 8 bits between its least and greatest number, all samples taken together."""
    scale, zero = dynamic_range(x)
    return centred(call, steps(call, x / scale, zero, TensorProto.UINT8), zero) * scale


def dynamic_range(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point of 8 bits that reach from the least to the greatest number and hold 0; both scalars."""
    low = minimum(x.emitter.op("ReduceMin", x, keepdims=0), 0)
    high = maximum(x.emitter.op("ReduceMax", x, keepdims=0), 0)
    width = high - low
    scale = where(width.equals(0), 1.0, width / 255)
    return scale, unary("Round", clip(-low / scale, 0, 255))


@lowers_integers("MatMulInteger")
def matmul_integer(call: Call) -> Tensor:
    return whole_numbers(call, integer_product(call, call.input(0), call.input(1), call.optional(2), call.optional(3)))


def integer_product(call: Call, a: Tensor, b: Tensor, a_zero: Tensor | None, b_zero: Tensor | None) -> Tensor:
    """(A - its zero points, one per row) @ (B - its zero points, one per column)."""
    if a_zero is not None and a_zero.shape and len(a_zero.shape) == 1 and a_zero.shape != (1,):
        a_zero = unsqueeze(as_float(call, a_zero), [1])
    return centred(call, a, a_zero) @ centred(call, b, b_zero)


@lowers_integers("ConvInteger")
def conv_integer(call: Call) -> Tensor:
    return whole_numbers(call, integer_convolution(call, call.input(1), call.optional(2), call.optional(3)))


def integer_convolution(
    call: Call, w: Tensor, x_zero: Tensor | None, w_zero: Tensor | None, bias: Tensor | None = None
) -> Tensor:
    """Conv of (x - z) and (w - z), with the attributes of the node; the padding is the zero point."""
    x = centred(call, call.input(0), x_zero)
    kernel = centred(call, w, w_zero, axis=0)

    def convolve(x: Tensor) -> Tensor:
        return call.emitter.op("Conv", x, kernel, bias, **given(call, CONV))

    return with_channels_first(x, convolve) if call.attribute("channels_last", 0) else convolve(x)


@lowers_integers("QLinearConv")
@lowers_integers("QLinearConv", domain=MICROSOFT)
def qlinear_conv(call: Call) -> Tensor:
    x_scale, w_scale, y_scale = (number(call, index) for index in (1, 4, 6))
    bias = None if call.optional(8) is None else number(call, 8)
    summed = integer_convolution(call, call.input(3), call.optional(2), call.optional(5), bias)
    channel = -1 if call.attribute("channels_last", 0) else 1
    factor = along(call, x_scale, summed, 0) * along(call, w_scale, summed, channel)
    return quantised(call, summed * (factor / along(call, y_scale, summed, 0)), call.optional(7), integer_type(call, 7))


@lowers_integers("QLinearMatMul")
def qlinear_matmul(call: Call) -> Tensor:
    a_scale, b_scale, y_scale = (number(call, index) for index in (1, 4, 6))
    summed = integer_product(call, call.input(0), call.input(3), call.optional(2), call.optional(5))
    if a_scale.shape and len(a_scale.shape) == 1 and a_scale.shape != (1,):
        a_scale = unsqueeze(a_scale, [1])
    factor = one_number(a_scale) * one_number(b_scale) / one_number(y_scale)
    return quantised(call, summed * factor, call.optional(7), integer_type(call, 7))


def one_number(parameter: Tensor) -> Tensor:
    """A parameter of shape [1] as a scalar, which adds no axis to anything; others as they are."""
    return reshape(parameter, []) if parameter.shape == (1,) else parameter
