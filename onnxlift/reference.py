"""The lower end of the walk: what the inputs are compared with, and the run of the model at that reference.

The twin replay: the nodes that depend on an attributed tensor are emitted a second time at the reference; everything
else is shared. A constant reference makes a constant replay, which ONNX Runtime folds when it loads the explainer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

import numpy as np

from onnxlift.batch import Batch, other_leads
from onnxlift.errors import OptionError, shown
from onnxlift.flow import RANDOM, Flow, ancestors, names
from onnxlift.functions import concat, expand, reduce_sum, reshape, shape_of, unsqueeze
from onnxlift.graph import Dim, Graph, Shape
from onnxlift.replay import Lead, replay
from onnxlift.rows import REFERENCES, SAMPLES, TARGETS, Crossed, Factor, RowEmitter, Rows, lead_of, rest_of
from onnxlift.site import Pairing
from onnxlift.spec import parse
from onnxlift.tensor import Array, Emitter, Tensor

ReferenceSpec = str | Mapping[str, Array]

PAIRS = "pairs"
"""The symbol of an axis that counts pairs of a sample and a reference of its own (N * K)."""
ROWS = "rows"
"""The symbol of an axis that counts pairs and targets (N * K * T)."""


@dataclass(frozen=True)
class Filled:
    """One row for all samples, filled in the graph: numbers that broadcast to a sample, by input."""

    numbers: Mapping[str, Array]


@dataclass(frozen=True)
class Runs:
    """The model at the input and at the reference: tensor name -> tensor; and how their batches meet.

    A name that is missing from `at_x` is the model's own tensor, one missing from `at_r` is the same as at x.
    `rows`: of the walk back, by reference and target; None where every sample has one of each.
    `stated`: the reference as it was given, of attributed tensors whose run starts from `on_constraint` of it.
    `has_outputs`: whether `at_r` has the outputs of the model with a row for every reference, and none for targets.
    """

    at_x: Mapping[str, Tensor]
    at_r: Mapping[str, Tensor]
    pairing: Pairing
    rows: Rows | None = None
    stated: Mapping[str, Tensor] = field(default_factory=dict)
    has_outputs: bool = True


class Thin(Pairing):
    """One reference for all samples: values at the reference have one row, which broadcasts."""

    thin = True


def repeat_rows(tensor: Tensor, times: Tensor) -> Tensor:
    """Every row `times` (int64, shape [1]) times in a row: [N, ...] -> [N * times, ...]."""
    assert tensor.shape is not None
    rest = tensor.shape[1:]
    ones = tensor.emitter.ints([1] * len(rest))
    wide = expand(unsqueeze(tensor, [1]), concat([tensor.emitter.ints([1]), times, ones], axis=0))
    result = reshape(wide, rows_and(rest, tensor))
    result.shape = (PAIRS, *rest)
    return result


def rows_and(rest: Sequence[Dim], tensor: Tensor) -> Tensor:
    """The shape [-1, rest]; `rest` are the last extents of `tensor`."""
    return concat([tensor.emitter.ints([-1]), shape_of(tensor, tensor.rank - len(rest))], axis=0)


def given_inputs(graph: Graph, sources: Sequence[str]) -> list[str]:
    """The graph inputs that need a reference: attributed ones, and those that attributed tensors come from."""
    above = ancestors(graph, sources)
    return [name for name in graph.inputs if name in above]


def are_several(spec: ReferenceSpec | Filled) -> bool:
    """Whether contributions are to be averaged over references, for a model with a batch axis."""
    if isinstance(spec, str):
        return parse(spec).kind in ("shared", "grouped")
    if isinstance(spec, Filled):
        return False
    return any(array.ndim > 0 and len(array) > 1 for array in spec.values())


def run_twice(
    emitter: RowEmitter,
    flow: Flow,
    given: Sequence[str],
    batch: Batch | None,
    spec: ReferenceSpec | Filled,
    wanted: Sequence[str],
    constrained: Mapping[str, int],
    targets: int | None = None,
) -> Runs:
    """Emit the run of the model at the reference (and, where batches cannot meet otherwise, a tiled one at x).

    `spec`: "paired", "shared", "grouped", numbers to fill in, or arrays to store. `wanted`: the tensors to run for, the
    target among them. `constrained`: the axis along which an attributed tensor sums to 1, for those whose weights are
    to be normalised. `targets`: how many are explained at once; None where it is one, with no axis for it.
    """
    graph = emitter.graph
    model_inputs = graph.inputs
    inputs = {name: emitter.tensor(name) for name in given}
    several = spec in ("shared", "grouped") or (batch is not None and are_several(spec))
    if several or targets is not None:
        _check_led("several references" if several else "several targets", graph, inputs, batch)
    if spec != "paired":
        _check_repeatable(graph, flow)
    match spec:
        case "paired":
            at_r = {name: _graph_input(emitter, x, x.shape) for name, x in inputs.items()}
        case "shared":
            at_r = {name: _graph_input(emitter, x, (REFERENCES, *rest_of(x))) for name, x in inputs.items()}
        case "grouped":
            at_r = {
                name: _graph_input(emitter, x, ((x.shape or ("",))[0], REFERENCES, *rest_of(x)))
                for name, x in inputs.items()
            }
        case Filled(numbers):
            at_r = {name: _filled(emitter, x, batch, numbers[name]) for name, x in inputs.items()}
        case Mapping():
            arrays = _checked(spec, inputs, batch)
            at_r = {name: emitter.wrap(graph.constant(f"{name}_reference", arrays[name])) for name in given}
        case _:
            raise AssertionError(f"not a reference of a graph: {spec!r}")
    if several or targets is not None:
        assert batch is not None
        return _several(emitter, flow, wanted, model_inputs, inputs, at_r, batch, spec, several, targets, constrained)
    if spec != "paired":
        if batch is not None and batch.led:
            run, stated = _reference_run(emitter, flow, wanted, at_r, constrained, Lead(batch.dim, 1))
            return Runs({}, run, Thin(), stated=stated)
        at_r = {name: _spread(r, inputs[name]) for name, r in at_r.items()}
    run, stated = _reference_run(emitter, flow, wanted, at_r, constrained, None)
    return Runs({}, run, Pairing(), stated=stated)


def _check_led(what: str, graph: Graph, inputs: Mapping[str, Tensor], batch: Batch | None) -> None:
    """Raise OptionError where rows cannot be added to the batch."""
    first = next(iter(inputs))
    instead = "use reference='paired' and average over calls" if "references" in what else "choose one target at a time"
    if batch is None or not isinstance(batch.dim, str):
        raise OptionError(
            f"{what} need a batch axis of unknown size in front of every input and of the explained tensor, but input "
            f"{first!r} has shape {list(inputs[first].shape or ())}: export the model with a dynamic batch axis, or "
            f"{instead}"
        )
    behind = [name for name, axis in batch.axes.items() if axis]
    if behind:
        raise OptionError(
            f"{what} need the batch in front of what is attributed to, but {behind[0]!r} has the shape "
            f"{shown(graph.shape(graph.tensors[behind[0]]) or ())}: {instead}"
        )


def _several(
    emitter: RowEmitter,
    flow: Flow,
    wanted: Sequence[str],
    model_inputs: Sequence[str],
    inputs: Mapping[str, Tensor],
    at_r: Mapping[str, Tensor],
    batch: Batch,
    spec: ReferenceSpec | Filled,
    several: bool,
    targets: int | None,
    constrained: Mapping[str, int],
) -> Runs:
    """K references or T targets: place the two runs where samples stay apart, else run the model on tiled inputs."""
    first, grouped = next(iter(inputs)), spec == "grouped"
    factors = {SAMPLES: Factor(batch.dim, shape_of(inputs[first], 0, 1))}
    if several:
        factors[REFERENCES] = Factor(REFERENCES, shape_of(at_r[first], int(grouped), int(grouped) + 1))
    if targets is not None:
        factors[TARGETS] = Factor(targets, emitter.ints([targets]))
    rows = Rows(emitter, PAIRS if targets is None else ROWS, factors)
    lead: Dim = batch.dim if spec == "paired" else 1
    if several:
        lead = PAIRS if grouped else REFERENCES
        at_r = {name: _merge_rows(r) for name, r in at_r.items()} if grouped else at_r
    for r in at_r.values():
        r.shape = (lead, *rest_of(r))
    leads = {batch.dim: (SAMPLES,), REFERENCES: (REFERENCES,), PAIRS: (SAMPLES, REFERENCES)}
    crossed = Crossed(rows, leads if several else {batch.dim: (SAMPLES,)}, thin=lead == 1)
    if batch.led:
        run, stated = _reference_run(emitter, flow, wanted, at_r, constrained, Lead(batch.dim, lead))
        return Runs({}, run, crossed, rows, stated)
    unknown = Lead(batch.dim, rows.symbol, everywhere=True)
    times = reduce(Tensor.__mul__, (factor.extent for name, factor in factors.items() if name != SAMPLES))
    at_x = tiled_run(emitter, flow, wanted, model_inputs, list(inputs), batch, times, "tiled")
    at_r = {name: crossed.r(_spread(r, inputs[name]) if lead == 1 else r) for name, r in at_r.items()}
    run, stated = _reference_run(emitter, flow, wanted, at_r, constrained, unknown, at_x)
    return Runs(at_x, run, Pairing(), rows, stated, has_outputs=targets is None)


def placed_seed(runs: Runs, weights: Tensor) -> Tensor:
    """The weights of the target among the rows of a walk: of every target, or of every sample if they differ."""
    if runs.rows is None:
        return weights
    if TARGETS in runs.rows.factors:
        return runs.rows.place(weights, TARGETS)
    return runs.rows.place(weights, SAMPLES) if lead_of(weights) == runs.rows.factors[SAMPLES].dim else weights


def tiled_run(
    emitter: Emitter,
    flow: Flow,
    wanted: Sequence[str],
    model_inputs: Sequence[str],
    given: Sequence[str],
    batch: Batch,
    times: Tensor,
    suffix: str,
) -> dict[str, Tensor]:
    """The model run with every sample `times` times in a row, where rows cannot be repeated tensor by tensor."""
    graph = emitter.graph
    tiled = {
        name: repeat_rows(emitter.tensor(name), times)
        for name in model_inputs
        if (graph.shape(graph.tensors[name]) or (None,))[0] == batch.dim
    }
    above = ancestors(graph, [flow.target])
    for symbol, name in other_leads(graph, batch.dim).items():
        if name in model_inputs and name in above and name not in given:
            raise OptionError(
                f"input {name!r} leads with {symbol!r} and {given[0]!r} with {batch.dim!r}: whether it has a row for "
                "each sample cannot be told, so that several references are refused; give both axes the same name"
            )
    return replay(emitter, tiled, ancestors(graph, wanted), suffix, Lead(batch.dim, PAIRS, everywhere=True))


def _reference_run(
    emitter: Emitter,
    flow: Flow,
    wanted: Sequence[str],
    at_r: Mapping[str, Tensor],
    constrained: Mapping[str, int],
    lead: Lead | None,
    base: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The model at the reference: first down to the attributed tensors, then from them to the target.

    Only the attributed tensors differ between the two runs: what else is computed from a given input is taken at x.
    Returns the run, and what was given for the constrained tensors.
    """
    graph = emitter.graph
    above = replay(emitter, at_r, ancestors(graph, flow.sources), "reference", lead, base)
    start = {name: above[name] for name in flow.sources}
    stated = {name: start[name] for name in constrained}
    start |= {name: on_constraint(r, constrained[name]) for name, r in stated.items()}
    return replay(emitter, start, ancestors(graph, wanted), "reference", lead, base), stated


def on_constraint(r: Tensor, axis: int) -> Tensor:
    """r moved, equally along the axis, to where it sums to 1 there: r + (1 - sum r) / C.

    With the weights of LIFTPAD eq. 20, W - mean W and b + mean W, a network has at r the activations that the original
    has here: W r + (1 - sum r) mean W is W times this (METHOD section 8).
    """
    assert r.shape is not None
    extent = r.shape[axis]
    if not isinstance(extent, int):
        raise OptionError(
            f"the number of channels of {r.name!r} (axis {axis}) is not known, so that its weights cannot be normalised"
        )
    result = r + (1 - reduce_sum(r, [axis])) * (1 / extent)
    result.shape = r.shape
    return result


def _check_repeatable(graph: Graph, flow: Flow) -> None:
    """A run with an extent of its own would draw other random numbers than the run at the input."""
    above = ancestors(graph, [flow.target])
    for node in graph.nodes:
        if node.op in RANDOM and not above.isdisjoint(names(node.outputs)):
            raise OptionError(
                f"node {node.name!r} ({node.op}) draws random numbers, and only with reference='paired' do the runs at "
                "the input and at the reference share them"
            )


def _graph_input(emitter: Emitter, x: Tensor, shape: Shape) -> Tensor:
    return emitter.wrap(emitter.graph.add_input(f"{x.name}_reference", x.dtype, shape))


def _filled(emitter: Emitter, x: Tensor, batch: Batch | None, numbers: Array) -> Tensor:
    shape = shape_of(x) if batch is None else concat([emitter.ints([1]), shape_of(x, 1)], axis=0)
    filled = expand(emitter.constant(_as_input(numbers, x), x.dtype), shape)
    filled.shape = x.shape if batch is None else (1, *rest_of(x))
    return filled


def _spread(r: Tensor, x: Tensor) -> Tensor:
    result = expand(r, shape_of(x))
    result.shape = x.shape
    return result


def _merge_rows(r: Tensor) -> Tensor:
    """[N, K, ...] -> [N * K, ...]."""
    rest = (r.shape or ())[2:]
    merged = reshape(r, rows_and(rest, r))
    merged.shape = (None, *rest)
    return merged


def _checked(spec: Mapping[str, Array], inputs: Mapping[str, Tensor], batch: Batch | None) -> dict[str, Array]:
    """The arrays to bake in, one per input: leading axis 1 or K, the other axes those of the input."""
    _same_names(spec, inputs)
    arrays = {name: spec[name] for name in inputs}
    for name, x in inputs.items():
        array = arrays[name]
        wanted = list(x.shape or ())
        if array.dtype.kind not in "fiub":
            raise OptionError(f"the reference of {name!r} has dtype {array.dtype}; a numeric array is needed")
        free = 1 if batch else 0
        fits = array.ndim == len(wanted) and all(
            not isinstance(dim, int) or dim == size for dim, size in zip(wanted[free:], array.shape[free:], strict=True)
        )
        if not fits or not array.size:
            lead = "1 or K" if batch else ""
            raise OptionError(
                f"the reference of {name!r} has shape {list(array.shape)}, expected "
                f"{[lead, *wanted[1:]] if batch else wanted}"
            )
        arrays[name] = _as_input(array, x)
    most = max(len(array) for array in arrays.values()) if batch else 1
    for name, array in arrays.items():
        if batch and len(array) not in (1, most):
            raise OptionError(f"the references of the inputs differ in number: {name!r} has {len(array)}, not {most}")
        if batch and len(array) != most:
            arrays[name] = np.repeat(array, most, axis=0)
    return arrays


def _as_input(array: Array, x: Tensor) -> Array:
    """A reference in the type of the input it belongs to."""
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(x.dtype)
    if not np.all(np.isfinite(converted)):
        raise OptionError(f"the reference of {x.name!r} contains NaN or infinite values (as {x.dtype})")
    if x.dtype.kind in "iub" and not np.array_equal(converted, array):
        raise OptionError(f"the reference of {x.name!r} is not made of numbers of the input's type, {x.dtype}")
    return converted


def _same_names(spec: Mapping[str, Array], inputs: Iterable[str]) -> None:
    wanted = set(inputs)
    if set(spec) != wanted:
        raise OptionError(
            f"references are given for {sorted(spec)}, but they are needed for {sorted(wanted)}: the graph inputs "
            "that the attributed tensors are computed from"
        )
