"""One call of an explainer as ONNX Runtime runs it: tile by tile, and the outputs joined again."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from onnxlift.arrays import Array
from onnxlift.batching import Pace, Tile
from onnxlift.errors import DataError
from onnxlift.explainer import TARGET_OUTPUT
from onnxlift.feed import Feed
from onnxlift.reference import PAIRS
from onnxlift.rows import REFERENCES
from onnxlift.session import CUDA, essential, runtime

_NO_MEMORY = re.compile("allocate memory|out of memory|bad[ _]alloc", re.IGNORECASE)


class _CannotJoinError(DataError):
    """An output has no batch axis in front, or mixes samples."""


class Runner:
    """The runs of one call on `session`, and what they gave so far: `results` by output, `split` those by sample.

    `leads`: the outputs to collect, with the first extent of each. `fixed`: how many samples every run must have, where
    the model fixes that.
    """

    def __init__(
        self, session: Any, leads: Mapping[str, Any], description: Mapping[str, Any], fixed: int | None, feed: Feed
    ) -> None:
        self._session, self._leads, self._fixed, self._feed = session, leads, fixed, feed
        # What does not depend on the references, so that it is no mean over them.
        self._at_x = {*description["outputs"], *description["expose"], TARGET_OUTPUT}
        self._binding = session.io_binding()
        self._references: tuple[int, int] | None = None
        self._common: list[Any] = []
        self.results: dict[str, Array] = {}
        self.split: set[str] = set()

    def run(self, pace: Pace, advance: Callable[[int], object]) -> None:
        """Run all tiles; `advance` is told how many more samples are done. Raises DataError where one cannot run."""
        samples = self._feed.samples or 1
        done = 0
        try:
            for tile in pace.tiles(samples):
                self._run(tile, pace)
                if tile.last == self._feed.references:
                    done += tile.stop - tile.start
                    advance(tile.stop - tile.start)
        except _CannotJoinError:
            if not pace.unite(samples):
                raise
            self.results.clear()
            self.split.clear()
            self._run(Tile(0, samples, 0, self._feed.references), pace)
            advance(samples - done)

    def _run(self, tile: Tile, pace: Pace) -> None:
        """Run a tile and join what it gives; in halves where it gets no memory."""
        self._bind_common(tile)
        rows = self._feed.rows(tile, self._fixed)
        try:
            with pace.watch(tile.pairs):
                values = self._values(rows)
        except Exception as error:  # ONNX Runtime's exceptions have no common class
            halves = tile.halves(pace.splits) if pace.adapts and _NO_MEMORY.search(str(error)) else None
            if halves is None:
                first, last = self._feed.first + tile.start, self._feed.first + tile.stop - 1
                where = "this data" if self._feed.samples is None else f"samples {first} to {last}"
                raise DataError(f"the model cannot run on {where}: {essential(error)}") from error
        else:
            for name, value in zip(self._leads, values, strict=True):
                self._join(name, value, tile)
            return
        pace.refused(tile.pairs)
        for half in halves:
            self._run(half, pace)

    def _bind_common(self, tile: Tile) -> None:
        """Bind what many tiles share; it stays bound, and on the device, until the references change."""
        if self._references == (tile.first, tile.last):
            return
        self._references = tile.first, tile.last
        common = {name: self._on_device(array) for name, array in self._feed.common(tile).items()}
        for name, value in common.items():
            self._binding.bind_ortvalue_input(name, value)
        self._common = list(common.values())  # bound memory must outlive the runs

    def _values(self, rows: Mapping[str, Array]) -> list[Array]:
        """The outputs for some rows. They are made on the device, and copied from it when all are there."""
        bound = {name: runtime().OrtValue.ortvalue_from_numpy(array) for name, array in rows.items()}
        for name, value in bound.items():
            self._binding.bind_ortvalue_input(name, value)
        for name in self._leads:
            self._binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(self._binding)
        values = [value.numpy() for value in self._binding.get_outputs()]
        self._binding.clear_binding_outputs()
        return values

    def _on_device(self, array: Array) -> Any:
        """An array on the device of the first provider."""
        place = ("cpu", 0)
        if self._session.get_providers()[0] == CUDA:
            place = ("cuda", int(self._session.get_provider_options()[CUDA].get("device_id", 0)))
        return runtime().OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"), *place)

    def _join(self, name: str, value: Array, tile: Tile) -> None:
        """Put what a tile gives of an output where it belongs; the first tile makes that place.

        An output counts references, or pairs, or samples, or is the same for all. What depends on references and does
        not count them is a mean over those of the tile.
        """
        n, k = self._feed.samples or 1, self._feed.references
        samples, rest = tile.stop - tile.start, value.shape[1:]
        if self._leads[name] == REFERENCES:
            self._whole(name, (k, *rest), value)[tile.first : tile.last] = value
            return
        if self._leads[name] == PAIRS:
            self.split.add(name)
            whole = self._whole(name, (n * k, *rest), value).reshape(n, k, *rest)
            pairs = value.reshape(-1, tile.last - tile.first, *rest)
            whole[tile.start : tile.stop, tile.first : tile.last] = pairs[:samples]
            return
        rows = self._has_rows(name, value, samples)
        known = name in self.results
        if rows:
            self.split.add(name)
        whole = self._whole(name, (n, *rest) if rows else value.shape, value)
        if whole.shape[1:] != rest or (known and not rows and not np.array_equal(whole, value)):
            raise _CannotJoinError(
                f"output {name!r} differs between batches and cannot be joined: explain all samples at once, with "
                f"batch_size={n}"
            )
        part, value = (whole[tile.start : tile.stop], value[:samples]) if rows else (whole, value)
        share = (tile.last - tile.first) / k
        if share == 1 or name in self._at_x:
            part[...] = value
        else:
            np.add(part if tile.first else 0, value * share, out=part)

    def _whole(self, name: str, shape: tuple[int, ...], value: Array) -> Array:
        """The array of all samples, not filled yet where this is the first tile."""
        if name not in self.results:
            self.results[name] = np.empty(shape, value.dtype)
        return self.results[name]

    def _has_rows(self, name: str, value: Array, samples: int) -> bool:
        """Whether an output has a row for each sample of its run."""
        lead = self._leads[name]
        if self._feed.samples is None or not value.ndim or (isinstance(lead, int) and lead != self._fixed):
            return False
        return len(value) == (self._fixed or samples)
