"""The oracle's interpolation, Fourier transforms and multilinear functions (see oracle.py): loops and unit vectors.

Interpolation weights are kernels of the distance, folded onto the image at its borders. Shapley values are taken by
their definition, the mean over all orders in which the players may change. Importing the module fills the tables of
oracle.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import oracle
from oracle import Array, Multipliers, Node, Site, probe

STEP = 1e-7  # of a derivative by a difference to the right


def orders(count: int) -> list[tuple[int, ...]]:
    return list(itertools.permutations(range(count)))


def shapley(f: Callable[[Sequence[bool]], Array], count: int) -> list[Array]:
    """Each player's share of f(all True) - f(all False): what its change brings, averaged over all orders."""
    total: list[Any] = [0.0] * count
    known: dict[tuple[bool, ...], Array] = {}

    def value(state: Sequence[bool]) -> Array:
        if tuple(state) not in known:
            known[tuple(state)] = f(state)
        return known[tuple(state)]

    for order in orders(count):
        state = [False] * count
        for player in order:
            before = value(state)
            state[player] = True
            total[player] = total[player] + (value(state) - before) / math.factorial(count)
    return total


# --- interpolation ---------------------------------------------------------------------------------------------------


def keys(s: float, a: float = -0.75) -> float:
    """Keys' cubic convolution kernel."""
    s = abs(s)
    if s <= 1:
        return ((a + 2) * s - (a + 3)) * s * s + 1
    return a * (((s - 5) * s + 8) * s - 4) if s < 2 else 0.0


def fold(place: int, extent: int, border: str, corners: bool) -> int | None:
    """The place of the image that stands at `place`, bouncing off its borders; None: nothing does."""
    if border == "zeros":
        return place if 0 <= place < extent else None
    if border == "border":
        return min(max(place, 0), extent - 1)
    low, high = (0.0, extent - 1.0) if corners else (-0.5, extent - 0.5)
    where = float(place)
    while high > low and not low <= where <= high:
        where = 2 * low - where if where < low else 2 * high - where
    return min(max(round(where), 0), extent - 1) if high > low else 0


def seen(u: float, extent: int, mode: str = "linear", border: str = "zeros", corners: bool = True) -> Array:
    """The weights of the places 0 ... extent - 1 at coordinate u."""
    weights = np.zeros(extent)
    for place in range(math.floor(u) - 2, math.floor(u) + 4):
        if mode == "nearest":
            weight = float(place == np.rint(u))
        else:
            weight = keys(u - place) if mode == "cubic" else max(0.0, 1 - abs(u - place))
        at = fold(place, extent, border, corners) if weight else None
        if at is not None:
            weights[at] += weight
    return weights


def outer(vectors: Sequence[Array]) -> Array:
    result = np.ones(())
    for vector in vectors:
        result = np.multiply.outer(result, vector)
    return result


def coordinate_shares(
    image: Array, m: Array, u: Sequence[float], u0: Sequence[float], weights: Callable[[float, int], Array]
) -> list[float]:
    """For one point: dy/du of every coordinate, for `image` [channels, ...] and multipliers m [channels].

    The change along a coordinate is a Shapley value, divided by du; where du = 0 the others' states are averaged.
    """
    picture = np.tensordot(m, image, 1)
    count, spatial = len(u), picture.shape
    at = [[weights(v[k], spatial[k]) for v in (u0, u)] for k in range(count)]

    def value(state: Sequence[bool]) -> Array:
        return np.asarray(np.sum(picture * outer([at[k][on] for k, on in enumerate(state)])))

    shares = shapley(value, count)
    result = []
    for k in range(count):
        if u[k] != u0[k]:
            result.append(float(shares[k]) / (u[k] - u0[k]))
            continue
        moved = [at[j] if j != k else [at[k][0], weights(u[k] + STEP, spatial[k])] for j in range(count)]

        def shifted(state: Sequence[bool], moved: list[list[Array]] = moved) -> Array:
            return np.asarray(np.sum(picture * outer([moved[j][on] for j, on in enumerate(state)])))

        result.append(float(shapley(shifted, count)[k]) / STEP)
    return result


def grid_weights(node: Node) -> tuple[Callable[[float, int], float], Callable[[float, int], Array]]:
    """From a coordinate of the grid to places; the weights at a coordinate in places."""
    corners = bool(node.attr("align_corners"))
    mode, border = str(node.attr("mode")), str(node.attr("padding_mode"))
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)

    def place(g: float, extent: int) -> float:
        return (g + 1) / 2 * (extent - 1) if corners else ((g + 1) * extent - 1) / 2

    return place, lambda u, extent: seen(u, extent, mode, border, corners)


def grid_points(node: Node, grid: Array, spatial: Sequence[int]) -> Iterator[tuple[tuple[int, ...], list[float]]]:
    """Every sample and point with its coordinates in places, along the spatial axes."""
    place, _ = grid_weights(node)
    for index in np.ndindex(*grid.shape[:-1]):
        yield index, [place(float(g), n) for g, n in zip(grid[index][::-1], spatial, strict=True)]


def grid_sample(node: Node, values: Sequence[Array | None]) -> list[Array]:
    x, grid = cast(Array, values[0]), cast(Array, values[1])
    _, weights = grid_weights(node)
    y = np.zeros((*x.shape[:2], *grid.shape[1:-1]))
    for (n, *point), u in grid_points(node, grid, x.shape[2:]):
        at = outer([weights(v, extent) for v, extent in zip(u, x.shape[2:], strict=True)])
        y[(n, slice(None), *point)] = (x[n] * at).reshape(x.shape[1], -1).sum(axis=1)
    return [y]


def rule_grid_sample(s: Site) -> Multipliers:
    """Linear in x at either grid; the coordinates at the midpoint of x."""
    (x, _), (grid, grid0) = s.xr(0), s.xr(1)
    middle, spatial = s.middle(0), x.shape[2:]
    place, weights = grid_weights(s.node)
    m_x, m_grid = np.zeros(x.shape), np.zeros(grid.shape)
    rate = [place(1.0, extent) - place(0.0, extent) for extent in spatial]
    both = zip(grid_points(s.node, grid, spatial), grid_points(s.node, grid0, spatial), strict=True)
    for ((n, *point), u), (_, u0) in both:
        m = s.m[0][(n, slice(None), *point)]
        for v in (u, u0):
            at = outer([weights(w, extent) for w, extent in zip(v, spatial, strict=True)])
            m_x[n] += np.multiply.outer(m, at) / 2
        if s.active[1]:
            shares = coordinate_shares(middle[n], m, u, u0, weights)
            m_grid[(n, *point)] = [share * r for share, r in zip(shares, rate, strict=True)][::-1]
    return [m_x if s.active[0] else None, m_grid if s.active[1] else None]


def affine_grid(node: Node, values: Sequence[Array | None]) -> list[Array]:
    theta, size = cast(Array, values[0]), cast(Array, values[1])
    spatial = [int(n) for n in size[2:]]
    y = np.zeros((len(theta), *spatial, len(spatial)))
    for point in np.ndindex(*spatial):
        if node.attr("align_corners"):
            at = [2 * p / (n - 1) - 1 for p, n in zip(point, spatial, strict=True)]
        else:
            at = [(2 * p + 1) / n - 1 for p, n in zip(point, spatial, strict=True)]
        y[(slice(None), *point)] = theta @ np.array([*at[::-1], 1.0])
    return [y]


def max_unpool(node: Node, values: Sequence[Array | None]) -> list[Array]:
    """Indices count through the whole output, as ONNX Runtime takes them; the last one wins."""
    x, places = cast(Array, values[0]), cast(Array, values[1])
    if len(values) > 2 and values[2] is not None:
        shape = tuple(int(n) for n in values[2])
    else:
        kernel = node.attr("kernel_shape")
        strides, pads = node.attr("strides", [1] * len(kernel)), node.attr("pads", [0] * 2 * len(kernel))
        spatial = [
            (n - 1) * strides[k] + kernel[k] - pads[k] - pads[k + len(kernel)] for k, n in enumerate(x.shape[2:])
        ]
        shape = (*x.shape[:2], *spatial)
    y = np.zeros(math.prod(shape))
    for place, value in zip(places.ravel(), x.ravel(), strict=True):
        y[place] = value
    return [y.reshape(shape)]


def columns_to_image(node: Node, values: Sequence[Array | None]) -> list[Array]:
    x, image, block = (cast(Array, value) for value in values)
    rank, blocks = len(image), [int(size) for size in block]
    strides, dilations, pads = (
        node.attr(name) or [default] * 2 * rank for name, default in (("strides", 1), ("dilations", 1), ("pads", 0))
    )
    counts = [
        (int(image[k]) + pads[k] + pads[k + rank] - dilations[k] * (blocks[k] - 1) - 1) // strides[k] + 1
        for k in range(rank)
    ]
    y = np.zeros((len(x), x.shape[1] // math.prod(blocks), *map(int, image)))
    apart = x.reshape(len(x), y.shape[1], *blocks, *counts)
    for tap in np.ndindex(*blocks):
        for place in np.ndindex(*counts):
            at = [place[k] * strides[k] + tap[k] * dilations[k] - pads[k] for k in range(rank)]
            if all(0 <= at[k] < image[k] for k in range(rank)):
                y[(slice(None), slice(None), *at)] += apart[(slice(None), slice(None), *tap, *place)]
    return [y]


# --- deformable convolution ------------------------------------------------------------------------------------------


class Deformed:
    """Every (sample, output place, tap, group of offsets) of a DeformConv, with the coordinates that it looks at."""

    def __init__(self, node: Node, x: Array, weight: Array) -> None:
        self.node, self.kernel = node, weight.shape[2:]
        self.groups = int(node.attr("offset_group"))
        self.strides, self.dilations = (node.attr(name, [1, 1]) for name in ("strides", "dilations"))
        self.pads = node.attr("pads", [0] * 4)
        self.channels = x.shape[1]
        self.size = [
            (x.shape[2 + k] + self.pads[k] + self.pads[k + 2] - (self.kernel[k] - 1) * self.dilations[k] - 1)
            // self.strides[k]
            + 1
            for k in range(2)
        ]

    def points(self, x: Array) -> Iterator[tuple[int, int, tuple[int, ...], tuple[int, ...], list[int]]]:
        for n, group, *rest in np.ndindex(len(x), self.groups, *self.kernel, *self.size):
            each = self.channels // self.groups
            yield n, group, tuple(rest[:2]), tuple(rest[2:]), list(range(group * each, (group + 1) * each))

    def slot(self, group: int, tap: tuple[int, ...]) -> int:
        return group * math.prod(self.kernel) + tap[0] * self.kernel[1] + tap[1]

    def u(self, offset: Array, n: int, group: int, tap: tuple[int, ...], place: tuple[int, ...]) -> list[float]:
        shift = offset[n, 2 * self.slot(group, tap) : 2 * self.slot(group, tap) + 2, place[0], place[1]]
        return [
            place[k] * self.strides[k] - self.pads[k] + tap[k] * self.dilations[k] + float(shift[k]) for k in range(2)
        ]

    def users(self, weight: Array, channel: int) -> tuple[range, int]:
        """The output channels that see an input channel, and its number in their weights."""
        group = int(self.node.attr("group"))
        each, outputs = self.channels // group, len(weight) // group
        return range(channel // each * outputs, (channel // each + 1) * outputs), channel % each


def deform_conv(node: Node, values: Sequence[Array | None]) -> list[Array]:
    x, weight, offset, bias, mask = (*values, None, None)[:5]
    x, weight, offset = (cast(Array, value) for value in (x, weight, offset))
    how = Deformed(node, x, weight)
    y = np.zeros((len(x), len(weight), *how.size))
    for n, group, tap, place, channels in how.points(x):
        at = outer(
            [seen(v, extent) for v, extent in zip(how.u(offset, n, group, tap, place), x.shape[2:], strict=True)]
        )
        factor = 1.0 if mask is None else mask[(n, how.slot(group, tap), *place)]
        for channel in channels:
            users, number = how.users(weight, channel)
            for user in users:
                y[(n, user, *place)] += weight[(user, number, *tap)] * factor * np.sum(at * x[n, channel])
    return [y if bias is None else y + bias.reshape(-1, 1, 1)]


def rule_deform_conv(s: Site) -> Multipliers:
    """Weight times (mask times value) by midpoints; the value is linear in x, and a function of the offset."""
    (x, r), (weight, _), (offset, offset0) = s.xr(0), s.xr(1), s.xr(2)
    how, m = Deformed(s.node, x, weight), s.m[0]
    masked = len(s.x) > 4 and s.x[4] is not None
    m_x, m_w, m_offset = np.zeros(x.shape), np.zeros(weight.shape), np.zeros(offset.shape)
    m_mask = np.zeros(s.xr(4)[0].shape) if masked else np.zeros(0)
    w_mid, x_mid = s.middle(1), s.middle(0)
    for n, group, tap, place, channels in how.points(x):
        u, u0 = (how.u(o, n, group, tap, place) for o in (offset, offset0))
        at, at0 = (outer([seen(v, size) for v, size in zip(c, x.shape[2:], strict=True)]) for c in (u, u0))
        slot = (n, how.slot(group, tap), *place)
        f, f0 = (s.xr(4)[0][slot], s.xr(4)[1][slot]) if masked else (1.0, 1.0)
        to_values = []
        for channel in channels:
            users, number = how.users(weight, channel)
            value, value0 = np.sum(at * x[n, channel]), np.sum(at0 * r[n, channel])
            to_sample = 0.0
            for user in users:
                m_w[(user, number, *tap)] += m[(n, user, *place)] * (f * value + f0 * value0) / 2
                to_sample += m[(n, user, *place)] * w_mid[(user, number, *tap)]
            if masked:
                m_mask[slot] += to_sample * (value + value0) / 2
            to_values.append(to_sample * (f + f0) / 2)
            m_x[n, channel] += to_values[-1] * (at + at0) / 2
        if s.active[2]:
            m_offset[n, 2 * slot[1] : 2 * slot[1] + 2, place[0], place[1]] = coordinate_shares(
                x_mid[n, channels], np.array(to_values), u, u0, seen
            )
    every = [m_x, m_w, m_offset, m.sum(axis=(0, 2, 3)), m_mask]
    return [g if active else None for g, active in zip(every, s.active, strict=False)]


# --- regions of interest ---------------------------------------------------------------------------------------------


def region_windows(node: Node, values: Sequence[Array | None]) -> Iterator[tuple[tuple[int, ...], int, list[Any], int]]:
    """Of every box and bin: its index, its image, the (row, column, weight) that it sees, and the number of samples."""
    x, boxes = cast(Array, values[0]), cast(Array, values[1])
    extents = x.shape[2:]
    scale = float(node.attr("spatial_scale"))
    pooled = node.op == "MaxRoiPool"
    bins = node.attrs["pooled_shape"] if pooled else [node.attr("output_height"), node.attr("output_width")]
    for box in range(len(boxes)):
        image = int(boxes[box, 0]) if pooled else int(cast(Array, values[2])[box])
        numbers = boxes[box, 1:] if pooled else boxes[box]
        along = []
        for axis in range(2):
            start, end = numbers[1 - axis] * scale, numbers[3 - axis] * scale
            make = pooled_places if pooled else sampled_places
            along.append(make(node, float(start), float(end), bins[axis], extents[axis]))
        for i, j in np.ndindex(*bins):
            rows, columns = along[0][i], along[1][j]
            places = [(a, b, v * w) for (a, v), (b, w) in itertools.product(rows[0], columns[0])]
            yield (box, i, j), image, places, max(rows[1] * columns[1], 1)


def pooled_places(node: Node, start: float, end: float, bins: int, extent: int) -> list[tuple[list[Any], int]]:
    """Every bin's places, all of weight 1."""
    first, last = (math.copysign(math.floor(abs(v) + 0.5), v) for v in (start, end))
    width = np.float32(max(last - first + 1, 1)) / np.float32(bins)
    result = []
    for k in range(bins):
        low, high = math.floor(np.float32(k) * width) + first, math.ceil(np.float32(k + 1) * width) + first
        result.append(([(p, 1.0) for p in range(int(max(low, 0)), int(min(high, extent)))], 1))
    return result


def sampled_places(node: Node, start: float, end: float, bins: int, extent: int) -> list[tuple[list[Any], int]]:
    """Every bin's samples, each of them between two places; one too far outside sees place 0 with weight 0."""
    aligned = node.attr("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    size = end - start if aligned else max(end - start, 1.0)
    width = size / bins
    count = int(node.attr("sampling_ratio")) or math.ceil(width)
    result = []
    for k in range(bins):
        places: list[Any] = []
        for sample in range(max(count, 0)):
            u = start - 0.5 * aligned + (k + (sample + 0.5) / count) * width
            if not -1 <= u <= extent:
                places += [(0, 0.0), (0, 0.0)]
                continue
            u = min(max(u, 0.0), extent - 1.0)
            low = min(int(u), extent - 1)
            places += [(low, 1 - (u - low)), (min(low + 1, extent - 1), u - low)]
        result.append((places, max(count, 0)))
    return result


def regions(node: Node, values: Sequence[Array | None]) -> list[Array]:
    x = cast(Array, values[0])
    found = {}
    for index, image, places, count in region_windows(node, values):
        z = [[x[image, c, a, b] * w for a, b, w in places] for c in range(x.shape[1])]
        if node.op == "RoiAlign" and node.attr("mode") == "avg":
            found[index] = [sum(line) / count for line in z]
        else:
            found[index] = [max(line, default=0.0) for line in z]
    y = np.zeros(tuple(np.max(list(found), axis=0) + 1)) if found else np.zeros((0, 1, 1))
    y = np.repeat(y[:, None], x.shape[1], axis=1)
    for (box, i, j), column in found.items():
        y[box, :, i, j] = column
    return [y]


def rule_regions(s: Site) -> Multipliers:
    """The image for either boxes, and the boxes for either image; a box shares its part by squared differences."""
    (x, r), (boxes, boxes0) = s.xr(0), s.xr(1)
    average = s.node.op == "RoiAlign" and s.node.attr("mode") == "avg"
    m_x = np.zeros(x.shape)
    for run in (boxes, boxes0):
        for (box, i, j), image, places, count in region_windows(s.node, [x, run, *s.x[2:]]):
            for c in range(x.shape[1]):
                m = s.m[0][box, c, i, j] / 2
                lines = [[v[image, c, a, b] * w for a, b, w in places] for v in (x, r)]
                if average:
                    shares = dict.fromkeys(range(len(places)), m / count)
                else:
                    shares = oracle.share_maximum(*lines, m, s.ties) if places else {}
                for k, share in shares.items():
                    a, b, w = places[k]
                    m_x[image, c, a, b] += share * w
    change = sum(
        (regions(s.node, [v, boxes, *s.x[2:]])[0] - regions(s.node, [v, boxes0, *s.x[2:]])[0]) / 2 for v in (x, r)
    )
    total = (s.m[0] * change).sum(axis=(1, 2, 3))
    d = boxes - boxes0
    square = (d * d).sum(axis=1)
    m_boxes = d * np.where(square == 0, 0.0, total / np.where(square == 0, 1.0, square))[:, None]
    return [m_x if s.active[0] else None, m_boxes if s.active[1] else None, *[None] * (len(s.x) - 2)]


# --- Fourier transforms ----------------------------------------------------------------------------------------------


def as_complex(x: Array) -> Array:
    return np.asarray(x[..., 0] + 1j * x[..., 1] if x.shape[-1] == 2 else x[..., 0])


def as_pairs(z: Array) -> Array:
    return np.stack([z.real, z.imag], axis=-1)


def dft(node: Node, values: Sequence[Array | None]) -> list[Array]:
    x, length, axis = (*values, None, None)[:3]
    assert x is not None
    along = int(-2 if axis is None else axis) % x.ndim
    size = None if length is None else int(length)
    if node.attr("inverse") and node.attr("onesided"):
        return [np.fft.irfft(as_complex(x), size, axis=along)[..., None]]
    transform = np.fft.ifft if node.attr("inverse") else np.fft.fft
    z = transform(as_complex(x), size, axis=along)
    if node.attr("onesided"):
        z = np.take(z, range(z.shape[along] // 2 + 1), axis=along)
    return [as_pairs(z)]


def stft(node: Node, values: Sequence[Array | None]) -> list[Array]:
    signal, step, window, length = (*values, None, None)[:4]
    signal, size = cast(Array, signal), int(length) if length is not None else len(cast(Array, window))
    w = np.ones(size) if window is None else window
    z = as_complex(signal if signal.ndim == 3 else signal[..., None])
    frames = range(0, z.shape[1] - size + 1, int(cast(Array, step)))
    spectra = np.stack([np.fft.fft(z[:, t : t + size] * w, axis=1) for t in frames], axis=1)
    return [as_pairs(spectra[..., : size // 2 + 1] if node.attr("onesided") else spectra)]


def rule_bilinear(s: Site) -> Multipliers:
    """Linear in every float input by itself: unit vectors, with all others at their midpoints."""
    result: Multipliers = [None] * len(s.x)
    for k, active in enumerate(s.active):
        if active:
            middles = [s.middle(j) if s.active[j] else v for j, v in enumerate(s.x)]

            def f(v: Array, k: int = k, middles: list[Array | None] = middles) -> list[Array]:
                return oracle.forward_node(s.node, [*middles[:k], v, *middles[k + 1 :]])

            result[k] = probe(f, s.xr(k)[0].shape, s.m)
    return result


# --- multilinear functions -------------------------------------------------------------------------------------------


def rule_einsum(s: Site) -> Multipliers:
    """Unit vectors of an operand, with the others at x or r in all orders."""
    players = [k for k, active in enumerate(s.active) if active]
    equation, count = oracle.einsum_equation(s.node), len(players)
    result: Multipliers = [None] * len(s.x)
    for k in players:
        total = np.zeros(s.xr(k)[0].shape)
        for order in itertools.permutations(players):
            changed = order[: order.index(k)]
            others = [cast(Array, s.x[j] if j in changed or j not in players else s.r[j]) for j in range(len(s.x))]

            def f(v: Array, k: int = k, others: list[Array] = others) -> list[Array]:
                return [np.asarray(np.einsum(equation, *others[:k], v, *others[k + 1 :]))]

            total += probe(f, total.shape, s.m) / math.factorial(count)
        result[k] = total
    return result


def rule_det(s: Site) -> Multipliers:
    """Leibniz' sum of signed products, the Shapley values of whose factors are taken in all orders."""
    x, r = s.xr()
    size = x.shape[-1]
    m_x = np.zeros(x.shape)
    for index in np.ndindex(*x.shape[:-2]):
        a, a0 = x[index], r[index]
        for columns in orders(size):
            sign = round(np.linalg.det(np.eye(size)[list(columns)]))
            for row, order in itertools.product(range(size), orders(size)):
                changed = order[: order.index(row)]
                others = [a[k, columns[k]] if k in changed else a0[k, columns[k]] for k in range(size) if k != row]
                m_x[(*index, row, columns[row])] += s.m[0][index] * sign * math.prod(others) / math.factorial(size)
    return [m_x]


# --- batch normalisation ---------------------------------------------------------------------------------------------


def batch_norm(node: Node, values: Sequence[Array | None]) -> list[Array]:
    if not node.attr("training_mode"):
        return [oracle.batch_norm(node, values)]
    x, scale, bias, mean, variance = (cast(Array, value) for value in values)
    axes, momentum = (0, *range(2, x.ndim)), float(node.attr("momentum"))
    new = x.mean(axis=axes), x.var(axis=axes)
    centred, deviation = (
        oracle.per_channel(v, x.ndim) for v in (new[0], np.sqrt(new[1] + float(node.attr("epsilon"))))
    )
    y = (x - centred) / deviation * oracle.per_channel(scale, x.ndim) + oracle.per_channel(bias, x.ndim)
    running = [old * momentum + fresh * (1 - momentum) for old, fresh in zip((mean, variance), new, strict=True)]
    return [y, *running][: len(node.outputs)]


def rule_batch_norm(s: Site) -> Multipliers:
    """y = scale n + B, n s = x - mean, s^2 = var + eps: products by midpoints, number by number."""
    (x, r), (scale, scale0) = s.xr(0), s.xr(1)
    training, eps = bool(s.node.attr("training_mode")), float(s.node.attr("epsilon"))
    result = [np.zeros(s.xr(k)[0].shape) for k in range(5)]
    for c in range(x.shape[1]):
        values, values0, m = (np.moveaxis(v, 1, 0)[c].ravel() for v in (x, r, s.m[0]))
        if training:
            (mean, var), (mean0, var0) = ((v.mean(), v.var()) for v in (values, values0))
        else:
            (mean, mean0), (var, var0) = ((v[c] for v in s.xr(k)) for k in (3, 4))
        sigma, sigma0 = math.sqrt(var + eps), math.sqrt(var0 + eps)
        n, n0 = (values - mean) / sigma, (values0 - mean0) / sigma0
        m_n = m * (scale[c] + scale0[c]) / 2
        result[1][c], result[2][c] = np.sum(m * (n + n0) / 2), m.sum()
        m_values = m_n / ((sigma + sigma0) / 2)
        m_mean = -m_values.sum()
        m_var = np.sum(-(n + n0) / 2 * m_values) / (sigma + sigma0)
        if training:
            centred = (values - mean + values0 - mean0) / len(values)
            m_values = m_values + m_mean / len(values) + m_var * (centred - centred.mean())
        else:
            result[3][c], result[4][c] = m_mean, m_var
        np.moveaxis(result[0], 1, 0)[c] = m_values.reshape(np.moveaxis(x, 1, 0)[c].shape)
    return [g if active else None for g, active in zip(result, s.active, strict=False)]


oracle.FORWARD.update(
    AffineGrid=affine_grid,
    BatchNormalization=batch_norm,
    Col2Im=columns_to_image,
    DFT=dft,
    DeformConv=deform_conv,
    Det=lambda node, values: [np.asarray(np.linalg.det(cast(Array, values[0])))],
    GridSample=grid_sample,
    MaxRoiPool=regions,
    MaxUnpool=max_unpool,
    RoiAlign=regions,
    STFT=stft,
)
oracle.RULES.update(
    AffineGrid=rule_bilinear,
    BatchNormalization=rule_batch_norm,
    DFT=rule_bilinear,
    DeformConv=rule_deform_conv,
    Det=rule_det,
    Einsum=rule_einsum,
    GridSample=rule_grid_sample,
    MaxRoiPool=rule_regions,
    MaxUnpool=rule_bilinear,
    RoiAlign=rule_regions,
    STFT=rule_bilinear,
)
