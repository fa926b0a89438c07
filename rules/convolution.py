"""Convolutions: affine, m_x = W^T m_y with the very same weight tensor (LIFTPAD 2.3.1, DeepLIFT "Linear rule")."""

from __future__ import annotations

from collections.abc import Sequence

from onnxlift.registry import rule
from onnxlift.rules.windows import LAST, Window, fit, known, numbers, transposed, windows
from onnxlift.site import Site
from onnxlift.tensor import Tensor, reshape, transpose

FEW_CHANNELS = 12
"""Below this many input channels per group ONNX Runtime's Conv is slower than its ConvTranspose (4 times at 1 to 4
channels, 0.6 to 0.9 at 16 and more; depthwise 0.1 to 0.25: docs/performance.md)."""


@rule("linear", "Conv")
def convolution(site: Site) -> list[Tensor | None]:
    """m_x = W^T m_y: the transposed convolution; at stride 1 the convolution with W transposed and flipped."""
    site.only_active(0)
    weight = site.input(1).x
    spans = windows(site, _kernel(site, weight))
    group = site.attribute("group", 1)
    mirrored = _mirrored_pads(spans)
    if mirrored is not None and _prefers_convolution(weight, group):
        return [_convolve(site, _mirror(weight, group), spans, mirrored, group)]
    return [transposed(site, site.m, weight, spans, group)]


def _kernel(site: Site, weight: Tensor) -> list[int]:
    shape = weight.shape[2:] if weight.shape is not None else (None,)
    sizes = [size for size in numbers(site, "kernel_shape", []) or shape if isinstance(size, int)]
    if len(sizes) != site.x.rank - 2:
        site.refuse("the size of its kernel is unknown")
    return sizes


def _mirrored_pads(spans: Sequence[Window]) -> list[int] | None:
    """The pads of the convolution with the mirrored kernel; None where the transpose is no convolution."""
    ends = [span.begin for span in spans], [span.end for span in spans]
    sizes = [span.reach - 1 - size for side in ends for span, pad in zip(spans, side) if (size := known(pad)) is not None]
    ...
