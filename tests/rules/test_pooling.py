"""Average and norm pools: every geometry and divisor, against the oracle and ONNX Runtime's forward pass."""

from __future__ import annotations

import itertools

import laws
import numpy as np
import onnx
import pytest

import onnxlift

# input channels and sizes; attributes
Case = tuple[tuple[int, ...], str]
POOLS: list[Case] = [
    # side by side: repeated
    ((2, 6), "kernel_shape = [2], strides = [2]"),
    ((2, 8), "kernel_shape = [3], strides = [3]"),  # places that no window sees
    ((2, 8), "kernel_shape = [3], strides = [3], ceil_mode = 1"),
    ((2, 8), "kernel_shape = [3], strides = [3], pads = [1, 2], count_include_pad = 1"),
    ((2, 7), "kernel_shape = [3], strides = [3], pads = [2, 0]"),
    ((2, 6, 7), "kernel_shape = [2, 3], strides = [2, 3]"),
    ((2, 7, 7), "kernel_shape = [7, 7], strides = [7, 7]"),
    ((2, 5, 4), "kernel_shape = [1, 1]"),
    # at stride 1: an average pool again
    ((2, 7), "kernel_shape = [3]"),
    ((2, 7), "kernel_shape = [4], pads = [1, 3]"),
    ((2, 7), "kernel_shape = [4], pads = [1, 3], count_include_pad = 1"),
    ((2, 6, 5), "kernel_shape = [3, 3], pads = [1, 1, 1, 1]"),
    ((2, 6, 5), "kernel_shape = [3, 2], pads = [2, 0, 1, 1], count_include_pad = 1"),
    ((2, 4, 3, 5), "kernel_shape = [3, 2, 3], pads = [1, 0, 2, 1, 1, 0]"),
    # the rest: scattered
    ((2, 9), "kernel_shape = [3], strides = [2]"),
    ((2, 9), "kernel_shape = [2], strides = [3]"),
    ((2, 9), "kernel_shape = [3], dilations = [2], pads = [2, 1]"),
    ((2, 9), "kernel_shape = [3], strides = [2], dilations = [2], pads = [1, 2], count_include_pad = 1"),
    ((2, 8, 9), "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]"),
    ((2, 8, 9), "kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1"),
    ((2, 8, 9), "kernel_shape = [3, 4], strides = [2, 1], pads = [0, 2, 1, 3], ceil_mode = 1, count_include_pad = 1"),
    ((2, 4, 6, 5), "kernel_shape = [2, 2, 2], strides = [2, 2, 2]"),
    ((2, 5, 4, 4), "kernel_shape = [3, 2, 2], strides = [2, 1, 2], pads = [1, 0, 1, 1, 1, 0], ceil_mode = 1"),
    ((2, 8, 7), 'kernel_shape = [3, 2], auto_pad = "VALID", strides = [2, 1]'),
    *(
        (
            (2, 8, 7),
            f'kernel_shape = [{k}, {k}], auto_pad = "SAME_{side}", strides = [{s}, {s}], count_include_pad = {p}',
        )
        for side, k, s, p in itertools.product(("UPPER", "LOWER"), (3, 4), (1, 2, 3), (0, 1))
    ),
    ((2, 4), "kernel_shape = [2], strides = [2], pads = [0, 1], ceil_mode = 1"),  # the last window would start outside
]
OPERATORS = ("AveragePool", "GlobalAveragePool", "GlobalLpPool", "LpPool")
LETTERS = "CHWD"


def model(op: str, case: Case, sizes: str = "static", dtype: str = "float") -> onnx.ModelProto:
    """`y = op (x)`; sizes: static, dynamic (all of them symbolic, channels too), or all static."""
    shape, attributes = case
    x = [LETTERS[axis] if sizes == "dynamic" else str(size) for axis, size in enumerate(shape)]
    y = [x[0], *(f"Y{axis}" for axis in range(1, len(shape)))]
    batch = "3" if sizes == "all static" else "N"
    text = f"g ({dtype}[{', '.join([batch, *x])}] x) => ({dtype}[{', '.join([batch, *y])}] y)"
    return laws.model(f"{text} {{ y = {op} {f'<{attributes}>' if attributes else ''} (x) }}")


def data(case: Case, dtype: type = np.float32) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(2)
    x, r = rng.standard_normal((2, 3, *case[0])).astype(dtype)
    return {"x": x}, {"x": r}


@pytest.mark.parametrize("sizes", ["static", "dynamic", "all static"])
@pytest.mark.parametrize("case", POOLS, ids=str)
def test_average_pool(case: Case, sizes: str) -> None:
    laws.check(model("AveragePool", case, sizes), *data(case), references=sizes != "all static")


@pytest.mark.parametrize("sizes", ["static", "dynamic"])
@pytest.mark.parametrize("places", [(4,), (3, 4), (2, 3, 4)], ids=str)
def test_global_average_pool(places: tuple[int, ...], sizes: str) -> None:
    case = (2, *places), ""
    laws.check(model("GlobalAveragePool", case, sizes), *data(case))


GEOMETRIES = list(itertools.product((1, 2, 3), (1, 2, 3, 4), (1, 2), ((0, 0), (1, 0), (1, 2)), (0, 1), (0, 1), (6, 7)))
SAME = list(itertools.product(("UPPER", "LOWER"), (1, 2, 3), (1, 2, 3), (0, 1), (6, 7)))


def attributes() -> list[str]:
    """Paddings are smaller than the kernel in ONNX Runtime."""
    explicit = [
        f"kernel_shape = [{k}], strides = [{s}], dilations = [{d}], pads = [{b}, {e}], ceil_mode = {c}, "
        f"count_include_pad = {i}|{n}"
        for k, s, d, (b, e), c, i, n in GEOMETRIES
        if max(b, e) < k
    ]
    same = [
        f'kernel_shape = [{k}], strides = [{s}], auto_pad = "SAME_{side}", count_include_pad = {i}|{n}'
        for side, k, s, i, n in SAME
    ]
    return explicit + same


@pytest.mark.parametrize("sizes", ["static", "dynamic"])
def test_the_divisor_is_onnx_runtimes(sizes: str) -> None:
    """The multipliers are the Jacobian of ONNX Runtime's own forward pass, unit vector by unit vector."""
    refused = []
    for spec in attributes():
        size = int(spec.split("|")[1])
        pool = model("AveragePool", ((1, size), spec.split("|")[0]), sizes)
        jacobian = laws.run(pool, {"x": np.eye(size, dtype=np.float32)[:, None]})["y"][:, 0].T
        try:
            explainer = onnxlift.rewrite(pool, target="weights", emit=("multipliers",))
        except onnxlift.RuleError as error:  # where ONNX's shape inference is wrong: see test_refusals
            refused.append(str(error))
            continue
        x = np.ones((len(jacobian), 1, size), np.float32)
        seeds = np.eye(len(jacobian), dtype=np.float32)[:, None]
        got = laws.run(explainer, {"x": x, "x_reference": -x, "target_weights": seeds})["x_multipliers"]
        np.testing.assert_allclose(got[:, 0], jacobian, rtol=0, atol=1e-6, err_msg=spec)
    assert all("shape inference" in reason for reason in refused)
    assert len(refused) <= (0.05 * len(attributes()) if sizes == "static" else 0)


@pytest.mark.parametrize("case", POOLS[:24], ids=str)
def test_known_sizes_leave_no_arithmetic(case: Case) -> None:
    explainer = onnxlift.rewrite(model("AveragePool", case, "all static"), target="weights")
    operators = {node.op_type for node in explainer.graph.node if "AveragePool_0/multiplier" in node.name}
    assert operators <= set("AveragePool ConvTranspose Resize Mul Slice Pad Reshape".split())
    assert "Shape" not in {node.op_type for node in explainer.graph.node}


@pytest.mark.parametrize("case", [POOLS[0], POOLS[11], POOLS[18]], ids=str)
def test_half_precision(case: Case) -> None:
    laws.check(model("AveragePool", case, dtype="float16"), *data(case, np.float16), rtol=4e-3)


NORMS = [(shape, text) for shape, text in POOLS if "count_include_pad" not in text]


@pytest.mark.parametrize("case", NORMS, ids=str)
@pytest.mark.parametrize("p", [1, 2, 3])
def test_lp_pool(case: Case, p: int) -> None:
    x, r = data(case)
    x["x"][0, 0], r["x"][:2, 0] = 0, 0  # windows of nothing, in either run and in both
    r["x"][2] = x["x"][2]
    laws.check(model("LpPool", (case[0], f"{case[1]}, p = {p}")), x, r, references=p == 2, rtol=2e-5)


@pytest.mark.parametrize("p", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("sizes", ["static", "dynamic"])
def test_global_lp_pool(p: int, sizes: str) -> None:
    case = (2, 3, 4), f"p = {p}"
    x, r = ({"x": arrays["x"] / 4} for arrays in data(case))
    laws.check(model("GlobalLpPool", case, sizes), x, r, rtol=2e-5)


@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_norms_are_no_steeper_than_their_places(p: int) -> None:
    values = np.float32([-3, -1e-4, 0, 1e-8, 2])
    x, r = (np.float32(list(itertools.product(values, repeat=4)))[:, k : k + 2].reshape(-1, 1, 2) for k in (0, 2))
    explainer = onnxlift.rewrite(model("GlobalLpPool", ((1, 2), f"p = {p}")), target="weights", emit=("multipliers",))
    ones = np.ones((len(x), 1, 1), np.float32)
    got = laws.run(explainer, {"x": x, "x_reference": r, "target_weights": ones})["x_multipliers"]
    assert (abs(got) <= 1 + 1e-5).all()


@pytest.mark.parametrize(
    ("case", "sizes", "reason"),
    [
        (((2, 9), 'kernel_shape = [2], dilations = [2], auto_pad = "SAME_UPPER"'), "static", "shape inference"),
        (
            ((2, 9), 'kernel_shape = [2], strides = [4], dilations = [2], auto_pad = "SAME_UPPER"'),
            "dynamic",
            "SAME padding with dilated windows",
        ),
    ],
)
def test_refusals(case: Case, sizes: str, reason: str) -> None:
    with pytest.raises(onnxlift.RuleError, match=reason):
        onnxlift.rewrite(model("AveragePool", case, sizes), target="weights")
