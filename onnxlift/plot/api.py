"""The functions of `onnxlift.plot`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike

from onnxlift.arrays import Array, PathLike, check_writable, replacing
from onnxlift.errors import OptionError
from onnxlift.plot.charts import TOP, Charts
from onnxlift.plot.drawing import Kind, Options, Texts, drawing
from onnxlift.plot.images import Channels, Heatmaps
from onnxlift.plot.logos import Logos, Window
from onnxlift.plot.page import page
from onnxlift.plot.saved import MOST_SAMPLES, Data, Explained, Samples, fitting, select
from onnxlift.plot.sheet import Labels
from onnxlift.plot.strips import Strips

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Captions = Sequence[str] | None


def image(
    contributions: ArrayLike,
    data: ArrayLike | None = None,
    *,
    channels: Channels | None = None,
    captions: Captions = None,
    title: str = "Contributions",
    unit: str = "t(x)",
) -> Figure:
    """Heat maps over images, in a grid, with one colour scale for all samples.

    Args:
        contributions: `[N, H, W]`, `[N, C, H, W]` or `[N, H, W, C]`, summed over the channels. The scale is symmetric
            around 0 and ends at a high percentile of the sizes.
        data: the images in the same shape, axes of length 1 aside: bytes, fractions or any numbers.
        channels: which axis holds the channels; default: the one of length 1, 3 or 4, else the one beside a square.
        captions: for each sample; the first line is bold.
        title, unit: of the figure, and what contributions add up to ("logit").

    Raises:
        DataError: the arrays do not fit. OptionError: an argument does not, or matplotlib is not installed.
    """
    c, inputs = _arrays(contributions, data)
    return _drawn(Heatmaps.of(c, inputs, channels), c, captions, title, unit)


def logo(
    contributions: ArrayLike,
    data: ArrayLike | None = None,
    *,
    channels: Channels | None = None,
    alphabet: str = "ACGT",
    window: Window | None = None,
    captions: Captions = None,
    title: str = "Contributions",
    unit: str = "t(x)",
) -> Figure:
    """Letters as high as their contributions, negative ones upside down below the axis; all samples on one scale.

    Args:
        contributions: `[N, letters, positions]` or `[N, positions, letters]`.
        data: the one-hot sequences in the same shape: the contributions of a position are summed and drawn as the
            letter that is there. Without them, each letter has its own contribution.
        channels: which axis holds the letters; default: the one as long as the alphabet.
        alphabet: the letters, in the order of the channels.
        window: the positions to draw, start and stop; default: all, or of a long sequence those that contribute most.
        captions, title, unit: as for `image`.

    Raises:
        DataError: the arrays do not fit. OptionError: an argument does not, or logomaker is not installed.
    """
    c, inputs = _arrays(contributions, data)
    return _drawn(Logos.of(c, inputs, channels, alphabet, window), c, captions, title, unit)


def bars(
    contributions: ArrayLike,
    data: ArrayLike | None = None,
    *,
    names: Sequence[str] | None = None,
    top: int = TOP,
    captions: Captions = None,
    title: str = "Contributions",
    unit: str = "t(x)",
) -> Figure:
    """Bars of the features with the largest contributions, and of the sum of the others; all samples on one scale.

    Args:
        contributions: `[N, F]`.
        data: the features in the same shape, written beside their names.
        names: of the F features.
        top: how many features to show.
        captions, title, unit: as for `image`.

    Raises:
        DataError: the arrays do not fit. OptionError: an argument does not, or matplotlib is not installed.
    """
    c, inputs = _arrays(contributions, data)
    return _drawn(Charts.of(c, inputs, names, top), c, captions, title, unit)


def tokens(
    contributions: ArrayLike,
    texts: Texts,
    *,
    captions: Captions = None,
    title: str = "Contributions",
    unit: str = "t(x)",
) -> Figure:
    """Tokens on backgrounds coloured by their contributions, with one colour scale for all samples.

    Args:
        contributions: `[N, T]`, or `[N, T, E]`, which is summed over E.
        texts: for each sample its tokens; padding at the end, where contributions are 0, may be left out.
        captions, title, unit: as for `image`.

    Raises:
        DataError: the arrays do not fit. OptionError: an argument does not, or matplotlib is not installed.
    """
    c, _ = _arrays(contributions, None)
    return _drawn(Strips.of(c, texts), c, captions, title, unit)


def report(
    path: PathLike,
    explained: Explained,
    data: Data | None = None,
    *,
    input: str | None = None,
    samples: Samples = 8,
    kind: Kind | Literal["auto"] = "auto",
    title: str | None = None,
    unit: str = "t(x)",
    options: Options | None = None,
) -> None:
    """Write a page of HTML, in a single file, that shows inputs, predictions, contributions and their totals.

    Args:
        path: the .html file.
        explained: an Explanation, or its arrays under the names that `Explanation.save` gives them.
        data: what was explained: the input's array, or a mapping that has it.
        input: the attributed input or tensor; may be left out where there is one.
        samples: indices, or how many of the first ones; at most 100.
        kind: of picture; default: by the shape of the contributions.
        title, unit: of the page, and what contributions add up to ("logit").
        options: what the kind of picture takes besides.

    Raises:
        DataError: the arrays do not fit. OptionError: an argument does not, the path cannot be written, or matplotlib
        is not installed.
    """
    check_writable(path)
    selection = select(explained, data, input=input, samples=samples)
    text = page(drawing(selection, kind, title=title, unit=unit, options=options))
    with replacing(path) as file:
        file.write(text.encode())


def _arrays(contributions: ArrayLike, data: ArrayLike | None) -> tuple[Array, Array | None]:
    c = np.asarray(contributions)
    if c.ndim and len(c) > MOST_SAMPLES:
        raise OptionError(f"{len(c)} samples are too many for one figure: give at most {MOST_SAMPLES}")
    return c, None if data is None else fitting(np.asarray(data), c.shape, "the data")


def _drawn(picture: Heatmaps | Logos | Charts | Strips, c: Array, captions: Captions, title: str, unit: str) -> Figure:
    named = [f"sample {row}" for row in range(len(c))] if captions is None else list(captions)
    if len(named) != len(c):
        raise OptionError(f"there are {len(named)} captions for {len(c)} samples: give one for each")
    return picture.draw(range(len(c)), Labels(title, unit, named))
