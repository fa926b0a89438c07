"""The result of an explainer, by meaning and by the names of its ONNX outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxlift.arrays import Array, PathLike, write_arrays
from onnxlift.explainer import GAP, TARGET_OUTPUT, TARGET_REFERENCE


@dataclass(frozen=True, eq=False)
class Explanation:
    """What an explainer computed for N samples; where the model has no batch axis, `[N]` is a scalar.

    Of a list of T targets, whatever is told of a target has an axis for them behind the batch: `[N, T]`, `[N, T, ...]`.

    Attributes:
        contributions: by attributed tensor, shape and dtype of that tensor. Of the rules "gradient", "guided-backprop"
            and "deconvnet" they are the multipliers.
        outputs: the model's own outputs by name (those that are tensors).
        target: t(x), the explained neuron, `[N]`.
        target_reference: t(r), the same at the reference, `[N]`; a mean where there are several references.
        gap: t(x) - t(r) - sum of contributions, `[N]`.
        reference_outputs: the model's outputs at the reference by name, where the explainer emits them: `[N, ...]`,
            or one row or K rows where all samples share the references, or `[N, K, ...]`.
        multipliers: by attributed tensor, where the explainer emits them.
        hypothetical: by attributed one-hot tensor, where the explainer emits them: what every letter would contribute
            at every position, shape and dtype of that tensor.
        exposed: internal tensors T, as "T", "T/multiplier" and "T/contributions"; where RevealCancel tells m+ and m-
            apart also as "T/multiplier/plus" and "T/multiplier/minus".
        split: the names in `arrays()` of those with a row for each sample; the others are for all samples.
    """

    contributions: Mapping[str, Array]
    outputs: Mapping[str, Array]
    target: Array
    target_reference: Array
    gap: Array
    reference_outputs: Mapping[str, Array] = field(default_factory=dict)
    multipliers: Mapping[str, Array] = field(default_factory=dict)
    hypothetical: Mapping[str, Array] = field(default_factory=dict)
    exposed: Mapping[str, Array] = field(default_factory=dict)
    split: frozenset[str] = frozenset()

    @property
    def difference(self) -> Array:
        """t(x) - t(r), what the contributions of a sample add up to: `[N]`."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.target - self.target_reference)

    @property
    def relative_gap(self) -> Array:
        """|gap| / |t(x) - t(r)|, `[N]`: 0 where both are 0, inf where only the difference is."""
        gap, difference = np.abs(self.gap), np.abs(self.difference)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(gap == 0, 0, gap / difference)

    def total(self, place: tuple[int, ...]) -> float:
        """The sum of |contribution| at one place of `gap`: of a sample, or of a target of it."""
        arrays, lead = self.contributions.values(), self.gap.shape
        rows = (array[place] if lead and array.shape[: len(lead)] == lead else array for array in arrays)
        return sum(float(np.abs(row).sum(dtype=np.float64)) for row in rows)

    def arrays(self) -> dict[str, Array]:
        """Everything under the names of the explainer's outputs."""
        named = dict(self.outputs)
        named |= {TARGET_OUTPUT: self.target, TARGET_REFERENCE: self.target_reference, GAP: self.gap}
        named |= {f"{name}_contributions": array for name, array in self.contributions.items()}
        named |= {f"{name}_multipliers": array for name, array in self.multipliers.items()}
        named |= {f"{name}_hypothetical": array for name, array in self.hypothetical.items()}
        named |= {f"{name}_reference": array for name, array in self.reference_outputs.items()}
        return named | dict(self.exposed)

    def save(self, path: PathLike) -> None:
        """Write `arrays()` to a .npz file, atomically and without pickle.

        Raises OptionError where `path` cannot be written.
        """
        write_arrays(path, self.arrays())

    def __str__(self) -> str:
        parts = [f"contributions of {name!r} {list(array.shape)}" for name, array in self.contributions.items()]
        difference = np.abs(self.difference)
        said = sums(self.only, (difference.min(), difference.max()), np.abs(self.gap).max())
        return "; ".join([", ".join(parts) or "no contributions", said])

    @property
    def only(self) -> tuple[float, float, float] | None:
        """t(x), t(r) and the gap, where there is one value of each."""
        ends = (self.target, self.target_reference, self.gap)
        return None if self.gap.size > 1 else tuple(end.item() for end in ends)


def sums(only: tuple[float, float, float] | None, differences: tuple[float, float], gap: float) -> str:
    """What contributions add up to: `only` t(x), t(r) and a gap; or the range of |t(x) - t(r)| and the largest gap."""
    if only is not None:
        return "t(x) {:.6g}, t(r) {:.6g}, gap {:.2g}".format(*only)
    return f"|t(x) - t(r)| from {differences[0]:.3g} to {differences[1]:.3g}, |gap| at most {gap:.2g}"
