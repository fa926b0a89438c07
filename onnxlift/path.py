"""Where derivatives are taken: at the input, or at points between it and the reference (METHOD section 9)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from onnxlift.batch import Batch
from onnxlift.chooser import Chooser
from onnxlift.errors import OptionError
from onnxlift.flow import Flow, Step, ancestors, names
from onnxlift.functions import concat, reduce_mean, reshape, shape_of, unsqueeze
from onnxlift.reference import PAIRS, ROWS, Runs, Thin, rows_and, tiled_run
from onnxlift.replay import Lead, replay
from onnxlift.rows import REFERENCES, SAMPLES, TARGETS, Crossed, Factor, RowEmitter, Rows, rest_of
from onnxlift.site import Pairing, Value
from onnxlift.tensor import Tensor
from onnxlift.walk import Values, Walk

POINTS = "points"
"""The factor of rows that counts references and the points on the way from each of them."""


def without_targets(emitter: RowEmitter, runs: Runs) -> Runs:
    """The same runs as they meet where one target is explained."""
    if runs.rows is None or TARGETS not in runs.rows.factors or not isinstance(runs.pairing, Crossed):
        return runs
    factors = {name: factor for name, factor in runs.rows.factors.items() if name != TARGETS}
    if REFERENCES in factors:
        rows = Rows(emitter, PAIRS, factors)
        return Runs(runs.at_x, runs.at_r, Crossed(rows, runs.pairing.leads), rows, runs.stated)
    return Runs(runs.at_x, runs.at_r, Thin() if runs.pairing.thin else Pairing(), None, runs.stated)


def along_the_path(
    emitter: RowEmitter,
    flow: Flow,
    runs: Runs,
    batch: Batch | None,
    model_inputs: Sequence[str],
    given: Sequence[str],
    steps: int,
) -> Runs:
    """The model at `steps` points, the midpoints of equal intervals between the reference and the input.

    Rows are ordered by sample, reference, step and target. Both runs of the result are this one, so that a walk finds
    derivatives. `runs`: the model at x and at r.
    """
    graph, before = emitter.graph, runs.rows.factors if runs.rows else {}
    leads = {(emitter.tensor(name).shape or (None,))[0] for name in flow.sources}
    if batch is None or not isinstance(batch.dim, str) or leads != {batch.dim}:
        raise OptionError(
            "integrated gradients run the model at several points for every sample, and need a batch axis of unknown "
            "size in front of every input, of the explained tensor and of what is attributed to: export the model with "
            "a dynamic batch axis"
        )
    if TARGETS in before and not batch.led:
        raise OptionError(
            "integrated gradients of several targets need samples that stay apart on the first axis of every tensor: "
            "choose one target at a time"
        )
    value = Values(emitter, flow, without_targets(emitter, runs))
    count = emitter.ints([steps])
    points = before[REFERENCES].extent * count if REFERENCES in before else count
    factors = {SAMPLES: Factor(batch.dim, shape_of(emitter.tensor(given[0]), 0, 1)), POINTS: Factor(POINTS, points)}
    if TARGETS in before:
        factors[TARGETS] = before[TARGETS]
    rows = Rows(emitter, ROWS if TARGETS in before else PAIRS, factors)
    start = {name: _between(value(name), steps) for name in flow.sources}
    wanted = [flow.target]
    base = None
    if not batch.led:
        base = tiled_run(emitter, flow, wanted, model_inputs, given, batch, points, "path/tiled")
    lead = Lead(batch.dim, PAIRS, everywhere=not batch.led)
    run = replay(emitter, start, ancestors(graph, wanted), "path", lead, base)
    both = {**(base or {}), **run}
    crossed = Crossed(rows, {batch.dim: (SAMPLES,), PAIRS: (SAMPLES, POINTS)})
    return Runs(both, both, crossed if batch.led else Pairing(), rows)


def _between(value: Value, steps: int) -> Tensor:
    """r + (k - 1/2)/n (x - r) for k = 1 ... n, the points of a pair in a row: [P, ...] -> [P * n, ...]."""
    alpha = ((np.arange(steps) + 0.5) / steps).reshape(1, -1, *[1] * (value.rank - 1))
    weights = value.x.emitter.constant(alpha, value.dtype)
    points = unsqueeze(value.r, [1]) + weights * unsqueeze(value.d, [1])
    rest = rest_of(value.x)
    points.shape = (None, steps, *rest)
    merged = reshape(points, rows_and(rest, points))
    merged.shape = (PAIRS, *rest)
    return merged


LINEAR = frozenset(
    "Conv ConvTranspose Gemm MatMul Mul Div BatchNormalization Add Sub Concat AveragePool Pad Slice Reshape Transpose "
    "Flatten Squeeze Unsqueeze Identity".split()
)
"""Operators whose rule is a linear map of the multipliers alone, where one input varies or they add inputs up."""
ADDS = ("Add", "Sub", "Concat")
EITHER = ("Mul", "MatMul")
"""Those of them in which the second input may be the one that varies."""


def behind_the_inputs(flow: Flow, chooser: Chooser) -> tuple[Flow, Flow]:
    """The walk in two: down to where only linear operators are left in front of the inputs, and through these.

    A linear map and the mean over the steps of a path may change places: through the operators behind the inputs there
    is one row to lead back, not one per step. The sources of the first part are what the second begins with.
    """
    linear, last = set(flow.sources), []
    for step in flow.steps:
        varying = [name for name in names(step.node.inputs) if name in flow.dependent]
        rule = chooser.rule(step.node)
        if (
            rule is not None
            and rule.name in ("linear", "movement", "midpoint")
            and step.node.op in LINEAR
            and not step.roots
            and linear.issuperset(varying)
            and (
                step.node.op in ADDS
                or (len(varying) == 1 and (step.node.op in EITHER or varying[0] == step.node.inputs[0].name))
            )
        ):
            linear.update(names(step.node.outputs))
            last.append(step)
    through = {id(step) for step in last}
    first = [step for step in flow.steps if id(step) not in through]
    read = {name for step in first for name in (*names(step.node.inputs), *step.roots)} | {flow.target}
    edges = tuple(name for name in dict.fromkeys((*flow.sources, *_outputs(last))) if name in linear & read)
    return replace(flow, sources=edges, steps=first), replace(flow, steps=last)


def averaged(walk: Walk, value: Values, mean: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The multipliers that the first part of the walk ends with, averaged over the points, by name."""
    found = {}
    for name in walk.flow.sources:
        if (m := walk.multiplier(name)) is not None:
            found[name] = mean(m.mean)
            found[name].shape = value(name).shape
    return found


def _outputs(steps: Sequence[Step]) -> list[str]:
    return [name for step in steps for name in names(step.node.outputs)]


def at_input(emitter: RowEmitter, runs: Runs) -> Runs:
    """The model at the input alone, for derivatives there: no rows for references."""
    if runs.rows is None or TARGETS not in runs.rows.factors:
        return Runs({}, {}, Pairing())
    samples, targets = (runs.rows.factors[name] for name in (SAMPLES, TARGETS))
    rows = Rows(emitter, ROWS, {SAMPLES: samples, TARGETS: targets})
    if not isinstance(runs.pairing, Crossed):
        raise OptionError(
            "gradients for several targets need samples that stay apart on the first axis of every tensor: choose one "
            "target at a time"
        )
    return Runs({}, {}, Crossed(rows, {samples.dim: (SAMPLES,)}), rows)


def lifted(walked: Runs, runs: Runs, m: Tensor) -> Tensor:
    """A multiplier of the rows of one walk, which has none for references, among those of `runs`."""
    return m if runs.rows is None else runs.rows.place(m, *(walked.rows.factors if walked.rows else [SAMPLES]))


def mean_over_steps(m: Tensor, steps: int, targets: int | None) -> Tensor:
    """The mean over the points of a pair: [P * n * T, ...] -> [P * T, ...]."""
    rest, inner = rest_of(m), [] if targets is None else [targets]
    behind = [shape_of(m, 1)] if rest else []
    apart = reshape(m, concat([m.emitter.ints([-1, steps, *inner]), *behind], axis=0))
    apart.shape = (None, steps, *inner, *rest)
    mean = reduce_mean(apart, [1], keepdims=False)
    joined = reshape(mean, rows_and(rest, mean)) if inner else mean
    joined.shape = (ROWS if inner else PAIRS, *rest)
    return joined
