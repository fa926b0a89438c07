"""Strips of tokens whose background is their contribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from onnxlift.arrays import Array
from onnxlift.errors import DataError
from onnxlift.plot.sheet import MARGIN, Labels, Sheet
from onnxlift.plot.style import (
    check_rank,
    colours,
    fit,
    hexadecimal,
    ink_on,
    limit_of,
    numbers,
    plain,
    total,
    width_of,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIZE, _HEIGHT, _PAD, _GAP = 10, 0.26, 0.06, 0.04  # points; inches of a token: height, left and right, between two
_WIDTH = 10.0
_LONGEST = 2.5  # inches of a token's text


@dataclass(frozen=True)
class Token:
    """A token, its contribution, and its colours as #rrggbb; `missing`: the contribution is not finite."""

    text: str
    value: float
    background: str
    ink: str
    missing: bool


@dataclass(frozen=True)
class Strips:
    """The tokens of each sample; padding without text and without contribution is left out."""

    strips: list[list[Token]]
    limit: float
    clipped: bool

    @staticmethod
    def of(contributions: ArrayLike, texts: Sequence[Sequence[object]]) -> Strips:
        """Contributions `[S, T]` or `[S, T, E]`, and up to T tokens for each sample; what follows must be 0."""
        c = numbers(contributions, "contributions")
        check_rank(c, (2, 3), "a token strip", "[N, tokens] or [N, tokens, features]")
        c = total(c, -1) if c.ndim == 3 else c
        if len(texts) != len(c):
            raise DataError(f"there are tokens for {len(texts)} samples and contributions for {len(c)}: give the same")
        limit = limit_of(c)
        rgb = colours(c, limit)
        strips = []
        for row, words in enumerate(texts):
            count = len(words)
            if count > c.shape[1] or (c[row, count:] != 0).any():
                raise DataError(
                    f"row {row} of the samples has {count} tokens for {c.shape[1]} contributions: give a token for "
                    "each, such as [PAD]; only at the end, where contributions are 0, may they be missing"
                )
            strips.append([_token(*one) for one in zip(words, c[row], rgb[row], strict=False)])
        return Strips(strips, limit, bool(np.nanmax(np.abs(c), initial=0) > limit))

    def legend(self, labels: Labels) -> str:
        """What the figure means, on one line."""
        missing = any(token.missing for strip in self.strips for token in strip)
        return labels.legend + ("; yellow: not finite" if missing else "")

    def draw(self, rows: Sequence[int], labels: Labels) -> Figure:
        """The strips of the samples below each other, broken into lines."""
        text = labels.caption_height(rows)
        placed = [self._place(self.strips[row]) for row in rows]
        heights = [(lines[-1][2] + 1 if lines else 1) * (_HEIGHT + _GAP) for lines in placed]
        sheet = Sheet(_WIDTH, labels.top + sum(heights) + (text + 0.22) * len(rows) + 0.8)
        sheet.heading(labels, self.legend(labels))
        y = labels.top
        for row, lines, height in zip(rows, placed, heights, strict=True):
            sheet.caption(MARGIN, y, _WIDTH - 2 * MARGIN, labels.captions[row])
            y += text
            for token, (word, x, line, width) in zip(self.strips[row], lines, strict=True):
                self._draw_token(sheet, token, word, x, y + line * (_HEIGHT + _GAP), width)
            y += height + 0.22
        sheet.scale(MARGIN, y + 0.05, self.limit, labels, clipped=self.clipped)
        return sheet.figure

    def _place(self, strip: list[Token]) -> list[tuple[str, float, int, float]]:
        """For each token its text, x, line and width."""
        x, line, placed = MARGIN, 0, []
        for token in strip:
            text = fit(token.text, _LONGEST, _SIZE)
            width = width_of(text, _SIZE) + 2 * _PAD
            if x + width > _WIDTH - MARGIN and x > MARGIN:
                x, line = MARGIN, line + 1
            placed.append((text, x, line, width))
            x += width + _GAP
        return placed

    def _draw_token(self, sheet: Sheet, token: Token, text: str, x: float, y: float, width: float) -> None:
        from matplotlib.patches import Rectangle

        corner = (x / sheet.width, 1 - (y + _HEIGHT) / sheet.height)
        box = Rectangle(corner, width / sheet.width, _HEIGHT / sheet.height, transform=sheet.figure.transFigure)
        box.set(facecolor=token.background, edgecolor="#c8c8c8", linewidth=0.5)
        sheet.figure.add_artist(box)
        sheet.text(x + _PAD, y + _HEIGHT / 2, text, fontsize=_SIZE, color=token.ink, va="center_baseline")


def _token(word: object, value: float, colour: Array) -> Token:
    text = plain(word) or "\N{OPEN BOX}"
    return Token(text, float(value), hexadecimal(colour), ink_on(colour), bool(np.isnan(value)))
