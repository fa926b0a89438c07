"""Bars for tables: the features that contribute most, and what the others add up to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from onnxlift.arrays import Array
from onnxlift.errors import OptionError
from onnxlift.plot.sheet import MARGIN, Labels, Sheet
from onnxlift.plot.style import (
    FAINT,
    FONT,
    INK,
    NEGATIVE,
    POSITIVE,
    check_rank,
    fit,
    number,
    numbers,
    plain,
    range_of,
    signed,
    total,
    width_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TOP = 12
_ROW, _NAMES, _BARS = 0.24, 2.6, 3.2  # inches: height of a bar, width of the names at most, width of the bars


@dataclass(frozen=True)
class Bar:
    """One line of a chart: a feature, what it is in the data, and its contribution; `rest` stands for several."""

    name: str
    data: str
    value: float
    rest: bool = False

    @property
    def text(self) -> str:
        """The contribution."""
        return "not finite" if np.isnan(self.value) else signed(self.value)

    def label(self, inches: float) -> str:
        """The name, shortened to what its data leave of a width, and the data."""
        return fit(self.name, inches - width_of(self.data, 9), 9) + self.data


@dataclass(frozen=True)
class Charts:
    """The bars of each sample, the strongest first, and the axis of all samples."""

    bars: list[list[Bar]]
    span: tuple[float, float]

    @staticmethod
    def of(contributions: ArrayLike, data: Array | None, names: Sequence[str] | None, top: int) -> Charts:
        """Contributions `[S, F]`, the features in the same shape, and F names."""
        c = numbers(contributions, "contributions")
        check_rank(c, (2,), "a bar chart", "[N, features]")
        count = c.shape[1]
        if top < 1:
            raise OptionError(f"the number of features to show must be at least 1, not {top}")
        if names is not None and len(names) != count:
            raise OptionError(f"there are {len(names)} names for {count} features: give one for each")
        called = [f"feature {k}" for k in range(count)] if names is None else [plain(name) for name in names]
        charts = []
        for row, values in enumerate(c):
            # What is not a number comes first: it must be seen. One feature too many is shown rather than "1 other".
            order = np.argsort(-np.nan_to_num(np.abs(values), nan=np.inf), kind="stable")
            shown, rest = (order, order[:0]) if count <= top + 1 else (order[:top], order[top:])
            bars = [Bar(called[k], "" if data is None else f" = {number(data[row, k])}", values[k]) for k in shown]
            if rest.size:
                bars.append(Bar(f"{rest.size} other features", "", float(total(values[rest], None)), rest=True))
            charts.append(bars)
        return Charts(charts, range_of(np.array([bar.value for bars in charts for bar in bars])))

    def legend(self, labels: Labels) -> str:
        """What the figure means, on one line."""
        hatched = "; hatched: the sum of the others" if any(bar.rest for bars in self.bars for bar in bars) else ""
        return labels.legend + hatched

    def draw(self, rows: Sequence[int], labels: Labels) -> Figure:
        """A chart for each sample, in one or two columns, on one scale."""
        every = [bar for bars in self.bars for bar in bars]  # so that a part of the samples has the same scale
        names = min(max(width_of(bar.name + bar.data, 9) for bar in every) + 0.1, _NAMES)
        numbers_width = max(width_of(bar.text, 8.5) for bar in every) + 0.1
        columns = 1 if len(rows) == 1 else 2
        cell = names + (_BARS if columns == 2 else 4.4)
        text = labels.caption_height(rows)
        step = text + max(len(self.bars[row]) for row in rows) * _ROW + 0.75
        down = math.ceil(len(rows) / columns)
        sheet = Sheet(max(2 * MARGIN + columns * (cell + 0.35) - 0.35, 5), labels.top + down * step)
        sheet.heading(labels, self.legend(labels))
        for place, row in enumerate(rows):
            x, y = MARGIN + place % columns * (cell + 0.35), labels.top + place // columns * step
            sheet.caption(x, y, cell, labels.captions[row])
            axes = sheet.axes(x + names, y + text, cell - names, len(self.bars[row]) * _ROW)
            self._draw_bars(axes, self.bars[row], names, numbers_width / (cell - names))
            axes.set_xlabel(fit(plain(labels.axis), cell - names), fontsize=9, family=FONT, parse_math=False)
        return sheet.figure

    def _draw_bars(self, axes: Axes, bars: list[Bar], names: float, room: float) -> None:
        """`names`: inches for the labels. `room`: for a number beside a bar, as a share of the axes' width."""
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        low, high = self.span
        sides = int(low < 0) + int(high > 0)
        unit = (high - low) / (1 - room * sides)
        axes.set(xlim=(low - unit * room * (low < 0), high + unit * room * (high > 0)), ylim=(len(bars) - 0.5, -0.5))
        for place, bar in enumerate(bars):
            value = np.nan_to_num(bar.value)
            colour = POSITIVE if value > 0 else NEGATIVE
            style: dict[str, Any] = (
                {"facecolor": "white", "edgecolor": colour, "hatch": "////"} if bar.rest else {"color": colour}
            )
            axes.barh(place, value, height=0.72, linewidth=0.8, **style)
            side = -1 if value < 0 > low or high <= 0 else 1
            axes.annotate(
                bar.text,
                (value, place),
                (3 * side, 0),
                textcoords="offset points",
                fontsize=8.5,
                color=FAINT if np.isnan(bar.value) else INK,
                family=FONT,
                ha="left" if side > 0 else "right",
                va="center_baseline",
                parse_math=False,
            )
        axes.axvline(0, color=INK, linewidth=0.8)
        words = [bar.label(names - 0.08) for bar in bars]
        axes.set_yticks(range(len(bars)), words, fontsize=9, parse_math=False)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axes.grid(axis="x", color="#e4e4e4", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_edgecolor(FAINT)
