"""Run an explainer with ONNX Runtime: providers, batches, and whether contributions add up."""

from __future__ import annotations

import gc
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto

from onnxlift.arrays import Array
from onnxlift.batching import Held, Pace
from onnxlift.completeness import Completeness, completeness
from onnxlift.errors import DataError, ModelError, OptionError
from onnxlift.explainer import GAP, TARGET_OUTPUT, TARGET_REFERENCE
from onnxlift.explanation import Explanation
from onnxlift.feed import Data, Feed, Intake
from onnxlift.files import load
from onnxlift.metadata import conserves, description, explains
from onnxlift.one_hot import OneHot
from onnxlift.plan import PlanSpec
from onnxlift.progress import bar
from onnxlift.reference import PAIRS, ReferenceSpec
from onnxlift.rewrite import Model, rewrite, rewrite_in_place
from onnxlift.runner import Runner
from onnxlift.session import Provider, open_session
from onnxlift.static import Shapes
from onnxlift.target import TargetSpec

_BIG = 1 << 26  # bytes of weights that are worth looking for
_ROUNDING = 16  # in units of the model's precision


class CompletenessWarning(UserWarning):
    """Contributions that do not add up to t(x) - t(r)."""


class RewriteOptions(TypedDict, total=False):
    """The keyword arguments of `onnxlift.rewrite`."""

    inputs: Sequence[str] | None
    output: str | None
    target: TargetSpec
    reference: ReferenceSpec
    rule: str
    plan: PlanSpec | None
    pre_activation: bool
    expose: Sequence[str]
    emit: Sequence[str]
    one_hot: OneHot
    keep: Sequence[str] | None
    shapes: Shapes | None


class Explainer:
    """Explains data with a model, which is rewritten first, or with an explainer that `rewrite` made.

    Args:
        model_or_explainer: path or ModelProto of either.
        providers: of ONNX Runtime, in order; default: CUDA without TF32 where it can run, then the CPU.
        batch_size: how many samples run at once, with all their references. Default: as many as are fastest here and
            fit into a quarter of the free memory, which the first calls find out; a sample's references may then run in
            parts. A model with a fixed batch axis runs that many, and a last chunk is filled up. Runs of different
            sizes may differ by rounding; a set size repeats to the bit.
        tolerance: of the completeness gap relative to |t(x) - t(r)|, above which a CompletenessWarning is given.
        progress: show a bar on stderr; default: where stderr is a terminal and not everything runs at once.
        seed: of the references that are made of the samples by name ("shuffle:K", "dinuc-shuffle:K").
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
        seed: int = 0,
        **options: Unpack[RewriteOptions],
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise OptionError(f"the batch size must be at least 1, not {batch_size}")
        if not tolerance >= 0:  # nor NaN, with which nothing would be complete
            raise OptionError(f"the tolerance must be 0 or more, not {tolerance}")
        self.batch_size = batch_size
        self.tolerance = tolerance
        self.progress = progress
        explainer, source, folder = _explainer(model_or_explainer, options)
        self.description: Mapping[str, Any] = description(explainer) or {}
        self.eps = _eps(explainer)
        del explainer  # its weights are in the source too
        self.session, self.provider_line = open_session(source, providers, folder)
        self.intake = Intake(self.session.get_inputs(), self.description, seed)
        leads = self.description.get("leads", {})  # of static shapes, where ONNX Runtime has numbers
        self.outputs = {
            value.name: value
            for value in self.session.get_outputs()
            if value.type.startswith("tensor(") and value.type != "tensor(bfloat16)"
        }
        self._leads = {
            name: leads.get(name, value.shape[0] if value.shape else None) for name, value in self.outputs.items()
        }
        self._held = Held()
        self._paces: dict[tuple[Any, ...], Pace] = {}
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
                References that the explainer makes by name ("dinuc-shuffle:20") need not be given.
            target: index of the neuron, `[N]` or `[N, axes]`, or one for all samples.
            target_weights: `[N, ...]` as the explained tensor, or one row for all samples.

        Raises:
            DataError: an array is missing, unknown, of another shape, not numeric or not finite, or the model cannot
            run on it.

        Warns:
            CompletenessWarning: the contributions of some samples do not add up, although the rule conserves.
        """
        feed = self.intake.feed(data, reference, target, target_weights)
        samples = feed.samples or 1
        more = self._pace(feed).pairs < samples * feed.references
        with bar(samples, self.progress, more=more) as advance:
            explanation = self._run(feed, advance)
        message = self.complaint(explanation)
        if message:
            warnings.warn(message, CompletenessWarning, stacklevel=2)
        return explanation

    def part(
        self, arrays: Mapping[str, ArrayLike], first: int, advance: Callable[[int], object]
    ) -> tuple[Explanation, Completeness]:
        """Explain a part of the samples of larger data: samples `first`, first + 1, ..., as messages call them.

        Args:
            arrays: by the names of the explainer's inputs.
            advance: is told how many more samples are done.

        Raises DataError as a call does; warns of nothing.
        """
        explanation = self._run(self.intake.feed(arrays, first=first), advance)
        return explanation, self.completeness(explanation, first)

    def rounding(self, explanation: Explanation) -> Array:
        """What rounding may cost t(x) - t(r), `[N]`: a difference or a gap below it says nothing.

        The size of the contributions does not count: where huge ones cancel, they do not add up and are no use.
        """
        size = np.abs(explanation.target) + np.abs(explanation.target_reference)
        return np.asarray(_ROUNDING * self.eps * size)

    def allowed_gap(self, explanation: Explanation) -> Array:
        """The |gap| up to which a sample counts as complete, `[N]`: the tolerance, and what rounding may cost."""
        if math.isinf(self.tolerance):  # times a difference of 0 it would be NaN
            return np.full_like(explanation.difference, np.inf)
        return np.asarray(self._least_tolerance * np.abs(explanation.difference) + self.rounding(explanation))

    @property
    def _least_tolerance(self) -> float:
        """The tolerance, or what the model's precision makes of it."""
        return max(self.tolerance, _ROUNDING * self.eps)

    def completeness(self, explanation: Explanation, first: int = 0) -> Completeness:
        """How far the contributions of samples `first`, first + 1, ... are from adding up.

        Those of the gradient family are not expected to.
        """
        tolerance = self._least_tolerance if conserves(self.description) else None
        return completeness(explanation, self.allowed_gap(explanation), tolerance, first)

    def complaint(self, explanation: Explanation) -> str | None:
        """What is wrong with the completeness of an explanation, naming the worst samples; None if nothing is."""
        return self.completeness(explanation).complaint

    def _run(self, feed: Feed, advance: Callable[[int], object]) -> Explanation:
        """All outputs, joined over the runs. Raises DataError."""
        fixed = self.intake.batch if isinstance(self.intake.batch, int) else None
        runner = Runner(self.session, self._leads, self.description, fixed, feed)
        runner.run(self._pace(feed), advance)
        explanation = self._explanation(runner.results, frozenset(runner.split), feed)
        self._check_target(explanation, feed)
        return explanation

    def _pace(self, feed: Feed) -> Pace:
        """How much runs at once: set, or found by the calls so far with samples of this shape."""
        batch = self.intake.batch
        fixed = batch if isinstance(batch, int) else 1 if feed.samples is None else self.batch_size
        shapes = sorted((name, array.shape[1:]) for name, array in feed.arrays.items() if name in feed.split)
        key = fixed, feed.references, tuple(shapes)
        if key not in self._paces:
            elements = sum(math.prod(shape) for name, shape in shapes if name not in feed.along)
            shared = 0 in feed.along.values()
            self._paces[key] = Pace(
                feed.references, splits=bool(feed.along), shared=shared, elements=elements, held=self._held, fixed=fixed
            )
        return self._paces[key]

    def _explanation(self, results: dict[str, Array], split: frozenset[str], feed: Feed) -> Explanation:
        about = self.description
        references = {}
        for name in about["outputs"]:
            value = results.get(f"{name}_reference") if "reference_outputs" in about["emit"] else None
            if value is not None:
                grouped = self._leads[f"{name}_reference"] == PAIRS
                references[name] = value.reshape(feed.samples or 1, -1, *value.shape[1:]) if grouped else value
        kinds = ("", "/contributions", "/multiplier", "/multiplier/plus", "/multiplier/minus")
        exposed = [name + kind for name in about["expose"] for kind in kinds]
        return Explanation(
            contributions=_named(results, about["inputs"], "_contributions"),
            outputs=_named(results, about["outputs"]),
            target=results[TARGET_OUTPUT],
            target_reference=results[TARGET_REFERENCE],
            gap=results[GAP],
            reference_outputs=references,
            multipliers=_named(results, about["inputs"], "_multipliers"),
            hypothetical=_named(results, about["inputs"], "_hypothetical"),
            exposed=_named(results, exposed),
            split=split,
        )

    def _check_target(self, explanation: Explanation, feed: Feed) -> None:
        """The graph answers NaN where an index is out of range, which only it knows for a dynamic axis."""
        target, output = self.description["target"], self.description["output"]
        bad = np.argwhere(np.isnan(np.atleast_1d(explanation.target)))
        explained = explanation.outputs.get(output, np.zeros(()))
        fixed = isinstance(target, list)
        if not (fixed or target == "input") or not bad.size or np.isnan(explained).any():
            return
        if all(isinstance(dim, int) for dim in self.intake.neurons):  # the index was checked before
            return
        index = np.array(target) if fixed else feed.arrays["target"]
        if self.description.get("targets") is not None:
            index = index[bad[0, 1]]
        elif not fixed and feed.samples is not None:
            index = index[bad[0, 0]]
        shown = index.item() if index.size == 1 else index.tolist()
        where = "" if feed.samples is None else f" of sample {feed.first + bad[0, 0]}"
        raise DataError(f"target {shown}{where} is out of range for tensor {output!r}, or that tensor is NaN there")


def _explainer(model: Model, options: RewriteOptions) -> tuple[onnx.ModelProto, bytes | str, Path | None]:
    """The explainer (its weights perhaps elsewhere), what a session is opened on, and where its weights are."""
    path = None if isinstance(model, onnx.ModelProto) else Path(model)
    folder = path.resolve().parent if path else None
    proto = load(model, weights=path is None)
    if description(proto) is None:
        emit = options.get("emit", ("contributions",))
        if "target" not in {output.name for output in proto.graph.output}:  # target_reference is t(r)
            emit = (*emit, "reference_outputs")
        options = {**options, "emit": tuple(dict.fromkeys(emit))}
        proto = rewrite(model, **options) if folder is None else rewrite_in_place(proto, folder, **options)
    elif options:
        raise OptionError(
            f"{os.fspath(path) if path else 'the given model'} is an explainer already, so {', '.join(options)} cannot "
            "be chosen any more: give the original model, or leave the options out"
        )
    elif path:
        return proto, str(path), None
    try:
        if proto.ByteSize() > _BIG:
            gc.collect()  # what the rewriter leaves behind is cyclic, and holds the weights
        return proto, proto.SerializeToString(), folder
    except Exception as error:  # protobuf's class for this differs between backends
        raise ModelError(
            "the explainer is over 2 GB, too big to hand over in memory: write it beside the model's weights with "
            "onnxlift.rewrite_file, and explain with that file"
        ) from error


def _eps(explainer: onnx.ModelProto) -> float:
    """The unit of rounding of the coarsest float type that the explainer computes with."""
    graph = explainer.graph
    kinds = {value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    if TensorProto.BFLOAT16 in kinds:
        return 2.0**-7
    if TensorProto.FLOAT16 in kinds:
        return 2.0**-10
    return 2.0**-23 if TensorProto.FLOAT in kinds else 2.0**-52


def _named(results: Mapping[str, Array], names: Sequence[str], suffix: str = "") -> dict[str, Array]:
    return {name: results[name + suffix] for name in names if name + suffix in results}
