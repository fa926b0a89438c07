"""Where a model that reads tokens or bytes can be attributed to: the first float tensors that depend on them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnxlift.flow import ancestors, is_float, names, reads
from onnxlift.graph import Graph, Node
from onnxlift.ports import ports

_MOVED = frozenset("Identity Cast Reshape Squeeze Unsqueeze Flatten Transpose Slice Expand Split Tile".split())
"""What ids pass as they are, whatever makes shapes and places."""
_UNCHANGED = _MOVED | {"Concat", "Clip", "Add", "Sub", "Mul", "Mod"}
"""What ids pass as they are, or shifted or hashed by constants."""


@dataclass(frozen=True)
class Entry:
    """A float tensor made of an input that holds none.

    `rows`: of the table that it is looked up in; 0 where it is the numbers themselves.
    """

    tensor: str
    source: str
    rows: int


def entries(graph: Graph, target: str) -> list[Entry]:
    """The float tensors to attribute to, where no graph input on the way to `target` is one.

    Of a model that looks up embeddings, the look-ups in the largest table, that of the words; those of positions and
    segments stay the same for all samples. Of others, the floats that the numbers themselves become (pixels in bytes).
    """
    above = ancestors(graph, [target])
    found = _all_entries(graph, above, _given(graph, above))
    most = max((entry.rows for entry in found), default=0)
    return [entry for entry in found if entry.rows == most]


def entries_inside(graph: Graph, target: str) -> list[Entry]:
    """Those inside of an If, Loop or Scan on the way to `target`, where nothing can be attributed to."""
    above = ancestors(graph, [target])
    return _all_entries_inside(graph, above, _given(graph, above))


def _given(graph: Graph, above: set[str]) -> dict[str, Entry]:
    """The graph inputs that hold no floats, or ids in floats."""
    given = [name for name in graph.inputs if name in above and (not is_float(graph, name) or holds_ids(graph, name))]
    return {name: Entry(name, name, 0) for name in given}


def holds_ids(graph: Graph, name: str) -> bool:
    """Whether a float input holds ids, as Keras hands them over: it is only cast to integers, or compared."""
    readers = [node for node in graph.nodes if name in reads(node)]
    casts = [node for node in readers if node.op == "Cast" and not is_float(graph, node.outputs[0].name)]
    return bool(casts) and all(node in casts or node.op in ("Equal", "Greater", "Less") for node in readers)


def _all_entries(graph: Graph, above: set[str], ids: dict[str, Entry]) -> list[Entry]:
    """Every float tensor that is made of `ids` without arithmetic, in the order of the graph.

    Other tensors that are made so join the ids.
    """
    found = []
    for node in graph.nodes:
        source = _source(graph, node, ids)
        outputs = [name for name in names(node.outputs) if name in above]
        if source is None or not outputs:
            continue
        rows = max(source.rows, _rows(graph, node))
        if is_float(graph, outputs[0]):
            found.append(Entry(outputs[0], source.source, rows))
        else:
            ids.update({name: Entry(name, source.source, rows) for name in outputs})
    return found


def _all_entries_inside(graph: Graph, above: set[str], ids: dict[str, Entry]) -> list[Entry]:
    """Of every body, whether it reads ids by their name or is handed them."""
    _all_entries(graph, above, ids)
    found = []
    for node in graph.nodes:
        for port in ports(graph, node) if not above.isdisjoint(names(node.outputs)) else ():
            handed = {inner.name: ids[outer.name] for outer, inner in port.enters if outer.name in ids}
            inner_ids, inside = ids | handed, ancestors(port.body, names(port.body.output_handles))
            found += _all_entries(port.body, inside, dict(inner_ids))
            found += _all_entries_inside(port.body, inside, inner_ids)
    return found


def _source(graph: Graph, node: Node, ids: dict[str, Entry]) -> Entry | None:
    """The ids that the node's first output holds or looks up; None where it computes something else."""
    if node.domain:
        return None
    if node.op not in (*_UNCHANGED, "Gather", "OneHot") and not (node.op == "Equal" and _rows(graph, node) > 1):
        return None
    read = [handle.name for handle in node.inputs if handle.name in ids]
    others = [handle for handle in node.inputs if handle.name and handle.name not in ids]
    plain = all(map(graph.is_constant, others)) or (node.op in _MOVED and node.inputs[0].name in ids)
    return ids[read[0]] if len(read) == 1 and plain else None


def _rows(graph: Graph, node: Node) -> int:
    """How many ids a look-up tells apart."""
    if node.op == "Gather" and graph.is_constant(node.inputs[0]):
        shape = graph.shape(node.inputs[0]) or (0,)
        extent = shape[int(node.attrs.get("axis", 0))]
        return extent if isinstance(extent, int) else 0
    if node.op == "OneHot":
        depth = graph.value(node.inputs[1])
        return 0 if depth is None else int(depth.item())
    if node.op == "Equal":  # a one-hot table written out: ids == 0, 1, 2 ...
        shapes = [graph.shape(handle) or () for handle in node.inputs if graph.is_constant(handle)]
        return max((math.prod(dim for dim in shape if isinstance(dim, int)) for shape in shapes), default=0)
    return 0
