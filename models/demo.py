"""What `make demo` runs: explain a digit classifier and two splice-site networks, print, draw one picture.

Each network is rewritten to an explainer file, and ONNX Runtime runs that file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D
from rich.console import Console
from rich.table import Table

import onnxlift

Array = np.ndarray[Any, Any]

MODELS = Path(__file__).resolve().parent
OUT = MODELS.parent / "build" / "demo"
DIGITS = [0, 1, 2, 3, 4, 5, 6, 26]  # the last one is a 7 that the network reads as a 2
SITES = {"acceptor": (50, 3), "donor": (5, 13)}  # bases that the network sees before and after the junction
BASES = "ACGT"
COLOURS = {"A": "#2a9d3a", "C": "#2166ac", "G": "#e08214", "T": "#c0272d"}

console = Console()


def explain(name: str, x: Array, **options: Any) -> onnxlift.Explanation:
    """Rewrite models/NAME.onnx to an explainer file and run it on `x`."""
    path = OUT / f"{name}_explainer.onnx"
    onnxlift.rewrite_file(MODELS / f"{name}.onnx", path, **options)
    explainer = onnxlift.Explainer(path)
    console.print(f"\n[bold]{name}.onnx[/bold] -> {path.relative_to(MODELS.parent)}", highlight=False)
    console.print(str(explainer), highlight=False)
    return explainer(x)


def report(title: str, columns: str, rows: list[list[str]]) -> None:
    """Print one table."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in columns.split("|"):
        table.add_column(column, justify="left" if column.startswith("top") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def ends(explanation: onnxlift.Explanation, i: int) -> list[str]:
    """The target at x and at the reference, and what the contributions leave unexplained."""
    t_x, t_r, gap = explanation.target[i], explanation.target_reference[i], explanation.gap[i]
    return [f"{t_x:.3f}", f"{t_r:.3f}", f"{gap:+.1e}"]


def strongest(contributions: Array) -> Array:
    """Flat indices of the three largest contributions by size."""
    return np.argsort(-np.abs(contributions), axis=None, kind="stable")[:3]


def explain_digits() -> tuple[Array, Array, list[str]]:
    """Images, contributions of their pixels to the winning logit, and a caption each."""
    with np.load(MODELS / "mnist_digits.npz") as data:
        images, labels = data["x"][DIGITS], data["y"][DIGITS]
    x = images[:, None].astype(np.float32) / 255
    result = explain("mnist_cnn", x, target="argmax", reference="zeros")
    predicted = result.outputs["y"].argmax(axis=1)
    contributions = result.contributions["x"][:, 0]

    rows, captions = [], []
    for i, (label, guess, c) in enumerate(zip(labels, predicted, contributions, strict=True)):
        pixels = (np.unravel_index(k, c.shape) for k in strongest(c))
        top = "  ".join(f"{row:2d},{column:2d} {c[row, column]:+.2f}" for row, column in pixels)
        colour = "default" if guess == label else "red"
        rows.append([str(label), f"[{colour}]{guess}[/{colour}]", top, *ends(result, i)])
        captions.append(f"a {label}, read as {guess}")
    report(
        "Digits: contributions of the pixels to the winning logit",
        "digit|read as|top pixels: row, column|t(x)|t(r)|gap",
        rows,
    )
    return images, contributions, captions


def explain_sites(kind: str, sequence: Array, junctions: Array) -> tuple[str, Array, str]:
    """Bases, contribution of each position, and a caption, for the site with the highest score."""
    before, after = SITES[kind]
    x = np.stack([sequence[j - before : j + after] for j in junctions]).astype(np.float32)
    background = np.full((1, before + after, 4), 0.25, dtype=np.float32)
    result = explain(f"mmsplice_{kind}", x, reference={"seq": background})
    scores = result.outputs["out"][:, 0]
    contributions = result.contributions["seq"].sum(axis=2)  # the four channels of a position together
    windows = ["".join(BASES[k] for k in window.argmax(axis=1)) for window in x]

    rows = []
    for i, (junction, bases, c) in enumerate(zip(junctions, windows, contributions, strict=True)):
        top = "  ".join(f"{bases[k]}{position(k, before):+d} {c[k]:+.2f}" for k in strongest(c))
        rows.append([str(junction), f"{scores[i]:.3f}", top, *ends(result, i)])
    report(
        f"Splice {kind}s of gene PDIA2: contributions of the bases to the logit",
        "junction|score|top bases, from the junction|t(x)|t(r)|gap",
        rows,
    )
    best = int(scores.argmax())
    return windows[best], contributions[best], f"{kind} at base {junctions[best]}, score {scores[best]:.3f}"


def position(index: int, before: int) -> int:
    """Position from the junction, which has no zero: ... -2 -1 | +1 +2 ..."""
    return index - before + (index >= before)


def draw_logo(axes: Axes, kind: str, bases: str, c: Array, caption: str) -> None:
    """Contributions as letters: the height is the contribution, a negative one hangs upside down."""
    before = SITES[kind][0]
    for i, (base, height) in enumerate(zip(bases, c, strict=True)):
        glyph = TextPath((0, 0), base, size=1, prop=FontProperties(family="DejaVu Sans", weight="bold"))
        box = glyph.get_extents()
        place = Affine2D().translate(-box.x0, -box.y0).scale(0.9 / box.width, height / box.height)
        path = place.translate(i - 0.45, 0).transform_path(glyph)
        axes.add_patch(PathPatch(path, facecolor=COLOURS[base], edgecolor="none"))
    low, high = min(c.min(), 0.0), max(c.max(), 0.0)
    margin = 0.08 * (high - low)
    axes.set(xlim=(-0.7, len(c) - 0.3), ylim=(low - margin, high + 2 * margin), title=f"Splice {caption}")
    exon = (before - 0.5, len(c)) if kind == "acceptor" else (-1, before - 0.5)
    axes.axvspan(*exon, color="0.92", zorder=0)
    x = (max(exon[0], -0.5) + min(exon[1], len(c) - 0.5)) / 2
    axes.text(x, high + margin, "exon", ha="center", va="center", color="0.35")
    axes.axhline(0, color="0.3", linewidth=0.6)
    edge = -1 if kind == "acceptor" else 1  # the intron's base beside the junction
    ticks = [k for k in range(len(c)) if position(k, before) == edge or position(k, before) % 10 == 0]
    axes.set_xticks(ticks, [f"{position(k, before):+d}" for k in ticks])
    axes.set_xlabel("position from the splice junction")
    axes.spines[["top", "right"]].set_visible(False)


def draw(digits: tuple[Array, Array, list[str]], logos: dict[str, tuple[str, Array, str]]) -> Path:
    """One picture of everything."""
    figure = Figure(figsize=(14, 8), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.5, 1])
    grid = above.subplots(2, 8)
    limit = float(np.abs(digits[1]).max())
    for k, (image, c, caption) in enumerate(zip(*digits, strict=True)):
        pair = grid.ravel()[2 * k : 2 * k + 2]
        pair[0].imshow(image, cmap="gray_r")
        pair[0].set_title(caption, loc="left", fontsize=10)
        heat = pair[1].imshow(c, cmap="RdBu_r", vmin=-limit, vmax=limit)
        for axes in pair:
            axes.set(xticks=[], yticks=[])
    above.suptitle("DeepLIFT contributions of the pixels to the winning logit (reference: an empty image)")
    above.colorbar(heat, ax=grid, shrink=0.8, label="contribution to the logit")
    below.suptitle("Contributions of the bases of gene PDIA2 to the splice logit (reference: 0.25 each)")
    panels = below.subplots(1, len(logos), width_ratios=[sum(SITES[kind]) + 6 for kind in logos])
    for axes, (kind, logo) in zip(panels, logos.items(), strict=True):
        draw_logo(axes, kind, *logo)
    panels[0].set_ylabel("contribution to the logit")
    path = OUT / "demo.png"
    figure.savefig(path, dpi=110)
    return path


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    digits = explain_digits()
    with np.load(MODELS / "pdia2_gene.npz") as data:
        sequence, exons = data["sequence"], data["exons"]
    # An acceptor opens an exon, a donor follows one.
    junctions = {"acceptor": exons[1:, 0], "donor": exons[:-1, 1]}
    logos = {kind: explain_sites(kind, sequence, junctions[kind]) for kind in SITES}
    path = draw(digits, logos)
    console.print(f"\nPicture: [bold]{path.relative_to(MODELS.parent)}[/bold]", highlight=False)


if __name__ == "__main__":
    main()
