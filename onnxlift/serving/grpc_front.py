"""The Open Inference Protocol over gRPC, in the messages of tritonclient."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc import aio
from tritonclient.grpc import service_pb2

from onnxlift.arrays import Array
from onnxlift.errors import DataError
from onnxlift.serving.protocol import VERSION, Request, Signature, from_numbers, server_metadata
from onnxlift.serving.service import Service, refused

_SERVICE = "inference.GRPCInferenceService"
_PROBES = 8  # calls that may be under way besides those that are limited
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    503: grpc.StatusCode.UNAVAILABLE,
}
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


class GrpcFront:
    """The methods. They take and give bytes, because big messages are read and written where requests are computed."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def server(self) -> aio.Server:
        """A server that does not listen yet. gRPC itself refuses messages that are too large, before they are read."""
        limits = self._service.limits
        server = aio.server(
            options=[
                ("grpc.so_reuseport", 0),  # or a second server would share the port
                ("grpc.max_receive_message_length", limits.size),
                ("grpc.max_send_message_length", -1),
            ],
            maximum_concurrent_rpcs=limits.concurrency + _PROBES,
        )
        methods = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(functools.partial(_answered, method))
            for name, method in methods.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
        return server

    async def _server_live(self, data: bytes) -> bytes:
        return _serialized(service_pb2.ServerLiveResponse(live=True))

    async def _server_ready(self, data: bytes) -> bytes:
        return _serialized(service_pb2.ServerReadyResponse(ready=True))

    async def _server_metadata(self, data: bytes) -> bytes:
        return _serialized(service_pb2.ServerMetadataResponse(**server_metadata()))

    async def _model_ready(self, data: bytes) -> bytes:
        self._check(_parsed(service_pb2.ModelReadyRequest, data))
        return _serialized(service_pb2.ModelReadyResponse(ready=True))

    async def _model_metadata(self, data: bytes) -> bytes:
        self._check(_parsed(service_pb2.ModelMetadataRequest, data))
        return _serialized(service_pb2.ModelMetadataResponse(**self._service.signature.metadata()))

    def _check(self, asked: Any) -> None:
        self._service.check(asked.name, asked.version)

    async def _model_infer(self, data: bytes) -> bytes:
        return await self._service.answer(
            "grpc", lambda: self._service.compute(functools.partial(self._computed, data))
        )

    def _computed(self, data: bytes) -> bytes:
        asked = _parsed(service_pb2.ModelInferRequest, data)
        self._service.check(asked.model_name, asked.model_version)
        signature = self._service.signature
        request = read(signature, asked)
        return written(signature, request, self._service.explain(request))


async def _answered(method: Callable[[bytes], Awaitable[bytes]], data: bytes, context: Any) -> bytes:
    """What a method answers, or its refusal."""
    try:
        return await method(data)
    except Exception as error:
        refusal = refused(error)
    await context.abort(_CODES.get(refusal.status, grpc.StatusCode.INTERNAL), str(refusal))
    raise refusal  # not reached: abort raises what ends the call


def read(signature: Signature, asked: Any) -> Request:
    """The request in a ModelInferRequest. Raises DataError."""
    raw = asked.raw_input_contents
    if raw and len(raw) != len(asked.inputs):
        raise DataError(f"the request has {len(asked.inputs)} inputs and {len(raw)} raw_input_contents")
    arrays: dict[str, Array] = {}
    for index, entry in enumerate(asked.inputs):
        name, datatype = entry.name, entry.datatype
        shape = signature.fit(name, datatype, list(entry.shape), arrays)
        if raw and entry.HasField("contents"):
            raise DataError(f"input {name!r} has contents and raw_input_contents: leave one out")
        if raw:
            arrays[name] = signature.from_bytes(name, shape, raw[index])
        elif datatype in _CONTENTS:
            arrays[name] = from_numbers(name, shape, list(getattr(entry.contents, _CONTENTS[datatype])))
        else:
            raise DataError(f"input {name!r} is {datatype}, which gRPC has in raw_input_contents alone")
    outputs = signature.wanted({output.name: True for output in asked.outputs}, True)
    return Request(asked.id, arrays, outputs)


def written(signature: Signature, request: Request, results: Mapping[str, Array]) -> bytes:
    """A serialized ModelInferResponse."""
    answer = service_pb2.ModelInferResponse(model_name=signature.name, model_version=VERSION, id=request.id)
    for name in request.outputs:
        answer.outputs.add(name=name, datatype=signature.outputs[name].datatype, shape=results[name].shape)
        answer.raw_output_contents.append(results[name].tobytes())
    return _serialized(answer)


def _parsed(message: Any, data: bytes) -> Any:
    """A protobuf message of this class. Raises DataError."""
    try:
        return message.FromString(data)
    except DecodeError as error:
        raise DataError(f"the request is no {message.DESCRIPTOR.name} of the protocol: {error}") from error


def _serialized(message: Any) -> bytes:
    return bytes(message.SerializeToString())
