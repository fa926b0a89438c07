"""Requests of the Open Inference Protocol that have something wrong, for any server of it."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

_WAIT = 0.5  # seconds: a server may well wait for the rest of a request that never comes


@dataclass(frozen=True)
class Right:
    """What a right HTTP request has: the path of the model's inference, and its one input of float32."""

    path: str
    name: str
    array: np.ndarray

    def described(self, **other: Any) -> bytes:
        """The JSON of a request, with other entries of the tensor."""
        tensor = {"name": self.name, "datatype": "FP32", "shape": list(self.array.shape)} | other
        return json.dumps({"inputs": [tensor]}).encode()

    def post(self, body: bytes, headers: dict[str, Any] | None = None) -> bytes:
        lines = {"Host": "localhost", "Content-Length": len(body)} | (headers or {})
        head = "".join(f"{key}: {value}\r\n" for key, value in lines.items())
        return f"POST {self.path} HTTP/1.1\r\n{head}\r\n".encode() + body

    def with_bytes(self, tensor: bytes, size: Any = None, length: Any = None) -> bytes:
        """The tensor as bytes behind the JSON. `size`, `length`: what is said of the tensor and of the JSON."""
        head = self.described(parameters={"binary_data_size": self.array.nbytes if size is None else size})
        header = {"Inference-Header-Content-Length": len(head) if length is None else length}
        return self.post(head + tensor, header)


def _pick(rng: np.random.Generator, *values: Any) -> Any:
    return values[rng.integers(0, len(values))]


def _changed(message: bytes, places: int, rng: np.random.Generator) -> bytes:
    """The message with some of its first `places` bytes changed, where names, types and shapes are."""
    changed = bytearray(message)
    for place in rng.integers(0, places, 5):
        changed[place] = rng.integers(0, 256)
    return bytes(changed)


_KINDS: dict[str, Callable[[Right, np.random.Generator], bytes]] = {
    "random bytes": lambda right, rng: rng.bytes(rng.integers(1, 2000)),
    "random body": lambda right, rng: right.post(rng.bytes(rng.integers(0, 5000))),
    "no request": lambda right, rng: right.post(
        _pick(rng, b"", b"null", b"[]", b"7", b'"x"', b"{}", b'{"inputs": 5}', b'{"inputs": [7]}', b'{"inputs": [{}]}')
    ),
    "changed bytes": lambda right, rng: right.post(_changed(right.described(data=[0] * 20), 80, rng)),
    "deep JSON": lambda right, rng: right.post(  # at 70,000 levels Triton 2.51 itself ends: it reads JSON by recursion
        b'{"inputs":' + _pick(rng, b"[", b'{"a":', b'[{"data":') * rng.integers(1_000, 10_000)
    ),
    "wrong shape": lambda right, rng: right.post(
        right.described(
            shape=_pick(rng, [-1, 1, 28, 28], [2**62, 4], [2**63], [0], [], "all", [1.5], [None], [1] * 5000, {"a": 1}),
            data=[0],
        )
    ),
    "wrong data": lambda right, rng: right.post(
        right.described(data=_pick(rng, "text", {"a": 1}, [[]], [None] * right.array.size, [["x"]], [True], 7, [0] * 9))
    ),
    "wrong datatype": lambda right, rng: right.post(
        right.described(datatype=_pick(rng, "FP8", "", "BYTES", "INT64", "float32", 7), data=[0] * right.array.size)
    ),
    "tensor cut off": lambda right, rng: right.with_bytes(right.array.tobytes()[: rng.integers(0, right.array.nbytes)]),
    "bytes behind the tensor": lambda right, rng: right.with_bytes(right.array.tobytes() + rng.bytes(50)),
    "wrong size of the tensor": lambda right, rng: right.with_bytes(
        right.array.tobytes(), size=_pick(rng, -1, 0, 3, 2**31, 2**62, -(2**62), "all")
    ),
    "wrong length of the JSON": lambda right, rng: right.with_bytes(
        right.array.tobytes(), length=_pick(rng, -1, 1, 99_999_999, 2**64, "many", "")
    ),
    "wrong length of the body": lambda right, rng: right.post(
        right.described(data=[0]), {"Content-Length": _pick(rng, 2**40, 2**63, 2**64, -5, "x")}
    ),
    "wrong encoding": lambda right, rng: right.post(
        right.described(data=[0]), {"Content-Encoding": _pick(rng, "gzip", "deflate", "br")}
    ),
    "broken chunks": lambda right, rng: (
        f"POST {right.path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        + _pick(rng, b"ffffffff\r\n", b"-1\r\n", b"zz\r\nabc\r\n")
        + rng.bytes(50)
    ),
}


def http_requests(count: int, path: str, name: str, array: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """Requests as bytes, of every kind in turn, and what is wrong with each.

    `path`: of the model's inference. `name`, `array`: its one input, float32.
    """
    rng = np.random.default_rng(0)
    right = Right(path, name, array)
    for kind in itertools.islice(itertools.cycle(_KINDS), count):
        yield kind, _KINDS[kind](right, rng)


Message = service_pb2.ModelInferRequest


def _other(right: Message, **fields: Any) -> bytes:
    """A message with other fields: of its tensor, where that has them."""
    message = Message.FromString(right.SerializeToString())
    for name, value in fields.items():
        owner = message.inputs[0] if name in ("shape", "datatype", "contents") else message
        owner.ClearField(name)
        owner.MergeFrom(type(owner)(**{name: value}))
    return bytes(message.SerializeToString())


_MESSAGES: dict[str, Callable[[Message, np.random.Generator], bytes]] = {
    "random bytes": lambda right, rng: rng.bytes(rng.integers(1, 2000)),
    "cut off": lambda right, rng: right.SerializeToString()[: rng.integers(1, right.ByteSize())],
    "changed bytes": lambda right, rng: _changed(right.SerializeToString(), 40, rng),
    "wrong shape": lambda right, rng: _other(
        right, shape=_pick(rng, [-1, 1, 28, 28], [2**62, 4], [2**63 - 1], [0], [], [1] * 5000)
    ),
    "wrong datatype": lambda right, rng: _other(right, datatype=_pick(rng, "", "FP8", "BYTES", "INT64")),
    "wrong size of the tensor": lambda right, rng: _other(right, raw_input_contents=[rng.bytes(rng.integers(0, 3000))]),
    "no tensor": lambda right, rng: _other(right, raw_input_contents=[]),
    "another tensor": lambda right, rng: _other(right, contents={"int_contents": [1, 2, 3]}),
    "wrong version": lambda right, rng: _other(right, model_version=_pick(rng, "-1", "7", "../1", "x")),
    "wrong name": lambda right, rng: _other(right, model_name=_pick(rng, "", "..", "/", "x" * 1_000)),
}


def grpc_messages(count: int, right: bytes) -> Iterator[tuple[str, bytes]]:
    """Messages of ModelInfer, of every kind in turn, and what is wrong with each. `right`: one that is answered."""
    rng = np.random.default_rng(0)
    for kind in itertools.islice(itertools.cycle(_MESSAGES), count):
        yield kind, _MESSAGES[kind](Message.FromString(right), rng)


def send(address: str, request: bytes) -> int | None:
    """Send bytes to an HTTP server; the status that it answers, or None where it closes or says nothing."""
    host, port = address.split(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.settimeout(_WAIT)
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(100)
        except OSError:
            return None
    return int(answer.split()[1]) if answer.startswith(b"HTTP/") else None
