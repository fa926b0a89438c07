"""Convolutions: m_x = W^T m_y, with the model's weight tensor (LIFTPAD 2.3.1, DeepLIFT "Linear rule").

Weights that depend on the attributed inputs make a product of two tensors, and get the midpoint rule (METHOD 5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxlift.functions import concat, reduce_sum, reshape, shape_of, transpose
from onnxlift.registry import rule
from onnxlift.rules.linear import mixed, summed
from onnxlift.rules.windows import LAST, Window, known, mirrored_pads, numbers, transposed, windows
from onnxlift.signed import Parts, by_sign
from onnxlift.site import Site, Value
from onnxlift.tensor import Tensor

FEW_CHANNELS = 12
"""Below so many input channels (per group) ONNX Runtime's ConvTranspose beats its Conv by 1.5 to 8 times on the CPU;
with more of them, and in depthwise convolutions, it loses by 1.1 to 8 times."""


def _parts(site: Site) -> list[Parts]:
    """What x brings, what the weights bring where they are computed, and the bias' parts."""
    x, weight, bias = site.x, site.input(1), site.optional(2)
    none = [None] * len(site.inputs[2:])
    terms = []
    if x.active:
        terms.append(mixed(x.d, weight.mid, lambda d, w: site.again(d, w, *none)))
    if weight.active:
        terms.append(mixed(weight.d, x.mid, lambda d, w: site.again(w, d, *none)))
    if bias is not None and bias.active:
        shape = [-1] + [1] * (x.rank - 2)
        terms.append(Parts(*(reshape(part, shape) for part in by_sign(bias.d))))
    return summed(site, terms)


@rule("linear", "Conv", parts=_parts, mixes=True)
def convolution(site: Site) -> list[Tensor | None]:
    """m_x = W^T m_y; for computed weights W = (W + W0)/2, m_W = m_y * (x + x0)/2 (correlation), m_b = sum m_y."""
    x, weight, group = site.x, site.input(1), site.attribute("group", 1)
    spans = windows(site, _kernel(site, weight))
    m_x = _transpose(site, site.weight(weight.mid), spans, group) if x.active else None
    m_w = None
    if weight.active:
        pads = [known(span.begin) for span in spans] + [known(span.end) for span in spans]
        if None in pads:
            site.refuse("its weights depend on the attributed inputs, and its padding on the size of the input")
        strides, dilations = [span.stride for span in spans], [span.dilation for span in spans]
        moves = {"strides": strides, "dilations": dilations, "pads": pads, "group": group}
        m_w = _correlate(site.weight(x.mid), site.m, weight, moves)
    return [m_x, m_w, _bias(site)]


def _kernel(site: Site, weight: Value) -> list[int]:
    """The size of the kernel, from the attribute or from the weight's shape."""
    sizes = numbers(site, "kernel_shape", [])
    if not sizes and weight.shape is not None:
        sizes = [size for size in weight.shape[2:] if isinstance(size, int)]
    if len(sizes) != site.x.rank - 2:
        site.refuse("the size of its kernel is unknown")
    return sizes


def _transpose(site: Site, weight: Tensor, spans: Sequence[Window], group: int) -> Tensor:
    """W^T m_y: the transposed convolution, or at stride 1 the convolution with the mirrored weight, the faster one."""
    pads = mirrored_pads(spans)
    if pads is None or not _prefers_convolution(weight, group):
        return transposed(site, site.m, weight, spans, group)
    dilations = [span.dilation for span in spans]
    return site.emitter.op("Conv", site.m, _mirrored(weight, group), pads=pads, dilations=dilations, group=group)


def _prefers_convolution(weight: Tensor, group: int) -> bool:
    """Whether the weight's shape is known and Conv is the faster form."""
    if weight.shape is None or not all(isinstance(size, int) for size in weight.shape):
        return False
    outputs, channels = (size for size in weight.shape[:2] if isinstance(size, int))
    return channels >= FEW_CHANNELS or (1 < group == outputs and channels == 1)


def _mirrored(weight: Tensor, group: int) -> Tensor:
    """W with every kernel flipped and, per group, inputs and outputs exchanged: [M, C/g, ...] -> [C, M/g, ...].

    Nodes on the weight, which ONNX Runtime folds when it loads the explainer: the file does not grow.
    """
    assert weight.shape is not None
    outputs, channels, *kernel = (size for size in weight.shape if isinstance(size, int))
    axes = [axis for axis, size in enumerate(weight.shape) if axis >= 2 and size != 1]
    if axes:
        steps = [[-1] * len(axes), [-LAST] * len(axes), axes, [-1] * len(axes)]
        weight = weight.emitter.op("Slice", weight, *map(weight.emitter.ints, steps), shape=weight.shape)
    rest = range(2, len(kernel) + 2)
    if group == 1:
        return transpose(weight, [1, 0, *rest])
    if outputs == group and channels == 1:
        return weight
    grouped = reshape(weight, [group, outputs // group, channels, *kernel])
    swapped = transpose(grouped, [0, 2, 1, *(axis + 1 for axis in rest)])
    return reshape(swapped, [group * channels, outputs // group, *kernel])


@rule("linear", "ConvTranspose", parts=_parts, mixes=True)
def transposed_convolution(site: Site) -> list[Tensor | None]:
    """m_x = W^T m_y, the convolution with the same weight; for computed weights as Conv, m_y and x exchanged."""
    x, weight = site.x, site.input(1)
    kernel = _kernel(site, weight)
    strides, dilations = (numbers(site, name, [1] * len(kernel)) for name in ("strides", "dilations"))
    cuts = [
        _cut(site, index, stride, (taps - 1) * dilation + 1)
        for index, (taps, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True))
    ]
    pads = [begin for begin, _ in cuts] + [end for _, end in cuts]
    moves = {"strides": strides, "dilations": dilations, "pads": pads, "group": site.attribute("group", 1)}
    m_x = m_w = None
    if x.active:
        m_x = site.emitter.op("Conv", site.m, site.weight(weight.mid), kernel_shape=kernel, **moves)
    if weight.active:
        m_w = _correlate(site.m, site.weight(x.mid), weight, moves)
    return [m_x, m_w, _bias(site)]


def _cut(site: Site, index: int, stride: int, reach: int) -> tuple[int, int]:
    """How much ConvTranspose cuts off in front and behind along one axis, in ONNX Runtime."""
    rank = site.x.rank - 2
    auto_pad, shape = site.attribute("auto_pad", "NOTSET"), numbers(site, "output_shape", [])
    spread = reach + numbers(site, "output_padding", [0] * rank)[index]  # what the last place of the input reaches
    if shape:
        extent = known(site.x.dim(index + 2))
        if extent is None:
            site.refuse("it has an output_shape, and the size of its input is known at run time only")
        kept = shape[-rank:][index] - stride * (extent - 1)
    elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        kept = stride
        if spread < stride and known(site.y.dim(index + 2)) is not None:
            site.refuse("ONNX Runtime makes its output smaller than ONNX's shape inference (SAME, stride > kernel)")
    else:
        pads = [0] * (2 * rank) if auto_pad == "VALID" else numbers(site, "pads", [0] * (2 * rank))
        if min(pads) < 0:
            site.refuse("it has negative pads")
        return pads[index], pads[index + rank]
    total = max(0, spread - kept)
    less, more = total // 2, total - total // 2
    return (less, more) if auto_pad == "SAME_UPPER" else (more, less)


def _correlate(x: Tensor, m: Tensor, weight: Value, moves: Mapping[str, Any]) -> Tensor:
    """The multiplier of each weight: m times what the weight multiplies in `Conv <moves> (x, W)`, summed.

    That is a convolution of x with the kernel m: samples are its channels, strides and dilations change places.
    """
    emitter, group = x.emitter, moves["group"]
    axes = range(2, x.rank)
    if group == 1:
        x = transpose(x, [1, 0, *axes])
    else:
        channels, sizes = weight.dim(1), shape_of(x, 2)
        grouped = reshape(x, concat([shape_of(x, 0, 1), emitter.ints([group]), channels, sizes], axis=0))
        x = transpose(grouped, [2, 1, 0, *(axis + 1 for axis in axes)])
        x = reshape(x, concat([channels, emitter.ints([-1]), sizes], axis=0))
    kernel = transpose(m, [1, 0, *axes])
    exchanged = {**moves, "strides": moves["dilations"], "dilations": moves["strides"]}
    full = transpose(emitter.op("Conv", x, kernel, shape=(None,) * x.rank, **exchanged), [1, 0, *axes])
    stops = concat([weight.dim(axis) for axis in axes], axis=0)  # places that no window reaches add taps
    return emitter.op("Slice", full, emitter.ints([0] * len(axes)), stops, emitter.ints(axes))


def _bias(site: Site) -> Tensor | None:
    """m_b = sum m_y, per channel."""
    bias = site.optional(2)
    if bias is None or not bias.active:
        return None
    return reduce_sum(site.m, [0, *range(2, site.y.rank)], keepdims=False)
