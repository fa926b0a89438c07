"""The bodies of If, Loop and Scan in normal form: names of their own, constants outside, every tensor typed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, helper

from onnxlift.protobuf import CONTROL, Namer, all_names, captured, integer_attribute, replace_nodes, subgraphs
from onnxlift.symbols import growing

if TYPE_CHECKING:
    from onnxlift.shapes import TypePass


def is_control(node: NodeProto) -> bool:
    """Whether the node runs other graphs."""
    return node.op_type in CONTROL and not node.domain


def separate_names(model: ModelProto) -> None:
    """Gives tensors of bodies names that no other tensor has: branches may share theirs, and bodies may hide others."""
    name = Namer(all_names(model.graph))
    graph = model.graph
    seen = {item.name for item in (*graph.input, *graph.initializer)}
    seen.update(output for node in graph.node for output in node.output)
    for node in graph.node:
        for body in subgraphs(node):
            _separate(body, {}, seen, name)


def _separate(body: GraphProto, outer: Mapping[str, str], seen: set[str], name: Namer) -> None:
    names = dict(outer)
    made = [*body.input, *body.initializer]
    for item in made:
        names[item.name] = name(item.name) if item.name in seen else item.name
        item.name = names[item.name]
        seen.add(item.name)
    for node in body.node:
        for output in filter(None, node.output):
            names[output] = name(output) if output in seen else output
            seen.add(names[output])
    for node in body.node:
        node.input[:] = [names.get(tensor, tensor) for tensor in node.input]
        node.output[:] = [names.get(tensor, tensor) for tensor in node.output]
        for inner in subgraphs(node):
            _separate(inner, names, seen, name)
    for value in body.output:
        value.name = names.get(value.name, value.name)
    del body.value_info[:]


class Bodies:
    """The part of the type pass that goes into bodies."""

    def __init__(self, types: TypePass) -> None:
        self._types = types
        self.outputs: dict[str, TypeProto] = {}
        """Types of the outputs of If, Loop and Scan, as their bodies tell them."""

    def inline(self, node: NodeProto) -> bool:
        """Visit the branch of an If whose condition is a constant, in its place."""
        if node.op_type != "If":
            return False
        condition = self._types.value(node.input[0])
        if condition is None and not self._squeezes(node):
            return False
        branch = _body(node, "then_branch" if condition is None or condition.all() else "else_branch")
        for inner in branch.node:
            self._types.visit(_copy(inner))
        for made, name in zip(branch.output, node.output, strict=True):
            if name:
                self._types.visit(helper.make_node("Identity", [made.name], [name], name=name))
        return True

    def _squeezes(self, node: NodeProto) -> bool:
        """Whether it is PyTorch's x.squeeze(axis): `if the extent is 1: Squeeze (x), else x`.

        Without the If the rank is known. Where the extent is something else, which hardly anything behind it could
        deal with, Squeeze says so when it runs.
        """
        then, other = (list(_body(node, name).node) for name in ("then_branch", "else_branch"))
        if [inner.op_type for inner in then] != ["Squeeze"] or [inner.op_type for inner in other] != ["Identity"]:
            return False
        makers = {name: maker for maker in self._types.nodes for name in maker.output}
        compared = makers.get(node.input[0], NodeProto())
        looked_up = makers.get(compared.input[0], NodeProto()) if compared.op_type == "Equal" else NodeProto()
        shape = makers.get(looked_up.input[0], NodeProto()) if looked_up.op_type == "Gather" else NodeProto()
        one = self._types.value(compared.input[1]) if compared.op_type == "Equal" else None
        read = {then[0].input[0], other[0].input[0], *shape.input}
        return shape.op_type == "Shape" and len(read) == 1 and one is not None and bool((one == 1).all())

    def run(self, node: NodeProto) -> None:
        """Bring the bodies to normal form; note the types of the node's outputs."""
        match node.op_type:
            case "If":
                found = [self._visit(_body(node, branch), []) for branch in ("then_branch", "else_branch")]
                made = [_common(a, b) for a, b in zip(*found, strict=True)]
            case "Loop":
                made = self._loop(node)
            case _:
                made = self._scan(node)
        self.outputs = {
            name: type_ for name, type_ in zip(node.output, made, strict=False) if name and type_ is not None
        }

    def _loop(self, node: NodeProto) -> list[TypeProto | None]:
        body = _body(node, "body")
        initial = [self._types.types.get(name) for name in node.input[2:]]
        count, condition = (
            helper.make_tensor_type_proto(elem_type, _one(value))
            for elem_type, value in zip((TensorProto.INT64, TensorProto.BOOL), body.input, strict=False)
        )
        found = self._repeat(body, [count, condition], initial, [])[1:]
        states, stacked = found[: len(initial)], found[len(initial) :]
        return [*states, *(None if one is None else _insert(one, 0, None) for one in stacked)]

    def _scan(self, node: NodeProto) -> list[TypeProto | None]:
        body, many = _body(node, "body"), integer_attribute(node, "num_scan_inputs", 0)
        first = len(node.input) - many
        initial = [self._types.types.get(name) for name in node.input[:first]]
        axes = _integers(node, "scan_input_axes", many)
        whole = [self._types.types.get(name) for name in node.input[first:]]
        slices = [None if one is None else _drop(one, axis) for one, axis in zip(whole, axes, strict=True)]
        found = self._repeat(body, [], initial, slices)
        states, stacked = found[:first], found[first:]
        extents = [(one and _dims(one), axis) for one, axis in zip(whole, axes, strict=True)]
        steps = next((dims[axis] for dims, axis in extents if dims), None)
        out = _integers(node, "scan_output_axes", len(stacked))
        return [
            *states,
            *(None if a is None else _insert(a, axis, steps) for a, axis in zip(stacked, out, strict=True)),
        ]

    def _repeat(
        self,
        body: GraphProto,
        before: Sequence[TypeProto],
        initial: Sequence[TypeProto | None],
        behind: Sequence[TypeProto | None],
    ) -> list[TypeProto | None]:
        """Visit a body whose states come back: dims that change on the way are unknown in all rounds."""
        states = list(initial)
        skipped = len(before) - 1 if before else 0  # a Loop's condition comes out first, its count does not
        while True:  # in every round but the last, a dim or a rank becomes unknown
            pristine = GraphProto()
            pristine.CopyFrom(body)
            known = self._types.known()
            found = self._visit(body, [*before, *states, *behind])
            made = found[skipped : skipped + len(states)]
            after = [_common(a, b) for a, b in zip(states, made, strict=True)]
            for start, end, type_, value in zip(states, made, after, body.input[len(before) :], strict=False):
                self._mark_growth(start, end, type_, value.name)
            if after == states or None in after:
                break
            states = after
            body.CopyFrom(pristine)
            self._types.unlearn(known)
        found[skipped : skipped + len(states)] = states
        return found

    def _mark_growth(self, start: TypeProto | None, end: TypeProto | None, type_: TypeProto | None, name: str) -> None:
        """Name an extent that was 1 and becomes one of the model's inputs so that it can be told."""
        if start is None or end is None or type_ is None:
            return
        first, last = _dims(start) or [], _dims(end) or []
        for i, dim in enumerate(type_.tensor_type.shape.dim):
            wider = last[i : i + 1] != [1] and last[i] in self._types.given_dims
            if first[i] == growing(name, i) or (first[i] == 1 and wider):
                dim.dim_param = growing(name, i)

    def _visit(self, body: GraphProto, inputs: Sequence[TypeProto | None]) -> list[TypeProto | None]:
        """Visit the nodes of a body; returns the types of its outputs."""
        types = self._types
        for value, type_ in zip(body.input, inputs, strict=False):
            if type_ is not None:
                value.type.CopyFrom(type_)
                types.name_dims(value)
        with types.inside(body.input) as nodes:
            for node in body.node:
                types.visit(_copy(node))
            for value in body.output:
                value.name = types.integers.restored(value.name)
            produced = {name for node in nodes for name in node.output} | {value.name for value in body.input}
            for value in body.output:
                if value.name not in produced or value.name in types.constants:
                    name = types.name(value.name)
                    types.keep(helper.make_node("Identity", [value.name], [name], name=name))
                    value.name = name
        outputs = {value.name for value in body.output}
        needed = set(outputs)
        live = []
        for node in reversed(nodes):
            if needed.intersection(node.output):
                needed.update(node.input, captured(node))
                live.append(node)
        replace_nodes(body, live[::-1])
        made = [types.types.get(value.name) for value in body.output]
        for value, type_ in zip(body.output, made, strict=True):
            if type_ is not None:
                value.type.CopyFrom(type_)
        inner = {name for node in body.node for name in node.output} - outputs
        del body.value_info[:]
        body.value_info.extend(ValueInfoProto(name=name, type=types.types[name]) for name in inner & types.types.keys())
        return made


def _one(value: ValueInfoProto) -> list[int]:
    """The shape of a Loop's number or condition: a scalar, or [1] where the body says so, as in ONNX Runtime."""
    return [1] * len(value.type.tensor_type.shape.dim)


def _body(node: NodeProto, name: str) -> GraphProto:
    body: GraphProto = next(attribute.g for attribute in node.attribute if attribute.name == name)
    return body


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _integers(node: NodeProto, name: str, count: int) -> list[int]:
    given = next((list(attribute.ints) for attribute in node.attribute if attribute.name == name), None)
    return given or [0] * count


def _dims(type_: TypeProto) -> list[int | str | None] | None:
    if not type_.tensor_type.HasField("shape"):
        return None
    return [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in type_.tensor_type.shape.dim
    ]


def _with(type_: TypeProto, dims: Sequence[int | str | None] | None) -> TypeProto:
    return helper.make_tensor_type_proto(type_.tensor_type.elem_type, None if dims is None else list(dims))


def _insert(type_: TypeProto, axis: int, dim: int | str | None) -> TypeProto:
    dims = _dims(type_)
    if dims is None:
        return _with(type_, None)
    place = axis % (len(dims) + 1)
    return _with(type_, [*dims[:place], dim, *dims[place:]])


def _drop(type_: TypeProto, axis: int) -> TypeProto:
    dims = _dims(type_)
    if not dims:
        return _with(type_, None)
    place = axis % len(dims)
    return _with(type_, [*dims[:place], *dims[place + 1 :]])


def _common(a: TypeProto | None, b: TypeProto | None) -> TypeProto | None:
    """What two types have in common; None where they are no tensors of one element type."""
    if a is None or b is None or not a.HasField("tensor_type") or not b.HasField("tensor_type"):
        return a if a == b else None
    if a.tensor_type.elem_type != b.tensor_type.elem_type:
        return None
    left, right = _dims(a), _dims(b)
    if left is None or right is None or len(left) != len(right):
        return _with(a, None)
    return _with(a, [i if i == j else None for i, j in zip(left, right, strict=True)])
