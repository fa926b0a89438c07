"""`onnxlift package` for servers: what it writes, what it refuses, and that nothing is left where it fails."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from laws import model

import onnxlift
from onnxlift import cli
from onnxlift.errors import OptionError
from onnxlift.serving.package import Repository, making, package_triton
from onnxlift.serving.triton import Serving

MODELS = Path(__file__).parents[1] / "models"
RNG = np.random.default_rng(3)
W = RNG.standard_normal((6, 3)).astype(np.float32)
V = RNG.standard_normal((5, 6)).astype(np.float32)
MLP = "g (float[N, 6] x) => (float[N, 3] y) { h = MatMul(x, W) y = Tanh(h) }"
SUM = "g (float[N, 6] x) => (float[N, 3] y, float s) { h = MatMul(x, W) y = Tanh(h) s = ReduceSum<keepdims = 0>(h) }"
MIXED = "g (float[N, 6] x) => (float[N, 3] y, float[N, 3] m) { h = MatMul(x, W) y = Tanh(h) m = Softmax<axis = 0>(h) }"
SHARED_OUT = """g (float[N, 6] x) => (float[N, 3] y, float[N, 3] m) {
    h = MatMul(x, W) y = Tanh(h) s = Shape(x) n = Gather(s, first) f = Cast<to = 1>(n) m = Div(h, f)
}"""
PLACED = """g (float[N, 6] x) => (float[N, 3] y, float[N, 3] m) {
    h = MatMul(x, W) y = Tanh(h) s = Shape(x) n = Gather(s, first) zero = Constant<value = int64 {0}>()
    one = Constant<value = int64 {1}>() places = Range(zero, n, one) f = Cast<to = 1>(places)
    axis = Constant<value = int64[1] {1}>() column = Unsqueeze(f, axis) m = Add(h, column)
}"""
SCALED = "g (float[N, 6] x, float[3] s) => (float[N, 3] y) { h = MatMul(x, W) t = Tanh(h) y = Mul(t, s) }"
FIXED = "g (float[2, 6] x) => (float[2, 3] y) { h = MatMul(x, W) y = Tanh(h) }"
ALONE = "g (float[6] x) => (float[3] y) { h = MatMul(x, W) y = Tanh(h) }"
TOKENS = """g (int64[N, L] ids) => (float[N, 6] y) {
    e = Gather(V, ids) t = Tanh(e) axis = Constant<value = int64[1] {1}>() y = ReduceMean<keepdims = 0>(t, axis)
}"""
HALVES = "g (float16[N, 6] x) => (float16[N, 3] y) { h = MatMul(x, H) y = Tanh(h) }"
ODD = """g (float[N, L, 6] x) => (float[N, 8, 3] y) {
    n = Constant<value = int64[3] {0, 8, 6}>() r = Reshape(x, n) y = MatMul(r, W)
}"""
TURNED = """g (float[N, L, 6] x) => (float[N, L, 3] y, float[L, N, 6] t) {
    y = MatMul(x, W) t = Transpose<perm = [1, 0, 2]>(x)
}"""
WIDE = "g (float[N, 6] x) => (float[N, 1000] y) { y = MatMul(x, K) }"
LOOKS = "g (float[N, 6] x) => (float[N, 3] y, bfloat16[N, 3] b) { y = MatMul(x, W) b = Cast<to = 16>(y) }"
LSTM = """g (float[N, 7, 6] x) => (float[N, 5] y) {
    s = Transpose<perm = [1, 0, 2]>(x) o, h, c = LSTM<hidden_size = 5>(s, A, B)
    axis = Constant<value = int64[1] {0}>() y = Squeeze(h, axis)
}"""
WEIGHTS = {
    "first": np.int64(0),
    "W": W,
    "V": V,
    "K": RNG.standard_normal((6, 1000)).astype(np.float32),  # big enough not to be read when it lies elsewhere
    "H": W.astype(np.float16),
    "A": RNG.standard_normal((1, 20, 6)).astype(np.float32),
    "B": RNG.standard_normal((1, 20, 5)).astype(np.float32),
}


def plain(text: str) -> onnx.ModelProto:
    return model(text, **{name: array for name, array in WEIGHTS.items() if re.search(rf"\b{name}\b", text)})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def explainer(text: str | Path, path: str = "e.onnx", **options: Any) -> Path:
    """An explainer file of a model, which is written beside it."""
    source = text if isinstance(text, Path) else Path("m.onnx")
    if not isinstance(text, Path):
        onnx.save(plain(text), source)
    onnxlift.rewrite_file(source, path, **({"reference": "zeros"} | options))
    return Path(path)


def package(source: Path, out: str = "out", **options: Any) -> Repository:
    Path(out).mkdir()
    return package_triton(source, Path(out), **({"serving": Serving()} | options))


def call(*args: object) -> Result:
    return CliRunner().invoke(cli.main, ["package", *map(str, args)])


def outputs(path: Path, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    feed = {value.name: given[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(names, feed), strict=True))


# ------------------------------------------------------------------------------------------------ what is written

DIGITS = MODELS / "mnist_cnn.onnx"
SPLICE = MODELS / "mmsplice_acceptor.onnx"
REAL: dict[str, tuple[str | Path, dict[str, Any]]] = {
    "zeros": (DIGITS, {"target": "argmax"}),
    "index": (DIGITS, {"target": "input"}),
    "weights": (DIGITS, {"target": "weights"}),
    "list": (DIGITS, {"target": [3, 5]}),
    "stored": (DIGITS, {"target": 3, "reference": {"x": np.full((4, 1, 28, 28), 0.1, np.float32)}}),
    "paired": (DIGITS, {"target": "argmax", "reference": "paired"}),
    "grouped": (SPLICE, {"reference": "grouped"}),
    "hypothetical": (
        MODELS / "experiments/deeplift_genomics.onnx",
        {"target": 0, "rule": "genomics", "emit": ("contributions", "hypothetical")},
    ),
    "reveal-cancel": (DIGITS, {"target": 1, "rule": "reveal-cancel"}),
    "recurrent": (LSTM, {"target": 1}),
    "tokens": (TOKENS, {"target": 2, "reference": "token:0"}),
    "half": (HALVES, {"target": 0}),
}


@pytest.mark.parametrize("case", REAL)
def test_predictions_are_the_explainers_to_the_bit(folder: Path, case: str) -> None:
    source, options = REAL[case]
    found = package(explainer(source, **options))
    assert list(found.entries) == ["e", "e_predict"]
    assert found.off == 0
    assert all(contract.joins for contract in found.entries.values()), "batches are free"
    given = {name: np.concatenate([array] * 3) for name, array in found.trial.given.items()}  # another batch than tried
    explained, predicted = (outputs(folder / f"out/{name}/1/model.onnx", given) for name in found.entries)
    assert list(predicted) == found.trial.about["outputs"]
    for name, array in predicted.items():
        np.testing.assert_array_equal(array, explained[name])
    kept = onnx.load(folder / "out/e_predict/1/model.onnx")
    onnx.checker.check_model(kept, full_check=True)
    assert not any(entry.key == "onnxlift" for entry in kept.metadata_props), "it is no explainer any more"


def test_the_cut_leaves_nothing_that_explains(folder: Path) -> None:
    package(explainer(DIGITS, target="argmax"))
    original, predict, whole = (onnx.load(p) for p in (DIGITS, "out/e_predict/1/model.onnx", "out/e/1/model.onnx"))
    assert len(predict.graph.node) == len(original.graph.node) < len(whole.graph.node)
    assert {t.name for t in predict.graph.initializer} < {t.name for t in whole.graph.initializer}
    assert whole == onnx.load("e.onnx")


def test_the_original_predicts_if_it_is_given(folder: Path) -> None:
    source = explainer(MLP, target=0, keep=[])
    found = package(source, model=Path("m.onnx"), name="other")
    assert found.off is None
    assert onnx.load("out/other_predict/1/model.onnx") == onnx.load("m.onnx")
    assert "original file" in Path("out/README.md").read_text("utf-8")
    found = package(explainer(MLP, target=0), "second", model=Path("m.onnx"))
    assert found.off == 0


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (FIXED, "fixed size 2"),
        (ALONE, "no batch axis"),
        (MIXED, "influence one another"),
        (SHARED_OUT, "influence one another"),
        (PLACED, "influence one another"),
    ],
    ids=["fixed", "none", "mixed", "divided by their number", "with their number"],
)
def test_requests_run_alone_where_samples_cannot_be_joined(folder: Path, text: str, note: str) -> None:
    found = package(explainer(text, target=0))
    assert [contract.joins for contract in found.entries.values()] == [False, False]
    assert note in found.trial.notes[0]
    assert "Every request runs alone" in Path("out/README.md").read_text("utf-8")


def test_an_explainer_that_returns_no_output_of_the_model(folder: Path) -> None:
    result = call(explainer(MLP, target=0, keep=[]), "out", "--for", "triton", "--model", "m.onnx")
    assert re.search(r"not compared: the explainer returns none *\n", result.stdout), result.stderr
    page = Path("out/README.md").read_text("utf-8")
    assert "`e` gives what explains the model." in page
    assert "--name e --version 2 --model model.onnx\n" in page


def test_the_page_of_requests_that_run_alone_names_no_batches(folder: Path) -> None:
    package(explainer(ALONE, target=0))
    assert "max_batch_size" not in Path("out/README.md").read_text("utf-8")


def test_references_by_name_are_a_note(folder: Path) -> None:
    found = package(explainer(SPLICE, reference="dinuc-shuffle:3"))
    assert "dinuc-shuffle:3 come with each request" in found.trial.notes[0]
    assert [tensor.name for tensor in found.entries["e"].inputs] == ["seq", "seq_reference"]


def test_sizes_of_dynamic_dimensions_are_chosen(folder: Path) -> None:
    assert "--dim" in call(explainer(ODD, target=(0, 0)), "out", "--for", "triton").stderr
    result = call("e.onnx", "out", "--for", "triton", "--dim", "L=8")
    assert result.exit_code == 0, result.stderr
    assert re.search(r"dims: \[8, 6\]\s+zero_data", Path("out/e/config.pbtxt").read_text())


# ------------------------------------------------------------------------------------------------ external data


def external(path: Path, data: str = "w.bin") -> Path:
    """A model with its weights in another file."""
    onnx.save(plain(WIDE), path, save_as_external_data=True, location=data, size_threshold=0)
    return path


def test_a_repository_has_its_own_weights(folder: Path) -> None:
    Path("source").mkdir()
    onnxlift.rewrite_file(external(Path("source/m.onnx")), "source/e.onnx", target=0, reference="zeros")
    found = package(Path("source/e.onnx"))
    shutil.rmtree("source")
    os.rename("out", "moved")
    for name in found.entries:
        assert {f.name for f in Path(f"moved/{name}/1").iterdir()} == {"model.onnx", "model.onnx.data"}
        for output, array in outputs(Path(f"moved/{name}/1/model.onnx"), dict(found.trial.given)).items():
            np.testing.assert_array_equal(array, found.trial.results[output])


# ------------------------------------------------------------------------------------------------ refusals


def linked_weights() -> Path:
    """Its external data are a link that leaves the folder."""
    Path("elsewhere").mkdir()
    Path("inside").mkdir()
    external(Path("elsewhere/m.onnx"))
    onnxlift.rewrite_file("elsewhere/m.onnx", "elsewhere/e.onnx", target=0, reference="zeros")
    shutil.copy("elsewhere/e.onnx", "inside/e.onnx")
    Path("inside/w.bin").symlink_to(Path("elsewhere/w.bin").resolve())
    return Path("inside/e.onnx")


def unchecked_target() -> Path:
    """An explainer that takes the nearest class for an index out of range."""
    path = explainer(MLP, target="input")
    changed = onnx.load(path)
    for node in changed.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = "clipped" if name == "target" else name
    bounds = [onnx.numpy_helper.from_array(np.int64(bound), name) for bound, name in ((0, "low"), (2, "high"))]
    changed.graph.initializer.extend(bounds)
    changed.graph.node.insert(0, onnx.helper.make_node("Clip", ["target", "low", "high"], ["clipped"]))
    onnx.save(changed, path)
    return path


def other_weights() -> Path:
    path = explainer(MLP, target=0)
    onnx.save(model(MLP, W=W + 1e-3), "m.onnx")
    return path


def other_inputs() -> Path:
    path = explainer(MLP, target=0)
    onnx.save(plain(SCALED), "m.onnx")
    return path


def without_weights() -> Path:
    external(Path("m.onnx"))
    onnxlift.rewrite_file("m.onnx", "e.onnx", target=0, reference="zeros")
    Path("w.bin").unlink()
    return Path("e.onnx")


def damaged() -> Path:
    Path("e.onnx").write_bytes(b"no model")
    return Path("e.onnx")


def a_plain_model() -> Path:
    onnx.save(plain(MLP), "m.onnx")
    return Path("m.onnx")


def good() -> Path:
    return explainer(MLP, target=0)


def of(text: str | Path, **options: Any) -> Callable[[], Path]:
    return lambda: explainer(text, **options)


REFUSED: list[tuple[Callable[[], Path], str, str]] = [
    (
        a_plain_model,
        "",
        r"is a plain model.*onnxlift rewrite m\.onnx explainer\.onnx --target argmax --reference zeros",
    ),
    (of(MLP, target=0, reference="shared"), "", r"references that all samples share.*--reference grouped"),
    (
        of(MLP, target=0, emit=("contributions", "reference_outputs")),
        "",
        r"output 'y_reference' \[1, 3\] has no row for each sample: leave out --emit reference_outputs",
    ),
    (of(SUM, target=0), "", r"output 's' \[\] has no row for each sample: leave it out with `onnxlift rewrite --keep`"),
    (of(TURNED, target=(0, 0)), "", r"output 't' \[L, N, 6\] has no row for each sample"),
    (of(SCALED, target=0, inputs=["x"]), "", r"input 's' \[3\] has no row for each sample: make it a constant"),
    (of(LOOKS, target=0), "", r"servers do not take the type of output 'b' is tensor\(bfloat16\)"),
    (unchecked_target, "", r"does not check its input 'target': with index -1"),
    (of(MLP, target=0, keep=[]), "", r"returns none of the model's outputs.*--model"),
    (other_weights, "--model m.onnx", r"is not the model that the explainer was made of.*differ by 0\.00"),
    (other_inputs, "--model m.onnx", r"it takes 's', 'x', the explainer 'x'"),
    (good, "--model e.onnx", r"--model e\.onnx is an explainer"),
    (good, "--model missing.onnx", r"Cannot read the model missing\.onnx"),
    (good, "--name a/b", r"the name 'a/b' does not fit"),
    (good, "--name ..", r"the name '\.\.' does not fit"),
    (good, "--name ''", r"the name '' does not fit"),
    (good, "--version 0", r"--version"),
    (good, "--max-batch-size 0", r"--max-batch-size"),
    (good, "--dim rows=3", r"no dimension 'rows'"),
    (good, "--dim N=1", r"--dim N is the number of samples, which every request chooses: leave it out"),
    (good, "--backend python --accelerator tensorrt", r"leave out --backend python"),
    (good, "--labels labels.txt --image-scale 1", r"--labels, --image-scale has no meaning with --for triton"),
    (good, "--image-mean 1,a", r"'1,a' is not like"),
    (without_weights, "", r"external data.*is missing"),
    (linked_weights, "", r"lies outside of the model's folder"),
    (damaged, "", r"e\.onnx is not an ONNX model"),
    (lambda: Path("missing.onnx"), "", r"Cannot read the model missing\.onnx"),
]


@pytest.mark.parametrize(("make", "options", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_refusals_are_one_paragraph_and_leave_nothing(
    folder: Path, make: Callable[[], Path], options: str, message: str
) -> None:
    source = make()
    before = sorted(folder.rglob("*"))
    result = call(source, "out", "--for", "triton", *(part.strip("'") for part in options.split()))
    assert result.exit_code == 2
    assert re.search(message, result.stderr), result.stderr
    assert result.stderr.count("\n") == 1
    assert ".tmp" not in result.stderr, "it names files of the user"
    assert sorted(folder.rglob("*")) == before


def test_options_of_servers_are_none_of_the_page(folder: Path) -> None:
    result = call(good(), "out", "--for", "web", "--version", "2", "--dim", "N=3")
    assert (result.exit_code, Path("out").exists()) == (2, False)
    assert "--dim, --version has no meaning with --for web" in result.stderr


@pytest.mark.parametrize(
    ("prepare", "out", "message"),
    [
        (lambda: (Path("out").mkdir(), Path("out/file").touch()), "out", "is not empty"),
        (lambda: Path("out").touch(), "out", "is a file"),
        (lambda: None, "missing/out", "there is no folder"),
        (lambda: None, "/", "Cannot write /: it is the root"),
    ],
    ids=["not empty", "a file", "no parent", "the root"],
)
def test_folders_that_are_in_use_are_left_alone(
    folder: Path, prepare: Callable[[], object], out: str, message: str
) -> None:
    prepare()
    before = sorted(folder.rglob("*"))
    result = call("e.onnx", out, "--for", "triton")
    assert result.exit_code == 2
    assert message in result.stderr
    assert sorted(folder.rglob("*")) == before


# ------------------------------------------------------------------------------------------------ the folder


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OptionError])
def test_a_folder_is_complete_or_not_there(folder: Path, error: type[BaseException]) -> None:
    with contextlib.suppress(error), making(Path("out")) as partial:
        (partial / "half").touch()
        raise error("stopped")
    assert not list(folder.iterdir())
    Path("real").mkdir()
    Path("link").symlink_to("real")
    with making(Path("link")) as partial:
        (partial / "whole").touch()
        assert not list(Path("real").iterdir())
    assert Path("link").is_symlink()
    assert [file.name for file in Path("real").iterdir()] == ["whole"]


def test_the_summary(folder: Path) -> None:
    explainer(MLP, target="input")
    told = call("e.onnx", "out", "--for", "triton", "--version", "7").stdout
    assert "x FP32 [-1, 6], target INT64 [-1] -> y FP32 [-1, 3]" in told
    assert "same bits" in told
    facts = json.loads(call("e.onnx", "second", "--for", "kserve", "--json").stdout)
    assert facts["entries"]["e_predict"] == {
        "batches": True,
        "inputs": {"x": ["FP32", [-1, 6]]},
        "outputs": {"y": ["FP32", [-1, 3]]},
    }
    written = {file.relative_to("second").as_posix() for file in Path("second").rglob("*") if file.is_file()}
    assert set(facts["files"]) == written
    assert {"README.md", "inferenceservice.yaml", "e/config.pbtxt", "e/1/model.onnx"} < written
    assert Path("out/e/7/model.onnx").is_file()
    assert call("e.onnx", "third", "--for", "triton", "--quiet").output == ""
