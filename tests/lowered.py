"""Checks of lowerings, on a model of one node: what the lowered node computes, and that importance is conserved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import onnxlift
from onnxlift import registry
from onnxlift.errors import RuleError
from onnxlift.lowering import MICROSOFT, Lowerer
from onnxlift.model import normal_form

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]


@dataclass
class Case:
    """One node. `inputs` in order, None where one is omitted: `active` ones are attributed to, `fed` ones are graph
    inputs too, the others constants. `expected`: float64 NumPy for operators that the CPU provider has no kernel for.
    `dims`: symbols for the leading dims of inputs. `reach`: the active inputs that matter to an output, where not all
    do.
    """

    op: str
    inputs: Mapping[str, Array | None]
    active: Sequence[str]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: Sequence[str] = ("y",)
    fed: Sequence[str] = ()
    dims: Mapping[str, Sequence[str]] = field(default_factory=dict)
    expected: Callable[..., Array | Sequence[Array]] | None = None
    domain: str = MICROSOFT
    opset: int = 17
    reach: Mapping[str, Sequence[str]] = field(default_factory=dict)
    rtol: float = 2e-5

    def model(self) -> onnx.ModelProto:
        node = helper.make_node(
            self.op,
            [name if array is not None else "" for name, array in self.inputs.items()],
            list(self.outputs),
            name="node",
            domain=self.domain,
            **self.attributes,
        )
        graph_inputs, constants = [], []
        for name, array in self.given.items():
            if name in (*self.active, *self.fed):
                symbols = list(self.dims.get(name, ()))
                shape = symbols + list(array.shape[len(symbols) :])
                graph_inputs.append(helper.make_tensor_value_info(name, code(array), shape))
            else:
                constants.append(numpy_helper.from_array(array, name))
        outputs = [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            if name in ("qk",)
            else onnx.ValueInfoProto(name=name)
            for name in self.outputs
            if name
        ]
        return helper.make_model(
            helper.make_graph([node], "one node", graph_inputs, outputs, constants),
            opset_imports=[helper.make_opsetid("", self.opset), helper.make_opsetid(self.domain or MICROSOFT, 1)],
            ir_version=10,
        )

    @property
    def given(self) -> dict[str, Array]:
        return {name: array for name, array in self.inputs.items() if array is not None}

    @property
    def feed(self) -> dict[str, Array]:
        return {name: array for name, array in self.given.items() if name in (*self.active, *self.fed)}


_RNG = np.random.default_rng(0)


def f(*shape: int) -> Array:
    """Normal numbers in float32."""
    return _RNG.standard_normal(shape).astype(np.float32)


def one(op: str, *shapes: tuple[int, ...], **rest: Any) -> Case:
    """A node with inputs x, a, b ... of random numbers, x attributed to and the others constants."""
    inputs = {name: f(*shape) for name, shape in zip("xabcdefg", shapes, strict=False)}
    return Case(op, inputs, ["x"], dims={"x": ["batch"]}, **rest)


def half(case: Case) -> Case:
    """The same in float16."""
    inputs = {
        name: x if x is None or x.dtype != np.float32 else x.astype(np.float16) for name, x in case.inputs.items()
    }
    return replace(case, inputs=inputs, rtol=5e-3)


def code(array: Array) -> int:
    return helper.np_dtype_to_tensor_dtype(array.dtype)


def run(model: onnx.ModelProto, feed: Arrays) -> dict[str, Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feed)), strict=True))


def lowered(model: onnx.ModelProto) -> onnx.ModelProto:
    """The normal form, without any operator of a foreign domain."""
    lowerer = Lowerer(registry.is_known)
    result = normal_form(model, replace=lowerer)
    assert {node.domain for node in result.graph.node} == {""}, lowerer.refused
    return result


def refusal(case: Case) -> str:
    """Why a node is not lowered; the explainer is refused then."""
    lowerer = Lowerer(registry.is_known)
    normal_form(case.model(), replace=lowerer)
    with pytest.raises(RuleError, match="'node'"):
        onnxlift.rewrite(case.model(), inputs=case.active, target="weights")
    return lowerer.refused[case.outputs[0]]


def check(case: Case) -> None:
    """The lowered node computes what the kernel does, and contributions to each float output add up."""
    model = case.model()
    got = run(lowered(model), case.feed)
    if case.expected is None:
        wanted = run(model, case.feed)
    else:
        wide = (None if x is None else x.astype(np.float64) if x.dtype.kind == "f" else x for x in case.inputs.values())
        results = case.expected(*wide, **case.attributes)
        results = results if isinstance(results, tuple | list) else [results]
        wanted = dict(zip((name for name in case.outputs if name), results, strict=True))
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert got[name].shape == value.shape
        if value.dtype.kind != "f":
            np.testing.assert_array_equal(got[name], value)
            continue
        np.testing.assert_allclose(got[name], value, rtol=case.rtol, atol=case.rtol * np.abs(value).max(), err_msg=name)
        conserves(case, model, name, value.shape)


def conserves(case: Case, model: onnx.ModelProto, output: str, shape: tuple[int, ...]) -> None:
    """Contributions of the active inputs add up to what the output does, with random weights on its elements."""
    rng = np.random.default_rng(1)
    names = [name for name in case.active if name in case.reach.get(output, case.active)]
    explainer = onnxlift.rewrite(
        model, inputs=names, output=output, target="weights", reference="paired", pre_activation=False
    )
    feed = case.feed | {f"{name}_reference": changed(case.given[name], rng) for name in names}
    weights = next(value for value in explainer.graph.input if value.name == "target_weights")
    dtype = helper.tensor_dtype_to_np_dtype(weights.type.tensor_type.elem_type)
    feed["target_weights"] = rng.standard_normal(shape).astype(dtype)
    results = run(explainer, feed)
    total = sum(np.abs(results[f"{name}_contributions"]).sum() for name in names)
    difference = np.abs(results["target_output"] - results["target_reference"]).sum()
    assert np.isfinite(total)
    assert difference > 1e-3, "nothing changes"
    tolerance = (2e-3 if dtype == np.float16 else 1e-4) * max(1.0, float(total))
    np.testing.assert_allclose(results["completeness_gap"], 0, atol=tolerance, err_msg=output)


def changed(x: Array, rng: np.random.Generator) -> Array:
    """A reference for x."""
    return (x + rng.standard_normal(x.shape)).astype(x.dtype)
