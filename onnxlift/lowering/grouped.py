"""GroupQueryAttention (com.microsoft): several heads of queries share one of keys and values.

B samples, S new tokens, P places of the past, N heads of queries, G heads of keys, H elements. The past is a buffer
of which every sample has filled a part of its own. The attention does not need it closed up: what is not filled is
hidden, and of each key the position is known.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxlift.functions import (
    arange,
    cast,
    concat,
    expand,
    gather_elements,
    logical_and,
    maximum,
    minimum,
    reshape,
    shape_of,
    slice_axis,
    split,
    tanh,
    unsqueeze,
    where,
)
from onnxlift.lowering.fused_norms import rms_norm
from onnxlift.lowering.heads import attended, extent, merged, rotated, scores, shown, with_heads
from onnxlift.lowering.table import MICROSOFT, Call, lowering
from onnxlift.tensor import INT64, Tensor, unary


@dataclass(frozen=True)
class _Past:
    """`count` [B, 1]: the tokens of each sample that are past; `total` [B, 1]: with the new ones, without padding."""

    count: Tensor
    total: Tensor


@lowering("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention(call: Call) -> list[Tensor | None]:
    """Rotary embedding, the past in front, scores with softcap and bias, softmax, values; and the new past."""
    _check(call)
    q, k, v = _heads(call)
    new = arange(shape_of(q, 2, 3))
    total = reshape(cast(call.input(5), INT64) + 1, concat([shape_of(q, 0, 1), call.emitter.ints([1])], 0))
    past = _Past(maximum(total - shape_of(q, 2, 3), 0), total)
    if call.attribute("do_rotary", 0):
        q, k = _rotated(call, q, k, past)
    places, filled = past.count + new, new < past.total - past.count
    keys, values = k, v
    if call.optional(3) is not None:
        old = arange(shape_of(call.input(3), 2, 3))
        keys, values = (concat([call.input(index), side], 2) for index, side in ((3, k), (4, v)))
        places = concat([old + past.count * 0, places], 1)
        filled = concat([old < past.count, filled], 1)
    logits = scores(call, q, _shared(call, keys))
    softcap = call.attribute("softcap", 0.0)
    if softcap:
        logits = tanh(logits * (1 / softcap)) * softcap
    if call.optional(10) is not None:
        logits = logits + _bias(call, call.input(10), places)
    logits = logits + shown(_visible(call, past.count + new, places, filled), logits)
    output = _smooth(call, logits, _shared(call, values))
    return [output, *(_present(call, side, past) for side in (keys, values))]


def _check(call: Call) -> None:
    if call.optional(12) is not None or call.optional(13) is not None:
        call.refuse("its past is quantised")
    if call.attribute("sliding_window_cache", 0):
        call.refuse("its past is a sliding window")
    if call.wanted[3:] and call.wanted[3]:
        call.refuse("its output 3, the scores, is used")


def _heads(call: Call) -> list[Tensor]:
    """Queries [B, N, S, H], keys and values [B, G, S, H]: three inputs, or the heads of one. Norms are per head."""
    heads, groups = call.attribute("num_heads"), call.attribute("kv_num_heads")
    if call.optional(1) is None:
        pieces = list(split(with_heads(call.input(0), heads + 2 * groups), [heads, groups, groups], 1))
    else:
        pieces = [with_heads(call.input(index), count) for index, count in enumerate((heads, groups, groups))]
    for side, index in ((0, 14), (1, 15)):
        weight = call.optional(index)
        if weight is not None:
            pieces[side] = rms_norm(pieces[side], call.attribute("qk_norm_epsilon", 1e-6)) * weight
    return pieces


def _rotated(call: Call, q: Tensor, k: Tensor, past: _Past) -> list[Tensor]:
    """Queries and keys turned by their positions. In a prompt, only the first of the given ones counts."""
    new, positions = arange(shape_of(q, 2, 3)), call.optional(9)
    if positions is None:
        positions = past.count + new
    else:
        prompt = reshape(cast(call.input(6), INT64), [1]).equals(shape_of(q, 2, 3))
        first = slice_axis(reshape(positions, [-1]), 0, 0, 1)
        positions = reshape(positions, concat([shape_of(q, 0, 1), shape_of(q, 2, 3)], 0))
        positions = where(prompt, unsqueeze(first + new, [0]), positions)
    cos, sin = (unsqueeze(call.emitter.op("Gather", call.input(index), positions), [1]) for index in (7, 8))
    interleaved = bool(call.attribute("rotary_interleaved", 0))
    return [rotated(call, x, cos, sin, interleaved=interleaved) for x in (q, k)]


def _shared(call: Call, x: Tensor) -> Tensor:
    """[B, G, T, H] -> [B, N, T, H]: each head N / G times."""
    heads, groups = call.attribute("num_heads"), call.attribute("kv_num_heads")
    if heads == groups:
        return x
    repeated = expand(unsqueeze(x, [2]), [1, 1, heads // groups, 1, 1])
    return call.emitter.op("Reshape", repeated, call.emitter.ints([0, heads, -1, extent(call, x, -1)]))


def _visible(call: Call, queries: Tensor, keys: Tensor, filled: Tensor) -> Tensor:
    """Which keys a query may see, [B, 1, S, T], by the positions of both, [B, S] and [B, T]."""
    visible, rows, columns = unsqueeze(filled, [1, 2]), unsqueeze(queries, [1, 3]), unsqueeze(keys, [1, 2])
    if call.attribute("causal", 1):
        visible = logical_and(visible, columns <= rows)
    window = call.attribute("local_window_size", -1)
    return logical_and(visible, columns > rows - window) if window > 0 else visible


def _bias(call: Call, bias: Tensor, places: Tensor) -> Tensor:
    """The columns of the bias [B or 1, N or 1, S, total] that belong to the keys' positions [B, T]."""
    if call.optional(3) is None:
        return bias
    last = shape_of(bias, 3) - 1
    columns = unsqueeze(minimum(places, last), [1, 2])
    rest = shape_of(bias, 1, 3)
    bias = expand(bias, concat([shape_of(places, 0, 1), shape_of(bias, 1)], 0))
    return gather_elements(bias, expand(columns, concat([shape_of(places, 0, 1), rest, shape_of(places, 1)], 0)), 3)


def _smooth(call: Call, logits: Tensor, values: Tensor) -> Tensor:
    """`attended`, or with one more key of value 0 in the softmax: its logit is 0, or that of each head's sink."""
    sink = call.optional(11)
    if sink is None and call.attribute("smooth_softmax", 0) != 1:
        return attended(logits, values)
    if sink is None:
        sink = call.emitter.constant([0], logits.dtype)
    shape = concat([shape_of(logits, 0, 3), call.emitter.ints([1])], 0)
    sink = expand(reshape(sink, [1, -1, 1, 1]), shape)
    shares = unary("Softmax", concat([logits, sink], 3), axis=3)
    return merged(slice_axis(shares, 3, 0, -1) @ values)


def _present(call: Call, side: Tensor, past: _Past) -> Tensor | None:
    """The keys or values of the past and the new ones, closed up and followed by zeros: [B, G, max(P, total), H]."""
    if call.optional(3) is None:
        return side
    if not any(call.wanted[1:3]):
        return None
    size = shape_of(call.input(3), 2, 3)
    places = arange(maximum(size, reshape(cast(call.input(6), INT64), [1])))
    new = shape_of(call.input(0), 1, 2)
    source = where(places < past.count, places + past.count * 0, places - past.count + size)
    inside = unsqueeze(places < past.count + new, [1, 3])
    source = unsqueeze(minimum(source, size + new - 1), [1, 3])
    shape = concat([shape_of(side, 0, 2), shape_of(places), shape_of(side, 3)], 0)
    return where(inside, gather_elements(side, expand(source, shape), 2), call.emitter.constant(0, side.dtype))
