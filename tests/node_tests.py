"""The tests of the onnx package as models to explain, and the check that their contributions add up.

The check does not rely on what an explainer says of itself: the difference that contributions have to sum to is taken
from two runs of the original model, by ONNX Runtime where it loads the model and by onnx's own evaluator elsewhere.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.reference import ReferenceEvaluator
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

import onnxlift
from onnxlift.metadata import description

Feeds = Mapping[str, Any]

NAMES = Path(__file__).parent / "data" / "node_tests.txt"
"""The node tests in which importance can flow, one a line: a float output depends on a float input through floats, is
finite, is not random, is not constant, and has a shape that does not vary with values."""

ORT_OPSET, ORT_IR = 26, 13
"""The newest that ONNX Runtime loads without being told to; the operators of a model may be older than it says."""

TOLERANCE = {2: 1e-2, 4: 1e-4, 8: 1e-4}
"""Of a sum of contributions relative to that of their magnitudes (at least 1), by the bytes of the smallest float."""

ADDS_UP, REFUSED, OUTPUTS, GAP, VACUOUS, CRASH = (
    "adds up",
    "refused",
    "outputs differ",
    "does not add up",
    "tells nothing",
    "crashes",
)


@dataclass(frozen=True)
class Case:
    """One model with data. `operator`: the one under test; `part`: where the case comes from."""

    name: str
    operator: str
    part: str
    model: onnx.ModelProto
    feeds: Feeds


@dataclass(frozen=True)
class Verdict:
    """What came of a case: `kind` is one of the words above, `detail` the reference used or the reason."""

    kind: str
    detail: str

    @property
    def passes(self) -> bool:
        return self.kind == ADDS_UP


def listed_names() -> list[str]:
    """The names of the node tests to explain."""
    return NAMES.read_text().split()


@functools.cache
def node_cases() -> dict[str, Case]:
    """The node tests to explain that the installed onnx has, by name; parts "base" and "expanded" (function bodies)."""
    found = {test.name: test for test in _quietly("node")}
    cases = {}
    for name in listed_names():
        if name in found:
            base = found[re.sub("_expanded.*", "", name)]
            operator = next(node for node in base.model.graph.node if node.op_type != "Constant")
            data = found[name].data_sets[0][0]
            part = "base" if base.name == name else "expanded"
            cases[name] = Case(name, operator_name(operator), part, found[name].model, _named(found[name].model, data))
    return cases


@functools.cache
def exported_cases() -> dict[str, Case]:
    """The models that PyTorch exported for the onnx package, by name; parts "pytorch-converted", "pytorch-operator"."""
    cases = {}
    for part in ("pytorch-converted", "pytorch-operator"):
        for test in _quietly(part):
            folder = Path(test.model_dir)
            model = onnx.load(folder / "model.onnx")
            files = sorted((folder / "test_data_set_0").glob("input_*.pb"), key=lambda path: int(path.stem[6:]))
            feeds = _named(model, [onnx.load_tensor(path) for path in files])
            cases[test.name] = Case(test.name, "", part, model, feeds)
    return cases


def operator_name(node: onnx.NodeProto) -> str:
    """With its domain in front, where it has one."""
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def check(case: Case) -> Verdict:
    """Explain a weighted sum of the first float output by all inputs that reach it, and hold it to the original."""
    try:
        return _check(case)
    except onnxlift.OnnxliftError as error:
        return Verdict(
            REFUSED, re.sub(r"^importance cannot pass .*? between .*?: | Attribute to a tensor.*", "", str(error))
        )
    except Exception as error:  # a bug of ours: the table must show it and go on
        return Verdict(CRASH, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


def _check(case: Case) -> Verdict:
    explainer = onnxlift.rewrite(case.model, target="weights", pre_activation=False)
    about = description(explainer)
    assert about is not None
    original, explained = _Original(case.model), about["output"]
    expected = original(case.feeds)
    y = expected[explained]
    if not np.isfinite(y).all():
        return Verdict(VACUOUS, "the model's own output is not finite")
    tolerance = _tolerance([*case.feeds.values(), y])
    session = _session(explainer)
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(y.shape).astype(y.dtype)
    for kind, reference in _references(case.feeds, about["references"], rng):
        try:
            y0 = original({**case.feeds, **reference})[explained]
        except (Fail, InvalidArgument, RuntimeException):  # what it takes is limited: a size given as a float, for one
            continue
        if y0.shape != y.shape or not np.isfinite(y0).all():
            continue
        feeds = {f"{name}_reference": value for name, value in reference.items()}
        got = _run(session, {**case.feeds, **feeds, "target_weights": weights})
        wrong = [name for name, value in expected.items() if not _agree(got[name], value, tolerance)]
        if wrong:
            return Verdict(OUTPUTS, f"output {', '.join(wrong)}")
        contributions = [got[f"{name}_contributions"].astype(np.float64) for name in about["inputs"]]
        difference = float(np.sum(weights.astype(np.float64) * (y.astype(np.float64) - y0)))
        total = float(sum(map(np.sum, contributions)))
        scale = max(1.0, float(sum(np.abs(array).sum() for array in contributions)))
        if not np.isfinite(total):
            return Verdict(GAP, f"reference {kind}: contributions that are not finite")
        if abs(total - difference) > tolerance * scale:
            return Verdict(GAP, f"reference {kind}: {total:.3g} for a difference of {difference:.3g}")
        if abs(difference) > tolerance * scale:
            return Verdict(ADDS_UP, kind)
    return Verdict(VACUOUS, "no reference changes the output")


class _Original:
    """The original model, as ONNX Runtime runs it; where it does not load it, as onnx's evaluator does."""

    def __init__(self, model: onnx.ModelProto) -> None:
        lowered = onnx.ModelProto()
        lowered.CopyFrom(model)
        lowered.ir_version = min(lowered.ir_version, ORT_IR)
        for entry in lowered.opset_import:
            if entry.domain in ("", "ai.onnx"):
                entry.version = min(entry.version, ORT_OPSET)
        self.names = [value.name for value in model.graph.output]
        try:
            self.session = _session(lowered)
        except Exception:  # ONNX Runtime's exceptions have no common base but this
            self.session = None
            self.evaluator = ReferenceEvaluator(model)

    def __call__(self, feeds: Feeds) -> dict[str, Any]:
        if self.session is not None:
            return _run(self.session, feeds)
        return dict(zip(self.names, self.evaluator.run(None, dict(feeds)), strict=True))


def _session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _run(session: ort.InferenceSession, feeds: Feeds) -> dict[str, Any]:
    names = [value.name for value in session.get_outputs()]
    taken = {value.name: feeds[value.name] for value in session.get_inputs() if value.name in feeds}
    if not any(_is_foreign(x) for x in taken.values()):
        return dict(zip(names, session.run(names, taken), strict=True))
    values = {name: _ort_value(x) for name, x in taken.items()}
    found = session.run_with_ort_values(names, values)
    return dict(zip(names, (value.numpy() for value in found), strict=True))


def _is_foreign(x: Any) -> bool:
    """Whether NumPy itself lacks the element type, as of float8; ONNX Runtime takes such arrays as bytes only."""
    return isinstance(x, np.ndarray) and x.dtype.isbuiltin != 1 and x.dtype.itemsize == 1


def _ort_value(x: Any) -> ort.OrtValue:
    if not _is_foreign(x):
        return ort.OrtValue.ortvalue_from_numpy(x)
    kind = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(x.view(np.uint8), kind)


def _references(feeds: Feeds, names: Sequence[str], rng: np.random.Generator) -> Iterator[tuple[str, Feeds]]:
    """References for the inputs of these names: zeros; noise, where they are floats; the data in reverse."""
    data = {name: np.asarray(feeds[name]) for name in names}
    yield "zeros", {name: np.zeros_like(x) for name, x in data.items()}
    if all(_is_float(x) for x in data.values()):
        yield "random", {name: rng.standard_normal(x.shape).astype(x.dtype) for name, x in data.items()}
    yield "reversed", {name: np.array(np.flip(x), order="C") for name, x in data.items()}


def _tolerance(values: Sequence[Any]) -> float:
    floats = [x for x in values if isinstance(x, np.ndarray) and x.dtype.kind == "f" and not _is_foreign(x)]
    return TOLERANCE[min(x.dtype.itemsize for x in floats)]


def _agree(got: Any, expected: Any, tolerance: float) -> bool:
    """Whether an output is that of the original: floats nearly, everything else exactly."""
    if expected is None or isinstance(expected, str | dict):
        return bool(got == expected)
    if isinstance(expected, list):
        return len(got) == len(expected) and all(_agree(*pair, tolerance) for pair in zip(got, expected, strict=True))
    got, expected = np.asarray(got), np.asarray(expected)
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return False
    if not _is_float(expected):
        return bool((got == expected).all())
    limits = np.finfo(expected.dtype)  # attention kernels mask with the lowest number, or with -inf
    got, expected = np.clip(got, limits.min, limits.max), np.clip(expected, limits.min, limits.max)
    finite = np.abs(expected) < limits.max
    scale = max(1.0, float(np.abs(expected[finite]).max(initial=0)))
    near = np.isclose(got.astype(np.float64), expected, rtol=0, atol=tolerance * scale, equal_nan=True)
    return bool(np.where(finite, near, (got == expected) | np.isnan(expected)).all())


def _is_float(x: np.ndarray) -> bool:
    return bool(x.dtype.kind == "f")


def _quietly(kind: str) -> Sequence[Any]:
    with warnings.catch_warnings():  # the package computes its expectations as it loads, infinite ones too
        warnings.simplefilter("ignore")
        return load_model_tests(kind=kind)


def _named(model: onnx.ModelProto, data: Sequence[Any]) -> Feeds:
    """The data by the names of the graph inputs; old models list their weights among these, behind the data."""
    constants = {tensor.name for tensor in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in constants]
    return {name: _array(value) for name, value in zip(names, data, strict=True)}


def _array(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value
