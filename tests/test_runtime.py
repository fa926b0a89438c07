"""Explainer and Explanation: arrays in, arrays out, whatever the batch; and what is refused, in words."""

from __future__ import annotations

import json
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from laws import model

import onnxlift
from onnxlift import session
from onnxlift.arrays import write_arrays
from onnxlift.formats import read_all
from onnxlift.session import CPU, CUDA, cuda_obstacle, essential

RNG = np.random.default_rng(5)
W1 = RNG.standard_normal((6, 8)).astype(np.float32)
W2 = RNG.standard_normal((8, 3)).astype(np.float32)
MLP = "g (float[N, 6] x) => (float[N, 3] y) { h = MatMul(x, W1)\n a = Relu(h)\n y = MatMul(a, W2) }"
X = RNG.standard_normal((7, 6))
R = RNG.standard_normal((7, 6))


def mlp(text: str = MLP) -> onnx.ModelProto:
    return model(text, W1=W1, W2=W2)


def explainer(text: str = MLP, **options: object) -> onnxlift.Explainer:
    return onnxlift.Explainer(mlp(text), providers=[CPU], **{"target": 1, **options})


def by_hand(x: np.ndarray, r: np.ndarray, target: int = 1) -> np.ndarray:
    """Rescale of the network above, in float64."""
    hx, hr = x @ W1.astype(float), r @ W1.astype(float)
    slope = (np.maximum(hx, 0) - np.maximum(hr, 0)) / (hx - hr)
    return (slope * W2[:, target]) @ W1.T * (x - r)


def close(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


# ---------------------------------------------------------------------------------------- what it computes


@pytest.mark.parametrize("batch_size", [None, 1, 2, 7, 100])
def test_batches_join_to_the_whole(batch_size: int | None) -> None:
    explanation = explainer(batch_size=batch_size)(X, reference=R)
    close(explanation.contributions["x"], by_hand(X, R))
    y = np.maximum(X @ W1, 0) @ W2
    close(explanation.outputs["y"], y)
    close(explanation.target, y[:, 1])
    close(explanation.reference_outputs["y"], np.maximum(R @ W1, 0) @ W2)
    assert explanation.gap.shape == (7,)
    assert explanation.relative_gap.max() < 1e-5
    assert explanation.contributions["x"].dtype == np.float32


@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize(
    ("reference", "given", "rows"),
    [
        ("shared", R[:2], [R[:1], R[1:2]]),
        ("grouped", np.stack([R, R[::-1]], axis=1), [R, R[::-1]]),
        ("zeros", None, [np.zeros_like(X)]),
        ({"x": R[:2]}, None, [R[:1], R[1:2]]),
        ("paired", R[:1], [R[:1]]),
    ],
    ids=["shared", "grouped", "zeros", "baked", "one for all"],
)
def test_references(reference: object, given: np.ndarray | None, rows: list[np.ndarray], batch_size: int) -> None:
    explain = explainer(reference=reference, batch_size=batch_size)
    explanation = explain(X, reference=given)
    close(explanation.contributions["x"], np.mean([by_hand(X, np.broadcast_to(r, X.shape)) for r in rows], axis=0))
    at_r = explanation.reference_outputs["y"]
    expected = {"grouped": (7, 2, 3), "paired": (7, 3)}.get(str(reference), (len(rows), 3))
    assert at_r.shape == expected
    if reference == "grouped":
        close(at_r[:, 1], np.maximum(R[::-1] @ W1, 0) @ W2)


def test_targets_at_run_time() -> None:
    explain = explainer(target="input", batch_size=2)
    targets = [0, 1, 2, 0, 1, 2, 0]
    each = explain(X, reference=R, target=targets).contributions["x"]
    close(each, np.stack([by_hand(X[i : i + 1], R[i : i + 1], t)[0] for i, t in enumerate(targets)]))
    np.testing.assert_array_equal(
        explain(X, reference=R, target=2).contributions["x"],
        explain({"x": X, "x_reference": R, "target": [2] * 7}).contributions["x"],
    )
    weighted = explainer(target="weights")(X, reference=R, target_weights=[0.0, 1.0, 0.0])
    close(weighted.contributions["x"], by_hand(X, R))


def test_emitted_and_exposed_tensors() -> None:
    explain = explainer(emit=("multipliers",), expose=("a",), batch_size=2)
    explanation = explain(X, reference=R)
    assert explanation.contributions == {}
    close(explanation.multipliers["x"] * (X - R), by_hand(X, R))
    assert {name: array.shape for name, array in explanation.exposed.items()} == {
        "a": (7, 8),
        "a/contributions": (7, 8),
        "a/multiplier": (7, 8),
    }
    close(explanation.exposed["a/contributions"].sum(axis=1), explanation.difference)


def test_both_multipliers_of_an_exposed_tensor(tmp_path: Path) -> None:
    """RevealCancel tells m+ and m- apart; Rescale has no more than one."""
    for reference, given in (("paired", R), ("shared", R[:2])):
        explanation = explainer(rule="reveal-cancel", expose=("h",), reference=reference)(X, reference=given)
        mean, plus, minus = (explanation.exposed[f"h/multiplier{part}"] for part in ("", "/plus", "/minus"))
        close((plus + minus) / 2, mean)
        assert np.abs(plus - minus).max() > 0.1
        explanation.save(tmp_path / "out.npz")
        saved = read_all(tmp_path / "out.npz")
        assert isinstance(saved, dict)
        np.testing.assert_array_equal(saved["h/multiplier/plus"], plus)
    assert "h/multiplier/plus" not in explainer(expose=("h",))(X, reference=R).exposed


def test_integrated_gradients_in_batches() -> None:
    whole = explainer(rule="integrated-gradients:40")(X, reference=R)
    for batch_size in (1, 3):
        part = explainer(rule="integrated-gradients:40", batch_size=batch_size)(X, reference=R)
        close(part.contributions["x"], whole.contributions["x"])
    points = R + (np.arange(40)[:, None, None] + 0.5) / 40 * (X - R)
    gradients = ((points @ W1 > 0) * W2[:, 1]) @ W1.T.astype(float)
    close(whole.contributions["x"], gradients.mean(axis=0) * (X - R))


def test_a_fixed_batch_is_filled_up() -> None:
    text = MLP.replace("N", "4")
    explanation = explainer(text)(X, reference=R)
    close(explanation.contributions["x"], by_hand(X, R))
    assert explanation.outputs["y"].shape == (7, 3)
    with pytest.raises(onnxlift.OptionError, match="fixed size 4"):
        explainer(text, batch_size=3)


def test_a_model_without_batch_axis_runs_once() -> None:
    vector = "g (float[6] x) => (float[3] y) { h = MatMul(x, W1)\n a = Relu(h)\n y = MatMul(a, W2) }"
    explanation = explainer(vector)(X[0], reference=R[0])
    close(explanation.contributions["x"], by_hand(X[:1], R[:1])[0])
    assert explanation.gap.shape == explanation.relative_gap.shape == ()
    assert "t(x)" in str(explanation)


def test_numbers_of_a_model_without_batch_axis_stay_numbers() -> None:
    """The index 1 takes a row of W1, and [1] would take a matrix of one row."""
    scaled = "g (float[3] x, float s, int64 i) => (float y) { w = Gather(W1, i)\n h = Mul(x, s)\n y = MatMul(h, w) }"
    w1 = np.arange(12, dtype=np.float32).reshape(4, 3)
    made = onnxlift.Explainer(model(scaled, W1=w1), inputs=["x", "s"], reference="zeros")
    result = made({"x": np.ones(3, np.float32), "s": np.float32(2), "i": 1})
    assert {array.shape for array in (result.gap, result.target, result.outputs["y"])} == {()}
    assert result.contributions["s"].shape == ()
    close(result.outputs["y"], np.float32(24))


def test_several_inputs_one_shared_by_all_samples() -> None:
    text = """g (float[N, 6] x, float[6] s, int64 k) => (float[N, 6] y) {
        a = Mul(x, s) c = Relu(a) d = Cast<to=1>(k) y = Mul(c, d)
    }"""
    explain = onnxlift.Explainer(model(text), inputs=["x"], target=0, reference="zeros", batch_size=2)
    explanation = explain({"x": X, "s": np.ones(6), "k": 3.0})
    close(explanation.contributions["x"][:, 0], 3 * np.maximum(X[:, 0], 0))
    with pytest.raises(onnxlift.DataError, match="3 inputs: give a mapping with the arrays of 'x', 's', 'k'"):
        explain(X)
    with pytest.raises(onnxlift.DataError, match="takes int64"):
        explain({"x": X, "s": np.ones(6), "k": 2.5})


def test_an_output_that_batches_cannot_join() -> None:
    text = """g (float[N, 6] x) => (float[N, 6] y, float[1] z) {
        y = Relu(x) i = ReduceMax<keepdims=0>(x) ax = Constant<value_ints=[0]>() z = Unsqueeze(i, ax)
    }"""
    explain = onnxlift.Explainer(model(text), target=0, reference="zeros")
    for _ in range(2):
        assert explain(X).outputs["z"] == X.astype(np.float32).max()
    explain.batch_size = 2
    with pytest.raises(onnxlift.DataError, match=r"output 'z' differs between batches .* with batch_size=7"):
        explain(X)


def beside(op: str, inputs: list[str], kind: onnx.TypeProto, **attributes: object) -> onnx.ModelProto:
    """The network above with one more output `z` of that type."""
    proto = mlp()
    proto.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 3))
    domain = "ai.onnx.ml" if op == "ZipMap" else ""
    proto.graph.node.append(onnx.helper.make_node(op, inputs, ["z"], domain=domain, **attributes))
    proto.graph.output.append(onnx.helper.make_value_info("z", kind))
    return proto


FLOATS = onnx.helper.make_tensor_type_proto(1, None)
PROBABILITIES = onnx.helper.make_sequence_type_proto(onnx.helper.make_map_type_proto(7, FLOATS))


@pytest.mark.parametrize(
    "proto",
    [
        beside("ZipMap", ["y"], PROBABILITIES, classlabels_int64s=[0, 1, 2]),
        beside("SequenceConstruct", ["x", "y"], onnx.helper.make_sequence_type_proto(FLOATS)),
        beside("Optional", ["x"], onnx.helper.make_optional_type_proto(FLOATS)),
    ],
    ids=["map", "sequence", "optional"],
)
def test_outputs_that_are_no_tensors(proto: onnx.ModelProto, capfd: pytest.CaptureFixture[str]) -> None:
    rewritten = onnxlift.rewrite(proto, target=1)
    kind = next(value.type for value in rewritten.graph.output if value.name == "z").WhichOneof("value")
    assert kind == proto.graph.output[1].type.WhichOneof("value")
    explanation = onnxlift.Explainer(proto, target=1)(X, reference=R)
    close(explanation.contributions["x"], by_hand(X, R))
    assert list(explanation.outputs) == list(explanation.reference_outputs) == ["y"]
    assert capfd.readouterr() == ("", "")


def test_an_optional_inside_of_a_subgraph() -> None:
    """GraphSurgeon cannot write its type, and ONNX Runtime needs none."""
    proto = mlp()
    proto.graph.node.append(onnx.helper.make_node("ReduceMax", ["h"], ["m"], keepdims=0))
    proto.graph.node.append(onnx.helper.make_node("Cast", ["m"], ["c"], to=onnx.TensorProto.BOOL))
    inner = [
        onnx.helper.make_node("Optional", ["h"], ["o"]),
        onnx.helper.make_node("OptionalGetElement", ["o"], ["e"]),
    ]
    types = [onnx.helper.make_value_info("o", onnx.helper.make_optional_type_proto(FLOATS))]
    branch = onnx.helper.make_graph(inner, "b", [], [onnx.helper.make_value_info("e", FLOATS)], value_info=types)
    proto.graph.node.append(onnx.helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch))
    proto.graph.output.append(onnx.helper.make_value_info("z", FLOATS))
    explain = onnxlift.Explainer(onnxlift.rewrite(proto, target=1))
    close(explain(X, reference=R).outputs["z"], X @ W1)


def test_lists_other_dtypes_and_layouts() -> None:
    explain = explainer(reference="zeros")
    expected = explain(np.round(X)).contributions["x"]
    for data in (np.round(X).tolist(), np.round(X).astype(np.int8), np.asfortranarray(np.round(X)), {"x": np.round(X)}):
        np.testing.assert_array_equal(explain(data).contributions["x"], expected)
    assert explain(X > 0).contributions["x"].shape == X.shape


# --------------------------------------------------------------------------------------------- what it takes


def test_explainer_files_and_external_weights(tmp_path: Path) -> None:
    expected = explainer()(X, reference=R).contributions["x"]
    plain = tmp_path / "model.onnx"
    onnx.save(mlp(), plain, save_as_external_data=True, location="weights.bin", size_threshold=0)
    np.testing.assert_array_equal(onnxlift.Explainer(plain, target=1)(X, reference=R).contributions["x"], expected)
    onnxlift.rewrite_file(plain, tmp_path / "explainer.onnx", target=1)
    explain = onnxlift.Explainer(tmp_path / "explainer.onnx")
    np.testing.assert_array_equal(explain(X, reference=R).contributions["x"], expected)
    assert not explain(X, reference=R).reference_outputs
    with pytest.raises(onnxlift.OptionError, match=r"is an explainer already, so target"):
        onnxlift.Explainer(tmp_path / "explainer.onnx", target=1)
    proto = onnxlift.rewrite(mlp(), target=1)
    np.testing.assert_array_equal(onnxlift.Explainer(proto)(X, reference=R).contributions["x"], expected)


def without(proto: onnx.ModelProto, *keys: str) -> onnx.ModelProto:
    """An explainer as it was before its metadata had these entries."""
    entry = next(entry for entry in proto.metadata_props if entry.key == "onnxlift")
    about = json.loads(entry.value)
    entry.value = json.dumps({key: value for key, value in about.items() if key not in keys})
    assert len(about) == len(json.loads(entry.value)) + len(keys)
    return proto


def test_an_explainer_of_an_older_version() -> None:
    new = ("conserves", "rows_per_pair", "one_hot", "normalize_one_hot", "plan", "notes", "builder")
    proto = without(onnxlift.rewrite(mlp(), target=1), *new)
    explain = onnxlift.Explainer(proto)
    close(explain(X, reference=R).contributions["x"], by_hand(X, R))
    assert str(explain).startswith("explains neuron 1 of 'y' by 'x' against a reference per sample, rule rescale; runs")
    explanation = explain(X, reference=R)
    assert explain.complaint(explanation) is None
    assert explain.complaint(replace(explanation, gap=explanation.gap + 9)) is not None


@pytest.mark.parametrize("value", ["{", "[]", json.dumps({"batched": True})])
def test_damaged_metadata(value: str) -> None:
    proto = onnxlift.rewrite(mlp(), target=1)
    next(entry for entry in proto.metadata_props if entry.key == "onnxlift").value = value
    with pytest.raises(onnxlift.ModelError, match="metadata 'onnxlift'"):
        onnxlift.Explainer(proto)


BAD = {
    "unknown name": ({"z": X}, {}, "no input 'z' in the explainer: it takes 'x', 'x_reference', 'target'"),
    "missing": ({}, {}, "the array of input 'x' is missing"),
    "missing reference": (X, {"target": 0}, "'x_reference' is missing (it was rewritten with reference='paired')"),
    "given twice": ({"x": X, "target": 0}, {"reference": R, "target": 1}, "'target' is given twice"),
    "not taken": (X, {"reference": R, "target": 0, "target_weights": X}, "takes no 'target_weights'"),
    "wrong reference name": (X, {"reference": {"z": R}, "target": 0}, "takes no 'z_reference'"),
    "rank": (X[0], {"reference": R, "target": 0}, "shape [6], expected [N, 6]; add the missing axis"),
    "width": (X[:, :5], {"reference": R, "target": 0}, "input 'x' has shape [7, 5], expected [7, 6]"),
    "no samples": (X[:0], {"reference": R, "target": 0}, "no samples"),
    "rows of reference": (X, {"reference": R[:3], "target": 0}, "one row per sample of 'x'"),
    "rows of target": (X, {"reference": R, "target": [0, 1]}, "input 'target' has shape [2], expected [7]"),
    "target above": (X, {"reference": R, "target": [0, 1, 2, 3, 0, 0, 0]}, "target 3 of sample 3 is out of range"),
    "target below": (X, {"reference": R, "target": -1}, "target -1 of sample 0 is out of range"),
    "target a float": (X, {"reference": R, "target": 0.5}, "takes int64"),
    "NaN": (np.where(np.arange(7)[:, None] == 4, np.nan, X), {"reference": R, "target": 0}, "NaN in sample 4 (6 such"),
    "overflow": (X * 1e300, {"reference": R, "target": 0}, "an infinite value in sample 0"),
    "infinite reference": (X, {"reference": np.full_like(R, np.inf), "target": 0}, "'x_reference' has"),
    "text": (np.array([["a"] * 6]), {"reference": R, "target": 0}, "text or Python objects"),
    "objects": (np.array([[None] * 6]), {"reference": R, "target": 0}, "text or Python objects"),
    "ragged": ([[1.0, 2.0], [3.0]], {"reference": R, "target": 0}, "input 'x' is no array"),
    "complex": (X + 1j, {"reference": R, "target": 0}, "complex128"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data(case: str) -> None:
    data, arguments, message = BAD[case]
    explain = explainer(target="input")
    with pytest.raises(onnxlift.DataError) as refusal:
        explain(data, **arguments)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("reference", "given", "message"),
    [
        ("shared", R[:0], "'x_reference' has no references: its shape is [0, 6]"),
        ("grouped", np.zeros((7, 0, 6)), "'x_reference' has no references: its shape is [7, 0, 6]"),
        ("shared", R[:2, :5], "'x_reference' has shape [2, 5], expected [2, 6]"),
        ("shared", R[0], "add the missing axis in front"),
        ("grouped", R, "expected [N, references, 6]"),
        ("zeros", R, "takes no 'x_reference': it was rewritten with reference='zeros'"),
    ],
)
def test_bad_references(reference: str, given: np.ndarray, message: str) -> None:
    with pytest.raises(onnxlift.DataError) as refusal:
        explainer(reference=reference)(X, reference=given)
    assert message in str(refusal.value)


def test_a_target_that_only_the_graph_can_check() -> None:
    text = "g (float[N, D] x) => (float[N, D] y) { y = Relu(x) }"
    explain = onnxlift.Explainer(model(text), target="input", reference="zeros", batch_size=2)
    explain(X, target=5)
    with pytest.raises(onnxlift.DataError, match="target 6 of sample 1 is out of range for tensor 'y'"):
        explain(X, target=[5, 6, 5, 5, 5, 5, 5])


def test_a_fixed_target_that_only_the_graph_can_check() -> None:
    for text, rest in (("Relu (x)", ()), ("Reshape (x, s)", (0,))):
        text = f"g (float[N, D] x) => (float[N, D{', 1' * len(rest)}] y) {{ y = {text} }}"
        proto = model(text, s=np.array([0, 0, 1]))
        explain = onnxlift.Explainer(proto, target=(5, *rest), reference="zeros", batch_size=2)
        explain(X)
        explain = onnxlift.Explainer(proto, target=(6, *rest), reference="zeros", batch_size=2)
        shown = r"\[6, 0\]" if rest else "6"
        with pytest.raises(onnxlift.DataError, match=f"target {shown} of sample 0 is out of range for tensor 'y'"):
            explain(X)


@pytest.mark.parametrize("target", ["input", 1])
def test_nan_of_a_hidden_tensor_is_no_wrong_target(target: int | str) -> None:
    text = """g (float[N, 6] x) => (float[N] z) {
        y = Log(x) f = IsNaN(y) c = Cast<to=1>(f) ax = Constant<value_ints=[1]>() z = ReduceSum<keepdims=0>(c, ax)
    }"""
    explain = onnxlift.Explainer(model(text), output="y", target=target, reference={"x": np.ones((1, 6))})
    with pytest.warns(onnxlift.CompletenessWarning, match="where the gap is NaN"):
        explain(-np.ones((2, 6)), target=1 if target == "input" else None)


@pytest.mark.parametrize("tolerance", [float("nan"), -1.0])
def test_tolerances_that_say_nothing(tolerance: float) -> None:
    with pytest.raises(onnxlift.OptionError, match="the tolerance must be 0 or more"):
        explainer(tolerance=tolerance)


def test_what_the_model_itself_refuses() -> None:
    text = "g (float[N, 6] x, int64[M] i) => (float[N, M] y) { h = Relu(x)\n y = Gather<axis=1>(h, i) }"
    explain = onnxlift.Explainer(model(text), inputs=["x"], target=0, reference="zeros")
    with pytest.raises(onnxlift.DataError, match="cannot run on samples 0 to 0: Gather node") as refusal:
        explain({"x": X, "i": [9]})
    assert "ONNXRuntimeError" not in str(refusal.value)


# ------------------------------------------------------------------------------------------- one-hot inputs

ONE_HOT = "g (float[N, 4, 5] x) => (float[N, 1] y) { f = Flatten (x) h = MatMul (f, V) a = Relu (h) y = MatMul (a, v) }"
VECTORS = {"V": RNG.standard_normal((20, 6)).astype(np.float32), "v": RNG.standard_normal((6, 1)).astype(np.float32)}
LETTERS = RNG.integers(0, 4, (7, 5))
SEQUENCES = np.swapaxes(np.eye(4)[LETTERS], 1, 2)
KNOWN = np.where(np.arange(5) == 2, 0.0, SEQUENCES)  # nothing is known of position 2


def sequences(text: str = ONE_HOT, **options: object) -> onnxlift.Explainer:
    return onnxlift.Explainer(model(text, **VECTORS), providers=[CPU], **{"reference": "zeros", **options})


def test_hypothetical_contributions(tmp_path: Path) -> None:
    """What each letter would contribute, times the letter that is there, is what it contributes."""
    frequencies = np.full((2, 4, 5), 0.25) + np.array([[0.2], [-0.2], [0.1], [-0.1]]) * [[[1]], [[-1]]]
    emit = ("hypothetical", "contributions", "multipliers")
    for reference in ("zeros", {"x": frequencies[:1]}, {"x": frequencies}):
        explanation = sequences(emit=emit, reference=reference)(SEQUENCES)
        h = explanation.hypothetical["x"]
        assert (h.shape, h.dtype) == (SEQUENCES.shape, np.float32)
        close(h * SEQUENCES, explanation.contributions["x"])
        if reference == "zeros" or len(reference["x"]) == 1:
            r = np.zeros((1, 4, 5)) if reference == "zeros" else reference["x"]
            m = explanation.multipliers["x"]
            close(h, m - (r * m).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(explanation.gap, 0, atol=1e-5)
    explanation.save(tmp_path / "out.npz")
    saved = read_all(tmp_path / "out.npz")
    assert isinstance(saved, dict)
    np.testing.assert_array_equal(saved["x_hypothetical"], h)
    assert sequences()(SEQUENCES).hypothetical == {}
    unknown = sequences(emit=emit[:2], reference={"x": frequencies})(KNOWN)  # no warning: it is complete
    assert np.abs(unknown.contributions["x"][:, :, 2]).max() > 0.01


@pytest.mark.parametrize("options", [{"emit": ("hypothetical",)}, {"rule": "liftpad", "one_hot": -2}])
@pytest.mark.parametrize(
    ("place", "column", "shown"),
    [
        ((0, 0), [0.25] * 4, "sample 0 is not one-hot along axis 1: position 0 has [0.25, 0.25, 0.25, 0.25], where"),
        ((3, 1), [1, 0, 1, 0], "sample 3 is not one-hot along axis 1: position 1 has [1, 0, 1, 0], where"),
        ((6, 4), [0, -1, 0, 0], "sample 6 is not one-hot along axis 1: position 4 has [0, -1, 0, 0], where"),
        ((1, 3), [0, 0, 1.5, 0], "sample 1 is not one-hot along axis 1: position 3 has [0, 0, 1.5, 0], where"),
    ],
)
def test_data_that_are_not_one_hot(
    options: dict[str, object], place: tuple[int, int], column: list[float], shown: str
) -> None:
    explain = sequences(**options)
    bad = KNOWN.copy()
    explain(bad)
    explain(np.zeros_like(bad))
    bad[place[0], :, place[1]] = column
    what = "normalised weights" if "rule" in options else "hypothetical contributions"
    with pytest.raises(onnxlift.DataError) as refusal:
        explain(bad)
    assert str(refusal.value).startswith(f"input 'x' must be one-hot for {what}: {shown}")
    assert sequences(one_hot=1)(bad).contributions  # named for a reference: nothing here counts on it
    assert sequences(rule="liftpad")(bad).contributions


@pytest.mark.parametrize(
    ("shape", "axis", "place", "shown"),
    [
        ((None, 5, 4), 2, (1, 3), "sample 1 is not one-hot along axis 2: position 3 has [2, 0, 0, 0]"),
        ((None, 3, 4, 5), 2, (1, 2, 3), "sample 1 is not one-hot along axis 2: position 13 has [2, 0, 0, 0]"),
        ((None, 4), 1, (1,), "sample 1 is not one-hot along axis 1: position 0 has [2, 0, 0, 0]"),
        ((4, 5), 0, (3,), "sample 0 is not one-hot along axis 0: position 3 has [2, 0, 0, 0]"),
    ],
)
def test_one_hot_inputs_of_any_shape(
    shape: tuple[int | None, ...], axis: int, place: tuple[int, ...], shown: str
) -> None:
    """Further axes count positions, in order; the last case has no batch axis."""
    dims, batched = ", ".join("N" if dim is None else str(dim) for dim in shape), None in shape
    body = "y = Tanh (x)" if batched else "t = Tanh (x) y = ReduceSum <keepdims = 0> (t)"
    explain = onnxlift.Explainer(
        model(f"g (float[{dims}] x) => (float{f'[{dims}]' if batched else ''} y) {{ {body} }}"),
        target=(0,) * (len(shape) - 1) if batched else None,
        reference="zeros",
        emit=("hypothetical", "contributions"),
        one_hot=axis,
    )
    x = np.zeros([dim or 2 for dim in shape])
    explain(x)
    letters = np.moveaxis(x, axis, -1)
    letters[..., 1] = 1
    explain(x)
    letters[place] = [2, 0, 0, 0]
    with pytest.raises(onnxlift.DataError) as refusal:
        explain(x)
    assert shown in str(refusal.value)


# -------------------------------------------------------------------------------------------- completeness


def test_a_warning_names_the_samples_that_do_not_add_up() -> None:
    proto = onnxlift.rewrite(mlp(), target=1, reference="zeros")
    lost = onnx.helper.make_tensor("lost", 1, [], [0.5])
    proto.graph.initializer.append(lost)
    node = next(node for node in proto.graph.node if "completeness_gap" in node.output)
    node.output[0] = "gap_before"
    proto.graph.node.append(onnx.helper.make_node("Add", ["gap_before", "lost"], ["completeness_gap"]))
    explain = onnxlift.Explainer(proto)
    with pytest.warns(onnxlift.CompletenessWarning, match=r"7 of 7 samples .* sample \d \(gap 0\.5, .*onnxlift verify"):
        explain(X)
    explain.tolerance = 1e6
    explain(X)


def test_huge_contributions_that_cancel_do_not_excuse_a_gap() -> None:
    """Seen in a ConvNeXt at reference zero, where a LayerNormalization has no variance."""
    cancelling = onnxlift.Explanation(
        contributions={"x": np.array([[9e6, -9e6], [0.1, 0.1]], np.float32)},
        outputs={},
        target=np.array([0.2, 0.2], np.float32),
        target_reference=np.zeros(2, np.float32),
        gap=np.array([5, 0], np.float32),
    )
    complaint = explainer().complaint(cancelling)
    assert complaint is not None
    assert "1 of 2 samples" in complaint
    assert "sample 0 (gap 5, difference 0.2); the contributions cancel (their sizes add up to 1.8e+07)" in complaint


@pytest.mark.parametrize("rule", ["gradient", "gradient-x-input", "integrated-gradients:3", "guided-backprop"])
def test_no_warning_for_a_rule_that_does_not_conserve(rule: str) -> None:
    explain = explainer(rule=rule)
    assert f"rule {rule} (which does not conserve: contributions are not expected to add up); runs" in str(explain)
    explanation = explain(X, reference=R)  # a warning would be an error
    assert np.abs(explanation.gap).max() > 0.1
    assert explain.complaint(explanation) is None


def test_an_infinite_tolerance_allows_all_that_is_a_number() -> None:
    explain = explainer(tolerance=np.inf, reference="zeros")
    explanation = explain(np.where(np.arange(7)[:, None] < 3, 0, X))  # no difference, to which infinity is relative
    assert (explanation.difference[:3] == 0).all()
    np.testing.assert_array_equal(explain.allowed_gap(explanation), np.full(7, np.inf))
    assert explain.complaint(replace(explanation, gap=explanation.gap + 9)) is None
    assert explain.complaint(replace(explanation, gap=explanation.gap * np.nan)) is not None


def test_nan_contributions_are_not_complete() -> None:
    text = "g (float[N, 6] x) => (float[N, 6] y) { y = Log(x) }"
    explain = onnxlift.Explainer(model(text), target=0, reference={"x": np.ones((1, 6))})
    with pytest.warns(onnxlift.CompletenessWarning, match="where the gap is NaN"):
        explain(np.where(np.arange(7)[:, None] == 2, -1.0, 2.0) * np.ones(6))


# -------------------------------------------------------------------------------------- providers, progress


def test_the_provider_line(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "cuda_obstacle", lambda: "no NVIDIA driver found")
    explain = onnxlift.Explainer(mlp(), target=1)
    assert explain.provider_line.startswith("runs on the CPU (ONNX Runtime ")
    assert str(explain).startswith("explains neuron 1 of 'y' by 'x' against a reference per sample, rule rescale; runs")
    assert capfd.readouterr().err == ""
    if "CUDA" in explain.provider_line:
        assert "no NVIDIA driver found" in explain.provider_line
        with pytest.raises(onnxlift.OptionError, match="it cannot run here: no NVIDIA driver found"):
            onnxlift.Explainer(mlp(), target=1, providers=[CUDA])
    with pytest.raises(onnxlift.OptionError, match="no provider 'FastProvider'"):
        onnxlift.Explainer(mlp(), target=1, providers=["FastProvider"])


def test_both_packages_of_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_installed", lambda package: True)
    assert "both installed" in explainer().provider_line
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", types.ModuleType("onnxruntime"))
    with pytest.raises(onnxlift.OnnxliftError, match="incomplete"):
        explainer()


@pytest.mark.gpu
@pytest.mark.skipif(cuda_obstacle() is not None, reason="no CUDA device")
def test_cuda_agrees_with_the_cpu() -> None:
    explain = onnxlift.Explainer(mlp(), target=1, reference="shared", batch_size=2)
    assert explain.provider_line.startswith("runs on CUDA")
    close(explain(X, reference=R).contributions["x"], explainer(reference="shared")(X, reference=R).contributions["x"])


def test_the_essential_line_of_an_error() -> None:
    text = (
        "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Reshape node. Name:'r' Status "
        "Message: /onnxruntime_src/onnxruntime/core/providers/cpu/tensor/reshape_helper.h:91 onnxruntime::ReshapeHelper"
        "::ReshapeHelper(const onnxruntime::TensorShape&, bool) input_shape_size == size was false. Input shape:{2,4}"
    )
    assert essential(Exception(text)) == "Reshape node 'r': input_shape_size == size was false. Input shape:{2,4}"


@pytest.mark.parametrize(("progress", "shown"), [(True, True), (False, False), (None, False)])
def test_the_progress_bar(progress: bool | None, shown: bool, capsys: pytest.CaptureFixture[str]) -> None:
    explainer(progress=progress, batch_size=2)(X, reference=R)
    assert ("explaining" in capsys.readouterr().err) == shown


# -------------------------------------------------------------------------------------------------- files


def test_an_explanation_is_saved_under_the_names_of_the_outputs(tmp_path: Path) -> None:
    explanation = explainer(expose=("a",))(X, reference=R)
    path = tmp_path / "out.npz"
    explanation.save(path)
    explanation.save(path)
    with np.load(path, allow_pickle=False) as saved:
        assert set(saved) == set(explanation.arrays())
        np.testing.assert_array_equal(saved["x_contributions"], explanation.contributions["x"])
        np.testing.assert_array_equal(saved["a/multiplier"], explanation.exposed["a/multiplier"])
    assert [file.name for file in tmp_path.iterdir()] == ["out.npz"]
    assert str(explanation).startswith("contributions of 'x' [7, 6]; |t(x) - t(r)| from ")


def test_any_tensor_name_survives_a_file(tmp_path: Path) -> None:
    names = ["a/b:0", "../escape", "/root", "file", "arr_0", "ä;b", "x.npy", "two words"]
    write_arrays(tmp_path / "out", {name: np.full(2, i) for i, name in enumerate(names)})
    for read in (np.load(tmp_path / "out"), read_all(tmp_path / "out")):
        assert list(read) == names
        assert [int(read[name][0]) for name in names] == list(range(len(names)))
    with np.load(tmp_path / "out"):
        assert [file.name for file in tmp_path.iterdir()] == ["out"]
    write_arrays(tmp_path / "text", {"t": np.array(["a", "bc"], dtype=object)})
    assert read_all(tmp_path / "text")["t"].tolist() == ["a", "bc"]


def test_objects_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(onnxlift.DataError, match="Cannot write"):
        write_arrays(tmp_path / "out.npz", {"x": np.array([None])})
    assert list(tmp_path.iterdir()) == []
