"""How many samples and references run at once: found by timing the caller's own data, bounded by measured memory.

Small runs stay in the cache and in memory, large ones spread the cost of a run over more samples; where the best lies
depends on the model and on the machine. So the first chunks of a call grow, 1, 2, 4 ... samples, until that gains
nothing any more. No run is made only to be timed.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

from onnxlift.machine import free_memory, held_memory

GAIN = 0.02  # twice the samples must save this share of the time of each
QUICK, JUMP = 1e-3, 8  # a run below this many seconds is mostly overhead: more than double
SHARE = 0.25  # of the memory that is free without the session
LEAP = 64  # times the largest run so far, at most: what is measured of a small one is not exact
_LEAST_HELD = 1 << 20  # bytes; the kernel counts pages late
FEW = 1 << 20  # elements of the inputs, which run at once whatever memory there is


@dataclass(frozen=True)
class Tile:
    """What runs at once: samples `start` to `stop` and references `first` to `last` (all exclusive)."""

    start: int
    stop: int
    first: int
    last: int

    @property
    def pairs(self) -> int:
        """How many pairs of a sample and a reference these are."""
        return (self.stop - self.start) * (self.last - self.first)

    def halves(self, splits: bool) -> tuple[Tile, Tile] | None:
        """Two smaller tiles, by samples, or by references where those can be split; None where it is one pair."""
        if (half := (self.start + self.stop) // 2) > self.start:
            return Tile(self.start, half, self.first, self.last), Tile(half, self.stop, self.first, self.last)
        if splits and (half := (self.first + self.last) // 2) > self.first:
            return Tile(self.start, self.stop, self.first, half), Tile(self.start, self.stop, half, self.last)
        return None


class Held:
    """By how many `bytes` the runs of a session made the process grow. ONNX Runtime keeps them for later runs."""

    bytes = 0


class Pace:
    """How many pairs of a sample and a reference run at once, for samples of one shape with K references each.

    `pairs` is that number; `settled`: it stays, or all samples run together. Where references can be split (`splits`)
    and are big, the first run has one pair, because a sample with all its references may not fit. `shared`: samples
    have the same references, whose forward pass a tile pays once. `elements`: of the inputs, per pair. `held`: of the
    session. `fixed`: a number of samples that is set, and then neither time nor memory matters.
    """

    def __init__(
        self, references: int, *, splits: bool, shared: bool, elements: int, held: Held, fixed: int | None = None
    ) -> None:
        self.references = references
        self.adapts = fixed is None
        self.splits = splits and self.adapts
        self.pairs = fixed * references if fixed else 1 if self.splits and elements * references > FEW else references
        self.settled = not self.adapts
        self._together = False
        self._shared = shared
        self._elements = elements
        self._held = held
        self._best = (math.inf, self.pairs)  # seconds per pair, and how many pairs took them
        self._times: list[float] = []
        self._watched = 0  # the most pairs whose memory is counted in `held`

    def tiles(self, samples: int) -> Iterator[Tile]:
        """The tiles of so many samples, all references of some samples before the next; they follow `pairs`."""
        if self._together:
            yield Tile(0, samples, 0, self.references)
            return
        start = 0
        while start < samples:
            stop = min(start + self._samples(samples), samples)
            first = 0
            while first < self.references:
                last = min(first + max(1, self.pairs // (stop - start)), self.references)
                yield Tile(start, stop, first, last)
                first = last
            start = stop

    def _samples(self, samples: int) -> int:
        """How many of the samples go together. A shared reference runs once per tile, so that squares are cheapest."""
        if self.pairs >= self.references:
            return self.pairs // self.references
        return min(math.isqrt(self.pairs), samples) if self._shared else 1

    @contextlib.contextmanager
    def watch(self, pairs: int) -> Iterator[None]:
        """Time the run of so many pairs and measure the memory that it takes, where either can tell something."""
        if self.settled or (pairs < self.pairs and pairs <= self._watched):
            yield
            return
        self._watched = max(self._watched, pairs)
        before, start = held_memory() or 0, time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self._held.bytes += max(0, (held_memory() or 0) - before)
        if pairs == self.pairs:
            self.learn(seconds)

    def learn(self, seconds: float) -> None:
        """Choose `pairs` after a run of that many.

        Two runs of a size show that it gains, because the first one also takes memory from the system; three show that
        it does not, because something else may have used the processor.
        """
        if self.pairs < self.references:  # a sample with all its references, if that fits
            self._grow(self.references)
            return
        if seconds < QUICK:
            self._best = math.inf, self.pairs
            self._grow(self.pairs * JUMP)
            return
        self._times.append(seconds)
        each = min(self._times) / self.pairs
        if len(self._times) > 1 and each < (1 - GAIN) * self._best[0]:
            self._best = each, self.pairs
            self._grow(self.pairs * 2)
        elif len(self._times) > 2:
            self.pairs, self.settled = self._best[1], True

    def _grow(self, wanted: int) -> None:
        fits = min(wanted, LEAP * self.pairs, self._room())
        if fits > self.references:
            fits -= fits % self.references
        self.settled = fits <= self.pairs
        self.pairs = max(fits, self.pairs)
        self._times.clear()

    def _room(self) -> int:
        """How many pairs fit into memory, if need grows with them; at least those that ran."""
        free = free_memory()
        if free is None:
            return max(self.pairs, FEW // self._elements)
        held = max(self._held.bytes, _LEAST_HELD)  # which was enough
        return int(self.pairs * max(1, SHARE * (free + held) / held))

    def unite(self, samples: int) -> bool:
        """Run all samples together from now on, because their outputs cannot be joined; False where they do not fit."""
        if self.adapts and not self._together and samples * self.references <= self._room():
            self._together = self.settled = True
        return self._together

    def refused(self, pairs: int) -> None:
        """A run of so many pairs got no memory: from now on at most half as many."""
        self.pairs, self.settled = max(1 if self.splits else self.references, pairs // 2), True
