"""`onnxlift serve` as a process, and requests to it made by hand."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from serving.explainers import Arrays

import onnxlift
from onnxlift.serving.contract import DATATYPES

COMMAND = [sys.executable, "-W", "error", "-c", "from onnxlift.cli import main; main()", "serve"]
HEADER = "Inference-Header-Content-Length"
INFER = "/inference.GRPCInferenceService/ModelInfer"
_STOP = 60  # seconds


class Server:
    """A server process on free ports. `ready_after`: seconds from its start."""

    def __init__(self, path: Path, *options: str) -> None:
        start = time.monotonic()
        self.name = path.stem
        self.process = subprocess.Popen(
            [*COMMAND, str(path), "--port", "0", "--grpc-port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        found = re.fullmatch(r"serving http://(127\.0\.0\.1:\d+)/v2/models/\S+ and grpc://(127\.0\.0\.1:\d+)\n", said)
        assert found, said + str(self.process.communicate(timeout=_STOP))
        self.http, self.grpc = found.groups()
        self.ready_after = time.monotonic() - start

    def address(self, protocol: str) -> str:
        return self.http if protocol == "http" else self.grpc

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop it, and hold that it ends well, has said nothing on stderr, and that its ports are free."""
        self.process.send_signal(number)
        try:
            _, errors = self.process.communicate(timeout=_STOP)
        finally:
            self.process.kill()
        assert (self.process.returncode, errors) == (0, ""), errors[-3000:]
        for address in (self.http, self.grpc):
            socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))).close()

    def call(self, method: str, path: str, body: bytes | Iterator[bytes] = b"", **headers: str) -> tuple[int, Any, Any]:
        """Status, headers, and the body as JSON or as it is."""
        host, port = self.http.split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            data = answer.read()
        if (answer.headers["Content-Type"] or "").startswith("application/json"):
            return answer.status, answer.headers, json.loads(data)
        return answer.status, answer.headers, data

    def infer(self, body: bytes | Iterator[bytes], **headers: str) -> tuple[int, Any, Any]:
        return self.call("POST", f"/v2/models/{self.name}/infer", body, **headers)

    def send(self, request: bytes) -> int | None:
        """Send bytes over HTTP; the status that is answered, or None where it waits for more.

        What is sent is not ended, because aiohttp answers nobody who has stopped talking.
        """
        host, port = self.http.split(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.settimeout(0.5)
            try:
                connection.sendall(request)
                answer = connection.recv(100)
            except OSError:
                return None
        return int(answer.split()[1]) if answer else None

    def metric(self, name: str) -> float:
        """The sum over the labels of what /metrics says."""
        text = self.call("GET", "/metrics")[2].decode()
        return sum(float(line.split()[1]) for line in text.splitlines() if re.match(rf"{name}(\{{.*\}})? ", line))


@contextlib.contextmanager
def serving(path: Path, *options: str) -> Iterator[Server]:
    server = Server(path, *options)
    try:
        yield server
    except BaseException:
        server.process.kill()
        print(server.process.communicate())
        raise
    server.stop()


def explained(path: Path, feed: Arrays, batch_size: int | None = None) -> Arrays:
    return onnxlift.Explainer(path, batch_size=batch_size, progress=False)(feed).arrays()


def in_json(feed: Arrays, **more: object) -> bytes:
    tensors = [
        {"name": name, "datatype": DATATYPES[f"tensor({'float' if array.dtype == 'f4' else array.dtype})"]}
        | {"shape": array.shape, "data": array.tolist()}
        for name, array in feed.items()
    ]
    return json.dumps({"inputs": tensors, **more}).encode()


def in_bytes(array: np.ndarray, **other: object) -> tuple[bytes, dict[str, str]]:
    """A request with the input x as bytes, and its headers. `other`: of the tensor."""
    data = array.tobytes()
    tensor = {"name": "x", "datatype": "FP32", "shape": array.shape, "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [tensor | other], "parameters": {"binary_data_output": True}}).encode()
    return head + data, {HEADER: str(len(head))}


def refusal(answer: tuple[int, Any, Any], status: int = 400) -> str:
    """The message of a refusal, which is one short paragraph."""
    assert answer[0] == status, answer
    (message,) = answer[2].values()
    assert len(message) <= 1004
    assert "\n" not in message
    assert "Traceback" not in message
    return str(message)
