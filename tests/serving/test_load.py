"""Servers under load: 1, 4 and 16 clients that ask without a pause for ONNXLIFT_LOAD_SECONDS, every answer checked.

Clients and server share one machine: the figures say what changes with the number of clients, not what a server can do.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from serving import serve
from serving.client import Client
from serving.conftest import Table
from serving.explainers import DIGITS, Arrays, Local, alike
from serving.triton import Triton

SECONDS = float(os.environ.get("ONNXLIFT_LOAD_SECONDS", "30"))

_SAMPLES = 64  # different ones, in turn


@pytest.fixture(scope="module", params=["Triton", "onnxlift serve"])
def server(request: pytest.FixtureRequest, explainers: dict[str, Path]) -> Iterator[tuple[str, str]]:
    """A name, and the address for HTTP."""
    if request.param == "Triton":
        triton: Triton = request.getfixturevalue("triton")
        yield request.param, triton.addresses["http"]
    else:
        with serve.serving(explainers[DIGITS.name]) as process:
            yield request.param, process.http


@pytest.mark.parametrize("clients", [1, 4, 16])
def test_every_answer_is_right(clients: int, server: tuple[str, str], local: dict[str, Local], table: Table) -> None:
    name, address = server
    rng = np.random.default_rng(9)
    feeds = [DIGITS.rows(1, rng) for _ in range(_SAMPLES)]
    expected = [local[DIGITS.name](feed) for feed in feeds]
    if name == "Triton":
        expected = [DIGITS.on_the_wire(arrays) for arrays in expected]
    stop = time.monotonic() + SECONDS
    with ThreadPoolExecutor(clients) as pool:
        callers = [pool.submit(ask, address, feeds, expected, first, stop) for first in range(clients)]
        seconds = np.concatenate([caller.result() for caller in callers])
    p50, p90, p99 = np.percentile(seconds, [50, 90, 99]) * 1e3
    table.add(
        name,
        f"load, {clients} client{'s' * (clients > 1)}, {SECONDS:g} s",
        f"{len(seconds)} answers, none wrong; {len(seconds) / SECONDS:.0f}/s; "
        f"p50 {p50:.1f} ms, p90 {p90:.1f} ms, p99 {p99:.1f} ms",
    )


def ask(address: str, feeds: list[Arrays], expected: list[Arrays], first: int, stop: float) -> list[float]:
    """Ask from the `first` sample on until the clock says `stop`, and check; the seconds of each request."""
    seconds = []
    with Client("http", address) as client:
        place = first
        while (start := time.monotonic()) < stop:
            answer = client.infer(DIGITS.name, feeds[place])
            seconds.append(time.monotonic() - start)
            alike(answer, expected[place])
            place = (place + 1) % len(feeds)
    return seconds
