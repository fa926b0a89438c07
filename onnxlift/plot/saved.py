"""What is drawn: samples of one attributed input, from what `Explanation.save` wrote and from the data explained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from onnxlift.arrays import Array
from onnxlift.errors import DataError, OptionError, listed, shown
from onnxlift.explainer import CONTRIBUTIONS, GAP, TARGET_OUTPUT, TARGET_REFERENCE
from onnxlift.explanation import Explanation
from onnxlift.plot.style import number, numbers, plain

Explained = Explanation | Mapping[str, Array]
Data = ArrayLike | Mapping[str, ArrayLike]
Samples = int | Sequence[int]

MOST_SAMPLES = 100

RESULTS = (TARGET_OUTPUT, TARGET_REFERENCE, GAP)
_DERIVED = (
    CONTRIBUTIONS,
    "_multipliers",
    "_hypothetical",
    "_reference",
    "/contributions",
    "/multiplier",
    "/plus",
    "/minus",
)


@dataclass(frozen=True)
class Selection:
    """S chosen samples out of N.

    name: the attributed input. samples: their indices. contributions: `[S, ...]`. data: the input, in the same shape,
    or None. ids: integer tokens `[S, T]`, where the data have such. target, reference, gap: `[S]`. outputs: of the
    model, `[S, ...]`. everything: target, reference and gap of all samples, `[3, N]`. alone: there is no other input.
    """

    name: str
    samples: list[int]
    contributions: Array
    data: Array | None
    ids: Array | None
    target: Array
    reference: Array
    gap: Array
    outputs: Mapping[str, Array]
    everything: Array
    alone: bool

    @property
    def count(self) -> int:
        """N, how many samples there are."""
        return int(self.everything.shape[1])

    def ends(self, row: int) -> tuple[float, float, float]:
        """t(x), t(r) and the gap of a sample."""
        return float(self.target[row]), float(self.reference[row]), float(self.gap[row])

    def predictions(self, row: int) -> dict[str, str]:
        """What the model said of a sample, for people: a number, or the index of the largest one of several."""
        said = {}
        for name, output in self.outputs.items():
            values = output[row]
            if values.size == 1:
                said[plain(name)] = number(values.item())
            elif values.ndim == 1 and values.size and np.isfinite(values).all():
                said[f"argmax {plain(name)}"] = str(int(values.argmax()))
        return said

    def caption(self, row: int) -> str:
        """Lines that say which sample it is, what it adds up to, and what is odd about it."""
        said = [f"{name} = {value}" for name, value in self.predictions(row).items()][:1]
        ends = f"t(x) = {number(self.target[row])}, t(r) = {number(self.reference[row])}"
        return (
            ", ".join([f"sample {self.samples[row]}", *said]) + "\n" + "\n".join(filter(None, [ends, self.oddity(row)]))
        )

    def oddity(self, row: int) -> str:
        """That contributions of a sample are not finite, or are all 0; or nothing."""
        c = self.contributions[row]
        bad = int(c.size - np.isfinite(c).sum())
        if bad:
            return f"{bad} of {c.size} contributions are not finite"
        return "" if c.any() else "all contributions are 0"


def select(
    explained: Explained,
    data: Data | None = None,
    *,
    input: str | None = None,
    samples: Samples = 8,
    source: str = "the explanation",
    data_source: str = "the data",
) -> Selection:
    """Choose samples of an input, and check that everything fits together.

    Args:
        explained: an Explanation, or its arrays under the names that `save` gives them.
        data: what was explained: the input's array, or a mapping that has it. Axes of length 1 may be missing.
        input: the attributed input or tensor; may be left out where there is one.
        samples: indices, or how many of the first ones.
        source, data_source: what messages call the two.

    Raises:
        DataError: an array is missing, or has another shape or type. OptionError: no such input or sample.
    """
    arrays = explained.arrays() if isinstance(explained, Explanation) else explained
    found = [name.removesuffix(CONTRIBUTIONS) for name in arrays if name.endswith(CONTRIBUTIONS)]
    name = _input(found, input, source)
    results = [_result(arrays, key, source) for key in RESULTS]
    contributions = arrays[name + CONTRIBUTIONS]
    batched = results[0].ndim == 1
    if not batched:  # the model has no batch axis: one sample
        arrays, contributions = {key: value[None] for key, value in arrays.items()}, contributions[None]
    everything = np.stack([np.atleast_1d(result) for result in results]).astype(np.float64)
    count = everything.shape[1]
    if contributions.dtype.kind != "f":
        raise DataError(f"the contributions of {name!r} in {source} must be floating-point, not {contributions.dtype}")
    if not contributions.size:
        raise DataError(
            f"the contributions of {name!r} in {source} are empty: their shape is {shown(contributions.shape)}"
        )
    if contributions.shape[:1] != (count,):
        raise DataError(
            f"the contributions of {name!r} have shape {shown(contributions.shape)}, which does not begin with the "
            f"{count} samples of {source}: they cannot be drawn sample by sample"
        )
    rows = chosen(samples, count)
    inputs, ids = _inputs(data, name, contributions.shape, batched, data_source)
    outputs = {
        key: np.asarray(value)[rows]
        for key, value in arrays.items()
        if _is_output(key, arrays) and value.dtype.kind in "fiub" and value.shape[:1] == (count,)
    }
    return Selection(
        name=name,
        samples=rows,
        contributions=contributions[rows],
        data=None if inputs is None else inputs[rows],
        ids=None if ids is None else ids[rows],
        target=everything[0, rows],
        reference=everything[1, rows],
        gap=everything[2, rows],
        outputs=outputs,
        everything=everything,
        alone=len(found) == 1,
    )


def _input(found: Sequence[str], name: str | None, source: str) -> str:
    if not found:
        raise DataError(f"{source} has no contributions: give what `onnxlift explain --out` wrote")
    if name is None and len(found) > 1:
        raise OptionError(f"{source} has contributions of {listed(found)}: choose an input")
    if name is not None and name not in found:
        raise OptionError(f"{source} has no contributions of {name!r}, only of {listed(found)}")
    return name or found[0]


def _result(arrays: Mapping[str, Array], key: str, source: str) -> Array:
    """t(x), t(r) or the gap: `[N]`, or a scalar where there is no batch axis."""
    if key not in arrays:
        raise DataError(f"{source} has no array {key!r}: give what `onnxlift explain --out` wrote")
    array, first = arrays[key], arrays.get(TARGET_OUTPUT, arrays[key])
    if array.ndim == 2 and array.shape == first.shape:
        raise DataError(
            f"{source} explains {array.shape[1]} targets of each sample, and one can be shown at a time: explain the "
            "one to show by itself"
        )
    if array.dtype.kind != "f" or array.ndim > 1 or array.shape != first.shape or not array.size:
        raise DataError(
            f"{key!r} in {source} must be a number for each sample, not {array.dtype} {shown(array.shape)}: give what "
            "`onnxlift explain --out` wrote"
        )
    return array


def chosen(samples: Samples, count: int) -> list[int]:
    """The indices of the samples to draw, of so many. Raises OptionError: there is no such sample, or too many."""
    if isinstance(samples, int | np.integer):
        if samples < 1:
            raise OptionError(f"the number of samples must be at least 1, not {samples}")
        rows = list(range(min(int(samples), count)))
    else:
        rows = list(dict.fromkeys(map(int, samples)))
        unknown = [row for row in rows if not 0 <= row < count]
        if unknown or not rows:
            what = f"there is no sample {unknown[0]}" if unknown else "no sample is chosen"
            raise OptionError(f"{what}: samples are 0 to {count - 1}")
    if len(rows) > MOST_SAMPLES:
        raise OptionError(f"{len(rows)} samples are too many for one figure or report: choose at most {MOST_SAMPLES}")
    return rows


def _inputs(
    data: Data | None, name: str, shape: tuple[int, ...], batched: bool, source: str
) -> tuple[Array | None, Array | None]:
    """The input's array in the shape of its contributions, and integer tokens `[N, T]`; None for what there is not."""
    if data is None:
        return None, None
    if not isinstance(data, Mapping):
        return fitting(np.asarray(data), shape, source), None
    arrays = {key: np.asarray(value) if batched else np.asarray(value)[None] for key, value in data.items()}
    integers = {key: value for key, value in arrays.items() if value.dtype.kind in "iu" and value.shape == shape[:2]}
    ids = integers.get("input_ids", next(iter(integers.values())) if len(integers) == 1 else None)
    if name in arrays:
        return fitting(arrays[name], shape, f"input {name!r} in {source}"), ids
    if ids is None:
        raise DataError(f"{source} has no array {name!r}, only {listed(data)}: give the data that were explained")
    return None, ids


def fitting(array: Array, shape: tuple[int, ...], what: str) -> Array:
    """Data in the shape of their contributions, axes of length 1 aside; NaN for what cannot be drawn.

    Raises DataError where they have another shape, or are not numbers.
    """
    if array.dtype.kind not in "fiub":
        raise DataError(f"{what} must be numbers, not {array.dtype}")
    if array.dtype.kind == "f":
        array = numbers(array, what)
    if [n for n in array.shape if n != 1] != [n for n in shape if n != 1]:
        raise DataError(
            f"{what} has shape {shown(array.shape)} and its contributions {shown(shape)}: give the data that were "
            "explained"
        )
    return array.reshape(shape)


def _is_output(key: str, arrays: Mapping[str, Array]) -> bool:
    """Whether an array is an output of the model: not computed by the explainer, nor an exposed tensor."""
    return key not in RESULTS and not key.endswith(_DERIVED) and f"{key}/multiplier" not in arrays


def sums(values: Array) -> tuple[float, float, float]:
    """The sum of contributions, of those above 0, and of those below, in float64 and without what is not finite."""
    finite = values[np.isfinite(values)].astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        return float(finite.sum()), float(finite[finite > 0].sum()), float(finite[finite < 0].sum())
