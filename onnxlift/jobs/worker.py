"""The making of one part, which every engine does in the same way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxlift.arrays import Array
from onnxlift.errors import OptionError
from onnxlift.jobs.parts import ArrayFacts, Mark, Parts
from onnxlift.jobs.stores import Store
from onnxlift.jobs.task import Task, Work

SAMPLE = "sample"
"""The array of what samples are called, where the data have names for them and the format takes text."""


@dataclass(frozen=True)
class Chunks:
    """N samples (None: no batch axis) in chunks of `size`; the last one may be smaller."""

    samples: int | None
    size: int

    def __len__(self) -> int:
        return -(-(self.samples or 1) // self.size)

    def bounds(self, number: int) -> tuple[int, int]:
        """The first sample of a chunk, and the last one (exclusive)."""
        return number * self.size, min((number + 1) * self.size, self.samples or 1)


@dataclass(frozen=True)
class Job:
    """A task in chunks. `work`: the explainer and the data as this process has opened them."""

    task: Task
    work: Work
    store: Store
    parts: Parts
    chunks: Chunks


def make_part(
    work: Work,
    store: Store,
    parts: Parts,
    number: int,
    bounds: tuple[int, int],
    advance: Callable[[int], object] = lambda done: None,
) -> None:
    """Explain the samples of a chunk and keep the results as a finished part.

    `advance` is told how many more samples are done. Raises DataError, and OptionError where nothing can be written.
    """
    start, stop = bounds
    explanation, found = work.explain(start, stop, advance)
    arrays = {name: _plain(array) for name, array in explanation.arrays().items()}
    split = explanation.split
    if work.labels is not None and store.takes_text and SAMPLE not in arrays:
        arrays[SAMPLE] = np.array(work.labels(start, stop))
        split |= {SAMPLE}
    try:
        parts.results.mkdir(exist_ok=True)
        store.write(parts.results, number, start, arrays, split)
    except OSError as error:
        raise OptionError(f"Cannot write {parts.results}: {error.strerror or error}. Make room for it.") from error
    compared = arrays.keys() - split - {f"{name}_reference" for name in explanation.reference_outputs}
    facts = {
        name: ArrayFacts(
            array.dtype.str,
            array.shape,
            name in split,
            hashlib.sha256(array.tobytes()).hexdigest() if name in compared else "",
        )
        for name, array in arrays.items()
    }
    parts.finish(number, Mark(start, stop, work.explainer.provider_line, facts, found))


def _plain(array: Array) -> Array:
    """Text, which ONNX Runtime gives as Python objects, as text."""
    return array.astype(np.str_) if array.dtype == object else array
