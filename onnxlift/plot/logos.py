"""Sequence logos: the height of a letter is its contribution, and a negative one hangs upside down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from onnxlift.arrays import Array
from onnxlift.errors import DataError, OptionError, shown
from onnxlift.plot.images import Channels, named_axis
from onnxlift.plot.sheet import MARGIN, Labels, Sheet
from onnxlift.plot.style import (
    FONT,
    INK,
    MISSING,
    check_rank,
    fit,
    number,
    numbers,
    plain,
    range_of,
    require,
    total,
    width_of,
    without_glyph,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Window = tuple[int, int]

_SHAPES = "[N, letters, positions] or [N, positions, letters]"
# Okabe and Ito's colours, told apart with any kind of colour vision; other letters take them in turn.
_LETTERS = {"A": "#009e73", "C": "#0072b2", "G": "#e69f00", "T": "#d55e00", "U": "#d55e00", "?": "#8a8a8a"}
_OTHERS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_UNKNOWN = "?"  # at a position whose data are not one letter
_PER_LINE = 80
_AUTOMATIC = 400  # positions of a sample, where no window is given
_MOST = 2000  # positions of all samples in a figure; logomaker takes about 1 ms for each letter


@dataclass(frozen=True)
class Logos:
    """`heights`: `[S, positions, letters]`, 0 where `missing`, `[S, positions]`: contributions that are not finite.

    `start`: the first position shown, of `length`. `span`: the axis of all samples.
    """

    heights: Array
    missing: Array
    letters: str
    start: int
    length: int
    span: tuple[float, float]

    @staticmethod
    def of(
        contributions: ArrayLike, data: Array | None, channels: Channels | None, alphabet: str, window: Window | None
    ) -> Logos:
        """Contributions `[S, letters, positions]` or `[S, positions, letters]`, and one-hot data in the same shape.

        With data, the contributions of a position are summed and drawn as the letter that is there. Without, every
        letter has its own contribution.
        """
        require("logomaker")
        c = numbers(contributions, "contributions")
        check_rank(c, (3,), "a logo", _SHAPES)
        if len(set(alphabet)) != len(alphabet) or set(alphabet) & {" ", _UNKNOWN} or without_glyph(alphabet):
            raise OptionError(f"the alphabet {alphabet!r} must be different letters, in the order of the channels")
        axis = letter_axis(c.shape, data, channels, alphabet)
        c = np.moveaxis(c, axis, -1)
        missing = np.asarray(np.isnan(c).any(axis=-1))
        if data is not None:
            letter = _letters_of(np.moveaxis(data, axis, -1))
            if (letter < 0).all():
                raise DataError(
                    "the data are one-hot at no position, so there are no letters to draw: leave the data out, and "
                    "each letter gets its own contribution"
                )
            alphabet += _UNKNOWN
            index = np.where(letter < 0, len(alphabet) - 1, letter)
            c = total(c, -1)[..., None] * (index[..., None] == np.arange(len(alphabet)))
        start, stop = _chosen(window, c)
        missing = missing[:, start:stop]
        heights = np.where(missing[..., None], 0, c[:, start:stop])
        ends = heights.clip(0, None).sum(axis=-1), heights.clip(None, 0).sum(axis=-1)
        return Logos(heights, missing, alphabet, start, c.shape[1], range_of(np.stack(ends)))

    @property
    def part(self) -> str:
        """Which positions are shown, if not all."""
        count = self.heights.shape[1]
        return "" if count == self.length else f"positions {self.start} to {self.start + count - 1} of {self.length}"

    def legend(self, labels: Labels) -> str:
        """What the figure means, on one line."""
        meaning = f"letters above the line raise {labels.unit}, those below it lower it"
        unknown = "?: no letter" if _UNKNOWN in self.letters and self.heights[..., -1].any() else ""
        missing = "yellow: not finite" if self.missing.any() else ""
        return "; ".join(filter(None, [meaning, self.part, unknown, missing]))

    def draw(self, rows: Sequence[int], labels: Labels) -> Figure:
        """The logos of the samples below each other, long ones in several lines, on one scale."""
        count = self.heights.shape[1]
        lines = math.ceil(count / _PER_LINE)
        per_line = count if lines == 1 else math.ceil(count / lines / 10) * 10
        left, height = MARGIN + 0.38 + self._tick_width(), 1.3 if lines == 1 else 1.0
        width = min(max(per_line * 0.17, 5.5), 11.5)
        text = labels.caption_height(rows)
        step = height + 0.32
        sheet = Sheet(left + width + MARGIN, labels.top + len(rows) * (text + lines * step + 0.18) + 0.25)
        sheet.heading(labels, self.legend(labels))
        y = labels.top
        for row in rows:
            sheet.caption(MARGIN, y, left + width - MARGIN, labels.captions[row])
            y += text
            for first in range(0, count, per_line):
                part = slice(first, min(first + per_line, count))
                axes_width = width * (part.stop - first) / per_line
                axes = sheet.axes(left, y, axes_width, height)
                self._draw_line(axes, row, part)
                if first == 0:
                    words = "contribution\n" + fit(plain(f"to {labels.unit}"), height, 8.5)
                    axes.set_ylabel(words, fontsize=8.5, family=FONT, parse_math=False)
                    axes.yaxis.set_label_coords((MARGIN + 0.28 - left) / axes_width, 0.5)
                y += step
            y += 0.18
        sheet.text(left + min(count, per_line) / per_line * width / 2, y - 0.2, "position", ha="center")
        return sheet.figure

    def _tick_width(self) -> float:
        """Inches that the numbers of the axis may need: a sign and two digits, of this size or a tenth of it."""
        size = math.floor(math.log10(max(-self.span[0], self.span[1])))
        return max(width_of(number(-2.5 * 10.0**power), 8) for power in (size, size - 1)) + 0.1

    def _draw_line(self, axes: Axes, row: int, part: slice) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        positions = np.arange(part.start, part.stop) + self.start
        for position, heights in zip(positions, self.heights[row, part], strict=True):
            self._stack(axes, int(position), heights)
        axes.axhline(0, color=INK, linewidth=0.6)
        for position in positions[self.missing[row, part]]:
            axes.axvspan(position - 0.5, position + 0.5, color=MISSING, linewidth=0.5, zorder=-1)
        low, high = self.span
        room = 0.06 * (high - low)
        axes.set(xlim=(positions[0] - 0.5, positions[-1] + 0.5), ylim=(low - room * (low < 0), high + room))
        axes.xaxis.set_major_locator(
            MaxNLocator(max(2, min(12, len(positions) // 3)), steps=[1, 2, 5, 10], integer=True)
        )
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axes.spines[["top", "right", "bottom"]].set_visible(False)

    def _stack(self, axes: Axes, position: int, heights: Array) -> None:
        """The letters of a position from the lowest to the highest value, so that the largest are at both ends."""
        glyph = require("logomaker").Glyph
        floor = heights.clip(None, 0).sum()
        for k in np.argsort(heights, kind="stable"):
            height = float(heights[k])
            if height:
                below = height < 0
                style = {"flip": below, "alpha": 0.75 if below else 1, "color": _colour(self.letters[k], int(k))}
                glyph(
                    position, self.letters[k], floor, floor + abs(height), ax=axes, font_name=FONT, vpad=0.02, **style
                )
                floor += abs(height)


def letter_axis(shape: tuple[int, ...], data: Array | None, channels: Channels | None, alphabet: str) -> int:
    """The axis of the letters in `[N, letters, positions]` or `[N, positions, letters]`: as named, or by its length.

    Raises OptionError where it is not as long as the alphabet, or where both axes are and the data do not tell.
    """
    named = (1, 2) if channels is None else (named_axis(channels, 2),)
    axes = [axis for axis in named if shape[axis] == len(alphabet)]
    if len(axes) == 2 and data is not None:
        axes = [axis for axis in axes if (_letters_of(np.moveaxis(data, axis, -1)) >= 0).all()] or axes
    if not axes:
        raise OptionError(
            f"contributions of shape {shown(shape)} have no channel for each of the {len(alphabet)} letters "
            f"{alphabet!r}: give the alphabet in the order of the channels"
        )
    if len(axes) == 2:
        raise OptionError(f"both axes of {shown(shape)} could be the letters: say whether channels come first or last")
    return axes[0]


def is_one_hot(data: Array) -> bool:
    """Whether most positions, along the last axis, are one letter; some may be none (N, padding)."""
    return bool((_letters_of(data) >= 0).mean() > 0.5)


def _letters_of(data: Array) -> Array:
    """The letter of each position of `[..., letters]`: the one channel that is not 0, but 1; -1 where it is not so."""
    is_letter = ((data != 0).sum(axis=-1) == 1) & (data.max(axis=-1) == 1)
    return np.where(is_letter, data.argmax(axis=-1), -1)


def _chosen(window: Window | None, c: Array) -> Window:
    """The positions to draw of `[S, positions, letters]`: the window, or all, or those with the largest sizes."""
    samples, length = c.shape[:2]
    if window is None:
        count = min(length, _AUTOMATIC, max(1, _MOST // samples))
        sums = np.cumsum(np.abs(np.nan_to_num(c)).sum(axis=(0, 2)))
        inside = sums[count - 1 :] - np.concatenate([[0], sums[: length - count]])
        start = int(inside.argmax())
        return start, start + count
    start, stop = window
    if not 0 <= start < stop <= length:
        raise OptionError(f"the window {start}:{stop} is outside of the {length} positions, 0:{length}")
    if (stop - start) * samples > _MOST:
        raise OptionError(
            f"{samples} x {stop - start} letters are too many for a figure, which holds {_MOST}: choose fewer samples "
            "or a smaller window"
        )
    return start, stop


def _colour(letter: str, place: int) -> str:
    return _LETTERS.get(letter, _OTHERS[place % len(_OTHERS)])
