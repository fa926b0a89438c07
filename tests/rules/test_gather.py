"""Values read at an index: multipliers go back to the places that they came from, and add up."""

from __future__ import annotations

import laws
import numpy as np
import onnx
import pytest

import onnxlift

RNG = np.random.default_rng(19)
X, R = (RNG.standard_normal((3, 4, 6)).astype(np.float32) for _ in range(2))
OPERATORS = ("Compress", "Gather", "GatherElements", "GatherND", "OneHot")


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


# (body of a graph x [N, 4, 6] -> y, the places)
TAKEN: list[tuple[str, np.ndarray]] = [
    ("y = Gather <axis = 1> (x, i)", np.array(0, np.int64)),
    ("y = Gather <axis = 2> (x, i)", np.array(-1, np.int64)),
    ("y = Gather <axis = 1> (x, i)", ints(2)),
    ("y = Gather <axis = 2> (x, i)", ints(0, 3, 3, -1)),
    ("y = Gather <axis = 1> (x, i)", np.array([[0, 1], [1, 3]], np.int64)),
    ("y = GatherElements <axis = 2> (x, i)", RNG.integers(-6, 6, (3, 4, 2))),
    ("y = GatherND <batch_dims = 1> (x, i)", RNG.integers(0, 4, (3, 2, 1))),
    ("y = GatherND <batch_dims = 1> (x, i)", RNG.integers(-4, 4, (3, 5, 2))),
    ("y = GatherND <batch_dims = 2> (x, i)", RNG.integers(-6, 6, (3, 4, 1))),
    ("y = Compress <axis = 1> (x, i)", np.array([True, False, True, True])),
    ("y = Compress <axis = -1> (x, i)", np.array([False, True])),
]


@pytest.mark.parametrize(("body", "places"), TAKEN, ids=[f"{n}: {body}" for n, (body, _) in enumerate(TAKEN)])
@pytest.mark.parametrize("sizes", ["N, 4, 6", "N, C, L", "3, 4, 6"])
def test_values_taken_from_constant_places(body: str, places: np.ndarray, sizes: str) -> None:
    if places.ndim == 3:  # those of exactly three samples
        sizes = sizes.replace("N", "3")
    model = laws.model(f"g (float[{sizes}] x) => (float y) {{ {body} }}", i=places)
    laws.check(model, {"x": X}, {"x": R}, references=sizes[0] == "N")


@pytest.mark.parametrize(("body", "places"), TAKEN, ids=[f"{n}: {body}" for n, (body, _) in enumerate(TAKEN)])
def test_values_taken_from_places_that_another_input_gives(body: str, places: np.ndarray) -> None:
    kind = "bool" if places.dtype == bool else "int64"
    dims = [*["N"][: places.ndim == 3], *places.shape[places.ndim == 3 :]]
    given = f"{kind}[{', '.join(map(str, dims))}] i" if dims else f"{kind} i"
    model = laws.model(f"g (float[N, 4, 6] x, {given}) => (float y) {{ {body} }}")
    laws.check(model, {"x": X}, {"x": R}, others={"i": places}, references=places.ndim == 3)


@pytest.mark.parametrize("kept", [[True, False, True], [False] * 5 + [True] * 40 + [False] * 10])
def test_compress_of_all_axes(kept: list[bool]) -> None:
    model = laws.model("g (float[3, 4, 6] x) => (float[K] y) { y = Compress (x, i) }", i=np.array(kept))
    laws.check(model, {"x": X}, {"x": R})


def test_compress_by_the_data_is_refused() -> None:
    model = laws.model(
        "g (float[6] x) => (float[K] y) { c = Greater (x, zero) y = Compress (x, c) }", zero=np.float32(0)
    )
    with pytest.raises(onnxlift.RuleError, match="'Compress_1'"):
        onnxlift.rewrite(model, target="weights")


@pytest.mark.parametrize(("sizes", "shape"), [("N, 4, 6", (3, 4, 6)), ("3, C", (3, 5)), ("K", (5,))])
def test_array_feature_extractor(sizes: str, shape: tuple[int, ...]) -> None:
    """As Gather along the last axis; a vector becomes a row."""
    places = ints(4, 0, 0)
    node = onnx.helper.make_node("ArrayFeatureExtractor", ["x", "i"], ["y"], domain="ai.onnx.ml")
    model = laws.model(f"g (float[{sizes}] x) => (float y) {{ y = Gather <axis = -1> (x, i) }}", i=places)
    model.graph.node[0].CopyFrom(node)
    model.graph.output[0].type.tensor_type.ClearField("shape")  # without one the parser makes it a scalar
    model.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 3))
    x, r, w = (RNG.standard_normal(size).astype(np.float32) for size in (shape, shape, (*(shape[:-1] or (1,)), 3)))
    explainer = onnxlift.rewrite(model, target="weights", emit=("contributions", "multipliers"))
    got = laws.run(explainer, {"x": x, "x_reference": r, "target_weights": w})
    expected = np.zeros(shape)
    for k, place in enumerate(places):
        expected[..., place] += w.reshape(*shape[:-1], 3)[..., k]
    np.testing.assert_allclose(got["x_multipliers"], expected, rtol=1e-6)
    laws.check_signed(model, {"x": x}, {"x": r})


@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("kind", ["int64", "float32"])
@pytest.mark.parametrize("constant", [True, False], ids=["constant", "at run time"])
def test_one_hot_sums_for_its_two_values(axis: int, kind: str, constant: bool) -> None:
    """Places out of range are nowhere, negative ones count from the end."""
    places, depth = np.array([[0, 3, -1], [7, 3, -5], [1, 1, 2]]), np.array(4)
    given = {name: value.astype(np.dtype(kind)) for name, value in (("i", places), ("d", depth))}
    kind = kind.removesuffix("32")
    inputs = "" if constant else f", {kind}[3, 3] i, {kind} d"
    model = laws.model(
        f"g (float[2] v{inputs}) => (float[A, B, C] y) {{ y = OneHot <axis = {axis}> (i, d, v) }}",
        **(given if constant else {}),
    )
    x, r = np.float32([0.5, 2]), np.float32([-1, 0.25])
    laws.check(model, {"v": x}, {"v": r}, others={} if constant else given, references=False)
