"""Quantised layers in one operator, and operators without a kernel on the CPU, whose values NumPy computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from laws import run
from onnx import numpy_helper
from quantised import conserved, explained

import onnxlift

RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """Whichever tests run: numbers half-way between two integers would be another matter."""
    RNG.bit_generator.state = np.random.default_rng(105).bit_generator.state


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def i8(*shape: int) -> np.ndarray:
    return RNG.integers(-127, 128, shape).astype(np.int8)


def u8(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape).astype(np.uint8)


def model(body: str, inputs: str, output: str, **constants: Any) -> onnx.ModelProto:
    parsed = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]> net ({inputs}) => ({output}) {{ {body} }}'
    )
    read = {name for node in parsed.graph.node for name in node.input}
    given = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items() if k in read]
    parsed.graph.initializer.extend(given)
    return parsed


B, S, H = 2, 4, 8
ATTENTION = {
    "plain": ("", ""),
    "mask": ("", ", mask"),
    "causal": (", unidirectional = 1", ""),
    "zero points": ("", ", , iz, wz"),
    "per column": ("", ", , iz, wz"),
    "past": (", unidirectional = 1", ", , iz, wz, past"),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name: str) -> None:
    attributes, extra = ATTENTION[name]
    outputs = "y, present" if "past" in extra else "y"
    columns = (3 * H,) if name == "per column" else ()
    net = model(
        f"q = QuantizeLinear(x, s, iz)\n"
        f"{outputs} = com.microsoft.QAttention<num_heads = 2{attributes}>(q, w, b, s, ws{extra})",
        f"float[N, {S}, {H}] x",
        f"float[N, {S}, {H}] y",
        s=np.float32(0.03),
        iz=np.uint8(0 if "iz" not in extra else 128),
        w=i8(H, 3 * H),
        b=f32(3 * H),
        ws=(0.005 + 0.005 * RNG.random(columns)).astype(np.float32),
        wz=np.full(columns, 3, np.int8),
        mask=np.array([[1, 1, 1, 0], [1, 1, 1, 1]], np.int32),
        past=f32(2, B, 2, 3, H // 2),
    )
    x, r = f32(B, S, H), f32(B, S, H)
    got = explained(net, x, r)
    np.testing.assert_allclose(got["y"], run(net, {"x": x})["y"], rtol=0, atol=2e-5)
    conserved(got)


LSTM = {
    "forward": (1, "b, , , ,", "", 1),
    "two samples": (1, "b, , , ,", "", 2),
    "reverse, no bias": (1, ", , , ,", ', direction = "reverse"', 1),
    "both directions, states": (2, "b, , h, c,", ', direction = "bidirectional"', 1),
    "peepholes": (1, "b, , , , p", "", 1),
}


@pytest.mark.parametrize("kind", ["one scale", "per gate", "unsigned"])
@pytest.mark.parametrize(("count", "optional", "attributes", "samples"), LSTM.values(), ids=LSTM)
def test_dynamic_lstm(count: int, optional: str, attributes: str, samples: int, kind: str) -> None:
    steps, features, hidden = 6, 5, 4
    scales = (count, 4 * hidden) if kind == "per gate" else (count,)
    integers = u8 if kind == "unsigned" else i8
    zeros = integers(*scales) if kind == "unsigned" else np.zeros(scales, np.int8)
    net = model(
        f"y, h_n, c_n = com.microsoft.DynamicQuantizeLSTM<hidden_size = {hidden}{attributes}>"
        f"(x, w, r, {optional}, ws, zeros, rs, zeros)",
        f"float[{steps}, N, {features}] x",
        f"float[{steps}, {count}, N, {hidden}] y",
        w=integers(count, features, 4 * hidden),
        r=integers(count, hidden, 4 * hidden),
        b=f32(count, 8 * hidden),
        h=f32(count, samples, hidden) * np.float32(0.3),
        c=f32(count, samples, hidden),
        p=f32(count, 3 * hidden),
        zeros=zeros,
        ws=(0.005 + 0.01 * RNG.random(scales)).astype(np.float32),
        rs=(0.005 + 0.01 * RNG.random(scales)).astype(np.float32),
    )
    x, r = f32(steps, samples, features), f32(steps, samples, features)
    got = explained(net, x, r)
    one_thread = onnxruntime.SessionOptions()  # each has its share of the samples, and quantises them by themselves
    one_thread.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(net.SerializeToString(), one_thread, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(got["y"], session.run(["y"], {"x": x})[0], rtol=0, atol=2e-6)
    conserved(got)


@pytest.mark.parametrize("with_segments", [True, False])
def test_embeddings(with_segments: bool) -> None:
    """The looked-up row is what is attributed to."""
    words, length, width = 9, 4, 8
    ids, table, scale, zero = ("segments", "st", "s3", "z3") if with_segments else ("", "", "", "")
    net = model(
        f"e, lengths = com.microsoft.QEmbedLayerNormalization<epsilon = 1e-5>(words, {ids}, wt, pt, {table}, gamma, "
        f"beta, mask, s1, s2, {scale}, s4, s5, z1, z2, {zero}, z4, z5)\ny = Tanh(e)",
        f"int32[N, {length}] words" + (f", int32[N, {length}] segments" if with_segments else ""),
        "float y, int32[N] lengths",
        **{"wt": u8(words, width), "pt": u8(length + 2, width), "st": u8(2, width)},
        **{"gamma": u8(width), "beta": u8(width), "mask": np.int32([[1, 1, 0, 0], [1, 1, 1, 1]])},
        **{f"s{k}": np.float32(0.01 + 0.003 * k) for k in range(1, 6)},
        **{f"z{k}": np.uint8(100 + 7 * k) for k in range(1, 6)},
    )
    normal = onnxlift.rewrite(net, inputs=["e"], output="y", target="weights", pre_activation=False)
    feed = {"words": RNG.integers(0, words, (2, length)).astype(np.int32)}
    if with_segments:
        feed["segments"] = RNG.integers(0, 2, (2, length)).astype(np.int32)
    other = {f"{name}_reference": np.zeros_like(value) for name, value in feed.items()}
    seed = f32(2, length, width)
    got = run(normal, {**feed, **other, "target_weights": seed})
    expected = run(net, feed)
    np.testing.assert_allclose(got["y"], expected["y"], rtol=0, atol=2e-6)
    np.testing.assert_array_equal(got["lengths"], expected["lengths"])
    assert np.abs(got["completeness_gap"]).max() <= 1e-4 * np.abs(got["e_contributions"]).sum()


def test_operators_without_a_kernel() -> None:
    """QLinearReduceMean, MulInteger and ReduceSumInteger."""
    s, t, z, u = np.float32(0.02), np.float32(0.0131), np.int8(3), np.int8(-5)
    net = model(
        "q = QuantizeLinear(x, s, z)\n"
        "a = com.microsoft.QLinearReduceMean<axes = [2], keepdims = 1>(q, s, z, t, u)\n"
        "b = com.microsoft.MulInteger(q, z, w, u)\n"
        "c = com.microsoft.ReduceSumInteger<axes = [-1], keepdims = 1>(q)\n"
        "af = DequantizeLinear(a, t, u)\nbf = Cast<to = 1>(b)\ncf = Cast<to = 1>(c)\nab = Add(af, bf)\ny = Add(ab, cf)",
        "float[N, 3, 4] x",
        "float[N, 3, 4] y",
        **{"s": s, "t": t, "z": z, "u": u, "w": (w := i8(3, 4))},
    )
    x, r = f32(2, 3, 4), f32(2, 3, 4)
    explainer = onnxlift.rewrite(net, target="weights", pre_activation=False)
    got = run(explainer, {"x": x, "x_reference": r, "target_weights": f32(2, 3, 4)})
    q = np.clip(np.round(x / s) + z, -128, 127)
    mean = np.clip(np.round((q - z).mean(2, keepdims=True) * s / t) + u, -128, 127)
    expected = (mean - u) * t + (q - z) * (w.astype(np.float32) - u) + q.sum(2, keepdims=True)
    np.testing.assert_allclose(got["y"], expected, rtol=1e-6)
    conserved(got)
