"""The parts that the attention operators of com.microsoft share: heads, scores, masks, rotary embedding.

B samples, S queries, L new keys, T keys with those of the past, N heads of H elements.
"""

from __future__ import annotations

from math import sqrt

from onnxlift.functions import (
    arange,
    cast,
    concat,
    logical_and,
    regroup,
    reshape,
    shape_of,
    slice_axis,
    split,
    squeeze,
    swap_last,
    transpose,
    unsqueeze,
    where,
)
from onnxlift.lowering.table import Call
from onnxlift.tensor import INT64, Tensor, limits, unary

# --- heads -----------------------------------------------------------------------------------------------------------


def with_heads(x: Tensor, heads: int) -> Tensor:
    """[B, S, N * H] -> [B, N, S, H]."""
    return transpose(regroup(x, 2, [heads, -1]), [0, 2, 1, 3])


def merged(x: Tensor) -> Tensor:
    """[B, N, S, H] -> [B, S, N * H]."""
    return regroup(transpose(x, [0, 2, 1, 3]), 2, [-1])


def extent(call: Call, x: Tensor, axis: int) -> int:
    """An extent that does not depend on the model's inputs."""
    dim = x.shape[axis] if x.shape is not None else None
    if not isinstance(dim, int):
        call.refuse(f"the extent of axis {axis} of {x.name!r} is not known")
    return dim


def scores(call: Call, q: Tensor, k: Tensor) -> Tensor:
    """Q Kᵀ times the node's scale, 1 / sqrt(H) where it has none: [B, N, S, T]."""
    scale = call.attribute("scale", 0.0) or 1 / sqrt(extent(call, q, -1))
    return (q * scale) @ swap_last(k)


def attended(logits: Tensor, v: Tensor) -> Tensor:
    """Softmax over the keys, times their values: [B, S, N * H]."""
    return merged(unary("Softmax", logits, axis=3) @ v)


# --- masks -----------------------------------------------------------------------------------------------------------


def shown(visible: Tensor, logits: Tensor, hidden: float | None = None) -> Tensor:
    """0 where a key may be seen, and what hides it elsewhere: the lowest number unless told otherwise."""
    zero = logits.emitter.constant(0, logits.dtype)
    return where(visible, zero, -limits(logits).largest if hidden is None else hidden)


def causal(logits: Tensor, new: Tensor) -> Tensor:
    """What hides from each query the keys behind it: [S, T]. `new`: the L keys that are not past, [B, N, L, H].

    The last query sees all keys, also where L is not S, as in ONNX Runtime.
    """
    queries, total = shape_of(logits, 2, 3), shape_of(logits, 3)
    last = concat([arange(queries - 1) + (total - shape_of(new, 2, 3)), total - 1], axis=0)
    return shown(unsqueeze(arange(total), [0]) <= unsqueeze(last, [1]), logits)


def padding(call: Call, mask: Tensor, logits: Tensor) -> Tensor:
    """The logits with what a mask of integers adds to them.

    It says which keys may be seen, [B, T] or [B, S, T], or how many, [B], or between which places: ends [B] and
    starts [B] in one vector. One element for all keys of a sample is ignored, as in ONNX Runtime.
    """
    mask = cast(mask, INT64)
    assert mask.shape is not None
    assert logits.shape is not None
    if mask.rank == 2 and mask.shape[1] == 1:
        return logits
    batch, _, queries, keys = (shape_of(logits, axis, axis + 1) for axis in range(4))
    one = call.emitter.ints([1])
    if mask.rank == 1:
        visible = _between(mask, arange(keys), batch, pairs=mask.shape[0] != logits.shape[0])
    elif mask.rank in (2, 3):
        visible = reshape(mask, concat([batch, one, one if mask.rank == 2 else queries, keys], 0)) > 0
    else:
        call.refuse("its mask has 4 axes, for which ONNX Runtime has no CPU kernel")
    return logits + shown(visible, logits, call.attribute("mask_filter_value", -10000.0))


def _between(mask: Tensor, places: Tensor, batch: Tensor, *, pairs: bool) -> Tensor:
    """[B, 1, 1, T] of ends [B]; with `pairs`, also of ends and starts [2 * B], which is told at run time."""
    ends = unsqueeze(reshape(slice_axis(mask, 0, 0, batch) if pairs else mask, batch), [1, 2, 3])
    visible = places < ends
    if not pairs:
        return visible
    starts = slice_axis(concat([mask, reshape(ends, batch) * 0], 0), 0, batch, batch * 2)
    return logical_and(visible, places >= unsqueeze(reshape(starts, batch), [1, 2, 3]))


# --- rotary embedding ------------------------------------------------------------------------------------------------


def rotated(call: Call, x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """x [..., H] with the first R elements turned pairwise; cos and sin [..., R / 2] broadcast.

    The pairs are (i, i + R / 2), or neighbours where they are interleaved.
    """
    half, size, last = extent(call, cos, -1), extent(call, x, -1), x.rank - 1
    turning, rest = split(x, [2 * half, size - 2 * half], last) if 2 * half < size else (x, None)
    if interleaved:
        a, b = (squeeze(side, [last + 1]) for side in split(regroup(turning, last, [half, 2]), [1, 1], last + 1))
    else:
        a, b = split(turning, [half, half], last)
    turned = [a * cos - b * sin, b * cos + a * sin]
    if interleaved:
        y = regroup(concat([unsqueeze(side, [last + 1]) for side in turned], last + 1), last, [2 * half])
    else:
        y = concat(turned, last)
    return y if rest is None else concat([y, rest], last)
