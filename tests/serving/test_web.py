"""The web page in a real browser: its numbers are ONNX Runtime's, nothing leaves it, and it says what is wrong."""

from __future__ import annotations

import base64
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper
from onnx_text import parse
from PIL import Image
from serving.browser import Browser, Visit, served
from serving.conftest import BUILD, Table
from serving.explainers import MODELS, Local

import onnxlift
from onnxlift.feed import Port
from onnxlift.files import save
from onnxlift.formats import Form
from onnxlift.formats.images import open_images
from onnxlift.serving.web import package_web

LOOKS: dict[str, Any] = {"light": {}, "dark": {"scheme": "dark"}, "phone": {"width": 390}}
TOLERANCE = 1e-5  # of the largest contribution
DIGITS = np.load(MODELS / "mnist_digits.npz")["x"]
GENE = "".join("ACGT"[base] for base in np.load(MODELS / "pdia2_gene.npz")["sequence"].argmax(axis=1))
EXONS = np.load(MODELS / "pdia2_gene.npz")["exons"]
ACCEPTOR = GENE[EXONS[1][0] - 50 : EXONS[1][0] + 3]
WEIGHT = np.array([[1, -2], [3, 1], [-1, 2], [0.5, -4], [2, 2]], np.float32)


@pytest.fixture(scope="module")
def browser() -> Browser:
    return Browser(BUILD / "web")


class Page:
    """A package of an explainer in a folder of its own, on a server, in a browser."""

    def __init__(self, browser: Browser, folder: Path, model: ModelProto | Path, **options: Any) -> None:
        self.browser, self.folder, self.download = browser, folder / "page", folder / "contributions.npy"
        explainer = folder / "explainer.onnx"
        save(onnxlift.rewrite(model, **({"reference": "zeros"} | options)), explainer)
        self.local = Local(explainer)
        self.folder.mkdir()
        self.explainer = explainer

    def write(self, **options: Any) -> Page:
        self.about = package_web(self.explainer, self.folder, **options)
        return self

    def visit(self, *steps: tuple[Any, ...], clean: bool = True, **options: Any) -> Visit:
        with served(self.folder) as address:
            visit = self.browser.visit(address, *steps, **options)
        if clean:
            assert visit.problems == []
        assert all(request.removeprefix("blob:").startswith(address) for request in visit.requests), visit.requests
        return visit

    def explained(self, *steps: tuple[Any, ...], **options: Any) -> tuple[np.ndarray, Visit]:
        """The contributions that a visitor downloads after these steps."""
        done = (("shown", "#result"), ("gone", "#status"), ("download", "#download", self.download))
        visit = self.visit(*steps, *done, **options)
        return np.load(self.download), visit

    def off(self, contributions: np.ndarray, **given: np.ndarray) -> float:
        """The largest difference from ONNX Runtime here, relative to the largest contribution."""
        expected = self.local(given)[self.about["contributions"]]
        assert (contributions.dtype, contributions.shape) == (expected.dtype, expected.shape)
        return float(np.abs(contributions - expected).max() / np.abs(expected).max())


def png(folder: Path, pixels: np.ndarray) -> Path:
    path = folder / "image.png"
    Image.fromarray(pixels).save(path)
    return path


def digit(k: int) -> np.ndarray:
    return DIGITS[k][None, None].astype(np.float32) / 255


def one_hot(bases: str, axis: int) -> np.ndarray:
    rows = np.array([[base == letter for letter in "ACGT"] for base in bases], np.float32)
    return np.ascontiguousarray(rows if axis == 2 else rows.T)[None]


def text_of(visit: Visit, place: int) -> str:
    return " ".join(str(visit.results[place]).split())


# ------------------------------------------------------------------------------------------------ numbers


def test_a_digit(browser: Browser, tmp_path: Path, table: Table) -> None:
    image = png(tmp_path, DIGITS[3])
    page = Page(browser, tmp_path, MODELS / "mnist_cnn.onnx", target="argmax").write(title="Which digit?", sample=image)
    for look, options in LOOKS.items():
        shot = ("screenshot", BUILD / f"digit_{look}.png")
        found, visit = page.explained(
            ("click", ".sample"), ("shown", "#result"), ("text", "#result"), ("text", "h1"), shot, **options
        )
    off = page.off(found, x=digit(3))
    assert off <= TOLERANCE
    table.add("browser", "a digit: contributions against ONNX Runtime on the CPU", f"{off:.2g} of the largest")
    local = page.local({"x": digit(3)})
    best = int(local["y"].argmax())
    text = text_of(visit, 2)
    assert text.startswith("Image: 28 × 28 ")
    assert f"Prediction class {best} class {best} " in text
    assert f"t(x) {local['target_output'][0]:.4g} " in text
    assert "The contributions add up to the difference" in text
    assert visit.results[3] == "Which digit?"


def test_a_chosen_class(browser: Browser, tmp_path: Path) -> None:
    page = Page(browser, tmp_path, MODELS / "mnist_cnn.onnx", target="input").write()
    upload = ("upload", "input[type=file]", png(tmp_path, DIGITS[5]))
    *_, second, best = page.local({"x": digit(5), "target": np.int64([0])})["y"][0].argsort()
    found, _ = page.explained(upload)
    assert page.off(found, x=digit(5), target=np.int64([best])) <= TOLERANCE
    found, visit = page.explained(
        upload, ("shown", "#result"), ("choose", "#target", "4"), ("shown", "dd:has-text('class 4')"), ("text", "#sums")
    )
    assert page.off(found, x=digit(5), target=np.int64([4])) <= TOLERANCE
    assert text_of(visit, 4).startswith("Explained class 4 ")
    line, said = f"#predictions li:has-text('class {second}')", f"dd:has-text('class {second}')"
    found, _ = page.explained(upload, ("shown", "#result"), ("click", line), ("shown", said))
    assert page.off(found, x=digit(5), target=np.int64([second])) <= TOLERANCE


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_an_image_dropped_or_pasted(browser: Browser, tmp_path: Path, way: str) -> None:
    page = Page(browser, tmp_path, MODELS / "mnist_cnn.onnx", target="argmax").write()
    content = base64.b64encode(png(tmp_path, DIGITS[8]).read_bytes()).decode()
    found, _ = page.explained(("shown", "#input label"), (way, "image/png", content))  # else before the page listens
    assert page.off(found, x=digit(8)) <= TOLERANCE


READ = """
(async () => {
  const [{ imageKind }, page, file] = await Promise.all([import("./image.js"), fetch("page.json"), fetch("FILE")]);
  return Array.from((await imageKind(await page.json()).read(await file.blob())).data);
})()
"""
VGG = MODELS / "experiments" / "vgg_digits.onnx"
MODES = {"RGB": (VGG, (3, 32, 32)), "L": (MODELS / "mnist_cnn.onnx", (1, 28, 28))}
SIZES = [(28, 28), (32, 32), (100, 150), (90, 75), (20, 31), (33, 600), (140, 70)]  # height and width


@pytest.mark.parametrize("mode", MODES)
def test_pictures_are_read_as_in_python(browser: Browser, tmp_path: Path, mode: str, table: Table) -> None:
    """Turned, fitted, cut and brought to values to the bit as the project's own reader of images does it."""
    model, shape = MODES[mode]
    form = Form(mean=(0.5, 0.4, 0.3)[: shape[0]], std=(0.25, 0.5, 0.75)[: shape[0]])
    page = Page(browser, tmp_path, model, target="argmax").write(mean=form.mean, std=form.std)
    port = Port("x", "tensor(float)", ("N", *shape), "data", "x", True)
    photo = Image.fromarray(np.load(MODELS / "experiments" / "photographs.npz")["coffee"])
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds = [(photo.resize((width, height)), {}) for height, width in SIZES]
    kinds += [(photo.convert("L"), {}), (photo.convert("P"), {}), (photo, {"exif": turned})]
    for k, (picture, options) in enumerate(kinds):
        picture.save(page.folder / f"{k}.png", **options)
    visit = page.visit(*(("evaluate", READ.replace("FILE", f"{k}.png")) for k in range(len(kinds))))
    for k, ((picture, _), found) in enumerate(zip(kinds, visit.results, strict=True)):
        with open_images(page.folder / f"{k}.png", port, form) as rows:
            expected = rows["x"][0:1]
        values = np.float32(found).reshape(expected.shape)
        np.testing.assert_array_equal(values, expected, f"{picture.size} {picture.mode}")
    table.add("browser", f"values of {len(kinds)} pictures as {mode}, against `onnxlift explain`", "same bits")


def test_a_photograph(browser: Browser, tmp_path: Path, table: Table) -> None:
    page = Page(browser, tmp_path, VGG, target="argmax").write()
    photo = np.load(MODELS / "experiments" / "photographs.npz")["chelsea"]
    image = png(tmp_path, photo)
    with open_images(image, Port("x", "tensor(float)", ("N", 3, 32, 32), "data", "x", True), Form()) as rows:
        x = rows["x"][0:1]
    shot = ("screenshot", BUILD / "photograph.png")
    found, _ = page.explained(("upload", "input[type=file]", image), ("shown", "#result"), shot)
    off = page.off(found, x=x)
    assert off <= TOLERANCE
    table.add("browser", "a photograph: contributions against ONNX Runtime on the CPU", f"{off:.2g} of the largest")


def test_a_splice_site(browser: Browser, tmp_path: Path, table: Table) -> None:
    fasta = tmp_path / "sites.fa"
    fasta.write_text(f">first one\r\n{ACCEPTOR[:30].lower()}\r\n{ACCEPTOR[30:]}\r\n>second\nACGT\n")
    page = Page(browser, tmp_path, MODELS / "mmsplice_acceptor.onnx", reference="frequencies:0.3,0.2,0.2,0.3")
    page.write(sample=fasta, title="Splice acceptors")
    for look, options in LOOKS.items():
        found, visit = page.explained(
            ("click", ".sample"), ("shown", "#result"), ("text", ".readout"), ("text", "#answer"), ("text", "#count"),
            ("screenshot", BUILD / f"splice_{look}.png"), **options,
        )  # fmt: skip
    given = one_hot(ACCEPTOR, 2)
    off = page.off(found, seq=given)
    assert off <= TOLERANCE
    table.add("browser", "a splice site: contributions against ONNX Runtime on the CPU", f"{off:.2g} of the largest")
    assert visit.results[2] == "first, the first of 2 sequences; 53 bases, counted from 0"
    assert visit.results[3] == f"{100 * page.local({'seq': given})['out'].item():.4g} %"
    assert visit.results[4] == "53 of 53 bases"
    unknown = ACCEPTOR[:10].replace("T", "U") + "NR" + ACCEPTOR[12:]
    found, _ = page.explained(("fill", "textarea", unknown), ("click", "form .primary"))
    assert page.off(found, seq=one_hot(unknown.replace("U", "T"), 2)) <= TOLERANCE


def test_an_enhancer(browser: Browser, tmp_path: Path, table: Table) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("GATA1\nTAL1\nboth\n")
    page = Page(browser, tmp_path, MODELS / "experiments" / "deeplift_genomics.onnx", target="input").write(
        labels=labels
    )
    found, visit = page.explained(
        ("fill", "textarea", f">part of a gene\n{GENE[:200]}"), ("press", "textarea", "Control+Enter"),
        ("shown", "#result"), ("screenshot", BUILD / "enhancer_whole.png"), ("choose", "#target", "1"),
        ("shown", "dd:has-text('TAL1')"), ("press", ".logo", "ArrowRight"), ("press", ".logo", "ArrowRight"),
        ("text", ".readout"), ("fill", "figure input", "0.7"), ("screenshot", BUILD / "enhancer_letters.png"),
        ("text", "#prediction"),
    )  # fmt: skip
    off = page.off(found, x=one_hot(GENE[:200], 1), target=np.int64([1]))
    assert off <= TOLERANCE
    table.add("browser", "an enhancer: contributions against ONNX Runtime on the CPU", f"{off:.2g} of the largest")
    assert visit.results[8].startswith(f"Position 1, {GENE[1]}: ")
    assert all(name in visit.results[11] for name in ("GATA1", "TAL1", "both", "%"))


@pytest.mark.parametrize("length", [12, 33])
def test_a_model_of_any_length(browser: Browser, tmp_path: Path, length: int) -> None:
    body = "c = Conv(x, w)\nr = Relu(c)\nm = ReduceMean <keepdims = 0> (r, axes)\ny = MatMul(m, v)"
    weight = np.random.default_rng(0).standard_normal((6, 4, 5)).astype(np.float32)
    model = parse(body, "float[N, 4, L] x", "float[N, 2] y", w=weight, v=weight[:, :2, 0], axes=np.int64([2]))
    page = Page(browser, tmp_path, model, target="argmax").write()
    found, _ = page.explained(("fill", "textarea", GENE[:length]), ("click", "form .primary"))
    assert page.off(found, x=one_hot(GENE[:length], 1)) <= TOLERANCE


@pytest.mark.parametrize("batch", ["N, ", ""], ids=["batch", "no batch"])
def test_numbers(browser: Browser, tmp_path: Path, batch: str) -> None:
    model = parse("r = Relu(x)\ny = MatMul(r, w)", f"float[{batch}5] x", f"float[{batch}2] y", w=WEIGHT)
    page = Page(browser, tmp_path, model, target="input").write()
    given = np.float32([[0.5, -3, 2, 1e-3, 4]]).reshape(page.about["input"]["shape"])
    target = np.full(page.about["targetShape"], 1)
    found, visit = page.explained(
        ("fill", "textarea", "0.5, −3; 2\n1e-3 4"), ("click", "form .primary"), ("shown", "#result"),
        ("choose", "#target", "1"), ("shown", "dd:has-text('class 1')"), ("texts", "figure li"),
        ("screenshot", BUILD / "numbers.png"),
    )  # fmt: skip
    assert page.off(found, x=given, target=target) <= TOLERANCE
    assert [line.split()[0] for line in visit.results[5]] == ["[4]", "[2]", "[0]", "[3]", "[1]"]


def test_weights_in_a_file_of_their_own(browser: Browser, tmp_path: Path) -> None:
    page = Page(browser, tmp_path, MODELS / "mnist_cnn.onnx", target="argmax")
    model = onnx.load(page.explainer)
    onnx.save(model, page.explainer, save_as_external_data=True, location="w", size_threshold=100)
    page.write()
    found, visit = page.explained(("upload", "input[type=file]", png(tmp_path, DIGITS[2])))
    assert any(request.endswith("/explainer.onnx.data") for request in visit.requests)
    assert page.off(found, x=digit(2)) <= TOLERANCE


# ------------------------------------------------------------------------------------------------ what can go wrong


BAD_SEQUENCES = {
    "": "There is no sequence: enter one first.",
    "ACGT": "The model reads 53 bases, and this sequence has 4: enter 53.",
    ACCEPTOR[:-1] + "X": "The sequence holds “X”, which is no base: use A, C, G, T, or N.",
    f">only a name {ACCEPTOR}": "There is no sequence: enter one first.",
}


def test_bad_sequences(browser: Browser, tmp_path: Path) -> None:
    page = Page(browser, tmp_path, MODELS / "mmsplice_acceptor.onnx").write()
    steps = [step for text in BAD_SEQUENCES for step in (
        ("fill", "textarea", text), ("click", "form .primary"), ("shown", "#error"), ("text", "#error"),
    )]  # fmt: skip
    good = (("fill", "textarea", ACCEPTOR), ("click", "form .primary"), ("shown", "#result"), ("gone", "#error"))
    bad = (("fill", "textarea", ACCEPTOR[1:]), ("click", "form .primary"), ("shown", "#error"), ("gone", "#result"))
    visit = page.visit(*steps, ("screenshot", BUILD / "splice_refused.png"), *good, *bad)
    assert visit.results[3 : len(steps) : 4] == list(BAD_SEQUENCES.values())


def test_bad_images(browser: Browser, tmp_path: Path) -> None:
    page = Page(browser, tmp_path, MODELS / "mnist_cnn.onnx", target="argmax").write()
    image = png(tmp_path, DIGITS[0])
    text, cut = tmp_path / "notes.txt", tmp_path / "cut.png"
    text.write_text("no image")
    cut.write_bytes(image.read_bytes()[:60])
    steps = [
        step for path in (text, cut) for step in (("upload", "input[type=file]", path), ("text", "#error:visible"))
    ]
    visit = page.visit(*steps, ("upload", "input[type=file]", image), ("shown", "#result"), ("gone", "#error"))
    assert set(visit.results[1:4:2]) == {"This is not an image that the browser can read: choose a PNG or JPEG file."}


def test_bad_numbers(browser: Browser, tmp_path: Path) -> None:
    page = Page(
        browser, tmp_path, parse("y = MatMul(x, w)", "float[N, 5] x", "float[N, 2] y", w=WEIGHT), target=0
    ).write()
    wrong = {
        "1 2 3": "The model reads 5 numbers, and these are 3: enter 5.",
        "": "There are no numbers: enter them first.",
    }
    wrong["1 2 3 x 5"] = "“x” is not a number: separate numbers by commas, spaces or lines."
    steps = [step for text in wrong for step in (
        ("fill", "textarea", text), ("click", "form .primary"), ("shown", "#error"), ("text", "#error"),
    )]  # fmt: skip
    assert page.visit(*steps).results[3::4] == list(wrong.values())


def test_a_gap_is_a_warning(browser: Browser, tmp_path: Path) -> None:
    page = Page(browser, tmp_path, MODELS / "mnist_cnn.onnx", target="argmax")
    model = onnx.load(page.explainer)
    for node in model.graph.node:
        node.output[:] = ["small_gap" if name == "completeness_gap" else name for name in node.output]
    model.graph.node.append(helper.make_node("Add", ["small_gap", "wrong"], ["completeness_gap"]))
    model.graph.initializer.append(helper.make_tensor("wrong", onnx.TensorProto.FLOAT, [1], [3.0]))
    save(model, page.explainer)
    page.write()
    shot = ("screenshot", BUILD / "digit_gap.png")
    visit = page.visit(("upload", "input[type=file]", png(tmp_path, DIGITS[3])), ("text", "#gap.bad:visible"), shot)
    assert visit.results[1].startswith("The contributions miss the difference by 3 (")
    assert visit.results[1].endswith("do not rely on them for this input.")


def test_a_rule_that_does_not_conserve(browser: Browser, tmp_path: Path) -> None:
    page = Page(browser, tmp_path, MODELS / "mnist_cnn.onnx", target="argmax", rule="gradient-x-input").write()
    visit = page.visit(("upload", "input[type=file]", png(tmp_path, DIGITS[3])), ("text", "#gap:visible"))
    assert visit.results[1].startswith("The contributions of this rule need not add up")


@pytest.mark.parametrize("name", ["ort.wasm", "explainer.onnx", "page.json", "ort.js"])
def test_a_part_is_missing(browser: Browser, tmp_path: Path, name: str) -> None:
    page = Page(browser, tmp_path, MODELS / "mnist_cnn.onnx", target="argmax").write()
    (page.folder / name).unlink()
    visit = page.visit(("text", "#error:visible"), clean=False)
    assert name in visit.results[0]


def test_a_browser_without_webassembly(browser: Browser, tmp_path: Path) -> None:
    page = Page(browser, tmp_path, MODELS / "mnist_cnn.onnx", target="argmax").write()
    visit = page.visit(("text", "#error:visible"), flags=("--js-flags=--jitless",))
    assert visit.results == ["This browser does not run WebAssembly, or it is switched off: use a current browser."]


def test_the_page_opened_as_a_file(browser: Browser, tmp_path: Path) -> None:
    page = Page(browser, tmp_path, MODELS / "mnist_cnn.onnx", target="argmax").write()
    visit = browser.visit((page.folder / "index.html").as_uri(), ("text", ".late:visible"))
    assert "python -m http.server" in visit.results[0]


# ------------------------------------------------------------------------------------------------ privacy and size


def test_nothing_can_leave(browser: Browser, tmp_path: Path) -> None:
    """The policy holds for the page and for the worker, which has no policy of its own."""
    page = Page(browser, tmp_path, MODELS / "mnist_cnn.onnx", target="argmax").write()
    (tmp_path / "elsewhere").mkdir()
    with served(tmp_path / "elsewhere") as other:
        send = f"fetch({json.dumps(other)}, {{ mode: 'no-cors' }}).then(() => 'sent', () => 'refused')"
        steps = (("shown", "form"), ("gone", "#status"), ("evaluate", send), ("inWorker", send))
        with served(page.folder) as address:
            visit = browser.visit(address, *steps)
    assert visit.results[2:] == ["refused", "refused"]
    assert any("Content Security Policy" in problem for problem in visit.problems)


def test_sizes(browser: Browser, tmp_path: Path, table: Table) -> None:
    page = Page(browser, tmp_path, MODELS / "mnist_cnn.onnx", target="argmax").write()
    shutil.rmtree(page.folder / "licences")
    files = {file.name: file.read_bytes() for file in page.folder.iterdir() if file.name != "README.md"}
    own = [name for name in files if not name.startswith(("ort.", "explainer"))]

    def size(names: list[str]) -> str:
        packed = sum(len(gzip.compress(files[name])) for name in names)
        return f"{sum(len(files[name]) for name in names) / 1e6:.3g} MB, gzipped {packed / 1e6:.3g} MB"

    table.add("browser", "what a visitor downloads, digits", size(list(files)))
    table.add("browser", "of it ONNX Runtime", size(["ort.js", "ort.wasm"]))
    table.add("browser", "of it the page itself", size(own))
    assert sum(len(files[name]) for name in own) < 60_000
