"""The Triton server that the wheel of nvidia-pytriton carries, run as a process of its own on free ports.

It has the python backend alone, and that wants numpy 1: so it lives in a virtual environment apart, which
`make test-serving` creates from requirements-triton.txt.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from click.testing import CliRunner

from onnxlift.cli import main

ROOT = Path(__file__).parents[2]
VENV = ROOT / os.environ.get("ONNXLIFT_TRITON_VENV", ".venv-triton")

_START = 120  # seconds until every model must be ready
_STOP = 60  # seconds until the processes must be gone
_STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class Installation:
    """Where the server is, and what it needs to run.

    `version`: of the interpreter, "3.11". `libraries`: the folder of its libpython, which the stub links.
    """

    version: str
    libraries: str
    packages: Path

    @property
    def wheel(self) -> Path:
        return self.packages / "pytriton" / "tritonserver"

    def backends(self, folder: Path) -> Path:
        """A backend directory with the python backend and the stub for this interpreter, made in `folder`."""
        python = folder / "backends" / "python"
        shutil.copytree(self.wheel / "backends" / "python", python)
        shutil.copy(self.wheel / "python_backend_stubs" / self.version / _STUB, python)
        (python / _STUB).chmod(0o755)  # pip unpacks it as a plain file
        return python.parent

    def environment(self) -> dict[str, str]:
        """The stub's interpreter ignores PYTHONPATH: it finds its packages by the first `python3` of PATH."""
        return os.environ | {
            "PATH": os.pathsep.join([str(VENV / "bin"), os.environ["PATH"]]),
            "LD_LIBRARY_PATH": os.pathsep.join([str(self.packages / "nvidia_pytriton.libs"), self.libraries]),
        }


def installation() -> Installation:
    """Look the virtual environment over; fails, and says what to do, where it is missing or does not fit."""
    python = VENV / "bin" / "python"
    remedy = "`make test-serving` creates it; ONNXLIFT_TRITON_VENV names another one"
    if not python.exists():
        pytest.fail(f"there is no virtual environment with Triton at {VENV}: {remedy}", pytrace=False)
    script = (
        "import sys, sysconfig, numpy, onnxruntime, pytriton; "
        "print('%d.%d' % sys.version_info[:2], sysconfig.get_config_var('LIBDIR'), sysconfig.get_path('purelib'), "
        "numpy.__version__, onnxruntime.__version__, sep='\\n')"
    )
    asked = subprocess.run([python, "-c", script], capture_output=True, text=True, timeout=60)
    if asked.returncode:
        pytest.fail(f"{VENV} lacks what Triton needs ({asked.stderr.splitlines()[-1]}): {remedy}", pytrace=False)
    version, libraries, packages, numpy, runtime = asked.stdout.splitlines()
    if not numpy.startswith("1."):  # the stub would read tensors of numpy 2 as empty ones
        pytest.fail(f"{VENV} has numpy {numpy}, and Triton's python backend wants numpy 1: {remedy}", pytrace=False)
    if not (Path(libraries) / f"libpython{version}.so.1.0").exists():
        pytest.fail(f"Triton needs a Python with a shared library, and that of {VENV} has none", pytrace=False)
    if runtime != onnxruntime.__version__:  # whose kernels may round otherwise
        ours = onnxruntime.__version__
        pytest.fail(f"{VENV} has ONNX Runtime {runtime}, and the tests run {ours}: {remedy}", pytrace=False)
    return Installation(version, libraries, Path(packages))


def package(explainer: Path, folder: Path, *options: str, backend: str = "python") -> None:
    """Run `onnxlift package` for Triton."""
    arguments = ["package", explainer, folder, "--for", "triton", "--backend", backend, *options]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def add_entries(package: Path, repository: Path) -> None:
    """Move the entries of a package into another repository."""
    repository.mkdir(exist_ok=True)
    for config in package.glob("*/config.pbtxt"):
        shutil.move(config.parent, repository / config.parent.name)


class Triton:
    """A running server.

    Attributes:
        addresses: "127.0.0.1:port" by protocol: "http", "grpc", "metrics".
        ready_after: seconds from the start of the process until every model was ready.
    """

    def __init__(self, repository: Path, folder: Path) -> None:
        """Start a server on a model repository, with its log and backends in `folder`; returns when it is ready."""
        self.repository = repository
        self._log = folder / "triton.log"
        where = installation()
        ports = dict(zip(("http", "grpc", "metrics"), free_ports(3), strict=True))
        self.addresses = {kind: f"127.0.0.1:{port}" for kind, port in ports.items()}
        command: list[Any] = [where.wheel / "bin" / "tritonserver"]
        command += ["--model-repository", repository, "--backend-directory", where.backends(folder)]
        command += ["--model-control-mode", "explicit", "--load-model", "*"]
        for kind, port in ports.items():
            command += [f"--{kind}-address", "127.0.0.1", f"--{kind}-port", str(port)]
        start = time.monotonic()
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, env=where.environment(), stdout=log, stderr=subprocess.STDOUT)
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        self.ready_after = time.monotonic() - start

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START
        while not self.healthy():
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(
                    f"Triton is not ready (exit code {self.process.poll()}): {self.log()[-3000:]}", pytrace=False
                )
            time.sleep(0.05)

    def healthy(self) -> bool:
        """Whether the server says that it and all of its models are ready."""
        url = f"http://{self.addresses['http']}/v2/health/ready"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status == 200
        return False

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def stop(self) -> float:
        """Ask the server by its process id to end, as an orchestrator does; returns the seconds that it took.

        Raises subprocess.TimeoutExpired where it does not end, and then kills it.
        """
        start = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(_STOP)
        finally:
            self.process.kill()
        return time.monotonic() - start


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def serving(repository: Path, folder: Path) -> Iterator[Triton]:
    """A server for a `with` block."""
    server = Triton(repository, folder)
    try:
        yield server
    finally:
        server.stop()
