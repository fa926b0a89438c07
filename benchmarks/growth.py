"""How time grows with depth, width, batch, references and length: the explainer beside the model's own forward."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from forward import feed, rewritten
from images import noise
from networks import Encoder, convolutions, dense, export, made
from results import Result, row
from timing import Array, interleaved, runs, slope
from torch import nn

ROUNDS = 7


@dataclass(frozen=True)
class Series:
    """Networks or inputs of growing size.

    Attributes:
        what: grows.
        sizes: of it.
        network: of a size.
        shape: of the samples, of a size.
        references: for each sample, of a size; the forward is of as many rows as there are pairs.
    """

    what: str
    sizes: Sequence[int]
    network: Callable[[int], nn.Module]
    shape: Callable[[int], tuple[int, ...]]
    references: Callable[[int], int] = lambda size: 1


SERIES = (
    Series("layers of a CNN", (4, 8, 16, 32), lambda n: convolutions(n, 32), lambda n: (4, 32, 32, 32)),
    Series("channels of a CNN", (16, 32, 64, 128), lambda n: convolutions(4, n), lambda n: (4, n, 32, 32)),
    Series("layers of an MLP", (4, 8, 16, 32), lambda n: dense(n, 512), lambda n: (64, 512)),
    Series("neurons of an MLP", (256, 512, 1024, 2048), lambda n: dense(4, n), lambda n: (64, n)),
    Series("batch of a CNN", (2, 4, 8, 16, 32), lambda n: convolutions(4, 32), lambda n: (n, 32, 32, 32)),
    Series("references", (2, 4, 8, 16), lambda n: convolutions(4, 32), lambda n: (4, 32, 32, 32), lambda n: n),
    Series("length of a transformer", (64, 128, 256, 512), lambda n: Encoder(2, 64, 4, 256), lambda n: (4, n, 64)),
)


def measure(folder: Path) -> Result:
    result = Result()
    for series in SERIES:
        ours, theirs = _times(series, folder)
        exponents = [
            (slope(series.sizes, a), slope(series.sizes, b))
            for a, b in zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True)
        ]
        sizes = f"{series.sizes[0]} to {series.sizes[-1]}"
        result.rows.append(row(f"{series.what}, {sizes}", [a / b for a, b in exponents], 1.1, "×"))
        explainer, forward = (statistics.median(side) for side in zip(*exponents, strict=True))
        result.notes.append(f"{series.what}: exponents {explainer:.2f} (explainer) and {forward:.2f} (forward).")
    return result


def _times(series: Series, folder: Path) -> tuple[list[list[float]], list[list[float]]]:
    """Seconds of every round, by size: of the explainer and of the forward."""
    ours, theirs = [], []
    for size in series.sizes:
        count = series.references(size)
        x = noise(*series.shape(size))
        pairs = noise(len(x) * count, *x.shape[1:])
        given = torch.from_numpy(x)
        model = export(made(partial(series.network, size), given), given, folder / "growth.onnx")
        explainer = rewritten(model, reference="grouped" if count > 1 else "paired", target=0)
        times = interleaved({"ours": runs(explainer, _feed(x, count)), "theirs": runs(model, {"x": pairs})}, ROUNDS)
        ours.append(times["ours"])
        theirs.append(times["theirs"])
    return ours, theirs


def _feed(x: Array, count: int) -> dict[str, Array]:
    references = noise(len(x) * count, *x.shape[1:])[::-1].copy()
    return feed(x, references if count == 1 else references.reshape(len(x), count, *x.shape[1:]))
