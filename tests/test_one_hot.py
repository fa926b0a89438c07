"""One-hot inputs: normalised weights (LIFTPAD eq. 19 and 20), hypothetical contributions, and presets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import laws
import numpy as np
import onnx
import oracle_signed
import pytest
from onnx import numpy_helper
from signed_laws import Arrays, close, compare

import onnxlift
from onnxlift import Plan

GOLDEN = Path(__file__).parent / "golden"
RNG = np.random.default_rng(61)
LENGTH = 8


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def letters(axis: int, *lead: int) -> np.ndarray:
    """Random one-hot sequences with their channels on `axis` of a sample's batch."""
    x = np.eye(4, dtype=np.float32)[RNG.integers(0, 4, (*lead, LENGTH))]
    return x if axis == 2 else np.swapaxes(x, -1, -2)


def explain(model: onnx.ModelProto, feed: Arrays, **options: Any) -> dict[str, np.ndarray]:
    explainer = onnxlift.rewrite(model, **options)
    onnx.checker.check_model(explainer, full_check=True)
    return laws.run(explainer, feed)


# --- LIFTPAD eq. 19: what is common to all classes -------------------------------------------------------------------

W1, B1, W2, B2 = normal(5, 8), normal(8), normal(8, 3), normal(3)
X, R = normal(4, 5), normal(4, 5)
FEED = {"x": X, "x_reference": R}


def classifier(w2: np.ndarray = W2, b2: np.ndarray = B2) -> onnx.ModelProto:
    return laws.model(
        "g (float[N, 5] x) => (float[N, 3] y) "
        "{ h = Gemm (x, w1, b1) a = Relu (h) z = Gemm (a, w2, b2) y = Softmax (z) }",
        w1=W1,
        b1=B1,
        w2=w2,
        b2=b2,
    )


def test_a_class_is_explained_by_what_sets_it_apart() -> None:
    """liftpad's target 1 = the weights onehot - 1/K = a last layer whose weights have mean 0 over the classes."""
    got = explain(classifier(), FEED, rule="liftpad", target=1)
    weights = np.tile(np.float32([0, 1, 0]) - np.float32(1 / 3), (4, 1))
    asked = explain(classifier(), {**FEED, "target_weights": weights}, rule="liftpad", target="weights", output="z")
    mean = W2.mean(axis=1, keepdims=True)
    literal = explain(classifier(W2 - mean, B2 - B2.mean()), FEED, rule="liftpad", target=1, output="z")
    for other in (asked, literal):
        for name in ("x_contributions", "target_output", "target_reference"):
            np.testing.assert_allclose(got[name], other[name], atol=2e-6)
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=2e-6)
    plain = explain(classifier(), FEED, target=1)
    assert np.abs(got["x_contributions"] - plain["x_contributions"]).max() > 0.1


@pytest.mark.parametrize("target", ["argmax", "input", "weights"])
def test_every_way_to_name_a_class(target: str) -> None:
    chosen = laws.run(classifier(), {"x": X})["y"].argmax(axis=1)
    onehot = np.eye(3, dtype=np.float32)[chosen]
    more = {"input": {"target": chosen}, "weights": {"target_weights": onehot}}.get(target, {})
    got = explain(classifier(), {**FEED, **more}, rule="liftpad", target=target)
    each = [explain(classifier(), FEED, rule="liftpad", target=k)["x_contributions"] for k in range(3)]
    np.testing.assert_allclose(got["x_contributions"], np.stack(each, axis=1)[range(4), chosen], atol=2e-6)


def test_the_classes_of_a_map_and_what_is_no_softmax() -> None:
    """Softmax over axis 1 of [N, 3, 4]; a Sigmoid, and a Softmax that is not stepped over, keep the whole target."""
    text = "g (float[N, 2, 4] x) => (float[N, 3, 4] y) { z = Conv (x, k) y = Softmax <axis = 1> (z) }"
    kernel = normal(3, 2, 1)
    x, r = normal(3, 2, 4), normal(3, 2, 4)
    got = explain(laws.model(text, k=kernel), {"x": x, "x_reference": r}, rule="liftpad", target=(1, 2))
    expected = np.zeros((3, 2, 4))
    expected[:, :, 2] = (kernel[1, :, 0] - kernel[:, :, 0].mean(axis=0)) * (x - r)[:, :, 2]
    np.testing.assert_allclose(got["x_contributions"], expected, atol=1e-6)
    sigmoid = laws.model(text.replace("Softmax <axis = 1>", "Sigmoid"), k=kernel)
    for model, options in ((sigmoid, {}), (laws.model(text, k=kernel), {"pre_activation": False})):
        feed = {"x": x, "x_reference": r}
        got, plain = (explain(model, feed, rule=rule, target=(1, 2), **options) for rule in ("liftpad", "rescale"))
        np.testing.assert_array_equal(got["x_contributions"], plain["x_contributions"])


# --- LIFTPAD eq. 20: weights that are normalised over the letters ----------------------------------------------------

KERNEL, DENSE, BEHIND = normal(5, 4, 3), normal(4 * LENGTH, 6), normal(4, 5)

# name -> (model, channel axis)
FIRST_LAYERS: dict[str, tuple[onnx.ModelProto, int]] = {
    "Conv": (
        laws.model(
            f"g (float[N, 4, {LENGTH}] x) => (float[N, 3] y) {{ c = Conv <strides = [2]> (x, k, b) a = Relu (c) "
            "f = Flatten (a) y = Gemm (f, w) }",
            k=KERNEL,
            b=normal(5),
            w=normal(15, 3),
        ),
        1,
    ),
    "Gemm": (
        laws.model(
            f"g (float[N, 4, {LENGTH}] x) => (float[N, 3] y) {{ f = Flatten (x) h = Gemm (f, v, b) a = Sigmoid (h) "
            "q = Mul (a, h) y = Gemm (q, w) }",
            v=DENSE,
            b=normal(6),
            w=normal(6, 3),
        ),
        1,
    ),
    "MatMul": (
        laws.model(
            f"g (float[N, {LENGTH}, 4] x) => (float[N, 3] y) {{ h = MatMul (x, v) a = Tanh (h) f = Flatten (a) "
            "y = Gemm (f, w) }",
            v=BEHIND,
            w=normal(5 * LENGTH, 3),
        ),
        2,
    ),
}
PADDED = laws.model(
    f"g (float[N, 4, {LENGTH}] x) => (float[N, 3] y) {{ c = Conv <pads = [1, 1]> (x, k, b) a = Relu (c) "
    "f = Flatten (a) y = Gemm (f, w) }",
    k=KERNEL,
    b=normal(5),
    w=normal(5 * LENGTH, 3),
)


def literally_normalised(name: str) -> onnx.ModelProto:
    """The model with W - mean W and b + mean W in its first layer; behind a Flatten the letters lie apart by LENGTH."""
    model, axis = FIRST_LAYERS[name]
    if name != "Gemm":
        return oracle_signed.normalise_weights(model, "x", axis)
    changed = onnx.ModelProto.FromString(model.SerializeToString())
    tensors = {tensor.name: tensor for tensor in changed.graph.initializer}
    v = numpy_helper.to_array(tensors["v"]).reshape(4, LENGTH, 6)
    bias = numpy_helper.to_array(tensors["b"]) + v.mean(axis=0).sum(axis=0)
    tensors["v"].CopyFrom(numpy_helper.from_array((v - v.mean(axis=0)).reshape(4 * LENGTH, 6), "v"))
    tensors["b"].CopyFrom(numpy_helper.from_array(bias, "b"))
    return changed


def references(axis: int) -> dict[str, tuple[Any, dict[str, np.ndarray], np.ndarray]]:
    """name -> (the option, what is fed, the same as [N, K, ...]): shuffled letters, frequencies, none at all."""
    shuffled = letters(axis, 3, 2)
    frequencies = np.float32([0.3, 0.2, 0.1, 0.4])
    columns = np.broadcast_to(frequencies if axis == 2 else frequencies[:, None], shuffled.shape[2:])
    return {
        "zeros": ("zeros", {}, np.zeros((3, 1, *columns.shape), np.float32)),
        "constant": ("constant:0.1", {}, np.full((3, 1, *columns.shape), 0.1, np.float32)),
        "frequencies": ("frequencies:0.3,0.2,0.1,0.4", {}, np.broadcast_to(columns, (3, 1, *columns.shape))),
        "paired": ("paired", {"x_reference": shuffled[:, 0]}, shuffled[:, :1]),
        "shared": ("shared", {"x_reference": shuffled[0]}, np.broadcast_to(shuffled[0], (3, *shuffled.shape[1:]))),
        "grouped": ("grouped", {"x_reference": shuffled}, shuffled),
        "baked": ({"x": shuffled[1]}, {}, np.broadcast_to(shuffled[1], (3, *shuffled.shape[1:]))),
    }


@pytest.mark.parametrize("name", FIRST_LAYERS)
def test_normalised_weights(name: str) -> None:
    """One-hot inputs explained by liftpad are those of the model whose weights are literally normalised."""
    model, axis = FIRST_LAYERS[name]
    literal = literally_normalised(name)
    x, seed = letters(axis, 3), np.float64([[0, 1, 0]])
    for reference, more, rows in references(axis).values():
        got = explain(
            model,
            {"x": x, **more},
            rule="liftpad",
            target=1,
            one_hot=axis,
            reference=reference,
            emit=("contributions", "multipliers"),
        )
        contributions, multipliers, at_r = np.zeros(x.shape), np.zeros(x.shape), np.zeros(3)
        for i, row in enumerate(rows):
            for r in row:
                e = oracle_signed.explain(
                    literal, {"x": x[i : i + 1]}, {"x": r[None]}, inputs=["x"], output="y", seed=seed, rule_of="liftpad"
                )
                contributions[i] += e.contributions["x"][0] / len(row)
                multipliers[i] += e.multipliers["x"][0] / len(row)
                at_r[i] += e.values_r["y"][0, 1] / len(row)
        close(got["x_contributions"], contributions, 1e-5, name)
        close(got["x_multipliers"], multipliers, 1e-5, name)
        close(got["target_reference"], at_r, 1e-5, name)
        np.testing.assert_allclose(got["completeness_gap"], 0, atol=5e-6)
        np.testing.assert_allclose(got["x_multipliers"].mean(axis=axis), 0, atol=1e-6)


def test_a_reference_of_zeros_acts_like_a_quarter_of_each_letter() -> None:
    model, axis = FIRST_LAYERS["Conv"]
    x = letters(axis, 3)
    options = {"rule": "liftpad", "target": 0, "one_hot": axis}
    none = explain(model, {"x": x}, reference="zeros", **options)
    uniform = explain(model, {"x": x}, reference="constant:0.25", **options)
    np.testing.assert_allclose(none["target_reference"], uniform["target_reference"], atol=1e-6)
    np.testing.assert_allclose(none["x_contributions"].sum(axis=1), uniform["x_contributions"].sum(axis=1), atol=2e-6)
    plain = explain(model, {"x": x}, reference="zeros", target=0, rule="liftpad")
    assert np.abs(plain["target_reference"] - none["target_reference"]).max() > 0.1


@pytest.mark.parametrize("name", [*FIRST_LAYERS, "padded"])
@pytest.mark.parametrize("unknown", [False, True])
def test_completeness_with_normalised_weights(name: str, unknown: bool) -> None:
    """Also where padding is seen, and where a position has no letter: it is then off what weights are normalised on."""
    model, axis = (PADDED, 1) if name == "padded" else FIRST_LAYERS[name]
    x = letters(axis, 3)
    if unknown:
        for sample, places in ((1, slice(2, 3)), (2, slice(5, None))):
            x[(sample, slice(None), places) if axis == 1 else (sample, places)] = 0
    for reference, more, _ in references(axis).values():
        for emit in (("contributions",), ("contributions", "hypothetical")):
            got = explain(
                model, {"x": x, **more}, rule="liftpad", target="argmax", one_hot=axis, reference=reference, emit=emit
            )
            total = got["target_output"] - got["target_reference"]
            np.testing.assert_allclose(got["x_contributions"].sum(axis=(1, 2)), total, atol=1e-5)
            np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)
            assert np.abs(total).max() > 0.1


def test_normalised_weights_in_a_plan_and_of_one_input_among_several() -> None:
    model = laws.model(
        "g (float[N, 4, 8] dna, float[N, 3] other) => (float[N, 2] y) { c = Conv (dna, k) a = Relu (c) f = Flatten (a) "
        "j = Concat <axis = 1> (f, other) y = Gemm (j, w) }",
        k=KERNEL,
        w=normal(33, 2),
    )
    feed = {
        "dna": letters(1, 3),
        "dna_reference": letters(1, 3),
        "other": normal(3, 3),
        "other_reference": normal(3, 3),
    }
    options = {"target": 1, "emit": ("contributions", "multipliers")}
    plain = explain(model, feed, **options)
    normalised = Plan(normalize_one_hot=True)
    for one_hot in ({"dna": 1}, {"dna": -2}):
        got = explain(model, feed, plan=normalised, one_hot=one_hot, **options)
        m = plain["dna_multipliers"]
        np.testing.assert_allclose(got["dna_multipliers"], m - m.mean(axis=1, keepdims=True), atol=1e-6)
        np.testing.assert_array_equal(got["other_multipliers"], plain["other_multipliers"])
        np.testing.assert_allclose(got["completeness_gap"], 0, atol=5e-6)
    unnamed = explain(model, feed, plan=normalised, **options)
    np.testing.assert_array_equal(unnamed["dna_multipliers"], plain["dna_multipliers"])


@pytest.mark.parametrize("emit", ["contributions", "hypothetical"])
def test_samples_that_are_folded_into_other_axes(emit: str) -> None:
    """Several references then mean a second run on tiled inputs."""
    model = laws.model(
        f"g (float[N, {LENGTH}, 4] x) => (float[N, {LENGTH}, 3] y) {{ a = Reshape (x, into) b = MatMul (a, w) "
        "h = Relu (b) t = Transpose <perm = [0, 2, 1]> (h) s = MatMul (t, h) p = MatMul (h, s) y = Reshape (p, back) }",
        into=np.array([-1, 4, 4]),
        back=np.array([-1, LENGTH, 3]),
        w=normal(4, 3),
    )
    x, r = letters(2, 3), letters(2, 2)
    r[0, 3], x[1, 2] = 0, 0
    feed = {"x": x, "target_weights": normal(3, LENGTH, 3)}
    options = {"rule": "liftpad", "one_hot": 2, "target": "weights", "emit": ("contributions", emit)}
    each = [explain(model, {**feed, "x_reference": np.repeat(row[None], 3, axis=0)}, **options) for row in r]
    for reference, rows in (("shared", r), ("grouped", np.repeat(r[None], 3, axis=0))):
        got = explain(model, {**feed, "x_reference": rows}, reference=reference, **options)
        close(got[f"x_{emit}"], np.mean([run[f"x_{emit}"].astype(np.float64) for run in each], axis=0), 1e-6)
        np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-4)


def test_a_number_of_letters_that_is_not_known_is_refused() -> None:
    model = laws.model(
        "g (float[N, C, 8] x) => (float[N, 8] y) { s = ReduceSum <keepdims = 0> (x, one) y = Relu (s) }",
        one=np.array([1]),
    )
    with pytest.raises(onnxlift.OptionError, match=r"number of channels of .* is not known"):
        onnxlift.rewrite(model, target=0, rule="liftpad", one_hot=1)


# --- hypothetical contributions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["rescale", "reveal-cancel", "liftpad", "gradient-x-input", "integrated-gradients:3"])
@pytest.mark.parametrize("name", ["Conv", "MatMul"])
def test_what_every_letter_would_contribute(name: str, rule: str) -> None:
    """H_k = sum_c (1[c = k] - r_c) m_c, averaged over references; on the letter that is there, the contribution."""
    model, axis = FIRST_LAYERS[name]
    x = letters(axis, 3)
    options = {"rule": rule, "target": 1, "one_hot": axis}
    emit = ("contributions", "multipliers", "hypothetical")
    expected = {}
    for reference, more, rows in references(axis).values():
        got = explain(model, {"x": x, **more}, reference=reference, emit=emit, **options)
        hypothetical = np.zeros(x.shape)
        for k in range(rows.shape[1]):
            if rows[:, k].tobytes() not in expected:
                pair = {"x": x, "x_reference": np.ascontiguousarray(rows[:, k])}
                m = explain(model, pair, emit=emit, **options)["x_multipliers"].astype(np.float64)
                expected[rows[:, k].tobytes()] = m - (m * rows[:, k]).sum(axis=axis, keepdims=True)
            hypothetical += expected[rows[:, k].tobytes()] / rows.shape[1]
        close(got["x_hypothetical"], hypothetical, 2e-6)
        np.testing.assert_allclose(got["x_hypothetical"] * x, got["x_contributions"], rtol=0, atol=1e-6)
        plain = explain(model, {"x": x, **more}, reference=reference, **options)
        sums = plain["x_contributions"].sum(axis=axis)
        np.testing.assert_allclose(got["x_contributions"].sum(axis=axis), sums, atol=2e-6)


@pytest.mark.parametrize("axis", [1, 2])
def test_positions_without_a_letter(axis: int) -> None:
    """The channels keep their own there, and all adds up as without hypothetical contributions."""
    model, _ = FIRST_LAYERS["Conv" if axis == 1 else "MatMul"]
    x = letters(axis, 3)
    hole = (slice(None), slice(None), slice(2, 4)) if axis == 1 else (slice(None), slice(2, 4))
    x[hole] = 0
    for reference, more, _ in references(axis).values():
        options = {"target": 1, "one_hot": axis, "reference": reference}
        plain = explain(model, {"x": x, **more}, **options)
        got = explain(model, {"x": x, **more}, emit=("contributions", "hypothetical"), **options)
        np.testing.assert_allclose(got["x_contributions"][hole], plain["x_contributions"][hole], atol=1e-6)
        np.testing.assert_allclose(got["completeness_gap"], 0, atol=5e-6)
        known = x.sum(axis=axis, keepdims=True) * got["x_contributions"]
        np.testing.assert_allclose(known, x * got["x_hypothetical"], atol=1e-6)


@pytest.mark.parametrize("name", ["c03_maxpool_overlap", "c06_product_glu"])
def test_hypothetical_contributions_against_tangermeme(name: str) -> None:
    """K references per sample; without `one_hot`, the channels are the only axis of four."""
    case = next(c for c in json.loads((GOLDEN / "cases.json").read_text()) if c["id"] == name)
    arrays = np.load(GOLDEN / case["npz"], allow_pickle=False)
    feed = {"x": arrays["x"].astype(np.float32), "x_reference": arrays["references"].astype(np.float32)}
    for file in (case["onnx"], *case["onnx_alt"]):
        model = onnx.load(GOLDEN / file)
        emit = ("contributions", "hypothetical")
        options = {"target": int(arrays["target"]), "plan": "tangermeme", "reference": "grouped", "emit": emit}
        got = explain(model, feed, **options)
        for kind, key in (("hypothetical", "hypothetical_f64"), ("contributions", "contribs_f64")):
            np.testing.assert_allclose(got[f"x_{kind}"], arrays[key], atol=case["tolerance"]["atol"], rtol=1e-5)


def test_an_explainer_gives_them_by_input() -> None:
    model, axis = FIRST_LAYERS["Conv"]
    x = letters(axis, 5)
    explainer = onnxlift.Explainer(
        model, target=1, one_hot=axis, reference="shuffle:3", emit=("contributions", "hypothetical"), batch_size=2
    )
    explanation = explainer(x)
    assert explanation.hypothetical["x"].shape == x.shape
    np.testing.assert_allclose(explanation.hypothetical["x"] * x, explanation.contributions["x"], atol=1e-6)
    np.testing.assert_allclose(explanation.gap, 0, atol=5e-6)
    normalised = onnxlift.Explainer(model, target=1, one_hot=axis, reference="shuffle:3", rule="liftpad", batch_size=2)
    np.testing.assert_allclose(normalised(x).gap, 0, atol=5e-6)


@pytest.mark.parametrize(
    ("shape", "one_hot", "message"),
    [
        ("N, 5, 8", None, "which axis of 'x' holds the channels"),
        ("N, 4, 4", None, "which axis of 'x' holds the channels"),
        ("N, 4, 8", 3, "names axis 3 of 'x', which has 3 axes"),
        ("N, 4, 8", {"z": 1}, "names 'z', but what is attributed to is 'x'"),
        ("N, 4, 8", 1.5, "`one_hot` must be an axis"),
    ],
)
def test_axes_that_are_refused(shape: str, one_hot: Any, message: str) -> None:
    model = laws.model(f"g (float[{shape}] x) => (float[{shape}] y) {{ y = Tanh (x) }}")
    with pytest.raises(onnxlift.OptionError, match=message):
        onnxlift.rewrite(model, target=(0, 0), emit=("hypothetical",), one_hot=one_hot)


# --- the presets of the earlier papers -------------------------------------------------------------------------------


def pooled() -> onnx.ModelProto:
    return laws.model(
        "g (float[N, 2, 9] x) => (float[N, 3] y) { c = Conv (x, k) r = Relu (c) "
        "p = MaxPool <kernel_shape = [3], strides = [2]> (r) s = Sigmoid (p) q = Mul (s, p) f = Flatten (q) "
        "y = Gemm (f, w) }",
        k=normal(4, 2, 2),
        w=normal(12, 3),
    )


@pytest.mark.parametrize(("rule", "of_the_oracle"), [("liftpad", "liftpad"), ("dfd", "dfd"), ("lifft", "rescale")])
def test_presets(rule: str, of_the_oracle: str) -> None:
    """All of them against a uniform reference; elsewhere dfd is not complete, and liftpad may be singular."""
    model = pooled()
    x, uniform, r = normal(4, 2, 9), np.full((4, 2, 9), 0.3, np.float32), normal(4, 2, 9)
    got = compare(model, {"x": x}, {"x": uniform}, rule, rule_of=of_the_oracle)
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)
    if rule != "liftpad":
        got = compare(model, {"x": x}, {"x": r}, rule, rule_of=of_the_oracle, expose=[])
        assert (np.abs(got["completeness_gap"]).max() > 1e-2) == (rule == "dfd")
