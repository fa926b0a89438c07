"""A model server of the KServe SDK that runs an explainer: what somebody writes who has KServe's own Python runtime.

Run as a process: kserve_server.py EXPLAINER NAME HTTP_PORT GRPC_PORT.
"""

from __future__ import annotations

import sys
from typing import Any

import onnxruntime
import uvicorn
from grpc import aio
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.utils.numpy_codec import from_np_dtype
from kserve.utils.utils import generate_uuid


class Explainer(Model):
    """Answers with all outputs of the graph, which is an ONNX file as any other: nothing of onnxlift is needed."""

    def __init__(self, name: str, path: str) -> None:
        super().__init__(name)
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.ready = True

    def predict(self, payload: InferRequest, headers: Any = None, response_headers: Any = None) -> InferResponse:
        results = self.session.run(None, {entry.name: entry.as_numpy() for entry in payload.inputs})
        outputs = []
        for value, array in zip(self.session.get_outputs(), results, strict=True):
            outputs.append(InferOutput(value.name, list(array.shape), from_np_dtype(array.dtype)))
            outputs[-1].set_data_from_numpy(array, binary_data=True)
        return InferResponse(payload.id or generate_uuid(), self.name, outputs)


class _Loopback(uvicorn.Config):
    def __init__(self, app: Any, **settings: Any) -> None:
        super().__init__(app, **settings | {"host": "127.0.0.1"})


def stay_on_loopback() -> None:
    """The SDK listens on every address, and has no option for that."""
    listen = aio.Server.add_insecure_port
    aio.Server.add_insecure_port = lambda self, address: listen(self, address.replace("[::]", "127.0.0.1"))
    uvicorn.Config = _Loopback


if __name__ == "__main__":
    stay_on_loopback()
    path, name, http_port, grpc_port = sys.argv[1:]
    server = ModelServer(http_port=int(http_port), grpc_port=int(grpc_port), enable_latency_logging=False)
    server.start([Explainer(name, path)])
