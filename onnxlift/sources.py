"""The lower end of the walk: which tensors are attributed to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnxlift import registry
from onnxlift.embedding import entries, entries_inside
from onnxlift.errors import OptionError, listed
from onnxlift.flow import Flow, dependents, is_float, trace
from onnxlift.graph import Graph, Node

Choose = Callable[[Node], registry.Rule | None]


def attributed(graph: Graph, asked: Sequence[str] | None, target: str, choose: Choose) -> tuple[list[str], list[str]]:
    """The attributed tensors, and what a user should know of them.

    Default: every float graph input that `target` depends on; of a model that has none, where ids or bytes become
    floats. Raises OptionError where there are none, or where `asked` names something else than float tensors.
    """
    if asked is None:
        looked_up = {entry.source for entry in entries(graph, target) if entry.rows}
        tensors = [name for name in graph.inputs if Graph.is_tensor(graph.tensors[name])]
        floats = [name for name in tensors if is_float(graph, name) and name not in looked_up]
        found = [name for name in floats if name in trace(graph, [name], target, choose).active]
        return (found, []) if found else _where_floats_begin(graph, target)
    if not asked:
        raise OptionError("`inputs` is empty: name at least one tensor to attribute to")
    for name in asked:
        _check(graph, name, target)
    return list(dict.fromkeys(asked)), []


def check_apart(graph: Graph, flow: Flow) -> None:
    """Raise OptionError where one attributed tensor is computed from another, or the target does not depend on one."""
    for name in flow.sources:
        below = dependents(graph, [name]) if len(flow.sources) > 1 else {name}
        inner = [other for other in flow.sources if other != name and other in below]
        if inner:
            raise OptionError(f"{inner[0]!r} is computed from {name!r}: attribute to one of the two at a time")
    for name in flow.sources:
        if name not in flow.active and not flow.problems:
            raise OptionError(f"tensor {flow.target!r} does not depend on {name!r} through float tensors")


def _check(graph: Graph, name: str, target: str) -> None:
    """Whether a tensor that was asked for can have contributions."""
    if name not in graph.tensors:
        raise OptionError(f"no tensor {name!r} in the model; its inputs are {listed(graph.inputs)}")
    if name in graph.inside:
        raise OptionError(
            f"tensor {name!r} is inside of an If, Loop or Scan: only those outside of them have contributions"
        )
    if not Graph.is_tensor(graph.tensors[name]):
        raise OptionError(f"{name!r} is a sequence, a map or an optional, and has no contributions")
    if not is_float(graph, name):
        looked_up = entries(graph, target)
        hint = f", for instance {looked_up[0].tensor!r}" if looked_up else ""
        raise OptionError(
            f"tensor {name!r} is {graph.dtype(graph.tensors[name])}, not a float, and has no contributions: "
            f"name the float tensor that is computed from it{hint}"
        )
    if graph.is_constant(graph.tensors[name]):
        raise OptionError(f"tensor {name!r} is a constant of the model: nothing can be attributed to it")


def _where_floats_begin(graph: Graph, target: str) -> tuple[list[str], list[str]]:
    """Where ids or bytes become floats, of a model that has no float input; and what to say of it."""
    found = entries(graph, target)
    if not found:
        inner = entries_inside(graph, target)
        why = "no float tensor is looked up by one: name internal tensors to attribute to with `inputs`"
        if inner:
            why = (
                f"{inner[0].tensor!r}, made of input {inner[0].source!r}, is inside of an If, Loop or Scan, where "
                "nothing can be attributed to: look it up in front of it, or name other tensors with `inputs`"
            )
        raise OptionError(
            f"tensor {target!r} depends on no float graph input (the inputs are {listed(graph.inputs)}), and {why}"
        )
    notes = [
        f"input {entry.source!r} is attributed at {entry.tensor!r}, "
        + (f"which it looks up in a table of {entry.rows}" if entry.rows else "the floats that are made of it")
        for entry in found
    ]
    return list(dict.fromkeys(entry.tensor for entry in found)), notes
