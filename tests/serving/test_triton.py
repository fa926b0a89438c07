"""Explainers that Triton serves: they give the numbers of a local run, batched or not, and refuse what does not fit."""

from __future__ import annotations

import time
from operator import attrgetter

import numpy as np
import pytest
from serving.client import CLIENTS, Arrays, Client, at_once
from serving.conftest import Table
from serving.explainers import CHOSEN, DIGITS, SERVED, SPLICE, TOKENS, Local, Served, alike, same_bits
from serving.triton import Triton
from tritonclient.utils import InferenceServerException

REQUESTS = 200

each_explainer = pytest.mark.parametrize("served", SERVED, ids=attrgetter("name"))
each_protocol = pytest.mark.parametrize("protocol", CLIENTS)


@each_protocol
@each_explainer
def test_answers_are_those_of_onnx_runtime(
    served: Served, protocol: str, triton: Triton, local: dict[str, Local], table: Table
) -> None:
    rng = np.random.default_rng(0)
    with Client(protocol, triton.addresses[protocol]) as client:
        counts = (1, 3, client.max_batch_size(served.name)) if served.batched else (1,)
        for samples in counts:
            feed = served.rows(samples, rng)
            answer = client.infer(served.name, served.on_the_wire(feed))
            same_bits(answer, served.on_the_wire(local[served.name](feed)))
    sizes = ", ".join(map(str, counts))
    table.add("Triton", f"{served.name} over {protocol}, requests of {sizes}, against ONNX Runtime here", "same bits")


@each_protocol
def test_only_the_requested_outputs_are_returned(protocol: str, triton: Triton, local: dict[str, Local]) -> None:
    feed = DIGITS.rows(2, np.random.default_rng(1))
    expected = DIGITS.on_the_wire(local[DIGITS.name](feed))
    names = ("completeness_gap", "x_contributions")
    with Client(protocol, triton.addresses[protocol]) as client:
        same_bits(client.infer(DIGITS.name, feed, names), {name: expected[name] for name in names})


@each_explainer
def test_the_predict_entry_is_the_original_model(served: Served, triton: Triton) -> None:
    feed = served.rows(3, np.random.default_rng(2))
    feed = {name: feed[name] for name in served.original}
    with Client("grpc", triton.addresses["grpc"]) as client:
        answer, expected = client.infer(f"{served.name}_predict", feed), Local(served.model)(feed)
    same = alike(answer, expected)
    assert same or served.name == "lstm"  # whose fused layer the explainer writes out step by step


@each_explainer
def test_requests_are_batched(served: Served, triton: Triton, local: dict[str, Local], table: Table) -> None:
    rng = np.random.default_rng(3)
    feeds = [served.rows(1, rng) for _ in range(REQUESTS)]
    alone = [served.on_the_wire(local[served.name](feed)) for feed in feeds]
    with Client("grpc", triton.addresses["grpc"]) as client:
        before = client.executions(served.name)
        start = time.monotonic()
        answers = at_once(triton.addresses["grpc"], served.name, [served.on_the_wire(feed) for feed in feeds])
        seconds = time.monotonic() - start
        executions = client.executions(served.name) - before
    assert executions < REQUESTS if served.batched else executions == REQUESTS
    equal = sum(alike(answer, expected) for answer, expected in zip(answers, alone, strict=True))
    table.add(
        "Triton",
        f"{REQUESTS} requests at once, {served.name}",
        f"{executions} executions, {seconds:.2f} s; {equal} answers have the bits of a run alone",
    )


X = np.zeros((1, 1, 28, 28), np.float32)
TARGET = np.zeros((1, 1), np.int64)
SEQ = np.zeros((1, 53, 4), np.float32)
REFUSED: dict[str, tuple[Served, Arrays, tuple[str, ...]]] = {
    "another shape": (DIGITS, {"x": X[..., 1:]}, ()),
    "an axis missing": (DIGITS, {"x": X[0]}, ()),
    "no samples": (DIGITS, {"x": X[:0]}, ()),
    "more samples than a batch holds": (DIGITS, {"x": X.repeat(10_000, axis=0)}, ()),
    "float64": (DIGITS, {"x": X.astype(np.float64)}, ()),
    "int32 target": (CHOSEN, {"x": X, "target": TARGET.astype(np.int32)}, ()),
    "target without its axis": (CHOSEN, {"x": X, "target": TARGET[0]}, ()),
    "text": (DIGITS, {"x": np.full(X.shape, b"0", object)}, ()),
    "unknown input": (DIGITS, {"x": X, "z": X}, ()),
    "an input missing": (CHOSEN, {"x": X}, ()),
    "no input": (DIGITS, {}, ()),
    "unequal numbers of samples": (CHOSEN, {"x": X.repeat(2, axis=0), "target": TARGET}, ()),
    "no references": (SPLICE, {"seq": SEQ, "seq_reference": SEQ[:, None][:, :0]}, ()),
    "references for other samples": (SPLICE, {"seq": SEQ, "seq_reference": SEQ[:, None].repeat(2, axis=0)}, ()),
    "unknown output": (DIGITS, {"x": X}, ("x_contribution",)),
}


@each_protocol
@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_request_is_refused(
    case: str, protocol: str, triton: Triton, local: dict[str, Local], table: Table
) -> None:
    served, feed, outputs = REFUSED[case]
    with Client(protocol, triton.addresses[protocol]) as client:
        with pytest.raises(InferenceServerException) as refusal:
            client.infer(served.name, feed, outputs)
        assert refusal.value.status() == {"http": "400", "grpc": "StatusCode.INVALID_ARGUMENT"}[protocol]
        assert triton.healthy()
        right = served.rows(1, np.random.default_rng(4))
        answer = client.infer(served.name, served.on_the_wire(right))
        same_bits(answer, served.on_the_wire(local[served.name](right)))
    table.add("Triton", f"refused over {protocol}: {case}", refusal.value.status().removeprefix("StatusCode."))


def test_a_target_out_of_range_gets_nan_and_leaves_others_alone(triton: Triton, local: dict[str, Local]) -> None:
    rng = np.random.default_rng(5)
    feeds = [CHOSEN.rows(1, rng) for _ in range(100)]
    outside = [-1, 10, 2**40, -(2**63), 2**63 - 1]
    for feed, target in zip(feeds[::2], outside * 10, strict=True):
        feed["target"][:] = target
    with Client("grpc", triton.addresses["grpc"]) as client:
        before = client.executions(CHOSEN.name)
        answers = at_once(triton.addresses["grpc"], CHOSEN.name, [CHOSEN.on_the_wire(feed) for feed in feeds])
        assert client.executions(CHOSEN.name) - before < len(feeds)
    for feed, answer in zip(feeds, answers, strict=True):
        inside = 0 <= feed["target"][0] < 10
        expected = CHOSEN.on_the_wire(local[CHOSEN.name](feed | {"target": feed["target"] % 10}))
        if not inside:
            explained = {name: answer.pop(name) for name in set(answer) - {"y"}}
            assert all(np.isnan(array).all() for array in explained.values())
            expected = {"y": expected["y"]}
        alike(answer, expected)


def test_a_sample_that_cannot_run_leaves_others_alone(triton: Triton, local: dict[str, Local]) -> None:
    """ONNX Runtime refuses a batch for one token that the model does not know."""
    rng = np.random.default_rng(10)
    feeds = [TOKENS.rows(1, rng) for _ in range(100)]
    for feed in feeds[::20]:
        feed["ids"][0, 3] = 20
    answers = at_once(triton.addresses["grpc"], TOKENS.name, feeds)
    for place, (feed, answer) in enumerate(zip(feeds, answers, strict=True)):
        if place % 20:
            alike(answer, TOKENS.on_the_wire(local[TOKENS.name](feed)))
        else:
            assert answer.status() == "StatusCode.INVALID_ARGUMENT"
            assert "out of data bounds" in answer.message()


def test_a_sample_that_is_not_finite_leaves_others_alone(triton: Triton, local: dict[str, Local]) -> None:
    rng = np.random.default_rng(8)
    feeds = [DIGITS.rows(1, rng) for _ in range(100)]
    for feed in feeds[::2]:
        feed["x"][0, 0, 14, 14] = rng.choice([np.nan, np.inf])
    answers = at_once(triton.addresses["grpc"], DIGITS.name, feeds)
    for feed, answer in zip(feeds, answers, strict=True):
        if np.isfinite(feed["x"]).all():
            alike(answer, DIGITS.on_the_wire(local[DIGITS.name](feed)))
        else:
            assert not np.isfinite(answer["completeness_gap"]).any()
