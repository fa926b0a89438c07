"""Fixed shapes: an explainer whose dynamic axes have numbers, for CUDA graphs and engines that compile a graph.

Axes behind the first get their numbers before the model is rewritten, so that rules see them. The leading ones, among
them the batch, keep their symbols until the explainer is written: a run at one or at K references needs a batch that is
free. What is computed from shapes is folded then.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from onnx import ModelProto, ValueInfoProto

from onnxlift.errors import OptionError, listed, shown
from onnxlift.explainer import METADATA_KEY
from onnxlift.metadata import description
from onnxlift.model import normal_form
from onnxlift.protobuf import CONTROL, nested, nodes
from onnxlift.spec import parse
from onnxlift.symbols import RESERVED, Dim, name_dims

Shapes = Mapping[str, Sequence[int]]
"""Graph input -> the extents of all its axes."""

_SUFFIX = "_reference"


def inner_sizes(model: ModelProto, shapes: Shapes) -> dict[str, int]:
    """Symbol -> number for the symbols that lead no input, as the normal form names them.

    Raises OptionError: the model has no such input, or its shape does not fit.
    """
    inputs = _inputs(model)
    name_dims(inputs)
    known = {value.name for value in inputs}
    unknown = [name for name in shapes if name not in known and name.removesuffix(_SUFFIX) not in known]
    if unknown:
        raise OptionError(f"`shapes` names {unknown[0]!r}, but the inputs of the model are {listed(sorted(known))}")
    sizes = _sizes(inputs, {name: shape for name, shape in shapes.items() if name in known})
    leads = {dims[0] for dims in map(_dims, inputs) if dims}
    return {symbol: size for symbol, size in sizes.items() if symbol not in leads}


def with_shapes(explainer: ModelProto, shapes: Shapes, folder: Path | None = None) -> ModelProto:
    """The explainer with these shapes and without shape arithmetic; its metadata say what is dynamic still.

    `folder`: where its external data lie. Raises OptionError: it has no such input, or its shape does not fit.
    """
    inputs, about = _inputs(explainer), description(explainer) or {}
    unknown = [name for name in shapes if name not in {value.name for value in inputs}]
    if unknown:
        raise OptionError(
            f"`shapes` names {unknown[0]!r}, but with reference={about['reference']!r} the inputs of the explainer are "
            f"{listed(value.name for value in inputs)}"
        )
    sizes = _sizes(inputs, shapes)
    if about.get("builder") and about["reference"] == "grouped":
        _fix_rows(inputs, sizes, about["builder"]["spec"])
    fixed = normal_form(explainer, folder=folder, sizes=sizes, own_axes=True)
    _forget_added_types(explainer, fixed)
    about |= {
        "shapes": {name: list(shape) for name, shape in shapes.items()},
        "leads": {name: lead for name, lead in map(_lead, explainer.graph.output) if lead in RESERVED},
        "output_shape": [sizes.get(dim, dim) for dim in about["output_shape"]],
        "notes": [*about["notes"], *_what_is_dynamic(fixed)],
    }
    next(entry for entry in fixed.metadata_props if entry.key == METADATA_KEY).value = json.dumps(about)
    return fixed


def _inputs(model: ModelProto) -> list[ValueInfoProto]:
    """Copies of the graph inputs that are no constants."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = []
    for value in model.graph.input:
        if value.name not in constants:
            inputs.append(ValueInfoProto())
            inputs[-1].CopyFrom(value)
    return inputs


def _dims(value: ValueInfoProto) -> list[Dim]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _lead(value: ValueInfoProto) -> tuple[str, Dim | None]:
    """Its name and first extent."""
    return value.name, next(iter(_dims(value)), None)


def _sizes(inputs: Iterable[ValueInfoProto], shapes: Shapes) -> dict[str, int]:
    """Symbol -> number, from the inputs' own shapes and the given ones."""
    sizes: dict[str, int] = {}
    for value in inputs:
        if value.name not in shapes:
            continue
        dims, given = _dims(value), shapes[value.name]
        if not value.type.tensor_type.HasField("shape"):
            raise OptionError(f"input {value.name!r} has no shape, so that `shapes` cannot fix it: export it with one")
        if len(given) != len(dims):
            raise OptionError(f"`shapes` gives {shown(given)} for input {value.name!r}, whose shape is {shown(dims)}")
        for axis, (dim, size) in enumerate(zip(dims, given, strict=True)):
            known = dim if isinstance(dim, int) else sizes.setdefault(dim, size)
            if size != known:
                where = "in the model" if isinstance(dim, int) else f"elsewhere in `shapes`, where {dim!r} is the same"
                raise OptionError(
                    f"`shapes` gives {size} for axis {axis} of input {value.name!r}, which is {known} {where}"
                )
    return sizes


def _fix_rows(inputs: Iterable[ValueInfoProto], sizes: dict[str, int], spec: str) -> None:
    """Give the axis that counts references the number that the reference's name says. Raises OptionError."""
    builder = parse(spec).builder
    symbols = [_dims(value)[1] for value in inputs if value.name.endswith(_SUFFIX)]
    for symbol in symbols:
        if builder and isinstance(symbol, str) and sizes.setdefault(symbol, builder.k) != builder.k:
            raise OptionError(f"`shapes` gives {sizes[symbol]} references, but reference={spec!r} makes {builder.k}")


def _forget_added_types(explainer: ModelProto, fixed: ModelProto) -> None:
    """Drop the types of all but the tensors that the explainer states them of: they would be a third of the file."""
    stated = {value.name for value in explainer.graph.value_info}
    kept = [value for value in fixed.graph.value_info if value.name in stated]
    del fixed.graph.value_info[:]
    fixed.graph.value_info.extend(kept)
    for body in nested(fixed.graph.node):
        del body.value_info[:]


def _what_is_dynamic(explainer: ModelProto) -> list[str]:
    """Notes on what keeps an explainer from running as one static graph."""
    notes = []
    for value in explainer.graph.input:
        if any(isinstance(dim, str) for dim in _dims(value)):
            notes.append(f"input {value.name!r} is still dynamic, {shown(_dims(value))}: give its shape too")
    if not notes:
        notes += [
            f"output {value.name!r} is still dynamic, {shown(_dims(value))}: its shape varies with the data"
            for value in explainer.graph.output
            if any(isinstance(dim, str) for dim in _dims(value))
        ]
    control = Counter(node.op_type for node in nodes(explainer) if node.op_type in CONTROL and not node.domain)
    if control:
        found = ", ".join(f"{count} {op}" for op, count in sorted(control.items()))
        notes.append(f"control flow is left ({found}), which CUDA graphs cannot capture")
    return notes
