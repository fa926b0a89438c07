"""What this machine lets the process have: processors and memory, also inside of a container.

Linux says both under /proc and /sys/fs/cgroup (version 1 and 2). Elsewhere memory is unknown, which is None.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
_GROUPS = Path("/sys/fs/cgroup")


def cpus() -> int:
    """How many threads can run at once: those of the machine, or fewer where an affinity or a quota says so.

    So does OMP_NUM_THREADS, by which a cluster tells a process how many processors are its own.
    """
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdecimal() and int(told) > 0:
        count = min(count, int(told))
    for folder in _groups("cpu"):
        with contextlib.suppress(OSError, ValueError):
            if (folder / "cpu.max").exists():
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if quota != "max" and int(quota) > 0:
                count = min(count, max(1, math.ceil(int(quota) / int(period))))
    return count


def held_memory() -> int | None:
    """The bytes that the process holds itself; files that are mapped into memory do not count."""
    with contextlib.suppress(OSError, ValueError):
        resident, shared = (int(pages) for pages in (_PROC / "self/statm").read_text().split()[1:3])
        return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    return None


def free_memory() -> int | None:
    """The bytes that can be taken without swapping: of the machine, or less where the process has a limit."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        free = 1024 * _numbers(_PROC / "meminfo")["MemAvailable:"]
        for folder in _groups("memory"):
            # What the kernel can drop again is counted as used.
            names = ("memory.max", "memory.current", "inactive_file")
            if not (folder / names[0]).exists():
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            with contextlib.suppress(OSError, ValueError, KeyError):
                limit, used = (int((folder / name).read_text()) for name in names[:2])  # "max" is no number
                free = min(free, limit - used + _numbers(folder / "memory.stat")[names[2]])
        return max(0, free)
    return None


def _groups(controller: str) -> Iterator[Path]:
    """The folders of the control groups that the process is in, the innermost first."""
    with contextlib.suppress(OSError):
        for line in (_PROC / "self/cgroup").read_text().splitlines():
            _, controllers, place = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            root = _GROUPS / controller if controllers else _GROUPS
            inner = root / place.lstrip("/")
            yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(root))


def _numbers(file: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    return {words[0]: int(words[1]) for line in file.read_text().splitlines() if len(words := line.split()) > 1}
