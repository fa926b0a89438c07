"""Plans: which node gets which rule by matchers, presets, profiles and files, and what is refused."""

from __future__ import annotations

import cProfile
import json
import pstats
import re
from collections import Counter
from pathlib import Path

import laws
import numpy as np
import onnx
import pytest
from onnx import helper

import onnxlift
from onnxlift import Choice, Plan
from onnxlift.metadata import description, explains
from onnxlift.plan import PROFILES, RULES, as_plan, preset
from onnxlift.rewrite import Inspection, inspect

RNG = np.random.default_rng(4)
MODELS = Path(__file__).parent.parent / "models"


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


CONSTANTS = {
    "k": normal(4, 4, 3),
    "w": normal(4, 4),
    "wide": normal(16, 5),
    "out": normal(5, 3),
    "bias": normal(4),
    "scale": normal(4, 1),
    "variance": np.ones(4, np.float32),
    "folded": np.array([0, -1]),
    "unfolded": np.array([0, 4, 4]),
    "front": np.array([1]),
}


def net(body: str, outputs: str = "float y") -> onnx.ModelProto:
    read = re.findall(r"\w+", body)
    used = {name: value for name, value in CONSTANTS.items() if name in read}
    return laws.model(f"g (float[N, 4, 6] x) => ({outputs}) {{ {body} }}", **used)


def plan_of(model: onnx.ModelProto, **options: object) -> Inspection:
    return inspect(model, **{"target": "weights", "reference": "zeros", **options})


def rules(model: onnx.ModelProto, **options: object) -> dict[str, str]:
    """Node -> rule."""
    return {name: rule.name if rule else "none" for name, rule in plan_of(model, **options).rules.items()}


GENOMICS = net(
    """c = Conv (x, k) n = BatchNormalization (c, bias, bias, bias, variance) [conv] a = Relu (n)
    f = Flatten (a) h = Gemm (f, wide) d = Identity (h) [dense] b = Relu (d) [neither] t = Tanh (b)
    y = Gemm (t, out)""",
    "float[N, 3] y",
)


# --- matchers --------------------------------------------------------------------------------------------------------


def test_an_operator_a_name_and_a_feeder_are_matched() -> None:
    def chosen(**pattern: str) -> set[str]:
        found = rules(GENOMICS, plan=Plan([Choice("reveal-cancel", **pattern)]))
        return {name for name, rule in found.items() if rule == "reveal-cancel"}

    assert chosen() == {"conv", "dense", "neither"}
    assert chosen(op="Relu") == {"conv", "dense"}
    assert chosen(op="T*h") == {"neither"}
    assert chosen(name="dense") == {"dense"}
    assert chosen(name="[cn]*") == {"conv", "neither"}
    assert chosen(name="?e*") == {"dense", "neither"}
    assert chosen(fed_by="Conv") == {"conv"}
    assert chosen(fed_by="Gemm") == {"dense"}
    assert chosen(fed_by="Re*") == {"neither"}
    assert chosen(op="Relu", fed_by="Conv*") == {"conv"}


@pytest.mark.parametrize(
    ("between", "feeder"),
    [
        ("[act] y = Relu (c)", "Conv"),
        ("b = BatchNormalization (c, bias, bias, bias, variance) [act] y = Relu (b)", "Conv"),
        ("b = Identity (c) d = Dropout (b) [act] y = Relu (d)", "Conv"),
        ("b = Add (c, scale) [act] y = Relu (b)", "Conv"),
        ("b = Sub (scale, c) d = Mul (scale, b) e = Div (d, scale) [act] y = Relu (e)", "Conv"),
        ("b = Reshape (c, folded) [act] y = Relu (b)", "Conv"),
        ("b = Flatten (c) d = Reshape (b, unfolded) e = Transpose <perm = [0, 2, 1]> (d) [act] y = Relu (e)", "Conv"),
        ("b = Unsqueeze (c, front) d = Squeeze (b, front) [act] y = Relu (d)", "Conv"),
        ("b = Cast <to = 11> (c) [act] d = Relu (b) y = Cast <to = 1> (d)", "Conv"),
        ("b = MatMul (c, w) d = Add (b, bias) [act] y = Relu (d)", "MatMul"),
        ("b = MatMul (w, c) [act] y = Tanh (b)", "MatMul"),
        ("b = MaxPool <kernel_shape = [2]> (c) [act] y = Relu (b)", "MaxPool"),
        ("b = Tanh (c) [act] y = Relu (b)", "Tanh"),
        ("b = Add (c, c) [act] y = Relu (b)", "Add"),
        ("b = Concat <axis = 1> (c, c) [act] y = Relu (b)", "Concat"),
        ("[act] d = Relu (x) e = Conv (d, k) y = Add (c, e)", ""),
        ("b = Mul (x, scale) [act] d = Relu (b) e = Conv (d, k) y = Add (c, e)", ""),
    ],
)
def test_what_feeds_a_node_is_behind_normalisation_biases_and_reshapes(between: str, feeder: str) -> None:
    model = net(f"c = Conv (x, k) {between}")
    for name in ("Conv", "MatMul", "MaxPool", "Tanh", "Add", "Concat", ""):
        plan = Plan([Choice("reveal-cancel", op="*", name="act", fed_by=name)])
        if name == feeder:
            assert rules(model, plan=plan)["act"] == "reveal-cancel"
        else:
            with pytest.raises(onnxlift.OptionError, match=r"matches no node between 'x' and 'y'"):
                rules(model, plan=plan)


def test_the_first_match_decides_and_the_preset_comes_last() -> None:
    first, second = Choice("captum-rescale", op="Relu"), Choice("reveal-cancel", op="*")
    assert rules(GENOMICS, plan=Plan([first, second]))["dense"] == "captum-rescale"
    assert rules(GENOMICS, plan=Plan([first, second]))["neither"] == "reveal-cancel"
    assert rules(GENOMICS, plan=Plan([second, first]))["dense"] == "reveal-cancel"
    keep = Plan([Choice("rescale", name="dense")])
    assert rules(GENOMICS, plan=keep, rule="genomics")["dense"] == "rescale"
    assert rules(GENOMICS, plan=keep, rule="reveal-cancel")["conv"] == "reveal-cancel"


def test_a_rule_is_replaced_by_its_variant_where_there_is_one() -> None:
    model = net("[a] a = Relu (x) [b] b = Erf (a) [c] y = Tanh (b)")
    plan = Plan(instead={"rescale": "captum-rescale", "reveal-cancel": "deeplift-reveal-cancel"})
    assert rules(model, plan=plan) == {"a": "captum-rescale", "b": "rescale", "c": "captum-rescale"}
    chosen = Plan([Choice("reveal-cancel", name="[ab]")], instead=plan.instead)
    assert rules(model, plan=chosen) == {"a": "deeplift-reveal-cancel", "b": "reveal-cancel", "c": "captum-rescale"}


# --- presets and profiles --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_every_preset_rewrites_and_says_whether_it_conserves(rule: str) -> None:
    explain = onnxlift.Explainer(GENOMICS, rule=rule, target=1, reference="zeros")
    assert explain.description["rule"] == rule
    assert explain.description["conserves"] == RULES[rule].conserves
    assert explain.description["rows_per_pair"] == (50 if rule == "integrated-gradients" else 1)
    explanation = explain(normal(3, 4, 6))  # a warning would be an error
    assert explanation.contributions["x"].shape == (3, 4, 6)
    if RULES[rule].conserves:
        np.testing.assert_allclose(explanation.gap, 0, atol=1e-5)


def test_a_preset_with_a_number() -> None:
    assert preset("integrated-gradients:7").steps == 7
    for wrong in ("integrated-gradients:", "integrated-gradients:0", "integrated-gradients:x", "rescale:3", "nothing"):
        with pytest.raises(
            onnxlift.OptionError, match=r"only integrated-gradients takes a number|unknown rule 'nothing'"
        ):
            preset(wrong)


def test_genomics_chooses_by_the_layer_and_notes_what_is_fed_by_neither() -> None:
    found = plan_of(GENOMICS, rule="genomics")
    chosen = {name: rule.name for name, rule in found.rules.items() if rule and rule.elementwise}
    assert chosen == {"conv": "rescale", "dense": "reveal-cancel", "neither": "rescale"}
    assert found.notes == ["Tanh 'neither' is fed by neither a dense layer nor a convolution and takes rescale"]
    assert plan_of(GENOMICS, rule="reveal-cancel").notes == []
    explainer = onnxlift.rewrite(GENOMICS, rule="genomics", target=0)
    assert (description(explainer) or {})["notes"] == found.notes


def test_reveal_cancel_reveals_what_rescale_cancels() -> None:
    """min(a, b) = a - relu(a - b): Rescale gives all to b, RevealCancel half to each (DeepLIFT 3.4)."""
    model = laws.model(
        "g (float[N, 2] x) => (float[N, 1] y) "
        "{ a, b = Split <axis = 1, num_outputs = 2> (x) d = Sub (a, b) h = Relu (d) y = Sub (a, h) }"
    )
    for rule, expected in (("rescale", [[0, 1]]), ("reveal-cancel", [[0.5, 0.5]])):
        got = onnxlift.Explainer(model, rule=rule, reference="zeros")([[2, 1]])
        np.testing.assert_allclose(got.contributions["x"], expected, atol=1e-6)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_by_name_is_its_plan(profile: str) -> None:
    options = {"target": 0, "reference": "zeros", "rule": "genomics"}
    named, given = (onnxlift.rewrite(GENOMICS, plan=plan, **options) for plan in (profile, PROFILES[profile]))
    assert named.graph == given.graph
    assert named.graph != onnxlift.rewrite(GENOMICS, **options).graph
    about = description(named) or {}
    assert about["plan"] == profile
    assert explains(about).endswith(f", rule genomics, plan {profile}")
    assert f"{profile}-rescale" in str(about["rules"])


# --- files -----------------------------------------------------------------------------------------------------------

FILE = """
normalize_softmax = true

[[choice]]
rule = "reveal-cancel"
fed_by = "Gemm"

[[choice]]
rule = "captum-rescale"
op = "Re*"
name = "conv"

[instead]
rescale = "shap-rescale"
"""


def test_a_plan_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(FILE)
    choices = [Choice("reveal-cancel", fed_by="Gemm"), Choice("captum-rescale", op="Re*", name="conv")]
    expected = Plan(choices, instead={"rescale": "shap-rescale"}, normalize_softmax=True)
    for spec in (path, str(path)):
        assert as_plan(spec) == expected
        found = rules(GENOMICS, plan=spec)
        assert [found[name] for name in ("conv", "dense", "neither")] == [
            "captum-rescale",
            "reveal-cancel",
            "shap-rescale",
        ]
    about = description(onnxlift.rewrite(GENOMICS, target=0, plan=path)) or {}
    assert about["plan"] == "mine.toml"
    assert explains(about).endswith("rule rescale, plan mine.toml")
    path.write_text("")
    assert as_plan(path) == Plan() == as_plan(None)


def test_the_choices_of_a_plan_are_recorded() -> None:
    plan = Plan([Choice("reveal-cancel", op="Relu", fed_by="Gemm"), Choice("rescale", name="conv")])
    about = description(onnxlift.rewrite(GENOMICS, target=0, plan=plan)) or {}
    assert about["plan"] == ["rule = 'reveal-cancel', op = 'Relu', fed_by = 'Gemm'", "rule = 'rescale', name = 'conv'"]
    assert explains(about).endswith("rule rescale, a plan of 2 choices")
    assert (description(onnxlift.rewrite(GENOMICS, target=0)) or {})["plan"] is None


INVALID = {
    "choice = 3": "`choice` must be an array of tables, written [[choice]]",
    "choice = [3]": "`choice` must be an array of tables",
    '[choice]\nrule = "rescale"': "`choice` must be an array of tables",
    '[[choice]]\nop = "Relu"': "a choice has a rule and may have 'fed_by', 'name', 'op', all strings: {'op': 'Relu'}",
    '[[choice]]\nrule = "rescale"\nnode = "a"': "a choice has a rule and may have",
    "[[choice]]\nrule = 1": "a choice has a rule and may have",
    'instead = "rescale"': "`instead` must be a table of rule names",
    "instead = {rescale = 1}": "`instead` must be a table of rule names",
    "normalize_softmax = 1": "`normalize_softmax` must be true or false",
    "choices = []": "it has no option 'choices'; it knows choice, instead, normalize_softmax, normalize_one_hot",
    "[[choice": "cannot be read: ",
    "\ud800": "cannot be read: ",
    '[[choice]]\nrule = "magic"': "the plan asks for rule 'magic', which no operator has: 'argmax', ",
    'instead = {rescale = "magic"}': "the plan asks for rule 'magic', which no operator has",
    'instead = {magic = "rescale"}': "the plan asks for rule 'magic', which no operator has",
}


@pytest.mark.parametrize("text", INVALID)
def test_a_plan_file_that_is_not_valid(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    with pytest.raises(onnxlift.OptionError) as refusal:
        onnxlift.rewrite(GENOMICS, target=0, plan=path)
    assert INVALID[text] in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_is_no_plan(tmp_path: Path) -> None:
    for spec, message in (
        ("zennit", r"'zennit' is neither a file nor a profile \('deeplift', 'captum', 'shap', 'tangermeme'\)"),
        (tmp_path / "no.toml", "no.toml' is neither a file nor a profile"),
        (tmp_path, "cannot be read: .*directory"),
        (3, "an onnxlift.Plan, a TOML file or a profile, not int"),
        ({"choice": []}, "a profile, not dict"),
    ):
        with pytest.raises(onnxlift.OptionError, match=message):
            onnxlift.rewrite(GENOMICS, target=0, plan=spec)


# --- what is refused -------------------------------------------------------------------------------------------------


def normalised() -> onnx.ModelProto:
    return laws.model(
        "g (float[N, 4, 6] x) => (float[N, 4, 6] y) { n = LayerNormalization (x, s) [act] a = Relu (n) "
        "m = MatMul (a, w) [other] y = Relu (m) }",
        s=normal(6),
        w=normal(6, 6),
    )


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice("rescale", op="Sigmoid"), r"\(rule = 'rescale', op = 'Sigmoid'\) matches no node between 'x' and 'y'"),
        (Choice("rescale", name="dense*", op="Tanh"), "matches no node"),
        (Choice("rescale", fed_by="LSTM"), "matches no node"),
        (Choice("reveal-cancel", op="Gem*"), "matches only nodes of 'Gemm', which lack that rule"),
        (Choice("cross-max", fed_by="Gemm"), "matches only nodes of 'Identity', 'Relu', which lack that rule"),
        (Choice("reveal-cancel", op="Gemm"), r"'reveal-cancel' for Gemm .* which has 'midpoint'"),
        (Choice("linear", name="dense"), r"rule 'linear' for Relu \(node 'dense'\), which has .*'rescale'"),
        (Choice("magic"), "rule 'magic', which no operator has"),
    ],
)
def test_a_plan_that_means_nothing_is_refused(choice: Choice, message: str) -> None:
    for attempt in (onnxlift.rewrite, inspect):
        with pytest.raises(onnxlift.OptionError, match=message):
            attempt(GENOMICS, target=0, plan=Plan([choice]))


def test_a_choice_for_nodes_off_the_path_matches_nothing() -> None:
    model = net("[on] y = Relu (x) [off] z = Tanh (x)", "float[N, 4, 6] y, float[N, 4, 6] z")
    with pytest.raises(onnxlift.OptionError, match=r"name = 'off'.* matches no node"):
        rules(model, plan=Plan([Choice("rescale", name="off")]))


def test_reveal_cancel_behind_a_normalisation_is_refused_by_name_and_harmless_in_a_preset() -> None:
    """Behind LayerNormalization a difference has no parts but its sign: one side is empty, and that is Rescale."""
    model = normalised()
    for choice in (Choice("reveal-cancel", name="act"), Choice("reveal-cancel", fed_by="LayerNormalization")):
        with pytest.raises(onnxlift.OptionError, match=r"node 'act' is fed by LayerNormalization .* leave the node"):
            onnxlift.rewrite(model, target="weights", plan=Plan([choice]))
    wide = Plan([Choice("reveal-cancel", op="Relu")])  # of one of the two it makes sense
    assert rules(model, plan=wide) == rules(model, rule="reveal-cancel")
    x, weights = normal(3, 4, 6), normal(3, 4, 6)
    keep = Plan([Choice("rescale", name="other")])
    preset, rescale = (
        onnxlift.Explainer(model, target="weights", reference="zeros", rule=rule, plan=keep)(x, target_weights=weights)
        for rule in ("reveal-cancel", "rescale")
    )
    assert rules(model, rule="reveal-cancel", plan=keep)["act"] == "reveal-cancel"
    scale = np.abs(rescale.contributions["x"]).max()
    np.testing.assert_allclose(preset.contributions["x"], rescale.contributions["x"], atol=1e-5 * scale)


# --- what is emitted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reference", "nodes"), [("zeros", 70), ("paired", 61), ("shared", 108)])
def test_rescale_emits_nothing_signed(reference: str, nodes: int) -> None:
    """As many nodes as before there were signed parts."""
    explainer = onnxlift.rewrite(MODELS / "mnist_cnn.onnx", target="argmax", reference=reference)
    assert len(explainer.graph.node) == nodes
    assert Counter(node.op_type for node in explainer.graph.node)["Sign"] == 0
    signed = onnxlift.rewrite(MODELS / "mnist_cnn.onnx", target="argmax", reference=reference, rule="reveal-cancel")
    assert len(signed.graph.node) > nodes


def chain(count: int) -> onnx.ModelProto:
    """Gemm and Relu, `count` nodes in turn."""
    names = ["x", *(f"t{i}" for i in range(count))]
    nodes = [
        helper.make_node("Relu" if i % 2 else "Gemm", names[i : i + 1] + ([] if i % 2 else ["w"]), names[i + 1 : i + 2])
        for i in range(count)
    ]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 4]) for name in (names[0], names[-1])]
    weights = onnx.numpy_helper.from_array(CONSTANTS["w"], "w")
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], [weights])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize(("rule", "most"), [("reveal-cancel", 2000), ("genomics", 800), ("rescale", 800)])
def test_rewriting_is_linear_in_the_number_of_nodes(rule: str, most: int) -> None:
    """Function calls are counted, because time depends on what else the machine does."""
    calls, nodes = [], []
    for count in (most // 4, most):
        model, profile = chain(count), cProfile.Profile()
        nodes.append(len(profile.runcall(onnxlift.rewrite, model, target=0, reference="zeros", rule=rule).graph.node))
        calls.append(pstats.Stats(profile).total_calls)
    assert nodes[1] <= 4 * nodes[0]
    assert calls[1] < 4.5 * calls[0]  # 16, were it quadratic


def test_metadata_are_json_whatever_the_plan() -> None:
    explainer = onnxlift.rewrite(GENOMICS, target=0, plan=PROFILES["deeplift"], rule="genomics", one_hot=np.int64(-2))
    about = json.loads(next(entry.value for entry in explainer.metadata_props if entry.key == "onnxlift"))
    assert about["one_hot"] == {"x": 1}
    assert about["rules"]["Relu"] == {"conv": "deeplift-rescale", "dense": "deeplift-reveal-cancel"}
