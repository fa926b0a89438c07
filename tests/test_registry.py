"""The registry: every rule is tested, documented and registered once."""

from __future__ import annotations

import importlib.util
import re
import runpy
from pathlib import Path

import laws
import numpy as np
import pytest

import onnxlift
import onnxlift.rules
from onnxlift import registry

ROOT = Path(__file__).parent.parent


def covered_operators() -> set[str]:
    """What the tests of tests/rules/, and those of bodies, say they cover."""
    covered: set[str] = set()
    tests = ROOT / "tests"
    for path in (*sorted((tests / "rules").glob("test_*.py")), tests / "test_control_flow_corners.py"):
        spec = importlib.util.spec_from_file_location(f"tables_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        covered.update(module.OPERATORS)
    return covered


def test_every_rule_is_tested() -> None:
    assert {rule.op for rule in registry.rules()} <= covered_operators()


def test_every_rule_states_its_equation() -> None:
    assert not [rule.op for rule in registry.rules() if not rule.equation]


def test_the_page_of_rules_is_up_to_date() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "rules.py"))["page"]()
    assert (ROOT / "docs" / "rules.md").read_text() == page, "run: python docs/rules.py > docs/rules.md"


def test_a_second_registration_is_an_error() -> None:
    with pytest.raises(ValueError, match="Relu already has"):
        registry.rule("rescale", "Relu")(lambda site: [])
    with pytest.raises(ValueError, match="Relu is registered twice"):
        registry.stop("", "Relu")


def test_the_rule_in_ten_lines_of_contributing_works(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    monkeypatch.setattr(registry, "_RULES", {key: dict(rules) for key, rules in registry._RULES.items()})
    exec(code[1], {})
    rng = np.random.default_rng(1)
    x, r = (rng.uniform(-2, 2, (4, 6)).astype(np.float32) for _ in range(2))
    laws.check(
        laws.model("g (float[N, 6] x) => (float[N, 6] y) { y = Shrink <lambd = 0.7, bias = 0.2> (x) }"),
        {"x": x},
        {"x": r},
        plan=onnxlift.Plan([onnxlift.Choice("secant", op="Shrink")]),
    )
