"""Sliding windows, the geometry of convolutions and pools. No rule of its own.

Along a spatial axis, position j of the output sees the places `j * stride + t * dilation - begin` of the input, for
every tap t of the kernel. All extents are int64 tensors of shape [1]: constants, and folded, where they are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxlift.functions import concat, maximum
from onnxlift.site import Site
from onnxlift.tensor import FLOAT32, Tensor

LAST = 2**63 - 1


@dataclass(frozen=True)
class Window:
    """The windows along one axis. `begin`, `end`: the padding; `extent` of the input; `positions` of the output."""

    kernel: int
    stride: int
    dilation: int
    begin: Tensor
    end: Tensor
    extent: Tensor
    positions: Tensor

    @property
    def reach(self) -> int:
        """Places from the first tap to the last."""
        return (self.kernel - 1) * self.dilation + 1

    @property
    def excess(self) -> Tensor:
        """How far the last window reaches beyond the input; negative where no window reaches the last places."""
        if self.stride == 1:
            return self.end
        return (self.positions - 1) * self.stride + (self.reach - self.begin - self.extent)

    def transposed_padding(self) -> tuple[int, int]:
        """The `pads` (both ends alike) and `output_padding` of a ConvTranspose that keeps every place of the input."""
        begin, end, excess = known(self.begin), known(self.end), known(self.excess)
        if begin is None or end is None:
            return 0, 0
        if excess is None:
            return min(begin, end), self.stride - 1
        pad = max(0, begin if begin - excess < self.stride else excess)
        return pad, min(max(pad - excess, 0), self.stride - 1)


def known(size: Tensor) -> int | None:
    """A size as an int, None where it is known at run time only."""
    return None if size.value is None else int(size.value.item())


def numbers(site: Site, attribute: str, default: Sequence[int]) -> list[int]:
    """A list of ints; absent and empty mean the default."""
    return [int(number) for number in site.attribute(attribute, None) or default]


def windows(site: Site, kernel: Sequence[int]) -> list[Window]:
    """The windows of a Conv or a pool along its spatial axes."""
    rank = len(kernel)
    strides, dilations = numbers(site, "strides", [1] * rank), numbers(site, "dilations", [1] * rank)
    found = []
    for index, (taps, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True)):
        extent, positions = site.x.dim(index + 2), site.y.dim(index + 2)
        begin, end = _padding(site, index, taps, stride, extent)
        window = Window(taps, stride, dilation, begin, end, extent, positions)
        expected = _positions(window, bool(site.attribute("ceil_mode", 0)))
        if expected is not None and known(positions) not in (None, expected):
            site.refuse(
                f"its output has {expected} places along axis {index + 2} in ONNX Runtime, "
                f"and {known(positions)} by ONNX's shape inference (ceil_mode, or SAME padding with a dilation)"
            )
        found.append(window)
    return found


def _positions(window: Window, ceil: bool) -> int | None:
    """How many windows ONNX Runtime places, where the sizes are known."""
    extent, begin, end = known(window.extent), known(window.begin), known(window.end)
    if extent is None or begin is None or end is None:
        return None
    room = extent + begin + end - window.reach
    count = (-(-room // window.stride) if ceil else room // window.stride) + 1
    return count - 1 if ceil and (count - 1) * window.stride >= extent + begin else count


def _padding(site: Site, index: int, kernel: int, stride: int, extent: Tensor) -> tuple[Tensor, Tensor]:
    """What ONNX Runtime pads in front and behind. SAME means ceil(extent / stride) windows.

    Its pools give SAME windows less than no padding where the stride is larger than the kernel, and disregard the
    dilation; its Conv refuses SAME with a dilation.
    """
    match site.attribute("auto_pad", "NOTSET"):
        case "SAME_UPPER" | "SAME_LOWER" as same:
            if stride == 1:
                total = site.emitter.ints([kernel - 1])
            else:
                total = ((extent + (stride - 1)) / stride - 1) * stride + kernel - extent
                total = total if site.op.endswith("Pool") else maximum(total, 0)
                if stride > kernel and max(numbers(site, "dilations", [1])) > 1:
                    site.refuse("it has SAME padding with dilated windows and a stride larger than the kernel")
            begin = (total if same == "SAME_UPPER" else total + 1) / 2
            return begin, total - begin
        case "VALID":
            return site.emitter.ints([0]), site.emitter.ints([0])
        case _:
            pads = numbers(site, "pads", [0] * (2 * (site.x.rank - 2)))
            if min(pads) < 0:
                site.refuse("it has negative pads")
            return site.emitter.ints([pads[index]]), site.emitter.ints([pads[index + site.x.rank - 2]])


def mirrored_pads(spans: Sequence[Window]) -> list[int] | None:
    """At stride 1 the transpose is a sliding window too: its padding. None where it is not."""
    if any(span.stride != 1 for span in spans):
        return None
    sizes = [span.reach - 1 - span.begin for span in spans] + [span.reach - 1 - span.end for span in spans]
    pads = [pad for size in sizes if (pad := known(size)) is not None and pad >= 0]
    return pads if len(pads) == len(sizes) else None


def transposed(site: Site, m: Tensor, weight: Tensor, spans: Sequence[Window], group: int = 1) -> Tensor:
    """W^T m: every position adds weight[tap] times its m to the places that it saw.

    Symmetric `pads` only, because ONNX Runtime's CUDA provider has no ConvTranspose with asymmetric ones; the rest is
    cut or padded by `fit`.
    """
    pads, extra = zip(*(span.transposed_padding() for span in spans), strict=True)
    full = site.emitter.op(
        "ConvTranspose",
        m,
        weight,
        kernel_shape=[span.kernel for span in spans],
        strides=[span.stride for span in spans],
        dilations=[span.dilation for span in spans],
        pads=[*pads, *pads],
        output_padding=list(extra) if any(extra) else None,
        group=group,
    )
    before = [pad - span.begin for pad, span in zip(pads, spans, strict=True)]
    after = [pad - span.excess - more for pad, span, more in zip(pads, spans, extra, strict=True)]
    return fit(full, before, after)


def are_tiles(spans: Sequence[Window]) -> bool:
    """Whether the windows lie side by side, along few enough axes for `repeated`."""
    return len(spans) <= 2 and all(span.kernel == span.stride and span.dilation == 1 for span in spans)


def repeated(tensor: Tensor, spans: Sequence[Window]) -> Tensor:
    """A number of every tile repeated over it; what tiles have beyond the input, in the padding, is there too."""
    scales = tensor.emitter.constant([1, 1, *(span.kernel for span in spans)], FLOAT32)
    return tensor.emitter.op(
        "Resize",
        tensor,
        None,
        scales,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def cut(tensor: Tensor, spans: Sequence[Window]) -> Tensor:
    """What tiles have beyond the input cut off, and zeros where none reaches."""
    return fit(tensor, [0 - span.begin for span in spans], [0 - span.excess for span in spans])


def fit(tensor: Tensor, before: Sequence[Tensor], after: Sequence[Tensor], fill: float | None = None) -> Tensor:
    """Add so many zeros (or `fill`) in front of and behind the spatial axes of a tensor; cut where it is negative."""
    emitter = tensor.emitter
    sizes = [known(size) for size in (*before, *after)]
    if all(size == 0 for size in sizes):
        return tensor
    if all(size is not None and size <= 0 for size in sizes):
        starts = [-(size or 0) for size in sizes[: len(before)]]
        stops = [size or LAST for size in sizes[len(before) :]]
        axes = range(2, 2 + len(before))
        return emitter.op("Slice", tensor, *map(emitter.ints, (starts, stops, axes)))
    none = emitter.ints([0, 0])
    value = None if fill is None else emitter.constant(fill, tensor.dtype)
    return emitter.op("Pad", tensor, concat([none, *before, none, *after], axis=0), value)
