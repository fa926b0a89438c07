"""Signed parts through every operator that carries them, through networks, and however batches and references meet."""

from __future__ import annotations

from typing import Any

import laws
import numpy as np
import onnx
import oracle_signed
import pytest
from signed_laws import Arrays, close, compare

import onnxlift
from onnxlift import Choice, Plan, registry

OPERATORS: tuple[str, ...] = ()
"""The rules have tests of their own; here they meet."""

RNG = np.random.default_rng(21)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


CONSTANTS: dict[str, np.ndarray] = {
    "rows": normal(4, 1),
    "divisors": np.float32([[0.5], [-2], [-0.7], [3]]),
    "scale": np.float32([1.2, -0.7, -1.5, 0.3]),
    "shift": normal(4),
    "mean": normal(4),
    "variance": np.float32([0.5, 1, 2, 0.1]),
    "kernel": normal(3, 4, 3),
    "grouped": normal(4, 2, 3),
    "depthwise": normal(4, 1, 2),
    "transposed": normal(4, 2, 3),
    "bias": normal(3),
    "right": normal(6, 3),
    "left": normal(2, 4),
    "stack": normal(2, 5, 6, 3),
    "dense": normal(5, 24),
    "beyond": normal(5),
    "gains": normal(6),
    "axis": np.array(2),
    "last": np.array([2]),
    "both": np.array([1, 2]),
    "front": np.array([1]),
    "none": np.zeros(0, np.int64),
    "six": np.array([6]),
    "three": np.array([3]),
    "flat": np.array([0, 24]),
    "split": np.array([1, 3]),
    "starts": np.array([1, -1]),
    "stops": np.array([3, -6]),
    "steps": np.array([1, -2]),
    "borders": np.array([0, 1, 2, 0, 0, 1]),
    "wide": np.array([1, 2, 4, 6]),
    "times": np.array([1, 2, 1]),
    "twice": np.array([3, 0, 3]),
    "each": RNG.integers(0, 4, (3, 2, 6)),
    "pairs": RNG.integers(0, 4, (3, 2, 1)),
    "spots": np.array([[[0, 0], [0, 3]], [[1, 1], [1, 0]], [[2, 3], [2, 0]]]),
    "kept": np.array([True, False, True, True]),
    "extents": np.array([3, 9]),
    "image": np.array([3, 1, 4, 6]),
    "deep": np.array([3, 4, 2, 3]),
    "lengths": np.array([2, 4, 1]),
    "mask": RNG.random((4, 6)) < 0.5,
    "like": np.float64(0),
}
"""In a model where its text has the name."""

# operator -> what makes u of h = a + b and of c, both [N, 4, 6]
CARRY: dict[str, list[str]] = {
    "Add": ["u = Add (h, c)", "u = Add (rows, h)", "u = Add (h, h)"],
    "Sub": ["u = Sub (h, c)", "u = Sub (rows, h)"],
    "Sum": ["u = Sum (h, rows, c)"],
    "Mean": ["u = Mean (h, rows, c)"],
    "Neg": ["u = Neg (h)"],
    "Mul": ["u = Mul (h, rows)", "u = Mul (rows, h)", "u = Mul (h, c)", "u = Mul (h, h)"],
    "Div": ["u = Div (h, divisors)", "e = Exp (c) u = Div (h, e)", "e = Exp (h) u = Div (rows, e)"],
    "BatchNormalization": ["u = BatchNormalization (h, scale, shift, mean, variance)"],
    "Scaler": ["u = ai.onnx.ml.Scaler <scale = [-2.0], offset = [0.5]> (h)"],
    "AveragePool": [
        "u = AveragePool <kernel_shape = [3], strides = [2], pads = [1, 1]> (h)",
        "u = AveragePool <kernel_shape = [2], strides = [2]> (h)",
    ],
    "GlobalAveragePool": ["u = GlobalAveragePool (h)"],
    "ReduceSum": ["u = ReduceSum <keepdims = 0> (h, both)", "u = ReduceSum <noop_with_empty_axes = 1> (h, none)"],
    "ReduceMean": ["u = ReduceMean (h, last)"],
    "CumSum": ["u = CumSum <exclusive = 1, reverse = 1> (h, axis)"],
    "Conv": [
        "u = Conv <pads = [1, 0], strides = [2]> (h, kernel, bias)",
        "u = Conv <group = 2, dilations = [2]> (h, grouped)",
        "u = Conv <group = 4> (h, depthwise)",
    ],
    "ConvTranspose": ["u = ConvTranspose <strides = [2], pads = [1, 0]> (h, transposed)"],
    "Gemm": [
        "f = Flatten (h) u = Gemm <transB = 1, alpha = -0.5, beta = 2.0> (f, dense, beyond)",
        "f = Flatten (h) g = Flatten (c) p = Slice (g, front, six, front) "
        "u = Gemm <transB = 1, beta = -2.0> (f, dense, p)",
    ],
    "MatMul": [
        "u = MatMul (h, right)",
        "u = MatMul (left, h)",
        "t = Transpose <perm = [0, 2, 1]> (c) u = MatMul (h, t)",
    ],
    "Einsum": [
        'u = Einsum <equation = "nij,nkj->nik"> (h, c)',
        'u = Einsum <equation = "nij,jk->nki"> (h, right)',
    ],
    "Identity": ["u = Identity (h)"],
    "Dropout": ["u, untouched = Dropout (h)"],
    "Cast": ["u = Cast <to = 11> (h)"],
    "CastLike": ["u = CastLike (h, like)"],
    "Reshape": ["u = Reshape (h, flat)"],
    "Flatten": ["u = Flatten (h)"],
    "Unsqueeze": ["u = Unsqueeze (h, front)"],
    "Squeeze": ["v = Unsqueeze (h, front) n = Neg (v) u = Squeeze (n, front)"],
    "Transpose": ["u = Transpose <perm = [0, 2, 1]> (h)"],
    "Expand": ["v = Unsqueeze (h, front) u = Expand (v, wide)"],
    "Tile": ["u = Tile (h, times)"],
    "Concat": ["u = Concat <axis = 1> (h, c, h)", "z = Neg (c) u = Concat <axis = 2> (z, h)"],
    "Split": [
        "p, q = Split <axis = 1> (h, split) n = Neg (q) u = Concat <axis = 1> (n, p)",
        "p, u = Split <axis = 1> (h, split)",
    ],
    "Slice": ["u = Slice (h, starts, stops, both, steps)", "u = Slice (h, front, three, last)"],
    "Gather": ["u = Gather <axis = 1> (h, twice)"],
    "GatherElements": ["u = GatherElements <axis = 1> (h, each)"],
    "GatherND": ["u = GatherND <batch_dims = 1> (h, pairs)"],
    "Compress": ["u = Compress <axis = 1> (h, kept)"],
    "ScatterElements": [
        "v = Slice (h, front, three, front) u = ScatterElements <axis = 1> (c, each, v)",
        'v = Slice (h, front, three, front) u = ScatterElements <axis = 1, reduction = "add"> (c, each, v)',
    ],
    "ScatterND": ["v = Slice (h, front, three, front) u = ScatterND (c, spots, v)"],
    "Where": ["u = Where (mask, h, c)", "u = Where (mask, rows, h)"],
    "Trilu": ["u = Trilu <upper = 0> (h)"],
    "Pad": ["u = Pad (h, borders)", 'u = Pad <mode = "reflect"> (h, borders)'],
    "CenterCropPad": ["u = CenterCropPad <axes = [1, 2]> (h, extents)"],
    "DepthToSpace": ["v = Reshape (h, deep) u = DepthToSpace <blocksize = 2> (v)"],
    "SpaceToDepth": ["v = Reshape (h, image) u = SpaceToDepth <blocksize = 2> (v)"],
    "ReverseSequence": ["u = ReverseSequence <batch_axis = 0, time_axis = 1> (h, lengths)"],
    "MaxPool": ["u = MaxPool <kernel_shape = [3], strides = [2], pads = [1, 1]> (h)"],
    "GlobalMaxPool": ["u = GlobalMaxPool (h)"],
    "ReduceMax": ["u = ReduceMax <keepdims = 0> (h, both)", "u = ReduceMax (h, last)"],
    "ReduceMin": ["u = ReduceMin (h, last)"],
    "Max": ["u = Max (h, rows, c)", "u = Max (h, rows)"],
    "Min": ["u = Min (c, h)"],
}
BY_LAW = {
    *("AffineGrid", "Col2Im", "FeatureVectorizer", "MaxUnpool", "OneHot", "Resize"),
}
"""Of these the oracle knows no signed parts; tests/test_laws.py holds them to conservation, with m+ apart from m-."""

MAXIMA = ("MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin", "Max", "Min")

FOLD = {
    "Softmax": "u = Softmax <axis = 1> (h)",
    "LogSoftmax": "u = LogSoftmax (h)",
    "ReduceLogSumExp": "u = ReduceLogSumExp (h, last)",
    "LayerNormalization": "u = LayerNormalization (h, gains)",
    "InstanceNormalization": "u = InstanceNormalization (h, scale, shift)",
    "GroupNormalization": "u = GroupNormalization <num_groups = 2> (h, scale, shift)",
}
"""Operators that do not tell causes apart: m+ and m- become one multiplier by the sign of dy."""


def network(body: str, batch: int | str = "N", **more: np.ndarray) -> onnx.ModelProto:
    """From a + b, which has parts, and c through `body` to a curved function, which tells m+ and m- apart."""
    words = set(body.replace(",", " ").replace("(", " ").replace(")", " ").split())
    inputs = ", ".join(f"float[{batch}, 4, 6] {name}" for name in ("a", "b", *(["c"] if "c" in words else [])))
    used = {name: value for name, value in CONSTANTS.items() if name in words}
    model = laws.model(f"g ({inputs}) => (float y) {{ h = Add (a, b) {body} y = Tanh (u) }}", **used, **more)
    if "ai.onnx.ml" in body:
        model.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 3))
    if "to = 11" in body or "CastLike" in body:
        model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    return model


def data(model: onnx.ModelProto, samples: int = 3) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Differences of both signs, some of them 0, and in one column h returns to what it was."""
    rng = np.random.default_rng(31)
    names = [value.name for value in model.graph.input]
    x, r = ({name: rng.standard_normal((samples, 4, 6)).astype(np.float32) for name in names} for _ in range(2))
    for name in names:
        r[name][:, 1, 2:4] = x[name][:, 1, 2:4]
    step = np.float32([0.25, -0.5, 1, 2])
    x["a"][:, :, 5], x["b"][:, :, 5] = np.round(x["a"][:, :, 5] * 8) / 8, np.round(x["b"][:, :, 5] * 8) / 8
    r["a"][:, :, 5], r["b"][:, :, 5] = x["a"][:, :, 5] + step, x["b"][:, :, 5] - step
    return x, r


def test_every_operator_that_carries_parts_is_here() -> None:
    carry = {rule.op for rule in registry.rules() if rule.parts is not None and not rule.elementwise}
    assert carry == CARRY.keys() | BY_LAW
    assert CARRY.keys().isdisjoint(BY_LAW)


@pytest.mark.parametrize("body", [body for bodies in CARRY.values() for body in bodies])
def test_operators(body: str) -> None:
    model = network(body)
    compare(model, *data(model))


@pytest.mark.parametrize("body", FOLD.values(), ids=list(FOLD))
def test_operators_that_fold(body: str) -> None:
    model = network(body)
    got = compare(model, *data(model), expose=["h", "u"], rtol=3e-5)
    assert "u/multiplier/plus" in got
    assert "h/multiplier/plus" not in got


@pytest.mark.parametrize("body", [body for op in MAXIMA for body in CARRY[op]])
def test_maxima_that_tie_otherwise(body: str) -> None:
    model = network(body)
    compare(
        model,
        *data(model),
        plan=Plan([Choice("cross-max-first")]),
        rule_of=lambda node: "reveal-cancel" if node.op_type == "Tanh" else "cross-max-first",
    )


@pytest.mark.parametrize("function", ["Relu (h)", "LeakyRelu <alpha = -0.5> (h)", "Sigmoid (h)", "Exp (h)"])
def test_rescale_in_between(function: str) -> None:
    """dy/dx of the whole difference acts on either part, also where it is negative, or where nothing changes."""
    model = network(f"u = {function}")
    compare(
        model,
        *data(model),
        plan=Plan([Choice("reveal-cancel", op="Tanh"), Choice("rescale")]),
        rule_of=lambda node: "reveal-cancel" if node.op_type == "Tanh" else "rescale",
    )


@pytest.mark.parametrize(
    "body",
    [
        "p = Greater (h, zero) q = Cast <to = 1> (p) v = Mul (h, q)",
        "p = Greater (h, zero) q = Mul (h, h) v = Where (p, q, h)",
    ],
)
def test_conditions_that_depend_on_the_data(body: str) -> None:
    """Such a node does not tell causes apart: behind a layer that mixes it gets one multiplier anyway."""
    model = network(f"{body} u = MatMul (v, right)", zero=np.float32(0))
    compare(model, *data(model), expose=["h", "u"])


# --- networks --------------------------------------------------------------------------------------------------------

DEEP = (
    "g (float[{batch}, 3, 8] x) => (float[{batch}, 3] y) {{ c = Conv <pads = [1, 1]> (x, k1, b1) "
    "n = BatchNormalization (c, scale, shift, mean, variance) d = Add (n, rows) {first} s = Add (h, x) "
    "p = MaxPool <kernel_shape = [3], strides = [2], pads = [1, 1]> (s) "
    "q = AveragePool <kernel_shape = [2], strides = [2]> (d) e = Concat <axis = 1> (p, q) {second} "
    "o = Conv <group = 2> (i, k2) f = Flatten (o) t = Gemm (f, w1, b2) j = Tanh (t) m = Mul (j, t) "
    "y = Gemm <transB = 1> (m, w2) }}"
)


def deep(
    seed: int, first: str = "h = Relu (d)", second: str = "i = Elu (e)", batch: int | str = "N"
) -> onnx.ModelProto:
    """Conv, BatchNormalization with negative scales, a bias, a residual, two pools side by side, dense layers."""
    rng = np.random.default_rng(seed)
    shapes = {"k1": (3, 3, 3), "b1": (3,), "shift": (3,), "mean": (3,), "rows": (3, 1)}
    shapes |= {"k2": (4, 3, 2), "w1": (12, 5), "b2": (5,), "w2": (3, 5)}
    weights = {name: np.float32(rng.standard_normal(shape) * 0.4) for name, shape in shapes.items()}
    weights["scale"] = np.float32([1.2, -0.7, -1.5])
    weights["variance"] = rng.uniform(0.5, 1, 3).astype(np.float32)
    return laws.model(DEEP.format(first=first, second=second, batch=batch), **weights)


def samples(seed: int, n: int = 3, equal: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """A part of the first sample, and all of the last one, may equal the reference."""
    rng = np.random.default_rng(seed)
    x, r = (rng.standard_normal((n, 3, 8)).astype(np.float32) for _ in range(2))
    if equal:
        x[0, :, 2:5] = r[0, :, 2:5]
        x[-1] = r[-1]
    return x, r


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("first", ["h = Relu (d)", "h = Sigmoid (d)"])
def test_networks(seed: int, first: str) -> None:
    x, r = samples(seed)
    got = compare(deep(seed, first), {"x": x}, {"x": r})
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)
    assert not got["x_contributions"][-1].any()
    carried = {name.split("/")[0] for name in got if name.endswith("/multiplier/plus")}
    assert carried == {"c", "n", "d", "h", "s", "p", "q", "e", "t"}  # those in front of a layer that mixes are folded


@pytest.mark.parametrize("seed", range(3))
def test_genomics(seed: int) -> None:
    """RevealCancel behind the dense layer, Rescale behind the convolutions."""
    model = deep(seed)
    x, r = samples(seed)
    compare(model, {"x": x}, {"x": r}, "genomics", rule_of=oracle_signed.genomics(model))


def test_in_half_precision() -> None:
    model = deep(1)
    half = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in half.graph.initializer:
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
        )
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    x, r = (array.astype(np.float16) for array in samples(1))
    compare(half, {"x": x}, {"x": r}, rtol=3e-2, expose=["d", "s", "o"])


# --- references and batches ------------------------------------------------------------------------------------------

EXPOSED = ["d", "h", "s", "o", "t"]


def explain(model: onnx.ModelProto, feed: Arrays, **options: Any) -> dict[str, np.ndarray]:
    explainer = onnxlift.rewrite(
        model,
        rule="reveal-cancel",
        target="weights",
        emit=("contributions", "multipliers"),
        **{"expose": EXPOSED, **options},
    )
    onnx.checker.check_model(explainer, full_check=True)
    return laws.run(explainer, feed)


def agree(got: Arrays, expected: list[dict[str, np.ndarray]]) -> None:
    """Everything that is emitted is the mean of these runs."""
    assert set(got) == set(expected[0])
    for name in got:
        if name != "completeness_gap":
            close(got[name], np.mean([run[name].astype(np.float64) for run in expected], axis=0), 2e-5, name)
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=2e-5)


@pytest.mark.parametrize("batch", ["N", "4"])
def test_references_agree_with_pairing_by_hand(batch: str) -> None:
    model = deep(5, batch=batch)
    x, r = samples(5, 4, equal=False)  # a difference of 0 may be a rounding in another batch
    weights = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
    feed = {"x": x, "target_weights": weights}
    paired = [explain(model, {**feed, "x_reference": np.repeat(r[k : k + 1], 4, axis=0)}) for k in range(2)]
    zeros = explain(model, {**feed, "x_reference": 0 * x})
    agree(explain(model, feed, reference="zeros"), [zeros])
    agree(explain(model, feed, reference={"x": r[:1]}), paired[:1])
    agree(explain(model, feed, reference={"x": r[:2]}), paired)
    agree(explain(model, {**feed, "x_reference": r[:2]}, reference="shared"), paired)
    grouped = np.repeat(r[None, :2], 4, axis=0)
    agree(explain(model, {**feed, "x_reference": grouped}, reference="grouped"), paired)


def test_a_batch_is_its_samples() -> None:
    model = deep(6)
    x, r = samples(6, 4, equal=False)
    weights = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
    together = explain(model, {"x": x, "x_reference": r, "target_weights": weights})
    for i in range(4):
        row = slice(i, i + 1)
        alone = explain(model, {"x": x[row], "x_reference": r[row], "target_weights": weights[row]})
        for name, value in alone.items():
            np.testing.assert_allclose(value, together[name][row], atol=2e-5 * max(1, abs(together[name]).max()))


WINDOWS = (
    "g (float[N, 8, 3] x) => (float[N, 8, 3] y) {{ a = Reshape (x, into) b = MatMul (a, w) s = Sub (b, a) "
    "h = {function} (s) t = Transpose <perm = [0, 2, 1]> (h) v = MatMul (h, t) p = Tanh (v) o = MatMul (p, h) "
    "y = Reshape (o, back) }}"
)


@pytest.mark.parametrize("function", ["Relu", "Sigmoid"])
def test_samples_that_are_folded_into_other_axes(function: str) -> None:
    """Several references then mean a second run on tiled inputs, and signed parts of its tensors."""
    rng = np.random.default_rng(3)
    model = laws.model(
        WINDOWS.format(function=function),
        into=np.array([-1, 4, 3]),
        back=np.array([-1, 8, 3]),
        w=rng.standard_normal((3, 3)).astype(np.float32),
    )
    x, r = (rng.standard_normal((3, 8, 3)).astype(np.float32) for _ in range(2))
    compare(model, {"x": x}, {"x": r})
    options = {"expose": []}
    feed = {"x": x, "target_weights": rng.standard_normal((3, 8, 3)).astype(np.float32)}
    paired = [explain(model, {**feed, "x_reference": np.repeat(r[k : k + 1], 3, axis=0)}, **options) for k in range(2)]
    agree(explain(model, {**feed, "x_reference": r[:2]}, reference="shared", **options), paired)
    grouped = np.repeat(r[None, :2], 3, axis=0)
    agree(explain(model, {**feed, "x_reference": grouped}, reference="grouped", **options), paired)
    agree(explain(model, feed, reference={"x": r[1:2]}, **options), paired[1:])


def test_without_a_batch_axis() -> None:
    rng = np.random.default_rng(4)
    model = laws.model(
        "g (float[6] x) => (float[3] y) "
        "{ h = MatMul (x, w) a = Relu (h) b = Sub (a, h) q = MatMul (b, v) y = Tanh (q) }",
        w=normal(6, 5),
        v=normal(5, 3),
    )
    x, r = (rng.standard_normal(6).astype(np.float32) for _ in range(2))
    got = compare(model, {"x": x}, {"x": r})
    assert got["completeness_gap"].shape == ()
    tokens = laws.model(
        "g (float[T, 4] x) => (float[T, 4] y) { q = MatMul (x, w) t = Transpose <perm = [1, 0]> (x) s = MatMul (q, t) "
        "a = Relu (s) v = MatMul (a, x) y = Tanh (v) }",
        w=normal(4, 4),
    )
    x, r = (rng.standard_normal((3, 4)).astype(np.float32) for _ in range(2))
    assert compare(tokens, {"x": x}, {"x": r})["completeness_gap"].shape == ()


def test_an_internal_tensor_as_the_input() -> None:
    """Its parts are its difference by its sign, whatever is in front of it."""
    model = deep(7)
    x, r = samples(7)
    seed = np.random.default_rng(1).standard_normal((3, 3)).astype(np.float32)
    feed = {"x": x, "x_reference": r, "target_weights": seed}
    got = explain(model, feed, inputs=["d"], expose=["s", "t"])
    inner = oracle_signed.explain(model, {"x": x}, {"x": r}, inputs=["x"], output="y", seed=seed).values_r["d"]
    expected = oracle_signed.explain(
        model, {"x": x}, {"d": inner}, inputs=["d"], output="y", seed=seed, rule_of="reveal-cancel"
    )
    close(got["d_contributions"], expected.contributions["d"], 1e-5)
    close(got["d_multipliers"], expected.folded("d"), 1e-5)
    for name in ("s", "t"):
        close(got[f"{name}/multiplier/plus"], expected.pair(name)[0], 1e-5)
        close(got[f"{name}/contributions"], oracle_signed.times(expected.pair(name), expected.parts[name]), 1e-5)


def test_parts_that_cancel_pass_on_contributions() -> None:
    """h = a + b stays at 0 while a rises and b falls: Rescale sees nothing change, RevealCancel gives both a share.

    relu(0 + 2) - relu(0) = 2 and relu(0) - relu(0 - 2) = 0: shares of (2 - 0 + 0 - 0)/2 = 1 and -1.
    """
    model = laws.model("g (float[N, 1] a, float[N, 1] b) => (float[N, 1] y) { h = Add (a, b) y = Relu (h) }")
    two, zero = np.float32([[2]]), np.float32([[0]])
    feed = {"a": two, "b": -two, "a_reference": zero, "b_reference": zero}
    got = laws.run(onnxlift.rewrite(model, rule="reveal-cancel"), feed)
    assert (got["a_contributions"], got["b_contributions"], got["completeness_gap"]) == (1, -1, 0)
    got = laws.run(onnxlift.rewrite(model), feed)
    assert (got["a_contributions"], got["b_contributions"]) == (0, 0)


def test_no_parts_are_emitted_without_reveal_cancel() -> None:
    """m+ = m- then, and the explainer does not pay for what nobody asks for."""
    model = deep(8)
    explainer = onnxlift.rewrite(model, target=0, expose=["d"])
    assert not [output.name for output in explainer.graph.output if output.name.endswith(("plus", "minus"))]
    only_behind = Plan([Choice("reveal-cancel", op="Tanh")])
    signed = onnxlift.rewrite(model, target=0, plan=only_behind)
    forward = [node for node in signed.graph.node if node.op_type == "Conv"]
    assert len(forward) == len([node for node in explainer.graph.node if node.op_type == "Conv"])
