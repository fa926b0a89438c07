"""What the two genomics experiments share: motifs, simulated sequences, log-odds, sums over windows, areas, drawing.

A sequence is an array of base numbers (A, C, G, T = 0, 1, 2, 3) or its one-hot form with the channels on axis 1.
Nothing here needs onnxlift or a training framework.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # training does without matplotlib
    from matplotlib.axes import Axes

Array = np.ndarray[Any, Any]

HERE = Path(__file__).resolve().parent
FIGURES = HERE.parent.parent / "docs" / "experiments"
BASES = "ACGT"
COLOURS = {"A": "#2a9d3a", "C": "#2166ac", "G": "#e08214", "T": "#c0272d"}
LENGTH = 200
UNIFORM = np.full(4, 0.25)  # the background of LIFTPAD 3.2
GENOMIC = np.array([0.3, 0.2, 0.2, 0.3])  # the background of DeepLIFT 4.2


@dataclass(frozen=True)
class Motif:
    """A position weight matrix.

    Attributes:
        name: of the transcription factor.
        probabilities: of the bases at each position, `[width, 4]`, every row sums to 1.
        core: first and last-plus-one position of the core pattern within the motif.
    """

    name: str
    probabilities: Array
    core: tuple[int, int]

    @property
    def pattern(self) -> str:
        """The most frequent letters of the core."""
        return "".join(BASES[k] for k in self.probabilities[slice(*self.core)].argmax(axis=1))

    @property
    def width(self) -> int:
        return len(self.probabilities)


@dataclass(frozen=True)
class Simulation:
    """Simulated sequences and what was planted in them.

    Attributes:
        bases: base numbers, int8 `[N, LENGTH]`.
        sites: int64 `[S, 3]`, one row a planted instance: sequence, motif (index into the list simulated from), first
            position of the whole motif.
    """

    bases: Array
    sites: Array


def load_motifs() -> list[Motif]:
    """GATA1 (JASPAR MA0035.2) and TAL1 (MA0091.1), on the strands that read GATA and CAGATG.

    Counts become probabilities with one pseudo-observation per position, split evenly over the bases.
    """
    profiles = json.loads((HERE / "motifs.json").read_text())["motifs"]
    motifs = []
    for name, profile, reverse, core in (("GATA1", "MA0035.2", False, "GATA"), ("TAL1", "MA0091.1", True, "CAGATG")):
        counts = np.array([profiles[profile]["counts"][base] for base in BASES], dtype=np.float64).T
        if reverse:  # the complement of A, C, G, T is T, G, C, A
            counts = counts[::-1, ::-1]
        probabilities = (counts + 0.25) / (counts.sum(axis=1, keepdims=True) + 1)
        consensus = "".join(BASES[k] for k in probabilities.argmax(axis=1))
        start = consensus.index(core)
        motifs.append(Motif(name, probabilities, (start, start + len(core))))
    return motifs


def letters(motifs: Sequence[Motif]) -> list[Motif]:
    """The core patterns alone, always spelled in full; a wrong letter has a chance of 1e-9, so log-odds are finite."""
    spelled = []
    for motif in motifs:
        core = motif.probabilities[slice(*motif.core)]
        probabilities = np.where(core == core.max(axis=1, keepdims=True), 1 - 3e-9, 1e-9)
        spelled.append(Motif(motif.name, probabilities, (0, len(core))))
    return spelled


def liftpad_counts(rng: np.random.Generator, positives: int) -> tuple[Array, Array]:
    """Instances of each motif (int `[N, 2]`) and labels (bool `[N]`) of LIFTPAD 3.2, N = 3 * positives, shuffled.

    A positive sequence has both motifs, once each; a negative one has one motif, once or twice with equal chance.
    """
    negatives = rng.integers(1, 3, size=positives)
    gata, tal = np.eye(2, dtype=np.int64)
    counts = np.concatenate([np.ones((positives, 2), np.int64), negatives[:, None] * gata, negatives[:, None] * tal])
    counts = rng.permutation(counts)
    return counts, np.asarray(counts.all(axis=1))


def deeplift_counts(rng: np.random.Generator, n: int) -> Array:
    """Instances of each motif of DeepLIFT 4.2, int `[n, 2]`: a motif is present with chance 1/2, then 1 to 3 times."""
    return np.asarray(rng.integers(0, 2, size=(n, 2)) * rng.integers(1, 4, size=(n, 2)))


def deeplift_labels(counts: Array) -> Array:
    """The three tasks, bool `[n, 3]`: both motifs, GATA1, TAL1."""
    present = counts > 0
    return np.column_stack([present.all(axis=1), present])


def simulate(rng: np.random.Generator, counts: Array, motifs: Sequence[Motif], frequencies: Array) -> Simulation:
    """Background of independent bases with instances of the motifs at random places, none overlapping another.

    Args:
        rng: random numbers.
        counts: how many instances of each motif each sequence gets, int `[N, number of motifs]`.
        motifs: what to plant; an instance is drawn from the matrix, position by position.
        frequencies: of A, C, G, T in the background, `[4]`.

    Every arrangement of the instances of a sequence, in any order, is equally likely.
    """
    bases = rng.choice(4, size=(len(counts), LENGTH), p=frequencies).astype(np.int8)
    sites = []
    for row, count in enumerate(counts):
        planted = rng.permutation(np.repeat(np.arange(len(motifs)), count))
        widths = [motifs[kind].width for kind in planted]
        # Shrink each instance to one place, choose the places, and grow the instances again.
        places = np.sort(rng.choice(LENGTH - sum(widths) + len(widths), size=len(widths), replace=False))
        grown = 0
        for kind, place in zip(planted, places, strict=True):
            start = place + grown
            cumulative = motifs[kind].probabilities.cumsum(axis=1)[:, :3]
            bases[row, start : start + motifs[kind].width] = (rng.random((len(cumulative), 1)) > cumulative).sum(axis=1)
            sites.append((row, kind, start))
            grown += motifs[kind].width - 1
    return Simulation(bases, np.array(sites, dtype=np.int64).reshape(-1, 3))


def one_hot(bases: Array) -> Array:
    """float32 `[N, 4, LENGTH]` of base numbers `[N, LENGTH]`."""
    return np.asarray((bases[:, None] == np.arange(4)[:, None]).astype(np.float32))


def log_odds(bases: Array, motif: Motif, frequencies: Array) -> Array:
    """Natural log of P(window | motif) / P(window | background), `[N, LENGTH - width + 1]`."""
    table = np.log(motif.probabilities / frequencies)
    starts = bases.shape[1] - motif.width + 1
    return np.asarray(np.sum([table[k][bases[:, k : k + starts]] for k in range(motif.width)], axis=0))


def window_sums(scores: Array, width: int) -> Array:
    """Sums over every window of `width` positions: `[..., LENGTH]` to float64 `[..., LENGTH - width + 1]`."""
    windows = np.lib.stride_tricks.sliding_window_view(scores.astype(np.float64), width, axis=-1)
    return np.asarray(windows.sum(axis=-1))


def auroc(scores: Array, labels: Array) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half."""
    values, ranks, occurrences = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(occurrences) - (occurrences - 1) / 2
    positive = labels.astype(bool)
    n = positive.sum()
    return float((middle[ranks][positive].sum() - n * (n + 1) / 2) / (n * (len(values[ranks]) - n)))


def draw_scores(axes: Axes, bases: Array, scores: Array) -> None:
    """One bar a position, coloured by its base; `bases` and `scores` are `[LENGTH]`."""
    for number, base in enumerate(BASES):
        places = np.flatnonzero(bases == number)
        axes.bar(places, scores[places], width=1.0, color=COLOURS[base], label=base)
    axes.axhline(0, color="0.3", linewidth=0.6)
    axes.set_xlim(-1, LENGTH)
    axes.spines[["top", "right"]].set_visible(False)
