"""onnxlift.equivalence: the measure of every kind of output, and its errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from onnx_text import floats, parse

from onnxlift.equivalence import equivalence
from onnxlift.errors import DataError, ModelError


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("y = Identity(x)", "y = Identity(x)", 0.0),
        ("y = Mul(x, two)", "y = Identity(x)", 0.5),
        ("y = Log(x)", "y = Log(x)", 0.0),  # NaN and -inf
        ("y = Log(x)", "y = Identity(x)", math.inf),
        ("y = Sub(x, x)", "y = Sub(x, x)", 0.0),
        ("y = Greater(x, zero)", "y = Less(x, zero)", 0.75),
        ("y = Cast <to = 8> (x)", "y = Cast <to = 8> (x)", 0.0),
        ("y = Cast <to = 8> (x)", "z = Neg(x)\ny = Cast <to = 8> (z)", 1.0),
        ("y = SequenceConstruct(x, x)", "y = SequenceConstruct(x, x)", 0.0),
        ("y = SequenceConstruct(x, x)", "y = SequenceConstruct(x)", 1.0),
        ("y = Identity(x)", "y = Transpose(x)", math.inf),
    ],
)
def test_equivalence(first: str, second: str, expected: float) -> None:
    kind = "bool" if "Greater" in first else "string" if "to = 8" in first else "float"
    output = "seq(float[N, 4]) y" if "Seq" in first else f"{kind}[P, Q] y"
    weights = {"two": np.float32(2), "zero": np.float32(0)}
    models = [parse(body, outputs=output, **weights) for body in (first, second)]
    models[0].ir_version = 14
    assert equivalence(*models, {"x": np.float32([[-1, 0, 3, 5]]), "other": floats(1)}) == {"y": expected}


def test_equivalence_refuses_bad_data_and_bad_models() -> None:
    model = parse("y = Neg(x)")
    with pytest.raises(DataError, match=r"lacks the model's inputs \['x'\]"):
        equivalence(model, model, {})
    with pytest.raises(DataError, match="cannot run"):
        equivalence(model, model, {"x": np.zeros((3, 4))})
    with pytest.raises(ModelError, match="cannot load"):
        equivalence(parse("y = my.Op(x)", imports=', "my": 1'), model, {})
