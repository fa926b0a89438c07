"""The model repository that `onnxlift package` writes, in the life of a server: start, README, new version, end."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
from serving.client import Client
from serving.conftest import Table
from serving.explainers import DIGITS, SERVED, Local, Served, alike, same_bits
from serving.triton import Triton, add_entries, package, serving
from tritonclient.utils import InferenceServerException

MISSING = "unable to find backend library for backend 'onnxruntime'"

each_explainer = pytest.mark.parametrize("served", SERVED, ids=attrgetter("name"))


@pytest.fixture(scope="module")
def checker(explainers: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A server to try configurations on. Its repository has "digits", which it runs, and what it has not loaded:

    the entries of all explainers for the onnxruntime backend, as "onnx_digits", "onnx_digits_predict" and so on.
    """
    folder = tmp_path_factory.mktemp("checker")
    package(explainers[DIGITS.name], folder / "repository")
    with serving(folder / "repository", folder) as server:
        for name, path in explainers.items():
            package(path, folder / name, "--name", f"onnx_{name}", backend="onnxruntime")
            add_entries(folder / name, server.repository)
        yield server


@each_explainer
def test_triton_looks_for_the_onnxruntime_backend(served: Served, checker: Triton) -> None:
    """The wheel lacks it: Triton parses a configuration, and then finds no library."""
    with Client("grpc", checker.addresses["grpc"]) as client:
        for name in (f"onnx_{served.name}", f"onnx_{served.name}_predict"):
            with pytest.raises(InferenceServerException, match=MISSING):
                client.api.load_model(name)


@pytest.fixture
def rerouted(checker: Triton) -> Iterator[Path]:
    """The configuration of "onnx_digits" which names the python backend instead, so that Triton validates all of it.

    In an entry "rerouted", which is removed after the test.
    """
    entry = checker.repository / "rerouted"
    shutil.copytree(checker.repository / "onnx_digits", entry)
    shutil.copy(checker.repository / "digits" / "1" / "model.py", entry / "1")
    config = entry / "config.pbtxt"
    text = config.read_text().replace("onnx_digits", "rerouted")
    config.write_text(text.replace('backend: "onnxruntime"', 'backend: "python"'))
    yield config
    shutil.rmtree(entry)


def test_the_configuration_is_valid(rerouted: Path, checker: Triton, local: dict[str, Local]) -> None:
    feed = DIGITS.rows(2, np.random.default_rng(0))
    with Client("grpc", checker.addresses["grpc"]) as client:
        client.api.load_model("rerouted")
        same_bits(client.infer("rerouted", feed), DIGITS.on_the_wire(local[DIGITS.name](feed)))
        client.api.unload_model("rerouted")


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("TYPE_FP32", "TYPE_FLOAT"),
        ("max_batch_size", "maximum_batch_size"),
        ("max_batch_size: ", "max_batch_size: -"),
        ("delay_microseconds: .*", 'delay_microseconds: "soon"'),
        ('name: "x"', 'name: ""'),
        (r"dims: \[1, 28", "dims: [0, 28"),
        ("}", ""),
    ],
)
def test_a_broken_configuration_is_refused(right: str, wrong: str, rerouted: Path, checker: Triton) -> None:
    """Otherwise the tests above would prove nothing."""
    text, changes = re.subn(right, wrong, rerouted.read_text(), count=1)
    assert changes
    rerouted.write_text(text)
    with Client("grpc", checker.addresses["grpc"]) as client, pytest.raises(InferenceServerException):
        client.api.load_model("rerouted")


@each_explainer
def test_the_calls_of_the_readme_work(
    served: Served, triton: Triton, explainers: dict[str, Path], tmp_path: Path
) -> None:
    """As they stand, but for the address."""
    package(explainers[served.name], tmp_path / "package")
    readme = (tmp_path / "package" / "README.md").read_text().replace("localhost:8000", triton.addresses["http"])
    [python] = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    printed = run(sys.executable, "-c", python)
    for name in Local(explainers[served.name]).outputs:
        assert f"{name} " in printed
    calls = [block for block in re.findall(r"```sh\n(.*?)```", readme, re.DOTALL) if "/infer" in block]
    assert len(calls) == (served.name != "half")  # JSON has no float16
    for call in calls:
        assert '"completeness_gap"' in run("sh", "-c", call)


def run(*command: str) -> str:
    """What a command prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_new_version_replaces_the_old_one_under_load(
    explainers: dict[str, Path], local: dict[str, Local], tmp_path: Path, table: Table
) -> None:
    """While clients call, the new version is moved in and loaded, as the README says. No request fails."""
    repository = tmp_path / "repository"
    package(explainers[DIGITS.name], repository)
    options = {"target": "argmax", "reference": "constant:0.5"}
    new = replace(DIGITS, options=options).write(tmp_path)
    package(new, tmp_path / "next", "--version", "2")
    feed = DIGITS.rows(1, np.random.default_rng(6))
    expected = {"1": DIGITS.on_the_wire(local[DIGITS.name](feed)), "2": DIGITS.on_the_wire(Local(new)(feed))}
    done = threading.Event()

    def call(protocol: str) -> list[str]:
        """Ask until all is done; the versions that answered."""
        versions = []
        with Client(protocol, server.addresses[protocol]) as client:
            while not done.is_set():
                answer, version = client.answer(DIGITS.name, feed)
                alike(answer, expected[version])
                versions.append(version)
        return versions

    with serving(repository, tmp_path) as server, ThreadPoolExecutor() as pool:
        callers = [pool.submit(call, protocol) for protocol in ("http", "grpc") * 2]
        time.sleep(0.5)
        with Client("grpc", server.addresses["grpc"]) as client:
            for entry in (DIGITS.name, f"{DIGITS.name}_predict"):
                (tmp_path / "next" / entry / "2").rename(repository / entry / "2")
                client.api.load_model(entry)
        time.sleep(0.5)
        done.set()
        used = [caller.result() for caller in callers]
    for versions in used:
        assert versions == sorted(versions)
        assert set(versions) == {"1", "2"}
    table.add(
        "Triton", "requests while version 2 replaced version 1, of 4 clients", f"{sum(map(len, used))}, none failed"
    )


def test_a_server_ends_on_sigterm(explainers: dict[str, Path], tmp_path: Path, table: Table) -> None:
    package(explainers[DIGITS.name], tmp_path / "repository")
    with serving(tmp_path / "repository", tmp_path) as server:
        process = server.process.pid
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        assert len(children) == 2  # an interpreter for each entry
        table.add("Triton", "from start to ready, 2 models", f"{server.ready_after:.1f} s")
        table.add("Triton", "from SIGTERM to the end", f"{server.stop():.1f} s")
    assert server.process.returncode == 0
    for child in children:
        assert not Path(f"/proc/{child}").exists()
    for address in server.addresses.values():
        host, port = address.split(":")
        socket.create_server((host, int(port))).close()
