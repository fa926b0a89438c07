"""Whether contributions add up to t(x) - t(r): what is found in some samples, and joined to what is true of all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from onnxlift.arrays import Array
from onnxlift.explanation import Explanation, sums

_WORST = 5  # samples that are named
_CANCELS = 1e4  # contributions this many times larger than what they add up to have lost their precision


@dataclass(frozen=True)
class Miss:
    """A gap that is too large. `place`: the sample, and the target where there are several; `size`: the sum of
    |contribution|."""

    place: tuple[int, ...]
    gap: float
    difference: float
    size: float

    def __str__(self) -> str:
        sample, *target = self.place
        name = f"sample {sample}" + "".join(f", target {number}" for number in target)
        return f"{name} (gap {self.gap:.3g}, difference {self.difference:.3g})"


@dataclass(frozen=True)
class Completeness:
    """How far the contributions of some samples are from adding up.

    Attributes:
        samples: how many there are.
        gap: the largest |gap|, and relative_gap the largest relative to |t(x) - t(r)|; NaN where one is.
        differences: the smallest and the largest |t(x) - t(r)|.
        tolerance: the relative gap that is allowed, or None where the rule does not conserve.
        incomplete: how many samples have a gap that is too large, and worst the worst of them.
        only: t(x), t(r) and the gap, where there is one value.
    """

    samples: int
    gap: float
    relative_gap: float
    differences: tuple[float, float]
    tolerance: float | None
    incomplete: int
    worst: tuple[Miss, ...]
    only: tuple[float, float, float] | None = None

    def __str__(self) -> str:
        return sums(self.only, self.differences, self.gap)

    @property
    def complaint(self) -> str | None:
        """What is wrong, naming the worst samples; None if nothing is."""
        if not self.worst:
            return None
        first = self.worst[0]
        if not np.isfinite(first.gap):
            advice = "where the gap is NaN, the model or a multiplier overflows on that sample or its reference"
        elif first.size > _CANCELS * abs(first.difference):
            advice = f"the contributions cancel (their sizes add up to {first.size:.3g}): try another reference"
        else:
            advice = "run `onnxlift verify` on the model with the same options: it names the node that loses most"
        return (
            f"the contributions of {self.incomplete} of {self.samples} samples do not add up to t(x) - t(r) within "
            f"{self.tolerance:.2g} of it; worst are {', '.join(map(str, self.worst))}; {advice}"
        )


def completeness(explanation: Explanation, allowed: Array, tolerance: float | None, first: int = 0) -> Completeness:
    """Of an explanation of samples `first`, first + 1, ...; `allowed`: the |gap| up to which one is complete, `[N]`."""
    gap, difference = (np.atleast_1d(array) for array in (np.abs(explanation.gap), explanation.difference))
    fits = (gap <= np.atleast_1d(allowed)) | (tolerance is None)  # NaN does not
    bad = np.argwhere(~fits)
    order = np.argsort(_badness(gap[tuple(bad.T)]), kind="stable")
    worst = [tuple(place) for place in bad[order][:_WORST].tolist()]
    sizes = np.abs(difference)
    return Completeness(
        samples=len(gap),
        gap=float(gap.max()),
        relative_gap=float(explanation.relative_gap.max()),
        differences=(float(sizes.min()), float(sizes.max())),
        tolerance=tolerance,
        incomplete=len(np.unique(bad[:, 0])),
        worst=tuple(
            Miss((first + at[0], *at[1:]), float(gap[at]), float(difference[at]), explanation.total(at)) for at in worst
        ),
        only=explanation.only,
    )


def joined(parts: Iterable[Completeness]) -> Completeness:
    """Of all samples, from that of consecutive parts of them."""
    found = list(parts)
    misses = [miss for part in found for miss in part.worst]
    order = np.argsort(_badness(np.array([miss.gap for miss in misses])), kind="stable")
    ends = np.array([part.differences for part in found])
    return Completeness(
        samples=sum(part.samples for part in found),
        gap=float(np.max([part.gap for part in found])),
        relative_gap=float(np.max([part.relative_gap for part in found])),
        differences=(float(ends[:, 0].min()), float(ends[:, 1].max())),
        tolerance=found[0].tolerance,
        incomplete=sum(part.incomplete for part in found),
        worst=tuple(misses[place] for place in order[:_WORST]),
        only=found[0].only if len(found) == 1 else None,
    )


def _badness(gaps: Array) -> Array:
    """What sorts gaps from the worst on: NaN is worst."""
    return -np.nan_to_num(gaps, nan=np.inf)
