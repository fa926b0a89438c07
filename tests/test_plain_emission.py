"""Every optimisation of the emitted graph, against the plain emission: the same outputs and contributions."""

from __future__ import annotations

from pathlib import Path

import laws
import numpy as np
import onnx
import plain
import pytest

import onnxlift

MODELS = Path(__file__).parent.parent / "models"
RNG = np.random.default_rng(5)


def weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1)).astype(np.float32)
        for name, shape in shapes.items()
    }


def image_network() -> onnx.ModelProto:
    """Convolutions, strided, normalised and pointwise; pools of every kind."""
    text = """
    g (float[N, 3, 17, 18] x) => (float[N, 4] y) {
        c1 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w1)
        n1 = BatchNormalization (c1, scale, shift, mean, var)
        a1 = Relu (n1)
        p1 = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (a1)
        c2 = Conv <pads = [1, 1, 1, 1]> (p1, w2)
        a2 = LeakyRelu (c2)
        p2 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a2)
        c3 = Conv (p2, w3, b3)
        a3 = Elu (c3)
        p3 = AveragePool <kernel_shape = [2, 1], strides = [2, 1]> (a3)
        f = Flatten (p3)
        y = Gemm (f, w4)
    }
    """
    found = weights(
        w1=(16, 3, 3, 3),
        w2=(16, 16, 3, 3),
        w3=(12, 16, 1, 1),
        b3=(12,),
        w4=(24, 4),
        scale=(16,),
        shift=(16,),
        mean=(16,),
    )
    return laws.model(text, var=np.linspace(0.5, 2, 16, dtype=np.float32), **found)


def encoder() -> onnx.ModelProto:
    """A layer of a transformer."""
    text = """
    g (float[N, 5, 8] x) => (float[N, 5, 3] y) {
        q = MatMul (x, wq)  k = MatMul (x, wk)  v = MatMul (x, wv)
        t = Transpose <perm = [0, 2, 1]> (k)
        s = MatMul (q, t)  p = Softmax <axis = -1> (s)  o = MatMul (p, v)
        r = Add (x, o)
        l = LayerNormalization <axis = -1> (r, scale, shift)
        h = MatMul (l, wh)
        u = Div (h, root)  e = Erf (u)  i = Add (e, one)  m = Mul (h, i)  a = Mul (m, half)
        y = MatMul (a, wo)
    }
    """
    found = weights(wq=(8, 8), wk=(8, 8), wv=(8, 8), wh=(8, 16), wo=(16, 3), scale=(8,), shift=(8,))
    numbers = {"root": np.sqrt(2), "one": 1, "half": 0.5}
    return laws.model(text, **found, **{name: np.array(value, np.float32) for name, value in numbers.items()})


def sequence_network() -> onnx.ModelProto:
    """One-dimensional convolutions with dilations and residual sums, tiles of 4."""
    text = """
    g (float[N, 4, 40] x) => (float[N, 2] y) {
        c1 = Conv <pads = [3, 3]> (x, w1)  a1 = Relu (c1)
        c2 = Conv <pads = [2, 2], dilations = [2]> (a1, w2)  a2 = Relu (c2)  s = Add (a1, a2)
        p = MaxPool <kernel_shape = [4], strides = [4]> (s)
        f = Flatten (p)  y = Gemm (f, w3)
    }
    """
    return laws.model(text, **weights(w1=(16, 4, 7), w2=(16, 16, 3), w3=(160, 2)))


def recurrent_network() -> onnx.ModelProto:
    """An LSTM, which becomes a Scan."""
    text = """
    g (float[N, 6, 4] x) => (float[N, 5] y) {
        t = Transpose <perm = [1, 0, 2]> (x)
        all, last = LSTM <hidden_size = 5> (t, w, r, b)
        y = Squeeze (last, axes)
    }
    """
    return laws.model(text, axes=np.array([0]), **weights(w=(1, 20, 4), r=(1, 20, 5), b=(1, 40)))


NETWORKS = {"images": image_network, "encoder": encoder, "sequences": sequence_network, "recurrent": recurrent_network}
REFERENCES = ("paired", "zeros", "shared", "grouped")


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("rule", ["rescale", "reveal-cancel", "gradient-x-input", "integrated-gradients:3"])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_fast_is_plain(network, rule: str, reference: str) -> None:  # type: ignore[no-untyped-def]
    compare(network(), rule=rule, reference=reference)


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("name", ["mnist_cnn", "mmsplice_acceptor"])
def test_fast_is_plain_on_real_networks(name: str, reference: str) -> None:
    compare(onnx.load(MODELS / f"{name}.onnx"), reference=reference)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_the_plain_emission_is_another(network) -> None:  # type: ignore[no-untyped-def]
    fast = onnxlift.rewrite(network(), target="weights", reference="zeros")
    with plain.emission():
        slow = onnxlift.rewrite(network(), target="weights", reference="zeros")
    assert [node.op_type for node in fast.graph.node] != [node.op_type for node in slow.graph.node]


def compare(model: onnx.ModelProto, **options: str) -> None:
    """Contributions to a neuron, with some of the places of x and r alike."""
    (given,) = model.graph.input
    shape = [dim.dim_value or 3 for dim in given.type.tensor_type.shape.dim]
    x = np.round(RNG.standard_normal(shape), 1).astype(np.float32)
    references = {"paired": shape, "shared": [2, *shape[1:]], "grouped": [shape[0], 2, *shape[1:]]}
    feed = {given.name: x}
    if options["reference"] in references:
        r = np.round(RNG.standard_normal(references[options["reference"]]), 1)
        feed[f"{given.name}_reference"] = r.astype(np.float32)
    rank = len(model.graph.output[0].type.tensor_type.shape.dim) - 1
    options = {"target": (0,) * rank if rank > 1 else 0 if rank else None, **options}  # type: ignore[dict-item]
    fast = onnxlift.rewrite(model, **options)
    with plain.emission():
        slow = onnxlift.rewrite(model, **options)
    conserves = options.get("rule", "rescale") in ("rescale", "reveal-cancel")
    got, expected = laws.run(fast, feed), laws.run(slow, feed)
    gap, total = got.pop("completeness_gap"), np.abs(got[f"{given.name}_contributions"]).sum()
    for name, value in got.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=2e-5 * np.abs(value).max())
    if conserves:
        np.testing.assert_allclose(gap, 0, atol=1e-5 * total)
