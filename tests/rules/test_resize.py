"""Resize: the transposed interpolation, whatever the coordinates, the borders and the way in which sizes are given."""

from __future__ import annotations

import laws
import numpy as np
import onnx
import pytest

import onnxlift
from onnxlift.rules.resize import BLOCKS

OPERATORS = ("Resize",)

MODES = ("nearest", "linear", "cubic")
COORDINATES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def images(*shape: int, dtype: type = np.float32) -> list[np.ndarray]:
    """x and r."""
    return list(np.random.default_rng(sum(shape)).standard_normal((2, *shape)).astype(dtype))


def check(
    attributes: str,
    given: dict[str, np.ndarray],
    *shape: int,
    dims: str = "",
    constant: bool = True,
    dtype: type = np.float32,
    **options: object,
) -> None:
    """The laws for images of this shape; `given`: scales, sizes or roi, constants or inputs at run time."""
    x, r = images(*shape, dtype=dtype)
    kinds = {"sizes": "int64", "scales": "float", "roi": "float"}
    values = "" if constant else "".join(f", {kinds[name]}[{len(value)}] {name}" for name, value in given.items())
    kind = "float" if dtype == np.float32 else "float16"
    names = [name if name in given else "" for name in ("roi", "scales", "sizes")]
    y = ", ".join("ABCDE"[: len(shape)])
    sizes = dims or ", ".join(map(str, ("N", *shape[1:])))
    model = laws.model(
        f"g ({kind}[{sizes}] x{values}) => ({kind}[{y}] y) {{ y = Resize <{attributes}> (x, {', '.join(names)}) }}",
        **(given if constant else {}),
    )
    if constant and not dims:
        model.graph.output[0].type.tensor_type.ClearField("shape")
        model = onnx.shape_inference.infer_shapes(model)
    laws.check(model, {"x": x}, {"x": r}, others={} if constant else given, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scales", [(1, 1, 2, 2.4), (1, 1, 0.6, 0.75)], ids=["up", "down"])
def test_coordinates(mode: str, coordinates: str, scales: tuple[float, ...]) -> None:
    attributes = f'mode = "{mode}", coordinate_transformation_mode = "{coordinates}"'
    check(attributes, {"scales": floats(*scales)}, 3, 2, 4, 5, references=coordinates == "half_pixel")


@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners", "asymmetric", "tf_half_pixel_for_nn"])
@pytest.mark.parametrize("nearest", NEAREST)
@pytest.mark.parametrize("scales", [(1, 1, 2.7, 3), (1, 1, 0.45, 0.7)], ids=["up", "down"])
def test_nearest(nearest: str, coordinates: str, scales: tuple[float, ...]) -> None:
    attributes = f'mode = "nearest", nearest_mode = "{nearest}", coordinate_transformation_mode = "{coordinates}"'
    check(attributes, {"scales": floats(*scales)}, 3, 2, 4, 5, references=False)


@pytest.mark.parametrize(("coordinates", "nearest"), sorted(BLOCKS))
@pytest.mark.parametrize("factors", [(2, 3), (4, 1), (5, 7)])
def test_blocks(coordinates: str, nearest: str, factors: tuple[int, int]) -> None:
    """What grows by whole numbers repeats every place: no matrix, and any extents."""
    attributes = f'mode = "nearest", nearest_mode = "{nearest}", coordinate_transformation_mode = "{coordinates}"'
    check(attributes, {"scales": floats(1, 1, *factors)}, 3, 2, 3, 2, dims="N, C, H, W", references=False)
    check(attributes, {"sizes": ints(3, 2, 3 * factors[0], 2 * factors[1])}, 3, 2, 3, 2, dims="3, 2, 3, 2")


def test_blocks_are_summed_by_a_pool() -> None:
    model = laws.model(
        'g (float[N, 2, H, W] x) => (float[N, 2, A, B] y) { y = Resize <mode = "nearest", nearest_mode = "floor", '
        'coordinate_transformation_mode = "asymmetric"> (x, , s) }',
        s=floats(1, 1, 2, 2),
    )
    ops = {node.op_type for node in onnxlift.rewrite(model, target="weights").graph.node}
    assert "AveragePool" in ops
    assert "MatMul" not in ops


FILTERS = (
    *('mode = "linear"', 'mode = "linear", antialias = 1', 'mode = "cubic"', 'mode = "cubic", antialias = 1'),
    *('mode = "cubic", exclude_outside = 1', 'mode = "cubic", cubic_coeff_a = -0.5'),
)


@pytest.mark.parametrize("attributes", FILTERS)
@pytest.mark.parametrize(
    "given", [{"sizes": ints(3, 2, 3, 2)}, {"scales": floats(1, 1, 0.3, 1.7)}], ids=["sizes", "scales"]
)
def test_filters(attributes: str, given: dict[str, np.ndarray]) -> None:
    check(attributes, given, 3, 2, 7, 5, references=False)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("constant", [True, False], ids=["constant", "at run time"])
def test_a_region_of_interest_and_what_lies_outside(mode: str, constant: bool) -> None:
    attributes = f'mode = "{mode}", coordinate_transformation_mode = "tf_crop_and_resize", extrapolation_value = 10.0'
    given = {"roi": floats(0, 0, 0.4, 0.6, 1, 1, 1.2, 1.7), "sizes": ints(3, 2, 3, 4)}
    check(attributes, given, 3, 2, 4, 5, dims="3, 2, 4, 5", constant=constant)
    for width in (5, 6):
        given = {"roi": floats(0.2, -0.4, 0.8, 0.9), "sizes": ints(width, 3)}
        check(f"{attributes}, axes = [3, 2]", given, 3, 2, 4, 5, dims="3, 2, 4, 5", constant=constant)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("axes", "given"),
    [
        ([2, 3], {"scales": floats(0.8, 1.5)}),
        ([3, 2], {"scales": floats(0.8, 1.5)}),
        ([-1], {"sizes": ints(7)}),
        ([3, 2], {"sizes": ints(3, 9)}),
    ],
)
@pytest.mark.parametrize("constant", [True, False], ids=["constant", "at run time"])
def test_axes(mode: str, axes: list[int], given: dict[str, np.ndarray], constant: bool) -> None:
    check(f'mode = "{mode}", axes = {axes}', given, 3, 2, 4, 5, dims="3, 2, 4, 5", constant=constant)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
@pytest.mark.parametrize("sizes", [(5, 11), (3, 2)], ids=["up", "down"])
@pytest.mark.parametrize("constant", [True, False], ids=["constant", "at run time"])
def test_aspect_ratio(mode: str, policy: str, sizes: tuple[int, int], constant: bool) -> None:
    attributes = f'mode = "{mode}", keep_aspect_ratio_policy = "{policy}", axes = [2, 3]'
    check(attributes, {"sizes": ints(*sizes)}, 3, 2, 4, 5, dims="3, 2, 4, 5", constant=constant)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["scales", "sizes"])
@pytest.mark.parametrize("dims", ["3, 2, 4, 5", "3, 2, H, W"])
def test_sizes_that_are_known_at_run_time_only(mode: str, name: str, dims: str) -> None:
    given = {"scales": floats(1, 1, 1.5, 0.6), "sizes": ints(3, 2, 6, 3)}
    check(f'mode = "{mode}"', {name: given[name]}, 3, 2, 4, 5, dims=dims, constant=False)


@pytest.mark.parametrize(
    ("mode", "shape", "scales"),
    [
        ("nearest", (5,), (1.7,)),
        ("nearest", (4,), (3,)),
        ("nearest", (2, 3), (2, 2)),
        ("nearest", (2, 3, 4), (1.5, 2, 0.5)),
        ("nearest", (2, 2, 3, 2, 2), (1, 2, 2, 1, 3)),
        ("nearest", (2, 2, 3, 2, 2), (1, 1, 2, 2, 3)),
        ("linear", (4, 5), (1.5, 0.7)),
        ("linear", (2, 4, 5, 3), (1, 1.5, 0.7, 1)),
        ("linear", (2, 2, 3, 4, 3), (1, 1, 1.5, 0.6, 2)),
        ("cubic", (4, 5), (1.5, 0.7)),
    ],
)
def test_ranks(mode: str, shape: tuple[int, ...], scales: tuple[float, ...]) -> None:
    check(f'mode = "{mode}"', {"scales": floats(*scales)}, *shape, dims=", ".join(map(str, shape)))


@pytest.mark.parametrize("mode", MODES)
def test_half_precision(mode: str) -> None:
    check(f'mode = "{mode}"', {"scales": floats(1, 1, 1.5, 0.6)}, 3, 2, 4, 5, dtype=np.float16, rtol=5e-3)


@pytest.mark.parametrize("mode", MODES)
def test_the_same_size_is_the_identity(mode: str) -> None:
    model = laws.model(
        f'g (float[N, 2, 4, 5] x) => (float[N, 2, 4, 5] y) {{ y = Resize <mode = "{mode}"> (x, , s) }}',
        s=floats(1, 1, 1, 1),
    )
    explainer = onnxlift.rewrite(model, target="weights")
    assert not {node.op_type for node in explainer.graph.node} & {"MatMul", "AveragePool", "EyeLike"}


def test_upsample_of_opset_9() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 9]> g (float[N, 2, 3, 2] x) => (float[N, 2, 6, 6] y) '
        '<float[4] s = {1, 1, 2, 3}> { y = Upsample <mode = "nearest"> (x, s) }'
    )
    (x, r), w = images(3, 2, 3, 2), images(3, 2, 6, 6)[0]
    explainer = onnxlift.rewrite(model, target="weights", emit=("multipliers",))
    got = laws.run(explainer, {"x": x, "x_reference": r, "target_weights": w})
    expected = w.reshape(3, 2, 3, 2, 2, 3).sum(axis=(3, 5))
    np.testing.assert_allclose(got["x_multipliers"], expected, rtol=1e-4, atol=1e-5)


def test_an_aspect_ratio_that_no_matrix_can_keep_is_refused() -> None:
    model = laws.model(
        'g (float[3, 2, 4, 5] x) => (float[A, B, C, D] y) { y = Resize <mode = "linear", '
        'keep_aspect_ratio_policy = "not_larger"> (x, , , s) }',
        s=ints(3, 2, 8, 9),
    )
    with pytest.raises(onnxlift.RuleError, match="it keeps the aspect ratio of"):
        onnxlift.rewrite(model, target="weights")


def test_what_sets_sizes_and_places_is_no_source() -> None:
    """Scales and regions are floats, but carry no importance; by default they are not attributed to."""
    model = laws.model(
        'g (float[3, 2, 4, 5] x, float[4] s) => (float[A, B, C, D] y) { y = Resize <mode = "linear"> (x, , s) }'
    )
    inputs = [value.name for value in onnxlift.rewrite(model, target="weights").graph.input]
    assert inputs == ["x", "s", "x_reference", "target_weights"]
    with pytest.raises(onnxlift.RuleError, match=r"\(Resize\): 's' sets what it does and depends on the attributed"):
        onnxlift.rewrite(model, inputs=["x", "s"], target="weights")
