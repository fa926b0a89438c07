"""Convolutions: m_x = W^T m_y, with the model's weight tensor (LIFTPAD 2.3.1, DeepLIFT "Linear rule")."""

from __future__ import annotations

from onnxlift.registry import rule
from onnxlift.rules.windows import LAST, known, mirrored_pads, numbers, transposed, windows
from onnxlift.site import Site
from onnxlift.tensor import Tensor, reshape, transpose

FEW_CHANNELS = 12
"""Below so many input channels (per group) ONNX Runtime's ConvTranspose beats its Conv by 1.5 to 8 times on the CPU;
with more of them, and in depthwise convolutions, it loses by 1.1 to 8 times."""


@rule("linear", "Conv")
def convolution(site: Site) -> list[Tensor | None]:
    """m_x = W^T m_y: the transposed convolution; at stride 1 the convolution with W transposed and flipped."""
    site.only_active(0)
    weight, group = site.input(1).x, site.attribute("group", 1)
    spans = windows(site, kernel_of(site, weight))
    pads = mirrored_pads(spans)
    if pads is None or not _prefers_convolution(weight, group):
        return [transposed(site, site.m, weight, spans, group)]
    dilations = [span.dilation for span in spans]
    mirrored = _mirrored(weight, group)
    return [site.emitter.op("Conv", site.m, mirrored, pads=pads, dilations=dilations, group=group, shape=site.x.shape)]


def kernel_of(site: Site, weight: Tensor) -> list[int]:
    """The size of the kernel, from the attribute or from the weight's shape."""
    sizes = numbers(site, "kernel_shape", [])
    if not sizes and weight.shape is not None:
        sizes = [size for size in weight.shape[2:] if isinstance(size, int)]
    if len(sizes) != site.x.rank - 2:
        site.refuse("the size of its kernel is unknown")
    return sizes


def _prefers_convolution(weight: Tensor, group: int) -> bool:
    """Whether the weight's shape is known and its Conv the faster form."""
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


@rule("linear", "ConvTranspose")
def transposed_convolution(site: Site) -> list[Tensor | None]:
    """m_x = W^T m_y: the convolution with the same weight."""
    site.only_active(0)
    weight = site.input(1).x
    kernel = kernel_of(site, weight)
    strides, dilations = (numbers(site, name, [1] * len(kernel)) for name in ("strides", "dilations"))
    cuts = []
    for index, (taps, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True)):
        cuts.append(_cut(site, index, stride, (taps - 1) * dilation + 1))
    m = site.emitter.op(
        "Conv",
        site.m,
        weight,
        kernel_shape=kernel,
        strides=strides,
        dilations=dilations,
        pads=[begin for begin, _ in cuts] + [end for _, end in cuts],
        group=site.attribute("group", 1),
    )
    return [m]


def _cut(site: Site, index: int, stride: int, reach: int) -> tuple[int, int]:
    """How much ConvTranspose cuts off in front and behind along one axis, in ONNX Runtime."""
    rank = site.x.rank - 2
    shape, auto_pad = numbers(site, "output_shape", []), site.attribute("auto_pad", "NOTSET")
    extent, positions = known(site.x.dim(index + 2)), known(site.y.dim(index + 2))
    spread = reach + numbers(site, "output_padding", [0] * rank)[index]  # what the last place of the input reaches
    if shape and extent is None:
        site.refuse("it has an output_shape, and the input's size is known at run time only")
    elif shape and extent is not None:
        total = max(0, spread - (shape[-rank:][index] - stride * (extent - 1)))
    elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        total = max(0, spread - stride)
        if total == 0 and stride > spread and positions is not None:
            site.refuse("ONNX Runtime makes its output smaller than ONNX's shape inference (SAME, stride > kernel)")
    else:
        pads = [0] * (2 * rank) if auto_pad == "VALID" else numbers(site, "pads", [0] * (2 * rank))
        if min(pads) < 0:
            site.refuse("it has negative pads")
        return pads[index], pads[index + rank]
    less, more = total // 2, total - total // 2
    return (less, more) if auto_pad == "SAME_UPPER" else (more, less)
