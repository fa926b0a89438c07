"""Arithmetic on dims that are symbols, and on tensors whose entries are such dims.

Of a shape like [batch, 3, 2*width] enough is known to compute Shape, Gather, Concat and Reshape on it, and to say that
a tensor leads with the batch. Dims are numbers, symbols, or products written "4*batch"; None stands for unknown.
A tensor of such entries is an object array.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from onnx import NodeProto, TensorShapeProto, ValueInfoProto

from onnxlift.arrays import Array
from onnxlift.protobuf import Namer, integer_attribute

Dim = int | str

_UNKNOWN = frozenset(("", "?", "-1", "None"))  # what exporters write for a dim without a name
_INVENTED = re.compile(r"unk__\d+")  # by tf2onnx, another one for the batch of every input
_GROWS = "_grows"
RESERVED = frozenset(("references", "pairs"))  # symbols of an explainer's own axes


def name_dims(inputs: Iterable[ValueInfoProto]) -> None:
    """Gives a symbol to every dim that is not a positive int or a proper name: `batch` to leading ones.

    A leading name that tf2onnx invented stands for the batch too, and the names of an explainer's own axes are free.
    """
    tensors = [value for value in inputs if value.type.tensor_type.HasField("shape")]
    dims = [(value.name, i, dim) for value in tensors for i, dim in enumerate(value.type.tensor_type.shape.dim)]
    name = Namer(dim.dim_param for _, i, dim in dims if i)  # `batch` may be the name of a leading dim
    batch = name("batch")
    name.taken.update(dim.dim_param for _, _, dim in dims)
    for tensor, i, dim in dims:
        invented = not i and _INVENTED.fullmatch(dim.dim_param)
        if declared_dim(dim) is None or invented or dim.dim_param in RESERVED:
            dim.dim_param = name(symbol(tensor, i)) if i else batch


def symbol(tensor: str, axis: int) -> str:
    """A name for an unknown dim."""
    return re.sub(r"\W", "_", f"{tensor}_dim{axis}")


def growing(tensor: str, axis: int) -> str:
    """A name for a dim of a loop's state that is 1 at first and more in the next iteration."""
    return f"{symbol(tensor, axis)}{_GROWS}"


def grows(dim: object) -> bool:
    """Whether a dim has such a name."""
    return isinstance(dim, str) and dim.endswith(_GROWS)


def declared_dim(dim: TensorShapeProto.Dimension) -> Dim | None:
    """What an exporter wrote: 0 and less, and some texts, stand for unknown."""
    if dim.dim_value > 0:
        return dim.dim_value
    return None if dim.dim_param in _UNKNOWN else dim.dim_param


def times(dims: Iterable[Dim]) -> Dim:
    """The product."""
    number, symbols = 1, Counter[str]()
    for dim in dims:
        n, s = _factors(dim)
        number, symbols = number * n, symbols + s
    return _product(number, symbols)


def _over(total: Dim, part: Dim) -> Dim | None:
    """total / part where it is exact for every value of the symbols."""
    (n, s), (m, t) = _factors(total), _factors(part)
    return _product(n // m, s - t) if m and n % m == 0 and t <= s else None


def _factors(dim: Dim) -> tuple[int, Counter[str]]:
    """ "4*batch" -> (4, {batch}); whatever is not such a product is one symbol."""
    if isinstance(dim, int):
        return dim, Counter()
    if not re.fullmatch(r"(\d+\*)?[A-Za-z_]\w*(\*[A-Za-z_]\w*)*", dim):
        return 1, Counter([dim])
    parts = dim.split("*")
    return (int(parts[0]), Counter(parts[1:])) if parts[0].isdigit() else (1, Counter(parts))


def _product(number: int, symbols: Counter[str]) -> Dim:
    """The inverse of _factors: symbols sorted, so that equal products are equal texts."""
    if number == 0 or not symbols:
        return number
    return "*".join([*([str(number)] if number != 1 else []), *sorted(symbols.elements())])


# ----------------------------------------------------------------------------------------------- dims of results


def _expand_dims(node: NodeProto, x: list[Dim], _: Array, shape: Array) -> list[Dim | None]:
    """Broadcasting; where a symbol meets a number above 1, onnx's own inference knows the dim."""
    rank = max(len(x), len(shape))
    pairs = zip([1] * (rank - len(x)) + list(x), [1] * (rank - len(shape)) + list(shape), strict=True)
    return [b if a == 1 else a if b in (1, a) or isinstance(a, int) else None for a, b in pairs]


def _features_dims(node: NodeProto, x: list[Dim], *_: Any) -> list[Dim]:
    """A row of all features for every sample."""
    counts = next(attribute.ints for attribute in node.attribute if attribute.name == "inputdimensions")
    return [x[0] if len(x) > 1 else 1, sum(counts)]


def _flatten_dims(node: NodeProto, x: list[Dim], _: Array) -> list[Dim]:
    """A matrix: the dims before the axis, and those from it on."""
    axis = integer_attribute(node, "axis", 1)
    return [times(x[:axis]), times(x[axis:])]


def _range_dims(node: NodeProto, _: list[Dim], start: Array, limit: Array, step: Array) -> list[Dim | None]:
    """limit / step, for a range that starts at 0 and meets the limit exactly."""
    return [_over(limit.item(), step.item()) if start.item() == 0 else None]


def _reshape_dims(node: NodeProto, x: list[Dim], _: Array, shape: Array) -> list[Dim | None]:
    """Solves for the -1, also where it is the one entry that is unknown."""
    result: list[Dim | None] = list(shape)
    if not integer_attribute(node, "allowzero", 0):
        result = [x[i] if entry == 0 else entry for i, entry in enumerate(result)]
    unknown = [i for i, entry in enumerate(result) if entry in (-1, None)]
    if len(unknown) == 1:
        rest = [entry for entry in result if entry is not None and entry != -1]
        result[unknown[0]] = _over(times(x), times(rest))
    return [None if entry == -1 else entry for entry in result]


def _resize_dims(
    node: NodeProto, x: list[Dim], _: Array, roi: Array, scales: Any = None, sizes: Any = None
) -> list[Dim | None]:
    """Dims that are given or not scaled; how others are rounded is left to onnx."""
    if any(attribute.name in ("axes", "keep_aspect_ratio_policy") for attribute in node.attribute):
        return [None] * len(x)
    if sizes is not None:
        return list(sizes)
    return [dim if scale == 1 else None for dim, scale in zip(x, scales, strict=True)]


def _slice_dims(
    node: NodeProto, x: list[Dim], _: Array, starts: Array, ends: Array, axes: Any = None, steps: Any = None
) -> list[Dim | None]:
    """Dims that are not cut."""
    result: list[Dim | None] = list(x)
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        whole = step == 1 and start == 0 and (end == x[axis] or (isinstance(end, int) and end >= 2**31 - 1))
        result[axis] = x[axis] if whole else None
    return result


def _reduced_dims(node: NodeProto, x: Sequence[Dim | None], _: Any, axes: Any = None) -> Sequence[Dim | None]:
    """The rank, where onnx cannot tell because the axes are given at run time."""
    if axes is not None or not integer_attribute(node, "keepdims", 1):
        raise ValueError
    return [None] * len(x)


DIMS: dict[str, Callable[..., Sequence[Dim | None]]] = {
    "ArrayFeatureExtractor": lambda node, x, *_: [*(x[:-1] or [1]), None],
    "ConstantOfShape": lambda node, _, shape: list(shape),
    "Expand": _expand_dims,
    "FeatureVectorizer": _features_dims,
    "Flatten": _flatten_dims,
    "MaxUnpool": lambda node, x, *_: [*x[:2], *(None for _ in x[2:])],
    "Range": _range_dims,
    "Reshape": _reshape_dims,
    "Resize": _resize_dims,
    "Slice": _slice_dims,
    **dict.fromkeys(
        (f"Reduce{name}" for name in "Sum Mean Max Min Prod L1 L2 SumSquare LogSum LogSumExp".split()), _reduced_dims
    ),
    "LinearRegressor": lambda node, x, *_: [x[0] if len(x) > 1 else 1, integer_attribute(node, "targets", 1)],
    "SVMRegressor": lambda node, x, *_: [x[0] if len(x) > 1 else 1, 1],
    **dict.fromkeys(
        "GroupNormalization MeanVarianceNormalization Scaler Normalizer Imputer Binarizer".split(),
        lambda node, x, *_: x,
    ),
}
"""Where onnx's inference loses a symbol: (node, dims of the first input, entries of every input or None) -> dims of the
first output. Any error of a rule means that an entry that it needs is unknown."""


# -------------------------------------------------------------------------------------------- entries of results


def objects(value: Any) -> Array:
    """An array of entries."""
    return np.array(value, dtype=object)


def _pairwise(rule: Callable[[Any, Any], Any]) -> Callable[..., Array]:
    """An elementwise rule on entries; an unknown one makes the result unknown."""

    def apply(node: NodeProto, a: Array, b: Array) -> Array:
        a, b = np.broadcast_arrays(a, b)
        pairs = zip(a.flat, b.flat, strict=True)
        values = [None if x is None or y is None else rule(x, y) for x, y in pairs]
        return objects(values).reshape(a.shape)

    return apply


def _numbers(*entries: Any) -> bool:
    """Whether none is a symbol."""
    return all(isinstance(entry, int) for entry in entries)


def _add(x: Any, y: Any) -> Dim | None:
    if _numbers(x, y):
        return int(x + y)
    return x if y == 0 else y if x == 0 else None


def _subtract(x: Any, y: Any) -> Dim | None:
    if _numbers(x, y):
        return int(x - y)
    return x if y == 0 else None


def _multiply(x: Any, y: Any) -> Dim | None:
    negative = any(_numbers(entry) and entry < 0 for entry in (x, y))
    return None if negative and not _numbers(x, y) else times((x, y))


def _divide(x: Any, y: Any) -> Dim | None:
    if _numbers(x, y):
        return int(Fraction(x, y)) if y else None  # integers are divided towards 0
    return _over(x, y)


def _equal(x: Any, y: Any) -> bool | None:
    if x == y or _numbers(x, y):
        return bool(x == y)
    return False if any(_numbers(entry) and entry < 0 for entry in (x, y)) else None  # no dim is negative


def _slice(node: NodeProto, x: Array, starts: Array, ends: Array, axes: Any = None, steps: Any = None) -> Array:
    """Of a list of entries. The end -2**63 of a backward slice means: through the first one."""
    step = int(steps[0]) if steps is not None else 1
    start, end = int(starts[0]), int(ends[0])
    return x[start : None if step < 0 and end < -len(x) else end : step]


def _where(node: NodeProto, condition: Array, x: Array, y: Array) -> Array:
    """Needs a condition that is known everywhere, even where both choices are the same."""
    if None in condition.flat:
        raise ValueError("condition unknown")
    return np.asarray(np.where(condition.astype(bool), x, y))


ENTRIES: dict[str, Callable[..., Array]] = {
    "Add": _pairwise(_add),
    "Cast": lambda node, x: x,
    "Concat": lambda node, *xs: np.concatenate(xs, axis=integer_attribute(node, "axis", 0)),
    "Div": _pairwise(_divide),
    "Equal": _pairwise(_equal),
    "Gather": lambda node, x, i: objects(np.take(x, i.astype(np.int64), axis=integer_attribute(node, "axis", 0))),
    "Identity": lambda node, x: x,
    "Mul": _pairwise(_multiply),
    "Reshape": lambda node, x, shape: x.reshape(tuple(map(int, shape))),
    "Slice": _slice,
    "Squeeze": lambda node, x, axes=None: np.squeeze(x, None if axes is None else tuple(map(int, axes))),
    "Sub": _pairwise(_subtract),
    "Unsqueeze": lambda node, x, axes: np.expand_dims(x, tuple(map(int, axes))),
    "Where": _where,
}
"""Operators on entries: (node, entries of every input) -> entries of the output. Any error of a rule means that an
entry that it needs as a number is unknown."""
