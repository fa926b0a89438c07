"""Integrated gradients: the model at points between reference and input, in the graph (METHOD section 9)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxlift.batch import Batch
from onnxlift.errors import OptionError
from onnxlift.flow import Flow, ancestors
from onnxlift.functions import concat, reduce_mean, reshape, shape_of, unsqueeze
from onnxlift.reference import PAIRS, Crossed, Runs, rest_of, rows_and, tiled_run
from onnxlift.replay import Lead, replay
from onnxlift.site import Pairing, Value
from onnxlift.tensor import Tensor
from onnxlift.walk import Values


def along_the_path(
    flow: Flow, value: Values, batch: Batch | None, model_inputs: Sequence[str], given: Sequence[str], steps: int
) -> tuple[Runs, Crossed]:
    """The model at `steps` points, the midpoints of equal intervals between the reference and the input.

    Rows are ordered by sample, reference and step. Both runs of the result are this one, so that a walk finds
    derivatives; beside it, how the model's rows are repeated to meet it. `value`: the tensors at x and at r.
    """
    emitter, crossed = value.emitter, value.runs.crossed
    sources = [value(name) for name in flow.sources]
    leads = {(emitter.tensor(name).shape or (None,))[0] for name in flow.sources}
    if batch is None or not isinstance(batch.dim, str) or leads != {batch.dim}:
        raise OptionError(
            "integrated gradients run the model at several points for every sample, and need a batch axis of unknown "
            "size in front of every input, of the explained tensor and of what is attributed to: export the model with "
            "a dynamic batch axis"
        )
    count = emitter.ints([steps])
    samples = shape_of(emitter.tensor(given[0]), 0, 1)
    rows = Crossed(batch.dim, samples, crossed.references * count if crossed else count, grouped=False)
    start = {source.name: _between(source, steps) for source in sources}
    wanted = [flow.target]
    base = None
    if not batch.led:
        base = tiled_run(emitter, flow, wanted, model_inputs, given, batch, rows.references, "path/tiled")
    lead = Lead(batch.dim, PAIRS, everywhere=not batch.led)
    run = replay(emitter, start, ancestors(emitter.graph, wanted), "path", lead, base)
    both = {**(base or {}), **run}
    return Runs(both, both, rows if batch.led else Pairing()), rows


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


def mean_over_steps(m: Tensor, steps: int) -> Tensor:
    """The mean over the points of a pair: [P * n, ...] -> [P, ...]."""
    rest = [shape_of(m, 1)] if m.rank > 1 else []
    apart = reshape(m, concat([m.emitter.ints([-1, steps]), *rest], axis=0))
    apart.shape = (None, steps, *rest_of(m))
    return reduce_mean(apart, [1], keepdims=False)
