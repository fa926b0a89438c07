"""Where importance flows: from the attributed tensors, through float edges, to the target.

Three questions, each one linear pass over the nodes: which tensors change when the attributed ones change
(`dependent`), through which of them the change reaches the target (`active`), and where it would get there through
an integer or boolean tensor instead, where no multiplier can follow (a `Problem`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxlift import registry
from onnxlift.graph import Graph, Handle, Node
from onnxlift.ports import Ports, all_nodes, is_control, ports
from onnxlift.symbols import grows

SHAPE_ONLY = frozenset(("Shape", "Size", "EyeLike", "RandomNormalLike", "RandomUniformLike"))
"""Operators that look at the shape of their input, never at its values."""

VALUE_SHAPED = frozenset(("NonZero", "Compress", "Unique", "NonMaxSuppression", "ConstantOfShape", "Range"))
"""Operators whose output's shape varies with the values of any input."""

SHAPED_BY = frozenset(
    ("Reshape Expand Slice Pad Tile TopK Resize OneHot Split Unsqueeze Squeeze CenterCropPad Upsample").split()
)
"""Operators whose output's shape varies with the values of their integer inputs."""

RANDOM = frozenset("RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli Multinomial".split())
"""Operators that give something else each time."""

SETTINGS = {"CastLike": (1,), "Dropout": (1, 2), "OneHot": (1,), "Resize": (1, 2, 3)}
"""Inputs, by operator, that only set what is done with the others: they carry no importance, though some are floats."""

UNPASSABLE = {
    "NonMaxSuppression": "how many boxes it returns varies with the data: explain the scores in front of it",
    "Unique": "how many values it returns varies with the data",
    "NonZero": "how many places it returns varies with the data",
    "Range": "how many numbers it returns varies with the data",
    "Compress": "how many places it keeps varies with the data",
    "BitCast": "it takes the bits of a number for those of another type",
    "MelWeightMatrix": "its frequencies decide which elements it sets",
    "LabelEncoder": "it looks its input up in a list of keys",
    "OneHotEncoder": "it looks its input up in a list of keys",
    "SequenceMap": "the sequences that its Loop goes through have no members known by name",
    **dict.fromkeys(
        ("TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"),
        "comparisons decide which leaf of a tree is reached",
    ),
    "SVMClassifier": "its pairs of classes are not taken apart, into an SVMRegressor each",
    "FlexAttention": "it is a preview that may change; its function body passes",
}
"""Why no rule can be right for an operator, or for the masks and indices that it makes."""


@dataclass(frozen=True)
class Step:
    """One node on the path, and the roots of its data-dependent condition.

    `masks`: the nodes that make the condition of the roots, in their order; none where it is an elementwise function
    of one root.
    `flows`: the way through the bodies of an If, Loop or Scan; its `roots` are what they read from outside.
    """

    node: Node
    roots: tuple[str, ...] = ()
    masks: tuple[Node, ...] = ()
    flows: tuple[Flow, ...] = ()


@dataclass(frozen=True)
class Problem:
    """A node that importance cannot pass, and why."""

    node: Node
    reason: str


@dataclass
class Flow:
    """The answer for one choice of sources and targets. `steps` are in topological order.

    `notes`: what cannot be told before the graph runs.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    dependent: set[str]
    active: set[str]
    steps: list[Step] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    stops: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def target(self) -> str:
        """The explained tensor."""
        return self.targets[0]

    @property
    def all_steps(self) -> Iterator[Step]:
        """The steps, those inside of bodies behind the one that runs them."""
        for step in self.steps:
            yield step
            for flow in step.flows:
                yield from flow.all_steps

    @property
    def all_flows(self) -> Iterator[Flow]:
        """This flow and those through bodies."""
        yield self
        for step in self.steps:
            for flow in step.flows:
                yield from flow.all_flows


def is_float(graph: Graph, name: str) -> bool:
    """Whether a tensor can carry importance. A tensor of unknown type counts, so that it is reported."""
    dtype = graph.dtype(graph.tensors[name])
    return dtype is None or np.issubdtype(dtype, np.floating) or dtype.name == "bfloat16"


def names(handles: Iterable[Handle]) -> list[str]:
    """Names of the tensors that are there."""
    return [handle.name for handle in handles if handle.name]


def reads(node: Node) -> list[str]:
    """Every tensor whose value a node reads, those that its bodies read from outside included."""
    found = names(node.inputs)
    for body in node.subgraphs() if is_control(node) else ():
        own = {*names(body.inputs), *(name for inner in body.nodes for name in names(inner.outputs))}
        inside = (name for inner in body.nodes for name in reads(inner))
        found += [name for name in (*inside, *names(body.outputs)) if name not in own]
    return found


def settings(node: Node) -> set[str]:
    """The tensors that a node reads and that carry no importance there, whatever their type."""
    positions = () if node.domain else SETTINGS.get(node.op, ())
    others = names(handle for index, handle in enumerate(node.inputs) if index not in positions)
    return {handle.name for index, handle in enumerate(node.inputs) if index in positions}.difference(others)


def dependents(graph: Graph, sources: Iterable[str], *, through_shapes: bool = False) -> set[str]:
    """Tensors that may change when `sources` change, `sources` included.

    `through_shapes`: also what changes only because the shape of a source does.
    """
    reached = set(sources)
    sized: set[str] = set()  # tensors whose very shape varies with values
    for node in graph.nodes:
        inputs = reads(node)
        varying = [name for name in inputs if name in reached]
        if is_control(node):
            if varying:
                reached |= _dependents_inside(graph, node, reached.intersection(inputs), through_shapes)
            continue
        if not sized.isdisjoint(inputs) or (varying and _is_sized(graph, node, varying)):
            sized.update(names(node.outputs))
        looks_at_values = node.op not in SHAPE_ONLY or through_shapes or not sized.isdisjoint(inputs)
        if varying and looks_at_values:
            reached.update(names(node.outputs))
    return reached


def _dependents_inside(graph: Graph, node: Node, read: set[str], through_shapes: bool) -> set[str]:
    """What may change inside of a node's bodies, and the outputs that do, when `read` changes."""
    found: set[str] = set()
    for port in ports(graph, node):
        start = read | {inner.name for outer, inner in port.enters if outer.name in read}
        while True:
            inside = dependents(port.body, start, through_shapes=through_shapes)
            back = {inner.name for made, inner in port.carried if made.name in inside} - start
            if not back:
                break
            start |= back
        found |= inside
        found.update(outer.name for inner, outer in port.leaves if inner.name in inside and outer.name)
        if not found.isdisjoint(names(port.conditions)):
            found.update(names(node.outputs))
    return found


def _is_sized(graph: Graph, node: Node, varying: Sequence[str]) -> bool:
    return node.op in VALUE_SHAPED or (node.op in SHAPED_BY and any(not is_float(graph, name) for name in varying))


def ancestors(graph: Graph, tensors: Iterable[str]) -> set[str]:
    """Tensors that the given ones are computed from, themselves included."""
    reached = set(tensors)
    for node in reversed(graph.nodes):
        if not reached.isdisjoint(names(node.outputs)):
            reached.update(reads(node))
    return reached


def trace(graph: Graph, sources: Sequence[str], target: str, choose: Callable[[Node], registry.Rule | None]) -> Flow:
    """Follow importance back from `target` to `sources`. `choose` gives the rule of a node, or None."""
    dependent = dependents(graph, sources)
    flow = Flow(tuple(sources), (target,), dependent, set())
    _trace(graph, flow, choose, producers(graph))
    passed = {id(mask) for step in flow.all_steps for mask in step.masks}
    flow.stops = [
        Problem(node, registry.stop_reason(node.op, node.domain or "") or "its outputs are not floats")
        for node in graph.nodes
        if id(node) not in passed
        and not flow.active.isdisjoint(names(node.inputs))
        and not any(name in dependent and is_float(graph, name) for name in names(node.outputs))
    ]
    return flow


def producers(graph: Graph) -> dict[str, Node]:
    """The node that makes each tensor, inside of bodies too."""
    return {name: node for node in all_nodes(graph) for name in names(node.outputs)}


def _trace(graph: Graph, flow: Flow, choose: Callable[[Node], registry.Rule | None], makers: dict[str, Node]) -> None:
    """Fill in the steps of a flow, its active tensors and its problems."""
    needed = flow.dependent.intersection(flow.targets)
    for node in reversed(graph.nodes if needed else []):
        outputs = [name for name in names(node.outputs) if name in needed]
        if not outputs or set(outputs) <= set(flow.sources):
            continue
        if is_control(node) and choose(node) is not None:
            step, read = _enter(graph, flow, node, set(outputs), choose, makers)
            needed.update(read)
        else:
            step = _pass(graph, flow, node, choose(node), makers)
            carriers = set(reads(node)) - settings(node)
            needed.update(name for name in carriers if name in flow.dependent and is_float(graph, name))
        needed.update(step.roots)
        flow.steps.append(step)
    flow.steps.reverse()
    flow.problems.reverse()
    flow.active = needed & flow.dependent


def _enter(
    graph: Graph,
    flow: Flow,
    node: Node,
    outputs: set[str],
    choose: Callable[[Node], registry.Rule | None],
    makers: dict[str, Node],
) -> tuple[Step, set[str]]:
    """The way through the bodies of a node to those of its outputs; and what it needs by name."""
    flows, read, captured = [], set(), dict[str, None]()
    for port in ports(graph, node):
        inner = _through_body(flow, port, outputs, choose, makers)
        own = {handle.name for _, handle in port.enters}
        captured.update(dict.fromkeys(name for name in inner.sources if name not in own))
        read |= {outer.name for outer, handle in port.enters if handle.name in inner.active}
        flows.append(inner)
        flow.problems += reversed(inner.problems)
        flow.notes += inner.notes
        if node.op == "Loop":  # what a Scan hands on keeps its shape
            flow.problems += [Problem(node, reason) for reason in _changing(port, inner)]
        if not flow.dependent.isdisjoint(names(port.conditions)):
            what = "which branch it takes" if node.op == "If" else "how often it runs"
            note = (
                f"{node.op} {node.name!r}: {what} depends on the attributed inputs; where input and reference differ "
                "in it, contributions do not add up, and the completeness gap shows by how much"
            )
            if note not in flow.notes:
                flow.notes.append(note)
            stacked = {outer.name for _, outer in port.leaves[len(port.states) :]} if node.op == "Loop" else set()
            if not stacked.isdisjoint(outputs):
                flow.problems.append(Problem(node, "how many slices it stacks varies with the data"))
    return Step(node, tuple(captured), flows=tuple(flows)), read & flow.dependent


def _through_body(
    flow: Flow,
    port: Ports,
    outputs: set[str],
    choose: Callable[[Node], registry.Rule | None],
    makers: dict[str, Node],
) -> Flow:
    """The way through one body. What an iteration hands to the next is a target as soon as the next one needs it."""
    body = port.body

    def carries(name: str) -> bool:
        return name in flow.dependent and is_float(body, name)

    targets = [inner.name for inner, outer in port.leaves if outer.name in outputs and carries(inner.name)]
    enters = [inner.name for _, inner in port.enters if carries(inner.name)]
    while True:
        inner = Flow(tuple(enters), tuple(targets), flow.dependent, set())
        _trace(body, inner, choose, makers)
        back = [made.name for made, taken in port.carried if taken.name in inner.active and carries(made.name)]
        more = [name for name in back if name not in targets]
        if not more:
            break
        targets += more
    made = {name for node in body.nodes for name in names(node.outputs)}
    inner.sources = tuple(name for name in sorted(inner.active) if name not in made)
    return inner


_GROWING = frozenset(("Concat", "Pad", "Tile"))


def _changing(port: Ports, inner: Flow) -> list[str]:
    """Why iterations cannot be stacked: their states grow, or are no tensors."""
    reasons = []
    makers = {name: node for node in port.body.nodes for name in names(node.outputs)}
    for (start, taken), (made, _) in zip(port.states, port.carried, strict=True):
        maker = makers.get(made.name)
        while maker is not None and Graph.shape(maker.inputs[0]) == Graph.shape(maker.outputs[0]):
            maker = makers.get(maker.inputs[0].name)
        extends = maker is not None and maker.op in _GROWING and taken.name in names(maker.inputs)
        then = Graph.shape(taken)
        widens = any(map(grows, then)) if then is not None else Graph.shape(start) is not None
        if Graph.dtype(taken) is None:
            reasons.append(f"what it hands from one iteration to the next ({taken.name!r}) is no tensor")
        elif widens or (extends and Graph.shape(taken) != Graph.shape(made)):
            reasons.append(f"what it hands from one iteration to the next ({taken.name!r}) grows")
    return reasons if inner.steps else []


def _pass(
    graph: Graph,
    flow: Flow,
    node: Node,
    rule: registry.Rule | None,
    makers: dict[str, Node],
) -> Step:
    """The step of a node, with what its condition is made of; note what keeps importance from passing."""
    if rule is None:
        reason = graph.refused.get(node.outputs[0].name) or UNPASSABLE.get(node.op, "no rule for this operator")
        flow.problems.append(Problem(node, reason))
        return Step(node)
    varying = sorted(name for name in settings(node) if name in flow.dependent and is_float(graph, name))
    if varying:
        flow.problems.append(Problem(node, f"{varying[0]!r} sets what it does and depends on the attributed inputs"))
        return Step(node)
    read = dict.fromkeys(reads(node))
    conditions = [name for name in read if name in flow.dependent and not is_float(graph, name)]
    if not conditions:
        return Step(node)
    step, why = _condition(graph, node, conditions, flow.dependent, makers)
    if why or not rule.conditions:
        what = ", ".join(map(repr, conditions))
        reason = f"importance would leak through the integer or boolean tensor {what}"
        flow.problems.append(Problem(node, f"{reason}: {why}" if why and rule.conditions else reason))
    return step


def _condition(
    graph: Graph, node: Node, conditions: Sequence[str], dependent: set[str], makers: dict[str, Node]
) -> tuple[Step, str]:
    """The step of a node whose `conditions` depend on the data, and why they cannot be followed (empty: they can)."""
    roots: dict[str, None] = {}
    masks: dict[int, Node] = {}
    elementwise, why = True, ""
    stack, seen = list(conditions), set(conditions)
    while stack:
        name = stack.pop()
        if is_float(graph, name):
            roots[name] = None
            continue
        maker = makers.get(name)
        if maker is None:
            why = why or f"{name!r} is given"
            continue
        masks[id(maker)] = maker
        varying = {index for index, handle in enumerate(maker.inputs) if handle.name in dependent}
        made = registry.find_condition(maker.op) if not maker.domain else None
        if made is None:
            known = UNPASSABLE.get(maker.op, "no rule for the masks and indices that it makes")
            known = graph.refused.get(maker.outputs[0].name, known)
            why = why or f"{maker.op} {maker.name!r} is on its way: {known}"
        elif made.inputs is not None and not varying <= made.inputs:
            others = ", ".join(repr(maker.inputs[index].name) for index in sorted(varying - made.inputs))
            why = why or f"{maker.op} {maker.name!r} is on its way, and its input {others} varies too"
        else:
            elementwise &= made.elementwise
        for index in sorted(varying):
            read = maker.inputs[index].name
            if read not in seen:
                seen.add(read)
                stack.append(read)
    why = why or ("" if roots else "no float is on its way")
    if why or (elementwise and len(roots) == 1):
        return Step(node, tuple(roots)), why
    ordered = tuple(maker for maker in graph.nodes if id(maker) in masks)
    if len(ordered) < len(masks):
        why = "it is made outside of the body that uses it"
    return Step(node, tuple(sorted(roots)), ordered), why
