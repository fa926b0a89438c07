"""Small operators of com.microsoft that are standard ones under other names, or a few of them."""

from __future__ import annotations

import numpy as np

from onnxlift.functions import cast, concat, reduce_sum, regroup, reshape, shape_of, slice_axis, split, sqrt, unsqueeze
from onnxlift.lowering.fused import silu
from onnxlift.lowering.heads import extent
from onnxlift.lowering.table import MICROSOFT, Call, lowering
from onnxlift.tensor import INT64, Tensor


@lowering("SampleOp", domain=MICROSOFT)
def sample(call: Call) -> Tensor:
    return call.input(0)


@lowering("ExpandDims", domain=MICROSOFT)
def expand_dims(call: Call) -> Tensor:
    axis = call.input(1)
    if axis.value is None:
        call.refuse("its axis is computed from the model's inputs; make it a constant")
    return unsqueeze(call.input(0), [int(axis.value.item()) % (call.input(0).rank + 1)])


@lowering("Trilu", domain=MICROSOFT)
def trilu(call: Call) -> Tensor:
    return call.emitter.op("Trilu", call.input(0), call.optional(1), upper=call.attribute("upper", 1))


@lowering("Pad", domain=MICROSOFT)
def pad(call: Call) -> Tensor:
    """Pads may be one row of a matrix."""
    pads, value = reshape(call.input(1), [-1]), call.optional(2)
    value = None if value is None else reshape(value, [])
    return call.emitter.op("Pad", call.input(0), pads, value, mode=call.attribute("mode", "constant"))


@lowering("GatherND", domain=MICROSOFT)
def gather_nd(call: Call) -> Tensor:
    return call.emitter.op("GatherND", call.input(0), cast(call.input(1), INT64))


@lowering("TorchEmbedding", domain=MICROSOFT)
def torch_embedding(call: Call) -> Tensor:
    """Rows of the weights; the other inputs matter to training only."""
    return call.emitter.op("Gather", call.input(0), call.input(1))


@lowering("Range", domain=MICROSOFT)
def range_(call: Call) -> Tensor:
    start, stop, step = (call.optional(index) for index in range(3))
    assert start is not None
    assert stop is not None
    step = call.emitter.constant(1, start.dtype) if step is None else reshape(step, [])
    return call.emitter.op("Range", reshape(start, []), reshape(stop, []), step)


@lowering("Unique", domain=MICROSOFT)
def unique(call: Call) -> list[Tensor]:
    """The values in order of appearance, the place of each element among them, and how often each is there."""
    y, _, inverse, counts = call.emitter.ops("Unique", call.input(0), sorted=0, shapes=[None] * 4)
    return [y, inverse, counts]


@lowering("GridSample", domain=MICROSOFT)
def grid_sample(call: Call) -> Tensor:
    """The standard one, which calls its modes linear and cubic."""
    mode = call.attribute("mode", "bilinear")
    return call.emitter.op(
        "GridSample",
        call.input(0),
        call.input(1),
        mode=mode.removeprefix("bi"),
        padding_mode=call.attribute("padding_mode", "zeros"),
        align_corners=call.attribute("align_corners", 0),
    )


@lowering("UnfoldTensor", domain=MICROSOFT)
def unfold(call: Call) -> Tensor:
    """Windows of `size` elements, `step` apart, along one axis: which window on that axis, the elements last."""
    x, size, step = call.input(0), call.attribute("size"), call.attribute("step", 1)
    axis = call.attribute("dim", -1) % x.rank
    starts = range(0, extent(call, x, axis) - size + 1, step)
    places = call.emitter.constant([[start + k for k in range(size)] for start in starts], INT64)
    y = call.emitter.op("Gather", x, places, axis=axis)
    order = [i for i in range(x.rank + 1) if i != axis + 1]
    return call.emitter.op("Transpose", y, perm=[*order, axis + 1])


@lowering("CDist", domain=MICROSOFT)
def pairwise_distances(call: Call) -> Tensor:
    """The distance of every row of a from every row of b, squared unless the metric is 'euclidean'."""
    metric = call.attribute("metric", "sqeuclidean")
    if metric not in ("sqeuclidean", "euclidean"):
        call.refuse(f"the metric {metric!r} is not known")
    difference = unsqueeze(call.input(0), [1]) - unsqueeze(call.input(1), [0])
    squares = reduce_sum(difference * difference, [2], keepdims=False)
    return sqrt(squares) if metric == "euclidean" else squares


@lowering("ComplexMul", "ComplexMulConj", domain=MICROSOFT)
def complex_product(call: Call) -> Tensor:
    """a b, or a times the conjugate of b; real and imaginary parts are along the last axis."""
    (a, b), (c, d) = (split(x, [1, 1], x.rank - 1) for x in (call.input(0), call.input(1)))
    real, imaginary = (a * c - b * d, a * d + b * c) if call.op == "ComplexMul" else (a * c + b * d, b * c - a * d)
    return concat([real, imaginary], real.rank - 1)


@lowering("Rfft", domain=MICROSOFT)
def real_fourier(call: Call) -> Tensor:
    """The Fourier transform of n real numbers: n/2 + 1 complex ones, as a matrix product."""
    x = call.input(0)
    _one_axis(call)
    n = extent(call, x, -1)
    waves = np.exp(-2j * np.pi * np.outer(np.arange(n), np.arange(n // 2 + 1)) / n)
    matrix = np.stack([waves.real, waves.imag], -1).reshape(n, -1)
    return regroup(x @ call.emitter.constant(matrix, x.dtype), x.rank - 1, [n // 2 + 1, 2])


@lowering("Irfft", domain=MICROSOFT)
def inverse_real_fourier(call: Call) -> Tensor:
    """Its inverse, for even n: all waves but the first and the last one count twice."""
    x = call.input(0)
    _one_axis(call)
    count = extent(call, x, -2)
    n = 2 * (count - 1)
    weights = np.where(np.arange(count) % (count - 1) == 0, 1, 2) / n
    waves = weights[:, None] * np.exp(2j * np.pi * np.outer(np.arange(count), np.arange(n)) / n)
    matrix = np.stack([waves.real, -waves.imag], 1).reshape(2 * count, n)
    return regroup(x, x.rank - 2, [2 * count]) @ call.emitter.constant(matrix, x.dtype)


def _one_axis(call: Call) -> None:
    if call.attribute("signal_ndim", 1) != 1 or call.attribute("normalized", 0) or not call.attribute("onesided", 1):
        call.refuse("only one signal axis, one-sided and not normalised, is covered")


@lowering("CausalConvWithState", domain=MICROSOFT)
def causal_conv(call: Call) -> list[Tensor]:
    """A depthwise convolution of the state (or zeros) and x along one axis, then silu if asked for; the new state."""
    if call.attribute("state_window", 0) or call.attribute("channels_last", 0) or call.attribute("ndim", 1) != 1:
        call.refuse("only one spatial axis, with the channels first and no window of states, is covered")
    x, weight, past, dilation = call.input(0), call.input(1), call.optional(3), call.attribute("dilation", 1)
    reach = (extent(call, weight, 2) - 1) * dilation
    zeros = call.emitter.ints([0, 0, reach, 0, 0, 0])
    x = call.emitter.op("Pad", x, zeros) if past is None else concat([past, x], 2)
    y = call.emitter.op("Conv", x, weight, call.optional(2), group=extent(call, weight, 0), dilations=[dilation])
    state = slice_axis(x, 2, shape_of(x, 2, 3) - reach, shape_of(x, 2, 3))
    return [silu(y) if call.attribute("activation", "none") != "none" else y, state]


@lowering("MaxpoolWithMask", "CropAndResize", "Inverse", domain=MICROSOFT)
def refused(call: Call) -> Tensor:
    reasons = {
        "MaxpoolWithMask": "its kernel is written for one internal model and does not compute a maximum in general",
        "CropAndResize": "crops at given boxes are not covered; use RoiAlign or GridSample",
        "Inverse": "the inverse of a matrix has no rule",
    }
    call.refuse(reasons[call.op])
