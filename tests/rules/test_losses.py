"""The losses: every reduction, ignored targets, weights that are attributed too, and the second output."""

from __future__ import annotations

import itertools

import laws
import numpy as np
import onnx
import pytest

from onnxlift import rewrite

OPERATORS = ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
REDUCTIONS = ("none", "sum", "mean")
SHAPES = {"rows": (6, 5), "places": (3, 5, 2, 2)}
IGNORED = {"all count": None, "class 2 is ignored": 2, "-1 is ignored": -1}
CASES = list(itertools.product(OPERATORS, REDUCTIONS, IGNORED.values(), SHAPES.values()))
RNG = np.random.default_rng(3)


def loss(
    op: str,
    reduction: str,
    ignored: int | None,
    shape: tuple[int, ...],
    *,
    weighted: bool,
    dtype: str = "float",
    index: str = "int64",
    outputs: str = "y",
) -> onnx.ModelProto:
    """The loss of x, where x and the targets t, and the weights w, are inputs."""
    extents = ["N", *map(str, shape[1:])]
    attributes = f'reduction = "{reduction}"' + ("" if ignored is None else f", ignore_index = {ignored}")
    inputs = [f"{dtype}[{', '.join(extents)}] x", f"{index}[{', '.join([extents[0], *extents[2:]])}] t"]
    inputs += [f"{dtype}[{shape[1]}] w"] if weighted else []
    read = "x, t, w" if weighted else "x, t"
    return laws.model(f"g ({', '.join(inputs)}) => ({dtype} y) {{ {outputs} = {op} <{attributes}> ({read}) }}")


def data(
    op: str, ignored: int | None, shape: tuple[int, ...], dtype: type = np.float32
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    x, r = ({"x": RNG.standard_normal(shape).astype(dtype) * 2} for _ in range(2))
    if op == "NegativeLogLikelihoodLoss":  # logarithms of probabilities
        for arrays in (x, r):
            arrays["x"] = (-abs(arrays["x"])).astype(dtype)
    t = RNG.integers(0, shape[1], (shape[0], *shape[2:]))
    t.flat[0] = 1 if ignored is None else ignored
    t.flat[1] = 0
    return x, r, {"t": t}


@pytest.mark.parametrize(("op", "reduction", "ignored", "shape"), CASES)
def test_laws(op: str, reduction: str, ignored: int | None, shape: tuple[int, ...]) -> None:
    x, r, others = data(op, ignored, shape)
    laws.check(loss(op, reduction, ignored, shape, weighted=False), x, r, others=others, signed=reduction != "sum")


@pytest.mark.parametrize(("op", "reduction", "ignored", "shape"), CASES)
def test_weights(op: str, reduction: str, ignored: int | None, shape: tuple[int, ...]) -> None:
    """Weights that stay, and weights that are attributed: alone, with x, and with a sum that changes its sign."""
    model = loss(op, reduction, ignored, shape, weighted=True)
    x, r, others = data(op, ignored, shape)
    w, w0 = (np.abs(RNG.standard_normal(5)).astype(np.float32) for _ in range(2))
    signed = reduction == "mean"  # the laws put a tanh behind, which would be saturated
    laws.check(model, x, r, others={**others, "w": w}, signed=signed)
    laws.check(model, {**x, "w": w}, {**r, "w": w0}, others=others, references=False, signed=signed)
    laws.check(model, {"w": w}, {"w": w0}, others={**others, **x}, references=False, signed=signed)
    laws.check(model, {**x, "w": w}, {**r, "w": -w0}, others=others, references=False, signed=False)


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize(("dtype", "rtol"), [("float16", 4e-3), ("double", 1e-12)])
def test_other_precisions(op: str, dtype: str, rtol: float) -> None:
    kind = np.float16 if dtype == "float16" else np.float64
    shape = SHAPES["rows"]
    for reduction in REDUCTIONS:
        model = loss(op, reduction, None, shape, weighted=True, dtype=dtype, index="int32")
        x, r, others = data(op, None, shape, kind)
        others["t"] = others["t"].astype(np.int32)
        w, w0 = (np.linspace(*ends, 5).astype(kind) for ends in ((0.5, 2), (1, 3)))
        laws.check(model, {**x, "w": w}, {**r, "w": w0}, others=others, rtol=rtol, references=False, signed=False)


@pytest.mark.parametrize("outputs", ["l, y", "l, p"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_logarithms_of_the_probabilities(outputs: str, reduction: str) -> None:
    """The second output alone, and both at once."""
    op, shape = "SoftmaxCrossEntropyLoss", SHAPES["rows"]
    model = loss(op, reduction, 2, shape, weighted=False, outputs=outputs)
    if outputs == "l, p":
        lift = "k = ReduceSum <keepdims = 0> (p, one)" if reduction == "none" else "k = ReduceSum <keepdims = 0> (p)"
        tail = onnx.parser.parse_graph(f"g (float l, float p) => (float y) {{ {lift} y = Mul (k, l) }}")
        model.graph.node.extend(tail.node)
        if reduction == "none":
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "one"))
    x, r, others = data(op, 2, shape)
    laws.check(model, x, r, others=others, references=reduction == "none", signed=False)


def test_large_logits_and_masked_classes() -> None:
    """A class of minus infinity, which is no target, takes no part; a difference of 1e4 does not overflow."""
    model = loss("SoftmaxCrossEntropyLoss", "none", None, (6, 5), weighted=True)
    x, r, others = data("SoftmaxCrossEntropyLoss", None, (6, 5))
    others["t"][:] = np.arange(6) % 4
    x["x"] += np.float32(1e4)
    x["x"][:, 4] = r["x"][:, 4] = -np.inf
    w = np.ones(5, np.float32)
    explainer = rewrite(model, inputs=["x", "w"], target="weights", emit=("multipliers",))
    feed = {
        **x,
        **others,
        "w": w,
        "x_reference": r["x"],
        "w_reference": w * 2,
        "target_weights": np.ones(6, np.float32),
    }
    got = laws.run(explainer, feed)
    assert np.isfinite(got["x_multipliers"]).all()
    assert np.isfinite(got["w_multipliers"]).all()
    assert not got["x_multipliers"][:, 4].any()


def test_every_target_ignored() -> None:
    """Nothing counts: 0 for a sum; a mean has no value, and neither has its difference, but the multipliers are 0."""
    for reduction in REDUCTIONS:
        model = loss("NegativeLogLikelihoodLoss", reduction, 1, (6, 5), weighted=False)
        x, r, _ = data("NegativeLogLikelihoodLoss", 1, (6, 5))
        explainer = rewrite(model, inputs=["x"], target="weights", emit=("multipliers",))
        weights = np.ones(6 if reduction == "none" else (), np.float32)
        feed = {**x, "t": np.ones(6, np.int64), "x_reference": r["x"], "target_weights": weights}
        assert not laws.run(explainer, feed)["x_multipliers"].any()
