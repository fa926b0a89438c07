"""KServe: a server of its SDK, the second of the protocol, gives the same bits; the SDK knows the service we write."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from serving.client import Client
from serving.conftest import Table
from serving.explainers import SERVED, Local, same_bits
from serving.triton import free_ports

from onnxlift.cli import main

_SERVED = {served.name: served for served in SERVED}
_START = 60  # seconds


@contextlib.contextmanager
def kserve(path: Path, name: str, table: Table) -> Iterator[dict[str, str]]:
    """The addresses, by protocol, of a server that is ready."""
    ports = dict(zip(("http", "grpc"), map(str, free_ports(2)), strict=True))
    command = [sys.executable, Path(__file__).with_name("kserve_server.py"), path, name, *ports.values()]
    start = time.monotonic()
    process = subprocess.Popen(command)
    try:
        addresses = {kind: f"127.0.0.1:{port}" for kind, port in ports.items()}
        with Client("http", addresses["http"]) as client:
            while True:
                with contextlib.suppress(OSError):
                    if client.api.is_model_ready(name):
                        break
                if process.poll() is not None or time.monotonic() > start + _START:
                    pytest.fail(f"KServe is not ready (exit code {process.poll()})", pytrace=False)
                time.sleep(0.1)
        table.add("KServe SDK", f"from start to ready, {name}", f"{time.monotonic() - start:.1f} s")
        yield addresses
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        finally:
            process.kill()


@pytest.mark.parametrize("name", ["digits", "digits_chosen", "splice"])
def test_the_same_bits(name: str, explainers: dict[str, Path], local: dict[str, Local], table: Table) -> None:
    rng = np.random.default_rng(3)
    with kserve(explainers[name], name, table) as addresses:
        for protocol, address in addresses.items():
            with Client(protocol, address) as client:
                for count in (1, 2, 5):
                    feed = _SERVED[name].rows(count, rng)
                    same_bits(client.infer(name, feed), local[name](feed))
            table.add("KServe SDK", f"{name}, {protocol}: 3 requests of 1, 2 and 5 samples", "same bits")


KNOWN = """
import sys, yaml, kserve

def check(kind, body):
    fields = {told: name for name, told in kind.attribute_map.items()}
    for key, value in body.items():
        assert key in fields, f"{kind.__name__} has no {key}"
        inner = getattr(kserve.models, kind.openapi_types[fields[key]], None)
        if inner:
            check(inner, value)

check(kserve.V1beta1InferenceService, yaml.safe_load(open(sys.argv[1])))
"""


def test_the_service_has_fields_that_the_sdk_knows(explainers: dict[str, Path], tmp_path: Path, table: Table) -> None:
    """In a process of its own: the SDK registers messages that tritonclient has registered in this one."""
    folder = tmp_path / "service"
    told = ["package", str(explainers["digits"]), str(folder), "--for", "kserve", "--accelerator", "cuda"]
    result = CliRunner().invoke(main, told, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    ran = subprocess.run(
        [sys.executable, "-c", KNOWN, folder / "inferenceservice.yaml"], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    table.add("KServe SDK", "inferenceservice.yaml against V1beta1InferenceService", "all fields known")
