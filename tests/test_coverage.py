"""Every operator of onnx passes importance or has a reason not to, and the pages that say so are true."""

from __future__ import annotations

import importlib.util
import os
import time
from pathlib import Path
from types import ModuleType

import node_tests
import onnx
import pytest
from node_tests import Verdict, check, listed_names, node_cases
from own_cases import TEXTS, own_cases

import onnxlift

DOCS = Path(__file__).parent.parent / "docs"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


OPERATORS = script("operators")
COVERAGE = (DOCS / "coverage.md").read_text()
FAILURES = {
    line.split(" | ")[0].removeprefix("| ")
    for line in COVERAGE.split("## What does not pass")[1].split("## By operator")[0].splitlines()[4:]
}
"""The tests that do not pass, as docs/coverage.md has them."""


def test_every_operator_is_thought_of() -> None:
    unknown = [key for key in OPERATORS.histories() if OPERATORS.what_happens(*key) is None]
    assert not unknown, "write a rule, or say in onnxlift/flow.py or rules/stop.py why there is none"


def test_no_reason_is_left_over() -> None:
    known = {op for _, op in OPERATORS.histories()}
    assert set(onnxlift.flow.UNPASSABLE) <= known
    for names in (OPERATORS.SEQUENCES, OPERATORS.REPLACED):
        assert all(
            OPERATORS.what_happens("", op) in (("member", ""), ("replaced by simpler operators", "")) for op in names
        )


def test_every_operator_that_importance_can_pass_has_a_test_that_passes() -> None:
    tests = OPERATORS.tested()
    for (domain, op), versions in OPERATORS.histories().items():
        flows = OPERATORS.has_floats(versions[-1].inputs) and OPERATORS.has_floats(versions[-1].outputs)
        if flows and OPERATORS.what_happens(domain, op)[0].startswith(("rule", "replaced", "member")):
            name = f"{domain}.{op}" if domain else op
            assert name in tests, f"{name}: write a model in tests/own_cases.py"
            assert not tests[name].startswith("0 of"), name


def test_the_page_of_operators_is_up_to_date() -> None:
    text = (DOCS / "operators.md").read_text()
    if f"schemas of onnx {onnx.__version__};" not in text:
        pytest.skip("the page is of another version of onnx")
    assert text == OPERATORS.page(), "run: python docs/operators.py > docs/operators.md"


@pytest.mark.parametrize("name", listed_names()[::10])
def test_a_tenth_of_the_node_tests_is_as_the_page_says(name: str) -> None:
    if name not in node_cases():
        pytest.skip("the installed onnx has no such test")
    verdict = check(node_cases()[name])
    assert verdict.passes == (name not in FAILURES), f"{verdict}; run: make coverage"


@pytest.mark.parametrize("operator", TEXTS)
def test_own_models_are_as_the_page_says(operator: str) -> None:
    name = f"own_{operator}"
    verdict = check(own_cases()[name])
    assert verdict.passes == (name not in FAILURES), f"{verdict}; run: make coverage"


def test_the_check_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    case, rewrite = node_cases()["test_tanh"], onnxlift.rewrite
    assert check(case).passes
    monkeypatch.setattr(
        onnxlift, "rewrite", lambda model, **options: rewrite(model, rule="gradient-x-input", **options)
    )
    assert check(case).kind == node_tests.GAP

    def of_another(model: onnx.ModelProto, **options: object) -> onnx.ModelProto:
        other = onnx.ModelProto()
        other.CopyFrom(model)
        other.graph.node[0].op_type = "Sigmoid"
        return rewrite(other, **options)

    monkeypatch.setattr(onnxlift, "rewrite", of_another)
    assert check(case).kind == node_tests.OUTPUTS
    monkeypatch.setattr(node_tests, "_references", lambda feeds, names, rng: [("none", {"x": feeds["x"]})])
    monkeypatch.setattr(onnxlift, "rewrite", rewrite)
    assert check(case).kind == node_tests.VACUOUS


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_case_that_hangs_or_kills_its_process_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    coverage = script("coverage")

    def misbehave(case: str) -> Verdict:
        if case == "dies":
            os._exit(7)
        if case == "hangs":
            time.sleep(60)
        return Verdict(node_tests.ADDS_UP, case)

    monkeypatch.setattr(coverage, "check", misbehave)
    monkeypatch.setattr(coverage, "LIMIT", 1)
    verdicts = coverage.run_all({name: name for name in ("a", "dies", "hangs", "b", "c")}, 2)
    assert list(verdicts) == ["a", "dies", "hangs", "b", "c"]
    assert {name for name, verdict in verdicts.items() if verdict.passes} == {"a", "b", "c"}
    assert "ended with 7" in verdicts["dies"].detail
    assert "no end after 1 s" in verdicts["hangs"].detail
