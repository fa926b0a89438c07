"""One-hot inputs: their channel axis, hypothetical contributions, and normalised weights (METHOD section 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxlift.errors import OptionError, listed, shown
from onnxlift.functions import reduce_mean, reduce_sum
from onnxlift.graph import Graph, Shape
from onnxlift.tensor import Tensor

OneHot = int | Mapping[str, int] | None
"""The channel axis of one-hot inputs: of all attributed ones, by name, or to be found."""

BASES = 4


def one_hot_axes(graph: Graph, sources: Sequence[str], spec: OneHot, *, needed: bool) -> dict[str, int]:
    """Attributed tensor -> its channel axis, for those that are one-hot.

    Where nothing is named but an axis `needed`, it is the only axis of 4 channels (the bases of a sequence).
    """
    shapes = {name: graph.shape(graph.tensors[name]) for name in sources}
    if spec is None:
        if not needed:
            return {}
        found = {name: axes[0] for name, shape in shapes.items() if len(axes := _of_bases(shape)) == 1}
        if not found:
            raise OptionError(
                f"which axis of {listed(sources)} holds the channels of a one-hot input cannot be told from the shape "
                f"{', '.join(shown(shape or ()) for shape in shapes.values())}: name it with `one_hot`"
            )
        return found
    if needed and isinstance(spec, Mapping) and not spec:
        raise OptionError("`one_hot` names no input, but hypothetical contributions are asked for: name one")
    named = dict(spec) if isinstance(spec, Mapping) else dict.fromkeys(sources, spec)
    for name, axis in named.items():
        if name not in shapes:
            raise OptionError(f"`one_hot` names {name!r}, but what is attributed to is {listed(sources)}")
        rank = len(shapes[name] or ())
        if not -rank <= axis < rank:
            raise OptionError(f"`one_hot` names axis {axis} of {name!r}, which has {rank} axes")
        named[name] = int(axis) % rank
    return named


def _of_bases(shape: Shape) -> list[int]:
    return [axis for axis, extent in enumerate(shape or ()) if axis and extent == BASES]


def hypothetical(m: Tensor, r: Tensor, axis: int) -> Tensor:
    """H_k = sum_c (1[c = k] - r_c) m_c: the contribution of a position if letter k stood there (METHOD 8)."""
    return m - reduce_sum(m * r, [axis])


def centred(m: Tensor, axis: int) -> Tensor:
    """The multipliers that normalised weights W - mean W give: m - mean m along the axis (LIFTPAD eq. 20)."""
    return m - reduce_mean(m, [axis])


def off_constraint(m: Tensor, x: Tensor, axis: int) -> Tensor:
    """What normalised weights leave out where x does not sum to 1 (an unknown base): mean m (sum x - 1), evenly.

    The difference x - r along all letters alike is mean m times sum (x - r); on the constraint it is 0.
    """
    assert x.shape is not None
    letters = x.shape[axis]
    assert isinstance(letters, int)
    return reduce_mean(m, [axis]) * ((reduce_sum(x, [axis]) - 1) * (1 / letters))
