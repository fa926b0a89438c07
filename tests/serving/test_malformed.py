"""A thousand requests that no client would send: the server stands, and answers the next right one rightly."""

from __future__ import annotations

from collections import Counter

import grpc
import numpy as np
from serving.client import Client
from serving.conftest import Table
from serving.explainers import DIGITS, Local, same_bits
from serving.malformed import Message, Right, grpc_messages, http_requests, send
from serving.triton import Triton

HTTP, GRPC = 800, 200
FEED = DIGITS.rows(1, np.random.default_rng(7))
PATH = f"/v2/models/{DIGITS.name}/infer"


def test_http(triton: Triton, local: dict[str, Local], table: Table) -> None:
    right = Right(PATH, "x", FEED["x"]).with_bytes(FEED["x"].tobytes())
    assert send(triton.addresses["http"], right) == 200
    statuses: Counter[str] = Counter()
    for kind, request in http_requests(HTTP, PATH, "x", FEED["x"]):
        status = send(triton.addresses["http"], request)
        assert status != 200, (kind, request[:500])
        statuses[f"{status or 'closed'}"] += 1
    stands(triton, local)
    table.add("Triton", f"{HTTP} malformed HTTP requests", told(statuses))


def test_grpc(triton: Triton, local: dict[str, Local], table: Table) -> None:
    right = Message(model_name=DIGITS.name, raw_input_contents=[FEED["x"].tobytes()])
    right.inputs.add(name="x", datatype="FP32", shape=FEED["x"].shape)
    codes: Counter[str] = Counter()
    with grpc.insecure_channel(triton.addresses["grpc"]) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        infer(right.SerializeToString(), timeout=10)
        for kind, message in grpc_messages(GRPC, right.SerializeToString()):
            try:
                infer(message, timeout=10)
                assert kind == "changed bytes", (kind, message[:500])  # one of them may be right by chance
                codes["OK"] += 1
            except grpc.RpcError as error:
                codes[error.code().name] += 1
    assert "UNAVAILABLE" not in codes
    assert "DEADLINE_EXCEEDED" not in codes
    stands(triton, local)
    table.add("Triton", f"{GRPC} malformed gRPC messages", told(codes))


def stands(triton: Triton, local: dict[str, Local]) -> None:
    """Hold that the server is healthy, and that its answers are right over both protocols."""
    assert triton.process.poll() is None
    assert triton.healthy()
    for protocol in ("http", "grpc"):
        with Client(protocol, triton.addresses[protocol]) as client:
            same_bits(client.infer(DIGITS.name, FEED), DIGITS.on_the_wire(local[DIGITS.name](FEED)))


def told(counts: Counter[str]) -> str:
    return ", ".join(f"{count} x {answer}" for answer, count in counts.most_common()) + "; healthy and right afterwards"
