"""Signed parts of differences and multipliers that tell them apart (DeepLIFT 3.4, METHOD sections 2 and 3).

A difference d is carried as its parts d+ and d-, which sum to it; their multipliers m+ and m- are carried as

    mean = (m+ + m-) / 2    and    half = (m+ - m-) / 2,

because an affine operator y = W x acts on these two alike: W^T mean and |W|^T half. Without RevealCancel every half is
0 and none is emitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from onnxlift.functions import maximum, minimum, sign, where
from onnxlift.tensor import Tensor


class Parts(NamedTuple):
    """The signed parts of a difference: what its positive and its negative causes add up to."""

    plus: Tensor
    minus: Tensor


def by_sign(d: Tensor) -> Parts:
    """P(d) and N(d): the parts of a difference that is one cause."""
    return Parts(maximum(d, 0), minimum(d, 0))


def scaled(parts: Parts, s: Tensor) -> Parts:
    """The parts of s d: a factor s < 0 makes positive what was negative."""
    if s.value is not None and (s.value >= 0).all():
        return Parts(parts.plus * s, parts.minus * s)
    swaps = s < 0
    return Parts(where(swaps, parts.minus, parts.plus) * s, where(swaps, parts.plus, parts.minus) * s)


@dataclass(frozen=True)
class Multiplier:
    """m+ = mean + half and m- = mean - half; `half` is None where the two are the same."""

    mean: Tensor
    half: Tensor | None = None

    def __add__(self, other: Multiplier) -> Multiplier:
        half = self.half or other.half
        if self.half is not None and other.half is not None:
            half = self.half + other.half
        return Multiplier(self.mean + other.mean, half)

    def folded(self, d: Tensor) -> Tensor:
        """m+ where d > 0, m- where d < 0, their mean where d = 0: the multiplier of a difference that is one cause."""
        return self.mean if self.half is None else self.mean + sign(d) * self.half

    def contribution(self, d: Tensor, parts: Parts | None) -> Tensor:
        """m+ d+ + m- d-; `parts` may be None where m+ = m-."""
        if self.half is None or parts is None:
            return self.mean * d
        return self.mean * d + self.half * (parts.plus - parts.minus)
