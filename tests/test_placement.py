"""Where ONNX Runtime's CUDA provider would place explainers, by the table of its kernels; nothing runs on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx_text import floats, parse

from onnxlift import rewrite
from onnxlift.kernels import KERNELS
from onnxlift.placement import Copy, cuda_placement

KINDS = ["float", "float16"]
TYPES = {"float": np.float32, "float16": np.float16}
PRESETS = ["rescale", "reveal-cancel", "genomics", "gradient", "integrated-gradients:3"]
REFERENCES = ["paired", "shared", "grouped", "zeros"]


def weights(kind: str, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Random weights of a float type, by name."""
    return {name: (floats(*shape) / 2).astype(TYPES[kind]) for name, shape in shapes.items()}


def mlp(kind: str) -> onnx.ModelProto:
    body = "a = Gemm (x, v, b) r = Relu (a) c = Gemm (r, w) t = Tanh (c) z = Gemm (t, u) y = Softmax (z)"
    return parse(body, f"{kind}[N, 6] x", f"{kind}[N, 3] y", **weights(kind, v=(6, 5), b=(5,), w=(5, 4), u=(4, 3)))


def cnn(kind: str) -> onnx.ModelProto:
    body = """
        a = Conv <strides = [2, 2], pads = [1, 1, 0, 0]> (x, v, b)
        n = BatchNormalization (a, scale, shift, mean, var)
        r = Relu (n)
        p = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (r)
        d = Conv <group = 4, pads = [1, 1, 1, 1]> (p, w)
        s = Sigmoid (d)
        e = Mul (d, s)
        f = Add (e, p)
        q = AveragePool <kernel_shape = [2, 2]> (f)
        g = GlobalAveragePool (q)
        h = Flatten (g)
        y = Gemm (h, u)"""
    made = weights(kind, v=(4, 3, 3, 3), b=(4,), scale=(4,), shift=(4,), mean=(4,), var=(4,), w=(4, 1, 3, 3), u=(4, 3))
    made["var"] = np.abs(made["var"]) + 1
    return parse(body, f"{kind}[N, 3, 13, 13] x", f"{kind}[N, 3] y", **made)


def transformer(kind: str) -> onnx.ModelProto:
    heads = "".join(
        f"""
        {h}p = MatMul (n, w{h})
        {h}r = Reshape ({h}p, split)
        {h} = Transpose <perm = [0, 2, {"3, 1" if h == "k" else "1, 3"}]> ({h}r)"""
        for h in "qkv"
    )
    body = f"""
        n = LayerNormalization (x, scale, shift){heads}
        l = MatMul (q, k)
        a = Softmax (l)
        o = MatMul (a, v)
        t = Transpose <perm = [0, 2, 1, 3]> (o)
        c = Reshape (t, join)
        r = Add (x, c)
        m = LayerNormalization (r, scale, shift)
        f = MatMul (m, wf)
        g = Gelu (f)
        e = MatMul (g, we)
        s = Add (r, e)
        z = ReduceMean <keepdims = 0> (s, middle)
        y = MatMul (z, wy)"""
    made: dict[str, Any] = {"split": np.int64([0, 0, 2, 4]), "join": np.int64([0, 0, 8]), "middle": np.int64([1])}
    made |= weights(kind, scale=(8,), shift=(8,), wq=(8, 8), wk=(8, 8), wv=(8, 8), wf=(8, 16), we=(16, 8), wy=(8, 3))
    return parse(body, f"{kind}[N, T, 8] x", f"{kind}[N, 3] y", **made)


def recurrent(kind: str) -> onnx.ModelProto:
    body = """
        s = Transpose <perm = [1, 0, 2]> (x)
        h, last = LSTM <direction = "bidirectional", hidden_size = 4> (s, w, r, b)
        f, g = Split <num_outputs = 2> (last)
        c = Concat <axis = 2> (f, g)
        q = Squeeze (c, first)
        y = Gemm (q, u)"""
    made: dict[str, Any] = {"first": np.int64([0])}
    made |= weights(kind, w=(2, 16, 3), r=(2, 16, 4), b=(2, 32), u=(8, 3))
    return parse(body, f"{kind}[N, T, 3] x", f"{kind}[N, 3] y", **made)


MODELS = {"mlp": mlp, "cnn": cnn, "transformer": transformer, "recurrent": recurrent}
SAMPLE = {"mlp": (6,), "cnn": (3, 13, 13), "transformer": (5, 8), "recurrent": (5, 3)}


def explained(name: str, kind: str, rule: str, reference: str, *, fixed: bool) -> onnx.ModelProto:
    """The explainer of one of the models, its shapes fixed or not."""
    shapes = None
    if fixed:
        lead = {"shared": (3,), "grouped": (2, 3)}.get(reference, (2,))
        shapes = {"x": (2, *SAMPLE[name])} | ({} if reference == "zeros" else {"x_reference": (*lead, *SAMPLE[name])})
    return rewrite(MODELS[name](kind), target="argmax", rule=rule, reference=reference, shapes=shapes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", PRESETS)
@pytest.mark.parametrize("name", MODELS)
def test_explainers_stay_on_the_gpu(name: str, rule: str, kind: str) -> None:
    for reference in REFERENCES if kind == "float" else REFERENCES[1::2]:
        found = cuda_placement(explained(name, kind, rule, reference, fixed=False))
        assert (found.off_gpu, found.copies) == ([], []), reference
        fixed = cuda_placement(explained(name, kind, rule, reference, fixed=True))
        assert (fixed.on_cpu, fixed.copies) == ([], []), reference
        assert fixed.nodes


def placed(body: str, inputs: str = "float[N, 4] x", **constants: Any) -> Any:
    """Where a model goes, which need not be an explainer."""
    return cuda_placement(parse(body, inputs, "float y", **constants))


LEFT = {
    "no kernel": ("y = Tan (x)", "float[N] x", "no kernel"),
    "kernel": ('y = Einsum <equation = "ij->ji"> (x)', "float[N, M] x", None),
    "integers": ("y = Pad (x, pads)", "int64[N, M] x", "no kernel for int64"),
    "truth values": ("y = Where (x, x, x)", "bool[N, M] x", "no kernel for bool"),
    "half": ("y = GridSample (x, g)", "float16[N, 2, 4, 4] x, float16[N, 4, 4, 2] g", "no kernel for float16"),
    "single": ("y = GridSample (x, g)", "float[N, 2, 4, 4] x, float[N, 4, 4, 2] g", None),
    "last": ("y = ArgMax <select_last_index = 1> (x)", "float[N, M] x", "select_last_index=1"),
    "first": ("y = ArgMax (x)", "float[N, M] x", None),
    "asymmetric": ("y = ConvTranspose <pads = [0, 1]> (x, w)", "float[N, 2, L] x", "asymmetric pads"),
    "symmetric": ("y = ConvTranspose <pads = [1, 1]> (x, w)", "float[N, 2, L] x", None),
    "same": ('y = ConvTranspose <auto_pad = "SAME_UPPER"> (x, w)', "float[N, 2, L] x", "auto_pad=SAME_UPPER"),
    "LSTM": ("y = LSTM <hidden_size = 3> (x, lw, lr)", "float[T, N, 2] x", None),
    "clip": ("y = LSTM <hidden_size = 3, clip = 1.0> (x, lw, lr)", "float[T, N, 2] x", "clip"),
    "peepholes": ("y = LSTM <hidden_size = 3> (x, lw, lr, , , , , lp)", "float[T, N, 2] x", "peepholes"),
    "GRU": ("y = GRU <hidden_size = 3> (x, gw, gr)", "float[T, N, 2] x", "linear_before_reset=0"),
    "RNN": (
        'y = RNN <hidden_size = 3, activations = ["Relu"]> (x, rw, rr)',
        "float[T, N, 2] x",
        "activations relu",
    ),
}
CONSTANTS = {"pads": np.int64([0, 1, 0, 1]), "w": floats(2, 2, 3), "lp": floats(1, 9)}
CONSTANTS |= {f"{layer}w": floats(1, 3 * gates, 2) for layer, gates in (("l", 4), ("g", 3), ("r", 1))}
CONSTANTS |= {f"{layer}r": floats(1, 3 * gates, 3) for layer, gates in (("l", 4), ("g", 3), ("r", 1))}


@pytest.mark.parametrize(("body", "inputs", "reason"), LEFT.values(), ids=LEFT)
def test_why_a_node_is_left_to_the_cpu(body: str, inputs: str, reason: str | None) -> None:
    found = placed(body, inputs, **CONSTANTS)
    assert [node.reason for node in found.on_cpu] == ([reason] if reason else [])
    assert found.copies == []  # inputs and outputs of a graph lie where they are needed
    assert found.is_on_gpu == (reason is None)


def test_what_is_copied_to_a_node_on_the_cpu_and_back() -> None:
    found = placed("a = Relu (x) b = Tan (a) y = Relu (b)")
    assert found.nodes == 3
    assert found.copies == [Copy("a", "host", ()), Copy("b", "device", ())]
    (node,) = found.off_gpu
    assert (node.op, node.body, node.shape) == ("Tan", (), False)


def test_an_input_that_both_sides_read_is_copied() -> None:
    assert placed("a = Tan (x) b = Relu (x) y = Add (a, b)").copies == [
        Copy("x", "device", ()),
        Copy("a", "device", ()),
    ]


def test_shape_arithmetic_is_meant_to_be_on_the_cpu() -> None:
    body = (
        "s = Shape (x) n = Gather (s, zero) u = Unsqueeze (n, zero1) t = Concat <axis = 0> (u, one) y = Reshape (x, t)"
    )
    constants = {"zero": np.int64(0), "zero1": np.int64([0]), "one": np.int64([-1])}
    found = placed(body, "float[N, 4] x", **constants)
    assert [(node.op, node.shape) for node in found.on_cpu] == [(op, True) for op in ("Gather", "Unsqueeze", "Concat")]
    assert found.is_on_gpu
    static = placed(body, "float[3, 4] x", **constants)
    assert (static.on_cpu, static.nodes) == ([], 1)


def test_an_extent_that_is_computed_with_is_copied() -> None:
    found = placed("r = Relu (x) s = Size (x) c = Cast <to = 1> (s) y = Div (r, c)")
    assert [node.op for node in found.on_cpu] == ["Cast"]
    assert found.copies == [Copy("c", "device", ())]
    assert not found.is_on_gpu


def test_a_product_of_extents_without_a_kernel_is_shape_arithmetic() -> None:
    found = placed("s = Shape (x) p = ReduceProd <keepdims = 1> (s) y = Expand (one, p)", one=np.float32([1]))
    assert [(node.op, node.shape) for node in found.on_cpu] == [("ReduceProd", True)]
    assert found.is_on_gpu


def test_bodies_are_looked_into() -> None:
    body = """
        y = Scan <num_scan_inputs = 1, body = each (float[4] s) => (float[4] t) {
            a = Relu (s) b = Tan (a) t = Relu (b) }> (x)"""
    model = parse(body, outputs="float[N, 4] y")
    model.graph.node[0].name = "rows"
    found = cuda_placement(model)
    assert found.nodes == 4
    assert found.copies == [Copy("a", "host", ("rows",)), Copy("b", "device", ("rows",))]
    assert [node.body for node in found.on_cpu] == [("rows",)]


def test_a_constant_of_both_sides_is_copied_in_every_iteration() -> None:
    body = """
        y = Scan <num_scan_inputs = 1, body = each (float[M] s) => (float[L] t) {
            n = Size (s) i = Range (zero, n, one) j = Add (i, one) t = Cast <to = 1> (j) }> (x)"""
    constants = {"zero": np.int64(0), "one": np.int64(1)}
    model = parse(body, "float[N, M] x", "float[N, L] y", **constants)
    assert [copy.tensor for copy in cuda_placement(model).copies] == ["one"]


def test_the_table_says_where_it_is_from() -> None:
    assert KERNELS.onnxruntime.startswith("1.")
    assert KERNELS.opset == 21
    assert placed("y = Relu (x)").onnxruntime == KERNELS.onnxruntime
    assert KERNELS.of("com.microsoft", "FusedMatMul")
    assert KERNELS.of("ai.onnx.ml", "Scaler") == []
