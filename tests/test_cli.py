"""The command line as a user meets it: what it writes and prints, its exit status, every refusal in one paragraph."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from laws import model

import onnxlift
from onnxlift import cli, verify
from onnxlift.feed import Feed
from onnxlift.plan import PROFILES, RULES
from onnxlift.runtime import RewriteOptions

RNG = np.random.default_rng(11)
W1 = RNG.standard_normal((6, 8)).astype(np.float32)
W2 = RNG.standard_normal((8, 3)).astype(np.float32)
MLP = """g (float[N, 6] x) => (float[N, 3] y) {
    h = MatMul(x, W1) a = Relu(h) s = MatMul(a, W2) y = Softmax<axis=-1>(s)
}"""
DNA = """g (float[N, 4, 7] x) => (float[N, 3] y) {
    c = Conv (x, K) [conv] a = Relu (c) f = Flatten (a) h = MatMul(f, W) [dense] b = Relu(h) [neither] y = Tanh(b)
}"""
FILTERS = RNG.standard_normal((2, 4, 3)).astype(np.float32)
WEIGHTS = RNG.uniform(-0.1, 0.3, (10, 3)).astype(np.float32)
SEQUENCES = np.swapaxes(np.eye(4)[RNG.integers(0, 4, (5, 7))], 1, 2)
X = RNG.standard_normal((5, 6)).astype(np.float32)
R = RNG.standard_normal((5, 6)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in: a model, its explainer with paired references, and data for both."""
    monkeypatch.chdir(tmp_path)
    onnx.save(model(MLP, W1=W1, W2=W2), "model.onnx")
    onnxlift.rewrite_file("model.onnx", "explainer.onnx", target="argmax")
    np.save("x.npy", X)
    np.savez("data.npz", x=X, x_reference=R)
    onnx.save(model(DNA, K=FILTERS, W=WEIGHTS), "dna.onnx")
    np.save("dna.npy", SEQUENCES)
    return tmp_path


def without_rule() -> onnx.ModelProto:
    """A model with an operator that nobody knows."""
    made = model("g (float[N, 6] x) => (float[N, 6] y) { h = Relu(x) y = Exp(h) }")
    made.graph.node[1].op_type, made.graph.node[1].domain = "Strange", "elsewhere"
    made.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    return made


def call(*arguments: str, status: int = 0) -> Result:
    result = CliRunner(env={"COLUMNS": "100"}).invoke(cli.main, arguments)
    assert result.exit_code == status, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result


def flat(text: str) -> str:
    """Without line breaks, which depend on the width."""
    return " ".join(text.split())


# -------------------------------------------------------------------------------------------- what it does


def test_help_shows_an_example_of_each_command() -> None:
    overview = call("--help").stdout
    for command in ("rewrite", "explain", "inspect", "verify"):
        assert command in overview
        text = call(command, "--help").stdout
        assert f"  onnxlift {command} " in text.partition("Example")[2]
    assert call("--version").stdout.startswith("onnxlift ")


@pytest.mark.parametrize("command", ["rewrite", "explain", "inspect", "verify"])
def test_the_options_are_named_as_in_python(command: str) -> None:
    said = re.sub(r"-\n +", "-", call(command, "--help").stdout)
    absent = {"verify": {"expose", "emit", "keep"}}.get(command, set())
    for name in RewriteOptions.__annotations__.keys() - absent:
        assert f"--{name.replace('_', '-')} " in said
    for name in (*RULES, *PROFILES, "integrated-gradients:20"):
        assert name in said


def test_rewrite_and_explain(folder: Path) -> None:
    said = call("rewrite", "model.onnx", "new.onnx", "--target", "argmax", "--reference", "zeros").stdout
    for words in ("the largest neuron of 's' (the input of Softmax", "against zeros", "nothing new", "x_contributions"):
        assert words in said
    said = call("explain", "new.onnx", "x.npy", "--out", "out.npz").stdout
    assert "runs" in said
    assert "wrote" in said
    expected = onnxlift.Explainer("model.onnx", target="argmax", reference="zeros")(X)
    with np.load("out.npz", allow_pickle=False) as saved:
        np.testing.assert_array_equal(saved["x_contributions"], expected.contributions["x"])
        assert {"y", "target_output", "target_reference", "completeness_gap"} <= set(saved)
    quiet = call("rewrite", "model.onnx", "new.onnx", "-q", "--target", "2", "--no-pre-activation")
    assert quiet.output == ""
    facts = json.loads(call("rewrite", "model.onnx", "new.onnx", "--json", "--target", "2").stdout)
    assert facts["added_inputs"] == {"x_reference": "float32 [N, 6]"}
    assert facts["target"] == [2]
    said = call("rewrite", "model.onnx", "new.onnx", "-v", "--target", "2").stdout
    assert "MatMul midpoint, Relu rescale" in said
    assert "all" in said


def test_explain_takes_a_plain_model_and_all_kinds_of_references(folder: Path) -> None:
    np.save("r.npy", R)
    np.savez("r.npz", x_reference=R[:2])
    options = ["--target", "argmax", "--batch-size", "2"]
    call("explain", "model.onnx", "data.npz", "--out", "a.npz", *options, "--expose", "a", "--emit", "multipliers")
    call("explain", "explainer.onnx", "x.npy", "--out", "b.npz", "--reference", "r.npy")
    call("explain", "model.onnx", "x.npy", "--out", "c.npz", *options, "--reference", "r.npz")
    paired = onnxlift.Explainer("explainer.onnx")(X, reference=R)
    baked = onnxlift.Explainer("model.onnx", target="argmax", reference={"x": R[:2]})(X)
    with np.load("a.npz") as a, np.load("b.npz") as b, np.load("c.npz") as c:
        assert "x_contributions" not in a
        np.testing.assert_allclose(a["x_multipliers"] * (X - R), b["x_contributions"], atol=1e-6)
        assert a["a/multiplier"].shape == (5, 8)
        np.testing.assert_array_equal(b["x_contributions"], paired.contributions["x"])
        np.testing.assert_allclose(c["x_contributions"], baked.contributions["x"], atol=1e-6)
    facts = json.loads(call("explain", "explainer.onnx", "data.npz", "--out", "b.npz", "--json").stdout)
    assert facts["complete"]
    assert facts["samples"] == 5


def test_explain_warns_and_strict_fails(folder: Path) -> None:
    onnx.save(model("g (float[N, 6] x) => (float[N, 6] y) { y = Log(x) }"), "log.onnx")
    arguments = ("explain", "log.onnx", "x.npy", "--out", "out.npz", "--target", "0", "--reference", "ones.npy")
    np.save("ones.npy", np.ones((1, 6)))
    result = call(*arguments)
    assert result.stderr.startswith("warning: the contributions of ")
    assert result.stderr.count("\n") == 1
    assert call(*arguments, "--strict", "-q", status=1).stdout == ""
    assert not json.loads(call(*arguments, "--json").stdout)["complete"]


def test_inspect_shows_the_plan(folder: Path) -> None:
    text = call("inspect", "model.onnx").stdout
    for words in ("MatMul", "rescale", "importance in", "can be rewritten", "the input of Softmax"):
        assert words in text
    assert "importance in" not in call("inspect", "model.onnx", "-q").stdout
    assert "equation" in call("inspect", "model.onnx", "-v").stdout
    facts = json.loads(call("inspect", "model.onnx", "--json").stdout)
    assert [node["op"] for node in facts["nodes"]] == ["MatMul", "Relu", "MatMul"]
    assert facts["nodes"][1]["importance"] == ["h"]
    assert facts["can_be_rewritten"]


def test_inspect_shows_what_a_preset_does(folder: Path) -> None:
    note = "Tanh 'neither' is fed by neither a dense layer nor a convolution and takes rescale"
    for command in (["inspect", "dna.onnx"], ["rewrite", "dna.onnx", "e.onnx", "--target", "0"]):
        assert note in flat(call(*command, "--rule", "genomics").stdout)
        assert json.loads(call(*command, "--rule", "genomics", "--json").stdout)["notes"] == [note]
        assert "notes" not in call(*command).stdout
        assert json.loads(call(*command, "--json").stdout)["notes"] == []
    said = call("inspect", "dna.onnx", "--rule", "reveal-cancel", "-q").stdout
    assert re.search(r"RevealCancel +conv, dense, neither *\n", said)
    facts = json.loads(call("inspect", "dna.onnx", "--rule", "genomics", "--plan", "deeplift", "--json").stdout)
    assert facts["reveal_cancel"] == ["dense"]
    assert {node["node"]: node["rule"] for node in facts["nodes"]}["dense"] == "deeplift-reveal-cancel"
    assert "RevealCancel" not in call("inspect", "dna.onnx").stdout


def test_inspect_tells_what_a_gpu_would_not_run(folder: Path) -> None:
    said = call("inspect", "model.onnx", "--provider", "cuda").stdout
    assert "placed on the GPU" in said
    assert "nothing ran" in said
    facts = json.loads(call("inspect", "explainer.onnx", "--provider", "cuda", "--json").stdout)
    assert (facts["is_on_gpu"], facts["on_cpu"], facts["copies"]) == (True, [], [])
    made = model("g (float[N, 6] x) => (float[N, 6] y) { h = Relu(x) t = Tan(h) y = Relu(t) }")
    made.graph.node[1].name = "odd"
    onnx.save(made, "tan.onnx")
    said = call("inspect", "tan.onnx", "--provider", "cuda", "--reference", "paired", status=1).stdout
    for words in ("odd", "no kernel", "to the host", "in every run", "leaves the GPU"):
        assert words in said
    facts = json.loads(call("inspect", "tan.onnx", "--provider", "cuda", "--json", status=1).stdout)
    assert {"node": "odd", "op": "Tan", "reason": "no kernel", "body": [], "shape": False} in facts["on_cpu"]
    assert {"tensor": "h", "to": "host", "body": []} in facts["copies"]
    assert "odd" not in call("inspect", "tan.onnx", "--provider", "cuda", "-q", status=1).stdout
    call("inspect", "model.onnx", "--provider", "tpu", status=2)


def test_shapes_are_fixed(folder: Path) -> None:
    make = ("rewrite", "model.onnx", "new.onnx", "--target", "1", "--shape")
    assert "x_contributions float32 [5, 6]" in call(*make, "x=5,6").stdout
    said = call(*make, "x=5,6", "--reference", "shared").stdout
    assert "input 'x_reference' is still dynamic, [references, 6]" in said
    call("rewrite", "model.onnx", "zeros.onnx", "--target", "1", "--reference", "zeros", "--shape", "x=2,6")
    call("explain", "zeros.onnx", "x.npy", "--out", "out.npz")
    assert np.load("out.npz")["x_contributions"].shape == X.shape
    for shape in ("x", "x=", "x=a,6", "=5,6", "x=5", "x=5,7", "z=5,6"):
        call(*make, shape, status=2)


def test_inspect_frees_a_fixed_batch_as_rewrite_does(folder: Path) -> None:
    onnx.save(model(MLP.replace("N", "4"), W1=W1, W2=W2), "fixed.onnx")
    call("rewrite", "fixed.onnx", "e.onnx", "--rule", "integrated-gradients:3", "--target", "0", "--reference", "zeros")
    assert "can be rewritten" in call("inspect", "fixed.onnx", "--rule", "integrated-gradients:3").stdout


def test_plans_and_profiles(folder: Path) -> None:
    Path("mine.toml").write_text('[[choice]]\nrule = "reveal-cancel"\nfed_by = "MatMul"\n')
    command = ("rewrite", "dna.onnx", "e.onnx", "--target", "0", "--reference", "zeros")
    facts = json.loads(call(*command, "--plan", "mine.toml", "--json").stdout)
    assert facts["plan"] == "mine.toml"
    assert facts["rules"]["Relu"] == {"conv": "rescale", "dense": "reveal-cancel"}
    said = call(*command, "--plan", "captum", "--rule", "genomics").stdout
    assert "rule genomics, plan captum" in said
    assert "captum-rescale" in said
    assert "captum-rescale" in call("inspect", "dna.onnx", "--plan", "captum").stdout
    call("verify", "dna.onnx", "--plan", "mine.toml")
    call("explain", "dna.onnx", "dna.npy", "--out", "out.npz", "--plan", "mine.toml", *command[3:])
    expected = onnxlift.Explainer("dna.onnx", target=0, reference="zeros", plan="mine.toml")(np.load("dna.npy"))
    with np.load("out.npz") as saved:
        np.testing.assert_array_equal(saved["x_contributions"], expected.contributions["x"])


@pytest.mark.parametrize("rule", [name for name, preset in RULES.items() if not preset.conserves])
def test_a_rule_that_does_not_conserve_says_so(folder: Path, rule: str) -> None:
    options = ("--rule", rule, "--target", "0", "--reference", "zeros")
    why = f"rule {rule} (which does not conserve: contributions are not expected to add up)"
    assert why in flat(call("rewrite", "dna.onnx", "e.onnx", *options).stdout)
    explain = ("explain", "e.onnx", "dna.npy", "--out", "out.npz")
    result = call(*explain, "--strict")
    assert why in flat(result.stdout)
    assert result.stderr == f"note: --strict has nothing to check, as rule {rule} does not conserve\n"
    assert call(*explain).stderr == call(*explain, "--strict", "-q").stderr == ""
    facts = json.loads(call(*explain, "--json").stdout)
    assert (facts["conserves"], facts["complete"], facts["complaint"]) == (False, None, None)
    assert why in facts["explains"]
    for arguments in (["dna.onnx", "dna.npy", *options], ["e.onnx", "--model", "dna.onnx"]):
        facts = json.loads(call("verify", *arguments, "--json").stdout)
        checks = {check["name"]: check for check in facts["checks"]}
        assert checks["completeness"]["passed"] is None
        assert checks["completeness"]["detail"] == f"not applicable: rule {rule!r} does not conserve"
        assert checks["outputs"]["passed"]
        assert checks["batches"]["passed"]


def test_intervals_and_hypothetical_contributions(folder: Path) -> None:
    options = ("--target", "0", "--reference", "shared")
    facts = json.loads(
        call("rewrite", "dna.onnx", "e.onnx", *options, "--rule", "integrated-gradients:7", "--json").stdout
    )
    assert (facts["rule"], facts["rows_per_pair"]) == ("integrated-gradients:7", 7)
    for axis in ("1", "x=1", "x=-2"):
        more = ("--emit", "hypothetical", "--emit", "contributions", "--one-hot", axis)
        facts = json.loads(call("rewrite", "dna.onnx", "e.onnx", *options, *more, "--json").stdout)
        assert facts["one_hot"] == {"x": 1}
        assert facts["added_outputs"]["x_hypothetical"] == "float32 [N, 4, 7]"
    call("explain", "e.onnx", "dna.npy", "--out", "out.npz", "--reference", "background:dna.npy:2")
    with np.load("out.npz") as saved:
        np.testing.assert_allclose(saved["x_hypothetical"] * np.load("dna.npy"), saved["x_contributions"], atol=1e-6)


def test_verify_makes_one_hot_data_where_they_are_needed(folder: Path) -> None:
    for reference in ("paired", "shared", "grouped", "frequencies:0.25,0.25,0.25,0.25"):
        found = json.loads(
            call("verify", "dna.onnx", "--rule", "liftpad", "--one-hot", "1", "--reference", reference, "--json").stdout
        )
        assert found["passed"]
        call("rewrite", "dna.onnx", "e.onnx", "--target", "0", "--emit", "hypothetical", "--reference", reference)
        checks = json.loads(call("verify", "e.onnx", "--json").stdout)["checks"]
        assert [check["passed"] for check in checks] == [None, True, True]


def test_verify_notices_batches_that_mix_in_hypothetical_contributions(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("rewrite", "dna.onnx", "e.onnx", "--target", "0", "--emit", "hypothetical", "--reference", "zeros")
    run = onnxlift.Explainer._run

    def mixed(self: onnxlift.Explainer, feed: Feed, advance: Callable[[int], object]) -> onnxlift.Explanation:
        found = run(self, feed, advance)
        return replace(found, hypothetical={"x": found.hypothetical["x"] * (self.batch_size or 2)})

    monkeypatch.setattr(onnxlift.Explainer, "_run", mixed)
    checks = json.loads(call("verify", "e.onnx", "dna.npy", "--json", status=1).stdout)["checks"]
    assert [check["passed"] for check in checks if check["name"] == "batches"] == [False]


def test_inspect_reports_what_cannot_be_rewritten(folder: Path) -> None:
    onnx.save(without_rule(), "bad.onnx")
    text = call("inspect", "bad.onnx").stdout
    assert "Importance cannot pass" in text
    assert "cannot be rewritten: importance cannot pass elsewhere.Strange 1" in text
    facts = json.loads(call("inspect", "bad.onnx", "--json").stdout)
    assert facts["totals"]["problems"] == 1
    assert not facts["can_be_rewritten"]
    onnx.save(model("g (float[N, 6] x) => (float[N, 6] y, int64[1, 6] i) { i = ArgMax(x) y = Tanh(x) }"), "stop.onnx")
    assert "returns an index" in call("inspect", "stop.onnx").stdout


@pytest.mark.parametrize("data", [[], ["x.npy"], ["data.npz"]])
@pytest.mark.parametrize(
    "arguments",
    [
        ["model.onnx"],
        ["model.onnx", "--reference", "grouped", "--target", "input", "--samples", "3"],
        ["model.onnx", "--reference", "shared", "--target", "weights"],
        ["explainer.onnx", "--model", "model.onnx"],
        ["explainer.onnx"],
    ],
)
def test_verify_passes(folder: Path, arguments: list[str], data: list[str]) -> None:
    if data == ["data.npz"] and "--reference" in arguments:
        np.savez("data.npz", x=X)
    facts = json.loads(call("verify", *arguments, *data, "--json").stdout)
    checks = {check["name"]: check["passed"] for check in facts["checks"]}
    assert checks["completeness"] is True
    assert checks["batches"] is True
    assert checks["outputs"] is (None if arguments == ["explainer.onnx"] else True)
    assert facts["samples"][0]["difference"] != 0
    assert "PASSED" in call("verify", *arguments, *data).stdout


def test_verify_fails_and_names_the_node(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(model("g (float[N, 6] x) => (float[N, 6] y) { h = Relu(x) y = Log(h) }"), "log.onnx")
    facts = json.loads(call("verify", "log.onnx", "x.npy", "--json", status=1).stdout)
    assert {check["name"]: check["passed"] for check in facts["checks"]}["completeness"] is False
    assert next(iter(facts["residuals"])).startswith("Log")
    assert "the nodes that lose most" in call("verify", "log.onnx", "x.npy", status=1).stdout
    assert "not conserve" not in call("verify", "log.onnx", "x.npy", "-q", status=1).stdout


def test_verify_compares_the_outputs(folder: Path) -> None:
    onnx.save(model(MLP, W1=W1, W2=W2 * 1.01), "other.onnx")
    arguments = ("verify", "explainer.onnx", "--model", "other.onnx")
    assert "FAILED" in call(*arguments, status=1).stdout
    checks = json.loads(call(*arguments, "--json", status=1).stdout)["checks"]
    assert checks[0]["detail"].endswith("in 'y', allowed 1e-05")


def test_verify_does_not_pass_where_nothing_changes(folder: Path) -> None:
    onnx.save(model("g (float[B, C] x) => (float[B, C] y) { z = Mul(x, zero) y = Softmax<axis=-1>(z) }",
                    zero=np.zeros(1, np.float32)), "flat.onnx")  # fmt: skip
    result = call("verify", "flat.onnx", "--dim", "C=4", "--dim", "B=2")
    assert "SKIPPED" in result.stdout
    assert "B = 2, C = 4" in result.stdout


# ------------------------------------------------------------------------------------------ what it refuses


def broken_weights(folder: Path) -> None:
    onnx.save(model(MLP, W1=W1, W2=W2), "external.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    Path("w.bin").unlink()


def pickled(folder: Path) -> None:
    np.save("x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


def integers(folder: Path) -> None:
    text = "g (int64[N, 6] x) => (float[N, 6] y) { m = Mod(x, x) h = Cast<to=1>(m) y = Relu(h) }"
    onnx.save(model(text), "model.onnx")


def pipe(folder: Path) -> None:
    os.mkfifo("pipe")


def behind_a_norm(folder: Path) -> None:
    text = "g (float[N, 6] x) => (float[N, 6] y) { n = LayerNormalization (x, s) [act] y = Relu (n) }"
    onnx.save(model(text, s=np.ones(6, np.float32)), "model.onnx")
    Path("plan.toml").write_text('[[choice]]\nrule = "reveal-cancel"\nname = "act"\n')


def plan(text: str) -> Callable[[Path], object]:
    return lambda folder: Path("plan.toml").write_text(text)


def twice(folder: Path) -> None:
    doubled = model(MLP, W1=W1, W2=W2)
    doubled.graph.input.append(doubled.graph.input[0])
    onnx.save(doubled, "model.onnx")


EXPLAIN = "explain explainer.onnx data.npz --out out.npz"
PLAIN = "explain model.onnx x.npy --reference zeros --out out.npz --target 1"
REWRITE = "rewrite model.onnx new.onnx --target"


def half(name: str) -> Callable[[Path], object]:
    return lambda folder: Path(name).write_bytes(Path(name).read_bytes()[: Path(name).stat().st_size // 2])


REFUSED: dict[str, tuple[str, str, Callable[[Path], object] | None]] = {
    "truncated model": (f"{REWRITE} 1", "truncated", half("model.onnx")),
    "not a model": (f"{REWRITE} 1", "not", lambda f: Path("model.onnx").write_text("hello, this is text")),
    "empty model": (PLAIN, "empty", lambda f: Path("model.onnx").write_bytes(b"")),
    "no model": ("inspect nowhere.onnx", "Cannot read the model nowhere.onnx", None),
    "folder as model": ("verify .", "Cannot read the model .", None),
    "external data missing": (f"{REWRITE} 1".replace("model", "external"), "is missing", broken_weights),
    "no rule": (f"{REWRITE} 1", "(Strange): no rule", lambda f: onnx.save(without_rule(), "model.onnx")),
    "integer input": (f"{REWRITE} 1", "depends on no float graph input", integers),
    "an explainer again": ("rewrite explainer.onnx new.onnx", "is an explainer already", None),
    "over itself": ("rewrite model.onnx model.onnx --target 1", "is the model itself", None),
    "target above": (f"{REWRITE} 3", "out of range", None),
    "target below": (f"{REWRITE} -1", "out of range", None),
    "target needed": ("rewrite model.onnx new.onnx", "choose a target", None),
    "target garbled": (f"{REWRITE} first", "no index such as 3", None),
    "wrong tensor": (f"{REWRITE} 1 --inputs z", "no tensor 'z'", None),
    "wrong output": (f"{REWRITE} 1 --output z", "no tensor 'z'", None),
    "wrong reference": (f"{REWRITE} 1 --reference ones", "neither a file nor one of", None),
    "reference shape": (f"{REWRITE} 1 --reference r.npy", "shape [1, 5]", lambda f: np.save("r.npy", np.ones((1, 5)))),
    "folder as explainer": ("rewrite model.onnx . --target 1", "it is a folder", None),
    "missing folder": ("rewrite model.onnx no/new.onnx --target 1", "there is no folder no", None),
    "file as folder": ("rewrite model.onnx x.npy/new.onnx --target 1", "there is no folder x.npy", None),
    "options of an explainer": (f"{EXPLAIN} --target 1", "is an explainer already, so target", None),
    "pipe as explainer": ("rewrite model.onnx pipe --target 1", "pipe: it is not a regular file", pipe),
    "pipe as out": (EXPLAIN.replace("out.npz", "pipe"), "pipe: it is not a regular file", pipe),
    "two inputs of one name": (f"{REWRITE} 1", "Two graph inputs have the name 'x'", twice),
    "no references": (
        PLAIN.replace("--reference zeros", "--reference shared").replace("x.npy", "data.npz"),
        "input 'x_reference' has no references: its shape is [0, 6]",
        lambda f: np.savez("data.npz", x=X, x_reference=R[:0]),
    ),
    "no references per sample": (
        PLAIN.replace("--reference zeros", "--reference grouped").replace("x.npy", "data.npz"),
        "input 'x_reference' has no references: its shape is [5, 0, 6]",
        lambda f: np.savez("data.npz", x=X, x_reference=np.zeros((5, 0, 6))),
    ),
    "no references to store": (
        f"{REWRITE} 1 --reference r.npy",
        "the reference of 'x' has shape [0, 6], expected ['1 or K', 6]",
        lambda f: np.save("r.npy", R[:0]),
    ),
    "no shuffles": (f"{REWRITE} 1 --reference shuffle:0", "'shuffle:0' needs a number of shuffles, 1 or more", None),
    "unknown rule": (f"{REWRITE} 1 --rule magic", "unknown rule 'magic': one of 'deconvnet', 'dfd', ", None),
    "no intervals": (f"{PLAIN} --rule integrated-gradients:0", "takes a number, 1 to 10000 intervals", None),
    "intervals of another rule": ("inspect model.onnx --rule rescale:5", "only integrated-gradients takes a", None),
    "tensors along a path": (f"{PLAIN} --rule integrated-gradients --expose a", "`expose` has no meaning", None),
    "unknown profile": (f"{PLAIN} --plan zennit", "plan 'zennit' is neither a file nor a profile ('deeplift', ", None),
    "missing plan file": ("verify model.onnx --plan no.toml", "plan 'no.toml' is neither a file nor a profile", None),
    "folder as plan": ("inspect model.onnx --plan .", "the plan '.' cannot be read", None),
    "invalid TOML": (f"{REWRITE} 1 --plan plan.toml", "the plan 'plan.toml' cannot be read", plan("[[choice\nrule=1")),
    "wrong option of a plan": (f"{REWRITE} 1 --plan plan.toml", "it has no option 'rules'", plan("rules = 1")),
    "wrong choice of a plan": (f"{REWRITE} 1 --plan plan.toml", "a choice has a rule", plan('[[choice]]\nop = "Relu"')),
    "unknown rule of a plan": (
        "inspect model.onnx --plan plan.toml",
        "the plan asks for rule 'magic', which no operator has",
        plan('[[choice]]\nrule = "magic"'),
    ),
    "a plan that matches nothing": (
        f"{PLAIN} --plan plan.toml",
        "the plan's choice (rule = 'rescale', op = 'Tanh') matches no node between 'x' and 's'",
        plan('[[choice]]\nrule = "rescale"\nop = "Tanh"'),
    ),
    "RevealCancel without parts": (
        f"{REWRITE} 1 --plan plan.toml",
        "node 'act' is fed by LayerNormalization",
        behind_a_norm,
    ),
    "plan of an explainer": (f"{EXPLAIN} --plan captum", "is an explainer already, so plan cannot be chosen", None),
    "one-hot axis": (f"{REWRITE} 1 --one-hot 2", "`one_hot` names axis 2 of 'x', which has 2 axes", None),
    "one-hot axis of the batch": (f"{PLAIN} --one-hot 0", "`one_hot` names axis 0, which counts samples", None),
    "one-hot axis of another input": (
        "inspect model.onnx --one-hot z=1",
        "`one_hot` names 'z', but what is attributed to is 'x'",
        None,
    ),
    "one-hot axis garbled": (f"{REWRITE} 1 --one-hot x", "'x' is not like 1 or sequence=1", None),
    "one-hot axes of two kinds": (f"{REWRITE} 1 --one-hot 1 --one-hot x=1", "but not both", None),
    "no channels": (f"{REWRITE} 1 --emit hypothetical", "name it with `one_hot`", None),
    "hypothetical gradient": (
        f"{REWRITE} 1 --emit hypothetical --rule gradient --one-hot 1",
        "has multipliers only",
        None,
    ),
    "not one-hot": (
        f"{PLAIN} --emit hypothetical --one-hot 1",
        "input 'x' must be one-hot for hypothetical contributions: sample 0 is not one-hot along axis 1: position 0",
        None,
    ),
    "tolerance NaN": (f"{PLAIN} --tolerance nan", "the tolerance must be 0 or more, not nan", None),
    "tolerance of verify": ("verify model.onnx --tolerance nan", "the tolerance must be 0 or more, not nan", None),
    "tolerance below 0": (f"{PLAIN} --tolerance -1", "--tolerance", None),
    "too much random data": (
        "verify model.onnx --dim N=99999999999",
        "random data of shape [99999999999, 6] for input 'x' are too big",
        None,
    ),
    "missing folder for data": (EXPLAIN.replace("out.npz", "no/out.npz"), "there is no folder no", None),
    "folder as out": (EXPLAIN.replace("out.npz", "."), "it is a folder", None),
    "over the data, by the second file of a layout": (
        "explain explainer.onnx data.onehot.npz --layout modisco --out data.npz",
        "data.onehot.npz would overwrite what is read",
        lambda f: np.savez("data.onehot.npz", x=X),
    ),
    "over the data": (EXPLAIN.replace("out.npz", "data.npz"), "would overwrite", None),
    "no out": ("explain explainer.onnx data.npz", "Missing option '--out'", None),
    "no data": (EXPLAIN.replace("data", "nothing"), "Cannot read the data nothing.npz", None),
    "damaged zip": (EXPLAIN, "cannot be used", half("data.npz")),
    "damaged array": (PLAIN, "cannot be used", half("x.npy")),
    "pickled array": (PLAIN, "pickled Python objects", pickled),
    "text as data": (PLAIN, "of no format that onnxlift reads", lambda f: Path("x.npy").write_text("1,2,3")),
    "text in data": (PLAIN, "text or Python objects", lambda f: np.save("x.npy", np.array([["a"] * 6]))),
    "wrong name": (EXPLAIN, "no input 'z'", lambda f: np.savez("data.npz", z=X)),
    "reference that is stored": (
        PLAIN.replace("x.npy", "data.npz") + " --reference zeros",
        "no input 'x_reference'",
        lambda f: np.savez("data.npz", x=X, x_reference=X),
    ),
    "missing reference": (EXPLAIN, "'x_reference' is missing", lambda f: np.savez("data.npz", x=X)),
    "wrong shape": (PLAIN, "shape [5, 5], expected [5, 6]", lambda f: np.save("x.npy", X[:, :5])),
    "wrong rank": (PLAIN, "add the missing axis", lambda f: np.save("x.npy", X[0])),
    "NaN": (PLAIN, "NaN in sample 2", lambda f: np.save("x.npy", np.where(np.arange(5)[:, None] == 2, np.nan, X))),
    "no samples": (PLAIN, "no samples", lambda f: np.save("x.npy", X[:0])),
    "target at run time": (
        PLAIN.replace("--target 1", "--target input").replace("x.npy", "data.npz"),
        "target 7 of sample 4 is out of range",
        lambda f: np.savez("data.npz", x=X, target=[0, 1, 2, 0, 7]),
    ),
    "unknown provider": (f"{PLAIN} --providers fast", "no provider 'fast'", None),
    "unknown option": (f"{PLAIN} --fast", "No such option", None),
    "unknown command": ("explode model.onnx", "No such command 'explode'", None),
    "no command": ("", "Missing command", None),
    "batch size": (f"{PLAIN} --batch-size 0", "--batch-size", None),
    "unknown dimension": ("verify model.onnx --dim M=2", "no dimension 'M'", None),
    "garbled dimension": ("verify model.onnx --dim N", "not like batch=4", None),
    "original of a model": ("verify model.onnx --model model.onnx", "only beside an explainer", None),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_gets_one_paragraph(folder: Path, case: str) -> None:
    arguments, message, prepare = REFUSED[case]
    if prepare:
        prepare(folder)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    result = call(*arguments.split(), status=2)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert {path: path.read_bytes() for path in folder.iterdir() if not path.is_fifo()} == before
    assert Path("pipe").exists() == (prepare is pipe)


def test_an_interrupt(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(onnxlift.Explainer, "_run", interrupted)
    assert "interrupted" in call(*EXPLAIN.split(), status=130).stderr
    assert not Path("out.npz").exists()


def test_too_little_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*arguments: object, **options: object) -> None:
        raise MemoryError("Unable to allocate 9 TiB")

    monkeypatch.setattr(onnxlift.Explainer, "_run", hungry)
    assert call(*EXPLAIN.split(), status=2).stderr.startswith("error: out of memory (Unable to allocate 9 TiB): give")


def test_a_bug_is_not_hidden(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "inspect", lambda *arguments, **options: 1 / 0)
    result = CliRunner().invoke(cli.main, ["inspect", "model.onnx"])
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize(("arguments", "status"), [(EXPLAIN, 0), (EXPLAIN.replace("data", "nothing"), 2)])
def test_as_a_process(folder: Path, arguments: str, status: int) -> None:
    command = [sys.executable, "-c", "from onnxlift.cli import main; main()", *arguments.split()]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stderr
    if status:
        assert done.stderr.startswith("error: ")
        assert done.stdout == ""
    else:
        assert done.stderr == ""
        assert Path("out.npz").exists()


def test_verify_from_python_takes_models_and_arrays() -> None:
    found = verify.verify(model(MLP, W1=W1, W2=W2), X, reference="zeros", samples=2)
    assert found.passed
    assert found.explanation.gap.shape == (2,)
    assert found.data == "2 of the given samples"
