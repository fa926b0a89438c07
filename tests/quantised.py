"""Small networks, and explaining them, for the tests of quantised models and of half precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from laws import run
from onnx import numpy_helper

import onnxlift

RNG = np.random.default_rng(0)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def weight(*shape: int) -> np.ndarray:
    """Of a dense layer, [inputs, outputs]."""
    return (f32(*shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)


def kernel(outputs: int, inputs: int) -> np.ndarray:
    return (f32(outputs, inputs, 3, 3) / np.sqrt(9 * inputs)).astype(np.float32)


def parse(body: str, inputs: str, outputs: str, **weights: Any) -> onnx.ModelProto:
    text = f'<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]> net ({inputs}) => ({outputs}) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items())
    return model


def cnn() -> onnx.ModelProto:
    return parse(
        """c1 = Conv<pads = [1, 1, 1, 1], kernel_shape = [3, 3]>(x, w1, b1)
        r1 = Relu(c1)
        p1 = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r1)
        c2 = Conv<pads = [1, 1, 1, 1], kernel_shape = [3, 3]>(p1, w2)
        s2 = Sigmoid(c2)
        g2 = Mul(c2, s2)
        a2 = Add(g2, p1)
        a3 = Concat<axis = 1>(a2, p1)
        c3 = Conv<kernel_shape = [3, 3], strides = [2, 2]>(a3, w3, b3)
        r3 = LeakyRelu(c3)
        g3 = GlobalAveragePool(r3)
        f3 = Flatten(g3)
        y = Gemm(f3, w4, b4)""",
        "float[N, 3, 12, 12] x",
        "float[N, 4] y",
        **{"w1": kernel(6, 3), "w2": kernel(6, 6), "w3": kernel(8, 12), "w4": weight(8, 4)},
        **{"b1": f32(6), "b3": f32(8), "b4": f32(4)},
    )


def mlp() -> onnx.ModelProto:
    return parse(
        "a = MatMul(x, w1)\nb = Add(a, b1)\nc = Relu(b)\nd = MatMul(c, w2)\ne = Relu(d)\ny = MatMul(e, w3)",
        "float[N, 16] x",
        "float[N, 4] y",
        **{"w1": weight(16, 32), "b1": f32(32), "w2": weight(32, 32), "w3": weight(32, 4)},
    )


def transformer() -> onnx.ModelProto:
    heads, depth = 2, 16
    return parse(
        """n1 = LayerNormalization<axis = -1>(x, gamma, beta)
        q = MatMul(n1, wq)
        k = MatMul(n1, wk)
        v = MatMul(n1, wv)
        qr = Reshape(q, split)
        kr = Reshape(k, split)
        vr = Reshape(v, split)
        qt = Transpose<perm = [0, 2, 1, 3]>(qr)
        kt = Transpose<perm = [0, 2, 3, 1]>(kr)
        vt = Transpose<perm = [0, 2, 1, 3]>(vr)
        dots = MatMul(qt, kt)
        scaled = Mul(dots, factor)
        weights = Softmax<axis = -1>(scaled)
        mixed = MatMul(weights, vt)
        back = Transpose<perm = [0, 2, 1, 3]>(mixed)
        merged = Reshape(back, merge)
        o = MatMul(merged, wo)
        x1 = Add(x, o)
        n2 = LayerNormalization<axis = -1>(x1, gamma, beta)
        h = MatMul(n2, wf)
        hb = Add(h, bf)
        g = Gelu(hb)
        f = MatMul(g, wg)
        x2 = Add(x1, f)
        m = ReduceMean<keepdims = 0>(x2, axis)
        y = MatMul(m, wy)""",
        f"float[N, 5, {depth}] x",
        "float[N, 4] y",
        **{name: weight(depth, depth) for name in ("wq", "wk", "wv", "wo")},
        **{"wf": weight(depth, 32), "bf": f32(32), "wg": weight(32, depth), "wy": weight(depth, 4)},
        **{"gamma": np.ones(depth, np.float32), "beta": np.zeros(depth, np.float32), "axis": np.int64([1])},
        **{"split": np.int64([0, 0, heads, depth // heads]), "merge": np.int64([0, 0, depth])},
        factor=np.float32(0.35),
    )


NETS: dict[str, tuple[Callable[[], onnx.ModelProto], tuple[int, ...]]] = {
    "cnn": (cnn, (3, 12, 12)),
    "mlp": (mlp, (16,)),
    "transformer": (transformer, (5, 16)),
}


def explained(model: onnx.ModelProto, x: np.ndarray, r: np.ndarray, **options: Any) -> dict[str, np.ndarray]:
    explainer = onnxlift.rewrite(model, target="weights", pre_activation=False, **options)
    onnx.checker.check_model(explainer, full_check=True)
    weights = next(value for value in explainer.graph.input if value.name == "target_weights")
    y = run(model, {"x": x})[model.graph.output[0].name]
    kind = onnx.helper.tensor_dtype_to_np_dtype(weights.type.tensor_type.elem_type)
    seed = np.random.default_rng(1).standard_normal(y.shape).astype(kind)
    return run(explainer, {"x": x, "x_reference": r, "target_weights": seed})


def conserved(got: dict[str, np.ndarray]) -> None:
    total = float(np.abs(got["x_contributions"]).sum())
    change = got["target_output"] - got["target_reference"]
    assert np.isfinite(got["x_contributions"]).all()
    assert np.abs(change).max() > 1e-3
    assert abs(float(got["completeness_gap"].sum())) <= 1e-4 * max(1.0, total)
