"""The attention operators of com.microsoft that have as many heads of keys as of queries, and rotary embedding.

They compute what the CPU kernels do. B samples, S queries, L new keys, T keys with those of the past, N heads of H
elements.
"""

from __future__ import annotations

from math import log

import numpy as np

from onnxlift.functions import (
    arange,
    cast,
    concat,
    maximum,
    minimum,
    reduce_sum,
    regroup,
    reshape,
    shape_of,
    sigmoid,
    slice_axis,
    split,
    squeeze,
    unsqueeze,
    where,
)
from onnxlift.lowering.fused import biased
from onnxlift.lowering.heads import attended, causal, extent, padding, rotated, scores, with_heads
from onnxlift.lowering.table import MICROSOFT, Call, lowering
from onnxlift.tensor import FLOAT32, INT64, Tensor, unary


@lowering("Attention", domain=MICROSOFT)
def attention(call: Call) -> list[Tensor]:
    """Self-attention with its projection: [q, k, v] = x W + b. The past and present are keys and values in one."""
    for name in ("do_rotary", "past_present_share_buffer"):
        if call.attribute(name, 0):
            call.refuse(f"it has {name}=1, for which ONNX Runtime has no CPU kernel")
    x = biased(call.input(0) @ call.input(1), call.optional(2))
    third = extent(call, x, 2) // 3
    sizes = call.attribute("qkv_hidden_sizes", None) or [third] * 3
    q, k, v = (with_heads(piece, call.attribute("num_heads")) for piece in split(x, sizes, 2))
    new, past = k, call.optional(4)
    if past is not None:
        old = [squeeze(half, [0]) for half in split(past, [1, 1], 0)]
        k, v = (concat([side, more], 2) for side, more in zip(old, (k, v), strict=True))
    logits = _masked(call, scores(call, q, k), new, mask=call.optional(3), bias=call.optional(5))
    present = [concat([unsqueeze(k, [0]), unsqueeze(v, [0])], 0)] if call.wanted[1:] else []
    return [attended(logits, v), *present]


@lowering("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(call: Call) -> list[Tensor]:
    """Attention of q to k and v, which may be packed into one tensor; also the keys, the values and the logits."""
    if call.optional(8) is not None or call.optional(9) is not None:
        call.refuse("its past lies in a buffer that is longer than it")
    q, k, v = _heads(call, call.optional(3))
    new = k
    if call.optional(6) is not None:
        k, v = (concat([call.input(index), more], 2) for index, more in ((6, k), (7, v)))
    logits = _masked(call, scores(call, q, k), new, mask=call.optional(4), bias=call.optional(5))
    return [attended(logits, v), k, v, logits]


@lowering("DecoderMaskedMultiHeadAttention", domain=MICROSOFT)
def decoder_masked_multi_head_attention(call: Call) -> list[Tensor]:
    """The same for one query. The past lies in a buffer, of which `past_sequence_length` places are filled."""
    beams = call.optional(8)
    if call.optional(9) is not None or (beams is not None and (beams.value is None or beams.value.item() > 1)):
        call.refuse("it searches by beams")
    q, k, v = _heads(call, call.optional(10))
    present = [k, v]
    if call.optional(5) is not None:
        count = reshape(cast(call.input(7), INT64), [1])
        buffers = [call.input(5), call.input(6)]
        k, v = (concat([slice_axis(old, 2, 0, count), one], 2) for old, one in zip(buffers, (k, v), strict=True))
        ends = [slice_axis(old, 2, count + 1, shape_of(old, 2, 3)) for old in buffers]
        present = [concat([side, end], 2) for side, end in zip((k, v), ends, strict=True)]
    logits = _masked(call, scores(call, q, k), k, mask=call.optional(3), bias=call.optional(4))
    return [attended(logits, v), *present, logits]


def _masked(call: Call, logits: Tensor, new: Tensor, *, mask: Tensor | None, bias: Tensor | None) -> Tensor:
    """The logits with everything that is added to them."""
    logits = biased(logits, bias)
    if mask is not None:
        logits = padding(call, mask, logits)
    return logits + causal(logits, new) if call.attribute("unidirectional", 0) else logits


def _heads(call: Call, bias: Tensor | None) -> list[Tensor]:
    """Queries, keys and values, [B, N, S, H] each, of a node's first three inputs.

    They are [B, S, N * H], or have their heads already (keys and values of another sequence: no bias is added), or are
    packed: [B, S, N, 3, H] or [B, S, 3 * N * H] in the first input, [B, L, N, 2, H] in the second.
    """
    heads = call.attribute("num_heads")
    q, k, v = call.input(0), call.optional(1), call.optional(2)
    if k is None:
        pieces = _unpacked(q, 3) if q.rank == 5 else list(split(q, [extent(call, q, 2) // 3] * 3, 2))
    elif v is None:
        pieces = [q, *_unpacked(k, 2)]
    else:
        pieces = [q, k, v]
    if bias is not None:
        last = extent(call, pieces[2], -1) * (heads if pieces[2].rank == 4 else 1)
        first = (extent(call, bias, 0) - last) // 2
        terms = split(bias, [first, first, last], 0)
        pieces = [piece if piece.rank == 4 else piece + term for piece, term in zip(pieces, terms, strict=True)]
    return [piece if piece.rank == 4 else with_heads(piece, heads) for piece in pieces]


def _unpacked(x: Tensor, count: int) -> list[Tensor]:
    """[B, S, N, count, H] -> `count` times [B, S, N * H]."""
    return [regroup(piece, 2, [-1]) for piece in split(x, [1] * count, 3)]


# --- positions -------------------------------------------------------------------------------------------------------


@lowering("RotaryEmbedding", domain=MICROSOFT)
def rotary_embedding(call: Call) -> Tensor:
    """x turned by the angles of its positions; a single one is that of the first element of every sequence."""
    x, positions = call.input(0), call.input(1)
    batch, length = shape_of(x, 0, 1), shape_of(x, 1, 2) if x.rank == 3 else shape_of(x, 2, 3)
    if positions.rank == 1:
        positions = unsqueeze(arange(length) + positions, [0])
    else:
        positions = reshape(positions, concat([batch, length], 0))
    return _turned(call, *(call.emitter.op("Gather", call.input(table), positions) for table in (2, 3)))


@lowering("MRotaryEmbedding", domain=MICROSOFT)
def multimodal_rotary_embedding(call: Call) -> Tensor:
    """The same with three positions [3, B, S], of time, height and width, each for a part of the angles."""
    tables = [call.input(table) for table in (2, 3)]
    sections, count = call.attribute("mrope_section"), extent(call, tables[0], 1)
    stream = np.repeat(range(3), sections)
    if call.attribute("mrope_layout", 0):
        stream = np.zeros(count, int)
        for k in (1, 2):
            stream[k : 3 * sections[k] : 3] = k
    chosen = call.emitter.constant(np.equal.outer(range(3), stream)[:, None, None], tables[0].dtype)
    angles = [call.emitter.op("Gather", table, call.input(1)) * chosen for table in tables]
    return _turned(call, *(reduce_sum(angle, [0], keepdims=False) for angle in angles))


def _turned(call: Call, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotated` with angles [B, S, R / 2]. The input is [B, N, S, H] or [B, S, N * H]."""
    x, width = call.input(0), call.attribute("rotary_embedding_dim", 0)
    flat = x.rank == 3
    if flat:
        x = regroup(x, 2, [call.attribute("num_heads"), -1] if width else [-1, 2 * extent(call, cos, -1)])
    angles = [unsqueeze(side, [2 if flat else 1]) for side in (cos, sin)]
    y = rotated(call, x, *angles, interleaved=bool(call.attribute("interleaved", 0)))
    return regroup(y, 2, [-1]) if flat else y


@lowering("GemmaRotaryEmbedding", domain=MICROSOFT)
def gemma_rotary_embedding(call: Call) -> list[Tensor]:
    """q cos(e) + q' sin(e) and k cos(e) + k' sin(e), with halves of q' and k' exchanged already."""
    q, turned_q, k, turned_k = (call.input(index) for index in range(1, 5))
    sin, cos = (unsqueeze(cast(unary(op, call.input(0)), q.dtype), [1]) for op in ("Sin", "Cos"))
    return [q * cos + turned_q * sin, k * cos + turned_k * sin]


@lowering("GatedRelativePositionBias", domain=MICROSOFT)
def gated_relative_position_bias(call: Call) -> Tensor:
    """(u (r a - 1) + 2) P with the gates u and r, sigmoids of half the query's projection each."""
    if call.optional(6) is not None:
        call.refuse("its tokens are packed without padding, so that samples are not apart")
    q = with_heads(call.input(0) + call.input(1), call.attribute("num_heads"))
    projected = q @ call.input(3) + call.input(4)
    half = extent(call, projected, -1) // 2
    sums = call.emitter.op(
        "ReduceSum", regroup(projected, 3, [2, half]), call.emitter.ints([4]), keepdims=0, names=["gates"]
    )
    u, r = split(sigmoid(sums), [1, 1], 3)
    return (u * (r * call.input(5) - 1) + 2) * call.input(2)


@lowering("RelativePositionBias", domain=MICROSOFT)
def relative_position_bias(call: Call) -> Tensor:
    """One bias for each head and distance, [1, N, S, S], from a table stored as [N, buckets] whatever its shape says.

    Up to a distance each has a bucket of its own, further ones share buckets of growing size (T5, arXiv:1910.10683).
    """
    table = call.input(0)
    buckets, heads = extent(call, table, 0), extent(call, table, 1)
    places = arange(reshape(cast(call.input(1), INT64), [1]))
    distance = unsqueeze(places, [0]) - unsqueeze(places, [1])
    first = call.emitter.constant(0, INT64)
    if call.attribute("is_bidirectional", 0):
        buckets //= 2
        first = cast(distance > 0, INT64) * buckets
    distance, exact = unary("Abs", distance), buckets // 2
    growth = (buckets - exact) / log(call.attribute("max_distance") / exact)
    far = unary("Log", cast(maximum(distance, 1), FLOAT32) * (1 / exact)) * growth
    far = minimum(cast(far, INT64) + exact, buckets - 1)
    bucket = first + where(distance < exact, distance, far)
    table = reshape(table, [heads, extent(call, table, 0)])
    return unsqueeze(call.emitter.op("Gather", table, bucket, axis=1), [0])


# --- refused ---------------------------------------------------------------------------------------------------------


@lowering("PackedAttention", "PackedMultiHeadAttention", domain=MICROSOFT)
def packed(call: Call) -> Tensor:
    call.refuse("the tokens of all samples are packed into one axis, so that samples are not apart")


@lowering("LongformerAttention", "SparseAttention", "PagedAttention", domain=MICROSOFT)
def sparse(call: Call) -> Tensor:
    call.refuse("sparse attention is not covered; export the model without ONNX Runtime's transformer fusions")


@lowering("DecoderAttention", "DecoderMaskedSelfAttention", domain=MICROSOFT)
def decoding(call: Call) -> Tensor:
    call.refuse("ONNX Runtime has no CPU kernel for it; export the model without ONNX Runtime's transformer fusions")


@lowering("MoE", "QMoE", domain=MICROSOFT)
def experts(call: Call) -> Tensor:
    call.refuse("which experts compute is chosen by the data")
