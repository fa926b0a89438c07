"""DeepLIFT section 4.1: which pixels make a digit one class and not another?

    python models/experiments/mnist_conversion.py [ANOTHER_MNIST_NETWORK.onnx]

For an image of class c_o and a target class c_t, up to 157 pixels (20 %) are erased, those with the largest
S_diff = S(c_o) - S(c_t) first and only where it is above 0. The more the log-odds move from c_o to c_t, the better the
scores S told the classes apart. Prints medians and paired comparisons, draws docs/experiments/mnist_conversion*.png of
the network in models/; docs/experiments/images.md discusses them. Takes ten seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from images import HERE, MODELS, SIGNED, Array, Method, explainer, save, scores, table, wilcoxon
from matplotlib.figure import Figure
from rich.console import Console

from onnxlift import Choice, Plan

MODEL = MODELS / "mnist_cnn.onnx"
CONVERSIONS = [(8, 3), (8, 6), (9, 1), (4, 1)]
ERASED = 157  # pixels at most: a fifth of all, as in the paper
FEWER = 39  # a twentieth: few enough for the ranking to matter, and not only the sign

METHODS = [
    Method("gradient*input", "gradient-x-input"),
    Method("IG-5", "integrated-gradients:5"),
    Method("IG-10", "integrated-gradients:10"),
    Method("guided backprop*input", "guided-backprop", times_input=True),
    Method("Rescale", "rescale"),
    Method("RevealCancel", "reveal-cancel"),
]
# The network's nonlinearities are three Relu: behind each convolution, and behind the first dense layer.
LAYERS = [
    Method("RevealCancel everywhere", "reveal-cancel"),
    Method("RevealCancel on convolutions only", "reveal-cancel", Plan([Choice("rescale", op="Relu", fed_by="Gemm")])),
    Method("RevealCancel on the dense layer only", "genomics"),
    Method("Rescale everywhere", "rescale"),
]
COLOURS = ["#d95f02", "#bcb8d9", "#7570b3", "#a6761d", "#1b9e77", "#e7298a"]
SHOWN = ["gradient*input", "IG-10", "guided backprop*input", "Rescale", "RevealCancel"]

Pair = tuple[int, int]  # c_o and c_t
Scores = dict[Pair, Array]  # scores of the digits of the first class for the second, [N, 1, 28, 28]
Changes = dict[Pair, Array]  # [N]


def erase(x: Array, difference: Array, count: int) -> Array:
    """`x` without the `count` pixels where `difference` is largest and above 0; both `[N, 1, 28, 28]`."""
    flat, ranked = x.reshape(len(x), -1).copy(), difference.reshape(len(x), -1)
    first = np.argsort(-ranked, axis=1, kind="stable")[:, :count]
    kept = np.take_along_axis(ranked, first, axis=1) <= 0
    np.put_along_axis(flat, first, np.take_along_axis(flat, first, axis=1) * kept, axis=1)
    return flat.reshape(x.shape)


class Experiment:
    """A network, the held-out digits by class, and what a method makes of them."""

    def __init__(self, model: Path) -> None:
        with np.load(HERE / "mnist_held_out.npz") as data:
            x, labels = data["x"][:, None].astype(np.float32) / 255, data["y"]
        self.digits = {label: x[labels == label] for label in {origin for origin, _ in CONVERSIONS}}
        self.model = model
        self.network = ort.InferenceSession(model, providers=["CPUExecutionProvider"])

    def logits(self, x: Array) -> Array:
        """`[N, 10]`."""
        return np.asarray(self.network.run(["y"], {"x": x})[0])

    def scores(self, method: Method) -> Scores:
        """Scores of the digits' pixels for their own class and for those that they are converted to."""
        explain = explainer(self.model, method, target="input")
        return {
            (label, target): scores(explain(x, target=target), method, x)
            for label, x in self.digits.items()
            for target in {label, *(to for origin, to in CONVERSIONS if origin == label)}
        }

    def erased(self, found: Scores, pair: Pair, count: int = ERASED) -> Array:
        """The digits of class c_o without the pixels that tell it from c_t, `[N, 1, 28, 28]`."""
        origin, _ = pair
        return erase(self.digits[origin], found[origin, origin] - found[pair], count)

    def changes(self, found: Scores, count: int = ERASED) -> Changes:
        """By conversion: the change of the log-odds of c_t against c_o, `[N]`."""
        changes = {}
        for origin, target in CONVERSIONS:
            before = self.logits(self.digits[origin])
            after = self.logits(self.erased(found, (origin, target), count))
            moved = after - before
            changes[origin, target] = moved[:, target] - moved[:, origin]
        return changes


def named(pair: Pair) -> str:
    return f"{pair[0]} to {pair[1]}"


def medians(console: Console, title: str, changes: dict[str, Changes]) -> None:
    """Median and quartiles of every method and conversion."""
    rows = []
    for name, found in changes.items():
        quartiles = (np.percentile(found[pair], [50, 25, 75]) for pair in CONVERSIONS)
        rows.append([name, *(f"{middle:.2f} ({low:.2f} to {high:.2f})" for middle, low, high in quartiles)])
    table(console, title, ["method", *map(named, CONVERSIONS)], rows)


def paired(console: Console, title: str, best: str, changes: dict[str, Changes]) -> None:
    """Where `best` changes the log-odds of an image more than another method does."""
    rows = []
    for name, found in changes.items():
        if name != best:
            differences = [changes[best][pair] - found[pair] for pair in CONVERSIONS]
            rows.append([name, *(f"{(d > 0).mean():4.0%}  {d.mean():+.2f}  {wilcoxon(d):.0e}" for d in differences)])
    table(console, title, [f"{best} against", *map(named, CONVERSIONS)], rows)


def erased_pixels(experiment: Experiment, found: Scores, pair: Pair) -> float:
    """How many pixels of ink an image of class c_o loses, on average."""
    x = experiment.digits[pair[0]]
    return float(((x > 0) & (experiment.erased(found, pair) == 0)).sum() / len(x))


def draw_boxes(changes: dict[str, Changes]) -> None:
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    for axes, pair in zip(figure.subplots(1, len(CONVERSIONS)), CONVERSIONS, strict=True):
        boxes = axes.boxplot(
            [found[pair] for found in changes.values()],
            widths=0.65,
            patch_artist=True,
            medianprops={"color": "black"},
            flierprops={"markersize": 2.5, "markeredgecolor": "0.5"},
        )
        for box, colour in zip(boxes["boxes"], COLOURS, strict=True):
            box.set(facecolor=colour, edgecolor="0.3")
        axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
        axes.set_xticks(range(1, len(changes) + 1), list(changes), rotation=40, ha="right", rotation_mode="anchor")
        axes.set_title(f"{named(pair)} ({len(changes['Rescale'][pair])} images)", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("change of the log-odds")
    save(figure, "mnist_conversion")


def draw_example(experiment: Experiment, found: dict[str, Scores], changes: dict[str, Changes]) -> None:
    """The 8 whose log-odds for 6 gain most with gradient*input or integrated gradients, as in the paper."""
    three, six = CONVERSIONS[:2]
    chosen = int(np.max([changes[name][six] for name in ("gradient*input", "IG-5", "IG-10")], axis=0).argmax())
    columns = ["the image", "scores for 8", "scores for 3", "scores for 6", "8 to 3", "8 to 6"]
    figure = Figure(figsize=(9.4, 1.62 * len(SHOWN)), layout="constrained")
    grid = figure.subplots(len(SHOWN), len(columns))
    for row, name in zip(grid, SHOWN, strict=True):
        row[0].imshow(experiment.digits[8][chosen, 0], cmap="gray_r", vmin=0, vmax=1)
        parts = [found[name][pair][chosen, 0] for pair in ((8, 8), three, six)]
        size = np.percentile(np.abs(parts), 99.5)
        for axes, part in zip(row[1:4], parts, strict=True):
            axes.imshow(part, cmap=SIGNED, vmin=-size, vmax=size)
        for axes, pair in zip(row[4:], (three, six), strict=True):
            axes.imshow(experiment.erased(found[name], pair)[chosen, 0], cmap="gray_r", vmin=0, vmax=1)
            axes.set_xlabel(f"log-odds {changes[name][pair][chosen]:+.1f}", fontsize=9)
        row[0].set_ylabel(name.replace(" backprop", "\nbackprop"), fontsize=10)
        for axes in row:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color("0.8")
    for axes, title in zip(grid[0], columns, strict=True):
        axes.set_title(title, fontsize=10)
    save(figure, "mnist_conversion_example")


def main(model: Path = MODEL) -> None:
    console = Console(width=160, highlight=False)
    experiment = Experiment(model)
    for label, x in experiment.digits.items():
        right = (experiment.logits(x).argmax(axis=1) == label).mean()
        console.print(f"{len(x)} held-out {label}s, {right:.1%} recognised, {(x > 0).sum() / len(x):.0f} pixels of ink")

    found = {method.title: experiment.scores(method) for method in METHODS}
    changes = {name: experiment.changes(part) for name, part in found.items()}
    medians(console, f"Change of the log-odds, {ERASED} pixels: median (lower to upper quartile)", changes)
    explained = "share of images where it changes the log-odds more, mean lead, p of Wilcoxon's signed-rank test"
    paired(console, f"RevealCancel against the others: {explained}", "RevealCancel", changes)
    rows = [
        [name, *(f"{erased_pixels(experiment, part, pair):.0f}" for pair in CONVERSIONS)]
        for name, part in found.items()
    ]
    table(console, "Pixels of ink erased, mean", ["method", *map(named, CONVERSIONS)], rows)

    few = {name: experiment.changes(part, FEWER) for name, part in found.items()}
    medians(console, f"Change of the log-odds, {FEWER} pixels: median (lower to upper quartile)", few)
    paired(console, f"RevealCancel against the others: {explained}", "RevealCancel", few)

    layers = {method.title: experiment.changes(experiment.scores(method)) for method in LAYERS}
    medians(console, f"By layer, {ERASED} pixels: median (lower to upper quartile)", layers)
    paired(console, f"By layer: {explained}", LAYERS[0].title, layers)
    if model == MODEL:
        draw_boxes(changes)
        draw_example(experiment, found, changes)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
