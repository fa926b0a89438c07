"""Nodes of the model brought together before it is rewritten: GELU into one, BatchNormalization into its convolution.

The multipliers behind them stay what they were: a chain of elementwise operators on one tensor has the difference
quotient of its end by whatever path, and two affine operators that of their product. Fewer operators mean fewer passes
over the activations, three times: at x, at the reference and on the way back. ONNX Runtime does the same with the
model, but not with an explainer, which reads what is in between. Nothing is touched that is exposed, attributed to or
explained, or for which the plan has a rule of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from math import pi, sqrt

import numpy as np

from onnxlift import registry
from onnxlift.chooser import Chooser
from onnxlift.graph import Graph, Handle, Node

FLOATS = ("float16", "float32")
"""What ONNX Runtime's Gelu takes."""

Match = tuple[Sequence[Node], Callable[[], list[Node]]]
"""The nodes that go, in topological order, and what makes those in their place."""


def fuse(graph: Graph, chooser: Chooser, kept: Collection[str | None]) -> bool:
    """Bring together what can be, in place; whether anything was. `kept`: tensors that must stay."""
    matchers: dict[str, Callable[[Graph, Node], Match | None]] = {
        "Erf": _gelu,
        "Tanh": _tanh_gelu,
        "BatchNormalization": _batch_norm,
    }
    found = [matchers[node.op](graph, node) for node in graph.nodes if node.op in matchers and not node.domain]
    free = [match for match in found if match and _is_free(match[0], chooser, kept)]
    graph.replace([(nodes, make()) for nodes, make in free])
    return bool(free)


def _is_free(nodes: Sequence[Node], chooser: Chooser, kept: Collection[str | None]) -> bool:
    """Whether nothing but these nodes reads what is between them, and they have the rules that they have by default."""
    inner = {id(node) for node in nodes}
    return all(
        (rule := chooser.rule(node)) is not None
        and rule is registry.find(node.op)
        and not chooser.is_named(node)
        and (
            node is nodes[-1]
            or all(
                handle.name not in kept and all(id(reader) in inner for reader in handle.outputs)
                for handle in node.outputs
            )
        )
        for node in nodes
    )


# --- GELU ------------------------------------------------------------------------------------------------------------


def _gelu(graph: Graph, erf: Node) -> Match | None:
    """x (1 + erf(x / sqrt 2)) / 2."""
    scaled = _producer(erf.inputs[0])
    if scaled is None or scaled.op not in ("Mul", "Div"):
        return None
    x = _times(scaled, sqrt(2) if scaled.op == "Div" else sqrt(0.5))
    return None if x is None else _half_product(graph, x, [scaled, erf], {})


def _tanh_gelu(graph: Graph, tanh: Node) -> Match | None:
    """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2."""
    scaled = _producer(tanh.inputs[0])
    inner = _times(scaled, sqrt(2 / pi)) if scaled is not None and scaled.op == "Mul" else None
    total = None if inner is None else _producer(inner)
    if scaled is None or total is None or total.op != "Add":
        return None
    for x, other in (total.inputs, total.inputs[::-1]):
        third = _producer(other)
        cube = _times(third, 0.044715) if third is not None and third.op == "Mul" else None
        power = None if cube is None else _producer(cube)
        if third and power and power.op == "Pow" and power.inputs[0] is x and _is(power.inputs[1], 3):
            return _half_product(graph, x, [power, third, total, scaled, tanh], {"approximate": "tanh"})
    return None


def _half_product(graph: Graph, x: Handle, nodes: list[Node], attributes: dict[str, str]) -> Match | None:
    """With t = 1 + the last node, one of (x t) 0.5, (t 0.5) x and (x 0.5) t."""
    one = _reader(nodes[-1].outputs[0], "Add")
    if one is None or _times(one, 1) is None or Graph.dtype(x) is None or str(Graph.dtype(x)) not in FLOATS:
        return None
    product = _reader(one.outputs[0], "Mul")
    if product is None:
        return None
    other = _other(product, one.outputs[0])
    half = _producer(other)
    if half is not None and half.op == "Mul" and _times(half, 0.5) is x:
        return _as_gelu(graph, x, [*nodes, half, one, product], attributes)
    last = _reader(product.outputs[0], "Mul")
    if last is None:
        return None
    rest = _other(last, product.outputs[0])
    if (other is x and _is(rest, 0.5)) or (rest is x and _is(other, 0.5)):
        return _as_gelu(graph, x, [*nodes, one, product, last], attributes)
    return None


def _as_gelu(graph: Graph, x: Handle, nodes: list[Node], attributes: dict[str, str]) -> Match:
    return nodes, lambda: [graph.unplaced("Gelu", [x], attributes, nodes[-1].name)]


# --- BatchNormalization ----------------------------------------------------------------------------------------------


def _batch_norm(graph: Graph, norm: Node) -> Match | None:
    """k (W x + b - mean) + B = (k W) x + (k (b - mean) + B), with k = scale / sqrt(var + eps), for a constant W."""
    conv = _producer(norm.inputs[0])
    if conv is None or conv.op != "Conv" or conv.domain or norm.attrs.get("training_mode", 0):
        return None
    weight, *bias = conv.inputs[1:]
    constants = [weight, *(handle for handle in bias if handle.name), *norm.inputs[1:]]
    dtypes = {str(Graph.dtype(handle)) for handle in constants}
    rank = len(Graph.shape(weight) or ())
    if not all(map(graph.is_constant, constants)) or len(dtypes) > 1 or rank < 3:
        return None
    return [conv, norm], partial(_folded, graph, conv, norm)


def _folded(graph: Graph, conv: Node, norm: Node) -> list[Node]:
    """Nodes on constants, which ONNX Runtime computes when it loads the explainer, and the convolution with them."""
    (_, weight, *bias), (_, scale, shift, mean, variance) = conv.inputs, norm.inputs
    dtype, made = Graph.dtype(weight), []

    def emit(op: str, *inputs: Handle) -> Handle:
        output = graph.variable(f"{norm.name}/{op}", dtype, Graph.shape(inputs[0]))
        made.append(graph.unplaced(op, inputs, {}, output.name, [output]))
        return output

    column = np.array([-1] + [1] * (len(Graph.shape(weight) or ()) - 1))
    eps = graph.constant(f"{norm.name}/epsilon", np.asarray(norm.attrs.get("epsilon", 1e-5), dtype))
    k = emit("Div", scale, emit("Sqrt", emit("Add", variance, eps)))
    offset = emit("Sub", bias[0], mean) if bias and bias[0].name else emit("Neg", mean)
    new_weight = emit("Mul", weight, emit("Reshape", k, graph.constant(f"{norm.name}/column", column)))
    new_bias = emit("Add", emit("Mul", offset, k), shift)
    made.append(graph.unplaced("Conv", [conv.inputs[0], new_weight, new_bias], conv.attrs, norm.name))
    return made


# --- looking around --------------------------------------------------------------------------------------------------


def _producer(handle: Handle) -> Node | None:
    return handle.inputs[0] if handle.inputs else None


def _reader(handle: Handle, op: str) -> Node | None:
    """The only node that reads a tensor, if it is such an operator."""
    return handle.outputs[0] if len(handle.outputs) == 1 and handle.outputs[0].op == op else None


def _is(handle: Handle, number: float) -> bool:
    """Whether it is this number, as precisely as half precision has it."""
    value = Graph.value(handle)
    return value is not None and value.size == 1 and value.ndim <= 1 and bool(np.isclose(value.item(), number, 2e-3, 0))


def _times(node: Node, number: float) -> Handle | None:
    """The other operand of a node with this number; a divisor is the second one."""
    first, second = node.inputs[:2]
    if _is(second, number):
        return first
    return second if node.op != "Div" and _is(first, number) else None


def _other(node: Node, handle: Handle) -> Handle:
    """The operand of a Mul beside this one."""
    return node.inputs[1] if node.inputs[0] is handle else node.inputs[0]
