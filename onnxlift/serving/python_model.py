"""A model of Triton's Python backend: runs model.onnx, which lies beside this file, with ONNX Runtime.

For builds of Triton without the onnxruntime backend. `onnxlift package --backend python` copies this file. It needs
NumPy and ONNX Runtime in the interpreter of the backend, and nothing of onnxlift.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"


class TritonPythonModel:
    """One instance of a model. Triton calls `initialize` once, and `execute` with the requests that it joined."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open model.onnx. `args`: as Triton documents them; raises what ONNX Runtime does where the file is broken."""
        config = json.loads(args["model_config"])
        parameters = {key: entry["string_value"] for key, entry in config.get("parameters", {}).items()}
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is told to the client
        options.enable_mem_pattern = parameters.get("enable_mem_pattern") != "0"
        options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", 0))
        self.run_options = ort.RunOptions()
        shrinkage = "memory.enable_memory_arena_shrinkage"
        if shrinkage in parameters:
            self.run_options.add_run_config_entry(shrinkage, parameters[shrinkage])
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self.session = ort.InferenceSession(path, options, providers=providers(args))
        self.joins = config["max_batch_size"] > 0
        self.inputs = {value.name: len(value.shape) for value in self.session.get_inputs()}

    def execute(self, requests: list[Any]) -> list[Any]:
        """A response for each request. Those whose samples have the same shapes run as one batch."""
        responses: list[Any] = [None] * len(requests)
        groups: dict[Any, dict[int, dict[str, Any]]] = {}
        for place, request in enumerate(requests):
            arrays = {name: self.array(request, name) for name in self.inputs}
            alike = tuple(array.shape[1:] for array in arrays.values()) if self.joins else place
            groups.setdefault(alike, {})[place] = arrays
        for group in groups.values():
            for place, result in self.results(group).items():
                responses[place] = response(requests[place], result)
        return responses

    def array(self, request: Any, name: str) -> Any:
        """An input of a request as model.onnx takes it: what is a number there is [1] in a request."""
        array = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
        return array if self.inputs[name] else array.reshape(())

    def results(self, group: dict[int, dict[str, Any]]) -> dict[int, Any]:
        """The outputs of each request by name, or the error of those that ONNX Runtime refuses; by place."""
        try:
            return self.joined(group)
        except Exception as error:  # ONNX Runtime's exceptions have no common class
            if len(group) == 1:
                return dict.fromkeys(group, error)
        found: dict[int, Any] = {}
        for place, arrays in group.items():  # which of them it was, and the others get their results
            found.update(self.results({place: arrays}))
        return found

    def joined(self, group: dict[int, dict[str, Any]]) -> dict[int, Any]:
        """The outputs of requests that run as one batch."""
        first = next(iter(group.values()))
        feed = first
        if len(group) > 1:
            feed = {name: np.concatenate([arrays[name] for arrays in group.values()]) for name in first}
        names = [value.name for value in self.session.get_outputs()]
        whole = dict(zip(names, self.session.run(names, feed, self.run_options), strict=True))
        if len(group) == 1:
            return dict.fromkeys(group, whole)
        found, start = {}, 0
        for place, arrays in group.items():
            stop = start + len(next(iter(arrays.values())))
            found[place] = {name: array[start:stop] for name, array in whole.items()}
            start = stop
        return found


def providers(args: dict[str, str]) -> list[Any]:
    """Of an instance: CUDA without TF32 where it is placed on a GPU and this ONNX Runtime has CUDA, and the CPU."""
    if args["model_instance_kind"] != "GPU":
        return [CPU]
    if CUDA not in ort.get_available_providers():
        pb_utils.Logger.log_warn(
            "the instance is placed on a GPU, but this ONNX Runtime has no CUDA: it runs on the CPU"
        )
        return [CPU]
    return [(CUDA, {"device_id": args["model_instance_device_id"], "use_tf32": "0"}), CPU]


def response(request: Any, result: Any) -> Any:
    """What a request gets: the outputs that it asked for, or its error."""
    if isinstance(result, Exception):
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(told(result), pb_utils.TritonError.INVALID_ARG))
    wanted = request.requested_output_names()
    tensors = [pb_utils.Tensor(name, np.atleast_1d(array)) for name, array in result.items() if name in wanted]
    return pb_utils.InferenceResponse(output_tensors=tensors)


def told(error: Exception) -> str:
    """What ONNX Runtime says of a request that it refuses, without its own files and lines."""
    text = re.sub(r"^(\[ONNXRuntimeError\] : \d+ : \w+ : )+", "", " ".join(str(error).split()))
    return re.sub(r"\S*onnxruntime_src\S*:\d+ .*?\)( const)? ", "", text)
