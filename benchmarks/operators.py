"""Where an explainer's time goes: ONNX Runtime's own profile, by operator."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timing import Array, session

TOP = 10
RUNS = 5


def profile(model: Path, feed: Mapping[str, Array]) -> list[tuple[str, float, float]]:
    """The operators that take longest: name, milliseconds of one run, share of all nodes' time."""
    with tempfile.TemporaryDirectory() as folder:
        profiled = session(model, enable_profiling=True, profile_file_prefix=str(Path(folder) / "profile"))
        for _ in range(RUNS + 1):
            profiled.run(None, feed)
        events = json.loads(Path(profiled.end_profiling()).read_text())
    counted = own_time(_after_first_run(events))
    total = sum(counted.values())
    return [(name, spent / 1e3 / RUNS, spent / total) for name, spent in counted.most_common(TOP)]


def _after_first_run(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Kernels of all runs but the first, in which memory is set up."""
    first = min((event for event in events if event["name"] == "model_run"), key=lambda event: event["ts"])
    end = first["ts"] + first["dur"]
    return [event for event in events if event["name"].endswith("_kernel_time") and event["ts"] >= end]


def own_time(events: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """Microseconds by operator. The nodes in the body of a Loop, Scan or If do not count as its own time."""
    spent: Counter[str] = Counter()
    around: list[tuple[float, str]] = []  # end and operator of the nodes that the present one lies in
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        while around and around[-1][0] <= event["ts"]:
            around.pop()
        name = event["args"]["op_name"]
        if around:
            spent[around[-1][1]] -= event["dur"]
        spent[name] += event["dur"]
        around.append((event["ts"] + event["dur"], name))
    return spent
