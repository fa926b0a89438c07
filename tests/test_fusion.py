"""GELU and BatchNormalization brought together before the rewriting: the same numbers from fewer nodes."""

from __future__ import annotations

import laws
import numpy as np
import onnx
import pytest

import onnxlift

ROOT = np.float32(np.sqrt(2))
GELUS = {
    "legacy torch": "u = Div (h, root) e = Erf (u) t = Add (e, one) p = Mul (h, t) a = Mul (p, half)",
    "constants first": "u = Mul (over, h) e = Erf (u) t = Add (one, e) p = Mul (half, t) a = Mul (h, p)",
    "half of x": "u = Mul (h, over) e = Erf (u) t = Add (e, one) p = Mul (h, half) a = Mul (p, t)",
    "tanh": "c = Pow (h, three) u = Mul (c, cubic) s = Add (h, u) v = Mul (s, scale) e = Tanh (v) t = Add (e, one) "
    "p = Mul (h, half) a = Mul (p, t)",
    "tanh, the other way": "c = Pow (h, three) u = Mul (cubic, c) s = Add (u, h) v = Mul (scale, s) e = Tanh (v) "
    "t = Add (one, e) p = Mul (t, half) a = Mul (p, h)",
}
NUMBERS = {
    "root": ROOT,
    "over": 1 / ROOT,
    "one": np.float32(1),
    "half": np.float32(0.5),
    "three": np.float32(3),
    "cubic": np.float32(0.044715),
    "scale": np.float32(np.sqrt(2 / np.pi)),
}


def arrays(text: str, rng: np.random.Generator, dtype: type = np.float32) -> dict[str, np.ndarray]:
    """The constants that a text reads."""
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    found = {name: np.asarray(value, dtype) for name, value in NUMBERS.items() if name in words}
    return found | {"w": rng.standard_normal((6, 5)).astype(dtype), "out": rng.standard_normal((5, 2)).astype(dtype)}


def network(gelu: str, dtype: str = "float", more: str = "") -> onnx.ModelProto:
    kind = np.float64 if dtype == "double" else np.float32
    text = f"h = MatMul (x, w) {gelu} y = MatMul (a, out)"
    constants = arrays(text, np.random.default_rng(0), kind)
    return laws.model(f"g ({dtype}[N, 6] x) => ({dtype}[N, 2] y{more}) {{ {text} }}", **constants)


def ops(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


def explained(model: onnx.ModelProto, shape: tuple[int, ...], **options: object) -> dict[str, np.ndarray]:
    """Contributions with the inner tensors kept (`expose`) or not."""
    rng = np.random.default_rng(1)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    x, r = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    r[0, 0] = x[0, 0]
    return laws.run(onnxlift.rewrite(model, target=0, **options), {"x": x, "x_reference": r})


@pytest.mark.parametrize("gelu", GELUS.values(), ids=GELUS)
def test_gelu_is_one_operator(gelu: str) -> None:
    model = network(gelu)
    explainer = onnxlift.rewrite(model, target=0)
    assert sum(node.op_type == "Gelu" for node in explainer.graph.node) == 2
    assert not any(name == "e" for node in explainer.graph.node for name in node.output)
    fused, plain = explained(model, (7, 6)), explained(model, (7, 6), expose=["t"])
    for name in ("y", "x_contributions"):
        np.testing.assert_allclose(fused[name], plain[name], rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(fused["completeness_gap"], 0, atol=2e-5)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (network(GELUS["legacy torch"]), {"expose": ["t"]}),
        (network(GELUS["legacy torch"]), {"inputs": ["u"]}),
        (network(GELUS["legacy torch"]), {"rule": "liftpad"}),
        (network(GELUS["legacy torch"]), {"rule": "reveal-cancel"}),
        (network(GELUS["legacy torch"]), {"plan": onnxlift.Plan([onnxlift.Choice("rescale", op="Erf")])}),
        (network(GELUS["legacy torch"], more=", float[N, 5] e"), {}),
        (network(GELUS["legacy torch"], "double"), {}),
        (network(GELUS["legacy torch"].replace("half)", "over)")), {}),
        (network(GELUS["legacy torch"].replace("a =", "q =") + " a = Mul (q, t)"), {}),
    ],
    ids=[
        "exposed",
        "attributed",
        "a plan for Mul",
        "reveal-cancel",
        "named by a plan",
        "an output",
        "float64",
        "no half",
        "read again",
    ],
)
def test_gelu_is_left_alone(model: onnx.ModelProto, options: dict[str, object]) -> None:
    assert "Gelu" not in ops(onnxlift.rewrite(model, target=0, **options))


NORMS = {
    "plain": ("w", "group = 1"),
    "with a bias": ("w, b", "group = 1"),
    "grouped": ("grouped, b", "group = 2"),
    "strided": ("w", "strides = [2, 2], pads = [1, 1, 1, 1]"),
}


def normed(weights: str, attributes: str) -> onnx.ModelProto:
    rng = np.random.default_rng(2)
    shapes = {"w": (6, 4, 3, 3), "grouped": (6, 2, 3, 3), "b": 6, "scale": 6, "shift": 6, "mean": 6, "var": 6}
    constants = {name: rng.random(shape).astype(np.float32) + np.float32(0.1) for name, shape in shapes.items()}
    read = {*weights.split(", "), "scale", "shift", "mean", "var"}
    text = f"""
        h = Conv <{attributes}> (x, {weights})
        n = BatchNormalization <epsilon = 0.01> (h, scale, shift, mean, var)
        a = Relu (n) p = GlobalAveragePool (a) y = Flatten (p)
    """
    used = {name: constants[name] for name in read}
    return laws.model(f"g (float[N, 4, 8, 8] x) => (float[N, 6] y) {{ {text} }}", **used)


@pytest.mark.parametrize(("weights", "attributes"), NORMS.values(), ids=NORMS)
def test_batch_normalization_goes_into_the_convolution(weights: str, attributes: str) -> None:
    model = normed(weights, attributes)
    explainer = onnxlift.rewrite(model, target=0)
    assert "BatchNormalization" not in ops(explainer)
    big = [tensor.name for tensor in explainer.graph.initializer if np.prod(tensor.dims) > 100]
    assert big == [weights.split(",")[0]]  # the folded weights are not in the file
    fused, plain = explained(model, (3, 4, 8, 8)), explained(model, (3, 4, 8, 8), expose=["h"])
    for name in ("y", "x_contributions"):
        np.testing.assert_allclose(fused[name], plain[name], rtol=2e-5, atol=2e-6)


def test_batch_normalization_of_a_tensor_that_is_read_twice_stays() -> None:
    model = normed("w", "group = 1")
    model.graph.node.append(onnx.helper.make_node("Relu", ["h"], ["again"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("again", onnx.TensorProto.FLOAT, ["N", 6, 6, 6]))
    assert "BatchNormalization" in ops(onnxlift.rewrite(model, output="y", target=0))
