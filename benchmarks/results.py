"""What a case reports, kept as JSON, and the machine it ran on."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from timing import THREADS, Times

PACKAGES = ("onnxlift", "onnx", "onnxruntime-gpu", "onnxruntime", "numpy", "torch", "captum", "shap", "tangermeme")


@dataclass
class Row:
    """One figure: its median over the rounds with the least and the largest, and the goal where there is one.

    `better`: "lower" or "higher"; a goal is reached where the median is not on the wrong side of it. `fastest`: of a
    ratio, that of the fastest runs.
    """

    what: str
    median: float
    low: float
    high: float
    unit: str = ""
    goal: float | None = None
    better: str = "lower"
    fastest: float | None = None

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached; None where there is none."""
        if self.goal is None:
            return None
        return self.median <= self.goal if self.better == "lower" else self.median >= self.goal


def row(what: str, values: Sequence[float], goal: float | None = None, unit: str = "", better: str = "lower") -> Row:
    """A row of the values of all rounds, or of a single one."""
    return Row(what, statistics.median(values), min(values), max(values), unit, goal, better)


def ratio(what: str, times: Times, pair: tuple[str, str], goal: float | None = None, factor: float = 1) -> Row:
    """How long one of a pair takes over the other, times `factor`, in every round."""
    ours, base = times[pair[0]], times[pair[1]]
    line = row(what, [factor * a / b for a, b in zip(ours, base, strict=True)], goal, "×")
    line.fastest = factor * min(ours) / min(base)
    return line


@dataclass
class Result:
    """What came of one case.

    Attributes:
        rows: figures.
        notes: sentences below the table.
        operators: by title, lines of an ONNX Runtime profile: operator, milliseconds of one run, share of all.
        error: why there is nothing, where the case failed.
    """

    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    operators: dict[str, list[tuple[str, float, float]]] = field(default_factory=dict)
    error: str = ""
    machine: str = ""

    def save(self, path: Path) -> None:
        """Write it as JSON, with the machine."""
        self.machine = machine()
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> Result:
        """Read what `save` wrote."""
        found: dict[str, Any] = json.loads(path.read_text())
        return cls(**found | {"rows": [Row(**line) for line in found["rows"]]})


def machine() -> str:
    """CPU, caches, threads and versions, in one paragraph."""
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return (
        f"{_cpu()}, {os.cpu_count()} cores, {_caches()}; {THREADS} threads each; {platform.system()}, "
        f"Python {platform.python_version()}, {', '.join(versions)}."
    )


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _caches() -> str:
    """As "L1 48K, L2 1024K, L3 32768K", of the first core."""
    found = []
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if (folder / "type").read_text().strip() != "Instruction":
            found.append(f"L{(folder / 'level').read_text().strip()} {(folder / 'size').read_text().strip()}")
    return ", ".join(found) or "caches unknown"
