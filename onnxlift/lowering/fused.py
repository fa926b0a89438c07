"""Activations, matrix products and convolutions that ONNX Runtime's optimiser and exporters fuse (com.microsoft).

Nodes without a CPU kernel (NhwcConv, BiasSoftmax ...) follow the CUDA kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from onnxlift.functions import cast, regroup, reshape, shape_of, sigmoid, split, swap_last, transpose
from onnxlift.lowering.heads import extent
from onnxlift.lowering.table import MICROSOFT, Call, lowering
from onnxlift.tensor import Tensor, unary

# --- activations -----------------------------------------------------------------------------------------------------


def gelu(x: Tensor) -> Tensor:
    """x Φ(x)."""
    return unary("Gelu", x)


def fast_gelu(x: Tensor) -> Tensor:
    """Its approximation by tanh."""
    return unary("Gelu", x, approximate="tanh")


def silu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """x sigmoid(alpha x)."""
    return x * sigmoid(x if alpha == 1 else x * alpha)


_PARAMETERS = {
    "Clip": ("min", "max"),
    "Elu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "LeakyRelu": ("alpha",),
    "Relu": (),
    "Selu": ("alpha", "gamma"),
    "Sigmoid": (),
    "Softmax": ("axis",),
    "Softplus": (),
    "Softsign": (),
    "Tanh": (),
    "ThresholdedRelu": ("alpha",),
}
"""Activations that are fused into other operators, and the order of their parameters in `activation_params`."""


def activated(call: Call, y: Tensor, parameters: dict[str, Any]) -> Tensor:
    """`y` behind the activation that the node names; `parameters` may hold more than that one has."""
    name = call.attribute("activation", "")
    if not name:
        return y
    if name not in _PARAMETERS:
        call.refuse(f"the activation {name!r} is not known")
    attributes = {key: value for key, value in parameters.items() if key in _PARAMETERS[name]}
    if name != "Clip":
        return unary(name, y, **attributes)
    bounds = [call.emitter.constant(attributes[key], y.dtype) if key in attributes else None for key in ("min", "max")]
    return call.emitter.op("Clip", y, *bounds)


def _listed_parameters(call: Call) -> dict[str, Any]:
    """Of `activation_params`, which has them in order."""
    names = _PARAMETERS.get(call.attribute("activation", ""), ())
    return dict(zip(names, call.attribute("activation_params", ()), strict=False))


def _named_parameters(call: Call) -> dict[str, Any]:
    """Of attributes like `activation_alpha`."""
    names = ("alpha", "beta", "gamma", "axis")
    return {name: call.attributes[f"activation_{name}"] for name in names if f"activation_{name}" in call.attributes}


@lowering("Gelu", domain=MICROSOFT)
def plain_gelu(call: Call) -> Tensor:
    return gelu(call.input(0))


@lowering("BiasGelu", domain=MICROSOFT)
def bias_gelu(call: Call) -> Tensor:
    return gelu(call.input(0) + call.input(1))


@lowering("FastGelu", domain=MICROSOFT)
def biased_fast_gelu(call: Call) -> Tensor:
    return fast_gelu(biased(call.input(0), call.optional(1)))


@lowering("BiasSplitGelu", domain=MICROSOFT)
def bias_split_gelu(call: Call) -> Tensor:
    """a Gelu(b), with [a, b] = x + bias along the last axis."""
    x = call.input(0) + call.input(1)
    left, right = split(x, [extent(call, x, -1) // 2] * 2, axis=x.rank - 1)
    return left * gelu(right)


@lowering("QuickGelu", domain=MICROSOFT)
def quick_gelu(call: Call) -> Tensor:
    return silu(call.input(0), call.attribute("alpha", 1.702))


@lowering("ScaledSiLU", domain=MICROSOFT)
def scaled_silu(call: Call) -> Tensor:
    x, scale = call.input(0), call.optional(1)
    return silu(x * (call.attribute("alpha", 1.0) if scale is None else cast(scale, x.dtype)))


@lowering("BiasSoftmax", domain=MICROSOFT)
def bias_softmax(call: Call) -> Tensor:
    """Softmax over all axes from `axis` on, of data + bias. Either kind of broadcasting is NumPy's on the shapes."""
    x = call.input(0) + call.input(1)
    axis = call.attribute("axis", 1) % x.rank
    if axis == x.rank - 1:
        return unary("Softmax", x, axis=axis)
    return reshape(unary("Softmax", regroup(x, axis, [-1]), axis=axis), shape_of(x))


# --- sums ------------------------------------------------------------------------------------------------------------


def biased(x: Tensor, *terms: Tensor | None) -> Tensor:
    """x and those of the terms that are there, summed in order."""
    for term in terms:
        if term is not None:
            x = x + term
    return x


@lowering("BiasAdd", domain=MICROSOFT)
def bias_add(call: Call) -> Tensor:
    return call.input(0) + call.input(1) + call.input(2)


@lowering("BiasDropout", "BitmaskBiasDropout", domain=MICROSOFT)
def bias_dropout(call: Call) -> Tensor:
    """data + bias + residual: nothing is dropped at inference."""
    _only_inference(call, call.optional(4))
    return biased(call.input(0), call.input(1), call.optional(2))


@lowering("BitmaskDropout", domain=MICROSOFT)
def bitmask_dropout(call: Call) -> Tensor:
    _only_inference(call, call.optional(2))
    return call.input(0)


def _only_inference(call: Call, training: Tensor | None) -> None:
    """Refuse what drops at random, and the mask of what was dropped."""
    only_outputs(call, 0)
    if training is not None and (training.value is None or training.value.any()):
        call.refuse("it may be in training mode, where it drops at random. Export the model for inference")


def only_outputs(call: Call, *indices: int) -> None:
    """Refuse the node if other outputs of it are used."""
    for index, wanted in enumerate(call.wanted):
        if wanted and index not in indices:
            call.refuse(f"its output {index} is used")


@lowering("GatedAdd", domain=MICROSOFT)
def gated_add(call: Call) -> Tensor:
    """x + y gate."""
    return call.input(0) + call.input(1) * call.input(2)


# --- matrix products -------------------------------------------------------------------------------------------------


@lowering("FusedGemm", domain=MICROSOFT)
def fused_gemm(call: Call) -> Tensor:
    attributes = {name: call.attributes.get(name) for name in ("alpha", "beta", "transA", "transB")}
    y = call.emitter.op("Gemm", call.input(0), call.input(1), call.optional(2), **attributes)
    return activated(call, y, _named_parameters(call))


@lowering("GemmFastGelu", domain=MICROSOFT)
def gemm_fast_gelu(call: Call) -> Tensor:
    return fast_gelu(biased(call.input(0) @ call.input(1), call.optional(2)))


@lowering("FusedMatMul", "TransposeMatMul", domain=MICROSOFT)
def fused_matmul(call: Call) -> Tensor:
    return _product(call)


@lowering("FusedMatMulActivation", domain=MICROSOFT)
def fused_matmul_activation(call: Call) -> Tensor:
    return activated(call, _product(call), _named_parameters(call))


def _product(call: Call) -> Tensor:
    """(alpha A) B, each factor transposed as the node says."""
    a, b = (_turned(call, call.input(index), letter) for index, letter in enumerate("AB"))
    alpha = call.attribute("alpha", 1.0)
    return (a if alpha == 1 else a * alpha) @ b


def _turned(call: Call, x: Tensor, letter: str) -> Tensor:
    """A factor with its matrices last (`transBatch`: the first axis and the last one hold them), each transposed."""
    if x.rank < 2:
        return x
    if call.attribute(f"transBatch{letter}", 0):
        x = transpose(x, [*range(1, x.rank - 1), 0, x.rank - 1])
    return swap_last(x) if call.attribute(f"trans{letter}", 0) else x


# --- convolutions and pools ------------------------------------------------------------------------------------------

CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
_POOL = ("auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides")


def given(call: Call, names: Sequence[str]) -> dict[str, Any]:
    """The attributes of these names that the node has."""
    return {name: call.attribute(name) for name in names if name in call.attributes}


@lowering("FusedConv", domain=MICROSOFT)
def fused_conv(call: Call) -> Tensor:
    """activation(Conv(x) + z)."""
    y = call.emitter.op("Conv", call.input(0), call.input(1), call.optional(2), **given(call, CONV))
    return activated(call, biased(y, call.optional(3)), _listed_parameters(call))


@lowering("NhwcConv", "NhwcFusedConv", domain=MICROSOFT)
def nhwc_conv(call: Call) -> Tensor:
    """The same with the channels of x, y and z last; the filters are those of Conv."""

    def convolve(x: Tensor) -> Tensor:
        return call.emitter.op("Conv", x, call.input(1), call.optional(2), **given(call, CONV))

    y = biased(with_channels_first(call.input(0), convolve), call.optional(3))
    return activated(call, y, _listed_parameters(call))


@lowering("NhwcMaxPool", domain=MICROSOFT)
def nhwc_max_pool(call: Call) -> Tensor:
    return with_channels_first(call.input(0), lambda x: unary("MaxPool", x, **given(call, _POOL)))


def with_channels_first(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of [N, C, ...] on x [N, ..., C]."""
    last = x.rank - 1
    return transpose(function(transpose(x, [0, last, *range(1, last)])), [0, *range(2, last + 1), 1])


@lowering("ConvTransposeWithDynamicPads", domain=MICROSOFT)
def conv_transpose(call: Call) -> Tensor:
    attributes, pads = given(call, [*CONV, "output_padding"]), call.optional(2)
    if pads is not None:
        if pads.value is None:
            call.refuse("its pads are computed from the model's inputs; make them constants")
        attributes["pads"] = [int(pad) for pad in pads.value.ravel()]
    return call.emitter.op("ConvTranspose", call.input(0), call.input(1), call.optional(3), **attributes)


# --- blocked layouts -------------------------------------------------------------------------------------------------


@lowering(
    *"AveragePool Conv GlobalAveragePool GlobalMaxPool MaxPool ReorderInput ReorderOutput Upsample".split(),
    domain="com.microsoft.nchwc",
)
def blocked(call: Call) -> Tensor:
    call.refuse(
        "it was saved by ONNX Runtime for the processor of one machine. Rewrite the original model, or save the "
        "optimised one at the level 'extended' (ORT_ENABLE_EXTENDED)"
    )
