"""References by name, from the words to the contributions: in Python, in explainer files, on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from laws import model

import onnxlift
from onnxlift import cli, references, spec
from onnxlift.metadata import description
from onnxlift.session import CPU

RNG = np.random.default_rng(3)
LENGTH = 12
W1 = RNG.standard_normal((4 * LENGTH, 8)).astype(np.float32)
W2 = RNG.standard_normal((8, 1)).astype(np.float32)
NET = """g (float[N, 4, 12] x) => (float[N, 1] y) {
    f = Flatten (x) h = MatMul(f, W1) a = Relu(h) y = MatMul(a, W2)
}"""
PAIR = """g (float[N, 4, 12] x, float[N, 12, 4] z) => (float[N, 1] y) {
    t = Transpose <perm=[0, 2, 1]> (z) s = Mul(x, t) f = Flatten (s) h = MatMul(f, W1) a = Relu(h) y = MatMul(a, W2)
}"""
IMAGES = """g (float[N, 2, 6, 5] x) => (float[N, 2] y) {
    h = Relu(x) ax = Constant <value_ints = [2, 3]> () y = ReduceMean <keepdims = 0> (h, ax)
}"""
X = np.swapaxes(np.eye(4, dtype=np.float32)[RNG.integers(0, 4, (9, LENGTH))], 1, 2)
PIXELS = RNG.standard_normal((5, 2, 6, 5)).astype(np.float32)
FREQUENCIES = "frequencies:0.3,0.2,0.1,0.4"


def net(text: str = NET) -> onnx.ModelProto:
    return model(text, W1=W1, W2=W2)


def explainer(reference: object, text: str = NET, **options: object) -> onnxlift.Explainer:
    return onnxlift.Explainer(net(text), providers=[CPU], reference=reference, **options)


def close(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


# ----------------------------------------------------------------------------------- the same for all samples


@pytest.mark.parametrize(
    ("named", "array", "one_hot"),
    [
        ("constant:0.25", np.full((1, 4, 12), 0.25), None),
        ("constant:-1e1", np.full((1, 4, 12), -10.0), None),
        ("zeros", np.zeros((1, 4, 12)), None),
        (FREQUENCIES, references.frequencies(X, [0.3, 0.2, 0.1, 0.4]), None),
        (FREQUENCIES, references.frequencies(X, [0.3, 0.2, 0.1, 0.4]), 1),
        (FREQUENCIES, references.frequencies(X, [0.3, 0.2, 0.1, 0.4]), {"x": -2}),
        ("frequencies:" + ",".join(["0.125"] * 4 + ["0.0625"] * 8), None, None),
        ("frequencies:" + ",".join(["0.125"] * 4 + ["0.0625"] * 8), None, 2),
    ],
)
@pytest.mark.parametrize("batch", ["N", "4"])
def test_numbers_are_as_good_as_an_array(named: str, array: np.ndarray | None, one_hot: object, batch: str) -> None:
    if array is None:
        array = np.broadcast_to([0.125] * 4 + [0.0625] * 8, (1, 4, 12))
    text = NET.replace("N", batch, 2)
    explain = explainer(named, text, one_hot=one_hot)
    assert [port.name for port in explain.intake.ports.values()] == ["x"]
    assert f"against {named}, rule" in str(explain)
    close(explain(X).contributions["x"], explainer({"x": array}, text)(X).contributions["x"])
    assert explain(X).relative_gap.max() < 1e-5


def test_frequencies_of_several_inputs_and_without_a_batch() -> None:
    explain = explainer(FREQUENCIES, PAIR)
    z = np.swapaxes(X, 1, 2)
    rows = {"x": references.frequencies(X, [0.3, 0.2, 0.1, 0.4])}
    rows["z"] = np.swapaxes(rows["x"], 1, 2)
    got, expected = explain({"x": X, "z": z}), explainer(rows, PAIR)({"x": X, "z": z})
    for name in rows:
        close(got.contributions[name], expected.contributions[name])
    vector = (
        "g (float[4] x) => (float y) { h = Relu(x) ax = Constant<value_ints=[0]>() y = ReduceSum<keepdims=0>(h, ax) }"
    )
    explain = onnxlift.Explainer(model(vector), reference=FREQUENCIES, providers=[CPU])
    close(explain(np.ones(4)).contributions["x"], np.array([0.7, 0.8, 0.9, 0.6]))


def test_a_constant_for_token_ids() -> None:
    """References are given for the graph input, though the embedding is attributed to."""
    text = "g (int64[N, 3] ids) => (float[N, 1] y) { e = Gather(E, ids) f = Flatten(e) y = MatMul(f, V) }"
    table, v = RNG.standard_normal((5, 2)).astype(np.float32), np.ones((6, 1), np.float32)
    proto = model(text, E=table, V=v)
    explain = onnxlift.Explainer(proto, inputs=["e"], reference="constant:2", providers=[CPU])
    close(explain([[0, 1, 2]]).contributions["e"], (table[[0, 1, 2]] - table[2])[None])
    with pytest.raises(onnxlift.OptionError, match="not made of numbers of the input's type, int64"):
        onnxlift.rewrite(proto, inputs=["e"], reference="constant:0.5")
    with pytest.raises(onnxlift.OptionError, match="not made of numbers of the input's type, int64"):
        onnxlift.rewrite(proto, inputs=["e"], reference={"ids": np.full((1, 3), 0.5)})


# ----------------------------------------------------------------------------------- made of each sample


@pytest.mark.parametrize("batch_size", [None, 1, 2, 9])
@pytest.mark.parametrize(
    ("named", "build"), [("shuffle:5", references.shuffle), ("dinuc-shuffle:5", references.dinuc_shuffle)]
)
def test_shuffles_are_made_of_the_samples(named: str, build: object, batch_size: int | None) -> None:
    for seed in (0, 4):
        explain = explainer(named, batch_size=batch_size, seed=seed)
        shuffles = build(X, 5, seed=seed)
        got = explain(X)
        expected = explainer("grouped", batch_size=batch_size)(X, reference=shuffles)
        np.testing.assert_array_equal(got.reference_outputs["y"], expected.reference_outputs["y"])
        np.testing.assert_array_equal(got.contributions["x"], expected.contributions["x"])
        assert got.reference_outputs["y"].shape == (9, 5, 1)
    given = explain(X, reference=shuffles[:, :2])
    assert given.reference_outputs["y"].shape == (9, 2, 1)
    np.testing.assert_array_equal(explain({"x": X, "x_reference": shuffles[:, :2]}).gap, given.gap)
    assert f"against {named} of each sample, rule" in str(explain)


def test_shuffles_do_not_depend_on_chunks_nor_on_the_other_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = explainer("dinuc-shuffle:3")(X).reference_outputs["y"]
    close(explainer("dinuc-shuffle:3")(X[4:6]).reference_outputs["y"], whole[4:6])
    made = []
    build = spec.Builder.build

    def watched(self: spec.Builder, x: np.ndarray, axes: list[int], seed: int) -> np.ndarray:
        made.append(len(x))
        return build(self, x, axes, seed)

    monkeypatch.setattr(spec.Builder, "build", watched)
    for elements, batch_size, expected in (
        (48 * 3 * 4, 2, [4, 4, 1]),
        (48 * 3 * 4, 1, [4, 4, 1]),
        (48 * 3 * 4, 3, [4, 4, 3]),
        (0, 4, [4, 4, 1]),
    ):
        monkeypatch.setattr(spec, "_BUILT_ELEMENTS", elements)
        made.clear()
        close(explainer("dinuc-shuffle:3", batch_size=batch_size)(X).reference_outputs["y"], whole)
        assert made == expected, "some samples at a time, never all"


def test_shuffles_of_several_inputs() -> None:
    z = np.swapaxes(X[::-1], 1, 2)
    got = explainer("shuffle:3", PAIR)({"x": X, "z": z})
    given = {"x": references.shuffle(X, 3), "z": references.shuffle(z, 3, axis=2)}
    expected = explainer("grouped", PAIR)({"x": X, "z": z}, reference=given)
    for name in given:
        np.testing.assert_array_equal(got.contributions[name], expected.contributions[name])
    with pytest.raises(onnxlift.DataError, match="'z_reference' is missing"):
        explainer("shuffle:3", PAIR)({"x": X, "z": z}, reference={"x": given["x"]})


@pytest.mark.parametrize("text", [NET.replace("N", "4", 2), NET.replace("4, 12]", "4, L]")], ids=["batch", "length"])
def test_shuffles_for_models_with_other_axes(text: str) -> None:
    expected = explainer("grouped", text)(X, reference=references.dinuc_shuffle(X, 3))
    got = explainer("dinuc-shuffle:3", text)(X)
    np.testing.assert_array_equal(got.contributions["x"], expected.contributions["x"])


@pytest.mark.parametrize("batch", ["N", "3"])
def test_blurred_images(batch: str) -> None:
    proto = model(IMAGES.replace("N", batch))
    got = onnxlift.Explainer(proto, target=1, reference="blur:1.5", providers=[CPU])(PIXELS)
    expected = onnxlift.Explainer(proto, target=1, providers=[CPU])(PIXELS, reference=references.blur(PIXELS, 1.5))
    np.testing.assert_array_equal(got.contributions["x"], expected.contributions["x"])
    assert np.abs(got.gap).max() < 1e-6


def test_a_blurred_image_without_a_batch_axis() -> None:
    proto = model("g (float[2, 6, 5] x) => (float y) { h = Relu(x) y = ReduceSum <keepdims = 0> (h) }")
    got = onnxlift.Explainer(proto, reference="blur:1.5", providers=[CPU])(PIXELS[0])
    expected = onnxlift.Explainer(proto, providers=[CPU])(PIXELS[0], reference=references.blur(PIXELS, 1.5)[0])
    assert got.gap.shape == ()
    np.testing.assert_array_equal(got.contributions["x"], expected.contributions["x"])
    assert got.contributions["x"].any()


def test_images_with_their_colours_last() -> None:
    text = """g (float[N, 6, 5, 3] x) => (float[N, 3] y) {
        ax = Constant <value_ints = [1, 2]> () y = ReduceMax <keepdims = 0> (x, ax)
    }"""
    x = RNG.standard_normal((2, 6, 5, 3)).astype(np.float32)
    with pytest.raises(onnxlift.OptionError, match=r"looks like colours.*'blur:2:1,2'"):
        onnxlift.rewrite(model(text), target=0, reference="blur:2")
    got = onnxlift.Explainer(model(text), target=0, reference="blur:2:1,2", providers=[CPU])(x)
    close(got.reference_outputs["y"], references.blur(x, 2, axes=(1, 2)).max(axis=(1, 2)))


def test_an_explainer_file_makes_its_references(tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "model.onnx")
    written = onnxlift.rewrite_file(tmp_path / "model.onnx", tmp_path / "e.onnx", reference="dinuc-shuffle:4")
    about = description(written)
    assert about["reference"] == "grouped"
    assert about["builder"] == {"spec": "dinuc-shuffle:4", "axes": {"x": [1]}}
    expected = explainer("dinuc-shuffle:4", seed=2)(X)
    got = onnxlift.Explainer(tmp_path / "e.onnx", providers=[CPU], seed=2)(X)
    np.testing.assert_array_equal(got.contributions["x"], expected.contributions["x"])


@pytest.mark.parametrize(
    "entry", [[], {"spec": "dinuc-shuffle:4"}, {"spec": 3, "axes": {"x": [1]}}, {"spec": "x", "axes": {"x": [1]}}, "x"]
)
def test_damaged_metadata(entry: object) -> None:
    proto = onnxlift.rewrite(net(), reference="dinuc-shuffle:4")
    stored = next(item for item in proto.metadata_props if item.key == "onnxlift")
    stored.value = json.dumps({**json.loads(stored.value), "builder": entry})
    with pytest.raises(onnxlift.ModelError, match="metadata"):
        onnxlift.Explainer(proto, providers=[CPU])


def test_what_cannot_be_shuffled() -> None:
    x = X.copy()
    x[6, :, 3] = 0.25
    with pytest.raises(onnxlift.DataError, match=r"input 'x' cannot be shuffled: sample 6 .* axis 1: position 3 has"):
        explainer("shuffle:2", batch_size=1)(x)
    x[6, :, 3] = 0
    explainer("shuffle:2")(x)
    x[2, 1, 3] = np.nan
    with pytest.raises(onnxlift.DataError, match="NaN in sample 2"):
        explainer("shuffle:2")(x)
    with pytest.raises(onnxlift.OptionError, match="at most 6, the image's extent"):
        onnxlift.Explainer(model(IMAGES), target=0, reference="blur:7", providers=[CPU])(PIXELS)


# ----------------------------------------------------------------------------------- bad names

BAD = {
    "ones": "unknown reference 'ones': give paired, shared, grouped, zeros, constant:NUMBER",
    "": "unknown reference ''",
    "zeros:1": "unknown reference 'zeros:1'",
    "constant": "is not a number",
    "constant:x": "'x' is not a number",
    "constant:1,2": "needs one number",
    "constant:nan": "needs finite numbers",
    "constant:1e39": "contains NaN or infinite values",
    "frequencies:0.5,0.5": "none of its axes have extent 2. Name it with `one_hot`",
    "frequencies:0.3,0.3,0.3,0.3": "must be >= 0 and add up to 1, not 1.2",
    "frequencies:0.5,0.7,-0.2,0": "must be >= 0",
    "frequencies:0.5,a": "'0.5,a' is not a number",
    "shuffle": "needs a number of shuffles, 1 or more, as in 'shuffle:20'",
    "shuffle:0": "needs a number of shuffles",
    "shuffle:-1": "needs a number of shuffles",
    "dinuc-shuffle:2.5": "needs a number of shuffles, 1 or more, as in 'dinuc-shuffle:20'",
    "dinuc-shuffle:" + "9" * 5000: "needs a number of shuffles",
    "blur:0": "needs a number of pixels above 0",
    "blur:-1": "needs a number of pixels above 0",
    "blur:x": "'x' is not a number",
    "blur:inf": "needs finite numbers",
    "blur:1:a": "names no axes",
    "blur:1:0,1": "cannot blur input 'x', which has shape [N, 4, 12]",
    "blur:1:1,1": "cannot blur input 'x'",
    "blur:1:1,3": "cannot blur input 'x'",
    "mean:data.npy": "only on the command line: from Python give an array, as in {'x': onnxlift.references.mean(data)}",
    "background:data.npy": "onnxlift.references.background(data)",
    "frequencies:data.npy": "'data.npy' is not a number",
}


@pytest.mark.parametrize("named", BAD)
def test_bad_names(named: str) -> None:
    with pytest.raises(onnxlift.OptionError) as refusal:
        onnxlift.rewrite(net(), reference=named)
    assert BAD[named] in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "named", "options", "message"),
    [
        ("[N, 4, 4]", FREQUENCIES, {}, "2 of its axes have extent 4. Name it with `one_hot`"),
        ("[N, 4, 4]", "shuffle:2", {}, "2 of its axes have extent 4"),
        ("[N, 5, 9]", "shuffle:2", {}, "none of its axes have extent 4"),
        ("[N, 5, 9]", FREQUENCIES, {"one_hot": 1}, "has 4 frequencies, but axis 1 of input 'x' has 5 channels"),
        ("[N, 4, 9]", FREQUENCIES, {"one_hot": {}}, None),
        ("[N, 4]", "shuffle:2", {}, "it has no axis, or several, that could count positions"),
        ("[N, 4, 3, 3]", "dinuc-shuffle:2", {}, "it has no axis, or several"),
        ("[N, 9]", "blur:1", {}, "cannot blur input 'x', which has shape [N, 9]"),
        ("[4, 9]", "shuffle:2", {}, "none"),
    ],
)
def test_names_that_do_not_fit_the_model(text: str, named: str, options: dict, message: str | None) -> None:
    proto = model(f"g (float{text} x) => (float{text} y) {{ y = Relu(x) }}")
    options = {"target": (0,) * text.count(","), "reference": named, **options}
    if message is None:
        onnxlift.rewrite(proto, **options)
        return
    with pytest.raises(onnxlift.OptionError) as refusal:
        onnxlift.rewrite(proto, **options)
    assert message in str(refusal.value)


# ----------------------------------------------------------------------------------- the command line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(net(), "model.onnx")
    np.save("x.npy", X)
    np.savez("data.npz", x=X, x_reference=X, target=np.zeros(9))
    return tmp_path


def call(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == status, (result.output, result.exception)
    return result


def contributions(*arguments: str) -> np.ndarray:
    call("explain", *arguments, "--out", "out.npz", "-q")
    with np.load("out.npz") as saved:
        return saved["x_contributions"]


MADE_OF_FILES = {
    "mean:x.npy": X.mean(axis=0, keepdims=True),
    "mean:data.npz": X.mean(axis=0, keepdims=True),
    "background:x.npy": X,
    "background:data.npz": X,
    "background:x.npy:4": references.background(X, 4),
    "frequencies:x.npy": references.frequencies(X),
    "frequencies:data.npz": references.frequencies(X),
    "frequencies:0.3,0.2,0.1,0.4": references.frequencies(X, [0.3, 0.2, 0.1, 0.4]),
    "constant:0.5": np.full((1, 4, 12), 0.5),
}


@pytest.mark.parametrize("named", MADE_OF_FILES)
def test_references_of_files(folder: Path, named: str) -> None:
    expected = explainer({"x": MADE_OF_FILES[named]})(X).contributions["x"]
    close(contributions("model.onnx", "x.npy", "--reference", named), expected)
    call("rewrite", "model.onnx", "e.onnx", "--reference", named)
    close(contributions("e.onnx", "x.npy"), expected)
    if ":" in named and "." in named.partition(",")[0] and named.partition(":")[2][0].isalpha():
        call("rewrite", "model.onnx", "shared.onnx", "--reference", "shared")
        close(contributions("shared.onnx", "x.npy", "--reference", named), expected)


def test_made_references_on_the_command_line(folder: Path) -> None:
    expected = explainer("dinuc-shuffle:4", seed=7)(X).contributions["x"]
    options = ("--reference", "dinuc-shuffle:4")
    np.testing.assert_array_equal(contributions("model.onnx", "x.npy", *options, "--seed", "7"), expected)
    said = call("rewrite", "model.onnx", "e.onnx", *options)
    assert "dinuc-shuffle:4 of each sample" in said.stdout
    assert said.stderr == ""
    assert (
        "give --seed to `onnxlift explain`" in call("rewrite", "model.onnx", "f.onnx", *options, "--seed", "1").stderr
    )
    np.testing.assert_array_equal(contributions("e.onnx", "x.npy", "--seed", "7"), expected)
    assert not np.array_equal(contributions("e.onnx", "x.npy"), expected)
    np.save("r.npy", references.dinuc_shuffle(X, 4, seed=7))
    np.testing.assert_array_equal(contributions("e.onnx", "x.npy", "--reference", "r.npy"), expected)
    call("verify", "model.onnx", "x.npy", *options)
    call("verify", "e.onnx", "--model", "model.onnx")
    seeded = explainer({"x": references.background(X, 4, seed=5)})(X).contributions["x"]
    close(contributions("model.onnx", "x.npy", "--reference", "background:x.npy:4", "--seed", "5"), seeded)


REFUSED = {
    "mean:nothing.npy": "Cannot read the data nothing.npy",
    "background:nothing.npy:4": "Cannot read the data nothing.npy",
    "background:x.npy:0": "0 background rows are asked for: choose 1 to 9",
    "background:x.npy:-2": "-2 background rows are asked for",
    "background:x.npy:10": "10 background rows are asked for: choose 1 to 9",
    "frequencies:nothing.npy": "Cannot read the data nothing.npy",
    "frequencies:0.5,0.6": "add up to 1, not 1.1",
    "mean:text.npy": "--reference mean:text.npy: samples must be an array of numbers",
    "mean:other.npz": "the file has 'z', and no samples of 'x'",
    "mean": "only on the command line",
    "shuffle:0": "needs a number of shuffles",
    "nothing.npy": "is neither a file nor one of paired, shared, grouped, zeros, constant:NUMBER",
    "wrong.npy": "shape [9, 4, 11]",
    "mean:wrong.npy": "shape [1, 4, 11]",
}


@pytest.mark.parametrize("named", REFUSED)
def test_bad_references_on_the_command_line(folder: Path, named: str) -> None:
    np.save("text.npy", np.array(["a"]))
    np.save("wrong.npy", X[:, :, :11])
    np.savez("other.npz", z=X)
    result = call("rewrite", "model.onnx", "e.onnx", "--reference", named, status=2)
    assert REFUSED[named] in result.stderr
    assert result.stderr.count("\n") == 1
    assert not Path("e.onnx").exists()


def test_a_file_with_one_array_for_two_inputs(folder: Path) -> None:
    onnx.save(net(PAIR), "pair.onnx")
    for named in ("mean:x.npy", "x.npy"):
        result = call("rewrite", "pair.onnx", "e.onnx", "--reference", named, status=2)
        assert "has one array for 2 inputs: use a .npz with x, z" in result.stderr
    np.savez("both.npz", x=X, z=np.swapaxes(X, 1, 2), more=X)
    call("rewrite", "pair.onnx", "e.onnx", "--reference", "frequencies:both.npz")
    call("rewrite", "pair.onnx", "f.onnx", "--reference", "mean:x.npy", "--inputs", "x")


def test_an_explainer_keeps_the_reference_it_has(folder: Path) -> None:
    call("rewrite", "model.onnx", "e.onnx", "--reference", "grouped")
    result = call("explain", "e.onnx", "x.npy", "--out", "o.npz", "--reference", "shuffle:2", status=2)
    assert "is an explainer already, so reference cannot be chosen any more" in result.stderr
