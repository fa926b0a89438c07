"""`onnxlift serve` as clients meet it: the bits of a local call, or one paragraph that says what does not fit."""

from __future__ import annotations

import concurrent.futures
import contextlib
import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
import tritonclient.http
from onnx_text import floats, parse
from serving.client import Client
from serving.conftest import Table
from serving.explainers import DIGITS, MODELS, SERVED, alike, same_bits
from serving.malformed import grpc_messages, http_requests
from serving.serve import HEADER, INFER, Server, explained, in_bytes, in_json, refusal, serving
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

import onnxlift

RNG = np.random.default_rng(5)
SERVED_BY_NAME = {served.name: served for served in SERVED}


@pytest.fixture(scope="module")
def digits(explainers: dict[str, Path]) -> Iterator[Server]:
    """A server for the tests that leave it as it is."""
    with serving(explainers["digits"], "--batch-size", "16") as server:
        yield server


# ------------------------------------------------------------------------------------------------ right requests


@pytest.mark.parametrize("size", [None, 2], ids=["any tiles", "two at once"])
@pytest.mark.parametrize("name", SERVED_BY_NAME)
def test_as_a_local_call(name: str, size: int | None, explainers: dict[str, Path], table: Table) -> None:
    """The same bits where the tiles are the same; those that are fastest depend on the clock."""
    served, path = SERVED_BY_NAME[name], explainers[name]
    same = alike if size is None else same_bits
    counts = (1, 2, 5) if served.batched else (1, 1, 1)
    with serving(path, *([] if size is None else ["--batch-size", str(size)])) as server:
        for count in counts:
            feed = served.rows(count, RNG)
            expected = explained(path, feed, size)
            few = ("completeness_gap", next(iter(expected)))
            for protocol in ("http", "grpc"):
                with Client(protocol, server.address(protocol)) as client:
                    same(client.infer(name, feed), expected)
                    if size is not None:
                        same_bits(client.infer(name, feed, few), {output: expected[output] for output in few})
            status, _, said = server.infer(in_json(feed, id="one"))
            assert (status, said["id"], said["model_name"]) == (200, "one", name)
            numbers = {it["name"]: np.array(it["data"], expected[it["name"]].dtype) for it in said["outputs"]}
            same({it["name"]: numbers[it["name"]].reshape(it["shape"]) for it in said["outputs"]}, expected)
        asked = 3 if size is None else 5  # times for each count
        assert server.metric("onnxlift_requests_total") == asked * len(counts)
        assert server.metric("onnxlift_samples_total") == asked * sum(counts)
        assert server.metric("onnxlift_relative_gap_count") > 0
        assert server.metric("onnxlift_incomplete_samples_total") == 0
        if size is not None:
            check = f"{name} over HTTP, in bytes and JSON, and gRPC, {counts[-1]} samples, against Explainer here"
            table.add("onnxlift serve", check, f"same bits; ready after {server.ready_after:.1f} s")


def test_references_are_made_here(tmp_path: Path) -> None:
    path = tmp_path / "splice.onnx"
    onnxlift.rewrite_file(MODELS / "mmsplice_acceptor.onnx", path, reference="dinuc-shuffle:5")
    feed = {"seq": np.eye(4, dtype=np.float32)[RNG.integers(0, 4, (7, 53))]}
    with serving(path, "--batch-size", "4") as server, Client("grpc", server.grpc) as client:
        same_bits(client.infer("splice", feed), explained(path, feed, 4))


def test_any_byte_but_0_is_true(tmp_path: Path) -> None:
    path = tmp_path / "masked.onnx"
    model = parse(
        "e = Equal(mask, T) m = Cast<to=1>(e) h = Mul(x, m) y = Gemm(h, W)",
        "float[N, 4] x, bool[N, 4] mask",
        "float[N, 1] y",
        W=floats(4, 1),
        T=np.array([True] * 4),
    )
    onnx.save(onnxlift.rewrite(model, inputs=["x"], reference="zeros"), path)
    feed = {"x": np.ones((2, 4), np.float32), "mask": np.array([[True, False, True, True], [False] * 4])}
    expected = explained(path, feed)
    asked = service_pb2.ModelInferRequest(model_name="masked")
    for name, datatype in (("x", "FP32"), ("mask", "BOOL")):
        asked.inputs.add(name=name, datatype=datatype, shape=feed[name].shape)
    asked.raw_input_contents.extend([feed["x"].tobytes(), bytes([7, 0, 255, 1, 0, 0, 0, 0])])
    with serving(path) as server, grpc.insecure_channel(server.grpc) as channel:
        answer = service_pb2.ModelInferResponse.FromString(channel.unary_unary(INFER)(asked.SerializeToString()))
        for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
            assert raw == expected[output.name].tobytes()
        with Client("http", server.http) as client:
            same_bits(client.infer("masked", feed), expected)


def test_tensors_in_grpc_contents(digits: Server, explainers: dict[str, Path]) -> None:
    feed = DIGITS.rows(2, RNG)
    asked = service_pb2.ModelInferRequest(model_name="digits", id="7")
    tensor = asked.inputs.add(name="x", datatype="FP32", shape=feed["x"].shape)
    tensor.contents.fp32_contents.extend(feed["x"].ravel().tolist())
    with grpc.insecure_channel(digits.grpc) as channel:
        data = channel.unary_unary(INFER)(asked.SerializeToString())
    answer = service_pb2.ModelInferResponse.FromString(data)
    assert (answer.id, answer.model_version) == ("7", "1")
    got = {
        output.name: np.frombuffer(raw, np.float32).reshape(output.shape)
        for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }
    same_bits(got, explained(explainers["digits"], feed, 16))


def test_a_body_that_is_not_as_encoded(digits: Server) -> None:
    assert "not encoded as its headers say" in refusal(digits.infer(b"{}" * 50, Content_Encoding="gzip"))


def test_bytes_in_and_numbers_out_and_gzip(digits: Server) -> None:
    body, headers = in_bytes(DIGITS.rows(3, RNG)["x"])
    plain = digits.infer(body, **headers)
    assert digits.infer(gzip.compress(body), **headers, Content_Encoding="gzip")[2] == plain[2]
    with contextlib.closing(tritonclient.http.InferenceServerClient(digits.http)) as client:
        tensor = tritonclient.http.InferInput("x", [1, 1, 28, 28], "FP32")
        tensor.set_data_from_numpy(np.zeros((1, 1, 28, 28), np.float32))
        wanted = [
            tritonclient.http.InferRequestedOutput("y", binary_data=False),
            tritonclient.http.InferRequestedOutput("completeness_gap", binary_data=True),
        ]
        answer = client.infer("digits", [tensor], outputs=wanted, request_compression_algorithm="gzip")
    assert answer.as_numpy("y").shape == (1, 10)
    assert answer.as_numpy("completeness_gap").shape == (1,)


@pytest.mark.parametrize("name", SERVED_BY_NAME)
def test_metadata_are_those_of_the_graph(name: str, explainers: dict[str, Path]) -> None:
    graph = onnx.load(explainers[name]).graph

    def told(values: Any) -> list[dict[str, Any]]:
        kinds = [value.type.tensor_type for value in values]
        return [
            {
                "name": value.name,
                "datatype": {onnx.TensorProto.FLOAT: "FP32", onnx.TensorProto.FLOAT16: "FP16"}.get(
                    kind.elem_type, "INT64"
                ),
                "shape": [dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim],
            }
            for value, kind in zip(values, kinds, strict=True)
        ]

    with serving(explainers[name]) as server:
        for version in ("", "/versions/1"):
            said = server.call("GET", f"/v2/models/{name}{version}")[2]
            assert (said["inputs"], said["outputs"]) == (told(graph.input), told(graph.output))
        for protocol in ("http", "grpc"):
            with Client(protocol, server.address(protocol)) as client:
                assert client.api.is_server_live()
                assert client.api.is_server_ready()
                assert client.api.is_model_ready(name)
                about, server_about = client.api.get_model_metadata(name), client.api.get_server_metadata()
                if protocol == "grpc":
                    for tensors, values in ((about.inputs, graph.input), (about.outputs, graph.output)):
                        got = [{"name": it.name, "datatype": it.datatype, "shape": list(it.shape)} for it in tensors]
                        assert got == told(values)
                    assert server_about.name == "onnxlift"
                else:
                    assert about == said
                    assert server_about["extensions"] == ["binary_tensor_data"]


# ------------------------------------------------------------------------------------------------ wrong requests

X = DIGITS.rows(2, RNG)["x"]
RIGHT = {"name": "x", "datatype": "FP32", "shape": [2, 1, 28, 28]}
SIZE = {"binary_data_size": X.nbytes}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {  # what differs from RIGHT with X as bytes
    "shape": ({"shape": [2, 1, 28, 27]}, "input 'x' needs 6048 bytes for FP32 [2, 1, 28, 27], and has 6272"),
    "rank": ({"shape": [2, 784]}, "input 'x' has shape [2, 784], expected [batch, 1, 28, 28]"),
    "extent": ({"shape": [2, 1, 14, 56]}, "input 'x' has shape [2, 1, 14, 56], expected [2, 1, 28, 28]"),
    "negative": (
        {"shape": [-2, 1, 28, 28]},
        "input 'x' has shape [-2, 1, 28, 28]: give at most 32 sizes of at least 1",
    ),
    "no samples": ({"shape": [0, 1, 28, 28], "parameters": {"binary_data_size": 0}}, "give at most 32 sizes"),
    "huge": ({"shape": [2**31 - 1] * 4}, f"input 'x' needs {4 * (2**31 - 1) ** 4} bytes"),
    "larger": ({"shape": [2**62, 1, 28, 28]}, "give at most 32 sizes of at least 1"),
    "no size": ({"shape": [2, 1, 28, True]}, "give at most 32 sizes of at least 1"),
    "many axes": ({"shape": [1] * 99}, "give at most 32 sizes of at least 1"),
    "datatype": ({"datatype": "FP64"}, "input 'x' is FP64 in the request, and the explainer takes FP32: convert it"),
    "texts": ({"datatype": "BYTES"}, "input 'x' is BYTES in the request, and the explainer takes FP32"),
    "unknown datatype": ({"datatype": "F32"}, "input 'x' is F32 in the request"),
    "name": ({"name": "z"}, "no input 'z' in the explainer: it takes 'x'"),
    "no name": ({"name": None}, "an input of the request needs 'name', a text"),
    "no shape": ({"shape": None}, "input 'x' needs 'shape', a list"),
    "too long": ({"parameters": {"binary_data_size": X.nbytes + 1}}, "6272 bytes are left for it"),
    "too short": ({"parameters": {"binary_data_size": 4}}, "input 'x' needs 6272 bytes"),
    "no number": ({"parameters": {"binary_data_size": "6272"}}, "binary_data_size '6272'"),
    "both": ({"data": [1, 2]}, "or `data` too"),
    "parameters": ({"parameters": []}, "input 'x' needs 'parameters', an object"),
    "neither": ({"parameters": {}}, "input 'x' needs 'data', a list"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_tensor_in_bytes_that_does_not_fit(kind: str, digits: Server, table: Table) -> None:
    other, message = REFUSED[kind]
    body, headers = in_bytes(X, **other)
    assert message in refusal(digits.infer(body, **headers))
    table.add("onnxlift serve", f"refused: {kind}", "400")


def numbers(data: object, **other: object) -> bytes:
    return json.dumps(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1, 28, 28], "data": data, **other}]}
    ).encode()


ROW = [0.5] * 784
TWICE = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1, 28, 28], "data": ROW}] * 2}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the request is not JSON: "),
        (b"\x80\xff", "the request is not JSON: "),
        (b'{"inputs":' + b"[" * 100_000, "the request is not JSON: depth limit exceeded"),
        (b'{"inputs": [NaN]}', "the request is not JSON: "),
        (b"null", "the request needs 'inputs', a list"),
        (b"{}", "the request needs 'inputs', a list"),
        (b'{"inputs": []}', "the array of input 'x' is missing: give it"),
        (b'{"inputs": [3]}', "an input of the request needs 'name', a text"),
        (json.dumps(TWICE).encode(), "input 'x' is given twice: leave one out"),
        (numbers(ROW[:-1]), "the data of input 'x' are not 784 numbers, flat or of shape [1, 1, 28, 28]"),
        (numbers([*ROW[:-1], "1"]), "are not 784 numbers"),
        (numbers([*ROW[:-1], None]), "are not 784 numbers"),
        (numbers([ROW, ROW[:-1]], shape=[2, 1, 28, 28]), "are not 1568 numbers"),
        (numbers([[], 3]), "are not 784 numbers"),
        (numbers([{}] * 784), "are not 784 numbers"),
        (numbers([*ROW[:-1], 1e39]), "input 'x' has an infinite value in sample 0 (1 such value in all, as float32)"),
        (numbers(ROW, name="x" * 100_000), "no input 'x"),
        (json.dumps(TWICE | {"outputs": [{"name": "q"}]}).encode(), "given twice"),
        (
            numbers(ROW)[:-1] + b', "outputs": [{"name": "q"}]}',
            "no output 'q' in the explainer: it gives 'y', 'target_",
        ),
        (numbers(ROW)[:-1] + b', "outputs": {}}', "the request needs 'outputs', a list"),
        (numbers(ROW)[:-1] + b', "id": 7}', "the request needs 'id', a text"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
def test_json_that_does_not_fit(body: bytes, message: str, digits: Server) -> None:
    assert message in refusal(digits.infer(body))


@pytest.mark.parametrize("length", ["", "-5", "abc", "1e2", "²", "9" * 5000, "99999999", "12"])
def test_a_length_of_the_header_that_is_none(length: str, digits: Server) -> None:
    body, _ = in_bytes(X)
    expected = "is not JSON" if length == "12" else "must be a length of at most"
    assert expected in refusal(digits.infer(body, **{HEADER: length}))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite(bad: float, digits: Server) -> None:
    x = X.copy()
    x[1, 0, 3, 4] = bad
    body, headers = in_bytes(x)
    message = refusal(digits.infer(body, **headers))
    assert "in sample 1 (1 such value in all, as float32): contributions need finite numbers" in message
    with Client("grpc", digits.grpc) as client, pytest.raises(InferenceServerException, match="need finite") as raised:
        client.infer("digits", {"x": x})
    assert raised.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_a_target_out_of_range(explainers: dict[str, Path]) -> None:
    with serving(explainers["digits_chosen"]) as server:
        body = in_json({"x": X, "target": np.array([3, 10])})
        assert "target 10 of sample 1 is out of range: tensor 'y'" in refusal(server.infer(body))
        assert "the array of input 'target' is missing" in refusal(server.infer(in_json({"x": X})))
        body = in_json({"x": X, "target": np.array([3, 4])}).replace(b"[3, 4]", b"[3, 4.5]")
        assert "input 'target' takes int64, and its float64 values do not fit" in refusal(server.infer(body))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/digits/versions/2", 404),
        ("GET", "/v2/models/digits/versions/2/ready", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("GET", "/v2/models/digits/infer", 405),
        ("POST", "/v2", 405),
        ("POST", "/v2/repository/models/digits/unload", 404),
        ("GET", "/v2/models/..%2f..%2fetc%2fpasswd", 404),
    ],
)
def test_a_place_that_is_not_there(method: str, path: str, status: int, digits: Server) -> None:
    refusal(digits.call(method, path), status)


def asking(**other: object) -> service_pb2.ModelInferRequest:
    asked = service_pb2.ModelInferRequest(model_name=str(other.pop("model_name", "digits")))
    raw = other.pop("raw", [X.tobytes()])
    asked.inputs.add(**{**RIGHT, **other})
    asked.raw_input_contents.extend(raw)
    return asked


@pytest.mark.parametrize(
    ("asked", "code", "message"),
    [
        (asking(model_name="other"), "NOT_FOUND", "no model 'other'"),
        (asking(shape=[2, 784]), "INVALID_ARGUMENT", "has shape [2, 784], expected [batch, 1, 28, 28]"),
        (asking(shape=[-1, 1, 28, 28]), "INVALID_ARGUMENT", "give at most 32 sizes"),
        (asking(datatype="FP64"), "INVALID_ARGUMENT", "input 'x' is FP64 in the request"),
        (asking(name="z" * 3000), "INVALID_ARGUMENT", "no input 'zzz"),
        (asking(name="ü€\n"), "INVALID_ARGUMENT", "no input 'ü€\\n'"),
        (asking(raw=[X.tobytes()[:-1]]), "INVALID_ARGUMENT", "needs 6272 bytes for FP32 [2, 1, 28, 28], and has 6271"),
        (asking(raw=[b"", b""]), "INVALID_ARGUMENT", "the request has 1 inputs and 2 raw_input_contents"),
        (asking(raw=[]), "INVALID_ARGUMENT", "the data of input 'x' are not 1568 numbers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_grpc_that_does_not_fit(
    asked: service_pb2.ModelInferRequest, code: str, message: str, digits: Server, table: Table
) -> None:
    with grpc.insecure_channel(digits.grpc) as channel, pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary(INFER)(asked.SerializeToString())
    assert raised.value.code().name == code
    assert message in raised.value.details()
    table.add("onnxlift serve", f"refused over gRPC: {message}", code)


def test_a_thousand_malformed_requests(digits: Server, explainers: dict[str, Path], table: Table) -> None:
    feed = {"x": X}
    before = digits.metric("process_resident_memory_bytes")
    requests = [request for _, request in http_requests(1000, "/v2/models/digits/infer", "x", X)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        statuses = Counter(pool.map(digits.send, requests))
    assert set(statuses) <= {None, 400, 413}
    assert statuses[400] > 700
    codes: Counter[str] = Counter()
    with grpc.insecure_channel(digits.grpc) as channel:
        infer = channel.unary_unary(INFER)
        for kind, message in grpc_messages(300, asking().SerializeToString()):
            try:
                infer(message, timeout=10)
                assert kind in ("changed bytes", "cut off"), message[:500]  # which may be right by chance
            except grpc.RpcError as error:
                codes[error.code().name] += 1
    assert set(codes) <= {"INVALID_ARGUMENT", "NOT_FOUND"}
    grown = digits.metric("process_resident_memory_bytes") - before
    assert grown < 64e6
    for protocol in ("http", "grpc"):
        with Client(protocol, digits.address(protocol)) as client:
            same_bits(client.infer("digits", feed), explained(explainers["digits"], feed, 16))
    told = ", ".join(f"{count} {status or 'no answer'}" for status, count in (statuses + codes).most_common())
    table.add("onnxlift serve", "1000 malformed HTTP and 300 gRPC requests", f"{told}; {grown / 1e6:.0f} MB more")
