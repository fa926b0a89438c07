"""Normalisations that ONNX Runtime's optimiser and exporters fuse (com.microsoft): sums, embeddings and gates included.

GroupNorm and SkipGroupNorm have no CPU kernel: they follow the CUDA kernel.
"""

from __future__ import annotations

import numpy as np

from onnxlift.functions import (
    arange,
    cast,
    reduce_mean,
    reduce_sum,
    regroup,
    reshape,
    shape_of,
    sigmoid,
    sqrt,
    unsqueeze,
    widen,
)
from onnxlift.lowering.fused import biased, only_outputs, silu, with_channels_first
from onnxlift.lowering.heads import extent
from onnxlift.lowering.table import MICROSOFT, Call, lowering
from onnxlift.tensor import Tensor

# --- over the last axes ----------------------------------------------------------------------------------------------


@lowering("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(call: Call) -> list[Tensor | None]:
    """LayerNormalization of x + skip + bias, and that sum."""
    only_outputs(call, 0, 3)
    x = biased(call.input(0), call.input(1), call.optional(4))
    return [layer_normalization(call, x, call.input(2), call.optional(3)), None, None, x]


@lowering("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_simplified_layer_normalization(call: Call) -> list[Tensor | None]:
    """`rms_norm` of x + skip + bias, and that sum."""
    only_outputs(call, 0, 3)
    x = biased(call.input(0), call.input(1), call.optional(3))
    return [rms_norm(x, call.attribute("epsilon", 1e-12)) * call.input(2), None, None, x]


@lowering("SimplifiedLayerNormalization")
def simplified_layer_normalization(call: Call) -> Tensor:
    """`rms_norm` over the axes from `axis` on; ONNX Runtime keeps this operator of its own in the standard domain."""
    only_outputs(call, 0)
    x, scale = call.input(0), call.input(1)
    y = rms_norm(x, call.attribute("epsilon", 1e-5), call.attribute("axis", -1))
    return cast(y, scale.dtype) * scale


def rms_norm(x: Tensor, epsilon: float, axis: int = -1) -> Tensor:
    """x / sqrt(mean x² + epsilon) over the axes from `axis` on, computed in float32 at least."""
    wide = widen(x)
    square = reduce_mean(wide * wide, range(axis % x.rank, x.rank))
    return cast(wide / sqrt(square + epsilon), x.dtype)


def layer_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Over the last axis, with the epsilon of these operators."""
    epsilon = call.attribute("epsilon", 1e-12)
    return call.emitter.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=epsilon)


@lowering("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_normalization(call: Call) -> list[Tensor | None]:
    """LayerNormalization of the embeddings' sum, the number of words, and that sum.

    The embedded words are the tensor `<output>/words`.
    """
    ids, segments, positions, mask = call.input(0), call.optional(1), call.optional(8), call.optional(7)
    x = call.emitter.op("Gather", call.input(2), ids, names=["words"])
    if positions is None:
        positions = unsqueeze(arange(shape_of(ids, 1, 2)), [0])
    x = x + call.emitter.op("Gather", call.input(3), positions)
    if segments is not None and call.optional(4) is not None:
        x = x + call.emitter.op("Gather", call.input(4), segments)
    words = None
    if len(call.wanted) > 1 and call.wanted[1]:
        counted = mask if mask is not None else ids * 0
        words = cast(reduce_sum(counted, [1], keepdims=False), np.dtype(np.int32))
    return [layer_normalization(call, x, call.input(5), call.input(6)), words, x]


# --- over groups of channels -----------------------------------------------------------------------------------------


@lowering("GroupNorm", domain=MICROSOFT)
def group_norm(call: Call) -> Tensor:
    """GroupNormalization, followed by SiLU where `activation` is 1; the channels are last unless told otherwise."""
    return _group_norm(call, call.input(0))


@lowering("SkipGroupNorm", domain=MICROSOFT)
def skip_group_norm(call: Call) -> list[Tensor]:
    """`group_norm` of x + skip + bias, and that sum. The skip may be one vector per sample, [N, C]."""
    x, skip = call.input(0), call.input(3)
    if skip.rank == 2:
        skip = unsqueeze(skip, [1, 2])
    x = biased(x, skip, call.optional(4))
    return [_group_norm(call, x), x]


def _group_norm(call: Call, x: Tensor) -> Tensor:
    scale, bias = (cast(call.input(index), x.dtype) for index in (1, 2))
    attributes = {"num_groups": call.attribute("groups"), "epsilon": call.attribute("epsilon", 1e-5)}

    def normalized(x: Tensor) -> Tensor:
        return call.emitter.op("GroupNormalization", x, scale, bias, **attributes)

    y = with_channels_first(x, normalized) if call.attribute("channels_last", 1) else normalized(x)
    return silu(y) if call.attribute("activation") else y


# --- over pieces of the last axis ------------------------------------------------------------------------------------


@lowering("GatedRMSNorm", domain=MICROSOFT)
def gated_rms_norm(call: Call) -> Tensor:
    """`rms_norm` of each piece of C elements, times scale [C], times silu or sigmoid of the gate."""
    x, scale, gate = call.input(0), widen(call.input(1)), widen(call.input(2))
    pieces = regroup(widen(x), x.rank - 1, [-1, extent(call, scale, 0)])
    y = reshape(rms_norm(pieces, call.attribute("epsilon", 1e-5)) * scale, shape_of(x))
    gate = sigmoid(gate) if call.attribute("activation", "silu") == "sigmoid" else silu(gate)
    return cast(y * gate, x.dtype)


@lowering("BranchwiseRMSNorm", domain=MICROSOFT)
def branchwise_rms_norm(call: Call) -> Tensor:
    """`rms_norm` of each branch: the last axis of x [..., C, H], or each piece of H elements of x [..., C * H]."""
    x, scale, branches = call.input(0), call.optional(1), call.attribute("num_branches", 0)
    pieces = regroup(widen(x), x.rank - 1, [branches, -1]) if branches else widen(x)
    y = rms_norm(pieces, call.attribute("epsilon", 1e-5))
    if scale is not None:
        scale = widen(scale)
        branched = scale.rank == 1 and extent(call, scale, 0) != extent(call, y, -1)
        y = y * (reshape(scale, [extent(call, y, -2), -1]) if branched else scale)
    return cast(reshape(y, shape_of(x)) if branches else y, x.dtype)
