"""Where importance flows: from the attributed tensors, through float edges, to the target.

Three questions, each one linear pass over the nodes: which tensors change when the attributed ones change
(`dependent`), through which of them the change reaches the target (`active`), and where it would get there through
an integer or boolean tensor instead, where no multiplier can follow (a `Problem`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxlift import registry
from onnxlift.graph import Graph, Handle, Node

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

ELEMENTWISE_CONDITIONS = frozenset(
    (
        "Equal Less LessOrEqual Greater GreaterOrEqual And Or Xor Not IsNaN IsInf Cast Identity Sign Floor Ceil "
        "Round Abs Neg Add Sub Mul"
    ).split()
)
"""Operators that a mask may be made with for it to count as an elementwise function of one tensor."""


@dataclass(frozen=True)
class Step:
    """One node on the path: which inputs carry importance, and the roots of its data-dependent conditions."""

    node: Node
    roots: tuple[str, ...] = ()


@dataclass(frozen=True)
class Problem:
    """A node that importance cannot pass, and why."""

    node: Node
    reason: str


@dataclass
class Flow:
    """The answer for one choice of sources and target. `steps` are in topological order."""

    sources: tuple[str, ...]
    target: str
    dependent: set[str]
    active: set[str]
    steps: list[Step] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    stops: list[Problem] = field(default_factory=list)


def is_float(graph: Graph, name: str) -> bool:
    """Whether a tensor can carry importance. A tensor of unknown type counts, so that it is reported."""
    dtype = graph.dtype(graph.tensors[name])
    return dtype is None or np.issubdtype(dtype, np.floating) or dtype.name == "bfloat16"


def names(handles: Iterable[Handle]) -> list[str]:
    """Names of the tensors that are there."""
    return [handle.name for handle in handles if handle.name]


def reads(node: Node) -> list[str]:
    """Every tensor whose value a node reads, those captured by its subgraphs included."""
    captured = (
        handle.name for graph in node.subgraphs(recursive=True) for inner in graph.nodes for handle in inner.inputs
    )
    return [*names(node.inputs), *(name for name in captured if name)]


def dependents(graph: Graph, sources: Iterable[str], *, through_shapes: bool = False) -> set[str]:
    """Tensors that may change when `sources` change, `sources` included.

    `through_shapes`: also what changes only because the shape of a source does.
    """
    reached = set(sources)
    sized: set[str] = set()  # tensors whose very shape varies with values
    for node in graph.nodes:
        inputs = reads(node)
        varying = [name for name in inputs if name in reached]
        if not sized.isdisjoint(inputs) or (varying and _is_sized(graph, node, varying)):
            sized.update(names(node.outputs))
        looks_at_values = node.op not in SHAPE_ONLY or through_shapes or not sized.isdisjoint(inputs)
        if varying and looks_at_values:
            reached.update(names(node.outputs))
    return reached


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
    producers = {name: node for node in graph.nodes for name in names(node.outputs)}
    flow = Flow(tuple(sources), target, dependent, set())
    if target not in dependent:
        return flow
    needed = {target}
    for node in reversed(graph.nodes):
        outputs = [name for name in names(node.outputs) if name in needed]
        if not outputs or set(outputs) <= set(sources):
            continue
        roots = _pass(graph, flow, node, choose(node), producers)
        flow.steps.append(Step(node, roots))
        needed.update(roots)
        needed.update(name for name in reads(node) if name in dependent and is_float(graph, name))
    flow.steps.reverse()
    flow.problems.reverse()
    flow.active = needed & dependent
    flow.stops = [
        Problem(node, registry.stop_reason(node.op, node.domain or "") or "its outputs are not floats")
        for node in graph.nodes
        if not flow.active.isdisjoint(names(node.inputs))
        and not any(name in dependent and is_float(graph, name) for name in names(node.outputs))
    ]
    return flow


def _pass(
    graph: Graph,
    flow: Flow,
    node: Node,
    rule: registry.Rule | None,
    producers: dict[str, Node],
) -> tuple[str, ...]:
    """Note what keeps importance from passing a node; return the roots of its conditions."""
    if rule is None:
        flow.problems.append(Problem(node, "no rule for this operator"))
        return ()
    conditions = [name for name in reads(node) if name in flow.dependent and not is_float(graph, name)]
    if not conditions:
        return ()
    found = _roots(graph, conditions, flow.dependent, producers) if rule.conditions else None
    if found is None or len(found) != 1:
        what = ", ".join(repr(name) for name in dict.fromkeys(conditions))
        flow.problems.append(Problem(node, f"importance would leak through the integer or boolean tensor {what}"))
        return ()
    return tuple(found)


def _roots(graph: Graph, conditions: Sequence[str], dependent: set[str], producers: dict[str, Node]) -> set[str] | None:
    """The float tensors that `conditions` are elementwise functions of; None where one is not elementwise."""
    roots: set[str] = set()
    stack, seen = list(conditions), set(conditions)
    while stack:
        name = stack.pop()
        if is_float(graph, name):
            roots.add(name)
            continue
        node = producers.get(name)
        if node is None or node.op not in ELEMENTWISE_CONDITIONS:
            return None
        for read in names(node.inputs):
            if read in dependent and read not in seen:
                seen.add(read)
                stack.append(read)
    return roots
