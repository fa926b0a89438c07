"""The closed-form examples of the papers as tiny ONNX models: contributions by rule beside those worked out by hand.

    python models/experiments/gallery.py

Prints one table per idea, fails where a contribution misses the value by hand by more than 1e-6, and draws
docs/experiments/gallery_*.png. docs/experiments/gallery.md derives the values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from gallery_cases import (
    AFTER,
    BEFORE,
    CASES,
    MINIMUM,
    ONE_HOT,
    SATURATION,
    SIGMOID,
    SOFTMAX,
    THRESHOLD,
    TITLES,
    Case,
    explain,
)
from images import SIGNED, Array, save, table
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

COLOURS = {
    "gradient-x-input": "#d95f02",
    "integrated-gradients:10": "#7570b3",
    "rescale": "#1b9e77",
    "reveal-cancel": "#e7298a",
    "liftpad": "#386cb0",
}
OTHER = "0.45"
TOLERANCE = 1e-6  # of the size of the value by hand, or of 1


def written(values: Array) -> str:
    """A tuple as one would write it; where a one-hot input has zeros, its contributions are left out."""
    shown = values[values != 0] if values.size > 3 else values
    return "(" + ", ".join(f"{value:.6g}" for value in shown.round(6) + 0.0) + ")"


def check(console: Console, title: str, cases: list[Case]) -> float:
    """Print the table of one idea; the largest error, relative to the value by hand or to 1."""
    rows = []
    worst = 0.0
    for case in cases:
        for rule, expected in case.by_hand.items():
            result = explain(case.model, rule, [case.x], case.reference, **case.options)
            found, hand = result.contributions["x"].ravel(), np.array(expected)
            error = float((np.abs(found - hand) / np.maximum(np.abs(hand), 1)).max())
            assert error <= TOLERANCE, f"{title}, {case.title}, {rule}: {found}, by hand {hand}"
            worst = max(worst, error)
            ends = f"{found.sum() + 0.0:.4g}", f"{result.difference.item():.4g}"
            rows.append([case.title, TITLES[rule], written(found), written(hand), *ends])
    table(console, title, ["input", "rule", "contributions", "by hand", "sum", "t(x) - t(r)"], rows, text=4)
    return worst


def line(axes: Axes, t: Array, y: Array, **style: Any) -> None:
    """Plot `y` along `t`, leaving out what would join the sides of a jump."""
    jumps = np.flatnonzero(np.abs(np.diff(y)) > 0.2 * np.ptp(y)) + 1
    axes.plot(np.insert(t, jumps, np.nan), np.insert(y, jumps, np.nan), **style)


def curves(axes: Axes, t: Array, model: onnx.ModelProto, x: Array, rules: str, element: int = 0) -> None:
    """Contribution of one element of the input along `t`, by rule; equal curves stay visible under each other."""
    for width, rule in zip((5.0, 2.6, 1.4, 1.2), rules.split(), strict=False):
        y = explain(model, rule, x).contributions["x"][:, element]
        line(axes, t, y, color=COLOURS[rule], linewidth=width, label=TITLES[rule])


def gradient(axes: Axes, t: Array, model: onnx.ModelProto, x: Array, label: str) -> None:
    """The derivative by the first element of the input along `t`."""
    y = explain(model, "gradient", x, emit=("multipliers",)).multipliers["x"][:, 0]
    line(axes, t, y, color=COLOURS["gradient-x-input"], linestyle="--", label=label)


def panel(axes: Axes, title: str, x: str, y: str) -> None:
    """What all plots have in common."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.set(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)


def draw_saturation() -> None:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    t = np.linspace(0, 2, 201)
    x = np.stack([t / 2, t / 2], axis=1)
    left.plot(t, explain(SATURATION, "rescale", x).target, color="black", label="y")
    gradient(left, t, SATURATION, x, "dy/di1")
    panel(left, "y = 1 - relu(1 - i1 - i2): flat from i1 + i2 = 1", "i1 + i2", "")
    curves(right, t, SATURATION, x, "reveal-cancel rescale integrated-gradients:10 gradient-x-input")
    panel(right, "contribution of i1, where i1 = i2", "i1 + i2", "contribution")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=9)
    save(figure, "gallery_saturation")


def draw_threshold() -> None:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    t = np.linspace(0, 20, 401)
    left.plot(t, explain(THRESHOLD, "rescale", t[:, None]).target, color="black", label="y")
    gradient(left, t, THRESHOLD, t[:, None], "dy/dx")
    panel(left, "y = relu(x - 10)", "x", "")
    curves(right, t, THRESHOLD, t[:, None], "reveal-cancel rescale integrated-gradients:10 gradient-x-input")
    panel(right, "contribution of x", "x", "contribution")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=9, loc="upper left")
    save(figure, "gallery_threshold")


def draw_minimum() -> None:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    t = np.linspace(0, 3, 301)
    x = np.stack([t, np.ones_like(t)], axis=1)
    for k, axes in enumerate(figure.subplots(1, 2, sharey=True)):
        axes.plot(t, explain(MINIMUM, "rescale", x).target, color=OTHER, linestyle=":", label="y = min(i1, i2)")
        curves(axes, t, MINIMUM, x, "rescale reveal-cancel integrated-gradients:10 gradient-x-input", element=k)
        panel(axes, f"contribution of i{k + 1}, where i2 = 1", "i1", "contribution" if k == 0 else "")
        axes.legend(frameon=False, fontsize=9, loc=(0.6, 0.56) if k == 0 else "lower right")
    save(figure, "gallery_minimum")


def draw_sigmoid() -> None:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    t = np.linspace(0, 10, 201)
    for axes, option, place in ((left, AFTER, "after"), (right, BEFORE, "before")):
        for other, label, style in (
            (np.zeros_like(t), "x2 = 0", {"color": COLOURS["rescale"], "linewidth": 4}),
            (t, "x2 = x1", {"color": "black", "linestyle": "--"}),
        ):
            x = np.stack([t, other], axis=1)
            y = explain(SIGMOID, "rescale", x, **option).contributions["x"][:, 0]
            axes.plot(t, y, **style, label=f"Rescale, {label}")
        panel(axes, f"contribution of x1 {place} the sigmoid of x1 + x2", "x1", "contribution")
        axes.legend(frameon=False, fontsize=9, loc="lower right")
    save(figure, "gallery_sigmoid")


def bars(axes: Axes, groups: list[str], series: dict[str, list[float]]) -> None:
    """Grouped bars, one colour per rule."""
    width = 0.8 / len(series)
    for k, (rule, values) in enumerate(series.items()):
        place = np.arange(len(groups)) + (k - (len(series) - 1) / 2) * width
        drawn = axes.bar(place, values, width * 0.92, color=COLOURS[rule], label=TITLES[rule])
        axes.bar_label(drawn, fmt=lambda value: f"{round(value, 6) + 0.0:.3g}", fontsize=8, padding=1)
    axes.set_xticks(range(len(groups)), groups)
    axes.margins(y=0.15)


def draw_softmax() -> None:
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for k, axes in enumerate(figure.subplots(1, 3, sharey=True)):
        values = {
            rule: explain(SOFTMAX, rule, [[1, 1, 1]], target=k).contributions["x"][0] for rule in ("rescale", "liftpad")
        }
        bars(axes, ["x1", "x2", "x3"], values)
        panel(axes, f"to class {k + 1}, before the softmax", "", "contribution" if k == 0 else "")
    axes.legend(frameon=False, fontsize=9)
    save(figure, "gallery_softmax")


def draw_one_hot() -> None:
    figure = Figure(figsize=(9, 2.4), layout="constrained")
    x = np.repeat(np.eye(4, dtype=np.float32)[..., None], 2, axis=2)  # AA, CC, GG, TT: letters do not interact
    for axes, rule in zip(figure.subplots(1, 2), ("rescale", "liftpad"), strict=True):
        c = explain(ONE_HOT, rule, x, target=(0, 0)).contributions["x"].sum(axis=1).T
        axes.imshow(c, cmap=SIGNED, vmin=-6, vmax=6, aspect="auto")
        for (row, column), value in np.ndenumerate(c):
            axes.text(column, row, f"{value:g}", ha="center", va="center", color="white" if abs(value) > 4 else "black")
        axes.set_xticks(range(4), "ACGT")
        axes.set_yticks([0, 1], ["as first letter", "as second letter"])
        title = "plain weights (Rescale)" if rule == "rescale" else "normalised weights (LIFTPAD)"
        axes.set_title(title, fontsize=10, loc="left")
    save(figure, "gallery_one_hot")


def draw_maximum() -> None:
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    cases = CASES["Maximum: y = max(x1, x2, x3)"]
    for axes, case in zip(figure.subplots(1, 3, sharey=True), cases, strict=True):
        found = {
            rule: explain(case.model, rule, [case.x], case.reference)
            for rule in case.by_hand
            if rule != "reveal-cancel"
        }
        bars(axes, ["x1", "x2", "x3"], {rule: result.contributions["x"][0] for rule, result in found.items()})
        difference = found["rescale"].difference.item()
        panel(axes, f"x = (1, 3, 2), {case.title}\nt(x) - t(r) = {difference:g}", "", "")
    axes.legend(frameon=False, fontsize=9)
    save(figure, "gallery_maximum")


def main() -> None:
    console = Console(width=160, highlight=False)
    worst = max(check(console, title, cases) for title, cases in CASES.items())
    count = sum(len(case.by_hand) for cases in CASES.values() for case in cases)
    console.print(f"\n{count} explanations agree with those by hand; the largest error is {worst:.1e}")
    for draw in (
        draw_saturation,
        draw_threshold,
        draw_minimum,
        draw_sigmoid,
        draw_softmax,
        draw_one_hot,
        draw_maximum,
    ):
        draw()


if __name__ == "__main__":
    main()
