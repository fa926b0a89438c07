"""One-hot sequences in random order, many at a time: what `onnxlift.references` shuffles with.

A walker makes one shuffle of one sequence. All walkers take a step together, so that NumPy works on long arrays. Each
has a random stream of its own, keyed by the seed, its sequence and its number, so that the others do not matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from onnxlift.arrays import Array
from onnxlift.errors import DataError, OptionError

Method = Callable[[Array, Array, int], Array]
"""Takes letters `[M, L]`, a random key of each walker `[M]` and the number of letters; gives letters `[M, L]`."""

_CHUNK = 1 << 22  # positions that are shuffled at once: about 0.2 GB of working memory

# The generator splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))


def shuffles(method: Method, x: Array, k: int, axis: int, seed: int) -> Array:
    """K shuffles of each sequence of `x`, `[N, ...]` with its channels on `axis`: `[N, K, ...]`.

    Raises OptionError: `k` is below 1, or `x` has no such axis. DataError: a position is not one-hot.
    """
    columns = _columns(x, axis)
    if k < 1:
        raise OptionError(f"{k} shuffles are asked for: at least 1 is needed")
    length, channels = columns.shape[1:]
    one_hot = np.eye(channels + 1, channels, dtype=x.dtype)
    out = np.empty((len(x) * k, *x.shape[1:]), x.dtype)
    as_columns = np.moveaxis(out, axis, -1)
    step = max(1, _CHUNK // max(1, length))
    for start in range(0, len(out), step):
        stop = min(start + step, len(out))
        first, last = start // k, (stop - 1) // k + 1
        letters = _letters(columns, first, last, axis)
        sample, number = np.divmod(np.arange(start, stop), k)
        keys = _random(_keys(letters, seed)[sample - first], number)
        shuffled = method(letters[sample - first], keys, channels + 1)
        as_columns[start:stop] = one_hot[shuffled].reshape(as_columns[start:stop].shape)
    return out.reshape(len(x), k, *x.shape[1:])


def check_one_hot(x: Array, axis: int, *, batched: bool = True, first: int = 0) -> None:
    """Raises DataError naming the first sample and position of `x` that is neither one-hot along `axis` nor all 0.

    The other axes count positions. Without a batch axis, `x` is one sample and `axis` is counted in it. Samples are
    counted from `first`.
    """
    columns = _by_position(x, axis) if batched else _by_position(x[None], axis + 1)
    step = max(1, _CHUNK // max(1, columns.shape[1]))
    for start in range(0, len(columns), step):
        _letters(columns, start, start + step, axis, first)


def channel_axis(x: Array, axis: int) -> int:
    """`axis` counted from the front. Raises OptionError where it is not there or is the batch."""
    found = axis + x.ndim if axis < 0 else axis
    if not 0 < found < x.ndim:
        raise OptionError(f"axis {axis} cannot hold the channels: the samples have {x.ndim} axes, the first the batch")
    return found


# --------------------------------------------------------------------------------------------------- methods


def permuted(letters: Array, keys: Array, alphabet: int) -> Array:
    """Every row in random order: sorted by random numbers, whose lowest bits are the letters."""
    bits = np.uint64((alphabet - 1).bit_length())
    order = _random(keys[:, None], np.arange(letters.shape[1]))
    order >>= bits
    order <<= bits
    order |= letters
    order.sort(axis=1)
    order &= (np.uint64(1) << bits) - np.uint64(1)
    return order.astype(letters.dtype)


def euler_paths(letters: Array, keys: Array, alphabet: int) -> Array:
    """A random Euler path of the dinucleotides of every row, from its first letter to its last."""
    walkers, length = letters.shape
    if length < 4:
        return letters  # there is only one
    rows = np.arange(walkers)
    pairs = letters[:, :-1].astype(np.int64)
    pairs *= alphabet
    pairs += letters[:, 1:]
    pairs += (rows * alphabet**2)[:, None]
    counts: Array = np.bincount(pairs.ravel(), minlength=walkers * alphabet**2)
    place: Array = np.zeros(counts.size, np.int64)  # of each dinucleotide, anywhere in its row
    place[pairs] = np.arange(length - 1)
    counts, place = counts.reshape(-1, alphabet, alphabet), place.reshape(-1, alphabet, alphabet)

    # The edges out of each letter in random order; from high bits to low: the letter, random ones, the next letter.
    # The edge that is to be the last has all random bits set.
    bits = np.uint64((alphabet - 1).bit_length())
    low = (np.uint64(1) << bits) - np.uint64(1)
    high = np.uint64(64) - bits
    edges = _random(keys[:, None], np.arange(length - 1))
    edges >>= bits + bits
    edges <<= bits
    edges |= letters[:, 1:]
    edges |= letters[:, :-1].astype(np.uint64) << high
    exits = _exit_tree(counts, letters[:, -1], keys, length - 1)
    walker, letter = np.nonzero(exits >= 0)
    edges[walker, place[walker, letter, exits[walker, letter]]] |= ~low & ((np.uint64(1) << high) - np.uint64(1))
    edges.sort(axis=1)
    edges &= low
    following = edges.view(np.int64).ravel()

    degree = counts.sum(axis=2)
    next_edge = (np.cumsum(degree, axis=1) - degree + (rows * (length - 1))[:, None]).ravel()
    path = np.empty((length, walkers), letters.dtype)
    here = letters[:, 0].astype(np.int64)
    path[0] = here
    for t in range(1, length):
        out_of = rows * alphabet + here
        edge = next_edge[out_of]
        next_edge[out_of] = edge + 1
        here = following[edge]
        path[t] = here
    return np.ascontiguousarray(path.T)


def _exit_tree(counts: Array, root: Array, keys: Array, first: int) -> Array:
    """The letter that the last edge out of each letter leads to, `[M, A]`; -1 for the root and letters not there.

    `counts`: of the dinucleotides, `[M, A, A]`; `root`: the last letter, `[M]`; `first`: number of the first random
    number to take from each key's stream.

    Edges are drawn at random until they form a tree to the root. Where they do not, only those on cycles are drawn
    again, which gives the tree the same distribution (cycle popping: Propp and Wilson, How to get a perfectly random
    sample from a generic Markov chain ..., 1998). Drawing all of them again would take for ever for repeats such as
    ACAC...ACGTGT...GTN, which have several cycles that are hardly ever left.
    """
    alphabet = counts.shape[1]
    every = np.arange(alphabet)
    ways = counts * (every[:, None] != every)  # an edge back to the letter itself is a cycle
    ways[np.arange(len(root)), root] = 0
    below = ways.cumsum(axis=2)
    total = below[:, :, -1]
    ahead = np.repeat(root.astype(np.int64)[:, None], alphabet, axis=1)
    walker, letter = np.nonzero(total)
    attempt = 0
    while walker.size:
        draw = _random(keys[walker], first + attempt * alphabet + letter)
        edge = ((draw >> np.uint64(11)) * 2.0**-53 * total[walker, letter]).astype(np.int64)
        ahead[walker, letter] = (below[walker, letter] <= edge[:, None]).sum(axis=1)
        unsettled = np.unique(walker)
        far = ahead[unsettled]
        for _ in range(alphabet.bit_length()):  # so many steps that all are at the root or on a cycle
            far = np.take_along_axis(far, far, axis=1)
        cyclic = np.zeros(far.shape, dtype=bool)
        np.put_along_axis(cyclic, far, True, axis=1)
        cyclic[np.arange(unsettled.size), root[unsettled]] = False
        walker, letter = np.nonzero(cyclic)
        walker = unsettled[walker]
        attempt += 1
    ahead[total == 0] = -1
    return ahead


# ------------------------------------------------------------------------------------ letters, random numbers


def _columns(x: Array, axis: int) -> Array:
    """`x` as `[N, length, channels]`, a view. Raises OptionError where it holds no sequences."""
    axis = channel_axis(x, axis)
    places = [extent for i, extent in enumerate(x.shape) if i not in (0, axis)]
    if sum(extent != 1 for extent in places) > 1 or not places or not x.shape[axis]:
        raise OptionError(
            f"samples of shape {list(x.shape[1:])} with channels on axis {axis} are no sequences: one further axis "
            "counts the positions, and others must have extent 1"
        )
    return _by_position(x, axis)


def _by_position(x: Array, axis: int) -> Array:
    """`x` as `[N, positions, channels]`, a view where it can be one."""
    columns = np.moveaxis(x, axis, -1)
    return columns.reshape(len(x), math.prod(columns.shape[1:-1]), x.shape[axis])


def _letters(columns: Array, start: int, stop: int, axis: int, number: int = 0) -> Array:
    """The channel that is 1 in each column of some samples, or the number of channels where all are 0.

    `[n, L]`, of a small dtype. `number`: of the first sample of all. Raises DataError for any other column.
    """
    part = columns[start:stop]
    channels = part.shape[2]
    letters = np.full(part.shape[:2], channels, np.uint8 if channels < 256 else np.uint32)
    good = np.ones(part.shape[:2], dtype=bool)
    for channel in range(channels):
        one = part[:, :, channel] == 1
        good &= (one & (letters == channels)) | (part[:, :, channel] == 0)
        np.copyto(letters, channel, where=one)
    if not good.all():
        sample, position = np.argwhere(~good)[0]
        values = [f"{value:.6g}" for value in part[sample, position, :8].tolist()] + ["..."] * (channels > 8)
        raise DataError(
            f"sample {number + start + sample} is not one-hot along axis {axis}: position {position} has "
            f"[{', '.join(values)}], where a single 1, or only 0 for an unknown letter, is expected"
        )
    return letters


def _keys(letters: Array, seed: int) -> Array:
    """A random key for each row of `letters`, which depends on the seed and on the letters: uint64, `[n]`."""
    length = letters.shape[1]
    codes = np.arange(length, dtype=np.uint64)[:, None] << np.uint64(32)
    codes = codes | np.arange(int(letters.max(initial=0)) + 1, dtype=np.uint64)
    hashes = _mixed(codes + _GAMMA)[np.arange(length), letters].sum(axis=1, dtype=np.uint64)
    return _mixed(hashes + _mixed(np.array([int(seed) % 2**64], np.uint64)))


def _random(keys: Array, numbers: Array) -> Array:
    """The random numbers with these numbers, from 0, of the streams with these keys: uint64, broadcast."""
    return _mixed(keys + (numbers.astype(np.uint64) + np.uint64(1)) * _GAMMA)


def _mixed(z: Array) -> Array:
    """The finalizer of splitmix64, in place: a bijection of uint64 in which each bit depends on all the others."""
    for shift, factor in _MIX:
        z ^= z >> shift
        z *= factor
    z ^= z >> np.uint64(31)
    return z
