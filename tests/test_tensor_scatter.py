"""TensorScatter becomes ScatterElements: same values, whatever the axis, the mode and the rank."""

from __future__ import annotations

import laws
import numpy as np
import pytest
from onnx_text import floats, ops, parse, same, shapes

import onnxlift
from onnxlift.errors import ModelError
from onnxlift.model import normal_form

# attributes -> (shape of the cache, shape of the update, where each sample begins)
CASES = {
    "": ((3, 2, 6, 4), (3, 2, 2, 4), [1, 0, 4]),
    "axis = 1": ((3, 6, 2, 4), (3, 3, 2, 4), [1, 0, 3]),
    "axis = -1": ((3, 2, 5), (3, 2, 1), [4, 0, 2]),
    'mode = "circular"': ((3, 2, 4, 4), (3, 2, 3, 4), [3, 0, 2]),
    'mode = "linear", axis = 1': ((3, 4), (3, 2), [0, 1, 2]),
}


@pytest.mark.parametrize("begins", [True, False], ids=["anywhere", "at the start"])
@pytest.mark.parametrize("lead", ["N", "3"])
@pytest.mark.parametrize("attributes", CASES)
def test_the_same_cache(attributes: str, lead: str, begins: bool) -> None:
    cache, update, at = CASES[attributes]
    sizes = [", ".join(map(str, (lead, *shape[1:]))) for shape in (cache, update)]
    given = f", int64[{lead}] at" if begins else ""
    body = f"y = TensorScatter {f'<{attributes}>' if attributes else ''} (past, new{', at' if begins else ''})"
    model = parse(body, f"float[{sizes[0]}] past, float[{sizes[1]}] new{given}", f"float[{sizes[0]}] y", opset=24)
    data = {"past": floats(*cache), "new": floats(*update), **({"at": np.array(at)} if begins else {})}
    result = same(model, **data)
    assert "ScatterElements" in ops(result)
    assert shapes(result)["y"] == [lead if lead == "N" else 3, *cache[1:]]

    explainer = onnxlift.rewrite(model, inputs=["past", "new"], target="weights", emit=("multipliers",))
    w = floats(*cache)
    references = {f"{name}_reference": floats(*data[name].shape) for name in ("past", "new")}
    got = laws.run(explainer, {**data, **references, "target_weights": w})
    old, new = np.zeros_like(w), np.ones_like(data["new"])
    written = laws.run(result, {**data, "past": old, "new": new})["y"]
    np.testing.assert_array_equal(got["past_multipliers"], w * (1 - written))
    np.testing.assert_allclose(got["new_multipliers"].sum(), (w * written).sum(), rtol=1e-4)


def test_a_cache_of_unknown_rank_is_refused_by_name() -> None:
    body = "p = Reshape (x, s) y = TensorScatter (p, p)"
    model = parse(body, "float[N, 4] x, int64[K] s", "float[N, 4] y", opset=24)
    with pytest.raises(ModelError, match=r"TensorScatter.*the rank of its cache is unknown"):
        normal_form(model)
