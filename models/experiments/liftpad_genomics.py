"""The genomics experiment of LIFTPAD (arXiv 1605.01713, section 3.2): which scores find both planted patterns?

A sequence is positive if it holds both GATA and CAGATG. The paper does not say how it draws them, so there are two
networks: for instances drawn from the matrices of GATA1 and TAL1, and for instances that are just these letters.
Prints how well each separates the classes, how well anything could, and how often each pattern is the top-scoring
place of a correctly predicted positive sequence. Draws docs/experiments/liftpad_genomics*.png.
Run: python models/experiments/liftpad_genomics.py
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from genomics import (
    FIGURES,
    HERE,
    LENGTH,
    UNIFORM,
    Array,
    Motif,
    Simulation,
    auroc,
    draw_scores,
    letters,
    liftpad_counts,
    load_motifs,
    log_odds,
    one_hot,
    simulate,
    window_sums,
)
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import onnxlift

SEED = 3  # training uses 1 and 2
POSITIVES = 2000
console = Console(width=100)


def later_pairs(first: Array, width: int, second: Array) -> Array:
    """Sum of first[i] * second[j] over the starts i and j with j behind the instance at i, `[N]`."""
    behind = np.cumsum(second[:, ::-1], axis=1)[:, ::-1]  # sum over j >= i
    return np.asarray((first[:, : behind.shape[1] - width] * behind[:, width:]).sum(axis=1))


def best_scores(bases: Array, motifs: list[Motif]) -> Array:
    """P(sequence | positive) / P(sequence | negative), which no classifier can beat, `[N]`.

    With q(i) the ratio P(window at i | motif) / P(window at i | background), a sequence with instances at random places
    is more likely than background by the mean of q, or of products of two q for two instances that do not overlap.
    """
    gata, tal = (np.exp(log_odds(bases, motif, UNIFORM)) for motif in motifs)
    widths = [motif.width for motif in motifs]

    def pairs(width_a: int, width_b: int) -> float:
        """How many places there are for one instance in front of another."""
        room = LENGTH - width_a - width_b + 1
        return room * (room + 1) / 2

    positive = later_pairs(gata, widths[0], tal) + later_pairs(tal, widths[1], gata)
    positive /= 2 * pairs(*widths)
    once = gata.mean(axis=1) + tal.mean(axis=1)
    twice = later_pairs(gata, widths[0], gata) / pairs(widths[0], widths[0])
    twice += later_pairs(tal, widths[1], tal) / pairs(widths[1], widths[1])
    return np.asarray(4 * positive / (once + twice))


def contributions(network: Path, x: Array) -> dict[str, Array]:
    """Scores per position and method, `[N, LENGTH]`; zeros are the reference, the logit is explained."""
    liftpad = onnxlift.Explainer(network, reference="zeros", rule="liftpad", one_hot={"x": 1})
    plain = onnxlift.Explainer(network, reference="zeros", rule="liftpad")
    gradient = onnxlift.Explainer(network, reference="zeros", rule="gradient", emit=("multipliers",), tolerance=np.inf)
    # At zeros the weights of eq. 20 do what the original ones do at 1/4 of each base.
    quarters = np.full((1, 4, LENGTH), 0.25, np.float32)
    genomics = onnxlift.Explainer(network, reference={"x": quarters}, rule="genomics")
    slopes = gradient(x).multipliers["x"]
    scores = {
        "LIFTPAD": liftpad(x).contributions["x"],
        "LIFTPAD without eq. 20": plain(x).contributions["x"],
        "gradient*input": slopes * x,
        "gradient*input with eq. 20": (slopes - slopes.mean(axis=1, keepdims=True)) * x,
        "RevealCancel on dense layers": genomics(x).contributions["x"],
    }
    return {method: array.sum(axis=1) for method, array in scores.items()}


def first_positions(sites: Array, rows: Array) -> Array:
    """First position of the whole instance of each motif in sequences that have one of each, `[len(rows), 2]`."""
    starts = np.full((sites[:, 0].max() + 1, 2), -1)
    starts[sites[:, 0], sites[:, 1]] = sites[:, 2]
    return np.asarray(starts[rows])


def core_totals(scores: Array, starts: Array, motifs: list[Motif]) -> tuple[Array, Array]:
    """The total over each planted core, and whether it is the top window; `[N, number of motifs]` each.

    It is if it is larger than the total over every window of the same width that shares no base with a planted
    instance, flanks included. `starts` as from `first_positions`.
    """
    cores, tops = [], []
    for motif, own in zip(motifs, starts.T, strict=True):
        first, stop = motif.core
        totals = window_sums(scores, stop - first)
        core = totals[np.arange(len(totals)), own + first]
        place = np.arange(totals.shape[1])
        for other, start in zip(motifs, starts.T[:, :, None], strict=True):
            totals[(place > start - (stop - first)) & (place < start + other.width)] = -np.inf
        cores.append(core)
        tops.append(core > totals.max(axis=1))
    return np.stack(cores, axis=1), np.stack(tops, axis=1)


def knock_out(network: Path, bases: Array, starts: Array, motifs: list[Motif]) -> Array:
    """By how much the logit falls, on average, when the core of each motif is replaced by random letters, `[2]`."""
    explainer = onnxlift.Explainer(network, reference="zeros")
    logits = explainer(one_hot(bases)).target
    rng = np.random.default_rng(SEED)
    falls = []
    for motif, start in zip(motifs, starts.T, strict=True):
        places = start[:, None] + np.arange(*motif.core)
        changed = bases.copy()
        np.put_along_axis(changed, places, rng.integers(0, 4, places.shape, dtype=np.int8), axis=1)
        falls.append((logits - explainer(one_hot(changed)).target).mean())
    return np.array(falls)


def chance_match(simulation: Simulation, motifs: list[Motif]) -> Array:
    """Largest log-odds of each motif outside of its planted instances, `[N, number of motifs]`."""
    best = []
    for kind, motif in enumerate(motifs):
        odds = log_odds(simulation.bases, motif, UNIFORM)
        for row, planted, start in simulation.sites:
            if planted == kind:
                odds[row, max(start - motif.width + 1, 0) : start + motif.width] = -np.inf
        best.append(odds.max(axis=1))
    return np.stack(best, axis=1)


def report_errors(simulation: Simulation, counts: Array, labels: Array, called: Array, motifs: list[Motif]) -> None:
    """Which sequences are misclassified: the log-odds of what was planted and of what arose by chance."""
    planted = np.full(counts.shape, np.inf)  # the weakest instance of each motif
    for kind, motif in enumerate(motifs):
        odds = log_odds(simulation.bases, motif, UNIFORM)
        rows, _, starts = simulation.sites[simulation.sites[:, 1] == kind].T
        np.minimum.at(planted[:, kind], rows, odds[rows, starts])
    weakest = planted.min(axis=1)
    chance = np.where(counts > 0, -np.inf, chance_match(simulation, motifs)).max(axis=1)
    table = Table("sequences", box=None)
    for column in ("number", "weakest planted instance", "best chance match of the absent motif"):
        table.add_column(column, justify="right")
    for name, rows in (
        ("positives called positive", labels & called),
        ("positives called negative", labels & ~called),
        ("negatives called negative", ~labels & ~called),
        ("negatives called positive", ~labels & called),
    ):
        median = f"{np.median(chance[rows]):.1f}" if not labels[rows].any() else ""
        table.add_row(name, str(rows.sum()), f"{np.median(weakest[rows]):.1f}", median)
    console.print(table)
    console.print("(medians of log-odds, natural logarithm)", highlight=False)


def report_scores(scores: Mapping[str, Array], starts: Array, motifs: list[Motif]) -> None:
    table = Table(title=f"Scores of {len(starts)} correctly predicted positives", title_justify="left", box=None)
    table.add_column("scores", no_wrap=True)
    for column in ("is top", "<= 0"):
        for motif in motifs:
            table.add_column(f"{motif.pattern}\n{column}", justify="right")
    for method, values in scores.items():
        core, top = core_totals(values, starts, motifs)
        table.add_row(method, *(f"{share:.1%}" for share in [*top.mean(axis=0), *(core <= 0).mean(axis=0)]))
    console.print(table)


def draw(name: str, bases: Array, scores: Mapping[str, Array], starts: Array, motifs: list[Motif]) -> None:
    """The paper's Figure 2 for one sequence: a score per position, coloured by the base."""
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    panels = figure.subplots(len(scores), 1, sharex=True)
    for axes, (method, values) in zip(panels, scores.items(), strict=True):
        draw_scores(axes, bases, values)
        axes.text(1.01, 0.5, method, va="center", transform=axes.transAxes)
        for motif, start in zip(motifs, starts, strict=True):
            axes.axvspan(start + motif.core[0] - 0.5, start + motif.core[1] - 0.5, color="0.88", zorder=0)
    top = panels[0].get_ylim()[1]
    for motif, start in zip(motifs, starts, strict=True):
        panels[0].text(start + sum(motif.core) / 2 - 0.5, top, motif.pattern, ha="center", va="bottom", fontsize=9)
    panels[0].legend(ncols=4, loc="lower right", bbox_to_anchor=(1, 1.1), frameon=False, fontsize=9)
    panels[-1].set_xlabel("position in the sequence (grey: planted cores)")
    figure.supylabel("score")
    figure.savefig(FIGURES / f"{name}.png", dpi=90)


def experiment(name: str, title: str, motifs: list[Motif]) -> None:
    """Simulate new sequences, explain models/experiments/NAME.onnx, print and draw."""
    network = HERE / f"{name}.onnx"
    rng = np.random.default_rng(SEED)
    counts, labels = liftpad_counts(rng, POSITIVES)
    simulation = simulate(rng, counts, motifs, UNIFORM)
    x = one_hot(simulation.bases)
    predicted = onnxlift.Explainer(network, reference="zeros")(x).outputs["y"][:, 0]
    best = auroc(best_scores(simulation.bases, motifs), labels)
    console.print(f"\n[bold]{title}[/bold]: {len(x)} new sequences, one third positive", highlight=False)
    console.print(f"auROC of {network.name} {auroc(predicted, labels):.3f}; the best possible is {best:.3f}\n")
    report_errors(simulation, counts, labels, predicted > 0.5, motifs)

    rows = np.flatnonzero(labels & (predicted > 0.5))
    starts = first_positions(simulation.sites, rows)
    scores = contributions(network, x[rows])
    report_scores(scores, starts, motifs)
    falls = zip(motifs, knock_out(network, simulation.bases[rows], starts, motifs), strict=True)
    lost = ", ".join(f"{motif.pattern} {fall:.1f}" for motif, fall in falls)
    console.print(f"(random letters in place of a pattern lower the logit on average by: {lost})", highlight=False)
    # The first sequence in which gradient*input gives a core nothing, or less.
    example = np.flatnonzero((core_totals(scores["gradient*input"], starts, motifs)[0] <= 0).any(axis=1))[0]
    shown = ("LIFTPAD", "gradient*input", "RevealCancel on dense layers")
    draw(name, simulation.bases[rows[example]], {m: scores[m][example] for m in shown}, starts[example], motifs)


def main() -> None:
    FIGURES.mkdir(parents=True, exist_ok=True)
    motifs = load_motifs()
    experiment("liftpad_genomics", "Instances drawn from the matrices of GATA1 and TAL1", motifs)
    experiment("liftpad_genomics_letters", "Instances that are exactly the letters", letters(motifs))


if __name__ == "__main__":
    main()
