"""The arguments of `rewrite`, checked as far as they can be without a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxlift.errors import OptionError
from onnxlift.one_hot import OneHot
from onnxlift.plan import PlanSpec
from onnxlift.reference import ReferenceSpec
from onnxlift.spec import parse
from onnxlift.static import Shapes
from onnxlift.target import TargetSpec, how_many


@dataclass
class Options:
    """The arguments of `rewrite`, as one value."""

    inputs: Sequence[str] | None = None
    output: str | None = None
    target: TargetSpec = None
    reference: ReferenceSpec = "paired"
    rule: str = "rescale"
    plan: PlanSpec | None = None
    pre_activation: bool = True
    expose: Sequence[str] = ()
    emit: Sequence[str] = ("contributions",)
    one_hot: OneHot = None
    keep: Sequence[str] | None = None
    shapes: Shapes | None = None

    def __post_init__(self) -> None:
        for option in ("inputs", "expose", "emit", "keep"):
            names: object = getattr(self, option)
            if names is not None and (isinstance(names, str) or not isinstance(names, Iterable)):
                raise OptionError(f"`{option}` must be a list of names, not {names!r}")
            setattr(self, option, None if names is None else tuple(names))
        how_many(self.target)
        axes: object = self.one_hot
        wrong = [axis for axis in (axes.values() if isinstance(axes, Mapping) else [axes]) if not _is_int(axis)]
        if axes is not None and wrong:
            raise OptionError(f"`one_hot` must be an axis, or axes by input name, not {wrong[0]!r}")
        self.shapes = _checked_shapes(self.shapes)
        reference: object = self.reference
        if not isinstance(reference, str | Mapping):
            raise OptionError(f"the reference must be a name or a dict of arrays, not {type(reference).__name__}")
        if isinstance(self.reference, str):
            parse(self.reference)
        else:
            try:
                self.reference = {name: np.asarray(array) for name, array in self.reference.items()}
            except ValueError as error:
                raise OptionError(f"a reference is no array: {error}") from error


def _checked_shapes(shapes: object) -> Shapes | None:
    """Extents by input name, as tuples of ints. Raises OptionError."""
    if shapes is None:
        return None
    if not isinstance(shapes, Mapping):
        raise OptionError(f"`shapes` must map input names to lists of ints, not be {shapes!r}")
    for name, shape in shapes.items():
        if not isinstance(shape, Sequence | np.ndarray) or not all(_is_int(size) and size > 0 for size in shape):
            raise OptionError(f"`shapes` must give a list of positive ints for input {name!r}, not {shape!r}")
    return {str(name): tuple(int(size) for size in shape) for name, shape in shapes.items()}


def _is_int(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
