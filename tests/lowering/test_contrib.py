"""Small operators of com.microsoft: what ONNX Runtime's kernels compute, or NumPy where the CPU provider has none."""

from __future__ import annotations

import numpy as np
import pytest
from lowered import Array, Case, check, f, lowered, one, run

# --- small ones ------------------------------------------------------------------------------------------------------

SMALL = {
    "SampleOp": one("SampleOp", (2, 3)),
    **{
        f"ExpandDims {axis}": Case("ExpandDims", {"x": f(2, 3), "a": np.array(axis, np.int32)}, ["x"])
        for axis in (0, 1, 2, -1, -3)
    },
    "Trilu": one("Trilu", (2, 3, 4)),
    "Trilu lower": Case("Trilu", {"x": f(2, 3, 4), "k": np.array(1)}, ["x"], {"upper": 0}),
    "Pad": Case("Pad", {"x": f(2, 3), "p": np.array([0, 1, 0, 2]), "v": np.array([0.5], np.float32)}, ["x"]),
    "Pad, a row": Case("Pad", {"x": f(2, 3), "p": np.array([[0, 1, 0, 2]])}, ["x"], {"mode": "reflect"}),
    "GatherND": Case("GatherND", {"x": f(3, 4), "i": np.array([[0, 1], [2, 3]], np.int32)}, ["x"]),
    "UnfoldTensor": one("UnfoldTensor", (2, 7), attributes={"size": 3, "step": 2}),
    "UnfoldTensor inside": one("UnfoldTensor", (2, 7, 3), attributes={"size": 3, "step": 1, "dim": 1}),
    "CDist": Case("CDist", {"x": f(3, 4), "z": f(5, 4)}, ["x", "z"], {"metric": "euclidean"}, rtol=1e-4),
    "CDist squared": Case("CDist", {"x": f(3, 4), "z": f(5, 4)}, ["x", "z"], {"metric": "sqeuclidean"}, rtol=1e-4),
    "TorchEmbedding": Case(
        "TorchEmbedding", {"x": f(5, 3), "i": np.array([[0, 4], [2, 2]])}, ["x"], expected=lambda x, i: x[i]
    ),
    "Rfft": one("Rfft", (2, 3, 8), attributes={"signal_ndim": 1}, expected=lambda x, **_: pairs(np.fft.rfft(x))),
    "Irfft": one(
        "Irfft", (2, 3, 5, 2), attributes={"signal_ndim": 1}, expected=lambda x, **_: np.fft.irfft(number(x))
    ),
    "ComplexMul": Case(
        "ComplexMul", {"x": f(3, 4, 2), "z": f(4, 2)}, ["x"],
        expected=lambda x, z: pairs(number(x) * number(z)),
    ),
    "ComplexMulConj": Case(
        "ComplexMulConj", {"x": f(3, 4, 2), "z": f(3, 4, 2)}, ["x", "z"],
        expected=lambda x, z: pairs(number(x) * number(z).conj()),
    ),
}  # fmt: skip


def number(x: Array) -> Array:
    return x[..., 0] + 1j * x[..., 1]


def pairs(z: Array) -> Array:
    return np.stack([z.real, z.imag], -1)


@pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)
def test_small(case: Case) -> None:
    check(case)


FORWARD = {
    "NhwcMaxPool": Case(
        "NhwcMaxPool",
        {"x": (50 * f(2, 5, 6, 3)).astype(np.int8)},
        ["x"],
        {"kernel_shape": [2, 3], "strides": [2, 1], "pads": [0, 1, 1, 1]},
    ),
    "Range": Case("Range", {"a": np.array(2.0, np.float32), "b": np.array(7.0, np.float32)}, ["a", "b"]),
    "Range, steps": Case("Range", {"a": np.array([9]), "b": np.array([1]), "c": np.array([-3])}, ["a", "b", "c"]),
    "Unique": Case("Unique", {"x": np.array([2, 1, 1, 3, 4, 3], np.float32)}, ["x"], outputs=["y", "i", "n"]),
    **{
        f"GridSample {mode} {padding}": Case(
            "GridSample",
            {"x": f(2, 3, 5, 6), "g": f(2, 4, 4, 2)},
            ["x", "g"],
            {"mode": mode, "padding_mode": padding, "align_corners": align},
        )
        for mode, padding, align in (("bilinear", "zeros", 0), ("bilinear", "border", 1), ("nearest", "reflection", 0))
    },
}


@pytest.mark.parametrize("case", FORWARD.values(), ids=FORWARD)
def test_forward(case: Case) -> None:
    """What passes importance, if anything, is up to the standard operator of the same name."""
    model = case.model()
    got, wanted = run(lowered(model), case.feed), run(model, case.feed)
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("past", [True, False])
@pytest.mark.parametrize("dilation", [1, 2])
def test_causal_conv(dilation: int, past: bool, activation: str) -> None:
    inputs = {"x": f(2, 3, 5), "w": f(3, 1, 3), "b": f(3), "p": f(2, 3, 2 * dilation) if past else None}
    active = ["x", "p"] if past else ["x"]
    attributes = {"activation": activation, "dilation": dilation}
    check(Case("CausalConvWithState", inputs, active, attributes, outputs=["y", "state"]))
