"""docs/benchmarks.md, from the last result of every case."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from cases import CASES
from results import Result, Row
from timing import LEAST, ROUNDS, THREADS

HEAD = f"""# Benchmarks

Written by `make bench`. What is compared runs in one process, turn by turn, {ROUNDS} rounds after a warm-up,
with {THREADS} threads for ONNX Runtime and for PyTorch; what is fast is repeated until it takes {LEAST:g} s. A ratio is
taken within each round: the tables give the median, the least and the largest, and beside them the ratio of the two
fastest runs. The median decides whether a goal is reached. The networks (`benchmarks/networks.py`) have random weights.
At best, an explainer costs what three forwards cost (at the input, at the reference, and one way back), and two where
the reference is baked in.

*Explainer* is `onnxlift.Explainer`, which chooses how many samples run at once; the lines without it are one
`session.run` of the explainer on the whole batch.
"""


def page(folder: Path) -> str:
    """The page; a case that was never run says so."""
    found = {name: Result.load(_file(folder, name)) for name in CASES if _file(folder, name).exists()}
    machines = Counter(result.machine for result in found.values())
    usual = machines.most_common(1)[0][0] if machines else "No machine yet."
    parts = [HEAD, f"{usual}\n", "## Goals\n", _goals(found)]
    for name, case in CASES.items():
        parts += [f"## {case.title}\n", f"{case.about} (`{name}`)\n"]
        parts.append(section(found[name], usual) if name in found else "Not run yet.\n")
        if case.limit and name in found and any(line.reached is False for line in found[name].rows):
            parts.append(f"**What is out of reach, and why.** {case.limit}\n")
    return "\n".join(parts)


def section(result: Result, usual: str = "") -> str:
    """One case: its table, notes and profiles, or why there are none."""
    parts = []
    if result.error:
        parts.append(f"**Failed:** `{result.error}`\n")
    if result.rows:
        parts.append(
            table(("", "median", "least", "largest", "fastest runs", "goal", "reached"), map(_cells, result.rows))
        )
    if result.notes:
        parts.append("".join(f"- {note}\n" for note in result.notes))
    if result.machine != usual:
        parts.append(f"Ran on: {result.machine}\n")
    for name, lines in result.operators.items():
        parts.append(f"Where the time goes ({name}):\n")
        rows = [(operator, f"{spent:.2f} ms", f"{100 * share:.1f} %") for operator, spent, share in lines]
        parts.append(table(("operator", "a run", "share"), rows))
    return "\n".join(parts)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ("---",) * len(columns), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _goals(found: dict[str, Result]) -> str:
    rows = [
        (CASES[name].title, line.what, _figure(line.median, line), _goal(line), _reached(line))
        for name, result in found.items()
        for line in result.rows
        if line.goal is not None
    ]
    return table(("case", "", "figure", "goal", "reached"), rows)


def _cells(line: Row) -> tuple[str, ...]:
    figures = (_figure(value, line) for value in (line.median, line.low, line.high, line.fastest))
    return (line.what, *figures, _goal(line), _reached(line))


def _figure(value: float | None, line: Row) -> str:
    if value is None:
        return ""
    return f"{value:.0f}{line.unit}" if value >= 100 else f"{value:.3g}{line.unit}"


def _goal(line: Row) -> str:
    sign = "≤" if line.better == "lower" else "≥"
    return "" if line.goal is None else f"{sign} {line.goal:g}{line.unit}"


def _reached(line: Row) -> str:
    return {None: "", True: "yes", False: "**no**"}[line.reached]


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"
