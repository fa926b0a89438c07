"""A whole model against the oracle of signed parts: its attributed inputs and every internal tensor on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import laws
import numpy as np
import onnx
import oracle_signed
from oracle_signed import Explanation, RuleOf

import onnxlift

Arrays = Mapping[str, np.ndarray]


def compare(
    model: onnx.ModelProto,
    x: Arrays,
    r: Arrays,
    rule: str = "reveal-cancel",
    *,
    rtol: float = 1e-5,
    rule_of: RuleOf | None = None,
    expose: Sequence[str] | None = None,
    others: Arrays | None = None,
    **options: Any,
) -> dict[str, np.ndarray]:
    """Check m+, m- and contributions, each to `rtol` of its largest element; returns what the explainer computed.

    The target is a random combination of all elements of the first output. `rule_of`: what the oracle calls `rule`.
    `expose`: default every internal tensor that the oracle carries importance through. `others`: further inputs, the
    same in both runs.
    """
    output, others = model.graph.output[0].name, dict(others or {})
    y = laws.run(model, {**x, **others})[output]
    weights = np.random.default_rng(13).standard_normal(y.shape).astype(y.dtype)
    expected = oracle_signed.explain(
        model, {**x, **others}, dict(r), inputs=list(x), output=output, seed=weights, rule_of=rule_of or rule
    )
    if expose is None:
        expose = [name for name in expected.multipliers if name not in x and name != output]
    explainer = onnxlift.rewrite(
        model,
        inputs=list(x),
        target="weights",
        rule=rule,
        pre_activation=False,
        expose=expose,
        emit=("contributions", "multipliers"),
        **options,
    )
    onnx.checker.check_model(explainer, full_check=True)
    references = {f"{name}_reference": value for name, value in r.items()}
    got = laws.run(explainer, {**x, **references, **others, "target_weights": weights})
    close(got[output], y, rtol, output)  # exposed tensors keep ONNX Runtime from merging nodes
    for name in x:
        close(got[f"{name}_multipliers"], expected.folded(name), rtol, name)
        close(got[f"{name}_contributions"], expected.contributions[name], rtol, name)
    for name in expose:
        _compare_internal(got, expected, name, rtol)
    return got


def _compare_internal(got: Arrays, expected: Explanation, name: str, rtol: float) -> None:
    plus, minus = expected.pair(name)
    scale = max(np.abs(plus).max(), np.abs(minus).max())
    mean = got[f"{name}/multiplier"]
    for side, m in (("plus", plus), ("minus", minus)):  # not emitted where m+ = m-
        close(got.get(f"{name}/multiplier/{side}", mean), m, rtol, f"{name} {side}", scale)
    close(mean, expected.multipliers[name], rtol, name, scale)
    contributions = oracle_signed.times((plus, minus), expected.parts[name])
    close(got[f"{name}/contributions"], contributions, rtol, name)


def close(got: np.ndarray, expected: np.ndarray, rtol: float, what: str = "", scale: float | None = None) -> None:
    """Equal to `rtol` of `scale`, the largest expected element."""
    assert got.shape == expected.shape, (what, got.shape, expected.shape)
    assert np.isfinite(got).all(), what
    largest = np.abs(expected).max(initial=0) if scale is None else scale
    np.testing.assert_allclose(got.astype(np.float64), expected, rtol=0, atol=rtol * largest, err_msg=what)
