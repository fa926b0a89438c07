"""From a selection to a drawing: which kind of picture it is, and what a reader must know about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from onnxlift.errors import DataError, OptionError, listed, shown
from onnxlift.plot.charts import TOP, Charts
from onnxlift.plot.images import Channels, Heatmaps
from onnxlift.plot.logos import Logos, Window, is_one_hot
from onnxlift.plot.saved import Selection
from onnxlift.plot.sheet import Labels
from onnxlift.plot.strips import Strips
from onnxlift.plot.style import plain, without_glyph

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["image", "logo", "bars", "tokens"]
Texts = Sequence[Sequence[object]]

_SMALLEST_IMAGE = 8  # pixels of a side, for a guess


class Picture(Protocol):
    """Something that can be drawn, all samples or some of them, on one scale."""

    def legend(self, labels: Labels) -> str: ...

    def draw(self, rows: Sequence[int], labels: Labels) -> Figure: ...


@dataclass(frozen=True)
class Options:
    """What the kinds of picture take besides the contributions; None is the default of each.

    channels: for image and logo. alphabet, window: for logo. names, top: for bars. tokens: of all N samples.
    """

    channels: Channels | None = None
    alphabet: str | None = None
    window: Window | None = None
    names: Sequence[str] | None = None
    top: int | None = None
    tokens: Texts | None = None

    def given(self) -> list[str]:
        """The names of the options that are not left out."""
        return [name for name, value in vars(self).items() if value is not None]


_TAKES = {
    "image": ("channels",),
    "logo": ("channels", "alphabet", "window"),
    "bars": ("names", "top"),
    "tokens": ("tokens",),
}


@dataclass(frozen=True)
class Drawing:
    """A selection as a picture. `why`: how its kind was guessed, or empty. `notes`: what a reader must know.

    `boxes`: characters of names and tokens that the figures' font lacks.
    """

    selection: Selection
    kind: Kind
    why: str
    picture: Picture
    labels: Labels
    notes: list[str]
    boxes: list[str]

    def figure(self) -> Figure:
        """The figure of all samples."""
        return self.picture.draw(range(len(self.selection.samples)), self.labels)


def drawing(
    selection: Selection,
    kind: Kind | Literal["auto"] = "auto",
    *,
    title: str | None = None,
    unit: str = "t(x)",
    options: Options | None = None,
) -> Drawing:
    """Prepare a picture. Raises DataError or OptionError where the kind or an option does not fit."""
    options = options or Options()
    if kind not in ("auto", *_TAKES):
        raise OptionError(f"there is no kind of picture {kind!r}: choose auto, {', '.join(_TAKES)}")
    chosen, why = guess(selection, options) if kind == "auto" else (kind, "")
    misfits = [name for name in options.given() if name not in _TAKES[chosen]]
    if misfits:
        told = f" ({why})" if why else ""
        raise OptionError(f"{chosen}{told} takes no option {listed(misfits)}: leave it out or choose another kind")
    if title is None:
        title = f"Contributions of {selection.name} to {unit}"
    labels = Labels(title, unit, [selection.caption(row) for row in range(len(selection.samples))])
    picture = _picture(selection, chosen, options)
    odd = {sample: selection.oddity(row) for row, sample in enumerate(selection.samples)}
    notes = [f"sample {sample}: {oddity}" for sample, oddity in odd.items() if oddity]
    if isinstance(picture, Logos) and picture.part and options.window is None:
        notes.append(f"only {picture.part} are shown, where contributions are largest")
    return Drawing(selection, chosen, why, picture, labels, notes, _boxes(picture, labels))


def guess(selection: Selection, options: Options) -> tuple[Kind, str]:
    """The kind of picture for a selection, and why. Raises OptionError where nothing fits."""
    shape, data = selection.contributions.shape, selection.data
    if options.tokens is not None and len(shape) in (2, 3):
        return "tokens", "tokens are given"
    if selection.ids is not None and data is None and len(shape) == 3:
        return "tokens", "the data are integers, one for each position"
    if len(shape) == 4:
        return "image", f"the shape {shown(shape[1:])} has channels and two sides"
    if len(shape) == 2:
        return "bars", f"the shape {shown(shape[1:])} has one axis"
    if len(shape) == 3:
        letters = len(_alphabet(options))
        axes = [axis for axis in (1, 2) if shape[axis] == letters]
        if axes and options.alphabet is not None:
            return "logo", "an alphabet is given"
        if data is not None and any(is_one_hot(np.moveaxis(data, axis, -1)) for axis in axes):
            return "logo", f"the data are one-hot over {letters} channels"
        sides = shape[1:]
        is_picture = sides[0] == sides[1] or (data is not None and float(np.nan_to_num(data).min()) >= 0)
        if min(sides) >= _SMALLEST_IMAGE and is_picture:
            return "image", f"{shown(sides)} looks like the two sides of an image"
        return "tokens", f"the shape {shown(shape[1:])} has positions and features"
    raise OptionError(
        f"contributions of shape {shown(shape)} fit no kind of picture: these take one to three axes besides N"
    )


def _picture(selection: Selection, kind: Kind, options: Options) -> Picture:
    c, data = selection.contributions, selection.data
    if kind == "image":
        return Heatmaps.of(c, data, options.channels)
    if kind == "logo":
        return Logos.of(c, data, options.channels, _alphabet(options), options.window)
    if kind == "bars":
        return Charts.of(c, data, options.names, TOP if options.top is None else options.top)
    return Strips.of(c, _texts(selection, options.tokens))


def _alphabet(options: Options) -> str:
    return "ACGT" if options.alphabet is None else options.alphabet


def _texts(selection: Selection, texts: Texts | None) -> Texts:
    """The tokens of the chosen samples: as given, or the ids in the data, or the positions."""
    if texts is not None:
        if len(texts) != selection.count:
            raise DataError(f"there are tokens for {len(texts)} samples, and contributions for {selection.count}")
        return [texts[sample] for sample in selection.samples]
    if selection.ids is not None:
        return [row.tolist() for row in selection.ids]
    length = selection.contributions.shape[1] if selection.contributions.ndim > 1 else 0
    return [range(length)] * len(selection.samples)


def _boxes(picture: Picture, labels: Labels) -> list[str]:
    words = [plain(text) for text in (labels.title, labels.unit, *labels.captions)]
    if isinstance(picture, Strips):
        words += [token.text for strip in picture.strips for token in strip]
    if isinstance(picture, Charts):
        words += [bar.name for bars in picture.bars for bar in bars]
    return without_glyph(words)
