"""Quantised operators: what ONNX Runtime's kernels compute, to the last bit, and importance that is conserved.

Every case quantises its float input, runs the operator, and dequantises. The scales leave no number half-way between
two integers: it may go to the other one where a kernel multiplies by a ratio of scales.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from laws import run
from onnx import numpy_helper
from quantised import conserved, explained

RNG = np.random.default_rng(3)


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """Whichever tests run: numbers half-way between two integers would be another matter."""
    RNG.bit_generator.state = np.random.default_rng(103).bit_generator.state


INT4, UINT4 = (onnx.helper.tensor_dtype_to_np_dtype(kind) for kind in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4))


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def i8(*shape: int, low: int = -128, high: int = 128) -> np.ndarray:
    return RNG.integers(low, high, shape).astype(np.int8)


def u8(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape).astype(np.uint8)


def scale(*shape: int) -> np.ndarray:
    return (0.01 + 0.03 * RNG.random(shape)).astype(np.float32)


CONSTANTS: dict[str, Any] = {
    **{"s": np.float32(0.023), "s2": np.float32(0.0307), "s3": np.float32(0.05), "s4": np.float32([0.02])},
    **{"i8": np.int8(3), "i0": np.int8(0), "i9": np.int8(-100), "u8": np.uint8(120), "u0": np.uint8(0)},
    **{"i16": np.int16(-300), "u16": np.uint16(33000), "wi": np.int8(7), "wu": np.uint8(130), "i8one": np.int8([5])},
    **{"fine": np.float32(2e-4), "coarse": np.float32(0.4)},
    "i4": np.array(1, INT4),
    "u4": np.array(9, UINT4),
    "per_s": scale(4),
    "per_z": i8(4),
    "per_u": u8(4),
    "per_0": np.zeros(4, np.int8),
    "block_s": scale(4, 3),
    "block_z": i8(4, 3),
    "w": i8(6, 5),
    "wt": i8(5, 6),
    "w_z": i8(5, low=-3, high=4),
    "w_s": scale(5),
    "w_u": u8(6, 5),
    "kernel": i8(3, 4, 2, 2),
    "kernel_s": scale(3),
    "kernel_z": i8(3, low=-3, high=4),
    "kernel_0": np.zeros(3, np.int8),
    "depthwise": i8(4, 1, 3, 3),
    "bias": RNG.integers(-4000, 4000, 3).astype(np.int32),
    "c": RNG.integers(-4000, 4000, 5).astype(np.int32),
    "float_bias": f32(5),
    "axes1": np.int64([1]),
    "five": np.int64([5]),
    "keep": np.int64([0, -1]),
    "pads": np.int64([0, 1, 0, 1]),
    "mask": RNG.random((4, 6)) > 0.5,
    "low8": np.int8(-60),
    "high8": np.int8(50),
    "consti8": i8(1, 4, 6),
    "bias6": RNG.integers(-9, 9, 6).astype(np.int32),
    "zero32": np.int32(0),
    "order": np.int64([3, 0, 0]),
}

Q8 = "q = QuantizeLinear(x, s, i8)\n"
U8 = "q = QuantizeLinear(x, s, u8)\n"
DQ8 = "\ny = DequantizeLinear(z, s2, i9)"
DQU = "\ny = DequantizeLinear(z, s2, u8)"
F = "\ny = Cast<to = 1>(z)"
FLAT, GRID, IMAGE, ROWS = (3, 6), (3, 4, 6), (3, 4, 5, 6), (3, 2, 4, 6)

STANDARD = {
    **{
        f"quantize {kind}": (f"z = QuantizeLinear(x, {by}, {kind})\ny = DequantizeLinear(z, {by}, {kind})", FLAT)
        for kind, by in {"i8": "s", "u8": "s", "i16": "fine", "u16": "fine", "i4": "coarse", "u4": "coarse"}.items()
    },
    "quantize default": ("z = QuantizeLinear(x, s)\ny = DequantizeLinear(z, s)", FLAT),
    "quantize output_dtype": ("z = QuantizeLinear<output_dtype = 3>(x, s)\ny = DequantizeLinear(z, s)", FLAT),
    "quantize shape 1": ("z = QuantizeLinear(x, s4, i8one)\ny = DequantizeLinear(z, s4, i8one)", FLAT),
    "quantize saturates": ("z = QuantizeLinear(x, fine, i8)\ny = DequantizeLinear(z, fine, i8)", FLAT),
    "per axis": ("z = QuantizeLinear(x, per_s, per_z)\ny = DequantizeLinear(z, per_s, per_z)", GRID),
    "per axis without z": ("z = QuantizeLinear(x, per_s, per_0)\ny = DequantizeLinear(z, per_s, per_0)", GRID),
    "per last axis": (
        "t = Transpose<perm = [0, 2, 1]>(x)\nz = QuantizeLinear<axis = -1>(t, per_s, per_u)\n"
        "y = DequantizeLinear<axis = 2>(z, per_s, per_u)",
        GRID,
    ),
    "blocks": (
        "f = Squeeze(x, axes0)\nz = QuantizeLinear<axis = 1, block_size = 2>(f, block_s, block_z)\n"
        "y = DequantizeLinear<axis = 1, block_size = 2>(z, block_s, block_z)",
        (1, 4, 6),
    ),
    "another scale": (Q8 + "y = DequantizeLinear(q, s2, i9)", FLAT),
    "dynamic": ("z, zs, zz = DynamicQuantizeLinear(x)\ny = DequantizeLinear(z, zs, zz)", FLAT),
    "dynamic matmul": (
        "q, qs, qz = DynamicQuantizeLinear(x)\nz = MatMulInteger(q, w, qz, wi)\nf = Cast<to = 1>(z)\ny = Mul(f, qs)",
        FLAT,
    ),
    "matmul integer": (Q8 + "z = MatMulInteger(q, w)" + F, FLAT),
    "matmul integer zeros": (U8 + "z = MatMulInteger(q, w, u8, w_z)" + F, FLAT),
    "matmul integer stack": (U8 + "z = MatMulInteger(q, w_u, u8, wu)" + F, GRID),
    "conv integer": ("q = QuantizeLinear(x, s, u8)\nz = ConvInteger<pads = [1, 0, 1, 1]>(q, kernel, u8)" + F, IMAGE),
    "conv integer zeros": (
        U8 + "z = ConvInteger<strides = [2, 1], dilations = [1, 2]>(q, kernel, u8, wi)" + F,
        IMAGE,
    ),
    "qlinear conv": (
        Q8 + "z = QLinearConv<pads = [1, 1, 0, 1]>(q, s, i8, kernel, kernel_s, kernel_0, s2, i9, bias)" + DQ8,
        IMAGE,
    ),
    "qlinear conv no bias": (U8 + "z = QLinearConv(q, s, u8, kernel, s2, i0, s3, u8)" + DQU, IMAGE),
    "qlinear conv groups": (
        Q8 + 'z = QLinearConv<group = 4, auto_pad = "SAME_UPPER">(q, s, i8, depthwise, s2, wi, s3, i9)' + DQ8,
        IMAGE,
    ),
    "qlinear matmul": (U8 + "z = QLinearMatMul(q, s, u8, w_u, s2, wu, s3, u8)" + DQU, GRID),
    "qlinear matmul per column": (Q8 + "z = QLinearMatMul(q, s, i8, w, w_s, w_z, s3, i9)" + DQ8, FLAT),
    "qlinear matmul of two": (
        Q8 + "t = Transpose<perm = [0, 2, 1]>(q)\nz = QLinearMatMul(q, s, i8, t, s, i8, s3, i9)" + DQ8,
        GRID,
    ),
    "int32 arithmetic": (
        U8 + "a = MatMulInteger(q, w_u, u8, wu)\nb = Transpose(a)\nc2 = Transpose(b)\n"
        "d = Sub(c2, zero32)\nz = ReduceSum(d, axes1)" + F,
        FLAT,
    ),
    "movement": (
        Q8 + "a = Reshape(q, keep)\nb = Pad(a, pads, i8)\nc2 = Gather<axis = 1>(b, order)\n"
        "d = Concat<axis = 1>(c2, c2)\nz = Slice(d, axes1, five, axes1)" + DQ8,
        FLAT,
    ),
    "concat with constants": (
        Q8 + "e = Expand(consti8, shape3)\nz = Concat<axis = 2>(q, e)" + DQ8,
        GRID,
    ),
    "where": (Q8 + "z = Where(mask, q, consti8)" + DQ8, GRID),
    "resize": (Q8 + 'z = Resize<mode = "nearest">(q, , doubled)' + DQ8, IMAGE),
    "pools": (Q8 + "a = Relu(q)\nz = MaxPool<kernel_shape = [2, 2], pads = [1, 0, 0, 1]>(a)" + DQ8, IMAGE),
    "clip and maximum": (Q8 + "a = Clip(q, low8, high8)\nb = Max(a, wi)\nz = ReduceMax(b, axes1)" + DQ8, GRID),
    "cast to a wider type": (Q8 + "a = Cast<to = 6>(q)\nb = Add(a, bias6)\nz = Cast<to = 7>(b)" + F, GRID),
    "by hand": ("a = Div(x, s)\nb = Round(a)\nc2 = Clip(b, lo, hi)\nz = Cast<to = 3>(c2)" + DQ8, GRID),
    "mask of integers": (Q8 + "c2 = Greater(q, wi)\nz = Where(c2, q, wi)" + DQ8, GRID),
}
CONSTANTS |= {
    "doubled": np.float32([1, 1, 2, 2]),
    "axes0": np.int64([0]),
    "shape3": np.int64([3, 4, 6]),
    "lo": np.float32(-128),
    "hi": np.float32(127),
}

OTHER = "r = QuantizeLinear(x, s3, i9)\n"
MICROSOFT = {
    "quantize": (
        "z = com.microsoft.QuantizeLinear(x, s, i8)\ny = com.microsoft.DequantizeLinear(z, s2, i9)",
        FLAT,
    ),
    "quantize 16": (
        "z = com.microsoft.QuantizeLinear(x, fine, u16)\ny = com.microsoft.DequantizeLinear(z, fine, u16)",
        FLAT,
    ),
    "quantize per axis": (
        "z = com.microsoft.QuantizeLinear<axis = 1>(x, per_s, per_z)\n"
        "y = com.microsoft.DequantizeLinear<axis = 1>(z, per_s, per_z)",
        GRID,
    ),
    "add": (Q8 + OTHER + "z = com.microsoft.QLinearAdd(q, s, i8, r, s3, i9, s2, i9)" + DQ8, GRID),
    "add broadcast": (
        U8 + "r = ReduceMax<keepdims = 1>(q, axes1)\nz = com.microsoft.QLinearAdd(q, s, u8, r, s, u8, s3, u8)" + DQU,
        GRID,
    ),
    "mul": (Q8 + OTHER + "z = com.microsoft.QLinearMul(q, s, i8, r, s3, i9, s2, i9)" + DQ8, GRID),
    "mul by a constant": (Q8 + "z = com.microsoft.QLinearMul(q, s, i8, consti8, s3, i0, s2, i9)" + DQ8, GRID),
    "leaky": (Q8 + "z = com.microsoft.QLinearLeakyRelu<alpha = 0.2>(q, s, i8, s2, i9)" + DQ8, GRID),
    "sigmoid": (U8 + "z = com.microsoft.QLinearSigmoid(q, s, u8, s2, u8)" + DQU, GRID),
    "softmax": (U8 + "z = com.microsoft.QLinearSoftmax<axis = 1, opset = 13>(q, s3, u8, s, u0)" + DQU, GRID),
    "softmax i8": (Q8 + "z = com.microsoft.QLinearSoftmax<axis = -1, opset = 13>(q, s3, i8, s, i9)" + DQ8, GRID),
    "softmax of old": (U8 + "z = com.microsoft.QLinearSoftmax<axis = 1, opset = 12>(q, s3, u8, fine2, u0)" + DQU, GRID),
    "average pool": (
        Q8 + "z = com.microsoft.QLinearAveragePool<kernel_shape = [2, 3], pads = [1, 0, 0, 1], strides = [2, 1]>"
        "(q, s, i8, s2, i9)" + DQ8,
        IMAGE,
    ),
    "average pool with padding": (
        U8 + "z = com.microsoft.QLinearAveragePool<kernel_shape = [2, 2], pads = [1, 1, 1, 1], count_include_pad = 1>"
        "(q, s, u8, s2, u8)" + DQU,
        IMAGE,
    ),
    "average pool channels last": (
        U8 + "z = com.microsoft.QLinearAveragePool<kernel_shape = [2, 2], channels_last = 1>(q, s, u8, s2, u8)" + DQU,
        IMAGE,
    ),
    "global average pool": (Q8 + "z = com.microsoft.QLinearGlobalAveragePool(q, s, i8, s2, i9)" + DQ8, IMAGE),
    "global average pool channels last": (
        U8 + "z = com.microsoft.QLinearGlobalAveragePool<channels_last = 1>(q, s, u8, s2, u8)" + DQU,
        IMAGE,
    ),
    "concat": (Q8 + OTHER + "z = com.microsoft.QLinearConcat<axis = 1>(s2, i9, q, s, i8, r, s3, i9)" + DQ8, GRID),
    "where": (Q8 + OTHER + "z = com.microsoft.QLinearWhere(mask, q, s, i8, r, s3, i9, s2, i9)" + DQ8, GRID),
    "gemm": (Q8 + "z = com.microsoft.QGemm(q, s, i8, w, s3, wi, c, s2, i9)" + DQ8, FLAT),
    "gemm transposed": (
        U8 + "z = com.microsoft.QGemm<transB = 1, alpha = 0.5>(q, s, u8, wt, w_s, w_0, , s2, u8)" + DQU,
        FLAT,
    ),
    "gemm to float": (Q8 + "y = com.microsoft.QGemm(q, s, i8, w, w_s, w_0, c)", FLAT),
    "conv channels last": (
        Q8 + "t = Transpose<perm = [0, 2, 3, 1]>(q)\n"
        "z = com.microsoft.QLinearConv<channels_last = 1, pads = [1, 1, 1, 1]>"
        "(t, s, i8, kernel, kernel_s, kernel_0, s3, i9)" + DQ8,
        IMAGE,
    ),
    "matmul to float": (U8 + "y = com.microsoft.MatMulIntegerToFloat(q, w, s, w_s, u8, w_z, float_bias)", GRID),
    "matmul to float no zeros": (Q8 + "y = com.microsoft.MatMulIntegerToFloat(q, w, s, s2)", FLAT),
    "dynamic matmul": ("y = com.microsoft.DynamicQuantizeMatMul(x, w, w_s, w_z, float_bias)", GRID),
    "max pool channels last": (
        U8 + "t = Transpose<perm = [0, 2, 3, 1]>(q)\n"
        "z = com.microsoft.NhwcMaxPool<kernel_shape = [2, 2], pads = [1, 0, 0, 1]>(t)" + DQU,
        IMAGE,
    ),
    "dynamic matmul unsigned": ("y = com.microsoft.DynamicQuantizeMatMul(x, w_u, s, wu)", FLAT),
    "matmul 16": ("q = QuantizeLinear(x, coarse, i16)\nz = com.microsoft.MatMulInteger16(q, w16)" + F, FLAT),
}
CONSTANTS |= {"fine2": np.float32(0.004), "w_0": np.zeros(5, np.int8), "w16": i8(6, 5).astype(np.int16)}


def parsed(body: str, shape: tuple[int, ...], output: str = "float y") -> onnx.ModelProto:
    dims = ", ".join(["N", *map(str, shape[1:])])
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]> net (float[{dims}] x) => ({output}) {{ {body} }}'
    )
    read = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in CONSTANTS.items() if k in read)
    return model


def cases(table: dict[str, tuple[str, tuple[int, ...]]]) -> list[Any]:
    return [pytest.param(*case, id=name) for name, case in table.items()]


@pytest.mark.parametrize(("body", "shape"), cases(STANDARD) + cases(MICROSOFT))
def test_forward_and_conservation(body: str, shape: tuple[int, ...]) -> None:
    model = parsed(body, shape)
    x, r = f32(*shape), f32(*shape)
    got = explained(model, x, r)
    np.testing.assert_array_equal(got["y"], run(model, {"x": x})["y"])
    conserved(got)
    conserved(explained(model, x, np.zeros_like(x)))
