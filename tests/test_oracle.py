"""The oracle itself: examples worked out by hand, the conservation law, and the limit x = r."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import oracle
import pytest
from onnx import TensorProto, helper, numpy_helper
from oracle import (
    PLAIN_UNARY,
    Array,
    Unary,
    check_node_conservation,
    erf,
    explain,
    forward,
    log_of_logarithmic_mean,
    secant,
    share_maximum,
)

OPSET = 21
ONE = np.ones(())


def model(nodes: list[onnx.NodeProto], constants: dict[str, Any] | None = None, opset: int = OPSET) -> onnx.ModelProto:
    """A model around `nodes`: what nobody makes is a graph input, the last node's outputs are the graph's."""
    constants = constants or {}
    made = {name for node in nodes for name in node.output}
    fed = dict.fromkeys(n for node in nodes for n in node.input if n and n not in made and n not in constants)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in fed],
        [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in nodes[-1].output],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def node(op: str, inputs: str, outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(","), outputs.split(","), **attributes)


def contributions(
    m: onnx.ModelProto, x: dict[str, Any], r: dict[str, Any], output: str = "y", **options: Any
) -> dict[str, list[Any]]:
    """Contributions as lists, for a seed of ones."""
    x = {name: np.asarray(value, dtype=np.float64) for name, value in x.items()}
    r = {name: np.asarray(value, dtype=np.float64) for name, value in r.items()}
    result = explain(m, x, r, inputs=list(r), output=output, seed=ONE, **options)
    return {name: np.round(c, 12).tolist() for name, c in result.contributions.items()}


# --- by hand ---
def test_min_as_relu_gives_rescale_zero_one() -> None:
    """METHOD 3: min(a, b) = a - relu(a - b) at (2, 1) from 0: Rescale (0, 1)."""
    m = model([node("Sub", "a,b", "d"), node("Relu", "d", "h"), node("Sub", "a,h")])
    assert contributions(m, {"a": [2], "b": [1]}, {"a": [0], "b": [0]}) == {"a": [0], "b": [1]}


def test_saturated_sigmoid_of_a_sum() -> None:
    """LIFTPAD 2.4: 100 alone gets 0.5, two of them 0.25 each."""
    m = model([node("Add", "a,b", "s"), node("Sigmoid", "s")])
    assert contributions(m, {"a": [100], "b": [0]}, {"a": [0], "b": [0]}) == {"a": [0.5], "b": [0]}
    assert contributions(m, {"a": [100], "b": [100]}, {"a": [0], "b": [0]}) == {"a": [0.25], "b": [0.25]}


@pytest.mark.parametrize("ties", ["shared", "first"])
def test_overlapping_max_pool(ties: str) -> None:
    """x = (1, 5, 2), r = (0, 2, 4), windows (0, 1) and (1, 2): shares of several windows accumulate.

    Window 0: y = 5, y0 = 2, both at place 1: factor 1. Window 1: y = 5, y0 = 4: k = 5, the share 5 - 4 goes
    to place 1 with dx = 3: factor 1/3. Contributions: (1 + 1/3) * 3 = 4 = (5 - 2) + (5 - 4).
    """
    m = model([node("MaxPool", "x", kernel_shape=[2])])
    x, r = {"x": [[[1, 5, 2]]]}, {"x": [[[0, 2, 4]]]}
    assert contributions(m, x, r, ties=ties) == {"x": [[[0, 4, 0]]]}
    # Falling maximum: window 1 from 6 to 5. k = 6: the share y - k = -1 goes to r's argmax, dx = 2 - 6.
    assert contributions(m, x, {"x": [[[0, 2, 6]]]}, ties=ties) == {"x": [[[0, 3, -1]]]}


def test_ties_on_a_uniform_reference() -> None:
    """METHOD 4: at a uniform reference "shared" is DFD's rule (factor 1); "first" agrees where y rises."""
    m = model([node("ReduceMax", "x,axes", keepdims=0)], {"axes": np.array([1])})
    x, r = {"x": [[1.0, 3.0]]}, {"x": [[0.0, 0.0]]}
    assert contributions(m, x, r, ties="shared") == {"x": [[0, 3]]}
    assert contributions(m, x, r, ties="first") == {"x": [[0, 3]]}
    low = {"x": [[-3.0, -1.0]]}
    assert contributions(m, low, r, ties="shared") == {"x": [[0, -1]]}
    assert contributions(m, low, r, ties="first") == {"x": [[-1, 0]]}


def test_argmax_of_x_is_the_original_rule_and_incomplete() -> None:
    m = model([node("ReduceMax", "x,axes", keepdims=0)], {"axes": np.array([1])})
    x, r = np.array([[1.0, 3.0]]), np.array([[2.0, 0.0]])
    result = explain(m, {"x": x}, {"x": r}, inputs=["x"], output="y", seed=ONE, ties="argmax_x")
    assert result.multipliers["x"].tolist() == [[0, 1]]
    assert result.contributions["x"].tolist() == [[0, 3]]
    assert result.gap == -2


def test_share_maximum_by_hand() -> None:
    """One winner per window, never two, and nothing is divided by 0."""
    assert share_maximum([3, 1], [0, 2], 1.0, "shared") == {0: 1 / 3}
    assert share_maximum([1, 3], [4, 0], 1.0, "shared") == {0: 1 / 3}
    assert share_maximum([2, 2], [2, 2], 1.0, "shared") == {0: 1.0}
    assert share_maximum([3, 1], [1, 3], 1.0, "shared") == {}
    assert share_maximum([1, 3], [3, 3], 1.0, "first") == {}
    assert share_maximum([1, 3], [3, 3], 1.0, "shared") == {1: 1.0}


def test_max_and_min_of_operands() -> None:
    """max(2, 0) from (-1, 0): like relu. min(x) = -max(-x)."""
    assert contributions(model([node("Max", "a,b")]), {"a": [2], "b": [0]}, {"a": [-1], "b": [0]}) == {
        "a": [2],
        "b": [0],
    }
    # min(2, 1) from (0, 3) is -max: (-2, -1) from (0, -3): y = -1 at b, y0 = 0 at a, k = 0: all to a.
    assert contributions(model([node("Min", "a,b")]), {"a": [2], "b": [1]}, {"a": [0], "b": [3]}) == {
        "a": [1],
        "b": [0],
    }


def test_product_and_quotient_by_midpoints() -> None:
    """METHOD 5: a*b at (3, 5) from (1, 1): 2 * (5 + 1)/2 = 6 and 4 * (3 + 1)/2 = 8.

    a/b, from 1 to 3/5 with midpoint 4/5: da = 2 and db = 4 are divided by b's midpoint 3. Where b changes sign, at
    (3, -5), da gets (-1/5 + 1)/2 and db -(3 + 1)/(2 * -5).
    """
    x, r = {"a": [3], "b": [5]}, {"a": [1], "b": [1]}
    assert contributions(model([node("Mul", "a,b")]), x, r) == {"a": [6], "b": [8]}
    quotient = contributions(model([node("Div", "a,b")]), x, r)
    assert quotient == {"a": [pytest.approx(2 / 3)], "b": [pytest.approx(-4 * 0.8 / 3)]}
    assert contributions(model([node("Div", "a,b")]), {"a": [3], "b": [-5]}, r) == {"a": [0.8], "b": [-2.4]}


def test_square_is_one_function() -> None:
    """x * x, Pow(x, 2) and ReduceSumSquare have the multiplier x + x0: the complete one is unique."""
    x, r = {"x": [3.0]}, {"x": [-1.0]}
    two = {"p": np.array(2.0)}
    for m in (
        model([node("Mul", "x,x")]),
        model([node("Pow", "x,p")], two),
        model([node("ReduceSumSquare", "x")]),
    ):
        result = explain(m, {"x": np.array([3.0])}, {"x": np.array([-1.0])}, inputs=["x"], output="y", seed=ONE)
        assert result.multipliers["x"].tolist() == [2.0]
    assert contributions(model([node("Mul", "x,x")]), x, r) == {"x": [8]}


def test_softmax_of_two_adds_up_to_the_sigmoid() -> None:
    """softmax(x)_1 = sigmoid(x_1 - x_0); adding one constant to x and r changes nothing."""
    m = model([node("Softmax", "x", "s")])
    x, r = np.array([0.3, 1.7]), np.array([-0.2, 0.4])
    result = explain(m, {"x": x}, {"x": r}, inputs=["x"], output="s", seed=np.array([0.0, 1.0]))
    dy = 1 / (1 + math.exp(-1.4)) - 1 / (1 + math.exp(-0.6))
    assert result.contributions["x"].sum() == pytest.approx(dy, rel=1e-13)
    shifted = explain(m, {"x": x + 900}, {"x": r + 900}, inputs=["x"], output="s", seed=np.array([0.0, 1.0]))
    np.testing.assert_allclose(shifted.multipliers["x"], result.multipliers["x"], rtol=1e-11)


def test_softmax_mask_and_large_logits() -> None:
    """METHOD 6: a logit that is -inf in both runs gets 0, and differences of 2000 do not overflow.

    By hand: s = s0 = e^1000, y_0 goes from e^-2000 to 1, so L_0 = 1/2000 and E_0/s = E_1/s = 1/2000.
    m_0 = L_0 (1 - 1/2000) with dx = 2000, m_1 = -L_0/2000 with dx = -2000.
    """
    m = model([node("Softmax", "x")])
    x, r = np.array([[1000.0, -1000.0, -np.inf]]), np.array([[-1000.0, 1000.0, -np.inf]])
    result = explain(m, {"x": x}, {"x": r}, inputs=["x"], output="y", seed=np.array([[1.0, 0.0, 0.0]]))
    np.testing.assert_allclose(result.contributions["x"], [[0.9995, 0.0005, 0.0]], rtol=1e-12)


def test_logarithmic_mean() -> None:
    """L(1, e) = e - 1; L(a, a) = a; L(a, 0) = 0; near a = b the geometric mean."""
    logs = np.array([[0, 1], [2, 2], [1, -np.inf], [0, 2e-9]], dtype=np.longdouble).T
    expected = [math.e - 1, math.e**2, 0, 1 + 1e-9]
    np.testing.assert_allclose(np.exp(log_of_logarithmic_mean(*logs)).astype(float), expected, rtol=1e-15)


def test_layer_norm_is_the_closed_formula() -> None:
    """The closed formula of docs/method.md meets the unit vectors."""
    rng = np.random.default_rng(0)
    x, r, g, gamma = (rng.normal(size=5) for _ in range(4))
    m = model([node("LayerNormalization", "x,gamma", epsilon=1e-3)], {"gamma": gamma})
    got = explain(m, {"x": x}, {"x": r}, inputs=["x"], output="y", seed=g).multipliers["x"]
    eps = float(np.float32(1e-3))
    a, a0 = x - x.mean(), r - r.mean()
    s, s0 = (((t * t).mean() + eps) ** 0.5 for t in (a, a0))
    gt = gamma * g
    expected = (gt - gt.mean() - (a + a0) / (s + s0) * np.mean(gt * (a / s + a0 / s0) / 2)) / ((s + s0) / 2)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_internal_tensor_and_shared_values() -> None:
    """The r-run replaces the named tensor only: `b` keeps its value, importance stops at `h`."""
    m = model([node("Relu", "a", "h"), node("Mul", "h,b")])
    x = {"a": np.array([2.0]), "b": np.array([7.0])}
    result = explain(m, x, {"h": np.array([0.5])}, inputs=["h"], output="y", seed=ONE)
    assert result.contributions["h"].tolist() == [10.5]
    assert result.values_r["b"].tolist() == [7.0]
    assert set(result.multipliers) == {"y", "h"}


def test_mask_region_is_one_function() -> None:
    """x * cast(x > 0) and where(x > 1, x, 0): the condition changes, the region is elementwise (METHOD 3)."""
    mask = model([node("Greater", "x,zero", "c"), node("Cast", "c", "f", to=TensorProto.DOUBLE), node("Mul", "x,f")])
    mask.graph.initializer.append(numpy_helper.from_array(np.zeros(()), "zero"))
    x, r = {"x": [3.0, -2.0, 2.0]}, {"x": [-1.0, 4.0, 1.0]}
    assert contributions(mask, x, r) == {"x": [3, -4, 1]}
    where = model(
        [node("Greater", "x,one", "c"), node("Softplus", "x", "s"), node("Where", "c,x,s")],
        {"one": np.ones(())},
    )
    result = explain(where, {"x": np.array([3.0])}, {"x": np.array([0.0])}, inputs=["x"], output="y", seed=ONE)
    assert result.contributions["x"][0] == pytest.approx(3 - math.log(2), rel=1e-14)


def test_refuses_what_it_has_no_rule_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(oracle.RULES, "LRN")
    m = model([node("LRN", "x", size=3)])
    x = {"x": np.ones((1, 3, 2, 2))}
    with pytest.raises(NotImplementedError, match="LRN"):
        explain(m, x, {"x": np.zeros((1, 3, 2, 2))}, inputs=["x"], output="y", seed=ONE)
    hidden = model([node("QuantizeLinear", "x,t", "c"), node("Cast", "c", to=1)], {"t": np.ones(())})
    feeds = {"x": np.ones(1)}
    with pytest.raises(NotImplementedError, match=r"does not know conditions that .*QuantizeLinear"):
        explain(
            hidden,
            feeds,
            {n: v - 2 for n, v in feeds.items()},
            inputs=list(feeds),
            output="y",
            seed=ONE,
        )


def test_conservation_check_bites() -> None:
    good = (np.array([2.0]), np.array([3.0]), np.array([1.0]))
    check_node_conservation("n", [good], [good])
    with pytest.raises(AssertionError, match="does not conserve"):
        check_node_conservation("n", [good], [(np.array([2.0 + 1e-8]), *good[1:])])


# --- secants ---
def test_erf_series() -> None:
    x = np.linspace(-9, 9, 181)
    np.testing.assert_allclose(erf(x.astype(np.longdouble)).astype(float), [math.erf(t) for t in x], rtol=4e-16)


@pytest.mark.parametrize("op", sorted(PLAIN_UNARY))
def test_secants_by_a_third_way(op: str) -> None:
    """The complex step against five-point differences; quotient and derivative agree at the switch."""
    low, high = {
        "Acosh": (1.2, 3.0),
        "Asin": (-0.9, 0.9),
        "Acos": (-0.9, 0.9),
        "Atanh": (-0.9, 0.9),
        "Tan": (-1.3, 1.3),
    }.get(op, (0.2, 3.3) if op in ("Log", "Sqrt", "Reciprocal") else (-2.7, 2.7))
    u = PLAIN_UNARY[op]
    x = np.linspace(low, high, 40).astype(np.longdouble)
    h = np.longdouble(1e-4)
    five = (u.f(x - 2 * h) - 8 * u.f(x - h) + 8 * u.f(x + h) - u.f(x + 2 * h)) / (12 * h)
    derivative = secant(u, x, x)
    np.testing.assert_allclose(derivative.astype(float), five.astype(float), rtol=2e-11, atol=2e-12)
    width = np.longdouble(1e-6)
    outside, inside = (secant(u, x, x + width * s * u.length(x)) for s in (np.longdouble(1.01), np.longdouble(0.99)))
    np.testing.assert_allclose(outside.astype(float), inside.astype(float), rtol=3e-7, atol=3e-7)


def test_secants_where_float64_cannot() -> None:
    """Differences of one ulp, and functions that bend on a scale of 1e-8."""
    x = 0.7
    r = np.nextafter(x, 1)
    got = secant(PLAIN_UNARY["Sigmoid"], np.array(x), np.array(r))
    s = 1 / (1 + math.exp(-x))
    assert float(got) == pytest.approx(s * (1 - s), rel=1e-14)
    log = secant(PLAIN_UNARY["Log"], np.array(2e-8), np.array(1e-8))
    assert float(log) == pytest.approx(math.log(2) / 1e-8, rel=1e-14)
    relu = secant(PLAIN_UNARY["Relu"], np.array([1e-12, 0.0, 3e-300]), np.array([-3e-12, 0.0, -1e-300]))
    np.testing.assert_allclose(relu.astype(float), [0.25, 0, 0.75], rtol=1e-15)


def test_secant_of_a_cubic() -> None:
    cube = Unary(lambda z: z * z * z)
    assert float(secant(cube, np.array(3.0), np.array(-1.0))) == pytest.approx(9 - 3 + 1, rel=1e-15)


# --- every operator: conservation (inside explain), the gap, and the limit x = r ---
Case = tuple[str, Callable[[np.random.Generator], tuple[onnx.ModelProto, dict[str, Array]]]]


def case(
    op: str, shapes: str, constants: dict[str, Any] | None = None, positive: bool = False, **attributes: Any
) -> Any:
    """One node; `shapes` like "2x3,4" for its active inputs, then the names of `constants`."""
    opset = attributes.pop("opset", OPSET)
    outputs = attributes.pop("outputs", "y")

    def build(rng: np.random.Generator) -> tuple[onnx.ModelProto, dict[str, Array]]:
        feeds = {}
        for k, text in enumerate(shapes.split(",")):
            value = rng.normal(size=[int(n) for n in text.split("x")] if text else [])
            feeds[f"x{k}"] = np.abs(value) + 0.3 if positive else value
        names = [*feeds, *(constants or {})]
        names = ["" if name.startswith("none") else name for name in names]
        kept = {name: value for name, value in (constants or {}).items() if not name.startswith("none")}
        return model([node(op, ",".join(names), outputs, **attributes)], kept, opset), feeds

    variant = "-".join(f"{k}={v}" for k, v in attributes.items()).replace(" ", "")
    return pytest.param(build, id=f"{op}-{shapes}-{variant}" + (f"-opset{opset}" if opset != OPSET else ""))


W = np.random.default_rng(7).normal
CASES = [
    case("Conv", "2x3x7", {"w": W(size=(4, 3, 3)), "b": W(size=4)}, strides=[2], dilations=[2], pads=[1, 2]),
    case("Conv", "2x4x5x4", {"w": W(size=(6, 2, 3, 2))}, group=2, auto_pad="SAME_LOWER", strides=[2, 1]),
    case("Conv", "1x2x3x4x3", {"w": W(size=(2, 2, 2, 2, 2))}),
    case("Conv", "2x2x5,3x2x3,3", pads=[1, 1]),
    case(
        "ConvTranspose",
        "2x4x3x2",
        {"w": W(size=(4, 3, 3, 2))},
        group=2,
        strides=[2, 3],
        output_padding=[1, 2],
    ),
    case("ConvTranspose", "1x2x4", {"w": W(size=(2, 2, 3))}, strides=[2], auto_pad="SAME_UPPER"),
    case("ConvTranspose", "1x2x4,2x2x3", strides=[3], output_shape=[12]),
    case("Gemm", "3x4", {"b": W(size=(5, 4)), "c": W(size=5)}, transB=1, alpha=0.5, beta=2.0),
    case("Gemm", "4x3,4x5,5", transA=1, beta=0.5),
    case("MatMul", "2x1x3x4,5x4x2"),
    case("MatMul", "4,3x4x2"),
    case("MatMul", "2x3x4", {"w": W(size=4)}),
    case("Einsum", "2x3x4,2x4x5", equation="bij,bjk->bik"),
    case("Einsum", "3x3", equation="ii->"),
    case(
        "BatchNormalization",
        "2x3x4",
        {"s": W(size=3), "b": W(size=3), "m": W(size=3), "v": W(size=3) ** 2},
    ),
    case("AveragePool", "1x2x6x5", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1], ceil_mode=1),
    case("AveragePool", "1x2x6", kernel_shape=[3], strides=[2], pads=[1, 1], count_include_pad=1, ceil_mode=1),
    case("AveragePool", "1x1x5x5", kernel_shape=[2, 3], auto_pad="SAME_UPPER", dilations=[1, 1]),
    case("GlobalAveragePool", "2x2x3x2"),
    case("MaxPool", "2x2x7", kernel_shape=[3], strides=[1], dilations=[2], pads=[1, 1]),
    case("MaxPool", "1x2x5x4", kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1, storage_order=1, outputs="y,i"),
    case("MaxPool", "1x2x5x4", kernel_shape=[2, 2], auto_pad="SAME_LOWER"),
    case("GlobalMaxPool", "2x2x3x2"),
    case("ReduceMax", "2x3x4", {"axes": np.array([0, -1])}, keepdims=0),
    case("ReduceMin", "2x3x4", axes=[1], opset=13),
    *(case(op, "2x3x2", {"axes": np.array([1])}) for op in ("ReduceSum", "ReduceMean", "ReduceL2", "ReduceLogSumExp")),
    *(case(op, "2x3x2") for op in ("ReduceL1", "ReduceSumSquare")),
    case("ReduceLogSum", "2x3", positive=True, keepdims=0),
    *(case(op, "2x3,3") for op in ("Add", "Sub", "Mul")),
    case("Div", "2x1,3", positive=True),
    case("Pow", "2x3,3", positive=True),
    case("Pow", "2x3", {"p": np.array(3.0)}),
    *(case(op, "2x3,3,1") for op in ("Sum", "Mean", "Max", "Min")),
    case("Softmax", "2x3x2", axis=1),
    case("Softmax", "2x3x2", axis=1, opset=11),
    case("LogSoftmax", "2x4"),
    case("LayerNormalization", "2x3x4,3x4,3x4", axis=1, outputs="y,mean,inv"),
    case("InstanceNormalization", "2x3x4", {"s": W(size=3), "b": W(size=3)}),
    case("GroupNormalization", "2x4x3,4,4", num_groups=2),
    case("GroupNormalization", "2x4x3", {"s": W(size=2), "b": W(size=2)}, num_groups=2, opset=18),
    case("RMSNormalization", "2x3x4,4", opset=23),
    case("MeanVarianceNormalization", "2x3x4", axes=[0, 2]),
    case("LRN", "2x4x3", size=3, alpha=0.9, beta=0.6, bias=0.5),
    case("NegativeLogLikelihoodLoss", "3x3", {"t": np.array([0, 1, 2])}, ignore_index=1, reduction="none"),
    case("SoftmaxCrossEntropyLoss", "3x3", {"t": np.array([0, 1, 1]), "w": W(size=3)}, outputs="y,logs"),
    case("Reshape", "2x6", {"s": np.array([3, -1])}),
    case("Flatten", "2x3x2", axis=1),
    case("Transpose", "2x3x4", perm=[2, 0, 1]),
    case("Squeeze", "2x1x3", {"a": np.array([1])}),
    case("Unsqueeze", "2x3", {"a": np.array([0, 3])}),
    case("Concat", "2x3,2x2,2x1", axis=1),
    case("Split", "2x5", {"s": np.array([2, 3])}, axis=1, outputs="y,z"),
    case(
        "Slice",
        "5x4",
        {"b": np.array([4, 0]), "e": np.array([0, 4]), "a": np.array([0, 1]), "s": np.array([-2, 3])},
    ),
    *(case("Pad", "4x3", {"p": np.array([1, 0, 2, 1])}, mode=mode) for mode in ("reflect", "edge", "wrap", "constant")),
    case("Pad", "4x3", {"p": np.array([1, 0, 2, 1]), "v": np.array(5.0)}),
    case("Gather", "4x3", {"i": np.array([[0, -1], [2, 0]])}, axis=0),
    case("GatherElements", "3x3", {"i": np.array([[0, 0, 2], [1, 1, 1]])}, axis=0),
    case("GatherND", "2x3x2", {"i": np.array([[0, 1], [1, 2], [0, 1]])}),
    case("ScatterND", "4x2", {"i": np.array([[1], [3]]), "u": W(size=(2, 2))}),
    case("Expand", "3x1", {"s": np.array([2, 3, 4])}),
    case("Tile", "2x3", {"r": np.array([2, 2])}),
    case("DepthToSpace", "1x8x2x3", blocksize=2, mode="CRD"),
    case("SpaceToDepth", "1x2x4x2", blocksize=2),
    case("CumSum", "2x4", {"a": np.array(1)}, reverse=1, exclusive=1),
    case("Trilu", "3x4", upper=0),
    case("Resize", "1x1x3x4", {"none0": 0, "s": np.array([1, 1, 2, 1.5], dtype=np.float32)}, mode="linear"),
    case("Identity", "2x3"),
    case("Cast", "2x3", to=TensorProto.FLOAT16),
    case("Dropout", "2x3"),
    case("PRelu", "2x3x2", {"s": W(size=(3, 1))}),
    case("Clip", "3x4", {"lo": np.array(-0.4), "hi": np.array(0.6)}),
    case("Clip", "3x4", min=-0.5, opset=6),
    *(case(op, "3x4") for op in ("LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "HardSigmoid", "Shrink")),
    case("Celu", "3x4", alpha=0.3),
    case("Gelu", "3x4"),
    case("Gelu", "3x4", approximate="tanh"),
    case("Swish", "3x4", opset=24, alpha=1.5),
    *(case(op, "3x4") for op in ("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "HardSwish", "Erf", "Mish", "Exp")),
    *(case(op, "3x4") for op in ("Abs", "Neg", "Sin", "Cos", "Atan", "Sinh", "Cosh", "Asinh")),
    *(case(op, "3x4", positive=True) for op in ("Log", "Sqrt", "Reciprocal")),
]


@pytest.mark.parametrize("build", CASES)
def test_complete_and_gradient_in_the_limit(
    build: Callable[..., tuple[onnx.ModelProto, dict[str, Array]]],
) -> None:
    """gap = 0 from any reference; at x = r the multipliers are the gradient (central differences).

    The forward pass and the rules share the geometry, so the forward values are checked apart, below.
    """
    rng = np.random.default_rng(3)
    m, x = build(rng)
    _, r = build(rng)
    output = m.graph.output[0].name
    y = forward(m, x)[output]
    g = rng.normal(size=y.shape)
    inputs = list(x)
    result = explain(m, x, r, inputs=inputs, output=output, seed=g)
    assert abs(result.gap) <= 1e-12 * (1 + sum(np.abs(c).sum() for c in result.contributions.values()))
    at_x = explain(m, x, x, inputs=inputs, output=output, seed=lambda _: g)
    h = 1e-6
    for name in inputs:
        direction = rng.normal(size=x[name].shape)
        ends = [forward(m, {**x, name: x[name] + s * h * direction})[output] for s in (1, -1)]
        slope = float(np.sum(g * (ends[0] - ends[1]))) / (2 * h)
        assert float(np.sum(at_x.multipliers[name] * direction)) == pytest.approx(slope, rel=2e-7, abs=2e-8)
        assert not at_x.contributions[name].any()


@pytest.mark.parametrize(
    ("op", "attributes", "x", "expected"),
    [
        ("AveragePool", {"kernel_shape": [2], "strides": [2], "ceil_mode": 1}, [1, 3, 8], [2, 8]),
        ("AveragePool", {"kernel_shape": [3], "pads": [1, 0]}, [1, 3, 8], [2, 4]),
        ("AveragePool", {"kernel_shape": [3], "pads": [1, 0], "count_include_pad": 1}, [1, 3, 8], [4 / 3, 4]),
        ("MaxPool", {"kernel_shape": [2], "auto_pad": "SAME_LOWER"}, [3, 1, 2], [3, 3, 2]),
        ("MaxPool", {"kernel_shape": [2], "auto_pad": "SAME_UPPER"}, [3, 1, 2], [3, 2, 2]),
        ("MaxPool", {"kernel_shape": [2], "dilations": [2]}, [3, 1, 2, 9], [3, 9]),
    ],
)
def test_window_geometry(op: str, attributes: dict[str, Any], x: list[float], expected: list[float]) -> None:
    m = model([node(op, "x", **attributes)])
    got = forward(m, {"x": np.array([[x]], dtype=np.float64)})["y"]
    np.testing.assert_allclose(got, [[expected]])


def test_convolutions_by_hand() -> None:
    """Kernel (1, 10): y_o = x_o + 10 x_{o+1}; transposed, stride 2: every x makes (x, 10 x)."""
    w = {"w": np.array([[[1.0, 10.0]]])}
    x = {"x": np.array([[[1.0, 2.0, 3.0]]])}
    assert forward(model([node("Conv", "x,w")], w), x)["y"].tolist() == [[[21, 32]]]
    assert forward(model([node("Conv", "x,w", pads=[1, 0], strides=[2])], w), x)["y"].tolist() == [[[10, 32]]]
    up = forward(model([node("ConvTranspose", "x,w", strides=[2])], w), x)["y"]
    assert up.tolist() == [[[1, 10, 2, 20, 3, 30]]]
    overlap = forward(model([node("ConvTranspose", "x,w", pads=[0, 1])], w), x)["y"]
    assert overlap.tolist() == [[[1, 12, 23]]]


def test_a_network_is_complete_and_local() -> None:
    """Conv, BatchNormalization, Relu, MaxPool, Gemm and a skip: the gap is 0, every multiplier is kept."""
    rng = np.random.default_rng(1)
    constants = {
        "w": rng.normal(size=(3, 3, 3)),
        "s": rng.normal(size=3),
        "b": rng.normal(size=3),
        "mu": rng.normal(size=3),
        "var": rng.uniform(0.5, 1, size=3),
        "dense": rng.normal(size=(12, 4)),
    }
    m = model(
        [
            node("Conv", "x,w", "c", pads=[1, 1]),
            node("BatchNormalization", "c,s,b,mu,var", "n"),
            node("Relu", "n", "h"),
            node("Add", "h,x", "sum"),
            node("MaxPool", "sum", "p", kernel_shape=[3], strides=[2], pads=[1, 1]),
            node("Flatten", "p", "f"),
            node("Gemm", "f,dense", "y"),
        ],
        constants,
    )
    x, r = rng.normal(size=(2, 3, 8)), rng.normal(size=(2, 3, 8))
    seed = np.zeros((2, 4))
    seed[0, 1] = 1
    result = explain(m, {"x": x}, {"x": r}, inputs=["x"], output="y", seed=seed)
    assert abs(result.gap) < 1e-13
    assert set(result.multipliers) == {"x", "c", "n", "h", "sum", "p", "f", "y"}
    assert not result.contributions["x"][1].any()
    for name, multiplier in result.multipliers.items():
        assert multiplier.shape == result.values_x[name].shape
