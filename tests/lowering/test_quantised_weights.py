"""Weights that are packed, several to a byte: what ONNX Runtime's kernels compute of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from laws import run
from onnx import TensorProto, helper, numpy_helper
from quantised import conserved, explained

import onnxlift

RNG = np.random.default_rng(11)


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """Whichever tests run: numbers half-way between two integers would be another matter."""
    RNG.bit_generator.state = np.random.default_rng(111).bit_generator.state


MICROSOFT = "com.microsoft"


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Along the last axis, the first number in the lowest bits."""
    each = 8 // bits
    filled = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % each)])
    fields = filled.reshape(*codes.shape[:-1], -1, each)
    return (fields << (np.arange(each) * bits)).sum(-1).astype(np.uint8)


def model(
    op: str,
    attributes: dict[str, Any],
    constants: dict[str, np.ndarray],
    inputs: list[str],
    x: tuple[int | str, ...],
    *,
    kind: int = TensorProto.FLOAT,
    integers: bool = False,
) -> onnx.ModelProto:
    """One operator of com.microsoft of x and constants."""
    node = helper.make_node(op, inputs, ["y"], domain=MICROSOFT, **attributes)
    given = helper.make_tensor_value_info("x", TensorProto.INT64 if integers else kind, x)
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph([node], "net", [given], [helper.make_tensor_value_info("y", kind, None)], weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


N_BITS = {
    "4 bits": {},
    "2 bits": {"bits": 2},
    "8 bits": {"bits": 8},
    "zero points": {"zeros": "packed"},
    "zero points of 8 bits": {"bits": 8, "zeros": "packed"},
    "zero points in float": {"zeros": "float"},
    "groups": {"groups": True},
    "bias": {"bias": True},
    "partial block": {"k": 40},
    "an odd number of blocks": {"k": 96, "zeros": "packed"},
    "half": {"half": True},
}


@pytest.mark.parametrize("case", N_BITS.values(), ids=N_BITS)
def test_matmul_n_bits(case: dict[str, Any]) -> None:
    k, n, block, bits = case.get("k", 64), 5, 32, case.get("bits", 4)
    blocks = -(-k // block)
    kind = np.float16 if case.get("half") else np.float32
    codes = RNG.integers(0, 2**bits, (n, blocks, block))
    zeros = RNG.integers(0, 2**bits, (n, blocks))
    constants = {
        "b": packed(codes, bits),
        "scales": (0.05 + 0.1 * RNG.random((n, blocks))).astype(kind),
    }
    inputs = ["x", "b", "scales", "", "", ""]
    if "zeros" in case:
        inputs[3] = "zeros"
        constants["zeros"] = packed(zeros, bits) if case["zeros"] == "packed" else (zeros + 0.3).astype(kind)
    if case.get("groups"):
        inputs[4] = "groups"
        constants["groups"] = RNG.permutation(np.repeat(np.arange(blocks), block))[:k].astype(np.int32)
    if case.get("bias"):
        inputs[5] = "bias"
        constants["bias"] = RNG.standard_normal(n).astype(kind)
    while not inputs[-1]:
        inputs.pop()
    attributes = {"K": k, "N": n, "bits": bits, "block_size": block}
    elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    net = model("MatMulNBits", attributes, constants, inputs, ("N", 3, k), kind=elem_type)
    x, r = (RNG.standard_normal((2, 3, k)).astype(kind) for _ in range(2))
    got = explained(net, x, r)
    tolerance = 5e-3 if case.get("half") else 2e-6
    expected = run(net, {"x": x})["y"].astype(np.float32)
    np.testing.assert_allclose(got["y"].astype(np.float32), expected, rtol=0, atol=tolerance * np.abs(expected).max())
    if not case.get("half"):
        conserved(got)


@pytest.mark.parametrize(("quant_type", "k", "block"), [(0, 32, 16), (1, 32, 16), (1, 24, 32)])
def test_matmul_bnb4(quant_type: int, k: int, block: int) -> None:
    n = 3
    blocks = -(-n * k // block)
    constants = {
        "b": RNG.integers(0, 256, n * k // 2).astype(np.uint8),
        "absmax": (0.5 + RNG.random(blocks)).astype(np.float32),
    }
    attributes = {"K": k, "N": n, "block_size": block, "quant_type": quant_type}
    net = model("MatMulBnb4", attributes, constants, ["x", "b", "absmax"], ("N", k))
    x, r = (RNG.standard_normal((2, k)).astype(np.float32) for _ in range(2))
    got = explained(net, x, r)
    np.testing.assert_allclose(got["y"], run(net, {"x": x})["y"], rtol=0, atol=1e-5)
    conserved(got)


def test_the_legacy_format_is_refused() -> None:
    constants = {"b": np.zeros(64, np.uint8), "shape": np.int64([8, 4])}
    net = model("MatMulFpQ4", {"blk_quant_type": 1}, constants, ["x", "b", "shape"], ("N", 8))
    with pytest.raises(onnxlift.errors.RuleError, match="MatMulFpQ4"):
        onnxlift.rewrite(net, output="y", target="weights")


TABLES = {
    "uint8, 4 bits": ({"bits": 4}, np.uint8, False),
    "uint8, 4 bits, zero points": ({"bits": 4}, np.uint8, True),
    "uint8, 8 bits": ({"bits": 8}, np.uint8, True),
    "int4": ({}, "INT4", True),
    "uint4": ({}, "UINT4", False),
}


@pytest.mark.parametrize(("attributes", "kind", "with_zeros"), TABLES.values(), ids=TABLES)
def test_looked_up_rows(attributes: dict[str, int], kind: Any, with_zeros: bool) -> None:
    """The embedding is the first float tensor: it is what is attributed to."""
    rows, width, block = 7, 32, 16
    bits = attributes.get("bits", 4)
    if kind is np.uint8:
        table, zeros = (
            packed(RNG.integers(0, 2**bits, shape), bits) for shape in ((rows, width), (rows, width // block))
        )
    else:
        dtype = helper.tensor_dtype_to_np_dtype(getattr(TensorProto, kind))
        low = -8 if kind == "INT4" else 0
        table, zeros = (
            RNG.integers(low, low + 16, shape).astype(dtype) for shape in ((rows, width), (rows, width // block))
        )
    constants = {"table": table, "scales": (0.1 + RNG.random((rows, width // block))).astype(np.float32)}
    inputs = ["table", "x", "scales"]
    if with_zeros:
        constants["zeros"] = zeros
        inputs.append("zeros")
    both = {"block_size": block, "quantize_axis": 1, "gather_axis": 0, **attributes}
    net = model("GatherBlockQuantized", both, constants, inputs, ("N", 3), integers=True)
    net.graph.node[0].output[0] = "rows"
    net.graph.node.append(helper.make_node("Tanh", ["rows"], ["y"]))
    x, r = (RNG.integers(0, rows, (2, 3)) for _ in range(2))
    explainer = onnxlift.rewrite(net, inputs=["rows"], target="weights", pre_activation=False)
    seed = RNG.standard_normal((2, 3, width)).astype(np.float32)
    got = run(explainer, {"x": x, "x_reference": r, "target_weights": seed})
    np.testing.assert_array_equal(got["y"], run(net, {"x": x})["y"])
    assert np.abs(got["completeness_gap"]).max() <= 1e-4 * np.abs(got["rows_contributions"]).sum()
