"""How things are measured: turn by turn in one process, with two threads, as ratios within a round."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

THREADS = 2
ROUNDS = 9
LEAST = 0.1
"""Seconds that one measurement takes at least: what is faster runs several times."""

PAUSE = 0.02
"""Seconds before each measurement, so that the threads of what ran before have stopped waiting for more."""

Array = np.ndarray[Any, Any]
Action = Callable[[], object]
Times = dict[str, list[float]]


def limit_threads() -> None:
    """Keep this process on two processors (Linux), as many as `onnxlift.Explainer` then takes threads."""
    os.environ["OMP_NUM_THREADS"] = str(THREADS)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])


def session(model: Path, **options: object) -> onnxruntime.InferenceSession:
    """A session on the CPU as ONNX Runtime opens it by default, but with two threads and these options."""
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = THREADS
    chosen.log_severity_level = 3  # errors: unused weights are no matter
    for name, value in options.items():
        setattr(chosen, name, value)
    return onnxruntime.InferenceSession(str(model), chosen, providers=["CPUExecutionProvider"])


def runs(model: Path, feed: Mapping[str, Array]) -> Action:
    """One `session.run` of all outputs."""
    opened = session(model)
    return lambda: opened.run(None, feed)


def interleaved(actions: Mapping[str, Action], rounds: int = ROUNDS) -> Times:
    """Seconds of every action in every round. The first runs of each are not counted."""
    repeats = {}
    for name, action in actions.items():
        action()
        repeats[name] = max(1, round(LEAST / seconds(action)))
    times: Times = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            time.sleep(PAUSE)
            started = time.perf_counter()
            for _ in range(repeats[name]):
                action()
            times[name].append((time.perf_counter() - started) / repeats[name])
    return times


def seconds(action: Action) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def fastest(times: Times, names: Iterable[str]) -> str:
    """Which of them has the smallest median."""
    return min(names, key=lambda name: statistics.median(times[name]))


def fresh(function: Callable[..., Any], *arguments: object) -> Any:
    """What a function of a module returns in a process of its own, which has loaded nothing else."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def slope(sizes: Sequence[float], found: Sequence[float]) -> float:
    """The exponent p of found = c sizes^p, by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(found), 1)[0])


def resident() -> int:
    """Bytes of memory that this process holds now."""
    return _memory("VmRSS")


def peak() -> int:
    """The most bytes of memory that this process has held. (`getrusage` would include those of its parent.)"""
    return _memory("VmHWM")


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()  # of Linux
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024
