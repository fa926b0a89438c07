"""Run an explainer with ONNX Runtime: providers, batches, and whether contributions add up."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto

from onnxlift.arrays import Array
from onnxlift.errors import DataError, ModelError, OptionError
from onnxlift.explanation import Explanation
from onnxlift.feed import Data, Feed, Intake
from onnxlift.model import load
from onnxlift.plan import Plan
from onnxlift.reference import PAIRS, ReferenceSpec
from onnxlift.rewrite import GAP, METADATA_KEY, TARGET_OUTPUT, TARGET_REFERENCE, Model, rewrite
from onnxlift.session import CPU, Provider, essential, open_session, runtime
from onnxlift.target import TargetSpec

_CHUNK_ELEMENTS = 1 << 18  # of the first input
_CHUNK_ROWS = (32, 1024)  # at least, at most
_ROUNDING = 64  # in units of the model's precision


class CompletenessWarning(UserWarning):
    """Contributions that do not add up to t(x) - t(r)."""


class RewriteOptions(TypedDict, total=False):
    """The keyword arguments of `onnxlift.rewrite`."""

    inputs: Sequence[str] | None
    output: str | None
    target: TargetSpec
    reference: ReferenceSpec
    rule: str
    plan: Plan | None
    pre_activation: bool
    expose: Sequence[str]
    emit: Sequence[str]


class Explainer:
    """Explains data with a model, which is rewritten first, or with an explainer that `rewrite` made.

    Args:
        model_or_explainer: path or ModelProto of either.
        providers: of ONNX Runtime, in order; default: CUDA without TF32 where it can run, then the CPU.
        batch_size: how many samples run at once; default: 32 to 1024 by their size, fewer with several references.
            A model with a fixed batch axis runs that many, and a last chunk is filled up.
        tolerance: of the completeness gap relative to |t(x) - t(r)|, above which a CompletenessWarning is given.
        progress: show a bar on stderr; default: where stderr is a terminal and there is more than one chunk.
        options: those of `rewrite`, for a plain model only.

    Raises:
        ModelError: the model or explainer cannot be read or run. OptionError: an argument does not fit.
        RuleError: importance would have to pass nodes without a rule.
    """

    def __init__(
        self,
        model_or_explainer: Model,
        *,
        providers: Sequence[Provider] | None = None,
        batch_size: int | None = None,
        tolerance: float = 1e-3,
        progress: bool | None = None,
        **options: Unpack[RewriteOptions],
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise OptionError(f"the batch size must be at least 1, not {batch_size}")
        self.batch_size = batch_size
        self.tolerance = tolerance
        self.progress = progress
        explainer, source = _explainer(model_or_explainer, options)
        self.description: Mapping[str, Any] = description(explainer) or {}
        self._eps = _eps(explainer)
        self.session, self.provider_line = open_session(source, providers)
        self.intake = Intake(self.session.get_inputs(), self.description)
        self._outputs = {
            value.name: value.shape[0] if value.shape else None
            for value in self.session.get_outputs()
            if value.type.startswith("tensor(") and value.type != "tensor(bfloat16)"
        }
        if isinstance(self.intake.batch, int) and batch_size not in (None, self.intake.batch):
            raise OptionError(f"the model's batch axis has the fixed size {self.intake.batch}, not {batch_size}")

    def __str__(self) -> str:
        return f"{explains(self.description)}; {self.provider_line}"

    def __call__(
        self,
        data: Data,
        *,
        reference: Data | None = None,
        target: ArrayLike | None = None,
        target_weights: ArrayLike | None = None,
    ) -> Explanation:
        """Explain samples.

        Args:
            data: the input's array where the model has a single one, else a mapping from input names to arrays; it may
                hold the arrays of the other arguments too, under the names of the explainer's inputs. Numbers are
                converted to the input's dtype.
            reference: what to compare with, where the explainer takes that: `[N, ...]` (or one row for all) if it is
                paired, `[K, ...]` if shared, `[N, K, ...]` if grouped; an array, or a mapping from input names.
            target: index of the neuron, `[N]` or `[N, axes]`, or one for all samples.
            target_weights: `[N, ...]` as the explained tensor, or one row for all samples.

        Raises:
            DataError: an array is missing, unknown, of another shape, not numeric or not finite, or the model cannot
            run on it.

        Warns:
            CompletenessWarning: the contributions of some samples do not add up.
        """
        feed = self.intake.feed(data, reference, target, target_weights)
        explanation = self._explanation(self._run(feed), feed)
        self._check_target(explanation, feed)
        message = self.complaint(explanation)
        if message:
            warnings.warn(message, CompletenessWarning, stacklevel=2)
        return explanation

    def allowed_gap(self, explanation: Explanation) -> Array:
        """The |gap| up to which a sample counts as complete, `[N]`: the tolerance, and what rounding may cost."""
        size = np.abs(explanation.target) + np.abs(explanation.target_reference)
        samples = size.size
        for contributions in explanation.contributions.values():
            rows = contributions.reshape(samples, -1) if contributions.shape[:1] == size.shape else contributions
            size = size + np.abs(rows).sum(axis=1 if rows.ndim == 2 and size.ndim else None, dtype=np.float64)
        return np.asarray(self.tolerance * np.abs(explanation.difference) + _ROUNDING * self._eps * size)

    def complaint(self, explanation: Explanation) -> str | None:
        """What is wrong with the completeness of an explanation, naming the worst samples; None if nothing is."""
        gap, difference = (np.atleast_1d(array) for array in (np.abs(explanation.gap), explanation.difference))
        bad = np.flatnonzero(~(gap <= np.atleast_1d(self.allowed_gap(explanation))))  # NaN is bad
        if not bad.size:
            return None
        worst = bad[np.argsort(-np.nan_to_num(gap[bad], nan=np.inf), kind="stable")][:5]
        listed = ", ".join(f"{i} (gap {gap[i]:.3g}, difference {difference[i]:.3g})" for i in worst)
        advice = "run `onnxlift verify` on the model with the same options: it names the node that loses most"
        if not np.isfinite(gap[bad]).all():
            advice = "where the gap is NaN, the model or a multiplier overflows on that sample or its reference"
        return (
            f"the contributions of {bad.size} of {gap.size} samples do not add up to t(x) - t(r) within "
            f"{self.tolerance:g} of it; the worst: {listed}; {advice}"
        )

    def _run(self, feed: Feed) -> dict[str, Array]:
        """All outputs, joined over the chunks."""
        fixed = isinstance(self.intake.batch, int)
        size = self._chunk_size(feed)
        binding = self.session.io_binding()
        ort = runtime()
        device = "cpu" if self.session.get_providers()[0] == CPU else _device(self.session)
        keep = []  # bound memory must outlive the runs
        for name in feed.arrays.keys() - feed.split:
            value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(feed.arrays[name]), device)
            keep.append(value)
            binding.bind_ortvalue_input(name, value)
        results: dict[str, Array] = {}
        with self._bar(feed.samples or 1, size) as advance:
            for start, stop, rows in feed.chunks(size, fixed):
                values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in rows.items()}
                for name, value in values.items():
                    binding.bind_ortvalue_input(name, value)
                for name in self._outputs:
                    binding.bind_output(name, "cpu")
                try:
                    self.session.run_with_iobinding(binding)
                except Exception as error:  # ONNX Runtime's exceptions have no common class
                    raise DataError(
                        f"the model cannot run on samples {start} to {stop - 1}: {essential(error)}"
                        if feed.samples
                        else f"the model cannot run on this data: {essential(error)}"
                    ) from error
                for name, value in zip(self._outputs, binding.get_outputs(), strict=True):
                    self._join(results, name, value.numpy(), feed, start, stop)
                binding.clear_binding_outputs()
                advance(stop - start)
        return results

    def _join(self, results: dict[str, Array], name: str, value: Array, feed: Feed, start: int, stop: int) -> None:
        """Put one chunk of an output where it belongs: by samples, by pairs, or the same for all chunks."""
        first, samples = start == 0, feed.samples
        each = feed.references if self._outputs[name] == PAIRS else 1
        rows = stop - start if isinstance(self._outputs[name], str) else self.intake.batch
        joined = samples is not None and value.ndim > 0 and len(value) == each * (rows or 0)
        joined = joined and (isinstance(self._outputs[name], str) or self._outputs[name] == self.intake.batch)
        if first and joined:
            assert samples is not None
            results[name] = np.empty((each * samples, *value.shape[1:]), value.dtype)
        elif first:
            results[name] = value.copy()
        if joined and results[name].shape[1:] == value.shape[1:]:
            results[name][each * start : each * stop] = value[: each * (stop - start)]
        elif not first and not np.array_equal(results[name], value):
            raise DataError(
                f"output {name!r} differs between batches, but has no batch axis to join it on: explain all samples "
                "at once with a larger batch size"
            )
