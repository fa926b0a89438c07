"""Models in half and in double precision, and those that mix them.

ONNX Runtime's CPU provider computes most of half precision in float32, and hardly anything in bfloat16. What really
happens to 16-bit numbers is seen with onnx's reference evaluator, which rounds after every operator.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from laws import run
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from quantised import NETS, RNG, f32, parse

import onnxlift
from onnxlift.errors import ModelError


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """Whichever tests run."""
    RNG.bit_generator.state = np.random.default_rng(6).bit_generator.state


TYPES: dict[str, Any] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float64": np.float64}


def converted(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model with all of its float32 tensors in another precision."""
    dtype = np.dtype(TYPES[name])
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for value in (*copy.graph.input, *copy.graph.output):
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(dtype)
    return copy


def evaluate(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = ReferenceEvaluator(model)
    return dict(zip(session.output_names, map(np.asarray, session.run(None, feed)), strict=True))


def both(
    model: onnx.ModelProto, name: str, shape: tuple[int, ...], reference: str, compute: Any
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What the explainers of the model in that precision and in float32 make of the same numbers."""
    dtype = TYPES[name]
    x = f32(2, *shape).astype(dtype)
    feed = {
        "x": x,
        "x_reference": f32(2, *shape).astype(dtype) if reference == "random" else np.zeros_like(x),
        "target_weights": f32(2, 4).astype(dtype),
    }
    explainers = [
        onnxlift.rewrite(each, target="weights", pre_activation=False) for each in (converted(model, name), model)
    ]
    for explainer in explainers:
        onnx.checker.check_model(explainer, full_check=True)
    got = compute(explainers[0], feed)
    return got, run(explainers[1], {key: value.astype(np.float32) for key, value in feed.items()})


def check(got: dict[str, np.ndarray], expected: dict[str, np.ndarray], dtype: Any, tolerance: float) -> None:
    """The error of the contributions, relative to all of them; sums are taken in float32 at least."""
    c, c_32 = got["x_contributions"].astype(np.float64), expected["x_contributions"].astype(np.float64)
    assert got["x_contributions"].dtype == dtype
    assert got["completeness_gap"].dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert np.linalg.norm(c - c_32) <= tolerance * np.linalg.norm(c_32)
    assert np.abs(got["completeness_gap"]).max() <= tolerance * np.abs(c).sum()


@pytest.mark.parametrize("reference", ["random", "zeros"])
@pytest.mark.parametrize(("net", "name"), [(net, "float16") for net in NETS] + [("mlp", "float64")])
def test_whole_models(net: str, name: str, reference: str) -> None:
    make, shape = NETS[net]
    got, expected = both(make(), name, shape, reference, run)
    check(got, expected, TYPES[name], 4e-3 if name == "float16" else 1e-6)
    if name == "float64":
        assert np.abs(got["completeness_gap"]).max() < 1e-13


@pytest.mark.parametrize("reference", ["random", "zeros"])
@pytest.mark.parametrize("net", ["mlp", "transformer"])
@pytest.mark.parametrize(("name", "tolerance"), [("float16", 5e-3), ("bfloat16", 3e-2)])
def test_rounding_after_every_operator(net: str, name: str, tolerance: float, reference: str) -> None:
    make, shape = NETS[net]
    with np.errstate(all="ignore"):  # quotients that are selected away
        got, expected = both(make(), name, shape, reference, evaluate)
    check(got, expected, TYPES[name], tolerance)


def test_convolutions_in_bfloat16_are_refused() -> None:
    """They are of opset 22, from which on the CUDA provider lacks other operators."""
    make, _ = NETS["cnn"]
    with pytest.raises(ModelError, match=r"Conv.*bfloat16"):
        onnxlift.rewrite(converted(make(), "bfloat16"), target=0)


def test_mixed_precision() -> None:
    """Matrix products in half, the normalisation and the ends in float32."""
    model = parse(
        "a = Cast<to = 10>(x)\nb = MatMul(a, w)\nc = Cast<to = 1>(b)\nd = LayerNormalization(c, gamma)\n"
        "e = Cast<to = 10>(d)\nf = Relu(e)\ng = MatMul(f, v)\nh = CastLike(g, x)\ny = Add(h, b2)",
        "float[N, 8] x",
        "float[N, 4] y",
        **{"w": f32(8, 6).astype(np.float16), "v": f32(6, 4).astype(np.float16)},
        **{"gamma": np.ones(6, np.float32), "b2": f32(4)},
    )
    explainer = onnxlift.rewrite(model, target="weights", pre_activation=False)
    onnx.checker.check_model(explainer, full_check=True)
    got = run(explainer, {"x": f32(3, 8), "x_reference": f32(3, 8), "target_weights": f32(3, 4)})
    assert got["x_contributions"].dtype == np.float32
    assert np.abs(got["completeness_gap"]).max() <= 2e-3 * np.abs(got["x_contributions"]).sum()


def test_quantised_in_half() -> None:
    """Scales of 16 bits: the kernels compute in float32 and round once."""
    model = parse(
        "q = QuantizeLinear(x, s, z)\nd = DequantizeLinear(q, s, z)\ne = DequantizeLinear(w, s, z)\n"
        "f = MatMul(d, e)\ng = QuantizeLinear(f, t, z)\ny = DequantizeLinear(g, t, z)",
        "float16[N, 8] x",
        "float16[N, 4] y",
        **{"s": np.float16(0.03), "t": np.float16(0.11), "z": np.int8(-7)},
        w=np.random.default_rng(4).integers(-99, 99, (8, 4)).astype(np.int8),
    )
    x, r, seed = f32(3, 8).astype(np.float16), f32(3, 8).astype(np.float16), f32(3, 4).astype(np.float16)
    explainer = onnxlift.rewrite(model, target="weights", pre_activation=False)
    got = run(explainer, {"x": x, "x_reference": r, "target_weights": seed})
    np.testing.assert_array_equal(got["y"], run(model, {"x": x})["y"])
    assert got["x_contributions"].dtype == np.float16
    assert np.abs(got["completeness_gap"]).max() <= 2e-3 * np.abs(got["x_contributions"].astype(np.float32)).sum()
