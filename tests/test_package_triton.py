"""The entries of a Triton repository: configuration, the model of the Python backend, KServe's service, the README."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tritonclient
import yaml
from google.protobuf import text_format
from laws import model
from tritonclient.grpc import model_config_pb2 as schema
from tritonclient.utils import np_to_triton_dtype

import onnxlift
from onnxlift.serving import kserve
from onnxlift.serving.package import Repository, package_triton
from onnxlift.serving.triton import Serving

RNG = np.random.default_rng(5)
W = RNG.standard_normal((6, 3)).astype(np.float32)
MLP = "g (float[N, 6] x) => (float[N, 3] y) { h = MatMul(x, W) y = Tanh(h) }"
ALONE = """g (float[6] x, float s) => (float[3] y) {
    h = MatMul(x, W) t = Tanh(h) axis = Constant<value = int64[1] {0}>() u = Unsqueeze(s, axis) y = Mul(t, u)
}"""
ROWS = "g (float[N, L, 6] x) => (float[N, L, 3] y) { h = MatMul(x, W) y = Tanh(h) }"
LOOKUP = (
    "g (float[N, 6] x, int64[N] i) => (float[N, 6] y) { g = Gather(W, i) s = ReduceSum<keepdims = 0>(g) y = Mul(x, s) }"
)
MASKED = """g (float[N, 6] x, bool[N] b) => (float[N, 3] y) {
    z = Cast<to = 1>(b) u = Unsqueeze(z, one) h = MatMul(x, W) y = Mul(h, u)
}"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def package(text: str = MLP, *, serving: Serving | None = None, for_kserve: bool = False, **options: Any) -> Repository:
    """A repository in `out` of the explainer of a model."""
    weights = {"W": W, "one": np.array([1])} if text == MASKED else {"W": W}
    onnx.save(model(text, **weights), "m.onnx")
    onnxlift.rewrite_file("m.onnx", "e.onnx", **({"reference": "zeros", "target": 0} | options))
    Path("out").mkdir()
    return package_triton(Path("e.onnx"), Path("out"), serving=serving or Serving(), for_kserve=for_kserve)


def configuration(name: str = "e") -> Any:
    """What Triton reads."""
    return text_format.Parse(Path(f"out/{name}/config.pbtxt").read_text("utf-8"), schema.ModelConfig())


def dims(ports: Any) -> dict[str, list[int]]:
    return {port.name: list(port.dims) for port in ports}


# ------------------------------------------------------------------------------------------------ configuration


def test_a_configuration_says_what_the_explainer_takes() -> None:
    package(target="input", serving=Serving(max_batch=16, queue_delay=700))
    config, predict = configuration(), configuration("e_predict")
    assert (config.name, predict.name, config.backend) == ("e", "e_predict", "onnxruntime")
    assert dims(config.input) == {"x": [6], "target": [1]}
    assert dims(config.output)["x_contributions"] == [6]
    assert dims(predict.input) == {"x": [6]}
    assert dims(predict.output) == {"y": [3]}
    ports = {port.name: port for port in (*config.input, *config.output)}
    assert schema.DataType.Name(ports["target"].data_type) == "TYPE_INT64"
    assert schema.DataType.Name(ports["x"].data_type) == "TYPE_FP32"
    reshaped = {name for name, port in ports.items() if port.HasField("reshape")}
    assert reshaped == {"target", "target_output", "target_reference", "completeness_gap"}, "one number per sample"
    assert not any(ports[name].reshape.shape for name in reshaped)
    assert config.max_batch_size == predict.max_batch_size == 16
    assert config.dynamic_batching.max_queue_delay_microseconds == 700
    assert config.version_policy.latest.num_versions == 1
    assert [warmup.batch_size for warmup in config.model_warmup] == [1, 16]
    for warmup in config.model_warmup:
        assert {name: list(data.dims) for name, data in warmup.inputs.items()} == {"x": [6], "target": [1]}
        assert all(data.zero_data for data in warmup.inputs.values())
        assert warmup.inputs["target"].data_type == ports["target"].data_type


def test_dynamic_axes_are_minus_one_and_have_a_size_in_the_warmup() -> None:
    package(ROWS, target=(0, 0), reference="grouped")
    config = configuration()
    assert dims(config.input) == {"x": [-1, 6], "x_reference": [-1, -1, 6]}
    assert {name: list(data.dims) for name, data in config.model_warmup[0].inputs.items()} == {
        "x": [32, 6],
        "x_reference": [2, 32, 6],
    }


def test_without_a_free_batch_nothing_is_joined() -> None:
    package(ALONE, inputs=["x"])
    config = configuration()
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert dims(config.input) == {"x": [6], "s": [1]}, "with all axes, and never empty"
    assert dims(config.output)["completeness_gap"] == [1]
    assert not any(port.HasField("reshape") for port in (*config.input, *config.output))
    assert [warmup.batch_size for warmup in config.model_warmup] == [0]


@pytest.mark.parametrize(
    ("accelerator", "kind", "accelerators"),
    [
        ("auto", "KIND_AUTO", ["cuda"]),
        ("cpu", "KIND_CPU", []),
        ("cuda", "KIND_GPU", ["cuda"]),
        ("tensorrt", "KIND_GPU", ["tensorrt", "cuda"]),
    ],
)
def test_accelerators(accelerator: Any, kind: str, accelerators: list[str]) -> None:
    package(serving=Serving(accelerator=accelerator))
    config = configuration()
    (group,) = config.instance_group
    assert schema.ModelInstanceGroup.Kind.Name(group.kind) == kind
    found = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert [entry.name for entry in found] == accelerators
    assert all(entry.parameters["use_tf32"] == "0" for entry in found if entry.name == "cuda")
    assert ("cudnn_conv_algo_search" in config.parameters) == (accelerator != "cpu")
    assert config.parameters["memory.enable_memory_arena_shrinkage"].string_value == "cpu:0"


def test_onnx_runtime_states_the_shapes_that_triton_compares() -> None:
    """The backend wants the very dims of ONNX Runtime, with a dynamic axis in front where requests are joined."""
    package(ROWS, target=(0, 0), reference="paired")
    config = configuration()
    session = onnxruntime.InferenceSession("out/e/1/model.onnx", providers=["CPUExecutionProvider"])
    for port, value in zip(
        (*config.input, *config.output), (*session.get_inputs(), *session.get_outputs()), strict=True
    ):
        shape = [dim if isinstance(dim, int) else -1 for dim in value.shape]
        stated = list(port.reshape.shape if port.HasField("reshape") else port.dims)
        assert (port.name, [-1, *stated]) == (value.name, shape)


# ------------------------------------------------------------------------------------------------ the Python backend


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self.array, self.title = array, name

    def as_numpy(self) -> np.ndarray:
        return self.array


class Request:
    """A request as the Python backend hands it on. `wanted`: the outputs that it asks for."""

    def __init__(self, wanted: list[str] | None = None, **arrays: np.ndarray) -> None:
        self.tensors = {name: Tensor(name, array) for name, array in arrays.items()}
        self.wanted = wanted or ["y", "x_contributions", "completeness_gap"]

    def requested_output_names(self) -> list[str]:
        return self.wanted


class TritonError(Exception):
    INVALID_ARG = 3

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Response:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        self.error = error
        self.arrays = {tensor.title: tensor.array for tensor in output_tensors or []}


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Triton gives to model.py: `triton_python_backend_utils`. The warnings that were logged."""
    warned: list[str] = []
    utils = types.ModuleType("triton_python_backend_utils")
    utils.Tensor, utils.InferenceResponse, utils.TritonError = Tensor, Response, TritonError  # type: ignore[attr-defined]
    utils.get_input_tensor_by_name = lambda request, name: request.tensors.get(name)  # type: ignore[attr-defined]
    utils.Logger = types.SimpleNamespace(log_warn=warned.append)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    return warned


def instance(name: str = "e", kind: str = "CPU") -> Any:
    """An instance of the packaged model.py, initialized as Triton does it."""
    folder = Path("out").resolve() / name
    spec = importlib.util.spec_from_file_location("packaged", folder / "1/model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = configuration(name)
    told = {
        "max_batch_size": config.max_batch_size,
        "parameters": {key: {"string_value": value.string_value} for key, value in config.parameters.items()},
    }
    model = module.TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps(told),
            "model_repository": str(folder),
            "model_version": "1",
            "model_instance_kind": kind,
            "model_instance_device_id": "0",
        }
    )
    return model


class Counting:
    """A session that counts its runs."""

    def __init__(self, session: Any) -> None:
        self.session, self.runs = session, 0

    def run(self, *args: Any) -> Any:
        self.runs += 1
        return self.session.run(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


def expected(x: np.ndarray, **others: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession("out/e/1/model.onnx", providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {"x": x, **others}), strict=True))


def rows(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


PYTHON = Serving(backend="python")


def test_requests_of_one_execution_run_as_one_batch(backend: list[str]) -> None:
    package(serving=PYTHON)
    assert configuration().backend == "python"
    assert not configuration().HasField("optimization")
    served = instance()
    served.session = counting = Counting(served.session)
    requests = [Request(x=rows(n, 6)) for n in (1, 3, 2)]
    responses = served.execute(requests)
    assert counting.runs == 1
    whole = expected(np.concatenate([request.tensors["x"].array for request in requests]))
    starts = [0, 1, 4, 6]
    for k, response in enumerate(responses):
        assert set(response.arrays) == set(requests[k].wanted)
        for name, array in response.arrays.items():
            np.testing.assert_array_equal(array, whole[name][starts[k] : starts[k + 1]])


def test_only_requested_outputs_are_returned(backend: list[str]) -> None:
    package(serving=PYTHON)
    responses = instance().execute([Request(["y"], x=rows(2, 6)), Request(["completeness_gap"], x=rows(1, 6))])
    assert [list(response.arrays) for response in responses] == [["y"], ["completeness_gap"]]


def test_requests_of_other_sizes_run_apart(backend: list[str]) -> None:
    package(ROWS, target=(0, 0), serving=PYTHON)
    served = instance()
    served.session = counting = Counting(served.session)
    arrays = [rows(1, 4, 6), rows(2, 5, 6), rows(1, 4, 6)]
    responses = served.execute([Request(x=array) for array in arrays])
    assert counting.runs == 2
    for array, response in zip(arrays, responses, strict=True):
        np.testing.assert_allclose(response.arrays["x_contributions"], expected(array)["x_contributions"], atol=1e-6)


def test_an_error_is_of_the_request_that_makes_it(backend: list[str]) -> None:
    package(LOOKUP, inputs=["x"], serving=PYTHON)
    served = instance()
    x = rows(3, 6)
    requests = [Request(x=x[[k]], i=np.array([index])) for k, index in enumerate((1, 99, 0))]
    responses = served.execute(requests)
    assert [response.error is None for response in responses] == [True, False, True]
    assert responses[1].error.code == TritonError.INVALID_ARG
    assert "Gather" in str(responses[1].error)
    assert not re.search(r"onnxruntime|\n", str(responses[1].error), re.IGNORECASE), "nothing of its own source"
    for k, index in ((0, 1), (2, 0)):
        alone = expected(x[[k]], i=np.array([index]))
        np.testing.assert_array_equal(responses[k].arrays["y"], alone["y"])


def test_an_error_does_not_tell_of_the_source_of_onnx_runtime(backend: list[str]) -> None:
    package(ROWS, target=(0, 0), reference="grouped", serving=PYTHON)
    (response,) = instance().execute([Request(x=rows(2, 4, 6), x_reference=rows(3, 2, 4, 6))])
    assert "node" in str(response.error)
    assert not re.search(r"onnxruntime|\.(cc|h):", str(response.error), re.IGNORECASE)


def test_an_index_out_of_range_is_nan_for_its_request_alone(backend: list[str]) -> None:
    package(target="input", serving=PYTHON)
    requests = [Request(x=rows(1, 6), target=np.array([index])) for index in (2, -1, 3, 1 << 40, 0)]
    responses = instance().execute(requests)
    lost = [np.isnan(response.arrays["x_contributions"]).all() for response in responses]
    assert lost == [False, True, True, True, False]
    assert [bool(np.isnan(response.arrays["completeness_gap"]).all()) for response in responses] == lost
    assert all(np.isfinite(response.arrays["y"]).all() for response in responses)


def test_numbers_have_an_axis_in_requests(backend: list[str]) -> None:
    package(ALONE, inputs=["x"], serving=PYTHON)
    x, s = rows(6), rows(1)
    first, second = instance().execute([Request(x=x, s=s), Request(x=x + 1, s=s)])
    assert first.arrays["completeness_gap"].shape == (1,)
    np.testing.assert_array_equal(first.arrays["y"], expected(x, s=s.reshape(()))["y"])
    np.testing.assert_array_equal(second.arrays["y"], expected(x + 1, s=s.reshape(()))["y"])


def test_an_instance_on_a_gpu_without_cuda_says_so(backend: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    package(serving=PYTHON)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert instance(kind="GPU").session.get_providers() == ["CPUExecutionProvider"]
    assert "runs on the CPU" in backend[0]


def test_an_instance_on_a_gpu_asks_for_cuda_without_tf32(backend: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    package(serving=PYTHON)
    asked: list[Any] = []

    def session(path: str, options: Any, providers: list[Any]) -> Any:
        asked.extend(providers)
        return onnxruntime.capi.onnxruntime_inference_collection.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    instance(kind="GPU")
    assert asked == [("CUDAExecutionProvider", {"device_id": "0", "use_tf32": "0"}), "CPUExecutionProvider"]


# ------------------------------------------------------------------------------------------------ KServe


def test_the_service_of_kserve() -> None:
    package(serving=Serving(accelerator="cuda"), for_kserve=True)
    service = yaml.safe_load(Path("out/inferenceservice.yaml").read_text("utf-8"))
    assert (service["kind"], service["metadata"]["name"]) == ("InferenceService", "e")
    served = service["spec"]["predictor"]["model"]
    assert (served["modelFormat"]["name"], served["protocolVersion"]) == ("triton", "v2")
    assert served["resources"]["limits"]["nvidia.com/gpu"] == "1"
    threads = configuration().parameters["intra_op_thread_count"].string_value
    assert (
        served["resources"]["limits"]["cpu"]
        == threads
        == configuration("e_predict").parameters["intra_op_thread_count"].string_value
    )


@pytest.mark.parametrize(
    ("name", "service"), [("Mnist_CNN.v2", "mnist-cnn-v2"), ("a", "a"), ("2nd", None), ("a" * 41, None), ("__", None)]
)
def test_names_of_services(name: str, service: str | None) -> None:
    if service is None:
        with pytest.raises(onnxlift.errors.OptionError, match="--name"):
            kserve.service_name(name)
    else:
        assert kserve.service_name(name) == service


# ------------------------------------------------------------------------------------------------ the README


def blocks(language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```$", Path("out/README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )


class Sent:
    """An input as `tritonclient.http` sends it."""

    def __init__(self, name: str, shape: list[int], datatype: str) -> None:
        self.told = {"name": name, "shape": shape, "datatype": datatype}

    def set_data_from_numpy(self, array: np.ndarray) -> None:
        assert (list(array.shape), np_to_triton_dtype(array.dtype)) == (self.told["shape"], self.told["datatype"])


def test_the_calls_of_the_readme_fit_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    package(MASKED, inputs=["x"], target="input")
    config, sent = configuration(), {}

    def infer(name: str, inputs: list[Sent], outputs: list[str]) -> Any:
        sent[name] = [entry.told for entry in inputs], outputs
        return types.SimpleNamespace(as_numpy=lambda name: np.zeros(1))

    http = types.ModuleType("tritonclient.http")
    http.InferInput, http.InferRequestedOutput = Sent, str  # type: ignore[attr-defined]
    http.InferenceServerClient = lambda address: types.SimpleNamespace(infer=infer)  # type: ignore[attr-defined]
    monkeypatch.setattr(tritonclient, "http", http, raising=False)
    monkeypatch.setitem(sys.modules, http.__name__, http)
    (python,) = blocks("python")
    exec(compile(python, "README.md", "exec"), {})
    inputs, names = sent["e"]
    assert names == [port.name for port in config.output]
    shell = next(block for block in blocks("sh") if block.startswith("python3"))
    program = shlex.split(shell)[2]
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    for tensors in (inputs, json.loads(printed)["inputs"]):
        assert {tensor["name"]: list(tensor["shape"]) for tensor in tensors} == {
            port.name: [1, *port.dims] for port in config.input
        }
        assert {f"TYPE_{tensor['datatype']}" for tensor in tensors} == {
            schema.DataType.Name(port.data_type) for port in config.input
        }
    assert '"name": "b", "datatype": "BOOL", "shape": [1, 1], "data": [false]' in printed


@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
def test_a_new_version_made_as_the_readme_says_is_whole(backend: Any) -> None:
    package(serving=Serving(backend=backend))
    shell = next(block for block in blocks("sh") if block.startswith("onnxlift package"))
    shutil.copyfile("e.onnx", "out/new.onnx")
    program = (
        f"onnxlift() {{ {shlex.quote(sys.executable)} -c 'from onnxlift.cli import main; main()' \"$@\"; }}\n{shell}"
    )
    subprocess.run(["sh", "-ec", program], cwd="out", capture_output=True, check=True)
    for entry in ("out/e", "out/e_predict"):
        first, second = ({file.name for file in Path(entry, version).iterdir()} for version in "12")
        assert first == second


def test_hostile_names_stay_names() -> None:
    """A tensor may be called anything: the configuration, the Python and the shell of the README must not run it."""
    name = "x'\"`|$(touch pwned)\n```\n# "
    onnx.save(model(MLP, W=W), "m.onnx")
    changed = onnx.load("m.onnx")
    changed.graph.input[0].name = changed.graph.node[0].input[0] = name
    onnx.save(changed, "m.onnx")
    onnxlift.rewrite_file("m.onnx", "e.onnx", target=0, reference="zeros")
    Path("out").mkdir()
    package_triton(Path("e.onnx"), Path("out"), serving=Serving())
    assert configuration().input[0].name == name
    (python,) = blocks("python")
    compile(python, "README.md", "exec")
    shell = next(block for block in blocks("sh") if block.startswith("python3"))
    printed = subprocess.run(
        ["sh", "-c", shell.split("|\n  curl")[0]], capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(printed)["inputs"][0]["name"] == name
    assert not Path("pwned").exists()
