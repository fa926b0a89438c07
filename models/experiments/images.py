"""What the image experiments share: data, digits on photographs, importance scores by method, statistics, figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import onnxlift

Array = np.ndarray[Any, Any]

HERE = Path(__file__).resolve().parent
MODELS = HERE.parent
FIGURES = MODELS.parent / "docs" / "experiments"
SIDE = 32  # of the images with digits on photographs; a digit of 28 x 28 lies somewhere in it
SIGNED: Colormap = LinearSegmentedColormap.from_list("signed", ["#2166ac", "#8fbfdd", "#ffffff", "#f0a07c", "#b2182b"])


class Method(NamedTuple):
    """A way to score pixels.

    Attributes:
        title: what tables and figures call it.
        rule: preset of `onnxlift.rewrite`.
        plan: exceptions to it.
        times_input: whether the rule emits a sensitivity that is to be multiplied by x - r.
        magnitude: whether only the size of the sensitivity counts.
    """

    title: str
    rule: str
    plan: onnxlift.Plan | None = None
    times_input: bool = False
    magnitude: bool = False


def explainer(model: Path, method: Method, **options: Any) -> onnxlift.Explainer:
    """An explainer of `model` by `method`, with reference zeros."""
    emit = ("multipliers",) if method.times_input or method.magnitude else ("contributions",)
    options = {"reference": "zeros", "rule": method.rule, "plan": method.plan, "emit": emit} | options
    return onnxlift.Explainer(model, progress=False, **options)


def scores(explanation: onnxlift.Explanation, method: Method, x: Array) -> Array:
    """Scores of the elements of `x` (the reference being zeros), same shape."""
    if method.magnitude:
        return np.asarray(np.abs(explanation.multipliers["x"]))
    return np.asarray(explanation.multipliers["x"] * x if method.times_input else explanation.contributions["x"])


def digits_on_photographs(digits: Array, photos: Sequence[Array], rng: np.random.Generator) -> tuple[Array, Array]:
    """Digits painted in a random colour on random patches of photographs.

    Args:
        digits: uint8 `[N, 28, 28]`.
        photos: uint8 `[H, W, 3]` each, at least 32 x 32.
        rng: decides patch, mirroring, place and colour; a colour differs from the patch's mean by 110 of 255 at least
            (Euclidean, over the three channels).

    Returns:
        Images, uint8 `[N, 3, 32, 32]`, and how much of a pixel is ink, float32 `[N, 32, 32]` in 0..1.
    """
    images = np.empty((len(digits), 3, SIDE, SIDE), np.uint8)
    ink = np.zeros((len(digits), SIDE, SIDE), np.float32)
    for i, digit in enumerate(digits):
        photo = photos[int(rng.integers(len(photos)))]
        top, left = rng.integers(photo.shape[0] - SIDE + 1), rng.integers(photo.shape[1] - SIDE + 1)
        patch = photo[top : top + SIDE, left : left + SIDE].astype(np.float32)
        patch = patch[:, :: rng.choice([-1, 1])]
        row, column = rng.integers(SIDE - 28 + 1, size=2)
        ink[i, row : row + 28, column : column + 28] = digit / np.float32(255)
        colour = rng.uniform(0, 255, 3)
        while np.linalg.norm(colour - patch.mean(axis=(0, 1))) < 110:
            colour = rng.uniform(0, 255, 3)
        alpha = ink[i][..., None]
        images[i] = np.rint((1 - alpha) * patch + alpha * colour).transpose(2, 0, 1)
    return images, ink


def preprocessed(images: Array) -> Array:
    """What the network of the photographs reads: -0.5 to 0.5, so that zero is a middle grey."""
    return images.astype(np.float32) / 255 - np.float32(0.5)


def wilcoxon(differences: Array) -> float:
    """p of the two-sided Wilcoxon signed-rank test of paired differences `[N]`; zeros are left out.

    By the normal approximation, tied sizes sharing their mean rank; fair from about 20 pairs.
    """
    d = differences[differences != 0]
    n = len(d)
    _, place, count = np.unique(np.abs(d), return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    mean, variance = n * (n + 1) / 4, n * (n + 1) * (2 * n + 1) / 24 - (count**3 - count).sum() / 48
    return math.erfc(abs(rank[d > 0].sum() - mean) / math.sqrt(2 * variance)) if n else 1.0


def table(console: Console, title: str, columns: list[str], rows: list[list[str]], text: int = 1) -> None:
    """Print one table; the first `text` columns are flush left, the others right."""
    console.print(f"\n[bold]{title}[/bold]", soft_wrap=True)
    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for k, column in enumerate(columns):
        shown.add_column(column, justify="left" if k < text else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    console.print(shown)


def save(figure: Figure, name: str, dpi: int = 100) -> None:
    """Write docs/experiments/NAME.png and say so."""
    path = FIGURES / f"{name}.png"
    figure.savefig(path, dpi=dpi)
    print(f"figure: {path.relative_to(MODELS.parent)}")
