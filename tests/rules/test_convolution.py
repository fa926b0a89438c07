"""Convolutions: every geometry, static and dynamic sizes, and what the explainer's file contains."""

from __future__ import annotations

import itertools

import laws
import numpy as np
import onnx
import pytest

import onnxlift
from onnxlift.rules.convolution import FEW_CHANNELS

MANY = FEW_CHANNELS  # input channels from which on stride 1 becomes a convolution

# input channels and sizes; shape of the weight; attributes
Case = tuple[tuple[int, ...], tuple[int, ...], str]
CONV: list[Case] = [
    ((2, 7), (3, 2, 3), "group = 1"),
    ((2, 7), (3, 2, 3), "pads = [2, 0]"),
    ((2, 7), (3, 2, 1), "pads = [1, 2]"),  # padding that only the bias sees
    ((2, 8), (3, 2, 3), "strides = [3], dilations = [2]"),
    ((2, 11), (4, 1, 3), "strides = [4], pads = [2, 1], group = 2"),
    ((2, 9), (3, 2, 1), "strides = [3]"),  # most places unseen
    ((2, 9), (3, 2, 9), "group = 1"),
    ((2, 7, 6), (3, 2, 3, 2), "kernel_shape = [3, 2], pads = [0, 1, 2, 0]"),
    ((2, 8, 9), (3, 2, 3, 3), "strides = [2, 2], pads = [1, 1, 1, 1]"),
    ((2, 8, 9), (3, 2, 3, 4), "strides = [3, 2], pads = [0, 2, 1, 0]"),
    ((2, 8, 9), (3, 2, 2, 2), "strides = [2, 2]"),
    ((2, 9, 8), (3, 2, 2, 3), "strides = [1, 2], dilations = [2, 1], pads = [1, 0, 0, 2]"),
    ((6, 5, 4), (9, 2, 2, 3), "group = 3, pads = [0, 1, 1, 1]"),
    ((4, 7, 5), (4, 1, 3, 3), "group = 4, strides = [2, 2], pads = [1, 1, 1, 1]"),
    ((2, 4, 5, 3), (3, 2, 2, 3, 1), "strides = [1, 2, 1], pads = [1, 0, 0, 0, 1, 1]"),
    ((2, 8, 7), (3, 2, 3, 3), 'auto_pad = "VALID", strides = [2, 1]'),
    *(
        ((2, 8, 7), (3, 2, 3, kernel), f'auto_pad = "SAME_{side}", strides = [{stride}, {stride}]')
        for side, kernel, stride in itertools.product(("UPPER", "LOWER"), (1, 2, 4), (1, 2, 3))
    ),
    # the transpose is a convolution
    ((MANY, 7), (2, MANY, 3), "pads = [0, 1]"),
    ((MANY, 5, 6), (2, MANY, 3, 1), "pads = [1, 0, 2, 0]"),
    ((MANY, 5, 6), (2, MANY, 1, 1), "group = 1"),
    ((MANY, 5, 6), (2, MANY, 1, 1), "pads = [1, 0, 0, 1]"),  # ... but not here
    ((MANY, 7, 6), (3, MANY, 2, 3), "dilations = [3, 2], pads = [1, 2, 3, 4]"),
    ((2 * MANY, 5, 4), (6, MANY, 2, 3), "group = 2, pads = [0, 1, 1, 1]"),
    ((3, 6, 5), (3, 1, 3, 3), "group = 3, pads = [1, 1, 1, 1]"),
    ((3, 6, 5), (3, 1, 1, 1), "group = 3"),
    ((MANY, 6, 5), (2, MANY, 3, 4), 'auto_pad = "SAME_LOWER"'),
    ((MANY, 4, 3, 3), (2, MANY, 2, 2, 2), "pads = [0, 0, 1, 1, 0, 0]"),
]
TRANSPOSE: list[Case] = [
    ((2, 5), (2, 3, 3), "group = 1"),
    ((2, 5), (2, 3, 3), "pads = [2, 1]"),
    ((2, 5), (2, 3, 2), "strides = [3]"),  # gaps
    ((2, 5), (2, 3, 3), "strides = [2], output_padding = [1]"),
    ((2, 5), (2, 3, 3), "strides = [3], dilations = [4], output_padding = [2], pads = [1, 0]"),
    ((2, 5), (2, 3, 3), "strides = [2], dilations = [2], pads = [0, 6]"),
    ((4, 5), (4, 2, 3), "strides = [2], group = 2"),
    ((3, 4, 5), (3, 1, 3, 2), "strides = [2, 1], group = 3, pads = [0, 1, 1, 0]"),
    ((2, 4, 5), (2, 3, 3, 3), "strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]"),
    ((2, 3, 4, 2), (2, 2, 2, 3, 2), "strides = [2, 1, 2], dilations = [1, 2, 1]"),
    *(
        ((2, 4, 5), (2, 3, 3, kernel), f'auto_pad = "SAME_{side}", strides = [{stride}, {stride}]')
        for side, kernel, stride in itertools.product(("UPPER", "LOWER"), (1, 2, 4), (1, 2, 3))
        if kernel >= stride
    ),
    ((2, 4, 5), (2, 3, 3, 3), 'auto_pad = "VALID", strides = [2, 1]'),
]
OUTPUT_SHAPE: list[Case] = [  # sizes that ONNX cannot tell for a dynamic input
    ((2, 4, 5), (2, 3, 3, 2), f"strides = [2, 3], output_shape = [{height}, {width}]{same}")
    for height, width in ((8, 13), (9, 14), (7, 15), (10, 16))
    for same in ("", ', auto_pad = "SAME_UPPER"', ', auto_pad = "SAME_LOWER"')
]
OPERATORS = ("Conv", "ConvTranspose")
LETTERS = "CHWD"


def model(op: str, case: Case, sizes: str = "static", dtype: str = "float") -> onnx.ModelProto:
    """`y = op (x, w, b)`; sizes: static, all static (the batch too), or dynamic."""
    shape, weight, attributes = case
    kind = np.float16 if dtype == "float16" else np.float32
    rng = np.random.default_rng(1)
    group = int(attributes.split("group = ")[1].split(",")[0]) if "group" in attributes else 1
    outputs = weight[0] if op == "Conv" else weight[1] * group
    x = ", ".join(
        [
            "3" if sizes == "all static" else "N",
            str(shape[0]),
            *(LETTERS[axis] if sizes == "dynamic" else str(size) for axis, size in enumerate(shape) if axis),
        ]
    )
    y = ", ".join(["N", str(outputs), *(f"Y{axis}" for axis in range(1, len(shape)))])
    return laws.model(
        f"g ({dtype}[{x}] x) => ({dtype}[{y}] y) {{ y = {op} <{attributes}> (x, w, b) }}",
        w=rng.standard_normal(weight).astype(kind),
        b=rng.standard_normal(outputs).astype(kind),
    )


def data(case: Case, dtype: type = np.float32) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(2)
    x, r = rng.standard_normal((2, 3, *case[0])).astype(dtype)
    return {"x": x}, {"x": r}


@pytest.mark.parametrize("sizes", ["static", "dynamic"])
@pytest.mark.parametrize("case", CONV, ids=str)
def test_conv(case: Case, sizes: str) -> None:
    laws.check(model("Conv", case, sizes), *data(case))


@pytest.mark.parametrize("sizes", ["static", "dynamic"])
@pytest.mark.parametrize("case", TRANSPOSE, ids=str)
def test_conv_transpose(case: Case, sizes: str) -> None:
    laws.check(model("ConvTranspose", case, sizes), *data(case))


@pytest.mark.parametrize("case", OUTPUT_SHAPE, ids=str)
def test_conv_transpose_with_output_shape(case: Case) -> None:
    laws.check(model("ConvTranspose", case), *data(case))


GEOMETRIES = list(itertools.product((1, 3), (1, 2, 3), (1, 2), ((0, 0), (1, 2), (3, 0)), (7, 8)))


@pytest.mark.parametrize("channels", [2, MANY])
@pytest.mark.parametrize("sizes", ["static", "dynamic"])
def test_every_one_dimensional_geometry(channels: int, sizes: str) -> None:
    for kernel, stride, dilation, (begin, end), size in GEOMETRIES:
        attributes = f"strides = [{stride}], dilations = [{dilation}], pads = [{begin}, {end}]"
        case = (channels, size), (2, channels, kernel), attributes
        laws.check(model("Conv", case, sizes), *data(case), references=False)


@pytest.mark.parametrize("sizes", ["static", "dynamic"])
@pytest.mark.parametrize(
    ("op", "case"),
    [(op, case) for op, cases in (("Conv", CONV[:17]), ("ConvTranspose", TRANSPOSE[:10])) for case in cases],
    ids=str,
)
def test_computed_weights(op: str, case: Case, sizes: str) -> None:
    """The midpoint rule: weight and bias are inputs that differ from their references too."""
    fixed = model(op, case, sizes)
    computed = onnx.ModelProto()
    computed.CopyFrom(fixed)
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in fixed.graph.initializer}
    del computed.graph.initializer[:]
    for name, value in weights.items():
        computed.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, value.shape))
    x, r = data(case)
    laws.check(computed, {**x, **weights}, {**r, **{name: value[::-1] * 0.5 for name, value in weights.items()}})


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("weight", ["w = Mul (v, v)", "w = Identity (v)", "w = Mul (v, s)"])
def test_weights_that_are_no_initializers(weight: str, stride: int) -> None:
    """Computed from constants, or from an input that is the same in both runs."""
    rng = np.random.default_rng(3)
    x, r = rng.standard_normal((2, 3, MANY, 6, 5)).astype(np.float32)
    node_model = laws.model(
        f"g (float[N, {MANY}, 6, 5] x, float[1] s) => (float[N, 2, A, B] y) {{"
        f"{weight} y = Conv <strides = [{stride}, {stride}], pads = [1, 1, 1, 1]> (x, w) }}",
        v=rng.standard_normal((2, MANY, 3, 3)).astype(np.float32),
    )
    laws.check(node_model, {"x": x}, {"x": r}, others={"s": np.float32([2])})


@pytest.mark.parametrize("case", [CONV[8], CONV[9], CONV[12], CONV[15], CONV[-9], CONV[-7]], ids=str)
@pytest.mark.parametrize("sizes", ["static", "all static"])
def test_known_sizes_leave_no_arithmetic_and_the_weight_is_stored_once(case: Case, sizes: str) -> None:
    channels, weight = 64 * case[0][0], (64 * case[1][0], case[1][1] if "group" in case[2] else 64 * case[1][1])
    attributes = case[2]
    if "group" in attributes:
        group = int(attributes.split("group = ")[1].split(",")[0])
        attributes = attributes.replace(f"group = {group}", f"group = {64 * group}")
    large = (channels, *case[0][1:]), (*weight, *case[1][2:]), attributes
    plain = model("Conv", large, sizes)
    explainer = onnxlift.rewrite(plain, target="weights")
    assert len(explainer.SerializeToString()) < 1.1 * len(plain.SerializeToString()) + 8000
    backward = [node for node in explainer.graph.node if "Conv_0/multiplier" in node.name]
    assert {node.op_type for node in backward} <= set("Conv ConvTranspose Slice Pad Transpose Reshape".split())
    assert sum(node.op_type in ("Conv", "ConvTranspose", "Pad") for node in backward) <= 2
    if sizes == "all static":
        assert "Shape" not in {node.op_type for node in explainer.graph.node}


@pytest.mark.parametrize(
    ("channels", "strides", "group", "expected"),
    [(MANY, 1, 1, "Conv"), (2, 1, 1, "ConvTranspose"), (MANY, 2, 1, "ConvTranspose"), (3, 1, 3, "Conv")],
)
def test_the_faster_form(channels: int, strides: int, group: int, expected: str) -> None:
    case = (channels, 6), (6 if group == 1 else group, channels // group, 3), f"group = {group}, strides = [{strides}]"
    explainer = onnxlift.rewrite(model("Conv", case), target="weights")
    assert [node.op_type for node in explainer.graph.node if "Conv" in node.op_type][2:] == [expected]


@pytest.mark.parametrize("case", [CONV[8], CONV[12], CONV[-9]], ids=str)
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_half_precision(op: str, case: Case) -> None:
    if op == "ConvTranspose":
        case = TRANSPOSE[7]
    laws.check(model(op, case, dtype="float16"), *data(case, np.float16), rtol=4e-3)


def test_layers_on_top_of_each_other() -> None:
    """A symmetric encoder and decoder of sizes that are known at run time only."""
    rng = np.random.default_rng(4)
    weights = {
        f"w{i}": rng.standard_normal(s).astype(np.float32) for i, s in enumerate([(4, 1, 5), (4, 4, 3), (4, 2, 4)])
    }
    node_model = laws.model(
        """g (float[N, 1, L] x) => (float[N, 2, M] y) {
            a = Conv <strides = [2], pads = [2, 1]> (x, w0)
            b = Relu (a)
            c = Conv <auto_pad = "SAME_LOWER", strides = [3]> (b, w1)
            d = Tanh (c)
            y = ConvTranspose <strides = [3], pads = [1, 0], output_padding = [2]> (d, w2)
        }""",
        **weights,
    )
    for length in (16, 17, 18):
        x, r = rng.standard_normal((2, 3, 1, length)).astype(np.float32)
        laws.check(node_model, {"x": x}, {"x": r})


@pytest.mark.parametrize(
    ("op", "case", "sizes", "reason"),
    [
        ("Conv", ((2, 6), (3, 2, 3), "pads = [-1, 1]"), "static", "negative pads"),
        ("ConvTranspose", ((2, 6), (2, 3, 3), "pads = [-1, 1]"), "static", "negative pads"),
        ("ConvTranspose", ((2, 6), (2, 3, 3), "output_shape = [7]"), "dynamic", "known at run time only"),
        (
            "ConvTranspose",
            ((2, 6), (2, 3, 1), 'auto_pad = "SAME_UPPER", strides = [2]'),
            "static",
            "smaller than ONNX's shape inference",
        ),
    ],
)
def test_refusals(op: str, case: Case, sizes: str, reason: str) -> None:
    with pytest.raises(onnxlift.RuleError, match=reason):
        onnxlift.rewrite(model(op, case, sizes), target="weights")
