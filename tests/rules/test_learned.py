"""Fitted models and their preparation (ai.onnx.ml): every attribute that ONNX Runtime's kernels take."""

from __future__ import annotations

from typing import Any

import laws
import numpy as np
import onnx
import pytest
from onnx import helper

import onnxlift

OPERATORS = ("Binarizer", "Imputer", "LinearClassifier", "LinearRegressor", "Normalizer", "SVMRegressor")
RNG = np.random.default_rng(31)
C3 = RNG.uniform(-1, 1, (3, 4)).astype(np.float32)


def one_node(
    op: str, kind: str = "float[N, 4]", outputs: tuple[str, ...] = ("y",), **attributes: Any
) -> onnx.ModelProto:
    model = laws.model(f"g ({kind} x) => (float y) {{ y = Identity (x) }}")
    del model.graph.node[:]
    model.graph.node.append(helper.make_node(op, ["x"], list(outputs), "node", domain="ai.onnx.ml", **attributes))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def pair(low: float = -2, high: float = 2, shape: tuple[int, ...] = (5, 4)) -> tuple[np.ndarray, np.ndarray]:
    x, r = RNG.uniform(low, high, (2, *shape)).astype(np.float32)
    r[..., 0] = x[..., 0]
    return x, r


TRANSFORMS = ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT")


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize("intercepts", [True, False])
def test_linear_regressor(transform: str, targets: int, intercepts: bool) -> None:
    low, high = (0.1, 0.2) if transform == "PROBIT" else (-2, 2)  # scores between 0 and 1
    more = {"intercepts": [0.3, 0.2, 0.1][:targets]} if intercepts else {}
    c = abs(C3[:targets]) if transform == "PROBIT" else C3[:targets]
    model = one_node(
        "LinearRegressor", coefficients=c.ravel().tolist(), targets=targets, post_transform=transform, **more
    )
    x, r = pair(low, high)
    laws.check(model, {"x": x}, {"x": r}, rtol=1e-3 if transform == "PROBIT" else 2e-5)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("strings", [True, False])
def test_linear_classifier(transform: str, classes: int, strings: bool) -> None:
    """The scores; the label is an index or a name and carries nothing."""
    names = {"classlabels_strings": ["a", "b", "c"][:classes]} if strings else {"classlabels_ints": [7, 8, 9][:classes]}
    c = abs(C3[:classes]) if transform == "PROBIT" else C3[:classes]
    model = one_node(
        "LinearClassifier",
        outputs=("label", "y"),
        coefficients=c.ravel().tolist(),
        intercepts=[0.3, 0.2, 0.1][:classes],
        post_transform=transform,
        multi_class=1,
        **names,
    )
    low, high = (0.1, 0.2) if transform == "PROBIT" else (-2, 2)
    x, r = pair(low, high)
    laws.check(model, {"x": x}, {"x": r}, rtol=1e-3 if transform == "PROBIT" else 2e-5)


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC", "SOFTMAX"])
def test_classifier_with_one_row_of_coefficients(transform: str) -> None:
    model = one_node(
        "LinearClassifier",
        outputs=("label", "y"),
        coefficients=C3[0].tolist(),
        intercepts=[0.3],
        post_transform=transform,
        classlabels_ints=[0, 1],
    )
    x, r = pair()
    laws.check(model, {"x": x}, {"x": r})


def test_classifier_with_one_row_and_probit_is_refused() -> None:
    model = one_node(
        "LinearClassifier",
        outputs=("label", "y"),
        coefficients=C3[0].tolist(),
        intercepts=[0.3],
        post_transform="PROBIT",
        classlabels_ints=[0, 1],
    )
    with pytest.raises(onnxlift.RuleError, match="mixes up samples"):
        onnxlift.rewrite(model, output="y", target=0)


def test_scores_that_softmax_zero_leaves_out() -> None:
    c = np.float32([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1]])
    model = one_node("LinearRegressor", coefficients=c.ravel().tolist(), targets=3, post_transform="SOFTMAX_ZERO")
    x = np.float32([[1, 2, 0.5, 0.5], [0, 1, 2, 0], [0, 0, 1, 1], [1, 0, -1, 0.5]])
    r = np.float32([[0, 1, 0.5, 0.25], [1, 0, 1, 1], [0, 0, 0.5, 0], [0, 0.5, 1, 1]])
    laws.check(model, {"x": x}, {"x": r}, rtol=2e-5)


@pytest.mark.parametrize("kernel", ["LINEAR", "POLY", "RBF", "SIGMOID"])
@pytest.mark.parametrize("supports", [0, 6])
@pytest.mark.parametrize("one_class", [0, 1])
def test_svm_regressor(kernel: str, supports: int, one_class: int) -> None:
    more = {"support_vectors": RNG.uniform(-1, 1, 4 * supports).tolist()} if supports else {}
    model = one_node(
        "SVMRegressor",
        coefficients=RNG.uniform(-1, 1, supports or 4).tolist(),
        n_supports=supports,
        rho=[0.1],
        kernel_type=kernel,
        kernel_params=[0.4, 0.2, 3.0],
        one_class=one_class,
        **more,
    )
    x, r = pair()
    laws.check(model, {"x": x}, {"x": r}, rtol=1e-4)


@pytest.mark.parametrize("norm", ["MAX", "L1", "L2"])
def test_normalizer(norm: str) -> None:
    model = one_node("Normalizer", norm=norm)
    x, r = pair()
    x[0], x[2, :], r[3, :], x[4], r[4] = -abs(x[0]), -abs(x[2]), 0, 0, 0
    r[2] = -abs(r[2])
    laws.check(model, {"x": x}, {"x": r}, signed=False)
    laws.check_signed(model, {"x": x[:2]}, {"x": r[:2]})


def test_normalizer_by_a_largest_value_of_0() -> None:
    """What it would be divided by is 0, and it is not divided."""
    model = one_node("Normalizer", norm="MAX")
    x = np.float32([[0, -1, -2, -3], [0, 0, -1, 0], [0, -2, 0, -1], [1, 2, 3, 4]])
    r = np.float32([[1, 2, 0.5, 1], [0, 0, 0, 0], [0, -1, 0, -3], [0, -1, -2, -2]])
    laws.check(model, {"x": x}, {"x": r}, signed=False, references=False)


def test_binarizer() -> None:
    x, r = pair()
    laws.check(one_node("Binarizer", threshold=0.3), {"x": x}, {"x": r})


@pytest.mark.parametrize("values", [[9.0], [7.0, 8.0, 9.0, 10.0]])
@pytest.mark.parametrize("replaced", [0.5, np.nan])
def test_imputer(values: list[float], replaced: float) -> None:
    x, r = pair()
    if not np.isnan(replaced):
        x[0, :2], r[1, :2], x[2, 3] = replaced, replaced, replaced
        r[2, 3] = replaced
    model = one_node("Imputer", imputed_value_floats=values, replaced_value_float=replaced)
    laws.check(model, {"x": x}, {"x": r})


@pytest.mark.parametrize("op", ["LinearRegressor", "Normalizer", "Imputer", "Binarizer"])
def test_without_a_batch(op: str) -> None:
    more = {
        "LinearRegressor": {"coefficients": C3[:2].ravel().tolist(), "targets": 2, "post_transform": "LOGISTIC"},
        "Normalizer": {"norm": "L2"},
        "Imputer": {"imputed_value_floats": [1.0], "replaced_value_float": 0.0},
        "Binarizer": {"threshold": 0.1},
    }[op]
    x, r = pair(shape=(4,))
    model = one_node(op, "float[4]", **more)
    laws.check(model, {"x": x}, {"x": r}, signed=False, references=False)


@pytest.mark.parametrize("op", ["LinearClassifier", "Normalizer", "Scaler"])
def test_doubles(op: str) -> None:
    """What these compute is float32, whatever they are given."""
    more = {
        "LinearClassifier": {
            "coefficients": C3.ravel().tolist(),
            "intercepts": [0.1, 0.2, 0.3],
            "classlabels_ints": [0, 1, 2],
            "post_transform": "SOFTMAX",
        },
        "Normalizer": {"norm": "MAX"},
        "Scaler": {"scale": [2.0], "offset": [1.0]},
    }[op]
    model = one_node(op, "double[N, 4]", ("label", "y") if op == "LinearClassifier" else ("y",), **more)
    x, r = (value.astype(np.float64) for value in pair())
    explainer = onnxlift.rewrite(model, output="y", target="weights", pre_activation=False)
    weights = RNG.standard_normal(laws.run(model, {"x": x})["y"].shape).astype(np.float32)
    got = laws.run(explainer, {"x": x, "x_reference": r, "target_weights": weights})
    assert got["x_contributions"].dtype == np.float64
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-6 * abs(got["x_contributions"]).sum())
