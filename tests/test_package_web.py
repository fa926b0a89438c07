"""The web page of an explainer, all but the browser: what it says, what is copied, and every refusal."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto
from onnx_text import parse

import onnxlift
from onnxlift.errors import DataError, OptionError
from onnxlift.files import save
from onnxlift.runtime import Explainer
from onnxlift.serving import web, web_runtime

MODELS = Path(__file__).parents[1] / "models"
PAGE = Path(web.__file__).with_name("web")


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that passes for onnxruntime-web, whose real files are large and come from elsewhere."""
    folder = tmp_path / "onnxruntime-web"
    (folder / "dist").mkdir(parents=True)
    known = {}
    for source, (name, _) in web_runtime._FILES.items():
        (folder / "dist" / source).write_bytes(source.encode())
        known[source] = (name, hashlib.sha256(source.encode()).hexdigest())
    monkeypatch.setattr(web_runtime, "_FILES", known)
    return folder


def explainer(folder: Path, model: ModelProto | Path, **options: Any) -> Path:
    path = folder / "explainer.onnx"
    save(onnxlift.rewrite(model, **({"target": "argmax", "reference": "zeros"} | options)), path)
    return path


def dense(*dims: int | str, batch: str = "N") -> ModelProto:
    """y [N, 3] of the mean of x [N, *dims]."""
    axes = list(range(1, len(dims) + 1))
    shape = ", ".join(map(str, (batch, *dims)))
    weight = np.array([[1.0, -1.0, 2.0]], np.float32)
    body = "m = ReduceMean <keepdims = 0> (x, axes)\nc = Reshape(m, column)\ny = MatMul(c, w)"
    return parse(
        body, f"float[{shape}] x", f"float[{batch}, 3] y", axes=np.int64(axes), column=np.int64([-1, 1]), w=weight
    )


def package(folder: Path, source: Path, runtime: Path | None, **options: Any) -> dict[str, Any]:
    page = folder / "page"
    page.mkdir()
    return web.package_web(source, page, runtime=runtime, **options)


def test_the_folder_is_whole(tmp_path: Path, runtime: Path) -> None:
    source = explainer(tmp_path, MODELS / "mnist_cnn.onnx")
    labels, sample = tmp_path / "labels.txt", tmp_path / "seven.PNG"
    labels.write_text("\n".join("zero one two three four five six seven eight nine".split()) + "\n")
    sample.write_bytes(b"pixels")
    page = package(tmp_path, source, runtime, title="Digits", labels=labels, sample=sample, mean=(0.5,))
    folder = tmp_path / "page"
    assert page == json.loads((folder / "page.json").read_text())
    assert page["title"] == "Digits"
    assert page["description"] == "Contributions of 'x' to 'y' compared with zeros; rule rescale."
    assert page["input"] == {
        "name": "x", "kind": "image", "channels": 1, "height": 28, "width": 28, "channelsLast": False,
        "shape": [1, 1, 28, 28],
    }  # fmt: skip
    assert page["preprocessing"] == {"scale": 255.0, "mean": [0.5], "std": [1.0]}
    assert page["prediction"] == {"name": "y", "op": "Gemm"}
    assert (page["target"], page["classes"], page["labels"][7]) == ("argmax", 10, "seven")
    assert (folder / page["sample"]).read_bytes() == b"pixels"
    assert (folder / "explainer.onnx").read_bytes() == source.read_bytes()
    assert page["files"] == {name: (folder / name).stat().st_size for name in ("ort.wasm", "explainer.onnx")}
    assert {file.name for file in PAGE.iterdir()} <= {file.name for file in folder.iterdir()}
    assert "MIT License" in (folder / "licences" / "onnxruntime-LICENSE").read_text()


def test_a_final_sigmoid_is_named(tmp_path: Path, runtime: Path) -> None:
    source = explainer(
        tmp_path, MODELS / "mmsplice_acceptor.onnx", target=None, reference="frequencies:0.3,0.2,0.2,0.3"
    )
    page = package(tmp_path, source, runtime)
    assert page["explained"] == {"name": "out", "before": "before its Sigmoid"}
    assert page["prediction"] == {"name": "out", "op": "Sigmoid"}
    assert (page["target"], page["classes"], page["labels"], page["preprocessing"]) == (None, 1, [], None)


def test_the_prediction_is_of_the_explained_output(tmp_path: Path, runtime: Path) -> None:
    nodes = "box = MatMul(x, W) h = MatMul(x, W) s = Softmax(h) y = Identity(s)"
    model = parse(nodes, "float[N, 6] x", "float[N, 2] box, float[N, 2] y", W=np.ones((6, 2), np.float32))
    page = package(tmp_path, explainer(tmp_path, model, output="y"), runtime)
    assert page["explained"] == {"name": "y", "before": "before its Softmax"}
    assert page["prediction"] == {"name": "y", "op": "Identity"}


KINDS = {
    "channels first": ((3, 16, 20), {"kind": "image", "channels": 3, "height": 16, "width": 20, "channelsLast": False}),
    "channels last": ((16, 20, 3), {"kind": "image", "channels": 3, "height": 16, "width": 20, "channelsLast": True}),
    "grey": ((16, 20), {"kind": "image", "channels": 1, "height": 16, "width": 20, "channelsLast": True}),
    "bases first": ((4, 30), {"kind": "sequence", "length": 30, "positionsFirst": False}),
    "bases last": ((30, 4), {"kind": "sequence", "length": 30, "positionsFirst": True}),
    "free length": (("L", 4), {"kind": "sequence", "length": None, "positionsFirst": True}),
    "numbers": ((7,), {"kind": "vector", "length": 7}),
}


@pytest.mark.parametrize(("dims", "kind"), KINDS.values(), ids=KINDS)
def test_kinds(tmp_path: Path, runtime: Path, dims: tuple[Any, ...], kind: dict[str, Any]) -> None:
    page = package(tmp_path, explainer(tmp_path, dense(*dims), target="input"), runtime)
    shape = [1, *(dim if isinstance(dim, int) else None for dim in dims)]
    assert page["input"] == {"name": "x", "shape": shape, **kind}
    assert (page["target"], page["labels"]) == ("input", ["class 0", "class 1", "class 2"])


def test_weights_beside_the_explainer(tmp_path: Path, runtime: Path) -> None:
    (tmp_path / "source").mkdir()
    source = explainer(tmp_path / "source", MODELS / "mnist_cnn.onnx")
    onnx.save(onnx.load(source), source, save_as_external_data=True, location="weights.bin", size_threshold=100)
    page = package(tmp_path, source, runtime)
    assert page["weights"] == ["explainer.onnx.data"]
    assert page["files"].keys() == {"ort.wasm", "explainer.onnx", "explainer.onnx.data"}
    x = np.random.default_rng(0).random((2, 1, 28, 28), np.float32)
    results = [Explainer(path)(x).contributions["x"] for path in (source, tmp_path / "page" / "explainer.onnx")]
    np.testing.assert_array_equal(*results)


TWO_INPUTS = parse("y = Add(x, z)", "float[N, 4] x, float[N, 4] z")
TOKENS = parse(
    "e = Gather(table, x)\ny = ReduceMean <keepdims = 0> (e, axes)", "int64[N, 8] x", "float[N, 5] y",
    table=np.ones((9, 5), np.float32), axes=np.int64([1]),
)  # fmt: skip
DOUBLE = parse("y = Mul(x, x)", "double[N, 4] x", "double[N, 4] y")

REFUSED = {
    "paired references": (dense(7), {"reference": "paired"}, "takes references at run time"),
    "shuffled references": (dense(4, 30), {"reference": "shuffle:5"}, "takes references at run time"),
    "weights": (dense(7), {"target": "weights"}, "--target input"),
    "several targets": (dense(7), {"target": [0, 1]}, "several neurons"),
    "two inputs": (TWO_INPUTS, {}, "takes the inputs x, z"),
    "tokens": (TOKENS, {"reference": "token:0"}, "references at run time"),
    "an inner tensor": (dense(7), {"inputs": ["m"]}, "explains 'm' inside of the model"),
    "doubles": (DOUBLE, {}, "float32"),
    "a free size": (dense(3, "H", "W"), {}, "--shape x=1"),
    "five channels": (dense(5, 16, 16), {}, r"shape \[5, 16, 16\]"),
    "two axes of bases": (dense(4, 4), {}, r"shape \[4, 4\]"),
    "a fixed batch": (dense(7, batch="8"), {}, "batches of a fixed size"),
    "no contributions": (dense(7), {"emit": ("multipliers",)}, "x_contributions"),
}


@pytest.mark.parametrize(("model", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_explainers(
    tmp_path: Path, runtime: Path, model: ModelProto, options: dict[str, Any], message: str
) -> None:
    source = explainer(tmp_path, model, **options)
    with pytest.raises(OptionError, match=message):
        package(tmp_path, source, runtime)
    assert not list((tmp_path / "page").iterdir())


def test_a_plain_model_is_refused(tmp_path: Path, runtime: Path) -> None:
    with pytest.raises(OptionError, match="onnxlift rewrite"):
        package(tmp_path, MODELS / "mnist_cnn.onnx", runtime)


BAD_OPTIONS: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "scale of numbers": ((7,), {"scale": 1.0}, "are for images"),
    "a scale of 0": ((3, 16, 16), {"scale": 0.0}, "above 0"),
    "a negative std": ((3, 16, 16), {"std": (1.0, -1.0, 1.0)}, "above 0"),
    "no finite mean": ((3, 16, 16), {"mean": (float("nan"),)}, "finite"),
    "two means": ((3, 16, 16), {"mean": (0.5, 0.5)}, "mean has 2 numbers for 3 channels"),
    "no sample": ((7,), {"sample": Path("nowhere.txt")}, r"nowhere\.txt is not a file"),
    "no labels": ((7,), {"labels": Path("nowhere.txt")}, "cannot read --labels nowhere"),
}


@pytest.mark.parametrize(("dims", "options", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options(
    tmp_path: Path, runtime: Path, dims: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    source = explainer(tmp_path, dense(*dims))
    with pytest.raises(OptionError, match=message):
        package(tmp_path, source, runtime, **options)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [(b"a\nb\n", OptionError, "has 2 lines, and the explained output 3 neurons"), (b"\xff", DataError, "UTF-8")],
)
def test_bad_labels(tmp_path: Path, runtime: Path, content: bytes, error: type[Exception], message: str) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_bytes(content)
    with pytest.raises(error, match=message):
        package(tmp_path, explainer(tmp_path, dense(7)), runtime, labels=labels)


def test_one_mean_for_all_channels(tmp_path: Path, runtime: Path) -> None:
    page = package(tmp_path, explainer(tmp_path, dense(3, 16, 16)), runtime, mean=(0.5,), std=(1, 2, 3))
    assert page["preprocessing"] == {"scale": 255.0, "mean": [0.5] * 3, "std": [1, 2, 3]}


# ------------------------------------------------------------------------------------------------ the runtime


def test_another_runtime_is_refused(runtime: Path, tmp_path: Path) -> None:
    (runtime / "dist" / "ort-wasm-simd-threaded.wasm").write_bytes(b"another version")
    with pytest.raises(OptionError, match=r"is not that of onnxruntime-web 1\.30"):
        web_runtime.runtime_files(runtime)
    with pytest.raises(OptionError, match="is not the folder of onnxruntime-web"):
        web_runtime.runtime_files(tmp_path)


def test_npm_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OptionError, match=r"npm is needed .* --runtime"):
        web_runtime.runtime_files(None)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'npm error code ENOTFOUND' >&2; exit 1", r"\(code ENOTFOUND\)"),
        ("exit 3", r"\(exit code 3\)"),
        ("echo nothing comes", "could not fetch"),
        ("echo garbage > onnxruntime-web.tgz", "could not fetch"),
    ],
)
def test_npm_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str) -> None:
    npm = tmp_path / "npm"
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(npm.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(OptionError, match=reason):
        web_runtime.runtime_files(None)


# ------------------------------------------------------------------------------------------------ the page's files


def test_the_page_names_no_other_host() -> None:
    """Nothing to be loaded from elsewhere, by any file of the page; the policy forbids it besides."""
    for file in PAGE.iterdir():
        addresses = set(re.findall(r"https?://[^\s<>`'\")]+", file.read_text(encoding="utf-8")))
        assert addresses <= {"http://localhost:8000"}, file
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', (PAGE / "index.html").read_text())
    assert policy is not None
    sources = dict(part.strip().split(" ", 1) for part in policy.group(1).split(";"))
    assert sources.pop("default-src") == "'none'"
    allowed = {"'self'", "'none'", "'wasm-unsafe-eval'", "blob:", "data:"}
    assert set(" ".join(sources.values()).split()) <= allowed
