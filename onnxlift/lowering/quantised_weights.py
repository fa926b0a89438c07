"""Operators of com.microsoft whose constant weights are packed: several to a byte, a scale for every block.

The weights are unpacked by nodes on constants, which ONNX Runtime folds when it loads the model, so that the file keeps
them packed. `accuracy_level` says how exactly a kernel may compute, not what, and is left alone.
"""

from __future__ import annotations

import numpy as np

from onnxlift.functions import cast, concat, expand, regroup, reshape, slice_axis, swap_last, unsqueeze
from onnxlift.lowering.quantised import along, as_float, lowers_integers, number
from onnxlift.lowering.table import MICROSOFT, Call, lowering
from onnxlift.tensor import FLOAT32, INT64, Tensor, unary

_FP4 = [0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4]
_NF4 = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]
_CODES = [[*_FP4, *(-code for code in _FP4)], _NF4]
"""What 4 bits mean by `quant_type` (Dettmers et al., QLoRA, arXiv 2305.14314, appendix E, and bitsandbytes)."""


def unpacked(call: Call, packed: Tensor, bits: int, *, high_first: bool = False) -> Tensor:
    """The numbers of `bits` bits that bytes hold, in float32 along the last axis; those in the low bits come first."""
    if bits not in (2, 4, 8):
        call.refuse(f"weights of {bits} bits do not fill whole bytes")
    rest = as_float(call, packed)
    if bits == 8:
        return rest
    fields = []
    for _ in range(8 // bits):
        above = unary("Floor", rest * 2.0**-bits)
        fields.append(rest - above * 2.0**bits)
        rest = above
    columns = [unsqueeze(field, [packed.rank]) for field in (fields[::-1] if high_first else fields)]
    return regroup(concat(columns, packed.rank), packed.rank - 1, [-1])


@lowers_integers("MatMulNBits", domain=MICROSOFT)
def matmul_n_bits(call: Call) -> Tensor:
    """A @ dequantised(B)', plus a bias."""
    k, n, bits, block = (call.attribute(name, default) for name, default in _SIZES)
    blocks = -(-k // block)
    codes = reshape(unpacked(call, reshape(call.input(1), [n, blocks, -1]), bits), [n, blocks * block])
    scales = reshape(number(call, 2), [n, blocks])
    zeros = _zero_points(call, bits, n, blocks)
    groups = call.optional(4)
    if groups is not None:
        codes = slice_axis(codes, 1, 0, k)
        scales, zeros = (t if not t.shape else call.emitter.op("Gather", t, groups, axis=1) for t in (scales, zeros))
        weight = (codes - zeros) * scales
    else:
        codes = reshape(codes, [n, blocks, block])
        scales, zeros = (t if not t.shape else unsqueeze(t, [2]) for t in (scales, zeros))
        weight = slice_axis(reshape((codes - zeros) * scales, [n, blocks * block]), 1, 0, k)
    y = number(call, 0) @ swap_last(weight)
    bias = call.optional(5)
    return cast(y if bias is None else y + as_float(call, bias), call.input(0).dtype)


_SIZES = (("K", 0), ("N", 0), ("bits", 4), ("block_size", 0))


def _zero_points(call: Call, bits: int, n: int, blocks: int) -> Tensor:
    """[N, blocks], or one number where none are given."""
    zeros = call.optional(3)
    if zeros is None:
        return call.emitter.constant(2.0 ** (bits - 1), FLOAT32)
    if zeros.dtype != np.uint8:
        return reshape(as_float(call, zeros), [n, blocks])
    return slice_axis(unpacked(call, reshape(zeros, [n, -1]), bits), 1, 0, blocks)


@lowers_integers("MatMulBnb4", domain=MICROSOFT)
def matmul_bnb4(call: Call) -> Tensor:
    """A @ dequantised(B)', with a code book and blocks over all of B."""
    k, n, block = (call.attribute(name) for name in ("K", "N", "block_size"))
    if not call.attribute("transB", 1):
        call.refuse("transB = 0, which the kernels do not have")
    book = call.emitter.constant(_CODES[call.attribute("quant_type")], FLOAT32)
    codes = unpacked(call, reshape(call.input(1), [-1]), 4, high_first=True)
    values = call.emitter.op("Gather", book, cast(codes, INT64), axis=0)
    blocks = -(-n * k // block)
    scales = expand(reshape(number(call, 2), [blocks, 1]), [blocks, block])
    flat = slice_axis(values, 0, 0, n * k) * slice_axis(reshape(scales, [-1]), 0, 0, n * k)
    return cast(number(call, 0) @ swap_last(reshape(flat, [n, k])), call.input(0).dtype)


@lowering("GatherBlockQuantized", domain=MICROSOFT)
def gather_block_quantized(call: Call) -> Tensor:
    """Rows of a quantised table: the packed ones are looked up, then unpacked."""
    table, places = call.input(0), call.input(1)
    axis = call.attribute("gather_axis", 0) % table.rank
    quantised_axis = call.attribute("quantize_axis", 1) % table.rank
    if axis == quantised_axis:
        call.refuse("it gathers along the axis of its blocks")
    bits = call.attribute("bits", 4) if table.dtype == np.uint8 else 0

    def rows(t: Tensor) -> Tensor:
        if t.dtype.name in ("int4", "uint4"):
            t = cast(t, np.dtype(np.int8 if t.dtype.name == "int4" else np.uint8))
        return call.emitter.op("Gather", t, places, axis=axis)

    codes = unpacked(call, rows(table), bits) if bits else as_float(call, rows(table))
    along_axis = quantised_axis + (places.rank - 1 if axis < quantised_axis else 0)
    scales, zeros = call.input(2), call.optional(3)
    block = call.attribute("block_size", 128)
    shift: Tensor | float = 2.0 ** (bits - 1) if bits else 0.0
    if zeros is not None:
        wide = unpacked(call, rows(zeros), bits) if bits else as_float(call, rows(zeros))
        shift = along(call, wide, codes, along_axis, block)
    factor = along(call, as_float(call, rows(scales)), codes, along_axis, block)
    return cast((codes - shift) * factor, scales.dtype)


@lowering("MatMulFpQ4", domain=MICROSOFT)
def matmul_fp_q4(call: Call) -> Tensor:
    call.refuse("its weights are packed as this machine's kernels want them; MatMulNBits is the portable form")
