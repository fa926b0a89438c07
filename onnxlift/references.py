"""References computed from data: what an input may be compared with (METHOD section 8). NumPy only.

Arrays of samples have the batch in front. `constant`, `frequencies` and `mean` give one row `[1, ...]` for all samples,
`background` K rows; these can be stored in an explainer. `tokens` and `blur` give a row for each sample, `shuffle` and
`dinuc_shuffle` K rows for each, `[N, K, ...]`; these are for an explainer that takes "paired" or "grouped" references.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from onnxlift.arrays import Array
from onnxlift.errors import DataError, OptionError
from onnxlift.shuffling import channel_axis, euler_paths, permuted, shuffles

SUM_TOLERANCE = 1e-3
"""How far frequencies may add up to something else than 1: they are often written with three digits."""

_BLUR_REACH = 4  # standard deviations; what lies beyond weighs 6e-5


# ------------------------------------------------------------------------------------------ rows for all samples


def constant(x: ArrayLike, value: float) -> Array:
    """One number everywhere: `[1, ...]` for samples like `x`, `[N, ...]`.

    The dtype is that of `x`, or float64 where `x` holds integers. Raises OptionError for a number that is not finite.
    """
    data = _samples(x)
    if not math.isfinite(value):
        raise OptionError(f"a constant reference must be a finite number, not {value}")
    return np.full((1, *data.shape[1:]), value, _float_dtype(data))


def frequencies(x: ArrayLike, values: Sequence[float] | None = None, *, axis: int = 1) -> Array:
    """The same frequency of each channel at every position: `[1, ...]` for samples like `x`, `[N, ...]`.

    Args:
        x: samples with their channels on `axis`, which counts the batch as 0.
        values: a frequency for each channel; default: those of `x`, over all samples and positions. Positions without
            a base (all channels 0) do not count.

    Raises:
        OptionError: the axis is not there, or the values do not fit (`check_frequencies`).
        DataError: there is nothing to count in `x`, or it has negative numbers.
    """
    data = _samples(x)
    axis = channel_axis(data, axis)
    if values is None:
        totals = data.sum(axis=tuple(set(range(data.ndim)) - {axis}), dtype=np.float64)
        if not (data.size and np.all(data >= 0) and 0 < totals.sum() < np.inf):
            raise DataError("frequencies are measured from one-hot samples: numbers >= 0, and not only zeros")
        row = totals / totals.sum()
    else:
        row = np.array(values, dtype=np.float64)
        check_frequencies(row, data.shape[axis])
    shape = [1] * data.ndim
    shape[axis] = -1
    return np.broadcast_to(row.reshape(shape), (1, *data.shape[1:])).astype(_float_dtype(data))


def check_frequencies(values: ArrayLike, channels: int | None = None) -> None:
    """Raises OptionError where `values` are no frequencies: as many as there are channels, >= 0, adding up to 1."""
    row = np.asarray(values, dtype=np.float64)
    if channels is not None and row.shape != (channels,):
        raise OptionError(f"{row.size} frequencies are given for {channels} channels: give one for each")
    if not np.all(row >= 0) or not abs(row.sum() - 1) <= SUM_TOLERANCE * (1 + 1e-9):
        raise OptionError(f"the frequencies {row.tolist()} must be >= 0 and add up to 1, not {row.sum():.6g}")


def mean(data: ArrayLike) -> Array:
    """The mean of samples `[N, ...]` as one row `[1, ...]`, summed in float64.

    The dtype is that of the data, or float64 where these are integers. Raises DataError where there are no samples.
    """
    samples = _samples(data)
    if not len(samples):
        raise DataError(f"there are no samples to take the mean of: the shape is {list(samples.shape)}")
    row: Array = samples.mean(axis=0, keepdims=True, dtype=np.float64)
    return row.astype(_float_dtype(samples))


def background(data: ArrayLike, k: int | None = None, *, seed: int = 0) -> Array:
    """K different rows of the samples `[N, ...]`, drawn at random and in their order; by default all of them.

    Raises OptionError where there are fewer than `k`, or `k` is below 1; DataError where there are no samples.
    """
    samples = _samples(data)
    if not len(samples):
        raise DataError(f"there are no samples to choose from: the shape is {list(samples.shape)}")
    if k is None:
        return samples
    if not 1 <= k <= len(samples):
        raise OptionError(f"{k} background rows are asked for: choose 1 to {len(samples)}, as many as there are")
    rows = np.random.default_rng(int(seed) % 2**64).choice(len(samples), size=k, replace=False)
    return samples[np.sort(rows)]


# ------------------------------------------------------------------------------------------ rows for each sample


def tokens(ids: ArrayLike, token: int, *, keep: Sequence[int] = ()) -> Array:
    """Every id replaced by one, the padding or the mask token: `[N, ...]` for samples of that shape and dtype.

    `keep`: ids that stay where they are, as those that open and close a sentence. Raises DataError where `ids` are no
    integers.
    """
    data = np.asarray(ids)
    if data.dtype.kind not in "iu":
        raise DataError(f"tokens are integers, but the samples have dtype {data.dtype}")
    return np.where(np.isin(data, list(keep)), data, np.asarray(token, data.dtype))


def blur(x: ArrayLike, sigma: float, *, axes: Sequence[int] = (-2, -1)) -> Array:
    """Every sample of `x`, `[N, ...]`, blurred along `axes` by a Gaussian of standard deviation `sigma` in pixels.

    Beyond an edge the image goes on with its last pixel; the Gaussian is cut at 4 sigma. It is computed in float64;
    the result has the dtype of `x`, rounded where that is an integer. A sample's result does not depend on the others.

    Raises OptionError: `sigma` is not above 0 or is above the extents, or an axis is not there or is the batch.
    """
    data = _samples(x)
    numbers = [axis + data.ndim if axis < 0 else axis for axis in axes]
    if not numbers or not all(0 < axis < data.ndim for axis in numbers):
        raise OptionError(
            f"cannot blur axes {list(axes)} of samples with {data.ndim} axes, the first of them the batch"
        )
    widest = max(data.shape[axis] for axis in numbers)
    if not 0 < sigma <= widest:
        raise OptionError(f"the sigma of a blur must be above 0 and at most {widest}, the image's extent, not {sigma}")
    with np.errstate(over="ignore"):
        weights = np.exp(-0.5 * (np.arange(math.ceil(_BLUR_REACH * sigma) + 1) / sigma) ** 2)
    weights /= weights[0] + 2 * weights[1:].sum()
    out = np.empty_like(data)
    for source, target in zip(data, out, strict=True):
        image = source.astype(np.float64)
        for axis in numbers:
            image = _blurred(image, weights, axis - 1)
        target[...] = image if data.dtype.kind == "f" else np.rint(image)
    return out


def _blurred(image: Array, weights: Array, axis: int) -> Array:
    """`image` convolved along one axis with a symmetric kernel, of which `weights` are the middle and one side."""
    length, reach = image.shape[axis], len(weights) - 1
    places = np.arange(length)
    out = weights[0] * image
    for j in range(1, reach + 1):
        # Beyond the edges on both sides, all places are the edge.
        before, after = np.maximum(places - j, 0), np.minimum(places + j, length - 1)
        out += weights[j] * (np.take(image, before, axis) + np.take(image, after, axis))
    return np.asarray(out)


def shuffle(x: ArrayLike, k: int = 1, *, axis: int = 1, seed: int = 0) -> Array:
    """Sequences with their positions in random order: `[N, K, ...]`, all orders equally likely.

    Arguments, guarantees and errors are those of `dinuc_shuffle`.
    """
    return shuffles(permuted, _samples(x), k, axis, seed)


def dinuc_shuffle(x: ArrayLike, k: int = 1, *, axis: int = 1, seed: int = 0) -> Array:
    """Random sequences with the dinucleotides of each sequence of `x`: `[N, K, ...]`, in the dtype of `x`.

    Every shuffle has exactly the dinucleotide counts of its sequence, and its first and last letter, and all such
    sequences are equally likely. They are the Euler paths of the graph with an edge for each dinucleotide (Altschul and
    Erickson 1985): random last edges out of every letter that form a tree to the last letter, the other edges in
    random order.

    The result is a function of the seed and of the sequence alone: it does not depend on the other samples, on the
    place among them, on `k` (the first shuffles of more are the same) or on the platform. Equal sequences therefore
    have equal shuffles.

    Args:
        x: one-hot sequences, `[N, channels, length]`, or with the channels on another `axis` (the batch is 0); further
            axes must have extent 1. Any number of channels; a position where all are 0 (an unknown base) is one more
            letter.
        k: how many shuffles of each sequence.
        seed: an integer, taken modulo 2^64; others give other shuffles.

    Raises:
        OptionError: `k` is below 1, or `axis` is not there. DataError: a position is not one-hot.
    """
    return shuffles(euler_paths, _samples(x), k, axis, seed)


def _samples(x: ArrayLike) -> Array:
    """`x` as an array of numbers with a batch axis."""
    data: Array = np.asarray(x)
    if data.dtype.kind not in "fiub" or not data.ndim:
        raise DataError(f"samples must be an array of numbers with the batch in front, not {data.dtype}")
    return data


def _float_dtype(x: Array) -> np.dtype[Any]:
    return x.dtype if x.dtype.kind == "f" else np.dtype(np.float64)
