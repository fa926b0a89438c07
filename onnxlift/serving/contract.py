"""What a server may rely on of a model, found out by running it: names, types, shapes, and that samples stay apart.

A server joins the rows of requests that know nothing of each other, and hands the rows of the results back. So every
input and output must have the batch axis in front, and no row may depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxlift.arrays import Array
from onnxlift.equivalence import difference
from onnxlift.errors import ModelError, OptionError, shown
from onnxlift.explainer import GAP
from onnxlift.files import load
from onnxlift.metadata import served
from onnxlift.runtime import Explainer
from onnxlift.session import essential
from onnxlift.verify import BATCH_TOLERANCE, trial_data

DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
}
"""Types of ONNX Runtime that servers take, as the Open Inference Protocol calls them."""

_SAMPLES = 3  # of a trial run; not the number of references that it has


@dataclass(frozen=True)
class Tensor:
    """One input or output, with the batch axis where it has one.

    `datatype`: as the Open Inference Protocol calls it. `shape`: -1 is dynamic. `example`: its shape in the trial run.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    example: tuple[int, ...]


@dataclass(frozen=True)
class Contract:
    """What a model takes and gives. `joins`: rows of several requests may run as one batch."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    joins: bool


@dataclass(frozen=True)
class Trial:
    """The explainer at `path` that ran: its metadata, what it promises, its data inputs, the arrays of the run by name.

    `proto`: the explainer, external data left where they lie. `notes`: what whoever serves it should know.
    """

    path: Path
    proto: ModelProto
    about: Mapping[str, Any]
    contract: Contract
    data: tuple[str, ...]
    given: Mapping[str, Array]
    results: Mapping[str, Array]
    notes: tuple[str, ...]


def try_explainer(path: Path, dims: Mapping[str, int]) -> Trial:
    """Run an explainer on random samples, and refuse what a server could not keep.

    `dims`: sizes of dynamic dimensions, by symbol; 32 where none is given.
    Raises OptionError: a plain model, shared references, a size of the batch axis, an index `target` that the graph
    does not check, and what `try_session` refuses. ModelError: the file is broken, or does not run.
    """
    proto = load(path, weights=False)
    about = served(proto, path)
    if about["reference"] == "shared":
        raise OptionError(
            f"{path} takes references that all samples share, and a server joins samples of different clients: store "
            "the references with `onnxlift rewrite --reference FILE`, or take them per sample with --reference grouped"
        )
    explainer = Explainer(path)
    intake, session = explainer.intake, explainer.session
    check_types(path, session)
    batch = intake.batch
    if batch in dims:
        raise OptionError(f"--dim {batch} is the number of samples, which every request chooses: leave it out")
    given, _ = trial_data(intake, None, ({batch: _SAMPLES} if isinstance(batch, str) else {}) | dict(dims), _SAMPLES)
    contract, results = try_session(path, session, given, batched=isinstance(batch, str))
    if about["target"] == "input":
        _check_range(path, explainer, given, results)
    data = tuple(port.name for port in intake.of_role("data"))
    return Trial(path, proto, about, contract, data, given, results, tuple(_notes(about, batch, contract.joins)))


def try_session(
    path: Path, session: Any, given: Mapping[str, Array], *, batched: bool
) -> tuple[Contract, dict[str, Array]]:
    """Run a session on arrays, and see what it promises; its outputs by name.

    `batched`: a batch axis of free size is in front of every array. Whether its rows may be joined is tried.
    Raises OptionError: outputs of unknown shape, or without that axis. ModelError: it does not run.
    """
    results = run(path, session, given)
    problems = list(_without_shape(session, results))
    if problems or (batched and (problems := list(_without_batch(session, {**given, **results})))):
        raise OptionError(f"{path} cannot be served: {'; '.join(problems)}")
    joins = batched and _are_apart(path, session, given, results)
    inputs = tuple(_tensor(value, given[value.name]) for value in session.get_inputs())
    return Contract(
        inputs, tuple(_tensor(value, results[value.name]) for value in session.get_outputs()), joins
    ), results


def _are_apart(path: Path, session: Any, given: Mapping[str, Array], results: Mapping[str, Array]) -> bool:
    """Whether a row is the same whatever is beside it, wherever it is, and however many rows there are."""
    beside_itself = run(path, session, {name: array[[0] * _SAMPLES] for name, array in given.items()})
    if not all(np.array_equal(array[0], results[name][0], equal_nan=True) for name, array in beside_itself.items()):
        return False  # runs of the same size have the same bits, unless neighbours matter
    rows = range(_SAMPLES)
    alone = [run(path, session, {name: array[row : row + 1] for name, array in given.items()}) for row in rows]
    for name in results.keys() - {GAP}:  # which is what rounding left
        together = results[name]
        allowed = max(BATCH_TOLERANCE, 64 * np.finfo(together.dtype).eps) if together.dtype.kind == "f" else 0
        if difference(together, np.concatenate([one[name] for one in alone])) > allowed:
            return False
    return True


def check_types(path: Path, session: Any) -> None:
    """Raises OptionError for inputs and outputs of types that servers do not take."""
    problems = [
        f"{what} {value.name!r} is {value.type}"
        for what, values in (("input", session.get_inputs()), ("output", session.get_outputs()))
        for value in values
        if value.type not in DATATYPES
    ]
    if problems:
        raise OptionError(
            f"{path} cannot be served: servers do not take the type of {', '.join(problems)}. Leave outputs out with "
            "`onnxlift rewrite --keep`; cast inputs in the model."
        )


def run(path: Path, session: Any, given: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs of a session by name. Raises ModelError: ONNX Runtime cannot run it on these arrays."""
    names = [value.name for value in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, dict(given)), strict=True))
    except Exception as error:  # ONNX Runtime's exceptions have no common class
        sizes = ", ".join(f"{name} {shown(array.shape)}" for name, array in given.items())
        raise ModelError(
            f"{path} does not run on random data ({sizes}): {essential(error)}. Where sizes do not fit, choose those "
            "of dynamic dimensions with --dim."
        ) from error


def _tensor(value: Any, array: Array) -> Tensor:
    """From ONNX Runtime's own shape, with which a server compares its configuration."""
    shape = tuple(dim if isinstance(dim, int) else -1 for dim in value.shape)
    return Tensor(value.name, DATATYPES[value.type], shape, array.shape)


def _without_shape(session: Any, results: Mapping[str, Array]) -> Iterator[str]:
    """Outputs of which the graph does not say how many axes they have."""
    for value in session.get_outputs():
        if results[value.name].ndim != len(value.shape):
            yield f"output {value.name!r} has no shape in the graph: leave it out with `onnxlift rewrite --keep`"


def _without_batch(session: Any, arrays: Mapping[str, Array]) -> Iterator[str]:
    """Inputs and outputs that do not have the batch axis in front."""
    for what, values in (("input", session.get_inputs()), ("output", session.get_outputs())):
        for value in values:
            array = arrays[value.name]
            if array.ndim and not isinstance(value.shape[0], int) and len(array) == _SAMPLES:
                continue
            remedy = "leave it out with `onnxlift rewrite --keep`"
            if what == "input":
                remedy = "make it a constant of the model"
            elif value.name.endswith("_reference"):
                remedy = "leave out --emit reference_outputs in `onnxlift rewrite`"
            yield f"{what} {value.name!r} {shown(value.shape)} has no row for each sample: {remedy}"


def _check_range(path: Path, explainer: Explainer, given: Mapping[str, Array], results: Mapping[str, Array]) -> None:
    """An index `target` out of range must give NaN for its sample, never another neuron, and leave others alone."""
    own = {*explainer.description["outputs"], *explainer.description["expose"]}
    first = explainer.intake.neurons[0]
    row = slice(0, 1) if explainer.intake.batch is not None else ...
    for index in (-1, first if isinstance(first, int) else 1 << 40):
        target = given["target"].copy()
        target[row] = index
        for name, array in run(path, explainer.session, {**given, "target": target}).items():
            if name in own or name.removesuffix("_reference") in own:
                continue
            others = row is ... or np.array_equal(array[1:], results[name][1:], equal_nan=True)
            if not (np.isnan(array[row]).all() and others):
                raise OptionError(
                    f"{path} does not check its input 'target': with index {index}, which is out of range, {name!r} is "
                    "not NaN for that sample, or other samples change. Rewrite the model with this version of onnxlift."
                )


def _notes(about: Mapping[str, Any], batch: int | str | None, joins: bool) -> Iterator[str]:
    """What whoever serves an explainer should know."""
    if not isinstance(batch, str):
        axis = "no batch axis" if batch is None else f"a batch axis of fixed size {batch}"
        yield f"the model has {axis}: every request runs alone, with all axes as in the model"
    elif not joins:
        yield "the samples of a run influence one another: every request runs alone"
    if about.get("builder"):
        yield (
            f"the references {about['builder']['spec']} come with each request: onnxlift.Explainer, `onnxlift explain` "
            "and `onnxlift serve` make them, other servers do not (onnxlift.references has the functions)"
        )
