"""Whole quantised models, those that onnxruntime.quantization makes, and the borders between integers and floats."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from laws import run
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from quantised import NETS, RNG, conserved, explained, f32, parse

import onnxlift
from onnxlift import registry
from onnxlift.errors import RuleError
from onnxlift.lowering import Lowerer
from onnxlift.model import normal_form


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """Whichever tests run: numbers half-way between two integers would be another matter."""
    RNG.bit_generator.state = np.random.default_rng(2).bit_generator.state


UNSIGNED = {"activation_type": QuantType.QUInt8}
WAYS: dict[str, dict[str, Any]] = {
    "qdq": {},
    "qdq unsigned per channel": {**UNSIGNED, "per_channel": True},
    "qdq 16 bits": {"activation_type": QuantType.QUInt16, "extra_options": {"UseQDQContribOps": True}},
    "qdq weights of 4 bits": {"weight_type": QuantType.QInt4},
    "operators": {**UNSIGNED, "quant_format": QuantFormat.QOperator},
    "operators signed per channel": {"quant_format": QuantFormat.QOperator, "per_channel": True},
    "dynamic": {},
    "dynamic unsigned": {"weight_type": QuantType.QUInt8},
    "dynamic per channel": {"per_channel": True},
}


class Batches(CalibrationDataReader):
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.batches: Iterator[dict[str, np.ndarray]] = iter([{"x": 1.5 * f32(8, *shape)} for _ in range(4)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def quantise(model: onnx.ModelProto, way: str, shape: tuple[int, ...], folder: Path) -> onnx.ModelProto:
    source, made = str(folder / "float.onnx"), str(folder / "quantised.onnx")
    onnx.save(model, source)
    if way.startswith("dynamic"):
        quantize_dynamic(source, made, **WAYS[way])
    else:
        options = {"quant_format": QuantFormat.QDQ, **WAYS[way]}
        quantize_static(source, made, Batches(shape), **options)
    return onnx.load(made)


def unoptimised(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(["y"], {"x": x})[0]
    return result


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("net", NETS)
def test_models_of_the_quantiser(net: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "disabled", True)
    make, shape = NETS[net]
    model = quantise(make(), way, shape, tmp_path)
    assert {"DequantizeLinear", "MatMulInteger", "QLinearMatMul"} & {node.op_type for node in model.graph.node}
    x = f32(1, *shape)
    for r in (f32(1, *shape), np.zeros_like(x)):
        got = explained(model, x, r)
        step = 2e-3 if "16" in way else 0  # products of 16-bit numbers are beyond 2^24: one may be a step off
        np.testing.assert_allclose(got["y"], unoptimised(model, x), rtol=0, atol=step)
        conserved(got)


def test_weights_stay_integers() -> None:
    """The explainer's file does not hold them as floats."""
    w = RNG.integers(-127, 128, (256, 256)).astype(np.int8)
    model = parse(
        "q = QuantizeLinear(x, s, z)\nd = DequantizeLinear(q, s, z)\nwf = DequantizeLinear(w, s, z)\ny = MatMul(d, wf)",
        "float[N, 256] x",
        "float[N, 256] y",
        **{"w": w, "s": np.float32(0.02), "z": np.int8(0)},
    )
    assert onnxlift.rewrite(model, target=0).ByteSize() < 1.3 * w.size


# --- borders ---------------------------------------------------------------------------------------------------------

SCALES = {"s": np.float32(0.02), "z": np.int8(3), "s2": np.float32(0.03), "u": np.uint8(128)}


def test_outputs_keep_their_integers() -> None:
    """Inside, the same tensor is one of floats."""
    model = parse(
        "q = QuantizeLinear(x, s, z)\np = Transpose(q)\na = MatMulInteger(q, p)\nd = DequantizeLinear(q, s2, z)\n"
        "e = Cast<to = 1>(a)\nf = ReduceMean<keepdims = 1>(e, one)\ny = Add(d, f)",
        "float[3, 4] x",
        "int8[3, 4] q, int8[4, 3] p, int32[3, 3] a, float[3, 4] y",
        **SCALES,
        one=np.int64([1]),
    )
    x, r = f32(3, 4), f32(3, 4)
    explainer = onnxlift.rewrite(model, target="weights")
    got, expected = run(explainer, {"x": x, "x_reference": r, "target_weights": f32(3, 4)}), run(model, {"x": x})
    for name, value in expected.items():
        assert got[name].dtype == value.dtype
        np.testing.assert_array_equal(got[name], value)
    conserved(got)


def test_integer_inputs_are_dequantised() -> None:
    """What is attributed to is the first tensor of floats."""
    model = parse(
        "m = MaxPool<kernel_shape = [2], strides = [2]>(x)\nd = DequantizeLinear(m, s, u)\nt = Tanh(d)\n"
        "c = QLinearConv(m, s, u, w, s, z, s2, u)\ne = DequantizeLinear(c, s2, u)\nf = Concat<axis = 2>(t, e)",
        "uint8[N, 2, 8] x",
        "float[N, 2, 7] f",
        **SCALES,
        w=RNG.integers(-99, 99, (2, 2, 2)).astype(np.int8),
    )
    x, r = (RNG.integers(0, 256, (2, 2, 8)).astype(np.uint8) for _ in range(2))
    explainer = onnxlift.rewrite(model, inputs=["d"], output="t", target="weights", pre_activation=False)
    got = run(explainer, {"x": x, "x_reference": r, "target_weights": f32(2, 2, 4)})
    np.testing.assert_array_equal(got["f"], run(model, {"x": x})["f"])
    gap, total = np.abs(got["completeness_gap"]).max(), np.abs(got["d_contributions"]).sum()
    assert gap <= 1e-4 * total


def test_other_operators_get_their_integers_back() -> None:
    model = parse(
        "q = QuantizeLinear(x, s, u)\nb = BitwiseNot(q)\nd = DequantizeLinear(b, s, u)\ny = Add(d, x)",
        "float[N, 4] x",
        "float[N, 4] y",
        **SCALES,
    )
    x = f32(2, 4)
    normal = normal_form(model, replace=Lowerer(registry.is_known))
    np.testing.assert_array_equal(run(normal, {"x": x})["y"], run(model, {"x": x})["y"])


def test_indices_made_of_quantised_tensors_are_integers() -> None:
    model = parse(
        "q = QuantizeLinear(x, s, u)\ni = Cast<to = 7>(q)\nk = Mod(i, four)\nj = Add(i, i)\nl = Sub(j, j)\n"
        "a = GatherElements<axis = 1>(q, k)\nb = GatherElements<axis = 1>(a, l)\ny = DequantizeLinear(b, s, u)",
        "float[N, 4] x",
        "float[N, 4] y",
        **{"s": SCALES["s"], "u": SCALES["u"], "four": np.int64(4)},
    )
    x = f32(2, 4)
    normal = normal_form(model, replace=Lowerer(registry.is_known))
    onnx.checker.check_model(normal, full_check=True)
    np.testing.assert_array_equal(run(normal, {"x": x})["y"], run(model, {"x": x})["y"])


def test_float8_is_refused_by_name() -> None:
    body = "q = QuantizeLinear(x, s, f8)\ny = DequantizeLinear(q, s, f8)"
    model = parse(body, "float[N, 4] x", "float[N, 4] y", s=SCALES["s"])
    model.graph.initializer.append(helper.make_tensor("f8", TensorProto.FLOAT8E4M3FN, [], [0.0]))
    with pytest.raises(RuleError, match="float8e4m3fn"):
        onnxlift.rewrite(model, inputs=["x"], target=0)


def test_branches_hold_quantised_tensors() -> None:
    """Their outputs, and what they take from outside, are floats or integers as on the other side of the border."""
    body = """q = QuantizeLinear(x, s, z)
        b = If (c) <then_branch = g () => (int8[N, 4] o1) {
            r = Relu(q)
            o1 = Identity(r)
        }, else_branch = h () => (int8[N, 4] o2) {
            d = DequantizeLinear(q, s, z)
            t = Tanh(d)
            o2 = QuantizeLinear(t, s, z)
        }>
        y = DequantizeLinear(b, s2, z)"""
    model = parse(body, "float[N, 4] x, bool c", "float[N, 4] y", **SCALES)
    normal = normal_form(model, replace=Lowerer(registry.is_known))
    onnx.checker.check_model(normal, full_check=True)
    for c in (True, False):
        feed = {"x": f32(3, 4), "c": np.array(c)}
        np.testing.assert_array_equal(run(normal, feed)["y"], run(model, feed)["y"])
