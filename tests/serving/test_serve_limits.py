"""`onnxlift serve` under load and at its end: how large requests may be, how many, how slow, and who is waited for."""

from __future__ import annotations

import concurrent.futures
import contextlib
import gzip
import http.client
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from serving.client import Client
from serving.conftest import Table
from serving.explainers import DIGITS, MODELS, Arrays, same_bits
from serving.serve import COMMAND, HEADER, INFER, Server, explained, in_bytes, in_json, refusal, serving
from serving.triton import free_ports
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

import onnxlift

RNG = np.random.default_rng(6)
X = DIGITS.rows(2, RNG)["x"]


@pytest.fixture(scope="module")
def digits(explainers: dict[str, Path]) -> Iterator[Server]:
    """A server for the tests that leave it as it is."""
    with serving(explainers["digits"], "--batch-size", "16") as server:
        yield server


def test_the_size_of_a_request(explainers: dict[str, Path], table: Table) -> None:
    with serving(explainers["digits"], "--max-request-size", "100KB") as server:
        few, many = (np.zeros((count, 1, 28, 28), np.float32) for count in (30, 40))
        for x, expected in ((few, 200), (many, 413)):
            body, headers = in_bytes(x)
            assert server.infer(body, **headers)[0] == expected
            assert server.infer((body[i : i + 5000] for i in range(0, len(body), 5000)), **headers)[0] == expected
            packed = gzip.compress(body)
            assert server.infer(packed, **headers, Content_Encoding="gzip")[0] == expected
        before = server.metric("process_resident_memory_bytes")
        endless = (bytes(1 << 20) for _ in range(2000))
        with contextlib.suppress(OSError):  # the server closes before all of it is sent
            assert server.infer(endless)[0] == 413
        bomb = gzip.compress(bytes(500_000_000), 9)[:90_000]
        assert server.infer(bomb, Content_Encoding="gzip")[0] in (400, 413)
        with Client("grpc", server.grpc) as client:
            client.infer("digits", {"x": few})
            with pytest.raises(InferenceServerException, match="larger than max") as raised:
                client.infer("digits", {"x": many})
            assert raised.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        grown = server.metric("process_resident_memory_bytes") - before
        assert grown < 32e6
        table.add(
            "onnxlift serve",
            "2 GB in chunks and a gzip bomb, at most 100 KB: growth of memory",
            f"{grown / 1e6:.0f} MB",
        )


def test_json_that_takes_long(digits: Server, table: Table) -> None:
    """60 MB in values that cost most; meanwhile the server answers others."""
    start = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1, 28, 28], "data": ['
    for unit, message in (
        (b"[],", "more than 1000000 lists"),
        (b"0.5,", "are not 784 numbers"),
        (b'"a",', "are not 784"),
    ):
        body = start + unit * (60_000_000 // len(unit)) + b"0]}]}"
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            asked = pool.submit(digits.infer, body)
            slowest = 0.0
            while not asked.done():
                begin = time.monotonic()
                assert digits.call("GET", "/v2/health/ready")[0] == 200
                slowest = max(slowest, time.monotonic() - begin)
        assert message in refusal(asked.result())
        assert slowest < 15
        table.add("onnxlift serve", f"60 MB of JSON, {unit.decode()}: health meanwhile, at most", f"{slowest:.1f} s")


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An explainer that takes a second for SLOW."""
    path = tmp_path_factory.mktemp("slow") / "slow.onnx"
    onnxlift.rewrite_file(
        MODELS / "experiments" / "deeplift_genomics.onnx", path, target=0, reference="shuffle:50", one_hot={"x": 1}
    )
    return path


SLOW = {"x": np.eye(4, dtype=np.float32)[RNG.integers(0, 4, (30, 200))].swapaxes(1, 2).copy()}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_number_of_requests(protocol: str, slow: Path, table: Table) -> None:
    expected = explained(slow, SLOW, 8)

    def ask(_: int) -> str:
        with Client(protocol, server.address(protocol)) as client:
            try:
                same_bits(client.infer("slow", SLOW), expected)
            except InferenceServerException as error:
                return str(error.status())
            return "right"

    with serving(slow, "--concurrency", "2", "--batch-size", "8") as server:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            start = time.monotonic()
            asked = [pool.submit(ask, place) for place in range(8)]
            while server.metric("onnxlift_requests_under_way") < 2:
                time.sleep(0.01)
            seen = time.monotonic()
            assert server.call("GET", "/v2/health/ready")[0] == 200
            responsive = time.monotonic() - seen
            answers = sorted(each.result() for each in asked)
            took = time.monotonic() - start
        full = "503" if protocol == "http" else "StatusCode.UNAVAILABLE"
        assert answers == [full] * answers.count(full) + ["right"] * answers.count("right")
        assert answers.count("right") >= 2
        assert answers.count(full) >= 1
        assert server.metric("onnxlift_requests_under_way") == 0
        assert ask(0) == "right"
    table.add(
        "onnxlift serve",
        f"8 requests at once over {protocol}, at most 2",
        f"{answers.count('right')} right, {answers.count(full)} refused, {took:.1f} s",
    )
    table.add("onnxlift serve", f"health while it computes for {protocol}", f"{1000 * responsive:.0f} ms")


def test_come_again(slow: Path) -> None:
    with serving(slow, "--concurrency", "1") as server:
        thread = threading.Thread(target=server.infer, args=[in_json(SLOW)])
        thread.start()
        while server.metric("onnxlift_requests_under_way") < 1:
            time.sleep(0.01)
        answer = server.infer(b"{}")
        assert "1 requests are under way, as many as may be: try again" in refusal(answer, 503)
        assert answer[1]["Retry-After"] == "1"
        thread.join()


def test_a_request_counts_until_it_is_computed(slow: Path) -> None:
    """Also where its client does not wait: or whoever asks and goes could pile requests up."""
    asked = service_pb2.ModelInferRequest(model_name="slow", raw_input_contents=[SLOW["x"].tobytes()])
    asked.inputs.add(name="x", datatype="FP32", shape=SLOW["x"].shape)
    with serving(slow, "--concurrency", "1") as server, grpc.insecure_channel(server.grpc) as channel:
        infer = channel.unary_unary(INFER, request_serializer=service_pb2.ModelInferRequest.SerializeToString)
        codes = []
        for _ in range(3):
            with pytest.raises(grpc.RpcError) as raised:
                infer(asked, timeout=0.05)
            codes.append(raised.value.code().name)
        assert codes == ["DEADLINE_EXCEEDED", "UNAVAILABLE", "UNAVAILABLE"]
        while not server.metric("onnxlift_samples_total"):
            time.sleep(0.05)
        infer(asked, timeout=60)
        assert server.metric("onnxlift_samples_total") == 2 * len(SLOW["x"])


def test_clients_that_are_slow_or_go(digits: Server) -> None:
    """What is not sent is given up, and nobody else waits for it."""
    host, port = digits.http.split(":")
    head = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n{"
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(16)]
        for connection in slow[:15]:
            connection.sendall(head)
        slow[15].sendall(b"POST /v2/mod")
        while digits.metric("onnxlift_requests_under_way") < 15:
            time.sleep(0.01)
        body, headers = in_bytes(X)
        assert digits.infer(body, **headers)[0] == 200
        for connection in slow[:7]:
            connection.close()
        start = time.monotonic()
        for connection in slow[7:15]:
            connection.settimeout(60)
            assert connection.recv(100).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - start < 40
    for _ in range(20):  # these go while they are computed
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                head.replace(b"100000\r\n\r\n{", f"{len(body)}\r\n{HEADER}: {headers[HEADER]}\r\n\r\n".encode()) + body
            )
    deadline = time.monotonic() + 10
    while digits.metric("onnxlift_requests_under_way") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert digits.metric("onnxlift_requests_under_way") == 0


# ------------------------------------------------------------------------------------------------ start and end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_waits_for_requests_under_way(number: signal.Signals, slow: Path, table: Table) -> None:
    expected = explained(slow, SLOW, 8)
    server = Server(slow, "--batch-size", "8")
    answers: list[Arrays] = []

    def ask(protocol: str) -> None:
        with Client(protocol, server.address(protocol)) as client:
            answers.append(client.infer("slow", SLOW))

    threads = [threading.Thread(target=ask, args=[protocol]) for protocol in ("http", "grpc")]
    for thread in threads:
        thread.start()
    while server.metric("onnxlift_requests_under_way") < 2:
        time.sleep(0.01)
    start = time.monotonic()
    server.stop(number)
    table.add(
        "onnxlift serve",
        f"{number.name} with two requests under way",
        f"both answered, {time.monotonic() - start:.1f} s",
    )
    for thread in threads:
        thread.join()
    assert len(answers) == 2
    for answer in answers:
        same_bits(answer, expected)


def test_the_end_with_idle_connections(explainers: dict[str, Path], table: Table) -> None:
    server = Server(explainers["digits"])
    with Client("http", server.http) as http_client, Client("grpc", server.grpc) as grpc_client:
        feed = DIGITS.rows(1, RNG)
        same_bits(http_client.infer("digits", feed), grpc_client.infer("digits", feed))
        start = time.monotonic()
        server.stop()
        took = time.monotonic() - start
    assert took < 5
    table.add("onnxlift serve", "SIGTERM with idle clients", f"{took:.2f} s")


@pytest.mark.parametrize("option", ["--port", "--grpc-port"])
def test_a_port_in_use(option: str, explainers: dict[str, Path]) -> None:
    ports = {"--port": "0", "--grpc-port": "0"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports[option] = str(taken.getsockname()[1])
        arguments = [part for pair in ports.items() for part in pair]
        done = subprocess.run([*COMMAND, explainers["digits"], *arguments], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: cannot listen on 127.0.0.1:{ports[option]}")
    assert done.stderr.count("\n") == 1


def test_two_servers_do_not_share_ports(explainers: dict[str, Path]) -> None:
    with serving(explainers["digits"]) as server:
        for option, address in (("--port", server.http), ("--grpc-port", server.grpc)):
            arguments = ["--port", "0", "--grpc-port", "0", option, address.rpartition(":")[2]]
            done = subprocess.run(
                [*COMMAND, explainers["digits"], *arguments], capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 2, done.stdout


def test_name_host_and_no_grpc(explainers: dict[str, Path]) -> None:
    [port] = free_ports(1)
    command = [
        *COMMAND,
        explainers["digits"],
        "--name",
        "zwei & drei",
        "--host",
        "::1",
        "--port",
        str(port),
        "--grpc-port",
        "off",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"serving http://[::1]:{port}/v2/models/zwei & drei\n"
            with contextlib.closing(http.client.HTTPConnection("::1", port)) as connection:
                connection.request("GET", "/v2/models/zwei%20&%20drei/ready")
                assert connection.getresponse().status == 200
        finally:
            process.terminate()


@pytest.mark.parametrize("protocol", ["json", "http", "grpc"])
def test_how_fast(protocol: str, digits: Server, table: Table) -> None:
    for count, times in ((1, 100), (1000, 5)):
        feed = {"x": np.repeat(X[:1], count, axis=0)}
        if protocol == "json":
            body = in_json(feed)
            start = time.perf_counter()
            for _ in range(times):
                assert digits.infer(body)[0] == 200
            took = time.perf_counter() - start
        else:
            with Client(protocol, digits.address(protocol)) as client:
                start = time.perf_counter()
                for _ in range(times):
                    client.infer("digits", feed)
                took = time.perf_counter() - start
        table.add("onnxlift serve", f"digits, {count} at once, {protocol}", f"{1000 * took / times:.1f} ms")
