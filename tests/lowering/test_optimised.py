"""An optimised model means what the original does: contributions of a transformer block, before and behind fusion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from lowered import Array, run
from onnx import helper, numpy_helper

import onnxlift
from onnxlift.lowering import MICROSOFT

B, S, D, N = 2, 6, 16, 2
H = D // N


class Block:
    """A BERT layer on x [batch, length, D] with a mask [batch, length], written as exporters do."""

    def __init__(self, *, fused: bool) -> None:
        self.rng = np.random.default_rng(0)
        self.constants: dict[str, Array] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.add("LayerNormalization", ["x", *self.affine("first", D)], "input", axis=-1, epsilon=1e-5)
        context = self.fused_attention() if fused else self.attention()
        self.add("MatMul", [context, self.weight("w_out", D, D)], "projected")
        if fused:
            self.add_fused_rest()
        else:
            self.add_rest()

    def add(self, op: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], output, domain=domain, **attributes))
        return output

    def weight(self, name: str, *shape: int) -> str:
        """The same numbers by name, whatever else the model has."""
        seed = sum(map(ord, name))
        values = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[0])
        self.constants[name] = values.astype(np.float32)
        return name

    def affine(self, name: str, size: int) -> list[str]:
        return [self.weight(f"{name}_scale", size), self.weight(f"{name}_bias", size)]

    def constant(self, name: str, value: Any, dtype: type = np.float32) -> str:
        self.constants[name] = np.array(value, dtype)
        return name

    def attention(self) -> str:
        self.constant("split", [0, 0, N, H], np.int64)
        heads = {}
        for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
            self.add("MatMul", ["input", self.weight(f"w_{name}", D, D)], f"{name}1")
            self.add("Add", [f"{name}1", self.weight(f"b_{name}", D)], f"{name}2")
            self.add("Reshape", [f"{name}2", "split"], f"{name}3")
            heads[name] = self.add("Transpose", [f"{name}3"], f"{name}4", perm=order)
        self.add("MatMul", [heads["q"], heads["k"]], "scores")
        self.add("Div", ["scores", self.constant("root", np.sqrt(H))], "scaled")
        self.add("Unsqueeze", ["mask", self.constant("axes", [1, 2], np.int64)], "wide mask")
        self.add("Cast", ["wide mask"], "float mask", to=onnx.TensorProto.FLOAT)
        self.add("Sub", [self.constant("one", 1), "float mask"], "hidden")
        self.add("Mul", ["hidden", self.constant("low", -10000)], "low mask")
        self.add("Add", ["scaled", "low mask"], "masked")
        self.add("Softmax", ["masked"], "shares", axis=3)
        self.add("MatMul", ["shares", heads["v"]], "values")
        self.add("Transpose", ["values"], "rows", perm=[0, 2, 1, 3])
        return self.add("Reshape", ["rows", self.constant("merge", [0, 0, D], np.int64)], "context")

    def fused_attention(self) -> str:
        for name in "qkv":
            self.weight(f"w_{name}", D, D)
            self.weight(f"b_{name}", D)
        for kind, axis in (("w", 1), ("b", 0)):
            packed = np.concatenate([self.constants.pop(f"{kind}_{name}") for name in "qkv"], axis)
            self.constant(f"{kind}_all", packed)
        self.add("Cast", ["mask"], "mask32", to=onnx.TensorProto.INT32)
        return self.add("Attention", ["input", "w_all", "b_all", "mask32"], "context", MICROSOFT, num_heads=N)

    def add_rest(self) -> None:
        self.add("Add", ["projected", self.weight("b_out", D)], "biased")
        self.add("Add", ["biased", "input"], "residual")
        self.add("LayerNormalization", ["residual", *self.affine("second", D)], "normal", axis=-1, epsilon=1e-5)
        self.add("MatMul", ["normal", self.weight("w_up", D, 32)], "up")
        self.add("Add", ["up", self.weight("b_up", 32)], "up biased")
        self.add("Div", ["up biased", self.constant("root2", np.sqrt(2))], "gelu1")
        self.add("Erf", ["gelu1"], "gelu2")
        self.add("Add", ["gelu2", self.constant("unit", 1)], "gelu3")
        self.add("Mul", ["up biased", "gelu3"], "gelu4")
        self.add("Mul", ["gelu4", self.constant("half", 0.5)], "active")
        self.add("MatMul", ["active", self.weight("w_down", 32, D)], "down")
        self.add("Add", ["down", self.weight("b_down", D)], "down biased")
        self.add("Add", ["down biased", "normal"], "sum")
        self.add("LayerNormalization", ["sum", *self.affine("third", D)], "y", axis=-1, epsilon=1e-5)

    def add_fused_rest(self) -> None:
        norm = {"domain": MICROSOFT, "epsilon": 1e-5}
        inputs = ["input", "projected", *self.affine("second", D), self.weight("b_out", D)]
        self.add("SkipLayerNormalization", inputs, "normal", **norm)
        self.add("MatMul", ["normal", self.weight("w_up", D, 32)], "up")
        self.add("BiasGelu", ["up", self.weight("b_up", 32)], "active", MICROSOFT)
        self.add("MatMul", ["active", self.weight("w_down", 32, D)], "down")
        inputs = ["normal", "down", *self.affine("third", D), self.weight("b_down", D)]
        self.add("SkipLayerNormalization", inputs, "y", **norm)

    def model(self) -> onnx.ModelProto:
        shape = ["batch", "length", D]
        graph = helper.make_graph(
            self.nodes,
            "block",
            [
                helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape),
                helper.make_tensor_value_info("mask", onnx.TensorProto.INT64, shape[:2]),
            ],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def optimised(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """As ONNX Runtime saves it at the level that is the same on every machine."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx")


def contributions(model: onnx.ModelProto, reference: str) -> Array:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((B, S, D)).astype(np.float32)
    feed = {"x": x, "mask": np.array([[1] * S, [1] * 4 + [0] * 2])}
    if reference != "zeros":
        rows = {"paired": (B, S, D), "shared": (3, S, D), "grouped": (B, 3, S, D)}[reference]
        feed["x_reference"] = rng.standard_normal(rows).astype(np.float32)
    feed["target_weights"] = rng.standard_normal((B, S, D)).astype(np.float32)
    explainer = onnxlift.rewrite(model, target="weights", reference=reference)
    results = run(explainer, feed)
    total = np.abs(results["x_contributions"]).sum()
    assert np.abs(results["completeness_gap"]).max() <= 1e-5 * total
    return results["x_contributions"]


@pytest.mark.parametrize("reference", ["paired", "zeros", "shared", "grouped"])
def test_the_same_contributions(reference: str, tmp_path: Path) -> None:
    """Of a block as exported, as optimised by ONNX Runtime, and with attention in one node."""
    plain = Block(fused=False).model()
    wanted = contributions(plain, reference)
    saved = optimised(plain, tmp_path)
    assert {"SkipLayerNormalization", "BiasGelu", "FusedMatMul"} <= {node.op_type for node in saved.graph.node}
    for model in (saved, Block(fused=True).model()):
        np.testing.assert_allclose(contributions(model, reference), wanted, atol=1e-5 * np.abs(wanted).max())
