"""The option `shapes`: explainers whose dynamic axes have numbers, and without arithmetic on shapes."""

from __future__ import annotations

from typing import Any

import laws
import numpy as np
import onnx
import pytest
from onnx_text import all_nodes, floats, ops, parse
from test_placement import cnn, recurrent, transformer

from onnxlift import Explainer, rewrite, rewrite_file
from onnxlift.errors import DataError, OptionError
from onnxlift.metadata import description
from onnxlift.model import normal_form

ON_SHAPES = {"Shape", "Size", "Range", "NonZero"}


def dims(model: onnx.ModelProto) -> dict[str, list[int | str]]:
    """The shapes of the inputs and outputs."""
    ports = (*model.graph.input, *model.graph.output)
    return {v.name: [dim.dim_param or dim.dim_value for dim in v.type.tensor_type.shape.dim] for v in ports}


def notes(model: onnx.ModelProto) -> list[str]:
    about = description(model)
    assert about is not None
    return list(about["notes"])


MODELS = {"cnn": (cnn, (3, 13, 13)), "transformer": (transformer, (5, 8)), "recurrent": (recurrent, (4, 3))}


@pytest.mark.parametrize("reference", ["paired", "zeros", "shared", "grouped", "integrated"])
@pytest.mark.parametrize("name", MODELS)
def test_a_static_explainer_computes_the_same(name: str, reference: str) -> None:
    make, sample = MODELS[name]
    model = make("float")
    options: dict[str, Any] = {"target": "argmax", "reference": reference}
    if reference == "integrated":
        options = {"target": "argmax", "rule": "integrated-gradients:3"}
    lead = {"shared": (3,), "grouped": (2, 3)}.get(reference, (2,))
    shapes = {"x": (2, *sample)} | ({} if reference == "zeros" else {"x_reference": (*lead, *sample)})
    static = rewrite(model, **options, shapes=shapes)
    onnx.checker.check_model(static, full_check=True)
    assert all(isinstance(dim, int) for shape in dims(static).values() for dim in shape)
    assert not ON_SHAPES.intersection(node.op_type for node in all_nodes(static.graph))
    assert any("control flow" in note for note in notes(static)) == (name == "recurrent")
    feed = {name: floats(*shape) for name, shape in shapes.items()}
    wanted, got = laws.run(rewrite(model, **options), feed), laws.run(static, feed)
    assert got.keys() == wanted.keys()
    for output, value in wanted.items():
        np.testing.assert_allclose(got[output], value, rtol=1e-5, atol=1e-6)


def two_inputs() -> onnx.ModelProto:
    body = "s = Shape (m) e = Expand (m, s) c = Mul (x, e) z = ReduceSum <keepdims = 0> (c, last) y = MatMul (z, w)"
    inputs = "float[N, T, 4] x, float[N, T, 1] m"
    return parse(body, inputs, "float[N, 2] y", last=np.int64([1]), w=floats(4, 2))


def test_a_symbol_of_two_inputs_has_one_size() -> None:
    static = rewrite(two_inputs(), inputs=["x"], target=0, shapes={"x": (2, 5, 4)})
    assert dims(static)["m"] == [2, 5, 1]
    assert dims(static)["x_contributions"] == [2, 5, 4]
    assert not ON_SHAPES.intersection(ops(static))
    assert notes(static) == []


def test_what_is_left_dynamic_is_said() -> None:
    body = "a = Relu (x) b = ReduceSum <keepdims = 0> (k, last) c = MatMul (a, w) y = Add (c, b)"
    model = parse(body, "float[N, 4] x, float[M, 1] k", "float[N, 2] y", last=np.int64([0]), w=floats(4, 2))
    static = rewrite(model, inputs=["x"], target=0, reference="shared", shapes={"x": (2, 4)})
    assert notes(static) == [
        "input 'k' is still dynamic, [M, 1]: give its shape too",
        "input 'x_reference' is still dynamic, [references, 4]: give its shape too",
    ]
    x, k, r = floats(2, 4), floats(3, 1), floats(5, 4)
    got = laws.run(static, {"x": x, "k": k, "x_reference": r})
    wanted = rewrite(model, inputs=["x"], target=0, reference="shared")
    np.testing.assert_allclose(
        got["x_contributions"], laws.run(wanted, {"x": x, "k": k, "x_reference": r})["x_contributions"], rtol=1e-5
    )


def test_the_number_of_shuffles_is_known() -> None:
    model = parse(
        "a = Relu (x) f = Flatten (a) y = MatMul (f, w)", "float[N, 4, 6] x", "float[N, 2] y", w=floats(24, 2)
    )
    options: dict[str, Any] = {"target": 0, "reference": "shuffle:3"}
    static = rewrite(model, **options, shapes={"x": (2, 4, 6)})
    assert dims(static)["x_reference"] == [2, 3, 4, 6]
    with pytest.raises(OptionError, match="gives 4 references, but reference='shuffle:3' makes 3"):
        rewrite(model, **options, shapes={"x": (2, 4, 6), "x_reference": (2, 4, 4, 6)})


def test_a_last_batch_is_filled_up() -> None:
    model = parse("a = Relu (x) y = MatMul (a, w)", outputs="float[N, 2] y", w=floats(4, 2))
    x, r = floats(5, 4), floats(3, 4)
    options: dict[str, Any] = {"target": 0, "reference": "shared"}
    fixed = Explainer(model, **options, shapes={"x": (2, 4), "x_reference": (3, 4)})
    wanted = Explainer(model, **options)(x, reference=r).contributions["x"]
    np.testing.assert_allclose(fixed(x, reference=r).contributions["x"], wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(DataError, match=r"input 'x_reference' has shape \[2, 4\], expected \[3, 4\]"):
        fixed(x, reference=r[:2])


def test_weights_beside_the_model_are_not_read(tmp_path: Any) -> None:
    model, beside = cnn("float"), onnx.ModelProto()
    beside.CopyFrom(model)
    onnx.save(beside, tmp_path / "m.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    shapes = {"x": (2, 3, 13, 13)}
    rewrite_file(tmp_path / "m.onnx", tmp_path / "e.onnx", target=0, reference="zeros", shapes=shapes)
    x = floats(2, 3, 13, 13)
    got = laws.run(onnx.load(tmp_path / "e.onnx"), {"x": x})
    wanted = laws.run(rewrite(model, target=0, reference="zeros"), {"x": x})
    np.testing.assert_allclose(got["x_contributions"], wanted["x_contributions"], rtol=1e-5, atol=1e-6)


def test_only_the_types_of_the_models_own_tensors_are_stated() -> None:
    names = {value.name for value in rewrite(cnn("float"), target=0).graph.value_info}
    static = rewrite(cnn("float"), target=0, shapes={"x": (2, 3, 13, 13)})
    assert {value.name for value in static.graph.value_info} <= names


REFUSED: dict[str, tuple[Any, str]] = {
    "name": ({"z": (1,)}, "`shapes` names 'z', but the inputs of the model are 'm', 'x'"),
    "reference": ({"x_reference": (1, 2, 4)}, "with reference='zeros' the inputs of the explainer are 'x', 'm'"),
    "rank": ({"x": (2, 5)}, r"`shapes` gives \[2, 5\] for input 'x', whose shape is \[N, T, 4\]"),
    "fixed": ({"x": (2, 5, 3)}, "`shapes` gives 3 for axis 2 of input 'x', which is 4 in the model"),
    "symbol": ({"x": (2, 5, 4), "m": (2, 6, 1)}, "6 for axis 1 of input 'm', which is 5 elsewhere in `shapes`"),
    "zero": ({"x": (0, 5, 4)}, "a list of positive ints for input 'x'"),
    "text": ({"x": "2,5,4"}, "a list of positive ints for input 'x', not '2,5,4'"),
    "no mapping": ([2, 5, 4], "`shapes` must map input names to lists of ints"),
}


@pytest.mark.parametrize(("shapes", "message"), REFUSED.values(), ids=REFUSED)
def test_shapes_that_do_not_fit_are_refused(shapes: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        rewrite(two_inputs(), inputs=["x"], target=0, reference="zeros", shapes=shapes)


def test_an_input_of_unknown_rank_is_refused() -> None:
    model = parse("y = Relu (x)", "float x", "float y")
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(OptionError, match="input 'x' has no shape"):
        rewrite(model, shapes={"x": (2,)})


def test_the_normal_form_replaces_symbols() -> None:
    model = parse("s = Shape (x) r = Relu (x) y = Reshape (r, s)", "float[N, T] x", "float[N, T] y")
    fixed = normal_form(model, sizes={"N": 2, "T": 3})
    assert dims(fixed) == {"x": [2, 3], "y": [2, 3]}
    assert ops(fixed) == ["Relu", "Reshape"]
    assert dims(normal_form(model, sizes={"T": 3})) == {"x": ["N", 3], "y": ["N", 3]}
