"""MaxPool, by the cross-max rule (rules/maximum.py): where the maximum of every window lies, and what it sends there.

ONNX Runtime's MaxPool takes 20 times as long with its indices as without them. Windows of a few known places are
therefore looked through tap by tap: what tap t of all windows sees is a strided slice of x, and the first tap that
shows y is the maximum. What windows side by side send back is repeated over each of them and kept at the winner; in
others it is scattered, and adds up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import product

import numpy as np

from onnxlift.errors import Unsupported
from onnxlift.functions import arange, cast, maximum, regroup, shape_of, split, unsqueeze, where
from onnxlift.rules.maximum import INT32, Routes, maxima, winner_of_rows
from onnxlift.rules.windows import LAST, Window, are_tiles, cut, fit, known, numbers, repeated, windows
from onnxlift.signed import Parts
from onnxlift.site import Site
from onnxlift.tensor import INT64, Emitter, Tensor, limits

UINT8 = np.dtype(np.uint8)
MOST_TAPS = 25
"""Of a window that is looked through tap by tap: 5 x 5. A few nodes are written for each."""


def _parts(site: Site, variant: str) -> list[Parts]:
    found = _routes(site, variant)
    return [Parts(*(site.y.like(found.forward(_planes(part))) for part in site.x.parts))]


@maxima("MaxPool", parts=_parts)
def max_pool(site: Site, variant: str) -> list[Tensor]:
    """Windows of any shape; what a place wins in several of them adds up."""
    return [site.x.like(_routes(site, variant).back(_planes(site.m)))]


def _planes(t: Tensor) -> Tensor:
    """A channel of a sample as one row."""
    return regroup(t, 2, [-1])


def _routes(site: Site, variant: str) -> Routes:
    """From the windows to the places of the planes."""
    planes, y, spans = site.x.map(_planes), site.y.map(_planes), _spans(site)
    if spans is None:
        places = site.x.map(partial(_indices, site))
        found = winner_of_rows(site, variant, planes, y, places, 2)
        return Routes(planes, 2, found.place(places.x, places.full_r), found.factor)
    taps = site.x.map(partial(_first_tap, spans), site.y)
    places = taps.map(partial(_place, spans))
    found = winner_of_rows(site, variant, planes, y, places, 2)
    place = found.place(places.x, places.full_r)
    if site.x.dtype.itemsize > 4 or not are_tiles(spans):  # ONNX Runtime has no Resize of float64
        return Routes(planes, 2, place, found.factor)
    return Tiles(planes, 2, place, found.factor, spans, found.place(taps.x, taps.full_r))


def _indices(site: Site, x: Tensor) -> Tensor:
    """The first maximum of every window as an index into its plane, [N, C, windows]: the operator's own indices."""
    attributes = {name: value for name, value in site.attributes.items() if name != "storage_order"}
    outputs = x.emitter.ops("MaxPool", x, shapes=[None, None], dtypes=[x.dtype, INT64], **attributes)
    n, c, *sizes = (shape_of(x, axis, axis + 1) for axis in range(x.rank))
    area = reduce(Tensor.__mul__, sizes)
    plane = unsqueeze(arange(n), [1]) * c + arange(c)
    assert x.shape is not None
    index = x.emitter.op("Reshape", outputs[1], x.emitter.ints([0, 0, -1]), shape=(*x.shape[:2], None))
    index = x.emitter.op("Sub", index, unsqueeze(plane * area, [2]), shape=index.shape)
    return maximum(index, 0)  # a kernel may call it -1 in a window of minus infinity


# --- tap by tap ------------------------------------------------------------------------------------------------------


def _spans(site: Site) -> list[Window] | None:
    """The windows, where they are known and have few places; None elsewhere."""
    kernel = numbers(site, "kernel_shape", [])
    if math.prod(kernel) > MOST_TAPS:
        return None
    try:
        spans = windows(site, kernel)
    except Unsupported:  # ONNX Runtime places other windows than ONNX: its own indices tell
        return None
    sizes = [known(size) for span in spans for size in (span.begin, span.end, span.extent, span.positions)]
    if None in sizes or any(not any(_is_inside(span, tap) for tap in range(span.kernel)) for span in spans):
        return None
    return spans


def _int(size: Tensor) -> int:
    number = known(size)
    assert number is not None
    return number


def _is_inside(span: Window, tap: int) -> bool:
    """Whether a tap of every window sees a place of the input, none of its padding."""
    first = tap * span.dilation - _int(span.begin)
    return first >= 0 and first + (_int(span.positions) - 1) * span.stride < _int(span.extent)


def _first_tap(spans: Sequence[Window], x: Tensor, y: Tensor) -> Tensor:
    """The number of the first tap that shows y, uint8, [N, C, windows].

    In half precision it need not show y exactly: where ONNX Runtime has no kernels for that, it computes the pool from
    numbers that it has not rounded yet. There the first tap is found that is larger than all before it.
    """
    emitter = x.emitter
    taps = list(product(*(range(span.kernel) for span in spans)))
    inside = max(index for index, tap in enumerate(taps) if all(map(_is_inside, spans, tap)))
    number = emitter.constant(inside, UINT8)  # for a window of NaN, where none is equal
    if x.dtype.itemsize < 4:
        top = emitter.constant(-limits(x).largest, x.dtype)
        for index, tap in enumerate(taps):
            seen = _seen(spans, tap, x)
            larger = seen > top
            number = where(larger, emitter.constant(index, UINT8), number)
            top = where(larger, seen, top)
    else:
        largest = _largest_until if _fill(spans) else _seen
        for index in reversed(range(len(taps))):
            if not index or index != inside or index < len(taps) - 1:  # the last one need not be looked for
                number = where(largest(spans, taps[index], x).equals(y), emitter.constant(index, UINT8), number)
    number.shape = (*(x.shape or ())[:2], *(_int(span.positions) for span in spans))
    return _planes(number)


def _seen(spans: Sequence[Window], tap: Sequence[int], x: Tensor) -> Tensor:
    """What a tap of every window sees, in the shape of the windows; NaN in the padding."""
    shifts, starts = zip(
        *(divmod(t * span.dilation - _int(span.begin), span.stride) for span, t in zip(spans, tap, strict=True)),
        strict=True,
    )
    found = _every(x, [span.stride for span in spans], starts)
    lengths = [-(-(_int(span.extent) - start) // span.stride) for span, start in zip(spans, starts, strict=True)]
    before = [x.emitter.ints([-shift]) for shift in shifts]
    after = [
        x.emitter.ints([_int(span.positions) + shift - length])
        for span, shift, length in zip(spans, shifts, lengths, strict=True)
    ]
    return fit(found, before, after, math.nan)


def _every(x: Tensor, strides: Sequence[int], starts: Sequence[int]) -> Tensor:
    """x[..., start::stride, ...] along the spatial axes.

    Of squares that fill the image all starts are taken apart at once, in one pass over x; else axis by axis, so that
    starts share what is cut, and ONNX Runtime takes half the time. Slice has kernels for half precision, and rounds.
    """
    emitter, (stride, *others), shape = x.emitter, strides, x.shape or ()
    channels, *extents = shape[1:]
    square = others == [stride] and stride > 1 and all(isinstance(size, int) and not size % stride for size in extents)
    if square and isinstance(channels, int) and x.dtype.itemsize >= 4:
        apart = emitter.op("SpaceToDepth", x, blocksize=stride, shape=(shape[0], channels * stride**2, None, None))
        return split(apart, [channels] * stride**2, 1)[starts[0] * stride + starts[1]]
    for axis, (start, step) in enumerate(zip(starts, strides, strict=True), start=2):
        if start or step > 1:
            x = emitter.op(
                "Slice", x, *map(emitter.ints, ([start], [LAST], [axis], [step])), shape=(None,) * len(shape)
            )
    return x


def _fill(spans: Sequence[Window]) -> bool:
    """Whether the windows are tiles that begin at the first place and lie within the input."""
    return are_tiles(spans) and all(_int(span.begin) == 0 and _int(span.excess) <= 0 for span in spans)


def _largest_until(spans: Sequence[Window], tap: Sequence[int], x: Tensor) -> Tensor:
    """The maximum of the rows and columns of every tile up to those of a tap.

    It shows y from the first maximum on, row by row, and is a pool: ONNX Runtime runs it in all threads, and slices in
    one.
    """
    kernel, strides = [t + 1 for t in tap], [span.stride for span in spans]
    found = x.emitter.op("MaxPool", x, kernel_shape=kernel, strides=strides)
    lengths = [(_int(span.extent) - size) // span.stride + 1 for span, size in zip(spans, kernel, strict=True)]
    after = [x.emitter.ints([_int(span.positions) - length]) for span, length in zip(spans, lengths, strict=True)]
    return fit(found, [x.emitter.ints([0])] * len(spans), after)


def _place(spans: Sequence[Window], taps: Tensor) -> Tensor:
    """Taps as places of the plane, int32, [N, C, windows]: begin of the window + sum of t_a c_a over the axes a.

    With K_a taps behind axis a, q_a = tap // K_a and t_a = q_a - q_(a-1) k_a: the sum of q_a (c_a - k_(a+1) c_(a+1)).
    """
    extents = [_int(span.extent) for span in spans]
    steps = [math.prod(extents[axis + 1 :]) for axis in range(len(spans))]
    reaches = [span.dilation * step for span, step in zip(spans, steps, strict=True)]
    behind = [*(span.kernel * reach for span, reach in zip(spans[1:], reaches[1:], strict=True)), 0]
    number, count = cast(taps, INT32), 1
    place: Tensor = _begins(taps.emitter, spans, steps)
    for span, factor in reversed(list(zip(spans, map(int.__sub__, reaches, behind), strict=True))):
        if factor:
            place = (number if count == 1 else number / count) * factor + place
        count *= span.kernel
    return place


def _begins(emitter: Emitter, spans: Sequence[Window], steps: Sequence[int]) -> Tensor:
    """Where every window begins in the plane, [windows]; in the padding that may be in front of it."""
    begins = [
        (np.arange(_int(span.positions)) * span.stride - _int(span.begin)) * step
        for span, step in zip(spans, steps, strict=True)
    ]
    return emitter.constant(reduce(np.add.outer, begins).ravel(), INT32)


@dataclass(frozen=True)
class Tiles(Routes):
    """Of windows side by side: the winner's tap in each of them, in the shape of `place`."""

    spans: Sequence[Window]
    tap: Tensor

    def back(self, m: Tensor) -> Tensor:
        """m of a window repeated over it and kept at the winner, in the shape of the pool's input."""
        emitter, kernel = m.emitter, [span.kernel for span in self.spans]
        positions = [_int(span.positions) for span in self.spans]
        numbers = emitter.constant(np.arange(math.prod(kernel)).reshape(1, 1, *kernel), m.dtype)
        tap, share = (
            repeated(regroup(t, 2, positions), self.spans) for t in (cast(self.tap, m.dtype), m * self.factor)
        )
        at_winner = tap.equals(emitter.op("Tile", numbers, emitter.ints([1, 1, *positions])))
        return cut(share * cast(at_winner, m.dtype), self.spans)
