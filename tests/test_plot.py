"""Pictures of contributions: what they show, that nothing overlaps or is cut, and every refusal in one sentence."""

from __future__ import annotations

import base64
import itertools
import json
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner, Result
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from PIL import Image

import onnxlift
import onnxlift.plot
from onnxlift import DataError, OptionError, cli
from onnxlift.plot import Options, style
from onnxlift.plot.charts import Charts
from onnxlift.plot.drawing import drawing, guess
from onnxlift.plot.images import Heatmaps
from onnxlift.plot.logos import Logos
from onnxlift.plot.saved import select
from onnxlift.plot.sheet import rendered
from onnxlift.plot.strips import Strips

RNG = np.random.default_rng(5)
MODELS = Path(__file__).parent.parent / "models"
Arrays = dict[str, Any]


def explained(c: Any, name: str = "x", **more: Any) -> Arrays:
    """The arrays of an explanation with these contributions."""
    c = np.asarray(c, np.float32)
    difference = np.nansum(c.reshape(len(c), -1), axis=1)
    ends = {"target_output": difference + 1, "target_reference": np.ones_like(difference)}
    return {f"{name}_contributions": c, **ends, "completeness_gap": np.full_like(difference, 1e-7), **more}


def one_hot(*shape: int) -> Any:
    return np.eye(4, dtype=np.float32)[RNG.integers(0, 4, shape)]


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


# ------------------------------------------------------------------------------------------------- numbers


def test_the_colour_scale_is_robust_symmetric_and_never_empty() -> None:
    sizes = np.concatenate([np.zeros(5000), np.linspace(-1, 1, 1000), [1e6]])
    assert style.limit_of(sizes) == pytest.approx(1.0)
    assert style.limit_of(np.array([0.0, np.nan])) == 1
    assert style.limit_of(np.array([0.1234, np.nan])) == pytest.approx(0.13)
    rgb = style.colours(np.array([-9.0, -1, 0, 1, 9, np.nan]), 1.0)
    np.testing.assert_array_equal(rgb[0], rgb[1])
    np.testing.assert_array_equal(rgb[3], rgb[4])
    assert rgb[1, 2] > rgb[1, 0]  # blue below, red above, nearly white between
    assert rgb[3, 0] > rgb[3, 2]
    assert rgb[2].min() > 0.95
    assert style.hexadecimal(rgb[5]) == style.MISSING


def test_ink_is_readable_on_every_colour() -> None:
    def luminance(rgb: Any) -> float:
        return float(np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722))

    for rgb in style.colours(np.linspace(-1, 1, 201), 1.0):
        ink = 1.0 if style.ink_on(rgb) == "#ffffff" else 0.0
        light, dark = max(ink, luminance(rgb)), min(ink, luminance(rgb))
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2, level AA


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (1.5, "+1.50"), (-2, "−2.00"), (123, "+123"), (1e-9, "+1.00e−09"), (np.nan, "nan")]
)
def test_numbers_are_written_with_their_sign(value: float, shown: str) -> None:
    assert style.signed(value) == shown


def test_text_is_made_plain_and_fits() -> None:
    assert style.plain("a\n b\x1b[31m\u202ec\ud800") == "a b\ufffd[31m\ufffdc\ufffd"
    assert style.fit("short", 2) == "short"
    cut = style.fit("first " * 40 + "last", 2)
    assert style.width_of(cut, 9) <= 2
    assert cut.startswith("first first")
    assert cut.endswith("last")


# ------------------------------------------------------------------------------------------------- guesses


GUESSES: dict[str, tuple[tuple[int, ...], Any, Options, str]] = {
    "digits": ((3, 1, 28, 28), None, Options(), "image"),
    "photographs": ((3, 32, 32, 3), None, Options(), "image"),
    "grey": ((3, 28, 28), None, Options(), "image"),
    "grey, not square": ((3, 20, 30), np.ones((3, 20, 30)), Options(), "image"),
    "one-hot, letters last": ((3, 50, 4), one_hot(3, 50), Options(), "logo"),
    "one-hot, letters first": ((3, 4, 50), one_hot(3, 50).transpose(0, 2, 1), Options(), "logo"),
    "one-hot with unknown letters": (
        (1, 9, 4),
        np.vstack([np.eye(4), np.eye(4), np.zeros(4)])[None],
        Options(),
        "logo",
    ),
    "not one-hot": ((3, 50, 4), normal(3, 50, 4), Options(), "tokens"),
    "alphabet": ((3, 50, 4), None, Options(alphabet="ACGU"), "logo"),
    "table": ((3, 12), normal(3, 12), Options(), "bars"),
    "embedding": ((3, 16, 64), None, Options(), "tokens"),
    "square embedding of ids": ((3, 16, 16), {"ids": RNG.integers(0, 9, (3, 16))}, Options(), "tokens"),
    "tokens": ((3, 12), None, Options(tokens=[["a"] * 12] * 3), "tokens"),
}


@pytest.mark.parametrize("case", GUESSES)
def test_the_kind_is_guessed(case: str) -> None:
    shape, data, options, kind = GUESSES[case]
    chosen, why = guess(select(explained(normal(*shape)), data), options)
    assert chosen == kind
    assert why


def test_no_kind_fits() -> None:
    with pytest.raises(OptionError, match="fit no kind of picture"):
        drawing(select(explained(normal(2, 2, 2, 2, 2))))
    with pytest.raises(OptionError, match="no kind of picture 'pie'"):
        drawing(select(explained(normal(2, 2))), "pie")  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------- images


def test_heat_maps_sum_over_channels_wherever_these_are() -> None:
    c, x = normal(2, 3, 10, 12), RNG.random((2, 3, 10, 12))
    first = Heatmaps.of(c, x, None)
    last = Heatmaps.of(np.moveaxis(c, 1, -1), np.moveaxis(x, 1, -1), None)
    np.testing.assert_allclose(first.maps, c.astype(float).sum(1), rtol=1e-12)
    np.testing.assert_array_equal(first.maps, last.maps)
    assert first.pictures is not None
    assert last.pictures is not None
    np.testing.assert_allclose(first.pictures, np.moveaxis(x, 1, -1), atol=1e-6)
    np.testing.assert_array_equal(first.pictures, last.pictures)
    features = normal(2, 64, 7, 7)  # of a convolution: channels first, though 64 is the longest
    np.testing.assert_allclose(Heatmaps.of(features, None, None).maps, features.sum(1, dtype=float))
    np.testing.assert_allclose(Heatmaps.of(c, None, "last").maps, c.sum(3, dtype=float))


@pytest.mark.parametrize(
    ("image", "shown"),
    [
        (np.array([0, 51, 255], np.uint8), [0, 0.2, 1]),
        (np.array([0, 0.2, 1.0]), [0, 0.2, 1]),
        (np.array([-1, 0, 3.0]), [0, 0.25, 1]),
        (np.array([0, np.nan, 1.0]), [0, 0, 1]),
        (np.array([-2, -2, -2.0]), [0, 0, 0]),
    ],
)
def test_images_of_bytes_fractions_and_other_numbers(image: Any, shown: list[float]) -> None:
    pictures = Heatmaps.of(np.zeros((1, 1, 3)), image[None, None], None).pictures
    assert pictures is not None
    np.testing.assert_allclose(pictures[0, 0], np.repeat(np.array(shown)[:, None], 3, axis=1), atol=1e-6)


def test_an_image_shows_through_where_contributions_are_small() -> None:
    c = np.array([[[0, 0, 1, np.nan]]], np.float32)
    figure = onnxlift.plot.image(c, np.array([[[0, 1, 0, 1]]], np.uint8))
    left, right = (axes.images[0].get_array() for axes in figure.axes[:2])
    np.testing.assert_array_equal(left[0, :, 0], [0, 1, 0, 1])
    faint, white, red, missing = right[0]
    assert faint[0] == faint[2] == pytest.approx(0.85)
    assert white.min() == 1
    np.testing.assert_allclose(red, style.colours(np.array([1.0]), 1.0)[0])
    assert style.hexadecimal(missing) == style.MISSING
    assert "yellow: not finite" in words(figure)


# --------------------------------------------------------------------------------------------------- logos


def test_logos_keep_every_sum_and_draw_the_letters_that_are_there() -> None:
    x, c = one_hot(2, 30), normal(2, 30, 4)
    x[1, 7] = 0.25  # no letter
    for contributions, data in ((c, x), (c.transpose(0, 2, 1), x.transpose(0, 2, 1))):
        logos = Logos.of(contributions, data, None, "ACGT", None)
        assert logos.letters == "ACGT?"
        np.testing.assert_allclose(logos.heights.sum(2), c.sum(2, dtype=float), rtol=1e-6)
        there = np.abs(logos.heights).argmax(2)
        np.testing.assert_array_equal(there[x.max(2) == 1], x.argmax(2)[x.max(2) == 1])
        assert (there[1, 7], logos.heights[1, 7, 4]) == (4, pytest.approx(c[1, 7].sum()))
    every = Logos.of(c, None, None, "ACGT", None)
    np.testing.assert_array_equal(every.heights, c)


def test_letters_are_as_high_as_their_contributions() -> None:
    c = np.zeros((1, 3, 4), np.float32)
    c[0, 0, 0], c[0, 1, 1], c[0, 2, 3] = 2, -1, 0.5
    figure = onnxlift.plot.logo(c, (c != 0).astype(int))
    boxes = [patch.get_path().get_extents() for patch in figure.axes[0].patches if isinstance(patch, PathPatch)]
    drawn = sorted((round((box.x0 + box.x1) / 2), box.y0, box.y1) for box in boxes)
    assert [place for place, _, _ in drawn] == [0, 1, 2]
    np.testing.assert_allclose([ends[1:] for ends in drawn], [[0, 2], [-1, 0], [0, 0.5]], atol=0.03)
    low, high = figure.axes[0].get_ylim()
    assert low < -1
    assert high > 2


def test_letters_are_stacked_with_the_largest_at_both_ends_and_negative_ones_upside_down() -> None:
    c = np.array([[[1, -2, 3, -4], [0, 0, 0, 2]]], np.float32)
    figure = onnxlift.plot.logo(c, channels="last")
    paths = [patch.get_path() for patch in figure.axes[0].patches if isinstance(patch, PathPatch)]
    boxes = [path.get_extents() for path in paths]
    stack = sorted((box.y0, box.y1) for box in boxes if box.x1 < 0.5)
    np.testing.assert_allclose(stack, [[-6, -2], [-2, 0], [0, 1], [1, 4]], atol=0.05)
    below = next(path for path, box in zip(paths, boxes, strict=True) if box.y0 < -5)
    above = next(path for path, box in zip(paths, boxes, strict=True) if box.x0 > 0.5)

    def width(path: Any, y: float) -> float:
        return float(np.ptp(path.vertices[np.isclose(path.vertices[:, 1], y), 0]))

    # Both are a T, whose bar is at the end away from the axis.
    assert width(below, below.get_extents().y0) > 1.3 * width(below, below.get_extents().y1)
    assert width(above, above.get_extents().y1) > 1.3 * width(above, above.get_extents().y0)


def test_long_sequences_are_cut_to_what_matters_and_wrapped() -> None:
    c = np.full((1, 5000, 4), 1e-6, np.float32)
    c[0, 3000:3050] = 1
    logos = Logos.of(c, None, None, "ACGT", None)
    assert logos.start <= 3000
    assert logos.start + logos.heights.shape[1] >= 3050
    drawn = drawing(select(explained(c)), "logo")
    assert re.fullmatch(r"only positions \d+ to \d+ of 5000 are shown, where .*", drawn.notes[0])
    assert logos.part == f"positions {logos.start} to {logos.start + 399} of 5000"
    drawn = drawing(select(explained(c)), options=Options(window=(2990, 3160), alphabet="ACGT"))
    assert drawn.notes == []
    figure = drawn.figure()
    limits = [axes.get_xlim() for axes in figure.axes]
    assert limits == [(2989.5, 3049.5), (3049.5, 3109.5), (3109.5, 3159.5)]
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert [axes.get_position().width for axes in figure.axes][2] < figure.axes[0].get_position().width
    whole = Logos.of(normal(1, 300, 4), None, None, "ACGT", None)
    assert (whole.start, whole.part, whole.heights.shape) == (0, "", (1, 300, 4))


def test_which_axis_has_the_letters() -> None:
    x = one_hot(2, 4)
    assert (Logos.of(x, x, None, "ACGT", None).heights[..., :4] == x).all()
    with pytest.raises(OptionError, match="say whether channels come first or last"):
        Logos.of(x, None, None, "ACGT", None)
    assert (Logos.of(x, None, "first", "ACGT", None).heights == x.transpose(0, 2, 1)).all()
    protein = "ACDEFGHIKLMNPQRSTVWY"
    assert Logos.of(normal(1, 9, 20), None, None, protein, None).letters == protein


# ---------------------------------------------------------------------------------------------------- bars


def test_bars_add_up_and_the_strongest_come_first() -> None:
    c = normal(2, 40)
    charts = Charts.of(c, None, None, 5)
    for bars, row in zip(charts.bars, c, strict=True):
        assert [bar.name for bar in bars[:-1]] == [f"feature {k}" for k in np.argsort(-np.abs(row))[:5]]
        assert bars[-1].name == "35 other features"
        assert sum(bar.value for bar in bars) == pytest.approx(float(row.sum(dtype=float)))
    assert [bar.rest for bar in Charts.of(c[:, :6], None, None, 5).bars[0]] == [False] * 6  # rather than "1 other"
    figure = onnxlift.plot.bars(c, c, names=[f"n{k}" for k in range(40)], top=3)
    widths = [[patch.get_width() for patch in axes.patches if isinstance(patch, Rectangle)] for axes in figure.axes]
    np.testing.assert_allclose(np.sum(widths, axis=1), c.sum(1), rtol=1e-5)
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    strongest = int(np.abs(c[0]).argmax())
    assert figure.axes[0].get_yticklabels()[0].get_text() == f"n{strongest} = {style.number(c[0, strongest])}"


def test_what_is_not_finite_comes_first() -> None:
    charts = Charts.of(np.array([[1.0, np.nan, -2, np.inf]]), None, None, 9)
    assert [bar.text for bar in charts.bars[0]] == ["not finite", "not finite", "−2.00", "+1.00"]
    assert charts.span == (-2, 1)


# -------------------------------------------------------------------------------------------------- tokens


def test_tokens_sum_over_features_and_padding_may_be_left_out() -> None:
    c = normal(2, 4, 8)
    c[1, 2:] = 0
    strips = Strips.of(c, [["a", "b", "c", "d"], ["e", "f"]]).strips
    assert [[token.text for token in strip] for strip in strips] == [["a", "b", "c", "d"], ["e", "f"]]
    np.testing.assert_allclose([token.value for token in strips[0]], c[0].sum(1), rtol=1e-5)
    with pytest.raises(DataError, match="row 0 of the samples has 3 tokens for 4 contributions"):
        Strips.of(c, [["a", "b", "c"], ["e", "f"]])
    assert [t.text for t in Strips.of(c[:1], [["", "\n", "日", 7]]).strips[0]] == ["␣", "␣", "日", "7"]


def test_tokens_come_from_the_ids_in_the_data() -> None:
    ids = RNG.integers(0, 99, (2, 5))
    data = {"input_ids": ids, "attention_mask": np.ones((2, 5), int)}
    picture = drawing(select(explained(normal(2, 5, 5), "emb"), data, samples=[1])).picture
    assert isinstance(picture, Strips)
    assert [token.text for token in picture.strips[0]] == [str(k) for k in ids[1]]
    picture = drawing(select(explained(normal(1, 5, 9))), "tokens").picture
    assert isinstance(picture, Strips)
    assert [token.text for token in picture.strips[0]] == list("01234")


# -------------------------------------------------------------------------------------------------- layout


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


def check_layout(figure: Figure) -> None:
    """All text lies in the figure and overlaps no other text."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    texts = list(figure.texts)
    for axes in figure.axes:
        texts += [axes.xaxis.label, axes.yaxis.label, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            room = 1e-6 * (high - low)
            texts += [tick.label1 for tick in axis.get_major_ticks() if low - room <= tick.get_loc() <= high + room]
    shown = [text for text in texts if text.get_text() and text.get_visible()]
    boxes = [text.get_window_extent(renderer) for text in shown]
    width, height = figure.canvas.get_width_height()
    for text, box in zip(shown, boxes, strict=True):
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
        assert inside, f"{text.get_text()!r} is cut: {box}"
    for (a, first), (b, second) in itertools.combinations(zip(shown, boxes, strict=True), 2):
        across = min(first.x1, second.x1) - max(first.x0, second.x0)
        down = min(first.y1, second.y1) - max(first.y0, second.y0)
        assert across <= 1 or down <= 1, f"{a.get_text()!r} overlaps {b.get_text()!r}"


LONG = "an extraordinarily long name " * 5


def odd(c: Any) -> Any:
    """The same contributions, with a sample of zeros and some that are not finite."""
    c = c.copy()
    c[1:2] = 0
    c[2:3].reshape(-1)[::7] = np.nan
    c[3:4].reshape(-1)[::5] = np.inf
    return c


DRAWN: dict[str, Callable[[int, float], Figure]] = {
    "image": lambda n, s: onnxlift.plot.image(odd(s * normal(n, 1, 28, 28)), RNG.random((n, 1, 28, 28))),
    "tall image": lambda n, s: onnxlift.plot.image(odd(s * normal(n, 200, 20)), title=LONG, unit=LONG),
    "flat image": lambda n, s: onnxlift.plot.image(odd(s * normal(n, 3, 9, 100)), normal(n, 3, 9, 100), unit="$^{$"),
    "logo": lambda n, s: onnxlift.plot.logo(odd(s * normal(n, 60, 4)), one_hot(n, 60), title=LONG, unit=LONG),
    "short logo": lambda n, s: onnxlift.plot.logo(odd(s * normal(n, 4, 3)), alphabet="XYZ", unit="$^{$", title="$_{$"),
    "long logo": lambda n, s: onnxlift.plot.logo(odd(s * normal(3, 4, 90)), captions=[LONG + "\n" + LONG] * 3),
    "bars": lambda n, s: onnxlift.plot.bars(odd(s * normal(n, 30)), names=[f"{LONG}{k}" for k in range(30)], unit=LONG),
    "positive bars": lambda n, s: onnxlift.plot.bars(odd(s * np.abs(normal(n, 3))), 1e9 * normal(n, 3)),
    "negative bars": lambda n, s: onnxlift.plot.bars(odd(-s * np.abs(normal(n, 9))), names=["$_{$"] * 9, unit="$^{$"),
    "tokens": lambda n, s: onnxlift.plot.tokens(odd(s * normal(n, 90)), [[f"token {k}" for k in range(90)]] * n),
    "odd tokens": lambda n, s: onnxlift.plot.tokens(odd(s * normal(n, 2, 8)), [[LONG * 9, "$\\x{$"]] * n, unit=LONG),
}  # fmt: skip


@pytest.mark.parametrize(("samples", "size"), [(1, 1), (2, 1e-30), (4, 3e20), (7, 1234.5)])
@pytest.mark.parametrize("case", DRAWN)
def test_nothing_overlaps_or_is_cut(case: str, samples: int, size: float) -> None:
    figure = DRAWN[case](samples, size)
    check_layout(figure)
    assert max(figure.get_size_inches()) < 60


def test_figures_stay_out_of_pyplot() -> None:
    import matplotlib.pyplot as plt

    DRAWN["logo"](1, 1)
    assert plt.get_fignums() == []


def test_the_extremes_of_floating_point() -> None:
    for size in (1e-320, 1e308):
        c = np.array([[size, -size, 0, 0.0]] * 2)
        check_layout(onnxlift.plot.bars(c, c))
        check_layout(onnxlift.plot.tokens(c, [list("abcd")] * 2))
        check_layout(onnxlift.plot.image(c[:, None], c[:, None]))
        check_layout(onnxlift.plot.logo(c[:, None], alphabet="ACGT"))


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_the_same_figure_gives_the_same_bytes(kind: Any) -> None:
    c = normal(2, 20, 4)
    first, second = (rendered(onnxlift.plot.logo(c), kind) for _ in range(2))
    assert first == second
    assert first.startswith(b"\x89PNG" if kind == "png" else b"<?xml")


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: onnxlift.plot.image(normal(2, 5)), r"needs contributions of shape \[N, H, W\]"),
        (lambda: onnxlift.plot.image(np.ones((2, 5, 5), int)), "must be floating-point numbers, not int64"),
        (lambda: onnxlift.plot.image(normal(2, 5, 5), normal(2, 5, 6)), r"has shape \[2, 5, 6\] and its contributions"),
        (lambda: onnxlift.plot.image(normal(2, 5, 5), np.full((2, 5, 5), "a")), "the data must be numbers"),
        (lambda: onnxlift.plot.image(normal(2, 5, 5), channels="first"), "channels first does not fit"),
        (lambda: onnxlift.plot.image(normal(2, 1, 5, 5), channels="mid"), "first or last, not 'mid'"),  # type: ignore[arg-type]
        (lambda: onnxlift.plot.image(normal(101, 5, 5)), "101 samples are too many"),
        (lambda: onnxlift.plot.image(normal(2, 5, 5), captions=["a"]), "1 captions for 2 samples"),
        (lambda: onnxlift.plot.image(normal(0, 5, 5)), r"not \[0, 5, 5\]"),
        (lambda: onnxlift.plot.logo(normal(2, 5, 3)), "no channel for each of the 4 letters 'ACGT'"),
        (lambda: onnxlift.plot.logo(normal(2, 5, 4), channels="first"), "no channel for each of the 4 letters"),
        (lambda: onnxlift.plot.logo(normal(2, 5, 4), normal(2, 5, 4)), "one-hot at no position"),
        (lambda: onnxlift.plot.logo(normal(2, 5, 4), alphabet="ACGA"), "must be different letters"),
        (lambda: onnxlift.plot.logo(normal(2, 5, 4), alphabet="AC T"), "must be different letters"),
        (lambda: onnxlift.plot.logo(normal(2, 5, 4), alphabet="日本語版"), "must be different letters"),
        (lambda: onnxlift.plot.logo(normal(2, 5, 4), window=(3, 9)), "window 3:9 is outside of the 5 positions"),
        (lambda: onnxlift.plot.logo(normal(2, 5, 4), window=(3, 3)), "window 3:3 is outside"),
        (lambda: onnxlift.plot.logo(normal(9, 900, 4), window=(0, 900)), "9 x 900 letters are too many"),
        (lambda: onnxlift.plot.bars(normal(2, 5), names=["a"]), "1 names for 5 features"),
        (lambda: onnxlift.plot.bars(normal(2, 5), top=0), "at least 1, not 0"),
        (lambda: onnxlift.plot.bars(normal(5)), r"shape \[N, features\], not \[5\]"),
        (lambda: onnxlift.plot.tokens(normal(2, 5), [["a"] * 5]), "tokens for 1 samples and contributions for 2"),
        (lambda: onnxlift.plot.tokens(normal(9, 9999), [["token"] * 9999] * 9), "inches, over 120: choose fewer"),
    ],
)  # fmt: skip
def test_python_mistakes_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises((DataError, OptionError), match=message):
        call()


# ------------------------------------------------------------------------------------------------ selection


def test_a_selection_takes_what_save_wrote(tmp_path: Path) -> None:
    x = np.load(MODELS / "mnist_digits.npz")["x"][:4, None].astype(np.float32) / 255
    explanation = onnxlift.Explainer(MODELS / "mnist_cnn.onnx", target="argmax", reference="zeros")(x)
    explanation.save(tmp_path / "c.npz")
    with np.load(tmp_path / "c.npz") as saved:
        from_file = select(dict(saved), x, samples=[3, 1])
    for selection in (from_file, select(explanation, {"x": x}, samples=[3, 1])):
        assert selection.samples == [3, 1]
        assert list(selection.outputs) == ["y"]
        np.testing.assert_array_equal(selection.contributions, explanation.contributions["x"][[3, 1]])
        np.testing.assert_array_equal(selection.data, x[[3, 1]])
        np.testing.assert_array_equal(selection.target, explanation.target[[3, 1]])
        winner = explanation.outputs["y"][3].argmax()
        assert selection.caption(0).splitlines()[0] == f"sample 3, argmax y = {winner}"
    assert drawing(from_file).kind == "image"


def test_exposed_tensors_and_multipliers_are_no_outputs() -> None:
    more = {
        "y": normal(2, 3), "x_multipliers": normal(2, 5), "y_reference": normal(2, 3), "h": normal(2, 3),
        "h/multiplier": normal(2, 3), "h/contributions": normal(2, 3), "text": np.array(["a", "b"]), "1": normal(1, 2),
    }  # fmt: skip
    assert list(select(explained(normal(2, 5), **more)).outputs) == ["y"]


def test_a_model_without_a_batch_axis_has_one_sample() -> None:
    arrays = {key: value[0] for key, value in explained(normal(1, 3, 9, 9), y=normal(1, 4)).items()}
    selection = select(arrays, normal(3, 9, 9))
    assert (selection.samples, selection.count, selection.contributions.shape) == ([0], 1, (1, 3, 9, 9))
    assert selection.data is not None
    assert drawing(selection).kind == "image"


def test_files_are_replaced_whole_or_not_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onnxlift.arrays.os.replace", full)
    Path("out.html").write_text("what was there")
    with pytest.raises(OptionError, match="No space left"):
        onnxlift.plot.report("out.html", explained(normal(2, 3)))
    assert "No space left" in call("table.npz", "--out", "out.html", status=2).stderr
    assert Path("out.html").read_text() == "what was there"
    assert not list(folder.glob(".*"))


def test_one_scale_for_all_samples_of_a_report() -> None:
    c = normal(2, 5, 4)
    c[0] *= 100
    picture = Logos.of(c, None, None, "ACGT", None)
    labels = drawing(select(explained(c)), "logo").labels
    assert picture.draw([0], labels).axes[0].get_ylim() == picture.draw([1], labels).axes[0].get_ylim()
    charts = Charts.of(c[..., 0], None, None, 3)
    one, two = (charts.draw([row], labels).axes[0] for row in (0, 1))
    assert one.get_xlim() == two.get_xlim()
    assert one.get_window_extent().width == two.get_window_extent().width


# --------------------------------------------------------------------------------------------------- report


HOSTILE = '"><script>alert(1)</script><img src="http://example.org/x" onerror=alert(1)>\u202e\x00$x^{'


class Tags(HTMLParser):
    """What a page is made of."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def check_page(page: str) -> Tags:
    """Nothing runs and nothing is loaded; every picture is there."""
    found = Tags(page)
    allowed = "html head meta title style body main h1 h2 p section div table tr th td dl dt dd img span".split()
    assert set(found.tags) <= set(allowed)
    assert {name for name, _ in found.attributes if name.startswith("on") or name == "href"} == set()
    for name, value in found.attributes:
        if name == "src":
            kind, _, content = (value or "").partition(";base64,")
            start = {"data:image/png": b"\x89PNG\r\n", "data:image/svg+xml": b"<?xml"}[kind]
            picture = base64.b64decode(content, validate=True)
            assert picture.startswith(start)
            assert b"<script" not in picture
    assert "default-src 'none'" in page
    return found


def hostile(c: Any) -> Mapping[str, Any]:
    return explained(
        c, HOSTILE, **{HOSTILE + "y": normal(len(c), 5), "flat": normal(len(c)), "deep": normal(len(c), 2, 2)}
    )


PAGES: dict[str, tuple[Any, Any, Options]] = {
    "image": (normal(3, 3, 9, 9), RNG.random((3, 3, 9, 9)), Options()),
    "logo": (normal(3, 20, 4), one_hot(3, 20), Options(window=(2, 9))),
    "bars": (normal(3, 20), normal(3, 20), Options(names=[f"{HOSTILE}{k}" for k in range(20)], top=2)),
    "tokens": (normal(3, 4), None, Options(tokens=[[HOSTILE, "b", "<", "&amp;"]] * 3)),
}


@pytest.mark.parametrize("kind", PAGES)
def test_a_report_is_one_safe_file(kind: Any, tmp_path: Path) -> None:
    c, data, options = PAGES[kind]
    c = odd(c)
    onnxlift.plot.report(tmp_path / "page.html", hostile(c), data, title=HOSTILE, unit=HOSTILE, options=options)
    page = (tmp_path / "page.html").read_text("utf-8")
    found = check_page(page)
    assert found.tags.count("section") == 4
    assert found.tags.count("img") == (0 if kind == "tokens" else 3)
    assert "\u202e" not in page
    assert "\x00" not in page
    assert '"><script>alert(1)</script><img src="http://example.org/x" onerror=alert(1)>' in found.text
    assert "sample 1: all contributions are 0" in found.text
    assert f"sample 2: {int(np.isnan(c[2]).sum())} of {c[2].size} contributions are not finite" in found.text
    if kind == "tokens":
        assert "&amp;amp;" in page


def test_a_report_tells_inputs_predictions_and_totals(tmp_path: Path) -> None:
    c = np.array([[1, -0.25, 0], [4, 0, 2.5]], np.float32)
    arrays = explained(c, y=np.array([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]], np.float32))
    path = tmp_path / "page.html"
    onnxlift.plot.report(path, arrays, c, options=Options(names=["age", "sex", "mass"]), unit="logit", samples=[1])
    text = Tags(path.read_text("utf-8")).text
    for said in ("Contributions of x to logit", "1 of 2 samples", "argmax y = 0", "[0] 0.6; [1] 0.3; [2] 0.1", "7.5",
                 "+6.50 (+6.50 above 0, 0 below)", "1e−07", "mean of all 2", "4.625", "at most 1e−07"):  # fmt: skip
        assert said in text, said
    assert "sample 0" not in text.lower()


def test_a_report_of_one_input_of_several(tmp_path: Path) -> None:
    arrays = explained(normal(2, 3), "a") | {"b_contributions": normal(2, 4)}
    onnxlift.plot.report(tmp_path / "page.html", arrays, input="b")
    assert "(those of b alone are shown here)" in (tmp_path / "page.html").read_text("utf-8")


def test_numbers_that_overflow_in_a_report(tmp_path: Path) -> None:
    arrays = explained(np.full((2, 3), 1, np.float64))
    arrays["target_output"] = np.array([np.inf, np.nan])
    arrays["target_reference"] = np.array([np.inf, -1e308])
    arrays["completeness_gap"] = np.array([np.nan, 1e308])
    arrays["x_contributions"] = np.full((2, 3), 1e308)
    onnxlift.plot.report(tmp_path / "page.html", arrays)
    assert "1 not finite" in (tmp_path / "page.html").read_text("utf-8")


# ---------------------------------------------------------------------------------------------- command line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with explanations of images, sequences, a table and tokens, and their data."""
    monkeypatch.chdir(tmp_path)
    np.savez("image.npz", **explained(normal(12, 1, 8, 8), y=normal(12, 3)))
    np.savez("images.npz", x=(255 * RNG.random((12, 8, 8))).astype(np.uint8), labels=np.arange(12))
    x = one_hot(2, 40)
    np.savez("logo.npz", **explained(normal(2, 40, 4) * x))
    np.save("sequences.npy", x)
    np.savez("table.npz", **explained(normal(1000, 6)))
    np.savez("two.npz", **(explained(normal(2, 6), "a") | {"b_contributions": normal(2, 3)}))
    np.savez("text.npz", **explained(normal(2, 3, 8), "emb"))
    Path("names.txt").write_text("\n".join(f"name {k}" for k in range(6)))
    Path("tokens.txt").write_text("not a film\nthis is art\n")
    return tmp_path


def call(*arguments: str, status: int = 0) -> Result:
    result = CliRunner(env={"COLUMNS": "100"}).invoke(cli.main, ["plot", *arguments])
    assert result.exit_code == status, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result


def facts(*arguments: str) -> dict[str, Any]:
    return dict(json.loads(call(*arguments, "--json").stdout))


@pytest.mark.parametrize("suffix", ["png", "svg", "html", "PNG"])
@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ("image.npz --data images.npz --samples 3", "image"),
        ("logo.npz --data sequences.npy --window 5:20", "logo"),
        ("table.npz --names names.txt --top 3 --samples 0,999", "bars"),
        ("text.npz --tokens tokens.txt", "tokens"),
    ],
)
def test_the_format_is_that_of_the_suffix(folder: Path, arguments: str, kind: str, suffix: str) -> None:
    out = f"out.{suffix}"
    assert facts(*arguments.split(), "--out", out)["kind"] == kind
    start = {"png": b"\x89PNG\r\n", "svg": b"<?xml", "html": b"<!DOCTYPE html>"}[suffix.lower()]
    assert Path(out).read_bytes().startswith(start)
    if suffix == "html":
        check_page(Path(out).read_text("utf-8"))
    assert not list(folder.glob(".*"))


def test_what_the_command_says(folder: Path) -> None:
    said = call("image.npz", "--out", "out.png").stdout
    assert "image, because the shape [1, 8, 8] has channels and two sides (--as chooses another)" in said
    assert "0 to 7 of 12" in said
    assert "wrote" in said
    assert "because" not in call("image.npz", "--as", "image", "--out", "out.png").stdout
    assert call("image.npz", "--out", "out.png", "-q").output == ""
    told = facts("table.npz", "--out", "out.svg", "--samples", "3,", "--title", HOSTILE)
    assert (told["samples"], told["of"], told["input"], told["shape"]) == ([3], 1000, "x", [6])
    assert (told["file"], told["guessed"], told["notes"]) == ("out.svg", "the shape [6] has one axis", [])
    assert facts("two.npz", "--input", "b", "--out", "out.png")["shape"] == [3]
    np.savez("odd.npz", **explained([[0, 0], [np.nan, 1], [2, 3]], y=normal(3, 2)))
    assert call("odd.npz", "--out", "out.png", "-q").stderr.splitlines() == [
        "warning: sample 0: all contributions are 0",
        "warning: sample 1: 1 of 2 contributions are not finite",
    ]
    Path("tokens.txt").write_text("日 本\n語 b\n語 c")
    said = call("odd.npz", "--out", "out.png", "--tokens", "tokens.txt", "--samples", "2,", "-q").stderr
    assert said.startswith("warning: the font lacks '語' and shows boxes")
    assert call("odd.npz", "--out", "out.html", "--tokens", "tokens.txt", "--samples", "2,", "-q").stderr == ""


@pytest.mark.parametrize(
    ("samples", "text", "expected"),
    [
        (2, "a b c\nd e f\n", [list("abc"), list("def")]),
        (2, "a\nb\nc\n\nd\ne\nf\n\n\n", [list("abc"), list("def")]),
        (1, "a b c", [list("abc")]),
        (1, "a\nb\nc", [list("abc")]),
        (1, "a b\nc\n", [list("abc")]),
    ],
)
def test_files_of_tokens(folder: Path, samples: int, text: str, expected: list[list[str]]) -> None:
    np.savez("text.npz", **explained(normal(samples, 3)))
    Path("tokens.txt").write_text(text)
    call("text.npz", "--tokens", "tokens.txt", "--out", "out.html", "-q")
    found = re.findall(r"<span [^>]*>([^<]*)</span>", Path("out.html").read_text())
    assert found == list(itertools.chain(*expected))


def test_data_that_are_no_arrays(folder: Path) -> None:
    """Sequences and images are drawn as the arrays that they are for the model."""
    pixels = np.load("images.npz")["x"]
    Path("photographs").mkdir()
    for number, each in enumerate(pixels):
        Image.fromarray(each).save(f"photographs/{number:02}.png")
    letters = ["".join("ACGT"[k] for k in each.argmax(axis=1)) for each in np.load("sequences.npy")]
    Path("letters.fa").write_text("".join(f">{i}\n{each}\n" for i, each in enumerate(letters)))
    Path("genome.fa").write_text(f">chr1\n{''.join(letters)}\n")
    Path("regions.bed").write_text("chr1\t0\t40\nchr1\t40\t80\n")
    np.save("images.npy", pixels[:, None].astype(np.float32) / 255)
    drawn = {
        "photographs": "images.npy",
        "letters.fa": "sequences.npy",
        "regions.bed --genome genome.fa": "sequences.npy",
    }
    for data, arrays in drawn.items():
        result = "image.npz" if "photographs" in data else "logo.npz"
        call(result, "--data", *data.split(), "--out", "got.svg", "-q")
        call(result, "--data", arrays, "--out", "expected.svg", "-q")
        assert Path("got.svg").read_text() == Path("expected.svg").read_text()
    assert "name the FASTA file" in call("logo.npz", "--data", "regions.bed", "--out", "out.png", status=2).stderr


def test_the_whole_way_from_a_model(folder: Path) -> None:
    digits = np.load(MODELS / "mnist_digits.npz")["x"][:3, None].astype(np.float32) / 255
    np.savez("digits.npz", x=digits)
    arguments = ["explain", str(MODELS / "mnist_cnn.onnx"), "digits.npz", "--out", "c.npz", "--target", "argmax"]
    assert CliRunner().invoke(cli.main, [*arguments, "--reference", "zeros", "-q"]).exit_code == 0
    told = facts("c.npz", "--data", "digits.npz", "--out", "digits.html", "--unit", "logit")
    assert (told["kind"], told["notes"]) == ("image", [])
    assert "argmax y = 9" in check_page(Path("digits.html").read_text("utf-8")).text


REFUSED: dict[str, tuple[str, str, Callable[[], object] | None]] = {
    "no suffix": ("image.npz --out out", "ends in none of .png, .svg, .html", None),
    "unknown suffix": ("image.npz --out out.pdf", "ends in none of .png, .svg, .html", None),
    "no out": ("image.npz", "Missing option '--out'", None),
    "missing folder": ("image.npz --out no/out.png", "there is no folder no", None),
    "folder as out": ("image.npz --out dir.png", "it is a folder", lambda: Path("dir.png").mkdir()),
    "over what is read": ("c.html --out c.html", "would overwrite", lambda: Path("image.npz").rename("c.html")),
    "no file": ("nothing.npz --out out.png", "Cannot read the data nothing.npz", None),
    "no data": ("image.npz --out out.png --data nothing.npz", "Cannot read the data nothing.npz", None),
    "a single array": ("sequences.npy --out out.png", "is a single array", None),
    "data alone": ("images.npz --out out.png", "images.npz has no contributions: give what `onnxlift explain", None),
    "several inputs": ("two.npz --out out.png", "has contributions of 'a', 'b': choose an input", None),
    "unknown input": ("two.npz --out out.png --input c", "no contributions of 'c', only of 'a', 'b'", None),
    "unknown sample": ("image.npz --out out.png --samples 0,12", "no sample 12: samples are 0 to 11", None),
    "negative sample": ("image.npz --out out.png --samples=-1,", "no sample -1", None),
    "no samples": ("image.npz --out out.png --samples 0", "at least 1, not 0", None),
    "empty samples": ("image.npz --out out.png --samples ,", "no sample is chosen", None),
    "garbled samples": ("image.npz --out out.png --samples first", "neither a count such as 8", None),
    "too many samples": ("table.npz --out out.png --samples 500", "500 samples are too many", None),
    "garbled window": ("logo.npz --out out.png --window 5", "not like 100:180", None),
    "window outside": ("logo.npz --as logo --out out.png --window 5:99", "outside of the 40 positions", None),
    "data of others": ("image.npz --out out.png --data sequences.npy", "has shape [2, 40, 4]", None),
    "data without it": ("text.npz --out out.png --data images.npz", "images.npz has no array 'emb', only", None),
    "text as data": ("image.npz --out out.png --data names.txt", "of no format that onnxlift reads", None),
    "option of others": ("table.npz --out out.png --window 0:3", "takes no option 'window'", None),
    "wrong kind": ("table.npz --as image --out out.png", "an image needs contributions of shape", None),
    "unknown kind": ("table.npz --as pie --out out.png", "'pie' is not one of", None),
    "names": ("table.npz --out out.png --names a,b", "2 names for 6 features", None),
    "binary names": ("table.npz --out out.png --names table.npz", "is not text in UTF-8", None),
    "no tokens": ("text.npz --out out.png --tokens nothing.txt", "cannot read --tokens nothing.txt", None),
    "too many lines": ("text.npz --out out.png --tokens names.txt", "has 6 lines in 1 blocks, for 2 samples", None),
    "too few tokens": (
        "text.npz --out out.png --tokens tokens.txt", "2 tokens for 3", lambda: Path("tokens.txt").write_text("a b\nc")
    ),
    "no target": (
        "c.npz --out out.png", "has no array 'target_output'", lambda: np.savez("c.npz", x_contributions=normal(2, 3))
    ),
    "several targets": (
        "c.npz --out out.png", "c.npz explains 3 targets of each sample, and one can be shown at a time",
        lambda: np.savez("c.npz", **(explained(normal(2, 3)) | {"target_output": normal(2, 3)})),
    ),
    "target with axes": (
        "c.npz --out out.png", "'target_output' in c.npz must be a number for each sample, not float32 [2, 3, 1]",
        lambda: np.savez("c.npz", **(explained(normal(2, 3)) | {"target_output": normal(2, 3, 1)})),
    ),
    "fewer gaps": (
        "c.npz --out out.png", "'completeness_gap' in c.npz must be a number for each sample",
        lambda: np.savez("c.npz", **(explained(normal(2, 3)) | {"completeness_gap": normal(1)})),
    ),
    "fewer contributions": (
        "c.npz --out out.png", "does not begin with the 2 samples",
        lambda: np.savez("c.npz", **(explained(normal(2, 3)) | {"x_contributions": normal(1, 3)})),
    ),
    "empty contributions": (
        "c.npz --out out.png", "are empty", lambda: np.savez("c.npz", **explained(normal(2, 0, 5))),
    ),
    "contributions of text": (
        "c.npz --out out.png", "must be floating-point, not <U1",
        lambda: np.savez("c.npz", **(explained(normal(2, 3)) | {"x_contributions": np.full((2, 3), "a")})),
    ),
    "scalars": ("c.npz --out out.png", "fit no kind of picture", lambda: np.savez("c.npz", **explained(normal(3)))),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_gets_one_sentence_and_writes_nothing(folder: Path, case: str) -> None:
    arguments, message, prepare = REFUSED[case]
    if prepare:
        prepare()
    Path("out.png").write_bytes(b"what was there")
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    result = call(*arguments.split(), status=2)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("library", ["matplotlib", "logomaker"])
def test_without_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    for suffix in ("png", "html"):
        said = call("logo.npz", "--data", "sequences.npy", "--out", f"out.{suffix}", status=2).stderr
        assert said.startswith("error: drawing needs matplotlib and logomaker")
        assert "pip install 'onnxlift[plot]'" in said
        assert said.count("\n") == 1


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    code = "import sys, onnxlift.cli, onnxlift.plot; print({'matplotlib', 'pandas', 'logomaker'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr


def test_help_shows_examples() -> None:
    text = call("--help").stdout
    assert "  onnxlift plot " in text.partition("Example")[2]
    assert "onnxlift[plot]" in text


def test_results_that_are_larger_than_memory(tmp_path: Path) -> None:
    """600 MB of contributions and as much data, of which two samples are drawn."""
    count, file = 200_000, tmp_path / "out.zarr"
    group = zarr.open_group(file, mode="w")
    for name in ("target_output", "target_reference", "completeness_gap"):
        group.create_array(name, data=np.arange(count, dtype=np.float32))
    image = np.linspace(-1, 1, 784, dtype=np.float32).reshape(1, 1, 28, 28)
    for name in ("x_contributions", "x"):
        stored = group.create_array(name, shape=(count, 1, 28, 28), chunks=(500, 1, 28, 28), dtype=np.float32)
        stored[150_000:150_001] = image
    tracemalloc.start()
    told = facts(str(file), "--data", str(file), "--out", str(tmp_path / "out.png"), "--samples", "7,150000")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
    assert told["samples"] == [7, 150_000]
