"""What a job explains, told so that any process can take a part in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnxlift.arrays import Array
from onnxlift.completeness import Completeness
from onnxlift.explanation import Explanation
from onnxlift.feed import Data
from onnxlift.formats import AS_IT_IS, Form, Stored, open_data, whole
from onnxlift.reference import PAIRS
from onnxlift.rows import REFERENCES
from onnxlift.runtime import Explainer
from onnxlift.session import Provider

CHUNK_BYTES = 64 << 20
"""Of the data of a chunk and its results, unless --chunk-size says otherwise."""


@dataclass(frozen=True)
class Task:
    """A model, data and how the one explains the other. Paths are what every process that takes part can open.

    Args:
        model: a model, or an explainer.
        data: a file or folder that `open_data` reads; `form`: how, where it does not hold arrays.
        options: those of `onnxlift.rewrite`, for a plain model.
        reference: what to compare with, where the explainer takes that at run time.
        batch_size, tolerance, seed, providers: of `Explainer`.
    """

    model: Path
    data: Path
    form: Form = AS_IT_IS
    options: Mapping[str, Any] = field(default_factory=dict)
    reference: Data | None = None
    batch_size: int | None = None
    tolerance: float = 1e-3
    seed: int = 0
    providers: Sequence[Provider] | None = None

    def absolute(self) -> Task:
        """The same for a process that runs in another folder."""
        options = dict(self.options)
        if isinstance(options.get("plan"), str) and Path(options["plan"]).is_file():
            options["plan"] = str(Path(options["plan"]).resolve())
        genome = None if self.form.genome is None else self.form.genome.resolve()
        form = replace(self.form, genome=genome)
        return replace(self, model=self.model.resolve(), data=self.data.resolve(), form=form, options=options)

    @contextmanager
    def open(self) -> Iterator[Work]:
        """The explainer and the data, opened. Raises ModelError, OptionError, RuleError, DataError."""
        explainer = Explainer(
            self.model,
            providers=self.providers,
            batch_size=self.batch_size,
            tolerance=self.tolerance,
            progress=False,
            seed=self.seed,
            **self.options,
        )
        axes = explainer.description.get("one_hot") or {}
        inputs = explainer.intake.of_role("data")
        with open_data(self.data, inputs=inputs, one_hot=axes, form=self.form) as stored:
            yield Work(explainer, stored, self.reference)


class Work:
    """An explainer and the data that it explains, of which it reads a chunk at a time.

    `samples`: N, or None where the model has no batch axis. `stored`: the data as they are. `labels`: gives the names
    of samples start to stop (exclusive), of records, regions or images; None where they have none. `left_out`: arrays
    in the data that are nothing to the explainer.
    """

    def __init__(self, explainer: Explainer, stored: Stored, reference: Data | None) -> None:
        self.explainer = explainer
        self.stored = stored
        intake = explainer.intake
        self.left_out: list[str] = []
        if isinstance(stored, dict) and all(port.name in stored for port in intake.of_role("data")):
            # Classes, identifiers; but a reference or a target is meant for the explainer.
            self.left_out = [name for name in stored if name not in intake.ports and not _is_asked_for(name)]
            stored = {name: rows for name, rows in stored.items() if name not in self.left_out}
        self._rows = intake.named(stored, reference)
        labels = (getattr(rows, "labels", None) for rows in self._rows.values())
        self.labels: Callable[[int, int], list[str]] | None = next(filter(None, labels), None)
        self.samples, self._cut = intake.cut(self._rows)
        self._shared: dict[str, Array] = {}

    def explain(
        self, start: int, stop: int, advance: Callable[[int], object] = lambda done: None
    ) -> tuple[Explanation, Completeness]:
        """Explain samples start to stop (exclusive). `advance` is told how many more are done. Raises DataError."""
        if not self._shared:
            self._shared = {name: whole(rows) for name, rows in self._rows.items() if name not in self._cut}
        rows = {name: self._rows[name][start:stop] for name in self._cut}
        return self.explainer.part(rows | self._shared, start, advance)

    def chunk_size(self) -> int:
        """How many samples go together: CHUNK_BYTES of data and results, in whole batches where these have a size."""
        if self.samples is None:
            return 1
        size = max(1, CHUNK_BYTES // self._bytes_per_sample())
        batch = self.explainer.batch_size or self.explainer.intake.batch
        return max(size - size % batch, batch) if isinstance(batch, int) else size

    def _bytes_per_sample(self) -> int:
        """Of data and results. An extent that cannot be told beforehand counts as 1."""
        extents: dict[Any, int] = {}
        for name, rows in self._rows.items():
            extents |= dict(zip(self.explainer.intake.ports[name].shape, rows.shape, strict=False))
        total = sum(math.prod(self._rows[name].shape[1:]) * self._rows[name].dtype.itemsize for name in self._cut)
        for output in self.explainer.outputs.values():
            lead, *rest = output.shape or [None]
            rows = extents.get(REFERENCES, 1) if lead == PAIRS else 1
            size = 8 if output.type in ("tensor(double)", "tensor(int64)") else 4
            total += size * rows * math.prod(dim if isinstance(dim, int) else extents.get(dim, 1) for dim in rest)
        return max(1, int(total))


def _is_asked_for(name: str) -> bool:
    """Whether an array is called as what some explainers take."""
    return name.endswith("_reference") or name in ("target", "target_weights")
