"""What all figures share: checks of numbers and how they are written, colours, and text and its width.

matplotlib is imported where it is used, so that onnxlift works without it.
"""

from __future__ import annotations

import functools
import importlib
import math
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from onnxlift.arrays import Array
from onnxlift.errors import DataError, OptionError, shown

# Red and blue of the diverging map RdBu are told apart with any kind of colour vision, and in grey by the sign beside.
POSITIVE, NEGATIVE, MISSING = "#b2182b", "#2166ac", "#f0c000"
INK, FAINT = "#1a1a1a", "#5f5f5f"
FONT = "DejaVu Sans"  # comes with matplotlib, so that figures are the same everywhere

_PERCENTILE = 99.5
_HINTED = 1.05  # how much wider text may become where its outlines are fitted to pixels
_HUGE, _TINY = 1e100, 1e-100  # beyond these matplotlib's axes overflow


def require(module: str) -> Any:
    """Import a library of the extra `plot`. Raises OptionError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise OptionError(
            f"drawing needs matplotlib and logomaker ({error}): run pip install 'onnxlift[plot]'"
        ) from error


# ------------------------------------------------------------------------------------------------ numbers


def numbers(values: ArrayLike, what: str) -> Array:
    """Values as floats; what is not finite, or too large to be drawn, is NaN. Raises DataError for anything else."""
    array = np.asarray(values)
    if array.dtype.kind != "f":
        raise DataError(f"{what} must be floating-point numbers, not {array.dtype}")
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(array) < np.float64(_HUGE), array, np.nan)


def check_rank(contributions: Array, allowed: Sequence[int], what: str, shapes: str) -> None:
    """Raises DataError where contributions have another number of axes, or no sample."""
    if contributions.ndim not in allowed or not contributions.size:
        raise DataError(f"{what} needs contributions of shape {shapes}, not {shown(contributions.shape)}")


def total(contributions: Array, axis: int | tuple[int, ...] | None) -> Array:
    """Sums in float64, so that they are those of the completeness gap."""
    return np.asarray(contributions.sum(axis=axis, dtype=np.float64))


def limit_of(contributions: Array) -> float:
    """The size at which a colour scale ends: a high percentile of the sizes that are not 0, rounded up to two digits.

    1 where there are none.
    """
    sizes = np.abs(contributions[np.isfinite(contributions)])
    sizes = sizes[sizes > _TINY]
    if not sizes.size:
        return 1.0
    limit = float(np.percentile(sizes, _PERCENTILE))
    unit = 10.0 ** (math.floor(math.log10(limit)) - 1)
    return math.ceil(limit / unit) * unit


def range_of(values: Array) -> tuple[float, float]:
    """The least and the largest value, 0 included, for an axis; (0, 1) where all are 0."""
    finite = values[np.isfinite(values)]
    low, high = float(finite.min(initial=0)), float(finite.max(initial=0))
    return (low, high) if high - low > _TINY else (0.0, 1.0)


def number(value: float) -> str:
    """A number for people: 4 digits and a true minus."""
    return f"{float(value):.4g}".replace("-", "\N{MINUS SIGN}")


def signed(value: float) -> str:
    """A contribution for people: 3 digits, with its sign."""
    if value == 0 or not np.isfinite(value):
        return number(value)
    return f"{float(value):+#.3g}".rstrip(".").replace("-", "\N{MINUS SIGN}")


# ------------------------------------------------------------------------------------------------- colours


def colours(values: Array, limit: float) -> Array:
    """RGB in 0..1 of the diverging map, white at 0 and full at ± limit, `[..., 3]`; NaN is MISSING."""
    matplotlib = require("matplotlib")
    require("matplotlib.colors")
    rgb = matplotlib.colormaps["RdBu_r"](np.clip(np.nan_to_num(values) / limit, -1, 1) / 2 + 0.5)[..., :3]
    rgb[np.isnan(values)] = matplotlib.colors.to_rgb(MISSING)
    return np.asarray(rgb)


def ink_on(rgb: Array) -> str:
    """Black or white, whichever has more contrast with a background (relative luminance as in WCAG 2)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ (0.2126, 0.7152, 0.0722))
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000000"


def hexadecimal(rgb: Array) -> str:
    """A colour in 0..1 as #rrggbb."""
    return "#" + "".join(f"{round(float(part) * 255):02x}" for part in rgb)


# ---------------------------------------------------------------------------------------------------- text


def plain(text: object) -> str:
    """Text on one line without characters that control something (direction, line breaks, escapes)."""
    characters = " ".join(str(text).split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in characters)


def fit(text: str, inches: float, size: float = 9, *, bold: bool = False) -> str:
    """Text, shortened in its middle to a width."""
    if width_of(text, size, bold) <= inches:
        return text
    low, high = 0, len(text)  # how many characters are kept
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if width_of(_kept(text, middle), size, bold) <= inches else (low, middle - 1)
    return _kept(text, low)


def _kept(text: str, count: int) -> str:
    end = count // 3
    return f"{text[: count - end]}…{text[len(text) - end :]}"


@functools.lru_cache(maxsize=10_000)
def width_of(text: str, size: float, bold: bool = False) -> float:
    """The width of a line of text in inches."""
    require("matplotlib")
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=FONT, size=size, weight="bold" if bold else "normal")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that the font lacks is drawn as a box; see `without_glyph`
        width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return _HINTED * float(width) / 72


def without_glyph(texts: Iterable[str]) -> list[str]:
    """The characters that the figures' font cannot draw."""
    require("matplotlib")
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties(family=FONT))).get_charmap()
    return sorted({c for text in texts for c in text if ord(c) not in known and not unicodedata.combining(c)})
