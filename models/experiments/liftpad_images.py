"""LIFTPAD section 3.1: are LIFTPAD's scores less noisy than gradient*input?

    python models/experiments/liftpad_images.py

The network is a small VGG that reads digits painted on photographs, so it is known which pixels make the class: the
ink. The reference is zeros after preprocessing. Prints how much of the positive scores lies on the ink, how rough the
score maps are, and how far erasing the pixels with the highest scores lowers the log-odds of the class; draws
docs/experiments/liftpad_images.png. docs/experiments/images.md discusses them. Takes fifteen seconds.
"""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
from images import (
    HERE,
    Array,
    Method,
    digits_on_photographs,
    explainer,
    preprocessed,
    save,
    scores,
    table,
    wilcoxon,
)
from matplotlib.figure import Figure
from rich.console import Console

from onnxlift import Choice, Plan

MODEL = HERE / "vgg_digits.onnx"
SEED = 2026
ERASED = (20, 51, 102)  # pixels: 2, 5 and 10 %
GRADIENT = Method("|gradient|", "gradient", magnitude=True)
METHODS = [
    GRADIENT,
    Method("gradient*input", "gradient-x-input"),
    Method("guided backprop*input", "guided-backprop", times_input=True),
    Method("IG-10", "integrated-gradients:10"),
    Method("Rescale", "rescale"),
    Method("RevealCancel", "reveal-cancel"),
    Method("LIFTPAD", "liftpad"),
    Method("LIFTPAD, stable maximum", "liftpad", Plan([Choice("cross-max")])),
]
DRAWN = ["|gradient|", "gradient*input", "LIFTPAD", "LIFTPAD, stable maximum", "RevealCancel"]
DRAWN_CLASSES = (2, 3, 4, 5, 8, 9)


def positive(method: Method, x: Array) -> tuple[Array, Array | None]:
    """One score of at least 0 per pixel, `[N, 32, 32]`, for the class that is read; and the relative gap, `[N]`.

    The contributions of the three channels are added up before the negative ones are dropped; of a gradient the largest
    size among the channels counts (Simonyan et al. 2013). A sensitivity has no gap.
    """
    explanation = explainer(MODEL, method, target="argmax")(x)
    found = scores(explanation, method, x)
    if method.magnitude:
        return np.asarray(found.max(axis=1)), None
    return np.maximum(found.sum(axis=1), 0), None if method.times_input else explanation.relative_gap


def share(maps: Array, where: Array) -> Array:
    """Share of each map's total that lies `where`, `[N]`."""
    return np.asarray((maps * where).sum(axis=(1, 2)) / maps.sum(axis=(1, 2)))


def near(ink: Array) -> Array:
    """Whether a pixel or one of its eight neighbours has ink, as 0 or 1."""
    padded = np.pad(ink > 0, ((0, 0), (1, 1), (1, 1)))
    side = ink.shape[1]
    shifted = [padded[:, i : i + side, j : j + side] for i in range(3) for j in range(3)]
    return np.asarray(np.any(shifted, axis=0), dtype=np.float32)


def roughness(maps: Array) -> Array:
    """Total variation over the total, `[N]`: 4 for pixels that all stand alone, 0 for a flat map."""
    variation = sum(np.abs(np.diff(maps, axis=axis)).sum(axis=(1, 2)) for axis in (1, 2))
    return np.asarray(variation / maps.sum(axis=(1, 2)))


def log_odds(network: ort.InferenceSession, x: Array, classes: Array) -> Array:
    """log(p / (1 - p)) of one class per image, `[N]`, from the probabilities of the others."""
    p = np.asarray(network.run(["y"], {"x": x})[0], dtype=np.float64).clip(1e-30)
    own = np.arange(p.shape[1]) == classes[:, None]
    return np.asarray(np.log(p[own]) - np.log((p * ~own).sum(axis=1)))


def erased(x: Array, maps: Array, count: int) -> Array:
    """`x` with the `count` pixels of the highest scores set to the reference."""
    first = np.argsort(-maps.reshape(len(maps), -1), axis=1, kind="stable")[:, :count]
    kept = np.ones((len(x), 1, maps[0].size), np.float32)
    np.put_along_axis(kept, first[:, None], 0, axis=2)
    return np.asarray(x * kept.reshape(len(x), 1, *maps.shape[1:]))


def draw(images: Array, labels: Array, maps: dict[str, Array]) -> None:
    """The paper's figure, |gradient| and the positive scores of others; the first image of some classes."""
    titles = ["image", *(name.replace(", ", ",\n") for name in DRAWN)]
    figure = Figure(figsize=(1.45 * len(titles), 1.42 * len(DRAWN_CLASSES) + 0.3), layout="constrained")
    grid = figure.subplots(len(DRAWN_CLASSES), len(titles))
    for row, label in zip(grid, DRAWN_CLASSES, strict=True):
        i = int(np.flatnonzero(labels == label)[0])
        row[0].imshow(images[i].transpose(1, 2, 0))
        for axes, name in zip(row[1:], DRAWN, strict=True):
            axes.imshow(maps[name][i], cmap="gray_r", vmin=0, vmax=np.percentile(maps[name][i], 99.5))
    for axes in grid.ravel():
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("0.8")
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=10)
    save(figure, "liftpad_images")


def main() -> None:
    console = Console(width=150, highlight=False)
    with np.load(HERE / "photographs.npz") as data:
        digits, labels, photos = data["digits"], data["labels"], [data["chelsea"], data["coffee"]]
    images, ink = digits_on_photographs(digits, photos, np.random.default_rng(SEED))
    network = ort.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    right = np.asarray(network.run(["y"], {"x": preprocessed(images)})[0]).argmax(axis=1) == labels
    console.print(
        f"{len(labels)} held-out digits on held-out photographs: {right.mean():.1%} recognised, those are used"
    )
    images, ink, labels = images[right], ink[right], labels[right]
    x = preprocessed(images)

    before = log_odds(network, x, labels)
    maps, gaps = {}, {}
    for method in METHODS:
        maps[method.title], gaps[method.title] = positive(method, x)
    on_ink = {name: share(found, ink) for name, found in maps.items()}
    rough = {name: roughness(found) for name, found in maps.items()}
    rows = []
    for name, found in maps.items():
        drops = [np.median(before - log_odds(network, erased(x, found, count), labels)) for count in ERASED]
        shares = (f"{np.median(part):.1%}" for part in (on_ink[name], share(found, near(ink))))
        gap = gaps[name]
        off = ["", ""] if gap is None else [f"{np.median(gap):.1e}", f"{(gap > 0.01).mean():.0%}"]
        rows.append([name, *shares, f"{np.median(rough[name]):.2f}", *(f"{drop:.2f}" for drop in drops), *off])
    rows.append(["(share of the area)", f"{ink.mean():.1%}", f"{near(ink).mean():.1%}", *[""] * (len(ERASED) + 3)])
    title = "Medians: positive scores, how far the log-odds fall if so many pixels are erased, relative gap"
    columns = ["method", "on the ink", "within a pixel of it", "roughness", *(f"{n} erased" for n in ERASED)]
    table(console, title, [*columns, "gap", "over 1 %"], rows)

    rows = []
    for name in maps:
        rows.append([name])
        for best in ("LIFTPAD", "LIFTPAD, stable maximum"):
            differences = on_ink[best] - on_ink[name], rough[name] - rough[best]
            rows[-1] += [f"{(d > 0).mean():.0%}, p {wilcoxon(d):.0e}" if d.any() else "" for d in differences]
    columns = ["", "LIFTPAD: on the ink", "roughness", "with a stable maximum: on the ink", "roughness"]
    table(console, "Images where LIFTPAD is better than", columns, rows)
    ratio = maps["LIFTPAD"].sum(axis=(1, 2)) / maps["LIFTPAD, stable maximum"].sum(axis=(1, 2))
    console.print(
        f"\nEq. 13 makes the positive scores add up to more than twice what they do with the stable maximum in "
        f"{(ratio > 2).mean():.0%} of the images, and to {ratio.max():.0f} times at most.",
        soft_wrap=True,
    )
    draw(images, labels, maps)


if __name__ == "__main__":
    main()
