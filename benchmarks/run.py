"""Measure how fast explainers are, and write docs/benchmarks.md.

    python benchmarks/run.py [CASE ...]     # all cases, or these; the page keeps the last results of the others
    python benchmarks/run.py --page         # only write the page

Every case has a process of its own. Results are kept in build/bench/. No figure makes the command fail, a case that
cannot run does.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from cases import CASES
from page import page, section
from results import Result

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "build" / "bench"
PAGE = ROOT / "docs" / "benchmarks.md"


def main() -> int:
    """Run cases one after the other; the exit code is 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)} [default: all]")
    parser.add_argument("--page", action="store_true", help="only write the page, from the last results")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # in this process, with files in that folder
    arguments = parser.parse_args()
    unknown = [name for name in arguments.cases if name not in CASES]
    if unknown:
        parser.error(f"there is no case {', '.join(unknown)}: choose of {', '.join(CASES)}")
    if arguments.measure:
        measure(arguments.cases[0], arguments.measure)
        return 0
    failed = False if arguments.page else run(arguments.cases or list(CASES))
    PAGE.write_text(page(KEPT))
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return int(failed)


def run(names: list[str]) -> bool:
    """Run each case in a process of its own; whether one failed."""
    KEPT.mkdir(parents=True, exist_ok=True)
    failed = False
    for name in names:
        print(f"== {name}", flush=True)
        started = time.monotonic()
        file = KEPT / f"{name}.json"
        file.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(dir=KEPT) as files:
            ended = subprocess.run([sys.executable, __file__, "--measure", files, name], check=False).returncode
        if not file.exists():  # killed, for want of memory say
            Result(error=f"the process ended with {ended}").save(file)
        result = Result.load(file)
        failed |= bool(result.error)
        print(section(result, result.machine), f"{time.monotonic() - started:.0f} s\n", flush=True)
    return failed


def measure(name: str, files: Path) -> None:
    """Run a case in this process and keep its result. Its networks are written to `files`."""
    from timing import THREADS, limit_threads

    limit_threads()  # before a library starts its own
    try:
        module, function = CASES[name].function.split(":")
        if module not in ("memory", "rewriter"):  # these measure memory, or need no PyTorch
            import torch

            torch.set_num_threads(THREADS)
        result: Result = getattr(importlib.import_module(module), function)(files)
    except Exception as error:
        traceback.print_exc()
        result = Result(error=f"{type(error).__name__}: {' '.join(str(error).replace(str(ROOT), '.').split())[:300]}")
    result.save(KEPT / f"{name}.json")


if __name__ == "__main__":
    sys.exit(main())
