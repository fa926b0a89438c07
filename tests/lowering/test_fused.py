"""Fused operators of com.microsoft: what ONNX Runtime's kernels compute, or NumPy where the CPU provider has none."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from lowered import Array, Case, check, f, half, one, refusal

erf = np.vectorize(math.erf)


def gelu(x: Array) -> Array:
    return x * (1 + erf(x / np.sqrt(2))) / 2


def fast_gelu(x: Array) -> Array:
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def softmax(x: Array, axes: tuple[int, ...] = (-1,)) -> Array:
    e = np.exp(x - x.max(axes, keepdims=True))
    return e / e.sum(axes, keepdims=True)


# --- activations, sums -----------------------------------------------------------------------------------------------

ELEMENTWISE = {
    "Gelu": one("Gelu", (2, 3, 8)),
    "BiasGelu": one("BiasGelu", (2, 3, 8), (8,)),
    "FastGelu": one("FastGelu", (2, 3, 8)),
    "FastGelu bias": one("FastGelu", (2, 3, 8), (8,)),
    "QuickGelu": one("QuickGelu", (2, 3, 8)),
    "QuickGelu alpha": one("QuickGelu", (2, 3, 8), attributes={"alpha": 1.0}),
    "ScaledSiLU": one("ScaledSiLU", (2, 3, 8), attributes={"alpha": 1.3}),
    "ScaledSiLU scale": Case("ScaledSiLU", {"x": f(2, 3), "s": np.array(0.7, np.float32)}, ["x"]),
    "GatedAdd": Case("GatedAdd", {"x": f(2, 3, 4), "y": f(2, 3, 4), "g": f(2, 3, 1)}, ["x", "y", "g"], outputs=["z"]),
    "BiasSplitGelu": one(
        "BiasSplitGelu", (2, 3, 8), (8,), expected=lambda x, b: (x + b)[..., :4] * gelu((x + b)[..., 4:])
    ),
    "BiasAdd": Case(
        "BiasAdd", {"x": f(2, 3, 4), "b": f(4), "s": f(2, 3, 4)}, ["x", "s"], expected=lambda x, b, s: x + b + s
    ),
    "BiasDropout": one("BiasDropout", (2, 3), (3,), expected=lambda x, b: x + b),
    "BiasDropout residual": one("BiasDropout", (2, 3), (3,), (2, 3), expected=lambda x, b, r: x + b + r),
    "BiasDropout inference": Case(
        "BiasDropout",
        {"x": f(2, 3), "b": f(3), "r": None, "ratio": np.array(0.3, np.float32), "t": np.array(False)},
        ["x"],
        expected=lambda x, b, r, ratio, t: x + b,
    ),
    "BitmaskDropout": one("BitmaskDropout", (2, 3), expected=lambda x: x),
    "BitmaskBiasDropout": one("BitmaskBiasDropout", (2, 3), (3,), (2, 3), expected=lambda x, b, r: x + b + r),
    "BiasSoftmax inner": one(
        "BiasSoftmax", (2, 3, 4, 5), (2, 1, 1, 5),
        attributes={"axis": 3, "is_inner_broadcast": 1}, expected=lambda x, b, **_: softmax(x + b),
    ),
    "BiasSoftmax outer": one(
        "BiasSoftmax", (2, 3, 4, 5), (4, 5),
        attributes={"axis": 2, "is_inner_broadcast": 0}, expected=lambda x, b, **_: softmax(x + b, (2, 3)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ELEMENTWISE.values(), ids=ELEMENTWISE)
def test_elementwise(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("name", ["BiasGelu", "FastGelu bias", "QuickGelu", "ScaledSiLU scale", "GatedAdd"])
def test_half_precision(name: str) -> None:
    check(half(ELEMENTWISE[name]))


# --- matrix products -------------------------------------------------------------------------------------------------

GEMM_ACTIVATIONS: list[dict[str, Any]] = [
    {"activation": "Relu"},
    {"activation": "Tanh"},
    {"activation": "Sigmoid"},
    {"activation": "LeakyRelu", "activation_alpha": 0.2},
    {"activation": "Elu", "activation_alpha": 0.7},
    {"activation": "HardSigmoid", "activation_alpha": 0.3, "activation_beta": 0.4},
    {"activation": "Softplus"},
    {"activation": "Softsign"},
    {"activation": "ThresholdedRelu", "activation_alpha": 0.5},
]


@pytest.mark.parametrize("attributes", GEMM_ACTIVATIONS, ids=lambda a: a["activation"])
def test_gemm_activations(attributes: dict[str, Any]) -> None:
    check(one("FusedGemm", (3, 4), (4, 5), (5,), attributes=attributes))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_gemm(transposed: bool, bias: bool) -> None:
    attributes = {"alpha": 0.5, "beta": 1.5, "transB": int(transposed), "activation": "Tanh"}
    shapes = [(3, 4), (5, 4) if transposed else (4, 5), *([(5,)] if bias else [])]
    check(one("FusedGemm", *shapes, attributes=attributes))


def test_gemm_of_a_transposed_input() -> None:
    inputs = {"x": f(4, 3), "w": f(4, 5), "c": f(3, 5)}
    check(Case("FusedGemm", inputs, ["x", "c"], {"transA": 1, "activation": "Relu"}))


MATMUL = {
    "plain": ((2, 3, 4, 5), (2, 3, 5, 6), {}),
    "alpha": ((2, 3, 4, 5), (2, 3, 5, 6), {"alpha": 0.3}),
    "transA": ((2, 3, 5, 4), (2, 3, 5, 6), {"transA": 1}),
    "transB": ((2, 3, 4, 5), (2, 3, 6, 5), {"transB": 1}),
    "transBatchA": ((4, 2, 3, 5), (2, 3, 5, 6), {"transBatchA": 1}),
    "transBatchB": ((2, 3, 4, 5), (5, 2, 3, 6), {"transBatchB": 1}),
    "both": ((5, 2, 3, 4), (6, 2, 3, 5), {"transBatchA": 1, "transA": 1, "transBatchB": 1, "transB": 1}),
    "vector": ((5,), (5, 6), {"transA": 1}),
}


@pytest.mark.parametrize(("a", "b", "attributes"), MATMUL.values(), ids=MATMUL)
def test_matmul(a: tuple[int, ...], b: tuple[int, ...], attributes: dict[str, Any]) -> None:
    check(Case("FusedMatMul", {"x": f(*a), "w": f(*b)}, ["x", "w"] if len(a) > 1 else ["x"], attributes))


def test_matmul_under_its_old_name() -> None:
    attributes = {"transA": 1, "transB": 1, "alpha": 2.0}
    check(Case("TransposeMatMul", {"x": f(2, 5, 4), "w": f(2, 6, 5)}, ["x", "w"], attributes))


def test_matmul_with_activation() -> None:
    def expected(x: Array, w: Array, **_: Any) -> Array:
        return softmax(0.5 * x @ w.T, (1,))

    attributes = {"activation": "Softmax", "activation_axis": 1, "alpha": 0.5, "transB": 1}
    check(one("FusedMatMulActivation", (2, 3, 4), (5, 4), attributes=attributes, expected=expected))


def test_gemm_fast_gelu() -> None:
    check(one("GemmFastGelu", (2, 3, 4), (4, 5), (5,), expected=lambda x, w, b: fast_gelu(x @ w + b)))
    check(one("GemmFastGelu", (2, 3, 4), (4, 5), expected=lambda x, w: fast_gelu(x @ w)))


# --- convolutions ----------------------------------------------------------------------------------------------------

CONV_ACTIVATIONS: list[dict[str, Any]] = [
    {"activation": "Relu"},
    {"activation": "Tanh"},
    {"activation": "Sigmoid"},
    {"activation": "LeakyRelu", "activation_params": [0.2]},
    {"activation": "Clip", "activation_params": [-0.5, 1.0]},
    {"activation": "HardSigmoid", "activation_params": [0.3, 0.4]},
]


@pytest.mark.parametrize("attributes", CONV_ACTIVATIONS, ids=lambda a: a["activation"])
def test_conv_activations(attributes: dict[str, Any]) -> None:
    check(one("FusedConv", (2, 3, 6, 6), (4, 3, 3, 3), (4,), attributes={"pads": [1, 1, 1, 1], **attributes}))


def test_conv_with_a_residual() -> None:
    inputs = {"x": f(2, 4, 7, 7), "w": f(4, 2, 3, 3), "b": f(4), "z": f(2, 4, 4, 4)}
    attributes = {"group": 2, "strides": [2, 2], "pads": [1, 1, 1, 1], "kernel_shape": [3, 3], "activation": "Relu"}
    check(Case("FusedConv", inputs, ["x", "z"], attributes))
    check(Case("FusedConv", inputs | {"b": None}, ["x", "z"], attributes))


def test_conv_without_activation() -> None:
    check(one("FusedConv", (2, 3, 6, 6), (4, 3, 3, 3), attributes={"auto_pad": "SAME_UPPER", "strides": [2, 2]}))


def convolved(x: Array, w: Array) -> Array:
    """[N, H, W, C] with filters [M, C, kh, kw], no padding."""
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(1, 2))
    return np.einsum("nhwcij,mcij->nhwm", windows, w)


def test_conv_with_channels_last() -> None:
    check(one("NhwcConv", (2, 6, 5, 3), (4, 3, 3, 2), (4,), expected=lambda x, w, b: convolved(x, w) + b))
    inputs = {"x": f(2, 6, 5, 3), "w": f(4, 3, 3, 2), "b": f(4), "z": f(2, 4, 4, 4)}

    def expected(x: Array, w: Array, b: Array, z: Array, **_: Any) -> Array:
        return np.maximum(convolved(x, w) + b + z, 0)

    check(Case("NhwcFusedConv", inputs, ["x", "z"], {"activation": "Relu"}, expected=expected))


def test_transposed_conv_with_pads_as_an_input() -> None:
    attributes = {"strides": [2, 2], "output_padding": [1, 1]}
    check(
        Case(
            "ConvTransposeWithDynamicPads",
            {"x": f(2, 3, 5, 5), "w": f(3, 4, 3, 3), "p": np.array([1, 1, 1, 1]), "b": f(4)},
            ["x"],
            attributes,
        )
    )


# --- refused ---------------------------------------------------------------------------------------------------------

REFUSED = {
    "training mode": Case("BiasDropout", {"x": f(2, 3), "b": f(3), "r": None, "p": None, "t": np.array(True)}, ["x"]),
    "output 1": Case("BiasDropout", {"x": f(2, 3), "b": f(3)}, ["x"], outputs=["y", "mask"]),
    "'Unheard'": Case("FusedGemm", {"x": f(2, 3), "w": f(3, 3)}, ["x"], {"activation": "Unheard"}),
    "inverse of a matrix": Case("Inverse", {"x": f(3, 3)}, ["x"]),
    "'cosine'": Case("CDist", {"x": f(3, 4), "z": f(5, 4)}, ["x"], {"metric": "cosine"}),
    "ORT_ENABLE_EXTENDED": Case("GlobalAveragePool", {"x": f(1, 8, 3, 3)}, ["x"], domain="com.microsoft.nchwc"),
}


@pytest.mark.parametrize(("reason", "case"), REFUSED.items(), ids=REFUSED)
def test_refused(reason: str, case: Case) -> None:
    assert reason in refusal(case)
