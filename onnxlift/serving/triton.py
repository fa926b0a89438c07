"""Entries of a Triton model repository: NAME/config.pbtxt, NAME/VERSION/model.onnx and, for one backend, model.py.

The configuration is a message of Triton's own schema. Two choices that the fields do not explain:

* No preferred batch sizes: Triton then takes what waits, up to the largest batch, once an instance is free or the delay
  is over. Preferred sizes pay where an engine is compiled for them.
* Warm-up data are zeros: valid as values, token ids and targets alike, which random bits are not.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from onnx import ModelProto

from onnxlift.arrays import replacing
from onnxlift.errors import OptionError
from onnxlift.files import save, save_with_weights, weights_elsewhere
from onnxlift.serving.contract import Contract, Tensor

Backend = Literal["onnxruntime", "python"]
Accelerator = Literal["auto", "cpu", "cuda", "tensorrt"]

_HEADER = "# Written by `onnxlift package`; README.md beside this folder says what the fields do.\n"
_KINDS = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "cuda": "KIND_GPU", "tensorrt": "KIND_GPU"}
# As Explainer runs: float32 with all its bits, for TF32 is off by 1e-3.
_CUDA = {"use_tf32": "0"}
_TENSORRT = {"precision_mode": "FP32"}


@dataclass(frozen=True)
class Serving:
    """How an entry is served.

    `max_batch`: the samples of one run. `queue_delay`: for how many microseconds a request waits for others.
    `threads`: of a run on the CPU, where the processors that the server may use are not all of the machine's.
    """

    backend: Backend = "onnxruntime"
    accelerator: Accelerator = "auto"
    version: int = 1
    max_batch: int = 32
    queue_delay: int = 500
    threads: int | None = None


def write_entry(folder: Path, contract: Contract, serving: Serving) -> None:
    """Complete the entry of a model that `write_model` put into `folder`."""
    with replacing(folder / "config.pbtxt") as file:
        file.write((_HEADER + configuration(folder.name, contract, serving)).encode())
    if serving.backend == "python":
        shutil.copyfile(Path(__file__).with_name("python_model.py"), folder / str(serving.version) / "model.py")


def write_model(folder: Path, model: ModelProto, weights: Path, version: int) -> Path:
    """Write a model into an entry of a repository, with its own copy of the external data that lie in `weights`.

    Raises ModelError where these are missing, or outside of that folder.
    """
    path = folder / str(version) / "model.onnx"
    os.makedirs(path.parent)
    if weights_elsewhere(model, weights):
        save_with_weights(model, path, weights)
    else:
        save(model, path)
    return path


def configuration(name: str, contract: Contract, serving: Serving) -> str:
    """The text of config.pbtxt. Raises OptionError where tritonclient is not installed."""
    try:
        from google.protobuf import text_format
        from tritonclient.grpc import model_config_pb2 as schema
    except ImportError as error:
        raise OptionError("packaging for Triton needs tritonclient: pip install 'onnxlift[triton]'") from error
    config = schema.ModelConfig(name=name, backend=serving.backend)
    if contract.joins:
        config.max_batch_size = serving.max_batch
        config.dynamic_batching.max_queue_delay_microseconds = serving.queue_delay
    config.input.extend(_port(schema.ModelInput, schema, tensor, contract.joins) for tensor in contract.inputs)
    config.output.extend(_port(schema.ModelOutput, schema, tensor, contract.joins) for tensor in contract.outputs)
    config.instance_group.add(count=1, kind=_KINDS[serving.accelerator])
    config.version_policy.latest.num_versions = 1
    for key, value in _parameters(serving).items():
        config.parameters[key].string_value = value
    if serving.backend == "onnxruntime" and serving.accelerator != "cpu":
        accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
        if serving.accelerator == "tensorrt":
            accelerators.add(name="tensorrt", parameters=_TENSORRT)
        accelerators.add(name="cuda", parameters=_CUDA)  # for what TensorRT leaves
    for batch in dict.fromkeys((1, serving.max_batch)) if contract.joins else (0,):
        warmup = config.model_warmup.add(name=f"zeros, batch {batch}" if batch else "zeros", batch_size=batch)
        for tensor in contract.inputs:
            data = warmup.inputs[tensor.name]
            data.data_type = schema.DataType.Value(f"TYPE_{tensor.datatype}")
            data.dims.extend(_dims(tensor.example, contract.joins))
            data.zero_data = True
    return str(text_format.MessageToString(config, use_short_repeated_primitives=True))


def _parameters(serving: Serving) -> dict[str, str]:
    """What ONNX Runtime is told: no memory pattern, as in the sessions of `Explainer`, and to give memory back.

    After a batch of 32 images a network of eight convolutions kept 970 MB, and 340 MB with shrinkage. A single sample
    took the same processor time, batches 1.1 to 1.3 times.
    """
    parameters = {"enable_mem_pattern": "0", "memory.enable_memory_arena_shrinkage": "cpu:0"}
    if serving.threads is not None:
        parameters["intra_op_thread_count"] = str(serving.threads)
    if serving.accelerator != "cpu":
        # 1 is HEURISTIC. An exhaustive search would repeat for every size of a batch. Only this place counts: from the
        # accelerator's parameters, Triton's backend overwrites it with EXHAUSTIVE.
        parameters["cudnn_conv_algo_search"] = "1"
    return parameters


def _port(kind: Any, schema: Any, tensor: Tensor, joins: bool) -> Any:
    """A tensor as the schema's input or output. Triton has no empty dims: a number per sample is [1], reshaped."""
    port = kind(name=tensor.name, data_type=f"TYPE_{tensor.datatype}", dims=_dims(tensor.shape, joins))
    if joins and len(tensor.shape) == 1:
        port.reshape.SetInParent()
    return port


def _dims(shape: tuple[int, ...], joins: bool) -> tuple[int, ...]:
    """A shape as Triton states it: without the axis of batches that it makes itself, and never empty."""
    return (shape[1:] if joins else shape) or (1,)
