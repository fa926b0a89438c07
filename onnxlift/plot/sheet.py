"""A figure on which everything is placed in inches, and its bytes as PNG or SVG.

Only matplotlib's objects are used, never pyplot's global state. Text is never read as mathematics: names and tokens may
hold any character.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onnxlift.errors import OptionError
from onnxlift.plot.style import FAINT, FONT, INK, fit, number, plain, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Format = Literal["png", "svg"]

MARGIN = 0.25  # inches
_DPI = 150
_LARGEST = 120.0  # inches; 18,000 pixels
_LINE, _BELOW = 0.19, 0.06  # inches: a line of a caption, and what is free below the caption
_SETTINGS = {"svg.hashsalt": "onnxlift", "svg.fonttype": "path", "savefig.bbox": None, "savefig.transparent": False}


@dataclass(frozen=True)
class Labels:
    """The words of a figure: its title, what contributions add up to, and a caption for each sample.

    Without a title there is no heading. The first line of a caption is printed bold.
    """

    title: str
    unit: str
    captions: Sequence[str]

    @property
    def axis(self) -> str:
        return f"contribution to {self.unit}"

    @property
    def legend(self) -> str:
        return f"red raises {self.unit}, blue lowers it"

    @property
    def top(self) -> float:
        """Inches from the upper edge to the first sample."""
        return MARGIN + (0.62 if self.title else 0)

    def caption_height(self, rows: Sequence[int]) -> float:
        """Inches that the captions of these samples need."""
        lines = max(len(self.captions[row].splitlines()) for row in rows)
        return lines * _LINE + _BELOW if lines else 0


class Sheet:
    """A figure laid out in inches from its upper left corner: nothing overlaps, whatever the data are.

    Raises OptionError where it would be too large.
    """

    def __init__(self, width: float, height: float) -> None:
        require("matplotlib")
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        if max(width, height) > _LARGEST:
            raise OptionError(
                f"the figure would be {width:.0f} by {height:.0f} inches, over {_LARGEST:.0f}: choose fewer samples, "
                "or write a .html report"
            )
        self.width, self.height = width, height
        self.figure: Figure = Figure(figsize=(width, height), facecolor="white")
        self.figure.set_layout_engine("none")
        FigureCanvasAgg(self.figure)

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Axes whose upper left corner is at x, y."""
        axes = self.figure.add_axes(
            (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        )
        axes.tick_params(labelsize=8, labelfontfamily=FONT, colors=INK, width=0.6, length=3)
        for spine in axes.spines.values():
            spine.set(linewidth=0.6, edgecolor=FAINT)
        return axes

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        """One line of text whose upper left corner is at x, y; `style` as in matplotlib's Text."""
        style = {"fontsize": 9, "color": INK, "va": "top", **style}
        self.figure.text(x / self.width, 1 - y / self.height, text, parse_math=False, family=FONT, **style)

    def heading(self, labels: Labels, legend: str) -> None:
        """The title and a line below it, if there is a title."""
        if labels.title:
            room = self.width - 2 * MARGIN
            self.text(MARGIN, MARGIN, fit(plain(labels.title), room, 13, bold=True), fontsize=13, weight="bold")
            self.text(MARGIN, MARGIN + 0.3, fit(plain(legend), room), color=FAINT)

    def caption(self, x: float, y: float, width: float, caption: str) -> None:
        """The caption of a sample, its first line bold, each line shortened to a width."""
        for place, line in enumerate(caption.splitlines()):
            bold = place == 0
            size = 9.5 if bold else 8.5
            style: dict[str, Any] = {"weight": "bold"} if bold else {"color": FAINT}
            self.text(x, y + place * _LINE, fit(plain(line), width, size, bold=bold), fontsize=size, **style)

    def scale(self, x: float, y: float, limit: float, labels: Labels, *, clipped: bool) -> None:
        """A colour bar, 0.6 inches high with its label; arrows where larger values take the colour of the ends."""
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        width = 3.2
        bar = self.figure.colorbar(
            ScalarMappable(Normalize(-limit, limit), "RdBu_r"),
            cax=self.axes(x + 0.1, y, width, 0.14),
            orientation="horizontal",
            extend="both" if clipped else "neither",
            extendfrac=0.04,
        )
        ticks = np.array([-1, -0.5, 0, 0.5, 1]) * limit
        bar.set_ticks(ticks.tolist(), labels=[number(float(f"{tick:.3g}")) for tick in ticks])
        bar.outline.set_linewidth(0.6)
        bar.set_label(fit(plain(labels.axis), width), fontsize=9, color=INK, family=FONT, parse_math=False)


def rendered(figure: Figure, kind: Format) -> bytes:
    """A figure as a PNG or SVG file; the same figure gives the same bytes."""
    matplotlib = require("matplotlib")
    stream = io.BytesIO()
    metadata = {"Date": None, "Creator": "onnxlift"} if kind == "svg" else {"Software": "onnxlift"}
    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # told in a note
        figure.savefig(stream, format=kind, dpi=_DPI, metadata=metadata)
    return stream.getvalue()
