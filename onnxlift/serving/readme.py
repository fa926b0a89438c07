"""The README.md of a model repository: what is served, a call that works as it stands, and what to watch.

The text is in `readme.md`; here is what depends on the explainer and on the options.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from importlib.metadata import version
from string import Template

from onnxlift.errors import shown
from onnxlift.metadata import conserves, explains
from onnxlift.serving.contract import Contract, Tensor, Trial
from onnxlift.serving.kserve import TRITON
from onnxlift.serving.triton import Serving

_NUMPY = {"BOOL": "bool_", "FP16": "float16", "FP32": "float32", "FP64": "float64"}  # others are lower case there
_BYTES = {"BOOL": 1}

_JOINED = """\
`N` is at most $max_batch (`max_batch_size`). Triton joins requests whose other axes agree, and lets one wait
$queue_delay microseconds for others (`max_queue_delay_microseconds`). Joined samples do not see each other; a result
may differ by rounding from that of the sample alone. A number per sample travels as `[N, 1]`, as Triton has no empty
shape."""
_FEWER = """\
: send
fewer samples at a time. What an explanation needs in memory grows with the samples that run together: lower
`max_batch_size` where it does not fit"""
_ALONE = "Every request runs alone, with all axes as in the model."

_COMMAND = "```sh\ntritonserver --model-repository=.\n```"
_SERVICE = """\
Copy this folder to a place that the cluster can read, name that place as `storageUri` in `inferenceservice.yaml`, and
`kubectl apply -f inferenceservice.yaml`. The processors there and the threads of a run, `intra_op_thread_count` in each
config.pbtxt, are the same number: change both. One service serves both entries. So that predictions do not wait behind
explanations, apply it twice, under two names and each with `args` of its own under `model`:
`[tritonserver, --model-store=/mnt/models, --http-port=8080, --grpc-port=9000, --model-control-mode=explicit,
--load-model=NAME]`."""

_NEEDS = {
    "onnxruntime": f"The explainer needs ONNX Runtime 1.18; Triton's container images have 1.20 from {TRITON} on.",
    "python": """\
Both entries run in Triton's Python backend (`model.py` beside each model.onnx), whose interpreter needs NumPy and ONNX
Runtime 1.18 or later: `pip install onnxruntime`, or `onnxruntime-gpu`.""",
}

_PLACES = {
    "auto": "They run on a GPU where the server has one, else on the CPU.",
    "cpu": "They run on the CPU.",
    "cuda": "They run on a GPU.",
    "tensorrt": """\
They run on a GPU. TensorRT compiles what it can, again for every larger size, which may take minutes, and may round as
TF32; CUDA runs the rest.""",
}
_ON_GPU = """\
On a GPU, CUDA runs without TF32, which would be off by 1e-3. A server with a GPU was not tried when this folder was
written: compare its results with those of the CPU once."""

_ADDS_UP = """\
`completeness_gap` is what the contributions of a sample miss of `target_output - target_reference`. Ask for the three
with every explanation, and count the answers where the gap is more than a thousandth of the difference: there the
contributions do not account for the output."""
_OUT_OF_RANGE = """\
Where `target` is no neuron of the output, the contributions and the gap of that sample are NaN. Samples that are joined
with it are not affected."""

_POLLED = """\
A folder that is renamed is there as a whole. With `--model-control-mode=poll` Triton finds it, loads the new version,
lets the requests of the old one finish and unloads that. With `explicit` it does so when it is told:
`curl -X POST localhost:8000/v2/repository/models/$name/load`, and the same for `${name}_predict`. Copying into a
repository that is polled may show it half a model."""
_APPLIED = """\
Copy this folder to a new place then, and apply that as `storageUri`: KServe starts servers with it, and stops the old
ones once those are ready."""


def text(entries: Mapping[str, Contract], trial: Trial, off: float | None, serving: Serving, *, in_kserve: bool) -> str:
    """The page of a repository. `off`: how far predictions are from the explainer's outputs."""
    (name, contract), (predict, _) = entries.items()
    samples = serving.max_batch if contract.joins else 1
    options = {"name": name, "max_batch": serving.max_batch, "queue_delay": serving.queue_delay}
    template = resources.files("onnxlift.serving").joinpath("readme.md").read_text("utf-8")
    return Template(template).substitute(
        name=name,
        predict=predict,
        explains=explains(trial.about),
        gives="the model's outputs and what explains them" if trial.about["outputs"] else "what explains the model",
        version=version("onnxlift"),
        notes="".join(f"\nNote: {note}.\n" for note in trial.notes),
        predictions=_predictions(off),
        tables="\n\n".join(f"`{entry}`\n\n{_table(promised)}" for entry, promised in entries.items()),
        batching=Template(_JOINED if contract.joins else _ALONE).substitute(options),
        start=_SERVICE if in_kserve else _COMMAND,
        needs=_NEEDS[serving.backend],
        placement=_PLACES[serving.accelerator] + (f" {_ON_GPU}" if serving.accelerator != "cpu" else ""),
        call="\n".join(_call(name, contract)),
        json=_json_call(name, contract),
        gap="\n\n".join(_gap(trial)),
        largest=f"{samples} samples carry" if contract.joins else "A request carries",
        given=_megabytes(contract.inputs, samples, contract.joins),
        taken=_megabytes(contract.outputs, samples, contract.joins),
        fewer=_FEWER if contract.joins else "",
        tool="kserve" if in_kserve else "triton",
        following=serving.version + 1,
        again=(" --backend python" if serving.backend == "python" else "")  # which has a model.py beside the graph
        + (" --model model.onnx" if off is None else ""),
        update=Template(_APPLIED if in_kserve else _POLLED).substitute(options),
    )


def _predictions(off: float | None) -> str:
    if off is None:
        return "it is the original file, and the explainer has no output to compare it with"
    bits = "had the same bits as" if off == 0 else f"were within {off:.1g} of the largest value of"
    return f"on the random data of a trial run its outputs {bits} the explainer's"


def _table(contract: Contract) -> str:
    rows = ["| | name | type | shape |", "|---|---|---|---|"]
    for what, tensors in (("input", contract.inputs), ("output", contract.outputs)):
        for tensor in tensors:
            name = " ".join(tensor.name.split()).replace("|", r"\|").replace("`", "'")
            rows.append(f"| {what} | `{name}` | {tensor.datatype} | `{_wire(tensor, contract.joins)}` |")
    return "\n".join(rows)


def _wire(tensor: Tensor, joins: bool) -> str:
    """The shape of a tensor in a request."""
    dims: list[object] = ["any" if dim < 0 else dim for dim in tensor.shape]
    return shown(["N", *(dims[1:] or [1])] if joins else dims or [1])


def _example(tensor: Tensor, joins: bool) -> list[int]:
    """The shape of a tensor in a request of one sample."""
    dims = list(tensor.example)
    return [1, *(dims[1:] or [1])] if joins else dims or [1]


def _call(name: str, contract: Contract) -> Iterator[str]:
    """A client in Python, line by line."""
    yield "import numpy as np"
    yield "import tritonclient.http as http"
    yield ""
    yield 'client = http.InferenceServerClient("localhost:8000")'
    yield "arrays = {  # your data"
    for tensor in contract.inputs:
        dtype = _NUMPY.get(tensor.datatype, tensor.datatype.lower())
        yield f"    {_quoted(tensor.name)}: np.zeros({_example(tensor, contract.joins)}, np.{dtype}),"
    yield "}"
    types = (f"{_quoted(tensor.name)}: {_quoted(tensor.datatype)}" for tensor in contract.inputs)
    yield f"types = {{{', '.join(types)}}}"
    yield "inputs = [http.InferInput(name, list(array.shape), types[name]) for name, array in arrays.items()]"
    yield "for entry, array in zip(inputs, arrays.values()):"
    yield "    entry.set_data_from_numpy(array)"
    yield f"names = [{', '.join(_quoted(tensor.name) for tensor in contract.outputs)}]"
    yield f"result = client.infer({_quoted(name)}, inputs, outputs=[http.InferRequestedOutput(name) for name in names])"
    yield "for name in names:"
    yield "    print(name, result.as_numpy(name).shape)"


def _json_call(name: str, contract: Contract) -> str:
    """The same with curl, where JSON can say it."""
    if "FP16" in (tensor.datatype for tensor in (*contract.inputs, *contract.outputs)):
        return "\nFP16 has no form in JSON: only bytes, as above, bring it to a server.\n"
    inputs = []
    for tensor in contract.inputs:
        shape, zero = _example(tensor, contract.joins), "False" if tensor.datatype == "BOOL" else "0"
        head = f'"name": {_quoted(tensor.name)}, "datatype": "{tensor.datatype}", "shape": {shape}'
        inputs.append(f'{{{head}, "data": [{zero}] * {math.prod(shape)}}}')
    program = f'import json; print(json.dumps({{"inputs": [{", ".join(inputs)}]}}))'
    return (
        "\nAs JSON, which takes several times the bytes:\n\n```sh\n"
        f"python3 -c {shlex.quote(program)} |\n"
        f"  curl --silent --fail --data-binary @- localhost:8000/v2/models/{name}/infer\n```\n"
    )


def _gap(trial: Trial) -> Iterator[str]:
    if conserves(trial.about):
        yield _ADDS_UP
    else:
        yield f"Contributions of rule {trial.about['rule']} are not meant to add up: `completeness_gap` says nothing."
    if trial.about["target"] == "input":
        yield _OUT_OF_RANGE


def _megabytes(tensors: Iterable[Tensor], samples: int, joins: bool) -> str:
    """The size of these tensors in a request, or in its answer."""
    count = sum(math.prod(tensor.example[int(joins) :]) * _width(tensor.datatype) for tensor in tensors)
    return f"{samples * count / 1e6:.3g} MB"


def _width(datatype: str) -> int:
    """The bytes of an element."""
    return _BYTES.get(datatype) or int("".join(filter(str.isdigit, datatype))) // 8


def _quoted(name: str) -> str:
    """A text as Python and JSON write it."""
    return json.dumps(name, ensure_ascii=False)
