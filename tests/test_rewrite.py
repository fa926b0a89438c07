"""The rewriter's choices: targets, references, inputs, exposed tensors, names, and what it refuses."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import laws
import numpy as np
import onnx
import onnxruntime
import pytest

import onnxlift

RNG = np.random.default_rng(2)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


W1, B1, W2, B2 = normal(5, 8), normal(8), normal(8, 3), normal(3)
X, R = normal(4, 5), normal(4, 5)
TABLE = normal(10, 8)


def classifier(last: str = "y = Softmax (z)", batch: str = "N") -> onnx.ModelProto:
    return laws.model(
        f"g (float[{batch}, 5] x) => (float[{batch}, 3] y) "
        f"{{ h = Gemm (x, w1, b1) a = Relu (h) z = Gemm (a, w2, b2) {last} }}",
        w1=W1,
        b1=B1,
        w2=W2,
        b2=B2,
    )


def logits(x: np.ndarray) -> np.ndarray:
    return np.maximum(x @ W1 + B1, 0) @ W2 + B2


def explain(model: onnx.ModelProto, feed: dict[str, np.ndarray], **options: object) -> dict[str, np.ndarray]:
    explainer = onnxlift.rewrite(model, **options)
    onnx.checker.check_model(explainer, full_check=True)
    return laws.run(explainer, feed)


def is_complete(got: dict[str, np.ndarray], difference: np.ndarray) -> None:
    np.testing.assert_allclose(got["target_output"] - got["target_reference"], difference, atol=2e-6)
    np.testing.assert_allclose(got["x_contributions"].sum(axis=1), difference, atol=5e-6)
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=5e-6)


# --- targets ---------------------------------------------------------------------------------------------------------


def test_an_index_explains_the_logit_below_softmax() -> None:
    got = explain(classifier(), {"x": X, "x_reference": R}, target=2)
    is_complete(got, (logits(X) - logits(R))[:, 2])
    np.testing.assert_allclose(got["y"].sum(axis=1), 1, atol=1e-6)


def test_argmax_is_that_of_the_input_in_both_runs() -> None:
    got = explain(classifier(), {"x": X, "x_reference": R}, target="argmax")
    best = logits(X).argmax(axis=1)
    is_complete(got, (logits(X) - logits(R))[range(4), best])


def test_target_at_run_time_and_out_of_range() -> None:
    got = explain(classifier(), {"x": X, "x_reference": R, "target": np.array([2, 0, 3, -1])}, target="input")
    is_complete({k: v[:2] for k, v in got.items()}, (logits(X) - logits(R))[[0, 1], [2, 0]])
    for name in ("x_contributions", "completeness_gap", "target_output"):
        assert np.isnan(got[name][2:]).all()


def test_weights_choose_any_combination() -> None:
    w = normal(4, 3)
    got = explain(classifier(), {"x": X, "x_reference": R, "target_weights": w}, target="weights")
    is_complete(got, ((logits(X) - logits(R)) * w).sum(axis=1))


def test_a_tuple_and_a_run_time_target_in_a_map() -> None:
    model = laws.model("g (float[N, 3, 4] x) => (float[N, 3, 4] y) { y = Tanh (x) }")
    x, r = normal(2, 3, 4), normal(2, 3, 4)
    fixed = explain(model, {"x": x, "x_reference": r}, target=(1, 2))
    asked = explain(model, {"x": x, "x_reference": r, "target": np.array([[1, 2], [1, 2]])}, target="input")
    np.testing.assert_allclose(fixed["x_contributions"][:, 1, 2], np.tanh(x[:, 1, 2]) - np.tanh(r[:, 1, 2]), atol=1e-6)
    assert np.count_nonzero(fixed["x_contributions"]) == 2
    np.testing.assert_array_equal(fixed["x_contributions"], asked["x_contributions"])
    best = explain(model, {"x": x, "x_reference": r}, target="argmax")
    np.testing.assert_allclose(best["target_output"], np.tanh(x).reshape(2, -1).max(axis=1), atol=1e-6)


def test_one_neuron_needs_no_target() -> None:
    model = laws.model("g (float[N, 5] x) => (float[N, 1] y) { h = Gemm (x, w) y = Sigmoid (h) }", w=normal(5, 1))
    got = explain(model, {"x": X, "x_reference": R})
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-6)
    assert got["target_output"].shape == (4,)


def test_pre_activation_can_be_kept_and_an_internal_tensor_explained() -> None:
    kept = explain(classifier(), {"x": X, "x_reference": R}, target=1, pre_activation=False, output="z")
    is_complete(kept, (logits(X) - logits(R))[:, 1])
    inner = explain(classifier("y = Neg (z)"), {"x": X, "x_reference": R}, target=7, output="h")
    is_complete(inner, ((X - R) @ W1)[:, 7])


@pytest.mark.parametrize("last", ["s = Softmax (z) y = Identity (s)", "s = Sigmoid (z) y = Reshape (s, shape)"])
def test_stepping_over_looks_through_identity_and_reshape(last: str) -> None:
    model = classifier(last)
    if "shape" in last:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, 3]), "shape"))
    is_complete(explain(model, {"x": X, "x_reference": R}, target=1), (logits(X) - logits(R))[:, 1])


def test_without_a_batch_axis_the_index_covers_all_axes() -> None:
    model = laws.model("g (float[5] x) => (float[3] y) { y = MatMul (x, w) }", w=W1[:, :3])
    got = explain(model, {"x": X[0], "x_reference": R[0]}, target=2)
    assert got["completeness_gap"].shape == ()
    np.testing.assert_allclose(got["target_output"], (X[0] @ W1)[2], atol=1e-6)


# --- references ------------------------------------------------------------------------------------------------------


def test_references_agree_with_pairing_by_hand() -> None:
    def paired(r: np.ndarray) -> np.ndarray:
        return explain(classifier(), {"x": X, "x_reference": r}, target="argmax")["x_contributions"]

    each = [paired(np.repeat(R[k : k + 1], 4, axis=0)) for k in range(3)]
    mean = np.mean(each, axis=0)
    cases = {
        "zeros": ("zeros", {}, paired(np.zeros_like(X))),
        "one": ({"x": R[:1]}, {}, each[0]),
        "baked": ({"x": R[:3]}, {}, mean),
        "shared": ("shared", {"x_reference": R[:3]}, mean),
        "grouped": ("grouped", {"x_reference": np.repeat(R[None, :3], 4, axis=0)}, mean),
    }
    for reference, feed, expected in cases.values():
        got = explain(classifier(), {"x": X, **feed}, target="argmax", reference=reference)
        np.testing.assert_allclose(got["x_contributions"], expected, atol=2e-6)
        np.testing.assert_allclose(got["completeness_gap"], 0, atol=5e-6)
        assert got["target_reference"].shape == (4,)


def test_references_of_a_fixed_batch() -> None:
    for reference in ("zeros", {"x": R[:1]}):
        r = np.zeros_like(X) if reference == "zeros" else np.repeat(R[:1], 4, axis=0)
        got = explain(classifier(batch="4"), {"x": X}, target=0, reference=reference)
        is_complete(got, (logits(X) - logits(r))[:, 0])


@pytest.mark.parametrize("batch", [1, 2])
def test_several_references_of_a_model_with_a_fixed_batch(batch: int) -> None:
    """As PyTorch exports it by default: the batch is in the input and in the shapes of Reshape nodes."""
    body = "c = Conv (x, k) a = Relu (c) f = Reshape (a, s) y = Gemm (f, w)"
    constants = {"k": normal(2, 1, 2, 2), "w": normal(18, 3)}

    def network(size: str) -> onnx.ModelProto:
        shape = np.array([batch if size.isdigit() else 0, 18])
        return laws.model(f"g (float[{size}, 1, 4, 4] x) => (float[{size}, 3] y) {{ {body} }}", s=shape, **constants)

    x, r = normal(batch, 1, 4, 4), normal(3, 1, 4, 4)
    for reference, feed in (("shared", r), ("grouped", np.repeat(r[None], batch, axis=0)), ({"x": r}, None)):
        more = {} if feed is None else {"x_reference": feed}
        fixed = explain(network(str(batch)), {"x": x, **more}, target=1, reference=reference)
        free = explain(network("N"), {"x": x, **more}, target=1, reference=reference)
        np.testing.assert_allclose(fixed["x_contributions"], free["x_contributions"], atol=1e-6)
        assert fixed["completeness_gap"].shape == (batch,)
    explainer = onnxlift.rewrite(network(str(batch)), target=1, reference="shared")
    sizes = [dim.dim_value or dim.dim_param for dim in explainer.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == [batch, 1, 4, 4]


def test_several_references_run_the_model_n_plus_k_times_only() -> None:
    explainer = onnxlift.rewrite(classifier(), target=0, reference="shared")
    forward = [node for node in explainer.graph.node if node.op_type == "Gemm" and "multiplier" not in node.output[0]]
    assert len(forward) == 4  # two layers at x, two at r; neither is tiled
    assert all("Expand" not in node.input[0] for node in forward)


# --- inputs ----------------------------------------------------------------------------------------------------------


def embedding() -> onnx.ModelProto:
    return laws.model(
        "g (int64[N, 6] ids, float[N, 6] mask) => (float[N, 3] y) { e = Gather (table, ids) t = Tanh (e) "
        "u = Unsqueeze (mask, last) v = Mul (t, u) s = ReduceSum <keepdims = 0> (v, one) y = MatMul (s, w2) }",
        table=TABLE,
        last=np.array([2]),
        one=np.array([1]),
        w2=W2,
    )


def test_an_internal_tensor_can_be_attributed_to() -> None:
    """References are given for the graph inputs that it is computed from."""
    ids, pad = RNG.integers(0, 10, (4, 6)), np.zeros((4, 6), np.int64)
    feed = {"ids": ids, "ids_reference": pad, "mask": np.ones((4, 6), np.float32)}
    got = explain(embedding(), feed, inputs=["e"], target=1)
    assert got["e_contributions"].shape == (4, 6, 8)
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)
    assert not got["e_contributions"][ids == 0].any()
    shared = explain(embedding(), {**feed, "ids_reference": pad[:2]}, inputs=["e"], target=1, reference="shared")
    np.testing.assert_allclose(shared["e_contributions"], got["e_contributions"], atol=1e-6)


def test_only_the_attributed_tensors_change_in_the_reference_run() -> None:
    """A mask made from the ids stays that of the sample, and the contributions sum to what the embedding does."""
    model = laws.model(
        "g (int64[N, 6] ids) => (float[N, 1] y) { e = Gather (table, ids) z = Equal (ids, zero) f = Cast <to = 1> (z) "
        "u = Unsqueeze (f, last) v = Mul (e, u) s = ReduceSum <keepdims = 0> (v, axes) y = Unsqueeze (s, axis) }",
        table=TABLE,
        zero=np.array(0),
        last=np.array([2]),
        axes=np.array([1, 2]),
        axis=np.array([1]),
    )
    ids = RNG.integers(0, 2, (4, 6))
    got = explain(model, {"ids": ids, "ids_reference": ids + 3}, inputs=["e"])
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)
    assert not got["e_contributions"][ids != 0].any()
    assert abs(got["e_contributions"]).max() > 0.1
    for reference, feed in (("shared", ids[:1] + 3), ({"ids": ids[:1] + 3}, None)):
        more = {} if feed is None else {"ids_reference": feed}
        same = explain(model, {"ids": ids, **more}, inputs=["e"], reference=reference)
        hand = explain(model, {"ids": ids, "ids_reference": np.repeat(ids[:1] + 3, 4, axis=0)}, inputs=["e"])
        np.testing.assert_allclose(same["e_contributions"], hand["e_contributions"], atol=1e-6)


def test_several_inputs_and_outputs() -> None:
    model = laws.model(
        "g (float[N, 5] a, float[N, 5] b, float[N, 5] unused) => (int64[N] label, float[N, 3] y, float[N, 5] other) "
        "{ p = Mul (a, b) q = Add (p, a) y = Gemm (q, w) label = ArgMax <axis = 1, keepdims = 0> (y) "
        "other = Neg (unused) }",
        w=W1[:, :3],
    )
    feed = {"a": X, "a_reference": R, "b": normal(4, 5), "b_reference": normal(4, 5), "unused": X}
    got = explain(model, feed, target=1)
    assert {"a_contributions", "b_contributions"} < set(got)
    assert "unused_contributions" not in got
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)
    np.testing.assert_array_equal(got["label"], got["y"].argmax(axis=1))
    one = explain(model, {k: v for k, v in feed.items() if k != "b_reference"}, inputs=["a"], target=1)
    q, q0 = (value * feed["b"] + value for value in (X, R))
    np.testing.assert_allclose(one["a_contributions"].sum(axis=1), ((q - q0) @ W1)[:, 1], atol=1e-5)


def test_a_tensor_used_many_times_collects_all_its_terms() -> None:
    model = laws.model(
        "g (float[N, 5] x) => (float[N, 5] y) "
        "{ a = Relu (x) b = Tanh (a) c = Add (a, b) d = Mul (c, a) y = Add (d, x) }"
    )
    laws.check(model, {"x": X}, {"x": R})


def test_names_that_are_no_identifiers_keep_their_spelling() -> None:
    model = classifier()
    text = model.SerializeToString()
    assert text
    for node in model.graph.node:
        node.input[:] = ["in:0" if name == "x" else name for name in node.input]
    model.graph.input[0].name = "in:0"
    got = explain(model, {"in:0": X, "in:0_reference": R}, target=0)
    assert got["in:0_contributions"].shape == X.shape


# --- what is emitted -------------------------------------------------------------------------------------------------


def test_exposed_tensors() -> None:
    options = {"target": 1, "expose": ["h", "a"], "emit": ("contributions", "multipliers", "reference_outputs")}
    got = explain(classifier(), {"x": X, "x_reference": R}, **options)
    h, h0 = (value @ W1 + B1 for value in (X, R))
    difference = (logits(X) - logits(R))[:, 1]
    np.testing.assert_allclose(got["h"], h, atol=1e-5)
    for name in ("h", "a"):
        np.testing.assert_allclose(got[f"{name}/contributions"].sum(axis=1), difference, atol=1e-5)
    np.testing.assert_allclose(got["h/multiplier"] * (h - h0), got["h/contributions"], atol=1e-5)
    np.testing.assert_allclose(got["x_multipliers"] * (X - R), got["x_contributions"], atol=1e-6)
    np.testing.assert_allclose(got["y_reference"], laws.run(classifier(), {"x": R})["y"], atol=1e-6)
    assert "x_multipliers" not in explain(classifier(), {"x": X, "x_reference": R}, target=1)


@pytest.mark.parametrize("reference", ["shared", "grouped", {"x": R[:2]}], ids=["shared", "grouped", "baked"])
def test_exposed_tensors_are_averaged_over_references(reference: object) -> None:
    each = [
        explain(classifier(), {"x": X, "x_reference": np.repeat(R[k : k + 1], 4, axis=0)}, target=1, expose=["h", "a"])
        for k in range(2)
    ]
    rows = (
        {"shared": R[:2], "grouped": np.repeat(R[None, :2], 4, axis=0)}.get(reference)
        if isinstance(reference, str)
        else None
    )
    feed = {"x": X} if rows is None else {"x": X, "x_reference": rows}
    got = explain(classifier(), feed, target=1, reference=reference, expose=["h", "a"])
    for name in ("h/contributions", "a/contributions", "h/multiplier", "a/multiplier", "x_contributions"):
        np.testing.assert_allclose(got[name], np.mean([run[name] for run in each], axis=0), atol=2e-6)


def test_an_explainer_explains_itself() -> None:
    explainer = onnxlift.rewrite(classifier(), target=1, reference="zeros")
    told = json.loads(next(entry.value for entry in explainer.metadata_props if entry.key == "onnxlift"))
    assert told["version"] == "0.1.0"
    assert (told["output"], told["target"], told["reference"], told["inputs"]) == ("z", [1], "zeros", ["x"])
    assert told["stepped_over"].startswith("Softmax")
    assert told["rules"] == {"Gemm": "midpoint", "Relu": "rescale"}
    names = {name for node in explainer.graph.node for name in node.output}
    assert {"h/reference", "a/reference", "h/multiplier", "a/multiplier", "x/multiplier"} <= names


def test_weights_are_not_duplicated() -> None:
    big = laws.model("g (float[N, 300] x) => (float[N, 300] y) { h = MatMul (x, w) y = Relu (h) }", w=normal(300, 300))
    for reference in ("paired", "zeros", "shared"):
        assert onnxlift.rewrite(big, target=0, reference=reference).ByteSize() < 1.1 * big.ByteSize()


def test_rewriting_is_deterministic_and_leaves_the_model_alone() -> None:
    model = classifier()
    before = model.SerializeToString()
    one, two = (onnxlift.rewrite(model, target=1).SerializeToString() for _ in range(2))
    assert one == two
    assert model.SerializeToString() == before


def test_weights_in_external_data(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = laws.model(
        "g (float[N, 300] x) => (float[N, 300] y) { h = MatMul (x, w) y = Relu (h) }", w=normal(300, 300)
    )
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    beside, elsewhere = tmp_path / "e.onnx", tmp_path / "other" / "e.onnx"
    elsewhere.parent.mkdir()
    x, r = normal(2, 300), normal(2, 300)
    expected = explain(onnx.load(tmp_path / "m.onnx"), {"x": x, "x_reference": r}, target=3)
    for path in (beside, elsewhere):
        onnxlift.rewrite_file(tmp_path / "m.onnx", path, target=3)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        got = session.run(["x_contributions"], {"x": x, "x_reference": r})[0]
        np.testing.assert_array_equal(got, expected["x_contributions"])
    assert beside.stat().st_size < 20_000  # the weights stay in m.data
    assert elsewhere.stat().st_size > 300 * 300 * 4


def test_big_weights_get_a_file_of_their_own_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["onnxlift.rewrite"], "OWN_FILE", 1000)
    model = laws.model("g (float[N, 30] x) => (float[N, 30] y) { h = MatMul (x, w) y = Tanh (h) }", w=normal(30, 30))
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    path = tmp_path / "other" / "e.onnx"
    path.parent.mkdir()
    onnxlift.rewrite_file(tmp_path / "m.onnx", path, target=3)
    assert sorted(file.name for file in path.parent.iterdir()) == ["e.onnx", "e.onnx.data"]
    (tmp_path / "m.data").rename(tmp_path / "gone.data")
    x, r = normal(2, 30), normal(2, 30)
    got = onnxlift.Explainer(path, providers=["CPUExecutionProvider"])(x, reference=r)
    np.testing.assert_allclose(got.gap, 0, atol=1e-5)
    assert np.abs(got.difference).max() > 0.1


@pytest.mark.parametrize(
    "body",
    [
        "y = Softmax <axis = 0> (x)",
        "y = CumSum (x, first)",
        "m = ReduceMean (x, firsts) y = Sub (x, m)",
        "f = Flatten <axis = 0> (x) s = Softmax <axis = 1> (f) y = Reshape (s, shape)",
        "p, q = Split <axis = 0, num_outputs = 2> (x) y = Concat <axis = 0> (q, p)",
    ],
)
def test_rows_that_depend_on_each_other_are_no_batch(body: str) -> None:
    constants = {"first": np.int64(0), "firsts": np.int64([0]), "shape": np.int64([4, 5])}
    used = {name: value for name, value in constants.items() if re.search(rf"\b{name}\b", body)}
    model = laws.model(f"g (float[4, 5] x) => (float[M, 5] y) {{ {body} }}", **used)
    explainer = onnxlift.rewrite(model, target="weights", pre_activation=False)
    gap = next(output for output in explainer.graph.output if output.name == "completeness_gap")
    assert not gap.type.tensor_type.shape.dim
    x, r = normal(4, 5), normal(4, 5)
    rows = len(laws.run(model, {"x": x})["y"])
    got = laws.run(explainer, {"x": x, "x_reference": r, "target_weights": normal(rows, 5)})
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)


# --- refusals --------------------------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, object], type[Exception], str]] = [
    ({"target": 3}, onnxlift.OptionError, r"target \[3\] is out of range for tensor 'z' of shape \[3\]"),
    ({"target": -1}, onnxlift.OptionError, "out of range"),
    ({"target": (0, 1)}, onnxlift.OptionError, "2 indices"),
    ({}, onnxlift.OptionError, r"\[3\] neurons per sample: choose a target"),
    ({"target": "best"}, onnxlift.OptionError, "unknown target 'best'"),
    ({"target": 0, "output": "nope"}, onnxlift.OptionError, "no tensor 'nope' in the model; its outputs are 'y'"),
    ({"target": 0, "inputs": ["nope"]}, onnxlift.OptionError, "no tensor 'nope' in the model; its inputs are 'x'"),
    ({"target": 0, "inputs": []}, onnxlift.OptionError, "`inputs` is empty"),
    ({"target": 0, "inputs": ["w1"]}, onnxlift.OptionError, "constant of the model"),
    ({"target": 0, "inputs": ["h", "a"]}, onnxlift.OptionError, "'a' is computed from 'h'"),
    ({"target": 0, "inputs": ["y"]}, onnxlift.OptionError, "does not depend on 'y'"),
    ({"target": 0, "rule": "magic"}, onnxlift.OptionError, "unknown rule 'magic'"),
    ({"target": 0, "reference": "ones"}, onnxlift.OptionError, "unknown reference 'ones'"),
    ({"target": 0, "reference": {"z": R}}, onnxlift.OptionError, r"needed for \['x'\]"),
    ({"target": 0, "reference": {"x": R[0]}}, onnxlift.OptionError, r"shape \[5\], expected \['1 or K', 5\]"),
    ({"target": 0, "reference": {"x": R[:, :4]}}, onnxlift.OptionError, "has shape"),
    ({"target": 0, "reference": {"x": R * np.nan}}, onnxlift.OptionError, "NaN"),
    ({"target": 0, "emit": ("scores",)}, onnxlift.OptionError, "cannot emit 'scores'"),
    ({"target": 0, "expose": ["nope"]}, onnxlift.OptionError, "'nope' cannot be exposed"),
    ({"target": 0, "expose": ["y"]}, onnxlift.OptionError, "no importance passes"),
    (
        {"target": 0, "plan": onnxlift.Plan([onnxlift.Choice("magic")])},
        onnxlift.OptionError,
        "rule 'magic', which no operator has",
    ),
    (
        {"target": 0, "plan": onnxlift.Plan([onnxlift.Choice("linear", op="Relu")])},
        onnxlift.OptionError,
        "rule 'linear' for Relu .* which has .*'rescale'",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_refused_options(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        onnxlift.rewrite(classifier(), **options)


def test_all_nodes_without_a_rule_are_named_at_once() -> None:
    model = laws.model(
        "g (float[N, 5, 4] x) => (float[N, 5, 4] y) { a = Exp (x) b = Abs (x) h = Add (a, b) y = Cos (h) }"
    )
    model.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    strangers = ("Exp", "Abs", "Cos")
    for node in model.graph.node:
        node.domain = "elsewhere" if node.op_type in strangers else ""
    with pytest.raises(onnxlift.RuleError) as caught:
        onnxlift.rewrite(model, target="weights")
    message = str(caught.value)
    assert "3 nodes" in message
    for op in strangers:
        assert f"({op}): no rule for this operator" in message


def test_int_inputs_are_refused_with_a_hint() -> None:
    with pytest.raises(onnxlift.OptionError, match=r"'ids' is int64, not a float.* for instance 'e'"):
        onnxlift.rewrite(embedding(), inputs=["ids"], target=0)


def test_several_references_need_a_batch_that_can_be_freed() -> None:
    model = laws.model(
        "g (float[2, 6] x) => (float[2, 3, 2] y) { a = Reshape (x, s) b = Transpose <perm = [1, 0, 2]> (a) "
        "c = MatMul (b, w) d = Transpose <perm = [1, 0, 2]> (c) y = Add (d, e) }",
        s=np.array([2, 3, 2]),
        w=normal(3, 2, 2),
        e=normal(2, 1, 1),
    )
    with pytest.raises(onnxlift.OptionError, match="dynamic batch axis"):
        onnxlift.rewrite(model, target="weights", reference="shared")


def test_a_name_collision_is_refused() -> None:
    model = laws.model("g (float[N, 5] x, float[N, 5] x_reference) => (float[N, 5] y) { y = Add (x, x_reference) }")
    with pytest.raises(onnxlift.OptionError, match="already has a tensor 'x_reference'"):
        onnxlift.rewrite(model, target=0)


# --- what a hostile review found -------------------------------------------------------------------------------------


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def test_many_large_baked_references() -> None:
    model = laws.model("g (float[N, 3000] x) => (float[N, 3] y) { y = MatMul (x, w) }", w=normal(3000, 3))
    got = explain(model, {"x": normal(2, 3000)}, target=1, reference={"x": normal(2, 3000)})
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-3)


def test_zeros_where_all_sizes_are_dynamic() -> None:
    model = laws.model(
        "g (float[N, C, L] x) => (float[N, C] y) { y = ReduceMax <keepdims = 0> (x, last) }", last=np.array([2])
    )
    got = explain(model, {"x": normal(2, 3, 4)}, target=0, reference="zeros")
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-6)


def test_the_batch_of_every_input_is_the_same_where_the_exporter_invents_names() -> None:
    model = laws.model(
        "g (float[unk__1, 5] a, float[unk__2, 5] b) => (float[unk__3, 3] y) "
        "{ h = Concat <axis = 1> (a, b) y = MatMul (h, w) }",
        w=normal(10, 3),
    )
    got = explain(model, {"a": normal(4, 5), "b": normal(4, 5)}, target="argmax", reference="zeros")
    assert abs(got["a_contributions"]).sum(axis=1).all()
    assert got["completeness_gap"].shape == (4,)
    named = laws.model(
        "g (float[N, 5] a, float[M, 5] b) => (float[N, 3] y) { h = Concat <axis = 1> (a, b) y = MatMul (h, w) }",
        w=normal(10, 3),
    )
    with pytest.raises(onnxlift.OptionError, match="give the batch axes the same name"):
        onnxlift.rewrite(named, target="argmax")


def test_an_input_that_may_be_the_batch_by_another_name() -> None:
    model = laws.model(
        "g (float[N, 5] x, float[M, 5] b) => (float[N, 10] y) { h = Concat <axis = 1> (x, b) y = Tanh (h) }"
    )
    x, b, r, w = normal(3, 5), normal(3, 5), normal(1, 5), normal(3, 10)
    feed = {"x": x, "b": b, "target_weights": w}
    one = explain(model, feed, inputs=["x"], target="weights", reference={"x": r})
    hand = explain(model, {**feed, "x_reference": np.repeat(r, 3, axis=0)}, inputs=["x"], target="weights")
    np.testing.assert_allclose(one["x_contributions"], hand["x_contributions"], atol=1e-6)
    with pytest.raises(onnxlift.OptionError, match="'b' leads with 'M' and 'x' with 'N'"):
        onnxlift.rewrite(model, inputs=["x"], target="weights", reference="shared")


def test_a_fixed_index_beyond_a_dynamic_axis_gives_nan() -> None:
    model = laws.model("g (float[N, C] x) => (float[N, C] y) { y = Tanh (x) }")
    for target, known in ((2, True), (9, False), (2**62, False)):
        got = explain(model, {"x": normal(2, 3), "x_reference": normal(2, 3)}, target=target)
        assert np.isfinite(got["x_contributions"]).all() == known
        assert np.isnan(got["completeness_gap"]).all() != known


def test_a_shape_that_depends_on_values_is_no_way_round() -> None:
    model = laws.model(
        "g (float[N, 4] x) => (float[N] y) { nz = NonZero (x) s = Shape (nz) c = Gather <axis = 0> (s, one) "
        "f = Cast <to = 1> (c) t = ReduceSum <keepdims = 0> (x, one) y = Add (t, f) }",
        one=np.array([1]),
    )
    with pytest.raises(onnxlift.RuleError, match="leak"):
        onnxlift.rewrite(model)


def test_one_output_of_split_as_the_input() -> None:
    model = laws.model(
        "g (float[N, 4] x) => (float[N, 4] y) "
        "{ a, b = Split <axis = 1, num_outputs = 2> (x) u = Mul (a, b) y = Concat <axis = 1> (u, b) }"
    )
    got = explain(
        model, {"x": normal(3, 4), "target_weights": ones(3, 4)}, inputs=["a"], target="weights", reference="zeros"
    )
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-6)


@pytest.mark.parametrize("body", ["y = Softmax <axis = 0> (x)", "y = CumSum (x, zero)", "y = Trilu (x)"])
def test_an_axis_that_is_computed_along_is_no_batch(body: str) -> None:
    used = {"zero": np.array(0)} if "zero" in body else {}
    model = laws.model(f"g (float[N, 4] x) => (float[N, 4] y) {{ {body} }}", **used)
    x, r, w = normal(3, 4), normal(1, 4), normal(3, 4)
    paired = explain(
        model,
        {"x": x, "x_reference": np.repeat(r, 3, axis=0), "target_weights": w},
        target="weights",
        pre_activation=False,
    )
    baked = explain(model, {"x": x, "target_weights": w}, target="weights", reference={"x": r}, pre_activation=False)
    assert paired["completeness_gap"].shape == ()
    for name in ("target_reference", "completeness_gap", "x_contributions"):
        np.testing.assert_allclose(baked[name], paired[name], atol=1e-5)


def test_tokens_that_attend_to_each_other_are_no_samples() -> None:
    model = laws.model(
        "g (float[T, 4] x) => (float[T, 4] y) "
        "{ t = Transpose <perm = [1, 0]> (x) s = MatMul (x, t) p = Softmax (s) y = MatMul (p, x) }"
    )
    got = explain(model, {"x": normal(3, 4), "x_reference": normal(3, 4)}, target=(1, 2))
    assert got["completeness_gap"].shape == ()
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)


def test_rows_that_are_two_for_every_sample_are_no_batch() -> None:
    model = laws.model("g (float[N, 2, 3] x) => (float y) { y = Reshape (x, s) }", s=np.array([-1, 3]))
    got = explain(model, {"x": normal(3, 2, 3), "x_reference": normal(3, 2, 3)}, target=(4, 0))
    assert got["completeness_gap"].shape == ()
    assert np.count_nonzero(got["x_contributions"]) == 1


@pytest.mark.parametrize("symbol", ["references", "pairs"])
def test_symbols_of_the_model_do_not_clash_with_ours(symbol: str) -> None:
    model = laws.model(f"g (float[{symbol}, 5] x) => (float[{symbol}, 5] y) {{ t = Tanh (x) y = Mul (t, x) }}")
    got = explain(model, {"x": X, "x_reference": R[:2]}, target=1, reference="shared")
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-6)


def test_random_numbers_are_shared_or_refused() -> None:
    model = laws.model("g (float[N, 4] x) => (float[N, 4] y) { n = RandomNormalLike (x) y = Add (x, n) }")
    got = explain(model, {"x": normal(3, 4), "x_reference": normal(3, 4)}, target=1)
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-6)
    with pytest.raises(onnxlift.OptionError, match="draws random numbers"):
        onnxlift.rewrite(model, target=1, reference="zeros")


@pytest.mark.parametrize(
    ("body", "x", "r"),
    [
        ("c = Greater (x, zero) e = Exp (x) f = Sub (e, one) y = Where (c, x, f)", [100, 1], [0, 0]),
        ("c = Greater (x, zero) e = Exp (x) f = Add (e, one) l = Log (f) y = Where (c, x, l)", [100, -1], [0, 0]),
        ("c = Greater (x, zero) l = Log (x) p = Mul (x, l) y = Where (c, p, zero)", [0, 1], [0, 0.5]),
    ],
    ids=["elu", "softplus", "x log x"],
)
def test_a_branch_that_is_not_selected_may_be_infinite(body: str, x: list[float], r: list[float]) -> None:
    used = {name: np.float32(value) for name, value in (("zero", 0), ("one", 1)) if name in body}
    model = laws.model(f"g (float[N, 2] x) => (float[N, 2] y) {{ {body} }}", **used)
    feed = {"x": np.float32([x]), "x_reference": np.float32([r]), "target_weights": ones(1, 2)}
    got = explain(model, feed, target="weights")
    y, y0 = (laws.run(model, {"x": np.float32([value])})["y"] for value in (x, r))
    np.testing.assert_allclose(got["x_contributions"], y - y0, atol=1e-5)


def test_a_constant_cast_like_the_input_is_a_constant() -> None:
    model = laws.model(
        "g (float[N, 2] x) => (float[N, 2] y) "
        "{ a = CastLike (two, x) p = Pow (x, a) c = Less (p, a) y = Where (c, a, p) }",
        two=np.array(2),
    )
    got = explain(
        model, {"x": normal(3, 2), "x_reference": normal(3, 2), "target_weights": ones(3, 2)}, target="weights"
    )
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)


MISTAKES: list[tuple[dict[str, object], str]] = [
    *(({"target": target}, "is no index") for target in (1.0, np.float32(1), [None], {"a": 1}, (), [[1]], True)),
    ({"target": 2**70}, "is no index|out of range"),
    *(({"reference": reference}, "must be a name or a dict") for reference in (None, 5, np.ones((1, 5)))),
    ({"reference": {"x": [[1, 2], [3]]}}, "is no array"),
    ({"reference": {"x": np.full((1, 5), 1e300)}}, "infinite"),
    ({"inputs": 5}, "must be a list of names"),
    ({"inputs": "x"}, "must be a list of names"),
    ({"expose": "h"}, "`expose` must be a list of names"),
    ({"emit": "contributions"}, "`emit` must be a list of names"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES, ids=[str(options)[:50] for options, _ in MISTAKES])
def test_arguments_of_another_kind(options: dict[str, object], message: str) -> None:
    with pytest.raises(onnxlift.OptionError, match=message):
        onnxlift.rewrite(classifier(), **{"target": 1, **options})


def test_an_index_from_numpy() -> None:
    a = onnxlift.rewrite(classifier(), target=np.int32(1)).SerializeToString()
    assert a == onnxlift.rewrite(classifier(), target=1).SerializeToString()
