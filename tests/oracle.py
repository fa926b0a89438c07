"""The independent oracle: DeepLIFT by plain float64 NumPy, slow and obvious.

It is written from docs/method.md (sections 1-7) and the papers, from no implementation, and with techniques a
production rule would not use, so that an agreement of the two means something:

* linear operators: the adjoint is *probed* (unit vectors, index arrays, explicit window and tap loops);
* elementwise functions: secants in 80-bit `longdouble`, derivatives by complex step;
* maximum: Python loops over windows;
* normalisations and losses: probed by unit vectors, one midpoint step after the other (oracle_normalize.py).

Every node's conservation law (METHOD 1) is asserted while the multipliers are walked back.

Precision: forward values are float64 (elementwise functions, softmax and normalisations are computed in
longdouble and rounded once). An elementwise secant is good to about 1e-13 of the function's scale. Float
tensors of every width become float64 and a Cast between float types is the identity.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import onnx
import onnx.defs
import onnx.inliner
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

Array = npt.NDArray[Any]
Ties = Literal["shared", "first", "argmax_x"]
Seed = Array | Callable[[Array], Array]
LD = np.longdouble

FLOAT_CODES = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
}


# ------------------------------------------------------------------------------------------------------------
# The graph
# ------------------------------------------------------------------------------------------------------------
@dataclass
class Node:
    """One operator of the inlined graph."""

    proto: onnx.NodeProto
    opset: int
    attrs: dict[str, Any] = field(default_factory=dict)
    evaluator: ReferenceEvaluator | None = None

    @property
    def op(self) -> str:
        return self.proto.op_type

    @property
    def inputs(self) -> list[str]:
        return list(self.proto.input)

    @property
    def outputs(self) -> list[str]:
        return list(self.proto.output)

    def __str__(self) -> str:
        return f"{self.proto.domain or 'ai.onnx'}.{self.op}-{self.opset} {self.proto.name!r} -> {self.outputs}"

    def attr(self, name: str, otherwise: Any = None) -> Any:
        """The attribute, or the schema's default (which is a float32 number), or `otherwise`."""
        if name in self.attrs:
            return self.attrs[name]
        schema = onnx.defs.get_schema(self.op, self.opset, self.proto.domain)
        known = schema.attributes.get(name)
        if known is not None and known.default_value.type:
            value = helper.get_attribute_value(known.default_value)
            return value.decode() if isinstance(value, bytes) else value
        return otherwise


@dataclass
class Graph:
    """Nodes in execution order, and the constants."""

    nodes: list[Node]
    constants: dict[str, Array]

    def ancestors(self, tensor: str) -> list[Node]:
        """The nodes that `tensor` is computed from, in execution order."""
        wanted, kept = {tensor}, []
        for node in reversed(self.nodes):
            if wanted & {name for name in node.outputs if name}:
                wanted |= set(node.inputs)
                kept.append(node)
        return kept[::-1]


def widen(value: Any) -> Array:
    """A float of any width becomes float64; integers, booleans and strings stay."""
    array = np.asarray(value)
    is_float = np.issubdtype(array.dtype, np.floating) or array.dtype.name == "bfloat16"
    return array.astype(np.float64) if is_float else array


def is_float(value: Array | None) -> bool:
    return value is not None and value.dtype == np.float64


# Operators without a rule here that ONNX defines by other operators: take the definition.
EXPANDED = ("SwiGLU", "RotaryEmbedding", "Attention")


def load(model: onnx.ModelProto) -> Graph:
    """Inline the functions and collect nodes and constants."""
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    found = sorted({node.op_type for node in model.graph.node if not node.domain} & set(EXPANDED))
    if found:
        names = [("", op) for op in found]
        try:
            model = onnx.inliner.inline_selected_functions(model, names, inline_schema_functions=True)
        except RuntimeError as error:
            raise NotImplementedError(f"onnx cannot expand {found}: {error}") from error
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    opsets[""] = opsets.get("", opsets.get("ai.onnx", 1))
    nodes = []
    for proto in model.graph.node:
        attrs = {}
        for attribute in proto.attribute:
            value = helper.get_attribute_value(attribute)
            attrs[attribute.name] = value.decode() if isinstance(value, bytes) else value
        nodes.append(Node(proto, opsets.get(proto.domain, 1), attrs))
    return Graph(nodes, {t.name: widen(numpy_helper.to_array(t)) for t in model.graph.initializer})


# ------------------------------------------------------------------------------------------------------------
# Elementwise functions (METHOD 3)
# ------------------------------------------------------------------------------------------------------------
@dataclass
class Unary:
    """A function of one tensor, for longdouble and complex longdouble.

    `piece` numbers its smooth pieces; `length` is the scale on which it bends.
    """

    f: Callable[[Array], Array]
    piece: Callable[[Array], Array] = lambda x: np.zeros(x.shape)
    length: Callable[[Array], Array] = lambda x: np.maximum(1, np.abs(x))


def broken_at(*points: Any) -> Callable[[Array], Array]:
    """Piece number for kinks at `points`; a kink itself is a piece of its own."""

    def piece(x: Array) -> Array:
        return sum((np.sign(x - np.asarray(p, dtype=LD)) * 3.0**k for k, p in enumerate(points)), np.zeros(x.shape))

    return piece


def secant(u: Unary, x: Array, r: Array) -> Array:
    """Rescale, `m = (f(x) - f(r)) / (x - r)` (METHOD 3), in longdouble.

    Where x and r lie on one smooth piece and closer than 1e-6 of the length on which f bends, the quotient
    would lose more digits (eps / 1e-6) than the derivative at the midpoint (1e-12 / 24), which is taken by
    complex step: `f'(t) = Im f(t + ih) / h` has no cancellation. A derivative that is not finite counts as 0:
    there dx = 0.
    """
    x, r = np.broadcast_arrays(np.asarray(x, dtype=LD), np.asarray(r, dtype=LD))
    with np.errstate(all="ignore"):
        d = np.where(x == r, LD(0), x - r)
        middle = np.where(x == r, x, r + d / 2)
        near = (d == 0) | ((np.abs(d) <= LD(1e-6) * u.length(middle)) & (u.piece(x) == u.piece(r)))
        h = LD("1e-40")
        step = np.zeros(x.shape, dtype=np.clongdouble)
        step.real, step.imag = middle, h
        derivative = np.asarray(u.f(step)).imag / h
        derivative = np.where(np.isfinite(derivative), derivative, LD(0))
        quotient = (u.f(x) - u.f(r)) / np.where(near, LD(1), d)
        return np.where(near, derivative, quotient)


def erf(z: Array) -> Array:
    """erf by `2/sqrt(pi) exp(-z^2) sum 2^n z^(2n+1) / (2n+1)!!`, all of whose terms have one sign."""
    far = np.abs(z.real) > 6.6
    t = np.where(far, 0 * z, z)
    term = t + 0
    total = t + 0
    for n in range(1, 400):
        term = term * (2 * t * t / LD(2 * n + 1))
        total = total + term
    return cast(Array, np.where(far, np.sign(z.real), 2 / np.sqrt(PI) * np.exp(-t * t) * total))


PI = LD("3.14159265358979323846264338327950288")


def above(z: Array, point: Any = 0) -> Array:
    return cast(Array, z.real > np.asarray(point, dtype=LD))


def relu(z: Array) -> Array:
    return np.where(above(z), z, np.zeros_like(z))


def minus_part(z: Array) -> Array:
    return np.where(above(z), np.zeros_like(z), z)


def magnitude(z: Array) -> Array:
    return np.where(z.real > 0, z, np.where(z.real < 0, -z, np.zeros_like(z)))


def logistic(z: Array) -> Array:
    e = np.exp(-magnitude(z))
    return np.where(z.real > 0, 1 / (1 + e), np.where(z.real < 0, e / (1 + e), 1 / (1 + np.exp(-z))))


def softplus(z: Array) -> Array:
    e = np.where(z.real == 0, np.exp(-z), np.exp(-magnitude(z)))
    return np.where(z.real == 0, z, relu(z)) + np.log1p(e)


def clamp(z: Array, low: Any, high: Any) -> Array:
    """min(max(z, low), high); the derivative at a bound is 0."""
    low, high = np.asarray(low, dtype=LD), np.asarray(high, dtype=LD)
    inner = np.where(z.real > low, z, low + np.zeros_like(z))
    return np.where(inner.real < high, inner, high + np.zeros_like(z))


def constant_like(g: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """A step function: real values, derivative 0."""
    return lambda z: g(z.real) + np.zeros_like(z)


def power(exponent: Array) -> Callable[[Array], Array]:
    """x^p with real p; the complex step is `x^p + ih p x^(p-1)`, for complex pow garbles negative bases."""

    def f(z: Array) -> Array:
        value = np.power(z.real, exponent)
        if not np.iscomplexobj(z):
            return cast(Array, value)
        slope = np.where(exponent == 0, LD(0), exponent * np.power(z.real, exponent - 1))
        out = np.zeros(value.shape, dtype=np.clongdouble)
        out.real, out.imag = value, slope * z.imag
        return out

    return f


def size(x: Array) -> Array:
    return np.abs(x)


def one(x: Array) -> Array:
    return np.ones(x.shape)


def inside_one(x: Array) -> Array:
    return cast(Array, np.abs(1 - np.abs(x)))


def clip_bounds(node: Node, values: Sequence[Array | None]) -> tuple[Any, Any]:
    def bound(position: int, name: str, otherwise: float) -> Any:
        if len(values) > position and values[position] is not None:
            return values[position]
        return node.attrs.get(name, otherwise)

    return bound(1, "min", -np.inf), bound(2, "max", np.inf)


def unary_of(node: Node, values: Sequence[Array | None]) -> Unary | None:
    """The function of one tensor that this node applies to its first input, or None (METHOD 3)."""
    op = node.op

    def a(name: str) -> LD:
        return LD(node.attr(name))

    if op in PLAIN_UNARY:
        return PLAIN_UNARY[op]
    if op == "LeakyRelu":
        return Unary(lambda z: relu(z) + a("alpha") * minus_part(z), broken_at(0))
    if op == "PRelu":
        slope = np.asarray(values[1], dtype=LD)
        return Unary(lambda z: relu(z) + slope * minus_part(z), broken_at(0))
    if op == "Elu":
        return Unary(lambda z: relu(z) + a("alpha") * np.expm1(minus_part(z)), broken_at(0))
    if op == "Selu":
        return Unary(lambda z: a("gamma") * (relu(z) + a("alpha") * np.expm1(minus_part(z))), broken_at(0))
    if op == "Celu":
        return Unary(
            lambda z: relu(z) + a("alpha") * np.expm1(minus_part(z) / a("alpha")),
            broken_at(0),
            lambda x: np.maximum(abs(a("alpha")), np.abs(x)),
        )
    if op == "ThresholdedRelu":
        return Unary(lambda z: np.where(above(z, a("alpha")), z, np.zeros_like(z)), broken_at(a("alpha")))
    if op == "HardSigmoid":
        kinks = broken_at(-a("beta") / a("alpha"), (1 - a("beta")) / a("alpha"))
        return Unary(lambda z: clamp(a("alpha") * z + a("beta"), 0, 1), kinks)
    if op == "Shrink":
        low, bias = a("lambd"), a("bias")
        step = np.where
        return Unary(
            lambda z: step(above(z, low), z - bias, step(above(-z, low), z + bias, np.zeros_like(z))),
            broken_at(-low, low),
        )
    if op == "Mod":
        divisor = np.asarray(values[1], dtype=LD)
        return Unary(lambda z: z - divisor * np.trunc(z.real / divisor), lambda x: np.trunc(x / divisor))
    if op == "Gelu":
        if node.attr("approximate") == "tanh":
            c = np.sqrt(2 / PI)
            return Unary(lambda z: z * (1 + np.tanh(c * (z + LD(0.044715) * z * z * z))) / 2)
        return Unary(lambda z: z * (1 + erf(z / np.sqrt(LD(2)))) / 2)
    if op == "Swish":
        return Unary(lambda z: z * logistic(a("alpha") * z))
    if op == "Clip":
        low, high = clip_bounds(node, values)
        return Unary(lambda z: clamp(z, low, high), broken_at(low, high))
    return None


PLAIN_UNARY: dict[str, Unary] = {
    "Relu": Unary(relu, broken_at(0)),
    "Sigmoid": Unary(logistic),
    "Tanh": Unary(np.tanh),
    "Softplus": Unary(softplus),
    "Softsign": Unary(lambda z: z / (1 + magnitude(z)), broken_at(0)),
    "HardSwish": Unary(lambda z: z * clamp(z / LD(6) + LD(0.5), 0, 1), broken_at(-3, 3)),
    "Erf": Unary(erf),
    "Mish": Unary(lambda z: z * np.tanh(softplus(z))),
    "Exp": Unary(np.exp, length=one),
    "Log": Unary(np.log, length=size),
    "Sqrt": Unary(np.sqrt, length=size),
    "Reciprocal": Unary(lambda z: 1 / z, length=size),
    "Abs": Unary(magnitude, broken_at(0)),
    "Neg": Unary(lambda z: -z),
    "Sin": Unary(np.sin, length=one),
    "Cos": Unary(np.cos, length=one),
    "Tan": Unary(np.tan, length=lambda x: np.abs(np.cos(x))),
    "Asin": Unary(np.arcsin, length=inside_one),
    "Acos": Unary(np.arccos, length=inside_one),
    "Atan": Unary(np.arctan),
    "Sinh": Unary(np.sinh, length=one),
    "Cosh": Unary(np.cosh, length=one),
    "Asinh": Unary(np.arcsinh),
    "Acosh": Unary(np.arccosh, length=inside_one),
    "Atanh": Unary(np.arctanh, length=inside_one),
    "Floor": Unary(constant_like(np.floor), np.floor),
    "Ceil": Unary(constant_like(np.ceil), np.ceil),
    "Round": Unary(constant_like(np.round), np.round),
    "Sign": Unary(constant_like(np.sign), np.sign),
}
UNARY_OPS = set(PLAIN_UNARY) | {
    *("LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "HardSigmoid", "Shrink"),
    *("Gelu", "Swish", "Clip", "Mod"),
}


# ------------------------------------------------------------------------------------------------------------
# Forward
# ------------------------------------------------------------------------------------------------------------
def reference_op(node: Node, values: Sequence[Array | None]) -> list[Array]:
    """Run one node by onnx's own reference evaluator: integers, shapes and odd movements."""
    if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.proto.attribute):
        raise NotImplementedError(f"the oracle does not run bodies: {node}")
    if node.evaluator is None:
        proto = onnx.NodeProto()
        proto.CopyFrom(node.proto)
        del proto.input[:], proto.output[:]
        proto.input.extend(f"i{k}" if name else "" for k, name in enumerate(node.inputs))
        proto.output.extend(f"o{k}" if name else "" for k, name in enumerate(node.outputs))
        ins = [helper.make_tensor_value_info(name, 0, None) for name in proto.input if name]
        outs = [helper.make_tensor_value_info(name, 0, None) for name in proto.output if name]
        graph = helper.make_graph([proto], "one", ins, outs)
        imports = [helper.make_opsetid(node.proto.domain, node.opset)]
        node.evaluator = ReferenceEvaluator(helper.make_model(graph, opset_imports=imports))
    feeds = {f"i{k}": v for k, v in enumerate(values) if v is not None}
    results = iter(node.evaluator.run(None, feeds))
    return [widen(next(results)) if name else np.zeros(0) for name in node.outputs]


def axes_of(node: Node, values: Sequence[Array | None], rank: int) -> tuple[int, ...]:
    """Axes of a reduction, by attribute or by input, non-negative."""
    axes: Any = node.attrs.get("axes")
    if axes is None and len(values) > 1 and values[1] is not None:
        axes = values[1].tolist()
    if axes is None or len(axes) == 0:
        axes = () if node.attrs.get("noop_with_empty_axes", 0) else range(rank)
    return tuple(sorted(int(axis) % rank for axis in axes))


def reduction(node: Node, values: Sequence[Array | None]) -> Array:
    x = cast(Array, values[0])
    keep = bool(node.attr("keepdims", 1))
    axes = axes_of(node, values, x.ndim)

    def by(g: Callable[..., Array], v: Array) -> Array:
        return np.asarray(g(v, axis=axes, keepdims=keep))

    op = node.op
    if op == "ReduceLogSumExp":
        return np.asarray(log_sum_exp(x.astype(LD), axes, keep), dtype=np.float64)
    table: dict[str, Callable[[], Array]] = {
        "ReduceSum": lambda: by(np.sum, x),
        "ReduceMean": lambda: by(np.mean, x),
        "ReduceMax": lambda: by(np.max, x),
        "ReduceMin": lambda: by(np.min, x),
        "ReduceProd": lambda: by(np.prod, x),
        "ReduceL1": lambda: by(np.sum, np.abs(x)),
        "ReduceL2": lambda: np.sqrt(by(np.sum, x * x)),
        "ReduceSumSquare": lambda: by(np.sum, x * x),
        "ReduceLogSum": lambda: np.log(by(np.sum, x)),
    }
    return table[op]()


def log_sum_exp(x: Array, axes: tuple[int, ...], keep: bool = True) -> Array:
    top = np.max(x, axis=axes, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        out = top + np.log(np.sum(np.exp(x - top), axis=axes, keepdims=True))
    return cast(Array, out if keep else np.squeeze(out, axis=axes))


def softmax_axes(node: Node, rank: int) -> tuple[int, ...]:
    """Before opset 13 everything from `axis` on is one axis."""
    axis = int(node.attr("axis")) % rank
    return (axis,) if node.opset >= 13 else tuple(range(axis, rank))


@dataclass
class Window:
    """Geometry of a sliding window: sizes per spatial axis; `before`/`after` are the explicit paddings."""

    kernel: list[int]
    stride: list[int]
    dilation: list[int]
    before: list[int]
    after: list[int]
    out: list[int]

    @property
    def taps(self) -> Iterable[tuple[int, ...]]:
        return itertools.product(*map(range, self.kernel))

    def last_slice(self, tap: Sequence[int]) -> tuple[Any, ...]:
        """In the padded input: what this tap sees at all output positions."""
        return tuple(
            slice(t * d, t * d + (o - 1) * s + 1, s)
            for t, d, o, s in zip(tap, self.dilation, self.out, self.stride, strict=True)
        )


def window_of(node: Node, spatial: Sequence[int], kernel: Sequence[int]) -> Window:
    """Output sizes and paddings of Conv and the pools, with auto_pad and ceil_mode."""
    n = len(spatial)
    stride = list(node.attrs.get("strides", [1] * n))
    dilation = list(node.attrs.get("dilations", [1] * n))
    pads = list(node.attrs.get("pads", [0] * 2 * n))
    auto = node.attrs.get("auto_pad", "NOTSET")
    before, after, out = [], [], []
    for k in range(n):
        reach = (kernel[k] - 1) * dilation[k] + 1
        b, e = pads[k], pads[k + n]
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            o = math.ceil(spatial[k] / stride[k])
            total = (o - 1) * stride[k] + reach - spatial[k]
            if node.op.endswith("Pool") and (total < 0 or reach != kernel[k]):
                # ONNX Runtime 1.31 shifts such windows (kernel < stride) and pads for the undilated kernel.
                raise NotImplementedError(f"the specification and ONNX Runtime differ on {node}")
            total = max(0, total)
            b = total // 2 if auto == "SAME_UPPER" else total - total // 2
            e = total - b
        elif auto == "VALID":
            b = e = 0
            o = (spatial[k] - reach) // stride[k] + 1
        else:
            room = (spatial[k] + b + e - reach) / stride[k]
            o = (math.ceil(room) if node.attrs.get("ceil_mode", 0) else math.floor(room)) + 1
            if node.attrs.get("ceil_mode", 0) and (o - 1) * stride[k] >= spatial[k] + b:
                o -= 1  # a window may not start behind the input
        if o < 1:
            raise ValueError(f"the window is larger than the padded input: {node}")
        before.append(b)
        after.append(e)
        out.append(o)
    return Window(list(kernel), stride, dilation, before, after, out)


def pool_windows(w: Window, spatial: Sequence[int]) -> list[tuple[list[int], int]]:
    """Per output position: the flat spatial indices seen, and the number of places up to the padding."""
    strides_flat = [int(np.prod(spatial[k + 1 :])) for k in range(len(spatial))]
    windows = []
    for position in itertools.product(*map(range, w.out)):
        seen, places = [], 0
        for tap in w.taps:
            at = [
                o * s - b + t * d for o, s, b, t, d in zip(position, w.stride, w.before, tap, w.dilation, strict=True)
            ]
            if all(a < n + e for a, n, e in zip(at, spatial, w.after, strict=True)):
                places += 1
            if all(0 <= a < n for a, n in zip(at, spatial, strict=True)):
                seen.append(sum(a * f for a, f in zip(at, strides_flat, strict=True)))
        windows.append((seen, places))
    return windows


def average_pool_terms(node: Node, x: Array) -> tuple[Window, list[tuple[list[int], int]]]:
    """The windows of AveragePool with their divisors."""
    spatial = x.shape[2:]
    w = window_of(node, spatial, node.attrs["kernel_shape"])
    include = node.attr("count_include_pad", 0)
    return w, [(seen, places if include else len(seen)) for seen, places in pool_windows(w, spatial)]


def average_pool(node: Node, x: Array) -> Array:
    w, terms = average_pool_terms(node, x)
    flat = x.reshape(*x.shape[:2], -1)
    y = np.stack([flat[:, :, seen].sum(axis=-1) / divisor for seen, divisor in terms], axis=-1)
    return y.reshape(*x.shape[:2], *w.out)


def max_pool(node: Node, x: Array) -> list[Array]:
    spatial = x.shape[2:]
    w = window_of(node, spatial, node.attrs["kernel_shape"])
    flat = x.reshape(-1, int(np.prod(spatial)))
    columns = [np.asarray([seen[k] for k in np.argmax(flat[:, seen], axis=1)]) for seen, _ in pool_windows(w, spatial)]
    where = np.stack(columns, axis=-1)
    y = np.take_along_axis(flat, where, axis=1).reshape(*x.shape[:2], *w.out)
    if node.attrs.get("storage_order", 0):
        where = np.ravel_multi_index(np.unravel_index(where, spatial), spatial, order="F")
    index = where + np.arange(len(flat))[:, None] * flat.shape[1]
    return [y, index.reshape(y.shape).astype(np.int64)][: len(node.outputs)]


def pad_spatial(x: Array, before: Sequence[int], after: Sequence[int]) -> Array:
    """Zero padding of the spatial axes; a negative padding cuts."""
    widths = [(0, 0), (0, 0), *((max(b, 0), max(e, 0)) for b, e in zip(before, after, strict=True))]
    cut: list[Any] = [slice(max(-b, 0), None if e >= 0 else e) for b, e in zip(before, after, strict=True)]
    return np.pad(x, widths)[(slice(None), slice(None), *cut)]


def conv_parts(node: Node, x_shape: tuple[int, ...], w_shape: tuple[int, ...]) -> tuple[Window, int]:
    return window_of(node, x_shape[2:], w_shape[2:]), int(node.attr("group", 1))


def conv(node: Node, x: Array, weight: Array) -> Array:
    """Convolution without bias: a sum over kernel taps and groups."""
    w, groups = conv_parts(node, x.shape, weight.shape)
    padded = pad_spatial(x, w.before, w.after)
    out_c, in_c = weight.shape[0] // groups, weight.shape[1]
    y = np.zeros((x.shape[0], weight.shape[0], *w.out))
    for tap in w.taps:
        seen = padded[(slice(None), slice(None), *w.last_slice(tap))]
        for g in range(groups):
            place: tuple[Any, ...] = (slice(g * out_c, (g + 1) * out_c), slice(None), *tap)
            block = weight[place]
            y[:, g * out_c : (g + 1) * out_c] += np.einsum("oi,ni...->no...", block, seen[:, g * in_c : (g + 1) * in_c])
    return y


def conv_adjoint(node: Node, g_y: Array, x: Array, weight: Array) -> tuple[Array, Array]:
    """Adjoints of `conv` in x and W, tap by tap: each product of the sum is sent back where it came from."""
    w, groups = conv_parts(node, x.shape, weight.shape)
    padded = pad_spatial(x, w.before, w.after)
    g_padded, g_weight = np.zeros(padded.shape), np.zeros(weight.shape)
    out_c, in_c = weight.shape[0] // groups, weight.shape[1]
    for tap in w.taps:
        for g in range(groups):
            outs, ins = slice(g * out_c, (g + 1) * out_c), slice(g * in_c, (g + 1) * in_c)
            place: tuple[Any, ...] = (slice(None), ins, *w.last_slice(tap))
            block: tuple[Any, ...] = (outs, slice(None), *tap)
            g_padded[place] += np.einsum("oi,no...->ni...", weight[block], g_y[:, outs])
            k = g_y[:, outs].reshape(g_y.shape[0], out_c, -1)
            g_weight[block] = np.einsum("nok,nik->oi", k, padded[place].reshape(x.shape[0], in_c, -1))
    if any(p < 0 for p in (*w.before, *w.after)):
        raise NotImplementedError(f"negative pads: {node}")
    inner: list[Any] = [slice(b, b + n) for b, n in zip(w.before, x.shape[2:], strict=True)]
    return g_padded[(slice(None), slice(None), *inner)], g_weight


@dataclass
class Deconvolution:
    """ConvTranspose: tap t of input position i lands on `i * stride + t * dilation - before`."""

    stride: list[int]
    dilation: list[int]
    before: list[int]
    out: list[int]
    groups: int

    def links(self, spatial: Sequence[int], kernel: Sequence[int]) -> Iterable[tuple[tuple[int, ...], Any, Any]]:
        """(tap, input slices, output slices) of everything that lands inside the output."""
        for tap in itertools.product(*map(range, kernel)):
            ins, outs = [], []
            for k, t in enumerate(tap):
                hits = [
                    (i, i * self.stride[k] + t * self.dilation[k] - self.before[k])
                    for i in range(spatial[k])
                    if 0 <= i * self.stride[k] + t * self.dilation[k] - self.before[k] < self.out[k]
                ]
                ins.append([i for i, _ in hits])
                outs.append([o for _, o in hits])
            if all(ins):
                yield tap, np.ix_(*ins), np.ix_(*outs)


def deconvolution_of(node: Node, spatial: Sequence[int], kernel: Sequence[int]) -> Deconvolution:
    n = len(spatial)
    stride = list(node.attrs.get("strides", [1] * n))
    dilation = list(node.attrs.get("dilations", [1] * n))
    extra = list(node.attrs.get("output_padding", [0] * n))
    pads = list(node.attrs.get("pads", [0] * 2 * n))
    auto = node.attrs.get("auto_pad", "NOTSET")
    shape = node.attrs.get("output_shape")
    if shape is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        shape = [i * s for i, s in zip(spatial, stride, strict=True)]
    before, out = [], []
    for k in range(n):
        full = stride[k] * (spatial[k] - 1) + extra[k] + (kernel[k] - 1) * dilation[k] + 1
        if shape is not None:
            total = max(0, full - shape[-n:][k])
            before.append(total // 2 if auto == "SAME_UPPER" else total - total // 2)
            out.append(shape[-n:][k])
        else:
            ends = (0, 0) if auto == "VALID" else (pads[k], pads[k + n])
            before.append(ends[0])
            out.append(full - sum(ends))
    return Deconvolution(stride, dilation, before, out, int(node.attr("group", 1)))


def conv_transpose(node: Node, x: Array, weight: Array) -> Array:
    d = deconvolution_of(node, x.shape[2:], weight.shape[2:])
    in_c, out_c = x.shape[1] // d.groups, weight.shape[1]
    y = np.zeros((x.shape[0], out_c * d.groups, *d.out))
    for tap, ins, outs in d.links(x.shape[2:], weight.shape[2:]):
        for n, g, i, o in itertools.product(range(len(x)), range(d.groups), range(in_c), range(out_c)):
            y[n, g * out_c + o][outs] += weight[(g * in_c + i, o, *tap)] * x[n, g * in_c + i][ins]
    return y


def conv_transpose_adjoint(node: Node, g_y: Array, x: Array, weight: Array) -> tuple[Array, Array]:
    d = deconvolution_of(node, x.shape[2:], weight.shape[2:])
    in_c, out_c = x.shape[1] // d.groups, weight.shape[1]
    g_x, g_weight = np.zeros(x.shape), np.zeros(weight.shape)
    for tap, ins, outs in d.links(x.shape[2:], weight.shape[2:]):
        for n, g, i, o in itertools.product(range(len(x)), range(d.groups), range(in_c), range(out_c)):
            arrived = g_y[n, g * out_c + o][outs]
            g_x[n, g * in_c + i][ins] += weight[(g * in_c + i, o, *tap)] * arrived
            g_weight[(g * in_c + i, o, *tap)] += np.sum(arrived * x[n, g * in_c + i][ins])
    return g_x, g_weight


def per_channel(v: Array, rank: int) -> Array:
    return np.reshape(v, (1, -1) + (1,) * (rank - 2))


def batch_norm(node: Node, values: Sequence[Array | None]) -> Array:
    if node.attrs.get("training_mode", 0):
        raise NotImplementedError(f"training mode: {node}")
    x, scale, bias, mean, var = (cast(Array, v) for v in values[:5])
    scale, bias, mean, var = (per_channel(v, x.ndim) for v in (scale, bias, mean, var))
    return np.asarray((x - mean) / np.sqrt(var + node.attr("epsilon")) * scale + bias)


def gemm(node: Node, a: Array, b: Array) -> Array:
    """alpha * A' B' without C."""
    a, b = (a.T if node.attr("transA") else a), (b.T if node.attr("transB") else b)
    return np.asarray(node.attr("alpha") * (a @ b))


@dataclass
class Normal:
    """A normalisation seen as rows of D elements: `y = gamma * (x - mean) / sqrt(var + eps) + beta`."""

    rows: int
    gamma: Array
    beta: Array
    eps: float
    centred: bool
    gamma_shape: tuple[int, ...]  # as broadcast against x


def normal_of(node: Node, values: Sequence[Array | None]) -> Normal:
    x, gamma = cast(Array, values[0]), cast(Array, values[1])
    beta = values[2] if len(values) > 2 and values[2] is not None else np.zeros(())
    eps = float(node.attr("epsilon"))
    if node.op in ("LayerNormalization", "RMSNormalization"):
        axis = int(node.attr("axis")) % x.ndim
        centred = node.op == "LayerNormalization"
        return Normal(int(np.prod(x.shape[:axis])), gamma, beta, eps, centred, gamma.shape)
    rows = x.shape[0] * x.shape[1]
    if node.op == "GroupNormalization":
        groups = int(node.attrs["num_groups"])
        rows = x.shape[0] * groups
        if node.opset < 21:  # one scale per group
            gamma, beta = (np.repeat(v, x.shape[1] // groups) for v in (gamma, beta))
    gamma, beta = per_channel(gamma, x.ndim), per_channel(beta, x.ndim)
    return Normal(rows, gamma, beta, eps, True, gamma.shape)


def inverse_root() -> Unary:
    return Unary(power(LD(-0.5)), length=size)  # type: ignore[arg-type]


def normal_stages(n: Normal, x: Array) -> tuple[Array, Array, Array]:
    """(a, w, v): the centred rows, var + eps, its -1/2 power; longdouble."""
    a = x.astype(LD).reshape(n.rows, -1)
    if n.centred:
        a = a - a.mean(axis=1, keepdims=True)
    w = (a * a).mean(axis=1, keepdims=True) + LD(n.eps)
    return a, w, inverse_root().f(w)


def normalise(node: Node, values: Sequence[Array | None]) -> list[Array]:
    x = cast(Array, values[0])
    n = normal_of(node, values)
    a, _, v = normal_stages(n, x)
    y = (a * v).reshape(x.shape) * n.gamma + n.beta
    mean = x.reshape(n.rows, -1).mean(axis=1)
    axis = int(node.attr("axis", 0) or 0) % x.ndim
    small = x.shape[:axis] + (1,) * (x.ndim - axis)
    outs = [np.asarray(y, dtype=np.float64)]
    if len(node.outputs) > 1:
        outs += [mean.reshape(small), np.asarray(v, dtype=np.float64).reshape(small)]
    return outs[: len(node.outputs)]


def forward_node(node: Node, values: Sequence[Array | None]) -> list[Array]:
    """The operator's value(s) in float64."""
    op = node.op
    first = next((v for v in values if v is not None), None)
    if op in FORWARD and node.proto.domain in DOMAINS:
        return FORWARD[op](node, values)
    if op == "Scaler" and node.proto.domain == "ai.onnx.ml" and first is not None:
        return [(first - np.asarray(node.attrs["offset"])) * np.asarray(node.attrs["scale"])]
    if node.proto.domain not in ("", "ai.onnx"):
        raise NotImplementedError(f"the oracle does not know {node}")
    if op in ("Cast", "CastLike") and first is not None:
        code = node.attrs.get("to")
        to_float = code in FLOAT_CODES if op == "Cast" else is_float(values[1])
        if to_float:
            return [first.astype(np.float64)]
    if op == "Where":
        return [np.where(cast(Array, values[0]), cast(Array, values[1]), cast(Array, values[2]))]
    if op == "Identity" and first is not None:
        return [first]
    if op == "Dropout" and first is not None:
        if len(values) > 2 and values[2] is not None and bool(values[2]):
            raise NotImplementedError(f"training mode: {node}")
        return [first, np.ones(first.shape, dtype=bool)][: len(node.outputs)]
    if first is None or not is_float(first) or op in MOVEMENT or op in PROBED_BY_REFERENCE:
        return reference_op(node, values)
    v = [cast(Array, value) for value in values]
    with np.errstate(all="ignore"):
        if op in UNARY_OPS:
            unary = unary_of(node, values)
            assert unary is not None
            return [np.asarray(unary.f(first.astype(LD)), dtype=np.float64)]
        if op == "Pow":
            return [np.power(v[0], v[1].astype(np.float64))]
        if op in ("Add", "Sub", "Mul", "Div"):
            return [{"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}[op](v[0], v[1])]
        if op in ("Sum", "Mean", "Max", "Min"):
            table = {"Sum": np.add, "Mean": np.add, "Max": np.maximum, "Min": np.minimum}
            total = v[0] + 0
            for other in v[1:]:
                total = table[op](total, other)
            return [np.asarray(total / len(v) if op == "Mean" else total)]
        if op in ("Softmax", "LogSoftmax"):
            z = first.astype(LD)
            logs = z - log_sum_exp(z, softmax_axes(node, z.ndim))
            return [np.asarray(np.exp(logs) if op == "Softmax" else logs, dtype=np.float64)]
        if op.startswith("Reduce"):
            return [reduction(node, values)]
        if op in ("GlobalAveragePool", "GlobalMaxPool"):
            g = np.mean if op == "GlobalAveragePool" else np.max
            return [np.asarray(g(first, axis=tuple(range(2, first.ndim)), keepdims=True))]
        if op == "AveragePool":
            return [average_pool(node, first)]
        if op == "MaxPool":
            return max_pool(node, first)
        if op in ("Conv", "ConvTranspose"):
            y = (conv if op == "Conv" else conv_transpose)(node, v[0], v[1])
            return [y + per_channel(v[2], y.ndim) if len(v) > 2 and v[2] is not None else y]
        if op == "MatMul":
            return [np.asarray(v[0] @ v[1])]
        if op == "Gemm":
            y = gemm(node, v[0], v[1])
            return [y + node.attr("beta") * v[2] if len(v) > 2 and v[2] is not None else y]
        if op == "Einsum":
            return [np.asarray(np.einsum(einsum_equation(node), *v))]
        if op == "BatchNormalization":
            return [batch_norm(node, values)]
        if op in NORMALISATIONS:
            return normalise(node, values)
    return reference_op(node, values)


def einsum_equation(node: Node) -> str:
    return str(node.attrs["equation"]).replace(" ", "")


def run(nodes: Sequence[Node], known: Mapping[str, Array]) -> dict[str, Array]:
    """Forward through `nodes`; tensors that are already known are not computed."""
    values = dict(known)
    for node in nodes:
        if all(name in values for name in node.outputs if name):
            continue
        outs = forward_node(node, [values[name] if name else None for name in node.inputs])
        for name, value in zip(node.outputs, outs, strict=False):
            if name:
                values.setdefault(name, value)
    return values


def forward(model: onnx.ModelProto, feeds: Mapping[str, Array], output: str | None = None) -> dict[str, Array]:
    """Every tensor's float64 value (of those that `output` needs, where it is given)."""
    graph = load(model)
    known = {**graph.constants, **{name: widen(value) for name, value in feeds.items()}}
    return run(graph.nodes if output is None else graph.ancestors(output), known)


# ------------------------------------------------------------------------------------------------------------
# Backward: what a rule sees, and the rules
# ------------------------------------------------------------------------------------------------------------
@dataclass
class Site:
    """One node: inputs and outputs at x and at r, the outputs' multipliers, which inputs carry importance."""

    node: Node
    x: list[Array | None]
    r: list[Array | None]
    y: list[Array]
    y0: list[Array]
    m: list[Array]
    active: list[bool]
    ties: Ties

    def xr(self, k: int = 0) -> tuple[Array, Array]:
        return cast(Array, self.x[k]), cast(Array, self.r[k])

    def middle(self, k: int) -> Array:
        """The midpoint (x + r) / 2 of input k (METHOD 5)."""
        x, r = self.xr(k)
        return np.asarray(np.where(x == r, x, (x + r) / 2))

    def only(self, *positions: int) -> None:
        """Refuse importance through any other input."""
        for k, active in enumerate(self.active):
            if active and k not in positions:
                raise NotImplementedError(f"importance through input {k} of {self.node}")

    def first_output_only(self) -> None:
        if any(np.any(m != 0) for m in self.m[1:]):
            raise NotImplementedError(f"importance through a second output of {self.node}")


Multipliers = list[Array | None]
Rule = Callable[[Site], Multipliers]


def difference(x: Array, r: Array) -> Array:
    """x - r, and 0 where both are the same infinity."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(x == r, 0.0, x - r))


def contribution(m: Array, x: Array, r: Array) -> Array:
    """c = m * (x - r) (LIFTPAD eq. 3), and 0 where either is 0, whatever the other (a masked NaN)."""
    d = difference(x, r)
    with np.errstate(all="ignore"):
        return np.where((d == 0) | (m == 0), 0.0, m * d)


def unbroadcast(g: Array, shape: Sequence[int]) -> Array:
    """Sum the multipliers of all copies that broadcasting made."""
    g = np.asarray(g, dtype=np.float64)
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    ones = tuple(k for k, n in enumerate(shape) if n == 1 and g.shape[k] != 1)
    return np.asarray(g.sum(axis=ones, keepdims=True)).reshape(tuple(shape))


def probe(f: Callable[[Array], list[Array]], shape: tuple[int, ...], m: Sequence[Array]) -> Array:
    """The adjoint of an affine f, column by column: `m_x[i] = <m_y, f(e_i) - f(0)>` (METHOD 2)."""
    n = int(np.prod(shape))
    if n > 200_000:
        raise NotImplementedError(f"{n} columns are too many for the oracle")
    base = f(np.zeros(shape))
    result = np.zeros(n)
    for i in range(n):
        unit = np.zeros(n)
        unit[i] = 1
        column = f(unit.reshape(shape))
        result[i] = sum(float(np.sum(g * (c - b))) for g, c, b in zip(m, column, base, strict=False) if g.size)
    return result.reshape(shape)


def rule_probe(s: Site) -> Multipliers:
    """An operator that is affine in its first input (METHOD 2)."""
    s.only(0)
    x = s.xr()[0]

    def f(v: Array) -> list[Array]:
        return forward_node(s.node, [v, *s.x[1:]])

    return [probe(f, x.shape, s.m), *[None] * (len(s.x) - 1)]


def rule_movement(s: Site) -> Multipliers:
    """Movement (METHOD 2): run the operator on numbered elements and send each multiplier to its number."""
    data = MOVEMENT[s.node.op]
    positions = range(len(s.x)) if data is None else data
    s.only(*positions, *TYPE_ONLY.get(s.node.op, ()))
    if s.node.attrs.get("reduction", "none") == "add":
        return rule_scatter_add(s)
    if s.node.attrs.get("reduction", "none") != "none":
        raise NotImplementedError(f"reduction in {s.node}")
    numbered, start, starts = list(s.x), 1, {}
    for k in positions:
        value = s.x[k]
        if value is not None:
            numbered[k] = np.arange(start, start + value.size, dtype=np.float64).reshape(value.shape)
            starts[k], start = start, start + value.size
    node = s.node
    if node.op == "Pad":  # pad with number 0, which is nobody's
        node = Node(node.proto, node.opset, {k: v for k, v in node.attrs.items() if k != "value"})
        if len(numbered) > 2:
            numbered[2] = None if numbered[2] is None else np.zeros_like(numbered[2])
        if "value" in s.node.attrs:
            raise NotImplementedError("Pad before opset 11 with a value")
    total = np.zeros(start)
    for number, m in zip(forward_node(node, numbered), s.m, strict=False):
        if m.size:
            np.add.at(total, number.astype(np.int64).ravel(), m.ravel())
    result: Multipliers = [None] * len(s.x)
    for k, begin in starts.items():
        if s.active[k]:
            value = cast(Array, s.x[k])
            result[k] = total[begin : begin + value.size].reshape(value.shape)
    return result


def rule_scatter_add(s: Site) -> Multipliers:
    """ScatterElements and ScatterND that add are linear in (data, updates) (METHOD 2)."""
    result: Multipliers = [None] * len(s.x)
    for k in (0, 2):
        if s.active[k]:
            others = [np.zeros_like(v) if j in (0, 2) and v is not None else v for j, v in enumerate(s.x)]

            def f(v: Array, k: int = k, others: list[Array | None] = others) -> list[Array]:
                return forward_node(s.node, [*others[:k], v, *others[k + 1 :]])

            result[k] = probe(f, s.xr(k)[0].shape, s.m)
    return result


def rule_unary(s: Site) -> Multipliers:
    """Rescale (METHOD 3, DeepLIFT 'Rescale rule', LIFTPAD eq. 15)."""
    s.only(0)
    unary = unary_of(s.node, s.x)
    assert unary is not None
    return [np.asarray(s.m[0] * secant(unary, *s.xr()), dtype=np.float64), *[None] * (len(s.x) - 1)]


def rule_round(s: Site) -> Multipliers:
    """Straight through, and what is missing in a row is added to what its elements contribute, in proportion to it."""
    x, r = s.xr()
    if not x.ndim:
        return rule_unary(s)
    m = np.array(s.m[0], dtype=np.float64)
    for row in range(len(m)):
        through = m[row] * (x[row] - r[row])
        missing = (m[row] * (s.y[0][row] - s.y0[0][row])).sum() - through.sum()
        if np.any(through != 0):
            share = missing * np.abs(through) / np.abs(through).sum()
            m[row] += np.divide(share, x[row] - r[row], out=np.zeros_like(share), where=through != 0)
    return [m]


def exponential(rate: Array) -> Unary:
    """exp(rate * z): base^z for rate = log(base)."""
    return Unary(lambda z: np.exp(z * rate), length=lambda _: 1 / np.maximum(np.abs(rate), LD(1e-3)))


def rule_pow(s: Site) -> Multipliers:
    """Pow: one active operand is Rescale; two are the two-player Shapley value (METHOD 4, last item)."""
    (a, a0), (b, b0) = s.xr(0), s.xr(1)
    bl, bl0 = b.astype(LD), b0.astype(LD)
    result: Multipliers = [None, None]
    if s.active[0]:
        factors = [secant(Unary(power(np.broadcast_to(e, s.y[0].shape)), length=size), a, a0) for e in (bl, bl0)]
        result[0] = unbroadcast(s.m[0] * (factors[0] + factors[1]) / 2, a.shape)
    if s.active[1]:
        logs = [np.log(np.broadcast_to(v, s.y[0].shape).astype(LD)) for v in (a, a0)]
        by_exponent = [secant(exponential(g), b, b0) for g in logs]
        result[1] = unbroadcast(s.m[0] * (by_exponent[0] + by_exponent[1]) / 2, b.shape)
    return result


def rule_sum(s: Site) -> Multipliers:
    """Add, Sub, Sum, Mean: coefficients 1, -1 or 1/n (METHOD 2)."""
    n = len(s.x) if s.node.op == "Mean" else 1
    signs = [-1.0 if s.node.op == "Sub" and k == 1 else 1.0 for k in range(len(s.x))]
    return [
        unbroadcast(signs[k] * s.m[0] / n, s.xr(k)[0].shape) if active else None for k, active in enumerate(s.active)
    ]


def rule_mul(s: Site) -> Multipliers:
    """Midpoint rule of a product, `m_a = (b + b0)/2` (METHOD 5)."""
    return [
        unbroadcast(s.m[0] * s.middle(1 - k), s.xr(k)[0].shape) if active else None for k, active in enumerate(s.active)
    ]


def rule_div(s: Site) -> Multipliers:
    """Quotient by `quotient_weights` (METHOD 5)."""
    (a, a0), (b, b0) = s.xr(0), s.xr(1)
    return [
        unbroadcast(s.m[0] * weight, s.xr(k)[0].shape) if s.active[k] else None
        for k, weight in enumerate(quotient_weights(a, a0, b, b0))
    ]


def quotient_weights(a: Any, a0: Any, b: Any, b0: Any) -> tuple[Any, Any]:
    """What da and db are multiplied with in d(a/b).

    Where b keeps its sign the product y b = a by midpoints, (b + b0)/2 dy + (y + y0)/2 db = da, solved for dy; else the
    Shapley values, `(1/b + 1/b0)/2` and `-(a + a0)/(2 b b0)`.
    """
    keeps = np.sign(b) * np.sign(b0) > 0
    with np.errstate(all="ignore"):
        total = np.where(keeps, b + b0, 1)
        w_a = np.where(keeps, 2 / total, (1 / b + 1 / b0) / 2)
        w_b = np.where(keeps, -(a / b + a0 / b0) / total, -(a + a0) / 2 / b / b0)
    return w_a, w_b


def rule_matmul(s: Site) -> Multipliers:
    """Matrix product by midpoints (METHOD 5), one matrix of the broadcast stack after the other."""
    (a, b), m = (s.middle(0), s.middle(1)), s.m[0]
    a2 = a[None, :] if a.ndim == 1 else a
    b2 = b[:, None] if b.ndim == 1 else b
    stack = np.broadcast_shapes(a2.shape[:-2], b2.shape[:-2])
    m2 = m.reshape(*stack, a2.shape[-2], b2.shape[-1])
    g_a, g_b = np.zeros(a2.shape), np.zeros(b2.shape)

    def member(index: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
        tail = index[len(index) - (len(shape) - 2) :]
        return tuple(0 if n == 1 else i for i, n in zip(tail, shape[:-2], strict=True))

    for index in np.ndindex(*stack):
        i, j = member(index, a2.shape), member(index, b2.shape)
        g_a[i] += m2[index] @ b2[j].T
        g_b[j] += a2[i].T @ m2[index]
    return [g_a.reshape(a.shape) if s.active[0] else None, g_b.reshape(b.shape) if s.active[1] else None]


def rule_gemm(s: Site) -> Multipliers:
    """Gemm = alpha A'B' + beta C: a product by midpoints and an affine term, entry by entry of the sums."""
    node, m = s.node, s.m[0]
    a = s.middle(0).T if node.attr("transA") else s.middle(0)
    b = s.middle(1).T if node.attr("transB") else s.middle(1)
    alpha = float(node.attr("alpha"))
    g_a = alpha * np.stack([np.sum(b * row, axis=1) for row in m]) if len(m) else np.zeros(a.shape)
    g_b = alpha * np.stack([a.T @ column for column in m.T], axis=1)
    result: Multipliers = [None] * len(s.x)
    if s.active[0]:
        result[0] = g_a.T if node.attr("transA") else g_a
    if s.active[1]:
        result[1] = g_b.T if node.attr("transB") else g_b
    if len(s.x) > 2 and s.active[2]:
        result[2] = unbroadcast(float(node.attr("beta")) * m, s.xr(2)[0].shape)
    return result


def rule_conv(s: Site) -> Multipliers:
    """Conv and ConvTranspose, bilinear in (x, W) by midpoints (METHOD 2 and 5)."""
    adjoint = conv_adjoint if s.node.op == "Conv" else conv_transpose_adjoint
    g_x, g_w = adjoint(s.node, s.m[0], s.middle(0), s.middle(1))
    bias = s.m[0].sum(axis=(0, *range(2, s.m[0].ndim)))
    return [g if active else None for g, active in zip((g_x, g_w, bias), s.active, strict=False)]


def rule_einsum(s: Site) -> Multipliers:
    """Einsum of at most two changing operands: probe it in one with the midpoint of the other (METHOD 5)."""
    if len(s.x) > 2:
        raise NotImplementedError(f"Einsum of {len(s.x)} operands")
    result: Multipliers = [None] * len(s.x)
    for k, active in enumerate(s.active):
        if active:
            others = [s.middle(j) for j in range(len(s.x))]

            def f(v: Array, k: int = k, others: list[Array] = others) -> list[Array]:
                return [np.asarray(np.einsum(einsum_equation(s.node), *others[:k], v, *others[k + 1 :]))]

            result[k] = probe(f, others[k].shape, s.m)
    return result


def rule_average_pool(s: Site) -> Multipliers:
    """AveragePool: every element of a window gets its m_y / divisor (METHOD 2)."""
    x = s.xr()[0]
    _, terms = average_pool_terms(s.node, x)
    g = np.zeros((*x.shape[:2], int(np.prod(x.shape[2:]))))
    m = s.m[0].reshape(*x.shape[:2], -1)
    for k, (seen, divisor) in enumerate(terms):
        for place in seen:
            g[:, :, place] += m[:, :, k] / divisor
    return [g.reshape(x.shape)]


def rule_batch_norm(s: Site) -> Multipliers:
    """BatchNormalization at inference is diagonal: f(1) - f(0) is its slope (METHOD 2)."""
    s.only(0)
    x = s.xr()[0]
    slope = batch_norm(s.node, [np.ones(x.shape), *s.x[1:]]) - batch_norm(s.node, [np.zeros(x.shape), *s.x[1:]])
    return [s.m[0] * slope, *[None] * (len(s.x) - 1)]


def share_maximum(xs: Sequence[float], rs: Sequence[float], m: float, ties: Ties) -> dict[int, float]:
    """The maximum of one window (METHOD 4): {place: multiplier}.

    With k = max(y, y0): (k - y0) goes to the argmax i of x and (y - k) to the argmax j of r, each divided by
    its dx. Of the two shares one is 0, so there is one winner. ties: "shared" takes j = i where r is maximal
    there too, "first" the first index always, "argmax_x" is the original implementation: m goes to i as it
    is, complete or not.
    """
    i = max(range(len(xs)), key=lambda p: (xs[p], -p))
    j = max(range(len(rs)), key=lambda p: (rs[p], -p))
    y, y0 = xs[i], rs[j]
    if ties == "argmax_x":
        return {i: m}
    if ties == "shared" and rs[i] == y0:
        j = i
    if i == j:
        return {i: m}  # dx = dy, and in the limit dx = 0 the factor is 1 too
    k = max(y, y0)
    shares = {}
    if k - y0 != 0:
        shares[i] = m * (k - y0) / (xs[i] - rs[i])
    if y - k != 0:
        shares[j] = m * (y - k) / (xs[j] - rs[j])
    return shares


def rule_max_operands(s: Site) -> Multipliers:
    """Max and Min of n operands; min(x) = -max(-x) (METHOD 4)."""
    sign = -1.0 if s.node.op == "Min" else 1.0
    shape = s.y[0].shape
    xs = [np.broadcast_to(sign * s.xr(k)[0], shape) for k in range(len(s.x))]
    rs = [np.broadcast_to(sign * s.xr(k)[1], shape) for k in range(len(s.x))]
    g = [np.zeros(shape) for _ in s.x]
    for at in np.ndindex(*shape):
        won = share_maximum([float(v[at]) for v in xs], [float(v[at]) for v in rs], float(s.m[0][at]), s.ties)
        for place, m in won.items():
            g[place][at] += m
    return [unbroadcast(g[k], s.xr(k)[0].shape) if active else None for k, active in enumerate(s.active)]


def maximum_of_windows(s: Site, windows: Iterable[Sequence[int]], sign: float = 1.0) -> Array:
    """Share the flat output multipliers over windows of flat input indices, accumulating (METHOD 4)."""
    x, r = (sign * v.ravel() for v in s.xr())
    g = np.zeros(x.size)
    for m, window in zip(s.m[0].ravel(), windows, strict=True):
        won = share_maximum([float(x[k]) for k in window], [float(r[k]) for k in window], float(m), s.ties)
        for place, share in won.items():
            g[window[place]] += share
    return g.reshape(s.xr()[0].shape)


def rule_max_pool(s: Site) -> Multipliers:
    """MaxPool: the maximum of windows that may overlap (METHOD 4)."""
    x = s.xr()[0]
    spatial = x.shape[2:]
    area = int(np.prod(spatial))
    seen = [window for window, _ in pool_windows(window_of(s.node, spatial, s.node.attrs["kernel_shape"]), spatial)]
    windows = ([plane * area + k for k in window] for plane in range(x.shape[0] * x.shape[1]) for window in seen)
    return [maximum_of_windows(s, windows)]


def rule_max_reduce(s: Site) -> Multipliers:
    """ReduceMax, ReduceMin, GlobalMaxPool: one window per output element (METHOD 4)."""
    s.only(0)
    x = s.xr()[0]
    axes = tuple(range(2, x.ndim)) if s.node.op == "GlobalMaxPool" else axes_of(s.node, s.x, x.ndim)
    index = np.arange(x.size).reshape(x.shape)
    rest = [k for k in range(x.ndim) if k not in axes]
    rows = index.transpose(*rest, *axes).reshape(int(np.prod([x.shape[k] for k in rest])), -1)
    sign = -1.0 if s.node.op == "ReduceMin" else 1.0
    return [maximum_of_windows(s, rows.tolist(), sign), *[None] * (len(s.x) - 1)]


def log_of_logarithmic_mean(log_a: Array, log_b: Array) -> Array:
    """log L(a, b), `L(a, b) = (a - b) / (log a - log b)`, from the logarithms; L(a, a) = a and L(a, 0) = 0.

    With d = |log a - log b|: `L = max(a, b) * (1 - exp(-d)) / d`, where (1 - exp(-d))/d -> 1 - d/2 as d -> 0.
    """
    top = np.maximum(log_a, log_b)
    with np.errstate(all="ignore"):
        d = np.where(log_a == log_b, LD(0), np.abs(log_a - log_b))
        shrink = np.where(d < LD(1e-12), -d / 2, np.log(-np.expm1(-d) / np.where(d == 0, LD(1), d)))
        return np.where(np.isinf(d) | np.isneginf(top), LD("-inf"), top + shrink)


def softmax_weights(x: Array, r: Array, axes: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """(E_j / L(s, s0), log s at x, log s at r) of e = exp(x), s = sum e (METHOD 6).

    `de_j / dx_j = E_j = L(e_j, e0_j)` and `d log s / ds = 1 / L(s, s0)`; their product is `d log s / dx_j`,
    in which the shift c of the exponent cancels. A logit that is -inf at x and r has E_j = 0.
    """
    logs, logs0 = log_sum_exp(x, axes), log_sum_exp(r, axes)
    weight = np.exp(log_of_logarithmic_mean(x, r) - log_of_logarithmic_mean(logs, logs0))
    return weight, logs, logs0


def rule_softmax(s: Site) -> Multipliers:
    """Softmax in log space (METHOD 6): `dy_i = L(y_i, y0_i) (dx_i - d log s)`; LogSoftmax has no L."""
    x, r = (v.astype(LD) for v in s.xr())
    axes = softmax_axes(s.node, x.ndim)
    weight, logs, logs0 = softmax_weights(x, r, axes)
    g = s.m[0] * np.exp(log_of_logarithmic_mean(x - logs, r - logs0)) if s.node.op == "Softmax" else s.m[0].astype(LD)
    m = g - weight * g.sum(axis=axes, keepdims=True)
    return [np.asarray(np.where(np.isneginf(x) & np.isneginf(r), LD(0), m), dtype=np.float64)]


def rule_log_sum_exp(s: Site) -> Multipliers:
    """ReduceLogSumExp: `d log s = sum_j E_j / L(s, s0) dx_j` (METHOD 6)."""
    s.only(0)
    x, r = (v.astype(LD) for v in s.xr())
    axes = axes_of(s.node, s.x, x.ndim)
    kept = [1 if k in axes else n for k, n in enumerate(x.shape)]
    return [
        np.asarray(softmax_weights(x, r, axes)[0] * s.m[0].reshape(kept), dtype=np.float64),
        *[None] * (len(s.x) - 1),
    ]


def rule_reduce_composed(s: Site) -> Multipliers:
    """ReduceL1, L2, SumSquare, LogSum: an elementwise step, a sum, an elementwise step (METHOD 3)."""
    s.only(0)
    x, r = (v.astype(LD) for v in s.xr())
    axes = axes_of(s.node, s.x, x.ndim)
    inner, outer = {
        "ReduceL1": (PLAIN_UNARY["Abs"], PLAIN_UNARY["Neg"]),
        "ReduceL2": (Unary(lambda z: z * z), PLAIN_UNARY["Sqrt"]),
        "ReduceSumSquare": (Unary(lambda z: z * z), PLAIN_UNARY["Neg"]),
        "ReduceLogSum": (Unary(lambda z: z + 0), PLAIN_UNARY["Log"]),
    }[s.node.op]
    before, before0 = (np.sum(inner.f(v), axis=axes, keepdims=True) for v in (x, r))
    last = LD(1) if s.node.op in ("ReduceL1", "ReduceSumSquare") else secant(outer, before, before0)
    m = s.m[0].reshape(before.shape) * last * secant(inner, x, r)
    return [np.asarray(m, dtype=np.float64), *[None] * (len(s.x) - 1)]


def rule_top_k(s: Site) -> Multipliers:
    """TopK while it selects the same places at x and r: a movement."""
    s.only(0)
    if np.any(s.y[1] != s.y0[1]):
        raise NotImplementedError(f"TopK that selects other places at the reference: {s.node}")
    x = s.xr()[0]
    axis = int(s.node.attr("axis", -1)) % x.ndim
    g = np.zeros(x.shape)
    np.put_along_axis(g, s.y[1], s.m[0], axis=axis)
    return [g, None]


# Movement operators and which inputs carry the elements (None: all).
MOVEMENT: dict[str, tuple[int, ...] | None] = {
    **dict.fromkeys(("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Split", "Slice", "Pad"), (0,)),
    **dict.fromkeys(("Gather", "GatherElements", "GatherND", "Expand", "Tile", "Identity", "Cast", "CastLike"), (0,)),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth", "Dropout", "Trilu", "Compress", "ReverseSequence"), (0,)),
    **dict.fromkeys(("CenterCropPad",), (0,)),
    **dict.fromkeys(("ScatterElements", "ScatterND"), (0, 2)),
    "Where": (1, 2),
    "Concat": None,
}
# Inputs of which only the type matters.
TYPE_ONLY = {"CastLike": (1,)}
# Affine in the first input, run by onnx's reference evaluator.
PROBED_BY_REFERENCE = {"CumSum", "Resize", "Upsample", "Col2Im", "GridSample"}
NORMALISATIONS = {"LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization"}
MAXIMA = {"Max", "Min", "MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin"}

SWITCHED: list[Callable[..., list[tuple[str, Array]]]] = []
"""How masks and indices that changed are walked; oracle_selection.py fills it."""

DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
FORWARD: dict[str, Callable[[Node, Sequence[Array | None]], list[Array]]] = {}
"""What `forward_node` asks first; other modules fill it."""

RULES: dict[str, Rule] = {
    **dict.fromkeys(MOVEMENT, rule_movement),
    **dict.fromkeys(UNARY_OPS, rule_unary),
    **dict.fromkeys(PROBED_BY_REFERENCE | {"ReduceSum", "ReduceMean", "GlobalAveragePool"}, rule_probe),
    **dict.fromkeys(("Add", "Sub", "Sum", "Mean"), rule_sum),
    **dict.fromkeys(("Conv", "ConvTranspose"), rule_conv),
    **dict.fromkeys(("Max", "Min"), rule_max_operands),
    **dict.fromkeys(("GlobalMaxPool", "ReduceMax", "ReduceMin"), rule_max_reduce),
    **dict.fromkeys(("Softmax", "LogSoftmax"), rule_softmax),
    **dict.fromkeys(("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum"), rule_reduce_composed),
    "Round": rule_round,
    "Mul": rule_mul,
    "Div": rule_div,
    "Pow": rule_pow,
    "MatMul": rule_matmul,
    "Gemm": rule_gemm,
    "Einsum": rule_einsum,
    "AveragePool": rule_average_pool,
    "BatchNormalization": rule_batch_norm,
    "MaxPool": rule_max_pool,
    "ReduceLogSumExp": rule_log_sum_exp,
    "TopK": rule_top_k,
}
# Float outputs that do not depend on the input's values.
STOPS = {"ConstantOfShape", "EyeLike", "RandomNormalLike", "RandomUniformLike", "Range", "OneHot"}
POINTWISE = (
    UNARY_OPS
    | {
        "Where",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Max",
        "Min",
        "Sum",
        "Mean",
        "Pow",
        "Cast",
        "CastLike",
        "Identity",
        "Mod",
    }
    | {
        "Not",
        "And",
        "Or",
        "Xor",
        "Greater",
        "Less",
        "GreaterOrEqual",
        "LessOrEqual",
        "Equal",
        "IsNaN",
        "IsInf",
    }
)


# ------------------------------------------------------------------------------------------------------------
# The two walks
# ------------------------------------------------------------------------------------------------------------
@dataclass
class Result:
    """`gap` = <seed, dy> - sum of contributions: 0 for every complete rule (METHOD 1)."""

    contributions: dict[str, Array]
    multipliers: dict[str, Array]
    values_x: dict[str, Array]
    values_r: dict[str, Array]
    gap: float


def check_node_conservation(
    name: str,
    outputs: Iterable[tuple[Array, Array, Array]],
    inputs: Iterable[tuple[Array, Array, Array]],
    rtol: float = 1e-9,
) -> None:
    """<m_y, dy> = sum over inputs <m_x, dx> (METHOD 1); triples are (multiplier, value at x, value at r).

    Relative to the sum of the magnitudes; float64 rounding of the values themselves is forgiven.
    """
    sides, scale, rounding = [0.0, 0.0], 0.0, 0.0
    for side, triples in enumerate((outputs, inputs)):
        for m, x, r in triples:
            c = contribution(m, x, r)
            sides[side] += float(c.sum())
            scale += float(np.abs(c).sum())
            magnitudes = np.where(np.isfinite(x) & np.isfinite(r), np.abs(x) + np.abs(r), 0.0)
            rounding += float((np.abs(m) * magnitudes).sum()) * 1e-15
    if not abs(sides[0] - sides[1]) <= rtol * scale + rounding + 1e-300:
        raise AssertionError(f"{name} does not conserve: <m_y, dy> = {sides[0]!r}, <m_x, dx> = {sides[1]!r}")


def explain(
    model: onnx.ModelProto,
    x: Mapping[str, Array],
    r: Mapping[str, Array],
    *,
    inputs: Sequence[str],
    output: str,
    seed: Seed,
    ties: Ties = "shared",
) -> Result:
    """DeepLIFT of `output` (any tensor, its multiplier is `seed`) with respect to `inputs` (any tensors).

    `x` feeds the graph inputs. `r` gives the reference of each of `inputs`: the r-run replaces these tensors,
    and all that does not depend on them is shared with the x-run. Importance stops at `inputs`, at integers
    and at booleans.
    """
    if set(r) != set(inputs):
        raise ValueError(f"references are needed for exactly {sorted(inputs)}, got {sorted(r)}")
    graph = load(model)
    nodes = graph.ancestors(output)
    fed = {name: widen(value) for name, value in x.items()}
    values_x = run(nodes, {**graph.constants, **fed})
    changing = set(inputs)
    for node in nodes:
        if changing & set(node.inputs):
            changing |= {name for name in node.outputs if name}
    shared = {name: value for name, value in values_x.items() if name not in changing}
    values_r = run(nodes, {**shared, **{name: widen(r[name]) for name in inputs}})
    for name in inputs:
        if name in values_x and values_x[name].shape != values_r[name].shape:
            raise ValueError(f"{name}: {values_x[name].shape} at x, {values_r[name].shape} at the reference")

    active = {name for name in inputs if name in values_x and is_float(values_x[name])}
    switched = {n for n in changing & set(values_x) if not is_float(values_x[n]) and not same(values_x[n], values_r[n])}
    for node in nodes:
        if (active | switched) & set(node.inputs) and node.op not in STOPS:
            active |= {name for name in node.outputs if name and is_float(values_x[name])}

    start = np.asarray(seed(values_x[output]) if callable(seed) else seed, dtype=np.float64)
    multipliers = {output: np.broadcast_to(start, values_x[output].shape) + 0.0}

    def give(name: str, m: Array) -> None:
        multipliers[name] = multipliers[name] + m if name in multipliers else m + 0.0

    for node in reversed(nodes):
        mine = [name for name in node.outputs if name in multipliers and name in active and name not in inputs]
        if not mine:
            continue
        for name, m in walk_node(graph, nodes, node, values_x, values_r, multipliers, active, inputs, ties):
            give(name, m)

    contributions = {}
    for name in inputs:
        if name not in values_x or not is_float(values_x[name]):
            raise ValueError(f"{name} is not a float tensor that {output} depends on")
        m = multipliers.setdefault(name, np.zeros(values_x[name].shape))
        contributions[name] = contribution(m, values_x[name], values_r[name])
    total = float(contribution(multipliers[output], values_x[output], values_r[output]).sum())
    gap = total - sum(float(c.sum()) for c in contributions.values())
    return Result(contributions, multipliers, values_x, values_r, gap)


def same(a: Array, b: Array) -> bool:
    return a.shape == b.shape and bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))


def walk_node(
    graph: Graph,
    nodes: Sequence[Node],
    node: Node,
    at_x: Mapping[str, Array],
    at_r: Mapping[str, Array],
    multipliers: Mapping[str, Array],
    active: set[str],
    sources: Sequence[str],
    ties: Ties,
) -> list[tuple[str, Array]]:
    """Multipliers that this node sends to its inputs, conservation checked."""
    outs = [name for name in node.outputs if name in multipliers]
    values = [n for k, n in enumerate(node.inputs) if n and k not in TYPE_ONLY.get(node.op, ())]
    if any(n not in active and not same(at_x[n], at_r[n]) for n in values):
        try:
            return walk_region(graph, nodes, node, at_x, at_r, multipliers[outs[0]], active, sources)
        except NotImplementedError:  # several tensors, or not elementwise
            (walk,) = SWITCHED
            return walk(nodes, node, at_x, at_r, multipliers, active)
    if node.op not in RULES or node.proto.domain not in DOMAINS:
        raise NotImplementedError(f"the oracle has no rule for {node}")
    site = Site(
        node,
        [at_x[n] if n else None for n in node.inputs],
        [at_r[n] if n else None for n in node.inputs],
        [at_x[n] if n else np.zeros(0) for n in node.outputs],
        [at_r[n] if n else np.zeros(0) for n in node.outputs],
        [multipliers[n] if n in multipliers else np.zeros(at_x[n].shape if n else 0) for n in node.outputs],
        [n in active for n in node.inputs],
        ties,
    )
    with np.errstate(all="ignore"):
        sent = RULES[node.op](site)
    result = [(n, m) for n, m, a in zip(node.inputs, sent, site.active, strict=False) if a and m is not None]
    if not (ties == "argmax_x" and node.op in MAXIMA):
        check_node_conservation(
            str(node),
            [(multipliers[n], at_x[n], at_r[n]) for n in outs],
            [(m, at_x[n], at_r[n]) for n, m in result],
        )
    return result


def walk_region(
    graph: Graph,
    nodes: Sequence[Node],
    node: Node,
    at_x: Mapping[str, Array],
    at_r: Mapping[str, Array],
    m: Array,
    active: set[str],
    sources: Sequence[str],
) -> list[tuple[str, Array]]:
    """A mask or condition changes between x and r: the region is one function of one tensor (METHOD 3).

    The region is what lies between this node and the nearest tensor u through which all its changing inputs
    pass, all operators elementwise. m_u = dy/du; where du is below 1e-7 a central difference over the region
    (precision 1e-8).
    """
    name = node.outputs[0]
    maker = {out: n for n in nodes for out in n.outputs}
    order = {n.outputs[0]: k for k, n in enumerate(nodes)}
    changing = {n for n in at_x if n in at_r and n not in graph.constants and at_x[n] is not at_r[n]}
    frontier = {name}
    region: list[Node] = []
    while not (len(frontier) == 1 and frontier <= active and region):
        latest = max(frontier, key=lambda n: order[maker[n].outputs[0]] if n in maker else -1)
        producer = maker.get(latest)
        if producer is None or latest in sources or producer.op not in POINTWISE:
            raise NotImplementedError(f"an input of {node} changes without carrying importance")
        region.insert(0, producer)
        frontier = (frontier - {latest}) | {n for n in producer.inputs if n in changing}
    (root,) = frontier
    u, u0 = at_x[root], at_r[root]
    if u.shape != at_x[name].shape:
        raise NotImplementedError(f"the elementwise region of {node} broadcasts")
    inside = {out for n in region for out in n.outputs}

    def f(value: Array) -> Array:
        outside = {n: v for n, v in at_x.items() if n not in inside}
        return run(region, {**outside, root: value})[name]

    d = difference(u, u0)
    near = np.abs(d) <= 1e-7 * np.maximum(1, np.abs(u))
    middle, h = (u + u0) / 2, 1e-5 * np.maximum(1, np.abs(u))
    slope = (f(middle + h) - f(middle - h)) / (2 * h)
    factor = np.where(near, slope, difference(at_x[name], at_r[name]) / np.where(near, 1.0, d))
    return [(root, m * factor)]


import oracle_movement  # noqa: E402, F401 - fills the tables
import oracle_normalize  # noqa: E402, F401 - fills the tables
import oracle_reductions  # noqa: E402, F401 - fills the tables
import oracle_sampling  # noqa: E402, F401 - fills the tables
import oracle_selection  # noqa: E402, F401 - fills the tables
