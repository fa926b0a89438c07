"""The upper end of the walk: which tensor is explained, and the multiplier it starts with.

The target is t = sum(seed * output) per sample; the seed is one-hot, or the weights the user gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np

from onnxlift.errors import OptionError, listed, shown
from onnxlift.flow import is_float, names
from onnxlift.functions import (
    arange,
    cast,
    logical_and,
    reduce_mean,
    reduce_sum,
    reshape,
    shape_of,
    slice_axis,
    unsqueeze,
    where,
    widen,
)
from onnxlift.graph import Graph, Node
from onnxlift.tensor import INT64, Emitter, Tensor

TargetSpec = int | tuple[int, ...] | str | Sequence[int | tuple[int, ...]] | None
"""An index, which is a tuple where there are several axes; "argmax", "input" or "weights"; a list: several indices."""

PRE_ACTIVATION = ("Softmax", "Sigmoid")
PASSED_OVER = ("Identity", "Dropout", "Cast", "Reshape", "Flatten", "Squeeze")


def explained_tensor(graph: Graph, output: str | None, pre_activation: bool) -> tuple[str, Node | None]:
    """The tensor to explain, and the node stepped over to get there.

    Default: the first float output. A final Softmax or Sigmoid is stepped over to its logits (LIFTPAD 2.4,
    DeepLIFT 3.6), looking through Identity, Cast and reshapes that follow it.
    """
    if output is None:
        floats = [name for name in graph.outputs if is_float(graph, name) and Graph.is_tensor(graph.tensors[name])]
        if not floats:
            raise OptionError(
                f"the model has no float tensor among its outputs ({listed(graph.outputs)}): name an internal one to "
                "explain with `output`"
            )
        output = floats[0]
    elif output not in graph.tensors:
        raise OptionError(f"no tensor {output!r} in the model; its outputs are {listed(graph.outputs)}")
    elif output in graph.inside:
        raise OptionError(f"tensor {output!r} is inside of an If, Loop or Scan: only one outside can be explained")
    elif not Graph.is_tensor(graph.tensors[output]):
        raise OptionError(f"{output!r} is a sequence, a map or an optional: only a float tensor can be explained")
    elif not is_float(graph, output):
        raise OptionError(f"tensor {output!r} is {graph.dtype(graph.tensors[output])}: only a float can be explained")
    if pre_activation and output in graph.outputs:
        producers = {name: node for node in graph.nodes for name in names(node.outputs)}
        node = producers.get(output)
        while node is not None and node.op in PASSED_OVER and is_float(graph, node.inputs[0].name):
            node = producers.get(node.inputs[0].name)
        if node is not None and node.op in PRE_ACTIVATION:
            return node.inputs[0].name, node
    return output, None


def without_common_part(weights: Tensor, softmax: Node) -> Tensor:
    """Weights whose mean over the classes is taken off, as a Softmax takes no notice of it (LIFTPAD eq. 19)."""
    axis = int(softmax.attrs.get("axis", -1)) % weights.rank
    return weights - reduce_mean(weights, [axis])


def seed(emitter: Emitter, y: Tensor, spec: TargetSpec, batched: bool) -> Tensor:
    """The multiplier of `y`: shape of `y`, with extent 1 on the batch axis where all samples share it.

    For a list of targets there is a row for each in front, [T, ...], which all samples share.
    """
    if y.shape is None:
        raise OptionError(f"the rank of tensor {y.name!r} cannot be inferred, so no target can be chosen in it")
    rest = y.shape[1:] if batched else y.shape
    match spec:
        case None:
            if any(dim != 1 for dim in rest):
                raise OptionError(
                    f"tensor {y.name!r} has {shown(rest)} neurons per sample: choose a target (an index, "
                    f"'argmax', 'input' or 'weights')"
                )
            return emitter.constant(np.ones((1,) * len(y.shape)), y.dtype)
        case "argmax":
            return _argmax(emitter, y, batched)
        case "input":
            return _run_time_index(emitter, y, batched)
        case "weights":
            return emitter.wrap(emitter.graph.add_input("target_weights", y.dtype, y.shape))
        case str():
            raise OptionError(f"unknown target {spec!r}: an index, 'argmax', 'input', 'weights' or nothing")
        case _:
            indices = [as_index(one) for one in (spec if isinstance(spec, list) else [spec])]
            return _fixed_index(emitter, y, indices, len(y.shape) - len(rest))


def how_many(spec: TargetSpec) -> int | None:
    """The number of targets where there is a list of them, which gives every result an axis for them; None: no list.

    Raises OptionError for a list that is empty, or holds something else than indices.
    """
    if not isinstance(spec, list):
        return None
    if not spec:
        raise OptionError("the list of targets is empty: give an index or several, or leave the target out")
    if len({len(as_index(one)) for one in spec}) > 1:
        raise OptionError(f"the targets {spec!r} differ in their number of axes")
    return len(spec)


def as_index(spec: object) -> tuple[int, ...]:
    """A target given as an int or a tuple of ints, as a tuple."""
    parts = np.asarray(spec) if not isinstance(spec, Mapping | set | list) else np.asarray(None)
    if parts.dtype.kind not in "iu" or parts.ndim > 1 or parts.size == 0:
        raise OptionError(
            f"the target {spec!r} is no index: give an int or a tuple of ints, 'argmax', 'input', 'weights' or nothing"
        )
    return tuple(int(part) for part in np.atleast_1d(parts))


def described_target(spec: TargetSpec) -> str | list[int] | list[list[int]] | None:
    """A target as the metadata tell it: a word, an index as a list, or a list of such lists."""
    if isinstance(spec, list):
        return [list(as_index(one)) for one in spec]
    return spec if isinstance(spec, str | None) else list(as_index(spec))


def may_be_out_of_range(spec: TargetSpec, y: Tensor, batched: bool) -> bool:
    """Whether only a run tells that an index is inside of `y`: it is given then, or an axis is dynamic."""
    if spec is None or isinstance(spec, str):
        return spec == "input"
    return not all(isinstance(dim, int) for dim in (y.shape or ())[int(batched) :])


def nan_where_out_of_range(weights: Tensor, lead: int) -> Tensor:
    """0 for a row whose target is in `y`, NaN for another, from the seed; extent 1 behind the first `lead` axes."""
    for axis in range(lead, weights.rank):
        weights = slice_axis(weights, axis, 0, 1)
    return weights * 0


def weighted_sum(y: Tensor, weights: Tensor, lead: int) -> Tensor:
    """t = sum(weights * y) in float32 at least, over all axes but the first `lead`: shape [N], [N, T] or a scalar."""
    wide = widen(y)
    weights = cast(weights, wide.dtype)
    selected = where(weights.equals(0), 0.0, weights * wide)
    return reduce_sum(selected, range(lead, y.rank), keepdims=False)


def _fixed_index(emitter: Emitter, y: Tensor, indices: Sequence[tuple[int, ...]], lead: int) -> Tensor:
    """One-hot at an index, extent 1 in front; at several, a row for each: [T, ...]. NaN where it is out of range."""
    assert y.shape is not None
    rest = y.shape[lead:]
    for index in indices:
        if len(index) != len(rest):
            raise OptionError(
                f"target {shown(index)} has {len(index)} indices, but tensor {y.name!r} has {len(rest)} axes "
                f"{shown(rest)} per sample"
            )
        if any(i < 0 or (isinstance(dim, int) and i >= dim) for i, dim in zip(index, rest, strict=True)):
            raise OptionError(f"target {shown(index)} is out of range for tensor {y.name!r} of shape {shown(rest)}")
    onehots, inside = [], []
    column = [len(indices)] + [1] * (y.rank - 1) if lead else [1] * y.rank
    for axis, dim in enumerate(rest, start=lead):
        positions = emitter.constant(np.reshape([index[axis - lead] for index in indices], column), INT64)
        onehots.append(cast(_arange(emitter, y, axis).equals(positions), y.dtype))
        if not isinstance(dim, int):
            inside.append(positions < reshape(shape_of(y, axis, axis + 1), [1] * y.rank))
    seed = reduce(Tensor.__mul__, onehots)
    return where(reduce(logical_and, inside), seed, float("nan")) if inside else seed


def _argmax(emitter: Emitter, y: Tensor, batched: bool) -> Tensor:
    assert y.shape is not None
    if not batched and not isinstance(y.shape[0], int):
        raise OptionError(
            f"tensor {y.name!r} of shape {shown(y.shape)} does not share its first axis with the inputs, so there is "
            "no largest neuron per sample: give the batch axes the same name, or choose one neuron by a tuple"
        )
    lead, neurons = (y.shape[0] if batched else 1), y.shape[1:] if batched else y.shape
    count = neurons[0] if len(neurons) == 1 else None
    flat = emitter.op("Flatten", y, axis=int(batched), shape=(lead, count))
    winner = emitter.op("ArgMax", flat, axis=1, keepdims=1, shape=(lead, 1))
    onehot = cast(_arange(emitter, flat, 1).equals(winner), y.dtype)
    seed = reshape(onehot, shape_of(y))
    seed.shape = y.shape
    return seed


def _run_time_index(emitter: Emitter, y: Tensor, batched: bool) -> Tensor:
    """One-hot at the graph input `target`; NaN for a sample whose index is out of range, never another neuron."""
    assert y.shape is not None
    lead = int(batched)
    axes = range(lead, y.rank)
    if not axes:
        raise OptionError(f"tensor {y.name!r} has one neuron per sample: leave the target out")
    single = batched and len(axes) == 1
    shape = y.shape[:1] if single else (*y.shape[:lead], len(axes))
    index = emitter.wrap(emitter.graph.add_input("target", INT64, shape))
    hits, inside = [], []
    for position, axis in enumerate(axes):
        column = index if single else slice_axis(index, lead, position, position + 1)
        i = unsqueeze(column, range(len(column.shape or ()), y.rank))
        hits.append(cast(_arange(emitter, y, axis).equals(i), y.dtype))
        inside += [i >= 0, i < reshape(shape_of(y, axis, axis + 1), [1] * y.rank)]
    return where(reduce(logical_and, inside), reduce(Tensor.__mul__, hits), float("nan"))


def _arange(emitter: Emitter, y: Tensor, axis: int) -> Tensor:
    """0, 1, ..., D-1 along `axis`, extent 1 along the other axes."""
    assert y.shape is not None
    dim = y.shape[axis]
    shape = [1] * y.rank
    if isinstance(dim, int):
        shape[axis] = dim
        return emitter.constant(np.arange(dim).reshape(shape), INT64)
    shape[axis] = -1
    return reshape(arange(shape_of(y, axis, axis + 1)), shape)
