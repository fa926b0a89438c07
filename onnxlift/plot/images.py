"""Heat maps of contributions over images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike

from onnxlift.arrays import Array
from onnxlift.errors import OptionError
from onnxlift.plot.sheet import MARGIN, Labels, Sheet
from onnxlift.plot.style import check_rank, colours, limit_of, numbers, total

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Channels = Literal["first", "last"]

_SHAPES = "[N, H, W], [N, C, H, W] or [N, H, W, C]"
_WIDTH = 12.5  # inches, at most
_FAINTEST = 0.85  # what is black in an image, in the copy below the contributions


@dataclass(frozen=True)
class Heatmaps:
    """`maps`: contributions summed over channels, `[S, H, W]`. `pictures`: the inputs in 0..1, `[S, H, W, 3]`."""

    maps: Array
    pictures: Array | None
    limit: float

    @staticmethod
    def of(contributions: ArrayLike, data: Array | None, channels: Channels | None) -> Heatmaps:
        """Contributions `[S, H, W]`, `[S, C, H, W]` or `[S, H, W, C]`, and the images in the same shape."""
        c = numbers(contributions, "contributions")
        check_rank(c, (3, 4), "an image", _SHAPES)
        axis = _channel_axis(c.shape, channels)
        maps = c if axis is None else total(c, axis)
        return Heatmaps(maps, None if data is None else _pictures(data, axis), limit_of(maps))

    def legend(self, labels: Labels) -> str:
        """What the figure means, on one line."""
        panels = "" if self.pictures is None else "left: the image, right: its contributions over a faint copy"
        missing = "yellow: not finite" if np.isnan(self.maps).any() else ""
        return "; ".join(filter(None, [labels.legend, panels, missing]))

    def draw(self, rows: Sequence[int], labels: Labels) -> Figure:
        """A grid: the image as it is, and its contributions over a faint grey copy of it."""
        height, width = self.maps.shape[1:]
        panels = 1 if self.pictures is None else 2
        # The longer side of a panel: large for one sample, small for many.
        side = {1: 3.8, 2: 2.6, 3: 2.4, 4: 2.4}.get(len(rows), 1.75)
        ratio = min(max(height / width, 0.2), 5)
        w, h = (side, side * ratio) if ratio <= 1 else (side / ratio, side)
        cell = max(panels * w + (panels - 1) * 0.08, 1.9)
        columns = min(len(rows), max(1, int((_WIDTH - 2 * MARGIN) // (cell + 0.3))))
        columns = math.ceil(len(rows) / math.ceil(len(rows) / columns))  # rows of about the same length
        text = labels.caption_height(rows)
        step = text + h + 0.25
        down = math.ceil(len(rows) / columns)
        sheet = Sheet(max(2 * MARGIN + columns * (cell + 0.3) - 0.3, 5), labels.top + down * step + 0.75)
        sheet.heading(labels, self.legend(labels))
        for place, row in enumerate(rows):
            x, y = MARGIN + place % columns * (cell + 0.3), labels.top + place // columns * step
            sheet.caption(x, y, cell, labels.captions[row])
            y += text
            if self.pictures is not None:
                _show(sheet.axes(x, y, w, h), self.pictures[row])
                x += w + 0.08
            _show(sheet.axes(x, y, w, h), self._blend(row))
        clipped = bool(np.nanmax(np.abs(self.maps), initial=0) > self.limit)
        sheet.scale(MARGIN, labels.top + down * step, self.limit, labels, clipped=clipped)
        return sheet.figure

    def _blend(self, row: int) -> Array:
        """The colours of the contributions; the smaller these are, the more of the image shows."""
        values = self.maps[row]
        rgb = colours(values, self.limit)
        if self.pictures is None:
            return rgb
        grey = self.pictures[row] @ (0.299, 0.587, 0.114)
        faint = (_FAINTEST + (1 - _FAINTEST) * grey)[..., None]
        weight = np.where(np.isnan(values), 1, np.sqrt(np.clip(np.abs(values) / self.limit, 0, 1)))[..., None]
        return np.asarray(weight * rgb + (1 - weight) * faint)


def named_axis(channels: Channels, last: int) -> int:
    """The axis of the channels after the samples, where they come first or last. Raises OptionError for other words."""
    if channels not in ("first", "last"):
        raise OptionError(f"channels come first or last, not {channels!r}")
    return 1 if channels == "first" else last


def _channel_axis(shape: tuple[int, ...], channels: Channels | None) -> int | None:
    """The axis of the channels: as named, 1, 3 or 4 long, or the one beside a square; None for `[N, H, W]`."""
    if len(shape) == 3:
        if channels is not None:
            raise OptionError(f"channels {channels} does not fit contributions of shape {list(shape)}, which have none")
        return None
    if channels is not None:
        return named_axis(channels, 3)
    for axis in (1, 3):
        if shape[axis] in (1, 3, 4):
            return axis
    return 3 if shape[1] == shape[2] != shape[3] else 1


def _pictures(data: Array, axis: int | None) -> Array:
    """Images as RGB in 0..1: bytes and fractions as they are, other numbers from the least to the largest of each."""
    images = data[..., None] if axis is None else np.moveaxis(data, axis, -1)
    # Three channels are red, green and blue, a fourth is opacity; of any other number the mean is shown.
    images = images[..., :3] if images.shape[-1] in (3, 4) else images.mean(axis=-1, keepdims=True, dtype=np.float64)
    pictures = np.empty((*images.shape[:3], 3), np.float32)
    for picture, image in zip(pictures, images, strict=True):
        finite = image[np.isfinite(image)].astype(np.float64)
        low, high = (finite.min(), finite.max()) if finite.size else (0, 1)
        if low >= 0 and high <= 255:
            low, high = 0, 1 if high <= 1 else 255
        picture[...] = np.clip((np.nan_to_num(image.astype(np.float64), nan=low) - low) / ((high - low) or 1), 0, 1)
    return pictures


def _show(axes: Axes, rgb: Array) -> None:
    # Small images keep their pixels, also in SVG; larger ones are resampled to the resolution of the figure.
    axes.imshow(rgb, interpolation="none" if max(rgb.shape) <= 400 else "auto", aspect="auto")
    axes.set(xticks=[], yticks=[])
