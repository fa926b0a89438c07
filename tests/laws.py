"""The laws that every rule obeys, checked on a model of one or a few nodes.

Conservation is completeness with random multipliers at the output: a rule whose split and multipliers disagree fails.
The multipliers are compared with the independent oracle, at the input, at x = r, and however batches meet.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
import oracle

import onnxlift
from onnxlift.options import Options
from onnxlift.rewrite import rewrite_with_residuals

Arrays = Mapping[str, np.ndarray]


def run(model: onnx.ModelProto, feed: Arrays) -> dict[str, np.ndarray]:
    """One run on the CPU, by output name."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feed)), strict=True))


def model(text: str, **initializers: np.ndarray) -> onnx.ModelProto:
    """A model from ONNX's text syntax: the graph alone, at opset 21; `initializers` are added by name."""
    parsed = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]>\n{text}')
    parsed.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in initializers.items())
    return parsed


def check(
    node_model: onnx.ModelProto,
    x: Arrays,
    r: Arrays,
    *,
    others: Arrays | None = None,
    rtol: float = 1e-5,
    plan: onnxlift.Plan | None = None,
    ties: str = "shared",
    conserves: bool = True,
    references: bool = True,
    signed: bool = True,
    exact: bool = True,
) -> dict[str, np.ndarray]:
    """Check all laws for the attributed inputs in `x` (`others`: further inputs, the same in both runs).

    `exact`: the outputs are the original's bit for bit, as the same operators compute them.
    `rtol` is relative to the largest multiplier or contribution. Returns what the explainer computed at (x, r).
    """
    others = others or {}
    names = list(x)
    output = node_model.graph.output[0].name
    original = run(node_model, {**x, **others})
    rng = np.random.default_rng(7)
    weights = rng.standard_normal(original[output].shape).astype(original[output].dtype)
    options = {
        "inputs": names,
        "output": output,
        "target": "weights",
        "plan": plan,
        "pre_activation": False,
        "emit": ("contributions", "multipliers"),
    }
    explainer = onnxlift.rewrite(node_model, **options)
    onnx.checker.check_model(explainer, full_check=True)

    def explain(at: Arrays, against: Arrays, w: np.ndarray = weights, extra: Arrays = others) -> dict[str, np.ndarray]:
        feed = {**at, **{f"{name}_reference": against[name] for name in names}, **extra, "target_weights": w}
        return run(explainer, feed)

    got = explain(x, r)
    for name, value in original.items():
        if exact:
            np.testing.assert_array_equal(got[name], value)
        else:
            np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6)
    if conserves:
        scale = sum(float(np.abs(got[f"{name}_contributions"]).sum()) for name in names)
        np.testing.assert_allclose(got["completeness_gap"], 0, atol=rtol * max(scale, 1e-30))
    _compare(node_model, got, x, r, others, weights, output, names, ties, rtol)
    _compare(node_model, explain(x, x), x, x, others, weights, output, names, ties, rtol)
    floats = [array for array in (*x.values(), *r.values(), *others.values()) if array.dtype.kind == "f"]
    ordinary = all((np.abs(array) <= 100).all() for array in floats)  # the extremes are for single multipliers
    if signed and conserves and ordinary:
        check_signed(node_model, x, r, others=others, rtol=rtol, plan=plan)

    if got["completeness_gap"].ndim == 1 and _has_dynamic_batch(node_model):
        for i in range(len(weights)):
            row = slice(i, i + 1)
            alone = explain(_rows(x, row), _rows(r, row), weights[row], _rows(others, row, len(weights)))
            for name in names:
                _close(alone[f"{name}_contributions"], got[f"{name}_contributions"][row], rtol)
        if references:
            _check_references(node_model, options, x, r, others, weights, explain, rtol)
    return got


def check_signed(
    node_model: onnx.ModelProto,
    x: Arrays,
    r: Arrays,
    *,
    others: Arrays | None = None,
    rtol: float = 1e-5,
    plan: onnxlift.Plan | None = None,
) -> None:
    """Conservation with signed parts: sum(m+_y dy+ + m-_y dy-) = sum(m+_x dx+ + m-_x dx-) for every node.

    In front of the model every input becomes a sum of two, whose differences partly cancel, so that both parts of dx
    are there; behind it RevealCancel on a curved function makes m+ and m- differ.
    """
    composite, output = onnx.ModelProto(), node_model.graph.output[0]
    composite.CopyFrom(node_model)
    del composite.graph.input[:], composite.graph.output[:]
    rng = np.random.default_rng(11)
    at, against = dict(others or {}), {}
    for value in node_model.graph.input:
        if value.name not in x:
            composite.graph.input.append(value)
            continue
        terms = [f"{value.name}/a", f"{value.name}/b"]
        for arrays, whole in ((at, x[value.name]), (against, r[value.name])):
            arrays[terms[0]] = np.asarray(whole * rng.uniform(-1, 2, whole.shape), whole.dtype)
            arrays[terms[1]] = np.asarray(whole - arrays[terms[0]])
        for name in terms:
            copy = composite.graph.input.add()
            copy.CopyFrom(value)
            copy.name = name
        composite.graph.node.insert(0, onnx.helper.make_node("Add", terms, [value.name], f"sum of {value.name}"))
    y = run(node_model, {**x, **(others or {})})[output.name]
    lead = node_model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    batch = lead if y.ndim and len(y) == len(next(iter(x.values()))) else None
    for name, values in (("beside", composite.graph.input), ("curved", composite.graph.output)):
        shape = [batch or len(y), *y.shape[1:]] if y.ndim else []
        values.append(onnx.helper.make_tensor_value_info(name, output.type.tensor_type.elem_type, shape))
    composite.graph.node.append(onnx.helper.make_node("Add", [output.name, "beside"], ["sum"], "sum"))
    composite.graph.node.append(onnx.helper.make_node("Tanh", ["sum"], ["curved"], "curve"))
    at["beside"], against["beside"] = (rng.uniform(-1, 1, y.shape).astype(y.dtype) for _ in range(2))
    explainer, residuals = rewrite_with_residuals(
        composite,
        Options(
            inputs=list(against),
            target="weights",
            pre_activation=False,
            plan=onnxlift.Plan([onnxlift.Choice("reveal-cancel", name="curve"), *(plan.choices if plan else ())]),
        ),
    )
    onnx.checker.check_model(explainer, full_check=True)
    feed = {**at, **{f"{name}_reference": value for name, value in against.items()}}
    got = run(explainer, {**feed, "target_weights": rng.standard_normal(y.shape).astype(y.dtype)})
    slack = 10 if y.dtype == np.float16 else 2  # parts are larger than the differences they sum to
    atol = slack * rtol * sum(float(np.abs(got[f"{name}_contributions"]).sum()) for name in against)
    for name, node in residuals.items():
        assert abs(got[name]) <= atol, (node, got[name], atol)
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=atol)


def _compare(node_model, got, x, r, others, weights, output, names, ties, rtol):  # type: ignore[no-untyped-def]
    expected = oracle.explain(
        node_model, {**x, **others}, dict(r), inputs=names, output=output, seed=weights, ties=ties
    )
    for name in names:
        _close(got[f"{name}_multipliers"], expected.multipliers[name], rtol)
        _close(got[f"{name}_contributions"], expected.contributions[name], rtol)


def _check_references(node_model, options, x, r, others, weights, explain, rtol):  # type: ignore[no-untyped-def]
    """One baked row, K shared rows and K rows per sample agree with pairing the same rows by hand."""
    n, names = len(weights), list(x)
    rows = {name: r[name][:2] for name in names}
    paired = [
        explain(x, {name: np.repeat(rows[name][k : k + 1], n, axis=0) for name in names})
        for k in range(len(rows[names[0]]))
    ]
    feed = {**x, **others, "target_weights": weights}
    one = {name: value[:1] for name, value in rows.items()}
    grouped = {name: np.repeat(value[None], n, axis=0) for name, value in rows.items()}
    cases = {
        "one baked row": (one, {}, paired[:1]),
        "baked": (rows, {}, paired),
        "shared": ("shared", rows, paired),
        "grouped": ("grouped", grouped, paired),
    }
    for reference, arrays, expected in cases.values():
        explainer = onnxlift.rewrite(node_model, **{**options, "reference": reference})
        got = run(explainer, {**feed, **{f"{name}_reference": value for name, value in arrays.items()}})
        for key in [f"{name}_{kind}" for name in names for kind in ("contributions", "multipliers")]:
            _close(got[key], np.mean([run_[key] for run_ in expected], axis=0), rtol)


def _has_dynamic_batch(node_model: onnx.ModelProto) -> bool:
    return bool(node_model.graph.input[0].type.tensor_type.shape.dim[0].dim_param)


def _rows(arrays: Arrays, row: slice, samples: int | None = None) -> dict[str, np.ndarray]:
    return {
        name: value[row] if samples is None or (value.ndim and len(value) == samples) else value
        for name, value in arrays.items()
    }


def _close(got: np.ndarray, expected: np.ndarray, rtol: float) -> None:
    assert got.shape == expected.shape, (got.shape, expected.shape)
    assert np.isfinite(got).all(), got
    scale = max(float(np.abs(expected).max(initial=0)), 1e-30)
    np.testing.assert_allclose(got.astype(np.float64), expected, rtol=0, atol=rtol * scale)
