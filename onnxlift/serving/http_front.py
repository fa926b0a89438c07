"""The Open Inference Protocol over HTTP, and what Prometheus reads.

A request is JSON, behind which tensors may follow as bytes (the protocol's extension "binary_tensor_data").
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np
import orjson
from aiohttp import web

from onnxlift.arrays import Array
from onnxlift.errors import DataError
from onnxlift.serving import metrics
from onnxlift.serving.protocol import VERSION, Request, Signature, from_numbers, server_metadata
from onnxlift.serving.service import SECONDS, Refusal, Service, refused

HEADER_LENGTH = "Inference-Header-Content-Length"
"""The header that says how many bytes are JSON, where tensors follow."""

_MOST_LISTS = 1_000_000  # in the JSON: 20 million of them, in 64 MB, would take Python half a minute
_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "a text"}
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def _refusals_as_json(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """What an endpoint answers, or its refusal."""
    try:
        return await handler(request)
    except web.HTTPException as error:  # no such path, or another method
        return web.json_response({"error": error.reason}, status=error.status)
    except Exception as error:
        refusal = refused(error)
        headers = {"Retry-After": "1"} if refusal.status == 503 else {}
        return web.json_response({"error": str(refusal)}, status=refusal.status, headers=headers)


class HttpFront:
    """The endpoints. A refusal is JSON, {"error": one paragraph}."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def application(self) -> web.Application:
        """The endpoints by path."""
        app = web.Application(client_max_size=self._service.limits.size, middlewares=[_refusals_as_json])
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v2", self._server)
        app.router.add_get("/v2/health/live", self._healthy)
        app.router.add_get("/v2/health/ready", self._healthy)
        for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            app.router.add_get(model, self._model)
            app.router.add_get(f"{model}/ready", self._ready)
            app.router.add_post(f"{model}/infer", self._infer)
        return app

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._service.metrics.text(), headers={"Content-Type": metrics.CONTENT_TYPE})

    async def _server(self, request: web.Request) -> web.Response:
        return web.json_response(server_metadata())

    async def _healthy(self, request: web.Request) -> web.Response:
        return web.json_response({})

    async def _model(self, request: web.Request) -> web.Response:
        self._check(request)
        return web.json_response(self._service.signature.metadata())

    async def _ready(self, request: web.Request) -> web.Response:
        self._check(request)
        return web.json_response({"name": self._service.signature.name, "ready": True})

    def _check(self, request: web.Request) -> None:
        self._service.check(request.match_info["name"], request.match_info.get("version", ""))

    async def _infer(self, request: web.Request) -> web.StreamResponse:
        return await self._service.answer("http", functools.partial(self._inferred, request))

    async def _inferred(self, request: web.Request) -> web.StreamResponse:
        """Read the request, compute, and write the answer. Whoever sends or takes it slowly is given up."""
        self._check(request)
        header = request.headers.get(HEADER_LENGTH)
        async with asyncio.timeout(SECONDS):
            body = await self._body(request)
        answer, length = await self._service.compute(functools.partial(self._computed, body, header))
        response = web.Response(body=answer, content_type="application/json")
        if length is not None:
            response.content_type = "application/octet-stream"
            response.headers[HEADER_LENGTH] = str(length)
        try:
            async with asyncio.timeout(SECONDS):
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
            raise
        return response

    async def _body(self, request: web.Request) -> bytes:
        """The body, of which no more is held than may be."""
        limit = self._service.limits.size
        try:
            if (request.content_length or 0) > limit:
                raise web.HTTPRequestEntityTooLarge(limit)
            return await request.read()
        except web.HTTPRequestEntityTooLarge as error:
            raise Refusal(413, f"the request has more than {limit} bytes: send fewer samples at a time") from error
        except web.RequestPayloadError as error:
            raise Refusal(400, "the body of the request is not encoded as its headers say: send it again") from error

    def _computed(self, body: bytes, header: str | None) -> tuple[bytes, int | None]:
        signature = self._service.signature
        request = read(signature, body, header)
        return written(signature, request, self._service.explain(request))


def read(signature: Signature, body: bytes, header: str | None) -> Request:
    """The request in a body; `header` is its HEADER_LENGTH, if it has one. Raises DataError."""
    if header is not None and not (header.isdecimal() and len(header) < 16 and int(header) <= len(body)):
        raise DataError(f"the header {HEADER_LENGTH} is {header[:20]!r}, and must be a length of at most {len(body)}")
    length = len(body) if header is None else int(header)
    text = body[:length]
    if text.count(b"[") + text.count(b"{") > _MOST_LISTS:
        raise DataError(f"the request has more than {_MOST_LISTS} lists: give the data of inputs flat, or as bytes")
    try:
        asked = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise DataError(f"the request is not JSON: {error}. If tensors follow, {HEADER_LENGTH} is needed") from error
    rest = memoryview(body)[length:]
    arrays: dict[str, Array] = {}
    for entry in _field(asked, "inputs", list, "the request"):
        name = _field(entry, "name", str, "an input of the request")
        what = f"input {name!r}"
        datatype, shape = _field(entry, "datatype", str, what), _field(entry, "shape", list, what)
        shape = signature.fit(name, datatype, shape, arrays)
        size = _given(entry, "parameters", dict, what).get("binary_data_size")
        if size is None:
            arrays[name] = from_numbers(name, shape, _field(entry, "data", list, what))
        elif type(size) is not int or entry.get("data") is not None or not 0 <= size <= len(rest):
            raise DataError(f"{what} has binary_data_size {size!r}, or `data` too; {len(rest)} bytes are left for it")
        else:
            arrays[name] = signature.from_bytes(name, shape, rest[:size])
            rest = rest[size:]
    if len(rest):
        raise DataError(f"{len(rest)} bytes of the request belong to no input: give each its binary_data_size")
    as_bytes = _given(asked, "parameters", dict, "the request").get("binary_data_output") is True
    outputs = {}
    for entry in _given(asked, "outputs", list, "the request"):
        name = _field(entry, "name", str, "an output of the request")
        outputs[name] = _given(entry, "parameters", dict, f"output {name!r}").get("binary_data", as_bytes) is True
    return Request(_given(asked, "id", str, "the request"), arrays, signature.wanted(outputs, as_bytes))


def written(signature: Signature, request: Request, results: Mapping[str, Array]) -> tuple[bytes, int | None]:
    """The body of the answer, and how many of its bytes are JSON where tensors follow. JSON has null for NaN."""
    outputs: list[dict[str, Any]] = []
    tensors: list[bytes] = []
    for name, as_bytes in request.outputs.items():
        array = results[name]
        output = {"name": name, "datatype": signature.outputs[name].datatype, "shape": array.shape}
        if as_bytes:
            tensors.append(array.tobytes())
            output["parameters"] = {"binary_data_size": array.nbytes}
        else:
            output["data"] = np.ascontiguousarray(array).ravel()
        outputs.append(output)
    answer = {"model_name": signature.name, "model_version": VERSION, "outputs": outputs}
    if request.id:
        answer["id"] = request.id
    header = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return b"".join([header, *tensors]), len(header) if tensors else None


def _field(entry: Any, key: str, kind: type, what: str) -> Any:
    """A value in JSON that must be there and of this kind."""
    value = entry.get(key) if isinstance(entry, dict) else None
    if type(value) is not kind:
        raise DataError(f"{what} needs {key!r}, {_KINDS[kind]}")
    return value


def _given(entry: Any, key: str, kind: type, what: str) -> Any:
    """A value in JSON that may be left out, and is empty then."""
    if isinstance(entry, dict) and entry.get(key) is None:
        return kind()
    return _field(entry, key, kind, what)
