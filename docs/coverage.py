"""Run the tests of the onnx package, print what passes by operator, and write docs/coverage.md and docs/operators.md.

    python docs/coverage.py [--jobs N]

What is checked of a test is in tests/node_tests.py. Every test has a time limit, and one that takes the process down
does not take the others with it.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import runpy
import sys
import time
import warnings
from collections import Counter, deque
from collections.abc import Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from node_tests import CRASH, Case, Verdict, check, exported_cases, listed_names, node_cases  # noqa: E402
from own_cases import own_cases  # noqa: E402

PAGE = ROOT / "docs" / "coverage.md"
LIMIT = 60
"""Seconds for one test."""

PARTS = ("base", "expanded", "own")
EXPORTED = ("pytorch-converted", "pytorch-operator")

HEAD = f"""# Coverage

Written by `make coverage`, with onnx {onnx.__version__} and ONNX Runtime {onnxruntime.__version__}. What happens to
each operator, and why, is in [operators.md](operators.md).

The onnx package comes with tests of one operator each, *base*, and with the same tests of the operator's function body,
*expanded*. Importance can flow in those of `tests/data/node_tests.txt`: a float output depends on a float input through
floats, is finite and not random, and has a shape that does not vary with values. *Own* are models of this project
(`tests/own_cases.py`), for operators that have no such test.

A test passes if

* a weighted sum of its first float output (random weights) is explained by all float inputs that reach it at once;
* contributions add up: |Σ contributions − (t(x) − t(r))| ≤ 1e-4 · max(1, Σ |contributions|), 1e-2 in half precision;
* that difference, taken from two runs of the original model and not from the explainer, is larger than the tolerance;
* every output is that of the original model: floats as closely, all else exactly.

The original runs in ONNX Runtime, or in onnx's own evaluator where it is newer than that. The reference is zeros; where
the output is not finite there or does not change, noise; else the input in reverse.
"""


def run_all(cases: Mapping[str, Case], jobs: int) -> dict[str, Verdict]:
    """What came of every case, in their order."""
    context = mp.get_context("fork")  # the processes share the data, which takes seconds to load
    waiting = deque(cases)
    verdicts: dict[str, Verdict] = {}
    busy: dict[Connection, tuple[Any, str, float]] = {}  # pipe -> process, case, when it is late
    idle: list[tuple[Connection, Any]] = []
    while waiting or busy:
        while waiting and len(busy) < jobs:
            pipe, process = idle.pop() if idle else _launch(context, cases)
            name = waiting.popleft()
            pipe.send(name)
            busy[pipe] = process, name, time.monotonic() + LIMIT
        answered = set(wait(busy, timeout=1))
        for pipe, (process, name, late) in list(busy.items()):
            try:
                if pipe in answered:
                    verdicts[name] = pipe.recv()
                    idle.append((pipe, process))
                elif time.monotonic() > late:
                    _end(process)
                    verdicts[name] = Verdict(CRASH, f"no end after {LIMIT} s")
                else:
                    continue
            except EOFError:
                process.join()
                verdicts[name] = Verdict(CRASH, f"the process ended with {process.exitcode}")
            del busy[pipe]
    for _, process in idle:
        _end(process)
    return {name: verdicts[name] for name in cases}


def _launch(context: Any, cases: Mapping[str, Case]) -> tuple[Connection, Any]:
    pipe, far = context.Pipe()
    process = context.Process(target=_serve, args=(cases, far), daemon=True)
    process.start()
    far.close()
    return pipe, process


def _end(process: Any) -> None:
    process.kill()
    process.join()


def _serve(cases: Mapping[str, Case], pipe: Connection) -> None:
    warnings.simplefilter("ignore")
    while True:
        pipe.send(check(cases[pipe.recv()]))


def by_operator(cases: Mapping[str, Case], verdicts: Mapping[str, Verdict]) -> list[tuple[str, ...]]:
    """Operator, and passing / all of each part."""
    operators = sorted({case.operator for case in cases.values() if case.operator})
    every = Counter((case.operator, case.part) for case in cases.values())
    passing = Counter((case.operator, case.part) for name, case in cases.items() if verdicts[name].passes)
    return [
        (
            operator,
            *(f"{passing[operator, part]}/{every[operator, part]}" if every[operator, part] else "" for part in PARTS),
        )
        for operator in operators
    ]


def totals(cases: Mapping[str, Case], verdicts: Mapping[str, Verdict]) -> list[tuple[str, ...]]:
    """Part, how many tests it has, how many pass."""
    every = Counter(case.part for case in cases.values())
    passing = Counter(case.part for name, case in cases.items() if verdicts[name].passes)
    return [(part, str(every[part]), str(passing[part])) for part in (*PARTS, *EXPORTED)]


def failures(cases: Mapping[str, Case], verdicts: Mapping[str, Verdict]) -> list[tuple[str, ...]]:
    """Test, what came of it, and the reason."""
    return [(name, verdict.kind, verdict.detail) for name, verdict in verdicts.items() if not verdict.passes]


def page(cases: Mapping[str, Case], verdicts: Mapping[str, Verdict]) -> str:
    """docs/coverage.md."""
    missing = sorted(set(listed_names()) - set(cases))
    lacks = f"\nThe installed onnx lacks {len(missing)} of the listed tests.\n" if missing else ""
    return (
        f"{HEAD}{lacks}\n{_markdown(('tests', 'number', 'pass'), totals(cases, verdicts))}"
        "\nThe last two are whole models that PyTorch exported for the onnx package.\n"
        f"\n## What does not pass\n\n{_markdown(('test', 'what came of it', 'reason'), failures(cases, verdicts))}"
        f"\n## By operator\n\n{_markdown(('operator', *PARTS), by_operator(cases, verdicts))}"
    )


def _markdown(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _printed(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes [default: one a core]")
    arguments = parser.parse_args()
    cases = {**node_cases(), **own_cases(), **exported_cases()}
    verdicts = run_all(cases, arguments.jobs)
    PAGE.write_text(page(cases, verdicts))
    (ROOT / "docs" / "operators.md").write_text(runpy.run_path(str(ROOT / "docs" / "operators.py"))["page"]())
    console = Console()
    console.print(_printed(("operator", *PARTS), by_operator(cases, verdicts)))
    console.print(_printed(("test", "what came of it", "reason"), failures(cases, verdicts)))
    console.print(_printed(("tests", "number", "pass"), totals(cases, verdicts)))


if __name__ == "__main__":
    main()
