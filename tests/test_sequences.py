"""Lists of tensors: what is put in and taken out by a known place passes; everything else is refused by name."""

from __future__ import annotations

import laws
import numpy as np
import onnx
import pytest

from onnxlift import OptionError, RuleError, rewrite
from onnxlift.model import normal_form

RNG = np.random.default_rng(8)

# body of g (x [N, 6]) -> y, and the same without sequences
CASES = {
    "split, take": (
        "s = SplitToSequence <axis = 1> (x, two) a = SequenceAt (s, one) t = Tanh (a) "
        "b = SequenceAt (s, last) y = Mul (t, b)",
        "p, q, o = Split <axis = 1, num_outputs = 3> (x) t = Tanh (q) y = Mul (t, o)",
    ),
    "split by sizes, join": (
        "s = SplitToSequence <axis = 1> (x, sizes) e = SequenceErase (s, one) y = ConcatFromSequence <axis = 1> (e)",
        "p, q, o = Split <axis = 1> (x, sizes) y = Concat <axis = 1> (p, o)",
    ),
    "single slices": (
        "s = SplitToSequence <axis = 1, keepdims = 0> (x) a = SequenceAt (s, one) y = Exp (a)",
        "a = Gather <axis = 1> (x, one) y = Exp (a)",
    ),
    "construct, insert, stack": (
        "t = Tanh (x) s = SequenceConstruct (t, x) i = SequenceInsert (s, x, one) "
        "y = ConcatFromSequence <axis = 1, new_axis = 1> (i)",
        "t = Tanh (x) a = Unsqueeze (t, axis) b = Unsqueeze (x, axis) y = Concat <axis = 1> (a, b, b)",
    ),
    "empty, append, count": (
        "e = SequenceEmpty () s = SequenceInsert (e, x) c = Identity (s) n = SequenceLength (c) f = Cast <to = 1> (n) "
        "a = SequenceAt (c, zero) y = Add (a, f)",
        "y = Add (x, unit)",
    ),
    "optional": ("o = Optional (x) t = OptionalGetElement (o) y = Tanh (t)", "y = Tanh (x)"),
    "no optional at all": ("t = OptionalGetElement (x) y = Tanh (t)", "y = Tanh (x)"),
}
CONSTANTS = {
    "zero": np.int64(0),
    "one": np.int64(1),
    "last": np.int64(-1),
    "two": np.int64(2),
    "sizes": np.int64([1, 2, 3]),
    "axis": np.int64([1]),
    "unit": np.float32(1),
}


def model(body: str) -> onnx.ModelProto:
    words = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    used = {name: value for name, value in CONSTANTS.items() if name in words}
    return laws.model(f"g (float[N, 6] x) => (float[N, M] y) {{ {body} }}", **used)


@pytest.mark.parametrize("case", CASES)
def test_a_sequence_is_its_members(case: str) -> None:
    with_sequence, without = (model(body) for body in CASES[case])
    x, r = (RNG.standard_normal((3, 6)).astype(np.float32) for _ in range(2))
    y = laws.run(with_sequence, {"x": x})["y"]
    normal = normal_form(with_sequence)
    np.testing.assert_array_equal(laws.run(normal, {"x": x})["y"], y)
    assert not any("Sequence" in node.op_type or "Optional" in node.op_type for node in normal.graph.node)
    feed = {"x": x, "x_reference": r, "target_weights": RNG.standard_normal(y.shape).astype(np.float32)}
    got, expected = (laws.run(rewrite(one, target="weights"), feed) for one in (with_sequence, without))
    np.testing.assert_allclose(got["x_contributions"], expected["x_contributions"], atol=1e-6)
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)


def test_a_place_that_the_data_decide_is_refused_by_name() -> None:
    body = """s = SplitToSequence <axis = 1> (x, two) m = ArgMax <axis = 1, keepdims = 0> (x) first = Gather (m, zero)
        y = SequenceAt (s, first)"""
    with pytest.raises(RuleError, match="SequenceAt"):
        rewrite(model(body), target=0)


def test_sequences_have_no_contributions() -> None:
    text = """g (seq(float[N, 2]) s, float[N, 2] x) => (seq(float[N, 2]) t, float[N, 2] y) {
        t = SequenceInsert (s, x) y = Tanh (x) }"""
    both = laws.model(text)
    assert rewrite(both, target=0)  # the float output is explained, the sequence passes by
    for options in ({"inputs": ["s"]}, {"output": "t"}):
        with pytest.raises(OptionError, match="is a sequence, a map or an optional"):
            rewrite(both, target=0, **options)
    only = "g (seq(float[N, 2]) s, float[N, 2] x) => (seq(float[N, 2]) t) { t = SequenceInsert (s, x) }"
    with pytest.raises(OptionError, match="no float tensor among its outputs"):
        rewrite(laws.model(only), target=0)
