"""Several targets in one run, and outputs that are left out."""

from __future__ import annotations

import json
from pathlib import Path

import laws
import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import onnxlift
from onnxlift import OptionError, rewrite
from onnxlift.cli import main

RNG = np.random.default_rng(11)
N, K = 3, 2


def numbers(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def mlp() -> onnx.ModelProto:
    text = """g (float[N, 6] x) => (float[N, 5] y) {
        a = Gemm (x, w, b) h = Relu (a) c = Gemm (h, v) s = Tanh (c) y = Softmax (s)
    }"""
    return laws.model(text, w=numbers(6, 8), b=numbers(8), v=numbers(8, 5))


def cnn(batch: str = "N") -> onnx.ModelProto:
    text = f"""g (float[{batch}, 2, 8, 8] x) => (float[{batch}, 4] y) {{
        a = Conv <pads = [1, 1, 1, 1]> (x, w, b) h = Relu (a) p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (h)
        c = Conv (p, v) s = Sigmoid (c) g = GlobalAveragePool (s) f = Flatten (g) y = Gemm (f, u)
    }}"""
    return laws.model(text, w=numbers(6, 2, 3, 3), b=numbers(6), v=numbers(5, 6, 3, 3), u=numbers(5, 4))


def transformer() -> onnx.ModelProto:
    """One layer of two heads on 4 places of 6 features; the output has two axes behind the batch."""
    text = """g (float[N, 4, 6] x) => (float[N, 4, 6] y) {
        q = MatMul (x, wq) k = MatMul (x, wk) v = MatMul (x, wv)
        qs = Reshape (q, heads) ks = Reshape (k, heads) vs = Reshape (v, heads)
        qh = Transpose <perm = [0, 2, 1, 3]> (qs) kh = Transpose <perm = [0, 2, 3, 1]> (ks)
        vh = Transpose <perm = [0, 2, 1, 3]> (vs)
        z = MatMul (qh, kh) p = Softmax <axis = -1> (z) o = MatMul (p, vh)
        ot = Transpose <perm = [0, 2, 1, 3]> (o) of = Reshape (ot, flat)
        r = Add (x, of) n = LayerNormalization <axis = -1> (r, scale, shift)
        f = MatMul (n, wf) g = Gelu (f) y = MatMul (g, wo)
    }"""
    weights = {name: numbers(6, 6) for name in ("wq", "wk", "wv", "wf", "wo")}
    shapes = {"heads": np.int64([0, 4, 2, 3]), "flat": np.int64([0, 4, 6])}
    return laws.model(text, **weights, **shapes, scale=numbers(6), shift=numbers(6))


def recurrent() -> onnx.ModelProto:
    text = """g (float[N, 4, 3] x) => (float[N, 5] y) {
        t = Transpose <perm = [1, 0, 2]> (x) s, last = GRU <hidden_size = 5> (t, w, r)
        y = Squeeze (last, first)
    }"""
    return laws.model(text, w=numbers(1, 15, 3), r=numbers(1, 15, 5), first=np.int64([0]))


MODELS = {
    "mlp": (mlp, (6,), [0, 4, 2]),
    "cnn": (cnn, (2, 8, 8), [3, 1]),
    "transformer": (transformer, (4, 6), [(0, 1), (3, 5), (2, 2)]),
    "recurrent": (recurrent, (4, 3), [1, 4]),
}
REFERENCES = {
    "paired": lambda shape: {"x_reference": numbers(N, *shape)},
    "shared": lambda shape: {"x_reference": numbers(K, *shape)},
    "grouped": lambda shape: {"x_reference": numbers(N, K, *shape)},
    "zeros": lambda shape: {},
}
TOLD = ("x_contributions", "x_multipliers", "target_output", "target_reference")


def compare(model: onnx.ModelProto, targets: list[object], feed: dict[str, np.ndarray], **options: object) -> None:
    """One run for all targets against one for each."""
    together = rewrite(model, target=targets, **options)
    onnx.checker.check_model(together, full_check=True)
    got = laws.run(together, feed)
    for index, target in enumerate(targets):
        one = laws.run(rewrite(model, target=target, **options), feed)
        np.testing.assert_array_equal(got["y"], one["y"])
        for name in TOLD:
            scale = max(float(np.abs(one[name]).max()), 1e-6)
            assert got[name].shape == (N, len(targets), *one[name].shape[1:])
            np.testing.assert_allclose(got[name][:, index], one[name], rtol=0, atol=1e-6 * scale, err_msg=name)
        size = float(np.abs(one["target_output"]).max())
        np.testing.assert_allclose(got["completeness_gap"][:, index], one["completeness_gap"], atol=3e-6 * size)


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("name", MODELS)
def test_several_targets_are_as_many_runs(name: str, reference: str) -> None:
    make, shape, targets = MODELS[name]
    feed = {"x": numbers(N, *shape), **REFERENCES[reference](shape)}
    compare(make(), targets, feed, reference=reference, emit=("contributions", "multipliers"))


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("rule", ["reveal-cancel", "gradient-x-input", "gradient", "integrated-gradients:3"])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_other_rules(name: str, rule: str, reference: str) -> None:
    make, shape, targets = MODELS[name]
    feed = {"x": numbers(N, *shape), **REFERENCES[reference](shape)}
    compare(make(), targets, feed, rule=rule, reference=reference, emit=("contributions", "multipliers"))


def test_stored_references_and_one_target_in_a_list() -> None:
    model, x = cnn(), numbers(N, 2, 8, 8)
    for rows in (1, 4):
        stored = {"x": numbers(rows, 2, 8, 8)}
        compare(model, [2, 0], {"x": x}, reference=stored, emit=("contributions", "multipliers"))
    compare(model, [2], {"x": x}, reference="zeros", emit=("contributions", "multipliers"))


def test_the_model_runs_once() -> None:
    """As many forward convolutions as for one target, on N and K rows; those of the walk back on N K T."""
    model, targets = cnn(), [0, 1, 2, 3]
    feed = {"x": numbers(N, 2, 8, 8), "x_reference": numbers(K, 2, 8, 8)}
    counts, rows = [], {}
    for target in (0, targets):
        explainer = rewrite(model, target=target, reference="shared")
        counts.append(sum(node.op_type in ("Conv", "ConvTranspose") for node in explainer.graph.node))
        names = ["a", "a/reference", "c", "c/reference", "h/multiplier"]
        explainer.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
        for output in explainer.graph.output:
            if output.name in names:
                output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        got = laws.run(explainer, feed)
        rows[str(target)] = [len(got[name]) for name in names]
    assert counts[0] == counts[1]
    assert rows == {"0": [N, K, N, K, N * K], str(targets): [N, K, N, K, N * K * 4]}


def test_hypothetical_and_exposed() -> None:
    text = """g (float[N, 4, 9] x) => (float[N, 3] y) {
        a = Conv (x, w) h = Relu (a) p = GlobalAveragePool (h) f = Flatten (p) y = Gemm (f, v)
    }"""
    model = laws.model(text, w=numbers(5, 4, 3), v=numbers(5, 3))
    letters = RNG.integers(0, 4, size=(N + N * K, 9))
    rows = np.eye(4, dtype=np.float32)[letters].transpose(0, 2, 1)
    feed = {"x": rows[:N], "x_reference": rows[N:].reshape(N, K, 4, 9)}
    for rule in ("rescale", "reveal-cancel"):
        options = {"reference": "grouped", "emit": ("contributions", "hypothetical"), "expose": ["h"], "rule": rule}
        got = laws.run(rewrite(model, target=[2, 0], **options), feed)
        for index, target in enumerate((2, 0)):
            one = laws.run(rewrite(model, target=target, **options), feed)
            for name in ("x_hypothetical", "x_contributions", "h/multiplier", "h/contributions"):
                np.testing.assert_allclose(got[name][:, index], one[name], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(got["h"].shape, (N, 5, 7))


def test_a_fixed_batch_is_freed() -> None:
    model, x, r = cnn("3"), numbers(N, 2, 8, 8), numbers(N, 2, 8, 8)
    compare(model, [1, 3], {"x": x, "x_reference": r}, emit=("contributions", "multipliers"))
    shape = [dim.dim_value for dim in rewrite(model, target=[1, 3]).graph.output[1].type.tensor_type.shape.dim]
    assert shape[:2] == [3, 2]


def test_what_is_refused() -> None:
    one = laws.model("g (float[4] x) => (float[4] y) { s = Softmax <axis = 0> (x) y = Tanh (s) }")
    with pytest.raises(OptionError, match="several targets need a batch axis of unknown size"):
        rewrite(one, target=[0, 1])
    for targets, message in {
        (): "the list of targets is empty",
        (0, (1, 2)): "differ in their number of axes",
        (0, 9): r"target \[9\] is out of range",
        ((0, 1), (1, 1)): r"target \[0, 1\] has 2 indices",
        ("argmax", 1): "the target 'argmax' is no index",
        (0.5,): "the target 0.5 is no index",
    }.items():
        with pytest.raises(OptionError, match=message):
            rewrite(mlp(), target=list(targets))


def test_explainer_chunks_and_files(tmp_path: Path) -> None:
    model, x, r = cnn(), numbers(7, 2, 8, 8), numbers(K, 2, 8, 8)
    explain = onnxlift.Explainer(model, target=[3, 0], reference="shared", batch_size=3)
    explanation = explain(x, reference=r)
    assert "neurons 3, 0 of 'y'" in str(explain)
    assert explanation.gap.shape == explanation.difference.shape == (7, 2)
    for index, target in enumerate((3, 0)):
        one = onnxlift.Explainer(model, target=target, reference="shared")(x, reference=r)
        np.testing.assert_allclose(explanation.contributions["x"][:, index], one.contributions["x"], atol=1e-6)
        np.testing.assert_allclose(explanation.target[:, index], one.target, rtol=1e-6)
    np.testing.assert_array_equal(explanation.reference_outputs["y"], one.reference_outputs["y"])
    explanation.save(tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as saved:
        assert saved["x_contributions"].shape == (7, 2, 2, 8, 8)


def test_a_target_that_does_not_add_up_is_named() -> None:
    explain = onnxlift.Explainer(mlp(), target=[0, 1], reference="zeros")
    explanation = explain(numbers(2, 6))
    gap = np.zeros((2, 2), np.float32)
    gap[1, 0] = 9
    spoilt = onnxlift.Explanation(explanation.contributions, {}, explanation.target, explanation.target_reference, gap)
    said = explain.complaint(spoilt)
    assert said is not None
    assert "of 1 of 2 samples" in said
    assert "worst are sample 1, target 0 (gap 9" in said


def test_an_index_beyond_a_free_axis_is_told() -> None:
    model = laws.model("g (float[N, L] x) => (float[N, L] y) { y = Tanh (x) }")
    with pytest.raises(onnxlift.DataError, match="target 5 of sample 0 is out of range"):
        onnxlift.Explainer(model, target=[1, 5], reference="zeros")(numbers(2, 4))


def call(*arguments: str) -> object:
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


def test_command_line(tmp_path: Path) -> None:
    model, explainer, out = (str(tmp_path / name) for name in ("model.onnx", "explainer.onnx", "out.npz"))
    onnx.save(transformer(), model)
    np.save(tmp_path / "x.npy", x := numbers(N, 4, 6))
    chosen = ["--target", "0,1", "--target", "3,5", "--reference", "zeros"]
    told = json.loads(call("rewrite", model, explainer, *chosen, "--json").stdout)
    assert told["target"] == [[0, 1], [3, 5]]
    assert told["targets"] == 2
    assert "neurons [0, 1], [3, 5] of 'y'" in told["explains"]
    said = json.loads(call("explain", explainer, str(tmp_path / "x.npy"), "--out", out, "--json").stdout)
    assert said["samples"] == N
    with np.load(out) as saved:
        assert saved["x_contributions"].shape == (N, 2, *x.shape[1:])
    checked = call("verify", explainer, "--model", model, "--json")
    assert checked.exit_code == 0
    assert [row["sample"] for row in json.loads(checked.stdout)["samples"]][:3] == [
        "0 target 0",
        "0 target 1",
        "1 target 0",
    ]
    assert call("verify", model, *chosen).exit_code == 0
    mixed = call("rewrite", model, explainer, "--target", "0,1", "--target", "argmax")
    assert mixed.exit_code == 2
    assert "several targets are indices" in mixed.output


# ------------------------------------------------------------------------------------------------ outputs left out


def two_heads() -> onnx.ModelProto:
    text = """g (float[N, 6] x) => (float[N, 3] y, float[N, 5] other, float[N, 8] hidden) {
        hidden = Gemm (x, w) h = Relu (hidden) y = Gemm (h, v)
        big = Gemm (x, u) z = Tanh (big) other = Gemm (z, t)
    }"""
    return laws.model(text, w=numbers(6, 8), v=numbers(8, 3), u=numbers(6, 7), t=numbers(7, 5))


def test_outputs_that_are_left_out_cost_nothing() -> None:
    model, feed = two_heads(), {"x": numbers(N, 6), "x_reference": numbers(N, 6)}
    whole = rewrite(model, target=1)
    expected = laws.run(whole, feed)
    for keep in (["y"], ["hidden", "y"], []):
        explainer = rewrite(model, target=1, keep=keep, emit=("contributions", "reference_outputs"))
        onnx.checker.check_model(explainer, full_check=True)
        got = laws.run(explainer, feed)
        told = [name for name in ("y", "other", "hidden") if name in got]
        assert sorted(told) == sorted(keep)
        assert sorted(f"{name}_reference" for name in keep) == sorted(
            n for n in got if n.endswith("y_reference") or n == "hidden_reference"
        )
        for name in (*keep, "x_contributions", "target_output", "completeness_gap"):
            np.testing.assert_array_equal(got[name], expected[name])
        assert "Tanh" not in {node.op_type for node in explainer.graph.node}
        assert "u" not in {tensor.name for tensor in explainer.graph.initializer}
        about = json.loads(next(entry.value for entry in explainer.metadata_props if entry.key == "onnxlift"))
        assert about["outputs"] == [name for name in ("y", "other", "hidden") if name in keep]
    assert "Tanh" in {node.op_type for node in whole.graph.node}


def test_an_explanation_without_outputs() -> None:
    explain = onnxlift.Explainer(two_heads(), target=1, reference="zeros", keep=[])
    explanation = explain(numbers(N, 6))
    assert explanation.outputs == explanation.reference_outputs == {}
    assert explanation.contributions["x"].shape == (N, 6)
    with pytest.raises(OptionError, match="`keep` names 'z', but the outputs of the model are 'y', 'other', 'hidden'"):
        rewrite(two_heads(), target=1, keep=["z"])
    with pytest.raises(OptionError, match="`keep` must be a list of names"):
        rewrite(two_heads(), target=1, keep="y")


def test_an_explainer_of_another_output_than_those_kept() -> None:
    got = laws.run(
        rewrite(two_heads(), output="other", target=1, keep=["y"]), {"x": (x := numbers(N, 6)), "x_reference": 0 * x}
    )
    assert got["y"].shape == (N, 3)
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)


def test_keep_on_the_command_line(tmp_path: Path) -> None:
    model, explainer = str(tmp_path / "model.onnx"), str(tmp_path / "explainer.onnx")
    onnx.save(two_heads(), model)
    chosen = ["--target", "1", "--reference", "zeros"]
    for keep, outputs in {("--keep", "y"): ["y"], ("--keep", ""): [], (): ["y", "other", "hidden"]}.items():
        told = json.loads(call("rewrite", model, explainer, *chosen, *keep, "--json").stdout)
        assert told["outputs"] == outputs
        checked = json.loads(call("verify", explainer, "--model", model, "--json").stdout)
        assert checked["passed"]
        states = {check["name"]: check["passed"] for check in checked["checks"]}
        assert states["outputs"] is (True if outputs else None)


STRIDED = """g (float[N, 4, 7] x) => (float[N, 3] y) {
    c = Conv <strides = [3]> (x, w) h = Relu (c) f = Flatten (h) y = Gemm (f, v)
}"""
"""The convolution leaves out places of its input, which no neuron depends on."""
BATCH_BEHIND = """g (float[N, 4] x) => (float[N, 3] y) {
    t = Transpose <perm = [1, 0]> (x) a = Relu (t) b = Mul (a, m) c = Transpose <perm = [1, 0]> (b) y = Gemm (c, u)
}"""
FREE_AXIS = "g (float[N, L] x) => (float[N, L] y) { y = Tanh (x) }"
CHECKED: dict[str, tuple[str, tuple[int, ...], dict[str, object]]] = {
    "paired": (STRIDED, (4, 4, 7), {}),
    "zeros": (STRIDED, (4, 4, 7), {"reference": "zeros"}),
    "grouped": (STRIDED, (4, 4, 7), {"reference": "grouped"}),
    "reveal-cancel": (STRIDED, (4, 4, 7), {"rule": "reveal-cancel"}),
    "gradient": (STRIDED, (4, 4, 7), {"rule": "gradient"}),
    "integrated gradients": (STRIDED, (4, 4, 7), {"rule": "integrated-gradients:3"}),
    "samples along the last axis": (BATCH_BEHIND, (4, 4), {"reference": "zeros", "inputs": ["t"]}),
}


@pytest.mark.parametrize("case", CHECKED)
def test_an_index_out_of_range_gives_nan_and_never_another_neuron(case: str) -> None:
    """Servers run the graph without the checks of `Explainer`."""
    text, shape, options = CHECKED[case]
    weights = (
        {"w": numbers(5, 4, 2), "v": numbers(10, 3)}
        if text is STRIDED
        else {"u": numbers(4, 3), "m": np.float32([[1], [0], [2], [0]])}
    )
    model = laws.model(text, **weights)
    one_hot = np.zeros(shape, np.float32)
    one_hot[:, 1] = 1
    feed = {"x": one_hot, "x_reference": numbers(*shape)}
    if options.get("reference") == "grouped":
        feed["x_reference"] = numbers(4, 2, *shape[1:])
    elif options.get("reference") == "zeros":
        del feed["x_reference"]
    emit = ("contributions", "multipliers") + (("hypothetical",) if text is STRIDED and "rule" not in options else ())
    explainer = rewrite(model, target="input", emit=emit, one_hot=1 if len(emit) > 2 else None, **options)
    good, bad = [0, 3], [1, 2]
    got = laws.run(explainer, {**feed, "target": np.int64([2, -1, 2**40, 0])})
    want = laws.run(explainer, {**feed, "target": np.int64([2, 0, 0, 0])})
    np.testing.assert_array_equal(got.pop("y"), want["y"])
    for name, array in got.items():
        axis = int(name.startswith("t_"))
        np.testing.assert_array_equal(array.take(good, axis), want[name].take(good, axis), err_msg=name)
        assert np.isnan(array.take(bad, axis)).all(), name


def test_a_fixed_index_beyond_a_free_axis_gives_nan() -> None:
    model, x = laws.model(FREE_AXIS), {"x": numbers(2, 4)}
    single = laws.run(rewrite(model, target=4, reference="zeros"), x)
    assert np.isnan(single["x_contributions"]).all()
    assert np.isnan(single["completeness_gap"]).all()
    several = laws.run(rewrite(model, target=[4, 1], reference="zeros"), x)
    assert np.isnan(several["x_contributions"][:, 0]).all()
    np.testing.assert_allclose(several["x_contributions"][:, 1].sum(axis=1), np.tanh(x["x"][:, 1]), rtol=1e-6)
