"""The genomics experiment of DeepLIFT (arXiv 1704.02685, section 4.2): do scores follow the strength of a motif?

A network tells whether a sequence holds motifs of GATA1 and TAL1 (task 0), of GATA1 (task 1), of TAL1 (task 2). Prints
how well, and for each method how often it misses a strong match, what it gives a motif in the wrong task, whether it
sees that both are needed, and its noise. Draws docs/experiments/deeplift_genomics_*.png.
Run: python models/experiments/deeplift_genomics.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from genomics import (
    FIGURES,
    GENOMIC,
    HERE,
    LENGTH,
    Array,
    Motif,
    Simulation,
    auroc,
    deeplift_counts,
    deeplift_labels,
    draw_scores,
    load_motifs,
    log_odds,
    one_hot,
    simulate,
    window_sums,
)
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.console import Console
from rich.table import Table

import onnxlift

SEED = 3  # training uses 1 and 2
SEQUENCES = 2000
MATCHES = 5  # of each motif in each sequence
STRONG = 7.0  # log-odds, natural logarithm
DRAWN = 300  # sequences in the scatter plots
NETWORK = HERE / "deeplift_genomics.onnx"
REFERENCE = np.broadcast_to(GENOMIC.astype(np.float32)[:, None], (1, 4, LENGTH))  # the expected frequencies
METHODS = {
    "guided backprop*input": "guided-backprop",
    "gradient*input": "gradient-x-input",
    "integrated gradients": "integrated-gradients:10",
    "Rescale": "rescale",
    "RevealCancel": "reveal-cancel",
    "genomics": "genomics",  # RevealCancel on the dense layer, Rescale on the convolutions
}
TASKS = ("both", "GATA1", "TAL1")
CLASSES = {"none": "#b0b0b0", "GATA1 only": "#2166ac", "TAL1 only": "#2a9d3a", "both": "black"}
BOTH = 3  # index into CLASSES
Totals = Mapping[str, Sequence[Array]]  # per method and motif, `[tasks, matches]`
console = Console(width=100)


@dataclass(frozen=True)
class Matches:
    """The best matches of one motif: sequence, first position and log-odds, `[SEQUENCES * MATCHES]` each."""

    rows: Array
    starts: Array
    odds: Array

    @classmethod
    def find(cls, bases: Array, motif: Motif) -> Matches:
        odds = log_odds(bases, motif, GENOMIC)
        starts = np.argsort(-odds, axis=1, kind="stable")[:, :MATCHES]
        rows = np.repeat(np.arange(len(bases)), MATCHES)
        return cls(rows, starts.ravel(), odds[rows, starts.ravel()])

    def totals(self, scores: Array, motif: Motif) -> Array:
        """The sum of the scores `[tasks, SEQUENCES, LENGTH]` over each match, `[tasks, matches]`."""
        return np.asarray(window_sums(scores, motif.width)[:, self.rows, self.starts])


def position_scores(rule: str, task: int, x: Array) -> Array:
    """Contributions to the logit of one task, summed over the bases of a position, `[N, LENGTH]`."""
    explainer = onnxlift.Explainer(
        NETWORK,
        rule=rule,
        target=task,
        reference={"x": REFERENCE},
        emit=("contributions", "multipliers"),
        tolerance=np.inf,  # the gradient family does not add up, which is known
        progress=False,
    )
    explanation = explainer(x)
    contributions = explanation.contributions["x"]
    if rule == "guided-backprop":  # whose contributions are the multipliers themselves
        contributions = explanation.multipliers["x"] * (x - REFERENCE)
    return np.asarray(contributions.sum(axis=1))


def noise(scores: Array, simulation: Simulation, motifs: Sequence[Motif], kinds: Array) -> float:
    """Standard deviation of the totals of windows that touch no planted instance, in sequences with both motifs."""
    width = motifs[0].width
    free = np.repeat(kinds[:, None] == BOTH, LENGTH - width + 1, axis=1)
    for row, kind, start in simulation.sites:
        free[row, max(start - width + 1, 0) : start + motifs[kind].width] = False
    return float(window_sums(scores, width)[free].std())


def rank_correlation(a: Array, b: Array) -> float:
    """Spearman's, for values without ties to speak of."""
    ranks = [values.argsort(kind="stable").argsort() for values in (a, b)]
    return float(np.asarray(np.corrcoef(ranks))[0, 1])


def report_network(labels: Array, predicted: Array) -> None:
    areas = (f"{task} {auroc(predicted[:, k], labels[:, k]):.3f}" for k, task in enumerate(TASKS))
    console.print(f"\n[bold]{NETWORK.name}[/bold] on {len(labels)} new sequences", highlight=False)
    console.print(f"auROC of the tasks: {', '.join(areas)}", highlight=False)


def report(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    """Print a table with a row per method."""
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("method", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    for method, cells in rows.items():
        table.add_row(method, *cells)
    console.print()
    console.print(table)


def report_misses(matches: Sequence[Matches], totals: Totals, kinds: Array) -> None:
    """Strong matches in sequences with both motifs that a method gives nothing, or less."""
    chosen = [(match.odds > STRONG) & (kinds[match.rows] == BOTH) for match in matches]
    columns = [f"{motif}\ntask {task}" for motif, task in (("GATA1", 0), ("GATA1", 1), ("TAL1", 0), ("TAL1", 2))]
    rows = {
        method: [f"{(values[k][task][chosen[k]] <= 0).mean():.1%}" for k, task in ((0, 0), (0, 1), (1, 0), (1, 2))]
        for method, values in totals.items()
    }
    report("Share of the strong matches in sequences with both motifs that score <= 0", columns, rows)
    console.print(f"({chosen[0].sum()} matches of GATA1 and {chosen[1].sum()} of TAL1 with log-odds > {STRONG:g})")


def report_properties(matches: Sequence[Matches], totals: Totals, kinds: Array, noises: Mapping[str, float]) -> None:
    """The other properties that the paper asks for, per motif, and the noise."""
    rows = {}
    for method, values in totals.items():
        cells, levels = [], []
        for k, (match, scores) in enumerate(zip(matches, values, strict=True)):
            strong, kind = match.odds > STRONG, kinds[match.rows]
            together = strong & (kind == BOTH)
            either = together | (strong & (kind == k + 1))
            own, other = scores[k + 1][together], scores[2 - k][together]
            cells.append(
                (
                    f"{other.mean() / own.mean():+.2f}",
                    f"{auroc(scores[0][either], together[either]):.2f}",
                    f"{rank_correlation(match.odds[together], own):.2f}",
                )
            )
            levels.append(scores[0][together].mean())
        level = float(np.mean(levels))
        rows[method] = [*map(" / ".join, zip(*cells, strict=True)), f"{noises[method] / level:.3f}", f"{level:.2f}"]
    columns = ["wrong task", "cooperation", "order", "noise", "mean score"]
    report("Strong matches in sequences with both motifs (GATA1 / TAL1)", columns, rows)
    console.print(
        "wrong task: mean score for the other motif's task / for the own task (0 is ideal)\n"
        "cooperation: chance that a match scores higher for task 0 with the other motif present than without it\n"
        "order: rank correlation of log-odds and score for the own task\n"
        "noise: standard deviation of the scores of windows without a motif for task 0 / mean score of the matches",
        highlight=False,
        soft_wrap=True,
    )


def draw_scatter(motif: Motif, matches: Matches, totals: Mapping[str, Array], kinds: Array) -> None:
    """The paper's Figure 5 for one motif: importance of its matches over their log-odds, by task and method."""
    figure = Figure(figsize=(13, 6.5), layout="constrained")
    panels = figure.subplots(len(TASKS), len(METHODS), sharex=True)
    shown = matches.rows < DRAWN
    order = np.random.default_rng(0).permutation(np.flatnonzero(shown))  # so that no class lies on top
    colours = np.array(list(CLASSES.values()))[kinds[matches.rows[order]]]
    for column, (method, scores) in enumerate(totals.items()):
        for task, name in enumerate(TASKS):
            axes = panels[task, column]
            axes.scatter(matches.odds[order], scores[task][order], s=3, c=colours, linewidths=0, antialiased=False)
            axes.axhline(0, color="0.3", linewidth=0.6)
            axes.axvline(STRONG, color="0.3", linewidth=0.6, linestyle=":")
            axes.tick_params(labelsize=7)
            if task == 0:
                axes.set_title(method, fontsize=10)
            if column == 0:
                axes.set_ylabel(f"task {task} ({name})\nimportance of the match", fontsize=9)
    figure.supxlabel(f"log-odds of the {motif.name} match (dotted: strong)", fontsize=10)
    handles = [Line2D([], [], marker="o", linestyle="", color=colour) for colour in CLASSES.values()]
    figure.legend(handles, [f"sequences with {name}" for name in CLASSES], loc="outside upper center", ncols=4)
    figure.savefig(FIGURES / f"deeplift_genomics_{motif.name.lower()}.png", dpi=80)


def example(matches: Matches, totals: Array, kinds: Array) -> int:
    """The first sequence with both motifs where a strong match has a score <= 0 for task 0."""
    return int(matches.rows[(matches.odds > STRONG) & (kinds[matches.rows] == BOTH) & (totals[0] <= 0)][0])


def draw_example(simulation: Simulation, motifs: Sequence[Motif], row: int, scores: Mapping[str, Array]) -> None:
    """Task 0 scores of one sequence, a panel per method."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    panels = figure.subplots(len(scores), 1, sharex=True)
    sites = [(motifs[kind], start) for sequence, kind, start in simulation.sites if sequence == row]
    for axes, (method, values) in zip(panels, scores.items(), strict=True):
        draw_scores(axes, simulation.bases[row], values[0][row])
        axes.text(1.01, 0.5, method, va="center", transform=axes.transAxes)
        for motif, start in sites:
            colour = CLASSES[f"{motif.name} only"]
            axes.axvspan(start - 0.5, start + motif.width - 0.5, color=colour, alpha=0.2, linewidth=0, zorder=0)
    top = panels[0].get_ylim()[1]
    for motif, start in sites:
        panels[0].text(start + motif.width / 2, top, motif.name, ha="center", va="bottom", fontsize=9)
    panels[0].legend(ncols=4, loc="lower right", bbox_to_anchor=(1, 1.15), frameon=False, fontsize=9)
    panels[-1].set_xlabel("position in the sequence (shaded: planted motifs)")
    figure.supylabel("score for task 0")
    figure.savefig(FIGURES / "deeplift_genomics_example.png", dpi=90)


def main() -> None:
    FIGURES.mkdir(parents=True, exist_ok=True)
    motifs = load_motifs()
    rng = np.random.default_rng(SEED)
    counts = deeplift_counts(rng, SEQUENCES)
    simulation = simulate(rng, counts, motifs, GENOMIC)
    kinds = (counts > 0) @ [1, 2]  # index into CLASSES
    x = one_hot(simulation.bases)
    predicted = onnxlift.Explainer(NETWORK, target=0, reference="zeros", progress=False)(x).outputs["y"]
    report_network(deeplift_labels(counts), predicted)

    scores = {m: np.stack([position_scores(rule, t, x) for t in range(3)]) for m, rule in METHODS.items()}
    matches = [Matches.find(simulation.bases, motif) for motif in motifs]
    totals = {
        method: [match.totals(values, motif) for match, motif in zip(matches, motifs, strict=True)]
        for method, values in scores.items()
    }
    report_misses(matches, totals, kinds)
    report_properties(matches, totals, kinds, {m: noise(v[0], simulation, motifs, kinds) for m, v in scores.items()})
    for k, motif in enumerate(motifs):
        draw_scatter(motif, matches[k], {method: values[k] for method, values in totals.items()}, kinds)
    draw_example(simulation, motifs, example(matches[1], totals["gradient*input"][1], kinds), scores)


if __name__ == "__main__":
    main()
