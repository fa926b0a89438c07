"""LSTM, GRU and RNN as Scans: what ONNX Runtime's kernels compute, and the importance that the oracle finds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from oracle_recurrent import DEFAULTS, GATES, INPUTS, OUTPUTS, Layer

import onnxlift
from onnxlift import registry
from onnxlift.lowering import Lowerer
from onnxlift.model import normal_form

Arrays = Mapping[str, np.ndarray]

T, B, F, H = 5, 3, 4, 3  # steps, samples, features, hidden units
BIDIRECTIONAL = {"direction": "bidirectional"}
ACTIVATIONS = [
    ("Affine", 0.7, 0.2),
    ("Elu", 0.6, None),
    ("HardSigmoid", 0.3, 0.4),
    ("LeakyRelu", 0.3, None),
    ("Relu", None, None),
    ("ScaledTanh", 0.8, 1.2),
    ("Sigmoid", None, None),
    ("Softplus", None, None),
    ("Softsign", None, None),
    ("Tanh", None, None),
    ("ThresholdedRelu", 0.4, None),
]


def arrays(op: str, attributes: Mapping[str, Any], optional: Sequence[str], seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs of one node, X, W, R and the optional ones. Sequences have all lengths, 0 included."""
    rng = np.random.default_rng(seed)
    count = 2 if attributes.get("direction") == "bidirectional" else 1
    size = len(GATES[op]) * H
    shapes = {
        "X": (T, B, F),
        "W": (count, size, F),
        "R": (count, size, H),
        "B": (count, 2 * size),
        "initial_h": (count, B, H),
        "initial_c": (count, B, H),
        "P": (count, 3 * H),
    }
    found = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    found["R"] *= np.float32(0.5)
    found["sequence_lens"] = np.array([2, 0, T], np.int32)
    return {name: found[name] for name in INPUTS if name in ("X", "W", "R", *optional)}


def batch_first(given: Arrays) -> dict[str, np.ndarray]:
    """The inputs of a layer with layout 1."""
    turned = ("X", "initial_h", "initial_c")
    return {name: value.swapaxes(0, 1) if name in turned else value for name, value in given.items()}


def node_model(
    op: str,
    attributes: Mapping[str, Any],
    given: Arrays,
    *,
    outputs: Sequence[str] | None = None,
    constants: Sequence[str] = (),
    shapes: Mapping[str, Sequence[int | str]] | None = None,
) -> onnx.ModelProto:
    """One node; inputs are graph inputs, but `constants`; `shapes` declares others than those of the arrays."""
    kept = outputs or OUTPUTS[op]
    names = [name if name in given else "" for name in INPUTS[: 1 + max(map(INPUTS.index, given))]]
    results = [name if name in kept else "" for name in OUTPUTS[op]]
    node = helper.make_node(op, names, results, hidden_size=H, **attributes)
    types = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in given.items()}
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info(name, types[name], (shapes or {}).get(name, value.shape))
            for name, value in given.items()
            if name not in constants
        ],
        [helper.make_tensor_value_info(name, types["X"], None) for name in kept],
        [numpy_helper.from_array(given[name], name) for name in constants],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def lowered(model: onnx.ModelProto) -> onnx.ModelProto:
    lowerer = Lowerer(registry.is_known)
    result = normal_form(model, replace=lowerer)
    onnx.checker.check_model(result, full_check=True)
    assert not lowerer.refused
    assert not {node.op_type for node in result.graph.node} & set(GATES)
    return result


def run(model: onnx.ModelProto, feed: Arrays) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    inputs = {value.name for value in session.get_inputs()}
    results = session.run(names, {name: value for name, value in feed.items() if name in inputs})
    return dict(zip(names, results, strict=True))


def assert_close(got: Arrays, expected: Arrays, tolerance: float) -> None:
    """Differences are relative to the largest element, or to 1, the size of what is in between."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(1, float(np.abs(value).max(initial=0)))
        np.testing.assert_allclose(got[name], value, rtol=0, atol=tolerance * scale, err_msg=name)


def subsets(*options: Any) -> list[Any]:
    return list(itertools.chain.from_iterable(itertools.combinations(options, n) for n in range(len(options) + 1)))


SWITCHES = {
    "LSTM": {"input_forget": 1, "clip": 0.7},
    "GRU": {"linear_before_reset": 1, "clip": 0.7},
    "RNN": {"clip": 0.7},
}
OPTIONAL = {
    "LSTM": ["B", "sequence_lens", "initial_h", "initial_c", "P"],
    "GRU": ["B", "sequence_lens", "initial_h"],
    "RNN": ["B", "sequence_lens", "initial_h"],
}


@pytest.mark.parametrize(("op", "optional"), [(op, some) for op in GATES for some in subsets(*OPTIONAL[op])])
def test_every_combination_computes_what_the_kernel_does(op: str, optional: Sequence[str]) -> None:
    for direction, switches in itertools.product(["reverse", "bidirectional"], subsets(*SWITCHES[op])):
        attributes = {"direction": direction, **{name: SWITCHES[op][name] for name in switches}}
        given = arrays(op, attributes, optional)
        model = node_model(op, attributes, given)
        assert_close(run(lowered(model), given), run(model, given), 1e-6)
        assert_close(Layer(op, attributes, given, {}).outputs, run(model, given), 1e-5)


@pytest.mark.parametrize(("name", "alpha", "beta"), ACTIVATIONS)
@pytest.mark.parametrize("op", GATES)
def test_every_activation_in_every_place(op: str, name: str, alpha: float | None, beta: float | None) -> None:
    for place in range(len(DEFAULTS[op])):
        attributes: dict[str, Any] = {**BIDIRECTIONAL, "activations": activations(op, place, name) * 2}
        if alpha is not None:
            attributes["activation_alpha"] = [alpha]  # the second direction has the default
        if beta is not None:
            attributes["activation_beta"] = [beta]
        given = arrays(op, attributes, ["B", "initial_h"])
        given = {key: value * np.float32(0.5) for key, value in given.items()}  # unbounded gates explode
        model = node_model(op, attributes, given)
        assert_close(run(lowered(model), given), run(model, given), 2e-6)
        assert_close(Layer(op, attributes, given, {}).outputs, run(model, given), 1e-5)


def activations(op: str, place: int, name: str) -> list[str]:
    """Those of one direction: the default ones with another one in one place."""
    return [*DEFAULTS[op][:place], name, *DEFAULTS[op][place + 1 :]]


@pytest.mark.parametrize(("op", "outputs"), [(op, some) for op in GATES for some in subsets(*OUTPUTS[op]) if some])
def test_outputs_that_nobody_wants(op: str, outputs: Sequence[str]) -> None:
    given = arrays(op, BIDIRECTIONAL, ["sequence_lens", "initial_h"])
    model = node_model(op, BIDIRECTIONAL, given, outputs=outputs)
    assert_close(run(lowered(model), given), run(model, given), 1e-6)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", GATES)
def test_batch_first_for_which_there_is_no_kernel(op: str, direction: str) -> None:
    plain = {"direction": direction}
    given = arrays(op, plain, OPTIONAL[op])
    swapped = batch_first(given)
    expected = run(node_model(op, plain, given), given)
    expected = {
        name: value.transpose(2, 0, 1, 3) if name == "Y" else value.swapaxes(0, 1) for name, value in expected.items()
    }
    attributes = {**plain, "layout": 1}
    assert_close(run(lowered(node_model(op, attributes, swapped)), swapped), expected, 1e-6)
    assert_close(Layer(op, attributes, swapped, {}).outputs, expected, 1e-5)


@pytest.mark.parametrize("op", GATES)
def test_float64_for_which_there_is_no_kernel(op: str) -> None:
    given = arrays(op, BIDIRECTIONAL, OPTIONAL[op])
    given = {name: value.astype(np.float64) if value.dtype == np.float32 else value for name, value in given.items()}
    got = run(lowered(node_model(op, BIDIRECTIONAL, given)), given)
    assert_close(got, Layer(op, BIDIRECTIONAL, given, {}).outputs, 1e-12)


@pytest.mark.parametrize("op", GATES)
def test_half_precision_is_computed_in_float32(op: str) -> None:
    given = arrays(op, BIDIRECTIONAL, OPTIONAL[op])
    given = {name: value.astype(np.float16) if value.dtype == np.float32 else value for name, value in given.items()}
    model = node_model(op, BIDIRECTIONAL, given)
    assert_close(run(lowered(model), given), run(model, given), 1e-3)


@pytest.mark.parametrize("optional", [["sequence_lens", "initial_h"], []], ids=["given", "omitted"])
@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("op", GATES)
def test_sizes_known_at_run_time_keep_their_symbols(op: str, layout: int, optional: Sequence[str]) -> None:
    given = arrays(op, BIDIRECTIONAL, optional)
    symbols = {
        "X": ["time", "batch", F],
        "sequence_lens": ["batch"],
        "initial_h": [2, "batch", H],
    }
    outputs = {"Y": ["time", 2, "batch", H], "Y_h": [2, "batch", H], "Y_c": [2, "batch", H]}
    if layout == 1:
        for dims in (symbols["X"], symbols["initial_h"], outputs["Y_h"], outputs["Y_c"]):
            dims[0], dims[1] = dims[1], dims[0]
        outputs["Y"] = ["batch", "time", 2, H]
    attributes = {**BIDIRECTIONAL, "layout": layout}
    model = node_model(op, attributes, given, constants=["W", "R"], shapes=symbols)
    result = lowered(model)
    for value in result.graph.output:
        dims = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        assert dims == outputs[value.name]
    scans = [node for node in result.graph.node if node.op_type == "Scan"]
    (body,) = (attribute.g for attribute in scans[0].attribute if attribute.name == "body")
    assert [dim.dim_param or dim.dim_value for dim in body.output[0].type.tensor_type.shape.dim] == ["batch", H]
    if layout == 0:
        for steps, batch in ((1, 1), (4, 2)):
            part = {
                "X": given["X"][:steps, :batch],
                "sequence_lens": np.array([steps, 1][:batch], np.int32),
                "initial_h": given.get("initial_h", np.zeros((2, B, H), np.float32))[:, :batch],
            }
            part = {name: part[name] for name in part if name in given}
            assert_close(run(result, part), run(model, part), 1e-6)


def test_attention_is_refused() -> None:
    names = ["X", "W", "R", "B", "", "", "", "", "QW", "MW", "V", "M", "", "AW"]
    node = helper.make_node("AttnLSTM", names, ["Y"], domain="com.microsoft", hidden_size=H)
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    lowerer = Lowerer(registry.is_known)
    normal_form(helper.make_model(graph, opset_imports=opsets, ir_version=10), replace=lowerer)
    assert "attention" in lowerer.refused["Y"]


# --- importance -------------------------------------------------------------------------------------------------------


def explained(
    op: str, attributes: Mapping[str, Any], x: Arrays, r: Arrays
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What the explainer of all outputs together computes for all float inputs, and the oracle's multipliers."""
    model = node_model(op, attributes, x)
    flat = [helper.make_node("Reshape", [name, "flat"], [f"flat_{name}"]) for name in OUTPUTS[op]]
    whole = helper.make_node("Concat", [f"flat_{name}" for name in OUTPUTS[op]], ["whole"], axis=0)
    model.graph.node.extend([*flat, whole])
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "flat"))
    model.graph.output.append(helper.make_tensor_value_info("whole", TensorProto.FLOAT, None))
    inputs = [name for name in x if name != "sequence_lens"]
    emit = ("contributions", "multipliers")
    explainer = onnxlift.rewrite(model, inputs=inputs, output="whole", target="weights", emit=emit)

    layer = Layer(op, attributes, x, {name: r[name] for name in inputs})
    weights = seeds(layer)
    feed = {**x, **{f"{name}_reference": r[name] for name in inputs}}
    feed["target_weights"] = np.concatenate([weights[name].ravel() for name in OUTPUTS[op]]).astype(np.float32)
    return run(explainer, feed), layer.multipliers(weights)


def check_importance(op: str, attributes: Mapping[str, Any], x: Arrays, r: Arrays) -> None:
    got, multipliers = explained(op, attributes, x, r)
    total = 0.0
    for name, expected in multipliers.items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(got[f"{name}_multipliers"], expected, rtol=0, atol=1e-5 * scale, err_msg=name)
        total += float(np.abs(got[f"{name}_contributions"]).sum())
    assert np.abs(got["completeness_gap"]).max() <= 1e-5 * max(1, total)


@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
@pytest.mark.parametrize(("op", "switches"), [(op, some) for op in GATES for some in subsets(*SWITCHES[op])])
def test_multipliers_of_all_inputs_are_those_of_the_oracle(op: str, switches: Sequence[str], direction: str) -> None:
    attributes = {"direction": direction, **{name: SWITCHES[op][name] for name in switches}}
    for optional in (OPTIONAL[op], []):
        check_importance(op, attributes, arrays(op, attributes, optional), arrays(op, attributes, optional, 1))


@pytest.mark.parametrize(("name", "alpha", "beta"), ACTIVATIONS)
@pytest.mark.parametrize("op", GATES)
def test_every_activation_passes_importance(op: str, name: str, alpha: float | None, beta: float | None) -> None:
    for place in range(len(DEFAULTS[op])):
        attributes: dict[str, Any] = {"activations": activations(op, place, name)}
        if alpha is not None:
            attributes["activation_alpha"] = [alpha]
        if beta is not None:
            attributes["activation_beta"] = [beta]
        x, r = (
            {key: value * np.float32(0.5) for key, value in arrays(op, attributes, ["B", "initial_h"], seed).items()}
            for seed in (0, 1)
        )
        check_importance(op, attributes, x, r)


@pytest.mark.parametrize("op", GATES)
def test_batch_first_passes_importance(op: str) -> None:
    x, r = (batch_first(arrays(op, BIDIRECTIONAL, OPTIONAL[op], seed)) for seed in (0, 1))
    check_importance(op, {**BIDIRECTIONAL, "layout": 1}, x, r)


@pytest.mark.parametrize("op", GATES)
def test_at_the_reference_multipliers_are_derivatives(op: str) -> None:
    x = arrays(op, BIDIRECTIONAL, OPTIONAL[op])
    got, multipliers = explained(op, BIDIRECTIONAL, x, x)
    for name, expected in multipliers.items():
        np.testing.assert_allclose(got[f"{name}_multipliers"], expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("reference", ["paired", "shared", "grouped"])
@pytest.mark.parametrize("op", GATES)
def test_samples_and_references_of_any_number(op: str, reference: str) -> None:
    """Constant weights and the batch in front of x, as torch exports a layer."""
    given = arrays(op, BIDIRECTIONAL, ["B"])
    inner = node_model(op, BIDIRECTIONAL, given, outputs=["Y"], constants=["W", "R", "B"])
    turns = [
        helper.make_node("Transpose", ["x"], ["X"], perm=[1, 0, 2]),
        helper.make_node("Transpose", ["Y"], ["y"], perm=[2, 0, 1, 3]),
    ]
    inner.graph.node.extend(turns)
    del inner.graph.input[:], inner.graph.output[:]
    inner.graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "time", F]))
    inner.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    explainer = onnxlift.rewrite(inner, target="weights", reference=reference)

    rng = np.random.default_rng(5)
    x = rng.standard_normal((B, T, F)).astype(np.float32)
    shape = {"paired": (B, 1, T, F), "shared": (1, 4, T, F), "grouped": (B, 4, T, F)}[reference]
    references = rng.standard_normal(shape).astype(np.float32)
    weights = rng.standard_normal((B, T, 2, H)).astype(np.float32)
    flat = {"paired": references[:, 0], "shared": references[0], "grouped": references}[reference]
    got = run(explainer, {"x": x, "x_reference": flat, "target_weights": weights})
    expected = np.zeros_like(x)
    for sample, base in itertools.product(range(B), range(shape[1])):
        one, zero = x[sample][:, None], np.broadcast_to(references, (B, *shape[1:]))[sample, base][:, None]
        layer = Layer(op, BIDIRECTIONAL, {**given, "X": one}, {"X": zero})
        m = layer.multipliers({"Y": weights[sample][:, :, None]})["X"]
        expected[sample] += (m * (one - zero))[:, 0] / shape[1]
    np.testing.assert_allclose(got["x_contributions"], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert got["completeness_gap"].shape == (B,)
    assert np.abs(got["completeness_gap"]).max() <= 1e-5


# --- the oracle itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("op", "switches"), [(op, some) for op in GATES for some in subsets(*SWITCHES[op])])
def test_the_oracle_conserves(op: str, switches: Sequence[str]) -> None:
    for direction, layout, optional in itertools.product(["forward", "reverse", "bidirectional"], [0, 1], [0, 1]):
        plain = {"direction": direction, **{name: SWITCHES[op][name] for name in switches}}
        x, r = (double(arrays(op, plain, OPTIONAL[op] if optional else [], seed)) for seed in (0, 1))
        if layout == 1:
            x, r = batch_first(x), batch_first(r)
        layer = Layer(op, {**plain, "layout": layout}, x, r)
        assert_conserved(layer, x, r)


@pytest.mark.parametrize(("name", "alpha", "beta"), ACTIVATIONS)
def test_the_oracle_conserves_through_every_activation(name: str, alpha: float | None, beta: float | None) -> None:
    attributes = {
        "activations": [name] * 3,
        "activation_alpha": [] if alpha is None else [alpha] * 3,
        "activation_beta": [] if beta is None else [beta] * 3,
    }
    x, r = (double(arrays("LSTM", attributes, OPTIONAL["LSTM"], seed)) for seed in (0, 1))
    x, r = ({key: value if key == "sequence_lens" else value * 0.7 for key, value in some.items()} for some in (x, r))
    assert_conserved(Layer("LSTM", attributes, x, r), x, r)


@pytest.mark.parametrize("op", GATES)
def test_the_oracle_finds_derivatives_at_the_reference(op: str) -> None:
    x, direction = (double(arrays(op, BIDIRECTIONAL, OPTIONAL[op], seed)) for seed in (0, 1))
    layer = Layer(op, BIDIRECTIONAL, x, x)
    weights = seeds(layer)
    for name, m in layer.multipliers(weights).items():
        ends = []
        for step in (1e-5, -1e-5):
            moved = Layer(op, BIDIRECTIONAL, {**x, name: x[name] + step * direction[name]}, {}).outputs
            ends.append(sum(float((weights[key] * moved[key]).sum()) for key in weights))
        assert (m * direction[name]).sum() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


def double(given: Arrays) -> dict[str, np.ndarray]:
    return {name: value if name == "sequence_lens" else value.astype(np.float64) for name, value in given.items()}


def seeds(layer: Layer) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(9)
    return {name: rng.standard_normal(value.shape) for name, value in layer.outputs.items()}


def assert_conserved(layer: Layer, x: Arrays, r: Arrays) -> None:
    """The sum of m_y dy over all outputs is that of m_x dx over all inputs."""
    weights = seeds(layer)
    outputs = [weights[name] * (layer.outputs[name] - layer.reference[name]) for name in weights]
    inputs = [m * (x[name] - r[name]) for name, m in layer.multipliers(weights).items()]
    assert sum(c.sum() for c in inputs) == pytest.approx(sum(c.sum() for c in outputs), rel=1e-9, abs=1e-9)
    assert sum(np.abs(c).sum() for c in outputs) > 0.1
