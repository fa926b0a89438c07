"""Frozen numbers of captum, shap, tangermeme and the original DeepLIFT, and closed forms (tests/golden/README.md)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import laws
import numpy as np
import onnx
import pytest

import onnxlift
from onnxlift import Plan

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "cases.json").read_text())

PROFILES = {"a": "captum", "b": "shap", "c": "tangermeme", "d": "deeplift"}
"""Group of cases -> the profile of the peer that made its numbers."""

MODES: dict[str, dict[str, Any]] = {
    "Rescale": {},
    "RevealCancel": {"rule": "reveal-cancel"},
    "DeepLIFT_GenomicsDefault": {"rule": "genomics"},
    "Rescale_softmax_normalized": {"plan": Plan(normalize_softmax=True), "output": "y", "pre_activation": True},
    "Max_argmax_of_x": {"rule": "liftpad"},
    "Max_cross_max_captum": {"plan": "captum"},
    "Max_gradient_original_code": {"plan": "deeplift"},
    "Product_dy_over_sum_dx": {"rule": "liftpad"},
    "Product_midpoint": {},
}
"""What a mode of a case is in our terms."""


def files(case: dict[str, Any]) -> list[str]:
    return [case["onnx"], *case["onnx_alt"]]


def flat() -> Iterator[Any]:
    """(case, model file, mode) for everything that states contributions of the inputs."""
    for case in CASES:
        if case["id"][0] == "c" or "layer_tensor_names" in case:
            continue
        for file in files(case):
            for mode in case.get("expected", {"Rescale": None}):
                yield pytest.param(case, file, mode, id=f"{Path(file).stem}-{case['id']}-{mode}")


def case_named(name: str) -> dict[str, Any]:
    return next(case for case in CASES if case["id"] == name)


def options(case: dict[str, Any], mode: str) -> dict[str, Any]:
    """What `rewrite` is told."""
    profile = PROFILES.get(case["id"][0])
    plain = {"output": case.get("target_tensor") or case["output"], "pre_activation": False, "plan": profile}
    return {**plain, **MODES[mode]}


def name_of(case: dict[str, Any], key: str, mode: str, name: str, arrays: Any) -> str:
    """The array of expected contributions, the float64 one where there is one."""
    if "expected" in case:
        stored = case["expected"][mode][name]
        wide = stored.replace("contribs__", "contribs_f64__")
    else:
        stored = key
        wide = stored.replace("contribs", "contribs_f64")
    return wide if wide in arrays else stored


@pytest.mark.parametrize(("case", "file", "mode"), list(flat()))
def test_contributions(case: dict[str, Any], file: str, mode: str) -> None:
    arrays = np.load(GOLDEN / case["npz"], allow_pickle=False)
    shared = case["id"][0] == "b"
    feed = {}
    for entry in case["inputs"]:
        feed[entry["name"]] = arrays[entry["x"]].astype(np.float32)
        feed[f"{entry['name']}_reference"] = arrays[entry["ref"]].astype(np.float32)
    per_sample = arrays["target"].ndim == 1
    single = np.prod(arrays["fx"].shape[1:]) == 1
    for index in range(4) if shared else ["input" if per_sample else None if single else int(arrays["target"])]:
        explainer = onnxlift.rewrite(
            onnx.load(GOLDEN / file),
            target=index,
            reference="shared" if shared else "paired",
            **options(case, mode),
        )
        got = laws.run(explainer, {**feed, **({"target": arrays["target"]} if per_sample else {})})
        for entry in case["inputs"]:
            expected = arrays[name_of(case, entry.get("expected", ""), mode, entry["name"], arrays)]
            expected = expected[..., index] if shared else expected
            close(got[f"{entry['name']}_contributions"], expected, case)


@pytest.mark.parametrize("name", ["c03_maxpool_overlap", "c06_product_glu"])
@pytest.mark.parametrize("alternative", [0, 1])
def test_multipliers_against_tangermeme(name: str, alternative: int) -> None:
    """K references per sample; its contributions are hypothetical ones, projected on the one-hot input."""
    case = case_named(name)
    arrays = np.load(GOLDEN / case["npz"], allow_pickle=False)
    x, references = arrays["x"].astype(np.float32), arrays["references"].astype(np.float32)
    n, k = references.shape[:2]
    explainer = onnxlift.rewrite(
        onnx.load(GOLDEN / files(case)[alternative]),
        target=int(arrays["target"]),
        plan="tangermeme",
        emit=("multipliers",),
    )
    pairs = {"x": np.repeat(x, k, axis=0), "x_reference": references.reshape(n * k, *x.shape[1:])}
    m = laws.run(explainer, pairs)["x_multipliers"].reshape(references.shape)
    if "raw_multipliers" in arrays:
        np.testing.assert_allclose(m, arrays["raw_multipliers"], atol=case["tolerance"]["raw_atol"], rtol=1e-5)
    hypothetical = (m - (references * m).sum(axis=2, keepdims=True)).mean(axis=1)
    close(hypothetical, arrays["hypothetical_f64"], case)
    close(hypothetical * x, arrays["contribs_f64"], case)


def test_contributions_of_an_inner_tensor_against_captum() -> None:
    case = case_named("a11_layer_vgg_p1")
    arrays = np.load(GOLDEN / case["npz"], allow_pickle=False)
    for file, (tensor,) in case["layer_tensor_names"].items():
        model, target = onnx.load(GOLDEN / file), int(arrays["target"])
        explainer = onnxlift.rewrite(model, target=target, plan="captum", expose=[tensor], output=case["output"])
        got = laws.run(explainer, {"x": arrays["x"], "x_reference": arrays["ref"]})
        close(got[f"{tensor}/contributions"], arrays["layer_contribs_f64"], case)
        np.testing.assert_allclose(got[f"{tensor}/multiplier"], arrays["layer_multipliers"], atol=2e-5)
        inner = onnxlift.rewrite(model, target=target, plan="captum", inputs=[tensor])
        got = laws.run(inner, {"x": arrays["x"], "x_reference": arrays["ref"]})
        close(got[f"{tensor}_contributions"], arrays["layer_contribs_f64"], case)


TIES = {
    "captum": {"plan": "captum"},
    "tangermeme": {"plan": "tangermeme"},
    "shap": {"plan": "shap"},
    "deeplift_rescale": {"plan": "deeplift"},
    "deeplift_genomics": {"plan": "deeplift", "rule": "genomics"},
}


@pytest.mark.parametrize("peer", TIES)
def test_a_network_of_whole_numbers(peer: str) -> None:
    """What a peer does with ties, kinks and differences that cancel to 0 reaches the contributions."""
    arrays = np.load(GOLDEN / "f_ties" / "f01_ties.npz", allow_pickle=False)
    model = onnx.load(GOLDEN / "f_ties" / "f01_ties.onnx")
    explainer = onnxlift.rewrite(model, target=1, emit=("multipliers",), **TIES[peer])
    m = laws.run(explainer, {"x": arrays["x"], "x_reference": arrays["ref"]})["x_multipliers"]
    if peer == "shap":  # contributions, averaged over three references each
        m = (m * (arrays["x"] - arrays["ref"])).reshape(-1, 3, *m.shape[1:]).mean(axis=1)
    np.testing.assert_allclose(m, arrays[peer], rtol=0, atol=1e-6 * np.abs(arrays[peer]).max())


def close(got: np.ndarray, expected: np.ndarray, case: dict[str, Any]) -> None:
    tolerance = case["tolerance"]
    np.testing.assert_allclose(got, expected, atol=tolerance["atol"], rtol=tolerance["rtol"])
